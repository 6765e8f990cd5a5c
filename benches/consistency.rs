//! What it costs to find out that nodes differ: the running hash over what is applied, and the one over responses.
//!
//! ```text
//! cargo bench --bench consistency             both alone, then three nodes with and without the hash of responses, 3 x 3 s
//! cargo bench --bench consistency -- 10       10 s each
//! ```
//!
//! The hash over what is applied cannot be turned off: its cost per entry stands beside the time that a proposal takes
//! in the whole system. Deliberately absent: a pass mark.

mod support;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use actorum::{ResponseCheck, prelude::*};
use actorum_core::{
    consistency::hash::{Hasher, begin, begin_responses},
    wire::{Entry, EntryKind},
};
use serde::{Deserialize, Serialize};

use support::{Founders, closed_loop, leader};

/// Commands outstanding, as in the middle row of the bench `cluster` and its last.
const OUTSTANDING: [usize; 2] = [64, 256];
const ROUNDS: usize = 3;

#[derive(Default, Serialize, Deserialize)]
struct Last {
    #[serde(with = "serde_bytes")]
    value: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Put {
    #[serde(with = "serde_bytes")]
    value: Vec<u8>,
}

impl StateMachine for Last {
    type Command = Put;
    type Response = u64;

    fn apply(&mut self, ctx: &ApplyContext, Put { value }: &Put) -> u64 {
        self.value.clone_from(value);
        ctx.index
    }

    serde_snapshot!();
}

/// Nanoseconds that one call takes, of many.
fn nanos(calls: u64, mut call: impl FnMut(u64)) -> f64 {
    let begun = Instant::now();
    (0..calls).for_each(&mut call);
    begun.elapsed().as_nanos() as f64 / calls as f64
}

fn alone() {
    println!("one thread, alone");
    for bytes in [16, 128, 4 << 10, 64 << 10] {
        let (mut hasher, mut hash) = (Hasher::default(), begin(1));
        let data = vec![7; bytes].into();
        let mut entry = Entry { kind: EntryKind::Normal, term: 1, index: 1, data, context: Default::default() };
        let calls = (64 << 20) / (bytes as u64 + 64);
        let nanos = nanos(calls, |n| {
            entry.index = n + 2;
            hasher.entry(&mut hash, &entry, 0);
        });
        black_box(hash);
        println!("  the hash over what is applied, an entry of {bytes:>6} bytes  {nanos:>9.0} ns");
    }
    let (mut hasher, mut hash) = (Hasher::default(), begin_responses(1, 0));
    let nanos = nanos(500_000, |n| hasher.answer(&mut hash, n, &n).expect("a number can be encoded"));
    black_box(hash);
    println!("  the hash over responses, a number                      {nanos:>9.0} ns");
}

/// Proposals a second, and the median of their latency in milliseconds.
async fn whole(check: ResponseCheck, outstanding: usize, time: Duration) -> (f64, f64) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let nodes: Vec<Raft<Last>> = Founders::new(3).start_all(dir.path(), |config| config.response_check = check).await;
    let leader = leader(&nodes).await;
    let puts = |time: Duration| {
        let until = Instant::now() + time;
        move || (Instant::now() < until).then(|| Put { value: vec![7; 128] })
    };
    closed_loop(leader, outstanding, puts(Duration::from_secs(1))).await;
    let figures = closed_loop(leader, outstanding, puts(time)).await;
    let found = (figures.rate(), figures.ms(0.5));
    for node in nodes {
        node.shutdown().await;
    }
    found
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo passes --bench; what remains is our own number.
    let seconds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(3);
    let time = Duration::from_secs(seconds);
    alone();
    println!(
        "three nodes, one process, loopback QUIC, durable sled, 128-byte commands; {ROUNDS} rounds of {seconds} s \
         each, in turn"
    );
    for outstanding in OUTSTANDING {
        let mut ratios = Vec::new();
        for _ in 0..ROUNDS {
            let (without, _) = whole(ResponseCheck::Off, outstanding, time).await;
            let (with, p50) = whole(ResponseCheck::Report, outstanding, time).await;
            println!(
                "  {outstanding:>4} outstanding: {without:>8.0}/s without the hash of responses, {with:>8.0}/s with it \
                 (p50 {p50:.2} ms)"
            );
            ratios.push(with / without);
        }
        ratios.sort_by(f64::total_cmp);
        println!("  {outstanding:>4} outstanding: with / without, median of {ROUNDS}: {:.2}", ratios[ROUNDS / 2]);
    }
}
