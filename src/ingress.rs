//! The way of a request to the core: the same for the handle and for the actor.
//!
//! ```text
//!  caller's thread: encode, decode again, admit ──Submit(slot)──▶ core        the answer comes through the slot
//!  stale reads ─────────────────────────────────ServeReads──────▶ applier
//! ```
//!
//! Everything here happens in the caller's task and never blocks its thread. No request is awaited for longer than its
//! deadline (see `Limit`). The addresses are weak: a handle keeps the system alive, and only the system keeps its
//! actors alive.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    time::Duration,
};

use actix::WeakAddr;
use actorum_actors::{
    admission::{Admission, Denied, Permit},
    applier::Applier,
    clock::{Alarm, Clock},
    core::RaftCore,
    membership::{Activate, MembershipManager, NoLeader},
    message::{ServeReads, Submit, SubmitChange, SubmitRead},
    reply_slot::{Look, ReplySlot},
    snapshot::manager::{Backup, OpenNewest, SnapshotManager, TakeSnapshot},
    subscribers::{SubscribeFrom, Subscriber, Subscription, Unsubscribe, View, Wants},
};
use actorum_core::{entry::EncodedCommand, panics::panic_message, versions::FIRST_MACHINE_VERSION};
use actorum_machine::{
    condition::Condition,
    ids::{Address, MAX_NODE_ID, NodeId},
    machine::{self, StateMachine},
    members::{Change, ChangeRequest, Membership},
    outcome::{Applied, ChangeError, ProposeError, ReadError, SubscribeError, TakeSnapshotError},
    position::After,
    status::{SnapshotTaken, VersionStatus},
};
use futures_util::future::Either;
use tokio::sync::oneshot;

use crate::{
    request::{ActivateError, Follow, Followed, Propose, Read, Subscribe},
    status_hub::{End, StatusHub},
};

/// The end of a reply slot at which the answer comes.
type ReplyReceiver<T, E> = oneshot::Receiver<Result<T, E>>;

/// A command that is encoded and admitted.
type Prepared = (EncodedCommand, Permit);

/// The way in.
pub(crate) struct Ingress<S: StateMachine> {
    pub admission: Arc<Admission>,
    pub clock: Arc<dyn Clock>,
    /// Of requests that name none.
    pub deadline: Duration,
    pub max_entry_bytes: usize,
    /// Whether peers are dialled at addresses of the form `HOST:PORT`: a network in memory has names of its own.
    pub dials: bool,
    pub core: WeakAddr<RaftCore<ReplySlot<S>>>,
    pub applier: WeakAddr<Applier<S>>,
    pub snapshot_manager: WeakAddr<SnapshotManager>,
    pub membership: WeakAddr<MembershipManager<ReplySlot<S>>>,
    pub status_hub: Arc<StatusHub>,
    /// How long after its deadline a request is answered here, if it has no answer by then. A core that runs knows more
    /// exactly how the request ended, and answers at its next tick.
    pub grace: Duration,
}

impl<S: StateMachine> Ingress<S> {
    /// Begins a proposal; the future only waits for its answer. A command that needs a version of the state machine
    /// which is about to be put in force is admitted now and handed over then.
    pub(crate) fn propose(
        self: &Arc<Self>,
        Propose { command, deadline }: Propose<S>,
    ) -> impl Future<Output = Result<Applied<S::Response>, ProposeError>> + use<S> {
        let (limit, until, status_hub) = (self.limit(deadline), self.until(deadline), self.status_hub.clone());
        let begun = match self.prepare(&command) {
            Err(error) => Either::Left(Err(error)),
            Ok((needed, prepared)) if needed <= FIRST_MACHINE_VERSION || needed <= self.version_in_force() => {
                Either::Left(self.hand_over(prepared, until))
            }
            Ok((needed, prepared)) => Either::Right((self.clone(), needed, prepared)),
        };
        async move {
            let lost = || ProposeError::Unknown { cause: "its slot was lost".into() };
            let late = |cause| ProposeError::Unknown { cause };
            let begun = match begun {
                Either::Left(begun) => begun,
                Either::Right((ingress, needed, prepared)) => match ingress.wait_for_version(needed, until).await {
                    Ok(()) => ingress.hand_over(prepared, until),
                    Err(error) => Err(error),
                },
            };
            let answered = match begun {
                Ok(answer) => limit.of(answer, lost, late).await,
                Err(error) => Err(error),
            };
            answered.map_err(|error| match status_hub.explain(proposal_end(&error)) {
                Some(Condition { reason, message, .. }) => ProposeError::Unavailable { reason, message },
                None => error,
            })
        }
    }

