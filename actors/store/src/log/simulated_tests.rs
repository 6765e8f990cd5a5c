//! Tests of the simulated disk, and with it of the order of steps that every disk sees: the power goes before each
//! single step of a run, and the node that comes back must hold all that was reported.

use std::{
    ops::RangeInclusive,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use actorum_core::wire::{EntryKind, Snapshot};
use tokio::{
    runtime::Builder,
    task::LocalSet,
    time::{Instant, sleep},
};

use super::{running::WATERMARK_QUIET, *};
use crate::{log::conformance, simulated::Latency};

const GROUP: GroupId = GroupId::FIRST;

/// Interferes once, at the `nth` step of a kind or of all, and keeps every commit waiting for `latency`.
struct Script {
    steps: Mutex<Vec<DiskStep>>,
    nth: AtomicU64,
    only: Mutex<Option<DiskStep>>,
    answer: Mutex<Decision>,
    latency: Mutex<Latency>,
    gone: AtomicU64,
}

impl Script {
    fn new() -> Arc<Script> {
        Arc::new(Script {
            steps: Mutex::default(),
            nth: AtomicU64::new(u64::MAX),
            only: Mutex::default(),
            answer: Mutex::new(Decision::CutPower),
            latency: Mutex::new(Latency::After(Duration::ZERO)),
            gone: AtomicU64::new(0),
        })
    }

    /// From now on: before the `nth` step from here, counted from zero.
    fn at(&self, nth: u64, only: Option<DiskStep>, answer: Decision) {
        *self.only.lock().unwrap() = only;
        *self.answer.lock().unwrap() = answer;
        self.nth.store(nth, Ordering::SeqCst);
    }

    fn let_be(&self) {
        self.nth.store(u64::MAX, Ordering::SeqCst);
    }

    fn latency(&self, latency: Latency) {
        *self.latency.lock().unwrap() = latency;
    }

    fn steps(&self) -> Vec<DiskStep> {
        std::mem::take(&mut self.steps.lock().unwrap())
    }
}

impl Decide<DiskStep> for Script {
    fn step(&self, step: DiskStep) -> Decision {
        self.steps.lock().unwrap().push(step);
        if self.only.lock().unwrap().is_some_and(|only| only != step) {
            return Decision::Go;
        }
        match self.nth.load(Ordering::SeqCst) {
            u64::MAX => Decision::Go,
            0 => {
                self.let_be();
                self.answer.lock().unwrap().clone()
            }
            left => {
                self.nth.store(left - 1, Ordering::SeqCst);
                Decision::Go
            }
        }
    }

    fn latency(&self, _bytes: u64) -> Latency {
        *self.latency.lock().unwrap()
    }

    fn power_is_gone(&self) {
        self.gone.fetch_add(1, Ordering::SeqCst);
    }
}

fn entry(index: u64, term: u64) -> Entry {
    let data = Bytes::from(vec![index as u8 ^ term as u8; 20]);
    Entry { kind: EntryKind::Normal, term, index, data, context: Bytes::new() }
}

fn entries(range: RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term)).collect()
}

fn append(range: RangeInclusive<u64>, term: u64) -> Write {
    Write { entries: entries(range, term), ..Write::default() }
}

fn compact(snapshots: &[(u64, u64)], up_to: u64, write: Write) -> Write {
    let snapshot = |&(index, term): &(u64, u64)| Snapshot { index, term, ..Snapshot::default() };
    Write { compact: Some(Compact { snapshots: snapshots.iter().map(snapshot).collect(), up_to }), ..write }
}

fn vote(term: u64, vote: NodeId, commit: u64) -> Write {
    Write { hard_state: Some(HardState { term, vote, commit }), ..Write::default() }
}

/// What a node holds, as the plainest possible model of what was written to it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    compacted: (u64, u64),
    snapshots: Vec<(u64, u64)>,
    entries: Vec<Entry>,
    state: HardState,
}

