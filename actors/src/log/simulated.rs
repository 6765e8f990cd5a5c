//! A simulated disk: the engine and the watermark's slots of one node in memory, with faults, latency and loss.
//!
//! ```text
//!  SimulatedDisk ── outlives every store opened on it
//!    values       what reads see            ┐ apply ─▶ unsynced ─▶ flush ─▶ sync ─▶ durable
//!    unsynced     batches a power cut takes ┘ a kill takes what was not flushed, a power cut what was not synced
//!    slots        the watermark
//!  open ─▶ SimulatedStore ─▶ appender: begin, flush ┄┄ latency ┄┄▶ sync, watermark, Completed
//! ```
//!
//! Everything above the engine is the real thing: records, checksums, plans, the order of steps, the checks at opening.
//! Before every [`Step`] the disk asks its [`Decide`] whether it happens, fails, or the power goes instead of it.
//!
//! Time is the runtime's: a latency is a sleep on the current arbiter, so with a paused clock it costs nothing and repeats
//! exactly. Without latency a batch completes on the caller's stack, and no runtime is needed at all.
//!
//! Deliberately absent: threads, clocks and dice of its own. A failed sync leaves its batches unsynced: that a kernel may
//! forget them later, and say nothing, is not simulated.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use actorum_transport::wire::{Entry, GroupId, Incarnation, NodeId};
use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    commit::{Begun, Committer, Open, Shared, Stale},
    engine::{Change, Engine, EngineError, caught},
    record::{self, Assembled, Assembly, FoundGroup, Key, Kind},
    recovery,
    store::*,
    watermark::{self, Slots, Watermark, WatermarkError},
};

/// The pace of [`super::sled::OpenOptions`], which nothing here changes.
const MAX_COMMIT_BYTES: usize = 16 << 20;
const WATERMARK_BYTES: u64 = 4 << 20;
const WATERMARK_COMMITS: u32 = 1024;
const WATERMARK_QUIET: Duration = Duration::from_millis(200);

/// What a disk does, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The watermark is lowered and synced, before a batch that cuts below it.
    Lower,
    /// A batch is applied to the engine.
    Apply,
    /// It goes to the kernel.
    Flush,
    /// It becomes durable.
    Sync,
    /// The watermark is raised and synced: for a term or vote, or for the index after a quiet.
    Raise,
    /// A batch is reported. It cannot fail: a failure is taken for a go.
    Complete,
    /// Entries are read, or all of the log at opening.
    Read,
}

/// Whether a step happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It does.
    Go,
    /// It fails, with these words of the system. The store is dead then.
    Fail(io::ErrorKind, String),
    /// It does not, nor does any later one: the power is gone. [`Decide::power_is_gone`] follows.
    CutPower,
}

/// How long a batch takes to become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// So long. Zero completes on the caller's stack; anything else needs an actix system.
    After(Duration),
    /// Until [`SimulatedDisk::release`].
    Hang,
}

/// Who decides what a disk does. `()` lets everything happen at once.
///
/// [`Decide::step`] and [`Decide::latency`] are asked in the middle of the work: they may look at the disk, and not change it.
pub trait Decide: Send + Sync {
    /// Asked before each step.
    fn step(&self, _step: Step) -> Answer {
        Answer::Go
    }

    /// Asked for each commit of so many bytes, once it is with the kernel.
    fn latency(&self, _bytes: u64) -> Latency {
        Latency::After(Duration::ZERO)
    }

    /// The power went, as answered; what of it is lost is for [`SimulatedDisk::crash`] to say. Called outside all locks.
    fn power_is_gone(&self) {}
}

impl Decide for () {}

/// Which of the batches that were applied and not synced a power cut takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All.
    All,
    /// All after one of them.
    Prefix,
    /// Any.
    Subset,
    /// None, but a value of the last is cut short. sled never tears a batch: this one must be refused by name.
    Torn,
}

/// What a disk has done, and what was done to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counters {
    pub opened: u64,
    pub lowered: u64,
    pub applied: u64,
    pub flushed: u64,
    pub synced: u64,
    pub raised: u64,
    pub completed: u64,
    pub reads: u64,
    /// Steps that failed.
    pub failed: u64,
    /// Steps before which the power went.
    pub power_cuts: u64,
    pub hung: u64,
    pub crashes: u64,
    pub kills: u64,
    /// Batches that a crash or kill took.
    pub lost_batches: u64,
    /// Batches that were not synced and survived a crash or kill.
    pub kept_batches: u64,
    pub torn_values: u64,
    /// Slots of the watermark of which a crash left a part.
    pub torn_slots: u64,
    pub flipped_bits: u64,
    pub swapped: u64,
    pub wiped: u64,
}

