//! A program stops at the first entry that puts to use what it lacks, before it applies anything behind it; and for no
//! other reason does it say that it lacks something.

use super::{Event, Facts, Invariant};
use crate::fleet::is_outdated;

pub(crate) struct ProgramsStopInTime;

impl Invariant for ProgramsStopInTime {
    fn name(&self) -> &'static str {
        "a program stops at what it lacks"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let (node, applied) = match event {
            Event::Stopped { node, cause } if is_outdated(cause) => {
                let Some(program) = facts.nodes.get(node).map(|facts| facts.program) else { return Ok(()) };
                return match facts.in_use.lacks(program) {
                    Some(_) => Ok(()),
                    None => Err(format!(
                        "n{node} has {program:?}, which lacks nothing that is in use, and stopped: {cause}"
                    )),
                };
            }
            Event::Applied { node, index, .. } | Event::Restored { node, at: index, .. } => (node, *index),
            Event::Looked { node, status } => (node, status.applied_index),
            _ => return Ok(()),
        };
        let Some(program) = facts.nodes.get(node).map(|facts| facts.program) else { return Ok(()) };
        match facts.in_use.lacks(program) {
            Some((index, what)) if applied >= index => {
                Err(format!("n{node} has {program:?} and has applied {applied}, and {what} is in use since {index}"))
            }
            _ => Ok(()),
        }
    }
}