impl Model {
    fn apply(&mut self, write: &Write) {
        if let Some(snapshot) = &write.snapshot {
            self.compacted = (snapshot.index, snapshot.term);
            self.snapshots = vec![self.compacted];
            self.entries.clear();
        }
        if let Some(first) = write.entries.first() {
            self.entries.truncate((first.index - self.compacted.0 - 1) as usize);
            self.entries.extend(write.entries.iter().cloned());
        }
        self.state = write.hard_state.unwrap_or(self.state);
        if let Some(Compact { snapshots, up_to }) = &write.compact {
            self.snapshots = snapshots.iter().map(|snapshot| (snapshot.index, snapshot.term)).collect();
            for gone in self.entries.drain(..(up_to - self.compacted.0) as usize) {
                self.compacted = (gone.index, gone.term);
            }
        }
    }

    fn term_at(&self, index: u64) -> u64 {
        let nth = (index - self.compacted.0).checked_sub(1);
        nth.map_or(self.compacted.1, |nth| self.entries[nth as usize].term)
    }

    /// As a disk foretells it: of the snapshots the newest.
    fn told(&self) -> Model {
        let mut told = self.clone();
        told.snapshots.drain(..told.snapshots.len().saturating_sub(1));
        told
    }

    /// Without what a store may keep longer than it must.
    fn cut_to(&self, compacted: (u64, u64)) -> Model {
        let mut cut = self.clone();
        let gone = (compacted.0.saturating_sub(self.compacted.0) as usize).min(cut.entries.len());
        for gone in cut.entries.drain(..gone) {
            cut.compacted = (gone.index, gone.term);
        }
        cut
    }

    /// What an open store holds, read back entry for entry.
    fn of(store: &dyn LogStore) -> Model {
        let found = store.recover(GROUP).unwrap();
        let snapshots = found.snapshots.iter().map(|snapshot| (snapshot.index, snapshot.term)).collect();
        let compacted = found.terms.first().copied().unwrap_or_default();
        let entries = store.reader().entries(GROUP, compacted.0 + 1, found.last_index + 1, usize::MAX).unwrap();
        Model { compacted, snapshots, entries, state: found.hard_state }
    }

    /// What the disk says would be recovered; of the snapshots it tells the newest.
    fn foretold(disk: &SimulatedDisk) -> Model {
        let Durable { hard_state, compacted, snapshot, last_index } = disk.durable(GROUP);
        if compacted.0 > 0 {
            assert_eq!(disk.durable_term(GROUP, compacted.0), Some(compacted.1));
        }
        let entries = (compacted.0 + 1..=last_index).map(|index| {
            let entry = disk.durable_entry(GROUP, index).unwrap();
            assert_eq!(disk.durable_term(GROUP, index), Some(entry.term));
            entry
        });
        let snapshots = Some(snapshot).filter(|snapshot| snapshot.0 > 0);
        Model { compacted, snapshots: snapshots.into_iter().collect(), entries: entries.collect(), state: hard_state }
    }
}

/// A run with everything that moves the watermark: votes, appends, quiets, truncations below it, snapshots; and with
/// cuts of the log's beginning, each at the end of a block, so that it goes exactly so far.
fn run() -> Vec<(Write, bool)> {
    let snapshot = |index, term| Some(Snapshot { index, term, ..Snapshot::default() });
    vec![
        (Write { snapshot: snapshot(1, 1), ..vote(1, 0, 1) }, false),
        (append(2..=5, 1), false),
        (append(6..=9, 1), true),
        (vote(2, 3, 3), false),
        (append(4..=4, 2), false),
        (append(5..=8, 2), true),
        (append(9..=9, 2), false),
        (vote(3, 1, 5), true),
        (append(6..=6, 3), true),
        (append(7..=12, 3), false),
        (compact(&[(4, 2), (5, 2)], 4, Write::default()), true),
        (append(8..=9, 3), false),
        (compact(&[(5, 2)], 5, append(10..=11, 3)), true),
        (append(6..=6, 4), true),
        (Write { snapshot: snapshot(20, 4), ..vote(4, 0, 20) }, true),
        (append(21..=23, 4), true),
        (Write { snapshot: snapshot(15, 5), ..vote(5, 2, 15) }, false),
        (append(16..=18, 5), true),
        (append(17..=17, 6), false),
        (compact(&[(16, 5)], 16, vote(6, 1, 16)), true),
        (append(17..=18, 7), false),
    ]
}

