//! Everything that is not a well-behaved node of this cluster: strangers, wrong certificates, wrong hellos, and nodes
//! with a true certificate that send what makes no sense.
//!
//! After each attack the victim's link with an honest friend carries both lanes and questions as before, and
//! nothing of the attacker's was delivered: [`Honest::flows`] checks both.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use actorum_core::{
    identity::RefusedBecause,
    wire::{ConfState, Entry, EntryKind, Formation, MessageKind, RaftMessage, Request, Response, Snapshot},
};
use actorum_machine::ids::{ClusterId, GroupId, Incarnation};
use actorum_transport::{
    frame::{self, FrameKind, GroupRequest, Hello, Lane, Welcome},
    quic::QuicConfig,
    tls::node_name,
};
use bytes::Bytes;

use crate::support::*;

/// TLS does not let it in: the victim ends the connection before anything is asked.
async fn shut_out(honest: &mut Honest, shows: Option<Pair>) {
    let adversary = Adversary::new(&honest.certs, shows, 1);
    // With TLS 1.3 the client may believe in it for a moment.
    if let Ok(connection) = soon("an end", adversary.dial(honest.victim.address)).await {
        assert!(matches!(greet(&connection, hello(5)).await, Err(None)), "no answer, not even a refusal");
        soon("the end", connection.closed()).await;
    }
    assert!(!honest.victim.status().await.peers.contains_key(&5));
    honest.flows().await;
}

#[actix::test]
async fn a_client_without_a_certificate() {
    shut_out(&mut Honest::new().await, None).await;
}

#[actix::test]
async fn a_client_of_another_authority() {
    shut_out(&mut Honest::new().await, Some(Certs::new().of(5))).await;
}

#[actix::test]
async fn a_client_whose_certificate_expired() {
    let mut honest = Honest::new().await;
    let expired = honest.certs.expired(5);
    shut_out(&mut honest, Some(expired)).await;
}

#[actix::test]
async fn a_client_whose_certificate_is_not_for_clients() {
    let mut honest = Honest::new().await;
    let server_only = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    };
    let pair = honest.certs.forge(&[node_name(5)], server_only);
    shut_out(&mut honest, Some(pair)).await;
}

/// A holder of a true certificate speaks in another's name. It hears why not; nobody else is told in that name.
#[actix::test]
async fn a_client_with_another_nodes_certificate() {
    let mut honest = Honest::new().await;
    let both = [node_name(2), node_name(5)];
    for shows in [honest.certs.of(5), honest.certs.forge(&both, |_| {}), honest.certs.forge(&["ca".into()], |_| {})] {
        let adversary = Adversary::new(&honest.certs, Some(shows), 1);
        let connection = adversary.connect(honest.victim.address).await;
        let Err(Some(refused)) = greet(&connection, hello(2)).await else { panic!("it is not node 2") };
        assert!(matches!(refused.because(), Some(RefusedBecause::Certificate { id: 2, .. })), "{refused:?}");
        soon("the end", connection.closed()).await;
        honest.flows().await;
    }
}

/// What is dialled as node 9 shows that certificate: the victim does not speak to it.
async fn not_spoken_to(honest: &mut Honest, shows: Pair) -> String {
    let (address, _endpoint, mut through) = impostor(shows);
    honest.victim.list(&[(2, honest.friend.address), (9, address)]);
    let victim = &honest.victim;
    let mut cause = None;
    eventually("the dial fails", async || {
        cause = victim.last_error(9).await;
        cause.is_some()
    })
    .await;
    assert!(through.try_recv().is_err(), "not even the TLS handshake completes");
    assert!(!honest.victim.is_connected(9).await);
    cause.unwrap()
}

#[actix::test]
async fn a_server_with_another_nodes_certificate() {
    let mut honest = Honest::new().await;
    for shows in [honest.certs.of(8), honest.certs.forge(&[node_name(8), node_name(9)], |_| {})] {
        let cause = not_spoken_to(&mut honest, shows).await;
        assert!(cause.contains("node-8.actorum"), "{cause}");
        let (peer, by_peer, reason) = honest.victim.refusal().await;
        assert_eq!((peer, by_peer), (9, false));
        assert!(matches!(reason, RefusedBecause::Certificate { id: 9, .. }));
        honest.flows().await;
        honest.victim.list(&[(2, honest.friend.address)]);
    }
}

#[actix::test]
async fn a_server_of_another_authority() {
    let mut honest = Honest::new().await;
    not_spoken_to(&mut honest, Certs::new().of(9)).await;
    honest.flows().await;
}

#[actix::test]
async fn a_server_whose_certificate_expired() {
    let mut honest = Honest::new().await;
    let expired = honest.certs.expired(9);
    let cause = not_spoken_to(&mut honest, expired).await;
    assert!(cause.contains("expired"), "{cause}");
    honest.flows().await;
}

