//! Whom this core has heard lately, and whether it would take a write: what readiness stands on.
//!
//! Counted in ticks that passed, so a process that was paused does not take its own sleep for its peers' silence.

use std::collections::BTreeSet;

use actorum_transport::wire::NodeId;
use raft::StateRole;

use super::Consensus;
use crate::condition::Reason;

impl<T> Consensus<T> {
    /// A peer has sent something that makes sense.
    pub(super) fn note_heard(&mut self, peer: NodeId) {
        self.heard.insert(peer, self.ticks);
    }

    /// The peers that were heard within an election timeout.
    pub(super) fn heard_lately(&self) -> BTreeSet<NodeId> {
        let patience = self.settings.election_ticks as u64;
        let lately = |(peer, at): (&NodeId, &u64)| (self.ticks - at <= patience).then_some(*peer);
        self.heard.iter().filter_map(lately).collect()
    }

    /// Why this node, which leads, would not take a write now; `None` for one that would, or does not lead.
    pub(super) fn refuses_writes(&self) -> Option<Reason> {
        if self.raw.raft.state != StateRole::Leader {
            return None;
        }
        let (heard, voters) = (self.heard_lately(), self.voters());
        let with_us = voters.iter().filter(|id| **id == self.settings.id || heard.contains(id)).count();
        if with_us < voters.len() / 2 + 1 {
            return Some(Reason::NoMajority);
        }
        self.disk.is_low().then_some(Reason::LowSpace)
    }
}
