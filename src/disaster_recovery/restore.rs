//! A backup becomes a new cluster of one node.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use actorum_core::{
    system_state::{Audit, RecoveredBecause},
    wire::{Snapshot, SnapshotFile},
};
use actorum_machine::ids::{Address, ClusterId, GroupId, NodeId};
use actorum_store::{
    log::{
        directory::{Restoring, snapshots_path},
        inspect,
        sled::SledStore,
    },
    snapshot::{
        GroupSnapshots, SnapshotStore,
        file::{Header, Reader},
    },
};

use super::{NewCluster, Position, RecoveredNode, RecoveryError, check, check_address, io_error, options, seconds};
use crate::{Membership, boot, ingress::check_id};

/// How much of a backup is held in memory while it is copied.
const COPY_BYTES: usize = 1 << 20;

/// A backup, read and verified whole: what it holds. The file stays open, so that the restore reads the bytes that were
/// verified, even if another file has its name by then.
#[derive(Clone, Debug)]
pub struct BackupFile {
    path: PathBuf,
    content: Arc<File>,
    header: Header,
    file: SnapshotFile,
}

impl PartialEq for BackupFile {
    fn eq(&self, other: &BackupFile) -> bool {
        (&self.path, &self.header, &self.file) == (&other.path, &other.header, &other.file)
    }
}

impl Eq for BackupFile {}

impl BackupFile {
    /// Reads the whole file and checks every byte of it: its form, its chunks, its hash.
    ///
    /// Holds one chunk in memory, however large the file is. A pipe or a device is read once, and copied as by
    /// [`BackupFile::read_from`].
    pub fn read(path: &Path) -> Result<BackupFile, RecoveryError> {
        let opened = File::open(path).map_err(|error| io_error(path, "cannot open", error))?;
        match opened.metadata().map_err(|error| io_error(path, "cannot look at", error))? {
            found if found.is_dir() => Err(unusable(path, "it is a directory")),
            found if found.is_file() => BackupFile::verified(path, opened),
            _ => BackupFile::read_from(path, opened),
        }
    }

