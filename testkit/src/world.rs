//! The world of a simulation: every event goes through here, once, in order.
//!
//! ```text
//!  cores (observer), machines, wire, disks, clients ──Event──▶ World ─▶ trace hash, story
//!                                                               ├─▶ Facts: what an all-knowing observer knows
//!                                                               └─▶ every invariant, which may say "broken"
//! ```
//!
//! The first broken invariant ends the run. Nothing here decides anything: the world watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actorum::Config;
use actorum_core::{
    log::store::Recovered,
    marks::Mark,
    message::Append,
    observer::RaftState,
    system_state::GENESIS_INDEX,
    wire::{Entry, EntryKind, MessageKind, RaftMessage, Snapshot, SnapshotFile},
};
use actorum_machine::{
    ids::{Incarnation, NodeId},
    members::Membership,
    status::Role,
};
use actorum_transport::memory::Parcel;
use tokio::sync::Notify;

use super::{
    clock::NodeClock,
    fleet::Program,
    in_use::InUse,
    invariants::{self, Invariant},
    report::{Counts, Violation},
    rng::{fingerprint, mix},
    scheduler::Scheduler,
};

/// The number of a client's request.
pub(crate) type RequestId = u64;

/// A command as the world knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Print {
    /// Equal commands have equal ones.
    pub hash: u64,
    /// How many bytes it is, encoded.
    pub bytes: usize,
}

/// How a request ended, as its client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Applied there.
    Applied { index: u64, term: u64 },
    /// A read was served, or a change made.
    Done,
    /// Surely without effect.
    Rejected(String),
    /// Nobody can tell.
    Unknown(String),
}

/// Something that happened.
pub(crate) enum Event<'a> {
    /// A node's process began, and this is what its disk held.
    Started { node: NodeId, incarnation: Incarnation, recovered: &'a Recovered, entries: &'a [Entry] },
    /// A node's process is gone: killed, without power, or shut down.
    Ended { node: NodeId, how: &'a str },
    /// A node's core decided this.
    Drained { node: NodeId, drained: &'a Decided<'a> },
    /// The state of a node that starts was rebuilt, from the snapshot of this index.
    Replayed { node: NodeId, snapshot: u64 },
    /// A state machine applied a command, and this is what its state is now, if that was looked at.
    Applied { node: NodeId, index: u64, term: u64, command: u64, response: u64, state: Option<u64> },
    /// A node applied a mark, now or again at its start, and has come to this.
    Marked { node: NodeId, mark: Mark },
    /// A state machine handed out its state, whose last command is that at `at`.
    Captured { node: NodeId, at: u64 },
    /// A state machine was given a state, whose last command is that at `at`.
    Restored { node: NodeId, at: u64, state: u64 },
    /// A subscriber of this number begins to listen: it has heard everything up to `after`.
    Listens { listener: u64, node: NodeId, after: u64 },
    /// It heard of a command, or that those up to an index will not be told.
    Heard { listener: u64, heard: Heard },
    /// A client asks for something. `command` is what it proposes.
    Asked { id: RequestId, node: NodeId, command: Option<Print>, deadline: Duration },
    /// It was told how that ended.
    Answered { id: RequestId, ended: &'a Ended },
    /// What takes so many bytes fits no frame, and did not leave.
    FitsNoFrame { from: NodeId, to: NodeId, parcel: &'a Parcel<'a>, bytes: usize },
    /// A look at a node's status.
    Looked { node: NodeId, status: &'a actorum::Status },
    /// A node stopped by itself.
    Stopped { node: NodeId, cause: &'a str },
    /// Faults are over; everything must come back.
    Healed,
    /// It came back: from now on every request succeeds.
    Calm,
    /// Clients end with what they do.
    Closing,
    /// The simulation is at its end.
    End,
}

/// What a subscriber hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Applied(u64),
    Installed(u64),
    /// It is unsubscribed, and was told everything up to there.
    Lagged(u64),
}

/// A drain, as invariants want to see it.
pub(crate) struct Decided<'a> {
    pub raft_state: RaftState,
    pub append: &'a [Append],
    pub transmit: &'a [(NodeId, RaftMessage)],
    pub apply: Vec<&'a Entry>,
    /// The snapshot that its state machine is given: index and term.
    pub restore: Option<(u64, u64)>,
    /// The voters in force on that node.
    pub voters: Vec<NodeId>,
    /// To whom it is sending a snapshot, and of which index.
    pub sends: Vec<(NodeId, u64)>,
    /// Whether it was told that its disk is low on space.
    pub low_space: bool,
}

/// An entry by its position: its term, what it says, and whether it changes the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryFacts {
    pub term: u64,
    pub hash: u64,
    pub kind: EntryKind,
    /// As bounds count it, in bytes.
    pub size: usize,
}

