//! The rules by which a node accepts or refuses a hello, shared by every transport.
//!
//! `PeerPolicy` has no socket and no clock. It judges a peer by its certificate (which the transport has checked), its
//! cluster, the retired ids, its known incarnation and its recorded lives. It does not ask whether this node's own
//! membership lists the peer, since that membership may be far behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use actorum_core::{
    identity::{Identity, RefusedBecause},
    lives::{Life, LifeBook},
    planted::{self, Planted},
};
use actorum_machine::ids::{ClusterId, Incarnation, NodeId};

use crate::message::{Peer, SetPeers};

/// The protocol that this version speaks.
pub const PROTOCOL: u32 = 1;

/// The formats of group messages that this version reads and writes.
pub const FORMATS: &[u32] = &[1];

/// What a node knows about who may speak to it.
#[derive(Debug)]
pub(crate) struct PeerPolicy {
    own: Identity,
    peers: BTreeMap<NodeId, Peer>,
    retired: BTreeSet<NodeId>,
    /// The newest life of each id that was accepted. Bound: one for each id that has a certificate of this authority.
    seen: BTreeMap<NodeId, (Incarnation, u64, Arc<[Life]>)>,
    book: Arc<LifeBook>,
}

impl PeerPolicy {
    /// The recorded lives; `None` for a node whose store keeps none.
    pub(crate) fn new(mut own: Identity, book: Option<Arc<LifeBook>>) -> PeerPolicy {
        let book = book.unwrap_or_else(|| LifeBook::volatile(own.incarnation));
        own.lives = book.shown();
        PeerPolicy { own, peers: BTreeMap::new(), retired: BTreeSet::new(), seen: BTreeMap::new(), book }
    }

    /// What is on record of lives.
    pub(crate) fn book(&self) -> &Arc<LifeBook> {
        &self.book
    }

    pub(crate) fn own(&self) -> &Identity {
        &self.own
    }

    pub(crate) fn peers(&self) -> &BTreeMap<NodeId, Peer> {
        &self.peers
    }

    pub(crate) fn set_cluster(&mut self, cluster: ClusterId) {
        self.own.cluster = Some(cluster);
    }

    pub(crate) fn set_peers(&mut self, SetPeers { peers, retired }: SetPeers) {
        self.peers = peers;
        self.peers.remove(&self.own.id);
        self.retired = retired;
        self.book.set_peers(self.peers.keys(), &self.retired);
    }

    /// Whether a node that says this of itself may speak to this one, and this one to it.
    pub(crate) fn check(&self, theirs: &Identity) -> Result<(), RefusedBecause> {
        let id = theirs.id;
        if id == self.own.id {
            return Err(RefusedBecause::Myself { id });
        }
        if self.retired.contains(&id) {
            return Err(RefusedBecause::Retired { id });
        }
        // A node that belongs to no cluster yet may speak to any node; it needs that to be formed or added.
        if let (Some(theirs), Some(ours)) = (theirs.cluster, self.own.cluster)
            && theirs != ours
        {
            return Err(RefusedBecause::Cluster { theirs, ours });
        }
        let seen = self.seen.get(&id);
        let listed = self.peers.get(&id);
        // The incarnation in the membership counts. If the membership has none, the first one that a listed peer shows
        // counts.
        let known = listed.and_then(|peer| peer.incarnation.or(seen.map(|(incarnation, ..)| *incarnation)));
        if let Some(known) = known
            && known != theirs.incarnation
            && !planted::is(Planted::WipedDiskVotes)
        {
            return Err(RefusedBecause::Incarnation { id, known, theirs: theirs.incarnation });
        }
        if let Some((incarnation, boot, lives)) = seen
            && *incarnation == theirs.incarnation
            && theirs.boot < *boot
        {
            // An earlier process of the same directory, whose life the later one shows: no copy was put back.
            let past = theirs.lives.last().is_none_or(|life| lives.iter().any(|past| past.key() == life.key()));
            if past || lives.is_empty() {
                return Err(RefusedBecause::Boot { id, known: *boot, theirs: theirs.boot });
            }
        }
        self.book.check(theirs).map_err(|recorded| RefusedBecause::OlderDirectory { id, recorded })
    }

    /// A node that was accepted, and whose life is recorded, completed its hello.
    pub(crate) fn let_in(&mut self, theirs: &Identity) {
        self.seen.insert(theirs.id, (theirs.incarnation, theirs.boot, theirs.lives.clone()));
    }
}

#[cfg(test)]
mod tests {
    use actorum_core::features::Features;

    use super::*;

