//! The nodes of a simulation: their disks, clocks and lives.
//!
//! ```text
//!  start ─▶ the very builder an application uses, over a simulated disk, network and clock
//!  crash ─▶ in one instant: disk, network and machine know this life no more; its actors are told to end, and whatever
//!           they still do is seen by nobody
//! ```
//!
//! So a crash between two messages covers every moment at which a crash could make a difference.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use actorum::{Bootstrap, Builder, Config, Network, Raft, StartError, Storage, config::ActivateMode, seams};
use actorum_core::{
    features::{Feature, Features},
    marks::Mark,
    observer::{Drained, Observer},
    wire::ENTRY_OVERHEAD,
};
use actorum_machine::{
    ids::{Address, GroupId, Incarnation, NodeId},
    machine::StateMachine,
};
use actorum_store::{
    log::store::{LogStore, OpenError},
    simulated::VolumeCounters,
};
use actorum_transport::memory::MemoryNetwork;
use tokio::sync::Notify;

use super::{
    clock::NodeClock,
    disk::{Loss, NodeDisk, Room, Tally},
    machine::{Hooks, Watched},
    rng::Rng,
    wire::Links,
    world::{Decided, Event, World},
};

/// How often each running node's status is looked at, in virtual milliseconds.
const LOOK_MS: u64 = 250;

/// One life of a node: over at a crash.
#[derive(Clone, Default)]
pub(crate) struct Life(Arc<(AtomicBool, Notify)>);

impl Life {
    fn end(&self) {
        self.0.0.store(true, Relaxed);
        self.0.1.notify_waiters();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.0.load(Relaxed)
    }

    /// Waits for its end.
    pub(crate) async fn over(&self) {
        let ended = self.0.1.notified();
        if !self.0.0.load(Relaxed) {
            ended.await;
        }
    }
}

/// The state of a node in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// Its actors run, the process stands still.
    Paused,
    Down,
    /// On its way up or down, in order.
    Busy,
    /// Removed from the cluster for good.
    Gone,
}

pub(crate) struct Node<S: StateMachine> {
    pub state: State,
    pub raft: Option<Raft<Watched<S>>>,
    pub disk: NodeDisk,
    pub clock: NodeClock,
    pub hooks: Hooks,
    pub life: Life,
    boot: u64,
    /// What it is told to do at a start with an empty directory.
    pub bootstrap: Bootstrap,
    /// The program that it runs: in some fleets an older one, until some restart.
    pub program: Program,
    /// Whether that is an older one than it had before: it keeps it until somebody upgrades it.
    pub put_back: bool,
    /// Whether it stopped because its program lacks what is in use: it is started again with another one.
    pub outdated: bool,
}

/// Which program a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    /// The first version: it names no features.
    First,
    /// One that compares hashes, and knows no announcements.
    Hashing,
    /// This build without the version in its hash ([`Feature::VersionHashes`]), and with an older state machine.
    OlderMachine,
    /// This build.
    Newest,
}

impl Program {
    pub(crate) fn features(self) -> Features {
        match self {
            Program::First => Features::none(),
            Program::Hashing => without(&[Feature::Activation, Feature::VersionHashes]),
            Program::OlderMachine => without(&[Feature::VersionHashes]),
            Program::Newest => Features::all(),
        }
    }

    /// The version of its state machine, which programs that know no announcements do not say.
    pub(crate) fn machine_version(self) -> u32 {
        match self {
            Program::First | Program::Hashing => 0,
            Program::OlderMachine => 2,
            Program::Newest => 3,
        }
    }

    /// What takes its place.
    fn next(self) -> Program {
        match self {
            Program::First | Program::Hashing => Program::OlderMachine,
            Program::OlderMachine | Program::Newest => Program::Newest,
        }
    }

    /// What it can be put back to. Marks are used without an activation, so nobody goes back behind them.
    pub(crate) fn before(self) -> Option<Program> {
        match self {
            Program::First | Program::Hashing => None,
            Program::OlderMachine => Some(Program::Hashing),
            Program::Newest => Some(Program::OlderMachine),
        }
    }
}

fn without(lacking: &[Feature]) -> Features {
    Features::all().iter().filter(|feature| !lacking.contains(feature)).collect()
}

/// Whether a node says that its program lacks what the cluster uses.
pub(crate) fn is_outdated(cause: &str) -> bool {
    cause.contains("the cluster uses ") && cause.contains("this program does not understand it")
}

/// All nodes. Clones are the same fleet.
pub(crate) struct Fleet<S: StateMachine>(Arc<Inner<S>>);

