//! The QUIC transport on real loopback sockets: what it promises to honest nodes.
//!
//! What it does with dishonest ones is in `adversary.rs`.

use std::time::Duration;

use actorum_core::{
    identity::{Identity, RefusedBecause},
    wire::{AskError, MessageKind, Refusal, Request, Response},
};
use actorum_machine::ids::{ClusterId, GroupId, Incarnation};
use actorum_transport::{
    frame::{FrameKind, Lane},
    message::Close,
};

use crate::support::*;

fn terms(messages: &[actorum_core::wire::RaftMessage]) -> Vec<u64> {
    messages.iter().map(|message| message.term).collect()
}

#[actix::test]
async fn both_lanes_deliver_in_order() {
    let Honest { mut victim, mut friend, .. } = Honest::new().await;
    for round in 0..20 {
        let range = round * 100..(round + 1) * 100;
        victim.send(2, range.flat_map(|term| [append(term, 2000), heartbeat(term)]).collect());
    }
    let messages = friend.messages(1, 4000).await;
    let (urgent, log): (Vec<_>, Vec<_>) = messages.into_iter().partition(|m| m.kind == MessageKind::Heartbeat);
    let expected: Vec<u64> = (0..2000).collect();
    assert_eq!(terms(&urgent), expected);
    assert_eq!(terms(&log), expected);
    assert!(victim.drain().is_empty(), "nothing was dropped");
}

/// The log lane of the peer stands still: heartbeats pass all the same.
#[actix::test]
async fn bulk_data_does_not_hold_up_heartbeats() {
    let mut honest = Honest::new().await;
    let slow = honest.adversary(5);
    let slow = slow.join(honest.victim.address, hello(5)).await;
    honest.victim.until("5 is up", |heard| matches!(heard, Heard::Up(of) if of.id == 5).then_some(())).await;
    honest.victim.send(5, (0..64).map(|term| append(term, 1 << 20)).collect());
    honest.victim.send(5, vec![heartbeat(77)]);
    // Nothing is ever read from the log lane.
    let mut lanes = Vec::new();
    for _ in 0..2 {
        let mut lane = soon("a lane", slow.connection.accept_uni()).await.unwrap();
        let (kind, body) = read_frame(&mut lane).await.unwrap();
        assert_eq!(kind, FrameKind::Lane);
        lanes.push((actorum_transport::frame::decode::<Lane>(&body).unwrap(), lane));
    }
    let (_, urgent) = lanes.iter_mut().find(|(lane, _)| *lane == Lane::Urgent).unwrap();
    let (_, body) = soon("the heartbeat", read_frame(urgent)).await.unwrap();
    let batch: actorum_transport::frame::Batch = actorum_transport::frame::decode(&body).unwrap();
    assert_eq!(terms(&batch.messages), [77]);
    honest.victim.drain();
    honest.flows().await;
}

#[actix::test]
async fn a_question_is_answered() {
    let Honest { mut victim, mut friend, .. } = Honest::new().await;
    assert_eq!(victim.ask(2, 7).await, Ok(Response::ReadAt { index: 7 }));
    assert_eq!(friend.ask(1, 8).await, Ok(Response::ReadAt { index: 8 }));
    // Many at a time, each its own answer.
    (0..300).for_each(|n| victim.ask_within(2, n, DEADLINE));
    for _ in 0..300 {
        let answer = |heard| match heard {
            Heard::Answered(id, Ok(Response::ReadAt { index })) => Some((id, index)),
            _ => None,
        };
        let (id, index) = victim.until("an answer", answer).await;
        assert_eq!(id, index);
    }
}

#[actix::test]
async fn a_dropped_question_is_lost() {
    let certs = Certs::new();
    let mut asker = node(&certs, 1);
    let mut dropper = node_with(&certs, identity(2), Questions::Drop, |_| {});
    link(&mut asker, &mut dropper).await;
    assert!(matches!(asker.ask(2, 1).await, Err(AskError::Lost(_))));
}

