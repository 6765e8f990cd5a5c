//! How many bytes of entries lie where in a log: what a policy needs to say what may go and what is to stay.
//!
//! Kept in steps of some 64 KiB, so that a log of millions of entries costs a table of thousands; inside a step every
//! entry counts the same. So an answer may be off by one step, but the whole is exact.
//!
//! Deliberately absent: the entries.

use std::collections::VecDeque;

/// How many bytes a step has before the next one begins.
const STEP: u64 = 64 << 10;

/// The sizes of a log without gaps, in bytes as [`Entry::size`](crate::wire::Entry::size) counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Ascending: the first index of a step, and how many bytes were counted before it. Where the count began does not
    /// matter.
    steps: VecDeque<(u64, u64)>,
    /// The index after the last entry.
    next: u64,
    /// How many bytes were counted up to there.
    end: u64,
}

impl Sizes {
    /// A log that is empty after `compacted_index`.
    pub fn empty_after(compacted_index: u64) -> Sizes {
        Sizes { steps: VecDeque::new(), next: compacted_index.saturating_add(1), end: 0 }
    }

    /// What a store recovered: (first index, bytes from there to the next such index), ascending, of a log up to
    /// `last`.
    pub fn recovered(compacted_index: u64, last: u64, steps: &[(u64, u64)]) -> Sizes {
        let mut sizes = Sizes::empty_after(compacted_index);
        for &(first, bytes) in steps {
            sizes.steps.push_back((first, sizes.end));
            sizes.end += bytes;
        }
        sizes.next = last.max(compacted_index).saturating_add(1);
        sizes
    }

    /// The same, as a store says it.
    pub fn steps(&self) -> Vec<(u64, u64)> {
        let ends = self.steps.iter().skip(1).map(|(_, offset)| *offset).chain([self.end]);
        self.steps.iter().zip(ends).map(|((first, offset), end)| (*first, end - offset)).collect()
    }

    /// The next entry is so large.
    pub fn push(&mut self, index: u64, bytes: u64) {
        if self.steps.back().is_none_or(|(_, offset)| self.end - offset >= STEP) {
            self.steps.push_back((index, self.end));
        }
        self.end += bytes;
        self.next = index.saturating_add(1);
    }

    /// The entries from `first` on are gone; they had so many bytes.
    pub fn truncate(&mut self, first: u64, bytes: u64) {
        while self.steps.back().is_some_and(|(start, _)| *start >= first) {
            self.steps.pop_back();
        }
        let least = self.steps.back().map_or(0, |(_, offset)| *offset);
        self.end = self.end.saturating_sub(bytes).max(least);
        self.next = self.next.min(first);
    }

    /// The entries up to `compacted_index` are gone.
    pub fn compact(&mut self, compacted_index: u64) {
        let first = compacted_index.saturating_add(1);
        let offset = self.offset(first);
        let inside = self.steps.partition_point(|(start, _)| *start <= first);
        self.steps.drain(..inside.saturating_sub(1));
        match self.steps.front_mut() {
            Some(_) if first >= self.next => {
                self.steps.clear();
                self.next = first;
            }
            Some(front) if front.0 < first => *front = (first, offset),
            _ => {}
        }
    }

    /// Bytes of all entries.
    pub fn total(&self) -> u64 {
        self.steps.front().map_or(0, |(_, offset)| self.end - offset)
    }

    /// Bytes of the entries after `index`.
    pub fn after(&self, index: u64) -> u64 {
        if self.steps.is_empty() { 0 } else { self.end - self.offset(index.saturating_add(1)) }
    }

    /// The lowest index such that the entries after it have at most so many bytes; `compacted_index` if all of them do.
    pub fn within(&self, bytes: u64, compacted_index: u64) -> u64 {
        let start = self.steps.front().map_or(self.end, |(_, offset)| *offset);
        let wanted = self.end.saturating_sub(bytes);
        if wanted <= start {
            return compacted_index;
        }
        // The step in which the wanted place lies begins before it.
        let nth = self.steps.partition_point(|(_, offset)| *offset < wanted) - 1;
        let (first, offset) = self.steps[nth];
        let (next, end) = self.step_end(nth);
        let entries = ((wanted - offset) as u128 * (next - first) as u128).div_ceil((end - offset) as u128);
        first + entries as u64 - 1
    }

