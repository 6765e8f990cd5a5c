//! Why a node gives up leadership: its disk is slow, its disk is nearly full (then it also refuses new work), or its
//! certificate has expired.
//!
//! ```text
//!               oldest write too old                          the probe passed, and all that waited then is durable
//!  trusted ────────────────────────▶ suspect ─────────────────────────────────────────────────────▶ trusted
//!                                      │ leader: transfers leadership; no candidate, or none took it within an election
//!                                      │         timeout: steps down
//!                                      └ anyone: seeks no vote, takes no leadership, goes on hearing and following
//!
//!  space short: a snapshot early, the log cut behind the newest one, whoever might still want the rest
//!  space low:   besides, what was held for a snapshot that is being sent goes; a leader answers `LowSpace` until
//!               there is space again, and transfers leadership if somebody takes it, unless it has just cut its log
//! ```
//!
//! A leader may be low on space only because it holds the log for peers that are behind. A follower holds nothing for
//! them, so it has room now. As leader it would soon be low as well, and would send those peers a new snapshot from the
//! beginning. So a leader first waits for the room that its own cut gives back, and longer while the log writer says
//! that room is being made.
//!
//! A leader whose certificate has expired keeps the connections that it has, and gets no new ones: a follower that
//! starts again could never hear it. So it transfers leadership, too, while it can, and goes on leading if no node
//! takes it.
//!
//! A leader whose disk hangs would otherwise keep its leadership for as long as its heartbeats arrive, and apply
//! nothing. Age is counted in ticks that passed, so a process that was paused does not take its own sleep for the
//! disk's.
//!
//! Deliberately absent: judging by one slow write. A disk is slow when the *oldest* write waits past the bound.

use std::collections::BTreeSet;

use actorum_machine::{configuration::Configuration, ids::NodeId, outcome::BusyBound};
use raft::{ProgressState, StateRole};

use super::Consensus;
use crate::{
    features::Feature,
    message::Room,
    planted::{self, Planted},
    wire::Refusal,
};

impl DiskHealth {
    /// Whether space is under its mark.
    pub(super) fn is_low(&self) -> bool {
        self.room.low
    }

    /// Whether the node must free all the room that it can.
    pub(super) fn is_short(&self) -> bool {
        (self.room.short || self.room.low) && !planted::is(Planted::ShortOfRoomUnseen)
    }
}

/// For how many election timeouts a leader low on space waits for room that is being made: rewriting a log of gigabytes
/// takes longer than one.
const TIMEOUTS_WHILE_ROOM_IS_MADE: u64 = 10;

/// How many answers may wait for the disk. At the bound the oldest is dropped, whatever its kind, because Raft allows
/// messages to be lost. A leader asks again with each heartbeat, a candidate with its next campaign, and the fate of a
/// snapshot has a deadline.
pub(super) const MAX_DEFERRED: usize = 4096;

/// After how many election timeouts a leader low on space offers leadership again to the nodes that did not take it.
const TIMEOUTS_UNTIL_ASKED_AGAIN: u64 = 10;

/// The same for a leader whose certificate has expired. It goes on taking writes, and each offer delays them for as
/// long as no node takes it.
const TIMEOUTS_WITHOUT_CERTIFICATE: u64 = 600;

/// What this core knows and thinks of its disk.
#[derive(Debug, Default)]
pub(super) struct DiskHealth {
    /// Bytes of entries and snapshots that are not durable yet.
    pub bytes: usize,
    /// Messages that wait for the disk.
    pub deferred: usize,
    /// Messages that waited and had to go.
    pub dropped: u64,
    suspicion: Option<Suspicion>,
    room: Room,
    /// The tick in which the log was first cut since space became low.
    cut_since: Option<u64>,
    /// Since which tick leadership is being transferred.
    transferring: Option<u64>,
    /// Who was offered leadership, for lack of space or of a certificate, and did not take it; asked again from this
    /// tick on.
    declined: (BTreeSet<NodeId>, u64),
}

