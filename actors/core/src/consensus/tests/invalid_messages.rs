//! Messages that make no sense, of every kind, thrown at nodes in every role: none may panic or change anything.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::SystemTime,
};

use actorum_machine::{
    ids::{Address, ClusterId, NodeId},
    status::Role,
};
use bytes::Bytes;

use super::cluster::{Cluster, TICK};
use crate::{
    consensus::{CommitConflict, Moment},
    entry::{EncodedCommand, SystemCommand},
    system_state::{Audit, RecoveredBecause, SystemState},
    wire::{Entry, EntryKind, MessageKind, RaftMessage, Snapshot, SnapshotFile},
};

const KINDS: [MessageKind; 10] = [
    MessageKind::Append,
    MessageKind::AppendResponse,
    MessageKind::Heartbeat,
    MessageKind::HeartbeatResponse,
    MessageKind::PreVote,
    MessageKind::PreVoteResponse,
    MessageKind::Vote,
    MessageKind::VoteResponse,
    MessageKind::Snapshot,
    MessageKind::TimeoutNow,
];

/// A leader (1), two followers, and a node that waits (4), at term 2 with entries 2@2 and 3@2 committed.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.found(&[1, 2, 3]);
    cluster.add(4, true);
    (1..=4).for_each(|id| cluster.start(id, None));
    cluster.core(1).campaign();
    cluster.drain(1);
    settle(&mut cluster);
    cluster.propose(1, "a", TICK * 50);
    cluster.drain(1);
    settle(&mut cluster);
    assert_eq!(cluster.core(2).status().commit_index, 3);
    cluster
}

fn settle(cluster: &mut Cluster) {
    for _ in 0..10 {
        for (from, to, urgent) in cluster.links.keys().copied().collect::<Vec<_>>() {
            if cluster.deliver(from, to, urgent, usize::MAX) > 0 {
                cluster.drain(to);
            }
        }
    }
}

fn message(kind: MessageKind) -> RaftMessage {
    let mut message = RaftMessage::new(kind, 2);
    match kind {
        MessageKind::Append => (message.index, message.log_term, message.commit) = (3, 2, 3),
        MessageKind::Snapshot => message.snapshot = Some(Cluster::genesis(&[1, 2, 3, 4])),
        MessageKind::Vote | MessageKind::PreVote => (message.term, message.index, message.log_term) = (3, 3, 2),
        _ => {}
    }
    message
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { kind: EntryKind::Normal, term, index, data: Bytes::from_static(b"x"), context: Bytes::new() }
}

fn snapshot(change: impl FnOnce(&mut Snapshot)) -> RaftMessage {
    let mut message = message(MessageKind::Snapshot);
    change(message.snapshot.as_mut().unwrap());
    message
}

/// Dropped and counted, by a leader, a follower and a node that waits: same numbers as before, no effects.
#[track_caller]
fn dropped(from: NodeId, message: &RaftMessage, by: &[NodeId]) {
    let mut cluster = cluster();
    for id in by {
        let before = cluster.core(*id).status();
        cluster.out.clear();
        cluster.core(*id).step(from, message.clone());
        cluster.drain(*id);
        let mut after = cluster.core(*id).status();
        assert_eq!(after.invalid_messages, before.invalid_messages + 1, "n{id} takes {message:?} for valid");
        after.invalid_messages = before.invalid_messages;
        assert_eq!(after, before, "{message:?} changed n{id}");
        assert_eq!(cluster.out, "", "{message:?} had effects on n{id}");
    }
}

const FORMED: [NodeId; 2] = [1, 2];

#[test]
fn from_nobody_or_oneself() {
    for kind in KINDS {
        dropped(0, &message(kind), &FORMED);
        dropped(2, &message(kind), &[2]);
    }
}

