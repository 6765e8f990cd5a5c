//! A simulated disk: the engine and the watermark's pages of one node in memory, with faults, latency and loss.
//!
//! ```text
//!  SimulatedDisk ── outlives every store opened on it
//!    values       what reads see            ┐ apply ─▶ unsynced ─▶ flush ─▶ sync ─▶ durable
//!    unsynced     batches a power cut takes ┘ a kill takes what was not flushed, a power cut what was not synced
//!    pages        the watermark
//!  open ─▶ SimulatedStore ─▶ appender: begin, flush ┄┄ latency ┄┄▶ sync, watermark, Completed
//! ```
//!
//! Here is what a simulation sees of it; `device` is what it does with bytes, `running` a store at work on it,
//! `mistaken` an engine that is used wrongly, for mistakes that are planted.
//!
//! Everything above the engine is the real thing: records, checksums, plans, the order of steps, the checks at opening.
//! Before every [`DiskStep`] the disk asks its [`Decide`] whether it happens, fails, or the power goes instead of it.
//!
//! Time is the runtime's: a latency is a sleep on the current arbiter, so with a paused clock it costs nothing and
//! repeats exactly. Without latency a batch completes on the caller's stack, and no runtime is needed at all.
//!
//! Deliberately absent: threads, clocks and random numbers of its own. A failed sync leaves its batches unsynced: that
//! a kernel may forget them later, and say nothing, is not simulated.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actorum_core::{
    lives::{Content, LifeBook},
    wire::Entry,
};
use actorum_machine::ids::{GroupId, Incarnation, NodeId};
use bytes::Bytes;

use super::{
    commit::Shared,
    lives,
    record::Key,
    recovery,
    store::*,
    watermark::{self, Watermark},
};
use crate::simulated::{Decide, Decision, Loss, SimulatedVolume, StepError, mix};

mod device;
mod mistaken;
mod running;

use device::{Device, Lock, SimulatedEngine, SimulatedLives, SimulatedPages, View};
use mistaken::Mistaken;
use running::SimulatedStore;

/// What a disk does, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskStep {
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
    /// A life of a peer, or what it acknowledged, is put on record and synced.
    Record,
}

/// What a disk has done, and what was done to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DiskCounters {
    pub opened: u64,
    pub lowered: u64,
    pub applied: u64,
    pub flushed: u64,
    pub synced: u64,
    pub raised: u64,
    pub completed: u64,
    pub reads: u64,
    pub recorded: u64,
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
    /// Pages of the watermark of which a crash left a part.
    pub torn_pages: u64,
    pub flipped_bits: u64,
    pub swapped: u64,
    pub wiped: u64,
}

/// A copy of everything in the engine, but not of the watermark.
#[derive(Clone, Debug)]
pub struct Image(BTreeMap<Key, Bytes>);

/// A copy of a whole disk.
#[derive(Clone, Debug)]
pub struct DiskBackup {
    identity: Option<StoreIdentity>,
    values: BTreeMap<Key, Bytes>,
    pages: Vec<u8>,
    lives: Option<Vec<u8>>,
}

/// What a node would find of a group if the power went now and took all that can be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// The hard state.
    pub hard_state: HardState,
    /// Index and term before the log's first entry; zero without a snapshot.
    pub compacted: (u64, u64),
    /// Index and term of its newest snapshot; zero without one.
    pub snapshot: (u64, u64),
    /// The last index of the log.
    pub last_index: u64,
}

/// The disk of one node. Clones are the same disk.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<Device>>);

impl SimulatedDisk {
    /// An empty disk without an end.
    pub fn new(decide: Arc<dyn Decide<DiskStep>>) -> SimulatedDisk {
        SimulatedDisk::on(SimulatedVolume::endless(), decide)
    }

    /// An empty disk on that volume.
    pub fn on(volume: SimulatedVolume, decide: Arc<dyn Decide<DiskStep>>) -> SimulatedDisk {
        SimulatedDisk(Arc::new(Mutex::new(Device {
            decide,
            identity: None,
            life: 0,
            open: false,
            power_cut: false,
            announce: false,
            values: BTreeMap::new(),
            unsynced: Vec::new(),
            flushed: 0,
            lives: None,
            pages: Vec::new(),
            under_way: None,
            hung: None,
            views: BTreeMap::new(),
            bytes: 0,
            volume,
            counters: DiskCounters::default(),
        })))
    }

