//! The clocks of the peers, estimated from requests and their answers as NTP does (RFC 5905 section 8).
//!
//! ```text
//!  this node   sent ─────────────────────────────────▶ received      by its monotonic clock
//!                     ╲                           ╱
//!  the peer             ───── its calendar ─────                     one reading, between the two
//!
//!  its calendar when this node's monotonic clock stood at zero = reading - (sent + received) / 2, give or take half the round trip
//! ```
//!
//! Of the last readings of a peer the most exact one counts: a short round trip makes a reading exact, and age makes it
//! less so, because clocks drift. Readings are kept against this node's *monotonic* clock, so that a jump of its own
//! calendar changes nothing here. A reading that contradicts the earlier ones means that the peer's calendar was set,
//! and the earlier ones are forgotten. A reading that may be off by more than the allowed skew of clocks shows nothing:
//! a process that was busy for seconds between a question and its answer learns nothing from it.
//!
//! Pure: times come in. Deliberately absent: setting a clock, and leap seconds.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use actorum_machine::{configuration::Configuration, ids::NodeId};

/// How many readings of each peer are kept.
const KEPT: usize = 8;
/// How long a reading counts.
pub const VALID: Duration = Duration::from_secs(10);
/// How far two clocks may run apart, per million: twice what RFC 5905 allows for one.
const DRIFT_PER_MILLION: i64 = 1000;
/// How much two readings may differ without a contradiction: schedulers take time, and clocks are coarse.
const GRAIN_US: i64 = 1000;

/// What the clocks of others show: for each the calendar, in microseconds since 1970, at the moment when this node's
/// monotonic clock stood at zero. Negative is before 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estimates(pub BTreeMap<NodeId, i64>);

impl Estimates {
    /// What the peer's calendar shows at this moment of the monotonic clock.
    pub fn calendar_us(&self, peer: NodeId, now: Duration) -> Option<i64> {
        Some(self.0.get(&peer)?.saturating_add(micros(now)))
    }

    /// The median of the voters' calendars, this node's own among them if it votes; `None` unless a majority of them is
    /// known.
    ///
    /// Of an even number the lower one: a clock that is too fast sets the time for ever, one that is too slow only
    /// delays it.
    pub fn median_us(&self, configuration: &Configuration, own: NodeId, own_us: i64, now: Duration) -> Option<i64> {
        let calendar = |id| if id == own { Some(own_us) } else { self.calendar_us(id, now) };
        if !configuration.is_quorum(|id| calendar(id).is_some()) {
            return None;
        }
        let mut known: Vec<i64> = configuration.voting().into_iter().filter_map(calendar).collect();
        known.sort_unstable();
        known.get((known.len().max(1) - 1) / 2).copied()
    }
}

/// Calendar time as microseconds since 1970.
pub fn calendar_us(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => micros(since),
        Err(before) => -micros(before.duration()),
    }
}

/// The calendar time of so many microseconds since 1970; what lies before is 1970.
pub fn calendar(us: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(us.max(0) as u64)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// One reading of a peer's calendar.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// The calendar at this node's monotonic zero.
    at_zero_us: i64,
    /// How far that may be off, either way.
    within_us: i64,
    taken: Duration,
}

impl Reading {
    /// How far off it may be by now.
    fn within(&self, now: Duration) -> i64 {
        let age = micros(now.saturating_sub(self.taken));
        self.within_us.saturating_add(age.saturating_mul(DRIFT_PER_MILLION) / 1_000_000)
    }
}

/// The readings of all peers.
#[derive(Clone, Debug)]
pub struct ClockOffsets {
    readings: BTreeMap<NodeId, VecDeque<Reading>>,
    /// A reading that may be off by more than this does not count.
    within_us: i64,
}

impl ClockOffsets {
    /// No readings yet. A reading counts only if it is exact to `within`: a less exact one cannot show whether a clock
    /// is wrong.
    pub fn new(within: Duration) -> ClockOffsets {
        ClockOffsets { readings: BTreeMap::new(), within_us: micros(within) }
    }

    /// A peer's calendar showed this between these two moments of this node's monotonic clock.
    pub fn read(&mut self, peer: NodeId, sent: Duration, received: Duration, peer_us: u64) {
        let Ok(peer_us) = i64::try_from(peer_us) else { return };
        let (sent, received) = (micros(sent), micros(received).max(micros(sent)));
        let within_us = (received - sent) / 2;
        let taken = Duration::from_micros(received as u64);
        let reading = Reading { at_zero_us: peer_us.saturating_sub(sent + within_us), within_us, taken };
        let readings = self.readings.entry(peer).or_default();
        let contradicts = |old: &Reading| {
            let apart = old.at_zero_us.saturating_sub(reading.at_zero_us).saturating_abs();
            apart > old.within(taken).saturating_add(within_us).saturating_add(GRAIN_US)
        };
        if readings.iter().any(contradicts) {
            readings.clear();
        }
        if readings.len() == KEPT {
            readings.pop_front();
        }
        readings.push_back(reading);
    }

    /// Forgets all peers but these.
    pub fn keep(&mut self, known: impl Fn(NodeId) -> bool) {
        self.readings.retain(|peer, _| known(*peer));
    }

