//! What must happen because of what came in: plain values, in the order they may happen.

use std::{fmt, time::Duration};

use actorum_machine::ids::NodeId;

use crate::{
    log::store::Compact,
    message::{Append, Committed, FetchSnapshot, LeaderChanged, ReadEntries, RequestOutcome},
    wire::{RaftMessage, Request, Snapshot},
};

/// A question to another node, answered to [`Consensus::answered`](super::Consensus::answered) with its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRequest {
    /// This core's number for it.
    pub id: u64,
    /// Whom to ask.
    pub to: NodeId,
    /// What.
    pub request: Request,
    /// How long the answer is worth waiting for.
    pub timeout: Duration,
}

/// Everything one drain asks for. Nothing in it has happened yet.
///
/// `transmit` may leave at once: it contains either what a leader may say before its own disk has answered (Raft
/// dissertation section 10.2.1), or what was deferred until the write it speaks of was durable.
#[derive(Debug)]
pub struct Effects<T> {
    /// To make durable.
    pub append: Vec<Append>,
    /// To find out, by a write of its own, whether the disk answers.
    pub probe: bool,
    /// To read from the log, where waiting for the disk is allowed.
    pub read: Vec<ReadEntries>,
    /// To send now.
    pub transmit: Vec<(NodeId, RaftMessage)>,
    /// To ask other nodes.
    pub asks: Vec<PeerRequest>,
    /// A snapshot that is durable and replaces the state machine's state.
    pub restore: Option<Snapshot>,
    /// To build a snapshot of what is applied.
    pub build: bool,
    /// To get the file of a snapshot from the node that offered it.
    pub fetch: Option<FetchSnapshot>,
    /// The snapshots that this node can start from now: the files of others may be removed.
    pub kept: Option<Vec<Snapshot>>,
    /// To apply, in order.
    pub apply: Vec<Committed<T>>,
    /// Reads that may be served once this index is applied.
    pub reads: Vec<(u64, T)>,
    /// Requests that end without the applier.
    pub answers: Vec<(T, RequestOutcome)>,
    /// A new leader, term or role.
    pub leader: Option<LeaderChanged>,
    /// This node cannot go on.
    pub fault: Option<String>,
}

impl<T> Default for Effects<T> {
    fn default() -> Self {
        Effects {
            append: Vec::new(),
            probe: false,
            read: Vec::new(),
            transmit: Vec::new(),
            asks: Vec::new(),
            restore: None,
            build: false,
            fetch: None,
            kept: None,
            apply: Vec::new(),
            reads: Vec::new(),
            answers: Vec::new(),
            leader: None,
            fault: None,
        }
    }
}

/// One line per effect, as the transcripts quote them.
impl<T: fmt::Display> fmt::Display for Effects<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(LeaderChanged { leader, term, role }) = &self.leader {
            let leader = leader.map_or("nobody".to_owned(), |id| format!("n{id}"));
            writeln!(f, "{role} in term {term}, led by {leader}")?;
        }
        for append in &self.append {
            write!(f, "append #{}", append.number)?;
            if let Some(snapshot) = &append.write.snapshot {
                write!(f, " snapshot {}@{}", snapshot.index, snapshot.term)?;
            }
            for entry in &append.write.entries {
                write!(f, " {}@{}", entry.index, entry.term)?;
            }
            if let Some(Compact { snapshots, up_to }) = &append.write.compact {
                write!(f, " compact to {up_to}, snapshots")?;
                snapshots.iter().try_for_each(|snapshot| write!(f, " {}@{}", snapshot.index, snapshot.term))?;
            }
            if let Some(hard) = &append.write.hard_state {
                write!(f, " term {} vote {} commit {}", hard.term, hard.vote, hard.commit)?;
            }
            writeln!(f, "{}", if append.sync { "" } else { " (no sync)" })?;
        }
        if self.probe {
            writeln!(f, "probe the disk")?;
        }
        for ReadEntries { peer, from, to, .. } in &self.read {
            writeln!(f, "read {from} to {} for n{peer}", to - 1)?;
        }
        for (to, message) in &self.transmit {
            writeln!(f, "-> n{to} {message}")?;
        }
        for PeerRequest { id, to, request, .. } in &self.asks {
            let what = match request {
                Request::Propose { .. } => "Propose",
                Request::ReadIndex { .. } => "ReadIndex",
                Request::Change { .. } => "Change",
                Request::Formation(_) => "Formation",
                Request::Snapshot(_) => "Snapshot",
                Request::Clock => "Clock",
                Request::Activate => "Activate",
                Request::Marks { .. } => "Marks",
            };
            writeln!(f, "ask n{to} {what} (question {id})")?;
        }
        if let Some(snapshot) = &self.restore {
            writeln!(f, "restore {}@{}", snapshot.index, snapshot.term)?;
        }
        if self.build {
            writeln!(f, "build a snapshot")?;
        }
        if let Some(FetchSnapshot { from, snapshot }) = &self.fetch {
            writeln!(f, "fetch {}@{} from n{from}", snapshot.index, snapshot.term)?;
        }
        if let Some(kept) = &self.kept {
            write!(f, "keep snapshots")?;
            kept.iter().try_for_each(|snapshot| write!(f, " {}@{}", snapshot.index, snapshot.term))?;
            writeln!(f)?;
        }
        for Committed { entry, reply } in &self.apply {
            write!(f, "apply {}@{}", entry.index, entry.term)?;
            if entry.kind == crate::wire::EntryKind::ConfChange {
                write!(f, " conf change")?;
            } else if entry.data.is_empty() {
                write!(f, " empty")?;
            }
            match reply {
                Some(reply) => writeln!(f, " for {reply}")?,
                None => writeln!(f)?,
            }
        }
        for (index, reply) in &self.reads {
            writeln!(f, "read {reply} at {index}")?;
        }
        for (reply, answer) in &self.answers {
            writeln!(f, "answer {reply}: {answer:?}")?;
        }
        if let Some(fault) = &self.fault {
            writeln!(f, "fault: {fault}")?;
        }
        Ok(())
    }
}
