//! The HTTP API row by row against three real processes, errors included, with a node down and with two.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::lab::{self, HttpReply, Lab, Node, Stream, TIMEOUT, call, try_call, wait};
use serde_json::{Value, json};

/// Asserts an error: its status, its code, and the shape that all of them have.
#[track_caller]
fn refused(answer: &HttpReply, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{}", answer.text);
    assert_eq!(answer.content_type, "application/json");
    assert!(answer.body["message"].as_str().is_some_and(|m| !m.is_empty()), "{}", answer.text);
    let leader = answer.body.get("leader").expect("a leader, or null");
    assert!(leader.is_null() || leader.is_u64(), "{}", answer.text);
}

#[track_caller]
fn done(answer: &HttpReply, previous: Value) -> u64 {
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.content_type, "application/json");
    assert_eq!(answer.body["previous"], previous, "{}", answer.text);
    assert!(answer.body["term"].as_u64().is_some_and(|term| term >= 1), "{}", answer.text);
    answer.body["index"].as_u64().expect("an index")
}

/// PUT, GET and DELETE through every node; compare-and-set; linearizable and stale reads.
#[test]
fn the_map() {
    let lab = Lab::three();
    let [a, b, c] = [1, 2, 3].map(|id| lab.node(id));

    // Whichever of them leads: the others forward.
    let first = done(&a.put("k", "one"), Value::Null);
    let second = done(&b.put("k", "two"), json!("one"));
    let third = done(&c.put("k", "three"), json!("two"));
    assert!(first < second && second < third);

    for node in [a, b, c] {
        let read = node.get("k");
        assert_eq!((read.status, &read.body["value"]), (200, &json!("three")));
        assert!(read.body["index"].as_u64().expect("an index") >= third, "the index applied at the read");
        node.wait_applied(third);
        let read = node.get_stale("k");
        assert_eq!((read.status, &read.body["value"]), (200, &json!("three")));
    }
    let read = call("GET", &a.url("/kv/k?consistency=linearizable"), "");
    assert_eq!(read.body["value"], "three");
    refused(&b.get("nothing"), 404, "not_found");
    refused(&b.get_stale("nothing"), 404, "not_found");

    // Compare-and-set, with put and with delete.
    let conflict = call("PUT", &a.url("/kv/k?expect=one"), "four");
    refused(&conflict, 409, "conflict");
    assert_eq!(conflict.body["current"], "three");
    let conflict = call("PUT", &a.url("/kv/k?expect_absent=true"), "four");
    refused(&conflict, 409, "conflict");
    done(&call("PUT", &a.url("/kv/k?expect=three"), "four"), json!("three"));
    let conflict = call("PUT", &a.url("/kv/new?expect=x"), "y");
    refused(&conflict, 409, "conflict");
    assert!(conflict.body["current"].is_null());
    done(&call("PUT", &a.url("/kv/new?expect_absent=true"), "y"), Value::Null);
    let conflict = call("DELETE", &b.url("/kv/k?expect=three"), "");
    refused(&conflict, 409, "conflict");
    assert_eq!(conflict.body["current"], "four");
    done(&call("DELETE", &b.url("/kv/k?expect=four"), ""), json!("four"));
    done(&call("DELETE", &b.url("/kv/k"), ""), Value::Null);
    refused(&c.get("k"), 404, "not_found");

    // What a path and a body may be: a slash, a space, other scripts, nothing.
    done(&call("PUT", &a.url("/kv/a/b%20c%2Fd%25"), ""), Value::Null);
    assert_eq!(call("GET", &b.url("/kv/a/b%20c/d%25"), "").body["value"], "");
    done(&call("PUT", &a.url("/kv/%D0%BA%D0%BB%D1%8E%D1%87"), "значение"), Value::Null);
    assert_eq!(call("GET", &c.url("/kv/%d0%ba%d0%bb%d1%8e%d1%87"), "").body["value"], "значение");
    done(&call("PUT", &a.url("/kv/plus?expect_absent=true&timeout_ms=3000"), "a+b c"), Value::Null);
    done(&call("PUT", &a.url("/kv/plus?expect=a%2Bb+c"), "d"), json!("a+b c"));

    // The longest key and the largest value.
    let (key, value) = ("k".repeat(1 << 10), "v".repeat(1 << 20));
    done(&c.put(&key, &value), Value::Null);
    assert_eq!(a.get(&key).body["value"], Value::String(value));
}

