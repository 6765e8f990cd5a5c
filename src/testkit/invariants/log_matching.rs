//! Two entries with one index and one term are the same entry, and so is everything before them (Raft figure 3, log
//! matching). Checked as: one index and term, one content and one term before it.

use std::collections::BTreeMap;

use super::{Event, Facts, Invariant};
use crate::testkit::world::facts_of;

#[derive(Default)]
pub(crate) struct LogMatching {
    /// By index and term: the content and the term of the entry before.
    entries: BTreeMap<(u64, u64), (u64, u64)>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        let Some(log) = facts.nodes.get(node).map(|facts| &facts.log) else { return Ok(()) };
        for entry in drained.append.iter().flat_map(|append| &append.write.entries) {
            // What a later append of the same drain replaced is not in the log any more.
            if log.term_at(entry.index) != Some(entry.term) {
                continue;
            }
            let Some(before) = log.term_at(entry.index - 1) else {
                return Err(format!("n{node} appends {}@{} after a hole", entry.index, entry.term));
            };
            let mine = (facts_of(entry).hash, before);
            let known = *self.entries.entry((entry.index, entry.term)).or_insert(mine);
            if known != mine {
                let at = format!("{}@{}", entry.index, entry.term);
                return Err(format!("n{node} holds another entry {at} than was seen before, or another before it"));
            }
        }
        Ok(())
    }
}
