//! Whether a run has shown what it promises. Pure, so that a test can take a write away and see it fail.

use std::collections::{BTreeMap, BTreeSet};

use actorum::NodeId;

use crate::Failure;

/// The results of a run.
pub(super) struct Evidence<'a> {
    /// How many writes were acknowledged when the leader was killed.
    pub before: u64,
    /// How many after another one was elected.
    pub after: u64,
    /// How many snapshots the node got that was away.
    pub snapshots: u64,
    /// The key of every acknowledged write.
    pub acknowledged: BTreeSet<&'a str>,
    /// Those of them that each node holds.
    pub held: BTreeMap<NodeId, BTreeSet<&'a str>>,
}

impl Evidence<'_> {
    /// What a node should hold and does not.
    pub(super) fn missing(&self, id: NodeId) -> Vec<&str> {
        let nothing = BTreeSet::new();
        let held = self.held.get(&id).unwrap_or(&nothing);
        self.acknowledged.difference(held).copied().collect()
    }

    /// Good only if writes were acknowledged before and after the kill, a node came back by a snapshot, and each of
    /// these nodes holds all that was acknowledged.
    pub(super) fn verdict(&self, nodes: &[NodeId]) -> Result<(), Failure> {
        let lost = |id: &NodeId| {
            let missing = self.missing(*id);
            let first = missing.first()?;
            Some(format!("node {id} lacks {} acknowledged writes, {first} among them", missing.len()))
        };
        let lost: Vec<String> = nodes.iter().filter_map(lost).collect();
        if !lost.is_empty() {
            return Err(Failure::new(lost.join("; ")));
        }
        // If nothing was written, nothing can be missing, so the run proves nothing.
        match (self.before, self.after, self.snapshots) {
            (0, ..) => Err(Failure::new("no write was acknowledged before the kill: there was nothing to lose")),
            (_, 0, _) => {
                Err(Failure::new("no write was acknowledged after the election: the new leader does not work"))
            }
            (.., 0) => {
                Err(Failure::new("the node that was away came back without a snapshot: the log was not cut off"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [NodeId; 3] = [1, 2, 3];

    fn evidence() -> Evidence<'static> {
        let acknowledged = BTreeSet::from(["writer-1/1", "writer-2/1", "writer-3/1"]);
        let held = NODES.map(|id| (id, acknowledged.clone())).into();
        Evidence { before: 1, after: 2, snapshots: 1, acknowledged, held }
    }

    #[track_caller]
    fn fails(evidence: &Evidence<'_>, words: &[&str]) {
        let failure = evidence.verdict(&NODES).expect_err("a run that shows nothing");
        assert_eq!(failure.code, 1, "the exit code");
        for word in words {
            assert!(failure.message.contains(word), "`{word}` is not in: {failure}");
        }
    }

    #[test]
    fn a_run_that_lost_nothing_is_good() {
        assert!(evidence().verdict(&NODES).is_ok());
    }

    #[test]
    fn one_write_missing_on_one_node_fails_the_run() {
        for id in NODES {
            let mut evidence = evidence();
            evidence.held.get_mut(&id).expect("a node").remove("writer-2/1");
            assert_eq!(evidence.missing(id), ["writer-2/1"]);
            fails(&evidence, &[&format!("node {id} lacks 1 "), "writer-2/1"]);
        }
    }

    #[test]
    fn a_node_that_was_not_looked_at_fails_the_run() {
        let mut evidence = evidence();
        evidence.held.remove(&3);
        fails(&evidence, &["node 3 lacks 3 "]);
    }

    #[test]
    fn a_run_without_a_snapshot_fails() {
        fails(&Evidence { snapshots: 0, ..evidence() }, &["without a snapshot"]);
    }

    #[test]
    fn a_run_without_writes_fails() {
        fails(&Evidence { before: 0, after: 3, ..evidence() }, &["before the kill"]);
        fails(&Evidence { before: 3, after: 0, ..evidence() }, &["after the election"]);
        let nothing = Evidence { before: 0, after: 0, snapshots: 0, acknowledged: [].into(), held: [].into() };
        fails(&nothing, &["no write was acknowledged"]);
    }
}
