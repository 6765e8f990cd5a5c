//! What crosses the network: plain structs, encoded as MessagePack maps with named fields.
//!
//! Named fields let an older reader skip what a newer writer added; byte strings are `Bytes`, so that a
//! payload is one `bin` and not an array of numbers. These structs are the project's own: what raft-rs uses
//! inside never touches a socket, and nothing here is trusted until the consensus core has validated it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use actorum_machine::{
    configuration::{Configuration, InvalidConfiguration},
    ids::{Address, ClusterId, Incarnation, NodeId},
    members::Membership,
    readings::ChangeReading,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    features::Feature,
    marks::{MAX_MARKS, Mark},
};

/// The kind of a log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A command of the application, a system command, or the empty entry of a new leader.
    Normal,
    /// A change of the membership (raft-rs `ConfChangeV2`).
    ConfChange,
}

/// One entry of the replicated log (Raft section 5.3), as it is stored and sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What `data` holds.
    pub kind: EntryKind,
    /// The term of the leader that created it.
    pub term: u64,
    /// Its position in the log; the first entry that can be proposed is 2 (1 is the genesis snapshot).
    pub index: u64,
    /// The proposal, opaque to the transport and the store.
    pub data: Bytes,
    /// Only for an [`EntryKind::ConfChange`]: the system command that rides with it.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub context: Bytes,
}

/// What an entry counts for besides its payload, in bytes: in the memory of a node, in its log, and in the bounds of
/// messages.
pub const ENTRY_OVERHEAD: usize = 24;

/// What a message counts for besides its entries, in bytes.
pub const MESSAGE_OVERHEAD: usize = 64;

/// The most that an entry takes in a frame besides its payload: the names of its fields, and two numbers.
const ENTRY_FRAMING: usize = 72;

/// The most that a message takes in a frame besides its entries and byte strings.
const MESSAGE_FRAMING: usize = 320;

impl Entry {
    /// What this entry costs in memory and on the wire, in bytes, roughly.
    pub fn size(&self) -> usize {
        self.data.len() + self.context.len() + ENTRY_OVERHEAD
    }

    /// It takes no more than so many bytes of a frame.
    pub fn encoded_bound(&self) -> usize {
        self.data.len() + self.context.len() + ENTRY_FRAMING
    }
}

/// The voters and learners of a group, as they are stored and sent. What they mean is a [`Configuration`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfState {
    /// Members whose votes count.
    pub voters: Vec<NodeId>,
    /// Members that receive the log and have no vote.
    pub learners: Vec<NodeId>,
    /// The voters of the outgoing half of a joint configuration; empty outside one.
    #[serde(default)]
    pub voters_outgoing: Vec<NodeId>,
    /// Voters of the outgoing half that become learners when the joint configuration is left.
    #[serde(default)]
    pub learners_next: Vec<NodeId>,
    /// Whether the leader leaves the joint configuration by itself.
    #[serde(default)]
    pub auto_leave: bool,
}

impl ConfState {
    /// A membership, as raft-rs wants it.
    pub fn of(membership: &Membership) -> ConfState {
        ConfState::from(&membership.configuration())
    }
}

impl From<&Configuration> for ConfState {
    fn from(configuration: &Configuration) -> ConfState {
        let ids = |ids: &BTreeSet<NodeId>| ids.iter().copied().collect();
        let Configuration { voters, outgoing, learners, next_learners } = configuration;
        ConfState {
            voters: ids(voters),
            learners: ids(learners),
            voters_outgoing: ids(outgoing),
            learners_next: ids(next_learners),
            auto_leave: false,
        }
    }
}

/// Why a cluster cannot have the configuration of a [`ConfState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfState {
    /// Its sets are no configuration.
    #[error(transparent)]
    Invalid(#[from] InvalidConfiguration),
    /// A joint configuration is left by a change of its own.
    #[error("the leader would leave it by itself")]
    LeavesByItself,
}

