//! Several pure cores, with network, disks, appliers and clocks in the hands of the test.
//!
//! Nothing moves by itself. Every transcript line is written here, and every effect passes through
//! [`Checks`](super::checks::Checks), so that a script fails when it shows something that may never happen.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actorum_machine::{
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    machine,
    members::{Change, ChangeRequest, Membership},
};
use bytes::Bytes;

use super::{checks::Checks, disk::TestDisk};
use crate::{
    consensus::{Consensus, Effects, Moment, Settings, Start},
    entry::{CommandKind, EncodedCommand, Stamped, SystemCommand},
    features::Features,
    message::{Committed, ReadEntries, RequestOutcome},
    system_state::SystemState,
    wire::{AskError, Entry, EntryKind, RaftMessage, Refusal, Request, Response, Snapshot, SnapshotFile},
};

pub(super) const TICK: Duration = Duration::from_millis(100);

/// What a node holds in memory only, apart from its core: the state machine and what waits for it.
pub(super) struct Applier {
    pub system: Option<SystemState>,
    pub applied: u64,
    pub waiting: VecDeque<Committed<String>>,
    pub restore: Option<Snapshot>,
    /// The term of the entry applied last.
    pub term: u64,
    pub reads: Vec<(u64, String)>,
}

pub(super) struct Node {
    pub id: NodeId,
    pub core: Option<Consensus<String>>,
    pub disk: TestDisk,
    pub applier: Applier,
    pub waits: bool,
    pub boot: u64,
    pub now: Duration,
    /// What its calendar shows when its clock stands at zero.
    pub calendar: SystemTime,
    /// When its certificate ends.
    pub certificate_ends: Option<SystemTime>,
    pub disk_auto: bool,
    pub apply_auto: bool,
    /// Whether the core waits for the end of a probe.
    pub probing: bool,
    /// The snapshot that the core wants, and from whom.
    pub fetching: Option<(NodeId, Snapshot)>,
    /// Whether the core asked for one to be built.
    pub building: bool,
    /// Reads of the log that the core asked for.
    pub reading: VecDeque<ReadEntries>,
    /// How many messages of each write the transcript has shown as deferred.
    shown: BTreeMap<u64, usize>,
    /// Questions asked and not answered: whom.
    pub asking: BTreeMap<u64, NodeId>,
}

/// A question or its answer, on its way.
pub(super) enum Errand {
    Question { from: NodeId, id: u64, to: NodeId, request: Request },
    Answer { to: NodeId, id: u64, result: Result<Response, AskError> },
}

pub(super) struct Cluster {
    pub nodes: BTreeMap<NodeId, Node>,
    /// Per link and lane (urgent or not): what is on its way, oldest first.
    pub links: BTreeMap<(NodeId, NodeId, bool), VecDeque<RaftMessage>>,
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub errands: VecDeque<Errand>,
    pub seed: u64,
    /// Bytes appended or committed and not applied, on each node.
    pub max_unapplied_bytes: usize,
    /// Bytes not durable, on each leader.
    pub max_unpersisted_bytes: usize,
    /// Bytes of entries in one message, and on their way to each peer.
    pub max_append_bytes: usize,
    pub peer_window_bytes: usize,
    pub max_entry_bytes: usize,
    /// Bytes of applied entries in memory.
    pub tail_bytes: usize,
    /// Ticks after which a disk counts as slow; scripts that are about something else leave it out of the way.
    pub disk_slow_ticks: u64,
    /// After so many entries a snapshot is built.
    pub snapshot_entries: u64,
    /// So many entries stay behind it.
    pub keep_entries: u64,
    /// So many bytes of entries stay for a live follower.
    pub hold_bytes: u64,
    pub out: String,
    pub checks: Checks,
    /// Whether somebody's directory was put back from an older copy. Then Raft promises nothing, and nodes may stop.
    pub put_back: bool,
}

impl Cluster {
    pub(super) fn new(seed: u64) -> Self {
        Cluster {
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            errands: VecDeque::new(),
            seed,
            max_unapplied_bytes: 1 << 20,
            max_unpersisted_bytes: 1 << 20,
            max_append_bytes: 1 << 10,
            peer_window_bytes: 1 << 13,
            max_entry_bytes: 1 << 10,
            tail_bytes: 200,
            disk_slow_ticks: 1 << 30,
            snapshot_entries: 1 << 30,
            keep_entries: 0,
            hold_bytes: 0,
            out: String::new(),
            checks: Checks::default(),
            put_back: false,
        }
    }

