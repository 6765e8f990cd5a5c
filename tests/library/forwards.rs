//! What a peer forwards is a stranger's word: only commands of the application that this node can decode are proposed.

use std::time::Duration;

use actix::prelude::*;
use actorum::Incarnation;
use actorum_core::{
    entry::{CommandKind, EncodedCommand, SystemCommand},
    features::Features,
    identity::Identity,
    wire::{Refusal, Request, Response},
};
use actorum_machine::ids::{GroupId, NodeId};
use actorum_transport::message::{Answered, Ask, Attach, AttachNode, Handlers, NodeHandlers};
use tokio::sync::mpsc;

use crate::support::{MemoryDisk, MemoryNetwork, founders, start};

/// A node that holds a certificate and nothing else.
struct Stranger(mpsc::Sender<Response>);

impl Actor for Stranger {
    type Context = Context<Self>;
}

impl Handler<Answered> for Stranger {
    type Result = ();

    fn handle(&mut self, Answered { result, .. }: Answered, _: &mut Self::Context) {
        self.0.try_send(result.expect("the leader answers")).expect("the test reads along");
    }
}

macro_rules! deaf {
    ($($message:ty),*) => {$(
        impl Handler<$message> for Stranger {
            type Result = ();
            fn handle(&mut self, _: $message, _: &mut Self::Context) {}
        }
    )*};
}
deaf!(
    actorum_transport::message::Received,
    actorum_transport::message::Asked,
    actorum_transport::message::Unreachable,
    actorum_transport::message::PeerUp,
    actorum_transport::message::PeerRefused
);

#[actix::test]
async fn only_commands_of_the_application_are_taken_from_a_peer() {
    let network = MemoryNetwork::new();
    let leader = start(&network, 1, &MemoryDisk::new(), founders(1)).await;
    leader.propose(1).await.unwrap();

    let (sender, mut answers) = mpsc::channel(4);
    let stranger = Stranger(sender).start();
    let features = Features::all();
    let transport = network.start(Identity {
        id: 9,
        incarnation: Incarnation(9),
        boot: 1,
        cluster: None,
        features,
        machine_version: 1,
        lives: Default::default(),
    });
    let deaf = stranger.downgrade();
    let handlers = Handlers {
        received: deaf.clone().recipient(),
        asked: deaf.clone().recipient(),
        formation: deaf.clone().recipient(),
        snapshots: deaf.clone().recipient(),
        marks: deaf.clone().recipient(),
        unreachable: deaf.clone().recipient(),
    };
    transport.attach.send(Attach { group: GroupId::FIRST, handlers }).await.unwrap();
    let handlers = NodeHandlers { peer_up: deaf.clone().recipient(), peer_refused: deaf.clone().recipient() };
    transport.attach_node.send(AttachNode { handlers }).await.unwrap();
    let propose = |to: NodeId, data| {
        let request = Request::Propose { data, remaining_ms: 5000 };
        let reply_to = stranger.downgrade().recipient();
        transport.ask.do_send(Ask {
            id: 1,
            group: GroupId::FIRST,
            to,
            request,
            timeout: Duration::from_secs(10),
            reply_to,
        });
    };

    // A command in the dress of a system command: no node could decode it there, and every node would stop.
    let mut disguised = EncodedCommand::command(&41_u64).unwrap().bytes().to_vec();
    disguised[1] = CommandKind::System as u8;
    propose(1, disguised.into());
    let refused = |answer| matches!(answer, Some(Response::Refused(Refusal::Invalid { .. })));
    assert!(refused(answers.recv().await), "a command disguised");
    let own_ends = SystemCommand::Incarnation { node: 1, incarnation: Incarnation(666) };
    propose(1, EncodedCommand::system(&own_ends).unwrap().bytes());
    assert!(refused(answers.recv().await), "a system command");
    propose(1, EncodedCommand::command(&"not a number").unwrap().bytes());
    assert!(refused(answers.recv().await), "a command that cannot be decoded");
    propose(1, b"garbage".as_slice().into());
    assert!(refused(answers.recv().await), "no entry at all");

    // The same way works for what may be forwarded, and nothing else has reached the log.
    propose(1, EncodedCommand::command(&41_u64).unwrap().bytes());
    assert!(matches!(answers.recv().await, Some(Response::Applied { .. })));
    assert_eq!(leader.read(|sum| sum.seen.clone()).await.unwrap(), [1, 41]);
    leader.shutdown().await;
}