impl SimulatedDisk {
    /// The watermark's pages, and as they will be if the write under way is done in full.
    fn pages(&self) -> (Vec<u8>, Vec<u8>) {
        let disk = self.lock();
        let mut after = disk.pages.clone();
        if let Some((at, page)) = &disk.under_way {
            after[*at..at + page.len()].copy_from_slice(page);
        }
        (disk.pages.clone(), after)
    }
}

fn paused<F: Future<Output = ()>>(story: F) {
    let paused = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&paused, story);
}

struct Node {
    disk: SimulatedDisk,
    script: Arc<Script>,
    running: Option<(Box<dyn LogAppender>, Receiver<Completed>)>,
}

impl Node {
    fn new() -> Node {
        let script = Script::new();
        Node { disk: SimulatedDisk::new(script.clone()), script, running: None }
    }

    fn open(&self) -> Result<Box<dyn LogStore>, OpenError> {
        self.disk.open(1, Incarnation(7))
    }

    fn start(&mut self) -> Result<(), OpenError> {
        let (heard, completed) = channel();
        let store = self.open()?;
        self.running = Some((store.start(Arc::new(move |c| drop(heard.send(c)))), completed));
        Ok(())
    }

    fn submit(&mut self, write: Write) {
        self.running.as_mut().unwrap().0.submit(Batch { writes: vec![write], sync: true });
    }

    /// What was reported meanwhile.
    fn completed(&self) -> Vec<Result<Written, StoreError>> {
        self.running.as_ref().unwrap().1.try_iter().map(|completed| completed.result).collect()
    }

    /// Writes and hears that it is durable, without any time passing.
    fn write(&mut self, write: Write) {
        self.submit(write);
        assert!(matches!(self.completed()[..], [Ok(_)]), "the disk is instant");
    }

    fn close(&mut self) {
        self.running = None;
    }

    /// Through the whole run, until it ends or the power goes. Returns the states it passed, the first `reported` of
    /// which were reported, beginning with the empty one.
    async fn carry_out(&mut self) -> (Vec<Model>, usize) {
        let mut models = vec![Model::default()];
        let mut reported = 1;
        if self.start().is_err() {
            return (models, reported);
        }
        for (write, quiet) in run() {
            let mut model = models.last().unwrap().clone();
            model.apply(&write);
            models.push(model);
            self.submit(write);
            match &self.completed()[..] {
                [] => break,
                [Ok(_)] => reported += 1,
                other => panic!("{other:?}"),
            }
            assert_eq!(
                Model::foretold(&self.disk),
                models[reported - 1].told(),
                "what is durable is what was reported"
            );
            if quiet {
                sleep(2 * WATERMARK_QUIET).await;
            }
        }
        self.close();
        (models, reported)
    }
}

#[test]
fn the_simulated_disk_passes_the_conformance_suite() {
    conformance::conformance(|| {
        let disk = SimulatedDisk::new(Arc::new(()));
        move || disk.open(1, Incarnation(7)).unwrap()
    });
}

#[test]
fn the_run_takes_every_kind_of_step() {
    paused(async {
        let mut node = Node::new();
        let (models, reported) = node.carry_out().await;
        assert_eq!(reported, models.len());
        let steps = node.script.steps();
        for step in [
            DiskStep::Lower,
            DiskStep::Apply,
            DiskStep::Flush,
            DiskStep::Sync,
            DiskStep::Raise,
            DiskStep::Complete,
            DiskStep::Read,
        ] {
            assert!(steps.iter().filter(|taken| **taken == step).count() > 0, "{step:?}");
        }
        // Raised after each of the seven quiets that found something to raise, besides the votes.
        let counters = node.disk.counters();
        assert!(counters.raised >= 10 && counters.lowered >= 3, "{counters:?}");
        assert_eq!(Model::of(&*node.open().unwrap()), *models.last().unwrap());
    });
}