/// Only what a cluster can have: raft-rs dies of anything else.
impl TryFrom<&ConfState> for Configuration {
    type Error = InvalidConfState;

    fn try_from(conf: &ConfState) -> Result<Configuration, InvalidConfState> {
        let set = |ids: &[NodeId]| {
            let mut set = BTreeSet::new();
            match ids.iter().find(|id| !set.insert(**id)) {
                Some(twice) => Err(InvalidConfiguration::NamedTwice(*twice)),
                None => Ok(set),
            }
        };
        let configuration = Configuration {
            voters: set(&conf.voters)?,
            outgoing: set(&conf.voters_outgoing)?,
            learners: set(&conf.learners)?,
            next_learners: set(&conf.learners_next)?,
        };
        configuration.check()?;
        match conf.auto_leave {
            true => Err(InvalidConfState::LeavesByItself),
            false => Ok(configuration),
        }
    }
}

/// The file of a snapshot, by what is in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// Its length, in bytes.
    pub bytes: u64,
    /// BLAKE3 of all of it but its last 32 bytes, which are this hash.
    #[serde(with = "serde_bytes")]
    pub hash: [u8; 32],
}

/// `9a3f..`: enough of the hash for people.
impl fmt::Display for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hash[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({} bytes)", self.bytes)
    }
}

/// A snapshot: what it covers, and how to get its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The last index it covers.
    pub index: u64,
    /// The term of the entry at that index.
    pub term: u64,
    /// The configuration at that index.
    pub conf: ConfState,
    /// The replicated system state, and which file holds the state machine's: a few hundred bytes. The file travels
    /// aside, see [`SnapshotRequest`]. The genesis has no file.
    pub data: Bytes,
}

/// The kinds of Raft messages that nodes exchange. Requests of clients do not travel this way: see [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the paper's
pub enum MessageKind {
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    PreVote,
    PreVoteResponse,
    Vote,
    VoteResponse,
    Snapshot,
    TimeoutNow,
}

impl MessageKind {
    /// Whether it belongs on the lane that bulk data cannot block.
    pub fn is_urgent(self) -> bool {
        use MessageKind::*;
        matches!(self, Heartbeat | HeartbeatResponse | PreVote | PreVoteResponse | Vote | VoteResponse | TimeoutNow)
    }

    /// What a peer has to understand to be sent one; nothing for those of the first version.
    pub fn needs(self) -> Option<Feature> {
        use MessageKind::*;
        match self {
            Append | AppendResponse | Heartbeat | HeartbeatResponse | PreVote | PreVoteResponse | Vote
            | VoteResponse | Snapshot | TimeoutNow => None,
        }
    }
}

/// One Raft message. Fields that a kind does not use are zero and are not sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftMessage {
    /// What it is.
    pub kind: MessageKind,
    /// The sender's term.
    #[serde(default)]
    pub term: u64,
    /// The term of the entry at `index`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub log_term: u64,
    /// The index before the first entry, or the index acknowledged, or the candidate's last index.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub index: u64,
    /// The entries of an append.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<Entry>,
    /// The sender's commit index.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub commit: u64,
    /// The term of the entry at `commit` (carried by votes).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub commit_term: u64,
    /// The snapshot of a snapshot message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// The index a follower asks a snapshot for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub request_snapshot: u64,
    /// Whether the request was refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reject: bool,
    /// Where the log of the refusing follower might match.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reject_hint: u64,
    /// The round of a ReadIndex heartbeat, or the reason of a campaign.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub context: Bytes,
    /// The candidate's priority.
    #[serde(default, skip_serializing_if = "is_zero_i64")]
    pub priority: i64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_zero_i64(n: &i64) -> bool {
    *n == 0
}

