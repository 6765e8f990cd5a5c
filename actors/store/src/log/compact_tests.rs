//! Tests of compacting a stopped node's directory: what goes, what stays, and that a crash at any step loses nothing.

use std::{
    sync::{Arc, Mutex, mpsc::channel},
    time::Duration,
};

use actorum_core::{
    log::store::HardState,
    system_state::SystemState,
    wire::{Entry, EntryKind, Snapshot},
};
use actorum_machine::{
    ids::{ClusterId, GroupId},
    machine::StateView,
};
use bytes::Bytes;

use super::*;
use crate::{
    log::{
        faulty::{Faults, RewriteStep},
        sled::SledStore,
        store::LogStore,
    },
    snapshot::store::Content,
};

const GROUP: GroupId = GroupId::FIRST;

fn options() -> OpenOptions {
    OpenOptions::new(1, Incarnation(7))
}

fn entries(range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    let entry = |index: u64| {
        let data = Bytes::from(vec![index as u8; 100_000]);
        Entry { kind: EntryKind::Normal, term: 1, index, data, context: Bytes::new() }
    };
    range.map(entry).collect()
}

fn write(store: SledStore, writes: Vec<Write>) {
    let (heard, completed) = channel();
    let mut appender = Box::new(store).start(Arc::new(move |completion| drop(heard.send(completion))));
    for write in writes {
        appender.submit(Batch { writes: vec![write], sync: true });
        completed.recv_timeout(Duration::from_secs(60)).unwrap().result.unwrap();
    }
}

/// A node with entries up to 100 and snapshots of 40 and 90, the log reaching back to the first entry.
fn node(dir: &Path) -> [Snapshot; 2] {
    let store = SledStore::open(dir, options()).unwrap();
    let (snapshots, writes) = filled(&store, GROUP);
    write(store, writes);
    snapshots
}

/// Its snapshots, which are built, and what is to be written.
fn filled(store: &SledStore, group: GroupId) -> ([Snapshot; 2], Vec<Write>) {
    let files = store.snapshot_store().of(group);
    let snapshots = [40, 90].map(|index| {
        let state = StateView::bytes(vec![index as u8; 100_000]);
        let founders = std::collections::BTreeMap::from([(1, "127.0.0.1:1".into())]);
        let (system, formed_with) = (SystemState::founded(ClusterId(1), &founders), Default::default());
        let snapshot = files.build(Content { index, term: 1, system, formed_with, state }, &mut |_| {});
        snapshot.unwrap()
    });
    let hard_state = Some(HardState { term: 1, vote: 1, commit: 100 });
    let genesis = Some(Snapshot { index: 1, term: 1, ..Snapshot::default() });
    let of_it = || Write { group, ..Write::default() };
    let mut writes = vec![Write { snapshot: genesis, entries: entries(2..=2), ..of_it() }];
    writes.extend((3..=100).map(|index| Write { entries: entries(index..=index), ..of_it() }));
    writes.push(Write { hard_state, ..of_it() });
    let compact = Some(Compact { snapshots: snapshots.to_vec(), up_to: 1 });
    writes.push(Write { compact, ..of_it() });
    (snapshots, writes)
}

/// The first index, the last, how often it was opened, and its snapshots; every entry is read.
fn content(dir: &Path) -> (u64, u64, u64, Vec<u64>) {
    let store = SledStore::open(dir, options()).unwrap();
    let found = store.recover(GROUP).unwrap();
    if let Some(snapshot) = found.snapshots.last() {
        store.snapshot_store().of(GROUP).verify(snapshot).unwrap();
    }
    let first = store.reader().first_index(GROUP);
    let read = store.reader().entries(GROUP, first, found.last_index + 1, usize::MAX).unwrap();
    assert_eq!(read, entries(first..=found.last_index));
    assert_eq!(found.hard_state, HardState { term: 1, vote: 1, commit: 100 });
    let snapshots = found.snapshots.iter().map(|snapshot| snapshot.index).collect();
    (first, found.last_index, store.identity().boot, snapshots)
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            // What is being removed meanwhile may be gone.
            false => drop(fs::copy(entry.path(), target)),
        }
    }
}

#[test]
fn a_stopped_node_keeps_what_follows_its_newest_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    node(dir);
    fs::write(dir.join("ballast"), vec![1; 100_000]).unwrap();
    let done = compact(dir).unwrap();
    assert!(done.after < done.before / 3 && done.not_cut.is_none(), "{done:?}");
    assert!((1_000_000..1_100_000).contains(&done.kept), "ten entries: {done:?}");
    assert!(!dir.join("ballast").exists(), "the next start makes it again");
    assert_eq!(content(dir), (91, 100, 2, vec![90]), "compacting counts as no boot");
    // Once more, it has nothing to do and does no harm.
    let again = compact(dir).unwrap();
    assert!(again.after <= done.after + (1 << 20), "{done:?}, {again:?}");
    assert_eq!(content(dir), (91, 100, 3, vec![90]));
}

