//! What the members' builds understand, and what of it is in use: the part of the replicated [`SystemState`] that lets
//! a cluster change its version while it runs.
//!
//! ```text
//!  hello ──▶ the leader's membership manager ──Announce──▶ log ──▶ `announced`, on every node
//!            every member has announced it   ──Activate──▶ log ──▶ `in_use` / `machine`, from that index on
//! ```
//!
//! - Each member *announces* the [`Feature`]s of its build and the version of its state machine. The leader records
//!   what the member's newest hello says.
//! - The *use* of a feature, or of a version of the state machine, begins with an [`Activation`] in the log. It is
//!   judged where it is applied, against the membership at that index: if some member, learners too, has not announced
//!   it, it changes nothing. So all nodes agree from which index on something is in use, and a replay after a restart
//!   finds the same index.
//! - A build that lacks something that is in use cannot go on: see [`Versions::beyond`].
//!
//! [`SystemState`]: crate::system_state::SystemState

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use actorum_machine::{ids::NodeId, members::Membership};
use serde::{Deserialize, Serialize};

use crate::{
    features::{Feature, Features},
    planted::{self, Planted},
};

/// The version of the state machine that is in force before any was activated.
pub const FIRST_MACHINE_VERSION: u32 = 1;

/// What one member's build understands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The names of its features, as far as the leader that recorded them knew them.
    pub features: BTreeSet<String>,
    /// The version of its state machine.
    pub machine: u32,
    /// How often its directory had been opened when it said so: an older word never takes the place of a newer one.
    pub boot: u64,
}

impl Announcement {
    /// Of a build with these. A build that does not say the version of its state machine has the first.
    pub fn of(features: &Features, machine: u32, boot: u64) -> Announcement {
        let features = features.iter().map(|feature| feature.name().to_owned()).collect();
        Announcement { features, machine: machine.max(FIRST_MACHINE_VERSION), boot }
    }

    /// Whether this build understands what that entry puts to use.
    pub fn covers(&self, activation: &Activation) -> bool {
        match activation {
            Activation::Feature(name) => self.features.contains(name),
            Activation::Machine(version) => self.machine >= *version,
        }
    }
}

/// What an entry puts to use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// A feature, by its name: the build that reads this may be older than the feature.
    Feature(String),
    /// This version of the state machine.
    Machine(u32),
}

/// `feature state_hashes`, `version 3 of the state machine`
impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Activation::Feature(name) => write!(f, "feature {name}"),
            Activation::Machine(version) => write!(f, "version {version} of the state machine"),
        }
    }
}

/// What is announced and what is in use, at one index of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// What each member has announced. Empty in a cluster whose members have not all understood announcements yet.
    #[serde(default)]
    pub announced: BTreeMap<NodeId, Announcement>,
    /// The names of the features in use. A feature never goes out of use.
    #[serde(default)]
    pub in_use: BTreeSet<String>,
    /// The version of the state machine in force, zero if none was activated. It never falls.
    #[serde(default)]
    pub machine: u32,
    /// The index of the entry that put it in force; zero if none did.
    #[serde(default)]
    pub machine_since: u64,
}

impl Versions {
    /// Whether there is nothing to remember: snapshots of such a state are written as before there was this section.
    pub fn is_empty(&self) -> bool {
        *self == Versions::default()
    }

    /// Whether the members record what they understand. From then on every new use begins with an activation.
    pub fn are_recorded(&self) -> bool {
        self.has(Feature::Activation)
    }

    /// The version of the state machine in force.
    pub fn machine(&self) -> u32 {
        self.machine.max(FIRST_MACHINE_VERSION)
    }

    /// Whether a feature is in use.
    pub fn has(&self, feature: Feature) -> bool {
        self.in_use.contains(feature.name())
    }

    /// Whether an entry has put this to use.
    pub fn is_in_use(&self, activation: &Activation) -> bool {
        match activation {
            Activation::Feature(name) => self.in_use.contains(name),
            Activation::Machine(version) => self.machine() >= *version,
        }
    }

    /// The members that have not announced what that entry would put to use, ascending.
    pub fn lacking(&self, membership: &Membership, activation: &Activation) -> Vec<NodeId> {
        let lacks = |id: &&NodeId| !self.announced.get(id).is_some_and(|announced| announced.covers(activation));
        membership.members.keys().filter(lacks).copied().collect()
    }

    /// Whether this says something of a member that is not on record, and is not older than what is.
    pub fn is_news(&self, node: NodeId, announcement: &Announcement) -> bool {
        self.announced.get(&node).is_none_or(|known| known != announcement && known.boot <= announcement.boot)
    }

