//! Whole clusters of real processes: killed, wiped, misconfigured, grown and shrunk.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use crate::lab::{self, Lab, TIMEOUT, call, free_port, try_call, wait};
use crate::load::{Acknowledged, History, Load, judge};
use crate::rng::Rng;
use serde_json::{Value, json};

/// Every acknowledged write is in the node's own state.
fn holds_everything(lab: &Lab, id: u64, acknowledged: &Acknowledged) {
    let node = lab.node(id);
    node.wait_applied(acknowledged.values().copied().max().unwrap_or(0));
    for key in acknowledged.keys() {
        let read = node.get_stale(key);
        assert_eq!((read.status, read.body["value"].as_str()), (200, Some(key.as_str())), "{key} on node {id}");
    }
}

/// All nodes have applied the same, everything acknowledged in it, and nothing twice.
fn applied_exactly_once(lab: &Lab, acknowledged: &Acknowledged) {
    judge(lab, acknowledged, &mut History::default(), "end", |_| 0);
}

/// Leaders die by SIGKILL under load, at moments drawn by lot, and come back. Nothing acknowledged is lost, no
/// two acknowledged writes share an index, and nothing is applied twice, answered or not.
#[test]
fn leaders_die_under_load() {
    let mut rng = Rng::new();
    let mut lab = Lab::three();
    let load = Load::start(&lab, &[1, 2, 3], 3);
    for _ in 0..3 {
        load.wait_for(20 + rng.below(100));
        let leader = lab.leader();
        lab.node_mut(leader).kill();
        let survivors: Vec<u64> = lab.running().map(|node| node.id).collect();
        let next = lab.leader_of(&survivors);
        assert_ne!(next, leader);
        lab.start(leader);
    }
    lab.leader();
    let acknowledged = load.finish();
    println!("{} writes acknowledged", acknowledged.len());
    let mut indexes: Vec<u64> = acknowledged.values().copied().collect();
    indexes.sort();
    indexes.dedup();
    assert_eq!(indexes.len(), acknowledged.len(), "an index is acknowledged once");
    for id in [1, 2, 3] {
        holds_everything(&lab, id, &acknowledged);
    }
    applied_exactly_once(&lab, &acknowledged);
}

/// All three die at once, and come back with all that was acknowledged.
#[test]
fn all_die_at_once() {
    let mut rng = Rng::new();
    let mut lab = Lab::three();
    let load = Load::start(&lab, &[1, 2, 3], 3);
    load.wait_for(20 + rng.below(100));
    for id in [1, 2, 3] {
        lab.node_mut(id).kill();
    }
    let acknowledged = load.finish();
    for id in [1, 2, 3] {
        lab.start(id);
    }
    lab.leader();
    for id in [1, 2, 3] {
        holds_everything(&lab, id, &acknowledged);
    }
    applied_exactly_once(&lab, &acknowledged);
}

/// A fourth process waits, is added as a learner under load, promoted, and holds everything; then the leader is
/// removed, steps down, and the others go on without it.
#[test]
fn a_fourth_joins_and_the_leader_leaves() {
    let mut lab = Lab::three();
    lab.certify(&[4]);
    let load = Load::start(&lab, &[1, 2, 3], 3);
    lab.start_waiting(4);
    assert_eq!(lab.node(4).status()["formed"], "waiting");

    let leader = lab.leader_of(&[1, 2, 3]);
    let member = json!({ "id": 4, "address": lab.node(4).listen.to_string(), "role": "learner" });
    let added = call("POST", &lab.node(1).admin_url("/members?timeout_ms=20000"), member.to_string());
    assert_eq!((added.status, &added.body["learners"]), (200, &json!([4])), "{}", added.text);
    wait("node 4 to hear the leader", || (lab.node(4).status()["leader"] == leader).then_some(()));
    let promoted = call("POST", &lab.node(2).admin_url("/members/4/promote?timeout_ms=20000"), "");
    assert_eq!((promoted.status, &promoted.body["voters"]), (200, &json!([1, 2, 3, 4])), "{}", promoted.text);
    let before = load.finish();
    holds_everything(&lab, 4, &before);

    let leader = lab.leader();
    let others: Vec<u64> = [1, 2, 3, 4].into_iter().filter(|id| *id != leader).collect();
    let removed = call("DELETE", &lab.node(leader).admin_url(&format!("/members/{leader}?timeout_ms=20000")), "");
    assert_eq!((removed.status, &removed.body["voters"]), (200, &json!(others)), "{}", removed.text);
    let next = lab.leader_of(&others);
    assert_ne!(next, leader);
    wait("the removed leader to step down", || {
        // It may also have stopped: it has no part in the cluster any more.
        lab.node(leader).try_status().is_none_or(|s| s["role"] != "leader").then_some(())
    });
    let load = Load::start(&lab, &others, 3);
    load.wait_for(20);
    let after = load.finish();
    for id in others {
        holds_everything(&lab, id, &before);
        holds_everything(&lab, id, &after);
    }
}

