//! Real nodes, real disks, a network and a machine room that go wrong on purpose; and clients that remember everything.
//!
//! Three to five `actorum serve` processes run in network namespaces joined by a switch (cli/tests/tools/switch.py)
//! that cuts, loses, delays, reorders, duplicates and corrupts, each direction of each link by itself; each node has an
//! ext4 of its own, whose power is cut; nodes are killed and paused. When it is over everything is healed, and
//!
//! - every node must answer, have applied the same commands, and hold what comes of them;
//! - every acknowledged write must be found at the index that was told, and no write twice;
//! - the history of the clients must be linearizable;
//! - no term may have had two leaders, no node may have ended by itself;
//! - every kind of fault must have happened, and met something.
//!
//! As long as one likes, as root, on Linux:
//!
//! ```text
//! MINUTES=60 SEED=7 cargo test --test binary nemesis::everything -- --nocapture
//! ```
//!
//! `NODES` sets their number. The plan of faults follows from the seed; when they meet whom depends on the machine. A
//! run that fails, and with `KEEP` set any, keeps its plan, its history, its logs and its data directories, and prints
//! where.

mod clients;
mod judge;
mod plan;
mod switch;
mod world;

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    io::Write as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{figures::figure, rng::Rng};
use actorum_testkit::history::Call;
use clients::{Book, Clients, Http, KEYS, Watchers, outcomes};
use plan::{Nemesis, Planned, Target};
use world::World;

/// How long nodes may take to be well again when all faults are over.
const RECOVERY: Duration = Duration::from_secs(60);

/// What a run is told.
struct Run {
    nodes: u64,
    length: Duration,
    plan: Vec<Planned>,
    sabotage: Sabotage,
}

/// What is broken on purpose, to see whether anybody notices.
#[derive(Clone, Copy, PartialEq)]
enum Sabotage {
    None,
    /// Clients read whatever a node holds, and believe that it is the latest.
    StaleReads,
    /// Disks forget what was synced.
    ForgetfulDisks,
}

/// How many clients work at a time.
const CLIENTS: u64 = 12;

/// What a run found, when nothing was wrong.
struct Report {
    text: String,
    operations: u64,
    fired: BTreeMap<&'static str, u64>,
    leaders: usize,
}

/// Whether to go on without: says so, or fails where it must run.
fn skipped(test: &str) -> bool {
    let Some(what) = world::missing() else { return false };
    assert!(env::var_os("ACTORUM_PRIVILEGED").is_none(), "{test} must run here and lacks {what}");
    // Past the capture of the test runner, which would keep the line of a passing test to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: it needs {what}");
    true
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: a whole number is needed")))
}

/// Everything that can go wrong goes wrong, for twenty seconds, for two minutes in `.ci/run`, or for `MINUTES`.
#[test]
fn everything_goes_wrong() {
    if skipped("everything_goes_wrong") {
        return;
    }
    let mut rng = Rng::new();
    let seconds = number("MINUTES").map_or_else(|| figure("NEMESIS_SECONDS", 20, 120), |minutes| 60 * minutes.max(1));
    let nodes = 3 + rng.below(3);
    let nodes = number("NODES").unwrap_or(nodes);
    assert!((3..=9).contains(&nodes), "NODES={nodes}: three to nine");
    let length = Duration::from_secs(seconds);
    let mut once = || {
        let run = Run { nodes, length, plan: plan::draw(&mut rng, nodes, length), sabotage: Sabotage::None };
        let report = go(&run, &mut rng).unwrap_or_else(|failure| panic!("{failure}"));
        println!("{}", report.text);
        report
    };
    let (mut report, mut runs) = (once(), 1);
    // A short run on a busy machine may have met nobody with some kind of fault: then another one follows.
    while seconds < 60 && runs < 4 && report.fired.values().any(|times| *times == 0) {
        let next = once();
        next.fired.iter().for_each(|(kind, times)| *report.fired.entry(kind).or_default() += times);
        let (operations, leaders) = (report.operations + next.operations, report.leaders + next.leaders);
        report = Report { fired: report.fired, operations, leaders, ..next };
        runs += 1;
    }
    // A plan has each kind of fault about as often as any other, so also a short one has all of them.
    let least = if seconds < 60 { 1 } else { 8 * seconds / 60 };
    for (kind, times) in &report.fired {
        assert!(*times >= least, "{kind} happened {times} times only:\n{}", report.text);
    }
    assert!(report.operations >= 1000 * seconds / 60, "only {} operations", report.operations);
    assert!(report.leaders as u64 >= (4 * seconds / 60).max(2), "only {} leaders", report.leaders);
}

