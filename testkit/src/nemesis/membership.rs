//! Changes of the membership, also while a voter is down, and of one that is.

use actorum::Bootstrap;
use actorum_machine::{
    ids::NodeId,
    machine::StateMachine,
    members::{Change as ConfChange, ChangeRequest},
};

use super::{FaultTask, Hold, State};
use crate::{client::Client, fleet::address};

/// How long a node has been down when a change is asked for that it matters to: several election timeouts, so that the
/// leader knows that it is away. The least and the most, in milliseconds.
const DOWN_MS: (u64, u64) = (5200, 7000);

impl<S: StateMachine> FaultTask<S> {
    /// One change, and what belongs to it: a node that joins, or one that leaves.
    pub(super) async fn membership(&mut self) {
        // Two at once, so that one finds the other under way.
        if *self.changing.borrow() >= 2 {
            return;
        }
        *self.changing.borrow_mut() += 1;
        let mut client = Client::new(u64::MAX, &self.fleet, self.rng.fork("changes", 0));
        let members = self.members();
        let strangers: Vec<NodeId> = self.fleet.nodes(|nodes| {
            let here = nodes.iter().filter(|(_, node)| node.state != State::Gone).map(|(id, _)| *id);
            here.filter(|id| !members.0.contains(id)).collect()
        });
        let more = members.0.len() + strangers.len() < 5;
        match self.rng.below(4) {
            0 | 1 if more => self.join(&mut client).await,
            0..3 if members.1.len() > 3 => self.leave(&mut client, &members.1).await,
            _ if members.1.len() > 2 => self.demote(&mut client, &members.1).await,
            _ => {}
        }
        *self.changing.borrow_mut() -= 1;
    }

    /// A new node joins as a learner, and is promoted.
    async fn join(&mut self, client: &mut Client<S>) {
        let id = self.next_id.replace_with(|id| *id + 1);
        self.fleet.add(id, Bootstrap::Wait);
        if !self.come_back(id).await {
            return;
        }
        self.churn("add learner");
        let added = client.change(ConfChange::AddLearner(id, address(id))).await;
        if added.is_ok() && self.rng.below(3) > 0 {
            self.promote_the_absent(client, id).await;
        }
        for _ in 0..6 {
            self.a_while(100, 600).await;
            self.replace_outdated(id).await;
            let outdated = self.lacks(id);
            self.churn("promote");
            if client.change(ConfChange::Promote(id)).await.is_ok() {
                if let Some(lacks) = outdated.filter(|_| self.lacks(id).is_some()) {
                    let detail = format!("n{id} is a voter, and its program lacks what is in use: {lacks:?}");
                    self.world().broken("what lacks what is in use is not promoted", detail);
                }
                return;
            }
        }
    }

    /// A voter is removed, and its process ends some time later.
    async fn leave(&mut self, client: &mut Client<S>, voters: &[NodeId]) {
        // Not one that another fault has in hand.
        if let Some(id) = self.rng.pick(voters).copied()
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

    /// A voter is demoted, at times while another one is down, and promoted again.
    async fn demote(&mut self, client: &mut Client<S>, voters: &[NodeId]) {
        let Some(id) = self.rng.pick(voters).copied() else { return };
        let absent = match self.rng.below(3) {
            0 => self.take_another_down(voters, id).await,
            _ => None,
        };
        self.churn("demote");
        let force = self.rng.below(6) == 0;
        let demoted = client.change(ChangeRequest { change: ConfChange::Demote(id), force }).await;
        if let Some(absent) = &absent {
            self.come_back(absent.0).await;
        }
        if demoted.is_err() {
            return;
        }
        self.a_while(100, 1000).await;
        for _ in 0..6 {
            self.churn("promote");
            if client.change(ConfChange::Promote(id)).await.is_ok() {
                return;
            }
            self.a_while(100, 600).await;
        }
    }

    /// What the first program of one that has joined lacks of what is in use.
    fn lacks(&self, id: NodeId) -> Option<(u64, String)> {
        // One that was put back may be known for what it understood before.
        let program = self.fleet.node(id, |node| (!node.put_back).then_some(node.program)).flatten()?;
        self.world().facts(|facts| facts.in_use.lacks(program))
    }

    /// One that has stopped because its program lacks what is in use is started again with another one.
    async fn replace_outdated(&mut self, id: NodeId) {
        if self.fleet.node(id, |node| node.outdated && node.state == State::Down) == Some(true)
            && let Some(_hold) = self.hold(id)
        {
            self.come_back(id).await;
        }
    }

    /// A learner that has been down for a while is no voter for the asking.
    async fn promote_the_absent(&mut self, client: &mut Client<S>, id: NodeId) {
        self.a_while(300, 1500).await;
        let Some(hold) = self.hold(id) else { return };
        self.fleet.kill(id);
        self.a_while(DOWN_MS.0, DOWN_MS.1).await;
        self.churn("promote one that is down");
        // Refused unless it is forced; then its coming back is waited for.
        let force = self.rng.below(6) == 0;
        let _ = client.change(ChangeRequest { change: ConfChange::Promote(id), force }).await;
        self.come_back(hold.0).await;
    }

    /// Another voter is down for a while before a change, and until somebody lets it come back.
    async fn take_another_down(&mut self, voters: &[NodeId], but: NodeId) -> Option<Hold> {
        let others: Vec<NodeId> = voters.iter().copied().filter(|id| *id != but).collect();
        let other = self.rng.pick(&others).copied()?;
        let hold = self.hold(other)?;
        self.fleet.kill(hold.0);
        self.a_while(DOWN_MS.0, DOWN_MS.1).await;
        self.churn("change with a voter down");
        Some(hold)
    }

    /// Members and voters, as the node says that has applied most.
    pub(super) fn members(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let running = self.fleet.in_state(State::Running);
        let statuses = running.into_iter().filter_map(|id| self.fleet.raft(id)).map(|(raft, _)| raft.status());
        let newest = statuses.max_by_key(|status| status.applied_index);
        newest.map_or_else(Default::default, |status| {
            (status.membership.members.keys().copied().collect(), status.membership.voters())
        })
    }
}
