//! Clients that write down what they ask and what they are told, and watchers that see who leads.
//!
//! What an answer means is the API's promise: 2xx, 404 and 409 are answers, 503 was surely not done, anything else
//! (504, a connection that broke, no answer in time) may have been, now or later. Clients never try again by
//! themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use actorum_testkit::history::{Answer, Call, History, Operation, Outcome};
use serde_json::Value;

use crate::rng::Rng;

/// How many keys there are: few enough that clients meet on them.
pub(crate) const KEYS: u64 = 24;
/// The deadline of a request.
const DEADLINE_MS: u64 = 1000;

/// What all clients write into.
pub(crate) struct Book {
    begun: Instant,
    pages: Mutex<Pages>,
    /// Whether reads are linearizable, as they should be.
    pub stale_reads: bool,
}

/// The history, and beside each operation what the checker does not need.
#[derive(Default)]
pub(crate) struct Pages {
    pub history: History<String, String>,
    pub notes: Vec<Note>,
    /// Answers that the API does not promise. There must be none.
    pub surprises: Vec<String>,
}

/// Beside an operation.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    /// Which node was asked.
    pub node: u64,
    /// When, since the start of the run.
    pub at: Duration,
    /// Where it stands in the log, if that was told.
    pub index: Option<u64>,
    /// What became of it, in the words of the HTTP client.
    pub words: String,
}

impl Book {
    /// Empty.
    pub(crate) fn new(stale_reads: bool) -> Arc<Book> {
        Arc::new(Book { begun: Instant::now(), pages: Mutex::default(), stale_reads })
    }

    /// To look into it.
    pub(crate) fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("no client panics while it writes")
    }

    /// Asks one thing of one node and writes down what came of it. Returns the value that is now known to be under
    /// the key, or nothing if the outcome is unknown or the request was refused.
    pub(crate) fn ask(
        &self,
        http: &Http,
        client: u64,
        node: (u64, &str),
        key: &str,
        call: Call<String>,
    ) -> Option<Option<String>> {
        let number = {
            let mut pages = self.pages();
            let at = self.begun.elapsed();
            pages.notes.push(Note { node: node.0, at, index: None, words: String::new() });
            pages.history.invoke(client, key.to_owned(), call.clone())
        };
        let told = http.send(node.1, key, &call, self.stale_reads);
        let mut pages = self.pages();
        let pages = &mut *pages;
        let note = &mut pages.notes[number];
        let value = |body: &Value, name: &str| body[name].as_str().map(str::to_owned);
        let (answer, now) = match &told {
            Ok((status, body)) => {
                note.index = body["index"].as_u64();
                note.words = format!("{status} {body}");
                match (status, &call) {
                    (200, Call::Get) => (Answer::Value(value(body, "value")), value(body, "value")),
                    (404, Call::Get) => (Answer::Value(None), None),
                    (200, Call::Put(new)) => (Answer::Replaced(value(body, "previous")), Some(new.clone())),
                    (200, Call::Delete) => (Answer::Replaced(value(body, "previous")), None),
                    (200, Call::CompareAndSet { value: new, .. }) => {
                        (Answer::Replaced(value(body, "previous")), new.clone())
                    }
                    (409, Call::CompareAndSet { .. }) => {
                        (Answer::Conflict(value(body, "current")), value(body, "current"))
                    }
                    (503, _) => {
                        pages.history.fail(number);
                        return None;
                    }
                    (504, _) => return None,
                    _ => {
                        pages.surprises.push(format!("{call} of {key} was answered {status}: {body}"));
                        return None;
                    }
                }
            }
            Err(Unanswered { sent, why }) => {
                note.words = why.clone();
                if !sent {
                    pages.history.fail(number);
                }
                return None;
            }
        };
        pages.history.answer(number, answer);
        Some(now)
    }
}

/// Nothing came back.
pub(crate) struct Unanswered {
    /// Whether anything may have left.
    sent: bool,
    why: String,
}

/// One HTTP connection per request: nothing can be sent twice.
pub(crate) struct Http(ureq::Agent);

impl Http {
    /// Whose requests end within this time.
    pub(crate) fn new(timeout: Duration) -> Http {
        let config =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(timeout)).proxy(None);
        Http(ureq::Agent::new_with_config(config.max_idle_connections(0).max_idle_connections_per_host(0).build()))
    }

    /// GET, and JSON.
    pub(crate) fn get(&self, url: &str) -> Result<(u16, Value), Unanswered> {
        read(self.0.get(url).call())
    }

    fn send(&self, node: &str, key: &str, call: &Call<String>, stale: bool) -> Result<(u16, Value), Unanswered> {
        let url = format!("{node}/kv/{key}?timeout_ms={DEADLINE_MS}");
        let expecting = |expect: &Option<String>| match expect {
            Some(value) => format!("{url}&expect={value}"),
            None => format!("{url}&expect_absent=true"),
        };
        read(match call {
            Call::Get if stale => self.0.get(format!("{url}&consistency=stale")).call(),
            Call::Get => self.0.get(url).call(),
            Call::Put(value) => self.0.put(url).send(value),
            Call::Delete => self.0.delete(url).call(),
            Call::CompareAndSet { expect, value: Some(value) } => self.0.put(expecting(expect)).send(value),
            Call::CompareAndSet { expect, value: None } => self.0.delete(expecting(expect)).call(),
        })
    }
}

fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(u16, Value), Unanswered> {
    let mut response = response.map_err(|e| {
        let refused = matches!(&e, ureq::Error::Io(io) if io.kind() == io::ErrorKind::ConnectionRefused);
        Unanswered { sent: !(refused || matches!(e, ureq::Error::ConnectionFailed)), why: e.to_string() }
    })?;
    let body = response.body_mut().read_to_vec().map_err(|e| Unanswered { sent: true, why: e.to_string() })?;
    Ok((response.status().as_u16(), serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

/// Clients that work until they are told to stop.
pub(crate) struct Clients {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Clients {
    /// So many, each with chance of its own, on these nodes.
    pub(crate) fn start(count: u64, rng: &mut Rng, book: &Arc<Book>, nodes: &[(u64, String)]) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |name| {
            let (rng, book, nodes, stop) = (rng.fork(), book.clone(), nodes.to_vec(), stop.clone());
            thread::spawn(move || work(name, rng, &book, &nodes, &stop))
        };
        Clients { threads: (1..=count).map(client).collect(), stop }
    }

    /// Waits until each has ended its last operation.
    pub(crate) fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client");
        }
    }
}

/// Clients do not outlive a run that fails.
impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(name: u64, mut rng: Rng, book: &Book, nodes: &[(u64, String)], stop: &AtomicBool) {
    let http = Http::new(Duration::from_millis(DEADLINE_MS + 700));
    let mut known: BTreeMap<String, Option<String>> = BTreeMap::new();
    let (mut at, mut number) = (rng.below(nodes.len() as u64) as usize, 0);
    while !stop.load(Ordering::Relaxed) {
        let key = format!("k{}", rng.below(KEYS));
        number += 1;
        // Of all values ever written, each is written by one operation.
        let fresh = format!("{name}-{number}");
        let call = match rng.below(20) {
            0..7 => Call::Get,
            7..12 => Call::Put(fresh),
            12..14 => Call::Delete,
            _ => {
                let expect = known.get(&key).cloned().flatten();
                let value = (rng.below(6) > 0).then_some(fresh);
                Call::CompareAndSet { expect, value }
            }
        };
        let (id, url) = &nodes[at];
        match book.ask(&http, name, (*id, url), &key, call) {
            Some(value) => {
                known.insert(key, value);
                // A user thinks; and goes to another node now and then.
                thread::sleep(Duration::from_millis(rng.below(20)));
                if rng.below(30) == 0 {
                    at = rng.below(nodes.len() as u64) as usize;
                }
            }
            None => {
                thread::sleep(Duration::from_millis(5 + rng.below(30)));
                at = (at + 1) % nodes.len();
            }
        }
    }
}

/// Sees who leads, by asking every node all the time.
pub(crate) struct Watchers {
    threads: Vec<JoinHandle<()>>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    /// Leaders by term.
    leaders: Mutex<BTreeMap<u64, BTreeSet<u64>>>,
    asked: AtomicU64,
}

impl Watchers {
    /// One per node.
    pub(crate) fn start(nodes: &[(u64, String)]) -> Watchers {
        let seen = Arc::new(Seen::default());
        let watch = |(id, url): &(u64, String)| {
            let (id, url, seen) = (*id, format!("{url}/status"), seen.clone());
            thread::spawn(move || {
                let http = Http::new(Duration::from_millis(500));
                while !seen.stop.load(Ordering::Relaxed) {
                    let told = http.get(&url);
                    seen.asked.fetch_add(1, Ordering::Relaxed);
                    if let Ok((200, status)) = told
                        && status["role"] == "leader"
                    {
                        let term = status["term"].as_u64().expect("a term");
                        seen.leaders.lock().expect("no watcher panics").entry(term).or_default().insert(id);
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            })
        };
        Watchers { threads: nodes.iter().map(watch).collect(), seen }
    }

    /// Whoever led last.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leaders = self.seen.leaders.lock().expect("no watcher panics");
        leaders.last_key_value().and_then(|(_, ids)| ids.first().copied())
    }

    /// Everyone who was seen leading, by term.
    pub(crate) fn leaders(&self) -> BTreeMap<u64, BTreeSet<u64>> {
        self.seen.leaders.lock().expect("no watcher panics").clone()
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Operations by what became of them.
pub(crate) fn outcomes(operations: &[Operation<String, String>]) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for operation in operations {
        let outcome = match &operation.outcome {
            Outcome::Answered { answer: Answer::Conflict(_), .. } => "conflict",
            Outcome::Answered { answer: Answer::Value(_), .. } => "read",
            Outcome::Answered { .. } => "written",
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        };
        *counts.entry(outcome).or_default() += 1;
    }
    counts
}
