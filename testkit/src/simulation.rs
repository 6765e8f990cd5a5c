//! One run: a cluster, its clients and its faults, on one thread, in virtual time.
//!
//! ```text
//!  begin ─▶ faults and clients ──span──▶ faults end ─▶ heal: a leader, everyone back ─▶ calm: every request succeeds ─▶ compare
//! ```

use std::{collections::BTreeMap, fmt, future::Future, panic::resume_unwind, pin::Pin, sync::Arc, time::Duration};

use actix::System;
use actorum::{Bootstrap, Config, config::Placement};
use actorum_machine::{
    ids::{Address, NodeId},
    machine::StateMachine,
    members::{Member, MemberRole, Membership},
    outcome::TakeSnapshotError,
    response_check::ResponseCheck,
    status::{Formed, Role},
};
use actorum_transport::memory::Frames;
use tokio::time::sleep;

use super::{
    client::Client,
    faults::Faults,
    fleet::{Fleet, Node, State, address},
    kv::{Kv, Recorder},
    listener::follow,
    machine::state_of,
    nemesis::Nemesis,
    operator::operate,
    report::Report,
    rng::{Rng, fingerprint},
    scheduler::Scheduler,
    watchdog::Watchdog,
    wire::Links,
    world::{Durable, Event, STANDSTILL, World},
};

/// The least election timeout of simulated nodes, in virtual milliseconds.
const ELECTION_MS: u64 = 500;

/// After the faults a leader is there within so many of the longest election timeouts (which is twice the least).
///
/// One for followers to notice, the rest for split votes and for a candidate that is behind.
pub const LEADER_WITHIN: u64 = 10;

/// How long the clients go on after the cluster has healed.
const CALM: Duration = Duration::from_millis(1500);

/// How long after that a client may take to end.
const CLIENTS_END_WITHIN: Duration = Duration::from_secs(60);

/// Who is at most so many entries behind counts as up to date.
const CLOSE: u64 = 16;

/// While no fault is under way a node finds out within so many virtual milliseconds that it differs from a majority: a
/// question that was lost is asked again within less.
const FOUND_WITHIN_MS: u64 = 6_000;

/// A commit cuts off so many entries at least, if there are as many to go.
const SLICE: u64 = 500;

/// After the faults everybody is up to date within so many virtual milliseconds: the longest pause after failures, and
/// a transfer.
const CATCHES_UP_WITHIN_MS: u64 = 90_000;

/// What the clients of one run do, and the verdict at its end.
pub struct Script<S: StateMachine> {
    /// One client from its beginning to its end.
    pub client: ClientOf<S>,
    /// Whether all results of the clients together can be true.
    pub verdict: Box<dyn Fn() -> Result<(), String>>,
}

impl<S: StateMachine> fmt::Debug for Script<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").finish_non_exhaustive()
    }
}

/// One client's whole life.
pub type ClientOf<S> = Box<dyn Fn(Client<S>) -> Pin<Box<dyn Future<Output = ()>>>>;

/// A cluster in a simulated world that tries to break it.
///
/// ```
/// use std::time::Duration;
/// use actorum_testkit::{Faults, Kv, Simulation};
///
/// let report = Simulation::<Kv>::recorded(7).nodes(3).faults(Faults::harsh()).run(Duration::from_secs(5));
/// report.assert_ok();
/// ```
pub struct Simulation<S: StateMachine> {
    seed: u64,
    nodes: u64,
    clients: u64,
    faults: Faults,
    config: Config,
    frames: Frames,
    volume: Option<u64>,
    make: Arc<dyn Fn() -> S + Send + Sync>,
    script: Arc<dyn Fn() -> Script<S> + Send + Sync>,
    tell: bool,
    least_progress: u64,
    standstill: Duration,
}

impl<S: StateMachine> fmt::Debug for Simulation<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("seed", &self.seed)
            .field("nodes", &self.nodes)
            .field("clients", &self.clients)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl<S: StateMachine + Default> Simulation<S> {
    /// A run that follows from this seed: three nodes, three clients, no faults, and nothing to do yet.
    pub fn new(seed: u64) -> Self {
        Simulation::of(seed, S::default)
    }
}

