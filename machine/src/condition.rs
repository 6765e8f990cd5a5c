//! What is wrong with a node, decided in one place: a pure function from a status to conditions.
//!
//! ```text
//!  Status ──▶ conditions() ─┬─▶ readyz, Raft::ready      the first that makes the node unready
//!                           ├─▶ metrics                  actorum_condition{condition="no_majority"} 1
//!                           ├─▶ status, `actorum status` each with its sentence
//!                           ├─▶ clients' errors          Unavailable { reason, .. }
//!                           └─▶ the log                  one line when it begins, one when it ends
//! ```
//!
//! A new condition is one line in the table below: its variant, its name, and the function that looks for it.
//!
//! Deliberately absent: time. What depends on it (a certificate's end, which peers answered lately) is a number in the
//! status.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{
    configuration::Shortfall,
    ids::NodeId,
    status::{
        CertificateExpiry, CommitConflict, DiskState, Divergence, DivergenceSide, Formed, NotInUse, Role, Status,
        VersionStatus,
    },
};

/// A certificate that expires sooner than this is warned of.
pub const CERTIFICATE_WARNING_DAYS: i64 = 30;

/// What a program understands and a member lacks is warned of once this node has seen that for so long: an upgrade of
/// all nodes is done by then.
pub const LACKING_WARNING_S: u64 = 24 * 60 * 60;

/// What every member understands and nobody activates is warned of once this node has seen that it is not in use for so
/// long: an operator who keeps the way back open needs some days.
pub const OPERATOR_WARNING_S: u64 = 7 * LACKING_WARNING_S;

const DAY_S: i64 = 24 * 60 * 60;
const CERTIFICATE_WARNING_S: i64 = CERTIFICATE_WARNING_DAYS * DAY_S;

/// What a condition means for clients that send requests to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A write sent to this node now could not succeed.
    Unready,
    /// Writes succeed, but an operator has to look at it.
    Warning,
}

/// Something that is wrong with a node now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What it is: for programs.
    pub reason: Reason,
    /// Whether it keeps writes from succeeding.
    pub severity: Severity,
    /// Which of several things it is about, where each can be wrong by itself. For certificates: `None` for the
    /// certificates that peers see, otherwise the directory of the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What it is and the way out: for people.
    pub message: String,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

/// What a look for one condition finds.
type Found = Option<(Severity, String)>;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $name:literal $look:expr;)*) => {
        /// Why a node is not ready, or what an operator has to look at. In JSON, metrics and error codes: snake_case.
        ///
        /// In the order in which they are listed: the first one that makes a node unready is the reason it gives.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// All of them, in the order in which they are listed.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant),*];

            /// The name in JSON, metrics and error codes.
            pub fn name(self) -> &'static str {
                match self {
                    $(Reason::$variant => $name,)*
                }
            }

            fn look(self, status: &Status) -> Found {
                match self {
                    $(Reason::$variant => $look(status),)*
                }
            }
        }
    };
}

reasons! {
    /// The node was removed from the cluster. Its id is never used again.
    Removed "removed" removed;
    /// The files of its data directory were deleted, renamed or unmounted while it ran.
    DataDirectoryMissing "data_directory_missing" only_when_stopped;
    /// Its peers refuse to speak with it.
    RefusedByPeers "refused_by_peers" refused_by_peers;
    /// Members applied different entries: this node is wrong, others are, or no majority tells who is.
    Diverged "diverged" diverged;
    /// Its disk failed or did not answer: this process writes nothing any more.
    DiskFailed "disk_failed" only_when_stopped;
    /// It has stopped: it was shut down, or a part of it broke.
    Stopped "stopped" only_when_stopped;
    /// It waits to be added to a cluster, or has not yet heard that it was.
    NotAMember "not_a_member" not_a_member;
    /// It founds a cluster and has not yet heard from every founder.
    Forming "forming" forming;
    /// A certificate that this node serves with, or the certificate of its authority, has expired. A certificate that
    /// peers see makes the node unready once the node hears no leader and cannot reach every voter.
    CertificateExpired "certificate_expired" one_for_each_directory;
    /// Fewer than a majority of the voters can be reached.
    NoMajority "no_majority" no_majority;
    /// There is too little room on a disk.
    LowSpace "low_space" low_space;
    /// A disk answers slowly: a leader takes no writes until it has answered.
    DiskSlow "disk_slow" disk_slow;
    /// A majority can be reached, and no leader is known: an election is under way.
    NoLeader "no_leader" no_leader;
    /// The node that leads says that it takes no writes, for a reason that this version does not know.
    LeaderUnready "leader_unready" leader_unready;
    /// The calendar clock of this node shows a time that cannot be: it was never set.
    ClockUnset "clock_unset" clock_unset;
    /// The calendar clock of a member is too far from the median of the voters'.
    ClockSkew "clock_skew" clock_skew;
    /// This node leads, does not know the clocks of a majority, and takes the time of new entries from its own.
    ClockUnverified "clock_unverified" clock_unverified;
    /// State machines of one version responded differently to the same commands.
    ResponsesDiverged "responses_diverged" responses_diverged;
    /// Another member says that it committed what contradicts this node's log.
    CommitConflict "commit_conflict" commit_conflict;
    /// A certificate that this node serves with, or the certificate of its authority, expires within 30 days.
    CertificateExpiring "certificate_expiring" one_for_each_directory;
    /// The cluster has not used for a day what this node's program understands, because a member has not announced it;
    /// or for a week, because nobody activates it.
    ActivationWaits "activation_waits" activation_waits;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a reason that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a reason that this version knows")]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(name: &str) -> Result<Self, UnknownReason> {
        Reason::ALL.iter().copied().find(|reason| reason.name() == name).ok_or(UnknownReason)
    }
}

