//! The hub of the status: every actor shows its latest numbers here, and a status is made from them here.
//!
//! Each number has one owner, which shows it through a `watch`. Reading clones the numbers and blocks no actor. So the
//! parts of a status are not all from one instant, but each part is the latest.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use actorum_actors::{
    admission::Admission, applier::ApplierStatus, clock::Clock, consistency::ConsistencyStatus,
    log_writer::LogWriterStatus, membership::MembershipStatus,
};
use actorum_core::{
    clock_offsets::calendar_us,
    consensus::CoreStatus,
    consistency::compare::{self, Side},
    log::store::LogReader,
    versions::{Activation, Announcement},
};
use actorum_machine::{
    condition::{Condition, Reason},
    ids::{Incarnation, NodeId},
    members::Membership,
    status::{
        CertificateExpiry, ClockStatus, CommitConflict, DiskState, DiskStatus, Divergence, DivergenceSide, Formed,
        MemberVersion, NotInUse, PeerProgress, Queues, Role, Snapshots, StateHash, Status, Totals, VersionStatus,
    },
};
use actorum_transport::{message::TransportStatus, tls::EARLIEST_S};
use tokio::sync::watch;

/// What the actor `RaftSystem` shows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    pub leader_changes: u64,
    pub last_error: Option<String>,
    /// Why the system stops or has stopped.
    pub stopped: Option<String>,
    /// The condition for which the system has stopped.
    pub stop_reason: Option<Reason>,
    /// Whether the directory is closed and every actor has ended.
    pub closed: bool,
}

/// How a request ended, where the status may know a better reason. A request that may be in the log stays unknown,
/// whatever the status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// No leader took it in time: there is none, or the leader could not.
    NotTaken,
    /// The system had stopped before.
    Stopped,
    /// Anything else.
    Other,
}

/// The reading ends.
#[derive(Clone)]
pub(crate) struct StatusHub {
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub admission: Arc<Admission>,
    pub reader: Arc<dyn LogReader>,
    pub core: watch::Receiver<CoreStatus>,
    pub applier: watch::Receiver<ApplierStatus>,
    pub log: watch::Receiver<LogWriterStatus>,
    pub network: watch::Receiver<TransportStatus>,
    pub members: watch::Receiver<MembershipStatus>,
    pub snapshots: watch::Receiver<Snapshots>,
    pub consistency: watch::Receiver<ConsistencyStatus>,
    pub life: watch::Receiver<Life>,
    pub clock: Arc<dyn Clock>,
    /// The files of this node's certificates and when they expire, in seconds since 1970.
    pub certificates: Arc<[(String, i64)]>,
    pub max_clock_skew_ms: u64,
    /// What this node's program understands.
    pub build: Announcement,
    /// Whether this node, while it leads, waits for an operator before it activates anything.
    pub manual: bool,
}