/// Everything that a client can get wrong, and what it is told.
#[test]
fn refusals() {
    let lab = Lab::three();
    let node = lab.node(lab.leader());
    let put = |path: &str, body: &[u8]| call("PUT", &node.url(path), body);

    refused(&put("/kv/%FF", b"v"), 400, "bad_request");
    refused(&put("/kv/", b"v"), 400, "bad_request");
    refused(&put(&format!("/kv/{}", "k".repeat((1 << 10) + 1)), b"v"), 400, "bad_request");
    refused(&put("/kv/k", b"\xff\xfe"), 400, "bad_request");
    refused(&put("/kv/k?expects=1", b"v"), 400, "bad_request");
    refused(&put("/kv/k?expect=%FF", b"v"), 400, "bad_request");
    refused(&put("/kv/k?expect=1&expect=2", b"v"), 400, "bad_request");
    refused(&put("/kv/k?expect=1&expect_absent=true", b"v"), 400, "bad_request");
    refused(&put("/kv/k?expect_absent=perhaps", b"v"), 400, "bad_request");
    for timeout in ["", "0", "-1", "soon", "1.5", "99999999999", "99999999999999999999999"] {
        refused(&put(&format!("/kv/k?timeout_ms={timeout}"), b"v"), 400, "bad_request");
    }
    refused(&call("GET", &node.url("/kv/k?consistency=eventual"), ""), 400, "bad_request");
    refused(&call("GET", &node.url("/kv/k?expect=1"), ""), 400, "bad_request");
    refused(&call("GET", &node.url("/events?after=x"), ""), 400, "bad_request");
    // Probers add parameters of their own.
    for path in ["/livez?x=1", "/readyz?verbose", "/metrics?x=1&x=1&name[]=up"] {
        assert_eq!(call("GET", &node.url(path), "").status, 200, "{path}");
    }
    for path in ["/status?x=1", "/events?x=1"] {
        refused(&call("GET", &node.url(path), ""), 400, "bad_request");
    }
    for path in ["/", "/kv", "/nothing", "/members", "/members/4/promote"] {
        refused(&call("GET", &node.url(path), ""), 404, "not_found");
    }
    for (method, path) in [("POST", "/kv/k"), ("PUT", "/status"), ("DELETE", "/metrics"), ("POST", "/events")] {
        refused(&call(method, &node.url(path), "x"), 405, "method_not_allowed");
    }
    refused(&node.get("k"), 404, "not_found");
}

/// A value that is too large is refused from its head alone; one that does not say so, as soon as it shows; a
/// body that does not come, at the deadline. None of them is read to its end or applied.
#[test]
fn bodies_are_bounded() {
    let lab = Lab::three();
    let node = lab.node(1);
    let address = node.url("").replace("http://", "");
    let send = |head: &str, body: &[u8]| {
        let mut stream = TcpStream::connect(&address).expect("a connection");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.write_all(head.as_bytes()).expect("the head is sent");
        // The server may have hung up already: that is what is tested.
        let _ = stream.write_all(body);
        let (mut answer, began) = (Vec::new(), Instant::now());
        let _ = stream.read_to_end(&mut answer);
        assert!(began.elapsed() < TIMEOUT, "the connection is closed: what may still come is not read");
        String::from_utf8_lossy(&answer).into_owned()
    };

    let answer = send("PUT /kv/k HTTP/1.1\r\nhost: x\r\ncontent-length: 1048577\r\n\r\n", b"");
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"too_large\""), "{answer}");
    let answer = send("PUT /kv/k HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999\r\n\r\n", b"");
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"too_large\""), "{answer}");

    // Chunked, without end: 17 chunks of 64 KiB are one too many.
    let chunk = [b"10000\r\n".as_slice(), &[b'v'; 1 << 16], b"\r\n"].concat().repeat(17);
    let answer = send("PUT /kv/k HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", &chunk);
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"too_large\""), "{answer}");

    let began = Instant::now();
    let answer = send("PUT /kv/k?timeout_ms=300 HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n", b"half");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("\"bad_request\""), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(300), "not before the deadline");

    refused(&node.get("k"), 404, "not_found");
    // A polite client with a body that is too large hears why.
    refused(&call("PUT", &node.url("/kv/k"), vec![b'v'; (1 << 20) + 1]), 413, "too_large");
}

