//! The links between the nodes: two ordered lanes each way, with faults.
//!
//! ```text
//!  carry ─▶ cut? lost? ─▶ lane: due = max(now + delay, the last due) ─▶ scheduler ─▶ same connection? running? ─▶ deliver
//! ```
//!
//! Within one connection a lane keeps its order, as a QUIC stream does; the urgent lane overtakes the other; questions
//! and answers have streams of their own and keep none. A reset drops what is under way, and what comes after it
//! belongs to a new connection. Parcels may also be dropped or doubled in the middle of a lane. That is harsher than
//! QUIC, on purpose.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actorum_machine::ids::NodeId;
use actorum_transport::memory::{Deliver, Endpoint, Frames, LinkModel, Parcel};

use super::{
    disk::Loss,
    rng::Rng,
    world::{Event, World},
};

/// The state of one direction of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkFaults {
    /// Parcels lost, of a hundred thousand.
    pub loss: u32,
    /// Raft messages delivered twice, of a hundred thousand.
    pub duplication: u32,
    /// The least delay, in milliseconds.
    pub delay_ms: u64,
    /// What chance adds to it at most.
    pub jitter_ms: u64,
}

impl LinkFaults {
    pub(crate) const FAIR: LinkFaults = LinkFaults { loss: 0, duplication: 0, delay_ms: 1, jitter_ms: 2 };
}

#[derive(Clone, Copy)]
struct Link {
    link_faults: LinkFaults,
    /// How many faults cut it now.
    cuts: u32,
    /// Which connection this is.
    connection: u64,
    /// When the last parcel of each lane is due.
    due: [u64; 2],
}

/// A process, as the network sees it.
#[derive(Clone, Copy, Default)]
struct Process {
    boot: u64,
    running: bool,
    paused: bool,
}

/// All links. Clones are the same.
#[derive(Clone)]
pub(crate) struct Links {
    world: World,
    frames: Frames,
    state: Arc<Mutex<State>>,
}

struct State {
    rng: Rng,
    links: BTreeMap<(NodeId, NodeId), Link>,
    processes: BTreeMap<NodeId, Process>,
    /// What waits for a paused process, in order; it or what it sends.
    held: Vec<(NodeId, Held)>,
    /// A process that loses its power when it has sent so many more parcels.
    armed: BTreeMap<NodeId, (u64, Loss)>,
    /// Takes the power of a process whose count is over.
    power: Option<Arc<dyn Fn(NodeId, Loss) + Send + Sync>>,
    /// Messages that filled half a frame and more.
    large: u64,
}

struct Held {
    /// Before this moment it may not arrive: something of its lane is due then.
    not_before: u64,
    from: NodeId,
    to: NodeId,
    boots: (u64, u64),
    connection: u64,
    deliver: Deliver,
}

impl Links {
    pub(crate) fn new(world: &World, frames: Frames, rng: Rng) -> Links {
        let state = State {
            rng,
            links: BTreeMap::new(),
            processes: BTreeMap::new(),
            held: Vec::new(),
            armed: BTreeMap::new(),
            power: None,
            large: 0,
        };
        Links { world: world.clone(), frames, state: Arc::new(Mutex::new(state)) }
    }

    /// From now on a process with this boot number runs.
    pub(crate) fn up(&self, node: NodeId, boot: u64) {
        self.lock().processes.insert(node, Process { boot, running: true, paused: false });
    }

    /// It is gone, and its connections with it.
    pub(crate) fn down(&self, node: NodeId) {
        let mut state = self.lock();
        if let Some(process) = state.processes.get_mut(&node) {
            *process = Process { boot: process.boot, ..Process::default() };
        }
        state.armed.remove(&node);
        state.held.retain(|(_, held)| held.from != node && held.to != node);
        for ((from, to), link) in &mut state.links {
            if *from == node || *to == node {
                link.connection += 1;
            }
        }
    }

    /// There was never such a process.
    pub(crate) fn forget(&self, node: NodeId) {
        let mut state = self.lock();
        state.processes.remove(&node);
        state.links.retain(|(from, to), _| *from != node && *to != node);
    }

    pub(crate) fn pause(&self, node: NodeId) {
        if let Some(process) = self.lock().processes.get_mut(&node) {
            process.paused = true;
        }
    }

    /// It goes on: what waited for it moves, in order.
    pub(crate) fn resume(&self, node: NodeId) {
        let mut state = self.lock();
        if let Some(process) = state.processes.get_mut(&node) {
            process.paused = false;
        }
        let (mine, others) = std::mem::take(&mut state.held).into_iter().partition(|(whom, _)| *whom == node);
        state.held = others;
        drop(state);
        let (mine, now): (Vec<(NodeId, Held)>, u64) = (mine, self.world.scheduler().now_ms());
        for (_, held) in mine {
            let links = self.clone();
            // Through the scheduler, which keeps the order of what is due together.
            self.world.scheduler().after_ms(held.not_before.saturating_sub(now), move || links.arrive(held));
        }
    }

    /// The faults of one direction from now on.
    pub(crate) fn set(&self, from: NodeId, to: NodeId, change: impl FnOnce(&mut LinkFaults)) {
        change(&mut self.lock().link(from, to).link_faults);
    }