    /// Reads a backup to its end and checks every byte of it. Errors use `name` for it.
    ///
    /// It is known to be good only once all of it was read. So it is kept in a file without a name in the temporary
    /// directory (`TMPDIR`), which takes as much room there as long as this value lives.
    pub fn read_from(name: &Path, mut from: impl Read) -> Result<BackupFile, RecoveryError> {
        let temporary = inspect::temporary();
        let kept = tempfile_in(&temporary);
        let mut kept = kept.map_err(|error| io_error(&temporary, "cannot keep what is read in", error))?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let got = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io_error(name, "cannot read", error)),
            };
            let written = io::Write::write_all(&mut kept, &buffer[..got]);
            written.map_err(|error| io_error(&temporary, "cannot keep what is read in", error))?;
        }
        kept.rewind().map_err(|error| io_error(&temporary, "cannot read again in", error))?;
        BackupFile::verified(name, kept)
    }

    fn verified(path: &Path, content: File) -> Result<BackupFile, RecoveryError> {
        let unusable = |error: &dyn std::fmt::Display| unusable(path, error);
        let reader = Reader::begin(BufReader::new(&content)).map_err(|error| unusable(&error))?;
        let header = reader.header().clone();
        let file = reader.verify().map_err(|error| unusable(&error))?;
        Ok(BackupFile { path: path.to_owned(), content: Arc::new(content), header, file })
    }

    /// The cluster it was taken from.
    pub fn cluster(&self) -> ClusterId {
        self.header.cluster
    }

    /// The group whose state it is. Group 0 is what a node of this version runs, and what it restores.
    pub fn group(&self) -> GroupId {
        self.header.group
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
    pub fn restore(&self, dir: &Path, restore: Restore) -> Result<RecoveredNode, RecoveryError> {
        restore.check()?;
        if self.group() != boot::GROUP {
            let (found, own) = (self.group().0, boot::GROUP.0);
            return Err(unusable(
                &self.path,
                format!("it is of group {found}, and this version restores group {own} alone"),
            ));
        }
        let Restore { id, address, who, when } = restore;
        let snapshot = self.snapshot()?;
        let restoring = Restoring::begin(dir)?;
        let path = snapshots_path(dir);
        let snapshot_store =
            SnapshotStore::in_directory(&path).map_err(|error| io_error(&path, "cannot make", error))?;
        copy(&self.path, &self.content, &snapshot_store.of(boot::GROUP), &snapshot)?;
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
        let new_cluster = NewCluster { last: Position(index, term), term, address, when, audit };
        let recovered_node = new_cluster.write(store, Some(snapshot))?;
        restoring.finish()?;
        Ok(RecoveredNode { dir: dir.to_owned(), ..recovered_node })
    }

    /// The snapshot as a node's log names it.
    fn snapshot(&self) -> Result<Snapshot, RecoveryError> {
        let Header { index, term, system, .. } = &self.header;
        // The founders that its node had formed with belong to another cluster.
        let snapshot = system.snapshot(*index, *term, self.file, BTreeMap::new());
        snapshot.map_err(|error| RecoveryError::Backup { file: self.path.clone(), cause: error.to_string() })
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

    /// Whether a restore into that directory could begin: looks at the id, the address and the directory, and changes
    /// nothing. Call it before reading a backup or asking a person for their name, which may take long.
    pub fn judge(&self, dir: &Path) -> Result<(), RecoveryError> {
        check_id(self.id).map_err(RecoveryError::Invalid)?;
        check_address(Some(&self.address))?;
        Ok(Restoring::judge(dir)?)
    }

    fn check(&self) -> Result<(), RecoveryError> {
        check_id(self.id).map_err(RecoveryError::Invalid)?;
        check(Some(&self.address), &self.who)
    }
}

/// Makes a node of a backup: the one voter of a new cluster, which holds what was applied up to the backup's index.
///
/// The whole file is verified before anything is made, and once more in the directory. The directory must be empty or
/// new. After a call that was interrupted, no node starts from the directory; the next call into the same directory
/// starts from scratch.
///
/// Start the node with the application that the backup is of, and if its state machine has storage of its own with that
/// storage empty. Then grow the cluster: new nodes are added as learners and promoted.
///
/// ```no_run
/// use std::{path::Path, time::SystemTime};
///
/// use actorum::disaster_recovery::{Restore, restore};
///
/// let restored = restore(
///     Path::new("/backups/monday.actorum"),
///     Path::new("/var/lib/actorum"),
///     Restore::new(1, "10.0.0.1:7001".into(), "ada", SystemTime::now()),
/// )?;
/// println!("cluster {} begins at index {}", restored.cluster, restored.index);
/// # Ok::<(), actorum::disaster_recovery::RecoveryError>(())
/// ```
pub fn restore(file: &Path, dir: &Path, restore: Restore) -> Result<RecoveredNode, RecoveryError> {
    restore.check()?;
    BackupFile::read(file)?.restore(dir, restore)
}

/// A file without a name, which is removed with its last handle.
fn tempfile_in(dir: &Path) -> io::Result<File> {
    let name = dir.join(format!("actorum-{}-{:016x}.backup", std::process::id(), boot::roll()));
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&name)?;
    std::fs::remove_file(&name)?;
    Ok(file)
}

fn unusable(path: &Path, cause: impl std::fmt::Display) -> RecoveryError {
    RecoveryError::Backup { file: path.to_owned(), cause: cause.to_string() }
}

/// Into the snapshot store, which verifies it whole and makes it durable.
fn copy(path: &Path, from: &File, snapshots: &GroupSnapshots, snapshot: &Snapshot) -> Result<(), RecoveryError> {
    let mut receiving = snapshots.receive(snapshot)?;
    let (mut buffer, mut offset) = (vec![0; COPY_BYTES], 0);
    loop {
        let got = from.read_at(&mut buffer, offset).map_err(|error| io_error(path, "cannot read", error))?;
        if got == 0 {
            break;
        }
        receiving.push(offset, &buffer[..got])?;
        offset += got as u64;
    }
    Ok(receiving.finish()?)
}
