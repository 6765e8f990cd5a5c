//! Where a transport delivers: the recipients for what concerns the node, and for what belongs to each of its groups.
//!
//! ```text
//!  Received, Asked of group g ─▶ [ Routes ] ─┬─ g is registered ─▶ its handlers
//!                                            └─ it is not ───────▶ counted; a question is refused
//! ```
//!
//! A peer may name a group that this node does not have: one of a later version, one that is not registered yet, or one
//! that was never here. Its messages must reach no other group, since indexes and terms of two logs have nothing to do
//! with each other.
//!
//! Deliberately absent: a way to take a group out again.

use std::collections::BTreeMap;

use actorum_core::{
    identity::Identity,
    wire::{Refusal, Request, Response},
};
use actorum_machine::ids::{GroupId, NodeId};

use crate::message::{Asked, Attach, AttachNode, Handlers, NodeHandlers, PeerRefused, PeerUp, Received, Unreachable};

/// Who hears what a transport delivers.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// Nothing is delivered before these are known.
    node: Option<NodeHandlers>,
    groups: BTreeMap<GroupId, Handlers>,
    /// What came for groups that are not here: messages, and questions.
    misdirected: u64,
}

impl Routes {
    pub(crate) fn attach(&mut self, Attach { group, handlers }: Attach) {
        self.groups.insert(group, handlers);
    }

    pub(crate) fn attach_node(&mut self, AttachNode { handlers }: AttachNode) {
        self.node = Some(handlers);
    }

    /// Whether the node takes anything yet.
    pub(crate) fn is_open(&self) -> bool {
        self.node.is_some()
    }

    /// What was refused because its group is not here, since the start.
    pub(crate) fn misdirected(&self) -> u64 {
        self.misdirected
    }

    /// Whether messages of that group have a receiver here. If they have none, `count` of them are counted, and must
    /// not be used for anything.
    pub(crate) fn takes(&mut self, group: GroupId, from: NodeId, count: usize) -> bool {
        let here = self.groups.contains_key(&group);
        if !here && self.is_open() {
            self.refused(group, from, "messages", count as u64);
        }
        here && self.is_open()
    }

    /// To the core of the group, whose messages this node [takes](Self::takes).
    pub(crate) fn deliver(&self, received: Received) {
        if let Some(above) = self.groups.get(&received.group).and_then(|handlers| handlers.received.upgrade()) {
            above.do_send(received);
        }
    }

    /// To the actor that answers such a question in its group. If that actor has ended, the question is dropped, which
    /// tells the peer that the answer is lost.
    pub(crate) fn ask(&mut self, asked: Asked) {
        if !self.is_open() {
            return;
        }
        match self.groups.get(&asked.group).map(|handlers| handlers.answers(&asked.request)) {
            Some(Some(above)) => above.do_send(asked),
            Some(None) => {}
            None => {
                self.refused(asked.group, asked.from, "a question", 1);
                asked.responder.answer(not_here(asked.group));
            }
        }
    }

    fn refused(&mut self, group: GroupId, from: NodeId, what: &str, count: u64) {
        let before = self.misdirected;
        self.misdirected = before.saturating_add(count);
        // A peer can send any number of them: a line is logged at the first, and whenever the number has doubled.
        if before.checked_ilog2() < self.misdirected.checked_ilog2() {
            let (group, refused) = (group.0, self.misdirected);
            tracing::warn!(
                peer = from,
                group,
                refused,
                "node {from} sent {what} of group {group}, which is not on this node"
            );
        }
    }

    /// Tells a group that what it sent to that peer was dropped.
    pub(crate) fn unreachable(&self, group: GroupId, peer: NodeId) {
        if let Some(above) = self.groups.get(&group).and_then(|handlers| handlers.unreachable.upgrade()) {
            above.do_send(Unreachable { group, peer });
        }
    }

    /// The connection with a peer is gone, and with it what was queued or on its way. It is not known to which groups
    /// that belonged, so every group is told.
    #[cfg(feature = "quic")]
    pub(crate) fn lost(&self, peer: NodeId) {
        self.groups.keys().for_each(|group| self.unreachable(*group, peer));
    }

    pub(crate) fn peer_up(&self, identity: Identity) {
        if let Some(above) = self.node.as_ref().and_then(|node| node.peer_up.upgrade()) {
            above.do_send(PeerUp { identity });
        }
    }

    pub(crate) fn peer_refused(&self, refused: PeerRefused) {
        if let Some(above) = self.node.as_ref().and_then(|node| node.peer_refused.upgrade()) {
            above.do_send(refused);
        }
    }
}

impl Handlers {
    /// Who answers a question, if that actor still lives.
    fn answers(&self, request: &Request) -> Option<actix::Recipient<Asked>> {
        let above = match request {
            Request::Formation(_) | Request::Clock | Request::Activate => &self.formation,
            Request::Snapshot(_) => &self.snapshots,
            Request::Marks { .. } => &self.marks,
            Request::Propose { .. } | Request::ReadIndex { .. } | Request::Change { .. } => &self.asked,
        };
        above.upgrade()
    }
}

/// The answer to a question of a group that is not here. It promises that nothing was done.
fn not_here(group: GroupId) -> Response {
    Response::Refused(Refusal::Invalid { cause: format!("group {} is not on this node", group.0) })
}
