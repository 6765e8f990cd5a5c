//! The pure core: raft-rs, the requests in flight, and nothing else.
//!
//! ```text
//!  step, submit, read, change, persisted, applied_to, answered, unreachable, tick's time
//!                               │
//!                               ▼
//!                         ┌───────────┐
//!                         │ Consensus │  raft-rs RawNode over a LogView
//!                         └───────────┘
//!                               │ drain(moment)
//!                               ▼
//!            Effects: append, transmit, ask, apply, reads, answers
//! ```
//!
//! A function of its inputs: no clock, no random numbers, no actor, no file, no await. Inputs only note
//! what came in; [`Consensus::drain`] turns all of it into one set of [`Effects`]. The same inputs and
//! seed give the same effects, which is what the transcripts in `testscripts/` and the simulation stand on.
//!
//! The rule it keeps above all (the second promise): a message that speaks of a write is *deferred* until
//! [`Consensus::persisted`] has reported that write, except those a leader may send ahead of its own disk
//! (Raft dissertation section 10.2.1).
//!
//! Deliberately absent: leases (raft-rs's are stale even with good clocks), joint changes.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actorum_machine::{
    ids::{ClusterId, GroupId, Incarnation, NodeId},
    members::{ChangeRequest, Membership},
    status::Role,
};
use raft::{RawNode, StateRole};

use crate::{
    clock_offsets::Estimates,
    debug_fields,
    entry::{EncodedCommand, SystemCommand},
    features::{Feature, Features},
    log::{
        store::{HardState, LogReader, Recovered, StoreError},
        view::LogView,
    },
    message::{Answer, LeaderChanged},
    planted::{self, Planted},
    system_state::{GENESIS_INDEX, GENESIS_TERM},
    understanding::Understanding,
    versions::{Announcement, Versions},
    wire::{AskError, ChangeRefusal, ConfState, MessageKind, RaftMessage, Refusal, Response, Snapshot},
};

pub mod effects;
pub mod convert;
pub mod validate;
pub mod contradiction;
mod requests;
mod contact;
mod readiness;
mod dispatch;
mod replicate;
mod ready;
mod reads;
mod disk;
mod snapshots;
mod status;
mod stamp;
mod assertions;
mod bridge;
#[cfg(test)]
mod tests;

pub use contradiction::CommitConflict;
pub use disk::DiskStatus;
pub use effects::{Effects, Question};
pub use status::CoreStatus;

use convert::message_to_raft;
use reads::{Reader, Reads};
use replicate::Windows;
use requests::{Pending, Request, Wanted};
use snapshots::Snapshots;
use validate::Rejected;

/// What the core has to know of its node. Times are in ticks or milliseconds as named.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub id: NodeId,
    /// This group.
    pub group: GroupId,
    /// The life of this node's directory; part of the seed.
    pub incarnation: Incarnation,
    /// How often the directory was opened; part of the names of membership changes.
    pub boot: u64,
    /// Where the random numbers start.
    pub seed: u64,
    /// The length of a tick; a leader sends a heartbeat at each.
    pub tick: Duration,
    /// The least election timeout, in ticks; each wait is drawn from once to twice this.
    pub election_ticks: usize,
    /// Bytes of entries in one append message.
    pub max_append_bytes: usize,
    /// Append messages on their way to one peer.
    pub max_inflight_appends: usize,
    /// Bytes of entries on their way to one peer: while there are fewer, another message is sent.
    pub peer_window_bytes: usize,
    /// Bytes of entries committed and not applied: past the bound a follower drops appends. A leader answers `Busy` where a
    /// proposal would make what it has appended and not applied more than that.
    pub max_unapplied_bytes: usize,
    /// Bytes handed to this node's disk and not durable. At the bound a leader answers `Busy`.
    pub max_unpersisted_bytes: usize,
    /// How many ticks a write may wait for the disk before this node gives up its leadership and seeks none.
    pub disk_slow_ticks: u64,
    /// Bytes of applied entries kept in memory.
    pub log_tail_bytes: usize,
    /// Bytes of one entry.
    pub max_entry_bytes: usize,
    /// A snapshot is built when so many entries were applied since the last one.
    pub snapshot_entries: u64,
    /// Or when they have so many bytes.
    pub snapshot_bytes: u64,
    /// Or when they have four times the newest snapshot's bytes, and at least so many.
    pub small_snapshot_bytes: u64,
    /// Where room is short a snapshot is built when so many bytes were applied since the last one, or a quarter of its size if that is
    /// more.
    pub short_bytes: u64,
    /// Entries kept behind the newest snapshot, for followers that are behind.
    pub keep_entries: u64,
    /// Bytes of entries kept for them at most.
    pub keep_bytes: u64,
    /// Bytes of entries kept at most for a follower that lives and needs them.
    pub hold_bytes: u64,
    /// After so many ticks without a sign of life a snapshot on its way to a peer counts as lost.
    pub snapshot_timeout_ticks: u64,
    /// How far beyond the median of the voters' calendars a leader may stamp.
    pub max_clock_skew: Duration,
    /// Whether a node that holds nothing waits to be added by a leader. If not, it hears nobody until it is formed.
    pub waits: bool,
    /// What this build understands.
    pub features: Features,
    /// The version of its state machine.
    pub machine_version: u32,
    /// When this node's certificate ends, if it has one: peers refuse new connections of a node from then on.
    pub certificate_ends: Option<SystemTime>,
}

