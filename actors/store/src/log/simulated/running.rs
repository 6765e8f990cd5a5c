//! A store at work on a simulated disk: commits one after the other, each as long as its latency.
//!
//! Deliberately absent: the steps of a commit and their order, which are every store's (see `commit`).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use actorum_core::{lives::LifeBook, wire::Entry};
use actorum_machine::ids::GroupId;
use tokio::{
    runtime::Handle,
    task::spawn_local,
    time::{Instant, sleep, sleep_until},
};

use super::{
    DiskStep, SimulatedDisk,
    device::{SimulatedEngine, SimulatedPages},
    mistaken::Mistaken,
};
use crate::{
    log::{
        commit::{Begun, Committer, Open, Shared, Stale},
        engine::caught,
        record::{self, FoundGroup},
        store::*,
        watermark::Watermark,
    },
    simulated::Latency,
    snapshot::SnapshotStore,
};

/// The policy of [`crate::log::sled::OpenOptions`], which nothing here changes.
const MAX_COMMIT_BYTES: usize = 16 << 20;
const WATERMARK_BYTES: u64 = 4 << 20;
const WATERMARK_COMMITS: u32 = 1024;
pub(super) const WATERMARK_QUIET: Duration = Duration::from_millis(200);

/// A store on a simulated disk, not yet running.
pub(super) struct SimulatedStore {
    pub(super) disk: SimulatedDisk,
    pub(super) life: u64,
    pub(super) shared: Arc<Shared<Mistaken<SimulatedEngine>>>,
    pub(super) lives: Arc<LifeBook>,
    pub(super) identity: StoreIdentity,
    pub(super) found: BTreeMap<GroupId, FoundGroup>,
    // Taken by `start`.
    pub(super) watermark: Option<Watermark<SimulatedPages>>,
}

impl LogStore for SimulatedStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    fn recover(&self, group: GroupId) -> Result<Recovered, StoreError> {
        Ok(self.found.get(&group).map(|found| found.recovered.clone()).unwrap_or_default())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(SimulatedReader { disk: self.disk.clone(), life: self.life, shared: self.shared.clone() })
    }

    /// Lost with the process: whoever simulates a whole node has a simulated folder for it.
    fn snapshot_store(&self) -> Arc<SnapshotStore> {
        Arc::new(SnapshotStore::memory())
    }

    fn lives(&self) -> Option<Arc<LifeBook>> {
        Some(self.lives.clone())
    }

    fn start(mut self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        let watermark = self.watermark.take().expect("start consumes the store, so it runs once");
        let work = Work {
            committer: Committer::new(self.shared.clone(), watermark),
            waiting: VecDeque::new(),
            in_flight: None,
            due: VecDeque::new(),
            raise: false,
            quiet_since: None,
            quiet_timer: false,
            dead: None,
            closing: false,
            advancing: false,
            held: None,
        };
        let running = Arc::new(Running { disk: self.disk.clone(), life: self.life, completed, work: Mutex::new(work) });
        Box::new(SimulatedAppender { running, next: 0 })
    }
}

impl Drop for SimulatedStore {
    fn drop(&mut self) {
        if self.watermark.is_some() {
            drop(self.shared.take("it was closed"));
        }
    }
}

struct SimulatedReader {
    disk: SimulatedDisk,
    life: u64,
    shared: Arc<Shared<Mistaken<SimulatedEngine>>>,
}

impl LogReader for SimulatedReader {
    fn entries(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        if self.disk.lock().life != self.life {
            return Err(StoreError::Closed("its process is gone, or it was closed".to_owned()));
        }
        let asked = self.disk.ask(self.life, DiskStep::Read);
        self.disk.announce();
        asked.map_err(|error| StoreError::Io { doing: "reading log".to_owned(), error: Arc::new(error.into()) })?;
        self.shared.entries(group, from, to, max_bytes)
    }

    fn first_index(&self, group: GroupId) -> u64 {
        self.shared.first_index(group)
    }

    fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes()
    }

    fn blocks(&self) -> bool {
        false
    }
}

struct SimulatedAppender {
    running: Arc<Running>,
    next: u64,
}