    fn identity(id: NodeId) -> Identity {
        let features = Features::none();
        let (cluster, lives) = (Some(ClusterId(5)), Arc::default());
        Identity { id, incarnation: Incarnation(id * 10), boot: 1, cluster, features, machine_version: 1, lives }
    }

    fn policy(peers: &[(NodeId, Option<Incarnation>)], retired: &[NodeId]) -> PeerPolicy {
        let peer = |incarnation| Peer { address: "n:1".into(), incarnation };
        let mut policy = PeerPolicy::new(identity(1), None);
        policy.set_peers(SetPeers {
            peers: peers.iter().map(|(id, incarnation)| (*id, peer(*incarnation))).collect(),
            retired: retired.iter().copied().collect(),
        });
        policy
    }

    #[test]
    fn presence_in_the_list_is_not_asked_for() {
        assert_eq!(policy(&[], &[]).check(&identity(9)), Ok(()));
    }

    #[test]
    fn another_cluster_is_refused_and_none_is_not() {
        let (ours, theirs) = (ClusterId(5), ClusterId(6));
        let stranger = Identity { cluster: Some(theirs), ..identity(2) };
        assert_eq!(policy(&[], &[]).check(&stranger), Err(RefusedBecause::Cluster { theirs, ours }));
        assert_eq!(policy(&[], &[]).check(&Identity { cluster: None, ..identity(2) }), Ok(()));
    }

    #[test]
    fn retired_ids_stay_out() {
        assert_eq!(policy(&[(2, None)], &[2]).check(&identity(2)), Err(RefusedBecause::Retired { id: 2 }));
    }

    #[test]
    fn nobody_else_is_this_node() {
        assert_eq!(policy(&[], &[]).check(&identity(1)), Err(RefusedBecause::Myself { id: 1 }));
    }

    #[test]
    fn the_incarnation_is_the_recorded_one() {
        let known = Incarnation(7);
        let refused = Err(RefusedBecause::Incarnation { id: 2, known, theirs: Incarnation(20) });
        assert_eq!(policy(&[(2, Some(known))], &[]).check(&identity(2)), refused);
        assert_eq!(policy(&[(2, Some(Incarnation(20)))], &[]).check(&identity(2)), Ok(()));
    }

    #[test]
    fn or_else_the_first_one_seen() {
        let mut policy = policy(&[(2, None)], &[]);
        policy.let_in(&identity(2));
        assert_eq!(policy.check(&identity(2)), Ok(()));
        let (known, theirs) = (Incarnation(20), Incarnation(21));
        let wiped = Identity { incarnation: theirs, ..identity(2) };
        assert_eq!(policy.check(&wiped), Err(RefusedBecause::Incarnation { id: 2, known, theirs }));
    }

    #[test]
    fn an_earlier_boot_stays_out_once_a_later_one_was_in() {
        let mut policy = policy(&[], &[]);
        policy.let_in(&Identity { boot: 3, ..identity(2) });
        let earlier = Identity { boot: 2, ..identity(2) };
        assert_eq!(policy.check(&earlier), Err(RefusedBecause::Boot { id: 2, known: 3, theirs: 2 }));
        assert_eq!(policy.check(&Identity { boot: 3, ..identity(2) }), Ok(()));
    }
    #[test]
    fn an_older_directory_stays_out_and_the_process_before_is_told_what_it_is() {
        let life = |boot, nonce| Life { boot, nonce, term: 1, index: 5 };
        let two = |lives: &[Life]| Identity { boot: lives.last().unwrap().boot, lives: lives.into(), ..identity(2) };
        let mut policy = policy(&[(2, None)], &[]);
        let (a, b) = (life(1, 10), life(2, 11));
        policy.book().record(&two(&[a, b])).unwrap();
        policy.let_in(&two(&[a, b]));
        let recorded = policy.book().record_of(2).unwrap();
        assert_eq!(policy.check(&two(&[a, b])), Ok(()));
        assert_eq!(policy.check(&two(&[a, b, life(3, 12)])), Ok(()));
        assert_eq!(policy.check(&two(&[a])), Err(RefusedBecause::Boot { id: 2, known: 2, theirs: 1 }));
        for older in [vec![life(1, 99)], vec![a, life(2, 99)], vec![a, life(2, 99), life(3, 98)]] {
            let refused = policy.check(&two(&older)).unwrap_err();
            assert_eq!(refused, RefusedBecause::OlderDirectory { id: 2, recorded });
            let said = refused.to_string();
            assert!(said.contains("bring back the newer directory, or remove node 2 and add it again"), "{said}");
        }
    }
}
