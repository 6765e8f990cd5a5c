//! Mistakes planted on purpose, to prove that the simulator finds them. Only with the feature `planted`, which no
//! normal build has; without it [`is`] is the constant `false` and costs nothing.
//!
//! One at a time is chosen for the whole process. Each is a line or two at the place where a tired programmer might
//! have made it.

/// A planted mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // `name` says it
pub enum Planted {
    AcknowledgedBeforeSync = 1,
    VoteForgotten,
    OverwrittenCounted,
    NotAtomic,
    AppliedBeforePersisted,
    StaleRead,
    ReadBeforeNoop,
    WipedDiskVotes,
    ForwardRetried,
    CutOneTooFew,
    SecondChange,
    SyncErrorIgnored,
    CompactedPastTransfer,
    SnapshotMislabelled,
    InstalledWithoutDirectorySync,
    MergedWithoutBound,
    PromotedBehind,
    MajorityNotAsked,
    LifeNotSynced,
    LogEndNotCompared,
    HashForgotten,
    MarksNotCompared,
    ShortOfRoomUnseen,
    ActivatedUnasked,
    VersionForgotten,
    OlderProgramStarts,
}

impl Planted {
    /// All of them.
    pub const ALL: &'static [Planted] = &[
        Planted::AcknowledgedBeforeSync,
        Planted::VoteForgotten,
        Planted::OverwrittenCounted,
        Planted::NotAtomic,
        Planted::AppliedBeforePersisted,
        Planted::StaleRead,
        Planted::ReadBeforeNoop,
        Planted::WipedDiskVotes,
        Planted::ForwardRetried,
        Planted::CutOneTooFew,
        Planted::SecondChange,
        Planted::SyncErrorIgnored,
        Planted::CompactedPastTransfer,
        Planted::SnapshotMislabelled,
        Planted::InstalledWithoutDirectorySync,
        Planted::MergedWithoutBound,
        Planted::PromotedBehind,
        Planted::MajorityNotAsked,
        Planted::LifeNotSynced,
        Planted::LogEndNotCompared,
        Planted::HashForgotten,
        Planted::MarksNotCompared,
        Planted::ShortOfRoomUnseen,
        Planted::ActivatedUnasked,
        Planted::VersionForgotten,
        Planted::OlderProgramStarts,
    ];

    /// What is wrong.
    pub fn name(self) -> &'static str {
        match self {
            Planted::AcknowledgedBeforeSync => "acknowledgement before sync",
            Planted::VoteForgotten => "vote forgotten on restart",
            Planted::OverwrittenCounted => "persist completion of an overwritten entry counted",
            Planted::NotAtomic => "hard state and entries not atomic",
            Planted::AppliedBeforePersisted => "applied before persisted on a single node",
            Planted::StaleRead => "stale read after a change of leader",
            Planted::ReadBeforeNoop => "read served before the leader's no-op",
            Planted::WipedDiskVotes => "wiped disk under the same id votes",
            Planted::ForwardRetried => "duplicate apply on a retried forward",
            Planted::CutOneTooFew => "conflict truncation loses one entry too few",
            Planted::SecondChange => "membership change started before the previous one is applied",
            Planted::SyncErrorIgnored => "sync error retried as success",
            Planted::CompactedPastTransfer => "log compacted past a snapshot that is being sent",
            Planted::SnapshotMislabelled => "snapshot labelled with the wrong index",
            Planted::InstalledWithoutDirectorySync => "snapshot installed without syncing the directory",
            Planted::MergedWithoutBound => "appends merged without a bound",
            Planted::PromotedBehind => "promotion asks only that the learner holds something",
            Planted::MajorityNotAsked => "membership change made without a live majority after it",
            Planted::LifeNotSynced => "record of a life not synced before its messages count",
            Planted::LogEndNotCompared => "end of a log not compared with the index on record",
            Planted::HashForgotten => "running hash not carried on behind a snapshot",
            Planted::MarksNotCompared => "hashes at marks not compared",
            Planted::ShortOfRoomUnseen => "log not cut early where room is short",
            Planted::ActivatedUnasked => "feature used although a member has not announced it",
            Planted::VersionForgotten => "version of the state machine not in a snapshot",
            Planted::OlderProgramStarts => "older program starts from a snapshot that uses what it lacks",
        }
    }
}

#[cfg(feature = "planted")]
mod chosen {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    static CHOSEN: AtomicU8 = AtomicU8::new(0);

    /// Plants a mistake in this whole process, or none.
    pub fn plant(mistake: Option<super::Planted>) {
        CHOSEN.store(mistake.map_or(0, |mistake| mistake as u8), Relaxed);
    }

    /// Whether this mistake is planted.
    pub fn is(mistake: super::Planted) -> bool {
        CHOSEN.load(Relaxed) == mistake as u8
    }
}

#[cfg(feature = "planted")]
pub use chosen::{is, plant};

/// Whether this mistake is planted: never, in a normal build.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Planted) -> bool {
    false
}
