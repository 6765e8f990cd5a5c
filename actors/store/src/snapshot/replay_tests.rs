//! What a start makes of the files of snapshots: good ones, damaged ones, and none.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use actorum_core::{
    log::store::{HardState, Recovered},
    replica::{ApplyError, Replayed, Replica, replay},
    system_state::SystemState,
    testkit::{Sum, TestLog, command, empty, genesis},
    wire::Snapshot,
};
use actorum_machine::{
    ids::GroupId,
    machine::{ApplyContext, MachineError, StateMachine, StateView},
};

use super::{
    GroupSnapshots, SnapshotStore,
    simulated::SimulatedFiles,
    store::{Content, complete_name},
};

fn memory() -> GroupSnapshots {
    SnapshotStore::memory().of(GroupId::FIRST)
}

fn over(files: &SimulatedFiles) -> GroupSnapshots {
    SnapshotStore::over(files.open()).of(GroupId::FIRST)
}

fn recovered(last_index: u64, commit: u64) -> Recovered {
    Recovered {
        snapshots: vec![genesis()],
        hard_state: HardState { term: 1, vote: 1, commit },
        last_index,
        terms: vec![(1, 1)],
        sizes: Vec::new(),
    }
}

fn log() -> TestLog {
    TestLog::with_entries([empty(2, 1), command(3, 1, 10), command(4, 1, 20), command(5, 1, 30)])
}

fn run(recovered: &Recovered, machine: Sum) -> Result<Replayed<Sum>, ApplyError> {
    replay(GroupId::FIRST, &log(), recovered, &memory(), machine)
}

/// Snapshots of the log at 3 and 4 in a snapshot store, and what names them.
fn two_snapshots() -> (SimulatedFiles, Vec<Snapshot>, Recovered) {
    let files = SimulatedFiles::new(Arc::new(()));
    let stored = over(&files);
    let replay_to = |commit| run(&recovered(5, commit), Sum::default()).unwrap().replica;
    let build = |commit| {
        let (index, term, system, state) = replay_to(commit).capture().unwrap();
        stored.build(Content { index, term, system, formed_with: BTreeMap::new(), state }, &mut |_| {}).unwrap()
    };
    let snapshots = vec![build(3), build(4)];
    let found = Recovered { snapshots: snapshots.clone(), ..recovered(5, 5) };
    (files, snapshots, found)
}

fn damage(files: &SimulatedFiles, snapshot: &Snapshot) {
    let name = complete_name(snapshot.index, &SystemState::of(snapshot).unwrap().1.unwrap());
    files.open().append(&name).unwrap().write_all(b"one too many").unwrap();
}

fn start(files: &SimulatedFiles, recovered: &Recovered, machine: Sum) -> Result<Replayed<Sum>, ApplyError> {
    replay(GroupId::FIRST, &log(), recovered, &over(files), machine)
}

#[test]
fn a_start_takes_the_newest_good_snapshot_and_the_log_after_it() {
    let (files, snapshots, recovered) = two_snapshots();
    let replayed = start(&files, &recovered, Sum::default()).unwrap();
    assert_eq!((replayed.snapshot_index, replayed.applied, replayed.applied_term), (4, 5, 1));
    assert_eq!(replayed.snapshots, snapshots);
    assert_eq!(replayed.replica.machine().total, 60);

    damage(&files, &snapshots[1]);
    let replayed = start(&files, &recovered, Sum::default()).unwrap();
    assert_eq!((replayed.snapshot_index, replayed.applied), (3, 5));
    assert_eq!(replayed.snapshots, snapshots[..1], "peers are not sent the damaged one");
    assert_eq!((replayed.replica.machine().total, &replayed.replica.machine().seen[..]), (60, &[3, 4, 5][..]));
}

#[test]
fn what_a_damaged_snapshot_covered_was_committed() {
    let (files, snapshots, recovered) = two_snapshots();
    damage(&files, &snapshots[1]);
    // The hard state may be behind: a commit index alone is not synced.
    let hard_state = HardState { commit: 2, ..recovered.hard_state };
    let replayed = start(&files, &Recovered { hard_state, ..recovered }, Sum::default()).unwrap();
    assert_eq!((replayed.snapshot_index, replayed.applied), (3, 4));
}

