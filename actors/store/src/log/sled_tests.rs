//! Tests of the sled store: each tells what was done to a directory, and by what name it is then refused.

use std::sync::mpsc::{Receiver, channel};

use actorum_core::wire::{Entry, EntryKind, Snapshot};

use super::*;
use crate::log::{
    conformance,
    inspect::Inspection,
    record::{self, Scan},
    watermark::Mark,
};

const GROUP: GroupId = GroupId::FIRST;

fn options() -> OpenOptions {
    // What sled itself gives back and where: a log that moves has tests of its own.
    OpenOptions { rewrite_min_bytes: u64::MAX, ..OpenOptions::new(1, Incarnation(0xfeed)) }
}

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    let data = Bytes::from(vec![index as u8 ^ term as u8; bytes]);
    Entry { kind: EntryKind::Normal, term, index, data, context: Bytes::new() }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term, 40)).collect()
}

/// A node's directory, and whatever store is open on it.
struct Node {
    dir: tempfile::TempDir,
    running: Option<(Box<dyn LogAppender>, Receiver<Completed>)>,
}

impl Node {
    /// Formed, with a term, a vote, and entries 2 to 9 in blocks of two.
    fn new() -> Node {
        let mut node = Node { dir: tempfile::tempdir().unwrap(), running: None };
        let snapshot = Some(Snapshot { index: 1, term: 1, ..Snapshot::default() });
        let hard_state = Some(HardState { term: 2, vote: 3, commit: 1 });
        node.write(Write { snapshot, hard_state, ..Write::default() });
        for first in [2, 4, 6, 8] {
            node.write(Write { entries: entries(first..=first + 1, 2), ..Write::default() });
        }
        node
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn open(&self) -> Result<SledStore, OpenError> {
        SledStore::open(&self.path(), options())
    }

    fn submit(&mut self, batch: Batch) -> Result<Written, StoreError> {
        if self.running.is_none() {
            let (heard, completed) = channel();
            let store = Box::new(self.open().unwrap());
            let appender = store.start(Arc::new(move |completion| heard.send(completion).unwrap()));
            self.running = Some((appender, completed));
        }
        let (appender, completed) = self.running.as_mut().unwrap();
        appender.submit(batch);
        completed.recv_timeout(Duration::from_secs(30)).unwrap().result
    }

    fn write(&mut self, write: Write) {
        self.submit(Batch { writes: vec![write], sync: true }).unwrap();
    }

    fn close(&mut self) {
        self.running = None;
    }

    /// Changes the engine's values behind the store's back.
    fn tamper(&mut self, change: impl FnOnce(&sled::Db)) {
        self.close();
        let engine = SledEngine::open(&self.path().join("log"), &options()).unwrap();
        change(&engine.db);
        engine.flush().unwrap();
    }

    /// What opening says, after checking that it says it again, and that inspecting finds it too.
    fn refused(&mut self) -> String {
        self.close();
        let refusal = self.open().expect_err("it should be refused").to_string();
        assert_eq!(self.open().unwrap_err().to_string(), refusal, "for good");
        let report = Inspection::open(&self.path()).unwrap().verify();
        assert!(!report.problems.is_empty(), "verify finds nothing where opening says {refusal}");
        println!("{refusal}\n  {report}");
        refusal
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

impl<E: Engine> SledStore<E> {
    /// Changes a value behind the store's back.
    pub(in crate::log) fn tamper(&self, key: Key, change: impl FnOnce(&mut Vec<u8>)) {
        let tampered = self.shared.with_engine(|engine, _| {
            let mut value = engine.get(key)?.unwrap().to_vec();
            change(&mut value);
            engine.apply(vec![(key, Some(value))])
        });
        tampered.unwrap();
    }
}

#[test]
fn sled_passes_the_conformance_suite() {
    conformance::conformance(|| {
        let dir = tempfile::tempdir().unwrap();
        move || -> Box<dyn LogStore> { Box::new(SledStore::open(&dir.path().join("new/data"), options()).unwrap()) }
    });
}

/// Promise 2: what a node has promised in a term it does not take back. Whoever asks for that is broken, and nothing of
/// it is written.
#[test]
fn a_promise_that_would_be_taken_back_ends_the_store() {
    for (state, fact) in [
        (HardState { term: 4, vote: 3, commit: 1 }, "the durable term would fall from 5 to 4"),
        (HardState { term: 5, vote: 2, commit: 1 }, "its vote of term 5 would go from 3 to 2"),
    ] {
        let mut node = Node::new();
        let promise = HardState { term: 5, vote: 3, commit: 1 };
        node.write(Write { hard_state: Some(promise), ..Write::default() });
        let taken_back = Write { hard_state: Some(state), ..Write::default() };
        let error = node.submit(Batch { writes: vec![taken_back], sync: true }).unwrap_err().to_string();
        assert!(error.contains(fact), "{error}");
        node.close();
        assert_eq!(node.open().unwrap().recover(GROUP).unwrap().hard_state, promise);
    }
}

/// No caller can ask for such a log: what is known of it is wrong, as a mistake of the store would leave it. Nothing is
/// written over it.
#[test]
fn a_log_that_would_end_before_its_beginning_ends_the_store() {
    let mut node = Node::new();
    node.close();
    let store = node.open().unwrap();
    store.shared.tamper(GROUP, |log| log.last = (0, 0));
    let (heard, completed) = channel();
    let mut appender = Box::new(store).start(Arc::new(move |completion: Completed| heard.send(completion).unwrap()));
    let write = |state| Batch { writes: vec![Write { hard_state: Some(state), ..Write::default() }], sync: true };
    appender.submit(write(HardState { term: 6, vote: 2, commit: 0 }));
    appender.submit(write(HardState { term: 7, vote: 2, commit: 0 }));
    for _ in 0..2 {
        let error = completed.recv_timeout(Duration::from_secs(30)).unwrap().result.unwrap_err().to_string();
        assert!(error.contains("group 0: its log would end at 0, before its beginning at 1"), "{error}");
    }
    drop(appender);
    let found = node.open().unwrap().recover(GROUP).unwrap();
    assert_eq!((found.last_index, found.hard_state.term, found.hard_state.vote), (9, 2, 3));
}

#[test]
#[should_panic(expected = "the log itself is never removed")]
fn the_generation_that_counts_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let reserve = Reserve::of(dir.path(), ReserveBounds::default());
    let mut generations = Generations::new(dir.path().to_owned(), Arc::new(Sled), options(), 3, reserve);
    generations.leaving = Some(3);
    drop(generations.remove());
}

#[test]
fn one_flipped_bit_in_any_record_is_named() {
    for (key, name) in [
        (Key::OWNER, "owner of the store"),
        (Key::hard_state(GROUP), "group 0: hard state"),
        (Key::snapshot(GROUP), "group 0: snapshot"),
        (Key::block(GROUP, 2), "group 0: block 2"),
        (Key::block(GROUP, 8), "group 0: block 8"),
    ] {
        let mut node = Node::new();
        node.tamper(|db| {
            let mut value = db.get(key.encode()).unwrap().unwrap().to_vec();
            let middle = value.len() - 3;
            value[middle] ^= 4;
            db.insert(key.encode(), value).unwrap();
        });
        let refusal = node.refused();
        assert!(refusal.contains(&format!("{name} is damaged: checksum")), "{refusal}");
    }
}

#[test]
fn every_bit_of_a_record_counts() {
    let mut pieces = Vec::new();
    record::seal_entries(GROUP, 77, &entries(5..=6, 3), &mut pieces);
    let (key, value) = pieces.pop().unwrap();
    record::open(key, Bytes::from(value.clone())).unwrap();
    for bit in 0..value.len() * 8 {
        let mut flipped = value.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(record::open(key, Bytes::from(flipped)).is_err(), "bit {bit}");
    }
    assert!(record::open(Key::block(GROUP, 6), Bytes::from(value.clone())).is_err(), "under another key");
    for length in 0..value.len() {
        assert!(record::open(key, Bytes::from(value[..length].to_vec())).is_err(), "cut to {length}");
    }
}

#[test]
fn a_missing_block_is_a_gap() {
    let mut node = Node::new();
    node.tamper(|db| drop(db.remove(Key::block(GROUP, 4).encode()).unwrap().unwrap()));
    let refusal = node.refused();
    assert!(refusal.contains("group 0: block 6 is damaged: entries 4 to 5 are missing before it"), "{refusal}");
}

#[test]
fn a_missing_piece_of_a_large_entry_is_named() {
    for (gone, words) in [
        (0, "block 10 piece 1 is damaged: the pieces before it are missing"),
        (1, "piece 1 of 3"),
        (2, "it has 2 of 3 pieces"),
    ] {
        let mut node = Node::new();
        node.write(Write { entries: vec![entry(10, 2, 3 * record::PIECE_MAX - 100)], ..Write::default() });
        node.write(Write { entries: entries(11..=12, 2), ..Write::default() });
        node.tamper(|db| drop(db.remove(Key::block(GROUP, 10).piece(gone).encode()).unwrap().unwrap()));
        let refusal = node.refused();
        assert!(refusal.contains(words), "{refusal}");
    }
}

#[test]
fn a_missing_snapshot_under_a_log_is_named() {
    let mut node = Node::new();
    node.tamper(|db| drop(db.remove(Key::snapshot(GROUP).encode()).unwrap().unwrap()));
    let refusal = node.refused();
    assert!(refusal.contains("block 2 is damaged: entries 1 to 1 are missing"), "{refusal}");
}

#[test]
fn an_intact_block_in_the_wrong_place_breaks_the_chain() {
    let mut node = Node::new();
    // Two logs that differ in entry 4 and 5 alone, each intact in itself: one's block is put into the other.
    node.tamper(|db| {
        let mut pieces = Vec::new();
        let previous = db.get(Key::block(GROUP, 4).encode()).unwrap().unwrap();
        let previous = record::open(Key::block(GROUP, 4), Bytes::copy_from_slice(&previous)).unwrap().previous;
        let other = [entry(4, 2, 41), entry(5, 2, 41)];
        record::seal_entries(GROUP, previous, &other, &mut pieces);
        let (key, value) = pieces.pop().unwrap();
        db.insert(key.encode(), value).unwrap();
    });
    let refusal = node.refused();
    assert!(refusal.contains("group 0: block 6 is damaged: it does not follow the block before it"), "{refusal}");
}

#[test]
fn a_term_that_runs_backwards_and_an_unknown_key_are_named() {
    let mut node = Node::new();
    node.tamper(|db| {
        let found = node_tail(db);
        let mut pieces = Vec::new();
        record::seal_entries(GROUP, found, &entries(10..=10, 1), &mut pieces);
        let (key, value) = pieces.pop().unwrap();
        db.insert(key.encode(), value).unwrap();
    });
    assert!(node.refused().contains("block 10 is damaged: 10@1 follows term 2"));
    let mut node = Node::new();
    node.tamper(|db| drop(db.insert(b"hello", b"world").unwrap()));
    assert!(node.refused().contains("key 68656c6c6f is damaged"));
}

fn node_tail(db: &sled::Db) -> u32 {
    let mut scan = Scan::new();
    for pair in db.iter() {
        let (key, value) = pair.unwrap();
        scan.push(&key, Bytes::copy_from_slice(&value));
    }
    scan.finish().groups[&GROUP].tail
}

/// Puts back an older copy of the log beside the newer watermark, and says how that is refused.
fn rolled_back(change: impl FnOnce(&mut Node)) -> String {
    let mut node = Node::new();
    node.close();
    let older = tempfile::tempdir().unwrap();
    copy_dir(&node.path().join("log"), older.path());
    change(&mut node);
    node.close();
    fs::remove_dir_all(node.path().join("log")).unwrap();
    copy_dir(older.path(), &node.path().join("log"));
    node.refused()
}

#[test]
fn an_older_copy_of_the_log_is_refused_by_name() {
    let state = |term, vote| Write { hard_state: Some(HardState { term, vote, commit: 1 }), ..Write::default() };
    let refusal = rolled_back(|node| node.write(state(3, 0)));
    assert!(refusal.contains("was rolled back: it holds term 2") && refusal.contains("term 3"), "{refusal}");
    let refusal = rolled_back(|node| node.write(Write { entries: entries(10..=10, 2), ..Write::default() }));
    assert!(refusal.contains("it holds a log up to index 9") && refusal.contains("index 10@2"), "{refusal}");
    let refusal = rolled_back(|node| node.write(Write { entries: vec![entry(9, 3, 1)], ..Write::default() }));
    assert!(refusal.contains("it holds another entry, 9@2") && refusal.contains("index 9@3"), "{refusal}");
}

#[test]
fn a_forgotten_vote_is_refused_even_when_the_process_was_killed() {
    // No close: the watermark has only what was synced with the vote itself.
    let mut node = Node { dir: tempfile::tempdir().unwrap(), running: None };
    node.write(Write { hard_state: Some(HardState { term: 5, vote: 0, commit: 0 }), ..Write::default() });
    let older = tempfile::tempdir().unwrap();
    copy_dir(&node.path(), older.path());
    node.write(Write { hard_state: Some(HardState { term: 5, vote: 2, commit: 0 }), ..Write::default() });
    fs::copy(node.path().join("watermark"), older.path().join("watermark")).unwrap();
    let refusal = SledStore::open(older.path(), options()).unwrap_err();
    assert!(matches!(refusal, OpenError::RolledBack { .. }), "{refusal}");
    assert!(refusal.to_string().contains("vote 0 in term 5"), "{refusal}");
}

#[test]
fn an_emptied_log_under_a_watermark_is_refused() {
    for name in ["log", "log/db"] {
        let mut node = Node::new();
        node.close();
        let path = node.path().join(name);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        assert!(matches!(node.open(), Err(OpenError::RolledBack { .. })), "without {name}");
        node.refused();
    }
    // As after a power cut that sled's own flush did not survive: it opens empty, without an error.
    let mut node = Node::new();
    node.tamper(|db| db.clear().unwrap());
    assert!(matches!(node.open(), Err(OpenError::RolledBack { .. })));
    assert!(node.refused().contains("an empty log"));
}

#[test]
fn the_watermark_never_stands_ahead_of_an_honest_store() {
    // At each step the directory is copied as a crash would leave it, and must open.
    let mut node = Node::new();
    let check = |node: &mut Node, write: Write| {
        node.write(write);
        let crashed = tempfile::tempdir().unwrap();
        copy_dir(&node.path(), crashed.path());
        SledStore::open(crashed.path(), options()).unwrap();
    };
    let state = |term| Some(HardState { term, vote: 1, commit: 1 });
    for term in 3..9 {
        check(&mut node, Write { hard_state: state(term), ..Write::default() });
        check(&mut node, Write { entries: entries(5..=12, term), ..Write::default() });
        node.close(); // raises the index
        check(&mut node, Write { entries: entries(4..=4, term), ..Write::default() });
        let snapshot = |index| Some(Snapshot { index, term, ..Snapshot::default() });
        check(&mut node, Write { snapshot: snapshot(4), ..Write::default() });
        check(&mut node, Write { entries: entries(5..=12, term), ..Write::default() });
        node.close();
        check(&mut node, Write { snapshot: snapshot(12), ..Write::default() });
        check(&mut node, Write { snapshot: snapshot(1), entries: entries(2..=9, term), ..Write::default() });
    }
}

#[test]
fn a_truncation_lowers_the_watermark_before_it_cuts() {
    let mut node = Node::new();
    node.close();
    let before = Watermark::inspect(&node.path().join("watermark")).unwrap().0;
    assert_eq!((before.groups[&GROUP].index, before.groups[&GROUP].index_term), (9, 2));
    node.write(Write { entries: entries(5..=5, 2), ..Write::default() });
    let after = Watermark::inspect(&node.path().join("watermark")).unwrap().0;
    assert_eq!((after.groups[&GROUP].index, after.groups[&GROUP].index_term), (4, 2), "lowered to what stays");
}

#[test]
fn either_page_of_the_watermark_may_be_torn() {
    let mut node = Node::new();
    for round in 0..4 {
        node.write(Write { hard_state: Some(HardState { term: 3 + round, vote: 1, commit: 1 }), ..Write::default() });
        node.close();
        let path = node.path().join("watermark");
        let whole = fs::read(&path).unwrap();
        let marks = Watermark::inspect(&path).unwrap().0;
        for page in 0..2 {
            for at in [0, 9, 13, 17, 33, 50] {
                let mut torn = whole.clone();
                torn[page * whole.len() / 2 + at] ^= 0x10;
                fs::write(&path, &torn).unwrap();
                let (found, damaged) = Watermark::inspect(&path).unwrap();
                assert!(damaged.is_some());
                assert!(found.groups[&GROUP].term <= marks.groups[&GROUP].term);
                assert!(!Inspection::open(&node.path()).unwrap().verify().problems.is_empty());
                drop(node.open().unwrap());
                let mended = Watermark::inspect(&path).unwrap().0;
                assert_eq!(mended.groups[&GROUP].term, marks.groups[&GROUP].term, "opening raises it to what it found");
            }
        }
        let mut torn = whole.clone();
        for page in 0..2 {
            torn[page * whole.len() / 2 + 40] ^= 1;
        }
        fs::write(&path, &torn).unwrap();
        assert!(node.refused().contains("watermark is damaged: both pages are"));
        fs::write(&path, &whole[..100]).unwrap();
        assert!(node.refused().contains("watermark is damaged: it has 100 bytes"));
        fs::remove_file(&path).unwrap();
        assert!(node.refused().contains("watermark is damaged: it is missing"));
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn a_torn_page_is_the_next_one_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("watermark");
    Watermark::create(&path, Incarnation(5)).unwrap();
    let mark = |term| [(GROUP, Mark { term, vote: 1, index: term, index_term: term })];
    Watermark::open(&path).unwrap().write(mark(1)).unwrap();
    for term in 2..10 {
        // The newest page is torn: what is left is one step older, and must survive the next write.
        let mut bytes = fs::read(&path).unwrap();
        let at = (0..2).max_by_key(|page| bytes[page * 4096 + 16]).unwrap() * 4096;
        bytes[at + 30] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let mut watermark = Watermark::open(&path).unwrap();
        watermark.write(mark(term)).unwrap();
        let reopened = Watermark::open(&path).unwrap();
        assert_eq!((reopened.mark(GROUP).term, reopened.damaged_page()), (term, None));
    }
}

#[test]
fn more_groups_than_a_page_holds_make_it_grow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("watermark");
    Watermark::create(&path, Incarnation(5)).unwrap();
    let mut watermark = Watermark::open(&path).unwrap();
    for group in 0..500 {
        watermark.write([(GroupId(group), Mark { term: 1, vote: 1, index: group.into(), index_term: 1 })]).unwrap();
    }
    let reopened = Watermark::open(&path).unwrap();
    assert_eq!(reopened.marks(), watermark.marks());
    assert_eq!(reopened.marks().groups.len(), 500);
}

#[test]
fn another_id_a_newer_format_and_a_foreign_directory_are_refused() {
    let mut node = Node::new();
    node.close();
    let foreign = SledStore::open(&node.path(), OpenOptions::new(2, Incarnation(1))).unwrap_err();
    assert!(matches!(foreign, OpenError::Foreign { found: 1, expected: 2, .. }), "{foreign}");
    let path = node.path().join("node");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("format 1", "format 9")).unwrap();
    assert!(matches!(node.open(), Err(OpenError::Newer { found: 9, supported: 1, .. })));
    for bad in ["", "hello", &text.replace("id 1", "id 2"), &text[..text.len() - 3]] {
        fs::write(&path, bad).unwrap();
        assert!(node.refused().contains("node file is damaged"), "{bad}");
    }
    fs::remove_file(&path).unwrap();
    assert!(node.refused().contains("node file is damaged: it is missing"));

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    let refusal = SledStore::open(dir.path(), options()).unwrap_err().to_string();
    assert!(refusal.contains("holds letter.txt"), "{refusal}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was put beside it");
    assert!(matches!(Inspection::open(dir.path()), Err(OpenError::NoNode { .. })));
}

#[test]
fn parts_of_two_directories_do_not_make_one() {
    let (mut a, mut b) = (Node::new(), Node { dir: tempfile::tempdir().unwrap(), running: None });
    a.close();
    drop(SledStore::open(&b.path(), OpenOptions::new(1, Incarnation(2))).unwrap());
    fs::copy(a.path().join("watermark"), b.path().join("watermark")).unwrap();
    assert!(b.refused().contains("watermark is damaged: it belongs to incarnation"));
    fs::copy(a.path().join("node"), b.path().join("node")).unwrap();
    assert!(b.refused().contains("lives file is damaged: it belongs to incarnation"));
    fs::copy(a.path().join("lives"), b.path().join("lives")).unwrap();
    assert!(b.refused().contains("owner of the store is damaged: it says node 1, incarnation"));
}

#[test]
fn a_directory_in_use_says_by_whom() {
    let mut node = Node::new();
    let before = format!("process {} (", std::process::id());
    for refusal in [node.open().unwrap_err(), Inspection::open(&node.path()).unwrap_err()] {
        assert!(matches!(refusal, OpenError::Locked { .. }), "{refusal}");
        assert!(refusal.to_string().contains(&before) && refusal.to_string().contains(" UTC"), "{refusal}");
    }
    node.close();
    node.open().unwrap();
}

#[test]
fn a_creation_that_a_crash_cut_short_starts_again() {
    // What is there after each step, as a crash leaves it.
    let whole = tempfile::tempdir().unwrap();
    drop(SledStore::open(&whole.path().join("data"), options()).unwrap());
    let steps: &[&[&str]] = &[
        &[],
        &["lock"],
        &["lock", "creating"],
        &["lock", "creating", "log"],
        &["lock", "creating", "log", "watermark.new"],
        &["lock", "creating", "log", "watermark"],
        &["lock", "creating", "log", "watermark", "node.new"],
    ];
    for step in steps {
        let dir = tempfile::tempdir().unwrap();
        for name in *step {
            let from = whole.path().join("data").join(name.trim_end_matches(".new"));
            if from.is_dir() {
                copy_dir(&from, &dir.path().join(name));
                let db = dir.path().join("log/db");
                fs::write(&db, &fs::read(&db).unwrap()[..100]).unwrap();
                fs::write(dir.path().join("log/conf"), "segment_").unwrap();
                fs::write(dir.path().join("log/snap.00FF"), "half a snapshot").unwrap();
            } else {
                fs::write(dir.path().join(name), "half").unwrap();
            }
        }
        let store = SledStore::open(dir.path(), OpenOptions::new(1, Incarnation(3))).unwrap();
        assert_eq!(store.identity(), StoreIdentity { id: 1, incarnation: Incarnation(3), boot: 1 }, "{step:?}");
        assert!(!dir.path().join("creating").exists());
    }
    // The very last step is behind it: the directory is whole and keeps its incarnation.
    let path = whole.path().join("data");
    fs::write(path.join("creating"), "").unwrap();
    let store = SledStore::open(&path, OpenOptions::new(1, Incarnation(3))).unwrap();
    assert_eq!(store.identity(), StoreIdentity { id: 1, incarnation: Incarnation(0xfeed), boot: 2 });
}

#[cfg(unix)]
#[test]
fn a_new_directory_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    assert_eq!(fs::metadata(node.path()).unwrap().permissions().mode() & 0o777, 0o700);
    for name in ["node", "watermark"] {
        assert_eq!(fs::metadata(node.path().join(name)).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn an_error_is_final() {
    let mut node = Node::new();
    let reader = {
        node.close();
        let store = Box::new(node.open().unwrap());
        let reader = store.reader();
        let (heard, completed) = channel();
        node.running = Some((store.start(Arc::new(move |c| heard.send(c).unwrap())), completed));
        reader
    };
    let gap = Write { entries: entries(20..=20, 2), ..Write::default() };
    node.submit(Batch { writes: vec![gap], sync: true }).unwrap_err();
    for _ in 0..3 {
        let good = Write { entries: entries(10..=10, 2), ..Write::default() };
        let error = node.submit(Batch { writes: vec![good], sync: true }).unwrap_err();
        assert!(matches!(&error, StoreError::Closed(cause) if cause.contains("an append at 20")), "{error}");
    }
    assert!(matches!(reader.entries(GROUP, 2, 3, 1), Err(StoreError::Closed(_))));
    node.close();
    assert_eq!(node.open().unwrap().recover(GROUP).unwrap().last_index, 9);
}

#[test]
fn a_panic_on_the_stores_thread_is_an_error() {
    let mut node = Node::new();
    // Beyond what can be counted: arithmetic on it overflows, as a bug would.
    let write =
        Write { snapshot: Some(Snapshot { index: u64::MAX, term: 2, ..Snapshot::default() }), ..Write::default() };
    let entries = vec![entry(u64::MAX, 2, 1)];
    let result = node.submit(Batch { writes: vec![Write { entries, ..write }], sync: true });
    assert!(result.is_err());
    let next = node.submit(Batch::default());
    assert!(matches!(next, Err(StoreError::Closed(_))), "{next:?}");
}

#[test]
fn a_reader_that_outlives_the_store_does_not_hold_the_directory() {
    let mut node = Node::new();
    node.close();
    let store = node.open().unwrap();
    let reader = store.reader();
    drop(store);
    assert!(matches!(reader.entries(GROUP, 2, 3, 1), Err(StoreError::Closed(_))));
    node.open().unwrap();
}

#[test]
fn what_waits_is_made_durable_as_one() {
    let mut node = Node::new();
    node.close();
    let store = Box::new(node.open().unwrap());
    let (heard, completed) = channel();
    let (go, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let mut appender = store.start(Arc::new(move |c: Completed| {
        if c.batch_number == BatchNumber(1) {
            wait.lock().unwrap().recv().unwrap(); // the store's thread is held up while more is submitted
        }
        heard.send(c).unwrap();
    }));
    for index in 10..=109 {
        let write = Write { entries: entries(index..=index, 2), ..Write::default() };
        appender.submit(Batch { writes: vec![write], sync: true });
    }
    go.send(()).unwrap();
    let completions: Vec<Written> = completed.iter().take(100).map(|c| c.result.unwrap()).collect();
    let syncs = completions.windows(2).filter(|pair| pair[0].sync != pair[1].sync).count() + 1;
    assert!(syncs <= 2, "100 batches, {syncs} syncs");
    drop(appender);
    let blocks = Inspection::open(&node.path()).unwrap().group(GROUP).blocks;
    assert!(blocks <= 4 + 2, "and {blocks} blocks");
}

#[test]
fn no_blob_file_appears() {
    // What goes to a blob file is never synced: see the head of this file's parent.
    let mut node = Node::new();
    let blobs = node.path().join("log/blobs");
    let mut index = 10;
    for round in 0..12 {
        let big = (index..index + 8).map(|index| entry(index, 2, 190_000 + 64 * round)).collect();
        node.write(Write { entries: big, ..Write::default() });
        node.write(Write { entries: vec![entry(index + 8, 2, 8 << 20)], ..Write::default() });
        index += 7; // and cut into it
        assert_eq!(fs::read_dir(&blobs).unwrap().count(), 0);
    }
    node.close();
    node.open().unwrap();
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 0);
}

#[test]
fn a_log_replaced_by_a_snapshot_gives_its_space_back() {
    let mut node = Node::new();
    let disk = |node: &Node| fs::metadata(node.path().join("log/db")).unwrap().len();
    let mut index = 10;
    let mut sizes = Vec::new();
    for term in 3..=6 {
        for _ in 0..50 {
            let write = Write { entries: vec![entry(index, term, 1 << 20)], ..Write::default() };
            node.write(write);
            index += 1;
        }
        sizes.push(disk(&node) >> 20);
        let snapshot = Some(Snapshot { index: index + 9, term, ..Snapshot::default() });
        node.write(Write { snapshot, ..Write::default() });
        index += 10;
    }
    println!("MiB on disk with 50 MiB of entries, after each of 4 snapshots: {sizes:?}");
    assert!(sizes[3] < 300, "{sizes:?}");
}

#[test]
fn inspecting_changes_nothing_and_reads_everything() {
    let mut node = Node::new();
    node.write(Write { entries: vec![entry(10, 3, 1 << 20)], ..Write::default() });
    node.close();
    let listing = |path: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut dirs = vec![path.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { dirs.push(path) } else { files.push((path.clone(), fs::read(path).unwrap())) }
            }
        }
        files.sort();
        files
    };
    let before = listing(&node.path());
    let inspection = Inspection::open(&node.path()).unwrap();
    assert_eq!(inspection.identity().unwrap().boot, 1);
    let group = inspection.group(GROUP);
    assert_eq!((group.first_index, group.last_index, group.blocks), (Some(2), 10, 5));
    assert_eq!(group.hard_state, HardState { term: 2, vote: 3, commit: 1 });
    assert_eq!(group.watermark, Some(Mark { term: 2, vote: 3, index: 10, index_term: 3 }));
    assert_eq!(group.terms, [(1, 1), (2, 2), (10, 3)]);
    assert_eq!(inspection.groups(), [group]);
    assert_eq!(inspection.entries(GROUP, 4, 8, usize::MAX).unwrap(), entries(4..=7, 2));
    assert_eq!(inspection.verify().to_string(), "13 records checked, 0 problems");
    drop(inspection);
    assert!(before == listing(&node.path()), "not a byte changed");
}

#[test]
fn inspecting_a_damaged_log_lists_all_and_reads_the_rest() {
    let mut node = Node::new();
    node.tamper(|db| {
        for first in [4, 8] {
            let key = Key::block(GROUP, first).encode();
            let mut value = db.get(key).unwrap().unwrap().to_vec();
            value[30] ^= 1;
            db.insert(key, value).unwrap();
        }
    });
    node.close();
    let inspection = Inspection::open(&node.path()).unwrap();
    let problems = inspection.verify().problems;
    let names: Vec<&str> = problems.iter().map(|problem| problem.what.as_str()).collect();
    assert_eq!(names, ["group 0: the log", "group 0: block 4", "group 0: block 8"]);
    assert_eq!(inspection.entries(GROUP, 2, 4, usize::MAX).unwrap(), entries(2..=3, 2));
    assert_eq!(inspection.entries(GROUP, 6, 8, usize::MAX).unwrap(), entries(6..=7, 2));
    let error = inspection.entries(GROUP, 2, 8, usize::MAX).unwrap_err().to_string();
    assert!(error.contains("group 0: block 4"), "{error}");
}

#[test]
fn flipped_bits_in_the_files_are_named_or_harmless() {
    // Anywhere in the log's bytes: refused with a specific error, or opened with all that was promised.
    let mut node = Node::new();
    for index in 10..60 {
        node.write(Write { entries: vec![entry(index, 2, 3000)], ..Write::default() });
    }
    node.close();
    let whole = tempfile::tempdir().unwrap();
    copy_dir(&node.path(), whole.path());
    let used = fs::read(whole.path().join("log/db")).unwrap();
    let used = used.iter().rposition(|byte| *byte != 0).unwrap().min(200_000);
    let (mut refused, mut intact) = (0, 0);
    for nth in 0..24 {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(whole.path(), dir.path());
        let path = dir.path().join("log/db");
        let mut bytes = fs::read(&path).unwrap();
        let at = used * nth / 24 + nth % 7;
        bytes[at] ^= 1 << (nth % 8);
        fs::write(&path, bytes).unwrap();
        match SledStore::open(dir.path(), options()) {
            Ok(store) => {
                let recovered = store.recover(GROUP).unwrap();
                assert_eq!(recovered.hard_state, HardState { term: 2, vote: 3, commit: 1 }, "bit at {at}");
                assert_eq!(recovered.last_index, 59, "bit at {at}");
                intact += 1;
            }
            Err(OpenError::Damaged { .. } | OpenError::RolledBack { .. } | OpenError::Io { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    println!("{refused} refused with a specific error, {intact} intact");
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// What a group holds, for drawing the next write.
#[derive(Clone, Default)]
struct Drawn {
    compacted_index: u64,
    last: u64,
    state: HardState,
    newest: u64,
    /// Of every entry and the compacted index.
    terms: BTreeMap<u64, u64>,
}

fn draw(rng: &mut Rng, group: GroupId, drawn: &mut Drawn) -> Write {
    let mut write = Write { group, ..Write::default() };
    if drawn.compacted_index == 0 || rng.below(40) == 0 {
        // A snapshot: the first one, one ahead of the log, or one inside it.
        let index = 1 + rng.below(drawn.last + 5).max(drawn.compacted_index);
        drawn.state.term += 1;
        let data = Bytes::from(vec![7; rng.below(2) as usize * 250_000]);
        write.snapshot = Some(Snapshot { index, term: drawn.state.term, data, ..Snapshot::default() });
        (drawn.compacted_index, drawn.last, drawn.newest) = (index, index, index);
        drawn.terms = [(index, drawn.state.term)].into();
        drawn.state.commit = index;
    }
    if rng.below(10) < 8 {
        let first = match rng.below(4) {
            0 => drawn.newest + 1 + rng.below(drawn.last - drawn.newest + 1),
            _ => drawn.last + 1,
        };
        if first <= drawn.last {
            drawn.state.term += 1;
            drawn.state.commit = drawn.state.commit.min(first - 1);
        }
        let count = 1 + rng.below(20);
        // Mostly small, now and then larger than a value may be.
        let sizes = |rng: &mut Rng| match rng.below(100) {
            0 => 500_000,
            1..=5 => 60_000,
            n => n as usize * 7,
        };
        let entries = (first..first + count).map(|index| entry(index, drawn.state.term, sizes(rng)));
        write.entries = entries.collect();
        drawn.last = first + count - 1;
        drawn.terms.split_off(&first);
        drawn.terms.extend(write.entries.iter().map(|entry| (entry.index, entry.term)));
    }
    // A vote is given once in a term.
    drawn.state.vote = if drawn.state.vote == 0 && rng.below(6) == 0 { rng.below(4) } else { drawn.state.vote };
    drawn.state.commit += rng.below(drawn.last - drawn.state.commit + 1);
    write.hard_state = Some(drawn.state);
    if rng.below(8) == 0 && drawn.state.commit >= drawn.newest {
        // One or two snapshots to start from, and what is before the first may go, or some of it.
        drawn.newest += rng.below(drawn.state.commit - drawn.newest + 1);
        let older = drawn.compacted_index + rng.below(drawn.newest - drawn.compacted_index + 1);
        let kept: BTreeMap<u64, u64> = [older, drawn.newest].map(|index| (index, drawn.terms[&index])).into();
        let snapshot = |(index, term)| Snapshot { index, term, ..Snapshot::default() };
        let up_to = drawn.compacted_index + rng.below(older - drawn.compacted_index + 1);
        write.compact = Some(Compact { snapshots: kept.into_iter().map(snapshot).collect(), up_to });
        drawn.terms = drawn.terms.split_off(&up_to);
        drawn.compacted_index = up_to;
    }
    write
}

/// Random writes to sled and to memory side by side: both must hold the same, at every reopening and in every read.
#[test]
fn random_writes_leave_what_a_simple_model_holds() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now);
    println!("SEED={seed}");
    let mut rng = Rng(seed);
    let dir = tempfile::tempdir().unwrap();
    let disk = crate::log::memory::MemoryDisk::new();
    let groups = [GROUP, GroupId(3)];
    let mut drawn = [Drawn::default(), Drawn::default()];
    let mut behind = 0;
    for life in 0..25 {
        let (sled, memory) = (SledStore::open(dir.path(), options()).unwrap(), disk.open(1, Incarnation(1)).unwrap());
        for group in groups {
            let (found, exact) = (sled.recover(group).unwrap(), memory.recover(group).unwrap());
            let outside = |found: &Recovered| (found.snapshots.clone(), found.hard_state, found.last_index);
            assert_eq!(outside(&found), outside(&exact), "life {life}");
            // Memory lets go of exactly what it may, sled of whole blocks.
            assert!(found.compacted_index() <= exact.compacted_index(), "life {life}");
            for index in exact.compacted_index()..=exact.last_index {
                assert_eq!(found.term_at(index), exact.term_at(index), "life {life}: {index}");
            }
            behind = behind.max(exact.compacted_index() - found.compacted_index());
        }
        let readers = [sled.reader(), memory.reader()];
        let (heard, completed) = channel();
        let heard = std::sync::Mutex::new(heard);
        let hear: Completions = Arc::new(move |completion| heard.lock().unwrap().send(completion).unwrap());
        let mut appenders = [Box::new(sled).start(hear.clone()), Box::new(memory).start(hear)];
        for _ in 0..rng.below(12) {
            let batches: Vec<Batch> = (0..1 + rng.below(4))
                .map(|_| {
                    let writes = (0..1 + rng.below(3)).map(|_| {
                        let which = rng.below(2) as usize;
                        draw(&mut rng, groups[which], &mut drawn[which])
                    });
                    Batch { writes: writes.collect(), sync: true }
                })
                .collect();
            for appender in &mut appenders {
                for batch in &batches {
                    appender.submit(batch.clone());
                }
            }
            for _ in 0..2 * batches.len() {
                completed.recv_timeout(Duration::from_secs(30)).unwrap().result.unwrap();
            }
            for (group, drawn) in groups.into_iter().zip(&drawn) {
                let from = drawn.compacted_index + rng.below(drawn.last - drawn.compacted_index + 2);
                let to = from + rng.below(drawn.last + 2 - from + 1);
                let bytes = rng.below(1 << 20) as usize;
                let [sled, memory] = readers.each_ref().map(|reader| reader.entries(group, from, to, bytes));
                if from <= drawn.compacted_index && from < to {
                    assert!(memory.is_err(), "life {life}: {from} to {to}");
                    continue; // sled may have it still
                }
                assert_eq!(sled.is_ok(), memory.is_ok(), "life {life}: {from} to {to}: {sled:?}");
                assert_eq!(sled.ok(), memory.ok(), "life {life}: {from} to {to}");
            }
        }
    }
    println!("at most {behind} entries were kept longer than they must");
    assert!(Inspection::open(dir.path()).unwrap().verify().problems.is_empty());
}