impl RaftMessage {
    /// An empty message of a kind and term; the other fields are filled in by the caller.
    pub fn new(kind: MessageKind, term: u64) -> Self {
        RaftMessage {
            kind,
            term,
            log_term: 0,
            index: 0,
            entries: Vec::new(),
            commit: 0,
            commit_term: 0,
            snapshot: None,
            request_snapshot: 0,
            reject: false,
            reject_hint: 0,
            context: Bytes::new(),
            priority: 0,
        }
    }

    /// What it costs in memory and on the wire, in bytes, roughly.
    pub fn size(&self) -> usize {
        let entries: usize = self.entries.iter().map(Entry::size).sum();
        let snapshot = self.snapshot.as_ref().map_or(0, |s| s.data.len());
        MESSAGE_OVERHEAD + entries + snapshot + self.context.len()
    }

    /// It takes no more than so many bytes of a frame: known without encoding it.
    pub fn encoded_bound(&self) -> usize {
        let entries: usize = self.entries.iter().map(Entry::encoded_bound).sum();
        let ids = |conf: &ConfState| {
            conf.voters.len() + conf.learners.len() + conf.voters_outgoing.len() + conf.learners_next.len()
        };
        let snapshot = self.snapshot.as_ref().map_or(0, |s| s.data.len() + 9 * ids(&s.conf) + 160);
        MESSAGE_FRAMING + entries + snapshot + self.context.len()
    }
}

/// `Append 7@2 +3 commit 5`: the kind, the index and term it speaks of, the entries it carries.
impl fmt::Display for RaftMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use MessageKind::*;
        let refused = if self.reject { " refused" } else { "" };
        match self.kind {
            Append => {
                write!(f, "Append t{} after {}@{}", self.term, self.index, self.log_term)?;
                match (self.entries.first(), self.entries.last()) {
                    (Some(a), Some(b)) if a.index == b.index => write!(f, " [{}@{}]", a.index, a.term)?,
                    (Some(a), Some(b)) => write!(f, " [{}@{}..{}@{}]", a.index, a.term, b.index, b.term)?,
                    _ => write!(f, " []")?,
                }
                write!(f, " commit {}", self.commit)
            }
            AppendResponse if self.reject => {
                write!(
                    f,
                    "AppendResponse t{} refused {} hint {}@{}",
                    self.term, self.index, self.reject_hint, self.log_term
                )
            }
            AppendResponse => write!(f, "AppendResponse t{} match {}", self.term, self.index),
            Heartbeat => write!(f, "Heartbeat t{} commit {}", self.term, self.commit),
            HeartbeatResponse => write!(f, "HeartbeatResponse t{}", self.term),
            PreVote => write!(f, "PreVote t{} last {}@{}", self.term, self.index, self.log_term),
            Vote => write!(f, "Vote t{} last {}@{}", self.term, self.index, self.log_term),
            PreVoteResponse => write!(f, "PreVoteResponse t{}{refused}", self.term),
            VoteResponse => write!(f, "VoteResponse t{}{refused}", self.term),
            Snapshot => {
                let (index, term) = self.snapshot.as_ref().map_or((0, 0), |s| (s.index, s.term));
                write!(f, "Snapshot t{} {index}@{term}", self.term)
            }
            TimeoutNow => write!(f, "TimeoutNow t{}", self.term),
        }
    }
}

/// A question to one peer that gets one answer, on a stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// "Propose this for me": a command that reached a node which is not the leader.
    Propose {
        /// The encoded entry.
        data: Bytes,
        /// What is left of the client's deadline, in milliseconds. The leader drops it once that has passed.
        remaining_ms: u64,
    },
    /// "At which index may I serve a linearizable read?" (Raft dissertation section 6.4)
    ReadIndex {
        /// What is left of the oldest reader's deadline, in milliseconds.
        remaining_ms: u64,
    },
    /// "Change the membership for me."
    Change {
        /// The encoded change.
        data: Bytes,
        /// What is left of the client's deadline, in milliseconds.
        remaining_ms: u64,
        /// Whether the leader skips its checks of who is connected. A leader of the first version has none.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// "I hold nothing yet. Do you, and do we agree on who founds this cluster?"
    Formation(Formation),
    /// About a snapshot's file that the node asked has offered.
    Snapshot(SnapshotRequest),
    /// "What time is it on your clock, and do you take writes?" Answered at once.
    Clock,
    /// "These are my hashes at these marks. Which are yours?"
    Marks {
        /// The newest, at most [`MAX_MARKS`].
        marks: Vec<Mark>,
    },
    /// "An operator wants what every member understands put to use." Asked of the leader.
    Activate,
}