/// A true node under another's address: dialled as 9, it is 8.
#[actix::test]
async fn a_node_behind_the_wrong_address() {
    let mut honest = Honest::new().await;
    let eight = node(&honest.certs, 8);
    honest.victim.list(&[(2, honest.friend.address), (9, eight.address)]);
    let id = 9;
    let reason = RefusedBecause::Certificate { certificate: node_name(8), id };
    assert_eq!(honest.victim.refusal().await, (9, false, reason));
    honest.flows().await;
}

/// The victim refuses by that nameand tells above, once however often it is tried.
async fn refused_because(honest: &mut Honest, says: Hello, expected: RefusedBecause) {
    for attempt in 0..3 {
        let adversary = honest.adversary(says.node);
        let connection = adversary.connect(honest.victim.address).await;
        let Err(Some(refused)) = greet(&connection, says.clone()).await else { panic!("let in: {says:?}") };
        assert_eq!(refused.because().as_ref(), Some(&expected));
        assert_eq!(refused.text, expected.to_string());
        soon("the end", connection.closed()).await;
        if attempt == 0 {
            assert_eq!(honest.victim.refusal().await, (says.node, false, expected.clone()));
        }
        assert!(honest.victim.drain().is_empty(), "told once");
    }
    honest.flows().await;
}

#[actix::test]
async fn hellos_that_are_refused_for_what_they_say() {
    let mut honest = Honest::new().await;
    let address: SocketAddr = honest.friend.address;
    let known = Incarnation(50);
    let nowhere = ([127, 0, 0, 1], 1).into();
    honest.victim.list_known(&[(2, address, None), (5, nowhere, Some(known))], &[6]);
    let (theirs, ours) = (ClusterId(9), CLUSTER);
    refused_because(&mut honest, Hello { cluster: Some(theirs), ..hello(4) }, RefusedBecause::Cluster { theirs, ours })
        .await;
    refused_because(&mut honest, Hello { protocol: 9, ..hello(4) }, RefusedBecause::Version { theirs: 9, ours: 1 })
        .await;
    let formats = RefusedBecause::Format { theirs: vec![7], ours: vec![1] };
    refused_because(&mut honest, Hello { formats: vec![7], ..hello(4) }, formats).await;
    refused_because(&mut honest, hello(6), RefusedBecause::Retired { id: 6 }).await;
    refused_because(&mut honest, hello(1), RefusedBecause::Myself { id: 1 }).await;
    let theirs = Incarnation(51);
    let incarnation = RefusedBecause::Incarnation { id: 5, known, theirs };
    refused_because(&mut honest, Hello { incarnation: theirs, ..hello(5) }, incarnation).await;
    // A later boot was here: the one before stays out.
    let adversary = honest.adversary(7);
    let _later = adversary.join(honest.victim.address, Hello { boot: 3, ..hello(7) }).await;
    honest.victim.until("boot 3", |heard| matches!(heard, Heard::Up(of) if of.boot == 3).then_some(())).await;
    let boot = RefusedBecause::Boot { id: 7, known: 3, theirs: 2 };
    refused_because(&mut honest, Hello { boot: 2, ..hello(7) }, boot).await;
    assert!(honest.victim.is_connected(7).await, "and the later one is not disturbed");
}

/// In place of a hello.
#[actix::test]
async fn first_frames_that_are_no_hello() {
    let mut honest = Honest::new().await;
    let huge = Hello { formats: vec![1; 100_000], ..hello(5) };
    let firsts = [
        u32::MAX.to_be_bytes().to_vec(),
        vec![0xa5; 5000],
        vec![0; 64],
        framed(FrameKind::Welcome, &Welcome::default()),
        framed(FrameKind::Lane, &Lane::Log),
        batch(&[heartbeat(1)]),
        raw_frame(99, &[0x80]),
        raw_frame(FrameKind::Hello as u8, &[0xc1; 100]),
        raw_frame(FrameKind::Hello as u8, &[0x91; 1000]),
        raw_frame(FrameKind::Hello as u8, b"\x81\xa4node\xff"),
        framed(FrameKind::Hello, &huge),
        [framed(FrameKind::Hello, &hello(5)), batch(&[heartbeat(1)])].concat(),
        [framed(FrameKind::Hello, &hello(5)), framed(FrameKind::Hello, &hello(5))].concat(),
    ];
    for first in firsts {
        let adversary = honest.adversary(5);
        let connection = adversary.connect(honest.victim.address).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let _ = send.write_all(&first).await;
        soon("the end", connection.closed()).await;
        honest.flows().await;
    }
}

/// Before its hello a peer has one stream, and none for data.
#[actix::test]
async fn nothing_but_a_hello_can_be_sent_before_it() {
    let mut honest = Honest::new().await;
    let adversary = honest.adversary(5);
    let connection = adversary.connect(honest.victim.address).await;
    let patience = Duration::from_millis(100);
    let (_first, _) = connection.open_bi().await.unwrap();
    assert!(tokio::time::timeout(patience, connection.open_bi()).await.is_err());
    assert!(tokio::time::timeout(patience, connection.open_uni()).await.is_err());
    honest.flows().await;
}

