//! The hashes as a replica keeps them: over restarts and snapshots, with answers that are right and wrong.

use std::{
    collections::BTreeMap,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use actorum_machine::{
    ids::{Address, ClusterId, GroupId},
    machine::{ApplyContext, MachineError, StateMachine, StateView},
};

use crate::{
    entry::{EncodedCommand, SystemCommand},
    features::{Feature, Features},
    log::store::{HardState, Recovered},
    marks::Mark,
    replica::{ApplyResult, Hashes, Replica, replay, replay_into},
    system_state::{Audit, RecoveredBecause, SystemState},
    testkit::{Sum, TestLog, TestSnapshots, command, empty, genesis},
    versions::{Activation, Announcement},
    wire::{Entry, Snapshot},
};

fn system(index: u64, command: &SystemCommand) -> Entry {
    Entry { data: EncodedCommand::system(command).unwrap().stamp(SystemTime::UNIX_EPOCH).into(), ..empty(index, 1) }
}

fn mark(index: u64, restart: bool) -> Entry {
    system(index, &SystemCommand::Mark { restart })
}

/// A command of a time that is the same in every run.
fn add(index: u64, number: u64) -> Entry {
    let data = EncodedCommand::command(&number).unwrap().stamp(SystemTime::UNIX_EPOCH).into();
    Entry { data, ..command(index, 1, number) }
}

/// Commands from 2 on, with marks at 5 and 9.
fn log() -> Vec<Entry> {
    (2..=10).map(|index| if index % 4 == 1 { mark(index, false) } else { add(index, index) }).collect()
}

fn apply<S: StateMachine>(replica: &mut Replica<S>, entries: &[Entry]) -> Vec<Mark> {
    let marked = |done| if let ApplyResult::Mark { mark, .. } = done { Some(mark) } else { None };
    entries.iter().filter_map(|entry| marked(replica.apply(entry).unwrap())).collect()
}

fn begun<S: StateMachine>(machine: S) -> Replica<S> {
    let mut replica = Replica::new(machine);
    replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
    replica
}

fn snapshot(replica: &Replica<Sum>, snapshot_files: &TestSnapshots) -> Snapshot {
    snapshot_files.keep(replica.capture().unwrap())
}

fn found(snapshot: &Snapshot, last_index: u64) -> Recovered {
    let hard_state = HardState { term: 1, vote: 1, commit: last_index };
    let terms = vec![(snapshot.index, snapshot.term)];
    Recovered { snapshots: vec![snapshot.clone()], hard_state, last_index, terms, sizes: Vec::new() }
}

#[test]
fn every_node_comes_to_the_same_at_a_mark() {
    let (one, other) = (apply(&mut begun(Sum::default()), &log()), apply(&mut begun(Sum::default()), &log()));
    assert_eq!(one, other);
    assert_eq!(one.iter().map(|mark| mark.index).collect::<Vec<_>>(), [5, 9]);
    assert!(one.iter().all(|mark| mark.state.unwrap().since == 1), "it began with the genesis");
    assert_eq!((one[0].responses, one[1].responses.unwrap().since), (None, 5), "responses since the last mark");
}

/// The hash goes on where a snapshot ended it: on the node that built it, at its restart, and on one that was sent it.
#[test]
fn the_hash_is_part_of_snapshots() {
    let (snapshot_files, log) = (TestSnapshots::default(), log());
    let mut through = begun(Sum::default());
    let marks = apply(&mut through, &log);
    let mut half = begun(Sum::default());
    apply(&mut half, &log[..5]);
    let snapshot = snapshot(&half, &snapshot_files);
    assert_eq!(snapshot.index, 6);
    let mut sent = Replica::new(Sum::default());
    sent.restore(&snapshot, &snapshot_files).unwrap();
    let after = apply(&mut sent, &log[5..]);
    assert_eq!(after[0].state, marks[1].state);
    assert_eq!(after[0].responses, None, "it has not given all responses since the last mark");
    let store = TestLog::with_entries(log[5..].to_vec());
    let restarted = replay(GroupId::FIRST, &store, &found(&snapshot, 10), &snapshot_files, Sum::default()).unwrap();
    assert_eq!(restarted.marks, after, "marks that are applied again are reported again");
    assert_eq!(restarted.replica.system(), through.system());
}

/// The same entries, decided by another version: that is another state, although no entry differs.
#[test]
fn nodes_with_different_versions_in_force_differ_at_the_next_mark() {
    let in_force = |machine| {
        let (snapshot_files, mut replica) = (TestSnapshots::default(), Replica::new(Sum::default()));
        let build = Announcement { machine: 3, ..Announcement::of(&Features::all(), 3, 1) };
        let (mut system, _) = SystemState::of(&genesis()).unwrap();
        let versions = Arc::make_mut(&mut system.versions);
        versions.machine = machine;
        versions.in_use.insert(Feature::VersionHashes.name().to_owned());
        replica = replica.built_as(build);
        replica.restore(&system.genesis(BTreeMap::new()).unwrap(), &snapshot_files).unwrap();
        let marks = apply(&mut replica, &log());
        marks.iter().map(|mark| mark.state.unwrap().value).collect::<Vec<_>>()
    };
    let values = [0, 2, 3].map(in_force);
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        assert!(values[one].iter().zip(&values[other]).all(|(one, other)| one != other));
    }
    assert_eq!(in_force(2), values[1]);
}

