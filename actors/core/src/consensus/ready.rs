//! Readies of raft-rs, taken apart: what to write, what may leave now, what is deferred, what is committed.
//!
//! ```text
//!            ┌─ messages ───────────▶ transmit      (a leader's: ahead of its own disk)
//!  Ready ────┼─ entries, hard state ▶ append #n ──┐
//!            ├─ persisted messages ─▶ deferred  ──┴─ persisted(n)
//!            └─ committed entries ──▶ apply, each with the reply handle of the proposal that it really is
//! ```

use std::sync::Arc;

use actorum_machine::ids::NodeId;
use raft::{StateRole, Storage, eraftpb};

use super::{
    Consensus, PendingWrite,
    convert::{conf_change, conf_from_raft, entry_from_raft, hard_from_raft, message_from_raft, snapshot_from_raft},
    replicate::split,
    requests::{Pending, Retained},
};
use crate::{
    entry::SystemCommand,
    log::store::{HardState, Write},
    message::{Append, Committed, RequestOutcome},
    planted::{self, Planted},
    system_state::SystemState,
    wire::{ChangeRefusal, Entry, RaftMessage, Refusal, Snapshot},
};

impl<T> Consensus<T> {
    /// Takes Readies until raft-rs has no more.
    pub(super) fn process_ready(&mut self) {
        let bound = self.settings.max_append_bytes;
        loop {
            self.replicate();
            if !self.raw.has_ready() {
                return;
            }
            let mut ready = self.raw.ready();
            // A leader sends entries before its own disk has them: its own acknowledgement counts once they are
            // durable.
            let now = outgoing(&ready.take_messages(), bound);
            let mut deferred = outgoing(ready.persisted_messages(), bound);
            if self.raw.raft.term == self.durable_term {
                self.transmit(now);
            } else {
                // A single voter leads without having asked anybody, before its term is durable. Should it die
                // now, it would use the same term again, for other entries at the same indexes.
                deferred.extend(now);
            }
            let entries = ready.take_entries();
            let committed = ready.take_committed_entries();
            let read_states = ready.take_read_states();
            let snapshot = (!ready.snapshot().is_empty()).then(|| snapshot_from_raft(ready.snapshot()));
            let hard_state = ready.hs().map(hard_from_raft);
            let (number, must_sync) = (ready.number(), ready.must_sync());

            // raft-rs must be able to read all of it before the Ready is given back.
            let view = self.raw.mut_store();
            if let Some(snapshot) = &snapshot {
                view.install(snapshot.clone());
            }
            let overwrites = planted::is(Planted::OverwrittenCounted)
                && entries.first().is_some_and(|first| view.last_index().is_ok_and(|last| first.index <= last));
            view.append(&entries);
            if let Some(hard_state) = hard_state {
                view.set_hard_state(hard_state);
            }
            self.raw.advance_append_async(ready);

            if let Some(snapshot) = &snapshot {
                self.forget_pending_under(snapshot.index);
                self.adopt_membership(snapshot);
            }
            if overwrites && !self.pending_writes.is_empty() {
                // What was overwritten counts for what took its place.
                self.write(number, false, None, Vec::new(), None, deferred);
                self.push_append(None, entries.iter().map(entry_from_raft).collect(), hard_state, true);
            } else {
                self.write(number, must_sync, snapshot, entries, hard_state, deferred);
            }
            self.commit(committed);
            self.step_down_if_removed();
            for state in read_states {
                self.confirm(&state.request_ctx, state.index);
            }
        }
    }

