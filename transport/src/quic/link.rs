//! One connection with one peer: two lanes each way, and a stream per request.
//!
//! ```text
//!  enqueue ─▶ log queue ────▶ writer task ══ stream, priority 0 ══▶  reader task ─▶ Inbound
//!          ─▶ urgent queue ─▶ writer task ══ stream, priority 1 ══▶  reader task ─▶ Inbound
//!  ask ─────────────────────▶ task ════════ a stream of its own ══▶  task ────────▶ InboundQuestion
//!  ask about a snapshot ─▶ place ─▶ task ══ priority -1 ═══════════▶ place ─▶ task ─▶ InboundQuestion
//! ```
//!
//! A writer takes everything that waits on its lane into one write: batching comes from load. A reader hands a frame to
//! the transport, and reads on only when the transport has taken it. So QUIC's flow control slows the sender down.
//!
//! Questions about snapshots have large answers. These are sent when nothing else waits, and both sides bound the
//! number of such questions separately. The asker waits for one of the [`SNAPSHOT_PLACES`]. The answerer takes as many
//! at a time, each until its answer is acknowledged. As many again may wait for a place, since an asker that has its
//! answer asks the next question before the acknowledgement arrives. Further questions are answered `Busy` at once;
//! only a peer that keeps no bound gets this answer.
//!
//! A lane lives as long as its connection. A side that stops sends what is queued and then ends its lanes. The other
//! side reads them to their end and ends its own lanes. The side that has finished both directions closes the
//! connection. A lane that cannot be written any more closes the connection, since its queue could never be sent.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, VecDeque},
    future::pending,
    rc::Rc,
    time::Duration,
};

use actix::WeakAddr;
use actorum_core::{
    identity::Identity,
    wire::{AskError, MAX_PIECE, RaftMessage, Refusal, Request, Response, SnapshotRequest},
};
use actorum_machine::ids::{GroupId, NodeId};
use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Ended, Inbound, InboundQuestion, Oversized, QuicConfig, QuicTransport, SNAPSHOT_PLACES, handshake::Established,
};
use crate::{
    frame::{self, Batch, FrameKind, GroupRequest, Lane, Splitter},
    message::{Asked, Responder},
};

/// Longer than any answer is waited for.
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// The most bytes of messages that one write takes from a lane.
const WRITE_BYTES: usize = 1 << 20;

/// A buffer that one large frame made larger than this is given back.
const KEPT_BUFFER: usize = 4 << 20;

/// The most bytes of a stream that are taken at a time.
const READ_BYTES: usize = 1 << 20;

/// The largest answer to a question about a snapshot: a piece or an error text, and the names around it.
pub(super) const PIECE_FRAME: usize = MAX_PIECE as usize + 4096;

/// What a stream waits for before it may send: nothing, or that all others have sent.
fn priority(request: &Request) -> i32 {
    match request {
        Request::Snapshot(_) => -1,
        Request::Propose { .. }
        | Request::ReadIndex { .. }
        | Request::Change { .. }
        | Request::Formation(_)
        | Request::Clock
        | Request::Activate
        | Request::Marks { .. } => 0,
    }
}

/// Bytes moved by all links of a transport.
#[derive(Default)]
pub(super) struct Counters {
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
    /// The largest write on a lane.
    pub largest: Cell<u64>,
}

impl Counters {
    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    pub(super) fn add_received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }
}

/// What waits on one lane.
struct Queue {
    messages: RefCell<VecDeque<(GroupId, RaftMessage)>>,
    bytes: Cell<usize>,
    filled: Notify,
}

impl Queue {
    fn new() -> Rc<Queue> {
        Rc::new(Queue { messages: RefCell::default(), bytes: Cell::new(0), filled: Notify::new() })
    }

    /// Adds one; calls `gone` with the group of each old one that was dropped for it.
    fn push(&self, group: GroupId, message: RaftMessage, bound: usize, mut gone: impl FnMut(GroupId)) {
        let mut messages = self.messages.borrow_mut();
        let mut bytes = self.bytes.get() + message.size();
        while bytes > bound
            && let Some((of, oldest)) = messages.pop_front()
        {
            bytes -= oldest.size();
            gone(of);
        }
        self.bytes.set(bytes);
        messages.push_back((group, message));
    }

