//! Every setting has bounds: what is outside is refused by its name, and what is inside runs.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::support::{MemoryDisk, MemoryNetwork, Sum, TIMEOUT, founders, on, quick};
use actorum::{Bounds, Network, prelude::*};
use actorum_actors::clock::{Alarm, Clock, SystemClock};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// The machine's clock, so many times as fast: an hour's timeout takes a second.
struct Fast {
    machine: Arc<dyn Clock>,
    factor: u32,
}

impl Clock for Fast {
    fn now(&self) -> Duration {
        self.machine.now() * self.factor
    }

    fn wall(&self) -> std::time::SystemTime {
        self.machine.wall()
    }

    fn alarm(&self, at: Duration) -> Alarm {
        self.machine.alarm(at / self.factor)
    }
}

/// The default with one setting changed, whatever its type; `None` where the type has no such value.
fn with(key: &str, value: u64) -> Option<Config> {
    let mut config = serde_json::to_value(Config::default()).unwrap();
    config[key] = json!(value);
    serde_json::from_value(config).ok()
}

/// The same with what has to go with it, so that nothing contradicts it.
fn fitted(key: &str, value: u64) -> Config {
    let mut config = with(key, value).expect("a value inside the bounds fits the type");
    if !["heartbeat_ms", "election_ms"].contains(&key) {
        quick(&mut config);
    }
    match key {
        "heartbeat_ms" => config.election_ms = (3 * value).max(config.election_ms),
        // As many ticks as it takes, and no more: each is one of the core's looks.
        "election_ms" => config.heartbeat_ms = (value / 60).max(1),
        "disk_slow_ms" => config.disk_dead_ms = (value + 1).max(config.disk_dead_ms),
        "disk_dead_ms" => config.disk_slow_ms = (value - 1).min(config.disk_slow_ms),
        "max_append_bytes" => config.peer_window_bytes = config.peer_window_bytes.max(value as usize),
        "max_in_flight_bytes" | "max_unapplied_bytes" | "max_unpersisted_bytes" => {
            config.max_entry_bytes = config.max_entry_bytes.min(value.saturating_sub(4096).max(1) as usize);
        }
        "snapshot_timeout_ms" => config.snapshot_rate = 0,
        _ => {}
    }
    config
}

fn limits(bounds: &Bounds) -> [u64; 2] {
    [bounds.least, bounds.most]
}

/// Whoever adds a setting gives it bounds.
#[test]
fn every_number_has_bounds() {
    let Value::Object(settings) = serde_json::to_value(Config { seed: Some(1), ..Config::default() }).unwrap() else {
        panic!("a configuration is a table")
    };
    let numbers: Vec<&String> = settings.iter().filter(|(_, value)| value.is_number()).map(|(key, _)| key).collect();
    assert!(numbers.len() > 30);
    for key in &numbers {
        assert!(Config::bounds().iter().any(|bounds| bounds.key == *key), "{key} has no bounds");
    }
    assert_eq!(numbers.len(), Config::bounds().len());
    let others: Vec<&String> = settings.keys().filter(|key| !numbers.contains(key)).collect();
    assert_eq!(
        others,
        ["response_check", "activate", "placement", "cluster_name"],
        "bounds of what is no number are its words"
    );
}

/// The operator finds the bounds of each setting in the guide.
#[test]
fn the_guide_prints_the_bounds() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide/settings.md");
    let page = fs::read_to_string(page).unwrap();
    for Bounds { key, least, most } in Config::bounds() {
        // The default stands between the name and the bounds, and `tests/guide.rs` compares it.
        let (begins, ends) = (format!("| `{key}` | "), format!(" | {least} | {most} |"));
        let row = |line: &str| line.starts_with(&begins) && line.ends_with(&ends);
        assert!(page.lines().any(row), "docs/guide/settings.md does not say\n{begins}...{ends}");
    }
}

/// In a program and in a variable alike. Before, 2^63 - 1 events for a subscriber ended the node with the first one,
/// and as many appends on their way ended it at once.
#[test]
fn what_is_outside_is_refused_by_its_name_and_its_bounds() {
    const FAR: [u64; 6] = [0, 1, (1 << 53) + 1, i64::MAX as u64, 1 << 63, u64::MAX];
    for &Bounds { key, least, most } in Config::bounds() {
        let variable = format!("ACTORUM_{}", key.to_uppercase());
        let beyond = [least.checked_sub(1), most.checked_add(1)].into_iter().flatten();
        for value in FAR.into_iter().chain([least, most]).chain(beyond) {
            let inside = (least..=most).contains(&value);
            let expected = if value < least { "too low" } else { "too high" };
            let expected = format!("{value} is {expected}: at least {least}, at most {most}");
            match with(key, value).map(|config| config.validate()) {
                None => assert!(!inside, "{key} = {value} fits no field"),
                Some(Err(error)) if !inside => assert_eq!((error.key.as_str(), error.problem), (key, expected.clone())),
                Some(Err(error)) => assert!(!error.problem.contains("is too "), "{key} = {value}: {error}"),
                Some(Ok(())) => assert!(inside, "{key} = {value} is accepted"),
            }
            let set = Config::default().apply_env("ACTORUM", &[], [(&variable, value.to_string())]);
            match set {
                Err(error) if inside => panic!("{variable}={value}: {error}"),
                Err(error) => assert_eq!(error.to_string(), format!("{variable}: {expected}")),
                Ok(_) => assert!(inside, "{variable}={value} is accepted"),
            }
        }
        for value in ["-1", "18446744073709551616", "170141183460469231731687303715884105728", "1.5", "1e3"] {
            let error = Config::default().apply_env("ACTORUM", &[], [(&variable, value)]).expect_err(value);
            assert_eq!(error.key, variable);
        }
    }
    let name = |length| Config { cluster_name: "x".repeat(length), ..Config::default() };
    assert_eq!(name(255).validate(), Ok(()));
    assert_eq!(
        name(256).validate().unwrap_err().to_string(),
        "cluster_name: it has 256 bytes, and may have at most 255"
    );
    // A seed has all of 64 bits, and outlives a file that says nothing of it.
    let mut seeded = Config { seed: Some(u64::MAX), ..Config::default() };
    seeded.apply("heartbeat_ms = 50".parse().unwrap()).unwrap();
    assert_eq!((seeded.seed, seeded.heartbeat_ms), (Some(u64::MAX), 50));
    seeded.apply("seed = 7".parse().unwrap()).unwrap();
    assert_eq!(seeded.seed, Some(7));
}