/// A copy of everything in the engine, but not of the watermark.
#[derive(Clone, Debug)]
pub struct Image(BTreeMap<Key, Bytes>);

/// What a node would find of a group if the power went now and took all that can be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// The hard state.
    pub hard_state: HardState,
    /// Index and term of the snapshot its log follows; zero without one.
    pub snapshot: (u64, u64),
    /// The last index of the log.
    pub last_index: u64,
}

/// The disk of one node. Clones are the same disk.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<Disk>>);

impl SimulatedDisk {
    /// An empty disk.
    pub fn new(decide: Arc<dyn Decide>) -> SimulatedDisk {
        SimulatedDisk(Arc::new(Mutex::new(Disk {
            decide,
            identity: None,
            life: 0,
            open: false,
            cut: false,
            announce: false,
            values: BTreeMap::new(),
            unsynced: Vec::new(),
            flushed: 0,
            slots: Vec::new(),
            under_way: None,
            hung: None,
            views: BTreeMap::new(),
            bytes: 0,
            counters: Counters::default(),
        })))
    }

    /// Opens the store on it: made now, with `new_incarnation`, if there is none. The same checks as a directory's, and the
    /// same errors. Never waits.
    pub fn open(&self, id: NodeId, new_incarnation: Incarnation) -> Result<Box<dyn LogStore>, OpenError> {
        let opened = self.open_here(id, new_incarnation);
        self.announce();
        Ok(Box::new(opened?))
    }

    fn open_here(&self, id: NodeId, new_incarnation: Incarnation) -> Result<SimulatedStore, OpenError> {
        let dir = PathBuf::from(format!("simulated/{id}"));
        let (life, found) = {
            let mut disk = self.lock();
            if disk.open {
                return Err(OpenError::Locked { dir, holder: "another store in this simulation".to_owned() });
            }
            if disk.cut {
                disk.settle(Loss::All, 0);
            }
            (disk.open, disk.life) = (true, disk.life + 1);
            (disk.life, disk.identity)
        };
        let lock = Lock { disk: self.clone(), life };
        let (engine, slots) =
            (SimulatedEngine { disk: self.clone(), life }, SimulatedSlots { disk: self.clone(), life });
        let identity = match found {
            Some(found) if found.id != id => {
                return Err(OpenError::Foreign { dir, found: found.id, expected: id });
            }
            Some(found) => found,
            None => {
                // What a creation that did not finish has left was promised to nobody.
                self.lock().clear();
                let node = StoreIdentity { id, incarnation: new_incarnation, boot: 0 };
                recovery::claim(&engine, &dir, &node)?;
                let io = |doing: &str, error| OpenError::Io { dir: dir.clone(), doing: doing.to_owned(), error };
                self.ask(life, Step::Raise).into_result().map_err(|error| io("cannot write watermark", error))?;
                let mut disk = self.lock();
                disk.slots = watermark::blank(new_incarnation);
                disk.identity = Some(node);
                node
            }
        };
        let mut watermark = recovery::of_this_life(&dir, &identity, Watermark::over(slots))?;
        let found = recovery::recover(&engine, &dir, &identity, &mut watermark)?;
        let identity = StoreIdentity { boot: identity.boot + 1, ..identity };
        let mut disk = self.lock();
        disk.identity = Some(identity);
        disk.counters.opened += 1;
        drop(disk);
        let shared = Shared::new(engine, &found, Box::new(lock));
        Ok(SimulatedStore {
            disk: self.clone(),
            life,
            shared,
            identity,
            found: found.groups,
            watermark: Some(watermark),
        })
    }

    /// The power goes. Every handle on the open store is inert from here on: nothing is completed and nothing read. What was
    /// not synced is lost as `loss` says, with `dice` where there is a choice; a write to the watermark that was under way is torn.
    pub fn crash(&self, loss: Loss, dice: u64) {
        let mut disk = self.lock();
        disk.counters.crashes += 1;
        disk.end();
        disk.settle(loss, dice);
        let hung = disk.hung.take();
        drop(disk);
        drop(hung);
    }

    /// The process dies. What was flushed stays: not durable, but there for the next process to find.
    pub fn kill(&self) {
        let mut disk = self.lock();
        disk.counters.kills += 1;
        disk.end();
        (disk.cut, disk.under_way) = (false, None);
        let flushed = disk.flushed;
        disk.counters.kept_batches += flushed as u64;
        disk.undo(flushed);
        let hung = disk.hung.take();
        drop(disk);
        drop(hung);
    }

