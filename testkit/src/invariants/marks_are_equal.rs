//! At one mark all nodes have the same hashes. Hashes with the same beginning are equal: over the applied entries and,
//! where no machine answers wrongly, over the responses.

use std::collections::BTreeMap;

use actorum_core::marks::HashValue;
use actorum_machine::ids::NodeId;

use super::{Event, Facts, Invariant};

#[derive(Default)]
pub(crate) struct MarksAreEqual {
    /// By mark and beginning.
    state: BTreeMap<(u64, u64), (HashValue, NodeId)>,
    answers: BTreeMap<(u64, u64), (HashValue, NodeId)>,
}

impl Invariant for MarksAreEqual {
    fn name(&self) -> &'static str {
        "hashes at a mark are equal"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Marked { node, mark } = event else { return Ok(()) };
        if let Some(hash) = mark.state {
            let (known, other) = *self.state.entry((mark.index, hash.since)).or_insert((hash.value, *node));
            if known != hash.value {
                return Err(format!(
                    "n{node} comes to {} at the mark {}, n{other} came to {known}: behind {} they have not applied the \
                     same",
                    hash.value, mark.index, hash.since
                ));
            }
        }
        let lies = facts.nodes.get(node).is_none_or(|facts| facts.lies);
        if let Some(hash) = mark.responses.filter(|_| !lies) {
            let (known, other) = *self.answers.entry((mark.index, hash.since)).or_insert((hash.value, *node));
            if known != hash.value {
                return Err(format!(
                    "the answers of n{node} come to {} at the mark {}, those of n{other} to {known}",
                    hash.value, mark.index
                ));
            }
        }
        Ok(())
    }
}
