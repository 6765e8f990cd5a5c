//! A backup becomes a new cluster of one node.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use actorum_actors::{
    log::{
        directory::{Restoring, snapshots_path},
        sled::SledStore,
    },
    snapshot::{
        Shelf,
        file::{Header, Reader},
    },
    system_state::{Audit, RecoveredBecause},
};
use actorum_transport::wire::{Address, ClusterId, NodeId, Snapshot, SnapshotFile};

use super::{Beginning, Position, RescueError, Rescued, check, io_error, options, seconds};
use crate::{Membership, door::check_id};

/// How much of a backup is held in memory while it is copied.
const COPY_BYTES: usize = 1 << 20;

/// A backup's file, read and verified whole: what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupFile {
    path: PathBuf,
    header: Header,
    file: SnapshotFile,
}

impl BackupFile {
    /// Reads the whole file and checks every byte of it: its form, its chunks, its hash.
    ///
    /// Holds one chunk in memory, however large the file is.
    pub fn read(path: &Path) -> Result<BackupFile, RescueError> {
        let unusable = |cause: String| RescueError::Backup { file: path.to_owned(), cause };
        let opened = File::open(path).map_err(|error| io_error(path, "cannot open", error))?;
        if opened.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(unusable("it is a directory".into()));
        }
        let reader = Reader::begin(BufReader::new(opened)).map_err(|error| unusable(error.to_string()))?;
        let header = reader.header().clone();
        let file = reader.verify().map_err(|error| unusable(error.to_string()))?;
        Ok(BackupFile { path: path.to_owned(), header, file })
    }

    /// The cluster it was taken from.
    pub fn cluster(&self) -> ClusterId {
        self.header.cluster
    }

    /// The last index that it covers.
    pub fn index(&self) -> u64 {
        self.header.index
    }

    /// The term of the entry there.
    pub fn term(&self) -> u64 {
        self.header.term
    }

    /// Who was in the cluster then.
    pub fn membership(&self) -> &Membership {
        &self.header.system.membership
    }

    /// Its length, in bytes.
    pub fn bytes(&self) -> u64 {
        self.file.bytes
    }

    /// BLAKE3 of all of it.
    pub fn hash(&self) -> [u8; 32] {
        self.file.hash
    }

    /// Makes a node of it: see [`restore`].
    pub fn restore(&self, dir: &Path, restore: Restore) -> Result<Rescued, RescueError> {
        restore.check()?;
        let Restore { id, address, who, when } = restore;
        let snapshot = self.snapshot()?;
        let restoring = Restoring::begin(dir)?;
        let path = snapshots_path(dir);
        let shelf = Shelf::in_directory(&path).map_err(|error| io_error(&path, "cannot make", error))?;
        copy(&self.path, &shelf, &snapshot)?;
        let store = SledStore::open(&restoring.store(), options(id))?;
        let (index, term, cluster) = (self.index(), self.term(), self.cluster());
        let audit = Audit {
            who,
            when: seconds(when),
            why: RecoveredBecause::Backup,
            may_be_lost: format!("all that cluster {cluster} applied after index {index}, where the backup ends"),
            index: index + 1,
            cluster,
            members: self.membership().members.clone(),
        };
        let beginning = Beginning { last: Position(index, term), term, address, when, audit };
        let rescued = beginning.write(store, Some(snapshot))?;
        restoring.finish()?;
        Ok(Rescued { dir: dir.to_owned(), ..rescued })
    }

    /// As a node's log names it.
    fn snapshot(&self) -> Result<Snapshot, RescueError> {
        let Header { index, term, system, .. } = &self.header;
        // Whom its node had formed with were nodes of another cluster.
        let snapshot = system.snapshot(*index, *term, self.file, BTreeMap::new());
        snapshot.map_err(|error| RescueError::Backup { file: self.path.clone(), cause: error.to_string() })
    }
}

/// What a restored node is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restore {
    /// Its id: any but zero, also one that the old cluster used.
    pub id: NodeId,
    /// Where its peers will reach it, `HOST:PORT`.
    pub address: Address,
    /// Who does this, for the audit record.
    pub who: String,
    /// When, for the audit record.
    pub when: SystemTime,
}

impl Restore {
    /// A node of that id at that address.
    pub fn new(id: NodeId, address: Address, who: impl Into<String>, when: SystemTime) -> Restore {
        Restore { id, address, who: who.into(), when }
    }

    fn check(&self) -> Result<(), RescueError> {
        check_id(self.id).map_err(RescueError::Invalid)?;
        check(Some(&self.address), &self.who)
    }
}

/// Makes a node of a backup: the one voter of a new cluster, which holds what was applied up to the backup's index.
///
/// The file is verified whole before anything is made, and once more as it lies in the directory. The directory must be
/// empty or new. A call that is cut short leaves what no node starts from; the next one into the same directory starts
/// from scratch.
///
/// Start the node with the application that the backup is of, and if its state machine has storage of its own with that
/// storage empty. Then grow the cluster: new nodes are added as learners and promoted.
///
/// ```no_run
/// use std::{path::Path, time::SystemTime};
///
/// use actorum::rescue::{Restore, restore};
///
/// let restored = restore(
///     Path::new("/backups/monday.actorum"),
///     Path::new("/var/lib/actorum"),
///     Restore::new(1, "10.0.0.1:7001".into(), "ada", SystemTime::now()),
/// )?;
/// println!("cluster {} begins at index {}", restored.cluster, restored.index);
/// # Ok::<(), actorum::rescue::RescueError>(())
/// ```
pub fn restore(file: &Path, dir: &Path, restore: Restore) -> Result<Rescued, RescueError> {
    restore.check()?;
    BackupFile::read(file)?.restore(dir, restore)
}

/// Onto the shelf, which verifies it whole and makes it durable.
fn copy(file: &Path, shelf: &Shelf, snapshot: &Snapshot) -> Result<(), RescueError> {
    let mut from = File::open(file).map_err(|error| io_error(file, "cannot open", error))?;
    let mut receiving = shelf.receive(snapshot)?;
    let (mut buffer, mut offset) = (vec![0; COPY_BYTES], 0);
    loop {
        let got = from.read(&mut buffer).map_err(|error| io_error(file, "cannot read", error))?;
        if got == 0 {
            break;
        }
        receiving.push(offset, &buffer[..got])?;
        offset += got as u64;
    }
    Ok(receiving.finish()?)
}
