//! Who decides: the voters and learners, and what a change makes of them.
//!
//! This is the one place where the rule of a change of the configuration is written (Raft dissertation sections 4.1 and
//! 4.3). Who proposes a change, who commits it, who applies it and who replays it all ask [`Configuration::after`].
//!
//! ```text
//!   voters 1 2 3 ──── one change ────▶ voters 1 2 3 4
//!   voters 1 2 3 ── several changes ─▶ voters (1 2 4)&(1 2 3) ── no change ──▶ voters 1 2 4
//! ```
//!
//! One change moves one voter at most, so a majority before it and a majority after it have a node in common, and it
//! takes effect at once. Several changes need a *joint* configuration in between: a decision there needs a majority of
//! the incoming voters and a majority of the outgoing voters. It has to be left before anything else is changed. No
//! code of this version enters a joint configuration, and what peers send of one is refused.
//!
//! Deliberately absent: addresses, lives and retired ids, which are the [`Membership`](crate::members::Membership)'s;
//! who is connected or behind; and who leaves a joint configuration, and when.

use std::{collections::BTreeSet, fmt, iter};

use crate::{ids::NodeId, members::MemberRole};

/// Who votes and who only receives the log.
///
/// The default is that of a node that belongs to no cluster: it has no member, and nothing can be decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Members whose votes count. In a joint configuration these are the incoming voters.
    pub voters: BTreeSet<NodeId>,
    /// The outgoing voters of a joint configuration; empty outside one. A voter that stays is in both sets.
    pub outgoing: BTreeSet<NodeId>,
    /// Members that receive the log and have no vote.
    pub learners: BTreeSet<NodeId>,
    /// Outgoing voters that stay as learners: they vote until the joint configuration is left, and are learners from
    /// then on.
    pub next_learners: BTreeSet<NodeId>,
}

/// What one node becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleChange {
    /// A node that is no member becomes a learner.
    AddLearner(NodeId),
    /// A learner becomes a voter.
    Promote(NodeId),
    /// A voter becomes a learner.
    Demote(NodeId),
    /// A member is one no longer.
    Remove(NodeId),
}

impl RoleChange {
    /// The node.
    pub fn node(&self) -> NodeId {
        match self {
            RoleChange::AddLearner(id) | RoleChange::Promote(id) | RoleChange::Demote(id) | RoleChange::Remove(id) => {
                *id
            }
        }
    }

    /// What that node is afterwards; `None` if it is no member any more.
    pub fn becomes(&self) -> Option<MemberRole> {
        match self {
            RoleChange::AddLearner(_) | RoleChange::Demote(_) => Some(MemberRole::Learner),
            RoleChange::Promote(_) => Some(MemberRole::Voter),
            RoleChange::Remove(_) => None,
        }
    }
}

/// Why a change cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// The id is none.
    #[error("0 is not a node id")]
    ZeroId,
    /// Who is to be added is in.
    #[error("node {0} is a member already")]
    AlreadyMember(NodeId),
    /// Who is to be changed is not in.
    #[error("node {0} is not a member")]
    NotMember(NodeId),
    /// Who is to be promoted votes.
    #[error("node {0} is a voter already")]
    AlreadyVoter(NodeId),
    /// Who is to be demoted has no vote.
    #[error("node {0} is a learner already")]
    AlreadyLearner(NodeId),
    /// The change takes the only vote.
    #[error("node {0} is the last voter: without it nothing could ever be decided")]
    LastVoter(NodeId),
    /// Several changes together take all votes, or nobody had one.
    #[error("there would be no voter: nothing could ever be decided")]
    NoVoter,
    /// Several changes name one node: which of them counts would depend on their order.
    #[error("node {0} is named by two of the changes")]
    NamedTwice(NodeId),
    /// Nothing but leaving it changes a joint configuration.
    #[error("the configuration is joint, and has to be left before anything else is changed")]
    Joint,
    /// No change leaves a joint configuration, and this one is not joint.
    #[error("there is nothing to change: the configuration is not joint")]
    NotJoint,
}

