//! The messages between the actors of one node.
//!
//! | request | from → to | report |
//! |---|---|---|
//! | [`Submit`], [`SubmitRead`], [`SubmitChange`], [`Campaign`] | RaftSystem → core | through the reply handle |
//! | [`Append`] | core → log writer | [`Persisted`], or [`Failed`] to `RaftSystem` |
//! | [`RegisterGroup`](crate::log_writer::RegisterGroup) | parent → log writer | |
//! | [`ProbeDisk`] | core → log writer | [`DiskReport`], which also comes unasked |
//! | [`ReadEntries`] | core → a thread of the log's reader | [`EntriesRead`] |
//! | [`Apply`], [`ServeReads`], [`Restore`] | core → applier | [`AppliedTo`] |
//! | [`BuildSnapshot`] | core → snapshot manager | [`SnapshotBuilt`] |
//! | [`CaptureState`] | snapshot manager → applier | [`WriteSnapshot`] |
//! | [`FetchSnapshot`] | core → snapshot manager | [`SnapshotFetched`] |
//! | | core → snapshot manager | [`SnapshotsKept`] |
//! | | snapshot manager → core | [`PeerFetches`] |
//! | | applier → core, membership, checker | [`SystemChanged`] |
//! | | membership → core | [`ClocksRead`], [`PeerFeatures`] |
//! | | core → applier, membership, checker, RaftSystem | [`LeaderChanged`] |
//! | | applier → checker | [`MarkEvent`] |
//! | [`ProposeMark`] | checker → core | |
//! | [`ProposeVersions`] | membership → core | |
//! | `Drain` | core → itself | |
//!
//! Messages to and from the transport are in [`actorum_transport::message`]. The core's own types are in
//! [`actorum_core::message`], and are sent in a [`FromCore`].
//!
//! [`Append`]: actorum_core::message::Append
//! [`ReadEntries`]: actorum_core::message::ReadEntries
//! [`FetchSnapshot`]: actorum_core::message::FetchSnapshot
//! [`LeaderChanged`]: actorum_core::message::LeaderChanged

use std::{fmt, sync::Arc, time::Duration};

use actix::Message;
use actorum_core::{
    clock_offsets::Estimates,
    debug_fields,
    entry::{EncodedCommand, SystemCommand},
    features::Features,
    log::store::StoreError,
    marks::Mark,
    message::{Committed, ReplyHandle, Room},
    system_state::SystemState,
    wire::{Entry, Snapshot},
};
use actorum_machine::{
    condition::Reason,
    ids::{GroupId, NodeId},
    machine::StateView,
    members::ChangeRequest,
};

/// Propose this entry. The deadline is a moment of the node's [`Clock`](crate::clock::Clock).
#[derive(Message)]
#[rtype(result = "()")]
pub struct Submit<T: ReplyHandle> {
    /// The encoded command.
    pub encoded: EncodedCommand,
    /// The slot for the answer; `None` for the node's own proposals, for which no caller waits.
    pub reply: Option<T>,
    /// When to give up.
    pub deadline: Duration,
}

debug_fields!(Submit<T: ReplyHandle> { deadline });

/// Confirm an index at which this read may be served.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SubmitRead<T: ReplyHandle> {
    /// Whom to answer.
    pub reply: T,
    /// When to give up.
    pub deadline: Duration,
}

debug_fields!(SubmitRead<T: ReplyHandle> { deadline });

/// Change the membership.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SubmitChange<T: ReplyHandle> {
    /// How.
    pub change: ChangeRequest,
    /// Whom to answer.
    pub reply: T,
    /// When to give up.
    pub deadline: Duration,
}

debug_fields!(SubmitChange<T: ReplyHandle> { change, deadline });

/// Ask for votes now.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Campaign;

/// Everything up to this number is durable.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Persisted {
    /// Whose.
    pub group: GroupId,
    /// The highest such number.
    pub number: u64,
}

/// Find out, by a small write of its own, whether the disk answers.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct ProbeDisk;

/// The end of a [`ReadEntries`](actorum_core::message::ReadEntries).
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct EntriesRead {
    /// For whom.
    pub peer: NodeId,
    /// The first index that was asked for.
    pub from: u64,
    /// The entries, without gaps, or why they cannot be read.
    pub result: Result<Vec<Entry>, StoreError>,
}

