//! What every store must do, as a suite that any implementation can run in its tests.
//!
//! ```no_run
//! use actorum_store::log::{conformance, memory::MemoryDisk, store::LogStore};
//! use actorum_machine::ids::Incarnation;
//!
//! conformance::conformance(|| {
//!     let disk = MemoryDisk::new();
//!     move || -> Box<dyn LogStore> { Box::new(disk.open(1, Incarnation(7)).unwrap()) }
//! });
//! ```
//!
//! The outer closure makes an empty disk, the inner one opens the store on it, again and again, each time
//! after the handle before was dropped. A violation panics with the name of the rule.
//!
//! Deliberately absent: crashes. What a store keeps when it is killed, or when the power goes, no suite inside
//! one process can tell.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use actorum_core::wire::{ConfState, Entry, EntryKind, Snapshot};
use actorum_machine::ids::GroupId;
use bytes::Bytes;

use super::store::*;

/// How long a completion may take before the store counts as hung.
const TIMEOUT: Duration = Duration::from_secs(60);

const GROUP: GroupId = GroupId::FIRST;

/// Runs every rule, each on a disk of its own.
#[allow(clippy::print_stdout, reason = "a suite for tests: it names the rule that it checks")]
pub fn conformance<Open: FnMut() -> Box<dyn LogStore>>(mut make: impl FnMut() -> Open) {
    let rules: &[(&str, Rule)] = &[
        ("a new store holds nothing", a_new_store_holds_nothing),
        ("each opening counts as a boot", each_opening_counts_as_a_boot),
        ("what was appended is read back in ranges", what_was_appended_is_read_back_in_ranges),
        ("a read ends at its bytes and gives at least one entry", a_read_ends_at_its_bytes),
        ("a read outside the log is an error", a_read_outside_the_log_is_an_error),
        ("a conflicting append replaces the rest of the log", a_conflict_replaces_the_rest),
        ("a log can be cut at every index", a_log_can_be_cut_at_every_index),
        ("writes of one batch follow each other", writes_of_one_batch_follow_each_other),
        ("the hard state and its entries come back together", hard_state_and_entries_come_back_together),
        ("a snapshot replaces the log", a_snapshot_replaces_the_log),
        ("the terms of the log come back as runs", terms_come_back_as_runs),
        ("completions come in the order of submission", completions_come_in_order),
        ("groups do not see each other", groups_do_not_see_each_other),
        ("entries and snapshots of every size", entries_of_every_size),
        ("a commit index alone needs no sync and is kept at close", a_commit_index_alone),
        ("an append with a gap is refused, for good", a_gap_is_refused_for_good),
        ("a compaction keeps what follows it, and the snapshots", a_compaction_keeps_what_follows),
        ("a compaction, entries and a hard state in one batch", a_compaction_with_entries_in_one_batch),
        ("a log cut at both ends goes on", a_log_cut_at_both_ends),
        ("a snapshot after a compaction, and a compaction after a snapshot", a_snapshot_and_a_compaction),
        ("a compaction that was overtaken changes nothing", an_overtaken_compaction_changes_nothing),
        ("a compaction of what is not there is refused", a_wrong_compaction_is_refused),
        ("what a large compaction leaves goes with later commits", a_large_compaction_catches_up),
        ("the sizes of the log come back", sizes_come_back),
    ];
    for (name, rule) in rules {
        println!("conformance: {name}");
        rule(&mut make());
    }
}

