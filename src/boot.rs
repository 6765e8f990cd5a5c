//! The start of a node: the same steps for the first start, a restart and a join.
//!
//! ```text
//!  check settings ─▶ open the directory ─▶ replay ─▶ listen ─▶ log writer, applier, core, membership ─▶ attach
//!                    └─ where blocking is allowed ┘
//! ```
//!
//! Nothing is sent before all of it stands: the transport delivers only once it is attached, which comes last.

use std::{
    collections::BTreeMap,
    hash::BuildHasher,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actix::prelude::*;
use actorum_actors::{
    admission::{Admission, Denied},
    applier::{Applier, ApplierConfig, ApplierLinks, ApplierStatus},
    consistency::{self, ConsistencyChecker, ConsistencyStatus},
    core::{self, RaftCore},
    log_writer::{DiskBounds, LogWriter, LogWriterStatus, RegisterGroup, SHORT},
    membership::{self, MembershipManager, MembershipStatus, StartMode},
    reply_slot::ReplySlot,
    snapshot::manager::{ManagerBounds, ManagerLinks, SnapshotManager},
    subscribers::BufferBounds,
};
use actorum_core::{
    consensus::{Consensus, CoreStatus, Settings, Start},
    features::{Feature, Features},
    identity::Identity,
    lives::LifeBook,
    log::store::{LogReader, Recovered},
    replica::{Hashes, Replayed, Replica, replay_into},
    system_state::SystemState,
    understanding::Understanding,
    versions::Announcement,
    wire::{Refusal, Snapshot},
};
use actorum_machine::{
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    machine::StateMachine,
    response_check::ResponseCheck,
    status::Snapshots,
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
    message::{Attach, AttachNode, Handlers, NodeHandlers, Responder, TransportHandle, TransportStatus},
    quic::{QuicConfig, QuicTransport, TransportError},
    tls::TlsIdentity,
};
use tokio::sync::{oneshot, watch};

use crate::{
    builder::{Bootstrap, Builder, Network, StartError, Storage, Tls},
    condition_log::ConditionLog,
    config::{ActivateMode, Config, ConfigError, MAX_FRAME, Placement},
    ingress::{Ingress, check, check_id},
    raft::Raft,
    status_hub::{Life, StatusHub},
    system::{Children, RaftSystem},
    volume,
};

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
    let (incarnation, boot) = (identity.incarnation, identity.boot);
    // A node of the first version keeps none; the transport fills in what the hello shows.
    let lives = lives.filter(|_| features.has(Feature::DirectoryLives));
    let me =
        Identity { id, incarnation, boot, cluster, features: features.clone(), machine_version, lives: Arc::default() };
    let certificates: Arc<[_]> = tls.iter().flat_map(TlsIdentity::ends).chain(certificates).collect();
    let authority = tls.as_ref().map_or([0; 32], TlsIdentity::ca_fingerprint);
    let transport = match (network, tls) {
        (Network::Memory(network), _) => network.start_with(me, lives.clone()),
        (Network::Custom(start), _) => start(me, lives.clone()),
        (Network::Quic, Some(tls)) => listen_quic(me, lives.clone(), listen, tls, &config)?,
        (Network::Quic, None) => return Err(no_tls()),
    };

    // The addresses first, then the actors: everyone can be told of everyone.
    let (core_context, system_context) = (Context::<RaftCore<ReplySlot<S>>>::new(), Context::<RaftSystem<S>>::new());
    let (core_address, system_address) = (core_context.address(), system_context.address());
    let (core, system) = (core_address.downgrade(), system_address.downgrade());
    let snapshot_manager_context = Context::<SnapshotManager>::new();
    let snapshot_manager_address = snapshot_manager_context.address();
    let membership_context = Context::<MembershipManager<ReplySlot<S>>>::new();
    let membership_address = membership_context.address();

    let (core_shows, core_status) = watch::channel(CoreStatus::default());
    let (applier_shows, applier_status) = watch::channel(ApplierStatus::default());
    let (log_shows, log_status) = watch::channel(LogWriterStatus::default());
    let checker_context = Context::<ConsistencyChecker>::new();
    let checker_address = checker_context.address();
    let (members_show, members_status) = watch::channel(MembershipStatus::default());
    let (snapshot_manager_shows, snapshot_manager_status) = watch::channel(Snapshots::default());
    let (consistency_shows, consistency_status) = watch::channel(ConsistencyStatus::default());
    let (network_shows, network_status) = watch::channel(TransportStatus::default());
    let (life_shows, life) = watch::channel(Life::default());
    let admission = Admission::new(config.max_in_flight, config.max_in_flight_bytes);

    let (cluster_made, name) = (cluster_id(&authority, &bootstrap, &config), config.cluster_name.clone());
    let start_mode = begin(&recovered, &replayed, bootstrap.clone(), cluster_made, name)?;
    let kept = recovered.snapshots.clone();
    if let Some(volume) = volume
        && let Some(problem) = volume::too_small(&config, volume, newest_bytes(&kept))
    {
        tracing::warn!(volume, "{problem}");
    }
    if let Some(reserve) = store.reserve() {
        snapshot_store.may_borrow(reserve);
    }
    let core_start = Start {
        recovered,
        reader: reader.clone(),
        applied: replayed.applied,
        membership: replayed.system.as_ref().map(|system| system.membership.clone()).unwrap_or_default(),
        versions: replayed.system.as_ref().map(|system| system.versions.clone()).unwrap_or_default(),
        cluster,
        min_served_index: replayed.system.as_ref().map_or(0, |system| system.recovered_at),
    };
    let settings = settings(id, identity, &config, &bootstrap);
    let certificate_ends = certificate_ends(&certificates);
    let settings =
        Settings { features: features.clone(), machine_version, small_snapshot_bytes, certificate_ends, ..settings };
    let consensus = Consensus::new(settings, core_start)?;

    let bounds =
        DiskBounds { dead_after: Duration::from_millis(config.disk_dead_ms), low_space: config.low_space_bytes };
    let log = LogWriter::start_within(bounds, store, system.clone().recipient(), log_shows);
    log.do_send(RegisterGroup { group: GROUP, core: core.clone().recipient(), disk: core.clone().recipient() });
    let applier_links = ApplierLinks {
        applied_to: core.clone().recipient(),
        captured: snapshot_manager_address.downgrade().recipient(),
        system_changed: vec![
            core.clone().recipient(),
            membership_address.downgrade().recipient(),
            checker_address.downgrade().recipient(),
        ],
        marks: checker_address.downgrade().recipient(),
        failed: system.clone().recipient(),
    };
    let applier_config = ApplierConfig {
        group: GROUP,
        reader: reader.clone(),
        snapshot_store: snapshot_store.clone(),
        subscriber_bounds: BufferBounds { events: config.subscriber_buffer, bytes: config.subscriber_buffer_bytes },
        hash_check_entries: config.hash_check_entries,
        admission: admission.clone(),
        status: applier_shows,
    };
    let checker_start = consistency::Start {
        id,
        group: GROUP,
        responses: config.response_check,
        membership: replayed.system.as_ref().map(|system| system.membership.clone()).unwrap_or_default(),
        marks: replayed.marks.clone(),
    };
    let checker_links = consistency::Links {
        ask: transport.ask.clone(),
        propose: core_address.clone().recipient(),
        failed: system.clone().recipient(),
        status: consistency_shows,
        observer: observer.clone(),
    };
    checker_context.run(ConsistencyChecker::new(checker_start, checker_links));
    let applier = Applier::new(applier_config, applier_links, replayed);
    let thread = (config.placement == Placement::Spread).then(Arbiter::new);
    let applier = match &thread {
        Some(thread) => Applier::start_in_arbiter(&thread.handle(), |_| applier),
        None => applier.start(),
    };
    let snapshot_manager_links = ManagerLinks {
        capture: applier.downgrade().recipient(),
        built: core.clone().recipient(),
        fetched: core.clone().recipient(),
        peer_fetches: core.clone().recipient(),
        ask: transport.ask.clone(),
    };
    // A log that finds no room is the end of its node; a snapshot that finds none is taken later. Not all that counts as low: what
    // ends the want of space may be the log that a snapshot lets go of.
    snapshot_store.leave_free(config.low_space_bytes / 4);
    let snapshot_manager_bounds = ManagerBounds {
        max_sends: config.snapshot_sends,
        rate: config.snapshot_rate,
        piece: config.snapshot_piece_bytes,
        timeout: Duration::from_millis(config.snapshot_timeout_ms),
    };
    let snapshot_manager = SnapshotManager::new(
        GROUP,
        snapshot_store,
        kept,
        snapshot_manager_bounds,
        clock.clone(),
        snapshot_manager_links,
        snapshot_manager_shows,
    );
    snapshot_manager_context.run(snapshot_manager);
    let core_links = core::Links {
        append: log.clone().recipient(),
        probe: log.clone().recipient(),
        reader: reader.clone(),
        apply: applier.clone().recipient(),
        reads: applier.clone().recipient(),
        restore: applier.clone().recipient(),
        build: snapshot_manager_address.clone().recipient(),
        fetch: snapshot_manager_address.clone().recipient(),
        kept: snapshot_manager_address.clone().recipient(),
        transmit: transport.transmit.clone(),
        ask: transport.ask.clone(),
        leader_changed: vec![
            applier.downgrade().recipient(),
            membership_address.downgrade().recipient(),
            checker_address.downgrade().recipient(),
            system.clone().recipient(),
        ],
        failed: system.clone().recipient(),
        status: core_shows,
        admit: admit(admission.clone()),
        check: check::<S>,
        observer,
    };
    let tick = Duration::from_millis(config.heartbeat_ms);
    core_context.run(RaftCore::new(GROUP, tick, consensus, clock.clone(), core_links));
    let membership_links = membership::Links {
        ask: transport.ask.clone(),
        set_peers: transport.set_peers.clone(),
        set_cluster: transport.set_cluster.clone(),
        form: core_address.clone().recipient(),
        submit: core_address.clone().recipient(),
        features: core_address.clone().recipient(),
        versions: core_address.clone().recipient(),
        failed: system.clone().recipient(),
        status: members_show,
        clocks: core_address.clone().recipient(),
        core: core_status.clone(),
        clock: clock.clone(),
        max_clock_skew: Duration::from_millis(config.max_clock_skew_ms),
        activates: config.activate == ActivateMode::Automatic,
        farewell: Duration::from_millis(config.election_ms) * 10,
    };
    let announcement = Announcement { boot: identity.boot, ..build.clone() };
    let understanding = Understanding::new(id, features, announcement);
    let membership = MembershipManager::new(id, GROUP, incarnation, understanding, start_mode, membership_links)
        .map(|manager| manager.in_life(identity.boot, lives))
        .map_err(|error| StartError::Founders(error.to_string()))?;
    membership_context.run(membership);
    transport.attach.do_send(Attach {
        group: GROUP,
        handlers: Handlers {
            received: core.clone().recipient(),
            asked: core.clone().recipient(),
            formation: membership_address.downgrade().recipient(),
            snapshots: snapshot_manager_address.downgrade().recipient(),
            marks: checker_address.downgrade().recipient(),
            unreachable: core.clone().recipient(),
        },
    });
    transport.attach_node.do_send(AttachNode {
        handlers: NodeHandlers {
            peer_up: membership_address.downgrade().recipient(),
            peer_refused: membership_address.downgrade().recipient(),
        },
    });

    let ingress = Arc::new(Ingress {
        admission: admission.clone(),
        clock: clock.clone(),
        deadline: config.deadline(),
        max_entry_bytes: config.max_entry_bytes,
        dials,
        core,
        applier: applier.downgrade(),
        snapshot_manager: snapshot_manager_address.downgrade(),
        membership: membership_address.downgrade(),
        // A core that is only late because the machine is busy still answers first.
        grace: (2 * tick).max(Duration::from_millis(200)),
        status_hub: Arc::new(StatusHub {
            id,
            incarnation: identity.incarnation,
            admission,
            reader,
            core: core_status,
            applier: applier_status,
            log: log_status,
            network: network_status,
            members: members_status,
            snapshots: snapshot_manager_status,
            consistency: consistency_status,
            life,
            clock,
            certificates,
            max_clock_skew_ms: config.max_clock_skew_ms,
            build,
            manual: config.activate == ActivateMode::Manual,
        }),
    });
    let children = Children {
        core: core_address,
        applier,
        snapshot_manager: snapshot_manager_address,
        log,
        membership: membership_address,
        checker: checker_address,
        transport,
        thread,
    };
    let system = system_context.run(RaftSystem {
        ingress: ingress.clone(),
        life: life_shows,
        network: network_shows,
        children: Some(children),
        grace: config.deadline(),
        asking: false,
        leadership: None,
        conditions: ConditionLog::default(),
        own_thread,
    });
    Ok(Raft { system, ingress })
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

fn begin<S>(
    recovered: &Recovered,
    replayed: &Replayed<S>,
    bootstrap: Bootstrap,
    cluster: ClusterId,
    name: String,
) -> Result<StartMode, StartError> {
    Ok(match (&replayed.system, recovered.newest(), bootstrap) {
        // A node that has begun before ignores how it was to begin.
        (Some(state), Some(snapshot), _) => {
            let formed_with = match state.recovered_at {
                0 => SystemState::formed_with(snapshot).map_err(|error| StartError::Machine(error.to_string()))?,
                // Those were of another cluster: here their ids are as good as new.
                _ => BTreeMap::new(),
            };
            StartMode::Formed { state: state.clone(), formed_with }
        }
        (_, _, Bootstrap::Form(founders)) => StartMode::Founding { founders, cluster, name },
        (_, _, Bootstrap::Wait) => StartMode::Waiting,
    })
}

/// So many bytes of the log are worth a snapshot where room is short, or a quarter of what counts as low if that is less.
const SHORT_BYTES: u64 = 4 << 20;

fn settings(id: NodeId, identity: StoreIdentity, config: &Config, bootstrap: &Bootstrap) -> Settings {
    let election_ticks = config.election_ms.div_ceil(config.heartbeat_ms);
    let disk_slow_ticks = config.disk_slow_ms.div_ceil(config.heartbeat_ms).max(2);
    Settings {
        id,
        group: GROUP,
        incarnation: identity.incarnation,
        boot: identity.boot,
        seed: config.seed.unwrap_or_else(roll),
        tick: Duration::from_millis(config.heartbeat_ms),
        election_ticks: usize::try_from(election_ticks).unwrap_or(usize::MAX),
        max_append_bytes: config.append_bytes(),
        max_inflight_appends: config.inflight_appends(),
        peer_window_bytes: config.peer_window_bytes,
        max_unapplied_bytes: config.max_unapplied_bytes,
        max_unpersisted_bytes: config.max_unpersisted_bytes,
        disk_slow_ticks,
        log_tail_bytes: config.log_tail_bytes,
        max_entry_bytes: config.max_entry_bytes,
        snapshot_entries: never_if_zero(config.snapshot_entries),
        snapshot_bytes: never_if_zero(config.snapshot_bytes),
        small_snapshot_bytes: u64::MAX,
        short_bytes: SHORT_BYTES.min(config.low_space_bytes / 4),
        keep_entries: config.log_keep_entries,
        keep_bytes: config.log_keep_bytes,
        hold_bytes: config.log_hold_bytes,
        snapshot_timeout_ticks: config.snapshot_timeout_ms.div_ceil(config.heartbeat_ms).max(2),
        max_clock_skew: Duration::from_millis(config.max_clock_skew_ms),
        waits: *bootstrap == Bootstrap::Wait,
        features: Features::all(),
        machine_version: 0,
        certificate_ends: None,
    }
}

/// When this node's own certificate ends. What its authority's end costs is the same for all nodes: no leader would be better.
fn certificate_ends(certificates: &[(String, i64)]) -> Option<SystemTime> {
    let (_, end) = certificates.iter().find(|(file, _)| file == "cert.pem")?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs((*end).try_into().unwrap_or(0)))
}

/// The size of the newest snapshot's file.
fn newest_bytes(kept: &[Snapshot]) -> u64 {
    let described = kept.last().and_then(|newest| SystemState::of(newest).ok());
    described.and_then(|(_, file)| file).map_or(0, |file| file.bytes)
}

fn never_if_zero(bound: u64) -> u64 {
    if bound == 0 { u64::MAX } else { bound }
}

/// Tickets for what peers ask: their requests hold admission here as those of clients do, in a share of their own.
fn admit<S: StateMachine>(admission: Arc<Admission>) -> core::Admit<ReplySlot<S>> {
    Box::new(move |responder: Responder, bytes| match admission.try_admit_forwarded(bytes) {
        Ok(permit) => Ok(ReplySlot::remote(responder, permit)),
        Err(Denied::Busy(_)) => Err((responder, Refusal::Busy)),
        Err(Denied::Closed { cause }) => Err((responder, Refusal::Stopped { cause })),
    })
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

/// Opens the peer port.
fn listen_quic(
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