    /// Opens the store on it: made now, with `new_incarnation`, if there is none. The same checks as a directory's, and
    /// the same errors. Never waits.
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
            if disk.power_cut {
                disk.lose_unsynced(Loss::All, 0);
            }
            (disk.open, disk.life) = (true, disk.life + 1);
            (disk.life, disk.identity)
        };
        let lock = Lock { disk: self.clone(), life };
        let (engine, pages) =
            (Mistaken(SimulatedEngine { disk: self.clone(), life }), SimulatedPages { disk: self.clone(), life });
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
                self.ask(life, DiskStep::Raise).map_err(|error| io("cannot write watermark", error.into()))?;
                let mut disk = self.lock();
                disk.pages = watermark::blank(new_incarnation);
                disk.identity = Some(node);
                node
            }
        };
        let mut watermark = recovery::of_this_life(&dir, &identity, Watermark::over(pages))?;
        let found = recovery::recover(&engine, &dir, &identity, &mut watermark)?;
        let identity = StoreIdentity { boot: identity.boot + 1, ..identity };
        let mut disk = self.lock();
        disk.identity = Some(identity);
        disk.counters.opened += 1;
        drop(disk);
        let content = match self.lock().lives.clone().map(|bytes| lives::decode(&bytes)) {
            None => Content::new(identity.incarnation),
            Some(Ok(content)) => content,
            Some(Err(detail)) => return Err(OpenError::Damaged { dir, what: "lives file".to_owned(), detail }),
        };
        let file = SimulatedLives { disk: self.clone(), life, written: None, begun: false };
        let recovered = found.groups.get(&GroupId::FIRST).map(|found| &found.recovered);
        // Whoever opens it draws an incarnation each time, for a disk that has none yet: as good a nonce as any.
        let present = lives::life(&identity, new_incarnation.0, recovered);
        let io = |error| OpenError::Io { dir, doing: "cannot write lives".to_owned(), error };
        let lives = LifeBook::open(Box::new(file), content, present).map_err(io)?;
        let shared = Shared::new(engine, &found, Box::new(lock));
        Ok(SimulatedStore {
            lives,
            disk: self.clone(),
            life,
            shared,
            identity,
            found: found.groups,
            watermark: Some(watermark),
        })
    }

    /// The power goes. Every handle on the open store is inert from here on: nothing is completed and nothing read.
    /// What was not synced is lost as `loss` says, with `rng` where there is a choice; a write to the watermark that
    /// was under way is torn.
    pub fn crash(&self, loss: Loss, rng: u64) {
        let mut disk = self.lock();
        disk.counters.crashes += 1;
        disk.end();
        disk.lose_unsynced(loss, rng);
        let hung = disk.hung.take();
        drop(disk);
        drop(hung);
    }

    /// The process dies. What was flushed stays: not durable, but there for the next process to find.
    pub fn kill(&self) {
        let mut disk = self.lock();
        disk.counters.kills += 1;
        disk.end();
        (disk.power_cut, disk.under_way) = (false, None);
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

    /// Flips one bit at rest, of a value or of the watermark, and says where; `None` on an empty disk. For a closed
    /// store.
    pub fn flip_bit(&self, rng: u64) -> Option<String> {
        let mut disk = self.at_rest("flip a bit");
        let (which, bit) = (mix(rng), mix(rng.wrapping_add(1)));
        let targets = disk.values.len() + usize::from(!disk.pages.is_empty());
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
                // In what is used of either page: the rest of the page says nothing.
                let (page, used) = (bit as usize & 1, 8 * 128);
                let bit = page * disk.pages.len() / 2 * 8 + (bit >> 1) as usize % used;
                disk.pages[bit / 8] ^= 1 << (bit % 8);
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

    /// A copy of everything that is durable, to be brought back later.
    pub fn backup(&self) -> DiskBackup {
        let disk = self.lock();
        let mut values = disk.values.clone();
        for (key, before, _) in disk.unsynced.iter().rev().flat_map(|batch| batch.0.iter().rev()) {
            match before {
                Some(value) => drop(values.insert(*key, value.clone())),
                None => drop(values.remove(key)),
            }
        }
        let (pages, lives) = (disk.pages.clone(), disk.lives.clone());
        DiskBackup { identity: disk.identity, values, pages, lives }
    }

    /// Brings a copy back: engine, watermark and identity. For a closed store.
    pub fn bring_back(&self, backup: DiskBackup) {
        let mut disk = self.at_rest("bring a copy back");
        let boot = disk.identity.map_or(0, |identity| identity.boot);
        // The boot number counts on: peers would refuse an earlier one.
        disk.identity = backup.identity.map(|identity| StoreIdentity { boot: identity.boot.max(boot), ..identity });
        (disk.values, disk.pages, disk.lives) = (backup.values, backup.pages, backup.lives);
        disk.rebuild();
    }

    /// Puts a copy in the place of everything, as who copies a directory does, the boot counter too. For a closed
    /// store.
    pub fn put_back(&self, backup: DiskBackup) {
        let mut disk = self.at_rest("put a copy back");
        disk.identity = backup.identity;
        (disk.values, disk.pages, disk.lives) = (backup.values, backup.pages, backup.lives);
        disk.rebuild();
    }

    /// What is durable of lives.
    pub fn lives(&self) -> Option<Content> {
        lives::decode(self.lock().lives.as_ref()?).ok()
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

    /// The term of an entry, or the one at the compacted index, that would be recovered if the power went now. Cheap.
    pub fn durable_term(&self, group: GroupId, index: u64) -> Option<u64> {
        self.lock().views.get(&group)?.term(index)
    }

    /// An entry that would be recovered if the power went now. Cheap.
    pub fn durable_entry(&self, group: GroupId, index: u64) -> Option<Entry> {
        self.lock().views.get(&group)?.entry(index).cloned()
    }

    /// What it has done, and what was done to it.
    pub fn counters(&self) -> DiskCounters {
        self.lock().counters
    }

    fn lock(&self) -> MutexGuard<'_, Device> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk of a closed store; what the kernel still held has reached it.
    fn at_rest(&self, doing: &str) -> MutexGuard<'_, Device> {
        let mut disk = self.lock();
        assert!(!disk.open, "cannot {doing} while a store is open");
        if disk.power_cut {
            disk.lose_unsynced(Loss::All, 0);
        }
        disk.make_durable();
        disk
    }

    /// Asks whether a step of the store's life `life` happens.
    fn ask(&self, life: u64, step: DiskStep) -> Result<(), StepError> {
        let decide = {
            let disk = self.lock();
            if disk.life != life {
                return Err(StepError::LifeOver);
            }
            disk.decide.clone()
        };
        // Outside the lock: whoever decides may look at the disk.
        let decision = decide.step(step);
        let mut disk = self.lock();
        if disk.life != life {
            return Err(StepError::LifeOver);
        }
        match decision {
            Decision::Fail(kind, words) if step != DiskStep::Complete => {
                disk.counters.failed += 1;
                Err(StepError::Failed(io::Error::new(kind, words)))
            }
            Decision::CutPower => {
                disk.counters.power_cuts += 1;
                disk.end();
                (disk.power_cut, disk.announce) = (true, true);
                Err(StepError::PowerCut)
            }
            Decision::Go | Decision::Fail(..) => {
                *disk.counters.of(step) += 1;
                Ok(())
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

impl DiskCounters {
    fn of(&mut self, step: DiskStep) -> &mut u64 {
        match step {
            DiskStep::Lower => &mut self.lowered,
            DiskStep::Apply => &mut self.applied,
            DiskStep::Flush => &mut self.flushed,
            DiskStep::Sync => &mut self.synced,
            DiskStep::Raise => &mut self.raised,
            DiskStep::Complete => &mut self.completed,
            DiskStep::Read => &mut self.reads,
            DiskStep::Record => &mut self.recorded,
        }
    }
}

#[cfg(test)]
#[path = "simulated_tests.rs"]
mod tests;
