//! A disk that remembers exactly what was made durable, and writes nothing before it is told to.
//!
//! ```text
//!  Append ─▶ in flight (lost in a crash) ─▶ persist ─▶ durable (what a restart recovers)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use actorum_machine::ids::GroupId;

use crate::{
    log::store::{Compact, HardState, LogReader, Recovered, StoreError},
    message::Append,
    wire::{Entry, Snapshot},
};

/// What a restart finds.
#[derive(Clone, Default)]
pub(super) struct Image {
    /// What the node starts from, ascending.
    pub snapshots: Vec<Snapshot>,
    /// Index and term before the first entry.
    pub compacted: (u64, u64),
    pub hard_state: HardState,
    pub entries: BTreeMap<u64, Entry>,
}

impl Image {
    pub(super) fn last(&self) -> u64 {
        let after = self.entries.last_key_value().map(|(index, _)| *index);
        after.unwrap_or(self.compacted.0)
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        let compacted = (self.compacted.0 == index && index > 0).then_some(self.compacted.1);
        self.entries.get(&index).map(|e| e.term).or(compacted)
    }

    /// Whether this image holds that very entry, or a snapshot over it.
    pub(super) fn covers(&self, index: u64, term: u64) -> bool {
        self.snapshots.last().is_some_and(|s| s.index >= index) || self.term_at(index) == Some(term)
    }

    fn recovered(&self) -> Recovered {
        let mut terms: Vec<(u64, u64)> = Vec::from_iter((self.compacted.0 > 0).then_some(self.compacted));
        for entry in self.entries.values() {
            if terms.last().is_none_or(|(_, term)| *term != entry.term) {
                terms.push((entry.index, entry.term));
            }
        }
        let (snapshots, hard_state) = (self.snapshots.clone(), self.hard_state);
        Recovered { snapshots, hard_state, last_index: self.last(), terms, sizes: Vec::new() }
    }
}

/// One node's disk.
#[derive(Default)]
pub(super) struct TestDisk {
    pub durable: Arc<Mutex<Image>>,
    pub in_flight: VecDeque<Append>,
    /// Every entry that was durable at some time, even if replaced since.
    pub ever: BTreeSet<(u64, u64)>,
    /// Every vote that was durable at some time.
    pub votes: BTreeSet<(u64, u64)>,
    /// The highest term that was durable.
    pub term: u64,
}

impl TestDisk {
    pub(super) fn image(&self) -> Image {
        self.durable.lock().unwrap().clone()
    }

    pub(super) fn recovered(&self) -> Recovered {
        self.image().recovered()
    }

    pub(super) fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(Reader(self.durable.clone()))
    }

    /// Makes every write up to this number durable.
    pub(super) fn persist(&mut self, number: u64) {
        while self.in_flight.front().is_some_and(|append| append.number <= number) {
            let Some(append) = self.in_flight.pop_front() else { return };
            self.write(append);
        }
    }

    fn write(&mut self, append: Append) {
        let mut image = self.durable.lock().unwrap();
        if let Some(snapshot) = append.write.snapshot {
            self.ever.insert((snapshot.index, snapshot.term));
            image.entries.clear();
            image.compacted = (snapshot.index, snapshot.term);
            image.snapshots = vec![snapshot];
        }
        if let Some(first) = append.write.entries.first() {
            assert!(first.index <= image.last() + 1, "a write would leave a gap in the log");
            image.entries.split_off(&first.index);
        }
        for entry in append.write.entries {
            self.ever.insert((entry.index, entry.term));
            image.entries.insert(entry.index, entry);
        }
        if let Some(hard_state) = append.write.hard_state {
            assert!(hard_state.term >= self.term, "the durable term ran backwards");
            self.term = hard_state.term;
            self.votes.insert((hard_state.term, hard_state.vote));
            image.hard_state = hard_state;
        }
        if let Some(Compact { snapshots, up_to }) = append.write.compact {
            assert!(up_to <= snapshots[0].index, "cut off beyond what the older snapshot covers");
            let compacted = (up_to, image.term_at(up_to).expect("cut off where there is an entry"));
            image.entries = image.entries.split_off(&(up_to + 1));
            (image.compacted, image.snapshots) = (compacted, snapshots);
        }
        assert!(image.hard_state.commit <= image.last(), "the durable commit index is past the durable log");
    }
}

struct Reader(Arc<Mutex<Image>>);

impl LogReader for Reader {
    fn entries(&self, _: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let image = self.0.lock().unwrap();
        let (mut found, mut bytes) = (Vec::new(), 0);
        for index in from..to {
            let Some(entry) = image.entries.get(&index) else {
                return Err(StoreError::Damaged { what: format!("entry {index}"), detail: "not there".into() });
            };
            bytes += entry.size();
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn first_index(&self, _: GroupId) -> u64 {
        self.0.lock().unwrap().compacted.0 + 1
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}
