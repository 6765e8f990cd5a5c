//! A node's disk in a simulation: the simulated disk of the log, the simulated files of the snapshots, and the faults
//! that both have now.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use actorum::{Config, seams::most_reserve};
use actorum_actors::log_writer::SHORT;
use actorum_core::{
    lives::{Content, LifeBook},
    log::store::{LogReader, Recovered, StoreError},
    wire::{Snapshot, SnapshotFile},
};
use actorum_machine::ids::{GroupId, Incarnation, NodeId};
use actorum_store::{
    log::{
        reserve::{self, Reserve, ReserveBounds},
        simulated::{DiskBackup, DiskStep, SimulatedDisk},
        store::{Completions, LogAppender, LogStore, Looked, OpenError, Probe, Space, StoreIdentity},
    },
    simulated::{Decide, Decision, Latency, SimulatedVolume},
    snapshot::{
        SnapshotStore,
        files::{Appending, Files, Reading},
        simulated::{FileStep, FilesBackup, SimulatedFiles},
        store::complete_name,
    },
};

use super::{rng::Rng, world::Durable};
pub(crate) use actorum_store::{
    log::simulated::Image,
    simulated::{DiskFault, Loss},
};

/// One node's disk. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct NodeDisk {
    id: NodeId,
    disk: SimulatedDisk,
    files: SimulatedFiles,
    tally: Arc<Tally>,
    behavior: Behavior,
    room: Room,
    /// What the last opening keeps of lives.
    lives: Arc<Mutex<Option<Arc<LifeBook>>>>,
}

/// How much room a disk has.
#[derive(Clone)]
pub(crate) struct Room {
    pub volume: SimulatedVolume,
    bounds: ReserveBounds,
    /// The last opening's; a disk without an end has none.
    reserve: Arc<Mutex<Option<Arc<Reserve>>>>,
}

/// What the simulated engine may need to open, in bytes. It needs nothing, but a bound of zero would mean no bound.
const ENGINE: u64 = 512;

impl Room {
    /// A volume of so many bytes, or without an end, under a node with these settings.
    pub(crate) fn new(capacity: Option<u64>, config: &Config) -> Room {
        let bounds = ReserveBounds {
            engine: ENGINE,
            bytes: config.reserve_bytes,
            max_bytes: most_reserve(capacity.unwrap_or(u64::MAX)),
            short_below: config.low_space_bytes.saturating_mul(SHORT),
        };
        Room {
            volume: capacity.map_or_else(SimulatedVolume::endless, SimulatedVolume::of),
            bounds,
            reserve: Arc::default(),
        }
    }

    /// Whether there is an end to it.
    pub(crate) fn ends(&self) -> bool {
        self.volume.room().is_some()
    }

    /// As a directory is opened.
    fn open(&self) -> Option<Arc<Reserve>> {
        if !self.ends() {
            return None;
        }
        reserve::give_up(&self.volume, ENGINE, 0);
        let reserve = Reserve::over(Box::new(self.volume.clone()), self.bounds);
        *self.reserve() = Some(reserve.clone());
        Some(reserve)
    }

    /// A look for room, as a directory's probe takes it.
    fn look(&self) -> Result<Space, StoreError> {
        let Some(reserve) = self.reserve().clone() else { return Ok(Space { free: ROOM, ..Space::default() }) };
        reserve.keep(self.volume.room().unwrap_or(ROOM));
        let doing = "looking for free space".to_owned();
        reserve.space().map_err(|error| StoreError::Io { doing, error: Arc::new(error) })
    }

    fn is_short(&self) -> bool {
        self.reserve().as_ref().is_some_and(|reserve| reserve.is_short())
    }