type Opener<'a> = &'a mut dyn FnMut() -> Box<dyn LogStore>;
type Rule = fn(Opener<'_>);

/// A store at work.
struct Running {
    reader: Arc<dyn LogReader>,
    appender: Box<dyn LogAppender>,
    completed: Receiver<Completed>,
}

impl Running {
    fn start(store: Box<dyn LogStore>) -> Running {
        let (heard, completed) = channel();
        let reader = store.reader();
        let appender = store.start(Arc::new(move |completion| {
            let _ = heard.send(completion);
        }));
        Running { reader, appender, completed }
    }

    fn completed(&self) -> Completed {
        self.completed.recv_timeout(TIMEOUT).expect("every batch is reported")
    }

    fn batch(&mut self, writes: Vec<Write>, sync: bool) {
        let batch_number = self.appender.submit(Batch { writes, sync });
        let completed = self.completed();
        assert_eq!(completed.batch_number, batch_number, "the batch submitted is the batch reported");
        completed.result.expect("the batch is written");
    }

    fn write(&mut self, write: Write) {
        self.batch(vec![write], true);
    }

    fn append(&mut self, entries: Vec<Entry>) {
        self.write(Write { entries, ..Write::default() });
    }

    fn all(&self, group: GroupId, from: u64, to: u64) -> Vec<Entry> {
        self.reader.entries(group, from, to, usize::MAX).expect("what the log holds can be read")
    }
}

fn entry(index: u64, term: u64) -> Entry {
    sized(index, term, 20)
}

/// An entry whose bytes follow from its place, so that one entry cannot pass for another.
fn sized(index: u64, term: u64, bytes: usize) -> Entry {
    let seed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ term.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let data: Vec<u8> = (0..bytes as u64).map(|n| (seed.rotate_left((n % 61) as u32) ^ n) as u8).collect();
    Entry { kind: EntryKind::Normal, term, index, data: Bytes::from(data), context: Bytes::new() }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term)).collect()
}

fn snapshot(index: u64, term: u64, bytes: usize) -> Snapshot {
    let conf = ConfState { voters: vec![1, 2, 3], learners: vec![4], ..ConfState::default() };
    Snapshot { index, term, conf, data: sized(index, term, bytes).data }
}

fn genesis() -> Write {
    let hard_state = Some(HardState { term: 1, vote: 0, commit: 1 });
    Write { snapshot: Some(snapshot(1, 1, 50)), hard_state, ..Write::default() }
}

fn compact(kept: &[(u64, u64)], up_to: u64) -> Write {
    let snapshots = kept.iter().map(|(index, term)| snapshot(*index, *term, 30)).collect();
    Write { compact: Some(Compact { snapshots, up_to }), ..Write::default() }
}

/// What is recovered after a compaction up to `up_to`: these snapshots, a compacted index that is not above it, all
/// entries that follow, and the term of each.
fn check_compacted(open: Opener<'_>, kept: &[(u64, u64)], up_to: u64, expected: &[Entry]) {
    let store = open();
    let recovered = store.recover(GROUP).expect("the group recovers");
    let snapshots: Vec<_> = kept.iter().map(|(index, term)| snapshot(*index, *term, 30)).collect();
    assert_eq!(recovered.snapshots, snapshots);
    assert!(
        recovered.compacted_index() <= up_to,
        "the log is compacted up to {} after a compaction up to {up_to}",
        recovered.compacted_index()
    );
    assert_eq!(recovered.last_index, up_to + expected.len() as u64);
    let read = |from| store.reader().entries(GROUP, from, recovered.last_index + 1, usize::MAX);
    assert_eq!(read(up_to + 1).expect("what follows can be read"), expected);
    let all = read(recovered.compacted_index() + 1).expect("what is kept longer can be read");
    for entry in &all {
        assert_eq!(recovered.term_at(entry.index), Some(entry.term));
    }
    assert!(read(recovered.compacted_index()).is_err(), "up to the compacted index there is nothing");
    let sizes: u64 = recovered.sizes.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(sizes, all.iter().map(|entry| entry.size() as u64).sum::<u64>());
    for (index, term) in kept {
        assert_eq!(recovered.term_at(*index), Some(*term), "a snapshot stands on its log");
    }
}

fn formed(open: Opener<'_>) -> Running {
    let mut store = Running::start(open());
    store.write(genesis());
    store
}

fn a_new_store_holds_nothing(open: Opener<'_>) {
    let store = open();
    assert!(store.identity().is_new());
    assert_eq!(store.recover(GROUP).expect("an empty group recovers"), Recovered::default());
    assert!(store.reader().entries(GROUP, 1, 2, usize::MAX).is_err());
    assert_eq!(store.reader().entries(GROUP, 1, 1, usize::MAX).expect("an empty range"), []);
}

fn each_opening_counts_as_a_boot(open: Opener<'_>) {
    let first = open().identity();
    let running = Running::start(open());
    drop(running);
    let third = open().identity();
    assert_eq!(third, StoreIdentity { boot: first.boot + 2, ..first });
    assert!(!third.is_new());
}

