//! A network inside one process: the same messages and the same rules as QUIC, without sockets, threads or keys.
//!
//! ```text
//!  Transmit, Ask ─▶ MemoryTransport n1 ──(link n1→n2: cut? full?)──▶ MemoryTransport n2 ─▶ Received, Asked
//! ```
//!
//! Messages of one direction arrive in order; a link that is cut loses what is sent over it, and the sender gets
//! [`Unreachable`](crate::message::Unreachable). Both ends check identities by the same rules as on a real network, but
//! there are no certificates.
//!
//! Queue: the messages on their way over one link. At [`LINK_BOUND`] messages the newest is dropped and the sender gets
//! `Unreachable`. The sender also gets it for a message that fits no frame, which is left out as on a real network.
//!
//! A node has one [`Endpoint`], whose number is its id. A directory that runs twice has two endpoints. What a peer
//! sends to that id goes to the endpoint that the peer accepted last.
//!
//! Deliberately absent: delay, loss and reordering. A simulation brings a [`LinkModel`] that has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use actix::{WeakAddr, prelude::*};
use actorum_core::{
    features::Features,
    identity::{Identity, RefusedBecause},
    lives::{FLUSH_EVERY, LifeBook, LifeKey},
    wire::{AskError, RaftMessage, Request, Response},
};
use actorum_machine::ids::{GroupId, NodeId};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use crate::{
    frame,
    hello::PeerPolicy,
    message::{
        Answered, Ask, Asked, Attach, AttachNode, Close, GetTransportStatus, PeerRefused, PeerStatus, Received,
        Responder, SetCluster, SetPeers, Transmit, TransportHandle, TransportStatus,
    },
    routes::Routes,
};

/// How many deliveries may be on their way over one direction of a link.
pub const LINK_BOUND: usize = 8192;

/// The largest frame of a real network's default, in bytes.
pub const MAX_FRAME: usize = 64 << 20;

/// The address of a process: its node's id, unless that node runs twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint(pub u64);

impl Endpoint {
    /// That of a node.
    pub fn of(id: NodeId) -> Endpoint {
        Endpoint(id)
    }
}

/// The largest frames of a network, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// For Raft messages. A larger one is left out, and its sender gets `Unreachable`.
    pub messages: usize,
    /// For questions and answers. A larger question is not sent, a larger answer is lost.
    pub questions: usize,
}

impl Default for Frames {
    fn default() -> Frames {
        Frames { messages: MAX_FRAME, questions: MAX_FRAME }
    }
}

/// The links of a simulation, in place of links that deliver everything at once.
pub trait LinkModel: Send + Sync {
    /// Whether a connection between the two stands, or could be made now.
    fn stands(&self, from: Endpoint, to: Endpoint) -> bool;

