//! Does the simulator find anything? Mistakes are planted, one after the other, in the build that has them, and
//! the same simulation that runs every day must find each within a minute on one core.
//!
//! ```text
//!  cargo test -p actorum --profile simulation --features planted --test planted -- --nocapture
//! ```

mod harsh;

use std::time::{Duration, Instant};

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
        let mut seed = harsh::number("FROM").unwrap_or(1);
        let found = loop {
            let report = harsh::run(seed);
            if let Some(violation) = report.violation {
                if harsh::number("FROM").is_some() {
                    println!("{violation}");
                }
                break Some(violation.invariant);
            }
            if begun.elapsed() > WITHIN {
                break None;
            }
            seed += 1;
        };
        let seconds = begun.elapsed().as_secs_f64();
        println!("{:<64} {seed:>6} {seconds:>8.1}  {}", mistake.name(), found.unwrap_or("NOT FOUND"));
        if found.is_none() {
            missed.push(mistake.name());
        }
    }
    plant(None);
    assert!(missed.is_empty(), "not found within {} s each: {missed:#?}", WITHIN.as_secs());
}