/// `/status`, `/livez`, `/readyz`, `/metrics`, and `actorum status` over them.
#[test]
fn the_node() {
    let lab = Lab::three();
    let leader = lab.leader();
    let index = done(&lab.node(leader).put("k", "v"), Value::Null);
    for id in [1, 2, 3] {
        let node = lab.node(id);
        node.wait_applied(index);
        let status = node.status();
        assert_eq!(status["id"], id);
        assert_eq!(status["role"], if id == leader { "leader" } else { "follower" });
        assert_eq!(status["leader"], leader);
        assert!(status["term"].as_u64() >= Some(1));
        let [first, last, commit, applied] = ["first_index", "last_index", "commit_index", "applied_index"]
            .map(|name| status[name].as_u64().expect(name));
        assert!(first <= index && index <= applied && applied <= commit && commit <= last, "{status}");
        assert!(status["snapshot_index"].is_u64());
        assert_eq!((&status["voters"], &status["learners"]), (&json!([1, 2, 3]), &json!([])));
        assert!(status["stopped"].is_null());

        let peers = status["peers"].as_object().expect("peers");
        let others: Vec<String> = [1, 2, 3].iter().filter(|other| **other != id).map(u64::to_string).collect();
        assert_eq!(peers.keys().collect::<Vec<_>>(), others.iter().collect::<Vec<_>>());
        for (other, peer) in peers {
            let other = lab.node(other.parse().expect("an id"));
            assert_eq!(peer["address"], other.listen.to_string());
            assert!(peer["match_index"].is_u64() && peer["state"].is_string() && peer["rtt_us"].is_u64(), "{peer}");
        }
        if id == leader {
            let caught_up = || {
                node.status()["peers"]
                    .as_object()?
                    .values()
                    .all(|p| p["match_index"].as_u64() >= Some(index))
                    .then_some(())
            };
            wait("the leader to know that everyone holds everything", caught_up);
            assert!(node.status()["peers"].as_object().expect("peers").values().all(|p| p["state"] == "replicate"));
        }
        assert_eq!(call("GET", &node.url("/livez"), "").status, 200);
        assert_eq!(call("GET", &node.url("/readyz"), "").status, 200);
        metrics(node, id == leader, index);
    }

    let mut args = vec!["status".to_owned()];
    args.extend([1, 2, 3].map(|id| lab.node(id).url("")));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let table = lab::run(&args);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.status.success(), "{text}");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NODE", "ROLE", "TERM", "LEADER", "COMMIT", "APPLIED", "LAG", "SNAPSHOT", "FIRST", "DISK"]);
    assert_eq!(rows[1..].iter().map(|row| row[0]).collect::<Vec<_>>(), ["1", "2", "3"]);
    assert_eq!(rows[1..].iter().filter(|row| row[1] == "leader").count(), 1, "{text}");
    let json: Value = serde_json::from_slice(&lab::run(&[&args[..], &["-o", "json"]].concat()).stdout).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(3));
    assert_eq!(json[2]["status"]["id"], 3);
}

/// Every sample belongs to a family with help and type, and the numbers are there and plausible.
fn metrics(node: &Node, leads: bool, index: u64) {
    let page = call("GET", &node.url("/metrics"), "");
    assert_eq!(page.status, 200);
    assert!(page.content_type.starts_with("text/plain; version=0.0.4"), "{}", page.content_type);
    let (mut helped, mut family, mut kind) = ("", "", "");
    for line in page.text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = rest.split(' ').next().expect("a name");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            (family, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(family, helped, "help stands before the type");
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            let name = name.split('{').next().expect("a name");
            let suffix = name.strip_prefix(family).expect("samples follow their family");
            assert!(if kind == "summary" { ["_sum", "_count"].contains(&suffix) } else { suffix.is_empty() }, "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "counters, and only they, end in _total: {line}");
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        }
    }
    let value = |name: &str| {
        let line = page.text.lines().find_map(|line| line.strip_prefix(&format!("actorum_{name} ")));
        line.unwrap_or_else(|| panic!("no {name}")).parse::<f64>().expect("a number")
    };
    assert_eq!(value("has_leader"), 1.0);
    assert_eq!(value("is_leader"), f64::from(u8::from(leads)));
    assert!(value("leader_changes_total") >= 1.0);
    assert!(value("commit_index") >= index as f64 && value("applied_index") >= index as f64);
    assert!(value("proposals_pending") >= 0.0 && value("proposals_failed_total") >= 0.0);
    assert!(!leads || value("proposals_applied_total") >= 1.0);
    assert!(value("fsync_seconds_count") >= 1.0 && value("fsync_seconds_sum") > 0.0);
    assert!(value("append_seconds_sum") >= value("fsync_seconds_sum"));
    assert!(value("peer_sent_bytes_total") > 0.0 && value("peer_received_bytes_total") > 0.0);
    for id in [1, 2, 3].into_iter().filter(|id| Some(*id) != node.status()["id"].as_u64()) {
        assert!(value(&format!("peer_round_trip_seconds{{peer=\"{id}\"}}")) >= 0.0);
    }
    for queue in ["in_flight", "queued", "unpersisted", "unapplied"] {
        assert!(value(&format!("queue_depth{{queue=\"{queue}\"}}")) >= 0.0);
    }
}