    /// A process, in that boot of its directory, sends something to another one. Each call of `deliver` brings it to
    /// the other end. The model may call it never, now, later, or more than once (a question or an answer arrives at
    /// most once, however often it is called).
    fn carry(&self, from: (Endpoint, u64), to: Endpoint, parcel: Parcel<'_>, deliver: Deliver);

    /// How large what it carries may be.
    fn frames(&self) -> Frames {
        Frames::default()
    }

    /// Something that may take so many bytes fits no frame, and is not sent.
    fn fits_no_frame(&self, _from: Endpoint, _to: Endpoint, _parcel: Parcel<'_>, _bytes: usize) {}
}

/// What is on its way.
#[derive(Clone, Copy, Debug)]
pub enum Parcel<'a> {
    /// A Raft message.
    Message(&'a RaftMessage),
    /// A question.
    Question(&'a Request),
    /// The answer to one.
    Answer(&'a Response),
    /// The other end does not let this node in.
    Refusal(&'a RefusedBecause),
}

/// Brings a parcel to the other end. If it is dropped without a call, the parcel is lost.
pub type Deliver = Arc<dyn Fn() + Send + Sync>;

/// A delivery that can happen only once.
fn once(deliver: impl FnOnce() + Send + 'static) -> Deliver {
    let deliver = Mutex::new(Some(deliver));
    Arc::new(move || {
        let deliver = deliver.lock().unwrap_or_else(PoisonError::into_inner).take();
        deliver.into_iter().for_each(|deliver| deliver());
    })
}

/// Joins the transports of any number of nodes. Clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<Mutex<Topology>>, Option<Arc<dyn LinkModel>>);

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNetwork").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Topology {
    nodes: BTreeMap<Endpoint, (Identity, WeakAddr<MemoryTransport>)>,
    cut: BTreeSet<(Endpoint, Endpoint)>,
    /// How much is on its way, by direction.
    under_way: BTreeMap<(Endpoint, Endpoint), Arc<AtomicUsize>>,
}

impl MemoryNetwork {
    /// A network without nodes.
    pub fn new() -> Self {
        MemoryNetwork::default()
    }

    /// A network whose links behave as `model` says.
    pub fn over(model: Arc<dyn LinkModel>) -> Self {
        MemoryNetwork(Arc::default(), Some(model))
    }

    /// Starts the transport of a node on the current arbiter. A node started again under the same id takes the
    /// place of the one before.
    pub fn start(&self, identity: Identity) -> TransportHandle {
        self.start_with(identity, None)
    }

    /// The same for a node whose store keeps lives.
    pub fn start_with(&self, identity: Identity, lives: Option<Arc<LifeBook>>) -> TransportHandle {
        self.start_at(Endpoint::of(identity.id), identity, lives)
    }

    /// The same at another endpoint than that of its id, beside the process that already runs.
    pub fn start_at(&self, endpoint: Endpoint, identity: Identity, lives: Option<Arc<LifeBook>>) -> TransportHandle {
        let network = self.clone();
        let policy = PeerPolicy::new(identity, lives);
        let (identity, now) = (policy.own().clone(), Instant::now());
        let (up, refused, ends, routes) = Default::default();
        let addr = MemoryTransport { network, endpoint, policy, routes, up, ends, refused, flushed: now }.start();
        self.topology().nodes.insert(endpoint, (identity, addr.downgrade()));
        TransportHandle {
            transmit: addr.clone().recipient(),
            ask: addr.clone().recipient(),
            set_peers: addr.clone().recipient(),
            set_cluster: addr.clone().recipient(),
            status: addr.clone().recipient(),
            attach: addr.clone().recipient(),
            attach_node: addr.clone().recipient(),
            close: addr.recipient(),
        }
    }

    /// From now on nothing that `from` sends reaches `to`; the other direction is untouched.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.topology().cut.insert((Endpoint(from), Endpoint(to)));
    }

    /// Undoes [`cut`](Self::cut).
    pub fn heal(&self, from: NodeId, to: NodeId) {
        self.topology().cut.remove(&(Endpoint(from), Endpoint(to)));
    }

    /// Undoes every cut.
    pub fn heal_all(&self) {
        self.topology().cut.clear();
    }

    /// Cuts a node off from all others that were started so far, in both directions.
    pub fn isolate(&self, id: NodeId) {
        let mut topology = self.topology();
        let id = Endpoint::of(id);
        let others: Vec<Endpoint> = topology.nodes.keys().copied().filter(|other| *other != id).collect();
        topology.cut.extend(others.into_iter().flat_map(|other| [(id, other), (other, id)]));
    }

    fn is_cut(&self, from: Endpoint, to: Endpoint) -> bool {
        self.topology().cut.contains(&(from, to))
    }

    /// The other end of a link, or why the link delivers nothing.
    fn reach(&self, from: Endpoint, to: Endpoint) -> Result<(Identity, Addr<MemoryTransport>), &'static str> {
        if self.1.as_ref().is_some_and(|model| !model.stands(from, to)) {
            return Err("there is no connection");
        }
        let topology = self.topology();
        if topology.cut.contains(&(from, to)) {
            return Err("the link is cut");
        }
        let (identity, node) = topology.nodes.get(&to).ok_or("no such node is running")?;
        node.upgrade().map(|node| (identity.clone(), node)).ok_or("the node has stopped")
    }

    /// One more delivery on its way, unless the link is full.
    fn load(&self, from: Endpoint, to: Endpoint) -> Option<Load> {
        let counter = self.topology().under_way.entry((from, to)).or_default().clone();
        (counter.fetch_add(1, Relaxed) < LINK_BOUND).then_some(()).or_else(|| {
            counter.fetch_sub(1, Relaxed);
            None
        })?;
        Some(Load(counter))
    }

    fn frames(&self) -> Frames {
        self.1.as_ref().map_or_else(Frames::default, |model| model.frames())
    }

    /// Whether something that may take so many bytes fits a frame of at most `max`. If it does not, the model is told.
    fn fits(&self, from: Endpoint, to: Endpoint, parcel: Parcel<'_>, bytes: usize, max: usize) -> bool {
        if bytes > max
            && let Some(model) = &self.1
        {
            model.fits_no_frame(from, to, parcel, bytes);
        }
        bytes <= max
    }

    /// The map is always consistent, even after a panic of other code that held the lock.
    fn topology(&self) -> MutexGuard<'_, Topology> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one delivery for as long as it is on its way.
struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One node's end of a [`MemoryNetwork`].
pub struct MemoryTransport {
    network: MemoryNetwork,
    endpoint: Endpoint,
    policy: PeerPolicy,
    routes: Routes,
    /// Peers that were accepted, as they were then.
    up: BTreeMap<NodeId, Identity>,
    /// The endpoints of peers that were last heard from another endpoint than that of their id.
    ends: BTreeMap<NodeId, Endpoint>,
    /// The last refusal of each peer, by it or of it, so that each refusal is reported once.
    refused: BTreeMap<NodeId, (bool, RefusedBecause)>,
    /// When acknowledged indexes were recorded last.
    flushed: Instant,
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryTransport { endpoint, policy, up, refused, .. } = self;
        f.debug_struct("MemoryTransport")
            .field("id", &policy.own().id)
            .field("endpoint", endpoint)
            .field("up", &up.keys())
            .field("refused", &refused.keys())
            .finish_non_exhaustive()
    }
}

impl Actor for MemoryTransport {
    type Context = Context<Self>;
}

impl MemoryTransport {
    fn id(&self) -> NodeId {
        self.policy.own().id
    }

    fn unreachable(&self, group: GroupId, peer: NodeId) {
        self.routes.unreachable(group, peer);
    }

    /// Checks a peer, and reports the first time that it is accepted or refused. An error without a reason means that
    /// it may try again.
    fn admit(&mut self, theirs: &Identity) -> Result<(), Option<RefusedBecause>> {
        if let Err(reason) = self.policy.check(theirs) {
            self.refuse(theirs.id, false, reason.clone());
            return Err(Some(reason));
        }
        // The life is recorded before anything of it counts. It is recorded at once, since this network has no threads
        // and no slow disk.
        if let Err(error) = self.policy.book().record(theirs) {
            tracing::debug!(peer = theirs.id, %error, "a life cannot be recorded");
            return Err(None);
        }
        self.policy.let_in(theirs);
        self.refused.remove(&theirs.id);
        if self.up.insert(theirs.id, theirs.clone()).as_ref() != Some(theirs) {
            self.routes.peer_up(theirs.clone());
        }
        Ok(())
    }

    fn refuse(&mut self, peer: NodeId, by_peer: bool, reason: RefusedBecause) {
        self.up.remove(&peer);
        if self.refused.insert(peer, (by_peer, reason.clone())) == Some((by_peer, reason.clone())) {
            return;
        }
        self.routes.peer_refused(PeerRefused { peer, by_peer, reason });
    }

    /// Which life of a node is on record here.
    fn recorded(&self, of: NodeId) -> Option<LifeKey> {
        self.policy.book().record_of(of).map(|record| record.life.key())
    }

    fn flush_if_due(&mut self) {
        if self.flushed.elapsed() >= FLUSH_EVERY && self.policy.book().wants_flush() {
            self.flushed = Instant::now();
            self.policy.book().flush();
        }
    }

    /// The other end, if the link works and this node accepts it.
    fn reach(&mut self, to: NodeId) -> Result<Reached, String> {
        let elsewhere = self.ends.get(&to).copied().filter(|end| self.network.reach(self.endpoint, *end).is_ok());
        let end = elsewhere.unwrap_or(Endpoint::of(to));
        let (theirs, node) = self.network.reach(self.endpoint, end).map_err(str::to_owned)?;
        self.admit(&theirs)
            .map_err(|reason| reason.map_or("it is not on record".into(), |reason| reason.to_string()))?;
        let load = self.network.load(self.endpoint, end).ok_or("the link is full")?;
        Ok(Reached { end, features: theirs.features, node, load })
    }

    /// What this node sends to that peer goes to this endpoint from now on.
    fn heard_from(&mut self, peer: NodeId, end: Endpoint) {
        match end == Endpoint::of(peer) {
            true => drop(self.ends.remove(&peer)),
            false => drop(self.ends.insert(peer, end)),
        }
    }

    /// Which process this is.
    fn sender(&self) -> (Endpoint, u64) {
        (self.endpoint, self.policy.own().boot)
    }
}

/// The other end of a working link.
struct Reached {
    end: Endpoint,
    features: Features,
    node: Addr<MemoryTransport>,
    load: Load,
}

/// The messages that the peer's version knows; a peer of that version does not need the others.
fn understood(mut messages: Vec<RaftMessage>, features: &Features) -> Vec<RaftMessage> {
    messages.retain(|message| features.meet(message.kind.needs()));
    messages
}

/// Raft messages on their way over a link.
#[derive(Message)]
#[rtype(result = "()")]
struct Delivery {
    from: Identity,
    end: Endpoint,
    recorded: Option<LifeKey>,
    group: GroupId,
    messages: Vec<RaftMessage>,
    /// `None` where a [`LinkModel`] holds it.
    load: Option<Load>,
}

/// A question on its way over a link.
#[derive(Message)]
#[rtype(result = "()")]
struct LinkRequest {
    from: Identity,
    end: Endpoint,
    recorded: Option<LifeKey>,
    group: GroupId,
    request: Request,
    answer: oneshot::Sender<Response>,
    load: Option<Load>,
}

/// The other end did not let this node in.
#[derive(Message)]
#[rtype(result = "()")]
struct Refused {
    by: NodeId,
    group: GroupId,
    reason: RefusedBecause,
}

impl Handler<Transmit> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, Transmit { group, messages }: Transmit, _: &mut Context<Self>) {
        let mut by_peer: BTreeMap<NodeId, Vec<RaftMessage>> = BTreeMap::new();
        for (to, message) in messages {
            by_peer.entry(to).or_default().push(message);
        }
        for (to, messages) in by_peer {
            let recorded = self.recorded(to);
            let Reached { end, features, node, load } = match self.reach(to) {
                Ok(reached) => reached,
                Err(_) => {
                    self.unreachable(group, to);
                    continue;
                }
            };
            let (mut messages, (own, max)) = (understood(messages, &features), (self.endpoint, self.network.frames()));
            let count = messages.len();
            messages.retain(|message| {
                let bytes = message.encoded_bound() + frame::BATCH_FRAMING;
                self.network.fits(own, end, Parcel::Message(message), bytes, max.messages)
            });
            if messages.len() < count {
                self.unreachable(group, to);
            }
            let from = self.policy.own().clone();
            let Some(model) = self.network.1.clone() else {
                node.do_send(Delivery { from, end: own, recorded, group, messages, load: Some(load) });
                continue;
            };
            let load = Arc::new(load);
            for message in messages {
                let (node, from, load, copy) = (node.clone(), from.clone(), load.clone(), message.clone());
                let deliver = move || {
                    let _on_its_way = &load;
                    let (from, messages) = (from.clone(), vec![copy.clone()]);
                    node.do_send(Delivery { from, end: own, recorded, group, messages, load: None });
                };
                model.carry(self.sender(), end, Parcel::Message(&message), Arc::new(deliver));
            }
        }
    }
}

