//! Where the cluster waits for its operator (`activate = "manual"`), nothing is put to use before the operator asks.

use super::{Event, Facts, Invariant};

pub(crate) struct NothingInUseUnasked;

impl Invariant for NothingInUseUnasked {
    fn name(&self) -> &'static str {
        "nothing is put to use unasked"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        match (event, facts.in_use.unasked()) {
            (Event::Drained { .. }, Some(index)) => {
                Err(format!("the entry {index} puts something to use, and no operator has asked"))
            }
            _ => Ok(()),
        }
    }
}
