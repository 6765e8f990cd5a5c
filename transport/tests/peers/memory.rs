//! The network in memory: the rules of the real one, without sockets.

use std::{collections::BTreeMap, time::Duration};

use actix::{WeakRecipient, prelude::*};
use actorum_core::{
    features::Features,
    identity::{Identity, RefusedBecause},
    wire::{AskError, MAX_PIECE, MessageKind, RaftMessage, Refusal, Request, Response, SnapshotFile, SnapshotRequest},
};
use actorum_machine::ids::{ClusterId, GroupId, Incarnation, NodeId};
use actorum_transport::{
    memory::MemoryNetwork,
    message::{
        Answered, Ask, Asked, Attach, AttachNode, GetTransportStatus, Handlers, NodeHandlers, Peer, PeerRefused,
        PeerUp, Received, SetPeers, Transmit, TransportHandle, Unreachable,
    },
};
use tokio::sync::mpsc;

/// What arrived above a transport.
#[derive(Debug)]
enum Heard {
    Raft(NodeId, Vec<RaftMessage>),
    Asked,
    Answered(Result<Response, AskError>),
    Unreachable(NodeId),
    Up(NodeId),
    Refused(NodeId, bool, RefusedBecause),
}

struct Above {
    heard: mpsc::Sender<Heard>,
    answers: bool,
}

impl Actor for Above {
    type Context = Context<Self>;
}

macro_rules! hear {
    ($($message:ty => |$m:pat_param| $heard:expr),* $(,)?) => {$(
        impl Handler<$message> for Above {
            type Result = ();
            fn handle(&mut self, $m: $message, _: &mut Self::Context) {
                self.heard.try_send($heard).expect("the test reads along");
            }
        }
    )*};
}
hear! {
    Received => |m| Heard::Raft(m.from, m.messages),
    Unreachable => |m| Heard::Unreachable(m.peer),
    PeerUp => |m| Heard::Up(m.identity.id),
    PeerRefused => |m| Heard::Refused(m.peer, m.by_peer, m.reason),
    Answered => |m| Heard::Answered(m.result),
}

impl Handler<Asked> for Above {
    type Result = ();
    fn handle(&mut self, asked: Asked, _: &mut Self::Context) {
        self.heard.try_send(Heard::Asked).expect("the test reads along");
        if self.answers {
            asked.responder.answer(Response::ReadAt { index: 7 });
        }
    }
}

/// Answers for snapshots, with what it was asked.
struct Keeper;

impl Actor for Keeper {
    type Context = Context<Self>;
}

impl Handler<Asked> for Keeper {
    type Result = ();
    fn handle(&mut self, Asked { request, responder, .. }: Asked, _: &mut Self::Context) {
        match request {
            Request::Snapshot(SnapshotRequest::Read { offset, max, .. }) => {
                responder.answer(Response::Piece { offset, data: vec![7; max as usize].into() });
            }
            other => panic!("{other:?} is not about a snapshot"),
        }
    }
}

struct Node {
    handle: TransportHandle,
    above: Addr<Above>,
    _keeper: Addr<Keeper>,
    heard: mpsc::Receiver<Heard>,
}

impl Node {
    fn send(&self, to: NodeId, term: u64) {
        self.send_in(GroupId::FIRST, to, term);
    }

    fn send_in(&self, group: GroupId, to: NodeId, term: u64) {
        let messages = vec![(to, RaftMessage::new(MessageKind::Heartbeat, term))];
        self.handle.transmit.do_send(Transmit { group, messages });
    }

    fn ask(&self, to: NodeId) {
        self.ask_for(to, Request::ReadIndex { remaining_ms: 1000 });
    }

    fn ask_for(&self, to: NodeId, request: Request) {
        self.ask_in(GroupId::FIRST, to, request);
    }

    fn ask_in(&self, group: GroupId, to: NodeId, request: Request) {
        let reply_to = self.above.downgrade().recipient();
        let timeout = Duration::from_secs(5);
        self.handle.ask.do_send(Ask { id: 1, group, to, request, timeout, reply_to });
    }

    async fn misdirected(&self) -> u64 {
        self.handle.status.send(GetTransportStatus).await.unwrap().misdirected
    }

    async fn next(&mut self) -> Heard {
        let patience = tokio::time::timeout(Duration::from_secs(10), self.heard.recv());
        patience.await.expect("something is heard").expect("the actor lives")
    }

