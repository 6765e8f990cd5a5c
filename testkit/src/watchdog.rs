//! Ends a run in which virtual time stands still for too long in real time.
//!
//! ```text
//!  the run's thread: events, turns ──▶ the last virtual moment that was seen
//!                                            ▲
//!  a thread of its own ── looks, now and then┘ the same for too long: the run is broken, its clients are aborted
//! ```
//!
//! Virtual time moves only while every task waits. A client that is always ready stops virtual time, and no task of the
//! run could notice it, since a task that waits for virtual time waits for ever. So this one thread uses real time. It
//! changes nothing in a run whose virtual time moves, and a process that was suspended has not stood still: looks are
//! counted, not seconds.
//!
//! Deliberately absent: ending a thread that never comes back from a client's own code.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use tokio::task::AbortHandle;

use super::world::World;

/// How often it looks, in real time.
const LOOKS_EVERY: Duration = Duration::from_millis(100);

/// Looks until it is dropped.
pub(crate) struct Watchdog(#[expect(dead_code, reason = "its drop ends the thread")] mpsc::Sender<()>);

impl Watchdog {
    /// Breaks the run of this world when virtual time stands still for so long in real time, and aborts these clients.
    pub(super) fn watch(world: World, clients: Vec<AbortHandle>, standstill: Duration) -> Watchdog {
        let (guard, dropped) = mpsc::channel();
        let bound = standstill.as_millis() / LOOKS_EVERY.as_millis();
        let looks = move || {
            let (mut seen, mut same) = (None, 0);
            while dropped.recv_timeout(LOOKS_EVERY) == Err(RecvTimeoutError::Timeout) {
                let now = world.last_seen_ms();
                same = if seen == Some(now) { same + 1 } else { 0 };
                seen = Some(now);
                if same > bound {
                    world.stood_still(now, standstill);
                    return clients.iter().for_each(AbortHandle::abort);
                }
            }
        };
        std::thread::Builder::new().name("watchdog".into()).spawn(looks).expect("a thread can be started");
        Watchdog(guard)
    }
}
