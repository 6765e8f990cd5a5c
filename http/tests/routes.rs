//! An application with a state machine of its own mounts all routes: what each answers, with status, headers and body.

use std::{collections::BTreeMap, future::poll_fn, pin::pin, time::Duration};

use actix_web::{
    App,
    body::MessageBody,
    http::{Method, header},
    middleware::from_fn,
    test::{TestRequest, call_service, init_service, read_body, read_body_json},
    web::{self, Data},
};
use actorum::prelude::*;
use actorum_http::{BACKUP_HASH, Node, Shown, route::unknown_path};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longer than anything takes: only a failing test waits for so long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Counts up by what is proposed. Each command has a note that nobody else may read.
#[derive(Default, Serialize, Deserialize)]
struct Counter {
    sum: u64,
}

#[derive(Serialize, Deserialize)]
struct Add {
    n: u64,
    note: String,
}

impl StateMachine for Counter {
    type Command = Add;
    type Response = u64;

    fn apply(&mut self, _: &ApplyContext, command: &Add) -> u64 {
        self.sum += command.n;
        self.sum
    }

    serde_snapshot!();
}

fn add(n: u64) -> Add {
    Add { n, note: "secret".to_owned() }
}

/// Founders on a network in memory.
async fn founded(count: u64) -> BTreeMap<NodeId, Raft<Counter>> {
    let network = MemoryNetwork::new();
    let founders: BTreeMap<NodeId, Address> = (1..=count).map(|id| (id, address(id))).collect();
    let mut nodes = BTreeMap::new();
    for id in 1..=count {
        let builder = RaftSystem::<Counter>::builder(id)
            .network(Network::Memory(network.clone()))
            .storage(Storage::Memory)
            .bootstrap(Bootstrap::Form(founders.clone()));
        nodes.insert(id, builder.start().await.expect("a node"));
    }
    nodes[&1].wait_for_leader(TIMEOUT).await.expect("a leader");
    nodes
}

fn address(id: NodeId) -> Address {
    Address::from(format!("127.0.0.1:{}", 7000 + id).as_str())
}

/// The routes as an application mounts them: some at the root, those of the administration below a prefix.
macro_rules! mounted {
    ($node:expr) => {
        init_service(
            App::new()
                .app_data($node.clone())
                .wrap(from_fn(actorum_http::count::<Counter>))
                .configure(actorum_http::health::<Counter>)
                .configure(actorum_http::status::<Counter>)
                .configure(actorum_http::metrics::<Counter>)
                .configure(actorum_http::events::<Counter>)
                .service(
                    web::scope("/admin")
                        .configure(actorum_http::members::<Counter>)
                        .configure(actorum_http::snapshots::<Counter>)
                        .configure(actorum_http::events_shown::<Counter>(|command, response| Shown {
                            command: json!(command.n),
                            response: json!(response),
                        })),
                )
                .default_service(web::to(unknown_path)),
        )
        .await
    };
}

/// Sends a request; the status and the body as JSON.
macro_rules! ask {
    ($app:expr, $method:ident, $path:expr) => {
        ask!($app, $method, $path, "")
    };
    ($app:expr, $method:ident, $path:expr, $body:expr) => {{
        let request = TestRequest::with_uri($path).method(Method::$method).set_payload($body);
        let response = call_service(&$app, request.to_request()).await;
        let status = response.status().as_u16();
        assert_eq!(response.headers().get(header::CONTENT_TYPE).expect("a type"), "application/json", "{}", $path);
        let body: Value = read_body_json(response).await;
        (status, body)
    }};
}

fn refused(code: &str, (status, body): &(u16, Value)) -> u16 {
    assert_eq!(body["error"], code, "{body}");
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    assert!(body.get("leader").is_some(), "{body}");
    *status
}

