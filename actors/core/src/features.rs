//! The gate for new formats: which of them a build understands, said in its hello.
//!
//! A node of an older version stops at an entry that it does not know, and cannot read a message that it does not know.
//! So whatever is new (a kind of entry, a section of a snapshot, a message, a request) has a [`Feature`], and is *used*
//! only where everyone that will read it has named that feature:
//!
//! - entries and sections of snapshots: from an entry on that puts the feature to use (`SystemCommand::Activate`),
//!   which takes effect if every member, learners too, has announced it in the log. Ask `Consensus::may_use`, or where
//!   an entry is applied `Versions::has`: the first may be late, the second is the same on every node. What nodes
//!   compute from the log and compare is such a format, too, although nobody reads it
//!   ([`Feature::VersionHashes`]);
//! - messages and requests between two nodes: the peer, in the hello of the present connection
//!   ([`Request::needs`](crate::wire::Request::needs), [`MessageKind::needs`](crate::wire::MessageKind::needs)).
//!
//! What a hello says ends with its connection, and a node may be put back to an older build. What is in use in the log
//! stays so, and a build that lacks it stops. Announcements are a feature themselves ([`Feature::Activation`]): in a
//! cluster whose members have not all named it, entries that are older than it are still made by hellos
//! (`Consensus::may_use` does both).
//!
//! A *field* that is new in an entry, a section or a message that the first version knows needs no feature where these
//! three hold. Everything is encoded with names, so an older node skips a field that it does not know:
//!
//! - what it does with the rest has the same effect, at every index and on every node: such a field is never looked at
//!   where an entry is applied;
//! - who reads what an older node wrote, without the field, does not depend on it: the field has a default, which means
//!   what the first version meant;
//! - with that default it is left out, so what needs it not is byte for byte what the first version wrote.
//!
//! A field that changes what is applied, or what a peer may rely on, is gated by a feature like everything else.
//! Without one are `SystemCommand::Change::forced`, which people read in the log; `SystemState::state_hash`, each
//! node's own word, which one that begins with a snapshot of an older node gets at the next mark (and marks are gated);
//! and of messages what their documentation in `wire.rs` calls absent from the first version.
//! `actors/store/src/first_version_tests.rs` reads entries and snapshots with the first version's definitions.
//!
//! To add a feature:
//!
//! 1. a variant here, its name in [`Feature::name`], and itself in [`Feature::ALL`]. A name is never used twice and
//!    never changed. The first version names none. Announcing and activating it needs no code;
//! 2. for an entry or a section of a snapshot: make it only where `Consensus::may_use` says so. Never make it by a
//!    hello alone: that a member understood something once does not bind it, the activation does. If what an entry
//!    *does* changes, let the place that applies it ask `Versions::has` of the state at that index;
//! 3. for a message or a request: its line in `needs`;
//! 4. a node that lacks it in the simulator (`Program` of `testkit/src/fleet.rs`), and a test that reads what it makes
//!    with the definitions of before, where a field was added.

use std::{collections::BTreeSet, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, SeqAccess, Visitor},
};

/// Names that a hello may hold. More is no hello.
pub const MAX_FEATURES: usize = 256;

/// The longest name of a feature, in bytes. A longer one is no hello.
pub const MAX_FEATURE_NAME: usize = 64;

/// A format that the first version does not know. Travels as its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// The hello says in which lives its directory was opened, and where its log ends.
    DirectoryLives,
    /// A node answers what its calendar shows (`Request::Clock`).
    ClockExchange,
    /// [`Refusal::LowSpace`](crate::wire::Refusal::LowSpace): a forwarded command finds the leader's disk nearly full.
    LowSpace,
    /// Marks in the log, at which nodes compare the hashes of what they applied.
    StateHashes,
    /// What members announce is recorded in the log, and the use of a feature or of a version of the state machine
    /// begins with an entry (`SystemCommand::Announce`, `SystemCommand::Activate`).
    Activation,
    /// The hash over what is applied covers the version of the state machine in force.
    VersionHashes,
}

