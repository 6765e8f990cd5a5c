//! Snapshots and the beginning of the log: when one is built, what is cut off behind it, who is sent one, who gets one.
//!
//! ```text
//!  enough applied ─▶ build ─▶ SnapshotBuilt ─▶ append { snapshots, cut } ─▶ persisted ─▶ kept: other files go
//!
//!  leader                                     follower
//!  raft-rs: its entries are gone              MsgSnapshot is held aside ─▶ fetch ─▶ pieces ─▶ SnapshotFetched
//!   └─ Snapshot (the descriptor) ───────────▶  └─ stepped into raft-rs ─▶ append { snapshot, cut } ─▶ persisted
//!  PeerFetches: a sign of life                    ─▶ restore ─▶ applied ─▶ the answer leaves
//! ```
//!
//! What is never cut off: what is not applied, what the older kept snapshot does not cover (should the newest one's
//! file turn out damaged, the older one and the log after it take its place). Short of that a window is kept for
//! followers that are behind, and a longer one (`log_hold_bytes`, while the disk has room) for those that live and for
//! what follows a snapshot that is being sent: its receiver needs the log from there.
//!
//! Where the disk is short of room a snapshot is built sooner, stands alone, and the log is cut right behind it, except
//! for what follows a snapshot that is being sent, until its receiver has that, too. Where space is low even that is
//! let go: the receiver is offered the newest.
//!
//! Deliberately absent: files and pieces (see the snapshot manager), and any measure of progress but signs of life.

use std::collections::{BTreeMap, VecDeque};

use actorum_machine::ids::NodeId;
use raft::{Progress, ProgressState, SnapshotStatus, StateRole};

use super::{Consensus, convert::message_to_raft};
use crate::{
    log::store::{Compact, Write},
    message::{Append, FetchSnapshot},
    planted::{self, Planted},
    system_state::SystemState,
    wire::{RaftMessage, Snapshot},
};

/// After so many failures in a row the pause before the next attempt grows no longer.
const MAX_DOUBLINGS: u32 = 6;

/// A snapshot is built once this many times the newest one's size was applied, if that is less than `snapshot_bytes`:
/// so snapshots add at most a quarter to what is written.
const LOG_PER_SNAPSHOT: u64 = 4;

/// What the core knows of snapshots on their way.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// Whether one is being built.
    building: bool,
    /// What could not be built is not tried again at once.
    build_again: Backoff,
    /// Records of what this node starts from, on their way to its disk: the write, and the snapshots.
    recording: VecDeque<(u64, Vec<Snapshot>)>,
    /// What this node was offered and does not have yet.
    fetching: Option<Offer>,
    /// What could not be fetched is not tried again at once.
    fetch_again: Backoff,
    /// A snapshot that is durable and not restored yet: its index, and what waits for that.
    pub restoring: Option<(u64, VecDeque<(NodeId, RaftMessage)>)>,
    /// To whom snapshots are on their way.
    sending: BTreeMap<NodeId, Sending>,
    /// Who has installed one, and up to which entry it still has to follow.
    following: BTreeMap<NodeId, u64>,
}

/// A leader's offer of a snapshot, because its log begins later than this node needs.
#[derive(Debug)]
struct Offer {
    from: NodeId,
    message: RaftMessage,
    snapshot: Snapshot,
}

/// A snapshot on its way to a peer.
#[derive(Clone, Copy, Debug)]
struct Sending {
    index: u64,
    /// The tick of its last sign of life.
    heard: u64,
    /// Whether it asked for the file.
    fetches: bool,
}

/// When to try again, in ticks.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    not_before: u64,
}

impl Backoff {
    fn failed(&mut self, now: u64, first: u64) {
        self.not_before = now + (first << self.failures.min(MAX_DOUBLINGS));
        self.failures += 1;
    }

    fn succeeded(&mut self) {
        *self = Backoff::default();
    }
}

impl<T> Consensus<T> {
    // ---- building one, and cutting the log behind it -------------------------------------------------------

