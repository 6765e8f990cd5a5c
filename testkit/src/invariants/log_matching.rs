//! Two entries with one index and one term are the same entry, and so is everything before them (Raft figure 3, log
//! matching). Checked as: one index and term, one content and one term before it.
//!
//! An entry that only one node had, and that the node lost in a crash before it was durable or sent, does not count.

use std::collections::BTreeMap;

use actorum_machine::ids::NodeId;

use super::{Event, Facts, Invariant};
use crate::world::facts_of;

#[derive(Default)]
pub(crate) struct LogMatching {
    /// By index and term.
    entries: BTreeMap<(u64, u64), Known>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Known {
    content: u64,
    /// The term of the entry before it.
    before: u64,
    /// The only node that holds it; `None` once it has left that node.
    only: Option<NodeId>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        match event {
            Event::Started { node, .. } => {
                let log = facts.nodes.get(node).map(|facts| &facts.log);
                let came_back = |at: &(u64, u64)| log.is_some_and(|log| log.term_at(at.0) == Some(at.1));
                self.entries.retain(|at, known| known.only != Some(*node) || came_back(at));
            }
            Event::Drained { node, drained } => {
                let Some(log) = facts.nodes.get(node).map(|facts| &facts.log) else { return Ok(()) };
                for entry in drained.append.iter().flat_map(|append| &append.write.entries) {
                    // What a later append of the same drain replaced is not in the log any more.
                    if log.term_at(entry.index) != Some(entry.term) {
                        continue;
                    }
                    let Some(before) = log.term_at(entry.index - 1) else {
                        return Err(format!("n{node} appends {}@{} after a hole", entry.index, entry.term));
                    };
                    let mine = Known { content: facts_of(entry).hash, before, only: Some(*node) };
                    let known = self.entries.entry((entry.index, entry.term)).or_insert(mine);
                    if (known.content, known.before) != (mine.content, mine.before) {
                        let at = format!("{}@{}", entry.index, entry.term);
                        return Err(format!(
                            "n{node} holds another entry {at} than was seen before, or another before it"
                        ));
                    }
                    if known.only != mine.only {
                        known.only = None;
                    }
                }
                for entry in drained.transmit.iter().flat_map(|(_, message)| &message.entries) {
                    if let Some(known) = self.entries.get_mut(&(entry.index, entry.term)) {
                        known.only = None;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
