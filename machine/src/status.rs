//! What a node says of itself: a value that can be cloned, and holds no lock.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    condition::Reason,
    ids::{Address, ClusterId, Incarnation, NodeId},
    members::Membership,
};

/// What a node is doing in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It orders the log.
    Leader,
    /// It follows a leader, or waits for one.
    #[default]
    Follower,
    /// It asks for votes.
    Candidate,
    /// It asks whether it would get votes (Raft dissertation section 9.6).
    PreCandidate,
    /// It receives the log and has no vote.
    Learner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::PreCandidate => "pre_candidate",
            Role::Learner => "learner",
        })
    }
}

/// How far the forming of the cluster is, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Formed {
    /// It belongs to a cluster.
    Yes,
    /// It is a founder, and these other founders have not yet told it that their directories are new, too.
    Forming {
        /// Who has not answered yet.
        waiting_for: Vec<NodeId>,
    },
    /// It waits to be added to a cluster.
    #[default]
    Waiting,
}

/// One peer, seen by this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerProgress {
    /// Where it listens.
    pub address: Address,
    /// The highest index known to be on its disk; zero unless this node leads.
    pub match_index: u64,
    /// `probe`, `replicate` or `snapshot` on a leader, `unknown` elsewhere.
    pub state: String,
    /// Bytes of entries sent to it and not acknowledged; zero unless this node leads.
    #[serde(default)]
    pub inflight_bytes: usize,
    /// Smoothed round trip of its connection, in microseconds; zero without a connection.
    pub rtt_us: u64,
    /// Whether a connection is up.
    pub connected: bool,
    /// Why it cannot be reached or was refused; `None` if neither is so.
    pub last_error: Option<String>,
    /// Whether a message of its Raft core came within the last election timeout.
    #[serde(default)]
    pub recently_active: bool,
    /// If it leads and has said that it takes no writes, the reason: the name of a [`Reason`].
    #[serde(default)]
    pub refuses_writes: Option<String>,
    /// How far its clock is ahead of this node's, in milliseconds; negative if it is behind, `None` if not known.
    #[serde(default)]
    pub clock_offset_ms: Option<i64>,
}

/// A node's clock, compared with those of the voters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// Whether it shows a time before 2000: it was never set.
    #[serde(default)]
    pub unset: bool,
    /// How far it is ahead of the median of the voters' clocks, in milliseconds; negative if it is behind, `None` if
    /// the clocks of a majority are not known.
    pub offset_ms: Option<i64>,
    /// `max_clock_skew_ms`: the node warns of a clock that is further off, and a leader stamps entries at most this far
    /// ahead of the median.
    pub max_skew_ms: u64,
}

/// When a certificate expires.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateExpiry {
    /// The file it was read from.
    pub file: String,
    /// In seconds since 1970.
    pub not_after: i64,
    /// Seconds until then by this node's clock; negative once it has expired.
    pub remaining_s: i64,
}

/// What waits, where it waits, and the bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queues {
    /// Requests that hold admission.
    pub in_flight: usize,
    /// Bytes they hold.
    pub in_flight_bytes: usize,
    /// Requests that wait for a leader.
    pub queued: usize,
    /// Batches handed to the log writer and not yet durable.
    pub unpersisted: usize,
    /// Entries committed and not yet applied.
    pub unapplied: u64,
    /// Bytes of entries that are held in memory.
    pub log_tail_bytes: usize,
}

/// How a node judges its disk: the worst state that holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// It answers, and there is room.
    #[default]
    Ok,
    /// A write waits longer than it should; the node may still lead.
    Slow,
    /// There is little room: the node leads only if no other node can, and then answers `LowSpace`.
    Low,
    /// A write has waited too long: the node does not lead until the disk has shown that it answers.
    Suspect,
    /// A write failed or hung for good: this process writes nothing any more.
    Dead,
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskState::Ok => "ok",
            DiskState::Slow => "slow",
            DiskState::Low => "low",
            DiskState::Suspect => "suspect",
            DiskState::Dead => "dead",
        })
    }
}

