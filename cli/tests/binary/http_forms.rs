//! The forms of HTTP itself, byte by byte: HEAD, Allow, answers to what is no request, large expectations, and numbers
//! that every reader of JSON keeps.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::lab::{Lab, TIMEOUT, call, wait};
use serde_json::{Value, json};

fn one() -> Lab {
    let mut lab = Lab::new(&[1]);
    lab.found(&[1]);
    lab.leader();
    // What it writes by itself at first is in its log: a snapshot that is taken now stays up to date.
    wait("what it understands to be in use", || {
        (lab.node(1).status()["versions"]["not_in_use"] == json!([])).then_some(())
    });
    lab
}

fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().expect("an address")
}

/// An answer as it came.
struct Raw {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Raw {
    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value)
        });
        line.map(str::trim)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.head))
    }
}

/// Sends these bytes, and what came back until the server closed.
fn send(address: SocketAddr, bytes: &[u8]) -> Raw {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    // The server may have heard enough before the end.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no head: {}", String::from_utf8_lossy(&answer)));
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Raw { status, head, body: answer[end + 4..].to_vec() }
}

fn ask(address: SocketAddr, method: &str, path: &str) -> Raw {
    send(address, format!("{method} {path} HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n").as_bytes())
}

/// HEAD is GET without the content, wherever GET is.
#[test]
fn head() {
    let lab = one();
    let node = lab.node(1);
    assert_eq!(node.put("k", "value").status, 200);
    let (public, admin) = (address(&node.url("")), node.admin_address());
    for (server, path) in [
        (public, "/kv/k"),
        (public, "/kv/nothing"),
        (public, "/status"),
        (public, "/livez"),
        (public, "/readyz"),
        (public, "/metrics"),
        (public, "/status?x=1"),
        (public, "/nothing"),
        (public, "/events?after=00000000000000000000000000000000:1"),
        (public, "/events?after=18446744073709551615"),
        (admin, "/status"),
    ] {
        let (get, head) = (ask(server, "GET", path), ask(server, "HEAD", path));
        assert_eq!((head.status, head.header("content-type")), (get.status, get.header("content-type")), "{path}");
        assert!(head.body.is_empty() && !get.body.is_empty(), "{path}: {}", head.head);
        assert!(head.header("content-length").is_some_and(|length| length != "0"), "{path}: {}", head.head);
    }
    // What has no end, or is made for the asking, is not begun.
    for (server, path, kind) in
        [(public, "/events", "text/event-stream"), (admin, "/backup", "application/octet-stream")]
    {
        let head = ask(server, "HEAD", path);
        assert_eq!((head.status, head.header("content-type"), head.body.len()), (200, Some(kind), 0), "{path}");
    }
    assert!(call("GET", &node.url("/metrics"), "").text.contains("\nactorum_event_streams 0\n"));
    assert_eq!(node.status()["snapshots"]["built"], 0, "and no snapshot was taken");
    // Of one that is there already it says the same as GET.
    let taken = call("POST", &node.admin_url("/snapshot"), "").body["index"].to_string();
    let (head, get) = (ask(admin, "HEAD", "/backup"), ask(admin, "GET", "/backup"));
    assert_eq!(head.header("actorum-index"), Some(&*taken), "{}", head.head);
    for name in ["actorum-index", "actorum-term", "content-disposition", "content-type"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
}

/// 405 says what is possible, and that is possible.
#[test]
fn allow() {
    let lab = one();
    let node = lab.node(1);
    let (public, admin) = (address(&node.url("")), node.admin_address());
    for (server, path, allowed) in [
        (public, "/kv/k", "GET, HEAD, PUT, DELETE"),
        (public, "/status", "GET, HEAD"),
        (public, "/livez", "GET, HEAD"),
        (public, "/readyz", "GET, HEAD"),
        (public, "/metrics", "GET, HEAD"),
        (public, "/events", "GET, HEAD"),
        (admin, "/members", "POST"),
        (admin, "/members/4", "DELETE"),
        (admin, "/members/4/promote", "POST"),
        (admin, "/members/4/demote", "POST"),
        (admin, "/snapshot", "POST"),
        (admin, "/backup", "GET, HEAD"),
        (admin, "/status", "GET, HEAD"),
    ] {
        for method in ["OPTIONS", "PATCH", "TRACE"] {
            let answer = ask(server, method, path);
            assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {path}");
            let body = answer.json();
            assert_eq!(body["error"], "method_not_allowed", "{body}");
            assert!(body["message"].as_str().is_some_and(|message| message.contains(allowed)), "{body}");
        }
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
            if path != "/events" || method != "GET" {
                let possible = ask(server, method, path).status != 405;
                assert_eq!(possible, allowed.split(", ").any(|one| one == method), "{method} {path}");
            }
        }
    }
}