/// What a core starts from.
pub struct Start {
    /// What the store found.
    pub recovered: Recovered,
    /// Reads the log behind the tail.
    pub reader: Arc<dyn LogReader>,
    /// The highest index that the applier has applied.
    pub applied: u64,
    /// The membership at that index.
    pub membership: Arc<Membership>,
    /// What was announced and in use at that index.
    pub versions: Arc<Versions>,
    /// The cluster, if the node belongs to one.
    pub cluster: Option<ClusterId>,
    /// Where this node was made the only one of a cluster by hand, zero if it was not: what its log holds up to there is
    /// sent to nobody.
    pub min_served_index: u64,
}

debug_fields!(Start { applied, cluster, min_served_index });

/// A moment, as the caller's clock has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic.
    pub now: Duration,
    /// Calendar time, for the stamps in the log.
    pub wall: SystemTime,
}

/// A write that is not durable yet, and what waits for it.
#[derive(Debug)]
struct PendingWrite {
    /// The number in [`Append`](crate::message::Append).
    write: u64,
    /// The highest Ready of raft-rs that is durable with it.
    ready: u64,
    /// The snapshot it makes durable, if any: the applier restores it then.
    restore: Option<Snapshot>,
    /// The term it makes durable.
    term: u64,
    /// The tick in which it was handed to the disk.
    since: u64,
    /// Bytes in it.
    bytes: usize,
    /// What speaks of it.
    deferred: VecDeque<(NodeId, RaftMessage)>,
}

/// A question that another node has not answered yet.
#[derive(Debug)]
struct Forwarded<T> {
    request: Request<T>,
}

/// The Raft core of one group. `T` is a client's reply handle: carried, handed back, never looked into.
pub struct Consensus<T> {
    settings: Settings,
    logger: slog::Logger,
    raw: RawNode<LogView>,
    membership: Arc<Membership>,
    /// As of what is applied: what is in use there stays in use.
    versions: Arc<Versions>,
    understanding: Understanding,
    cluster: Option<ClusterId>,
    min_served_index: u64,
    /// Writes on their way to the disk, oldest first, and the messages that wait for them. Entries are bounded by
    /// `max_unapplied_bytes`, answers by `disk::MAX_DEFERRED`.
    pending_writes: VecDeque<PendingWrite>,
    disk: disk::Disk,
    next_write: u64,
    /// The term that is on the disk.
    durable_term: u64,
    /// The genesis snapshot on its way to the disk.
    forming: Option<(u64, Snapshot)>,
    queued: VecDeque<Request<T>>,
    /// By index and term: after a change of leaders two proposals can stand at one index, undecided both.
    pending: BTreeMap<(u64, u64), Pending<T>>,
    forwarded: BTreeMap<u64, Forwarded<T>>,
    reads: Reads<T>,
    contact: contact::Contact,
    commits: readiness::Commits,
    next_id: u64,
    now: Duration,
    next_tick: Option<Duration>,
    ticks: u64,
    snapshots: Snapshots,
    windows: Windows,
    announced: Option<LeaderChanged>,
    implausible: u64,
    /// Members that say they committed what contradicts this node; at most one word of each.
    commit_conflicts: BTreeMap<NodeId, CommitConflict>,
    contradicted: bool,
    clocks: Estimates,
    certificate_ended: bool,
    seen: assertions::Seen,
    effects: Effects<T>,
}

impl<T> fmt::Debug for Consensus<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raft = &self.raw.raft;
        f.debug_struct("Consensus")
            .field("id", &raft.id)
            .field("term", &raft.term)
            .field("role", &raft.state)
            .field("leader", &raft.leader_id)
            .field("committed", &raft.raft_log.committed)
            .field("applied", &raft.raft_log.applied)
            .finish_non_exhaustive()
    }
}

