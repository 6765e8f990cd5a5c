//! `RaftSystem`: the one actor that an application spawns, and the parent of all the others.
//!
//! ```text
//!                    RaftSystem ── holds ──▶ core, applier, log writer, membership manager, transport
//!                        ▲                                        │
//!                        └───────── Failed, LeaderChanged ────────┘   weak
//! ```
//!
//! It lives while a handle or an address of it does, and its children live while it does. Every end has the same steps:
//! admission closes, requests in flight finish or are answered, the core stops, the log is made durable and closed, the
//! applier and the transport end. If a child has failed, only the waiting is skipped: every pending answer is "unknown"
//! with the failure as its cause. The rest of the process goes on.
//!
//! Deliberately absent: anything about Raft.

use std::{fmt, sync::Arc, time::Duration};

use actix::prelude::*;
use actorum_actors::{
    applier::{Applier, StopApplier},
    consistency::ConsistencyChecker,
    core::{RaftCore, Stop},
    log_writer::{CloseLog, LogWriter},
    membership::MembershipManager,
    message::{Failed, FromCore},
    reply_slot::ReplySlot,
    snapshot::manager::{SnapshotManager, StopSnapshotManager, TakeSnapshot},
};
use actorum_core::message::LeaderChanged;
use actorum_machine::{
    condition::Reason,
    ids::NodeId,
    machine::StateMachine,
    members::{Change as ConfChange, ChangeRequest, Membership},
    outcome::{ChangeError, ProposeError, ReadError, TakeSnapshotError},
    status::{SnapshotTaken, VersionStatus},
};
use actorum_transport::message::{Close, GetTransportStatus, TransportHandle, TransportStatus};
use tokio::{sync::watch, time::timeout};

use crate::{
    boot::OwnSystem,
    builder::Builder,
    condition_log::ConditionLog,
    ingress::Ingress,
    request::{
        Activate, ActivateError, Follow, Followed, GetStatus, Propose, Read, Shutdown, Subscribe, SubscribeError,
        Subscription, Unsubscribe,
    },
    status_hub::Life,
};

/// How often the system checks its children and fetches the transport's numbers.
const ROUND: Duration = Duration::from_millis(100);

/// How long a disk that hangs may delay the end. The writes that wait for it were not promised yet.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// The one actor an application spawns. Started by [`RaftSystem::builder`].
pub struct RaftSystem<S: StateMachine> {
    pub(crate) ingress: Arc<Ingress<S>>,
    pub(crate) life: watch::Sender<Life>,
    pub(crate) network: watch::Sender<TransportStatus>,
    /// `None` once they are being closed.
    pub(crate) children: Option<Children<S>>,
    /// How long what is in flight may take to finish at a shutdown.
    pub(crate) grace: Duration,
    /// Whether the transport has been asked for its numbers and has not answered: one question at a time.
    pub(crate) asking: bool,
    /// The last leader, and its term.
    pub(crate) leadership: Option<(NodeId, u64)>,
    /// The conditions that the log shows.
    pub(crate) conditions: ConditionLog,
    /// The actix system that was made for this node alone, and ends with it.
    pub(crate) own: Option<OwnSystem>,
}

impl<S: StateMachine> fmt::Debug for RaftSystem<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftSystem")
            .field("id", &self.ingress.status_hub.id)
            .field("leadership", &self.leadership)
            .field("closing", &self.children.is_none())
            .finish_non_exhaustive()
    }
}

/// The actors below. Dropping them ends them.
pub(crate) struct Children<S: StateMachine> {
    pub core: Addr<RaftCore<ReplySlot<S>>>,
    pub applier: Addr<Applier<S>>,
    pub snapshot_manager: Addr<SnapshotManager>,
    pub log: Addr<LogWriter>,
    pub membership: Addr<MembershipManager<ReplySlot<S>>>,
    pub checker: Addr<ConsistencyChecker>,
    pub transport: TransportHandle,
    /// The applier's thread, if it has one of its own.
    pub thread: Option<Arbiter>,
}

impl<S: StateMachine + Default> RaftSystem<S> {
    /// A node with this id, whose state machine starts as `S::default()`.
    pub fn builder(id: NodeId) -> Builder<S> {
        Builder::new(id, S::default())
    }
}