    fn reserve(&self) -> MutexGuard<'_, Option<Arc<Reserve>>> {
        self.reserve.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A copy of both.
pub(crate) type Backup = (DiskBackup, FilesBackup);

/// What became of files of snapshots.
#[derive(Default)]
pub(crate) struct Tally {
    pub built: AtomicU64,
    pub fetched: AtomicU64,
    /// Transfers that went on where an earlier one had stopped.
    pub resumed: AtomicU64,
    /// Power cuts in the place of a step of a file.
    pub cuts: AtomicU64,
    /// Writes of a file that failed.
    pub failed: AtomicU64,
    /// Snapshots that were built while room was short.
    pub short: AtomicU64,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Log,
    Files,
}

/// What the disk is about to do to its node.
#[derive(Clone)]
struct Behavior(Arc<Mutex<BehaviorState>>);

struct BehaviorState {
    rng: Rng,
    /// How long a batch takes at most, in milliseconds.
    latency_ms: u64,
    hangs: bool,
    /// The power is cut instead of this step of that part, counted from now.
    armed: Option<(Part, u64, Loss)>,
    /// This write to that part, counted from now, fails.
    fails: Option<(Part, DiskFault, u64)>,
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

impl NodeDisk {
    pub(crate) fn new(id: NodeId, room: Room, rng: Rng) -> NodeDisk {
        let state = BehaviorState {
            rng,
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
        let behavior = Behavior(Arc::new(Mutex::new(state)));
        let tally = Arc::<Tally>::default();
        let decide = Arc::new(FileBehavior { behavior: behavior.clone(), tally: tally.clone() });
        let files = SimulatedFiles::on(room.volume.clone(), decide);
        let disk = SimulatedDisk::on(room.volume.clone(), Arc::new(behavior.clone()));
        NodeDisk { id, disk, files, tally, behavior, room, lives: Arc::default() }
    }

    /// The function that cuts the node's power when the disk says so.
    pub(crate) fn cut_power_with(&self, power: Option<Arc<dyn Fn(Loss) + Send + Sync>>) {
        self.behavior.lock().power = power;
    }

    pub(crate) fn open(&self, incarnation: Incarnation) -> Result<Box<dyn LogStore>, OpenError> {
        let reserve = self.room.open();
        let store = self.disk.open(self.id, incarnation)?;
        *self.lives.lock().unwrap_or_else(PoisonError::into_inner) = store.lives();
        let files = Counted { files: self.files.open(), room: self.room.clone(), tally: self.tally.clone() };
        let snapshot_store = Arc::new(SnapshotStore::over(Arc::new(files)));
        let probe = Arc::new(DiskProbe { behavior: self.behavior.clone(), room: self.room.clone() });
        Ok(Box::new(Probed { store, snapshot_store, probe, reserve }))
    }

    pub(crate) fn crash(&self, loss: Loss) {
        if loss == Loss::Torn {
            let healthy = self.backup();
            self.behavior.lock().healthy = Some(healthy);
        }
        self.forget_probes();
        self.calm();
        let roll = self.behavior.lock().rng.roll();
        self.disk.crash(loss, roll);
        self.files.crash(loss, roll);
    }

    pub(crate) fn kill(&self) {
        self.forget_probes();
        self.calm();
        self.disk.kill();
        self.files.kill();
    }

    /// Good again.
    pub(crate) fn calm(&self) {
        let mut state = self.behavior.lock();
        (state.latency_ms, state.hangs, state.armed, state.fails, state.low) = (GOOD_MS, false, None, None, false);
        let probes = std::mem::take(&mut state.probes);
        drop(state);
        probes.into_iter().for_each(|looked| looked(self.room.look()));
        self.disk.release();
    }

    fn forget_probes(&self) {
        let probes = std::mem::take(&mut self.behavior.lock().probes);
        drop(probes);
    }

    /// Hardly any room is left, though writes still succeed.
    pub(crate) fn low(&self) {
        self.behavior.lock().low = true;
    }

    pub(crate) fn arm(&self, part: Part, steps: u64, loss: Loss) {
        self.behavior.lock().armed = Some((part, steps, loss));
    }

    pub(crate) fn slow(&self, at_most_ms: u64) {
        self.behavior.lock().latency_ms = at_most_ms;
    }

    pub(crate) fn hang(&self) {
        self.behavior.lock().hangs = true;
    }

    pub(crate) fn fail(&self, part: Part, fault: DiskFault, writes: u64) {
        let mut state = self.behavior.lock();
        (state.fails, state.failed) = (Some((part, fault, writes)), false);
    }

    /// Whether the failure that was asked for last came.
    pub(crate) fn has_failed(&self) -> bool {
        self.behavior.lock().failed
    }

    pub(crate) fn flip_bit(&self, roll: u64) -> Option<String> {
        self.disk.flip_bit(roll)
    }

    /// A bit of some file of a snapshot that is complete.
    pub(crate) fn some_bit(&self, roll: u64) -> Option<(String, usize)> {
        let complete =
            self.files.durable().into_iter().filter(|(name, length)| name.starts_with("snapshot-") && *length > 0);
        let complete: Vec<_> = complete.collect();
        let (name, length) = complete.get((roll as usize).checked_rem(complete.len())?)?;
        Some((name.clone(), (roll >> 8) as usize % (*length as usize * 8)))
    }

    /// Flips it; whether it was there.
    pub(crate) fn flip_file(&self, (name, bit): &(String, usize)) -> bool {
        self.files.flip(name, *bit)
    }

    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// Whether it is made to say that hardly any room is left.
    pub(crate) fn is_low(&self) -> bool {
        self.behavior.lock().low
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(crate) fn image(&self) -> Image {
        self.disk.image()
    }

    pub(crate) fn swap_for(&self, image: Image) {
        self.disk.swap_for(image);
    }

    /// What was durable when the last write was torn.
    pub(crate) fn before_torn(&self) -> Option<Backup> {
        self.behavior.lock().healthy.take()
    }

    /// How many values were torn so far.
    pub(crate) fn torn(&self) -> u64 {
        self.disk.counters().torn_values
    }

    pub(crate) fn backup(&self) -> Backup {
        (self.disk.backup(), self.files.backup())
    }

    pub(crate) fn bring_back(&self, (log, files): Backup) {
        self.disk.bring_back(log);
        self.files.bring_back(files);
    }

    /// A whole copy of the directory, with the boot counter and the lives.
    pub(crate) fn put_back(&self, (log, files): Backup) {
        self.disk.put_back(log);
        self.files.bring_back(files);
    }

    /// What is durable of lives.
    pub(crate) fn kept(&self) -> Option<Content> {
        self.disk.lives()
    }

    /// What its last opening keeps, or kept, of lives.
    pub(crate) fn lives(&self) -> Option<Arc<LifeBook>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn wipe(&self) {
        self.disk.wipe();
        self.files.wipe();
    }
}

impl Durable for NodeDisk {
    fn state(&self) -> (u64, NodeId, u64) {
        let durable = self.disk.durable(GroupId::FIRST);
        (durable.hard_state.term, durable.hard_state.vote, durable.last_index)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        self.disk.durable_term(GroupId::FIRST, index)
    }

    fn compacted_index(&self) -> u64 {
        self.disk.durable(GroupId::FIRST).compacted.0
    }

    fn has_file(&self, snapshot: &Snapshot, file: &SnapshotFile) -> bool {
        self.files.durable().get(&complete_name(snapshot.index, file)) == Some(&file.bytes)
    }
}

/// A store on the disk, with the way around it that probes take.
struct Probed {
    store: Box<dyn LogStore>,
    snapshot_store: Arc<SnapshotStore>,
    probe: Arc<DiskProbe>,
    reserve: Option<Arc<Reserve>>,
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

    fn snapshot_store(&self) -> Arc<SnapshotStore> {
        self.snapshot_store.clone()
    }

    fn lives(&self) -> Option<Arc<LifeBook>> {
        self.store.lives()
    }

    fn probe(&self) -> Option<Arc<dyn Probe>> {
        Some(self.probe.clone())
    }

    fn reserve(&self) -> Option<Arc<Reserve>> {
        self.reserve.clone()
    }

    fn start(self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        self.store.start(completed)
    }
}

/// Looks at a disk as a directory's probe does.
struct DiskProbe {
    behavior: Behavior,
    room: Room,
}

impl Probe for DiskProbe {
    fn write(&self, looked: Looked) {
        let mut state = self.behavior.lock();
        if state.hangs {
            return state.probes.push(looked);
        }
        drop(state);
        self.space(looked);
    }

    fn space(&self, looked: Looked) {
        let low = self.behavior.lock().low;
        looked(if low { Ok(Space::default()) } else { self.room.look() });
    }
}

impl Behavior {
    /// Whether this step of that part happens.
    fn decide(&self, of: Part, writes: bool) -> Decision {
        let mut state = self.lock();
        if let Some((part, left, loss)) = &mut state.armed
            && *part == of
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                (state.loses, state.armed) = (*loss, None);
                return Decision::CutPower;
            }
        }
        if let Some((part, fault, left)) = &mut state.fails
            && *part == of
            && writes
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                let decision = fault.decision();
                (state.fails, state.failed) = (None, true);
                return decision;
            }
        }
        Decision::Go
    }

