//! How requests end: one small error for each operation, whose variants say what the caller can do about it.
//!
//! The fourth promise lives here. A request is *applied* (`Ok`), *rejected* (surely not in the log: every
//! variant but `Unknown`), or *unknown* (it may or may not apply). [`Outcome`] tells which.

use std::fmt;

use crate::{
    condition::Reason,
    ids::{ClusterId, NodeId},
    position::Position,
    readings::{LearnerReading, MajorityReading},
};

/// An applied command: where it stands in the log, and what the state machine answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied<R> {
    /// The command's index in the log.
    pub index: u64,
    /// The term of its entry.
    pub term: u64,
    /// The state machine's answer.
    pub response: R,
}

/// What an error says about the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Surely not in the log: asking again cannot apply it twice.
    Rejected,
    /// It may have been applied, may be applied later, or never.
    Unknown,
}

/// The bound that a request met, with the figures at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusyBound {
    /// How many requests of this node's clients wait for their answers, or how many bytes they hold.
    InFlight {
        /// Requests in flight.
        requests: usize,
        /// Bytes that they hold.
        bytes: usize,
        /// The setting `max_in_flight`.
        max_requests: usize,
        /// The setting `max_in_flight_bytes`.
        max_bytes: usize,
    },
    /// Bytes of entries that this leader has taken up and not applied.
    Unapplied {
        /// Bytes of those entries.
        bytes: usize,
        /// The setting `max_unapplied_bytes`.
        max: usize,
    },
    /// How many bytes this leader has handed to its disk that are not durable.
    Unpersisted {
        /// Bytes of those writes.
        bytes: usize,
        /// The setting `max_unpersisted_bytes`.
        max: usize,
    },
    /// This leader's disk is slow: the leader hands it nothing new until it has caught up.
    DiskSlow {
        /// Milliseconds for which the oldest write has waited.
        waiting_ms: u64,
    },
    /// A bound of the leader, which is another node and does not say which bound.
    OfLeader,
}

impl fmt::Display for BusyBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BusyBound::InFlight { requests, bytes, max_requests, max_bytes } => write!(
                f,
                "{requests} requests of {bytes} bytes are in flight on this node (max_in_flight {max_requests}, \
                 max_in_flight_bytes {max_bytes})"
            ),
            BusyBound::Unapplied { bytes, max } => {
                write!(f, "{bytes} bytes in the leader's log are not applied yet (max_unapplied_bytes {max})")
            }
            BusyBound::Unpersisted { bytes, max } => {
                write!(f, "{bytes} bytes wait for the leader's disk (max_unpersisted_bytes {max})")
            }
            BusyBound::DiskSlow { waiting_ms } => {
                write!(f, "the leader's disk is slow: a write waits for {waiting_ms} ms")
            }
            BusyBound::OfLeader => f.write_str("the leader has reached one of its bounds"),
        }
    }
}

