//! One fault under way: what it holds, and how what it did is undone.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
    time::Duration,
};

use actorum::StartError;
use actorum_machine::{ids::NodeId, machine::StateMachine};
use tokio::time::sleep;

use super::State;
use crate::{disk::Loss, fleet::Fleet, rng::Rng, world::World};

/// The nodes some fault has in hand.
pub(super) type Reserved = Rc<RefCell<BTreeSet<NodeId>>>;

/// Holds a node until dropped.
pub(super) struct Hold(pub NodeId, pub Reserved);

impl Drop for Hold {
    fn drop(&mut self) {
        self.1.borrow_mut().remove(&self.0);
    }
}

/// One fault under way.
pub(super) struct FaultTask<S: StateMachine> {
    pub fleet: Fleet<S>,
    pub rng: Rng,
    pub reserved: Reserved,
    pub changing: Rc<RefCell<u32>>,
    pub wrong_year: Rc<Cell<bool>>,
    pub next_id: Rc<RefCell<NodeId>>,
    pub founders: NodeId,
}

impl<S: StateMachine> FaultTask<S> {
    pub(super) fn world(&self) -> &World {
        self.fleet.world()
    }

    pub(super) async fn a_while(&mut self, from_ms: u64, to_ms: u64) {
        let ms = self.rng.between(from_ms, to_ms);
        sleep(Duration::from_millis(ms)).await;
    }

    pub(super) fn some_running(&mut self) -> Option<NodeId> {
        let nodes = self.fleet.in_state(State::Running);
        let leader = self.world().facts(|facts| facts.leader()).filter(|leader| nodes.contains(leader));
        // The leader is the more interesting victim.
        match leader {
            Some(leader) if self.rng.below(2) == 0 => Some(leader),
            _ => self.rng.pick(&nodes).copied(),
        }
    }

    pub(super) fn hold(&self, node: NodeId) -> Option<Hold> {
        self.reserved.borrow_mut().insert(node).then(|| Hold(node, self.reserved.clone()))
    }

    pub(super) fn hold_running(&mut self) -> Option<Hold> {
        let node = self.some_running()?;
        self.hold(node)
    }

    pub(super) fn tampered(&self, node: NodeId, tampered: bool) {
        self.world().facts(|facts| {
            if let Some(facts) = facts.nodes.get_mut(&node) {
                facts.tampered = tampered;
            }
        });
    }

    pub(super) fn may_stop(&self, node: NodeId) {
        self.world().facts(|facts| {
            if let Some(facts) = facts.nodes.get_mut(&node) {
                facts.may_stop = true;
            }
        });
    }

    pub(super) fn some_loss(&mut self) -> Loss {
        match self.rng.below(3) {
            0 => Loss::All,
            1 => Loss::Prefix,
            _ => Loss::Subset,
        }
    }

    /// Waits until these nodes are down, or two seconds have passed.
    pub(super) async fn until_down(&self, holds: &[Hold]) {
        for _ in 0..40 {
            let runs = |hold: &Hold| self.fleet.node(hold.0, |node| node.state) == Some(State::Running);
            if !holds.iter().any(runs) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether a node's disk opens; what opened is closed again.
    pub(super) fn opens(&self, node: NodeId) -> bool {
        match self.fleet.try_open(node) {
            Ok(_) => true,
            Err(error) => {
                self.world().tell(|| format!("n{node} is refused: {error}"));
                false
            }
        }
    }

    /// Starts a node whose disk is honest: it must come back.
    pub(super) async fn come_back(&mut self, node: NodeId) -> bool {
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

    pub(super) fn refused(&self, node: NodeId, error: StartError) {
        self.world().broken("an honest node comes back", format!("n{node} does not start: {error}"));
    }
}
