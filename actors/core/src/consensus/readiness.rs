//! Whether this node is ready to take a write, and the cluster for a change of the membership. Both stand on who was
//! heard.
//!
//! A change is looked at before it is proposed, because it cannot be taken back.
//!
//! ```text
//!  promote: the learner answered lately, and its log reaches the commit of one election timeout ago ─┐
//!  any:     the voters that answered lately are a majority of the voters that result ────────────────┴─▶ proposed
//!  otherwise: it waits until its deadline (a learner), or is refused at once (a majority), with the reading
//! ```
//!
//! A learner that is promoted while it is down, or far behind, counts in every majority from the moment its promotion
//! is committed, and holds up all writes until it is back. The same happens when a live voter leaves while another one
//! is down. What a leader knows of its followers is how far they have acknowledged, and when they answered last in its
//! own term.
//!
//! `force` passes over both, and over nothing else: a learner whose life is not recorded, or that holds nothing, is
//! never promoted (the sixth promise). A forced request does not wait: what cannot be forced is refused at once, with
//! the reason.

use std::{collections::VecDeque, time::Duration};

use actorum_machine::{
    condition::Reason,
    configuration::Shortfall,
    ids::NodeId,
    members::{Change, ChangeRequest, Membership},
    readings::{ChangeReading, LearnerReading, MajorityReading},
};
use raft::StateRole;

use super::{Consensus, requests::Request};
use crate::{
    planted::{self, Planted},
    wire::{ChangeRefusal, Refusal},
};

/// A leader's commit index over time, oldest first: the newest one that is at least an election timeout old, and all
/// later ones. In a new term it begins with the last index of the log, which is no less than what was committed before.
/// Bound: one per tick of an election timeout.
pub(super) type Commits = VecDeque<(Duration, u64)>;

impl<T> Consensus<T> {
    /// Why this node, which leads, would not take a write now; `None` for one that would, or does not lead.
    pub(super) fn refuses_writes(&self) -> Option<Reason> {
        if self.raw.raft.state != StateRole::Leader {
            return None;
        }
        let heard = self.heard_lately();
        if !self.configuration().is_quorum(|id| id == self.settings.id || heard.contains(&id)) {
            return Some(Reason::NoMajority);
        }
        match () {
            () if self.disk.is_low() => Some(Reason::LowSpace),
            () if self.half_way_to_suspicion() => Some(Reason::DiskSlow),
            () => None,
        }
    }

    /// At each tick of a leader, and before it is asked what it knows.
    pub(super) fn note_commit(&mut self) {
        if self.raw.raft.state != StateRole::Leader {
            return;
        }
        let (commit, now) = (self.raw.raft.raft_log.committed, self.now);
        if self.renew_contact() {
            // What a new leader knew to be committed as a follower is not all that its predecessor had committed. All
            // of that is in its log (the paper's section 5.4, leader completeness).
            self.commits.clear();
            self.commits.push_back((now, self.raw.raft.raft_log.last_index()));
        }
        let lately = now.saturating_sub(self.election_timeout());
        // Not more often than a tick: in between the newest moment would only be repeated.
        if self.commits.back().is_none_or(|(at, _)| *at + self.settings.tick <= now) {
            // What was known to be committed at the election is so before the first commit of this term says it.
            let known = self.commits.back().map_or(0, |(_, known)| *known);
            self.commits.push_back((now, commit.max(known)));
        }
        while self.commits.get(1).is_some_and(|(at, _)| *at <= lately) {
            self.commits.pop_front();
        }
    }

    /// What speaks against making this change now, which would lead to that membership.
    fn objection(&self, request: &ChangeRequest, next: &Membership) -> Option<ChangeReading> {
        if let Change::Promote(id) = &request.change
            && let Some(learner) = self.not_ready(*id, request.force)
        {
            return Some(ChangeReading { learner: Some(learner), majority: None });
        }
        if request.force || planted::is(Planted::MajorityNotAsked) {
            return None;
        }
        let next = next.configuration();
        let Shortfall { voters, have, needed } = next.shortfall(|id| self.answered_lately(id))?;
        let voters = voters.iter().map(|id| (*id, self.heard_ms(*id))).collect();
        let majority = MajorityReading { needed: needed as u64, heard: have as u64, voters };
        Some(ChangeReading { learner: None, majority: Some(majority) })
    }

    /// Why this learner cannot be promoted now.
    fn not_ready(&self, id: NodeId, force: bool) -> Option<LearnerReading> {
        let matched = self.raw.raft.prs().get(id).map_or(0, |progress| progress.matched);
        let needed = self.commits.front().map_or(0, |(_, commit)| *commit);
        // One whose life is not recorded could come back with an empty directory and be taken for the one that was
        // promoted.
        let known = self.membership.members.get(&id).is_some_and(|member| member.incarnation.is_some());
        // And a member that has announced nothing may not understand what is in use.
        let announced = self.versions.announced.get(&id);
        let recorded = known && (!self.versions.are_recorded() || announced.is_some());
        let lacks = announced.and_then(|announced| self.versions.beyond(announced)).map(|lacks| lacks.to_string());
        // One that holds nothing has no vote (the sixth promise).
        let ready = matched > 0 && recorded;
        let close = matched >= needed && self.answered_lately(id) || planted::is(Planted::PromotedBehind);
        if ready && (force || close) && lacks.is_none() {
            return None;
        }
        let commit = self.raw.raft.raft_log.committed;
        // A new leader does not know yet what its followers hold; it does know whose directory is recorded.
        let forced = force && (!recorded || lacks.is_some() || !self.contact_is_new());
        let heard_ms = self.heard_ms(id);
        Some(LearnerReading { node: id, matched, needed, commit, heard_ms, recorded, forced, lacks })
    }

    /// What the node to be added does not understand of what is in use, as far as its hello was seen.
    pub(super) fn not_understood(&self, change: &Change) -> Option<String> {
        let Change::AddLearner(node, _) = change else { return None };
        let lacks = self.versions.beyond(self.understanding.announcement_of(*node)?)?.to_string();
        Some(LearnerReading { node: *node, lacks: Some(lacks), ..LearnerReading::default() }.to_string())
    }

    /// Looks at what a change would do. If something speaks against it the request waits on, or is refused, and is gone
    /// from here.
    pub(super) fn check_change(
        &mut self,
        request: Request<T>,
        change: &ChangeRequest,
        next: &Membership,
    ) -> Option<Request<T>> {
        self.note_commit();
        let Some(reading) = self.objection(change, next) else { return Some(request) };
        let new = self.contact_is_new();
        let waits = reading.learner.as_ref().map_or(new, |learner| !learner.forced);
        let refusal = match &reading {
            // The node that forwarded it asks again by itself, so the first answer of a new leader must not be final.
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