    /// A batch that hangs goes on.
    pub fn release(&self) {
        let hung = self.lock().hung.take();
        if let Some(running) = hung {
            running.go_on(None);
        }
    }

    /// Whether a batch hangs.
    pub fn hangs(&self) -> bool {
        self.lock().hung.is_some()
    }

    /// Flips one bit at rest, of a value or of the watermark, and says where; `None` on an empty disk. For a closed store.
    pub fn flip_bit(&self, dice: u64) -> Option<String> {
        let mut disk = self.at_rest("flip a bit");
        let (which, bit) = (mix(dice), mix(dice.wrapping_add(1)));
        let targets = disk.values.len() + usize::from(!disk.slots.is_empty());
        let nth = (which as usize).checked_rem(targets)?;
        let key = disk.values.keys().nth(nth).copied();
        let name = match key {
            Some(key) => {
                let mut value = disk.values[&key].to_vec();
                let bit = bit as usize % (value.len() * 8);
                value[bit / 8] ^= 1 << (bit % 8);
                disk.values.insert(key, value.into());
                format!("bit {bit} of {key}")
            }
            None => {
                // In what is used of either slot: the rest of the page says nothing.
                let (slot, used) = (bit as usize & 1, 8 * 128);
                let bit = slot * disk.slots.len() / 2 * 8 + (bit >> 1) as usize % used;
                disk.slots[bit / 8] ^= 1 << (bit % 8);
                format!("bit {bit} of the watermark")
            }
        };
        disk.counters.flipped_bits += 1;
        disk.rebuild();
        Some(name)
    }

    /// A copy of the engine, to be put back later.
    pub fn image(&self) -> Image {
        Image(self.lock().values.clone())
    }

    /// Puts a copy in the place of the engine. The watermark stays. For a closed store.
    pub fn swap_for(&self, image: Image) {
        let mut disk = self.at_rest("swap the engine");
        disk.values = image.0;
        disk.counters.swapped += 1;
        disk.rebuild();
    }

    /// Everything is gone: the next opening makes a new directory, with another incarnation. For a closed store.
    pub fn wipe(&self) {
        let mut disk = self.at_rest("wipe it");
        disk.counters.wiped += 1;
        disk.identity = None;
        disk.clear();
    }

    /// Whether a store is open on it.
    pub fn is_open(&self) -> bool {
        self.lock().open
    }

    /// Whose it is, once it was made.
    pub fn identity(&self) -> Option<StoreIdentity> {
        self.lock().identity
    }

    /// What would be recovered of a group if the power went now. Cheap.
    pub fn durable(&self, group: GroupId) -> Durable {
        self.lock().views.get(&group).map(View::durable).unwrap_or_default()
    }

    /// The term of an entry, or of the snapshot's index, that would be recovered if the power went now. Cheap.
    pub fn durable_term(&self, group: GroupId, index: u64) -> Option<u64> {
        let disk = self.lock();
        let view = disk.views.get(&group)?;
        if index == view.snapshot.0 && index > 0 {
            return Some(view.snapshot.1);
        }
        view.entry(index).map(|entry| entry.term)
    }

    /// An entry that would be recovered if the power went now. Cheap.
    pub fn durable_entry(&self, group: GroupId, index: u64) -> Option<Entry> {
        self.lock().views.get(&group)?.entry(index).cloned()
    }

    /// What it has done, and what was done to it.
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk of a closed store; what the kernel still held has reached it.
    fn at_rest(&self, doing: &str) -> MutexGuard<'_, Disk> {
        let mut disk = self.lock();
        assert!(!disk.open, "cannot {doing} while a store is open");
        if disk.cut {
            disk.settle(Loss::All, 0);
        }
        disk.make_durable();
        disk
    }

    /// Asks whether a step of the store's life `life` happens.
    fn ask(&self, life: u64, step: Step) -> Asked {
        let decide = {
            let disk = self.lock();
            if disk.life != life {
                return Asked::Gone;
            }
            disk.decide.clone()
        };
        // Outside the lock: whoever decides may look at the disk.
        let answer = decide.step(step);
        let mut disk = self.lock();
        if disk.life != life {
            return Asked::Gone;
        }
        match answer {
            Answer::Fail(kind, words) if step != Step::Complete => {
                disk.counters.failed += 1;
                Asked::Failed(io::Error::new(kind, words))
            }
            Answer::CutPower => {
                disk.counters.power_cuts += 1;
                disk.end();
                (disk.cut, disk.announce) = (true, true);
                Asked::Cut
            }
            Answer::Go | Answer::Fail(..) => {
                *disk.counters.of(step) += 1;
                Asked::Go
            }
        }
    }

    /// Tells whoever decided that the power is gone, outside all locks.
    fn announce(&self) {
        let mut disk = self.lock();
        if std::mem::replace(&mut disk.announce, false) {
            let decide = disk.decide.clone();
            drop(disk);
            decide.power_is_gone();
        }
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.lock();
        f.debug_struct("SimulatedDisk")
            .field("identity", &disk.identity)
            .field("open", &disk.open)
            .field("values", &disk.values.len())
            .field("unsynced", &disk.unsynced.len())
            .finish_non_exhaustive()
    }
}

