//! The seam between the log and a disk: one half that reads, one half that writes.
//!
//! ```text
//!  open ─▶ LogStore ─┬─ recover(group) ─▶ Recovered      once, before anything runs
//!                    ├─ reader() ───────▶ LogReader      any number, any thread, cannot write
//!                    └─ start(completed) ▶ LogAppender    one; owned by the log writer
//! ```
//!
//! The appender is submit and complete: [`LogAppender::submit`] never waits for the disk, and every batch is
//! reported through the [`Completions`] given to [`LogStore::start`], in the order of submission. sled
//! blocks a thread of its own behind it; memory completes at once; a simulated disk completes when it likes.
//!
//! Deliberately absent: deciding what to write, and any retry. An error is final for this run.

use std::{path::PathBuf, sync::Arc, time::Duration};

use actorum_core::lives::LifeBook;
use actorum_machine::ids::{GroupId, Incarnation, NodeId};

use super::reserve::Reserve;
use crate::snapshot::SnapshotStore;
pub use actorum_core::log::store::{At, Compact, HardState, LogReader, Recovered, StoreError, Write};

/// Writes that become durable together: all of them or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In this order; several writes of one group follow each other as if submitted one by one.
    pub writes: Vec<Write>,
    /// Whether completion must mean "durable". False only for a batch that moves nothing but commit
    /// indexes, which no promise depends on.
    pub sync: bool,
}

/// The number of a submitted batch: 1, 2, 3, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchNumber(pub u64);

/// How a batch ended.
#[derive(Debug)]
pub struct Completed {
    /// Which.
    pub batch_number: BatchNumber,
    /// What it cost, or why the store is dead.
    pub result: Result<Written, StoreError>,
}

/// What a durable batch cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of records.
    pub bytes: u64,
    /// The whole batch, from the moment the store took it up.
    pub took: Duration,
    /// The part of it spent in making it durable.
    pub sync: Duration,
}

/// Hears every [`Completed`], in the order of submission, on whatever thread the store finishes on.
pub type Completions = Arc<dyn Fn(Completed) + Send + Sync>;

/// Who a store belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The node whose directory this is.
    pub id: NodeId,
    /// Drawn when the directory was made.
    pub incarnation: Incarnation,
    /// How often it was opened, this time included.
    pub boot: u64,
}

impl StoreIdentity {
    /// Whether the directory was made by this very open: it holds nothing yet.
    pub fn is_new(&self) -> bool {
        self.boot == 1
    }
}

/// An open store, not yet running.
pub trait LogStore: Send {
    /// Whose it is.
    fn identity(&self) -> StoreIdentity;

    /// What it holds of a group. Every record was checked when the store was opened.
    fn recover(&self, group: GroupId) -> Result<Recovered, StoreError>;

    /// A reader; it sees what was completed, and may see what was submitted.
    fn reader(&self) -> Arc<dyn LogReader>;

    /// Where the files of snapshots are that belong to this store: they outlive a process exactly as the log does.
    fn snapshot_store(&self) -> Arc<SnapshotStore>;

    /// The lives of the directory, and what is on record of the peers' (see `actorum_core::lives`): this opening is one
    /// of them, durable already. `None` of a store that keeps none: a copy of it that is put back goes unnoticed.
    fn lives(&self) -> Option<Arc<LifeBook>> {
        None
    }

    /// What asks the disk under the store how it is, apart from the log. `None`: such a disk is never asked.
    fn probe(&self) -> Option<Arc<dyn Probe>> {
        None
    }

    /// The reserve on the disk under the store, which snapshots may borrow where room is short. `None`: it keeps none.
    fn reserve(&self) -> Option<Arc<Reserve>> {
        None
    }

    /// Starts writing. The one appender is the only way to change the store.
    fn start(self: Box<Self>, completed: Completions) -> Box<dyn LogAppender>;
}

/// The half that writes. Dropping it closes the store after the batches already submitted; one that waits for room on
/// the disk is given up.
pub trait LogAppender: Send {
    /// Hands over a batch and returns at once. The caller bounds what is submitted and not completed.
    fn submit(&mut self, batch: Batch) -> BatchNumber;

