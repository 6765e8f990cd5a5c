//! The public HTTP API: the map, beside the routes of `actorum-http`.
//!
//! ```text
//!  PUT, GET, DELETE /kv/{key}      the map          GET /livez, /readyz   for whoever supervises
//!  GET /status                     the node         GET /metrics          for Prometheus
//!  GET /events?after=N             every command, as it is applied
//! ```
//!
//! Every refusal is JSON with a code that says what the caller can do about it, see [`Refused`]. The codes keep the
//! fourth promise of the library: a request with 503 or 4xx was surely not applied, a request with 504 may have been.
//! Everything that a client sends is bounded before it is kept: the value, the key, the time.
//!
//! Deliberately absent: authentication. Listen on a loopback address, or put a proxy in front.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::Next,
    web::{self, Data, Payload, ServiceConfig},
};
use actorum::Read;
use actorum_http::{
    Refused,
    route::{Query, at, json_response, look, object, text, unknown_path},
};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::{
    clients::{Client, Held},
    kv::{Command, Expect, Kv, Response},
    server::carries_anything,
};

/// How long a key may be, in bytes.
const MAX_KEY: usize = 1 << 10;
/// How long a value may be, in bytes.
const MAX_VALUE: usize = 1 << 20;
/// How long a change as JSON may be, in bytes: two values, each with as much again for what JSON escapes.
const MAX_CHANGE: usize = 4 * MAX_VALUE;
/// How long a URL may be, in bytes: the bound of the HTTP library.
const MAX_URL: usize = 65_534;
/// How long the head of a request may be, in bytes, and how many headers it may have: the bounds of the HTTP library.
const MAX_HEAD: usize = 128 << 10;
const MAX_HEADERS: usize = 96;
/// How long after its deadline a route still waits for the library. The library answers at the deadline by itself; this
/// is for the case that it cannot answer at all.
const GRACE: Duration = Duration::from_millis(500);

/// What the handlers share.
pub(crate) type Node = actorum_http::Node<Kv>;

/// The table of contents.
pub(crate) fn routes(config: &mut ServiceConfig) {
    config
        .service(
            at("/kv/{key:.*}", "GET, HEAD, PUT, DELETE")
                .route(web::put().to(put))
                .route(look().to(get))
                .route(web::delete().to(delete)),
        )
        .configure(actorum_http::status::<Kv>)
        .configure(actorum_http::health::<Kv>)
        .configure(actorum_http::metrics::<Kv>)
        .configure(actorum_http::events::<Kv>)
        .default_service(web::to(unknown_path));
}

// --- the map