/// The most bytes of a snapshot's file in one answer. A peer that asks for more gets so many.
pub const MAX_PIECE: u32 = 1 << 20;

/// The longest sentence in a [`SnapshotRequest::GaveUp`], in characters; what is beyond it is cut off.
pub const MAX_CAUSE: usize = 400;

impl Request {
    /// What a peer has to understand to be asked this; nothing for those of the first version. A transport answers
    /// [`NotSent`](AskError::NotSent) for a peer that does not.
    pub fn needs(&self) -> Option<Feature> {
        match self {
            Request::Propose { .. }
            | Request::ReadIndex { .. }
            | Request::Change { .. }
            | Request::Formation(_)
            | Request::Snapshot(_) => None,
            Request::Clock => Some(Feature::ClockExchange),
            Request::Marks { .. } => Some(Feature::StateHashes),
            Request::Activate => Some(Feature::Activation),
        }
    }

    /// The same within the bounds of this side, whatever the peer would like.
    pub fn bounded(mut self) -> Request {
        match &mut self {
            Request::Marks { marks } => marks.truncate(MAX_MARKS),
            Request::Snapshot(SnapshotRequest::Read { max, .. }) => *max = (*max).min(MAX_PIECE),
            Request::Snapshot(SnapshotRequest::GaveUp { cause, .. }) => {
                if let Some((end, _)) = cause.char_indices().nth(MAX_CAUSE) {
                    cause.truncate(end);
                }
            }
            Request::Snapshot(SnapshotRequest::Working { .. })
            | Request::Propose { .. }
            | Request::ReadIndex { .. }
            | Request::Change { .. }
            | Request::Formation(_)
            | Request::Clock
            | Request::Activate => {}
        }
        self
    }
}

/// How the file of a snapshot gets to the node that it was offered to: that node asks for one piece after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotRequest {
    /// "Give me these bytes of it."
    Read {
        /// Which.
        file: SnapshotFile,
        /// The index that the snapshot covers.
        index: u64,
        /// From this byte on.
        offset: u64,
        /// At most so many, and [`MAX_PIECE`].
        max: u32,
    },
    /// "I have all of it, and check or install it: that may take long, and is no reason to offer it again."
    Working {
        /// Which.
        file: SnapshotFile,
        /// The index that the snapshot covers.
        index: u64,
        /// Bytes of it that were written, checked or restored since the start of the receiver; it grows while that goes
        /// on. `None` from the first version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<u64>,
    },
    /// "I cannot use it now."
    GaveUp {
        /// Which.
        file: SnapshotFile,
        /// The index that the snapshot covers.
        index: u64,
        /// Why.
        cause: String,
    },
}

/// What a node says of itself while a cluster is being formed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formation {
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// The founder list the sender was started with, or formed with; empty for a node that waits to be added.
    pub founders: BTreeMap<NodeId, Address>,
    /// If the sender is formed: the incarnation of each founder it formed with. The key 0, which no node has, marks
    /// that all of them had agreed on these.
    pub formed_with: Option<BTreeMap<NodeId, Incarnation>>,
    /// If it is not: the incarnations of the founders that it has heard in this boot, and its own. Empty from the first
    /// version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub heard: BTreeMap<NodeId, Incarnation>,
    /// The name that a founder was told for the cluster. Absent from the first version, and from a node that waits or
    /// is formed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// The cluster that the sender belongs to, or that its list and name make. Absent from the first version, and from
    /// a node that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
}