async fn joined(honest: &mut Honest, id: u64) -> (Joined, Adversary) {
    let adversary = honest.adversary(id);
    let joined = adversary.join(honest.victim.address, hello(id)).await;
    honest.victim.until("it is up", |heard| matches!(heard, Heard::Up(of) if of.id == id).then_some(())).await;
    (joined, adversary)
}

/// The attacker was a peer and is none any more. What it sent was not delivered.
async fn ended(honest: &mut Honest, joined: Joined) {
    joined.is_ended().await;
    match honest.victim.next().await {
        Heard::Unreachable(5) => {}
        other => panic!("delivered: {other:?}"),
    }
    honest.flows().await;
}

fn nonsense() -> Vec<Vec<u8>> {
    let named = |value: &dyn Fn(&mut Vec<u8>)| {
        // {"messages": [{"kind": ..., "term": ...}]}
        let mut body = b"\x81\xa8messages\x91\x82\xa4kind".to_vec();
        value(&mut body);
        raw_frame(FrameKind::Raft as u8, &body)
    };
    let heartbeat = batch(&[heartbeat(1)]);
    let flood: Vec<u8> = {
        // One frame with one message too many, as `encode_messages` never makes it.
        let mut body = b"\x81\xa8messages\xdc\x40\x01".to_vec();
        let message = rmp_serde::to_vec_named(&RaftMessage::new(MessageKind::Heartbeat, 1)).unwrap();
        (0..=frame::MAX_MESSAGES).for_each(|_| body.extend(&message));
        raw_frame(FrameKind::Raft as u8, &body)
    };
    vec![
        u32::MAX.to_be_bytes().to_vec(),
        ((64u32 << 20) + 1).to_be_bytes().to_vec(),
        vec![0xee; 3000],
        vec![0, 0, 0, 0],
        [&heartbeat[..4], &[9], &heartbeat[5..]].concat(),
        raw_frame(0, &[]),
        raw_frame(8, &[0x80]),
        raw_frame(255, &[0x80]),
        framed(FrameKind::Hello, &hello(5)),
        framed(FrameKind::Welcome, &Welcome::default()),
        framed(FrameKind::Response, &Response::ReadAt { index: 1 }),
        framed(FrameKind::Request, &GroupRequest { group: GroupId::FIRST, request: read_index(1) }),
        raw_frame(FrameKind::Raft as u8, &[]),
        raw_frame(FrameKind::Raft as u8, &[0xc1]),
        raw_frame(FrameKind::Raft as u8, b"\x81\xa8messages\xdd\xff\xff\xff\xff"),
        raw_frame(FrameKind::Raft as u8, b"\x81\xa8messages\xc6\xff\xff\xff\xff"),
        raw_frame(FrameKind::Raft as u8, &[&b"\x81\xa8messages"[..], &[0x91; 100_000]].concat()),
        named(&|body| body.extend(b"\xa9Telepathy\xa4term\x01")),
        named(&|body| body.extend(b"\xa9Heartbeat\xa4term\xff")),
        named(&|body| body.extend(b"\xa9Heartbeat\xa4term\xa3abc")),
        named(&|body| body.extend(b"\xa9Heartbeat\xa4term\xcb\x7f\xf8\0\0\0\0\0\0")),
        named(&|body| body.extend(b"\x63\xa4term\x01")),
        [raw_frame(FrameKind::Raft as u8, b"\x81\xa8messages\x90\xc0")].concat(),
        flood,
    ]
}

#[actix::test]
async fn nonsense_on_a_lane_ends_that_connection_only() {
    let mut honest = Honest::new().await;
    for (lane, bytes) in nonsense().into_iter().enumerate() {
        let (joined, _endpoint) = joined(&mut honest, 5).await;
        let mut send = joined.lane(if lane % 2 == 0 { Lane::Log } else { Lane::Urgent }).await;
        let _ = send.write_all(&bytes).await;
        ended(&mut honest, joined).await;
    }
}

#[actix::test]
async fn a_lane_that_is_none_ends_that_connection_only() {
    let mut honest = Honest::new().await;
    let firsts = [
        batch(&[heartbeat(1)]),
        raw_frame(FrameKind::Lane as u8, &[0xa4, b'S', b'l', b'o', b'w']),
        raw_frame(FrameKind::Lane as u8, &[0xa3; 20_000]),
        framed(FrameKind::Hello, &hello(5)),
    ];
    for first in firsts {
        let (joined, _endpoint) = joined(&mut honest, 5).await;
        let mut send = joined.connection.open_uni().await.unwrap();
        let _ = send.write_all(&first).await;
        ended(&mut honest, joined).await;
    }
    // Two log lanes would have no order between them.
    let (twice, _endpoint) = joined(&mut honest, 5).await;
    let _lanes = (twice.lane(Lane::Log).await, twice.lane(Lane::Log).await);
    ended(&mut honest, twice).await;
    // And one that ends inside a frame, or is cut off.
    let (half, _endpoint) = joined(&mut honest, 5).await;
    let mut lane = half.lane(Lane::Log).await;
    lane.write_all(&batch(&[heartbeat(1)])[..9]).await.unwrap();
    lane.finish().unwrap();
    ended(&mut honest, half).await;
    let (cut, _endpoint) = joined(&mut honest, 5).await;
    let mut lane = cut.lane(Lane::Log).await;
    lane.reset(CODE).unwrap();
    ended(&mut honest, cut).await;
}

