//! A node's disk in a simulation: the simulated disk, and the moods it is in.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub(crate) use actorum_actors::log::simulated::{Backup, Image, Loss};
use actorum_actors::log::{
    simulated::{Answer, Decide, Latency, SimulatedDisk, Step},
    store::{
        Completions, LogAppender, LogReader, LogStore, Looked, OpenError, Probe, Recovered, Space, StoreError,
        StoreIdentity,
    },
};
use actorum_actors::snapshot::Shelf;
use actorum_transport::wire::{GroupId, Incarnation, NodeId};

use super::{dice::Dice, world::Durable};

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// A write or a sync.
    Error,
    /// There is no room.
    Full,
}

/// One node's disk. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct Disk {
    id: NodeId,
    disk: SimulatedDisk,
    shelf: Arc<Shelf>,
    moods: Moods,
}

/// What the disk is about to do to its node.
#[derive(Clone)]
struct Moods(Arc<Mutex<Mood>>);

struct Mood {
    dice: Dice,
    /// How long a batch takes at most, in milliseconds.
    latency_ms: u64,
    hangs: bool,
    /// The power goes in the place of the so many-th step from now.
    armed: Option<(u64, Loss)>,
    /// The so many-th write from now fails.
    fails: Option<(Mishap, u64)>,
    failed: bool,
    /// What a power cut at a step takes.
    loses: Loss,
    /// What was durable when the last write was torn.
    healthy: Option<Backup>,
    /// Hardly any room is left.
    low: bool,
    /// Probes of a disk that hangs.
    probes: Vec<Looked>,
    power: Option<Arc<dyn Fn(Loss) + Send + Sync>>,
}

/// What a good disk takes, in milliseconds.
const GOOD_MS: u64 = 3;

/// What is free on a good disk, in bytes.
const ROOM: u64 = 1 << 40;

impl Disk {
    pub fn new(id: NodeId, dice: Dice) -> Disk {
        let mood = Mood {
            dice,
            latency_ms: GOOD_MS,
            hangs: false,
            armed: None,
            fails: None,
            failed: false,
            loses: Loss::All,
            healthy: None,
            low: false,
            probes: Vec::new(),
            power: None,
        };
        let moods = Moods(Arc::new(Mutex::new(mood)));
        Disk { id, disk: SimulatedDisk::new(Arc::new(moods.clone())), shelf: Arc::default(), moods }
    }

    /// Who takes the node's power when the disk says so.
    pub fn cut_power_with(&self, power: Option<Arc<dyn Fn(Loss) + Send + Sync>>) {
        self.moods.lock().power = power;
    }

    pub fn open(&self, incarnation: Incarnation) -> Result<Box<dyn LogStore>, OpenError> {
        let store = self.disk.open(self.id, incarnation)?;
        Ok(Box::new(Probed { store, shelf: self.shelf.clone(), moods: self.moods.clone() }))
    }

    pub fn crash(&self, loss: Loss) {
        if loss == Loss::Torn {
            let healthy = self.disk.backup();
            self.moods.lock().healthy = Some(healthy);
        }
        self.forget_probes();
        self.calm();
        let roll = self.moods.lock().dice.roll();
        self.disk.crash(loss, roll);
    }

    pub fn kill(&self) {
        self.forget_probes();
        self.calm();
        self.disk.kill();
    }

    /// Good again.
    pub fn calm(&self) {
        let mut mood = self.moods.lock();
        (mood.latency_ms, mood.hangs, mood.armed, mood.fails, mood.low) = (GOOD_MS, false, None, None, false);
        let probes = std::mem::take(&mut mood.probes);
        drop(mood);
        probes.into_iter().for_each(|looked| looked(Ok(Space { free: ROOM })));
        self.disk.release();
    }

    fn forget_probes(&self) {
        let probes = std::mem::take(&mut self.moods.lock().probes);
        drop(probes);
    }

    /// Hardly any room is left, though writes still succeed.
    pub fn low(&self) {
        self.moods.lock().low = true;
    }

    pub fn arm(&self, steps: u64, loss: Loss) {
        self.moods.lock().armed = Some((steps, loss));
    }