    pub(super) fn genesis(founders: &[NodeId]) -> Snapshot {
        let named = founders.iter().map(|id| (*id, Address(format!("node-{id}:7000"))));
        let formed_with = founders.iter().map(|id| (*id, Incarnation(*id))).collect();
        SystemState::founded(ClusterId(1), &named.collect()).genesis(formed_with).unwrap()
    }

    /// A node with an empty directory.
    pub(super) fn add(&mut self, id: NodeId, waits: bool) {
        let applier =
            Applier { system: None, applied: 0, waiting: VecDeque::new(), restore: None, term: 0, reads: Vec::new() };
        let node = Node {
            id,
            core: None,
            disk: TestDisk::default(),
            applier,
            waits,
            boot: 0,
            now: Duration::ZERO,
            calendar: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            certificate_ends: None,
            disk_auto: true,
            apply_auto: true,
            probing: false,
            fetching: None,
            building: false,
            reading: VecDeque::new(),
            shown: BTreeMap::new(),
            asking: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
    }

    /// A cluster that is formed already, its nodes not started.
    pub(super) fn found(&mut self, founders: &[NodeId]) {
        for id in founders {
            self.add(*id, false);
            let node = self.node(*id);
            let mut image = node.disk.durable.lock().unwrap();
            image.snapshots = vec![Self::genesis(founders)];
            image.compacted = (1, 1);
            image.hard_state.term = 1;
            image.hard_state.commit = 1;
            node.disk.term = 1;
            node.disk.ever.insert((1, 1));
        }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("no such node")
    }

    pub(super) fn core(&mut self, id: NodeId) -> &mut Consensus<String> {
        self.node(id).core.as_mut().expect("that node is down")
    }

    pub(super) fn is_up(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.core.is_some())
    }

    /// Starts a node from what its disk holds. `applied` is how far its machine had come by itself.
    pub(super) fn start(&mut self, id: NodeId, applied: Option<u64>) {
        let (seed, max_unapplied_bytes) = (self.seed, self.max_unapplied_bytes);
        let (max_unpersisted_bytes, disk_slow_ticks) = (self.max_unpersisted_bytes, self.disk_slow_ticks);
        let (max_append_bytes, peer_window_bytes) = (self.max_append_bytes, self.peer_window_bytes);
        let (max_entry_bytes, log_tail_bytes) = (self.max_entry_bytes, self.tail_bytes);
        let (snapshot_entries, keep_entries, hold_bytes) = (self.snapshot_entries, self.keep_entries, self.hold_bytes);
        self.checks.bounds = (max_append_bytes, peer_window_bytes, max_entry_bytes);
        self.links.retain(|(from, _, _), _| *from != id);
        let node = self.node(id);
        assert!(node.core.is_none(), "it is running");
        let image = node.disk.image();
        node.boot += 1;
        let mut system = None;
        let mut done = 0;
        let mut term = 0;
        if let Some(snapshot) = image.snapshots.last() {
            let mut state = SystemState::of(snapshot).unwrap().0;
            (done, term) = (snapshot.index, snapshot.term);
            let until = applied.unwrap_or(image.hard_state.commit);
            for (index, entry) in image.entries.range(snapshot.index + 1..).take_while(|(index, _)| **index <= until) {
                apply(&mut state, entry);
                (done, term) = (*index, entry.term);
            }
            system = Some(state);
        }
        let membership = system.as_ref().map_or_else(|| Arc::new(Membership::default()), |s| s.membership.clone());
        let cluster = system.as_ref().map(|system| system.cluster);
        let settings = Settings {
            id,
            group: GroupId::FIRST,
            incarnation: Incarnation(id),
            boot: node.boot,
            seed,
            tick: TICK,
            election_ticks: 10,
            max_append_bytes,
            max_inflight_appends: 8,
            peer_window_bytes,
            max_unapplied_bytes,
            max_unpersisted_bytes,
            disk_slow_ticks,
            log_tail_bytes,
            max_entry_bytes,
            snapshot_entries,
            snapshot_bytes: u64::MAX,
            small_snapshot_bytes: u64::MAX,
            short_bytes: 4 << 20,
            keep_entries,
            keep_bytes: u64::MAX,
            hold_bytes,
            snapshot_timeout_ticks: 30,
            max_clock_skew: Duration::from_millis(500),
            waits: node.waits,
            features: Features::all(),
            machine_version: 1,
            certificate_ends: node.certificate_ends,
        };
        let start = Start {
            recovered: node.disk.recovered(),
            reader: node.disk.reader(),
            applied: done,
            membership,
            versions: Arc::default(),
            cluster,
            min_served_index: 0,
        };
        node.core = Some(Consensus::new(settings, start).unwrap());
        node.applier =
            Applier { system, applied: done, waiting: VecDeque::new(), restore: None, term, reads: Vec::new() };
        node.shown.clear();
        self.drain(id);
    }