impl<S: StateMachine> Clone for Fleet<S> {
    fn clone(&self) -> Self {
        Fleet(self.0.clone())
    }
}

struct Inner<S: StateMachine> {
    world: World,
    links: Links,
    network: MemoryNetwork,
    make: Arc<dyn Fn() -> S + Send + Sync>,
    config: Config,
    /// How many bytes each node's disk holds; without an end if `None`.
    capacity: Option<u64>,
    /// What snapshots have in addition to the state, in bytes.
    padding: usize,
    /// Whether the cluster begins with nodes of older programs, which are exchanged at their restarts.
    rolled: bool,
    /// Whether only an operator puts anything to use.
    asks: bool,
    state: Mutex<(Rng, BTreeMap<NodeId, Node<S>>)>,
}

impl<S: StateMachine> Fleet<S> {
    pub(crate) fn new(
        world: &World,
        links: &Links,
        make: Arc<dyn Fn() -> S + Send + Sync>,
        mut config: Config,
        capacity: Option<u64>,
        rng: Rng,
    ) -> Self {
        let network = MemoryNetwork::over(Arc::new(links.clone()));
        let padding = [0, 0, 1000, 3000][rng.fork("padding", 0).below(4) as usize];
        let rolled = rng.fork("rolled", 0).below(4) == 0;
        let asks = rng.fork("manual", 0).below(4) == 0;
        if asks {
            config.activate = ActivateMode::Manual;
            world.facts(|facts| facts.in_use.waits_for_operator());
        }
        let state = Mutex::new((rng, BTreeMap::new()));
        let (world, links) = (world.clone(), links.clone());
        Fleet(Arc::new(Inner { world, links, network, make, config, capacity, padding, rolled, asks, state }))
    }

    pub(crate) fn world(&self) -> &World {
        &self.0.world
    }

    /// Whether nothing is put to use before an operator asks for it.
    pub(crate) fn waits_for_operator(&self) -> bool {
        self.0.asks
    }

    pub(crate) fn links(&self) -> &Links {
        &self.0.links
    }

    /// Adds a node that is not running yet.
    pub(crate) fn add(&self, id: NodeId, bootstrap: Bootstrap) {
        let mut state = self.lock();
        let rate = state.0.between(900, 1100);
        let skew = state.0.between(0, 4000) as i64 - 2000;
        let clock = NodeClock::new(self.0.world.scheduler(), rate, skew);
        // Most nodes that join later have the newest program: an older one may lack what is in use by then, and stops.
        let founds = self.0.rolled && matches!(bootstrap, Bootstrap::Form(_));
        let programs = [Program::First, Program::Hashing, Program::OlderMachine];
        let program = match founds {
            true => programs[state.0.fork("program", id).below(3) as usize],
            false if bootstrap == Bootstrap::Wait && state.0.fork("program", id).below(4) == 0 => Program::OlderMachine,
            false => Program::Newest,
        };
        let room = Room::new(self.0.capacity, &self.0.config);
        let disk = NodeDisk::new(id, room, state.0.fork("disk", id));
        let fleet = self.clone();
        disk.cut_power_with(Some(Arc::new(move |loss| fleet.crash(id, loss))));
        let node = Node {
            state: State::Down,
            raft: None,
            disk,
            clock,
            hooks: Hooks::default(),
            life: Life::default(),
            boot: 0,
            bootstrap,
            program,
            put_back: false,
            outdated: false,
        };
        state.1.insert(id, node);
    }

    /// A node may lose its power at a message or at a step of its disk.
    pub(crate) fn let_power_be_cut(&self) {
        let fleet = self.clone();
        self.0.links.cut_power_with(Some(Arc::new(move |id, loss| fleet.crash(id, loss))));
    }

    pub(crate) fn network(&self) -> MemoryNetwork {
        self.0.network.clone()
    }

    pub(crate) fn config(&self) -> Config {
        self.0.config.clone()
    }

    /// A state machine as it is at first.
    pub(crate) fn machine(&self) -> S {
        (self.0.make)()
    }

    /// Looks at the nodes, or changes them.
    pub(crate) fn nodes<R>(&self, look: impl FnOnce(&mut BTreeMap<NodeId, Node<S>>) -> R) -> R {
        look(&mut self.lock().1)
    }

    /// Looks at one node.
    pub(crate) fn node<R>(&self, id: NodeId, look: impl FnOnce(&mut Node<S>) -> R) -> Option<R> {
        self.lock().1.get_mut(&id).map(look)
    }

