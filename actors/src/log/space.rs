//! The disk under a data directory: whether it answers, how much room there is, and the ballast.
//!
//! ```text
//!  log writer ─ write, space ─▶ channel ─▶ one thread ─▶ DIR/probe, statvfs, DIR/ballast ─▶ Looked
//! ```
//!
//! The thread is the probe's own, and the only one: what hangs with the disk is this thread and nothing that anybody waits for.
//!
//! A disk that is full cannot even be opened: the engine writes at every open. The *ballast* is room kept for that moment: a file of real
//! blocks that says nothing. It is made once the node runs, given up by an open that finds the disk full, and made again
//! when there is room. Nothing depends on it: a ballast that is missing, damaged or cannot be made costs a line in the log.
//!
//! Deliberately absent: deciding what low space or a failed probe mean; that is the log writer's and the core's.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::presence::Presence;
use super::store::{Looked, Probe, Space, StoreError};

const PROBE: &str = "probe";
const BALLAST: &str = "ballast";

/// What a probe writes: a block, so that a disk has something to do.
const BLOCK: [u8; 4096] = [0x5a; 4096];

/// The ballast is made while so many times its size is free: it must not itself be what fills the disk.
const ROOM_FOR_BALLAST: u64 = 4;

/// The probe of a data directory.
pub struct DirectoryProbe {
    jobs: Sender<Job>,
}

/// The bound of this queue is its caller's: the log writer has one of each kind under way at most.
enum Job {
    Write(Looked),
    Space(Looked),
}

impl DirectoryProbe {
    /// A probe of this directory, with a ballast of so many bytes; zero for none.
    pub(super) fn start(dir: &Path, ballast_bytes: u64, presence: Arc<Presence>) -> io::Result<DirectoryProbe> {
        let (jobs, todo) = channel();
        let dir = dir.to_owned();
        let work = move || work(&dir, ballast_bytes, &presence, &todo);
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
fn work(dir: &Path, ballast_bytes: u64, presence: &Presence, todo: &Receiver<Job>) {
    // Its block is there before the disk is full: then writing over it says whether the disk answers, not whether it has room.
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
            Job::Write(looked) => looked(named("probing the disk", write_block(dir).and_then(|()| space(dir)))),
            Job::Space(looked) => {
                let found = space(dir);
                if let Ok(space) = found {
                    keep_ballast(dir, ballast_bytes, space.free);
                }
                looked(named("looking for free space", found));
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
    Ok(Space { free: found.f_bavail.saturating_mul(found.f_frsize) })
}

fn ballast_path(dir: &Path) -> PathBuf {
    dir.join(BALLAST)
}

/// Gives the ballast up if the disk is full, so that the engine can open its files. Before anything else touches them.
pub fn free_ballast_if_full(dir: &Path) {
    let path = ballast_path(dir);
    let Ok(ballast) = fs::metadata(&path) else { return };
    // Full: there is less room than the ballast was to keep.
    if space(dir).is_ok_and(|space| space.free >= ballast.len()) {
        return;
    }
    match fs::remove_file(&path) {
        Ok(()) => {
            tracing::warn!(dir = %dir.display(), bytes = ballast.len(), "the disk is full: the ballast is given up")
        }
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "the disk is full, and the ballast cannot be given up")
        }
    }
}

/// Makes the ballast if there is none of its size and room enough.
fn keep_ballast(dir: &Path, bytes: u64, free: u64) {
    let path = ballast_path(dir);
    let found = fs::metadata(&path).map_or(0, |found| found.len());
    if found == bytes || bytes == 0 || free < bytes.saturating_mul(ROOM_FOR_BALLAST) {
        return;
    }
    let made = File::create(&path).and_then(|file| fill(&file, bytes));
    if let Err(error) = made {
        tracing::warn!(dir = %dir.display(), %error, "the ballast cannot be made");
        let _ = fs::remove_file(&path);
    }
}

/// Real blocks: a hole would keep no room. Not synced: after a crash without it the next look makes it again.
fn fill(mut file: &File, bytes: u64) -> io::Result<()> {
    if fallocate(file.as_fd(), FallocateFlags::empty(), 0, bytes).is_ok() {
        return Ok(());
    }
    // A filesystem that cannot set blocks aside has to be given something to store.
    file.set_len(0)?;
    for _ in 0..bytes.div_ceil(BLOCK.len() as u64) {
        file.write_all(&BLOCK)?;
    }
    file.set_len(bytes)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt, sync::mpsc::RecvTimeoutError, time::Duration};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn ask(submit: impl FnOnce(Looked)) -> Result<Result<Space, StoreError>, RecvTimeoutError> {
        let (sender, heard) = channel();
        submit(Box::new(move |result| drop(sender.send(result))));
        heard.recv_timeout(PATIENCE)
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
        let probe = DirectoryProbe::start(dir.path(), 0, whole(dir.path())).unwrap();
        assert!(ask(|looked| probe.write(looked)).unwrap().unwrap().free > 0);
        assert_eq!(fs::read(dir.path().join(PROBE)).unwrap(), BLOCK);
        assert!(!ballast_path(dir.path()).exists(), "no ballast was wanted");
        let gone = dir.path().to_owned();
        drop(dir);
        assert!(ask(|looked| probe.write(looked)).unwrap().is_err(), "{} is gone", gone.display());
    }

    #[test]
    fn the_ballast_is_of_real_blocks_and_made_again_when_it_is_missing_or_cut() {
        let dir = tempfile::tempdir().unwrap();
        let probe = DirectoryProbe::start(dir.path(), 1 << 20, whole(dir.path())).unwrap();
        let look = || ask(|looked| probe.space(looked)).unwrap().unwrap();
        for damage in
            [|_: &Path| {}, |path: &Path| fs::remove_file(path).unwrap(), |path: &Path| fs::write(path, "x").unwrap()]
        {
            damage(&ballast_path(dir.path()));
            look();
            let made = fs::metadata(ballast_path(dir.path())).unwrap();
            assert_eq!((made.len(), made.blocks() * 512 >= 1 << 20), (1 << 20, true));
        }
        free_ballast_if_full(dir.path());
        assert!(ballast_path(dir.path()).exists(), "this disk is not full");
    }

    #[test]
    fn a_ballast_that_would_fill_the_disk_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        keep_ballast(dir.path(), 1 << 20, (4 << 20) - 1);
        assert!(!ballast_path(dir.path()).exists());
        keep_ballast(dir.path(), 1 << 20, 4 << 20);
        assert!(ballast_path(dir.path()).exists());
    }
}
