//! Who does it: chooses faults by their weights, begins them, and ends them.
//!
//! Each fault is a task of its own, so several are under way at once; but what takes a node's life in hand (a crash, a
//! pause, a bad disk) reserves it, so that no two do at the same time. Everything a fault began it also ends.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
    time::Duration,
};

use actorum_actors::{
    clock_offsets::VALID,
    machine::StateMachine,
    members::{Change as ConfChange, ChangeRequest},
    message::Campaign,
};
use actorum_transport::wire::{GroupId, NodeId};
use tokio::{task::JoinHandle, time::sleep};

use super::{
    client::Client,
    dice::Dice,
    disk::{Disk, Loss, Mishap, Part},
    faults::Faults,
    fleet::{Fleet, State, address},
    listener::Listener,
    machine::{self, Watched},
    wire::Weather,
    world::{Durable, World},
};
use crate::{Bootstrap, StartError};

mod copies;

/// How long a machine answers wrongly at the most.
const LIES_MS: u64 = 10_000;

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Loss,
    Duplication,
    Delay,
    SlowPeer,
    OneWayCut,
    Partition,
    Reset,
    PowerCut,
    Kill,
    Pause,
    ClockJump,
    WrongYear,
    SlowDisk,
    HungDisk,
    DiskError,
    FullDisk,
    LowSpace,
    FlippedBit,
    TornWrite,
    OldCopy,
    RolledBack,
    SwappedDirectory,
    WipedDisk,
    Absence,
    SnapshotError,
    RottenSnapshot,
    FailingSnapshot,
    Panic,
    WrongAnswers,
    SlowMachine,
    Membership,
    Campaign,
    Subscription,
    TakeSnapshot,
    Shutdown,
}

fn weights(faults: &Faults) -> [(Kind, u32); 35] {
    use Kind::*;
    [
        (Loss, faults.loss),
        (Duplication, faults.duplication),
        (Delay, faults.delay),
        (SlowPeer, faults.slow_peer),
        (OneWayCut, faults.one_way_cut),
        (Partition, faults.partition),
        (Reset, faults.reset),
        (PowerCut, faults.power_cut),
        (Kill, faults.kill),
        (Pause, faults.pause),
        (ClockJump, faults.clock_jump),
        (WrongYear, faults.wrong_year),
        (SlowDisk, faults.slow_disk),
        (HungDisk, faults.hung_disk),
        (DiskError, faults.disk_error),
        (FullDisk, faults.full_disk),
        (LowSpace, faults.low_space),
        (FlippedBit, faults.flipped_bit),
        (TornWrite, faults.torn_write),
        (OldCopy, faults.old_copy),
        (RolledBack, faults.rolled_back),
        (SwappedDirectory, faults.swapped_directory),
        (WipedDisk, faults.wiped_disk),
        (Absence, faults.absence),
        (SnapshotError, faults.snapshot_error),
        (RottenSnapshot, faults.rotten_snapshot),
        (FailingSnapshot, faults.failing_snapshot),
        (Panic, faults.panic),
        (WrongAnswers, faults.wrong_answers),
        (SlowMachine, faults.slow_machine),
        (Membership, faults.membership),
        (Campaign, faults.campaign),
        (Subscription, faults.subscription),
        (TakeSnapshot, faults.take_snapshot),
        (Shutdown, faults.shutdown),
    ]
}

/// The nodes some fault has in hand.
type Reserved = Rc<RefCell<BTreeSet<NodeId>>>;

/// Holds a node until dropped.
struct Hold(NodeId, Reserved);

impl Drop for Hold {
    fn drop(&mut self) {
        self.1.borrow_mut().remove(&self.0);
    }
}

/// Chooses and begins faults.
pub(crate) struct Nemesis<S: StateMachine> {
    fleet: Fleet<S>,
    faults: Faults,
    dice: Dice,
    reserved: Reserved,
    changing: Rc<RefCell<u32>>,
    /// Whether a calendar is wrong by a year, or was lately.
    wrong_year: Rc<Cell<bool>>,
    count: u64,
    next_id: Rc<RefCell<NodeId>>,
    founders: NodeId,
}

impl<S: StateMachine> Nemesis<S> {
    pub fn new(fleet: &Fleet<S>, faults: &Faults, dice: Dice, founders: NodeId) -> Nemesis<S> {
        Nemesis {
            fleet: fleet.clone(),
            faults: faults.clone(),
            dice,
            reserved: Rc::default(),
            changing: Rc::default(),
            wrong_year: Rc::default(),
            count: 0,
            next_id: Rc::new(RefCell::new(founders + 1)),
            founders,
        }
    }

