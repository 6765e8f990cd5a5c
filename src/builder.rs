//! One call starts, restarts or joins.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use actorum_actors::{
    log::store::{LogStore, OpenError},
    machine::StateMachine,
};
use actorum_transport::wire::{Address, NodeId};

use crate::{
    config::{Config, ConfigError},
    raft::Raft,
};

/// Where the log lives.
pub enum Storage {
    /// In memory: lost with the process. For tests and caches only.
    Memory,
    /// In a directory of this node's own, by sled, durable.
    Sled(PathBuf),
    /// In a store of your own; it must pass the conformance suite of `actorum_actors::log`.
    Custom(Box<dyn LogStore>),
}

/// Who this node is to its peers.
pub enum Tls {
    /// Certificates made on the fly, shared by all nodes that are given the same directory: for development. Whoever reads the directory can be any node.
    DevSelfSigned(PathBuf),
    /// `ca.pem`, `cert.pem` and `key.pem` in a directory, as `actorum certs` makes them.
    Directory(PathBuf),
}

/// What carries messages between nodes.
pub enum Network {
    /// QUIC with mutual TLS.
    Quic,
    /// A network inside this process, for tests.
    Memory(()),
}

/// How a node with an empty directory begins. One that has begun before ignores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// Found a cluster together with these nodes, this one among them. All of them are started with the same list.
    Form(BTreeMap<NodeId, Address>),
    /// Hold nothing, and wait to be added by `ConfChange::AddLearner` on a running cluster.
    Wait,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The directory cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The certificates cannot be used.
    #[error("certificates: {0}")]
    Tls(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        error: String,
    },
    /// What the state machine holds does not fit the log.
    #[error("{0}")]
    Machine(String),
    /// The founders cannot be right.
    #[error("{0}")]
    Founders(String),
}

/// Collects what a node needs, then starts it.
pub struct Builder<S: StateMachine> {
    #[allow(dead_code)]
    id: NodeId,
    #[allow(dead_code)]
    machine: S,
}

#[allow(clippy::todo, unused_variables)]
impl<S: StateMachine> Builder<S> {
    /// A node with this id and this state machine.
    pub fn new(id: NodeId, machine: S) -> Self {
        Builder { id, machine }
    }

    /// The state machine to start with, in place of `S::default()`.
    pub fn state_machine(mut self, machine: S) -> Self {
        self.machine = machine;
        self
    }

    /// Where peers reach this node. Port 0 takes a free one.
    pub fn listen(self, address: SocketAddr) -> Self {
        todo!()
    }

    /// Where the log lives.
    pub fn storage(self, storage: Storage) -> Self {
        todo!()
    }

    /// Who this node is to its peers.
    pub fn tls(self, tls: Tls) -> Self {
        todo!()
    }

    /// What carries messages.
    pub fn network(self, network: Network) -> Self {
        todo!()
    }

    /// How an empty directory begins.
    pub fn bootstrap(self, bootstrap: Bootstrap) -> Self {
        todo!()
    }

    /// All settings at once.
    pub fn config(self, config: Config) -> Self {
        todo!()
    }

    /// Changes settings in place.
    pub fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        todo!()
    }

    /// Reads settings from a TOML file.
    pub fn from_file(self, path: impl AsRef<std::path::Path>) -> Result<Self, StartError> {
        todo!()
    }

    /// Reads settings from environment variables, `PREFIX_HEARTBEAT_MS` and so on.
    pub fn from_env(self, prefix: &str) -> Result<Self, StartError> {
        todo!()
    }

    /// Starts, restarts or joins. Returns once the node runs; it may still be forming its cluster
    /// or have no leader: wait with [`Raft::wait_for_leader`].
    ///
    /// Inside an actix system the actors run there; elsewhere (`#[tokio::main]`, a plain thread) on a thread of their own.
    pub async fn start(self) -> Result<Raft<S>, StartError> {
        todo!()
    }
}
