//! The command line by itself: help, exit codes, certificates, and mistakes that are named before anything runs.

use std::{fs, os::unix::fs::PermissionsExt, process::Output};

use crate::lab::{self, Lab, actorum, run};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asserts a failure by its exit code and by words of its message, which goes to standard error as `error: ...`.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.starts_with("error: "), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert_eq!(stdout(output), "", "nothing on standard output");
}

#[test]
fn help_and_version() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    for command in
        ["certs", "serve", "status", "snapshot", "backup", "inspect", "compact", "restore", "recover", "demo"]
    {
        assert!(stdout(&help).contains(command), "{command} is in the help");
        let help = run(&[command, "--help"]);
        assert!(help.status.success() && stdout(&help).contains("Usage: actorum"), "{}", stdout(&help));
    }
    // What only the demo and the tests set is not for people.
    let serve = stdout(&run(&["serve", "--help"]));
    assert!(!serve.contains("stdin") && !serve.contains("report"), "{serve}");
    assert!(serve.contains("--peer <ID=HOST:PORT>") && serve.contains("ACTORUM_LOG"), "{serve}");

    let version = run(&["--version"]);
    assert_eq!(stdout(&version), format!("actorum {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(run(&[]).status.code(), Some(2), "no command is a usage error");
    assert_eq!(run(&["serve", "--frobnicate"]).status.code(), Some(2));
}

#[test]
fn certificates_are_private_and_never_overwritten() {
    let lab = Lab::new(&[1, 2]);
    let certs = lab.path("certs");
    let path = certs.to_str().expect("UTF-8");
    for file in ["ca/ca.key", "node-1/key.pem", "node-2/key.pem"] {
        let mode = fs::metadata(certs.join(file)).expect(file).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file} is readable by its owner only");
    }
    for file in ["ca/ca.pem", "node-1/ca.pem", "node-1/cert.pem"] {
        assert!(fs::read_to_string(certs.join(file)).expect(file).contains("BEGIN CERTIFICATE"), "{file}");
    }

    let before = fs::read(certs.join("node-2/cert.pem")).expect("a certificate");
    refused(&run(&["certs", path, "--nodes", "3,2"]), 1, &["node-2", "never overwritten"]);
    assert_eq!(fs::read(certs.join("node-2/cert.pem")).expect("a certificate"), before);
    assert!(!certs.join("node-3").exists(), "nothing was made by a command that failed");

    // A node is added later, by the same authority.
    assert!(run(&["certs", path, "--nodes", "3"]).status.success());
    assert_eq!(fs::read(certs.join("node-3/ca.pem")).expect("ca"), fs::read(certs.join("ca/ca.pem")).expect("ca"));

    refused(&run(&["certs", path, "--nodes", "4,4"]), 2, &["node 4 twice"]);
    assert_eq!(run(&["certs", path, "--nodes", "x"]).status.code(), Some(2));
    assert_eq!(run(&["certs", path]).status.code(), Some(2));
}

/// `serve` with everything it needs for node 1, and what a test adds.
fn serve(lab: &Lab, certs: &str, more: &[&str]) -> Output {
    let (data, certs) = (lab.path("data"), lab.path(certs));
    let mut command = actorum();
    command.args(["serve", "--id", "1", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]);
    command.arg(data).arg("--certs").arg(certs).args(more).arg("--stop-when-stdin-closes");
    command.stdin(std::process::Stdio::null()).output().expect("the binary runs")
}

