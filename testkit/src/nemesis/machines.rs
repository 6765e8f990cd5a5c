//! Faults of state machines: one that takes long, panics, or answers wrongly. Those around snapshots are in
//! `snapshots`.

use std::time::Duration;

use actorum_machine::{ids::NodeId, machine::StateMachine};
use tokio::time::sleep;

use super::{FaultTask, State};

/// How long a machine answers wrongly at the most.
const LIES_MS: u64 = 10_000;

impl<S: StateMachine> FaultTask<S> {
    pub(super) async fn slow_machine(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let (fleet, node, world) = (self.fleet.clone(), hold.0, self.world().clone());
        let stood_still = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stands = stood_still.clone();
        let hooks = self.fleet.node(node, |node| node.hooks.clone());
        hooks.into_iter().for_each(|hooks| {
            let (fleet, world, stands) = (fleet.clone(), world.clone(), stands.clone());
            hooks.slow_next(Box::new(move || {
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
        self.fleet.node(node, |node| node.hooks.calm());
        self.fleet.resume(node);
    }

    pub(super) async fn panic(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        self.fleet.node(hold.0, |node| node.hooks.panic_next());
        self.until_down(std::slice::from_ref(&hold)).await;
        self.fleet.node(hold.0, |node| node.hooks.calm());
        if self.fleet.node(hold.0, |node| node.state) == Some(State::Down) {
            self.a_while(20, 1000).await;
            self.come_back(hold.0).await;
        }
    }

    /// A machine that is not deterministic, on a node whose answers nobody is given.
    pub(super) async fn wrong_answers(&mut self) {
        let leader = self.world().facts(|facts| facts.leader());
        let others: Vec<NodeId> =
            self.fleet.in_state(State::Running).into_iter().filter(|id| Some(*id) != leader).collect();
        let Some(hold) = self.rng.pick(&others).copied().and_then(|id| self.hold(id)) else { return };
        let node = hold.0;
        self.fleet.node(node, |node| node.hooks.lie(true));
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
        // Whoever has not found out by now was cut off from the others, or nothing was proposed. That it does is looked
        // at when the faults are over.
        self.fleet.kill(node);
        self.a_while(20, 500).await;
        self.come_back(node).await;
    }
}