/// A node's clock at the moment when it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// Microseconds since 1970.
    #[serde(default)]
    pub calendar_us: u64,
    /// Why it takes no writes, if it leads and takes none: a word in snake_case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuses_writes: Option<String>,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// A proposal was applied by the leader's state machine.
    Applied {
        /// Where it stands in the log.
        index: u64,
        /// The term of its entry.
        term: u64,
        /// The encoded response of the state machine.
        response: Bytes,
    },
    /// A read may be served once this index is applied.
    ReadAt {
        /// The commit index that a quorum confirmed.
        index: u64,
    },
    /// A membership change was applied; the encoded membership that resulted.
    Changed {
        /// Encoded by the membership's owner.
        membership: Bytes,
    },
    /// The other side of a formation exchange.
    Formation(Formation),
    /// Bytes of a snapshot's file; none at its end.
    Piece {
        /// Where they begin.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// What the clock shows.
    Clock(ClockReading),
    /// That snapshot's file is not here any more.
    Gone,
    /// It was said, and there is nothing to answer.
    Noted,
    /// The hashes of the node asked at its marks.
    Marks {
        /// The newest, at most [`MAX_MARKS`].
        marks: Vec<Mark>,
    },
    /// Surely not in the log: safe to ask again, elsewhere or later.
    Refused(Refusal),
    /// It may or may not happen.
    Unknown {
        /// Why nobody can tell.
        cause: String,
    },
}

/// Why a question got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No byte of it was handed to QUIC: it surely had no effect.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have been received and carried out.
    #[error("no answer: {0}")]
    Lost(String),
}

/// Why a request was refused. Every variant is a promise that nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The node asked does not lead.
    NotLeader {
        /// Who does, as far as it knows.
        leader: Option<NodeId>,
    },
    /// The leader could not take it right now (it transfers leadership, or its pipeline is full): ask again.
    Dropped {
        /// What stood in the way.
        cause: String,
    },
    /// Over the leader's bound on what is in flight.
    Busy,
    /// The leader's disk is nearly full. Sent only where every member understands it (`Feature::LowSpace`): the first
    /// version does not.
    LowSpace {
        /// Free bytes.
        free: u64,
        /// How many there must be for new work to be taken.
        needed: u64,
    },
    /// Larger than an entry may be.
    TooLarge {
        /// The bound, in bytes.
        limit: u64,
    },
    /// The deadline that came with it had passed before it was proposed.
    Late,
    /// The node asked has stopped, or is not ready to answer such a request.
    Stopped {
        /// Why.
        cause: String,
    },
    /// A membership change that cannot be made now or at all.
    Change(ChangeRefusal),
    /// The request could not be understood.
    Invalid {
        /// What is wrong with it.
        cause: String,
    },
}

/// Why a membership change was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeRefusal {
    /// Another change is under way: wait until it is applied.
    InProgress,
    /// The leader has not yet applied what it inherited: ask again.
    NotReady,
    /// The change makes no sense for the present membership, or must not be made now.
    Invalid {
        /// Why.
        cause: String,
        /// What the leader knows of its followers, if it refuses because of that. The first version knows the cause
        /// alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reading: Option<Box<ChangeReading>>,
    },
}

impl ChangeRefusal {
    /// The change makes no sense.
    pub fn invalid(cause: impl Into<String>) -> ChangeRefusal {
        ChangeRefusal::Invalid { cause: cause.into(), reading: None }
    }

    /// The change must not be made now, for what the leader knows of its followers.
    pub fn because(reading: ChangeReading) -> ChangeRefusal {
        ChangeRefusal::Invalid { cause: reading.to_string(), reading: Some(Box::new(reading)) }
    }
}
