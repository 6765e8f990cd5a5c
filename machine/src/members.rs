//! The membership as it is replicated, and requests to change it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::{
    configuration::{Configuration, RoleChange},
    ids::{Address, Incarnation, NodeId},
};

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Counts in every majority.
    Voter,
    /// Receives everything and counts in no majority (Raft dissertation section 4.2.1).
    Learner,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The address at which its peers reach it.
    pub address: Address,
    /// Whether it votes.
    pub role: MemberRole,
    /// The life of its directory, once the cluster has recorded it.
    #[serde(default)]
    pub incarnation: Option<Incarnation>,
}

/// The members, and the ids that were removed: replicated, part of every snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Everyone who receives the log.
    pub members: BTreeMap<NodeId, Member>,
    /// Ids that were removed. An id is never used twice.
    #[serde(default)]
    pub retired: BTreeSet<NodeId>,
}

impl Membership {
    /// The ids whose votes count, ascending.
    pub fn voters(&self) -> Vec<NodeId> {
        self.with_role(MemberRole::Voter)
    }

    /// The ids that receive the log without a vote, ascending.
    pub fn learners(&self) -> Vec<NodeId> {
        self.with_role(MemberRole::Learner)
    }

    /// Who decides. Never a joint configuration: no change of this version enters one.
    pub fn configuration(&self) -> Configuration {
        let ids = |role| self.with_role(role).into_iter().collect();
        let (voters, learners) = (ids(MemberRole::Voter), ids(MemberRole::Learner));
        Configuration { voters, learners, ..Configuration::default() }
    }

    fn with_role(&self, role: MemberRole) -> Vec<NodeId> {
        self.members.iter().filter(|(_, m)| m.role == role).map(|(id, _)| *id).collect()
    }
}

/// `voters 1 2 3, learners 4`
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.configuration().fmt(f)
    }
}

/// A change of the membership, one node at a time (Raft dissertation section 4.1).
///
/// As a message to the system it is answered when it has been applied, with the membership that resulted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Change {
    /// A new node receives the log, without a vote. Its id must never have been used.
    AddLearner(NodeId, Address),
    /// A learner becomes a voter.
    Promote(NodeId),
    /// A voter becomes a learner.
    Demote(NodeId),
    /// A member leaves for good; its id is retired.
    Remove(NodeId),
}

/// A change of the membership, and whether it is forced.
///
/// A leader refuses to promote a learner that is not connected or far behind
/// ([`LearnerNotReady`](crate::outcome::ChangeError::LearnerNotReady)). It also refuses a change after which the voters
/// that answered it lately were no majority ([`WouldLoseMajority`](crate::outcome::ChangeError::WouldLoseMajority)):
/// such a change could not be undone before others are back. [`ChangeRequest::force`] skips both checks, but never
/// promotes a learner that holds nothing of the log, or whose directory the cluster has not recorded: that is refused
/// at once, with `LearnerNotReady`. As a message it is answered as a [`Change`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRequest {
    /// The change.
    pub change: Change,
    /// Whether the leader makes it without checking which nodes are connected.
    pub force: bool,
}

impl ChangeRequest {
    /// Makes the leader skip its checks of which nodes are connected. The cluster may then commit nothing until the
    /// voters that are away come back; if they never do, only `actorum recover` helps.
    pub fn force(mut self) -> Self {
        self.force = true;
        self
    }
}

impl From<Change> for ChangeRequest {
    fn from(change: Change) -> Self {
        ChangeRequest { change, force: false }
    }
}

/// `remove 3`, `remove 3 (forced)`
impl fmt::Display for ChangeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.change, if self.force { " (forced)" } else { "" })
    }
}

/// `add learner 4 at 127.0.0.1:7004`
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::AddLearner(id, address) => write!(f, "add learner {id} at {address}"),
            Change::Promote(id) => write!(f, "promote {id}"),
            Change::Demote(id) => write!(f, "demote {id}"),
            Change::Remove(id) => write!(f, "remove {id}"),
        }
    }
}

impl Change {
    /// The same change, made without checking which nodes are connected: see [`ChangeRequest::force`].
    pub fn forced(self) -> ChangeRequest {
        ChangeRequest::from(self).force()
    }

    /// What its node becomes: a change without the address.
    pub fn role_change(&self) -> RoleChange {
        match self {
            Change::AddLearner(id, _) => RoleChange::AddLearner(*id),
            Change::Promote(id) => RoleChange::Promote(*id),
            Change::Demote(id) => RoleChange::Demote(*id),
            Change::Remove(id) => RoleChange::Remove(*id),
        }
    }