/// What the parser refuses by itself has the shape of all other errors, is counted, and is nothing that the log calls
/// an error.
#[test]
fn what_is_no_request() {
    let lab = one();
    let node = lab.node(1);
    let counted = || {
        let page = call("GET", &node.url("/metrics"), "").text;
        let count = page.lines().find_map(|line| line.strip_prefix("actorum_http_responses_total{class=\"4xx\"} "));
        count.expect("a counter").parse::<u64>().expect("a number")
    };
    let before = counted();
    let large = format!("GET /kv/k HTTP/1.1\r\nhost: n\r\nx: {}\r\n\r\n", "x".repeat(200 << 10));
    let many = format!("GET /kv/k HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(97));
    // The bound of a URL is exact, and above that of a whole head it is still the URL that is named.
    let url = |bytes: usize| {
        let start = "/kv/k?expect=";
        format!("PUT {start}{} HTTP/1.1\r\nhost: n\r\ncontent-length: 0\r\n\r\n", "x".repeat(bytes - start.len()))
    };
    let (over, far_over) = (url(65_535), url(200_000));
    let pipelined = "GET /kv/k HTTP/1.1\r\nhost: n\r\n\r\nnonsense\r\n\r\n";
    for server in [address(&node.url("")), node.admin_address()] {
        for (bytes, status, code) in [
            ("nonsense\r\n\r\n", 400, "bad_request"),
            ("GET /status HTTP/9.9\r\n\r\n", 400, "bad_request"),
            ("GET /status HTTP/1.1\r\nbad header\r\n\r\n", 400, "bad_request"),
            (&large, 431, "too_large"),
            (&many, 431, "too_large"),
            (&over, 414, "too_large"),
            (&far_over, 414, "too_large"),
            // Nothing comes after it: the head is awaited, and not for long.
            ("GET /status HTTP/1.1\r\nhost", 408, "timeout"),
        ] {
            let answer = send(server, bytes.as_bytes());
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (status, Some("application/json")),
                "{bytes:.40}"
            );
            assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()), "{}", answer.head);
            let body = answer.json();
            assert_eq!((&body["error"], &body["leader"]), (&json!(code), &json!(1)), "{body}");
            assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
            // Whoever sends too much is told where there is room for it.
            if status == 414 || status == 431 {
                for words in ["format=json", "body", if status == 414 { "65534" } else { "131072" }] {
                    assert!(body["message"].as_str().is_some_and(|message| message.contains(words)), "{body}");
                }
            }
        }
        // Behind an answer of ours that is still on its way.
        let both = send(server, pipelined.as_bytes());
        let text = String::from_utf8_lossy(&both.body).into_owned();
        assert!(text.contains("\"not_found\"") && text.contains("400 Bad Request"), "{text}");
        assert!(text.ends_with("}") && text.contains("\"bad_request\""), "{text}");
    }
    assert_eq!(counted() - before, 20, "eight and twice one on either server");
    let most = send(address(&node.url("")), url(65_534).replace("host: n", "host: n\r\nconnection: close").as_bytes());
    assert_eq!((most.status, &most.json()["error"]), (409, &json!("conflict")), "one byte less is read: {}", most.head);
    let log = node.last_words(usize::MAX);
    assert!(!log.contains("ERROR") && !log.contains("stream error"), "{log}");
}

/// What a backup is made of may look like anything, and is sent as it is: also before a request that is none.
#[test]
fn a_backup_is_not_touched() {
    let lab = one();
    let node = lab.node(1);
    let asked = "GET /backup HTTP/1.1\r\nhost: n\r\n\r\nnonsense\r\n\r\n";
    let answer = send(node.admin_address(), asked.as_bytes());
    let length: usize = answer.header("content-length").expect("a length").parse().expect("a number");
    let rest = String::from_utf8_lossy(&answer.body[length..]).into_owned();
    // The refusal has its own body where it left by itself, and none where it left together with the end of the backup.
    assert!(rest.starts_with("HTTP/1.1 400") && rest.ends_with(['\n', '}']), "{rest}");
}

