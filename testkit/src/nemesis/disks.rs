//! Faults of disks: slow, hung, failing, full and damaged ones. Whole directories that are exchanged are in `copies`.

use actorum_machine::{ids::NodeId, machine::StateMachine};

use super::{FaultTask, State};
use crate::disk::{DiskFault, Loss, Part, Room};

impl<S: StateMachine> FaultTask<S> {
    pub(super) fn disk(&self, kind: &'static str, node: NodeId) {
        self.world().count(|counts| *counts.disk.entry(kind).or_default() += 1);
        self.world().tell(|| format!("{kind} on n{node}"));
    }

    pub(super) async fn slow_disk(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.disk("slow disk", hold.0);
        let at_most = self.rng.between(10, 200);
        self.fleet.node(hold.0, |node| node.disk.slow(at_most));
        self.a_while(300, 2500).await;
        self.fleet.node(hold.0, |node| node.disk.calm());
    }

    pub(super) async fn hung_disk(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.disk("hung disk", hold.0);
        self.fleet.node(hold.0, |node| node.disk.hang());
        self.a_while(300, 4000).await;
        // Sometimes a crash ends the hang of a disk, as an operator would do it.
        if self.rng.below(4) == 0 {
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

    pub(super) async fn low_space(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.disk("low space", hold.0);
        self.fleet.node(hold.0, |node| node.disk.low());
        self.a_while(1200, 4000).await;
        self.fleet.node(hold.0, |node| node.disk.calm());
    }

    /// Other programs fill its volume, and make room again. With a nearly full volume the node goes on. With a full one
    /// it stops with its next write, and starts once there is room.
    pub(super) async fn filled_volume(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let Some(room) = self.fleet.node(hold.0, |node| node.disk.room().clone()).filter(Room::ends) else { return };
        let low = self.fleet.config().low_space_bytes;
        let left = [0, low / 2, low, low * 2][self.rng.below(4) as usize];
        // Above that the log is cut in time, with the reserve's room if need be.
        if left < low * 2 {
            self.may_stop(hold.0);
        }
        room.volume.fill(left);
        self.disk("filled volume", hold.0);
        self.world().tell(|| format!("{left} bytes are left to it"));
        self.a_while(1000, 5000).await;
        if self.fleet.node(hold.0, |node| node.state) == Some(State::Down) {
            self.world().count(|counts| counts.room("stopped without room", 1));
            // A supervisor starts it again, though nothing is better yet. It may stop again, or not start.
            if self.rng.below(2) == 0 && !self.world().over() {
                let _ = self.fleet.start(hold.0).await;
                self.may_stop(hold.0);
                self.a_while(500, 1500).await;
            }
        }
        room.volume.clear();
        self.a_while(20, 500).await;
        self.come_back(hold.0).await;
    }

    pub(super) async fn disk_error(&mut self, fault: DiskFault, kind: &'static str) {
        let Some(hold) = self.hold_running() else { return };
        self.may_stop(hold.0);
        let step = self.rng.between(1, 12);
        self.fleet.node(hold.0, |node| node.disk.fail(Part::Log, fault, step));
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

    pub(super) async fn flipped_bit(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.fleet.kill(hold.0);
        let roll = self.rng.roll();
        self.tampered(hold.0, true);
        let healthy = self.fleet.node(hold.0, |node| {
            let healthy = node.disk.backup();
            node.disk.flip_bit(roll);
            healthy
        });
        self.disk("flipped bit", hold.0);
        self.a_while(20, 300).await;
        // The directory is intact, or refused with a specific error; then the healthy copy is brought back.
        if !self.opens(hold.0) {
            self.fleet.node(hold.0, |node| node.disk.bring_back(healthy.expect("the node is there")));
        }
        self.tampered(hold.0, false);
        self.come_back(hold.0).await;
    }

    pub(super) async fn torn_write(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let step = self.rng.between(1, 20);
        let torn = self.fleet.node(hold.0, |node| {
            node.disk.arm(Part::Log, step, Loss::Torn);
            node.disk.torn()
        });
        self.until_down(std::slice::from_ref(&hold)).await;
        self.fleet.crash(hold.0, Loss::Torn);
        // What did not come in this life is not for the next one.
        self.fleet.node(hold.0, |node| node.disk.calm());
        // The torn write was not promised yet, but it breaks sled's promise that batches are written whole or not at
        // all.
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
}
