//! A subscriber gets every command once and in order, or gets an event that a snapshot stands for the missing commands:
//! there is never a silent gap.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Facts, Invariant};
use crate::world::Heard;

#[derive(Default)]
pub(crate) struct NoSilentGap {
    commands: BTreeSet<u64>,
    /// Per subscriber, up to where it has heard everything.
    heard: BTreeMap<u64, u64>,
}

impl Invariant for NoSilentGap {
    fn name(&self) -> &'static str {
        "no silent gap"
    }

    fn check(&mut self, event: &Event<'_>, _: &Facts) -> Result<(), String> {
        match event {
            Event::Applied { index, .. } => drop(self.commands.insert(*index)),
            Event::Listens { listener, after, .. } => drop(self.heard.insert(*listener, *after)),
            Event::Heard { listener, heard } => {
                let last = self.heard.entry(*listener).or_default();
                match heard {
                    // One that tells less than was heard already leaves nothing out.
                    Heard::Installed(index) => *last = *index.max(last),
                    Heard::Applied(index) if index <= last => {
                        return Err(format!("listener {listener} hears {index} after {last}"));
                    }
                    Heard::Applied(index) | Heard::Lagged(index) => {
                        if let Some(missed) = self.commands.range(*last + 1..(*index).max(*last + 1)).next() {
                            return Err(format!("listener {listener} hears {index} after {last}, and never {missed}"));
                        }
                        *last = *index.max(last);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
