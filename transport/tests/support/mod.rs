//! What the tests of the QUIC transport share: an authority, honest nodes that tell what they hear, and an
//! adversary that speaks quinn directly and may hold any certificate and say anything.

#![allow(dead_code)] // each test binary uses a part

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use actix::{WeakRecipient, prelude::*};
use actorum_core::{
    features::Features,
    identity::{Identity, RefusedBecause},
    wire::{AskError, Entry, EntryKind, MessageKind, RaftMessage, Request, Response, SnapshotFile, SnapshotRequest},
};
use actorum_machine::ids::{ClusterId, GroupId, Incarnation, NodeId};
use actorum_transport::{
    frame::{self, FrameKind, GroupRequest, Hello, Lane, Refused, Splitter, Welcome},
    hello::{FORMATS, PROTOCOL},
    message::{
        Answered, Ask, Asked, Attach, AttachNode, GetTransportStatus, Handlers, NodeHandlers, Peer, PeerRefused,
        PeerUp, Received, Responder, SetPeers, Transmit, TransportHandle, TransportStatus, Unreachable,
    },
    quic::{QuicConfig, QuicTransport},
    tls::{ALPN, Authority, TlsIdentity, node_name},
};
use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;

/// Nothing here takes this long unless it never happens.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for what must happen.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// Asks again until it is true.
pub(crate) async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut holds: F) {
    soon(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// One cluster's authority in a directory that goes with it.
pub(crate) struct Certs {
    dir: tempfile::TempDir,
    authority: Authority,
}

/// A certificate and its key.
pub(crate) type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Certs {
    pub(crate) fn new() -> Certs {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path()).unwrap();
        Certs { dir, authority }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Node `id`'s own.
    pub(crate) fn node(&self, id: NodeId) -> TlsIdentity {
        let dir = self.dir.path().join(format!("node-{id}"));
        if !dir.exists() {
            self.authority.issue(self.dir.path(), id).unwrap();
        }
        TlsIdentity::load(&dir, id).unwrap()
    }

    /// The authority's certificate.
    pub(crate) fn ca(&self) -> CertificateDer<'static> {
        rustls::pki_types::pem::PemObject::from_pem_file(self.dir.path().join("ca/ca.pem")).unwrap()
    }

    /// Signed by the authority for these names, after `change`.
    pub(crate) fn forge(&self, names: &[String], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let read = |name| std::fs::read_to_string(self.dir.path().join("ca").join(name)).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.to_vec()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// A true certificate of that node.
    pub(crate) fn of(&self, id: NodeId) -> Pair {
        self.forge(&[node_name(id)], |_| {})
    }

    /// That node's, and expired.
    pub(crate) fn expired(&self, id: NodeId) -> Pair {
        self.forge(&[node_name(id)], |params| {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        })
    }
}

/// What arrived above a transport.
#[derive(Debug)]
pub(crate) enum Heard {
    Raft(NodeId, Vec<RaftMessage>),
    Asked(NodeId, Request),
    AskedForSnapshot(NodeId, SnapshotRequest),
    Answered(u64, Result<Response, AskError>),
    Unreachable(NodeId),
    Up(Identity),
    Refused(NodeId, bool, RefusedBecause),
}

/// What the node does with questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Questions {
    Answer,
    Drop,
    Keep,
}

pub(crate) struct Above {
    heard: mpsc::UnboundedSender<Heard>,
    questions: Questions,
    kept: Vec<Responder>,
}

impl Actor for Above {
    type Context = Context<Self>;
}

macro_rules! hear {
    ($($message:ty => |$m:pat_param| $heard:expr),* $(,)?) => {$(
        impl Handler<$message> for Above {
            type Result = ();
            fn handle(&mut self, $m: $message, _: &mut Self::Context) {
                let _ = self.heard.send($heard);
            }
        }
    )*};
}
hear! {
    Received => |m| Heard::Raft(m.from, m.messages),
    Unreachable => |m| Heard::Unreachable(m.peer),
    PeerUp => |m| Heard::Up(m.identity),
    PeerRefused => |m| Heard::Refused(m.peer, m.by_peer, m.reason),
    Answered => |m| Heard::Answered(m.id, m.result),
}

impl Handler<Asked> for Above {
    type Result = ();
    fn handle(&mut self, Asked { from, request, responder, .. }: Asked, _: &mut Self::Context) {
        let index = match &request {
            Request::ReadIndex { remaining_ms } => *remaining_ms,
            _ => 0,
        };
        let _ = self.heard.send(Heard::Asked(from, request));
        match self.questions {
            Questions::Answer => responder.answer(Response::ReadAt { index }),
            Questions::Drop => drop(responder),
            Questions::Keep => self.kept.push(responder),
        }
    }
}

/// What a node says to a question about a snapshot; nothing: it keeps the question open.
pub(crate) type Serve = Box<dyn Fn(&SnapshotRequest) -> Option<Response>>;

/// Answers for snapshots.
pub(crate) struct Keeper {
    heard: mpsc::UnboundedSender<Heard>,
    serve: Serve,
    kept: Vec<Responder>,
}

impl Actor for Keeper {
    type Context = Context<Self>;
}

impl Handler<Asked> for Keeper {
    type Result = ();
    fn handle(&mut self, Asked { from, request, responder, .. }: Asked, _: &mut Self::Context) {
        let Request::Snapshot(request) = request else { panic!("{request:?} is not about snapshots") };
        match (self.serve)(&request) {
            Some(response) => responder.answer(response),
            None => self.kept.push(responder),
        }
        let _ = self.heard.send(Heard::AskedForSnapshot(from, request));
    }
}

/// Lets go of the questions that were kept: their askers hear that the answer is lost.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct LetGo;

impl Handler<LetGo> for Keeper {
    type Result = ();
    fn handle(&mut self, LetGo: LetGo, _: &mut Self::Context) {
        self.kept.clear();
    }
}

/// An honest node.
pub(crate) struct Node {
    pub id: NodeId,
    pub address: SocketAddr,
    pub handle: TransportHandle,
    pub above: Addr<Above>,
    pub keeper: Addr<Keeper>,
    heard: mpsc::UnboundedReceiver<Heard>,
    token: u64,
}

pub(crate) const CLUSTER: ClusterId = ClusterId(1);

pub(crate) fn identity(id: NodeId) -> Identity {
    let features = Features::all();
    let lives = Default::default();
    Identity {
        id,
        incarnation: Incarnation(id * 10),
        boot: 1,
        cluster: Some(CLUSTER),
        features,
        machine_version: 1,
        lives,
    }
}

pub(crate) fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub(crate) fn node(certs: &Certs, id: NodeId) -> Node {
    node_with(certs, identity(id), Questions::Answer, |_| {})
}

pub(crate) fn node_with(
    certs: &Certs,
    identity: Identity,
    questions: Questions,
    change: impl FnOnce(&mut QuicConfig),
) -> Node {
    node_serving(certs, identity, questions, Box::new(|_| Some(Response::Gone)), change)
}

pub(crate) fn node_serving(
    certs: &Certs,
    identity: Identity,
    questions: Questions,
    serve: Serve,
    change: impl FnOnce(&mut QuicConfig),
) -> Node {
    let id = identity.id;
    let mut config = QuicConfig::new(local(), identity, certs.node(id));
    config.seed = id;
    change(&mut config);
    let (handle, address) = QuicTransport::start(config).unwrap();
    let (sender, heard) = mpsc::unbounded_channel();
    let keeper = Keeper { heard: sender.clone(), serve, kept: Vec::new() }.start();
    let above = Above { heard: sender, questions, kept: Vec::new() }.start();
    let down = above.downgrade();
    handle.attach.do_send(Attach { group: GroupId::FIRST, handlers: handlers(&above, keeper.downgrade().recipient()) });
    let handlers = NodeHandlers { peer_up: down.clone().recipient(), peer_refused: down.recipient() };
    handle.attach_node.do_send(AttachNode { handlers });
    Node { id, address, handle, above, keeper, heard, token: 0 }
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

/// What stands above a transport for one more group.
pub(crate) struct Group {
    _above: Addr<Above>,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl Group {
    pub(crate) async fn next(&mut self) -> Heard {
        soon("the group hears something", self.heard.recv()).await.unwrap()
    }

    /// What was heard and not yet read.
    pub(crate) fn drain(&mut self) -> Vec<Heard> {
        std::iter::from_fn(|| self.heard.try_recv().ok()).collect()
    }
}

/// An append that a test recognizes, with so many bytes.
pub(crate) fn append(term: u64, bytes: usize) -> RaftMessage {
    let data = Bytes::from(vec![7; bytes]);
    let entry = Entry { kind: EntryKind::Normal, term, index: term, data, context: Bytes::new() };
    RaftMessage { entries: vec![entry], ..RaftMessage::new(MessageKind::Append, term) }
}

pub(crate) fn heartbeat(term: u64) -> RaftMessage {
    RaftMessage::new(MessageKind::Heartbeat, term)
}

pub(crate) fn read_index(n: u64) -> Request {
    Request::ReadIndex { remaining_ms: n }
}

/// So many bytes of a snapshot that every node here knows.
pub(crate) fn piece(offset: u64, max: u32) -> SnapshotRequest {
    SnapshotRequest::Read { file: SnapshotFile { bytes: 1 << 40, hash: [7; 32] }, index: 9, offset, max }
}

impl Node {
    /// Lists these as peers, whatever their incarnation.
    pub(crate) fn list(&self, peers: &[(NodeId, SocketAddr)]) {
        self.list_known(&peers.iter().map(|(id, address)| (*id, *address, None)).collect::<Vec<_>>(), &[]);
    }

    pub(crate) fn list_known(&self, peers: &[(NodeId, SocketAddr, Option<Incarnation>)], retired: &[NodeId]) {
        let peer = |address: SocketAddr, incarnation| Peer { address: address.into(), incarnation };
        self.handle.set_peers.do_send(SetPeers {
            peers: peers.iter().map(|(id, address, known)| (*id, peer(*address, *known))).collect::<BTreeMap<_, _>>(),
            retired: retired.iter().copied().collect::<BTreeSet<_>>(),
        });
    }

    pub(crate) fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        self.send_in(GroupId::FIRST, to, messages);
    }

    pub(crate) fn send_in(&self, group: GroupId, to: NodeId, messages: Vec<RaftMessage>) {
        let messages = messages.into_iter().map(|message| (to, message)).collect();
        self.handle.transmit.do_send(Transmit { group, messages });
    }

    /// Registers one more group.
    pub(crate) fn register(&self, group: GroupId) -> Group {
        let (sender, heard) = mpsc::unbounded_channel();
        let above = Above { heard: sender, questions: Questions::Answer, kept: Vec::new() }.start();
        self.handle.attach.do_send(Attach { group, handlers: handlers(&above, above.downgrade().recipient()) });
        Group { _above: above, heard }
    }

    pub(crate) fn ask_within(&self, to: NodeId, id: u64, timeout: Duration) {
        self.ask_for(to, id, read_index(id), timeout);
    }

    pub(crate) fn ask_for(&self, to: NodeId, id: u64, request: Request, timeout: Duration) {
        self.ask_in(GroupId::FIRST, to, id, request, timeout);
    }

    pub(crate) fn ask_in(&self, group: GroupId, to: NodeId, id: u64, request: Request, timeout: Duration) {
        let reply_to = self.above.downgrade().recipient();
        self.handle.ask.do_send(Ask { id, group, to, request, timeout, reply_to });
    }

    /// Asks and waits for the end of it.
    pub(crate) async fn ask(&mut self, to: NodeId, id: u64) -> Result<Response, AskError> {
        self.ask_within(to, id, DEADLINE);
        self.answer(id).await
    }

    pub(crate) async fn answer(&mut self, id: u64) -> Result<Response, AskError> {
        self.until("an answer", |heard| match heard {
            Heard::Answered(of, result) if of == id => Some(result),
            _ => None,
        })
        .await
    }

    pub(crate) async fn next(&mut self) -> Heard {
        soon("something is heard", self.heard.recv()).await.unwrap()
    }

    /// What is heard next that `picks`; what comes before it is forgotten.
    pub(crate) async fn until<T>(&mut self, what: &str, mut picks: impl FnMut(Heard) -> Option<T>) -> T {
        soon(what, async {
            loop {
                if let Some(picked) = picks(self.heard.recv().await.unwrap()) {
                    return picked;
                }
            }
        })
        .await
    }

    /// The messages of `from`, in the order in which they come, until so many were heard.
    pub(crate) async fn messages(&mut self, from: NodeId, count: usize) -> Vec<RaftMessage> {
        let mut all = Vec::new();
        while all.len() < count {
            let part = self.until("messages", |heard| match heard {
                Heard::Raft(of, messages) if of == from => Some(messages),
                _ => None,
            });
            all.extend(part.await);
        }
        assert_eq!(all.len(), count);
        all
    }

    /// What was heard and not yet read.
    pub(crate) fn drain(&mut self) -> Vec<Heard> {
        std::iter::from_fn(|| self.heard.try_recv().ok()).collect()
    }

    pub(crate) async fn refusal(&mut self) -> (NodeId, bool, RefusedBecause) {
        self.until("a refusal", |heard| match heard {
            Heard::Refused(peer, by_peer, reason) => Some((peer, by_peer, reason)),
            _ => None,
        })
        .await
    }

    pub(crate) async fn status(&self) -> TransportStatus {
        self.handle.status.send(GetTransportStatus).await.unwrap()
    }

    pub(crate) async fn is_connected(&self, to: NodeId) -> bool {
        self.status().await.peers.get(&to).is_some_and(|peer| peer.connected)
    }

    pub(crate) async fn connected(&self, to: NodeId) {
        eventually("a connection", async || self.is_connected(to).await).await;
    }

    pub(crate) async fn last_error(&self, of: NodeId) -> Option<String> {
        self.status().await.peers.get(&of).and_then(|peer| peer.last_error.clone())
    }
}

/// Both know each other, and are linked: the connection that stays stands, and what was said meanwhile is forgotten.
pub(crate) async fn link(one: &mut Node, two: &mut Node) {
    one.list(&[(two.id, two.address)]);
    two.list(&[(one.id, one.address)]);
    settle(one, two).await;
}

/// Until messages go both ways over a connection that stays. While two dials meet, some may be lost.
pub(crate) async fn settle(one: &mut Node, two: &mut Node) {
    one.connected(two.id).await;
    two.connected(one.id).await;
    // Twice as long as nothing changed: the one that goes is closed as soon as the other stands.
    eventually("a link that stays", async || {
        one.drain();
        two.drain();
        passes(one, two).await && passes(two, one).await && !went(&one.drain()) && !went(&two.drain())
    })
    .await;
}

fn went(heard: &[Heard]) -> bool {
    heard.iter().any(|heard| matches!(heard, Heard::Up(_) | Heard::Unreachable(_)))
}

/// One message from one to the other, or none in a second (it went over a connection that had to go).
async fn passes(from: &mut Node, to: &mut Node) -> bool {
    from.token += 1;
    let token = 1_000_000 + from.token;
    from.send(to.id, vec![append(token, 10)]);
    let arrives = async {
        while let Some(heard) = to.heard.recv().await {
            match heard {
                Heard::Raft(_, messages) if messages.last().is_some_and(|last| last.term == token) => return true,
                Heard::Up(_) | Heard::Unreachable(_) => return false,
                _ => {}
            }
        }
        false
    };
    tokio::time::timeout(Duration::from_secs(1), arrives).await.unwrap_or(false)
}

/// Two honest nodes, linked; the first is what adversaries attack.
pub(crate) struct Honest {
    pub certs: Certs,
    pub victim: Node,
    pub friend: Node,
}

impl Honest {
    pub(crate) async fn new() -> Honest {
        Honest::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut QuicConfig)) -> Honest {
        let certs = Certs::new();
        let mut victim = node_with(&certs, identity(1), Questions::Answer, change);
        let mut friend = node(&certs, 2);
        link(&mut victim, &mut friend).await;
        Honest { certs, victim, friend }
    }

    /// Both lanes and questions go both ways over the link that was there before; and the victim heard
    /// nothing of anybody else since the last time.
    pub(crate) async fn flows(&mut self) {
        for (from, to) in [(1, 2), (2, 1)] {
            let (from, to) = match from == self.victim.id && to == self.friend.id {
                true => (&mut self.victim, &mut self.friend),
                false => (&mut self.friend, &mut self.victim),
            };
            from.token += 1;
            let token = from.token;
            from.send(to.id, vec![append(token, 1000), heartbeat(token)]);
            let (mut log, mut urgent) = (false, false);
            while !(log && urgent) {
                match to.next().await {
                    Heard::Raft(of, messages) if of == from.id => {
                        for message in messages {
                            assert_eq!(message.term, token, "only what was sent just now");
                            match message.kind {
                                MessageKind::Append => log = true,
                                _ => urgent = true,
                            }
                        }
                    }
                    other => panic!("an honest node was disturbed: {other:?}"),
                }
            }
            from.ask_within(to.id, token, DEADLINE);
            match from.next().await {
                Heard::Answered(id, Ok(Response::ReadAt { index })) if (id, index) == (token, token) => {}
                other => panic!("an honest node was disturbed: {other:?}"),
            }
            match to.next().await {
                Heard::Asked(of, _) if of == from.id => {}
                other => panic!("an honest node was disturbed: {other:?}"),
            }
        }
        assert!(self.victim.drain().is_empty());
        assert!(self.friend.drain().is_empty());
    }

    /// An adversary with node `id`'s own certificate.
    pub(crate) fn adversary(&self, id: NodeId) -> Adversary {
        Adversary::new(&self.certs, Some(self.certs.of(id)), 1)
    }
}

/// Speaks QUIC and TLS well enough, and then whatever the test wants.
pub(crate) struct Adversary {
    pub endpoint: Endpoint,
    server_name: String,
}

pub(crate) fn client_crypto(certs: &Certs, shows: Option<Pair>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certs.ca()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shows {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = true;
    config
}

impl Adversary {
    /// Trusts `certs`, expects node `target`, and shows that pair.
    pub(crate) fn new(certs: &Certs, shows: Option<Pair>, target: NodeId) -> Adversary {
        Adversary::with(client_crypto(certs, shows), target, |_| {})
    }

    pub(crate) fn with(
        crypto: rustls::ClientConfig,
        target: NodeId,
        change: impl FnOnce(&mut quinn::TransportConfig),
    ) -> Adversary {
        let mut endpoint = Endpoint::client(local()).unwrap();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_millis(200)));
        change(&mut transport);
        client.transport_config(Arc::new(transport));
        endpoint.set_default_client_config(client);
        Adversary { endpoint, server_name: node_name(target) }
    }

    pub(crate) fn dial(&self, target: SocketAddr) -> quinn::Connecting {
        self.endpoint.connect(target, &self.server_name).unwrap()
    }

    pub(crate) async fn connect(&self, target: SocketAddr) -> Connection {
        soon("a connection", self.dial(target)).await.unwrap()
    }

    /// A whole connection up to the hello that is let in.
    pub(crate) async fn join(&self, target: SocketAddr, hello: Hello) -> Joined {
        let connection = self.connect(target).await;
        let greeting = greet(&connection, hello).await.expect("the hello is let in");
        greeting.welcome().await;
        Joined { connection }
    }
}

