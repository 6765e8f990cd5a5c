//! The replicated state that is ours: members, incarnations, retired ids, the cluster, the last time.
//!
//! Fed by system entries and membership changes in log order, so it is equal on every node at every index;
//! part of every snapshot. The genesis snapshot is nothing but this.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actorum_machine::{
    ids::{Address, ClusterId, Incarnation, NodeId},
    machine::{self, MachineError},
    members::{Member, MemberRole, Membership},
};
use serde::{Deserialize, Serialize};

use crate::{
    consistency::hash::begin,
    entry::SystemCommand,
    marks::StateHash,
    versions::Versions,
    wire::{ConfState, Snapshot, SnapshotFile},
};

/// The index of the genesis snapshot. raft-rs panics on an index or term of zero.
pub const GENESIS_INDEX: u64 = 1;
/// The term of the genesis snapshot.
pub const GENESIS_TERM: u64 = 1;

/// Members, cluster and time at one index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct SystemState {
    /// The cluster this state belongs to.
    pub cluster: ClusterId,
    /// Who is in. Shared with status and events.
    pub membership: Arc<Membership>,
    /// The greatest time any entry carried, in microseconds since 1970.
    pub last_time_us: u64,
    /// The index of the entry that made another cluster of it, outside any agreement; zero if there was none. What is
    /// below belongs to the old cluster, and is sent to nobody.
    pub recovered_at: u64,
    /// Every such entry since the first cluster was formed, oldest first.
    pub audit: Vec<Audit>,
    /// The running hash over what was applied; `None` on a node that began with a snapshot without one, until the next
    /// mark. Nodes compare it, so it is this node's own word.
    pub state_hash: Option<StateHash>,
    /// What the members' builds understand, and what of it is in use. Shared with status.
    pub versions: Arc<Versions>,
}

/// The same as it is written into snapshots.
///
/// A build that knows no announcements skips what it does not know. It would start from this state, decide commands by
/// an older version, and leave the version out of its own snapshots. So once there are announcements the time has
/// another name, and such a build finds that it is missing.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    cluster: ClusterId,
    membership: Arc<Membership>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_time_us: Option<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    recovered_at: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    audit: Vec<Audit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state_hash: Option<StateHash>,
    #[serde(default, skip_serializing_if = "nothing_recorded")]
    versions: Arc<Versions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_us: Option<u64>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn nothing_recorded(versions: &Versions) -> bool {
    versions.is_empty()
}

impl From<SystemState> for Stored {
    fn from(state: SystemState) -> Stored {
        let SystemState { cluster, membership, last_time_us, recovered_at, audit, state_hash, versions } = state;
        let is_known_of_old = versions.is_empty();
        let time = Some(last_time_us);
        let (last_time_us, time_us) = if is_known_of_old { (time, None) } else { (None, time) };
        Stored { cluster, membership, last_time_us, recovered_at, audit, state_hash, versions, time_us }
    }
}

impl TryFrom<Stored> for SystemState {
    type Error = &'static str;

    fn try_from(stored: Stored) -> Result<SystemState, &'static str> {
        let Stored { cluster, membership, last_time_us, recovered_at, audit, state_hash, versions, time_us } = stored;
        let last_time_us = last_time_us.or(time_us).ok_or("the time of the last entry is missing")?;
        Ok(SystemState { cluster, membership, last_time_us, recovered_at, audit, state_hash, versions })
    }
}

/// What a command of ours changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemChange {
    /// Nothing that others have to hear of.
    Nothing,
    /// The membership, or what is recorded of the members.
    Membership,
    /// What is announced or in use.
    Versions,
}

/// Who made another cluster out of what was left of one, and what it may have cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Who did it, in their own words.
    pub who: String,
    /// When, by their clock, in seconds since 1970.
    pub when: u64,
    /// Why.
    pub why: RecoveredBecause,
    /// What may be lost, in a sentence.
    pub may_be_lost: String,
    /// Where its entry stands in the log.
    pub index: u64,
    /// The cluster that was before.
    pub cluster: ClusterId,
    /// Its members.
    pub members: BTreeMap<NodeId, Member>,
}

/// Why there is another cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveredBecause {
    /// Its state was a backup.
    Backup,
    /// A majority of the old one was gone for good.
    LostMajority,
}

impl fmt::Display for RecoveredBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecoveredBecause::Backup => "restored from backup",
            RecoveredBecause::LostMajority => "recovered after the loss of a majority",
        })
    }
}

