//! The public HTTP API: the map, the node's health, its numbers, and what it applies.
//!
//! ```text
//!  PUT, GET, DELETE /kv/{key}      the map          GET /livez, /readyz   for whoever supervises
//!  GET /status                     the node         GET /metrics          for Prometheus
//!  GET /events?after=N             every command, as it is applied
//! ```
//!
//! Every refusal is JSON with a code that says what the caller can do about it, see [`Refused`]; the
//! promise behind the codes is the library's fourth: 503 and 4xx were surely not applied, 504 may have been.
//! Whatever a client sends is bounded before it is kept: the value, the key, the time.
//!
//! Deliberately absent: authentication. Listen on a loopback address, or stand something in front.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::{
    HttpRequest, HttpResponse, Resource, ResponseError, Route,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    guard,
    http::{StatusCode, header},
    middleware::Next,
    web::{self, Data, Payload, ServiceConfig},
};
use actorum::{
    ChangeError, ErrorCode, GetStatus, NodeId, Position, ProposeError, Raft, Read, ReadError, Reason, Severity, Status,
    SubscribeError, TakeSnapshotError,
};
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    clients::{Client, Held},
    events,
    kv::{Command, Expect, Kv, Response},
    metrics,
    settings::whole,
};

/// How long a key may be, in bytes.
const MAX_KEY: usize = 1 << 10;
/// How long a value may be, in bytes.
const MAX_VALUE: usize = 1 << 20;
/// How long a change as JSON may be, in bytes: two values, each with as much again for what JSON escapes.
const MAX_CHANGE: usize = 4 * MAX_VALUE;
/// How long a URL may be, in bytes: the bound of the HTTP library.
const MAX_URL: usize = 65_534;
/// How long the head of a request may be, in bytes, and how many headers it may have: of the same.
const MAX_HEAD: usize = 128 << 10;
const MAX_HEADERS: usize = 96;
/// A request that names no deadline has this one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest deadline a request may name: it holds admission for as long.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a body may take to arrive, however long the deadline: who sends a byte now and then holds memory and a
/// connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than its deadline the library is waited for. It answers at the deadline by itself; this is
/// for the case that it cannot answer at all.
const GRACE: Duration = Duration::from_millis(500);
/// How long a probe may take.
const PROBE: Duration = Duration::from_secs(1);

/// What the handlers share: the node, and the counters of this API.
pub(crate) struct Node {
    /// The node.
    pub raft: Raft<Kv>,
    /// Comes true when the process begins to end; streams end then.
    pub stopping: watch::Receiver<bool>,
    /// Event streams that are open.
    pub streams: AtomicUsize,
    /// Backups that are being sent.
    pub backups: AtomicUsize,
    /// Responses by the first digit of their status, `responses[4]` for 4xx.
    pub responses: [AtomicU64; 6],
}

impl Node {
    /// Around a node that runs.
    pub(crate) fn new(raft: Raft<Kv>, stopping: watch::Receiver<bool>) -> Node {
        Node {
            raft,
            stopping,
            streams: AtomicUsize::new(0),
            backups: AtomicUsize::new(0),
            responses: Default::default(),
        }
    }

