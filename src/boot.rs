//! The start of a node: the same steps for the first start, a restart and a join.
//!
//! ```text
//!  check settings ─▶ open the directory ─▶ replay ─▶ listen ─▶ log writer ─▶ start_group ─▶ attach the node
//!                    └─ where blocking is allowed ┘          └─ NodeParts ┘
//! ```
//!
//! What a node has once is in `node`, what it has of each group is in `group`; there is one group. Nothing is sent before all of
//! it stands: the transport delivers only once the node is attached, which comes last.

use std::{hash::BuildHasher, sync::Arc, time::Duration};

use actix::prelude::*;
use actorum_actors::log_writer::SHORT;
use actorum_core::{
    features::Feature,
    identity::Identity,
    log::store::{LogReader, Recovered},
    replica::{Hashes, Replayed, Replica, replay_into},
    versions::Announcement,
};
use actorum_machine::{
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    machine::StateMachine,
    response_check::ResponseCheck,
};
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
    message::{AttachNode, NodeHandlers},
    tls::TlsIdentity,
};
use tokio::sync::oneshot;

use crate::{
    builder::{Bootstrap, Builder, Network, StartError, Storage, Tls},
    condition_log::ConditionLog,
    config::{ActivateMode, Config, ConfigError},
    ingress::{Ingress, check_id},
    raft::Raft,
    status_hub::StatusHub,
    system::{Children, RaftSystem},
    volume,
};

mod node;
mod group;

use group::{GroupSpec, GroupStatus, Reports, start_group};
use node::{About, NodeParts};

/// The one group of this version.
pub(crate) const GROUP: GroupId = GroupId::FIRST;

/// With the default of `snapshot_bytes` a snapshot that costs a quarter of that is taken after so many bytes.
const SMALL_SNAPSHOT_BYTES: u64 = 64 << 20;

/// Starts the node where actors can live: in the actix system of this thread, or in one made for it.
pub(crate) async fn start<S: StateMachine>(builder: Builder<S>) -> Result<Raft<S>, StartError> {
    let (sender, started) = oneshot::channel();
    // The system of a thread outlives its run there as a name only: it takes nothing any more.
    let (arbiter, died) = match Arbiter::try_current().filter(|arbiter| arbiter.spawn_fn(|| ())) {
        Some(arbiter) => (Some(arbiter), "the actix system of this thread was stopped before the node had started"),
        None => (None, "it ended before the node had started: its panic is on standard error"),
    };
    match arbiter {
        Some(arbiter) => {
            // Spawned rather than awaited here, so that the future of `start` may travel between threads.
            arbiter.spawn_fn(move || {
                actix_rt::spawn(async move {
                    // Whoever no longer waits drops the handle, and with it the node.
                    let _ = sender.send(boot(builder, false).await);
                });
            });
        }
        None => {
            let name = format!("actorum-{}", builder.id);
            let thread = move || {
                let system = System::new();
                let raft = system.block_on(boot(builder, true));
                let runs = raft.is_ok();
                let _ = sender.send(raft);
                if runs && let Err(error) = system.run() {
                    tracing::error!(%error, "the thread of the actors ended");
                }
            };
            std::thread::Builder::new()
                .name(name)
                .spawn(thread)
                .map_err(|error| StartError::Thread(error.to_string()))?;
        }
    }
    started.await.map_err(|_| StartError::Thread(died.into()))?
}

/// What the directory gave.
struct Opened<S> {
    store: Box<dyn LogStore>,
    snapshot_store: Arc<SnapshotStore>,
    reader: Arc<dyn LogReader>,
    identity: StoreIdentity,
    recovered: Recovered,
    replayed: Replayed<S>,
}

