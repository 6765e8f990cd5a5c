//! A node votes for at most one candidate in a term, across restarts (Raft section 5.2).

use std::collections::BTreeMap;

use actorum_core::wire::MessageKind;
use actorum_machine::ids::{Incarnation, NodeId};

use super::{Event, Facts, Invariant};

#[derive(Default)]
pub(crate) struct OneVotePerTerm {
    votes: BTreeMap<(NodeId, Incarnation, u64), NodeId>,
}

impl Invariant for OneVotePerTerm {
    fn name(&self) -> &'static str {
        "one vote per term"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        let Some(mine) = facts.nodes.get(node).filter(|facts| !facts.older) else { return Ok(()) };
        for (to, message) in drained.transmit {
            let candidate = match message.kind {
                MessageKind::Vote => *node,
                MessageKind::VoteResponse if !message.reject => *to,
                _ => continue,
            };
            let vote = *self.votes.entry((*node, mine.incarnation, message.term)).or_insert(candidate);
            if vote != candidate {
                return Err(format!(
                    "n{node} votes for n{candidate} in term {}, after it voted for n{vote}",
                    message.term
                ));
            }
        }
        Ok(())
    }
}