    /// Counts a response.
    pub(crate) fn count(&self, status: StatusCode) {
        if let Some(counter) = self.responses.get(usize::from(status.as_u16() / 100)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The table of contents.
pub(crate) fn routes(config: &mut ServiceConfig) {
    config
        .service(
            at("/kv/{key:.*}", "GET, HEAD, PUT, DELETE")
                .route(web::put().to(put))
                .route(look().to(get))
                .route(web::delete().to(delete)),
        )
        .service(at("/status", LOOK).route(look().to(status)))
        .service(at("/livez", LOOK).route(look().to(livez)))
        .service(at("/readyz", LOOK).route(look().to(readyz)))
        .service(at("/metrics", LOOK).route(look().to(metrics::get)))
        .service(at("/events", LOOK).route(look().to(events::get)))
        .default_service(web::to(unknown_path));
}

/// What is possible where one only looks.
pub(crate) const LOOK: &str = "GET, HEAD";

/// A resource with the methods that it knows. To any other the answer is 405 with their names.
pub(crate) fn at(path: &str, allow: &'static str) -> Resource {
    let wrong_method = move |request: HttpRequest| async move {
        let message = format!("{} is not possible on {}; possible are: {allow}", request.method(), request.path());
        let refused = Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        Err::<HttpResponse, Refused>(Refused { allow: Some(allow), ..refused })
    };
    web::resource(path).default_service(web::to(wrong_method))
}

/// GET, and HEAD, which is answered as GET without the content.
pub(crate) fn look() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

// --- the map

/// `PUT /kv/{key}`, the body being the value; or with `format=json` what [`Change`] says, where what is expected is large.
async fn put(node: Data<Node>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Refused> {
    let mut query = Query::parse(&request)?;
    let (deadline, expect, json) = (query.deadline()?, query.expect()?, query.json()?);
    query.finish()?;
    let key = key(&request)?;
    let (value, expect) = if json {
        let change = Change::read(&request, body, expect, deadline).await?;
        let value = change.value.ok_or_else(|| Refused::bad_request("the body needs a value: it is what is put"))?;
        (value, change.expect)
    } else {
        (text(&request, body, MAX_VALUE, deadline).await?, expect)
    };
    propose(&node, Command::Put { key, value, expect }, deadline).await
}

/// `DELETE /kv/{key}`.
async fn delete(node: Data<Node>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Refused> {
    let mut query = Query::parse(&request)?;
    let (deadline, mut expect, json) = (query.deadline()?, query.expect()?, query.json()?);
    query.finish()?;
    let key = key(&request)?;
    if json {
        let change = Change::read(&request, body, expect, deadline).await?;
        if change.value.is_some() {
            return Err(Refused::bad_request("what is deleted has no value: leave it out of the body"));
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
            return Err(Refused::bad_request("with format=json what is expected stands in the body"));
        }
        let body = text(request, body, MAX_CHANGE, deadline).await?;
        let Body { value, expect, expect_absent } = object(&body).map_err(|e| {
            Refused::bad_request(format!(
                "the body must be like {{\"value\":\"new\",\"expect\":\"old\"}} or {{\"value\":\"new\",\"expect_absent\":true}}: {e}"
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
    let applied = match timeout_at(deadline + GRACE, node.raft.propose_within(command, left)).await {
        Ok(answer) => answer.map_err(|e| Refused::proposal(node, e))?,
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
    let (deadline, linearizable) = (query.deadline()?, query.linearizable()?);
    query.finish()?;
    let key = key(&request)?;
    let look = move |kv: &Kv| kv.get(&key);
    let read = if linearizable { Read::linearizable(look) } else { Read::stale(look) };
    let read = read.deadline(deadline.saturating_duration_since(Instant::now()));
    let (index, value) = match timeout_at(deadline + GRACE, node.raft.read_with(read)).await {
        Ok(answer) => answer.map_err(|e| Refused::read(&node, e))?,
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

// --- the node

/// `GET /status`.
pub(crate) async fn status(node: Data<Node>, request: HttpRequest) -> Result<HttpResponse, Refused> {
    Query::parse(&request)?.finish()?;
    Ok(json_response(describe(&node.raft.status())))
}

/// The status as the API shows it.
fn describe(status: &Status) -> Value {
    json!({
        "id": status.id,
        "role": status.role,
        "term": status.term,
        "leader": status.leader,
        "first_index": status.first_index,
        "last_index": status.last_index,
        "persisted_index": status.persisted_index,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "snapshot_index": status.snapshot_index,
        "snapshots": status.snapshots,
        "voters": status.membership.voters(),
        "learners": status.membership.learners(),
        "members": status.membership.members,
        "retired": status.membership.retired,
        "peers": status.peers,
        "formed": status.formed,
        "cluster": status.cluster.map(|c| c.to_string()),
        "incarnation": status.incarnation.map(|i| i.to_string()),
        "queues": status.queues,
        "totals": status.totals,
        "disk_bytes": status.disk_bytes,
        "log_bytes": status.log_bytes,
        "disk": status.disk,
        "last_error": status.last_error,
        "stopped": status.stopped,
        "stop_reason": status.stop_reason,
        "ready": status.unready().is_none(),
        "conditions": status.conditions(),
        "refused_by": status.refused_by,
        "certificates": status.certificates,
        "clock": status.clock,
        "state_hash": status.state_hash,
        "divergence": status.divergence,
        "response_divergence": status.response_divergence,
        "commit_conflicts": status.commit_conflicts,
    })
}

/// `GET /livez`: is it worth keeping this process? Not while its system has stopped or does not answer. Probers add
/// parameters of their own, so any are taken, here and by the other two that are asked by machines.
async fn livez(node: Data<Node>) -> Result<HttpResponse, Refused> {
    // Through the mailbox: a status that could be read from memory would not show that the system's thread hangs.
    let status = match timeout(PROBE, node.raft.addr().send(GetStatus)).await {
        Ok(Ok(status)) => status,
        Ok(Err(e)) => return Err(Refused::stopped(&node, format!("the system's mailbox: {e}"))),
        Err(_) => return Err(Refused::stopped(&node, "the system does not answer".to_owned())),
    };
    match status.stopped {
        Some(cause) => Err(Refused::stopped(&node, cause)),
        None => Ok(json_response(json!({ "live": true }))),
    }
}

/// `GET /readyz`: could a write sent here succeed? When nothing in the status makes the node unready, and a linearizable
/// read of nothing shows that its leader is there, has a majority now, and that the node has caught up.
///
/// What does not keep writes from succeeding (a certificate's end, a clock's offset) is a warning beside the yes.
async fn readyz(node: Data<Node>) -> Result<HttpResponse, Refused> {
    let conditions = node.raft.status().conditions();
    if let Some(first) = conditions.first().filter(|first| first.severity == Severity::Unready) {
        let refused = Refused::unready(&node, first.reason, first.message.clone());
        return Err(refused.with("conditions", json!(conditions)));
    }
    let read = Read::linearizable(|_: &Kv| ()).deadline(PROBE);
    match timeout(PROBE + GRACE, node.raft.read_with(read)).await {
        Ok(Ok((index, ()))) => Ok(json_response(json!({ "ready": true, "index": index, "warnings": conditions }))),
        Ok(Err(e)) => Err(Refused::read(&node, e)),
        Err(_) => Err(Refused::not_leader(&node, "the node did not answer a read in time")),
    }
}

/// For a path that does not exist.
pub(crate) async fn unknown_path(request: HttpRequest) -> Result<HttpResponse, Refused> {
    Err(Refused::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {}", request.path())))
}

/// Counts every response by class, and keeps the connection busy until it was handed over.
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
    response.map(|response| response.map_body(|_, body| Held::new(body, busy)))
}

/// 200 with a JSON body.
pub(crate) fn json_response(body: Value) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(body.to_string())
}

// --- what a client sends

/// The key of the path, as bytes on the wire: actix decodes leniently, and a lenient key is another key.
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

/// The body as text, never keeping more than `limit` bytes of it nor waiting beyond the deadline, or for a node that is
/// shutting down.
pub(crate) async fn text(
    request: &HttpRequest,
    mut body: Payload,
    limit: usize,
    deadline: Instant,
) -> Result<String, Refused> {
    unencoded(request)?;
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Refused::too_large(limit));
    }
    let chunked = announced.is_none();
    let read = async {
        // Grows with what arrives: an announcement costs nothing.
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| broken_off(&error, chunked))?;
            if bytes.len() + chunk.len() > limit {
                return Err(Refused::too_large(limit));
            }
            bytes.extend_from_slice(&chunk);
        }
        String::from_utf8(bytes).map_err(|e| Refused::bad_request(format!("the body is not UTF-8: {e}")))
    };
    let node = request.app_data::<Data<Node>>();
    let stopping = async {
        match node.map(|node| node.stopping.clone()) {
            // The far end goes with the process alone.
            Some(mut stopping) => drop(stopping.wait_for(|stopping| *stopping).await),
            None => std::future::pending().await,
        }
    };
    let too_late = Instant::now() + BODY_TIMEOUT;
    let text = tokio::select! {
        biased;
        text = timeout_at(deadline.min(too_late), read) => text.unwrap_or_else(|_| {
            let message = match deadline < too_late {
                true => "the body did not arrive within the deadline of the request (timeout_ms)".to_owned(),
                false => format!("the body did not arrive within the {} s that it may take", BODY_TIMEOUT.as_secs()),
            };
            Err(Refused::bad_request(message).hang_up())
        }),
        () = stopping => Err(match node {
            Some(node) => Refused::unready(node, Reason::Stopped, "it is being shut down, and the body is not here".into()),
            None => Refused::bad_request("the body has not arrived"),
        }.hang_up()),
    };
    if text.as_ref().is_err_and(|refused| refused.hang_up) {
        // A chunked body that is dropped would be read to its end, which may never come; one that is held
        // when the response leaves makes actix close the connection.
        actix_web::rt::spawn(async move {
            tokio::time::sleep(GRACE).await;
            drop(body);
        });
    }
    text
}

/// A body is taken as it is: what is compressed would be stored compressed, and be no text.
fn unencoded(request: &HttpRequest) -> Result<(), Refused> {
    for encoding in request.headers().get_all(header::CONTENT_ENCODING) {
        if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") {
            let message = format!(
                "the body has the content-encoding {}, and none is understood here: send it as it is",
                String::from_utf8_lossy(encoding.as_bytes())
            );
            return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message));
        }
    }
    Ok(())
}

/// Why a body did not come to its end. Of one in chunks the parser does not tell a malformed one from one that ended.
fn broken_off(error: &actix_web::error::PayloadError, chunked: bool) -> Refused {
    use actix_web::error::PayloadError;
    Refused::bad_request(match error {
        PayloadError::Incomplete(None) | PayloadError::EncodingCorrupted if chunked => {
            "the body in chunks ended too early or is malformed: each chunk is its length in hexadecimal digits, CRLF, so \
             many bytes, CRLF; the last has length 0"
                .to_owned()
        }
        PayloadError::Incomplete(None) => "the body is shorter than content-length announced".to_owned(),
        error => format!("the body broke off: {error}"),
    })
}

/// JSON that has to be an object: in the place of one, a list would be taken for its fields in order.
pub(crate) fn object<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, String> {
    match json.trim_start().starts_with('{') || serde_json::from_str::<serde::de::IgnoredAny>(json).is_err() {
        true => serde_json::from_str(json).map_err(|error| error.to_string()),
        false => Err("it is no object".to_owned()),
    }
}

/// The query of a request, strictly: every parameter at most once, and none that nobody asked for.
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads it.
    pub(crate) fn parse(request: &HttpRequest) -> Result<Query, Refused> {
        let mut parameters = BTreeMap::new();
        for pair in request.query_string().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = Query::decode(name)?;
            let value = Query::decode(value)?;
            if parameters.insert(name.clone(), value).is_some() {
                return Err(Refused::bad_request(format!("the parameter {name} is given twice")));
            }
        }
        Ok(Query(parameters))
    }

    fn decode(text: &str) -> Result<String, Refused> {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8();
        Ok(decoded.map_err(|e| Refused::bad_request(format!("the query is not UTF-8: {e}")))?.into_owned())
    }

    /// Takes a parameter out.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a number out.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>, Refused> {
        let parse = |text: String| {
            whole(&text).ok_or_else(|| Refused::bad_request(format!("{name}={text}: a whole number is needed")))
        };
        self.take(name).map(parse).transpose()
    }

    /// By when the request must be answered.
    pub(crate) fn deadline(&mut self) -> Result<Instant, Refused> {
        Ok(Instant::now() + self.timeout(DEFAULT_TIMEOUT)?)
    }

    /// How long the request may take, if it does not say so itself as long as this.
    pub(crate) fn timeout(&mut self, default: Duration) -> Result<Duration, Refused> {
        let timeout = self.number("timeout_ms")?.map_or(default, Duration::from_millis);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            let most = MAX_TIMEOUT.as_millis();
            return Err(Refused::bad_request(format!("timeout_ms must be between 1 and {most}")));
        }
        Ok(timeout)
    }

    /// Whether the body is JSON that says all.
    fn json(&mut self) -> Result<bool, Refused> {
        match self.take("format").as_deref() {
            None => Ok(false),
            Some("json") => Ok(true),
            Some(other) => Err(Refused::bad_request(format!("format={other}: json is needed, or nothing"))),
        }
    }

    fn expect(&mut self) -> Result<Option<Expect>, Refused> {
        let absent = match self.take("expect_absent").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(Refused::bad_request(format!("expect_absent={other}: true or false is needed"))),
        };
        match (self.take("expect"), absent) {
            (None, false) => Ok(None),
            (None, true) => Ok(Some(Expect::Absent)),
            (Some(value), false) => Ok(Some(Expect::Value(value))),
            (Some(_), true) => Err(Refused::bad_request("expect and expect_absent exclude each other")),
        }
    }

