//! Standard output and standard error that are closed, full, or that nobody reads: a node outlives them, and a tool says by
//! its exit code what it did.

mod lab;

use std::{
    fs::OpenOptions,
    io::pipe,
    process::{Command, Output, Stdio},
};

use lab::{Lab, Node, actorum, call, wait};

/// The writing end of a pipe whose reader is gone.
fn closed() -> Stdio {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// A disk without room.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("Linux").into()
}

/// A pipe that takes what fits into it, and then nothing: its reader has stopped, and lives.
fn stalled() -> Stdio {
    let (reader, writer) = pipe().expect("a pipe");
    std::mem::forget(reader);
    writer.into()
}

fn dropped(node: &Node) -> u64 {
    let page = call("GET", &node.url("/metrics"), "").text;
    let value = page.lines().find_map(|line| line.strip_prefix("actorum_log_lines_dropped_total "));
    value.expect("the metric").parse().expect("a number")
}

/// A supervisor's log pipe breaks under all three at once, and the leader dies: there is another.
#[test]
fn a_cluster_outlives_its_logs() {
    let mut lab = Lab::new(&[1, 2, 3]);
    lab.stderr(closed);
    lab.found(&[1, 2, 3]);
    let leader = lab.leader();
    lab.node_mut(leader).kill();
    let rest: Vec<u64> = lab.running().map(|node| node.id).collect();
    let next = lab.leader_of(&rest);
    assert_ne!(next, leader);
    for id in rest {
        assert_eq!(lab.node(id).put("k", "v").status, 200);
        assert!(dropped(lab.node(id)) > 0, "what node {id} had to say is counted");
    }
}

/// The same with a full disk and with a reader that has stopped; and the ends of such nodes are in order.
#[test]
fn a_node_outlives_a_log_that_takes_nothing() {
    for stderr in [full, stalled] {
        let mut lab = Lab::new(&[1]);
        lab.stderr(stderr);
        lab.set("ACTORUM_LOG", "trace");
        lab.found(&[1]);
        lab.leader();
        let node = lab.node(1);
        wait("lines to be dropped", || {
            assert_eq!(node.put("k", "v").status, 200);
            (dropped(node) > 0).then_some(())
        });
        assert_eq!(call("GET", &node.url("/livez"), "").status, 200);
        assert_eq!(lab.node_mut(1).terminate().code(), Some(0));
    }
}

#[test]
fn a_node_outlives_its_terminal() {
    let mut lab = Lab::new(&[1]);
    lab.by_hand();
    lab.found(&[1]);
    lab.leader();
    for times in 1..=2 {
        lab.node(1).send("HUP");
        wait("the node to take note", || {
            let heard = lab.node(1).last_words(100).lines().filter(|line| line.contains("SIGHUP")).count();
            (heard == times).then_some(())
        });
    }
    assert_eq!(lab.node(1).put("k", "v").status, 200);
    assert_eq!(lab.node_mut(1).terminate().code(), Some(0));
}

/// A stopped node, one that runs, and what people ask of them.
struct Tools(Lab);

impl Tools {
    fn new() -> Tools {
        let mut lab = Lab::new(&[1, 2]);
        lab.found(&[1]);
        lab.leader();
        for n in 0..20 {
            assert_eq!(lab.node(1).put(&format!("key-{n}"), "v").status, 200);
        }
        let (url, copy) = (lab.node(1).admin_url(""), lab.path("copy"));
        assert!(lab::run(&["backup", &url, copy.to_str().expect("UTF-8")]).status.success());
        lab.define(2, lab::free_port(), vec!["--wait".to_owned()]);
        lab.start(2);
        assert_eq!(lab.node_mut(2).terminate().code(), Some(0));
        Tools(lab)
    }

