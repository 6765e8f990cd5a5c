//! What the tests of whole nodes share: a state machine, and the start of a few nodes in one process.
#![allow(dead_code, missing_docs)] // each test uses a part of it

use std::time::Duration;

use actorum::{Builder, Network, NodeId, StartError, prelude::*};
use actorum_machine::ids::{Address, Incarnation};
use serde::{Deserialize, Serialize};

pub(crate) use actorum_store::log::memory::MemoryDisk;
pub(crate) use actorum_transport::memory::MemoryNetwork;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// Adds up what is proposed, and remembers in which order. 666 panics.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Sum {
    pub total: u64,
    pub seen: Vec<u64>,
}

impl StateMachine for Sum {
    type Command = u64;
    type Response = u64;
    fn apply(&mut self, _: &ApplyContext, number: &u64) -> u64 {
        assert_ne!(*number, 666, "the number of the beast");
        self.total += number;
        self.seen.push(*number);
        self.total
    }
    serde_snapshot!();
}

/// The storage of a node on a disk that outlives it.
pub(crate) fn on(disk: &MemoryDisk, id: NodeId) -> Storage {
    Storage::Custom(Box::new(disk.open(id, Incarnation(id * 7)).unwrap()))
}

/// Whether a node holds this disk open.
pub(crate) fn is_open(disk: &MemoryDisk, id: NodeId) -> bool {
    disk.open(id, Incarnation(0)).is_err()
}

/// The founders 1 to `count`.
pub(crate) fn founders(count: NodeId) -> Bootstrap {
    Bootstrap::Form((1..=count).map(|id| (id, Address(format!("n{id}")))).collect())
}

/// Starts a node on an address that one before it may have had. On a busy machine a shutdown ends before the last
/// connections of its socket are closed: then it is tried again for a while.
pub(crate) async fn start_again<S: StateMachine>(builder: impl Fn() -> Builder<S>) -> Raft<S> {
    let begun = std::time::Instant::now();
    loop {
        match builder().start().await {
            Err(StartError::Listen { .. }) if begun.elapsed() < TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            started => return started.unwrap(),
        }
    }
}

pub(crate) fn quick(config: &mut Config) {
    config.heartbeat_ms = 20;
    config.election_ms = 200;
}

pub(crate) async fn start(network: &MemoryNetwork, id: NodeId, disk: &MemoryDisk, bootstrap: Bootstrap) -> Raft<Sum> {
    let builder =
        RaftSystem::builder(id).network(Network::Memory(network.clone())).storage(on(disk, id)).bootstrap(bootstrap);
    builder.configure(quick).start().await.unwrap()
}

/// Three founders with a leader; the leader first. What they tell each other at first is in the log: the next entries
/// are a test's own.
pub(crate) async fn three(network: &MemoryNetwork, disks: &[MemoryDisk; 3]) -> [Raft<Sum>; 3] {
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(start(network, id, &disks[id as usize - 1], founders(3)).await);
    }
    let leader = nodes[0].wait_for_leader(TIMEOUT).await.unwrap().leader.unwrap();
    for node in &nodes {
        let is_settled = |s: &Status| s.leader == Some(leader) && s.versions.not_in_use.is_empty();
        node.wait(TIMEOUT, is_settled).await.unwrap();
    }
    nodes.rotate_left(leader as usize - 1);
    nodes.try_into().ok().unwrap()
}