/// What is expected may be as large as a value: then it stands in the body, beside the new one.
#[test]
fn large_expectations() {
    let lab = one();
    let node = lab.node(1);
    let url = |more: &str| node.url(&format!("/kv/k?format=json{more}"));
    let (old, new) = ("o\"\n\u{1}".repeat(1 << 18), "n".repeat(1 << 20));
    assert_eq!(old.len(), 1 << 20);
    let put = |body: Value| call("PUT", &url(""), body.to_string());
    let absent = put(json!({ "value": old, "expect_absent": true }));
    assert_eq!((absent.status, &absent.body["previous"]), (200, &Value::Null), "{}", absent.text);
    let conflict = put(json!({ "value": "x", "expect": new }));
    assert_eq!((conflict.status, conflict.code()), (409, "conflict"));
    assert_eq!(conflict.body["current"], old);
    let done = put(json!({ "value": new, "expect": old }));
    assert_eq!((done.status, done.body["previous"].as_str()), (200, Some(&*old)));
    let conflict = call("DELETE", &url(""), json!({ "expect": old }).to_string());
    assert_eq!((conflict.status, conflict.code()), (409, "conflict"));
    let done = call("DELETE", &url("&timeout_ms=4000"), json!({ "expect": new }).to_string());
    assert_eq!((done.status, done.body["previous"].as_str()), (200, Some(&*new)));
    assert_eq!(put(json!({ "value": "plain" })).status, 200);

    let over = "v".repeat((1 << 20) + 1);
    for (method, more, body, status) in [
        ("PUT", "", json!({}), 400),
        ("PUT", "", json!({ "value": "x", "expect": "plain", "expect_absent": true }), 400),
        ("PUT", "", json!({ "value": "x", "expects": "plain" }), 400),
        ("PUT", "", json!({ "value": 7 }), 400),
        ("PUT", "", json!("x"), 400),
        ("PUT", "&expect=plain", json!({ "value": "x" }), 400),
        ("PUT", "", json!({ "value": over }), 413),
        ("PUT", "", json!({ "value": "x", "expect": over }), 413),
        ("PUT", "", json!({ "value": "v".repeat(5 << 20) }), 413),
        ("DELETE", "", json!({ "value": "x" }), 400),
    ] {
        let answer = call(method, &url(more), body.to_string());
        assert_eq!(answer.status, status, "{method} {more}: {}", answer.text);
    }
    assert_eq!(call("PUT", &node.url("/kv/k?format=xml"), "x").status, 400);
    assert_eq!(node.get("k").body["value"], "plain", "nothing of that was applied");
}

/// One thing has one form: what could be taken for it is refused, and named.
#[test]
fn strict_forms() {
    let lab = one();
    let node = lab.node(1);
    let (public, admin) = (address(&node.url("")), node.admin_address());
    let put =
        |more: &str, body: &str| format!("PUT /kv/k HTTP/1.1\r\nhost: n\r\nconnection: close\r\n{more}\r\n\r\n{body}");
    let post = |path: &str, body: &str| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nhost: n\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let json = |body: &str| put("content-length: 5", body).replace("/kv/k", "/kv/k?format=json");
    let twice = "GET /events HTTP/1.1\r\nhost: n\r\nlast-event-id: 1\r\nlast-event-id: 2\r\n\r\n".to_owned();
    for (server, request, status, code, words) in [
        // A sign or a zero before a number would make two texts one number.
        (admin, post("/members/+44/promote", ""), 400, "bad_request", "+44 is not a node id"),
        (admin, post("/members/01/promote", ""), 400, "bad_request", "01 is not a node id"),
        (admin, post("/members/1/promote?timeout_ms=+5", ""), 400, "bad_request", "a whole number is needed"),
        (
            public,
            put("content-length: 1", "v").replace("/kv/k", "/kv/k?timeout_ms=%2B5000"),
            400,
            "bad_request",
            "a whole number",
        ),
        // A list is no object, though its elements could be taken for the fields in their order.
        (public, json("[\"v\"]"), 400, "bad_request", "it is no object"),
        (admin, post("/members", "[44,\"h:1\",\"learner\"]"), 400, "bad_request", "it is no object"),
        (public, twice, 400, "bad_request", "Last-Event-ID is given twice"),
        (public, put("content-encoding: gzip\r\ncontent-length: 1", "v"), 415, "unsupported_encoding", "gzip"),
        (public, put("content-encoding: nonsense\r\ncontent-length: 1", "v"), 415, "unsupported_encoding", "nonsense"),
        // What is wrong with a body is said of its form.
        (public, put("transfer-encoding: chunked", "ZZ\r\nv\r\n0\r\n\r\n"), 400, "bad_request", "hexadecimal digits"),
    ] {
        let answer = send(server, request.as_bytes());
        let body = answer.json();
        assert_eq!((answer.status, body["error"].as_str()), (status, Some(code)), "{request:?}: {body}");
        assert!(body["message"].as_str().is_some_and(|message| message.contains(words)), "{request:?}: {body}");
    }
    assert_eq!(node.get("k").status, 404, "nothing of that was applied");
    let plain = send(public, put("content-encoding: identity\r\ncontent-length: 1", "v").as_bytes());
    assert_eq!(plain.status, 200);
    // Which of the two bounds of a body it was.
    let mut late = TcpStream::connect(public).expect("a connection");
    late.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    late.write_all(b"PUT /kv/k?timeout_ms=300 HTTP/1.1\r\nhost: n\r\ncontent-length: 9\r\n\r\nhalf")
        .expect("half a request");
    let mut said = String::new();
    let _ = late.read_to_string(&mut said);
    assert!(said.contains("within the deadline of the request (timeout_ms)") && !said.contains("10 s"), "{said}");
}