/// The sixth promise. An entry is acknowledged by nodes 1 and 2; 2 loses its disk and is started by the same
/// command while 1 is down. With 3, which never saw the entry, it would make a majority that knows nothing: so it
/// refuses with a specific error. When 1 is back, nothing is lost.
#[test]
fn a_wiped_founder_is_refused() {
    let mut lab = Lab::three();
    assert_eq!(lab.node(1).put("before", "x").status, 200);
    lab.node_mut(3).kill();
    lab.leader_of(&[1, 2]);
    let acknowledged = lab.node(1).put("entry", "kept");
    assert_eq!(acknowledged.status, 200, "{}", acknowledged.text);

    lab.node_mut(1).kill();
    lab.node_mut(2).kill();
    let wiped = lab.node(2).data.clone();
    fs::remove_dir_all(&wiped).expect("the directory of node 2");
    lab.start(3);
    lab.launch(2);

    // It may end with that error, or say it in its status; but say it, it must, and lead or vote it must not.
    let refusal = wait("node 2 to be refused with an error that says why", || {
        let words = lab.node(2).last_words(40).to_lowercase();
        ["incarnation", "lost its disk", "wiped", "formed without", "another life", "already formed"]
            .into_iter()
            .find(|word| words.contains(word))
    });
    println!("node 2 was refused: its log speaks of `{refusal}`\n{}", lab.node(2).last_words(5));
    thread::sleep(Duration::from_secs(3)); // some election timeouts: there must be no leader in any of them
    let three = lab.node(3).status();
    assert_ne!(three["role"], "leader", "{three}");
    assert!(three["leader"].is_null(), "{three}");
    assert_ne!(try_call("PUT", &lab.node(3).url("/kv/entry?timeout_ms=500"), b"lost").map(|a| a.status), Ok(200));

    lab.start(1);
    lab.leader_of(&[1, 3]);
    assert_eq!(lab.node(3).get("entry").body["value"], "kept");
}

/// A node that is not among the founders it was given does not start, and the message says what to change.
#[test]
fn an_id_must_be_among_its_founders() {
    let mut lab = Lab::new(&[1, 2, 3]);
    let peers = ["--peer", "2=127.0.0.1:7002", "--peer", "3=127.0.0.1:7003"].map(str::to_owned).to_vec();
    lab.define(1, free_port(), peers);
    lab.launch(1);
    let ended = lab.node_mut(1).wait_until_it_ends();
    assert_eq!(ended.code(), Some(1), "{}", lab.node(1).last_words(5));
    let words = lab.node(1).last_words(5);
    assert!(words.contains("error: ") && words.contains("founder") && words.contains("node 1"), "{words}");
}

/// Founders that were given different lists never form a cluster, and say whose list differs.
#[test]
fn founders_must_agree() {
    let mut lab = Lab::new(&[1, 2, 3]);
    let listen = [1, 2, 3].map(|id| (id, free_port()));
    let peers = |ids: &[u64]| -> Vec<String> {
        let of = |(id, address): &(u64, _)| ids.contains(id).then(|| ["--peer".to_owned(), format!("{id}={address}")]);
        listen.iter().filter_map(of).flatten().collect()
    };
    let lists: [&[u64]; 3] = [&[1, 2], &[1, 2, 3], &[1, 2, 3]];
    for ((id, address), list) in listen.iter().zip(lists) {
        lab.define(*id, *address, peers(list));
        lab.launch(*id);
    }
    wait("a founder to name the difference", || {
        [1, 2, 3].into_iter().find(|id| lab.node(*id).last_words(60).contains("with the same list")).map(drop)
    });
    thread::sleep(Duration::from_secs(2)); // some election timeouts
    for id in [1, 2, 3] {
        assert!(
            lab.node(id).try_status().is_none_or(|s| s["leader"].is_null()),
            "nobody leads a cluster of disagreement"
        );
    }
}

/// Two processes on one directory: the second names the first.
#[test]
fn a_directory_has_one_holder() {
    let lab = Lab::three();
    let holder = lab.node(1);
    let mut args = vec!["serve".to_owned()];
    args.extend(holder.arguments());
    // Other ports: the directory is what is in the way.
    for flag in ["--http", "--admin", "--listen"] {
        let at = args.iter().position(|arg| arg == flag).expect(flag);
        args[at + 1] = "127.0.0.1:0".to_owned();
    }
    args.extend(lab.founders().into_iter().flat_map(|peer| ["--peer".to_owned(), peer]));
    let second = lab::actorum().args(&args).output().expect("it runs");
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{message}");
    assert!(message.contains(&holder.pid().to_string()), "it names process {}: {message}", holder.pid());
    assert!(message.contains(holder.data.to_str().expect("UTF-8")), "{message}");

    let inspected = lab::run(&["inspect", holder.data.to_str().expect("UTF-8")]);
    let message = String::from_utf8_lossy(&inspected.stderr).into_owned();
    assert_eq!(inspected.status.code(), Some(1), "{message}");
    assert!(message.contains(&holder.pid().to_string()), "{message}");
    assert_eq!(holder.get("nothing").status, 404, "the holder goes on");
}

