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
//! | [`Attach`], [`AttachNode`] | parent → transport | who hears what belongs to a group, and what concerns the node |
//! | [`PeerUp`], [`PeerRefused`] | transport → membership | identities seen, identities refused |

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use actix::{WeakRecipient, prelude::*};
use actorum_core::{
    features::Features,
    identity::{Identity, RefusedBecause},
    wire::{AskError, RaftMessage, Request, Response},
};
use actorum_machine::ids::{Address, ClusterId, GroupId, Incarnation, NodeId};
use tokio::sync::oneshot;

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

/// Replaces the peers. Other nodes are no longer dialled. Connections *from* any holder of a certificate of this
/// cluster stay and are accepted, unless its id is retired: this node's own configuration may be far behind.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct SetPeers {
    /// Everyone this node may need to reach, itself left out.
    pub peers: BTreeMap<NodeId, Peer>,
    /// Ids that were removed for good, which are refused with a specific error.
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

/// The slot for the answer to a peer's question. If it is dropped unused, the peer is told that the answer is lost.
#[derive(Debug)]
pub struct Responder(oneshot::Sender<Response>);

impl Responder {
    /// A slot, and the end at which the transport waits for it.
    pub fn new() -> (Responder, oneshot::Receiver<Response>) {
        let (sender, receiver) = oneshot::channel();
        (Responder(sender), receiver)
    }

    /// Whether nobody waits for the answer any more, such as after the end of the connection.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Answers. If the peer is gone meanwhile, the answer is dropped.
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

/// Where a transport delivers what belongs to one group. All recipients are weak: the transport owns no actor.
#[derive(Clone, Debug)]
pub struct Handlers {
    /// Raft messages.
    pub received: WeakRecipient<Received>,
    /// Questions about proposals, reads and changes.
    pub asked: WeakRecipient<Asked>,
    /// Questions about formation, clocks, and activations.
    pub formation: WeakRecipient<Asked>,
    /// Questions about the files of snapshots.
    pub snapshots: WeakRecipient<Asked>,
    /// Questions about marks.
    pub marks: WeakRecipient<Asked>,
    /// Drops.
    pub unreachable: WeakRecipient<Unreachable>,
}

/// Where a transport delivers what concerns the whole node. Weak, too.
#[derive(Clone, Debug)]
pub struct NodeHandlers {
    /// Identities seen.
    pub peer_up: WeakRecipient<PeerUp>,
    /// Identities refused.
    pub peer_refused: WeakRecipient<PeerRefused>,
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
    /// Messages and questions of peers that were refused since the start, because this node does not have their group.
    pub misdirected: u64,
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
    /// The features that the peer named in the hello of the present connection; empty without a connection.
    pub features: Features,
}

/// The addresses of a transport's mailboxes, for any transport. The actors' parent holds it and keeps the transport
/// alive; the other actors get it only to send.
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
    /// Where it delivers what belongs to a group; sent once for each, after the actors of the group exist.
    pub attach: Recipient<Attach>,
    /// Where it delivers what concerns the node; sent once, after the groups that the node starts with.
    pub attach_node: Recipient<AttachNode>,
    /// Closes its connections and stops it.
    pub close: Recipient<Close>,
}

/// Registers a group, at any time: tells a transport where to deliver what belongs to it, in place of what was
/// registered before. Messages for a group that is not registered are counted and dropped; questions for it are
/// refused.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct Attach {
    /// The group.
    pub group: GroupId,
    /// The receivers.
    pub handlers: Handlers,
}

/// Tells a transport where to deliver what concerns the node, and lets it begin to deliver. What arrived before is
/// dropped.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct AttachNode {
    /// The receivers.
    pub handlers: NodeHandlers,
}

/// Sends what is queued, closes the connections and stops. Answered when it is done.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Close;