#[derive(Debug)]
struct Suspicion {
    since: u64,
    /// Once the probe has passed: the newest write at that moment.
    passed: Option<u64>,
    /// After a probe that failed: when to try another.
    probe_at: Option<u64>,
    /// Why the last probe that failed did.
    failed: Option<String>,
}

/// The numbers of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreDiskStatus {
    /// How long the oldest write has been waiting to become durable, in milliseconds.
    pub waiting_ms: u64,
    /// Whether that is past half of its bound.
    pub slow: bool,
    /// For how long the disk has been under suspicion, in milliseconds, if it is.
    pub suspect_ms: Option<u64>,
    /// Whether space is under its mark.
    pub low: bool,
    /// Bytes that are not durable yet.
    pub unpersisted_bytes: usize,
    /// Messages that waited for the disk and were dropped at their bound.
    pub deferred_dropped: u64,
}

impl<T> Consensus<T> {
    /// The probe of the disk has ended.
    pub fn disk_probed(&mut self, result: Result<(), String>) {
        let (now, timeout) = (self.ticks, self.settings.election_ticks as u64);
        let newest = self.next_write - 1;
        let Some(suspicion) = &mut self.disk.suspicion else { return };
        match result {
            Ok(()) => suspicion.passed = Some(newest),
            Err(cause) => {
                // Logged once: that the disk is slow is shown as a condition, and this line only says what the probe
                // found.
                match suspicion.failed.replace(cause) {
                    None => tracing::warn!(cause = suspicion.failed, "the disk does not pass its probe"),
                    Some(_) => tracing::debug!(cause = suspicion.failed, "the disk still does not pass its probe"),
                }
                suspicion.probe_at = Some(now + timeout);
            }
        }
        self.trust_disk_again();
    }

    /// Space on the disk fell under its mark, or is enough again.
    pub fn disk_space(&mut self, room: Room) {
        let Room { low: was_low, waits, .. } = std::mem::replace(&mut self.disk.room, room);
        if waits && !room.waits {
            // Until now they waited for room; from now on they wait for the disk.
            let now = self.ticks;
            self.pending_writes.iter_mut().for_each(|write| write.since = now);
        }
        if was_low == room.low {
            return;
        }
        self.disk.declined = Default::default();
        // A cut that is on its way to the disk already counts as well.
        self.disk.cut_since = (room.low && self.is_recording()).then_some(self.ticks);
        if !room.low && self.disk.suspicion.is_none() && !self.certificate_ended {
            self.keep_leadership();
        }
    }

    /// The log is being cut.
    pub(super) fn note_cut(&mut self) {
        if self.disk.is_low() {
            self.disk.cut_since.get_or_insert(self.ticks);
        }
    }

    /// Whether this node may campaign or take leadership by transfer. A node that restores a snapshot could serve no
    /// client until its state is there; it votes all the same.
    pub(super) fn may_lead(&self) -> bool {
        self.disk.suspicion.is_none() && self.snapshots.restoring.is_none()
    }

    /// Whether leadership may be transferred to this node. If it is low on space, or its certificate has expired, it
    /// would only transfer leadership again.
    pub(super) fn may_take_leadership(&self) -> bool {
        self.may_lead() && !self.disk.is_low() && !self.certificate_ended
    }

    /// Bytes that a leader may still append before its own disk has caught up; none while that is slow or low on space.
    pub(super) fn room_on_disk(&self, command: bool) -> usize {
        // Entries of the system are small, and one of them may be what ends the lack of space.
        if self.disk.is_low() && command {
            return 0;
        }
        if command && self.half_way_to_suspicion() {
            return 0;
        }
        self.settings.max_unpersisted_bytes.saturating_sub(self.disk.bytes)
    }

    /// Which bound leaves no room for a command after `batch_bytes` of the same batch.
    pub(super) fn full_disk_bound(&self, command: bool, batch_bytes: usize) -> BusyBound {
        if command && self.half_way_to_suspicion() {
            return BusyBound::DiskSlow { waiting_ms: self.ms(self.waiting()) };
        }
        BusyBound::Unpersisted { bytes: self.disk.bytes + batch_bytes, max: self.settings.max_unpersisted_bytes }
    }

