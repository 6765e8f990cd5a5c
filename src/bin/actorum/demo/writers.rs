//! Clients that write while the leader dies, and remember what they were told.
//!
//! Each write has a key of its own. An acknowledged one must be found later; one that was refused is surely not
//! in the log and is tried again through another node; one without an answer may or may not be there, so it is
//! neither repeated nor counted as kept.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Scope, ScopedJoinHandle},
    time::Duration,
};

use super::Patience;
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
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// As it is now.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the writers were told.
#[derive(Default)]
pub struct Ledger {
    /// Writes that were acknowledged.
    pub acknowledged: Vec<Write>,
    /// Keys of writes whose outcome nobody knows.
    pub unknown: Vec<String>,
    /// How many refusals were answered by trying again.
    pub refused: u64,
}

/// An acknowledged write.
pub struct Write {
    /// Its key; the value is [`value`] of it.
    pub key: String,
    /// The index it was applied at.
    pub index: u64,
}

/// What was found on a node.
#[derive(Default)]
pub struct Found<'a> {
    /// The keys of acknowledged writes.
    pub acknowledged: BTreeSet<&'a str>,
    /// How many of those without an answer.
    pub unknown: u64,
}

/// One writer through each node.
pub struct Writers<'scope> {
    threads: Vec<ScopedJoinHandle<'scope, Result<Ledger, Failure>>>,
    acknowledged: Progress,
    allowed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl<'scope> Writers<'scope> {
    /// Starts them. They pause when so many writes are acknowledged in all, and end when this value goes.
    pub fn start<'env>(scope: &'scope Scope<'scope, 'env>, urls: &'env [String], allowed: u64) -> Writers<'scope> {
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
                    if writer.write(format!("writer-{}/{count}", number + 1), &stop)? {
                        acknowledged.step();
                    }
                }
                Ok(writer.ledger)
            })
        });
        Writers { threads: threads.collect(), acknowledged, allowed, stop }
    }

    /// Lets them go on until so many writes are acknowledged.
    pub fn allow(&self, writes: u64) {
        self.allowed.store(writes, Ordering::Relaxed);
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.now()
    }

    /// Stops them and puts together what they were told.
    pub fn finish(mut self) -> Result<Ledger, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for thread in std::mem::take(&mut self.threads) {
            let ledger = thread.join().expect("a writer does not panic")?;
            all.acknowledged.extend(ledger.acknowledged);
            all.unknown.extend(ledger.unknown);
            all.refused += ledger.refused;
        }
        Ok(all)
    }
}

/// However the story ends, the writers do too: the scope they run in waits for them.
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
    fn write(&mut self, key: String, stop: &AtomicBool) -> Result<bool, Failure> {
        while !stop.load(Ordering::Relaxed) {
            let url = format!("{}/kv/{key}?timeout_ms=2000", self.urls[self.at]);
            match self.client.put(&url, &value(&key)) {
                Ok(answer) if answer.status == 200 => {
                    let index = answer.body["index"].as_u64();
                    let index =
                        index.ok_or_else(|| Failure::new(format!("an answer without index: {}", answer.body)))?;
                    self.ledger.acknowledged.push(Write { key, index });
                    return Ok(true);
                }
                // Surely not applied: the same write again, through another node.
                Ok(answer) if answer.status == 503 => self.ask_another(),
                Err(CallError::NotSent(_)) => self.ask_another(),
                // It may be applied, or may yet be. Leave it at that.
                Ok(answer) if answer.status == 504 => return self.give_up(key),
                Err(CallError::Unanswered(_)) => return self.give_up(key),
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

    fn give_up(&mut self, key: String) -> Result<bool, Failure> {
        self.ledger.unknown.push(key);
        self.at = (self.at + 1) % self.urls.len();
        Ok(false)
    }
}

impl Ledger {
    /// Looks every write up on one node, in its own state: what it holds itself, not what it could ask others.
    pub fn check(&self, url: &str, progress: &Progress, patience: &Patience) -> Result<Found<'_>, Failure> {
        let client = Client::new(TIMEOUT);
        let holds = |key: &str| {
            patience.check("the look-up of every write")?;
            let url = format!("{url}/kv/{key}?consistency=stale");
            let answer = client.get(&url).map_err(|e| Failure::new(format!("GET {url}: {e}")))?;
            match answer.status {
                200 => Ok(answer.body["value"].as_str() == Some(&value(key))),
                404 => Ok(false),
                status => Err(Failure::new(format!("GET {url}: HTTP {status} {}", answer.body))),
            }
        };
        let mut found = Found::default();
        for write in &self.acknowledged {
            if holds(&write.key)? {
                found.acknowledged.insert(&write.key);
            }
            progress.step();
        }
        for key in &self.unknown {
            found.unknown += u64::from(holds(key)?);
        }
        Ok(found)
    }
}

/// What is written under a key.
fn value(key: &str) -> String {
    format!("the value of {key}")
}
