//! One bit flipped anywhere in a stopped node's directory: nothing is lost in silence, and nothing panics.
//!
//! A directory is made with appends, truncations, votes, large entries and several segments of the engine, and taken
//! twice: as a kill leaves it, and as an orderly end does (the engine then adds a file). Then, 30 times, two hundred
//! times in `.ci/run`, or `CYCLES` times (`SEED` repeats the draws), one bit of one file is flipped, and
//!
//! - opening it either fails with a specific error, for good, or recovers every entry, the term and the vote as they
//!   were (and a node that goes on with it holds them still);
//! - `actorum inspect --verify` fails with the name of what is damaged where opening refuses, and changes not a byte.
//!
//! What may be flipped without harm is listed by [`harmless`], and nothing else may.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use actorum_core::{
    log::store::{HardState, Recovered, Write},
    system_state::SystemState,
    wire::{Entry, EntryKind},
};
use actorum_machine::ids::{ClusterId, GroupId, Incarnation};
use actorum_store::log::{
    sled::{OpenOptions, SledStore},
    store::{Batch, LogStore, OpenError},
    watermark::Watermark,
};
use bytes::Bytes;

use crate::figures::figure;
use crate::lab::{
    self,
    directory::{copy, let_go},
};
use crate::rng::Rng;

const GROUP: GroupId = GroupId::FIRST;
/// The engine's segments are of 16 MiB each.
const LOG_BYTES: u64 = 10 << 20;

fn options() -> OpenOptions {
    let mut options = OpenOptions::new(1, Incarnation(0x0123_4567_89ab_cdef));
    options.open_within = Duration::from_secs(60);
    options
}

fn open(dir: &Path) -> Result<SledStore, OpenError> {
    let_go(dir);
    SledStore::open(dir, options())
}

fn entry(index: u64, term: u64, bytes: usize, rng: &mut Rng) -> Entry {
    let data: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| rng.below(u64::MAX).to_le_bytes()).collect();
    Entry { kind: EntryKind::Normal, term, index, data: Bytes::from(data), context: Bytes::new() }
}

/// What must be recovered.
#[derive(PartialEq, Eq)]
struct Held {
    owner: (u64, Incarnation),
    recovered: Recovered,
    entries: Vec<Entry>,
}

/// Makes the directory of a node that has lived, and another as a kill would have left it.
fn make(dir: &Path, killed: &Path, rng: &mut Rng) -> Held {
    let store = Box::new(open(dir).expect("a new directory"));
    let (heard, completed) = channel();
    let mut appender = store.start(Arc::new(move |completion| heard.send(completion).expect("the test listens")));
    let mut write = |write: Write| {
        appender.submit(Batch { writes: vec![Write { group: GROUP, ..write }], sync: true });
        let completed = completed.recv_timeout(lab::TIMEOUT).expect("it answers");
        completed.result.expect("it is written");
    };
    let (mut term, mut vote, mut last, mut commit, mut written) = (1, 1, 1, 1, 0);
    let founders = BTreeMap::from([(1, "127.0.0.1:7001".into())]);
    let genesis = SystemState::founded(ClusterId(0x0123_4567), &founders);
    write(Write {
        snapshot: Some(genesis.genesis(BTreeMap::new()).expect("it can be encoded")),
        hard_state: Some(HardState { term, vote, commit }),
        ..Write::default()
    });
    while written < LOG_BYTES {
        let mut from = last + 1;
        if rng.below(8) == 0 {
            // A new term, with a vote, and often a new leader's entries in the place of the uncommitted.
            (term, vote) = (term + 1, rng.below(4));
            from = commit + 1 + rng.below(last - commit + 1);
        }
        let count = [1, 2, 16, 64][rng.below(4) as usize];
        let bytes = |rng: &mut Rng| match rng.below(60) {
            0 => 100_000 + rng.below(400_000) as usize,
            1..=9 => rng.below(30_000) as usize,
            _ => rng.below(300) as usize,
        };
        let entries: Vec<Entry> = (from..from + count).map(|index| entry(index, term, bytes(rng), rng)).collect();
        written += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
        last = from + count - 1;
        commit += rng.below(last - commit + 1);
        write(Write { entries, hard_state: Some(HardState { term, vote, commit }), ..Write::default() });
    }
    // What a kill leaves is what the system has: and the watermark follows after a short quiet.
    lab::wait("the watermark to follow", || {
        let marks = Watermark::inspect(&dir.join("watermark")).expect("a watermark").0;
        (marks.groups[&GROUP].index == last).then_some(())
    });
    copy(dir, killed);
    drop(appender);
    look(open(dir).expect("it opens as it was left"))
}