impl<T> Consensus<T> {
    /// A core that goes on where its log ended.
    pub fn new(settings: Settings, start: Start) -> Result<Self, StoreError> {
        let Start { recovered, reader, applied, membership, versions, cluster, min_served_index } = start;
        let mut view = match recovered.newest() {
            None => {
                // It holds nothing, but a leader may have spoken to it: its term never runs backwards.
                let mut view = LogView::empty(settings.group, reader, settings.log_tail_bytes);
                view.set_hard_state(HardState { commit: 0, ..recovered.hard_state });
                view
            }
            Some(_) if planted::is(Planted::VoteForgotten) && recovered.hard_state.vote != 0 => {
                let hard_state = HardState { vote: 0, ..recovered.hard_state };
                let recovered = Recovered { hard_state, ..recovered };
                return Consensus::new(
                    settings,
                    Start { recovered, reader, applied, membership, versions, cluster, min_served_index },
                );
            }
            Some(snapshot) => {
                // The genesis that a learner was sent names it; the founders' own state does not.
                let conf = if applied == snapshot.index { snapshot.conf.clone() } else { ConfState::of(&membership) };
                let (group, keep) = (settings.group, settings.log_tail_bytes);
                LogView::recovered(group, reader, keep, recovered, applied, conf)?
            }
        };
        view.raise_min_served_index(min_served_index);
        // raft-rs refuses to start with a commit index below what was applied.
        let hard = view.hard_state();
        // Its next election would overflow, in every term that follows too.
        if hard.term >= validate::TERM_LIMIT {
            let detail = format!("term {} is beyond the last one that a node may have", hard.term);
            return Err(StoreError::Damaged { what: "the hard state".into(), detail });
        }
        view.set_hard_state(HardState { commit: hard.commit.max(applied), ..hard });
        let logger = bridge::logger();
        let durable_term = hard.term;
        let raw = new_raw(&settings, view, applied, &logger)?;
        let own = Announcement::of(&settings.features, settings.machine_version);
        let understanding = Understanding::new(settings.id, settings.features.clone(), own);
        let mut core = Consensus {
            settings,
            logger,
            raw,
            membership,
            versions,
            understanding,
            cluster,
            min_served_index,
            pending_writes: VecDeque::new(),
            disk: disk::Disk::default(),
            next_write: 1,
            durable_term,
            forming: None,
            queued: VecDeque::new(),
            pending: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            reads: Reads::default(),
            contact: contact::Contact::default(),
            commits: readiness::Commits::new(),
            next_id: 1,
            now: Duration::ZERO,
            next_tick: None,
            ticks: 0,
            snapshots: Snapshots::default(),
            windows: Windows::default(),
            announced: None,
            implausible: 0,
            commit_conflicts: BTreeMap::new(),
            contradicted: false,
            clocks: Estimates::default(),
            certificate_ended: false,
            seen: assertions::Seen::default(),
            effects: Effects::default(),
        };
        core.draw_election_timeout();
        Ok(core)
    }

    // ---- what comes in -------------------------------------------------------------------------------------

    /// Every founder is as new as this node: the cluster is formed, and its log begins with this snapshot.
    ///
    /// Until it is durable this node stays as silent as before.
    pub fn form(&mut self, genesis: Snapshot) {
        if self.is_formed() || self.forming.is_some() {
            return;
        }
        let hard_state = self.first_hard_state();
        let number = self.push_append(Some(genesis.clone()), Vec::new(), Some(hard_state), true);
        self.forming = Some((number, genesis));
    }

    fn first_hard_state(&self) -> HardState {
        let HardState { term, vote, .. } = self.raw.store().hard_state();
        HardState { term: term.max(GENESIS_TERM), vote, commit: GENESIS_INDEX }
    }

    /// A message of a peer.
    pub fn step(&mut self, from: NodeId, message: RaftMessage) {
        // After proof that its state cannot be trusted this node believes nothing more.
        if self.effects.fault.is_some() || !self.hears(&message) {
            return;
        }
        let message = match validate::validate(from, message, &self.raw.raft, self.cluster) {
            Ok(valid) => valid.into_inner(),
            // Promise 7: evidence that a node cannot trust its state is never only a line in a log.
            Err(Rejected::Contradiction(proof)) => {
                self.contradicted = true;
                return self.fail(proof.to_string());
            }
            Err(Rejected::InvalidMessage(implausible)) => {
                self.implausible += 1;
                if self.implausible.is_power_of_two() {
                    tracing::warn!(dropped = self.implausible, "dropped an implausible message: {implausible}");
                }
                return;
            }
        };
        self.note_commit_conflict(from, &message);
        self.note_contact(from, &message);
        let Some(message) = self.hold_offer(from, message) else { return };
        let answers_heartbeat = message.kind == MessageKind::HeartbeatResponse;
        // Errors here are of the peer's making (an answer of somebody who is no member): nothing to do.
        let _ = self.raw.step(message_to_raft(from, self.settings.id, message));
        if answers_heartbeat {
            self.probe_full_window(from);
        }
        self.draw_election_timeout();
    }