/// Before each single step of the run, with each kind of loss.
#[test]
fn whenever_the_power_goes_what_was_reported_is_there() {
    paused(async {
        let mut whole = Node::new();
        whole.carry_out().await;
        let count = whole.script.steps().len() as u64;
        let (mut cuts, mut torn_pages, mut lost, mut kept) = (0, 0, 0, 0);
        for nth in 0..count {
            for (rng, loss) in [Loss::All, Loss::Prefix, Loss::Subset, Loss::Subset].into_iter().enumerate() {
                let mut node = Node::new();
                node.script.at(nth, None, Decision::CutPower);
                let (models, reported) = node.carry_out().await;
                let at = format!("before step {nth}, {:?}, {loss:?}", node.script.steps().last());
                assert_eq!(node.script.gone.load(Ordering::SeqCst), 1, "{at}");
                let pages = node.disk.pages();
                node.disk.crash(loss, nth.wrapping_mul(31) + rng as u64);
                // Whatever is left of the write to the watermark that was under way: the marks before it, or after it.
                let marks = watermark::inspect(&node.disk.pages().0).ok();
                let before_or_after = [&pages.0, &pages.1].map(|pages| watermark::inspect(pages).ok());
                let same = |left: &Option<(_, _)>| left.as_ref().map(|l| &l.0) == marks.as_ref().map(|m| &m.0);
                assert!(before_or_after.iter().any(same), "{at}: {marks:?} instead of {before_or_after:?}");
                let store = node.open().unwrap_or_else(|error| panic!("{at}: {error}"));
                let found = Model::of(&*store);
                // Nothing that was reported is gone; what was under way is there or not, as a whole.
                let next = models.get(reported).unwrap_or(&models[reported - 1]);
                assert!(found == models[reported - 1] || found == *next, "{at}: {found:?}");
                if models.len() > 1 {
                    assert_eq!(store.identity().boot, 2, "{at}");
                }
                // And it works on.
                drop(store);
                node.start().unwrap();
                node.write(vote(9, 1, found.state.commit));
                let counters = node.disk.counters();
                cuts += counters.power_cuts;
                torn_pages += counters.torn_pages;
                lost += counters.lost_batches;
                kept += counters.kept_batches;
            }
        }
        println!("{count} steps, {cuts} cuts, {torn_pages} torn pages, {lost} batches lost, {kept} kept");
        assert!(cuts == 4 * count && torn_pages > 20 && lost > 20 && kept > 20);
    });
}

/// The process is killed before each step, opens again, answers on what it found, and then the power goes.
#[test]
fn what_a_killed_process_left_is_durable_once_it_was_found() {
    paused(async {
        let mut whole = Node::new();
        whole.carry_out().await;
        let count = whole.script.steps().len() as u64;
        let mut kept = 0;
        for nth in 0..count {
            let mut node = Node::new();
            node.script.at(nth, None, Decision::CutPower);
            let (models, reported) = node.carry_out().await;
            node.disk.kill();
            kept += node.disk.counters().kept_batches;
            let found = Model::of(&*node.open().unwrap());
            let next = models.get(reported).unwrap_or(&models[reported - 1]);
            assert!(found == models[reported - 1] || found == *next, "before step {nth}: {found:?}");
            // A vote or an entry that is found is granted or acknowledged again, without a write.
            assert_eq!(Model::foretold(&node.disk), found.told(), "before step {nth}");
            node.disk.crash(Loss::All, 0);
            assert_eq!(Model::of(&*node.open().unwrap()), found, "before step {nth}");
        }
        assert!(kept > 10, "{kept}");
    });
}

/// The vote that was found after a kill is in the watermark too: a disk that forgets it is found out.
#[test]
fn a_vote_found_after_a_kill_is_not_forgotten_in_silence() {
    let mut node = Node::new();
    node.start().unwrap();
    node.write(vote(1, 0, 0));
    let older = node.disk.image();
    node.script.at(0, Some(DiskStep::Raise), Decision::CutPower);
    node.submit(vote(1, 2, 0));
    assert!(node.completed().is_empty());
    node.close();
    node.disk.kill();
    assert_eq!(node.open().unwrap().recover(GROUP).unwrap().hard_state.vote, 2);
    node.disk.swap_for(older);
    let refusal = node.open().err().expect("it forgot its vote").to_string();
    assert!(refusal.contains("vote 0 in term 1"), "{refusal}");
}

