//! The default store: the log in sled 0.34.7, made durable by this file and not by sled.
//!
//! ```text
//!  LogAppender ══bounded channel══▶ store thread: take all that waits ─▶ one sled batch ─▶ flush ─▶ fdatasync
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
//!   segment, and values bounded by [`record::PIECE_MAX`], keep it from happening.
//! - **Telling that it lost something.** It may open empty, or shorter, without an error: see [`super::watermark`].
//! - **Not panicking.** Every call stands under `catch_unwind`. A panic on one of sled's own threads can leave a
//!   caller waiting for ever: the log writer's deadline is for that, and closing has one here.
//!
//! Its timed flush is off (it would report its failures to a log line only), and with it sled's collection of
//! half-empty segments, which runs nowhere else: space comes back when whole segments empty, as they do when a log is
//! truncated or replaced in order. Its `mode` decides nothing in this version, so none is set.
//!
//! Deliberately absent: retries. After an error nothing on the disk is known any more; the store answers
//! [`StoreError::Closed`] until the process opens it again.

use std::{
    any::Any,
    collections::{BTreeMap, btree_map},
    fmt,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use actorum_transport::wire::{Entry, GroupId, Incarnation, NodeId, Snapshot};
use bytes::Bytes;

use super::{
    directory::{self, Directory},
    record::{self, Assembled, Assembly, Found, FoundGroup, Key, Kind, Owner, Piece, Scan},
    store::*,
    watermark::{Mark, Watermark, WatermarkError},
};

/// How a sled store is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenOptions {
    /// The node that opens it. A directory of another is refused.
    pub id: NodeId,
    /// The incarnation that a directory gets if it has to be made; drawn by the caller, for this crate rolls no dice.
    pub new_incarnation: Incarnation,
    /// sled's page cache, in bytes. Default 8 MiB: recent entries are served from the core's memory, not from here.
    pub cache_bytes: u64,
    /// How many batches may wait for the store's thread. Default 1024. At the bound `submit` waits: its caller has broken a
    /// bound of its own by then, and an actor that waits does less harm than memory that grows.
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
    /// How long dropping the appender waits for the store to close. Default 10 s; then it closes behind our back, or never.
    pub close_within: Duration,
    /// How many bytes of ballast to keep beside the log; zero, the default, for none. See [`super::space`].
    pub ballast_bytes: u64,
    /// Whether to sync at all. Exists only with the feature `faults`, for the harness that must see the loss.
    #[cfg(feature = "faults")]
    #[doc(hidden)]
    pub sync: SyncPolicy,
}

/// Whether what is reported durable is.
#[cfg(feature = "faults")]
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncPolicy {
    /// As in every normal build.
    #[default]
    Always,
    /// sled's own flush alone: loses acknowledged writes at a power cut.
    FlushOnly,
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
            ballast_bytes: 0,
            #[cfg(feature = "faults")]
            sync: SyncPolicy::Always,
        }
    }
}

/// An open directory, not yet running.
pub struct SledStore {
    shared: Arc<Shared>,
    identity: StoreIdentity,
    found: BTreeMap<GroupId, FoundGroup>,
    // Taken by `start`.
    work: Option<(Watermark, OpenOptions)>,
}

impl SledStore {
    /// Takes the directory, making it if there is none, and checks every record in it and the whole against the watermark.
    pub fn open(dir: &Path, options: OpenOptions) -> Result<SledStore, OpenError> {
        let (path, within) = (dir.to_owned(), options.open_within);
        // On a thread of its own: a panic on one of sled's threads can leave its caller waiting for ever.
        let opened = within_time("actorum-open", within, move || SledStore::open_here(&path, options));
        let damaged = |detail: String| OpenError::Damaged { dir: dir.to_owned(), what: "the log".to_owned(), detail };
        match opened {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(damaged(format!("the storage engine panicked: {panic}"))),
            Err(cause) => Err(damaged(format!("the storage engine did not open it: {cause}"))),
        }
    }