pub(crate) fn hello(id: NodeId) -> Hello {
    let Identity { id, incarnation, boot, cluster, features, machine_version, .. } = identity(id);
    let (lives, recorded) = Default::default();
    Hello {
        protocol: PROTOCOL,
        formats: FORMATS.to_vec(),
        cluster,
        node: id,
        incarnation,
        boot,
        dial: 1,
        features,
        machine_version,
        lives,
        recorded,
    }
}

/// A hello that was answered, and not yet welcomed.
pub(crate) struct Greeting {
    send: SendStream,
    _receive: RecvStream,
}

impl Greeting {
    pub(crate) async fn welcome(mut self) {
        write(&mut self.send, FrameKind::Welcome, &Welcome::default()).await;
    }
}

/// Says hello; the answer, or the refusal, or the end of the connection.
pub(crate) async fn greet(connection: &Connection, hello: Hello) -> Result<Greeting, Option<Refused>> {
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return Err(None) };
    write(&mut send, FrameKind::Hello, &hello).await;
    match soon("an answer to the hello", read_frame(&mut receive)).await {
        Some((FrameKind::Hello, _)) => Ok(Greeting { send, _receive: receive }),
        Some((FrameKind::Refused, body)) => Err(Some(frame::decode(&body).unwrap())),
        Some((other, _)) => panic!("{other:?} answers a hello"),
        None => Err(None),
    }
}

