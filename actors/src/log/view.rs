//! The log as the core sees it: a tail in memory, the terms of all of it, and a reader for the rest.
//!
//! ```text
//!  snapshot ──┤ on disk only ├──┤ tail: recent, in memory ├── last
//!             read through the     pinned: (applied, last]
//!             LogReader            kept for slow peers: up to a byte bound
//! ```
//!
//! raft-rs asks its `Storage` synchronously and dies of an error while it commits or campaigns. So what is not
//! applied yet is pinned here, terms come from a table of runs, and only an append to a peer that fell
//! behind the tail touches the disk. An error there is kept as [`LogView::fault`] and stops the node.

use std::{cell::RefCell, collections::VecDeque, sync::Arc};

use actorum_transport::wire::{ConfState, GroupId, NodeId, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError, eraftpb};

use crate::{
    consensus::convert::{conf_to_raft, entry_to_raft, hard_to_raft, snapshot_to_raft},
    log::store::{HardState, LogReader, Recovered, StoreError},
};

/// The log of one group, for raft-rs.
pub struct LogView {
    group: GroupId,
    reader: Arc<dyn LogReader>,
    snapshot: Option<Snapshot>,
    /// The configuration at the applied index.
    conf: ConfState,
    hard_state: HardState,
    /// (first index, term), ascending; the first run starts at the snapshot's index.
    runs: Vec<(u64, u64)>,
    last: u64,
    tail: VecDeque<eraftpb::Entry>,
    tail_bytes: usize,
    /// Of these, the bytes of entries up to `applied`.
    applied_bytes: usize,
    applied: u64,
    keep_bytes: usize,
    fault: RefCell<Option<StoreError>>,
}

/// What an entry costs in memory.
fn size(entry: &eraftpb::Entry) -> usize {
    entry.data.len() + entry.context.len() + 24
}

impl LogView {
    /// The log of a node that holds nothing.
    pub fn empty(group: GroupId, reader: Arc<dyn LogReader>, keep_bytes: usize) -> Self {
        LogView {
            group,
            reader,
            snapshot: None,
            conf: ConfState::default(),
            hard_state: HardState::default(),
            runs: Vec::new(),
            last: 0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            applied_bytes: 0,
            applied: 0,
            keep_bytes,
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
        view.snapshot = recovered.snapshots.last().cloned();
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
        Ok(view)
    }

    /// The reader behind the tail.
    pub fn reader(&self) -> Arc<dyn LogReader> {
        self.reader.clone()
    }

    /// Whether this node belongs to a cluster.
    pub fn is_formed(&self) -> bool {
        self.snapshot.is_some()
    }

    /// The hard state last given to the log writer.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The snapshot the log starts from.
    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |s| s.index)
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

    /// Makes a new hard state visible to raft-rs.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
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
            self.push(entry.clone());
        }
    }

    fn truncate(&mut self, first: u64) {
        while self.tail.back().is_some_and(|e| e.index >= first) {
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= size(&entry);
            }
        }
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
        self.snapshot = Some(snapshot);
        self.tail.clear();
        self.tail_bytes = 0;
        self.applied_bytes = 0;
    }

    /// Frees what is applied, down to the byte bound. What is applied is on disk: raft-rs hands out
    /// committed entries only as far as they were reported persisted.
    pub fn applied_to(&mut self, index: u64) {
        let start = self.tail.front().map_or(0, |e| e.index);
        for i in (self.applied + 1).max(start)..=index {
            if let Some(entry) = self.tail.get((i - start) as usize) {
                self.applied_bytes += size(entry);
            }
        }
        self.applied = index;
        while self.tail_bytes > self.keep_bytes && self.tail.front().is_some_and(|e| e.index <= self.applied) {
            if let Some(entry) = self.tail.pop_front() {
                self.tail_bytes -= size(&entry);
                self.applied_bytes -= size(&entry);
            }
        }
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
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.snapshot_index() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let start = self.tail.front().map_or(self.last + 1, |e| e.index);
        let (mut out, mut bytes) = (Vec::new(), 0u64);
        if low < start {
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
            Some(term) => Ok(term),
            None if index > self.last => Err(raft::Error::Store(StorageError::Unavailable)),
            None => Err(raft::Error::Store(StorageError::Compacted)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.snapshot_index() + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, _request_index: u64, to: NodeId) -> raft::Result<eraftpb::Snapshot> {
        let Some(mut snapshot) = self.snapshot.clone() else {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        // raft-rs ignores a snapshot whose configuration does not name the receiver. A node that is added later is
        // not among the founders: it joins its own copy as a learner, and the log tells it the rest.
        if !snapshot.conf.voters.contains(&to) && !snapshot.conf.learners.contains(&to) {
            snapshot.conf.learners.push(to);
        }
        Ok(snapshot_to_raft(&snapshot))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Mutex};

    use actorum_transport::wire::Entry;

    use super::*;
    use crate::consensus::convert::entry_from_raft;

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
            let mut dice = seed;
            let mut roll = |sides: u64| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (dice >> 33) % sides
            };
            let disk = Arc::new(Held::default());
            let mut view = view(&disk, 100);
            let mut plain = BTreeMap::from([(1, 1u64)]);
            let (mut applied, mut term) = (1, 1);
            for _ in 0..30 {
                let last = view.last();
                if roll(3) > 0 {
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
                } else {
                    applied += roll(last - applied + 1);
                    view.applied_to(applied);
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
                assert!(view.tail.iter().filter(|e| e.index > applied).count() as u64 == view.last() - applied);
            }
        }
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
