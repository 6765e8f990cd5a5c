//! Clients that write while the leader dies, and remember what they were told.
//!
//! Each write has a key of its own. An acknowledged one must be found later; one that was refused is surely not in the
//! log, and is tried again through another node; one without an answer may or may not be in the log, so it is neither
//! repeated nor counted as acknowledged.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Scope, ScopedJoinHandle},
    time::Duration,
};

use super::Deadline;
use crate::{
    Failure,
    client::{CallError, Client},
};

/// What a writer waits for one answer; its requests' own deadline is shorter.
const TIMEOUT: Duration = Duration::from_millis(2500);
/// After a refusal, before the next node is asked; and between looks for leave to go on.
const PAUSE: Duration = Duration::from_millis(20);

/// A number that threads count up together.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// As it is now.
    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the writers were told.
#[derive(Default)]
pub(super) struct Ledger {
    /// Writes that were acknowledged, and the index that each was applied at.
    pub acknowledged: Vec<(Write, u64)>,
    /// Writes whose outcome is unknown.
    pub unknown: Vec<Write>,
    /// How many refusals were answered by trying again.
    pub refused: u64,
}

/// One write.
pub(super) struct Write {
    /// Its key.
    pub key: String,
    /// How long its value is, at least.
    bytes: usize,
}

impl Write {
    /// What is written under the key: a sentence, and then what cannot be compressed much.
    fn value(&self) -> String {
        let mut value = format!("the value of {}", self.key);
        for block in 0.. {
            if value.len() >= self.bytes {
                break;
            }
            let mut hasher = DefaultHasher::new();
            (&self.key, block).hash(&mut hasher);
            value.push_str(&format!("{:016x}", hasher.finish()));
        }
        value
    }
}

/// What is written.
#[derive(Clone, Copy)]
pub(super) struct Subject {
    /// What the keys begin with.
    pub name: &'static str,
    /// How long each value is, at least.
    pub bytes: usize,
}

/// What was found on a node.
#[derive(Default)]
pub(super) struct Found<'a> {
    /// The keys of acknowledged writes.
    pub acknowledged: BTreeSet<&'a str>,
    /// How many of those without an answer.
    pub unknown: u64,
}

/// One writer through each node.
pub(super) struct Writers<'scope> {
    threads: Vec<ScopedJoinHandle<'scope, Result<Ledger, Failure>>>,
    acknowledged: Progress,
    allowed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl<'scope> Writers<'scope> {
    /// Starts them. They pause when so many writes are acknowledged in all, and end when this value goes.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        urls: &'env [String],
        Subject { name, bytes }: Subject,
        allowed: u64,
    ) -> Writers<'scope> {
        let (acknowledged, stop) = (Progress::default(), Arc::new(AtomicBool::new(false)));
        let allowed = Arc::new(AtomicU64::new(allowed));
        let threads = (0..urls.len()).map(|number| {
            let (acknowledged, allowed, stop) = (acknowledged.clone(), allowed.clone(), stop.clone());
            scope.spawn(move || {
                let mut writer = Writer { client: Client::new(TIMEOUT), urls, at: number, ledger: Ledger::default() };
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    if acknowledged.now() >= allowed.load(Ordering::Relaxed) {
                        thread::sleep(PAUSE);
                        continue;
                    }
                    count += 1;
                    if writer.write(Write { key: format!("{name}-{}/{count}", number + 1), bytes }, &stop)? {
                        acknowledged.step();
                    }
                }
                Ok(writer.ledger)
            })
        });
        Writers { threads: threads.collect(), acknowledged, allowed, stop }
    }

    /// Lets them go on until so many writes are acknowledged.
    pub(super) fn allow(&self, writes: u64) {
        self.allowed.store(writes, Ordering::Relaxed);
    }

    /// How many writes were acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.now()
    }

    /// Stops them and puts together what they were told.
    pub(super) fn finish(mut self) -> Result<Ledger, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for thread in std::mem::take(&mut self.threads) {
            all.join(thread.join().expect("a writer does not panic")?);
        }
        Ok(all)
    }
}

/// The writers end however the demo ends, since the scope that they run in waits for them.
impl Drop for Writers<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Writer<'a> {
    client: Client,
    urls: &'a [String],
    /// Which node it writes through.
    at: usize,
    ledger: Ledger,
}

impl Writer<'_> {
    /// Writes one key, and returns whether it was acknowledged.
    fn write(&mut self, write: Write, stop: &AtomicBool) -> Result<bool, Failure> {
        let value = write.value();
        while !stop.load(Ordering::Relaxed) {
            let url = format!("{}/kv/{}?timeout_ms=2000", self.urls[self.at], write.key);
            match self.client.put(&url, &value) {
                Ok(answer) if answer.status == 200 => {
                    let index = answer.body["index"].as_u64();
                    let index =
                        index.ok_or_else(|| Failure::new(format!("an answer without index: {}", answer.body)))?;
                    self.ledger.acknowledged.push((write, index));
                    return Ok(true);
                }
                // Surely not applied: the same write again, through another node.
                Ok(answer) if answer.status == 503 => self.ask_another(),
                Err(CallError::NotSent(_)) => self.ask_another(),
                // It may have been applied, or may be applied later. It is not repeated.
                Ok(answer) if answer.status == 504 => return self.give_up(write),
                Err(CallError::Unanswered(_)) => return self.give_up(write),
                Ok(answer) => {
                    return Err(Failure::new(format!("PUT {url}: HTTP {} {}", answer.status, answer.body)));
                }
            }
        }
        Ok(false)
    }

    fn ask_another(&mut self) {
        self.ledger.refused += 1;
        self.at = (self.at + 1) % self.urls.len();
        thread::sleep(PAUSE);
    }

    fn give_up(&mut self, write: Write) -> Result<bool, Failure> {
        self.ledger.unknown.push(write);
        self.at = (self.at + 1) % self.urls.len();
        Ok(false)
    }
}

impl Ledger {
    /// Takes another one's lines over.
    pub(super) fn join(&mut self, other: Ledger) {
        self.acknowledged.extend(other.acknowledged);
        self.unknown.extend(other.unknown);
        self.refused += other.refused;
    }

    /// Looks every write up in the state of one node, with stale reads, which ask no other node.
    pub(super) fn check(&self, url: &str, progress: &Progress, deadline: &Deadline) -> Result<Found<'_>, Failure> {
        let client = Client::new(TIMEOUT);
        let holds = |write: &Write| {
            deadline.check("the look-up of every write")?;
            let url = format!("{url}/kv/{}?consistency=stale", write.key);
            let answer = client.get(&url).map_err(|e| Failure::new(format!("GET {url}: {e}")))?;
            match answer.status {
                200 => Ok(answer.body["value"].as_str() == Some(&write.value())),
                404 => Ok(false),
                status => Err(Failure::new(format!("GET {url}: HTTP {status} {}", answer.body))),
            }
        };
        let mut found = Found::default();
        for (write, _) in &self.acknowledged {
            if holds(write)? {
                found.acknowledged.insert(&write.key);
            }
            progress.step();
        }
        for write in &self.unknown {
            found.unknown += u64::from(holds(write)?);
        }
        Ok(found)
    }
}