/// A connection on which the adversary is a peer.
pub(crate) struct Joined {
    pub connection: Connection,
}

impl Joined {
    pub(crate) async fn lane(&self, lane: Lane) -> SendStream {
        let mut send = soon("a stream", self.connection.open_uni()).await.unwrap();
        write(&mut send, FrameKind::Lane, &lane).await;
        send
    }

    /// The victim ends this connection.
    pub(crate) async fn is_ended(&self) -> quinn::ConnectionError {
        soon("the victim ends the connection", self.connection.closed()).await
    }

    /// Asks like a peer; the body of the answer, or nothing.
    pub(crate) async fn ask(&self, request: Request) -> Option<Response> {
        let (mut send, mut receive) = soon("a stream", self.connection.open_bi()).await.ok()?;
        write(&mut send, FrameKind::Request, &GroupRequest { group: GroupId::FIRST, request }).await;
        let (_, body) = soon("an answer", read_frame(&mut receive)).await?;
        frame::decode(&body).ok()
    }
}

pub(crate) fn framed<T: serde::Serialize>(kind: FrameKind, body: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(kind, body, 64 << 20, &mut bytes).unwrap();
    bytes
}

/// A frame whose body is any bytes.
pub(crate) fn raw_frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32 + 2).to_be_bytes().to_vec();
    bytes.extend_from_slice(&[frame::VERSION, kind]);
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn batch(messages: &[RaftMessage]) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert_eq!(frame::encode_messages(GroupId::FIRST, messages, 64 << 20, &mut bytes), 0);
    bytes
}

