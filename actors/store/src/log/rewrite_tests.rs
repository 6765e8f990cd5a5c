//! Tests of rewriting the log: at every step the directory is copied as a crash would leave it, or the step fails, and
//! what was reported must be there.

use std::{
    collections::VecDeque,
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, channel},
    },
};

use actorum_core::wire::{Entry, EntryKind, Snapshot};
use actorum_machine::ids::Incarnation;
use bytes::Bytes;

use super::*;
use crate::log::{
    commit::Shared,
    conformance, directory,
    engine::{self, Change},
    faulty::{Faults, RewriteStep},
    inspect::Inspection,
    recovery,
    sled::{OpenOptions, SledStore},
    store::*,
    watermark::{self, Watermark, WatermarkError},
    worker,
};

const GROUP: GroupId = GroupId::FIRST;
const TIMEOUT: Duration = Duration::from_secs(60);
const STEPS: [RewriteStep; 7] = [
    RewriteStep::Make,
    RewriteStep::Slice,
    RewriteStep::Rest,
    RewriteStep::Sync,
    RewriteStep::Complete,
    RewriteStep::Switch,
    RewriteStep::Remove,
];

/// Rewrites all the time, a few values at once.
fn always() -> OpenOptions {
    let mut options = OpenOptions::new(1, Incarnation(7));
    (options.rewrite_min_bytes, options.rewrite_ratio, options.rewrite_slice_bytes) = (0, 0, 2000);
    options
}

fn never() -> OpenOptions {
    let mut options = always();
    options.rewrite_min_bytes = u64::MAX;
    options
}

fn asking(ask: impl Fn(RewriteStep) -> io::Result<()> + Send + Sync + 'static) -> Faults {
    Faults { ask: Some(Arc::new(ask)), ..Faults::default() }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64, bytes: usize) -> Vec<Entry> {
    let entry = |index: u64| {
        let data = Bytes::from(vec![index as u8 ^ term as u8; bytes]);
        Entry { kind: EntryKind::Normal, term, index, data, context: Bytes::new() }
    };
    range.map(entry).collect()
}

fn append(range: std::ops::RangeInclusive<u64>, term: u64) -> Write {
    Write { entries: entries(range, term, 300), ..Write::default() }
}

fn compact(index: u64, term: u64) -> Write {
    let snapshots = vec![Snapshot { index, term, ..Snapshot::default() }];
    Write { compact: Some(Compact { snapshots, up_to: index }), ..Write::default() }
}

fn genesis() -> Write {
    let hard_state = Some(HardState { term: 1, vote: 2, commit: 1 });
    Write { snapshot: Some(Snapshot { index: 1, term: 1, ..Snapshot::default() }), hard_state, ..Write::default() }
}

/// A store at work.
struct Node {
    reader: Arc<dyn LogReader>,
    appender: Box<dyn LogAppender>,
    completed: Receiver<Completed>,
}

impl Node {
    fn start(dir: &Path, options: OpenOptions) -> Node {
        Node::at_work(SledStore::open(dir, options).unwrap())
    }

    fn at_work(store: impl LogStore) -> Node {
        let reader = store.reader();
        let (heard, completed) = channel();
        let appender = Box::new(store).start(Arc::new(move |completion| drop(heard.send(completion))));
        Node { reader, appender, completed }
    }

    fn submit(&mut self, write: Write) -> Result<Written, StoreError> {
        self.appender.submit(Batch { writes: vec![write], sync: true });
        self.completed.recv_timeout(TIMEOUT).unwrap().result
    }

    fn write(&mut self, write: Write) {
        self.submit(write).unwrap();
    }
}

/// Waits for something that another thread does.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < TIMEOUT, "{what}");
        std::thread::yield_now();
    }
}

/// What a crash would leave: the other directories may be going meanwhile.
fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let copied = match entry.file_type()?.is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => fs::copy(entry.path(), target).map(drop),
        };
        match copied {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn a_store_that_is_rewritten_all_the_time_passes_the_conformance_suite() {
    conformance::conformance(|| {
        let dir = tempfile::tempdir().unwrap();
        move || -> Box<dyn LogStore> { Box::new(SledStore::open(&dir.path().join("data"), always()).unwrap()) }
    });
}

#[test]
fn a_log_that_was_large_gives_its_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = always();
    (options.rewrite_min_bytes, options.rewrite_ratio, options.rewrite_slice_bytes) = (48 << 20, 4, 1 << 20);
    let mut node = Node::start(dir.path(), options.clone());
    node.write(genesis());
    for first in (2..2000).step_by(50) {
        node.write(Write { entries: entries(first..=first + 49, 1, 60_000), ..Write::default() });
    }
    let last = 2001;
    let full = node.reader.disk_bytes();
    assert!(full > 100 << 20, "{full}");
    assert_eq!(directory::generations(dir.path()).unwrap(), [0], "what is needed is not rewritten");
    node.write(compact(1990, 1));
    node.write(append(last + 1..=last + 1, 1)); // carries what of it was too much for one commit
    // The old one has gone, and the readers never saw a gap.
    wait_for("it is rewritten and the old one removed", || {
        let read = node.reader.entries(GROUP, 1991, last + 1, usize::MAX).unwrap();
        assert_eq!(read.len() as u64, last - 1990);
        directory::generations(dir.path()).unwrap() == [1]
    });
    assert!(directory::complete_path(dir.path(), 1).exists());
    let small = node.reader.disk_bytes();
    assert!(small <= 48 << 20 && small < full / 2, "{small} of {full}");
    node.write(append(last + 2..=last + 5, 2));
    drop(node);
    let before = Inspection::open(dir.path()).unwrap();
    assert_eq!((before.verify().problems, before.group(GROUP).last_index), (vec![], last + 5));
    let store = SledStore::open(dir.path(), options).unwrap();
    let recovered = store.recover(GROUP).unwrap();
    assert_eq!((recovered.compacted_index() <= 1990, recovered.last_index), (true, last + 5));
    assert_eq!(recovered.hard_state, HardState { term: 1, vote: 2, commit: 1 });
}

/// What a log holds at a moment, as its store was told.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    compacted_index: u64,
    entries: Vec<Entry>,
}

impl Model {
    fn last(&self) -> u64 {
        self.compacted_index + self.entries.len() as u64
    }

    fn apply(&mut self, write: &Write) {
        if let Some(snapshot) = &write.snapshot {
            *self = Model { compacted_index: snapshot.index, entries: Vec::new() };
        }
        if let Some(first) = write.entries.first() {
            self.entries.truncate((first.index - self.compacted_index - 1) as usize);
            self.entries.extend(write.entries.iter().cloned());
        }
        if let Some(compact) = &write.compact {
            self.entries.drain(..(compact.up_to - self.compacted_index) as usize);
            self.compacted_index = compact.up_to;
        }
    }

    /// Whether a directory, as a crash left it, holds this.
    fn check(&self, dir: &Path) -> Result<(), String> {
        let store = SledStore::open(dir, never()).map_err(|error| error.to_string())?;
        let recovered = store.recover(GROUP).unwrap();
        let last = self.last();
        if recovered.last_index != last || recovered.compacted_index() > self.compacted_index {
            return Err(format!("it holds {} to {}", recovered.compacted_index() + 1, recovered.last_index));
        }
        let read =
            store.reader().entries(GROUP, self.compacted_index + 1, last + 1, usize::MAX).map_err(|e| e.to_string())?;
        if read != self.entries {
            return Err("the entries differ".to_owned());
        }
        match directory::generations(dir).unwrap().len() {
            1 => Ok(()),
            more => Err(format!("{more} generations after opening")),
        }
    }
}

