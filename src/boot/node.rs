//! What a node has, whichever groups it runs: who it is, its log, its network, its bounds.
//!
//! ```text
//!  directory ─▶ About ─┬─▶ NodeParts: log writer, transport, admission ─▶ start_group, once for each group
//!  sockets ────────────┘
//! ```
//!
//! Deliberately absent: anything that belongs to one group. These actors tell each registered group what became of its
//! messages.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actix::{WeakRecipient, prelude::*};
use actorum_actors::{
    admission::Admission,
    clock::Clock,
    log_writer::{DiskBounds, LogWriter, LogWriterStatus, SHORT},
    message::Failed,
};
use actorum_core::{
    features::{Feature, Features},
    identity::Identity,
    lives::LifeBook,
    log::store::LogReader,
    observer::MaybeObserver,
    system_state::SystemState,
    wire::Snapshot,
};
use actorum_machine::ids::NodeId;
use actorum_store::{
    log::{
        directory,
        memory::MemoryDisk,
        sled::{OpenOptions, SledStore},
        space,
        store::{LogStore, StoreIdentity},
    },
    snapshot::SnapshotStore,
};
use actorum_transport::{
    memory::MemoryNetwork,
    message::{TransportHandle, TransportStatus},
    quic::{QuicConfig, QuicTransport, TransportError},
    tls::TlsIdentity,
};
use tokio::sync::watch;

use super::{OwnSystem, blocking, missing, new_incarnation, roll};
use crate::{
    builder::{Network, StartError, StartTransport, Storage, Tls},
    config::{Config, MAX_FRAME},
    host::HostBuilder,
    ingress::check_id,
    status_hub::Life,
    volume,
};

/// With the default of `snapshot_bytes` a snapshot that costs a quarter of that is taken after so many bytes.
const SMALL_SNAPSHOT_BYTES: u64 = 64 << 20;

/// A node whose settings, certificates and directory are checked and open, and that has no actors yet.
pub(crate) struct OpenNode {
    pub about: About,
    pub store: Box<dyn LogStore>,
    /// How large its volume is, where it has one.
    pub volume: Option<u64>,
    pub network: ReadyNetwork,
    /// Dropped last: it ends the thread of the actors.
    pub own: Option<OwnSystem>,
}

/// What will carry messages, with all that it needs to start.
pub(crate) enum ReadyNetwork {
    Quic { listen: SocketAddr, tls: TlsIdentity },
    Memory(MemoryNetwork),
    Custom(StartTransport),
}

impl ReadyNetwork {
    /// Checks that the address to listen on is named, and reads the certificates.
    async fn of(
        network: Network,
        id: NodeId,
        listen: Option<SocketAddr>,
        tls: Option<Tls>,
    ) -> Result<ReadyNetwork, StartError> {
        Ok(match network {
            Network::Quic => {
                let tls = load_tls(id, tls).await?;
                let listen =
                    listen.ok_or_else(|| missing("listen", "say where peers reach this node: builder.listen(..)"))?;
                ReadyNetwork::Quic { listen, tls }
            }
            Network::Memory(network) => ReadyNetwork::Memory(network),
            Network::Custom(start) => ReadyNetwork::Custom(start),
        })
    }

    fn tls(&self) -> Option<&TlsIdentity> {
        match self {
            ReadyNetwork::Quic { tls, .. } => Some(tls),
            ReadyNetwork::Memory(_) | ReadyNetwork::Custom(_) => None,
        }
    }

    /// The fingerprint of the authority that signed the certificates; zero where there are none.
    pub(super) fn authority(&self) -> [u8; 32] {
        self.tls().map_or([0; 32], TlsIdentity::ca_fingerprint)
    }

    /// Starts the transport: from now on peers can connect.
    pub(super) fn start(self, me: Identity, about: &About) -> Result<TransportHandle, StartError> {
        let lives = about.lives.clone();
        Ok(match self {
            ReadyNetwork::Quic { listen, tls } => listen_quic(me, lives, listen, tls, &about.config)?,
            ReadyNetwork::Memory(network) => network.start_with(me, lives),
            ReadyNetwork::Custom(start) => start(me, lives),
        })
    }
}

