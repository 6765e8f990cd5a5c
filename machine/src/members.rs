//! The membership, as it is replicated and as it is asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::ids::{Address, Incarnation, NodeId};

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Counts in every majority.
    Voter,
    /// Receives everything and counts in none (Raft dissertation section 4.2.1).
    Learner,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where its peers reach it.
    pub address: Address,
    /// Whether it votes.
    pub role: MemberRole,
    /// The life of its directory, once the cluster has recorded it.
    #[serde(default)]
    pub incarnation: Option<Incarnation>,
}

/// Who is in, and who never again: replicated, part of every snapshot.
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

    fn with_role(&self, role: MemberRole) -> Vec<NodeId> {
        self.members.iter().filter(|(_, m)| m.role == role).map(|(id, _)| *id).collect()
    }
}

/// `voters 1 2 3, learners 4`
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("voters")?;
        self.voters().iter().try_for_each(|id| write!(f, " {id}"))?;
        let learners = self.learners();
        if !learners.is_empty() {
            f.write_str(", learners")?;
            learners.iter().try_for_each(|id| write!(f, " {id}"))?;
        }
        Ok(())
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
/// ([`LearnerNotReady`](crate::outcome::ChangeError::LearnerNotReady)). It also refuses a change after which the voters that answered
/// it lately were no majority ([`WouldLoseMajority`](crate::outcome::ChangeError::WouldLoseMajority)): such a change could not be
/// undone before others are back. [`ChangeRequest::force`] skips both checks, but never promotes a learner that holds
/// nothing of the log, or whose directory the cluster has not recorded: that is refused at once, with
/// `LearnerNotReady`. As a message it is answered as a [`Change`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRequest {
    /// The change.
    pub change: Change,
    /// Whether the leader makes it without checking who is connected.
    pub force: bool,
}

impl ChangeRequest {
    /// Makes the leader skip its checks of who is connected. The cluster may then commit nothing until the voters that
    /// are away come back; if they never do, only `actorum recover` helps.
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
    /// The same change, made without checking who is connected: see [`ChangeRequest::force`].
    pub fn forced(self) -> ChangeRequest {
        ChangeRequest::from(self).force()
    }

    /// The node it is about.
    pub fn node(&self) -> NodeId {
        match self {
            Change::AddLearner(id, _) | Change::Promote(id) | Change::Demote(id) | Change::Remove(id) => *id,
        }
    }

    /// What that node is afterwards; `None` if it is no member any more.
    pub fn becomes(&self) -> Option<MemberRole> {
        match self {
            Change::AddLearner(..) | Change::Demote(_) => Some(MemberRole::Learner),
            Change::Promote(_) => Some(MemberRole::Voter),
            Change::Remove(_) => None,
        }
    }
}

impl Membership {
    /// Whether nobody else is where a new member shall be: each would be dialled as the other, and refused.
    ///
    /// For who proposes a change. A committed one is made whatever this says.
    pub fn has_room_for(&self, change: &Change) -> Result<(), String> {
        let Change::AddLearner(_, address) = change else { return Ok(()) };
        match self.members.iter().find(|(_, member)| member.address.is_same_place(address)) {
            Some((other, _)) => Err(format!("{address} is the address of node {other}: each node has one of its own")),
            None => Ok(()),
        }
    }

    /// The membership after a change, or why the change makes no sense.
    pub fn after(&self, change: &Change) -> Result<Membership, String> {
        let id = change.node();
        let mut next = self.clone();
        let last_voter = self.voters() == [id];
        match (change, next.members.get_mut(&id)) {
            (Change::AddLearner(..), _) if id == 0 => return Err("0 is not a node id".into()),
            (Change::AddLearner(..), _) if self.retired.contains(&id) => {
                return Err(format!("node {id} was removed before, and an id is never used again: choose a new one"));
            }
            (Change::AddLearner(..), Some(_)) => return Err(format!("node {id} is a member already")),
            (Change::AddLearner(_, address), None) => {
                let member = Member { address: address.clone(), role: MemberRole::Learner, incarnation: None };
                next.members.insert(id, member);
            }
            (_, None) => return Err(format!("node {id} is not a member")),
            (Change::Promote(_), Some(m)) if m.role == MemberRole::Voter => {
                return Err(format!("node {id} is a voter already"));
            }
            (Change::Promote(_), Some(m)) => m.role = MemberRole::Voter,
            (Change::Demote(_), Some(m)) if m.role == MemberRole::Learner => {
                return Err(format!("node {id} is a learner already"));
            }
            (Change::Demote(_) | Change::Remove(_), Some(_)) if last_voter => {
                return Err(format!("node {id} is the last voter: without it nothing could ever be decided"));
            }
            (Change::Demote(_), Some(m)) => m.role = MemberRole::Learner,
            (Change::Remove(_), Some(_)) => {
                next.members.remove(&id);
                next.retired.insert(id);
            }
        }
        Ok(next)
    }
}
