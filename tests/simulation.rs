//! The simulator as it stands: fresh seeds and every seed that ever failed, all faults, all invariants.
//!
//! `SEED=n` replays one and tells its story (with `--nocapture`). `SEEDS=n` runs so many fresh ones, `MINUTES=n` as
//! many as fit in that time; either says what was done in them. Without any of them a few run, for this build is
//! usually a slow one.

mod figures;
mod harsh;

use std::{
    collections::BTreeMap,
    env,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use actorum_testkit::{Counts, Faults, Kv, Simulation};
use figures::figure;
use harsh::{SPAN, number};

/// Every seed that ever failed, and what it found.
const KEPT: &[(u64, &str)] = &[
    (
        941_532_843_533,
        "two leaders took turns: each became low on space for the log that it held for followers that were being sent \
         its snapshot, and transferred leadership, so that no snapshot ever arrived",
    ),
    (
        888_685_063_884,
        "a new leader judged its learners by the commit index that it had heard as a follower, and promoted one that \
         lacked committed entries",
    ),
    (
        94_645_634_823,
        "nothing wrong with a node: the directory that it was given in place of its own was its own, swapped twice",
    ),
    (
        9_101_593,
        "nothing wrong with a node: one that had started again after it was found out was asked before its snapshot \
         had arrived",
    ),
    (
        2_013_002,
        "nothing wrong with a node: the simulator blamed a record for what had been cut off while space was low",
    ),
];

#[test]
fn fresh_seeds() {
    if let Some(seed) = number("SEED") {
        let report = harsh::simulation(seed).tell().run(SPAN);
        report.story.iter().for_each(|line| println!("{line}"));
        return report.assert_ok();
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let first = number("FROM").unwrap_or(clock >> 20);
    // With a time and no number the time alone decides.
    let within = number("MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    let most = match within {
        Some(_) => number("SEEDS").unwrap_or(u64::MAX),
        None => figure("SEEDS", 4, 8),
    };
    println!("fresh seeds from {first} on");
    let (next, begun) = (AtomicU64::new(first), Instant::now());
    let (total, broken) = (Mutex::new(Counts::default()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let late = within.is_some_and(|within| begun.elapsed() >= within);
                    // Taken one by one and each taken one runs, so the seeds that ran have no gap.
                    let take = |seed: u64| (!late && seed - first < most).then(|| seed + 1);
                    let Ok(seed) = next.fetch_update(Relaxed, Relaxed, take) else { return };
                    let report = harsh::run(seed);
                    total.lock().unwrap().add(&report.counts);
                    if !report.is_ok() {
                        println!("{report}");
                        broken.lock().unwrap().push((seed, report.violation.unwrap().to_string()));
                    }
                }
            });
        }
    });
    let (total, broken, seconds) = (total.into_inner().unwrap(), broken.into_inner().unwrap(), begun.elapsed());
    let count = next.into_inner() - first;
    println!("to repeat: FROM={first} SEEDS={count}");
    println!(
        "{count} seeds of {} virtual seconds in {:.1} s, {} broken",
        SPAN.as_secs(),
        seconds.as_secs_f64(),
        broken.len()
    );
    println!("{total}");
    assert!(broken.is_empty(), "replay with SEED=n --nocapture: {broken:#?}");
    // A simulation in which nothing happens proves nothing. A few seeds may all be small clusters.
    if count < 100 {
        return;
    }
    let average = |what: u64, least: u64, name: &str| {
        assert!(what >= least * count, "{} {name} a seed on average, fewer than {least}", what as f64 / count as f64);
    };
    average(total.operations, 300, "operations");
    average(total.elections.saturating_sub(count), 3, "changes of leader");
    average(total.disk_faults(), 5, "faults of disks");
    average(total.network_faults(), 10, "faults of the network");
    // What is rarer happens once in so many seeds, as thousands of them have shown. These runs are few, so a fifth of
    // that is enough, and nothing is said of what they can be expected to meet less than fifteen times.
    let once_in = |seeds: u64, kinds: &BTreeMap<&'static str, u64>, kind: &str| {
        let happened = kinds.get(kind).copied().unwrap_or(0);
        let expected = count / seeds;
        assert!(expected < 15 || happened >= expected / 5, "{kind}: {happened} in {count} seeds, expected {expected}");
    };
    for (seeds, kind) in [
        (1, "built"),
        (1, "recorded"),
        (1, "installed"),
        (1, "fetched"),
        (13, "resumed"),
        (1, "started from one"),
        (6, "started from the older one"),
        (2, "joined behind the log's beginning"),
    ] {
        once_in(seeds, &total.snapshots, kind);
    }
    for (seeds, kind) in [
        (2, "power cut at a file"),
        (2, "error of a file"),
        (2, "rotten snapshot"),
        (5, "filled volume"),
        (6, "twin with an older opening"),
        (60, "twin of a running node"),
        (6, "twin that was found out"),
    ] {
        once_in(seeds, &total.disk, kind);
    }
    for (seeds, kind) in [
        (5, "message of half a frame"),
        (2, "low on space"),
        (1, "snapshot while room was short"),
        (30, "reserve lent"),
        (20, "write without room"),
        (24, "stopped without room"),
    ] {
        once_in(seeds, &total.room, kind);
    }
    for (seeds, kind) in [
        (1, "put back"),
        (2, "put back and refused at its start"),
        (3, "put back and went on"),
        (120, "put back and stopped later"),
        (18, "joined with too old a program"),
        (2, "activation asked for"),
        (5, "activation done"),
    ] {
        once_in(seeds, &total.churn, kind);
    }
    for (seeds, kind) in [(5, "failing snapshot of the state machine"), (40, "failing restore of the state machine")] {
        once_in(seeds, &total.process, kind);
    }
}