#[test]
fn absurd_numbers() {
    for kind in KINDS {
        for absurd in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 62] {
            let fields: [fn(&mut RaftMessage, u64); 7] = [
                |m, n| m.term = n,
                |m, n| m.log_term = n,
                |m, n| m.index = n,
                |m, n| m.commit = n,
                |m, n| m.commit_term = n,
                |m, n| m.reject_hint = n,
                |m, n| m.request_snapshot = n,
            ];
            for field in fields {
                let mut message = message(kind);
                field(&mut message, absurd);
                dropped(3, &message, &FORMED);
            }
        }
        let mut message = message(kind);
        message.term = 0;
        dropped(3, &message, &FORMED);
    }
}

#[test]
fn what_a_kind_does_not_carry() {
    for kind in KINDS {
        if kind != MessageKind::Append {
            dropped(3, &RaftMessage { entries: vec![entry(4, 2)], ..message(kind) }, &FORMED);
        }
        if kind != MessageKind::Snapshot {
            dropped(3, &RaftMessage { snapshot: Some(Cluster::genesis(&[1])), ..message(kind) }, &FORMED);
        }
        dropped(3, &RaftMessage { request_snapshot: 1, ..message(kind) }, &FORMED);
    }
    dropped(3, &RaftMessage::new(MessageKind::Snapshot, 2), &[1, 2, 4]);
}

/// Another cluster is begun by a stopped node's tools; a peer that sends the entry would make one of every node that
/// hears it.
#[test]
fn the_beginning_of_another_cluster() {
    let audit = Audit {
        who: "mallory".into(),
        when: 1,
        why: RecoveredBecause::LostMajority,
        may_be_lost: "everything".into(),
        index: 4,
        cluster: ClusterId(1),
        members: Default::default(),
    };
    let (cluster, address) = (ClusterId(666), Address::from("n3"));
    let command = SystemCommand::Recovered { cluster, node: 3, address, incarnation: None, audit };
    let data = EncodedCommand::system(&command).unwrap().stamp(SystemTime::UNIX_EPOCH).into();
    let entries = vec![entry(4, 2), Entry { data, ..entry(5, 2) }];
    dropped(1, &RaftMessage { entries, ..message(MessageKind::Append) }, &[2]);
}

#[test]
fn entries_with_gaps_and_terms_that_run_backwards() {
    let append = |entries: Vec<Entry>| RaftMessage { entries, ..message(MessageKind::Append) };
    dropped(1, &append(vec![entry(5, 2)]), &[2]);
    dropped(1, &append(vec![entry(3, 2)]), &[2]);
    dropped(1, &append(vec![entry(4, 2), entry(6, 2)]), &[2]);
    dropped(1, &append(vec![entry(4, 2), entry(4, 2)]), &[2]);
    dropped(1, &append(vec![entry(4, 0)]), &[2]);
    dropped(1, &append(vec![entry(4, 1)]), &[2]);
    dropped(1, &append(vec![entry(4, 3)]), &[2]);
    dropped(1, &append(vec![entry(u64::MAX, 2)]), &[2]);
    dropped(1, &RaftMessage { log_term: 3, ..message(MessageKind::Append) }, &[2]);
    dropped(1, &RaftMessage { index: 4, log_term: 0, ..message(MessageKind::Append) }, &[2, 4]);
    dropped(
        1,
        &RaftMessage { index: 9, log_term: 0, entries: vec![entry(10, 2)], ..message(MessageKind::Append) },
        &[2],
    );
    // Before the genesis.
    let before = RaftMessage { index: 0, log_term: 0, entries: vec![entry(1, 1)], ..message(MessageKind::Append) };
    dropped(1, &before, &[2, 4]);
}

#[test]
fn commits_and_acknowledgements_past_the_log() {
    dropped(1, &RaftMessage { commit: 1, ..message(MessageKind::Heartbeat) }, &[4]);
    dropped(2, &RaftMessage { index: 4, ..message(MessageKind::AppendResponse) }, &[1]);
}

