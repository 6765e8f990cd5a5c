//! Mistakes in the use of an engine that a build with the feature `planted` can make: the commit itself knows nothing
//! of them.
//!
//! Without that feature every call is the engine's own.

use actorum_core::planted::{self, Planted};
use bytes::Bytes;

use crate::log::{
    engine::{Change, Engine, EngineError},
    record::{Key, RecordKind},
};

/// An engine as somebody mistaken uses it.
pub(super) struct Mistaken<E>(pub(super) E);

impl<E: Engine> Engine for Mistaken<E> {
    fn apply(&self, changes: Vec<Change>) -> Result<(), EngineError> {
        if planted::is(Planted::NotAtomic) {
            let (state, rest): (Vec<_>, Vec<_>) =
                changes.into_iter().partition(|(key, _)| key.kind == RecordKind::HardState);
            self.0.apply(state)?;
            return self.0.apply(rest);
        }
        self.0.apply(changes)
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.0.flush()
    }

    fn sync(&self) -> Result<(), EngineError> {
        let synced = self.0.sync();
        if planted::is(Planted::SyncErrorIgnored) { Ok(()) } else { synced }
    }

    fn each(&self, give: &mut dyn FnMut(&[u8], Bytes)) -> Result<(), EngineError> {
        self.0.each(give)
    }

    fn keys(&self, from: Key, to: Key, max: usize) -> Result<Vec<Key>, EngineError> {
        self.0.keys(from, to, max)
    }

    fn values(&self, from: Key, to: Key, max_bytes: usize) -> Result<Vec<(Key, Bytes)>, EngineError> {
        self.0.values(from, to, max_bytes)
    }

    fn last_before(&self, key: Key) -> Result<Option<Key>, EngineError> {
        self.0.last_before(key)
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>, EngineError> {
        self.0.get(key)
    }

    fn disk_bytes(&self) -> u64 {
        self.0.disk_bytes()
    }

    fn blocks(&self) -> bool {
        self.0.blocks()
    }
}

#[cfg(all(test, feature = "planted"))]
#[path = "mistaken_tests.rs"]
mod tests;
