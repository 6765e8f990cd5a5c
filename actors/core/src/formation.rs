//! How founders make a cluster: each must know that all are as new as it is, and which directories they are. The sixth
//! promise.
//!
//! ```text
//!  unformed ──ask every founder──▶ each: unformed, same list and name; I have heard these incarnations
//!      │                             all heard, and all have heard the same ───────────────────────────▶ formed, agreed
//!      ├─ one is formed, agreed, with this very directory ─────────────────────────────────────────────▶ formed, agreed
//!      └─ one is formed with another directory of ours; another list or name ──▶ refused, and why
//! ```
//!
//! An empty directory proves nothing: it may be a new node's, or that of a node which lost its disk and with it
//! the votes and acknowledgements it gave. What tells them apart is the incarnation, drawn when the directory is
//! made. A founder that forms remembers those it formed with; one that comes back empty has another, and is told so.
//!
//! # Why one formed founder's word is enough
//!
//! *The rule.* Every statement of an unformed founder carries the vector of incarnations that it has heard in this
//! boot. A founder forms when it has heard every founder *with the same complete vector V*. Then the others are said to
//! have *agreed*, which it remembers with V. A founder that hears from one such founder "formed, agreed, with V", and
//! is in V, forms with V at once.
//!
//! *The danger.* Directory k/a of node k forms, votes, and acknowledges what is committed with a majority; it is lost,
//! and k comes back as k/b. If k/b formed too, it could make another majority that knows nothing of the first.
//!
//! *Why not.* Say that founder i formed, agreed, with W, in which k is b, and says so to k/b. Then every founder q
//! stated W *after b was made*, and was unformed then: "formed" is said once the genesis is durable, and is never taken
//! back. Say that k/a once won a vote of q, another founder that kept its directory. Then q formed with some V in which
//! k is a, and it did not before it stated W. After that it cannot either: for V it must hear, in one boot, k/a itself
//! or a founder that formed with V. In a boot in which it has heard b it does not listen to a (`FormationState::gone`);
//! in a later boot a speaks no more, because it was lost before b was made. And a founder r that formed with V and kept
//! its directory is in the same case as q; take the first of them. If r lost its directory as well, W names its new
//! one, and the same holds for r's old one as for k/a. So no founder that kept its directory ever formed with V:
//! whoever voted together with k/a lost its directory, too, and those are a majority. Against that no rule helps.
//!
//! In the first version a founder formed when it had *heard* all, each possibly at another time: 1 may have formed with
//! 2/a by the time that 3, which heard 1 early, hears 2/b and forms with it. Such a word is that founder's and no more:
//! where somebody does not state a vector, or formed without one, every founder is heard as before, also when the first
//! already says "formed".
//!
//! *What it stands on.* A directory that was lost does not come back: of two directories that run under one id in turn,
//! while others restart unformed, each could be counted. And what is durable stays so: a directory put back from an
//! older copy is found by the watermark, and by its peers.
//!
//! *When nothing works.* A founder that lost its directory after the others agreed on it, before any leader was
//! elected, leaves founders that wait for a directory that is no more. As long as nothing was committed there is
//! nothing to lose: with all founders stopped, `actorum inspect DIR --entries 1..` shows no entry of an application in
//! any directory; then all of the directories are deleted, and the cluster is formed anew.
//!
//! Pure: statements in, progress out.

use std::collections::{BTreeMap, BTreeSet};

use actorum_machine::ids::{Address, ClusterId, Incarnation, NodeId};

use crate::wire::Formation as BootstrapInfo;

/// In a map of the incarnations that a founder formed with: all of them had agreed on it. No node has this id, so the
/// mark passes through every format that holds the map, and through the hands of nodes that do not know it.
pub const AGREED: NodeId = 0;

/// A founder on its way to a cluster.
#[derive(Clone, Debug)]
pub struct FormationState {
    id: NodeId,
    incarnation: Incarnation,
    founders: BTreeMap<NodeId, Address>,
    cluster: ClusterId,
    name: String,
    /// The founders heard in this boot, this one among them.
    heard: BTreeMap<NodeId, Incarnation>,
    /// What each of the others has heard, by its latest statement; `None` if it does not say.
    theirs: BTreeMap<NodeId, Option<BTreeMap<NodeId, Incarnation>>>,
    /// Directories that were replaced in this boot: what they said meanwhile may still arrive, and counts no more.
    gone: BTreeSet<(NodeId, Incarnation)>,
    /// With whom the cluster was formed, as a founder says that was part of it, without the agreement of all.
    formed: Option<BTreeMap<NodeId, Incarnation>>,
    /// With whom it is formed, once that is decided.
    decided: Option<BTreeMap<NodeId, Incarnation>>,
}