impl Counters {
    fn of(&mut self, step: Step) -> &mut u64 {
        match step {
            Step::Lower => &mut self.lowered,
            Step::Apply => &mut self.applied,
            Step::Flush => &mut self.flushed,
            Step::Sync => &mut self.synced,
            Step::Raise => &mut self.raised,
            Step::Complete => &mut self.completed,
            Step::Read => &mut self.reads,
        }
    }
}

/// What came of asking.
enum Asked {
    Go,
    Failed(io::Error),
    /// The power went just now, in the place of this step.
    Cut,
    /// This store's life was over before.
    Gone,
}

impl Asked {
    fn into_result(self) -> io::Result<()> {
        match self {
            Asked::Go => Ok(()),
            Asked::Failed(error) => Err(error),
            Asked::Cut | Asked::Gone => Err(io::Error::other("the power is gone")),
        }
    }
}

/// splitmix64's mixing: several choices out of one throw.
fn mix(dice: u64) -> u64 {
    let mut mixed = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

struct Disk {
    decide: Arc<dyn Decide>,
    /// What the `node` file says.
    identity: Option<StoreIdentity>,
    /// Which opening is the present one: handles of an earlier one do nothing.
    life: u64,
    open: bool,
    /// The power went in the middle of a step, and nobody has said yet what is lost.
    cut: bool,
    announce: bool,
    /// The engine as reads see it.
    values: BTreeMap<Key, Bytes>,
    /// What was applied since the last sync, oldest first.
    unsynced: Vec<Applied>,
    /// How many of them were flushed.
    flushed: usize,
    /// Both slots of the watermark.
    slots: Vec<u8>,
    /// A write to a slot in the place of which the power went.
    under_way: Option<(usize, Vec<u8>)>,
    hung: Option<Arc<Running>>,
    /// What is durable, group by group.
    views: BTreeMap<GroupId, View>,
    bytes: u64,
    counters: Counters,
}

/// One batch: per key what was there before, and what after.
struct Applied(Vec<(Key, Option<Bytes>, Option<Bytes>)>);

impl Disk {
    /// The present life is over.
    fn end(&mut self) {
        (self.open, self.life) = (false, self.life + 1);
    }

    fn put(&mut self, key: Key, value: Option<Bytes>) -> Option<Bytes> {
        let added = value.as_ref().map_or(0, |value| value.len() as u64);
        let old = match value {
            Some(value) => self.values.insert(key, value),
            None => self.values.remove(&key),
        };
        self.bytes += added;
        self.bytes -= old.as_ref().map_or(0, |old| old.len() as u64);
        old
    }

    /// Takes back all batches from the `from`th on, and returns them oldest first.
    fn undo(&mut self, from: usize) -> Vec<Applied> {
        let gone = self.unsynced.split_off(from);
        for (key, old, _) in gone.iter().rev().flat_map(|batch| batch.0.iter().rev()) {
            self.put(*key, old.clone());
        }
        self.flushed = self.flushed.min(from);
        self.counters.lost_batches += gone.len() as u64;
        gone
    }

    /// What a power cut leaves.
    fn settle(&mut self, loss: Loss, dice: u64) {
        self.cut = false;
        if let Some((at, slot)) = self.under_way.take() {
            let written = mix(dice ^ 0x7062) as usize % (slot.len() + 1);
            self.slots[at..at + written].copy_from_slice(&slot[..written]);
            self.counters.torn_slots += 1;
        }
        let count = self.unsynced.len();
        let keeps = |nth: usize| match loss {
            Loss::All => false,
            Loss::Prefix => nth < mix(dice) as usize % (count + 1),
            Loss::Subset => mix(dice.wrapping_add(nth as u64)) & 1 == 0,
            Loss::Torn => true,
        };
        let mut kept = Vec::new();
        for (nth, batch) in self.undo(0).into_iter().enumerate().filter(|(nth, _)| keeps(*nth)) {
            debug_assert!(nth < count);
            for (key, _, new) in &batch.0 {
                self.put(*key, new.clone());
            }
            kept.push(batch);
        }
        self.counters.lost_batches -= kept.len() as u64;
        self.counters.kept_batches += kept.len() as u64;
        if loss == Loss::Torn {
            let last = kept.last().map(|batch| batch.0.as_slice()).unwrap_or_default();
            let put: Vec<(Key, &Bytes)> = last.iter().filter_map(|(key, _, new)| Some((*key, new.as_ref()?))).collect();
            if let Some(nth) = (mix(dice) as usize).checked_rem(put.len()) {
                let (key, value) = put[nth];
                let length = mix(dice.wrapping_add(1)) as usize % value.len();
                let torn = value.slice(..length);
                self.put(key, Some(torn));
                self.counters.torn_values += 1;
            }
        }
        if !kept.is_empty() {
            self.rebuild();
        }
    }

    /// What was flushed is durable from now on.
    fn make_durable(&mut self) {
        let synced = self.unsynced.drain(..self.flushed);
        let moved: BTreeSet<Key> = synced.flat_map(|batch| batch.0).map(|(key, ..)| key.piece(0)).collect();
        self.flushed = 0;
        for key in moved {
            self.refresh(key);
        }
    }

    /// Brings the view of one record up to the values.
    fn refresh(&mut self, first: Key) {
        let record = self.record(first);
        let view = self.views.entry(first.group).or_default();
        match first.kind {
            Kind::Owner => {}
            Kind::HardState => {
                let state = record.and_then(|record| record::decode_hard_state(record.payload).ok());
                view.hard_state = state.unwrap_or_default();
            }
            Kind::Snapshot => {
                let snapshot = record.and_then(|record| record::decode_snapshot(&record.payload).ok());
                view.snapshot = snapshot.map_or((0, 0), |snapshot| (snapshot.index, snapshot.term));
            }
            Kind::Block => {
                match record.and_then(|record| record::decode_block(first.index, record.payload).ok()) {
                    Some(entries) => view.blocks.insert(first.index, entries),
                    None => view.blocks.remove(&first.index),
                };
            }
        }
    }

    /// One record of the values, if it is whole.
    fn record(&self, first: Key) -> Option<Assembled> {
        let mut pieces = self.values.range(first..=first.piece(u32::MAX));
        let (key, value) = pieces.next()?;
        let mut assembly = Assembly::begin(*key, record::open(*key, value.clone()).ok()?).ok()?;
        for (key, value) in pieces {
            assembly.push(*key, record::open(*key, value.clone()).ok()?).ok()?;
        }
        assembly.finish().ok()
    }

    /// Reads all views anew.
    fn rebuild(&mut self) {
        self.views.clear();
        self.bytes = self.values.values().map(|value| value.len() as u64).sum();
        let records: BTreeSet<Key> = self.values.keys().map(|key| key.piece(0)).collect();
        for key in records {
            self.refresh(key);
        }
    }

    fn clear(&mut self) {
        self.values.clear();
        self.unsynced.clear();
        self.slots.clear();
        self.views.clear();
        (self.flushed, self.bytes, self.under_way) = (0, 0, None);
    }
}

/// What is durable of one group.
#[derive(Default)]
struct View {
    hard_state: HardState,
    snapshot: (u64, u64),
    blocks: BTreeMap<u64, Vec<Entry>>,
}

impl View {
    fn durable(&self) -> Durable {
        let last = self.blocks.last_key_value().and_then(|(_, entries)| entries.last());
        let last_index = last.map_or(self.snapshot.0, |entry| entry.index);
        Durable { hard_state: self.hard_state, snapshot: self.snapshot, last_index }
    }

    fn entry(&self, index: u64) -> Option<&Entry> {
        let (first, entries) = self.blocks.range(..=index).next_back()?;
        entries.get((index - first) as usize)
    }
}

/// What keeps others from opening the disk.
struct Lock {
    disk: SimulatedDisk,
    life: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.life == self.life {
            disk.end();
        }
    }
}

