//! Faults for the log of a real directory, as a decorator: the store of sled knows nothing of them.
//!
//! ```text
//!  SledStore ─▶ Committer ─▶ Faulty<SledEngine> ─▶ SledEngine   sync: done, or left out
//!      └──────▶ Rewriter ──▶ FaultySteps ────────▶ Generations  make, sync, complete, switch, remove: seen, or refused
//!                  └─ copy ▶ Faulty<SledEngine> ─▶ SledEngine   slice, rest: seen, or refused
//! ```
//!
//! A step of a rewriting is one call of `Renew`, or what the copy asks of its engine until it
//! syncs. Only tests and the builds for them have this file (the feature `faults`).
//!
//! Deliberately absent: faults of a device, and loss of power: see `simulated`.

use std::{
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::{
    engine::{Change, Engine, EngineError},
    record::{Key, RecordKind},
    rewrite::Renew,
    sled::{Engines, Generations, OpenOptions, SledEngine, SledStore},
    store::OpenError,
};

/// The steps of a rewriting, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RewriteStep {
    /// The new directory and the engine in it are made.
    Make,
    /// A slice of blocks is copied.
    Slice,
    /// Everything but blocks is copied. All blocks are copied by then, and were compared with the log.
    Rest,
    /// The new engine's files and their names are made durable.
    Sync,
    /// The new generation is made to count.
    Complete,
    /// Readers and commits switch to the new engine, which is the log already: if this fails, the old engine must not
    /// be used.
    Switch,
    /// The old engine is closed and its directory removed; or a new one that was given up. Where this fails the
    /// directory stays.
    Remove,
}

/// Whether what is reported durable is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncPolicy {
    /// As in every normal build.
    #[default]
    Always,
    /// The engine's own flush alone: loses acknowledged writes at a power cut.
    FlushOnly,
}

/// Asked before each step of a rewriting, on the store's thread: an error is that step's error. It must not write to
/// the store.
pub type AskStep = Arc<dyn Fn(RewriteStep) -> io::Result<()> + Send + Sync>;

/// What goes wrong with a log. The default: nothing.
#[derive(Clone, Default)]
pub struct Faults {
    /// Whether the engine syncs at all.
    pub sync: SyncPolicy,
    /// Whether a step of a rewriting happens. `None`: all do.
    pub ask: Option<AskStep>,
}

impl Faults {
    /// Opens the store of a directory, as [`SledStore::open`] does, with these faults.
    pub fn open(self, dir: &Path, options: OpenOptions) -> Result<SledStore<Faulty<SledEngine>>, OpenError> {
        SledStore::open_with(dir, options, Arc::new(self))
    }

    fn ask(&self, step: RewriteStep) -> Result<(), EngineError> {
        let asked = self.ask.as_ref().map_or(Ok(()), |ask| ask(step));
        asked.map_err(|error| EngineError::Io { doing: format!("{step:?}"), error })
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("sync", &self.sync).field("ask", &self.ask.is_some()).finish()
    }
}

impl Engines<Faulty<SledEngine>> for Faults {
    fn open(&self, path: &Path, options: &OpenOptions) -> Result<Faulty<SledEngine>, EngineError> {
        let engine = SledEngine::open(path, options)?;
        Ok(Faulty { engine, faults: self.clone(), copying: Mutex::new(Copying::NotFilling) })
    }

    fn renew(&self, generations: Generations<Faulty<SledEngine>>) -> Box<dyn Renew<Faulty<SledEngine>>> {
        Box::new(FaultySteps { renew: generations, faults: self.clone(), counts: false })
    }
}

/// An engine with faults.
pub struct Faulty<E> {
    engine: E,
    faults: Faults,
    copying: Mutex<Copying>,
}

/// How far an engine is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copying {
    /// It is not being filled: it is a log, or complete.
    NotFilling,
    /// Nothing was copied into it since it was made or synced.
    Empty,
    /// A slice is being copied into it.
    Filling,
}

impl<E> Faulty<E> {
    /// Asks about a step, if the engine is being filled and that step begins now.
    fn begin(&self, step: RewriteStep) -> Result<(), EngineError> {
        let mut copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = match (*copying, step) {
            (Copying::Empty, RewriteStep::Slice) => Some(Copying::Filling),
            (Copying::Empty | Copying::Filling, RewriteStep::Rest) => Some(Copying::NotFilling),
            _ => None,
        };
        let Some(next) = begins else { return Ok(()) };
        *copying = next;
        drop(copying);
        self.faults.ask(step)
    }
}