impl Simulation<Kv> {
    /// A run of the key-value store, whose clients record what they are told; it is linearizable or the run fails.
    pub fn recorded(seed: u64) -> Self {
        Simulation::new(seed).script(|| {
            let recorder = Recorder::default();
            let clients = recorder.clone();
            let client: ClientOf<Kv> = Box::new(move |client| Box::pin(clients.clone().client(client)));
            Script { client, verdict: Box::new(move || recorder.verdict()) }
        })
    }
}

impl<S: StateMachine> Simulation<S> {
    /// A run with state machines made by a function.
    pub fn of(seed: u64, make: impl Fn() -> S + Send + Sync + 'static) -> Self {
        let config = Config {
            heartbeat_ms: 100,
            election_ms: ELECTION_MS,
            deadline_ms: 2000,
            subscriber_buffer: 64,
            subscriber_buffer_bytes: 4 << 10,
            disk_slow_ms: 800,
            // Small, so that snapshots are built, sent in pieces and installed in a run of seconds.
            snapshot_entries: 50,
            log_keep_entries: 20,
            log_hold_bytes: 64 << 10,
            snapshot_timeout_ms: 2000,
            snapshot_piece_bytes: 256,
            // Often, so that what differs is found in a run of seconds; and always an end.
            hash_check_entries: 10,
            response_check: ResponseCheck::Stop,
            ..Config::default()
        };
        Simulation {
            seed,
            nodes: 3,
            clients: 3,
            faults: Faults::none(),
            config,
            frames: Frames::default(),
            volume: None,
            make: Arc::new(make),
            script: Arc::new(|| Script { client: Box::new(|_| Box::pin(async {})), verdict: Box::new(|| Ok(())) }),
            tell: false,
            least_progress: 0,
            standstill: Duration::from_secs(30),
        }
    }

    /// How many founders. At least 1; changes of the membership add up to two more.
    pub fn nodes(mut self, nodes: u64) -> Self {
        assert!(nodes >= 1, "a cluster has at least one node");
        self.nodes = nodes;
        self
    }

    /// How many clients.
    pub fn clients(mut self, clients: u64) -> Self {
        self.clients = clients;
        self
    }

    /// What is done to it.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Changes settings of the nodes.
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// How large a frame of the network may be, in bytes: for Raft messages, and for questions and answers. Default: as
    /// over QUIC. A larger frame is not sent, and breaks the run.
    pub fn frames(mut self, messages: usize, questions: usize) -> Self {
        self.frames = Frames { messages, questions };
        self
    }

    /// How large the volume of each node's disk is, in bytes: it holds the log, the snapshots and the reserve, and
    /// others may fill it. Default: without an end. The settings that take room say what a node needs, above all
    /// [`low_space_bytes`](Config::low_space_bytes). On a volume that is large enough for it, no node may ever stop for
    /// lack of room.
    pub fn volume(mut self, bytes: u64) -> Self {
        self.volume = Some(bytes);
        self
    }

