//! The start of a node: the same steps for the first start, a restart and a join.
//!
//! ```text
//!  open_node ─▶ OpenNode: settings, certificates, directory
//!  open_group ─▶ replay ─▶ listen ─▶ NodeParts: log writer, transport ─▶ start_group ─▶ attach the node
//! ```
//!
//! What a node has once is in `node`, what it has of each group is in `group`, where its actors live is in `home`;
//! there is one group. Nothing is sent before all of it stands: the port for peers is opened once the group's state is
//! rebuilt, and the transport delivers only once the node is attached, which comes last.

use std::{hash::BuildHasher, sync::Arc, time::Duration};

use actix::prelude::*;
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
use actorum_store::{log::store::LogStore, snapshot::GroupSnapshots};
use actorum_transport::message::{AttachNode, NodeHandlers};

use crate::{
    builder::{Bootstrap, Builder, Network, StartError},
    condition_log::ConditionLog,
    config::{ActivateMode, Config, ConfigError},
    host::{GroupConfig, HostBuilder},
    ingress::{Ingress, check_id},
    raft::Raft,
    status_hub::StatusHub,
    system::{Children, RaftSystem},
};

mod home;
mod node;
mod group;

use group::{Begin, GroupSpec, GroupStatus, Reports, start_group};
pub(crate) use home::{Home, OwnSystem, run_on};
use node::{About, NodeParts, is_new};
pub(crate) use node::{OpenNode, open_node};

/// The one group of this version.
pub(crate) const GROUP: GroupId = GroupId::FIRST;

/// Starts a node with its group.
pub(crate) async fn start<S: StateMachine>(builder: Builder<S>) -> Result<Raft<S>, StartError> {
    let Builder { host, machine, group, machine_version } = builder;
    let Home { arbiter, own } = Home::find(host.id)?;
    run_on(&arbiter, move || async move {
        // Before there is a directory: one that a mistake made would have to be removed by hand.
        check_host(&host)?;
        check_bootstrap(host.id, &group.bootstrap)?;
        if host.storage.as_ref().is_some_and(|storage| is_new(storage, host.id)) {
            check_id(host.id).map_err(|problem| missing("id", &problem))?;
            check_founders(host.id, &group.bootstrap, matches!(host.network, Network::Quic))?;
        }
        let node = open_node(host, own).await?;
        open_group(node, machine, machine_version, group).await
    })
    .await
}

/// Starts a node without a group.
pub(crate) async fn start_node(host: HostBuilder) -> Result<(ArbiterHandle, OpenNode), StartError> {
    let Home { arbiter, own } = Home::find(host.id)?;
    let node = run_on(&arbiter, move || async move {
        check_host(&host)?;
        open_node(host, own).await
    });
    let node = node.await?;
    Ok((arbiter, node))
}

/// Closes the directory of a node that has no group, and drops `lock` afterwards.
pub(crate) async fn close(arbiter: &ArbiterHandle, node: OpenNode, lock: impl Send + 'static) {
    // Where blocking is allowed: files are closed. An arbiter that has ended closed them when it dropped the node.
    let closed = move || {
        drop(node);
        drop(lock);
        Ok(())
    };
    let _ = run_on(arbiter, move || blocking(closed)).await;
}

