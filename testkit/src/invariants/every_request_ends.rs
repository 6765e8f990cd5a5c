//! Every request ends, once, within its deadline and a margin; a crash of its node ends it, too (promise 4). After the
//! cluster has healed every request succeeds, except those that the leader refused because other commands filled its
//! bound.

use std::{collections::BTreeMap, time::Duration};

use super::{Event, Facts, Invariant, full_rooms::FullRooms};
use crate::world::{Ended, RequestId};

/// What a busy or paused node may add to a deadline, on a slow clock, in virtual milliseconds.
const MARGIN_MS: u64 = 15_000;

#[derive(Default)]
pub(crate) struct EveryRequestEnds {
    /// Those that wait: until when at most.
    open: BTreeMap<RequestId, u64>,
    /// Those made since the cluster has healed: when, and how large their commands are.
    calm: BTreeMap<RequestId, (u64, usize)>,
    rooms: FullRooms,
}

impl Invariant for EveryRequestEnds {
    fn name(&self) -> &'static str {
        "every request ends once"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        self.rooms.look(event, facts);
        match event {
            Event::Asked { id, deadline, command, .. } => {
                let longest = deadline.saturating_add(Duration::from_millis(MARGIN_MS)).as_millis() as u64;
                self.open.insert(*id, facts.now_ms + longest);
                if facts.calm {
                    self.calm.insert(*id, (facts.now_ms, command.map_or(0, |command| command.bytes)));
                }
            }
            Event::Answered { id, ended } => {
                if let Ended::Rejected(why) | Ended::Unknown(why) = ended
                    && let Some((since, bytes)) = self.calm.remove(id)
                {
                    let least = self.rooms.least_since(since);
                    if !why.starts_with("busy") || least >= bytes {
                        return Err(format!(
                            "request {id}, made after the cluster had healed, failed: {why} (a command of {bytes} \
                             bytes, and no leader had less room than {least} since)"
                        ));
                    }
                }
                if self.open.remove(id).is_none() {
                    return Err(format!("request {id} was answered twice"));
                }
            }
            Event::Looked { .. } => {
                // Requests are numbered in the order they were made, and all have deadlines of one kind: the first is
                // the oldest.
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