/// All that is wrong with a node that has this status; what makes it unready comes first.
///
/// Pure: the same status gives the same conditions.
pub fn conditions(status: &Status) -> Vec<Condition> {
    if let Some(cause) = &status.stopped {
        // The reason of the stop explains everything else that would be found.
        let reason = status.stop_reason.unwrap_or(Reason::Stopped);
        return vec![Condition { reason, severity: Severity::Unready, subject: None, message: cause.clone() }];
    }
    let look = |reason: &Reason| {
        let (severity, message) = reason.look(status)?;
        Some(Condition { reason: *reason, severity, subject: None, message })
    };
    let mut found: Vec<Condition> = Reason::ALL.iter().filter_map(look).collect();
    found.extend(certificates(status));
    if found.first().is_some_and(|first| first.reason == Reason::Removed) {
        // It no longer matters whether a removed node can reach its peers.
        found.retain(|condition| condition.reason == Reason::Removed || condition.severity == Severity::Warning);
    }
    found.sort_by_key(|condition| (condition.severity, condition.reason));
    found
}

impl Status {
    /// All that is wrong with the node; what makes it unready comes first. See [`conditions`].
    pub fn conditions(&self) -> Vec<Condition> {
        conditions(self)
    }

    /// Why a write sent to this node now could not succeed, as far as the node knows. `None`: it is ready.
    pub fn unready(&self) -> Option<Condition> {
        conditions(self).into_iter().next().filter(|first| first.severity == Severity::Unready)
    }
}

fn unready(message: String) -> Found {
    Some((Severity::Unready, message))
}

fn warning(message: String) -> Found {
    Some((Severity::Warning, message))
}

/// A node that has such a condition has stopped because of it.
fn only_when_stopped(_: &Status) -> Found {
    None
}

fn removed(status: &Status) -> Found {
    let id = status.id;
    if !status.membership.retired.contains(&id) {
        return None;
    }
    unready(removed_message(id))
}

/// What a removed node says, and the way out.
pub fn removed_message(id: NodeId) -> String {
    format!(
        "node {id} was removed from the cluster, and an id is never used again. \
         To use this machine again, start it with a new id and an empty directory, and add that id"
    )
}

/// The nodes that were compared.
fn compared(found: &Divergence) -> String {
    let Divergence { index, equal_until, values, .. } = found;
    let nodes: Vec<_> = values.keys().map(NodeId::to_string).collect();
    format!("nodes {} (between the indexes {equal_until} and {index})", nodes.join(", "))
}

fn diverged(status: &Status) -> Found {
    let found = status.divergence.as_ref()?;
    let what = format!("different entries were applied on {}", compared(found));
    match found.side {
        // Somebody else is wrong, and stops.
        DivergenceSide::Majority => warning(format!(
            "{what}; a majority of the voters agrees with this node. The nodes that differ stop: remove them, and add \
             them again under new ids with empty directories"
        )),
        DivergenceSide::Minority => unready(format!(
            "{what}; a majority of the voters disagrees with this node: remove it, and add it again under a new id \
             with an empty directory"
        )),
        // Whatever this node answered, another node, which may be right, would answer something else.
        DivergenceSide::Undecided => unready(format!(
            "{what}, and no majority of the voters agrees: compare the nodes with `actorum inspect`, and replace those \
             that are wrong"
        )),
    }
}

fn responses_diverged(status: &Status) -> Found {
    let found = status.response_divergence.as_ref()?;
    warning(format!(
        "state machines of one VERSION responded differently to the same commands on {}: the machine is not \
         deterministic, or its code changed without a new VERSION. Look for clocks, random numbers and iteration over \
         hash maps in `apply`",
        compared(found)
    ))
}