#[test]
fn a_torn_batch_is_refused_by_name() {
    let mut torn = 0;
    for rng in 0..40 {
        let mut node = Node::new();
        node.start().unwrap();
        node.write(append(1..=3, 1));
        node.script.at(0, Some(DiskStep::Sync), Decision::CutPower);
        node.submit(Write { entries: entries(3..=6, 2), ..vote(2, 1, 2) });
        node.close();
        node.disk.crash(Loss::Torn, rng);
        torn += node.disk.counters().torn_values;
        let refusal = node.open().err().expect("a torn value").to_string();
        assert!(refusal.contains("is damaged") && refusal.contains("group 0"), "{refusal}");
        assert_eq!(node.open().err().unwrap().to_string(), refusal, "for good");
    }
    assert_eq!(torn, 40);
}

#[test]
fn an_older_copy_is_refused_by_name() {
    paused(async {
        // Each later step of the run is one that the watermark knows of, once it was quiet.
        let mut node = Node::new();
        node.start().unwrap();
        let mut images = Vec::new();
        for (write, _) in run() {
            images.push(node.disk.image());
            node.write(write);
            sleep(2 * WATERMARK_QUIET).await;
        }
        node.close();
        let newest = node.disk.image();
        for (nth, image) in images.into_iter().enumerate() {
            node.disk.swap_for(image);
            let refusal = node.open().err().unwrap_or_else(|| panic!("image {nth} opens"));
            assert!(matches!(refusal, OpenError::RolledBack { .. }), "{nth}: {refusal}");
        }
        node.disk.swap_for(newest);
        node.open().unwrap();
        assert_eq!(node.disk.counters().swapped, run().len() as u64 + 1);
    });
}

#[test]
fn a_wiped_disk_is_another_incarnation_and_a_foreign_one_is_refused() {
    let mut node = Node::new();
    node.start().unwrap();
    node.write(append(1..=3, 1));
    assert!(matches!(node.open(), Err(OpenError::Locked { .. })));
    node.close();
    assert!(matches!(node.disk.open(2, Incarnation(1)), Err(OpenError::Foreign { found: 1, expected: 2, .. })));
    node.disk.wipe();
    assert_eq!(node.disk.durable(GROUP), Durable::default());
    let store = node.disk.open(1, Incarnation(8)).unwrap();
    assert_eq!(store.identity(), StoreIdentity { id: 1, incarnation: Incarnation(8), boot: 1 });
    assert_eq!(store.recover(GROUP).unwrap(), Recovered::default());
}

#[test]
fn a_flipped_bit_is_named_or_harmless() {
    paused(async {
        let (mut named, mut intact) = (0, 0);
        for rng in 0..400 {
            let mut node = Node::new();
            let (models, _) = node.carry_out().await;
            let what = node.disk.flip_bit(rng).unwrap();
            match node.open() {
                Ok(store) => {
                    assert!(what.contains("watermark"), "{what} went unnoticed");
                    assert_eq!(Model::of(&*store), *models.last().unwrap(), "{what}");
                    intact += 1;
                }
                Err(OpenError::Damaged { what: name, .. }) => {
                    assert!(what.contains(&name), "{what}, {name}");
                    named += 1;
                }
                Err(other) => panic!("{what}: {other}"),
            }
        }
        println!("{named} named, {intact} intact");
        assert!(named > 200 && intact > 10);
    });
}

