//! What can be asked of a core: who leads, what may be used, and its numbers. No question changes anything.
//!
//! Deliberately absent: what is asked for inside of the core alone, which is with what it is about (`contact`, `disk`,
//! `snapshots`).

use std::collections::{BTreeMap, BTreeSet};

use actorum_machine::{condition::Reason, configuration::Configuration, ids::NodeId, status::Role};
use raft::StateRole;

use super::{CommitConflict, Consensus, CoreDiskStatus, convert::configuration_of};
use crate::{features::Feature, observer::RaftState, wire::RaftMessage};

/// The numbers of a core at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreStatus {
    /// Whether the node belongs to a cluster.
    pub formed: bool,
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// The first index of the log.
    pub first_index: u64,
    /// The last index of the log.
    pub last_index: u64,
    /// The last durable index.
    pub persisted_index: u64,
    /// The commit index.
    pub commit_index: u64,
    /// The applied index, as far as the core was told.
    pub applied_index: u64,
    /// The index of the newest snapshot.
    pub snapshot_index: u64,
    /// Bytes of entries in the log.
    pub log_bytes: u64,
    /// To whom a snapshot is being sent, and its index.
    pub snapshots_sent: BTreeMap<NodeId, u64>,
    /// The snapshot that is being fetched: from whom, and its index.
    pub snapshot_wanted: Option<(NodeId, u64)>,
    /// Requests that wait for a leader or its answer.
    pub queued: usize,
    /// Writes that are not durable yet.
    pub unpersisted: usize,
    /// The disk as the core sees it.
    pub disk: CoreDiskStatus,
    /// Bytes of entries in memory.
    pub tail_bytes: usize,
    /// Messages of peers that were dropped because they made no sense.
    pub invalid_messages: u64,
    /// Members that say they committed what contradicts this node.
    pub commit_conflicts: BTreeMap<NodeId, CommitConflict>,
    /// Per peer: the index it has made durable, and how raft-rs sends to it.
    pub peers: BTreeMap<NodeId, (u64, &'static str)>,
    /// The peers heard within an election timeout.
    pub heard: BTreeSet<NodeId>,
    /// Why this node, which leads, would not take a write.
    pub refuses_writes: Option<Reason>,
    /// Per peer: bytes of entries sent and not acknowledged. Empty unless this node leads.
    pub inflight_bytes: BTreeMap<NodeId, usize>,
    /// Whether the calendars of a majority of the voters are known. If not, a leader stamps by its own.
    pub median_known: bool,
}

impl<T> Consensus<T> {
    /// Whether this node belongs to a cluster.
    pub fn is_formed(&self) -> bool {
        self.raw.store().is_formed()
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
            StateRole::Follower if self.configuration().learners.contains(&self.settings.id) => Role::Learner,
            StateRole::Follower => Role::Follower,
        }
    }

    /// Whether this node was sent proof that it and the rest of the cluster do not have one history.
    pub fn is_contradicted(&self) -> bool {
        self.contradicted
    }

    /// Whether every member, learners and this node too, has named this feature in a hello seen in this boot.
    pub fn every_member_understands(&self, feature: Feature) -> bool {
        self.understanding.every_member_understands(&self.membership, feature)
    }

    /// Whether no change of the membership is under way: the member that it adds was not asked what it understands.
    pub(super) fn knows_all_members(&self) -> bool {
        let raft = &self.raw.raft;
        raft.apply_to_current_term() && !raft.has_pending_conf()
    }

    /// Whether a new format may be used in entries and snapshots: an entry has put it to use; or, in a cluster that
    /// does not record what its members announce yet, every member has named it in a hello.
    pub fn may_use(&self, feature: Feature) -> bool {
        match self.versions.are_recorded() {
            true => self.versions.has(feature),
            false => self.knows_all_members() && self.every_member_understands(feature),
        }
    }

    /// Whether that peer has. A message or a request that needs a feature goes to nobody else.
    pub fn peer_understands(&self, peer: NodeId, feature: Feature) -> bool {
        self.understanding.peer_understands(peer, feature)
    }

    /// Where this core stands.
    pub fn raft_state(&self) -> RaftState {
        let raft = &self.raw.raft;
        RaftState {
            role: self.role(),
            term: raft.term,
            leader: self.leader(),
            commit: raft.raft_log.committed,
            last: raft.raft_log.last_index(),
            median_known: self.median_known(),
        }
    }

    /// Whether this core was told that its disk is low on space.
    pub fn is_low_on_space(&self) -> bool {
        self.disk.is_low()
    }

    /// The configuration in force: the one that raft-rs counts by.
    pub(super) fn configuration(&self) -> Configuration {
        configuration_of(&self.raw.raft)
    }

    /// The voters of the configuration in force, ascending.
    pub fn voters(&self) -> Vec<NodeId> {
        self.configuration().voters.into_iter().collect()
    }

    /// The messages that are deferred until a write is durable: the write's number, the receiver, the message.
    pub fn deferred_messages(&self) -> impl Iterator<Item = (u64, NodeId, &RaftMessage)> {
        self.pending_writes.iter().flat_map(|u| u.deferred.iter().map(move |(to, message)| (u.write, *to, message)))
    }

    /// The numbers of this core.
    pub fn status(&self) -> CoreStatus {
        let raft = &self.raw.raft;
        let view = self.raw.store();
        let leads = raft.state == StateRole::Leader;
        let progress = |(id, p): (&u64, &raft::Progress)| {
            let state = match p.state {
                _ if !leads => "unknown",
                raft::ProgressState::Probe => "probe",
                raft::ProgressState::Replicate => "replicate",
                raft::ProgressState::Snapshot => "snapshot",
            };
            (*id, (if leads { p.matched } else { 0 }, state))
        };
        CoreStatus {
            formed: self.is_formed(),
            role: self.role(),
            term: raft.term,
            leader: self.leader(),
            first_index: view.compacted_index().max(self.min_served_index) + 1,
            last_index: raft.raft_log.last_index(),
            persisted_index: raft.raft_log.persisted,
            commit_index: raft.raft_log.committed,
            applied_index: raft.raft_log.applied,
            snapshot_index: view.newest().map_or(0, |newest| newest.index),
            log_bytes: view.log_bytes(),
            snapshots_sent: self.snapshots_sent(),
            snapshot_wanted: self.snapshot_wanted(),
            queued: self.queued.len() + self.forwarded.len() + self.reads.len(),
            unpersisted: self.pending_writes.len(),
            disk: self.disk_status(),
            tail_bytes: view.tail_bytes(),
            invalid_messages: self.invalid_messages,
            commit_conflicts: self
                .commit_conflicts
                .iter()
                .filter(|(id, _)| raft.prs().get(**id).is_some())
                .map(|(k, v)| (*k, *v))
                .collect(),
            peers: raft.prs().iter().filter(|(id, _)| **id != self.settings.id).map(progress).collect(),
            heard: self.heard_lately(),
            refuses_writes: self.refuses_writes(),
            inflight_bytes: self.inflight_bytes(),
            median_known: self.median_known(),
        }
    }
}

#[cfg(test)]
impl<T> Consensus<T> {
    /// The commit index and the term of the entry there.
    pub(super) fn commit_point(&self) -> (u64, u64) {
        let log = &self.raw.raft.raft_log;
        (log.committed, log.term(log.committed).unwrap_or(0))
    }
}