impl<S: StateMachine> RaftSystem<S> {
    /// Begins the end. The first cause is kept.
    fn end(&mut self, cause: String, grace: Duration, ctx: &mut Context<Self>) {
        let Some(children) = self.children.take() else { return };
        self.ingress.admission.close(cause.clone());
        // A caller that waits for a status looks again, and sees that the system stops.
        self.life.send_modify(|_| {});
        let admission = self.ingress.admission.clone();
        let ended = async move {
            admission.drained(grace).await;
            children.close(cause).await;
        };
        ctx.spawn(ended.into_actor(self).map(|(), system, _| {
            let cause = system.ingress.admission.closed();
            system.life.send_modify(|life| {
                life.stopped = cause;
                life.closed = true;
            });
        }));
    }

    /// A child that has ended without a report has panicked where no code could catch the panic.
    fn look_after_children(&mut self, ctx: &mut Context<Self>) {
        let Some(children) = &self.children else { return };
        let gone = [
            ("core", children.core.connected()),
            ("applier", children.applier.connected()),
            ("snapshot manager", children.snapshot_manager.connected()),
            ("log writer", children.log.connected()),
            ("membership manager", children.membership.connected()),
            ("consistency checker", children.checker.connected()),
            ("transport", children.transport.transmit.connected()),
        ];
        if let Some((name, _)) = gone.iter().find(|(_, lives)| !lives) {
            let cause = format!("the {name} ended by itself: look for its panic in the log");
            return self.fail(Reason::Stopped, cause, ctx);
        }
        if self.asking {
            return;
        }
        self.asking = true;
        let numbers = children.transport.status.send(GetTransportStatus);
        ctx.spawn(numbers.into_actor(self).map(|numbers, system, _| {
            system.asking = false;
            if let Ok(numbers) = numbers {
                system.network.send_if_modified(|shown| {
                    let changed = *shown != numbers;
                    *shown = numbers;
                    changed
                });
            }
        }));
    }

    fn fail(&mut self, reason: Reason, cause: String, ctx: &mut Context<Self>) {
        let node = self.ingress.status_hub.id;
        match self.children.is_some() {
            true => tracing::error!(node, %reason, cause, "the system stops"),
            // The first cause is kept; later failures are its consequences.
            false => tracing::debug!(node, %reason, cause, "the system stops already"),
        }
        self.life.send_modify(|life| {
            life.last_error = Some(cause.clone());
            if life.stopped.is_none() {
                (life.stopped, life.stop_reason) = (Some(cause.clone()), Some(reason));
            }
        });
        self.end(cause, Duration::ZERO, ctx);
    }
}

impl<S: StateMachine> Children<S> {
    /// The actors end in the order that keeps the promises: the core, the log writer, the applier, the transport. A
    /// child that has ended already has nothing to close.
    async fn close(self, cause: String) {
        let _ = self.core.send(Stop { cause }).await;
        if timeout(CLOSE_WITHIN, self.log.send(CloseLog)).await.is_err() {
            tracing::error!("the log could not be closed in {} s: its disk hangs", CLOSE_WITHIN.as_secs());
        }
        // Promise 4: callers that wait for a snapshot are told before the end that there will be none.
        let _ = self.snapshot_manager.send(StopSnapshotManager).await;
        // A state that is being restored from a snapshot is restored again at the next start.
        let _ = timeout(CLOSE_WITHIN, self.applier.send(StopApplier)).await;
        let _ = self.transport.close.send(Close).await;
        if let Some(thread) = self.thread {
            thread.stop();
        }
    }
}

impl<S: StateMachine> Actor for RaftSystem<S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(ROUND, |system, ctx| {
            if ctx.connected() {
                system.look_after_children(ctx);
                // The reason is logged when the system stops.
                if system.children.is_some() {
                    system
                        .conditions
                        .look(system.ingress.status_hub.id, system.ingress.status_hub.status().conditions());
                }
            } else {
                // The last handle is gone: no new request can come, but a caller may still wait for an answer.
                system.end("the last handle was dropped".into(), system.grace, ctx);
                if system.life.borrow().closed {
                    ctx.stop();
                }
            }
        });
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.own = None;
    }
}

impl<S: StateMachine> Handler<Failed> for RaftSystem<S> {
    type Result = ();

