//! The default store: the log in sled 0.34.7, made durable by this file and not by sled.
//!
//! ```text
//!  LogAppender ══bounded channel══▶ worker: take all that waits ─▶ commit: one sled batch ─▶ flush ─▶ fdatasync
//!       ▲                              ─▶ watermark (when a term or vote moved) ─▶ Completed, Completed, ...
//!       └── LogWriter ◀──────────────────────────────────────────────────────────────┘
//!  LogReader ── read lock ──▶ sled          (a batch is applied under the write lock: a read sees it whole or not at all)
//! ```
//!
//! What sled is not trusted with, each measured on this very version (which is why it is pinned):
//!
//! - **Durability.** `flush()` is a write and `sync_file_range`: neither the file's length nor the device's cache. So
//!   after each flush this file calls `sync_data` on a descriptor of its own, opened before sled's first write and
//!   kept: one opened afresh can miss a writeback error that was already reported to another.
//! - **Blob files.** A tree node past a quarter of the segment goes to a file that nothing syncs: the largest
//!   segment, and values bounded by [`super::record::PIECE_MAX`], keep it from happening.
//! - **Telling that it lost something.** It may open empty, or shorter, without an error: see [`super::watermark`].
//! - **Not panicking.** Every call stands under `catch_unwind`. A panic on one of sled's own threads can leave a
//!   caller waiting for ever: the log writer's deadline is for that, and closing has one here.
//!
//! Its timed flush is off (it would report its failures to a log line only), and with it sled's collection of
//! half-empty segments, which runs nowhere else: space comes back when whole segments empty, as they do when a log is
//! truncated or replaced in order. Where that is not enough the log is rewritten into a new directory (see `rewrite`).
//! Its `mode` decides nothing in this version, so none is set.
//!
//! Deliberately absent: the records and their order on the disk (see `plan`, `commit`, `recovery`) and the thread (see
//! `worker`), which are the same for any engine.

#![allow(clippy::disallowed_methods, reason = "a real disk takes real time")]

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use actorum_core::lives::LifeBook;
use actorum_machine::ids::{GroupId, Incarnation, NodeId};
use bytes::Bytes;

use super::{
    commit::Shared,
    directory::{self, Directory},
    engine::{Change, Engine, EngineError, within_time, words},
    lives,
    presence::Presence,
    record::{FoundGroup, Key},
    recovery,
    reserve::{self, Reserve, ReserveBounds},
    rewrite::{self, Renew, Rewriter},
    store::*,
    watermark::Watermark,
    worker::{CommitPolicy, Worker},
};
use crate::snapshot::SnapshotStore;

/// How much of the file sled takes at a time. The largest there is: see above.
const SEGMENT_BYTES: usize = 16 << 20;

/// How a sled store is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenOptions {
    /// The node that opens it. A directory of another is refused.
    pub id: NodeId,
    /// The incarnation that a directory gets if it has to be made; drawn by the caller, for this crate draws no random
    /// numbers.
    pub new_incarnation: Incarnation,
    /// sled's page cache, in bytes. Default 8 MiB: recent entries are served from the core's memory, not from here.
    pub cache_bytes: u64,
    /// How many batches may wait for the store's thread. Default 1024. At the bound `submit` waits: its caller has
    /// broken a bound of its own by then, and an actor that waits does less harm than memory that grows.
    pub max_waiting: usize,
    /// How many bytes of entries one sync may carry, roughly. Default 16 MiB. What is beyond waits for the next.
    pub max_commit_bytes: usize,
    /// The watermark's index follows after at most so many bytes of records. Default 4 MiB; costs one small sync each.
    pub watermark_bytes: u64,
    /// The watermark's index follows after at most so many synced commits. Default 1024.
    pub watermark_commits: u32,
    /// The watermark's index follows after so long without work. Default 200 ms.
    pub watermark_quiet: Duration,
    /// How long opening may take before sled counts as hung. Default 10 minutes: every record is read and checked.
    pub open_within: Duration,
    /// How long dropping the appender waits for the store to close. Default 10 s; after that the store closes in the
    /// background, or never.
    pub close_within: Duration,
    /// How many bytes of reserve to keep beside the log; zero, the default, for none. The newest snapshot's come on
    /// top. See [`super::reserve`].
    pub reserve_bytes: u64,
    /// The largest reserve, however large the snapshot. Default: no bound.
    pub reserve_max_bytes: u64,
    /// With fewer free bytes than this, not counting the reserve, room is short: the log is rewritten as soon as that
    /// frees anything worth it, and the copy may borrow the reserve. Default 0: never.
    pub short_space_bytes: u64,
    /// The log may be rewritten once it takes more than so many bytes on disk. Default 128 MiB; `u64::MAX` for never.
    pub rewrite_min_bytes: u64,
    /// The log is rewritten only if it also takes this many times the bytes of its entries, and twice what the last
    /// rewriting left. Default 4. A rewriting reads and writes every live byte once, and leaves about 2.7 times the
    /// live bytes. Both copies are on the disk until the old one is removed. With 0 it rewrites again and again, for
    /// tests.
    pub rewrite_ratio: u64,
    /// How many bytes a rewriting copies between two commits, which wait for it. Default 2 MiB: some 10 ms on a plain
    /// disk. After a commit of more than half as much it is twice what was committed, or the copy would never catch up
    /// with the log.
    pub rewrite_slice_bytes: usize,
    /// Free bytes that a rewriting leaves to the log. Default 64 MiB. A rewriting is given up if fewer are free, or if
    /// two segments of the engine and a slice do not fit. It begins only if, after four times the bytes of the entries,
    /// five times this value stays free. A quarter of the low-space mark keeps a rewriting from making the node low on
    /// space.
    pub rewrite_reserve_bytes: u64,
    /// How long after a failed rewriting the next one is tried. Default one minute; doubled each time, up to an hour.
    pub rewrite_retry: Duration,
}

