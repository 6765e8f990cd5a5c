//! Makes the log of a stopped node as small as it can be: cut behind the newest snapshot, and rewritten.
//!
//! ```text
//!  lock ─▶ the reserve goes ─▶ open, check ─▶ cut behind the newest snapshot, if that is sound ─▶ its older files go ─▶ rewrite
//! ```
//!
//! The same plans, commits and steps as in a node that runs, so a crash at any of them leaves a directory that opens
//! with all that was in it. It counts no boot and promises nothing to anybody. The reserve is made again by the next
//! start.
//!
//! Deliberately absent: a log whose newest snapshot is damaged is not cut, only rewritten.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use actorum_core::{
    log::store::{Compact, StoreError, Write},
    snapshot::SnapshotError,
};
use actorum_machine::ids::{GroupId, Incarnation};

use super::{
    commit::{Committer, Shared},
    directory::{self, Directory},
    engine::{Engine, caught},
    recovery, reserve,
    rewrite::{AtOnce, Rewriter},
    sled::{Engines, Generations, OpenOptions, Sled},
    store::{Batch, OpenError},
    watermark::{Pages, Watermark},
};
use crate::snapshot::SnapshotStore;

/// How many bytes are copied at once. It may be much, because no commit waits meanwhile.
const SLICE_BYTES: usize = 8 << 20;

/// What was done to a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// Bytes of its log and snapshots on the disk, before.
    pub before: u64,
    /// And afterwards.
    pub after: u64,
    /// Bytes of entries that the log has left.
    pub kept: u64,
    /// Why the log was not cut behind its newest snapshot.
    pub not_cut: Option<String>,
}

/// Why a directory was not compacted. It opens as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// It is in use, damaged, or cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What lives of the log does not fit beside it.
    #[error(
        "compacting {dir} needs {needed} free bytes for a copy of the entries that its log keeps, and {room} are free: \
         make room on that volume, or copy the directory to a larger one and compact it there",
        dir = .dir.display()
    )]
    NoRoom {
        /// The directory.
        dir: std::path::PathBuf,
        /// Bytes that are free.
        room: u64,
        /// How many must be.
        needed: u64,
    },
    /// The log could not be read or written.
    #[error("{dir}: {error}", dir = .dir.display())]
    Store {
        /// The directory.
        dir: std::path::PathBuf,
        /// What went wrong.
        error: StoreError,
    },
    /// The files of snapshots could not be listed or removed.
    #[error("{dir}: {error}", dir = .dir.display())]
    Snapshots {
        /// The directory.
        dir: std::path::PathBuf,
        /// What went wrong.
        error: SnapshotError,
    },
}

/// Compacts the directory of a node that does not run. Blocks for as long as that takes.
pub fn compact(dir: &Path) -> Result<Compacted, CompactError> {
    compact_with(dir, Arc::new(Sled))
}