#[test]
fn serve_refuses_what_cannot_be_right() {
    let lab = Lab::new(&[1, 2]);
    let peer = ["--peer", "1=127.0.0.1:7001"];

    refused(&run(&["serve", "--wait"]), 2, &["--id is missing", "ACTORUM_ID"]);
    refused(&serve(&lab, "certs/node-1", &[]), 2, &["--peer", "--wait"]);
    refused(
        &serve(&lab, "certs/node-1", &["--wait", peer[0], peer[1]]),
        2,
        &["--wait", "cannot be used with", "--peer"],
    );
    refused(&serve(&lab, "certs/node-1", &["--peer", "1:127.0.0.1:7001"]), 2, &["ID=HOST:PORT"]);
    refused(
        &serve(&lab, "certs/node-1", &[peer[0], peer[1], "--peer", "1=127.0.0.1:7002"]),
        2,
        &["node 1 is named twice"],
    );
    refused(
        &serve(&lab, "certs/node-1", &[peer[0], peer[1], "--peer", "2=127.0.0.1:07001"]),
        2,
        &["the peers 1 and 2 have one address, 127.0.0.1:07001"],
    );
    for (wrong, words) in [("0.0.0.0:7001", "no address that a peer"), ("h..h:1", "nothing between two dots")] {
        refused(&serve(&lab, "certs/node-1", &["--peer", &format!("1={wrong}")]), 2, &["ID=HOST:PORT", words]);
    }
    refused(
        &serve(&lab, "certs/node-1", &[peer[0], peer[1], "--admin", "0.0.0.0:9001"]),
        2,
        &["0.0.0.0:9001", "127.0.0.1:9001", "--admin-certs"],
    );
    refused(&serve(&lab, "certs/node-1", &[peer[0], peer[1], "--admin-certs", "x"]), 2, &["without --admin"]);

    // Settings that no volume has room for, from every place: the start says how much it has.
    let too_much = ["is too much for the volume of the data directory, which has ", " bytes: at most "];
    for key in ["reserve_bytes", "low_space_bytes", "snapshot_bytes", "log_keep_bytes", "log_hold_bytes"] {
        let file = lab.path("room.toml");
        fs::write(&file, format!("[raft]\n{key} = {}\n", 1_u64 << 50)).expect("a file");
        let refusal = serve(&lab, "certs/node-1", &[peer[0], peer[1], "--config", file.to_str().expect("UTF-8")]);
        refused(&refusal, 1, &[&format!("configuration: {key}: 1125899906842624 "), too_much[0], too_much[1]]);
    }

    // Certificates of somebody else, of nobody, and the authority's key beside them.
    refused(&serve(&lab, "certs/node-2", &peer), 1, &["node-2.actorum", "not of node 1"]);
    refused(&serve(&lab, "certs/node-9", &peer), 1, &["certs/node-9"]);
    fs::copy(lab.path("certs/ca/ca.key"), lab.path("certs/node-1/ca.key")).expect("a copy");
    refused(&serve(&lab, "certs/node-1", &peer), 1, &["ca.key", "authority's key"]);
    fs::remove_file(lab.path("certs/node-1/ca.key")).expect("removed");

    // A port in use names the flag and the address.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let data = lab.path("data");
    let certs = lab.path("certs/node-1");
    let args = ["serve", "--id", "1", "--listen", "127.0.0.1:0", "--http", &address, "--peer", peer[1]];
    let output = actorum().args(args).arg("--data").arg(&data).arg("--certs").arg(certs).output().expect("it runs");
    refused(&output, 1, &["--http", &address]);
    assert!(!data.exists(), "nothing was made by commands that failed");
}

