//! The scheduler: one queue of what happens at which virtual moment, for the whole simulation.
//!
//! ```text
//!  at(moment, deed) ─▶ ordered by (moment, order of asking) ─▶ one task sleeps until the first, does all that are due
//! ```
//!
//! tokio's own timers do not promise an order between two that are due together; this does. The clock below is tokio's,
//! paused: it jumps to the next timer whenever every task waits.
//!
//! Queue: bounded by what the wire and the disks let be under way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

type Deed = Box<dyn FnOnce() + Send>;

/// Deeds by moment and number, and the number of the last one asked for.
#[derive(Default)]
struct Due {
    deeds: BTreeMap<(u64, u64), Deed>,
    asked: u64,
}

/// Deeds by the moment they are due. Clones are the same scheduler.
#[derive(Clone)]
pub(crate) struct Scheduler(Arc<Inner>);

struct Inner {
    origin: Instant,
    due: Mutex<Due>,
    sooner: Notify,
}

impl Scheduler {
    /// Must be called inside the simulation's runtime: its now is zero.
    pub(crate) fn new() -> Scheduler {
        Scheduler(Arc::new(Inner { origin: Instant::now(), due: Mutex::default(), sooner: Notify::new() }))
    }

    /// Virtual milliseconds since the beginning.
    pub(crate) fn now_ms(&self) -> u64 {
        self.0.origin.elapsed().as_millis() as u64
    }

    /// Virtual time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.0.origin.elapsed()
    }

    /// Does this after so long; in the order of asking among those due together.
    pub(crate) fn after_ms(&self, ms: u64, deed: impl FnOnce() + Send + 'static) {
        let moment = self.now_ms() + ms;
        let mut due = self.lock();
        due.asked += 1;
        let key = (moment, due.asked);
        let first = due.deeds.first_key_value().is_none_or(|(first, _)| key < *first);
        due.deeds.insert(key, Box::new(deed));
        drop(due);
        if first {
            self.0.sooner.notify_one();
        }
    }

    /// Nothing of it is done any more.
    pub(crate) fn clear(&self) {
        // Dropped outside the lock: a deed may hold what holds this scheduler.
        let deeds = std::mem::take(&mut self.lock().deeds);
        drop(deeds);
    }

    /// Keeps the scheduler; ends never.
    pub(crate) async fn keep(self) {
        loop {
            let next = self.lock().deeds.first_key_value().map(|((moment, _), _)| *moment);
            let now = self.now_ms();
            match next {
                Some(moment) if moment <= now => {
                    let deed = self.lock().deeds.pop_first().map(|(_, deed)| deed);
                    deed.into_iter().for_each(|deed| deed());
                }
                Some(moment) => {
                    let moment = self.0.origin + Duration::from_millis(moment);
                    tokio::select! {
                        biased;
                        () = self.0.sooner.notified() => {}
                        () = sleep_until(moment) => {}
                    }
                }
                None => self.0.sooner.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Due> {
        self.0.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
