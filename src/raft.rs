//! The handle: what an application holds, on any thread and under any runtime.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use actix::{Addr, Recipient};
use actorum_actors::{snapshot::manager::Backup, subscribers::Subscriber};
use actorum_machine::{
    codes::ErrorCode,
    condition::{Condition, Reason},
    event::Event,
    ids::NodeId,
    machine::StateMachine,
    members::{ChangeRequest, Membership},
    outcome::{Applied, ChangeError, ProposeError, ReadError, TakeSnapshotError},
    position::After,
    status::{Role, SnapshotTaken, Status, VersionStatus},
};
use tokio::sync::mpsc;

use crate::{
    ingress::Ingress,
    request::{ActivateError, Follow, Followed, Propose, Read, Shutdown, Subscribe, SubscribeError, Subscription},
    stream::{EventStream, StatusStream},
    system::RaftSystem,
};

/// A node of a replicated state machine. Cheap to clone; works from any thread and runtime.
///
/// The node lives as long as one handle or address of it does. When the last one is dropped, the node shuts down in
/// order in the background. [`Raft::shutdown`] waits until that is done.
pub struct Raft<S: StateMachine> {
    pub(crate) system: Addr<RaftSystem<S>>,
    pub(crate) ingress: Arc<Ingress<S>>,
}

impl<S: StateMachine> fmt::Debug for Raft<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl<S: StateMachine> Clone for Raft<S> {
    fn clone(&self) -> Self {
        Raft { system: self.system.clone(), ingress: self.ingress.clone() }
    }
}

/// A condition did not come true in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The time is up; the status as it was then.
    #[error("still waiting when the time was up; {0}")]
    TimedOut(String),
    /// The system has stopped.
    #[error("stopped: {0}")]
    Stopped(String),
}

/// Why a write sent to a node now could not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// The node knows what is wrong with it.
    #[error("{}", .0.message)]
    Condition(Condition),
    /// The node finds nothing wrong, but a linearizable read was not answered.
    #[error("a linearizable read was not answered: {0}")]
    Unanswered(ReadError),
}

impl NotReady {
    /// The reason, if the node knows it.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            NotReady::Condition(condition) => Some(condition.reason),
            NotReady::Unanswered(_) => None,
        }
    }
}

impl ErrorCode for NotReady {
    fn code(&self) -> &'static str {
        match self {
            NotReady::Condition(condition) => condition.reason.name(),
            NotReady::Unanswered(error) => error.code(),
        }
    }

    fn http_status(&self) -> u16 {
        503
    }
}

impl ErrorCode for WaitError {
    fn code(&self) -> &'static str {
        match self {
            WaitError::TimedOut(_) => "deadline_exceeded",
            WaitError::Stopped(_) => "stopped",
        }
    }

    fn http_status(&self) -> u16 {
        503
    }
}

#[cfg(feature = "actix-web")]
actorum_machine::response_errors!(NotReady, WaitError);

impl<S: StateMachine> Raft<S> {
    /// The actor behind this handle, for `send` and `do_send`.
    ///
    /// actix puts no bound on messages that are sent with `do_send`. Prefer `send`, or the methods of this handle,
    /// which are bounded by admission.
    pub fn addr(&self) -> &Addr<RaftSystem<S>> {
        &self.system
    }

    /// Replicates a command; see [`Propose`].
    ///
    /// # Errors
    ///
    /// The variant of [`ProposeError`] says what was wrong, and [`ProposeError::outcome`] whether the command is surely
    /// not in the log or nobody can tell. Nothing is proposed twice by this call.
    pub async fn propose(&self, command: S::Command) -> Result<Applied<S::Response>, ProposeError> {
        self.ingress.propose(Propose::new(command)).await
    }

    /// Replicates a command with a deadline of its own.
    ///
    /// # Errors
    ///
    /// As for [`Raft::propose`].
    pub async fn propose_within(
        &self,
        command: S::Command,
        deadline: Duration,
    ) -> Result<Applied<S::Response>, ProposeError> {
        self.ingress.propose(Propose::new(command).deadline(deadline)).await
    }

    /// Hands a command over at once, and returns a future for its answer. Use it to have many commands in flight from
    /// one task.
    ///
    /// Proposals of one thread are proposed in the order they were handed over, unless the leader changes, or a command
    /// waits for the version that it needs ([`StateMachine::needs_version`]): other commands overtake it, and it is
    /// proposed only while its answer is awaited.
    ///
    /// # Errors
    ///
    /// The answer has those of [`Raft::propose`].
    pub fn submit(
        &self,
        command: S::Command,
    ) -> impl Future<Output = Result<Applied<S::Response>, ProposeError>> + use<S> {
        self.ingress.propose(Propose::new(command))
    }

