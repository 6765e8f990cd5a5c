//! Snapshots on demand, and what befalls their files and the state machines that make and take them.

use std::time::Duration;

use actorum_machine::{ids::NodeId, machine::StateMachine};
use tokio::time::sleep;

use super::{FaultTask, State};
use crate::{
    disk::{DiskFault, Part},
    machine,
};

impl<S: StateMachine> FaultTask<S> {
    /// Somebody asks for one, and does not wait.
    pub(super) fn ask_for_snapshot(&self, id: NodeId) {
        let Some((raft, _)) = self.fleet.raft(id) else { return };
        actix_rt::spawn(async move { drop(raft.take_snapshot().await) });
    }

    pub(super) async fn take_snapshot(&mut self) {
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
    pub(super) async fn snapshot_error(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let fault = if self.rng.below(2) == 0 { DiskFault::Error } else { DiskFault::Full };
        let step = self.rng.between(1, 16);
        self.fleet.node(hold.0, |node| node.disk.fail(Part::Files, fault, step));
        if self.rng.below(2) == 0 {
            self.ask_for_snapshot(hold.0);
        }
        self.a_while(300, 3000).await;
        self.fleet.node(hold.0, |node| node.disk.calm());
    }

    pub(super) async fn rotten_snapshot(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let roll = self.rng.roll();
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

    pub(super) async fn failing_snapshot(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let fault = if self.rng.below(2) == 0 { machine::MachineFault::Error } else { machine::MachineFault::Panic };
        let restores = self.rng.below(2) == 0;
        if restores {
            // Who comes back after a while is likely to be sent one.
            self.fleet.kill(hold.0);
            self.a_while(2000, 5000).await;
            if !self.come_back(hold.0).await {
                return;
            }
        }
        self.fleet.node(hold.0, |node| match restores {
            true => node.hooks.fail_next_restore(fault),
            false => node.hooks.fail_next_snapshot(fault),
        });
        if !restores {
            self.ask_for_snapshot(hold.0);
        }
        self.a_while(300, 3000).await;
        self.fleet.node(hold.0, |node| node.hooks.calm());
        if self.fleet.node(hold.0, |node| node.state) == Some(State::Down) {
            self.come_back(hold.0).await;
        }
    }
}
