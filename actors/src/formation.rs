//! How founders make a cluster: each must hear from all that they are as new as it is. The sixth promise.
//!
//! ```text
//!  unformed ──ask every founder──▶ each: unformed, same list ─────────┐
//!      │                           or: formed with this incarnation ──┴─▶ all heard: formed
//!      └─ one formed with another incarnation of ours, or another list ──▶ refused, by name
//! ```
//!
//! An empty directory proves nothing: it may be a new node's, or that of a node which lost its disk and with it
//! the votes and acknowledgements it gave. What tells them apart is the incarnation, drawn when the directory is
//! made. A founder that forms remembers those it formed with; one that comes back empty has another, and is
//! told so. The exchange is symmetric, so a founder that formed while we were asking still tells us the
//! truth: it formed with this very directory, which therefore never voted. That is its word and no more: another
//! founder may know better, so every one of them is heard, also when the first already says "formed".
//!
//! Pure: statements in, a verdict out.

use std::collections::BTreeMap;

use actorum_transport::wire::{Address, Formation as Statement, Incarnation, NodeId};

/// A founder on its way to a cluster.
#[derive(Clone, Debug)]
pub struct Founding {
    id: NodeId,
    incarnation: Incarnation,
    founders: BTreeMap<NodeId, Address>,
    heard: BTreeMap<NodeId, Incarnation>,
    /// With whom the cluster was formed, as a founder says that was part of it.
    formed: Option<BTreeMap<NodeId, Incarnation>>,
}

/// What the statements so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// These founders have not answered yet.
    Waiting(Vec<NodeId>),
    /// The cluster is formed by these directories.
    Formed(BTreeMap<NodeId, Incarnation>),
}

/// Why this node can never be part of the forming; the message names the node and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormationError {
    /// The id is not in its own list.
    #[error(
        "node {id} is not in its own list of founders ({list}): add it, or start it as a node that waits to be added"
    )]
    NotAFounder {
        /// This node.
        id: NodeId,
        /// The ids in the list.
        list: String,
    },
    /// Another founder has another list.
    #[error(
        "node {peer} was started with the founders {theirs}, this node with {ours}: start all founders with the same list"
    )]
    OtherFounders {
        /// The other.
        peer: NodeId,
        /// Its list.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// The other waits to be added.
    #[error(
        "node {peer} is in the list of founders but waits to be added: start it with the list, or take it out of the list"
    )]
    NotFounding {
        /// The other.
        peer: NodeId,
    },
    /// The cluster was formed with another directory of ours.
    #[error(
        "node {peer} says the cluster was formed with another directory of node {id} (incarnation {known}, this one is {ours}): \
         this directory is new or was replaced, and may not vote in the old one's name. Bring the old directory back, \
         or remove node {id} from the cluster and add this one under a new id"
    )]
    Replaced {
        /// The other.
        peer: NodeId,
        /// This node.
        id: NodeId,
        /// What the cluster was formed with, as the other has it.
        known: String,
        /// This directory.
        ours: Incarnation,
    },
}

impl Founding {
    /// A founder that has heard nobody yet.
    pub fn new(
        id: NodeId,
        incarnation: Incarnation,
        founders: BTreeMap<NodeId, Address>,
    ) -> Result<Self, FormationError> {
        if !founders.contains_key(&id) {
            return Err(FormationError::NotAFounder { id, list: list(&founders) });
        }
        Ok(Founding { id, incarnation, founders, heard: BTreeMap::new(), formed: None })
    }

    /// What this node says of itself.
    pub fn statement(&self) -> Statement {
        Statement { incarnation: self.incarnation, founders: self.founders.clone(), formed_with: None }
    }

    /// Who has not been heard.
    pub fn missing(&self) -> Vec<NodeId> {
        self.founders.keys().copied().filter(|id| *id != self.id && !self.heard.contains_key(id)).collect()
    }

    /// What is known so far.
    pub fn verdict(&self) -> Verdict {
        let missing = self.missing();
        if !missing.is_empty() {
            return Verdict::Waiting(missing);
        }
        let mut heard = self.heard.clone();
        heard.insert(self.id, self.incarnation);
        // A founder that lost its directory meanwhile was heard with the new one; the cluster has the old one.
        Verdict::Formed(self.formed.clone().unwrap_or(heard))
    }

    /// Another founder's word.
    pub fn hear(&mut self, peer: NodeId, statement: Statement) -> Result<Verdict, FormationError> {
        // Whoever holds a certificate may speak; only a founder's word counts here, for this node or against it.
        if !self.founders.contains_key(&peer) {
            return Ok(self.verdict());
        }
        if let Some(formed_with) = statement.formed_with {
            return match formed_with.get(&self.id) {
                // It formed with this very directory, which has not voted since.
                Some(known) if *known == self.incarnation => {
                    self.formed = Some(formed_with);
                    self.heard.insert(peer, statement.incarnation);
                    Ok(self.verdict())
                }
                known => Err(FormationError::Replaced {
                    peer,
                    id: self.id,
                    known: known.map_or("none".into(), |known| known.to_string()),
                    ours: self.incarnation,
                }),
            };
        }
        if statement.founders.is_empty() {
            return Err(FormationError::NotFounding { peer });
        }
        if statement.founders != self.founders {
            let (theirs, ours) = (list(&statement.founders), list(&self.founders));
            return Err(FormationError::OtherFounders { peer, theirs, ours });
        }
        self.heard.insert(peer, statement.incarnation);
        Ok(self.verdict())
    }
}

