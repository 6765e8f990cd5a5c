//! A leader commits an entry only when a majority of the voters has it on disk at that moment (Raft section 5.3; the
//! leader's own disk counts as one vote, no more and no less).

use actorum_core::wire::EntryKind;
use actorum_machine::status::Role;

use super::{Event, Facts, Invariant};
use crate::world::Durable;

pub(crate) struct QuorumBeforeCommit;

impl Invariant for QuorumBeforeCommit {
    fn name(&self) -> &'static str {
        "quorum before commit"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        let Some(mine) = facts.nodes.get(node) else { return Ok(()) };
        let commit = drained.raft_state.commit;
        let moved = mine.raft_state.is_some_and(|before| before.role == Role::Leader && before.commit < commit);
        if drained.raft_state.role != Role::Leader || !moved {
            return Ok(());
        }
        let Some(term) = mine.log.term_at(commit) else { return Ok(()) };
        let on_disk = |id: &&u64| {
            facts.nodes.get(*id).is_some_and(|facts| {
                // Who has cut it off has applied it.
                let held = |disk: &dyn Durable| disk.term_at(commit) == Some(term) || disk.compacted_index() > commit;
                let held = facts.disk.as_deref().is_some_and(held);
                // What it acknowledged before somebody took its disk away was there, and comes back.
                held || facts.tampered
            })
        };
        let durable: Vec<u64> = drained.voters.iter().filter(on_disk).copied().collect();
        // A change of the configuration that is handed out in this very drain came after the counting.
        let changed = drained.apply.iter().any(|entry| entry.kind == EntryKind::ConfChange);
        let majority = (drained.voters.len() - usize::from(changed)) / 2 + usize::from(!changed);
        if durable.len() < majority {
            let voters = drained.voters.len();
            return Err(format!("n{node} commits {commit}@{term}, durable on {durable:?} of {voters} voters only"));
        }
        Ok(())
    }
}
