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
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use actorum_core::log::store::HardState;
    use actorum_machine::ids::Incarnation;

    use super::*;
    use crate::{
        log::{
            simulated::{DiskStep, SimulatedDisk},
            store::{Batch, Completed, Write},
        },
        simulated::{Decide, Decision},
    };

    /// Notes the steps; a sync fails once the store is open.
    #[derive(Default)]
    struct Notes(Mutex<(Vec<DiskStep>, bool)>);

    impl Decide<DiskStep> for Notes {
        fn step(&self, step: DiskStep) -> Decision {
            let mut notes = self.0.lock().unwrap();
            notes.0.push(step);
            match step == DiskStep::Sync && notes.1 {
                true => Decision::Fail(io::ErrorKind::Other, "bad sector".to_owned()),
                false => Decision::Go,
            }
        }
    }

    /// How often one batch was applied, and whether it was reported durable though its sync failed.
    fn one_batch(mistake: Option<Planted>) -> (usize, bool) {
        planted::plant(mistake);
        let notes = Arc::new(Notes::default());
        let store = SimulatedDisk::new(notes.clone()).open(1, Incarnation(7)).unwrap();
        let heard = Arc::new(Mutex::new(None));
        let hears = heard.clone();
        let completed = move |completed: Completed| *hears.lock().unwrap() = Some(completed.result.is_ok());
        let mut log = store.start(Arc::new(completed));
        *notes.0.lock().unwrap() = (Vec::new(), true);
        let hard_state = Some(HardState { term: 2, vote: 1, commit: 0 });
        log.submit(Batch { writes: vec![Write { hard_state, ..Write::default() }], sync: true });
        planted::plant(None);
        let applied = notes.0.lock().unwrap().0.iter().filter(|step| **step == DiskStep::Apply).count();
        (applied, heard.lock().unwrap().expect("it is reported"))
    }

    /// One test, for what is planted is planted in the whole process.
    #[test]
    fn each_mistake_is_made_when_it_is_planted() {
        assert_eq!(one_batch(None), (1, false));
        assert_eq!(one_batch(Some(Planted::NotAtomic)), (2, false));
        assert_eq!(one_batch(Some(Planted::SyncErrorIgnored)), (1, true));
    }
}