/// What only a leader says, and cannot be true beside what is committed on node 2 (1@1, 2@2, 3@2), in terms 2 and 3.
fn contradictions() -> Vec<(RaftMessage, &'static str)> {
    let append = |index, log_term, entries| RaftMessage { index, log_term, entries, ..message(MessageKind::Append) };
    let at = |index, term| snapshot(|s| (s.index, s.term) = (index, term));
    let mut all = vec![
        // Another entry in the place of a committed one; also behind others that are right.
        (append(1, 1, vec![entry(2, 1)]), "has 2@1 in its log, and this node has committed 2@2"),
        (append(1, 1, vec![entry(2, 1), entry(3, 2)]), "has 2@1 in its log, and this node has committed 2@2"),
        // Its log before what it sends.
        (append(3, 1, vec![]), "has 3@1 in its log, and this node has committed 3@2"),
        (append(1, 2, vec![entry(2, 2)]), "has 1@2 in its log, and this node has committed 1@1"),
        // Later than all that is committed, and of an earlier term: terms never run backwards in a log.
        (append(9, 1, vec![entry(10, 2)]), "has 9@1 in its log, and this node has committed 3@2"),
        (RaftMessage { commit: 4, ..message(MessageKind::Heartbeat) }, "whose log ends at 3"),
        (at(1, 2), "has 1@2 in its log, and this node has committed 1@1"),
    ];
    // A file, so that it is more than a genesis.
    let file = SnapshotFile { bytes: 1, hash: [1; 32] };
    let system = SystemState::of(&Cluster::genesis(&[1, 2, 3])).unwrap().0;
    for (index, why) in [(3, "has 3@1 in its log"), (9, "has 9@1 in its log, and this node has committed 3@2")] {
        let described = system.snapshot(index, 1, file, Default::default()).unwrap();
        all.push((RaftMessage { snapshot: Some(described), ..message(MessageKind::Snapshot) }, why));
    }
    all
}

/// Promise 7: evidence that a node cannot trust its state is never only a line in a log. But a node believes it only of
/// a member that speaks as the leader of this term or a later one.
#[test]
fn proof_stops_its_receiver() {
    for (m, why) in contradictions() {
        for term in [2, 3] {
            let m = RaftMessage { term, ..m.clone() };
            let mut cluster = cluster();
            cluster.core(2).step(1, m.clone());
            // What comes behind it is not believed any more.
            cluster.core(2).step(1, message(MessageKind::Append));
            let effects = cluster.core(2).drain(Moment { now: TICK, wall: SystemTime::UNIX_EPOCH });
            let cause = effects.fault.unwrap_or_else(|| panic!("{m:?} is no proof for node 2"));
            assert!(cause.contains(why), "{cause}");
            assert!(cause.contains(&format!("node 1, the leader of term {term}")), "{cause}");
            assert!(effects.transmit.is_empty() && effects.append.is_empty(), "it went on: {:?}", effects.transmit);
        }
        dropped(7, &m, &[2]);
    }
}

/// A leader that was deposed may still speak of entries that were replaced since.
#[test]
fn a_delayed_message_is_no_proof() {
    for (m, _) in contradictions() {
        let mut cluster = cluster();
        let before = cluster.core(2).status();
        cluster.core(2).step(3, RaftMessage { term: 1, ..m.clone() });
        assert_eq!(cluster.core(2).status().commit_index, before.commit_index);
        let effects = cluster.core(2).drain(Moment { now: TICK, wall: SystemTime::UNIX_EPOCH });
        assert_eq!((effects.fault, effects.append.len(), effects.apply.len()), (None, 0, 0), "{m:?}");
    }
}

#[test]
fn two_leaders_of_one_term() {
    for kind in [MessageKind::Append, MessageKind::Heartbeat, MessageKind::Snapshot] {
        for receiver in [1, 2] {
            let mut cluster = cluster();
            cluster.core(receiver).step(3, message(kind));
            let effects = cluster.core(receiver).drain(Moment { now: TICK, wall: SystemTime::UNIX_EPOCH });
            let cause = effects.fault.unwrap_or_else(|| panic!("a second {kind:?} is no proof for node {receiver}"));
            assert!(cause.contains("nodes 3 and 1 both lead term 2"), "{cause}");
            dropped(7, &message(kind), &[receiver]);
        }
    }
    // Of a stranger that somebody took for a leader nothing follows for a member that really leads.
    let mut cluster = cluster();
    cluster.core(2).step(7, RaftMessage { term: 5, ..message(MessageKind::Heartbeat) });
    cluster.core(2).step(1, RaftMessage { term: 5, ..message(MessageKind::Heartbeat) });
    let effects = cluster.core(2).drain(Moment { now: TICK, wall: SystemTime::UNIX_EPOCH });
    assert_eq!(effects.fault, None);
}