/// A node's log as its core has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelLog {
    /// The index before the first entry, and its term.
    pub compacted: (u64, u64),
    pub entries: Vec<EntryFacts>,
}

impl ModelLog {
    pub(crate) fn last(&self) -> u64 {
        self.compacted.0 + self.entries.len() as u64
    }

    pub(crate) fn get(&self, index: u64) -> Option<&EntryFacts> {
        self.entries.get(index.checked_sub(self.compacted.0 + 1)? as usize)
    }

    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.compacted.0 { Some(self.compacted.1) } else { self.get(index).map(|entry| entry.term) }
    }

    fn append(&mut self, entries: &[Entry]) {
        if let Some(first) = entries.first() {
            self.entries.truncate(first.index.saturating_sub(self.compacted.0 + 1) as usize);
        }
        self.entries.extend(entries.iter().map(facts_of));
    }

    /// Its beginning is cut off.
    fn compact(&mut self, up_to: u64) {
        let Some(term) = self.term_at(up_to).filter(|_| up_to > self.compacted.0) else { return };
        self.entries.drain(..(up_to - self.compacted.0) as usize);
        self.compacted = (up_to, term);
    }
}

pub(crate) fn facts_of(entry: &Entry) -> EntryFacts {
    let hash = fingerprint(&entry.data) ^ fingerprint(&entry.context);
    EntryFacts { term: entry.term, hash, kind: entry.kind, size: entry.size() }
}

/// What is durable on a node's disk at this very moment.
pub(crate) trait Durable: Send {
    /// Term, vote, and the last index.
    fn state(&self) -> (u64, NodeId, u64);
    /// The term of the entry at an index, or the one at the compacted index.
    fn term_at(&self, index: u64) -> Option<u64>;
    /// The index before the log's first entry.
    fn compacted_index(&self) -> u64;
    /// Whether the whole file of a snapshot is there, under its name.
    fn has_file(&self, snapshot: &Snapshot, file: &SnapshotFile) -> bool;
}

/// What is known of one node.
pub(crate) struct NodeFacts {
    /// How often its process was started; a new number for every life.
    pub life: u64,
    pub running: bool,
    /// The incarnation with which it became known, and the one it runs with.
    pub known_as: Incarnation,
    pub incarnation: Incarnation,
    pub log: ModelLog,
    pub raft_state: Option<RaftState>,
    /// The highest index handed to the applier in this life, by earlier drains.
    pub handed: u64,
    /// How many bytes may be in its log and not applied, as it leads.
    pub room: usize,
    /// The newest snapshot that it had when this life began.
    pub newest: u64,
    pub disk: Option<Box<dyn Durable>>,
    /// Its clocks, which go on while it is down.
    pub clock: Option<NodeClock>,
    /// The membership it has applied.
    pub membership: Option<Box<dyn Fn() -> Arc<Membership> + Send>>,
    /// Whether its disk is not its own now: wiped, or swapped for an older copy. What it had is brought back.
    pub tampered: bool,
    /// Whether it runs with an older copy of its directory, which has forgotten what it promised since. That is brought
    /// back.
    pub older: bool,
    /// Whether a fault that stops it by itself was injected in this life.
    pub may_stop: bool,
    /// Whether it has led in this life.
    pub has_led: bool,
    /// Whether its machine answered wrongly in this life.
    pub lies: bool,
    /// The program of this life.
    pub program: Program,
    /// What its machine's answers came to at the marks of this life: since when, the value, and the moment.
    pub marks: BTreeMap<u64, (u64, u128, u64)>,
}

