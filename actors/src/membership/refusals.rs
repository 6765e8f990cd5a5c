//! Peers that refuse this node, and when this node stops because of a refusal: another directory of this id, a copy, a
//! removal.

use actix::prelude::*;
use actorum_core::{identity::RefusedBecause, message::ReplyHandle};
use actorum_machine::{
    condition::{Reason, removed_message},
    ids::NodeId,
};
use actorum_transport::message::PeerRefused;

use super::MembershipManager;

impl<T: ReplyHandle> MembershipManager<T> {
    /// Whether this node stops because this one peer says that the cluster knows another directory of this id.
    ///
    /// It is for a node that belongs to no cluster yet: it may have lost its disk, and must not take part. But a member
    /// knows by its own copy of the membership whether it is the one recorded; such a node must not stop because of one
    /// peer that is wrong or was taken over by an attacker.
    fn may_stop_us(&self, peer: NodeId) -> bool {
        match &self.state {
            Some(state) => {
                let recorded = state.membership.members.get(&self.id).and_then(|member| member.incarnation);
                recorded.is_some_and(|recorded| recorded != self.incarnation)
            }
            // A founder believes only founders; a node that waits does not know yet which nodes to believe.
            None => self.founders.is_empty() || self.founders.contains_key(&peer),
        }
    }

    /// Whether this refusal proves that this directory is a copy: an older one, put back, or one of two that run.
    ///
    /// It must come from a member, and this node checks it against its own lives. A refusal of an earlier process
    /// proves nothing.
    fn is_a_copy(&self, peer: NodeId, reason: &RefusedBecause) -> bool {
        let known = match &self.state {
            Some(state) => state.membership.members.contains_key(&peer),
            None => self.founders.is_empty() || self.founders.contains_key(&peer),
        };
        known
            && match reason {
                RefusedBecause::OlderDirectory { id, recorded } => {
                    let shown = self.lives.as_ref().map(|lives| lives.shown());
                    *id == self.id && shown.is_some_and(|shown| recorded.proves_copy(self.incarnation, &shown))
                }
                // This process runs, so this directory cannot have been opened again since.
                RefusedBecause::Boot { id, known, theirs } => {
                    *id == self.id && *theirs == self.boot && *known > self.boot && self.lives.is_some()
                }
                _ => false,
            }
    }

    /// Once it has applied its own removal a node stops, but not at once: until another member knows of the removal,
    /// too, its vote may be the one that a leader of the old configuration needs (Raft dissertation section 4.2.2). A
    /// member that refuses the node as removed knows of it. If no member can say so, the time is bounded; after a
    /// restart it begins anew.
    pub(super) fn take_leave(&mut self, ctx: &mut Context<Self>) {
        let retired = self.state.as_ref().is_some_and(|state| state.membership.retired.contains(&self.id));
        if retired && !self.leaving {
            self.leaving = true;
            let id = self.id;
            tracing::debug!(
                node = id,
                "node {id} was removed from the cluster: it stops once another member knows, too"
            );
            ctx.run_later(self.links.farewell, |manager, _| manager.leave("as it has applied itself"));
        }
    }

    /// Whether enough peers refuse this node as removed to believe them.
    ///
    /// A member must not stop because of one peer that is wrong or was taken over by an attacker. So if this node has
    /// not applied its removal (it was away when that was made), a majority of the other voters that it knows have to
    /// say so. A node that belongs to no cluster believes the same peers as for other refusals.
    fn is_removed_by(&self, peer: NodeId) -> bool {
        let Some(state) = &self.state else { return self.may_stop_us(peer) };
        if self.leaving {
            return state.membership.members.contains_key(&peer);
        }
        let says_so = |id| matches!(self.refused_by.get(&id), Some(RefusedBecause::Retired { .. }));
        state.membership.configuration().is_quorum_of_others(self.id, says_so)
    }

    fn leave(&mut self, how: &str) {
        self.fail(Reason::Removed, format!("{} ({how})", removed_message(self.id)));
    }
}

impl<T: ReplyHandle> Handler<PeerRefused> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, PeerRefused { peer, by_peer, reason }: PeerRefused, _: &mut Context<Self>) {
        let who = if by_peer { format!("node {peer} refused this node") } else { format!("refused node {peer}") };
        let cause = format!("{who}: {reason}");
        let of_us = matches!(reason, RefusedBecause::Incarnation { id, .. } if by_peer && id == self.id);
        let removes_us = matches!(reason, RefusedBecause::Retired { id } if by_peer && id == self.id);
        let copied = by_peer && self.is_a_copy(peer, &reason);
        if by_peer {
            self.refused_by.insert(peer, reason);
        }
        if removes_us && self.is_removed_by(peer) {
            let by: Vec<_> = self.refused_by.keys().map(NodeId::to_string).collect();
            self.leave(&format!("as nodes {} say", by.join(", ")));
            return self.show();
        }
        // Promise 6: a copy has forgotten what it acknowledged and for whom it voted, or another process votes with the
        // same id.
        if copied || of_us && self.may_stop_us(peer) {
            self.fail(Reason::RefusedByPeers, cause);
        } else {
            self.refused = Some((Some(peer), cause));
        }
        self.show();
    }
}