/// Appends, truncations, compactions and a snapshot, each again and again.
fn story(round: u64, last: u64) -> Vec<Write> {
    let (term, next) = (round + 2, last + 1);
    let install =
        Write { snapshot: Some(Snapshot { index: next + 30, term, ..Snapshot::default() }), ..Write::default() };
    let mut story =
        vec![append(next..=next + 9, term), append(next + 10..=next + 15, term), append(next + 16..=next + 20, term)];
    match round % 4 {
        0 => story.push(append(next + 12..=next + 14, term + 1)),
        1 => story.push(compact(next + 11, term)),
        2 => story.push(Write { entries: entries(next + 18..=next + 25, term + 1, 300), ..compact(next + 13, term) }),
        _ => story.push(install),
    }
    story
}

#[test]
fn whenever_it_crashes_the_log_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // Asked on the store's thread between commits: all that was reported, and nothing more, is in the directory.
    let (reported, crashes) = (Arc::new(Mutex::new(Model::default())), Arc::new(Mutex::new(BTreeMap::new())));
    let faults = {
        let (reported, crashes, data) = (reported.clone(), crashes.clone(), data.clone());
        let slices = AtomicU64::new(0);
        asking(move |step| {
            if step == RewriteStep::Slice && !slices.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
                return Ok(());
            }
            let crashed = tempfile::tempdir().unwrap();
            copy_dir(&data, crashed.path()).unwrap();
            let checked = reported.lock().unwrap().check(crashed.path());
            let mut crashes = crashes.lock().unwrap();
            *crashes.entry(step).or_insert(0) += 1;
            // A panic here would be taken for the engine's.
            if let Err(problem) = checked {
                crashes.insert(RewriteStep::Remove, i32::MIN);
                eprintln!("before {step:?}: {problem}");
            }
            Ok(())
        })
    };
    let options = OpenOptions { rewrite_slice_bytes: 6000, ..always() };
    let store = Box::new(faults.open(&data, options).unwrap());
    let reader = store.reader();
    let (heard, completed) = channel();
    let submitted: Arc<Mutex<VecDeque<Write>>> = Arc::default();
    let mut appender = {
        let (reported, submitted) = (reported.clone(), submitted.clone());
        store.start(Arc::new(move |completion| {
            let write = submitted.lock().unwrap().pop_front().unwrap();
            reported.lock().unwrap().apply(&write);
            heard.send(completion).unwrap();
        }))
    };
    let mut write = |write: Write| {
        submitted.lock().unwrap().push_back(write.clone());
        appender.submit(Batch { writes: vec![write], sync: true });
        completed.recv_timeout(TIMEOUT).unwrap().result.unwrap();
    };
    write(genesis());
    let mut round = 0;
    // A rewriting begins with a commit: on a machine that is busy, fewer of them end with so many.
    wait_for("each step was met", || {
        let last = reported.lock().unwrap().last();
        story(round, last).into_iter().for_each(&mut write);
        round += 1;
        let crashes = crashes.lock().unwrap();
        let met = STEPS.iter().all(|step| crashes.get(step).is_some_and(|count| *count >= 3 || *count < 0));
        round >= 16 && (met || crashes.values().any(|count| *count < 0))
    });
    drop(appender);
    drop(reader);
    let crashes = crashes.lock().unwrap();
    println!("{crashes:?}");
    assert!(crashes.values().all(|count| *count > 0), "a crash lost something: {crashes:?}");
    reported.lock().unwrap().check(&data).unwrap();
}

#[test]
fn a_step_that_fails_is_no_failure_of_the_store() {
    for failing in STEPS {
        let dir = tempfile::tempdir().unwrap();
        let failed = Arc::new(AtomicU64::new(0));
        let faults = {
            let failed = failed.clone();
            asking(move |step| {
                // What cannot be removed stays as long as the process lives: then several count, and the highest is the
                // log.
                let fails = |times| times == 0 || failing == RewriteStep::Remove;
                if step != failing || !fails(failed.fetch_add(1, Ordering::SeqCst)) {
                    return Ok(());
                }
                Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"))
            })
        };
        let options = OpenOptions { rewrite_retry: Duration::from_millis(1), ..always() };
        let mut node = Node::at_work(faults.open(dir.path(), options).unwrap());
        let mut model = Model::default();
        let mut outcome = Ok(());
        let mut write = |node: &mut Node, write: Write| -> Result<(), StoreError> {
            node.submit(write.clone())?;
            model.apply(&write);
            Ok(())
        };
        outcome = outcome.and_then(|()| write(&mut node, genesis()));
        let mut last = 1;
        // Until it has failed, and then succeeded after all.
        let started = Instant::now();
        while outcome.is_ok() && (failed.load(Ordering::SeqCst) == 0 || directory::generation(dir.path()).unwrap() < 2)
        {
            assert!(started.elapsed() < TIMEOUT, "{failing:?} was never met");
            outcome = write(&mut node, append(last + 1..=last + 3, 1));
            last += 3;
        }
        match failing {
            // It counts already: going on with the old one would lose what it commits. The next start goes on with the
            // new one.
            RewriteStep::Switch => assert!(matches!(outcome, Err(StoreError::Closed(_))), "{outcome:?}"),
            _ => outcome.unwrap(),
        }
        drop(node);
        model.check(dir.path()).unwrap_or_else(|problem| panic!("{failing:?}: {problem}"));
    }
}

#[test]
fn what_cannot_be_taken_back_is_the_end() {
    // The mark may have got to the disk, and nobody can say that it has not.
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_owned();
    let faults = asking(move |step| {
        if step != RewriteStep::Complete {
            return Ok(());
        }
        // A directory of that name is neither written nor removed.
        let generation = directory::generations(&data)?.pop().unwrap();
        fs::create_dir(directory::complete_path(&data, generation))
    });
    let mut node = Node::at_work(faults.open(dir.path(), always()).unwrap());
    node.write(genesis());
    let (mut last, mut reported) = (1, 1);
    let error = loop {
        match node.submit(append(last + 1..=last + 1, 1)) {
            Ok(_) => reported = last + 1,
            Err(error) => break error,
        }
        last += 1;
        assert!(last < 10_000, "it should have ended");
    };
    assert!(matches!(error, StoreError::Closed(_)), "{error}");
    assert!(error.to_string().contains("giving up the log's generation"), "{error}");
    drop(node);
    assert_eq!(SledStore::open(dir.path(), never()).unwrap().recover(GROUP).unwrap().last_index, reported);
}

#[test]
fn readers_see_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), always());
    node.write(genesis());
    node.write(append(2..=201, 1));
    let (reader, stop) = (node.reader.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let reading = std::thread::spawn(move || {
        let mut reads = 0u64;
        while !stopped.load(Ordering::SeqCst) {
            assert_eq!(reader.entries(GROUP, 2, 202, usize::MAX).unwrap(), entries(2..=201, 1, 300));
            reads += 1;
        }
        reads
    });
    let mut last = 201;
    wait_for("five rewritings", || {
        node.write(append(last + 1..=last + 1, 1));
        last += 1;
        directory::generation(dir.path()).unwrap() >= 5
    });
    stop.store(true, Ordering::SeqCst);
    println!("{} reads", reading.join().unwrap());
}

