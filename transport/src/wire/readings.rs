//! What a leader read of its followers when it refuses a change of the membership, and the sentences that say it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::NodeId;

/// What a leader read of its followers that speaks against a change of the membership now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReading {
    /// The learner to be promoted is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learner: Option<LearnerReading>,
    /// The voters heard lately are no majority of those that would result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub majority: Option<MajorityReading>,
}

impl fmt::Display for ChangeReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.learner, &self.majority) {
            (Some(learner), _) => learner.fmt(f),
            (None, Some(majority)) => majority.fmt(f),
            (None, None) => f.write_str("the leader gives a reason that this version does not know"),
        }
    }
}

/// How far a learner is that is to be promoted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LearnerReading {
    /// The learner.
    pub node: NodeId,
    /// Its log is known to hold everything up to this index.
    pub matched: u64,
    /// It must reach this index: what was committed one election timeout ago.
    pub needed: u64,
    /// The leader's commit index now.
    pub commit: u64,
    /// How long ago it was heard, in milliseconds; `None` if never in this leader's term.
    pub heard_ms: Option<u64>,
    /// Whether the cluster has recorded the incarnation of its directory.
    pub recorded: bool,
}

impl fmt::Display for LearnerReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LearnerReading { node, matched, needed, commit, heard_ms, recorded } = self;
        write!(
            f,
            "learner {node} is not ready to be promoted: its log reaches {matched} of the {needed} that it needs "
        )?;
        write!(f, "(commit {commit}), and it was {}: ", heard(*heard_ms))?;
        f.write_str(match recorded {
            true if matched < needed => "let it catch up first",
            true => "is it running, and can the leader reach it?",
            false => "the incarnation of its directory is not recorded yet",
        })
    }
}

/// Which of the voters that a change would result in live.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MajorityReading {
    /// A majority of them.
    pub needed: u64,
    /// How many of them were heard within one election timeout.
    pub heard: u64,
    /// How long ago each was heard, in milliseconds; `None` if never in this leader's term.
    pub voters: BTreeMap<NodeId, Option<u64>>,
}

impl fmt::Display for MajorityReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MajorityReading { needed, heard: lately, voters } = self;
        write!(
            f,
            "after this change a majority is {needed} of {} voters, and the leader heard lately from {lately} (",
            voters.len()
        )?;
        for (n, (id, ms)) in voters.iter().enumerate() {
            write!(f, "{}node {id} {}", if n > 0 { ", " } else { "" }, heard(*ms))?;
        }
        f.write_str("): nothing could be decided. Bring the others back first, or force the change")
    }
}

fn heard(ms: Option<u64>) -> String {
    ms.map_or("never heard in this term".into(), |ms| format!("last heard {ms} ms ago"))
}
