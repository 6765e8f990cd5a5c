//! What the tests of whole nodes share: a state machine, and the start of a few nodes in one process.
#![allow(dead_code, missing_docs)] // each test uses a part of it

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use actix::prelude::*;
use actorum::{Network, NodeId, prelude::*};
use actorum_actors::log::store::*;
use actorum_transport::{message::*, wire::*};
use serde::{Deserialize, Serialize};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Adds up what is proposed, and remembers in which order. 666 panics.
#[derive(Default, Serialize, Deserialize)]
pub struct Sum {
    pub total: u64,
    pub seen: Vec<u64>,
}

impl StateMachine for Sum {
    type Command = u64;
    type Response = u64;
    fn apply(&mut self, _: &ApplyContext, number: &u64) -> u64 {
        assert_ne!(*number, 666, "the number of the beast");
        self.total += number;
        self.seen.push(*number);
        self.total
    }
    serde_snapshot!();
}

#[derive(Clone, Default)]
pub struct Hub(Arc<Mutex<Inner>>);
#[derive(Default)]
struct Inner {
    nodes: BTreeMap<NodeId, (Identity, Upward)>,
    cut: BTreeSet<NodeId>,
}

impl Hub {
    pub fn network(&self) -> Network {
        let hub = self.clone();
        Network::Custom(Box::new(move |me| {
            let addr = Port { hub, me }.start();
            TransportHandle {
                transmit: addr.clone().recipient(),
                ask: addr.clone().recipient(),
                set_peers: addr.clone().recipient(),
                set_cluster: addr.clone().recipient(),
                status: addr.clone().recipient(),
                attach: addr.clone().recipient(),
                close: addr.recipient(),
            }
        }))
    }
    pub fn cut(&self, id: NodeId) {
        self.0.lock().unwrap().cut.insert(id);
    }
    pub fn heal(&self, id: NodeId) {
        self.0.lock().unwrap().cut.remove(&id);
    }
    fn up(&self, from: NodeId, to: NodeId) -> Option<Upward> {
        let inner = self.0.lock().unwrap();
        if inner.cut.contains(&from) || inner.cut.contains(&to) {
            return None;
        }
        inner.nodes.get(&to).map(|(_, up)| up.clone())
    }
}

struct Port {
    hub: Hub,
    me: Identity,
}
impl Actor for Port {
    type Context = Context<Self>;
}
impl Handler<Transmit> for Port {
    type Result = ();
    fn handle(&mut self, Transmit { group, messages }: Transmit, _: &mut Context<Self>) {
        for (to, message) in messages {
            let up = self.hub.up(self.me.id, to);
            if let Some(up) = up.and_then(|up| up.received.upgrade()) {
                up.do_send(Received { group, from: self.me.id, messages: vec![message] });
            }
        }
    }
}
impl Handler<Ask> for Port {
    type Result = ();
    fn handle(&mut self, Ask { id, group, to, request, timeout, reply_to }: Ask, ctx: &mut Context<Self>) {
        let up = self.hub.up(self.me.id, to);
        let target = up.and_then(|up| match request {
            actorum_transport::wire::Request::Formation(_) => up.formation.upgrade(),
            _ => up.asked.upgrade(),
        });
        let from = self.me.id;
        let answer = target.map(|target| {
            let (responder, answer) = Responder::new();
            target.do_send(Asked { group, from, request, responder });
            answer
        });
        let wait = async move {
            let result = match answer {
                None => Err(AskError::NotSent("cut".into())),
                Some(answer) => match tokio::time::timeout(timeout, answer).await {
                    Ok(Ok(response)) => Ok(response),
                    _ => Err(AskError::Lost("lost".into())),
                },
            };
            if let Some(reply_to) = reply_to.upgrade() {
                reply_to.do_send(Answered { id, from: to, result });
            }
        };
        ctx.spawn(wait.into_actor(self));
    }
}
impl Handler<SetPeers> for Port {
    type Result = ();
    fn handle(&mut self, _: SetPeers, _: &mut Context<Self>) {}
}
impl Handler<SetCluster> for Port {
    type Result = ();
    fn handle(&mut self, _: SetCluster, _: &mut Context<Self>) {}
}
impl Handler<GetTransportStatus> for Port {
    type Result = TransportStatus;
    fn handle(&mut self, _: GetTransportStatus, _: &mut Context<Self>) -> TransportStatus {
        TransportStatus::default()
    }
}
impl Handler<Attach> for Port {
    type Result = ();
    fn handle(&mut self, Attach { upward }: Attach, _: &mut Context<Self>) {
        let mut inner = self.hub.0.lock().unwrap();
        for (them, theirs) in inner.nodes.values() {
            if let Some(up) = theirs.peer_up.upgrade() {
                up.do_send(PeerUp { identity: self.me.clone() });
            }
            if let Some(up) = upward.peer_up.upgrade() {
                up.do_send(PeerUp { identity: them.clone() });
            }
        }
        inner.nodes.insert(self.me.id, (self.me.clone(), upward));
    }
}
impl Handler<Close> for Port {
    type Result = ();
    fn handle(&mut self, _: Close, ctx: &mut Context<Self>) {
        self.hub.0.lock().unwrap().nodes.remove(&self.me.id);
        ctx.stop();
    }
}