/// What a snapshot's data holds.
#[derive(Serialize, Deserialize)]
struct SnapshotData {
    system: SystemState,
    /// Where the state machine's own state is; `None` at genesis: the machine as it was built.
    #[serde(default)]
    file: Option<SnapshotFile>,
    /// Whom the node that wrote it heard while the cluster was formed. What the cluster knows is recorded by its first
    /// leader; this is what one founder knows until then.
    #[serde(default)]
    formed_with: BTreeMap<NodeId, Incarnation>,
}

impl SystemState {
    /// The state of a cluster that these founders form now. Their incarnations are not part of it: the
    /// first leader records them, so that all nodes learn them from the same entry.
    pub fn founded(cluster: ClusterId, founders: &BTreeMap<NodeId, Address>) -> SystemState {
        let member = |(id, address): (&NodeId, &Address)| {
            (*id, Member { address: address.clone(), role: MemberRole::Voter, incarnation: None })
        };
        let members = founders.iter().map(member).collect();
        let membership = Arc::new(Membership { members, retired: Default::default() });
        SystemState {
            cluster,
            membership,
            last_time_us: 0,
            recovered_at: 0,
            audit: Vec::new(),
            state_hash: None,
            versions: Arc::default(),
        }
    }

    /// The snapshot every log starts from, as written by a founder that formed with these incarnations.
    pub fn genesis(&self, formed_with: BTreeMap<NodeId, Incarnation>) -> Result<Snapshot, MachineError> {
        let data = SnapshotData { system: self.clone(), file: None, formed_with };
        self.pack(GENESIS_INDEX, GENESIS_TERM, &data)
    }

    /// A snapshot of this state, whose machine's state is in that file.
    pub fn snapshot(
        &self,
        index: u64,
        term: u64,
        file: SnapshotFile,
        formed_with: BTreeMap<NodeId, Incarnation>,
    ) -> Result<Snapshot, MachineError> {
        let data = SnapshotData { system: self.clone(), file: Some(file), formed_with };
        self.pack(index, term, &data)
    }

    fn pack(&self, index: u64, term: u64, data: &SnapshotData) -> Result<Snapshot, MachineError> {
        Ok(Snapshot { index, term, conf: ConfState::of(&self.membership), data: machine::encode(data)?.into() })
    }

    /// Whom the founder that wrote this snapshot formed with.
    pub fn formed_with(snapshot: &Snapshot) -> Result<BTreeMap<NodeId, Incarnation>, MachineError> {
        machine::decode::<SnapshotData>(&snapshot.data).map(|data| data.formed_with)
    }

    /// Reads a snapshot: this state, and the file of the machine's unless it is the genesis.
    pub fn of(snapshot: &Snapshot) -> Result<(SystemState, Option<SnapshotFile>), MachineError> {
        let data: SnapshotData = machine::decode(&snapshot.data)?;
        Ok((data.system, data.file))
    }

    /// The time of the next entry: never earlier than what was seen before.
    pub fn advance_time(&mut self, stamp: SystemTime) -> SystemTime {
        let stamp = stamp.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
        self.last_time_us = self.last_time_us.max(u64::try_from(stamp).unwrap_or(u64::MAX));
        self.time()
    }