#[actix::test]
async fn health_status_and_metrics() {
    let raft = founded(1).await.remove(&1).expect("one");
    let index = raft.propose(add(5)).await.expect("applied").index;
    let node = Data::new(Node::new(raft.clone()).counter("counter_sheep_total", "Sheep.", || 7));
    let app = mounted!(node);

    assert_eq!(ask!(app, GET, "/livez?probe=x"), (200, json!({ "live": true })));
    let (status, ready) = ask!(app, GET, "/readyz");
    assert_eq!((status, &ready["ready"], &ready["warnings"]), (200, &json!(true), &json!([])));
    assert!(ready["index"].as_u64().is_some_and(|read| read >= index), "{ready}");

    let (status, told) = ask!(app, GET, "/status");
    assert_eq!(status, 200);
    let fields = (&told["id"], &told["role"], &told["voters"], &told["ready"]);
    assert_eq!(fields, (&json!(1), &json!("leader"), &json!([1]), &json!(true)));
    assert_eq!(refused("bad_request", &ask!(app, GET, "/status?x=1")), 400);
    assert_eq!(refused("not_found", &ask!(app, GET, "/nowhere")), 404);

    let wrong = call_service(&app, TestRequest::post().uri("/status").to_request()).await;
    assert_eq!(
        (wrong.status().as_u16(), wrong.headers().get(header::ALLOW).expect("Allow")),
        (405, &"GET, HEAD".parse().expect("a header"))
    );
    let body: Value = read_body_json(wrong).await;
    assert_eq!(body["error"], "method_not_allowed", "{body}");

    let page = call_service(&app, TestRequest::get().uri("/metrics").to_request()).await;
    assert_eq!(page.status(), 200);
    assert_eq!(page.headers().get(header::CONTENT_TYPE).expect("a type"), "text/plain; version=0.0.4; charset=utf-8");
    let page = String::from_utf8(read_body(page).await.to_vec()).expect("text");
    for line in [
        "actorum_is_leader 1",
        "actorum_ready 1",
        "actorum_event_streams 0",
        "actorum_http_responses_total{class=\"2xx\"} 3",
        "actorum_http_responses_total{class=\"4xx\"} 3",
        "# TYPE counter_sheep_total counter",
        "counter_sheep_total 7",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in {page}");
    }

    raft.shutdown().await;
    assert_eq!(refused("stopped", &ask!(app, GET, "/livez")), 503);
    assert_eq!(refused("stopped", &ask!(app, GET, "/readyz")), 503);
    assert_eq!(ask!(app, GET, "/status").0, 200, "the status still tells why");
}