/// What the log writer learned of the disk besides its writes.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub enum DiskReport {
    /// The probe that was asked for has ended.
    Probed(Result<(), String>),
    /// Free space fell below a limit, is enough again, or changed while it is low.
    Space(Room),
}

/// Apply these, in order; they follow what was given before without a gap.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Apply<T: ReplyHandle>(pub Vec<Committed<T>>);

impl<T: ReplyHandle> fmt::Debug for Apply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = |committed: &Committed<T>| committed.entry.index;
        let (first, last) = (self.0.first().map(index), self.0.last().map(index));
        f.debug_struct("Apply").field("first", &first).field("last", &last).finish_non_exhaustive()
    }
}

/// Serve these reads, each as soon as its index is applied.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ServeReads<T: ReplyHandle>(pub Vec<(u64, T)>);

impl<T: ReplyHandle> fmt::Debug for ServeReads<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeReads").field("reads", &self.0.len()).finish_non_exhaustive()
    }
}

/// Replace the state by this snapshot, which is durable.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct Restore(pub Snapshot);

/// Build a snapshot of what is applied, so that the log can be cut.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct BuildSnapshot;

/// Hand out the state as it is now, to be written.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct CaptureState;

/// The state at some index, or why there is none; from the applier.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct WriteSnapshot(pub Result<CapturedState, String>);

/// The whole replicated state at one index.
#[derive(Debug)]
pub struct CapturedState {
    /// The last index applied.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Our own state.
    pub system: SystemState,
    /// The machine's.
    pub machine: StateView,
}

/// A snapshot's file is durable on this node's snapshot store, or could not be built.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct SnapshotBuilt(pub Result<Snapshot, String>);

/// The file of a snapshot is here, whole and durable; or it could not be fetched.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct SnapshotFetched {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What went wrong.
    pub result: Result<(), String>,
}

/// This node now starts from these snapshots, and that is durable: other files may be removed.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct SnapshotsKept(pub Vec<Snapshot>);

/// A sign of life from a peer that was offered a snapshot.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct PeerFetches {
    /// The peer.
    pub peer: NodeId,
    /// The index of the snapshot.
    pub index: u64,
    /// Why it has given up, if it has.
    pub gave_up: Option<String>,
}

/// Everything up to this index is applied.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct AppliedTo {
    /// The index.
    pub index: u64,
}

/// What the applier reports about marks.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub enum MarkEvent {
    /// Enough entries were applied since the last mark for another one.
    Due,
    /// One was applied.
    Applied {
        /// The hashes of this node at it.
        mark: Mark,
        /// Whether the hash began anew behind it.
        restart: bool,
    },
    /// A snapshot replaced the state, so this node's earlier hashes are no longer of its own state.
    Replaced,
}

/// Propose a mark, if this node leads and every member understands one.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct ProposeMark {
    /// Whether the hashes begin anew behind it.
    pub restart: bool,
}

/// Propose that a member understands this, or that something is used from here on, if this node leads.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct ProposeVersions(pub SystemCommand);

/// The replicated system state has changed.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct SystemChanged {
    /// The index of the entry that changed it.
    pub index: u64,
    /// The new state.
    pub state: Arc<SystemState>,
}

/// The clocks of the peers, as far as this node knows them.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct ClocksRead(pub Estimates);

/// A type of the core, wrapped as a message: the core knows no actors, so its own types are not messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FromCore<T>(pub T);

impl<T: Send + 'static> Message for FromCore<T> {
    type Result = ();
}

/// A peer's hello was seen, and names these.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct PeerFeatures {
    /// The peer.
    pub peer: NodeId,
    /// What it understands.
    pub features: Features,
    /// The version of its state machine; zero if it says none.
    pub machine_version: u32,
}

/// An actor or the store cannot go on: the whole system must stop with this cause.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct Failed {
    /// The kind of the cause; [`Reason::Stopped`] if it has no own name.
    pub reason: Reason,
    /// What happened, in a sentence that names the part.
    pub cause: String,
}

impl Failed {
    /// A part broke, in a way that has no name of its own.
    pub fn broken(cause: impl Into<String>) -> Failed {
        Failed { reason: Reason::Stopped, cause: cause.into() }
    }
}
