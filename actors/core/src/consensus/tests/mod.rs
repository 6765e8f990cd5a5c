//! The core under test: transcripts that tell one story each, and a cluster driven by random numbers.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p actorum-core consensus` writes the transcripts anew; read them before
//! committing them: they must be right, not merely what came out.

mod script;
mod random;
mod election_timeouts;
mod flow;
mod invalid_messages;
mod cluster;
mod assertions;
mod checks;
mod disk;
mod configuration;

use std::path::Path;

fn story(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/consensus/testscripts").join(name);
    goldenscript::run(&mut script::Script::new(), path).expect("the transcript differs or does not run");
}

/// One test per transcript.
macro_rules! stories {
    ($($name:ident)*) => {
        $(#[test] fn $name() { story(stringify!($name)); })*
    };
}

stories! {
    election
    proposal
    parallel_disk
    held_ack
    late_persists
    overwritten
    deposed_applied
    deposed_replaced
    deposed_for_peer
    deposed_unknown
    proposed_twice
    read_index
    read_restarted
    change_refused
    change_keeps_majority
    change_forced
    change_force_refused
    change_after_pause
    change_new_leader
    learner_new_leader
    learner_not_ready
    check_quorum
    formation
    joining
    removed_leader
    restart
    forwarded
    forwarded_late
    leader_busy
    follower_full
    single_voter
    single_voter_waits
    one_tick
    slow_disk
    slow_disk_alone
    slow_disk_single
    slow_disk_follower
    slow_disk_recovers
    unpersisted_full
    low_space
    low_space_everywhere
    low_space_held
    short_space_held
    space_waits
    short_space_held_long
    low_space_single
    low_space_forwarded
    certificate_ended
    certificates_ended
    compaction
    compaction_fails
    snapshot_sent
    snapshot_not_cut
    snapshot_lost
    snapshot_leader_changes
    snapshot_crash
    log_held
    stamps
    put_back
    put_back_same_leader
    put_back_two_leaders
    mark
}

/// A committed change that makes no sense any more is made neither by the applier nor by raft-rs.
#[test]
fn nonsense_that_is_committed_changes_nothing() {
    use actorum_machine::{machine, members::Change};

    use crate::{
        entry::{ChangeId, SystemCommand},
        wire::{Entry, EntryKind, MessageKind, RaftMessage},
    };

    let mut cluster = cluster::Cluster::new(1);
    cluster.found(&[1, 2, 3]);
    cluster.start(2, None);
    // "Add learner 3", who is a voter: raft-rs would demote it, the system state refuses.
    let id = ChangeId { node: 1, boot: 1, number: 1 };
    let command = SystemCommand::Change { id, change: Change::AddLearner(3, "elsewhere:7000".into()), forced: false };
    let context = machine::encode(&command).unwrap().into();
    let entry = Entry { kind: EntryKind::ConfChange, term: 2, index: 2, data: Default::default(), context };
    let mut append = RaftMessage::new(MessageKind::Append, 2);
    (append.index, append.log_term, append.commit, append.entries) = (1, 1, 2, vec![entry]);
    cluster.nodes.get_mut(&2).unwrap().apply_auto = false;
    cluster.core(2).step(1, append);
    for append in cluster.core(2).drain(super::Moment { now: cluster::TICK, wall: std::time::UNIX_EPOCH }).append {
        cluster.core(2).persisted(append.number);
    }
    let effects = cluster.core(2).drain(super::Moment { now: cluster::TICK, wall: std::time::UNIX_EPOCH });
    assert_eq!(effects.apply.len(), 1);
    assert_eq!(cluster.core(2).configuration().to_string(), "voters 1 2 3");
}

/// Answers that wait for a disk that hangs are bounded in number, and the newest stay.
#[test]
fn answers_behind_a_disk_that_hangs_have_a_bound() {
    use super::disk::MAX_DEFERRED;
    use crate::wire::{MessageKind, RaftMessage};

    let mut cluster = cluster::Cluster::new(1);
    cluster.found(&[1, 2, 3]);
    cluster.nodes.get_mut(&2).unwrap().disk_auto = false;
    cluster.start(2, None);
    for n in 1..=MAX_DEFERRED as u64 + 50 {
        let mut heartbeat = RaftMessage::new(MessageKind::Heartbeat, 2);
        heartbeat.context = n.to_be_bytes().to_vec().into();
        cluster.core(2).step(1, heartbeat);
        cluster.drain(2);
    }
    let deferred: Vec<_> =
        cluster.core(2).deferred_messages().map(|(_, _, message)| message.context.to_vec()).collect();
    assert_eq!(deferred.len(), MAX_DEFERRED);
    assert_eq!(deferred.last().unwrap(), &(MAX_DEFERRED as u64 + 50).to_be_bytes());
    assert_eq!(cluster.core(2).status().disk.deferred_dropped, 50);
    // What is left leaves when the disk answers, and what is deferred next is counted from there.
    cluster.persist(2, 1);
    let effects = cluster.core(2).drain(super::Moment { now: cluster::TICK, wall: std::time::UNIX_EPOCH });
    assert_eq!(effects.transmit.len(), MAX_DEFERRED);
    assert_eq!(cluster.core(2).deferred_messages().count(), 0);
}
