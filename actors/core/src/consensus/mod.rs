//! The pure core: raft-rs, the requests in flight, and nothing else.
//!
//! ```text
//!  step, submit, read, change, persisted, applied_to, answered, unreachable, tick's time
//!                               │
//!                               ▼
//!                         ┌───────────┐
//!                         │ Consensus │  raft-rs RawNode over a LogView
//!                         └───────────┘
//!                               │ drain(moment)
//!                               ▼
//!            Effects: append, transmit, ask, apply, reads, answers
//! ```
//!
//! A function of its inputs: no clock, no random numbers, no actor, no file, no await. Inputs only note
//! what came in; [`Consensus::drain`] turns all of it into one set of [`Effects`]. The same inputs and
//! seed give the same effects, which is what the transcripts in `testscripts/` and the simulation stand on.
//!
//! The rule it keeps above all (the second promise): a message that speaks of a write is *deferred* until
//! [`Consensus::persisted`] has reported that write, except those a leader may send ahead of its own disk
//! (Raft dissertation section 10.2.1).
//!
//! A core is made in `construction`. What comes in is in `inputs`; `time` drains and ticks, and `dispatch` and `ready`
//! do a drain's work. How requests end is in `answers`, and what can be asked of a core in `status`.
//!
//! Deliberately absent: leases (raft-rs's are stale even with good clocks), joint changes.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use actorum_machine::{
    ids::{ClusterId, NodeId},
    members::Membership,
};
use raft::RawNode;

use crate::{
    clock_offsets::Estimates,
    log::view::LogView,
    message::LeaderChanged,
    understanding::Understanding,
    versions::Versions,
    wire::{RaftMessage, Snapshot},
};

mod construction;
mod inputs;
mod time;
pub mod effects;
pub mod convert;
pub mod validate;
pub mod contradiction;
mod requests;
mod answers;
mod contact;
mod readiness;
mod dispatch;
mod replicate;
mod ready;
mod reads;
mod disk;
mod snapshots;
mod status;
mod stamp;
mod assertions;
mod bridge;
#[cfg(test)]
mod tests;

pub use construction::{Settings, Start};
pub use contradiction::CommitConflict;
pub use disk::CoreDiskStatus;
pub use effects::{Effects, PeerRequest};
pub use status::CoreStatus;
pub use time::Moment;

use reads::Reads;
use replicate::Windows;
use requests::{Pending, Request};
use snapshots::Snapshots;

/// A write that is not durable yet, and what waits for it.
#[derive(Debug)]
struct PendingWrite {
    /// The number in [`Append`](crate::message::Append).
    write: u64,
    /// The highest Ready of raft-rs that is durable with it.
    ready: u64,
    /// The snapshot it makes durable, if any: the applier restores it then.
    restore: Option<Snapshot>,
    /// The term it makes durable.
    term: u64,
    /// The tick in which it was handed to the disk.
    since: u64,
    /// Bytes in it.
    bytes: usize,
    /// What speaks of it.
    deferred: VecDeque<(NodeId, RaftMessage)>,
}

/// A question that another node has not answered yet.
#[derive(Debug)]
struct Forwarded<T> {
    request: Request<T>,
}

/// The Raft core of one group. `T` is a client's reply handle: carried, handed back, never looked into.
pub struct Consensus<T> {
    settings: Settings,
    logger: slog::Logger,
    raw: RawNode<LogView>,
    membership: Arc<Membership>,
    /// As of what is applied: what is in use there stays in use.
    versions: Arc<Versions>,
    understanding: Understanding,
    cluster: Option<ClusterId>,
    min_served_index: u64,
    /// Writes on their way to the disk, oldest first, and the messages that wait for them. Entries are bounded by
    /// `max_unapplied_bytes`, answers by `disk::MAX_DEFERRED`.
    pending_writes: VecDeque<PendingWrite>,
    disk: disk::DiskHealth,
    next_write: u64,
    /// The term that is on the disk.
    durable_term: u64,
    /// The genesis snapshot on its way to the disk.
    forming: Option<(u64, Snapshot)>,
    queued: VecDeque<Request<T>>,
    /// By index and term: after a change of leaders two proposals can wait for the same index, and neither is decided.
    pending: BTreeMap<(u64, u64), Pending<T>>,
    forwarded: BTreeMap<u64, Forwarded<T>>,
    reads: Reads<T>,
    contact: contact::Contact,
    commits: readiness::Commits,
    next_id: u64,
    now: Duration,
    next_tick: Option<Duration>,
    ticks: u64,
    snapshots: Snapshots,
    windows: Windows,
    announced: Option<LeaderChanged>,
    invalid_messages: u64,
    /// Members that say they committed what contradicts this node; at most one word of each.
    commit_conflicts: BTreeMap<NodeId, CommitConflict>,
    contradicted: bool,
    clocks: Estimates,
    certificate_ended: bool,
    seen: assertions::Seen,
    effects: Effects<T>,
}

impl<T> fmt::Debug for Consensus<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raft = &self.raw.raft;
        f.debug_struct("Consensus")
            .field("id", &raft.id)
            .field("term", &raft.term)
            .field("role", &raft.state)
            .field("leader", &raft.leader_id)
            .field("committed", &raft.raft_log.committed)
            .field("applied", &raft.raft_log.applied)
            .finish_non_exhaustive()
    }
}