    fn handle(&mut self, Failed { reason, cause }: Failed, ctx: &mut Context<Self>) {
        self.fail(reason, cause, ctx);
    }
}

impl<S: StateMachine> Handler<FromCore<LeaderChanged>> for RaftSystem<S> {
    type Result = ();

    /// One line for each leadership. Two things are no change of leadership: that no leader is known, and that this
    /// node's role changes under the same leader.
    fn handle(&mut self, FromCore(LeaderChanged { leader, term, .. }): FromCore<LeaderChanged>, _: &mut Context<Self>) {
        let Some(leader) = leader.filter(|leader| self.leadership != Some((*leader, term))) else { return };
        self.leadership = Some((leader, term));
        self.life.send_modify(|life| life.leader_changes += 1);
        let node = self.ingress.status_hub.id;
        match leader == node {
            true => tracing::info!(node, term, "this node leads in term {term}"),
            false => tracing::info!(node, leader, term, "node {leader} leads in term {term}"),
        }
    }
}

impl<S: StateMachine> Handler<Propose<S>> for RaftSystem<S> {
    type Result = ResponseFuture<Result<actorum_machine::outcome::Applied<S::Response>, ProposeError>>;

    fn handle(&mut self, propose: Propose<S>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.ingress.propose(propose))
    }
}

impl<S: StateMachine, T: Send + 'static> Handler<Read<S, T>> for RaftSystem<S> {
    type Result = ResponseFuture<Result<T, ReadError>>;

    fn handle(&mut self, read: Read<S, T>, _: &mut Context<Self>) -> Self::Result {
        let value = self.ingress.read(read);
        Box::pin(async move { value.await.map(|(_, value)| value) })
    }
}

impl<S: StateMachine, T: Send + 'static> Handler<Follow<S, T>> for RaftSystem<S> {
    type Result = ResponseFuture<Result<Followed<T>, ReadError>>;

    fn handle(&mut self, follow: Follow<S, T>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.ingress.follow(follow))
    }
}

impl<S: StateMachine> Handler<ConfChange> for RaftSystem<S> {
    type Result = ResponseFuture<Result<Arc<Membership>, ChangeError>>;

    fn handle(&mut self, change: ConfChange, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.ingress.change(change.into(), None))
    }
}

impl<S: StateMachine> Handler<ChangeRequest> for RaftSystem<S> {
    type Result = ResponseFuture<Result<Arc<Membership>, ChangeError>>;

    fn handle(&mut self, change: ChangeRequest, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.ingress.change(change, None))
    }
}

impl<S: StateMachine> Handler<Subscribe<S>> for RaftSystem<S> {
    type Result = ResponseFuture<Result<Subscription, SubscribeError>>;

    fn handle(&mut self, subscribe: Subscribe<S>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.ingress.subscribe(subscribe))
    }
}

impl<S: StateMachine> Handler<TakeSnapshot> for RaftSystem<S> {
    type Result = ResponseFuture<Result<SnapshotTaken, TakeSnapshotError>>;

    fn handle(&mut self, TakeSnapshot: TakeSnapshot, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.ingress.take_snapshot())
    }
}

impl<S: StateMachine> Handler<Activate> for RaftSystem<S> {
    type Result = ResponseFuture<Result<VersionStatus, ActivateError>>;

    fn handle(&mut self, Activate: Activate, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.ingress.activate(None))
    }
}

impl<S: StateMachine> Handler<Unsubscribe> for RaftSystem<S> {
    type Result = ();

    fn handle(&mut self, Unsubscribe(subscription): Unsubscribe, _: &mut Context<Self>) {
        self.ingress.unsubscribe(subscription);
    }
}

impl<S: StateMachine> Handler<GetStatus> for RaftSystem<S> {
    type Result = MessageResult<GetStatus>;

    fn handle(&mut self, GetStatus: GetStatus, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.ingress.status_hub.status())
    }
}

impl<S: StateMachine> Handler<Shutdown> for RaftSystem<S> {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Shutdown: Shutdown, ctx: &mut Context<Self>) -> ResponseFuture<()> {
        self.end("it was shut down".into(), self.grace, ctx);
        let mut life = self.life.subscribe();
        Box::pin(async move {
            // This actor shows that the system has stopped, so its own end counts as a stop, too.
            let _ = life.wait_for(|life| life.closed).await;
        })
    }
}
