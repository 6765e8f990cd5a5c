//! The time that a leader gives to what it proposes.
//!
//! It is `min(the leader's clock, the median of the voters' clocks + max_clock_skew)`. The applied time never runs
//! backwards, so without the median one leader with a wrong year would set it for ever. A minority of wrong clocks
//! cannot move the median. A leader whose clock is slow stamps by that clock, and `apply` keeps the greater of the last
//! time and the stamp.
//!
//! Without the clocks of a majority there is no median, and the leader uses its own clock: `CoreStatus::median_known`
//! says so.

use std::time::{Duration, SystemTime};

use super::Consensus;
use crate::clock_offsets::{Estimates, calendar, calendar_us};

impl<T> Consensus<T> {
    /// What the clocks of the peers show. It holds until the next call: the caller leaves out what is too old.
    pub fn clocks_read(&mut self, clocks: Estimates) {
        self.clocks = clocks;
    }

    /// The time of an entry that is proposed now.
    pub(super) fn stamp(&self, wall: SystemTime) -> SystemTime {
        let own = calendar_us(wall);
        let bound = self.settings.max_clock_skew.min(Duration::from_secs(u32::MAX.into())).as_micros() as i64;
        match self.clocks.median_us(&self.configuration(), self.settings.id, own, self.now) {
            Some(median) if own > median.saturating_add(bound) => calendar(median.saturating_add(bound)),
            _ => wall,
        }
    }

    /// Whether the calendars of a majority of the voters are known, this node's own among them if it votes.
    pub(super) fn median_known(&self) -> bool {
        self.clocks.median_us(&self.configuration(), self.settings.id, 0, self.now).is_some()
    }
}
