//! Backups and disaster recovery: making the directory of one node out of a backup, or out of what a lost majority
//! left.
//!
//! ```text
//!  a backup's file ─▶ restore ─▶ an empty directory ┐
//!                                                   ├─▶ a cluster of one voter, with an id of its own ─▶ grows by AddLearner
//!  surviving directories ─▶ survey ─▶ recover ──────┘
//! ```
//!
//! Both write one entry after everything that is in the log, and mark it as committed. From this entry on there is
//! another cluster, with one voter. No quorum agreed to that, so a node never does it; only these calls do, on a
//! directory that no process has open. The new cluster refuses nodes of the old one by the cluster's id, and they
//! refuse it. So an old node that comes back can neither vote here nor overwrite anything.
//!
//! The entry carries an [`Audit`]: who did it, when, why, what may be lost, and which cluster it was before. It stays
//! in the system state and in every snapshot.
//!
//! All of these calls block on the disk: call them where that is allowed.
//!
//! Deliberately absent: repair. A damaged file or directory is refused with an error that names it, and is not changed.

mod restore;
mod survey;
mod recover;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, SystemTime},
};

use actorum_core::{
    entry::{EncodedCommand, SystemCommand},
    log::store::{At, HardState, StoreError, Write},
    snapshot::SnapshotError,
    wire::{Entry, EntryKind, Snapshot},
};
use actorum_machine::ids::{Address, ClusterId, Incarnation, NodeId};
use actorum_store::log::{
    sled::{OpenOptions, SledStore},
    store::{Batch, Completed, LogStore, OpenError},
};
use bytes::Bytes;

use crate::boot;
pub use actorum_core::system_state::{Audit, RecoveredBecause};
pub use recover::{Recover, recover};
pub use restore::{BackupFile, Restore, restore};
pub use survey::{SurvivingLog, SurvivingSnapshot, Survivor, survey};

/// How long the one write may take before the disk counts as hung.
const WRITE_WITHIN: Duration = Duration::from_secs(60);

/// The cluster that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveredNode {
    /// The directory.
    pub dir: PathBuf,
    /// Its node, the one voter.
    pub id: NodeId,
    /// The life of the directory.
    pub incarnation: Incarnation,
    /// The new cluster.
    pub cluster: ClusterId,
    /// Where its entry stands in the log.
    pub index: u64,
    /// The entry's term: later than any that the directory knew.
    pub term: u64,
    /// The audit record of it.
    pub audit: Audit,
}

/// Why no cluster was begun. Unless the message says otherwise nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The backup cannot be used: foreign, truncated, damaged, or of a newer format.
    #[error("{file} cannot be restored from: {cause}", file = .file.display())]
    Backup {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and where.
        cause: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A directory cannot be opened: in use, not empty, damaged, not a node's.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The directory holds nothing that a cluster could begin with.
    #[error("{dir} cannot be recovered from: {cause}", dir = .dir.display())]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Another surviving directory holds more.
    #[error(
        "{dir} is not the most advanced: its log ends at {at}, that of {other} at {other_at}. \
         Recover {other} instead, or accept the loss of all that {dir} lacks: name the index at which it ends, {index}",
        dir = .dir.display(), other = .other.display(), index = .at.0
    )]
    LessAdvanced {
        /// The directory that was chosen.
        dir: PathBuf,
        /// Where its log ends.
        at: Position,
        /// The one that holds more.
        other: PathBuf,
        /// Where that one's log ends.
        other_at: Position,
    },
    /// Another surviving directory cannot be read, so nobody can tell whether it holds more.
    #[error(
        "{other} cannot be read, and may hold more than {dir}, whose log ends at {at}: {cause}. \
         Make it readable, or accept the loss of all that {dir} lacks: name the index at which it ends, {index}",
        dir = .dir.display(), other = .other.display(), index = .at.0
    )]
    Unreadable {
        /// The directory that was chosen.
        dir: PathBuf,
        /// Where its log ends.
        at: Position,
        /// The one that cannot be read.
        other: PathBuf,
        /// Why.
        cause: String,
    },
    /// The index up to which the loss was accepted is not where the log ends.
    #[error(
        "{dir} ends at index {last}, not at {accepted}: to accept the loss of what is beyond it, say {last}",
        dir = .dir.display()
    )]
    OtherLoss {
        /// The directory that was chosen.
        dir: PathBuf,
        /// Where its log ends.
        last: u64,
        /// What was accepted.
        accepted: u64,
    },
    /// The directories are of different clusters.
    #[error(
        "{other} belongs to cluster {theirs}, and {dir} to {ours}: \
         recover with directories of one cluster only",
        dir = .dir.display(), other = .other.display()
    )]
    OtherCluster {
        /// The directory that was chosen.
        dir: PathBuf,
        /// Its cluster.
        ours: ClusterId,
        /// The other one.
        other: PathBuf,
        /// The other one's.
        theirs: ClusterId,
    },
    /// The disk refused. A restore starts from scratch when it is tried again; a recovery was done wholly or not at
    /// all.
    #[error("{doing}: {error}")]
    Io {
        /// What was being done, naming the file.
        doing: String,
        /// The system's words.
        error: io::Error,
    },
    /// A snapshot's file could not be written. Try again: a restore starts from scratch.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The store failed. Try again: a restore starts from scratch; a recovery was done wholly or not at all.
    #[error("the log: {0}")]
    Store(#[from] StoreError),
}

