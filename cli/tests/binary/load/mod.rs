//! Clients that write through real nodes, and the judge of what became of their writes.
//!
//! ```text
//!  Load ── PUT ──▶ nodes                 every key once, in the order of its writer
//!    └── Ledger: key ▶ index             what was acknowledged, and where
//!  History ◀── /events ── each node      what was applied, entry by entry
//!    └── compare, holds                  the same on all nodes, everything acknowledged in it, nothing twice
//! ```
//!
//! A key whose outcome nobody knows is never used again: it may be applied once, whenever, or not at all.
//! Deliberately absent: reads under load (the simulator's checker judges those).

#![allow(dead_code)] // each test uses its part

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::lab::{Lab, Node, Stream, TIMEOUT, try_call};

/// What writers were told: each key with the index where it was acknowledged.
pub(crate) type Acknowledged = BTreeMap<String, u64>;

/// How long a writer thinks between two writes: keeps a log short enough to be read as a whole, again and again.
const THINKS: Duration = Duration::from_millis(4);

#[derive(Default)]
struct Ledger {
    acknowledged: Acknowledged,
    highest: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    ledger: Mutex<Ledger>,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no writer has found anything wrong")
    }
}

/// Writers at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    writers: Vec<thread::JoinHandle<()>>,
}

impl Load {
    /// Starts writers, each beginning with another of these nodes. A refusal (503) is tried again through the next
    /// node; after an unknown outcome the key is given up.
    pub(crate) fn start(lab: &Lab, ids: &[u64], writers: usize) -> Load {
        let shared = Arc::new(Shared::default());
        let urls: Vec<String> = ids.iter().map(|id| lab.node(*id).url("")).collect();
        let writer = |name| {
            let (shared, urls) = (shared.clone(), urls.clone());
            thread::spawn(move || write(name, &urls, &shared))
        };
        let writers = (0..writers).map(writer).collect();
        Load { shared, writers }
    }

    /// How many writes were acknowledged so far.
    pub(crate) fn count(&self) -> usize {
        self.shared.ledger().acknowledged.len()
    }