impl OpenOptions {
    /// The defaults, for a node and the incarnation of its directory should it have to be made.
    pub fn new(id: NodeId, new_incarnation: Incarnation) -> OpenOptions {
        OpenOptions {
            id,
            new_incarnation,
            cache_bytes: 8 << 20,
            max_waiting: 1024,
            max_commit_bytes: 16 << 20,
            watermark_bytes: 4 << 20,
            watermark_commits: 1024,
            watermark_quiet: Duration::from_millis(200),
            open_within: Duration::from_secs(600),
            close_within: Duration::from_secs(10),
            reserve_bytes: 0,
            reserve_max_bytes: u64::MAX,
            short_space_bytes: 0,
            rewrite_min_bytes: 128 << 20,
            rewrite_ratio: 4,
            rewrite_slice_bytes: 2 << 20,
            rewrite_reserve_bytes: 64 << 20,
            rewrite_retry: Duration::from_secs(60),
        }
    }

    fn reserve_bounds(&self) -> ReserveBounds {
        let OpenOptions { reserve_bytes: bytes, reserve_max_bytes: max_bytes, short_space_bytes: short_below, .. } =
            *self;
        ReserveBounds { engine: reserve::SLED_OPENS_WITH, bytes, max_bytes, short_below }
    }

    /// When a rewriting is worth it, and how much at once.
    pub(super) fn rewrite_policy(&self) -> rewrite::RewritePolicy {
        let OpenOptions { rewrite_min_bytes: min_bytes, rewrite_ratio: ratio, .. } = *self;
        let OpenOptions { rewrite_slice_bytes: slice_bytes, rewrite_retry: retry, .. } = *self;
        // One that is being written, and the next.
        let (reserve_bytes, aside_bytes) = (self.rewrite_reserve_bytes, 2 * SEGMENT_BYTES as u64);
        rewrite::RewritePolicy { min_bytes, ratio, slice_bytes, retry, reserve_bytes, aside_bytes }
    }
}

/// How a directory's engines are opened, and how one takes the place of another.
pub(super) trait Engines<E>: Send + Sync {
    /// Opens or makes the engine in `path`, which must be a directory.
    fn open(&self, path: &Path, options: &OpenOptions) -> Result<E, EngineError>;

    /// The steps by which a rewriting puts a new engine in the place of the present one.
    fn renew(&self, generations: Generations<E>) -> Box<dyn Renew<E>>;
}

/// sled's engines, as they are.
pub(super) struct Sled;

impl Engines<SledEngine> for Sled {
    fn open(&self, path: &Path, options: &OpenOptions) -> Result<SledEngine, EngineError> {
        SledEngine::open(path, options)
    }

    fn renew(&self, generations: Generations<SledEngine>) -> Box<dyn Renew<SledEngine>> {
        Box::new(generations)
    }
}

