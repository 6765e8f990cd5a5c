//! `GET /events?after=POSITION`: every applied command as a server-sent event, in order, from the point asked for,
//! without gaps except where `event: snapshot` takes the place of commands.
//!
//! ```text
//!  library ──Events──▶ Watcher (an actor per client) ──bounded channel──▶ response body ──▶ client
//! ```
//!
//! Each event's `id` is its position, `CLUSTER:INDEX`, so a browser that reconnects (`Last-Event-ID`) misses nothing,
//! and one that reconnects to another cluster, perhaps restored from a backup, gets an error instead of the wrong
//! commands or none. An index alone, the id of the first version's events, is accepted, too. A client that reads slowly
//! fills the channel, then the library's buffer for it; at that bound it gets `lagged` with the position to resume
//! after, and its stream ends. It delays no other client.

use std::{
    convert::Infallible,
    fmt::Write,
    mem,
    sync::{Arc, atomic::Ordering},
    time::{Duration, UNIX_EPOCH},
};

use actix::prelude::*;
use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, header},
    web::{Bytes, Data},
};
use actorum::{After, Event, Events, Position, StateMachine, Subscribe, SubscribeError};
use futures_util::stream;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{Node, Refused, route::Query};

/// How many pieces wait between the actor and the response. It is small, since the library has the main buffer.
const CHANNEL: usize = 2;
/// A piece has at most this many bytes of events, or a single event that is larger.
const PIECE: usize = 64 << 10;
/// How many streams may be open. At the bound the next client is told `busy`.
const MAX_STREAMS: usize = 256;
/// How often an idle stream sends a comment, so that proxies on the way do not close it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What an event shows of a command.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The command.
    pub command: Value,
    /// The response of the state machine; null where it is no longer known.
    pub response: Value,
}

impl Shown {
    /// All of it, as serde writes it. A value without a form in JSON (a map whose keys are not text) is replaced by a
    /// sentence that says so.
    pub fn whole(command: &impl Serialize, response: Option<&impl Serialize>) -> Shown {
        Shown { command: shown(command), response: shown(&response) }
    }
}

fn shown(what: &impl Serialize) -> Value {
    serde_json::to_value(what).unwrap_or_else(|error| Value::String(format!("it has no form in JSON: {error}")))
}

/// How the commands of a state machine are shown.
pub(crate) type Show<S> =
    Arc<dyn Fn(&<S as StateMachine>::Command, Option<&<S as StateMachine>::Response>) -> Shown + Send + Sync>;

/// Opens a stream.
pub(crate) async fn get<S: StateMachine>(
    node: Data<Node<S>>,
    request: HttpRequest,
    show: Show<S>,
) -> Result<HttpResponse, Refused> {
    let mut query = Query::parse(&request)?;
    let after = query.take("after").map(|after| {
        after.parse().map_err(|_| Refused::bad_request(format!("after={after}: an index or CLUSTER:INDEX is needed")))
    });
    let after = after.transpose()?;
    query.finish()?;
    if request.headers().get_all("last-event-id").count() > 1 {
        return Err(Refused::bad_request("Last-Event-ID is given twice"));
    }
    // An empty one says that no event was received.
    let after: Option<After> = match request.headers().get("last-event-id").filter(|id| !id.is_empty()) {
        // Sent by a client that reconnects: newer than the `after` it began with.
        Some(id) => Some(id.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(|| {
            Refused::bad_request("Last-Event-ID must be the id of the last event that was received, CLUSTER:INDEX")
        })?),
        None => after,
    };
    let place = Place::take(&node).ok_or_else(|| Refused::busy(&node, "too many event streams are open"))?;

    let (frames, receiver) = mpsc::channel(CHANNEL);
    let watcher = Watcher { frames, show }.start();
    let subscribe = Subscribe::batched(watcher.recipient());
    let subscribe = subscribe.after(after.unwrap_or_default());
    node.raft().subscribe(subscribe).await.map_err(|e| subscription(&node, &e))?;

    if request.method() == Method::HEAD {
        return Ok(HttpResponse::Ok()
            .content_type("text/event-stream")
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .finish());
    }
    let body = Body { receiver, stopping: node.watch_stopping(), greeted: false, _place: place };
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .streaming(stream::unfold(body, Body::next)))
}

