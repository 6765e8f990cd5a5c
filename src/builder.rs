//! One call starts, restarts or joins.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use actorum_actors::clock::Clock;
use actorum_core::{identity::Identity, lives::LifeBook, log::store::StoreError, replica::ApplyError};
use actorum_machine::{
    ids::{Address, GroupId, NodeId},
    machine::StateMachine,
};
use actorum_store::log::{
    memory::MemoryDisk,
    store::{LogStore, OpenError},
};
use actorum_transport::{memory::MemoryNetwork, message::TransportHandle};

use crate::{
    boot,
    config::{Config, ConfigError},
    host::{GroupConfig, Host, HostBuilder},
    raft::Raft,
};

/// Where the log lives.
pub enum Storage {
    /// In memory: lost with the node. For tests and caches only.
    Memory,
    /// In memory, on a disk that outlives the node: for tests that stop a node and start it again. Keep a clone, and
    /// give it to the next start; the node before must have been shut down, or its last handle dropped.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use actorum::prelude::*;
    /// # #[derive(Default, serde::Serialize, serde::Deserialize)]
    /// # struct Counter(u64);
    /// # impl StateMachine for Counter {
    /// #     type Command = u64;
    /// #     type Response = u64;
    /// #     fn apply(&mut self, _: &ApplyContext, n: &u64) -> u64 { self.0 += n; self.0 }
    /// #     serde_snapshot!();
    /// # }
    /// # actix_rt::System::new().block_on(async {
    /// let disk = MemoryDisk::new();
    /// for expected in [1, 2] {
    ///     let node = RaftSystem::<Counter>::builder(1)
    ///         .network(Network::Memory(MemoryNetwork::new()))
    ///         .storage(Storage::MemoryDisk(disk.clone()))
    ///         .bootstrap(Bootstrap::Form([(1, "n1".into())].into()));
    ///     let raft = node.start().await?;
    ///     raft.wait_for_leader(Duration::from_secs(20)).await?;
    ///     assert_eq!(raft.propose(1).await?.response, expected);
    ///     raft.shutdown().await;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    MemoryDisk(MemoryDisk),
    /// In a directory of this node's own, by sled, durable.
    Sled(PathBuf),
    /// In a store of your own: see [`custom::storage`](crate::custom::storage).
    Custom(Box<dyn LogStore>),
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Storage::Memory => f.write_str("Memory"),
            Storage::MemoryDisk(_) => f.write_str("MemoryDisk(..)"),
            Storage::Sled(path) => f.debug_tuple("Sled").field(path).finish(),
            Storage::Custom(_) => f.write_str("Custom(..)"),
        }
    }
}

/// Who this node is to its peers.
#[derive(Debug)]
pub enum Tls {
    /// Certificates made on the fly, shared by all nodes that are given the same directory: for development. Whoever
    /// reads the directory can be any node.
    DevSelfSigned(PathBuf),
    /// `ca.pem`, `cert.pem` and `key.pem` in a directory, as `actorum certs` makes them.
    Directory(PathBuf),
}

/// What carries messages between nodes.
pub enum Network {
    /// QUIC with mutual TLS.
    Quic,
    /// A network inside this process, shared by the nodes that are given clones of it.
    Memory(MemoryNetwork),
    /// A transport of your own: see [`custom::network`](crate::custom::network). Called once with this node's identity,
    /// and with the lives of its directory if its store keeps them, on the thread of the actors, to start it and give
    /// its addresses.
    Custom(StartTransport),
}

/// Starts a transport for the node with this identity, whose store keeps these lives of directories, if it keeps any.
pub type StartTransport = Box<dyn FnOnce(Identity, Option<Arc<LifeBook>>) -> TransportHandle + Send>;

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Network::Quic => "Quic",
            Network::Memory(_) => "Memory(..)",
            Network::Custom(_) => "Custom(..)",
        })
    }
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
    /// What the directory holds cannot be read.
    #[error("the log: {0}")]
    Store(#[from] StoreError),
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
    /// The state cannot be rebuilt: the state machine does not fit the log, or failed while it was replayed.
    #[error("{0}")]
    Machine(String),
    /// Every snapshot that the log begins with is damaged or missing, and the message names each file and the way out.
    #[error("{0}")]
    NoSnapshot(String),
    /// The founders cannot be right.
    #[error("{0}")]
    Founders(String),
    /// The host cannot open this group.
    #[error("group {}: {problem}", .group.0)]
    Group {
        /// The group.
        group: GroupId,
        /// Why, and what to do.
        problem: String,
    },
    /// No thread could be started, or the one that was died.
    #[error("the thread of the actors: {0}")]
    Thread(String),
}