fn commit_conflict(status: &Status) -> Found {
    let (peer, CommitConflict { index, at, .. }) = status.commit_conflicts.iter().next()?;
    warning(format!(
        "node {peer} says that it committed entry {index}, which contradicts entry {at} of this node: one of the two \
         directories was put back from an older copy, swapped or damaged. Compare them with `actorum inspect`"
    ))
}

fn refused_by_peers(status: &Status) -> Found {
    if status.refused_by.is_empty() {
        return None;
    }
    let said: Vec<_> = status.refused_by.iter().map(|(peer, why)| format!("node {peer} says: {why}")).collect();
    let message = format!("peers refuse to speak with node {}: {}", status.id, said.join("; "));
    // A node that leads, or follows a leader, has other peers that speak with it.
    match hears_a_leader(status) {
        true => warning(message),
        false => unready(message),
    }
}

fn not_a_member(status: &Status) -> Found {
    let (id, membership) = (status.id, &status.membership);
    match &status.formed {
        Formed::Waiting => unready(format!(
            "node {id} waits to be added to a cluster: add it as a learner through a node of the cluster \
             (POST /members on its admin address), with the address where peers reach this node"
        )),
        Formed::Yes if !membership.members.contains_key(&id) && !membership.retired.contains(&id) => unready(format!(
            "node {id} is not in the membership that it has applied ({membership}): it has to catch up first, \
             or was left out when the cluster was recovered"
        )),
        _ => None,
    }
}

fn forming(status: &Status) -> Found {
    let Formed::Forming { waiting_for } = &status.formed else { return None };
    let missing: Vec<_> = waiting_for.iter().map(NodeId::to_string).collect();
    unready(match missing.is_empty() {
        true => "the cluster is being formed".to_owned(),
        false => format!(
            "the cluster is being formed, and founders {} have not answered: start them with the same list of founders",
            missing.join(", ")
        ),
    })
}

/// Whether this node leads with a majority, or has lately heard from a leader.
fn hears_a_leader(status: &Status) -> bool {
    let active = |id| status.peers.get(&id).is_some_and(|peer| peer.recently_active);
    match (status.role, status.leader) {
        (Role::Leader, _) => status.membership.configuration().is_quorum(|id| id == status.id || active(id)),
        (_, Some(leader)) => active(leader),
        (_, None) => false,
    }
}

/// The voters that cannot be reached, and a sentence about each.
fn out_of_reach(status: &Status) -> BTreeMap<NodeId, String> {
    let leads = status.role == Role::Leader;
    let describe = |id: NodeId| {
        let peer = status.peers.get(&id);
        // A leader hears from every voter that lives. A follower is connected to the other voters, but hears only from
        // the leader.
        if id == status.id || peer.is_some_and(|peer| peer.recently_active || peer.connected && !leads) {
            return None;
        }
        let why = peer.and_then(|peer| peer.last_error.as_deref()).map_or(String::new(), |why| format!(" ({why})"));
        Some((id, format!("{id}{why}")))
    };
    status.membership.configuration().voting().into_iter().filter_map(describe).collect()
}

/// `2 (no route), 3`
fn listed(voters: BTreeMap<NodeId, String>) -> String {
    voters.into_values().collect::<Vec<_>>().join(", ")
}

fn no_majority(status: &Status) -> Found {
    let (configuration, missing) = (status.membership.configuration(), out_of_reach(status));
    match configuration.shortfall(|id| !missing.contains_key(&id)) {
        Some(Shortfall { voters, have, needed }) if !voters.is_empty() && !hears_a_leader(status) => unready(format!(
            "only {have} of {} voters can be reached and {needed} are needed: start or connect voters {}. \
             If a majority is lost for good, see `actorum recover`",
            voters.len(),
            listed(missing)
        )),
        _ => leader_refusal(status, Reason::NoMajority),
    }
}

fn no_leader(status: &Status) -> Found {
    let missing = out_of_reach(status);
    if hears_a_leader(status) || !status.membership.configuration().is_quorum(|id| !missing.contains_key(&id)) {
        return None;
    }
    let reaches_all = missing.is_empty();
    // One of these may lead the others, and this is all that the node knows of why it hears no leader.
    let away = match reaches_all {
        true => String::new(),
        false => format!(
            ". Node {} cannot speak with voters {}: one of them may lead the others",
            status.id,
            listed(missing)
        ),
    };
    unready(match status.leader {
        Some(leader) if leader != status.id => format!(
            "node {leader} led, and was not heard for an election timeout: an election follows. Look at node \
             {leader}{away}"
        ),
        _ if reaches_all => {
            "no leader is known: an election is under way. If it lasts, look whether the voters reach each other"
                .to_owned()
        }
        _ => format!("no leader is known to node {}{away}", status.id),
    })
}

