//! The actor messages between a transport and the actors above it.
//!
//! | message | direction | meaning |
//! |---|---|---|
//! | [`Transmit`] | core → transport | send these Raft messages; may be lost |
//! | [`SetPeers`] | membership → transport | who the peers are, where, and which incarnation |
//! | [`Ask`] | anyone → transport | one question, one [`Answered`] |
//! | [`Received`] | transport → core | Raft messages of an authenticated peer |
//! | [`Asked`] | transport → core, membership | a peer's question, with the slot for its answer |
//! | [`Unreachable`] | transport → core | what was sent to that peer was dropped |
//! | [`PeerUp`], [`PeerRefused`] | transport → membership | identities seen, identities refused |

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use actix::{WeakRecipient, prelude::*};
use actorum_machine::ids::{Address, ClusterId, GroupId, Incarnation, NodeId};
use tokio::sync::oneshot;

use crate::{
    features::Features,
    lives::{Life, Record},
    wire::{RaftMessage, Request, Response},
};

/// Who a node is, towards its peers: the content of its hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id, bound to its certificate.
    pub id: NodeId,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// How often this directory was opened. A later boot supersedes the connections of an earlier one.
    pub boot: u64,
    /// The cluster it belongs to; `None` while it waits to be formed or added.
    pub cluster: Option<ClusterId>,
    /// What its build understands besides the formats of the first version.
    pub features: Features,
    /// The lives of its directory that its hello shows, oldest first, the last one the present; none of the first version, or
    /// of a store that keeps none.
    pub lives: Arc<[Life]>,
}

/// Send these messages, in order, each to its peer. Nothing is promised: what cannot be sent is dropped
/// and reported as [`Unreachable`].
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Transmit {
    /// The group they belong to.
    pub group: GroupId,
    /// Receiver and message.
    pub messages: Vec<(NodeId, RaftMessage)>,
}

/// What a transport has to know about one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it listens.
    pub address: Address,
    /// The incarnation the cluster knows it by. Another one is refused; `None` accepts the first seen.
    pub incarnation: Option<Incarnation>,
}

/// Replaces the peers. Others are no longer dialled; connections *from* any holder of a certificate of this
/// cluster stay, and stay welcome, unless its id is retired: this node's own configuration may be far behind.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct SetPeers {
    /// Everyone this node may need to reach, itself left out.
    pub peers: BTreeMap<NodeId, Peer>,
    /// Ids that were removed for good: refused by name.
    pub retired: BTreeSet<NodeId>,
}

/// The cluster this node turned out to belong to: from now on it is part of the hello.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct SetCluster(pub ClusterId);

/// One question to one peer. Exactly one [`Answered`] with the same number comes back, also when
/// the peer is down, the connection breaks or the time is up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ask {
    /// The asker's own number for it.
    pub id: u64,
    /// The group it concerns.
    pub group: GroupId,
    /// Whom to ask.
    pub to: NodeId,
    /// What.
    pub request: Request,
    /// How long to wait for the answer.
    pub timeout: Duration,
    /// Who hears the answer.
    pub reply_to: WeakRecipient<Answered>,
}

/// Without the question, which may hold a command of any size.
impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ask { id, group, to, timeout, .. } = self;
        f.debug_struct("Ask")
            .field("id", id)
            .field("group", group)
            .field("to", to)
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}

/// The end of an [`Ask`].
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Answered {
    /// The asker's number.
    pub id: u64,
    /// Who was asked.
    pub from: NodeId,
    /// The answer, or why there is none.
    pub result: Result<Response, AskError>,
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

/// Raft messages that an authenticated peer sent, in its order. Frames of an older connection
/// never follow those of a newer one.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Received {
    /// The group they belong to.
    pub group: GroupId,
    /// The peer, as its certificate and hello say.
    pub from: NodeId,
    /// What it sent.
    pub messages: Vec<RaftMessage>,
}