    /// Records what a member's build understands; false if that is no news, or it is no member.
    pub fn announce(&mut self, membership: &Membership, node: NodeId, announcement: &Announcement) -> bool {
        let is_news = self.is_news(node, announcement);
        let changes = is_news && membership.members.contains_key(&node);
        if changes {
            self.announced.insert(node, announcement.clone());
            self.in_use.insert(Feature::Activation.name().to_owned());
        }
        changes
    }

    /// The entry at `index` puts something to use if every member has announced it; false if that changes nothing.
    pub fn activate(&mut self, membership: &Membership, index: u64, activation: &Activation) -> bool {
        let understood = self.lacking(membership, activation).is_empty() || planted::is(Planted::ActivatedUnasked);
        if membership.members.is_empty() || self.is_in_use(activation) || !understood {
            return false;
        }
        match activation {
            Activation::Feature(name) => drop(self.in_use.insert(name.clone())),
            Activation::Machine(version) => (self.machine, self.machine_since) = (*version, index),
        }
        true
    }

    /// Forgets who is no member any more.
    pub fn retain_members(&mut self, membership: &Membership) {
        self.announced.retain(|id, _| membership.members.contains_key(id));
    }

    /// What is not in use, and is understood by this build, whether or not by all.
    pub fn candidates(&self, own: &Announcement) -> Vec<Activation> {
        let features = own.features.iter().cloned().map(Activation::Feature);
        let machine = Activation::Machine(own.machine);
        features.chain([machine]).filter(|activation| !self.is_in_use(activation)).collect()
    }

    /// What every member has announced and nobody uses yet: what a leader may propose to use. The state machine goes as
    /// far as the member with the oldest one allows, and no further than this build's.
    pub fn understood_by_all(&self, membership: &Membership, own: &Announcement) -> Vec<Activation> {
        if planted::is(Planted::ActivatedUnasked) {
            return self.candidates(own);
        }
        let announced = |id: &NodeId| self.announced.get(id).map_or(0, |theirs| theirs.machine);
        let lowest = membership.members.keys().map(announced).min();
        let features = own.features.iter().cloned().map(Activation::Feature);
        let wanted = features.chain(lowest.map(|lowest| Activation::Machine(lowest.min(own.machine))));
        wanted.filter(|it| !self.is_in_use(it) && self.lacking(membership, it).is_empty()).collect()
    }

    /// The first thing in use that a build with these does not understand: it can neither apply what follows nor keep
    /// what it has.
    pub fn beyond(&self, own: &Announcement) -> Option<Activation> {
        let unknown = self.in_use.iter().find(|name| !own.features.contains(*name)).cloned();
        let version = (self.machine() > own.machine).then_some(Activation::Machine(self.machine()));
        unknown.map(Activation::Feature).or(version)
    }

    /// The member with the lowest version of the state machine, and that version. A member that has announced nothing
    /// counts as having the first.
    pub fn lowest_machine(&self, membership: &Membership) -> Option<(u32, NodeId)> {
        let version = |id: &NodeId| self.announced.get(id).map_or(FIRST_MACHINE_VERSION, |theirs| theirs.machine);
        membership.members.keys().map(|id| (version(id), *id)).min()
    }
}

#[cfg(test)]
mod tests {
    use actorum_machine::{ids::Address, members::Change};

    use super::*;
    use crate::testkit::founded;

    /// Node 1 votes, the others are learners.
    fn members(ids: &[NodeId]) -> Membership {
        let add = |membership: Membership, id: &NodeId| {
            membership.after(&Change::AddLearner(*id, Address(format!("n{id}:7000")))).unwrap()
        };
        let one = Membership::clone(&founded().membership);
        ids.iter().filter(|id| !one.members.contains_key(*id)).fold(one.clone(), add)
    }

    fn build(features: &[&str], machine: u32) -> Announcement {
        Announcement { features: features.iter().map(|name| (*name).to_owned()).collect(), machine, boot: 1 }
    }

    fn feature(name: &str) -> Activation {
        Activation::Feature(name.into())
    }