#[test]
fn an_older_snapshot_that_is_damaged_is_no_reason_not_to_start() {
    let (files, snapshots, recovered) = two_snapshots();
    damage(&files, &snapshots[0]);
    let replayed = start(&files, &recovered, Sum::default()).unwrap();
    assert_eq!((replayed.snapshot_index, replayed.snapshots), (4, snapshots[1..].to_vec()));
}

#[test]
fn without_a_good_snapshot_each_file_is_named_and_the_way_out() {
    let (files, snapshots, recovered) = two_snapshots();
    let name = |nth: usize| {
        let file = SystemState::of(&snapshots[nth]).unwrap().1.unwrap();
        complete_name(snapshots[nth].index, &file)
    };
    // The older one is good, and of no use: what came after it is gone.
    damage(&files, &snapshots[1]);
    let cut = Recovered { terms: vec![(4, 1)], ..recovered.clone() };
    let error = start(&files, &cut, Sum::default()).err().unwrap().to_string();
    assert!(error.contains("the snapshot at 3 is good, but the log begins only at 5"), "{error}");

    damage(&files, &snapshots[0]);
    let error = start(&files, &recovered, Sum::default()).err().unwrap().to_string();
    assert!(error.starts_with("this node has no snapshot to start from: "), "{error}");
    for part in [name(0), name(1), "not the file of that hash".into(), "`actorum restore`".into()] {
        assert!(error.contains(&part), "{error}");
    }
}

#[test]
fn nothing_is_restored_from_a_file_of_which_only_the_end_is_damaged() {
    struct Watched(Arc<AtomicBool>);
    impl StateMachine for Watched {
        type Command = u64;
        type Response = ();
        fn apply(&mut self, _: &ApplyContext, _: &u64) {}
        fn snapshot(&self) -> Result<StateView, MachineError> {
            Ok(StateView::bytes(vec![7; 1 << 20]))
        }
        fn restore(&mut self, from: &mut dyn Read) -> Result<(), MachineError> {
            self.0.store(true, Ordering::Relaxed);
            std::io::copy(from, &mut std::io::sink())?;
            Ok(())
        }
    }
    let restored = Arc::new(AtomicBool::new(false));
    let watched = || Watched(restored.clone());
    let stored = memory();
    let mut replica = Replica::new(watched());
    replica.restore(&genesis(), &stored).unwrap();
    let (_, term, system, state) = replica.capture().unwrap();
    let content = Content { index: 4, term, system, formed_with: BTreeMap::new(), state };
    let snapshot = stored.build(content, &mut |_| {}).unwrap();
    let only = Recovered { snapshots: vec![snapshot.clone()], terms: vec![(4, 1)], ..recovered(5, 4) };
    replay(GroupId::FIRST, &log(), &only, &stored, watched()).unwrap();
    assert!(restored.swap(false, Ordering::Relaxed));

    let file = SystemState::of(&snapshot).unwrap().1.unwrap();
    let mut bytes = stored.read(4, &file, 0, u32::MAX).unwrap().unwrap().to_vec();
    // In the last chunk: a restore would have got the three before it.
    let at = bytes.len() - 80;
    bytes[at] ^= 1;
    let files = SimulatedFiles::new(Arc::new(()));
    files.open().create(&complete_name(4, &file)).unwrap().write_all(&bytes).unwrap();
    let error = replay(GroupId::FIRST, &log(), &only, &over(&files), watched()).err().unwrap();
    assert!(error.to_string().contains("chunk 3 is damaged: "), "{error}");
    assert!(!restored.load(Ordering::Relaxed));
}

#[test]
fn a_durable_machine_is_restored_only_if_it_holds_less_than_the_snapshot() {
    let (files, snapshots, recovered) = two_snapshots();
    let durable = |total, at| Sum { total, seen: vec![], durable: Some((at, 1)) };
    let machine = |recovered: &Recovered, machine| {
        let replica = start(&files, recovered, machine).unwrap().replica;
        (replica.machine().total, replica.machine().seen.clone())
    };
    // It holds 2, and possibly a part of a restore that a crash cut short: the same restore runs again.
    assert_eq!(machine(&recovered, durable(999, 2)), (60, vec![3, 4, 5]));
    // It holds all of it, and more.
    assert_eq!(machine(&recovered, durable(60, 5)), (60, vec![]));
    assert_eq!(machine(&recovered, durable(30, 4)), (60, vec![5]));
    // From the older one it is not restored either, for it holds more.
    damage(&files, &snapshots[1]);
    assert_eq!(machine(&recovered, durable(30, 4)), (60, vec![5]));
}