struct SimulatedEngine {
    disk: SimulatedDisk,
    life: u64,
}

impl SimulatedEngine {
    fn ask(&self, step: Step, doing: &str) -> Result<MutexGuard<'_, Disk>, EngineError> {
        let doing = doing.to_owned();
        self.disk.ask(self.life, step).into_result().map_err(|error| EngineError::Io { doing, error })?;
        Ok(self.disk.lock())
    }
}

impl Engine for SimulatedEngine {
    fn apply(&self, changes: Vec<Change>) -> Result<(), EngineError> {
        let mut disk = self.ask(Step::Apply, "writing log")?;
        let mut applied = Vec::with_capacity(changes.len());
        for (key, value) in changes {
            let new = value.map(Bytes::from);
            let old = disk.put(key, new.clone());
            applied.push((key, old, new));
        }
        disk.unsynced.push(Applied(applied));
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        let mut disk = self.ask(Step::Flush, "flushing log")?;
        disk.flushed = disk.unsynced.len();
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.ask(Step::Sync, "syncing log/db")?.make_durable();
        Ok(())
    }

    fn each(&self, give: &mut dyn FnMut(&[u8], Bytes)) -> Result<(), EngineError> {
        for (key, value) in &self.ask(Step::Read, "reading log")?.values {
            give(&key.encode(), value.clone());
        }
        Ok(())
    }

