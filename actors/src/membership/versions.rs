//! The leader records what the members understand, and activates what all of them understand.
//!
//! ```text
//!  a hello says something else than what is recorded ──Announce──▶ core
//!  every member has announced it, and may be used    ──Activate──▶ core
//! ```
//!
//! Both are proposals without an answer: what was lost with a leader is proposed again, once a second by the present
//! leader, and an entry that comes twice changes nothing. Only the leader knows that an operator has asked: after a
//! change of leader the operator asks again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use actix::prelude::*;
use actorum_core::{
    entry::SystemCommand,
    features::Feature,
    message::ReplyHandle,
    versions::{Activation, Announcement, Versions},
    wire::{Refusal, Request, Response},
};
use actorum_machine::ids::NodeId;
use actorum_transport::message::{Ask, Responder};
use tokio::sync::oneshot;

use super::MembershipManager;
use crate::message::ProposeVersions;

/// How long a leader may take to activate something: a few entries of the log.
const ACTIVATE_TIMEOUT: Duration = Duration::from_secs(60);

/// What this leader has proposed and not seen applied, and the operators who wait for it.
#[derive(Debug, Default)]
pub(super) struct Activating {
    announced: BTreeMap<NodeId, Announcement>,
    activated: BTreeSet<Activation>,
    /// Operators who have said that what every member understands may be used, until it is in use, this leadership
    /// ends, or they have given up. Bound: the clients that still wait, which the front door admits, those that gave up
    /// within the last second, and the questions that the transport lets peers have open.
    pub(super) operators: Vec<Operator>,
    /// Operators who wait for another leader's answer, by the number of the question. Bound: those that still wait,
    /// which the front door admits, and those that gave up within the last second.
    pub(super) asked_leader: BTreeMap<u64, oneshot::Sender<Activated>>,
}

/// The caller that waits for the end of an activation: a client of this node, or a peer for one of its clients.
#[derive(Debug)]
pub(super) enum Operator {
    Client(oneshot::Sender<Activated>),
    Peer(Responder),
}

impl Operator {
    /// Whether its client has given up. Of a peer's client only the end of the connection is seen here.
    fn has_gone(&self) -> bool {
        match self {
            Operator::Client(client) => client.is_closed(),
            Operator::Peer(peer) => peer.is_closed(),
        }
    }

    fn answer(self, activated: Activated) {
        match (self, activated) {
            // A caller that no longer waits gets no answer.
            (Operator::Client(client), activated) => drop(client.send(activated)),
            (Operator::Peer(peer), Ok(index)) => peer.answer(Response::ReadAt { index }),
            (Operator::Peer(peer), Err(NoLeader)) => {
                peer.answer(Response::Refused(Refusal::NotLeader { leader: None }));
            }
        }
    }
}

impl Activating {
    /// Whether something that was proposed is not applied yet.
    fn is_under_way(&self, versions: &Versions) -> bool {
        let recorded = |(id, announcement): (&NodeId, &Announcement)| !versions.is_news(*id, announcement);
        !self.announced.iter().all(recorded) || !self.activated.iter().all(|activation| versions.is_in_use(activation))
    }

    /// What an operator wanted who has given up is done for nobody.
    fn forget_who_gave_up(&mut self) {
        self.operators.retain(|operator| !operator.has_gone());
        self.asked_leader.retain(|_, client| !client.is_closed());
    }

    fn answer(&mut self, activated: &Activated) {
        self.operators.drain(..).for_each(|operator| operator.answer(*activated));
    }
}

/// Activate what every member understands, also where that is not done automatically (`activate = "manual"`). A node
/// that does not lead asks the leader. Answered once it is done, with the index that a node has to apply to see the
/// result.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Activate {
    /// For the answer. Whoever gives up drops the other end: then nothing more is done for this request.
    pub reply: oneshot::Sender<Activated>,
}

/// The index, or that no leader did it.
pub type Activated = Result<u64, NoLeader>;