/// What the node that leads says of itself.
fn leader_refusal(status: &Status, reason: Reason) -> Found {
    let leader = status.leader.filter(|leader| *leader != status.id)?;
    let refuses = status.peers.get(&leader)?.refuses_writes.as_deref()?;
    let meant = refuses.parse().unwrap_or(Reason::LeaderUnready);
    (meant == reason).then_some(())?;
    unready(format!("node {leader} leads and takes no writes ({refuses}): see its status"))
}

fn leader_unready(status: &Status) -> Found {
    leader_refusal(status, Reason::LeaderUnready)
}

fn low_space(status: &Status) -> Found {
    let disk = &status.disk;
    if !disk.low {
        return leader_refusal(status, Reason::LowSpace);
    }
    let needed = disk.needed_bytes;
    let free = disk.free_bytes.map_or(String::new(), |free| format!(" ({free} bytes are free, {needed} are needed)"));
    let message = format!("the disk of node {} is nearly full{free}: make room on it or enlarge it", status.id);
    refused_for_a_disk(status, Reason::LowSpace, message)
}

/// What the state of this node's disk means for writes. The disk of a follower stops no writes as long as another node
/// leads.
fn refused_for_a_disk(status: &Status, reason: Reason, message: String) -> Found {
    match status.role {
        Role::Leader => unready(format!("{message}. Until then writes are refused, for no other node leads")),
        // Such a node cannot even vote for another one.
        _ if no_leader(status).is_some() => {
            unready(format!("{message}. Until then writes are refused, for no node leads"))
        }
        _ => leader_refusal(status, reason).or(warning(message)),
    }
}

fn disk_slow(status: &Status) -> Found {
    let disk = &status.disk;
    if !matches!(disk.state, DiskState::Slow | DiskState::Suspect) {
        return leader_refusal(status, Reason::DiskSlow);
    }
    let gone = if disk.state == DiskState::Suspect { "; this node does not lead until that write is done" } else { "" };
    let look = match disk.low {
        true => "It is nearly full, too: make room on it first",
        false => "Look for what else uses that disk, or replace it",
    };
    let message = format!(
        "the disk of node {} is slow: a write has been waiting for {} ms{gone}. {look}",
        status.id, disk.waiting_ms
    );
    refused_for_a_disk(status, Reason::DiskSlow, message)
}

fn clock_unset(status: &Status) -> Found {
    if !status.clock.unset {
        return None;
    }
    warning(format!(
        "the clock of node {} shows a time before 2000: set it, and keep it with NTP; \
         until then no certificate counts as valid, and no new connection to a peer succeeds",
        status.id
    ))
}

fn clock_skew(status: &Status) -> Found {
    let own = status.clock.offset_ms?;
    let peers = status.peers.iter().filter(|(id, _)| status.membership.members.contains_key(id));
    let others = peers.filter_map(|(id, peer)| Some((*id, peer.clock_offset_ms?.saturating_add(own))));
    let far = std::iter::once((status.id, own)).chain(others);
    let far = far.filter(|(_, offset)| offset.unsigned_abs() > status.clock.max_skew_ms);
    let said: Vec<_> = far.map(|(id, offset)| format!("that of node {id} is {}", apart(offset))).collect();
    if said.is_empty() {
        return None;
    }
    warning(format!(
        "clocks are too far from the median of the voters' clocks: {}. Set them, and keep them synchronized with NTP",
        said.join(", ")
    ))
}

/// `1500 ms ahead`
fn apart(offset_ms: i64) -> String {
    let (ms, side) = (offset_ms.unsigned_abs(), if offset_ms > 0 { "ahead" } else { "behind" });
    let (seconds, days) = (ms / 1000, ms / 1000 / DAY_S as u64);
    match () {
        () if days >= 2 => format!("{days} days {side}"),
        () if seconds >= 10 => format!("{seconds} s {side}"),
        () => format!("{ms} ms {side}"),
    }
}

fn clock_unverified(status: &Status) -> Found {
    if status.role != Role::Leader || status.clock.offset_ms.is_some() {
        return None;
    }
    warning(format!(
        "node {} leads and does not know the clocks of a majority of the voters (they cannot be reached, or run an \
         older version): it takes the time of new entries from its own clock alone. Connect or upgrade them",
        status.id
    ))
}