#[test]
fn settings_have_an_order_and_no_unknown_names() {
    let lab = Lab::new(&[1]);
    let file = lab.path("config.toml");
    let path = file.to_str().expect("UTF-8");
    let with = |text: &str, more: &[&str]| {
        fs::write(&file, text).expect("a file");
        actorum().args(["serve", "--config", path]).args(more).output().expect("it runs")
    };

    refused(&with("idd = 1", &[]), 2, &["config.toml", "unknown field `idd`"]);
    refused(
        &with("[raft]\nhartbeat_ms = 5", &[]),
        2,
        &["config.toml, [raft]: hartbeat_ms", "did you mean heartbeat_ms?"],
    );
    refused(&with("[raft]\ncolor = 5", &[]), 2, &["[raft]: color: there is no such setting", "heartbeat_ms"]);
    refused(&with("[raft]\nheartbeat_ms = \"fast\"", &[]), 2, &["[raft]: heartbeat_ms: a string", "whole number"]);
    refused(&with("[raft]\nelection_ms = 100", &[]), 2, &["election_ms", "three heartbeats", "300"]);
    refused(&with("id = 1\nwait = true\n[peers]\n1 = \"a:1\"", &[]), 2, &["both peers and wait"]);
    refused(&with("id = 1\n[peers]\nx = \"a:1\"", &[]), 2, &["[peers]", "ID=HOST:PORT"]);
    refused(&run(&["serve", "--config", "/nowhere/at.all"]), 2, &["/nowhere/at.all"]);

    // The flag wins over the variable, and that over the file: seen by which certificate is missed.
    let text =
        "id = 1\nlisten = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\ndata = \"d\"\ncerts = \"/from-file\"\nwait = true";
    let certs_used = |variable: Option<&str>, more: &[&str]| {
        fs::write(&file, text).expect("a file");
        let mut command = actorum();
        if let Some(value) = variable {
            command.env("ACTORUM_CERTS", value);
        }
        let data = lab.path("data");
        command.args(["serve", "--config", path]).args(more).arg("--data").arg(data).output().expect("it runs")
    };
    refused(&certs_used(None, &[]), 1, &["/from-file"]);
    refused(&certs_used(Some("/from-env"), &[]), 1, &["/from-env"]);
    refused(&certs_used(Some("/from-env"), &["--certs", "/from-flag"]), 1, &["/from-flag"]);

    let with_variable = |name: &str, value: &str| {
        let mut command = actorum();
        command.args(["serve", "--config", path]).env(name, value).output().expect("it runs")
    };
    refused(&with_variable("ACTORUM_LISTN", "127.0.0.1:1"), 2, &["ACTORUM_LISTN: there is no such setting"]);
    refused(&with_variable("ACTORUM_MAX_IN_FLIHGT", "5"), 2, &["ACTORUM_MAX_IN_FLIHGT", "did you mean max_in_flight?"]);
    refused(&with_variable("ACTORUM_LOG", "=%"), 2, &["ACTORUM_LOG"]);
    refused(&with_variable("ACTORUM_HEARTBEAT_MS", "soon"), 2, &["ACTORUM_HEARTBEAT_MS", "soon"]);
    refused(&with_variable("ACTORUM_ELECTION_MS", "100"), 2, &["election_ms", "three heartbeats"]);
    // Each is possible by itself: the file's heartbeat and the variable's election timeout are not together.
    fs::write(&file, format!("{text}\n[raft]\nheartbeat_ms = 900")).expect("a file");
    refused(&with_variable("ACTORUM_ELECTION_MS", "2000"), 2, &["election_ms", "2700"]);
}