    /// Remembers what a member says it committed, if this node's log contradicts it.
    fn note_commit_conflict(&mut self, from: NodeId, message: &RaftMessage) {
        let Some(conflict) = contradiction::commit_conflict(from, message, &self.raw.raft) else { return };
        if self.commit_conflicts.insert(from, conflict).is_none() {
            let CommitConflict { index, theirs, at, ours } = conflict;
            tracing::debug!(
                peer = from,
                index,
                theirs,
                at,
                ours,
                "a member says that it committed an entry that contradicts this node's log: one of the two has another history"
            );
        }
    }

    /// Whether this node may listen to such a message now.
    fn hears(&self, message: &RaftMessage) -> bool {
        use crate::wire::MessageKind::*;
        if !self.is_formed() {
            // The sixth promise: an empty directory grants and seeks no vote. A node that waits to
            // be added may hear a leader; a founder hears nobody before every founder has spoken.
            let waits = self.settings.waits || planted::is(Planted::WipedDiskVotes);
            return waits && matches!(message.kind, Append | Heartbeat | Snapshot);
        }
        // Being told to campaign at once is a campaign; a leader that is told so in a later term has stepped down by then.
        if message.kind == TimeoutNow && (self.could_not_be_elected() || !self.may_take_leadership()) {
            return false;
        }
        // The bound on what is committed and not applied: the leader sends again what is dropped here. What is not committed does
        // not count: only a leader's appends can commit it, or take its place.
        let full = self.raw.store().waiting_bytes() > self.settings.max_unapplied_bytes;
        !(full && message.kind == Append && !message.entries.is_empty())
    }

    /// Propose a command. Without a reply handle nobody waits for the answer.
    pub fn submit(&mut self, encoded: EncodedCommand, reply: Option<T>, deadline: Duration) {
        self.hold(Wanted::Command(encoded), reply, deadline, false);
    }

    /// Propose a command for a peer, which is told at once if this node does not lead.
    pub fn submit_for_peer(&mut self, encoded: EncodedCommand, reply: T, deadline: Duration) {
        self.hold(Wanted::Command(encoded), Some(reply), deadline, true);
    }

    /// Propose a mark, at which nodes compare what they applied. Nobody waits for it, and only a leader whose every member
    /// understands one does: a node of an older version would stop at it.
    pub fn propose_mark(&mut self, restart: bool) {
        if self.may_use(Feature::StateHashes) {
            self.propose_for_system(&SystemCommand::Mark { restart });
        }
    }

    /// Propose what a member has announced, or to use what all have. Nobody waits for it, and only a leader does whose every
    /// member understands such entries.
    pub fn propose_versions(&mut self, command: &SystemCommand) {
        if self.versions.are_recorded() || self.every_member_understands(Feature::Activation) {
            self.propose_for_system(command);
        }
    }

    fn propose_for_system(&mut self, command: &SystemCommand) {
        if self.raw.raft.state != StateRole::Leader {
            return;
        }
        match EncodedCommand::system(command) {
            Ok(encoded) => self.submit(encoded, None, Duration::MAX),
            Err(error) => tracing::error!(%error, "a command of the system cannot be encoded"),
        }
    }

    /// Change the membership.
    pub fn change(&mut self, change: impl Into<ChangeRequest>, reply: T, deadline: Duration) {
        self.hold(Wanted::Change(change.into()), Some(reply), deadline, false);
    }

    /// Change the membership for a peer.
    pub fn change_for_peer(&mut self, change: impl Into<ChangeRequest>, reply: T, deadline: Duration) {
        self.hold(Wanted::Change(change.into()), Some(reply), deadline, true);
    }

    fn hold(&mut self, wanted: Wanted, reply: Option<T>, deadline: Duration, peer: bool) {
        self.queued.push_back(Request { wanted, reply, deadline, peer, not_before: 0, refusal: None });
    }

    /// Find an index at which a linearizable read may be served.
    pub fn read(&mut self, reply: T, deadline: Duration) {
        self.reads.waiting.push(Reader { reply, deadline, peer: false });
    }

    /// The same for a peer.
    pub fn read_for_peer(&mut self, reply: T, deadline: Duration) {
        self.reads.waiting.push(Reader { reply, deadline, peer: true });
    }

