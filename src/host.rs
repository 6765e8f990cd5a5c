//! A node without its groups: what a process has once, and the groups that are opened on it.
//!
//! ```text
//!  Host::builder(1)…start() ─▶ Host: directory, certificates, settings ─▶ open(group, machine, …) ─▶ Raft<S>
//! ```
//!
//! This version runs one group on a node, [`GroupId::FIRST`], and [`RaftSystem::builder`](crate::RaftSystem::builder)
//! is a host with that group in one step. A host by itself is for an application that wants its directory and its
//! certificates checked before it builds its state machine, and the place where further groups will be opened.
//!
//! Deliberately absent: anything that belongs to one group.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::Path, sync::Arc};

use actix::{ArbiterHandle, WeakRecipient};
use actorum_actors::clock::{Clock, SystemClock};
use actorum_core::{features::Features, observer::MaybeObserver};
use actorum_machine::{
    ids::{Address, GroupId, NodeId},
    machine::StateMachine,
};
use tokio::sync::{Mutex, watch};

use crate::{
    boot::{self, OpenNode},
    builder::{Bootstrap, Network, StartError, Storage, Tls},
    config::Config,
    raft::Raft,
    request::Shutdown,
    status_hub::Life,
};

/// A node whose directory is open, and on which a group can be opened. Cheap to clone.
///
/// The host ends with its group, however that ends ([`Raft::shutdown`], the last handle dropped, a failure), or, if no
/// group was opened, with its last clone. Dropping a host whose group is open leaves the group alone.
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
/// let host = Host::builder(1).network(Network::Memory(MemoryNetwork::new())).storage(Storage::Memory).start().await?;
/// let founders = [(1, "n1".into())].into();
/// let raft = host.open(GroupId::FIRST, Counter::default(), GroupConfig::form(founders)).await?;
/// raft.wait_for_leader(Duration::from_secs(20)).await?;
/// assert_eq!(raft.propose(5).await?.response, 5);
/// host.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Host {
    id: NodeId,
    arbiter: ArbiterHandle,
    /// Locked as long as a group is being opened.
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How far a host has come.
enum State {
    /// Its directory is open, and no group is.
    Ready(Box<OpenNode>),
    /// Its group was opened.
    Open { group: WeakRecipient<Shutdown>, life: watch::Receiver<Life> },
    /// It was shut down, or its group could not be opened.
    Ended,
}

impl Host {
    /// Collects what a node with this id needs.
    pub fn builder(id: NodeId) -> HostBuilder {
        HostBuilder {
            id,
            listen: None,
            storage: None,
            tls: None,
            network: Network::Quic,
            config: Config::default(),
            certificates: Vec::new(),
            clock: SystemClock::shared(),
            observer: None,
            features: Features::all(),
        }
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Opens a group: rebuilds its state in `machine`, opens the port for peers, and starts the group's actors. Returns
    /// once they run; the group may still be forming or have no leader: wait with [`Raft::wait_for_leader`].
    ///
    /// Peers cannot reach the node before: a node that has not rebuilt its state would only keep them waiting.
    ///
    /// # Errors
    ///
    /// [`StartError::Group`] if the group is another one than [`GroupId::FIRST`], or was opened before; the host goes
    /// on. After any other error the host has ended and its directory is closed: mend the cause and start the host
    /// again.
    pub async fn open<S: StateMachine>(
        &self,
        group: GroupId,
        machine: S,
        config: GroupConfig,
    ) -> Result<Raft<S>, StartError> {
        let refused = |problem: &str| Err(StartError::Group { group, problem: problem.to_owned() });
        if group != boot::GROUP {
            return refused("this version runs one group on a node, group 0 (GroupId::FIRST)");
        }
        let mut state = self.state.clone().lock_owned().await;
        let node = match std::mem::replace(&mut *state, State::Ended) {
            State::Ready(node) => *node,
            State::Open { group, life } => {
                let ended = life.borrow().closed || life.has_changed().is_err();
                *state = State::Open { group, life };
                return match ended {
                    false => refused("it is open already: use the handle that opening it gave"),
                    true => refused("it was open and has ended, and its host with it: start the host again"),
                };
            }
            State::Ended => return refused("its host has ended: start the host again"),
        };
        // The step keeps the lock, so a caller that stops waiting cannot leave the host between two states.
        boot::run_on(&self.arbiter, move || async move {
            let raft = boot::open_group(node, machine, S::VERSION, config).await?;
            let (group, life) = (raft.system.downgrade().recipient(), raft.ingress.status_hub.life.clone());
            *state = State::Open { group, life };
            Ok(raft)
        })
        .await
    }

    /// Shuts the group down in order, as [`Raft::shutdown`] does, and closes the directory. Returns when that is done:
    /// what is in flight has [`Config::deadline_ms`](Config#structfield.deadline_ms) to finish. A group that is being
    /// opened is waited for.
    pub async fn shutdown(&self) {
        let mut state = self.state.clone().lock_owned().await;
        match std::mem::replace(&mut *state, State::Ended) {
            State::Ready(node) => boot::close(&self.arbiter, *node, state).await,
            State::Open { group, life } => {
                let running = group.upgrade();
                // Until it has ended: whoever gives up waiting may ask again.
                *state = State::Open { group, life };
                if let Some(group) = running {
                    // One that is gone has shut down.
                    let _ = group.send(Shutdown).await;
                }
                *state = State::Ended;
            }
            State::Ended => {}
        }
    }
}

/// Collects what a node needs, whichever groups it runs, then starts it.
pub struct HostBuilder {
    pub(crate) id: NodeId,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) storage: Option<Storage>,
    pub(crate) tls: Option<Tls>,
    pub(crate) network: Network,
    pub(crate) config: Config,
    pub(crate) certificates: Vec<(String, i64)>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) observer: MaybeObserver,
    /// The features that its hello names; fewer only where a simulation has nodes of an older version.
    pub(crate) features: Features,
}