    /// Does its work until that virtual moment, then waits for everything it began to end.
    pub async fn work(mut self, until_ms: u64) {
        let weights = weights(&self.faults);
        let total: u64 = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let every = (self.faults.every.as_millis() as u64).max(4);
        let mut under_way: Vec<JoinHandle<()>> = Vec::new();
        while total > 0 && !self.world().over() {
            let pause = self.dice.between(every / 4, every * 7 / 4);
            if self.world().agenda().now_ms() + pause >= until_ms {
                break;
            }
            sleep(Duration::from_millis(pause)).await;
            let mut roll = self.dice.below(total);
            let chosen = weights.iter().find(|(_, weight)| {
                let hit = roll < u64::from(*weight);
                roll = roll.saturating_sub(if hit { 0 } else { u64::from(*weight) });
                hit
            });
            under_way.retain(|task| !task.is_finished());
            if let Some((kind, _)) = chosen {
                self.count += 1;
                let culprit = Culprit {
                    fleet: self.fleet.clone(),
                    dice: self.dice.fork("fault", self.count),
                    reserved: self.reserved.clone(),
                    changing: self.changing.clone(),
                    wrong_year: self.wrong_year.clone(),
                    next_id: self.next_id.clone(),
                    founders: self.founders,
                };
                under_way.push(actix_rt::spawn(culprit.commit(*kind)));
            }
        }
        let rest = until_ms.saturating_sub(self.world().agenda().now_ms());
        sleep(Duration::from_millis(rest)).await;
        for task in under_way {
            match tokio::time::timeout(Duration::from_secs(60), task).await {
                Ok(Ok(())) => {}
                Ok(Err(panic)) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
                Ok(Err(_)) => {}
                Err(_) => self.world().broken("every fault ends", "one was under way for a minute".into()),
            }
        }
    }

    fn world(&self) -> &World {
        self.fleet.world()
    }
}

/// One fault under way.
struct Culprit<S: StateMachine> {
    fleet: Fleet<S>,
    dice: Dice,
    reserved: Reserved,
    changing: Rc<RefCell<u32>>,
    wrong_year: Rc<Cell<bool>>,
    next_id: Rc<RefCell<NodeId>>,
    founders: NodeId,
}

impl<S: StateMachine> Culprit<S> {
    async fn commit(mut self, kind: Kind) {
        match kind {
            Kind::Loss => {
                let loss = self.dice.between(1_000, 30_000) as u32;
                self.weather("loss", |weather| weather.loss = loss).await;
            }
            Kind::Duplication => {
                let often = self.dice.between(1_000, 10_000) as u32;
                self.weather("duplication", |weather| weather.duplication = often).await;
            }
            Kind::Delay => {
                let jitter = self.dice.between(10, 500);
                self.weather("delay and reordering", |weather| weather.jitter_ms = jitter).await;
            }
            Kind::OneWayCut => self.one_way_cut().await,
            Kind::SlowPeer => self.slow_peer().await,
            Kind::Partition => self.partition().await,
            Kind::Reset => self.reset(),
            Kind::PowerCut => self.power_cut().await,
            Kind::Kill => self.kill().await,
            Kind::Pause => self.pause().await,
            Kind::ClockJump => self.clock_jump(),
            Kind::WrongYear => self.wrong_year().await,
            Kind::SlowDisk => self.slow_disk().await,
            Kind::HungDisk => self.hung_disk().await,
            Kind::DiskError => self.disk_error(Mishap::Error, "write or sync error").await,
            Kind::FullDisk => self.disk_error(Mishap::Full, "full disk").await,
            Kind::LowSpace => self.low_space().await,
            Kind::FlippedBit => self.flipped_bit().await,
            Kind::TornWrite => self.torn_write().await,
            Kind::OldCopy => self.old_copy().await,
            Kind::RolledBack => self.rolled_back().await,
            Kind::SwappedDirectory => self.swapped_directory().await,
            Kind::WipedDisk => self.wiped_disk().await,
            Kind::Absence => self.absence().await,
            Kind::SnapshotError => self.snapshot_error().await,
            Kind::RottenSnapshot => self.rotten_snapshot().await,
            Kind::FailingSnapshot => self.failing_snapshot().await,
            Kind::Panic => self.panic().await,
            Kind::WrongAnswers => self.wrong_answers().await,
            Kind::SlowMachine => self.slow_machine().await,
            Kind::Membership => self.membership().await,
            Kind::Campaign => self.campaign(),
            Kind::Subscription => self.subscription().await,
            Kind::TakeSnapshot => self.take_snapshot().await,
            Kind::Shutdown => self.shutdown().await,
        }
    }

    // ---- the network ---------------------------------------------------------------------------------------

    fn network(&self, kind: &'static str, what: impl FnOnce() -> String) {
        self.world().count(|counts| *counts.network.entry(kind).or_default() += 1);
        self.world().tell(|| format!("{kind}: {}", what()));
    }

