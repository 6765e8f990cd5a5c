//! Messages that contradict what this node knows: which of them prove that a disk is wrong, and which are nonsense.
//!
//! Raft promises that a leader holds every entry that is committed anywhere, that a term has one leader, and that a
//! leader commits nothing here that this node has not acknowledged (sections 5.2 and 5.4). A message that breaks one of
//! these shows that somebody's disk was put back from an older copy, swapped, or is wrong. Then two histories of one
//! cluster exist, and a node that goes on may answer reads that differ from the others'.
//!
//! | what came | what it is | what happens |
//! |---|---|---|
//! | a leader's message that breaks a promise | proof: [`Contradiction`] | this node stops with it (promise 7) |
//! | a member's claim that it committed what this node does not hold | a [`CommitConflict`]: either of the two may be wrong | shown in the status |
//! | anything else that makes no sense | nonsense | dropped and counted, see [`validate`](super::validate) |
//!
//! Proof is only what *all* of this holds for, so that absurd messages stop nobody:
//! - the sender's certificate and hello made it a peer (the transport sees to that), and it is a voter or learner of
//!   the configuration in force here. A learner may have been promoted by an entry that is not here yet; a stranger's
//!   word is worth nothing;
//! - the message is one that only the leader of its term sends (append, heartbeat, snapshot);
//! - its term is this node's or later. A delayed message of a leader that was deposed may speak of entries that were
//!   replaced since: that is what Raft is for, and raft-rs ignores it;
//! - everything else in it makes sense.
//!
//! A follower's word is no proof against its leader. A majority chose that leader, and it sends what it holds: if the
//! follower is right about itself, the leader's next append is the proof, and the follower stops. Otherwise one broken
//! member could stop every leader in turn.

use actorum_machine::ids::NodeId;
use raft::{Raft, StateRole};

use crate::{
    log::{store::At, view::LogView},
    wire::{MessageKind, RaftMessage},
};

/// The way out, whichever of the two directories is the wrong one.
const WAY_OUT: &str = "one of the two directories was put back from an older copy, swapped or damaged. Find out \
                       which nodes agree (`actorum inspect DIR`), keep the history of their majority, and add every \
                       other node again under a new id with an empty directory";

/// Proof, from a leader, that this node and the rest of the cluster do not have one history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// The leader holds another entry than the one that is committed here.
    #[error(
        "node {peer}, the leader of term {term}, has {} in its log, and this node has committed {}: {WAY_OUT}",
        At(*.index, *.theirs), At(*.at, *.ours)
    )]
    Entry {
        /// The leader.
        peer: NodeId,
        /// Its term.
        term: u64,
        /// The index that it spoke of.
        index: u64,
        /// The term of its entry there.
        theirs: u64,
        /// The committed index here that this contradicts; the same one unless terms would run backwards.
        at: u64,
        /// The term of the entry there.
        ours: u64,
    },
    /// This node has acknowledged more than it holds.
    #[error(
        "node {peer}, the leader of term {term}, has index {commit} acknowledged by this node, whose log ends at \
         {last}: this node has lost what it acknowledged. {WAY_OUT}"
    )]
    Lost {
        /// The leader.
        peer: NodeId,
        /// Its term.
        term: u64,
        /// What this node acknowledged to it, at the least.
        commit: u64,
        /// The last index here.
        last: u64,
    },
    /// One term has two leaders, so a vote was given twice.
    #[error("nodes {peer} and {other} both lead term {term}, so a vote was given twice: {WAY_OUT}")]
    TwoLeaders {
        /// Who sent this.
        peer: NodeId,
        /// Whom this node knows as the leader; itself, if it leads.
        other: NodeId,
        /// The term.
        term: u64,
    },
}

impl Contradiction {
    /// The same for the count of dropped messages, where its sender's word is no proof.
    pub(super) fn problem(&self) -> &'static str {
        match self {
            Contradiction::Entry { .. } => "it contradicts a committed entry",
            Contradiction::Lost { .. } => "it commits past the end of this log",
            Contradiction::TwoLeaders { .. } => "its term has another leader",
        }
    }
}

