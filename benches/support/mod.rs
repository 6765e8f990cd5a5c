//! What the benches share: nodes in one process over loopback QUIC and durable sled, and a closed loop of clients.

#![allow(dead_code, reason = "not every bench uses all of it")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use actorum::{Address, Builder, Config, NodeId, prelude::*};
use hdrhistogram::Histogram;

/// How long anything may take that is waited for.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(600);

/// A port that nobody uses now.
pub(crate) fn free_port() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port on loopback")
}

/// Where the nodes of a cluster are, so that they can be started again.
pub(crate) struct Founders(BTreeMap<NodeId, SocketAddr>);

impl Founders {
    /// So many.
    pub(crate) fn new(count: u64) -> Founders {
        Founders((1..=count).map(|id| (id, free_port())).collect())
    }

    /// Starts one of them, for the first time or again.
    pub(crate) async fn start<S: StateMachine + Default>(
        &self,
        id: NodeId,
        dir: &Path,
        configure: impl FnOnce(&mut Config),
    ) -> Raft<S> {
        let founders: BTreeMap<NodeId, Address> = self.0.iter().map(|(id, at)| (*id, (*at).into())).collect();
        let node = node(id, self.0[&id], dir, configure).bootstrap(Bootstrap::Form(founders));
        node.start().await.expect("a node starts")
    }

    /// Starts all of them.
    pub(crate) async fn start_all<S: StateMachine + Default>(
        &self,
        dir: &Path,
        configure: impl Fn(&mut Config),
    ) -> Vec<Raft<S>> {
        let mut nodes = Vec::new();
        for id in self.0.keys() {
            nodes.push(self.start(*id, dir, &configure).await);
        }
        nodes
    }
}

/// A node with everything but how it begins. Settings in ACTORUM_* count, too.
pub(crate) fn node<S: StateMachine + Default>(
    id: NodeId,
    at: SocketAddr,
    dir: &Path,
    configure: impl FnOnce(&mut Config),
) -> Builder<S> {
    let builder = RaftSystem::<S>::builder(id)
        .listen(at)
        .storage(Storage::Sled(dir.join(id.to_string())))
        .tls(Tls::DevSelfSigned(dir.join("ca")))
        .configure(configure);
    builder.from_env("ACTORUM").expect("the settings in ACTORUM_* can be used")
}

/// The node that leads, once it knows that it does.
pub(crate) async fn leader<S: StateMachine>(nodes: &[Raft<S>]) -> &Raft<S> {
    let id = nodes[0].wait_for_leader(TIMEOUT).await.expect("a leader").leader.expect("the wait was for one");
    let leader = &nodes[id as usize - 1];
    leader.wait(TIMEOUT, |status| status.role == Role::Leader).await.expect("it knows that it leads");
    leader
}

/// What a closed loop of clients saw.
pub(crate) struct Figures {
    /// How long it went on.
    pub took: Duration,
    /// What each client saw of each command, in microseconds.
    pub latencies: Histogram<u64>,
}

impl Figures {
    /// Commands per second.
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// A quantile of the latencies, in milliseconds.
    pub(crate) fn ms(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// So many clients on the leader, each proposing, awaiting the answer, proposing again, while there is something to
/// propose.
pub(crate) async fn closed_loop<S: StateMachine>(
    leader: &Raft<S>,
    outstanding: usize,
    next: impl Fn() -> Option<S::Command> + Clone + Send + 'static,
) -> Figures {
    let begin = Instant::now();
    let tasks: Vec<_> = (0..outstanding)
        .map(|_| {
            let (raft, next) = (leader.clone(), next.clone());
            tokio::spawn(async move {
                let mut latencies = histogram();
                while let Some(command) = next() {
                    let sent = Instant::now();
                    raft.propose(command).await.expect("the cluster is healthy");
                    latencies.saturating_record(sent.elapsed().as_micros() as u64);
                }
                latencies
            })
        })
        .collect();
    let mut latencies = histogram();
    for task in tasks {
        latencies.add(task.await.expect("a client does not panic")).expect("of one kind");
    }
    Figures { took: begin.elapsed(), latencies }
}

/// To three digits, up to a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000, 3).expect("bounds that a histogram can have")
}