/// A disk in memory that survives its store.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Content>>);
#[derive(Default)]
struct Content {
    boot: u64,
    open: bool,
    fail: bool,
    snapshot: Option<Snapshot>,
    hard: HardState,
    entries: BTreeMap<u64, Entry>,
}
impl Disk {
    pub fn is_open(&self) -> bool {
        self.0.lock().unwrap().open
    }
    pub fn fail(&self) {
        self.0.lock().unwrap().fail = true;
    }
    pub fn store(&self, id: NodeId) -> Storage {
        let mut c = self.0.lock().unwrap();
        assert!(!c.open, "opened twice");
        c.open = true;
        c.boot += 1;
        Storage::Custom(Box::new(MemStore(self.clone(), id)))
    }
}
struct MemStore(Disk, NodeId);
struct MemAppender(Disk, u64, Completions);
impl LogStore for MemStore {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity { id: self.1, incarnation: Incarnation(self.1 * 7), boot: self.0.0.lock().unwrap().boot }
    }
    fn recover(&self, _: GroupId) -> Result<Recovered, StoreError> {
        let c = self.0.0.lock().unwrap();
        let Some(s) = c.snapshot.clone() else { return Ok(Recovered::default()) };
        let mut terms = vec![(s.index, s.term)];
        for e in c.entries.values() {
            if terms.last().unwrap().1 != e.term {
                terms.push((e.index, e.term));
            }
        }
        let last_index = c.entries.keys().last().copied().unwrap_or(s.index);
        Ok(Recovered { snapshot: Some(s), hard_state: c.hard, last_index, terms })
    }
    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(self.0.clone())
    }
    fn start(self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        Box::new(MemAppender(self.0.clone(), 0, completed))
    }
}
impl LogReader for Disk {
    fn entries(&self, _: GroupId, from: u64, to: u64, _: usize) -> Result<Vec<Entry>, StoreError> {
        let c = self.0.lock().unwrap();
        let missing = |i| StoreError::Closed(format!("no entry {i}"));
        (from..to).map(|i| c.entries.get(&i).cloned().ok_or_else(|| missing(i))).collect()
    }
    fn disk_bytes(&self) -> u64 {
        0
    }
}
impl LogAppender for MemAppender {
    fn submit(&mut self, batch: Batch) -> Ticket {
        self.1 += 1;
        let mut c = self.0.0.lock().unwrap();
        let result =
            if c.fail { Err(StoreError::Closed("a test's failing disk".into())) } else { Ok(Written::default()) };
        for w in batch.writes {
            if let Some(s) = w.snapshot {
                c.entries.clear();
                c.snapshot = Some(s);
            }
            if let Some(first) = w.entries.first() {
                c.entries.split_off(&first.index);
            }
            c.entries.extend(w.entries.into_iter().map(|e| (e.index, e)));
            c.hard = w.hard_state.unwrap_or(c.hard);
        }
        drop(c);
        (self.2)(Completed { ticket: Ticket(self.1), result });
        Ticket(self.1)
    }
}
impl Drop for MemAppender {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().open = false;
    }
}

/// The founders 1 to `count`.
pub fn founders(count: NodeId) -> Bootstrap {
    Bootstrap::Form((1..=count).map(|id| (id, Address(format!("n{id}")))).collect())
}

pub fn quick(config: &mut Config) {
    config.heartbeat_ms = 20;
    config.election_ms = 200;
}

pub async fn start(hub: &Hub, id: NodeId, disk: &Disk, bootstrap: Bootstrap) -> Raft<Sum> {
    let builder = RaftSystem::builder(id).network(hub.network()).storage(disk.store(id)).bootstrap(bootstrap);
    builder.configure(quick).start().await.unwrap()
}

/// Three founders with a leader; the leader first.
pub async fn three(hub: &Hub, disks: &[Disk; 3]) -> [Raft<Sum>; 3] {
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(start(hub, id, &disks[id as usize - 1], founders(3)).await);
    }
    let leader = nodes[0].wait_for_leader(PATIENCE).await.unwrap().leader.unwrap();
    for node in &nodes {
        node.wait(PATIENCE, |s| s.leader == Some(leader)).await.unwrap();
    }
    nodes.rotate_left(leader as usize - 1);
    nodes.try_into().ok().unwrap()
}
