//! Hashes at marks, which nodes compare to find out whether they differ.
//!
//! A mark is an entry of the log. A node that applies one reports its hashes at that index to all other members. Hashes
//! are compared only if they began at the same index, and those of responses only between equal versions of the state
//! machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most marks in one report, the newest ones. A node that is further behind is compared at the next mark: a
/// difference stays in the hash from then on.
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
    /// Its value.
    pub value: HashValue,
}

/// The hash over what the state machine responded since a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ResponseHash {
    /// The mark behind which it began.
    pub since: u64,
    /// The version of the state machine.
    pub version: u32,
    /// Its value.
    pub value: HashValue,
}

/// The hashes of a node at a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The index of the mark's entry.
    pub index: u64,
    /// The hash over what was applied, the mark's entry included; absent on a node that started from a snapshot without
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateHash>,
    /// The hash over the responses since the last mark; absent unless this node's machine gave all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub responses: Option<ResponseHash>,
}
