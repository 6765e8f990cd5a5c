//! A wrapper around the application's state machine. It reports to the world what the machine applies, and carries out
//! the faults of the machine.

use std::{
    io::{self, Read},
    panic::resume_unwind,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use actorum_machine::{
    ids::NodeId,
    machine::{self, ApplyContext, MachineError, StateMachine, StateView},
};

use super::{
    rng::{Rng, fingerprint},
    world::{Event, Print, World},
};

/// What can be done to the machine of one life of a node.
#[derive(Clone, Default)]
pub(crate) struct Hooks(Arc<HookState>);

#[derive(Default)]
struct HookState {
    /// The next `apply` panics.
    panic: AtomicBool,
    /// Every `apply` answers with what the one before answered, except on a node that has led in this life, where
    /// clients wait for the answers.
    lies: AtomicBool,
    /// This life is over: what its actors still do is seen by nobody.
    over: AtomicBool,
    /// What the next snapshot, or the next restore, comes to.
    snapshot_fails: Mutex<Option<MachineFault>>,
    restore_fails: Mutex<Option<MachineFault>>,
    /// What the next `apply` does first.
    slow: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// How the application's code fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MachineFault {
    /// It says so.
    Error,
    /// It panics.
    Panic,
}

impl Hooks {
    pub(crate) fn fail_next_snapshot(&self, fault: MachineFault) {
        *locked(&self.0.snapshot_fails) = Some(fault);
    }

    pub(crate) fn fail_next_restore(&self, fault: MachineFault) {
        *locked(&self.0.restore_fails) = Some(fault);
    }

    pub(crate) fn panic_next(&self) {
        self.0.panic.store(true, Relaxed);
    }

    /// From now on it answers wrongly, where only the hash of responses shows it.
    pub(crate) fn lie(&self, lies: bool) {
        self.0.lies.store(lies, Relaxed);
    }

    pub(crate) fn slow_next(&self, stand_still: Box<dyn FnOnce() + Send>) {
        *locked(&self.0.slow) = Some(stand_still);
    }

    /// Whatever was to happen to it does not.
    pub(crate) fn calm(&self) {
        self.0.panic.store(false, Relaxed);
        self.0.lies.store(false, Relaxed);
        *locked(&self.0.slow) = None;
        *locked(&self.0.snapshot_fails) = None;
        *locked(&self.0.restore_fails) = None;
    }

    pub(crate) fn end(&self) {
        self.0.over.store(true, Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.over.load(Relaxed)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A state no larger than this is looked at after every command.
const SMALL: usize = 4 << 10;

/// A state machine under watch. In front of the state that it writes stands the index of the last command in it, and
/// some bytes that make the file larger, so that its transfer takes time.
pub(crate) struct Watched<S: StateMachine> {
    pub inner: S,
    pub node: NodeId,
    pub world: World,
    pub hooks: Hooks,
    /// The index of the last command that its state contains.
    at: u64,
    small: bool,
    /// What it answered last.
    last: Option<Box<S::Response>>,
    /// So many bytes in front of the state.
    padding: usize,
}

impl<S: StateMachine> Watched<S> {
    pub(crate) fn new(inner: S, node: NodeId, world: World, hooks: Hooks, padding: usize) -> Watched<S> {
        let at = inner.applied().map_or(0, |(index, _)| index);
        Watched { inner, node, world, hooks, at, small: true, last: None, padding }
    }

    /// Whether it answers wrongly now.
    fn lies(&self) -> bool {
        if self.hooks.is_over() || !self.hooks.0.lies.load(Relaxed) {
            return false;
        }
        self.world.facts(|facts| {
            let Some(facts) = facts.nodes.get_mut(&self.node).filter(|facts| !facts.has_led) else { return false };
            facts.may_stop = true;
            facts.lies = true;
            true
        })
    }

    /// The application's code fails here if somebody set that hook.
    fn fail_if_set(
        &self,
        hook: &Mutex<Option<MachineFault>>,
        kind: &'static str,
        stops: bool,
    ) -> Result<(), MachineError> {
        if self.hooks.is_over() {
            return Ok(());
        }
        let Some(fault) = locked(hook).take() else { return Ok(()) };
        self.world.count(|counts| *counts.process.entry(kind).or_default() += 1);
        if stops {
            self.world.facts(|facts| {
                if let Some(facts) = facts.nodes.get_mut(&self.node) {
                    facts.may_stop = true;
                }
            });
        }
        match fault {
            MachineFault::Error => Err(MachineError::new("the simulation set a hook")),
            // Without the hook that would print it: this panic is part of the plan.
            MachineFault::Panic => resume_unwind(Box::new("the simulation set a hook")),
        }
    }
}

/// The whole state of a machine, as it would be written.
pub(crate) fn state_of<S: StateMachine>(machine: &S) -> Result<Vec<u8>, MachineError> {
    let mut bytes = Vec::new();
    machine.snapshot()?.write_to(&mut bytes)?;
    Ok(bytes)
}

impl<S: StateMachine> StateMachine for Watched<S> {
    type Command = S::Command;
    type Response = S::Response;

    fn apply(&mut self, ctx: &ApplyContext, command: &S::Command) -> S::Response {
        if self.hooks.0.panic.swap(false, Relaxed) && !self.hooks.is_over() {
            self.world.count(|counts| *counts.process.entry("panic of the state machine").or_default() += 1);
            self.world.facts(|facts| {
                if let Some(facts) = facts.nodes.get_mut(&self.node) {
                    facts.may_stop = true;
                }
            });
            // Without the hook that would print it: this panic is part of the plan.
            resume_unwind(Box::new("the simulation set a hook"));
        }
        let slow = locked(&self.hooks.0.slow).take();
        if !self.hooks.is_over() {
            slow.into_iter().for_each(|stand_still| stand_still());
        }
        let response = self.inner.apply(ctx, command);
        self.at = ctx.index;
        if !self.hooks.is_over() {
            let (index, term) = (ctx.index, ctx.term);
            // The version in force is part of what nodes must agree on.
            let (command, response) = (print_of(command).hash, print_of(&(ctx.version, &response)).hash);
            // A large one is looked at only where it is written anyway.
            let state = self.small.then(|| state_of(&self.inner).ok()).flatten();
            self.small = state.as_ref().is_some_and(|state| state.len() <= SMALL);
            let state = state.map(|state| fingerprint(&state));
            self.world.saw(Event::Applied { node: self.node, index, term, command, response, state });
        }
        match self.last.replace(Box::new(response.clone())) {
            Some(last) if self.lies() => *last,
            _ => response,
        }
    }

    fn snapshot(&self) -> Result<StateView, MachineError> {
        self.fail_if_set(&self.hooks.0.snapshot_fails, "failing snapshot of the state machine", false)?;
        let (captured, at, padding) = (self.inner.snapshot()?, self.at, self.padding);
        if !self.hooks.is_over() {
            self.world.saw(Event::Captured { node: self.node, at });
        }
        Ok(StateView::new(move |out| {
            out.write_all(&at.to_le_bytes())?;
            // Random, so that compression finds nothing.
            let mut rng = Rng::new(at);
            let bytes: Vec<u8> = (0..padding).map(|_| rng.roll() as u8).collect();
            out.write_all(&(padding as u64).to_le_bytes())?;
            out.write_all(&bytes)?;
            captured.write_to(out)
        }))
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), MachineError> {
        self.fail_if_set(&self.hooks.0.restore_fails, "failing restore of the state machine", true)?;
        let (mut at, mut padding) = ([0; 8], [0; 8]);
        from.read_exact(&mut at)?;
        from.read_exact(&mut padding)?;
        io::copy(&mut from.take(u64::from_le_bytes(padding)), &mut io::sink())?;
        self.inner.restore(from)?;
        // To the end: only there the last checksum is looked at.
        io::copy(from, &mut io::sink())?;
        self.at = u64::from_le_bytes(at);
        if !self.hooks.is_over() {
            let state = fingerprint(&state_of(&self.inner)?);
            self.world.saw(Event::Restored { node: self.node, at: self.at, state });
        }
        Ok(())
    }

    fn applied(&self) -> Option<(u64, u64)> {
        self.inner.applied()
    }
}

/// Something as it is encoded.
pub(crate) fn print_of<T: serde::Serialize>(value: &T) -> Print {
    let encoded = machine::encode(value).unwrap_or_default();
    Print { hash: fingerprint(&encoded), bytes: encoded.len() }
}