/// All that a store holds.
fn look(store: SledStore) -> Held {
    let recovered = store.recover(GROUP).expect("it recovers");
    let entries = store.reader().entries(GROUP, 2, recovered.last_index + 1, usize::MAX).expect("its entries");
    Held { owner: (store.identity().id, store.identity().incarnation), recovered, entries }
}

/// Appends one entry to a store, as a node that goes on with it would.
fn append(store: SledStore, write: Write) {
    let (heard, completed) = channel();
    let mut appender =
        Box::new(store).start(Arc::new(move |completion| heard.send(completion).expect("the test listens")));
    appender.submit(Batch { writes: vec![Write { group: GROUP, ..write }], sync: true });
    completed.recv_timeout(lab::TIMEOUT).expect("it answers").result.expect("it is written");
}

/// Every file below a directory, with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.extend(contents(&path)),
            false => drop(files.insert(path.clone(), fs::read(&path).expect("a file"))),
        }
    }
    files
}

/// Makes the files what they were; which of them were not.
fn restore(dir: &Path, whole: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<String> {
    let now = contents(dir);
    let name = |path: &Path| path.strip_prefix(dir).expect("inside").display().to_string();
    let mut changed = Vec::new();
    for path in now.keys().filter(|path| !whole.contains_key(*path)) {
        fs::remove_file(path).expect("a file");
        changed.push(name(path));
    }
    for (path, bytes) in whole.iter().filter(|(path, bytes)| now.get(*path) != Some(*bytes)) {
        fs::write(path, bytes).expect("a file");
        changed.push(name(path));
    }
    changed
}

fn flip(path: &Path, bit: usize) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit as u64 / 8).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], bit as u64 / 8).expect("a byte");
}

/// A directory, and how it was before a flip.
struct Directory {
    dir: PathBuf,
    whole: BTreeMap<PathBuf, Vec<u8>>,
    /// The engine's file, and where in it, in steps of 64 bytes, there is anything.
    db: PathBuf,
    used: Vec<usize>,
}

impl Directory {
    fn new(dir: PathBuf) -> Directory {
        let (whole, db) = (contents(&dir), dir.join("log/db"));
        assert!(whole[&db].len() > 1 << 24, "several segments: {} bytes", whole[&db].len());
        let written = |(_, bytes): &(usize, &[u8])| bytes.iter().any(|byte| *byte != 0);
        let used = whole[&db].chunks(64).enumerate().filter(written).map(|(nth, _)| nth * 64).collect();
        Directory { dir, whole, db, used }
    }

    /// A bit of some file: every other time of the engine's, which is nearly everything, and else of the other files in
    /// turn.
    fn somewhere(&self, cycle: u64, rng: &mut Rng) -> (&PathBuf, usize) {
        if cycle.is_multiple_of(2) {
            let at = self.used[rng.below(self.used.len() as u64) as usize];
            return (&self.db, at * 8 + rng.below(512) as usize);
        }
        let others: Vec<_> = self.whole.iter().filter(|(path, bytes)| **path != self.db && !bytes.is_empty()).collect();
        let (path, bytes) = others[(cycle / 2) as usize % others.len()];
        (path, rng.below(bytes.len() as u64 * 8) as usize)
    }
}

/// Why a flip in this file may leave everything as it was, if it may.
fn harmless(name: &str) -> Option<&'static str> {
    match name {
        "lock" => Some("it says to people who holds the directory; the lock itself is the system's"),
        "node" => Some("the line's end, or the case of a hexadecimal digit of the checksum"),
        "watermark" => Some("one page, and the other is used; or what lies behind a page's end"),
        "log/conf" => Some("its checksum, of which the engine only warns: it compares the values themselves"),
        "log/snap" => Some("how long it was before it was compressed, which nobody asks of a file that is not"),
        "log/db" => Some("an older version of a page, or unused space: the engine no longer reads it"),
        _ => None,
    }
}

/// What the name of the damage must contain.
fn words(name: &str) -> &'static [&'static str] {
    match name {
        "node" => &["node file"],
        "watermark" => &["watermark"],
        "lives" => &["lives file"],
        _ => &["the log", "group 0", "owner of the store"],
    }
}