    pub(crate) fn in_state(&self, state: State) -> Vec<NodeId> {
        self.nodes(|nodes| nodes.iter().filter(|(_, node)| node.state == state).map(|(id, _)| *id).collect())
    }

    pub(crate) fn raft(&self, id: NodeId) -> Option<(Raft<Watched<S>>, Life)> {
        self.node(id, |node| node.raft.clone().map(|raft| (raft, node.life.clone())))?
    }

    /// Opens a node's disk as a start would, without starting. A store that opens is closed again.
    pub(crate) fn try_open(&self, id: NodeId) -> Result<Box<dyn LogStore>, OpenError> {
        let (disk, incarnation) = {
            let mut state = self.lock();
            let incarnation = Incarnation(state.0.roll());
            (state.1.get(&id).expect("a node of this fleet").disk.clone(), incarnation)
        };
        disk.open(incarnation)
    }

    /// Starts a node that is down.
    pub(crate) async fn start(&self, id: NodeId) -> Result<(), StartError> {
        if self.node(id, |node| std::mem::replace(&mut node.state, State::Busy)) != Some(State::Down) {
            panic!("the simulation starts n{id}, which is not down");
        }
        let mut started = self.boot(id).await;
        if let Err(error) = &started
            && is_outdated(&error.to_string())
        {
            // The operator reads the error, and does what it says.
            self.note_outdated(id, &error.to_string(), true);
            self.bury(id, "its program is too old");
            self.node(id, |node| node.state = State::Busy);
            started = self.boot(id).await;
        }
        self.node(id, |node| {
            if node.state == State::Busy {
                node.state = if started.is_ok() { State::Running } else { State::Down };
            }
        });
        started
    }

    /// Puts a node that is down back to the program before its own; false if it cannot be.
    pub(crate) fn put_back(&self, id: NodeId) -> bool {
        let put_back = |node: &mut Node<S>| {
            let older = node.program.before().filter(|_| node.state == State::Down && !node.outdated);
            older.map(|older| (node.program, node.put_back) = (older, true)).is_some()
        };
        let put_back = self.node(id, put_back).unwrap_or(false);
        if put_back {
            self.0.world.tell(|| format!("n{id} is put back to {:?}", self.node(id, |node| node.program)));
        }
        put_back
    }

    /// A node has the newest program from its next start on.
    pub(crate) fn upgrade(&self, id: NodeId) {
        self.node(id, |node| (node.program, node.put_back, node.outdated) = (Program::Newest, false, false));
    }

    /// A node has stopped, or has not started, with that sentence. Whether it was right to is for the invariants.
    fn note_outdated(&self, id: NodeId, cause: &str, at_start: bool) {
        self.0.world.saw(Event::Stopped { node: id, cause });
        let put_back = self.node(id, |node| {
            node.outdated = true;
            node.put_back
        });
        let kind = match (put_back == Some(true), at_start) {
            (true, true) => "put back and refused at its start",
            (true, false) => "put back and stopped later",
            (false, _) => "joined with too old a program",
        };
        self.0.world.count(|counts| *counts.churn.entry(kind).or_default() += 1);
    }