/// SIGTERM ends a node in order: exit code 0, the data complete, a restart like any other.
#[test]
fn sigterm_ends_in_order() {
    let mut lab = Lab::three();
    assert_eq!(lab.node(2).put("k", "v").status, 200);
    for id in [1, 2, 3] {
        let ended = lab.node_mut(id).terminate();
        assert_eq!(ended.code(), Some(0), "node {id}: {}", lab.node(id).last_words(10));
        assert!(lab.node(id).last_words(3).contains("closed"), "{}", lab.node(id).last_words(3));
    }
    for id in [1, 2, 3] {
        lab.start(id);
    }
    lab.leader();
    assert_eq!(lab.node(3).get("k").body["value"], "v");
}

/// Ctrl-C does the same. Whoever waits when a node is told to end has an answer before it ends (the fourth promise):
/// the cause, and whether it may have been done. Streams end in order.
#[test]
fn who_waits_is_answered_before_the_end() {
    let mut lab = Lab::three();
    let leader = lab.leader();
    assert_eq!(lab.node(leader).put("first", "v").status, 200);
    let connect = |request: &str| {
        let address = lab.node(leader).url("").trim_start_matches("http://").to_owned();
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.write_all(request.as_bytes()).expect("a request");
        stream
    };
    let mut events = connect("GET /events?after=0 HTTP/1.1\r\nhost: n\r\n\r\n");
    let mut told = [0; 4096];
    assert!(events.read(&mut told).expect("its head") > 0);
    let mut half = connect("PUT /kv/half?timeout_ms=60000 HTTP/1.1\r\nhost: n\r\ncontent-length: 10\r\n\r\nhalf");
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    others.iter().for_each(|id| lab.node(*id).freeze());
    let mut asked = Vec::new();
    for n in 0..5 {
        // Some have a deadline far beyond the end, and some one that comes about with it.
        for within in [60_000, 5_000] {
            let url = lab.node(leader).url(&format!("/kv/{n}-{within}?timeout_ms={within}"));
            asked.push(("PUT", url, "v".to_owned()));
        }
        asked.push(("GET", lab.node(leader).url("/kv/first?timeout_ms=60000"), String::new()));
    }
    let member = json!({ "id": 4, "address": free_port().to_string(), "role": "learner" }).to_string();
    asked.push(("POST", lab.node(leader).admin_url("/members?timeout_ms=60000"), member));
    let count = asked.len();
    let waiting: Vec<_> = asked
        .into_iter()
        .map(|(method, url, body)| thread::spawn(move || (method, try_call(method, &url, body.as_bytes()), url)))
        .collect();
    wait("all of them to wait", || {
        (lab.node(leader).status()["queues"]["in_flight"].as_u64() >= Some(count as u64)).then_some(())
    });
    assert!(lab.node_mut(leader).terminate().success(), "{}", lab.node(leader).last_words(5));
    for (method, answer, url) in waiting.into_iter().map(|waiting| waiting.join().expect("no panic")) {
        let answer = answer.unwrap_or_else(|error| panic!("{method} {url} had no answer: {error}"));
        let message = answer.body["message"].as_str().unwrap_or_default();
        let expected = if method == "GET" { 503 } else { 504 };
        // A change that no leader has taken up is surely not made.
        assert!(answer.status == expected || method == "POST" && answer.status == 503, "{method} {url}: {answer:?}");
        assert!(!message.is_empty(), "{answer:?}");
        if method != "GET" && url.ends_with("60000") {
            assert!(message.contains("shut down"), "{method} {url}: {message}");
        }
    }
    let mut rest = String::new();
    half.read_to_string(&mut rest).expect("an answer, and the end");
    assert!(rest.starts_with("HTTP/1.1 503 ") && rest.contains("shut down"), "{rest}");
    let mut rest = String::new();
    events.read_to_string(&mut rest).expect("its end");
    assert!(rest.ends_with("0\r\n\r\n"), "the stream ended in order: {rest}");
    others.iter().for_each(|id| lab.node(*id).send("CONT"));
}

