//! Chance for tests: seeded, and the seed is printed, so that a failure can be repeated.

use std::time::{SystemTime, UNIX_EPOCH};

/// splitmix64.
pub(crate) struct Rng(u64);

impl Rng {
    /// From `SEED`, or from the clock; printed, so that a failure can be repeated.
    pub(crate) fn new() -> Rng {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(clock);
        println!("seed {seed} (repeat with SEED={seed})");
        Rng(seed)
    }

    /// Another generator, for a thread of its own.
    #[allow(dead_code)] // not every test has threads
    pub(crate) fn fork(&mut self) -> Rng {
        Rng(self.below(u64::MAX))
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