/// Opens the group of a node: all steps, on the thread of its actors.
pub(crate) async fn open_group<S: StateMachine>(
    node: OpenNode,
    machine: S,
    machine_version: u32,
    group: GroupConfig,
) -> Result<Raft<S>, StartError> {
    let OpenNode { about, store, volume, network, own } = node;
    let (id, bootstrap) = (about.identity.id, group.bootstrap);
    check_bootstrap(id, &bootstrap)?;
    let hashes = Hashes {
        versions: about.features.has(Feature::VersionHashes),
        state: about.features.has(Feature::StateHashes),
        responses: about.features.has(Feature::StateHashes) && about.config.response_check != ResponseCheck::Off,
    };
    let build = Announcement::of(&about.features, machine_version, about.identity.boot);
    // What a replica compares with is announced by no boot.
    let replica = Replica::new(machine).hashing(hashes).built_as(Announcement { boot: 0, ..build.clone() });
    let (snapshots, reader) = (about.snapshot_store.of(GROUP), about.reader.clone());
    let (store, Rebuilt { recovered, replayed }) = match about.reader.blocks() {
        // A simulation must not wait for a thread that lives in another time.
        false => rebuild(store, &snapshots, &*reader, replica)?,
        true => blocking(move || rebuild(store, &snapshots, &*reader, replica)).await?,
    };
    if replayed.system.is_none() {
        check_founders(id, &bootstrap, about.dials)?;
    }
    if let Some(observer) = &about.observer {
        observer.replayed(replayed.snapshot_index);
    }

    let me = Identity {
        id,
        incarnation: about.identity.incarnation,
        boot: about.identity.boot,
        cluster: replayed.system.as_ref().map(|system| system.cluster),
        features: about.features.clone(),
        machine_version,
        lives: Arc::default(),
    };
    let authority = network.authority();
    let transport = network.start(me, &about)?;

    let (cluster, name) = (cluster_id(&authority, &bootstrap, &about.config), about.config.cluster_name.clone());
    let waits = bootstrap == Bootstrap::Wait;
    let start_mode = group::begin(&recovered, &replayed, bootstrap, cluster, name)?;
    about.share_volume(&*store, volume, &recovered.snapshots);
    // The addresses first, then the actors: everyone can be told of everyone.
    let system_context = Context::<RaftSystem<S>>::new();
    let system_address = system_context.address();
    let system = system_address.downgrade();
    let reports = Reports { failed: system.clone().recipient(), leader_changed: system.clone().recipient() };
    let spec =
        GroupSpec::new(GROUP, &about, Rebuilt { recovered, replayed }, Begin { start_mode, waits, build }, reports)?;
    let build = spec.build.clone();
    let node = NodeParts::start(about, store, transport, system.recipient());
    let (children, status) = start_group(&node, spec)?;
    let members = children.membership.downgrade();
    node.transport.attach_node.do_send(AttachNode {
        handlers: NodeHandlers { peer_up: members.clone().recipient(), peer_refused: members.recipient() },
    });

    let ingress = Arc::new(ingress(&node, &children, status, build));
    let system = system_context.run(RaftSystem {
        ingress: ingress.clone(),
        life: node.life,
        network: node.network,
        children: Some(children),
        grace: node.about.config.deadline(),
        asking: false,
        leadership: None,
        conditions: ConditionLog::default(),
        own,
    });
    Ok(Raft { system, ingress })
}

/// The way in, to the actors of a group.
fn ingress<S: StateMachine>(
    node: &NodeParts,
    children: &Children<S>,
    status: GroupStatus,
    build: Announcement,
) -> Ingress<S> {
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
            build,
            manual: config.activate == ActivateMode::Manual,
        }),
    }
}

/// What no node can be started with.
fn check_host(host: &HostBuilder) -> Result<(), StartError> {
    host.config.validate()?;
    match host.id {
        0 => Err(missing("id", "0 is not a node id: choose 1 or more")),
        _ => Ok(()),
    }
}

/// What no group can be opened with.
fn check_bootstrap(id: NodeId, bootstrap: &Bootstrap) -> Result<(), StartError> {
    match bootstrap {
        Bootstrap::Form(founders) if founders.contains_key(&0) => {
            Err(StartError::Founders("0 is not a node id: choose 1 or more for every founder".into()))
        }
        Bootstrap::Form(founders) if !founders.contains_key(&id) => {
            let list: Vec<_> = founders.keys().map(NodeId::to_string).collect();
            Err(StartError::Founders(format!(
                "node {id} is not in its own list of founders ({}): add it, or start it as a node that waits to be \
                 added",
                list.join(", ")
            )))
        }
        Bootstrap::Form(_) | Bootstrap::Wait => Ok(()),
    }
}

/// Checks that only new founders have to pass. A node that was founded before these checks must still start. The node's
/// own id is checked where its directory is made: a directory of the first version keeps its id.
fn check_founders(own: NodeId, bootstrap: &Bootstrap, dials: bool) -> Result<(), StartError> {
    let Bootstrap::Form(founders) = bootstrap else { return Ok(()) };
    for (founder, address) in founders {
        if *founder != own {
            check_id(*founder).map_err(StartError::Founders)?;
        }
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

/// What is left of a group on the disk: its log, and the state that this gives.
struct Rebuilt<S> {
    recovered: Recovered,
    replayed: Replayed<S>,
}

/// Reads the group from the store, and rebuilds its state.
fn rebuild<S: StateMachine>(
    store: Box<dyn LogStore>,
    snapshots: &GroupSnapshots,
    reader: &dyn LogReader,
    replica: Replica<S>,
) -> Result<(Box<dyn LogStore>, Rebuilt<S>), StartError> {
    let mut recovered = store.recover(GROUP)?;
    let replayed = replay_into(GROUP, reader, &recovered, snapshots, replica)?;
    // A damaged one counts for nothing from here on; its file goes with the next one that is built.
    recovered.snapshots = replayed.snapshots.clone();
    let swept = snapshots.keep(&recovered.snapshots);
    swept.map_err(|error| StartError::Machine(format!("what a crash left of snapshots cannot be removed: {error}")))?;
    // What was applied was committed: raft-rs refuses to start with a commit index below it.
    recovered.hard_state.commit = recovered.hard_state.commit.max(replayed.applied);
    Ok((store, Rebuilt { recovered, replayed }))
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

/// Runs what blocks on a disk where that is allowed.
#[allow(clippy::disallowed_methods, reason = "only what blocks comes here")]
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StartError::Thread(error.to_string()))?
}