    fn lose_power(&self) {
        let (power, loss) = {
            let state = self.lock();
            (state.power.clone(), state.loses)
        };
        power.into_iter().for_each(|power| power(loss));
    }

    fn lock(&self) -> MutexGuard<'_, BehaviorState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Decide<DiskStep> for Behavior {
    fn step(&self, step: DiskStep) -> Decision {
        self.decide(Part::Log, !matches!(step, DiskStep::Complete | DiskStep::Read))
    }

    fn latency(&self, _: u64) -> Latency {
        let mut state = self.lock();
        if state.hangs {
            return Latency::Hang;
        }
        let at_most = state.latency_ms;
        Latency::After(Duration::from_millis(state.rng.below(at_most + 1)))
    }

    fn power_is_gone(&self) {
        self.lose_power();
    }
}

/// The same faults, for files.
struct FileBehavior {
    behavior: Behavior,
    tally: Arc<Tally>,
}

impl Decide<FileStep> for FileBehavior {
    fn step(&self, step: FileStep) -> Decision {
        let decision = self.behavior.decide(Part::Files, step != FileStep::Read);
        match decision {
            Decision::Go => {}
            Decision::Fail(..) => drop(self.tally.failed.fetch_add(1, Relaxed)),
            Decision::CutPower => drop(self.tally.cuts.fetch_add(1, Relaxed)),
        }
        decision
    }