    fn open_here(dir: &Path, options: OpenOptions) -> Result<SledStore, OpenError> {
        let OpenOptions { id, new_incarnation, .. } = options;
        super::space::free_ballast_if_full(dir);
        let mut made = None;
        let mut directory = Directory::open(dir, id, new_incarnation, |node| {
            made = Some(create(dir, node, &options)?);
            Ok(())
        })?;
        let identity = directory.identity();
        let watermark = Watermark::open(&directory::watermark_path(dir)).map_err(|error| match error {
            WatermarkError::Io(error) => {
                OpenError::Io { dir: dir.to_owned(), doing: "cannot read watermark".to_owned(), error }
            }
            other => {
                OpenError::Damaged { dir: dir.to_owned(), what: "watermark".to_owned(), detail: other.to_string() }
            }
        })?;
        let promised = &watermark.marks().incarnation;
        if *promised != identity.incarnation {
            let detail = format!("it belongs to incarnation {promised}, the directory to {}", identity.incarnation);
            return Err(OpenError::Damaged { dir: dir.to_owned(), what: "watermark".to_owned(), detail });
        }
        if let Some(detail) = watermark.damaged_slot() {
            // Expected once after a crash in the middle of a write to it; what remains is the state before that write.
            tracing::warn!(dir = %dir.display(), detail, "one slot of the watermark is damaged, the other is used");
        }
        let engine = match made {
            Some(engine) => engine,
            None if !engine_file(dir).exists() => return Err(rolled_back(dir, "no log at all", &watermark)),
            None => Engine::open(&directory::log_path(dir), &options).map_err(|error| error.on_open(dir))?,
        };
        let found = engine.scan().map_err(|error| error.on_open(dir))?;
        check(dir, &identity, &found, &watermark)?;
        directory.count_boot()?;
        let logs = found.groups.iter().map(|(group, found)| (*group, Log::new(*group, found))).collect();
        let open = Open { engine, logs, _directory: directory };
        let identity = open._directory.identity();
        Ok(SledStore {
            shared: Arc::new(Shared { state: RwLock::new(Ok(open)), bytes: AtomicU64::new(0) }),
            identity,
            found: found.groups,
            work: Some((watermark, options)),
        })
    }
}

/// Makes the log and the watermark of a new directory, durable when it returns.
fn create(dir: &Path, node: &StoreIdentity, options: &OpenOptions) -> Result<Engine, OpenError> {
    let io = |doing: &str| {
        let doing = doing.to_owned();
        move |error| OpenError::Io { dir: dir.to_owned(), doing, error }
    };
    let path = directory::log_path(dir);
    directory::make_durably(&path).map_err(io("cannot make log"))?;
    let engine = Engine::open(&path, options).map_err(|error| error.on_open(dir))?;
    let mut pieces = Vec::new();
    let owner = Owner { id: node.id, incarnation: node.incarnation };
    record::seal(Key::OWNER, 0, &record::encode_owner(&owner), &mut pieces);
    engine.apply(pieces.into_iter().map(|(key, value)| (key, Some(value)))).map_err(|error| error.on_open(dir))?;
    engine.flush().and_then(|()| engine.sync()).map_err(|error| error.on_open(dir))?;
    // sled never syncs its `conf`, nor the names of its files: once, here, before anything can be promised.
    for name in ["conf", "blobs"] {
        File::open(path.join(name)).and_then(|f| f.sync_all()).map_err(io("cannot sync the log's files"))?;
    }
    directory::sync_dir(&path).map_err(io("cannot sync log"))?;
    Watermark::create(&directory::watermark_path(dir), node.incarnation).map_err(io("cannot write watermark"))?;
    Ok(engine)
}

/// Whether what the store holds is intact, this node's, and not less than it once made durable.
fn check(dir: &Path, node: &StoreIdentity, found: &Found, watermark: &Watermark) -> Result<(), OpenError> {
    if let Some(problem) = found.problems.first() {
        let (what, detail) = (problem.what.clone(), problem.detail.clone());
        return Err(OpenError::Damaged { dir: dir.to_owned(), what, detail });
    }
    match &found.owner {
        None => return Err(rolled_back(dir, "an empty log", watermark)),
        Some(owner) if *owner != (Owner { id: node.id, incarnation: node.incarnation }) => {
            let detail = format!("it says node {}, incarnation {}", owner.id, owner.incarnation);
            return Err(OpenError::Damaged { dir: dir.to_owned(), what: Key::OWNER.to_string(), detail });
        }
        Some(_) => {}
    }
    let nothing = Recovered::default();
    for (group, promised) in &watermark.marks().groups {
        let holds = found.groups.get(group).map_or(&nothing, |found| &found.recovered);
        if let Some(found) = behind(holds, promised) {
            return Err(OpenError::RolledBack { dir: dir.to_owned(), found, promised: promised.to_string() });
        }
    }
    Ok(())
}

fn rolled_back(dir: &Path, found: &str, watermark: &Watermark) -> OpenError {
    let marks: Vec<String> = watermark.marks().groups.values().map(Mark::to_string).collect();
    let promised = if marks.is_empty() { "the log's owner".to_owned() } else { marks.join("; ") };
    OpenError::RolledBack { dir: dir.to_owned(), found: found.to_owned(), promised }
}

/// What a log holds less than was promised, if it does.
pub(super) fn behind(holds: &Recovered, promised: &Mark) -> Option<String> {
    let HardState { term, vote, .. } = holds.hard_state;
    if term < promised.term {
        return Some(format!("term {term}"));
    }
    if term == promised.term && promised.vote != 0 && vote != promised.vote {
        return Some(format!("vote {vote} in term {term}"));
    }
    if holds.last_index < promised.index {
        return Some(format!("a log up to index {}", holds.last_index));
    }
    match holds.term_at(promised.index) {
        Some(term) if term != promised.index_term => Some(format!("another entry, {}", At(promised.index, term))),
        _ => None, // the same, or inside the snapshot, which holds only what was committed
    }
}