/// A build that has announcements and lacks `Feature::VersionHashes` hashes without the version. It is a member until
/// the feature is in use, and all come to the same value until then: at a mark, at replay and behind a snapshot.
#[test]
fn the_version_counts_from_the_entry_on_that_puts_it_to_use() {
    let announce = |features: &Features, boot| SystemCommand::Announce {
        node: 1,
        announcement: Announcement::of(features, 2, boot),
    };
    let lacks = Features::all().iter().filter(|feature| *feature != Feature::VersionHashes).collect();
    let hashes = Activation::Feature(Feature::VersionHashes.name().to_owned());
    let log = [
        system(2, &announce(&lacks, 1)),
        system(3, &SystemCommand::Activate { activation: Activation::Machine(2) }),
        add(4, 1),
        // Not every member has announced it: this changes nothing.
        system(5, &SystemCommand::Activate { activation: hashes.clone() }),
        mark(6, false),
        system(7, &announce(&Features::all(), 2)),
        system(8, &SystemCommand::Activate { activation: hashes }),
        mark(9, false),
        add(10, 1),
        mark(11, false),
    ];
    let new = || Replica::new(Sum::default()).built_as(Announcement::of(&Features::all(), 2, 1));
    let (snapshot_files, mut one) = (TestSnapshots::default(), new());
    let mut earlier = new().hashing(Hashes { versions: false, ..Hashes::ALL });
    for replica in [&mut one, &mut earlier] {
        replica.restore(&genesis(), &snapshot_files).unwrap();
    }
    let (mut marks, mut snapshots) = (Vec::new(), vec![(genesis(), 1)]);
    let hash = |replica: &Replica<Sum>| replica.system().unwrap().state_hash.unwrap();
    for entry in &log {
        marks.extend(apply(&mut one, std::slice::from_ref(entry)));
        apply(&mut earlier, std::slice::from_ref(entry));
        assert_eq!(hash(&one) == hash(&earlier), entry.index <= 8, "at {}", entry.index);
        snapshots.push((snapshot(&one, &snapshot_files), entry.index));
    }
    let states = |marks: &[Mark]| marks.iter().map(|mark| (mark.index, mark.state)).collect::<Vec<_>>();
    assert_eq!(one.system().unwrap().versions.machine(), 2);
    for (snapshot, index) in snapshots {
        let behind = marks.iter().filter(|mark| mark.index > index).copied().collect::<Vec<_>>();
        let mut sent = new();
        sent.restore(&snapshot, &snapshot_files).unwrap();
        let rest = &log[index as usize - 1..];
        assert_eq!(states(&apply(&mut sent, rest)), states(&behind), "behind a snapshot at {index}");
        let store = TestLog::with_entries(rest.to_vec());
        let again = replay_into(GroupId::FIRST, &store, &found(&snapshot, 11), &snapshot_files, new()).unwrap();
        assert_eq!(states(&again.marks), states(&behind), "at replay from {index}");
    }
}