    /// Ask for votes now.
    pub fn campaign(&mut self) {
        // Unlike its clock, a request to campaign makes raft-rs forget that only voters may.
        if self.is_formed() && self.raw.raft.promotable() && self.may_lead() && !self.must_wait_for_disk() {
            let _ = self.raw.campaign();
            self.draw_election_timeout();
        }
    }

    /// Every write up to this number is durable.
    pub fn persisted(&mut self, number: u64) {
        if let Some((_, genesis)) = self.forming.take_if(|(write, _)| *write <= number) {
            self.begin_with(genesis);
        }
        while self.pending_writes.front().is_some_and(|oldest| oldest.write <= number) {
            let Some(mut done) = self.pending_writes.pop_front() else { break };
            // First raft-rs, then the messages: the other order lets an answer race ahead of what raft-rs knows.
            self.raw.on_persist_ready(done.ready);
            self.durable_term = done.term;
            self.disk.bytes -= done.bytes;
            self.disk.deferred -= done.deferred.len();
            if let Some(snapshot) = done.restore {
                // For raft-rs it is applied by being durable: a campaign looks at all that follows the applied
                // index, and below the snapshot there is nothing left to look at.
                if snapshot.index > self.raw.raft.raft_log.applied {
                    self.raw.advance_apply_to(snapshot.index);
                }
                // The answer leaves once the state is there, too.
                let (_, deferred) = self.snapshots.restoring.get_or_insert_default();
                deferred.extend(done.deferred.drain(..));
                self.snapshots.restoring = Some((snapshot.index, mem::take(deferred)));
                self.effects.restore = Some(snapshot);
            }
            self.transmit(done.deferred.into());
        }
        self.recorded(number);
        self.trust_disk_again();
        self.draw_election_timeout();
    }

    /// Everything up to this index is applied.
    pub fn applied_to(&mut self, index: u64) {
        if index > self.raw.raft.raft_log.applied {
            self.raw.advance_apply_to(index);
            self.raw.mut_store().applied_to(index);
        }
        self.effects.reads.extend(self.reads.due(index));
        self.restored(index);
    }

    /// The applier's membership: what it recorded of the members besides who they are.
    ///
    /// Who is in is decided here, as changes are committed. The applier comes later, and its word may be of before.
    pub fn membership_changed(&mut self, membership: Arc<Membership>) {
        let same = ConfState::of(&membership) == ConfState::of(&self.membership);
        if same && membership.retired == self.membership.retired {
            self.membership = membership;
        }
    }

    /// The applier's word of what is announced and in use.
    pub fn versions_changed(&mut self, versions: Arc<Versions>) {
        self.versions = versions;
    }

    /// A peer's hello names these, and this version of its state machine.
    pub fn peer_features(&mut self, peer: NodeId, features: Features, machine_version: u32) {
        self.understanding.met(peer, features, machine_version);
    }

    /// A peer cannot be reached, or something sent to it was dropped.
    pub fn unreachable(&mut self, peer: NodeId) {
        self.raw.report_unreachable(peer);
        self.snapshot_may_be_lost(peer);
    }

    /// The end of a question.
    pub fn answered(&mut self, id: u64, result: Result<Response, AskError>) {
        if let Some((_, readers)) = self.reads.asked.take_if(|(asked, _)| *asked == id) {
            return self.read_answered(readers, result);
        }
        // Otherwise its time was up and its client has been answered.
        let Some(Forwarded { request }) = self.forwarded.remove(&id) else { return };
        let answer = match result {
            Ok(Response::Applied { index, term, response }) => Answer::Applied { index, term, response },
            Ok(Response::Changed { membership }) => Answer::Changed { membership },
            Ok(Response::Refused(refusal)) if may_retry(&refusal) => return self.again_because(request, refusal),
            Ok(Response::Refused(refusal)) => Answer::Refused(refusal),
            Ok(Response::Unknown { cause }) => Answer::Unknown { cause },
            Ok(other) => Answer::Unknown { cause: format!("the leader gave an answer to another question: {other:?}") },
            Err(AskError::NotSent(_)) => return self.again(request),
            Err(AskError::Lost(_)) if planted::is(Planted::ForwardRetried) => return self.again(request),
            Err(AskError::Lost(cause)) => Answer::Unknown { cause: format!("the leader's answer was lost: {cause}") },
        };
        if let Some(reply) = request.reply {
            self.effects.answers.push((reply, answer));
        }
    }

    fn read_answered(&mut self, readers: Vec<Reader<T>>, result: Result<Response, AskError>) {
        match result {
            Ok(Response::ReadAt { index }) => {
                self.confirmed(index, readers);
            }
            // A read changes nothing: whatever went wrong, it is asked again until its time is up.
            _ => {
                self.reads.not_before = self.ticks + 1;
                self.reads.waiting.extend(readers);
            }
        }
    }

