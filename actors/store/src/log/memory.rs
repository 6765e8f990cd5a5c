//! A store in memory, for tests: it completes at once, or when told, or never.
//!
//! [`MemoryDisk`] is the disk: it outlives every [`MemoryStore`] opened on it, so that a test can crash a node and
//! start it again. What is durable is what was completed; [`MemoryDisk::crash`] takes the rest.
//!
//! Deliberately absent: threads and time. A completion is delivered on the thread whose call made it due.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actorum_core::{
    lives::{Content, LifeBook, LifeFile},
    log::sizes::Sizes,
    wire::{Entry, Snapshot},
};
use actorum_machine::ids::{GroupId, Incarnation, NodeId};

use super::{lives, plan, store::*};
use crate::snapshot::SnapshotStore;

/// The disk of one node. Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<MemoryState>>);

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// Opens the store on it: made now, with `new_incarnation`, if there is none.
    pub fn open(&self, id: NodeId, new_incarnation: Incarnation) -> Result<MemoryStore, OpenError> {
        let dir = PathBuf::from("memory");
        let mut disk = self.lock();
        if disk.open {
            return Err(OpenError::Locked { dir, holder: "another store in this process".to_owned() });
        }
        let boot = disk.identity.map_or(0, |identity| identity.boot);
        let (found, incarnation) = disk.identity.map_or((id, new_incarnation), |i| (i.id, i.incarnation));
        if found != id {
            return Err(OpenError::Foreign { dir, found, expected: id });
        }
        let identity = StoreIdentity { id, incarnation, boot: boot + 1 };
        disk.identity = Some(identity);
        disk.open = true;
        disk.dead = None;
        disk.life += 1;
        let life = disk.life;
        let content = disk.lives.clone().unwrap_or_else(|| Content::new(incarnation));
        let recovered = disk.logs.get(&GroupId::FIRST).map(Log::recover);
        drop(disk);
        let kept = KeptLives { disk: self.clone(), life, written: None };
        // Whoever opens it draws an incarnation each time, for a disk that has none yet: as good a nonce as any.
        let present = lives::life(&identity, new_incarnation.0, recovered.as_ref());
        let io = |error| OpenError::Io { dir, doing: "cannot write lives".to_owned(), error };
        let lives = LifeBook::open(Box::new(kept), content, present).map_err(io)?;
        Ok(MemoryStore { disk: self.clone(), life, lives, identity, started: false })
    }

    /// From now on batches wait instead of completing.
    pub fn hold(&self) {
        self.lock().hold = true;
    }

    /// Completes the oldest `count` of the batches that wait. Later ones go on waiting.
    pub fn release(&self, count: usize) {
        self.lock().released += count;
        self.deliver();
    }

    /// Completes everything that waits, and from now on everything at once.
    pub fn release_all(&self) {
        self.lock().hold = false;
        self.deliver();
    }

    /// How many batches wait.
    pub fn waiting(&self) -> usize {
        self.lock().pending.len()
    }

    /// The next batch to complete fails instead; what follows finds the store closed, until it is opened again.
    pub fn fail_next(&self, cause: &str) {
        self.lock().fail = Some(cause.to_owned());
    }

    /// The power goes: what was not completed is lost and will not be reported, and the store is closed. The next
    /// [`MemoryDisk::open`] finds the rest.
    pub fn crash(&self) {
        let mut disk = self.lock();
        disk.pending.clear();
        disk.unsynced.clear();
        disk.close();
    }

    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports what is due, in order and outside the lock: whoever hears it may submit again. One caller at a time
    /// delivers; what others make due meanwhile, it delivers too.
    fn deliver(&self) {
        let mut disk = self.lock();
        if disk.delivering {
            return;
        }
        disk.delivering = true;
        while let Some((completed, report)) = disk.next_due() {
            drop(disk);
            report(completed);
            disk = self.lock();
        }
        disk.delivering = false;
    }
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.lock();
        f.debug_struct("MemoryDisk")
            .field("identity", &disk.identity)
            .field("waiting", &disk.pending.len())
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct MemoryState {
    identity: Option<StoreIdentity>,
    lives: Option<Content>,
    /// Its files outlive a process, and everything on them is durable at once.
    snapshot_store: Arc<SnapshotStore>,
    open: bool,
    /// Which opening of the disk is the present one: handles of an earlier one do nothing.
    life: u64,
    logs: BTreeMap<GroupId, Log>,
    /// Completed without a sync: lost in a crash, carried by the next sync.
    unsynced: Vec<Write>,
    pending: VecDeque<Pending>,
    hold: bool,
    released: usize,
    fail: Option<String>,
    dead: Option<String>,
    delivering: bool,
}