    /// The next that is not about who came up.
    async fn hears(&mut self) -> Heard {
        loop {
            match self.next().await {
                Heard::Up(_) => {}
                heard => return heard,
            }
        }
    }
}

fn identity(id: NodeId) -> Identity {
    let features = Features::all();
    let (cluster, lives) = (Some(ClusterId(1)), Default::default());
    Identity { id, incarnation: Incarnation(id), boot: 1, cluster, features, machine_version: 1, lives }
}

fn handlers(above: &Addr<Above>, snapshots: WeakRecipient<Asked>) -> Handlers {
    let down = above.downgrade();
    Handlers {
        received: down.clone().recipient(),
        asked: down.clone().recipient(),
        formation: down.clone().recipient(),
        snapshots,
        marks: down.clone().recipient(),
        unreachable: down.recipient(),
    }
}

fn node(network: &MemoryNetwork, identity: Identity, answers: bool) -> Node {
    let handle = network.start(identity);
    let (sender, heard) = mpsc::channel(1024);
    let keeper = Keeper.start();
    let above = Above { heard: sender, answers }.start();
    let down = above.downgrade();
    handle.attach.do_send(Attach { group: GroupId::FIRST, handlers: handlers(&above, keeper.downgrade().recipient()) });
    let handlers = NodeHandlers { peer_up: down.clone().recipient(), peer_refused: down.recipient() };
    handle.attach_node.do_send(AttachNode { handlers });
    Node { handle, above, _keeper: keeper, heard }
}

#[actix::test]
async fn messages_of_one_direction_arrive_in_order() {
    let network = MemoryNetwork::new();
    let (one, mut two) = (node(&network, identity(1), true), node(&network, identity(2), true));
    (1..=100).for_each(|term| one.send(2, term));
    assert!(matches!(two.next().await, Heard::Up(1)));
    for term in 1..=100 {
        let Heard::Raft(1, messages) = two.next().await else { panic!("a message") };
        assert_eq!(messages[0].term, term);
    }
}

#[actix::test]
async fn a_cut_loses_one_direction_and_says_so() {
    let network = MemoryNetwork::new();
    let (mut one, mut two) = (node(&network, identity(1), true), node(&network, identity(2), true));
    network.cut(1, 2);
    one.send(2, 1);
    assert!(matches!(one.hears().await, Heard::Unreachable(2)));
    two.send(1, 2);
    assert!(matches!(one.hears().await, Heard::Raft(2, _)));
    network.heal(1, 2);
    one.send(2, 3);
    let Heard::Raft(1, messages) = two.hears().await else { panic!("a message") };
    assert_eq!(messages[0].term, 3);
}

#[actix::test]
async fn a_question_is_answered_or_said_to_be_lost_or_not_sent() {
    let network = MemoryNetwork::new();
    let (mut one, _two) = (node(&network, identity(1), true), node(&network, identity(2), true));
    let _silent = node(&network, identity(3), false);
    one.ask(2);
    assert!(matches!(one.hears().await, Heard::Answered(Ok(Response::ReadAt { index: 7 }))));
    one.ask(3);
    assert!(matches!(one.hears().await, Heard::Answered(Err(AskError::Lost(_)))));
    one.ask(4);
    assert!(matches!(one.hears().await, Heard::Answered(Err(AskError::NotSent(_)))));
}

#[actix::test]
async fn a_question_about_a_snapshot_goes_to_who_keeps_them() {
    let network = MemoryNetwork::new();
    let (mut one, mut two) = (node(&network, identity(1), true), node(&network, identity(2), true));
    let file = SnapshotFile { bytes: 1 << 40, hash: [1; 32] };
    one.ask_for(2, Request::Snapshot(SnapshotRequest::Read { file, index: 9, offset: 5, max: u32::MAX }));
    let Heard::Answered(Ok(Response::Piece { offset: 5, data })) = one.hears().await else { panic!("a piece") };
    assert_eq!(data.len(), MAX_PIECE as usize, "more was asked for than a piece may be");
    assert!(matches!(two.next().await, Heard::Up(1)));
    assert!(two.heard.try_recv().is_err(), "who answers for proposals hears nothing of it");
}