/// What an all-knowing observer knows.
#[derive(Default)]
pub(crate) struct Facts {
    pub now_ms: u64,
    pub nodes: BTreeMap<NodeId, NodeFacts>,
    /// Every entry some node knew to be committed, and the least term in which one knew.
    pub committed: BTreeMap<u64, (EntryFacts, u64)>,
    /// The voters, as the leader that drained last had them.
    pub voters: Vec<NodeId>,
    /// What the committed entries put to use.
    pub in_use: InUse,
    /// Whether every request must succeed.
    pub calm: bool,
    /// Whether clients should end.
    pub closing: bool,
}

/// So many turns of clients at one moment of virtual time are not work, but a loop that takes no virtual time.
const MOST_TURNS: u64 = 50_000;

/// So many within [`WINDOW_MS`] are none either: requests that take a moment each, and hardly that.
const MOST_TURNS_IN_WINDOW: u64 = 40_000;

/// Virtual milliseconds.
const WINDOW_MS: u64 = 100;

/// What is broken when virtual time stands still for too long in real time. It shows in no second run of the seed.
pub(crate) const STANDSTILL: &str = "virtual time moves";

/// Shared by everything in a simulation. Clones are the same world.
#[derive(Clone)]
pub(crate) struct World(Arc<Inner>);

struct Inner {
    scheduler: Scheduler,
    /// Whether the story is told, which costs time.
    telling: bool,
    decided: Notify,
    /// The virtual moment, in milliseconds, when something was last seen: for whoever looks from outside the runtime.
    seen_ms: AtomicU64,
    state: Mutex<State>,
}

struct State {
    facts: Facts,
    invariants: Vec<Box<dyn Invariant>>,
    hash: u64,
    counts: Counts,
    violation: Option<Violation>,
    story: Vec<String>,
    over: bool,
    next_request: RequestId,
    /// How often clients were heard of at this virtual moment, in milliseconds.
    turns: (u64, u64),
    /// The moment when the window of turns began, and how many clients have taken in it.
    window: (u64, u64),
    /// Terms in which somebody led.
    led: BTreeSet<u64>,
}

impl World {
    pub(crate) fn new(scheduler: &Scheduler, telling: bool, bounds: &Config) -> World {
        let state = State {
            facts: Facts::default(),
            invariants: invariants::all(bounds),
            hash: 0,
            counts: Counts::default(),
            violation: None,
            story: Vec::new(),
            over: false,
            next_request: 1,
            turns: (0, 0),
            window: (0, 0),
            led: BTreeSet::new(),
        };
        World(Arc::new(Inner {
            scheduler: scheduler.clone(),
            telling,
            decided: Notify::new(),
            seen_ms: AtomicU64::new(0),
            state: Mutex::new(state),
        }))
    }

    /// Adds a line to the story.
    pub(crate) fn tell(&self, line: impl FnOnce() -> String) {
        if self.0.telling {
            let mut state = self.lock();
            if state.over {
                return;
            }
            let line = format!("{:>7} ms  {}", self.0.scheduler.now_ms(), line());
            state.story.push(line);
        }
    }

    /// Counts a fault that fired, or whatever else the report counts; part of the trace.
    pub(crate) fn count(&self, count: impl FnOnce(&mut Counts)) {
        let mut state = self.lock();
        count(&mut state.counts);
        let now = self.0.scheduler.now_ms();
        state.hash = mix(state.hash ^ now ^ 0xc0);
    }

