//! Time as the core knows it: a drain brings the moment, a drain may hold one tick, and a tick may end in an election.
//!
//! ```text
//!  drain(moment) ──────────────▶ a tick, if one is due ──▶ raft-rs's clock, deadlines, the disk's age ─┐
//!                                                                                                      ├─▶ process ─▶ Effects
//!  drain_without_tick(moment) ─▶ a leader's heartbeat, if one is due: no timeout ends ─────────────────┘
//! ```
//!
//! However much time has passed, a drain counts one tick: after a pause of this process the messages that waited are
//! read before an election timeout can end. An election waits while raft-rs would die of it (`must_wait_for_disk`).
//!
//! Deliberately absent: a clock (the caller reads it), random numbers (election timeouts are drawn from what the node
//! is and knows, so that a run can be repeated), and what the passing of time does to peers (`contact`), the disk
//! (`disk`) and snapshots (`snapshots`).

use std::{
    mem,
    time::{Duration, SystemTime},
};

use raft::StateRole;

use super::{Consensus, Effects};
use crate::message::LeaderChanged;

/// A moment, as the caller's clock has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic.
    pub now: Duration,
    /// Calendar time, for the stamps in the log.
    pub wall: SystemTime,
}

impl<T> Consensus<T> {
    /// Turns everything that came in since the last drain into effects. For a caller that has read everything
    /// that waited for it: time passes here.
    pub fn drain(&mut self, moment: Moment) -> Effects<T> {
        self.now = moment.now;
        self.certificate_ended = self.settings.certificate_ends.is_some_and(|end| moment.wall >= end);
        self.tick_if_due();
        self.process(moment.wall)
    }

    /// The same while the mailbox still holds messages that were not read. A leader sends its heartbeats, but no
    /// timeout ends: a message that would have renewed it may be among the unread ones.
    pub fn drain_without_tick(&mut self, moment: Moment) -> Effects<T> {
        self.now = moment.now;
        self.heartbeat_if_due();
        self.process(moment.wall)
    }

    fn process(&mut self, wall: SystemTime) -> Effects<T> {
        self.note_leader();
        self.dispatch(wall);
        self.dispatch_reads();
        self.process_ready();
        self.note_sent();
        self.build_if_due();
        self.note_leader();
        if let Some(fault) = self.raw.store().fault() {
            self.effects.fault.get_or_insert(format!("the log cannot be read: {fault}"));
        }
        self.transmitted();
        self.assert_transition();
        mem::take(&mut self.effects)
    }

    /// A new leader may be asked at once what the last one refused or lost.
    fn note_leader(&mut self) {
        let now = LeaderChanged { leader: self.leader(), term: self.raw.raft.term, role: self.role() };
        if self.announced == Some(now) {
            return;
        }
        let moved = self.announced.is_none_or(|before| (before.leader, before.term) != (now.leader, now.term));
        if moved {
            self.reads.restart();
            self.reads.not_before = 0;
            self.queued.iter_mut().for_each(|request| request.not_before = 0);
        }
        self.announced = Some(now);
        self.effects.leader = Some(now);
    }

    /// When the next tick is due.
    pub fn next_tick(&self) -> Option<Duration> {
        self.next_tick
    }

    /// Whether a tick is due. If so the next one is a tick from now at the latest: time beyond one tick is forgiven.
    fn due(&mut self) -> bool {
        let due = *self.next_tick.get_or_insert(self.now + self.settings.tick);
        if self.now < due {
            return false;
        }
        let next = due + self.settings.tick;
        self.next_tick = Some(if next > self.now { next } else { self.now + self.settings.tick });
        true
    }

    /// At most one tick per drain, however much time has passed: after a pause the messages that waited are
    /// read before a second tick can end in an election.
    fn tick_if_due(&mut self) {
        if !self.due() {
            return;
        }
        self.ticks += 1;
        self.note_commit();
        self.look_at_disk();
        let leads = self.raw.raft.state == StateRole::Leader;
        if !leads && !self.may_lead() {
            self.let_time_pass();
        } else if !self.must_wait_for_disk() {
            self.raw.tick();
            self.draw_election_timeout();
        }
        self.give_up_on_snapshots();
        self.expire();
    }

    fn heartbeat_if_due(&mut self) {
        if self.raw.raft.state == StateRole::Leader && self.due() {
            // The oldest write grows older under a flood of messages, too.
            self.ticks += 1;
            self.note_commit();
            self.look_at_disk();
            self.raw.ping();
        }
    }

    /// Whether raft-rs would die of an election now: a single voter elects itself at once and must have its whole
    /// log on disk by then, and a campaign reads what follows the applied index, which a snapshot under way moves.
    pub(super) fn must_wait_for_disk(&self) -> bool {
        (self.raw.raft.state != StateRole::Leader && self.is_alone_and_behind()) || self.is_installing()
    }

    /// The same of a node that leads, should it be made to step down and begin anew.
    pub(super) fn could_not_be_elected(&self) -> bool {
        self.is_alone_and_behind() || self.is_installing()
    }

    fn is_alone_and_behind(&self) -> bool {
        let raft = &self.raw.raft;
        let behind = raft.raft_log.persisted < raft.raft_log.last_index() || !self.pending_writes.is_empty();
        behind && raft.prs().is_singleton() && raft.promotable()
    }

    /// Whether a snapshot is on its way to this node's disk. Once it is there it is being restored.
    pub(super) fn is_installing(&self) -> bool {
        self.pending_writes.iter().any(|write| write.restore.is_some())
    }

    /// The randomized election timeout (Raft section 5.2), drawn from our own generator so that a run can be repeated.
    ///
    /// raft-rs draws its own at each change of term or role; ours replaces it before the next tick looks.
    pub(super) fn draw_election_timeout(&mut self) {
        let least = self.settings.election_ticks as u64;
        let raft = &mut self.raw.raft;
        let words = [self.settings.seed, self.settings.id, self.settings.incarnation.0, raft.term, raft.state as u64];
        // The groups of a node have all of that in common but the term and the role. Group 0 adds nothing: it draws
        // what it drew when it was the only one.
        let group = Some(u64::from(self.settings.group.0)).filter(|group| *group != 0);
        let drawn = words.into_iter().chain(group).fold(0x9e37_79b9_7f4a_7c15, |hash, word| mix(hash ^ word));
        raft.set_randomized_election_timeout((least + drawn % least) as usize);
    }
}

/// One round of splitmix64: spreads a few words over all bits.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