/// All steps, on the thread of the actors.
async fn boot<S: StateMachine>(builder: Builder<S>, own_thread: bool) -> Result<Raft<S>, StartError> {
    let Builder {
        id,
        machine,
        listen,
        storage,
        tls,
        network,
        bootstrap,
        config,
        certificates,
        clock,
        observer,
        features,
        machine_version,
    } = builder;
    let storage = storage.ok_or_else(|| missing("storage", "say where the log lives: builder.storage(..)"))?;
    let dials = matches!(network, Network::Quic);
    check_settings(id, &config, &bootstrap)?;
    let new = is_new(&storage, id);
    if new {
        check_new(id, &bootstrap, dials)?;
    }
    // A bound that somebody chose is taken as it is.
    let default = config.snapshot_bytes == Config::default().snapshot_bytes;
    let small_snapshot_bytes = if default { SMALL_SNAPSHOT_BYTES } else { u64::MAX };
    let (config, volume) = match &storage {
        Storage::Sled(dir) => {
            let dir = dir.clone();
            let volume = blocking(move || space::volume(&dir).ok()).await?;
            volume.map_or(Ok(()), |volume| volume::too_much(&config, volume, new))?;
            (volume.map_or(config.clone(), |volume| volume::fitted(&config, volume)), volume)
        }
        Storage::Memory | Storage::MemoryDisk(_) | Storage::Custom(_) => (config, None),
    };
    // Before the directory: a mistyped path to the certificates must not leave a new node behind.
    let tls = match network {
        Network::Quic => Some(load_tls(id, tls).await?),
        Network::Memory(_) | Network::Custom(_) => None,
    };
    let hashes = Hashes {
        state: features.has(Feature::StateHashes),
        responses: features.has(Feature::StateHashes) && config.response_check != ResponseCheck::Off,
    };
    let build = Announcement::of(&features, machine_version, 0);
    let replica = Replica::new(machine).hashing(hashes).built_as(build.clone());
    let opened = match storage {
        // Its reader says so: a simulation must not wait for a thread that lives in another time.
        Storage::Custom(store) if !store.reader().blocks() => open(id, Storage::Custom(store), &config, None, replica)?,
        storage => {
            let config = config.clone();
            blocking(move || open(id, storage, &config, volume, replica)).await??
        }
    };
    let Opened { store, snapshot_store, reader, identity, recovered, replayed } = opened;
    let lives = store.lives();
    if let Some(observer) = &observer {
        observer.replayed(replayed.snapshot_index);
    }

    let cluster = replayed.system.as_ref().map(|system| system.cluster);
    // A node of the first version keeps none; the transport fills in what the hello shows.
    let lives = lives.filter(|_| features.has(Feature::DirectoryLives));
    let me = Identity {
        id,
        incarnation: identity.incarnation,
        boot: identity.boot,
        cluster,
        features: features.clone(),
        machine_version,
        lives: Arc::default(),
    };
    let certificates: Arc<[_]> = tls.iter().flat_map(TlsIdentity::ends).chain(certificates).collect();
    let authority = tls.as_ref().map_or([0; 32], TlsIdentity::ca_fingerprint);
    let transport = match (network, tls) {
        (Network::Memory(network), _) => network.start_with(me, lives.clone()),
        (Network::Custom(start), _) => start(me, lives.clone()),
        (Network::Quic, Some(tls)) => node::listen_quic(me, lives.clone(), listen, tls, &config)?,
        (Network::Quic, None) => return Err(no_tls()),
    };

    let (cluster_made, name) = (cluster_id(&authority, &bootstrap, &config), config.cluster_name.clone());
    let start_mode = group::begin(&recovered, &replayed, bootstrap.clone(), cluster_made, name)?;
    let about = About {
        identity,
        reader,
        snapshot_store,
        config,
        small_snapshot_bytes,
        waits: bootstrap == Bootstrap::Wait,
        dials,
        features,
        machine_version,
        build: Announcement { boot: identity.boot, ..build },
        clock,
        observer,
        certificates,
        lives,
    };
    about.share_volume(&*store, volume, &recovered.snapshots);
    // The addresses first, then the actors: everyone can be told of everyone.
    let system_context = Context::<RaftSystem<S>>::new();
    let system_address = system_context.address();
    let system = system_address.downgrade();
    let reports = Reports { failed: system.clone().recipient(), leader_changed: system.clone().recipient() };
    let spec = GroupSpec::new(GROUP, &about, recovered, replayed, start_mode, reports)?;
    let node = NodeParts::start(about, store, transport, system.recipient());
    let (children, status) = start_group(&node, spec)?;
    let members = children.membership.downgrade();
    node.transport.attach_node.do_send(AttachNode {
        handlers: NodeHandlers { peer_up: members.clone().recipient(), peer_refused: members.recipient() },
    });

    let ingress = Arc::new(ingress(&node, &children, status));
    let system = system_context.run(RaftSystem {
        ingress: ingress.clone(),
        life: node.life,
        network: node.network,
        children: Some(children),
        grace: node.about.config.deadline(),
        asking: false,
        leadership: None,
        conditions: ConditionLog::default(),
        own_thread,
    });
    Ok(Raft { system, ingress })
}

