//! The operator of a cluster that puts nothing to use by itself: asks for it at some moments, on some node.

use std::time::Duration;

use actorum_machine::machine::StateMachine;
use tokio::time::sleep;

use super::{
    fleet::{Fleet, State},
    rng::Rng,
};

/// How often it looks at the time, in virtual milliseconds.
const STEP_MS: u64 = 250;

/// Asks once or more, until the clients end.
pub(crate) async fn operate<S: StateMachine>(fleet: Fleet<S>, mut rng: Rng) {
    let world = fleet.world().clone();
    for _ in 0..rng.between(1, 4) {
        for _ in 0..rng.between(2, 48) {
            sleep(Duration::from_millis(STEP_MS)).await;
            if world.over() || world.facts(|facts| facts.closing) {
                return;
            }
        }
        let running = fleet.in_state(State::Running);
        let Some((raft, life)) = rng.pick(&running).and_then(|id| fleet.raft(*id)) else { continue };
        world.tell(|| "an operator asks to use what every member understands".into());
        world.facts(|facts| facts.in_use.operator_asks());
        world.count(|counts| *counts.churn.entry("activation asked for").or_default() += 1);
        let activated = tokio::select! {
            biased;
            () = life.over() => None,
            () = world.decided() => return,
            activated = raft.activate_within(Duration::from_secs(2)) => activated.ok(),
        };
        world.facts(|facts| facts.in_use.operator_asked(activated.is_some()));
        if activated.is_some() {
            world.count(|counts| *counts.churn.entry("activation done").or_default() += 1);
        }
    }
}
