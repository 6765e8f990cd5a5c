//! Flow control: followers that are far behind, and restarts with more in the log than the bounds allow.

use std::time::Duration;

use actorum_machine::{ids::NodeId, status::Role};

use super::cluster::{Cluster, TICK};
use crate::message::Room;

const HOUR: Duration = Duration::from_secs(3600);

/// Delivers and drains until nothing is on its way. How many messages, and the bytes of entries in the largest.
fn settle(cluster: &mut Cluster) -> (usize, usize) {
    let (mut count, mut largest) = (0, 0);
    loop {
        let links: Vec<_> =
            cluster.links.iter().filter(|(_, queue)| !queue.is_empty()).map(|(link, _)| *link).collect();
        if links.is_empty() {
            return (count, largest);
        }
        for (from, to, urgent) in links {
            for message in &cluster.links[&(from, to, urgent)] {
                largest = largest.max(message.entries.iter().map(|entry| entry.size()).sum());
            }
            count += cluster.deliver(from, to, urgent, usize::MAX);
            if cluster.is_up(to) {
                cluster.drain(to);
            }
        }
    }
}

fn tick(cluster: &mut Cluster, id: NodeId) {
    cluster.nodes.get_mut(&id).unwrap().now += TICK;
    cluster.drain(id);
}

fn elect(cluster: &mut Cluster, id: NodeId) {
    cluster.core(id).campaign();
    cluster.drain(id);
    settle(cluster);
    assert_eq!(cluster.core(id).role(), Role::Leader);
}

fn of_size(name: &str, bytes: usize) -> String {
    format!("{name}{}", "x".repeat(bytes - name.len()))
}

/// A follower 200 entries behind, each as large as a message may be. What is sent to it stays within its window and its
/// messages within their bound (`Checks` looks at each), nothing is dropped, and no heartbeat is needed to go on.
#[test]
fn a_follower_far_behind_catches_up_within_its_window() {
    // A sixty-fourth of what the defaults are: transcripts quote what is applied.
    const MIB: usize = (1 << 20) / 64;
    let mut cluster = Cluster::new(1);
    (cluster.max_unapplied_bytes, cluster.max_unpersisted_bytes) = (256 * MIB, 256 * MIB);
    (cluster.max_append_bytes, cluster.peer_window_bytes) = (MIB, 16 * MIB);
    (cluster.max_entry_bytes, cluster.tail_bytes) = (2 * MIB, 64 * MIB);
    cluster.found(&[1, 2, 3]);
    (1..=3).for_each(|id| cluster.start(id, None));
    elect(&mut cluster, 1);
    cluster.crash(3);
    for n in 0..200 {
        let reply = of_size(&format!("{n:03}"), MIB);
        cluster.propose(1, &reply, HOUR);
        cluster.drain(1);
        settle(&mut cluster);
        assert!(cluster.checks.applied.contains_key(&reply));
    }
    let last = cluster.core(1).status().last_index;
    cluster.start(3, None);
    // One heartbeat tells the leader that it is back. After that acknowledgements alone drive it.
    tick(&mut cluster, 1);
    cluster.core(1).unreachable(3);
    let (_, largest) = settle(&mut cluster);
    tick(&mut cluster, 1);
    let (messages, second) = settle(&mut cluster);
    assert_eq!(cluster.core(3).status().persisted_index, last, "caught up after two heartbeats");
    assert!(largest.max(second) <= 2 * MIB, "the largest message has {} bytes", largest.max(second));
    assert!(messages < 2000, "{messages} messages");
}

/// A log of small entries is sent in full messages, not one entry at a time.
#[test]
fn small_entries_fill_messages() {
    let mut cluster = Cluster::new(1);
    cluster.found(&[1, 2, 3]);
    (1..=3).for_each(|id| cluster.start(id, None));
    elect(&mut cluster, 1);
    cluster.crash(3);
    for n in 0..2000 {
        cluster.propose(1, &format!("p{n}"), HOUR);
    }
    cluster.drain(1);
    settle(&mut cluster);
    let last = cluster.core(1).status().last_index;
    cluster.start(3, None);
    cluster.core(1).unreachable(3);
    let mut messages = 0;
    for _ in 0..3 {
        tick(&mut cluster, 1);
        messages += settle(&mut cluster).0;
    }
    assert_eq!(cluster.core(3).status().persisted_index, last);
    // Some 90 kB in messages of 1 kB, an answer to each, and what tells of commits.
    assert!(messages < 400, "{messages} messages");
}