    #[test]
    fn nothing_is_used_before_every_member_has_announced_it() {
        let cluster = members(&[1, 2, 3]);
        let mut versions = Versions::default();
        assert!(versions.announce(&cluster, 1, &build(&["a", "b"], 3)));
        assert!(versions.announce(&cluster, 2, &build(&["a"], 2)));
        assert!(!versions.activate(&cluster, 9, &feature("a")), "node 3, a learner, has announced nothing");
        assert_eq!(versions.lacking(&cluster, &feature("b")), [2, 3]);
        assert!(versions.announce(&cluster, 3, &build(&["a", "b"], 2)));
        assert!(!versions.announce(&cluster, 3, &build(&["a", "b"], 2)), "that is known");
        assert_eq!(
            versions.understood_by_all(&cluster, &build(&["a", "b"], 3)),
            [feature("a"), Activation::Machine(2)]
        );
        assert!(versions.activate(&cluster, 9, &feature("a")));
        assert!(!versions.activate(&cluster, 9, &feature("a")), "it is in use");
        assert!(!versions.activate(&cluster, 9, &feature("b")));
        assert!(!versions.activate(&cluster, 9, &Activation::Machine(3)));
        assert!(versions.activate(&cluster, 9, &Activation::Machine(2)));
        assert_eq!(
            (versions.machine(), versions.machine_since, versions.in_use.len()),
            (2, 9, 2),
            "a, and announcements themselves"
        );
        assert!(versions.understood_by_all(&cluster, &build(&["a", "b"], 3)).is_empty());
        assert_eq!(versions.candidates(&build(&["a", "b"], 3)), [feature("b"), Activation::Machine(3)]);
    }

    #[test]
    fn a_member_that_leaves_holds_nothing_back_and_one_that_comes_does() {
        let three = members(&[1, 2, 3]);
        let mut versions = Versions::default();
        for id in [1, 2] {
            versions.announce(&three, id, &build(&["a"], 1));
        }
        versions.announce(&three, 3, &build(&[], 1));
        assert!(!versions.activate(&three, 9, &feature("a")));
        let two = three.after(&Change::Remove(3)).unwrap();
        versions.retain_members(&two);
        assert!(!versions.announced.contains_key(&3));
        let grown = two.after(&Change::AddLearner(4, Address("n4:7000".into()))).unwrap();
        assert!(!versions.clone().activate(&grown, 9, &feature("a")));
        assert!(versions.activate(&two, 9, &feature("a")));
        assert!(!versions.announce(&two, 3, &build(&["a"], 1)), "it is no member");
        assert!(!Versions::default().activate(&Membership::default(), 9, &feature("a")), "nobody is not everybody");
    }

    #[test]
    fn what_is_in_use_stays_so_and_a_build_without_it_is_told() {
        let cluster = members(&[1]);
        let mut versions = Versions::default();
        assert_eq!(versions.beyond(&build(&[], 1)), None, "a cluster of the version before uses nothing");
        versions.announce(&cluster, 1, &build(&["a"], 4));
        assert!(
            versions.activate(&cluster, 9, &feature("a")) && versions.activate(&cluster, 9, &Activation::Machine(4))
        );
        versions.announce(&cluster, 1, &build(&[], 1));
        assert!(!versions.activate(&cluster, 9, &Activation::Machine(1)), "a version never falls");
        assert_eq!(versions.beyond(&build(&["a", "activation"], 4)), None);
        assert_eq!(versions.beyond(&build(&["activation"], 4)), Some(feature("a")));
        assert_eq!(versions.beyond(&build(&["a", "activation", "b"], 3)), Some(Activation::Machine(4)));
        assert_eq!(versions.beyond(&build(&["a"], 4)), Some(feature("activation")), "announcements are a feature, too");
        assert_eq!(Activation::Machine(4).to_string(), "version 4 of the state machine");
        assert_eq!(versions.lowest_machine(&cluster), Some((1, 1)));
    }

    #[test]
    fn the_word_of_an_earlier_start_never_takes_the_place_of_a_later_one() {
        let cluster = members(&[1]);
        let mut versions = Versions::default();
        let at = |boot, machine| Announcement { boot, ..build(&[], machine) };
        assert!(versions.announce(&cluster, 1, &at(5, 2)));
        assert!(versions.announce(&cluster, 1, &at(6, 1)), "it was put back to the version before");
        assert!(!versions.announce(&cluster, 1, &at(5, 2)), "who heard it then and leads now has not heard that");
        assert!(!versions.activate(&cluster, 9, &Activation::Machine(2)));
        assert!(versions.announce(&cluster, 1, &at(7, 2)) && !versions.announce(&cluster, 1, &at(7, 2)));
    }

    #[test]
    fn a_build_that_says_no_version_has_the_first() {
        let old = Announcement::of(&Features::none(), 0, 1);
        assert_eq!(old, build(&[], FIRST_MACHINE_VERSION));
        assert_eq!(Versions::default().machine(), FIRST_MACHINE_VERSION);
        assert!(Versions::default().is_empty() && !Versions::default().are_recorded());
    }
}