impl Handler<Delivery> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, ctx: &mut Context<Self>) {
        let Delivery { from, end, recorded, group, messages, load } = delivery;
        drop(load);
        if !self.routes.is_open() {
            return;
        }
        match self.admit(&from) {
            Ok(()) => {
                self.heard_from(from.id, end);
                recorded.into_iter().for_each(|life| self.policy.book().confirmed(from.id, life));
                if self.routes.takes(group, from.id, messages.len()) {
                    self.policy.book().note_acknowledged(from.id, &messages);
                    self.flush_if_due();
                    self.routes.deliver(Received { group, from: from.id, messages });
                }
            }
            Err(Some(reason)) => self.send_refusal(end, group, reason, ctx),
            Err(None) => {}
        }
    }
}

impl MemoryTransport {
    fn send_refusal(&self, to: Endpoint, group: GroupId, reason: RefusedBecause, _: &mut Context<Self>) {
        let Ok((_, node)) = self.network.reach(self.endpoint, to) else { return };
        let (by, told) = (self.id(), reason.clone());
        match &self.network.1 {
            None => node.do_send(Refused { by, group, reason }),
            Some(model) => {
                let deliver = once(move || node.do_send(Refused { by, group, reason: told }));
                model.carry(self.sender(), to, Parcel::Refusal(&reason), deliver);
            }
        }
    }
}