/// Nobody reads what waits for it any more: a link with one dead lane would keep a queue for ever.
#[actix::test]
async fn a_peer_that_stops_a_lane_loses_its_connection() {
    let mut honest = Honest::new().await;
    let (joined, _endpoint) = joined(&mut honest, 5).await;
    let mut lane = soon("a lane", joined.connection.accept_uni()).await.unwrap();
    lane.stop(CODE).unwrap();
    ended(&mut honest, joined).await;
}

#[actix::test]
async fn nonsense_in_place_of_a_question_ends_that_connection_only() {
    let mut honest = Honest::new().await;
    let mut all = nonsense();
    all.retain(|bytes| bytes.get(5) != Some(&(FrameKind::Request as u8)) || bytes.len() < 6);
    all.push(raw_frame(FrameKind::Request as u8, b"\x81\xa7request\xa6Reboot"));
    all.push(raw_frame(FrameKind::Request as u8, &[&b"\x81\xa7request\x81\xa7Propose"[..], &[0x91; 10_000]].concat()));
    all.push(batch(&[heartbeat(1)]));
    for bytes in all {
        let (joined, _endpoint) = joined(&mut honest, 5).await;
        let (mut send, _receive) = joined.connection.open_bi().await.unwrap();
        let _ = send.write_all(&bytes).await;
        ended(&mut honest, joined).await;
    }
}

/// What decodes is data, however absurd: judging it is the core's.
#[actix::test]
async fn absurd_fields_pass_as_they_are() {
    use MessageKind::{
        Append, AppendResponse, Heartbeat, HeartbeatResponse, PreVote, PreVoteResponse, TimeoutNow, Vote, VoteResponse,
    };
    let mut honest = Honest::new().await;
    let (joined, _endpoint) = joined(&mut honest, 5).await;
    let mut lane = joined.lane(Lane::Log).await;
    let entry = |kind, index| {
        let data = Bytes::from(vec![0xff; 100]);
        Entry { kind, term: u64::MAX, index, data: data.clone(), context: data }
    };
    let conf = ConfState {
        voters: vec![0, 0, u64::MAX],
        learners: vec![0; 1000],
        voters_outgoing: vec![u64::MAX],
        learners_next: vec![0, 1],
        auto_leave: true,
    };
    let snapshot = Snapshot { index: 0, term: u64::MAX, conf, data: Bytes::from(vec![0; 10_000]) };
    for kind in [
        Append,
        AppendResponse,
        Heartbeat,
        HeartbeatResponse,
        PreVote,
        PreVoteResponse,
        Vote,
        VoteResponse,
        MessageKind::Snapshot,
        TimeoutNow,
    ] {
        for extreme in [0, u64::MAX] {
            let message = RaftMessage {
                kind,
                term: extreme,
                log_term: extreme,
                index: extreme,
                entries: vec![entry(EntryKind::Normal, extreme), entry(EntryKind::ConfChange, 0)],
                commit: extreme,
                commit_term: extreme,
                snapshot: Some(snapshot.clone()),
                request_snapshot: extreme,
                reject: true,
                reject_hint: extreme,
                context: Bytes::from(vec![1; 5000]),
                priority: i64::MIN,
            };
            lane.write_all(&batch(std::slice::from_ref(&message))).await.unwrap();
            match honest.victim.next().await {
                Heard::Raft(5, messages) => assert_eq!(messages, [message]),
                other => panic!("{other:?}"),
            }
        }
    }
    let founders = (0..1000).map(|id| (id, "nowhere:0".into())).collect();
    let formation = Formation {
        incarnation: Incarnation(0),
        founders,
        formed_with: Some(Default::default()),
        heard: Default::default(),
        cluster_name: None,
        cluster: None,
    };
    let absurd = [
        Request::Propose { data: Bytes::new(), remaining_ms: u64::MAX },
        Request::Change { data: Bytes::from(vec![0xff; 1 << 20]), remaining_ms: 0, force: false },
        Request::Formation(formation),
        read_index(u64::MAX),
    ];
    for request in absurd {
        assert!(matches!(joined.ask(request.clone()).await, Some(Response::ReadAt { .. })));
        assert!(matches!(honest.victim.next().await, Heard::Asked(5, asked) if asked == request));
    }
    honest.flows().await;
}

fn impatient(config: &mut QuicConfig) {
    config.handshake_timeout = Duration::from_millis(500);
    config.idle_timeout = Duration::from_millis(1000);
    config.keep_alive = Duration::from_millis(200);
}

