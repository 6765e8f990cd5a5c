//! What nodes compare to find out that they differ: hashes at marks, the same indexes of the log on every node.
//!
//! A mark is an entry of the log. When a node applies it, it reports its hashes as they are there to all others. Values are
//! compared only if they began at the same index, and those of the answers only between equal versions of the state machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most marks in one report. The newest count; a node that is further behind is compared at the next mark, because hashes
/// of the state run on.
pub const MAX_MARKS: usize = 32;

/// The value of a hash: XXH3 with 128 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HashValue(pub u128);

impl fmt::Display for HashValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The running hash over what was applied: index, term and payload of every entry behind `since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateHash {
    /// The index behind which it began: 1, the genesis, unless it had to begin anew.
    pub since: u64,
    /// What it comes to.
    pub value: HashValue,
}

/// The hash over what the state machine answered since a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ResponseHash {
    /// The mark behind which it began.
    pub since: u64,
    /// The version of the state machine that answered.
    pub version: u32,
    /// What it comes to.
    pub value: HashValue,
}

/// What a node has come to at a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The index of the mark's entry.
    pub index: u64,
    /// The hash over what was applied, the mark's entry included; absent on a node that began without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateHash>,
    /// The hash over the answers since the last mark; absent unless this node's machine gave all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub responses: Option<ResponseHash>,
}