impl Handler<Refused> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, Refused { by, group, reason }: Refused, _: &mut Context<Self>) {
        self.refuse(by, true, reason);
        self.unreachable(group, by);
    }
}

impl Handler<Ask> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, ask: Ask, ctx: &mut Context<Self>) {
        let Ask { id, group, to, request, timeout: within, reply_to } = ask;
        let answer = move |result| {
            if let Some(asker) = reply_to.upgrade() {
                asker.do_send(Answered { id, from: to, result });
            }
        };
        let (end, node, load) = match self.reach(to) {
            Ok(Reached { end, features, node, load }) if features.meet(request.needs()) => (end, node, load),
            Ok(_) => {
                let cause = format!("node {to} runs a version that does not know this question");
                return answer(Err(AskError::NotSent(cause)));
            }
            Err(cause) => return answer(Err(AskError::NotSent(cause))),
        };
        let (own, max) = (self.endpoint, self.network.frames().questions);
        if let Err(error) = frame::question_fits(group, &request, max) {
            self.network.fits(own, end, Parcel::Question(&request), usize::MAX, max);
            return answer(Err(AskError::NotSent(error.to_string())));
        }
        let (sender, receiver) = oneshot::channel();
        let (from, recorded) = (self.policy.own().clone(), self.recorded(to));
        match &self.network.1 {
            None => {
                node.do_send(LinkRequest { from, end: own, recorded, group, request, answer: sender, load: Some(load) })
            }
            Some(model) => {
                let asked = request.clone();
                let deliver = once(move || {
                    drop(load);
                    node.do_send(LinkRequest { from, end: own, recorded, group, request, answer: sender, load: None });
                });
                model.carry(self.sender(), end, Parcel::Question(&asked), deliver);
            }
        }
        let network = self.network.clone();
        let wait = async move {
            let lost = |cause: &str| Err(AskError::Lost(cause.to_owned()));
            answer(match timeout(within, receiver).await {
                _ if network.is_cut(end, own) => lost("the link was cut"),
                Ok(Ok(response)) => Ok(response),
                Ok(Err(_)) => lost("the peer dropped the question"),
                Err(_) => lost("the time is up"),
            });
        };
        ctx.spawn(wait.into_actor(self));
    }
}