/// One member's word against another's stops nobody, and is not forgotten.
#[test]
fn what_a_member_claims_to_have_committed_is_shown() {
    let claim = |kind, commit, commit_term| RaftMessage { commit, commit_term, ..message(kind) };
    let cases = [
        (1, claim(MessageKind::HeartbeatResponse, 4, 0), CommitConflict { index: 4, theirs: 0, at: 3, ours: 2 }),
        (1, claim(MessageKind::AppendResponse, 9, 0), CommitConflict { index: 9, theirs: 0, at: 3, ours: 2 }),
        (2, claim(MessageKind::PreVote, 3, 1), CommitConflict { index: 3, theirs: 1, at: 3, ours: 2 }),
        (2, claim(MessageKind::Vote, 9, 1), CommitConflict { index: 9, theirs: 1, at: 3, ours: 2 }),
        (1, claim(MessageKind::VoteResponse, 2, 1), CommitConflict { index: 2, theirs: 1, at: 2, ours: 2 }),
    ];
    for (receiver, m, conflict) in cases {
        let mut cluster = cluster();
        cluster.core(receiver).step(7, m.clone());
        assert!(cluster.core(receiver).status().commit_conflicts.is_empty(), "a stranger's {m:?} counts");
        cluster.core(receiver).step(3, m.clone());
        assert_eq!(cluster.core(receiver).status().commit_conflicts, [(3, conflict)].into(), "{m:?}");
        let effects = cluster.core(receiver).drain(Moment { now: TICK, wall: SystemTime::UNIX_EPOCH });
        assert_eq!(effects.fault, None, "{m:?}");
    }
    let mut cluster = cluster();
    for m in [claim(MessageKind::HeartbeatResponse, 3, 0), claim(MessageKind::HeartbeatResponse, 1 << 62, 0)] {
        cluster.core(1).step(3, m);
    }
    for m in [claim(MessageKind::Vote, 3, 2), claim(MessageKind::Vote, 9, 3), claim(MessageKind::Vote, 3, 0)] {
        cluster.core(2).step(3, m);
    }
    assert!(cluster.core(1).status().commit_conflicts.is_empty(), "an honest claim, or nonsense, is a conflict");
    assert!(cluster.core(2).status().commit_conflicts.is_empty(), "an honest claim is a conflict");
}

#[test]
fn snapshots_of_nothing() {
    let all = [2, 4];
    dropped(1, &snapshot(|s| s.index = 0), &all);
    dropped(1, &snapshot(|s| s.term = 0), &all);
    dropped(1, &snapshot(|s| s.term = 3), &all);
    dropped(1, &snapshot(|s| s.index = u64::MAX), &all);
    dropped(1, &snapshot(|s| s.data = Bytes::new()), &all);
    dropped(1, &snapshot(|s| s.data = Bytes::from_static(b"\xff\xff\xff")), &all);
    dropped(1, &snapshot(|s| s.conf.voters.clear()), &all);
    dropped(1, &snapshot(|s| s.conf.voters.push(1)), &all);
    dropped(1, &snapshot(|s| s.conf.voters.push(0)), &all);
    dropped(1, &snapshot(|s| s.conf.learners.push(2)), &all);
    dropped(1, &snapshot(|s| s.conf.learners.extend([9, 9])), &all);
    dropped(1, &snapshot(|s| s.conf.voters_outgoing.push(1)), &all);
    dropped(1, &snapshot(|s| s.conf.learners_next.push(1)), &all);
    dropped(1, &snapshot(|s| s.conf.auto_leave = true), &all);
}

