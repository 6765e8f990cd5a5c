//! No two nodes ever hold different committed entries at one index (Raft figure 3, state machine safety).

use actorum_core::system_state::GENESIS_INDEX;

use super::{Event, Facts, Invariant};
use crate::world::facts_of;

pub(crate) struct CommittedNeverChanges;

impl Invariant for CommittedNeverChanges {
    fn name(&self) -> &'static str {
        "committed never changes"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        let Some(mine) = facts.nodes.get(node) else { return Ok(()) };
        let known = mine.raft_state.map_or(0, |raft_state| raft_state.commit).max(mine.log.compacted.0);
        for index in known + 1..=drained.raft_state.commit {
            let Some(entry) = mine.log.get(index) else {
                return Err(format!("n{node} commits {index}, which its log (to {}) lacks", mine.log.last()));
            };
            if let Some((committed, _)) = facts.committed.get(&index)
                && committed != entry
            {
                return Err(format!("n{node} commits {index}@{}, but {index}@{} was", entry.term, committed.term));
            }
        }
        for snapshot in drained.append.iter().filter_map(|append| append.write.snapshot.as_ref()) {
            let (index, term) = (snapshot.index, snapshot.term);
            // The genesis stands where no entry is.
            if index > GENESIS_INDEX && facts.committed.get(&index).is_none_or(|(entry, _)| entry.term != term) {
                return Err(format!("n{node} installs a snapshot at {index}@{term}, which nobody has committed"));
            }
        }
        for append in drained.append {
            let Some(first) = append.write.entries.first() else { continue };
            let commit = mine.raft_state.map_or(0, |raft_state| raft_state.commit);
            if first.index <= commit && first.index > mine.log.compacted.0 {
                return Err(format!("n{node} overwrites {} although it knows {commit} to be committed", first.index));
            }
        }
        for entry in &drained.apply {
            let committed = facts.committed.get(&entry.index).map(|(committed, _)| *committed);
            if committed.is_some_and(|committed| committed != facts_of(entry)) {
                return Err(format!("n{node} applies another entry at {} than was committed", entry.index));
            }
        }
        Ok(())
    }
}
