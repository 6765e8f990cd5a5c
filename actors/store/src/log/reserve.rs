//! The reserve: room on the disk that is kept for making room.
//!
//! ```text
//!  keep ─▶ DIR/ballast, real blocks ──lend──▶ nothing there; a snapshot or a smaller log is written ──guard dropped──▶ keep
//! ```
//!
//! To free room on a full disk, room is needed first: for a snapshot, so that the log can be cut behind it, and for a
//! copy of the live part of the log, before the old one is removed. So a file of real blocks is kept from the first
//! start on. While the reserve is borrowed the file does not exist; once it is given back, the file is made again as
//! far as there is room. Free bytes are always counted as if it were there ([`Space::spare`]), so that what is borrowed
//! is never taken for room to grow.
//!
//! The same file lets an engine open on a full disk, which writes at every open: see `give_up_if_full`.
//!
//! Nothing depends on what is in the file. A crash at any step leaves it whole, in part, or not at all, and the next
//! look makes it again.
//!
//! Deliberately absent: who borrows when (see `rewrite` and the snapshot store), what low space means (see the log
//! writer), and the file itself, which a simulated volume has another of ([`Ballast`]).

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use actorum_core::debug_fields;
use rustix::fs::{FallocateFlags, fallocate};

use super::{space, store::Space};

/// In every directory of the first version, too, where it served the opening alone.
const BALLAST: &str = "ballast";

const BLOCK: [u8; 4096] = [0x5a; 4096];

/// What an engine may need to open: two of sled's segments.
pub const SLED_OPENS_WITH: u64 = 32 << 20;

/// What must be free when an engine opens: it begins a new segment of 16 MiB. One that finds the disk full in the
/// middle of that may be damaged for good.
pub(super) const OPENING: u64 = 17 << 20;

/// The file that keeps the room, and the volume it lies on.
pub trait Ballast: Send + Sync {
    /// Bytes that are free on the volume.
    fn free(&self) -> io::Result<u64>;

    /// Bytes that the file keeps from others, and its length; zeros without one.
    fn held(&self) -> (u64, u64);

    /// Makes it so long, of real blocks; what it has up to `stays` is as good as new.
    fn make(&self, stays: u64, bytes: u64) -> io::Result<()>;

    /// Removes it; an error if there is none.
    fn remove(&self) -> io::Result<()>;

    /// Where it is, for the log.
    fn place(&self) -> &Path;
}

/// How large the reserve is, and when room is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReserveBounds {
    /// What the log's engine may need to open, in bytes. It stays free when the reserve is made, and the room of a
    /// snapshot of twice as many is always wanted.
    pub engine: u64,
    /// Bytes that are always wanted; zero for no reserve at all. The newest snapshot comes on top.
    pub bytes: u64,
    /// At most so many, whatever the snapshot.
    pub max_bytes: u64,
    /// Fewer spare bytes than this are short: the log is cut and rewritten as far as it goes. Zero: never short.
    pub short_below: u64,
}

/// The reserve of one data directory. Cheap to share; any thread may call it.
pub struct Reserve {
    ballast: Box<dyn Ballast>,
    bounds: ReserveBounds,
    wanted: AtomicU64,
    /// How many have borrowed it.
    lent: Mutex<u32>,
    /// How often the log has found too little room for a write, and how much it needed the last time.
    waited_rounds: AtomicU64,
    needed: AtomicU64,
    /// How many are making room.
    making: AtomicU64,
}

/// Keeps the reserve from being made again until whoever borrowed it is done.
pub struct Lent(Arc<Reserve>);

debug_fields!(Lent {});

impl Drop for Lent {
    fn drop(&mut self) {
        *self.0.lent() -= 1;
    }
}

/// Says that room is being made.
pub struct MakingRoom(Arc<Reserve>);

debug_fields!(MakingRoom {});