/// Why these sets are no configuration that a cluster can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfiguration {
    /// Nothing could be decided.
    #[error("it has no voters")]
    NoVoters,
    /// No node has that id.
    #[error("it names node 0")]
    ZeroId,
    /// A member has one role.
    #[error("it names node {0} twice")]
    NamedTwice(NodeId),
    /// Only an outgoing voter can wait to become a learner.
    #[error("node {0} is to become a learner but is not an outgoing voter")]
    NotOutgoing(NodeId),
}

/// A half of a configuration in which a set of nodes is no majority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall<'a> {
    /// The voters of that half.
    pub voters: &'a BTreeSet<NodeId>,
    /// How many of them are in the set.
    pub have: usize,
    /// How many would be a majority.
    pub needed: usize,
}

impl Configuration {
    /// The configuration after these changes, or why they make no sense.
    ///
    /// | changes | in a joint configuration | in any other |
    /// |---|---|---|
    /// | none | leaves it | refused |
    /// | one | refused | takes effect at once |
    /// | several | refused | enters a joint configuration |
    ///
    /// Each of several is judged by this configuration, so their order does not count.
    pub fn after(&self, changes: &[RoleChange]) -> Result<Configuration, ConfigurationError> {
        match changes {
            [] => self.left(),
            _ if self.is_joint() => Err(ConfigurationError::Joint),
            [change] => {
                let next = self.with(self.clone(), changes)?;
                match next.voters.is_empty() {
                    true if self.voters.contains(&change.node()) => Err(ConfigurationError::LastVoter(change.node())),
                    true => Err(ConfigurationError::NoVoter),
                    false => Ok(next),
                }
            }
            // Without outgoing voters it would not be joint.
            _ if self.voters.is_empty() => Err(ConfigurationError::NoVoter),
            several => {
                let mut named = BTreeSet::new();
                if let Some(twice) = several.iter().find(|change| !named.insert(change.node())) {
                    return Err(ConfigurationError::NamedTwice(twice.node()));
                }
                let joint = Configuration { outgoing: self.voters.clone(), ..self.clone() };
                let next = self.with(joint, several)?;
                if next.voters.is_empty() { Err(ConfigurationError::NoVoter) } else { Ok(next) }
            }
        }
    }

    /// Without the outgoing voters.
    fn left(&self) -> Result<Configuration, ConfigurationError> {
        if !self.is_joint() {
            return Err(ConfigurationError::NotJoint);
        }
        let learners = self.learners.union(&self.next_learners).copied().collect();
        Ok(Configuration { voters: self.voters.clone(), learners, ..Configuration::default() })
    }

    /// `next`, changed. What each change is of is looked up in `self`.
    fn with(&self, mut next: Configuration, changes: &[RoleChange]) -> Result<Configuration, ConfigurationError> {
        use ConfigurationError::*;
        use MemberRole::*;
        for change in changes {
            let id = change.node();
            match (change, self.role(id)) {
                (RoleChange::AddLearner(_), _) if id == 0 => return Err(ZeroId),
                (RoleChange::AddLearner(_), Some(_)) => return Err(AlreadyMember(id)),
                (RoleChange::AddLearner(_), None) => drop(next.learners.insert(id)),
                (_, None) => return Err(NotMember(id)),
                (RoleChange::Promote(_), Some(Voter)) => return Err(AlreadyVoter(id)),
                (RoleChange::Promote(_), Some(Learner)) => {
                    next.learners.remove(&id);
                    next.voters.insert(id);
                }
                (RoleChange::Demote(_), Some(Learner)) => return Err(AlreadyLearner(id)),
                (RoleChange::Demote(_), Some(Voter)) => {
                    next.voters.remove(&id);
                    // It votes until the joint configuration is left, and nobody is voter and learner at once.
                    let voted = next.outgoing.contains(&id);
                    if voted { &mut next.next_learners } else { &mut next.learners }.insert(id);
                }
                (RoleChange::Remove(_), Some(_)) => {
                    next.voters.remove(&id);
                    next.learners.remove(&id);
                }
            }
        }
        Ok(next)
    }

