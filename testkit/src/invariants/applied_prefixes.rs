//! State machines apply the same commands at the same indexes, in order, without gaps or repeats, and answer the same:
//! the contract of a deterministic state machine, kept by us and by the application.

use std::{collections::BTreeMap, ops::Bound};

use actorum_machine::ids::NodeId;

use super::{Event, Facts, Invariant};

#[derive(Default)]
pub(crate) struct AppliedPrefixes {
    /// By index: term, command and response.
    applied: BTreeMap<u64, (u64, u64, u64)>,
    /// Per node, the last index applied in this life.
    last: BTreeMap<NodeId, u64>,
}

impl Invariant for AppliedPrefixes {
    fn name(&self) -> &'static str {
        "applied prefixes are equal"
    }

    fn check(&mut self, event: &Event<'_>, _: &Facts) -> Result<(), String> {
        match event {
            Event::Ended { node, .. } => drop(self.last.remove(node)),
            Event::Restored { node, at, .. } => {
                let last = self.last.insert(*node, *at).unwrap_or(0);
                if *at < last {
                    return Err(format!("n{node} goes from the command at {last} back to that at {at}"));
                }
            }
            Event::Applied { node, index, term, command, response, .. } => {
                let last = self.last.insert(*node, *index).unwrap_or(0);
                if *index <= last {
                    return Err(format!("n{node} applies {index} after {last}"));
                }
                let between = (Bound::Excluded(last), Bound::Excluded(*index));
                if let Some((missed, _)) = self.applied.range(between).next() {
                    return Err(format!("n{node} applies {index} after {last} and skips the command at {missed}"));
                }
                // Whoever is past it without it has skipped it.
                if !self.applied.contains_key(index)
                    && let Some((other, later)) =
                        self.last.iter().find(|(other, last)| *other != node && **last > *index)
                {
                    return Err(format!("n{other} has applied {later} and skipped the command at {index}"));
                }
                let known = *self.applied.entry(*index).or_insert((*term, *command, *response));
                if (known.0, known.1) != (*term, *command) {
                    return Err(format!("n{node} applies another command at {index}@{term} than others did"));
                }
                if known.2 != *response {
                    return Err(format!(
                        "n{node} answers the command at {index}@{term} differently than others did: \
                         the state machine is not a function of its state, its commands and their context"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
