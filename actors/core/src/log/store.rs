//! The contract of the log, as far as the core and the replica need it: what is to be written, what was found, and the
//! half that reads.
//!
//! Deliberately absent: the half that writes, and everything that lies on a disk. Those are the store's.

use std::{fmt, path::PathBuf, sync::Arc};

use actorum_machine::ids::{GroupId, NodeId};
use serde::{Deserialize, Serialize};

use crate::wire::{Entry, Snapshot};

/// What Raft must remember besides the log (Raft figure 2: currentTerm, votedFor), and the commit index,
/// which is only a hint that saves work at restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// The latest term this node has seen.
    pub term: u64,
    /// Whom it voted for in that term; zero for nobody.
    pub vote: NodeId,
    /// The highest index it knew to be committed.
    pub commit: u64,
}

/// What one group makes durable in one atomic step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// Whose log.
    pub group: GroupId,
    /// Replaces the whole log: afterwards it is empty and starts after the snapshot's index.
    pub snapshot: Option<Snapshot>,
    /// Appended without gaps. Everything in the log from the first one's index on is replaced: these entries
    /// are the log's new end.
    pub entries: Vec<Entry>,
    /// Replaces the hard state.
    pub hard_state: Option<HardState>,
    /// Cuts the beginning of the log off; after all of the above.
    pub compact: Option<Compact>,
}

/// What a node can start from, and which entries it therefore needs no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compact {
    /// The snapshots to start from, ascending by index, the newest last: they replace those recorded before. Their
    /// files are durable already. Never empty.
    pub snapshots: Vec<Snapshot>,
    /// Entries up to here are needed no longer; at most the first snapshot's index. A store may keep some of them,
    /// since it lets go of whole blocks only.
    pub up_to: u64,
}

/// What a store found of one group when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The snapshots a node can start from, ascending by index, the newest last. Empty: this node holds nothing and was
    /// never formed.
    pub snapshots: Vec<Snapshot>,
    /// The hard state.
    pub hard_state: HardState,
    /// The last index of the log; the compacted index if there is no entry, zero if there is nothing.
    pub last_index: u64,
    /// The term of every entry as runs: (first index of the run, term), ascending, starting at the compacted index: the
    /// index before its first entry, which no kept snapshot is below.
    pub terms: Vec<(u64, u64)>,
    /// How large the log is: (first index, bytes of entries from there to the next such index), ascending, in steps of
    /// the store's choosing.
    pub sizes: Vec<(u64, u64)>,
}

impl Recovered {
    /// The newest snapshot.
    pub fn newest(&self) -> Option<&Snapshot> {
        self.snapshots.last()
    }

    /// The index before the first entry.
    pub fn compacted_index(&self) -> u64 {
        self.terms.first().map_or(0, |(index, _)| *index)
    }

    /// The term of the entry at `index`; `None` outside the log. The compacted index counts as inside.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index > self.last_index {
            return None;
        }
        let after = self.terms.partition_point(|(first, _)| *first <= index);
        after.checked_sub(1).map(|run| self.terms[run].1)
    }
}

/// The half that reads. Cheap to share; it cannot write.
pub trait LogReader: Send + Sync {
    /// The entries `[from, to)` of a group in order without gaps, as many as fit `max_bytes` and at least
    /// one. An entry that should be there and is not, or is damaged, is an error.
    fn entries(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError>;

    /// The first entry of a group that the log may still hold; 1 where nothing was cut off.
    fn first_index(&self, group: GroupId) -> u64;

    /// Bytes on disk, as far as the store knows; for status.
    fn disk_bytes(&self) -> u64;

    /// Whether a call may wait for a device: then it is made where waiting is allowed, on a thread for that. A store
    /// that never waits says no, and is called in place.
    fn blocks(&self) -> bool {
        true
    }
}

/// Why a store died. Final: nothing is written after it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or filesystem refused.
    #[error("{doing} failed: {error}")]
    Io {
        /// What was being done, naming the file.
        doing: String,
        /// The system's words.
        error: Arc<std::io::Error>,
    },
    /// What was read is not what was written.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// Which record or file.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The storage engine panicked.
    #[error("the storage engine panicked: {0}")]
    Panicked(String),
    /// The store was closed or has died before.
    #[error("the store is closed: {0}")]
    Closed(String),
    /// The directory, or what is in it, was deleted, renamed or unmounted while it was open.
    #[error("the data directory {dir} was taken away while it was open: {what}", dir = .dir.display())]
    Gone {
        /// The directory.
        dir: PathBuf,
        /// What is not there any more.
        what: String,
    },
}

/// `7@2`: an index and its term.
#[derive(Debug)]
pub struct At(pub u64, pub u64);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.0, self.1)
    }
}