/// The same, with these engines.
fn compact_with<E: Engine>(dir: &Path, engines: Arc<dyn Engines<E>>) -> Result<Compacted, CompactError> {
    if !directory::is_nodes(dir)? {
        let found = "it has no file named node".to_owned();
        return Err(OpenError::NoNode { dir: dir.to_owned(), found }.into());
    }
    let id = directory::read_node(dir)?.id;
    let vanished = |_: &_| Err(OpenError::Unfinished { dir: dir.to_owned() });
    let directory = Directory::open(dir, id, Incarnation(0), vanished)?;
    let before = used(dir);
    let mut options = OpenOptions::new(id, Incarnation(0));
    (options.rewrite_min_bytes, options.rewrite_ratio, options.rewrite_reserve_bytes) = (0, 0, 0);
    options.rewrite_slice_bytes = SLICE_BYTES;
    let failed = |doing: &str| {
        let (dir, doing) = (dir.to_owned(), doing.to_owned());
        move |error| OpenError::Io { dir, doing, error }
    };

    // Under the lock, and before the engine opens, which may need the room.
    reserve::remove(dir).map_err(failed("cannot remove the reserve"))?;
    let identity = directory.identity();
    let opened = Watermark::open(&directory::watermark_path(dir));
    let mut watermark = recovery::of_this_life(dir, &identity, opened)?;
    let generation = directory::generation(dir).map_err(failed("cannot tell which of its logs counts"))?;
    let path = directory::log_path(dir, generation);
    if !path.join("db").exists() {
        return Err(recovery::rolled_back(dir, "no log at all", &watermark).into());
    }
    directory::sync_generation(dir, generation).map_err(failed("cannot make durable which of its logs counts"))?;
    directory::sweep_above(dir, generation);
    reserve::room_to_open(dir).map_err(failed("cannot open the log"))?;
    let engine = engines.open(&path, &options).map_err(|error| error.on_open(dir))?;
    let found = recovery::recover(&engine, dir, &identity, &mut watermark)?;
    directory::sweep(dir, generation);
    let snapshot_store =
        SnapshotStore::in_directory(&directory::snapshots_path(dir)).map_err(failed("cannot open snapshots"))?;

    let shared = Shared::new(engine, &found, Box::new(directory));
    let mut committer = Committer::new(shared, watermark);
    // Group 0 even if the log knows nothing of it: a fetch that was never recorded may have left a file.
    let mut kept = BTreeMap::from([(GroupId::FIRST, Vec::new())]);
    let (mut writes, mut not_cut) = (Vec::new(), None);
    for (group, found) in &found.groups {
        let snapshots = &found.recovered.snapshots;
        let kept = kept.entry(*group).or_default();
        let Some(newest) = snapshots.last() else { continue };
        if let Err(error) = snapshot_store.of(*group).verify(newest) {
            not_cut = Some(error.to_string());
            kept.extend(snapshots.iter().cloned());
            continue;
        }
        kept.push(newest.clone());
        let compact = Some(Compact { snapshots: vec![newest.clone()], up_to: newest.index });
        writes.push(Write { group: *group, compact, ..Write::default() });
    }
    let stored = |error| CompactError::Store { dir: dir.to_owned(), error };
    cut(&mut committer, writes).map_err(stored)?;
    // Only now may they go: the log no longer says that it can start from the others.
    for (group, kept) in kept {
        let swept = snapshot_store.of(group).keep(&kept);
        swept.map_err(|error| CompactError::Snapshots { dir: dir.to_owned(), error })?;
    }

    let policy = options.rewrite_policy();
    let reserve = reserve::Reserve::of(dir, Default::default());
    let generations = Generations::new(dir.to_owned(), engines.clone(), options, generation, reserve);
    let mut rewriter = Rewriter::new(engines.renew(generations), policy);
    let rewritten = caught_at_once(&mut rewriter, &mut committer);
    rewriter.close();
    let kept = committer.live_bytes();
    drop(committer.take("it was closed"));
    match rewritten {
        Ok(()) => Ok(Compacted { before, after: used(dir), kept, not_cut }),
        Err(AtOnce::NoRoom { room, needed }) => Err(CompactError::NoRoom { dir: dir.to_owned(), room, needed }),
        Err(AtOnce::Failed(error)) => Err(stored(error)),
    }
}

/// Commits these compactions, and goes on until all entries that they name are removed.
fn cut<E: Engine, S: Pages>(committer: &mut Committer<E, S>, mut writes: Vec<Write>) -> Result<(), StoreError> {
    while !writes.is_empty() {
        caught(|| {
            let begun = committer.begin(vec![Batch { writes: std::mem::take(&mut writes), sync: true }])?;
            committer.finish(begun)
        })?;
        writes = committer.truncating_prefix().into_iter().map(|group| Write { group, ..Write::default() }).collect();
    }
    caught(|| committer.raise_index())
}

fn caught_at_once<E: Engine, S: Pages>(
    rewriter: &mut Rewriter<E>,
    committer: &mut Committer<E, S>,
) -> Result<(), AtOnce> {
    let mut outcome = Ok(());
    caught(|| {
        outcome = rewriter.at_once(committer);
        Ok(())
    })
    .map_err(AtOnce::Failed)?;
    outcome
}

/// Bytes that the log and the snapshots take on the disk.
fn used(dir: &Path) -> u64 {
    let logs = directory::generations(dir).unwrap_or_default().into_iter().map(|log| directory::log_path(dir, log));
    logs.chain([directory::snapshots_path(dir)]).map(|path| blocks(&path).unwrap_or(0)).sum()
}

fn blocks(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { blocks(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "compact_tests.rs"]
mod tests;