/// A judge that cannot find anything proves nothing: where reads are stale, it says so.
#[test]
fn stale_reads_are_found() {
    if skipped("stale_reads_are_found") {
        return;
    }
    let (mut rng, length) = (Rng::new(), Duration::from_secs(10));
    let run = Run { nodes: 3, length, plan: plan::draw(&mut rng, 3, length), sabotage: Sabotage::StaleReads };
    let failure = go(&run, &mut rng).map(|report| report.text).expect_err("stale reads were not found");
    println!("{failure}");
    assert!(failure.contains("not linearizable"), "{failure}");
    assert!(!failure.contains("lost") && !failure.contains("twice"), "writes are not to blame: {failure}");
}

/// The same of writes: where every disk has forgotten what was acknowledged, both judges say so.
#[test]
fn forgotten_writes_are_found() {
    if skipped("forgotten_writes_are_found") {
        return;
    }
    let kill = |at| {
        let (at, lasts) = (Duration::from_secs(at), Duration::from_millis(100));
        Planned { at, lasts, kind: "kill", value: 0.0, target: Target::All }
    };
    let (length, plan) = (Duration::from_secs(8), vec![kill(3), kill(8)]);
    let run = Run { nodes: 3, length, plan, sabotage: Sabotage::ForgetfulDisks };
    let failure = go(&run, &mut Rng::new()).map(|report| report.text).expect_err("lost writes were not found");
    println!("{failure}");
    assert!(failure.contains("lost: ") || failure.contains("acknowledged twice"), "{failure}");
    assert!(failure.contains("not linearizable"), "{failure}");
}

/// Each fault of the network is seen at the other end of the link that it is on.
#[test]
fn the_switch_does_what_it_says() {
    if skipped("the_switch_does_what_it_says") {
        return;
    }
    switch::try_all(&mut World::new(2, Rng::new().below(1 << 32)));
}

/// One run. An error tells what was wrong; the evidence is kept, unless it was to be expected.
fn go(run: &Run, rng: &mut Rng) -> Result<Report, String> {
    let mut world = World::new(run.nodes, rng.below(1 << 32));
    world.forgetful_disks = run.sabotage == Sabotage::ForgetfulDisks;
    let planned: String = run.plan.iter().map(|planned| format!("{planned}\n")).collect();
    fs::write(world.dir.join("plan.txt"), planned).expect("a file");

    let book = Book::new(run.sabotage == Sabotage::StaleReads);
    let mut nemesis = Nemesis::new(run.plan.clone());
    let result = watch(run, rng, &mut world, &book, &mut nemesis);
    let failed = result.is_err() && run.sabotage == Sabotage::None;
    if failed || env::var_os("KEEP").is_some() {
        write_evidence(&world, &book, &nemesis, result.as_ref().err());
        world.keep_evidence();
    }
    result
}