    /// What each client does: a loop that asks [`Client::goes_on`].
    pub fn workload<F: Future<Output = ()> + 'static>(
        self,
        client: impl Fn(Client<S>) -> F + Send + Sync + 'static,
    ) -> Self {
        let client = Arc::new(client);
        self.script(move || {
            let client = client.clone();
            Script { client: Box::new(move |one| Box::pin(client(one))), verdict: Box::new(|| Ok(())) }
        })
    }

    /// What the clients do, made anew for each run, with its own verdict at the end.
    pub fn script(mut self, script: impl Fn() -> Script<S> + Send + Sync + 'static) -> Self {
        self.script = Arc::new(script);
        self
    }

    /// The run fails if fewer requests than this succeed, so that a cluster that does nothing does not pass.
    pub fn at_least(mut self, succeeded: u64) -> Self {
        self.least_progress = succeeded;
        self
    }

    /// The run fails if virtual time stands still for so long in real time, because a client never waits for anything,
    /// or does too much at one moment. Default 30 s.
    pub fn standstill(mut self, real: Duration) -> Self {
        self.standstill = real;
        self
    }

    /// Records the whole story, which costs time. A run that breaks is run again with its story anyway.
    pub fn tell(mut self) -> Self {
        self.tell = true;
        self
    }

    /// Runs so much virtual time with faults, then heals the cluster and compares. Blocks this thread for the real time
    /// it takes, some thousandths of the virtual.
    pub fn run(self, span: Duration) -> Report {
        let report = self.once(span, self.tell);
        // A standstill takes as long again the second time, and has no story.
        let standstill = report.violation.as_ref().is_some_and(|violation| violation.invariant == STANDSTILL);
        if report.is_ok() || self.tell || standstill {
            return report;
        }
        let told = self.once(span, true);
        if told.violation == report.violation {
            return told;
        }
        // The second run differs from the first: the report says so instead of showing another story.
        let mut report = report;
        report.story =
            vec![format!("the second run of this seed differed (trace {:016x}): not deterministic", told.trace)];
        report
    }

    /// On a thread of its own, since an actix system belongs to one.
    fn once(&self, span: Duration, tell: bool) -> Report {
        let run = Run {
            seed: self.seed,
            nodes: self.nodes,
            clients: self.clients,
            faults: self.faults.clone(),
            config: self.config.clone(),
            frames: self.frames,
            volume: self.volume,
            make: self.make.clone(),
            script: self.script.clone(),
            least_progress: self.least_progress,
            standstill: self.standstill,
            rng: Rng::new(self.seed).fork("heal", 0),
        };
        let name = format!("seed {}", self.seed);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let paused = || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime.enable_time().start_paused(true).build().expect("a runtime without input and output")
            };
            System::with_tokio_rt(paused).block_on(run.play(span, tell))
        });
        match thread.expect("a thread can be started").join() {
            Ok(report) => report,
            #[allow(clippy::print_stderr, reason = "in a test, whose panic goes on")]
            Err(panic) => {
                eprintln!("the simulation of seed {} panicked", self.seed);
                resume_unwind(panic)
            }
        }
    }
}

/// What a run needs, on its thread.
struct Run<S: StateMachine> {
    seed: u64,
    nodes: u64,
    clients: u64,
    faults: Faults,
    config: Config,
    frames: Frames,
    volume: Option<u64>,
    make: Arc<dyn Fn() -> S + Send + Sync>,
    script: Arc<dyn Fn() -> Script<S> + Send + Sync>,
    least_progress: u64,
    standstill: Duration,
    rng: Rng,
}

impl<S: StateMachine> Run<S> {
    async fn play(mut self, span: Duration, tell: bool) -> Report {
        let rng = Rng::new(self.seed);
        let scheduler = Scheduler::new();
        let keeper = actix_rt::spawn(scheduler.clone().keep());
        self.config.placement = Placement::Compact; // one thread is the point
        let world = World::new(&scheduler, tell, &self.config);
        let links = Links::new(&world, self.frames, rng.fork("links", 0));
        self.config.seed = Some(rng.fork("elections", 0).roll());
        let fleet =
            Fleet::new(&world, &links, self.make.clone(), self.config.clone(), self.volume, rng.fork("fleet", 0));
        fleet.let_power_be_cut();
        let script = (self.script)();
        let clients = self.begin(&fleet, &script, &rng).await;
        let aborts = clients.iter().map(tokio::task::JoinHandle::abort_handle).collect();
        let watchdog = Watchdog::watch(world.clone(), aborts, self.standstill);
        let nemesis = Nemesis::new(&fleet, &self.faults, rng.fork("nemesis", 0), self.nodes);
        nemesis.work(span.as_millis() as u64).await;
        let succeeded = world.counts().succeeded;
        if succeeded < self.least_progress {
            let detail = format!("{succeeded} requests succeeded among the faults, fewer than {}", self.least_progress);
            world.broken("progress", detail);
        }
        self.heal(&fleet).await;
        for client in clients {
            match tokio::time::timeout(CLIENTS_END_WITHIN, client).await {
                Ok(Err(panic)) if panic.is_panic() => resume_unwind(panic.into_panic()),
                Ok(_) => {}
                Err(_) => world.broken("every client ends", "one still waits, or never asks `goes_on`".into()),
            }
        }
        self.compare(&fleet, &script).await;
        drop(watchdog);
        world.saw(Event::End);
        fleet.end();
        keeper.abort();
        scheduler.clear();
        let (trace, counts, violation, story) = world.close();
        // Whatever was told to end does so before the thread goes.
        sleep(Duration::from_secs(1)).await;
        Report { seed: self.seed, trace, counts, violation, story }
    }

