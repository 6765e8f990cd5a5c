//! A node whose disk was wiped, and a node that has applied its own removal, neither grants nor asks for votes.

use actorum_transport::wire::MessageKind::{PreVote, PreVoteResponse, Vote, VoteResponse};

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
        if removed {
            return Err(format!("n{node} -> n{to} {message}: it has applied its own removal"));
        }
        Ok(())
    }
}
