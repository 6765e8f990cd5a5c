//! A node stops by itself only when something was done to it, and then says what it died of (promise 7).

use actorum_transport::wire::NodeId;

use super::{Event, Facts, Invariant};
use crate::testkit::world::NodeFacts;

pub(crate) struct StopsSayWhy;

impl Invariant for StopsSayWhy {
    fn name(&self) -> &'static str {
        "a stopped node says why"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Stopped { node, cause } = event else { return Ok(()) };
        if cause.trim().is_empty() {
            return Err(format!("n{node} stopped without a word"));
        }
        // One that was removed stops when it learns of it.
        let knows = |node: &NodeId, of: &NodeFacts| {
            of.membership.as_ref().is_some_and(|membership| membership().retired.contains(node))
        };
        if facts.nodes.values().any(|of| knows(node, of)) {
            return Ok(());
        }
        // A single voter is a majority: if its machine answers wrongly, who answers rightly is the one that differs.
        if cause.contains("responded to the commands") && facts.nodes.values().any(|of| of.lies) {
            return Ok(());
        }
        if !facts.nodes.get(node).is_some_and(|facts| facts.may_stop) {
            return Err(format!("n{node} stopped although nothing was done to it: {cause}"));
        }
        Ok(())
    }
}
