//! Terms and commit indexes never run backwards while a node runs, and what it has promised to others (a term, a
//! vote, an acknowledged index) is still there when it comes back.

use std::collections::BTreeMap;

use actorum_core::wire::MessageKind::*;
use actorum_machine::ids::{Incarnation, NodeId};

use super::{Event, Facts, Invariant};

/// What a directory has promised.
#[derive(Clone, Copy, Default)]
struct Promised {
    term: u64,
    /// The last vote and its term.
    vote: (u64, NodeId),
    /// The last acknowledged index, and the term of the entry there.
    acknowledged: (u64, u64),
}

#[derive(Default)]
pub(crate) struct NothingGoesBack {
    promised: BTreeMap<(NodeId, Incarnation), Promised>,
}

impl Invariant for NothingGoesBack {
    fn name(&self) -> &'static str {
        "nothing goes back"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        match event {
            // What it promised comes back with the newer directory.
            Event::Drained { node, .. } | Event::Started { node, .. }
                if facts.nodes.get(node).is_some_and(|facts| facts.older) => {}
            Event::Drained { node, drained } => {
                let Some(mine) = facts.nodes.get(node) else { return Ok(()) };
                let raft_state = drained.raft_state;
                if let Some(before) = mine.raft_state
                    && (raft_state.term < before.term || raft_state.commit < before.commit)
                {
                    let (term, commit) = (before.term, before.commit);
                    return Err(format!(
                        "n{node} goes from term {term}, commit {commit} to term {}, commit {}",
                        raft_state.term, raft_state.commit
                    ));
                }
                let promised = self.promised.entry((*node, mine.incarnation)).or_default();
                if let Some(snapshot) = drained.append.iter().find_map(|append| append.write.snapshot.as_ref())
                    && snapshot.index < promised.acknowledged.0
                {
                    // So may one that sends a snapshot in the place of its log.
                    promised.acknowledged = (snapshot.index, snapshot.term);
                }
                if let Some(first) = drained.append.iter().find_map(|append| append.write.entries.first())
                    && first.index <= promised.acknowledged.0
                    && promised.acknowledged.0 > mine.log.compacted.0
                    && mine.log.term_at(promised.acknowledged.0) != Some(promised.acknowledged.1)
                {
                    // A leader of a later term may overwrite what was acknowledged to an earlier one.
                    promised.acknowledged = (first.index - 1, mine.log.term_at(first.index - 1).unwrap_or(0));
                }
                for (to, message) in drained.transmit {
                    if !matches!(message.kind, PreVote | PreVoteResponse) {
                        promised.term = promised.term.max(message.term);
                    }
                    match message.kind {
                        Vote => promised.vote = (message.term, *node),
                        VoteResponse if !message.reject => promised.vote = (message.term, *to),
                        AppendResponse if !message.reject && message.term == raft_state.term => {
                            if let Some(term) = mine.log.term_at(message.index)
                                && message.index >= promised.acknowledged.0
                            {
                                promised.acknowledged = (message.index, term);
                            }
                        }
                        _ => {}
                    }
                }
            }
            Event::Started { node, incarnation, recovered, .. } => {
                let Some(promised) = self.promised.get(&(*node, *incarnation)) else { return Ok(()) };
                let hard = recovered.hard_state;
                let lost = |what: String| Err(format!("n{node} comes back without {what}"));
                if hard.term < promised.term {
                    return lost(format!("term {}: it has {}", promised.term, hard.term));
                }
                let (term, vote) = promised.vote;
                if hard.term == term && hard.vote != vote {
                    return lost(format!("its vote for n{vote} in term {term}: it has n{}", hard.vote));
                }
                let (index, term) = promised.acknowledged;
                // What a later leader was about to overwrite when it ended may be gone, but not without something in
                // its place.
                if index > 0 && recovered.last_index < index && hard.term <= promised.term {
                    return lost(format!(
                        "{index}@{term}, which it acknowledged: its log ends at {}",
                        recovered.last_index
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
