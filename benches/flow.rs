//! What a follower that is far behind costs its leader, with real nodes over loopback QUIC and durable sled, all in
//! this process.
//!
//! ```text
//! cargo bench --bench flow                a follower 1,024 MiB behind catches up while the others go on writing
//! cargo bench --bench flow -- 256         the same with 256 MiB
//! cargo bench --bench flow -- 256 4       and with 4 clients of 64 KiB commands instead of 8
//! ```
//!
//! The lag is written, the follower started, and clients write on until it has caught up with what they wrote
//! meanwhile, too. Shown are the rate alone and beside it, the time and rate of the catching up, and the memory of the
//! process (all three nodes) and of what the leader has on its way to the follower. Where the files go is where
//! `TMPDIR` says; they take four times the lag. Deliberately absent: a pass mark.

mod support;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actorum::{Config, prelude::*};
use serde::{Deserialize, Serialize};
use support::{Figures, Founders, TIMEOUT, closed_loop, leader};

const COMMAND: usize = 64 << 10;
const MIB: f64 = 1_048_576.0;

/// Counts what it is given, so that only the log is large.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Count(u64);

#[derive(Serialize, Deserialize)]
struct Blob(#[serde(with = "serde_bytes")] Vec<u8>);

impl StateMachine for Count {
    type Command = Blob;
    type Response = ();

    fn apply(&mut self, _: &ApplyContext, Blob(bytes): &Blob) {
        self.0 += bytes.len() as u64;
    }

    serde_snapshot!(clone);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo adds --bench.
    let args: Vec<u64> =
        std::env::args().skip(1).filter(|arg| arg != "--bench").map(|arg| arg.parse().expect("a number")).collect();
    catch_up(args.first().copied().unwrap_or(1024), args.get(1).copied().unwrap_or(8) as usize).await;
}

async fn catch_up(mebibytes: u64, clients: usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let by_log = |config: &mut Config| {
        // No snapshot takes the log's place.
        (config.snapshot_entries, config.snapshot_bytes) = (0, 0);
    };
    let founders = Founders::new(3);
    let nodes: Vec<Raft<Count>> = founders.start_all(dir.path(), by_log).await;
    let leads = leader(&nodes).await;
    let away = 1 + leads.status().id % 3;
    leads.propose(Blob(vec![7; COMMAND])).await.expect("a command");
    nodes[away as usize - 1].wait_applied(leads.status().applied_index, TIMEOUT).await.expect("it follows");
    nodes[away as usize - 1].shutdown().await;

    let count = Arc::new(AtomicU64::new(mebibytes * (1 << 20) / COMMAND as u64));
    let lag = move || {
        count.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok().then(|| Blob(vec![7; COMMAND]))
    };
    let alone = closed_loop(leads, clients, lag).await;
    println!(
        "three nodes, one away, {clients} clients with commands of 64 KiB     {:>9}  {:>9}  {:>9}",
        "MiB/s", "p50", "p99"
    );
    line(&format!("{mebibytes} MiB are written without it"), &alone);
    let memory = resident();

    let (go_on, begun) = (Arc::new(AtomicBool::new(true)), Instant::now());
    let behind = leads.status().last_index;
    let back: Raft<Count> = founders.start(away, dir.path(), by_log).await;
    let (stop, peak) = (go_on.clone(), Arc::new((AtomicU64::new(0), AtomicU64::new(0))));
    let (seen, watched, shown) = (peak.clone(), leads.clone(), back.clone());
    let watch = tokio::spawn(async move {
        let mut old = None;
        loop {
            let (there, here) = (watched.status(), shown.status());
            seen.0.fetch_max(resident(), Relaxed);
            let inflight = there.peers.get(&away).map_or(0, |peer| peer.inflight_bytes);
            seen.1.fetch_max(inflight as u64, Relaxed);
            if here.persisted_index >= behind && old.is_none() {
                old = Some(begun.elapsed());
            }
            // Within what is on its way at any time.
            if here.applied_index + 2 * clients as u64 >= there.applied_index {
                stop.store(false, Relaxed);
                return (old.unwrap_or_else(|| begun.elapsed()), begun.elapsed());
            }
            assert!(begun.elapsed() < TIMEOUT, "it never catches up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let more = move || go_on.load(Relaxed).then(|| Blob(vec![7; COMMAND]));
    let beside = closed_loop(leads, clients, more).await;
    let (old, all) = watch.await.expect("it watches");
    line("beside its catching up", &beside);
    println!(
        "  what it had missed: {:.1} s ({:.0} MiB/s); up to date with the load: {:.1} s",
        old.as_secs_f64(),
        mebibytes as f64 / old.as_secs_f64(),
        all.as_secs_f64()
    );
    println!(
        "  memory of the process: {:.0} MiB before, {:.0} MiB at most; on its way to it at most {:.1} MiB",
        memory as f64 / MIB,
        peak.0.load(Relaxed) as f64 / MIB,
        peak.1.load(Relaxed) as f64 / MIB
    );
    let totals = leads.status().totals;
    println!(
        "  messages dropped: {}; the largest frame: {:.2} MiB",
        totals.messages_dropped,
        totals.largest_frame_bytes as f64 / MIB
    );
    for node in nodes {
        node.shutdown().await;
    }
    back.shutdown().await;
}

fn line(what: &str, figures: &Figures) {
    let rate = figures.rate() * COMMAND as f64 / MIB;
    println!("  {what:<60}{rate:>9.1}  {:>6.2} ms  {:>6.2} ms", figures.ms(0.5), figures.ms(0.99));
}

/// Bytes that this process holds in memory; zero where nobody says.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) << 10
}
