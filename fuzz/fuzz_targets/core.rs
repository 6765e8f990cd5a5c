//! A core among peers that say anything: messages that make sense nearly, requests, ticks, writes that become
//! durable late, and restarts. raft-rs must not panic, and the core must not give up, whatever a peer says.
//!
//! The node is 1 of the founders 1, 2 and 3; what is drawn stays near its own terms and indexes, because a message
//! that is refused at the first check shows little. Its disk and its applier are honest: their faults have tests
//! of their own.

#![no_main]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use actorum_core::{
    consensus::{Consensus, Effects, Moment, Settings, Start},
    entry::{ChangeId, EncodedCommand, Stamped, SystemCommand},
    features::Features,
    log::store::{Compact, HardState, LogReader, Recovered, StoreError},
    message::{Append, Committed, ReadEntries, Room},
    system_state::SystemState,
    wire::{AskError, Entry, EntryKind, MessageKind, RaftMessage, Refusal, Response, Snapshot, SnapshotFile},
};
use actorum_fuzz::Draw;
use actorum_machine::{
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    machine,
    members::Change,
};
use actorum_transport::frame;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const TICK: Duration = Duration::from_millis(100);
/// Steps of one run: enough for two terms, and few enough for thousands of runs in a second.
const STEPS: usize = 200;

fuzz_target!(|data: &[u8]| {
    let mut draw = Draw(data);
    let mut node = Node::new(draw.byte());
    for _ in 0..STEPS {
        if !draw.more() {
            break;
        }
        node.turn(&mut draw);
    }
    node.quiet_down();
});

/// What a restart finds.
#[derive(Clone, Default)]
struct Image {
    /// What it can start from.
    snapshots: Vec<Snapshot>,
    /// Index and term of the last entry before the log.
    compacted: (u64, u64),
    hard_state: HardState,
    entries: BTreeMap<u64, Entry>,
}

impl Image {
    fn last(&self) -> u64 {
        self.entries.last_key_value().map_or(self.compacted.0, |(index, _)| *index)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        let described = self.snapshots.iter().find(|snapshot| snapshot.index == index).map(|snapshot| snapshot.term);
        let compacted = (self.compacted.0 == index).then_some(self.compacted.1);
        self.entries.get(&index).map(|entry| entry.term).or(compacted).or(described)
    }

    fn install(&mut self, snapshot: Snapshot) {
        self.entries.clear();
        self.compacted = (snapshot.index, snapshot.term);
        self.snapshots = vec![snapshot];
    }

    fn recovered(&self) -> Recovered {
        let mut terms: Vec<(u64, u64)> = Vec::new();
        terms.extend((self.compacted.0 > 0).then_some(self.compacted));
        for entry in self.entries.values() {
            if terms.last().is_none_or(|(_, term)| *term != entry.term) {
                terms.push((entry.index, entry.term));
            }
        }
        let (snapshots, hard_state) = (self.snapshots.clone(), self.hard_state);
        Recovered { snapshots, hard_state, last_index: self.last(), terms, sizes: Vec::new() }
    }

    fn write(&mut self, append: Append) {
        if let Some(snapshot) = append.write.snapshot {
            self.install(snapshot);
        }
        if let Some(first) = append.write.entries.first() {
            assert!(first.index <= self.last() + 1, "a write would leave a gap in the log");
            assert!(first.index > self.compacted.0, "a write would replace what is compacted");
            self.entries.split_off(&first.index);
        }
        self.entries.extend(append.write.entries.into_iter().map(|entry| (entry.index, entry)));
        if let Some(hard_state) = append.write.hard_state {
            assert!(hard_state.term >= self.hard_state.term, "the durable term ran backwards");
            self.hard_state = hard_state;
        }
        if let Some(Compact { snapshots, up_to }) = append.write.compact {
            let (first, newest) =
                (snapshots.first().expect("one is kept").index, snapshots.last().map_or(0, |s| s.index));
            assert!(up_to <= first, "the log would be cut off past what an older snapshot needs");
            assert!(newest <= self.hard_state.commit.max(self.compacted.0), "a snapshot of what is not committed");
            if newest >= self.compacted.0 {
                for snapshot in &snapshots {
                    assert_eq!(self.term_at(snapshot.index), Some(snapshot.term), "a snapshot of another log");
                }
                let up_to = up_to.max(self.compacted.0);
                self.compacted = (up_to, self.term_at(up_to).expect("what is cut off is in the log"));
                self.entries = self.entries.split_off(&(up_to + 1));
                self.snapshots = snapshots;
            }
        }
        assert!(self.hard_state.commit <= self.last(), "the durable commit index is past the durable log");
    }
}