    /// Power off: what was not durable is gone, and so is everything in memory.
    pub(super) fn crash(&mut self, id: NodeId) {
        self.crash_after(id, 0);
    }

    /// The same, but writes up to this number reached the disk without a report.
    pub(super) fn crash_after(&mut self, id: NodeId, reached: u64) {
        writeln!(self.out, "n{id} dies").unwrap();
        self.node(id).disk.persist(reached);
        if !self.put_back {
            self.checks.durable(&self.nodes[&id]);
        }
        let node = self.node(id);
        node.core = None;
        node.probing = false;
        node.fetching = None;
        node.building = false;
        node.reading.clear();
        node.disk.in_flight.clear();
        node.asking.clear();
        self.links.retain(|(_, to, _), _| *to != id);
        let mut lost = Vec::new();
        self.errands.retain(|errand| match errand {
            Errand::Question { from, .. } if *from == id => false,
            Errand::Answer { to, .. } if *to == id => false,
            Errand::Question { from, id: number, to, .. } if *to == id => {
                lost.push((*from, *number));
                false
            }
            _ => true,
        });
        for (from, node) in &self.nodes {
            let asked = node.asking.iter().filter(|(_, to)| **to == id).map(|(number, _)| (*from, *number));
            lost.extend(asked.filter(|(from, number)| {
                let under_way = |e: &Errand| matches!(e, Errand::Answer { to, id, .. } if (to, id) == (from, number));
                !self.errands.iter().any(under_way)
            }));
        }
        lost.sort_unstable();
        lost.dedup();
        for (from, number) in lost {
            let result = Err(AskError::Lost("the connection broke".into()));
            self.errands.push_back(Errand::Answer { to: from, id: number, result });
        }
        self.checks.crashed(id);
    }

    /// The end of a question without an answer.
    pub(super) fn end_question(&mut self, from: NodeId, id: u64, error: AskError) -> NodeId {
        self.errands.retain(|errand| match errand {
            Errand::Question { from: f, id: i, .. } => (*f, *i) != (from, id),
            Errand::Answer { to, id: i, .. } => (*to, *i) != (from, id),
        });
        self.carry(Errand::Answer { to: from, id, result: Err(error) })
    }

    /// Lets a core decide, and carries its effects to where the script can reach them.
    pub(super) fn drain(&mut self, id: NodeId) {
        let node = self.node(id);
        let (now, wall) = (node.now, node.calendar + node.now);
        let Some(core) = node.core.as_mut() else { return };
        let effects = core.drain(Moment { now, wall });
        let mut text = effects.to_string();
        let mut deferred = BTreeMap::<u64, usize>::new();
        for (write, to, message) in core.deferred_messages() {
            let count = deferred.entry(write).or_default();
            *count += 1;
            if *count > node.shown.get(&write).copied().unwrap_or(0) {
                writeln!(text, "hold until #{write} -> n{to} {message}").unwrap();
            }
        }
        node.shown = deferred;
        for line in text.lines() {
            writeln!(self.out, "n{id} {line}").unwrap();
        }
        self.carry_out(id, effects);
    }

