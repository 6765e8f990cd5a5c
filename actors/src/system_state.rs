//! The replicated state that is ours: members, incarnations, retired ids, the cluster, the last time.
//!
//! Fed by system entries and membership changes in log order, so it is equal on every node at every index;
//! part of every snapshot. The genesis snapshot is nothing but this.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actorum_transport::wire::{Address, ClusterId, Incarnation, NodeId, Snapshot, SnapshotFile};
use serde::{Deserialize, Serialize};

use crate::{
    entry::SystemCommand,
    machine::{self, MachineError},
    members::{Member, MemberRole, Membership},
};

/// The index of the genesis snapshot. raft-rs panics on an index or term of zero.
pub const GENESIS_INDEX: u64 = 1;
/// The term of the genesis snapshot.
pub const GENESIS_TERM: u64 = 1;

/// Members, cluster and time at one index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemState {
    /// The cluster this state belongs to.
    pub cluster: ClusterId,
    /// Who is in. Shared with status and events.
    pub membership: Arc<Membership>,
    /// The greatest time any entry carried, in microseconds since 1970.
    pub last_time_us: u64,
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
        SystemState { cluster, membership, last_time_us: 0 }
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
        Ok(Snapshot { index, term, conf: self.membership.conf_state(), data: machine::encode(data)?.into() })
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
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.last_time_us)
    }

    /// Applies a command of ours; true if the membership is another one now.
    ///
    /// A change that no longer makes sense changes nothing: the leader checked it before proposing,
    /// so this is a leader of another version, and all nodes agree on ignoring it.
    pub fn apply(&mut self, command: &SystemCommand) -> bool {
        match command {
            SystemCommand::Change { change, .. } => match self.membership.after(change) {
                Ok(next) => {
                    self.membership = Arc::new(next);
                    true
                }
                Err(_) => false,
            },
            SystemCommand::Incarnation { node, incarnation } => {
                let unknown = self.membership.members.get(node).is_some_and(|m| m.incarnation.is_none());
                if unknown {
                    let membership = Arc::make_mut(&mut self.membership);
                    if let Some(member) = membership.members.get_mut(node) {
                        member.incarnation = Some(*incarnation);
                    }
                }
                unknown
            }
        }
    }
}