/// Why a proposal was not answered with a response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// This node cannot have it done now, for the reason given. Surely not in the log.
    #[error("{message}")]
    Unavailable {
        /// What is wrong, for programs.
        reason: Reason,
        /// What is wrong and the way out, for people.
        message: String,
    },
    /// No leader took it within the deadline: this node knows no leader, or cannot reach it. Surely not in the log; ask
    /// again.
    #[error("no leader took the proposal in time{}", leader_hint(.leader))]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// There is a leader, and the deadline passed before it took the proposal up. Surely not in the log; ask again,
    /// with a longer deadline.
    #[error("{cause}; it is surely not in the log: propose it again, with a longer deadline")]
    DeadlineExceeded {
        /// What it waited for.
        cause: String,
    },
    /// A bound is reached. Surely not in the log; slow down and ask again.
    #[error("busy: {bound}; slow down and propose again")]
    Busy {
        /// Which one.
        bound: BusyBound,
    },
    /// The leader's disk is nearly full, although the log was cut and rewritten as far as that frees room. Surely not
    /// in the log. Ask again once there is room: enlarge the disk, or remove what else fills it.
    #[error("low on space: the leader's disk has {free} bytes free and needs {needed}; give it room and propose again")]
    LowSpace {
        /// Bytes that are free on that disk.
        free: u64,
        /// Bytes that must be free on that disk.
        needed: u64,
    },
    /// The encoded command is larger than an entry may be. Surely not in the log.
    #[error("the command has {size} bytes, more than the {limit} that an entry may have (max_entry_bytes)")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The bound.
        limit: usize,
    },
    /// The command does not survive its own encoding. Surely not in the log.
    #[error("the command cannot be replicated: {cause}")]
    Invalid {
        /// What the codec says.
        cause: String,
    },
    /// The command needs a version of the state machine that is not in force yet
    /// ([`needs_version`](crate::machine::StateMachine::needs_version)). Surely not in the log; ask again once every
    /// member runs a program that has this version, or do without the command until then.
    #[error("{}", needs_version(*.needed, *.lowest, *.node))]
    NeedsVersion {
        /// The version that the command needs.
        needed: u32,
        /// The lowest version that some member's program has; the version in force if every program has the version
        /// needed.
        lowest: u32,
        /// The member with that program; `None` if every member's program has the version, and it only has to be put in
        /// force.
        node: Option<NodeId>,
    },
    /// It may or may not be applied: find out by reading, or make commands idempotent.
    #[error("outcome unknown: {cause}")]
    Unknown {
        /// Why nobody can tell.
        cause: String,
    },
    /// The system had stopped before the proposal reached it. Surely not in the log.
    #[error("stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
}

impl ProposeError {
    /// Whether the proposal is surely not in the log.
    pub fn outcome(&self) -> Outcome {
        match self {
            ProposeError::Unknown { .. } => Outcome::Unknown,
            _ => Outcome::Rejected,
        }
    }
}

/// Why a read gave no value. A read changes nothing, so all of them may be asked again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// This node cannot have it done now, for the reason given. A read changes nothing.
    #[error("{message}")]
    Unavailable {
        /// What is wrong, for programs.
        reason: Reason,
        /// What is wrong and the way out, for people.
        message: String,
    },
    /// No leader confirmed an index within the deadline: there is none, or this node cannot reach it.
    #[error("no leader confirmed the read in time{}", leader_hint(.leader))]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The state was not read within the deadline: the state machine is busy, or being restored; or this node leads,
    /// and no majority of the voters confirmed that in time.
    #[error("{cause}")]
    DeadlineExceeded {
        /// What it waited for.
        cause: String,
    },
    /// A bound is reached.
    #[error("busy: {bound}; slow down and read again")]
    Busy {
        /// Which one.
        bound: BusyBound,
    },
    /// The closure of the read panicked. The node goes on, since the closure cannot change the state.
    #[error("the closure of the read panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// The system has stopped.
    #[error("stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
}

/// Why a membership change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// This node cannot have it done now, for the reason given. Surely not made.
    #[error("{message}")]
    Unavailable {
        /// What is wrong, for programs.
        reason: Reason,
        /// What is wrong and the way out, for people.
        message: String,
    },
    /// Another change is under way. Wait until it is applied, then ask again.
    #[error("another membership change is in progress")]
    InProgress,
    /// The change makes no sense for the present membership.
    #[error("{cause}")]
    Invalid {
        /// Why.
        cause: String,
    },
    /// Until the deadline the learner to be promoted was not connected, or not close to the leader's commit index. Or
    /// the promotion was forced and cannot be forced ([`LearnerReading::forced`]); that is answered at once. Surely not
    /// made; let the learner catch up, and ask again.
    #[error("{0}")]
    LearnerNotReady(LearnerReading),
    /// After the change the voters that answered the leader lately would be no majority, so nothing could be committed.
    /// Surely not made; bring the others back first, or force it
    /// ([`ChangeRequest::force`](crate::members::ChangeRequest::force)).
    #[error("{0}")]
    WouldLoseMajority(MajorityReading),
    /// No leader took it within the deadline: this node knows no leader, or cannot reach it. Surely not made.
    #[error("no leader took the change in time{}", leader_hint(.leader))]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// There is a leader, and the deadline passed before it could make the change. Surely not made; ask again, with a
    /// longer deadline.
    #[error("{cause}; the change was surely not made: ask again, with a longer deadline")]
    DeadlineExceeded {
        /// What it waited for.
        cause: String,
    },
    /// A bound is reached.
    #[error("busy: {bound}; slow down and ask again")]
    Busy {
        /// Which one.
        bound: BusyBound,
    },
    /// It may or may not be applied: look at the membership.
    #[error("outcome unknown: {cause}")]
    Unknown {
        /// Why nobody can tell.
        cause: String,
    },
    /// The system had stopped before.
    #[error("stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
}