/// An open directory, not yet running. Its engine is sled, or in tests what decorates sled.
pub struct SledStore<E: Engine = SledEngine> {
    dir: PathBuf,
    presence: Arc<Presence>,
    reserve: Arc<Reserve>,
    snapshot_store: Arc<SnapshotStore>,
    shared: Arc<Shared<E>>,
    engines: Arc<dyn Engines<E>>,
    lives: Arc<LifeBook>,
    identity: StoreIdentity,
    found: BTreeMap<GroupId, FoundGroup>,
    generation: u64,
    // Taken by `start`.
    work: Option<(Watermark, OpenOptions)>,
}

impl SledStore {
    /// Takes the directory, making it if there is none, and checks every record in it and the whole against the
    /// watermark.
    pub fn open(dir: &Path, options: OpenOptions) -> Result<SledStore, OpenError> {
        SledStore::open_with(dir, options, Arc::new(Sled))
    }
}

impl<E: Engine> SledStore<E> {
    /// The same, with these engines.
    pub(super) fn open_with(
        dir: &Path,
        options: OpenOptions,
        engines: Arc<dyn Engines<E>>,
    ) -> Result<SledStore<E>, OpenError> {
        let (path, within) = (dir.to_owned(), options.open_within);
        // On a thread of its own: a panic on one of sled's threads can leave its caller waiting for ever.
        let opened = within_time("actorum-open", within, move || SledStore::open_here(&path, options, engines));
        let damaged = |detail: String| OpenError::Damaged { dir: dir.to_owned(), what: "the log".to_owned(), detail };
        match opened {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(damaged(format!("the storage engine panicked: {panic}"))),
            Err(cause) => Err(damaged(format!("the storage engine did not open it: {cause}"))),
        }
    }

    fn open_here(dir: &Path, options: OpenOptions, engines: Arc<dyn Engines<E>>) -> Result<SledStore<E>, OpenError> {
        let OpenOptions { id, new_incarnation, .. } = options;
        let mut made = None;
        let mut directory = Directory::open(dir, id, new_incarnation, |node| {
            made = Some(create(dir, node, &*engines, &options)?);
            Ok(())
        })?;
        let identity = directory.identity();
        // What is refused is left as it was: looked at before the engine opens and the boot is counted.
        lives::judge(dir, &identity, directory.life())?;
        let opened = Watermark::open(&directory::watermark_path(dir));
        let mut watermark = recovery::of_this_life(dir, &identity, opened)?;
        let generation = directory::generation(dir).map_err(|error| {
            let doing = "cannot tell which of its logs counts".to_owned();
            OpenError::Io { dir: dir.to_owned(), doing, error }
        })?;
        let path = directory::log_path(dir, generation);
        let engine = match made {
            Some(engine) => engine,
            None if !path.join("db").exists() => {
                return Err(recovery::rolled_back(dir, "no log at all", &watermark));
            }
            None => {
                // Under the lock: the reserve of a node that runs is its own.
                reserve::give_up_if_full(dir);
                directory::sync_generation(dir, generation).map_err(|error| {
                    let doing = "cannot make durable which of its logs counts".to_owned();
                    OpenError::Io { dir: dir.to_owned(), doing, error }
                })?;
                // Before the engine, which writes when it opens: what fills the disk may be half a rewriting.
                directory::sweep_above(dir, generation);
                reserve::room_to_open(dir).map_err(|error| {
                    let doing = "cannot open the log".to_owned();
                    OpenError::Io { dir: dir.to_owned(), doing, error }
                })?;
                engines.open(&path, &options).map_err(|error| error.on_open(dir))?
            }
        };
        let found = recovery::recover(&engine, dir, &identity, &mut watermark)?;
        directory.count_boot()?;
        // Only now: if a directory is refused, all that was ever its log is left as it was, for a person to judge.
        directory::sweep(dir, generation);
        let identity = directory.identity();
        let doing = "cannot open snapshots".to_owned();
        let snapshot_store = SnapshotStore::in_directory(&directory::snapshots_path(dir));
        let snapshot_store =
            Arc::new(snapshot_store.map_err(|error| OpenError::Io { dir: dir.to_owned(), doing, error })?);
        let presence = Presence::of(dir).map_err(|error| {
            let doing = "cannot look at what was opened".to_owned();
            OpenError::Io { dir: dir.to_owned(), doing, error }
        })?;
        // Promise 6: the nonce of this opening is durable before anybody can send a frame.
        let recovered = found.groups.get(&GroupId::FIRST).map(|found| &found.recovered);
        let lives = lives::begin(dir, &identity, recovered)?;
        let newest = lives.shown().last().map(|life| life.key());
        newest.map_or(Ok(()), |life| directory.record_life(life))?;
        let lock = lives::Held { book: lives.clone(), _directory: directory };
        let shared = Shared::new(engine, &found, Box::new(lock));
        let reserve = Reserve::of(dir, options.reserve_bounds());
        let (dir, presence, work) = (dir.to_owned(), Arc::new(presence), Some((watermark, options)));
        Ok(SledStore {
            dir,
            presence,
            reserve,
            snapshot_store,
            shared,
            engines,
            lives,
            identity,
            found: found.groups,
            generation,
            work,
        })
    }
}