impl Feature {
    /// All that this build understands.
    pub const ALL: &'static [Feature] = &[
        Feature::DirectoryLives,
        Feature::ClockExchange,
        Feature::LowSpace,
        Feature::StateHashes,
        Feature::Activation,
        Feature::VersionHashes,
    ];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Feature::DirectoryLives => "directory_lives",
            Feature::ClockExchange => "clock_exchange",
            Feature::LowSpace => "low_space",
            Feature::StateHashes => "state_hashes",
            Feature::Activation => "activation",
            Feature::VersionHashes => "version_hashes",
        }
    }

    /// The feature of that name, if this build knows it.
    pub fn named(name: &str) -> Option<Feature> {
        Feature::ALL.iter().copied().find(|feature| feature.name() == name)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a build understands besides the formats of the first version. Unknown names are skipped when it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(BTreeSet<Feature>);

impl Features {
    /// What the first version understands.
    pub fn none() -> Features {
        Features::default()
    }

    /// What this build understands.
    pub fn all() -> Features {
        Feature::ALL.iter().copied().collect()
    }

    /// Whether what needs this may be sent to who has these.
    pub fn meet(&self, needed: Option<Feature>) -> bool {
        needed.is_none_or(|feature| self.has(feature))
    }

    /// Whether this one is among them.
    pub fn has(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + '_ {
        self.0.iter().copied()
    }

    /// Those that both understand.
    pub fn common(&self, other: &Features) -> Features {
        Features(self.0.intersection(&other.0).copied().collect())
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Features {
        Features(features.into_iter().collect())
    }
}

impl Serialize for Features {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Feature::name))
    }
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Features, D::Error> {
        deserializer.deserialize_seq(Names)
    }
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = Features;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_FEATURES} names of features")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Features, A::Error> {
        let mut features = BTreeSet::new();
        let mut count = 0;
        // What is not known is not kept, so a peer's list costs this node no memory.
        while let Some(name) = names.next_element::<String>()? {
            count += 1;
            if count > MAX_FEATURES || name.len() > MAX_FEATURE_NAME {
                return Err(A::Error::custom("too many features, or too long a name"));
            }
            features.extend(Feature::named(&name));
        }
        Ok(Features(features))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(names: &[&str]) -> Result<Features, rmp_serde::decode::Error> {
        rmp_serde::from_slice(&rmp_serde::to_vec(names).unwrap())
    }

    #[test]
    fn features_travel_as_their_names() {
        let bytes = rmp_serde::to_vec(&Features::all()).unwrap();
        let names: Vec<String> = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(names, Feature::ALL.iter().map(|feature| feature.name()).collect::<Vec<_>>());
        assert_eq!(rmp_serde::from_slice::<Features>(&bytes).unwrap(), Features::all());
        for name in names {
            assert!(name.len() <= MAX_FEATURE_NAME);
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name} is snake_case");
        }
    }

    #[test]
    fn what_only_a_later_version_knows_is_skipped() {
        let known = Feature::DirectoryLives;
        assert_eq!(read(&["of_another_century", known.name(), ""]).unwrap(), [known].into_iter().collect());
        assert_eq!(read(&["of_another_century"]).unwrap(), Features::none());
    }

    #[test]
    fn the_list_is_bounded() {
        assert!(read(&["x"; MAX_FEATURES]).is_ok());
        assert!(read(&["x"; MAX_FEATURES + 1]).is_err());
        assert!(read(&["x".repeat(MAX_FEATURE_NAME).as_str()]).is_ok());
        assert!(read(&["x".repeat(MAX_FEATURE_NAME + 1).as_str()]).is_err());
    }

    #[test]
    fn common_is_what_both_understand() {
        assert_eq!(Features::all().common(&Features::all()), Features::all());
        assert_eq!(Features::all().common(&Features::none()), Features::none());
        assert!(!Features::none().has(Feature::DirectoryLives));
        assert!(Features::none().meet(None) && !Features::none().meet(Some(Feature::DirectoryLives)));
    }
}
