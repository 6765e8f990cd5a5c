//! What subscribers hear.

use std::sync::Arc;

use actix::Message;
use actorum_transport::wire::NodeId;

use crate::{machine::StateMachine, members::Membership};

/// One thing that happened, in the order it happened on this node.
///
/// Commands and responses are shared between subscribers, not cloned.
#[derive(Message)]
#[rtype(result = "()")]
#[non_exhaustive]
pub enum Event<S: StateMachine> {
    /// A command was applied. In order of the index, without repeats from the point asked for, and without gaps but where a
    /// snapshot takes their place.
    Applied {
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// The command.
        command: Arc<S::Command>,
        /// The machine's answer; `None` when the command was read back from the log.
        response: Option<Arc<S::Response>>,
    },
    /// The leader this node knows of changed.
    LeadershipChanged {
        /// Who leads; `None` while nobody is known to.
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
    /// A snapshot stands for all commands up to its index: it replaced the state, or the log begins behind it: the commands up to its index will not be told one by one.
    SnapshotInstalled {
        /// The last index it covers.
        index: u64,
    },
    /// This subscriber fell behind its buffer and is unsubscribed. Nothing up to `resume_after` was missed:
    /// subscribe again with `after(resume_after)`.
    Lagged {
        /// The index of the last command that was delivered or skipped on purpose.
        resume_after: u64,
    },
}

impl<S: StateMachine> Clone for Event<S> {
    fn clone(&self) -> Self {
        match self {
            Event::Applied { index, term, command, response } => {
                Event::Applied { index: *index, term: *term, command: command.clone(), response: response.clone() }
            }
            Event::LeadershipChanged { leader, term } => Event::LeadershipChanged { leader: *leader, term: *term },
            Event::MembershipChanged { index, membership } => {
                Event::MembershipChanged { index: *index, membership: membership.clone() }
            }
            Event::SnapshotInstalled { index } => Event::SnapshotInstalled { index: *index },
            Event::Lagged { resume_after } => Event::Lagged { resume_after: *resume_after },
        }
    }
}

/// Several events at once, in order: the form for subscribers that want speed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Events<S: StateMachine>(pub Vec<Event<S>>);