impl LogStore for SledStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    fn recover(&self, group: GroupId) -> Result<Recovered, StoreError> {
        Ok(self.found.get(&group).map(|found| found.recovered.clone()).unwrap_or_default())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.shared.clone()
    }

    fn probe(&self) -> Option<Arc<dyn Probe>> {
        let dir = self.shared.read().as_ref().ok()?._directory.path().to_owned();
        let started = super::space::DirectoryProbe::start(&dir, self.work.as_ref()?.1.ballast_bytes);
        started.map(|probe| Arc::new(probe) as Arc<dyn Probe>).ok()
    }

    fn start(mut self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        let (watermark, options) = self.work.take().expect("start consumes the store, so it runs once");
        let (submit, submitted) = sync_channel(options.max_waiting.max(1));
        let (done, closed) = sync_channel(1);
        let close_within = options.close_within;
        let worker = Worker::new(self.shared.clone(), watermark, options, completed.clone());
        let spawned = thread::Builder::new().name("actorum-store".to_owned()).spawn(move || {
            worker.run(submitted);
            let _ = done.send(());
        });
        if let Err(error) = spawned {
            // Every submit finds the channel closed and says so.
            drop(self.shared.take(&format!("its thread could not be started: {error}")));
        }
        Box::new(SledAppender { submit: Some(submit), next: 0, completed, closed, close_within })
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        if self.work.is_some() {
            drop(self.shared.take("it was closed")); // never started: readers may outlive it, the directory's lock may not
        }
    }
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What the store's thread and the readers share.
struct Shared {
    state: RwLock<Result<Open, String>>,
    bytes: AtomicU64,
}

/// An engine, what is known of its logs, and the lock that makes it ours: dropped together, in this order.
struct Open {
    engine: Engine,
    logs: BTreeMap<GroupId, Log>,
    _directory: Directory,
}

impl Shared {
    // Poisoning is passed over on purpose: a panic under the lock is caught above it and kills the store by name.
    fn read(&self) -> RwLockReadGuard<'_, Result<Open, String>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Result<Open, String>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the store for its readers. What was open is the caller's to drop, which closes sled and gives the
    /// directory's lock back: outside the lock here, for sled flushes then, which can hang.
    fn take(&self, cause: &str) -> Option<Open> {
        std::mem::replace(&mut *self.write(), Err(cause.to_owned())).ok()
    }
}

impl LogReader for Shared {
    fn entries(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let state = self.read();
        let open = state.as_ref().map_err(|cause| StoreError::Closed(cause.clone()))?;
        if from >= to {
            return Ok(Vec::new());
        }
        let log = open.logs.get(&group).copied().unwrap_or_default();
        if from < log.first() || to > log.last.0 + 1 {
            let detail =
                format!("entries {from} to {} were asked for, it holds {} to {}", to - 1, log.first(), log.last.0);
            return Err(StoreError::Damaged { what: format!("group {}: the log", group.0), detail });
        }
        caught(|| read_entries(&open.engine, group, from, to, max_bytes))
    }

    fn disk_bytes(&self) -> u64 {
        // A status waits for no disk: while the store's thread hangs with the lock, the last number has to do.
        if let Ok(state) = self.state.try_read() {
            self.bytes.store(state.as_ref().map_or(0, |open| open.engine.disk_bytes()), Ordering::Relaxed);
        }
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What the store's thread knows of one log without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Log {
    /// Index and term of the snapshot it follows; zero without one.
    base: (u64, u64),
    /// Index and term of its last entry, or of the base.
    last: (u64, u64),
    /// What the next block names as its predecessor.
    tail: u32,
    hard_state: HardState,
}

impl Log {
    fn empty(group: GroupId) -> Log {
        Log { tail: record::anchor(group, 0, 0), ..Log::default() }
    }

    fn new(group: GroupId, found: &FoundGroup) -> Log {
        let recovered = &found.recovered;
        let Some((first, last)) = recovered.terms.first().zip(recovered.terms.last()) else {
            return Log { hard_state: recovered.hard_state, ..Log::empty(group) };
        };
        let base = if recovered.snapshot.is_some() { *first } else { (0, 0) };
        Log { base, last: (recovered.last_index, last.1), tail: found.tail, hard_state: recovered.hard_state }
    }