    /// One direction of one link, for a while.
    async fn weather(&mut self, kind: &'static str, change: impl FnOnce(&mut Weather)) {
        let Some(from) = self.some_running() else { return };
        let others: Vec<NodeId> = self.fleet.in_state(State::Running).into_iter().filter(|id| *id != from).collect();
        let Some(to) = self.dice.pick(&others).copied() else { return };
        let (from, to) = if self.dice.below(2) == 0 { (from, to) } else { (to, from) };
        let mut bad = Weather::FAIR;
        change(&mut bad);
        self.network(kind, || format!("n{from} -> n{to} {bad:?}"));
        self.fleet.links().set(from, to, |weather| *weather = bad);
        self.a_while(300, 2500).await;
        self.fleet.links().set(from, to, |weather| *weather = Weather::FAIR);
    }

    async fn one_way_cut(&mut self) {
        let Some(from) = self.some_running() else { return };
        let others: Vec<NodeId> = self.fleet.in_state(State::Running).into_iter().filter(|id| *id != from).collect();
        let Some(to) = self.dice.pick(&others).copied() else { return };
        // Half of the time what the leader says is lost, half of the time what it is told.
        let (from, to) = if self.dice.below(2) == 0 { (from, to) } else { (to, from) };
        self.network("one-way cut", || format!("n{from} -> n{to}"));
        self.fleet.links().cut(from, to);
        self.a_while(300, 2500).await;
        self.fleet.links().heal(from, to);
    }

    async fn slow_peer(&mut self) {
        let Some(node) = self.some_running() else { return };
        if self.both_ways(node).is_empty() {
            return;
        }
        let delay = self.dice.between(20, 150);
        self.network("slow peer", || format!("n{node}, {delay} ms each way"));
        let slow = Weather { delay_ms: delay, jitter_ms: delay / 4, ..Weather::FAIR };
        let links = self.both_ways(node);
        links.iter().for_each(|(from, to)| self.fleet.links().set(*from, *to, |weather| *weather = slow));
        self.a_while(500, 3000).await;
        links.iter().for_each(|(from, to)| self.fleet.links().set(*from, *to, |weather| *weather = Weather::FAIR));
    }

    async fn partition(&mut self) {
        let all: Vec<NodeId> = self.fleet.nodes(|nodes| nodes.keys().copied().collect());
        let leader = self.world().facts(|facts| facts.leader());
        // Mostly the leader is cut off: that is when something is decided.
        let alone = match leader {
            Some(leader) if self.dice.below(3) > 0 => vec![leader],
            _ => all.iter().copied().filter(|_| self.dice.below(2) == 0).collect(),
        };
        let across: Vec<(NodeId, NodeId)> = all
            .iter()
            .flat_map(|a| all.iter().map(move |b| (*a, *b)))
            .filter(|(a, b)| alone.contains(a) != alone.contains(b))
            .collect();
        if across.is_empty() {
            return;
        }
        self.network("partition", || format!("{alone:?} from the rest"));
        across.iter().for_each(|(from, to)| self.fleet.links().cut(*from, *to));
        self.a_while(500, 3000).await;
        across.iter().for_each(|(from, to)| self.fleet.links().heal(*from, *to));
    }

    fn reset(&mut self) {
        let nodes = self.fleet.in_state(State::Running);
        let (Some(a), Some(b)) = (self.dice.pick(&nodes).copied(), self.dice.pick(&nodes).copied()) else { return };
        if a != b {
            self.network("connection reset", || format!("n{a} and n{b}"));
            self.fleet.links().reset(a, b);
        }
    }

    fn both_ways(&self, node: NodeId) -> Vec<(NodeId, NodeId)> {
        let all: Vec<NodeId> = self.fleet.nodes(|nodes| nodes.keys().copied().collect());
        all.into_iter().filter(|id| *id != node).flat_map(|id| [(id, node), (node, id)]).collect()
    }

    // ---- lives ---------------------------------------------------------------------------------------------

    fn process(&self, kind: &'static str) {
        self.world().count(|counts| *counts.process.entry(kind).or_default() += 1);
    }

    fn disk(&self, kind: &'static str, node: NodeId) {
        self.world().count(|counts| *counts.disk.entry(kind).or_default() += 1);
        self.world().tell(|| format!("{kind} on n{node}"));
    }

