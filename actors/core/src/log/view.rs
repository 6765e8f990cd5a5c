//! The log as the core sees it: a tail in memory, the terms of all of it, and a reader for the rest.
//!
//! ```text
//!  compacted_index ──┤ on disk only ├──┤ tail: recent, in memory ├── last
//!         read through the     pinned: (applied, last]
//!         LogReader            kept for slow peers: up to a byte bound
//! ```
//!
//! The *compacted index* is the index before the first entry, the *kept snapshots* are those a node can start from: at
//! first one and the same, after a compaction the compacted index is at most as high as the first of them.
//!
//! raft-rs asks its `Storage` synchronously and dies of an error while it commits or campaigns. So what is not
//! applied yet is pinned here, terms come from a table of runs, and only an append to a peer that fell
//! behind the tail needs the disk. Those entries are read on another thread and put here for that one peer
//! ([`LogView::put_read`]). An error there is kept as [`LogView::fault`] and stops the node.
//!
//! For an append raft-rs is given entries only while the core serves a peer ([`LogView::serve`]): it has no bound in
//! bytes of its own.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use actorum_machine::ids::{GroupId, NodeId};
use raft::{GetEntriesContext, RaftState, Storage, StorageError, eraftpb};

use crate::{
    consensus::convert::{conf_to_raft, entry_to_raft, hard_to_raft, snapshot_to_raft},
    debug_fields,
    log::{
        sizes::Sizes,
        store::{HardState, LogReader, Recovered, StoreError},
    },
    wire::{ConfState, ENTRY_OVERHEAD, Entry, Snapshot},
};

/// The log of one group, for raft-rs.
pub struct LogView {
    group: GroupId,
    reader: Arc<dyn LogReader>,
    /// Ascending; those the store was last told to record.
    snapshots: Vec<Snapshot>,
    compacted_index: u64,
    /// Entries up to here are served to no peer, although they may be in the log.
    min_served_index: u64,
    /// The configuration at the applied index.
    conf: ConfState,
    hard_state: HardState,
    /// (first index, term), ascending; the first run starts at the compacted index.
    runs: Vec<(u64, u64)>,
    sizes: Sizes,
    last: u64,
    tail: VecDeque<eraftpb::Entry>,
    tail_bytes: usize,
    /// Of these, the bytes of entries up to `applied`.
    applied_bytes: usize,
    applied: u64,
    /// What is known to be committed, as far as the log goes, and the bytes in memory up to there.
    committed: u64,
    committed_bytes: usize,
    keep_bytes: usize,
    serving: Serve,
    /// What was read from the disk for a peer, without gaps. The core bounds each, and uses it up before it reads more.
    read: BTreeMap<NodeId, VecDeque<eraftpb::Entry>>,
    fault: RefCell<Option<StoreError>>,
}

debug_fields!(LogView { group, compacted_index, min_served_index, last, committed, applied });

/// What raft-rs gets when it asks for the entries of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// To come back later, and to send nothing.
    Later,
    /// None: the append only says how far the log goes.
    Nothing,
    /// Entries for this peer.
    Entries(NodeId),
}

/// Where the next entry for a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// In memory.
    Here,
    /// On the disk, with those that follow it up to this one, which is left out.
    OnDisk {
        /// The index after the last that has to be read.
        to: u64,
    },
    /// Nowhere any more.
    Compacted,
}

/// What an entry costs in memory.
pub fn size(entry: &eraftpb::Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD
}

impl LogView {
    /// The log of a node that holds nothing.
    pub fn empty(group: GroupId, reader: Arc<dyn LogReader>, keep_bytes: usize) -> Self {
        LogView {
            group,
            reader,
            snapshots: Vec::new(),
            compacted_index: 0,
            min_served_index: 0,
            conf: ConfState::default(),
            hard_state: HardState::default(),
            runs: Vec::new(),
            sizes: Sizes::empty_after(0),
            last: 0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            applied_bytes: 0,
            applied: 0,
            committed: 0,
            committed_bytes: 0,
            keep_bytes,
            serving: Serve::Later,
            read: BTreeMap::new(),
            fault: RefCell::new(None),
        }
    }