/// Written unless the connection has ended.
pub(crate) async fn write<T: serde::Serialize>(send: &mut SendStream, kind: FrameKind, body: &T) {
    let _ = send.write_all(&framed(kind, body)).await;
}

/// The next frame of a stream, unless it ends.
pub(crate) async fn read_frame(receive: &mut RecvStream) -> Option<(FrameKind, Vec<u8>)> {
    let mut header = [0; 4];
    receive.read_exact(&mut header).await.ok()?;
    let mut rest = vec![0; u32::from_be_bytes(header) as usize];
    receive.read_exact(&mut rest).await.ok()?;
    let mut splitter = Splitter::new(64 << 20);
    splitter.push(&header);
    splitter.push(&rest);
    let (kind, body) = splitter.next_frame().unwrap().unwrap();
    Some((kind, body.to_vec()))
}

/// A server that shows that pair, asks for no certificate, and counts who gets through its TLS.
pub(crate) fn impostor(shows: Pair) -> (SocketAddr, Endpoint, mpsc::UnboundedReceiver<Connection>) {
    let mut crypto = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![shows.0], shows.1)
        .unwrap();
    crypto.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(crypto).unwrap();
    let endpoint = Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), local()).unwrap();
    let (sender, through) = mpsc::unbounded_channel();
    let accepting = endpoint.clone();
    actix_rt::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            if let Ok(connection) = incoming.await {
                let _ = sender.send(connection);
            }
        }
    });
    (endpoint.local_addr().unwrap(), endpoint, through)
}

pub(crate) const CODE: VarInt = VarInt::from_u32(0);