    /// raft-rs lets a leader that was removed or demoted go on leading, and dies when its disk or a peer then reports
    /// progress: it looks for itself among the members. So it steps down in the drain that made the change, before
    /// any other input. The commit of its removal has been sent by now.
    fn step_down_if_removed(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
            self.draw_election_timeout();
        }
    }

    /// Hands a Ready's write to the disk, and defers the messages that speak of it.
    fn write(
        &mut self,
        ready: u64,
        must_sync: bool,
        snapshot: Option<Snapshot>,
        entries: Vec<eraftpb::Entry>,
        hard_state: Option<HardState>,
        deferred: Vec<(NodeId, RaftMessage)>,
    ) {
        if must_sync {
            let entries: Vec<Entry> = entries.iter().map(entry_from_raft).collect();
            let bytes = entries.iter().map(Entry::size).sum::<usize>() + snapshot.as_ref().map_or(0, |s| s.data.len());
            let write = self.push_append(snapshot.clone(), entries, hard_state, true);
            let term = self.raw.raft.term;
            if planted::is(Planted::AppliedBeforePersisted) && self.raw.raft.prs().conf().voters().ids().len() == 1 {
                self.raw.on_persist_ready(ready);
                return self.transmit(deferred);
            }
            self.disk.bytes += bytes;
            self.disk.deferred += deferred.len();
            let (since, deferred) = (self.ticks, deferred.into());
            let next = PendingWrite { write, ready, restore: snapshot, term, since, bytes, deferred };
            self.assert_follows(&next);
            self.pending_writes.push_back(next);
            return self.bound_deferred();
        }
        if hard_state.is_some() {
            // Only the commit index moved: no promise depends on it.
            self.push_append(None, Vec::new(), hard_state, false);
        }
        // Without a write of its own a Ready can still speak of an earlier one that is under way.
        match self.pending_writes.back_mut() {
            Some(newest) => {
                newest.ready = ready;
                self.disk.deferred += deferred.len();
                newest.deferred.extend(deferred);
                self.bound_deferred();
            }
            None => {
                self.raw.on_persist_ready(ready);
                self.transmit(deferred);
            }
        }
    }

    pub(super) fn push_append(
        &mut self,
        snapshot: Option<Snapshot>,
        entries: Vec<Entry>,
        hard_state: Option<HardState>,
        sync: bool,
    ) -> u64 {
        let number = self.next_write;
        self.next_write += 1;
        let write = Write { group: self.settings.group, snapshot, entries, hard_state, compact: None };
        self.effects.append.push(Append { number, write, sync });
        number
    }

    /// Committed entries go to the applier, each with the reply handle of the proposal that it really is.
    fn commit(&mut self, entries: Vec<eraftpb::Entry>) {
        for entry in entries {
            let reply = match self.pending.remove(&(entry.index, entry.term)) {
                None => None,
                Some(pending) if is_its_entry(&pending, &entry) => Some(pending.reply),
                Some(pending) => {
                    // raft-rs put an empty entry in the place of a change.
                    let refusal = Refusal::Change(ChangeRefusal::InProgress);
                    self.effects.answers.push((pending.reply, RequestOutcome::Refused(refusal)));
                    None
                }
            };
            // Whatever else was proposed for this place, in whatever term, is surely not in the log.
            let others: Vec<_> =
                self.pending.extract_if((entry.index, 0)..=(entry.index, u64::MAX), |_, _| true).collect();
            others.into_iter().for_each(|(_, pending)| self.replaced(pending));
            if entry.get_entry_type() == eraftpb::EntryType::EntryConfChangeV2 {
                self.reconfigure(&entry);
            }
            self.effects.apply.push(Committed { entry: entry_from_raft(&entry), reply });
        }
    }

    fn replaced(&mut self, pending: Pending<T>) {
        let request = pending.again(0);
        if request.peer {
            self.refuse(request, Refusal::Dropped { cause: "another leader's entry took its place".into() });
        } else {
            self.queued.push_back(request);
        }
    }

    /// A snapshot replaced the log over these proposals: nobody here can tell whether it contains them.
    fn forget_pending_under(&mut self, index: u64) {
        for ((at, term), pending) in self.pending.extract_if(..=(index, u64::MAX), |_, _| true) {
            let cause = format!("a snapshot up to {index} replaced the log over entry {at}@{term}");
            self.effects.answers.push((pending.reply, RequestOutcome::Unknown { cause }));
        }
    }

    /// A change takes effect in raft-rs when it is committed (dissertation section 4.1 would allow it even earlier).
    ///
    /// What changes is read from the context, which is ours: protobuf bytes of peers are never parsed.
    fn reconfigure(&mut self, entry: &eraftpb::Entry) {
        let change = match SystemCommand::decode(&entry.context) {
            Ok(SystemCommand::Change { change, .. }) => change,
            Ok(other) => return self.fail(format!("entry {} is a change that says {other:?}", entry.index)),
            Err(error) => {
                return self.fail(format!(
                    "the change in entry {} cannot be read: {error}. A later version of actorum wrote it: start this \
                     node with the version that the other members have",
                    entry.index
                ));
            }
        };
        // The applier asks the same of the same membership at the same index: either both make the change or neither
        // does. If they differed, a restart, which begins with the applier's membership, would count other majorities.
        match self.membership.after(&change) {
            Ok(next) => self.membership = Arc::new(next),
            Err(cause) => return tracing::warn!("the change in entry {} makes no sense: {cause}", entry.index),
        }
        match self.raw.apply_conf_change(&conf_change(&[change.role_change()])) {
            Ok(conf) => {
                self.raw.mut_store().set_conf(conf_from_raft(&conf));
                self.assert_agrees(entry.index);
            }
            Err(error) => self.fail(format!("the change in entry {} ({change}) cannot be made: {error}", entry.index)),
        }
    }

    /// A snapshot brings its own membership.
    pub(super) fn adopt_membership(&mut self, snapshot: &Snapshot) {
        match SystemState::of(snapshot) {
            Ok((system, _)) => {
                (self.membership, self.cluster, self.versions) =
                    (system.membership, Some(system.cluster), system.versions);
            }
            Err(error) => {
                self.fail(format!("the snapshot {}@{} cannot be read: {error}", snapshot.index, snapshot.term))
            }
        }
    }

    pub(super) fn fail(&mut self, cause: String) {
        self.effects.fault.get_or_insert(cause);
    }

    fn confirm(&mut self, context: &[u8], index: u64) {
        if let Some((_, readers)) = self.reads.round.take_if(|(round, _)| round.to_be_bytes() == context) {
            self.confirmed(index, readers);
        }
        // What arrived during the round need not wait for the next input.
        self.dispatch_reads();
    }
}

fn outgoing(messages: &[eraftpb::Message], bound: usize) -> Vec<(NodeId, RaftMessage)> {
    let ours = messages.iter().filter_map(|m| Some((m.to, message_from_raft(m)?)));
    // raft-rs counts an entry's overhead as less than it is.
    ours.flat_map(|(to, message)| split(message, bound).into_iter().map(move |part| (to, part))).collect()
}

/// Whether the entry with the right index and term is the one proposed, and not raft-rs's empty substitute for a
/// change.
fn is_its_entry<T>(pending: &Pending<T>, entry: &eraftpb::Entry) -> bool {
    match pending.kept {
        Retained::Command(_) => true,
        Retained::Change(_) => entry.get_entry_type() == eraftpb::EntryType::EntryConfChangeV2,
    }
}