    async fn begin(&self, fleet: &Fleet<S>, script: &Script<S>, rng: &Rng) -> Vec<tokio::task::JoinHandle<()>> {
        let founders: BTreeMap<_, _> = (1..=self.nodes).map(|id| (id, address(id))).collect();
        let founder = |(id, address): (&NodeId, &Address)| {
            (*id, Member { address: address.clone(), role: MemberRole::Voter, incarnation: None })
        };
        let membership = Membership { members: founders.iter().map(founder).collect(), retired: Default::default() };
        fleet.world().facts(|facts| facts.in_use.founded_by(membership));
        for id in 1..=self.nodes {
            fleet.add(id, Bootstrap::Form(founders.clone()));
            self.start(fleet, id).await;
        }
        let mut formation = rng.fork("formation", 0);
        if self.nodes >= 3 && self.faults.kill > 0 && formation.below(2) == 0 {
            self.kill_while_forming(fleet, formation).await;
        }
        let client = |number| Client::new(number, fleet, rng.fork("client", number));
        let clients = (0..self.clients).map(|number| actix_rt::spawn((script.client)(client(number))));
        let follower = actix_rt::spawn(follow(fleet.clone(), rng.fork("follower", 0)));
        let operator = || actix_rt::spawn(operate(fleet.clone(), rng.fork("operator", 0)));
        let operator = fleet.waits_for_operator().then(operator);
        clients.chain([follower]).chain(operator).collect()
    }

    async fn start(&self, fleet: &Fleet<S>, id: NodeId) {
        if let Err(error) = fleet.start(id).await {
            fleet.world().broken("an honest node comes back", format!("n{id} does not start: {error}"));
        }
    }

    /// A founder dies at any step of the forming, and another one no longer hears it before that. Once one of the
    /// others has formed, they need nobody else: a majority of founders of which one is formed has a leader, for as
    /// long as the dead one is away.
    async fn kill_while_forming(&self, fleet: &Fleet<S>, mut rng: Rng) {
        let world = fleet.world();
        let victim = rng.between(1, self.nodes);
        let deaf = 1 + (victim - 1 + rng.between(1, self.nodes - 1)) % self.nodes;
        let cut = rng.between(0, 60);
        sleep(Duration::from_millis(cut)).await;
        world.tell(|| format!("while the cluster forms n{victim} and n{deaf} are cut off from each other"));
        for (from, to) in [(victim, deaf), (deaf, victim)] {
            fleet.links().cut(from, to);
        }
        // Mostly soon; sometimes the first leader leads by then.
        let most = if rng.below(4) == 0 { 2000 } else { 100 };
        sleep(Duration::from_millis(rng.between(0, most))).await;
        let others: Vec<NodeId> = (1..=self.nodes).filter(|id| *id != victim).collect();
        let status = |id: &NodeId| fleet.raft(*id).map(|(raft, _)| raft.status());
        let formed = || others.iter().filter_map(status).filter(|status| status.formed == Formed::Yes).count();
        if (1..others.len()).contains(&formed()) {
            world.count(|counts| *counts.process.entry("death while some have formed").or_default() += 1);
        }
        match rng.below(2) {
            0 => fleet.kill(victim),
            _ => fleet.crash(victim, super::disk::Loss::All),
        }
        for (from, to) in [(victim, deaf), (deaf, victim)] {
            fleet.links().heal(from, to);
        }
        // What is decided by now becomes durable within this.
        sleep(Duration::from_millis(500)).await;
        let formed = formed();
        let (begun, longest) =
            (world.scheduler().now_ms(), LEADER_WITHIN * 2 * ELECTION_MS.max(self.config.election_ms));
        while formed > 0 && !world.over() {
            let leads = |id: &NodeId| status(id).is_some_and(|status| status.role == Role::Leader);
            if others.iter().any(leads) {
                break;
            }
            if world.scheduler().now_ms() - begun > longest {
                let detail = format!(
                    "{formed} of {others:?} were formed when n{victim} died, and nobody leads after {longest} ms"
                );
                world.broken("formed founders need no dead one", detail);
            }
            sleep(Duration::from_millis(20)).await;
        }
        if !world.over() && fleet.node(victim, |node| node.state) == Some(State::Down) {
            self.start(fleet, victim).await;
        }
    }

