//! The one simulation that fresh seeds, kept seeds and planted mistakes all run: clusters of one, three and five nodes
//! with the harshest faults.

use std::{env, time::Duration};

use actorum_testkit::{Faults, Kv, Report, Rng, Simulation};

/// How long the faults last, in virtual time.
pub(crate) const SPAN: Duration = Duration::from_secs(25);

/// The run of a seed.
pub(crate) fn simulation(seed: u64) -> Simulation<Kv> {
    let mut rng = Rng::new(seed).fork("shape", 0);
    let nodes = [1, 3, 3, 3, 3, 3, 3, 5][rng.below(8) as usize];
    // A run in which all lose their power three times has little time left; a single voter is down whenever its one
    // node is. What holds after the faults is stricter: then every request succeeds.
    let progress = if nodes == 1 { 2 } else { 8 };
    // Snapshots all the time, now and then, or never; sent fast and slowly, in smaller and larger pieces, of a file of
    // some hundred bytes.
    let entries = [10, 10, 40, 0][rng.below(4) as usize];
    let keep = [0, 3, 20][rng.below(3) as usize];
    let hold = [20_000, 1 << 20, 1 << 20][rng.below(3) as usize];
    let rate = [0, 500, 500, 2000][rng.below(4) as usize];
    let (sends, piece) = (rng.between(1, 2) as usize, [64, 64, 200][rng.below(3) as usize]);
    let snapshot_timeout = [1500, 4000][rng.below(2) as usize];
    // In half of the seeds messages, windows and bounds are tiny, and the log behind them is read from the disk.
    let tiny = rng.below(2) == 0;
    let append = [1, 150, 400][rng.below(3) as usize];
    let window = [append, 500, 2000][rng.below(3) as usize].max(append);
    let unapplied = [330, 1000, 4000][rng.below(3) as usize];
    let tail = [0, 300, 2000][rng.below(3) as usize];
    // No larger than what these settings let through: a message around its entries, an entry that changes the
    // membership with the record beside it, or the description of a snapshot, in which each member has what it
    // understands.
    let frame = (400 + 3 * append).max(400 + 2 * 372).max(3072);
    let simulation = Simulation::recorded(seed).nodes(nodes).clients(4).faults(Faults::harsh()).at_least(progress);
    // In half of these the disks have an end, which a log that is never cut would reach: room for four snapshots, the
    // reserve, twice what counts as low, and a little more. A quarter of what counts as low is some records of what
    // there is to start from.
    let (ends, low, ballast) = (tiny && rng.below(2) == 0, 8000, 4000);
    let volume = 4 * 4800 + ballast + 2 * low + rng.between(2_000, 12_000);
    let simulation = if tiny { simulation.frames(frame, 32 << 10) } else { simulation };
    let simulation = if ends { simulation.volume(volume) } else { simulation };
    simulation.configure(|config| {
        (config.snapshot_entries, config.log_keep_entries, config.log_hold_bytes) = (entries, keep, hold);
        (config.snapshot_rate, config.snapshot_sends, config.snapshot_piece_bytes) = (rate, sends, piece);
        config.snapshot_timeout_ms = snapshot_timeout;
        if tiny {
            (config.max_entry_bytes, config.max_append_bytes, config.peer_window_bytes) = (300, append, window);
            (config.max_unapplied_bytes, config.log_tail_bytes) = (unapplied, tail);
        }
        if ends {
            (config.low_space_bytes, config.reserve_bytes, config.max_unpersisted_bytes) = (low, ballast, 1000);
        }
    })
}

/// Runs a seed; a broken one is told in full.
pub(crate) fn run(seed: u64) -> Report {
    simulation(seed).run(SPAN)
}

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}
