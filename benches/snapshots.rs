//! What snapshots cost and what they buy, with real nodes over loopback QUIC and durable sled, all in this process.
//!
//! ```text
//! cargo bench --bench snapshots                          the first two
//! cargo bench --bench snapshots -- transfer 2048         commits beside a snapshot of 2,048 MiB on its way to a new node
//! cargo bench --bench snapshots -- ready 1000000         time to ready with 1,000,000 entries, without a snapshot and with one
//! cargo bench --bench snapshots -- endurance 10000000    10,000,000 proposals: rate, disk and memory in each tenth
//! ```
//!
//! Where the files go is where `TMPDIR` says; the first needs three times the snapshot there. Deliberately absent: a
//! pass mark.

mod support;

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actorum::{Config, prelude::*};
use serde::{Deserialize, Serialize};
use support::{Figures, Founders, TIMEOUT, closed_loop, free_port, leader};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo adds --bench.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |default: u64| args.get(1).map_or(default, |arg| arg.parse().expect("a number"));
    match args.first().map(String::as_str) {
        None => {
            transfer(2048).await;
            ready(1_000_000).await;
        }
        Some("transfer") => transfer(number(2048)).await,
        Some("ready") => ready(number(1_000_000)).await,
        Some("endurance") => endurance(number(10_000_000)).await,
        Some(other) => panic!("{other}? transfer, ready or endurance"),
    }
}

// ---- commits beside a transfer
// ---------------------------------------------------------------------------------------

/// A state as large as it is told to be. It is nowhere: whoever writes it makes it up as they go.
#[derive(Default)]
struct Large {
    mebibytes: u64,
    last: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
enum Command {
    Grow(u64),
    Put(#[serde(with = "serde_bytes")] Vec<u8>),
}

impl StateMachine for Large {
    type Command = Command;
    type Response = ();

    fn apply(&mut self, _: &ApplyContext, command: &Command) {
        match command {
            Command::Grow(mebibytes) => self.mebibytes = *mebibytes,
            Command::Put(value) => self.last.clone_from(value),
        }
    }

