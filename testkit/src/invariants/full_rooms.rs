//! How much room leaders have had for commands. The bytes in a leader's log that are not applied are bounded, and the
//! bound may be so small that a few commands fill it. Then "busy" is the right answer.
//!
//! It is computed here without the leader's own count: from the entries that this run saw it append, the commands that
//! its machine applied, and what is durable on its disk.

use std::collections::BTreeMap;

use actorum_core::wire::ENTRY_OVERHEAD;
use actorum_machine::{ids::NodeId, status::Role};

use super::{Event, Facts};
use crate::world::NodeFacts;

/// What a command has around it in the log besides what every entry counts for: its version, kind and time.
const FRAMING: usize = 40;

/// The room of leaders since the cluster has healed.
#[derive(Default)]
pub(crate) struct FullRooms {
    /// The last index that the machine of each has applied, as far as commands and restored states say.
    applied: BTreeMap<NodeId, u64>,
    /// When, and how large a command could be taken then.
    seen: Vec<(u64, usize)>,
}

impl FullRooms {
    /// Looks at what happens; `facts` are those of an invariant.
    pub(super) fn look(&mut self, event: &Event<'_>, facts: &Facts) {
        match event {
            Event::Started { node, recovered, .. } => {
                self.applied.insert(*node, recovered.newest().map_or(0, |newest| newest.index));
            }
            Event::Applied { node, index, .. } => drop(self.applied.insert(*node, *index)),
            Event::Restored { node, at, .. } => drop(self.applied.insert(*node, *at)),
            Event::Drained { node, drained } if facts.calm && drained.raft_state.role == Role::Leader => {
                if let Some(leader) = facts.nodes.get(node) {
                    self.seen.push((facts.now_ms, self.room(*node, leader)));
                }
            }
            Event::Asked { .. } if facts.calm => {
                let leads =
                    |facts: &&NodeFacts| facts.raft_state.is_some_and(|raft_state| raft_state.role == Role::Leader);
                let leaders = facts.nodes.iter().filter(|(_, facts)| facts.running && leads(facts));
                let rooms: Vec<_> = leaders.map(|(id, leader)| (facts.now_ms, self.room(*id, leader))).collect();
                self.seen.extend(rooms);
            }
            _ => {}
        }
    }

    /// The largest command that every leader could have taken at any time since then, in bytes, encoded.
    pub(super) fn least_since(&self, since_ms: u64) -> usize {
        let since = self.seen.iter().rev().take_while(|(at, _)| *at >= since_ms);
        since.map(|(_, room)| *room).min().unwrap_or(usize::MAX)
    }

    fn room(&self, id: NodeId, leader: &NodeFacts) -> usize {
        let durable = leader.disk.as_ref().map_or(0, |disk| disk.state().2);
        let applied = self.applied.get(&id).copied().unwrap_or(0).min(durable);
        let waits: usize = (applied + 1..=leader.log.last()).filter_map(|at| leader.log.get(at)).map(|e| e.size).sum();
        leader.room.saturating_sub(waits).saturating_sub(ENTRY_OVERHEAD + FRAMING)
    }
}