/// Each group is cut behind its own newest snapshot, and loses its own older file.
#[test]
fn each_group_keeps_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let groups = [GROUP, GroupId(7)];
    let store = SledStore::open(dir, options()).unwrap();
    let filled = groups.map(|group| filled(&store, group));
    let (snapshots, writes): (Vec<_>, Vec<_>) = filled.into_iter().unzip();
    write(store, writes.concat());
    let folders = [directory::snapshots_path(dir), directory::snapshots_path(dir).join("g7")];
    let files = |nth: usize| {
        let entries = fs::read_dir(&folders[nth]).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.filter(|path| path.is_file()).collect();
        files.sort();
        files
    };
    assert_eq!((files(0).len(), files(1).len()), (2, 2));
    // That of group 7 is damaged: its files stay, and those of group 0 do not.
    let (newest, whole) = (files(1)[1].clone(), fs::read(&files(1)[1]).unwrap());
    let mut damaged = whole.clone();
    damaged[200] ^= 1;
    fs::write(&newest, damaged).unwrap();
    let done = compact(dir).unwrap();
    assert!(done.not_cut.is_some_and(|why| why.contains("g7/snapshot-00000000000000000090")));
    assert_eq!((files(0).len(), files(1).len()), (1, 2));
    fs::write(&newest, whole).unwrap();
    assert_eq!(compact(dir).unwrap().not_cut, None);
    assert_eq!((files(0).len(), files(1).len()), (1, 1));
    let store = SledStore::open(dir, options()).unwrap();
    for (group, [_, newest]) in groups.into_iter().zip(&snapshots) {
        assert_eq!(store.recover(group).unwrap().snapshots, std::slice::from_ref(newest));
        store.snapshot_store().of(group).verify(newest).unwrap();
        assert_eq!(store.reader().first_index(group), 91);
    }
}

#[test]
fn a_log_whose_newest_snapshot_is_damaged_is_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    node(dir);
    let snapshots = directory::snapshots_path(dir);
    let names = || fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let newest = names().into_iter().max().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes[200] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let done = compact(dir).unwrap();
    assert!(done.not_cut.is_some_and(|why| why.contains("snapshot-00000000000000000090")));
    assert_eq!(names().len(), 2, "nor does the older one go");
    let store = SledStore::open(dir, options()).unwrap();
    assert_eq!(store.reader().first_index(GROUP), 2);
}

#[test]
fn what_is_no_stopped_node_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let error = compact(&dir.join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("not a node's data directory") && error.contains("serve --data"), "{error}");
    fs::write(dir.join("something"), "else").unwrap();
    assert!(matches!(compact(dir), Err(CompactError::Open(OpenError::NoNode { .. }))));
    let data = dir.join("data");
    node(&data);
    let running = SledStore::open(&data, options()).unwrap();
    let error = compact(&data).unwrap_err().to_string();
    assert!(error.contains("is in use by process"), "{error}");
    drop(running);
    compact(&data).unwrap();
}

/// The directory as it is before each step, and after a step that fails, opens with all that was in it.
#[test]
fn a_crash_at_any_step_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (data, copies) = (dir.path().join("data"), dir.path().join("copies"));
    node(&data);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let (from, to, seen) = (data.clone(), copies.clone(), steps.clone());
    let copying = move |step: RewriteStep| {
        let mut seen = seen.lock().unwrap();
        copy_dir(&from, &to.join(seen.len().to_string()));
        seen.push(step);
        Ok(())
    };
    compact_with(&data, Arc::new(Faults { ask: Some(Arc::new(copying)), ..Faults::default() })).unwrap();
    let steps = steps.lock().unwrap();
    for step in [RewriteStep::Make, RewriteStep::Slice, RewriteStep::Complete, RewriteStep::Switch, RewriteStep::Remove]
    {
        assert!(steps.contains(&step), "{steps:?}");
    }
    for (n, step) in steps.iter().enumerate() {
        let copy = copies.join(n.to_string());
        assert_eq!(content(&copy), (91, 100, 2, vec![90]), "a crash before {step:?}");
        // And it can be done again.
        compact(&copy).unwrap();
        assert_eq!(content(&copy), (91, 100, 3, vec![90]), "after a crash before {step:?}");
    }
}

#[test]
fn a_step_that_fails_leaves_the_directory_as_it_was() {
    for fails in [RewriteStep::Make, RewriteStep::Slice, RewriteStep::Rest, RewriteStep::Sync, RewriteStep::Complete] {
        let dir = tempfile::tempdir().unwrap();
        node(dir.path());
        let fail = move |step| if step == fails { Err(io::Error::other("no")) } else { Ok(()) };
        let failing = Faults { ask: Some(Arc::new(fail)), ..Faults::default() };
        let error = compact_with(dir.path(), Arc::new(failing)).unwrap_err().to_string();
        assert!(error.contains("no"), "{fails:?}: {error}");
        assert_eq!(content(dir.path()), (91, 100, 2, vec![90]), "after {fails:?} failed");
    }
}