    async fn power_cut(&mut self) {
        let victims = match self.dice.below(6) {
            0 => self.fleet.in_state(State::Running),
            _ => self.some_running().into_iter().collect(),
        };
        let holds: Vec<Hold> = victims.into_iter().filter_map(|id| self.hold(id)).collect();
        for Hold(node, _) in &holds {
            let loss = self.some_loss();
            let node = *node;
            match self.dice.below(5) {
                0 => self.fleet.crash(node, loss),
                1 => self.fleet.links().arm(node, self.dice.between(1, 40), loss),
                2 => {
                    let step = self.dice.between(1, 20);
                    self.fleet.node(node, |node| node.disk.arm(Part::Log, step, loss));
                }
                _ => {
                    let step = self.dice.between(1, 40);
                    self.fleet.node(node, |node| node.disk.arm(Part::Files, step, loss));
                    if self.dice.below(2) == 0 {
                        self.ask_for_snapshot(node);
                    }
                }
            }
        }
        self.until_down(&holds).await;
        for Hold(node, _) in &holds {
            let loss = self.some_loss();
            self.fleet.crash(*node, loss);
            self.disk("power cut", *node);
        }
        self.a_while(20, 2000).await;
        for Hold(node, _) in &holds {
            self.come_back(*node).await;
        }
    }

    async fn kill(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.fleet.kill(hold.0);
        self.process("kill");
        self.a_while(20, 1500).await;
        self.come_back(hold.0).await;
    }

    async fn absence(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.fleet.kill(hold.0);
        self.process("absence");
        self.a_while(2000, 6000).await;
        self.come_back(hold.0).await;
    }

    async fn pause(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.process("pause");
        self.fleet.pause(hold.0);
        self.a_while(50, 2500).await;
        self.fleet.resume(hold.0);
    }