/// What service managers put beside ours is no reason not to start, and what is ours and no text is named.
#[test]
fn the_environment() {
    use std::os::unix::ffi::OsStrExt;
    let lab = Lab::new(&[1]);
    let start = |variables: &[(&str, &[u8])], more: &[&str]| {
        let (data, certs) = (lab.path("data"), lab.path("certs/node-1"));
        let mut command = actorum();
        for (name, value) in variables {
            command.env(name, std::ffi::OsStr::from_bytes(value));
        }
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--stop-when-stdin-closes",
            "--data",
        ]);
        command.arg(data).arg("--certs").arg(certs).args(more);
        command.stdin(std::process::Stdio::null()).output().expect("the binary runs")
    };
    let serves = |variables: &[(&str, &[u8])], more: &[&str], words: &[&str]| {
        let output = start(variables, more);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
        said
    };

    let kubernetes: [(&str, &[u8]); 4] = [
        ("ACTORUM_SERVICE_HOST", b"10.96.0.7"),
        ("ACTORUM_PORT", b"tcp://10.96.0.7:7001"),
        ("ACTORUM_PORT_7001_TCP_ADDR", b"10.96.0.7"),
        ("ACTORUM_HTTP_SERVICE_PORT", b"8001"),
    ];
    let left_alone = kubernetes.map(|(name, _)| format!("{name} is left alone"));
    serves(&kubernetes, &["--id", "1", "--wait"], &left_alone.each_ref().map(String::as_str));
    refused(
        &start(&[("ACTORUM_PORT", b"7001")], &["--id", "1", "--wait"]),
        2,
        &["ACTORUM_PORT: there is no such setting"],
    );

    for yes in ["1", "true", " true\n"] {
        let said = serves(&[("ACTORUM_ID", b"1"), ("ACTORUM_WAIT", yes.as_bytes())], &[], &[]);
        assert!(!said.contains("left alone"), "{said}");
    }
    for no in ["0", "false", ""] {
        refused(
            &start(&[("ACTORUM_ID", b"1"), ("ACTORUM_WAIT", no.as_bytes())], &[]),
            2,
            &["how does this node begin"],
        );
        // Not waiting is no contradiction to peers, whichever way they are given.
        let peers: (&str, &[u8]) = ("ACTORUM_PEERS", b"1=127.0.0.1:7001, 2=127.0.0.1:7002,");
        serves(&[("ACTORUM_WAIT", no.as_bytes()), peers], &["--id", "1"], &[]);
        serves(&[("ACTORUM_WAIT", no.as_bytes())], &["--id", "1", "--peer", "1=127.0.0.1:7001,"], &[]);
    }
    refused(&start(&[("ACTORUM_WAIT", b"yes")], &["--id", "1"]), 2, &["ACTORUM_WAIT=yes", "1 or true", "0 or false"]);
    let both: [(&str, &[u8]); 2] = [("ACTORUM_WAIT", b"1"), ("ACTORUM_PEERS", b"1=127.0.0.1:7001")];
    refused(&start(&both, &["--id", "1"]), 2, &["both ACTORUM_PEERS and ACTORUM_WAIT"]);
    // A flag wins over either.
    serves(&both, &["--id", "1", "--wait"], &[]);
    serves(&both, &["--id", "1", "--peer", "1=127.0.0.1:7001"], &[]);

    for name in ["ACTORUM_ID", "ACTORUM_LOG", "ACTORUM_PEERS", "ACTORUM_WAIT", "ACTORUM_HTTP", "ACTORUM_CLUSTER_NAME"] {
        let mut args = vec!["--wait"];
        if name != "ACTORUM_ID" {
            args.extend(["--id", "1"]);
        }
        if ["ACTORUM_PEERS", "ACTORUM_WAIT"].contains(&name) {
            args.remove(0);
        }
        if name == "ACTORUM_HTTP" {
            let output =
                actorum().args(["serve", "--id", "1"]).env(name, std::ffi::OsStr::from_bytes(b"\xff")).output();
            refused(&output.expect("it runs"), 2, &[name, "UTF-8"]);
        } else {
            refused(&start(&[(name, b"\xff")], &args), 2, &[name, "UTF-8"]);
        }
    }
    refused(&start(&[], &["--id", "1", "--peer", "1=http://127.0.0.1:7001"]), 2, &["leave out `http://`", "HOST:PORT"]);
    refused(&start(&[], &["--id", "1", "--peer", "1=::1:7001"]), 2, &["[::1]:7001", "HOST:PORT"]);
    let over = "9007199254740993";
    refused(&run(&["certs", lab.path("certs").to_str().expect("UTF-8"), "--nodes", over]), 2, &[over, "2^53 - 1"]);
    assert!(run(&["certs", lab.path("certs").to_str().expect("UTF-8"), "--nodes", "2, 3,"]).status.success());
}

