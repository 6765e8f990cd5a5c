//! The mistakes in the use of an engine are made when they are planted: only in a build that has them.

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