    fn first(&self) -> u64 {
        self.base.0 + 1
    }
}

/// Several writes of one group as one: what they leave behind when each follows the other.
#[derive(Default)]
struct Staged {
    snapshot: Option<Snapshot>,
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
}

impl Staged {
    /// Adds the next write of a group whose log is `log` before all of them.
    fn add(&mut self, log: &Log, write: Write) -> Result<(), StoreError> {
        let Write { group, snapshot, mut entries, hard_state } = write;
        if let Some(snapshot) = snapshot {
            self.entries.clear();
            self.snapshot = Some(snapshot);
        }
        if let Some(first) = entries.first().map(|entry| entry.index) {
            let base = self.snapshot.as_ref().map_or(log.base.0, |snapshot| snapshot.index);
            let end = match (self.entries.last(), &self.snapshot) {
                (Some(entry), _) => entry.index,
                (None, Some(snapshot)) => snapshot.index,
                (None, None) => log.last.0,
            };
            if first <= base || first > end + 1 {
                return Err(misuse(group, format!("an append at {first} to a log of {} to {end}", base + 1)));
            }
            if let Some(gap) = entries.iter().zip(first..).find(|(entry, index)| entry.index != *index) {
                return Err(misuse(group, format!("an append with entry {} in the place of {}", gap.0.index, gap.1)));
            }
            match self.entries.first().map(|mine| mine.index) {
                None => self.entries = entries,
                Some(mine) if first <= mine => self.entries = entries,
                Some(mine) => {
                    self.entries.truncate((first - mine) as usize);
                    self.entries.append(&mut entries);
                }
            }
        }
        self.hard_state = hard_state.or(self.hard_state);
        Ok(())
    }
}

fn misuse(group: GroupId, detail: String) -> StoreError {
    StoreError::Damaged { what: format!("group {}: a batch", group.0), detail }
}

/// One change to the engine: a value, or its removal.
type Change = (Key, Option<Vec<u8>>);

/// What one group's part of a commit does.
struct Plan {
    changes: BTreeMap<Key, Option<Vec<u8>>>,
    /// The log afterwards.
    after: Log,
    /// Index and term of the last entry of the old log that stays; `None` if the old log goes altogether.
    kept: Option<(u64, u64)>,
}

impl Plan {
    fn put(&mut self, pieces: Vec<Piece>) {
        self.changes.extend(pieces.into_iter().map(|(key, value)| (key, Some(value))));
    }

    /// Works out how the records of a group change. Reads only what a truncation cuts through.
    fn new(engine: &Engine, group: GroupId, log: &Log, staged: Staged) -> Result<Plan, StoreError> {
        let mut plan = Plan { changes: BTreeMap::new(), after: *log, kept: Some(log.last) };
        let mut pieces = Vec::new();
        if let Some(snapshot) = &staged.snapshot {
            for kind in [Kind::Snapshot, Kind::Block] {
                let keys = engine.keys(Key { group, kind, index: 0, piece: 0 }, end_of(group, kind))?;
                plan.changes.extend(keys.into_iter().map(|key| (key, None)));
            }
            let payload = record::encode_snapshot(snapshot).map_err(|detail| misuse(group, detail))?;
            record::seal(Key::snapshot(group), 0, &payload, &mut pieces);
            plan.after.base = (snapshot.index, snapshot.term);
            plan.after.last = plan.after.base;
            plan.after.tail = record::anchor(group, snapshot.index, snapshot.term);
            plan.kept = None;
        } else if let Some(first) = staged.entries.first().filter(|entry| entry.index <= log.last.0) {
            plan.cut(engine, group, first.index)?;
        }
        if let Some(last) = staged.entries.last() {
            plan.after.tail = record::seal_entries(group, plan.after.tail, &staged.entries, &mut pieces);
            plan.after.last = (last.index, last.term);
        }
        if let Some(state) = &staged.hard_state {
            if state.commit > plan.after.last.0 {
                let detail = format!("commit {} past the last index {}", state.commit, plan.after.last.0);
                return Err(misuse(group, detail));
            }
            record::seal(Key::hard_state(group), 0, &record::encode_hard_state(state), &mut pieces);
            plan.after.hard_state = *state;
        }
        plan.put(pieces);
        Ok(plan)
    }