/// A founder dies at some step of the forming, again and again: the others go on without it once one of them has
/// formed.
#[test]
fn founders_die_while_they_form() {
    let only = number("SEED");
    let mut total = Counts::default();
    let seeds = figure("FOUNDERS", 40, 120);
    for seed in only.map_or(1..=seeds, |seed| seed..=seed) {
        let mut faults = Faults::none();
        // One fault, which comes late if at all: what is looked at is over by then.
        (faults.kill, faults.every) = (1, Duration::from_secs(60));
        let report = Simulation::<Kv>::recorded(seed).nodes(3).faults(faults).run(Duration::from_millis(300));
        total.add(&report.counts);
        assert!(report.is_ok(), "SEED={seed}: {report}");
    }
    let deaths = total.process.get("death while some have formed").copied().unwrap_or(0);
    println!("{deaths} founders died while some of the others had formed");
    assert!(only.is_some() || deaths >= (seeds / 40).max(1), "only {deaths} died while some of the others had formed");
}

/// The bound of frames is one: what is larger does not pass, and breaks the run.
#[test]
fn a_message_that_fits_no_frame_is_found() {
    let run =
        |messages, questions| Simulation::<Kv>::recorded(1).frames(messages, questions).run(Duration::from_secs(2));
    run(2048, 32 << 10).assert_ok();
    for report in [run(400, 32 << 10), run(2048, 100)] {
        let broken = report.violation.map(|violation| violation.invariant);
        assert_eq!(broken, Some("no message exceeds its bound"));
    }
}

/// The end of a disk is one: on a volume that does not hold what a node needs it stops, and says why.
#[test]
fn a_volume_that_is_too_small_is_found() {
    let run = |bytes| {
        let simulation = Simulation::<Kv>::recorded(1).volume(bytes).configure(|config| {
            (config.low_space_bytes, config.reserve_bytes) = (0, 0);
            config.snapshot_entries = 0;
        });
        simulation.run(Duration::from_secs(10)).violation
    };
    assert_eq!(run(1 << 20), None);
    let broken = run(4000).expect("a log that is never cut does not fit");
    assert_eq!(broken.invariant, "a stopped node says why");
    assert!(broken.detail.contains("the simulated volume is full"), "{broken}");
}

#[test]
fn seeds_that_failed_before() {
    for (seed, found) in KEPT {
        let report = harsh::run(*seed);
        assert!(report.is_ok(), "what it found before: {found}\n{report}");
    }
}

/// In this process twice, and in another: the same seed, the same trace.
#[test]
fn a_seed_is_a_run() {
    if let Some(seed) = number("TRACE_OF") {
        return println!("trace {:016x}", harsh::run(seed).trace);
    }
    for seed in 11..11 + figure("TRACES", 1, 3) {
        let (first, second) = (harsh::run(seed), harsh::simulation(seed).tell().run(SPAN));
        assert_eq!(first.trace, second.trace, "seed {seed}, in one process");
        let itself = env::current_exe().unwrap();
        let child = Command::new(itself)
            .args(["--exact", "a_seed_is_a_run", "--nocapture"])
            .env("TRACE_OF", seed.to_string())
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&child.stdout).into_owned();
        let trace = format!("trace {:016x}", first.trace);
        assert!(printed.contains(&trace), "seed {seed} has {trace} here, and in another process: {printed}");
    }
}