    /// A command that can be replicated, with the version that it needs, and with the admission permit that it holds
    /// until its answer.
    fn prepare(&self, command: &S::Command) -> Result<(u32, Prepared), ProposeError> {
        let needed = catch_unwind(AssertUnwindSafe(|| S::needs_version(command)));
        let needed =
            needed.map_err(|_| ProposeError::Invalid { cause: "`needs_version` panicked for this command".into() })?;
        let invalid = |error: machine::MachineError| ProposeError::Invalid { cause: error.to_string() };
        let encoded = EncodedCommand::command(command).map_err(invalid)?;
        let (size, limit) = (encoded.size(), self.max_entry_bytes);
        if size > limit {
            return Err(ProposeError::TooLarge { size, limit });
        }
        check::<S>(&encoded).map_err(|cause| ProposeError::Invalid { cause })?;
        let permit = self.admit(size)?;
        Ok((needed, (encoded, permit)))
    }

    fn hand_over(
        &self,
        (encoded, permit): Prepared,
        deadline: Duration,
    ) -> Result<ReplyReceiver<Applied<S::Response>, ProposeError>, ProposeError> {
        let core = self.core.upgrade().ok_or_else(|| ProposeError::Stopped { cause: self.cause() })?;
        let (reply, answer) = oneshot::channel();
        let reply = Some(ReplySlot::propose(reply, permit));
        // This may exceed the bound of the mailbox, but never that of admission, which counts every request that has no
        // answer yet.
        core.do_send(Submit { encoded, reply, deadline });
        Ok(answer)
    }

    /// The version of the state machine in force, as far as this node has applied the log. It never falls, so what may
    /// be proposed by it may be proposed.
    fn version_in_force(&self) -> u32 {
        self.status_hub.applier.borrow().versions.machine()
    }

    /// Waits until a version is in force, if it can come into force by itself.
    async fn wait_for_version(self: &Arc<Self>, needed: u32, until: Duration) -> Result<(), ProposeError> {
        let (mut status_hub, mut alarm) = ((*self.status_hub).clone(), self.clock.alarm(until));
        let mut is_up_to_date = false;
        loop {
            status_hub.mark_seen();
            if self.version_in_force() >= needed {
                return Ok(());
            }
            if let Some(cause) = self.admission.closed() {
                return Err(ProposeError::Stopped { cause });
            }
            let is_late = self.clock.now() >= until;
            if let Some(error) = self.why_not_in_force(needed, is_late) {
                if is_late || is_up_to_date || self.status_hub.build.machine < needed {
                    return Err(error);
                }
                // This node may not have applied yet what others have put in force.
                let left = until.saturating_sub(self.clock.now());
                if self.read(Read::linearizable(|_: &S| ()).deadline(left)).await.is_err() {
                    return Err(error);
                }
                is_up_to_date = true;
                continue;
            }
            tokio::select! {
                biased;
                goes_on = status_hub.changed() => {
                    if !goes_on {
                        return Err(ProposeError::Stopped { cause: self.cause() });
                    }
                }
                () = &mut alarm => {}
            }
        }
    }