/// `7@2`: where a log ends. Ordered by term and then by index, as votes are given (Raft section 5.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(
    /// The index of the last entry.
    pub u64,
    /// Its term.
    pub u64,
);

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Position) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Position) -> std::cmp::Ordering {
        (self.1, self.0).cmp(&(other.1, other.0))
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        At(self.0, self.1).fmt(f)
    }
}

/// How a directory is opened for the one write.
fn options(id: NodeId) -> OpenOptions {
    let mut options = OpenOptions::new(id, boot::new_incarnation());
    // The log is not rewritten here, since the copy would be thrown away when this closes. The node rewrites it later.
    options.rewrite_min_bytes = u64::MAX;
    options
}

/// An id that no cluster had before.
fn new_cluster() -> ClusterId {
    ClusterId(u128::from(boot::roll()) << 64 | u128::from(boot::roll()))
}

/// `HOST:PORT`, and a name for the record.
fn check(address: Option<&Address>, who: &str) -> Result<(), RecoveryError> {
    check_address(address)?;
    if who.trim().is_empty() {
        return Err(RecoveryError::Invalid("say who does this: it goes into the audit record".into()));
    }
    Ok(())
}

fn check_address(address: Option<&Address>) -> Result<(), RecoveryError> {
    match address.map(|address| address.0.parse::<Address>()) {
        Some(Err(error)) => Err(RecoveryError::Invalid(format!("the address {error}"))),
        _ => Ok(()),
    }
}

fn seconds(when: SystemTime) -> u64 {
    when.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// An entry of a later term, after everything that the log holds. After it there is another cluster, of one voter.
struct NewCluster {
    /// Where the log ends now.
    last: Position,
    /// The latest term that the directory knows.
    term: u64,
    address: Address,
    when: SystemTime,
    audit: Audit,
}

impl NewCluster {
    /// Writes it in one batch and closes the store: done wholly or not at all. `snapshot` replaces the log before it.
    fn write(self, store: SledStore, snapshot: Option<Snapshot>) -> Result<RecoveredNode, RecoveryError> {
        let identity = store.identity();
        let (index, term) = (self.last.0 + 1, self.term.max(self.last.1) + 1);
        let audit = Audit { index, ..self.audit };
        let cluster = new_cluster();
        let command = SystemCommand::Recovered {
            cluster,
            node: identity.id,
            address: self.address,
            incarnation: Some(identity.incarnation),
            audit: audit.clone(),
        };
        let encoded = EncodedCommand::system(&command).map_err(|error| RecoveryError::Invalid(error.to_string()))?;
        let data = Bytes::from(encoded.stamp(self.when));
        let entry = Entry { kind: EntryKind::Normal, term, index, data, context: Bytes::new() };
        // The node has voted for no candidate in a term that begins here.
        let hard_state = Some(HardState { term, vote: 0, commit: index });
        let write = Write { group: boot::GROUP, snapshot, entries: vec![entry], hard_state, compact: None };
        commit(store, Batch { writes: vec![write], sync: true })?;
        let dir = PathBuf::new();
        Ok(RecoveredNode { dir, id: identity.id, incarnation: identity.incarnation, cluster, index, term, audit })
    }
}

/// Makes one batch durable and closes the store.
fn commit(store: SledStore, batch: Batch) -> Result<(), StoreError> {
    let (sender, ended) = mpsc::sync_channel(1);
    let mut appender = Box::new(store).start(Arc::new(move |Completed { result, .. }| drop(sender.send(result))));
    appender.submit(batch);
    let result = ended.recv_timeout(WRITE_WITHIN);
    drop(appender);
    result.map_err(|_| StoreError::Closed("the disk did not answer in time".into()))?.map(drop)
}

fn io_error(path: &Path, doing: &str, error: io::Error) -> RecoveryError {
    RecoveryError::Io { doing: format!("{doing} {}", path.display()), error }
}