impl StatusHub {
    /// The latest of everything.
    pub(crate) fn status(&self) -> Status {
        let core = self.core.borrow().clone();
        let applier = self.applier.borrow().clone();
        let log = self.log.borrow().clone();
        let network = self.network.borrow().clone();
        let life = self.life.borrow().clone();
        let members = self.members.borrow().clone();
        let (in_flight, in_flight_bytes) = self.admission.in_flight();
        let (proposals_applied, proposals_failed) = self.admission.totals();
        let mut status = Status::default();
        status.id = self.id;
        status.incarnation = Some(self.incarnation);
        status.versions = self.versions(&applier, &members);
        status.cluster = applier.cluster;
        status.formed = if core.formed { Formed::Yes } else { members.formed };
        status.role = core.role;
        status.term = core.term;
        status.leader = core.leader;
        status.first_index = core.first_index;
        status.last_index = core.last_index;
        status.persisted_index = core.persisted_index;
        // The applier may be ahead of what the core has shown.
        status.commit_index = core.commit_index.max(applier.applied);
        status.applied_index = applier.applied;
        status.snapshot_index = core.snapshot_index;
        status.snapshots = self.snapshots.borrow().clone();
        status.log_bytes = core.log_bytes;
        status.peers = peers(self.id, &core, &applier, &network);
        let (own_us, now) = (calendar_us(self.clock.wall()), self.clock.now());
        for (id, peer) in &mut status.peers {
            let calendar = members.clocks.calendar_us(*id, now);
            peer.clock_offset_ms = calendar.map(|theirs| theirs.saturating_sub(own_us) / 1000);
            peer.refuses_writes = members.refuses_writes.get(id).cloned();
        }
        let median = members.clocks.median_us(&applier.membership.configuration(), self.id, own_us, now);
        status.clock = ClockStatus {
            unset: own_us < i64::try_from(EARLIEST_S * 1_000_000).unwrap_or(0),
            offset_ms: median.map(|median| own_us.saturating_sub(median) / 1000),
            max_skew_ms: self.max_clock_skew_ms,
        };
        status.refused_by = members.refused_by;
        status.certificates = self.certificates();
        status.queues = Queues {
            in_flight,
            in_flight_bytes,
            queued: core.queued,
            unpersisted: core.unpersisted,
            unapplied: status.commit_index - applier.applied,
            log_tail_bytes: core.tail_bytes,
        };
        status.totals = Totals {
            leader_changes: life.leader_changes,
            proposals_applied,
            proposals_failed,
            commands_applied: applier.commands,
            entries_persisted: log.entries,
            syncs: log.syncs,
            sync_us: log.sync_us,
            append_us: log.append_us,
            bytes_sent: network.bytes_sent,
            bytes_received: network.bytes_received,
            messages_dropped: network.peers.values().map(|peer| peer.dropped).sum(),
            largest_frame_bytes: network.largest_frame,
            misdirected: network.misdirected,
        };
        let consistency = self.consistency.borrow().clone();
        status.state_hash = consistency.mark.and_then(|mark| {
            let actorum_core::marks::StateHash { since, value } = mark.state?;
            Some(StateHash { index: mark.index, since, value: value.to_string() })
        });
        status.divergence = consistency.state.map(divergence);
        status.response_divergence = consistency.responses.map(divergence);
        let conflict = |(id, conflict): (&NodeId, &actorum_core::consensus::CommitConflict)| {
            let actorum_core::consensus::CommitConflict { index, theirs, at, ours } = *conflict;
            (*id, CommitConflict { index, their_term: theirs, at, our_term: ours })
        };
        status.commit_conflicts = core.commit_conflicts.iter().map(conflict).collect();
        status.disk_bytes = self.reader.disk_bytes();
        status.disk = disk(&core, &log);
        status.last_error = life.last_error.or(applier.last_error).or(log.failed).or(members.refused);
        status.membership = applier.membership;
        if life.stopped.is_some() {
            // The core has ended, so what it showed last no longer counts.
            (status.role, status.leader) = (Role::Follower, None);
        }
        status.stop_reason = life.stop_reason.filter(|_| life.stopped.is_some());
        status.stopped = life.stopped;
        status
    }

    /// All versions are from one moment of the applier. The hellos of members count only until their announcements are
    /// recorded.
    pub(crate) fn versions(&self, applier: &ApplierStatus, members: &MembershipStatus) -> VersionStatus {
        let versions = &applier.versions;
        let announced = if versions.are_recorded() { &versions.announced } else { &members.heard };
        let mut status = VersionStatus::default();
        status.machine = versions.machine();
        status.machine_since = versions.machine_since;
        status.own_machine = self.build.machine;
        status.features = versions.in_use.iter().cloned().collect();
        status.members = versions.announced.iter().map(|(id, theirs)| (*id, member_version(theirs))).collect();
        let candidates = versions.candidates(&self.build).into_iter();
        let now = self.clock.now();
        let waiting = |what: &Activation| {
            members.not_in_use_since.get(what).map_or(0, |since| now.saturating_sub(*since).as_secs())
        };
        let not_in_use = |what: Activation| {
            let mut shown = not_in_use(&what, &applier.membership, announced);
            shown.waiting_s = waiting(&what);
            shown
        };
        status.not_in_use = candidates.map(not_in_use).collect();
        status.manual = self.manual;
        status
    }

    /// Why a request ended so, where the status knows a reason with a name of its own.
    pub(crate) fn explain(&self, end: End) -> Option<Condition> {
        if end == End::Other {
            return None;
        }
        let status = self.status();
        // While the system runs, a condition in its status is not the reason for a stop.
        let why = status.unready().filter(|_| end == End::NotTaken || status.stopped.is_some());
        why.filter(|condition| condition.reason != Reason::Stopped)
    }

    fn certificates(&self) -> Vec<CertificateExpiry> {
        let now = self.clock.wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let end = |(file, not_after): &(String, i64)| CertificateExpiry {
            file: file.clone(),
            not_after: *not_after,
            remaining_s: not_after.saturating_sub(now),
        };
        self.certificates.iter().map(end).collect()
    }