    /// Takes what one write should carry: messages of one group, in order, that fit one frame together.
    fn take(&self, max_frame: usize) -> Option<(GroupId, Vec<RaftMessage>)> {
        let mut messages = self.messages.borrow_mut();
        let group = messages.front()?.0;
        let (mut taken, mut bytes, mut encoded) = (Vec::new(), 0, frame::BATCH_FRAMING);
        while bytes < WRITE_BYTES && taken.len() < frame::MAX_MESSAGES {
            let fits = |message: &RaftMessage| encoded + message.encoded_bound() <= max_frame;
            match messages.pop_front_if(|(of, next)| *of == group && (taken.is_empty() || fits(next))) {
                Some((_, message)) => {
                    bytes += message.size();
                    encoded += message.encoded_bound();
                    taken.push(message);
                }
                None => break,
            }
        }
        self.bytes.set(self.bytes.get() - bytes);
        Some((group, taken))
    }
}

/// How far the lanes of a link have come.
struct Lanes {
    /// Which of the peer's have begun: each does once.
    begun: RefCell<BTreeSet<Lane>>,
    /// The peer's that were not read to their end yet.
    unread: Cell<u8>,
    /// Ours that the peer has not acknowledged to their end yet.
    unwritten: Cell<u8>,
    /// Whether ours end once nothing waits.
    ending: Cell<bool>,
}

/// A connection in use. Clones are the same link.
#[derive(Clone)]
pub(super) struct Link {
    pub generation: u64,
    pub dialled: bool,
    pub identity: Identity,
    connection: Connection,
    log: Rc<Queue>,
    urgent: Rc<Queue>,
    lanes: Rc<Lanes>,
    queue_bytes: usize,
    /// Places of our questions about the peer's snapshots.
    asking: Rc<Semaphore>,
}

impl Link {
    /// Queues a message; calls `gone` with the group of each older one that was dropped for it.
    pub(super) fn enqueue(&self, group: GroupId, message: RaftMessage, gone: impl FnMut(GroupId)) {
        let queue = if message.kind.is_urgent() { &self.urgent } else { &self.log };
        queue.push(group, message, self.queue_bytes, gone);
    }

    /// Lets the writers begin.
    pub(super) fn wake(&self) {
        self.urgent.filled.notify_one();
        self.log.filled.notify_one();
    }

    /// Ends the lanes once what waits on them is sent.
    fn end_lanes(&self) {
        self.lanes.ending.set(true);
        self.wake();
    }

    /// Lets what is queued arrive, and the peer close; at the end of that time this side does.
    pub(super) async fn farewell(self, within: Duration, reason: &[u8]) {
        self.end_lanes();
        let _ = timeout(within, self.connection.closed()).await;
        self.close(reason);
    }

    /// Ends the connection; the reason is for the other side's log.
    pub(super) fn close(&self, reason: &[u8]) {
        self.connection.close(VarInt::from_u32(0), reason);
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    pub(super) fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    pub(super) fn queued(&self) -> usize {
        self.log.messages.borrow().len() + self.urgent.messages.borrow().len()
    }
}

/// Starts the tasks of a connection whose hello is done.
pub(super) fn begin(
    generation: u64,
    established: Established,
    transport: WeakAddr<QuicTransport>,
    config: Rc<QuicConfig>,
    counters: Rc<Counters>,
) -> Link {
    let Established { identity, connection, dialled, .. } = established;
    // The peer gets more streams only now: before its hello it has one.
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(2));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(config.max_requests));
    let lanes = Rc::new(Lanes {
        begun: RefCell::default(),
        unread: Cell::new(2),
        unwritten: Cell::new(2),
        ending: Cell::new(false),
    });
    let queue_bytes = config.queue_bytes;
    let (log, urgent) = (Queue::new(), Queue::new());
    let asking = Rc::new(Semaphore::new(SNAPSHOT_PLACES));
    let link = Link { generation, dialled, identity, connection, log, urgent, lanes, queue_bytes, asking };
    let (peer, connection) = (link.identity.id, link.connection.clone());
    let answering = Rc::new(Answering { open: Cell::new(0), places: Semaphore::new(SNAPSHOT_PLACES) });
    let tasks = ConnectionTasks { connection, link: link.clone(), transport, config, counters, peer, answering };
    for (lane, queue) in [(Lane::Log, link.log.clone()), (Lane::Urgent, link.urgent.clone())] {
        actix_rt::spawn(tasks.clone().write_lane(lane, queue));
    }
    actix_rt::spawn(tasks.clone().accept_lanes());
    actix_rt::spawn(tasks.clone().accept_questions());
    actix_rt::spawn(tasks.watch_end());
    link
}