    /// Something happened.
    pub(crate) fn saw(&self, event: Event<'_>) {
        let mut state = self.lock();
        if state.over {
            return;
        }
        let now = self.seen_now();
        state.facts.now_ms = now;
        let digest = digest(&event);
        state.hash = mix(state.hash ^ digest ^ now.rotate_left(20));
        if self.0.telling
            && let Some(line) = line(&event)
        {
            let line = format!("{now:>7} ms  {line}");
            state.story.push(line);
        }
        let state = &mut *state;
        if let Event::Drained { drained, .. } = &event
            && drained.raft_state.role == Role::Leader
            && state.led.insert(drained.raft_state.term)
        {
            state.counts.elections += 1;
        }
        state.count_snapshots(&event);
        state.facts.before(&event);
        for invariant in &mut state.invariants {
            if let Err(detail) = invariant.check(&event, &state.facts) {
                let violation = Violation { invariant: invariant.name(), at_ms: now, detail };
                if self.0.telling {
                    state.story.push(format!("{now:>7} ms  BROKEN {}: {}", violation.invariant, violation.detail));
                }
                state.violation = Some(violation);
                state.over = true;
                self.0.decided.notify_waiters();
                return;
            }
        }
        state.facts.after(&event);
    }

    /// Whether a node stands where it stood after its last drain.
    pub(crate) fn stands(&self, node: NodeId, raft_state: RaftState) -> bool {
        self.lock().facts.nodes.get(&node).is_some_and(|facts| facts.raft_state == Some(raft_state))
    }

    /// The virtual moment, which is noted for whoever looks from another thread.
    fn seen_now(&self) -> u64 {
        let now = self.0.scheduler.now_ms();
        self.0.seen_ms.store(now, Ordering::Relaxed);
        now
    }

    /// The virtual moment when something was last seen. May be asked on any thread.
    pub(crate) fn last_seen_ms(&self) -> u64 {
        self.0.seen_ms.load(Ordering::Relaxed)
    }

    /// Virtual time has stood still at this moment for so long in real time. May be said on any thread.
    pub(crate) fn stood_still(&self, at_ms: u64, real: Duration) {
        let (moment, turns) = self.lock().turns;
        let why = match moment == at_ms && turns > 1 {
            true => format!("clients took {turns} turns at that moment: what they do there takes no virtual time"),
            false => {
                "a client is ready again and again without waiting for anything that takes virtual time".to_owned()
            }
        };
        let detail = format!(
            "virtual time stood still for {real:?} of real time: {why}. Let a client think (`Client::think`) where \
             nothing else takes time"
        );
        self.broken_at(at_ms, STANDSTILL, detail);
    }

    /// Somebody outside the invariants found something broken.
    pub(crate) fn broken(&self, invariant: &'static str, detail: String) {
        self.broken_at(self.0.scheduler.now_ms(), invariant, detail);
    }

    fn broken_at(&self, at_ms: u64, invariant: &'static str, detail: String) {
        let mut state = self.lock();
        if !state.over {
            if self.0.telling {
                state.story.push(format!("{at_ms:>7} ms  BROKEN {invariant}: {detail}"));
            }
            state.violation = Some(Violation { invariant, at_ms, detail });
            state.over = true;
            self.0.decided.notify_waiters();
        }
    }

    /// Waits until the run is decided.
    pub(crate) async fn decided(&self) {
        let decided = self.0.decided.notified();
        if !self.over() {
            decided.await;
        }
    }

    /// Whether the run is decided.
    pub(crate) fn over(&self) -> bool {
        self.lock().over
    }