/// The way in, to the actors of a group.
fn ingress<S: StateMachine>(node: &NodeParts, children: &Children<S>, status: GroupStatus) -> Ingress<S> {
    let About { identity, config, .. } = &node.about;
    let tick = Duration::from_millis(config.heartbeat_ms);
    Ingress {
        admission: node.admission.clone(),
        clock: node.about.clock.clone(),
        deadline: config.deadline(),
        max_entry_bytes: config.max_entry_bytes,
        dials: node.about.dials,
        core: children.core.downgrade(),
        applier: children.applier.downgrade(),
        snapshot_manager: children.snapshot_manager.downgrade(),
        membership: children.membership.downgrade(),
        // A core that is only late because the machine is busy still answers first.
        grace: (2 * tick).max(Duration::from_millis(200)),
        status_hub: Arc::new(StatusHub {
            id: identity.id,
            incarnation: identity.incarnation,
            admission: node.admission.clone(),
            reader: node.about.reader.clone(),
            core: status.core,
            applier: status.applier,
            log: node.log_status.clone(),
            network: node.network.subscribe(),
            members: status.members,
            snapshots: status.snapshots,
            consistency: status.consistency,
            life: node.life.subscribe(),
            clock: node.about.clock.clone(),
            certificates: node.about.certificates.clone(),
            max_clock_skew_ms: config.max_clock_skew_ms,
            build: node.about.build.clone(),
            manual: config.activate == ActivateMode::Manual,
        }),
    }
}

fn check_settings(id: NodeId, config: &Config, bootstrap: &Bootstrap) -> Result<(), StartError> {
    config.validate()?;
    if id == 0 {
        return Err(missing("id", "0 is not a node id: choose 1 or more"));
    }
    match bootstrap {
        Bootstrap::Form(founders) if founders.contains_key(&0) => {
            Err(StartError::Founders("0 is not a node id: choose 1 or more for every founder".into()))
        }
        Bootstrap::Form(founders) if !founders.contains_key(&id) => {
            let list: Vec<_> = founders.keys().map(NodeId::to_string).collect();
            Err(StartError::Founders(format!(
                "node {id} is not in its own list of founders ({}): add it, or start it as a node that waits to be added",
                list.join(", ")
            )))
        }
        Bootstrap::Form(_) | Bootstrap::Wait => Ok(()),
    }
}

/// Whether a node begins here that was not there before. Only for the checks that an older node must not fail; of a store that
/// the application opened itself nobody can tell.
fn is_new(storage: &Storage, id: NodeId) -> bool {
    match storage {
        Storage::Sled(dir) => !directory::read_node(dir).is_ok_and(|node| node.id == id),
        Storage::Memory | Storage::MemoryDisk(_) | Storage::Custom(_) => true,
    }
}

/// What a new node is refused for, and an old one must be able to live with.
fn check_new(id: NodeId, bootstrap: &Bootstrap, dials: bool) -> Result<(), StartError> {
    check_id(id).map_err(|problem| missing("id", &problem))?;
    let Bootstrap::Form(founders) = bootstrap else { return Ok(()) };
    for (founder, address) in founders {
        check_id(*founder).map_err(StartError::Founders)?;
        if dials && let Err(error) = address.0.parse::<Address>() {
            return Err(StartError::Founders(format!("the address of founder {founder}: {error}")));
        }
    }
    let mut pairs = founders.iter().flat_map(|one| founders.range(one.0 + 1..).map(move |other| (one, other)));
    match pairs.find(|((_, one), (_, other))| one.is_same_place(other)) {
        Some(((one, address), (other, _))) => Err(StartError::Founders(format!(
            "the founders {one} and {other} have one address, {address}: each has its own"
        ))),
        None => Ok(()),
    }
}