/// What is held back for long, and who does so. Nothing is wrong with writes meanwhile.
fn activation_waits(status: &Status) -> Found {
    let VersionStatus { not_in_use, members, .. } = &status.versions;
    let (unasked, lacking): (Vec<&NotInUse>, Vec<&NotInUse>) =
        not_in_use.iter().partition(|waiting| waiting.lacking.is_empty());
    let late = |waiting: Vec<&NotInUse>, bound: u64| -> Option<(String, u64, BTreeSet<NodeId>)> {
        let late: Vec<_> = waiting.into_iter().filter(|waiting| waiting.waiting_s >= bound).collect();
        let longest = late.iter().map(|waiting| waiting.waiting_s).max()?;
        let what: Vec<_> = late.iter().map(|waiting| waiting.what.as_str()).collect();
        Some((what.join(", "), longest / 3600, late.iter().flat_map(|waiting| &waiting.lacking).copied().collect()))
    };
    if let Some((what, hours, who)) = late(lacking, LACKING_WARNING_S) {
        let describe = |id: &NodeId| {
            let peer = status.peers.get(id);
            let is_here = *id == status.id || peer.is_some_and(|peer| peer.connected || peer.recently_active);
            match (is_here, members.get(id)) {
                (false, _) => format!("node {id} (it cannot be reached)"),
                (true, Some(theirs)) => format!("node {id} (version {} of the state machine)", theirs.machine),
                (true, None) => format!("node {id} (nothing is recorded of it)"),
            }
        };
        let who: Vec<_> = who.iter().map(describe).collect();
        return warning(format!(
            "not in use for {hours} hours: {what}. It waits for {}: start each of them with the program of the \
             others, or remove it",
            who.join(", ")
        ));
    }
    let (what, hours, _) = late(unasked, OPERATOR_WARNING_S)?;
    warning(format!(
        "not in use for {} days: {what}, which every member understands. An operator has to ask for it \
         (`actorum activate`), where the leader runs with activate = \"manual\"",
        hours / 24
    ))
}

/// See [`certificates`].
fn one_for_each_directory(_: &Status) -> Found {
    None
}

