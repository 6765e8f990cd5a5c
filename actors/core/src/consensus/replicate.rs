//! Flow control: what a leader sends to each peer, bounded in bytes by one window per peer.
//!
//! ```text
//!   matched ──┤ in flight: sent, not acknowledged ├── next ──┤ not sent ├── last
//!              at most `peer_window_bytes`, and one message     │
//!                                                                ├─ in the memory tail: sent at once
//!                                                                └─ behind it: ReadEntries ─▶ entries_read
//! ```
//!
//! raft-rs counts messages, not bytes, and on one acknowledgement sends until its count is reached. So its own sending
//! is limited to what needs no entries of the log: `LogView::entries` gives it none unless this file asks for a message
//! (see [`LogView::serve`](crate::log::view::LogView::serve)), and while a leader proposes every window is closed. A
//! peer that is being probed gets at most one message by raft-rs's own measure; it is split as it leaves.
//!
//! Queues: per peer the messages in flight, bounded by the window; one read of the log under way; what it brought, at
//! most [`READ_AHEAD`] messages' worth. At the bound the peer waits for its acknowledgements, and nothing is dropped.
//!
//! Deliberately absent: any time. A peer that does not answer keeps its window full until it is reported unreachable,
//! or until it refuses the empty append that each of its heartbeat responses brings it.

use std::collections::{BTreeMap, VecDeque};

use actorum_machine::ids::NodeId;
use raft::{ProgressState, StateRole, eraftpb};

use super::Consensus;
use crate::{
    log::{
        store::StoreError,
        view::{Serve, Served, size},
    },
    message::ReadEntries,
    planted::{self, Planted},
    wire::{Entry, MessageKind, RaftMessage},
};

/// How many messages' worth of entries one read of the log behind the tail brings.
const READ_AHEAD: usize = 4;

/// What is on its way to each peer, in this term.
#[derive(Debug, Default)]
pub(super) struct Windows {
    term: u64,
    peers: BTreeMap<NodeId, Window>,
    /// Reads of the log that have not ended: the peer, and the first index.
    reading: BTreeMap<NodeId, u64>,
    /// Where in this drain's messages the last append to each peer stands.
    appends: BTreeMap<NodeId, usize>,
}

/// What is on its way to one peer.
#[derive(Debug, Default)]
struct Window {
    /// The last index of each message, and the bytes of its entries.
    inflight: VecDeque<(u64, usize)>,
    bytes: usize,
    /// Whether raft-rs was told to send nothing to it.
    closed: bool,
    /// The highest commit index that it was sent.
    announced_commit: u64,
}

impl Window {
    fn sent(&mut self, last: u64, bytes: usize) {
        self.inflight.push_back((last, bytes));
        self.bytes += bytes;
    }

    /// Forgets what was acknowledged, and what will be sent again.
    fn release(&mut self, matched: u64, next: u64) {
        while let Some((_, bytes)) = self.inflight.pop_front_if(|(last, _)| *last <= matched) {
            self.bytes -= bytes;
        }
        while let Some((_, bytes)) = self.inflight.pop_back_if(|(last, _)| *last >= next) {
            self.bytes -= bytes;
        }
    }
}

impl<T> Consensus<T> {
    /// Before each Ready: every peer gets what its window has room for.
    pub(super) fn replicate(&mut self) {
        let (term, leads) = (self.raw.raft.term, self.raw.raft.state == StateRole::Leader);
        if !leads || self.windows.term != term {
            self.windows.peers.clear();
            self.windows.term = term;
            self.raw.mut_store().forget_read(|_| true);
        }
        if !leads {
            return;
        }
        let raft = &self.raw.raft;
        let mut peers: Vec<NodeId> =
            raft.prs().iter().map(|(id, _)| *id).filter(|id| *id != self.settings.id).collect();
        peers.sort_unstable();
        self.windows.peers.retain(|id, _| peers.contains(id));
        self.raw.mut_store().forget_read(|id| !peers.contains(&id));
        self.note_in_flight(0);
        if !self.raw.raft.raft_log.unstable_entries().is_empty() {
            return; // The Ready that comes makes them part of the log, which knows their sizes.
        }
        for id in peers {
            self.replicate_to(id);
        }
    }

