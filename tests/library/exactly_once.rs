//! Two nodes race with retries while leaders are cut off, lose their answers and die: what is counted at the end is the
//! fourth promise.
//!
//! Every client proposes numbers that nobody else proposes. It proposes one again only after a rejection, which
//! promises that the number is surely not in the log. So no number may be applied twice, every number
//! that was answered must be there, and nothing that was rejected for good may be.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{MemoryDisk, MemoryNetwork, Sum, TIMEOUT, founders, start};
use actorum::{NodeId, Outcome, prelude::*};

#[derive(Default)]
struct Account {
    answered: BTreeSet<u64>,
    unknown: BTreeSet<u64>,
    /// Unknown because the leader's answer, and nothing but the answer, was lost.
    unheard: BTreeSet<u64>,
    given_up: BTreeSet<u64>,
    rejections: usize,
}

/// Proposes through one node, eight at a time, until told to stop.
async fn client(raft: Raft<Sum>, numbers: u64, stop: Arc<AtomicBool>, unheard: Arc<AtomicUsize>) -> Account {
    let mut account = Account::default();
    let mut next = numbers;
    while !stop.load(Ordering::Relaxed) {
        let batch: Vec<u64> = (next..next + 8).collect();
        next += 8;
        let mut open = batch;
        for attempt in 0..6 {
            let short = Duration::from_millis(60);
            let answers: Vec<_> = open.iter().map(|n| (*n, raft.submit_within(*n, short))).collect();
            open.clear();
            for (number, answer) in answers {
                match answer.await {
                    Ok(_) => drop(account.answered.insert(number)),
                    Err(error) if error.outcome() == Outcome::Unknown => {
                        if error.to_string().contains("the leader's answer was lost: the link was cut") {
                            unheard.fetch_add(1, Ordering::Relaxed);
                            account.unheard.insert(number);
                        }
                        account.unknown.insert(number);
                    }
                    Err(_) if attempt == 5 => drop(account.given_up.insert(number)),
                    Err(_) => {
                        account.rejections += 1;
                        open.push(number);
                    }
                }
            }
            if open.is_empty() {
                break;
            }
            actix::clock::sleep(Duration::from_millis(5)).await;
        }
    }
    account
}

async fn leader_of(nodes: &[Raft<Sum>]) -> NodeId {
    nodes[0].wait(TIMEOUT, |s| s.leader.is_some()).await.unwrap().leader.unwrap()
}

#[actix::test]
async fn nothing_is_applied_twice_and_nothing_answered_is_lost() {
    let (network, disks): (_, [MemoryDisk; 3]) = (MemoryNetwork::new(), Default::default());
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(start(&network, id, &disks[id as usize - 1], founders(3)).await);
    }
    leader_of(&nodes).await;
    let (stop, unheard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = [(0, 1_000_000), (1, 2_000_000), (0, 3_000_000), (1, 4_000_000)]
        .map(|(node, numbers)| actix::spawn(client(nodes[node].clone(), numbers, stop.clone(), unheard.clone())))
        .into();
    let (mut cut_off, mut died, mut muted) = (0, 0, 0);
    while cut_off < 3 || died < 2 || muted < 3 {
        let leader = leader_of(&nodes).await;
        if muted <= cut_off + died {
            // What this client's node forwards arrives and is carried out with the third node's help; the answer
            // alone never comes.
            let follower = if leader == 1 { 2 } else { 1 };
            let before = unheard.load(Ordering::Relaxed);
            network.cut(leader, follower);
            for _ in 0..30 {
                actix::clock::sleep(Duration::from_millis(5)).await;
                if unheard.load(Ordering::Relaxed) > before + 16 {
                    break;
                }
            }
            network.heal(leader, follower);
            muted += 1;
        } else if leader == 3 {
            // The leader dies without a word and comes back with what its disk holds.
            disks[2].crash();
            nodes.pop();
            nodes.push(start(&network, 3, &disks[2], founders(3)).await);
            died += 1;
        } else {
            network.isolate(leader);
            let other = nodes.iter().find(|node| node.status().id != leader).unwrap();
            other.wait(TIMEOUT, |s| s.leader.is_some_and(|l| l != leader)).await.unwrap();
            actix::clock::sleep(Duration::from_millis(100)).await;
            network.heal_all();
            cut_off += 1;
        }
        actix::clock::sleep(Duration::from_millis(200)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut total = Account::default();
    for client in clients {
        let account = client.await.unwrap();
        total.answered.extend(account.answered);
        total.unknown.extend(account.unknown);
        total.unheard.extend(account.unheard);
        total.given_up.extend(account.given_up);
        total.rejections += account.rejections;
    }
    // A last command behind everything that could still be on its way.
    let last = nodes[0].propose_within(7, TIMEOUT).await.unwrap().index;
    let mut stories = Vec::new();
    for node in &nodes {
        node.wait_applied(last, TIMEOUT).await.unwrap();
        stories.push(node.read_stale(|sum| sum.seen.clone()).await.unwrap());
    }
    assert_eq!(stories[0], stories[1]);
    assert_eq!(stories[0], stories[2]);
    let found: BTreeSet<u64> = stories[0].iter().copied().collect();
    assert_eq!(found.len(), stories[0].len(), "a number was applied twice");
    let missing: Vec<_> = total.answered.difference(&found).collect();
    assert!(missing.is_empty(), "answered and not there: {missing:?}");
    let ghosts: Vec<_> = total.given_up.intersection(&found).collect();
    assert!(ghosts.is_empty(), "rejected and yet there: {ghosts:?}");
    assert!(total.rejections > 0 && !total.unknown.is_empty(), "nothing was retried or lost: the test proves nothing");
    let applied_unheard = total.unheard.intersection(&found).count();
    assert!(applied_unheard > 0, "no answer alone was lost: {} answers of the leader were", total.unheard.len());
    println!(
        "{} answered, {} unknown, {applied_unheard} of them applied and only the answer lost, {} rejections, {} found",
        total.answered.len(),
        total.unknown.len(),
        total.rejections,
        found.len()
    );
}
