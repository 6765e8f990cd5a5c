//! `actorum demo`: three real processes, a SIGKILL, a long absence, and a count of what was lost.
//!
//! ```text
//!  certificates ▶ three nodes ▶ a leader ▶ writes through every node
//!                                 │ SIGKILL to the leader ▶ election ▶ restart ▶ catches up from the log
//!                                 ▼
//!                   a follower is away ▶ large writes ▶ the log forgets where it was ▶ it comes back by snapshot
//!                                 ▼
//!                   every acknowledged write, looked up on every node
//! ```
//!
//! It uses only what a user could use: the binary's own `serve`, its HTTP API, its certificates. Whatever happens
//! (success, failure, Ctrl-C, a reader that has seen enough, a panic), leaving [`run`] ends the children and removes
//! their directory; if this process is killed, the children see that their standard input closes, and end.

mod account;
mod cluster;
mod verdict;
mod writers;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use actorum::NodeId;
use actorum_store::log::inspect::temporary;
use indicatif::HumanBytes;

use crate::{Failure, certs, client::Client, output, signals};
use account::Account;
use cluster::Cluster;
use verdict::Evidence;
use writers::{Ledger, Subject, Writers};

/// The three nodes.
const NODES: [NodeId; 3] = [1, 2, 3];
/// By then the demo has ended, with success or failure: some time before the 40 s that the help promises.
const END: Duration = Duration::from_secs(38);
/// By then the demo has failed. A question to a node and a write may be under way at that moment, with 2 s and 2.5 s.
const TIME: Duration = Duration::from_secs(32);
/// How long the nodes may take to end in order before they are killed.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a restarted node may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How long the writing of each third may take; on a slow disk there are fewer writes then.
const THIRD: Duration = Duration::from_secs(4);
/// The writes during which the leader is killed.
const SMALL: Subject = Subject { name: "writer", bytes: 0 };
/// The writes during which a node is away.
const LARGE: Subject = Subject { name: "picture", bytes: 64 << 10 };
/// How many of them.
const PICTURES: u64 = 160;
/// How long the log may take to be cut off behind a snapshot.
const CUT: Duration = Duration::from_secs(6);
/// How often a condition is checked.
const LOOK: Duration = Duration::from_millis(10);

/// Run three nodes here, kill their leader, and count what was lost
///
/// Three processes with a directory each, QUIC with mutual TLS between them, and certificates made on the spot. The
/// leader is killed; then another node stays away until the others have cut off the log that it would need, and comes
/// back by a snapshot. Ends by itself within 40 s, with exit code 0 only if every acknowledged write is on every node.
/// Leaves nothing behind.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the cluster running at the end, until Ctrl-C
    #[arg(long)]
    stay: bool,
    /// Keep everything in this directory, which must be new or empty (certificates, data, logs)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How many writes to make
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3000,
        value_parser = clap::value_parser!(u64).range(30..=1_000_000)
    )]
    writes: u64,
}

/// Tells the story.
pub(crate) fn run(Args { stay, dir, writes }: Args) -> Result<(), Failure> {
    let deadline = Deadline { until: Instant::now() + TIME, interrupted: signals::flag()? };
    let (account, began) = (Account::begin(), Instant::now());
    let home = Home::new(dir)?;

    account.line(format_args!("three nodes of a replicated map, on this machine, in {}", home.describe()));
    let certs = certs::make(&home.path().join("certs"), &NODES)?;
    account.line(format_args!("made an authority and a certificate for each node"));

    let started = Instant::now();
    let mut cluster = Cluster::start(home.path(), &certs, &deadline)?;
    for node in cluster.nodes() {
        account.line(format_args!(
            "node {}: process {}, peers on {} (QUIC), clients on {}",
            node.id,
            node.pid(),
            node.listen,
            node.url
        ));
    }
    let (leader, term) = cluster.wait_for_leader(None, &deadline)?;
    account.line(format_args!("node {leader} leads in term {term}, {} after the start", ms(started.elapsed())));

    let mut story = write_through_a_death(&account, &mut cluster, leader, writes, &deadline)?;
    story.come_back_by_snapshot(&account, &mut cluster, &deadline)?;
    check(&account, &cluster, &story, &deadline)?;
    let mut farewell = FAREWELL.min(END.saturating_sub(began.elapsed()));
    if stay {
        farewell = FAREWELL;
        account.line(format_args!("the cluster stays until Ctrl-C:"));
        for node in cluster.nodes() {
            account.line(format_args!("  curl {}/status", node.url));
        }
        while !deadline.interrupted() && !output::is_over() && cluster.all_run()? {
            thread::sleep(LOOK);
        }
    }
    cluster.stop(farewell)?;
    account.line(format_args!("{}", home.farewell()));
    Ok(())
}