/// What every task of a link needs. Each ends with the connection, whoever ends that.
#[derive(Clone)]
struct ConnectionTasks {
    connection: Connection,
    link: Link,
    transport: WeakAddr<QuicTransport>,
    config: Rc<QuicConfig>,
    counters: Rc<Counters>,
    peer: u64,
    answering: Rc<Answering>,
}

/// The peer's questions about our snapshots.
struct Answering {
    /// Those that have a place or wait for one.
    open: Cell<usize>,
    places: Semaphore,
}

impl Answering {
    /// Counts one question until the guard goes; `None` over the bound.
    fn enter(self: &Rc<Self>) -> Option<Entered> {
        let open = self.open.get();
        (open < 2 * SNAPSHOT_PLACES).then(|| {
            self.open.set(open + 1);
            Entered(self.clone())
        })
    }
}

/// A question that [`Answering`] counts.
struct Entered(Rc<Answering>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

impl ConnectionTasks {
    /// A peer that breaks the protocol loses its connection; the reason goes to both logs.
    fn give_up(&self, cause: &str) {
        tracing::warn!(peer = self.peer, "node {} sent something invalid: {cause}", self.peer);
        self.connection.close(VarInt::from_u32(2), cause.as_bytes());
    }

    async fn watch_end(self) {
        let ended = self.connection.closed().await;
        let lanes = &self.link.lanes;
        let orderly = match &ended {
            // Both directions are complete, so the side that closes the connection now did not break it.
            ConnectionError::LocallyClosed => lanes.unread.get() == 0 && lanes.unwritten.get() == 0,
            ConnectionError::ApplicationClosed(close) => close.error_code == VarInt::from_u32(0),
            _ => false,
        };
        let cause = if orderly { "the node stopped".to_owned() } else { ended.to_string() };
        if let Some(transport) = self.transport.upgrade() {
            transport.do_send(Ended { peer: self.peer, generation: self.link.generation, cause, orderly });
        }
    }

    async fn write_lane(self, lane: Lane, queue: Rc<Queue>) {
        if let Err(cause) = self.write_to_end(lane, queue).await {
            // Nothing, if that was why.
            self.connection.close(VarInt::from_u32(2), cause.as_bytes());
            return;
        }
        let lanes = &self.link.lanes;
        lanes.unwritten.set(lanes.unwritten.get() - 1);
        self.close_if_through();
    }

    /// Both directions are complete.
    fn close_if_through(&self) {
        if self.link.lanes.unread.get() == 0 && self.link.lanes.unwritten.get() == 0 {
            self.link.close(b"the node stopped");
        }
    }

    async fn write_to_end(&self, lane: Lane, queue: Rc<Queue>) -> Result<(), String> {
        let mut send = self.connection.open_uni().await.map_err(|e| e.to_string())?;
        let _ = send.set_priority(if lane == Lane::Urgent { 1 } else { 0 });
        let mut bytes = Vec::new();
        frame::encode(FrameKind::Lane, &lane, frame::SMALL, &mut bytes).map_err(|e| e.to_string())?;
        loop {
            // The first turn carries the preface alone: a stream is invisible until something was written.
            if !bytes.is_empty() {
                self.counters.add_sent(bytes.len());
                self.counters.largest.set(self.counters.largest.get().max(bytes.len() as u64));
                send.write_all(&bytes).await.map_err(|e| e.to_string())?;
                bytes.clear();
                bytes.shrink_to(KEPT_BUFFER);
            }
            match queue.take(self.config.max_frame) {
                Some((group, messages)) => {
                    let count = frame::encode_messages(group, &messages, self.config.max_frame, &mut bytes);
                    if count > 0
                        && let Some(transport) = self.transport.upgrade()
                    {
                        transport.do_send(Oversized { peer: self.peer, group, count });
                    }
                }
                None if self.link.lanes.ending.get() => {
                    send.finish().map_err(|e| e.to_string())?;
                    // Until the peer has acknowledged it all: a close discards what is still on its way.
                    let stopped = send.stopped().await.map_err(|e| e.to_string())?;
                    return stopped.map_or(Ok(()), |code| Err(format!("the peer stopped a lane ({code})")));
                }
                None => tokio::select! {
                    biased;
                    () = queue.filled.notified() => {}
                    // The peer takes no more of it, or the connection ended.
                    _ = send.stopped() => return Err("the peer stopped a lane".to_owned()),
                },
            }
        }
    }

    async fn accept_lanes(self) {
        while let Ok(receive) = self.connection.accept_uni().await {
            actix_rt::spawn(self.clone().read_lane(receive));
        }
    }

    async fn read_lane(self, mut receive: RecvStream) {
        match self.read_to_end(&mut receive).await {
            Ok(true) => {
                let lanes = &self.link.lanes;
                lanes.unread.set(lanes.unread.get() - 1);
                if lanes.unread.get() == 0 {
                    // The peer stops: it gets what is queued for it, and no more.
                    self.link.end_lanes();
                    self.close_if_through();
                    let _ = timeout(self.config.idle_timeout, self.connection.closed()).await;
                    self.link.close(b"the peer ended its lanes");
                }
            }
            Ok(false) => {}
            Err(cause) => self.give_up(&cause),
        }
    }

    /// Whether it ended in order; an error if it makes no sense.
    async fn read_to_end(&self, receive: &mut RecvStream) -> Result<bool, String> {
        let mut splitter = Splitter::new(frame::SMALL);
        let mut begun = false;
        loop {
            while let Some((kind, body)) = splitter.next_frame().map_err(|e| e.to_string())? {
                match (begun, kind) {
                    (false, FrameKind::Lane) => {
                        let lane = frame::decode::<Lane>(&body).map_err(|e| e.to_string())?;
                        // Two of a kind have no order between them.
                        if !self.link.lanes.begun.borrow_mut().insert(lane) {
                            return Err(format!("a second {lane:?} lane"));
                        }
                        begun = true;
                        splitter = splitter.with_max(self.config.max_frame);
                    }
                    (true, FrameKind::Raft) => {
                        let Batch { group, messages } = frame::decode(&body).map_err(|e| e.to_string())?;
                        let Some(transport) = self.transport.upgrade() else { return Ok(false) };
                        let (from, generation) = (self.peer, self.link.generation);
                        if transport.send(Inbound { from, generation, group, messages }).await.is_err() {
                            return Ok(false);
                        }
                    }
                    (_, other) => return Err(format!("a {other:?} frame on a lane")),
                }
            }
            // Half a frame came, and then nothing: its bytes must not be held for ever. The connection of a peer that
            // is gone ends by the idle timeout, so only a peer that lives is blamed here.
            let silence = async {
                match splitter.is_partial() {
                    true => tokio::time::sleep(2 * self.config.idle_timeout).await,
                    false => pending().await,
                }
            };
            let read = tokio::select! {
                biased;
                read = receive.read_chunk(READ_BYTES, true) => read,
                () = silence => return Err("half a frame, and no more of it in time".to_owned()),
            };
            match read {
                Ok(Some(chunk)) => {
                    self.counters.add_received(chunk.bytes.len());
                    splitter.push(&chunk.bytes);
                }
                Ok(None) if !begun || splitter.is_partial() => return Err("a lane ended inside a frame".to_owned()),
                Ok(None) => return Ok(true),
                Err(ReadError::Reset(code)) => return Err(format!("a lane was reset ({code})")),
                // The connection ended.
                Err(_) => return Ok(false),
            }
        }
    }

    async fn accept_questions(self) {
        // All questions on their way together may claim as many bytes as one frame. Beyond that, the next question
        // waits after its first bytes until an earlier one is complete or has timed out, and QUIC makes the peer wait.
        let unfinished = Rc::new(Semaphore::new(self.config.max_frame + 4));
        while let Ok((mut send, receive)) = self.connection.accept_bi().await {
            let (tasks, unfinished) = (self.clone(), unfinished.clone());
            actix_rt::spawn(async move {
                // Half a question came, and then nothing: it must not hold its place for ever.
                let within = tasks.config.handshake_timeout;
                match timeout(
                    within,
                    read_frame(receive, FrameKind::Request, tasks.config.max_frame, &tasks.counters, Some(&unfinished)),
                )
                .await
                {
                    Ok(Ok(body)) => match frame::decode::<GroupRequest>(&body) {
                        Ok(GroupRequest { group, request }) => {
                            let _ = send.set_priority(priority(&request));
                            match request {
                                Request::Snapshot(_) => tasks.answer_about_snapshot(group, request, send).await,
                                _ => drop(tasks.answer(group, request, tasks.config.max_frame, &mut send).await),
                            }
                        }
                        Err(error) => tasks.give_up(&error.to_string()),
                    },
                    Ok(Err(ReadFrame::Gone)) | Err(_) => {}
                    Ok(Err(ReadFrame::Nonsense(cause))) => tasks.give_up(&cause),
                }
            });
        }
    }

    /// The same for what is bulk, within bounds of its own.
    async fn answer_about_snapshot(&self, group: GroupId, request: Request, mut send: SendStream) {
        let Some(entered) = self.answering.enter() else {
            let busy = Response::Refused(Refusal::Busy);
            self.write_answer(Some(busy), PIECE_FRAME, &mut send).await;
            return;
        };
        let place = tokio::select! {
            biased;
            place = entered.0.places.acquire() => place,
            // The asker no longer waits for the answer, or its connection has ended.
            _ = send.stopped() => return,
        };
        if self.answer(group, request.bounded(), PIECE_FRAME, &mut send).await {
            // Written bytes count in the windows until they are acknowledged, and the place is held as long.
            let _ = send.stopped().await;
        }
        drop(place);
    }

    /// Asks the actor above. Without an answer the stream is reset, which tells the asker that the answer is lost. True
    /// if a whole answer is on its way.
    async fn answer(&self, group: GroupId, request: Request, max: usize, send: &mut SendStream) -> bool {
        let Some(transport) = self.transport.upgrade() else { return false };
        let (responder, answered) = Responder::new();
        let asked = Asked { group, from: self.peer, request, responder };
        let inbound = InboundQuestion { generation: self.link.generation, asked };
        if transport.send(inbound).await.is_err() {
            return false;
        }
        drop(transport);
        let response = tokio::select! {
            biased;
            response = answered => response.ok(),
            // The asker has given up, or its connection has ended: the answer is dropped, and the place is free again.
            _ = send.stopped() => None,
        };
        self.write_answer(response, max, send).await
    }

    async fn write_answer(&self, response: Option<Response>, max: usize, send: &mut SendStream) -> bool {
        let mut bytes = Vec::new();
        let response = response.map(|response| frame::answer_within(response, max));
        match response.map(|response| frame::encode(FrameKind::Response, &response, max, &mut bytes)) {
            Some(Ok(())) => {
                self.counters.add_sent(bytes.len());
                send.write_all(&bytes).await.is_ok() && send.finish().is_ok()
            }
            Some(Err(_)) | None => {
                let _ = send.reset(VarInt::from_u32(0));
                false
            }
        }
    }
}

/// Why a single-frame stream gave no frame.
enum ReadFrame {
    /// The stream or the connection ended.
    Gone,
    /// The bytes are not such a frame.
    Nonsense(String),
}

/// The one frame of half a two-way stream. Its announced length is taken from `room` before more of it is read. So, of
/// interleaved frames, those that have begun can always end.
async fn read_frame(
    mut receive: RecvStream,
    expected: FrameKind,
    max: usize,
    counters: &Counters,
    room: Option<&Semaphore>,
) -> Result<Bytes, ReadFrame> {
    let mut splitter = Splitter::new(max);
    let mut taken = None;
    loop {
        match splitter.next_frame().map_err(|e| ReadFrame::Nonsense(e.to_string()))? {
            Some((kind, body)) if kind == expected => return Ok(body.freeze()),
            Some((kind, _)) => {
                return Err(ReadFrame::Nonsense(format!("a {kind:?} frame came where {expected:?} was expected")));
            }
            None => {}
        }
        if let (None, Some(room), Some(claim)) = (&taken, room, splitter.claim()) {
            taken = Some(room.acquire_many(claim).await.map_err(|_| ReadFrame::Gone)?);
        }
        let chunk = receive.read_chunk(READ_BYTES, true).await.map_err(|_| ReadFrame::Gone)?;
        let chunk = chunk.ok_or(ReadFrame::Gone)?;
        counters.add_received(chunk.bytes.len());
        splitter.push(&chunk.bytes);
    }
}

/// What an answer may be.
struct Expected {
    /// The largest frame.
    max: usize,
    /// From which byte of a snapshot's file, and how many at the most.
    piece: Option<(u64, u32)>,
}

impl Expected {
    fn of(request: &Request, config: &QuicConfig) -> Expected {
        match request {
            Request::Snapshot(SnapshotRequest::Read { offset, max, .. }) => {
                Expected { max: PIECE_FRAME, piece: Some((*offset, (*max).min(MAX_PIECE))) }
            }
            Request::Snapshot(SnapshotRequest::Working { .. } | SnapshotRequest::GaveUp { .. }) => {
                Expected { max: PIECE_FRAME, piece: None }
            }
            _ => Expected { max: config.max_frame, piece: None },
        }
    }

    /// Whether a piece is one that was asked for.
    fn judge(&self, response: Response) -> Result<Response, String> {
        let Response::Piece { offset, data } = &response else { return Ok(response) };
        match self.piece {
            None => Err("the peer sent a piece of a snapshot that was not asked for".to_owned()),
            Some((from, _)) if from != *offset => {
                Err(format!("the peer sent a piece from byte {offset} where {from} was asked for"))
            }
            Some((_, max)) if data.len() > max as usize => {
                Err(format!("the peer sent a piece of {} bytes where {max} were asked for", data.len()))
            }
            Some(_) => Ok(response),
        }
    }
}

/// The peer's version does not know this question.
fn not_understood(peer: NodeId) -> AskError {
    AskError::NotSent(format!("node {peer} runs a version that does not know this question"))
}

/// Asks a peer, over the present link or one that comes up in time.
pub(super) async fn ask(
    mut up: watch::Receiver<Option<Link>>,
    group: GroupId,
    request: Request,
    within: Duration,
    config: &QuicConfig,
    counters: &Counters,
) -> Result<Response, AskError> {
    let not_sent = |cause: &str| AskError::NotSent(cause.to_owned());
    // A deadline may be "never"; a moment that far off cannot be computed.
    let until = Instant::now() + within.min(FOREVER);
    let connect_until = until.min(Instant::now() + config.connect_timeout);
    let link = match timeout_at(connect_until, up.wait_for(Option::is_some)).await {
        Ok(Ok(link)) => link.as_ref().map(|link| match link.identity.features.meet(request.needs()) {
            true => Ok((link.connection.clone(), link.asking.clone())),
            false => Err(not_understood(link.identity.id)),
        }),
        Ok(Err(_)) => return Err(not_sent("the transport has stopped")),
        Err(_) => return Err(not_sent("there is no connection")),
    };
    let (connection, asking) = link.ok_or_else(|| not_sent("there is no connection"))??;
    let (priority, expected) = (priority(&request), Expected::of(&request, config));
    let _place = match &request {
        Request::Snapshot(_) => Some(
            timeout_at(until, asking.acquire())
                .await
                .map_err(|_| not_sent("too many questions about its snapshots are open"))?,
        ),
        Request::Propose { .. }
        | Request::ReadIndex { .. }
        | Request::Change { .. }
        | Request::Formation(_)
        | Request::Clock
        | Request::Activate
        | Request::Marks { .. } => None,
    };
    let mut bytes = Vec::new();
    let question = GroupRequest { group, request };
    frame::encode(FrameKind::Request, &question, config.max_frame, &mut bytes).map_err(|e| not_sent(&e.to_string()))?;
    let (mut send, receive) = match timeout_at(until, connection.open_bi()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return Err(not_sent(&error.to_string())),
        Err(_) => return Err(not_sent("too many questions are open")),
    };
    let _ = send.set_priority(priority);
    // From here on QUIC has the bytes: without an answer it is not known whether they arrived.
    let lost = |cause: &str| AskError::Lost(cause.to_owned());
    let asked = async {
        counters.add_sent(bytes.len());
        send.write_all(&bytes).await.map_err(|e| lost(&e.to_string()))?;
        send.finish().map_err(|e| lost(&e.to_string()))?;
        match read_frame(receive, FrameKind::Response, expected.max, counters, None).await {
            Ok(body) => {
                let response = frame::decode::<Response>(&body).map_err(|e| lost(&e.to_string()))?;
                expected.judge(response).map_err(|cause| lost(&cause))
            }
            Err(ReadFrame::Gone) => Err(lost("the peer gave no answer")),
            Err(ReadFrame::Nonsense(cause)) => Err(lost(&cause)),
        }
    };
    timeout_at(until, asked).await.unwrap_or_else(|_| Err(lost("the time is up")))
}

#[cfg(test)]
mod tests {
    use actorum_core::wire::SnapshotFile;

    use super::*;

    #[test]
    fn snapshots_go_below_everything_else() {
        let file = SnapshotFile { bytes: 1, hash: [0; 32] };
        let read = Request::Snapshot(SnapshotRequest::Read { file, index: 1, offset: 0, max: 1 });
        let gave_up = Request::Snapshot(SnapshotRequest::GaveUp { file, index: 1, cause: String::new() });
        assert_eq!(
            [priority(&read), priority(&gave_up), priority(&Request::ReadIndex { remaining_ms: 1 })],
            [-1, -1, 0]
        );
    }
}