/// Half of something and then silence: the victim does not wait for ever, and the connection's own life signs do not
/// help.
#[actix::test]
async fn half_a_frame_and_silence_holds_nothing() {
    let mut honest = Honest::with(impatient).await;
    // A hello.
    let adversary = honest.adversary(5);
    let connection = adversary.connect(honest.victim.address).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&framed(FrameKind::Hello, &hello(5))[..20]).await.unwrap();
    honest.flows().await;
    soon("the end", connection.closed()).await;
    // A hello that is answered and not welcomed.
    let connection = adversary.connect(honest.victim.address).await;
    let _greeting = greet(&connection, hello(5)).await.ok().unwrap();
    honest.flows().await;
    soon("the end", connection.closed()).await;
    // A lane: in its first header, in a frame that claims the bound.
    for half in [vec![0, 0], [(64u32 << 20).to_be_bytes().to_vec(), vec![frame::VERSION, 5], vec![0; 100_000]].concat()]
    {
        let (joined, _endpoint) = joined(&mut honest, 5).await;
        let mut lane = joined.lane(Lane::Log).await;
        lane.write_all(&half).await.unwrap();
        ended(&mut honest, joined).await;
    }
    // A question: its stream is given up.
    let (joined, _endpoint) = joined(&mut honest, 5).await;
    let (mut send, mut receive) = joined.connection.open_bi().await.unwrap();
    let question = GroupRequest { group: GroupId::FIRST, request: read_index(1) };
    send.write_all(&framed(FrameKind::Request, &question)[..10]).await.unwrap();
    assert!(soon("the stream ends", read_frame(&mut receive)).await.is_none());
    honest.flows().await;
}

/// Early data could be replayed: no session is ever resumed.
#[actix::test]
async fn there_is_no_early_data() {
    let mut honest = Honest::new().await;
    let adversary = honest.adversary(5);
    for _ in 0..3 {
        let connecting = adversary.dial(honest.victim.address);
        let Err(connecting) = connecting.into_0rtt() else { panic!("0-RTT is offered") };
        let connection = soon("a connection", connecting).await.unwrap();
        let greeting = greet(&connection, hello(5)).await.ok().unwrap();
        // Time for tickets to arrive, if there were any: they come before this answer.
        greeting.welcome().await;
        honest.victim.until("it is up", |heard| matches!(heard, Heard::Up(of) if of.id == 5).then_some(())).await;
        connection.close(CODE, b"");
        honest.victim.until("it went", |heard| matches!(heard, Heard::Unreachable(5)).then_some(())).await;
    }
    honest.flows().await;
}

/// A hundred large questions that never end: what has come of them is bounded for all together, and not by each.
#[actix::test]
async fn questions_without_end_are_bounded_together() {
    let patient = |config: &mut QuicConfig| (config.max_frame, config.handshake_timeout) = (1 << 20, 10 * DEADLINE);
    let mut honest = Honest::with(patient).await;
    let attacker = honest.adversary(5);
    let joined = attacker.join(honest.victim.address, hello(5)).await;
    honest.victim.until("5 is up", |heard| matches!(heard, Heard::Up(of) if of.id == 5).then_some(())).await;
    let before = honest.victim.status().await.bytes_received;
    let part =
        [&(1_000_000_u32 + 2).to_be_bytes()[..], &[frame::VERSION, FrameKind::Request as u8], &[0; 900_000]].concat();
    let part: Arc<[u8]> = part.into();
    let mut sending = Vec::new();
    for _ in 0..100 {
        let (mut send, receive) = soon("a stream", joined.connection.open_bi()).await.unwrap();
        let part = part.clone();
        sending.push(actix_rt::spawn(async move {
            let _ = send.write_all(&part).await;
            std::future::pending::<()>().await;
            drop((send, receive));
        }));
    }
    // Until nothing more is read for a while.
    let mut read = 0;
    let mut since = std::time::Instant::now();
    eventually("the victim reads no more", async || {
        let now = honest.victim.status().await.bytes_received - before;
        if now != read {
            (read, since) = (now, std::time::Instant::now());
        }
        read > 900_000 && since.elapsed() > Duration::from_secs(1)
    })
    .await;
    assert!(read <= (1 << 20) + 64 * 1024, "{read} bytes were taken of questions that are not complete");
    honest.flows().await;
    sending.iter().for_each(actix_rt::task::JoinHandle::abort);
}

/// Large questions that come interleaved wait for each other, and all of them are answered.
#[actix::test]
async fn large_questions_take_turns() {
    let mut honest = Honest::with(|config| config.max_frame = 1 << 20).await;
    let peer = honest.adversary(5);
    let joined = peer.join(honest.victim.address, hello(5)).await;
    honest.victim.until("5 is up", |heard| matches!(heard, Heard::Up(of) if of.id == 5).then_some(())).await;
    let data = Bytes::from(vec![7; 900_000]);
    let asks = (0..20).map(|_| joined.ask(Request::Propose { data: data.clone(), remaining_ms: 1 }));
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(answer, Some(Response::ReadAt { index: 0 }));
    }
    honest.victim.drain();
    honest.flows().await;
}