    /// The best of what is known now, where it is exact enough.
    pub fn estimates(&self, now: Duration) -> Estimates {
        let best = |readings: &VecDeque<Reading>| {
            let fresh = readings.iter().filter(|reading| now.saturating_sub(reading.taken) <= VALID);
            let best = fresh.min_by_key(|reading| reading.within(now))?;
            (best.within(now) <= self.within_us).then_some(best.at_zero_us)
        };
        Estimates(self.readings.iter().filter_map(|(peer, readings)| Some((*peer, best(readings)?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::voting;

    const MS: i64 = 1000;
    const BASE: i64 = 1_800_000_000_000_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The peer's clock shows `BASE` at this node's monotonic zero, plus `off`; the way there and the way back take so
    /// long.
    fn exchange(offsets: &mut ClockOffsets, at: u64, there: u64, back: u64, off: i64) {
        let read = BASE + (at + there) as i64 * MS + off;
        offsets.read(2, ms(at), ms(at + there + back), read as u64);
    }

    fn off_ms(offsets: &ClockOffsets, at: u64) -> Option<i64> {
        Some((offsets.estimates(ms(at)).0.get(&2)? - BASE) / MS)
    }

    #[test]
    fn the_shortest_round_trip_counts() {
        let mut offsets = ClockOffsets::new(Duration::from_secs(1));
        assert_eq!(off_ms(&offsets, 0), None);
        exchange(&mut offsets, 0, 90, 10, 50 * MS);
        assert_eq!(off_ms(&offsets, 100), Some(90), "half of what the ways differ by is the error");
        exchange(&mut offsets, 1000, 1, 1, 50 * MS);
        assert_eq!(off_ms(&offsets, 1100), Some(50));
        exchange(&mut offsets, 2000, 5, 95, 50 * MS);
        assert_eq!(off_ms(&offsets, 2200), Some(50), "a slow answer does not replace a quick one");
    }

    /// Three nodes in one process whose thread was busy: the clocks are equal, and half of a round trip of seconds is
    /// no offset.
    #[test]
    fn a_reading_that_may_be_off_by_more_than_the_bound_says_nothing() {
        let mut offsets = ClockOffsets::new(ms(500));
        exchange(&mut offsets, 0, 3000, 0, 0);
        assert_eq!(off_ms(&offsets, 3000), None, "the peer answered after 3 s, and the answer took no time");
        exchange(&mut offsets, 4000, 1001, 0, 0);
        assert_eq!(off_ms(&offsets, 5001), None, "501 ms either way");
        exchange(&mut offsets, 6000, 900, 0, 0);
        assert_eq!(off_ms(&offsets, 6900), Some(450), "450 ms either way, within the bound");
        assert_eq!(off_ms(&offsets, 16_900), Some(450), "drift has added 10 ms");
        exchange(&mut offsets, 20_000, 998, 0, 0);
        assert_eq!(off_ms(&offsets, 20_998), Some(499));
        assert_eq!(off_ms(&offsets, 22_998), None, "drift has carried it beyond");
        exchange(&mut offsets, 23_000, 1, 1, 0);
        assert_eq!(off_ms(&offsets, 23_002), Some(0));
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_once() {
        let mut offsets = ClockOffsets::new(Duration::from_secs(1));
        (0..8).for_each(|n| exchange(&mut offsets, n * 1000, 1, 1, 0));
        exchange(&mut offsets, 9000, 20, 20, 3600 * 1000 * MS);
        assert_eq!(off_ms(&offsets, 9100), Some(3_600_000), "however slow the first answer after it is");
        exchange(&mut offsets, 10_000, 1, 1, -5000 * MS);
        assert_eq!(off_ms(&offsets, 10_010), Some(-5000));
    }

    #[test]
    fn drift_makes_an_old_reading_worse_than_a_young_one() {
        let mut offsets = ClockOffsets::new(Duration::from_secs(1));
        exchange(&mut offsets, 0, 1, 1, 0);
        exchange(&mut offsets, 7000, 4, 4, 0);
        exchange(&mut offsets, 9000, 3, 5, 0);
        assert_eq!(off_ms(&offsets, 9100), Some(-1), "the newest, whose ways differ by 2 ms");
        assert_eq!(off_ms(&offsets, 19_008), Some(-1));
        assert_eq!(off_ms(&offsets, 19_010), None, "and none is of use for ever");
    }

    #[test]
    fn the_median_needs_a_majority_and_bears_a_minority_in_error() {
        let now = ms(0);
        let of = |others: &[(NodeId, i64)], voters: &[NodeId], own: i64| {
            Estimates(others.iter().copied().collect()).median_us(&voting(voters), 1, own, now)
        };
        assert_eq!(of(&[], &[1], 5), Some(5));
        assert_eq!(of(&[], &[1, 2, 3], 5), None);
        assert_eq!(of(&[(2, 7)], &[1, 2, 3], 99), Some(7), "of two the lower");
        assert_eq!(of(&[(2, 7), (3, 8)], &[1, 2, 3], 99), Some(8));
        assert_eq!(of(&[(2, 7), (3, i64::MAX)], &[1, 2, 3], 8), Some(8));
        assert_eq!(of(&[(4, 7), (5, 8)], &[1, 2, 3], 9), None, "only voters count");
        assert_eq!(of(&[(2, 7), (3, 8)], &[2, 3], 99), Some(7), "a learner's own clock does not");
    }

    #[test]
    fn nothing_a_peer_says_breaks_the_arithmetic() {
        let mut offsets = ClockOffsets::new(Duration::from_secs(1));
        for reading in [u64::MAX, i64::MAX as u64, 0, 1, BASE as u64] {
            offsets.read(2, ms(5), ms(4), reading);
            offsets.read(2, Duration::MAX, Duration::ZERO, reading);
            offsets.read(2, ms(1), ms(9), reading);
        }
        offsets.estimates(Duration::MAX);
        let wild = Estimates(BTreeMap::from([(2, i64::MAX), (3, i64::MIN)]));
        assert_eq!(wild.calendar_us(2, Duration::MAX), Some(i64::MAX));
        assert!(wild.median_us(&voting(&[1, 2, 3]), 1, 0, Duration::MAX).is_some());
        assert_eq!(calendar_us(calendar(-5)), 0);
    }
}
