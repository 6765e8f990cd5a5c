//! Peers over QUIC: one authenticated connection per pair, and what travels on it.
//!
//! ```text
//!            ┌ dial (one task per listed peer, with backoff) ┐
//!  endpoint ─┤                                               ├─ handshake ─▶ Link ─┬─ log lane      ordered
//!            └ accept (through the gate) ────────────────────┘   hello, judged     ├─ urgent lane   higher priority
//!                                                                                  └─ requests      a stream each;
//!                                                                                     a snapshot's: lower priority
//! ```
//!
//! Each side dials the peers that it is told of. Another peer may dial it, and is answered over the same connection. Of
//! two connections between the same two nodes one is closed, by a rule that both sides share: a later boot wins over an
//! earlier one; otherwise the connection that the smaller id dialled stays; otherwise the one dialled later. Every
//! incoming message carries the generation of its link, and messages of an older link are dropped.
//!
//! Queues, all owned by this actor or its tasks: one for each peer and lane, where at the byte bound the oldest message
//! is dropped and the core gets `Unreachable`; handshakes, see `gate.rs`; a peer's open requests, where at the bound
//! QUIC makes the peer wait (only four may be about snapshots); and one frame for each lane, since readers send a frame
//! to this actor and wait for it.
//!
//! Deliberately absent: anything about Raft beyond which lane a message belongs on.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix::{fut, prelude::*};
use actix_rt::task::JoinHandle;
use actorum_core::{
    features::Features,
    identity::{Identity, RefusedBecause},
    lives::{FLUSH_EVERY, LifeBook, LifeKey},
    wire::{AskError, RaftMessage},
};
use actorum_machine::ids::{GroupId, Incarnation, NodeId};
use quinn::{Endpoint, EndpointConfig, TokioRuntime, TransportConfig, VarInt};
use tokio::{sync::watch, time::Instant};

use crate::{
    frame::Hello,
    hello::{FORMATS, PROTOCOL, PeerPolicy},
    message::{
        Answered, Ask, Asked, Attach, AttachNode, Close, GetTransportStatus, PeerRefused, PeerStatus, Received,
        SetCluster, SetPeers, Transmit, TransportHandle, TransportStatus,
    },
    routes::Routes,
    tls::TlsIdentity,
};

mod gate;
mod handshake;
mod link;
mod dial;

use gate::{Gate, Limits};
use handshake::{CheckHello, Established, HelloChecked};
use link::{Counters, Link, PIECE_FRAME};

/// The bytes that one connection may hold unread, over all its streams.
const RECEIVE_WINDOW: u32 = 16 << 20;

/// The bytes that one connection may have written and unacknowledged, over all its streams.
const SEND_WINDOW: u64 = 16 << 20;

/// How many questions about a snapshot's file one side of a link may have open at a time; more wait at the asker for
/// their turn. They take no more than so many of its [`max_requests`](QuicConfig::max_requests).
///
/// QUIC counts written bytes of a stream in both windows at once, even while the stream's low priority delays them. So
/// this number, times the largest answer, is what a transfer takes of the windows; the rest is left for the log.
const SNAPSHOT_PLACES: usize = 4;

// Answers about snapshots take less than a third of a connection's windows; the rest is left for the log.
const _: () = assert!(3 * SNAPSHOT_PLACES * PIECE_FRAME < RECEIVE_WINDOW as usize);
const _: () = assert!(3 * SNAPSHOT_PLACES * PIECE_FRAME < SEND_WINDOW as usize);

/// How long a transport that closes waits for its peers to have taken what was queued.
const FAREWELL: Duration = Duration::from_secs(1);

/// The longest text from a peer that is put into the log or the status, in characters.
const PEER_TEXT: usize = 400;

