//! The files of snapshots, as far as a replica needs them: whether one is good, and what is in it.
//!
//! Deliberately absent: building, receiving and keeping them. That is the store's.

use std::io::Read;

use crate::wire::Snapshot;

/// The half of a snapshot store that reads.
pub trait SnapshotReader {
    /// Reads the whole file and compares it with what the snapshot says. A genesis has no file, and is as it is.
    fn verify(&self, snapshot: &Snapshot) -> Result<(), SnapshotError>;

    /// The state machine's state in the file of a snapshot, which was verified before.
    fn open(&self, snapshot: &Snapshot) -> Result<Box<dyn Read + Send>, SnapshotError>;
}

/// A file of a snapshot cannot be written, or is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SnapshotError(pub String);
