//! Snapshots, backups and disaster recovery, with real processes: what a person types, what is said, and that the
//! clusters that come of it are whole ones.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::Output,
};

use crate::lab::{Lab, actorum, call, free_port, run, wait};
use serde_json::json;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asserts success, and gives what was said.
#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", stdout(output), String::from_utf8_lossy(&output.stderr));
    stdout(output)
}

/// Asserts a failure by its exit code and by words of its message.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.starts_with("error: "), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// As a person of that name.
fn as_ada(args: &[&str]) -> Output {
    actorum().args(args).env("USER", "ada").output().expect("the binary runs")
}

fn backup(lab: &Lab, id: u64, file: &Path, more: &[&str]) -> Output {
    let (url, file) = (lab.node(id).admin_url(""), text(file));
    let args: Vec<&str> = ["backup", &url, &file].into_iter().chain(more.iter().copied()).collect();
    run(&args)
}

/// Fifty keys, and the index of the last.
fn write(lab: &Lab, through: u64) -> u64 {
    let puts = (0..50).map(|n| lab.node(through).put(&format!("key-{n}"), &format!("value-{n}")));
    puts.map(|put| put.body["index"].as_u64().unwrap_or_else(|| panic!("{}", put.text))).max().expect("fifty")
}

fn holds_all(lab: &Lab, id: u64) {
    for n in 0..50 {
        let found = lab.node(id).get_stale(&format!("key-{n}"));
        assert_eq!(found.body["value"], format!("value-{n}"), "node {id}, key-{n}: {}", found.text);
    }
}

/// Two empty nodes join the cluster of the node `first`, and all three go on.
fn grow(lab: &mut Lab, first: u64, others: [u64; 2]) {
    for id in others {
        if !lab.path(&format!("certs/node-{id}")).exists() {
            lab.certify(&[id]);
        }
        lab.start_waiting(id);
        let member = json!({ "id": id, "address": lab.node(id).listen, "role": "learner" });
        let added = call("POST", &lab.node(first).admin_url("/members?timeout_ms=20000"), member.to_string());
        assert_eq!(added.status, 200, "{}", added.text);
        let promote = format!("/members/{id}/promote?timeout_ms=20000");
        wait(&format!("node {id} to be promoted"), || {
            (call("POST", &lab.node(first).admin_url(&promote), "").status == 200).then_some(())
        });
    }
    lab.leader_of(&[first, others[0], others[1]]);
    let put = lab.node(others[0]).put("new", "three nodes");
    assert_eq!(put.status, 200, "{}", put.text);
    let index = put.body["index"].as_u64().expect("an index");
    for id in [first, others[0], others[1]] {
        lab.node(id).wait_applied(index);
        holds_all(lab, id);
    }
    // Without the one that everything came from, two of three go on.
    lab.node_mut(first).kill();
    lab.leader_of(&others);
    assert_eq!(lab.node(others[1]).get("new").body["value"], "three nodes");
}

/// What both sides say of each other when one cluster is told of a node of another.
fn refuse_each_other(lab: &Lab, here: u64, old: u64) {
    let member = json!({ "id": old, "address": lab.node(old).listen, "role": "learner" });
    let added = call("POST", &lab.node(here).admin_url("/members?timeout_ms=20000"), member.to_string());
    assert_eq!(added.status, 200, "{}", added.text);
    wait("the old node to be refused by its cluster", || {
        let status = lab.node(here).try_status()?;
        let said = status["peers"][old.to_string()]["last_error"].as_str()?.to_owned();
        said.contains("belongs to cluster").then_some(())
    });
    let removed = call("DELETE", &lab.node(here).admin_url(&format!("/members/{old}?timeout_ms=20000")), "");
    assert_eq!(removed.status, 200, "{}", removed.text);
}