fn what_was_appended_is_read_back_in_ranges(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=5, 1));
    store.append(entries(6..=6, 1));
    store.append(vec![
        Entry { kind: EntryKind::ConfChange, context: Bytes::from_static(b"context"), ..entry(7, 1) },
        Entry { data: Bytes::new(), ..entry(8, 1) },
    ]);
    let all = store.all(GROUP, 2, 9);
    assert_eq!(all.len(), 7);
    assert_eq!(all[..5], entries(2..=6, 1)[..]);
    assert_eq!((all[5].kind, &all[5].context[..]), (EntryKind::ConfChange, &b"context"[..]));
    assert!(all[6].data.is_empty());
    for from in 2..=9 {
        for to in from..=9 {
            assert_eq!(store.all(GROUP, from, to), all[from as usize - 2..to as usize - 2], "{from} to {to}");
        }
    }
}

fn a_read_ends_at_its_bytes(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=4, 1));
    store.append(entries(5..=9, 1));
    let size = entry(2, 1).size();
    for (bytes, count) in [(0, 1), (1, 1), (size, 1), (2 * size - 1, 1), (2 * size, 2), (4 * size, 4), (7 * size, 7)] {
        let read = store.reader.entries(GROUP, 3, 10, bytes).expect("a read");
        assert_eq!(read, entries(3..=2 + count, 1), "{bytes} bytes");
    }
}

fn a_read_outside_the_log_is_an_error(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=4, 1));
    for (from, to) in [(1, 3), (0, 2), (2, 6), (5, 6), (9, 10), (u64::MAX - 1, u64::MAX)] {
        assert!(store.reader.entries(GROUP, from, to, usize::MAX).is_err(), "{from} to {to}");
    }
    assert!(store.reader.entries(GroupId(9), 2, 3, usize::MAX).is_err());
}

fn a_conflict_replaces_the_rest(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=4, 1));
    store.append(entries(5..=9, 1));
    store.append(entries(7..=8, 2));
    let expected = [entries(2..=6, 1), entries(7..=8, 2)].concat();
    assert_eq!(store.all(GROUP, 2, 9), expected);
    assert!(store.reader.entries(GROUP, 9, 10, usize::MAX).is_err(), "what was replaced is gone");
    drop(store);
    let store = open();
    let recovered = store.recover(GROUP).expect("the group recovers");
    assert_eq!((recovered.last_index, recovered.terms), (8, vec![(1, 1), (7, 2)]));
    assert_eq!(store.reader().entries(GROUP, 2, 9, usize::MAX).expect("a read"), expected);
}

fn a_log_can_be_cut_at_every_index(open: Opener<'_>) {
    let mut store = formed(open);
    for (round, cut) in (2..=12).enumerate() {
        let term = 2 * round as u64 + 2;
        store.append(entries(2..=6, term));
        store.append(entries(7..=7, term));
        store.append(entries(8..=11, term));
        store.append(entries(cut..=cut + 1, term + 1));
        let expected = [entries(2..=cut - 1, term), entries(cut..=cut + 1, term + 1)].concat();
        assert_eq!(store.all(GROUP, 2, cut + 2), expected, "cut at {cut}");
        drop(store);
        let reopened = open();
        assert_eq!(reopened.recover(GROUP).expect("the group recovers").last_index, cut + 1);
        store = Running::start(reopened);
        assert_eq!(store.all(GROUP, 2, cut + 2), expected, "cut at {cut}, after reopening");
    }
}

fn writes_of_one_batch_follow_each_other(open: Opener<'_>) {
    let mut store = formed(open);
    let write = |entries| Write { entries, ..Write::default() };
    let state = |term, commit| Some(HardState { term, vote: 1, commit });
    store.batch(
        vec![
            write(entries(2..=9, 1)),
            Write { hard_state: state(2, 4), ..write(entries(5..=6, 2)) },
            write(entries(7..=7, 2)),
            Write { hard_state: state(3, 5), ..Write::default() },
        ],
        true,
    );
    let expected = [entries(2..=4, 1), entries(5..=7, 2)].concat();
    assert_eq!(store.all(GROUP, 2, 8), expected);
    store.batch(
        vec![
            write(entries(8..=9, 2)),
            Write { snapshot: Some(snapshot(20, 3, 9)), ..Write::default() },
            write(entries(21..=22, 3)),
        ],
        true,
    );
    assert_eq!(store.all(GROUP, 21, 23), entries(21..=22, 3));
    drop(store);
    let recovered = open().recover(GROUP).expect("the group recovers");
    assert_eq!(recovered.hard_state, HardState { term: 3, vote: 1, commit: 5 });
    assert_eq!((recovered.last_index, recovered.terms), (22, vec![(20, 3)]));
}