#[actix::test]
async fn events_whole_and_as_the_application_shows_them() {
    let raft = founded(1).await.remove(&1).expect("one");
    let node = Data::new(Node::new(raft.clone()));
    let app = mounted!(node);
    let mut index = raft.propose(add(1)).await.expect("applied").index;

    for (path, shown) in [
        ("/events", r#""command":{"n":5,"note":"secret"},"response":6}"#),
        ("/admin/events", r#""command":5,"response":11}"#),
    ] {
        let request = TestRequest::get().uri(&format!("{path}?after={index}"));
        let response = call_service(&app, request.to_request()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers().get(header::CONTENT_TYPE).expect("a type"), "text/event-stream");
        index = raft.propose(add(5)).await.expect("applied").index;
        let mut stream = pin!(response.into_body());
        let mut text = String::new();
        while !text.contains("event: applied") {
            let piece = poll_fn(|cx| stream.as_mut().poll_next(cx)).await;
            let Some(Ok(piece)) = piece else { panic!("it goes on: {text}") };
            text.push_str(std::str::from_utf8(&piece).expect("text"));
        }
        let id = format!(": subscribed\n\nid: {}:{index}\n", raft.status().cluster.expect("founded"));
        assert!(text.starts_with(&id), "{text}");
        assert!(text.contains(&format!("\nevent: applied\ndata: {{\"index\":{index},")), "{text}");
        assert!(text.trim_end().ends_with(shown), "{text}");
    }
    assert_eq!(refused("bad_request", &ask!(app, GET, "/events?after=x")), 400);
    let future = ask!(app, GET, &format!("/events?after={}:{}", raft.status().cluster.expect("founded"), index + 100));
    assert_eq!(refused("future_position", &future), 409);
    assert_eq!(refused("foreign_position", &ask!(app, GET, "/events?after=00000000000000000000000000000001:1")), 409);

    // A server that ends waits for no stream.
    let endless = call_service(&app, TestRequest::get().uri("/events").to_request()).await;
    node.stop();
    assert_eq!(read_body(endless).await, ": subscribed\n\n");
    raft.shutdown().await;
}

#[actix::test]
async fn members() {
    let mut nodes = founded(2).await;
    let leader = nodes[&1].status().leader.expect("a leader");
    let raft = nodes.remove(&leader).expect("it");
    let app = mounted!(Data::new(Node::new(raft.clone())));

    let body = json!({ "id": 3, "address": address(3), "role": "learner" }).to_string();
    let (status, versions) = ask!(app, POST, "/admin/activate?timeout_ms=10000");
    assert_eq!((status, &versions["machine"], &versions["manual"]), (200, &json!(1), &json!(false)), "{versions}");
    assert_eq!(versions["not_in_use"], json!([]), "{versions}");
    let (status, resulted) = ask!(app, POST, "/admin/members", body.clone());
    assert_eq!((status, &resulted["voters"], &resulted["learners"]), (200, &json!([1, 2]), &json!([3])), "{resulted}");
    assert_eq!(resulted["members"]["3"]["address"], json!(address(3)), "{resulted}");
    let never_started = ask!(app, POST, "/admin/members/3/promote?force=true&timeout_ms=2000");
    assert_eq!(refused("learner_not_ready", &never_started), 409);
    let (status, resulted) = ask!(app, DELETE, "/admin/members/3");
    assert_eq!((status, &resulted["learners"], &resulted["retired"]), (200, &json!([]), &json!([3])), "{resulted}");
    let other = 3 - leader;
    let (status, resulted) = ask!(app, POST, &format!("/admin/members/{other}/demote?force=true"));
    assert_eq!(
        (status, &resulted["voters"], &resulted["learners"]),
        (200, &json!([leader]), &json!([other])),
        "{resulted}"
    );
    let (status, resulted) = ask!(app, POST, &format!("/admin/members/{other}/promote"));
    assert_eq!((status, &resulted["voters"]), (200, &json!([1, 2])), "{resulted}");

    for (path, body) in [
        ("/admin/activate?timeout_ms=0", ""),
        ("/admin/activate?force=true", ""),
        ("/admin/members", ""),
        ("/admin/members", r#"[4,"127.0.0.1:7004","learner"]"#),
        ("/admin/members", r#"{"id":4,"address":"127.0.0.1:7004","role":"voter"}"#),
        ("/admin/members", r#"{"id":0,"address":"127.0.0.1:7004","role":"learner"}"#),
        ("/admin/members/01/promote", ""),
        ("/admin/members/2/promote?force=yes", ""),
        ("/admin/members/2/promote?timeout_ms=0", ""),
    ] {
        assert_eq!(refused("bad_request", &ask!(app, POST, path, body)), 400, "{path} {body}");
    }
    assert_eq!(refused("too_large", &ask!(app, POST, "/admin/members", "x".repeat(20_000))), 413);
    for node in nodes.values().chain([&raft]) {
        node.shutdown().await;
    }
}

#[actix::test]
async fn snapshots_and_backups() {
    let raft = founded(1).await.remove(&1).expect("one");
    let index = raft.propose(add(5)).await.expect("applied").index;
    let node = Data::new(Node::new(raft.clone()));
    let app = mounted!(node);

    let (status, taken) = ask!(app, POST, "/admin/snapshot");
    assert_eq!((status, &taken["index"]), (200, &json!(index)), "{taken}");
    assert!(taken["bytes"].as_u64().is_some_and(|bytes| bytes > 0) && taken["took_ms"].is_u64(), "{taken}");
    let response = call_service(&app, TestRequest::get().uri("/admin/backup").to_request()).await;
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers().get(name).expect("the header").to_str().expect("text").to_owned();
    assert_eq!(header("content-type"), "application/octet-stream");
    assert_eq!(header("actorum-index"), index.to_string());
    assert_eq!(header("actorum-term"), taken["term"].to_string());
    assert_eq!(header(BACKUP_HASH).len(), 64);
    assert_eq!(header("content-disposition"), format!("attachment; filename=\"actorum-{index}.backup\""));
    assert!(read_body(response).await.len() > 100, "the file follows");
    assert_eq!(refused("bad_request", &ask!(app, GET, "/admin/backup?timeout_ms=x")), 400);

    raft.shutdown().await;
    assert_eq!(refused("stopped", &ask!(app, POST, "/admin/snapshot")), 503);
    assert_eq!(refused("stopped", &ask!(app, GET, "/admin/backup")), 503);
}
