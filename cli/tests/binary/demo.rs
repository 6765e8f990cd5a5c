//! The demo as a stranger runs it, without a terminal: it tells its story, counts, and leaves nothing behind.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::lab::{self, actorum, processes_with, wait};

/// Starts a demo whose temporary files go to a directory of the test's own.
fn start(home: &Path, args: &[&str]) -> Child {
    let mut command = actorum();
    command.arg("demo").args(args).env("TMPDIR", home);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the demo starts")
}

fn home() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("actorum-demo-test-").tempdir().expect("a directory")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Reads the account up to a line with these words.
fn read_until(demo: &mut Child, words: &str) -> BufReader<std::process::ChildStdout> {
    let mut account = BufReader::new(demo.stdout.take().expect("its output"));
    loop {
        let mut line = String::new();
        assert_ne!(account.read_line(&mut line).expect("a line"), 0, "the demo ended before `{words}`");
        print!("{line}");
        if line.contains(words) {
            return account;
        }
    }
}

/// What is still to come in a progress bar.
const BAR: char = '░';

/// A terminal made by `script` (util-linux, part of every Debian).
#[test]
fn a_terminal_sees_a_bar_where_the_demo_waits() {
    let home = home();
    let demo = format!("{} demo --writes 60", env!("CARGO_BIN_EXE_actorum"));
    let mut script = Command::new("script");
    script.args(["-qec", &demo, "/dev/null"]).env("TMPDIR", home.path()).env_remove("ACTORUM_PRIVILEGED");
    let output = script.stdin(Stdio::null()).output().expect("script runs");
    let account = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{account}");
    assert!(account.contains(BAR), "{account}");
    assert!(account.contains("0 missing") && account.contains("nothing is left behind"), "{account}");
}

#[test]
fn it_counts_and_leaves_nothing_behind() {
    let home = home();
    let began = Instant::now();
    let output = start(home.path(), &["--writes", "300"]).wait_with_output().expect("the demo ends");
    let account = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{account}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(began.elapsed() < Duration::from_secs(40), "it ends by itself in time: {:?}", began.elapsed());

    assert!(!account.contains(BAR) && !account.contains('\r'), "plain lines without a terminal");
    let steps = [
        "three nodes",
        "leads in term",
        "killed the leader",
        "after the kill",
        "restarted node",
        "has caught up",
        "is away",
        "larger writes acknowledged",
        "is back: 1 snapshot of",
    ];
    let mut rest = account.as_str();
    for step in steps {
        let at = rest.find(step).unwrap_or_else(|| panic!("`{step}` is missing, or not in order"));
        rest = &rest[at..];
    }
    let killed_at = number_before(&account, " writes acknowledged; killed the leader");
    assert!(killed_at > 0, "there was something to lose");
    let election = number_before(&account, " ms after the kill");
    assert!((1..20_000).contains(&election), "the time of the election: {election} ms");
    for id in [1, 2, 3] {
        let count =
            account.lines().find(|l| l.contains(&format!("node {id}: ")) && l.contains("missing")).expect("a count");
        let acknowledged = number_before(count, " acknowledged");
        assert!(acknowledged >= 30, "there were writes: {count}");
        assert_eq!(number_before(count, " found"), acknowledged, "{count}");
        assert_eq!(number_before(count, " missing"), 0, "{count}");
        let told = number_before(&account, " acknowledged, ") + number_before(&account, " larger writes acknowledged");
        assert_eq!(told, acknowledged, "as many as the writers were told");
    }
    assert!(!account.contains('\u{1b}') && !account.contains('\r'), "plain lines without a terminal");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(home.path()).expect("a directory").count(), 0, "no directory is left");
    assert_eq!(processes_with(text(home.path())), [0; 0], "no process is left");
}