#[test]
fn a_snapshot_on_demand() {
    let lab = Lab::three();
    let index = write(&lab, 1);
    lab.node(2).wait_applied(index);
    let said = done(&run(&["snapshot", &lab.node(2).admin_url("/")]));
    assert!(said.starts_with("snapshot at index ") && said.contains(" in ") && said.ends_with(" s\n"), "{said}");
    let status = lab.node(2).status();
    assert!(status["snapshot_index"].as_u64() >= Some(index), "{status}");
    assert_eq!(status["snapshots"]["newest"]["index"], status["snapshot_index"]);
    assert_eq!(lab.node(1).status()["snapshot_index"], 1, "the others take their own");
    let table = done(&run(&["status", &lab.node(2).url("")]));
    let newest = status["snapshot_index"].to_string();
    assert!(table.lines().nth(1).expect("a row").split_whitespace().any(|cell| cell == newest), "{table}");
    let metrics = call("GET", &lab.node(2).url("/metrics"), "").text;
    assert!(metrics.contains(&format!("\nactorum_snapshot_index {newest}\n")), "{metrics}");
    assert!(metrics.contains("\nactorum_snapshots_built_total 1\n"), "{metrics}");

    // Asked at the wrong door, and where nobody is.
    refused(&run(&["snapshot", &lab.node(2).url("")]), 1, &["there is no /snapshot", "--admin address"]);
    refused(&run(&["snapshot", "127.0.0.1:1"]), 1, &["127.0.0.1:1"]);
    refused(&run(&["snapshot", "https://127.0.0.1:1"]), 2, &["asks for certificates"]);
    let answer = call("GET", &lab.node(2).admin_url("/snapshot"), "");
    assert_eq!((answer.status, answer.code()), (405, "method_not_allowed"));
    let answer = call("GET", &lab.node(2).admin_url("/backup?after=9"), "");
    assert_eq!((answer.status, answer.code()), (400, "bad_request"));
    assert_eq!(call("GET", &lab.node(2).admin_url("/status"), "").body["id"], 2);
}

