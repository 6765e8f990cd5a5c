//! What subscribers hear.

use std::{fmt, sync::Arc, time::SystemTime};

use crate::{
    ids::{ClusterId, NodeId},
    machine::StateMachine,
    members::Membership,
    position::Position,
};

/// One thing that happened, in the order it happened on this node.
///
/// Commands and responses are shared between subscribers, not cloned. Variants may get further fields: match them with
/// `..`.
#[non_exhaustive]
pub enum Event<S: StateMachine> {
    /// A command was applied. These events come in the order of the index, from the point that was asked for, without
    /// repeats, and without gaps except where a snapshot takes their place.
    Applied {
        /// The cluster whose log has the index; with the index it is a [`Position`], see [`Event::position`].
        cluster: ClusterId,
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// The time at which the leader took up the command, as in
        /// [`ApplyContext::time`](crate::machine::ApplyContext::time).
        ///
        /// For a command that is read back from the log it is the time that its leader stamped, or the time of the
        /// event before it in this subscription if that is later. It differs from the time that `apply` was given only
        /// if the clock of one leader was behind that of an earlier one.
        time: SystemTime,
        /// The command.
        command: Arc<S::Command>,
        /// The machine's answer; `None` when the command was read back from the log. A subscription that began inside a
        /// read (`Raft::follow`) reads nothing back.
        response: Option<Arc<S::Response>>,
    },
    /// The leader this node knows of changed.
    LeadershipChanged {
        /// The leader; `None` while this node knows of none.
        leader: Option<NodeId>,
        /// In which term.
        term: u64,
    },
    /// A membership change was applied.
    MembershipChanged {
        /// The index of the change.
        index: u64,
        /// The membership that resulted.
        membership: Arc<Membership>,
    },
    /// A snapshot stands for all commands up to its index: it replaced the state, or the log begins after it. The
    /// commands up to its index will not be reported one by one.
    SnapshotInstalled {
        /// The cluster that counts.
        cluster: ClusterId,
        /// The last index it covers.
        index: u64,
    },
    /// This subscriber fell behind its buffer and is unsubscribed. Nothing up to `resume_after` was missed:
    /// subscribe again with `after(resume_after)`, or better with [`Event::position`].
    Lagged {
        /// The cluster whose log has the index; `None` on a node that belongs to no cluster yet.
        cluster: Option<ClusterId>,
        /// The index of the last command that was delivered or skipped on purpose.
        resume_after: u64,
    },
}

impl<S: StateMachine> Event<S> {
    /// The position to resume after once this event was handled; `None` if the event does not change it. Keep it, and
    /// give it to `Subscribe::after` or `Raft::events` later, on any node of the cluster.
    pub fn position(&self) -> Option<Position> {
        match *self {
            Event::Applied { cluster, index, .. } | Event::SnapshotInstalled { cluster, index } => {
                Some(Position { cluster, index })
            }
            Event::Lagged { cluster, resume_after } => cluster.map(|cluster| Position { cluster, index: resume_after }),
            Event::LeadershipChanged { .. } | Event::MembershipChanged { .. } => None,
        }
    }
}

/// Commands and responses are left out: a state machine need not be able to show them.
impl<S: StateMachine> fmt::Debug for Event<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Applied { cluster, index, term, time, .. } => {
                let mut applied = f.debug_struct("Applied");
                applied.field("cluster", cluster).field("index", index).field("term", term).field("time", time);
                applied.finish_non_exhaustive()
            }
            Event::LeadershipChanged { leader, term } => {
                f.debug_struct("LeadershipChanged").field("leader", leader).field("term", term).finish()
            }
            Event::MembershipChanged { index, membership } => {
                f.debug_struct("MembershipChanged").field("index", index).field("membership", membership).finish()
            }
            Event::SnapshotInstalled { cluster, index } => {
                f.debug_struct("SnapshotInstalled").field("cluster", cluster).field("index", index).finish()
            }
            Event::Lagged { cluster, resume_after } => {
                f.debug_struct("Lagged").field("cluster", cluster).field("resume_after", resume_after).finish()
            }
        }
    }
}

impl<S: StateMachine> Clone for Event<S> {
    fn clone(&self) -> Self {
        match *self {
            Event::Applied { cluster, index, term, time, ref command, ref response } => {
                let (command, response) = (command.clone(), response.clone());
                Event::Applied { cluster, index, term, time, command, response }
            }
            Event::LeadershipChanged { leader, term } => Event::LeadershipChanged { leader, term },
            Event::MembershipChanged { index, ref membership } => {
                Event::MembershipChanged { index, membership: membership.clone() }
            }
            Event::SnapshotInstalled { cluster, index } => Event::SnapshotInstalled { cluster, index },
            Event::Lagged { cluster, resume_after } => Event::Lagged { cluster, resume_after },
        }
    }
}

/// Several events at once, in order, for subscribers that need speed.
pub struct Events<S: StateMachine>(pub Vec<Event<S>>);

impl<S: StateMachine> fmt::Debug for Events<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.0).finish()
    }
}