/// A variable that is set and empty is not set, whichever it is, and what is wrong is named by its variable.
#[test]
fn every_variable() {
    let lab = Lab::new(&[1]);
    let file = lab.path("config.toml");
    let (data, certs) = (lab.path("data"), lab.path("certs/node-1"));
    let text = format!(
        "id = 1\nlisten = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nwait = true\n\
         log_format = \"json\"\ndata = {data:?}\ncerts = {certs:?}\nadmin_certs = {certs:?}\n[raft]\n\
         heartbeat_ms = 90\ncluster_name = \"kept\"\n"
    );
    fs::write(&file, &text).expect("a file");
    let start = |config: bool, variables: &[(String, &str)]| {
        let mut command = actorum();
        command.args(["serve", "--stop-when-stdin-closes"]).envs(variables.iter().map(|(name, value)| (name, value)));
        if config {
            command.arg("--config").arg(&file);
        }
        command.stdin(std::process::Stdio::null()).output().expect("the binary runs")
    };
    // Those of the binary, each with a value that cannot be right. What names a file is wrong only where it is looked
    // for.
    let own: [(&str, &str, &[&str]); 13] = [
        ("ID", "one", &["ACTORUM_ID=one", "between 1 and 9007199254740991"]),
        ("LISTEN", "7001", &["ACTORUM_LISTEN=7001", "IP:PORT"]),
        ("HTTP", "localhost:8001", &["ACTORUM_HTTP=localhost:8001", "IP:PORT"]),
        ("ADMIN", ":9001", &["ACTORUM_ADMIN=:9001", "IP:PORT"]),
        ("PEERS", "1", &["ACTORUM_PEERS", "ID=HOST:PORT"]),
        ("WAIT", "yes", &["ACTORUM_WAIT=yes", "1 or true"]),
        ("LOG_FORMAT", "xml", &["ACTORUM_LOG_FORMAT=xml", "text or json"]),
        ("LOG", "=%", &["ACTORUM_LOG"]),
        ("CLUSTER_NAME", "", &[]),
        ("CONFIG", "/nowhere/at.all", &["/nowhere/at.all"]),
        ("DATA", "", &[]),
        ("CERTS", "", &[]),
        ("ADMIN_CERTS", "", &[]),
    ];
    for (name, wrong, words) in own {
        let name = format!("ACTORUM_{name}");
        if !wrong.is_empty() {
            refused(&start(name != "ACTORUM_CONFIG", &[(name.clone(), wrong)]), 2, words);
        }
        for empty in ["", " \n"] {
            let output = start(true, &[(name.clone(), empty)]);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(0), "{name}={empty:?}: {said}");
            // The file's word counts, and what it does not say is as if nothing was set.
            assert!(said.contains("\"INFO\"") && said.contains("members on 127.0.0.1:"), "{name}={empty:?}: {said}");
        }
    }
    // All of them at once, those of the library too.
    let config = toml::Table::try_from(actorum::Config::default()).expect("a table");
    assert!(config.len() > 30, "{config:?}");
    let names = own.iter().map(|(name, ..)| *name).chain(config.keys().map(String::as_str)).chain(["SEED"]);
    let all: Vec<(String, &str)> = names.map(|name| (format!("ACTORUM_{}", name.to_uppercase()), "")).collect();
    let output = start(true, &all);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    refused(&start(false, &all), 2, &["how does this node begin"]);
    refused(&start(true, &[("ACTORUM_HARTBEAT_MS".to_owned(), "")]), 2, &["did you mean heartbeat_ms?"]);
}

