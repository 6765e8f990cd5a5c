//! Questions about the files of snapshots: who hears them, what an answer may be, and that no number of them keeps
//! a proposal or the log from getting through.

use actorum_core::wire::{
    AskError, MAX_CAUSE, MAX_PIECE, MessageKind, Refusal, Request, Response, SnapshotFile, SnapshotRequest,
};
use bytes::Bytes;

use crate::support::*;

/// Node 1 serves snapshots like this, node 2 asks; linked.
async fn pair(serve: impl Fn(&SnapshotRequest) -> Option<Response> + 'static) -> (Node, Node) {
    let certs = Certs::new();
    let mut server = node_serving(&certs, identity(1), Questions::Answer, Box::new(serve), |c| c.max_requests = 64);
    let mut asker = node(&certs, 2);
    link(&mut server, &mut asker).await;
    (server, asker)
}

/// The bytes that were asked for.
fn honest(request: &SnapshotRequest) -> Option<Response> {
    Some(match request {
        SnapshotRequest::Read { offset, max, .. } => {
            Response::Piece { offset: *offset, data: Bytes::from(vec![7; *max as usize]) }
        }
        SnapshotRequest::Working { .. } | SnapshotRequest::GaveUp { .. } => Response::Noted,
    })
}

async fn asked(server: &mut Node) -> SnapshotRequest {
    server
        .until("a question about a snapshot", |heard| match heard {
            Heard::AskedForSnapshot(2, request) => Some(request),
            Heard::Asked(_, request) => panic!("{request:?} came to who answers for proposals"),
            _ => None,
        })
        .await
}

#[actix::test]
async fn a_question_about_a_snapshot_goes_to_who_keeps_them() {
    let (mut server, mut asker) = pair(honest).await;
    asker.ask_for(1, 1, Request::Snapshot(piece(5, 100)), DEADLINE);
    assert_eq!(asked(&mut server).await, piece(5, 100));
    assert_eq!(asker.answer(1).await, Ok(Response::Piece { offset: 5, data: Bytes::from(vec![7; 100]) }));
    let gave_up = |cause: String| {
        let file = SnapshotFile { bytes: 5, hash: [1; 32] };
        SnapshotRequest::GaveUp { file, index: 9, cause }
    };
    asker.ask_for(1, 2, Request::Snapshot(gave_up("ä".repeat(MAX_CAUSE + 1))), DEADLINE);
    assert_eq!(asked(&mut server).await, gave_up("ä".repeat(MAX_CAUSE)));
    assert_eq!(asker.answer(2).await, Ok(Response::Noted));
    assert_eq!(asker.ask(1, 3).await, Ok(Response::ReadAt { index: 3 }));
}

/// A piece has a bound, whatever a peer would like to have.
#[actix::test]
async fn nobody_gets_more_than_a_piece() {
    let (mut server, mut asker) = pair(honest).await;
    asker.ask_for(1, 1, Request::Snapshot(piece(0, u32::MAX)), DEADLINE);
    assert_eq!(asked(&mut server).await, piece(0, MAX_PIECE));
    match asker.answer(1).await {
        Ok(Response::Piece { offset: 0, data }) => assert_eq!(data.len(), MAX_PIECE as usize),
        other => panic!("{other:?}"),
    }
}

/// What was not asked for is not handed up, and costs the sender no more than this answer.
#[actix::test]
async fn an_answer_that_was_not_asked_for_is_lost() {
    let (_server, mut asker) = pair(|request| {
        let SnapshotRequest::Read { offset, .. } = request else {
            return Some(Response::Piece { offset: 0, data: Bytes::new() });
        };
        // By its offset: one byte too many, another place, and more than any frame of this kind may hold.
        let (offset, bytes) = [(0, 11), (7, 10), (2, 2 << 20)][*offset as usize];
        Some(Response::Piece { offset, data: Bytes::from(vec![7; bytes]) })
    })
    .await;
    let expected = [
        "the peer sent a piece of 11 bytes where 10 were asked for",
        "the peer sent a piece from byte 7 where 1 was asked for",
        // The sender's own bound.
        "the peer gave no answer",
    ];
    for (offset, expected) in (0..).zip(expected) {
        asker.ask_for(1, offset, Request::Snapshot(piece(offset, 10)), DEADLINE);
        assert_eq!(asker.answer(offset).await, Err(AskError::Lost(expected.to_owned())));
    }
    let file = SnapshotFile { bytes: 5, hash: [1; 32] };
    let gave_up = SnapshotRequest::GaveUp { file, index: 9, cause: String::new() };
    asker.ask_for(1, 8, Request::Snapshot(gave_up), DEADLINE);
    let expected = "the peer sent a piece of a snapshot that was not asked for".to_owned();
    assert_eq!(asker.answer(8).await, Err(AskError::Lost(expected)));
    assert_eq!(asker.ask(1, 9).await, Ok(Response::ReadAt { index: 9 }));
}

