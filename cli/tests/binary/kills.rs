//! Kills -9 of real processes under load: nothing acknowledged is lost, doubled or out of order.
//!
//! Three nodes, four writers. Each cycle waits for a drawn number of acknowledged writes (so the moment hangs on
//! progress, not on time), kills one drawn node or all, starts them again, and compares what all nodes have applied.
//! There are 12 cycles, a hundred in `.ci/run`, or `CYCLES`; `SEED` repeats the draws.

use std::time::Instant;

use crate::figures::figure;
use crate::lab::Lab;
use crate::load::{History, Load, judge};
use crate::rng::Rng;

/// How many commands before its kill a node's history is read again from; every tenth time it is read as a whole.
const AGAIN: u64 = 500;

#[test]
fn kills_under_load() {
    let cycles = figure("CYCLES", 12, 100);
    let mut rng = Rng::new();
    let mut lab = Lab::new(&[1, 2, 3]);
    lab.set("ACTORUM_HEARTBEAT_MS", "50");
    lab.set("ACTORUM_ELECTION_MS", "400");
    lab.found(&[1, 2, 3]);
    lab.leader();
    let started = Instant::now();
    let load = Load::start(&lab, &[1, 2, 3], 4);
    let (mut history, mut kills, mut leaders, mut all) = (History::default(), 0, 0, 0);
    for cycle in 1..=cycles {
        // Also at once after a start: then the node may still be replaying, or voting.
        load.wait_for(rng.below(150));
        let drawn = if rng.below(4) == 0 { vec![1, 2, 3] } else { vec![1 + rng.below(3)] };
        // Whatever is drawn: all three once, and once the leader by itself.
        let victims = match cycle {
            1 => vec![1, 2, 3],
            2 => vec![lab.leader()],
            _ => drawn,
        };
        let leads = |id: &u64| lab.node(*id).try_status().is_some_and(|status| status["role"] == "leader");
        leaders += victims.iter().filter(|id| leads(id)).count();
        all += u64::from(victims.len() == 3);
        kills += victims.len();
        victims.iter().for_each(|id| lab.node_mut(*id).kill());
        victims.iter().for_each(|id| lab.launch(*id));
        victims.iter().for_each(|id| lab.serves(*id));
        let whole = cycle % 10 == 0 || cycle == cycles;
        let known = history.end();
        judge(&lab, &load.acknowledged(), &mut history, &format!("end-{cycle}"), |node| match whole {
            true => 0,
            false if victims.contains(&node.id) => known.saturating_sub(AGAIN),
            false => known,
        });
    }
    let acknowledged = load.finish();
    judge(&lab, &acknowledged, &mut history, "end", |_| 0);
    for id in [1, 2, 3] {
        history.in_the_map_of(lab.node(id), 1 + history.len() / 100);
    }
    println!(
        "{cycles} cycles in {:?}: {kills} processes killed, {leaders} of them leading, all three at once {all} times; \
         {} writes acknowledged, {} applied",
        started.elapsed(),
        acknowledged.len(),
        history.len()
    );
    assert!(acknowledged.len() as u64 > cycles * 10, "there was load");
    assert!(leaders > 0 && all > 0, "the kills have hit a leader, and all three nodes");
}

/// A history of two nodes, as they would show it; and whether the judge takes it.
fn judged(first: &[(u64, &str)], second: &[(u64, &str)]) -> Result<(), String> {
    let read = |node: &[(u64, &str)]| node.iter().map(|(index, key)| (*index, 1, (*key).to_owned())).collect();
    let acknowledged = [("a".to_owned(), 2), ("b".to_owned(), 4)].into();
    let judge = || {
        let mut history = History::default();
        history.admit(1, 0, 5, read(first));
        history.admit(2, 0, 5, read(second));
        history.holds(&acknowledged);
    };
    std::panic::catch_unwind(judge).map_err(|panic| *panic.downcast::<String>().expect("words"))
}

/// The judge itself: lost, doubled, out of order, another value, one too many: each is seen.
#[test]
fn the_judge_sees_every_fault() {
    let good = [(2, "a"), (4, "b"), (5, "end")];
    assert_eq!(judged(&good, &good), Ok(()));
    let lost = [(2, "a"), (5, "end")];
    assert!(judged(&lost, &lost).unwrap_err().contains("LOST: b"));
    assert!(judged(&good, &lost).unwrap_err().contains("node 2 has applied something else"));
    let doubled = [(2, "a"), (3, "b"), (4, "b"), (5, "end")];
    assert!(judged(&doubled, &doubled).unwrap_err().contains("b was applied at 3 and again at 4"));
    let reordered = [(2, "b"), (4, "a"), (5, "end")];
    assert!(judged(&reordered, &reordered).unwrap_err().contains("LOST: a"));
    assert!(judged(&good, &reordered).unwrap_err().contains("node 2 has applied something else"));
    assert!(judged(&good, &doubled).unwrap_err().contains("node 2 has applied something else"));
    assert!(judged(&good, &[(2, "a"), (4, "b")]).unwrap_err().contains("has not applied as many"));
    let another = [(2, "a"), (4, "c"), (5, "end")];
    assert!(judged(&good, &another).unwrap_err().contains("node 2 has applied something else"));
}