/// Events from now on and from an index on, in order and without gaps, on a node that does not lead.
#[test]
fn events() {
    let lab = Lab::three();
    let follower = lab.node(1 + lab.leader() % 3);
    let written: Vec<u64> = (0..5).map(|n| done(&follower.put(&format!("k{n}"), "old"), Value::Null)).collect();
    follower.wait_applied(written[4]);

    let mut now = Stream::open(&follower.url("/events"));
    let mut all = Stream::open(&follower.url("/events?after=0"));
    let mut some = Stream::open(&follower.url(&format!("/events?after={}", written[2])));
    let later: Vec<u64> = (0..5).map(|n| done(&follower.put(&format!("k{n}"), "new"), json!("old"))).collect();

    let read = |stream: &mut Stream, count: usize| -> Vec<u64> {
        (0..count)
            .map(|_| {
                let (id, event, data) = stream.next();
                assert_eq!((event.as_str(), &data["index"]), ("applied", &json!(id)));
                let value = if id <= written[4] { "old" } else { "new" };
                assert_eq!(data["command"]["put"]["value"], value, "{data}");
                assert!(data["term"].as_u64() >= Some(1));
                id
            })
            .collect()
    };
    assert_eq!(read(&mut now, 5), later);
    assert_eq!(read(&mut all, 10), [&written[..], &later[..]].concat());
    assert_eq!(read(&mut some, 7), [&written[3..], &later[..]].concat());

    // As a browser does that was cut off.
    let agent = ureq::Agent::new_with_defaults();
    let response = agent.get(follower.url("/events?after=0")).header("last-event-id", later[3].to_string()).call();
    let mut resumed = Stream(BufReader::new(Box::new(response.expect("a stream").into_body().into_reader())));
    assert_eq!(resumed.next().0, later[4]);

    // The same with the position, as its id was; and a position of another cluster, or one that no command has, is
    // answered.
    let cluster = follower.status()["cluster"].as_str().expect("a cluster").to_owned();
    let mut resumed = Stream::open(&follower.url(&format!("/events?after={cluster}:{}", later[3])));
    assert_eq!(resumed.next().0, later[4]);
    let position = format!("{cluster}:{}", later[3]);
    let response = agent.get(follower.url("/events?after=0")).header("last-event-id", position).call();
    let mut resumed = Stream(BufReader::new(Box::new(response.expect("a stream").into_body().into_reader())));
    assert_eq!(resumed.next().0, later[4]);
    let foreign = "0".repeat(32);
    for after in ["18446744073709551615", "18446744073709551614", &format!("{cluster}:18446744073709551615")] {
        // The node's own entries may be applied at any time.
        let applied = || follower.status()["applied_index"].as_u64().expect("an index");
        let before = applied();
        let answer = call("GET", &follower.url(&format!("/events?after={after}")), "");
        refused(&answer, 409, "future_position");
        let position = answer.body["position"].as_str().expect("a position");
        let index = position.strip_prefix(&format!("{cluster}:")).and_then(|index| index.parse().ok());
        assert!(index.is_some_and(|index| (before..=applied()).contains(&index)), "{position}");
    }
    refused(&call("GET", &follower.url(&format!("/events?after={foreign}:1")), ""), 409, "foreign_position");
    for after in ["18446744073709551616", "-1", "1:1", &format!("{cluster}:")] {
        refused(&call("GET", &follower.url(&format!("/events?after={after}")), ""), 400, "bad_request");
    }

    // What is applied now has its response; what is read back from the log has none.
    let live = done(&follower.put("live", "x"), Value::Null);
    let (id, _, data) = now.next();
    assert_eq!((id, &data["response"]), (live, &json!({ "done": { "previous": null } })));
    assert!(data["time_ms"].as_u64() > Some(1_700_000_000_000), "{data}");
    let (_, _, data) = Stream::open(&follower.url("/events?after=0")).next();
    assert!(data["response"].is_null(), "{data}");
}