/// Addresses and ids of new members are looked at, and random numbers are strings wherever they stand.
#[test]
fn members() {
    let lab = one();
    let node = lab.node(1);
    let add = |id: u64, address: &str| {
        let member = json!({ "id": id, "address": address, "role": "learner" });
        call("POST", &node.admin_url("/members?timeout_ms=20000"), member.to_string())
    };
    let bound = "between 1 and 9007199254740991 (2^53 - 1)";
    for id in ["0", "-1", "\"x\"", "1.5", "null", "18446744073709551616"] {
        let member = format!("{{\"id\":{id},\"address\":\"host:7001\",\"role\":\"learner\"}}");
        let answer = call("POST", &node.admin_url("/members"), member);
        assert_eq!((answer.status, answer.code()), (400, "bad_request"), "{}", answer.text);
        assert!(answer.text.contains(bound), "{id}: {}", answer.text);
    }
    for id in ["0", "-1", "x", "18446744073709551616", "1.5"] {
        for (method, rest) in [("DELETE", ""), ("POST", "/promote"), ("POST", "/demote")] {
            let answer = call(method, &node.admin_url(&format!("/members/{id}{rest}")), "");
            assert_eq!((answer.status, answer.code()), (400, "bad_request"), "{}", answer.text);
            assert!(answer.text.contains(bound), "{id}: {}", answer.text);
        }
    }
    for (id, address, words) in [
        (2, "http://10.0.0.2:7001", "leave out `http://`"),
        (2, "::1:7001", "[::1]:7001"),
        (2, "host", "the port is missing"),
        (2, "host:0", "between 1 and 65535"),
        (2, "0.0.0.0:7001", "no address that a peer could reach it at"),
        (2, "[ff02::1]:7001", "a multicast address"),
        (2, "-h:1", "begins or ends with a dash"),
        (2, &lab.node(1).listen.to_string(), "is the address of node 1"),
        ((1 << 53), "host:7001", "2^53 - 1"),
        (u64::MAX, "host:7001", "2^53 - 1"),
    ] {
        let answer = add(id, address);
        assert_eq!((answer.status, answer.code()), (400, "bad_request"), "{}", answer.text);
        assert!(answer.body["message"].as_str().is_some_and(|message| message.contains(words)), "{}", answer.text);
    }
    let highest = (1 << 53) - 1;
    let added = add(highest, "[::1]:7001");
    assert_eq!((added.status, &added.body["learners"]), (200, &json!([highest])), "{}", added.text);

    let digits = |value: &Value, long: usize| {
        value.as_str().is_some_and(|text| text.len() == long && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    for members in [&added.body["members"], &node.status()["members"]] {
        assert!(digits(&members["1"]["incarnation"], 16), "{members}");
    }
    let status = node.status();
    assert!(digits(&status["incarnation"], 16) && digits(&status["cluster"], 32), "{status}");
    assert_eq!(status["members"]["1"]["incarnation"], status["incarnation"]);
    assert!(status["term"].is_u64() && status["commit_index"].is_u64() && status["id"].is_u64(), "{status}");
    // Nothing else in it is a number that a reader of JSON would round.
    assert_eq!(large_numbers(&status, "status"), [""; 0]);
    let removed = call("DELETE", &node.admin_url(&format!("/members/{highest}?timeout_ms=20000")), "");
    assert_eq!(removed.status, 200, "{}", removed.text);
}

fn large_numbers(value: &Value, path: &str) -> Vec<String> {
    match value {
        Value::Number(number) if number.as_u64().is_some_and(|n| n >= 1 << 53) => vec![path.to_owned()],
        Value::Array(all) => all.iter().flat_map(|value| large_numbers(value, path)).collect(),
        Value::Object(all) => all.iter().flat_map(|(key, v)| large_numbers(v, &format!("{path}.{key}"))).collect(),
        _ => Vec::new(),
    }
}