    /// Removes the entries from `first` on (Raft section 5.3: an existing entry conflicts with a new one). Whole blocks go;
    /// the one that holds both sides is written anew with what stays.
    fn cut(&mut self, engine: &Engine, group: GroupId, first: u64) -> Result<(), StoreError> {
        let gone = engine.keys(Key::block(group, first), end_of(group, Kind::Block))?;
        self.changes.extend(gone.into_iter().map(|key| (key, None)));
        self.after.last = self.after.base;
        self.after.tail = record::anchor(group, self.after.base.0, self.after.base.1);
        if let Some(block) = engine.block_before(group, first)? {
            let mut entries = decoded(&block)?;
            let count = entries.len();
            entries.retain(|entry| entry.index < first);
            self.after.tail = block.crc;
            if entries.len() < count {
                let pieces = engine.keys(block.key, Key::block(group, first))?;
                self.changes.extend(pieces.into_iter().map(|key| (key, None)));
                let mut pieces = Vec::new();
                self.after.tail = record::seal_entries(group, block.previous, &entries, &mut pieces);
                self.put(pieces);
            }
            let Some(last) = entries.last() else {
                return Err(damaged(block.key, "it has no entry before its end".to_owned()));
            };
            self.after.last = (last.index, last.term);
        }
        self.kept = Some(self.after.last);
        Ok(())
    }
}

/// Where the records of a group and kind end, exclusively.
fn end_of(group: GroupId, kind: Kind) -> Key {
    Key { group, kind, index: u64::MAX, piece: u32::MAX }
}

fn damaged(what: impl fmt::Display, detail: String) -> StoreError {
    StoreError::Damaged { what: what.to_string(), detail }
}

fn decoded(block: &Assembled) -> Result<Vec<Entry>, StoreError> {
    record::decode_block(block.key.index, block.payload.clone()).map_err(|detail| damaged(block.key, detail))
}

/// The entries `[from, to)`, all of which the log says it holds.
pub(super) fn read_entries(
    engine: &Engine,
    group: GroupId,
    from: u64,
    to: u64,
    max_bytes: usize,
) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut bytes = 0usize;
    let mut tail = None;
    let mut expected = from;
    // The block that holds `from` begins at it or before it.
    let Some(mut block) = engine.block_before(group, from + 1)? else {
        return Err(damaged(Key::block(group, from), "it is missing".to_owned()));
    };
    loop {
        if tail.is_some_and(|tail| tail != block.previous) {
            return Err(damaged(block.key, "it does not follow the block before it".to_owned()));
        }
        tail = Some(block.crc);
        let decoded = decoded(&block)?;
        let next = block.key.index + decoded.len() as u64;
        for entry in decoded.into_iter().filter(|entry| entry.index >= from) {
            if entry.index >= to {
                return Ok(entries);
            }
            if entry.index != expected {
                return Err(damaged(block.key, format!("entry {} in the place of {expected}", entry.index)));
            }
            bytes = bytes.saturating_add(entry.size());
            if bytes > max_bytes && !entries.is_empty() {
                return Ok(entries);
            }
            expected += 1;
            entries.push(entry);
        }
        if expected >= to {
            return Ok(entries);
        }
        let missing = || damaged(Key::block(group, next), "it is missing".to_owned());
        block = engine.record(Key::block(group, next))?.ok_or_else(missing)?;
    }
}

/// How far the watermark's index is behind the store.
#[derive(Default)]
struct Stale {
    bytes: u64,
    commits: u32,
}

/// The store's thread.
struct Worker {
    shared: Arc<Shared>,
    watermark: Watermark,
    options: OpenOptions,
    completed: Completions,
    /// Whether something was applied that no sync has covered yet.
    unsynced: bool,
    stale: Stale,
}

/// A batch on its way.
struct Submitted {
    ticket: Ticket,
    batch: Batch,
}

impl Submitted {
    fn bytes(&self) -> usize {
        self.batch.writes.iter().flat_map(|write| &write.entries).map(record::entry_len).sum()
    }
}

impl Worker {
    fn new(shared: Arc<Shared>, watermark: Watermark, options: OpenOptions, completed: Completions) -> Worker {
        Worker { shared, watermark, options, completed, unsynced: false, stale: Stale::default() }
    }

    fn run(mut self, submitted: Receiver<Submitted>) {
        let dead = loop {
            let quiet = self.options.watermark_quiet;
            let first = match self.stale.commits {
                0 => submitted.recv().map_err(|_| RecvTimeoutError::Disconnected),
                _ => submitted.recv_timeout(quiet),
            };
            let step = match first {
                Ok(first) => self.commit_all(first, &submitted),
                Err(RecvTimeoutError::Timeout) => caught(|| self.raise_index()),
                Err(RecvTimeoutError::Disconnected) => break None,
            };
            if let Err(error) = step {
                break Some(error.to_string());
            }
        };
        match dead {
            None => self.close(),
            Some(cause) => self.stay_dead(&cause, submitted),
        }
    }

    /// Takes up what waits, makes it durable as one, and reports each batch in order.
    fn commit_all(&mut self, first: Submitted, submitted: &Receiver<Submitted>) -> Result<(), StoreError> {
        let mut bytes = first.bytes();
        let mut taken = vec![first];
        while bytes < self.options.max_commit_bytes {
            let Ok(next) = submitted.try_recv() else { break };
            bytes += next.bytes();
            taken.push(next);
        }
        let started = Instant::now();
        let sizes: Vec<(Ticket, u64)> = taken.iter().map(|s| (s.ticket, s.bytes() as u64)).collect();
        let result = caught(|| self.commit(taken));
        for (ticket, bytes) in sizes {
            let result = match &result {
                Ok(sync) => Ok(Written { bytes, took: started.elapsed(), sync: *sync }),
                Err(error) => Err(error.clone()),
            };
            self.report(Completed { ticket, result });
        }
        result?;
        let Stale { bytes, commits } = self.stale;
        if bytes >= self.options.watermark_bytes || commits >= self.options.watermark_commits {
            // After the completions: no proposal waits for it.
            caught(|| self.raise_index())?;
        }
        Ok(())
    }