/// What the statements so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormationProgress {
    /// These founders have not answered yet, or have not heard the same as this one.
    Waiting(Vec<NodeId>),
    /// The cluster is formed by these directories; with [`AGREED`] among the keys if all have agreed on them.
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
        "node {peer} was started with the founders {theirs}, this node with {ours}: start all founders with the same \
         list"
    )]
    OtherFounders {
        /// The other.
        peer: NodeId,
        /// Its list.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// Another founder was told another name.
    #[error(
        "node {peer} founds a cluster with the name {theirs:?}, node {id} one with the name {ours:?}: give all \
         founders the same cluster_name (--cluster-name). No cluster was formed: their directories are used as they \
         are"
    )]
    OtherName {
        /// The other.
        peer: NodeId,
        /// Its name for the cluster.
        theirs: String,
        /// This node.
        id: NodeId,
        /// Ours.
        ours: String,
    },
    /// The cluster that the other is part of is not the one that this node's list and name make.
    #[error(
        "node {peer} belongs to the cluster {theirs}, and the founders, the cluster_name and the certificate authority \
         of node {id} make the cluster {ours}: start it with those that the others were formed with. This node is in \
         no cluster yet: its directory is used as it is"
    )]
    OtherCluster {
        /// The other.
        peer: NodeId,
        /// Its cluster.
        theirs: ClusterId,
        /// This node.
        id: NodeId,
        /// Ours.
        ours: ClusterId,
    },
    /// The other waits to be added.
    #[error(
        "node {peer} is in the list of founders but waits to be added: start it with the list, or take it out of the \
         list"
    )]
    NotFounding {
        /// The other.
        peer: NodeId,
    },
    /// The cluster was formed with another directory of ours.
    #[error(
        "node {peer} says that the cluster was formed with another directory of node {id} (incarnation {known}, this \
         one is {ours}): this directory is new or was replaced, and must not vote. Bring the old directory back, or \
         remove node {id} from the cluster and add this one under a new id. If the cluster was only just formed and \
         `actorum inspect` shows no entry of an application in any founder's directory, nothing was committed: stop \
         all founders, delete their directories, and start them again"
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

impl FormationState {
    /// A founder that has heard nobody yet, of the cluster that these founders make under this name.
    pub fn new(
        id: NodeId,
        incarnation: Incarnation,
        founders: BTreeMap<NodeId, Address>,
        cluster: ClusterId,
        name: String,
    ) -> Result<Self, FormationError> {
        if !founders.contains_key(&id) {
            return Err(FormationError::NotAFounder { id, list: list(&founders) });
        }
        Ok(FormationState {
            id,
            incarnation,
            founders,
            cluster,
            name,
            heard: [(id, incarnation)].into(),
            theirs: BTreeMap::new(),
            gone: BTreeSet::new(),
            formed: None,
            decided: None,
        })
    }

    /// The cluster that is being formed.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// What this node says of itself.
    pub fn info(&self) -> BootstrapInfo {
        BootstrapInfo {
            incarnation: self.incarnation,
            founders: self.founders.clone(),
            formed_with: None,
            heard: self.heard.clone(),
            cluster_name: Some(self.name.clone()),
            cluster: Some(self.cluster),
        }
    }

    /// The other founders.
    pub fn others(&self) -> Vec<NodeId> {
        self.founders.keys().copied().filter(|id| *id != self.id).collect()
    }

    /// Whether every founder was heard in this boot.
    pub fn has_heard_all(&self) -> bool {
        self.unheard().is_empty()
    }

    fn unheard(&self) -> Vec<NodeId> {
        self.founders.keys().copied().filter(|id| !self.heard.contains_key(id)).collect()
    }

    /// Whose word is missing.
    pub fn waiting_for(&self) -> Vec<NodeId> {
        match self.progress() {
            FormationProgress::Waiting(missing) => missing,
            FormationProgress::Formed(_) => Vec::new(),
        }
    }