impl LogAppender for SimulatedAppender {
    fn submit(&mut self, batch: Batch) -> BatchNumber {
        self.next += 1;
        let batch_number = BatchNumber(self.next);
        self.running.lock().waiting.push_back((batch_number, batch));
        self.running.advance();
        batch_number
    }

    fn blocks(&self) -> bool {
        false
    }
}

impl Drop for SimulatedAppender {
    /// What was submitted is finished now, whatever its latency; what hangs goes on hanging, and with it the store.
    fn drop(&mut self) {
        let mut work = self.running.lock();
        work.closing = true;
        if let Some(in_flight) = work.in_flight.as_mut().filter(|in_flight| !in_flight.hangs) {
            in_flight.ready = true;
        }
        drop(work);
        self.running.advance();
    }
}

/// A store at work.
pub(super) struct Running {
    disk: SimulatedDisk,
    life: u64,
    completed: Completions,
    work: Mutex<Work>,
}

struct Work {
    committer: Committer<Mistaken<SimulatedEngine>, SimulatedPages>,
    /// Bounded by whoever submits, as [`LogAppender::submit`] says.
    waiting: VecDeque<(BatchNumber, Batch)>,
    in_flight: Option<InFlight>,
    /// Ended and not reported yet.
    due: VecDeque<Completed>,
    /// The watermark's index is to follow.
    raise: bool,
    quiet_since: Option<Instant>,
    quiet_timer: bool,
    dead: Option<String>,
    closing: bool,
    /// Somebody up the stack is at it: what comes meanwhile, it takes up too.
    advancing: bool,
    /// What a dead store keeps until its appender goes: the lock above all.
    held: Option<Open<Mistaken<SimulatedEngine>>>,
}

/// A commit that is with the kernel.
struct InFlight {
    begun: Begun,
    batches: Vec<(BatchNumber, u64)>,
    latency: Duration,
    ready: bool,
    hangs: bool,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does all that can be done now, and reports it in order, outside the lock: whoever hears it may submit again.
    fn advance(self: &Arc<Self>) {
        if std::mem::replace(&mut self.lock().advancing, true) {
            return;
        }
        loop {
            let mut work = self.lock();
            if self.disk.lock().life != self.life {
                // Crashed, killed or closed: nobody hears of what was under way.
                work.waiting.clear();
                work.due.clear();
                (work.in_flight, work.raise, work.advancing) = (None, false, false);
                break;
            }
            if let Some(completed) = work.due.pop_front() {
                drop(work);
                if self.disk.ask(self.life, DiskStep::Complete).is_ok() {
                    (self.completed)(completed);
                }
                continue;
            }
            if !self.step(&mut work) {
                work.advancing = false;
                break;
            }
        }
        self.disk.announce();
    }

    /// The next thing that can be done, if there is one.
    fn step(self: &Arc<Self>, work: &mut Work) -> bool {
        if let Some(in_flight) = work.in_flight.take_if(|in_flight| in_flight.ready) {
            self.finish(work, in_flight);
            return true;
        }
        if work.in_flight.is_some() {
            return false;
        }
        if let Some(cause) = &work.dead {
            let closed = |batch_number| Completed { batch_number, result: Err(StoreError::Closed(cause.clone())) };
            work.due.extend(work.waiting.drain(..).map(|(batch_number, _)| closed(batch_number)));
            if !work.due.is_empty() {
                return true;
            }
        } else if std::mem::replace(&mut work.raise, false) {
            if let Err(error) = caught(|| work.committer.raise_index()) {
                work.die(&error);
            }
            return true;
        } else if !work.waiting.is_empty() {
            self.begin(work);
            return true;
        }
        if work.closing {
            self.close(work);
        }
        false
    }

