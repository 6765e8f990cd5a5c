//! Every request ends, once, within its deadline and a margin; a crash of its node ends it, too (promise 4). After the
//! cluster has healed every request succeeds.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Event, Facts, Invariant};
use crate::testkit::world::{Ended, RequestId};

/// What a busy or paused node may add to a deadline, on a slow clock, in virtual milliseconds.
const MARGIN_MS: u64 = 15_000;

pub(crate) struct EveryRequestEnds {
    /// Whether a leader's room is so small that the commands of others fill it.
    tiny: bool,
    /// Those that wait: until when at most.
    open: BTreeMap<RequestId, u64>,
    /// Those made since the cluster has healed.
    calm: BTreeSet<RequestId>,
}

impl EveryRequestEnds {
    pub fn new(max_unapplied_bytes: usize) -> EveryRequestEnds {
        EveryRequestEnds { tiny: max_unapplied_bytes < 1 << 20, open: BTreeMap::new(), calm: BTreeSet::new() }
    }
}

impl Invariant for EveryRequestEnds {
    fn name(&self) -> &'static str {
        "every request ends once"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        match event {
            Event::Asked { id, deadline, .. } => {
                let patience = deadline.saturating_add(Duration::from_millis(MARGIN_MS)).as_millis() as u64;
                self.open.insert(*id, facts.now_ms + patience);
                if facts.calm {
                    self.calm.insert(*id);
                }
            }
            Event::Answered { id, ended } => {
                // Then "busy" is the right answer.
                let is_full = matches!(ended, Ended::Rejected(why) if self.tiny && why.starts_with("busy"));
                if let Ended::Rejected(why) | Ended::Unknown(why) = ended
                    && self.calm.contains(id)
                    && !is_full
                {
                    return Err(format!("request {id}, made after the cluster had healed, failed: {why}"));
                }
                if self.open.remove(id).is_none() {
                    return Err(format!("request {id} was answered twice"));
                }
            }
            Event::Looked { .. } => {
                // Requests are numbered in the order they were made, and all have deadlines of one kind: the first is the oldest.
                let late = self.open.iter().find(|(_, until)| **until < facts.now_ms);
                if let Some((id, until)) = late {
                    return Err(format!("request {id} should have ended by {until} ms"));
                }
            }
            Event::End => {
                if let Some(id) = self.open.keys().next() {
                    return Err(format!("{} requests never ended, the first is {id}", self.open.len()));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