impl ChangeError {
    /// Whether the change was surely not made.
    pub fn outcome(&self) -> Outcome {
        match self {
            ChangeError::Unknown { .. } => Outcome::Unknown,
            _ => Outcome::Rejected,
        }
    }
}

/// Why a subscription could not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The system has stopped.
    #[error("stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
    /// This node did not begin it within the deadline of its requests: the state machine is busy, or being restored.
    #[error("{cause}")]
    DeadlineExceeded {
        /// What it waited for.
        cause: String,
    },
    /// The position is one of another cluster, whose indexes mean nothing here. Read the state and begin with what
    /// follows it. One case is not refused, because a [`Position`] cannot tell it: a cluster that was founded anew with
    /// the same founders, name and authority.
    #[error(
        "the position {position} belongs to another cluster; this is cluster {cluster}, perhaps restored from a \
         backup. Read the state anew and follow it from there"
    )]
    ForeignPosition {
        /// What was asked for.
        position: Position,
        /// The cluster asked.
        cluster: ClusterId,
    },
    /// This cluster has committed nothing with that index yet, so the index cannot come from it. Read the state and
    /// begin with what follows it.
    #[error(
        "index {index} lies in the future: this cluster has applied up to {applied}. \
         The index is of another cluster, or its commands are lost. Read the state anew and follow it from there"
    )]
    FuturePosition {
        /// What was asked for.
        index: u64,
        /// The index that this node has applied; a leader has confirmed that nothing later is committed.
        applied: u64,
    },
    /// This node has not applied so much, and could not find out whether the cluster has. Ask again, or ask another
    /// node.
    #[error(
        "this node has applied up to {applied}, and could not find out whether the cluster has applied index {index}: \
         {cause}. Ask again, or ask another node"
    )]
    Behind {
        /// What was asked for.
        index: u64,
        /// What this node has applied.
        applied: u64,
        /// Why it is not known.
        cause: String,
    },
}

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakeSnapshotError {
    /// It could not be built; the node goes on. Try again once the cause is gone.
    #[error("the snapshot could not be built: {cause}")]
    Failed {
        /// Why.
        cause: String,
    },
    /// It was not durable within the deadline. If it was begun, the node goes on with it.
    #[error("{cause}")]
    DeadlineExceeded {
        /// What it waited for.
        cause: String,
    },
    /// The node has applied nothing that a snapshot could hold.
    #[error("nothing was applied yet: there is no state to take a snapshot of")]
    Nothing,
    /// The node has stopped.
    #[error("the node has stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
}

fn leader_hint(leader: &Option<NodeId>) -> String {
    match leader {
        Some(id) => format!(" (node {id} leads, as far as this node knows)"),
        None => " (no leader is known: is a majority of the voters running and reachable?)".to_owned(),
    }
}

fn needs_version(needed: u32, lowest: u32, node: Option<NodeId>) -> String {
    let why = match node {
        Some(node) => format!(
            "node {node} has announced no later one than {lowest}: start it with a program that has version {needed}, \
             or remove it"
        ),
        None => format!(
            "version {lowest} is in force, although every member's program has {needed}: the leader puts it in force, \
             or an operator does so with `actorum activate`"
        ),
    };
    format!("the command needs version {needed} of the state machine, and {why}")
}