    /// Why a request has no answer at its deadline, as far as the status shows it.
    pub(crate) fn why_late(&self, deadline: Duration) -> String {
        let Status { applied_index: applied, commit_index: commit, snapshot_index: snapshot, .. } = self.status();
        let behind = match () {
            () if applied < snapshot => format!("is being restored from the snapshot at {snapshot}"),
            () if applied < commit => format!("is busy: it has applied up to {applied} of {commit} committed entries"),
            () => return format!("no answer came within {deadline:?}: this node's actors are busy"),
        };
        format!("no answer came within {deadline:?}: this node's state machine {behind}")
    }

    /// What an activation waits for at its deadline. `done` is the index at which the leader had done its part, if it
    /// has answered.
    pub(crate) fn why_not_activated(&self, deadline: Duration, done: Option<u64>) -> String {
        let status = self.status();
        let (id, leader, applied) = (status.id, status.leader, status.applied_index);
        let waits = match (done, leader) {
            (Some(index), _) => format!("node {id} has applied up to {applied} of {index}"),
            (None, None) => "no leader is known".to_owned(),
            (None, Some(leader)) if leader != id => format!("the leader, node {leader}, has not answered"),
            (None, Some(_)) => match status.unready() {
                Some(Condition { message, .. }) => {
                    format!("the entries of the leader, node {id}, are not applied: {message}")
                }
                None => format!("the entries of the leader, node {id}, are not applied"),
            },
        };
        let left = status.versions.not_in_use.iter().map(|NotInUse { what, lacking, .. }| {
            let lacking: Vec<_> = lacking.iter().map(NodeId::to_string).collect();
            match lacking.is_empty() {
                true => format!("{what} is not in use, which every member understands"),
                false => {
                    format!("{what} is not in use, since node {} has not announced it", lacking.join(" and node "))
                }
            }
        });
        let said: Vec<_> = std::iter::once(format!("within {deadline:?} {waits}")).chain(left).collect();
        said.join("; ")
    }

    /// Why a snapshot is not there at its deadline. If the snapshot is under way, the text says that it goes on: a
    /// caller that gives up does not end it.
    pub(crate) fn why_no_snapshot(&self, deadline: Duration, why_late: String) -> String {
        let goes_on = "The snapshot goes on and counts once it is durable: see `snapshots` in the status";
        match self.snapshots.borrow().building {
            None => why_late,
            Some(building) if building.bytes == 0 => format!("{why_late}. {goes_on}"),
            Some(building) => {
                format!("it was not durable within {deadline:?}, with {} bytes written. {goes_on}", building.bytes)
            }
        }
    }

    /// Waits until a number changes that a condition may depend on; false once no actor shows numbers any more.
    pub(crate) async fn changed(&mut self) -> bool {
        // Biased: the order makes no difference here, and a random order could not be replayed.
        tokio::select! {
            biased;
            changed = self.life.changed() => changed.is_ok(),
            changed = self.core.changed() => changed.is_ok() || self.life.changed().await.is_ok(),
            changed = self.applier.changed() => changed.is_ok() || self.life.changed().await.is_ok(),
            changed = self.members.changed() => changed.is_ok() || self.life.changed().await.is_ok(),
            changed = self.log.changed() => changed.is_ok() || self.life.changed().await.is_ok(),
            changed = self.snapshots.changed() => changed.is_ok() || self.life.changed().await.is_ok(),
            changed = self.network.changed() => changed.is_ok() || self.life.changed().await.is_ok(),
            changed = self.consistency.changed() => changed.is_ok() || self.life.changed().await.is_ok(),
        }
    }

    /// Marks the present status as seen. Call it before looking, so that no change in between is missed.
    pub(crate) fn mark_seen(&mut self) {
        self.life.mark_unchanged();
        self.core.mark_unchanged();
        self.applier.mark_unchanged();
        self.members.mark_unchanged();
        self.log.mark_unchanged();
        self.snapshots.mark_unchanged();
        self.network.mark_unchanged();
        self.consistency.mark_unchanged();
    }
}

fn member_version(announcement: &Announcement) -> MemberVersion {
    let mut version = MemberVersion::default();
    version.features = announcement.features.iter().cloned().collect();
    version.machine = announcement.machine;
    version
}

fn not_in_use(what: &Activation, members: &Membership, announced: &BTreeMap<NodeId, Announcement>) -> NotInUse {
    let lacks = |id: &&NodeId| !announced.get(id).is_some_and(|theirs| theirs.covers(what));
    let mut waiting = NotInUse::default();
    waiting.what = what.to_string();
    match what {
        Activation::Feature(name) => waiting.feature = Some(name.clone()),
        Activation::Machine(version) => waiting.machine = Some(*version),
    }
    waiting.lacking = members.members.keys().filter(lacks).copied().collect();
    waiting
}