/// Checks the certificates, and opens the directory.
pub(crate) async fn open_node(host: HostBuilder, own: Option<OwnSystem>) -> Result<OpenNode, StartError> {
    let HostBuilder { id, listen, storage, tls, network, config, certificates, clock, observer, features } = host;
    let storage = storage.ok_or_else(|| missing("storage", "say where the log lives: builder.storage(..)"))?;
    let new = is_new(&storage, id);
    if new {
        check_id(id).map_err(|problem| missing("id", &problem))?;
    }
    // A bound that somebody chose is taken as it is.
    let default = config.snapshot_bytes == Config::default().snapshot_bytes;
    let small_snapshot_bytes = if default { SMALL_SNAPSHOT_BYTES } else { u64::MAX };
    let (config, volume) = match &storage {
        Storage::Sled(dir) => {
            let dir = dir.clone();
            let volume = blocking(move || Ok(space::volume(&dir).ok())).await?;
            volume.map_or(Ok(()), |volume| volume::too_much(&config, volume, new))?;
            (volume.map_or(config.clone(), |volume| volume::fitted(&config, volume)), volume)
        }
        Storage::Memory | Storage::MemoryDisk(_) | Storage::Custom(_) => (config, None),
    };
    // Before the directory: a mistyped path to the certificates must not leave a new node behind.
    let dials = matches!(network, Network::Quic);
    let network = ReadyNetwork::of(network, id, listen, tls).await?;
    let store = match storage {
        Storage::Custom(store) => store,
        Storage::Memory => Box::new(MemoryDisk::new().open(id, new_incarnation())?),
        Storage::MemoryDisk(disk) => Box::new(disk.open(id, new_incarnation())?),
        Storage::Sled(dir) => {
            let options = sled_options(id, &config, volume);
            Box::new(blocking(move || Ok(SledStore::open(&dir, options)?)).await?)
        }
    };
    let identity = store.identity();
    if identity.id != id {
        let problem = format!("the store belongs to node {}, not to node {id}", identity.id);
        return Err(missing("storage", &problem));
    }
    let about = About {
        identity,
        reader: store.reader(),
        snapshot_store: store.snapshot_store(),
        small_snapshot_bytes,
        dials,
        // A node of the first version keeps none; the transport fills in what the hello shows.
        lives: store.lives().filter(|_| features.has(Feature::DirectoryLives)),
        certificates: network.tls().into_iter().flat_map(TlsIdentity::ends).chain(certificates).collect(),
        config,
        features,
        clock,
        observer,
    };
    Ok(OpenNode { about, store, volume, network, own })
}

/// Whether a node begins here that was not there before. Only for the checks that an older node must not fail; of a
/// store that the application opened itself nobody can tell.
pub(super) fn is_new(storage: &Storage, id: NodeId) -> bool {
    match storage {
        Storage::Sled(dir) => !directory::read_node(dir).is_ok_and(|node| node.id == id),
        Storage::Memory | Storage::MemoryDisk(_) | Storage::Custom(_) => true,
    }
}

/// What a node is and what its directory gave, before it has any actor.
pub(crate) struct About {
    pub identity: StoreIdentity,
    pub reader: Arc<dyn LogReader>,
    pub snapshot_store: Arc<SnapshotStore>,
    pub config: Config,
    /// After so many bytes a small snapshot is taken; see `SMALL_SNAPSHOT_BYTES`.
    pub small_snapshot_bytes: u64,
    /// Whether peers are dialled at addresses of the form `HOST:PORT`.
    pub dials: bool,
    pub features: Features,
    pub clock: Arc<dyn Clock>,
    pub observer: MaybeObserver,
    /// The files of its certificates and when they expire, in seconds since 1970.
    pub certificates: Arc<[(String, i64)]>,
    /// Of its directory and of its peers'; `None` where it keeps none.
    pub lives: Option<Arc<LifeBook>>,
}

impl About {
    /// The log and the snapshots live on one volume: what each leaves to the other.
    pub(crate) fn share_volume(&self, store: &dyn LogStore, volume: Option<u64>, kept: &[Snapshot]) {
        if let Some(volume) = volume
            && let Some(problem) = volume::too_small(&self.config, volume, newest_bytes(kept))
        {
            tracing::warn!(volume, "{problem}");
        }
        if let Some(reserve) = store.reserve() {
            self.snapshot_store.may_borrow(reserve);
        }
        // A log that finds no room is the end of its node; a snapshot that finds none is taken later. Not all that
        // counts as low: what ends the want of space may be the log that a snapshot lets go of.
        self.snapshot_store.leave_free(self.config.low_space_bytes / 4);
    }
}