/// Another protocol on the same port does not get through TLS.
#[actix::test]
async fn another_application_protocol() {
    let mut honest = Honest::new().await;
    let mut crypto = client_crypto(&honest.certs, Some(honest.certs.of(5)));
    crypto.alpn_protocols = vec![b"h3".to_vec()];
    let adversary = Adversary::with(crypto, 1, |_| {});
    assert!(soon("an end", adversary.dial(honest.victim.address)).await.is_err());
    honest.flows().await;
}

/// Handshakes that never end take their places, and no more: the next are refused, who was linked stays linked, and a
/// place comes free in a bounded time.
#[actix::test]
async fn more_handshakes_than_the_bound_are_refused() {
    let few = |config: &mut QuicConfig| {
        config.max_handshakes = 8;
        config.max_handshakes_per_address = 4;
    };
    let mut honest = Honest::with(few).await;
    let adversary = honest.adversary(5);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(adversary.connect(honest.victim.address).await);
    }
    for _ in 0..20 {
        let refused = soon("a refusal", adversary.dial(honest.victim.address)).await;
        assert!(matches!(refused, Err(quinn::ConnectionError::ConnectionClosed(_))), "{refused:?}");
    }
    honest.flows().await;
    // From another address there is room.
    #[cfg(target_os = "linux")]
    {
        let elsewhere = |config: &mut QuicConfig| config.listen = ([127, 0, 0, 2], 0).into();
        let mut third = node_with(&honest.certs, identity(3), Questions::Answer, elsewhere);
        third.list(&[(1, honest.victim.address)]);
        third.connected(1).await;
        assert_eq!(third.ask(1, 3).await, Ok(Response::ReadAt { index: 3 }));
        honest.victim.drain();
    }
    // From this one, too, once the timeout of the others has passed.
    let mut fourth = node(&honest.certs, 4);
    fourth.list(&[(1, honest.victim.address)]);
    fourth.connected(1).await;
    assert_eq!(fourth.ask(1, 4).await, Ok(Response::ReadAt { index: 4 }));
    honest.victim.drain();
    honest.flows().await;
}

/// Half full, the victim asks for proof of the address: honest peers pass, at the price of a round trip.
#[actix::test]
async fn peers_connect_while_the_victim_asks_for_proof_of_addresses() {
    let half = |config: &mut QuicConfig| config.max_handshakes = 4;
    let mut honest = Honest::with(half).await;
    let adversary = honest.adversary(5);
    let _held = [adversary.connect(honest.victim.address).await, adversary.connect(honest.victim.address).await];
    let mut third = node(&honest.certs, 3);
    third.list(&[(1, honest.victim.address)]);
    third.connected(1).await;
    assert_eq!(third.ask(1, 3).await, Ok(Response::ReadAt { index: 3 }));
    honest.victim.drain();
    honest.flows().await;
}

/// Datagrams of garbage to the port itself.
#[actix::test]
async fn garbage_datagrams() {
    let mut honest = Honest::new().await;
    let socket = std::net::UdpSocket::bind(local()).unwrap();
    let mut rng = 7u64;
    for length in (0..1200).step_by(7) {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (rng >> 56) as u8
            })
            .collect();
        socket.send_to(&bytes, honest.victim.address).unwrap();
        // And some that look like the first packet of version 1.
        let initial = [&[0xc3, 0, 0, 0, 1, 8][..], &bytes].concat();
        socket.send_to(&initial, honest.victim.address).unwrap();
    }
    honest.flows().await;
}

/// Frames of an old connection never come after those of a newer one, though they had arrived before.
#[actix::test]
async fn frames_of_an_old_connection_do_not_follow_those_of_a_newer_one() {
    let mut honest = Honest::new().await;
    for round in 0..10 {
        let (old_boot, new_boot) = (2 * round + 1, 2 * round + 2);
        let adversary = honest.adversary(5);
        let old = adversary.join(honest.victim.address, Hello { boot: old_boot, ..hello(5) }).await;
        let mut old_lane = old.lane(Lane::Log).await;
        // Many small frames, still on their way through the victim when the new connection stands.
        let stream: Vec<u8> = (0..20_000).flat_map(|_| batch(&[append(old_boot, 10)])).collect();
        let flood = actix_rt::spawn(async move {
            let _ = old_lane.write_all(&stream).await;
            old_lane
        });
        let is_old = |heard| matches!(heard, Heard::Raft(5, messages) if messages[0].term == old_boot).then_some(());
        honest.victim.until("the old one", is_old).await;
        let new = adversary.join(honest.victim.address, Hello { boot: new_boot, ..hello(5) }).await;
        let mut new_lane = new.lane(Lane::Log).await;
        new_lane.write_all(&batch(&[append(new_boot, 10)])).await.unwrap();
        let up = |heard| matches!(heard, Heard::Up(of) if of.boot == new_boot).then_some(());
        honest.victim.until("the new one", up).await;
        // From the moment it stands: nothing of the old one.
        honest
            .victim
            .until("the new one's message", |heard| match heard {
                Heard::Raft(5, messages) => {
                    assert_eq!(messages[0].term, new_boot, "a frame of the old connection");
                    Some(())
                }
                _ => None,
            })
            .await;
        old.is_ended().await;
        let _ = flood.await;
        for heard in honest.victim.drain() {
            assert!(!matches!(heard, Heard::Raft(..)), "{heard:?}");
        }
        new.connection.close(CODE, b"");
        honest.victim.until("it went", |heard| matches!(heard, Heard::Unreachable(5)).then_some(())).await;
    }
    honest.flows().await;
}