    /// Everything comes back, and then every request succeeds.
    async fn heal(&mut self, fleet: &Fleet<S>) {
        let world = fleet.world();
        fleet.links().calm();
        for id in fleet.in_state(State::Paused) {
            fleet.resume(id);
        }
        fleet.nodes(|nodes| {
            nodes.values().for_each(|node| {
                node.disk.room().volume.clear();
                node.disk.calm();
            });
        });
        for id in fleet.in_state(State::Down) {
            if world.over() {
                return;
            }
            if let Err(error) = fleet.start(id).await {
                world.broken("an honest node comes back", format!("n{id} does not start: {error}"));
            }
        }
        world.saw(Event::Healed);
        // It cannot commit before a majority has what it needs, which may be a snapshot that takes its time.
        if self.leader_after(fleet, true).await.is_none() {
            return;
        }
        // What somebody asked for in the last moment, a change of the membership perhaps, has had its time after this.
        sleep(self.config.deadline() + Duration::from_millis(200)).await;
        self.everyone_catches_up(fleet).await;
        if self.faults.wrong_answers > 0 && self.rng.below(4) == 0 {
            self.a_liar_is_found(fleet).await;
        }
        let Some(leader) = self.leader_after(fleet, false).await else { return };
        // Who has just started again may be behind a log that was cut meanwhile.
        self.everyone_catches_up(fleet).await;
        self.dismiss_strangers(fleet, leader);
        world.saw(Event::Calm);
        let first = self.cut_logs(fleet).await;
        sleep(CALM).await;
        world.saw(Event::Closing);
        self.logs_are_bounded(fleet, &first).await;
    }

    /// Who stopped because its program lacks what is in use is given another one.
    async fn upgrade_outdated(&self, fleet: &Fleet<S>) {
        let outdated = |node: &mut Node<S>| node.outdated && node.state == State::Down;
        for id in fleet.in_state(State::Down) {
            if fleet.node(id, outdated) == Some(true) {
                self.start(fleet, id).await;
            }
        }
    }

