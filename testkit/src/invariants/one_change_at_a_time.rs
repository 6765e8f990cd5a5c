//! A leader begins a change of the configuration only when it has applied the one before, and each moves one voter at
//! most (Raft dissertation section 4.1).

use std::collections::{BTreeMap, BTreeSet};

use actorum_core::wire::EntryKind;
use actorum_machine::{ids::NodeId, status::Role};

use super::{Event, Facts, Invariant};

#[derive(Default)]
pub(crate) struct OneChangeAtATime {
    voters: BTreeMap<NodeId, Vec<NodeId>>,
}

impl Invariant for OneChangeAtATime {
    fn name(&self) -> &'static str {
        "one configuration change at a time"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        let Some(mine) = facts.nodes.get(node) else { return Ok(()) };
        if drained.raft_state.role == Role::Leader {
            let changes = drained.append.iter().flat_map(|append| &append.write.entries);
            for change in changes.filter(|e| e.kind == EntryKind::ConfChange && e.term == drained.raft_state.term) {
                let earlier = (mine.handed + 1..change.index)
                    .find(|index| mine.log.get(*index).is_some_and(|entry| entry.kind == EntryKind::ConfChange));
                if let Some(earlier) = earlier {
                    let index = change.index;
                    return Err(format!(
                        "n{node} begins the change at {index} before it has applied the one at {earlier}"
                    ));
                }
            }
        }
        let before = self.voters.insert(*node, drained.voters.clone()).unwrap_or_default();
        if before.is_empty() || mine.raft_state.is_none() || before == drained.voters {
            return Ok(());
        }
        // A snapshot may contain any number of changes.
        if drained.append.iter().any(|append| append.write.snapshot.is_some()) {
            return Ok(());
        }
        let (old, new): (BTreeSet<_>, BTreeSet<_>) = (before.iter().collect(), drained.voters.iter().collect());
        let changes = drained.apply.iter().filter(|entry| entry.kind == EntryKind::ConfChange).count();
        let moved = old.symmetric_difference(&new).count();
        // Several changes may be handed out in one drain by a node that catches up.
        if moved > changes {
            return Err(format!("n{node} goes from voters {before:?} to {:?} at once", drained.voters));
        }
        Ok(())
    }
}