    /// These readers may be served once this index is applied.
    fn confirmed(&mut self, index: u64, readers: Vec<Reader<T>>) {
        self.reads.confirmed.extend(readers.into_iter().map(|reader| (index, reader)));
        self.effects.reads.extend(self.reads.due(self.raw.raft.raft_log.applied));
    }

    /// Back into the queue: nothing was done, and there may be time for another try.
    fn again(&mut self, mut request: Request<T>) {
        request.not_before = self.ticks + 1;
        self.queued.push_back(request);
    }

    /// The same, with what its client hears if nothing changes until its deadline.
    fn again_because(&mut self, mut request: Request<T>, refusal: Refusal) {
        match refusal {
            Refusal::Change(ChangeRefusal::Invalid { .. } | ChangeRefusal::NotReady) | Refusal::Dropped { .. } => {
                request.refusal = Some(refusal);
            }
            _ => {}
        }
        self.again(request);
    }

    // ---- what goes out -------------------------------------------------------------------------------------

    /// Turns everything that came in since the last drain into effects. For a caller that has read everything
    /// that waited for it: time passes here.
    pub fn drain(&mut self, moment: Moment) -> Effects<T> {
        self.now = moment.now;
        self.certificate_ended = self.settings.certificate_ends.is_some_and(|end| moment.wall >= end);
        self.tick_if_due();
        self.process(moment.wall)
    }

    /// The same while the mailbox still holds messages that were not read. A leader sends its heartbeats, but no
    /// timeout ends: a message that would have renewed it may be among the unread ones.
    pub fn drain_without_tick(&mut self, moment: Moment) -> Effects<T> {
        self.now = moment.now;
        self.heartbeat_if_due();
        self.process(moment.wall)
    }

    fn process(&mut self, wall: SystemTime) -> Effects<T> {
        self.note_leader();
        self.dispatch(wall);
        self.dispatch_reads();
        self.process_ready();
        self.note_sent();
        self.build_if_due();
        self.note_leader();
        if let Some(fault) = self.raw.store().fault() {
            self.effects.fault.get_or_insert(format!("the log cannot be read: {fault}"));
        }
        self.transmitted();
        self.assert_transition();
        mem::take(&mut self.effects)
    }

    /// Whether a tick is due. If so the next one is a tick from now at the latest: time beyond one tick is forgiven.
    fn due(&mut self) -> bool {
        let due = *self.next_tick.get_or_insert(self.now + self.settings.tick);
        if self.now < due {
            return false;
        }
        let next = due + self.settings.tick;
        self.next_tick = Some(if next > self.now { next } else { self.now + self.settings.tick });
        true
    }

    /// At most one tick per drain, however much time has passed: after a pause the messages that waited are
    /// read before a second tick can end in an election.
    fn tick_if_due(&mut self) {
        if !self.due() {
            return;
        }
        self.ticks += 1;
        self.note_commit();
        self.look_at_disk();
        let leads = self.raw.raft.state == StateRole::Leader;
        if !leads && !self.may_lead() {
            self.let_time_pass();
        } else if !self.must_wait_for_disk() {
            self.raw.tick();
            self.draw_election_timeout();
        }
        self.give_up_on_snapshots();
        self.expire();
    }

    fn heartbeat_if_due(&mut self) {
        if self.raw.raft.state == StateRole::Leader && self.due() {
            // Its disk ages under a flood, too.
            self.ticks += 1;
            self.note_commit();
            self.look_at_disk();
            self.raw.ping();
        }
    }

    /// Whether raft-rs would die of an election now: a single voter elects itself at once and must have its whole
    /// log on disk by then, and a campaign reads what follows the applied index, which a snapshot under way moves.
    fn must_wait_for_disk(&self) -> bool {
        (self.raw.raft.state != StateRole::Leader && self.is_alone_and_behind()) || self.is_installing()
    }

    /// The same of a node that leads, should it be made to step down and begin anew.
    fn could_not_be_elected(&self) -> bool {
        self.is_alone_and_behind() || self.is_installing()
    }

    fn is_alone_and_behind(&self) -> bool {
        let raft = &self.raw.raft;
        let behind = raft.raft_log.persisted < raft.raft_log.last_index() || !self.pending_writes.is_empty();
        behind && raft.prs().is_singleton() && raft.promotable()
    }

    /// Whether a snapshot is on its way to this node's disk. Once it is there it is being restored.
    fn is_installing(&self) -> bool {
        self.pending_writes.iter().any(|write| write.restore.is_some())
    }