    fn keys(&self, from: Key, to: Key) -> Result<Vec<Key>, EngineError> {
        Ok(self.disk.lock().values.range(from..to).map(|(key, _)| *key).collect())
    }

    fn last_before(&self, key: Key) -> Result<Option<Key>, EngineError> {
        Ok(self.disk.lock().values.range(..key).next_back().map(|(key, _)| *key))
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>, EngineError> {
        Ok(self.disk.lock().values.get(&key).cloned())
    }

    fn disk_bytes(&self) -> u64 {
        self.disk.lock().bytes
    }

    fn blocks(&self) -> bool {
        false
    }
}

struct SimulatedSlots {
    disk: SimulatedDisk,
    life: u64,
}

impl Slots for SimulatedSlots {
    fn read(&self) -> Result<Vec<u8>, WatermarkError> {
        Ok(self.disk.lock().slots.clone())
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let step = {
            let disk = self.disk.lock();
            let mut after = disk.slots.clone();
            after[at..at + bytes.len()].copy_from_slice(bytes);
            match (watermark::inspect(&disk.slots), watermark::inspect(&after)) {
                (Ok((before, _)), Ok((after, _))) if after.lowers(&before) => Step::Lower,
                _ => Step::Raise,
            }
        };
        let asked = self.disk.ask(self.life, step);
        let mut disk = self.disk.lock();
        match asked {
            Asked::Go => disk.slots[at..at + bytes.len()].copy_from_slice(bytes),
            Asked::Cut => disk.under_way = Some((at, bytes.to_vec())),
            Asked::Failed(_) | Asked::Gone => {}
        }
        asked.into_result()
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.ask(self.life, Step::Raise).into_result()?;
        self.disk.lock().slots = bytes.to_vec();
        Ok(())
    }
}

/// A store on a simulated disk, not yet running.
struct SimulatedStore {
    disk: SimulatedDisk,
    life: u64,
    shared: Arc<Shared<SimulatedEngine>>,
    identity: StoreIdentity,
    found: BTreeMap<GroupId, FoundGroup>,
    // Taken by `start`.
    watermark: Option<Watermark<SimulatedSlots>>,
}

impl LogStore for SimulatedStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    fn recover(&self, group: GroupId) -> Result<Recovered, StoreError> {
        Ok(self.found.get(&group).map(|found| found.recovered.clone()).unwrap_or_default())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(SimulatedReader { disk: self.disk.clone(), life: self.life, shared: self.shared.clone() })
    }

    fn start(mut self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        let watermark = self.watermark.take().expect("start consumes the store, so it runs once");
        let work = Work {
            committer: Committer::new(self.shared.clone(), watermark),
            waiting: VecDeque::new(),
            in_flight: None,
            due: VecDeque::new(),
            raise: false,
            quiet_since: None,
            quiet_timer: false,
            dead: None,
            closing: false,
            advancing: false,
            held: None,
        };
        let running = Arc::new(Running { disk: self.disk.clone(), life: self.life, completed, work: Mutex::new(work) });
        Box::new(SimulatedAppender { running, next: 0 })
    }
}

impl Drop for SimulatedStore {
    fn drop(&mut self) {
        if self.watermark.is_some() {
            drop(self.shared.take("it was closed"));
        }
    }
}

struct SimulatedReader {
    disk: SimulatedDisk,
    life: u64,
    shared: Arc<Shared<SimulatedEngine>>,
}