/// A node's disk. Making a status does not touch the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// How it is.
    pub state: DiskState,
    /// How long the oldest write that is not durable has been waiting, in milliseconds.
    pub waiting_ms: u64,
    /// For how long the disk has been suspect, in milliseconds, if it is.
    pub suspect_ms: Option<u64>,
    /// Bytes handed to it that are not durable.
    pub unpersisted_bytes: usize,
    /// Free bytes at the last look, which is at most a second old unless the disk hangs; `None` if not known.
    pub free_bytes: Option<u64>,
    /// Bytes of the reserve that is kept for making room; they are not counted as free.
    #[serde(default)]
    pub reserve_bytes: u64,
    /// How many bytes must be free for this node to take new commands: `low_space_bytes` (and a quarter more while
    /// `low` is true), plus the bytes that are missing from the reserve.
    #[serde(default)]
    pub needed_bytes: u64,
    /// Whether fewer are free.
    pub low: bool,
    /// Messages that waited for the disk and were dropped when their bound was reached.
    pub deferred_dropped: u64,
    /// Why it is dead.
    pub cause: Option<String>,
}

/// Totals since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// How often the known leader changed.
    pub leader_changes: u64,
    /// Proposals of this node's clients answered with a response.
    pub proposals_applied: u64,
    /// Proposals of this node's clients answered with an error.
    pub proposals_failed: u64,
    /// Commands applied.
    pub commands_applied: u64,
    /// Entries made durable.
    pub entries_persisted: u64,
    /// Durable batches written.
    pub syncs: u64,
    /// Microseconds spent in making them durable (the sync alone).
    pub sync_us: u64,
    /// Microseconds spent in writing them, the sync included.
    pub append_us: u64,
    /// Bytes sent to peers.
    pub bytes_sent: u64,
    /// Bytes received from peers.
    pub bytes_received: u64,
    /// Messages to peers that were dropped at the bound of a queue or of a frame.
    #[serde(default)]
    pub messages_dropped: u64,
    /// The largest write of messages to a peer, in bytes.
    #[serde(default)]
    pub largest_frame_bytes: u64,
    /// Messages and questions of peers that were refused because they belong to a group which this node does not have.
    #[serde(default)]
    pub misdirected: u64,
}

/// A snapshot that is durable on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// The last index it covers.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
    /// The size of its file.
    pub bytes: u64,
}

/// How far the file of a snapshot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The index of the snapshot.
    pub index: u64,
    /// Bytes done.
    pub bytes: u64,
    /// Bytes of the whole file; zero while not known.
    pub total: u64,
    /// Bytes per second, since it began or went on.
    pub rate: u64,
}

/// A node's snapshots, and those that are being built, received or sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    /// The newest one that is durable; `None` before the first.
    pub newest: Option<SnapshotTaken>,
    /// The one that is being built.
    pub building: Option<Transfer>,
    /// The snapshot that is being received, by the node that sends it.
    pub receiving: BTreeMap<NodeId, Transfer>,
    /// Those that are being sent, by the node that receives them.
    pub sending: BTreeMap<NodeId, Transfer>,
    /// Built since the start.
    pub built: u64,
    /// Received since the start.
    pub received: u64,
    /// Bytes of their files sent since the start.
    pub bytes_sent: u64,
    /// Bytes of their files received since the start.
    pub bytes_received: u64,
    /// The last thing that went wrong with a snapshot.
    pub last_error: Option<String>,
}

/// The hash over what a node applied, at the newest mark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// The index of the mark.
    pub index: u64,
    /// The index after which the hash began. Only hashes that began at the same index are compared.
    pub since: u64,
    /// Its value, in hexadecimal digits.
    pub value: String,
}

/// Whether a majority of the voters agrees with this node, where nodes differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DivergenceSide {
    /// A majority of the voters agrees with this node.
    Majority,
    /// A majority of the voters has another value: this node is wrong.
    Minority,
    /// No value has a majority among those reported, so it is not known which nodes are wrong.
    #[default]
    Undecided,
}

/// Nodes that differ in what they applied, or in what their state machines responded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// The index of the first remembered mark at which they differ.
    pub index: u64,
    /// The index of the last mark before it at which they were equal; zero if none is remembered.
    pub equal_until: u64,
    /// The hash of each node at that mark, in hexadecimal digits, as far as it has reported one.
    pub values: BTreeMap<NodeId, String>,
    /// Whether a majority agrees with this node.
    pub side: DivergenceSide,
}

/// A member says that it committed an entry that contradicts this node's log. One of the two has a wrong history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitConflict {
    /// The index that it says is committed.
    pub index: u64,
    /// The term that it says the entry there has; zero if it did not say.
    pub their_term: u64,
    /// The index here that this contradicts.
    pub at: u64,
    /// The term of the entry there.
    pub our_term: u64,
}