    /// A client takes another turn. Virtual time passes only while everybody waits for something: clients that never do
    /// stop it, and the run would never end.
    pub(crate) fn turn(&self, doing: impl FnOnce() -> String) {
        let now = self.seen_now();
        let mut state = self.lock();
        state.turns = if state.turns.0 == now { (now, state.turns.1 + 1) } else { (now, 1) };
        state.window = if now < state.window.0 + WINDOW_MS { (state.window.0, state.window.1 + 1) } else { (now, 1) };
        let too_many = match (state.turns.1, state.window.1) {
            (MOST_TURNS.., _) => format!("{MOST_TURNS} turns at one moment of virtual time"),
            (_, MOST_TURNS_IN_WINDOW..) => {
                format!("{MOST_TURNS_IN_WINDOW} turns within {WINDOW_MS} ms of virtual time")
            }
            _ => return,
        };
        if state.over {
            return;
        }
        drop(state);
        let doing = doing();
        let detail = format!(
            "clients took {too_many}: {doing}. Let a client think (`Client::think`) where nothing else takes time"
        );
        self.broken("time passes", detail);
    }

    /// A number for a new request.
    pub(crate) fn next_request(&self) -> RequestId {
        let mut state = self.lock();
        state.next_request += 1;
        state.next_request
    }

    /// Looks at what is known.
    pub(crate) fn facts<R>(&self, look: impl FnOnce(&mut Facts) -> R) -> R {
        look(&mut self.lock().facts)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    pub(crate) fn scheduler(&self) -> &Scheduler {
        &self.0.scheduler
    }

    /// What is left at the end: the trace's hash, the violation, the story.
    pub(crate) fn close(&self) -> (u64, Counts, Option<Violation>, Vec<String>) {
        let mut state = self.lock();
        state.over = true;
        // Breaks the circle of machines, observers and facts.
        state.facts.nodes.clear();
        (state.hash, state.counts.clone(), state.violation.clone(), std::mem::take(&mut state.story))
    }

    // Poisoning is passed over: a panic ends the run by itself.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count_snapshots(&mut self, event: &Event<'_>) {
        let known = |node| self.facts.nodes.get(node);
        match event {
            Event::Drained { node, drained } => {
                let cuts = drained.append.iter().filter(|append| append.write.compact.is_some()).count();
                let (handed, installed) = (known(node).map_or(0, |facts| facts.handed), drained.restore);
                let joined = handed == 0 && installed.is_some_and(|(index, _)| index > GENESIS_INDEX);
                self.counts.snapshot("recorded", cuts as u64);
                self.counts.snapshot("installed", u64::from(installed.is_some_and(|(index, _)| index > GENESIS_INDEX)));
                self.counts.snapshot("joined behind the log's beginning", u64::from(joined));
            }
            Event::Replayed { node, snapshot } => {
                let older = known(node).is_some_and(|facts| *snapshot < facts.newest);
                self.counts.snapshot("started from the older one", u64::from(older));
                self.counts.snapshot("started from one", u64::from(*snapshot > GENESIS_INDEX));
            }
            _ => {}
        }
    }
}

