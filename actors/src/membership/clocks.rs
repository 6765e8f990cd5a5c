//! Asks the peers once a second what their calendars show, and whether they take writes if they lead, and tells the
//! core.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use actix::prelude::*;
use actorum_core::{
    clock_offsets::calendar_us,
    features::Feature,
    message::ReplyHandle,
    wire::{ClockReading, Request},
};
use actorum_machine::ids::NodeId;
use actorum_transport::message::Ask;

use super::{ASK_TIMEOUT, MembershipManager};
use crate::message::ClocksRead;

/// How often peers are asked what their calendars show.
pub(super) const READ_CLOCKS: Duration = Duration::from_secs(1);
/// How long it counts that a peer said that it takes no writes.
const REFUSAL_VALID: Duration = Duration::from_secs(3);
/// The longest reason that a peer may give for taking none, in bytes.
const MAX_REASON: usize = 64;

impl<T: ReplyHandle> MembershipManager<T> {
    /// What this node answers to that question. It reads the clock once, since nothing happens between the question and
    /// the answer.
    pub(super) fn own_clock(&self) -> ClockReading {
        let calendar_us = u64::try_from(calendar_us(self.links.clock.wall())).unwrap_or(0);
        let refuses_writes = self.links.core.borrow().refuses_writes.map(|reason| reason.name().to_owned());
        ClockReading { calendar_us, refuses_writes }
    }

    /// Asks every peer that can answer, and tells the core what is known.
    pub(super) fn ask_for_clocks(&mut self, ctx: &mut Context<Self>) {
        let members = self.state.iter().flat_map(|state| state.membership.members.keys());
        let peers: BTreeSet<NodeId> =
            members.chain(self.founders.keys()).copied().filter(|id| *id != self.id).collect();
        self.clocks.keep(|peer| peers.contains(&peer));
        self.refuses_writes.retain(|peer, _| peers.contains(peer));
        peers.into_iter().for_each(|peer| self.ask_for_clock(peer, ctx));
        self.tell_clocks();
    }

    pub(super) fn ask_for_clock(&mut self, peer: NodeId, ctx: &mut Context<Self>) {
        let asked = self.clocks_asked.values().any(|(asked, _)| *asked == peer);
        if asked || !self.understanding.peer_understands(peer, Feature::ClockExchange) {
            return;
        }
        self.next_id += 1;
        self.clocks_asked.insert(self.next_id, (peer, self.links.clock.now()));
        self.links.ask.do_send(Ask {
            id: self.next_id,
            group: self.group,
            to: peer,
            request: Request::Clock,
            timeout: ASK_TIMEOUT,
            reply_to: ctx.address().downgrade().recipient(),
        });
    }

    pub(super) fn clock_read(&mut self, peer: NodeId, asked: Duration, reading: ClockReading) {
        let now = self.links.clock.now();
        self.clocks.read(peer, asked, now, reading.calendar_us);
        // A peer's text is bounded before it is kept.
        match reading.refuses_writes.filter(|reason| reason.len() <= MAX_REASON) {
            Some(reason) => drop(self.refuses_writes.insert(peer, (reason, now))),
            None => drop(self.refuses_writes.remove(&peer)),
        }
        self.tell_clocks();
    }

    fn tell_clocks(&mut self) {
        self.links.clocks.do_send(ClocksRead(self.clocks.estimates(self.links.clock.now())));
        self.show();
    }

    /// Why peers take no writes, by their last answers.
    pub(super) fn writes_refused_lately(&self) -> BTreeMap<NodeId, String> {
        let now = self.links.clock.now();
        let lately = |(_, (_, said)): &(&NodeId, &(String, Duration))| now.saturating_sub(*said) <= REFUSAL_VALID;
        let refuses = self.refuses_writes.iter().filter(lately);
        refuses.map(|(peer, (reason, _))| (*peer, reason.clone())).collect()
    }
}