#[actix::test]
async fn a_question_without_an_answer_is_lost_at_its_deadline() {
    let certs = Certs::new();
    let mut asker = node(&certs, 1);
    let mut silent = node_with(&certs, identity(2), Questions::Keep, |_| {});
    link(&mut asker, &mut silent).await;
    asker.ask_within(2, 1, Duration::from_millis(50));
    assert!(matches!(asker.answer(1).await, Err(AskError::Lost(_))));
}

/// Pages of questions that the asker has given up come free, although nobody ever answers them.
#[actix::test]
async fn questions_given_up_do_not_use_up_the_bound() {
    let certs = Certs::new();
    let mut asker = node(&certs, 1);
    let mut silent = node_with(&certs, identity(2), Questions::Keep, |config| config.max_requests = 2);
    link(&mut asker, &mut silent).await;
    for id in 0..6 {
        asker.ask_within(2, id, Duration::from_millis(50));
        eventually("the question arrives or was never sent", async || {
            silent.drain().iter().any(|heard| matches!(heard, Heard::Asked(..)))
        })
        .await;
        assert!(matches!(asker.answer(id).await, Err(AskError::Lost(_))));
    }
}

#[actix::test]
async fn a_question_over_a_connection_that_breaks_is_lost() {
    let certs = Certs::new();
    let mut asker = node(&certs, 1);
    let mut silent = node_with(&certs, identity(2), Questions::Keep, |_| {});
    link(&mut asker, &mut silent).await;
    asker.ask_within(2, 1, 10 * DEADLINE);
    silent.until("the question", |heard| matches!(heard, Heard::Asked(1, _)).then_some(())).await;
    silent.handle.close.send(Close).await.unwrap();
    assert!(matches!(asker.answer(1).await, Err(AskError::Lost(_))));
}

#[actix::test]
async fn without_a_connection_a_question_is_not_sent_and_does_not_wait_for_its_deadline() {
    let certs = Certs::new();
    let mut one = node(&certs, 1);
    let hole = std::net::UdpSocket::bind(local()).unwrap();
    one.list(&[(2, hole.local_addr().unwrap())]);
    for stranger in [2, 3] {
        one.ask_within(stranger, stranger, 100 * DEADLINE);
        assert!(matches!(one.answer(stranger).await, Err(AskError::NotSent(_))));
    }
    one.send(2, vec![heartbeat(1)]);
    one.until("unreachable", |heard| matches!(heard, Heard::Unreachable(2)).then_some(())).await;
}

/// This node's own membership may be far behind: who holds a certificate is answered, over the connection it made.
#[actix::test]
async fn a_peer_that_is_not_listed_is_answered_over_its_own_connection() {
    let certs = Certs::new();
    let (mut one, mut two) = (node(&certs, 1), node(&certs, 2));
    two.list(&[(1, one.address)]);
    settle(&mut one, &mut two).await;
    assert_eq!(two.ask(1, 5).await, Ok(Response::ReadAt { index: 5 }));
    assert_eq!(one.ask(2, 6).await, Ok(Response::ReadAt { index: 6 }));
}

/// Two nodes that dial each other at the same moment end with one connection, and it is the same one.
#[actix::test]
async fn simultaneous_dials_end_in_one_link() {
    let certs = Certs::new();
    for _ in 0..15 {
        let (mut one, mut two) = (node(&certs, 1), node(&certs, 2));
        one.list(&[(2, two.address)]);
        two.list(&[(1, one.address)]);
        settle(&mut one, &mut two).await;
        one.send(2, (0..200).map(|term| append(term, 100)).collect());
        two.send(1, (0..200).map(|term| append(term, 100)).collect());
        assert_eq!(terms(&two.messages(1, 200).await), (0..200).collect::<Vec<_>>());
        assert_eq!(terms(&one.messages(2, 200).await), (0..200).collect::<Vec<_>>());
        assert!(one.drain().is_empty() && two.drain().is_empty(), "the link stays");
        tokio::join!(async { one.handle.close.send(Close).await.unwrap() }, async {
            two.handle.close.send(Close).await.unwrap()
        },);
    }
}

