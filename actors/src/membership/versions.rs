//! The leader records what the members understand, and puts to use what all of them do.
//!
//! ```text
//!  a hello says something else than what is recorded ──Announce──▶ core
//!  every member has announced it, and may be used    ──Activate──▶ core
//! ```
//!
//! Both are proposals without an answer: what was lost with a leader is proposed again, once a second by whoever leads, and
//! an entry that comes twice changes nothing. That an operator has asked is known to the leader alone: with another leader it is asked
//! again.

use std::collections::{BTreeMap, BTreeSet};

use actix::prelude::*;
use actorum_core::{
    entry::SystemCommand,
    features::Feature,
    message::ReplyHandle,
    system_state::SystemState,
    versions::{Activation, Announcement, Versions},
    wire::Request,
};
use actorum_machine::ids::NodeId;
use actorum_transport::message::Ask;
use tokio::sync::oneshot;

use super::{ASK_TIMEOUT, MembershipManager};
use crate::message::ProposeVersions;

/// What this leader has proposed and not seen applied.
#[derive(Debug, Default)]
pub(super) struct Activating {
    announced: BTreeMap<NodeId, Announcement>,
    activated: BTreeSet<Activation>,
    /// Whether an operator has said that what every member understands may be used, and it is not all in use yet.
    asked_for: bool,
    /// Operators who wait for the leader's answer, by the number of the question. Bound: each has one answer, within its timeout.
    pub(super) asked_leader: BTreeMap<u64, oneshot::Sender<Result<(), NoLeader>>>,
}

impl Activating {
    /// Whether something that was proposed is not applied yet.
    fn is_under_way(&self, versions: &Versions) -> bool {
        let recorded = |(id, announcement): (&NodeId, &Announcement)| versions.announced.get(id) == Some(announcement);
        !self.announced.iter().all(recorded) || !self.activated.iter().all(|activation| versions.is_in_use(activation))
    }
}

/// Put to use what every member understands, also where that is not done by itself (`activate = "manual"`). A node that does not
/// lead asks the leader. What comes of it is seen in the status.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "Result<(), NoLeader>")]
pub struct Activate;

/// No leader is known that could put something to use, or it did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLeader;

impl<T: ReplyHandle> MembershipManager<T> {
    /// What a new leader, or one whose proposals may be lost, proposes.
    pub(super) fn propose_versions_again(&mut self) {
        self.activating.announced.clear();
        self.activating.activated.clear();
        self.activating.asked_for &= self.leads;
        self.propose_versions();
    }

    pub(super) fn propose_versions(&mut self) {
        let (true, Some(state)) = (self.leads, self.state.clone()) else { return };
        let (membership, versions, own) = (&state.membership, &state.versions, self.understanding.own());
        let may_use = self.links.activates || self.activating.asked_for;
        // That members announce anything is new itself: until then an older member would stop at the entry.
        let may_record = versions.are_recorded()
            || may_use && self.understanding.every_member_understands(membership, Feature::Activation);
        if !may_record {
            // What cannot be done now is not done later without anybody asking.
            self.activating.asked_for = false;
            return;
        }
        let mut proposals = Vec::new();
        for id in membership.members.keys() {
            let Some(announcement) = self.understanding.announcement_of(*id) else { continue };
            let known = [versions.announced.get(id), self.activating.announced.get(id)].contains(&Some(announcement));
            if !known {
                self.activating.announced.insert(*id, announcement.clone());
                proposals.push(SystemCommand::Announce { node: *id, announcement: announcement.clone() });
            }
        }
        let usable = if may_use { versions.understood_by_all(membership, own) } else { Vec::new() };
        for activation in usable {
            if self.activating.activated.insert(activation.clone()) {
                tracing::info!(%activation, "every member understands it: it is put to use");
                proposals.push(SystemCommand::Activate { activation });
            }
        }
        // What an operator asks for is done once. What a member announces later is asked for again.
        self.activating.asked_for &= self.activating.is_under_way(versions);
        proposals.into_iter().for_each(|command| self.links.versions.do_send(ProposeVersions(command)));
    }

    /// An operator wants what every member understands put to use: nothing, where this node does not lead.
    pub(super) fn activate(&mut self) {
        self.activating.asked_for |= self.leads;
        self.propose_versions_again();
        self.show();
    }

    /// The version of each member's state machine, as far as it is known.
    pub(super) fn machines(&self) -> BTreeMap<NodeId, Option<u32>> {
        let Some(SystemState { membership, versions, .. }) = self.state.as_deref() else { return BTreeMap::new() };
        let known = |id: &NodeId| match versions.are_recorded() {
            true => versions.announced.get(id),
            false => self.understanding.announcement_of(*id),
        };
        membership.members.keys().map(|id| (*id, known(id).map(|announcement| announcement.machine))).collect()
    }

    /// What this build understands and nobody uses yet, and the members that have not announced it.
    pub(super) fn waiting(&self) -> Vec<(Activation, Vec<NodeId>)> {
        let Some(SystemState { membership, versions, .. }) = self.state.as_deref() else { return Vec::new() };
        // Before there are announcements hellos count.
        let heard = |activation: &Activation| {
            let lacks = |id: &&NodeId| {
                !self.understanding.announcement_of(**id).is_some_and(|announcement| announcement.covers(activation))
            };
            membership.members.keys().filter(lacks).copied().collect()
        };
        let candidates = versions.candidates(self.understanding.own()).into_iter();
        let lacking = |activation: &Activation| match versions.are_recorded() {
            true => versions.lacking(membership, activation),
            false => heard(activation),
        };
        candidates.map(|activation| (activation.clone(), lacking(&activation))).collect()
    }
}

impl<T: ReplyHandle> Handler<Activate> for MembershipManager<T> {
    type Result = ResponseFuture<Result<(), NoLeader>>;

    fn handle(&mut self, Activate: Activate, ctx: &mut Context<Self>) -> Self::Result {
        let (done, answer) = oneshot::channel();
        match self.leader {
            _ if self.leads => {
                self.activate();
                let _ = done.send(Ok(()));
            }
            None => drop(done.send(Err(NoLeader))),
            Some(to) => {
                self.next_id += 1;
                let (id, group, reply_to) = (self.next_id, self.group, ctx.address().downgrade().recipient());
                let (request, timeout) = (Request::Activate, ASK_TIMEOUT);
                self.links.ask.do_send(Ask { id, group, to, request, timeout, reply_to });
                self.activating.asked_leader.insert(id, done);
            }
        }
        Box::pin(async move { answer.await.unwrap_or(Err(NoLeader)) })
    }
}