    fn replicate_to(&mut self, id: NodeId) {
        loop {
            let last = self.raw.raft.raft_log.last_index();
            let Some(progress) = self.raw.raft.prs().get(id) else { return };
            let (state, next, paused) = (progress.state, progress.next_idx, progress.paused);
            let window = self.windows.peers.entry(id).or_default();
            window.release(progress.matched, next);
            match state {
                ProgressState::Snapshot => return,
                // One message at a time, until the peer has said where its log agrees with this one.
                ProgressState::Probe if paused || next > last => return,
                ProgressState::Probe => {}
                ProgressState::Replicate => {
                    let full = window.bytes >= self.settings.peer_window_bytes;
                    // raft-rs announces a commit at once, but not to a peer that had to wait for entries then.
                    let unannounced = window.announced_commit < self.raw.raft.raft_log.committed;
                    window.closed = full;
                    self.raw
                        .raft
                        .adjust_max_inflight_msgs(id, if full { 0 } else { self.settings.max_inflight_appends });
                    if full {
                        return;
                    }
                    if self.raw.raft.prs().get(id).is_none_or(|progress| progress.ins.full()) {
                        return;
                    }
                    if next > last {
                        if unannounced {
                            let before = self.raw.raft.msgs.len();
                            self.raw.raft.send_append(id);
                            self.note_in_flight(before);
                        }
                        return;
                    }
                }
            }
            match self.raw.mut_store().serves(id, next) {
                Served::Here => {}
                // raft-rs finds out by itself, and sends a snapshot.
                Served::Compacted => return,
                Served::OnDisk { to } => return self.read_for(id, next, to),
            }
            let before = self.raw.raft.msgs.len();
            self.raw.mut_store().serve(Serve::Entries(id));
            self.raw.raft.send_append(id);
            self.raw.mut_store().serve(Serve::Later);
            if !self.note_in_flight(before) {
                return;
            }
        }
    }

    /// Before a proposal: raft-rs is not to send what is not part of the log yet.
    pub(super) fn close_windows(&mut self) {
        for (_, progress) in self.raw.raft.mut_prs().iter_mut() {
            if progress.state == ProgressState::Replicate {
                progress.ins.set_cap(0);
            }
        }
    }

    /// Counts the entries of raft-rs's messages from this one on as in flight. Whether there were any.
    fn note_in_flight(&mut self, from: usize) -> bool {
        let mut any = false;
        for message in &self.raw.raft.msgs[from..] {
            if message.get_msg_type() != eraftpb::MessageType::MsgAppend {
                continue;
            }
            let window = self.windows.peers.entry(message.to).or_default();
            let end = message.entries.last().map_or(message.index, |last| last.index);
            window.announced_commit = window.announced_commit.max(end.min(message.commit));
            if !message.entries.is_empty() {
                window.sent(end, message.entries.iter().map(size).sum());
                any = true;
            }
        }
        any
    }

    /// Entries behind the memory tail are read elsewhere: this thread never waits for the disk.
    fn read_for(&mut self, peer: NodeId, from: u64, to: u64) {
        if self.windows.reading.contains_key(&peer) {
            return;
        }
        self.windows.reading.insert(peer, from);
        let max_bytes = self.settings.max_append_bytes.saturating_mul(READ_AHEAD);
        self.effects.read.push(ReadEntries { group: self.settings.group, peer, from, to, max_bytes });
    }

    /// The end of a read of the log that was asked for.
    pub fn entries_read(&mut self, peer: NodeId, from: u64, result: Result<Vec<Entry>, StoreError>) {
        if self.windows.reading.remove(&peer) != Some(from) {
            return;
        }
        let view = self.raw.mut_store();
        match result {
            // What is behind the tail is applied, and never replaced.
            Ok(entries) if self.windows.peers.contains_key(&peer) => view.put_read(peer, &entries),
            Ok(_) => {}
            // It was cut off while it was being read: raft-rs sends a snapshot instead.
            Err(_) if from <= view.compacted_index() => {}
            Err(error) => view.set_fault(error),
        }
    }

    /// A peer whose window is full answered a heartbeat. What fills the window may be lost: an append without entries
    /// behind all of it is acknowledged or refused, and either goes on.
    pub(super) fn probe_full_window(&mut self, peer: NodeId) {
        if self.raw.raft.state != StateRole::Leader || !self.windows.peers.get(&peer).is_some_and(|w| w.closed) {
            return;
        }
        if self.raw.raft.prs().get(peer).is_none_or(|progress| progress.state != ProgressState::Replicate) {
            return;
        }
        self.raw.raft.adjust_max_inflight_msgs(peer, self.settings.max_inflight_appends);
        self.raw.mut_store().serve(Serve::Nothing);
        self.raw.raft.send_append(peer);
        self.raw.mut_store().serve(Serve::Later);
        self.raw.raft.adjust_max_inflight_msgs(peer, 0);
    }

