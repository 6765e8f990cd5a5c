//! What is applied, as a stream: for whoever has no actor to be told.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use actorum_actors::{event::Event, machine::StateMachine};
use futures_util::Stream;
use tokio::sync::mpsc;

/// Events in order, one after the other, from [`Raft::events`](crate::Raft::events) or
/// [`Raft::follow_events`](crate::Raft::follow_events).
///
/// Taken slowly it slows nobody: events wait in a bounded buffer, and at its bound the last one is [`Event::Lagged`]. The stream ends
/// after that, and when the node stops. Dropping it ends the subscription.
pub struct EventStream<S: StateMachine>(pub(crate) mpsc::Receiver<Event<S>>);

impl<S: StateMachine> EventStream<S> {
    /// The next event; `None` after [`Event::Lagged`], or when the node has stopped.
    pub async fn next(&mut self) -> Option<Event<S>> {
        self.0.recv().await
    }
}

impl<S: StateMachine> Stream for EventStream<S> {
    type Item = Event<S>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event<S>>> {
        self.0.poll_recv(context)
    }
}