/// What is plausible by itself may still be a lie: it may mislead, but not kill. Every kind with every
/// combination of small numbers, from two members and a stranger, at nodes in every role.
#[test]
fn plausible_lies_do_not_kill() {
    let numbers = [0, 1, 2, 3, 4, 9];
    let mut victims = cluster();
    for kind in KINDS {
        for n in 0..numbers.len().pow(4) {
            // Lies add up: now and then begin with an honest cluster.
            if n % 50 == 0 {
                victims = cluster();
            }
            let at = |place: u32| numbers[n / numbers.len().pow(place) % numbers.len()];
            let mut m = message(kind);
            (m.index, m.log_term, m.commit, m.commit_term) = (at(0), at(1), at(2), at(3));
            (m.reject, m.reject_hint) = (n % 2 == 1, at(3));
            m.term = [1, 2, 3][n % 3];
            if kind == MessageKind::Append && n % 4 > 1 {
                m.entries = vec![entry(m.index + 1, m.log_term.max(1)), entry(m.index + 2, m.term)];
            }
            for id in 1..=4 {
                for from in [1, 3, 7] {
                    victims.core(id).step(from, m.clone());
                }
                // Their effects go nowhere: lies break promises, and the checks would say so.
                let effects = victims.core(id).drain(Moment { now: TICK * (n as u32), wall: SystemTime::UNIX_EPOCH });
                if let Some(append) = effects.append.last().filter(|_| n % 3 > 0) {
                    victims.core(id).persisted(append.number);
                }
                let now = victims.core(id).status();
                assert!(now.commit_index <= now.last_index, "{m:?}");
            }
        }
    }
}

/// A leader by itself, its last entry not on its disk yet, is told by somebody to campaign at once in a later term.
/// raft-rs would step down, elect it in the same breath, and die because its log is not durable. Found by fuzzing.
#[test]
fn a_single_leader_ahead_of_its_disk_is_not_made_to_campaign() {
    let mut cluster = Cluster::new(1);
    cluster.found(&[1]);
    cluster.start(1, None);
    cluster.core(1).campaign();
    cluster.drain(1);
    cluster.nodes.get_mut(&1).unwrap().disk_auto = false;
    cluster.propose(1, "a", TICK * 50);
    cluster.drain(1);
    assert!(!cluster.nodes[&1].disk.in_flight.is_empty(), "it leads, and its disk is behind");
    let term = cluster.core(1).status().term;
    cluster.core(1).step(2, RaftMessage::new(MessageKind::TimeoutNow, term + 1));
    cluster.drain(1);
    assert_eq!(cluster.core(1).status().term, term, "nobody is deposed by such a message");
    cluster.persist_synced(1);
    assert_eq!(cluster.core(1).status().commit_index, cluster.core(1).status().last_index);
}

/// A term once heard is never given back: one that is far ahead would leave nothing to elect in.
#[test]
fn terms_far_ahead() {
    const AHEAD: u64 = 1 << 32;
    for kind in KINDS.into_iter().filter(|kind| *kind != MessageKind::TimeoutNow) {
        for term in [2 + AHEAD + 1, (1 << 62) - 1, 1 << 63, u64::MAX] {
            let with = |term| RaftMessage { term, ..message(kind) };
            dropped(3, &with(term), &FORMED);
            if matches!(kind, MessageKind::Append | MessageKind::Heartbeat | MessageKind::Snapshot) {
                let mut to_nobody = with(term);
                (to_nobody.index, to_nobody.log_term, to_nobody.commit) = (0, 0, 0);
                dropped(3, &to_nobody, &[4]);
            }
        }
    }
    // Whoever speaks in a term knows of no later one.
    for kind in KINDS {
        for term in [4, AHEAD, (1 << 62) - 1] {
            dropped(3, &RaftMessage { log_term: term, ..message(kind) }, &FORMED);
            dropped(3, &RaftMessage { commit_term: term, ..message(kind) }, &FORMED);
        }
    }
    dropped(1, &RaftMessage { entries: vec![entry(4, AHEAD)], ..message(MessageKind::Append) }, &[2]);
    dropped(1, &snapshot(|s| s.term = AHEAD), &[2, 4]);
}