    /// Messages that may leave now: appends to one peer that follow each other are one message, as far as the bound of
    /// a message allows.
    pub(super) fn transmit(&mut self, messages: Vec<(NodeId, RaftMessage)>) {
        for (to, message) in messages {
            self.assert_durable(&message);
            if message.kind == MessageKind::Append {
                let out = &mut self.effects.transmit;
                let before = self.windows.appends.get(&to).and_then(|at| out.get_mut(*at));
                let Some(message) = merge(before.map(|(_, before)| before), message, self.settings.max_append_bytes)
                else {
                    continue;
                };
                self.windows.appends.insert(to, out.len());
                out.push((to, message));
            } else {
                if message.kind == MessageKind::Snapshot {
                    self.windows.appends.remove(&to);
                }
                self.effects.transmit.push((to, message));
            }
        }
    }

    /// This drain's messages are handed over.
    pub(super) fn transmitted(&mut self) {
        self.windows.appends.clear();
    }

    /// Bytes of entries on their way to each peer.
    pub(super) fn inflight_bytes(&self) -> BTreeMap<NodeId, usize> {
        self.windows.peers.iter().map(|(id, window)| (*id, window.bytes)).collect()
    }
}

/// Adds an append to the one before it, if it follows that without a gap and both fit into one message; else gives it
/// back.
fn merge(before: Option<&mut RaftMessage>, mut message: RaftMessage, bound: usize) -> Option<RaftMessage> {
    let Some(before) = before else { return Some(message) };
    let end = before.entries.last().map_or(before.index, |entry| entry.index);
    if before.term != message.term || message.index != end {
        return Some(message);
    }
    let bytes = |message: &RaftMessage| message.entries.iter().map(Entry::size).sum::<usize>();
    let both = bytes(before) + bytes(&message);
    let fits = before.entries.is_empty() || message.entries.is_empty() || both <= bound;
    if !fits && !planted::is(Planted::MergedWithoutBound) {
        return Some(message);
    }
    before.entries.append(&mut message.entries);
    before.commit = before.commit.max(message.commit);
    None
}

/// An append of more bytes than one message may have, as several that follow each other. A single entry is never split.
pub(super) fn split(mut message: RaftMessage, bound: usize) -> Vec<RaftMessage> {
    let mut parts = Vec::new();
    if message.kind != MessageKind::Append {
        return vec![message];
    }
    loop {
        let mut bytes = 0;
        let fit = message.entries.iter().take_while(|entry| {
            bytes += entry.size();
            bytes <= bound
        });
        let fit = fit.count().max(1);
        if fit >= message.entries.len() {
            parts.push(message);
            return parts;
        }
        let rest = message.entries.split_off(fit);
        let mut next = message.clone();
        if let Some(last) = message.entries.last() {
            (next.index, next.log_term) = (last.index, last.term);
        }
        next.entries = rest;
        parts.push(message);
        message = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::EntryKind;

    fn append(index: u64, sizes: &[usize]) -> RaftMessage {
        let entry = |n: usize, len: usize| Entry {
            kind: EntryKind::Normal,
            term: 3,
            index: index + 1 + n as u64,
            data: vec![7; len].into(),
            context: Default::default(),
        };
        let entries = sizes.iter().enumerate().map(|(n, len)| entry(n, *len)).collect();
        RaftMessage { index, log_term: 3, commit: index, entries, ..RaftMessage::new(MessageKind::Append, 3) }
    }

    fn bytes(message: &RaftMessage) -> usize {
        message.entries.iter().map(Entry::size).sum()
    }

    #[test]
    fn what_is_too_large_for_a_message_is_several() {
        let whole = append(10, &[100, 100, 2000, 100, 100, 100]);
        let parts = split(whole.clone(), 300);
        assert_eq!(parts.iter().map(|part| part.entries.len()).collect::<Vec<_>>(), [2, 1, 2, 1]);
        let mut end = 10;
        for part in &parts {
            assert_eq!((part.index, part.log_term), (end, 3));
            assert!(part.entries.len() == 1 || bytes(part) <= 300);
            end = part.entries.last().unwrap().index;
        }
        let joined: Vec<_> = parts.into_iter().flat_map(|part| part.entries).collect();
        assert_eq!(joined, whole.entries);
        assert_eq!(split(append(10, &[]), 300).len(), 1);
    }

    #[test]
    fn appends_are_merged_up_to_the_bound() {
        let mut before = append(10, &[100]);
        assert!(merge(Some(&mut before), append(11, &[100]), 300).is_none());
        assert_eq!((before.entries.len(), before.commit), (2, 11));
        // What only tells a commit index always fits, and a gap never does.
        assert!(merge(Some(&mut before), append(12, &[]), 300).is_none());
        assert_eq!(before.commit, 12);
        assert!(merge(Some(&mut before), append(12, &[100]), 300).is_some(), "over the bound");
        assert!(merge(Some(&mut before), append(9, &[]), 300).is_some(), "not where it ends");
        assert!(merge(Some(&mut before), append(14, &[1]), 300).is_some(), "a gap");
    }
}