#[test]
fn what_is_not_the_log_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut lives = Vec::new();
    for life in 1..=3 {
        let store = SledStore::open(dir.path(), always()).unwrap();
        lives.push(store.identity());
        let kept = directory::snapshots_path(dir.path()).join("kept");
        if life == 1 {
            fs::write(&kept, "a snapshot").unwrap();
        }
        let mut last = store.recover(GROUP).unwrap().last_index;
        drop(store);
        let mut node = Node::start(dir.path(), always());
        if last == 0 {
            node.write(genesis());
            last = 1;
        }
        let before = directory::generation(dir.path()).unwrap();
        wait_for("it is rewritten twice", || {
            node.write(append(last + 1..=last + 1, life));
            last += 1;
            // Nobody else gets in while one log follows the other.
            let intruder = SledStore::open(dir.path(), never());
            assert!(matches!(intruder, Err(OpenError::Locked { .. })), "{intruder:?}");
            directory::generation(dir.path()).unwrap() >= before + 2
        });
        drop(node);
        // Closed is closed: nothing of it touches the directory any more.
        assert_eq!(directory::generations(dir.path()).unwrap().len(), 1);
        assert_eq!(fs::read_to_string(kept).unwrap(), "a snapshot");
        let inspection = Inspection::open(dir.path()).unwrap();
        assert_eq!(inspection.verify().problems, []);
        let (group, HardState { term, vote, .. }) = (inspection.group(GROUP), genesis().hard_state.unwrap());
        assert_eq!((group.hard_state.term, group.hard_state.vote, group.last_index), (term, vote, last));
        let mark = group.watermark.unwrap();
        assert_eq!((mark.term, mark.vote, mark.index), (term, vote, last));
    }
    let boots: Vec<_> = lives.iter().map(|life| (life.id, life.incarnation, life.boot)).collect();
    assert_eq!(boots, [(1, Incarnation(7), 1), (1, Incarnation(7), 3), (1, Incarnation(7), 5)]);
}

#[test]
fn what_a_rewriting_left_over_is_swept_unless_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), never());
    node.write(genesis());
    node.write(append(2..=9, 1));
    drop(node);
    let old = tempfile::tempdir().unwrap();
    copy_dir(&directory::log_path(dir.path(), 0), old.path()).unwrap();
    let log = |generation| directory::log_path(dir.path(), generation);
    let there = || directory::generations(dir.path()).unwrap();
    // Half of a rewriting: an engine without the mark, another with nothing in it, and names that are nobody's.
    copy_dir(old.path(), &log(3)).unwrap();
    fs::write(log(3).join("db"), "half").unwrap();
    fs::create_dir(log(4)).unwrap();
    for name in ["log.01", "log.x", "logs"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    assert_eq!(there(), [0, 3, 4]);
    assert_eq!(Inspection::open(dir.path()).unwrap().group(GROUP).last_index, 9);
    assert_eq!(SledStore::open(dir.path(), never()).unwrap().recover(GROUP).unwrap().last_index, 9);
    assert_eq!(there(), [0]);
    assert!(dir.path().join("log.01").exists());
    // The old one is left over beside the new one; and one that counts is used even where it is not the best.
    copy_dir(old.path(), &log(2)).unwrap();
    directory::complete(dir.path(), 2).unwrap();
    fs::remove_file(log(0).join("db")).unwrap();
    assert_eq!(SledStore::open(dir.path(), never()).unwrap().recover(GROUP).unwrap().last_index, 9);
    assert_eq!(there(), [2]);
    // What is refused is left as it was, all of it.
    copy_dir(old.path(), &log(0)).unwrap();
    copy_dir(old.path(), &log(5)).unwrap();
    fs::rename(log(2).join("db"), dir.path().join("db")).unwrap();
    let refusal = SledStore::open(dir.path(), never()).unwrap_err();
    assert!(matches!(refusal, OpenError::RolledBack { .. }), "{refusal}");
    assert_eq!(there(), [0, 2, 5]);
    // The engine finds the room of what never was the log, also where it cannot open: only that has gone.
    fs::create_dir(log(2).join("db")).unwrap();
    let refusal = SledStore::open(dir.path(), never()).unwrap_err();
    assert!(matches!(refusal, OpenError::Io { .. }), "{refusal}");
    assert_eq!(there(), [0, 2]);
    // Nor does it go while another holds the directory.
    fs::remove_dir(log(2).join("db")).unwrap();
    fs::rename(dir.path().join("db"), log(2).join("db")).unwrap();
    let held = SledStore::open(dir.path(), never()).unwrap();
    copy_dir(old.path(), &log(5)).unwrap();
    SledStore::open(dir.path(), never()).unwrap_err();
    assert_eq!(there(), [2, 5]);
    drop(held);
}

#[test]
fn which_log_counts_is_durable_before_anything_depends_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = |generation| directory::log_path(dir.path(), generation);
    for generation in [0, 1, 2, 3, 4] {
        fs::create_dir(log(generation)).unwrap();
    }
    let mark = |generation| fs::write(directory::complete_path(dir.path(), generation), "").unwrap();
    mark(1);
    let sync_generation = |counting, fails: Option<usize>| {
        let mut synced = Vec::new();
        let outcome = directory::sync_generation_with(dir.path(), counting, &mut |path| {
            synced.push(path.strip_prefix(dir.path()).unwrap().display().to_string());
            if fails == Some(synced.len()) { Err(io::Error::other("it is lost")) } else { Ok(()) }
        });
        (synced, outcome)
    };
    // The mark found may be known to the kernel alone, and so may the removal of one above it.
    let expected = ["log.1/complete", "log.1", "", "log.2", "log.3", "log.4"];
    let (synced, outcome) = sync_generation(1, None);
    outcome.unwrap();
    assert_eq!(synced, expected);
    for failing in 1..=expected.len() {
        let (synced, outcome) = sync_generation(1, Some(failing));
        assert_eq!((synced.len(), outcome.unwrap_err().to_string()), (failing, "it is lost".to_owned()));
    }
    // The first one has no mark to make durable.
    let (synced, outcome) = sync_generation(0, None);
    outcome.unwrap();
    assert_eq!(synced, ["log.1", "log.2", "log.3", "log.4"]);
    assert!(!directory::complete_path(dir.path(), 1).exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_store_opens_only_where_it_is_durable_which_log_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), never());
    node.write(genesis());
    drop(node);
    // A directory that can be looked into and not be synced, where half a rewriting would be.
    let above = directory::log_path(dir.path(), 3);
    std::os::unix::fs::symlink("/proc/self", &above).unwrap();
    let error = SledStore::open(dir.path(), never()).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    assert!(error.to_string().contains("cannot make durable which of its logs counts"), "{error}");
    fs::remove_file(above).unwrap();
    SledStore::open(dir.path(), never()).unwrap();
}

#[test]
fn what_cannot_be_swept_keeps_nothing_else_from_going() {
    let dir = tempfile::tempdir().unwrap();
    for generation in [0, 2, 3] {
        fs::create_dir(directory::log_path(dir.path(), generation)).unwrap();
    }
    fs::write(directory::log_path(dir.path(), 1), "no directory").unwrap();
    directory::sweep(dir.path(), 2);
    assert_eq!(directory::generations(dir.path()).unwrap(), [1, 2]);
}

