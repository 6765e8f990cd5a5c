//! A node's clocks: virtual time at a rate of its own, that stand still while the node is paused.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use actorum_actors::clock::{Alarm, Clock};
use tokio::time::sleep;

use super::scheduler::Scheduler;

/// Calendar time at the beginning of every simulation.
const BEGINNING: Duration = Duration::from_secs(1_800_000_000);

/// One node's clocks. Clones are the same clocks.
#[derive(Clone)]
pub(crate) struct NodeClock {
    scheduler: Scheduler,
    state: Arc<Mutex<State>>,
}

struct State {
    /// In thousandths of virtual time: 900 to 1,100.
    rate: u64,
    /// What this clock showed at the virtual moment `since`.
    shown: Duration,
    since: Duration,
    paused: bool,
    /// How far the calendar is off, in milliseconds.
    skew_ms: i64,
}

impl NodeClock {
    pub(crate) fn new(scheduler: &Scheduler, rate: u64, skew_ms: i64) -> NodeClock {
        let state = State { rate, shown: Duration::ZERO, since: scheduler.now(), paused: false, skew_ms };
        NodeClock { scheduler: scheduler.clone(), state: Arc::new(Mutex::new(state)) }
    }

    /// The process stands still, and what it sees of the clock with it.
    pub(crate) fn pause(&self) {
        self.change(|state| state.paused = true);
    }

    /// The process goes on: the clock ran meanwhile, but the process did not read it.
    pub(crate) fn resume(&self) {
        let now = self.scheduler.now();
        let mut state = self.lock();
        if state.paused {
            state.paused = false;
            let stood_still = now.saturating_sub(state.since);
            state.shown += stood_still;
            state.since = now;
        }
    }

    /// The calendar jumps.
    pub(crate) fn skew(&self, ms: i64) {
        self.lock().skew_ms = ms;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let now = self.scheduler.now();
        let mut state = self.lock();
        state.shown = state.at(now);
        state.since = now;
        change(&mut state);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn at(&self, now: Duration) -> Duration {
        match self.paused {
            true => self.shown,
            false => self.shown + now.saturating_sub(self.since) * self.rate as u32 / 1000,
        }
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Duration {
        self.lock().at(self.scheduler.now())
    }

    fn wall(&self) -> SystemTime {
        let state = self.lock();
        let shown = state.at(self.scheduler.now()).as_millis() as i64 + state.skew_ms;
        SystemTime::UNIX_EPOCH + BEGINNING + Duration::from_millis(shown.max(0) as u64)
    }

    /// In virtual time, by this clock: it has a rate of its own, and may stand still meanwhile.
    fn alarm(&self, at: Duration) -> Alarm {
        const LEAST: Duration = Duration::from_millis(1);
        let clock = self.clone();
        Box::pin(async move {
            while clock.now() < at {
                sleep(at.saturating_sub(clock.now()).max(LEAST)).await;
            }
        })
    }
}