impl Drop for MakingRoom {
    fn drop(&mut self) {
        self.0.making.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reserve {
    /// The reserve of a directory. Touches nothing.
    pub fn of(dir: &Path, bounds: ReserveBounds) -> Arc<Reserve> {
        Reserve::over(Box::new(BallastFile::of(dir)), bounds)
    }

    /// The reserve that this file keeps. Touches nothing.
    pub fn over(ballast: Box<dyn Ballast>, bounds: ReserveBounds) -> Arc<Reserve> {
        // A setting above the bound counts as the bound: the reserve must not fill the volume.
        let bounds = ReserveBounds { bytes: bounds.bytes.min(bounds.max_bytes), ..bounds };
        let wanted = AtomicU64::new(bounds.bytes);
        let (waited_rounds, needed, making) = Default::default();
        Arc::new(Reserve { ballast, bounds, wanted, lent: Mutex::default(), waited_rounds, needed, making })
    }

    /// It is to hold a snapshot of so many bytes, too: the next one is about as large as the last.
    pub fn hold_snapshot(&self, bytes: u64) {
        let Reserve { bounds, wanted, .. } = self;
        let least = bounds.bytes;
        if least > 0 {
            wanted.store(least.saturating_add(bytes).min(bounds.max_bytes), Ordering::Relaxed);
        }
    }

    /// How many bytes are free, and nothing else: cheaper than [`Reserve::space`].
    pub fn free(&self) -> io::Result<u64> {
        self.ballast.free()
    }

    /// How much room there is.
    pub fn space(&self) -> io::Result<Space> {
        let (free, (reserve, _)) = (self.ballast.free()?, self.ballast.held());
        // What a large snapshot would need counts only as far as it can be held at all: a reserve that never becomes
        // whole is no reason to refuse writes.
        let possible = reserve.saturating_add(free.saturating_sub(self.left_free()));
        let counted = possible.max(self.bounds.bytes.saturating_add(2 * self.bounds.engine));
        let reserve_wanted = self.wanted.load(Ordering::Relaxed).min(counted);
        let (waited_rounds, needed) = (self.waited_rounds.load(Ordering::Relaxed), self.needed.load(Ordering::Relaxed));
        let being_made = self.making.load(Ordering::Relaxed) > 0;
        Ok(Space { free, reserve, reserve_wanted, waited_rounds, needed, being_made })
    }

    /// The log has found too little room for a write, once more: so many bytes must be free.
    pub fn log_waits_for(&self, needed: u64) {
        self.needed.store(needed, Ordering::Relaxed);
        self.waited_rounds.fetch_add(1, Ordering::Relaxed);
    }

    /// What the reserve leaves to the log: below it the node would be short of room by the reserve's own making.
    fn left_free(&self) -> u64 {
        self.bounds.engine.max(self.bounds.short_below)
    }

    /// Whether room is short, so that the node must free what it can. If the free space is not known, room is not
    /// short.
    pub fn is_short(&self) -> bool {
        self.bounds.short_below > 0 && self.space().is_ok_and(|space| space.spare() < self.bounds.short_below)
    }

    /// Whether it can ever be short.
    pub fn watches(&self) -> bool {
        self.bounds.short_below > 0
    }

    /// Says that room is being made until the guard is dropped: more may be free soon.
    pub fn make_room(self: &Arc<Reserve>) -> MakingRoom {
        self.making.fetch_add(1, Ordering::Relaxed);
        MakingRoom(self.clone())
    }

    /// Gives its room to the caller until the guard is dropped; `None` where there is nothing to give.
    pub fn lend(self: &Arc<Reserve>) -> Option<Lent> {
        let mut lent = self.lent();
        match self.ballast.remove() {
            Ok(()) => tracing::info!(dir = %self.ballast.place().display(), "the reserve is lent, to make room"),
            Err(_) if *lent > 0 => {} // it is free already
            Err(_) => return None,
        }
        *lent += 1;
        Some(Lent(self.clone()))
    }

    /// Makes it again, or as much of it as there is room for, unless somebody has borrowed it.
    pub fn keep(&self, free: u64) {
        let lent = self.lent();
        if *lent > 0 {
            return;
        }
        let wanted = self.wanted.load(Ordering::Relaxed);
        let (found, length) = self.ballast.held();
        let stays = found.min(wanted);
        // Where it does not fit, in steps: a disk that fills is not to cost a file operation each second.
        let (room, step) = (free.saturating_sub(self.left_free()), (self.bounds.engine / 32).max(1));
        let bytes = if room >= wanted - stays { wanted } else { stays + room / step * step };
        if wanted == 0 || (bytes, bytes) == (found, length) {
            return;
        }
        if let Err(error) = self.ballast.make(stays, bytes) {
            tracing::warn!(dir = %self.ballast.place().display(), %error, "the reserve cannot be made");
            let _ = self.ballast.remove();
        }
    }

    fn lent(&self) -> MutexGuard<'_, u32> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reserve { bounds, wanted, lent, .. } = self;
        f.debug_struct("Reserve")
            .field("bounds", bounds)
            .field("wanted", wanted)
            .field("lent", lent)
            .finish_non_exhaustive()
    }
}

/// In a data directory.
struct BallastFile {
    dir: PathBuf,
    path: PathBuf,
}

impl BallastFile {
    fn of(dir: &Path) -> BallastFile {
        BallastFile { dir: dir.to_owned(), path: dir.join(BALLAST) }
    }
}

impl Ballast for BallastFile {
    fn free(&self) -> io::Result<u64> {
        Ok(space::space(&self.dir)?.free)
    }

