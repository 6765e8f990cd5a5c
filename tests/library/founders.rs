//! The sixth promise on real directories: an empty directory has no vote, and a node that lost its own is refused.

use std::{path::Path, time::Duration};

use crate::support::{MemoryNetwork, Sum, TIMEOUT, founders, quick};
use actorum::{Address, Formed, Network, NodeId, prelude::*};

async fn start(network: &MemoryNetwork, id: NodeId, dir: &Path, bootstrap: Bootstrap) -> Raft<Sum> {
    let builder = RaftSystem::builder(id).network(Network::Memory(network.clone())).bootstrap(bootstrap);
    let storage = Storage::Sled(dir.join(id.to_string()));
    builder.storage(storage).configure(quick).start().await.unwrap()
}

#[actix::test]
async fn a_restart_is_the_same_call_as_the_first_start() {
    let (network, dir) = (MemoryNetwork::new(), tempfile::tempdir().unwrap());
    for round in 1..=3 {
        let raft = start(&network, 1, dir.path(), founders(1)).await;
        let applied = raft.propose(1).await.unwrap();
        assert_eq!(applied.response, round);
        let status = raft.status();
        assert_eq!((status.formed, status.disk_bytes > 0), (Formed::Yes, true));
        raft.shutdown().await;
    }
}

#[actix::test]
async fn nobody_leads_before_every_founder_was_heard() {
    let (network, dir) = (MemoryNetwork::new(), tempfile::tempdir().unwrap());
    let one = start(&network, 1, dir.path(), founders(3)).await;
    let two = start(&network, 2, dir.path(), founders(3)).await;
    two.wait(TIMEOUT, |s| s.formed == Formed::Forming { waiting_for: vec![3] }).await.unwrap();
    assert_eq!((one.status().leader, two.status().term), (None, 0), "two of three are not enough to begin");
    let short = Duration::from_millis(300);
    let refused = one.propose_within(1, short).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Unavailable { reason: actorum::Reason::Forming, .. }), "{refused}");
    let three = start(&network, 3, dir.path(), founders(3)).await;
    three.wait_for_leader(TIMEOUT).await.unwrap();
    assert_eq!(one.propose(1).await.unwrap().response, 1);
    let cluster = one.wait(TIMEOUT, |s| s.cluster.is_some()).await.unwrap().cluster;
    assert_eq!(two.wait(TIMEOUT, |s| s.cluster.is_some()).await.unwrap().cluster, cluster);
}

#[actix::test]
async fn a_founder_that_lost_its_directory_is_refused_and_nothing_is_lost() {
    let (network, dir) = (MemoryNetwork::new(), tempfile::tempdir().unwrap());
    let one = start(&network, 1, dir.path(), founders(3)).await;
    let two = start(&network, 2, dir.path(), founders(3)).await;
    let three = start(&network, 3, dir.path(), founders(3)).await;
    for node in [&one, &two, &three] {
        node.wait_for_leader(TIMEOUT).await.unwrap();
    }
    // Acknowledged on nodes 1 and 2 only.
    network.isolate(3);
    let index = one.propose_within(40, TIMEOUT).await.unwrap().index;
    two.wait_applied(index, TIMEOUT).await.unwrap();
    one.shutdown().await;
    two.shutdown().await;
    std::fs::remove_dir_all(dir.path().join("2")).unwrap();
    network.heal_all();

    // With the wiped node's vote, node 3 would lead and the entry be lost.
    let wiped = start(&network, 2, dir.path(), founders(3)).await;
    let cause = wiped.stopped().await;
    // By the hello or by the exchange of founders, whichever is heard first.
    let specific = ["node 2 is known here as incarnation", "formed with another directory of node 2"];
    assert!(specific.iter().any(|words| cause.contains(words)), "{cause}");
    assert!(cause.contains("under a new id"), "the message names the way out: {cause}");
    assert_eq!(wiped.status().term, 0, "it neither granted nor sought a vote");
    let refused = wiped.propose(1).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Unavailable { reason: actorum::Reason::RefusedByPeers, .. }), "{refused}");

    let one = start(&network, 1, dir.path(), founders(3)).await;
    three.wait_applied(index, TIMEOUT).await.unwrap();
    assert_eq!(one.read(|sum| sum.total).await.unwrap(), 40);
    assert_eq!(three.read_stale(|sum| sum.total).await.unwrap(), 40);
}

#[actix::test]
async fn founders_with_different_lists_refuse_each_other() {
    let (network, dir) = (MemoryNetwork::new(), tempfile::tempdir().unwrap());
    let one = start(&network, 1, dir.path(), founders(2)).await;
    let two = start(&network, 2, dir.path(), founders(3)).await;
    let causes = [one.stopped().await, two.stopped().await];
    assert!(causes.iter().all(|c| c.contains("start all founders with the same list")), "{causes:?}");
}

/// Otherwise each would form a cluster of its own, and refuse the other's for ever.
#[actix::test]
async fn founders_with_different_names_refuse_each_other_before_anything_is_written() {
    let (network, dir) = (MemoryNetwork::new(), tempfile::tempdir().unwrap());
    let start = async |id: NodeId, name: &str| {
        let builder = RaftSystem::<Sum>::builder(id).network(Network::Memory(network.clone())).bootstrap(founders(2));
        let storage = Storage::Sled(dir.path().join(id.to_string()));
        builder.storage(storage).configure(quick).cluster_name(name).start().await.unwrap()
    };
    let (one, two) = (start(1, "blue").await, start(2, "green").await);
    for node in [&one, &two] {
        let cause = node.stopped().await;
        assert!(cause.contains("\"blue\"") && cause.contains("\"green\"") && cause.contains("cluster_name"), "{cause}");
        node.shutdown().await;
    }
    // Nothing was written: with the same name the same directories form.
    let (one, two) = (start(1, "blue").await, start(2, "blue").await);
    one.wait_for_leader(TIMEOUT).await.unwrap();
    assert_eq!(two.propose_within(1, TIMEOUT).await.unwrap().response, 1);
}

#[actix::test]
async fn a_directory_of_another_node_or_in_use_says_so() {
    let (network, dir) = (MemoryNetwork::new(), tempfile::tempdir().unwrap());
    let _one = start(&network, 1, dir.path(), founders(1)).await;
    let again = |id: NodeId| {
        let storage = Storage::Sled(dir.path().join("1"));
        RaftSystem::<Sum>::builder(id).network(Network::Memory(network.clone())).storage(storage).start()
    };
    let error = again(1).await.err().unwrap().to_string();
    assert!(error.contains("is in use by"), "{error}");
    let lone: Bootstrap = Bootstrap::Form([(2, Address::from("n2"))].into());
    let other = start(&network, 2, dir.path(), lone).await;
    other.propose(1).await.unwrap();
}