/// Makes the log and the watermark of a new directory, durable when it returns.
fn create<E: Engine>(
    dir: &Path,
    node: &StoreIdentity,
    engines: &dyn Engines<E>,
    options: &OpenOptions,
) -> Result<E, OpenError> {
    let io = |doing: &str| {
        let doing = doing.to_owned();
        move |error| OpenError::Io { dir: dir.to_owned(), doing, error }
    };
    let path = directory::log_path(dir, 0);
    directory::make_durably(&path).map_err(io("cannot make log"))?;
    reserve::room_to_open(dir).map_err(io("cannot open the log"))?;
    let engine = engines.open(&path, options).map_err(|error| error.on_open(dir))?;
    recovery::claim(&engine, dir, node)?;
    sync_names(&path).map_err(io("cannot sync the log's files"))?;
    Watermark::create(&directory::watermark_path(dir), node.incarnation).map_err(io("cannot write watermark"))?;
    Ok(engine)
}

/// sled never syncs its `conf`, nor the names of its files: once, here, before anything can be promised.
fn sync_names(path: &Path) -> io::Result<()> {
    for name in ["conf", "blobs"] {
        File::open(path.join(name))?.sync_all()?;
    }
    directory::sync_dir(path)
}

/// The generations of a directory's log, for a rewriting.
pub(super) struct Generations<E> {
    dir: PathBuf,
    engines: Arc<dyn Engines<E>>,
    options: OpenOptions,
    reserve: Arc<Reserve>,
    present: u64,
    /// The one that is being made, or the next one to be: no number comes twice in one life, for its files may still be
    /// going.
    next: u64,
    /// What goes next, if anything does.
    leaving: Option<u64>,
}

impl<E> Generations<E> {
    pub(super) fn new(
        dir: PathBuf,
        engines: Arc<dyn Engines<E>>,
        options: OpenOptions,
        present: u64,
        reserve: Arc<Reserve>,
    ) -> Generations<E> {
        Generations { dir, engines, options, reserve, present, next: present, leaving: None }
    }

    fn io(&self, doing: &str) -> impl Fn(io::Error) -> EngineError + use<E> {
        let doing = format!("{doing} the log's generation {}", self.next);
        move |error| EngineError::Io { doing: doing.clone(), error }
    }
}

impl<E> Renew<E> for Generations<E> {
    fn make(&mut self) -> Result<E, EngineError> {
        // A directory that is there already is never filled: what an open could not sweep may still be in it.
        let there = directory::generations(&self.dir).map_err(self.io("making"))?;
        self.next = there.last().copied().unwrap_or_default().max(self.next) + 1;
        self.leaving = Some(self.next);
        let path = directory::log_path(&self.dir, self.next);
        directory::make_durably(&path).map_err(self.io("making"))?;
        self.engines.open(&path, &self.options)
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        sync_names(&directory::log_path(&self.dir, self.next)).map_err(self.io("syncing"))
    }

    fn complete(&mut self) -> Result<(), EngineError> {
        directory::complete(&self.dir, self.next).map_err(self.io("completing"))
    }

    fn uncomplete(&mut self) -> Result<(), EngineError> {
        directory::uncomplete(&self.dir, self.next).map_err(self.io("giving up"))
    }

    fn switched(&mut self) {
        (self.leaving, self.present) = (Some(self.present), self.next);
    }

    fn remove(&mut self) -> Box<dyn FnOnce() + Send> {
        let (dir, leaving) = (self.dir.clone(), self.leaving.take());
        assert_ne!(leaving, Some(self.present), "the log itself is never removed");
        Box::new(move || {
            let Some(leaving) = leaving else { return };
            if let Err(error) = directory::remove_generation(&dir, leaving) {
                tracing::warn!(dir = %dir.display(), leaving, %error, "what a rewriting has left cannot be removed");
            }
        })
    }

