//! What a peer says is input from outside: every field is checked before raft-rs sees it.
//!
//! raft-rs has about a hundred places where a field that makes no sense ends in a panic: a commit index past the
//! log, entries with gaps, a snapshot of index zero. Each check here names the one it guards. What fails is
//! dropped and counted, and the honest go on. What makes sense and cannot be true is for [`contradiction`] to judge.

use actorum_machine::{
    configuration::{Configuration, InvalidConfiguration},
    ids::{ClusterId, NodeId},
};
use raft::{Raft, StateRole};

use super::contradiction::{self, Contradiction};
use crate::{
    entry::SystemCommand,
    log::view::LogView,
    system_state::{GENESIS_INDEX, SystemState},
    wire::{ConfState, InvalidConfState, MessageKind, RaftMessage, Snapshot},
};

/// No honest index comes near this; additions cannot overflow below it.
const ABSURD: u64 = 1 << 62;

/// How far a peer's term may be ahead. Terms grow by one with each election, so an honest peer is not further ahead
/// than there were elections while this node was away. A term once heard stays for good: without this bound one message
/// could take the last terms there are, and nobody could be elected ever again.
pub(super) const TERM_AHEAD: u64 = 1 << 32;

/// No node has a term from here on; additions cannot overflow below it. With [`TERM_AHEAD`] it takes 2^31 lies to get
/// here.
///
/// The bound is high so that a directory which took a term just below 2^62 from such a message still elects.
pub(super) const TERM_LIMIT: u64 = 1 << 63;

/// A message that raft-rs can be given. Only [`validate`] makes one.
#[derive(Debug)]
pub struct ValidatedMessage(RaftMessage);

impl ValidatedMessage {
    /// The message.
    pub fn into_inner(self) -> RaftMessage {
        self.0
    }
}

/// Why a message was dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?} of node {from}: {problem}")]
pub struct InvalidMessage {
    kind: MessageKind,
    from: NodeId,
    problem: &'static str,
}

/// Why a message does not reach raft-rs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// It makes no sense: dropped and counted.
    InvalidMessage(InvalidMessage),
    /// It proves that this node's state cannot be trusted.
    Contradiction(Contradiction),
}

/// Checks a message of a peer against what this node knows of its own log and term.
///
/// It asks raft-rs, not the log behind it: between two drains raft-rs may have cut its log shorter, or have grown it.
pub fn validate(
    from: NodeId,
    message: RaftMessage,
    raft: &Raft<LogView>,
    cluster: Option<ClusterId>,
) -> Result<ValidatedMessage, Rejected> {
    let invalid = |problem| Err(Rejected::InvalidMessage(InvalidMessage { kind: message.kind, from, problem }));
    if let Some(problem) = problem(from, &message, raft, cluster) {
        return invalid(problem);
    }
    match contradiction::find(from, &message, raft) {
        Some(proof) if contradiction::is_member(from, raft) => Err(Rejected::Contradiction(proof)),
        // raft-rs would die of it, or believe it.
        Some(claim) => invalid(claim.problem()),
        None => Ok(ValidatedMessage(message)),
    }
}

fn problem(from: NodeId, m: &RaftMessage, raft: &Raft<LogView>, cluster: Option<ClusterId>) -> Option<&'static str> {
    use MessageKind::*;
    let log = &raft.raft_log;
    let last = log.last_index();
    if from == 0 {
        return Some("0 is not a node id");
    }
    // An acknowledgement in its own name would count a leader's disk before it answered.
    if from == raft.id {
        return Some("it is in this node's own name");
    }
    // raft-rs takes term 0 for a message of its own.
    if m.term == 0 {
        return Some("term 0");
    }
    if [m.index, m.commit, m.reject_hint].iter().any(|&n| n >= ABSURD) {
        return Some("a number beyond all plausibility");
    }
    // A term that is nearer is handled as Raft says.
    if m.term >= TERM_LIMIT || m.term.saturating_sub(raft.term) > TERM_AHEAD {
        return Some("its term is more than 2^32 ahead of this node's");
    }
    // The sender of a message knows of no later term than the message's.
    if m.log_term.max(m.commit_term) > m.term {
        return Some("it speaks of an entry of a later term than its own");
    }
    if m.request_snapshot != 0 {
        return Some("it asks for a snapshot, which nodes of this version never do");
    }
    if m.kind != Append && !m.entries.is_empty() {
        return Some("it carries entries");
    }
    if m.kind != Snapshot && m.snapshot.is_some() {
        return Some("it carries a snapshot");
    }
    match m.kind {
        Append => entries_problem(m),
        // `maybe_update` past the log sends appends that start beyond it.
        AppendResponse if !m.reject && m.index > last => Some("it acknowledges what was never sent"),
        // A candidate speaks when all it holds is durable; `become_leader` insists on it.
        VoteResponse if raft.state == StateRole::Candidate && log.persisted < last => {
            Some("it answers a request that has not been sent")
        }
        // Only the leader that this node follows may make it campaign at once, past pre-vote and lease. What comes from
        // an earlier term is old, and raft-rs ignores it.
        TimeoutNow if m.term > raft.term || m.term == raft.term && from != raft.leader_id => {
            Some("it transfers leadership, and is not from the leader that this node follows in its own term")
        }
        Snapshot => match &m.snapshot {
            None => Some("it carries no snapshot"),
            Some(snapshot) if snapshot.term > m.term => Some("its snapshot is of a later term than the message"),
            Some(snapshot) => snapshot_problem(snapshot, cluster),
        },
        _ => None,
    }
}

