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
    let NodeParts { about, log, transport, .. } = node;
    let About { identity, config, clock, .. } = about;
    let snapshots = about.snapshot_store.of(group);

    // The addresses first, then the actors: everyone can be told of everyone.
    let core_context = Context::new();
    let snapshot_manager_context = Context::new();
    let membership_context = Context::new();
    let checker_context = Context::new();
    let wiring = Wiring {
        node,
        reports,
        core: core_context.address(),
        snapshot_manager: snapshot_manager_context.address(),
        membership: membership_context.address(),
        checker: checker_context.address(),
    };
    let (core_status, shown_core) = watch::channel(CoreStatus::default());
    let (applier_status, shown_applier) = watch::channel(ApplierStatus::default());
    let (members_status, shown_members) = watch::channel(MembershipStatus::default());
    let (snapshots_status, shown_snapshots) = watch::channel(Snapshots::default());
    let (consistency_status, shown_consistency) = watch::channel(ConsistencyStatus::default());

    let core = wiring.core.downgrade();
    log.do_send(RegisterGroup { group, core: core.clone().recipient(), disk: core.recipient() });
    let checker_start = consistency::Start {
        id: identity.id,
        group,
        responses: config.response_check,
        membership: replayed.system.as_ref().map(|system| system.membership.clone()).unwrap_or_default(),
        marks: replayed.marks.clone(),
    };
    checker_context.run(ConsistencyChecker::new(checker_start, wiring.of_checker(consistency_status)));
    let applier_config = ApplierConfig {
        group,
        reader: about.reader.clone(),
        snapshots: snapshots.clone(),
        subscriber_bounds: BufferBounds { events: config.subscriber_buffer, bytes: config.subscriber_buffer_bytes },
        hash_check_entries: config.hash_check_entries,
        admission: node.admission.clone(),
        status: applier_status,
    };
    let applier = Applier::new(applier_config, wiring.of_applier(), replayed);
    let thread = (config.placement == Placement::Spread).then(Arbiter::new);
    let applier = match &thread {
        Some(thread) => Applier::start_in_arbiter(&thread.handle(), |_| applier),
        None => applier.start(),
    };
    let bounds = ManagerBounds {
        max_sends: config.snapshot_sends,
        rate: config.snapshot_rate,
        piece: config.snapshot_piece_bytes,
        timeout: Duration::from_millis(config.snapshot_timeout_ms),
    };
    let links = wiring.of_snapshot_manager(&applier);
    snapshot_manager_context.run(SnapshotManager::new(snapshots, kept, bounds, clock.clone(), links, snapshots_status));
    let tick = Duration::from_millis(config.heartbeat_ms);
    let links = wiring.of_core(&applier, core_status);
    core_context.run(RaftCore::new(group, tick, consensus, clock.clone(), links));
    let understanding = Understanding::new(identity.id, about.features.clone(), build);
    let links = wiring.of_membership(members_status, shown_core.clone());
    let membership = MembershipManager::new(identity.id, group, identity.incarnation, understanding, start_mode, links)
        .map(|manager| manager.in_life(identity.boot, about.lives.clone()))
        .map_err(|error| StartError::Founders(error.to_string()))?;
    membership_context.run(membership);
    transport.attach.do_send(Attach { group, handlers: wiring.handlers() });

    let Wiring { core, snapshot_manager, membership, checker, .. } = wiring;
    let (log, transport) = (log.clone(), transport.clone());
    let children = Children { core, applier, snapshot_manager, log, membership, checker, transport, thread };
    let status = GroupStatus {
        core: shown_core,
        applier: shown_applier,
        members: shown_members,
        snapshots: shown_snapshots,
        consistency: shown_consistency,
    };
    Ok((children, status))
}

/// Who of a group's actors tells whom what.
struct Wiring<'a, S: StateMachine> {
    node: &'a NodeParts,
    reports: Reports,
    core: Addr<RaftCore<ReplySlot<S>>>,
    snapshot_manager: Addr<SnapshotManager>,
    membership: Addr<MembershipManager<ReplySlot<S>>>,
    checker: Addr<ConsistencyChecker>,
}

