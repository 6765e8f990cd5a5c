//! How fast pieces are sent, and how much is asked for at once. Pure: both sides use it, and pass the time.

use std::time::Duration;

/// Limits what is sent to a rate.
#[derive(Debug, Default)]
pub(super) struct RateLimiter {
    /// When the next piece may leave.
    next: Duration,
}

impl RateLimiter {
    /// How long so many bytes have to wait for a rate in bytes per second, zero for none. `None`, and no place is
    /// taken, if that is longer than they may.
    pub(super) fn wait(&mut self, now: Duration, bytes: u32, rate: u64, at_most: Duration) -> Option<Duration> {
        if rate == 0 {
            return Some(Duration::ZERO);
        }
        let at = self.next.max(now);
        if at - now > at_most {
            return None;
        }
        self.next = at + Duration::from_secs_f64(f64::from(bytes) / rate as f64);
        Some(at - now)
    }
}

/// The smallest piece that is asked for.
const SMALLEST: u32 = 16 << 10;

/// How large a piece to ask for, and how many at once, so that each piece arrives well within its time even on a slow
/// link: a piece that is not complete by then was sent for nothing.
#[derive(Debug)]
pub(super) struct FetchWindow {
    /// Bytes of a piece.
    pub piece: u32,
    /// Pieces asked for at once.
    pub window: usize,
    largest: (u32, usize),
}

impl FetchWindow {
    /// Begins with the largest: most links are fast.
    pub(super) fn new(piece: u32, window: usize) -> FetchWindow {
        FetchWindow { piece, window, largest: (piece, window) }
    }

    /// A piece came, or did not, after so long of the time that it may take.
    pub(super) fn took(&mut self, time: Duration, within: Duration, came: bool) {
        if time > within / 4 {
            // The window shrinks first: with fewer pieces at once each of them is faster, and nothing is lost.
            match self.window {
                1 => self.piece = (self.piece / 2).max(SMALLEST.min(self.largest.0)),
                _ => self.window /= 2,
            }
        } else if came && time < within / 16 {
            match self.piece == self.largest.0 {
                true => self.window = (self.window + 1).min(self.largest.1),
                false => self.piece = (self.piece * 2).min(self.largest.0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn pieces_that_would_wait_too_long_take_nobodys_place() {
        let (mut rate_limiter, at_most) = (RateLimiter::default(), MS(1000));
        let mut ask = |now| rate_limiter.wait(MS(now), 200, 250, at_most).map(|wait| wait.as_millis());
        // Each takes 800 ms. Of four asked for at once two find a place, however often the others are asked for again.
        assert_eq!([ask(0), ask(0), ask(0), ask(0)], [Some(0), Some(800), None, None]);
        assert_eq!([ask(100), ask(500)], [None, None]);
        assert_eq!([ask(600), ask(600)], [Some(1000), None]);
        assert_eq!(ask(10_000), Some(0));
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut rate_limiter = RateLimiter::default();
        assert!((0..1000).all(|_| rate_limiter.wait(MS(0), 1 << 20, 0, MS(0)) == Some(MS(0))));
    }

    /// A link that carries so many bytes a second: what has come of a file after a minute, of pieces that count only as
    /// a whole.
    fn after_a_minute(bytes_per_second: u64) -> u64 {
        let (mut fetch_window, within, mut time, mut came) = (FetchWindow::new(256 << 10, 4), MS(5000), MS(0), 0);
        while time < MS(60_000) {
            // All that were asked for at once share the link, and come or fail together.
            let (bytes, pieces) = (u64::from(fetch_window.piece) * fetch_window.window as u64, fetch_window.window);
            let takes = MS(bytes * 1000 / bytes_per_second);
            let whole = takes <= within;
            came += if whole { bytes } else { 0 };
            time += takes.min(within);
            (0..pieces).for_each(|_| fetch_window.took(takes.min(within), within, whole));
        }
        came
    }

    #[test]
    fn a_slow_link_carries_a_file_too() {
        for rate in [8_000, 20_000, 50_000, 200_000, 1_000_000, 100_000_000] {
            let came = after_a_minute(rate);
            assert!(came > rate * 60 / 2, "{came} bytes in a minute at {rate}/s");
        }
    }

    #[test]
    fn what_became_slow_becomes_fast_again() {
        let mut fetch_window = FetchWindow::new(256 << 10, 4);
        (0..20).for_each(|_| fetch_window.took(MS(5000), MS(5000), false));
        assert_eq!((fetch_window.piece, fetch_window.window), (16 << 10, 1));
        // A connection that is cut at once says nothing of its speed.
        fetch_window.took(MS(0), MS(5000), false);
        assert_eq!((fetch_window.piece, fetch_window.window), (16 << 10, 1));
        (0..7).for_each(|_| fetch_window.took(MS(10), MS(5000), true));
        assert_eq!((fetch_window.piece, fetch_window.window), (256 << 10, 4));
    }

    #[test]
    fn small_pieces_that_are_asked_for_stay_small() {
        let mut fetch_window = FetchWindow::new(100, 4);
        (0..20).for_each(|_| fetch_window.took(MS(5000), MS(5000), false));
        assert_eq!((fetch_window.piece, fetch_window.window), (100, 1));
    }
}