fn hard_state_and_entries_come_back_together(open: Opener<'_>) {
    let mut store = formed(open);
    let mut states = Vec::new();
    for round in 0..5 {
        let state = HardState { term: round + 2, vote: round % 3 + 1, commit: round + 2 };
        store.write(Write { entries: vec![entry(round + 2, round + 2)], hard_state: Some(state), ..Write::default() });
        states.push(state);
    }
    store.append(entries(7..=7, 6));
    drop(store);
    let recovered = open().recover(GROUP).expect("the group recovers");
    assert_eq!(Some(&recovered.hard_state), states.last());
    assert_eq!(recovered.last_index, 7);
    assert_eq!(recovered.newest(), Some(&snapshot(1, 1, 50)));
}

fn a_snapshot_replaces_the_log(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=9, 1));
    for (index, term) in [(5, 2), (30, 3), (7, 4)] {
        let hard_state = Some(HardState { term, vote: 0, commit: index });
        store.write(Write { snapshot: Some(snapshot(index, term, 100)), hard_state, ..Write::default() });
        assert!(store.reader.entries(GROUP, index, index + 1, usize::MAX).is_err(), "the log is empty");
        drop(store);
        let reopened = open();
        let recovered = reopened.recover(GROUP).expect("the group recovers");
        assert_eq!(recovered.newest(), Some(&snapshot(index, term, 100)));
        assert_eq!((recovered.last_index, recovered.terms), (index, vec![(index, term)]));
        store = Running::start(reopened);
        store.append(entries(index + 1..=index + 3, term));
        assert_eq!(store.all(GROUP, index + 1, index + 4), entries(index + 1..=index + 3, term));
    }
}

fn terms_come_back_as_runs(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(vec![entry(2, 1), entry(3, 1), entry(4, 3)]);
    store.append(vec![entry(5, 3)]);
    store.append(vec![entry(6, 4), entry(7, 9)]);
    drop(store);
    let recovered = open().recover(GROUP).expect("the group recovers");
    assert_eq!(recovered.terms, [(1, 1), (4, 3), (6, 4), (7, 9)]);
    let terms: Vec<_> = (0..=8).map(|index| recovered.term_at(index)).collect();
    let some = [1, 1, 1, 3, 3, 4, 9].map(Some);
    assert_eq!(terms, [&[None][..], &some[..], &[None][..]].concat());
}

fn completions_come_in_order(open: Opener<'_>) {
    let mut store = formed(open);
    let batch_numbers: Vec<BatchNumber> = (2..=301)
        .map(|index| {
            let write = match index % 7 {
                0 => Write { hard_state: Some(HardState { term: 1, vote: 0, commit: 1 }), ..Write::default() },
                _ => Write::default(),
            };
            let write = Write { entries: vec![entry(index, 1)], ..write };
            store.appender.submit(Batch { writes: vec![write], sync: true })
        })
        .collect();
    for (nth, batch_number) in batch_numbers.iter().enumerate() {
        assert_eq!(batch_number.0, nth as u64 + 2, "batch_numbers count up");
        let completed = store.completed();
        assert_eq!(completed.batch_number, *batch_number);
        completed.result.expect("the batch is written");
    }
    assert_eq!(store.all(GROUP, 2, 302), entries(2..=301, 1));
    // Dropped with work in hand: all of it is done and reported first.
    let batch_numbers: Vec<_> = (302..=340)
        .map(|index| {
            let write = Write { entries: vec![entry(index, 1)], ..Write::default() };
            store.appender.submit(Batch { writes: vec![write], sync: true })
        })
        .collect();
    let Running { appender, completed, reader } = store;
    drop(appender);
    let heard: Vec<_> = completed.iter().take(batch_numbers.len()).map(|c| c.batch_number).collect();
    assert_eq!(heard, batch_numbers);
    assert!(matches!(reader.entries(GROUP, 2, 3, 0), Err(StoreError::Closed(_))), "closed for readers too");
    assert_eq!(open().recover(GROUP).expect("the group recovers").last_index, 340);
}

