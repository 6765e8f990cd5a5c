//! Does the simulator find anything? Mistakes are planted, one after the other, in the build that has them, and
//! the same simulation that runs every day must find each within a minute, on all cores.
//!
//! ```text
//!  cargo test -p actorum --profile simulation --features planted --test planted -- --nocapture
//! ```

mod harsh;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use actorum::planted::{Planted, plant};

const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn every_planted_mistake_is_found() {
    let only = std::env::var("ONLY").ok();
    let chosen =
        Planted::ALL.iter().copied().filter(|mistake| only.as_ref().is_none_or(|only| mistake.name().contains(only)));
    let mut missed = Vec::new();
    println!("{:<64} {:>6} {:>8}  invariant", "planted", "seed", "seconds");
    for mistake in chosen {
        plant(Some(mistake));
        let begun = Instant::now();
        let first = harsh::number("FROM").unwrap_or(1);
        let (next, found) = (AtomicU64::new(first), Mutex::new(None));
        // Each thread runs one seed after another, until one of them has found it or the time is up.
        thread::scope(|threads| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                threads.spawn(|| {
                    while found.lock().unwrap().is_none() && begun.elapsed() <= WITHIN {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let Some(violation) = harsh::run(seed).violation else { continue };
                        if harsh::number("FROM").is_some() {
                            println!("{violation}");
                        }
                        found.lock().unwrap().get_or_insert((seed, violation.invariant));
                    }
                });
            }
        });
        let tried = next.into_inner() - first;
        let (seed, found) = found.into_inner().unwrap().map_or((tried, None), |(seed, name)| (seed, Some(name)));
        let seconds = begun.elapsed().as_secs_f64();
        println!("{:<64} {seed:>6} {seconds:>8.1}  {}", mistake.name(), found.unwrap_or("NOT FOUND"));
        if found.is_none() {
            missed.push(mistake.name());
        }
    }
    plant(None);
    assert!(missed.is_empty(), "not found within {} s each: {missed:#?}", WITHIN.as_secs());
}