/// What a QUIC transport needs, and its bounds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QuicConfig {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Who this node is.
    pub identity: Identity,
    /// Where its store keeps the lives of directories; `None` shows none.
    pub lives: Option<Arc<LifeBook>>,
    /// Its certificate and key.
    pub tls: TlsIdentity,
    /// Bytes that may wait for one peer on one lane. At the bound the oldest goes. Default 64 MiB.
    pub queue_bytes: usize,
    /// The largest frame, in bytes; a larger one ends the connection that brought it. Default 64 MiB.
    pub max_frame: usize,
    /// Requests that one peer may have open here at a time. Default 4096.
    pub max_requests: u32,
    /// Handshakes of strangers that may be in progress at a time. More are refused. Default 64. The addresses of peers
    /// have places of their own, beside these: [`max_handshakes_per_address`](Self::max_handshakes_per_address) each.
    pub max_handshakes: usize,
    /// Handshakes in progress from one IP address (IPv6: one /64). Default 16.
    pub max_handshakes_per_address: usize,
    /// Handshakes of strangers that may begin per second, and twice as many at once; what comes beyond is not
    /// answered. Default 200, which costs about a twentieth of a core. The addresses of peers have their own.
    pub handshake_rate: u32,
    /// Handshakes that may begin per second from one IP address (IPv6: one /64), and twice as many at once. Default 50.
    pub handshake_rate_per_address: u32,
    /// How long a handshake and the hello may take, together. Default 3 s.
    pub handshake_timeout: Duration,
    /// How long a connection may be silent before it counts as lost. Default 3 s.
    pub idle_timeout: Duration,
    /// How often a silent connection sends a packet to show that it lives. Default 500 ms.
    pub keep_alive: Duration,
    /// The first pause before dialling again. Default 20 ms; doubles up to [`max_backoff`](Self::max_backoff), with
    /// jitter.
    pub min_backoff: Duration,
    /// The longest such pause. Default 1 s.
    pub max_backoff: Duration,
    /// How long a question waits for a connection that is being made. Default 300 ms.
    pub connect_timeout: Duration,
    /// What to ask of the system for socket buffers, in bytes; it may give less. Default 4 MiB.
    pub socket_buffer: usize,
    /// Whether the system may cut large sends into packets (GSO). Default true; it fails on some machines.
    pub segmentation_offload: bool,
    /// The seed of the jitter of backoffs.
    pub seed: u64,
}

impl QuicConfig {
    /// The defaults.
    pub fn new(listen: SocketAddr, identity: Identity, tls: TlsIdentity) -> QuicConfig {
        QuicConfig {
            listen,
            identity,
            lives: None,
            tls,
            queue_bytes: 64 << 20,
            max_frame: 64 << 20,
            max_requests: 4096,
            max_handshakes: 64,
            max_handshakes_per_address: 16,
            handshake_rate: 200,
            handshake_rate_per_address: 50,
            handshake_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_millis(500),
            min_backoff: Duration::from_millis(20),
            max_backoff: Duration::from_secs(1),
            connect_timeout: Duration::from_millis(300),
            socket_buffer: 4 << 20,
            segmentation_offload: true,
            seed: 0,
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            places: self.max_handshakes,
            places_per_address: self.max_handshakes_per_address,
            rate: self.handshake_rate,
            rate_per_address: self.handshake_rate_per_address,
        }
    }

    fn transport(&self) -> Arc<TransportConfig> {
        let mut transport = TransportConfig::default();
        let idle = self.idle_timeout.try_into().unwrap_or_else(|_| VarInt::from_u32(3000).into());
        transport.max_idle_timeout(Some(idle));
        transport.keep_alive_interval(Some(self.keep_alive));
        // With the default of 333 ms, a lost first packet would be sent again only after that time.
        transport.initial_rtt(Duration::from_millis(50));
        // One stream for the hello; the link raises both. A peer's unread bytes are bounded in all, not only by stream.
        transport.max_concurrent_uni_streams(VarInt::from_u32(0));
        transport.max_concurrent_bidi_streams(VarInt::from_u32(1));
        transport.receive_window(VarInt::from_u32(RECEIVE_WINDOW));
        transport.send_window(SEND_WINDOW);
        transport.datagram_receive_buffer_size(None);
        transport.enable_segmentation_offload(self.segmentation_offload);
        Arc::new(transport)
    }
}