    /// In each drain: whether enough has been applied since the last one.
    pub(super) fn build_if_due(&mut self) {
        let Snapshots { building, build_again, recording, restoring, .. } = &self.snapshots;
        if *building || build_again.not_before > self.ticks || !recording.is_empty() || restoring.is_some() {
            return;
        }
        let Some(newest) = self.raw.store().newest().map(|snapshot| snapshot.index) else { return };
        let applied = self.raw.raft.raft_log.applied;
        // A log that was rewritten after a disaster is never sent: until there is a snapshot of what it led to, nobody
        // can join.
        let must = newest < self.min_served_index && applied >= self.min_served_index;
        let bytes = || self.raw.store().bytes_after(newest).saturating_sub(self.raw.store().bytes_after(applied));
        let many = applied.saturating_sub(newest) >= self.settings.snapshot_entries;
        // If the log is many times as large as the state, it costs more room than the state, and a snapshot costs
        // little beside it.
        let enough = self.settings.small_snapshot_bytes.max(self.newest_bytes().saturating_mul(LOG_PER_SNAPSHOT));
        let enough = enough.min(self.settings.snapshot_bytes);
        // Where room is short a snapshot is built sooner, but only if it pays: it costs its own size, and frees about
        // three times the bytes that are cut.
        let frees = || self.disk.is_short() && bytes() >= self.settings.short_bytes.max(self.newest_bytes() / 4);
        if must || (applied > newest && (many || bytes() >= enough || frees())) {
            self.snapshots.building = true;
            self.effects.build = true;
        }
    }

    /// The size of the newest snapshot's file.
    fn newest_bytes(&self) -> u64 {
        let described = self.raw.store().newest().and_then(|newest| SystemState::of(newest).ok());
        described.and_then(|(_, file)| file).map_or(0, |file| file.bytes)
    }

    /// A snapshot's file is durable here, or could not be built. Also one that this core did not ask for.
    pub fn snapshot_built(&mut self, result: Result<Snapshot, String>) {
        self.snapshots.building = false;
        let snapshot = match result {
            Ok(snapshot) => snapshot,
            Err(cause) => {
                let first = self.settings.election_ticks as u64;
                self.snapshots.build_again.failed(self.ticks, first);
                return tracing::debug!(cause, "a snapshot could not be built: the log grows until the next attempt");
            }
        };
        self.snapshots.build_again.succeeded();
        let view = self.raw.store();
        let newest = view.newest().map_or(0, |newest| newest.index);
        let known = view.term_at(snapshot.index) == Some(snapshot.term);
        if snapshot.index <= newest || snapshot.index > self.raw.raft.raft_log.applied || !known {
            // Another one was installed over it meanwhile, and is on its way to the disk or on it.
            return self.tell_kept();
        }
        // At most two are kept: the newest, and a second in case the newest is damaged. The second is the previous one,
        // unless an older one is being sent: without that one its receiver would have to begin anew.
        let sent = self.oldest_sent().unwrap_or(newest);
        let stands_in = view.snapshots().iter().find(|kept| kept.index >= sent).or(view.newest()).cloned();
        // Where room is short the newest stands alone, and the log is cut behind it.
        let stands_in = stands_in.filter(|older| !self.disk.is_short() || self.is_sent(older.index));
        let kept: Vec<Snapshot> = stands_in.into_iter().chain([snapshot]).collect();
        self.raw.mut_store().keep(kept);
        self.compact();
    }

    /// Records what this node starts from, and cuts off what it therefore needs no longer.
    pub(super) fn compact(&mut self) {
        let snapshots = self.raw.store().snapshots().to_vec();
        let up_to = self.needed_no_longer();
        self.raw.mut_store().compact(up_to);
        let number = self.next_write;
        self.next_write += 1;
        let compact = Some(Compact { snapshots: snapshots.clone(), up_to });
        let write = Write { group: self.settings.group, compact, ..Write::default() };
        self.effects.append.push(Append { number, write, sync: true });
        self.snapshots.recording.push_back((number, snapshots));
        self.note_cut();
    }