#[actix::test]
async fn a_restarted_peer_is_found_again() {
    let Honest { certs, mut victim, friend } = Honest::new().await;
    let address = friend.address;
    friend.handle.close.send(Close).await.unwrap();
    drop(friend);
    victim.until("it went", |heard| matches!(heard, Heard::Unreachable(2)).then_some(())).await;
    let mut friend = None;
    eventually("the port is free again", async || std::net::UdpSocket::bind(address).is_ok()).await;
    for boot in 2..4 {
        drop(friend.take());
        eventually("the port is free again", async || std::net::UdpSocket::bind(address).is_ok()).await;
        let again = Identity { boot, ..identity(2) };
        let mut started = node_with(&certs, again, Questions::Answer, |config| config.listen = address);
        started.list(&[(1, victim.address)]);
        settle(&mut victim, &mut started).await;
        assert_eq!(victim.ask(2, boot).await, Ok(Response::ReadAt { index: boot }));
        friend = Some(started);
    }
}

/// A node that was killed said nothing. Its next boot takes its place at once, before the old connection times out.
#[actix::test]
async fn a_later_boot_takes_the_place_of_a_connection_that_looks_alive() {
    let mut honest = Honest::new().await;
    let old = honest.adversary(5);
    let old = old.join(honest.victim.address, hello(5)).await;
    let new = honest.adversary(5);
    let _new = new.join(honest.victim.address, actorum_transport::frame::Hello { boot: 2, ..hello(5) }).await;
    old.is_ended().await;
    honest.victim.until("boot 2", |heard| matches!(heard, Heard::Up(of) if of.boot == 2).then_some(())).await;
    honest.victim.drain();
    honest.flows().await;
}

/// Both dial each other again and again, and each hears once why the other refuses, and tells once why it refuses.
#[actix::test]
async fn each_side_hears_of_another_cluster_once() {
    let certs = Certs::new();
    let (ours, theirs) = (CLUSTER, ClusterId(2));
    let quick = |config: &mut actorum_transport::quic::QuicConfig| config.max_backoff = Duration::from_millis(50);
    let mut one = node_with(&certs, identity(1), Questions::Answer, quick);
    let stranger = Identity { cluster: Some(theirs), ..identity(2) };
    let mut two = node_with(&certs, stranger, Questions::Answer, quick);
    one.list(&[(2, two.address)]);
    two.list(&[(1, one.address)]);
    let (first, second) = (one.refusal().await, one.refusal().await);
    let mut heard = [first, second];
    heard.sort_by_key(|(_, by_peer, _)| *by_peer);
    assert_eq!(heard[0], (2, false, RefusedBecause::Cluster { theirs, ours }));
    assert_eq!(heard[1], (2, true, RefusedBecause::Cluster { theirs: ours, ours: theirs }));
    let (first, second) = (two.refusal().await, two.refusal().await);
    assert_ne!(first.1, second.1);
    // Some tens of dials later nothing was said again.
    let before = one.status().await.bytes_sent;
    eventually("more dials", async || one.status().await.bytes_sent > before + 5000).await;
    assert!(one.drain().is_empty(), "once per change of reason");
    assert!(two.drain().is_empty(), "once per change of reason");
    assert!(!one.is_connected(2).await && !two.is_connected(1).await);
    assert!(one.last_error(2).await.is_some_and(|error| error.contains("cluster")));
}

#[actix::test]
async fn another_reason_is_told_again() {
    let certs = Certs::new();
    let mut one = node(&certs, 1);
    let two = node_with(&certs, Identity { incarnation: Incarnation(99), ..identity(2) }, Questions::Answer, |_| {});
    one.list_known(&[(2, two.address, Some(Incarnation(20)))], &[]);
    let (id, known, theirs) = (2, Incarnation(20), Incarnation(99));
    assert_eq!(one.refusal().await, (2, false, RefusedBecause::Incarnation { id, known, theirs }));
    one.list_known(&[(2, two.address, Some(Incarnation(20)))], &[2]);
    assert_eq!(one.refusal().await, (2, false, RefusedBecause::Retired { id }));
}