    /// The log that a store recovered, with everything after `applied` read into memory. `conf` is the
    /// configuration at `applied`.
    pub fn recovered(
        group: GroupId,
        reader: Arc<dyn LogReader>,
        keep_bytes: usize,
        recovered: Recovered,
        applied: u64,
        conf: ConfState,
    ) -> Result<Self, StoreError> {
        let mut view = LogView::empty(group, reader, keep_bytes);
        view.compacted_index = recovered.compacted_index();
        view.sizes = Sizes::recovered(view.compacted_index, recovered.last_index, &recovered.sizes);
        view.snapshots = recovered.snapshots;
        view.conf = conf;
        view.hard_state = recovered.hard_state;
        view.runs = recovered.terms;
        view.last = recovered.last_index;
        view.applied = applied;
        let mut next = applied + 1;
        while next <= view.last {
            let chunk = view.reader.entries(group, next, view.last + 1, 1 << 20)?;
            next += chunk.len() as u64;
            for entry in &chunk {
                view.push(entry_to_raft(entry));
            }
        }
        view.committed = applied;
        view.committed_to(view.hard_state.commit);
        Ok(view)
    }

    /// The reader behind the tail.
    pub fn reader(&self) -> Arc<dyn LogReader> {
        self.reader.clone()
    }

    /// Whether this node belongs to a cluster.
    pub fn is_formed(&self) -> bool {
        !self.snapshots.is_empty()
    }

    /// The hard state last given to the log writer.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The snapshots that a node can start from, ascending by index, the newest last.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// The newest of them; `None` before the cluster is formed.
    pub fn newest(&self) -> Option<&Snapshot> {
        self.snapshots.last()
    }

    /// The index of the newest snapshot; zero without one.
    pub fn snapshot_index(&self) -> u64 {
        self.newest().map_or(0, |newest| newest.index)
    }

    /// The index before the log's first entry: what is up to there is in the snapshots alone.
    pub fn compacted_index(&self) -> u64 {
        self.compacted_index
    }

    /// Bytes of all entries of the log, in memory or on disk.
    pub fn log_bytes(&self) -> u64 {
        self.sizes.total()
    }