/// The number that stands before these words, where they come first.
#[track_caller]
fn number_before(text: &str, words: &str) -> u64 {
    let (before, _) = text.split_once(words).unwrap_or_else(|| panic!("`{words}` is not in: {text}"));
    let number = before.rsplit(|c: char| !c.is_ascii_digit()).next().expect("a last piece");
    number.parse().unwrap_or_else(|_| panic!("no number before `{words}` in: {text}"))
}

#[test]
fn killed_outright_its_nodes_end() {
    let home = home();
    let mut demo = start(home.path(), &[]);
    let account = read_until(&mut demo, "leads in term");
    assert_eq!(processes_with(text(home.path())).len(), 3);
    demo.kill().expect("SIGKILL");
    demo.wait().expect("it ends");
    drop(account);
    wait("the nodes to end", || processes_with(text(home.path())).is_empty().then_some(()));
}

#[test]
fn interrupted_it_cleans_up() {
    let home = home();
    let mut demo = start(home.path(), &["--writes", "1000000"]);
    let _account = read_until(&mut demo, "writing");
    let sent = Command::new("kill").args(["-INT", &demo.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    assert_eq!(demo.wait().expect("it ends").code(), Some(130));
    assert_eq!(processes_with(text(home.path())), [0; 0], "no process is left");
    assert_eq!(fs::read_dir(home.path()).expect("a directory").count(), 0, "no directory is left");
}

/// `actorum demo | head -1`: there is nothing to do but to tell, and nobody listens. Whatever it waits for, it ends,
/// and cleans up.
#[test]
fn a_reader_that_has_seen_enough() {
    for (args, words) in [
        (&["--writes", "1000000"][..], "three nodes"),
        (&["--writes", "1000000"], "writing"),
        (&["--stay", "--writes", "90"], "stays until"),
    ] {
        let home = home();
        let mut demo = start(home.path(), args);
        drop(read_until(&mut demo, words));
        let began = Instant::now();
        let output = demo.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "after `{words}`");
        // By itself it would end after half a minute, and one that stays never.
        assert!(began.elapsed() < Duration::from_secs(20), "after `{words}`: {:?}", began.elapsed());
        assert_eq!(processes_with(text(home.path())), [0; 0], "no process is left");
        assert_eq!(fs::read_dir(home.path()).expect("a directory").count(), 0, "no directory is left");
    }
    // On a full disk it ends as well, and that is an error.
    let home = home();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux");
    let demo = actorum().arg("demo").env("TMPDIR", home.path()).stdout(full).output().expect("it ends");
    let said = String::from_utf8_lossy(&demo.stderr).into_owned();
    assert_eq!(demo.status.code(), Some(1), "{said}");
    assert_eq!(said, "error: standard output: No space left on device (os error 28)\n");
    assert_eq!(processes_with(text(home.path())), [0; 0], "no process is left");
    assert_eq!(fs::read_dir(home.path()).expect("a directory").count(), 0, "no directory is left");
}

#[test]
fn it_stays_and_keeps_when_asked_to() {
    let home = home();
    let kept = home.path().join("kept");
    let mut demo = start(home.path(), &["--stay", "--writes", "90", "--dir", text(&kept)]);
    let mut account = read_until(&mut demo, "stays until");
    let mut line = String::new();
    account.read_line(&mut line).expect("a URL");
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).expect("a URL").to_owned();
    assert_eq!(lab::call("GET", &url, "").status, 200, "{url}");
    let sent = Command::new("kill").args(["-INT", &demo.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    assert_eq!(demo.wait().expect("it ends").code(), Some(0), "Ctrl-C is how a demo that stays ends");
    assert_eq!(processes_with(text(home.path())), [0; 0], "no process is left");
    for name in ["certs/ca/ca.pem", "data-1", "data-2", "data-3", "node-1.log"] {
        assert!(kept.join(name).exists(), "{name} is kept");
    }
    let again = start(home.path(), &["--dir", text(&kept)]).wait_with_output().expect("it ends");
    assert_eq!(again.status.code(), Some(2), "a directory that is not empty is refused");
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"));
}
