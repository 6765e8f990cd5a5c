//! Where requests go: into this leader's log, to another leader, back to the peer that asked, or on to wait.

use std::{mem, time::SystemTime};

use actorum_machine::{ids::NodeId, machine, outcome::BusyBound};
use bytes::Bytes;
use raft::{StateRole, eraftpb};

use super::{
    Consensus, Forwarded, PeerRequest,
    convert::encode_conf_change,
    requests::{Pending, Request, Retained, Wanted},
};
use crate::{
    entry::{ChangeId, SystemCommand},
    message::RequestOutcome,
    planted::{self, Planted},
    wire::{ChangeRefusal, ENTRY_OVERHEAD, Refusal, Request as Asked},
};

impl<T> Consensus<T> {
    /// Every queued request: into this leader's log, to another leader, back to a peer that should ask
    /// elsewhere, or to wait on.
    pub(super) fn dispatch(&mut self, wall: SystemTime) {
        if self.queued.is_empty() {
            return;
        }
        let leads = self.raw.raft.state == StateRole::Leader;
        let leader = self.leader().filter(|id| *id != self.settings.id);
        let mut batch = Vec::new();
        for request in mem::take(&mut self.queued) {
            let due = request.not_before <= self.ticks;
            // Do not ask again so close to the deadline: an unanswered question would make the outcome "unknown", and
            // it is known now.
            let too_late = request.refusal.is_some() && request.deadline <= self.now + self.settings.tick;
            match (&request.wanted, leader) {
                _ if leads && due => match request.wanted {
                    Wanted::Command(_) => batch.push(request),
                    Wanted::Change(_) => {
                        // In the order of arrival: what came before a change is in the log before it.
                        self.propose(mem::take(&mut batch), wall);
                        self.propose_change(request);
                    }
                },
                // Only a leader proposes for the system: the next leader makes its own proposals.
                _ if !leads && request.reply.is_none() => {}
                _ if !leads && request.peer => self.refuse(request, Refusal::NotLeader { leader }),
                (_, Some(leader)) if !leads && due && !too_late => self.forward(leader, request),
                _ => self.queued.push_back(request),
            }
        }
        self.propose(batch, wall);
    }

    /// One append of raft-rs for all of them: one Ready, one write, one message per peer.
    fn propose(&mut self, batch: Vec<Request<T>>, wall: SystemTime) {
        if batch.is_empty() {
            return;
        }
        let time = self.stamp(wall);
        let (max, unapplied) = (self.settings.max_unapplied_bytes, self.raw.store().unapplied_bytes());
        let mut room = max.saturating_sub(unapplied);
        // A command that the disk cannot take is refused before it is in the log, so it is surely not applied.
        let mut taken_bytes = 0;
        let mut entries = Vec::with_capacity(batch.len());
        let mut proposed = Vec::with_capacity(batch.len());
        for request in batch {
            let Wanted::Command(encoded) = request.wanted else { continue };
            let on_disk = |command| self.room_on_disk(command).saturating_sub(taken_bytes);
            // Each entry costs more than its own bytes.
            let cost = encoded.size() + ENTRY_OVERHEAD;
            let refused = if encoded.size() > self.settings.max_entry_bytes {
                Some(RequestOutcome::Refused(Refusal::TooLarge { limit: self.settings.max_entry_bytes as u64 }))
            } else if let Some(refusal) = self.no_space(request.peer).filter(|_| encoded.is_command()) {
                Some(RequestOutcome::Refused(refusal))
            } else if cost > room {
                Some(RequestOutcome::Busy(BusyBound::Unapplied { bytes: unapplied + taken_bytes, max }))
            } else if cost > on_disk(encoded.is_command()) {
                Some(RequestOutcome::Busy(self.full_disk_bound(encoded.is_command(), taken_bytes)))
            } else if request.deadline <= self.now {
                Some(RequestOutcome::Refused(Refusal::Late))
            } else {
                None
            };
            if let Some(answer) = refused {
                self.effects.answers.extend(request.reply.map(|reply| (reply, answer)));
                continue;
            }
            room -= cost;
            taken_bytes += cost;
            let data = Bytes::from(encoded.stamp(time));
            entries.push(eraftpb::Entry { data: data.clone(), ..Default::default() });
            proposed.push((data, request.reply, request.deadline, request.peer));
        }
        if entries.is_empty() {
            return;
        }
        let taken = self.append_as_leader(entries);
        for (n, (data, reply, deadline, peer)) in proposed.into_iter().enumerate() {
            let Some(reply) = reply else { continue };
            let pending = Pending { kept: Retained::Command(data), reply, deadline, peer };
            match taken {
                Some(first) => drop(self.pending.insert((first + n as u64, self.raw.raft.term), pending)),
                None => self.dropped(pending),
            }
        }
    }

