//! What must hold after every event, one small file per invariant.
//!
//! Each gets every [`Event`] with the [`Facts`] that an all-knowing observer has, and returns what is broken. They
//! share no code with what they check: who the voters are after a change, and what a majority of them is, is counted
//! here from the lists of ids, and not by `Configuration`, by which the nodes count.

use actorum::Config;

use super::world::{Event, Facts};

mod one_leader_per_term;
mod one_vote_per_term;
mod log_matching;
mod leader_completeness;
mod committed_never_changes;
mod quorum_before_commit;
mod applied_prefixes;
mod durable_before_said;
mod acknowledged_stays;
mod restored_is_applied;
mod cut_is_covered;
mod no_silent_gap;
mod rejected_nowhere;
mod every_request_ends;
mod full_rooms;
mod nothing_goes_back;
mod one_change_at_a_time;
mod changes_keep_a_majority;
mod strangers_never_vote;
mod queues_are_bounded;
mod messages_are_bounded;
mod stops_say_why;
mod time_follows_the_median;
mod marks_are_equal;
mod programs_stop_in_time;
mod nothing_in_use_unasked;

/// Something that must hold after every event.
pub(crate) trait Invariant: Send {
    /// What the report calls it.
    fn name(&self) -> &'static str;

    /// Checks an event. `facts` are those before it, except the logs, which contain what the event appends.
    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String>;
}

/// All of them.
pub(crate) fn all(bounds: &Config) -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<one_leader_per_term::OneLeaderPerTerm>::default(),
        Box::<one_vote_per_term::OneVotePerTerm>::default(),
        Box::<log_matching::LogMatching>::default(),
        Box::<leader_completeness::LeaderCompleteness>::default(),
        Box::new(committed_never_changes::CommittedNeverChanges),
        Box::new(quorum_before_commit::QuorumBeforeCommit),
        Box::<applied_prefixes::AppliedPrefixes>::default(),
        Box::new(durable_before_said::DurableBeforeSaid),
        Box::<acknowledged_stays::AcknowledgedStays>::default(),
        Box::<restored_is_applied::RestoredIsApplied>::default(),
        Box::new(cut_is_covered::CutIsCovered { holds: bounds.log_hold_bytes >= 1 << 20 }),
        Box::<no_silent_gap::NoSilentGap>::default(),
        Box::<rejected_nowhere::RejectedNowhere>::default(),
        Box::<every_request_ends::EveryRequestEnds>::default(),
        Box::<nothing_goes_back::NothingGoesBack>::default(),
        Box::<one_change_at_a_time::OneChangeAtATime>::default(),
        Box::<changes_keep_a_majority::ChangesKeepAMajority>::default(),
        Box::new(strangers_never_vote::StrangersNeverVote),
        Box::new(queues_are_bounded::QueuesAreBounded { bounds: bounds.clone() }),
        Box::new(messages_are_bounded::MessagesAreBounded { bounds: bounds.clone() }),
        Box::<stops_say_why::StopsSayWhy>::default(),
        Box::new(time_follows_the_median::TimeFollowsTheMedian { bound_ms: bounds.max_clock_skew_ms }),
        Box::<marks_are_equal::MarksAreEqual>::default(),
        Box::new(programs_stop_in_time::ProgramsStopInTime),
        Box::new(nothing_in_use_unasked::NothingInUseUnasked),
    ]
}
