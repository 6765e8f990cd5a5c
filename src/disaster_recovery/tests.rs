//! Restoring and recovering over real directories, and every way to refuse.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use actorum_core::{
    entry::EncodedCommand,
    log::store::{HardState, Write},
    replica::replay,
    system_state::SystemState,
    wire::{Entry, EntryKind},
};
use actorum_machine::{
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    machine::{ApplyContext, StateMachine},
};
use actorum_store::{
    log::{
        directory::{self, Restoring},
        sled::{OpenOptions, SledStore},
        store::{Batch, LogStore, OpenError},
    },
    snapshot::{SnapshotStore, store::Content},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::*;

#[derive(Default, Serialize, Deserialize)]
struct Sum(u64);

impl StateMachine for Sum {
    type Command = u64;
    type Response = u64;

    fn apply(&mut self, _: &ApplyContext, number: &u64) -> u64 {
        self.0 += number;
        self.0
    }

    crate::serde_snapshot!();
}

const OLD: ClusterId = ClusterId(7);

/// Of nodes 1, 2 and 3.
fn founded() -> SystemState {
    SystemState::founded(OLD, &(1..=3).map(|id| (id, Address(format!("10.0.0.{id}:7001")))).collect())
}

fn when() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
}

fn add(index: u64, term: u64, number: u64) -> Entry {
    let data = EncodedCommand::command(&number).unwrap().stamp(when()).into();
    Entry { kind: EntryKind::Normal, term, index, data, context: Bytes::new() }
}

/// A stopped node's directory: the terms of its entries from index 2 on, each of which adds one, and what it knew to be
/// committed.
fn node(dir: &Path, id: NodeId, system: &SystemState, terms: &[u64], commit: u64) {
    let store = SledStore::open(dir, OpenOptions::new(id, Incarnation(id * 10))).unwrap();
    let entries = (2..).zip(terms).map(|(index, term)| add(index, *term, 1)).collect();
    let hard_state = Some(HardState { term: terms.last().copied().unwrap_or(1), vote: id, commit });
    let snapshot = Some(system.genesis(BTreeMap::new()).unwrap());
    let write = Write { group: boot::GROUP, snapshot, entries, hard_state, compact: None };
    commit_of(store, write);
}

fn commit_of(store: SledStore, write: Write) {
    commit(store, Batch { writes: vec![write], sync: true }).unwrap();
}

/// A backup of `Sum(41)` at 9@4.
fn backup(dir: &Path) -> PathBuf {
    build(dir, boot::GROUP);
    fs::read_dir(dir).unwrap().next().unwrap().unwrap().path()
}

fn build(dir: &Path, group: GroupId) {
    let (system, state) = (founded(), Sum(41).snapshot().unwrap());
    let content = Content { index: 9, term: 4, system, formed_with: BTreeMap::new(), state };
    SnapshotStore::in_directory(dir).unwrap().of(group).build(content, &mut |_| {}).unwrap();
}