    /// What is known so far.
    pub fn progress(&self) -> FormationProgress {
        if let Some(decided) = &self.decided {
            return FormationProgress::Formed(decided.clone());
        }
        let unheard = self.unheard();
        if !unheard.is_empty() {
            return FormationProgress::Waiting(unheard);
        }
        // The first version's rule, where somebody knows no other: all were heard. A founder that lost its directory
        // meanwhile was heard with the new one; the cluster has the old one.
        if let Some(formed) = &self.formed {
            return FormationProgress::Formed(formed.clone());
        }
        if self.theirs.values().any(Option::is_none) {
            return FormationProgress::Formed(self.heard.clone());
        }
        let agrees = |theirs: &Option<BTreeMap<_, _>>| theirs.as_ref() == Some(&self.heard);
        let others: Vec<NodeId> = self.theirs.iter().filter(|(_, t)| !agrees(t)).map(|(id, _)| *id).collect();
        if !others.is_empty() {
            return FormationProgress::Waiting(others);
        }
        let mut agreed = self.heard.clone();
        agreed.insert(AGREED, self.incarnation);
        FormationProgress::Formed(agreed)
    }

    /// Another founder's word.
    pub fn receive(&mut self, peer: NodeId, info: BootstrapInfo) -> Result<FormationProgress, FormationError> {
        // Whoever holds a certificate may speak; only a founder's word counts here, for this node or against it. And
        // what is decided is on its way to the disk.
        let counts = peer != self.id && self.founders.contains_key(&peer) && self.decided.is_none();
        if !counts || self.gone.contains(&(peer, info.incarnation)) {
            return Ok(self.progress());
        }
        self.refute(peer, &info)?;
        if let Some(replaced) = self.heard.insert(peer, info.incarnation).filter(|old| *old != info.incarnation) {
            self.gone.insert((peer, replaced));
            self.formed = None;
        }
        self.theirs.insert(peer, (!info.heard.is_empty()).then_some(info.heard));
        if let Some(formed_with) = info.formed_with {
            self.theirs.insert(peer, None);
            self.take_word(formed_with);
        }
        let progress = self.progress();
        if let FormationProgress::Formed(with) = &progress {
            self.decided = Some(with.clone());
            // From here on it states what it forms with.
            self.heard = with.iter().filter(|(id, _)| **id != AGREED).map(|(id, life)| (*id, *life)).collect();
        }
        Ok(progress)
    }

    /// It formed with this very directory.
    fn take_word(&mut self, formed_with: BTreeMap<NodeId, Incarnation>) {
        // Members that were added since are none of the founders.
        let founders = formed_with.into_iter().filter(|(id, _)| *id == AGREED || self.founders.contains_key(id));
        let formed_with: BTreeMap<_, _> = founders.collect();
        match formed_with.contains_key(&AGREED) {
            true => self.decided = Some(formed_with),
            false => self.formed = Some(formed_with),
        }
    }

    /// What speaks against ever forming a cluster with that founder.
    fn refute(&self, peer: NodeId, info: &BootstrapInfo) -> Result<(), FormationError> {
        let BootstrapInfo { founders, formed_with, cluster_name, cluster, .. } = info;
        let (id, ours) = (self.id, list(&self.founders));
        let other_founders = || FormationError::OtherFounders { peer, theirs: list(founders), ours: ours.clone() };
        if let Some(formed_with) = formed_with {
            let known = formed_with.get(&id);
            if known != Some(&self.incarnation) {
                let known = known.map_or("none".into(), Incarnation::to_string);
                return Err(FormationError::Replaced { peer, id, known, ours: self.incarnation });
            }
            // Its genesis would be another than theirs. A formed node knows those of them that are members still.
            if founders.iter().any(|founder| self.founders.get_key_value(founder.0) != Some(founder)) {
                return Err(other_founders());
            }
        } else if founders.is_empty() {
            return Err(FormationError::NotFounding { peer });
        } else if *founders != self.founders {
            return Err(other_founders());
        }
        match (cluster_name, cluster) {
            (Some(theirs), _) if *theirs != self.name => {
                let (theirs, ours) = (theirs.clone(), self.name.clone());
                Err(FormationError::OtherName { peer, theirs, id, ours })
            }
            (_, Some(theirs)) if *theirs != self.cluster => {
                Err(FormationError::OtherCluster { peer, theirs: *theirs, id, ours: self.cluster })
            }
            _ => Ok(()),
        }
    }
}

fn list(founders: &BTreeMap<NodeId, Address>) -> String {
    let items: Vec<String> = founders.iter().map(|(id, address)| format!("{id}={address}")).collect();
    items.join(", ")
}

#[cfg(test)]
#[path = "formation_tests.rs"]
mod tests;