    /// How many bytes were counted before the entry at `index`.
    fn offset(&self, index: u64) -> u64 {
        if index >= self.next {
            return self.end;
        }
        let after = self.steps.partition_point(|(first, _)| *first <= index);
        let Some(nth) = after.checked_sub(1) else { return self.steps.front().map_or(self.end, |(_, offset)| *offset) };
        let (first, offset) = self.steps[nth];
        let (next, end) = self.step_end(nth);
        offset + ((end - offset) as u128 * (index - first) as u128 / (next - first).max(1) as u128) as u64
    }

    /// Where a step ends: the index after it, and how many bytes were counted before that.
    fn step_end(&self, nth: usize) -> (u64, u64) {
        self.steps.get(nth + 1).copied().unwrap_or((self.next, self.end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// How far an answer may be off: a step, and what the entry that ended it was too large.
    const SLACK: u64 = STEP + LARGEST;
    const LARGEST: u64 = 200_000;

    #[derive(Clone, Debug)]
    enum Change {
        Push(Vec<u64>),
        Truncate(u64),
        Compact(u64),
        Reopen,
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            4 => prop::collection::vec(prop_oneof![24..2000u64, 24..LARGEST], 1..40).prop_map(Change::Push),
            1 => (0..1000u64).prop_map(Change::Truncate),
            1 => (0..1000u64).prop_map(Change::Compact),
            1 => Just(Change::Reopen),
        ]
    }

    proptest! {
        /// Against a plain list of sizes: the whole is exact, a part is off by a step at most, and the two questions
        /// agree.
        #[test]
        fn they_are_those_of_a_plain_list(changes in prop::collection::vec(change(), 1..40), compacted in 0..1000u64) {
            let (mut compacted, mut plain) = (compacted, BTreeMap::new());
            let mut sizes = Sizes::empty_after(compacted);
            for change in changes {
                let last = compacted + plain.len() as u64;
                match change {
                    Change::Push(new) => {
                        for (index, bytes) in (last + 1..).zip(new) {
                            plain.insert(index, bytes);
                            sizes.push(index, bytes);
                        }
                    }
                    Change::Truncate(of_thousand) => {
                        let first = compacted + 1 + (last - compacted) * of_thousand / 1000;
                        sizes.truncate(first, plain.split_off(&first).values().sum());
                    }
                    Change::Compact(of_thousand) => {
                        compacted += (last - compacted) * of_thousand / 1000;
                        plain = plain.split_off(&(compacted + 1));
                        sizes.compact(compacted);
                        // What goes is off by a step at most; from here on that is the size of what stays.
                        let left: u64 = plain.values().sum();
                        prop_assert!(sizes.total().abs_diff(left) <= SLACK);
                        let exact = plain.iter().fold(Sizes::empty_after(compacted), |mut exact, (index, bytes)| {
                            exact.push(*index, *bytes);
                            exact
                        });
                        sizes = exact;
                    }
                    Change::Reopen => {
                        let last = compacted + plain.len() as u64;
                        let reopened = Sizes::recovered(compacted, last, &sizes.steps());
                        prop_assert_eq!(reopened.total(), sizes.total());
                        sizes = reopened;
                    }
                }
                prop_assert_eq!(sizes.total(), plain.values().sum::<u64>());
                let last = compacted + plain.len() as u64;
                prop_assert_eq!((sizes.after(compacted), sizes.after(last)), (sizes.total(), 0));
                prop_assert_eq!(sizes.within(u64::MAX, compacted), compacted);
                prop_assert_eq!(sizes.within(0, compacted), last);
                for index in compacted..=last {
                    let exact: u64 = plain.range(index + 1..).map(|(_, bytes)| bytes).sum();
                    let after = sizes.after(index);
                    prop_assert!(after.abs_diff(exact) <= SLACK, "after {index}: {after} for {exact}");
                    let bytes = sizes.after(index);
                    let within = sizes.within(bytes, compacted);
                    prop_assert!(within <= index, "within {bytes}: {within} for {index}");
                    prop_assert!(sizes.after(within) <= bytes);
                    let lower = within.checked_sub(1).filter(|lower| *lower >= compacted);
                    prop_assert!(lower.is_none_or(|lower| sizes.after(lower) > bytes));
                }
            }
        }
    }

    #[test]
    fn a_large_log_costs_a_small_table() {
        let mut sizes = Sizes::empty_after(1);
        for index in 2..=1_000_001 {
            sizes.push(index, 152);
        }
        assert_eq!(sizes.total(), 152_000_000);
        assert!(sizes.steps.len() < 2500, "{}", sizes.steps.len());
        sizes.compact(900_001);
        assert_eq!((sizes.total(), sizes.within(1 << 20, 900_001)), (15_200_000, 1_000_001 - (1 << 20) / 152));
    }
}