    fn held(&self) -> (u64, u64) {
        fs::metadata(&self.path).map_or((0, 0), |found| (found.len().min(found.blocks() * 512), found.len()))
    }

    fn make(&self, stays: u64, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
        file.set_len(stays)?;
        fill(&file, stays, bytes)
    }

    fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    fn place(&self) -> &Path {
        &self.dir
    }
}

/// Gives the reserve of a directory up if the disk is full, so that the engine can open its files. Before anything else
/// touches them.
pub fn give_up_if_full(dir: &Path) {
    give_up(&BallastFile::of(dir), SLED_OPENS_WITH, OPENING);
}

/// The same of any reserve, for an engine that may need so many bytes to open, and must have some of them.
pub fn give_up(ballast: &dyn Ballast, engine: u64, least: u64) {
    let (bytes, _) = ballast.held();
    if bytes == 0 || ballast.free().is_ok_and(|free| free >= engine.min(bytes).max(least)) {
        return;
    }
    let dir = ballast.place().display();
    match ballast.remove() {
        Ok(()) => tracing::warn!(%dir, bytes, "the disk is full: the reserve is given up until there is room"),
        Err(error) => tracing::warn!(%dir, %error, "the disk is full, and the reserve cannot be given up"),
    }
}

/// Whether there is room for an engine to open. If the free space is not known, the answer is yes.
pub fn room_to_open(dir: &Path) -> io::Result<()> {
    match space::space(dir) {
        Ok(Space { free, .. }) if free < OPENING => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("its volume has {free} bytes free, and opening the log takes {OPENING}: make room on it"),
        )),
        _ => Ok(()),
    }
}