/// What was written, and when.
struct Story {
    ledger: Ledger,
    /// How many writes were acknowledged when the leader was killed.
    before: u64,
    /// How many when there was another.
    elected: u64,
    /// How many snapshots were sent to the node that was away.
    snapshots: u64,
}

/// Writers through every node, while their leader is killed, replaced and brought back.
fn write_through_a_death(
    account: &Account,
    cluster: &mut Cluster,
    leader: NodeId,
    writes: u64,
    deadline: &Deadline,
) -> Result<Story, Failure> {
    let urls: Vec<String> = cluster.nodes().map(|node| node.url.clone()).collect();
    thread::scope(|scope| {
        // The last third is for the next leader, however fast the first one is.
        let writers = Writers::start(scope, &urls, SMALL, writes * 2 / 3);
        account.line(format_args!("writing {writes} keys, one writer through each node"));
        account.follow("acknowledged writes", writes, THIRD, deadline, writes / 3, || Ok(writers.acknowledged()))?;

        let before = writers.acknowledged();
        let pid = cluster.kill(leader)?;
        let killed = Instant::now();
        account.line(format_args!(
            "{before} writes acknowledged; killed the leader, node {leader} (process {pid}), with SIGKILL"
        ));
        let (next, term) = cluster.wait_for_leader(Some(leader), deadline)?;
        let election = killed.elapsed();
        account.line(format_args!("node {next} leads in term {term}: elected {} after the kill", ms(election)));

        let elected = writers.acknowledged();
        writers.allow(writes);
        let half_of_the_rest = elected + writes.saturating_sub(elected) / 2;
        account
            .follow("acknowledged writes", writes, THIRD, deadline, half_of_the_rest, || Ok(writers.acknowledged()))?;

        let commit = cluster.status(next)?.commit_index;
        cluster.restart(leader, deadline)?;
        let held = cluster.status(leader)?.applied_index;
        account.line(format_args!(
            "restarted node {leader} on its own directory (process {}): it holds {held} of {commit} entries",
            cluster.node(leader).pid()
        ));
        let restarted = Instant::now();
        let applied = || Ok(cluster.status(leader)?.applied_index);
        let held = account.follow("entries on the restarted node", commit, CATCH_UP, deadline, commit, applied)?;
        if held < commit {
            let time = ms(restarted.elapsed());
            return Err(Failure::new(format!(
                "node {leader} has not caught up: it holds {held} of {commit} entries {time} after its restart"
            )));
        }
        account.line(format_args!("node {leader} has caught up with entry {commit} after {}", ms(restarted.elapsed())));

        account.follow("acknowledged writes", writes, THIRD, deadline, writes, || Ok(writers.acknowledged()))?;
        let ledger = writers.finish()?;
        deadline.check("the writers to end")?;
        account.line(format_args!(
            "stopped writing: {} acknowledged, {} refused and repeated, {} without an answer",
            ledger.acknowledged.len(),
            ledger.refused,
            ledger.unknown.len()
        ));
        Ok(Story { ledger, before, elected, snapshots: 0 })
    })
}

