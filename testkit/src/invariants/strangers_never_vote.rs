//! A node whose disk was wiped neither grants nor asks for votes, and a node that has applied its own removal asks for
//! none.
//!
//! That one may still grant a vote: only a candidate that does not know of the removal yet counts it, in the old
//! configuration, where it is due (Raft dissertation section 4.2.2). Were it refused, a cluster of two whose leader
//! removed itself, and whose last word was lost, would never elect again.

use actorum_core::wire::MessageKind::{PreVote, PreVoteResponse, Vote, VoteResponse};

use super::{Event, Facts, Invariant};

pub(crate) struct StrangersNeverVote;

impl Invariant for StrangersNeverVote {
    fn name(&self) -> &'static str {
        "strangers never vote"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        let Some(mine) = facts.nodes.get(node) else { return Ok(()) };
        let votes = |kind| matches!(kind, Vote | PreVote | VoteResponse | PreVoteResponse);
        let vote = drained.transmit.iter().find(|(_, message)| votes(message.kind) && !message.reject);
        let Some((to, message)) = vote else { return Ok(()) };
        if mine.incarnation != mine.known_as {
            let (now, then) = (mine.incarnation, mine.known_as);
            return Err(format!("n{node} -> n{to} {message}: it is known as {then} and its disk was wiped ({now})"));
        }
        let removed = mine.membership.as_ref().is_some_and(|membership| membership().retired.contains(node));
        let asks = matches!(message.kind, Vote | PreVote);
        if removed && asks {
            return Err(format!("n{node} -> n{to} {message}: it has applied its own removal"));
        }
        Ok(())
    }
}