/// What one member's build understands, as the cluster has recorded it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemberVersion {
    /// The names of the features that it understands.
    pub features: Vec<String>,
    /// The version of its state machine ([`StateMachine::VERSION`](crate::machine::StateMachine::VERSION)).
    pub machine: u32,
}

/// Something that this node's build understands and the cluster does not use yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NotInUse {
    /// What, for people: `feature NAME`, or `version N of the state machine`.
    pub what: String,
    /// The name of the feature, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature: Option<String>,
    /// The version of the state machine, if it is that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<u32>,
    /// The members that have not announced it, whether they run or not. Empty: all have announced it, and the leader is
    /// about to activate it, or waits for an operator (`activate = "manual"`).
    pub lacking: Vec<NodeId>,
    /// For how many seconds this node has seen since its start that it is not in use.
    #[serde(default)]
    pub waiting_s: u64,
}

/// Which versions run, and what is in use: see the guide's chapter on upgrades.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VersionStatus {
    /// The version of the state machine in force at the index applied here.
    pub machine: u32,
    /// The index of the entry that put it in force; zero for the first version. A program needs the older branches of
    /// its `apply` for the commands from before that index, as long as a log may hold them: see the guide's chapter on
    /// upgrades.
    #[serde(default)]
    pub machine_since: u64,
    /// The version of this node's program.
    pub own_machine: u32,
    /// The names of the features in use.
    pub features: Vec<String>,
    /// What each member has announced. A member that is not in here has announced nothing yet.
    pub members: BTreeMap<NodeId, MemberVersion>,
    /// What this node's build understands and the cluster does not use yet.
    pub not_in_use: Vec<NotInUse>,
    /// Whether this node, while it leads, waits for an operator before it activates anything (`activate = "manual"`).
    pub manual: bool,
}

/// The state of a node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The node's id.
    pub id: NodeId,
    /// The life of its directory.
    pub incarnation: Option<Incarnation>,
    /// The cluster, once it belongs to one.
    pub cluster: Option<ClusterId>,
    /// Whether it belongs to a cluster.
    pub formed: Formed,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader, as far as the node knows.
    pub leader: Option<NodeId>,
    /// The first index that the log still holds.
    pub first_index: u64,
    /// The last index of the log, durable or not.
    pub last_index: u64,
    /// The highest index of the log that is durable here.
    pub persisted_index: u64,
    /// The highest index known to be committed.
    pub commit_index: u64,
    /// The highest index applied by the state machine here.
    pub applied_index: u64,
    /// The last index that the newest snapshot covers.
    pub snapshot_index: u64,
    /// Its snapshots, and those that are being built, received or sent.
    #[serde(default)]
    pub snapshots: Snapshots,
    /// Who is in.
    pub membership: Arc<Membership>,
    /// The others, by id.
    pub peers: BTreeMap<NodeId, PeerProgress>,
    /// What waits where.
    pub queues: Queues,
    /// Totals since the start.
    pub totals: Totals,
    /// Bytes of the log on disk.
    pub disk_bytes: u64,
    /// Bytes of entries in the log.
    #[serde(default)]
    pub log_bytes: u64,
    /// The disk under it.
    pub disk: DiskStatus,
    /// The hash over what this node applied, at the newest mark.
    #[serde(default)]
    pub state_hash: Option<StateHash>,
    /// Members that applied other entries than this node; `None` if there are none.
    #[serde(default)]
    pub divergence: Option<Divergence>,
    /// Members whose state machine responded differently since this node started; `None` if there are none.
    #[serde(default)]
    pub response_divergence: Option<Divergence>,
    /// Members that say they committed an entry that contradicts this node's log.
    #[serde(default)]
    pub commit_conflicts: BTreeMap<NodeId, CommitConflict>,
    /// The last thing that went wrong, even if the node went on.
    pub last_error: Option<String>,
    /// Whether the system has stopped, and why.
    pub stopped: Option<String>,
    /// The condition for which the system has stopped.
    #[serde(default)]
    pub stop_reason: Option<Reason>,
    /// The peers that refuse to speak with this node now, and why.
    #[serde(default)]
    pub refused_by: BTreeMap<NodeId, String>,
    /// This node's calendar clock.
    #[serde(default)]
    pub clock: ClockStatus,
    /// When this node's certificates expire; empty without certificates.
    #[serde(default)]
    pub certificates: Vec<CertificateExpiry>,
    /// Which versions the members run, and what is in use.
    #[serde(default)]
    pub versions: VersionStatus,
}
