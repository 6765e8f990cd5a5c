//! The seam under the store: an ordered key-value engine, and what every engine lends to the records in it.
//!
//! ```text
//!  apply ─▶ flush ─▶ sync ─▶ durable        scan, keys, last_before, get: everything applied, durable or not
//! ```
//!
//! Behind it stand sled and the simulator's disk. What is above it (records, plans, checks, the order in which
//! the watermark follows) is the same code for both.
//!
//! Deliberately absent: what the values mean, and threads.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, mpsc::sync_channel},
    thread,
    time::Duration,
};

use actorum_core::log::store::StoreError;
use actorum_machine::ids::GroupId;
use bytes::Bytes;

use super::{
    record::{self, Assembled, Assembly, Found, Key, RecordKind, Scan},
    store::OpenError,
};

/// One change: a value, or its removal.
pub type Change = (Key, Option<Vec<u8>>);

/// An ordered key-value engine. An error from it is final: nothing on the disk is known any more.
pub trait Engine: Send + Sync + 'static {
    /// Applies changes: later reads see all of them, and a crash leaves all or none.
    fn apply(&self, changes: Vec<Change>) -> Result<(), EngineError>;

    /// Hands what was applied to the kernel: it outlives the process, and is not durable yet.
    fn flush(&self) -> Result<(), EngineError>;

    /// Makes what was flushed durable: bytes, length, and the device's cache.
    fn sync(&self) -> Result<(), EngineError>;

    /// Gives every key and value, in the order of keys.
    fn each(&self, give: &mut dyn FnMut(&[u8], Bytes)) -> Result<(), EngineError>;

    /// The first keys in `[from, to)`, at most so many.
    fn keys(&self, from: Key, to: Key, max: usize) -> Result<Vec<Key>, EngineError>;

    /// The first values in `[from, to)`, as many as fit so many bytes and at least one.
    fn values(&self, from: Key, to: Key, max_bytes: usize) -> Result<Vec<(Key, Bytes)>, EngineError>;

    /// The last key before `key`; `None` as well when it is of no known form.
    fn last_before(&self, key: Key) -> Result<Option<Key>, EngineError>;

    /// One value.
    fn get(&self, key: Key) -> Result<Option<Bytes>, EngineError>;

    /// Bytes on disk, as far as the engine knows.
    fn disk_bytes(&self) -> u64;

    /// Whether a call may wait for a device.
    fn blocks(&self) -> bool {
        true
    }
}

/// Reads and checks every value.
pub(super) fn scan(engine: &impl Engine) -> Result<Found, EngineError> {
    let mut scan = Scan::new();
    engine.each(&mut |key, value| scan.push(key, value))?;
    Ok(scan.finish())
}

/// The last block of a group that begins before `index`.
pub(super) fn block_before(engine: &impl Engine, group: GroupId, index: u64) -> Result<Option<Assembled>, EngineError> {
    match engine.last_before(Key::block(group, index))? {
        Some(key) if key.group == group && key.kind == RecordKind::Block => record(engine, key.piece(0)),
        _ => Ok(None),
    }
}

/// One record, all its pieces checked.
pub(super) fn record(engine: &impl Engine, first: Key) -> Result<Option<Assembled>, EngineError> {
    let broken = |key: Key| move |detail| EngineError::Broken { what: key.to_string(), detail };
    let piece = |key: Key| -> Result<Option<record::Opened>, EngineError> {
        engine.get(key)?.map(|value| record::open(key, value).map_err(broken(key))).transpose()
    };
    let Some(opened) = piece(first)? else { return Ok(None) };
    let pieces = opened.pieces;
    let mut assembly = Assembly::begin(first, opened).map_err(broken(first))?;
    for number in 1..pieces {
        let key = first.piece(number);
        let Some(opened) = piece(key)? else { break };
        assembly.push(key, opened).map_err(broken(key))?;
    }
    assembly.finish().map(Some).map_err(broken(first))
}

/// Why the engine did not do as asked.
#[derive(Debug)]
pub enum EngineError {
    /// The filesystem refused.
    Io {
        /// What was being done.
        doing: String,
        /// The system's words.
        error: io::Error,
    },
    /// The engine, or a record in it, is broken.
    Broken {
        /// Which record or file.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// It panicked.
    Panicked(String),
}

impl EngineError {
    /// What is broken, and how.
    pub(super) fn into_words(self) -> (String, String) {
        match self {
            EngineError::Io { doing, error } => ("the log".to_owned(), format!("{doing} failed: {error}")),
            EngineError::Broken { what, detail } => (what, detail),
            EngineError::Panicked(panic) => ("the log".to_owned(), format!("the storage engine panicked: {panic}")),
        }
    }

    /// The same, as opening a directory says it.
    pub(super) fn on_open(self, dir: &Path) -> OpenError {
        let dir = dir.to_owned();
        match self {
            EngineError::Io { doing, error } => OpenError::Io { dir, doing, error },
            EngineError::Broken { what, detail } => OpenError::Damaged { dir, what, detail },
            EngineError::Panicked(panic) => {
                let detail = format!("the storage engine panicked: {panic}");
                OpenError::Damaged { dir, what: "the log".to_owned(), detail }
            }
        }
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> StoreError {
        match error {
            EngineError::Io { doing, error } => StoreError::Io { doing, error: Arc::new(error) },
            EngineError::Broken { what, detail } => StoreError::Damaged { what, detail },
            EngineError::Panicked(panic) => StoreError::Panicked(panic),
        }
    }
}

/// Runs something that may panic.
pub(super) fn caught<T>(run: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(StoreError::Panicked(words(panic))))
}

pub(super) fn words(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(words) => *words,
        Err(panic) => panic.downcast::<&str>().map_or("without words".to_owned(), |words| (*words).to_owned()),
    }
}

/// Runs something that may panic, or never come back, on a thread of its own.
pub(super) fn within_time<T: Send + 'static>(
    name: &str,
    within: Duration,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<Result<T, String>, String> {
    let (done, result) = sync_channel(1);
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = done.send(catch_unwind(AssertUnwindSafe(run)).map_err(words));
    });
    spawned.map_err(|error| format!("no thread for it: {error}"))?;
    result.recv_timeout(within).map_err(|_| format!("no answer within {} s", within.as_secs()))
}