impl Story {
    /// A follower stays away until the others no longer have the log that it would need.
    fn come_back_by_snapshot(
        &mut self,
        account: &Account,
        cluster: &mut Cluster,
        deadline: &Deadline,
    ) -> Result<(), Failure> {
        let (leader, _) = cluster.wait_for_leader(None, deadline)?;
        let away = NODES.into_iter().find(|id| *id != leader).expect("there are three");
        let held = cluster.status(away)?.applied_index;
        cluster.kill(away)?;
        account.line(format_args!("node {away} is away from entry {held} on; the others get {PICTURES} larger writes"));
        let urls: Vec<String> = cluster.nodes().filter(|node| node.id != away).map(|node| node.url.clone()).collect();
        let large = thread::scope(|scope| {
            let writers = Writers::start(scope, &urls, LARGE, PICTURES);
            let acknowledged = || Ok(writers.acknowledged());
            account.follow("acknowledged writes", PICTURES, THIRD, deadline, PICTURES, acknowledged)?;
            writers.finish()
        })?;
        account.line(format_args!("{} larger writes acknowledged", large.acknowledged.len()));
        self.ledger.join(large);

        // The present leader will have to send it something.
        let until = Instant::now() + CUT;
        let (leader, first) = deadline.wait("the log to be cut off behind a snapshot", || {
            let (leader, _) = cluster.wait_for_leader(Some(away), deadline)?;
            let first = cluster.status(leader)?.first_index;
            Ok((first > held + 1 || Instant::now() > until).then_some((leader, first)))
        })?;
        account.line(format_args!("node {leader} has snapshots, and of its log what comes from entry {first} on"));

        cluster.restart(away, deadline)?;
        let restarted = Instant::now();
        let commit = cluster.status(leader)?.commit_index;
        let (bar, mut bytes) = (account.bytes(), 0);
        let arrived = deadline.wait(&format!("node {away} to come back"), || {
            let status = cluster.status(away)?;
            bytes = status.snapshots.bytes_received;
            if let Some(receiving) = status.snapshots.receiving.values().next() {
                bar.set_length(receiving.total);
                bar.set_position(receiving.bytes);
                bar.set_message(HumanBytes(receiving.rate).to_string());
            }
            Ok((status.applied_index >= commit).then_some(status.snapshots.received))
        });
        bar.finish_and_clear();
        self.snapshots = arrived?;
        account.line(format_args!(
            "node {away} is back: {} snapshot of {}, sent at 6 MiB/s at most, and the log after it: entry {commit} \
             after {}",
            self.snapshots,
            HumanBytes(bytes),
            ms(restarted.elapsed())
        ));
        Ok(())
    }
}

