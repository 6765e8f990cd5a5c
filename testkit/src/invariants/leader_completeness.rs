//! What is committed in a term is in the log of every leader of a later term (Raft figure 3, leader completeness).

use std::collections::BTreeSet;

use actorum_machine::status::Role;

use super::{Event, Facts, Invariant};

#[derive(Default)]
pub(crate) struct LeaderCompleteness {
    judged: BTreeSet<(u64, u64)>,
}

impl Invariant for LeaderCompleteness {
    fn name(&self) -> &'static str {
        "leader completeness"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        let term = drained.raft_state.term;
        if drained.raft_state.role != Role::Leader || !self.judged.insert((*node, term)) {
            return Ok(());
        }
        let Some(log) = facts.nodes.get(node).map(|facts| &facts.log) else { return Ok(()) };
        let (after, after_term) = log.compacted;
        if let Some((entry, _)) = facts.committed.get(&after)
            && entry.term != after_term
        {
            return Err(format!(
                "n{node} leads with a log after {after}@{after_term}, and {after}@{} was committed",
                entry.term
            ));
        }
        for (index, (entry, in_term)) in facts.committed.iter().filter(|(index, _)| **index > log.compacted.0) {
            if *in_term < term && log.get(*index) != Some(entry) {
                let found = log.term_at(*index).map_or("nothing".to_owned(), |term| format!("{index}@{term}"));
                let lost = format!("{index}@{}", entry.term);
                return Err(format!("n{node} leads in term {term} without the committed {lost}: it holds {found}"));
            }
        }
        Ok(())
    }
}
