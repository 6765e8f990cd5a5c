//! What a node of `actorum` says of itself over HTTP, and how it is operated: routes of actix-web for any state
//! machine.
//!
//! ```text
//!  health      GET /livez, /readyz                for whoever supervises
//!  status      GET /status                        the node as JSON
//!  metrics     GET /metrics                       the same for Prometheus
//!  events      GET /events?after=N                every command, as it is applied
//!  members     POST /members, /members/4/promote, /members/4/demote, DELETE /members/4
//!              POST /activate                    what every member understands is put to use
//!  snapshots   POST /snapshot, GET /backup        the whole state, made durable or sent
//! ```
//!
//! Each line is a function for [`App::configure`](actix_web::App::configure), or for the `configure` of a scope with a
//! prefix. The routes find their [`Node`] in the data of the `App`. Their paths, answers and errors are those of the
//! binary `actorum`, which uses the same routes: [its chapter](https://docs.rs/actorum/latest/actorum/guide/binary/) of
//! the guide has them in a table.
//!
//! # An application of its own
//!
//! ```no_run
//! use actix_web::{App, HttpServer, middleware::from_fn, web::Data};
//! use actorum::prelude::*;
//! use actorum_http::Node;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Counter(u64);
//!
//! impl StateMachine for Counter {
//!     type Command = u64;
//!     type Response = u64;
//!
//!     fn apply(&mut self, _: &ApplyContext, n: &u64) -> u64 {
//!         self.0 += n;
//!         self.0
//!     }
//!
//!     serde_snapshot!();
//! }
//!
//! async fn serve(raft: Raft<Counter>) -> std::io::Result<()> {
//!     let node = Data::new(Node::new(raft));
//!     let data = node.clone();
//!     let public = HttpServer::new(move || {
//!         App::new()
//!             .app_data(data.clone())
//!             .wrap(from_fn(actorum_http::count::<Counter>))
//!             .configure(actorum_http::health::<Counter>)
//!             .configure(actorum_http::status::<Counter>)
//!             .configure(actorum_http::metrics::<Counter>)
//!             .configure(actorum_http::events::<Counter>)
//!         // .route("/add", ..): what the application is for
//!     });
//!     // Whoever reaches these can remove nodes from the cluster, and read all of its state.
//!     let data = node.clone();
//!     let admin = HttpServer::new(move || {
//!         App::new()
//!             .app_data(data.clone())
//!             .configure(actorum_http::members::<Counter>)
//!             .configure(actorum_http::snapshots::<Counter>)
//!     });
//!     let public = public.bind("127.0.0.1:8001")?.run();
//!     let admin = admin.bind("127.0.0.1:9001")?.run();
//!     // When the process is to end: `node.stop()`, then `stop(true)` of both handles, and `raft.shutdown()`.
//!     futures_util::future::try_join(public, admin).await?;
//!     Ok(())
//! }
//! ```
//!
//! Every refusal is JSON with a code that says what the caller can do about it, see [`Refused`]. The codes keep the
//! promise of the library: a request with 503 or 4xx was surely not applied, a request with 504 may have been.
//! Everything that a client sends is bounded before it is kept.
//!
//! Deliberately absent: authentication, TLS, and everything else about a server and its connections.

// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

mod node;
mod refused;
pub mod route;
pub mod strict;

mod events;
mod health;
mod members;
mod metrics;
mod snapshots;

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web::{self, Data, ServiceConfig},
};
use actorum::StateMachine;

pub use events::Shown;
pub use node::Node;
pub use refused::Refused;
pub use snapshots::BACKUP_HASH;

use route::{LOOK, at, look};

/// How long after its deadline a route still waits for the library. The library answers at the deadline by itself; this
/// is for the case that it cannot answer at all.
const GRACE: Duration = Duration::from_millis(500);

/// `GET /livez`: is it worth keeping this process? `GET /readyz`: could a write sent here succeed?
pub fn health<S: StateMachine>(config: &mut ServiceConfig) {
    config
        .service(at("/livez", LOOK).route(look().to(health::livez::<S>)))
        .service(at("/readyz", LOOK).route(look().to(health::readyz::<S>)));
}

/// `GET /status`: the node as JSON.
pub fn status<S: StateMachine>(config: &mut ServiceConfig) {
    config.service(at("/status", LOOK).route(look().to(health::status::<S>)));
}

/// `GET /metrics`: the status and the counters of the routes in the text format of Prometheus.
pub fn metrics<S: StateMachine>(config: &mut ServiceConfig) {
    config.service(at("/metrics", LOOK).route(look().to(metrics::get::<S>)));
}

/// `GET /events?after=POSITION`: every applied command as a server-sent event, shown [whole](Shown::whole).
pub fn events<S: StateMachine>(config: &mut ServiceConfig) {
    events_shown::<S>(Shown::whole)(config);
}

/// The same as [`events`], but the application chooses what is shown of a command and its response. Use it for commands
/// that hold secrets or are large.
///
/// ```
/// # use actorum::prelude::*;
/// # use actorum_http::Shown;
/// # use serde_json::{Value, json};
/// # fn routes<S: StateMachine<Command = Vec<u8>>>(config: &mut actix_web::web::ServiceConfig) {
/// config.configure(actorum_http::events_shown::<S>(|command, _| Shown {
///     command: json!({ "bytes": command.len() }),
///     response: Value::Null,
/// }));
/// # }
/// ```
pub fn events_shown<S: StateMachine>(
    show: impl Fn(&S::Command, Option<&S::Response>) -> Shown + Send + Sync + 'static,
) -> impl FnOnce(&mut ServiceConfig) {
    let show: events::Show<S> = Arc::new(show);
    move |config| {
        let get = move |node: Data<Node<S>>, request: HttpRequest| events::get(node, request, show.clone());
        config.service(at("/events", LOOK).route(look().to(get)));
    }
}

/// `POST /members` and the routes below it, for changes of the membership; and `POST /activate`. Whoever reaches them
/// can remove nodes from the cluster.
pub fn members<S: StateMachine>(config: &mut ServiceConfig) {
    config
        .service(at("/members", "POST").route(web::post().to(members::add::<S>)))
        .service(at("/members/{id}", "DELETE").route(web::delete().to(members::remove::<S>)))
        .service(at("/members/{id}/promote", "POST").route(web::post().to(members::promote::<S>)))
        .service(at("/members/{id}/demote", "POST").route(web::post().to(members::demote::<S>)))
        .service(at("/activate", "POST").route(web::post().to(members::activate::<S>)));
}

/// `POST /snapshot` and `GET /backup`. Whoever reaches them can read all of the state.
pub fn snapshots<S: StateMachine>(config: &mut ServiceConfig) {
    config
        .service(at("/snapshot", "POST").route(web::post().to(snapshots::take::<S>)))
        .service(at("/backup", LOOK).route(look().to(snapshots::backup::<S>)));
}

/// For [`from_fn`](actix_web::middleware::from_fn): counts every response of an `App` by its class, for the page of
/// metrics.
pub async fn count<S: StateMachine>(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let node = request.app_data::<Data<Node<S>>>().cloned();
    let response = next.call(request).await;
    let status = response.as_ref().map_or_else(|e| e.as_response_error().status_code(), |r| r.status());
    if let Some(node) = node {
        node.count(status);
    }
    response
}