    fn power_is_gone(&self) {
        self.behavior.lose_power();
    }
}

/// Files whose fate is counted by their names.
struct Counted {
    files: Arc<dyn Files>,
    room: Room,
    tally: Arc<Tally>,
}

impl Counted {
    /// A folder in it, whose files are counted as well.
    fn counted(&self, files: Arc<dyn Files>) -> Arc<dyn Files> {
        Arc::new(Counted { files, room: self.room.clone(), tally: self.tally.clone() })
    }
}

impl Files for Counted {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.files.list()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        self.files.create(name)
    }

    fn append(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        let mut file = self.files.append(name)?;
        if file.length()? > 0 {
            self.tally.resumed.fetch_add(1, Relaxed);
        }
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Reading>> {
        self.files.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)?;
        let built = from.starts_with("building-");
        let counter = if built { &self.tally.built } else { &self.tally.fetched };
        counter.fetch_add(1, Relaxed);
        self.tally.short.fetch_add(u64::from(built && self.room.is_short()), Relaxed);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.files.sync_names()
    }

    fn folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        Ok(self.counted(self.files.folder(name)?))
    }

    fn make_folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        Ok(self.counted(self.files.make_folder(name)?))
    }

    fn free(&self) -> io::Result<Option<u64>> {
        self.files.free()
    }

    fn blocks(&self) -> bool {
        self.files.blocks()
    }
}