/// The actors that a node has once, and what all groups share. Each group holds the actors that it uses, so dropping
/// this ends none of them.
pub(crate) struct NodeParts {
    pub about: About,
    pub log: Addr<LogWriter>,
    pub transport: TransportHandle,
    pub admission: Arc<Admission>,
    pub log_status: watch::Receiver<LogWriterStatus>,
    /// The transport's numbers, which `RaftSystem` fetches.
    pub network: watch::Sender<TransportStatus>,
    /// Whether the node lives, which `RaftSystem` sets.
    pub life: watch::Sender<Life>,
}

impl NodeParts {
    /// Starts the log writer, beside a transport that runs and delivers nothing yet. `failed` hears of the end of the
    /// log.
    pub(crate) fn start(
        about: About,
        store: Box<dyn LogStore>,
        transport: TransportHandle,
        failed: WeakRecipient<Failed>,
    ) -> NodeParts {
        let Config { disk_dead_ms, low_space_bytes, max_in_flight, max_in_flight_bytes, .. } = about.config;
        let (log_shows, log_status) = watch::channel(LogWriterStatus::default());
        let bounds = DiskBounds { dead_after: Duration::from_millis(disk_dead_ms), low_space: low_space_bytes };
        let log = LogWriter::start_within(bounds, store, failed, log_shows);
        let admission = Admission::new(max_in_flight, max_in_flight_bytes);
        let (network, life) = (watch::Sender::default(), watch::Sender::default());
        NodeParts { about, log, transport, admission, log_status, network, life }
    }
}

/// Opens the peer port.
fn listen_quic(
    identity: Identity,
    lives: Option<Arc<LifeBook>>,
    listen: SocketAddr,
    tls: TlsIdentity,
    config: &Config,
) -> Result<TransportHandle, StartError> {
    let id = identity.id;
    let mut quic = QuicConfig::new(listen, identity, tls);
    quic.lives = lives;
    quic.queue_bytes = config.queue_bytes();
    quic.max_frame = MAX_FRAME;
    quic.seed = config.seed.unwrap_or_else(roll);
    let (transport, address) = QuicTransport::start(quic).map_err(|error| match error {
        TransportError::Listen { address, error } => StartError::Listen { address, error: error.to_string() },
        other => StartError::Tls(other.to_string()),
    })?;
    tracing::info!(node = id, %address, "listening for peers");
    Ok(transport)
}

/// How a node opens its log.
fn sled_options(id: NodeId, config: &Config, volume: Option<u64>) -> OpenOptions {
    let mut options = OpenOptions::new(id, new_incarnation());
    options.reserve_bytes = config.reserve_bytes;
    options.short_space_bytes = config.low_space_bytes.saturating_mul(SHORT);
    if let Some(volume) = volume {
        options.reserve_max_bytes = volume::most_reserve(volume);
        options.rewrite_min_bytes = volume::rewritten_from(options.rewrite_min_bytes, volume);
    }
    // As with snapshots, and a rewriting begins only with five times as much: it never makes the node low on space.
    options.rewrite_reserve_bytes = config.low_space_bytes / 4;
    options
}

async fn load_tls(id: NodeId, tls: Option<Tls>) -> Result<TlsIdentity, StartError> {
    let tls = tls.ok_or_else(|| missing("tls", "say who this node is to its peers: builder.tls(..)"))?;
    let load = move || match tls {
        Tls::DevSelfSigned(dir) => TlsIdentity::dev(&dir, id),
        Tls::Directory(dir) => TlsIdentity::load(&dir, id),
    };
    blocking(move || load().map_err(|error| StartError::Tls(error.to_string()))).await
}

/// When this node's own certificate ends. What its authority's end costs is the same for all nodes: no leader would be
/// better.
pub(super) fn certificate_ends(certificates: &[(String, i64)]) -> Option<SystemTime> {
    let (_, end) = certificates.iter().find(|(file, _)| file == "cert.pem")?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs((*end).try_into().unwrap_or(0)))
}

/// The size of the newest snapshot's file.
fn newest_bytes(kept: &[Snapshot]) -> u64 {
    let described = kept.last().and_then(|newest| SystemState::of(newest).ok());
    described.and_then(|(_, file)| file).map_or(0, |file| file.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewriting_of_the_log_leaves_it_a_quarter_of_what_counts_as_low() {
        for low_space_bytes in [0, 1 << 30] {
            let config = Config { low_space_bytes, ..Config::default() };
            assert_eq!(sled_options(1, &config, None).rewrite_reserve_bytes, low_space_bytes / 4);
        }
    }
}