/// A member says that it has committed what contradicts this node. One of the two is wrong, and nothing here says
/// which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitConflict {
    /// The index that it says is committed.
    pub index: u64,
    /// The term of its entry there; zero where the message does not say.
    pub theirs: u64,
    /// The index here that this contradicts: a committed one, or the last one of this leader's log.
    pub at: u64,
    /// The term of the entry there.
    pub ours: u64,
}

/// Whether the sender is a member whose word counts.
pub(super) fn is_member(id: NodeId, raft: &Raft<LogView>) -> bool {
    raft.prs().get(id).is_some()
}

/// What in this message breaks a promise that its leader is bound by. The message makes sense otherwise.
pub(super) fn find(from: NodeId, m: &RaftMessage, raft: &Raft<LogView>) -> Option<Contradiction> {
    use MessageKind::*;
    if m.term < raft.term || !matches!(m.kind, Append | Heartbeat | Snapshot) {
        return None;
    }
    let (peer, term) = (from, m.term);
    let entry = |index, theirs| {
        let (at, ours) = against(index, theirs, raft)?;
        Some(Contradiction::Entry { peer, term, index, theirs, at, ours })
    };
    let found = match m.kind {
        Append if m.index > 0 => {
            let entries = m.entries.iter().map(|entry| (entry.index, entry.term));
            [(m.index, m.log_term)].into_iter().chain(entries).find_map(|(index, theirs)| entry(index, theirs))
        }
        // A leader says no more than it knows to be on this disk, and it knows that from this term's acknowledgements.
        Heartbeat if m.commit > raft.raft_log.last_index() => {
            Some(Contradiction::Lost { peer, term, commit: m.commit, last: raft.raft_log.last_index() })
        }
        Snapshot => m.snapshot.as_ref().and_then(|snapshot| entry(snapshot.index, snapshot.term)),
        _ => None,
    };
    found.or_else(|| {
        let other = if raft.state == StateRole::Leader { raft.id } else { raft.leader_id };
        // A stranger that was heard first proves nothing against a member.
        let another = m.term == raft.term && other != from && is_member(other, raft);
        another.then_some(Contradiction::TwoLeaders { peer, other, term })
    })
}

/// What a member claims to have committed, if it contradicts this node. A candidate, and a node that refuses one, send
/// the index with its term; a follower sends only the index. The message makes sense.
pub(super) fn commit_conflict(from: NodeId, m: &RaftMessage, raft: &Raft<LogView>) -> Option<CommitConflict> {
    use MessageKind::*;
    if m.commit == 0 || !is_member(from, raft) {
        return None;
    }
    match m.kind {
        Vote | PreVote | VoteResponse | PreVoteResponse if m.commit_term > 0 => {
            let (at, ours) = against(m.commit, m.commit_term, raft)?;
            Some(CommitConflict { index: m.commit, theirs: m.commit_term, at, ours })
        }
        // The log of a leader never shrinks in its term.
        AppendResponse | HeartbeatResponse if m.term == raft.term && raft.state == StateRole::Leader => {
            let last = raft.raft_log.last_index();
            let ours = raft.raft_log.term(last).unwrap_or(0);
            (m.commit > last).then_some(CommitConflict { index: m.commit, theirs: 0, at: last, ours })
        }
        _ => None,
    }
}

/// The committed entry here that a log with this entry cannot have: another entry at the same index, or one with a
/// later term before it or an earlier term after it.
fn against(index: u64, term: u64, raft: &Raft<LogView>) -> Option<(u64, u64)> {
    let log = &raft.raft_log;
    // raft-rs says "term 0" of what it does not know.
    let known = |index| log.term(index).ok().filter(|term| *term != 0);
    // What is compacted has no term of its own any more, but an upper bound.
    let oldest = log.first_index().saturating_sub(1);
    let at = index.clamp(oldest.min(log.committed), log.committed);
    let ours = known(at)?;
    let agree = match index.cmp(&at) {
        std::cmp::Ordering::Equal => term == ours,
        std::cmp::Ordering::Greater => term >= ours,
        std::cmp::Ordering::Less => term <= ours,
    };
    (!agree).then_some((at, ours))
}