/// A client that does not read fills its buffer, hears where it was left, and resumes there without a gap. Nobody else
/// is slowed.
#[test]
fn a_client_that_lags() {
    let mut lab = Lab::new(&[1]);
    lab.set("ACTORUM_SUBSCRIBER_BUFFER", "4");
    lab.found(&[1]);
    lab.leader();
    let node = lab.node(1);
    let mut slow = Stream::open(&node.url("/events?after=0"));
    // More than all buffers on the way hold together.
    let value = "v".repeat(1 << 18);
    let written: Vec<u64> = (0..100).map(|n| done(&node.put(&format!("k{n}"), &value), Value::Null)).collect();

    let mut seen = Vec::new();
    let resume_after = loop {
        match slow.next() {
            (id, event, _) if event == "applied" => seen.push(id),
            (id, event, data) => {
                assert_eq!((event.as_str(), &data["resume_after"]), ("lagged", &json!(id)));
                assert_eq!(
                    data["position"],
                    json!(format!("{}:{id}", node.status()["cluster"].as_str().expect("one")))
                );
                break id;
            }
        }
    };
    assert!(seen.len() < written.len(), "it lagged");
    assert_eq!(slow.0.read_line(&mut String::new()).expect("the end"), 0, "the stream ends with that");
    assert_eq!(seen.last().copied().unwrap_or(0), resume_after);
    let rest = written.len() - seen.len();
    let mut again = Stream::open(&node.url(&format!("/events?after={resume_after}")));
    // It may lag again: the buffer holds four.
    while seen.len() < written.len() {
        match again.next() {
            (id, event, _) if event == "applied" => seen.push(id),
            (_, _, data) => again = Stream::open(&node.url(&format!("/events?after={}", data["resume_after"]))),
        }
    }
    assert_eq!(seen, written, "no gap and no repeat, {rest} of them after the lag");
}

/// Members: added, promoted, demoted and removed through a follower, and what is refused.
#[test]
fn members() {
    let mut lab = Lab::three();
    lab.certify(&[4]);
    lab.start_waiting(4);
    let (four, leader) = (lab.node(4), lab.leader_of(&[1, 2, 3]));
    let admin = lab.node(1 + leader % 3);
    let post = |path: &str, body: Value| call("POST", &admin.admin_url(path), body.to_string());
    let learner = json!({ "id": 4, "address": four.listen.to_string(), "role": "learner" });

    // A node that waits is alive and not ready.
    assert_eq!(call("GET", &four.url("/livez"), "").status, 200);
    refused(&call("GET", &four.url("/readyz"), ""), 503, "not_a_member");

    refused(&call("POST", &admin.admin_url("/members"), "{"), 400, "bad_request");
    refused(&post("/members", json!({ "id": 4 })), 400, "bad_request");
    refused(&post("/members", json!({ "id": 4, "address": "x", "role": "learner" })), 400, "bad_request");
    refused(&post("/members", json!({ "id": 4, "address": "127.0.0.1:1", "role": "voter" })), 400, "bad_request");
    refused(&post("/members", json!({ "id": 0, "address": "127.0.0.1:1", "role": "learner" })), 400, "bad_request");
    refused(
        &post("/members", json!({ "id": 4, "address": "127.0.0.1:1", "role": "learner", "x": 1 })),
        400,
        "bad_request",
    );
    refused(&post("/members/4/promote", Value::Null), 400, "bad_request");
    refused(&post("/members/x/promote", Value::Null), 400, "bad_request");
    refused(&post("/members/4/crown", Value::Null), 404, "not_found");
    refused(&post("/members/4/promote?force=yes", Value::Null), 400, "bad_request");
    refused(&call("GET", &admin.admin_url("/members"), ""), 405, "method_not_allowed");
    refused(&call("GET", &admin.admin_url("/kv/k"), ""), 404, "not_found");
    refused(&call("POST", &admin.admin_url("/members?timeout_ms=0"), learner.to_string()), 400, "bad_request");
    refused(&call("POST", &admin.admin_url("/members"), " ".repeat(1 << 20)), 413, "too_large");

    let changed = |answer: HttpReply, voters: Value, learners: Value| {
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!((&answer.body["voters"], &answer.body["learners"]), (&voters, &learners));
    };
    changed(post("/members", learner.clone()), json!([1, 2, 3]), json!([4]));
    refused(&post("/members", learner.clone()), 400, "bad_request");
    wait("node 4 to be a learner", || (four.status()["role"] == "learner").then_some(()));
    changed(post("/members/4/promote", Value::Null), json!([1, 2, 3, 4]), json!([]));
    changed(post("/members/4/demote?force=true", Value::Null), json!([1, 2, 3]), json!([4]));
    changed(call("DELETE", &admin.admin_url("/members/4"), ""), json!([1, 2, 3]), json!([]));
    // An id is never used again.
    refused(&post("/members", learner), 400, "bad_request");
}