/// A window that fills while its messages are lost in silence does not stay full: each heartbeat's answer brings an
/// append without entries, which the follower refuses.
#[test]
fn a_window_full_of_lost_messages_is_found() {
    let mut cluster = Cluster::new(1);
    (cluster.max_append_bytes, cluster.peer_window_bytes) = (1, 100);
    cluster.found(&[1, 2, 3]);
    (1..=3).for_each(|id| cluster.start(id, None));
    elect(&mut cluster, 1);
    for n in 0..50 {
        cluster.propose(1, &format!("p{n}"), HOUR);
    }
    cluster.drain(1);
    let lost = cluster.links.insert((1, 3, false), Default::default()).unwrap();
    assert!((2..5).contains(&lost.len()), "the window of 100 bytes: {} messages", lost.len());
    settle(&mut cluster);
    let last = cluster.core(1).status().last_index;
    assert!(cluster.core(3).status().last_index < last);
    for _ in 0..3 {
        tick(&mut cluster, 1);
        settle(&mut cluster);
    }
    assert_eq!(cluster.core(3).status().persisted_index, last);
}

/// Killed under load, and started again with a bound below what is in every log and not committed: the entry of the new
/// leader, which alone can commit the rest, is not dropped. While the tail is over the bound clients are told that it
/// is busy.
#[test]
fn a_tail_above_the_bound_is_committed_after_a_restart() {
    let mut cluster = Cluster::new(1);
    cluster.found(&[1, 2, 3]);
    (1..=3).for_each(|id| cluster.start(id, None));
    elect(&mut cluster, 1);
    for n in 0..20 {
        cluster.propose(1, &of_size(&format!("p{n}"), 100), HOUR);
    }
    cluster.drain(1);
    // It reaches every disk, and nobody hears of that.
    for to in [2, 3] {
        while cluster.deliver(1, to, false, 1) > 0 {
            cluster.drain(to);
            cluster.links.insert((to, 1, false), Default::default());
        }
    }
    let last = cluster.core(1).status().last_index;
    (1..=3).for_each(|id| cluster.crash(id));
    cluster.links.clear();
    (cluster.max_unapplied_bytes, cluster.max_append_bytes) = (300, 100);
    (1..=3).for_each(|id| cluster.start(id, None));
    for id in 2..=3 {
        let status = cluster.core(id).status();
        assert!(status.last_index - status.commit_index > 5, "n{id} holds an uncommitted tail above the bound");
    }
    cluster.core(1).campaign();
    cluster.drain(1);
    settle(&mut cluster);
    for _ in 0..5 {
        tick(&mut cluster, 1);
        settle(&mut cluster);
    }
    for id in 1..=3 {
        assert_eq!(cluster.core(id).status().applied_index, last + 1, "n{id}");
    }
    cluster.propose(1, "new", HOUR);
    cluster.drain(1);
    settle(&mut cluster);
    assert!(cluster.checks.applied.contains_key("new"));
}

/// While what is committed waits for the applier a follower takes no more, and goes on once it is applied.
#[test]
fn what_is_committed_and_not_applied_is_bounded() {
    let mut cluster = Cluster::new(1);
    (cluster.max_unapplied_bytes, cluster.max_append_bytes) = (1000, 200);
    cluster.found(&[1, 2, 3]);
    (1..=3).for_each(|id| cluster.start(id, None));
    elect(&mut cluster, 1);
    tick(&mut cluster, 1);
    settle(&mut cluster);
    cluster.nodes.get_mut(&3).unwrap().apply_auto = false;
    for n in 0..40 {
        cluster.propose(1, &of_size(&format!("p{n}"), 100), HOUR);
        cluster.drain(1);
        settle(&mut cluster);
    }
    let status = cluster.core(3).status();
    let waiting = (status.last_index - status.applied_index) * 150;
    assert!((1000..3000).contains(&waiting), "about {waiting} bytes wait on n3");
    cluster.nodes.get_mut(&3).unwrap().apply_auto = true;
    cluster.apply(3);
    for _ in 0..20 {
        tick(&mut cluster, 1);
        settle(&mut cluster);
    }
    assert_eq!(cluster.core(3).status().applied_index, cluster.core(1).status().last_index);
}

/// Many small entries are no way around the bound: each counts for what is around it, too.
#[test]
fn an_entry_counts_for_more_than_its_payload() {
    let mut cluster = Cluster::new(1);
    cluster.max_unapplied_bytes = 2000;
    cluster.found(&[1, 2, 3]);
    (1..=3).for_each(|id| cluster.start(id, None));
    elect(&mut cluster, 1);
    for n in 0..200 {
        cluster.propose(1, &format!("p{n}"), HOUR);
    }
    cluster.drain(1);
    let status = cluster.core(1).status();
    assert!(status.tail_bytes <= 2100, "{} bytes in memory", status.tail_bytes);
    assert!(!cluster.checks.rejected.is_empty());
}

