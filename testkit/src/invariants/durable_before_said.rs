//! No message leaves a node before what it reports is durable there (promise 2): terms, votes, and acknowledged
//! entries.

use actorum_core::wire::MessageKind::*;

use super::{Event, Facts, Invariant};

pub(crate) struct DurableBeforeSaid;

impl Invariant for DurableBeforeSaid {
    fn name(&self) -> &'static str {
        "durable before it is said"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        if drained.transmit.is_empty() {
            return Ok(());
        }
        let Some((mine, disk)) = facts.nodes.get(node).and_then(|facts| Some((facts, facts.disk.as_ref()?))) else {
            return Ok(());
        };
        let (term, vote, last) = disk.state();
        for (to, message) in drained.transmit {
            let said = |what: &str| {
                Err(format!("n{node} -> n{to} {message}: {what}; its disk has term {term}, vote {vote}, log to {last}"))
            };
            // A pre-vote has a term that no node has entered.
            if matches!(message.kind, PreVote | PreVoteResponse) {
                continue;
            }
            if message.term > term {
                return said("its term is not durable");
            }
            match message.kind {
                Vote if message.term == term && vote != *node => return said("its own vote is not durable"),
                VoteResponse if !message.reject && message.term == term && vote != *to => {
                    return said("the vote is not durable");
                }
                AppendResponse if !message.reject && message.term == drained.raft_state.term => {
                    let (index, on_disk) = (message.index, disk.term_at(message.index));
                    // What is cut off is in a snapshot, once that is durable.
                    let covered = index <= disk.compacted_index() || on_disk.is_some();
                    let there = match index > mine.log.compacted.0 {
                        true => on_disk.is_some() && on_disk == mine.log.term_at(index),
                        false => covered,
                    };
                    if !there {
                        return said("what it acknowledges is not durable");
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