/// An older dial whose hello is completed after a newer one's, in the same boot.
#[actix::test]
async fn a_dial_that_was_overtaken_is_not_let_in() {
    let mut honest = Honest::new().await;
    let adversary = honest.adversary(5);
    let overtaken = adversary.connect(honest.victim.address).await;
    let greeting = greet(&overtaken, Hello { dial: 5, ..hello(5) }).await.ok().unwrap();
    let newer = adversary.join(honest.victim.address, Hello { dial: 6, ..hello(5) }).await;
    honest.victim.until("it is up", |heard| matches!(heard, Heard::Up(_)).then_some(())).await;
    greeting.welcome().await;
    soon("the older one is closed", overtaken.closed()).await;
    assert!(newer.connection.close_reason().is_none());
    // Also once the newer one has gone.
    let overtaken = adversary.connect(honest.victim.address).await;
    let greeting = greet(&overtaken, Hello { dial: 5, ..hello(5) }).await.ok().unwrap();
    newer.connection.close(CODE, b"");
    honest.victim.until("it went", |heard| matches!(heard, Heard::Unreachable(5)).then_some(())).await;
    greeting.welcome().await;
    soon("the older one is closed", overtaken.closed()).await;
    honest.flows().await;
}

/// A refusal's text is a peer's own words: in the status it is one line of bounded length.
#[actix::test]
async fn a_peers_words_are_shortened() {
    let mut honest = Honest::new().await;
    let (certificate, key) = honest.certs.of(9);
    let (address, _endpoint, mut through) = impostor((certificate, key));
    honest.victim.list(&[(2, honest.friend.address), (9, address)]);
    let connection = soon("a dial", through.recv()).await.unwrap();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    read_frame(&mut receive).await.unwrap();
    let text = "no\n\x1b[31m".repeat(1000);
    write(&mut send, FrameKind::Refused, &frame::Refused { text, reason: Bytes::new() }).await;
    let victim = &honest.victim;
    eventually("it is told", async || victim.last_error(9).await.is_some_and(|text| text.starts_with("no"))).await;
    let shown = victim.last_error(9).await.unwrap();
    assert!(shown.chars().count() <= 400 && !shown.contains(char::is_control), "{shown:?}");
    honest.flows().await;
}

/// A server that lets everybody dial it and answers with somebody else's hello, or with none.
#[actix::test]
async fn a_server_that_answers_a_hello_with_nonsense() {
    let mut honest = Honest::new().await;
    let answers = [
        framed(FrameKind::Hello, &hello(8)),
        framed(FrameKind::Hello, &hello(1)),
        framed(FrameKind::Hello, &Hello { cluster: Some(ClusterId(7)), ..hello(9) }),
        framed(FrameKind::Welcome, &Welcome::default()),
        batch(&[heartbeat(1)]),
        u32::MAX.to_be_bytes().to_vec(),
        vec![0x11; 1000],
        raw_frame(FrameKind::Refused as u8, &[0xc1]),
    ];
    let (address, _endpoint, mut through) = impostor(honest.certs.of(9));
    honest.victim.list(&[(2, honest.friend.address), (9, address)]);
    for answer in answers {
        let connection = soon("a dial", through.recv()).await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        read_frame(&mut receive).await.unwrap();
        let _ = send.write_all(&answer).await;
        // A refusal is read to its end, as an honest node would.
        while read_frame(&mut receive).await.is_some() {}
        soon("the end", connection.closed()).await;
        for heard in honest.victim.drain() {
            assert!(matches!(heard, Heard::Refused(9, false, _)), "{heard:?}");
        }
    }
    honest.victim.list(&[(2, honest.friend.address)]);
    // A dial under way may still end in a refusal.
    honest.victim.status().await;
    honest.victim.drain();
    honest.flows().await;
    assert!(!honest.victim.is_connected(9).await);
}

/// The dialler's link is refused at the last step, because the other side holds on to one that this side has lost:
/// it pauses between its attempts, rather than to try as fast as it can.
#[actix::test]
async fn a_link_that_ends_at_once_is_not_dialled_in_a_loop() {
    let mut honest = Honest::new().await;
    let (address, _endpoint, mut through) = impostor(honest.certs.of(9));
    honest.victim.list(&[(2, honest.friend.address), (9, address)]);
    let begun = std::time::Instant::now();
    for _ in 0..6 {
        let connection = soon("a dial", through.recv()).await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        read_frame(&mut receive).await.unwrap();
        write(&mut send, FrameKind::Hello, &hello(9)).await;
        assert!(matches!(read_frame(&mut receive).await, Some((FrameKind::Welcome, _))));
        connection.close(CODE, b"another connection stays");
    }
    // 20, 40, 80, 160 and 320 ms, each at least half.
    assert!(begun.elapsed() > Duration::from_millis(310), "{:?}", begun.elapsed());
    honest.victim.list(&[(2, honest.friend.address)]);
    for _ in 0..6 {
        honest.victim.until("it went", |heard| matches!(heard, Heard::Unreachable(9)).then_some(())).await;
    }
    honest.flows().await;
}