    async fn boot(&self, id: NodeId) -> Result<(), StartError> {
        let store = self.try_open(id)?;
        let recovered = store.recover(GroupId::FIRST)?;
        let compacted_index = recovered.compacted_index();
        let entries =
            store.reader().entries(GroupId::FIRST, compacted_index + 1, recovered.last_index + 1, usize::MAX)?;
        let (identity, hooks, life) = (store.identity(), Hooks::default(), Life::default());
        let world = self.0.world.clone();
        let new_version = self.lock().0.fork("version", identity.boot << 16 | id).below(2);
        let (clock, disk, bootstrap, program) = self
            .node(id, |node| {
                // Exchanged at some restart, never at the first start.
                if node.outdated {
                    (node.program, node.put_back, node.outdated) = (Program::Newest, false, false);
                } else if identity.boot >= 2 && new_version == 0 && !node.put_back {
                    node.program = node.program.next();
                }
                (node.hooks, node.life, node.boot) = (hooks.clone(), life.clone(), identity.boot);
                (node.clock.clone(), node.disk.clone(), node.bootstrap.clone(), node.program)
            })
            .expect("a node of this fleet");
        self.0.links.up(id, identity.boot);
        let incarnation = identity.incarnation;
        world.saw(Event::Started { node: id, incarnation, recovered: &recovered, entries: &entries });
        world.facts(|facts| {
            if let Some(facts) = facts.nodes.get_mut(&id) {
                facts.disk = Some(Box::new(disk));
                facts.membership = None;
                facts.clock = Some(clock.clone());
                facts.program = program;
            }
        });
        let machine = Watched::new((self.0.make)(), id, world.clone(), hooks.clone(), self.0.padding);
        let network = self.0.network.clone();
        let mut config = self.0.config.clone();
        // Where bounds are tiny, an operator sets one lower at some starts: below what is in the log already.
        if config.max_unapplied_bytes < 1 << 20 && self.lock().0.fork("bound", identity.boot << 16 | id).below(2) == 0 {
            config.max_unapplied_bytes = config.max_entry_bytes + ENTRY_OVERHEAD;
        }
        world.facts(|facts| {
            if let Some(facts) = facts.nodes.get_mut(&id) {
                facts.room = config.max_unapplied_bytes;
            }
        });
        let builder = Builder::new(id, machine)
            .storage(Storage::Custom(store))
            .network(Network::Custom(Box::new(move |identity, lives| network.start_with(identity, lives))))
            .bootstrap(bootstrap)
            .config(config)
            .clock(Arc::new(clock));
        let watcher = Arc::new(Watcher { node: id, world: world.clone(), hooks: hooks.clone() });
        let raft = seams::watched(seams::of_version(builder, program.features(), program.machine_version()), watcher)
            .start()
            .await?;
        if hooks.is_over() {
            // It lost its power on the way up.
            seams::broken(&raft, "the simulation took its power");
            return Ok(());
        }
        let status = seams::status_of(&raft);
        world.facts(|facts| {
            if let Some(facts) = facts.nodes.get_mut(&id) {
                facts.membership = Some(Box::new(move || status().membership));
            }
        });
        self.node(id, |node| node.raft = Some(raft.clone()));
        self.watch(id, raft, life);
        Ok(())
    }

    /// Looks at a life until it is over.
    fn watch(&self, id: NodeId, raft: Raft<Watched<S>>, life: Life) {
        let fleet = self.clone();
        let (ended, world) = (raft.clone(), self.0.world.clone());
        let over = life.clone();
        actix_rt::spawn(async move {
            let cause = tokio::select! {
                biased;
                () = over.over() => return,
                cause = ended.stopped() => cause,
            };
            // A shutdown is asked for; anything else is the node's own doing.
            if fleet.node(id, |node| node.state) == Some(State::Busy) {
                return;
            }
            match is_outdated(&cause) {
                true => fleet.note_outdated(id, &cause, false),
                false => world.saw(Event::Stopped { node: id, cause: &cause }),
            }
            fleet.bury(id, "it stopped by itself");
        });
        let world = self.0.world.clone();
        let disk = self.node(id, |node| node.disk.clone());
        actix_rt::spawn(async move {
            let (mut was_low, mut in_force) = (false, 1);
            loop {
                tokio::select! {
                    biased;
                    () = life.over() => return,
                    () = tokio::time::sleep(Duration::from_millis(LOOK_MS)) => {}
                }
                let status = raft.status();
                if status.versions.machine > in_force {
                    in_force = status.versions.machine;
                    world.count(|counts| *counts.churn.entry("version raised").or_default() += 1);
                }
                let low = status.disk.low && disk.as_ref().is_some_and(|disk| !disk.is_low());
                if low && !std::mem::replace(&mut was_low, low) {
                    world.count(|counts| counts.room("low on space", 1));
                }
                was_low = low;
                world.saw(Event::Looked { node: id, status: &status });
            }
        });
    }

    /// The end of a life, in one instant.
    fn bury(&self, id: NodeId, how: &str) {
        let buried = self.node(id, |node| {
            node.hooks.end();
            node.life.end();
            node.clock.resume();
            if node.state != State::Gone {
                node.state = State::Down;
            }
            node.raft.take()
        });
        self.0.links.down(id);
        self.0.world.saw(Event::Ended { node: id, how });
        if let Some(Some(raft)) = buried {
            seams::broken(&raft, "the simulation ended it");
        }
    }

    /// The power goes.
    pub(crate) fn crash(&self, id: NodeId, loss: Loss) {
        if self.node(id, |node| matches!(node.state, State::Down | State::Gone)) != Some(false) {
            return;
        }
        self.node(id, |node| node.disk.clone()).into_iter().for_each(|disk| disk.crash(loss));
        self.bury(id, &format!("its power is cut ({loss:?})"));
    }