/// What a node would start with.
fn started(dir: &Path, id: NodeId) -> (SystemState, u64, u64) {
    let store = SledStore::open(dir, OpenOptions::new(id, Incarnation(99))).unwrap();
    let recovered = store.recover(boot::GROUP).unwrap();
    let snapshots = SnapshotStore::in_directory(&directory::snapshots_path(dir)).unwrap().of(boot::GROUP);
    let replayed = replay(boot::GROUP, &*store.reader(), &recovered, &snapshots, Sum(0)).unwrap();
    let system = (*replayed.system.unwrap()).clone();
    (system, replayed.replica.machine().0, replayed.applied)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn restored(file: &Path, dir: &Path) -> Result<RecoveredNode, RecoveryError> {
    restore(file, dir, Restore::new(5, "10.0.1.5:7001".into(), "ada", when()))
}

#[test]
fn a_backup_becomes_a_cluster_of_one_node() {
    let temp = TempDir::new().unwrap();
    let (file, dir) = (backup(&temp.path().join("backups")), temp.path().join("node"));
    let recovered_node = restored(&file, &dir).unwrap();
    assert_eq!(
        (recovered_node.id, recovered_node.index, recovered_node.term, recovered_node.dir.as_path()),
        (5, 10, 5, dir.as_path())
    );
    assert_ne!(recovered_node.cluster, OLD);
    assert_eq!(names(&dir), ["lives", "lock", "log", "node", "snapshots", "watermark"]);

    let (system, sum, applied) = started(&dir, 5);
    assert_eq!((system.cluster, system.recovered_at, sum, applied), (recovered_node.cluster, 10, 41, 10));
    assert_eq!(system.membership.voters(), [5]);
    let member = &system.membership.members[&5];
    assert_eq!((member.incarnation, &member.address.0[..]), (Some(recovered_node.incarnation), "10.0.1.5:7001"));
    let audit = &system.audit[0];
    assert_eq!((audit.who.as_str(), audit.when, audit.why), ("ada", 1_795_000_000, RecoveredBecause::Backup));
    assert_eq!((audit.cluster, audit.members.len(), audit.index), (OLD, 3, 10));
    assert!(audit.may_be_lost.contains("after index 9"), "{}", audit.may_be_lost);

    let again = restored(&file, &temp.path().join("another")).unwrap();
    assert_ne!(again.cluster, recovered_node.cluster, "each is a cluster of its own");
    assert_ne!(again.incarnation, recovered_node.incarnation);
}

/// Every bad file is refused with what is wrong, before anything is made.
#[test]
fn a_file_that_is_no_backup_is_refused_by_name() {
    let temp = TempDir::new().unwrap();
    let (good, dir) = (fs::read(backup(&temp.path().join("backups"))).unwrap(), temp.path().join("node"));
    let file = temp.path().join("bad");
    let refused = |content: &[u8], words: &str| {
        fs::write(&file, content).unwrap();
        let error = restored(&file, &dir).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, RecoveryError::Backup { .. }), "{message}");
        assert!(message.starts_with(file.to_str().unwrap()) && message.contains(words), "{message}");
        assert!(!dir.exists(), "nothing was made");
    };
    refused(b"PK\x03\x04 something else", "it is not a snapshot of actorum");
    refused(b"", "it is not a snapshot of actorum");
    refused(&good[..good.len() - 1], "it is truncated");
    refused(&good[..good.len() / 2], "it is truncated");
    refused(&[&good[..], b"x"].concat(), "something follows its end");
    let newer = |content: &mut Vec<u8>| content[19] = 9;
    let mut content = good.clone();
    newer(&mut content);
    refused(&content, "it has format 9 and this version reads up to 3: use the newer version");
    for at in [30, good.len() / 2, good.len() - 40, good.len() - 1] {
        let mut content = good.clone();
        content[at] ^= 1;
        refused(&content, "damaged");
    }
    let error = restored(&temp.path().join("nowhere"), &dir).unwrap_err().to_string();
    assert!(error.contains("cannot open") && error.contains("nowhere"), "{error}");
    assert!(restored(temp.path(), &dir).unwrap_err().to_string().contains("it is a directory"));
}