    /// Appends as the leader; the index of the first entry, or `None` if raft-rs dropped all of them.
    fn append_as_leader(&mut self, entries: Vec<eraftpb::Entry>) -> Option<u64> {
        let first = self.raw.raft.raft_log.last_index() + 1;
        self.close_windows();
        let mut message = eraftpb::Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgPropose);
        message.from = self.settings.id;
        message.set_entries(entries.into());
        self.raw.raft.step(message).ok()?;
        self.assert_in_log(first, self.raw.raft.term);
        Some(first)
    }

    /// raft-rs did not take it (its pipeline is full, or it transfers leadership): surely not in the log.
    fn dropped(&mut self, pending: Pending<T>) {
        let request = pending.again(self.ticks + 1);
        if request.peer {
            self.refuse(request, Refusal::Dropped { cause: "the leader's pipeline is full".into() });
        } else {
            self.queued.push_back(request);
        }
    }

    /// Checks, before raft-rs is asked, everything for which raft-rs would silently replace the change by an empty
    /// entry.
    fn propose_change(&mut self, request: Request<T>) {
        let Wanted::Change(wanted) = &request.wanted else { return };
        let wanted = wanted.clone();
        let change = &wanted.change;
        // Before the tail inherited from earlier leaders is applied, nobody knows whether it holds a change.
        if !self.raw.raft.apply_to_current_term() {
            let refusal = Refusal::Change(ChangeRefusal::NotReady);
            return if request.peer { self.refuse(request, refusal) } else { self.again_because(request, refusal) };
        }
        if planted::is(Planted::SecondChange) {
            self.raw.raft.pending_conf_index = 0;
        }
        if self.raw.raft.has_pending_conf() || self.configuration().is_joint() {
            return self.refuse(request, Refusal::Change(ChangeRefusal::InProgress));
        }
        // `has_room_for` is checked only here: when a change of an older leader is applied, all nodes must apply it.
        let next =
            match self.membership.after(change).and_then(|next| self.membership.has_room_for(change).map(|()| next)) {
                Ok(next) => next,
                Err(cause) => return self.refuse(request, Refusal::Change(ChangeRefusal::invalid(cause))),
            };
        if let Some(cause) = self.not_understood(change) {
            return self.refuse(request, Refusal::Change(ChangeRefusal::invalid(cause)));
        }
        let Some(request) = self.check_change(request, &wanted, &next) else { return };
        let id = ChangeId { node: self.settings.id, boot: self.settings.boot, number: self.next_id() };
        let command = SystemCommand::Change { id, change: change.clone(), forced: wanted.force };
        let Ok(context) = machine::encode(&command) else {
            let cause = "it cannot be encoded".to_owned();
            return self.refuse(request, Refusal::Invalid { cause });
        };
        if context.len() > self.settings.max_entry_bytes {
            return self.refuse(request, Refusal::TooLarge { limit: self.settings.max_entry_bytes as u64 });
        }
        let mut entry = eraftpb::Entry::default();
        entry.set_entry_type(eraftpb::EntryType::EntryConfChangeV2);
        entry.data = encode_conf_change(&[change.role_change()]).into();
        entry.context = context.into();
        let taken = self.append_as_leader(vec![entry]);
        let Request { wanted, reply, deadline, peer, .. } = request;
        let (Wanted::Change(change), Some(reply)) = (wanted, reply) else { return };
        let pending = Pending { kept: Retained::Change(change), reply, deadline, peer };
        match taken {
            Some(index) => drop(self.pending.insert((index, self.raw.raft.term), pending)),
            None => self.dropped(pending),
        }
    }

    fn forward(&mut self, leader: NodeId, request: Request<T>) {
        let remaining = request.deadline.saturating_sub(self.now);
        let remaining_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        let question = match &request.wanted {
            Wanted::Command(encoded) => Asked::Propose { data: encoded.bytes(), remaining_ms },
            Wanted::Change(wanted) => match machine::encode(&wanted.change) {
                Ok(data) => Asked::Change { data: data.into(), remaining_ms, force: wanted.force },
                Err(error) => return self.refuse(request, Refusal::Invalid { cause: error.to_string() }),
            },
        };
        let id = self.next_id();
        self.effects.asks.push(PeerRequest { id, to: leader, request: question, timeout: remaining });
        self.forwarded.insert(id, Forwarded { request });
    }

    pub(super) fn refuse(&mut self, request: Request<T>, refusal: Refusal) {
        self.effects.answers.extend(request.reply.map(|reply| (reply, RequestOutcome::Refused(refusal))));
    }

    pub(super) fn dispatch_reads(&mut self) {
        if self.reads.waiting.is_empty() {
            return;
        }
        if self.raw.raft.state == StateRole::Leader {
            if planted::is(Planted::StaleRead)
                || planted::is(Planted::ReadBeforeNoop) && !self.raw.raft.commit_to_current_term()
            {
                let readers = mem::take(&mut self.reads.waiting);
                return self.confirmed(self.raw.raft.raft_log.committed, readers);
            }
            // One round at a time: what arrives meanwhile shares the next one.
            if self.reads.round.is_none() && self.raw.raft.commit_to_current_term() {
                let context = self.next_id();
                self.raw.read_index(context.to_be_bytes().to_vec());
                self.reads.round = Some((context, mem::take(&mut self.reads.waiting)));
            }
            return;
        }
        let leader = self.leader();
        for reader in self.reads.waiting.extract_if(.., |reader| reader.peer) {
            self.effects.answers.push((reader.reply, RequestOutcome::Refused(Refusal::NotLeader { leader })));
        }
        let Some(leader) = leader else { return };
        if self.reads.waiting.is_empty() || self.reads.asked.is_some() || self.reads.not_before > self.ticks {
            return;
        }
        let readers = mem::take(&mut self.reads.waiting);
        let last = readers.iter().map(|reader| reader.deadline).max().unwrap_or(self.now);
        // A lost question delays its readers at most for one election timeout.
        let election_timeout = self.settings.tick * self.settings.election_ticks as u32;
        let timeout = last.saturating_sub(self.now).min(election_timeout);
        let remaining_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let id = self.next_id();
        self.effects.asks.push(PeerRequest { id, to: leader, request: Asked::ReadIndex { remaining_ms }, timeout });
        self.reads.asked = Some((id, readers));
    }

    fn next_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }
}