    /// Answers those whose time is up: rejected if they never reached a log, unknown if they may have.
    fn expire(&mut self) {
        let (now, leader) = (self.now, self.leader());
        let mut kept = VecDeque::with_capacity(self.queued.len());
        for request in mem::take(&mut self.queued) {
            match request.reply {
                _ if request.deadline > now => kept.push_back(request),
                Some(reply) => {
                    let tried = request.not_before > 0 && leader != Some(self.settings.id);
                    let answer = match request.refusal {
                        Some(refusal) => Answer::Refused(refusal),
                        None if leader.is_none() || tried => Answer::Refused(Refusal::NotLeader { leader }),
                        None => Answer::Late { cause: "the deadline passed before the leader took it up".to_owned() },
                    };
                    self.effects.answers.push((reply, answer));
                }
                None => {}
            }
        }
        self.queued = kept;
        for ((index, term), late) in self.pending.extract_if(.., |_, pending| pending.deadline <= now) {
            let cause = format!("entry {index}@{term} was not committed within the deadline; it still may be");
            self.effects.answers.push((late.reply, Answer::Unknown { cause }));
        }
        for (_, late) in self.forwarded.extract_if(.., |_, forwarded| forwarded.request.deadline <= now) {
            let cause = "the leader did not answer within the deadline; it still may carry it out".to_owned();
            if let Some(reply) = late.request.reply {
                self.effects.answers.push((reply, Answer::Unknown { cause }));
            }
        }
        for late in self.reads.expire_unconfirmed(now) {
            self.effects.answers.push((late.reply, Answer::Refused(Refusal::NotLeader { leader })));
        }
        let applied = self.raw.raft.raft_log.applied;
        for (index, late) in self.reads.expire_confirmed(now) {
            let cause = format!(
                "the leader confirmed the read at {index}, and this node's state machine had applied up to {applied} at \
                 its deadline: it is busy, or what it waits for has not reached this node"
            );
            self.effects.answers.push((late.reply, Answer::Late { cause }));
        }
    }

