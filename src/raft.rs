//! The handle: what an application holds, on any thread and under any runtime.

use std::{sync::Arc, time::Duration};

use actix::Addr;
use actorum_actors::{
    machine::StateMachine,
    members::{Change as ConfChange, Membership},
    outcome::{Applied, ChangeError, ProposeError, ReadError},
    status::Status,
};

use crate::{
    request::{Propose, Read, Subscribe, SubscribeError, Subscription},
    system::RaftSystem,
};

/// A node of a replicated state machine. Cheap to clone; works from any thread and runtime.
pub struct Raft<S: StateMachine> {
    system: Addr<RaftSystem<S>>,
}

impl<S: StateMachine> Clone for Raft<S> {
    fn clone(&self) -> Self {
        Raft { system: self.system.clone() }
    }
}

/// A condition did not come true in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The time is up; the status as it was then.
    #[error("still waiting when the time was up; {0}")]
    TimedOut(String),
    /// The system has stopped.
    #[error("stopped: {0}")]
    Stopped(String),
}

#[allow(clippy::todo, unused_variables)]
impl<S: StateMachine> Raft<S> {
    /// The actor behind this handle, for `send` and `do_send`.
    pub fn addr(&self) -> &Addr<RaftSystem<S>> {
        &self.system
    }

    /// Replicates a command; see [`Propose`].
    pub async fn propose(&self, command: S::Command) -> Result<Applied<S::Response>, ProposeError> {
        todo!()
    }

    /// Replicates a command with a deadline of its own.
    pub async fn propose_within(
        &self,
        command: S::Command,
        deadline: Duration,
    ) -> Result<Applied<S::Response>, ProposeError> {
        todo!()
    }

    /// A linearizable read.
    pub async fn read<T: Send + 'static>(&self, look: impl FnOnce(&S) -> T + Send + 'static) -> Result<T, ReadError> {
        todo!()
    }

    /// A read of this node's state as it is.
    pub async fn read_stale<T: Send + 'static>(
        &self,
        look: impl FnOnce(&S) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        todo!()
    }

    /// Any read; see [`Read`]. Returns the index applied at the read along with the value.
    pub async fn read_with<T: Send + 'static>(&self, read: Read<S, T>) -> Result<(u64, T), ReadError> {
        todo!()
    }

    /// Changes the membership; answered when applied.
    pub async fn change(&self, change: ConfChange) -> Result<Arc<Membership>, ChangeError> {
        todo!()
    }

    /// Changes the membership with a deadline of its own.
    pub async fn change_within(&self, change: ConfChange, deadline: Duration) -> Result<Arc<Membership>, ChangeError> {
        todo!()
    }

    /// Subscribes; see [`Subscribe`].
    pub async fn subscribe(&self, subscribe: Subscribe<S>) -> Result<Subscription, SubscribeError> {
        todo!()
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, subscription: Subscription) {
        todo!()
    }

    /// The latest status: a clone, complete in itself.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// Waits until the status satisfies a condition.
    pub async fn wait(&self, timeout: Duration, until: impl Fn(&Status) -> bool) -> Result<Status, WaitError> {
        todo!()
    }

    /// Waits until a leader is known.
    pub async fn wait_for_leader(&self, timeout: Duration) -> Result<Status, WaitError> {
        todo!()
    }

    /// Waits until this node has applied an index.
    pub async fn wait_applied(&self, index: u64, timeout: Duration) -> Result<Status, WaitError> {
        todo!()
    }

    /// Waits until the system has stopped, however it came to that, and says why.
    pub async fn stopped(&self) -> String {
        todo!()
    }

    /// Shuts down in order: see [`Shutdown`](crate::Shutdown). Returns when the directory is closed.
    pub async fn shutdown(&self) {
        todo!()
    }
}