    async fn slow_machine(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let (fleet, node, world) = (self.fleet.clone(), hold.0, self.world().clone());
        let stood_still = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stands = stood_still.clone();
        let strings = self.fleet.node(node, |node| node.strings.clone());
        strings.into_iter().for_each(|strings| {
            let (fleet, world, stands) = (fleet.clone(), world.clone(), stands.clone());
            strings.slow_next(Box::new(move || {
                world.count(|counts| *counts.process.entry("slow state machine").or_default() += 1);
                stands.store(true, std::sync::atomic::Ordering::Relaxed);
                // Everything but the disk is on one thread, so it all waits for the machine.
                fleet.pause(node);
            }));
        });
        for _ in 0..20 {
            if stood_still.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.a_while(50, 1200).await;
        self.fleet.node(node, |node| node.strings.calm());
        self.fleet.resume(node);
    }

    fn clock_jump(&mut self) {
        let Some(node) = self.some_running() else { return };
        let by = self.dice.between(0, 20_000) as i64 - 10_000;
        self.process("clock jump");
        self.fleet.node(node, |node| node.clock.skew(by));
    }

    /// One calendar at a time: with two of three in error there is no right median.
    async fn wrong_year(&mut self) {
        if self.members().1.len() < 3 || self.wrong_year.replace(true) {
            return;
        }
        let Some(node) = self.some_running() else {
            self.wrong_year.set(false);
            return;
        };
        let year_ms = 365 * 24 * 3600 * 1000;
        let by = if self.dice.below(4) == 0 { -year_ms } else { year_ms };
        self.process("wrong year");
        self.world().tell(|| format!("the calendar of n{node} is wrong by {by} ms"));
        self.fleet.node(node, |node| node.clock.skew(by));
        self.a_while(1000, 6000).await;
        let back = self.dice.between(0, 4000) as i64 - 2000;
        self.fleet.node(node, |node| node.clock.skew(back));
        // What others have read of it is believed for so long where they cannot read it again.
        sleep(VALID + Duration::from_secs(1)).await;
        self.wrong_year.set(false);
    }

    async fn shutdown(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.world().count(|counts| *counts.churn.entry("shutdown").or_default() += 1);
        self.fleet.shut_down(hold.0).await;
        self.a_while(20, 1000).await;
        self.come_back(hold.0).await;
    }

    async fn panic(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.fleet.node(hold.0, |node| node.strings.panic_next());
        self.until_down(std::slice::from_ref(&hold)).await;
        self.fleet.node(hold.0, |node| node.strings.calm());
        if self.fleet.node(hold.0, |node| node.state) == Some(State::Down) {
            self.a_while(20, 1000).await;
            self.come_back(hold.0).await;
        }
    }

    /// A machine that is not deterministic, on a node whose answers nobody is given.
    async fn wrong_answers(&mut self) {
        let leader = self.world().facts(|facts| facts.leader());
        let others: Vec<NodeId> =
            self.fleet.in_state(State::Running).into_iter().filter(|id| Some(*id) != leader).collect();
        let Some(hold) = self.dice.pick(&others).copied().and_then(|id| self.hold(id)) else { return };
        let node = hold.0;
        self.fleet.node(node, |node| node.strings.lie(true));
        let runs = || self.fleet.node(node, |node| node.state) == Some(State::Running);
        for _ in 0..LIES_MS / 50 {
            if !runs() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        if self.world().facts(|facts| facts.nodes.get(&node).is_some_and(|facts| facts.lies)) {
            self.process("wrong answers of the state machine");
            self.world().tell(|| format!("the machine of n{node} has answered wrongly"));
        }
        if self.fleet.node(node, |node| node.state) == Some(State::Down) {
            self.process("wrong answers found");
        }
        // Whoever has not found out by now was cut off from the others, or nothing was proposed. That it does is looked at when the
        // faults are over.
        self.fleet.kill(node);
        self.a_while(20, 500).await;
        self.come_back(node).await;
    }

    // ---- disks ---------------------------------------------------------------------------------------------

    async fn slow_disk(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.disk("slow disk", hold.0);
        let at_most = self.dice.between(10, 200);
        self.fleet.node(hold.0, |node| node.disk.slow(at_most));
        self.a_while(300, 2500).await;
        self.fleet.node(hold.0, |node| node.disk.calm());
    }

    async fn hung_disk(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.disk("hung disk", hold.0);
        self.fleet.node(hold.0, |node| node.disk.hang());
        self.a_while(300, 4000).await;
        // Sometimes a hung disk is ended by a crash, for that is what people do.
        if self.dice.below(4) == 0 {
            let loss = self.some_loss();
            self.fleet.crash(hold.0, loss);
            self.disk("power cut", hold.0);
            self.fleet.node(hold.0, |node| node.disk.calm());
            self.a_while(20, 500).await;
            self.come_back(hold.0).await;
        } else {
            self.fleet.node(hold.0, |node| node.disk.calm());
        }
    }

    async fn low_space(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.disk("low space", hold.0);
        self.fleet.node(hold.0, |node| node.disk.low());
        self.a_while(1200, 4000).await;
        self.fleet.node(hold.0, |node| node.disk.calm());
    }

    async fn disk_error(&mut self, mishap: Mishap, kind: &'static str) {
        let Some(hold) = self.hold_running() else { return };
        self.may_stop(hold.0);
        let step = self.dice.between(1, 12);
        self.fleet.node(hold.0, |node| node.disk.fail(Part::Log, mishap, step));
        self.until_down(std::slice::from_ref(&hold)).await;
        let fired = self.fleet.node(hold.0, |node| node.disk.has_failed()) == Some(true);
        if fired {
            self.disk(kind, hold.0);
        }
        let loss = self.some_loss();
        self.fleet.crash(hold.0, loss);
        // Whatever it had not synced when it stopped is lost with the power that follows.
        self.fleet.node(hold.0, |node| {
            node.disk.crash(loss);
            node.disk.calm();
        });
        self.a_while(20, 1000).await;
        self.come_back(hold.0).await;
    }

    async fn flipped_bit(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.fleet.kill(hold.0);
        let roll = self.dice.roll();
        self.tampered(hold.0, true);
        let healthy = self.fleet.node(hold.0, |node| {
            let healthy = node.disk.backup();
            node.disk.flip_bit(roll);
            healthy
        });
        self.disk("flipped bit", hold.0);
        self.a_while(20, 300).await;
        // Intact, or refused by name; then somebody brings back the healthy copy.
        if !self.opens(hold.0) {
            self.fleet.node(hold.0, |node| node.disk.bring_back(healthy.expect("the node is there")));
        }
        self.tampered(hold.0, false);
        self.come_back(hold.0).await;
    }

    async fn torn_write(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let step = self.dice.between(1, 20);
        let torn = self.fleet.node(hold.0, |node| {
            node.disk.arm(Part::Log, step, Loss::Torn);
            node.disk.torn()
        });
        self.until_down(std::slice::from_ref(&hold)).await;
        self.fleet.crash(hold.0, Loss::Torn);
        // What is torn was promised to nobody, but with it sled's promise of whole batches is gone.
        self.tampered(hold.0, true);
        let healthy = self.fleet.node(hold.0, |node| node.disk.before_torn()).flatten();
        if self.fleet.node(hold.0, |node| node.disk.torn()) != torn {
            self.disk("torn write", hold.0);
        } else {
            self.disk("power cut", hold.0);
        }
        self.a_while(20, 500).await;
        if !self.opens(hold.0)
            && let Some(healthy) = healthy
        {
            self.fleet.node(hold.0, |node| node.disk.bring_back(healthy));
        }
        self.tampered(hold.0, false);
        self.come_back(hold.0).await;
    }

    async fn old_copy(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let old = self.fleet.node(hold.0, |node| node.disk.image());
        self.a_while(500, 3000).await;
        if self.fleet.node(hold.0, |node| node.state) != Some(State::Running) {
            return;
        }
        self.fleet.kill(hold.0);
        let Some(old) = old else { return };
        self.tampered(hold.0, true);
        let (newest, now) = self
            .fleet
            .node(hold.0, |node| (node.disk.backup(), promised(&node.disk)))
            .expect("a node of this fleet stays");
        self.fleet.node(hold.0, |node| node.disk.swap_for(old));
        self.disk("older copy", hold.0);
        // Within one term and without a vote between, a little less of the log may go unnoticed (see the watermark).
        let found = self.fleet.try_open(hold.0).ok().and_then(|store| store.recover(GroupId::FIRST).ok());
        if let Some(state) = found.map(|found| found.hard_state)
            && (state.term < now.0 || state.term == now.0 && state.vote != now.1)
        {
            let (node, term, vote) = (hold.0, state.term, state.vote);
            self.world().broken(
                "an older copy is refused",
                format!("n{node} opens a store with term {term}, vote {vote} after it had promised {now:?}"),
            );
        }
        self.fleet.node(hold.0, |node| node.disk.bring_back(newest));
        self.tampered(hold.0, false);
        self.come_back(hold.0).await;
    }

    async fn wiped_disk(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        // Before the cluster has written down who its members are, a wiped founder is a founder; and one that founded
        // alone has nobody to ask.
        if !self.is_recorded(hold.0) || (self.founders, hold.0) == (1, 1) {
            return;
        }
        self.fleet.kill(hold.0);
        self.tampered(hold.0, true);
        let healthy = self.fleet.node(hold.0, |node| {
            let healthy = node.disk.backup();
            node.disk.wipe();
            healthy
        });
        self.disk("wiped disk", hold.0);
        self.a_while(20, 300).await;
        // It runs as a stranger for a while; it must not vote.
        if self.fleet.node(hold.0, |node| node.state) == Some(State::Down) {
            let _ = self.fleet.start(hold.0).await;
        }
        self.may_stop(hold.0);
        self.a_while(500, 2500).await;
        self.fleet.kill(hold.0);
        self.fleet.node(hold.0, |node| {
            if node.state == State::Down {
                node.disk.bring_back(healthy.expect("the node is there"));
            }
        });
        self.tampered(hold.0, false);
        self.come_back(hold.0).await;
    }

    // ---- snapshots -----------------------------------------------------------------------------------------

    /// Somebody asks for one, and does not wait.
    fn ask_for_snapshot(&self, id: NodeId) {
        let Some((raft, _)) = self.fleet.raft(id) else { return };
        actix_rt::spawn(async move { drop(raft.take_snapshot().await) });
    }

    async fn take_snapshot(&mut self) {
        let Some(id) = self.some_running() else { return };
        let Some((raft, life)) = self.fleet.raft(id) else { return };
        self.churn("take snapshot");
        let applied = raft.status().applied_index;
        let taken = tokio::select! {
            biased;
            () = life.over() => return,
            // A disk that hangs answers nobody.
            () = sleep(Duration::from_secs(10)) => return,
            taken = raft.take_snapshot() => taken,
        };
        match taken {
            Ok(taken) if taken.index < applied => {
                let detail = format!("n{id} had applied {applied}, and answers with a snapshot at {}", taken.index);
                self.world().broken("a snapshot on demand is of now", detail);
            }
            Ok(taken) => self.world().tell(|| format!("n{id} has a snapshot at {}, as was asked", taken.index)),
            Err(error) => self.world().tell(|| format!("n{id} gives no snapshot: {error}")),
        }
    }

    /// The node must survive it, so nothing is forgiven here.
    async fn snapshot_error(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let mishap = if self.dice.below(2) == 0 { Mishap::Error } else { Mishap::Full };
        let step = self.dice.between(1, 16);
        self.fleet.node(hold.0, |node| node.disk.fail(Part::Files, mishap, step));
        if self.dice.below(2) == 0 {
            self.ask_for_snapshot(hold.0);
        }
        self.a_while(300, 3000).await;
        self.fleet.node(hold.0, |node| node.disk.calm());
    }

    async fn rotten_snapshot(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let roll = self.dice.roll();
        let rotten = self.fleet.node(hold.0, |node| node.disk.some_bit(roll).filter(|bit| node.disk.flip_file(bit)));
        let Some(Some(rotten)) = rotten else { return };
        self.disk("rotten snapshot", hold.0);
        // A restore that reads it just now stops the node.
        self.may_stop(hold.0);
        self.a_while(0, 1500).await;
        self.fleet.kill(hold.0);
        self.a_while(20, 500).await;
        if self.fleet.node(hold.0, |node| node.state) != Some(State::Down) || self.world().over() {
            return;
        }
        let Err(error) = self.fleet.start(hold.0).await else { return };
        if !error.to_string().contains("this node has no snapshot to start from") {
            return self.refused(hold.0, error);
        }
        self.world().tell(|| format!("n{} is refused: {error}", hold.0));
        self.world().count(|counts| counts.snapshot("refused", 1));
        // Somebody brings back the healthy file.
        self.fleet.node(hold.0, |node| node.disk.flip_file(&rotten));
        self.come_back(hold.0).await;
    }

    async fn failing_snapshot(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let mishap = if self.dice.below(2) == 0 { machine::Mishap::Error } else { machine::Mishap::Panic };
        let restores = self.dice.below(2) == 0;
        if restores {
            // Who comes back after a while is likely to be sent one.
            self.fleet.kill(hold.0);
            self.a_while(2000, 5000).await;
            if !self.come_back(hold.0).await {
                return;
            }
        }
        self.fleet.node(hold.0, |node| match restores {
            true => node.strings.fail_next_restore(mishap),
            false => node.strings.fail_next_snapshot(mishap),
        });
        if !restores {
            self.ask_for_snapshot(hold.0);
        }
        self.a_while(300, 3000).await;
        self.fleet.node(hold.0, |node| node.strings.calm());
        if self.fleet.node(hold.0, |node| node.state) == Some(State::Down) {
            self.come_back(hold.0).await;
        }
    }

    fn is_recorded(&self, id: NodeId) -> bool {
        let member = |raft: &crate::Raft<Watched<S>>| {
            raft.status().membership.members.get(&id).is_some_and(|member| member.incarnation.is_some())
        };
        let mut all = self.fleet.in_state(State::Running).into_iter().filter_map(|id| self.fleet.raft(id));
        all.all(|(raft, _)| member(&raft))
    }

    // ---- churn ---------------------------------------------------------------------------------------------

    fn churn(&self, kind: &'static str) {
        self.world().count(|counts| *counts.churn.entry(kind).or_default() += 1);
    }

    fn campaign(&mut self) {
        let Some((raft, _)) = self.some_running().and_then(|id| self.fleet.raft(id)) else { return };
        if let Some(core) = raft.door.core.upgrade() {
            self.churn("campaign");
            core.do_send(Campaign);
        }
    }

    async fn subscription(&mut self) {
        let Some(id) = self.some_running() else { return };
        let Some((raft, life)) = self.fleet.raft(id) else { return };
        self.churn("subscription");
        // One in three stops reading.
        let slow = if self.dice.below(3) == 0 { 3_600_000 } else { self.dice.below(400) };
        let after = (self.dice.below(2) == 0).then(|| self.dice.below(raft.status().applied_index + 1));
        let (world, number) = (self.world().clone(), self.world().next_request());
        let subscription = Listener::subscribe(&world, (id, &raft, &life), number, after, slow).await;
        self.a_while(200, 4000).await;
        if let Some((subscription, _)) = subscription {
            raft.unsubscribe(subscription);
        }
    }

    /// One change, and what belongs to it: a node that joins, or one that leaves.
    async fn membership(&mut self) {
        // Two at once, so that one finds the other under way.
        if *self.changing.borrow() >= 2 {
            return;
        }
        *self.changing.borrow_mut() += 1;
        let mut client = Client::new(u64::MAX, &self.fleet, self.dice.fork("changes", 0));
        let members = self.members();
        let strangers: Vec<NodeId> = self.fleet.nodes(|nodes| {
            let here = nodes.iter().filter(|(_, node)| node.state != State::Gone).map(|(id, _)| *id);
            here.filter(|id| !members.0.contains(id)).collect()
        });
        let more = members.0.len() + strangers.len() < 5;
        match self.dice.below(4) {
            0 | 1 if more => {
                let id = self.next_id.replace_with(|id| *id + 1);
                self.fleet.add(id, Bootstrap::Wait);
                if self.come_back(id).await {
                    self.churn("add learner");
                    let added = client.change(ConfChange::AddLearner(id, address(id))).await;
                    if added.is_ok() && self.dice.below(3) == 0 {
                        self.promote_the_absent(&mut client, id).await;
                    }
                    for _ in 0..6 {
                        self.a_while(100, 600).await;
                        self.churn("promote");
                        if client.change(ConfChange::Promote(id)).await.is_ok() {
                            break;
                        }
                    }
                }
            }
            0..3 if members.1.len() > 3 => {
                // Not one that another fault has in hand.
                if let Some(id) = self.dice.pick(&members.1).copied()
                    && let Some(_hold) = self.hold(id)
                {
                    self.churn("remove");
                    if client.change(ConfChange::Remove(id)).await.is_ok() {
                        // It goes on for a while, and may not know.
                        self.a_while(100, 1500).await;
                        self.fleet.kill(id);
                        self.fleet.node(id, |node| node.state = State::Gone);
                    }
                }
            }
            _ if members.1.len() > 2 => {
                if let Some(id) = self.dice.pick(&members.1).copied() {
                    let absent = match self.dice.below(3) {
                        0 => self.take_another_down(&members.1, id).await,
                        _ => None,
                    };
                    self.churn("demote");
                    let force = self.dice.below(6) == 0;
                    let demoted = client.change(ChangeRequest { change: ConfChange::Demote(id), force }).await;
                    if let Some(absent) = &absent {
                        self.come_back(absent.0).await;
                    }
                    if demoted.is_ok() {
                        self.a_while(100, 1000).await;
                        for _ in 0..6 {
                            self.churn("promote");
                            if client.change(ConfChange::Promote(id)).await.is_ok() {
                                break;
                            }
                            self.a_while(100, 600).await;
                        }
                    }
                }
            }
            _ => {}
        }
        *self.changing.borrow_mut() -= 1;
    }

    /// A learner that has been down for a while is no voter for the asking.
    async fn promote_the_absent(&mut self, client: &mut Client<S>, id: NodeId) {
        self.a_while(300, 1500).await;
        let Some(hold) = self.hold(id) else { return };
        self.fleet.kill(id);
        self.a_while(5200, 7000).await;
        self.churn("promote one that is down");
        // Refused unless it is forced; then its coming back is waited for.
        let force = self.dice.below(6) == 0;
        let _ = client.change(ChangeRequest { change: ConfChange::Promote(id), force }).await;
        self.come_back(hold.0).await;
    }

    /// Another voter is down for a while before a change, and until somebody lets it come back.
    async fn take_another_down(&mut self, voters: &[NodeId], but: NodeId) -> Option<Hold> {
        let others: Vec<NodeId> = voters.iter().copied().filter(|id| *id != but).collect();
        let other = self.dice.pick(&others).copied()?;
        let hold = self.hold(other)?;
        self.fleet.kill(hold.0);
        self.a_while(5200, 7000).await;
        self.churn("change with a voter down");
        Some(hold)
    }

    /// Members and voters, as the node says that has applied most.
    fn members(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let running = self.fleet.in_state(State::Running);
        let statuses = running.into_iter().filter_map(|id| self.fleet.raft(id)).map(|(raft, _)| raft.status());
        let newest = statuses.max_by_key(|status| status.applied_index);
        newest.map_or_else(Default::default, |status| {
            (status.membership.members.keys().copied().collect(), status.membership.voters())
        })
    }

    // ---- helpers -------------------------------------------------------------------------------------------

    fn world(&self) -> &World {
        self.fleet.world()
    }

    async fn a_while(&mut self, from_ms: u64, to_ms: u64) {
        let ms = self.dice.between(from_ms, to_ms);
        sleep(Duration::from_millis(ms)).await;
    }

    fn some_running(&mut self) -> Option<NodeId> {
        let nodes = self.fleet.in_state(State::Running);
        let leader = self.world().facts(|facts| facts.leader()).filter(|leader| nodes.contains(leader));
        // The leader is the more interesting victim.
        match leader {
            Some(leader) if self.dice.below(2) == 0 => Some(leader),
            _ => self.dice.pick(&nodes).copied(),
        }
    }

    fn hold(&self, node: NodeId) -> Option<Hold> {
        self.reserved.borrow_mut().insert(node).then(|| Hold(node, self.reserved.clone()))
    }

    fn hold_running(&mut self) -> Option<Hold> {
        let node = self.some_running()?;
        self.hold(node)
    }

    fn tampered(&self, node: NodeId, tampered: bool) {
        self.world().facts(|facts| {
            if let Some(facts) = facts.nodes.get_mut(&node) {
                facts.tampered = tampered;
            }
        });
    }

    fn may_stop(&self, node: NodeId) {
        self.world().facts(|facts| {
            if let Some(facts) = facts.nodes.get_mut(&node) {
                facts.may_stop = true;
            }
        });
    }

    fn some_loss(&mut self) -> Loss {
        match self.dice.below(3) {
            0 => Loss::All,
            1 => Loss::Prefix,
            _ => Loss::Subset,
        }
    }

    /// Waits until these nodes are down, or two seconds have passed.
    async fn until_down(&self, holds: &[Hold]) {
        for _ in 0..40 {
            let runs = |hold: &Hold| self.fleet.node(hold.0, |node| node.state) == Some(State::Running);
            if !holds.iter().any(runs) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether a node's disk opens; what opened is closed again.
    fn opens(&self, node: NodeId) -> bool {
        match self.fleet.try_open(node) {
            Ok(_) => true,
            Err(error) => {
                self.world().tell(|| format!("n{node} is refused: {error}"));
                false
            }
        }
    }

    /// Starts a node whose disk is honest: it must come back.
    async fn come_back(&mut self, node: NodeId) -> bool {
        if self.fleet.node(node, |node| node.state) != Some(State::Down) || self.world().over() {
            return false;
        }
        match self.fleet.start(node).await {
            Ok(()) => true,
            Err(error) => {
                self.refused(node, error);
                false
            }
        }
    }

    fn refused(&self, node: NodeId, error: StartError) {
        self.world().broken("an honest node comes back", format!("n{node} does not start: {error}"));
    }
}

/// Term and vote, as they are durable.
fn promised(disk: &Disk) -> (u64, NodeId) {
    let (term, vote, _) = disk.state();
    (term, vote)
}