    /// raft-rs lets a leader that was removed or demoted go on leading, and dies when its disk or a peer then reports
    /// progress: it looks for itself among the members. So it steps down in the drain that made the change, before
    /// any other input. The commit of its removal has been sent by now.
    pub(super) fn step_down_if_removed(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
            self.draw_election_timeout();
        }
    }

    /// A new leader may be asked at once what the last one refused or lost.
    fn note_leader(&mut self) {
        let now = LeaderChanged { leader: self.leader(), term: self.raw.raft.term, role: self.role() };
        if self.announced == Some(now) {
            return;
        }
        let moved = self.announced.is_none_or(|before| (before.leader, before.term) != (now.leader, now.term));
        if moved {
            self.reads.restart();
            self.reads.not_before = 0;
            self.queued.iter_mut().for_each(|request| request.not_before = 0);
        }
        self.announced = Some(now);
        self.effects.leader = Some(now);
    }

    /// The randomized election timeout (Raft section 5.2), drawn from our own generator so that a run can be repeated.
    ///
    /// raft-rs draws its own at each change of term or role; ours replaces it before the next tick looks.
    fn draw_election_timeout(&mut self) {
        let least = self.settings.election_ticks as u64;
        let raft = &mut self.raw.raft;
        let words = [self.settings.seed, self.settings.id, self.settings.incarnation.0, raft.term, raft.state as u64];
        let drawn = words.iter().fold(0x9e37_79b9_7f4a_7c15_u64, |hash, word| mix(hash ^ word));
        raft.set_randomized_election_timeout((least + drawn % least) as usize);
    }

    /// The genesis is durable: raft-rs begins with it.
    fn begin_with(&mut self, genesis: Snapshot) {
        let reader = self.raw.store().reader();
        let hard_state = self.first_hard_state();
        let mut view = LogView::empty(self.settings.group, reader, self.settings.log_tail_bytes);
        view.install(genesis.clone());
        view.set_hard_state(hard_state);
        match new_raw(&self.settings, view, genesis.index, &self.logger) {
            Ok(raw) => self.raw = raw,
            Err(error) => return self.fail(format!("raft cannot begin with the genesis snapshot: {error}")),
        }
        self.durable_term = hard_state.term;
        self.adopt_membership(&genesis);
        self.draw_election_timeout();
        self.effects.kept = Some(vec![genesis.clone()]);
        self.effects.restore = Some(genesis);
    }

    fn next_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    // ---- what can be asked ---------------------------------------------------------------------------------

    /// Whether this node belongs to a cluster.
    pub fn is_formed(&self) -> bool {
        self.raw.store().is_formed()
    }

    /// Whether every member, learners and this node too, has named this feature in a hello seen in this boot. Only then may
    /// an entry or a snapshot be made that needs it: a node of an older version stops at one that it does not know.
    pub fn every_member_understands(&self, feature: Feature) -> bool {
        self.understanding.every_member_understands(&self.membership, feature)
    }

    /// Whether a new format may be used in entries and snapshots: an entry has put it to use; or, in a cluster that does not
    /// record what its members announce yet, every member has named it in a hello.
    pub fn may_use(&self, feature: Feature) -> bool {
        match self.versions.are_recorded() {
            true => self.versions.has(feature),
            false => self.every_member_understands(feature),
        }
    }

    /// Whether that peer has. A message or a request that needs a feature goes to nobody else.
    pub fn peer_understands(&self, peer: NodeId, feature: Feature) -> bool {
        self.understanding.peer_understands(peer, feature)
    }

    /// Whether this node was sent proof that it and the rest of the cluster do not have one history.
    pub fn is_contradicted(&self) -> bool {
        self.contradicted
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        Some(self.raw.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }

    /// What this node is.
    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate => Role::Candidate,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Follower if self.raw.raft.prs().conf().to_conf_state().learners.contains(&self.settings.id) => {
                Role::Learner
            }
            StateRole::Follower => Role::Follower,
        }
    }

    /// When the next tick is due.
    pub fn next_tick(&self) -> Option<Duration> {
        self.next_tick
    }

    /// The messages that are deferred until a write is durable: the write's number, the receiver, the message.
    pub fn deferred_messages(&self) -> impl Iterator<Item = (u64, NodeId, &RaftMessage)> {
        self.pending_writes.iter().flat_map(|u| u.deferred.iter().map(move |(to, message)| (u.write, *to, message)))
    }

    /// Ends every request with this cause, as unknown.
    pub fn abandon(&mut self, cause: &str) -> Vec<(T, Answer)> {
        let unknown = || Answer::Unknown { cause: cause.to_owned() };
        let mut answers = mem::take(&mut self.effects.answers);
        answers.extend(mem::take(&mut self.queued).into_iter().filter_map(|r| Some((r.reply?, unknown()))));
        answers.extend(mem::take(&mut self.pending).into_values().map(|p| (p.reply, unknown())));
        answers
            .extend(mem::take(&mut self.forwarded).into_values().filter_map(|f| Some((f.request.reply?, unknown()))));
        answers.extend(self.reads.drain().into_iter().map(|r| (r.reply, unknown())));
        answers.extend(mem::take(&mut self.effects.reads).into_iter().map(|(_, reply)| (reply, unknown())));
        let committed = mem::take(&mut self.effects.apply).into_iter();
        answers.extend(committed.filter_map(|c| Some((c.reply?, unknown()))));
        answers
    }
}

fn new_raw(
    settings: &Settings,
    view: LogView,
    applied: u64,
    logger: &slog::Logger,
) -> Result<RawNode<LogView>, StoreError> {
    let config = raft::Config {
        id: settings.id,
        election_tick: settings.election_ticks,
        heartbeat_tick: 1,
        applied,
        // Zero would mean one entry per message.
        max_size_per_msg: settings.max_append_bytes as u64,
        max_inflight_msgs: settings.max_inflight_appends,
        check_quorum: true,
        pre_vote: true,
        // It merges appends without a bound. They are merged, up to a bound, when they leave (`Consensus::transmit`).
        batch_append: false,
        // What a leader takes is bounded where it is proposed; raft-rs wants no less than a message.
        max_uncommitted_size: settings.max_unapplied_bytes.max(settings.max_append_bytes) as u64,
        max_committed_size_per_ready: settings.max_append_bytes as u64,
        ..raft::Config::default()
    };
    RawNode::new(&config, view, logger).map_err(|error| StoreError::Damaged {
        what: "the log".into(),
        detail: format!("raft cannot start from it: {error}"),
    })
}

/// Refusals that promise that nothing was done and that another try may fare better.
fn may_retry(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::NotLeader { .. } | Refusal::Dropped { .. } | Refusal::Stopped { .. } => true,
        Refusal::Change(ChangeRefusal::NotReady) => true,
        // It may catch up inside the deadline.
        Refusal::Change(ChangeRefusal::Invalid { reading: Some(reading), .. }) => {
            reading.learner.as_ref().is_some_and(|learner| !learner.forced)
        }
        Refusal::Busy
        | Refusal::LowSpace { .. }
        | Refusal::TooLarge { .. }
        | Refusal::Late
        | Refusal::Change(_)
        | Refusal::Invalid { .. } => false,
    }
}

/// One round of splitmix64: spreads a few words over all bits.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
