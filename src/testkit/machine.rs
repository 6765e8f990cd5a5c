//! The application's state machine, watched: what it applies is told to the world, and what is done to it comes in here.

use std::{
    io::Read,
    panic::resume_unwind,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use actorum_actors::machine::{self, ApplyContext, Frozen, MachineError, StateMachine};
use actorum_transport::wire::NodeId;

use super::{
    dice::fingerprint,
    world::{Event, World},
};

/// What can be done to the machine of one life of a node.
#[derive(Clone, Default)]
pub(crate) struct Strings(Arc<Pulled>);

#[derive(Default)]
struct Pulled {
    /// The next `apply` panics.
    panic: AtomicBool,
    /// This life is over: what its actors still do is seen by nobody.
    over: AtomicBool,
    /// What the next `apply` does first.
    slow: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Strings {
    pub fn panic_next(&self) {
        self.0.panic.store(true, Relaxed);
    }

    pub fn slow_next(&self, stand_still: Box<dyn FnOnce() + Send>) {
        *self.0.slow.lock().unwrap_or_else(PoisonError::into_inner) = Some(stand_still);
    }

    /// Whatever was to happen to it does not.
    pub fn calm(&self) {
        self.0.panic.store(false, Relaxed);
        *self.0.slow.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn cut(&self) {
        self.0.over.store(true, Relaxed);
    }

    pub fn is_cut(&self) -> bool {
        self.0.over.load(Relaxed)
    }
}

/// A state machine under watch.
pub(crate) struct Watched<S> {
    pub inner: S,
    pub node: NodeId,
    pub world: World,
    pub strings: Strings,
}

impl<S: StateMachine> StateMachine for Watched<S> {
    type Command = S::Command;
    type Response = S::Response;

    fn apply(&mut self, ctx: &ApplyContext, command: &S::Command) -> S::Response {
        if self.strings.0.panic.swap(false, Relaxed) && !self.strings.is_cut() {
            self.world.count(|counts| *counts.process.entry("panic of the state machine").or_default() += 1);
            self.world.facts(|facts| {
                if let Some(facts) = facts.nodes.get_mut(&self.node) {
                    facts.may_stop = true;
                }
            });
            // Without the hook that would print it: this panic is part of the plan.
            resume_unwind(Box::new("the simulation pulled a string"));
        }
        let slow = self.strings.0.slow.lock().unwrap_or_else(PoisonError::into_inner).take();
        if !self.strings.is_cut() {
            slow.into_iter().for_each(|stand_still| stand_still());
        }
        let response = self.inner.apply(ctx, command);
        if !self.strings.is_cut() {
            let (index, term) = (ctx.index, ctx.term);
            let (command, response) = (print_of(command), print_of(&response));
            self.world.saw(Event::Applied { node: self.node, index, term, command, response });
        }
        response
    }

    fn snapshot(&self) -> Result<Frozen, MachineError> {
        self.inner.snapshot()
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), MachineError> {
        self.inner.restore(from)
    }

    fn applied(&self) -> Option<(u64, u64)> {
        self.inner.applied()
    }
}

/// The fingerprint of something encoded.
pub(crate) fn print_of<T: serde::Serialize>(value: &T) -> u64 {
    machine::encode(value).map_or(0, |bytes| fingerprint(&bytes))
}