/// `PUT /kv/{key}`. The body is the value; with `format=json` it is a [`Change`], for expected values that are too
/// large for a URL.
async fn put(node: Data<Node>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Refused> {
    let mut query = Query::parse(&request)?;
    let (deadline, expect, json) = (query.deadline()?, expect(&mut query)?, json(&mut query)?);
    query.finish()?;
    let key = key(&request)?;
    let (value, expect) = if json {
        let change = Change::read(&node, &request, body, expect, deadline).await?;
        let value = change.value.ok_or_else(|| Refused::bad_request("the body needs a value for PUT"))?;
        (value, change.expect)
    } else {
        (text(&node, &request, body, MAX_VALUE, deadline).await?, expect)
    };
    propose(&node, Command::Put { key, value, expect }, deadline).await
}

/// `DELETE /kv/{key}`.
async fn delete(node: Data<Node>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Refused> {
    let mut query = Query::parse(&request)?;
    let (deadline, mut expect, json) = (query.deadline()?, expect(&mut query)?, json(&mut query)?);
    query.finish()?;
    let key = key(&request)?;
    if json {
        let change = Change::read(&node, &request, body, expect, deadline).await?;
        if change.value.is_some() {
            return Err(Refused::bad_request("DELETE takes no value: leave it out of the body"));
        }
        expect = change.expect;
    }
    propose(&node, Command::Delete { key, expect }, deadline).await
}

/// A change as JSON, with what it expects: `{"value":"new","expect":"old"}`, `{"value":"new","expect_absent":true}`.
struct Change {
    value: Option<String>,
    expect: Option<Expect>,
}

impl Change {
    async fn read(
        node: &Node,
        request: &HttpRequest,
        body: Payload,
        in_query: Option<Expect>,
        deadline: Instant,
    ) -> Result<Change, Refused> {
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Body {
            value: Option<String>,
            expect: Option<String>,
            expect_absent: bool,
        }
        if in_query.is_some() {
            return Err(Refused::bad_request(
                "with format=json the expected value belongs in the body, not in the URL",
            ));
        }
        let body = text(node, request, body, MAX_CHANGE, deadline).await?;
        let Body { value, expect, expect_absent } = object(&body).map_err(|e| {
            Refused::bad_request(format!(
                "the body must be like {{\"value\":\"new\",\"expect\":\"old\"}} or \
                 {{\"value\":\"new\",\"expect_absent\":true}}: {e}"
            ))
        })?;
        if [&value, &expect].into_iter().flatten().any(|text| text.len() > MAX_VALUE) {
            let message = format!("a value has more than the {MAX_VALUE} bytes that it may have");
            return Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
        }
        let expect = match (expect, expect_absent) {
            (Some(_), true) => return Err(Refused::bad_request("expect and expect_absent exclude each other")),
            (expect, false) => expect.map(Expect::Value),
            (None, true) => Some(Expect::Absent),
        };
        Ok(Change { value, expect })
    }
}

async fn propose(node: &Node, command: Command, deadline: Instant) -> Result<HttpResponse, Refused> {
    let left = deadline.saturating_duration_since(Instant::now());
    let applied = match timeout_at(deadline + GRACE, node.raft().propose_within(command, left)).await {
        Ok(answer) => answer.map_err(|e| Refused::of(node, &e))?,
        Err(_) => return Err(Refused::unanswered(node)),
    };
    match applied.response {
        Response::Done { previous } => {
            Ok(json_response(json!({ "index": applied.index, "term": applied.term, "previous": previous })))
        }
        Response::Conflict { current } => {
            let refused = Refused::new(StatusCode::CONFLICT, "conflict", "the key does not hold what was expected");
            Err(refused.leader(node).with("current", json!(current)).with("index", json!(applied.index)))
        }
    }
}

/// `GET /kv/{key}`.
async fn get(node: Data<Node>, request: HttpRequest) -> Result<HttpResponse, Refused> {
    let mut query = Query::parse(&request)?;
    let (deadline, linearizable) = (query.deadline()?, linearizable(&mut query)?);
    query.finish()?;
    let key = key(&request)?;
    let look = move |kv: &Kv| kv.get(&key);
    let read = if linearizable { Read::linearizable(look) } else { Read::stale(look) };
    let read = read.deadline(deadline.saturating_duration_since(Instant::now()));
    let (index, value) = match timeout_at(deadline + GRACE, node.raft().read_with(read)).await {
        Ok(answer) => answer.map_err(|e| Refused::of(&node, &e))?,
        Err(_) => return Err(Refused::not_leader(&node, "the node did not answer the read in time")),
    };
    match value {
        Some(value) => Ok(json_response(json!({ "value": value, "index": index }))),
        None => {
            let refused = Refused::new(StatusCode::NOT_FOUND, "not_found", "there is nothing under this key");
            Err(refused.leader(&node).with("index", json!(index)))
        }
    }
}

/// Whether a response is made of any bytes, as a backup is.
fn of_any_bytes(response: &ServiceResponse<impl MessageBody>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    response.request().method() == Method::GET && kind.is_some_and(|kind| kind == "application/octet-stream")
}

/// Counts every response by class, and marks its connection as busy until it was handed over.
pub(crate) async fn count(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let busy = request.request().conn_data::<Arc<Client>>().map(Client::begin);
    let node = request.app_data::<Data<Node>>().cloned();
    let response = next.call(request).await;
    let status = response.as_ref().map_or_else(|e| e.as_response_error().status_code(), |r| r.status());
    if let Some(node) = node {
        node.count(status);
    }
    let response = response?;
    if of_any_bytes(&response) {
        carries_anything(response.request());
    }
    Ok(response.map_body(|_, body| Held::new(body, busy)))
}

// --- what a client sends

/// The key of the path, decoded from the bytes on the wire: actix decodes leniently, which could give another key.
fn key(request: &HttpRequest) -> Result<String, Refused> {
    let raw = request.uri().path().strip_prefix("/kv/").unwrap_or_default();
    let key = percent_decode_str(raw).decode_utf8();
    let key = key.map_err(|e| Refused::bad_request(format!("the key is not UTF-8: {e}")))?;
    match key.len() {
        0 => Err(Refused::bad_request("the key is empty: PUT /kv/{key}")),
        len if len > MAX_KEY => {
            Err(Refused::bad_request(format!("the key has {len} bytes, more than the {MAX_KEY} that a key may have")))
        }
        _ => Ok(key.into_owned()),
    }
}

/// Whether the body is JSON that says all.
fn json(query: &mut Query) -> Result<bool, Refused> {
    match query.take("format").as_deref() {
        None => Ok(false),
        Some("json") => Ok(true),
        Some(other) => Err(Refused::bad_request(format!("format={other}: json is needed, or nothing"))),
    }
}

fn expect(query: &mut Query) -> Result<Option<Expect>, Refused> {
    let absent = match query.take("expect_absent").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(Refused::bad_request(format!("expect_absent={other}: true or false is needed"))),
    };
    match (query.take("expect"), absent) {
        (None, false) => Ok(None),
        (None, true) => Ok(Some(Expect::Absent)),
        (Some(value), false) => Ok(Some(Expect::Value(value))),
        (Some(_), true) => Err(Refused::bad_request("expect and expect_absent exclude each other")),
    }
}

fn linearizable(query: &mut Query) -> Result<bool, Refused> {
    match query.take("consistency").as_deref() {
        None | Some("linearizable") => Ok(true),
        Some("stale") => Ok(false),
        Some(other) => Err(Refused::bad_request(format!("consistency={other}: linearizable or stale is needed"))),
    }
}

/// The answer to a request that the HTTP parser could not read, by the status that the parser chose. `url` is the
/// number of bytes of the URL.
pub(crate) fn unparsed(node: &Node, status: StatusCode, url: usize) -> Refused {
    let belongs = "send a long value in the body, and a long expected value there, too, with format=json: \
                   PUT /kv/KEY?format=json with {\"value\":\"new\",\"expect\":\"old\"}";
    let (status, code, message) = match status {
        status if status.is_client_error() && url > MAX_URL => {
            let message = format!("the URL has more than the {MAX_URL} bytes that it may have: {belongs}");
            (StatusCode::URI_TOO_LONG, "too_large", message)
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            let message = format!(
                "the head of the request has more than the {MAX_HEAD} bytes, or the {MAX_HEADERS} headers, that it may \
                 have: {belongs}"
            );
            (status, "too_large", message)
        }
        StatusCode::REQUEST_TIMEOUT => (status, "timeout", "the head of the request did not arrive in time".into()),
        status if status.is_server_error() => (status, "failed", "the request could not be served".into()),
        _ => (status, "bad_request", "this is no request of HTTP/1.1".into()),
    };
    Refused::new(status, code, message).leader(node)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use actix_web::{App, test};
    use actorum::{Address, Bootstrap, MemoryNetwork, Network, RaftSystem, Storage};
    use serde_json::Value;

    use super::*;

    /// A node by itself, in memory, that leads.
    async fn node() -> Node {
        let founders = BTreeMap::from([(1, Address::from("127.0.0.1:1"))]);
        let builder = RaftSystem::<Kv>::builder(1).storage(Storage::Memory);
        let builder = builder.network(Network::Memory(MemoryNetwork::new())).bootstrap(Bootstrap::Form(founders));
        let raft = builder.start().await.expect("a node");
        raft.wait_for_leader(Duration::from_secs(30)).await.expect("a leader");
        Node::new(raft)
    }

    /// A node that has stopped says so wherever it is asked, and is neither alive nor ready.
    #[actix::test]
    async fn a_node_that_has_stopped() {
        let node = Data::new(node().await);
        let app = test::init_service(App::new().app_data(node.clone()).configure(routes)).await;
        let live = test::call_service(&app, test::TestRequest::get().uri("/livez").to_request()).await;
        assert_eq!(live.status(), 200, "it lives until then");

        node.raft().shutdown().await;
        let requests = [
            test::TestRequest::get().uri("/livez"),
            test::TestRequest::get().uri("/readyz"),
            test::TestRequest::get().uri("/kv/k"),
            test::TestRequest::put().uri("/kv/k").set_payload("v"),
            test::TestRequest::delete().uri("/kv/k"),
            test::TestRequest::get().uri("/events"),
        ];
        for request in requests {
            let response = test::call_service(&app, request.to_request()).await;
            assert_eq!(response.status(), 503, "{:?}", response.request());
            let body: Value = test::read_body_json(response).await;
            assert_eq!(body["error"], "stopped", "{body}");
            assert!(body["message"].as_str().is_some_and(|cause| !cause.is_empty()), "{body}");
        }
        let status = test::call_service(&app, test::TestRequest::get().uri("/status").to_request()).await;
        assert_eq!(status.status(), 200, "the status still tells why");
        let body: Value = test::read_body_json(status).await;
        assert!(body["stopped"].is_string(), "{body}");
    }
}
