//! The operations of clients of a key-value store and their results: the input of the
//! [linearizability](super::linearizability) checker.
//!
//! ```text
//!  client 1   |--- put a ---|  |-- get: a --|
//!  client 2        |------ put b, unknown ------------------------ ...
//!             time ────────────────────────────────────────────────▶
//! ```
//!
//! An operation is open from the instant it was invoked until the instant it was answered. An operation without an
//! answer is open for ever: it may take effect at any later point, or never.
//!
//! Deliberately absent: clocks. Instants are numbers of one monotonic clock shared by all clients; [`History`]
//! counts events, which is exact, and any other clock will do as well.

use std::fmt::{self, Debug, Display};

/// One operation of one client on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<K, V> {
    /// The client. It is only printed: a client without an answer may go on with another operation.
    pub client: u64,
    /// On which key.
    pub key: K,
    /// What was asked for.
    pub call: Call<V>,
    /// When it was sent: before this instant it had no effect.
    pub invoked: u64,
    /// What became of it.
    pub outcome: Outcome<V>,
}

/// What a client can ask for. Absence is a value like any other: `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call<V> {
    /// Read.
    Get,
    /// Write, whatever is there.
    Put(V),
    /// Remove, whatever is there.
    Delete,
    /// Write `value` if `expect` is there. `None` to expect nothing there, `None` to remove.
    CompareAndSet {
        /// What must be found.
        expect: Option<V>,
        /// What is then written.
        value: Option<V>,
    },
}

/// The result of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<V> {
    /// The store answered.
    Answered {
        /// When the answer arrived, on the clock of `invoked`. Operations that share an instant count as concurrent.
        at: u64,
        /// What it said.
        answer: Answer<V>,
    },
    /// It surely had no effect, and never will.
    Failed,
    /// The outcome is unknown: it may take effect at any instant after `invoked`, or never.
    Unknown,
}

/// What the store said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<V> {
    /// To a get: this is there.
    Value(Option<V>),
    /// To a write: it took effect, and no more is known.
    Done,
    /// To a write: it took effect, and this was there before. Sees much more than [`Answer::Done`].
    Replaced(Option<V>),
    /// To a compare-and-set: nothing was changed, since this is there.
    Conflict(Option<V>),
}

/// Operations as they happen, with the number of the event as the instant.
///
/// Shared between threads behind a mutex it stays exact: [`invoke`](History::invoke) before anything is sent,
/// [`answer`](History::answer) after the answer was read.
///
/// ```
/// use actorum_testkit::{history::{Answer, Call, History}, linearizability::check};
///
/// let mut history = History::new();
/// let put = history.invoke(1, "k", Call::Put("a"));
/// let get = history.invoke(2, "k", Call::Get);
/// history.answer(put, Answer::Replaced(None));
/// history.answer(get, Answer::Value(None)); // they were concurrent: the get may have come first
/// assert!(check(history.operations()).is_linearizable());
///
/// let late = history.invoke(2, "k", Call::Get);
/// history.answer(late, Answer::Value(None)); // now it may not
/// let verdict = check(history.operations());
/// assert!(!verdict.is_linearizable());
/// println!("{verdict}");
/// ```
#[derive(Clone, Debug)]
pub struct History<K, V> {
    operations: Vec<Operation<K, V>>,
    events: u64,
}

impl<K, V> History<K, V> {
    /// Nothing happened yet.
    pub fn new() -> History<K, V> {
        History { operations: Vec::new(), events: 0 }
    }

    /// An operation is about to be sent. The number names it; its outcome is unknown until it is recorded.
    pub fn invoke(&mut self, client: u64, key: K, call: Call<V>) -> usize {
        let invoked = self.tick();
        self.operations.push(Operation { client, key, call, invoked, outcome: Outcome::Unknown });
        self.operations.len() - 1
    }

    /// Its answer arrived.
    ///
    /// # Panics
    ///
    /// When the number names no operation, or one whose outcome was told before.
    pub fn answer(&mut self, operation: usize, answer: Answer<V>) {
        let at = self.tick();
        self.end(operation, Outcome::Answered { at, answer });
    }

    /// It surely had no effect. Panics as [`answer`](History::answer) does.
    pub fn fail(&mut self, operation: usize) {
        self.end(operation, Outcome::Failed);
    }

    /// What was recorded, in the order of invocation.
    pub fn operations(&self) -> &[Operation<K, V>] {
        &self.operations
    }

    fn end(&mut self, operation: usize, outcome: Outcome<V>) {
        let recorded = &mut self.operations[operation].outcome;
        assert!(matches!(recorded, Outcome::Unknown), "operation {operation} ended before");
        *recorded = outcome;
    }

    fn tick(&mut self) -> u64 {
        self.events += 1;
        self.events
    }
}

impl<K, V> Default for History<K, V> {
    fn default() -> Self {
        History::new()
    }
}

/// `c3 [17..19] put "b": replaced "a"`.
impl<K, V: Debug> Display for Operation<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Answered { at, answer } => {
                write!(f, "c{} [{}..{at}] {}: {answer}", self.client, self.invoked, self.call)
            }
            Outcome::Failed => write!(f, "c{} [{}..] {}: failed, no effect", self.client, self.invoked, self.call),
            Outcome::Unknown => write!(f, "c{} [{}..] {}: unknown", self.client, self.invoked, self.call),
        }
    }
}

impl<V: Debug> Display for Call<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Get => f.write_str("get"),
            Call::Put(value) => write!(f, "put {value:?}"),
            Call::Delete => f.write_str("delete"),
            Call::CompareAndSet { expect, value } => {
                write!(f, "compare-and-set {} to {}", Shown(expect), Shown(value))
            }
        }
    }
}

impl<V: Debug> Display for Answer<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Value(value) => write!(f, "{}", Shown(value)),
            Answer::Done => f.write_str("done"),
            Answer::Replaced(value) => write!(f, "replaced {}", Shown(value)),
            Answer::Conflict(value) => write!(f, "conflict with {}", Shown(value)),
        }
    }
}

/// A value or its absence.
struct Shown<'a, V>(&'a Option<V>);

impl<V: Debug> Display for Shown<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value:?}"),
            None => f.write_str("nothing"),
        }
    }
}
