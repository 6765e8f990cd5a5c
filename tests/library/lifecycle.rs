//! A node's life as an application sees it: who leads, whether it is ready, how it is now and next, and how it ends.

use std::time::Duration;

use crate::support::{MemoryDisk, MemoryNetwork, Sum, TIMEOUT, founders, quick, start, three};
use actorum::prelude::*;

#[actix::test]
async fn nothing_is_waited_for_on_a_node_that_has_stopped() {
    let raft = start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await;
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    let (pending, mut events) = (raft.clone(), raft.events(0).await.unwrap());
    let mut statuses = raft.watch_status();
    let pending = actix::spawn(async move { pending.wait(TIMEOUT * 10, |s| s.applied_index > 1000).await });
    assert!(raft.is_leader());
    raft.shutdown().await;
    assert!(!raft.is_leader());

    let stopped = |result: Result<Status, WaitError>| match result {
        Err(WaitError::Stopped(cause)) => assert_eq!(cause, "it was shut down"),
        other => panic!("{other:?}"),
    };
    stopped(tokio::time::timeout(TIMEOUT, pending).await.expect("the end ends every wait").unwrap());
    stopped(raft.wait_for_leader(TIMEOUT).await);
    stopped(raft.wait_applied(0, TIMEOUT).await);
    stopped(raft.wait(TIMEOUT, |_| true).await);
    let status = raft.status();
    assert_eq!((status.leader, status.role), (None, Role::Follower), "who has stopped leads nobody");
    assert_eq!(raft.ready().await.unwrap_err().code(), "stopped");

    let error = raft.events(0).await.map(|_| ()).unwrap_err();
    assert_eq!(error, SubscribeError::Stopped { cause: "it was shut down".into() });
    let error = raft.take_snapshot().await.unwrap_err();
    assert_eq!(error, TakeSnapshotError::Stopped { cause: "it was shut down".into() });
    let ends = async {
        while events.next().await.is_some() {}
        let mut last = None;
        while let Some(status) = statuses.next().await {
            last = Some(status);
        }
        last.expect("a status").stopped
    };
    assert_eq!(tokio::time::timeout(TIMEOUT, ends).await.expect("streams end").as_deref(), Some("it was shut down"));
}

#[actix::test]
async fn a_node_says_whether_it_is_ready_and_shows_how_it_is() {
    let (network, disks) = (MemoryNetwork::new(), Default::default());
    let waiting = start(&network, 9, &MemoryDisk::new(), Bootstrap::Wait).await;
    let not_ready = waiting.ready().await.unwrap_err();
    assert_eq!((not_ready.reason(), not_ready.code()), (Some(Reason::NotAMember), "not_a_member"));

    let [leader, follower, _other] = three(&network, &disks).await;
    let applied = leader.propose(1).await.unwrap().index;
    assert!(follower.ready().await.unwrap() >= applied);
    assert_eq!((leader.is_leader(), follower.is_leader()), (true, false));
    assert_eq!([leader.id(), follower.id()], [leader.status().id, follower.status().id]);

    let mut statuses = follower.watch_status();
    let first = statuses.next().await.unwrap();
    assert_eq!(first.id, follower.id(), "the present comes first");
    let applied = leader.propose(1).await.unwrap().index;
    let seen = async {
        loop {
            let status = statuses.next().await.expect("it runs");
            if status.applied_index >= applied {
                return;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, seen).await.expect("what changes is shown");

    // Alone it cannot do anything for anybody, and knows why.
    network.isolate(follower.id());
    let alone = async {
        loop {
            match follower.ready().await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(not_ready) => return not_ready,
            }
        }
    };
    let not_ready = tokio::time::timeout(TIMEOUT, alone).await.expect("it finds out");
    assert_eq!(not_ready.http_status(), 503);
    assert!(!not_ready.to_string().is_empty());
}

#[actix::test]
async fn a_member_that_was_removed_leaves_the_peers() {
    let (network, disks) = (MemoryNetwork::new(), Default::default());
    let [leader, follower, other] = three(&network, &disks).await;
    let gone = other.id();
    follower.change_within(ConfChange::Remove(gone), TIMEOUT).await.unwrap();
    for node in [&leader, &follower] {
        let status = node.wait(TIMEOUT, |s| !s.peers.contains_key(&gone)).await.unwrap();
        assert_eq!(status.peers.len(), 1, "{:?}", status.peers);
    }
}

#[actix::test]
async fn a_disk_in_memory_outlives_its_node() {
    let disk = MemoryDisk::new();
    for round in 1..=3 {
        let builder = RaftSystem::<Sum>::builder(1).network(Network::Memory(MemoryNetwork::new()));
        let builder = builder.storage(Storage::MemoryDisk(disk.clone())).bootstrap(founders(1)).configure(quick);
        let raft = builder.start().await.unwrap();
        raft.wait_for_leader(TIMEOUT).await.unwrap();
        assert_eq!(raft.propose(1).await.unwrap().response, round);
        raft.take_snapshot().await.unwrap();
        raft.shutdown().await;
    }
}