    /// One more fault cuts this direction.
    pub(crate) fn cut(&self, from: NodeId, to: NodeId) {
        self.lock().link(from, to).cuts += 1;
    }

    /// One fault less does.
    pub(crate) fn heal(&self, from: NodeId, to: NodeId) {
        let mut state = self.lock();
        let link = state.link(from, to);
        link.cuts = link.cuts.saturating_sub(1);
    }

    /// The connection between two nodes breaks: what is under way is lost, both ways.
    pub(crate) fn reset(&self, a: NodeId, b: NodeId) {
        let mut state = self.lock();
        state.link(a, b).connection += 1;
        state.link(b, a).connection += 1;
    }

    /// No faults anywhere.
    pub(crate) fn calm(&self) {
        let mut state = self.lock();
        state.links.values_mut().for_each(|link| (link.link_faults, link.cuts) = (LinkFaults::FAIR, 0));
        state.armed.clear();
    }

    /// After so many more parcels of this node its power goes, in the middle of whatever it does.
    pub(crate) fn arm(&self, node: NodeId, parcels: u64, loss: Loss) {
        self.lock().armed.insert(node, (parcels, loss));
    }

    /// The function that cuts the power of a process whose count is over.
    pub(crate) fn cut_power_with(&self, power: Option<Arc<dyn Fn(NodeId, Loss) + Send + Sync>>) {
        self.lock().power = power;
    }

    /// How many messages have filled half a frame and more.
    pub(crate) fn large_messages(&self) -> u64 {
        self.lock().large
    }

    fn arrive(&self, held: Held) {
        let Held { from, to, boots, connection, .. } = held;
        let mut state = self.lock();
        let process = |id| state.processes.get(&id).copied().unwrap_or_default();
        let (sender, receiver) = (process(from), process(to));
        let same = (sender.boot, receiver.boot) == boots && receiver.running;
        if !same || state.link(from, to).connection != connection || state.link(from, to).cuts > 0 {
            return;
        }
        if receiver.paused {
            state.held.push((to, held));
            return;
        }
        drop(state);
        (held.deliver)();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn link(&mut self, from: NodeId, to: NodeId) -> &mut Link {
        let fair = Link { link_faults: LinkFaults::FAIR, cuts: 0, connection: 0, due: [0; 2] };
        self.links.entry((from, to)).or_insert(fair)
    }
}

impl LinkModel for Links {
    fn stands(&self, Endpoint(from): Endpoint, Endpoint(to): Endpoint) -> bool {
        let state = self.lock();
        let runs = |state: &State, id| state.processes.get(&id).is_some_and(|process| process.running);
        // A cut is silent: whoever sends into it is told nothing, as on a real network.
        runs(&state, from) && runs(&state, to)
    }

    fn frames(&self) -> Frames {
        self.frames
    }

    fn fits_no_frame(&self, Endpoint(from): Endpoint, Endpoint(to): Endpoint, parcel: Parcel<'_>, bytes: usize) {
        self.world.saw(Event::FitsNoFrame { from, to, parcel: &parcel, bytes });
    }

    fn carry(&self, from: (Endpoint, u64), Endpoint(to): Endpoint, parcel: Parcel<'_>, deliver: Deliver) {
        let (Endpoint(from), boot) = from;
        let now = self.world.scheduler().now_ms();
        let mut state = self.lock();
        let process = |id| state.processes.get(&id).copied().unwrap_or_default();
        let (sender, receiver) = (process(from), process(to));
        // A crashed process sends nothing, even if its actors have not ended yet.
        if !sender.running || sender.boot != boot {
            return;
        }
        if let Some((left, loss)) = state.armed.get_mut(&from) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                let loss = *loss;
                state.armed.remove(&from);
                let power = state.power.clone();
                drop(state);
                return power.into_iter().for_each(|power| power(from, loss));
            }
        }
        let Link { link_faults, cuts, connection, mut due } = *state.link(from, to);
        if cuts > 0 || state.rng.happens(link_faults.loss) {
            return;
        }
        let delay = link_faults.delay_ms + state.rng.below(link_faults.jitter_ms + 1);
        let moment = match parcel {
            Parcel::Message(message) => {
                state.large += u64::from(2 * message.encoded_bound() >= self.frames.messages);
                let lane = &mut due[usize::from(message.kind.is_urgent())];
                *lane = (now + delay).max(*lane);
                *lane
            }
            _ => now + delay,
        };
        state.link(from, to).due = due;
        let boots = (sender.boot, receiver.boot);
        let held = |deliver| Held { not_before: moment, from, to, boots, connection, deliver };
        if sender.paused {
            state.held.push((from, held(deliver)));
            return;
        }
        let twice = matches!(parcel, Parcel::Message(_)) && state.rng.happens(link_faults.duplication);
        let again = twice.then(|| moment + state.rng.below(20));
        drop(state);
        let links = self.clone();
        if let Some(again) = again {
            let (links, held) = (links.clone(), held(deliver.clone()));
            self.world.scheduler().after_ms(again - now, move || links.arrive(held));
        }
        let held = held(deliver);
        self.world.scheduler().after_ms(moment - now, move || links.arrive(held));
    }
}