/// Frames of a hundred attackers at once, each with its own certificate.
#[actix::test]
async fn many_attackers_at_once() {
    let mut honest = Honest::new().await;
    let certs = Arc::new(Certs::new());
    let foreign = Adversary::new(&honest.certs, Some(certs.of(5)), 1);
    let mut attempts = Vec::new();
    for _ in 0..100 {
        attempts.push(foreign.dial(honest.victim.address));
    }
    honest.flows().await;
    for attempt in attempts {
        if let Ok(connection) = soon("an end", attempt).await {
            soon("the end", connection.closed()).await;
        }
    }
    honest.flows().await;
}

/// The victim dialled `peer`, and is linked with it.
async fn dialled_by(victim: &mut Node, certs: &Certs, peer: u64) -> (Joined, quinn::Endpoint) {
    let (address, endpoint, mut through) = impostor(certs.of(peer));
    victim.list(&[(peer, address)]);
    let connection = soon("a dial", through.recv()).await.unwrap();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    read_frame(&mut receive).await.unwrap();
    write(&mut send, FrameKind::Hello, &hello(peer)).await;
    assert!(matches!(read_frame(&mut receive).await, Some((FrameKind::Welcome, _))));
    victim.until("it is up", |heard| matches!(heard, Heard::Up(of) if of.id == peer).then_some(())).await;
    (Joined { connection }, endpoint)
}

/// Two dials that crossed: the one of the smaller id stays, whichever came first. Both sides judge alike, so that they
/// never close each other's for ever.
#[actix::test]
async fn of_two_dials_that_crossed_the_smaller_ids_stays() {
    let certs = Certs::new();
    let mut victim = node(&certs, 5);
    // The victim's own, with a larger id: the other's is closed, and the victim's carries.
    let (own, _server) = dialled_by(&mut victim, &certs, 9).await;
    let adversary = Adversary::new(&certs, Some(certs.of(9)), 5);
    let crossing = adversary.join(victim.address, hello(9)).await;
    crossing.is_ended().await;
    let mut lane = own.lane(Lane::Log).await;
    lane.write_all(&batch(&[append(7, 10)])).await.unwrap();
    assert_eq!(victim.messages(9, 1).await[0].term, 7);
    assert!(victim.drain().is_empty());
    // With a smaller id: the victim's own is closed, and the other's carries.
    let (own, _server) = dialled_by(&mut victim, &certs, 3).await;
    let adversary = Adversary::new(&certs, Some(certs.of(3)), 5);
    let crossing = adversary.join(victim.address, hello(3)).await;
    own.is_ended().await;
    let mut lane = crossing.lane(Lane::Log).await;
    lane.write_all(&batch(&[append(8, 10)])).await.unwrap();
    assert_eq!(victim.messages(3, 1).await[0].term, 8);
    assert!(victim.is_connected(3).await);
}

/// The warnings of the transports on one thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

struct Message<'a>(&'a mut Vec<String>);

impl tracing::field::Visit for Message<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.push(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("actorum_transport") && *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Message(&mut self.0.lock().unwrap()));
    }
}

/// A process that is killed while it sends a large frame leaves half of one, and is lost: it has not sent what makes no
/// sense.
#[actix::test]
async fn a_peer_that_dies_within_a_frame_is_not_blamed() {
    let warnings = Warnings::default();
    let _heard = tracing::subscriber::set_default(warnings.clone());
    let mut honest = Honest::with(impatient).await;
    let (crypto, address) = (client_crypto(&honest.certs, Some(honest.certs.of(5))), honest.victim.address);
    // On a thread that stops in the middle, as a process does: nothing that would say so leaves it any more.
    std::thread::spawn(move || {
        actix::System::new().block_on(async move {
            let adversary = Adversary::with(crypto, 1, |_| {});
            let joined = adversary.join(address, hello(5)).await;
            let mut lane = joined.lane(Lane::Log).await;
            let half = [&(64u32 << 20).to_be_bytes()[..], &[frame::VERSION, 5], &[0; 5000]].concat();
            let sent = || joined.connection.stats().udp_tx.bytes;
            let before = sent();
            lane.write_all(&half).await.unwrap();
            eventually("half a frame is on its way", async || sent() > before + 5000).await;
            loop {
                std::thread::park();
            }
        });
    });
    honest.victim.until("it is lost", |heard| matches!(heard, Heard::Unreachable(5)).then_some(())).await;
    let warned = warnings.0.lock().unwrap().clone();
    assert!(!warned.iter().any(|line| line.contains("something invalid")), "{warned:?}");
    honest.flows().await;
}