impl LogReader for SimulatedReader {
    fn entries(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        if self.disk.lock().life != self.life {
            return Err(StoreError::Closed("its process is gone, or it was closed".to_owned()));
        }
        let asked = self.disk.ask(self.life, Step::Read).into_result();
        self.disk.announce();
        asked.map_err(|error| StoreError::Io { doing: "reading log".to_owned(), error: Arc::new(error) })?;
        self.shared.entries(group, from, to, max_bytes)
    }

    fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes()
    }

    fn blocks(&self) -> bool {
        false
    }
}

struct SimulatedAppender {
    running: Arc<Running>,
    next: u64,
}

impl LogAppender for SimulatedAppender {
    fn submit(&mut self, batch: Batch) -> Ticket {
        self.next += 1;
        let ticket = Ticket(self.next);
        self.running.lock().waiting.push_back((ticket, batch));
        self.running.advance();
        ticket
    }

    fn blocks(&self) -> bool {
        false
    }
}

impl Drop for SimulatedAppender {
    /// What was submitted is finished now, whatever its latency; what hangs goes on hanging, and with it the store.
    fn drop(&mut self) {
        let mut work = self.running.lock();
        work.closing = true;
        if let Some(in_flight) = work.in_flight.as_mut().filter(|in_flight| !in_flight.hangs) {
            in_flight.ready = true;
        }
        drop(work);
        self.running.advance();
    }
}

/// A store at work.
struct Running {
    disk: SimulatedDisk,
    life: u64,
    completed: Completions,
    work: Mutex<Work>,
}

struct Work {
    committer: Committer<SimulatedEngine, SimulatedSlots>,
    /// Bounded by whoever submits, as [`LogAppender::submit`] says.
    waiting: VecDeque<(Ticket, Batch)>,
    in_flight: Option<InFlight>,
    /// Ended and not reported yet.
    due: VecDeque<Completed>,
    /// The watermark's index is to follow.
    raise: bool,
    quiet_since: Option<Instant>,
    quiet_timer: bool,
    dead: Option<String>,
    closing: bool,
    /// Somebody up the stack is at it: what comes meanwhile, it takes up too.
    advancing: bool,
    /// What a dead store keeps until its appender goes: the lock above all.
    held: Option<Open<SimulatedEngine>>,
}

/// A commit that is with the kernel.
struct InFlight {
    begun: Begun,
    batches: Vec<(Ticket, u64)>,
    latency: Duration,
    ready: bool,
    hangs: bool,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does all that can be done now, and reports it in order, outside the lock: whoever hears it may submit again.
    fn advance(self: &Arc<Self>) {
        if std::mem::replace(&mut self.lock().advancing, true) {
            return;
        }
        loop {
            let mut work = self.lock();
            if self.disk.lock().life != self.life {
                // Crashed, killed or closed: nobody hears of what was under way.
                work.waiting.clear();
                work.due.clear();
                (work.in_flight, work.raise, work.advancing) = (None, false, false);
                break;
            }
            if let Some(completed) = work.due.pop_front() {
                drop(work);
                if let Asked::Go = self.disk.ask(self.life, Step::Complete) {
                    (self.completed)(completed);
                }
                continue;
            }
            if !self.step(&mut work) {
                work.advancing = false;
                break;
            }
        }
        self.disk.announce();
    }

    /// The next thing that can be done, if there is one.
    fn step(self: &Arc<Self>, work: &mut Work) -> bool {
        if let Some(in_flight) = work.in_flight.take_if(|in_flight| in_flight.ready) {
            self.finish(work, in_flight);
            return true;
        }
        if work.in_flight.is_some() {
            return false;
        }
        if let Some(cause) = &work.dead {
            let closed = |ticket| Completed { ticket, result: Err(StoreError::Closed(cause.clone())) };
            work.due.extend(work.waiting.drain(..).map(|(ticket, _)| closed(ticket)));
            if !work.due.is_empty() {
                return true;
            }
        } else if std::mem::replace(&mut work.raise, false) {
            if let Err(error) = caught(|| work.committer.raise_index()) {
                work.die(&error);
            }
            return true;
        } else if !work.waiting.is_empty() {
            self.begin(work);
            return true;
        }
        if work.closing {
            self.close(work);
        }
        false
    }