#[test]
fn a_restored_log_that_was_rewritten_is_moved_into_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    // Cut short once, with two logs in it: the next one starts from scratch.
    let cut_short = directory::Restoring::begin(&path).unwrap();
    for generation in [0, 1] {
        fs::create_dir(directory::log_path(&cut_short.store(), generation)).unwrap();
    }
    fs::write(directory::complete_path(&cut_short.store(), 1), "").unwrap();
    drop(cut_short);
    let restoring = directory::Restoring::begin(&path).unwrap();
    let mut node = Node::start(&restoring.store(), always());
    node.write(genesis());
    let mut last = 1;
    wait_for("it is rewritten", || {
        node.write(append(last + 1..=last + 1, 1));
        last += 1;
        directory::generation(&restoring.store()).unwrap() >= 2
    });
    drop(node);
    restoring.finish().unwrap();
    assert_eq!(directory::generations(&path).unwrap(), [0]);
    let store = SledStore::open(&path, never()).unwrap();
    assert_eq!(store.recover(GROUP).unwrap().last_index, last);
    assert_eq!(store.reader().entries(GROUP, 2, last + 1, usize::MAX).unwrap(), entries(2..=last, 1, 300));
}

#[test]
fn a_damaged_record_ends_the_rewriting_and_not_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let steps: Arc<Mutex<Vec<RewriteStep>>> = Arc::default();
    let mut node = Node::start(dir.path(), never());
    node.write(genesis());
    for index in 2..50 {
        node.write(append(index..=index, 1));
    }
    drop(node);
    let faults = {
        let steps = steps.clone();
        asking(move |step| {
            steps.lock().unwrap().push(step);
            Ok(())
        })
    };
    let options = OpenOptions { rewrite_retry: Duration::from_secs(3600), ..always() };
    // Damaged behind the store's back, after it was opened and read.
    let store = faults.open(dir.path(), options).unwrap();
    store.tamper(Key::block(GROUP, 20), |value| *value.last_mut().unwrap() ^= 1);
    let mut node = Node::at_work(store);
    let mut last = 49;
    wait_for("it gave up", || {
        node.write(append(last + 1..=last + 1, 1));
        last += 1;
        steps.lock().unwrap().contains(&RewriteStep::Remove)
    });
    node.write(append(last + 1..=last + 1, 1));
    assert!(!steps.lock().unwrap().contains(&RewriteStep::Complete));
    let error = node.reader.entries(GROUP, 20, 21, 1).unwrap_err().to_string();
    assert!(error.contains("block 20 is damaged"), "{error}");
    drop(node);
    assert_eq!(directory::generations(dir.path()).unwrap(), [0]);
}

/// An engine in memory, driven by hand.
#[derive(Clone, Default)]
struct Values(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    values: BTreeMap<Key, Bytes>,
    applied: usize,
    unsynced: bool,
    written: u64,
}

impl Values {
    fn all(&self) -> BTreeMap<Key, Bytes> {
        self.0.lock().unwrap().values.clone()
    }

    /// How many changes were applied since it was last asked.
    fn applied(&self) -> usize {
        std::mem::take(&mut self.0.lock().unwrap().applied)
    }
}

impl Engine for Values {
    fn apply(&self, changes: Vec<Change>) -> Result<(), EngineError> {
        let mut held = self.0.lock().unwrap();
        (held.applied, held.unsynced) = (held.applied + changes.len(), true);
        for (key, value) in changes {
            held.written += value.as_ref().map_or(0, Vec::len) as u64;
            match value {
                Some(value) => held.values.insert(key, value.into()),
                None => held.values.remove(&key),
            };
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.0.lock().unwrap().unsynced = false;
        Ok(())
    }

    fn each(&self, give: &mut dyn FnMut(&[u8], Bytes)) -> Result<(), EngineError> {
        self.all().into_iter().for_each(|(key, value)| give(&key.encode(), value));
        Ok(())
    }

    fn keys(&self, from: Key, to: Key, max: usize) -> Result<Vec<Key>, EngineError> {
        Ok(self.0.lock().unwrap().values.range(from..to).take(max).map(|(key, _)| *key).collect())
    }

    fn values(&self, from: Key, to: Key, max_bytes: usize) -> Result<Vec<(Key, Bytes)>, EngineError> {
        let (held, mut bytes) = (self.0.lock().unwrap(), 0);
        let fitting = held.values.range(from..to).take_while(|(_, value)| {
            bytes += value.len();
            bytes == value.len() || bytes <= max_bytes
        });
        Ok(fitting.map(|(key, value)| (*key, value.clone())).collect())
    }

    fn last_before(&self, key: Key) -> Result<Option<Key>, EngineError> {
        Ok(self.0.lock().unwrap().values.range(..key).next_back().map(|(key, _)| *key))
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>, EngineError> {
        Ok(self.0.lock().unwrap().values.get(&key).cloned())
    }

    /// Wastes as sled does, and gives nothing back.
    fn disk_bytes(&self) -> u64 {
        self.0.lock().unwrap().written * 5 / 2
    }
}

/// A watermark's pages in memory.
struct Memory(Vec<u8>);

impl Pages for Memory {
    fn read(&self) -> Result<Vec<u8>, WatermarkError> {
        Ok(self.0.clone())
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0 = bytes.to_vec();
        Ok(())
    }
}

/// What happened, in order, and the engine that was made last.
#[derive(Clone, Default)]
struct Story(Arc<Mutex<(Vec<String>, Values)>>);

impl Story {
    fn say(&self, what: &str) {
        let mut story = self.0.lock().unwrap();
        let state = if story.1.0.lock().unwrap().unsynced { "not durable" } else { "durable" };
        story.0.push(format!("{what}: {state}"));
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }

    fn new_one(&self) -> Values {
        self.0.lock().unwrap().1.clone()
    }
}

struct Told {
    story: Story,
    fails: bool,
    room: Room,
}

/// What is free: one answer after the other, the last one again and again; none for what nobody can tell.
#[derive(Clone, Default)]
struct Room(Arc<Mutex<VecDeque<u64>>>, Arc<Reserve>);

/// Whether room is short, what can be borrowed then, and by how many it is.
#[derive(Default)]
struct Reserve {
    short: AtomicBool,
    bytes: AtomicU64,
    lent: Arc<AtomicU64>,
    /// For how many rounds a write waited for it, and how much it needed.
    waited_rounds: AtomicU64,
    needed: AtomicU64,
    /// How many are making room, and how many ever were.
    making: Arc<AtomicU64>,
    made: AtomicU64,
    /// Whether nobody knows after the next rewriting which engine is the log.
    fatal: AtomicBool,
}

struct Borrowed(Arc<AtomicU64>);

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Room {
    fn is(&self, answers: impl IntoIterator<Item = u64>) {
        *self.0.lock().unwrap() = answers.into_iter().collect();
    }
}

impl Told {
    fn unless_fatal(&self, doing: &str) -> Result<(), EngineError> {
        match self.room.1.fatal.load(Ordering::SeqCst) {
            true => Err(EngineError::Io { doing: doing.to_owned(), error: io::Error::other("as the test wants it") }),
            false => Ok(()),
        }
    }
}

impl Renew<Values> for Told {
    fn make(&mut self) -> Result<Values, EngineError> {
        let made = Values::default();
        self.story.0.lock().unwrap().1 = made.clone();
        self.story.say("make");
        let error = io::Error::new(io::ErrorKind::StorageFull, "no space left on device");
        if self.fails { Err(EngineError::Io { doing: "making it".to_owned(), error }) } else { Ok(made) }
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.story.say("sync");
        Ok(())
    }

    fn complete(&mut self) -> Result<(), EngineError> {
        self.story.say("complete");
        self.unless_fatal("completing")
    }

    fn uncomplete(&mut self) -> Result<(), EngineError> {
        self.story.say("uncomplete");
        self.unless_fatal("giving up")
    }

    fn switched(&mut self) {
        self.story.say("switched");
    }

    fn remove(&mut self) -> Box<dyn FnOnce() + Send> {
        let story = self.story.clone();
        Box::new(move || story.say("remove"))
    }

    fn room(&self) -> Option<u64> {
        let mut answers = self.room.0.lock().unwrap();
        if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() }
    }

    fn is_short(&self) -> bool {
        self.room.1.short.load(Ordering::SeqCst)
    }

    fn watches(&self) -> bool {
        true
    }

    fn log_waits_for(&self, needed: u64) {
        self.room.1.needed.store(needed, Ordering::SeqCst);
        self.room.1.waited_rounds.fetch_add(1, Ordering::SeqCst);
    }

    fn reserve(&self) -> u64 {
        self.room.1.bytes.load(Ordering::SeqCst)
    }

    fn lend(&self) -> Option<Box<dyn Send>> {
        let lent = self.room.1.lent.clone();
        lent.fetch_add(1, Ordering::SeqCst);
        (self.reserve() > 0).then(|| Box::new(Borrowed(lent)) as Box<dyn Send>)
    }

    fn make_room(&self) -> Option<Box<dyn Send>> {
        self.room.1.making.fetch_add(1, Ordering::SeqCst);
        self.room.1.made.fetch_add(1, Ordering::SeqCst);
        Some(Box::new(Borrowed(self.room.1.making.clone())))
    }
}

/// A store's committer and rewriter without its thread.
struct ByHand {
    old: Values,
    committer: Committer<Values, Memory>,
    rewriter: Rewriter<Values>,
    story: Story,
    room: Room,
}

/// An empty log in memory, and its watermark.
fn empty() -> (Values, Arc<Shared<Values>>, Watermark<Memory>) {
    let engine = Values::default();
    let node = StoreIdentity { id: 1, incarnation: Incarnation(7), boot: 1 };
    recovery::claim(&engine, Path::new("data"), &node).unwrap();
    let watermark = Watermark::over(Memory(watermark::blank(node.incarnation))).unwrap();
    let found = engine::scan(&engine).unwrap();
    (engine.clone(), Shared::new(engine, &found, Box::new(())), watermark)
}

impl ByHand {
    fn new(slice_bytes: usize, fails: bool) -> ByHand {
        let (story, room) = (Story::default(), Room::default());
        let (old, shared, watermark) = empty();
        let committer = Committer::new(shared, watermark);
        let (retry, reserve_bytes, aside_bytes) = (Duration::ZERO, 10_000, 1000);
        let policy = RewritePolicy { min_bytes: 0, ratio: 0, slice_bytes, retry, reserve_bytes, aside_bytes };
        let told = Told { story: story.clone(), fails, room: room.clone() };
        let rewriter = Rewriter::new(Box::new(told), policy);
        let mut by_hand = ByHand { old, committer, rewriter, story, room };
        by_hand.write(genesis());
        by_hand
    }