    /// The node it is about.
    pub fn node(&self) -> NodeId {
        self.role_change().node()
    }

    /// What that node is afterwards; `None` if it is no member any more.
    pub fn becomes(&self) -> Option<MemberRole> {
        self.role_change().becomes()
    }
}

impl Membership {
    /// Checks that no other member has the address of the new one: peers would dial each of the two as the other, and
    /// be refused.
    ///
    /// It is asked before a change is proposed. A committed change is made whatever this says.
    pub fn has_room_for(&self, change: &Change) -> Result<(), String> {
        let Change::AddLearner(_, address) = change else { return Ok(()) };
        match self.members.iter().find(|(_, member)| member.address.is_same_place(address)) {
            Some((other, _)) => Err(format!("{address} is the address of node {other}: each node has one of its own")),
            None => Ok(()),
        }
    }

    /// The membership after a change, or why the change makes no sense.
    ///
    /// Who may become what is [`Configuration::after`]'s to say. Added here is what it does not know: where a new
    /// member is, and which ids are retired.
    pub fn after(&self, change: &Change) -> Result<Membership, String> {
        if let Change::AddLearner(id, _) = change
            && self.retired.contains(id)
        {
            return Err(format!("node {id} was removed before, and an id is never used again: choose a new one"));
        }
        let configuration = self.configuration().after(&[change.role_change()]).map_err(|cause| cause.to_string())?;
        let mut next = self.clone();
        if let Change::AddLearner(id, address) = change {
            let member = Member { address: address.clone(), role: MemberRole::Learner, incarnation: None };
            next.members.insert(*id, member);
        }
        let Membership { members, retired } = &mut next;
        members.retain(|id, member| match configuration.role(*id) {
            Some(role) => {
                member.role = role;
                true
            }
            None => {
                retired.insert(*id);
                false
            }
        });
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(id: NodeId) -> Change {
        Change::AddLearner(id, Address(format!("n{id}:1")))
    }

    /// Nodes 1 and 2 vote, 3 learns, 9 was removed.
    fn membership() -> Membership {
        let member = |(id, role): (NodeId, MemberRole)| {
            let (address, incarnation) = (Address(format!("n{id}:1")), Some(Incarnation(id)));
            (id, Member { address, role, incarnation })
        };
        let roles = [(1, MemberRole::Voter), (2, MemberRole::Voter), (3, MemberRole::Learner)];
        Membership { members: roles.into_iter().map(member).collect(), retired: [9].into() }
    }

    #[test]
    fn a_change_keeps_what_is_recorded_of_the_members() {
        let before = membership();
        for (change, expected) in [
            (add(4), "voters 1 2, learners 3 4"),
            (Change::Promote(3), "voters 1 2 3"),
            (Change::Demote(2), "voters 1, learners 2 3"),
            (Change::Remove(2), "voters 1, learners 3"),
            (Change::Remove(3), "voters 1 2"),
        ] {
            let after = before.after(&change).unwrap();
            assert_eq!(after.to_string(), expected, "{change}");
            for (id, member) in after.members.iter().filter(|(id, _)| **id != 4) {
                let known = &before.members[id];
                assert_eq!((&member.address, member.incarnation), (&known.address, known.incarnation), "{change}");
            }
            let retired = matches!(change, Change::Remove(_)).then_some(change.node());
            assert_eq!(after.retired, [9].into_iter().chain(retired).collect(), "{change}");
        }
        let new = Member { address: "n4:1".into(), role: MemberRole::Learner, incarnation: None };
        assert_eq!(before.after(&add(4)).unwrap().members[&4], new);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let one = membership().after(&Change::Remove(2)).unwrap();
        for (change, expected) in [
            (add(9), "node 9 was removed before, and an id is never used again: choose a new one"),
            (add(2), "node 2 was removed before, and an id is never used again: choose a new one"),
            (add(3), "node 3 is a member already"),
            (add(0), "0 is not a node id"),
            (Change::Promote(1), "node 1 is a voter already"),
            (Change::Promote(2), "node 2 is not a member"),
            (Change::Demote(3), "node 3 is a learner already"),
            (Change::Demote(1), "node 1 is the last voter: without it nothing could ever be decided"),
            (Change::Remove(1), "node 1 is the last voter: without it nothing could ever be decided"),
        ] {
            assert_eq!(one.after(&change).unwrap_err(), expected, "{change}");
        }
    }
}
