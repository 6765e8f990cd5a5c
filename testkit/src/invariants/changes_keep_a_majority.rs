//! A change of the membership that was not forced leaves a majority of voters that live, and promotes no node that is
//! down or far behind.
//!
//! Then a cluster that could decide before the change can decide after it. A leader cannot know of a death at once, nor
//! of one during its own pause. So a node that ended lately counts as alive, and this invariant looks only at nodes
//! that have been down for a while.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use actorum_core::{
    entry::SystemCommand,
    wire::{Entry, EntryKind},
};
use actorum_machine::{ids::NodeId, members::Change, status::Role};

use super::{Event, Facts, Invariant};

/// An election timeout by a slow clock, the longest pause of a process, and the longest way of a message, in virtual
/// milliseconds.
const GRACE_MS: u64 = 5000;

#[derive(Default)]
pub(crate) struct ChangesKeepAMajority {
    /// Who is down, and since when.
    ended: BTreeMap<NodeId, u64>,
    /// When each was down last: it may have come back with less than the leader knew it to hold.
    fell: BTreeMap<NodeId, u64>,
    /// The highest commit index that somebody knew, over time.
    commits: VecDeque<(u64, u64)>,
}

impl Invariant for ChangesKeepAMajority {
    fn name(&self) -> &'static str {
        "changes keep a majority"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        match event {
            Event::Started { node, .. } => drop(self.ended.remove(node)),
            Event::Ended { node, .. } => {
                self.ended.insert(*node, facts.now_ms);
                self.fell.insert(*node, facts.now_ms);
            }
            Event::Drained { node, drained } => {
                if self.commits.back().is_none_or(|(_, commit)| *commit < drained.raft_state.commit) {
                    self.commits.push_back((facts.now_ms, drained.raft_state.commit));
                }
                while self.commits.get(1).is_some_and(|(at, _)| *at + GRACE_MS <= facts.now_ms) {
                    self.commits.pop_front();
                }
                if drained.raft_state.role == Role::Leader {
                    let entries = drained.append.iter().flat_map(|append| &append.write.entries);
                    let mut changes =
                        entries.filter(|e| e.kind == EntryKind::ConfChange && e.term == drained.raft_state.term);
                    return changes.try_for_each(|entry| self.judge(*node, entry, &drained.voters, facts));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl ChangesKeepAMajority {
    fn judge(&self, leader: NodeId, entry: &Entry, voters: &[NodeId], facts: &Facts) -> Result<(), String> {
        let Ok(SystemCommand::Change { change, forced: false, .. }) = SystemCommand::decode(&entry.context) else {
            return Ok(());
        };
        // Whether they are those before the change or after it: the change is made twice as well as once.
        let mut voters: BTreeSet<NodeId> = voters.iter().copied().collect();
        match &change {
            Change::Promote(id) => drop(voters.insert(*id)),
            Change::Demote(id) | Change::Remove(id) => drop(voters.remove(id)),
            _ => {}
        }
        let dead_for = |id: &NodeId| self.ended.get(id).map(|at| facts.now_ms - at).filter(|ms| *ms > GRACE_MS);
        if let Change::Promote(id) = &change {
            if let Some(ms) = dead_for(id) {
                return Err(format!("n{leader} promotes n{id}, which has been down for {ms} ms"));
            }
            // What was committed so long ago, as far as this run goes back.
            let committed = self.commits.front().filter(|(at, _)| at + GRACE_MS <= facts.now_ms).map_or(0, |(_, c)| *c);
            let last = facts.nodes.get(id).map_or(0, |node| node.log.last());
            let fell_lately = self.fell.get(id).is_some_and(|at| at + GRACE_MS > facts.now_ms);
            if last < committed && !fell_lately {
                return Err(format!("n{leader} promotes n{id} at {last}, and {committed} was committed long before"));
            }
        }
        let dead: Vec<_> = voters.iter().filter_map(|id| Some((*id, dead_for(id)?))).collect();
        if (voters.len() - dead.len()) * 2 <= voters.len() {
            return Err(format!("n{leader}: {change} leaves the voters {voters:?}, down for so many ms: {dead:?}"));
        }
        Ok(())
    }
}