#[test]
fn sigint_ends_in_order() {
    let mut lab = Lab::new(&[1]);
    lab.found(&[1]);
    lab.leader();
    assert_eq!(lab.node(1).put("k", "v").status, 200);
    let ended = lab.node_mut(1).signal("INT");
    let words = lab.node(1).last_words(5);
    assert_eq!(ended.code(), Some(0), "{words}");
    assert!(words.contains("SIGINT: shutting down") && words.contains("node 1 is closed"), "{words}");
    lab.start(1);
    lab.leader();
    assert_eq!(lab.node(1).get("k").body["value"], "v");
}

/// A node started by hand does not care about its standard input, one that the demo starts ends with it.
#[test]
fn standard_input() {
    let mut by_hand = Lab::new(&[1]);
    by_hand.by_hand();
    by_hand.found(&[1]);
    by_hand.leader();
    assert_eq!(by_hand.node(1).put("k", "v").status, 200);

    let mut tied = Lab::new(&[1]);
    tied.found(&[1]);
    tied.node_mut(1).close_stdin();
    let ended = tied.node_mut(1).wait_until_it_ends();
    let words = tied.node(1).last_words(5);
    assert_eq!(ended.code(), Some(0), "{words}");
    assert!(words.contains("standard input is closed"), "{words}");

    // The first one has had nothing on its standard input for longer.
    assert_eq!(by_hand.node(1).put("k", "w").body["previous"], "v");
    assert_eq!(call("GET", &by_hand.node(1).url("/livez"), "").status, 200);
    let ended = by_hand.node_mut(1).terminate();
    let words = by_hand.node(1).last_words(5);
    assert_eq!(ended.code(), Some(0), "{words}");
    assert!(words.contains("SIGTERM") && !words.contains("standard input"), "{words}");
}

/// `--log-format json`: whatever a node says from its start to its end, every line is an object with time, level and
/// message.
#[test]
fn logs_as_json() {
    let mut lab = Lab::new(&[1, 2, 3]);
    lab.with(&["--log-format", "json"]);
    lab.set("ACTORUM_LOG", "debug");
    lab.found(&[1, 2, 3]);
    lab.leader();
    assert_eq!(lab.node(1).put("k", "a \"quoted\"\nvalue").status, 200);
    // A peer that is gone is worth a warning.
    lab.node_mut(2).kill();
    lab.leader();
    assert_eq!(lab.node_mut(1).terminate().code(), Some(0));
    let log = lab.node(1).last_words(usize::MAX);
    let lines: Vec<Value> =
        log.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
    for line in &lines {
        let texts = ["timestamp", "level", "message", "target"].map(|name| line[name].is_string());
        assert_eq!(texts, [true; 4], "{line}");
    }
    let says = |words: &str| lines.iter().any(|line| line["message"].as_str().is_some_and(|m| m.contains(words)));
    assert!(says("http://127.0.0.1:") && says("SIGTERM") && says("closed"), "{log}");
}

/// What lies in a stopped node's directory can be read, and reading changes nothing.
#[test]
fn a_stopped_node_can_be_inspected() {
    let mut lab = Lab::three();
    let indexes: Vec<u64> = (0..3)
        .map(|n| lab.node(1).put(&format!("key-{n}"), "value").body["index"].as_u64().expect("an index"))
        .collect();
    lab.node(1).wait_applied(indexes[2]);
    let term = lab.node(1).status()["term"].clone();
    assert_eq!(lab.node_mut(1).terminate().code(), Some(0));

    let dir = lab.node(1).data.clone();
    let before = contents(&dir);
    let path = dir.to_str().expect("UTF-8");
    let entries = format!("{}..{}", indexes[0], indexes[2] + 1);
    let inspected = lab::run(&["inspect", path, "--entries", &entries, "--verify"]);
    let text = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(inspected.status.success(), "{text}{}", String::from_utf8_lossy(&inspected.stderr));
    assert!(text.contains("node 1") && text.contains(&format!("term {term}")), "{text}");
    assert!(text.contains("voters 1 2 3"), "{text}");
    for (n, index) in indexes.iter().enumerate() {
        let line = text.lines().find(|line| line.trim_start().starts_with(&format!("{index}@")));
        let line = line.unwrap_or_else(|| panic!("no entry {index} in: {text}"));
        assert!(line.contains(&format!("key-{n}")) && line.contains("value"), "{line}");
    }
    assert_eq!(contents(&dir), before, "not a byte was changed");
    let json = lab::run(&["status", &lab.node(2).url(""), "-o", "json"]);
    assert_eq!(serde_json::from_slice::<Value>(&json.stdout).expect("JSON")[0]["status"]["id"], 2);
}

/// Every file below a directory, with its bytes.
fn contents(dir: &std::path::Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.extend(contents(&path)),
            false => drop(files.insert(path.clone(), fs::read(&path).expect("a file"))),
        }
    }
    files
}