    /// Whether a cut, or a record of what this node starts from, is on its way to the disk.
    pub(super) fn is_recording(&self) -> bool {
        !self.snapshots.recording.is_empty()
    }

    /// Space is low: gives up the log beyond the configured window. Called at every tick while space is low, since what
    /// is recorded, sent or followed now may be free later.
    pub(super) fn let_go_of_log(&mut self) {
        if !self.snapshots.recording.is_empty() {
            return;
        }
        let view = self.raw.store();
        let stands_in = view.snapshots().first().filter(|_| view.snapshots().len() > 1).map(|older| older.index);
        let alone = stands_in.is_some_and(|older| !self.is_sent(older)) && self.disk.is_short();
        if alone && let Some(newest) = view.newest().cloned() {
            self.raw.mut_store().keep(vec![newest]);
        }
        if alone || self.needed_no_longer() > self.raw.store().compacted_index() {
            self.compact();
        }
    }

    /// Whether a snapshot is on its way to a peer, and there is room for that.
    fn is_sent(&self, index: u64) -> bool {
        self.oldest_sent() == Some(index)
    }

    /// The last entry that no node needs any more. The head of this file says who may need one.
    fn needed_no_longer(&self) -> u64 {
        let view = self.raw.store();
        let (Some(older), Some(newest)) = (view.snapshots().first(), view.newest()) else {
            return view.compacted_index();
        };
        let by_count = newest.index.saturating_sub(self.settings.keep_entries);
        // The window is bounded by both: by many small entries as well as by a few large ones.
        let window = by_count.max(view.index_within(self.settings.keep_bytes));
        // Where room is short, only the log after a snapshot that was sent is kept. Where space is low that goes, too,
        // and the transfer begins anew.
        let window = if self.disk.is_short() { u64::MAX } else { window };
        let held = self.oldest_sent().into_iter().chain(self.oldest_following()).min();
        let mut up_to = window.min(older.index).min(held.unwrap_or(u64::MAX));
        if let Some(behind) = self.furthest_behind_alive()
            && !self.disk.is_short()
            && view.bytes_after(behind) <= self.settings.hold_bytes
        {
            up_to = up_to.min(behind);
        }
        up_to.clamp(view.compacted_index(), self.raw.raft.raft_log.applied.max(view.compacted_index()))
    }

    /// The oldest snapshot that is being sent and for which the log is kept. Without the log after it its receiver
    /// would need another one.
    fn oldest_sent(&self) -> Option<u64> {
        let sent = self.snapshots.sending.values().map(|sending| sending.index);
        let held = sent.filter(|index| self.may_hold(*index)).min();
        held.filter(|_| !planted::is(Planted::CompactedPastTransfer))
    }

    /// How far the slowest peer is that has installed a snapshot and does not have yet what followed it. Without those
    /// entries it would need another snapshot at once.
    fn oldest_following(&self) -> Option<u64> {
        let prs = self.raw.raft.prs();
        let matched = self.snapshots.following.keys().filter_map(|id| Some(prs.get(*id)?.matched));
        matched.filter(|index| self.may_hold(*index)).min()
    }

    /// Whether the log after this index may be held for peers that are behind: only while that is within the bound for
    /// them, and the disk has room.
    fn may_hold(&self, index: u64) -> bool {
        !self.disk.is_low() && self.raw.store().bytes_after(index) <= self.settings.hold_bytes
    }

    /// How far the live follower is that is furthest behind; only its leader knows.
    fn furthest_behind_alive(&self) -> Option<u64> {
        let raft = &self.raw.raft;
        let others = raft.prs().iter().filter(|(id, _)| **id != self.settings.id);
        // A peer that is sent a snapshot is counted by that snapshot.
        let alive = others.filter(|(_, progress)| progress.recent_active && progress.state != ProgressState::Snapshot);
        let behind = alive.map(|(_, progress)| progress.matched).filter(|matched| *matched > 0).min();
        behind.filter(|_| raft.state == StateRole::Leader)
    }