#[test]
fn a_backup_becomes_a_new_cluster_that_the_old_nodes_cannot_join() {
    let mut lab = Lab::three();
    let index = write(&lab, 1);
    lab.node(3).wait_applied(index);
    let file = lab.path("monday.actorum");
    let said = done(&backup(&lab, 3, &file, &[]));
    assert!(said.contains("index ") && said.contains("BLAKE3 ") && said.contains("voters 1 2 3"), "{said}");
    let names = || fs::read_dir(file.parent().expect("a parent")).expect("a directory").flatten();
    assert!(!names().any(|entry| entry.file_name().to_string_lossy().contains("partial")));
    refused(&backup(&lab, 3, &file, &[]), 1, &["monday.actorum exists already", "--force"]);
    done(&backup(&lab, 2, &file, &["--force"]));
    refused(&backup(&lab, 2, &lab.path(""), &[]), 2, &["is a directory"]);
    refused(&backup(&lab, 2, &lab.path("nowhere/file"), &[]), 1, &["nowhere/file.partial"]);

    let (data, address) = (lab.path("data-4"), free_port());
    let (file, dir, listen) = (text(&file), text(&data), address.to_string());
    let restore =
        |data: &str, address: &str| as_ada(&["restore", &file, "--data", data, "--id", "4", "--address", address]);
    refused(&restore(&text(&lab.node(1).data), &listen), 1, &["data-1 is not empty"]);
    refused(&restore(&dir, "nowhere"), 1, &["HOST:PORT"]);
    assert!(!data.exists());
    let said = done(&restore(&dir, &listen));
    assert!(
        said.contains("begins with node 4") && said.contains("what may be lost: ") && said.contains("--wait"),
        "{said}"
    );
    refused(&restore(&dir, &listen), 1, &["data-4 is not empty"]);

    lab.certify(&[4]);
    lab.define(4, address, vec!["--wait".to_owned()]);
    lab.start(4);
    assert_eq!(lab.leader_of(&[4]), 4);
    holds_all(&lab, 4);
    let (old, new) = (lab.node(1).status(), lab.node(4).status());
    assert_ne!(old["cluster"], new["cluster"]);
    assert_eq!((&new["voters"], &new["learners"]), (&json!([4]), &json!([])));
    // Who follows the events of the old cluster is told that this is another one, also by an index that both have.
    let seen = format!("{}:{}", old["cluster"].as_str().expect("a cluster"), old["applied_index"]);
    let foreign = call("GET", &lab.node(4).url(&format!("/events?after={seen}")), "");
    assert_eq!((foreign.status, foreign.code()), (409, "foreign_position"), "{}", foreign.text);
    let here = format!("{}:{}", new["cluster"].as_str().expect("a cluster"), new["applied_index"]);
    assert_eq!(foreign.body["position"], json!(here), "where to begin again");
    refuse_each_other(&lab, 4, 1);
    assert_eq!(lab.node(1).put("old", "goes on").status, 200);
    grow(&mut lab, 4, [5, 6]);
    assert_eq!(lab.node(5).get("old").status, 404, "they are two clusters");

    let said = done(&run(&["inspect", &dir, "--verify"]));
    for words in ["restored from backup by ada", "with members 1 2 3", "what may be lost: ", ", verified"] {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}

#[test]
fn a_file_that_is_no_backup_is_refused() {
    let lab = Lab::three();
    let index = write(&lab, 1);
    lab.node(1).wait_applied(index);
    let file = lab.path("good");
    done(&backup(&lab, 1, &file, &[]));
    let good = fs::read(&file).expect("a backup");
    let (bad, data) = (lab.path("bad"), lab.path("data-9"));
    let refuses = |content: &[u8], words: &[&str]| {
        fs::write(&bad, content).expect("a file");
        let args = ["restore", &text(&bad), "--data", &text(&data), "--id", "9", "--address", "127.0.0.1:7009"];
        refused(&as_ada(&args), 1, &[&["bad cannot be restored from"], words].concat());
        assert!(!data.exists(), "nothing was made");
    };
    refuses(b"{\"hello\": 1}", &["it is not a snapshot of actorum"]);
    refuses(&good[..good.len() - 7], &["truncated"]);
    refuses(&[&good[..], b"more"].concat(), &["something follows its end"]);
    let flipped = |at: usize| {
        let mut content = good.clone();
        content[at] ^= 0x10;
        content
    };
    refuses(&flipped(good.len() / 2), &["damaged"]);
    refuses(&flipped(good.len() - 1), &["damaged"]);
    refuses(&flipped(18), &["use the newer version"]);
}

/// Who reads slowly holds a place and a few pieces, not the file; when all places are taken the next is told so.
#[test]
fn backups_that_nobody_reads() {
    let lab = Lab::three();
    // Larger than what sockets hold, and not to be compressed.
    let mut rng = 7u64;
    let mut noise = || {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{rng:016x}")
    };
    for n in 0..48 {
        let value: String = (0..65_000).map(|_| noise()).collect();
        let put = lab.node(1).put(&format!("large-{n}"), &value);
        assert_eq!(put.status, 200, "{}", put.text);
    }
    let ask = || {
        let mut stream = std::net::TcpStream::connect(lab.node(1).admin_address()).expect("a connection");
        write!(stream, "GET /backup HTTP/1.1\r\nhost: n\r\n\r\n").expect("sent");
        let mut line = [0; 12];
        stream.read_exact(&mut line).expect("an answer");
        (stream, String::from_utf8_lossy(&line).into_owned())
    };
    let slow: Vec<_> = (0..4).map(|_| ask()).collect();
    assert!(slow.iter().all(|(_, line)| line == "HTTP/1.1 200"), "{slow:?}");
    let (_, fifth) = ask();
    assert_eq!(fifth, "HTTP/1.1 503");
    assert!(call("GET", &lab.node(1).url("/metrics"), "").text.contains("\nactorum_backups 4\n"));
    refused(&backup(&lab, 1, &lab.path("b"), &[]), 1, &["4 backups are being sent already"]);
    assert_eq!(lab.node(1).put("k", "goes on").status, 200);
    drop(slow);
    wait("a place", || backup(&lab, 1, &lab.path("b"), &["--force"]).status.success().then_some(()));
}

/// A snapshot that is not waited for goes on, and whoever asked is told so; a backup is not waited for either.
#[test]
fn a_snapshot_within_a_deadline() {
    let mut lab = Lab::new(&[1]);
    lab.found(&[1]);
    lab.leader();
    let node = lab.node(1);
    let ask = |query: &str| call("POST", &node.admin_url(&format!("/snapshot{query}")), "");
    for query in ["?timeout_ms=0", "?timeout_ms=600001", "?timeout_ms=x", "?within=1"] {
        assert_eq!(ask(query).code(), "bad_request", "{query}");
        assert_eq!(call("GET", &node.admin_url(&format!("/backup{query}")), "").code(), "bad_request", "{query}");
    }
    // As large a state as takes a while on this machine: far longer than what is asked for below.
    let mut rng = 7u64;
    let mut noise = || {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{rng:016x}")
    };
    for round in 0.. {
        for n in 0..32 {
            let value: String = (0..65_000).map(|_| noise()).collect();
            assert_eq!(node.put(&format!("large-{round}-{n}"), &value).status, 200);
        }
        let taken = ask("");
        assert_eq!(taken.status, 200, "{}", taken.text);
        if taken.body["took_ms"].as_u64() > Some(500) {
            break;
        }
    }
    for (method, path) in [("POST", "/snapshot"), ("GET", "/backup")] {
        // On a machine that does other things the answer may come late, and the snapshot be there first, or come before
        // the snapshot has begun: then it is asked again.
        wait("an answer before the snapshot is there", || {
            let index = node.put("k", path).body["index"].as_u64().expect("an index");
            let answer = call(method, &node.admin_url(&format!("{path}?timeout_ms=20")), "");
            assert_eq!((answer.status, answer.code()), (503, "deadline_exceeded"), "{method} {path}: {}", answer.text);
            let message = answer.body["message"].as_str().expect("a sentence");
            let is_there = || node.status()["snapshots"]["newest"]["index"].as_u64() >= Some(index);
            let in_time = message.contains("The snapshot goes on") && !is_there();
            wait("the snapshot that goes on", || is_there().then_some(()));
            in_time.then_some(())
        });
    }
    // The tool says the same, and asks for as long as it was told to.
    let url = node.admin_url("");
    done(&run(&["snapshot", &url, "--timeout", "600"]));
    assert_eq!(run(&["snapshot", &url, "--timeout", "0"]).status.code(), Some(2));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let slow = listener.local_addr().expect("an address").to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut asked = [0; 1024];
        let got = stream.read(&mut asked).expect("a request");
        let late = "late. The snapshot goes on";
        let body = json!({ "error": "deadline_exceeded", "message": late, "leader": 1 }).to_string();
        let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close";
        write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("sent");
        String::from_utf8_lossy(&asked[..got]).into_owned()
    });
    refused(&run(&["snapshot", &slow, "--timeout", "7"]), 1, &[&slow, "The snapshot goes on"]);
    let asked = server.join().expect("it served");
    assert!(asked.starts_with("POST /snapshot?timeout_ms=7000 HTTP/1.1"), "{asked}");
}