impl<E: Engine> Engine for Faulty<E> {
    fn apply(&self, changes: Vec<Change>) -> Result<(), EngineError> {
        if changes.iter().any(|(key, _)| key.kind != RecordKind::Block) {
            self.begin(RewriteStep::Rest)?;
        } else if !changes.is_empty() {
            self.begin(RewriteStep::Slice)?;
        }
        self.engine.apply(changes)
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.engine.flush()
    }

    fn sync(&self) -> Result<(), EngineError> {
        let mut copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        if *copying == Copying::Filling {
            *copying = Copying::Empty;
        }
        drop(copying);
        match self.faults.sync {
            SyncPolicy::Always => self.engine.sync(),
            SyncPolicy::FlushOnly => Ok(()),
        }
    }

    fn each(&self, give: &mut dyn FnMut(&[u8], Bytes)) -> Result<(), EngineError> {
        self.engine.each(give)
    }

    fn keys(&self, from: Key, to: Key, max: usize) -> Result<Vec<Key>, EngineError> {
        // Of an engine that is being filled, a slice asks alone, whether or not it copies anything.
        self.begin(RewriteStep::Slice)?;
        self.engine.keys(from, to, max)
    }

    fn values(&self, from: Key, to: Key, max_bytes: usize) -> Result<Vec<(Key, Bytes)>, EngineError> {
        self.engine.values(from, to, max_bytes)
    }

    fn last_before(&self, key: Key) -> Result<Option<Key>, EngineError> {
        self.engine.last_before(key)
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(key)
    }

    fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes()
    }

    fn blocks(&self) -> bool {
        self.engine.blocks()
    }
}

impl<E> fmt::Debug for Faulty<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("faults", &self.faults).finish_non_exhaustive()
    }
}

/// The steps of a rewriting, with faults.
struct FaultySteps<R> {
    renew: R,
    faults: Faults,
    /// Whether the new engine counts, though completing it was said to have failed: nothing takes that back.
    counts: bool,
}

impl<E: Engine, R: Renew<Faulty<E>>> Renew<Faulty<E>> for FaultySteps<R> {
    fn make(&mut self) -> Result<Faulty<E>, EngineError> {
        self.faults.ask(RewriteStep::Make)?;
        Ok(Faulty { copying: Mutex::new(Copying::Empty), ..self.renew.make()? })
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.faults.ask(RewriteStep::Sync)?;
        self.renew.sync()
    }

    fn complete(&mut self) -> Result<(), EngineError> {
        self.faults.ask(RewriteStep::Complete)?;
        self.renew.complete()?;
        let switched = self.faults.ask(RewriteStep::Switch);
        self.counts = switched.is_err();
        switched
    }

    fn uncomplete(&mut self) -> Result<(), EngineError> {
        if self.counts {
            let (doing, error) = ("giving up what counts already".to_owned(), io::Error::other("as the test wants it"));
            return Err(EngineError::Io { doing, error });
        }
        self.renew.uncomplete()
    }

    fn switched(&mut self) {
        self.renew.switched();
    }

    fn remove(&mut self) -> Box<dyn FnOnce() + Send> {
        let remove = self.renew.remove();
        match self.faults.ask(RewriteStep::Remove) {
            Ok(()) => remove,
            Err(_) => Box::new(|| {}),
        }
    }

    fn room(&self) -> Option<u64> {
        self.renew.room()
    }

    fn is_short(&self) -> bool {
        self.renew.is_short()
    }

    fn watches(&self) -> bool {
        self.renew.watches()
    }

    fn log_waits_for(&self, needed: u64) {
        self.renew.log_waits_for(needed);
    }

    fn reserve(&self) -> u64 {
        self.renew.reserve()
    }

    fn lend(&self) -> Option<Box<dyn Send>> {
        self.renew.lend()
    }

    fn make_room(&self) -> Option<Box<dyn Send>> {
        self.renew.make_room()
    }
}

#[cfg(test)]
mod tests {
    use actorum_machine::ids::Incarnation;

    use super::*;

    /// A file without a name is what a sync finds, if there is one.
    #[test]
    fn flush_only_leaves_out_the_sync() {
        for (sync, leaves_out) in [(SyncPolicy::Always, false), (SyncPolicy::FlushOnly, true)] {
            let dir = tempfile::tempdir().unwrap();
            let faults = Faults { sync, ..Faults::default() };
            let engine = Engines::open(&faults, dir.path(), &OpenOptions::new(1, Incarnation(7))).unwrap();
            engine.apply(vec![(Key::OWNER, Some(vec![1]))]).unwrap();
            engine.flush().unwrap();
            std::fs::remove_file(dir.path().join("db")).unwrap();
            assert_eq!(engine.sync().is_ok(), leaves_out, "{sync:?}");
        }
    }
}