impl fmt::Debug for HostBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("HostBuilder");
        self.debug_fields(&mut fields);
        fields.finish_non_exhaustive()
    }
}

impl HostBuilder {
    /// Where peers reach this node. Port 0 takes a free one. The port is opened together with the first group.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Where the log lives.
    pub fn storage(mut self, storage: Storage) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Who this node is to its peers.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// What carries messages. QUIC unless said otherwise.
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// All settings at once, those of its group among them.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Changes settings in place.
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Reads settings from a TOML file, on top of what was set before.
    ///
    /// # Errors
    ///
    /// [`StartError::Config`] names the file if it cannot be read, and the key if it is unknown or its value is wrong.
    pub fn from_file(mut self, path: impl AsRef<Path>) -> Result<Self, StartError> {
        self.config.apply_file(path)?;
        Ok(self)
    }

    /// Reads settings from environment variables, `PREFIX_HEARTBEAT_MS` and so on, on top of what was set before.
    ///
    /// # Errors
    ///
    /// [`StartError::Config`] names the variable that is unknown or has a wrong value.
    pub fn from_env(mut self, prefix: &str) -> Result<Self, StartError> {
        for variable in self.config.apply_env(prefix, &[], std::env::vars_os())? {
            tracing::warn!("{variable} is left alone: a service manager sets it for a service of this name");
        }
        Ok(self)
    }

    /// A certificate that the application serves with, beside those of [`HostBuilder::tls`]; `not_after` is its end, in
    /// seconds since 1970. See [`Builder::certificate`](crate::Builder::certificate).
    pub fn certificate(mut self, name: impl Into<String>, not_after: i64) -> Self {
        self.certificates.push((name.into(), not_after));
        self
    }

    /// Another source of time: for tests and simulations, see [`custom::clock`](crate::custom::clock).
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Checks the settings and the certificates and opens the directory, which is made if there is none.
    ///
    /// Inside an actix system the actors of its groups will run there; elsewhere (`#[tokio::main]`, a plain thread) on
    /// a thread of their own.
    ///
    /// # Errors
    ///
    /// [`StartError::Config`] if a setting is missing or wrong, [`StartError::Tls`] if the certificates cannot be used:
    /// nothing is made then. [`StartError::Open`] and [`StartError::Store`] if the directory cannot be opened or read,
    /// which leaves it as it is. [`StartError::Thread`] if the actors have no thread.
    pub async fn start(self) -> Result<Host, StartError> {
        let id = self.id;
        let (arbiter, node) = boot::start_node(self).await?;
        Ok(Host { id, arbiter, state: Arc::new(Mutex::new(State::Ready(Box::new(node)))) })
    }

    pub(crate) fn debug_fields(&self, fields: &mut fmt::DebugStruct<'_, '_>) {
        fields
            .field("id", &self.id)
            .field("listen", &self.listen)
            .field("storage", &self.storage)
            .field("tls", &self.tls)
            .field("network", &self.network)
            .field("config", &self.config);
    }
}

/// How a group is opened. Its bounds and times are those of its host ([`HostBuilder::configure`]).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupConfig {
    /// How the group begins where the directory holds nothing of it; ignored where it does.
    pub bootstrap: Bootstrap,
}

impl GroupConfig {
    /// A group that these nodes found together, this one among them; see [`Bootstrap::Form`].
    pub fn form(founders: BTreeMap<NodeId, Address>) -> GroupConfig {
        GroupConfig { bootstrap: Bootstrap::Form(founders) }
    }

    /// A group that this node waits to be added to, or that its directory holds already; see [`Bootstrap::Wait`].
    pub fn wait() -> GroupConfig {
        GroupConfig { bootstrap: Bootstrap::Wait }
    }
}
