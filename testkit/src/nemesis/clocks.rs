//! Calendars that jump, and one that is wrong by a year.

use std::time::Duration;

use actorum_core::clock_offsets::VALID;
use actorum_machine::machine::StateMachine;
use tokio::time::sleep;

use super::FaultTask;

impl<S: StateMachine> FaultTask<S> {
    pub(super) fn clock_jump(&mut self) {
        let Some(node) = self.some_running() else { return };
        let by = self.rng.between(0, 20_000) as i64 - 10_000;
        self.process("clock jump");
        self.fleet.node(node, |node| node.clock.skew(by));
    }

    /// One calendar at a time: with two of three in error there is no right median.
    pub(super) async fn wrong_year(&mut self) {
        if self.members().1.len() < 3 || self.wrong_year.replace(true) {
            return;
        }
        let Some(node) = self.some_running() else {
            self.wrong_year.set(false);
            return;
        };
        let year_ms = 365 * 24 * 3600 * 1000;
        let by = if self.rng.below(4) == 0 { -year_ms } else { year_ms };
        self.process("wrong year");
        self.world().tell(|| format!("the calendar of n{node} is wrong by {by} ms"));
        self.fleet.node(node, |node| node.clock.skew(by));
        self.a_while(1000, 6000).await;
        let back = self.rng.between(0, 4000) as i64 - 2000;
        self.fleet.node(node, |node| node.clock.skew(back));
        // What others have read of it is believed for so long where they cannot read it again.
        sleep(VALID + Duration::from_secs(1)).await;
        self.wrong_year.set(false);
    }
}