#[test]
fn flipped_bits() {
    let cycles = figure("CYCLES", 30, 200);
    let mut rng = Rng::new();
    let home = tempfile::tempdir().expect("a directory");
    let (closed, killed) = (home.path().join("closed"), home.path().join("killed"));
    let held = make(&closed, &killed, &mut rng);
    assert!(held.recovered.terms.len() > 5, "truncations and votes: {:?}", held.recovered.terms);
    let directories = [Directory::new(closed), Directory::new(killed)];
    let started = Instant::now();
    // By file: how many flips were refused, and how many did no harm.
    let mut counts = BTreeMap::<String, (u32, u32)>::new();
    for cycle in 1..=cycles {
        let directory = &directories[rng.below(2) as usize];
        let Directory { dir, whole, .. } = directory;
        let (path, bit) = directory.somewhere(cycle, &mut rng);
        let name = path.strip_prefix(dir).expect("inside").display().to_string();
        let kind = if name.starts_with("log/snap.") { "log/snap" } else { &name };
        let flipped = format!("cycle {cycle}, bit {bit} of {name} in {}", dir.display());
        flip(path, bit);

        let inspected = lab::run(&["inspect", dir.to_str().expect("UTF-8"), "--verify"]);
        let said = String::from_utf8_lossy(&[inspected.stdout, inspected.stderr].concat()).into_owned();
        // Back and forth: what is restored is what inspecting has changed.
        flip(path, bit);
        assert_eq!(restore(dir, whole), [""; 0], "{flipped}: changed by inspecting");
        flip(path, bit);

        let count = counts.entry(kind.to_owned()).or_default();
        let refused = match open(dir) {
            Ok(store) => {
                count.1 += 1;
                assert!(look(store) == held, "{flipped}: SILENT LOSS");
                if kind == "log/db" {
                    // What does no harm now does none to a node that goes on with it.
                    let HardState { term, .. } = held.recovered.hard_state;
                    let more = entry(held.recovered.last_index + 1, term, 5000, &mut rng);
                    let write = Write { entries: vec![more.clone()], ..Write::default() };
                    append(open(dir).expect("it has opened before"), write);
                    let mut after = look(open(dir).expect("after one more entry"));
                    assert_eq!(after.entries.pop(), Some(more), "{flipped}");
                    assert!(after.entries == held.entries, "{flipped}: SILENT LOSS after one more entry");
                }
                assert!(harmless(kind).is_some(), "{flipped}: it opens, and nothing says why it may");
                let one_page = kind == "watermark" && said.contains("watermark: one page is damaged");
                assert_eq!(inspected.status.code(), Some(i32::from(one_page)), "{flipped}: {said}");
                false
            }
            Err(refusal @ (OpenError::Damaged { .. } | OpenError::RolledBack { .. } | OpenError::Newer { .. })) => {
                count.0 += 1;
                let refusal = refusal.to_string();
                let again = open(dir).expect_err("for good").to_string();
                assert_eq!(again, refusal, "{flipped}");
                assert!(refusal.contains("again under a new id") || refusal.contains("start the newer"), "{refusal}");
                assert_eq!(inspected.status.code(), Some(1), "{flipped}: {refusal}, but: {said}");
                let empty = said.contains("came up empty");
                assert!(!empty || refusal.contains("an empty log"), "{flipped}: {refusal}, but: {said}");
                assert!(words(kind).iter().any(|word| said.contains(word)), "{flipped}: {said}");
                true
            }
            Err(other) => panic!("{flipped}: {other}"),
        };
        fs::write(path, &whole[path]).expect("a file");
        let changed = restore(dir, whole);
        let ours = changed.iter().find(|name| *name == "node" || *name == "watermark");
        assert!(!refused || ours.is_none(), "{flipped}: refused, and {changed:?} changed");
    }
    println!("{cycles} flips in {:?}, {} entries", started.elapsed(), held.entries.len());
    for (name, (refused, intact)) in &counts {
        let why = harmless(name).filter(|_| *intact > 0).map_or(String::new(), |why| format!(": {why}"));
        println!("  {name}: {refused} refused with a specific error, {intact} did no harm{why}");
    }
    let refused: u32 = counts.values().map(|count| count.0).sum();
    assert!(u64::from(refused) * 5 > cycles, "the flips hit what matters: {refused} of {cycles}");
}
