//! Time and dice come in from outside: the seam that lets a whole node run in a simulation.

#![allow(clippy::disallowed_methods, reason = "this is the seam: the one place that asks the machine")]

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// A source of time. Everything that decides asks this and nothing else.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment; never runs backwards.
    fn now(&self) -> Duration;

    /// The calendar time, for the stamps in the log. May jump.
    fn wall(&self) -> SystemTime;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose zero is now.
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(SystemClock { origin: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
