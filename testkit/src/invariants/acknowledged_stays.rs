//! A proposal that was answered "applied" is committed at the index and term of the answer, is what the client
//! proposed, and is applied by every node that runs at the end (promise 1).

use std::collections::BTreeMap;

use actorum_machine::ids::NodeId;

use super::{Event, Facts, Invariant};
use crate::world::{Ended, RequestId};

#[derive(Default)]
pub(crate) struct AcknowledgedStays {
    proposed: BTreeMap<RequestId, u64>,
    /// By index: term and command.
    acknowledged: BTreeMap<u64, (u64, u64)>,
    /// By index: term and command of what state machines applied.
    applied: BTreeMap<u64, (u64, u64)>,
    /// Per node, the last index applied in this life.
    last: BTreeMap<NodeId, u64>,
}

impl Invariant for AcknowledgedStays {
    fn name(&self) -> &'static str {
        "acknowledged stays"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        match event {
            Event::Asked { id, command: Some(command), .. } => drop(self.proposed.insert(*id, command.hash)),
            Event::Ended { node, .. } => drop(self.last.remove(node)),
            Event::End => {
                let newest = self.acknowledged.keys().next_back().copied().unwrap_or(0);
                let running = facts.nodes.iter().filter(|(_, facts)| facts.running).map(|(id, _)| id);
                let behind = running.clone().find(|id| self.last.get(id).is_none_or(|last| *last < newest));
                if let Some(node) = behind
                    && newest > 0
                {
                    return Err(format!("n{node} ends without {newest}, which was acknowledged"));
                }
            }
            // What it acknowledged is in the state, as another invariant checks.
            Event::Restored { node, at, .. } => drop(self.last.insert(*node, *at)),
            Event::Applied { node, index, term, command, .. } => {
                self.last.insert(*node, *index);
                self.applied.insert(*index, (*term, *command));
                let promised = self.acknowledged.get(index);
                if promised.is_some_and(|promised| *promised != (*term, *command)) {
                    return Err(format!(
                        "n{node} applies something else at {index}@{term} than was acknowledged there"
                    ));
                }
            }
            Event::Answered { id, ended: Ended::Applied { index, term } } => {
                let Some(command) = self.proposed.get(id).copied() else { return Ok(()) };
                let here = format!("request {id} was answered with {index}@{term}");
                match self.applied.get(index) {
                    None => return Err(format!("{here}, where nothing was applied")),
                    Some((_, applied)) if *applied != command => {
                        return Err(format!("{here}, where another command was applied"));
                    }
                    Some((applied, _)) if applied != term => {
                        return Err(format!("{here}, where term {applied} was applied"));
                    }
                    Some(_) => {}
                }
                if facts.committed.get(index).is_none_or(|(entry, _)| entry.term != *term) {
                    return Err(format!("{here}, which nobody has committed"));
                }
                if let Some(other) = self.acknowledged.insert(*index, (*term, command))
                    && other.1 != command
                {
                    return Err(format!("{here}, as was another command"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
