//! The simulator as it stands: many seeds, every fault, all invariants.
//!
//! `SEED=n` replays one and tells its story (with `--nocapture`); `SEEDS=n` runs so many fresh ones.

use std::time::Duration;

use actorum::testkit::{Counts, Faults, Kv, Simulation};

const SPAN: Duration = Duration::from_secs(25);

fn harsh(seed: u64) -> Simulation<Kv> {
    Simulation::recorded(seed).nodes(3).clients(4).faults(Faults::harsh())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn fresh_seeds() {
    if let Some(seed) = number("SEED") {
        let report = harsh(seed).tell().run(SPAN);
        report.story.iter().for_each(|line| println!("{line}"));
        return report.assert_ok();
    }
    let first = number("FROM").unwrap_or(1);
    let count = number("SEEDS").unwrap_or(20);
    let mut total = Counts::default();
    let begun = std::time::Instant::now();
    let mut broken = 0;
    for seed in first..first + count {
        let report = harsh(seed).run(SPAN);
        if !report.is_ok() {
            broken += 1;
            let all = format!("{report}");
            println!("{}", all.lines().next().unwrap());
        }
        total.add(&report.counts);
    }
    println!("{count} seeds in {:?}, {broken} broken\n{total}", begun.elapsed());
}