/// Removes it, for a directory that no node runs in: the next start makes it again.
pub fn remove(dir: &Path) -> io::Result<()> {
    match BallastFile::of(dir).remove() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Real blocks: a hole would keep no room. Not synced: after a crash without it the next look makes it again.
fn fill(mut file: &File, from: u64, to: u64) -> io::Result<()> {
    if from == to || fallocate(file.as_fd(), FallocateFlags::empty(), from, to - from).is_ok() {
        return Ok(());
    }
    // A filesystem that cannot set blocks aside has to be given something to store.
    file.set_len(from)?;
    file.seek(SeekFrom::Start(from))?;
    for _ in 0..(to - from).div_ceil(BLOCK.len() as u64) {
        file.write_all(&BLOCK)?;
    }
    file.set_len(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const PLENTY: u64 = 1 << 40;

    fn bounds(bytes: u64) -> ReserveBounds {
        ReserveBounds { engine: SLED_OPENS_WITH, bytes, max_bytes: 4 * MIB, short_below: MIB }
    }

    fn blocks(dir: &Path) -> (u64, bool) {
        fs::metadata(dir.join(BALLAST)).map_or((0, true), |found| (found.len(), found.blocks() * 512 >= found.len()))
    }

    #[test]
    fn it_is_of_real_blocks_and_made_again_when_it_is_missing_or_cut() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path(), bounds(MIB));
        let damages: [fn(&Path); 4] = [
            |_| {},
            |path| fs::remove_file(path).unwrap(),
            |path| fs::write(path, "x").unwrap(),
            |path| File::create(path).unwrap().set_len(MIB).unwrap(),
        ];
        for damage in damages {
            damage(&dir.path().join(BALLAST));
            reserve.keep(PLENTY);
            assert_eq!(blocks(dir.path()), (MIB, true));
        }
        let space = reserve.space().unwrap();
        assert_eq!((space.reserve, space.reserve_wanted, space.spare()), (MIB, MIB, space.free));
        give_up_if_full(dir.path());
        assert!(dir.path().join(BALLAST).exists(), "this disk is not full");
    }

    /// It never takes the room that the log needs, and grows with what there is.
    #[test]
    fn it_takes_what_there_is_room_for_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path(), bounds(2 * MIB));
        for (free, made) in
            [(0, 0), (SLED_OPENS_WITH, 0), (SLED_OPENS_WITH + MIB + 5, MIB), (SLED_OPENS_WITH + MIB, 2 * MIB)]
        {
            reserve.keep(free);
            assert_eq!(blocks(dir.path()), (made, true), "with {free} bytes free");
        }
        // One that was made with a larger bound gives back what is beyond the present one.
        let found =
            fs::OpenOptions::new().write(true).create(true).truncate(false).open(dir.path().join(BALLAST)).unwrap();
        fill(&found, 0, 9 * MIB).unwrap();
        let bound = Reserve::of(dir.path(), bounds(1 << 60));
        assert_eq!(bound.space().unwrap().reserve_wanted, 4 * MIB);
        bound.keep(0);
        assert_eq!(blocks(dir.path()), (4 * MIB, true), "it gives back, also where nothing is free");
        // A snapshot's room comes on top, up to the bound; and goes again.
        for (snapshot, wanted) in [(MIB, 3 * MIB), (9 * MIB, 4 * MIB), (0, 2 * MIB)] {
            reserve.hold_snapshot(snapshot);
            reserve.keep(PLENTY);
            assert_eq!(blocks(dir.path()), (wanted, true), "for a snapshot of {snapshot} bytes");
        }
    }

    /// The room of a snapshot that the volume cannot hold makes the node neither short of room nor the disk full.
    #[test]
    fn a_reserve_that_cannot_be_whole_leaves_the_log_its_room() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = ReserveBounds { max_bytes: u64::MAX, short_below: 40 * MIB, ..bounds(MIB) };
        let reserve = Reserve::of(dir.path(), bounds);
        reserve.hold_snapshot(1 << 60);
        assert!(!reserve.is_short(), "{:?}", reserve.space());
        reserve.keep(43 * MIB + 5);
        assert_eq!(blocks(dir.path()), (3 * MIB, true), "what is left free is what counts as short of room");
        reserve.keep(40 * MIB);
        assert_eq!(blocks(dir.path()), (3 * MIB, true), "and no more");
    }

    #[test]
    fn none_is_made_where_none_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path(), ReserveBounds::default());
        reserve.hold_snapshot(MIB);
        reserve.keep(PLENTY);
        assert!(!dir.path().join(BALLAST).exists() && !reserve.is_short() && reserve.lend().is_none());
    }

    /// What is borrowed is no room to grow, and comes back when the last borrower is done.
    #[test]
    fn what_is_lent_counts_as_missing_and_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path(), bounds(2 * MIB));
        reserve.keep(PLENTY);
        let (first, second) = (reserve.lend().unwrap(), reserve.lend().unwrap());
        let space = reserve.space().unwrap();
        assert_eq!((space.reserve, space.spare()), (0, space.free - 2 * MIB));
        drop(first);
        reserve.keep(PLENTY);
        assert_eq!(blocks(dir.path()).0, 0, "one of them is at work still");
        drop(second);
        reserve.keep(PLENTY);
        assert_eq!(blocks(dir.path()), (2 * MIB, true));
    }

    #[test]
    fn who_makes_room_says_so_until_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path(), bounds(MIB));
        let is_made = || reserve.space().unwrap().being_made;
        let (first, second) = (reserve.make_room(), reserve.make_room());
        drop(first);
        assert!(is_made());
        drop(second);
        assert!(!is_made());
    }

    #[test]
    fn room_is_short_below_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Reserve::of(dir.path(), bounds(MIB)).is_short());
        let all = ReserveBounds { short_below: u64::MAX, ..bounds(MIB) };
        assert!(Reserve::of(dir.path(), all).is_short());
    }
}