    /// The records up to this write are durable: files that are in none of them may go.
    pub(super) fn recorded(&mut self, number: u64) {
        while let Some((_, kept)) = self.snapshots.recording.pop_front_if(|(write, _)| *write <= number) {
            self.effects.kept = Some(kept);
        }
    }

    fn tell_kept(&mut self) {
        if self.snapshots.recording.is_empty() && !self.is_installing() {
            self.effects.kept = Some(self.raw.store().snapshots().to_vec());
        }
    }

    // ---- getting one ---------------------------------------------------------------------------------------

    /// Holds aside a snapshot whose file is not here yet. Gives the message back if raft-rs may have it at once.
    pub(super) fn hold_offer(&mut self, from: NodeId, message: RaftMessage) -> Option<RaftMessage> {
        let Some(snapshot) = message.snapshot.clone() else { return Some(message) };
        let has_file = SystemState::of(&snapshot).is_ok_and(|(_, file)| file.is_some());
        let log = &self.raw.raft.raft_log;
        let holds_it = snapshot.index <= log.committed || log.match_term(snapshot.index, snapshot.term);
        if !has_file || holds_it || message.term < self.raw.raft.term {
            return Some(message);
        }
        if self.snapshots.restoring.is_some() || self.is_installing() {
            return None; // the leader asks again
        }
        let again = self.snapshots.fetching.as_ref().is_some_and(|offer| offer.snapshot.index == snapshot.index);
        if !again && self.snapshots.fetch_again.not_before > self.ticks {
            return None;
        }
        self.effects.fetch = Some(FetchSnapshot { from, snapshot: snapshot.clone() });
        self.snapshots.fetching = Some(Offer { from, message, snapshot });
        None
    }

    /// The file of a snapshot is here, whole and durable, or could not be had.
    pub fn snapshot_fetched(&mut self, snapshot: &Snapshot, result: Result<(), String>) {
        let same = |offer: &mut Offer| offer.snapshot.index == snapshot.index && offer.snapshot.data == snapshot.data;
        let Some(Offer { from, message, .. }) = self.snapshots.fetching.take_if(same) else { return };
        if let Err(cause) = result {
            let first = self.settings.election_ticks as u64;
            self.snapshots.fetch_again.failed(self.ticks, first);
            return tracing::debug!(from, index = snapshot.index, cause, "a snapshot could not be fetched");
        }
        self.snapshots.fetch_again.succeeded();
        // raft-rs would ignore an offer of an earlier term: the present leader offers its own, and this file is here
        // already.
        if message.term >= self.raw.raft.term {
            let _ = self.raw.step(message_to_raft(from, self.settings.id, message));
            self.draw_election_timeout();
        }
        if self.raw.raft.raft_log.unstable.snapshot.is_none() {
            // raft-rs did not take it: no peer must hear that it is being installed.
            self.tell_kept();
        }
    }

    /// Messages that speak of a durable snapshot wait until it is restored, too.
    pub(super) fn restored(&mut self, index: u64) {
        if let Some((_, deferred)) = self.snapshots.restoring.take_if(|(at, _)| *at <= index) {
            self.transmit(deferred.into());
            // The time it took is no reason to campaign at once.
            self.raw.raft.election_elapsed = 0;
            // Only now: until the state is restored, the sender hears that the installation goes on.
            self.tell_kept();
        }
    }

    // ---- sending one ---------------------------------------------------------------------------------------

    /// A peer asked for a piece of a snapshot, or has given up.
    pub fn peer_fetches(&mut self, peer: NodeId, index: u64, gave_up: Option<String>) {
        let now = self.ticks;
        let Some(sending) = self.snapshots.sending.get_mut(&peer).filter(|sending| sending.index == index) else {
            return;
        };
        (sending.heard, sending.fetches) = (now, true);
        if let Some(cause) = gave_up {
            // raft-rs offers the newest one with the next heartbeat. A peer that needs a pause ignores it for so long.
            tracing::debug!(peer, index, cause, "a peer cannot use the snapshot it was offered; it is offered again");
            self.snapshots.sending.remove(&peer);
            self.raw.report_snapshot(peer, SnapshotStatus::Failure);
        }
    }