    /// Waits until so many more are acknowledged.
    pub(crate) fn wait_for(&self, more: u64) {
        let (target, until) = (self.count() + more as usize, Instant::now() + TIMEOUT);
        while self.count() < target {
            assert!(Instant::now() < until, "only {} of {target} writes were acknowledged in time", self.count());
            // Short: the moment of a kill hangs on it.
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// What was acknowledged so far.
    pub(crate) fn acknowledged(&self) -> Acknowledged {
        self.shared.ledger().acknowledged.clone()
    }

    /// The highest index acknowledged so far.
    pub(crate) fn highest(&self) -> u64 {
        self.shared.ledger().highest
    }

    /// Stops the writers, and waits until each has heard of its last write.
    pub(crate) fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.writers.drain(..).for_each(|writer| writer.join().expect("a writer"));
    }

    /// Stops the writers, and returns what they were told.
    pub(crate) fn finish(mut self) -> Acknowledged {
        self.stop();
        self.acknowledged()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn write(name: usize, urls: &[String], shared: &Shared) {
    let (mut node, mut number) = (name, 0);
    while !shared.stop.load(Ordering::Relaxed) {
        let key = format!("w{name}-{number}");
        let begun_after = shared.ledger().highest;
        match try_call("PUT", &format!("{}/kv/{key}?timeout_ms=1500", urls[node % urls.len()]), key.as_bytes()) {
            Ok(answer) if answer.status == 200 => {
                let index = answer.body["index"].as_u64().expect("an index");
                let mut ledger = shared.ledger();
                // Linearizable: what began after another was acknowledged comes after it.
                assert!(index > begun_after, "{key} is at {index}, and began after {begun_after} was acknowledged");
                ledger.highest = ledger.highest.max(index);
                ledger.acknowledged.insert(key, index);
                number += 1;
            }
            // Surely not applied: the same key, through another node.
            Ok(answer) if answer.status == 503 => node += 1,
            Ok(answer) => {
                assert_eq!(answer.status, 504, "{}", answer.text);
                (number, node) = (number + 1, node + 1);
            }
            // Nobody can tell what became of it.
            Err(_) => (number, node) = (number + 1, node + 1),
        }
        thread::sleep(THINKS);
    }
}

/// What the nodes have applied: grows, and never changes.
#[derive(Default)]
pub(crate) struct History {
    /// By index: the term, and the key that was put.
    applied: BTreeMap<u64, (u64, String)>,
    /// Where each key was put.
    places: BTreeMap<String, u64>,
}

impl History {
    /// The last index read of any node.
    pub(crate) fn end(&self) -> u64 {
        self.applied.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// How many commands.
    pub(crate) fn len(&self) -> usize {
        self.applied.len()
    }

    /// Reads what a node has applied in `(after, end]`, where `end` is a command's index, and holds it against all
    /// that was read before: the same commands at the same places, and no command twice.
    pub(crate) fn compare(&mut self, node: &Node, after: u64, end: u64) {
        self.admit(node.id, after, end, applied(node, after, end));
    }

    /// The same of what was read.
    pub(crate) fn admit(&mut self, id: u64, after: u64, end: u64, found: Vec<(u64, u64, String)>) {
        let known = self.end();
        let again: Vec<_> = found.iter().take_while(|(index, ..)| *index <= known).collect();
        let before: Vec<_> = self.applied.range(after + 1..=end.min(known).max(after + 1)).collect();
        for ((index, (term, key)), other) in before.iter().zip(&again) {
            assert_eq!((*index, term, key), (&other.0, &other.1, &other.2), "node {id} has applied something else");
        }
        assert_eq!(again.len(), before.len(), "node {id} has not applied as many commands up to {known}");
        for (index, term, key) in found.into_iter().skip(before.len()) {
            if let Some(first) = self.places.insert(key.clone(), index) {
                panic!("{key} was applied at {first} and again at {index} on node {id}");
            }
            self.applied.insert(index, (term, key));
        }
    }

    /// Everything acknowledged was applied, each where it was acknowledged.
    pub(crate) fn holds(&self, acknowledged: &Acknowledged) {
        for (key, index) in acknowledged {
            assert_eq!(self.places.get(key), Some(index), "LOST: {key} was acknowledged at {index}");
        }
    }

    /// The node's map has the last word of each of some keys: every `step`th.
    pub(crate) fn in_the_map_of(&self, node: &Node, step: usize) {
        for key in self.places.keys().step_by(step) {
            let read = node.get_stale(key);
            let value = if key.starts_with('w') { key.as_str() } else { "" };
            assert_eq!((read.status, read.body["value"].as_str()), (200, Some(value)), "{key} on node {}", node.id);
        }
    }
}

/// What a node has applied in `(after, end]`: index, term, key. As many commands as its indexes allow, in order.
fn applied(node: &Node, after: u64, end: u64) -> Vec<(u64, u64, String)> {
    let (mut applied, mut after) = (Vec::new(), after);
    let mut events = Stream::open(&node.url(&format!("/events?after={after}")));
    while after < end {
        match events.next() {
            (index, event, data) if event == "applied" => {
                assert!(index > after, "in order: {index} after {after} on node {}", node.id);
                let key = data["command"]["put"]["key"].as_str().expect("a put").to_owned();
                applied.push((index, data["term"].as_u64().expect("a term"), key));
                after = index;
            }
            // Too slow for its buffer: it goes on where it was left.
            (_, event, data) => {
                assert_eq!((event.as_str(), &data["resume_after"]), ("lagged", &json!(after)));
                events = Stream::open(&node.url(&format!("/events?after={after}")));
            }
        }
    }
    assert_eq!(after, end, "node {} has applied the command at {end}", node.id);
    applied
}

/// All running nodes have applied everything acknowledged, and the same. `after` says from where each node's history is
/// read: the commands before it were compared before.
pub(crate) fn judge(
    lab: &Lab,
    acknowledged: &Acknowledged,
    history: &mut History,
    name: &str,
    after: impl Fn(&Node) -> u64,
) {
    let mut tries = 0;
    let end = crate::lab::wait("a write after all that was acknowledged", || {
        tries += 1;
        let leader = lab.running().find(|node| node.try_status().is_some_and(|status| status["role"] == "leader"))?;
        // Each try has a key of its own, for the one before may yet be applied.
        let put = try_call("PUT", &leader.url(&format!("/kv/{name}-{tries}")), b"").ok()?;
        (put.status == 200).then(|| put.body["index"].as_u64().expect("an index"))
    });
    for node in lab.running() {
        node.wait_applied(end);
        history.compare(node, after(node), end);
    }
    history.holds(acknowledged);
}
