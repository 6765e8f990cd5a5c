//! What the tests of this crate share: a store that completes when told, and a fake core. What is pure is in
//! `crate::testkit`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use actix::prelude::*;
use actorum_core::{
    log::store::{LogReader, Recovered, StoreError},
    testkit::TestLog,
    wire::Entry,
};
use actorum_machine::ids::{GroupId, Incarnation};
use actorum_store::{
    log::store::{
        Batch, BatchNumber, Completed, Completions, LogAppender, LogStore, Looked, Probe, Space, StoreIdentity, Written,
    },
    snapshot::SnapshotStore,
};
use tokio::sync::mpsc;

use crate::message::{
    AppliedTo, CapturedState, DiskReport, Failed, MarkEvent, Persisted, SystemChanged, WriteSnapshot,
};

/// A store in memory whose batches complete when the test says so.
#[derive(Clone, Default)]
pub(crate) struct TestStore {
    log: TestLog,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    submitted: VecDeque<(BatchNumber, Batch)>,
    batch_numbers: u64,
    completions: Option<Completions>,
    dropped: bool,
    probes: VecDeque<Looked>,
    looks: VecDeque<Looked>,
}

impl TestStore {
    pub(crate) fn with_entries(entries: impl IntoIterator<Item = Entry>) -> TestStore {
        TestStore { log: TestLog::with_entries(entries), ..TestStore::default() }
    }

    /// These entries and no others.
    pub(crate) fn hold(&self, entries: impl IntoIterator<Item = Entry>) {
        self.log.hold(entries);
    }

    /// Batches handed over and not completed.
    pub(crate) fn submitted(&self) -> Vec<Batch> {
        self.inner.lock().unwrap().submitted.iter().map(|(_, batch)| batch.clone()).collect()
    }

    /// Probes handed over and not ended.
    pub(crate) fn probes(&self) -> usize {
        self.inner.lock().unwrap().probes.len()
    }

    /// Whether somebody waits to hear how much room there is.
    pub(crate) fn looks(&self) -> bool {
        !self.inner.lock().unwrap().looks.is_empty()
    }

    /// Ends the oldest probe or the oldest look for space, from a thread of its own.
    pub(crate) fn look(&self, probe: bool, found: Result<Space, StoreError>) {
        let mut inner = self.inner.lock().unwrap();
        let queue = if probe { &mut inner.probes } else { &mut inner.looks };
        let looked = queue.pop_front().expect("it was asked");
        drop(inner);
        std::thread::spawn(move || looked(found)).join().unwrap();
    }

    /// Whether the appender is gone.
    pub(crate) fn closed(&self) -> bool {
        self.inner.lock().unwrap().dropped
    }

    /// Completes the oldest batch, from a thread of the store's own as sled would.
    pub(crate) fn complete(&self, result: Result<Written, StoreError>) {
        let mut inner = self.inner.lock().unwrap();
        let (batch_number, _) = inner.submitted.pop_front().expect("a batch was submitted");
        let completions = inner.completions.clone().expect("the store was started");
        drop(inner);
        std::thread::spawn(move || completions(Completed { batch_number, result })).join().unwrap();
    }
}

impl LogStore for TestStore {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity { id: 1, incarnation: Incarnation(1), boot: 1 }
    }

    fn recover(&self, _group: GroupId) -> Result<Recovered, StoreError> {
        Ok(Recovered::default())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(self.clone())
    }

    fn snapshot_store(&self) -> Arc<SnapshotStore> {
        Arc::new(SnapshotStore::memory())
    }

    fn probe(&self) -> Option<Arc<dyn Probe>> {
        Some(Arc::new(self.clone()))
    }

    fn start(self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        self.inner.lock().unwrap().completions = Some(completed);
        Box::new(TestAppender(*self))
    }
}

impl Probe for TestStore {
    fn write(&self, looked: Looked) {
        self.inner.lock().unwrap().probes.push_back(looked);
    }

    fn space(&self, looked: Looked) {
        self.inner.lock().unwrap().looks.push_back(looked);
    }
}

impl LogReader for TestStore {
    fn entries(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        self.log.entries(group, from, to, max_bytes)
    }

    fn first_index(&self, group: GroupId) -> u64 {
        self.log.first_index(group)
    }

    fn disk_bytes(&self) -> u64 {
        self.log.disk_bytes()
    }
}

/// The writing half; marks the store closed when it goes.
struct TestAppender(TestStore);

impl LogAppender for TestAppender {
    fn submit(&mut self, batch: Batch) -> BatchNumber {
        let mut inner = self.0.inner.lock().unwrap();
        inner.batch_numbers += 1;
        let batch_number = BatchNumber(inner.batch_numbers);
        inner.submitted.push_back((batch_number, batch));
        batch_number
    }
}

impl Drop for TestAppender {
    fn drop(&mut self) {
        self.0.inner.lock().unwrap().dropped = true;
    }
}

/// What a fake core heard, in order.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Persisted(u64),
    AppliedTo(u64),
    Changed(u64, String),
    Disk(DiskReport),
    Mark(MarkEvent),
    Failed(String),
    Captured(Result<(u64, u64, Vec<u8>), String>),
}

/// Hears what the core and `RaftSystem` would.
pub(crate) struct FakeCore(pub mpsc::UnboundedSender<Heard>);

impl FakeCore {
    pub(crate) fn start_one() -> (Addr<FakeCore>, mpsc::UnboundedReceiver<Heard>) {
        let (sender, heard) = mpsc::unbounded_channel();
        (FakeCore(sender).start(), heard)
    }
}

impl Actor for FakeCore {
    type Context = Context<Self>;
}

impl Handler<Persisted> for FakeCore {
    type Result = ();
    fn handle(&mut self, Persisted { number, .. }: Persisted, _: &mut Context<Self>) {
        let _ = self.0.send(Heard::Persisted(number));
    }
}

impl Handler<DiskReport> for FakeCore {
    type Result = ();
    fn handle(&mut self, report: DiskReport, _: &mut Context<Self>) {
        let _ = self.0.send(Heard::Disk(report));
    }
}

impl Handler<AppliedTo> for FakeCore {
    type Result = ();
    fn handle(&mut self, AppliedTo { index }: AppliedTo, _: &mut Context<Self>) {
        let _ = self.0.send(Heard::AppliedTo(index));
    }
}

impl Handler<SystemChanged> for FakeCore {
    type Result = ();
    fn handle(&mut self, SystemChanged { index, state }: SystemChanged, _: &mut Context<Self>) {
        let _ = self.0.send(Heard::Changed(index, state.membership.to_string()));
    }
}

impl Handler<MarkEvent> for FakeCore {
    type Result = ();

    fn handle(&mut self, event: MarkEvent, _: &mut Context<Self>) {
        if event != MarkEvent::Replaced {
            let _ = self.0.send(Heard::Mark(event));
        }
    }
}

impl Handler<WriteSnapshot> for FakeCore {
    type Result = ();
    fn handle(&mut self, WriteSnapshot(captured): WriteSnapshot, _: &mut Context<Self>) {
        let captured = captured.map(|CapturedState { index, term, machine, .. }| {
            let mut bytes = Vec::new();
            machine.write_to(&mut bytes).map(|()| (index, term, bytes)).map_err(|error| error.to_string())
        });
        let _ = self.0.send(Heard::Captured(captured.flatten()));
    }
}

impl Handler<Failed> for FakeCore {
    type Result = ();
    fn handle(&mut self, Failed { cause, .. }: Failed, _: &mut Context<Self>) {
        let _ = self.0.send(Heard::Failed(cause));
    }
}