    /// Why that version is not in force. Before the deadline: only a reason that does not pass by itself.
    fn why_not_in_force(&self, needed: u32, is_late: bool) -> Option<ProposeError> {
        let refused = |lowest, node| Some(ProposeError::NeedsVersion { needed, lowest, node });
        if self.status_hub.build.machine < needed {
            return refused(self.status_hub.build.machine, Some(self.status_hub.id));
        }
        let applier = self.status_hub.applier.borrow();
        let heard = &self.status_hub.members.borrow().heard;
        let announced = if applier.versions.are_recorded() { &applier.versions.announced } else { heard };
        let members = applier.membership.members.keys();
        let lowest = members.clone().filter_map(|id| Some((announced.get(id)?.machine, *id))).min();
        if let Some((lowest, node)) = lowest.filter(|(lowest, _)| *lowest < needed) {
            return refused(lowest, Some(node));
        }
        match members.clone().find(|id| !announced.contains_key(id)) {
            // It is not connected, or has not been recorded yet.
            Some(node) if is_late => refused(FIRST_MACHINE_VERSION, Some(*node)),
            Some(_) => None,
            // There is no cluster yet.
            None if lowest.is_none() => is_late.then_some(ProposeError::NotLeader { leader: None }),
            None if is_late || self.status_hub.manual => refused(applier.versions.machine(), None),
            None => None,
        }
    }

    /// Lets the leader activate what every member understands, and waits until this node has applied the activations.
    pub(crate) fn activate(
        &self,
        deadline: Option<Duration>,
    ) -> impl Future<Output = Result<VersionStatus, ActivateError>> + use<S> {
        // The caller's, and given back when the caller waits no longer. The other end of the reply closes then, which
        // tells the membership manager to forget the request.
        let permit = self.admit(0);
        let begun = permit.as_ref().ok().and_then(|_| self.membership.upgrade());
        let begun = begun.map(|membership| {
            let (reply, answer) = oneshot::channel();
            membership.do_send(Activate { reply });
            answer
        });
        let (limit, admission, mut status_hub) =
            (self.limit(deadline), self.admission.clone(), (*self.status_hub).clone());
        async move {
            let _permit = permit?;
            let stopped = || ActivateError::Stopped { cause: cause(&admission) };
            let begun = begun.ok_or_else(stopped)?;
            let (within, hub, done) = (limit.deadline, limit.status_hub.clone(), OnceLock::new());
            let activated = async {
                let activated = begun.await.map_err(|_| stopped())?;
                let index = activated.map_err(|NoLeader| ActivateError::NoLeader)?;
                let index = *done.get_or_init(|| index);
                loop {
                    status_hub.mark_seen();
                    let status = status_hub.status();
                    if status.applied_index >= index {
                        return Ok::<_, ActivateError>(status.versions);
                    }
                    if !status_hub.changed().await {
                        return Err(stopped());
                    }
                }
            };
            let why = || hub.why_not_activated(within, done.get().copied());
            let late = |_| ActivateError::DeadlineExceeded { cause: why() };
            limit.of(async { Ok::<_, ()>(activated.await) }, stopped, late).await
        }
    }