    /// What was sent to a peer may be lost, and with it the offer of a snapshot.
    pub(super) fn snapshot_may_be_lost(&mut self, peer: NodeId) {
        // One that asks for pieces knows of it, and goes on when it can.
        if self.snapshots.sending.get(&peer).is_none_or(|sending| !sending.fetches) {
            self.snapshots.sending.remove(&peer);
            self.raw.report_snapshot(peer, SnapshotStatus::Failure);
        }
    }

    /// raft-rs waits for ever for the fate of a snapshot it handed out. Where nothing was heard of it for too long, it
    /// counts as lost: a deadline on progress, never on the whole.
    pub(super) fn give_up_on_snapshots(&mut self) {
        self.note_sent();
        let (now, settings) = (self.ticks, &self.settings);
        let late = self.snapshots.sending.iter().filter(|(_, Sending { heard, fetches, .. })| {
            let timeout = if *fetches { settings.snapshot_timeout_ticks } else { settings.election_ticks as u64 };
            now - heard > timeout
        });
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.snapshots.sending.remove(&id);
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    /// Which peers raft-rs is sending a snapshot to, and which have installed theirs. Looked at in each drain: what is
    /// sent in this one must not be cut off in the next, nor what follows it before its receiver has that.
    pub(super) fn note_sent(&mut self) {
        let sends: BTreeMap<NodeId, u64> = self.sends().into_iter().collect();
        if sends.is_empty() && self.snapshots.sending.is_empty() && self.snapshots.following.is_empty() {
            return;
        }
        // This core counts by itself: raft-rs forgets which peers it heard whenever it checks for a majority.
        let heard = self.heard_lately();
        let (raft, Snapshots { sending, following, .. }) = (&self.raw.raft, &mut self.snapshots);
        let progress = |id: &NodeId| raft.prs().get(*id).filter(|_| raft.state == StateRole::Leader);
        let installed = sending.iter().filter(|(id, sent)| {
            !sends.contains_key(id) && progress(id).is_some_and(|progress| progress.matched >= sent.index)
        });
        following.extend(installed.map(|(id, _)| (*id, raft.raft_log.last_index())));
        // A peer that falls silent is not waited for. Entries appended from now on do not count, or the wait might
        // never end.
        following.retain(|id, up_to| {
            let follows = |progress: &Progress| heard.contains(id) && progress.matched < *up_to;
            !sends.contains_key(id) && progress(id).is_some_and(follows)
        });
        let now = self.ticks;
        let sending = sends.into_iter().map(|(id, index)| {
            let known = self.snapshots.sending.get(&id).filter(|sending| sending.index == index);
            (id, known.copied().unwrap_or(Sending { index, heard: now, fetches: false }))
        });
        self.snapshots.sending = sending.collect();
    }

    /// To whom raft-rs is sending a snapshot, and of which index, as it says itself.
    pub fn sends(&self) -> Vec<(NodeId, u64)> {
        let raft = &self.raw.raft;
        let progress = raft.prs().iter().filter(|_| raft.state == StateRole::Leader);
        let sends = progress.filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        let mut sends: Vec<_> = sends.map(|(id, progress)| (*id, progress.pending_snapshot)).collect();
        sends.sort_unstable();
        sends
    }

    /// The snapshots on their way to peers: their indexes.
    pub(super) fn snapshots_sent(&self) -> BTreeMap<NodeId, u64> {
        self.snapshots.sending.iter().map(|(id, sending)| (*id, sending.index)).collect()
    }

    /// The snapshot that is being fetched, and from whom.
    pub(super) fn snapshot_wanted(&self) -> Option<(NodeId, u64)> {
        self.snapshots.fetching.as_ref().map(|offer| (offer.from, offer.snapshot.index))
    }
}