fn groups_do_not_see_each_other(open: Opener<'_>) {
    let mut store = Running::start(open());
    let groups = [GroupId(0), GroupId(1), GroupId(255), GroupId(256), GroupId(70_000)];
    for (nth, group) in groups.into_iter().enumerate() {
        let nth = nth as u64 + 1;
        let hard_state = Some(HardState { term: nth, vote: nth, commit: nth });
        let snapshot = Some(snapshot(nth, nth, 10));
        store.write(Write {
            group,
            hard_state,
            snapshot,
            entries: entries(nth + 1..=nth + 5, nth),
            ..Write::default()
        });
    }
    // Two groups in one batch: one is cut, one replaced.
    let cut = Write { group: groups[1], entries: entries(4..=4, 9), ..Write::default() };
    let replaced = Write { group: groups[2], snapshot: Some(snapshot(50, 9, 10)), ..Write::default() };
    store.batch(vec![cut, replaced], true);
    drop(store);
    let store = open();
    for (nth, group) in groups.into_iter().enumerate() {
        let nth = nth as u64 + 1;
        let recovered = store.recover(group).expect("the group recovers");
        assert_eq!(recovered.hard_state, HardState { term: nth, vote: nth, commit: nth });
        let last = match nth {
            2 => 4,
            3 => 50,
            _ => nth + 5,
        };
        assert_eq!(recovered.last_index, last, "{group:?}");
        if nth > 3 || nth == 1 {
            let read = store.reader().entries(group, nth + 1, nth + 6, usize::MAX).expect("a read");
            assert_eq!(read, entries(nth + 1..=nth + 5, nth));
        }
    }
    assert_eq!(store.recover(GroupId(2)).expect("an empty group recovers"), Recovered::default());
}

fn entries_of_every_size(open: Opener<'_>) {
    let mut store = formed(open);
    let bound = super::record::PIECE_MAX;
    let sizes = [0, 1, bound - 22, bound - 21, bound - 20, bound, 2 * bound + 7, 8 << 20, 3, 100_000, 100_000, 100_000];
    let big: Vec<Entry> = (2..).zip(sizes).map(|(index, size)| sized(index, 1, size)).collect();
    let last = 1 + big.len() as u64;
    store.append(big.clone());
    assert_eq!(store.all(GROUP, 2, last + 1), big);
    assert_eq!(store.reader.entries(GROUP, 9, last + 1, 1).expect("a read"), big[7..8]);
    // Cut right before, inside and right after the big ones.
    for cut in [10, 9, 8] {
        store.append(vec![sized(cut, 1 + cut, bound + 5)]);
        let expected = [&big[..cut as usize - 2], &[sized(cut, 1 + cut, bound + 5)]].concat();
        assert_eq!(store.all(GROUP, 2, cut + 1), expected);
    }
    store.write(Write { group: GroupId(1), snapshot: Some(snapshot(9, 9, 3 * bound + 1)), ..Write::default() });
    store.write(Write { group: GroupId(2), snapshot: Some(snapshot(9, 9, 3 * bound + 1)), ..Write::default() });
    store.write(Write { group: GroupId(2), snapshot: Some(snapshot(10, 9, bound + 1)), ..Write::default() });
    drop(store);
    let store = open();
    let expected = [&big[..6], &[sized(8, 9, bound + 5)]].concat();
    assert_eq!(store.reader().entries(GROUP, 2, 9, usize::MAX).expect("a read"), expected);
    let recovered = |group| store.recover(GroupId(group)).expect("the group recovers").newest().cloned();
    assert_eq!(recovered(1), Some(snapshot(9, 9, 3 * bound + 1)));
    assert_eq!(recovered(2), Some(snapshot(10, 9, bound + 1)));
}

fn a_commit_index_alone(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=9, 1));
    for commit in 2..=9 {
        let hard_state = Some(HardState { term: 1, vote: 0, commit });
        store.batch(vec![Write { hard_state, ..Write::default() }], false);
    }
    drop(store);
    assert_eq!(open().recover(GROUP).expect("the group recovers").hard_state.commit, 9);
}

fn a_gap_is_refused_for_good(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=3, 1));
    for bad in [entries(5..=5, 1), entries(4..=4, 1)] {
        store.appender.submit(Batch { writes: vec![Write { entries: bad, ..Write::default() }], sync: true });
    }
    store.completed().result.expect_err("a gap");
    let second = store.completed().result;
    assert!(matches!(second, Err(StoreError::Closed(_) | StoreError::Damaged { .. })), "{second:?}");
    store.appender.submit(Batch::default());
    let third = store.completed().result;
    assert!(matches!(third, Err(StoreError::Closed(_))), "{third:?}");
    drop(store);
    assert_eq!(open().recover(GROUP).expect("the group recovers").last_index, 3);
}