impl From<ApplyError> for StartError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::NoSnapshot { .. } => StartError::NoSnapshot(error.to_string()),
            error => StartError::Machine(error.to_string()),
        }
    }
}

/// Collects what a node with one group needs, then starts it: a [`Host`] and its group in one step.
pub struct Builder<S: StateMachine> {
    pub(crate) host: HostBuilder,
    pub(crate) machine: S,
    pub(crate) group: GroupConfig,
    /// The version that the node says its state machine has; another one than `S::VERSION` only in a simulation.
    pub(crate) machine_version: u32,
}

/// Without the state machine, which may be large.
impl<S: StateMachine> fmt::Debug for Builder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Builder");
        self.host.debug_fields(&mut fields);
        fields.field("bootstrap", &self.group.bootstrap).finish_non_exhaustive()
    }
}

impl<S: StateMachine> Builder<S> {
    /// A node with this id and this state machine.
    pub fn new(id: NodeId, machine: S) -> Self {
        Builder { host: Host::builder(id), machine, group: GroupConfig::wait(), machine_version: S::VERSION }
    }

    /// The state machine to start with, in place of `S::default()`.
    pub fn state_machine(mut self, machine: S) -> Self {
        self.machine = machine;
        self
    }

    /// Where peers reach this node. Port 0 takes a free one.
    pub fn listen(self, address: SocketAddr) -> Self {
        self.of_host(|host| host.listen(address))
    }

    /// Where the log lives.
    pub fn storage(self, storage: Storage) -> Self {
        self.of_host(|host| host.storage(storage))
    }

    /// Who this node is to its peers.
    pub fn tls(self, tls: Tls) -> Self {
        self.of_host(|host| host.tls(tls))
    }

    /// What carries messages. QUIC unless said otherwise.
    pub fn network(self, network: Network) -> Self {
        self.of_host(|host| host.network(network))
    }

    /// How an empty directory begins: it waits to be added unless said otherwise.
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.group.bootstrap = bootstrap;
        self
    }

    /// The name of the cluster that this node founds. All founders must have the same name. See
    /// [`Config::cluster_name`](Config#structfield.cluster_name).
    pub fn cluster_name(self, name: impl Into<String>) -> Self {
        self.configure(|config| config.cluster_name = name.into())
    }

    /// All settings at once.
    pub fn config(self, config: Config) -> Self {
        self.of_host(|host| host.config(config))
    }

    /// Changes settings in place.
    pub fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        self.of_host(|host| host.configure(change))
    }

    /// Reads settings from a TOML file, on top of what was set before.
    ///
    /// # Errors
    ///
    /// [`StartError::Config`] names the file if it cannot be read, and the key if it is unknown or its value is wrong.
    pub fn from_file(mut self, path: impl AsRef<Path>) -> Result<Self, StartError> {
        self.host = self.host.from_file(path)?;
        Ok(self)
    }

    /// Reads settings from environment variables, `PREFIX_HEARTBEAT_MS` and so on, on top of what was set before.
    ///
    /// # Errors
    ///
    /// [`StartError::Config`] names the variable that is unknown or has a wrong value.
    pub fn from_env(mut self, prefix: &str) -> Result<Self, StartError> {
        self.host = self.host.from_env(prefix)?;
        Ok(self)
    }

    /// A certificate that the application serves with, beside those of [`Builder::tls`]: its end is watched as theirs
    /// is, in the status, its conditions ([`Reason::CertificateExpiring`](crate::Reason::CertificateExpiring)) and the
    /// log, where it has this name, such as `admin-certs/cert.pem`. `not_after` is its end, in seconds since 1970.
    pub fn certificate(self, name: impl Into<String>, not_after: i64) -> Self {
        self.of_host(|host| host.certificate(name, not_after))
    }

    /// Another source of time: for tests and simulations, see [`custom::clock`](crate::custom::clock).
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        self.of_host(|host| host.clock(clock))
    }

    /// Starts, restarts or joins. Returns once the node runs; it may still be forming its cluster
    /// or have no leader: wait with [`Raft::wait_for_leader`].
    ///
    /// Inside an actix system the actors run there; elsewhere (`#[tokio::main]`, a plain thread) on a thread of their
    /// own.
    pub async fn start(self) -> Result<Raft<S>, StartError> {
        boot::start(self).await
    }

    fn of_host(mut self, change: impl FnOnce(HostBuilder) -> HostBuilder) -> Self {
        self.host = change(self.host);
        self
    }
}