/// Looks up every acknowledged write on every node, counts, and judges.
fn check(account: &Account, cluster: &Cluster, story: &Story, deadline: &Deadline) -> Result<(), Failure> {
    let Story { ledger, before, elected, snapshots } = story;
    let last = ledger.acknowledged.iter().map(|(_, index)| *index).max().unwrap_or(0);
    let total = (ledger.acknowledged.len() * NODES.len()) as u64;
    for node in cluster.nodes() {
        deadline.wait(&format!("node {} to apply entry {last}", node.id), || {
            Ok((cluster.status(node.id)?.applied_index >= last).then_some(()))
        })?;
    }
    account
        .line(format_args!("every node has applied entry {last}: looking up every acknowledged write on each of them"));
    let progress = writers::Progress::default();
    let found = thread::scope(|scope| {
        let checks: Vec<_> = cluster
            .nodes()
            .map(|node| (node.id, scope.spawn(|| ledger.check(&node.url, &progress, deadline))))
            .collect();
        // A check that fails ends early: its error is told when it is joined.
        let over = || checks.iter().all(|(_, check)| check.is_finished());
        account
            .follow("looked up", total, TIME, deadline, total, || Ok(if over() { total } else { progress.now() }))?;
        let joined = checks.into_iter().map(|(id, check)| (id, check.join().expect("a check does not panic")));
        joined.map(|(id, found)| Ok((id, found?))).collect::<Result<BTreeMap<_, _>, Failure>>()
    })?;
    let evidence = Evidence {
        before: *before,
        after: (ledger.acknowledged.len() as u64).saturating_sub(*elected),
        snapshots: *snapshots,
        acknowledged: ledger.acknowledged.iter().map(|(write, _)| write.key.as_str()).collect(),
        held: found.iter().map(|(id, found)| (*id, found.acknowledged.clone())).collect(),
    };
    for (id, found) in &found {
        account.line(format_args!(
            "node {id}: {} acknowledged, {} found, {} missing{}",
            evidence.acknowledged.len(),
            found.acknowledged.len(),
            evidence.missing(*id).len(),
            match ledger.unknown.len() {
                0 => String::new(),
                unknown => format!(" (of {unknown} without an answer, {} had been applied)", found.unknown),
            }
        ));
    }
    evidence.verdict(&NODES)
}

/// Where everything lies, and whether it goes at the end.
enum Home {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Home {
    fn new(dir: Option<PathBuf>) -> Result<Home, Failure> {
        let Some(dir) = dir else {
            let made = tempfile::Builder::new().prefix("actorum-demo-").tempdir_in(temporary());
            let failed = |e| Failure::new(format!("no temporary directory can be made (TMPDIR names its place): {e}"));
            return Ok(Home::Temporary(made.map_err(failed)?));
        };
        std::fs::create_dir_all(&dir).map_err(|e| Failure::new(format!("--dir {}: {e}", dir.display())))?;
        if std::fs::read_dir(&dir)?.next().is_some() {
            let dir = dir.display();
            return Err(Failure::usage(format!(
                "--dir {dir} is not empty: the demo begins from nothing, give it a new one"
            )));
        }
        Ok(Home::Kept(dir))
    }

    fn path(&self) -> &Path {
        match self {
            Home::Temporary(dir) => dir.path(),
            Home::Kept(dir) => dir,
        }
    }

    fn describe(&self) -> String {
        match self {
            Home::Temporary(dir) => format!("{} (removed at the end)", dir.path().display()),
            Home::Kept(dir) => dir.display().to_string(),
        }
    }

    fn farewell(&self) -> String {
        match self {
            Home::Temporary(_) => "all nodes ended, nothing is left behind".to_owned(),
            Home::Kept(dir) => format!(
                "all nodes ended; certificates, data and logs are in {dir}. Look inside: actorum inspect {dir}/data-1",
                dir = dir.display()
            ),
        }
    }
}

/// How long to wait for anything, and whether someone has pressed Ctrl-C.
pub(crate) struct Deadline {
    until: Instant,
    interrupted: Arc<AtomicBool>,
}

impl Deadline {
    /// Whether Ctrl-C was pressed.
    pub(crate) fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// An error once the time is up, or the reader of standard output is gone (`actorum demo | head -1`).
    pub(crate) fn check(&self, waiting_for: &str) -> Result<(), Failure> {
        if self.interrupted() {
            return Err(Failure::interrupted());
        }
        if output::is_over() {
            return Err(Failure::unheard());
        }
        if Instant::now() > self.until {
            return Err(Failure::new(format!("{} s are over; still waiting for {waiting_for}", TIME.as_secs())));
        }
        Ok(())
    }

    /// Looks until there is something.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        loop {
            self.check(what)?;
            if let Some(found) = look()? {
                return Ok(found);
            }
            thread::sleep(LOOK);
        }
    }
}

fn ms(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

/// The client for one question at a time; the writers have their own.
fn client() -> Client {
    Client::new(Duration::from_secs(2))
}
