//! What comes in: messages of peers, requests, and the reports of those that the core gave work to.
//!
//! | from | inputs |
//! |---|---|
//! | peers | `step`, `unreachable`, `peer_features`, `answered` |
//! | clients, and peers for theirs | `submit`, `change`, `read`, each with its twin `.._for_peer` |
//! | this node's own parts | `propose_mark`, `propose_versions`, `campaign` |
//! | the log writer | `persisted` |
//! | the applier | `applied_to`, `membership_changed`, `versions_changed` |
//!
//! Most inputs are only noted, and the next drain decides what must happen. Two do more: a message is stepped into
//! raft-rs at once, and a durable write releases the messages that waited for it. What a peer says is checked first
//! (see [`validate`]).
//!
//! Deliberately absent: the inputs that belong to one idea, which are with it: disk and space (`disk`), snapshots
//! (`snapshots`), entries that were read (`replicate`), clocks (`stamp`), the genesis (`construction`), time itself
//! (`time`). And any bound on the requests: each holds a permit of admission.

use std::{mem, sync::Arc, time::Duration};

use actorum_machine::{
    ids::NodeId,
    members::{ChangeRequest, Membership},
};
use raft::StateRole;

use super::{
    CommitConflict, Consensus, Forwarded,
    answers::may_retry,
    contradiction,
    convert::message_to_raft,
    reads::Reader,
    requests::{Request, Wanted},
    validate::{self, Rejected},
};
use crate::{
    entry::{EncodedCommand, SystemCommand},
    features::{Feature, Features},
    message::RequestOutcome,
    planted::{self, Planted},
    versions::Versions,
    wire::{AskError, MessageKind, RaftMessage, Response},
};

impl<T> Consensus<T> {
    /// A message of a peer.
    pub fn step(&mut self, from: NodeId, message: RaftMessage) {
        // After proof that its state cannot be trusted, this node takes no more messages.
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
            Err(Rejected::InvalidMessage(invalid)) => {
                self.invalid_messages += 1;
                if self.invalid_messages.is_power_of_two() {
                    tracing::warn!(dropped = self.invalid_messages, "dropped an invalid message: {invalid}");
                }
                return;
            }
        };
        self.note_commit_conflict(from, &message);
        self.note_contact(from, &message);
        let Some(message) = self.hold_offer(from, message) else { return };
        let answers_heartbeat = message.kind == MessageKind::HeartbeatResponse;
        // Errors here are the peer's (for example an answer of a node that is no member): nothing to do.
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
                "a member says that it committed an entry that contradicts this node's log: one of the two has another \
                 history"
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
        // Being told to campaign at once is a campaign; a leader that is told so in a later term has stepped down by
        // then.
        if message.kind == TimeoutNow && (self.could_not_be_elected() || !self.may_take_leadership()) {
            return false;
        }
        // The bound on what is committed and not applied: the leader sends again what is dropped here. What is not
        // committed does not count: only a leader's appends can commit it, or take its place.
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

    /// Proposes a mark, at which nodes compare what they applied. No client waits for it. A leader does so only if
    /// every member understands marks, because an older node would stop at one.
    pub fn propose_mark(&mut self, restart: bool) {
        if self.may_use(Feature::StateHashes) {
            self.propose_for_system(&SystemCommand::Mark { restart });
        }
    }

    /// Proposes an `Announce` or an `Activate`, and nothing else. No client waits for it. A leader does so only if
    /// every member understands such entries.
    pub fn propose_versions(&mut self, command: &SystemCommand) {
        let is_of_versions = matches!(command, SystemCommand::Announce { .. } | SystemCommand::Activate { .. });
        let all_understand = || self.knows_all_members() && self.every_member_understands(Feature::Activation);
        if is_of_versions && (self.versions.are_recorded() || all_understand()) {
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
        // When an election timeout ends, raft-rs lets only a voter campaign. When it is asked to campaign, it does not
        // check that.
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
            // raft-rs hears of the write before the messages leave: otherwise an answer could come back before raft-rs
            // knows of it.
            self.raw.on_persist_ready(done.ready);
            self.durable_term = done.term;
            self.disk.bytes -= done.bytes;
            self.disk.deferred -= done.deferred.len();
            if let Some(snapshot) = done.restore {
                // Tell raft-rs that the snapshot is applied once it is durable: a campaign reads the entries after the
                // applied index, and the log has none before the snapshot.
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
    /// The core decides who is a member, when a change is committed. The applier reports later, so its list may be
    /// older.
    pub fn membership_changed(&mut self, membership: Arc<Membership>) {
        let same = membership.configuration() == self.membership.configuration();
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
        // Only who records it needs to know of which start it is.
        self.understanding.met(peer, features, machine_version, 0);
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
            Ok(Response::Applied { index, term, response }) => RequestOutcome::Applied { index, term, response },
            Ok(Response::Changed { membership }) => RequestOutcome::Changed { membership },
            Ok(Response::Refused(refusal)) if may_retry(&refusal) => return self.again_because(request, refusal),
            Ok(Response::Refused(refusal)) => RequestOutcome::Refused(refusal),
            Ok(Response::Unknown { cause }) => RequestOutcome::Unknown { cause },
            Ok(other) => {
                RequestOutcome::Unknown { cause: format!("the leader gave an answer to another question: {other:?}") }
            }
            Err(AskError::NotSent(_)) => return self.again(request),
            Err(AskError::Lost(_)) if planted::is(Planted::ForwardRetried) => return self.again(request),
            Err(AskError::Lost(cause)) => {
                RequestOutcome::Unknown { cause: format!("the leader's answer was lost: {cause}") }
            }
        };
        if let Some(reply) = request.reply {
            self.effects.answers.push((reply, answer));
        }
    }
}