    /// Whether two majorities decide.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The sets of voters of which each has to agree with a majority: one, or the two of a joint configuration.
    fn halves(&self) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        iter::once(&self.voters).chain(self.is_joint().then_some(&self.outgoing))
    }

    /// Whether the nodes for which `has` is true are a quorum: a majority of the voters, in a joint configuration of
    /// each half.
    pub fn is_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        self.shortfall(has).is_none()
    }

    /// Whether the nodes for which `has` is true are a majority of the voters other than `id`, in a joint configuration
    /// of each half. For what is believed about that node; never for what is decided.
    pub fn is_quorum_of_others(&self, id: NodeId, has: impl Fn(NodeId) -> bool) -> bool {
        let without = |half: &BTreeSet<NodeId>| half.iter().copied().filter(|other| *other != id).collect();
        self.halves().map(without).all(|others: BTreeSet<NodeId>| shortfall(&others, &has).is_none())
    }

    /// The first half in which the nodes for which `has` is true are no majority; `None` if they are a quorum.
    pub fn shortfall(&self, has: impl Fn(NodeId) -> bool) -> Option<Shortfall<'_>> {
        self.halves().find_map(|half| shortfall(half, &has))
    }

    /// Everyone whose vote counts, in either half.
    pub fn voting(&self) -> BTreeSet<NodeId> {
        self.voters.union(&self.outgoing).copied().collect()
    }

    /// Everyone who receives the log.
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.voting().union(&self.learners).copied().collect()
    }

    /// What a node does now; `None` if it is no member. Who votes in one half alone is a voter.
    pub fn role(&self, id: NodeId) -> Option<MemberRole> {
        match id {
            _ if self.voters.contains(&id) || self.outgoing.contains(&id) => Some(MemberRole::Voter),
            _ if self.learners.contains(&id) => Some(MemberRole::Learner),
            _ => None,
        }
    }

    /// Whether a cluster can have this configuration, for one that comes from elsewhere: [`Configuration::after`] makes
    /// no other.
    pub fn check(&self) -> Result<(), InvalidConfiguration> {
        let Configuration { voters, outgoing, learners, next_learners } = self;
        if voters.is_empty() {
            return Err(InvalidConfiguration::NoVoters);
        }
        if [voters, outgoing, learners, next_learners].iter().any(|ids| ids.contains(&0)) {
            return Err(InvalidConfiguration::ZeroId);
        }
        let both = |id: &&NodeId| voters.contains(id) || outgoing.contains(id);
        if let Some(twice) = learners.iter().find(both).or_else(|| next_learners.intersection(voters).next()) {
            return Err(InvalidConfiguration::NamedTwice(*twice));
        }
        match next_learners.difference(outgoing).next() {
            Some(id) => Err(InvalidConfiguration::NotOutgoing(*id)),
            None => Ok(()),
        }
    }
}

/// How many of so many voters are a majority.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

fn shortfall(voters: &BTreeSet<NodeId>, has: impl Fn(NodeId) -> bool) -> Option<Shortfall<'_>> {
    let have = voters.iter().filter(|id| has(**id)).count();
    let needed = majority(voters.len());
    (have < needed).then_some(Shortfall { voters, have, needed })
}

/// `voters 1 2 3, learners 4`; a joint one: `voters (1 2 4)&(1 2 3), learners 5, next learners 3`
impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |ids: &BTreeSet<NodeId>| ids.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" ");
        let all = |name, of: &BTreeSet<NodeId>| match of.is_empty() {
            true => String::new(),
            false => format!("{name} {}", ids(of)),
        };
        match self.is_joint() {
            true => write!(f, "voters ({})&({})", ids(&self.voters), ids(&self.outgoing))?,
            false => f.write_str(all("voters", &self.voters).as_str())?,
        }
        write!(f, "{}{}", all(", learners", &self.learners), all(", next learners", &self.next_learners))
    }
}

#[cfg(test)]
mod tests {
    use RoleChange::*;

    use super::*;

    fn set(ids: &[NodeId]) -> BTreeSet<NodeId> {
        ids.iter().copied().collect()
    }

    fn of(voters: &[NodeId], learners: &[NodeId]) -> Configuration {
        Configuration { voters: set(voters), learners: set(learners), ..Configuration::default() }
    }

