//! A change of the membership is looked at before it is proposed, because it cannot be taken back.
//!
//! ```text
//!  promote: heard lately, and its log reaches the commit of one election timeout ago ─┐
//!  any:     the voters heard lately are a majority of the voters that result ─────────┴─▶ proposed
//!  otherwise: it waits until its deadline (a learner), or is refused at once (a majority), with the reading
//! ```
//!
//! A learner that is promoted while it is down, or far behind, counts in every majority from the moment its promotion is
//! committed, and holds up all writes until it is back. The same happens when a live voter leaves while another one is down.
//! What a leader knows of its followers is how far they have acknowledged, and when it heard them last in its own term.
//!
//! `force` passes over both, and over nothing else: a learner whose life is not recorded, or that holds nothing, is never promoted
//! (the sixth promise).
//!
//! Time is measured by the clock, not in ticks: after a pause of its process a leader has heard nobody lately.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use actorum_transport::{
    planted::{self, Planted},
    wire::{ChangeReading, ChangeRefusal, LearnerReading, MessageKind, NodeId, QuorumReading, RaftMessage},
};
use raft::StateRole;

use super::{Consensus, requests::Request};
use crate::{
    members::{Change, ChangeRequest, Membership},
    message::Refusal,
};

/// What a leader knows of the others in its present term.
#[derive(Debug, Default)]
pub(super) struct Contact {
    /// The term in which this node leads, or led last.
    term: u64,
    /// Since when a majority has been heard lately without a gap, if it is now. Before that, and for one election timeout after, some
    /// that live may not have been heard yet: the leader is new, or its process stood still.
    steady: Option<Duration>,
    /// When each member's last answer was read. Bound: one per member.
    heard: BTreeMap<NodeId, Duration>,
    /// The commit index over time, oldest first: one moment of an election timeout ago or before, and those since. Bound: one per
    /// tick of an election timeout.
    commits: VecDeque<(Duration, u64)>,
}

impl<T> Consensus<T> {
    /// One election timeout.
    fn election_timeout(&self) -> Duration {
        let ticks = u32::try_from(self.settings.election_ticks).unwrap_or(u32::MAX);
        self.settings.tick.saturating_mul(ticks)
    }

    /// A message of a peer that was found valid.
    pub(super) fn note_contact(&mut self, from: NodeId, message: &RaftMessage) {
        let answers = matches!(message.kind, MessageKind::AppendResponse | MessageKind::HeartbeatResponse);
        let raft = &self.raw.raft;
        if answers && raft.state == StateRole::Leader && message.term == raft.term && raft.prs().get(from).is_some() {
            self.note_commit();
            self.contact.heard.insert(from, self.now);
        }
    }

    /// At each tick of a leader, and before it is asked what it knows.
    pub(super) fn note_commit(&mut self) {
        if self.raw.raft.state != StateRole::Leader {
            return;
        }
        let (term, commit, now) = (self.raw.raft.term, self.raw.raft.raft_log.committed, self.now);
        let lately = now.saturating_sub(self.election_timeout());
        let contact = &mut self.contact;
        if contact.term != term {
            *contact = Contact { term, ..Contact::default() };
        }
        // Not more often than a tick: in between the newest moment would only be repeated.
        if contact.commits.back().is_none_or(|(at, _)| *at + self.settings.tick <= now) {
            contact.commits.push_back((now, commit));
        }
        while contact.commits.get(1).is_some_and(|(at, _)| *at <= lately) {
            contact.commits.pop_front();
        }
        let members = self.raw.raft.prs();
        contact.heard.retain(|id, _| members.get(*id).is_some());
        let voters = self.voters();
        let heard = voters.iter().filter(|id| self.answered_lately(**id)).count();
        self.contact.steady = (heard * 2 > voters.len()).then(|| self.contact.steady.unwrap_or(now));
    }

    /// How long ago a member was heard, in milliseconds; a leader hears itself.
    fn heard_ms(&self, id: NodeId) -> Option<u64> {
        if id == self.settings.id {
            return Some(0);
        }
        let at = self.contact.heard.get(&id)?;
        Some(u64::try_from(self.now.saturating_sub(*at).as_millis()).unwrap_or(u64::MAX))
    }

    fn answered_lately(&self, id: NodeId) -> bool {
        let timeout = self.election_timeout();
        id == self.settings.id || self.contact.heard.get(&id).is_some_and(|at| self.now.saturating_sub(*at) <= timeout)
    }

    /// What speaks against making this change now, which would lead to that membership.
    fn reading_against(&self, request: &ChangeRequest, next: &Membership) -> Option<ChangeReading> {
        if let Change::Promote(id) = &request.change
            && let Some(learner) = self.not_ready(*id, request.force)
        {
            return Some(ChangeReading { learner: Some(learner), quorum: None });
        }
        if request.force || planted::is(Planted::MajorityNotAsked) {
            return None;
        }
        let voters = next.voters();
        let needed = voters.len() as u64 / 2 + 1;
        let heard = voters.iter().filter(|id| self.answered_lately(**id)).count() as u64;
        let voters = || voters.iter().map(|id| (*id, self.heard_ms(*id))).collect();
        (heard < needed)
            .then(|| ChangeReading { learner: None, quorum: Some(QuorumReading { needed, heard, voters: voters() }) })
    }

    /// Why this learner cannot be promoted now.
    fn not_ready(&self, id: NodeId, force: bool) -> Option<LearnerReading> {
        let matched = self.raw.raft.prs().get(id).map_or(0, |progress| progress.matched);
        let needed = self.contact.commits.front().map_or(0, |(_, commit)| *commit);
        // One whose life is not recorded could come back with an empty directory and be taken for the one that was promoted.
        let recorded = self.membership.members.get(&id).is_some_and(|member| member.incarnation.is_some());
        // One that holds nothing has no vote (the sixth promise).
        let ready = matched > 0 && recorded;
        let close = matched >= needed && self.answered_lately(id) || planted::is(Planted::PromotedBehind);
        if ready && (force || close) {
            return None;
        }
        let commit = self.raw.raft.raft_log.committed;
        Some(LearnerReading { node: id, matched, needed, commit, heard_ms: self.heard_ms(id), recorded })
    }

    /// Looks at what a change would do. If something speaks against it the request waits on, or is refused, and is gone from here.
    pub(super) fn look_before_change(
        &mut self,
        request: Request<T>,
        change: &ChangeRequest,
        next: &Membership,
    ) -> Option<Request<T>> {
        self.note_commit();
        let Some(reading) = self.reading_against(change, next) else { return Some(request) };
        let new = self.contact.steady.is_none_or(|since| self.now.saturating_sub(since) <= self.election_timeout());
        let waits = reading.learner.is_some() || new;
        let refusal = match &reading {
            // Its node asks again by itself, and must not take the first word of a new leader for the last.
            ChangeReading { learner: None, .. } if new && request.peer => Refusal::Change(ChangeRefusal::NotReady),
            _ => Refusal::Change(ChangeRefusal::because(reading)),
        };
        if waits && !request.peer {
            self.again_because(request, refusal);
        } else {
            self.refuse(request, refusal);
        }
        None
    }
}
