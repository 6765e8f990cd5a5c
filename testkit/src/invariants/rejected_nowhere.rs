//! A proposal that was answered "rejected" is never applied, and none is applied twice (promise 4): of commands with
//! one content no more are applied than were proposed and not rejected.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Facts, Invariant};
use crate::world::{Ended, RequestId};

#[derive(Default)]
pub(crate) struct RejectedNowhere {
    requests: BTreeMap<RequestId, u64>,
    /// By content: how many may be in the log, and at which indexes they are.
    may_be: BTreeMap<u64, (u64, BTreeSet<u64>)>,
}

impl Invariant for RejectedNowhere {
    fn name(&self) -> &'static str {
        "rejected nowhere, nothing twice"
    }

    fn check(&mut self, event: &Event<'_>, _: &Facts) -> Result<(), String> {
        let command = match event {
            Event::Asked { id, command: Some(command), .. } => {
                self.requests.insert(*id, command.hash);
                self.may_be.entry(command.hash).or_default().0 += 1;
                return Ok(());
            }
            Event::Answered { id, ended: Ended::Rejected(_) } => {
                let Some(command) = self.requests.get(id) else { return Ok(()) };
                self.may_be.entry(*command).or_default().0 -= 1;
                command
            }
            Event::Applied { index, command, .. } => {
                self.may_be.entry(*command).or_default().1.insert(*index);
                command
            }
            _ => return Ok(()),
        };
        let (may_be, are) = &self.may_be[command];
        if are.len() as u64 > *may_be {
            return Err(format!("{may_be} proposals of one content may be in the log, and they are at {are:?}"));
        }
        Ok(())
    }
}