struct Pending {
    batch_number: BatchNumber,
    batch: Batch,
    report: Completions,
}

impl MemoryState {
    fn close(&mut self) {
        self.open = false;
        self.life += 1;
        self.released = 0;
        self.fail = None;
    }

    fn next_due(&mut self) -> Option<(Completed, Completions)> {
        if self.hold && self.released == 0 {
            return None;
        }
        let Pending { batch_number, batch, report } = self.pending.pop_front()?;
        self.released = self.released.saturating_sub(1);
        let result = self.complete(batch);
        if let Err(error) = &result {
            self.dead.get_or_insert_with(|| error.to_string());
        }
        Some((Completed { batch_number, result }, report))
    }

    fn complete(&mut self, batch: Batch) -> Result<Written, StoreError> {
        if let Some(cause) = &self.dead {
            return Err(StoreError::Closed(cause.clone()));
        }
        if let Some(cause) = self.fail.take() {
            return Err(StoreError::Io {
                doing: "writing memory".to_owned(),
                error: Arc::new(io::Error::other(cause)),
            });
        }
        let bytes = batch.writes.iter().flat_map(|write| &write.entries).map(|entry| entry.size() as u64).sum();
        self.unsynced.extend(batch.writes);
        if batch.sync {
            self.sync()?;
        }
        Ok(Written { bytes, took: Duration::ZERO, sync: Duration::ZERO })
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        for write in std::mem::take(&mut self.unsynced) {
            self.logs.entry(write.group).or_default().apply(write)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Log {
    /// Ascending.
    snapshots: Vec<Snapshot>,
    /// The index before the first entry, and its term.
    compacted: (u64, u64),
    entries: Vec<Entry>,
    hard_state: HardState,
}

impl Log {
    fn last(&self) -> u64 {
        self.compacted.0 + self.entries.len() as u64
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.compacted.0)?.checked_sub(1) {
            None => Some(self.compacted.1),
            Some(nth) => self.entries.get(nth as usize).map(|entry| entry.term),
        }
    }

    fn apply(&mut self, write: Write) -> Result<(), StoreError> {
        let Write { group, snapshot, entries, hard_state, compact } = write;
        let misuse = |detail| StoreError::Damaged { what: format!("group {}: a batch", group.0), detail };
        if let Some(snapshot) = snapshot {
            self.entries.clear();
            self.compacted = (snapshot.index, snapshot.term);
            self.snapshots = vec![snapshot];
        }
        if let Some(first) = entries.first().map(|entry| entry.index) {
            let (compacted_index, last) = (self.compacted.0, self.last());
            if first <= compacted_index || first > last + 1 {
                return Err(misuse(format!("an append at {first} to a log of {} to {last}", compacted_index + 1)));
            }
            if let Some(newest) = self.snapshots.last().filter(|newest| first <= newest.index) {
                return Err(misuse(format!("an append at {first} to a log with a snapshot of {}", newest.index)));
            }
            if let Some((entry, index)) = entries.iter().zip(first..).find(|(entry, index)| entry.index != *index) {
                return Err(misuse(format!("an append with entry {} in the place of {index}", entry.index)));
            }
            self.entries.truncate((first - compacted_index - 1) as usize);
            self.entries.extend(entries);
        }
        if let Some(state) = hard_state {
            if state.commit > self.last() {
                return Err(misuse(format!("commit {} past the last index {}", state.commit, self.last())));
            }
            self.hard_state = state;
        }
        if let Some(compact) = compact
            && plan::judge(&compact, self.compacted.0, self.last()).map_err(misuse)?
        {
            let Compact { snapshots, up_to } = compact;
            let astray = |snapshot: &&Snapshot| self.term_at(snapshot.index) != Some(snapshot.term);
            if let Some(Snapshot { index, term, .. }) = snapshots.iter().find(astray) {
                return Err(misuse(format!("a snapshot {} of a log with another term there", At(*index, *term))));
            }
            let gone = up_to.saturating_sub(self.compacted.0);
            if let Some(term) = self.term_at(up_to).filter(|_| gone > 0) {
                self.entries.drain(..gone as usize);
                self.compacted = (up_to, term);
            }
            self.snapshots = snapshots;
        }
        Ok(())
    }

    fn recover(&self) -> Recovered {
        let mut terms: Vec<(u64, u64)> = self.snapshots.first().map(|_| self.compacted).into_iter().collect();
        let mut sizes = Sizes::empty_after(self.compacted.0);
        for entry in &self.entries {
            sizes.push(entry.index, entry.size() as u64);
            if terms.last().is_none_or(|run| run.1 != entry.term) {
                terms.push((entry.index, entry.term));
            }
        }
        let (snapshots, hard_state, last_index) = (self.snapshots.clone(), self.hard_state, self.last());
        Recovered { snapshots, hard_state, last_index, terms, sizes: sizes.steps() }
    }
}

/// The lives on a disk in memory, for one opening of it.
struct KeptLives {
    disk: MemoryDisk,
    life: u64,
    written: Option<Content>,
}

impl LifeFile for KeptLives {
    fn write(&mut self, content: &Content) -> io::Result<()> {
        self.written = Some(content.clone());
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if disk.life != self.life {
            return Err(io::Error::other("it was closed"));
        }
        disk.lives = self.written.take().or(disk.lives.take());
        Ok(())
    }
}

/// A store on a [`MemoryDisk`], not yet running.
#[derive(Debug)]
pub struct MemoryStore {
    disk: MemoryDisk,
    life: u64,
    lives: Arc<LifeBook>,
    identity: StoreIdentity,
    started: bool,
}

impl LogStore for MemoryStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    fn recover(&self, group: GroupId) -> Result<Recovered, StoreError> {
        Ok(self.disk.lock().logs.get(&group).map(Log::recover).unwrap_or_default())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(MemoryReader { disk: self.disk.clone(), life: self.life })
    }

    fn snapshot_store(&self) -> Arc<SnapshotStore> {
        self.disk.lock().snapshot_store.clone()
    }

    fn lives(&self) -> Option<Arc<LifeBook>> {
        Some(self.lives.clone())
    }

    fn start(mut self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        self.started = true;
        Box::new(MemoryAppender { disk: self.disk.clone(), life: self.life, next: 0, completed })
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if !self.started && disk.life == self.life {
            disk.close();
        }
    }
}

struct MemoryReader {
    disk: MemoryDisk,
    life: u64,
}

impl LogReader for MemoryReader {
    fn entries(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let disk = self.disk.lock();
        if let Some(cause) = &disk.dead {
            return Err(StoreError::Closed(cause.clone()));
        }
        if disk.life != self.life {
            return Err(StoreError::Closed("it was closed".to_owned()));
        }
        if from >= to {
            return Ok(Vec::new());
        }
        let empty = Log::default();
        let log = disk.logs.get(&group).unwrap_or(&empty);
        let (compacted_index, last) = (log.compacted.0, log.last());
        if from <= compacted_index || to > last + 1 {
            let detail =
                format!("entries {from} to {} were asked for, it holds {} to {last}", to - 1, compacted_index + 1);
            return Err(StoreError::Damaged { what: format!("group {}: the log", group.0), detail });
        }
        let mut bytes = 0usize;
        let wanted = &log.entries[(from - compacted_index - 1) as usize..(to - compacted_index - 1) as usize];
        let fitting = wanted.iter().take_while(|entry| {
            let first = bytes == 0;
            bytes = bytes.saturating_add(entry.size());
            first || bytes <= max_bytes
        });
        Ok(fitting.cloned().collect())
    }

