//! What a group has on a node: its core, its state machine, its snapshots and its members, and how they are started.
//!
//! ```text
//!  recovered, replayed ─▶ GroupSpec ─┐
//!                        NodeParts ──┴─▶ start_group ─▶ checker, applier, snapshot manager, core, membership ─▶ attach
//! ```
//!
//! Nothing of the group is delivered before all of it stands: the group registers at the transport last.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{WeakRecipient, prelude::*};
use actorum_actors::{
    admission::{Admission, Denied},
    applier::{Applier, ApplierConfig, ApplierLinks, ApplierStatus},
    consistency::{self, ConsistencyChecker, ConsistencyStatus},
    core::{self, RaftCore},
    log_writer::RegisterGroup,
    membership::{self, MembershipManager, MembershipStatus, StartMode},
    message::{Failed, FromCore},
    reply_slot::ReplySlot,
    snapshot::manager::{ManagerBounds, ManagerLinks, SnapshotManager},
    subscribers::BufferBounds,
};
use actorum_core::{
    consensus::{Consensus, CoreStatus, Settings, Start},
    log::store::Recovered,
    message::LeaderChanged,
    replica::Replayed,
    system_state::SystemState,
    understanding::Understanding,
    versions::Announcement,
    wire::{Refusal, Snapshot},
};
use actorum_machine::{
    ids::{ClusterId, GroupId},
    machine::StateMachine,
    status::Snapshots,
};
use actorum_transport::message::{Attach, Handlers, Responder};
use tokio::sync::watch;

use super::{
    Rebuilt,
    node::{About, NodeParts, certificate_ends},
    roll,
};
use crate::{
    builder::{Bootstrap, StartError},
    config::{ActivateMode, Placement},
    ingress::check,
    system::Children,
};

/// A group that can be started: read from the store, checked, and rebuilt.
pub(crate) struct GroupSpec<S: StateMachine> {
    pub group: GroupId,
    pub consensus: Consensus<ReplySlot<S>>,
    pub start_mode: StartMode,
    pub replayed: Replayed<S>,
    /// The snapshots whose files are kept.
    pub kept: Vec<Snapshot>,
    /// What this node's program understands.
    pub build: Announcement,
    pub reports: Reports,
}

/// How a group begins on this node.
pub(super) struct Begin {
    pub start_mode: StartMode,
    /// Whether it was to wait until it is added.
    pub waits: bool,
    /// What this node's program understands.
    pub build: Announcement,
}

/// Who hears of a group's leaders and of its end.
pub(crate) struct Reports {
    pub failed: WeakRecipient<Failed>,
    pub leader_changed: WeakRecipient<FromCore<LeaderChanged>>,
}

impl<S: StateMachine> GroupSpec<S> {
    /// Of what the node's directory holds of the group.
    pub(super) fn new(
        group: GroupId,
        about: &About,
        Rebuilt { recovered, replayed }: Rebuilt<S>,
        Begin { start_mode, waits, build }: Begin,
        reports: Reports,
    ) -> Result<GroupSpec<S>, StartError> {
        let kept = recovered.snapshots.clone();
        let system = replayed.system.as_ref();
        let start = Start {
            recovered,
            reader: about.reader.clone(),
            applied: replayed.applied,
            membership: system.map(|system| system.membership.clone()).unwrap_or_default(),
            versions: system.map(|system| system.versions.clone()).unwrap_or_default(),
            cluster: system.map(|system| system.cluster),
            min_served_index: system.map_or(0, |system| system.recovered_at),
        };
        let consensus = Consensus::new(settings(group, about, waits, build.machine), start)?;
        Ok(GroupSpec { group, consensus, start_mode, replayed, kept, build, reports })
    }
}

/// What a group shows of itself.
pub(crate) struct GroupStatus {
    pub core: watch::Receiver<CoreStatus>,
    pub applier: watch::Receiver<ApplierStatus>,
    pub members: watch::Receiver<MembershipStatus>,
    pub snapshots: watch::Receiver<Snapshots>,
    pub consistency: watch::Receiver<ConsistencyStatus>,
}

