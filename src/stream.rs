//! Streams of events and of the status, for callers that are not actors.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use actorum_machine::{event::Event, machine::StateMachine, status::Status};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc;

use crate::status_hub::StatusHub;

/// Events in order, one after the other, from [`Raft::events`](crate::Raft::events) or
/// [`Raft::follow_events`](crate::Raft::follow_events).
///
/// A slow reader delays neither the node nor other readers: events wait in a bounded buffer, and at its bound the last
/// event is [`Event::Lagged`], after which the stream ends. It also ends when the node stops. Dropping it ends the
/// subscription.
pub struct EventStream<S: StateMachine>(pub(crate) mpsc::Receiver<Event<S>>);

impl<S: StateMachine> fmt::Debug for EventStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

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

/// A node's status and each later one, from [`Raft::watch_status`](crate::Raft::watch_status).
pub struct StatusStream(Pin<Box<dyn Stream<Item = Status> + Send>>);

impl fmt::Debug for StatusStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusStream").finish_non_exhaustive()
    }
}

impl StatusStream {
    pub(crate) fn of(status_hub: StatusHub) -> StatusStream {
        StatusStream(Box::pin(stream::unfold((status_hub, Shows::First), |(mut status_hub, shows)| async move {
            let goes_on = match shows {
                Shows::First => true,
                Shows::Changes => status_hub.changed().await,
                Shows::Nothing => return None,
            };
            status_hub.mark_seen();
            // Asked before the status is read: if the node stops in between, the next status says so.
            let ended = !goes_on || status_hub.life.borrow().closed;
            let next = if ended { Shows::Nothing } else { Shows::Changes };
            Some((status_hub.status(), (status_hub, next)))
        })))
    }

    /// The present status at first, then the next one that differs; `None` after the last.
    pub async fn next(&mut self) -> Option<Status> {
        self.0.next().await
    }
}

/// What a status stream shows next.
enum Shows {
    First,
    Changes,
    Nothing,
}

impl Stream for StatusStream {
    type Item = Status;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Status>> {
        self.0.as_mut().poll_next(context)
    }
}
