//! A machine with its own storage, killed again and again by SIGKILL while it books: nothing acknowledged is lost,
//! and nothing is booked twice.
//!
//! The machine is the one of `examples/durable.rs`. The process that dies is this very test binary, which runs
//! [`books_until_killed`] alone when the directory is named in its environment.
//!
//! A file by itself: a process that is started holds the files of the one that starts it for a moment, and with them
//! ports and locks, which other tests of whole nodes close and open again at once.

#[path = "../examples/durable.rs"]
#[allow(dead_code)]
mod example;
mod figures;
#[allow(dead_code)]
mod rng;

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use example::Book;
use figures::figure;
use rng::Rng;

/// Bookings in flight at once.
const AT_ONCE: u64 = 8;
/// Names the directory for the process that books.
const VARIABLE: &str = "DURABLE_TEST_DIR";

/// Not a test by itself: what the child does. It books one id after the other, from the one that its
/// environment names, and says on standard output which ones were acknowledged.
#[test]
fn books_until_killed() {
    let Some(dir) = env::var_os(VARIABLE).map(PathBuf::from) else { return };
    let first: u64 = env::var("DURABLE_TEST_FIRST").expect("set with the directory").parse().expect("a number");
    actix::System::new().block_on(async move {
        let raft = example::start(&dir).await.expect("it starts");
        let say = |text: String| {
            let mut out = std::io::stdout();
            writeln!(out, "{text}").and_then(|()| out.flush()).expect("the parent listens");
        };
        say("started".to_owned());
        for round in 0.. {
            let ids = (0..AT_ONCE).map(|n| first + round * AT_ONCE + n);
            let booking = ids.map(|id| {
                let raft = raft.clone();
                async move { (id, raft.propose(Book { id }).await) }
            });
            for (id, booked) in futures_util::future::join_all(booking).await {
                assert_eq!(booked.expect("alone, a node leads").response, 1, "{id} was booked before");
                say(format!("booked {id}"));
            }
        }
    });
}

#[test]
fn killed_again_and_again() {
    lives(&[]);
}

/// The machine does not sync, so at its start it may be behind all that the log still holds.
#[test]
fn killed_between_snapshots() {
    lives(&[("LEDGER_SNAPSHOT_ENTRIES", "15"), ("LEDGER_LOG_KEEP_ENTRIES", "0")]);
}

fn lives(settings: &[(&str, &str)]) {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    let mut rng = Rng::new();
    let dir = tempfile::tempdir().expect("a directory");
    let (mut acknowledged, kills) = (BTreeSet::new(), figure("KILLS", 15, 50));
    for kill in 0..kills {
        // A range of ids for each life: an id whose outcome is unknown is never proposed again.
        acknowledged.extend(one_life(dir.path(), kill * 1_000_000, rng.below(100), settings));
    }
    println!("{} bookings acknowledged in {kills} lives", acknowledged.len());
    assert!(acknowledged.len() as u64 > kills * AT_ONCE / 2, "there was something to lose");

    actix::System::new().block_on(async {
        let raft = example::start(dir.path()).await.expect("it starts");
        let check = move |ledger: &example::Ledger| {
            let lost = acknowledged.iter().filter(|id| ledger.booked(**id) == 0).count();
            (lost, ledger.most(), ledger.total(), acknowledged.len() as u64)
        };
        let (lost, most, total, acknowledged) = raft.read(check).await.expect("a read");
        assert_eq!(lost, 0, "acknowledged and not there");
        assert_eq!(most, 1, "booked twice");
        // What was in flight at a kill may be there or not.
        assert!((acknowledged..=acknowledged + kills * AT_ONCE).contains(&total), "{acknowledged} and {total}");
        let snapshot = raft.status().snapshot_index;
        assert_eq!(snapshot > 100, !settings.is_empty(), "snapshots where they were asked for: {snapshot}");
        raft.shutdown().await;
    });
}

/// Starts it, kills it once it has acknowledged so many bookings (and at once, if none), and returns what it
/// acknowledged.
fn one_life(dir: &Path, first: u64, bookings: u64, settings: &[(&str, &str)]) -> Vec<u64> {
    let mut child = Command::new(env::current_exe().expect("this test"))
        .args(["--exact", "books_until_killed", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, dir)
        .env("DURABLE_TEST_FIRST", first.to_string())
        .envs(settings.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let output = BufReader::new(child.stdout.take().expect("its output"));
    let (reached, wait) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut booked = Vec::new();
        let mut started = false;
        // The last line may be cut off by the kill: then it is no line.
        for line in output.lines().map_while(Result::ok) {
            started |= line.ends_with("started");
            booked.extend(line.strip_prefix("booked ").and_then(|id| id.parse::<u64>().ok()));
            if started && booked.len() as u64 >= bookings {
                let _ = reached.send(());
            }
        }
        booked
    });
    let heard = wait.recv_timeout(Duration::from_secs(30));
    child.kill().expect("SIGKILL");
    child.wait().expect("it ends");
    heard.expect("it started, and booked");
    reader.join().expect("the reader")
}
