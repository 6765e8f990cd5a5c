//! What the members of the cluster have said that they understand.
//!
//! New entries and new sections of snapshots reach every member, so they are made only if every member, learners too,
//! has named their [`Feature`] in a hello seen in this boot. The membership manager hears the hellos and passes them on
//! to the core, which holds the newest membership.

use std::collections::BTreeMap;

use actorum_machine::{ids::NodeId, members::Membership};

use crate::{
    features::{Feature, Features},
    versions::Announcement,
};

/// What this node and the peers that it has met understand.
#[derive(Clone, Debug)]
pub struct Understanding {
    id: NodeId,
    own: Features,
    own_announcement: Announcement,
    /// By the newest hello. Bound: one per id for which this authority issued a certificate.
    met: BTreeMap<NodeId, (Features, Announcement)>,
}

impl Understanding {
    /// Of a node that has met nobody yet.
    pub fn new(id: NodeId, own: Features, own_announcement: Announcement) -> Understanding {
        Understanding { id, own, own_announcement, met: BTreeMap::new() }
    }

    /// A peer's hello was seen; the newest counts.
    pub fn met(&mut self, peer: NodeId, features: Features, machine_version: u32, boot: u64) {
        let announcement = Announcement::of(&features, machine_version, boot);
        self.met.insert(peer, (features, announcement));
    }

    /// What this node announces.
    pub fn own(&self) -> &Announcement {
        &self.own_announcement
    }

    /// What that node announces, as far as it is known.
    pub fn announcement_of(&self, id: NodeId) -> Option<&Announcement> {
        if id == self.id {
            Some(&self.own_announcement)
        } else {
            self.met.get(&id).map(|(_, announcement)| announcement)
        }
    }

    /// What this one understands: nothing that is known, if it was not met.
    fn of(&self, id: NodeId) -> Option<&Features> {
        if id == self.id { Some(&self.own) } else { self.met.get(&id).map(|(features, _)| features) }
    }

    /// Whether that peer has named the feature.
    pub fn peer_understands(&self, peer: NodeId, feature: Feature) -> bool {
        self.of(peer).is_some_and(|features| features.has(feature))
    }

    /// Whether every member has. Nobody has where there are no members.
    pub fn every_member_understands(&self, membership: &Membership, feature: Feature) -> bool {
        let mut members = membership.members.keys();
        !membership.members.is_empty() && members.all(|id| self.peer_understands(*id, feature))
    }

    /// What every member understands.
    pub fn everyone(&self, membership: &Membership) -> Features {
        self.own.iter().filter(|feature| self.every_member_understands(membership, *feature)).collect()
    }
}

#[cfg(test)]
mod tests {
    use actorum_machine::{ids::Address, members::Change};

    use super::*;
    use crate::testkit::founded;

    const NEW: Feature = Feature::DirectoryLives;

    fn understanding(id: NodeId, own: Features) -> Understanding {
        let announcement = Announcement::of(&own, 1, 1);
        Understanding::new(id, own, announcement)
    }

    /// Node 1 votes, the others are learners.
    fn members(ids: &[NodeId]) -> Membership {
        let add = |membership: Membership, id: &NodeId| {
            membership.after(&Change::AddLearner(*id, Address(format!("n{id}:7000")))).unwrap()
        };
        let one = Membership::clone(&founded().membership);
        ids.iter().filter(|id| !one.members.contains_key(*id)).fold(one.clone(), add)
    }

    #[test]
    fn a_member_that_was_not_met_understands_nothing() {
        let mut known = understanding(1, Features::all());
        let cluster = members(&[1, 2, 3]);
        assert!(!known.every_member_understands(&cluster, NEW));
        known.met(2, Features::all(), 1, 1);
        assert!(!known.every_member_understands(&cluster, NEW), "node 3 was not met");
        known.met(3, Features::all(), 1, 1);
        assert!(known.every_member_understands(&cluster, NEW));
        assert_eq!(known.everyone(&cluster), Features::all());
    }

    #[test]
    fn one_of_the_first_version_holds_all_back_until_it_is_another() {
        let mut known = understanding(1, Features::all());
        let cluster = members(&[1, 2]);
        known.met(2, Features::none(), 1, 1);
        assert!(!known.every_member_understands(&cluster, NEW));
        known.met(2, Features::all(), 1, 1);
        assert!(known.every_member_understands(&cluster, NEW));
        known.met(2, Features::none(), 1, 1);
        assert!(!known.every_member_understands(&cluster, NEW), "it was put back to the version before");
        assert_eq!(known.everyone(&cluster), Features::none());
    }

    #[test]
    fn a_removed_member_does_not_count_and_a_learner_does() {
        let mut known = understanding(1, Features::all());
        known.met(2, Features::all(), 1, 1);
        known.met(3, Features::none(), 1, 1);
        let three = members(&[1, 2, 3]);
        assert!(!known.every_member_understands(&three, NEW), "node 3 is a learner");
        let two = three.after(&Change::Remove(3)).unwrap();
        assert!(known.every_member_understands(&two, NEW));
    }

    #[test]
    fn this_node_counts_too_and_nobody_is_not_everyone() {
        let old = understanding(1, Features::none());
        assert!(!old.every_member_understands(&members(&[1]), NEW));
        let new = understanding(1, Features::all());
        assert!(new.every_member_understands(&members(&[1]), NEW));
        assert!(!new.every_member_understands(&Membership::default(), NEW));
    }
}
