//! Why a leader refuses a change of the membership: what it knows of its followers, and the sentences that say so.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// Why a leader refuses a change of the membership now, by what it knows of its followers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReading {
    /// The learner to be promoted is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learner: Option<LearnerReading>,
    /// Too few of the voters that would result have answered lately: no majority.
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

/// How far a learner is that an operator wants to promote. It must have answered within one election timeout, and hold
/// what was committed one election timeout ago.
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
    /// How long ago it last answered this leader, in milliseconds; `None` if never in this leader's term.
    pub heard_ms: Option<u64>,
    /// Whether the cluster has recorded the incarnation of its directory, and what its program understands.
    pub recorded: bool,
    /// The promotion was forced and cannot be forced: the learner holds nothing, is not recorded, or lacks what is in
    /// use. Such a request is refused at once. A peer that does not know this field repeats the request until its
    /// deadline.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// What the cluster uses and the learner's program does not understand, if that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
}

impl fmt::Display for LearnerReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LearnerReading { node, matched, needed, commit, heard_ms, recorded, forced, lacks } = self;
        if let Some(lacks) = lacks {
            return write!(
                f,
                "node {node} does not understand {lacks}, which this cluster uses: start it with the version of the \
                 program that the members have"
            );
        }
        if *forced {
            let lacks = match recorded {
                true => "it holds nothing of the log yet",
                false => "the cluster has not recorded its directory and its version yet",
            };
            write!(f, "learner {node} cannot be promoted, not even by force: {lacks}. It {}. ", answered(*heard_ms))?;
            return f.write_str("Start it and let it connect to the leader, then promote it again");
        }
        write!(f, "learner {node} is not ready to be promoted: ")?;
        if !recorded {
            f.write_str("the cluster has not recorded its directory and its version yet. ")?;
            return f.write_str("Let it connect to the leader, then promote it again");
        }
        let must = (*needed).max(1);
        if *matched < must {
            write!(
                f,
                "its log is known to reach index {matched}, and must reach {must} (the commit index is {commit}). "
            )?;
            return write!(f, "It {}. Let it catch up first, then promote it again", answered(*heard_ms));
        }
        write!(f, "it {}, and must answer within one election timeout. ", answered(*heard_ms))?;
        f.write_str("Start it or restore its connection to the leader, then promote it again")
    }
}

/// How many voters of the membership after the change have answered their leader lately.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MajorityReading {
    /// A majority of them.
    pub needed: u64,
    /// How many of them answered within one election timeout.
    pub heard: u64,
    /// How long ago each last answered, in milliseconds; `None` if never in this leader's term.
    pub voters: BTreeMap<NodeId, Option<u64>>,
}

impl fmt::Display for MajorityReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MajorityReading { needed, heard, voters } = self;
        let of = voters.len();
        write!(
            f,
            "after this change a majority is {needed} of {of} voters, and only {heard} answered the leader within one "
        )?;
        f.write_str("election timeout (")?;
        for (n, (id, ms)) in voters.iter().enumerate() {
            write!(f, "{}node {id}: {}", if n > 0 { ", " } else { "" }, ago(*ms))?;
        }
        f.write_str("): no write could be committed. ")?;
        f.write_str("Start the other voters or restore their connections first, or force the change")
    }
}

fn answered(ms: Option<u64>) -> String {
    ms.map_or("has not answered the leader in this term".into(), |ms| format!("last answered the leader {ms} ms ago"))
}

fn ago(ms: Option<u64>) -> String {
    ms.map_or("never in this term".into(), |ms| format!("{ms} ms ago"))
}