/// Starts the actors of a group on the current arbiter, and registers it at the node's log writer and transport.
pub(crate) fn start_group<S: StateMachine>(
    node: &NodeParts,
    spec: GroupSpec<S>,
) -> Result<(Children<S>, GroupStatus), StartError> {
    let GroupSpec { group, consensus, start_mode, replayed, kept, build, reports } = spec;
    let NodeParts { about, log, transport, admission, .. } = node;
    let About { identity, reader, snapshot_store, config, clock, observer, .. } = about;
    let id = identity.id;
    let snapshots = snapshot_store.of(group);

    // The addresses first, then the actors: everyone can be told of everyone.
    let core_context = Context::<RaftCore<ReplySlot<S>>>::new();
    let core_address = core_context.address();
    let core = core_address.downgrade();
    let snapshot_manager_context = Context::<SnapshotManager>::new();
    let snapshot_manager_address = snapshot_manager_context.address();
    let membership_context = Context::<MembershipManager<ReplySlot<S>>>::new();
    let membership_address = membership_context.address();
    let checker_context = Context::<ConsistencyChecker>::new();
    let checker_address = checker_context.address();

    let (core_shows, core_status) = watch::channel(CoreStatus::default());
    let (applier_shows, applier_status) = watch::channel(ApplierStatus::default());
    let (members_show, members_status) = watch::channel(MembershipStatus::default());
    let (snapshot_manager_shows, snapshot_manager_status) = watch::channel(Snapshots::default());
    let (consistency_shows, consistency_status) = watch::channel(ConsistencyStatus::default());

    log.do_send(RegisterGroup { group, core: core.clone().recipient(), disk: core.clone().recipient() });
    let applier_links = ApplierLinks {
        applied_to: core.clone().recipient(),
        captured: snapshot_manager_address.downgrade().recipient(),
        system_changed: vec![
            core.clone().recipient(),
            membership_address.downgrade().recipient(),
            checker_address.downgrade().recipient(),
        ],
        marks: checker_address.downgrade().recipient(),
        failed: reports.failed.clone(),
    };
    let applier_config = ApplierConfig {
        group,
        reader: reader.clone(),
        snapshots: snapshots.clone(),
        subscriber_bounds: BufferBounds { events: config.subscriber_buffer, bytes: config.subscriber_buffer_bytes },
        hash_check_entries: config.hash_check_entries,
        admission: admission.clone(),
        status: applier_shows,
    };
    let checker_start = consistency::Start {
        id,
        group,
        responses: config.response_check,
        membership: replayed.system.as_ref().map(|system| system.membership.clone()).unwrap_or_default(),
        marks: replayed.marks.clone(),
    };
    let checker_links = consistency::Links {
        ask: transport.ask.clone(),
        propose: core_address.clone().recipient(),
        failed: reports.failed.clone(),
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
    let snapshot_manager_bounds = ManagerBounds {
        max_sends: config.snapshot_sends,
        rate: config.snapshot_rate,
        piece: config.snapshot_piece_bytes,
        timeout: Duration::from_millis(config.snapshot_timeout_ms),
    };
    let snapshot_manager = SnapshotManager::new(
        snapshots,
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
            reports.leader_changed,
        ],
        failed: reports.failed.clone(),
        status: core_shows,
        admit: admit(admission.clone()),
        check: check::<S>,
        observer: observer.clone(),
    };
    let tick = Duration::from_millis(config.heartbeat_ms);
    core_context.run(RaftCore::new(group, tick, consensus, clock.clone(), core_links));
    let membership_links = membership::Links {
        ask: transport.ask.clone(),
        set_peers: transport.set_peers.clone(),
        set_cluster: transport.set_cluster.clone(),
        form: core_address.clone().recipient(),
        submit: core_address.clone().recipient(),
        features: core_address.clone().recipient(),
        versions: core_address.clone().recipient(),
        failed: reports.failed,
        status: members_show,
        clocks: core_address.clone().recipient(),
        core: core_status.clone(),
        clock: clock.clone(),
        max_clock_skew: Duration::from_millis(config.max_clock_skew_ms),
        activates: config.activate == ActivateMode::Automatic,
        farewell: Duration::from_millis(config.election_ms) * 10,
    };
    let understanding = Understanding::new(id, about.features.clone(), build);
    let membership =
        MembershipManager::new(id, group, identity.incarnation, understanding, start_mode, membership_links)
            .map(|manager| manager.in_life(identity.boot, about.lives.clone()))
            .map_err(|error| StartError::Founders(error.to_string()))?;
    membership_context.run(membership);
    transport.attach.do_send(Attach {
        group,
        handlers: Handlers {
            received: core.clone().recipient(),
            asked: core.clone().recipient(),
            formation: membership_address.downgrade().recipient(),
            snapshots: snapshot_manager_address.downgrade().recipient(),
            marks: checker_address.downgrade().recipient(),
            unreachable: core.recipient(),
        },
    });

    let children = Children {
        core: core_address,
        applier,
        snapshot_manager: snapshot_manager_address,
        log: log.clone(),
        membership: membership_address,
        checker: checker_address,
        transport: transport.clone(),
        thread,
    };
    let status = GroupStatus {
        core: core_status,
        applier: applier_status,
        members: members_status,
        snapshots: snapshot_manager_status,
        consistency: consistency_status,
    };
    Ok((children, status))
}

/// How a group begins that a directory was opened for.
pub(super) fn begin<S>(
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
        (_, _, Bootstrap::Form(founders)) => StartMode::Bootstrap { founders, cluster, name },
        (_, _, Bootstrap::Wait) => StartMode::Waiting,
    })
}

/// So many bytes of the log are worth a snapshot where room is short, or a quarter of what counts as low if that is
/// less.
const SHORT_BYTES: u64 = 4 << 20;

fn settings(group: GroupId, about: &About, waits: bool, machine_version: u32) -> Settings {
    let About { identity, config, .. } = about;
    let election_ticks = config.election_ms.div_ceil(config.heartbeat_ms);
    let disk_slow_ticks = config.disk_slow_ms.div_ceil(config.heartbeat_ms).max(2);
    Settings {
        id: identity.id,
        group,
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
        small_snapshot_bytes: about.small_snapshot_bytes,
        short_bytes: SHORT_BYTES.min(config.low_space_bytes / 4),
        keep_entries: config.log_keep_entries,
        keep_bytes: config.log_keep_bytes,
        hold_bytes: config.log_hold_bytes,
        snapshot_timeout_ticks: config.snapshot_timeout_ms.div_ceil(config.heartbeat_ms).max(2),
        max_clock_skew: Duration::from_millis(config.max_clock_skew_ms),
        waits,
        features: about.features.clone(),
        machine_version,
        certificate_ends: certificate_ends(&about.certificates),
    }
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