    /// As the store's thread does it, without what comes between commits.
    fn write(&mut self, write: Write) {
        let begun = self.committer.begin(vec![Batch { writes: vec![write], sync: true }]).unwrap();
        self.rewriter.committed(&begun.kept);
        self.committer.finish(begun).unwrap();
    }

    fn go_on(&mut self) {
        self.rewriter.go_on(&mut self.committer, 0).unwrap();
    }

    /// What the engine holds that was made last.
    fn new_one(&self) -> BTreeMap<Key, Bytes> {
        self.story.new_one().all()
    }

    /// Until one rewriting has ended, its remains removed.
    fn end(&mut self) {
        while self.rewriter.is_under_way() {
            self.go_on();
        }
        self.rewriter.removing.take().unwrap().join().unwrap();
    }
}

#[test]
fn what_counts_is_whole_and_durable() {
    let mut store = ByHand::new(2000, false);
    for index in 2..100 {
        store.write(append(index..=index, 1));
    }
    store.go_on();
    while store.new_one().len() < 50 {
        store.go_on();
    }
    // Behind what was copied, within it, and one that only speaks of a commit.
    store.write(append(95..=97, 2));
    store.write(compact(20, 1));
    store.write(Write { hard_state: Some(HardState { term: 2, vote: 3, commit: 90 }), ..Write::default() });
    store.end();
    assert!(store.new_one() == store.old.all());
    let told = store.story.told();
    assert_eq!(told, ["make: durable", "sync: durable", "complete: durable", "switched: durable", "remove: durable"]);
    // From now on the old one does not matter.
    let old = store.old.all();
    store.write(append(98..=99, 2));
    assert!(store.old.all() == old);
    assert!(store.new_one().contains_key(&Key::block(GROUP, 98)));
}

#[test]
fn what_was_copied_and_is_cut_off_is_copied_anew() {
    let mut store = ByHand::new(2000, false);
    for install in [false, true] {
        let last = store.committer.with_engine(|_, logs| Ok(logs[&GROUP].last.0)).unwrap();
        for index in last + 1..100 {
            store.write(append(index..=index, if install { 4 } else { 2 }));
        }
        store.old = store.committer.with_engine(|engine, _| Ok(engine.clone())).unwrap();
        store.go_on();
        store.go_on();
        store.go_on();
        let half = store.new_one();
        assert!(half.contains_key(&Key::block(GROUP, 5)) && !half.contains_key(&Key::block(GROUP, 99)));
        store.write(match install {
            false => append(5..=40, 3),
            true => {
                Write { snapshot: Some(Snapshot { index: 150, term: 5, ..Snapshot::default() }), ..Write::default() }
            }
        });
        assert!(!store.rewriter.is_under_way());
        store.rewriter.removing.take().unwrap().join().unwrap();
        store.go_on();
        store.end();
        assert!(store.new_one() == store.old.all());
        let told = store.story.told();
        let expected = ["make", "remove", "make", "sync", "complete", "switched", "remove"];
        assert_eq!(told, expected.map(|step| format!("{step}: durable")));
    }
}

#[test]
fn a_commit_waits_for_one_slice_and_no_more() {
    let mut store = ByHand::new(200_000, false);
    for index in 2..4000 {
        store.write(append(index..=index, 1));
    }
    let mut most = 0;
    store.go_on();
    for _ in 0..4 {
        store.go_on();
        most = most.max(store.story.new_one().applied());
    }
    assert!(store.rewriter.is_under_way());
    // Most of what was copied goes, some with each commit.
    store.write(compact(2300, 1));
    let mut index = 3999;
    while store.rewriter.is_under_way() {
        index += 1;
        store.write(append(index..=index, 1));
        store.go_on();
        most = most.max(store.story.new_one().applied());
    }
    assert!(store.new_one() == store.committer.with_engine(|engine, _| Ok(engine.all())).unwrap());
    assert!(store.new_one().contains_key(&Key::block(GROUP, index)));
    // A block here has 338 bytes. The end, too, is a slice: it has three records to copy.
    let slice = 200_000 / 338 + 1 + REMOVED_AT_ONCE + 3;
    assert!(most > 600 && most <= slice, "{most} changes, a slice has {slice}");
}

#[test]
fn a_copy_that_is_not_the_log_never_counts() {
    // The last block, one in between and the first are missing from what is read; nothing else would notice before the
    // next start.
    for missing in [99, 50, 2] {
        let mut store = ByHand::new(2000, false);
        for index in 2..100 {
            store.write(append(index..=index, 1));
        }
        store.old.0.lock().unwrap().values.remove(&Key::block(GROUP, missing));
        store.go_on();
        store.end();
        assert_eq!(store.story.told().pop().unwrap(), "remove: durable");
        let present = store.committer.with_engine(|engine, _| Ok(Arc::ptr_eq(&engine.0, &store.old.0))).unwrap();
        assert!(present, "{missing}");
    }
}

#[test]
fn what_is_compacted_while_it_is_copied_does_not_put_off_the_next_rewriting() {
    let mut store = ByHand::new(2000, false);
    for index in 2..=400 {
        store.write(append(index..=index, 1));
    }
    store.go_on();
    for _ in 0..10 {
        store.go_on();
    }
    // From here on as in a node: four times what lives is too much.
    store.rewriter.policy.ratio = 4;
    store.write(compact(395, 1));
    let mut index = 400;
    while store.rewriter.is_under_way() {
        index += 1;
        store.write(append(index..=index, 1));
        store.go_on();
    }
    store.rewriter.removing.take().unwrap().join().unwrap();
    assert_eq!(store.story.told().pop().unwrap(), "remove: durable");
    // Most of what the new engine takes is room of what went meanwhile: it is rewritten at once, and then it is as good
    // as it gets.
    let disk = store.committer.disk_bytes();
    assert!(disk > 8 * store.committer.live_bytes(), "{disk} of {}", store.committer.live_bytes());
    store.go_on();
    assert!(store.rewriter.is_under_way());
    store.end();
    assert!(store.committer.disk_bytes() < disk / 2);
    store.go_on();
    assert!(!store.rewriter.is_under_way());
}

#[test]
fn what_no_thread_removes_is_removed_later_and_never_after_the_end() {
    let none = |_: Job| -> io::Result<JoinHandle<()>> { Err(io::Error::other("no thread")) };
    let made = ["make: durable", "sync: durable", "complete: durable", "switched: durable"];
    for again in [false, true] {
        let mut store = ByHand::new(2000, false);
        store.write(append(2..=9, 1));
        // One removal takes its time when no thread can be had for the next.
        let (hold, held) = channel::<()>();
        let story = store.story.clone();
        let slow = move || {
            let _ = held.recv();
            story.say("slow");
        };
        store.rewriter.removing = Some(spawn(Box::new(slow)).unwrap());
        store.rewriter.spawn = none;
        store.rewriter.make().ok().unwrap();
        while store.rewriter.is_under_way() {
            store.go_on();
        }
        assert_eq!(store.story.told(), made);
        // Nothing begins beside it.
        store.go_on();
        assert!(!store.rewriter.is_under_way());
        drop(hold);
        if again {
            wait_for("the slow one ends", || store.rewriter.removing.as_ref().unwrap().is_finished());
            store.go_on();
            assert_eq!((store.rewriter.is_under_way(), store.story.told()), (false, vec!["slow: durable".to_owned()]));
            store.rewriter.spawn = spawn;
            store.go_on();
            store.rewriter.removing.take().unwrap().join().unwrap();
            assert_eq!(store.story.told(), ["remove: durable"]);
            store.go_on();
            store.end();
            assert_eq!(store.story.told()[..4], made);
        } else {
            store.rewriter.close();
            assert_eq!(store.story.told(), ["slow: durable", "remove: durable"]);
        }
    }
}

#[test]
fn the_last_room_is_left_to_the_log() {
    let mut store = ByHand::new(2000, false);
    for index in 2..50 {
        store.write(append(index..=index, 1));
    }
    let enough = |store: &ByHand| 4 * store.committer.live_bytes() + 5 * 10_000;
    assert!(enough(&store) > 4 * 48 * 300);
    // It would end with fewer than five reserves.
    store.room.is([enough(&store) - 1]);
    store.go_on();
    assert_eq!((store.rewriter.is_under_way(), store.story.told()), (false, vec![]));
    // Enough when it begins; then others take it, before a slice, before the next one, and before what comes last.
    let (mut given_up, mut slices) = (0, 0);
    for given_up_at in 0.. {
        store.room.is([vec![enough(&store)], vec![10_000; given_up_at], vec![9_999]].concat());
        store.go_on();
        assert!(store.rewriter.is_under_way());
        slices = 0;
        while store.rewriter.is_under_way() {
            store.go_on();
            slices += 1;
        }
        store.end();
        let told = store.story.told();
        if told.contains(&"complete: durable".to_owned()) {
            break;
        }
        given_up += 1;
        // The room of the half one is given back at once, and the log does not mind.
        assert_eq!((&*told[0], &*told[1], told.len()), ("make: durable", "remove: durable", 2));
        store.write(append(50..=50, 1));
        assert!(store.old.all().contains_key(&Key::block(GROUP, 50)));
    }
    // Before each slice, and before what follows the last one.
    assert!(slices > 5 && given_up == slices + 1, "{given_up} of {slices} slices");
    // A slice can be as large as twice what is committed at once: then it needs more than the reserve.
    let reserve = |slice_bytes| store.rewriter.floor(slice_bytes);
    assert_eq!([reserve(2000), reserve(3000), reserve(5000)], [10_000, 10_000, 16_000]);
}

/// A store that takes much more than what lives, none of which is worth a rewriting as long as there is room.
fn wasteful() -> ByHand {
    let mut store = ByHand::new(2000, false);
    store.rewriter.policy.ratio = 1000;
    for index in 2..200 {
        store.write(append(index..=index, 1));
    }
    store.write(compact(190, 1));
    store
}

impl ByHand {
    /// What is seen of room from now on.
    fn room_is(&mut self, short: bool, free: u64, reserve: u64) {
        self.room.1.short.store(short, Ordering::SeqCst);
        self.room.1.bytes.store(reserve, Ordering::SeqCst);
        self.room.is([free]);
        self.rewriter.looked = None;
    }