    /// What it is after these changes, in words, or why they are refused.
    fn after(before: &Configuration, changes: &[RoleChange]) -> String {
        match before.after(changes) {
            Ok(next) => {
                assert_eq!(next.check(), Ok(()), "{next}");
                next.to_string()
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn one_change_takes_effect_at_once() {
        let before = of(&[1, 2, 3], &[4]);
        for (change, expected) in [
            (AddLearner(5), "voters 1 2 3, learners 4 5"),
            (Promote(4), "voters 1 2 3 4"),
            (Demote(3), "voters 1 2, learners 3 4"),
            (Remove(3), "voters 1 2, learners 4"),
            (Remove(4), "voters 1 2 3"),
            (AddLearner(0), "0 is not a node id"),
            (AddLearner(3), "node 3 is a member already"),
            (AddLearner(4), "node 4 is a member already"),
            (Promote(3), "node 3 is a voter already"),
            (Promote(5), "node 5 is not a member"),
            (Demote(4), "node 4 is a learner already"),
            (Demote(0), "node 0 is not a member"),
            (Remove(5), "node 5 is not a member"),
        ] {
            assert_eq!(after(&before, &[change]), expected, "{change:?}");
        }
    }

    #[test]
    fn the_last_voter_stays() {
        let last = "node 1 is the last voter: without it nothing could ever be decided";
        let one = of(&[1], &[2]);
        assert_eq!(after(&one, &[Demote(1)]), last);
        assert_eq!(after(&one, &[Remove(1)]), last);
        let none = "there would be no voter: nothing could ever be decided";
        assert_eq!(after(&Configuration::default(), &[AddLearner(1)]), none);
        assert_eq!(after(&of(&[], &[1, 2]), &[Promote(1), Promote(2)]), none);
        assert_eq!(after(&one, &[Remove(1), Remove(2)]), none);
        assert_eq!(after(&of(&[1, 2], &[]), &[Demote(1), Remove(2)]), none);
        assert_eq!(after(&one, &[Remove(1), Promote(2)]), "voters (2)&(1)", "another one takes its place");
    }

    #[test]
    fn several_changes_enter_a_joint_configuration_and_none_leaves_it() {
        for (before, changes, joint, left) in [
            // A voter is replaced by a learner that has caught up.
            (of(&[1, 2, 3], &[4]), &[Promote(4), Remove(3)][..], "voters (1 2 4)&(1 2 3)", "voters 1 2 4"),
            // And the same in the other order.
            (of(&[1, 2, 3], &[4]), &[Remove(3), Promote(4)], "voters (1 2 4)&(1 2 3)", "voters 1 2 4"),
            // A voter that becomes a learner votes until the end.
            (
                of(&[1, 2, 3], &[4]),
                &[Promote(4), Demote(3)],
                "voters (1 2 4)&(1 2 3), next learners 3",
                "voters 1 2 4, learners 3",
            ),
            // All voters are others.
            (
                of(&[1, 2], &[3, 4, 5]),
                &[Remove(1), Demote(2), Promote(3), Promote(4), Remove(5), AddLearner(6)],
                "voters (3 4)&(1 2), learners 6, next learners 2",
                "voters 3 4, learners 2 6",
            ),
            (of(&[1, 2, 3], &[]), &[Remove(2), Remove(3)], "voters (1)&(1 2 3)", "voters 1"),
            // By their number, whoever votes: the same as raft-rs.
            (of(&[1], &[2]), &[AddLearner(3), Remove(2)], "voters (1)&(1), learners 3", "voters 1, learners 3"),
        ] {
            assert_eq!(after(&before, changes), joint);
            let joint = before.after(changes).unwrap();
            assert!(joint.is_joint() && !before.is_joint());
            for change in [AddLearner(9), Promote(4), Demote(1), Remove(1)] {
                let refused = "the configuration is joint, and has to be left before anything else is changed";
                assert_eq!(after(&joint, &[change]), refused);
                assert_eq!(after(&joint, &[change, Remove(2)]), refused);
            }
            assert_eq!(after(&joint, &[]), left);
            let left = joint.after(&[]).unwrap();
            assert_eq!(after(&left, &[]), "there is nothing to change: the configuration is not joint");
        }
    }

    #[test]
    fn several_changes_are_made_as_a_whole_or_not_at_all() {
        let before = of(&[1, 2, 3], &[4]);
        for (changes, why) in [
            (&[Promote(4), Remove(9)][..], "node 9 is not a member"),
            (&[AddLearner(5), Promote(5)], "node 5 is named by two of the changes"),
            (&[Remove(4), AddLearner(4)], "node 4 is named by two of the changes"),
            (&[AddLearner(0), Promote(4)], "0 is not a node id"),
            (&[Promote(4), Promote(3)], "node 3 is a voter already"),
        ] {
            assert_eq!(after(&before, changes), why);
        }
    }

    #[test]
    fn a_quorum_is_a_majority_of_each_half() {
        let quorum = |of: &Configuration, ids: &[NodeId]| of.is_quorum(|id| ids.contains(&id));
        let three = of(&[1, 2, 3], &[4, 5]);
        assert!(quorum(&three, &[1, 3]));
        assert!(!quorum(&three, &[1, 4, 5]), "learners have no vote");
        assert!(!quorum(&of(&[1, 2], &[]), &[1]) && quorum(&of(&[1], &[]), &[1]));
        let joint = of(&[1, 2, 3], &[4, 5]).after(&[Promote(4), Promote(5), Remove(2), Demote(3)]).unwrap();
        assert_eq!(joint.to_string(), "voters (1 4 5)&(1 2 3), next learners 3");
        assert!(quorum(&joint, &[1, 4, 3]));
        assert!(!quorum(&joint, &[1, 4, 5]), "all incoming voters, and one outgoing voter");
        assert!(!quorum(&joint, &[1, 2, 3]), "all outgoing voters, and one incoming voter");
        assert!(!quorum(&Configuration::default(), &[1]), "where nobody votes nothing is decided");
        let short = joint.shortfall(|id| [1, 4, 5].contains(&id)).unwrap();
        assert_eq!((short.voters, short.have, short.needed), (&joint.outgoing, 1, 2));
        assert_eq!(joint.voting(), set(&[1, 2, 3, 4, 5]));
        assert_eq!((joint.role(3), joint.role(6)), (Some(MemberRole::Voter), None));
    }

    #[test]
    fn of_the_others_a_majority_is_asked_too() {
        let others = |of: &Configuration, ids: &[NodeId]| of.is_quorum_of_others(1, |id| ids.contains(&id));
        assert!(others(&of(&[1, 2, 3], &[]), &[2, 3]) && others(&of(&[1, 2], &[]), &[2]));
        assert!(
            !others(&of(&[1, 2, 3], &[]), &[1, 2]),
            "of two others one is no majority, whatever the node itself says"
        );
        assert!(!others(&of(&[1], &[2]), &[1, 2]), "there is no other");
        let joint = of(&[1, 2, 3], &[4]).after(&[Promote(4), Remove(3)]).unwrap();
        assert!(others(&joint, &[2, 3, 4]) && !others(&joint, &[2, 3]));
    }

    #[test]
    fn what_no_cluster_can_have_is_found() {
        use InvalidConfiguration::*;
        let joint = |outgoing: &[NodeId], next: &[NodeId]| Configuration {
            outgoing: set(outgoing),
            next_learners: set(next),
            ..of(&[1, 2], &[3])
        };
        for (configuration, expected) in [
            (of(&[1, 2], &[3]), Ok(())),
            (joint(&[1, 4], &[4]), Ok(())),
            (Configuration::default(), Err(NoVoters)),
            (of(&[0, 1], &[]), Err(ZeroId)),
            (of(&[1], &[0]), Err(ZeroId)),
            (of(&[1, 2], &[2]), Err(NamedTwice(2))),
            (joint(&[1, 3], &[]), Err(NamedTwice(3))),
            (joint(&[1, 2], &[2]), Err(NamedTwice(2))),
            (joint(&[1, 2], &[4]), Err(NotOutgoing(4))),
            (joint(&[], &[4]), Err(NotOutgoing(4))),
        ] {
            assert_eq!(configuration.check(), expected, "{configuration:?}");
        }
    }
}