struct Reader(Arc<Mutex<Image>>);

impl LogReader for Reader {
    fn entries(&self, _: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let image = self.0.lock().expect("no other thread");
        let (mut found, mut bytes) = (Vec::new(), 0);
        for index in from..to {
            let Some(entry) = image.entries.get(&index) else {
                return Err(StoreError::Damaged { what: format!("entry {index}"), detail: "not there".into() });
            };
            bytes += entry.size();
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn first_index(&self, _: GroupId) -> u64 {
        self.0.lock().expect("no other thread").compacted.0 + 1
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

struct Node {
    core: Consensus<u32>,
    image: Arc<Mutex<Image>>,
    in_flight: VecDeque<Append>,
    system: Option<SystemState>,
    applied: u64,
    waiting: VecDeque<Committed<u32>>,
    restore: Option<Snapshot>,
    /// Whether a snapshot is being built.
    builds: bool,
    /// What was offered to it and is being fetched.
    fetches: Option<Snapshot>,
    questions: Vec<u64>,
    replies: u32,
    now: Duration,
    boot: u64,
    /// Whether it waits to be added instead of being a founder.
    waits: bool,
    /// What it said last, to be answered in kind.
    said: Vec<(NodeId, RaftMessage)>,
    /// Whether a member has spoken as the leader of this term or a later one since the last drain.
    leaders_word: bool,
    /// A machine of a peer's making may stop this node with a specific error, and has: nothing follows.
    stopped: bool,
}

fn genesis() -> Snapshot {
    let founders: BTreeMap<NodeId, Address> = (1..=3).map(|id| (id, Address(format!("n{id}:1")))).collect();
    let formed_with = (1..=3).map(|id| (id, Incarnation(id))).collect();
    SystemState::founded(ClusterId(1), &founders).genesis(formed_with).expect("a genesis")
}

impl Node {
    fn new(how: u8) -> Node {
        let (waits, lived) = (how % 8 == 7, how % 8 >= 4);
        let mut image = Image::default();
        if !waits && lived {
            // It has cut off its log: two snapshots, and what follows the older one.
            let founded = SystemState::of(&genesis()).expect("its own").0;
            let snapshot = |index| founded.snapshot(index, 1, file(index), BTreeMap::new()).expect("a snapshot");
            image.install(snapshot(4));
            image.snapshots.push(snapshot(6));
            image.hard_state = HardState { term: 1, vote: 0, commit: 7 };
            let empty =
                |index| Entry { kind: EntryKind::Normal, term: 1, index, data: Bytes::new(), context: Bytes::new() };
            image.entries.extend((5..=8).map(|index| (index, empty(index))));
        } else if !waits {
            image.install(genesis());
            image.hard_state = HardState { term: 1, vote: 0, commit: 1 };
        }
        Node::boot(Arc::new(Mutex::new(image)), waits, 1, Duration::ZERO)
    }

    fn boot(image: Arc<Mutex<Image>>, waits: bool, boot: u64, now: Duration) -> Node {
        let found = image.lock().expect("no other thread").clone();
        let mut system = None;
        let mut applied = 0;
        if let Some(snapshot) = found.snapshots.last() {
            let mut state = SystemState::of(snapshot).expect("what was let in can be read").0;
            applied = snapshot.index;
            let unapplied = applied + 1..=found.hard_state.commit;
            for (index, entry) in found.entries.iter().filter(|(index, _)| unapplied.contains(index)) {
                if !apply(&mut state, entry) {
                    break;
                }
                applied = *index;
            }
            system = Some(state);
        }
        let settings = Settings {
            max_clock_skew: Duration::from_millis(500),
            id: if waits { 4 } else { 1 },
            group: GroupId::FIRST,
            incarnation: Incarnation(1),
            boot,
            seed: 7,
            tick: TICK,
            election_ticks: 5,
            max_append_bytes: 512,
            max_inflight_appends: 4,
            peer_window_bytes: 1024,
            max_unapplied_bytes: 4096,
            log_tail_bytes: 200,
            max_entry_bytes: 512,
            max_unpersisted_bytes: 8192,
            disk_slow_ticks: 5,
            snapshot_entries: 1,
            snapshot_bytes: u64::MAX,
            small_snapshot_bytes: u64::MAX,
            short_bytes: 4 << 20,
            keep_entries: 0,
            keep_bytes: u64::MAX,
            hold_bytes: 0,
            snapshot_timeout_ticks: 30,
            waits,
            certificate_ends: None,
            features: Features::all(),
            machine_version: 1,
        };
        let membership = system.as_ref().map(|s: &SystemState| s.membership.clone()).unwrap_or_default();
        let start = Start {
            recovered: found.recovered(),
            reader: Arc::new(Reader(image.clone())),
            applied,
            membership,
            versions: Arc::default(),
            cluster: None,
            min_served_index: 0,
        };
        Node {
            core: Consensus::new(settings, start).expect("what was made durable can be started from"),
            image,
            in_flight: VecDeque::new(),
            system,
            applied,
            waiting: VecDeque::new(),
            restore: None,
            builds: false,
            fetches: None,
            questions: Vec::new(),
            replies: 0,
            now,
            boot,
            waits,
            said: Vec::new(),
            leaders_word: false,
            stopped: false,
        }
    }

    fn turn(&mut self, draw: &mut Draw<'_>) {
        if self.stopped {
            return;
        }
        let deadline = self.now + TICK * 20;
        self.replies += 1;
        let reply = self.replies;
        match draw.below(36) {
            0..=11 => {
                let from = self.peer(draw);
                let message = self.message(draw);
                self.note_word(from, &message);
                self.core.step(from, message);
            }
            // What a sensible peer answers to what was just said.
            12..=17 => self.sensible_answer(draw),
            18 => {
                let count = usize::from(draw.byte());
                if let Ok(message) = frame::decode::<RaftMessage>(draw.bytes(count)) {
                    self.core.step(2, message);
                }
            }
            19..=20 => self.tick(draw.below(12)),
            21..=22 => self.persist(1 + draw.below(4) as usize),
            23 => self.apply(1 + draw.below(4) as usize),
            24 => match draw.below(4) {
                0 => self.core.submit(encoded(draw), Some(reply), deadline),
                1 => self.core.submit_for_peer(encoded(draw), reply, deadline),
                2 => self.core.read(reply, deadline),
                _ => self.core.read_for_peer(reply, deadline),
            },
            25 => {
                let change = change(draw);
                match draw.below(2) {
                    0 => self.core.change(change, reply, deadline),
                    _ => self.core.change_for_peer(change, reply, deadline),
                }
            }
            // A peer's request as it stands on the wire.
            26 => {
                let count = usize::from(draw.byte());
                let bytes = draw.bytes(count);
                if let Ok(encoded) = EncodedCommand::received(bytes)
                    && encoded.is_command()
                {
                    self.core.submit_for_peer(encoded, reply, deadline);
                } else if let Ok(change) = machine::decode::<Change>(bytes) {
                    self.core.change_for_peer(change, reply, deadline);
                }
            }
            27 => {
                let id = self.questions.pop().unwrap_or_else(|| draw.u64());
                self.core.answered(id, answer(draw));
            }
            28 => {
                let peer = self.peer(draw);
                self.core.unreachable(peer);
            }
            29 => self.core.campaign(),
            30 => self.restart(draw),
            31 => self.build(draw.below(4) == 0),
            32 => self.fetch(draw.below(4) == 0),
            33 => {
                let (peer, index) = (self.peer(draw), draw.near(&[self.applied, 1]));
                self.core.peer_fetches(peer, index, (draw.below(4) == 0).then(|| "no".to_owned()));
            }
            34 => self.core.disk_space(Room::low(draw.below(2) == 0)),
            _ => self.drain(true),
        }
        if draw.byte() % 4 != 0 {
            self.drain(false);
        }
    }

    fn peer(&self, draw: &mut Draw<'_>) -> NodeId {
        draw.pick(&[2, 2, 2, 3, 3, 4, 5, 1])
    }

    /// Whose word may stop this node: a member's, as the leader of this term or a later one.
    fn note_word(&mut self, from: NodeId, message: &RaftMessage) {
        let leads = matches!(message.kind, MessageKind::Append | MessageKind::Heartbeat | MessageKind::Snapshot);
        let status = self.core.status();
        self.leaders_word |= leads && message.term >= status.term && status.peers.contains_key(&from);
    }

    /// A message near what would make sense here.
    fn message(&mut self, draw: &mut Draw<'_>) -> RaftMessage {
        use MessageKind::*;
        let status = self.core.status();
        let (term, last, commit) = (status.term, status.last_index, status.commit_index);
        let terms = [term, term, term + 1, 1];
        let indexes = [last, commit, last, 1, self.applied];
        let kind = draw.pick(&[
            Append,
            Append,
            Append,
            Append,
            AppendResponse,
            AppendResponse,
            Heartbeat,
            HeartbeatResponse,
            PreVote,
            PreVoteResponse,
            Vote,
            VoteResponse,
            Snapshot,
            TimeoutNow,
        ]);
        let mut message = RaftMessage::new(kind, draw.near(&terms));
        message.index = draw.near(&indexes);
        message.commit = draw.near(&[commit, last, 0]);
        message.log_term = match draw.below(4) {
            0 => draw.near(&terms),
            _ => self.term_at(message.index).unwrap_or(term),
        };
        message.reject = draw.below(4) == 0;
        if message.reject {
            message.reject_hint = draw.near(&indexes);
        }
        if draw.below(8) == 0 {
            message.commit_term = draw.near(&terms);
            message.request_snapshot = draw.near(&[0, 0, last]);
            message.priority = draw.u64() as i64;
        }
        if draw.below(4) == 0 {
            message.context = draw.bytes(9).to_vec().into();
        }
        if kind == Append || draw.below(32) == 0 {
            let count = draw.below(5);
            let mut entry_term = message.log_term.clamp(1, message.term.max(1));
            for n in 0..count {
                if draw.below(4) == 0 {
                    entry_term = draw.near(&[entry_term, message.term]);
                }
                let index = match draw.below(32) {
                    0 => draw.near(&indexes),
                    _ => message.index.wrapping_add(1 + n),
                };
                message.entries.push(entry(draw, entry_term, index));
            }
        }
        if kind == Snapshot || draw.below(64) == 0 {
            message.snapshot = Some(self.snapshot(draw, &terms, &indexes));
        }
        message
    }

    fn snapshot(&self, draw: &mut Draw<'_>, terms: &[u64], indexes: &[u64]) -> Snapshot {
        let mut snapshot = match (&self.system, draw.below(3)) {
            (Some(system), 0) => system.snapshot(1, 1, file(draw.u64()), BTreeMap::new()).expect("a snapshot"),
            _ => genesis(),
        };
        if draw.below(2) == 0 {
            snapshot.index = draw.near(indexes);
            snapshot.term = draw.near(terms);
        }
        match draw.below(8) {
            0 => snapshot.conf.voters = (0..draw.below(5)).map(|_| draw.below(6)).collect(),
            1 => snapshot.conf.learners = (0..draw.below(5)).map(|_| draw.below(6)).collect(),
            2 => snapshot.conf.voters_outgoing = vec![draw.below(6)],
            3 => snapshot.conf.auto_leave = true,
            4 => snapshot.data = draw.bytes(20).to_vec().into(),
            _ => {}
        }
        snapshot
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        let image = self.image.lock().expect("no other thread");
        let in_flight = self.in_flight.iter().rev().flat_map(|append| &append.write.entries);
        let flying = in_flight.filter(|entry| entry.index == index).map(|entry| entry.term).next();
        flying.or(image.term_at(index))
    }

    /// The answer that brings the node further: to leadership, to a commit.
    fn sensible_answer(&mut self, draw: &mut Draw<'_>) {
        use MessageKind::*;
        if self.said.is_empty() {
            return self.tick(10);
        }
        let at = draw.below(self.said.len() as u64) as usize;
        let (to, said) = self.said.swap_remove(at);
        let mut answer = match said.kind {
            PreVote => RaftMessage::new(PreVoteResponse, said.term),
            Vote => RaftMessage::new(VoteResponse, said.term),
            Append => {
                let index = said.entries.last().map_or(said.index, |entry| entry.index);
                RaftMessage { index, ..RaftMessage::new(AppendResponse, said.term) }
            }
            Heartbeat => RaftMessage { context: said.context, ..RaftMessage::new(HeartbeatResponse, said.term) },
            Snapshot => {
                let index = said.snapshot.map_or(0, |snapshot| snapshot.index);
                RaftMessage { index, ..RaftMessage::new(AppendResponse, said.term) }
            }
            _ => return,
        };
        if draw.below(8) == 0 {
            answer.reject = true;
            answer.reject_hint = draw.near(&[answer.index, 1]);
        }
        self.core.step(to, answer);
    }

    fn tick(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.now += TICK;
            self.drain(false);
        }
    }

    fn drain(&mut self, amid: bool) {
        if self.stopped {
            return;
        }
        let moment = Moment { now: self.now, wall: SystemTime::UNIX_EPOCH + self.now };
        let effects = if amid { self.core.drain_without_tick(moment) } else { self.core.drain(moment) };
        let _ = effects.to_string();
        let Effects { append, transmit, asks, restore, build, fetch, read, apply, fault, .. } = effects;
        // What a quorum has committed and nobody can read stops a node with a specific error, and so does proof of
        // another history from a member that speaks as a leader. Nothing else may.
        if let Some(fault) = &fault {
            let unreadable = fault.starts_with("the change in entry") && fault.contains("cannot be read")
                || fault.contains("is a change that says");
            let proof = self.leaders_word && fault.contains("was put back from an older copy");
            assert!(unreadable || proof, "a peer made this node give up: {fault}");
            if proof {
                // Its operator starts it again.
                *self = Node::boot(self.image.clone(), self.waits, self.boot + 1, self.now);
                return;
            }
            self.stopped = true;
        }
        self.leaders_word = false;
        self.in_flight.extend(append);
        if restore.is_some() {
            self.restore = restore;
            self.waiting.clear();
        }
        self.builds |= build;
        if let Some(fetch) = fetch {
            self.fetches = Some(fetch.snapshot);
        }
        self.waiting.extend(apply);
        self.questions.extend(asks.iter().map(|question| question.id));
        self.said.extend(transmit);
        let surplus = self.said.len().saturating_sub(16);
        self.said.drain(..surplus);
        for ReadEntries { group, peer, from, to, max_bytes } in read {
            let result = Reader(self.image.clone()).entries(group, from, to, max_bytes);
            self.core.entries_read(peer, from, result);
        }
    }

    fn persist(&mut self, count: usize) {
        for _ in 0..count {
            let Some(append) = self.in_flight.pop_front() else { return };
            let number = append.number;
            self.image.lock().expect("no other thread").write(append);
            self.core.persisted(number);
        }
    }

    fn apply(&mut self, count: usize) {
        if let Some(snapshot) = self.restore.take() {
            self.system = Some(SystemState::of(&snapshot).expect("what was let in can be read").0);
            self.applied = self.applied.max(snapshot.index);
            let (applied, membership) = (self.applied, self.system.as_ref().map(|s| s.membership.clone()));
            membership.into_iter().for_each(|membership| self.core.membership_changed(membership));
            self.core.applied_to(applied);
        }
        for _ in 0..count {
            let Some(Committed { entry, .. }) = self.waiting.pop_front() else { return };
            assert_eq!(entry.index, self.applied + 1, "entries are applied in order without gaps");
            let Some(system) = &mut self.system else { panic!("nothing is applied before the genesis") };
            // A leader can commit what nobody can read. The applier then stops its node, and skips nothing.
            if !apply(system, &entry) {
                self.stopped = true;
                return;
            }
            self.applied = entry.index;
            let membership = system.membership.clone();
            if entry.kind == EntryKind::ConfChange {
                self.core.membership_changed(membership);
            }
            self.core.applied_to(self.applied);
        }
    }

    /// A snapshot of what is applied is built, or is not.
    fn build(&mut self, fails: bool) {
        let term = self.term_at(self.applied);
        let (true, Some(system), Some(term), false) = (self.builds, &self.system, term, fails) else {
            if std::mem::take(&mut self.builds) {
                self.core.snapshot_built(Err("no".to_owned()));
            }
            return;
        };
        self.builds = false;
        let snapshot = system.snapshot(self.applied, term, file(self.applied), BTreeMap::new()).expect("a snapshot");
        self.core.snapshot_built(Ok(snapshot));
    }

    /// What was offered is here, or could not be had.
    fn fetch(&mut self, fails: bool) {
        if let Some(snapshot) = self.fetches.take() {
            self.core.snapshot_fetched(&snapshot, if fails { Err("no".to_owned()) } else { Ok(()) });
        }
    }

    /// Power off: what was not durable is gone.
    fn restart(&mut self, draw: &mut Draw<'_>) {
        self.persist(draw.below(3) as usize);
        *self = Node::boot(self.image.clone(), self.waits, self.boot + 1, self.now);
    }

    /// At the end everything arrives that was on its way.
    fn quiet_down(&mut self) {
        for _ in 0..4 {
            if self.stopped {
                return;
            }
            self.drain(false);
            self.persist(usize::MAX);
            self.apply(1000);
        }
        let _ = self.core.abandon("the run is over");
    }
}

/// A snapshot's file, as a descriptor names it.
fn file(number: u64) -> SnapshotFile {
    SnapshotFile { bytes: number, hash: [number as u8; 32] }
}

/// Whether it could be read.
fn apply(system: &mut SystemState, entry: &Entry) -> bool {
    if entry.kind == EntryKind::ConfChange {
        return SystemCommand::decode(&entry.context).map(|command| system.apply(entry.index, &command)).is_ok();
    }
    if entry.data.is_empty() {
        return true;
    }
    match Stamped::parse(&entry.data) {
        Ok(stamped) if stamped.kind == actorum_core::entry::CommandKind::System => {
            SystemCommand::decode(stamped.payload).map(|command| system.apply(entry.index, &command)).is_ok()
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

fn entry(draw: &mut Draw<'_>, term: u64, index: u64) -> Entry {
    let mut entry =
        Entry { kind: EntryKind::Normal, term, index, data: Default::default(), context: Default::default() };
    match draw.below(8) {
        0..=1 => {}
        2..=4 => entry.data = encoded(draw).stamp(SystemTime::UNIX_EPOCH).into(),
        5..=6 => {
            let id = ChangeId { node: 2, boot: 1, number: draw.below(4) };
            let command = SystemCommand::Change { id, change: change(draw), forced: draw.below(2) == 0 };
            entry.kind = EntryKind::ConfChange;
            entry.context = machine::encode(&command).expect("a command").into();
        }
        _ => {
            entry.kind = draw.pick(&[EntryKind::Normal, EntryKind::ConfChange]);
            let count = draw.below(32) as usize;
            entry.data = draw.bytes(count).to_vec().into();
            entry.context = draw.bytes(count).to_vec().into();
        }
    }
    entry
}

fn encoded(draw: &mut Draw<'_>) -> EncodedCommand {
    match draw.below(4) {
        0 => {
            let incarnation = Incarnation(draw.below(4));
            EncodedCommand::system(&SystemCommand::Incarnation { node: draw.below(6), incarnation })
                .expect("it can be encoded")
        }
        _ => EncodedCommand::command(&"x".repeat(usize::from(draw.byte()))).expect("it can be encoded"),
    }
}

fn change(draw: &mut Draw<'_>) -> Change {
    let id = draw.below(6);
    match draw.below(4) {
        0 => Change::AddLearner(id, "elsewhere:1".into()),
        1 => Change::Promote(id),
        2 => Change::Demote(id),
        _ => Change::Remove(id),
    }
}

fn answer(draw: &mut Draw<'_>) -> Result<Response, AskError> {
    let number = draw.u64();
    let bytes = draw.bytes(12).to_vec();
    match draw.below(10) {
        0 => Ok(Response::Applied { index: number, term: number, response: bytes.into() }),
        1 => Ok(Response::ReadAt { index: number }),
        2 => Ok(Response::Changed { membership: bytes.into() }),
        3 => Ok(Response::Refused(Refusal::NotLeader { leader: Some(number) })),
        4 => Ok(Response::Refused(Refusal::Dropped { cause: "no".into() })),
        5 => Ok(Response::Refused(Refusal::Late)),
        6 => Ok(Response::Unknown { cause: "?".into() }),
        7 => Err(AskError::NotSent("no".into())),
        8 => Err(AskError::Lost("no".into())),
        _ => Ok(Response::Refused(Refusal::Invalid { cause: "no".into() })),
    }
}