impl Handler<LinkRequest> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, question: LinkRequest, ctx: &mut Context<Self>) {
        let LinkRequest { from, end, recorded, group, request, answer, load } = question;
        drop(load);
        if !self.routes.is_open() {
            return;
        }
        match self.admit(&from) {
            Ok(()) => recorded.into_iter().for_each(|life| self.policy.book().confirmed(from.id, life)),
            Err(Some(reason)) => return self.send_refusal(end, group, reason, ctx),
            Err(None) => return,
        }
        let (responder, answered) = Responder::new();
        self.routes.ask(Asked { group, from: from.id, request: request.bounded(), responder });
        let (network, own, max) = (self.network.clone(), self.sender(), self.network.frames().questions);
        let wait = async move {
            let Ok(response) = answered.await else { return };
            let response = frame::answer_within(response, max);
            if !frame::answer_fits(&response, max) {
                network.fits(own.0, end, Parcel::Answer(&response), usize::MAX, max);
                return;
            }
            match &network.1 {
                None => drop(answer.send(response)),
                Some(model) => {
                    let copy = response.clone();
                    let deliver = once(move || drop(answer.send(copy)));
                    model.carry(own, end, Parcel::Answer(&response), deliver);
                }
            }
        };
        ctx.spawn(wait.into_actor(self));
    }
}

impl Handler<SetPeers> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, peers: SetPeers, _: &mut Context<Self>) {
        self.policy.set_peers(peers);
    }
}

impl Handler<SetCluster> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, SetCluster(cluster): SetCluster, _: &mut Context<Self>) {
        self.policy.set_cluster(cluster);
        let own = self.policy.own().clone();
        if let Some((identity, _)) = self.network.topology().nodes.get_mut(&self.endpoint)
            && identity.boot == own.boot
        {
            *identity = own;
        }
    }
}

impl Handler<Attach> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, attach: Attach, _: &mut Context<Self>) {
        self.routes.attach(attach);
    }
}

impl Handler<AttachNode> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, attach: AttachNode, _: &mut Context<Self>) {
        self.routes.attach_node(attach);
    }
}

impl Handler<GetTransportStatus> for MemoryTransport {
    type Result = TransportStatus;

    fn handle(&mut self, GetTransportStatus: GetTransportStatus, _: &mut Context<Self>) -> TransportStatus {
        let peer = |id: &NodeId| PeerStatus {
            connected: self.up.contains_key(id) && self.network.reach(self.endpoint, Endpoint::of(*id)).is_ok(),
            last_error: self.refused.get(id).map(|(_, reason)| reason.to_string()),
            features: self.up.get(id).map_or_else(Features::none, |identity| identity.features.clone()),
            ..PeerStatus::default()
        };
        let peers = self.policy.peers().keys().map(|id| (*id, peer(id))).collect();
        TransportStatus { misdirected: self.routes.misdirected(), peers, ..TransportStatus::default() }
    }
}

impl Handler<Close> for MemoryTransport {
    type Result = ();

    fn handle(&mut self, Close: Close, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