    fn carry_out(&mut self, id: NodeId, effects: Effects<String>) {
        if !self.put_back {
            self.checks.effects(&self.nodes[&id], &effects);
            let inflight = self.core(id).status().inflight_bytes;
            self.checks.windows(id, &inflight);
        }
        let Effects {
            append, probe, transmit, asks, restore, apply, reads, answers, fault, build, fetch, read, ..
        } = effects;
        if self.put_back && fault.is_some() {
            return self.crash(id);
        }
        assert!(fault.is_none(), "n{id} cannot go on: {fault:?}");
        let node = self.node(id);
        node.disk.in_flight.extend(append);
        node.probing |= probe;
        node.building |= build;
        node.reading.extend(read);
        node.fetching = fetch.map(|fetch| (fetch.from, fetch.snapshot)).or(node.fetching.take());
        if restore.is_some() {
            node.applier.restore = restore;
        }
        node.applier.waiting.extend(apply);
        for (to, message) in transmit {
            if !self.cut.contains(&(id, to)) && self.is_up(to) {
                let lane = message.kind.is_urgent();
                self.links.entry((id, to, lane)).or_default().push_back(message);
            }
        }
        for question in asks {
            self.node(id).asking.insert(question.id, question.to);
            let (number, to, request) = (question.id, question.to, question.request);
            if self.cut.contains(&(id, to)) || !self.is_up(to) {
                let result = Err(AskError::NotSent("no connection".into()));
                self.errands.push_back(Errand::Answer { to: id, id: number, result });
            } else {
                self.errands.push_back(Errand::Question { from: id, id: number, to, request });
            }
        }
        for (reply, answer) in answers {
            self.answer(id, reply, answer);
        }
        for (index, reply) in reads {
            match peer_reply(&reply) {
                Some(asker) => self.reply(id, asker, Response::ReadAt { index }),
                None => {
                    self.checks.read_at(&reply, index);
                    self.node(id).applier.reads.push((index, reply));
                }
            }
        }
        if !self.put_back {
            self.checks.commit(&self.nodes, id);
        }
        if self.node(id).disk_auto {
            self.probe(id, Ok(()));
            self.persist_synced(id);
            if self.read_entries(id) {
                self.drain(id);
            }
        }
        if self.node(id).apply_auto {
            self.apply(id);
        }
    }

    /// The end of a probe, if one is under way, without a drain.
    pub(super) fn probe(&mut self, id: NodeId, result: Result<(), String>) {
        if std::mem::take(&mut self.node(id).probing) {
            self.core(id).disk_probed(result);
        }
    }

    /// The snapshot that a core wants, and from whom.
    pub(super) fn wanted(&self, id: NodeId) -> Result<(NodeId, Snapshot), String> {
        self.nodes[&id].fetching.clone().ok_or(format!("n{id} fetches nothing"))
    }

    /// Builds a snapshot of what is applied, as the snapshot manager does, and tells the core; without a drain.
    pub(super) fn built(&mut self, id: NodeId) {
        self.node(id).building = false;
        let Applier { system, applied, term, .. } = &self.node(id).applier;
        let file = SnapshotFile { bytes: 100 * applied, hash: [*applied as u8; 32] };
        let system = system.as_ref().expect("it holds something");
        let snapshot = system.snapshot(*applied, *term, file, BTreeMap::new()).unwrap();
        self.core(id).snapshot_built(Ok(snapshot));
    }

    /// Persists as a log writer does: a commit index alone is not worth a sync and waits for the next write.
    pub(super) fn persist_synced(&mut self, id: NodeId) {
        let newest = self.node(id).disk.in_flight.iter().rev().find(|append| append.sync).map(|append| append.number);
        if let Some(number) = newest {
            self.persist(id, number);
            self.drain(id);
        }
    }

    /// Makes writes durable and reports them, without a drain.
    pub(super) fn persist(&mut self, id: NodeId, number: u64) {
        let node = self.node(id);
        node.disk.persist(number);
        writeln!(self.out, "n{id} persisted #{number}").unwrap();
        self.core(id).persisted(number);
        if !self.put_back {
            self.checks.durable(&self.nodes[&id]);
        }
    }

    /// Reads from the disk what the core asked for, without a drain; whether there was anything.
    pub(super) fn read_entries(&mut self, id: NodeId) -> bool {
        let mut any = false;
        while let Some(ReadEntries { group, peer, from, to, max_bytes }) = self.node(id).reading.pop_front() {
            let result = self.node(id).disk.reader().entries(group, from, to, max_bytes);
            self.core(id).entries_read(peer, from, result);
            any = true;
        }
        any
    }

    /// Applies all that waits, and tells the core.
    pub(super) fn apply(&mut self, id: NodeId) {
        if self.apply_quietly(id) {
            self.drain(id);
        }
    }

