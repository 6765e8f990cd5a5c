//! What a node has, whichever groups it runs: who it is, its log, its network, its bounds.
//!
//! ```text
//!  directory ─▶ About ─┬─▶ NodeParts: log writer, transport, admission ─▶ start_group, once for each group
//!  sockets ────────────┘
//! ```
//!
//! Deliberately absent: anything that belongs to one group. What of these actors becomes of the groups' messages they tell the groups
//! that registered with them.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actix::{WeakRecipient, prelude::*};
use actorum_actors::{
    admission::Admission,
    clock::Clock,
    log_writer::{DiskBounds, LogWriter, LogWriterStatus},
    message::Failed,
};
use actorum_core::{
    features::Features, identity::Identity, lives::LifeBook, log::store::LogReader, observer::MaybeObserver,
    system_state::SystemState, versions::Announcement, wire::Snapshot,
};
use actorum_store::{
    log::store::{LogStore, StoreIdentity},
    snapshot::SnapshotStore,
};
use actorum_transport::{
    message::{TransportHandle, TransportStatus},
    quic::{QuicConfig, QuicTransport, TransportError},
    tls::TlsIdentity,
};
use tokio::sync::watch;

use super::{missing, roll};
use crate::{
    builder::StartError,
    config::{Config, MAX_FRAME},
    status_hub::Life,
    volume,
};

/// What a node is and what its directory gave, before it has any actor.
pub(crate) struct About {
    pub identity: StoreIdentity,
    pub reader: Arc<dyn LogReader>,
    pub snapshot_store: Arc<SnapshotStore>,
    pub config: Config,
    /// After so many bytes a small snapshot is taken; see `SMALL_SNAPSHOT_BYTES`.
    pub small_snapshot_bytes: u64,
    /// Whether it was to wait until it is added.
    pub waits: bool,
    /// Whether peers are dialled at addresses of the form `HOST:PORT`.
    pub dials: bool,
    pub features: Features,
    pub machine_version: u32,
    /// What its program understands.
    pub build: Announcement,
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
        // A log that finds no room is the end of its node; a snapshot that finds none is taken later. Not all that counts as low: what
        // ends the want of space may be the log that a snapshot lets go of.
        self.snapshot_store.leave_free(self.config.low_space_bytes / 4);
    }
}

/// The actors that a node has once, and what all groups share. Each group holds the actors that it uses, so dropping this ends none
/// of them.
pub(crate) struct NodeParts {
    pub about: About,
    pub log: Addr<LogWriter>,
    pub transport: TransportHandle,
    pub admission: Arc<Admission>,
    pub log_status: watch::Receiver<LogWriterStatus>,
    /// What the transport shows; the front door fetches it.
    pub network: watch::Sender<TransportStatus>,
    /// How the node does; the front door says so.
    pub life: watch::Sender<Life>,
}

impl NodeParts {
    /// Starts the log writer, beside a transport that runs and delivers nothing yet. `failed` hears of the end of the log.
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
pub(super) fn listen_quic(
    identity: Identity,
    lives: Option<Arc<LifeBook>>,
    listen: Option<SocketAddr>,
    tls: TlsIdentity,
    config: &Config,
) -> Result<TransportHandle, StartError> {
    let id = identity.id;
    let listen = listen.ok_or_else(|| missing("listen", "say where peers reach this node: builder.listen(..)"))?;
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

/// When this node's own certificate ends. What its authority's end costs is the same for all nodes: no leader would be better.
pub(super) fn certificate_ends(certificates: &[(String, i64)]) -> Option<SystemTime> {
    let (_, end) = certificates.iter().find(|(file, _)| file == "cert.pem")?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs((*end).try_into().unwrap_or(0)))
}

/// The size of the newest snapshot's file.
fn newest_bytes(kept: &[Snapshot]) -> u64 {
    let described = kept.last().and_then(|newest| SystemState::of(newest).ok());
    described.and_then(|(_, file)| file).map_or(0, |file| file.bytes)
}