    /// Whether dropping it may wait for a device: then it is dropped where waiting is allowed.
    fn blocks(&self) -> bool {
        true
    }
}

/// Hears the end of one look at the disk, on whatever thread it ends on.
pub type Looked = Box<dyn FnOnce(Result<Space, StoreError>) + Send>;

/// Room on the disk under a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still fill.
    pub free: u64,
    /// Bytes of the reserve that is kept for making room; they are not free.
    pub reserve: u64,
    /// How many there are to be.
    pub reserve_wanted: u64,
    /// How often the log has found too little room for a write. It grows as long as a write waits for room. The wait
    /// lasts as long as another program fills the disk, and shows nothing of the disk itself.
    pub waited_rounds: u64,
    /// How many bytes must be free for the write that found too little room last.
    pub needed: u64,
    /// Whether room is being made: the log is being cut or rewritten, or what a rewriting has left is being removed.
    pub being_made: bool,
}

impl Space {
    /// Free bytes as if the reserve were whole: the part that is borrowed may not be filled.
    pub fn spare(&self) -> u64 {
        self.free.saturating_add(self.reserve).saturating_sub(self.reserve_wanted)
    }
}

/// Asks the disk under a store how it is. Submit and complete, like the appender: no call waits for the disk, and what
/// hangs is a thread of the probe's own, never more than one.
pub trait Probe: Send + Sync {
    /// Writes something small beside the log and makes it durable.
    fn write(&self, looked: Looked);

    /// Looks how much room there is, and writes nothing that matters.
    fn space(&self, looked: Looked);
}

/// Why a directory could not be opened. Every message names the directory and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process holds it.
    #[error(
        "{dir} is in use by {holder}: stop that process, or give this one a directory of its own",
        dir = .dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// What the lock file says: process id, since when.
        holder: String,
    },
    /// It belongs to another node.
    #[error(
        "{dir} belongs to node {found}, not to node {expected}: check the node's id and its data directory",
        dir = .dir.display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// The id it was made for.
        found: NodeId,
        /// The id asked for.
        expected: NodeId,
    },
    /// It was written by a newer version.
    #[error(
        "{dir} has format {found} and this version reads up to {supported}: start the newer version",
        dir = .dir.display()
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format this version reads.
        supported: u32,
    },
    /// It holds less than this node once made durable: an older copy, or a disk that lies.
    #[error(
        "{dir} was rolled back: it holds {found}, but this node had made {promised} durable. It may not vote with it. \
         Bring back the newer directory, or add the node again under a new id with an empty one",
        dir = .dir.display()
    )]
    RolledBack {
        /// The directory.
        dir: PathBuf,
        /// What the store says.
        found: String,
        /// What the watermark says.
        promised: String,
    },
    /// A record or file in it is damaged.
    #[error(
        "{dir}: {what} is damaged: {detail}. Restore the directory from a copy made after its last write, or add the \
         node again under a new id with an empty one",
        dir = .dir.display()
    )]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// Which record or file.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// There is something in it that is not a node's.
    #[error(
        "{dir} is not a node's directory and is not empty (it holds {found}): start the node with an empty or a new \
         directory",
        dir = .dir.display()
    )]
    NotANode {
        /// The directory.
        dir: PathBuf,
        /// One thing found in it.
        found: String,
    },
    /// A stopped node's directory was to be looked at, and there is no node in this one.
    #[error(
        "{dir} is not a node's data directory ({found}): give the directory that `serve --data` has",
        dir = .dir.display()
    )]
    NoNode {
        /// The directory.
        dir: PathBuf,
        /// What it is instead, or what it lacks.
        found: String,
    },
    /// A backup was to be restored into it, and there is something in it already.
    #[error("{dir} is not empty (it holds {found}): restore into an empty or a new directory", dir = .dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One thing found in it.
        found: String,
    },
    /// A backup was being restored into it, and that did not come to its end.
    #[error(
        "{dir} holds a restore that was cut short: restore into it again, which starts from scratch",
        dir = .dir.display()
    )]
    Unfinished {
        /// The directory.
        dir: PathBuf,
    },
    /// The filesystem refused.
    #[error("{dir}: {doing}: {error}", dir = .dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was being done.
        doing: String,
        /// The system's words.
        error: std::io::Error,
    },
}