    fn at(&self, name: &str) -> String {
        self.0.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// What only prints.
    fn looks(&self) -> Vec<Vec<String>> {
        let (public, admin) = (self.0.node(1).url(""), self.0.node(1).admin_url(""));
        [
            vec!["--help"],
            vec!["--version"],
            vec!["serve", "--help"],
            vec!["help", "inspect"],
            vec!["status", &public],
            vec!["status", &public, "-o", "json"],
            vec!["inspect", &self.at("data-2"), "--entries", "1..", "--verify"],
            vec!["status", &admin],
        ]
        .into_iter()
        .map(|args| args.into_iter().map(str::to_owned).collect())
        .collect()
    }

    /// What does something, and where that is seen afterwards.
    fn works(&self, round: &str) -> Vec<(Vec<String>, String)> {
        let (admin, certs) = (self.0.node(1).admin_url(""), self.at(&format!("certs-{round}")));
        let (data, copy) = (self.at(&format!("data-{round}")), self.at(&format!("copy-{round}")));
        let restore = ["restore", &self.at("copy"), "--data", &data, "--id", "9", "--address", "h:1", "--who", "ada"];
        [
            (vec!["certs", &certs, "--nodes", "1,2"], certs.clone() + "/node-2/cert.pem"),
            (vec!["snapshot", &admin], self.at("copy")),
            (vec!["backup", &admin, &copy], copy.clone()),
            (restore.to_vec(), data.clone() + "/node"),
        ]
        .into_iter()
        .map(|(args, made)| (args.into_iter().map(str::to_owned).collect(), made))
        .collect()
    }
}

fn run(args: &[String], stdout: Stdio, stderr: Stdio) -> Output {
    let child = actorum().args(args).stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
    child.expect("the binary runs").wait_with_output().expect("it ends")
}

#[test]
fn tools_end_quietly_on_a_closed_pipe_and_with_an_error_on_a_full_disk() {
    let tools = Tools::new();
    for args in tools.looks() {
        let quiet = run(&args, closed(), Stdio::piped());
        let said = String::from_utf8_lossy(&quiet.stderr).into_owned();
        assert_eq!((quiet.status.code(), said.as_str()), (Some(0), ""), "{args:?}");
        let full = run(&args, full(), Stdio::piped());
        let said = String::from_utf8_lossy(&full.stderr).into_owned();
        assert_eq!(full.status.code(), Some(1), "{args:?}: {said}");
        assert_eq!(said, "error: standard output: No space left on device (os error 28)\n", "{args:?}");
    }
    for (args, made) in tools.works("closed") {
        let quiet = run(&args, closed(), Stdio::piped());
        let said = String::from_utf8_lossy(&quiet.stderr).into_owned();
        assert_eq!((quiet.status.code(), said.as_str()), (Some(0), ""), "{args:?}");
        assert!(std::path::Path::new(&made).exists(), "{args:?} made no {made}");
    }
    for (args, made) in tools.works("full") {
        let full = run(&args, full(), Stdio::piped());
        let said = String::from_utf8_lossy(&full.stderr).into_owned();
        assert_eq!(full.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.starts_with("error: standard output: No space left on device"), "{args:?}: {said}");
        assert!(said.contains("is done all the same: "), "{args:?}: {said}");
        assert!(std::path::Path::new(&made).exists(), "{args:?} made no {made}");
    }
}

/// A failure tells by its exit code where nobody hears its words, whichever of the two is broken.
#[test]
fn a_failure_keeps_its_exit_code() {
    for broken in [closed, full] {
        for (args, code) in [
            (&["status", "http://127.0.0.1:1"][..], 1),
            (&["inspect", "/nowhere"], 1),
            (&["serve", "--frobnicate"], 2),
            (&["serve", "--wait"], 2),
            (&["certs"], 2),
            (&[], 2),
        ] {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            assert_eq!(run(&args, broken(), broken()).status.code(), Some(code), "{args:?}");
            assert_eq!(run(&args, Stdio::null(), broken()).status.code(), Some(code), "{args:?}");
        }
    }
}

/// As a person meets it, in a shell.
#[test]
fn a_reader_that_has_seen_enough() {
    let script = format!("set -o pipefail; {} help serve | head -1", env!("CARGO_BIN_EXE_actorum"));
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
}
