//! Calendar clocks: nodes learn each other's offsets, and one with a wrong year does not set the time for all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use crate::support::{MemoryDisk, MemoryNetwork, TIMEOUT, founders, on, quick};
use actorum::{Network, Reason, Severity, prelude::*};
use actorum_actors::clock::{Clock, SystemClock};
use serde::{Deserialize, Serialize};

const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;

/// The machine's clocks with a calendar that can be set.
#[derive(Clone)]
struct Settable(Arc<dyn Clock>, Arc<AtomicI64>);

impl Settable {
    fn new() -> Settable {
        Settable(SystemClock::shared(), Arc::default())
    }

    fn set(&self, ahead_ms: i64) {
        self.1.store(ahead_ms, SeqCst);
    }
}

impl Clock for Settable {
    fn now(&self) -> Duration {
        self.0.now()
    }

    fn wall(&self) -> SystemTime {
        let (wall, ahead) = (self.0.wall(), self.1.load(SeqCst));
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { wall - by } else { wall + by }
    }
}

/// Answers with the time at which a command is applied, in milliseconds since 1970.
#[derive(Default, Serialize, Deserialize)]
struct Times(u64);

impl StateMachine for Times {
    type Command = ();
    type Response = u64;
    fn apply(&mut self, ctx: &ApplyContext, (): &()) -> u64 {
        self.0 = ctx.time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
        self.0
    }
    serde_snapshot!();
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Three nodes with calendars of their own, the leader first, once all know the median.
async fn three() -> ([Raft<Times>; 3], [Settable; 3]) {
    let (network, disks): (_, [MemoryDisk; 3]) = (MemoryNetwork::new(), Default::default());
    let clocks = [(); 3].map(|()| Settable::new());
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let at = id as usize - 1;
        let builder = RaftSystem::builder(id).network(Network::Memory(network.clone())).storage(on(&disks[at], id));
        let builder = builder.bootstrap(founders(3)).configure(quick).clock(Arc::new(clocks[at].clone()));
        nodes.push(builder.start().await.unwrap());
    }
    let leader = nodes[0].wait_for_leader(TIMEOUT).await.unwrap().leader.unwrap();
    for node in &nodes {
        node.wait(TIMEOUT, |s| s.leader == Some(leader) && s.clock.offset_ms.is_some()).await.unwrap();
    }
    let (mut nodes, mut clocks) = (nodes, clocks);
    nodes.rotate_left(leader as usize - 1);
    clocks.rotate_left(leader as usize - 1);
    (nodes.try_into().ok().unwrap(), clocks)
}

/// Whether the status warns of clocks, and of this node's by name.
fn warns_of(status: &Status, id: u64) -> bool {
    let mut conditions = status.conditions().into_iter();
    conditions.any(|c| {
        let named = c.message.contains(&format!("node {id} is"));
        (c.reason, c.severity) == (Reason::ClockSkew, Severity::Warning) && named
    })
}

#[actix::test]
async fn a_leader_with_a_wrong_year_does_not_set_the_time() {
    let ([leader, follower, other], [clock, ..]) = three().await;
    let before = leader.propose(()).await.unwrap().response;
    assert!(before.abs_diff(now_ms()) < 60_000, "{before}");

    clock.set(YEAR_MS);
    let held = leader.propose_within((), TIMEOUT).await.unwrap().response;
    assert!(held < now_ms() + 60_000, "the time was set a year ahead: {held}");
    let id = leader.status().id;
    for node in [&leader, &follower, &other] {
        let status = node.wait(TIMEOUT, |s| warns_of(s, id)).await.unwrap();
        assert_eq!(status.unready(), None, "it is a warning");
        assert!(status.peers.values().all(|peer| peer.clock_offset_ms.is_some()));
    }
    assert!(leader.status().clock.offset_ms.unwrap() > YEAR_MS / 2);

    // Set right again, everything is as before, and the time has gone on.
    clock.set(0);
    for node in [&leader, &follower, &other] {
        node.wait(TIMEOUT, |s| !warns_of(s, id)).await.unwrap();
    }
    let after = leader.propose(()).await.unwrap().response;
    assert!(after >= held && after.abs_diff(now_ms()) < 60_000, "{after}");
}

#[actix::test]
async fn a_follower_with_a_wrong_year_moves_nothing() {
    let ([leader, follower, other], [_, clock, _]) = three().await;
    let id = follower.status().id;
    clock.set(-YEAR_MS);
    for node in [&leader, &follower, &other] {
        node.wait(TIMEOUT, |s| warns_of(s, id)).await.unwrap();
    }
    let time = follower.propose_within((), TIMEOUT).await.unwrap().response;
    assert!(time.abs_diff(now_ms()) < 60_000, "{time}");
}

#[actix::test]
async fn alone_a_node_is_the_majority_whose_clocks_it_knows() {
    let raft = RaftSystem::<Times>::builder(1).network(Network::Memory(MemoryNetwork::new()));
    let disk = MemoryDisk::new();
    let raft = raft.storage(on(&disk, 1)).bootstrap(founders(1)).configure(quick).start().await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    assert_eq!(raft.status().clock.offset_ms, Some(0));
    assert_eq!(raft.status().conditions(), []);
}
