//! The order in which a commit reaches the disk, and the store as its readers share it.
//!
//! ```text
//!  plan ─▶ watermark lowered (if the plan cuts below it) ─▶ apply        begin
//!       ─▶ flush ─▶ sync ─▶ watermark raised (if a term or vote moved)   finish ─▶ the caller reports
//! ```
//!
//! Two halves, so that a simulated disk may let time pass between them; a real one runs both at once.
//!
//! Deliberately absent: threads, queues and reports: whoever owns a [`Committer`] has those.

use std::{
    collections::{BTreeMap, btree_map},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use actorum_core::{
    log::sizes::Sizes,
    planted::{self, Planted},
    wire::Entry,
};
use actorum_machine::ids::{GroupId, NodeId};

use super::{
    engine::{Engine, EngineError, caught},
    plan::{Log, Plan, Staged, read_entries},
    record::Found,
    store::*,
    watermark::{Mark, Pages, Watermark},
};

/// What the writing half and the readers share.
pub(super) struct Shared<E> {
    state: RwLock<Result<Open<E>, String>>,
    /// Bytes on disk, as of the last look that had not to wait.
    bytes: AtomicU64,
    blocks: bool,
}

/// An engine, what is known of its logs, and the lock that makes it ours: dropped together, in this order.
pub(super) struct Open<E> {
    engine: E,
    logs: BTreeMap<GroupId, Log>,
    /// The size of each log, roughly: what it would take if no space were wasted.
    sizes: BTreeMap<GroupId, Sizes>,
    _lock: Box<dyn Send + Sync>,
}

impl<E: Engine> Shared<E> {
    /// Shares an engine that was just opened, with what was found in it. Dropping it releases `lock`.
    pub(super) fn new(engine: E, found: &Found, lock: Box<dyn Send + Sync>) -> Arc<Shared<E>> {
        let logs = found.groups.iter().map(|(group, found)| (*group, Log::new(*group, found))).collect();
        let (blocks, bytes) = (engine.blocks(), AtomicU64::new(engine.disk_bytes()));
        let sizes = found.groups.iter().map(|(group, found)| {
            let Recovered { last_index, sizes, .. } = &found.recovered;
            (*group, Sizes::recovered(found.recovered.compacted_index(), *last_index, sizes))
        });
        let sizes = sizes.collect();
        let state = RwLock::new(Ok(Open { engine, logs, sizes, _lock: lock }));
        Arc::new(Shared { state, bytes, blocks })
    }

    // A poisoned lock is used on purpose: a panic under it is caught above, and ends the store with a specific error.
    fn read(&self) -> RwLockReadGuard<'_, Result<Open<E>, String>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Result<Open<E>, String>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the engine and what is known of its logs.
    pub(super) fn with_engine<T>(
        &self,
        read: impl FnOnce(&E, &BTreeMap<GroupId, Log>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        match &*self.read() {
            Ok(open) => read(&open.engine, &open.logs),
            Err(cause) => Err(EngineError::Broken { what: "the log".to_owned(), detail: cause.clone() }),
        }
    }

    /// Ends the store for its readers. The caller drops what was open, which closes the engine and releases the
    /// directory's lock. It does so outside the lock here: sled flushes when it is dropped, and that can hang.
    pub(super) fn take(&self, cause: &str) -> Option<Open<E>> {
        std::mem::replace(&mut *self.write(), Err(cause.to_owned())).ok()
    }
}

#[cfg(test)]
impl<E: Engine> Shared<E> {
    /// Changes what is known of a log behind the store's back.
    pub(super) fn tamper(&self, group: GroupId, change: impl FnOnce(&mut Log)) {
        let mut state = self.write();
        let open = state.as_mut().expect("the store is open");
        change(open.logs.get_mut(&group).expect("the group has a log"));
    }
}

impl<E: Engine> LogReader for Shared<E> {
    fn entries(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let state = self.read();
        let open = state.as_ref().map_err(|cause| StoreError::Closed(cause.clone()))?;
        if from >= to {
            return Ok(Vec::new());
        }
        let log = open.logs.get(&group).copied().unwrap_or_default();
        if from < log.first() || to > log.last.0 + 1 {
            let detail =
                format!("entries {from} to {} were asked for, it holds {} to {}", to - 1, log.first(), log.last.0);
            return Err(StoreError::Damaged { what: format!("group {}: the log", group.0), detail });
        }
        caught(|| read_entries(&open.engine, group, from, to, max_bytes))
    }

    fn first_index(&self, group: GroupId) -> u64 {
        self.read().as_ref().ok().and_then(|open| open.logs.get(&group)).map_or(1, Log::first)
    }

    fn disk_bytes(&self) -> u64 {
        // A status does not wait for the disk: while the store's thread hangs with the lock, the last known number is
        // returned.
        if let Ok(state) = self.state.try_read() {
            self.bytes.store(state.as_ref().map_or(0, |open| open.engine.disk_bytes()), Ordering::Relaxed);
        }
        self.bytes.load(Ordering::Relaxed)
    }

    fn blocks(&self) -> bool {
        // Answered without the lock: a caller must not wait to learn whether it would have to wait.
        self.blocks
    }
}

/// How far the watermark's index is behind the store.
#[derive(Default)]
pub(super) struct Stale {
    /// Bytes of records.
    pub(super) bytes: u64,
    /// Synced commits.
    pub(super) commits: u32,
}

/// A commit that is applied and not yet durable.
pub(super) struct Begun {
    /// Whether a promise depends on it.
    pub(super) sync: bool,
    bytes: u64,
    after: Vec<(GroupId, Log)>,
    /// Index and term of the last entry of each old log that stays; `None` if it went altogether.
    pub(super) kept: Vec<(GroupId, Option<(u64, u64)>)>,
}

/// What changes a store: one per open store.
pub(super) struct Committer<E, S> {
    shared: Arc<Shared<E>>,
    watermark: Watermark<S>,
    /// Whether something was applied that no sync has covered yet.
    unsynced: bool,
    /// Whether the kernel has all that was applied.
    flushed: bool,
    pub(super) stale: Stale,
}

impl<E: Engine, S: Pages> Committer<E, S> {
    pub(super) fn new(shared: Arc<Shared<E>>, watermark: Watermark<S>) -> Committer<E, S> {
        Committer { shared, watermark, unsynced: false, flushed: true, stale: Stale::default() }
    }

    /// Ends the store for everybody. What was open is the caller's to drop.
    pub(super) fn take(&self, cause: &str) -> Option<Open<E>> {
        self.shared.take(cause)
    }

    /// All of the batches or none: staged as one, planned, and applied. Durable only after [`Committer::finish`].
    pub(super) fn begin(&mut self, taken: Vec<Batch>) -> Result<Begun, StoreError> {
        let mut sync = false;
        let mut staged: BTreeMap<GroupId, (Log, Staged)> = BTreeMap::new();
        let shared = self.shared.clone();
        // Only this thread changes anything, so what it reads under the read lock still holds under the write lock.
        let (mut plans, bytes) = {
            let state = shared.read();
            let open = state.as_ref().map_err(|cause| StoreError::Closed(cause.clone()))?;
            for write in taken.into_iter().flat_map(|batch| {
                sync |= batch.sync;
                batch.writes
            }) {
                let group = write.group;
                let (log, staged) = match staged.entry(group) {
                    btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    btree_map::Entry::Vacant(entry) => {
                        let log = open.logs.get(&group).copied().unwrap_or_else(|| Log::empty(group));
                        entry.insert((log, Staged::default()))
                    }
                };
                staged.add(log, write)?;
            }
            let mut plans = BTreeMap::new();
            let mut bytes = 0;
            for (log, staged) in staged.values() {
                // Whatever the caller said: a batch that moves more than a commit index is a promise.
                let moved =
                    staged.hard_state.is_some_and(|s| (s.term, s.vote) != (log.hard_state.term, log.hard_state.vote));
                sync |= staged.snapshot.is_some() || staged.compact.is_some() || !staged.entries.is_empty() || moved;
            }
            for (group, (log, staged)) in staged {
                let plan = Plan::new(&open.engine, group, &log, staged, sync)?;
                assert_follows(group, &log, &plan.after);
                bytes += plan.changes.values().flatten().map(Vec::len).sum::<usize>() as u64;
                plans.insert(group, plan);
            }
            (plans, bytes)
        };

        // Promise 6, by way of the watermark: it is lowered and durable before the entries it speaks of go, so that a
        // crash between finds the store ahead of it.
        let lowered = plans.iter().filter_map(|(group, plan)| {
            let mark = self.watermark.mark(*group);
            let (index, index_term) = match plan.kept {
                Some(kept) => kept,
                None if plan.after.compacted.0 > mark.index => return None, // the new snapshot covers what was promised
                None => (0, 0),
            };
            (index < mark.index).then_some((*group, Mark { index, index_term, ..mark }))
        });
        let lowered: Vec<_> = lowered.collect();
        self.mark(lowered)?;

        let after: Vec<(GroupId, Log)> = plans.iter().map(|(group, plan)| (*group, plan.after)).collect();
        let kept = plans.iter().map(|(group, plan)| (*group, plan.kept)).collect();
        {
            let mut state = shared.write();
            let open = state.as_mut().map_err(|cause| StoreError::Closed(cause.clone()))?;
            // One batch on one tree was never seen torn: entries and the hard state that speaks of them stand or fall
            // together.
            for (group, plan) in &mut plans {
                let sizes = open.sizes.entry(*group).or_default();
                match plan.kept {
                    Some((last, _)) => sizes.truncate(last.saturating_add(1), sizes.after(last)),
                    None => *sizes = Sizes::empty_after(plan.after.compacted.0),
                }
                for (index, bytes) in plan.appended.drain(..) {
                    sizes.push(index, bytes);
                }
                sizes.compact(plan.after.compacted.0);
            }
            let changes: Vec<_> = plans.into_values().flat_map(|plan| plan.changes).collect();
            open.engine.apply(changes)?;
            open.logs.extend(after.iter().copied());
        }
        (self.unsynced, self.flushed) = (true, false);
        // Without a sync it is a commit index alone: no promise depends on it, and the next sync carries it.
        Ok(Begun { sync, bytes, after, kept })
    }

    /// Makes what was begun durable, and then records it in the watermark: only after that may it be reported.
    pub(super) fn finish(&mut self, begun: Begun) -> Result<(), StoreError> {
        let Begun { sync, bytes, after, .. } = begun;
        if !sync || planted::is(Planted::AcknowledgedBeforeSync) {
            return Ok(());
        }
        self.sync()?;
        // Promise 2: a vote leaves the node only after the watermark knows of it, so that a store without it is found
        // out.
        let moved = after.into_iter().filter_map(|(group, log)| {
            let mark = self.watermark.mark(group);
            let HardState { term, vote, .. } = log.hard_state;
            // The index goes along: it costs nothing here.
            let (index, index_term) = log.last;
            ((mark.term, mark.vote) != (term, vote)).then_some((group, Mark { term, vote, index, index_term }))
        });
        let moved: Vec<_> = moved.collect();
        self.mark(moved)?;
        self.stale.bytes += bytes;
        self.stale.commits += 1;
        Ok(())
    }

    /// Hands what was applied to the kernel; [`Committer::finish`] does so if this was not called.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        let state = self.shared.read();
        let open = state.as_ref().map_err(|cause| StoreError::Closed(cause.clone()))?;
        open.engine.flush()?;
        self.flushed = true;
        Ok(())
    }

    /// Makes what was applied durable: promises 1 and 2 stand on these two calls.
    fn sync(&mut self) -> Result<(), StoreError> {
        if !self.flushed {
            self.flush()?;
        }
        let state = self.shared.read();
        let open = state.as_ref().map_err(|cause| StoreError::Closed(cause.clone()))?;
        open.engine.sync()?;
        self.unsynced = false;
        Ok(())
    }

    /// Writes what was promised. Promise 2: a term never falls, and a vote is given once in a term.
    fn mark(&mut self, moved: Vec<(GroupId, Mark)>) -> Result<(), StoreError> {
        for (group, mark) in &moved {
            let before = self.watermark.mark(*group);
            assert_kept(*group, (before.term, before.vote), (mark.term, mark.vote));
        }
        let doing = "writing watermark".to_owned();
        self.watermark.write(moved).map_err(|error| StoreError::Io { doing, error: Arc::new(error) })
    }

    /// Bytes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.shared.read().as_ref().map_or(0, |open| open.engine.disk_bytes())
    }

    /// Bytes of all entries.
    pub(super) fn live_bytes(&self) -> u64 {
        self.shared.read().as_ref().map_or(0, |open| open.sizes.values().map(Sizes::total).sum())
    }

    /// Whether the beginning of a log must still be removed, with the next commits.
    pub(super) fn is_truncating_prefix(&self) -> bool {
        !self.truncating_prefix().is_empty()
    }

    /// The groups whose log's beginning must still be removed.
    pub(super) fn truncating_prefix(&self) -> Vec<GroupId> {
        let pending = |(group, log): (&GroupId, &Log)| (log.truncate_prefix_to > log.compacted.0).then_some(*group);
        self.shared.read().as_ref().map_or(Vec::new(), |open| open.logs.iter().filter_map(pending).collect())
    }

    /// Whether this compaction can be committed now, before anything else.
    pub(super) fn can_compact(&self, group: GroupId, compact: &Compact) -> bool {
        let write = Write { group, compact: Some(compact.clone()), ..Write::default() };
        let state = self.shared.read();
        let log = state.as_ref().ok().and_then(|open| open.logs.get(&group));
        log.is_some_and(|log| Staged::default().add(log, write).is_ok())
    }

    /// Reads the engine and what is known of its logs.
    pub(super) fn with_engine<T>(
        &self,
        read: impl FnOnce(&E, &BTreeMap<GroupId, Log>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        self.shared.with_engine(read)
    }

    /// Puts another engine in the place of this one, which is returned for the caller to drop outside the lock. The new
    /// one holds all that was applied, durably.
    pub(super) fn switch(&mut self, engine: E) -> Result<E, StoreError> {
        let mut state = self.shared.write();
        let open = state.as_mut().map_err(|cause| StoreError::Closed(cause.clone()))?;
        let old = std::mem::replace(&mut open.engine, engine);
        (self.unsynced, self.flushed) = (false, true);
        Ok(old)
    }

    /// Brings the watermark's indexes up to what is durable.
    pub(super) fn raise_index(&mut self) -> Result<(), StoreError> {
        if self.unsynced {
            self.sync()?;
        }
        let marks: Vec<_> = {
            let state = self.shared.read();
            let open = state.as_ref().map_err(|cause| StoreError::Closed(cause.clone()))?;
            let logs = open.logs.iter();
            logs.map(|(group, log)| {
                let HardState { term, vote, .. } = log.hard_state;
                (*group, Mark { term, vote, index: log.last.0, index_term: log.last.1 })
            })
            .collect()
        };
        self.mark(marks)?;
        self.stale = Stale::default();
        Ok(())
    }
}

/// What must hold of a log after a commit, as it was planned, before any of it is on the disk. What a caller can get
/// wrong is an error of the plan already.
fn assert_follows(group: GroupId, before: &Log, after: &Log) {
    let (compacted_index, last) = (after.compacted.0, after.last.0);
    assert!(
        compacted_index <= last,
        "group {}: its log would end at {last}, before its beginning at {compacted_index}",
        group.0
    );
    let promise = |log: &Log| (log.hard_state.term, log.hard_state.vote);
    assert_kept(group, promise(before), promise(after));
}

/// Promise 2, of a term and the vote in it: the term never falls, and the vote is given once.
fn assert_kept(group: GroupId, (term, vote): (u64, NodeId), (new_term, new_vote): (u64, NodeId)) {
    let group = group.0;
    assert!(new_term >= term, "group {group}: the durable term would fall from {term} to {new_term}");
    let voted = new_term == term && vote != 0;
    assert!(!voted || new_vote == vote, "group {group}: its vote of term {term} would go from {vote} to {new_vote}");
}
