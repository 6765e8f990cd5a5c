//! Faults of operators: a node is put back to an older program.

use actorum_machine::machine::StateMachine;

use super::{FaultTask, State};

impl<S: StateMachine> FaultTask<S> {
    /// A node runs with the program before its own for a while, if that program understands what is in use. An
    /// invariant looks whether it stops exactly otherwise.
    pub(super) async fn put_back(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let node = hold.0;
        if self.fleet.node(node, |node| node.program.before().is_none()) != Some(false) {
            return;
        }
        match self.rng.below(2) {
            0 => self.fleet.kill(node),
            _ => self.fleet.shut_down(node).await,
        }
        if !self.fleet.put_back(node) {
            return;
        }
        self.churn("put back");
        self.a_while(20, 500).await;
        if self.come_back(node).await {
            self.a_while(500, 5000).await;
        }
        if self.fleet.node(node, |node| node.state == State::Running && node.put_back) == Some(true) {
            self.churn("put back and went on");
            self.fleet.kill(node);
        }
        self.fleet.upgrade(node);
        self.come_back(node).await;
    }
}