    fn first_index(&self, group: GroupId) -> u64 {
        self.disk.lock().logs.get(&group).map_or(1, |log| log.compacted.0 + 1)
    }

    fn disk_bytes(&self) -> u64 {
        let disk = self.disk.lock();
        disk.logs.values().flat_map(|log| &log.entries).map(|entry| entry.size() as u64).sum()
    }

    fn blocks(&self) -> bool {
        false
    }
}

struct MemoryAppender {
    disk: MemoryDisk,
    life: u64,
    next: u64,
    completed: Completions,
}

impl LogAppender for MemoryAppender {
    fn submit(&mut self, batch: Batch) -> BatchNumber {
        self.next += 1;
        let batch_number = BatchNumber(self.next);
        let mut disk = self.disk.lock();
        if disk.life == self.life {
            disk.pending.push_back(Pending { batch_number, batch, report: self.completed.clone() });
        }
        drop(disk);
        self.disk.deliver();
        batch_number
    }

    fn blocks(&self) -> bool {
        false
    }
}

impl Drop for MemoryAppender {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.life != self.life {
            return; // crashed before
        }
        let held = std::mem::replace(&mut disk.hold, false);
        drop(disk);
        self.disk.deliver();
        let mut disk = self.disk.lock();
        disk.hold = held;
        if disk.dead.is_none() {
            // What cannot be applied was wrong before it was closed, and nobody was promised it.
            let _ = disk.sync();
        }
        disk.close();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::log::conformance;