/// A divergence as the status shows it, with hashes as hexadecimal digits.
fn divergence(found: compare::Divergence) -> Divergence {
    let compare::Divergence { index, equal_until, values, side } = found;
    let values = values.into_iter().map(|(id, value)| (id, value.to_string())).collect();
    let side = match side {
        Side::Majority => DivergenceSide::Majority,
        Side::Minority => DivergenceSide::Minority,
        Side::Undecided => DivergenceSide::Undecided,
    };
    Divergence { index, equal_until, values, side }
}

/// The disk as the core and the log writer see it.
fn disk(core: &CoreStatus, log: &LogWriterStatus) -> DiskStatus {
    let seen = &core.disk;
    let state = match () {
        () if log.failed.is_some() => DiskState::Dead,
        () if seen.suspect_ms.is_some() => DiskState::Suspect,
        () if log.low => DiskState::Low,
        () if seen.slow => DiskState::Slow,
        () => DiskState::Ok,
    };
    DiskStatus {
        state,
        waiting_ms: seen.waiting_ms,
        suspect_ms: seen.suspect_ms,
        unpersisted_bytes: seen.unpersisted_bytes,
        free_bytes: log.free_bytes,
        reserve_bytes: log.reserve_bytes,
        needed_bytes: log.needed_bytes,
        low: log.low,
        deferred_dropped: seen.deferred_dropped,
        cause: log.failed.clone(),
    }
}

/// All other members, and all other nodes that the core or the network knows, except removed ones: the connection of a
/// removed node may outlive its membership.
fn peers(
    me: NodeId,
    core: &CoreStatus,
    applier: &ApplierStatus,
    network: &TransportStatus,
) -> BTreeMap<NodeId, PeerProgress> {
    let members = applier.membership.members.keys();
    let membership = &applier.membership;
    let gone = |id: &NodeId| membership.retired.contains(id) && !membership.members.contains_key(id);
    let ids = members.chain(core.peers.keys()).chain(network.peers.keys()).filter(|id| **id != me && !gone(id));
    let mut peers = BTreeMap::new();
    for id in ids {
        let (match_index, state) = core.peers.get(id).copied().unwrap_or((0, "unknown"));
        let link = network.peers.get(id).cloned().unwrap_or_default();
        let address = applier.membership.members.get(id).map(|member| member.address.clone()).unwrap_or_default();
        peers.insert(
            *id,
            PeerProgress {
                inflight_bytes: core.inflight_bytes.get(id).copied().unwrap_or(0),
                address,
                match_index,
                state: state.to_owned(),
                rtt_us: link.rtt_us,
                connected: link.connected,
                // The peer is connected, so an earlier error of dialling it is over.
                last_error: link.last_error.filter(|_| !link.connected),
                recently_active: core.heard.contains(id),
                refuses_writes: None,
                clock_offset_ms: None,
            },
        );
    }
    peers
}

#[cfg(test)]
mod tests {
    use actorum_machine::members::{Member, MemberRole, Membership};
    use actorum_transport::message::PeerStatus;

    use super::*;

    /// Node 1, whose network still knows 3, which was removed, and 4, which is about to be added.
    #[test]
    fn peers_are_the_members_and_strangers_but_nobody_who_was_removed() {
        let member = |id: NodeId| Member {
            address: format!("n{id}").as_str().into(),
            role: MemberRole::Voter,
            incarnation: None,
        };
        let membership = Membership { members: [1, 2].map(|id| (id, member(id))).into(), retired: [3].into() };
        let applier = ApplierStatus { membership: Arc::new(membership), ..ApplierStatus::default() };
        let error = || Some("the connection was refused".to_owned());
        let link = |connected| PeerStatus { connected, last_error: error(), ..PeerStatus::default() };
        let network = TransportStatus {
            peers: [(2, link(true)), (3, link(true)), (4, link(false))].into(),
            ..TransportStatus::default()
        };
        let peers = peers(1, &CoreStatus::default(), &applier, &network);
        assert_eq!(peers.keys().copied().collect::<Vec<_>>(), [2, 4]);
        assert_eq!(peers[&2].last_error, None, "it is connected: what was wrong is over");
        assert_eq!(peers[&4].last_error, error());
    }
}