    fn room(&self) -> Option<u64> {
        self.reserve.free().ok()
    }

    fn is_short(&self) -> bool {
        self.reserve.is_short()
    }

    fn watches(&self) -> bool {
        self.reserve.watches()
    }

    fn log_waits_for(&self, needed: u64) {
        self.reserve.log_waits_for(needed);
    }

    fn reserve(&self) -> u64 {
        self.reserve.space().map_or(0, |space| space.reserve)
    }

    fn lend(&self) -> Option<Box<dyn Send>> {
        Some(Box::new(self.reserve.lend()?))
    }

    fn make_room(&self) -> Option<Box<dyn Send>> {
        Some(Box::new(self.reserve.make_room()))
    }
}

impl<E: Engine> LogStore for SledStore<E> {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    fn recover(&self, group: GroupId) -> Result<Recovered, StoreError> {
        Ok(self.found.get(&group).map(|found| found.recovered.clone()).unwrap_or_default())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.shared.clone()
    }

    fn snapshot_store(&self) -> Arc<SnapshotStore> {
        self.snapshot_store.clone()
    }

    fn lives(&self) -> Option<Arc<LifeBook>> {
        Some(self.lives.clone())
    }

    fn probe(&self) -> Option<Arc<dyn Probe>> {
        let (reserve, presence) = (self.reserve.clone(), self.presence.clone());
        let started = super::space::DirectoryProbe::start(&self.dir, reserve, presence);
        started.map(|probe| Arc::new(probe) as Arc<dyn Probe>).ok()
    }

    fn reserve(&self) -> Option<Arc<Reserve>> {
        Some(self.reserve.clone())
    }

    fn start(mut self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        let (watermark, options) = self.work.take().expect("start consumes the store, so it runs once");
        let OpenOptions { max_waiting, max_commit_bytes, close_within, .. } = options;
        let OpenOptions { watermark_bytes, watermark_commits, watermark_quiet, .. } = options;
        let policy = CommitPolicy {
            max_waiting,
            max_commit_bytes,
            watermark_bytes,
            watermark_commits,
            watermark_quiet,
            close_within,
        };
        let when = options.rewrite_policy();
        let (dir, engines, reserve) = (self.dir.clone(), self.engines.clone(), self.reserve.clone());
        let generations = Generations::new(dir, engines, options, self.generation, reserve);
        let rewriter = Rewriter::new(self.engines.renew(generations), when);
        // What failed may have failed because the directory is not there any more: then that is the cause.
        let presence = self.presence.clone();
        let completed = Arc::new(move |Completed { batch_number, result }: Completed| {
            let missed = |error| match error {
                StoreError::Io { .. } => presence.check().err().unwrap_or(error),
                other => other,
            };
            completed(Completed { batch_number, result: result.map_err(missed) });
        });
        Worker::start(self.shared.clone(), watermark, rewriter, policy, completed)
    }
}

impl<E: Engine> Drop for SledStore<E> {
    fn drop(&mut self) {
        if self.work.is_some() {
            // Never started: readers may outlive it, the directory's lock may not.
            drop(self.shared.take("it was closed"));
        }
    }
}

impl<E: Engine> fmt::Debug for SledStore<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// sled itself, behind the trait. No code outside these lines names it. [`SledStore`] opens it.
pub struct SledEngine {
    db: sled::Db,
    /// Ours, for the sync: opened before sled wrote anything. Dropped after `db`.
    file: OwnFile,
}

/// The store's own descriptor of the engine's file.
struct OwnFile(File);

