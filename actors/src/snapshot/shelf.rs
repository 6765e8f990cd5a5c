//! The shelf: where the files of snapshots are built, received, kept and read.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::Path,
};

use actorum_transport::wire::{Incarnation, NodeId, Snapshot, SnapshotFile};
use bytes::Bytes;

use crate::{machine::Frozen, system_state::SystemState};

/// What a snapshot is made of.
pub struct Content {
    /// The last index it covers.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
    /// Our own state at that index.
    pub system: SystemState,
    /// Whom the node formed with; goes on from the snapshot before.
    pub formed_with: BTreeMap<NodeId, Incarnation>,
    /// The machine's state at that index.
    pub state: Frozen,
}

/// Where the files of snapshots are.
pub struct Shelf {}

impl Shelf {
    /// A shelf that is lost with the process.
    pub fn memory() -> Shelf {
        Shelf {}
    }

    /// The shelf in a directory, which is made if there is none.
    pub fn in_directory(_dir: &Path) -> io::Result<Shelf> {
        Ok(Shelf {})
    }

    /// Whether a call may wait for a device.
    pub fn blocks(&self) -> bool {
        true
    }

    /// Removes the files that are not of these snapshots. What is being received stays: it may go on where it stopped.
    pub fn keep(&self, _kept: &[Snapshot]) -> Result<(), SnapshotError> {
        Ok(())
    }

    /// Builds the file of a snapshot. Durable under its name when it returns. `progress` hears the bytes written so far.
    pub fn build(&self, _content: Content, _progress: &mut dyn FnMut(u64)) -> Result<Snapshot, SnapshotError> {
        Err(SnapshotError("not yet".into()))
    }

    /// Reads the whole file and compares it with what the snapshot says.
    pub fn verify(&self, _snapshot: &Snapshot) -> Result<(), SnapshotError> {
        Err(SnapshotError("not yet".into()))
    }

    /// The machine's state of a snapshot that has a file.
    pub fn open(&self, _snapshot: &Snapshot) -> Result<Box<dyn Read + Send>, SnapshotError> {
        Err(SnapshotError("not yet".into()))
    }

    /// Whether the complete file is here.
    pub fn has(&self, _index: u64, _file: &SnapshotFile) -> bool {
        false
    }

    /// Bytes of the file as it lies on the disk; `None` if it is not here (any more).
    pub fn read(
        &self,
        _index: u64,
        _file: &SnapshotFile,
        _offset: u64,
        _max: u32,
    ) -> Result<Option<Bytes>, SnapshotError> {
        Ok(None)
    }

    /// Begins to receive the file of a snapshot, or goes on where an earlier attempt stopped.
    pub fn receive(&self, _snapshot: &Snapshot) -> Result<Receiving, SnapshotError> {
        Err(SnapshotError("not yet".into()))
    }
}

/// A file that is being received.
pub struct Receiving {}

impl Receiving {
    /// How many bytes are here: the next piece begins there.
    pub fn offset(&self) -> u64 {
        0
    }

    /// Adds the next piece. One that begins elsewhere, or goes past the end, is an error, and changes nothing.
    pub fn push(&mut self, _offset: u64, _piece: &[u8]) -> Result<(), SnapshotError> {
        Ok(())
    }

    /// All bytes are here: verifies the whole, and makes it durable under its name. A file that is not what was announced
    /// is removed.
    pub fn finish(self) -> Result<(), SnapshotError> {
        Ok(())
    }
}

/// A file of a snapshot cannot be written, or is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SnapshotError(pub String);