/// An asker keeps its own bound, and what is over it waits on its side: the places of other questions stay free.
#[actix::test]
async fn questions_about_snapshots_leave_the_places_of_others_free() {
    let (mut server, mut asker) = pair(|_| None).await;
    for id in 0..100 {
        asker.ask_for(1, 1000 + id, Request::Snapshot(piece(id, 10)), DEADLINE);
    }
    for _ in 0..4 {
        asked(&mut server).await;
    }
    // More questions than there would be places for if the others had one each.
    for id in 0..100 {
        assert_eq!(asker.ask(1, id).await, Ok(Response::ReadAt { index: id }));
    }
    let more = |heard: &Heard| matches!(heard, Heard::AskedForSnapshot(..));
    assert!(!server.drain().iter().any(more), "only four at a time");
    // Each that ends makes room for one that waits.
    server.keeper.send(LetGo).await.unwrap();
    for _ in 0..4 {
        asked(&mut server).await;
    }
}

/// A peer that keeps no bound hears so at once, and has its other places for proposals.
#[actix::test]
async fn a_flood_of_questions_about_snapshots_is_refused() {
    let certs = Certs::new();
    let mut victim = node_serving(&certs, identity(1), Questions::Answer, Box::new(|_| None), |c| c.max_requests = 64);
    let adversary = Adversary::new(&certs, Some(certs.of(5)), 1);
    victim.list(&[(5, local())]);
    let joined = std::rc::Rc::new(adversary.join(victim.address, hello(5)).await);
    let (refused, mut busy) = tokio::sync::mpsc::unbounded_channel();
    let open: Vec<_> = (0..64)
        .map(|offset| {
            let (joined, refused) = (joined.clone(), refused.clone());
            actix_rt::spawn(async move {
                let answer = joined.ask(Request::Snapshot(piece(offset, 10))).await;
                assert_eq!(answer, Some(Response::Refused(Refusal::Busy)));
                refused.send(()).unwrap();
            })
        })
        .collect();
    for _ in 0..64 - 8 {
        soon("the others are refused", busy.recv()).await.unwrap();
    }
    assert_eq!(joined.ask(read_index(3)).await, Some(Response::ReadAt { index: 3 }));
    let heard = victim.drain();
    let handed_up = heard.iter().filter(|heard| matches!(heard, Heard::AskedForSnapshot(..))).count();
    assert_eq!(handed_up, 4, "four are served, four wait");
    open.iter().for_each(actix_rt::task::JoinHandle::abort);
}

/// Pieces that nobody reads take their share of the windows, and the log goes on in the rest.
#[actix::test]
async fn unread_pieces_leave_the_log_its_window() {
    let certs = Certs::new();
    let mut victim = node_serving(&certs, identity(1), Questions::Answer, Box::new(honest), |_| {});
    // As large a window as a node's, and no larger one for a single stream.
    let adversary = Adversary::with(client_crypto(&certs, Some(certs.of(5))), 1, |transport| {
        transport.receive_window((16u32 << 20).into());
        transport.max_concurrent_uni_streams(2u32.into());
    });
    victim.list(&[(5, local())]);
    let joined = adversary.join(victim.address, hello(5)).await;
    let mut unread = Vec::new();
    for offset in 0..64 {
        let (mut send, receive) = soon("a stream", joined.connection.open_bi()).await.unwrap();
        let question = actorum_transport::frame::GroupRequest {
            group: actorum_machine::ids::GroupId::FIRST,
            request: Request::Snapshot(piece(offset, MAX_PIECE)),
        };
        write(&mut send, actorum_transport::frame::FrameKind::Request, &question).await;
        unread.push((send, receive));
    }
    for _ in 0..4 {
        victim.until("a piece is asked for", |heard| matches!(heard, Heard::AskedForSnapshot(..)).then_some(())).await;
    }
    // 8 MiB of log in all: half of the window.
    for term in 1..=8 {
        victim.send(5, vec![append(term, 1 << 20)]);
    }
    let mut heard = 0;
    let mut lanes = Vec::new();
    while heard < 8 {
        let mut lane = soon("a lane", joined.connection.accept_uni()).await.unwrap();
        let (kind, body) = soon("its preface", read_frame(&mut lane)).await.unwrap();
        assert_eq!(kind, actorum_transport::frame::FrameKind::Lane);
        if actorum_transport::frame::decode::<actorum_transport::frame::Lane>(&body).unwrap()
            == actorum_transport::frame::Lane::Log
        {
            while heard < 8 {
                let (_, body) = soon("the log goes on", read_frame(&mut lane)).await.unwrap();
                let batch: actorum_transport::frame::Batch = actorum_transport::frame::decode(&body).unwrap();
                heard += batch.messages.iter().filter(|message| message.kind == MessageKind::Append).count();
            }
        }
        lanes.push(lane);
    }
}