/// A snapshot of the first version has no hash: it begins at the next mark, or all begin anew where a mark says so.
#[test]
fn a_node_without_a_hash_begins_at_a_mark() {
    let (snapshot_files, log) = (TestSnapshots::default(), log());
    let first_version = Hashes { state: false, responses: false, versions: false };
    let mut older = Replica::new(Sum::default()).hashing(first_version);
    older.restore(&genesis(), &snapshot_files).unwrap();
    apply(&mut older, &log[..2]);
    let snapshot = snapshot(&older, &snapshot_files);
    let mut later = Replica::new(Sum::default());
    later.restore(&snapshot, &snapshot_files).unwrap();
    let marks = apply(&mut later, &log[2..]);
    assert_eq!((marks[0].state, marks[1].state.unwrap().since), (None, 5));
    let mut other = begun(Sum::default());
    apply(&mut other, &log);
    let anew = [mark(11, true), add(12, 1), mark(13, false)];
    let (one, two) = (apply(&mut later, &anew), apply(&mut other, &anew));
    assert_ne!(one[0].state, two[0].state, "what they came to before it is told once more");
    assert_eq!(one[1].state, two[1].state);
    assert_eq!(one[1].state.unwrap().since, 11);
    let (store, found) = (TestLog::with_entries(log[..3].to_vec()), found(&genesis(), 4));
    let older = Replica::new(Sum::default()).hashing(first_version);
    let replayed = replay_into(GroupId::FIRST, &store, &found, &snapshot_files, older);
    assert_eq!(replayed.unwrap().replica.system().unwrap().state_hash, None);
}

/// What follows a disaster is another cluster, whose nodes all begin with it.
#[test]
fn the_hash_begins_anew_with_another_cluster() {
    let mut replica = begun(Sum::default());
    apply(&mut replica, &log());
    let audit = Audit {
        who: "ada".into(),
        when: 1,
        why: RecoveredBecause::Backup,
        may_be_lost: "nothing".into(),
        index: 11,
        cluster: ClusterId(7),
        members: BTreeMap::new(),
    };
    let (cluster, address) = (ClusterId(8), Address::from("n1"));
    let recovered = SystemCommand::Recovered { cluster, node: 1, address, incarnation: None, audit };
    apply(&mut replica, &[system(11, &recovered)]);
    let marks = apply(&mut replica, &[mark(12, false)]);
    assert_eq!(marks[0].state.unwrap().since, 11);
}

/// A machine with a number of its own, as a program with a clock in it would have.
struct Moody(u64);

impl StateMachine for Moody {
    type Command = u64;
    type Response = u64;
    const VERSION: u32 = 7;
    fn apply(&mut self, _: &ApplyContext, number: &u64) -> u64 {
        number + self.0
    }
    fn snapshot(&self) -> Result<StateView, MachineError> {
        Ok(StateView::bytes(Vec::new()))
    }
    fn restore(&mut self, _: &mut dyn Read) -> Result<(), MachineError> {
        Ok(())
    }
}

#[test]
fn a_machine_that_is_not_deterministic_comes_to_other_answers() {
    let marks = |mood| apply(&mut begun(Moody(mood)), &log());
    let (one, same, other) = (marks(1), marks(1), marks(2));
    assert_eq!(one, same);
    assert_eq!(one[1].state, other[1].state, "they have applied the same");
    assert_ne!(one[1].responses, other[1].responses);
    assert_eq!(one[1].responses.unwrap().version, 7);
    let mut off = Replica::new(Moody(1)).hashing(Hashes { responses: false, ..Hashes::ALL });
    off.restore(&genesis(), &TestSnapshots::default()).unwrap();
    assert_eq!(apply(&mut off, &log())[1].responses, None);
}

/// A machine with its own storage does not answer what it holds already.
#[test]
fn an_interval_that_was_not_answered_as_a_whole_is_not_compared() {
    let machine = Sum { durable: Some((6, 1)), ..Sum::default() };
    let marks = apply(&mut begun(machine), &log());
    assert_eq!((marks[0].responses, marks[1].responses), (None, None));
}

/// An answer that cannot be encoded is no error: only who forwards needs one.
#[test]
fn an_answer_that_cannot_be_encoded_is_not_compared() {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    #[derive(Clone, serde::Deserialize)]
    struct Mute;
    impl serde::Serialize for Mute {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            COUNT.fetch_add(1, Relaxed);
            Err(serde::ser::Error::custom("not this one"))
        }
    }
    struct Silent;
    impl StateMachine for Silent {
        type Command = u64;
        type Response = Mute;
        fn apply(&mut self, _: &ApplyContext, _: &u64) -> Mute {
            Mute
        }
        fn snapshot(&self) -> Result<StateView, MachineError> {
            Ok(StateView::bytes(Vec::new()))
        }
        fn restore(&mut self, _: &mut dyn Read) -> Result<(), MachineError> {
            Ok(())
        }
    }
    let marks = apply(&mut begun(Silent), &log());
    assert_eq!(marks[1].responses, None);
    assert_eq!(COUNT.load(Relaxed), 2, "it was tried once in each interval, and no more");
}