fn a_compaction_keeps_what_follows(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=4, 1));
    store.append(entries(5..=9, 2));
    store.append(entries(10..=20, 2));
    let mut up_to = 1;
    // Inside a block, at its end, again the same, nothing at all, and everything.
    for (kept, next) in
        [(&[(3, 1)][..], 2), (&[(4, 1), (7, 2)], 4), (&[(4, 1), (9, 2)], 4), (&[(9, 2)], 0), (&[(20, 2)], 20)]
    {
        store.write(compact(kept, next));
        up_to = up_to.max(next);
        assert_eq!(store.all(GROUP, up_to + 1, 21).len() as u64, 20 - up_to);
        drop(store);
        let log = [entries(2..=4, 1), entries(5..=20, 2)].concat();
        check_compacted(open, kept, up_to, &log[up_to as usize - 1..]);
        store = Running::start(open());
    }
    store.append(entries(21..=23, 3));
    drop(store);
    check_compacted(open, &[(20, 2)], 20, &entries(21..=23, 3));
}

fn a_compaction_with_entries_in_one_batch(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=9, 1));
    let hard_state = Some(HardState { term: 2, vote: 3, commit: 12 });
    let both = Write { entries: entries(10..=12, 2), hard_state, ..compact(&[(5, 1), (11, 2)], 5) };
    // And several: the second compacts what the first appended, the third replaces what follows.
    let later = Write { entries: entries(13..=20, 2), ..Write::default() };
    store.batch(vec![both, later, compact(&[(11, 2), (14, 2)], 11)], true);
    let replaced = [entries(15..=16, 3), entries(17..=17, 3)];
    let [first, second] = replaced.clone().map(|entries| Write { entries, ..Write::default() });
    store.batch(vec![first, compact(&[(15, 3)], 15), second], true);
    drop(store);
    check_compacted(open, &[(15, 3)], 15, &entries(16..=17, 3));
    assert_eq!(
        open().recover(GROUP).expect("the group recovers").hard_state,
        HardState { term: 2, vote: 3, commit: 12 }
    );
    // The rest of it may go now.
    let mut store = Running::start(open());
    store.append(entries(18..=18, 3));
    store.write(compact(&[(17, 3)], 17));
    drop(store);
    check_compacted(open, &[(17, 3)], 17, &entries(18..=18, 3));
}

fn a_log_cut_at_both_ends(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=4, 1));
    store.append(entries(5..=9, 1));
    store.write(compact(&[(4, 1)], 4));
    // Right after the compacted index, as a new leader does whose log ends there.
    store.append(entries(5..=6, 2));
    drop(store);
    check_compacted(open, &[(4, 1)], 4, &entries(5..=6, 2));
    let mut store = Running::start(open());
    store.write(compact(&[(6, 2)], 6));
    store.append(entries(7..=9, 2));
    let replaced = Write { entries: entries(7..=7, 3), ..compact(&[(6, 2), (7, 3)], 6) };
    store.write(replaced);
    assert!(store.reader.entries(GROUP, 8, 9, usize::MAX).is_err(), "what was replaced is gone");
    drop(store);
    check_compacted(open, &[(6, 2), (7, 3)], 6, &entries(7..=7, 3));
}

fn a_snapshot_and_a_compaction(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=9, 1));
    store.write(compact(&[(4, 1), (8, 1)], 4));
    let install = |index, term| Write { snapshot: Some(snapshot(index, term, 30)), ..Write::default() };
    store.write(install(30, 2));
    store.append(entries(31..=39, 2));
    drop(store);
    check_compacted(open, &[(30, 2)], 30, &entries(31..=39, 2));
    let mut store = Running::start(open());
    store.write(compact(&[(30, 2), (35, 2)], 30));
    // In one batch: what is compacted and then replaced, and the other way round.
    store.batch(
        vec![compact(&[(36, 2)], 36), install(50, 3), Write { entries: entries(51..=60, 3), ..Write::default() }],
        true,
    );
    drop(store);
    check_compacted(open, &[(50, 3)], 50, &entries(51..=60, 3));
    let mut store = Running::start(open());
    let after = Write { entries: entries(71..=80, 4), ..install(70, 4) };
    store.batch(vec![after, compact(&[(70, 4), (75, 4)], 70)], true);
    drop(store);
    check_compacted(open, &[(70, 4), (75, 4)], 70, &entries(71..=80, 4));
    let mut store = Running::start(open());
    store.write(compact(&[(75, 4)], 75));
    drop(store);
    check_compacted(open, &[(75, 4)], 75, &entries(76..=80, 4));
}