    /// All of them or none. Returns how long making it durable took.
    fn commit(&mut self, taken: Vec<Submitted>) -> Result<Duration, StoreError> {
        let mut sync = false;
        let mut staged: BTreeMap<GroupId, (Log, Staged)> = BTreeMap::new();
        let shared = self.shared.clone();
        // Only this thread changes anything, so what it reads under the read lock still holds under the write lock.
        let (plans, bytes) = {
            let state = shared.read();
            let open = state.as_ref().map_err(|cause| StoreError::Closed(cause.clone()))?;
            for write in taken.into_iter().flat_map(|Submitted { batch, .. }| {
                sync |= batch.sync;
                batch.writes
            }) {
                let group = write.group;
                let (log, staged) = match staged.entry(group) {
                    btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    btree_map::Entry::Vacant(entry) => {
                        let log = open.logs.get(&group).copied().unwrap_or_else(|| Log::empty(group));
                        entry.insert((log, Staged::default()))
                    }
                };
                staged.add(log, write)?;
            }
            let mut plans = BTreeMap::new();
            let mut bytes = 0;
            for (group, (log, staged)) in staged {
                // Whatever its caller said: a batch that moves more than a commit index is a promise (FACTS: `must_sync`).
                let moved =
                    staged.hard_state.is_some_and(|s| (s.term, s.vote) != (log.hard_state.term, log.hard_state.vote));
                sync |= staged.snapshot.is_some() || !staged.entries.is_empty() || moved;
                let plan = Plan::new(&open.engine, group, &log, staged)?;
                bytes += plan.changes.values().flatten().map(Vec::len).sum::<usize>() as u64;
                plans.insert(group, plan);
            }
            (plans, bytes)
        };

        // Promise 6, by way of the watermark: it is lowered and durable before the entries it speaks of go, so that a crash
        // between finds the store ahead of it.
        let lowered = plans.iter().filter_map(|(group, plan)| {
            let mark = self.watermark.mark(*group);
            let (index, index_term) = match plan.kept {
                Some(kept) => kept,
                None if plan.after.base.0 > mark.index => return None, // the new snapshot covers what was promised
                None => (0, 0),
            };
            (index < mark.index).then_some((*group, Mark { index, index_term, ..mark }))
        });
        let lowered: Vec<_> = lowered.collect();
        self.mark(lowered)?;

        let after: Vec<(GroupId, Log)> = plans.iter().map(|(group, plan)| (*group, plan.after)).collect();
        {
            let mut state = shared.write();
            let open = state.as_mut().map_err(|cause| StoreError::Closed(cause.clone()))?;
            // One batch on one tree was never seen torn: entries and the hard state that speaks of them stand or fall together.
            open.engine.apply(plans.into_values().flat_map(|plan| plan.changes))?;
            open.logs.extend(after.iter().copied());
        }
        self.unsynced = true;
        if !sync {
            // A commit index alone: no promise depends on it, and the next sync carries it.
            return Ok(Duration::ZERO);
        }
        let started = Instant::now();
        self.sync()?;
        // Promise 2: a vote leaves the node only after the watermark knows of it, so that a store without it is found out.
        let marks: Vec<_> = after.iter().map(|(group, log)| (*group, log)).collect();
        let moved = marks.into_iter().filter_map(|(group, log)| {
            let mark = self.watermark.mark(group);
            let HardState { term, vote, .. } = log.hard_state;
            // The index goes along: it costs nothing here.
            let (index, index_term) = log.last;
            ((mark.term, mark.vote) != (term, vote)).then_some((group, Mark { term, vote, index, index_term }))
        });
        let moved: Vec<_> = moved.collect();
        self.mark(moved)?;
        self.stale.bytes += bytes;
        self.stale.commits += 1;
        Ok(started.elapsed())
    }

    /// Makes what was applied durable: promises 1 and 2 stand on these two lines.
    fn sync(&mut self) -> Result<(), StoreError> {
        let state = self.shared.read();
        let open = state.as_ref().map_err(|cause| StoreError::Closed(cause.clone()))?;
        open.engine.flush()?;
        open.engine.sync()?;
        self.unsynced = false;
        Ok(())
    }

    fn mark(&mut self, moved: Vec<(GroupId, Mark)>) -> Result<(), StoreError> {
        let doing = "writing watermark".to_owned();
        self.watermark.write(moved).map_err(|error| StoreError::Io { doing, error: Arc::new(error) })
    }

    /// Brings the watermark's indexes up to what is durable.
    fn raise_index(&mut self) -> Result<(), StoreError> {
        if self.unsynced {
            self.sync()?;
        }
        let marks: Vec<_> = {
            let state = self.shared.read();
            let open = state.as_ref().map_err(|cause| StoreError::Closed(cause.clone()))?;
            let logs = open.logs.iter();
            logs.map(|(group, log)| {
                let HardState { term, vote, .. } = log.hard_state;
                (*group, Mark { term, vote, index: log.last.0, index_term: log.last.1 })
            })
            .collect()
        };
        self.mark(marks)?;
        self.stale = Stale::default();
        Ok(())
    }