    fn linearizable(&mut self) -> Result<bool, Refused> {
        match self.take("consistency").as_deref() {
            None | Some("linearizable") => Ok(true),
            Some("stale") => Ok(false),
            Some(other) => Err(Refused::bad_request(format!("consistency={other}: linearizable or stale is needed"))),
        }
    }

    /// Whoever sent a parameter meant something by it: one that was not taken is an error.
    pub(crate) fn finish(self) -> Result<(), Refused> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(Refused::bad_request(format!("the parameter {name} is not known here"))),
        }
    }
}

// --- what a client is told

/// A refusal: `{"error": code, "message": text, "leader": id or null}`, and whatever else helps.
///
/// | status | code | applied? |
/// |---|---|---|
/// | 400, 404, 405 | `bad_request`, `not_found`, `method_not_allowed` | no |
/// | 413, 414, 431; 408; 415 | `too_large`; `timeout`; `unsupported_encoding` | no |
/// | 409 | `conflict`, `in_progress`, `learner_not_ready`, `would_lose_majority` | no |
/// | 409 | `foreign_position`, `future_position`: events after a position that this cluster does not have | it is no command |
/// | 500 | `failed`: a snapshot could not be taken | it is no command |
/// | 503 | `deadline_exceeded` of a snapshot: it goes on | it is no command |
/// | 503 | `not_leader`, `behind`, `busy`, `stopped`, `nothing`, `deadline_exceeded`, or the name of a [`Reason`]: `no_majority`, `low_space`, `removed`, .. | no |
/// | 504 | `unknown` | nobody can tell |
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    code: &'static str,
    message: String,
    leader: Option<NodeId>,
    more: Vec<(&'static str, Value)>,
    /// The methods that are possible, where that is what is wrong.
    allow: Option<&'static str>,
    /// Whether to close the connection, because the rest of a body is still on its way.
    hang_up: bool,
}