    /// The same without a drain; whether anything was applied.
    pub(super) fn apply_quietly(&mut self, id: NodeId) -> bool {
        let before = self.node(id).applier.applied;
        if let Some(snapshot) = self.node(id).applier.restore.take() {
            let applier = &mut self.node(id).applier;
            applier.system = Some(SystemState::of(&snapshot).unwrap().0);
            if snapshot.index > applier.applied {
                (applier.applied, applier.term) = (snapshot.index, snapshot.term);
            }
        }
        while let Some(Committed { entry, reply }) = self.node(id).applier.waiting.pop_front() {
            let applier = &mut self.node(id).applier;
            assert_eq!(entry.index, applier.applied + 1, "entries are applied in order without gaps");
            (applier.applied, applier.term) = (entry.index, entry.term);
            let system = applier.system.as_mut().expect("nothing is applied before the genesis");
            let said = apply(system, &entry);
            let membership = system.membership.clone();
            let at = format!("{}@{}", entry.index, entry.term);
            let whom = reply.as_ref().map_or(String::new(), |reply| format!(", answers {reply}"));
            writeln!(self.out, "n{id} applied {at} {said}{whom}").unwrap();
            if entry.kind == EntryKind::ConfChange || said.starts_with("Incarnation") {
                self.core(id).membership_changed(membership.clone());
            }
            let Some(reply) = reply else { continue };
            let answer = match entry.kind {
                EntryKind::Normal => {
                    let (index, term) = (entry.index, entry.term);
                    RequestOutcome::Applied { index, term, response: Bytes::from(said) }
                }
                EntryKind::ConfChange => {
                    RequestOutcome::Changed { membership: machine::encode(&*membership).unwrap().into() }
                }
            };
            self.answer(id, reply, answer);
        }
        let applied = self.node(id).applier.applied;
        if applied > before {
            self.core(id).applied_to(applied);
        }
        let (ready, waiting): (Vec<_>, Vec<_>) =
            self.node(id).applier.reads.drain(..).partition(|(index, _)| *index <= applied);
        self.node(id).applier.reads = waiting;
        for (_, reply) in ready {
            writeln!(self.out, "n{id} serves {reply} at {applied}").unwrap();
            self.checks.answered(&reply, None);
        }
        applied > before
    }

    fn answer(&mut self, id: NodeId, reply: String, answer: RequestOutcome) {
        let Some(asker) = peer_reply(&reply) else {
            return self.checks.answered(&reply, Some(&answer));
        };
        let response = match answer {
            RequestOutcome::Applied { index, term, response } => Response::Applied { index, term, response },
            RequestOutcome::Changed { membership } => Response::Changed { membership },
            RequestOutcome::Refused(refusal) => Response::Refused(refusal),
            RequestOutcome::Late { .. } => Response::Refused(Refusal::Late),
            RequestOutcome::Busy(_) => Response::Refused(Refusal::Busy),
            RequestOutcome::Unknown { cause } => Response::Unknown { cause },
        };
        self.reply(id, asker, response);
    }

    fn reply(&mut self, from: NodeId, (to, number, boot): (NodeId, u64, u64), response: Response) {
        let asker = self.node(to);
        if asker.asking.get(&number) != Some(&from) || asker.core.is_none() || asker.boot != boot {
            return;
        }
        let lost = self.cut.contains(&(from, to));
        let result = if lost { Err(AskError::Lost("the connection broke".into())) } else { Ok(response) };
        self.errands.push_back(Errand::Answer { to, id: number, result });
    }

    /// Carries one question or answer, without a drain; whom it reached.
    pub(super) fn carry(&mut self, errand: Errand) -> NodeId {
        match errand {
            Errand::Question { from, id, to, request } => {
                writeln!(self.out, "n{to} is asked n{from}/q{id}").unwrap();
                self.serve(from, id, to, request);
                to
            }
            Errand::Answer { to, id, result } => {
                writeln!(self.out, "n{to} is answered q{id} {}", describe(&result)).unwrap();
                self.node(to).asking.remove(&id);
                self.core(to).answered(id, result);
                to
            }
        }
    }

    fn serve(&mut self, from: NodeId, id: u64, to: NodeId, request: Request) {
        // A question belongs to one life of the asker; its next life numbers its own from one again.
        let boot = self.node(from).boot;
        let reply = if boot == 1 { format!("n{from}/q{id}") } else { format!("n{from}/q{id}/boot{boot}") };
        let within = |now: Duration, ms: u64| now + Duration::from_millis(ms);
        let now = self.node(to).now;
        let core = self.core(to);
        match request {
            Request::Propose { data, remaining_ms } => {
                core.submit_for_peer(EncodedCommand::received(&data).unwrap(), reply, within(now, remaining_ms));
            }
            Request::ReadIndex { remaining_ms } => core.read_for_peer(reply, within(now, remaining_ms)),
            Request::Change { data, remaining_ms, force } => {
                let change = ChangeRequest { change: machine::decode::<Change>(&data).unwrap(), force };
                core.change_for_peer(change, reply, within(now, remaining_ms));
            }
            Request::Formation(_)
            | Request::Snapshot(_)
            | Request::Clock
            | Request::Marks { .. }
            | Request::Activate => {
                unreachable!("no core asks that")
            }
        }
    }

