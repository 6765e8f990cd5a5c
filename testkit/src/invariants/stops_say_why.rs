//! A node stops by itself only after a fault, and then reports the cause (promise 7).
//!
//! A node without a fault may be right to stop in two cases: it was removed, or its machine answers correctly while
//! those of a majority answer wrongly. A single voter is a majority by itself.
//! Whether a program lacks what the cluster uses is looked at in `programs_stop_in_time`.

use std::collections::{BTreeMap, BTreeSet};

use actorum_core::marks::HashValue;
use actorum_machine::ids::NodeId;

use super::{Event, Facts, Invariant};
use crate::{fleet::is_outdated, world::NodeFacts};

#[derive(Default)]
pub(crate) struct StopsSayWhy {
    /// By mark and beginning: what each node has told of its answers there, and whether its machine had answered
    /// wrongly.
    answers: BTreeMap<(u64, u64), Told>,
}

type Told = BTreeMap<NodeId, BTreeSet<(HashValue, bool)>>;

impl Invariant for StopsSayWhy {
    fn name(&self) -> &'static str {
        "a stopped node says why"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        if let Event::Marked { node, mark } = event
            && let Some(hash) = mark.responses
        {
            let lies = facts.nodes.get(node).is_some_and(|facts| facts.lies);
            let told = self.answers.entry((mark.index, hash.since)).or_default().entry(*node).or_default();
            told.insert((hash.value, lies));
        }
        let Event::Stopped { node, cause } = event else { return Ok(()) };
        if cause.trim().is_empty() {
            return Err(format!("n{node} stopped without a word"));
        }
        // Whether its program lacks what is in use is another invariant's.
        if is_outdated(cause) {
            return Ok(());
        }
        // One that was removed stops when it learns of it.
        let knows = |node: &NodeId, of: &NodeFacts| {
            of.membership.as_ref().is_some_and(|membership| membership().retired.contains(node))
        };
        if facts.nodes.values().any(|of| knows(node, of)) {
            return Ok(());
        }
        if cause.contains("responded to the commands") && self.a_majority_lied(*node, facts) {
            return Ok(());
        }
        if !facts.nodes.get(node).is_some_and(|facts| facts.may_stop) {
            return Err(format!("n{node} stopped although nothing was done to it: {cause}"));
        }
        Ok(())
    }
}

impl StopsSayWhy {
    /// Whether at some mark the machines of a majority of voters had answered wrongly, all in the same way, and this
    /// node's otherwise.
    fn a_majority_lied(&self, node: NodeId, facts: &Facts) -> bool {
        let known =
            facts.nodes.values().filter_map(|of| of.membership.as_ref()).map(|membership| membership().voters());
        let voters: Vec<Vec<NodeId>> = known.chain([facts.voters.clone()]).collect();
        self.answers.values().any(|told| {
            let Some(mine) = told.get(&node) else { return false };
            let lies: BTreeSet<HashValue> =
                told.values().flatten().filter(|(_, lies)| *lies).map(|(value, _)| *value).collect();
            lies.iter().any(|value| {
                let agree = |id: &&NodeId| told.get(id).is_some_and(|told| told.contains(&(*value, true)));
                let majority = |voters: &Vec<NodeId>| voters.iter().filter(agree).count() * 2 > voters.len();
                mine.iter().any(|(other, _)| other != value) && voters.iter().any(majority)
            })
        })
    }
}