/// With `--admin-certs` the members API speaks TLS, and only to holders of a certificate of that authority.
#[test]
fn members_behind_certificates() {
    let mut lab = Lab::new(&[1, 2]);
    let strangers = Lab::new(&[1]);
    let certs = lab.path("certs");
    lab.with(&["--admin-certs", certs.join("node-1").to_str().expect("UTF-8")]);
    lab.found(&[1]);
    lab.leader();
    let address = lab.node(1).admin_address();
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).expect("a file");
    let ca = read(certs.join("ca/ca.pem"));
    let ask = |client: Option<std::path::PathBuf>| {
        let client = client.map(|dir| (read(dir.join("cert.pem")), read(dir.join("key.pem"))));
        let client = client.as_ref().map(|(cert, key)| (cert.as_str(), key.as_str()));
        lab::pki::tls_get(address, "/members", &ca, client)
    };

    let answer = ask(Some(certs.join("node-2"))).expect("a certificate of the authority opens");
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("method_not_allowed"), "{answer}");
    assert!(ask(None).is_err(), "no certificate");
    assert!(ask(Some(strangers.path("certs/node-1"))).is_err(), "another authority's certificate");
    assert!(try_call("GET", &lab.node(1).admin_url("/members"), b"").is_err(), "no TLS");
    assert_eq!(lab.node(1).put("k", "v").status, 200, "the public API is as it was");
}

/// One node down changes nothing for clients of the others; with two down nothing is acknowledged, and only
/// stale reads are answered; and when they are back, so is everything.
#[test]
fn nodes_down() {
    let mut lab = Lab::three();
    done(&lab.node(1).put("k", "three"), Value::Null);
    let leader = lab.leader();
    let (down, stays) = (1 + leader % 3, 1 + (leader + 1) % 3);

    lab.node_mut(down).kill();
    for id in [leader, stays] {
        assert_eq!(lab.node(id).put("k", "two").status, 200);
        assert_eq!(lab.node(id).get("k").body["value"], "two");
        assert_eq!(call("GET", &lab.node(id).url("/readyz"), "").status, 200);
    }
    let args = [1, 2, 3].map(|id| lab.node(id).url(""));
    let table = lab::run(&["status", &args[0], &args[1], &args[2]]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.status.success() && text.contains("unreachable") && text.contains("leader"), "{text}");

    lab.node_mut(leader).kill();
    let alone = lab.node(stays);
    let began = Instant::now();
    let write = call("PUT", &alone.url("/kv/k?timeout_ms=1000"), "one");
    // It may have been on its way to the leader when that died (unknown), or not: the code must fit the status.
    assert!([503, 504].contains(&write.status), "not acknowledged: {}", write.text);
    // How long ago the others were heard decides between the names of the reason.
    let unavailable = ["not_leader", "no_leader", "no_majority"];
    let fits = if write.status == 503 { unavailable.contains(&write.code()) } else { write.code() == "unknown" };
    assert!(fits, "{}", write.text);
    assert!(began.elapsed() < TIMEOUT / 3, "the deadline bounds it");
    let read = call("GET", &alone.url("/kv/k?timeout_ms=1000"), "");
    assert!(read.status == 503 && unavailable.contains(&read.code()), "{}", read.text);
    assert_eq!(alone.get_stale("k").body["value"], "two");
    wait("the node alone to know no leader", || alone.status()["leader"].is_null().then_some(()));
    assert_eq!(call("GET", &alone.url("/livez"), "").status, 200);
    wait("it to know that there is no majority", || {
        (call("GET", &alone.url("/readyz"), "").code() == "no_majority").then_some(())
    });
    refused(&call("GET", &alone.url("/readyz"), ""), 503, "no_majority");
    let write = call("PUT", &alone.url("/kv/fresh?timeout_ms=300"), "x");
    refused(&write, 503, "no_majority");
    let change = call("POST", &alone.admin_url("/members/1/demote?timeout_ms=500"), "");
    refused(&change, 503, "no_majority");

    lab.start(down);
    lab.start(leader);
    lab.leader();
    let node = lab.node(down);
    assert_eq!(node.put("k", "all").status, 200);
    assert_eq!(node.get("k").body["value"], "all");
    // What was refused was surely not applied.
    refused(&node.get("fresh"), 404, "not_found");
    assert!(try_call("GET", &lab.node(leader).url("/livez"), b"").is_ok());
}