fn watch(
    run: &Run,
    rng: &mut Rng,
    world: &mut World,
    book: &Arc<Book>,
    nemesis: &mut Nemesis,
) -> Result<Report, String> {
    let urls: Vec<(u64, String)> = world.ids().into_iter().map(|id| (id, world.url(id))).collect();
    world.ids().into_iter().for_each(|id| world.start(id));
    ready(world, &urls)?;
    println!("{} nodes, {} clients on {KEYS} keys, {:?}", run.nodes, CLIENTS, run.length);

    let watchers = Watchers::start(&urls);
    let clients = Clients::start(CLIENTS, rng, book, &urls);
    let (begun, mut said) = (Instant::now(), Duration::ZERO);
    while nemesis.step(world, begun.elapsed(), watchers.leader()) {
        if let Some(deserter) = world.deserter() {
            return Err(deserter);
        }
        if begun.elapsed() - said > Duration::from_secs(15) {
            said = begun.elapsed();
            let operations = book.pages().history.operations().len();
            let faults: u64 = nemesis.fired.values().sum();
            println!("{said:.0?}: {operations} operations, {faults} faults, {} leaders", watchers.leaders().len());
        }
        thread::sleep(Duration::from_millis(5));
    }

    // Over. Everybody comes back, and clients still work while they do.
    let frames = world.heal();
    ready(world, &urls)?;
    clients.stop();
    let leaders = watchers.leaders();
    drop(watchers);
    // Every key is read through every node, and written once more: what stands there now must fit, too.
    let http = Http::new(Duration::from_secs(10));
    for (id, url) in &urls {
        for key in (0..KEYS).map(|i| format!("k{i}")) {
            if book.ask(&http, 100 + id, (*id, url), &key, Call::Get).is_none() {
                return Err(format!("node {id} does not answer a read of {key} after all faults"));
            }
        }
    }
    let last = Call::Put("last".to_owned());
    book.ask(&http, 100, (urls[0].0, &urls[0].1), "k0", last).ok_or("the last write was not answered")?;
    let upto = book.pages().notes.last().and_then(|note| note.index).ok_or("the last write has no index")?;

    let mut logs = BTreeMap::new();
    for (id, url) in &urls {
        logs.insert(*id, judge::applied(url, upto)?);
    }
    let pages = book.pages();
    let log = &logs[&urls[0].0];
    let (same, found) = (judge::same_everywhere(&logs, &urls), judge::once(log, &pages));
    let checked = Instant::now();
    let linearizable = judge::linearizable(&pages);
    let elected = leaders.iter().find(|(_, ids)| ids.len() > 1);
    let elected = elected.map(|(term, ids)| format!("term {term} had the leaders {ids:?}"));
    let surprise =
        pages.surprises.first().map(|surprise| format!("{surprise}, and {} more", pages.surprises.len() - 1));
    let failures = [surprise, elected, same.err(), found.as_ref().err().cloned(), linearizable.err()];
    let failures: Vec<String> = failures.into_iter().flatten().collect();
    if !failures.is_empty() {
        return Err(failures.join("\n\n"));
    }
    let found = found.unwrap_or(0);

    let operations = pages.history.operations();
    let mut text = String::new();
    let mut line = |what: &str, told: String| writeln!(text, "{what:<12}{told}").expect("text");
    line("operations", format!("{} {:?}", operations.len(), outcomes(operations)));
    line("faults", format!("{:?}, {} met nothing", nemesis.fired, nemesis.missed));
    line("frames", frames.to_string());
    line("elections", format!("{} terms had a leader, none had two", leaders.len()));
    line("log", format!("{} commands on every node, {found} acknowledged ones all there, none twice", log.len()));
    line("verdict", format!("linearizable ({:.1?} to decide)", checked.elapsed()));
    Ok(Report { text, operations: operations.len() as u64, fired: nemesis.fired.clone(), leaders: leaders.len() })
}

/// Every node serves linearizable reads.
fn ready(world: &mut World, urls: &[(u64, String)]) -> Result<(), String> {
    let (http, until) = (Http::new(Duration::from_secs(2)), Instant::now() + RECOVERY);
    for (id, url) in urls {
        while !matches!(http.get(&format!("{url}/readyz")), Ok((200, _))) {
            if let Some(deserter) = world.deserter() {
                return Err(deserter);
            }
            if Instant::now() > until {
                return Err(format!("node {id} is not ready {RECOVERY:?} after the last fault"));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn write_evidence(world: &World, book: &Book, nemesis: &Nemesis, failure: Option<&String>) {
    let pages = book.pages();
    let mut history = String::new();
    for (operation, note) in pages.history.operations().iter().zip(&pages.notes) {
        let at = note.at.as_secs_f64();
        writeln!(history, "{at:8.3} n{} {} {operation} | {}", note.node, operation.key, note.words).expect("text");
    }
    let write = |name: &str, text: &str| fs::write(world.dir.join(name), text).expect("a file");
    write("history.txt", &history);
    write("faults.txt", &nemesis.log.join("\n"));
    write("verdict.txt", failure.map_or("", String::as_str));
}