#[actix::test]
async fn a_retired_node_loses_its_connection_and_hears_why() {
    let Honest { mut victim, mut friend, .. } = Honest::new().await;
    victim.list_known(&[], &[2]);
    assert_eq!(victim.refusal().await, (2, false, RefusedBecause::Retired { id: 2 }));
    assert_eq!(friend.refusal().await, (1, true, RefusedBecause::Retired { id: 2 }));
    assert!(!victim.is_connected(2).await);
    friend.send(1, vec![heartbeat(1)]);
    friend.until("unreachable", |heard| matches!(heard, Heard::Unreachable(1)).then_some(())).await;
    assert!(victim.drain().iter().all(|heard| !matches!(heard, Heard::Raft(..))));
}

/// A group that is not registered: its frames reach no other one, and its questions are refused. Once it is registered
/// it is heard.
#[actix::test]
async fn a_group_that_is_not_there_reaches_nobody() {
    let mut honest = Honest::new().await;
    let seventh = GroupId(7);
    let invalid = Response::Refused(Refusal::Invalid { cause: "group 7 is not on this node".into() });
    for request in [read_index(1), Request::Clock, Request::Snapshot(piece(0, 1))] {
        honest.victim.ask_in(seventh, 2, 1, request, DEADLINE);
        assert_eq!(honest.victim.answer(1).await, Ok(invalid.clone()));
    }
    honest.victim.send_in(seventh, 2, vec![append(1, 10), append(2, 10), heartbeat(3)]);
    eventually("they are counted", async || honest.friend.status().await.misdirected == 6).await;
    honest.flows().await;
    assert_eq!((honest.victim.status().await.misdirected, honest.friend.status().await.misdirected), (0, 6));

    let mut group = honest.friend.register(seventh);
    honest.victim.send_in(seventh, 2, vec![append(4, 10)]);
    let Heard::Raft(1, messages) = group.next().await else { panic!("a message") };
    assert_eq!(terms(&messages), [4]);
    honest.victim.ask_in(seventh, 2, 5, read_index(5), DEADLINE);
    assert_eq!(honest.victim.answer(5).await, Ok(Response::ReadAt { index: 5 }));
    honest.flows().await;
    assert_eq!(honest.friend.status().await.misdirected, 6);
}

/// What is over the bound goes, the oldest first, and the core hears of it.
#[actix::test]
async fn a_full_queue_drops_the_oldest_and_says_so() {
    let mut honest = Honest::with(|config| config.queue_bytes = 64 << 10).await;
    let slow = honest.adversary(5);
    let slow = slow.join(honest.victim.address, hello(5)).await;
    honest.victim.until("5 is up", |heard| matches!(heard, Heard::Up(of) if of.id == 5).then_some(())).await;
    honest.victim.send(5, (1..=100).map(|term| append(term, 10_000)).collect());
    honest.victim.until("a drop", |heard| matches!(heard, Heard::Unreachable(5)).then_some(())).await;
    assert_eq!(honest.victim.status().await.peers[&5].dropped, 94);
    let (mut terms, mut lanes) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let mut lane = soon("a lane", slow.connection.accept_uni()).await.unwrap();
        let (_, body) = read_frame(&mut lane).await.unwrap();
        if actorum_transport::frame::decode::<Lane>(&body).unwrap() == Lane::Log {
            while terms.len() < 6 {
                let (_, body) = soon("messages", read_frame(&mut lane)).await.unwrap();
                let batch: actorum_transport::frame::Batch = actorum_transport::frame::decode(&body).unwrap();
                terms.extend(batch.messages.iter().map(|message| message.term));
            }
        }
        lanes.push(lane);
    }
    assert_eq!(terms, [95, 96, 97, 98, 99, 100]);
    honest.flows().await;
}

/// What goes may be of another group than what it goes for: the group that lost something hears of it. A connection
/// that ends may have held messages of every group.
#[actix::test]
async fn the_group_whose_messages_went_hears_of_it() {
    let mut honest = Honest::with(|config| config.queue_bytes = 64 << 10).await;
    let slow = honest.adversary(5);
    let slow = slow.join(honest.victim.address, hello(5)).await;
    honest.victim.until("5 is up", |heard| matches!(heard, Heard::Up(of) if of.id == 5).then_some(())).await;
    let mut group = honest.victim.register(GroupId(7));
    honest.victim.send_in(GroupId(7), 5, (1..=6).map(|term| append(term, 10_000)).collect());
    // Before the writer has a turn: what goes for these is of the other group.
    honest.victim.send(5, (7..=9).map(|term| append(term, 10_000)).collect());
    assert!(matches!(group.next().await, Heard::Unreachable(5)));
    honest.victim.status().await;
    assert!(honest.victim.drain().is_empty(), "this group lost nothing");
    slow.connection.close(0_u32.into(), b"");
    assert!(matches!(group.next().await, Heard::Unreachable(5)));
    honest.victim.until("it went", |heard| matches!(heard, Heard::Unreachable(5)).then_some(())).await;
    honest.flows().await;
    assert!(group.drain().is_empty());
}