impl Facts {
    /// What must be known before the invariants look.
    fn before(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { node, incarnation, recovered, entries } => {
                let facts = self.nodes.entry(*node).or_insert_with(|| NodeFacts {
                    life: 0,
                    running: false,
                    known_as: *incarnation,
                    incarnation: *incarnation,
                    log: ModelLog::default(),
                    raft_state: None,
                    handed: 0,
                    room: usize::MAX,
                    newest: 0,
                    disk: None,
                    clock: None,
                    membership: None,
                    tampered: false,
                    older: false,
                    may_stop: false,
                    has_led: false,
                    lies: false,
                    program: Program::Newest,
                    marks: BTreeMap::new(),
                });
                let compacted = recovered.terms.first().copied().unwrap_or_default();
                facts.running = true;
                facts.life += 1;
                facts.incarnation = *incarnation;
                facts.log = ModelLog { compacted, entries: entries.iter().map(facts_of).collect() };
                facts.raft_state = None;
                // So far the log is applied again.
                let newest = recovered.newest().map_or(0, |snapshot| snapshot.index);
                (facts.newest, facts.handed) = (newest, newest.max(recovered.hard_state.commit));
                (facts.may_stop, facts.has_led, facts.lies) = (false, false, false);
                facts.marks.clear();
                let committed = entries.iter().filter(|entry| entry.index <= recovered.hard_state.commit);
                committed.for_each(|entry| self.in_use.committed(entry));
            }
            Event::Ended { node, .. } => {
                if let Some(facts) = self.nodes.get_mut(node) {
                    facts.running = false;
                }
            }
            Event::Drained { node, drained } => {
                drained.apply.iter().for_each(|entry| self.in_use.committed(entry));
                if drained.raft_state.role == Role::Leader {
                    self.voters.clone_from(&drained.voters);
                }
                if let Some(facts) = self.nodes.get_mut(node) {
                    for append in drained.append {
                        if let Some(snapshot) = &append.write.snapshot {
                            facts.log = ModelLog { compacted: (snapshot.index, snapshot.term), entries: Vec::new() };
                        }
                        facts.log.append(&append.write.entries);
                        if let Some(compact) = &append.write.compact {
                            facts.log.compact(compact.up_to);
                        }
                    }
                }
            }
            Event::Marked { node, mark } => {
                if let (Some(facts), Some(hash)) = (self.nodes.get_mut(node), mark.responses) {
                    facts.marks.insert(mark.index, (hash.since, hash.value.0, self.now_ms));
                }
            }
            Event::Calm => self.calm = true,
            Event::Closing => self.closing = true,
            _ => {}
        }
    }

    /// What is known from now on.
    fn after(&mut self, event: &Event<'_>) {
        let Event::Drained { node, drained } = event else { return };
        let Some(facts) = self.nodes.get_mut(node) else { return };
        let RaftState { commit, term, .. } = drained.raft_state;
        let known = facts.raft_state.map_or(0, |raft_state| raft_state.commit).max(facts.log.compacted.0);
        for index in known + 1..=commit {
            if let Some(entry) = facts.log.get(index) {
                let least = &mut self.committed.entry(index).or_insert((*entry, term)).1;
                *least = term.min(*least);
            }
        }
        facts.raft_state = Some(drained.raft_state);
        facts.has_led |= drained.raft_state.role == Role::Leader;
        let applied = drained.apply.last().map(|entry| entry.index).max(drained.restore.map(|(index, _)| index));
        facts.handed = facts.handed.max(applied.unwrap_or(0));
    }

    /// At how many marks this node came to other answers than a majority of the voters, all of them alive since, and so
    /// long ago.
    pub(crate) fn differs(&self, node: NodeId, since_ms: u64) -> usize {
        let Some(facts) = self.nodes.get(&node) else { return 0 };
        let differs = |(index, (since, value, at)): (&u64, &(u64, u128, u64))| {
            let running = self.voters.iter().filter_map(|id| self.nodes.get(id)).filter(|other| other.running);
            let others = running.filter_map(|other| other.marks.get(index)).filter(|(theirs, _, _)| theirs == since);
            let old = |seen: u64| seen + since_ms <= self.now_ms;
            let mut values: Vec<u128> = others.filter(|(_, _, seen)| old(*seen)).map(|(_, value, _)| *value).collect();
            values.sort_unstable();
            let majority = self.voters.len() / 2 + 1;
            let another = values.chunk_by(|a, b| a == b).any(|same| same[0] != *value && same.len() >= majority);
            old(*at) && another
        };
        facts.marks.iter().filter(|mark| differs(*mark)).count()
    }

    /// Who leads in the highest term, as far as running nodes say.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leads = |(id, facts): (&NodeId, &NodeFacts)| {
            let raft_state = facts.raft_state.filter(|raft_state| facts.running && raft_state.role == Role::Leader)?;
            Some((raft_state.term, *id))
        };
        self.nodes.iter().filter_map(leads).max().map(|(_, id)| id)
    }
}