/// One condition for each directory of certificates: what has expired, then what expires soon. The certificates that
/// peers see have no directory.
fn certificates(status: &Status) -> Vec<Condition> {
    let mut said: BTreeMap<(Reason, Option<String>), Vec<String>> = BTreeMap::new();
    for CertificateExpiry { file, remaining_s: left_s, .. } in &status.certificates {
        let (reason, what) = match (left_s, left_s / DAY_S) {
            (..=0, _) => (Reason::CertificateExpired, "has expired: new connections are refused".to_owned()),
            (_, 0) => (Reason::CertificateExpiring, format!("expires in {} hours", left_s / 3600)),
            (_, 1) => (Reason::CertificateExpiring, "expires in 1 day".to_owned()),
            (..=CERTIFICATE_WARNING_S, days) => (Reason::CertificateExpiring, format!("expires in {days} days")),
            _ => continue,
        };
        let directory = file.rsplit_once('/').map(|(directory, _)| directory.to_owned());
        said.entry((reason, directory)).or_default().push(format!("{file} {what}"));
    }
    let keeps_away = !hears_a_leader(status) && !out_of_reach(status).is_empty();
    let condition = |((reason, subject), said): ((Reason, Option<String>), Vec<String>)| {
        let message = format!("{}: replace it and start the node again", said.join("; "));
        let unready = keeps_away && reason == Reason::CertificateExpired && subject.is_none();
        let severity = if unready { Severity::Unready } else { Severity::Warning };
        Condition { reason, severity, subject, message }
    };
    said.into_iter().map(condition).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde::de::IntoDeserializer;

    use super::*;
    use crate::{
        members::{Member, MemberRole, Membership},
        status::{CertificateExpiry, ClockStatus, PeerProgress},
    };

    /// Node 1 of voters 1, 2 and 3, which follows node 2 and hears it.
    fn healthy() -> Status {
        let member = |id: NodeId| {
            (id, Member { address: format!("n{id}").as_str().into(), role: MemberRole::Voter, incarnation: None })
        };
        let peer = |id| (id, PeerProgress { connected: true, recently_active: id == 2, ..PeerProgress::default() });
        Status {
            id: 1,
            formed: Formed::Yes,
            leader: Some(2),
            membership: Arc::new(Membership { members: (1..=3).map(member).collect(), ..Membership::default() }),
            peers: BTreeMap::from([peer(2), peer(3)]),
            clock: ClockStatus { unset: false, offset_ms: Some(-2), max_skew_ms: 500 },
            ..Status::default()
        }
    }

    fn differs(side: DivergenceSide) -> Option<Divergence> {
        let values = BTreeMap::from([(1, "a".to_owned()), (2, "b".to_owned())]);
        Some(Divergence { index: 20, equal_until: 10, values, side })
    }

    fn leads(status: &mut Status) {
        (status.role, status.leader) = (Role::Leader, Some(1));
        status.peers.get_mut(&3).unwrap().recently_active = true;
    }

    fn lost(status: &mut Status, ids: &[NodeId]) {
        for id in ids {
            let peer = status.peers.get_mut(id).unwrap();
            (peer.connected, peer.recently_active, peer.last_error) = (false, false, Some("no route".into()));
        }
    }

    /// Something that is not in use, seen for so long.
    fn waits(status: &mut Status, what: &str, lacking: &[NodeId], waiting_s: u64) {
        let lacking = lacking.to_vec();
        status.versions.not_in_use.push(NotInUse { what: what.into(), lacking, waiting_s, ..NotInUse::default() });
    }

    fn retire(status: &mut Status) {
        let membership = Arc::make_mut(&mut status.membership);
        membership.members.remove(&1);
        membership.retired.insert(1);
    }

    fn ends(status: &mut Status, file: &str, remaining_s: i64) {
        status.certificates.push(CertificateExpiry { file: file.into(), not_after: 0, remaining_s });
    }

    /// What is done to a healthy node, and what is found then: the reason, its severity, and words of its sentence.
    type Case = (&'static str, fn(&mut Status), &'static [(Reason, Severity, &'static str)]);

    #[test]
    fn every_state_has_its_reason_its_severity_and_its_sentence() {
        use Severity::*;
        let cases: &[Case] = &[
            ("a follower that hears its leader", |_| {}, &[]),
            ("a leader that hears everyone", leads, &[]),
            (
                "a leader that hears one of two",
                |s| {
                    leads(s);
                    lost(s, &[3])
                },
                &[],
            ),
            (
                "removed",
                |s| {
                    retire(s);
                    s.leader = None
                },
                &[(Reason::Removed, Unready, "new id")],
            ),
            (
                "stopped because it was removed",
                |s| {
                    (s.stopped, s.stop_reason, s.leader) = (Some("away".into()), Some(Reason::Removed), None);
                },
                &[(Reason::Removed, Unready, "away")],
            ),
            (
                "stopped without a reason of its own",
                |s| s.stopped = Some("over".into()),
                &[(Reason::Stopped, Unready, "over")],
            ),
            (
                "its directory is gone",
                |s| {
                    (s.stopped, s.stop_reason) = (Some("DIR".into()), Some(Reason::DataDirectoryMissing));
                },
                &[(Reason::DataDirectoryMissing, Unready, "DIR")],
            ),
            (
                "refused by one of two",
                |s| {
                    s.refused_by.insert(3, "no".into());
                },
                &[(Reason::RefusedByPeers, Warning, "node 3 says: no")],
            ),
            (
                "refused by all",
                |s| {
                    s.refused_by.extend([(2, "no".into()), (3, "never".into())]);
                    (s.leader, s.peers.get_mut(&2).unwrap().recently_active) = (None, false);
                    lost(s, &[2, 3]);
                },
                &[
                    (Reason::RefusedByPeers, Unready, "node 3 says: never"),
                    (Reason::NoMajority, Unready, "only 1 of 3 voters"),
                ],
            ),
            (
                "waits to be added",
                |s| {
                    (s.formed, s.leader, s.membership) = (Formed::Waiting, None, Arc::default());
                },
                &[(Reason::NotAMember, Unready, "POST /members")],
            ),
            (
                "a joiner that has not applied its own joining",
                |s| {
                    Arc::make_mut(&mut s.membership).members.remove(&1);
                },
                &[(Reason::NotAMember, Unready, "catch up")],
            ),
            (
                "a founder that waits",
                |s| {
                    (s.formed, s.leader) = (Formed::Forming { waiting_for: vec![3] }, None);
                    s.membership = Arc::default();
                },
                &[(Reason::Forming, Unready, "founders 3")],
            ),
            (
                "one of three alone",
                |s| {
                    s.leader = None;
                    lost(s, &[2, 3])
                },
                &[(Reason::NoMajority, Unready, "voters 2 (no route), 3 (no route)")],
            ),
            (
                "a leader that hears nobody",
                |s| {
                    leads(s);
                    lost(s, &[2, 3])
                },
                &[(Reason::NoMajority, Unready, "2 are needed")],
            ),
            ("connected, and no leader", |s| s.leader = None, &[(Reason::NoLeader, Unready, "election")]),
            (
                "one that cannot speak with it leads the others",
                |s| {
                    lost(s, &[2]);
                    s.leader = None
                },
                &[(Reason::NoLeader, Unready, "cannot speak with voters 2 (no route): one of them may lead")],
            ),
            (
                "its own certificate keeps it away from the leader",
                |s| {
                    lost(s, &[2]);
                    s.leader = None;
                    ends(s, "cert.pem", -1)
                },
                &[
                    (Reason::CertificateExpired, Unready, "cert.pem has expired"),
                    (Reason::NoLeader, Unready, "voters 2 (no route)"),
                ],
            ),
            (
                "a leader that is silent",
                |s| s.peers.get_mut(&2).unwrap().recently_active = false,
                &[(Reason::NoLeader, Unready, "node 2")],
            ),
            (
                "its leader has no majority",
                |s| {
                    s.peers.get_mut(&2).unwrap().refuses_writes = Some("no_majority".into());
                },
                &[(Reason::NoMajority, Unready, "node 2 leads")],
            ),
            (
                "its leader is low on space",
                |s| {
                    s.peers.get_mut(&2).unwrap().refuses_writes = Some("low_space".into());
                },
                &[(Reason::LowSpace, Unready, "node 2 leads")],
            ),
            (
                "its leader says what nobody here knows",
                |s| {
                    s.peers.get_mut(&2).unwrap().refuses_writes = Some("tired".into());
                },
                &[(Reason::LeaderUnready, Unready, "tired")],
            ),
            (
                "another node than the leader is low on space",
                |s| {
                    s.peers.get_mut(&3).unwrap().refuses_writes = Some("low_space".into());
                },
                &[],
            ),
            ("a follower low on space", |s| s.disk.low = true, &[(Reason::LowSpace, Warning, "make room")]),
            (
                "a leader low on space",
                |s| {
                    leads(s);
                    s.disk.low = true
                },
                &[(Reason::LowSpace, Unready, "refused")],
            ),
            (
                "others that differ from a majority",
                |s| s.divergence = differs(DivergenceSide::Majority),
                &[(Reason::Diverged, Warning, "agrees with this node")],
            ),
            (
                "a node that differs from a majority",
                |s| s.divergence = differs(DivergenceSide::Minority),
                &[(Reason::Diverged, Unready, "nodes 1, 2 (between the indexes 10 and 20)")],
            ),
            (
                "nobody can tell who is wrong",
                |s| s.divergence = differs(DivergenceSide::Undecided),
                &[(Reason::Diverged, Unready, "no majority of the voters agrees")],
            ),
            (
                "a machine that is not deterministic",
                |s| s.response_divergence = differs(DivergenceSide::Minority),
                &[(Reason::ResponsesDiverged, Warning, "not deterministic")],
            ),
            (
                "a member with another history",
                |s| {
                    s.commit_conflicts =
                        BTreeMap::from([(3, CommitConflict { index: 9, their_term: 0, at: 7, our_term: 2 })])
                },
                &[(Reason::CommitConflict, Warning, "node 3 says that it committed entry 9")],
            ),
            ("a slow disk", |s| s.disk.state = DiskState::Suspect, &[(Reason::DiskSlow, Warning, "does not lead")]),
            (
                "a slow disk that is nearly full",
                |s| {
                    s.disk.state = DiskState::Suspect;
                    s.disk.low = true;
                },
                &[(Reason::LowSpace, Warning, "make room"), (Reason::DiskSlow, Warning, "nearly full, too: make room")],
            ),
            (
                "a leader with a slow disk, which refuses writes already",
                |s| {
                    leads(s);
                    s.disk.state = DiskState::Slow
                },
                &[(Reason::DiskSlow, Unready, "refused")],
            ),
            (
                "its leader's disk is slow",
                |s| {
                    s.peers.get_mut(&2).unwrap().refuses_writes = Some("disk_slow".into());
                },
                &[(Reason::DiskSlow, Unready, "node 2 leads")],
            ),
            (
                "a slow disk, and nobody leads",
                |s| {
                    s.disk.state = DiskState::Suspect;
                    s.leader = None
                },
                &[(Reason::DiskSlow, Unready, "no node leads"), (Reason::NoLeader, Unready, "no leader is known")],
            ),
            (
                "its clock is a year ahead",
                |s| s.clock.offset_ms = Some(365 * DAY_S * 1000),
                &[(Reason::ClockSkew, Warning, "node 1 is 365 days ahead")],
            ),
            (
                "its clock was never set",
                |s| s.clock.unset = true,
                &[(Reason::ClockUnset, Warning, "node 1 shows a time before 2000")],
            ),
            (
                "a peer's clock is behind, and another's within bounds",
                |s| {
                    s.peers.get_mut(&3).unwrap().clock_offset_ms = Some(-1500);
                    s.peers.get_mut(&2).unwrap().clock_offset_ms = Some(502);
                },
                &[(Reason::ClockSkew, Warning, "node 3 is 1502 ms behind")],
            ),
            (
                "a leader that knows no clocks",
                |s| {
                    leads(s);
                    s.clock.offset_ms = None
                },
                &[(Reason::ClockUnverified, Warning, "its own clock alone")],
            ),
            (
                "an upgrade that is under way, and one that an operator keeps open",
                |s| {
                    waits(s, "feature a", &[2, 3], LACKING_WARNING_S - 1);
                    waits(s, "feature b", &[], OPERATOR_WARNING_S - 1);
                },
                &[],
            ),
            (
                "a dead member holds an activation back",
                |s| {
                    lost(s, &[3]);
                    waits(s, "feature a", &[3], LACKING_WARNING_S);
                    waits(s, "version 2 of the state machine", &[2, 3], 50 * 3600);
                },
                &[(
                    Reason::ActivationWaits,
                    Warning,
                    "not in use for 50 hours: feature a, version 2 of the state machine. It waits for node 2 (nothing \
                     is recorded of it), node 3 (it cannot be reached): start each",
                )],
            ),
            (
                "nobody activates what every member understands",
                |s| waits(s, "version 2 of the state machine", &[], OPERATOR_WARNING_S),
                &[(
                    Reason::ActivationWaits,
                    Warning,
                    "not in use for 7 days: version 2 of the state machine, which every",
                )],
            ),
            (
                "certificates with time",
                |s| {
                    ends(s, "cert.pem", 31 * DAY_S);
                    ends(s, "ca.pem", 400 * DAY_S)
                },
                &[],
            ),
            (
                "a certificate near its end",
                |s| ends(s, "cert.pem", 29 * DAY_S),
                &[(Reason::CertificateExpiring, Warning, "cert.pem expires in 29 days")],
            ),
            (
                "an authority past its end",
                |s| {
                    ends(s, "cert.pem", 3 * 3600);
                    ends(s, "ca.pem", -1)
                },
                &[
                    (Reason::CertificateExpired, Warning, "ca.pem has expired"),
                    (Reason::CertificateExpiring, Warning, "cert.pem expires in 3 hours"),
                ],
            ),
            (
                "certificates for peers and for others, of which each is said by itself",
                |s| {
                    ends(s, "cert.pem", 30 * DAY_S);
                    ends(s, "ca.pem", 30 * DAY_S);
                    ends(s, "admin-certs/cert.pem", DAY_S);
                    ends(s, "admin-certs/ca.pem", 0)
                },
                &[
                    (Reason::CertificateExpired, Warning, "admin-certs/ca.pem has expired"),
                    (Reason::CertificateExpiring, Warning, "cert.pem expires in 30 days; ca.pem expires in 30 days: "),
                    (Reason::CertificateExpiring, Warning, "admin-certs/cert.pem expires in 1 day: "),
                ],
            ),
            (
                "what makes it unready comes first",
                |s| {
                    ends(s, "ca.pem", 1);
                    s.disk.low = true;
                    s.leader = None
                },
                &[
                    (Reason::LowSpace, Unready, "for no node leads"),
                    (Reason::NoLeader, Unready, ""),
                    (Reason::CertificateExpiring, Warning, ""),
                ],
            ),
        ];
        for (what, change, expected) in cases {
            let mut status = healthy();
            change(&mut status);
            let found = status.conditions();
            let (kinds, wanted): (Vec<_>, Vec<_>) = (
                found.iter().map(|c| (c.reason, c.severity)).collect(),
                expected.iter().map(|(reason, severity, _)| (*reason, *severity)).collect(),
            );
            assert_eq!(kinds, wanted, "{what}: {found:?}");
            for (condition, (_, _, words)) in found.iter().zip(*expected) {
                assert!(condition.message.contains(words), "{what}: {condition}");
                assert!(!condition.message.contains("  "), "{what}: {condition}");
            }
            let first = expected.first().filter(|(_, severity, _)| *severity == Unready);
            assert_eq!(status.unready().map(|c| c.reason), first.map(|(reason, ..)| *reason), "{what}");
        }
    }

    #[test]
    fn names_are_one_thing_in_json_and_elsewhere() {
        for reason in Reason::ALL {
            let read: Result<Reason, serde::de::value::Error> = Reason::deserialize(reason.name().into_deserializer());
            assert_eq!(read.as_ref(), Ok(reason));
            assert_eq!(reason.name().parse(), Ok(*reason));
        }
        assert_eq!("tired".parse::<Reason>(), Err(UnknownReason));
    }
}