    fn lent(&self) -> u64 {
        self.room.1.lent.load(Ordering::SeqCst)
    }

    fn making(&self) -> u64 {
        self.room.1.making.load(Ordering::SeqCst)
    }
}

#[test]
fn where_room_is_short_the_reserve_is_borrowed_until_the_old_engine_is_gone() {
    let mut store = wasteful();
    let live = store.committer.live_bytes();
    // What is copied, a slice and the log beside it; far less than the log takes.
    let needed = 3 * live + 6500;
    assert!(needed < store.committer.disk_bytes() / 2, "{needed} of {}", store.committer.disk_bytes());
    store.room_is(false, 0, needed);
    store.go_on();
    assert_eq!((store.rewriter.is_under_way(), store.lent()), (false, 0), "it is not worth it");
    store.room_is(true, 9, needed - 10);
    store.go_on();
    assert_eq!((store.rewriter.is_under_way(), store.lent()), (false, 0), "there is not enough of it");

    store.room_is(true, 0, needed);
    store.go_on();
    assert_eq!((store.rewriter.is_under_way(), store.lent()), (true, 1));
    // It is free now, and gets less with each slice.
    store.room.is((0..20).map(|slice| needed - slice * (3 * live / 20)).chain([6500]));
    while store.rewriter.is_under_way() {
        assert_eq!((store.lent(), store.making()), (1, 1), "nobody makes it again under the copy");
        store.go_on();
    }
    store.rewriter.removing.take().unwrap().join().unwrap();
    assert_eq!((store.lent(), store.making()), (0, 0));
    assert_eq!(store.story.told()[2..], ["complete: durable", "switched: durable", "remove: durable"]);
    // Another one would free nothing.
    store.room_is(true, 0, 10 * needed);
    store.go_on();
    assert_eq!((store.rewriter.is_under_way(), store.lent()), (false, 0));
}

#[test]
fn a_copy_that_does_not_fit_the_reserve_gives_it_back() {
    let mut store = wasteful();
    let needed = 3 * store.committer.live_bytes() + 6500;
    store.room_is(true, 0, needed);
    store.go_on();
    // Somebody else takes it.
    store.room.is([needed, 6499]);
    while store.rewriter.is_under_way() {
        store.go_on();
    }
    store.rewriter.removing.take().unwrap().join().unwrap();
    assert_eq!((store.lent(), store.story.told()), (0, vec!["make: durable".to_owned(), "remove: durable".to_owned()]));
    store.write(append(200..=200, 1));
    assert!(store.old.all().contains_key(&Key::block(GROUP, 200)), "the log goes on");
    store.room_is(true, 0, 2 * needed);
    store.go_on();
    assert_eq!((store.rewriter.is_under_way(), store.lent()), (true, 1), "and it is tried again");
}

#[test]
fn what_was_put_off_while_there_was_room_is_not_once_it_is_short() {
    let mut store = ByHand::new(2000, true);
    store.write(append(2..=9, 1));
    // It failed often, and so the next attempt is a minute away.
    (store.rewriter.failures, store.rewriter.policy.retry) = (16, Duration::from_millis(1));
    let enough = 4 * store.committer.live_bytes() + 5 * 10_000;
    let tries = |store: &ByHand| store.story.told().iter().filter(|told| *told == "make: durable").count();
    store.room_is(false, enough, 1);
    store.go_on();
    assert_eq!(tries(&store), 1);
    store.rewriter.removing.take().unwrap().join().unwrap();
    std::thread::sleep(Duration::from_millis(1));
    store.go_on();
    assert_eq!(tries(&store), 0, "it is put off");
    store.room_is(true, enough, 1);
    wait_for("it to be tried again", || {
        store.go_on();
        tries(&store) > 0
    });
}

#[test]
fn a_rewriting_under_way_borrows_the_reserve_when_room_becomes_short() {
    let mut store = wasteful();
    store.rewriter.policy.ratio = 0;
    let enough = 4 * store.committer.live_bytes() + 5 * 10_000;
    store.room_is(false, enough, 1);
    store.go_on();
    assert_eq!((store.rewriter.is_under_way(), store.lent()), (true, 0));
    store.room_is(true, 9_999, 1);
    store.end();
    assert_eq!(store.lent(), 0);
    assert_eq!(store.story.told().pop().unwrap(), "remove: durable");
    assert!(
        store.new_one() == store.committer.with_engine(|engine, _| Ok(engine.all())).unwrap(),
        "it was not given up"
    );
}

/// Counts warnings, and errors.
#[derive(Default)]
struct Warnings {
    warned: AtomicU64,
    errors: AtomicU64,
}

impl Warnings {
    fn counted(&self) -> (u64, u64) {
        (self.warned.load(Ordering::SeqCst), self.errors.load(Ordering::SeqCst))
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let is_error = *event.metadata().level() == tracing::Level::ERROR;
        let counter = if is_error { &self.errors } else { &self.warned };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_failure_is_said_once_and_tried_again_later_and_later() {
    let warnings = Arc::new(Warnings::default());
    tracing::subscriber::with_default(warnings.clone(), || {
        let mut store = ByHand::new(2000, true);
        store.write(append(2..=9, 1));
        for _ in 0..5 {
            store.go_on();
            store.rewriter.removing.take().unwrap().join().unwrap();
        }
        assert_eq!(store.story.told(), ["make: durable", "remove: durable"].repeat(5));
        assert_eq!((store.rewriter.failures, warnings.counted()), (5, (1, 0)));
        // The store does not mind.
        store.write(append(10..=19, 1));
        assert!(store.old.all().contains_key(&Key::block(GROUP, 10)));
        // Not before its time.
        store.rewriter.policy.retry = Duration::from_secs(60);
        store.go_on();
        store.rewriter.removing.take().unwrap().join().unwrap();
        store.story.told();
        for _ in 0..5 {
            store.go_on();
        }
        assert_eq!(store.story.told(), [""; 0]);
    });
    let mut rewriter = ByHand::new(2000, true).rewriter;
    rewriter.policy.retry = Duration::from_secs(60);
    let waits = [0, 1, 2, 5, 6, 40].map(|failures| {
        rewriter.failures = failures;
        rewriter.wait().as_secs() / 60
    });
    assert_eq!(waits, [1, 2, 4, 32, 60, 60]);
}

#[test]
fn want_of_room_hides_no_failure_and_damage_is_said_each_time() {
    let warnings = Arc::new(Warnings::default());
    tracing::subscriber::with_default(warnings.clone(), || {
        let mut store = ByHand::new(2000, true);
        for index in 2..100 {
            store.write(append(index..=index, 1));
        }
        // No room, again and again: said once, and asked again as soon as the first time.
        store.room.is([0]);
        for _ in 0..3 {
            store.go_on();
        }
        assert_eq!((warnings.counted(), store.story.told()), ((1, 0), vec![]));
        assert_eq!((store.rewriter.failures, store.rewriter.not_before.is_some()), (0, true));
        // Then another cause: it is said as well.
        store.room.is([u64::MAX]);
        store.go_on();
        store.rewriter.removing.take().unwrap().join().unwrap();
        assert_eq!((warnings.counted(), store.rewriter.failures), ((2, 0), 1));
    });
    let warnings = Arc::new(Warnings::default());
    tracing::subscriber::with_default(warnings.clone(), || {
        let mut store = ByHand::new(2000, false);
        for index in 2..100 {
            store.write(append(index..=index, 1));
        }
        // Whatever was said before.
        (store.rewriter.failures, store.rewriter.said) = (3, Said { failed: true, no_room: true });
        let block = Key::block(GROUP, 50);
        let mut damaged = store.old.all()[&block].to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        let intact = store.old.0.lock().unwrap().values.insert(block, damaged.into()).unwrap();
        for times in 1..=3 {
            store.go_on();
            store.end();
            assert_eq!((warnings.counted(), store.rewriter.failures), ((0, times), 3 + times as u32));
        }
        // A rewriting that succeeds begins a new count.
        store.old.0.lock().unwrap().values.insert(block, intact);
        store.go_on();
        store.end();
        let Said { failed, no_room } = store.rewriter.said;
        assert_eq!((store.rewriter.failures, failed, no_room), (0, false, false));
    });
}

/// The thread of a store whose log is in memory, on a volume as the test says it.
struct Threaded {
    appender: Option<Box<dyn LogAppender>>,
    completed: Receiver<Completed>,
    shared: Arc<Shared<Values>>,
    story: Story,
    room: Room,
}

/// Room for a copy of a small log, and not for a write of entries.
const LITTLE: u64 = 500_000;

impl Threaded {
    /// With a log of one snapshot, on a volume with room, whose reserve keeps that of the next opening. It is never
    /// rewritten but for want of room.
    fn start() -> Threaded {
        let room = Room::default();
        room.is([1 << 40]);
        room.1.bytes.store(OPENING, Ordering::SeqCst);
        let ((_, shared, watermark), story) = (empty(), Story::default());
        let (retry, reserve_bytes, aside_bytes, slice_bytes) = (Duration::ZERO, 10_000, 1000, 200_000);
        let policy = RewritePolicy { min_bytes: u64::MAX, ratio: 0, slice_bytes, retry, reserve_bytes, aside_bytes };
        let told = Told { story: story.clone(), fails: false, room: room.clone() };
        let at_work = worker::CommitPolicy {
            max_waiting: 8,
            max_commit_bytes: 1 << 20,
            watermark_bytes: 1 << 20,
            watermark_commits: 100,
            watermark_quiet: Duration::from_millis(50),
            close_within: TIMEOUT,
        };
        let (heard, completed) = channel();
        let heard = Arc::new(move |completion| drop(heard.send(completion)));
        let rewriter = Rewriter::new(Box::new(told), policy);
        let appender = Some(worker::Worker::start(shared.clone(), watermark, rewriter, at_work, heard));
        let mut store = Threaded { appender, completed, shared, story, room };
        store.submit(genesis());
        store.completed(1).unwrap();
        store
    }

    fn submit(&mut self, write: Write) {
        self.appender.as_mut().unwrap().submit(Batch { writes: vec![write], sync: true });
    }

    /// The end of that batch, which is the next one to end.
    fn completed(&self, batch_number: u64) -> Result<Written, StoreError> {
        let Completed { batch_number: ended, result } = self.completed.recv_timeout(TIMEOUT).expect("an answer");
        assert_eq!(ended, BatchNumber(batch_number));
        result
    }

    /// Entries up to 501, most of which are cut off again. Returns the batch number of what is submitted next.
    fn make_worth_rewriting(&mut self) -> u64 {
        let firsts = (2..500).step_by(10).zip(2..);
        for (first, batch_number) in firsts {
            self.submit(append(first..=first + 9, 1));
            self.completed(batch_number).unwrap();
        }
        self.submit(compact(490, 1));
        self.completed(52).unwrap();
        53
    }

    fn waits_for_room(&self) {
        wait_for("it waits for room", || self.room.1.waited_rounds.load(Ordering::SeqCst) > 0);
        assert!(self.completed.try_recv().is_err());
    }
}

#[test]
fn who_waits_for_room_is_answered_when_the_store_dies_or_closes() {
    for dies in [true, false] {
        let mut store = Threaded::start();
        let next = store.make_worth_rewriting();
        store.room.is([LITTLE]);
        // The rewriting that is to make room is what it dies of.
        store.room.1.fatal.store(dies, Ordering::SeqCst);
        store.submit(append(502..=509, 1));
        store.submit(append(510..=519, 1));
        wait_for("it waits for room", || store.room.1.waited_rounds.load(Ordering::SeqCst) > 0);
        if !dies {
            store.appender = None;
        }
        let cause = if dies { "as the test wants it" } else { "closed before there was room" };
        for batch_number in [next, next + 1] {
            let error = store.completed(batch_number).unwrap_err().to_string();
            assert!(error.contains(cause), "{error}");
        }
    }
}

#[test]
fn a_write_waits_for_room_and_no_longer() {
    let mut store = Threaded::start();
    store.room.is([ROOM_FOR_STATE]);
    // A vote needs less than entries.
    store.submit(Write { hard_state: Some(HardState { term: 2, vote: 3, commit: 1 }), ..Write::default() });
    store.completed(2).unwrap();
    store.submit(append(2..=9, 2));
    store.waits_for_room();
    let needed = store.room.1.needed.load(Ordering::SeqCst);
    assert!((ROOM_FOR_STATE + 8 * 3 * 300..2 * ROOM_FOR_STATE).contains(&needed), "{needed}");
    store.room.is([needed - 1]);
    let rounds = store.room.1.waited_rounds.load(Ordering::SeqCst);
    wait_for("two more looks", || store.room.1.waited_rounds.load(Ordering::SeqCst) > rounds + 2);
    assert!(store.completed.try_recv().is_err());
    store.room.is([needed]);
    store.completed(3).unwrap();
}

/// Room is short for a write that waits for it, however much counts as short: the reserve is lent and the log
/// rewritten.
#[test]
fn a_write_that_waits_has_room_made_for_it() {
    let mut store = Threaded::start();
    let next = store.make_worth_rewriting();
    assert_eq!(store.story.told(), Vec::<String>::new(), "nothing is rewritten while there is room");
    store.room.is([LITTLE]);
    store.submit(append(502..=509, 1));
    store.waits_for_room();
    wait_for("the log is rewritten", || store.story.told().iter().any(|step| step.starts_with("remove")));
    store.room.is([1 << 40]);
    store.completed(next).unwrap();
    wait_for("the reserve is given back", || store.room.1.lent.load(Ordering::SeqCst) == 0);
}

/// A compaction makes room for the write that waits before it, and is reported behind it.
#[test]
fn a_compaction_does_not_wait_for_room() {
    let mut store = Threaded::start();
    for (first, batch_number) in (2..100).step_by(10).zip(2..) {
        store.submit(append(first..=first + 9, 1));
        store.completed(batch_number).unwrap();
    }
    store.room.is([2 * ROOM_FOR_STATE - 1]);
    // One in the write that waits, one behind it, and one of what is still to be written.
    store.submit(Write { entries: entries(102..=130, 1, 20_000), ..compact(50, 1) });
    store.waits_for_room();
    store.submit(compact(90, 1));
    store.submit(compact(120, 1));
    let compacted = || store.shared.with_engine(|_, logs| Ok((logs[&GROUP].compacted.0, logs[&GROUP].newest))).unwrap();
    // Blocks of ten entries go as a whole.
    wait_for("the log is cut", || compacted() == (81, 90));
    assert!(store.room.1.made.load(Ordering::SeqCst) > 0);
    wait_for("no more room is made", || store.room.1.making.load(Ordering::SeqCst) == 0);
    assert!(store.completed.try_recv().is_err(), "in the order of their submission");
    store.room.is([1 << 40]);
    for batch_number in [12, 13, 14] {
        store.completed(batch_number).unwrap();
    }
    assert_eq!(compacted().1, 120);
}

/// A log whose beginning cannot go for want of room is rewritten with the reserve, and its beginning goes afterwards.
#[test]
fn a_cut_that_finds_no_room_does_not_keep_the_log_from_being_rewritten() {
    let mut store = Threaded::start();
    let (last, mut batch_number) = (MAX_TRUNCATED_KEYS as u64 * 4 + 1, 1);
    for first in (2..=last).step_by(2) {
        batch_number += 1;
        store.submit(append(first..=first + 1, 1));
        store.completed(batch_number).unwrap();
    }
    store.room.1.short.store(true, Ordering::SeqCst);
    // Only the compaction itself finds room.
    store.room.is([1 << 40, ROOM_FOR_STATE - 1]);
    store.submit(compact(last - 8, 1));
    store.completed(batch_number + 1).unwrap();
    wait_for("the log is rewritten", || store.story.told().iter().any(|step| step.starts_with("remove")));
    let compacted = || store.shared.with_engine(|_, logs| Ok(logs[&GROUP].compacted.0)).unwrap();
    assert!(compacted() < last - 8, "a part of its beginning was still there");
    store.room.is([1 << 40]);
    wait_for("the rest of its beginning goes", || compacted() == last - 8);
    wait_for("the reserve is given back", || store.room.1.lent.load(Ordering::SeqCst) == 0);
}