/// An event as a number: equal events at equal moments, equal hashes.
fn digest(event: &Event<'_>) -> u64 {
    let mut hash = 0u64;
    let mut add = |words: &[u64]| words.iter().for_each(|word| hash = mix(hash ^ word).wrapping_add(*word));
    match event {
        Event::Started { node, incarnation, recovered, entries } => {
            add(&[1, *node, incarnation.0, recovered.last_index, recovered.hard_state.term, entries.len() as u64]);
        }
        Event::Ended { node, how } => add(&[2, *node, fingerprint(how.as_bytes())]),
        Event::Drained { node, drained } => {
            let RaftState { term, commit, last, role, leader, .. } = drained.raft_state;
            add(&[3, *node, term, commit, last, role as u64, leader.unwrap_or(0)]);
            drained.append.iter().for_each(|append| add(&[append.number]));
            for (to, message) in drained.transmit {
                let RaftMessage { kind, term, index, log_term, commit, reject, entries, .. } = message;
                add(&[*to, *kind as u64, *term, *index, *log_term, *commit, u64::from(*reject), entries.len() as u64]);
            }
            drained.apply.iter().for_each(|entry| add(&[entry.index]));
            drained.restore.iter().for_each(|(index, term)| add(&[*index, *term]));
            drained.sends.iter().for_each(|(to, index)| add(&[*to, *index]));
        }
        Event::FitsNoFrame { from, to, bytes, .. } => add(&[21, *from, *to, *bytes as u64]),
        Event::Replayed { node, snapshot } => add(&[13, *node, *snapshot]),
        Event::Applied { node, index, term, command, response, state } => {
            add(&[4, *node, *index, *term, *command, *response, state.unwrap_or(0)]);
        }
        Event::Marked { node, mark } => {
            add(&[20, *node, mark.index]);
            mark.state.iter().for_each(|hash| add(&[hash.since, hash.value.0 as u64]));
            mark.responses.iter().for_each(|hash| add(&[hash.since, hash.value.0 as u64]));
        }
        Event::Captured { node, at } => add(&[14, *node, *at]),
        Event::Restored { node, at, state } => add(&[15, *node, *at, *state]),
        Event::Listens { listener, node, after } => add(&[16, *listener, *node, *after]),
        Event::Heard { listener, heard } => match heard {
            Heard::Applied(index) => add(&[17, *listener, *index]),
            Heard::Installed(index) => add(&[18, *listener, *index]),
            Heard::Lagged(index) => add(&[19, *listener, *index]),
        },
        Event::Asked { id, node, command, .. } => add(&[5, *id, *node, command.map_or(0, |command| command.hash)]),
        Event::Answered { id, ended } => {
            let words = match ended {
                Ended::Applied { index, term } => [1, *index, *term],
                Ended::Done => [2, 0, 0],
                Ended::Rejected(why) => [3, fingerprint(why.as_bytes()), 0],
                Ended::Unknown(why) => [4, fingerprint(why.as_bytes()), 0],
            };
            add(&[6, *id]);
            add(&words);
        }
        Event::Looked { node, status } => add(&[7, *node, status.applied_index]),
        Event::Stopped { node, cause } => add(&[8, *node, fingerprint(cause.as_bytes())]),
        Event::Healed => add(&[9]),
        Event::Calm => add(&[10]),
        Event::Closing => add(&[11]),
        Event::End => add(&[12]),
    }
    hash
}