/// A message that no frame may hold is dropped, and the core hears of it: it would wait for ever otherwise.
#[actix::test]
async fn a_message_over_the_bound_of_a_frame_is_reported() {
    let mut honest = Honest::with(|config| config.max_frame = 100_000).await;
    honest.victim.send(2, vec![append(1, 200_000)]);
    honest.victim.until("a drop", |heard| matches!(heard, Heard::Unreachable(2)).then_some(())).await;
    assert_eq!(honest.victim.status().await.peers[&2].dropped, 1);
    honest.flows().await;
}

#[actix::test]
async fn close_sends_what_is_queued() {
    let Honest { victim, mut friend, .. } = Honest::new().await;
    let sent = (0..4000).map(|term| append(term, 1000)).chain([heartbeat(4000)]);
    victim.send(2, sent.collect());
    victim.handle.close.send(Close).await.unwrap();
    let messages = friend.messages(1, 4001).await;
    let log: Vec<u64> = messages.iter().filter(|m| m.kind == MessageKind::Append).map(|m| m.term).collect();
    assert_eq!(log, (0..4000).collect::<Vec<_>>());
    friend.until("it went", |heard| matches!(heard, Heard::Unreachable(1)).then_some(())).await;
}

/// A peer that takes nothing does not hold up the end.
#[actix::test]
async fn close_does_not_wait_for_a_peer_that_reads_nothing() {
    let honest = Honest::new().await;
    let mut slow = Vec::new();
    for id in 5..15 {
        let adversary = honest.adversary(id);
        slow.push((adversary.join(honest.victim.address, hello(id)).await, adversary));
        eventually("it is up", async || honest.victim.is_connected(id).await).await;
        honest.victim.send(id, (0..4).map(|term| append(term, 4 << 20)).collect());
    }
    let begun = std::time::Instant::now();
    honest.victim.handle.close.send(Close).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(2900), "ten peers, one moment of patience");
}

/// Nobody's address is held by a task: also not by a dial that hangs.
#[actix::test]
async fn without_addresses_the_actor_stops_and_its_port_is_free() {
    let Honest { certs, victim, mut friend } = Honest::with(|config| {
        (config.handshake_timeout, config.idle_timeout) = (10 * DEADLINE, 10 * DEADLINE);
    })
    .await;
    let hole = std::net::UdpSocket::bind(local()).unwrap();
    victim.list(&[(2, friend.address), (3, hole.local_addr().unwrap())]);
    let mut packet = [0; 2000];
    eventually("the dial has begun", async || {
        hole.set_nonblocking(true).unwrap();
        hole.recv(&mut packet).is_ok()
    })
    .await;
    let address = victim.address;
    drop(victim);
    friend.until("it went", |heard| matches!(heard, Heard::Unreachable(1)).then_some(())).await;
    eventually("the port is free", async || std::net::UdpSocket::bind(address).is_ok()).await;
    drop(certs);
}

/// A name with several addresses: those of a family that this socket cannot reach are passed over.
#[actix::test]
async fn a_name_is_resolved_to_an_address_that_fits_the_socket() {
    let certs = Certs::new();
    let (mut one, mut two) = (node(&certs, 1), node(&certs, 2));
    let address = format!("localhost:{}", two.address.port()).as_str().into();
    let peer = actorum_transport::message::Peer { address, incarnation: None };
    one.handle
        .set_peers
        .do_send(actorum_transport::message::SetPeers { peers: [(2, peer)].into(), retired: Default::default() });
    settle(&mut one, &mut two).await;
}