    /// Takes up what waits, as one.
    fn begin(self: &Arc<Self>, work: &mut Work) {
        let (mut taken, mut batches, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < MAX_COMMIT_BYTES
            && let Some((batch_number, batch)) = work.waiting.pop_front()
        {
            let size: usize = batch.writes.iter().flat_map(|write| &write.entries).map(record::entry_len).sum();
            bytes += size;
            batches.push((batch_number, size as u64));
            taken.push(batch);
        }
        let begun = caught(|| {
            let begun = work.committer.begin(taken)?;
            if begun.sync {
                work.committer.flush()?;
            }
            Ok(begun)
        });
        let begun = match begun {
            Ok(begun) => begun,
            Err(error) => return work.end(&batches, Err(error), Duration::ZERO),
        };
        let latency = if begun.sync {
            let decide = self.disk.lock().decide.clone();
            decide.latency(bytes as u64)
        } else {
            Latency::After(Duration::ZERO)
        };
        let mut in_flight = InFlight { begun, batches, latency: Duration::ZERO, ready: false, hangs: false };
        match latency {
            Latency::After(Duration::ZERO) => in_flight.ready = true,
            Latency::After(latency) => {
                in_flight.latency = latency;
                in_flight.ready = work.closing;
                let (running, first) = (self.clone(), in_flight.batches[0].0);
                if !in_flight.ready {
                    spawn_local(async move {
                        sleep(latency).await;
                        running.go_on(Some(first));
                    });
                }
            }
            Latency::Hang => {
                in_flight.hangs = true;
                let mut disk = self.disk.lock();
                disk.hung = Some(self.clone());
                disk.counters.hung += 1;
            }
        }
        work.in_flight = Some(in_flight);
    }

    /// The commit in flight, if it is the one that begins with `first`, may end.
    pub(super) fn go_on(self: &Arc<Self>, first: Option<BatchNumber>) {
        let mut work = self.lock();
        let due = |in_flight: &&mut InFlight| first.is_none_or(|first| in_flight.batches[0].0 == first);
        if let Some(in_flight) = work.in_flight.as_mut().filter(due) {
            (in_flight.ready, in_flight.hangs) = (true, false);
        }
        drop(work);
        self.advance();
    }

    fn finish(self: &Arc<Self>, work: &mut Work, in_flight: InFlight) {
        let InFlight { begun, batches, latency, .. } = in_flight;
        let result = caught(|| work.committer.finish(begun));
        work.end(&batches, result, latency);
        let Stale { bytes, commits } = work.committer.stale;
        if bytes >= WATERMARK_BYTES || commits >= WATERMARK_COMMITS {
            work.raise = true;
        } else if commits > 0 {
            self.wait_for_quiet(work);
        }
    }

    /// The watermark's index follows after a quiet, where there is a clock to measure one.
    fn wait_for_quiet(self: &Arc<Self>, work: &mut Work) {
        if work.closing || Handle::try_current().is_err() {
            return;
        }
        work.quiet_since = Some(Instant::now());
        if std::mem::replace(&mut work.quiet_timer, true) {
            return;
        }
        let running = Arc::downgrade(self);
        spawn_local(async move {
            while let Some(until) = quiet_until(&running) {
                sleep_until(until).await;
            }
        });
    }

    fn close(&self, work: &mut Work) {
        if work.dead.is_none()
            && let Err(error) = caught(|| work.committer.raise_index())
        {
            tracing::warn!(%error, "the store did not close in order");
        }
        // A power cut in the middle of it has closed it already.
        drop(work.held.take());
        drop(work.committer.take("it was closed"));
    }
}

/// Until when a store must be quiet; once it was, the watermark follows, and `None`.
fn quiet_until(running: &Weak<Running>) -> Option<Instant> {
    let running = running.upgrade()?;
    let mut work = running.lock();
    let until = work.quiet_since? + WATERMARK_QUIET;
    if Instant::now() < until {
        return Some(until);
    }
    (work.quiet_since, work.quiet_timer) = (None, false);
    work.raise = work.committer.stale.commits > 0;
    drop(work);
    running.advance();
    None
}

impl Work {
    /// How a commit ended, for everyone in it.
    fn end(&mut self, batches: &[(BatchNumber, u64)], result: Result<(), StoreError>, latency: Duration) {
        for &(batch_number, bytes) in batches {
            let written = Written { bytes, took: latency, sync: latency };
            self.due.push_back(Completed { batch_number, result: result.clone().map(|()| written) });
        }
        if let Err(error) = result {
            self.die(&error);
        }
    }

    fn die(&mut self, error: &StoreError) {
        let cause = error.to_string();
        self.held = self.committer.take(&cause);
        self.dead = Some(cause);
    }
}