    /// Whether the disk has been slow for half of the bound. More work would then make it suspect for certain, so this
    /// node refuses commands and goes on leading.
    pub(super) fn half_way_to_suspicion(&self) -> bool {
        self.slow_for() * 2 >= self.settings.disk_slow_ticks
    }

    /// The refusal of a command while space is low; `None` if space is not low. A peer of the first version does not
    /// know this answer.
    pub(super) fn no_space(&self, peer: bool) -> Option<Refusal> {
        let Room { low, free, needed, .. } = self.disk.room;
        let known = !peer || self.every_member_understands(Feature::LowSpace);
        low.then_some(if known { Refusal::LowSpace { free, needed } } else { Refusal::Busy })
    }

    /// How many ticks the oldest write has waited.
    fn waiting(&self) -> u64 {
        self.pending_writes.front().map_or(0, |oldest| self.ticks - oldest.since)
    }

    /// For how many ticks the disk itself has been slow. Waiting for room does not count, because it does not show how
    /// the disk answers: a leader keeps its leadership if no node with room takes it, and goes on serving reads.
    fn slow_for(&self) -> u64 {
        if self.disk.room.waits { 0 } else { self.waiting() }
    }

    /// At each tick, before time passes for raft-rs.
    pub(super) fn look_at_disk(&mut self) {
        // First: a leader that cuts its log now does not transfer leadership now.
        if self.disk.is_short() {
            self.let_go_of_log();
        }
        let now = self.ticks;
        let slow = self.slow_for() >= self.settings.disk_slow_ticks;
        match &mut self.disk.suspicion {
            None if slow => {
                let waiting_ms = self.ms(self.waiting());
                tracing::debug!(waiting_ms, "the disk is too slow: this node does not lead until a probe has passed");
                self.disk.suspicion = Some(Suspicion { since: now, passed: None, probe_at: None, failed: None });
                self.effects.probe = true;
            }
            Some(suspicion) if suspicion.probe_at.is_some_and(|at| at <= now) => {
                suspicion.probe_at = None;
                self.effects.probe = true;
            }
            _ => {}
        }
        match self.raw.raft.state {
            StateRole::Leader if self.disk.suspicion.is_some() => self.transfer_or_step_down(),
            StateRole::Leader if self.certificate_ended || self.disk.is_low() && !self.room_may_come_back() => {
                self.offer_leadership();
            }
            StateRole::Leader => {}
            // Nor does it go on asking for votes that it could not use.
            StateRole::Candidate | StateRole::PreCandidate if self.disk.suspicion.is_some() => self.step_down(),
            _ => self.disk.transferring = None,
        }
    }

    /// Called instead of a tick of raft-rs while this node may not campaign. So time passes all the same, and this node
    /// may vote for another candidate once it has not heard its leader for long enough.
    pub(super) fn let_time_pass(&mut self) {
        self.raw.raft.election_elapsed += 1;
    }

    fn transfer_or_step_down(&mut self) {
        match (self.disk.transferring, self.successor(&BTreeSet::new())) {
            (None, Some(successor)) => self.transfer_leadership(successor),
            (Some(since), _) if self.ticks - since < self.settings.election_ticks as u64 => {}
            _ => self.step_down(),
        }
    }

    /// Whether the log was cut since space became low, and the room from that cut may not be counted yet. If the disk
    /// stays low, the leader gives up leadership in the end, even if the cut itself found no room.
    fn room_may_come_back(&self) -> bool {
        let timeouts = if self.disk.room.being_made { TIMEOUTS_WHILE_ROOM_IS_MADE } else { 1 };
        let timeout = timeouts * self.settings.election_ticks as u64;
        self.disk.cut_since.is_some_and(|since| self.ticks - since < timeout)
    }

