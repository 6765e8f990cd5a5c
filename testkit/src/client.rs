//! A client of the simulated cluster: it asks any node, gets the result, and reports it to the world.

use std::{collections::BTreeMap, fmt, future::Future, sync::Arc, time::Duration};

use actorum::Raft;
use actorum_machine::{
    ids::NodeId,
    machine::StateMachine,
    members::{ChangeRequest, Membership},
    outcome::{Applied, ChangeError, Outcome, ProposeError, ReadError},
};

use super::{
    fleet::{Fleet, Life, State},
    machine::{Watched, print_of},
    rng::Rng,
    world::{Ended, Event, Print},
};

/// How a client's request ended without a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Surely without effect.
    #[error("rejected: {0}")]
    Rejected(String),
    /// The request may have taken effect, may take effect later, or never.
    #[error("unknown: {0}")]
    Unknown(String),
}

/// A client in a simulation. It has its own random numbers, and ends when the simulation ends.
pub struct Client<S: StateMachine> {
    number: u64,
    fleet: Fleet<S>,
    rng: Rng,
    deadline: Duration,
}

impl<S: StateMachine> fmt::Debug for Client<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("number", &self.number).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl<S: StateMachine> Client<S> {
    pub(crate) fn new(number: u64, fleet: &Fleet<S>, rng: Rng) -> Client<S> {
        Client { number, fleet: fleet.clone(), rng, deadline: Duration::from_secs(2) }
    }

    /// Its number, from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its own random numbers: the same seed gives the same numbers.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Whether the simulation goes on. A client's loop asks this.
    pub fn goes_on(&self) -> bool {
        self.fleet.world().turn(|| format!("client {} asks whether it goes on, again and again", self.number));
        !self.fleet.world().over() && !self.fleet.world().facts(|facts| facts.closing)
    }

    /// How long a request may take before its node gives up. Default 2 virtual seconds.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Lets up to so much virtual time pass.
    pub async fn think(&mut self, at_most: Duration) {
        let ms = self.rng.below(at_most.as_millis() as u64 + 1);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// A number that grows with every call, of all clients: the order in which things began and ended.
    pub fn moment(&self) -> u64 {
        self.fleet.world().next_request()
    }

    /// Virtual milliseconds since the beginning.
    pub fn now_ms(&self) -> u64 {
        self.fleet.world().scheduler().now_ms()
    }

    /// Proposes a command through some node.
    pub async fn propose(&mut self, command: S::Command) -> Result<Applied<S::Response>, Unanswered> {
        let Some((node, raft, life)) = self.some_node().await else { return Err(nobody()) };
        self.propose_to(node, raft, life, command).await
    }

    pub(crate) async fn propose_to(
        &mut self,
        node: NodeId,
        raft: Raft<Watched<S>>,
        life: Life,
        command: S::Command,
    ) -> Result<Applied<S::Response>, Unanswered> {
        let print = Some(print_of(&command));
        let request = raft.propose_within(command, self.deadline);
        let classify = |result: &Result<Applied<S::Response>, ProposeError>| match result {
            Ok(applied) => Ended::Applied { index: applied.index, term: applied.term },
            Err(error) => ended(error.outcome(), error.to_string()),
        };
        self.ask(node, life, print, request, classify).await
    }

    /// Reads through some node, linearizably.
    pub async fn read<T: Send + 'static>(
        &mut self,
        look: impl FnOnce(&S) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        let Some((node, raft, life)) = self.some_node().await else { return Err(nobody()) };
        self.read_from(node, raft, life, look).await
    }

    pub(crate) async fn read_from<T: Send + 'static>(
        &mut self,
        node: NodeId,
        raft: Raft<Watched<S>>,
        life: Life,
        look: impl FnOnce(&S) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        let read =
            actorum::Read::linearizable(move |machine: &Watched<S>| look(&machine.inner)).deadline(self.deadline);
        let request = async move { raft.read_with(read).await.map(|(_, value)| value) };
        let classify = |result: &Result<T, ReadError>| match result {
            Ok(_) => Ended::Done,
            // A read changes nothing.
            Err(error) => Ended::Rejected(error.to_string()),
        };
        self.ask(node, life, None, request, classify).await
    }

    /// Changes the membership through some node.
    pub(crate) async fn change(&mut self, change: impl Into<ChangeRequest>) -> Result<Arc<Membership>, Unanswered> {
        let Some((node, raft, life)) = self.some_node().await else { return Err(nobody()) };
        let change = change.into();
        let request = async move { raft.change_within(change, Duration::from_secs(2)).await };
        let classify = |result: &Result<Arc<Membership>, ChangeError>| match result {
            Ok(_) => Ended::Done,
            Err(error) => ended(error.outcome(), error.to_string()),
        };
        self.ask(node, life, None, request, classify).await
    }

    async fn ask<T, E>(
        &mut self,
        node: NodeId,
        life: Life,
        command: Option<Print>,
        request: impl Future<Output = Result<T, E>>,
        classify: impl FnOnce(&Result<T, E>) -> Ended,
    ) -> Result<T, Unanswered> {
        let world = self.fleet.world().clone();
        if world.over() {
            // A client that goes on asking must not prevent the end of the run.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let id = world.next_request();
        let deadline = self.deadline;
        world.saw(Event::Asked { id, node, command, deadline });
        let result = tokio::select! {
            biased;
            () = life.over() => None,
            () = world.decided() => None,
            result = request => Some(result),
        };
        // A paused process gives its answers when it goes on.
        while self.fleet.node(node, |node| node.state) == Some(State::Paused) && !world.over() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let ended = result.as_ref().map_or_else(|| Ended::Unknown("its node is gone".into()), classify);
        world.count(|counts| {
            counts.operations += 1;
            match &ended {
                Ended::Applied { .. } | Ended::Done => counts.succeeded += 1,
                Ended::Rejected(_) => counts.rejected += 1,
                Ended::Unknown(_) => counts.unknown += 1,
            }
        });
        world.saw(Event::Answered { id, ended: &ended });
        world.turn(|| format!("client {} makes requests that end at once, the last one so: {ended:?}", self.number));
        match (result, ended) {
            (Some(Ok(value)), _) => Ok(value),
            (_, Ended::Rejected(why)) => Err(Unanswered::Rejected(why)),
            (_, Ended::Unknown(why)) => Err(Unanswered::Unknown(why)),
            (_, ended) => unreachable!("{ended:?} without a value"),
        }
    }

    /// A node that can be asked; waits for one.
    async fn some_node(&mut self) -> Option<(NodeId, Raft<Watched<S>>, Life)> {
        for _ in 0..200 {
            let running = self.fleet.in_state(State::Running);
            let with_handle: BTreeMap<NodeId, _> =
                running.into_iter().filter_map(|id| Some((id, self.fleet.raft(id)?))).collect();
            let ids: Vec<NodeId> = with_handle.keys().copied().collect();
            if let Some(id) = self.rng.pick(&ids).copied() {
                let (raft, life) = with_handle[&id].clone();
                return Some((id, raft, life));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }
}

fn nobody() -> Unanswered {
    Unanswered::Rejected("no node was there to be asked".into())
}

fn ended(outcome: Outcome, why: String) -> Ended {
    match outcome {
        Outcome::Rejected => Ended::Rejected(why),
        Outcome::Unknown => Ended::Unknown(why),
    }
}