    /// [`Raft::submit`] with a deadline of its own.
    ///
    /// # Errors
    ///
    /// The answer has those of [`Raft::propose`].
    pub fn submit_within(
        &self,
        command: S::Command,
        deadline: Duration,
    ) -> impl Future<Output = Result<Applied<S::Response>, ProposeError>> + use<S> {
        self.ingress.propose(Propose::new(command).deadline(deadline))
    }

    /// A linearizable read.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: no leader confirmed the read within the deadline, a bound is reached, `look` panicked, the node
    /// cannot serve it or has stopped. A read changes nothing, so it may be asked again.
    pub async fn read<T: Send + 'static>(&self, look: impl FnOnce(&S) -> T + Send + 'static) -> Result<T, ReadError> {
        self.read_with(Read::linearizable(look)).await.map(|(_, value)| value)
    }

    /// A read of this node's state as it is.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the state was not read within the deadline, a bound is reached, `look` panicked, the node cannot
    /// serve it or has stopped. It needs no leader.
    pub async fn read_stale<T: Send + 'static>(
        &self,
        look: impl FnOnce(&S) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        self.read_with(Read::stale(look)).await.map(|(_, value)| value)
    }

    /// Any read; see [`Read`]. Returns the index applied at the read along with the value.
    ///
    /// # Errors
    ///
    /// As for [`Raft::read`]; for a stale read as for [`Raft::read_stale`].
    pub async fn read_with<T: Send + 'static>(&self, read: Read<S, T>) -> Result<(u64, T), ReadError> {
        self.ingress.read(read).await
    }

    /// Changes the membership; answered when applied. Takes a [`ConfChange`](crate::ConfChange), or a [`ChangeRequest`]
    /// that is forced.
    ///
    /// A promotion waits within the deadline until the learner is connected and close to the leader's commit.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]. Only after [`ChangeError::Unknown`] may the change have been made, or be made later: look at
    /// the membership in the [`Status`]. After every other error it was surely not made.
    /// [`ChangeError::WouldLoseMajority`] and [`ChangeError::LearnerNotReady`] carry what the leader knew, and
    /// [`ChangeRequest::force`] says which of these checks it skips.
    pub async fn change(&self, change: impl Into<ChangeRequest>) -> Result<Arc<Membership>, ChangeError> {
        self.ingress.change(change.into(), None).await
    }

    /// Changes the membership with a deadline of its own.
    ///
    /// # Errors
    ///
    /// As for [`Raft::change`].
    pub async fn change_within(
        &self,
        change: impl Into<ChangeRequest>,
        deadline: Duration,
    ) -> Result<Arc<Membership>, ChangeError> {
        self.ingress.change(change.into(), Some(deadline)).await
    }

    /// Subscribes; see [`Subscribe`].
    ///
    /// # Errors
    ///
    /// [`SubscribeError`]: the position is one of another cluster, or lies in the future; this node is behind it and
    /// could not ask a leader; it did not begin within the deadline; or it has stopped. A position whose entries are no
    /// longer in memory or in the log is no error: see [`Subscribe::after`].
    pub async fn subscribe(&self, subscribe: Subscribe<S>) -> Result<Subscription, SubscribeError> {
        self.ingress.subscribe(subscribe).await
    }

    /// A stream of what is applied after a point, for callers without an actor. See [`Subscribe::after`].
    ///
    /// ```
    /// # use actorum::prelude::*;
    /// # async fn example<S: StateMachine>(raft: Raft<S>, last: Option<Position>) -> Result<(), SubscribeError> {
    /// let mut events = raft.events(last.map_or(After::Index(0), After::Position)).await?;
    /// while let Some(event) = events.next().await {
    ///     if let Event::Applied { index, time, .. } = event {
    ///         println!("{index} was proposed at {time:?}");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`Raft::subscribe`].
    pub async fn events(&self, after: impl Into<After>) -> Result<EventStream<S>, SubscribeError> {
        let (sender, events) = mpsc::channel(1);
        self.ingress.subscribe(Subscribe::of(Subscriber::Channel(sender)).after(after)).await?;
        Ok(EventStream(events))
    }

    /// Reads the state and subscribes this recipient to everything applied after it, in one step; see [`Follow`].
    ///
    /// # Errors
    ///
    /// As for [`Raft::read`]: nothing is subscribed then.
    pub async fn follow<T: Send + 'static>(
        &self,
        look: impl FnOnce(&S) -> T + Send + 'static,
        recipient: Recipient<Event<S>>,
    ) -> Result<Followed<T>, ReadError> {
        self.follow_with(Follow::new(look, recipient)).await
    }

    /// [`Raft::follow`] with all its settings.
    ///
    /// # Errors
    ///
    /// As for [`Raft::read`]: nothing is subscribed then.
    pub async fn follow_with<T: Send + 'static>(&self, follow: Follow<S, T>) -> Result<Followed<T>, ReadError> {
        self.ingress.follow(follow).await
    }

    /// Reads the state and returns a stream of everything applied after it, in one step: [`Raft::follow`] for callers
    /// without an actor.
    ///
    /// Every command in the stream has its response. The subscription ends when the stream is dropped.
    ///
    /// # Errors
    ///
    /// As for [`Raft::read`]: nothing is subscribed then.
    pub async fn follow_events<T: Send + 'static>(
        &self,
        look: impl FnOnce(&S) -> T + Send + 'static,
    ) -> Result<(Followed<T>, EventStream<S>), ReadError> {
        let (sender, events) = mpsc::channel(1);
        let recipient = Subscriber::Channel(sender);
        let followed = self.ingress.follow(Follow { look: Box::new(look), recipient, deadline: None }).await?;
        Ok((followed, EventStream(events)))
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, subscription: Subscription) {
        self.ingress.unsubscribe(subscription);
    }

    /// Takes a snapshot of this node's state now, and waits until it is durable. The log before the previous snapshot
    /// can be cut off then.
    ///
    /// What was applied before the call is in the snapshot: if one is under way already, the call waits for the next
    /// one. If nothing was applied since the last snapshot, the answer is the last one.
    ///
    /// # Errors
    ///
    /// [`TakeSnapshotError::Failed`] if it could not be built, after which the node goes on;
    /// [`TakeSnapshotError::Nothing`] if nothing was applied yet; [`TakeSnapshotError::Stopped`] if the node has
    /// stopped.
    pub async fn take_snapshot(&self) -> Result<SnapshotTaken, TakeSnapshotError> {
        self.ingress.take_snapshot().await
    }

    /// [`Raft::take_snapshot`] with a deadline. A large state takes its time, and a state machine that is busy gives no
    /// snapshot. A snapshot that was begun goes on after the deadline, and the error says so.
    ///
    /// # Errors
    ///
    /// As for [`Raft::take_snapshot`], and [`TakeSnapshotError::DeadlineExceeded`].
    pub async fn take_snapshot_within(&self, deadline: Duration) -> Result<SnapshotTaken, TakeSnapshotError> {
        self.ingress.take_snapshot_within(deadline).await
    }

    /// A backup of this node's state as of now: takes a snapshot, and returns its file for reading.
    ///
    /// Any node will do: what it has applied is in it, and its index says how much that is. A follower may be behind;
    /// wait for an index first ([`Raft::wait_applied`]) where that matters.
    ///
    /// # Errors
    ///
    /// As for [`Raft::take_snapshot`]; [`TakeSnapshotError::Failed`] also if the file of the snapshot cannot be opened.
    pub async fn backup(&self) -> Result<Backup, TakeSnapshotError> {
        self.ingress.backup(None).await
    }

    /// [`Raft::backup`] that waits for the snapshot only until this deadline.
    ///
    /// # Errors
    ///
    /// As for [`Raft::backup`], and [`TakeSnapshotError::DeadlineExceeded`].
    pub async fn backup_within(&self, deadline: Duration) -> Result<Backup, TakeSnapshotError> {
        self.ingress.backup(Some(deadline)).await
    }

    /// Lets the leader activate what every member understands: features, and the version of the state machine. It is
    /// only needed where that does not happen by itself (`activate = "manual"`). Any node takes the request.
    ///
    /// Returns once that is in use on this node, with the versions in use; [`VersionStatus::not_in_use`] names what
    /// cannot be used yet, and the members that lack it. From then on no member can be put back to a version that does
    /// not know what is in use.
    ///
    /// # Errors
    ///
    /// [`ActivateError`]: no leader is known, a bound is reached, not everything was in use within the deadline (it may
    /// be put to use later all the same), or the system has stopped. Asking again does no harm.
    pub async fn activate(&self) -> Result<VersionStatus, ActivateError> {
        self.ingress.activate(None).await
    }

    /// [`Raft::activate`] with a deadline of its own.
    ///
    /// # Errors
    ///
    /// As for [`Raft::activate`].
    pub async fn activate_within(&self, deadline: Duration) -> Result<VersionStatus, ActivateError> {
        self.ingress.activate(Some(deadline)).await
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.ingress.status_hub.id
    }

    /// Whether this node leads, as far as it knows. Another node may have been elected already, so do not rely on this
    /// for work that must not be done twice: propose a command for it.
    pub fn is_leader(&self) -> bool {
        self.status().role == Role::Leader
    }

    /// The latest status: a clone, complete in itself.
    pub fn status(&self) -> Status {
        self.ingress.status_hub.status()
    }

    /// A stream of the status: the present one, and a new one each time that something in it has changed.
    ///
    /// A slow reader misses some statuses in between, but never the latest. The last status says why the node has
    /// stopped.
    pub fn watch_status(&self) -> StatusStream {
        StatusStream::of((*self.ingress.status_hub).clone())
    }

    /// Whether a write sent to this node now could succeed, and if not, why: what `GET /readyz` of the binary answers.
    ///
    /// It first looks at the status ([`Status::unready`]), then makes a linearizable read, which takes at most a
    /// second. Returns the index at which that read was served.
    ///
    /// # Errors
    ///
    /// [`NotReady::Condition`] if the node knows what is wrong with it; [`NotReady::Unanswered`] if it finds nothing
    /// wrong, and the read was not answered within that second.
    pub async fn ready(&self) -> Result<u64, NotReady> {
        if let Some(condition) = self.status().unready() {
            return Err(NotReady::Condition(condition));
        }
        let read = Read::linearizable(|_: &S| ()).deadline(Duration::from_secs(1));
        let index = self.read_with(read).await.map(|(index, ())| index);
        index.map_err(|error| match self.status().unready() {
            Some(condition) => NotReady::Condition(condition),
            None => NotReady::Unanswered(error),
        })
    }

    /// Waits until the status satisfies a condition. When the system stops, or has begun to, every wait ends with
    /// [`WaitError::Stopped`]. To wait for the stop itself use [`Raft::stopped`].
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`] with the status when the time is up, and [`WaitError::Stopped`] with the cause.
    pub async fn wait(&self, timeout: Duration, until: impl Fn(&Status) -> bool) -> Result<Status, WaitError> {
        let mut status_hub = (*self.ingress.status_hub).clone();
        // The clock keeps the time: the caller's runtime may have no timer, and the thread of the actors may be busy.
        let clock = &self.ingress.clock;
        let mut alarm = clock.alarm(clock.now().saturating_add(timeout));
        loop {
            status_hub.mark_seen();
            let status = status_hub.status();
            if let Some(cause) = status.stopped.clone().or_else(|| status_hub.admission.closed()) {
                return Err(WaitError::Stopped(cause));
            }
            if until(&status) {
                return Ok(status);
            }
            tokio::select! {
                biased;
                goes_on = status_hub.changed() => {
                    if !goes_on {
                        return Err(WaitError::Stopped("the system has ended".into()));
                    }
                }
                () = &mut alarm => {
                    let status = status_hub.status();
                    return match status.stopped.clone() {
                        Some(cause) => Err(WaitError::Stopped(cause)),
                        None if until(&status) => Ok(status),
                        None => Err(WaitError::TimedOut(in_a_line(&status))),
                    };
                }
            }
        }
    }

    /// Waits until a leader is known.
    ///
    /// # Errors
    ///
    /// As for [`Raft::wait`].
    pub async fn wait_for_leader(&self, timeout: Duration) -> Result<Status, WaitError> {
        self.wait(timeout, |status| status.leader.is_some()).await
    }

    /// Waits until this node has applied an index.
    ///
    /// # Errors
    ///
    /// As for [`Raft::wait`].
    pub async fn wait_applied(&self, index: u64, timeout: Duration) -> Result<Status, WaitError> {
        self.wait(timeout, |status| status.applied_index >= index).await
    }

    /// Waits until the system has stopped, for whatever reason, and returns the reason.
    pub async fn stopped(&self) -> String {
        let mut life = self.ingress.status_hub.life.clone();
        let closed = life.wait_for(|life| life.closed).await.map(|life| life.stopped.clone());
        closed.ok().flatten().unwrap_or_else(|| "the system has ended".into())
    }

    /// Shuts down in order: see [`Shutdown`]. Returns when the directory is closed.
    pub async fn shutdown(&self) {
        // A system that is gone has shut down.
        let _ = self.system.send(Shutdown).await;
    }
}

fn in_a_line(status: &Status) -> String {
    let leader = status.leader.map_or("no leader".to_owned(), |id| format!("leader {id}"));
    format!(
        "node {} is {} in term {}, {leader}, commit {}, applied {}, {}",
        status.id, status.role, status.term, status.commit_index, status.applied_index, status.membership
    )
}
