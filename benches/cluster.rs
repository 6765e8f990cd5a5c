//! Three nodes in one process, over loopback QUIC and durable sled: how many proposals, how fast, how many to a sync.
//!
//! ```text
//! cargo bench --bench cluster                 1, 64 and 256 outstanding, 5 s each
//! cargo bench --bench cluster -- 256 10       256 outstanding, 10 s
//! ACTORUM_PLACEMENT=spread cargo bench ...    with the settings of the library
//! ```
//!
//! A closed loop: so many tasks on the leader, each proposing 128 bytes, awaiting the answer, proposing again. Latency is
//! what such a task saw. Deliberately absent: a pass mark. Machines differ; compare runs on one machine.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use actorum::{Address, NodeId, prelude::*};
use serde::{Deserialize, Serialize};

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

fn free_port() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port on loopback")
}

async fn cluster(dir: &std::path::Path) -> Vec<Raft<Last>> {
    let addresses: BTreeMap<NodeId, SocketAddr> = (1..=3).map(|id| (id, free_port())).collect();
    let founders: BTreeMap<NodeId, Address> = addresses.iter().map(|(id, at)| (*id, (*at).into())).collect();
    let mut nodes = Vec::new();
    for (id, at) in addresses {
        let node = RaftSystem::<Last>::builder(id)
            .listen(at)
            .storage(Storage::Sled(dir.join(id.to_string())))
            .tls(Tls::DevSelfSigned(dir.join("ca")))
            .bootstrap(Bootstrap::Form(founders.clone()))
            .from_env("ACTORUM")
            .expect("the settings in ACTORUM_* can be used")
            .start()
            .await
            .expect("a node starts");
        nodes.push(node);
    }
    nodes
}

struct Figures {
    done: usize,
    took: Duration,
    latencies: Vec<Duration>,
}

async fn closed_loop(leader: &Raft<Last>, outstanding: usize, time: Duration) -> Figures {
    let begin = Instant::now();
    let tasks: Vec<_> = (0..outstanding)
        .map(|_| {
            let raft = leader.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while begin.elapsed() < time {
                    let sent = Instant::now();
                    raft.propose(Put(vec![7; 128])).await.expect("the cluster is healthy");
                    latencies.push(sent.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("a client does not panic"));
    }
    let took = begin.elapsed();
    latencies.sort_unstable();
    Figures { done: latencies.len(), took, latencies }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo passes --bench; what remains are our own numbers.
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let outstanding = numbers.first().map_or(vec![1, 64, 256], |n| vec![*n as usize]);
    let time = Duration::from_secs(numbers.get(1).copied().unwrap_or(5));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let nodes = cluster(dir.path()).await;
    let wait = Duration::from_secs(30);
    let id = nodes[0].wait_for_leader(wait).await.expect("a leader").leader.expect("the wait was for one");
    let leader = &nodes[id as usize - 1];
    leader.wait(wait, |status| status.role == Role::Leader).await.expect("it knows that it leads");
    closed_loop(leader, 64, Duration::from_secs(1)).await;

    println!("three nodes, one process, loopback QUIC, durable sled, 128-byte commands, {} s each", time.as_secs());
    println!(
        "{:>11}  {:>11}  {:>8}  {:>8}  {:>12}  {:>11}  {:>8}",
        "outstanding", "proposals/s", "p50", "p99", "entries/sync", "batch write", "its sync"
    );
    for n in outstanding {
        let before = leader.status().totals;
        let Figures { done, took, latencies } = closed_loop(leader, n, time).await;
        let after = leader.status().totals;
        let syncs = (after.syncs - before.syncs).max(1);
        let per_sync = (after.entries_persisted - before.entries_persisted) as f64 / syncs as f64;
        let ms = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
        let rate = done as f64 / took.as_secs_f64();
        let per_batch = |us: u64| us as f64 / syncs as f64 / 1e3;
        let (append, sync) = (per_batch(after.append_us - before.append_us), per_batch(after.sync_us - before.sync_us));
        println!(
            "{n:>11}  {rate:>11.0}  {:>5.2} ms  {:>5.2} ms  {per_sync:>12.1}  {append:>8.2} ms  {sync:>5.2} ms",
            ms(0.5),
            ms(0.99)
        );
    }
    for node in nodes {
        node.shutdown().await;
    }
}