    /// Begins a read.
    pub(crate) fn read<T: Send + 'static>(
        &self,
        Read { look, linearizable, deadline }: Read<S, T>,
    ) -> impl Future<Output = Result<(u64, T), ReadError>> + use<S, T> {
        let (reply, answer) = oneshot::channel();
        let look: Look<S> = Box::new(move |state: Result<View<'_, S>, ReadError>| {
            let looked = state.and_then(|view| Ok((view.applied, looking(|| look(view.machine))?)));
            // A client that no longer waits is not told.
            let _ = reply.send(looked);
        });
        self.looked(self.begin_read(look, linearizable, deadline), answer, deadline)
    }

    /// Begins a read with a subscription inside.
    pub(crate) fn follow<T: Send + 'static>(
        &self,
        Follow { look, recipient, deadline }: Follow<S, T>,
    ) -> impl Future<Output = Result<Followed<T>, ReadError>> + use<S, T> {
        let (reply, answer) = oneshot::channel();
        let look: Look<S> = Box::new(move |state: Result<View<'_, S>, ReadError>| {
            let mut view = match state {
                Ok(view) => view,
                Err(error) => return drop(reply.send(Err(error))),
            };
            // A caller that no longer waits could not end the subscription.
            if reply.is_closed() {
                return;
            }
            let value = match looking(|| look(view.machine)) {
                Ok(value) => value,
                Err(panicked) => return drop(reply.send(Err(panicked))),
            };
            let position = view.position().expect("a leader confirmed this read, so there is a cluster");
            let subscription = view.follow(recipient);
            if reply.send(Ok(Followed { value, position, subscription })).is_err() {
                view.subscribers.unsubscribe(subscription);
            }
        });
        self.looked(self.begin_read(look, true, deadline), answer, deadline)
    }

    /// The end of a read that was begun.
    fn looked<T: Send + 'static>(
        &self,
        begun: Result<(), ReadError>,
        answer: ReplyReceiver<T, ReadError>,
        deadline: Option<Duration>,
    ) -> impl Future<Output = Result<T, ReadError>> + use<S, T> {
        let (limit, status_hub) = (self.limit(deadline), self.status_hub.clone());
        async move {
            // The client gets an answer whatever happens to the slot, also when the closure panics.
            let lost = || ReadError::Panicked { message: "without a word".into() };
            let late = |cause| ReadError::DeadlineExceeded { cause };
            let answered = match begun {
                Ok(()) => limit.of(answer, lost, late).await,
                Err(error) => Err(error),
            };
            answered.map_err(|error| match status_hub.explain(read_end(&error)) {
                Some(Condition { reason, message, .. }) => ReadError::Unavailable { reason, message },
                None => of_this_node(error, status_hub.id),
            })
        }
    }

    fn begin_read(&self, look: Look<S>, linearizable: bool, deadline: Option<Duration>) -> Result<(), ReadError> {
        let permit = self.admit(0)?;
        let stopped = || ReadError::Stopped { cause: self.cause() };
        if linearizable {
            let core = self.core.upgrade().ok_or_else(stopped)?;
            core.do_send(SubmitRead { reply: ReplySlot::read(look, permit), deadline: self.until(deadline) });
        } else {
            let applier = self.applier.upgrade().ok_or_else(stopped)?;
            applier.do_send(ServeReads(vec![(0, ReplySlot::read(look, permit))]));
        }
        Ok(())
    }

    /// Begins a membership change.
    pub(crate) fn change(
        &self,
        change: ChangeRequest,
        deadline: Option<Duration>,
    ) -> impl Future<Output = Result<Arc<Membership>, ChangeError>> + use<S> {
        let (begun, limit, status_hub) =
            (self.begin_change(change, deadline), self.limit(deadline), self.status_hub.clone());
        async move {
            let lost = || ChangeError::Unknown { cause: "its slot was lost".into() };
            let late = |cause| ChangeError::Unknown { cause };
            let answered = match begun {
                Ok(answer) => limit.of(answer, lost, late).await,
                Err(error) => Err(error),
            };
            answered.map_err(|error| match status_hub.explain(change_end(&error)) {
                Some(Condition { reason, message, .. }) => ChangeError::Unavailable { reason, message },
                None => error,
            })
        }
    }

    fn begin_change(
        &self,
        change: ChangeRequest,
        deadline: Option<Duration>,
    ) -> Result<ReplyReceiver<Arc<Membership>, ChangeError>, ChangeError> {
        if let Change::AddLearner(id, address) = &change.change {
            self.check_new(*id, address).map_err(|cause| ChangeError::Invalid { cause })?;
        }
        let permit = self.admit(0)?;
        let core = self.core.upgrade().ok_or_else(|| ChangeError::Stopped { cause: self.cause() })?;
        let (reply, answer) = oneshot::channel();
        core.do_send(SubmitChange { change, reply: ReplySlot::change(reply, permit), deadline: self.until(deadline) });
        Ok(answer)
    }

    /// A new member is checked here, before it is in the log: a change that is in the log is never refused.
    fn check_new(&self, id: NodeId, address: &Address) -> Result<(), String> {
        check_id(id)?;
        if self.dials {
            address.0.parse::<Address>().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Subscribes. The applier answers between two batches.
    ///
    /// The applier knows only what it has applied. The client may have an index from a node that is further ahead. So
    /// an index in the future of this node is checked again when this node has applied everything that the cluster had
    /// committed by now.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        Subscribe { recipient, after, wants }: Subscribe<S>,
    ) -> impl Future<Output = Result<Subscription, SubscribeError>> + use<S> {
        let begun = self.begin_subscription(recipient.clone(), after, wants);
        let ingress = self.clone();
        async move {
            let answer = begun.await;
            let Err(SubscribeError::FuturePosition { .. }) = answer else { return answer };
            let confirmed = ingress.read(Read::linearizable(|_: &S| ())).await;
            let answer = ingress.begin_subscription(recipient, after, wants).await;
            match (answer, confirmed) {
                (Err(SubscribeError::FuturePosition { index, applied }), Err(error)) => {
                    Err(SubscribeError::Behind { index, applied, cause: error.to_string() })
                }
                (answer, _) => answer,
            }
        }
    }

    fn begin_subscription(
        &self,
        subscriber: Subscriber<S>,
        after: After,
        wants: Wants,
    ) -> impl Future<Output = Result<Subscription, SubscribeError>> + use<S> {
        let subscribe = SubscribeFrom { subscriber, after, wants };
        let begun = self.applier.upgrade().map(|applier| applier.send(subscribe));
        let (admission, limit) = (self.admission.clone(), self.limit(None));
        async move {
            let stopped = || SubscribeError::Stopped { cause: cause(&admission) };
            // A subscription that no caller waits for is not begun: actix skips requests whose sender has gone.
            limit.of(begun.ok_or_else(stopped)?, stopped, |cause| SubscribeError::DeadlineExceeded { cause }).await
        }
    }

    /// Has a snapshot taken.
    pub(crate) fn take_snapshot(&self) -> impl Future<Output = Result<SnapshotTaken, TakeSnapshotError>> + use<S> {
        let snapshot_manager = self.snapshot_manager.upgrade().filter(|_| self.admission.closed().is_none());
        let begun = snapshot_manager.map(|snapshot_manager| snapshot_manager.send(TakeSnapshot));
        let admission = self.admission.clone();
        async move {
            let stopped = || TakeSnapshotError::Stopped { cause: cause(&admission) };
            begun.ok_or_else(stopped)?.await.map_err(|_| stopped())?
        }
    }

    /// The same, with this deadline.
    pub(crate) fn take_snapshot_within(
        &self,
        deadline: Duration,
    ) -> impl Future<Output = Result<SnapshotTaken, TakeSnapshotError>> + use<S> {
        let (limit, taken, status_hub) = (self.limit(Some(deadline)), self.take_snapshot(), self.status_hub.clone());
        async move {
            let taken = async move { Ok::<_, ()>(taken.await) };
            let gone = || TakeSnapshotError::Stopped { cause: "the system has ended".into() };
            let late =
                |cause| TakeSnapshotError::DeadlineExceeded { cause: status_hub.why_no_snapshot(deadline, cause) };
            limit.of(taken, gone, late).await
        }
    }

    /// Lets the node take a snapshot, waits for it until this deadline, and opens its file.
    pub(crate) fn backup(
        &self,
        deadline: Option<Duration>,
    ) -> impl Future<Output = Result<Backup, TakeSnapshotError>> + use<S> {
        let taken = match deadline {
            Some(deadline) => Either::Left(self.take_snapshot_within(deadline)),
            None => Either::Right(self.take_snapshot()),
        };
        let (snapshot_manager, admission) = (self.snapshot_manager.clone(), self.admission.clone());
        async move {
            let stopped = || TakeSnapshotError::Stopped { cause: cause(&admission) };
            let taken = taken.await?;
            let snapshot_manager = snapshot_manager.upgrade().ok_or_else(stopped)?;
            let file = snapshot_manager.send(OpenNewest).await.map_err(|_| stopped())??;
            // Another snapshot may have been taken meanwhile; it holds more, so it will do.
            debug_assert!(file.taken.index >= taken.index, "snapshots grow");
            Ok(file)
        }
    }

    pub(crate) fn unsubscribe(&self, subscription: Subscription) {
        if let Some(applier) = self.applier.upgrade() {
            applier.do_send(Unsubscribe(subscription));
        }
    }

    fn admit(&self, bytes: usize) -> Result<Permit, Denied> {
        self.admission.try_admit(bytes)
    }

    fn until(&self, deadline: Option<Duration>) -> Duration {
        self.clock.now().saturating_add(deadline.unwrap_or(self.deadline))
    }

    /// How long a request with this deadline is waited for. Its time begins now.
    fn limit(&self, deadline: Option<Duration>) -> Limit {
        let deadline = deadline.unwrap_or(self.deadline);
        let at = self.clock.now().saturating_add(deadline).saturating_add(self.grace);
        Limit { alarm: self.clock.alarm(at), deadline, status_hub: self.status_hub.clone() }
    }

    /// Why nothing is taken any more.
    fn cause(&self) -> String {
        cause(&self.admission)
    }
}