#[test]
fn a_failure_is_final_until_the_next_opening() {
    for step in [DiskStep::Lower, DiskStep::Apply, DiskStep::Flush, DiskStep::Sync, DiskStep::Raise] {
        let mut node = Node::new();
        node.start().unwrap();
        node.write(append(1..=3, 1));
        node.close(); // raises the index, so that a cut lowers it
        node.start().unwrap();
        node.script.at(0, Some(step), Decision::Fail(io::ErrorKind::StorageFull, "no space left".to_owned()));
        node.submit(Write { entries: entries(2..=2, 2), ..vote(2, 1, 1) });
        node.submit(append(3..=3, 2));
        let results = node.completed();
        let [Err(StoreError::Io { error, .. }), Err(StoreError::Closed(_))] = &results[..] else {
            panic!("{step:?}: {results:?}")
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{step:?}");
        assert_eq!(node.disk.counters().failed, 1);
        assert!(matches!(node.open(), Err(OpenError::Locked { .. })), "until its appender goes");
        node.close();
        let last = node.open().unwrap().recover(GROUP).unwrap().last_index;
        assert!(last == 3 || last == 2, "{step:?}: {last}");
    }
}

#[test]
fn a_read_that_fails_says_so() {
    let mut node = Node::new();
    let store = node.open().unwrap();
    let reader = store.reader();
    let (heard, _completed) = channel();
    node.running = Some((store.start(Arc::new(move |c| drop(heard.send(c)))), channel().1));
    node.submit(append(1..=3, 1));
    node.script.at(0, Some(DiskStep::Read), Decision::Fail(io::ErrorKind::Other, "bad sector".to_owned()));
    assert!(reader.entries(GROUP, 1, 3, usize::MAX).unwrap_err().to_string().contains("bad sector"));
    assert_eq!(reader.entries(GROUP, 1, 4, usize::MAX).unwrap(), entries(1..=3, 1));
    node.disk.crash(Loss::All, 0);
    assert!(matches!(reader.entries(GROUP, 1, 3, usize::MAX), Err(StoreError::Closed(_))));
    node.script.at(0, Some(DiskStep::Read), Decision::Fail(io::ErrorKind::Other, "bad sector".to_owned()));
    assert!(matches!(node.open(), Err(OpenError::Io { .. })));
    node.open().unwrap();
}

#[test]
fn latency_is_virtual_time_and_what_waits_goes_together() {
    paused(async {
        let mut node = Node::new();
        node.start().unwrap();
        node.script.latency(Latency::After(Duration::from_millis(5)));
        let started = Instant::now();
        for index in 1..=4 {
            node.submit(append(index..=index, 1));
        }
        assert!(node.completed().is_empty());
        assert_eq!(node.disk.durable(GROUP).last_index, 0, "it is with the kernel, and not durable");
        sleep(Duration::from_millis(6)).await;
        let written = node.completed();
        assert!(matches!(&written[..], [Ok(written)] if written.sync == Duration::from_millis(5)), "{written:?}");
        assert_eq!(node.disk.durable(GROUP).last_index, 1);
        sleep(Duration::from_millis(5)).await;
        assert_eq!((node.completed().len(), node.disk.durable(GROUP).last_index), (3, 4));
        assert_eq!(started.elapsed(), Duration::from_millis(11));

        // Crashed while one is under way: nobody hears of it, now or later.
        node.submit(append(5..=5, 1));
        node.disk.crash(Loss::All, 0);
        node.submit(append(6..=6, 1));
        sleep(Duration::from_secs(1)).await;
        assert!(node.completed().is_empty());
        let dead = node.running.take();
        assert_eq!(node.open().unwrap().recover(GROUP).unwrap().last_index, 4);
        // Killed: what the kernel has stays.
        node.start().unwrap();
        node.submit(append(5..=5, 1));
        node.disk.kill();
        sleep(Duration::from_secs(1)).await;
        assert!(node.completed().is_empty());
        node.start().unwrap();
        drop(dead); // harmless: another life has the disk
        assert_eq!(node.disk.durable(GROUP).last_index, 5);
        node.submit(append(6..=6, 1));
        sleep(Duration::from_millis(6)).await;
        assert_eq!(node.completed().len(), 1);
        // Dropped with work in hand: it is done first.
        node.submit(append(7..=7, 1));
        node.submit(append(8..=8, 1));
        let (appender, completed) = node.running.take().unwrap();
        drop(appender);
        assert_eq!(completed.try_iter().count(), 2);
        assert_eq!(node.open().unwrap().recover(GROUP).unwrap().last_index, 8);
    });
}

#[test]
fn what_hangs_goes_on_when_it_is_released() {
    paused(async {
        let mut node = Node::new();
        node.start().unwrap();
        node.script.latency(Latency::Hang);
        node.submit(append(1..=1, 1));
        sleep(Duration::from_secs(60)).await;
        assert!(node.completed().is_empty() && node.disk.hangs());
        node.script.latency(Latency::After(Duration::ZERO));
        node.submit(append(2..=2, 1));
        assert!(node.completed().is_empty(), "in the order of submission");
        node.disk.release();
        assert_eq!(node.completed().len(), 2);
        // Its appender goes while it hangs: the disk stays taken until it is released.
        node.script.latency(Latency::Hang);
        node.submit(append(3..=3, 1));
        node.close();
        assert!(matches!(node.open(), Err(OpenError::Locked { .. })));
        node.disk.release();
        assert_eq!(node.open().unwrap().recover(GROUP).unwrap().last_index, 3);
        // Or until the process ends.
        node.start().unwrap();
        node.submit(append(4..=4, 1));
        node.disk.crash(Loss::All, 0);
        node.disk.release();
        assert!(node.completed().is_empty());
        assert_eq!(node.open().unwrap().recover(GROUP).unwrap().last_index, 3);
        assert_eq!(node.disk.counters().hung, 3);
    });
}

/// What it costs: for the simulator, which has thousands of such runs to do.
#[test]
fn three_thousand_appends_cost_little() {
    paused(async {
        let started = std::time::Instant::now();
        for _ in 0..3 {
            let mut node = Node::new();
            node.script.latency(Latency::After(Duration::from_millis(1)));
            node.start().unwrap();
            for index in 1..=1000 {
                node.submit(append(index..=index, 1));
                sleep(Duration::from_millis(25)).await;
                assert_eq!(node.disk.durable(GROUP).last_index, index);
            }
        }
        println!("3000 appends in {:?}", started.elapsed());
    });
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A write that Raft could make to what `model` holds.
fn draw(rng: &mut Rng, model: &Model) -> (Write, bool) {
    let mut state = model.state;
    let last = model.compacted.0 + model.entries.len() as u64;
    let newest = model.snapshots.last().map_or(0, |newest| newest.0);
    let commit_alone = rng.below(5) == 0;
    let mut write = Write::default();
    if newest == 0 || rng.below(25) == 0 {
        let index = last.max(1) + rng.below(4);
        (state.term, state.vote, state.commit) = (state.term + 1, 0, index);
        write.snapshot = Some(Snapshot { index, term: state.term, ..Snapshot::default() });
    } else if commit_alone {
        state.commit += rng.below(last - state.commit + 1);
    } else {
        if rng.below(4) == 0 {
            (state.term, state.vote) = (state.term + 1, rng.below(4));
        }
        let first = match rng.below(4) {
            // Raft never cuts what is committed.
            0 => state.commit.max(newest) + 1 + rng.below(last - state.commit.max(newest) + 1),
            _ => last + 1,
        };
        if first <= last && state.term == model.state.term {
            (state.term, state.vote) = (state.term + 1, 0);
        }
        write.entries = entries(first..=first + rng.below(4), state.term);
    }
    if write.snapshot.is_none() && state.commit >= newest && rng.below(6) == 0 {
        let newest = newest + rng.below(state.commit - newest + 1);
        let older = model.compacted.0 + rng.below(newest - model.compacted.0 + 1);
        let mut after = model.clone();
        after.apply(&write);
        let kept: BTreeMap<u64, u64> = [older, newest].map(|index| (index, after.term_at(index))).into();
        let kept: Vec<_> = kept.into_iter().collect();
        let up_to = model.compacted.0 + rng.below(older - model.compacted.0 + 1);
        write = compact(&kept, up_to, write);
    }
    write.hard_state = (state != model.state || rng.below(3) == 0).then_some(state);
    let sync = !commit_alone || state.term != model.state.term || write.compact.is_some();
    (write, sync)
}

/// Lives of random length under random latencies, each ended at a random moment by a random accident.
#[test]
fn random_lives_end_at_random_moments_and_lose_nothing_reported() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now);
    println!("SEED={seed}");
    paused(async move {
        let mut rng = Rng(seed);
        let mut node = Node::new();
        let (mut held, mut ends, mut compacted) = (Model::default(), [0; 5], 0);
        for life in 0..600 {
            node.start().unwrap_or_else(|error| panic!("SEED={seed}, life {life}: {error}"));
            let end = rng.below(5);
            ends[end as usize] += 1;
            if end == 0 {
                node.script.at(rng.below(60), None, Decision::CutPower);
            }
            // What was submitted, one state per batch; and how many of them were reported.
            let (mut models, mut synced, mut reported) = (vec![held.clone()], vec![true], 0);
            for _ in 0..1 + rng.below(20) {
                node.script.latency(match rng.below(40) {
                    0 => Latency::Hang,
                    1..=20 => Latency::After(Duration::from_millis(rng.below(9))),
                    _ => Latency::After(Duration::ZERO),
                });
                for _ in 0..1 + rng.below(3) {
                    let mut model = models.last().unwrap().clone();
                    let (write, sync) = draw(&mut rng, &model);
                    model.apply(&write);
                    models.push(model);
                    synced.push(sync);
                    node.running.as_mut().unwrap().0.submit(Batch { writes: vec![write], sync });
                }
                match rng.below(12) {
                    0 => sleep(2 * WATERMARK_QUIET).await,
                    n => sleep(Duration::from_millis(n / 2)).await,
                }
                if rng.below(8) == 0 {
                    node.disk.release();
                }
            }
            reported +=
                node.completed().iter().map(|result| assert!(result.is_ok(), "SEED={seed}: {result:?}")).count();
            match end {
                1 => node.disk.crash(Loss::All, 0),
                2 => node.disk.crash(Loss::Subset, rng.next()),
                3 => node.disk.kill(),
                _ if node.disk.is_open() => {
                    node.script.latency(Latency::After(Duration::ZERO));
                    node.disk.release();
                    let (appender, completed) = node.running.take().unwrap();
                    drop(appender);
                    reported += completed.try_iter().count();
                }
                _ => {}
            }
            node.close();
            node.script.let_be();
            if !node.disk.is_open() && node.script.gone.swap(0, Ordering::SeqCst) > 0 {
                match rng.below(4) {
                    0 => node.disk.kill(),
                    1 => node.disk.crash(Loss::Prefix, rng.next()),
                    2 => node.disk.crash(Loss::Subset, rng.next()),
                    _ => node.disk.crash(Loss::All, 0),
                }
            }
            let store = node.open().unwrap_or_else(|error| panic!("SEED={seed}, life {life}, end {end}: {error}"));
            let found = Model::of(&*store);
            // A commit index that nothing waits for may be older than what stands beside it.
            let promised = |model: &Model| {
                let HardState { term, vote, .. } = model.state;
                (model.compacted, model.snapshots.clone(), model.entries.clone(), term, vote)
            };
            // Up to the last report on which a promise stood, and as far as was submitted.
            let surely = (0..=reported).rev().find(|nth| synced[*nth]).unwrap_or(0);
            let whole =
                models[surely..].iter().any(|model| promised(model) == promised(&found.cut_to(model.compacted)));
            assert!(whole, "SEED={seed}, life {life}, end {end}: {found:?} after {reported} of {}", models.len() - 1);
            assert!(found.state.commit >= models[surely].state.commit, "SEED={seed}, life {life}: {found:?}");
            assert_eq!(Model::foretold(&node.disk), found.told(), "SEED={seed}, life {life}");
            compacted += u64::from(found.compacted.0 > held.compacted.0 && found.snapshots.len() > 1);
            held = found;
        }
        let counters = node.disk.counters();
        println!("ends {ends:?}, {compacted} lives cut the log's beginning off, {counters:?}");
        assert!(compacted > 20);
        assert!(counters.power_cuts > 20 && counters.lost_batches > 50 && counters.kept_batches > 20);
        assert!(counters.hung > 50 && counters.lowered > 50);
    });
}