fn entries_problem(m: &RaftMessage) -> Option<&'static str> {
    // Every log begins with a snapshot. Entries in its place would be acknowledged, and not be there after a restart.
    if m.index == 0 && (m.log_term != 0 || !m.entries.is_empty()) {
        return Some("it goes back before the genesis");
    }
    // raft-rs says "term 0" of every index past its log, and takes that for a match.
    if m.index > 0 && m.log_term == 0 {
        return Some("it follows an entry of no term");
    }
    let mut term = m.log_term;
    for (n, entry) in m.entries.iter().enumerate() {
        if entry.index != m.index + 1 + n as u64 {
            return Some("its entries have gaps");
        }
        if entry.term < term || entry.term > m.term || entry.term == 0 {
            return Some("the terms of its entries run backwards");
        }
        term = entry.term;
        // It would make another cluster of this one. Only a stopped node's tools write it, below all that node ever
        // sends.
        if matches!(SystemCommand::of(entry), Ok(Some(SystemCommand::Recovered { .. }))) {
            return Some("it carries the beginning of another cluster, which no node sends");
        }
    }
    None
}

fn snapshot_problem(snapshot: &Snapshot, cluster: Option<ClusterId>) -> Option<&'static str> {
    if snapshot.index == 0 || snapshot.term == 0 || snapshot.index >= ABSURD {
        return Some("its snapshot has index or term 0");
    }
    // Once it is in raft-rs there is no way back: what cannot be read must not get that far.
    match SystemState::of(snapshot) {
        Err(_) => Some("its snapshot cannot be read"),
        Ok((system, _)) if cluster.is_some_and(|cluster| cluster != system.cluster) => {
            Some("its snapshot is of another cluster")
        }
        // Only the genesis needs none: it is the machine as it was built.
        Ok((_, None)) if snapshot.index != GENESIS_INDEX => Some("its snapshot has no file"),
        Ok((system, _)) => match configuration(&snapshot.conf) {
            Ok(conf) => disagreement(&conf, &system.membership.configuration()),
            Err(problem) => Some(problem),
        },
    }
}

/// raft-rs counts by the one, and changes are judged by the other: a later change that the state allows would leave
/// raft-rs without voters. Each leader adds who it sends a genesis to as a learner (`LogView::snapshot`), so there
/// may be more learners.
fn disagreement(conf: &Configuration, state: &Configuration) -> Option<&'static str> {
    let agree = conf.voters == state.voters && state.learners.is_subset(&conf.learners);
    (!agree).then_some("its snapshot's configuration is not that of its state")
}

/// raft-rs's `confchange::restore` would die of anything else.
fn configuration(conf: &ConfState) -> Result<Configuration, &'static str> {
    let joint = !conf.voters_outgoing.is_empty() || !conf.learners_next.is_empty() || conf.auto_leave;
    match Configuration::try_from(conf) {
        Err(InvalidConfState::Invalid(InvalidConfiguration::NoVoters)) => {
            Err("its snapshot's configuration has no voters")
        }
        _ if joint => Err("its snapshot's configuration is joint, which nodes of this version never enter"),
        Err(_) => Err("its snapshot's configuration names a node twice, or node 0"),
        Ok(configuration) => Ok(configuration),
    }
}