fn list(founders: &BTreeMap<NodeId, Address>) -> String {
    let items: Vec<String> = founders.iter().map(|(id, address)| format!("{id}={address}")).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founders(ids: &[NodeId]) -> BTreeMap<NodeId, Address> {
        ids.iter().map(|id| (*id, Address(format!("host-{id}:7000")))).collect()
    }

    fn founder(id: NodeId, incarnation: u64) -> Founding {
        Founding::new(id, Incarnation(incarnation), founders(&[1, 2, 3])).unwrap()
    }

    #[test]
    fn a_founder_forms_once_it_has_heard_every_other() {
        let (mut one, two, three) = (founder(1, 11), founder(2, 22), founder(3, 33));
        assert_eq!(one.hear(2, two.statement()), Ok(Verdict::Waiting(vec![3])));
        let formed = BTreeMap::from([(1, Incarnation(11)), (2, Incarnation(22)), (3, Incarnation(33))]);
        assert_eq!(one.hear(3, three.statement()), Ok(Verdict::Formed(formed)));
    }

    #[test]
    fn a_single_founder_needs_nobody() {
        let alone = Founding::new(1, Incarnation(11), founders(&[1])).unwrap();
        assert_eq!(alone.verdict(), Verdict::Formed(BTreeMap::from([(1, Incarnation(11))])));
    }

    #[test]
    fn one_that_formed_with_this_directory_vouches_for_it_once_all_are_heard() {
        let mut two = founder(2, 22);
        let formed = BTreeMap::from([(1, Incarnation(11)), (2, Incarnation(22)), (3, Incarnation(33))]);
        let word = Statement { formed_with: Some(formed.clone()), ..founder(1, 11).statement() };
        assert_eq!(two.hear(1, word), Ok(Verdict::Waiting(vec![3])));
        assert_eq!(two.hear(3, founder(3, 33).statement()), Ok(Verdict::Formed(formed)));
    }

    /// 3 formed with the new directory of 2, not knowing better; 1 formed with the old one, and may hold what the old
    /// one acknowledged. The new one must not take 3's word for the whole truth.
    #[test]
    fn one_founder_s_word_does_not_replace_another_s() {
        let mut wiped = founder(2, 23);
        let with = |two| Some(BTreeMap::from([(1, Incarnation(11)), (2, Incarnation(two)), (3, Incarnation(33))]));
        let three = Statement { formed_with: with(23), ..founder(3, 33).statement() };
        assert_eq!(wiped.hear(3, three), Ok(Verdict::Waiting(vec![1])));
        let one = Statement { formed_with: with(22), ..founder(1, 11).statement() };
        assert!(matches!(wiped.hear(1, one), Err(FormationError::Replaced { peer: 1, id: 2, .. })));
    }

    #[test]
    fn a_wiped_founder_is_refused_by_name() {
        let mut wiped = founder(2, 99);
        let formed = BTreeMap::from([(1, Incarnation(11)), (2, Incarnation(22)), (3, Incarnation(33))]);
        let word = Statement { formed_with: Some(formed), ..founder(3, 33).statement() };
        let refused = wiped.hear(3, word).unwrap_err();
        assert!(matches!(refused, FormationError::Replaced { peer: 3, id: 2, .. }), "{refused}");
        assert!(refused.to_string().contains("0000000000000016"), "names the known incarnation: {refused}");
    }

    #[test]
    fn the_word_of_one_that_is_no_founder_counts_in_neither_direction() {
        let mut two = founder(2, 22);
        let known = |incarnation| BTreeMap::from([(2, Incarnation(incarnation))]);
        let waiting = Ok(Verdict::Waiting(vec![1, 3]));
        for formed_with in [None, Some(BTreeMap::new()), Some(known(99)), Some(known(22))] {
            let word = Statement { formed_with, ..founder(3, 33).statement() };
            assert_eq!(two.hear(4, word), waiting);
        }
    }

    #[test]
    fn different_lists_are_an_error_that_names_both() {
        let mut one = founder(1, 11);
        let other = Founding::new(2, Incarnation(22), founders(&[1, 2])).unwrap();
        let refused = one.hear(2, other.statement()).unwrap_err().to_string();
        assert!(refused.contains("1=host-1:7000, 2=host-2:7000,") && refused.contains("3=host-3:7000"), "{refused}");
    }

    #[test]
    fn an_id_missing_from_its_own_list_is_an_error() {
        let refused = Founding::new(4, Incarnation(44), founders(&[1, 2, 3])).unwrap_err();
        assert!(refused.to_string().starts_with("node 4 is not in its own list of founders"), "{refused}");
    }

    #[test]
    fn a_founder_wiped_while_forming_is_heard_anew() {
        let mut one = founder(1, 11);
        one.hear(2, founder(2, 22).statement()).unwrap();
        one.hear(2, founder(2, 23).statement()).unwrap();
        let Ok(Verdict::Formed(formed)) = one.hear(3, founder(3, 33).statement()) else { panic!("all were heard") };
        assert_eq!(formed[&2], Incarnation(23));
    }
}