/// Whether a new node may have this id.
pub(crate) fn check_id(id: NodeId) -> Result<(), String> {
    match id {
        0 => Err("0 is not a node id: choose 1 or more".to_owned()),
        1..=MAX_NODE_ID => Ok(()),
        _ => Err(format!(
            "{id} is not a node id: {MAX_NODE_ID} (2^53 - 1) is the highest, since programs that read JSON round what \
             is above it"
        )),
    }
}

/// The longest time that a caller waits for a request, whatever delays the actors that should answer it (the fourth
/// promise).
///
/// It runs in the caller's task, so nothing that happens on the threads of the actors can delay it. A request that is
/// still under way keeps its admission permit, so that no request is admitted without room.
struct Limit {
    alarm: Alarm,
    deadline: Duration,
    status_hub: Arc<StatusHub>,
}

impl Limit {
    /// This answer, or that the deadline has passed, with what is known of the reason.
    async fn of<T, E, L>(
        self,
        answer: impl Future<Output = Result<Result<T, E>, L>>,
        lost: impl FnOnce() -> E,
        late: impl FnOnce(String) -> E,
    ) -> Result<T, E> {
        let Limit { alarm, deadline, status_hub } = self;
        tokio::select! {
            // An answer that has arrived counts, even if the caller polls late.
            biased;
            answer = answer => answer.unwrap_or_else(|_| Err(lost())),
            () = alarm => Err(late(status_hub.why_late(deadline))),
        }
    }
}

