//! Three nodes of one process over real QUIC on loopback and real directories: what a user's first cluster is.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use crate::ports::free_port;
use crate::support::{Sum, TIMEOUT, start_again};
use actorum::{Address, NodeId, StartError, prelude::*};

/// One node; the certificates of all that are given the same `ca` are made on the spot.
async fn start(id: NodeId, at: SocketAddr, dir: &Path, ca: &str, bootstrap: Bootstrap) -> Raft<Sum> {
    let builder = || {
        let builder = RaftSystem::builder(id).listen(at).bootstrap(bootstrap.clone());
        let builder = builder.storage(Storage::Sled(dir.join(format!("{ca}-{id}"))));
        builder.tls(Tls::DevSelfSigned(dir.join(ca)))
    };
    start_again(builder).await
}

fn form(addresses: &BTreeMap<NodeId, SocketAddr>) -> Bootstrap {
    Bootstrap::Form(addresses.iter().map(|(id, at)| (*id, Address::from(*at))).collect())
}

#[tokio::test]
async fn three_nodes_elect_forward_apply_and_lose_a_leader() {
    let dir = tempfile::tempdir().unwrap();
    let addresses: BTreeMap<NodeId, SocketAddr> = (1..=4).map(|id| (id, free_port())).collect();
    let founders: BTreeMap<_, _> = addresses.range(1..=3).map(|(id, at)| (*id, *at)).collect();
    let mut nodes = Vec::new();
    for (id, at) in &founders {
        nodes.push(start(*id, *at, dir.path(), "ca", form(&founders)).await);
    }
    let leader = nodes[0].wait_for_leader(TIMEOUT).await.unwrap().leader.unwrap();
    let mut answers = Vec::new();
    for n in 0..300 {
        answers.push(nodes[n % 3].submit_within(1, Duration::MAX));
    }
    for answer in answers {
        let answer = tokio::time::timeout(TIMEOUT, answer).await;
        answer.expect("a forward that may wait for ever is answered like any other").unwrap();
    }
    for node in &nodes {
        assert_eq!(node.read(|sum| sum.total).await.unwrap(), 300);
    }
    let linked = |s: &Status| s.peers.values().all(|p| p.connected && p.rtt_us > 0) && s.totals.bytes_sent > 0;
    nodes[0].wait(TIMEOUT, linked).await.unwrap();

    // A fourth node waits, is added and promoted.
    let fourth = start(4, addresses[&4], dir.path(), "ca", Bootstrap::Wait).await;
    nodes[1].change_within(ConfChange::AddLearner(4, addresses[&4].into()), TIMEOUT).await.unwrap();
    nodes[2].change_within(ConfChange::Promote(4), TIMEOUT).await.unwrap();
    assert_eq!(fourth.read(|sum| sum.total).await.unwrap(), 300);

    // The leader goes; the others go on; it comes back by the same call and catches up.
    nodes[leader as usize - 1].shutdown().await;
    let survivor = &nodes[leader as usize % 3];
    survivor.wait(TIMEOUT, |s| s.leader.is_some_and(|l| l != leader)).await.unwrap();
    let applied = survivor.propose_within(1, TIMEOUT).await.unwrap();
    assert_eq!(applied.response, 301);
    let again = start(leader, founders[&leader], dir.path(), "ca", form(&founders)).await;
    again.wait_applied(applied.index, TIMEOUT).await.unwrap();
    assert_eq!(again.read_stale(|sum| sum.total).await.unwrap(), 301);
}

/// What it knew of the cluster when it went is all gone: its present members are strangers to it, and it answers them
/// over the connections on which they ask.
#[tokio::test]
async fn a_follower_finds_back_when_all_others_were_replaced_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let addresses: BTreeMap<NodeId, SocketAddr> = (1..=6).map(|id| (id, free_port())).collect();
    let founders: BTreeMap<_, _> = addresses.range(1..=3).map(|(id, at)| (*id, *at)).collect();
    let mut nodes = BTreeMap::new();
    for (id, at) in &founders {
        nodes.insert(*id, start(*id, *at, dir.path(), "ca", form(&founders)).await);
    }
    nodes[&1].propose_within(1, TIMEOUT).await.unwrap();
    nodes[&3].wait(TIMEOUT, |s| s.commit_index > 1).await.unwrap();
    nodes.remove(&3).unwrap().shutdown().await;

    for id in 4..=6 {
        nodes.insert(id, start(id, addresses[&id], dir.path(), "ca", Bootstrap::Wait).await);
        nodes[&1].change_within(ConfChange::AddLearner(id, addresses[&id].into()), TIMEOUT).await.unwrap();
        nodes[&1].change_within(ConfChange::Promote(id), TIMEOUT).await.unwrap();
    }
    for id in [1, 2] {
        nodes[&4].change_within(ConfChange::Remove(id), TIMEOUT).await.unwrap();
        nodes.remove(&id).unwrap().shutdown().await;
    }
    let applied = nodes[&5].propose_within(41, TIMEOUT).await.unwrap();
    assert_eq!(applied.response, 42);

    let again = start(3, addresses[&3], dir.path(), "ca", form(&founders)).await;
    let status = again.wait_applied(applied.index, TIMEOUT).await.unwrap();
    assert_eq!((status.membership.voters(), again.read(|sum| sum.total).await.unwrap()), (vec![3, 4, 5, 6], 42));
}

#[tokio::test]
async fn a_stranger_with_certificates_of_another_authority_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let addresses: BTreeMap<NodeId, SocketAddr> = (1..=2).map(|id| (id, free_port())).collect();
    let one = start(1, addresses[&1], dir.path(), "ca", form(&addresses)).await;
    let stranger = start(2, addresses[&2], dir.path(), "other-ca", form(&addresses)).await;
    let told = |s: &Status| s.peers.values().any(|p| p.last_error.is_some());
    one.wait(TIMEOUT, told).await.unwrap();
    assert!(one.wait_for_leader(Duration::from_millis(500)).await.is_err());
    assert_eq!((one.status().term, stranger.status().term), (0, 0));
}

#[tokio::test]
async fn an_address_in_use_and_missing_certificates_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let builder = |n: u32| RaftSystem::<Sum>::builder(1).storage(Storage::Sled(dir.path().join(n.to_string())));
    let at = taken.local_addr().unwrap();
    let dev = Tls::DevSelfSigned(dir.path().join("ca"));
    let error = builder(1).listen(at).tls(dev).start().await.err().unwrap();
    assert!(matches!(error, StartError::Listen { address, .. } if address == at), "{error}");
    let error = builder(2).listen(at).tls(Tls::Directory(dir.path().join("none"))).start().await.err().unwrap();
    assert!(error.to_string().starts_with("certificates: "), "{error}");
    let error = builder(3).listen(at).start().await.err().unwrap();
    assert!(error.to_string().starts_with("configuration: tls: "), "{error}");
}
