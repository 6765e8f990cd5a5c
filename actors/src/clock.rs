//! Time and random numbers come in from outside: the seam that lets a whole node run in a simulation.

#![allow(clippy::disallowed_methods, reason = "this is the seam: the one place that asks the machine")]

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::alarm::ThreadAlarm;

/// Ends when a clock has come to a moment.
pub type Alarm = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A source of time. All code that makes decisions by time asks this and nothing else.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment; never runs backwards.
    fn now(&self) -> Duration;

    /// The calendar time, for the stamps in the log. May jump.
    fn wall(&self) -> SystemTime;

    /// Ends once [`now`](Clock::now) has come to this moment, on whatever runtime it is awaited.
    ///
    /// A separate thread keeps it, unless a clock whose time is not the machine's does it in another way.
    fn alarm(&self, at: Duration) -> Alarm {
        Box::pin(ThreadAlarm::after(at.saturating_sub(self.now())))
    }
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
