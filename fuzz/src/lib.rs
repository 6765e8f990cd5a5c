//! What the fuzz targets share: bytes that stand in for random numbers.
//!
//! libFuzzer changes bytes; a target that only decoded them would seldom get past the first check. So the targets
//! that need plausible input take one decision after the other from them. When they are used up every draw is
//! zero, and the targets end.

/// The input of one run.
pub struct Draw<'a>(pub &'a [u8]);

impl<'a> Draw<'a> {
    /// Whether anything is left.
    pub fn more(&self) -> bool {
        !self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// Eight bytes as a number.
    pub fn u64(&mut self) -> u64 {
        (0..8).fold(0, |n, _| n << 8 | u64::from(self.byte()))
    }

    /// Below `sides`, which is at most 256.
    pub fn below(&mut self, sides: u64) -> u64 {
        u64::from(self.byte()) % sides.max(1)
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Mostly something near one of these numbers, seldom anything at all.
    pub fn near(&mut self, numbers: &[u64]) -> u64 {
        let kind = self.byte();
        match kind {
            0..=223 => {
                let at = numbers[usize::from(kind) % numbers.len()];
                match self.below(8) {
                    0..=3 => at,
                    4 => at.saturating_add(1),
                    5 => at.saturating_sub(1),
                    6 => at.saturating_add(2),
                    _ => at.saturating_sub(2),
                }
            }
            224..=239 => self.below(8),
            240..=247 => u64::MAX - self.below(4),
            _ => self.u64(),
        }
    }

    /// So many bytes, or what is left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
