//! The messages an application sends to the `RaftSystem` actor.
//!
//! Each has a method of the same meaning on [`Raft`](crate::Raft). A membership change is a message by itself:
//! [`ConfChange`](crate::ConfChange), or [`ChangeRequest`](crate::ChangeRequest) where it is forced.

use std::{fmt, time::Duration};

use actix::{Message, Recipient};
use actorum_actors::{
    admission::Denied,
    subscribers::{Subscriber, Wants},
};
use actorum_machine::{
    codes::ErrorCode,
    event::{Event, Events},
    machine::StateMachine,
    outcome::{Applied, BusyBound, ProposeError, ReadError},
    position::{After, Position},
    status::{Status, VersionStatus},
};

pub use actorum_actors::subscribers::{Subscription, Unsubscribe};
pub use actorum_machine::outcome::SubscribeError;

/// Replicate this command and apply it; answered with the state machine's response.
///
/// Works on any node: a follower forwards to the leader. An error says whether the command is surely not in the log or
/// may be in it, see [`ProposeError::outcome`].
#[derive(Message)]
#[rtype(result = "Result<Applied<S::Response>, ProposeError>")]
pub struct Propose<S: StateMachine> {
    pub(crate) command: S::Command,
    pub(crate) deadline: Option<Duration>,
}

/// Without the command.
impl<S: StateMachine> fmt::Debug for Propose<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Propose").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl<S: StateMachine> Propose<S> {
    /// With the configured deadline.
    pub fn new(command: S::Command) -> Self {
        Propose { command, deadline: None }
    }

    /// How long to try before giving up, counted from the moment the system receives the request. The answer comes at
    /// most two heartbeats, or 200 ms, after the deadline, even if the leader, the network or a state machine is
    /// blocked: then it is `Unknown`.
    ///
    /// A message is received by the thread of the actors. A state machine that blocks this thread needs a thread of its
    /// own (`placement = "spread"`); the methods of [`Raft`](crate::Raft) do not wait for it.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

/// Look at the state machine, on this node.
///
/// Linearizable (the default) sees everything that was answered before the read began, on any node, by
/// asking the leader to confirm with a quorum that it still leads (Raft dissertation section 6.4). Stale looks at once.
#[derive(Message)]
#[rtype(result = "Result<T, ReadError>")]
pub struct Read<S: StateMachine, T: Send + 'static> {
    pub(crate) look: Box<dyn FnOnce(&S) -> T + Send>,
    pub(crate) linearizable: bool,
    pub(crate) deadline: Option<Duration>,
}

impl<S: StateMachine, T: Send + 'static> fmt::Debug for Read<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read")
            .field("linearizable", &self.linearizable)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<S: StateMachine, T: Send + 'static> Read<S, T> {
    /// Sees everything that was answered before the read began.
    pub fn linearizable(look: impl FnOnce(&S) -> T + Send + 'static) -> Self {
        Read { look: Box::new(look), linearizable: true, deadline: None }
    }

    /// Sees this node's state as it is now, even if it is old and there is no leader.
    pub fn stale(look: impl FnOnce(&S) -> T + Send + 'static) -> Self {
        Read { look: Box::new(look), linearizable: false, deadline: None }
    }

    /// How long to try before giving up. A stale read does not wait for a leader, but it may have to wait for the state
    /// machine.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

/// Tell this recipient what is applied, in order, from a point on.
///
/// Each subscriber has its own bounded buffer and its own pump. A slow subscriber does not delay others, and gets
/// [`Event::Lagged`] when its buffer is full.
///
/// A subscription that begins in the past gets commands without their responses, see [`Event::Applied`]. To build a
/// view of the state from events, use [`Follow`], which reads the state and reports everything after it.
#[derive(Message)]
#[rtype(result = "Result<Subscription, SubscribeError>")]
pub struct Subscribe<S: StateMachine> {
    pub(crate) recipient: Subscriber<S>,
    pub(crate) after: After,
    pub(crate) wants: Wants,
}

impl<S: StateMachine> fmt::Debug for Subscribe<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribe")
            .field("recipient", &self.recipient)
            .field("after", &self.after)
            .field("wants", &self.wants)
            .finish()
    }
}

impl<S: StateMachine> Subscribe<S> {
    /// One message per event, from now on.
    pub fn new(recipient: Recipient<Event<S>>) -> Self {
        Subscribe::of(Subscriber::Single(recipient))
    }

    /// One message for all events that wait, from now on.
    pub fn batched(recipient: Recipient<Events<S>>) -> Self {
        Subscribe::of(Subscriber::Batched(recipient))
    }

    /// Reports leadership only: one [`Event::LeadershipChanged`] with the present leader, then one for every change. No
    /// commands.
    pub fn leadership(recipient: Recipient<Event<S>>) -> Self {
        Subscribe { wants: Wants::Leadership, ..Subscribe::new(recipient) }
    }

    pub(crate) fn of(recipient: Subscriber<S>) -> Self {
        Subscribe { recipient, after: After::Now, wants: Wants::Everything }
    }

    /// Begin with the first command after an index, or better after a [`Position`], which also names its cluster.
    /// Commands that are read back from the log have no response. If the log begins later, the first event is
    /// [`Event::SnapshotInstalled`] and says where it begins: read the state, which is at least that new.
    ///
    /// A position of another cluster is refused with [`SubscribeError::ForeignPosition`], and one beyond what the
    /// cluster has applied with [`SubscribeError::FuturePosition`]. A node that is behind catches up first.
    pub fn after(mut self, after: impl Into<After>) -> Self {
        self.after = after.into();
        self
    }