/// Why a transport could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address cannot be listened on.
    #[error("{address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        error: io::Error,
    },
    /// The certificate or key cannot be used.
    #[error("the certificate or key cannot be used: {0}")]
    Tls(String),
}

/// The QUIC transport of one node.
pub struct QuicTransport {
    config: Rc<QuicConfig>,
    endpoint: Endpoint,
    policy: PeerPolicy,
    routes: Routes,
    peers: BTreeMap<NodeId, PeerState>,
    accepting: Option<JoinHandle<()>>,
    gate: Rc<RefCell<Gate>>,
    counters: Rc<Counters>,
    generations: u64,
    dials: u64,
    /// When acknowledged indexes were recorded last.
    flushed: Instant,
}

impl fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicTransport")
            .field("id", &self.policy.own().id)
            .field("listen", &self.config.listen)
            .field("peers", &self.peers.keys())
            .finish_non_exhaustive()
    }
}

/// What is known of one peer.
struct PeerState {
    link: Option<Link>,
    /// The link, for those who wait for one.
    up: watch::Sender<Option<Link>>,
    dialling: Option<JoinHandle<()>>,
    last_error: Option<String>,
    /// The last refusals, by the peer and of the peer, so that each is told once. Both may last at the same
    /// time, as between two clusters.
    refused: BTreeMap<bool, String>,
    /// The newest dial of the peer that was accepted, with the life that made it.
    latest: Option<(Incarnation, u64, u64)>,
    dropped: u64,
}

impl PeerState {
    fn new() -> PeerState {
        PeerState {
            link: None,
            up: watch::Sender::new(None),
            dialling: None,
            last_error: None,
            refused: BTreeMap::new(),
            latest: None,
            dropped: 0,
        }
    }
}