/// A group that is not registered: its messages reach no other one, and its questions are refused. Once it is
/// registered it is heard.
#[actix::test]
async fn a_group_that_is_not_there_reaches_nobody() {
    let network = MemoryNetwork::new();
    let (mut one, mut two) = (node(&network, identity(1), true), node(&network, identity(2), true));
    let seventh = GroupId(7);
    one.send_in(seventh, 2, 1);
    let file = SnapshotFile { bytes: 1 << 40, hash: [1; 32] };
    let about_snapshot = Request::Snapshot(SnapshotRequest::Read { file, index: 9, offset: 5, max: 1 });
    for request in [Request::ReadIndex { remaining_ms: 1000 }, Request::Clock, about_snapshot] {
        one.ask_in(seventh, 2, request);
        let Heard::Answered(Ok(Response::Refused(Refusal::Invalid { cause }))) = one.hears().await else {
            panic!("a refusal")
        };
        assert_eq!(cause, "group 7 is not on this node");
    }
    assert_eq!((one.misdirected().await, two.misdirected().await), (0, 4));
    one.send(2, 2);
    let Heard::Raft(1, messages) = two.hears().await else { panic!("a message of the group that is there") };
    assert_eq!(messages[0].term, 2, "the other one reached nobody");
    one.ask(2);
    assert!(matches!(one.hears().await, Heard::Answered(Ok(Response::ReadAt { index: 7 }))));
    assert!(matches!(two.hears().await, Heard::Asked));

    let (sender, mut heard) = mpsc::channel(1);
    let above = Above { heard: sender, answers: true }.start();
    let handlers = handlers(&above, above.downgrade().recipient());
    two.handle.attach.send(Attach { group: seventh, handlers }).await.unwrap();
    one.send_in(seventh, 2, 3);
    assert!(matches!(heard.recv().await, Some(Heard::Raft(1, _))));
    assert_eq!(two.misdirected().await, 4);
    assert!(two.heard.try_recv().is_err(), "the first group hears nothing of the other one");
}

#[actix::test]
async fn an_answer_over_a_cut_link_is_lost() {
    let network = MemoryNetwork::new();
    let (mut one, mut two) = (node(&network, identity(1), true), node(&network, identity(2), true));
    network.cut(2, 1);
    one.ask(2);
    assert!(matches!(one.hears().await, Heard::Answered(Err(AskError::Lost(_)))));
    assert!(matches!(two.hears().await, Heard::Asked), "it was carried out all the same");
}

#[actix::test]
async fn another_incarnation_is_refused_on_both_ends_and_once() {
    let network = MemoryNetwork::new();
    let wiped = Identity { incarnation: Incarnation(99), ..identity(2) };
    let (mut one, mut two) = (node(&network, identity(1), true), node(&network, wiped, true));
    let known = Peer { address: "n2:1".into(), incarnation: Some(Incarnation(2)) };
    let peers = BTreeMap::from([(2, known)]);
    one.handle.set_peers.send(SetPeers { peers, retired: Default::default() }).await.unwrap();
    two.send(1, 1);
    two.send(1, 2);
    let Heard::Refused(2, false, RefusedBecause::Incarnation { id: 2, .. }) = one.hears().await else {
        panic!("node 1 refuses node 2")
    };
    let Heard::Refused(1, true, RefusedBecause::Incarnation { .. }) = two.hears().await else {
        panic!("node 2 hears why")
    };
    assert!(matches!(two.hears().await, Heard::Unreachable(1)));
    assert!(matches!(two.hears().await, Heard::Unreachable(1)));
    one.ask(2);
    assert!(matches!(one.hears().await, Heard::Answered(Err(AskError::NotSent(_)))), "and nothing was delivered");
}

#[actix::test]
async fn a_full_link_drops_the_newest_and_says_so() {
    let network = MemoryNetwork::new();
    let (mut one, mut two) = (node(&network, identity(1), true), node(&network, identity(2), true));
    let bound = actorum_transport::memory::LINK_BOUND as u64;
    let (sender, heard) = mpsc::channel(2 * bound as usize);
    two.heard = heard;
    let above = Above { heard: sender, answers: true }.start();
    let handlers = handlers(&above, above.downgrade().recipient());
    two.handle.attach.send(Attach { group: GroupId::FIRST, handlers }).await.unwrap();
    // One transmit after the other without giving the receiver a turn.
    (1..=bound + 5).for_each(|term| one.send(2, term));
    for _ in 0..5 {
        assert!(matches!(one.hears().await, Heard::Unreachable(2)));
    }
    let mut last = 0;
    while last < bound {
        if let Heard::Raft(1, messages) = two.next().await {
            assert_eq!(messages[0].term, last + 1);
            last = messages[0].term;
        }
    }
}