    /// Begin with what is applied from now on: the default.
    pub fn from_now(mut self) -> Self {
        self.after = After::Now;
        self
    }
}

/// Read the state and subscribe to everything applied after it, in one step. The recipient gets every command after the
/// read exactly once, with its response.
///
/// Use it to keep a view of the state elsewhere (a queue of jobs to run, an index for searching): begin with what was
/// read, and apply each event to it. The read is linearizable. After [`Event::Lagged`] or [`Event::SnapshotInstalled`]
/// follow anew.
#[derive(Message)]
#[rtype(result = "Result<Followed<T>, ReadError>")]
pub struct Follow<S: StateMachine, T: Send + 'static> {
    pub(crate) look: Box<dyn FnOnce(&S) -> T + Send>,
    pub(crate) recipient: Subscriber<S>,
    pub(crate) deadline: Option<Duration>,
}

impl<S: StateMachine, T: Send + 'static> fmt::Debug for Follow<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow")
            .field("recipient", &self.recipient)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<S: StateMachine, T: Send + 'static> Follow<S, T> {
    /// One message per event.
    pub fn new(look: impl FnOnce(&S) -> T + Send + 'static, recipient: Recipient<Event<S>>) -> Self {
        Follow { look: Box::new(look), recipient: Subscriber::Single(recipient), deadline: None }
    }

    /// One message for all events that wait.
    pub fn batched(look: impl FnOnce(&S) -> T + Send + 'static, recipient: Recipient<Events<S>>) -> Self {
        Follow { look: Box::new(look), recipient: Subscriber::Batched(recipient), deadline: None }
    }

    /// How long to try before giving up; after an error there is no subscription.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

/// The value that was read, and the subscription to everything after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed<T> {
    /// What the closure read from the state.
    pub value: T,
    /// The position of that state. The first command that is reported has a higher index.
    pub position: Position,
    /// To end it.
    pub subscription: Subscription,
}

pub use actorum_actors::snapshot::manager::TakeSnapshot;
pub use actorum_machine::outcome::TakeSnapshotError;

/// Let the leader activate what every member understands ([`Raft::activate`](crate::Raft::activate)). Answered when it
/// is in use on this node.
#[derive(Message, Clone, Copy, Debug, Default)]
#[rtype(result = "Result<VersionStatus, ActivateError>")]
pub struct Activate;

/// Why what every member understands was not activated. The leader may still activate it later; asking again is safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// No leader is known, and only a leader activates anything.
    #[error("no leader is known: is a majority of the voters running and reachable?")]
    NoLeader,
    /// A bound is reached. Nothing was asked of the leader.
    #[error("busy: {bound}; slow down and ask again")]
    Busy {
        /// Which one.
        bound: BusyBound,
    },
    /// It was not in use on this node in time. It may be put to use later all the same.
    #[error("not everything was in use within the deadline: {cause}; ask again")]
    DeadlineExceeded {
        /// What it waited for.
        cause: String,
    },
    /// The system has stopped.
    #[error("stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
}

impl From<Denied> for ActivateError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Busy(bound) => ActivateError::Busy { bound },
            Denied::Closed { cause } => ActivateError::Stopped { cause },
        }
    }
}

impl ErrorCode for ActivateError {
    fn code(&self) -> &'static str {
        match self {
            ActivateError::NoLeader => "not_leader",
            ActivateError::Busy { .. } => "busy",
            ActivateError::DeadlineExceeded { .. } => "deadline_exceeded",
            ActivateError::Stopped { .. } => "stopped",
        }
    }

    fn http_status(&self) -> u16 {
        503
    }
}

#[cfg(feature = "actix-web")]
actorum_machine::response_errors!(ActivateError);

/// The latest status.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "Status")]
pub struct GetStatus;

/// Stop accepting, finish or answer what is in flight, make the log durable, close. Answered when done.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Shutdown;

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{ApplyContext, RaftSystem};

    /// Its types have no `Debug`.
    #[derive(Default, Serialize, Deserialize)]
    struct Silent(Vec<Word>);

    #[derive(Clone, Serialize, Deserialize)]
    struct Word(String);

    impl StateMachine for Silent {
        type Command = Word;
        type Response = Word;

        fn apply(&mut self, _: &ApplyContext, word: &Word) -> Word {
            self.0.push(word.clone());
            word.clone()
        }

        crate::serde_snapshot!();
    }

    /// Also of types that cannot be printed: a bound on them would be missing here.
    #[test]
    fn requests_are_printed_without_what_they_carry() {
        let propose = Propose::<Silent>::new(Word("secret".to_owned())).deadline(Duration::from_secs(2));
        assert_eq!(format!("{propose:?}"), "Propose { deadline: Some(2s), .. }");
        let read = Read::<Silent, Word>::linearizable(|state| state.0[0].clone());
        assert_eq!(format!("{read:?}"), "Read { linearizable: true, deadline: None, .. }");
        let builder = format!("{:?}", RaftSystem::<Silent>::builder(3));
        assert!(builder.starts_with("Builder { id: 3, listen: None, "), "{builder}");
    }
}