/// What is no id of a node says what would be one, wherever it is given, and before anything else is looked at.
#[test]
fn ids_say_their_bounds() {
    let lab = Lab::new(&[1]);
    let (data, certs, file) = (lab.path("data"), lab.path("more"), lab.path("config.toml"));
    let (data, certs) = (data.to_str().expect("UTF-8"), certs.to_str().expect("UTF-8"));
    let bound = "between 1 and 9007199254740991 (2^53 - 1)";
    let serve =
        ["serve", "--wait", "--data", data, "--certs", "/nowhere", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let serve = |variables: &[(&str, &str)], more: &[&str]| {
        let mut command = actorum();
        command.envs(variables.iter().copied()).args(serve).args(more).output().expect("it runs")
    };
    for wrong in ["0", "-1", "x", "1.5", "9007199254740992", "18446744073709551615", "18446744073709551616"] {
        let says = [bound, wrong];
        refused(&serve(&[], &["--id", wrong]), 2, &says);
        refused(&serve(&[("ACTORUM_ID", wrong)], &[]), 2, &says);
        let peers = [format!("1=127.0.0.1:7001,{wrong}=127.0.0.1:7002"), "127.0.0.1:0".to_owned()];
        let founds = |variables: &[(&str, &str)], more: &[&str]| {
            let mut command = actorum();
            command
                .envs(variables.iter().copied())
                .args(["serve", "--id", "1", "--listen", &peers[1], "--http", &peers[1]]);
            command.args(["--data", data, "--certs", "/nowhere"]).args(more).output().expect("it runs")
        };
        refused(&founds(&[], &["--peer", &peers[0]]), 2, &says);
        refused(&founds(&[("ACTORUM_PEERS", &peers[0])], &[]), 2, &says);
        fs::write(&file, format!("[peers]\n1 = \"127.0.0.1:7001\"\n\"{wrong}\" = \"127.0.0.1:7002\"")).expect("a file");
        refused(&founds(&[], &["--config", file.to_str().expect("UTF-8")]), 2, &says);
        // A number that TOML cannot hold is refused by its reader, in its own words.
        if wrong.len() < 19 {
            fs::write(&file, format!("id = {}", if wrong == "x" { "\"x\"" } else { wrong })).expect("a file");
            refused(&serve(&[], &["--config", file.to_str().expect("UTF-8")]), 2, &says);
        }
        refused(&run(&["certs", certs, "--nodes", wrong]), 2, &says);
        refused(&run(&["certs", certs, "--nodes", &format!("1,{wrong}")]), 2, &says);
        refused(&run(&["restore", "/nowhere", "--data", data, "--address", "h:1", "--id", wrong]), 2, &says);
        if !wrong.starts_with("90") && wrong != "18446744073709551615" {
            refused(&run(&["recover", "--data", data, "--choose", wrong]), 2, &says);
        }
    }
    assert!(!lab.path("data").exists() && !lab.path("more").exists(), "nothing was made");
    assert!(run(&["certs", certs, "--nodes", "9007199254740991"]).status.success());
}

#[test]
fn status_without_any_node_fails() {
    let asked = run(&["status", "http://127.0.0.1:1"]);
    assert_eq!(asked.status.code(), Some(1));
    assert!(stderr(&asked).contains("no node answered"));
    assert!(stdout(&asked).contains("unreachable") && stdout(&asked).contains("http://127.0.0.1:1"));

    let asked = run(&["status", "-o", "json", "127.0.0.1:1"]);
    let json: serde_json::Value = serde_json::from_slice(&asked.stdout).expect("JSON");
    assert!(json[0]["status"].is_null() && json[0]["error"].is_string(), "{json}");
    assert_eq!(run(&["status"]).status.code(), Some(2));
}

#[test]
fn inspect_names_a_directory_that_is_not_there() {
    refused(&run(&["inspect", "/nowhere/at/all"]), 1, &["/nowhere/at/all"]);
}

#[test]
fn compact_gives_room_back_and_refuses_a_node_that_runs() {
    refused(
        &run(&["compact", "/nowhere/at/all"]),
        1,
        &["/nowhere/at/all is not a node's data directory", "serve --data"],
    );
    let mut lab = Lab::new(&[1]);
    lab.set("ACTORUM_SNAPSHOT_ENTRIES", "20");
    lab.found(&[1]);
    lab.leader();
    let value = |n: usize| format!("{n}-{}", "x".repeat(100_000));
    for n in 0..100 {
        let answer = lab::call("PUT", &lab.node(1).url("/kv/key"), value(n));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // Of all of it: what follows the newest snapshot stays.
    let taken = lab::call("POST", &lab.node(1).admin_url("/snapshot"), "");
    assert_eq!(taken.status, 200, "{taken:?}");
    let data = lab.node(1).data.clone();
    let dir = data.to_str().expect("UTF-8").to_owned();
    refused(&run(&["compact", &dir]), 1, &[&dir, "is in use by process", &lab.node(1).pid().to_string()]);

    assert!(lab.node_mut(1).terminate().success());
    let done = run(&["compact", &dir]);
    assert!(done.status.success(), "{}", stderr(&done));
    let said = stdout(&done);
    // Ten megabytes of entries took some thirty.
    assert!(said.contains(" MiB, and take ") && said.contains(" KiB now"), "{said}");
    // As after any other stop.
    lab.start(1);
    lab.leader();
    assert_eq!(lab.node(1).get("key").body["value"], value(99));
}
