//! What goes on in a healthy cluster, too: campaigns, and subscribers that come and go.

use actorum::seams;
use actorum_machine::machine::StateMachine;

use super::FaultTask;
use crate::listener::Listener;

impl<S: StateMachine> FaultTask<S> {
    pub(super) fn churn(&self, kind: &'static str) {
        self.world().count(|counts| *counts.churn.entry(kind).or_default() += 1);
    }

    pub(super) fn campaign(&mut self) {
        let Some((raft, _)) = self.some_running().and_then(|id| self.fleet.raft(id)) else { return };
        if seams::campaign(&raft) {
            self.churn("campaign");
        }
    }

    pub(super) async fn subscription(&mut self) {
        let Some(id) = self.some_running() else { return };
        let Some((raft, life)) = self.fleet.raft(id) else { return };
        self.churn("subscription");
        // One in three stops reading.
        let slow = if self.rng.below(3) == 0 { 3_600_000 } else { self.rng.below(400) };
        let after = (self.rng.below(2) == 0).then(|| self.rng.below(raft.status().applied_index + 1));
        let (world, number) = (self.world().clone(), self.world().next_request());
        let subscription = Listener::subscribe(&world, (id, &raft, &life), number, after, slow).await;
        self.a_while(200, 4000).await;
        if let Some((subscription, _)) = subscription {
            raft.unsubscribe(subscription);
        }
    }
}
