//! The nemesis: it chooses faults by their weights, begins them, and ends them.
//!
//! Each fault is a task of its own, so several are under way at once; but a fault that may stop a node (a crash, a
//! pause, a bad disk) reserves it, so that no two such faults have one node at the same time. A fault also ends
//! everything that it began.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use actorum_machine::{ids::NodeId, machine::StateMachine};
use tokio::{task::JoinHandle, time::sleep};

use super::{
    disk::DiskFault,
    faults::Faults,
    fleet::{Fleet, State},
    rng::Rng,
    world::World,
};

mod fault_task;
mod network;
mod processes;
mod clocks;
mod disks;
mod copies;
mod snapshots;
mod machines;
mod membership;
mod churn;
mod programs;

use fault_task::{FaultTask, Hold, Reserved};

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultKind {
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
    FilledVolume,
    FlippedBit,
    TornWrite,
    OldCopy,
    RolledBack,
    Twin,
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
    PutBack,
}

fn weights(faults: &Faults) -> [(FaultKind, u32); 38] {
    use FaultKind::*;
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
        (FilledVolume, faults.filled_volume),
        (FlippedBit, faults.flipped_bit),
        (TornWrite, faults.torn_write),
        (OldCopy, faults.old_copy),
        (RolledBack, faults.rolled_back),
        (Twin, faults.twin),
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
        (PutBack, faults.put_back),
    ]
}

/// Chooses and begins faults.
pub(crate) struct Nemesis<S: StateMachine> {
    fleet: Fleet<S>,
    faults: Faults,
    rng: Rng,
    reserved: Reserved,
    changing: Rc<RefCell<u32>>,
    /// Whether a calendar is wrong by a year, or was lately.
    wrong_year: Rc<Cell<bool>>,
    count: u64,
    next_id: Rc<RefCell<NodeId>>,
    founders: NodeId,
}

impl<S: StateMachine> Nemesis<S> {
    pub(super) fn new(fleet: &Fleet<S>, faults: &Faults, rng: Rng, founders: NodeId) -> Nemesis<S> {
        Nemesis {
            fleet: fleet.clone(),
            faults: faults.clone(),
            rng,
            reserved: Rc::default(),
            changing: Rc::default(),
            wrong_year: Rc::default(),
            count: 0,
            next_id: Rc::new(RefCell::new(founders + 1)),
            founders,
        }
    }

    /// Does its work until that virtual moment, then waits for everything it began to end.
    pub(super) async fn work(mut self, until_ms: u64) {
        let weights = weights(&self.faults);
        let total: u64 = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let every = (self.faults.every.as_millis() as u64).max(4);
        let mut under_way: Vec<JoinHandle<()>> = Vec::new();
        while total > 0 && !self.world().over() {
            let pause = self.rng.between(every / 4, every * 7 / 4);
            if self.world().scheduler().now_ms() + pause >= until_ms {
                break;
            }
            sleep(Duration::from_millis(pause)).await;
            let mut roll = self.rng.below(total);
            let chosen = weights.iter().find(|(_, weight)| {
                let hit = roll < u64::from(*weight);
                roll = roll.saturating_sub(if hit { 0 } else { u64::from(*weight) });
                hit
            });
            under_way.retain(|task| !task.is_finished());
            if let Some((kind, _)) = chosen {
                self.count += 1;
                let fault_task = FaultTask {
                    fleet: self.fleet.clone(),
                    rng: self.rng.fork("fault", self.count),
                    reserved: self.reserved.clone(),
                    changing: self.changing.clone(),
                    wrong_year: self.wrong_year.clone(),
                    next_id: self.next_id.clone(),
                    founders: self.founders,
                };
                under_way.push(actix_rt::spawn(fault_task.inject(*kind)));
            }
        }
        let rest = until_ms.saturating_sub(self.world().scheduler().now_ms());
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

impl<S: StateMachine> FaultTask<S> {
    /// Does what this kind of fault does, and undoes it.
    async fn inject(mut self, kind: FaultKind) {
        match kind {
            FaultKind::Loss => {
                let loss = self.rng.between(1_000, 30_000) as u32;
                self.link_faults("loss", |link_faults| link_faults.loss = loss).await;
            }
            FaultKind::Duplication => {
                let often = self.rng.between(1_000, 10_000) as u32;
                self.link_faults("duplication", |link_faults| link_faults.duplication = often).await;
            }
            FaultKind::Delay => {
                let jitter = self.rng.between(10, 500);
                self.link_faults("delay and reordering", |link_faults| link_faults.jitter_ms = jitter).await;
            }
            FaultKind::OneWayCut => self.one_way_cut().await,
            FaultKind::SlowPeer => self.slow_peer().await,
            FaultKind::Partition => self.partition().await,
            FaultKind::Reset => self.reset(),
            FaultKind::PowerCut => self.power_cut().await,
            FaultKind::Kill => self.kill().await,
            FaultKind::Pause => self.pause().await,
            FaultKind::ClockJump => self.clock_jump(),
            FaultKind::WrongYear => self.wrong_year().await,
            FaultKind::SlowDisk => self.slow_disk().await,
            FaultKind::HungDisk => self.hung_disk().await,
            FaultKind::DiskError => self.disk_error(DiskFault::Error, "write or sync error").await,
            FaultKind::FullDisk => self.disk_error(DiskFault::Full, "full disk").await,
            FaultKind::LowSpace => self.low_space().await,
            FaultKind::FilledVolume => self.filled_volume().await,
            FaultKind::FlippedBit => self.flipped_bit().await,
            FaultKind::TornWrite => self.torn_write().await,
            FaultKind::OldCopy => self.old_copy().await,
            FaultKind::RolledBack => self.rolled_back().await,
            FaultKind::Twin => self.twin().await,
            FaultKind::SwappedDirectory => self.swapped_directory().await,
            FaultKind::WipedDisk => self.wiped_disk().await,
            FaultKind::Absence => self.absence().await,
            FaultKind::SnapshotError => self.snapshot_error().await,
            FaultKind::RottenSnapshot => self.rotten_snapshot().await,
            FaultKind::FailingSnapshot => self.failing_snapshot().await,
            FaultKind::Panic => self.panic().await,
            FaultKind::WrongAnswers => self.wrong_answers().await,
            FaultKind::SlowMachine => self.slow_machine().await,
            FaultKind::Membership => self.membership().await,
            FaultKind::Campaign => self.campaign(),
            FaultKind::Subscription => self.subscription().await,
            FaultKind::TakeSnapshot => self.take_snapshot().await,
            FaultKind::Shutdown => self.shutdown().await,
            FaultKind::PutBack => self.put_back().await,
        }
    }
}