/// What is nearer is stepped as Raft says, and elections go on from there: also from terms that were once thought the
/// last.
#[test]
fn terms_just_near_enough() {
    let mut cluster = cluster();
    let far = 2 + (1 << 32);
    cluster.core(3).step(7, RaftMessage { commit: 0, ..RaftMessage::new(MessageKind::Heartbeat, far) });
    cluster.drain(3);
    assert_eq!(cluster.core(3).status().term, far);
    // Node 3 answers its leader with that term, which deposes it; then somebody is elected in the next one.
    settle_in_time(&mut cluster);
    let leads = |cluster: &mut Cluster| (1..=3).find(|id| cluster.core(*id).role() == Role::Leader);
    let leader = leads(&mut cluster).expect("somebody leads");
    assert!(cluster.core(leader).status().term > far);
    cluster.propose(leader, "b", TICK * 50);
    cluster.drain(leader);
    settle(&mut cluster);
    assert!(cluster.checks.applied.contains_key("b"));
}

/// Ticks and deliveries until nothing of an election is open.
fn settle_in_time(cluster: &mut Cluster) {
    for _ in 0..200 {
        for id in 1..=3 {
            cluster.nodes.get_mut(&id).unwrap().now += TICK;
            cluster.drain(id);
        }
        settle(cluster);
    }
}

/// A directory that took a term of such a message before there was this bound still elects; one without terms left does
/// not open.
#[test]
fn persisted_terms_near_the_end() {
    let mut cluster = Cluster::new(1);
    cluster.found(&[1, 2, 3]);
    for id in 1..=3 {
        let node = cluster.nodes.get_mut(&id).unwrap();
        node.disk.durable.lock().unwrap().hard_state.term = (1 << 62) - 1;
        node.disk.term = (1 << 62) - 1;
        cluster.start(id, None);
    }
    settle_in_time(&mut cluster);
    let leader = (1..=3).find(|id| cluster.core(*id).role() == Role::Leader).expect("somebody leads");
    assert!(cluster.core(leader).status().term >= 1 << 62);

    for (term, opens) in [(1 << 63, false), (u64::MAX, false), ((1 << 63) - 1, true)] {
        let mut cluster = Cluster::new(1);
        cluster.found(&[1]);
        cluster.nodes.get_mut(&1).unwrap().disk.durable.lock().unwrap().hard_state.term = term;
        let started = catch_unwind(AssertUnwindSafe(|| cluster.start(1, None)));
        assert_eq!(started.is_ok(), opens, "{term}");
    }
}

/// Whoever is told to campaign at once does so past pre-vote and lease: only its own leader may say so.
#[test]
fn leadership_is_handed_over_by_the_leader_alone() {
    let order = |term| RaftMessage::new(MessageKind::TimeoutNow, term);
    for term in [2, 3, 1 << 20] {
        dropped(3, &order(term), &FORMED);
    }
    dropped(1, &order(3), &[2]);
    // Of an earlier term it is old: nothing happens.
    let mut victims = cluster();
    let before = victims.core(2).status();
    victims.core(2).step(1, order(1));
    victims.drain(2);
    assert_eq!(victims.core(2).status(), before);
    // Without a leader nobody may.
    victims.crash(2);
    victims.start(2, None);
    assert_eq!(victims.core(2).leader(), None);
    victims.core(2).step(1, order(2));
    victims.drain(2);
    assert_eq!(victims.core(2).status().term, 2);
    // The leader may.
    let mut victims = cluster();
    victims.core(2).step(1, order(2));
    victims.drain(2);
    assert_eq!((victims.core(2).status().term, victims.core(2).role()), (3, Role::Candidate));
}

/// A snapshot whose configuration is not that of the state in it: the two would part at the next change. Found by
/// fuzzing.
#[test]
fn snapshots_that_contradict_themselves() {
    let all = [2, 3, 4];
    dropped(1, &snapshot(|s| s.conf.voters = vec![5]), &all);
    dropped(1, &snapshot(|s| s.conf.voters.truncate(2)), &all);
    dropped(1, &snapshot(|s| s.conf.voters.push(5)), &all);
}