/// A peer's question. Dropping the responder tells the peer that the answer is lost.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Asked {
    /// The group it concerns.
    pub group: GroupId,
    /// The peer.
    pub from: NodeId,
    /// The question.
    pub request: Request,
    /// Where the answer goes.
    pub responder: Responder,
}

/// Without the question, as [`Ask`].
impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("group", &self.group).field("from", &self.from).finish_non_exhaustive()
    }
}

/// The slot for the answer to a peer's question. Dropped unused, the peer hears that the answer is lost.
#[derive(Debug)]
pub struct Responder(oneshot::Sender<Response>);

impl Responder {
    /// A slot, and the end at which the transport waits for it.
    pub fn new() -> (Responder, oneshot::Receiver<Response>) {
        let (sender, receiver) = oneshot::channel();
        (Responder(sender), receiver)
    }

    /// Answers. If the peer is gone meanwhile the answer is dropped: nobody waits for it.
    pub fn answer(self, response: Response) {
        let _ = self.0.send(response);
    }
}

/// Something sent to that peer was dropped: raft-rs must probe it again.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Unreachable {
    /// The group whose messages were dropped.
    pub group: GroupId,
    /// The peer.
    pub peer: NodeId,
}

/// A peer completed its hello.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct PeerUp {
    /// Who it is.
    pub identity: Identity,
}

/// A peer refused this node, or this node refused a peer. Sent once per change of reason.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct PeerRefused {
    /// The peer.
    pub peer: NodeId,
    /// Whether the peer was the one that refused.
    pub by_peer: bool,
    /// Why, in a sentence.
    pub reason: RefusedBecause,
}

/// Why a connection was refused.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum RefusedBecause {
    /// Another protocol.
    #[error("protocol version {theirs} is not spoken here (this node speaks {ours})")]
    Version {
        /// The version in the hello.
        theirs: u32,
        /// The version of the node that refuses.
        ours: u32,
    },
    /// Another cluster.
    #[error("it belongs to cluster {theirs}, not to {ours}")]
    Cluster {
        /// The cluster in the hello.
        theirs: ClusterId,
        /// The cluster of the node that refuses.
        ours: ClusterId,
    },
    /// The id is known with another incarnation: the peer lost its disk, or two nodes share an id.
    #[error(
        "node {id} is known here as incarnation {known}, not {theirs}: its data directory was replaced. Restore the directory, or remove the node and add it again under a new id"
    )]
    Incarnation {
        /// The id.
        id: NodeId,
        /// What the cluster recorded.
        known: Incarnation,
        /// The incarnation in the hello.
        theirs: Incarnation,
    },
    /// The id was removed from the cluster.
    #[error("node {id} was removed from the cluster; an id is never used again")]
    Retired {
        /// The id.
        id: NodeId,
    },
    /// The certificate is for another node than the hello says, or than was dialled.
    #[error("its certificate is for {certificate}, not for node {id}")]
    Certificate {
        /// What the certificate names.
        certificate: String,
        /// The id expected.
        id: NodeId,
    },
    /// No common format of group messages.
    #[error("it reads the group formats {theirs:?}, this node {ours:?}")]
    Format {
        /// The formats in the hello.
        theirs: Vec<u32>,
        /// The formats of the node that refuses.
        ours: Vec<u32>,
    },
    /// The data directory was opened again since: this is the process before, or a copy of the directory.
    #[error(
        "node {id} was started again since (boot {known}; this is boot {theirs}): stop one of the two processes, and if both directories are meant to live, give one a new id"
    )]
    Boot {
        /// The id.
        id: NodeId,
        /// The newest boot seen.
        known: u64,
        /// The boot in the hello.
        theirs: u64,
    },
    /// The directory does not continue the one on record: it was put back from an older copy, or a copy of it runs.
    #[error(
        "the directory of node {id} is an older copy, or runs twice: {}. Stop this copy, and \
         bring back the newer directory, or remove node {id} and add it again under a new id with an empty one",
        behind(recorded)
    )]
    OlderDirectory {
        /// The id.
        id: NodeId,
        /// What the node that refuses has on record.
        recorded: Record,
    },
    /// It has the id of the node it spoke to.
    #[error("it says that it is node {id}, as is the node it spoke to: look for an address or a directory used twice")]
    Myself {
        /// The id.
        id: NodeId,
    },
}