impl Refused {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refused {
        Refused { status, code, message: message.into(), leader: None, more: Vec::new(), allow: None, hang_up: false }
    }

    /// The request makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// More than the node takes at once.
    pub(crate) fn busy(node: &Node, message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message).leader(node)
    }

    /// What the HTTP parser could not read, by the status that it chose. Of the URL there are so many bytes.
    pub(crate) fn unparsed(node: &Node, status: StatusCode, url: usize) -> Refused {
        let belongs = "a long value belongs in the body, and with format=json so does what is expected: \
                       PUT /kv/KEY?format=json with {\"value\":\"new\",\"expect\":\"old\"}";
        let (status, code, message) = match status {
            status if status.is_client_error() && url > MAX_URL => {
                let message = format!("the URL has more than the {MAX_URL} bytes that it may have: {belongs}");
                (StatusCode::URI_TOO_LONG, "too_large", message)
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                let message = format!(
                    "the head of the request has more than the {MAX_HEAD} bytes, or the {MAX_HEADERS} headers, that it may have: \
                     {belongs}"
                );
                (status, "too_large", message)
            }
            StatusCode::REQUEST_TIMEOUT => (status, "timeout", "the head of the request did not arrive in time".into()),
            status if status.is_server_error() => (status, "failed", "the request could not be served".into()),
            _ => (status, "bad_request", "this is no request of HTTP/1.1".into()),
        };
        Refused::new(status, code, message).leader(node)
    }

    /// Of the response.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    fn too_large(limit: usize) -> Refused {
        let message = format!("the body has more than the {limit} bytes that it may have");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message).hang_up()
    }

    fn not_leader(node: &Node, message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "not_leader", message).leader(node)
    }

    /// The node has stopped; the code is the reason, if that has a name of its own.
    fn stopped(node: &Node, cause: String) -> Refused {
        let reason = node.raft.status().stop_reason.unwrap_or(Reason::Stopped);
        Refused::unready(node, reason, cause)
    }

    /// This node cannot do it now, and says why.
    fn unready(node: &Node, reason: Reason, message: String) -> Refused {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, reason.name(), message).leader(node)
    }

    /// The library itself did not answer in time.
    pub(crate) fn unanswered(node: &Node) -> Refused {
        Refused::new(StatusCode::GATEWAY_TIMEOUT, "unknown", "outcome unknown: the node did not answer in time")
            .leader(node)
    }

    /// An error of the library, by its own code and status.
    fn of(node: &Node, error: &dyn ErrorCode) -> Refused {
        let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Refused::new(status, error.code(), error.to_string()).leader(node)
    }

    fn proposal(node: &Node, error: ProposeError) -> Refused {
        Refused::of(node, &error)
    }

    fn read(node: &Node, error: ReadError) -> Refused {
        Refused::of(node, &error)
    }

    /// A membership change that was not made.
    pub(crate) fn change(node: &Node, error: ChangeError) -> Refused {
        Refused::of(node, &error)
    }

    /// A snapshot that was not taken.
    pub(crate) fn snapshot(node: &Node, error: TakeSnapshotError) -> Refused {
        Refused::of(node, &error)
    }

    /// A subscription that could not begin.
    pub(crate) fn subscription(node: &Node, error: SubscribeError) -> Refused {
        let refused = Refused::of(node, &error);
        let status = node.raft.status();
        match status.cluster {
            // Where this cluster is: what a client needs to begin anew.
            Some(cluster) => refused.with("position", json!(Position { cluster, index: status.applied_index })),
            None => refused,
        }
    }

    /// What the client reads.
    pub(crate) fn body(&self) -> Value {
        let mut body = json!({ "error": self.code, "message": self.message, "leader": self.leader });
        for (name, value) in &self.more {
            body[*name] = value.clone();
        }
        body
    }

    fn leader(mut self, node: &Node) -> Refused {
        self.leader = node.raft.status().leader;
        self
    }

    fn with(mut self, name: &'static str, value: Value) -> Refused {
        self.more.push((name, value));
        self
    }

    fn hang_up(mut self) -> Refused {
        self.hang_up = true;
        self
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl ResponseError for Refused {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(allow) = self.allow {
            response.insert_header((header::ALLOW, allow));
        }
        if self.hang_up {
            response.force_close();
        }
        response.content_type("application/json").body(self.body().to_string())
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{App, test};
    use actorum::{Address, Bootstrap, BusyBound, ClusterId, MemoryNetwork, Network, RaftSystem, Storage};

    use super::*;

    /// A node by itself, in memory, that leads.
    async fn node() -> Node {
        let founders = BTreeMap::from([(1, Address::from("127.0.0.1:1"))]);
        let builder = RaftSystem::<Kv>::builder(1).storage(Storage::Memory);
        let builder = builder.network(Network::Memory(MemoryNetwork::new())).bootstrap(Bootstrap::Form(founders));
        let raft = builder.start().await.expect("a node");
        raft.wait_for_leader(Duration::from_secs(30)).await.expect("a leader");
        Node::new(raft, watch::channel(false).1)
    }

    fn told(refused: &Refused) -> (u16, &'static str) {
        (refused.status_code().as_u16(), refused.code)
    }

    /// Every error of the library has the code of the table: 503 and 4xx only where nothing was applied.
    #[actix::test]
    async fn codes() {
        let node = node().await;
        let cause = || "why".to_owned();
        let proposals = [
            (ProposeError::NotLeader { leader: Some(2) }, 503, "not_leader"),
            (ProposeError::Busy { bound: BusyBound::OfLeader }, 503, "busy"),
            (ProposeError::DeadlineExceeded { cause: cause() }, 503, "deadline_exceeded"),
            (ProposeError::LowSpace { free: 1, needed: 2 }, 503, "low_space"),
            (ProposeError::Stopped { cause: cause() }, 503, "stopped"),
            (ProposeError::TooLarge { size: 2, limit: 1 }, 413, "too_large"),
            (ProposeError::Invalid { cause: cause() }, 400, "bad_request"),
            (ProposeError::Unknown { cause: cause() }, 504, "unknown"),
        ];
        for (error, status, code) in proposals {
            let surely_not_applied = error.outcome() == actorum::Outcome::Rejected;
            assert_eq!(surely_not_applied, status != 504, "{error}");
            assert_eq!(told(&Refused::proposal(&node, error)), (status, code));
        }
        let reads = [
            (ReadError::NotLeader { leader: None }, "not_leader"),
            (ReadError::Busy { bound: BusyBound::OfLeader }, "busy"),
            (ReadError::Stopped { cause: cause() }, "stopped"),
            (ReadError::DeadlineExceeded { cause: cause() }, "deadline_exceeded"),
        ];
        for (error, code) in reads {
            assert_eq!(told(&Refused::read(&node, error)), (503, code));
        }
        let panicked = ReadError::Panicked { message: cause() };
        assert_eq!(told(&Refused::read(&node, panicked)), (500, "panicked"));
        let changes = [
            (ChangeError::InProgress, 409, "in_progress"),
            (ChangeError::LearnerNotReady(Default::default()), 409, "learner_not_ready"),
            (ChangeError::WouldLoseMajority(Default::default()), 409, "would_lose_majority"),
            (ChangeError::Invalid { cause: cause() }, 400, "bad_request"),
            (ChangeError::NotLeader { leader: None }, 503, "not_leader"),
            (ChangeError::Busy { bound: BusyBound::OfLeader }, 503, "busy"),
            (ChangeError::DeadlineExceeded { cause: cause() }, 503, "deadline_exceeded"),
            (ChangeError::Stopped { cause: cause() }, 503, "stopped"),
            (ChangeError::Unknown { cause: cause() }, 504, "unknown"),
        ];
        for (error, status, code) in changes {
            let surely_not_made = error.outcome() == actorum::Outcome::Rejected;
            assert_eq!(surely_not_made, status != 504, "{error}");
            assert_eq!(told(&Refused::change(&node, error)), (status, code));
        }
        let snapshots = [
            (TakeSnapshotError::Stopped { cause: cause() }, 503, "stopped"),
            (TakeSnapshotError::Nothing, 503, "nothing"),
            (TakeSnapshotError::Failed { cause: cause() }, 500, "failed"),
        ];
        for (error, status, code) in snapshots {
            assert_eq!(told(&Refused::snapshot(&node, error)), (status, code));
        }
        let (position, cluster) = (Position { cluster: ClusterId(1), index: 2 }, ClusterId(3));
        let subscriptions = [
            (SubscribeError::Stopped { cause: cause() }, 503, "stopped"),
            (SubscribeError::Behind { index: 2, applied: 1, cause: cause() }, 503, "behind"),
            (SubscribeError::ForeignPosition { position, cluster }, 409, "foreign_position"),
            (SubscribeError::FuturePosition { index: 2, applied: 1 }, 409, "future_position"),
        ];
        for (error, status, code) in subscriptions {
            assert_eq!(told(&Refused::subscription(&node, error)), (status, code));
        }
        assert_eq!(told(&Refused::unanswered(&node)), (504, "unknown"));
        node.raft.shutdown().await;
    }

    /// A node that has stopped says so wherever it is asked, and is neither alive nor ready.
    #[actix::test]
    async fn a_node_that_has_stopped() {
        let node = Data::new(node().await);
        let app = test::init_service(App::new().app_data(node.clone()).configure(routes)).await;
        let live = test::call_service(&app, test::TestRequest::get().uri("/livez").to_request()).await;
        assert_eq!(live.status(), 200, "it lives until then");

        node.raft.shutdown().await;
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
