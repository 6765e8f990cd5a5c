//! The disk under a data directory: whether it answers, and how much room there is.
//!
//! ```text
//!  log writer ─ write, space ─▶ channel ─▶ one thread ─▶ DIR/probe, statvfs, the reserve ─▶ Looked
//! ```
//!
//! The thread is the probe's own, and the only one: what hangs with the disk is this thread and nothing that anybody
//! waits for. With each look for space it also makes the reserve again where that is missing (see `reserve`).
//!
//! Deliberately absent: deciding what low space or a failed probe mean; that is the log writer's and the core's.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use actorum_core::log::store::StoreError;
use rustix::fs::statvfs;

use super::{
    presence::Presence,
    reserve::Reserve,
    store::{Looked, Probe, Space},
};

const PROBE: &str = "probe";

/// What a probe writes: a block, so that a disk has something to do.
const BLOCK: [u8; 4096] = [0x5a; 4096];

/// The probe of a data directory.
#[derive(Debug)]
pub struct DirectoryProbe {
    jobs: Sender<Job>,
}

/// The bound of this queue is its caller's: the log writer has one of each kind under way at most.
enum Job {
    Write(Looked),
    Space(Looked),
}

impl DirectoryProbe {
    /// A probe of this directory, which keeps that reserve of it.
    pub(super) fn start(dir: &Path, reserve: Arc<Reserve>, presence: Arc<Presence>) -> io::Result<DirectoryProbe> {
        let (jobs, todo) = channel();
        let dir = dir.to_owned();
        let work = move || work(&dir, &reserve, &presence, &todo);
        thread::Builder::new().name("actorum-probe".to_owned()).spawn(work)?;
        Ok(DirectoryProbe { jobs })
    }

    fn submit(&self, job: Job) {
        // Its thread lives as long as this sender, unless it panicked.
        if let Err(unsent) = self.jobs.send(job) {
            let (Job::Write(looked) | Job::Space(looked)) = unsent.0;
            looked(Err(StoreError::Closed("the probe's thread has ended".to_owned())));
        }
    }
}

impl Probe for DirectoryProbe {
    fn write(&self, looked: Looked) {
        self.submit(Job::Write(looked));
    }

    fn space(&self, looked: Looked) {
        self.submit(Job::Space(looked));
    }
}

/// Until the last sender is gone.
fn work(dir: &Path, reserve: &Reserve, presence: &Presence, todo: &Receiver<Job>) {
    // Its block is there before the disk is full: then writing over it says whether the disk answers, not whether it
    // has room.
    if let Err(error) = write_block(dir) {
        tracing::warn!(dir = %dir.display(), %error, "the probe's block cannot be written");
    }
    while let Ok(job) = todo.recv() {
        // Before anything is written under a path that may be another disk's by now.
        if let Err(gone) = presence.check() {
            let (Job::Write(looked) | Job::Space(looked)) = job;
            looked(Err(gone));
            continue;
        }
        match job {
            Job::Write(looked) => looked(named("probing the disk", write_block(dir).and_then(|()| reserve.space()))),
            Job::Space(looked) => {
                if let Ok(space) = space(dir) {
                    reserve.keep(space.free);
                }
                looked(named("looking for free space", reserve.space()));
            }
        }
    }
}

fn named(doing: &str, result: io::Result<Space>) -> Result<Space, StoreError> {
    result.map_err(|error| StoreError::Io { doing: doing.to_owned(), error: Arc::new(error) })
}

/// Over the same block each time: a full disk that can be written is one that answers.
fn write_block(dir: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(false).open(dir.join(PROBE))?;
    file.write_all(&BLOCK)?;
    // Past the page cache: a write that stays in memory says nothing of the disk.
    file.sync_all()
}

/// How much room there is where this directory lies, for who may not use what is reserved for root.
pub fn space(dir: &Path) -> io::Result<Space> {
    let found = statvfs(dir)?;
    Ok(Space { free: found.f_bavail.saturating_mul(found.f_frsize), ..Space::default() })
}

/// How large the volume is on which this directory lies, or will: without what is reserved for root.
pub fn volume(dir: &Path) -> io::Result<u64> {
    // A directory that is still to be made will lie where the nearest one above it does.
    let there = dir.ancestors().find(|above| above.is_dir()).unwrap_or(Path::new("."));
    let found = statvfs(there)?;
    let for_root = found.f_bfree.saturating_sub(found.f_bavail);
    Ok(found.f_blocks.saturating_sub(for_root).saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc::RecvTimeoutError, time::Duration};

    use super::*;
    use crate::log::reserve::ReserveBounds;

    const TIMEOUT: Duration = Duration::from_secs(20);

    fn ask(submit: impl FnOnce(Looked)) -> Result<Result<Space, StoreError>, RecvTimeoutError> {
        let (sender, heard) = channel();
        submit(Box::new(move |result| drop(sender.send(result))));
        heard.recv_timeout(TIMEOUT)
    }

    /// Of a directory with all that belongs into one.
    fn whole(dir: &Path) -> Arc<Presence> {
        for name in ["lock", "node", "watermark"] {
            fs::write(dir.join(name), "").unwrap();
        }
        fs::create_dir_all(dir.join("snapshots")).unwrap();
        fs::create_dir_all(dir.join("log")).unwrap();
        fs::write(dir.join("log/db"), "").unwrap();
        Arc::new(Presence::of(dir).unwrap())
    }

    #[test]
    fn a_probe_writes_and_says_how_much_room_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = ReserveBounds { bytes: 1 << 20, max_bytes: 1 << 20, ..ReserveBounds::default() };
        let probe = DirectoryProbe::start(dir.path(), Reserve::of(dir.path(), bounds), whole(dir.path())).unwrap();
        assert!(ask(|looked| probe.write(looked)).unwrap().unwrap().free > 0);
        assert_eq!(fs::read(dir.path().join(PROBE)).unwrap(), BLOCK);
        let found = ask(|looked| probe.space(looked)).unwrap().unwrap();
        assert_eq!((found.reserve, found.reserve_wanted), (1 << 20, 1 << 20), "the reserve is made by the first look");
        assert!(volume(&dir.path().join("not/yet")).unwrap() >= found.free);
        let gone = dir.path().to_owned();
        drop(dir);
        assert!(ask(|looked| probe.write(looked)).unwrap().is_err(), "{} is gone", gone.display());
    }
}