    /// Waits for a leader that everyone follows; without one in time the run is broken.
    async fn leader_after(&self, fleet: &Fleet<S>, sends: bool) -> Option<NodeId> {
        let world = fleet.world();
        let begun = world.scheduler().now_ms();
        let longest = LEADER_WITHIN * 2 * ELECTION_MS.max(self.config.election_ms);
        while !world.over() {
            self.upgrade_outdated(fleet).await;
            let waited = world.scheduler().now_ms() - begun;
            if let Some(leader) = self.settled_leader(fleet, sends) {
                world.tell(|| format!("n{leader} leads, and everyone follows, after {waited} ms"));
                return Some(leader);
            }
            if waited > longest {
                let detail = format!("{waited} ms after the last fault no leader is followed by everyone");
                world.broken("a healed cluster has a leader", detail);
            }
            sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// Waits until nobody is behind who belongs to the cluster: who was away may need a snapshot, and who could not
    /// fetch one has a pause.
    async fn everyone_catches_up(&self, fleet: &Fleet<S>) {
        let world = fleet.world();
        let begun = world.scheduler().now_ms();
        while !world.over() {
            self.upgrade_outdated(fleet).await;
            let waited = world.scheduler().now_ms() - begun;
            let leader = world.facts(|facts| facts.leader()).and_then(|leader| fleet.raft(leader));
            let behind = leader.map(|(raft, _)| {
                let status = raft.status();
                let behind = |id: &NodeId| {
                    if status.snapshots.sending.contains_key(id) {
                        return true;
                    }
                    // Who is behind a snapshot may need it, though its index is close.
                    let needed = status.snapshot_index.max(status.applied_index.saturating_sub(CLOSE));
                    fleet.raft(*id).is_none_or(|(raft, _)| raft.status().applied_index < needed)
                };
                status.membership.members.keys().copied().filter(behind).collect::<Vec<_>>()
            });
            if behind.as_ref().is_some_and(Vec::is_empty) {
                return world.tell(|| format!("nobody is behind, after {waited} ms"));
            }
            if waited > CATCHES_UP_WITHIN_MS {
                let behind = behind.unwrap_or_default();
                world.broken(
                    "a healed node catches up",
                    format!("{waited} ms after the last fault {behind:?} are behind"),
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// With good links and disks a node whose machine answers wrongly finds out at the next marks, and stops.
    async fn a_liar_is_found(&mut self, fleet: &Fleet<S>) {
        let world = fleet.world();
        let (leader, voters) = world.facts(|facts| (facts.leader(), facts.voters.clone()));
        let others: Vec<NodeId> = voters.into_iter().filter(|id| Some(*id) != leader).collect();
        let Some(node) = self.rng.pick(&others).copied().filter(|_| others.len() > 1) else { return };
        // A life in which it has not led: nobody waits for its answers.
        fleet.kill(node);
        let runs = || fleet.node(node, |node| node.state) == Some(State::Running);
        for lies in [true, false] {
            if let Err(error) = fleet.start(node).await {
                return world.broken("an honest node comes back", format!("n{node} does not start: {error}"));
            }
            self.everyone_catches_up(fleet).await;
            if self.leader_after(fleet, true).await.is_none() || !lies {
                return;
            }
            fleet.node(node, |node| node.hooks.lie(true));
            let begun = world.scheduler().now_ms();
            while runs() && world.scheduler().now_ms() < begun + 10_000 && !world.over() {
                sleep(Duration::from_millis(50)).await;
                let marks = world.facts(|facts| facts.differs(node, FOUND_WITHIN_MS));
                if runs() && marks > 0 {
                    let detail = format!("n{node} still runs, {FOUND_WITHIN_MS} ms after a mark at which it differed");
                    world.broken("a machine that answers differently is found", detail);
                }
            }
            match runs() {
                // A node of the first version, or nothing was proposed.
                true => fleet.kill(node),
                false => {
                    world.count(|counts| *counts.process.entry("liar found in calm link_faults").or_default() += 1)
                }
            }
        }
    }

    /// On every node a snapshot can be taken, and then the log is short.
    async fn cut_logs(&self, fleet: &Fleet<S>) -> BTreeMap<NodeId, u64> {
        let mut taken = BTreeMap::new();
        for id in fleet.in_state(State::Running) {
            if fleet.world().over() {
                break;
            }
            let Some((raft, _)) = fleet.raft(id) else { continue };
            let taken_in_time = tokio::time::timeout(self.config.deadline() * 5, raft.take_snapshot()).await;
            let late = |_| TakeSnapshotError::Failed { cause: "it was not durable in time".into() };
            match taken_in_time.map_err(late).flatten() {
                Ok(snapshot) => drop(taken.insert(id, snapshot.index)),
                // One that nobody has added holds nothing.
                Err(TakeSnapshotError::Nothing) => {}
                Err(error) => fleet.world().broken("a healed node takes snapshots", format!("n{id}: {error}")),
            }
        }
        taken
    }

    /// Two snapshots after the faults the log reaches back to the first of them at most, or as far as it was told to;
    /// or, where more went than one commit takes, by so much less.
    async fn logs_are_bounded(&self, fleet: &Fleet<S>, first: &BTreeMap<NodeId, u64>) {
        let compacted_index = |id| fleet.node(id, |node| node.disk.compacted_index()).unwrap_or(0);
        let before: BTreeMap<_, _> = first.keys().map(|id| (*id, compacted_index(*id))).collect();
        let second = self.cut_logs(fleet).await;
        for (id, newest) in second {
            let Some(older) = first.get(&id).filter(|older| **older < newest) else { continue };
            let (before, compacted_index) = (before.get(&id).copied().unwrap_or(0), compacted_index(id));
            // A follower whose answer is on its way counts as that much behind.
            let expected = (*older).min(newest.saturating_sub(self.config.log_keep_entries)).saturating_sub(CLOSE);
            if compacted_index < expected.min(before + SLICE) {
                let detail =
                    format!("n{id} has snapshots at {older} and {newest}, and its log begins after {compacted_index}");
                fleet.world().broken("logs stay short", detail);
            }
        }
    }

    /// The leader that all its members follow, if there is one, with everything of its own applied; or with snapshots
    /// to send first, if it may.
    fn settled_leader(&self, fleet: &Fleet<S>, sends: bool) -> Option<NodeId> {
        let leader = fleet.world().facts(|facts| facts.leader())?;
        let (raft, _) = fleet.raft(leader)?;
        let status = raft.status();
        let all_applied = status.applied_index == status.last_index || sends && !status.snapshots.sending.is_empty();
        let settled = status.leader == Some(leader) && all_applied;
        let follows = |id: &NodeId| {
            fleet.raft(*id).is_some_and(|(raft, _)| {
                let theirs = raft.status();
                // A disk that was low on space is looked at once a second.
                theirs.leader == Some(leader) && theirs.term == status.term && !theirs.disk.low
            })
        };
        (settled && status.membership.members.keys().all(follows)).then_some(leader)
    }

    /// What was removed, or never made it, ends.
    fn dismiss_strangers(&self, fleet: &Fleet<S>, leader: NodeId) {
        let Some((raft, _)) = fleet.raft(leader) else { return };
        let membership = raft.status().membership;
        for id in fleet.in_state(State::Running) {
            if !membership.members.contains_key(&id) {
                fleet.kill(id);
                fleet.node(id, |node| node.state = State::Gone);
            }
        }
    }

    /// All nodes must hold the same state.
    async fn compare(&self, fleet: &Fleet<S>, script: &Script<S>) {
        let world = fleet.world();
        let mut states = Vec::new();
        for _ in 0..250 {
            states.clear();
            if world.over() {
                return;
            }
            for id in fleet.in_state(State::Running) {
                let Some((raft, _)) = fleet.raft(id) else { continue };
                let read = actorum::Read::stale(|machine: &super::machine::Watched<S>| state_of(&machine.inner));
                // A machine that cannot be read or written counts as one that is different.
                let (index, state) = match raft.read_with(read).await {
                    Ok((index, Ok(state))) => (index, fingerprint(&state)),
                    Ok((index, Err(_))) => (index, id),
                    Err(_) => (0, id),
                };
                states.push((id, index, state));
            }
            if states.windows(2).all(|pair| pair[0].1 == pair[1].1) {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        if states.is_empty() || !states.windows(2).all(|pair| (pair[0].1, pair[0].2) == (pair[1].1, pair[1].2)) {
            return world.broken("healed nodes are equal", format!("node, applied, state: {states:x?}"));
        }
        if let Err(detail) = (script.verdict)() {
            world.broken("linearizable", detail)
        }
    }
}
