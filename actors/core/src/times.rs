//! The time as of an index, for whoever reads the log from somewhere in its middle.
//!
//! ```text
//!  log    ──●────────────────●───────────────●──────▶   ● the time as of this index is known
//!           │                └── read ──▶ resume          the stamps in between are read again, and raise it
//!           └ a snapshot's, the start of the log
//! ```
//!
//! The time that `apply` sees is the greatest stamp of the whole log up to there, not the entry's own: a leader whose
//! clock was put back stamps earlier than the one before. So the stamps behind an index do not tell its time, and what
//! is read from there on has to begin with one that is known. Known are the times of the snapshots that a start found,
//! and one about every MiB of what was applied since.
//!
//! At most [`MAX_POINTS`] are kept. At that bound every second one of the older half goes: more has to be read from
//! there, or, where the log no longer holds what has to be read, a subscriber is told of the state in its place. No
//! time is ever guessed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// How many bytes of entries lie between two indexes whose time is remembered.
pub const SPACING_BYTES: usize = 1 << 20;
/// How many are remembered: about two hundred KiB of them.
pub const MAX_POINTS: usize = 4096;

/// The times as of some indexes. Shared by the replica, which knows them, and those who read its log.
#[derive(Debug, Default)]
pub struct Times(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    points: BTreeMap<u64, SystemTime>,
    /// Bytes applied since the last one.
    since: usize,
}

impl Times {
    /// The state was replaced by one of this index and time: nothing before it can be read any more.
    pub fn begin(&self, index: u64, time: SystemTime) {
        *self.lock() = Inner { points: BTreeMap::from([(index, time)]), since: 0 };
    }

    /// An entry of so many bytes was applied, and this is the time as of its index.
    pub fn applied(&self, index: u64, time: SystemTime, bytes: usize) {
        let mut inner = self.lock();
        inner.since += bytes;
        if inner.since >= SPACING_BYTES {
            inner.since = 0;
            inner.note(index, time);
        }
    }

    /// This is the time as of an index.
    pub fn note(&self, index: u64, time: SystemTime) {
        self.lock().note(index, time);
    }

    /// The last index up to this one whose time is known, and the time.
    pub fn up_to(&self, index: u64) -> Option<(u64, SystemTime)> {
        self.lock().points.range(..=index).next_back().map(|(&index, &time)| (index, time))
    }

    /// The first index from this one on whose time is known, and the time.
    pub fn from(&self, index: u64) -> Option<(u64, SystemTime)> {
        self.lock().points.range(index..).next().map(|(&index, &time)| (index, time))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn note(&mut self, index: u64, time: SystemTime) {
        self.points.insert(index, time);
        if self.points.len() > MAX_POINTS {
            let older = self.points.keys().copied().nth(MAX_POINTS / 2).unwrap_or(index);
            let mut goes = true;
            self.points.retain(|&index, _| {
                goes = !goes;
                index >= older || !goes
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn a_point_comes_with_every_so_many_bytes() {
        let times = Times::default();
        times.begin(1, at(1));
        (2..=9).for_each(|index| times.applied(index, at(index), SPACING_BYTES / 4));
        assert_eq!((times.up_to(4), times.from(2)), (Some((1, at(1))), Some((5, at(5)))));
        assert_eq!((times.up_to(20), times.from(10)), (Some((9, at(9))), None));
        assert_eq!(times.up_to(0), None);
        times.begin(7, at(7));
        assert_eq!((times.up_to(6), times.from(8)), (None, None), "what was before a snapshot is gone");
    }

    #[test]
    fn the_newest_stay_close_and_the_number_is_bounded() {
        let times = Times::default();
        times.begin(1, at(0));
        let last = 100_000;
        for index in 2..=last {
            times.applied(index, at(index), SPACING_BYTES);
            assert!(times.lock().points.len() <= MAX_POINTS);
        }
        let newest = MAX_POINTS as u64 / 2;
        for index in last - newest..=last {
            assert_eq!(times.up_to(index), Some((index, at(index))));
        }
        assert_eq!(times.up_to(1), Some((1, at(0))), "the first one is where the log begins");
    }
}