/// Passes datagrams on between a dialler and a node, slowly: what a link does whose bandwidth the transfer would like
/// to have for itself.
struct SlowLink {
    address: std::net::SocketAddr,
    over: std::sync::Arc<std::sync::atomic::AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl SlowLink {
    /// So many bytes a second towards the dialler; the other way as fast as it goes.
    fn to(target: std::net::SocketAddr, rate: u64) -> SlowLink {
        use std::{
            net::UdpSocket,
            sync::{
                Arc, Mutex,
                atomic::{AtomicBool, Ordering::Relaxed},
            },
            time::{Duration, Instant},
        };
        let over = Arc::new(AtomicBool::new(false));
        let front = UdpSocket::bind(local()).unwrap();
        let back = UdpSocket::bind(local()).unwrap();
        back.connect(target).unwrap();
        let address = front.local_addr().unwrap();
        let dialler = Arc::new(Mutex::new(None));
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        }
        let (to_front, to_back) = (front.try_clone().unwrap(), back.try_clone().unwrap());
        let there = std::thread::spawn({
            let (over, dialler) = (over.clone(), dialler.clone());
            move || {
                let mut packet = [0; 65_536];
                while !over.load(Relaxed) {
                    let Ok((length, from)) = front.recv_from(&mut packet) else { continue };
                    *dialler.lock().unwrap() = Some(from);
                    let _ = to_back.send(&packet[..length]);
                }
            }
        });
        let back_again = std::thread::spawn({
            let over = over.clone();
            move || {
                let mut packet = [0; 65_536];
                let mut free = Instant::now();
                while !over.load(Relaxed) {
                    let Ok(length) = back.recv(&mut packet) else { continue };
                    // A queue of 20 ms; what comes beyond is dropped, as a router does.
                    let now = Instant::now();
                    if free > now + Duration::from_millis(20) {
                        continue;
                    }
                    free = free.max(now) + Duration::from_nanos(length as u64 * 1_000_000_000 / rate);
                    if let Some(dialler) = *dialler.lock().unwrap() {
                        let _ = to_front.send_to(&packet[..length], dialler);
                    }
                }
            }
        });
        SlowLink { address, over, threads: vec![there, back_again] }
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.over.store(true, std::sync::atomic::Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// On a link that is full of pieces the log passes by them: what is appended after they were begun arrives before they
/// end.
#[actix::test]
async fn the_log_passes_by_pieces() {
    let certs = Certs::new();
    let mut server = node_serving(&certs, identity(1), Questions::Answer, Box::new(honest), |_| {});
    let mut asker = node(&certs, 2);
    let slow = SlowLink::to(server.address, 8 << 20);
    asker.list(&[(1, slow.address)]);
    asker.connected(1).await;
    server.connected(2).await;
    for id in 0..4 {
        asker.ask_for(1, id, Request::Snapshot(piece(id, MAX_PIECE)), DEADLINE);
    }
    for _ in 0..4 {
        asked(&mut server).await;
    }
    // As much as one of them: with equal priorities it would get a fifth of the link, and come last.
    server.send(2, vec![append(1, 1 << 20)]);
    let mut answers = 0;
    asker
        .until("the append", |heard| match heard {
            Heard::Raft(1, messages) if messages[0].kind == MessageKind::Append => Some(()),
            Heard::Answered(..) => {
                answers += 1;
                None
            }
            _ => None,
        })
        .await;
    assert_eq!(answers, 0, "the log waited for pieces");
    for _ in 0..4 {
        asker.until("the pieces", |heard| matches!(heard, Heard::Answered(_, Ok(_))).then_some(())).await;
    }
}