    pub fn slow(&self, at_most_ms: u64) {
        self.moods.lock().latency_ms = at_most_ms;
    }

    pub fn hang(&self) {
        self.moods.lock().hangs = true;
    }

    pub fn fail(&self, mishap: Mishap, writes: u64) {
        let mut mood = self.moods.lock();
        (mood.fails, mood.failed) = (Some((mishap, writes)), false);
    }

    /// Whether the failure that was asked for last came.
    pub fn has_failed(&self) -> bool {
        self.moods.lock().failed
    }

    pub fn flip_bit(&self, roll: u64) -> Option<String> {
        self.disk.flip_bit(roll)
    }

    pub fn image(&self) -> Image {
        self.disk.image()
    }

    pub fn swap_for(&self, image: Image) {
        self.disk.swap_for(image);
    }

    /// What was durable when the last write was torn.
    pub fn before_torn(&self) -> Option<Backup> {
        self.moods.lock().healthy.take()
    }

    /// How many values were torn so far.
    pub fn torn(&self) -> u64 {
        self.disk.counters().torn_values
    }

    pub fn backup(&self) -> Backup {
        self.disk.backup()
    }

    pub fn bring_back(&self, backup: Backup) {
        self.disk.bring_back(backup);
    }

    pub fn wipe(&self) {
        self.disk.wipe();
    }
}

impl Durable for Disk {
    fn state(&self) -> (u64, NodeId, u64) {
        let durable = self.disk.durable(GroupId::FIRST);
        (durable.hard_state.term, durable.hard_state.vote, durable.last_index)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        self.disk.durable_term(GroupId::FIRST, index)
    }
}

/// A store on the disk, with the way around it that probes take.
struct Probed {
    store: Box<dyn LogStore>,
    shelf: Arc<Shelf>,
    moods: Moods,
}

impl LogStore for Probed {
    fn identity(&self) -> StoreIdentity {
        self.store.identity()
    }

    fn recover(&self, group: GroupId) -> Result<Recovered, StoreError> {
        self.store.recover(group)
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.store.reader()
    }

    fn shelf(&self) -> Arc<Shelf> {
        self.shelf.clone()
    }

    fn probe(&self) -> Option<Arc<dyn Probe>> {
        Some(Arc::new(self.moods.clone()))
    }

    fn start(self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        self.store.start(completed)
    }
}

impl Probe for Moods {
    fn write(&self, looked: Looked) {
        let mut mood = self.lock();
        if mood.hangs {
            return mood.probes.push(looked);
        }
        drop(mood);
        self.space(looked);
    }

    fn space(&self, looked: Looked) {
        let free = if self.lock().low { 0 } else { ROOM };
        looked(Ok(Space { free }));
    }
}

impl Moods {
    fn lock(&self) -> MutexGuard<'_, Mood> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Decide for Moods {
    fn step(&self, step: Step) -> Answer {
        let mut mood = self.lock();
        if let Some((left, loss)) = &mut mood.armed {
            *left = left.saturating_sub(1);
            if *left == 0 {
                (mood.loses, mood.armed) = (*loss, None);
                return Answer::CutPower;
            }
        }
        let writes = !matches!(step, Step::Complete | Step::Read);
        if let Some((mishap, left)) = &mut mood.fails
            && writes
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                let error = match mishap {
                    Mishap::Error => io::Error::other("the simulated disk fails"),
                    Mishap::Full => io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full"),
                };
                (mood.fails, mood.failed) = (None, true);
                return Answer::Fail(error.kind(), error.to_string());
            }
        }
        Answer::Go
    }

    fn latency(&self, _: u64) -> Latency {
        let mut mood = self.lock();
        if mood.hangs {
            return Latency::Hang;
        }
        let at_most = mood.latency_ms;
        Latency::After(Duration::from_millis(mood.dice.below(at_most + 1)))
    }

    fn power_is_gone(&self) {
        let (power, loss) = {
            let mood = self.lock();
            (mood.power.clone(), mood.loses)
        };
        power.into_iter().for_each(|power| power(loss));
    }
}