    /// The process is killed.
    pub(crate) fn kill(&self, id: NodeId) {
        if self.node(id, |node| matches!(node.state, State::Down | State::Gone)) != Some(false) {
            return;
        }
        self.node(id, |node| node.disk.clone()).into_iter().for_each(|disk| disk.kill());
        self.bury(id, "it is killed");
    }

    /// It shuts down in order.
    pub(crate) async fn shut_down(&self, id: NodeId) {
        let Some((raft, life)) = self.raft(id) else { return };
        if self.node(id, |node| std::mem::replace(&mut node.state, State::Busy)) != Some(State::Running) {
            self.node(id, |node| node.state = State::Running);
            return;
        }
        tokio::select! {
            biased;
            () = life.over() => return,
            () = raft.shutdown() => {}
        }
        if self.node(id, |node| node.state) == Some(State::Busy) {
            self.bury(id, "it shut down in order");
        }
    }

    pub(crate) fn pause(&self, id: NodeId) {
        let paused = self.node(id, |node| {
            let runs = node.state == State::Running;
            if runs {
                node.state = State::Paused;
                node.clock.pause();
            }
            runs
        });
        if paused == Some(true) {
            self.0.links.pause(id);
            self.0.world.tell(|| format!("n{id} is paused"));
        }
    }

    pub(crate) fn resume(&self, id: NodeId) {
        let resumed = self.node(id, |node| {
            let paused = node.state == State::Paused;
            if paused {
                node.state = State::Running;
                node.clock.resume();
            }
            paused
        });
        if resumed == Some(true) {
            self.0.world.tell(|| format!("n{id} goes on"));
            self.0.links.resume(id);
        }
    }

    /// Every node ends, which breaks the circle of handles.
    pub(crate) fn end(&self) {
        let ids = self.nodes(|nodes| nodes.keys().copied().collect::<Vec<_>>());
        ids.into_iter().for_each(|id| self.kill(id));
        self.nodes(|nodes| nodes.values().for_each(|node| self.count_files(&node.disk)));
        let large = self.0.links.large_messages();
        self.0.world.count(|counts| counts.room("message of half a frame", large));
        self.0.links.cut_power_with(None);
        // Breaks the circles of callbacks.
        self.nodes(|nodes| {
            nodes.values().for_each(|node| node.disk.cut_power_with(None));
            nodes.clear();
        });
    }

    fn count_files(&self, disk: &NodeDisk) {
        let Tally { built, fetched, resumed, cuts, failed, short } = disk.tally();
        let VolumeCounters { refused, reserved, lent } = disk.room().volume.counters();
        self.0.world.count(|counts| {
            counts.snapshot("built", built.load(Relaxed));
            counts.snapshot("fetched", fetched.load(Relaxed));
            counts.snapshot("resumed", resumed.load(Relaxed));
            counts.room("snapshot while room was short", short.load(Relaxed));
            counts.room("write without room", refused);
            counts.room("reserve made", reserved);
            counts.room("reserve lent", lent);
            for (kind, fired) in [("power cut at a file", cuts), ("error of a file", failed)] {
                let fired = fired.load(Relaxed);
                if fired > 0 {
                    *counts.disk.entry(kind).or_default() += fired;
                }
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, (Rng, BTreeMap<NodeId, Node<S>>)> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where founders listen: nobody dials addresses here, but they are part of what founders compare.
pub(crate) fn address(id: NodeId) -> Address {
    Address(format!("n{id}:7000"))
}

/// Tells the world of one life's drains.
struct Watcher {
    node: NodeId,
    world: World,
    hooks: Hooks,
}

impl Observer for Watcher {
    fn replayed(&self, snapshot: u64) {
        if !self.hooks.is_over() {
            self.world.saw(Event::Replayed { node: self.node, snapshot });
        }
    }

    fn marked(&self, mark: &Mark) {
        if !self.hooks.is_over() {
            self.world.saw(Event::Marked { node: self.node, mark: *mark });
        }
    }

    fn drained(&self, drained: Drained<'_>) {
        if self.hooks.is_over() {
            return;
        }
        let Drained { raft_state, append, transmit, apply, restore, voters, sends, low_space } = drained;
        let apply: Vec<_> = apply.collect();
        let idle = append.is_empty() && transmit.is_empty() && apply.is_empty() && restore.is_none();
        if idle && self.world.stands(self.node, raft_state) {
            return;
        }
        let (voters, sends) = (voters(), sends());
        let decided = Decided { raft_state, append, transmit, apply, restore, voters, sends, low_space };
        self.world.saw(Event::Drained { node: self.node, drained: &decided });
    }
}
