//! What the core takes and gives besides the structs of the wire: plain values, which actors carry.
//!
//! [`ReplyHandle`] is where the answer to a request goes. [`Append`], [`ReadEntries`], [`Committed`], [`FetchSnapshot`]
//! and [`LeaderChanged`] are what a drain asks for, and [`Room`] is what the core hears of the disk.

use actorum_machine::{
    ids::{GroupId, NodeId},
    outcome::BusyBound,
    status::Role,
};
use bytes::Bytes;

use crate::{
    log::store::Write,
    wire::{Entry, Refusal, Snapshot},
};

/// Where the answer to a request goes: opaque to the core, which only carries it and hands it back.
///
/// Dropping a reply handle must answer its client with "unknown": nothing may be lost in silence.
pub trait ReplyHandle: Send + Unpin + 'static {
    /// Answers without the applier.
    fn answer(self, answer: RequestOutcome);

    /// A read was confirmed at this index. Gives the reply handle back if the applier must serve it;
    /// `None` if it only wanted the index (a peer's read) and is answered.
    fn confirmed(self, index: u64) -> Option<Self>
    where
        Self: Sized;
}

/// An answer that the core can give by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The leader applied a forwarded proposal.
    Applied {
        /// Where it stands in the log.
        index: u64,
        /// Its term.
        term: u64,
        /// The encoded response.
        response: Bytes,
    },
    /// The leader applied a forwarded change; the encoded membership.
    Changed {
        /// The encoded `Membership`.
        membership: Bytes,
    },
    /// Surely not in the log.
    Refused(Refusal),
    /// The deadline passed, for the reason given. Surely not in the log.
    Late {
        /// What it waited for.
        cause: String,
    },
    /// This node leads, and has reached this bound. Surely not in the log.
    Busy(BusyBound),
    /// Nobody can tell.
    Unknown {
        /// Why.
        cause: String,
    },
}

/// Make this durable, and say so with the number.
#[derive(Clone, Debug)]
pub struct Append {
    /// The number of the Ready it belongs to; ascending per group.
    pub number: u64,
    /// What to write.
    pub write: Write,
    /// Whether a promise waits for it. A moved commit index alone may ride with the next append.
    pub sync: bool,
}

/// Read these entries of the log for a peer: as many from `from` on as fit `max_bytes`, at least one, none from `to`
/// on. One read per peer is under way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadEntries {
    /// Whose log.
    pub group: GroupId,
    /// For whom.
    pub peer: NodeId,
    /// The first index.
    pub from: u64,
    /// The index after the last.
    pub to: u64,
    /// Bytes of entries, at most; one entry may be larger.
    pub max_bytes: usize,
}

/// How much room there is on the disk, against what the node needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Whether it is so little that no new work is taken.
    pub low: bool,
    /// Whether it is so little that the node must free what it can.
    pub short: bool,
    /// Free bytes.
    pub free: u64,
    /// How many there must be for new work to be taken.
    pub needed: u64,
    /// Whether a write waits for room. Then its age does not show that the disk is slow.
    pub waits: bool,
    /// Whether room is being made, so that more may be free soon.
    pub being_made: bool,
}

impl Room {
    /// Low on space and short of it, or neither, without figures.
    pub const fn low(low: bool) -> Room {
        Room { low, short: low, free: 0, needed: 0, waits: false, being_made: false }
    }
}

/// A committed entry, and who waits for it on this node.
#[derive(Debug)]
pub struct Committed<T> {
    /// The entry.
    pub entry: Entry,
    /// The reply handle of the waiting client, if the proposal came through this node and is this very entry.
    pub reply: Option<T>,
}

/// Get the file of this snapshot from the node that offered it. Replaces what was to be fetched before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchSnapshot {
    /// Who offered it.
    pub from: NodeId,
    /// The snapshot.
    pub snapshot: Snapshot,
}

/// Who leads, and what this node is, changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderChanged {
    /// Who leads now, as far as this node knows.
    pub leader: Option<NodeId>,
    /// In which term.
    pub term: u64,
    /// What this node is.
    pub role: Role,
}
