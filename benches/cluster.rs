//! Three nodes in one process, over loopback QUIC and durable sled: how many proposals, how fast, how many to a sync.
//!
//! ```text
//! cargo bench --bench cluster                 1, 64 and 256 outstanding, 5 s each
//! cargo bench --bench cluster -- 256 10       256 outstanding, 10 s
//! ACTORUM_PLACEMENT=spread cargo bench ...    with the settings of the library
//! ```
//!
//! A closed loop: so many tasks on the leader, each proposing 128 bytes, awaiting the answer, proposing again. Latency
//! is what such a task saw. Deliberately absent: a pass mark. Machines differ; compare runs on one machine.

mod support;

use std::time::{Duration, Instant};

use actorum::prelude::*;
use serde::{Deserialize, Serialize};
use support::{Founders, closed_loop, leader};

/// Keeps the last value only: the bench measures the way of a proposal, not a map.
#[derive(Default, Serialize, Deserialize)]
struct Last {
    #[serde(with = "serde_bytes")]
    value: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Put(#[serde(with = "serde_bytes")] Vec<u8>);

impl StateMachine for Last {
    type Command = Put;
    type Response = u64;

    fn apply(&mut self, ctx: &ApplyContext, Put(value): &Put) -> u64 {
        self.value.clone_from(value);
        ctx.index
    }

    serde_snapshot!();
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo passes --bench; what remains are our own numbers.
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let outstanding = numbers.first().map_or(vec![1, 64, 256], |n| vec![*n as usize]);
    let time = Duration::from_secs(numbers.get(1).copied().unwrap_or(5));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let nodes: Vec<Raft<Last>> = Founders::new(3).start_all(dir.path(), |_| {}).await;
    let leader = leader(&nodes).await;
    let puts = |time: Duration| {
        let until = Instant::now() + time;
        move || (Instant::now() < until).then(|| Put(vec![7; 128]))
    };
    closed_loop(leader, 64, puts(Duration::from_secs(1))).await;

    println!("three nodes, one process, loopback QUIC, durable sled, 128-byte commands, {} s each", time.as_secs());
    println!(
        "{:>11}  {:>11}  {:>8}  {:>8}  {:>12}  {:>11}  {:>8}",
        "outstanding", "proposals/s", "p50", "p99", "entries/sync", "batch write", "its sync"
    );
    for n in outstanding {
        let before = leader.status().totals;
        let figures = closed_loop(leader, n, puts(time)).await;
        let after = leader.status().totals;
        let syncs = (after.syncs - before.syncs).max(1);
        let per_sync = (after.entries_persisted - before.entries_persisted) as f64 / syncs as f64;
        let per_batch = |us: u64| us as f64 / syncs as f64 / 1e3;
        let (append, sync) = (per_batch(after.append_us - before.append_us), per_batch(after.sync_us - before.sync_us));
        println!(
            "{n:>11}  {:>11.0}  {:>5.2} ms  {:>5.2} ms  {per_sync:>12.1}  {append:>8.2} ms  {sync:>5.2} ms",
            figures.rate(),
            figures.ms(0.5),
            figures.ms(0.99)
        );
    }
    for node in nodes {
        node.shutdown().await;
    }
}
