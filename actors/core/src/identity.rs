//! Who a node is towards its peers, and why one refuses another.

use std::sync::Arc;

use actorum_machine::ids::{ClusterId, Incarnation, NodeId};

use crate::{
    features::Features,
    lives::{Life, Record},
};

/// Who a node is, towards its peers: the content of its hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id, bound to its certificate.
    pub id: NodeId,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// How often this directory was opened. A later boot supersedes the connections of an earlier one.
    pub boot: u64,
    /// The cluster it belongs to; `None` while it waits to be formed or added.
    pub cluster: Option<ClusterId>,
    /// What its build understands besides the formats of the first version.
    pub features: Features,
    /// The version of its state machine (`StateMachine::VERSION`); zero of a build that does not say it.
    pub machine_version: u32,
    /// The lives of its directory that its hello shows, oldest first, the last one the present; none of the first
    /// version, or of a store that keeps none.
    pub lives: Arc<[Life]>,
}

/// Why a connection was refused.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum RefusedBecause {
    /// Another protocol.
    #[error("protocol version {theirs} is not spoken here (this node speaks {ours})")]
    Version {
        /// The version in the hello.
        theirs: u32,
        /// The version of the node that refuses.
        ours: u32,
    },
    /// Another cluster.
    #[error("it belongs to cluster {theirs}, not to {ours}")]
    Cluster {
        /// The cluster in the hello.
        theirs: ClusterId,
        /// The cluster of the node that refuses.
        ours: ClusterId,
    },
    /// The id is known with another incarnation: the peer lost its disk, or two nodes share an id.
    #[error(
        "node {id} is known here as incarnation {known}, not {theirs}: its data directory was replaced. Restore the \
         directory, or remove the node and add it again under a new id"
    )]
    Incarnation {
        /// The id.
        id: NodeId,
        /// What the cluster recorded.
        known: Incarnation,
        /// The incarnation in the hello.
        theirs: Incarnation,
    },
    /// The id was removed from the cluster.
    #[error("node {id} was removed from the cluster; an id is never used again")]
    Retired {
        /// The id.
        id: NodeId,
    },
    /// The certificate is for another node than the hello says, or than was dialled.
    #[error("its certificate is for {certificate}, not for node {id}")]
    Certificate {
        /// What the certificate names.
        certificate: String,
        /// The id expected.
        id: NodeId,
    },
    /// No common format of group messages.
    #[error("it reads the group formats {theirs:?}, this node {ours:?}")]
    Format {
        /// The formats in the hello.
        theirs: Vec<u32>,
        /// The formats of the node that refuses.
        ours: Vec<u32>,
    },
    /// The data directory was opened again since: this is the process before, or a copy of the directory.
    #[error(
        "node {id} was started again since (boot {known}; this is boot {theirs}): stop one of the two processes, and \
         if both directories are meant to live, give one a new id"
    )]
    Boot {
        /// The id.
        id: NodeId,
        /// The newest boot seen.
        known: u64,
        /// The boot in the hello.
        theirs: u64,
    },
    /// The directory does not continue the one on record: it was put back from an older copy, or a copy of it runs.
    #[error(
        "the directory of node {id} is an older copy, or runs twice: {}. Stop this copy, and \
         bring back the newer directory, or remove node {id} and add it again under a new id with an empty one",
        behind(recorded)
    )]
    OlderDirectory {
        /// The id.
        id: NodeId,
        /// What the node that refuses has on record.
        recorded: Record,
    },
    /// It has the id of the node it spoke to.
    #[error("it says that it is node {id}, as is the node it spoke to: look for an address or a directory used twice")]
    Myself {
        /// The id.
        id: NodeId,
    },
}

/// What is on record of a directory, and is not in a copy of it.
fn behind(Record { life, index, term, .. }: &Record) -> String {
    let opening = format!("its opening {} (nonce {:016x}) is on record", life.boot, life.nonce);
    match index {
        0 => opening,
        index => format!("{opening}, and acknowledged index {index} in term {term}"),
    }
}
