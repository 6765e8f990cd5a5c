//! A leader that knows the calendars of a majority of the voters never stamps far beyond their true median: one
//! calendar that is wrong by a year does not become the time that every node applies.
//!
//! What "far" is: the simulated clocks run at rates of their own and jump by seconds, so a minute is added to the
//! bound.

use std::time::Duration;

use actorum_actors::clock::Clock;
use actorum_core::{clock_offsets::calendar_us, entry::Stamped, wire::EntryKind};
use actorum_machine::status::Role;

use super::{Event, Facts, Invariant};

/// Drift, jumps of seconds, and readings of some age.
const MARGIN: Duration = Duration::from_secs(60);

pub(crate) struct TimeFollowsTheMedian {
    pub bound_ms: u64,
}

impl Invariant for TimeFollowsTheMedian {
    fn name(&self) -> &'static str {
        "the applied time follows the median of the voters' clocks"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        let raft_state = drained.raft_state;
        if raft_state.role != Role::Leader || !raft_state.median_known {
            return Ok(());
        }
        let clocks = drained.voters.iter().map(|voter| facts.nodes.get(voter)?.clock.as_ref());
        let Some(mut calendars) = clocks.map(|clock| Some(calendar_us(clock?.wall()))).collect::<Option<Vec<i64>>>()
        else {
            return Ok(());
        };
        calendars.sort_unstable();
        let median = calendars[calendars.len() / 2];
        let latest = median + (MARGIN.as_millis() as i64 + self.bound_ms as i64) * 1000;
        let entries = drained.append.iter().flat_map(|append| &append.write.entries);
        // What it took over from earlier leaders has their terms.
        let own = entries.filter(|entry| entry.term == raft_state.term && entry.kind == EntryKind::Normal);
        for entry in own.filter(|entry| !entry.data.is_empty()) {
            let Ok(stamped) = Stamped::parse(&entry.data) else { continue };
            let time = calendar_us(stamped.time);
            if time > latest {
                let ahead_s = (time - median) / 1_000_000;
                return Err(format!(
                    "n{node} stamps {}@{} with a time {ahead_s} s beyond the median of the voters",
                    entry.index, entry.term
                ));
            }
        }
        Ok(())
    }
}