/// Nodes with these settings form, lead, apply, tell it and end. No deadline of any call is shorter than for ever.
async fn live(name: &str, count: u64, config: Config) {
    let factor = u32::try_from(config.election_ms / 400).unwrap().max(1);
    let clock: Arc<dyn Clock> = Arc::new(Fast { machine: SystemClock::shared(), factor });
    let (network, begun) = (MemoryNetwork::new(), Instant::now());
    let mut nodes = Vec::new();
    for id in 1..=count {
        let builder = RaftSystem::<Sum>::builder(id).network(Network::Memory(network.clone()));
        let builder = builder.storage(on(&MemoryDisk::new(), id)).bootstrap(founders(count)).clock(clock.clone());
        nodes.push(builder.config(config.clone()).start().await.unwrap_or_else(|error| panic!("{name}: {error}")));
    }
    let work = async {
        for node in &nodes {
            while factor > 1 && node.status().leader.is_none() {
                // A core that looks at its clock every quarter of a minute looks at it with every request, too.
                let poke = node.read_with(Read::linearizable(|_: &Sum| ()));
                let _ = tokio::time::timeout(Duration::from_millis(1), poke).await;
            }
            node.wait_for_leader(Duration::MAX).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        for node in &nodes {
            let mut events = node.events(0).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            match node.propose_within(1, Duration::MAX).await {
                Ok(_) => assert!(events.next().await.is_some(), "{name}: nothing is told"),
                Err(ProposeError::TooLarge { .. }) => assert!(config.max_entry_bytes < 64, "{name}"),
                Err(error) => panic!("{name}: {error}"),
            }
            let read = Read::linearizable(|sum: &Sum| sum.total).deadline(Duration::MAX);
            node.read_with(read).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            // With the deadline of the settings, whatever comes of it.
            let _ = node.propose(1).await;
        }
        for node in &nodes {
            assert_eq!(node.status().stopped, None, "{name}");
            node.shutdown().await;
            assert_eq!(node.status().stopped.as_deref(), Some("it was shut down"), "{name}");
        }
    };
    let ended = tokio::time::timeout(TIMEOUT, work).await;
    assert!(ended.is_ok(), "{name}: {:?} after {:?}", nodes[0].status(), begun.elapsed());
}

#[actix::test]
async fn a_node_lives_at_every_bound() {
    let mut lives = Vec::new();
    for bounds in Config::bounds() {
        let values: BTreeSet<u64> = limits(bounds).into_iter().chain([0, 1]).collect();
        for value in values.into_iter().filter(|value| (bounds.least..=bounds.most).contains(value)) {
            let config = fitted(bounds.key, value);
            match config.validate() {
                Ok(()) => lives.push((format!("{} = {value}", bounds.key), config)),
                // Not with the others: less than an entry, or than a piece of a snapshot in time.
                Err(error) => assert!(value == 1 && !error.problem.contains("is too "), "{error}"),
            }
        }
    }
    assert!(lives.len() > 2 * Config::bounds().len() - 8, "only {} are tried", lives.len());
    for some in lives.chunks(8) {
        join_all(some.iter().map(|(name, config)| live(name, 1, config.clone()))).await;
    }
}

/// What follows from several, too: windows, queues, timeouts.
#[actix::test]
async fn three_nodes_live_with_everything_at_its_bound() {
    let time = ["heartbeat_ms", "election_ms", "deadline_ms", "disk_slow_ms", "disk_dead_ms", "snapshot_timeout_ms"];
    for (name, most) in [("the most of everything", true), ("the least of everything", false)] {
        let mut config = serde_json::to_value(Config::default()).unwrap();
        for bounds in Config::bounds().iter().filter(|bounds| !time.contains(&bounds.key)) {
            config[bounds.key] = json!(limits(bounds)[usize::from(most)]);
        }
        let mut config: Config = serde_json::from_value(config).unwrap();
        if !most {
            // Room for one entry, and so for one message.
            config.max_entry_bytes = 64;
            let least = |config: &mut Config, bytes| {
                config.max_in_flight_bytes = bytes;
                config.max_unapplied_bytes = bytes;
                config.max_unpersisted_bytes = bytes;
            };
            let fits = (64..).find(|bytes| {
                least(&mut config, *bytes);
                config.validate().is_ok()
            });
            assert!(fits.is_some_and(|bytes| bytes < 1024), "{fits:?}");
        }
        config.validate().unwrap();
        (config.heartbeat_ms, config.election_ms) = (20, 200);
        live(name, 3, config).await;
    }
}