impl<S: StateMachine> Wiring<'_, S> {
    fn of_applier(&self) -> ApplierLinks {
        ApplierLinks {
            applied_to: self.core.downgrade().recipient(),
            captured: self.snapshot_manager.downgrade().recipient(),
            system_changed: vec![
                self.core.downgrade().recipient(),
                self.membership.downgrade().recipient(),
                self.checker.downgrade().recipient(),
            ],
            marks: self.checker.downgrade().recipient(),
            failed: self.reports.failed.clone(),
        }
    }

    fn of_checker(&self, status: watch::Sender<ConsistencyStatus>) -> consistency::Links {
        consistency::Links {
            ask: self.node.transport.ask.clone(),
            propose: self.core.clone().recipient(),
            failed: self.reports.failed.clone(),
            status,
            observer: self.node.about.observer.clone(),
        }
    }

    fn of_snapshot_manager(&self, applier: &Addr<Applier<S>>) -> ManagerLinks {
        ManagerLinks {
            capture: applier.downgrade().recipient(),
            built: self.core.downgrade().recipient(),
            fetched: self.core.downgrade().recipient(),
            peer_fetches: self.core.downgrade().recipient(),
            ask: self.node.transport.ask.clone(),
        }
    }

    fn of_core(&self, applier: &Addr<Applier<S>>, status: watch::Sender<CoreStatus>) -> core::Links<ReplySlot<S>> {
        let NodeParts { about, log, transport, admission, .. } = self.node;
        core::Links {
            append: log.clone().recipient(),
            probe: log.clone().recipient(),
            reader: about.reader.clone(),
            apply: applier.clone().recipient(),
            reads: applier.clone().recipient(),
            restore: applier.clone().recipient(),
            build: self.snapshot_manager.clone().recipient(),
            fetch: self.snapshot_manager.clone().recipient(),
            kept: self.snapshot_manager.clone().recipient(),
            transmit: transport.transmit.clone(),
            ask: transport.ask.clone(),
            leader_changed: vec![
                applier.downgrade().recipient(),
                self.membership.downgrade().recipient(),
                self.checker.downgrade().recipient(),
                self.reports.leader_changed.clone(),
            ],
            failed: self.reports.failed.clone(),
            status,
            admit: admit(admission.clone()),
            check: check::<S>,
            observer: about.observer.clone(),
        }
    }

    fn of_membership(
        &self,
        status: watch::Sender<MembershipStatus>,
        core: watch::Receiver<CoreStatus>,
    ) -> membership::Links<ReplySlot<S>> {
        let NodeParts { about, transport, .. } = self.node;
        let config = &about.config;
        membership::Links {
            ask: transport.ask.clone(),
            set_peers: transport.set_peers.clone(),
            set_cluster: transport.set_cluster.clone(),
            form: self.core.clone().recipient(),
            submit: self.core.clone().recipient(),
            features: self.core.clone().recipient(),
            versions: self.core.clone().recipient(),
            failed: self.reports.failed.clone(),
            status,
            clocks: self.core.clone().recipient(),
            core,
            clock: about.clock.clone(),
            max_clock_skew: Duration::from_millis(config.max_clock_skew_ms),
            activates: config.activate == ActivateMode::Automatic,
            farewell: Duration::from_millis(config.election_ms) * 10,
        }
    }

    /// Who gets what peers send to the group.
    fn handlers(&self) -> Handlers {
        Handlers {
            received: self.core.downgrade().recipient(),
            asked: self.core.downgrade().recipient(),
            formation: self.membership.downgrade().recipient(),
            snapshots: self.snapshot_manager.downgrade().recipient(),
            marks: self.checker.downgrade().recipient(),
            unreachable: self.core.downgrade().recipient(),
        }
    }
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

/// Reply slots for requests that peers forward. They take admission as clients' requests do, from a separate share.
fn admit<S: StateMachine>(admission: Arc<Admission>) -> core::Admit<ReplySlot<S>> {
    Box::new(move |responder: Responder, bytes| match admission.try_admit_forwarded(bytes) {
        Ok(permit) => Ok(ReplySlot::remote(responder, permit)),
        Err(Denied::Busy(_)) => Err((responder, Refusal::Busy)),
        Err(Denied::Closed { cause }) => Err((responder, Refusal::Stopped { cause })),
    })
}