/// The leader left alone, while it still believes to lead: what it appends is pending, so its outcome is unknown at
/// the deadline; a second membership change meets the first one; and at its bound it takes nothing more.
#[test]
fn the_leader_alone() {
    let mut lab = Lab::new(&[1, 2, 3, 4]);
    // It steps down after an election timeout without a majority: time enough for all that is asked of it here.
    lab.set("ACTORUM_ELECTION_MS", "4000");
    lab.set("ACTORUM_MAX_IN_FLIGHT", "1");
    lab.found(&[1, 2, 3]);
    let id = lab.leader();
    assert_eq!(lab.node(id).put("k", "before").status, 200);
    let others = [1, 2, 3].into_iter().filter(|other| *other != id);
    others.clone().for_each(|other| lab.node_mut(other).kill());
    let leader = lab.node(id);

    let write = call("PUT", &leader.url("/kv/k?timeout_ms=300"), "perhaps");
    refused(&write, 504, "unknown");
    assert_eq!(write.body["leader"], id, "it does not know better yet");
    let read = call("GET", &leader.url("/kv/k?timeout_ms=200"), "");
    // Which of the two depends on whether the followers were heard lately.
    assert!(read.status == 503 && ["deadline_exceeded", "no_majority"].contains(&read.code()), "{}", read.text);
    assert_eq!(leader.get_stale("k").body["value"], "before", "what is not committed is not seen");

    let member = json!({ "id": 4, "address": "127.0.0.1:1", "role": "learner" }).to_string();
    let add = |timeout: u64| call("POST", &leader.admin_url(&format!("/members?timeout_ms={timeout}")), &member);
    refused(&add(300), 504, "unknown");
    refused(&add(5000), 409, "in_progress");
    refused(&call("DELETE", &leader.admin_url("/members/2"), ""), 409, "in_progress");

    // The bound is one request at a time.
    let (url, in_flight) = (leader.url("/kv/hangs?timeout_ms=1500"), || leader.status()["queues"]["in_flight"].clone());
    wait("nothing to be in flight", || (in_flight() == 0).then_some(()));
    let hangs = thread::spawn(move || call("PUT", &url, "v"));
    wait("a request to be in flight", || (in_flight() == 1).then_some(()));
    refused(&leader.put("refused", "v"), 503, "busy");
    refused(&leader.get("k"), 503, "busy");
    refused(&call("DELETE", &leader.admin_url("/members/2"), ""), 503, "busy");
    refused(&leader.get_stale("k"), 503, "busy");
    assert_eq!(leader.status()["role"], "leader", "it has led until here");
    refused(&hangs.join().expect("a request"), 504, "unknown");

    others.for_each(|other| lab.start(other));
    let next = lab.leader();
    // What was refused was surely not applied; what is unknown may be there.
    refused(&lab.node(next).get("refused"), 404, "not_found");
    let read = lab.node(next).get("k");
    assert!(["before", "perhaps"].map(Value::from).contains(&read.body["value"]), "{}", read.text);
}