/// A subscription that could not begin.
pub(crate) fn subscription<S: StateMachine>(node: &Node<S>, error: &SubscribeError) -> Refused {
    let refused = Refused::of(node, error);
    let status = node.raft().status();
    match status.cluster {
        // The present position of this cluster, which a client needs to begin anew.
        Some(cluster) => refused.with("position", json!(Position { cluster, index: status.applied_index })),
        None => refused,
    }
}

/// One of the places for open streams; given back when dropped.
struct Place<S: StateMachine>(Data<Node<S>>);

impl<S: StateMachine> Place<S> {
    fn take(node: &Data<Node<S>>) -> Option<Place<S>> {
        let taken = node.streams.fetch_add(1, Ordering::Relaxed);
        let place = Place(node.clone());
        (taken < MAX_STREAMS).then_some(place)
    }
}

impl<S: StateMachine> Drop for Place<S> {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of a response: the pieces that the watcher hands over, until either side is gone.
struct Body<S: StateMachine> {
    receiver: mpsc::Receiver<Bytes>,
    stopping: watch::Receiver<bool>,
    greeted: bool,
    _place: Place<S>,
}

impl<S: StateMachine> Body<S> {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Body<S>)> {
        // Sends the headers out, so that the client knows that it is subscribed.
        if !self.greeted {
            self.greeted = true;
            return Some((Ok(Bytes::from_static(b": subscribed\n\n")), self));
        }
        let frame = tokio::select! {
            biased;
            _ = self.stopping.wait_for(|stopping| *stopping) => None,
            frame = timeout(KEEP_ALIVE, self.receiver.recv()) => match frame {
                Ok(frame) => frame,
                Err(_) => Some(Bytes::from_static(b": still here\n\n")),
            },
        };
        frame.map(|frame| (Ok(frame), self))
    }
}

/// The subscriber. It takes the next batch only when the client has taken the last one.
struct Watcher<S: StateMachine> {
    frames: mpsc::Sender<Bytes>,
    show: Show<S>,
}

impl<S: StateMachine> Actor for Watcher<S> {
    type Context = Context<Self>;

    /// Ends when its client has gone, also while nothing is applied.
    fn started(&mut self, ctx: &mut Self::Context) {
        let frames = self.frames.clone();
        async move { frames.closed().await }.into_actor(self).map(|(), _, ctx| ctx.stop()).spawn(ctx);
    }
}

impl<S: StateMachine> Handler<Events<S>> for Watcher<S> {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, Events(events): Events<S>, _: &mut Self::Context) -> Self::Result {
        let (frames, show) = (self.frames.clone(), self.show.clone());
        let hand_over = async move {
            let mut piece = String::new();
            let last = events.len().saturating_sub(1);
            for (n, event) in events.into_iter().enumerate() {
                write_frame(&mut piece, &event, &show);
                let ends = matches!(event, Event::Lagged { .. });
                if (n == last || ends || piece.len() >= PIECE) && !piece.is_empty() {
                    // The client is gone: `started` has seen it too.
                    if frames.send(mem::take(&mut piece).into()).await.is_err() {
                        return true;
                    }
                }
                if ends {
                    return true;
                }
            }
            false
        };
        AtomicResponse::new(Box::pin(hand_over.into_actor(self).map(|ended, _, ctx| {
            if ended {
                ctx.stop();
            }
        })))
    }
}

/// An event as text; `None` for events that are not about commands.
fn write_frame<S: StateMachine>(piece: &mut String, event: &Event<S>, show: &Show<S>) {
    let (kind, data) = match event {
        Event::Applied { index, term, time, command, response, .. } => {
            let Shown { command, response } = show(command, response.as_ref().map(Arc::as_ref));
            let time_ms = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
            let data =
                json!({ "index": index, "term": term, "time_ms": time_ms, "command": command, "response": response });
            ("applied", data)
        }
        Event::SnapshotInstalled { index, .. } => ("snapshot", json!({ "index": index })),
        Event::Lagged { resume_after, .. } => {
            ("lagged", json!({ "resume_after": resume_after, "position": event.position() }))
        }
        _ => return,
    };
    if let Some(position) = event.position() {
        let _ = writeln!(piece, "id: {position}");
    }
    let _ = write!(piece, "event: {kind}\ndata: {data}\n\n");
}