/// Three nodes, of which the third was away until the log no longer reached back to what it holds; it is fetching a
/// snapshot.
fn one_fetches(hold_bytes: u64) -> Cluster {
    let mut cluster = Cluster::new(1);
    (cluster.snapshot_entries, cluster.hold_bytes, cluster.keep_entries) = (100, hold_bytes, 0);
    cluster.found(&[1, 2, 3]);
    (1..=3).for_each(|id| cluster.start(id, None));
    elect(&mut cluster, 1);
    cluster.crash(3);
    // Until the leader no longer counts it among the living, for which it would hold the log.
    for _ in 0..25 {
        tick(&mut cluster, 1);
        settle(&mut cluster);
    }
    for round in 0..2 {
        grow(&mut cluster, &format!("r{round}"), 5);
        build(&mut cluster);
    }
    cluster.start(3, None);
    cluster.core(1).unreachable(3);
    for _ in 0..3 {
        tick(&mut cluster, 1);
        settle(&mut cluster);
    }
    assert_eq!(cluster.core(1).sends().len(), 1, "n3 is sent a snapshot");
    cluster
}

fn grow(cluster: &mut Cluster, name: &str, entries: usize) {
    for n in 0..entries {
        cluster.propose(1, &format!("{name}-{n}"), HOUR);
        cluster.drain(1);
        settle(cluster);
    }
}

fn build(cluster: &mut Cluster) {
    cluster.built(1);
    cluster.drain(1);
    settle(cluster);
}

fn first_index(cluster: &mut Cluster) -> u64 {
    cluster.core(1).status().first_index
}

fn fetched(cluster: &mut Cluster) {
    let (_, snapshot) = cluster.wanted(3).unwrap();
    cluster.nodes.get_mut(&3).unwrap().fetching = None;
    cluster.core(3).snapshot_fetched(&snapshot, Ok(()));
    cluster.drain(3);
    settle(cluster);
}

/// A snapshot on its way holds the log behind it, but not more of it than for any follower that is behind, nor on a
/// disk without room.
#[test]
fn a_transfer_holds_the_log_within_its_bound_and_while_there_is_room() {
    let mut cluster = one_fetches(1000);
    let sent = cluster.core(1).sends()[0].1;
    for round in 0..2 {
        grow(&mut cluster, &format!("held{round}"), 3);
        build(&mut cluster);
    }
    assert_eq!(first_index(&mut cluster), sent + 1, "all that follows it is there");
    grow(&mut cluster, "low", 3);
    cluster.core(1).disk_space(Room::low(true));
    build(&mut cluster);
    assert!(first_index(&mut cluster) > sent + 1, "the log is cut where the disk has no room");

    let mut cluster = one_fetches(1000);
    let sent = cluster.core(1).sends()[0].1;
    for round in 0..8 {
        grow(&mut cluster, &format!("more{round}"), 5);
        build(&mut cluster);
    }
    assert!(first_index(&mut cluster) > sent + 1, "the log is cut where more would follow than is held for anybody");
    // Its receiver is sent another one after it, and gets there.
    for _ in 0..6 {
        if cluster.wanted(3).is_ok() {
            fetched(&mut cluster);
        }
        for _ in 0..15 {
            tick(&mut cluster, 1);
            settle(&mut cluster);
        }
    }
    assert_eq!(cluster.core(3).status().applied_index, cluster.core(1).status().last_index);
}

/// A node whose state machine is still being restored does not campaign, not even when it is told to; it votes.
#[test]
fn who_restores_votes_and_does_not_lead() {
    let mut cluster = one_fetches(1 << 20);
    cluster.nodes.get_mut(&3).unwrap().apply_auto = false;
    fetched(&mut cluster);
    assert_eq!(cluster.core(3).status().applied_index, cluster.core(3).status().snapshot_index);
    // The leader is gone, and the third hears from nobody for many election timeouts.
    cluster.crash(1);
    for _ in 0..100 {
        tick(&mut cluster, 3);
        assert_eq!(cluster.core(3).role(), Role::Follower, "it restores");
    }
    cluster.core(3).campaign();
    cluster.drain(3);
    assert_eq!(cluster.core(3).role(), Role::Follower, "it restores");
    cluster.links.clear();
    // The second has waited as long, and gets its vote.
    for _ in 0..40 {
        tick(&mut cluster, 2);
        settle(&mut cluster);
        if cluster.core(2).role() == Role::Leader {
            break;
        }
    }
    assert_eq!(cluster.core(2).role(), Role::Leader, "by the vote of the one that restores");
    // Once it is restored it seeks leadership like anybody else.
    cluster.nodes.get_mut(&3).unwrap().apply_auto = true;
    cluster.apply(3);
    settle(&mut cluster);
    cluster.crash(2);
    for _ in 0..100 {
        tick(&mut cluster, 3);
    }
    assert_ne!(cluster.core(3).role(), Role::Follower);
}