impl QuicTransport {
    /// Binds the socket and starts the actor on the current arbiter. Gives its addresses, and the address it listens
    /// on.
    pub fn start(config: QuicConfig) -> Result<(TransportHandle, SocketAddr), TransportError> {
        let tls = |error: String| TransportError::Tls(error);
        let crypto = config.tls.server_config().map_err(|e| tls(e.to_string()))?;
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(crypto).map_err(|e| tls(e.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(config.transport());
        // Connections that wait to be accepted: each is taken at once, or refused by our own bound.
        server.max_incoming(4 * config.max_handshakes.max(16));
        server.incoming_buffer_size(64 << 10).incoming_buffer_size_total(4 << 20);
        let listen = |error| TransportError::Listen { address: config.listen, error };
        let socket = bind(config.listen, config.socket_buffer).map_err(listen)?;
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.map_err(listen)?;
        let address = endpoint.local_addr().map_err(listen)?;
        let transport = QuicTransport {
            policy: PeerPolicy::new(config.identity.clone(), config.lives.clone()),
            gate: Rc::new(RefCell::new(Gate::new(config.limits(), Instant::now()))),
            config: Rc::new(config),
            endpoint,
            routes: Routes::default(),
            peers: BTreeMap::new(),
            accepting: None,
            counters: Rc::default(),
            generations: 0,
            dials: 0,
            flushed: Instant::now(),
        };
        let addr = Actor::start(transport);
        let handle = TransportHandle {
            transmit: addr.clone().recipient(),
            ask: addr.clone().recipient(),
            set_peers: addr.clone().recipient(),
            set_cluster: addr.clone().recipient(),
            status: addr.clone().recipient(),
            attach: addr.clone().recipient(),
            attach_node: addr.clone().recipient(),
            close: addr.recipient(),
        };
        Ok((handle, address))
    }

    fn peer(&mut self, id: NodeId) -> &mut PeerState {
        self.peers.entry(id).or_insert_with(PeerState::new)
    }

    fn hello(&self, dial: u64, to: NodeId) -> Hello {
        let own = self.policy.own();
        Hello {
            protocol: PROTOCOL,
            formats: FORMATS.to_vec(),
            cluster: own.cluster,
            node: own.id,
            incarnation: own.incarnation,
            boot: own.boot,
            dial,
            features: own.features.clone(),
            machine_version: own.machine_version,
            lives: own.lives.to_vec(),
            recorded: self.policy.book().record_of(to).map(|record| record.life.key()),
        }
    }

    /// Remembers a refusal, and reports it in the log and to the actor above, once for each change of reason.
    fn refused(&mut self, id: NodeId, by_peer: bool, text: String, reason: Option<RefusedBecause>) {
        let told = reason.is_some() && self.routes.is_open();
        let peer = self.peer(id);
        let text = readable(&text);
        peer.last_error = Some(text.clone());
        if peer.refused.get(&by_peer) == Some(&text) {
            return;
        }
        if by_peer && told {
            // The receiver of the report logs it, as a condition of this node.
            tracing::debug!(peer = id, "node {id} refused this node: {text}");
        } else if by_peer {
            tracing::warn!(peer = id, "node {id} refused this node: {text}");
        } else {
            tracing::warn!(peer = id, "refused node {id}: {text}");
        }
        peer.refused.insert(by_peer, text);
        if let Some(reason) = reason {
            self.routes.peer_refused(PeerRefused { peer: id, by_peer, reason });
        }
    }

    /// One warning when a peer goes, however often dialling it fails.
    fn unreached(&mut self, id: NodeId, cause: String) {
        let peer = self.peer(id);
        // Both sides dial: one attempt may fail when the other has succeeded.
        if peer.link.is_some() {
            return;
        }
        if peer.last_error.is_none() {
            tracing::warn!(peer = id, "node {id} cannot be reached: {cause}");
        }
        peer.last_error = Some(cause);
    }

    /// Whether this link is the peer's present one, so that its messages count.
    fn is_present(&self, peer: NodeId, generation: u64) -> bool {
        self.peers.get(&peer).and_then(|peer| peer.link.as_ref()).is_some_and(|link| link.generation == generation)
    }

    /// Dials the listed peers, and no others.
    fn dial_listed(&mut self, ctx: &mut Context<Self>) {
        let listed: BTreeSet<NodeId> = self.policy.peers().keys().copied().collect();
        for (id, peer) in &mut self.peers {
            if !listed.contains(id)
                && let Some(task) = peer.dialling.take()
            {
                task.abort();
                self.gate.borrow_mut().forget(*id);
            }
        }
        for id in listed {
            let (endpoint, config, transport) = (self.endpoint.clone(), self.config.clone(), ctx.address().downgrade());
            let (counters, gate) = (self.counters.clone(), self.gate.clone());
            let peer = self.peer(id);
            if peer.dialling.is_none() {
                let up = peer.up.subscribe();
                let dialling = dial::keep_up(id, endpoint, config, transport, up, counters, gate);
                peer.dialling = Some(actix_rt::spawn(dialling));
            }
        }
    }

    /// Ends the links of peers that would no longer be accepted. The links of removed nodes end a little later: a
    /// leader that was removed still has to answer the client that asked for its removal.
    fn judge_links_again(&mut self, last_words_said: bool) {
        let judged: Vec<_> = self
            .peers
            .iter()
            .filter_map(|(id, peer)| Some((*id, self.policy.check(&peer.link.as_ref()?.identity).err()?)))
            .filter(|(_, reason)| last_words_said || !matches!(reason, RefusedBecause::Retired { .. }))
            .collect();
        for (id, reason) in judged {
            if let Some(link) = self.peer(id).link.take() {
                self.peer(id).up.send_replace(None);
                link.close(reason.to_string().as_bytes());
                // What waited for it goes with it.
                self.routes.lost(id);
            }
            self.refused(id, false, reason.to_string(), Some(reason));
        }
    }
}

/// How long the link of a removed node goes on. The node is no member any more, so its messages in that time decide
/// nothing.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A text that may come from a peer, made fit for a log: one line, of bounded length.
fn readable(text: &str) -> String {
    text.chars().take(PEER_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn bind(address: SocketAddr, buffer: usize) -> io::Result<std::net::UdpSocket> {
    let kind = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(kind, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    // Best effort: the system caps it. With the default of 208 KiB bursts are lost and sent again.
    let _ = socket.set_recv_buffer_size(buffer);
    let _ = socket.set_send_buffer_size(buffer);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl Actor for QuicTransport {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let (endpoint, config, transport) = (self.endpoint.clone(), self.config.clone(), ctx.address().downgrade());
        let accept = handshake::accept(endpoint, config, transport, self.counters.clone(), self.gate.clone());
        self.accepting = Some(actix_rt::spawn(accept));
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.accepting.take().iter().for_each(JoinHandle::abort);
        for peer in self.peers.values_mut() {
            peer.dialling.take().iter().for_each(JoinHandle::abort);
        }
        self.endpoint.close(VarInt::from_u32(0), b"the node stopped");
    }
}

impl Handler<Attach> for QuicTransport {
    type Result = ();

    fn handle(&mut self, attach: Attach, _: &mut Context<Self>) {
        self.routes.attach(attach);
    }
}

impl Handler<AttachNode> for QuicTransport {
    type Result = ();

    fn handle(&mut self, attach: AttachNode, _: &mut Context<Self>) {
        self.routes.attach_node(attach);
    }
}

impl Handler<SetPeers> for QuicTransport {
    type Result = ();

    fn handle(&mut self, peers: SetPeers, ctx: &mut Context<Self>) {
        self.policy.set_peers(peers);
        self.judge_links_again(false);
        ctx.run_later(LAST_WORDS, |transport, _| transport.judge_links_again(true));
        self.dial_listed(ctx);
    }
}

impl Handler<SetCluster> for QuicTransport {
    type Result = ();

    fn handle(&mut self, SetCluster(cluster): SetCluster, _: &mut Context<Self>) {
        self.policy.set_cluster(cluster);
        self.judge_links_again(false);
    }
}

impl Handler<Transmit> for QuicTransport {
    type Result = ();

    fn handle(&mut self, Transmit { group, messages }: Transmit, _: &mut Context<Self>) {
        let mut lost: BTreeSet<(NodeId, GroupId)> = BTreeSet::new();
        let mut touched: BTreeSet<NodeId> = BTreeSet::new();
        for (to, message) in messages {
            let peer = self.peers.get_mut(&to);
            match peer.and_then(|peer| peer.link.as_ref().map(|link| (link, &mut peer.dropped))) {
                // Messages for a peer that is down would be stale when it is back, so they are dropped at once.
                None => drop(lost.insert((to, group))),
                // The peer's version does not know this kind of message, and does not need it.
                Some((link, _)) if !link.identity.features.meet(message.kind.needs()) => {}
                Some((link, dropped)) => {
                    // The messages that were dropped for it may be of any group.
                    link.enqueue(group, message, |gone| {
                        *dropped += 1;
                        lost.insert((to, gone));
                    });
                    touched.insert(to);
                }
            }
        }
        for id in touched {
            self.peers.get(&id).and_then(|peer| peer.link.as_ref()).into_iter().for_each(Link::wake);
        }
        lost.into_iter().for_each(|(peer, group)| self.routes.unreachable(group, peer));
    }
}

impl Handler<Ask> for QuicTransport {
    type Result = ();

    fn handle(&mut self, ask: Ask, _: &mut Context<Self>) {
        let Ask { id, group, to, request, timeout, reply_to } = ask;
        let (config, counters) = (self.config.clone(), self.counters.clone());
        let known = self.peers.get(&to).map(|peer| peer.up.subscribe());
        // A separate task, not one of this actor: it ends with its answer, which must come even if this actor ends.
        actix_rt::spawn(async move {
            let result = match known {
                None => Err(AskError::NotSent(format!("node {to} is not known here"))),
                Some(up) => link::ask(up, group, request, timeout, &config, &counters).await,
            };
            if let Some(asker) = reply_to.upgrade() {
                asker.do_send(Answered { id, from: to, result });
            }
        });
    }
}

impl Handler<GetTransportStatus> for QuicTransport {
    type Result = TransportStatus;

    fn handle(&mut self, GetTransportStatus: GetTransportStatus, _: &mut Context<Self>) -> TransportStatus {
        let status = |peer: &PeerState| PeerStatus {
            connected: peer.link.is_some(),
            rtt_us: peer.link.as_ref().map_or(0, |link| link.rtt().as_micros() as u64),
            queued: peer.link.as_ref().map_or(0, Link::queued),
            dropped: peer.dropped,
            last_error: peer.last_error.clone(),
            features: peer.link.as_ref().map_or_else(Features::none, |link| link.identity.features.clone()),
        };
        TransportStatus {
            bytes_sent: self.counters.sent.get(),
            bytes_received: self.counters.received.get(),
            largest_frame: self.counters.largest.get(),
            misdirected: self.routes.misdirected(),
            peers: self.peers.iter().map(|(id, peer)| (*id, status(peer))).collect(),
        }
    }
}

impl Handler<Close> for QuicTransport {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, Close: Close, _: &mut Context<Self>) -> Self::Result {
        self.accepting.take().iter().for_each(JoinHandle::abort);
        let mut links = Vec::new();
        for peer in self.peers.values_mut() {
            peer.dialling.take().iter().for_each(JoinHandle::abort);
            links.extend(peer.link.clone());
        }
        let endpoint = self.endpoint.clone();
        endpoint.set_server_config(None);
        let closed = async move {
            // A close discards what has not arrived, so what is queued is sent first, within a short time.
            let farewells = links.into_iter().map(|link| link.farewell(FAREWELL, b"the node stopped"));
            futures_util::future::join_all(farewells).await;
            endpoint.close(VarInt::from_u32(0), b"the node stopped");
            let _ = tokio::time::timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
        };
        Box::pin(closed.into_actor(self).map(|(), _, ctx| ctx.stop()))
    }
}

/// A hello is asked for, to open a dial with.
#[derive(Message)]
#[rtype(result = "Option<(Hello, actorum_machine::ids::Address)>")]
struct DialHello(NodeId);

impl Handler<DialHello> for QuicTransport {
    type Result = MessageResult<DialHello>;

    fn handle(&mut self, DialHello(peer): DialHello, _: &mut Context<Self>) -> Self::Result {
        let address = self.policy.peers().get(&peer).map(|peer| peer.address.clone());
        self.dials += 1;
        MessageResult(address.map(|address| (self.hello(self.dials, peer), address)))
    }
}

impl QuicTransport {
    /// Judges a hello; a refusal is remembered and told.
    fn check_hello(&mut self, hello: &Hello) -> Result<(), RefusedBecause> {
        let ours = PROTOCOL;
        let judged = if hello.protocol != ours {
            Err(RefusedBecause::Version { theirs: hello.protocol, ours })
        } else if !hello.formats.iter().any(|format| FORMATS.contains(format)) {
            Err(RefusedBecause::Format { theirs: hello.formats.clone(), ours: FORMATS.to_vec() })
        } else {
            self.policy.check(&hello.identity())
        };
        if let Err(reason) = &judged {
            self.refused(hello.node, false, reason.to_string(), Some(reason.clone()));
        }
        judged
    }

    /// The peer says which life of this directory it has on record.
    fn confirmed(&self, by: NodeId, life: Option<LifeKey>) {
        life.into_iter().for_each(|life| self.policy.book().confirmed(by, life));
    }

    /// Records how far the peers' logs are, from time to time, where waiting for a disk is allowed.
    #[allow(clippy::disallowed_methods, reason = "a real disk: a simulation has another transport")]
    fn flush_if_due(&mut self) {
        if self.flushed.elapsed() >= FLUSH_EVERY && self.policy.book().wants_flush() {
            self.flushed = Instant::now();
            let book = self.policy.book().clone();
            tokio::task::spawn_blocking(move || book.flush());
        }
    }
}

impl Handler<CheckHello> for QuicTransport {
    type Result = ResponseActFuture<Self, HelloChecked>;

    fn handle(&mut self, CheckHello { hello }: CheckHello, _: &mut Context<Self>) -> Self::Result {
        let (identity, id) = (hello.identity(), hello.node);
        if let Err(reason) = self.check_hello(&hello) {
            return Box::pin(fut::ready(Ok(Err(reason))));
        }
        self.confirmed(id, hello.recorded);
        let book = self.policy.book().clone();
        if book.is_on_record(&identity) {
            return Box::pin(fut::ready(Ok(Ok(self.hello(0, id)))));
        }
        // A life that is new here: it must be recorded durably before anything of it counts. That takes a sync, so it
        // does not run on this thread.
        #[allow(clippy::disallowed_methods, reason = "a real disk: a simulation has another transport")]
        let recorded = tokio::task::spawn_blocking(move || book.record(&identity));
        Box::pin(recorded.into_actor(self).map(move |recorded, transport, _| {
            let recorded = recorded.map_err(|error| error.to_string()).and_then(|done| done.map_err(|e| e.to_string()));
            if let Err(error) = recorded {
                let cause = format!(
                    "its life cannot be recorded in this node's data directory: {error}; look whether its disk is full"
                );
                // This is logged once: a node that refuses its peers must say so.
                transport.refused(id, false, cause.clone(), None);
                return Err(cause);
            }
            // Judged again: meanwhile this node may have learnt more.
            Ok(transport.check_hello(&hello).map(|()| transport.hello(0, id)))
        }))
    }
}

impl Handler<Established> for QuicTransport {
    type Result = MessageResult<Established>;

    fn handle(&mut self, established: Established, ctx: &mut Context<Self>) -> Self::Result {
        let (identity, dialled, dial) = (established.identity.clone(), established.dialled, established.dial);
        let id = identity.id;
        self.confirmed(id, established.recorded);
        // Judged again: between the hello and now this node may have learnt more.
        if let Err(reason) = self.policy.check(&identity) {
            self.refused(id, false, reason.to_string(), Some(reason));
            return MessageResult(false);
        }
        // An older dial whose hello took longer: what it carries was sent before what the newer one has brought.
        let overtaken =
            |(incarnation, boot, latest)| (incarnation, boot) == (identity.incarnation, identity.boot) && dial < latest;
        if !dialled && self.peer(id).latest.is_some_and(overtaken) {
            return MessageResult(false);
        }
        let own = self.policy.own().id;
        let stays = |old: &Link| {
            let dialler = |dialled: bool| if dialled { own } else { id };
            let alive = old.is_alive();
            let same_boot = old.identity.boot == identity.boot && old.identity.incarnation == identity.incarnation;
            alive && same_boot && old.dialled != dialled && dialler(old.dialled) < dialler(dialled)
        };
        if self.peer(id).link.as_ref().is_some_and(stays) {
            return MessageResult(false);
        }
        self.policy.let_in(&identity);
        self.gate.borrow_mut().met(id, established.connection.remote_address().ip());
        self.generations += 1;
        let generation = self.generations;
        let link =
            link::begin(generation, established, ctx.address().downgrade(), self.config.clone(), self.counters.clone());
        let peer = self.peer(id);
        let old = peer.link.replace(link.clone());
        if peer.last_error.take().is_some() {
            tracing::info!(peer = id, "node {id} can be reached again");
        }
        peer.refused.clear();
        if !dialled {
            peer.latest = Some((identity.incarnation, identity.boot, dial));
        }
        peer.up.send_replace(Some(link));
        if let Some(old) = old {
            old.close(b"another connection took its place");
            // What was on its way over the old one may be lost.
            self.routes.lost(id);
        }
        self.routes.peer_up(identity);
        MessageResult(true)
    }
}

/// A handshake ended without a link.
#[derive(Message)]
#[rtype(result = "()")]
struct Failed {
    peer: NodeId,
    why: NoLink,
}

/// Why there is no link.
#[derive(Debug)]
enum NoLink {
    /// The network failed, or the peer sent something invalid.
    Unreached(String),
    /// The peer does not want this node.
    RefusedByPeer(String, Option<RefusedBecause>),
    /// This node does not want the peer.
    RefusedHere(RefusedBecause),
    /// There is another link with that peer, which stays.
    NotNeeded,
}

impl Handler<Failed> for QuicTransport {
    type Result = ();

    fn handle(&mut self, Failed { peer, why }: Failed, _: &mut Context<Self>) {
        match why {
            NoLink::Unreached(cause) => self.unreached(peer, cause),
            NoLink::RefusedByPeer(text, reason) => self.refused(peer, true, text, reason),
            NoLink::RefusedHere(reason) => self.refused(peer, false, reason.to_string(), Some(reason)),
            NoLink::NotNeeded => {}
        }
    }
}

/// A link ended.
#[derive(Message)]
#[rtype(result = "()")]
struct Ended {
    peer: NodeId,
    generation: u64,
    cause: String,
    /// Whether the peer ended it in order, as it does when it is shut down.
    orderly: bool,
}

impl Handler<Ended> for QuicTransport {
    type Result = ();

    fn handle(&mut self, Ended { peer, generation, cause, orderly }: Ended, _: &mut Context<Self>) {
        if !self.is_present(peer, generation) {
            return;
        }
        let cause = readable(&cause);
        let state = self.peer(peer);
        state.link = None;
        state.up.send_replace(None);
        state.last_error = Some(cause.clone());
        match orderly {
            true => tracing::info!(peer, "node {peer} has closed its connection: {cause}"),
            false => tracing::warn!(peer, "the connection with node {peer} ended: {cause}"),
        }
        self.routes.lost(peer);
    }
}

/// Messages that no frame may hold.
#[derive(Message)]
#[rtype(result = "()")]
struct Oversized {
    peer: NodeId,
    group: GroupId,
    count: usize,
}

impl Handler<Oversized> for QuicTransport {
    type Result = ();

    fn handle(&mut self, Oversized { peer, group, count }: Oversized, _: &mut Context<Self>) {
        self.peer(peer).dropped += count as u64;
        tracing::error!(peer, count, "messages that are larger than a frame may be were dropped");
        self.routes.unreachable(group, peer);
    }
}

/// Raft messages that came over a link.
#[derive(Message)]
#[rtype(result = "()")]
struct Inbound {
    from: NodeId,
    generation: u64,
    group: GroupId,
    messages: Vec<RaftMessage>,
}

impl Handler<Inbound> for QuicTransport {
    type Result = ();

    fn handle(&mut self, Inbound { from, generation, group, messages }: Inbound, _: &mut Context<Self>) {
        // Late frames of an older connection must not follow those of a newer one.
        if !self.is_present(from, generation) {
            return;
        }
        if !self.routes.takes(group, from, messages.len()) {
            return;
        }
        self.policy.book().note_acknowledged(from, &messages);
        self.flush_if_due();
        self.routes.deliver(Received { group, from, messages });
    }
}

/// A peer's question that came over a link.
#[derive(Message)]
#[rtype(result = "()")]
struct InboundQuestion {
    generation: u64,
    asked: Asked,
}

impl Handler<InboundQuestion> for QuicTransport {
    type Result = ();

    fn handle(&mut self, InboundQuestion { generation, asked }: InboundQuestion, _: &mut Context<Self>) {
        if !self.is_present(asked.from, generation) {
            return;
        }
        self.routes.ask(asked);
    }
}
