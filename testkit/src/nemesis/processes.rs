//! Faults of processes: those that end one, or let it stand still.

use actorum_machine::machine::StateMachine;

use super::{FaultTask, Hold, State};
use crate::disk::Part;

impl<S: StateMachine> FaultTask<S> {
    pub(super) fn process(&self, kind: &'static str) {
        self.world().count(|counts| *counts.process.entry(kind).or_default() += 1);
    }

    pub(super) async fn power_cut(&mut self) {
        let victims = match self.rng.below(6) {
            0 => self.fleet.in_state(State::Running),
            _ => self.some_running().into_iter().collect(),
        };
        let holds: Vec<Hold> = victims.into_iter().filter_map(|id| self.hold(id)).collect();
        for Hold(node, _) in &holds {
            let loss = self.some_loss();
            let node = *node;
            match self.rng.below(5) {
                0 => self.fleet.crash(node, loss),
                1 => self.fleet.links().arm(node, self.rng.between(1, 40), loss),
                2 => {
                    let step = self.rng.between(1, 20);
                    self.fleet.node(node, |node| node.disk.arm(Part::Log, step, loss));
                }
                _ => {
                    let step = self.rng.between(1, 40);
                    self.fleet.node(node, |node| node.disk.arm(Part::Files, step, loss));
                    if self.rng.below(2) == 0 {
                        self.ask_for_snapshot(node);
                    }
                }
            }
        }
        self.until_down(&holds).await;
        for Hold(node, _) in &holds {
            let loss = self.some_loss();
            self.fleet.crash(*node, loss);
            // One that had stopped by itself has no power to lose, and what was to take it is not for its next life.
            self.fleet.node(*node, |node| node.disk.calm());
            self.disk("power cut", *node);
        }
        self.a_while(20, 2000).await;
        for Hold(node, _) in &holds {
            self.come_back(*node).await;
        }
    }

    pub(super) async fn kill(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.fleet.kill(hold.0);
        self.process("kill");
        self.a_while(20, 1500).await;
        self.come_back(hold.0).await;
    }

    pub(super) async fn absence(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.fleet.kill(hold.0);
        self.process("absence");
        self.a_while(2000, 6000).await;
        self.come_back(hold.0).await;
    }

    pub(super) async fn pause(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.process("pause");
        self.fleet.pause(hold.0);
        self.a_while(50, 2500).await;
        self.fleet.resume(hold.0);
    }

    pub(super) async fn shutdown(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.world().count(|counts| *counts.churn.entry("shutdown").or_default() += 1);
        self.fleet.shut_down(hold.0).await;
        self.a_while(20, 1000).await;
        self.come_back(hold.0).await;
    }
}