fn an_overtaken_compaction_changes_nothing(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=9, 1));
    store.write(Write { snapshot: Some(snapshot(30, 2, 30)), ..Write::default() });
    store.append(entries(31..=33, 2));
    store.write(compact(&[(4, 1), (8, 1)], 4));
    drop(store);
    check_compacted(open, &[(30, 2)], 30, &entries(31..=33, 2));
}

fn a_wrong_compaction_is_refused(open: Opener<'_>) {
    let mut store = formed(open);
    store.append(entries(2..=9, 1));
    store.append(entries(10..=19, 2));
    store.write(compact(&[(9, 1), (15, 2)], 9));
    drop(store);
    let wrong = [
        (compact(&[], 9), "leaves no snapshot"),
        (compact(&[(15, 2), (12, 2)], 9), "with snapshot 15 before 12"),
        (compact(&[(12, 2), (15, 2)], 13), "up to 13, past its first snapshot, 12"),
        (compact(&[(15, 2), (20, 2)], 9), "a snapshot of 20 of a log up to 19"),
        (compact(&[(5, 1), (15, 2)], 5), "a snapshot of 5 of a log from 10"),
        (compact(&[(12, 1)], 12), "a snapshot 12@1 of a log with"),
        (Write { entries: entries(15..=15, 3), ..Write::default() }, "an append at 15 to a log with a snapshot of 15"),
    ];
    for (write, words) in wrong {
        let mut store = Running::start(open());
        store.appender.submit(Batch { writes: vec![write], sync: true });
        let refusal = store.completed().result.expect_err("it is refused").to_string();
        assert!(refusal.contains("group 0: a batch") && refusal.contains(words), "{refusal}");
        drop(store);
        check_compacted(open, &[(9, 1), (15, 2)], 9, &entries(10..=19, 2));
    }
}

fn a_large_compaction_catches_up(open: Opener<'_>) {
    let mut store = formed(open);
    for index in 2..=1500 {
        let write = Write { entries: vec![entry(index, 1)], ..Write::default() };
        store.appender.submit(Batch { writes: vec![write], sync: true });
        // One block for each, not one for all that wait.
        store.completed().result.expect("the batch is written");
    }
    store.write(compact(&[(1400, 1), (1450, 1)], 1400));
    store.append(entries(1501..=1501, 1));
    store.append(entries(1502..=1502, 1));
    // A truncation has no part in it, nor has what it replaces.
    store.append(entries(1460..=1460, 2));
    drop(store);
    let expected = [entries(1401..=1459, 1), entries(1460..=1460, 2)].concat();
    check_compacted(open, &[(1400, 1), (1450, 1)], 1400, &expected);
    assert_eq!(
        open().recover(GROUP).expect("the group recovers").compacted_index(),
        1400,
        "each was a block of its own"
    );
    // The compaction that was under way when the store was closed begins again with the next.
    let mut store = Running::start(open());
    store.append(entries(1461..=1461, 2));
    store.write(compact(&[(1461, 2)], 1461));
    drop(store);
    check_compacted(open, &[(1461, 2)], 1461, &[]);
}

fn sizes_come_back(open: Opener<'_>) {
    let mut store = formed(open);
    let log: Vec<Entry> = (2..=400).map(|index| sized(index, 1, (index as usize * 37) % 3000)).collect();
    for some in log.chunks(23) {
        store.append(some.to_vec());
    }
    drop(store);
    let recovered = open().recover(GROUP).expect("the group recovers");
    assert!(recovered.sizes.len() > 3, "in more than one step: {:?}", recovered.sizes);
    let mut from = recovered.compacted_index() + 1;
    let ends = recovered.sizes.iter().skip(1).map(|(first, _)| *first).chain([recovered.last_index + 1]);
    for ((first, bytes), end) in recovered.sizes.iter().zip(ends) {
        assert_eq!(*first, from, "without gaps");
        let exact: usize = log.iter().filter(|entry| (from..end).contains(&entry.index)).map(Entry::size).sum();
        assert_eq!(*bytes, exact as u64, "from {from} to {end}");
        from = end;
    }
}