/// No leader is known that could activate anything, or it did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLeader;

impl<T: ReplyHandle> MembershipManager<T> {
    /// What a new leader, or one whose proposals may be lost, proposes.
    pub(super) fn propose_versions_again(&mut self) {
        self.activating.announced.clear();
        self.activating.activated.clear();
        if !self.leads {
            self.activating.answer(&Err(NoLeader));
        }
        self.propose_versions();
    }

    pub(super) fn propose_versions(&mut self) {
        self.activating.forget_who_gave_up();
        let (true, Some(state)) = (self.leads, self.state.clone()) else { return };
        let (membership, versions, own) = (&state.membership, &state.versions, self.understanding.own());
        let may_use = self.links.activates || !self.activating.operators.is_empty();
        // Announcements are a new kind of entry themselves: an older member would stop at the first one.
        let may_record = versions.are_recorded()
            || may_use && self.understanding.every_member_understands(membership, Feature::Activation);
        let mut proposals = Vec::new();
        for id in membership.members.keys().filter(|_| may_record) {
            let Some(announcement) = self.understanding.announcement_of(*id) else { continue };
            let is_news =
                versions.is_news(*id, announcement) && self.activating.announced.get(id) != Some(announcement);
            if is_news {
                self.activating.announced.insert(*id, announcement.clone());
                proposals.push(SystemCommand::Announce { node: *id, announcement: announcement.clone() });
            }
        }
        // A new announcement of a member may make an activation impossible that is under way.
        let settled = !self.activating.is_under_way(versions);
        let usable = if may_use && settled { versions.understood_by_all(membership, own) } else { Vec::new() };
        for activation in usable {
            if self.activating.activated.insert(activation.clone()) {
                tracing::info!(%activation, "every member understands it: the leader proposes to activate it");
                proposals.push(SystemCommand::Activate { activation });
            }
        }
        proposals.into_iter().for_each(|command| self.links.versions.do_send(ProposeVersions(command)));
        // An operator's request is carried out once, as far as possible. What a member announces later needs another
        // request.
        if !self.activating.is_under_way(versions) {
            self.activating.answer(&Ok(self.state_index));
        }
    }

    /// An operator wants to activate what every member understands.
    pub(super) fn activate(&mut self, operator: Operator) {
        if !self.leads {
            return operator.answer(Err(NoLeader));
        }
        self.activating.operators.push(operator);
        self.propose_versions();
    }

    /// What this node's build understands and the cluster does not use, and since when that was seen.
    pub(super) fn note_not_in_use(&mut self) {
        let now = self.links.clock.now();
        let own = self.understanding.own();
        let candidates = self.state.iter().flat_map(|state| state.versions.candidates(own));
        let since = |what: Activation| {
            let since = self.not_in_use_since.get(&what).copied().unwrap_or(now);
            (what, since)
        };
        self.not_in_use_since = candidates.map(since).collect();
    }

    /// What each member's build understands as its newest hello says.
    pub(super) fn heard(&self) -> BTreeMap<NodeId, Announcement> {
        let members = self.state.iter().flat_map(|state| state.membership.members.keys());
        members.filter_map(|id| Some((*id, self.understanding.announcement_of(*id)?.clone()))).collect()
    }
}

impl<T: ReplyHandle> Handler<Activate> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, Activate { reply }: Activate, ctx: &mut Context<Self>) {
        match self.leader {
            Some(to) if !self.leads => {
                self.activating.forget_who_gave_up();
                self.next_id += 1;
                let (id, group, reply_to) = (self.next_id, self.group, ctx.address().downgrade().recipient());
                let (request, timeout) = (Request::Activate, ACTIVATE_TIMEOUT);
                self.links.ask.do_send(Ask { id, group, to, request, timeout, reply_to });
                self.activating.asked_leader.insert(id, reply);
            }
            _ => self.activate(Operator::Client(reply)),
        }
    }
}