#[test]
fn a_lost_majority() {
    let mut lab = Lab::three();
    write(&lab, 1);
    // Node 3 misses what comes last.
    lab.node_mut(3).terminate();
    let put = lab.node(1).put("late", "news");
    assert_eq!(put.status, 200, "{}", put.text);
    let index = put.body["index"].as_u64().expect("an index");
    for id in [1, 2] {
        lab.node(id).wait_applied(index);
    }
    let (first, third) = (text(&lab.node(1).data), text(&lab.node(3).data));
    let recover = |more: &[&str]| {
        let args = ["recover", "--data", &third, "--data", &first];
        as_ada(&args.into_iter().chain(more.iter().copied()).collect::<Vec<_>>())
    };
    let running = recover(&[]);
    refused(&running, 1, &["data-1 is in use by process"]);
    refused(&recover(&["--accept-loss", "9"]), 1, &["data-1 is in use by process"]);
    lab.node_mut(1).terminate();
    // The worst: this one is gone for good.
    lab.node_mut(2).kill();
    fs::remove_dir_all(&lab.node(2).data).expect("gone");

    let shown = recover(&[]);
    let table = stdout(&shown);
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[0].contains("ENDS AT") && rows[1].ends_with("data-1") && rows[2].ends_with("data-3"), "{table}");
    let asked = String::from_utf8_lossy(&shown.stderr).into_owned();
    refused(&shown, 1, &["nothing was changed", "data-1", "--accept-loss"]);
    let last = asked.trim().rsplit(' ').next().expect("an index").to_owned();
    // Not by a number that was not read off, nor the one that holds less without its own.
    refused(&recover(&["--accept-loss", "1"]), 1, &[&format!("ends at index {last}, not at 1")]);
    let less = recover(&["--choose", "3"]);
    refused(&less, 1, &["nothing was changed", "data-1 HOLDS MORE"]);
    refused(
        &recover(&["--choose", "3", "--accept-loss", &last]),
        1,
        &["data-3 ends at index", &format!("not at {last}")],
    );
    refused(&recover(&["--choose", "7"]), 2, &["node 7's"]);
    let listen = lab.node(1).listen.to_string();
    let address = listen.replace("127.0.0.1", "localhost");
    let said = done(&recover(&["--accept-loss", &last, "--address", &address]));
    assert!(said.contains(&format!("at {address}")) && !said.contains(&listen), "{said}");
    assert!(said.contains("begins with node 1") && said.contains("what may be lost: "), "{said}");

    // By the command that it always had.
    lab.start(1);
    assert_eq!(lab.leader_of(&[1]), 1);
    holds_all(&lab, 1);
    assert_eq!(lab.node(1).get("late").body["value"], "news", "what was acknowledged");
    assert_eq!(lab.node(1).status()["voters"], json!([1]));
    // The one that was left out comes back, and has no say.
    lab.start(3);
    refuse_each_other(&lab, 1, 3);
    assert!(lab.node(3).status()["leader"].is_null());
    lab.node_mut(3).terminate();
    // An id of the old cluster is as good as any for a new machine.
    grow(&mut lab, 1, [2, 6]);

    let said = done(&run(&["inspect", &first]));
    for words in [
        "recovered after the loss of a majority by ada, 20",
        " UTC",
        "what may be lost: what was acknowledged in cluster",
    ] {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}