/// What is on record of a directory, and is not in a copy of it.
fn behind(Record { life, index, term, .. }: &Record) -> String {
    let opening = format!("its opening {} (nonce {:016x}) is on record", life.boot, life.nonce);
    match index {
        0 => opening,
        index => format!("{opening}, and acknowledged index {index} in term {term}"),
    }
}

/// Where a transport delivers. All weak: the transport is nobody's owner.
#[derive(Clone, Debug)]
pub struct Handlers {
    /// Raft messages.
    pub received: WeakRecipient<Received>,
    /// Questions about proposals, reads and changes.
    pub asked: WeakRecipient<Asked>,
    /// Questions about formation and clocks.
    pub formation: WeakRecipient<Asked>,
    /// Questions about the files of snapshots.
    pub snapshots: WeakRecipient<Asked>,
    /// Questions about marks.
    pub marks: WeakRecipient<Asked>,
    /// Drops.
    pub unreachable: WeakRecipient<Unreachable>,
    /// Identities seen.
    pub peer_up: WeakRecipient<PeerUp>,
    /// Identities refused.
    pub peer_refused: WeakRecipient<PeerRefused>,
}

impl Handlers {
    /// Who answers a question, if that actor still lives.
    pub(crate) fn answers(&self, request: &Request) -> Option<Recipient<Asked>> {
        let above = match request {
            Request::Formation(_) | Request::Clock => &self.formation,
            Request::Snapshot(_) => &self.snapshots,
            Request::Marks { .. } => &self.marks,
            Request::Propose { .. } | Request::ReadIndex { .. } | Request::Change { .. } => &self.asked,
        };
        above.upgrade()
    }
}

/// Asks a transport for its numbers.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "TransportStatus")]
pub struct GetTransportStatus;

/// A transport's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, MessageResponse)]
pub struct TransportStatus {
    /// Bytes handed to the network since the start.
    pub bytes_sent: u64,
    /// Bytes received since the start.
    pub bytes_received: u64,
    /// The largest write of messages to a peer, in bytes.
    pub largest_frame: u64,
    /// Per peer.
    pub peers: BTreeMap<NodeId, PeerStatus>,
}

/// One peer, seen by the transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whether a connection is up.
    pub connected: bool,
    /// Smoothed round trip of the connection, in microseconds; zero without one.
    pub rtt_us: u64,
    /// Frames waiting in the peer's queue.
    pub queued: usize,
    /// Frames dropped at the queue's bound since the start.
    pub dropped: u64,
    /// The last reason why it could not be reached or was refused.
    pub last_error: Option<String>,
    /// What the peer named in the hello of the present connection; nothing without one.
    pub features: Features,
}

/// The addresses of a transport's mailboxes, whichever transport it is. Held by the actors' parent;
/// the others get it to send, which a transport's life does not depend on.
#[derive(Clone, Debug)]
pub struct TransportHandle {
    /// Raft messages to send.
    pub transmit: Recipient<Transmit>,
    /// Questions to ask.
    pub ask: Recipient<Ask>,
    /// Who the peers are.
    pub set_peers: Recipient<SetPeers>,
    /// The cluster that was formed or joined.
    pub set_cluster: Recipient<SetCluster>,
    /// Its numbers.
    pub status: Recipient<GetTransportStatus>,
    /// Where it delivers; sent once, after the actors above exist.
    pub attach: Recipient<Attach>,
    /// Closes its connections and stops it.
    pub close: Recipient<Close>,
}

/// Tells a transport where to deliver. What arrived before is dropped.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct Attach {
    /// The receivers.
    pub handlers: Handlers,
}

/// Sends what is queued, closes the connections and stops. Answered when it is done.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Close;