    /// Takes up to `count` messages off a link and steps them into the receiver, without a drain.
    pub(super) fn deliver(&mut self, from: NodeId, to: NodeId, urgent: bool, count: usize) -> usize {
        let Some(queue) = self.links.get_mut(&(from, to, urgent)) else { return 0 };
        let taken: Vec<_> = queue.drain(..count.min(queue.len())).collect();
        let up = self.is_up(to);
        for message in taken.iter().filter(|_| up) {
            self.core(to).step(from, message.clone());
        }
        taken.len()
    }

    /// A partition: what is on its way between the two is lost, and so is what follows.
    pub(super) fn cut(&mut self, a: NodeId, b: NodeId) {
        for (from, to) in [(a, b), (b, a)] {
            self.cut.insert((from, to));
            self.links.retain(|(f, t, _), _| (*f, *t) != (from, to));
        }
    }

    /// A leader records a member's incarnation, as the membership manager has it do.
    pub(super) fn record(&mut self, id: NodeId, member: NodeId) {
        let command = SystemCommand::Incarnation { node: member, incarnation: Incarnation(member) };
        let deadline = self.node(id).now + Duration::from_secs(5);
        self.core(id).submit(EncodedCommand::system(&command).unwrap(), None, deadline);
    }

    pub(super) fn propose(&mut self, id: NodeId, reply: &str, wait: Duration) {
        let deadline = self.node(id).now + wait;
        self.checks.asked(id, reply);
        self.core(id).submit(EncodedCommand::command(&reply).unwrap(), Some(reply.to_owned()), deadline);
    }

    pub(super) fn read(&mut self, id: NodeId, reply: &str, wait: Duration) {
        let deadline = self.node(id).now + wait;
        self.checks.asked(id, reply);
        self.core(id).read(reply.to_owned(), deadline);
    }

    pub(super) fn change(&mut self, id: NodeId, reply: &str, change: impl Into<ChangeRequest>, wait: Duration) {
        let deadline = self.node(id).now + wait;
        self.checks.asked(id, reply);
        self.core(id).change(change, reply.to_owned(), deadline);
    }
}

/// A state machine that only says what it was told.
fn apply(system: &mut SystemState, entry: &Entry) -> String {
    let Entry { kind, index, data, context, .. } = entry;
    if *kind == EntryKind::ConfChange {
        system.apply(*index, &SystemCommand::decode(context).unwrap());
        return format!("({})", system.membership);
    }
    if data.is_empty() {
        return "(empty)".into();
    }
    let stamped = Stamped::parse(data).unwrap();
    match stamped.kind {
        CommandKind::Command => machine::decode(stamped.payload).unwrap(),
        CommandKind::System => {
            let command = SystemCommand::decode(stamped.payload).unwrap();
            system.apply(*index, &command);
            format!("{command:?}")
        }
    }
}

/// `n2/q1`: a question of node 2, its number 1, of its first boot.
fn peer_reply(reply: &str) -> Option<(NodeId, u64, u64)> {
    let (node, question) = reply.strip_prefix('n')?.split_once("/q")?;
    let (question, boot) = question.split_once("/boot").unwrap_or((question, "1"));
    Some((node.parse().ok()?, question.parse().ok()?, boot.parse().ok()?))
}

fn describe(result: &Result<Response, AskError>) -> String {
    match result {
        Ok(Response::Applied { index, term, .. }) => format!("applied at {index}@{term}"),
        Ok(Response::ReadAt { index }) => format!("read at {index}"),
        Ok(Response::Changed { .. }) => "changed".into(),
        Ok(Response::Refused(Refusal::NotLeader { leader })) => match leader {
            Some(leader) => format!("refused: n{leader} leads"),
            None => "refused: nobody leads".into(),
        },
        Ok(Response::Refused(refusal)) => format!("refused: {refusal:?}"),
        Ok(Response::Unknown { cause }) => format!("unknown: {cause}"),
        Ok(
            Response::Formation(_)
            | Response::Piece { .. }
            | Response::Clock(_)
            | Response::Gone
            | Response::Marks { .. }
            | Response::Noted,
        ) => {
            unreachable!("no core asks that")
        }
        Err(error) => error.to_string(),
    }
}
