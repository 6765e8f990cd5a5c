//! The interface for an observer of a running core: a simulation that checks its invariants.
//!
//! An observer sees what every drain decided, before any of it happens. It can change nothing. In a normal node there
//! is none, which costs one look at an `Option` per drain.

use std::{fmt, sync::Arc};

use actorum_machine::{ids::NodeId, status::Role};

use crate::{
    marks::Mark,
    message::Append,
    wire::{Entry, RaftMessage},
};

/// Where a core stands after a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftState {
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Its commit index.
    pub commit: u64,
    /// The last index of its log, durable or not.
    pub last: u64,
    /// Whether it knows the calendars of a majority of the voters, and stamps by their median if it leads.
    pub median_known: bool,
}

/// What one drain decided.
pub struct Drained<'a> {
    /// Where the core stands.
    pub raft_state: RaftState,
    /// What is to be made durable.
    pub append: &'a [Append],
    /// What leaves this node now.
    pub transmit: &'a [(NodeId, RaftMessage)],
    /// What is applied now.
    pub apply: &'a mut dyn Iterator<Item = &'a Entry>,
    /// The snapshot that replaces the state machine's state now: index and term.
    pub restore: Option<(u64, u64)>,
    /// Says who the voters in force are.
    pub voters: &'a dyn Fn() -> Vec<NodeId>,
    /// Says to whom a leader is sending a snapshot, and of which index.
    pub sends: &'a dyn Fn() -> Vec<(NodeId, u64)>,
    /// Whether it was told that its disk is low on space.
    pub low_space: bool,
}

impl fmt::Debug for Drained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Drained { raft_state, append, transmit, restore, low_space, .. } = self;
        f.debug_struct("Drained")
            .field("raft_state", raft_state)
            .field("append", &append.len())
            .field("transmit", &transmit.len())
            .field("restore", restore)
            .field("low_space", low_space)
            .finish_non_exhaustive()
    }
}

/// Watches a core.
pub trait Observer: Send + Sync {
    /// Before the first drain: the state was rebuilt from the snapshot of this index, and what the log has after it.
    /// Zero on a node that holds nothing.
    fn replayed(&self, _snapshot_index: u64) {}

    /// This node applied a mark, and has come to this.
    fn marked(&self, _mark: &Mark) {}

    /// A drain decided this; none of it has happened yet.
    fn drained(&self, drained: Drained<'_>);
}

/// An observer, if there is one.
pub type MaybeObserver = Option<Arc<dyn Observer>>;