    fn append(index: u64) -> Batch {
        let kind = actorum_core::wire::EntryKind::Normal;
        let entry = Entry { kind, term: 1, index, data: Default::default(), context: Default::default() };
        Batch { writes: vec![Write { entries: vec![entry], ..Write::default() }], sync: true }
    }

    fn start(disk: &MemoryDisk) -> (Box<dyn LogAppender>, std::sync::mpsc::Receiver<Completed>) {
        let (heard, completed) = channel();
        let store = Box::new(disk.open(1, Incarnation(1)).unwrap());
        (store.start(Arc::new(move |completion| heard.send(completion).unwrap())), completed)
    }

    fn last_index(disk: &MemoryDisk) -> u64 {
        disk.open(1, Incarnation(1)).unwrap().recover(GroupId::FIRST).unwrap().last_index
    }

    #[test]
    fn memory_passes_the_conformance_suite() {
        conformance::conformance(|| {
            let disk = MemoryDisk::new();
            move || -> Box<dyn LogStore> { Box::new(disk.open(1, Incarnation(7)).unwrap()) }
        });
    }

    #[test]
    fn what_is_held_completes_when_released_and_is_lost_in_a_crash() {
        let disk = MemoryDisk::new();
        let (mut appender, completed) = start(&disk);
        disk.hold();
        for index in 1..=5 {
            appender.submit(append(index));
        }
        assert_eq!((disk.waiting(), completed.try_iter().count()), (5, 0));
        disk.release(2);
        assert_eq!(completed.try_iter().map(|c| c.batch_number.0).collect::<Vec<_>>(), [1, 2]);
        disk.crash();
        appender.submit(append(6));
        disk.release_all();
        drop(appender);
        assert_eq!(completed.try_iter().count(), 0, "the dead hear nothing");
        assert_eq!(last_index(&disk), 2);
    }

    #[test]
    fn a_commit_index_without_a_sync_is_lost_in_a_crash() {
        let disk = MemoryDisk::new();
        let (mut appender, completed) = start(&disk);
        appender.submit(append(1));
        let hard_state = Some(HardState { term: 0, vote: 0, commit: 1 });
        appender.submit(Batch { writes: vec![Write { hard_state, ..Write::default() }], sync: false });
        assert_eq!(completed.try_iter().count(), 2);
        disk.crash();
        assert_eq!(disk.open(1, Incarnation(1)).unwrap().recover(GroupId::FIRST).unwrap().hard_state.commit, 0);
    }

    #[test]
    fn a_failed_write_is_final_until_the_next_opening() {
        let disk = MemoryDisk::new();
        let (mut appender, completed) = start(&disk);
        appender.submit(append(1));
        disk.fail_next("no space");
        appender.submit(append(2));
        appender.submit(append(2));
        let results: Vec<_> = completed.try_iter().map(|c| c.result).collect();
        assert!(matches!(&results[..], [Ok(_), Err(StoreError::Io { .. }), Err(StoreError::Closed(_))]), "{results:?}");
        assert!(matches!(disk.open(1, Incarnation(1)), Err(OpenError::Locked { .. })));
        drop(appender);
        assert_eq!(last_index(&disk), 1);
    }
}