fn missing(key: &str, problem: &str) -> StartError {
    ConfigError { key: key.into(), problem: problem.into() }.into()
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

/// Opens the directory, checks it, and rebuilds the state.
fn open<S: StateMachine>(
    id: NodeId,
    storage: Storage,
    config: &Config,
    volume: Option<u64>,
    replica: Replica<S>,
) -> Result<Opened<S>, StartError> {
    let store: Box<dyn LogStore> = match storage {
        Storage::Custom(store) => store,
        Storage::Memory => Box::new(MemoryDisk::new().open(id, new_incarnation())?),
        Storage::MemoryDisk(disk) => Box::new(disk.open(id, new_incarnation())?),
        Storage::Sled(dir) => Box::new(SledStore::open(&dir, sled_options(id, config, volume))?),
    };
    let (identity, reader) = (store.identity(), store.reader());
    if identity.id != id {
        let problem = format!("the store belongs to node {}, not to node {id}", identity.id);
        return Err(missing("storage", &problem));
    }
    let mut recovered = store.recover(GROUP)?;
    let snapshot_store = store.snapshot_store();
    let replayed = replay_into(GROUP, &*reader, &recovered, &*snapshot_store, replica)?;
    // A damaged one counts for nothing from here on; its file goes with the next one that is built.
    recovered.snapshots = replayed.snapshots.clone();
    let swept = snapshot_store.keep(&recovered.snapshots);
    swept.map_err(|error| StartError::Machine(format!("what a crash left of snapshots cannot be removed: {error}")))?;
    // What was applied was committed: raft-rs refuses to start with a commit index below it.
    recovered.hard_state.commit = recovered.hard_state.commit.max(replayed.applied);
    Ok(Opened { store, snapshot_store, reader, identity, recovered, replayed })
}

/// Which cluster these founders make: the authority of their certificates, their ids, and the name.
///
/// FNV-1a over 128 bits: equal on every platform and for ever. It keeps clusters apart by mistake; what keeps
/// strangers out are the certificates.
fn cluster_id(authority: &[u8; 32], bootstrap: &Bootstrap, config: &Config) -> ClusterId {
    let founders: Vec<NodeId> = match bootstrap {
        Bootstrap::Form(founders) => founders.keys().copied().collect(),
        Bootstrap::Wait => Vec::new(),
    };
    let ids = founders.iter().flat_map(|id| id.to_be_bytes());
    let bytes = authority.iter().copied().chain(ids).chain(config.cluster_name.bytes());
    let (basis, prime) = (0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, 0x0000_0000_0100_0000_0000_0000_0000_013b);
    ClusterId(bytes.fold(basis, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(prime)))
}

/// A number nobody has rolled before: for what must differ between lives, never for what decides.
#[allow(clippy::disallowed_types, reason = "a simulation opens its own stores and sets the seed")]
pub(crate) fn roll() -> u64 {
    std::hash::RandomState::new().hash_one(std::process::id())
}

/// A new directory's incarnation.
pub(crate) fn new_incarnation() -> Incarnation {
    Incarnation(roll())
}

fn no_tls() -> StartError {
    missing("tls", "say who this node is to its peers: builder.tls(..)")
}

async fn load_tls(id: NodeId, tls: Option<Tls>) -> Result<TlsIdentity, StartError> {
    let tls = tls.ok_or_else(no_tls)?;
    let loaded = blocking(move || match tls {
        Tls::DevSelfSigned(dir) => TlsIdentity::dev(&dir, id),
        Tls::Directory(dir) => TlsIdentity::load(&dir, id),
    });
    loaded.await?.map_err(|error| StartError::Tls(error.to_string()))
}

/// Runs what blocks on a disk where that is allowed.
#[allow(clippy::disallowed_methods, reason = "only what blocks comes here")]
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StartError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StartError::Thread(error.to_string()))
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
