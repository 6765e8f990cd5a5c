//! Standard output and standard error that are closed, full, or that nobody reads: a node outlives them, and a tool
//! says by its exit code what it did.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::OpenOptions,
    io::pipe,
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::lab::{self, Lab, Node, actorum, call, wait};

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

/// Standard output as a program gives it that discards what is said, opened for reading, too; it looks to the program
/// as if it had been closed before the start.
fn discarded() -> Stdio {
    OpenOptions::new().read(true).write(true).open("/dev/null").expect("Linux").into()
}

/// Where it is seen that something was done.
type Seen = Box<dyn Fn() -> bool>;

/// Stopped nodes, one that runs, and what people ask of them.
struct Tools {
    lab: Lab,
    /// Whose node was part of a cluster, and is stopped.
    other: Lab,
}

fn copied(from: &Path, to: &str) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(done.success());
}

fn names(dir: &str) -> BTreeSet<OsString> {
    std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect()
}

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
        let mut other = Lab::new(&[1]);
        other.found(&[1]);
        other.leader();
        assert_eq!(other.node(1).put("k", "v").status, 200);
        assert_eq!(other.node_mut(1).terminate().code(), Some(0));
        Tools { lab, other }
    }

    fn at(&self, name: &str) -> String {
        self.lab.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// What only prints.
    fn looks(&self) -> Vec<Vec<String>> {
        let (public, admin) = (self.lab.node(1).url(""), self.lab.node(1).admin_url(""));
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

    /// What does something, and how that is seen afterwards.
    fn works(&self, round: &str) -> Vec<(Vec<String>, Seen)> {
        let node = self.lab.node(1);
        let (admin, certs) = (node.admin_url(""), self.at(&format!("certs-{round}")));
        let [data, copy, lost, loose] =
            ["data", "copy", "lost", "loose"].map(|what| self.at(&format!("{what}-{round}")));
        [&lost, &loose].into_iter().for_each(|to| copied(&self.other.node(1).data, to));
        let exists = |path: String| -> Seen { Box::new(move || Path::new(&path).exists()) };
        let written = node.put("round", round).body["index"].as_u64().expect("an index");
        let status = node.url("/status");
        let taken =
            move || lab::call("GET", &status, "").body["snapshots"]["newest"]["index"].as_u64() >= Some(written);
        let survey = String::from_utf8_lossy(&lab::run(&["recover", "--data", &lost]).stderr).into_owned();
        let last = survey.trim().rsplit(' ').next().expect("an index").to_owned();
        let restore = ["restore", &self.at("copy"), "--data", &data, "--id", "9", "--address", "h:1", "--who", "ada"];
        let recover = ["recover", "--data", &lost, "--accept-loss", &last, "--who", "eve"];
        let (before, found) = (names(&loose), lost.clone());
        let recovered = move || {
            let inspected = lab::run(&["inspect", &found]);
            inspected.status.success() && String::from_utf8_lossy(&inspected.stdout).contains(" by eve")
        };
        let cut = loose.clone();
        let compacted = move || names(&cut) != before;
        [
            (vec!["certs", &certs, "--nodes", "1,2"], exists(certs.clone() + "/node-2/cert.pem")),
            (vec!["snapshot", &admin], Box::new(taken)),
            (vec!["backup", &admin, &copy], exists(copy.clone())),
            (vec!["backup", &admin, "/dev/null"], exists("/dev/null".to_owned())),
            (restore.to_vec(), exists(data.clone() + "/node")),
            (recover.to_vec(), Box::new(recovered)),
            (vec!["compact", &loose], Box::new(compacted)),
        ]
        .into_iter()
        .map(|(args, seen): (Vec<&str>, Seen)| (args.into_iter().map(str::to_owned).collect(), seen))
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
    for (args, seen) in tools.works("closed") {
        assert!(!seen() || args.contains(&"/dev/null".to_owned()), "{args:?} is done already");
        let quiet = run(&args, closed(), Stdio::piped());
        let said = String::from_utf8_lossy(&quiet.stderr).into_owned();
        assert_eq!((quiet.status.code(), said.as_str()), (Some(0), ""), "{args:?}");
        assert!(seen(), "{args:?} did nothing");
    }
    for (args, seen) in tools.works("full") {
        let full = run(&args, full(), Stdio::piped());
        let said = String::from_utf8_lossy(&full.stderr).into_owned();
        assert_eq!(full.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.starts_with("error: standard output: No space left on device"), "{args:?}: {said}");
        assert!(said.contains("was carried out all the same: "), "{args:?}: {said}");
        assert!(seen(), "{args:?} did nothing");
    }
}

/// A standard output that was closed before the start looks like one that discards. What only prints, or does
/// something, ends as the work does; a backup that goes there is none.
#[test]
fn a_standard_output_that_was_closed() {
    let tools = Tools::new();
    let admin = tools.lab.node(1).admin_url("");
    let in_shell = |args: &str, redirection: &str| {
        let script = format!("exec {} {args} {redirection}", env!("CARGO_BIN_EXE_actorum"));
        Command::new("bash").args(["-c", &script]).output().expect("bash runs")
    };
    for goal in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let closed = in_shell(&format!("backup {admin} {goal}"), ">&-");
        let said = String::from_utf8_lossy(&closed.stderr).into_owned();
        assert_eq!(closed.status.code(), Some(1), "{goal}: {said}");
        assert!(said.starts_with("error: standard output is closed") && said.contains("name /dev/null"), "{said}");
        // A redirection is a wish, whatever is there.
        let given = in_shell(&format!("backup {admin} {goal}"), ">/dev/null");
        let said = String::from_utf8_lossy(&given.stderr).into_owned();
        assert!(given.status.success() && said.contains("BLAKE3"), "{goal}: {said}");
    }
    let args = ["backup", &admin, "-"].map(str::to_owned);
    assert_eq!(run(&args, discarded(), Stdio::piped()).status.code(), Some(1), "and what cannot be told from it");
    for args in tools.looks() {
        for stdout in [">&-", ">/dev/null"] {
            let output = in_shell(&args.join(" "), stdout);
            assert_eq!(output.status.code(), Some(0), "{args:?} {stdout}: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(run(&args, discarded(), Stdio::piped()).status.code(), Some(0), "{args:?}");
    }
    for (args, seen) in tools.works("discarded") {
        let output = in_shell(&args.join(" "), ">&-");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(seen(), "{args:?} did nothing");
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
