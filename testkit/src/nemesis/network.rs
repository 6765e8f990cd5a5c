//! Faults of the network: what a link loses, delays or doubles, and which links carry nothing.

use actorum_machine::{ids::NodeId, machine::StateMachine};

use super::{FaultTask, State};
use crate::wire::LinkFaults;

impl<S: StateMachine> FaultTask<S> {
    fn network(&self, kind: &'static str, what: impl FnOnce() -> String) {
        self.world().count(|counts| *counts.network.entry(kind).or_default() += 1);
        self.world().tell(|| format!("{kind}: {}", what()));
    }

    /// One direction of one link, for a while.
    pub(super) async fn link_faults(&mut self, kind: &'static str, change: impl FnOnce(&mut LinkFaults)) {
        let Some(from) = self.some_running() else { return };
        let others: Vec<NodeId> = self.fleet.in_state(State::Running).into_iter().filter(|id| *id != from).collect();
        let Some(to) = self.rng.pick(&others).copied() else { return };
        let (from, to) = if self.rng.below(2) == 0 { (from, to) } else { (to, from) };
        let mut bad = LinkFaults::FAIR;
        change(&mut bad);
        self.network(kind, || format!("n{from} -> n{to} {bad:?}"));
        self.fleet.links().set(from, to, |link_faults| *link_faults = bad);
        self.a_while(300, 2500).await;
        self.fleet.links().set(from, to, |link_faults| *link_faults = LinkFaults::FAIR);
    }

    pub(super) async fn one_way_cut(&mut self) {
        let Some(from) = self.some_running() else { return };
        let others: Vec<NodeId> = self.fleet.in_state(State::Running).into_iter().filter(|id| *id != from).collect();
        let Some(to) = self.rng.pick(&others).copied() else { return };
        // Half of the time what the leader says is lost, half of the time what it is told.
        let (from, to) = if self.rng.below(2) == 0 { (from, to) } else { (to, from) };
        self.network("one-way cut", || format!("n{from} -> n{to}"));
        self.fleet.links().cut(from, to);
        self.a_while(300, 2500).await;
        self.fleet.links().heal(from, to);
    }

    pub(super) async fn slow_peer(&mut self) {
        let Some(node) = self.some_running() else { return };
        if self.both_ways(node).is_empty() {
            return;
        }
        let delay = self.rng.between(20, 150);
        self.network("slow peer", || format!("n{node}, {delay} ms each way"));
        let slow = LinkFaults { delay_ms: delay, jitter_ms: delay / 4, ..LinkFaults::FAIR };
        let links = self.both_ways(node);
        links.iter().for_each(|(from, to)| self.fleet.links().set(*from, *to, |link_faults| *link_faults = slow));
        self.a_while(500, 3000).await;
        links
            .iter()
            .for_each(|(from, to)| self.fleet.links().set(*from, *to, |link_faults| *link_faults = LinkFaults::FAIR));
    }

    pub(super) async fn partition(&mut self) {
        let all: Vec<NodeId> = self.fleet.nodes(|nodes| nodes.keys().copied().collect());
        let leader = self.world().facts(|facts| facts.leader());
        // Mostly the leader is cut off: that is when something is decided.
        let alone = match leader {
            Some(leader) if self.rng.below(3) > 0 => vec![leader],
            _ => all.iter().copied().filter(|_| self.rng.below(2) == 0).collect(),
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

    pub(super) fn reset(&mut self) {
        let nodes = self.fleet.in_state(State::Running);
        let (Some(a), Some(b)) = (self.rng.pick(&nodes).copied(), self.rng.pick(&nodes).copied()) else { return };
        if a != b {
            self.network("connection reset", || format!("n{a} and n{b}"));
            self.fleet.links().reset(a, b);
        }
    }

    fn both_ways(&self, node: NodeId) -> Vec<(NodeId, NodeId)> {
        let all: Vec<NodeId> = self.fleet.nodes(|nodes| nodes.keys().copied().collect());
        all.into_iter().filter(|id| *id != node).flat_map(|id| [(id, node), (node, id)]).collect()
    }
}
