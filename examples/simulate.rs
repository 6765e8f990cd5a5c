//! Finds a bug in an application's own state machine, before its users do.
//!
//! A lock service grants leases. Its author reads the machine's clock to see when a lease ends, so every replica gets
//! another answer. On one node, and in every test on one node, that works. The simulator runs three of them through a
//! few seconds of faults and says what is wrong, with the seed that shows it; the repaired machine, which asks
//! [`ApplyContext::time`], passes the same run.
//!
//! ```text
//!  cargo run --example simulate
//! ```

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use actorum::prelude::*;
use actorum_testkit::{Client, Faults, Report, Simulation};
use serde::{Deserialize, Serialize};

/// Who holds which lock, and until when.
#[derive(Default, Serialize, Deserialize)]
struct Leases<const REPAIRED: bool> {
    held: BTreeMap<String, (u64, SystemTime)>,
}

/// Give me this lock, unless somebody else holds it.
#[derive(Serialize, Deserialize)]
struct Acquire {
    lock: String,
    holder: u64,
}

impl<const REPAIRED: bool> StateMachine for Leases<REPAIRED> {
    type Command = Acquire;
    /// Until when the holder may rely on it; `None` if somebody else holds it.
    type Response = Option<SystemTime>;

    fn apply(&mut self, ctx: &ApplyContext, Acquire { lock, holder }: &Acquire) -> Option<SystemTime> {
        // The bug: every replica, and every replay of the log, reads another clock at another moment.
        let now = if REPAIRED { ctx.time } else { SystemTime::now() };
        match self.held.get(lock) {
            Some((other, until)) if other != holder && *until > now => None,
            _ => {
                let until = now + Duration::from_secs(1);
                self.held.insert(lock.clone(), (*holder, until));
                Some(until)
            }
        }
    }

    serde_snapshot!();
}

/// Asks for locks until the simulation is over.
async fn client<S: StateMachine<Command = Acquire>>(mut client: Client<S>) {
    while client.goes_on() {
        let lock = format!("lock {}", client.rng().below(3));
        let holder = client.number();
        let _ = client.propose(Acquire { lock, holder }).await;
        client.think(Duration::from_millis(100)).await;
    }
}

fn simulate<const REPAIRED: bool>(seed: u64) -> Report {
    Simulation::<Leases<REPAIRED>>::new(seed)
        .nodes(3)
        .workload(client)
        .faults(Faults::gentle())
        .run(Duration::from_secs(10))
}

fn main() -> ExitCode {
    match show() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e}"); // closed: the exit code still says it
            ExitCode::FAILURE
        }
    }
}

fn show() -> io::Result<()> {
    let mut out = io::stdout();
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);

    writeln!(out, "the machine that reads a clock:\n")?;
    let found = simulate::<false>(seed);
    writeln!(out, "{found}")?;
    let violation = found.violation.expect("three replicas that read three clocks cannot agree");
    assert_eq!(violation.invariant, "applied prefixes are equal");

    writeln!(out, "the repaired machine:\n")?;
    let repaired = simulate::<true>(seed);
    writeln!(out, "{repaired}")?;
    repaired.assert_ok();
    Ok(())
}
