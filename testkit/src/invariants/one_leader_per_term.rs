//! At most one node leads in a term (Raft figure 3, election safety).

use std::collections::BTreeMap;

use actorum_machine::{ids::NodeId, status::Role};

use super::{Event, Facts, Invariant};

#[derive(Default)]
pub(crate) struct OneLeaderPerTerm {
    leaders: BTreeMap<u64, NodeId>,
}

impl Invariant for OneLeaderPerTerm {
    fn name(&self) -> &'static str {
        "one leader per term"
    }

    fn check(&mut self, event: &Event<'_>, _: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        if drained.raft_state.role != Role::Leader {
            return Ok(());
        }
        let term = drained.raft_state.term;
        let leader = *self.leaders.entry(term).or_insert(*node);
        if leader == *node { Ok(()) } else { Err(format!("n{leader} and n{node} both lead in term {term}")) }
    }
}