impl Drop for OwnFile {
    /// sled's threads can hold its file, and the lock on it, a moment longer than sled lives. The caller that drops an
    /// engine may open it again at once.
    fn drop(&mut self) {
        for _ in 0..200 {
            if self.0.try_lock().is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        tracing::warn!("the storage engine still holds its file");
    }
}

impl SledEngine {
    /// Opens or makes the engine in `path`, which must be a directory.
    pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<SledEngine, EngineError> {
        let io = |doing: &str| {
            let doing = doing.to_owned();
            move |error| EngineError::Io { doing, error }
        };
        let name = path.join("db");
        let mut open = fs::OpenOptions::new();
        let file = open.read(true).write(true).create(true).truncate(false).open(name).map_err(io("opening log/db"))?;
        // A sync that failed in an earlier life leaves pages that look clean and are not on the disk: what is read
        // from now on comes from the disk. Best effort; what is dirty stays.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        let config = sled::Config::new()
            .path(path)
            .flush_every_ms(None)
            .cache_capacity(options.cache_bytes)
            .segment_size(SEGMENT_BYTES);
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        let db = match opened {
            Ok(opened) => opened.map_err(|error| failed("opening", error))?,
            Err(panic) => return Err(EngineError::Panicked(words(panic))),
        };
        // sled replaced its own snapshot file, by a rename that it does not make durable.
        directory::sync_dir(path).map_err(io("syncing log"))?;
        Ok(SledEngine { db, file: OwnFile(file) })
    }
}

impl fmt::Debug for SledEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledEngine").finish_non_exhaustive()
    }
}

fn failed(doing: &str, error: sled::Error) -> EngineError {
    match error {
        sled::Error::Io(error) => EngineError::Io { doing: format!("{doing} log"), error },
        other => EngineError::Broken { what: "the log".to_owned(), detail: other.to_string() },
    }
}

impl Engine for SledEngine {
    fn apply(&self, changes: Vec<Change>) -> Result<(), EngineError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&key.encode(), value),
                None => batch.remove(&key.encode()),
            }
        }
        self.db.apply_batch(batch).map_err(|error| failed("writing", error))
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.db.flush().map(drop).map_err(|error| failed("flushing", error))
    }

    fn sync(&self) -> Result<(), EngineError> {
        let failed = |error| EngineError::Io { doing: "syncing log/db".to_owned(), error };
        self.file.0.sync_data().map_err(failed)?;
        // Promise 1: what is in a file without a name is gone with this process, however well it was synced.
        match self.file.0.metadata().map_err(failed)?.nlink() {
            0 => Err(failed(io::Error::new(io::ErrorKind::NotFound, "it was deleted while it was open"))),
            _ => Ok(()),
        }
    }

    fn each(&self, give: &mut dyn FnMut(&[u8], Bytes)) -> Result<(), EngineError> {
        let given = catch_unwind(AssertUnwindSafe(|| {
            for pair in self.db.iter() {
                let (key, value) = pair.map_err(|error| failed("reading", error))?;
                give(&key, Bytes::copy_from_slice(&value));
            }
            Ok(())
        }));
        given.unwrap_or_else(|panic| Err(EngineError::Panicked(words(panic))))
    }

    fn keys(&self, from: Key, to: Key, max: usize) -> Result<Vec<Key>, EngineError> {
        let range = self.db.range(from.encode()..to.encode());
        range
            .keys()
            .take(max)
            .map(|key| {
                let key = key.map_err(|error| failed("reading", error))?;
                Key::decode(&key).ok_or_else(|| EngineError::Broken {
                    what: "the log".to_owned(),
                    detail: "a key of no known form".to_owned(),
                })
            })
            .collect()
    }

    fn values(&self, from: Key, to: Key, max_bytes: usize) -> Result<Vec<(Key, Bytes)>, EngineError> {
        let (mut values, mut bytes) = (Vec::new(), 0usize);
        for pair in self.db.range(from.encode()..to.encode()) {
            let (key, value) = pair.map_err(|error| failed("reading", error))?;
            let unknown =
                || EngineError::Broken { what: "the log".to_owned(), detail: "a key of no known form".to_owned() };
            let key = Key::decode(&key).ok_or_else(unknown)?;
            bytes = bytes.saturating_add(value.len());
            if bytes > max_bytes && !values.is_empty() {
                break;
            }
            values.push((key, Bytes::copy_from_slice(&value)));
        }
        Ok(values)
    }

    fn last_before(&self, key: Key) -> Result<Option<Key>, EngineError> {
        let before = self.db.get_lt(key.encode()).map_err(|error| failed("reading", error))?;
        Ok(before.and_then(|(key, _)| Key::decode(&key)))
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>, EngineError> {
        let value = self.db.get(key.encode()).map_err(|error| failed("reading", error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn disk_bytes(&self) -> u64 {
        let Ok(metadata) = self.file.0.metadata() else { return 0 };
        #[cfg(unix)]
        return std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        #[cfg(not(unix))]
        metadata.len()
    }
}

#[cfg(test)]
#[path = "sled_tests.rs"]
mod tests;