    /// Offers leadership, because of low space or an expired certificate. If no node takes it, this node goes on
    /// leading: it can still serve reads, or, with an expired certificate, the nodes that are connected.
    fn offer_leadership(&mut self) {
        let timeout = self.settings.election_ticks as u64;
        match self.disk.transferring {
            Some(since) if self.ticks - since < timeout => {}
            Some(_) => self.keep_leadership(),
            None => {
                if self.disk.declined.1 <= self.ticks {
                    let rest =
                        if self.disk.is_low() { TIMEOUTS_UNTIL_ASKED_AGAIN } else { TIMEOUTS_WITHOUT_CERTIFICATE };
                    self.disk.declined = (BTreeSet::new(), self.ticks + rest * timeout);
                }
                if let Some(successor) = self.successor(&self.disk.declined.0) {
                    self.disk.declined.0.insert(successor);
                    self.transfer_leadership(successor);
                }
            }
        }
    }

    /// The healthy voter that holds most of the log. raft-rs brings it up to date before it tells it to campaign.
    fn successor(&self, but: &BTreeSet<NodeId>) -> Option<NodeId> {
        let raft = &self.raw.raft;
        let Configuration { voters, .. } = self.configuration();
        let healthy = |id: &NodeId| {
            let progress = raft.prs().get(*id)?;
            (progress.state == ProgressState::Replicate).then_some((progress.matched, std::cmp::Reverse(*id)))
        };
        let others = voters.iter().filter(|id| **id != self.settings.id && !but.contains(id));
        others.filter_map(healthy).max().map(|(_, std::cmp::Reverse(id))| id)
    }

    fn transfer_leadership(&mut self, successor: NodeId) {
        let ended = self.certificate_ended && self.disk.suspicion.is_none() && !self.disk.is_low();
        let because = if ended { "its certificate has ended" } else { "of its disk" };
        tracing::debug!(successor, because, "this node transfers leadership");
        self.disk.transferring = Some(self.ticks);
        self.raw.transfer_leader(successor);
    }

    /// Raft lets a leader or candidate become a follower of its own term at any time.
    fn step_down(&mut self) {
        tracing::debug!("stepping down because of this node's disk");
        self.disk.transferring = None;
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.draw_election_timeout();
    }

    fn keep_leadership(&mut self) {
        if self.disk.transferring.take().is_some() && self.raw.raft.state == StateRole::Leader {
            self.raw.raft.abort_leader_transfer();
        }
    }

    /// The disk is trusted again only if both hold: the probe has passed, and all writes that waited at that time are
    /// durable.
    pub(super) fn trust_disk_again(&mut self) {
        let Some(Suspicion { passed: Some(newest), .. }) = self.disk.suspicion else { return };
        if self.pending_writes.front().is_some_and(|oldest| oldest.write <= newest) {
            return;
        }
        tracing::debug!("the disk answers again");
        self.disk.suspicion = None;
        // The time that passed meanwhile is no reason to campaign at once.
        self.raw.raft.election_elapsed = 0;
        self.keep_leadership();
    }

    /// Keeps the messages that wait for the disk within their bound.
    pub(super) fn bound_deferred(&mut self) {
        let DiskHealth { deferred, dropped, .. } = &mut self.disk;
        for oldest in &mut self.pending_writes {
            while *deferred > MAX_DEFERRED && oldest.deferred.pop_front().is_some() {
                *deferred -= 1;
                *dropped += 1;
            }
        }
    }

    fn ms(&self, ticks: u64) -> u64 {
        u64::try_from(self.settings.tick.as_millis()).unwrap_or(u64::MAX).saturating_mul(ticks)
    }

    pub(super) fn disk_status(&self) -> CoreDiskStatus {
        CoreDiskStatus {
            waiting_ms: self.ms(self.waiting()),
            slow: self.slow_for() > 0 && self.half_way_to_suspicion(),
            suspect_ms: self.disk.suspicion.as_ref().map(|suspicion| self.ms(self.ticks - suspicion.since)),
            low: self.disk.is_low(),
            unpersisted_bytes: self.disk.bytes,
            deferred_dropped: self.disk.dropped,
        }
    }
}