    /// The time of the last entry that had one.
    pub fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.last_time_us)
    }

    /// Applies a command of ours that stands at `index`, and says what is another one now.
    ///
    /// A change that no longer makes sense changes nothing: the leader checked it before proposing,
    /// so this is a leader of another version, and all nodes agree on ignoring it.
    pub fn apply(&mut self, index: u64, command: &SystemCommand) -> SystemChange {
        match command {
            SystemCommand::Change { change, .. } => match self.membership.after(change) {
                Ok(next) => {
                    self.set_membership(next);
                    SystemChange::Membership
                }
                Err(_) => SystemChange::Nothing,
            },
            SystemCommand::Incarnation { node, incarnation } => {
                let unknown = self.membership.members.get(node).is_some_and(|m| m.incarnation.is_none());
                if !unknown {
                    return SystemChange::Nothing;
                }
                let membership = Arc::make_mut(&mut self.membership);
                if let Some(member) = membership.members.get_mut(node) {
                    member.incarnation = Some(*incarnation);
                }
                SystemChange::Membership
            }
            SystemCommand::Announce { node, announcement } => {
                let membership = self.membership.clone();
                self.change_versions(|versions| versions.announce(&membership, *node, announcement))
            }
            SystemCommand::Activate { activation } => {
                let membership = self.membership.clone();
                self.change_versions(|versions| versions.activate(&membership, index, activation))
            }
            SystemCommand::Recovered { cluster, node, address, incarnation, audit } => {
                let voter = Member { address: address.clone(), role: MemberRole::Voter, incarnation: *incarnation };
                self.cluster = *cluster;
                // Ids are retired for the life of a cluster: in this one nobody has ever voted under any other.
                self.set_membership(Membership { members: [(*node, voter)].into(), retired: Default::default() });
                // What a node of the old cluster announced says nothing of the one that has its id now.
                if !self.versions.is_empty() {
                    Arc::make_mut(&mut self.versions).announced.clear();
                }
                self.recovered_at = index;
                self.audit.push(Audit { index, ..audit.clone() });
                self.state_hash = Some(begin(index));
                SystemChange::Membership
            }
            SystemCommand::Mark { restart } => {
                if *restart || self.state_hash.is_none() {
                    self.state_hash = Some(begin(index));
                }
                SystemChange::Nothing
            }
        }
    }

    fn set_membership(&mut self, membership: Membership) {
        if !self.versions.is_empty() {
            Arc::make_mut(&mut self.versions).retain_members(&membership);
        }
        self.membership = Arc::new(membership);
    }

    fn change_versions(&mut self, change: impl FnOnce(&mut Versions) -> bool) -> SystemChange {
        match change(Arc::make_mut(&mut self.versions)) {
            true => SystemChange::Versions,
            false => SystemChange::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::founded;

    fn recovered(node: NodeId) -> SystemCommand {
        let audit = Audit {
            who: "ada".into(),
            when: 1_795_000_000,
            why: RecoveredBecause::LostMajority,
            may_be_lost: "what was acknowledged after 9".into(),
            index: 10,
            cluster: ClusterId(1),
            members: founded().membership.members.clone(),
        };
        let (address, incarnation) = (Address::from("n3:1"), Some(Incarnation(3)));
        SystemCommand::Recovered { cluster: ClusterId(77), node, address, incarnation, audit }
    }

    #[test]
    fn another_cluster_begins_with_one_voter_and_remembers_the_old_one() {
        let mut state = founded();
        state.last_time_us = 5;
        Arc::make_mut(&mut state.membership).retired.insert(9);
        assert_eq!(state.apply(10, &recovered(3)), SystemChange::Membership);
        assert_eq!((state.cluster, state.recovered_at, state.last_time_us), (ClusterId(77), 10, 5));
        assert_eq!(state.membership.voters(), [3]);
        assert_eq!(state.membership.members[&3].incarnation, Some(Incarnation(3)));
        assert!(state.membership.retired.is_empty(), "an id is free again: its old node is refused by the cluster");
        assert_eq!(state.apply(20, &recovered(3)), SystemChange::Membership);
        assert_eq!((state.recovered_at, state.audit.len()), (20, 2), "nothing of the history goes");
        let snapshot = state.genesis(BTreeMap::new()).unwrap();
        assert_eq!(SystemState::of(&snapshot).unwrap().0, state);
    }

    #[test]
    fn what_is_announced_and_in_use_is_part_of_the_state_and_leaves_with_its_member() {
        use crate::versions::{Activation, Announcement};
        let mut state = founded();
        let announcement = Announcement { features: ["x".to_owned()].into(), machine: 2, boot: 1 };
        let announce = |node| SystemCommand::Announce { node, announcement: announcement.clone() };
        let activate = SystemCommand::Activate { activation: Activation::Machine(2) };
        assert_eq!(state.apply(2, &activate), SystemChange::Nothing, "nobody has announced it");
        assert_eq!(state.apply(3, &announce(9)), SystemChange::Nothing, "it is no member");
        for node in state.membership.members.clone().into_keys() {
            assert_eq!(state.apply(4, &announce(node)), SystemChange::Versions);
        }
        assert_eq!(state.apply(5, &activate), SystemChange::Versions);
        assert_eq!((state.apply(6, &activate), state.versions.machine()), (SystemChange::Nothing, 2));
        assert_eq!(SystemState::of(&state.genesis(BTreeMap::new()).unwrap()).unwrap().0, state);
        assert_eq!(state.apply(10, &recovered(1)), SystemChange::Membership);
        assert!(state.versions.announced.is_empty(), "node 1 of this cluster has announced nothing yet");
        assert_eq!(state.versions.machine(), 2, "what is in the state was made with this version");
    }

    #[test]
    fn a_state_that_was_written_before_there_was_an_audit_is_read() {
        #[derive(Serialize)]
        struct Older {
            cluster: ClusterId,
            membership: Arc<Membership>,
            last_time_us: u64,
        }
        let SystemState { cluster, membership, last_time_us, .. } = founded();
        let older = machine::encode(&Older { cluster, membership, last_time_us }).unwrap();
        assert_eq!(machine::decode::<SystemState>(&older).unwrap(), founded());
        assert_eq!(machine::encode(&founded()).unwrap(), older, "and one without is written as before");
    }
}