    fn snapshot(&self) -> Result<StateView, MachineError> {
        let mebibytes = self.mebibytes;
        Ok(StateView::new(move |out| {
            out.write_all(&mebibytes.to_be_bytes())?;
            let (mut word, mut block) = (0x9e37_79b9_7f4a_7c15_u64, vec![0; 1 << 20]);
            for _ in 0..mebibytes {
                for bytes in block.chunks_exact_mut(8) {
                    // xorshift: nothing that a compressor could use.
                    word ^= word << 13;
                    word ^= word >> 7;
                    word ^= word << 17;
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
                out.write_all(&block)?;
            }
            Ok(())
        }))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut mebibytes = [0; 8];
        from.read_exact(&mut mebibytes)?;
        self.mebibytes = u64::from_be_bytes(mebibytes);
        let read = io::copy(from, &mut io::sink())?;
        match read == self.mebibytes << 20 {
            true => Ok(()),
            false => Err(MachineError::new(format!("{read} bytes, not {} MiB", self.mebibytes))),
        }
    }
}

/// Three nodes commit; then also while a fourth, new one gets the state; then alone again.
async fn transfer(mebibytes: u64) {
    const OUTSTANDING: usize = 64;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let on_demand = |config: &mut Config| {
        (config.snapshot_entries, config.snapshot_bytes) = (0, 0);
        (config.log_keep_entries, config.log_hold_bytes) = (0, 0);
    };
    let nodes: Vec<Raft<Large>> = Founders::new(3).start_all(dir.path(), on_demand).await;
    let leader = leader(&nodes).await;
    // The log reaches back to the older of two: with the second one the first entries go.
    leader.propose(Command::Grow(0)).await.expect("a command");
    leader.take_snapshot().await.expect("a snapshot");
    leader.propose(Command::Grow(mebibytes)).await.expect("a command");
    let begun = Instant::now();
    let taken = leader.take_snapshot().await.expect("a snapshot");
    let rate = |bytes: u64, time: Duration| bytes as f64 / (1 << 20) as f64 / time.as_secs_f64();
    println!(
        "a snapshot of {} MiB was built in {:.1} s ({:.0} MiB/s)",
        taken.bytes >> 20,
        begun.elapsed().as_secs_f64(),
        rate(taken.bytes, begun.elapsed())
    );
    let puts = |go_on: Arc<AtomicBool>, until: Instant| {
        move || (go_on.load(Relaxed) && Instant::now() < until).then(|| Command::Put(vec![7; 128]))
    };
    let for_a_while = |seconds| puts(Arc::new(AtomicBool::new(true)), Instant::now() + Duration::from_secs(seconds));
    closed_loop(leader, OUTSTANDING, for_a_while(2)).await;

    println!(
        "three nodes, {OUTSTANDING} outstanding commands of 128 bytes  {:>12}  {:>9}  {:>9}",
        "proposals/s", "p50", "p99"
    );
    let line = |what: &str, figures: &Figures| {
        println!("  {what:<54}{:>12.0}  {:>6.2} ms  {:>6.2} ms", figures.rate(), figures.ms(0.5), figures.ms(0.99));
    };
    let before = closed_loop(leader, OUTSTANDING, for_a_while(10)).await;
    line("alone", &before);

    let at = free_port();
    let joining = support::node::<Large>(4, at, dir.path(), on_demand).bootstrap(Bootstrap::Wait);
    let joining = joining.start().await.expect("a node starts");
    let change = ConfChange::AddLearner(4, at.into());
    let joined = leader.change(change).await.expect("a learner");
    assert!(joined.learners().contains(&4));
    joining.wait(TIMEOUT, |status| !status.snapshots.receiving.is_empty()).await.expect("it is sent a snapshot");
    let (go_on, begun) = (Arc::new(AtomicBool::new(true)), Instant::now());
    let (stop, receiver) = (go_on.clone(), joining.clone());
    let watch = tokio::spawn(async move {
        let status = receiver.wait(TIMEOUT, |status| status.snapshots.received > 0).await.expect("it arrives");
        stop.store(false, Relaxed);
        (status.snapshots.bytes_received, begun.elapsed())
    });
    let during = closed_loop(leader, OUTSTANDING, puts(go_on, Instant::now() + TIMEOUT)).await;
    let (bytes, took) = watch.await.expect("it watches");
    line(&format!("with {} MiB on their way, at {:.0} MiB/s", bytes >> 20, rate(bytes, took)), &during);
    joining.shutdown().await;
    let after = closed_loop(leader, OUTSTANDING, for_a_while(10)).await;
    line("alone again", &after);
    println!(
        "  p99 beside the transfer: {:.1} times that without",
        during.ms(0.99) / before.ms(0.99).max(after.ms(0.99))
    );
    for node in nodes {
        node.shutdown().await;
    }
}

// ---- a map, for the other two
// ----------------------------------------------------------------------------------------

/// A hundred thousand keys, over and over.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Map(BTreeMap<u64, Value>);

#[derive(Clone, Serialize, Deserialize)]
struct Value(#[serde(with = "serde_bytes")] Vec<u8>);

#[derive(Serialize, Deserialize)]
struct Put(u64, Value);

const KEYS: u64 = 100_000;

impl Put {
    /// 128 bytes, and what each is called.
    fn new(n: u64) -> Put {
        Put(
            n % KEYS,
            Value((0..14).flat_map(|word| (n * 14 + word).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()).collect()),
        )
    }
}

impl StateMachine for Map {
    type Command = Put;
    type Response = ();

    fn apply(&mut self, _: &ApplyContext, Put(key, value): &Put) {
        self.0.insert(*key, value.clone());
    }

    serde_snapshot!(clone);
}

/// So many commands, each once.
fn up_to(last: u64) -> (Arc<AtomicU64>, impl Fn() -> Option<Put> + Clone + Send + 'static) {
    let count = Arc::new(AtomicU64::new(0));
    let next = count.clone();
    (count, move || Some(next.fetch_add(1, Relaxed)).filter(|n| *n < last).map(Put::new))
}

/// How long a node that was shut down takes to answer a read again.
async fn ready(entries: u64) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let on_demand = |config: &mut Config| (config.snapshot_entries, config.snapshot_bytes) = (0, 0);
    let founders = Founders::new(1);
    let node: Raft<Map> = founders.start(1, dir.path(), on_demand).await;
    let (_, puts) = up_to(entries);
    closed_loop(leader(std::slice::from_ref(&node)).await, 256, puts).await;
    node.shutdown().await;

    println!("time to ready, {entries} entries of 128 bytes on {KEYS} keys, one node");
    let start = || async {
        let begun = Instant::now();
        let node: Raft<Map> = founders.start(1, dir.path(), on_demand).await;
        let opened = begun.elapsed();
        node.wait_for_leader(TIMEOUT).await.expect("a leader");
        let keys = node.read(|map| map.0.len() as u64).await.expect("a read");
        assert_eq!(keys, KEYS.min(entries));
        (node, opened, begun.elapsed())
    };
    let (node, opened, all) = start().await;
    let line = |what: &str, opened: Duration, all: Duration| {
        println!(
            "  {what:<32}{:>7.2} s, and {:.2} s until it led and answered",
            opened.as_secs_f64(),
            (all - opened).as_secs_f64()
        );
    };
    line("from the log", opened, all);
    let taken = node.take_snapshot().await.expect("a snapshot");
    node.propose(Put::new(0)).await.expect("a command");
    node.shutdown().await;
    let (node, with, all) = start().await;
    line(&format!("from a snapshot of {:.1} MiB", taken.bytes as f64 / (1 << 20) as f64), with, all);
    println!("  {:.1} times faster", opened.as_secs_f64() / with.as_secs_f64());
    node.shutdown().await;
}

/// Whether a long life costs more and more.
async fn endurance(proposals: u64) {
    const OUTSTANDING: usize = 256;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let nodes: Vec<Raft<Map>> = Founders::new(3).start_all(dir.path(), |_| {}).await;
    let leader = leader(&nodes).await;
    println!("{proposals} proposals of 128 bytes on {KEYS} keys, three nodes, {OUTSTANDING} outstanding");
    println!(
        "{:>10}  {:>11}  {:>14}  {:>14}  {:>14}  {:>9}",
        "proposals", "proposals/s", "logs, live", "logs, on disk", "with snapshots", "resident"
    );
    let (count, puts) = up_to(proposals);
    let load = tokio::spawn({
        let leader = leader.clone();
        async move { closed_loop(&leader, OUTSTANDING, puts).await }
    });
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    // The most that was seen in this tenth: of live bytes, of the logs, of everything, of memory.
    let (mut most, mut ever, mut rates) = ([0_u64; 4], [0_u64; 4], Vec::new());
    let (mut tenth, mut since, mut from) = (1, Instant::now(), 0);
    let mut looks = tokio::time::interval(Duration::from_millis(250));
    while tenth <= 10 {
        looks.tick().await;
        let logs = nodes
            .iter()
            .map(|node| node.status())
            .fold((0, 0), |(live, disk), status| (live + status.log_bytes, disk + status.disk_bytes));
        let now = [logs.0, logs.1, disk_bytes(dir.path()), resident_bytes()];
        most = std::array::from_fn(|n| most[n].max(now[n]));
        let done = count.load(Relaxed).min(proposals);
        if done < proposals / 10 * tenth && !load.is_finished() {
            continue;
        }
        let rate = (done - from) as f64 / since.elapsed().as_secs_f64();
        let [live, log, all, memory] = most.map(mib);
        println!("{done:>10}  {rate:>11.0}  {live:>14}  {log:>14}  {all:>14}  {memory:>9}");
        rates.push(rate);
        ever = std::array::from_fn(|n| ever[n].max(most[n]));
        (most, tenth, since, from) = ([0; 4], tenth + 1, Instant::now(), done);
    }
    let figures = load.await.expect("it ends");
    let [live, log, all, memory] = ever.map(mib);
    println!(
        "all: {:.0}/s, p99 {:.2} ms; at most {live} live, {log} of logs, {all} on disk, {memory} resident",
        figures.rate(),
        figures.ms(0.99)
    );
    println!("the last tenth ran at {:.2} times the rate of the first", rates[rates.len() - 1] / rates[0]);
    for node in nodes {
        node.shutdown().await;
    }
}

/// What everything below a directory takes.
fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    // Files come and go meanwhile.
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
            Err(_) => 0,
        })
        .sum()
}

/// What this process holds in memory.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}