    /// The appender is gone and everything it submitted is done.
    fn close(mut self) {
        if let Err(error) = caught(|| self.raise_index()) {
            // Nothing was promised since the last completion: only the watermark stays as stale as it was.
            tracing::warn!(%error, "the store did not close in order");
        }
        let open = self.shared.take("it was closed");
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
    }

    /// An error is final: what waits and what comes is answered with its cause, and nothing is written.
    fn stay_dead(self, cause: &str, submitted: Receiver<Submitted>) {
        tracing::error!(cause, "the store died");
        // Held until the appender goes: dropping sled now could hang this thread, and nobody would be answered.
        let open = self.shared.take(cause);
        for Submitted { ticket, .. } in submitted {
            self.report(Completed { ticket, result: Err(StoreError::Closed(cause.to_owned())) });
        }
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
    }

    fn report(&self, completed: Completed) {
        let ticket = completed.ticket;
        if catch_unwind(AssertUnwindSafe(|| (self.completed)(completed))).is_err() {
            tracing::error!(?ticket, "whoever hears completions panicked");
        }
    }
}

/// The writing half: a channel to the store's thread.
struct SledAppender {
    submit: Option<SyncSender<Submitted>>,
    next: u64,
    completed: Completions,
    closed: Receiver<()>,
    close_within: Duration,
}

impl LogAppender for SledAppender {
    fn submit(&mut self, batch: Batch) -> Ticket {
        self.next += 1;
        let ticket = Ticket(self.next);
        let submit = self.submit.as_ref().expect("taken only by drop");
        // The store's thread receives until this sender is dropped, dead or alive. It is gone only if it never began, and then
        // nothing is reported by it that this could overtake.
        if submit.send(Submitted { ticket, batch }).is_err() {
            (self.completed)(Completed { ticket, result: Err(StoreError::Closed("it has no thread".to_owned())) });
        }
        ticket
    }
}

impl Drop for SledAppender {
    fn drop(&mut self) {
        self.submit = None;
        match self.closed.recv_timeout(self.close_within) {
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!("the store did not close in time: its thread is left behind");
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
        }
    }
}

/// Why the engine did not do as asked.
#[derive(Debug)]
pub(super) enum EngineError {
    /// The filesystem refused.
    Io { doing: String, error: io::Error },
    /// The engine, or a record in it, is broken.
    Broken { what: String, detail: String },
    /// It panicked.
    Panicked(String),
}

impl EngineError {
    fn new(doing: &str, error: sled::Error) -> EngineError {
        match error {
            sled::Error::Io(error) => EngineError::Io { doing: format!("{doing} log"), error },
            other => EngineError::Broken { what: "the log".to_owned(), detail: other.to_string() },
        }
    }

    /// What is broken, and how.
    pub(super) fn into_words(self) -> (String, String) {
        match self {
            EngineError::Io { doing, error } => ("the log".to_owned(), format!("{doing} failed: {error}")),
            EngineError::Broken { what, detail } => (what, detail),
            EngineError::Panicked(panic) => ("the log".to_owned(), format!("the storage engine panicked: {panic}")),
        }
    }

    fn on_open(self, dir: &Path) -> OpenError {
        let dir = dir.to_owned();
        match self {
            EngineError::Io { doing, error } => OpenError::Io { dir, doing, error },
            EngineError::Broken { what, detail } => OpenError::Damaged { dir, what, detail },
            EngineError::Panicked(panic) => {
                let detail = format!("the storage engine panicked: {panic}");
                OpenError::Damaged { dir, what: "the log".to_owned(), detail }
            }
        }
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> StoreError {
        match error {
            EngineError::Io { doing, error } => StoreError::Io { doing, error: Arc::new(error) },
            EngineError::Broken { what, detail } => StoreError::Damaged { what, detail },
            EngineError::Panicked(panic) => StoreError::Panicked(panic),
        }
    }
}

/// sled itself. Nothing outside these lines names it.
pub(super) struct Engine {
    db: sled::Db,
    /// Ours, for the sync: opened before sled wrote anything. Dropped after `db`.
    file: OwnFile,
    #[cfg(feature = "faults")]
    policy: SyncPolicy,
}

/// The store's own descriptor of the engine's file.
struct OwnFile(File);

impl Drop for OwnFile {
    /// sled's threads can hold its file, and the lock on it, a moment longer than sled lives. Whoever drops an engine
    /// may open it again at once.
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

fn engine_file(dir: &Path) -> PathBuf {
    directory::log_path(dir).join("db")
}

impl Engine {
    /// Opens or makes the engine in `path`, which must be a directory.
    pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Engine, EngineError> {
        let io = |doing: &str| {
            let doing = doing.to_owned();
            move |error| EngineError::Io { doing, error }
        };
        let name = path.join("db");
        let mut open = fs::OpenOptions::new();
        let file = open.read(true).write(true).create(true).truncate(false).open(name).map_err(io("opening log/db"))?;
        let config = sled::Config::new()
            .path(path)
            .flush_every_ms(None)
            .cache_capacity(options.cache_bytes)
            .segment_size(16 << 20);
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        let db = match opened {
            Ok(opened) => opened.map_err(|error| EngineError::new("opening", error))?,
            Err(panic) => return Err(EngineError::Panicked(words(panic))),
        };
        // sled replaced its own snapshot file, by a rename that it does not make durable.
        directory::sync_dir(path).map_err(io("syncing log"))?;
        Ok(Engine {
            db,
            file: OwnFile(file),
            #[cfg(feature = "faults")]
            policy: options.sync,
        })
    }