/// An event as a line of the story; `None` for what would only fill it.
fn line(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::Started { node, incarnation, recovered, .. } => format!(
            "n{node} starts as {incarnation}: log from {} to {}, snapshots {:?}, term {}, vote {}, commit {}",
            recovered.compacted_index() + 1,
            recovered.last_index,
            recovered.snapshots.iter().map(|snapshot| snapshot.index).collect::<Vec<_>>(),
            recovered.hard_state.term,
            recovered.hard_state.vote,
            recovered.hard_state.commit
        ),
        Event::Ended { node, how } => format!("n{node} ends: {how}"),
        Event::Drained { node, drained } => {
            let mut parts = String::new();
            for append in drained.append {
                let _ = write!(parts, "; writes #{}", append.number);
                if let Some(snapshot) = &append.write.snapshot {
                    let _ = write!(parts, " snapshot {}@{}", snapshot.index, snapshot.term);
                }
                if let (Some(first), Some(last)) = (append.write.entries.first(), append.write.entries.last()) {
                    let _ = write!(parts, " {}@{}..{}@{}", first.index, first.term, last.index, last.term);
                }
                if let Some(compact) = &append.write.compact {
                    let kept: Vec<_> = compact.snapshots.iter().map(|snapshot| snapshot.index).collect();
                    let _ = write!(parts, " snapshots {kept:?}, cut to {}", compact.up_to);
                }
                if let Some(hard) = &append.write.hard_state {
                    let _ = write!(parts, " term {} vote {} commit {}", hard.term, hard.vote, hard.commit);
                }
            }
            for (to, message) in drained.transmit {
                if !matches!(message.kind, MessageKind::Heartbeat | MessageKind::HeartbeatResponse) {
                    let _ = write!(parts, "; -> n{to} {message}");
                }
            }
            if let (Some(first), Some(last)) = (drained.apply.first(), drained.apply.last()) {
                let _ = write!(parts, "; applies {}..{}", first.index, last.index);
            }
            if let Some((index, term)) = drained.restore {
                let _ = write!(parts, "; restores {index}@{term}");
            }
            if parts.is_empty() {
                return None;
            }
            for (to, index) in &drained.sends {
                let _ = write!(parts, "; n{to} gets snapshot {index}");
            }
            let RaftState { role, term, commit, .. } = drained.raft_state;
            format!("n{node} {role} t{term} c{commit}{parts}")
        }
        Event::FitsNoFrame { from, to, parcel, bytes } => {
            format!("n{from} -> n{to} {parcel:?}: {bytes} bytes, too large")
        }
        Event::Replayed { snapshot: 0, .. } => return None,
        Event::Replayed { node, snapshot } => format!("n{node} has started from snapshot {snapshot}"),
        Event::Restored { node, at, .. } => format!("n{node} is given a state with the commands up to {at}"),
        Event::Captured { node, at } => format!("n{node} hands out its state with the commands up to {at}"),
        Event::Marked { node, mark } => {
            let Mark { index, state, responses: answers } = mark;
            let state = state.map_or("nothing".to_owned(), |hash| format!("{} since {}", hash.value, hash.since));
            let answers = answers.map_or("nothing".to_owned(), |hash| format!("{} since {}", hash.value, hash.since));
            format!("n{node} has come to {state} at the mark {index}, with answers {answers}")
        }
        Event::Listens { listener, node, after } => {
            format!("listener {listener} asks n{node} for what follows {after}")
        }
        Event::Heard { listener, heard: Heard::Installed(index) } => {
            format!("listener {listener} hears that a snapshot stands for everything up to {index}")
        }
        Event::Applied { .. } | Event::Looked { .. } | Event::Heard { .. } => return None,
        Event::Asked { id, node, command, .. } => match command {
            Some(_) => format!("request {id} proposes to n{node}"),
            None => format!("request {id} asks n{node}"),
        },
        Event::Answered { id, ended } => match ended {
            Ended::Applied { index, term } => format!("request {id} was applied at {index}@{term}"),
            Ended::Done => format!("request {id} is done"),
            Ended::Rejected(why) => format!("request {id} was rejected: {why}"),
            Ended::Unknown(why) => format!("request {id} is unknown: {why}"),
        },
        Event::Stopped { node, cause } => format!("n{node} stopped by itself: {cause}"),
        Event::Healed => "the faults are over".to_owned(),
        Event::Calm => "everything is back: from now on every request succeeds".to_owned(),
        Event::Closing => "the clients end".to_owned(),
        Event::End => "the end".to_owned(),
    })
}