    /// Bytes of the entries after `index`, to some 64 KiB.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.sizes.after(index)
    }

    /// The lowest index such that the entries after it have at most so many bytes, to some 64 KiB; at least the
    /// compacted index.
    pub fn index_within(&self, bytes: u64) -> u64 {
        self.sizes.within(bytes, self.compacted_index)
    }

    /// The index of the last entry.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Bytes of entries in memory.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Bytes of entries that are not applied yet.
    pub fn unapplied_bytes(&self) -> usize {
        self.tail_bytes - self.applied_bytes
    }

    /// Bytes of entries that are committed and not applied yet.
    pub fn waiting_bytes(&self) -> usize {
        self.committed_bytes.saturating_sub(self.applied_bytes)
    }

    fn committed_to(&mut self, index: u64) {
        let (index, start) = (index.min(self.last), self.tail_start());
        for i in (self.committed + 1).max(start)..=index {
            self.committed_bytes += self.tail.get((i - start) as usize).map_or(0, size);
        }
        self.committed = self.committed.max(index);
    }

    /// The term at an index, if the log knows it.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index > self.last {
            return None;
        }
        let run = self.runs.partition_point(|&(first, _)| first <= index);
        run.checked_sub(1).map(|run| self.runs[run].1)
    }

    /// The read error that makes this log unusable, if one happened.
    pub fn fault(&self) -> Option<StoreError> {
        self.fault.borrow().clone()
    }

    /// Makes this log unusable. The first error stands.
    pub fn set_fault(&mut self, error: StoreError) {
        self.fault.get_mut().get_or_insert(error);
    }

    /// Where the entry at `next` is, for a peer. What was read for it and does not go on there is forgotten.
    pub fn serves(&mut self, peer: NodeId, next: u64) -> Served {
        let start = self.tail_start();
        if next <= self.hidden() {
            return Served::Compacted;
        }
        if let Some(read) = self.read.get_mut(&peer) {
            while read.front().is_some_and(|entry| entry.index < next) {
                read.pop_front();
            }
            match read.front() {
                Some(first) if first.index == next => return Served::Here,
                _ => drop(self.read.remove(&peer)),
            }
        }
        if next >= start { Served::Here } else { Served::OnDisk { to: start } }
    }

    /// What raft-rs gets for appends from now on.
    pub fn serve(&mut self, serving: Serve) {
        self.serving = serving;
    }

    /// What was read from the disk for a peer.
    pub fn put_read(&mut self, peer: NodeId, entries: &[Entry]) {
        self.read.insert(peer, entries.iter().map(entry_to_raft).collect());
    }

    /// Forgets what was read for some peers.
    pub fn forget_read(&mut self, of: impl Fn(NodeId) -> bool) {
        self.read.retain(|peer, _| !of(*peer));
    }

    /// The last entry that is not in memory any more: it and all before it are read from the disk, or are only in a
    /// snapshot.
    pub fn last_freed(&self) -> u64 {
        self.tail_start() - 1
    }

    /// The index of the first entry in memory; after the last one if there is none.
    fn tail_start(&self) -> u64 {
        self.tail.front().map_or(self.last + 1, |entry| entry.index)
    }

    /// Makes a new hard state visible to raft-rs.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
        self.committed_to(hard_state.commit);
    }

    /// Makes entries visible to raft-rs; those they conflict with are gone.
    pub fn append(&mut self, entries: &[eraftpb::Entry]) {
        let Some(first) = entries.first().map(|e| e.index) else { return };
        assert!(first <= self.last + 1, "an append must follow the log without a gap");
        assert!(first > self.applied, "an applied entry is never replaced");
        self.truncate(first);
        for entry in entries {
            self.last = entry.index;
            if self.runs.last().is_none_or(|&(_, term)| term != entry.term) {
                self.runs.push((entry.index, entry.term));
            }
            self.sizes.push(entry.index, size(entry) as u64);
            self.push(entry.clone());
        }
    }

    fn truncate(&mut self, first: u64) {
        let before = self.tail_bytes;
        while self.tail.back().is_some_and(|e| e.index >= first) {
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= size(&entry);
            }
        }
        // All that goes was in the tail, for nothing of it was applied.
        self.sizes.truncate(first, (before - self.tail_bytes) as u64);
        while self.runs.last().is_some_and(|&(start, _)| start >= first) {
            self.runs.pop();
        }
        self.last = self.last.min(first - 1);
    }

    fn push(&mut self, entry: eraftpb::Entry) {
        self.tail_bytes += size(&entry);
        self.tail.push_back(entry);
    }

    /// Replaces the log by a snapshot.
    pub fn install(&mut self, snapshot: Snapshot) {
        self.runs = vec![(snapshot.index, snapshot.term)];
        self.last = snapshot.index;
        self.applied = snapshot.index;
        self.conf = snapshot.conf.clone();
        self.compacted_index = snapshot.index;
        self.sizes = Sizes::empty_after(snapshot.index);
        self.snapshots = vec![snapshot];
        self.tail.clear();
        self.tail_bytes = 0;
        self.applied_bytes = 0;
        self.committed = self.last;
        self.committed_bytes = 0;
    }

    /// Replaces the snapshots that a node can start from: ascending by index, none below the compacted index.
    pub fn keep(&mut self, snapshots: Vec<Snapshot>) {
        assert!(snapshots.windows(2).all(|pair| pair[0].index < pair[1].index), "kept snapshots ascend");
        assert!(
            snapshots.first().is_some_and(|first| first.index >= self.compacted_index),
            "a kept snapshot is not below the compacted index"
        );
        self.snapshots = snapshots;
    }

    /// Raises the compacted index: the entries up to `up_to` are gone. Does nothing where they are gone already.
    pub fn compact(&mut self, up_to: u64) {
        if up_to <= self.compacted_index {
            return;
        }
        assert!(up_to <= self.applied, "an entry that is not applied is never compacted");
        let inside = self.runs.partition_point(|&(first, _)| first <= up_to);
        self.runs.drain(..inside.saturating_sub(1));
        if let Some(run) = self.runs.first_mut() {
            run.0 = up_to;
        }
        while self.tail.front().is_some_and(|e| e.index <= up_to) {
            self.drop_front();
        }
        self.sizes.compact(up_to);
        self.compacted_index = up_to;
    }

    /// From now on no entry up to `index` and no snapshot below it is served: they belong to the cluster that an
    /// operator replaced. The value only rises, and never passes what is applied.
    pub fn raise_min_served_index(&mut self, index: u64) {
        // raft-rs applies from the first index on: a higher index to serve from would make it skip what is not applied.
        assert!(index <= self.applied, "what is served begins at what is applied or before it");
        self.min_served_index = self.min_served_index.max(index);
    }

    /// Frees what is applied, down to the byte bound. What is applied is durable, also on a leader whose disk is slower
    /// than a quorum of others: raft-rs hands out committed entries only as far as they were reported persisted. After
    /// each drain the core asserts that what was freed is durable.
    pub fn applied_to(&mut self, index: u64) {
        self.committed_to(index);
        let start = self.tail.front().map_or(0, |e| e.index);
        for i in (self.applied + 1).max(start)..=index {
            if let Some(entry) = self.tail.get((i - start) as usize) {
                self.applied_bytes += size(entry);
            }
        }
        self.applied = index;
        while self.tail_bytes > self.keep_bytes && self.tail.front().is_some_and(|e| e.index <= self.applied) {
            self.drop_front();
        }
    }

    /// The first entry of the tail, which is applied, goes out of memory.
    fn drop_front(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_bytes -= size(&entry);
            self.applied_bytes -= size(&entry);
            self.committed_bytes -= size(&entry);
        }
    }

    /// Up to here nothing is served: it is not in the log, or it belongs to the cluster that an operator replaced.
    fn hidden(&self) -> u64 {
        self.compacted_index.max(self.min_served_index)
    }

    /// The configuration after a change was applied.
    pub fn set_conf(&mut self, conf: ConfState) {
        self.conf = conf;
    }

    fn read_disk(&self, low: u64, high: u64, max: u64) -> raft::Result<Vec<eraftpb::Entry>> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        match self.reader.entries(self.group, low, high, max) {
            Ok(entries) => Ok(entries.iter().map(entry_to_raft).collect()),
            Err(error) => {
                // raft-rs takes this answer for "come back later" and sends nothing; the fault stops the node.
                self.fault.borrow_mut().get_or_insert(error);
                Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))
            }
        }
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: hard_to_raft(self.hard_state), conf_state: conf_to_raft(&self.conf) })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.hidden() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let start = self.tail_start();
        let (mut out, mut bytes) = (Vec::new(), 0u64);
        if context.can_async() {
            let peer = match self.serving {
                Serve::Later => return Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable)),
                Serve::Nothing => return Ok(out),
                Serve::Entries(peer) => peer,
            };
            if low < start {
                let read = self.read.get(&peer).into_iter().flatten();
                for entry in read.skip_while(|entry| entry.index < low).take_while(|entry| entry.index < high) {
                    bytes += size(entry) as u64;
                    if bytes > max && !out.is_empty() {
                        break;
                    }
                    out.push(entry.clone());
                }
                return Ok(out);
            }
        } else if low < start {
            out = self.read_disk(low, high.min(start), max)?;
            bytes = out.iter().map(|e| size(e) as u64).sum();
            if (out.len() as u64) < high.min(start) - low {
                return Ok(out);
            }
        }
        for index in low.max(start)..high {
            let entry = &self.tail[(index - start) as usize];
            bytes += size(entry) as u64;
            if bytes > max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_at(index) {
            // Before the first snapshot raft-rs asks for the term of index 0, which is 0 by definition.
            None if index == 0 && !self.is_formed() => Ok(0),
            Some(_) if index < self.hidden() => Err(raft::Error::Store(StorageError::Compacted)),
            Some(term) => Ok(term),
            None if index > self.last => Err(raft::Error::Store(StorageError::Unavailable)),
            None => Err(raft::Error::Store(StorageError::Compacted)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.hidden() + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, request_index: u64, to: NodeId) -> raft::Result<eraftpb::Snapshot> {
        // The receiver goes on with the entry after the snapshot, so the log must still have that entry.
        let least = self.hidden().max(request_index);
        let Some(mut snapshot) = self.newest().filter(|newest| newest.index >= least).cloned() else {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        // raft-rs ignores a snapshot whose configuration does not name the receiver. A node that is added later is no
        // founder, so its copy of the genesis names it as a learner; the log tells it the rest.
        if !snapshot.conf.voters.contains(&to) && !snapshot.conf.learners.contains(&to) {
            snapshot.conf.learners.push(to);
        }
        Ok(snapshot_to_raft(&snapshot))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        panic::{AssertUnwindSafe, catch_unwind},
        sync::Mutex,
    };

    use super::*;
    use crate::{consensus::convert::entry_from_raft, wire::Entry};

    /// A disk that holds what it was given.
    #[derive(Default)]
    struct Held(Mutex<BTreeMap<u64, Entry>>);

    impl LogReader for Held {
        fn entries(&self, _: GroupId, from: u64, to: u64, _: usize) -> Result<Vec<Entry>, StoreError> {
            let held = self.0.lock().unwrap();
            let all: Vec<_> = held.range(from..to).map(|(_, entry)| entry.clone()).collect();
            if all.len() as u64 == to - from {
                return Ok(all);
            }
            Err(StoreError::Damaged { what: "an entry".into(), detail: "it is not there".into() })
        }

        fn first_index(&self, _: GroupId) -> u64 {
            1
        }

        fn disk_bytes(&self) -> u64 {
            0
        }
    }

    fn entry(index: u64, term: u64) -> eraftpb::Entry {
        eraftpb::Entry { index, term, data: vec![term as u8; 10].into(), ..Default::default() }
    }

    fn view(disk: &Arc<Held>, keep: usize) -> LogView {
        let mut view = LogView::empty(GroupId::FIRST, disk.clone(), keep);
        let conf = ConfState { voters: vec![1], ..ConfState::default() };
        view.install(Snapshot { index: 1, term: 1, conf, data: Default::default() });
        view
    }

    fn context() -> GetEntriesContext {
        GetEntriesContext::empty(false)
    }

    /// Appends, conflicts and applied entries in many orders: terms and entries are those of a plain list.
    #[test]
    fn it_is_a_log() {
        for seed in 0..300u64 {
            let mut rng = seed;
            let mut roll = |sides: u64| {
                rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (rng >> 33) % sides
            };
            let disk = Arc::new(Held::default());
            let mut view = view(&disk, 100);
            let mut plain = BTreeMap::from([(1, 1u64)]);
            let (mut applied, mut committed, mut term) = (1, 1, 1);
            for _ in 0..30 {
                let last = view.last();
                if roll(3) > 0 {
                    let first = committed + 1 + roll(last - committed + 1);
                    term += roll(3);
                    let entries: Vec<_> = (first..=first + roll(4)).map(|index| entry(index, term)).collect();
                    plain.split_off(&first);
                    disk.0.lock().unwrap().split_off(&first);
                    for e in &entries {
                        plain.insert(e.index, e.term);
                        disk.0.lock().unwrap().insert(e.index, entry_from_raft(e));
                    }
                    view.append(&entries);
                } else {
                    applied += roll(last - applied + 1);
                    view.applied_to(applied);
                    committed = committed.max(applied + roll(last - applied + 1));
                    view.set_hard_state(HardState { commit: committed, ..HardState::default() });
                }
                assert_eq!(view.last(), *plain.last_key_value().unwrap().0);
                for (index, term) in &plain {
                    assert_eq!(view.term_at(*index), Some(*term), "seed {seed}: the term of {index}");
                }
                assert_eq!(view.term_at(view.last() + 1), None);
                let read = view.entries(2, view.last() + 1, None, context());
                if view.last() > 1 {
                    let read: Vec<_> = read.unwrap().iter().map(|e| (e.index, e.term)).collect();
                    let expected: Vec<_> = plain.range(2..).map(|(index, term)| (*index, *term)).collect();
                    assert_eq!(read, expected, "seed {seed}");
                }
                let unapplied: usize = view.tail.iter().filter(|e| e.index > applied).map(size).sum();
                assert_eq!(view.unapplied_bytes(), unapplied, "seed {seed}");
                let commit = view.hard_state().commit;
                let waiting: usize =
                    view.tail.iter().filter(|e| e.index > applied && e.index <= commit).map(size).sum();
                assert_eq!(view.waiting_bytes(), waiting, "seed {seed}");
                assert!(view.tail.iter().filter(|e| e.index > applied).count() as u64 == view.last() - applied);
            }
        }
    }

    /// What follows a log, in many orders: the compacted index rises, the end is cut, a snapshot replaces it all.
    #[test]
    fn a_compacted_log_is_a_log() {
        for seed in 0..300u64 {
            let mut rng = seed;
            let mut roll = |sides: u64| {
                rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (rng >> 33) % sides
            };
            let disk = Arc::new(Held::default());
            let mut view = view(&disk, 100);
            let mut plain = BTreeMap::from([(1, 1u64)]);
            let (mut compacted_index, mut applied, mut term) = (1, 1, 1);
            for _ in 0..40 {
                let last = view.last();
                match roll(6) {
                    0..=2 => {
                        let first = applied + 1 + roll(last - applied + 1);
                        term += roll(3);
                        let entries: Vec<_> = (first..=first + roll(4)).map(|index| entry(index, term)).collect();
                        plain.split_off(&first);
                        disk.0.lock().unwrap().split_off(&first);
                        for e in &entries {
                            plain.insert(e.index, e.term);
                            disk.0.lock().unwrap().insert(e.index, entry_from_raft(e));
                        }
                        view.append(&entries);
                    }
                    3 => {
                        applied += roll(last - applied + 1);
                        view.applied_to(applied);
                    }
                    4 => {
                        let older = compacted_index + roll(applied - compacted_index + 1);
                        let newest = older + roll(applied - older + 1);
                        let kept = BTreeMap::from([(older, plain[&older]), (newest, plain[&newest])]);
                        let kept =
                            kept.into_iter().map(|(index, term)| Snapshot { index, term, ..Snapshot::default() });
                        view.keep(kept.collect());
                        compacted_index = roll(older + 1).max(compacted_index);
                        view.compact(compacted_index);
                        plain = plain.split_off(&compacted_index);
                        // The store may hold more: it is asked for nothing of it.
                        disk.0.lock().unwrap().retain(|index, _| *index > compacted_index);
                        assert_eq!((view.snapshot_index(), view.newest().unwrap().index), (newest, newest));
                    }
                    _ if roll(8) == 0 => {
                        compacted_index = last + roll(5);
                        applied = compacted_index;
                        plain = BTreeMap::from([(compacted_index, term)]);
                        disk.0.lock().unwrap().clear();
                        view.install(Snapshot { index: compacted_index, term, ..Snapshot::default() });
                        assert_eq!((view.snapshots().len(), view.log_bytes()), (1, 0));
                    }
                    _ => {}
                }
                let last = *plain.last_key_value().unwrap().0;
                assert_eq!(
                    (view.compacted_index(), view.first_index().unwrap(), view.last()),
                    (compacted_index, compacted_index + 1, last),
                    "seed {seed}"
                );
                for (index, term) in &plain {
                    assert_eq!(view.term(*index).unwrap(), *term, "seed {seed}: the term of {index}");
                }
                let compacted = raft::Error::Store(StorageError::Compacted);
                assert_eq!(view.term(compacted_index - 1).unwrap_err(), compacted, "seed {seed}");
                assert_eq!(
                    view.entries(compacted_index, last + 1, None, context()).unwrap_err(),
                    compacted,
                    "seed {seed}"
                );
                if last > compacted_index {
                    let read = view.entries(compacted_index + 1, last + 1, None, context()).unwrap();
                    let read: Vec<_> = read.iter().map(|e| (e.index, e.term)).collect();
                    let expected: Vec<_> =
                        plain.range(compacted_index + 1..).map(|(index, term)| (*index, *term)).collect();
                    assert_eq!(read, expected, "seed {seed}");
                }
                let each = size(&entry(1, 1)) as u64;
                assert_eq!(view.log_bytes(), (last - compacted_index) * each, "seed {seed}");
                for index in compacted_index..=last {
                    assert_eq!(view.bytes_after(index), (last - index) * each, "seed {seed}: after {index}");
                    assert_eq!(view.index_within((last - index) * each), index, "seed {seed}: within {index}");
                }
                let applied_bytes: usize = view.tail.iter().filter(|e| e.index <= applied).map(size).sum();
                assert_eq!(view.tail_bytes() - view.unapplied_bytes(), applied_bytes, "seed {seed}");
            }
        }
    }

    /// Each fact that a caller can break, broken once.
    #[test]
    fn what_breaks_a_fact_of_the_log_is_stopped() {
        let snapshot = |index| Snapshot { index, term: 1, ..Snapshot::default() };
        type Break = Box<dyn Fn(&mut LogView)>;
        let cases: [(&str, Break); 6] = [
            ("an append must follow the log without a gap", Box::new(|view| view.append(&[entry(5, 1)]))),
            ("an applied entry is never replaced", Box::new(|view| view.append(&[entry(2, 2)]))),
            ("kept snapshots ascend", Box::new(move |view| view.keep(vec![snapshot(2), snapshot(2)]))),
            ("a kept snapshot is not below the compacted index", Box::new(move |view| view.keep(vec![snapshot(0)]))),
            ("an entry that is not applied is never compacted", Box::new(|view| view.compact(3))),
            ("what is served begins at what is applied", Box::new(|view| view.raise_min_served_index(3))),
        ];
        for (fact, break_it) in cases {
            let mut view = view(&Arc::new(Held::default()), 0);
            view.append(&[entry(2, 1), entry(3, 1)]);
            view.applied_to(2);
            let panic = catch_unwind(AssertUnwindSafe(|| break_it(&mut view))).expect_err(fact);
            let said = panic.downcast_ref::<&str>().copied().unwrap_or_default();
            assert!(said.contains(fact), "{fact}: {said}");
        }
    }

    /// What lies below `min_served_index` is in the log and goes to nobody; nor does a snapshot that would lead there.
    #[test]
    fn a_floor_hides_what_is_below_it() {
        let mut view = view(&Arc::new(Held::default()), 1000);
        view.append(&(2..=9).map(|index| entry(index, 1)).collect::<Vec<_>>());
        view.applied_to(7);
        assert!(view.snapshot(0, 1).is_ok());
        view.raise_min_served_index(6);
        view.raise_min_served_index(5); // never lowered
        let compacted = raft::Error::Store(StorageError::Compacted);
        assert_eq!((view.compacted_index(), view.first_index().unwrap()), (1, 7));
        assert_eq!(view.entries(6, 8, None, context()).unwrap_err(), compacted);
        assert_eq!(view.entries(7, 8, None, context()).unwrap().len(), 1);
        assert_eq!((view.term(5).unwrap_err(), view.term(6).unwrap()), (compacted, 1));
        let later = raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        assert_eq!(view.snapshot(0, 1).unwrap_err(), later);
        view.keep(vec![Snapshot { index: 6, term: 1, ..Snapshot::default() }]);
        assert_eq!(view.snapshot(0, 1).unwrap().get_metadata().index, 6);
        assert_eq!(view.snapshot(7, 1).unwrap_err(), later, "and none below what was asked for");
    }

    /// Unapplied entries stay in memory whatever they weigh; applied ones go, oldest first, down to the bound.
    #[test]
    fn the_tail_pins_what_is_not_applied() {
        let disk = Arc::new(Held::default());
        let mut view = view(&disk, 0);
        view.append(&(2..=9).map(|index| entry(index, 1)).collect::<Vec<_>>());
        assert_eq!(view.tail.len(), 8);
        view.applied_to(5);
        assert_eq!(view.tail.front().unwrap().index, 6);
        assert_eq!(view.unapplied_bytes(), view.tail_bytes());
    }

    /// A disk that cannot give what it should hold is a fault that stays, and to raft-rs only "later".
    #[test]
    fn a_disk_that_fails_is_remembered() {
        let disk = Arc::new(Held::default());
        let mut view = view(&disk, 0);
        view.append(&[entry(2, 1), entry(3, 1)]);
        view.applied_to(3);
        assert!(view.fault().is_none());
        assert!(view.entries(2, 4, None, context()).is_err());
        assert!(view.fault().is_some());
    }

    /// A node that is added later finds itself in the genesis that it is sent: raft-rs ignores it otherwise.
    #[test]
    fn a_snapshot_names_its_receiver() {
        let view = view(&Arc::new(Held::default()), 0);
        assert_eq!(view.snapshot(0, 7).unwrap().get_metadata().get_conf_state().learners, vec![7]);
        assert!(view.snapshot(0, 1).unwrap().get_metadata().get_conf_state().learners.is_empty());
        assert!(LogView::empty(GroupId::FIRST, view.reader(), 0).snapshot(0, 1).is_err());
    }
}