    /// Reads and checks every value.
    pub(super) fn scan(&self) -> Result<Found, EngineError> {
        let scanned = catch_unwind(AssertUnwindSafe(|| {
            let mut scan = Scan::new();
            for pair in self.db.iter() {
                let (key, value) = pair.map_err(|error| EngineError::new("reading", error))?;
                scan.push(&key, Bytes::copy_from_slice(&value));
            }
            Ok(scan.finish())
        }));
        scanned.unwrap_or_else(|panic| Err(EngineError::Panicked(words(panic))))
    }

    /// Applies changes, all or none once they are flushed.
    fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Result<(), EngineError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&key.encode(), value),
                None => batch.remove(&key.encode()),
            }
        }
        self.db.apply_batch(batch).map_err(|error| EngineError::new("writing", error))
    }

    /// Hands everything to the kernel: not durable yet.
    fn flush(&self) -> Result<(), EngineError> {
        self.db.flush().map(drop).map_err(|error| EngineError::new("flushing", error))
    }

    /// Makes what was flushed durable: bytes, length, and the device's cache.
    fn sync(&self) -> Result<(), EngineError> {
        #[cfg(feature = "faults")]
        if self.policy == SyncPolicy::FlushOnly {
            return Ok(());
        }
        self.file.0.sync_data().map_err(|error| EngineError::Io { doing: "syncing log/db".to_owned(), error })
    }

    /// The keys in `[from, to)`.
    fn keys(&self, from: Key, to: Key) -> Result<Vec<Key>, EngineError> {
        let range = self.db.range(from.encode()..to.encode());
        range
            .keys()
            .map(|key| {
                let key = key.map_err(|error| EngineError::new("reading", error))?;
                Key::decode(&key).ok_or_else(|| EngineError::Broken {
                    what: "the log".to_owned(),
                    detail: "a key of no known form".to_owned(),
                })
            })
            .collect()
    }

    /// The last block of a group that begins before `index`.
    fn block_before(&self, group: GroupId, index: u64) -> Result<Option<Assembled>, EngineError> {
        let before = self.db.get_lt(Key::block(group, index).encode());
        let Some((key, _)) = before.map_err(|error| EngineError::new("reading", error))? else { return Ok(None) };
        match Key::decode(&key) {
            Some(key) if key.group == group && key.kind == Kind::Block => self.record(key.piece(0)),
            _ => Ok(None),
        }
    }

    /// One record, all its pieces checked.
    fn record(&self, first: Key) -> Result<Option<Assembled>, EngineError> {
        let broken = |key: Key| move |detail| EngineError::Broken { what: key.to_string(), detail };
        let piece = |key: Key| -> Result<Option<record::Opened>, EngineError> {
            let value = self.db.get(key.encode()).map_err(|error| EngineError::new("reading", error))?;
            value.map(|value| record::open(key, Bytes::copy_from_slice(&value)).map_err(broken(key))).transpose()
        };
        let Some(opened) = piece(first)? else { return Ok(None) };
        let pieces = opened.pieces;
        let mut assembly = Assembly::begin(first, opened).map_err(broken(first))?;
        for number in 1..pieces {
            let key = first.piece(number);
            let Some(opened) = piece(key)? else { break };
            assembly.push(key, opened).map_err(broken(key))?;
        }
        assembly.finish().map(Some).map_err(broken(first))
    }

    fn disk_bytes(&self) -> u64 {
        let Ok(metadata) = self.file.0.metadata() else { return 0 };
        #[cfg(unix)]
        return std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        #[cfg(not(unix))]
        metadata.len()
    }
}

/// Runs something that may panic.
pub(super) fn caught<T>(run: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(StoreError::Panicked(words(panic))))
}

fn words(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(words) => *words,
        Err(panic) => panic.downcast::<&str>().map_or("without words".to_owned(), |words| (*words).to_owned()),
    }
}

/// Runs something that may panic, or never come back, on a thread of its own.
pub(super) fn within_time<T: Send + 'static>(
    name: &str,
    within: Duration,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<Result<T, String>, String> {
    let (done, result) = sync_channel(1);
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = done.send(catch_unwind(AssertUnwindSafe(run)).map_err(words));
    });
    spawned.map_err(|error| format!("no thread for it: {error}"))?;
    result.recv_timeout(within).map_err(|_| format!("no answer within {} s", within.as_secs()))
}

#[cfg(test)]
#[path = "sled_tests.rs"]
mod tests;
