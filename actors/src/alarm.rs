//! Alarms: futures that end at a moment, on whatever runtime, kept by one thread of this process.
//!
//! ```text
//!  poll ─▶ [ alarms by moment ] ─▶ a thread that sleeps until the first ─▶ wakes its task
//! ```
//!
//! A deadline must be kept even while the thread of the actors is busy with the application's code, and for callers
//! whose runtime has no timer. So a separate thread keeps it. The thread begins with the first alarm and ends with the
//! process.
//!
//! Its queue is bounded by the number of waiting callers: an alarm that is dropped leaves it. Deliberately absent:
//! simulations. Their clocks keep their own alarms, see [`Clock::alarm`](crate::clock::Clock::alarm).

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "part of the seam to the machine's clocks")]

use std::{
    collections::BTreeMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

/// Ends at its moment.
#[derive(Debug)]
pub struct ThreadAlarm {
    /// `None`: so far away that no clock gets there.
    at: Option<Instant>,
    /// Its number among those that wait, once it does.
    number: Option<u64>,
}

impl ThreadAlarm {
    /// Ends after so long, counted from now.
    pub fn after(wait: Duration) -> ThreadAlarm {
        ThreadAlarm { at: Instant::now().checked_add(wait), number: None }
    }
}

impl Future for ThreadAlarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        if Instant::now() >= at {
            return Poll::Ready(());
        }
        let mut waiting = KEEPER.lock();
        let number = *self.number.get_or_insert_with(|| {
            waiting.numbers += 1;
            waiting.numbers
        });
        waiting.alarms.insert((at, number), context.waker().clone());
        // The thread already sleeps until an earlier alarm, and looks again then, so it need not be woken.
        if waiting.looks_at.is_none_or(|looks_at| at < looks_at) {
            waiting.looks_at = Some(at);
            KEEPER.sooner.notify_one();
        }
        drop(waiting);
        KEEPER.runs();
        Poll::Pending
    }
}

impl Drop for ThreadAlarm {
    fn drop(&mut self) {
        if let (Some(at), Some(number)) = (self.at, self.number) {
            KEEPER.lock().alarms.remove(&(at, number));
        }
    }
}

static KEEPER: Keeper =
    Keeper { waiting: Mutex::new(Waiting::new()), sooner: Condvar::new(), started: OnceLock::new() };

struct Keeper {
    waiting: Mutex<Waiting>,
    sooner: Condvar,
    started: OnceLock<()>,
}

struct Waiting {
    alarms: BTreeMap<(Instant, u64), Waker>,
    numbers: u64,
    /// When the thread looks again by itself; `None` if never.
    looks_at: Option<Instant>,
}

impl Waiting {
    const fn new() -> Waiting {
        Waiting { alarms: BTreeMap::new(), numbers: 0, looks_at: None }
    }

    fn take_due(&mut self, now: Instant) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(first) = self.alarms.first_entry().filter(|first| first.key().0 <= now) {
            due.push(first.remove());
        }
        due
    }
}

impl Keeper {
    fn runs(&'static self) {
        self.started.get_or_init(|| {
            let keep = move || self.keep();
            if let Err(error) = thread::Builder::new().name("actorum-alarms".into()).spawn(keep) {
                tracing::error!(%error, "no thread keeps deadlines: requests wait until they are answered");
            }
        });
    }

    fn keep(&self) {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            let due = waiting.take_due(now);
            if !due.is_empty() {
                drop(waiting);
                // Wakers run without the lock, whatever they do.
                for waker in due {
                    // A waker that panics must not end the deadlines of others.
                    let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
                }
                waiting = self.lock();
                continue;
            }
            waiting.looks_at = waiting.alarms.first_key_value().map(|((at, _), _)| *at);
            waiting = match waiting.looks_at {
                Some(at) => {
                    let slept = self.sooner.wait_timeout(waiting, at.saturating_duration_since(now));
                    slept.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.sooner.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// No code panics while it holds this lock, so a poisoned lock is still consistent.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::{join_all, select};

    use super::*;

    /// Without any runtime: this thread parks until it is woken.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        struct Unpark(thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            thread::park();
        }
    }

    #[test]
    fn alarms_ring_in_any_order_of_asking_and_never_early() {
        let begun = Instant::now();
        let ring = |ms: u64| async move {
            ThreadAlarm::after(Duration::from_millis(ms)).await;
            assert!(begun.elapsed() >= Duration::from_millis(ms));
        };
        block_on(join_all([60, 20, 0, 40, 20].map(ring)));
    }

    #[test]
    fn an_alarm_that_is_dropped_leaves_nothing_behind_and_one_too_far_away_never_rings() {
        let sooner = ThreadAlarm::after(Duration::from_millis(5));
        let mut later = Some(ThreadAlarm::after(Duration::from_secs(3600)));
        let never = ThreadAlarm::after(Duration::MAX);
        block_on(select(select(sooner, never), later.as_mut().unwrap()));
        let later = later.take().unwrap();
        let key = (later.at.unwrap(), later.number.unwrap());
        assert!(KEEPER.lock().alarms.contains_key(&key));
        drop(later);
        assert!(!KEEPER.lock().alarms.contains_key(&key));
    }
}