    /// Takes up what waits, as one.
    fn begin(self: &Arc<Self>, work: &mut Work) {
        let (mut taken, mut batches, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < MAX_COMMIT_BYTES
            && let Some((ticket, batch)) = work.waiting.pop_front()
        {
            let size: usize = batch.writes.iter().flat_map(|write| &write.entries).map(record::entry_len).sum();
            bytes += size;
            batches.push((ticket, size as u64));
            taken.push(batch);
        }
        let begun = caught(|| {
            let begun = work.committer.begin(taken)?;
            if begun.sync {
                work.committer.flush()?;
            }
            Ok(begun)
        });
        let begun = match begun {
            Ok(begun) => begun,
            Err(error) => return work.end(&batches, Err(error), Duration::ZERO),
        };
        let latency = if begun.sync {
            let decide = self.disk.lock().decide.clone();
            decide.latency(bytes as u64)
        } else {
            Latency::After(Duration::ZERO)
        };
        let mut in_flight = InFlight { begun, batches, latency: Duration::ZERO, ready: false, hangs: false };
        match latency {
            Latency::After(Duration::ZERO) => in_flight.ready = true,
            Latency::After(latency) => {
                in_flight.latency = latency;
                in_flight.ready = work.closing;
                let (running, first) = (self.clone(), in_flight.batches[0].0);
                if !in_flight.ready {
                    actix_rt::spawn(async move {
                        sleep(latency).await;
                        running.go_on(Some(first));
                    });
                }
            }
            Latency::Hang => {
                in_flight.hangs = true;
                let mut disk = self.disk.lock();
                disk.hung = Some(self.clone());
                disk.counters.hung += 1;
            }
        }
        work.in_flight = Some(in_flight);
    }

    /// The commit in flight, if it is the one that begins with `first`, may end.
    fn go_on(self: &Arc<Self>, first: Option<Ticket>) {
        let mut work = self.lock();
        let due = |in_flight: &&mut InFlight| first.is_none_or(|first| in_flight.batches[0].0 == first);
        if let Some(in_flight) = work.in_flight.as_mut().filter(due) {
            (in_flight.ready, in_flight.hangs) = (true, false);
        }
        drop(work);
        self.advance();
    }

    fn finish(self: &Arc<Self>, work: &mut Work, in_flight: InFlight) {
        let InFlight { begun, batches, latency, .. } = in_flight;
        let result = caught(|| work.committer.finish(begun));
        work.end(&batches, result, latency);
        let Stale { bytes, commits } = work.committer.stale;
        if bytes >= WATERMARK_BYTES || commits >= WATERMARK_COMMITS {
            work.raise = true;
        } else if commits > 0 {
            self.wait_for_quiet(work);
        }
    }

    /// The watermark's index follows after a quiet, where there is a clock to measure one.
    fn wait_for_quiet(self: &Arc<Self>, work: &mut Work) {
        if work.closing || actix_rt::System::try_current().is_none() {
            return;
        }
        work.quiet_since = Some(Instant::now());
        if std::mem::replace(&mut work.quiet_timer, true) {
            return;
        }
        let running = Arc::downgrade(self);
        actix_rt::spawn(async move {
            while let Some(until) = quiet_until(&running) {
                sleep_until(until).await;
            }
        });
    }

    fn close(&self, work: &mut Work) {
        if work.dead.is_none()
            && let Err(error) = caught(|| work.committer.raise_index())
        {
            tracing::warn!(%error, "the store did not close in order");
        }
        // A power cut in the middle of it has closed it already.
        drop(work.held.take());
        drop(work.committer.take("it was closed"));
    }
}

/// Until when a store must be quiet; once it was, the watermark follows, and `None`.
fn quiet_until(running: &Weak<Running>) -> Option<Instant> {
    let running = running.upgrade()?;
    let mut work = running.lock();
    let until = work.quiet_since? + WATERMARK_QUIET;
    if Instant::now() < until {
        return Some(until);
    }
    (work.quiet_since, work.quiet_timer) = (None, false);
    work.raise = work.committer.stale.commits > 0;
    drop(work);
    running.advance();
    None
}

impl Work {
    /// How a commit ended, for everyone in it.
    fn end(&mut self, batches: &[(Ticket, u64)], result: Result<(), StoreError>, latency: Duration) {
        for &(ticket, bytes) in batches {
            let written = Written { bytes, took: latency, sync: latency };
            self.due.push_back(Completed { ticket, result: result.clone().map(|()| written) });
        }
        if let Err(error) = result {
            self.die(&error);
        }
    }

    fn die(&mut self, error: &StoreError) {
        let cause = error.to_string();
        self.held = self.committer.take(&cause);
        self.dead = Some(cause);
    }
}

#[cfg(test)]
#[path = "simulated_tests.rs"]
mod tests;
