//! When each peer was last heard: one record, and the two questions asked of it.
//!
//! | question | what counts | measured | after a pause of this process |
//! |---|---|---|---|
//! | [`heard_lately`](Consensus::heard_lately): who is there? | any valid message | in ticks | who was heard before it still counts |
//! | [`answered_lately`](Consensus::answered_lately): who follows this leader? | an answer in its term | by the clock | nobody counts until it answers again |
//!
//! The first decides what the status shows and whether a leader is ready for writes: a process that slept must not take
//! its own sleep for its peers' silence, and a drain counts one tick however long the pause was. The second decides
//! whether a change of the membership is made, which cannot be taken back: there an answer from before the pause proves
//! nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use actorum_machine::ids::NodeId;
use raft::StateRole;

use super::Consensus;
use crate::wire::{MessageKind, RaftMessage};

/// When the others were last heard.
#[derive(Debug, Default)]
pub(super) struct Contact {
    /// Bound: one per id with a certificate of this cluster.
    peers: BTreeMap<NodeId, LastHeard>,
    /// The term in which this node leads, or led last: the answers are of this term.
    term: u64,
    /// Since when a majority has answered lately without a gap, if it does now.
    majority_since: Option<Duration>,
}

/// When one peer was last heard.
#[derive(Debug, Default)]
struct LastHeard {
    /// The tick in which its last valid message was read.
    tick: u64,
    /// When its last answer to this node as leader of `Contact::term` was read. `None` for a node that is no member.
    answer: Option<Duration>,
}

impl<T> Consensus<T> {
    /// One election timeout: who was heard within it was heard lately.
    pub(super) fn election_timeout(&self) -> Duration {
        let ticks = u32::try_from(self.settings.election_ticks).unwrap_or(u32::MAX);
        self.settings.tick.saturating_mul(ticks)
    }

    /// A message of a peer that was found valid.
    pub(super) fn note_contact(&mut self, from: NodeId, message: &RaftMessage) {
        let answers = matches!(message.kind, MessageKind::AppendResponse | MessageKind::HeartbeatResponse);
        let raft = &self.raw.raft;
        let follows = raft.state == StateRole::Leader && message.term == raft.term && raft.prs().get(from).is_some();
        if answers && follows {
            self.note_commit();
        }
        let heard = self.contact.peers.entry(from).or_default();
        heard.tick = self.ticks;
        if answers && follows {
            heard.answer = Some(self.now);
        }
    }

    /// For a leader: forgets the answers of an earlier term and of nodes that are no longer members, and checks whether
    /// a majority answers. Returns whether this is the first check in its term.
    pub(super) fn renew_contact(&mut self) -> bool {
        let (term, members) = (self.raw.raft.term, self.raw.raft.prs());
        let contact = &mut self.contact;
        let first = contact.term != term;
        contact.term = term;
        for (id, heard) in &mut contact.peers {
            heard.answer.take_if(|_| first || members.get(*id).is_none());
        }
        contact.majority_since.take_if(|_| first);
        let majority = self.configuration().is_quorum(|id| self.answered_lately(id));
        self.contact.majority_since = majority.then(|| self.contact.majority_since.unwrap_or(self.now));
        first
    }

    /// The peers that were heard within an election timeout, in ticks.
    pub(super) fn heard_lately(&self) -> BTreeSet<NodeId> {
        let timeout = self.settings.election_ticks as u64;
        let lately = |(peer, heard): (&NodeId, &LastHeard)| (self.ticks - heard.tick <= timeout).then_some(*peer);
        self.contact.peers.iter().filter_map(lately).collect()
    }

    /// Whether a member answered this leader within an election timeout, by the clock. A leader hears itself.
    pub(super) fn answered_lately(&self, id: NodeId) -> bool {
        self.since_answer(id).is_some_and(|since| since <= self.election_timeout())
    }

    /// How long ago a member answered, in milliseconds; `None` if never in this leader's term.
    pub(super) fn heard_ms(&self, id: NodeId) -> Option<u64> {
        self.since_answer(id).map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Whether live members may not have answered yet, because the leader is new or its process stood still. That is so
    /// until a majority has answered for a whole election timeout.
    pub(super) fn contact_is_new(&self) -> bool {
        let since = self.contact.majority_since;
        since.is_none_or(|since| self.now.saturating_sub(since) <= self.election_timeout())
    }

    fn since_answer(&self, id: NodeId) -> Option<Duration> {
        if id == self.settings.id {
            return Some(Duration::ZERO);
        }
        Some(self.now.saturating_sub(self.contact.peers.get(&id)?.answer?))
    }
}