/// Why this node takes no more requests. It is read only then, since a request may have waited until the node stopped.
fn cause(admission: &Admission) -> String {
    admission.closed().unwrap_or_else(|| "the system has ended".into())
}

/// Runs the closure of a read. A panic of the closure ends only this read.
fn looking<T>(look: impl FnOnce() -> T) -> Result<T, ReadError> {
    // The closure cannot change the state, so a panic leaves only the client's own values half changed.
    catch_unwind(AssertUnwindSafe(look)).map_err(|panic| {
        let message = panic_message(&*panic);
        tracing::warn!(%message, "the closure of a read panicked");
        ReadError::Panicked { message }
    })
}

/// If this node leads, the reason is not that no leader was found: no majority has confirmed the leadership.
fn of_this_node(error: ReadError, id: NodeId) -> ReadError {
    match error {
        ReadError::NotLeader { leader: Some(leader) } if leader == id => ReadError::DeadlineExceeded {
            cause: format!(
                "node {id} leads, and within the deadline no majority of the voters confirmed that it still does"
            ),
        },
        error => error,
    }
}

fn proposal_end(error: &ProposeError) -> End {
    match error {
        ProposeError::NotLeader { .. } | ProposeError::DeadlineExceeded { .. } => End::NotTaken,
        ProposeError::Stopped { .. } => End::Stopped,
        _ => End::Other,
    }
}

fn read_end(error: &ReadError) -> End {
    match error {
        ReadError::NotLeader { .. } => End::NotTaken,
        ReadError::Stopped { .. } => End::Stopped,
        _ => End::Other,
    }
}

fn change_end(error: &ChangeError) -> End {
    match error {
        ChangeError::NotLeader { .. } | ChangeError::DeadlineExceeded { .. } => End::NotTaken,
        ChangeError::Stopped { .. } => End::Stopped,
        _ => End::Other,
    }
}

/// Checks that a command can be applied: a command that does not survive its own encoding would stop every node.
///
/// The core checks the commands that peers forward with this, so a panic of the application's code must not reach the
/// core.
pub(crate) fn check<S: StateMachine>(encoded: &EncodedCommand) -> Result<(), String> {
    let decode = AssertUnwindSafe(|| machine::decode::<S::Command>(encoded.payload()).map(drop));
    let decoded = catch_unwind(decode).map_err(|_| "decoding it panics".to_owned())?;
    decoded.map_err(|error| error.to_string())
}