#[test]
fn a_directory_that_holds_something_is_refused_and_left_as_it_was() {
    let temp = TempDir::new().unwrap();
    let (file, dir) = (backup(&temp.path().join("backups")), temp.path().join("node"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("letter"), "dear").unwrap();
    let error = restored(&file, &dir).unwrap_err();
    assert!(error.to_string().contains("is not empty (it holds letter)"), "{error}");
    assert_eq!(names(&dir), ["letter"]);
    let other = temp.path().join("other");
    node(&other, 1, &founded(), &[2], 2);
    let error = restored(&file, &other).unwrap_err();
    assert!(matches!(error, RecoveryError::Open(OpenError::NotEmpty { .. })), "{error}");
    assert_eq!(started(&other, 1).1, 1, "it is the node that it was");
    // What a filesystem puts there is nothing.
    let mount = temp.path().join("mount");
    fs::create_dir_all(mount.join("lost+found")).unwrap();
    restored(&file, &mount).unwrap();
}

#[test]
fn what_makes_no_sense_is_said() {
    let temp = TempDir::new().unwrap();
    let (file, dir) = (backup(&temp.path().join("backups")), temp.path().join("node"));
    let refused = |id, address: &str, who: &str, words: &str| {
        let error = restore(&file, &dir, Restore::new(id, address.into(), who, when())).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(!dir.exists());
    };
    refused(0, "h:1", "ada", "0 is not a node id");
    refused(1, "h", "ada", "the address h is not of the form HOST:PORT");
    refused(1, ":1", "ada", "HOST:PORT");
    refused(1, "h:1", "  ", "say who does this");
}

/// However far a restore came before it was cut short: no node starts from it, and the next restore makes a whole one.
#[test]
fn a_restore_that_is_cut_short_is_started_from_scratch() {
    let temp = TempDir::new().unwrap();
    let file = backup(&temp.path().join("backups"));
    let whole = temp.path().join("whole");
    restored(&file, &whole).unwrap();
    // What is in place after each step, as `Restoring` takes them; the last is a node with a rest.
    let steps: [(&[&str], &[&str]); 7] = [
        (&[], &[]),
        (&["snapshots"], &[]),
        (&["snapshots"], &["log", "creating"]),
        (&["snapshots"], &["log", "watermark", "lives", "node"]),
        (&["snapshots", "log"], &["watermark", "lives", "node"]),
        (&["snapshots", "log", "watermark"], &["lives", "node"]),
        (&["snapshots", "log", "watermark", "lives"], &["node"]),
    ];
    let copy = |from: &Path, to: &Path| {
        assert!(std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
    };
    for (n, (outer, inner)) in steps.iter().enumerate() {
        let dir = temp.path().join(format!("cut-{n}"));
        fs::create_dir_all(dir.join("restoring")).unwrap();
        fs::write(dir.join("lock"), "").unwrap();
        outer.iter().for_each(|name| copy(&whole.join(name), &dir.join(name)));
        for name in *inner {
            match whole.join(name) {
                from if from.exists() => copy(&from, &dir.join("restoring").join(name)),
                _ => fs::write(dir.join("restoring").join(name), "").unwrap(),
            }
        }
        let error = SledStore::open(&dir, OpenOptions::new(5, Incarnation(1))).unwrap_err();
        assert!(matches!(error, OpenError::Unfinished { .. }), "step {n}: {error}");
        assert!(error.to_string().contains("restore into it again"), "{error}");
        let recovered_node = restored(&file, &dir).unwrap();
        assert_eq!(names(&dir), ["lives", "lock", "log", "node", "snapshots", "watermark"], "step {n}");
        let (system, sum, _) = started(&dir, 5);
        assert_eq!((system.cluster, sum), (recovered_node.cluster, 41), "step {n}");
    }
    // With `node` in place it is whole; what is left over goes when it starts.
    fs::create_dir(whole.join("restoring")).unwrap();
    assert_eq!(started(&whole, 5).1, 41);
    assert!(!whole.join("restoring").exists());
}

#[test]
fn two_restores_into_one_directory_do_not_meet() {
    let temp = TempDir::new().unwrap();
    let (file, dir) = (backup(&temp.path().join("backups")), temp.path().join("node"));
    let first = Restoring::begin(&dir).unwrap();
    let error = restored(&file, &dir).unwrap_err();
    assert!(matches!(error, RecoveryError::Open(OpenError::Locked { .. })), "{error}");
    drop(first);
    restored(&file, &dir).unwrap();
}

/// Three directories: 1 ends at 5@2, 2 at 7@2, 3 at 4@3.
fn three(temp: &TempDir) -> [PathBuf; 3] {
    let dirs = [1, 2, 3].map(|id| temp.path().join(format!("node-{id}")));
    node(&dirs[0], 1, &founded(), &[2, 2, 2, 2], 5);
    node(&dirs[1], 2, &founded(), &[2, 2, 2, 2, 2, 2], 5);
    node(&dirs[2], 3, &founded(), &[2, 3, 3], 4);
    dirs
}

#[test]
fn no_log_is_rewritten_by_a_recovery() {
    assert_eq!((options(4).id, options(4).rewrite_min_bytes), (4, u64::MAX));
}

#[test]
fn a_survey_says_how_far_each_log_goes_and_changes_nothing() {
    let temp = TempDir::new().unwrap();
    let dirs = three(&temp);
    let before = fs::read(dirs[0].join("log/db")).unwrap();
    fs::remove_dir_all(dirs[0].join("snapshots")).unwrap();
    let survivors = survey(&dirs);
    let positions: Vec<_> = survivors.iter().map(|s| s.position().unwrap().to_string()).collect();
    assert_eq!(positions, ["5@2", "7@2", "4@3"]);
    assert!(survivors.iter().all(|s| s.problems.is_empty()), "{survivors:?}");
    let log = survivors[1].log.as_ref().unwrap();
    assert_eq!((log.cluster, log.term, log.commit, log.snapshots[0].index), (OLD, 2, 5, 1));
    assert_eq!((survivors[1].id, survivors[1].incarnation), (Some(2), Some(Incarnation(20))));
    assert_eq!(fs::read(dirs[0].join("log/db")).unwrap(), before);
    assert!(!dirs[0].join("snapshots").exists());

    let empty = temp.path().join("empty");
    drop(SledStore::open(&empty, OpenOptions::new(4, Incarnation(4))).unwrap());
    let _held = SledStore::open(&dirs[0], OpenOptions::new(1, Incarnation(1))).unwrap();
    let survivors = survey(&[&dirs[0], &empty, &temp.path().join("nowhere")]);
    for (survivor, words) in survivors.iter().zip(["is in use by", "was never part of a cluster", "nowhere"]) {
        assert!(survivor.log.is_none() && survivor.problems[0].contains(words), "{survivor:?}");
    }
}

#[test]
fn the_most_advanced_directory_becomes_a_cluster_of_one_node() {
    let temp = TempDir::new().unwrap();
    let dirs = three(&temp);
    // The longest log, and not the one that would win an election.
    let error = recover(&dirs[1], &[&dirs[0], &dirs[2]], Recover::new("ada", when())).unwrap_err();
    assert!(matches!(error, RecoveryError::LessAdvanced { .. }), "{error}");
    let message = error.to_string();
    for words in ["ends at 7@2", "at 4@3", "node-3 instead", "name the index at which it ends, 7"] {
        assert!(message.contains(words), "{message}");
    }
    let recovered_node = recover(&dirs[2], &[&dirs[0], &dirs[1]], Recover::new("ada", when())).unwrap();
    assert_eq!(
        (recovered_node.id, recovered_node.index, recovered_node.term, recovered_node.incarnation),
        (3, 5, 4, Incarnation(30))
    );
    let (system, sum, applied) = started(&dirs[2], 3);
    // Committed was 4; the whole log counts now.
    assert_eq!((system.cluster, system.recovered_at, sum, applied), (recovered_node.cluster, 5, 3, 5));
    let member = &system.membership.members[&3];
    assert_eq!((system.membership.voters(), &member.address.0[..]), (vec![3], "10.0.0.3:7001"));
    assert_eq!(member.incarnation, Some(Incarnation(30)));
    let audit = &system.audit[0];
    assert_eq!((audit.why, audit.cluster, audit.members.len()), (RecoveredBecause::LostMajority, OLD, 3));
    assert!(audit.may_be_lost.contains("not in the log up to 4@3"), "{}", audit.may_be_lost);
    assert_eq!(survey(&[&dirs[0]])[0].position(), Some(Position(5, 2)), "the others are as they were");

    // The recovered one is of another cluster than the rest now.
    let error = recover(&dirs[2], &[&dirs[1]], Recover::new("ada", when())).unwrap_err();
    assert!(matches!(error, RecoveryError::OtherCluster { .. }), "{error}");
    // And may be recovered once more, with both in its audit.
    recover(&dirs[2], &[] as &[&Path], Recover::new("bob", when())).unwrap();
    let (system, ..) = started(&dirs[2], 3);
    assert_eq!(system.audit.iter().map(|audit| audit.who.as_str()).collect::<Vec<_>>(), ["ada", "bob"]);
}

#[test]
fn a_loss_is_accepted_by_the_index_it_begins_at() {
    let temp = TempDir::new().unwrap();
    let dirs = three(&temp);
    let accept = |index| {
        let wish = Recover { accept_loss: Some(index), ..Recover::new("ada", when()) };
        recover(&dirs[1], &[&dirs[0], &dirs[2]], wish)
    };
    let error = accept(4).unwrap_err();
    assert!(matches!(error, RecoveryError::OtherLoss { last: 7, accepted: 4, .. }), "{error}");
    let recovered_node = accept(7).unwrap();
    assert_eq!((recovered_node.index, recovered_node.term), (8, 3));
    let sentence = &recovered_node.audit.may_be_lost;
    assert!(sentence.contains("node-3 holds more, up to 4@3"), "{sentence}");
}

#[test]
fn a_directory_that_may_hold_more_and_cannot_be_read_stands_in_the_way() {
    let temp = TempDir::new().unwrap();
    let dirs = three(&temp);
    fs::write(dirs[0].join("log/db"), b"rubbish").unwrap();
    let wish = Recover::new("ada", when());
    let error = recover(&dirs[2], &[&dirs[0], &dirs[1]], wish.clone()).unwrap_err();
    assert!(matches!(error, RecoveryError::Unreadable { .. }), "{error}");
    assert!(error.to_string().contains("name the index at which it ends, 4"), "{error}");
    let error = recover(&dirs[0], &[&dirs[1]], wish.clone()).unwrap_err();
    assert!(matches!(error, RecoveryError::Unusable { .. }), "{error}");
    let error = recover(&dirs[2], &[&dirs[2]], wish.clone()).unwrap_err();
    assert!(error.to_string().contains("is named twice"), "{error}");
    {
        let _running = SledStore::open(&dirs[2], OpenOptions::new(3, Incarnation(1))).unwrap();
        let error = recover(&dirs[2], &[&dirs[1]], wish.clone()).unwrap_err();
        assert!(error.to_string().contains("is in use by process"), "{error}");
    }
    let accepted = Recover { accept_loss: Some(4), ..wish };
    {
        let _running = SledStore::open(&dirs[1], OpenOptions::new(2, Incarnation(1))).unwrap();
        let error = recover(&dirs[2], &[&dirs[0], &dirs[1]], accepted.clone()).unwrap_err().to_string();
        assert!(error.contains("node-2 is in use by process"), "what runs is not lost: {error}");
    }
    let recovered_node = recover(&dirs[2], &[&dirs[0], &dirs[1]], accepted).unwrap();
    assert!(
        recovered_node.audit.may_be_lost.contains("node-1 could not be read"),
        "{}",
        recovered_node.audit.may_be_lost
    );
}

/// Of another group it would be the state of another machine, and a node of this version has group 0 alone.
#[test]
fn a_backup_of_another_group_is_read_and_not_restored() {
    let temp = TempDir::new().unwrap();
    let (backups, dir) = (temp.path().join("backups"), temp.path().join("node"));
    build(&backups, GroupId(7));
    let folder = backups.join("g7");
    let file = folder.join(&names(&folder)[0]);
    let read = BackupFile::read(&file).unwrap();
    assert_eq!((read.group(), read.index()), (GroupId(7), 9));
    let error = restored(&file, &dir).unwrap_err();
    assert!(matches!(&error, RecoveryError::Backup { file: named, .. } if *named == file), "{error}");
    assert!(error.to_string().ends_with("it is of group 7, and this version restores group 0 alone"), "{error}");
    assert!(!dir.exists(), "nothing was made");
}

/// A directory whose snapshot cannot be started from is not one to recover.
#[test]
fn a_damaged_snapshot_is_found_before_anything_is_changed() {
    let temp = TempDir::new().unwrap();
    let dir = temp.path().join("node");
    restored(&backup(&temp.path().join("backups")), &dir).unwrap();
    let snapshot_store = directory::snapshots_path(&dir);
    let file = snapshot_store.join(&names(&snapshot_store)[0]);
    let mut content = fs::read(&file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&file, &content).unwrap();
    let survivor = &survey(&[&dir])[0];
    assert!(survivor.log.as_ref().unwrap().snapshots[0].damaged.is_some(), "{survivor:?}");
    let error = recover(&dir, &[] as &[&Path], Recover::new("ada", when())).unwrap_err();
    assert!(matches!(error, RecoveryError::Unusable { .. }) && error.to_string().contains("damaged"), "{error}");
    fs::remove_dir_all(&snapshot_store).unwrap();
    let survivor = &survey(&[&dir])[0];
    assert!(survivor.problems[0].contains("is missing"), "{survivor:?}");
    assert!(!snapshot_store.exists(), "a survey makes nothing");
}
