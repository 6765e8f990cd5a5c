//! Three child processes of this very binary, and what can be done to them.
//!
//! A child is killed when its [`Process`] is dropped; and it ends by itself when its standard input closes, which the
//! kernel does however this process ends.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{SocketAddr, UdpSocket},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use actorum::NodeId;
use serde::Deserialize;

use super::{Deadline, LOOK, NODES, client};
use crate::{Failure, client::Client};

/// What a large service does in days should happen here in seconds: the log is kept short, and a snapshot is sent
/// slowly enough to be seen.
const SETTINGS: [(&str, &str); 5] = [
    ("ACTORUM_SNAPSHOT_BYTES", "2097152"),
    ("ACTORUM_LOG_KEEP_ENTRIES", "100"),
    ("ACTORUM_LOG_KEEP_BYTES", "1048576"),
    // For a second or two a dead node counts as alive, and the log would wait for it.
    ("ACTORUM_LOG_HOLD_BYTES", "0"),
    ("ACTORUM_SNAPSHOT_RATE", "6291456"),
];

/// The three nodes.
pub(super) struct Cluster {
    nodes: BTreeMap<NodeId, Node>,
    client: Client,
}

/// One node: how to start it, and its process while it runs.
pub(super) struct Node {
    /// Its id.
    pub id: NodeId,
    /// Where its peers reach it.
    pub listen: SocketAddr,
    /// Where its clients reach it.
    pub url: String,
    http: SocketAddr,
    peers: Vec<String>,
    data: PathBuf,
    certs: PathBuf,
    log: PathBuf,
    report: PathBuf,
    process: Option<Process>,
}

/// What of a status document the story needs.
#[derive(Deserialize)]
pub(super) struct NodeStatus {
    /// `leader` and so on.
    pub role: String,
    /// Its term.
    pub term: u64,
    /// The leader, as far as the node knows.
    pub leader: Option<NodeId>,
    /// What it knows to be committed.
    pub commit_index: u64,
    /// What it has applied.
    pub applied_index: u64,
    /// Where its log begins.
    pub first_index: u64,
    /// How its snapshots are.
    pub snapshots: NodeSnapshots,
}

/// What of a node's snapshots the story needs.
#[derive(Deserialize)]
pub(super) struct NodeSnapshots {
    /// How many it got from peers since it started.
    pub received: u64,
    /// How many bytes of them.
    pub bytes_received: u64,
    /// The one that is on its way to it, by sender.
    pub receiving: BTreeMap<NodeId, Receiving>,
}

/// How far it is.
#[derive(Deserialize)]
pub(super) struct Receiving {
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes per second.
    pub rate: u64,
}

impl Cluster {
    /// Starts all nodes and waits until each serves.
    pub(super) fn start(home: &Path, certs: &[PathBuf], deadline: &Deadline) -> Result<Cluster, Failure> {
        // Everyone must know everyone's port before anyone starts: the sockets hold free ones until then.
        let sockets = NODES.map(|_| UdpSocket::bind("127.0.0.1:0"));
        let sockets = sockets.into_iter().collect::<Result<Vec<_>, _>>()?;
        let listen = sockets.iter().map(UdpSocket::local_addr).collect::<Result<Vec<_>, _>>()?;
        drop(sockets);
        let peers: Vec<String> = NODES.iter().zip(&listen).map(|(id, address)| format!("{id}={address}")).collect();

        let node = |((id, listen), certs): ((NodeId, SocketAddr), &PathBuf)| Node {
            id,
            listen,
            url: String::new(),
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            peers: peers.clone(),
            data: home.join(format!("data-{id}")),
            certs: certs.clone(),
            log: home.join(format!("node-{id}.log")),
            report: home.join(format!("node-{id}.json")),
            process: None,
        };
        let nodes = NODES.into_iter().zip(listen).zip(certs).map(node).map(|node| (node.id, node)).collect();
        let mut cluster = Cluster { nodes, client: client() };
        for node in cluster.nodes.values_mut() {
            node.spawn()?;
        }
        for node in cluster.nodes.values_mut() {
            node.wait_until_it_serves(deadline)?;
        }
        Ok(cluster)
    }

    /// All nodes, running or not.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// One of them.
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    /// What a node says of itself.
    pub(super) fn status(&self, id: NodeId) -> Result<NodeStatus, Failure> {
        let answer = self.client.get(&format!("{}/status", self.node(id).url));
        let answer = answer.map_err(|e| Failure::new(format!("node {id} does not answer: {e}")))?;
        serde_json::from_value(answer.body).map_err(|e| Failure::new(format!("node {id} answers no status: {e}")))
    }

    /// Waits until one node leads and the other running ones follow it. `dead` is not asked, and cannot be the leader.
    pub(super) fn wait_for_leader(
        &mut self,
        dead: Option<NodeId>,
        deadline: &Deadline,
    ) -> Result<(NodeId, u64), Failure> {
        let asked: Vec<NodeId> = NODES.into_iter().filter(|id| Some(*id) != dead).collect();
        deadline.wait("a leader", || {
            let mut statuses = Vec::new();
            for id in &asked {
                let node = self.nodes.get_mut(id).expect("one of the three");
                node.must_run()?;
                // A node that does not answer costs the time of a timeout.
                deadline.check("a leader")?;
                statuses.extend(self.status(*id).ok().map(|status| (*id, status)));
            }
            let leader = statuses.iter().find(|(_, status)| status.role == "leader");
            Ok(leader.and_then(|(id, status)| {
                // The first election is reported once every node knows the leader; a new leader counts at once.
                let heard = statuses.len() == asked.len() && statuses.iter().all(|(_, s)| s.leader == Some(*id));
                (dead.is_some() || heard).then_some((*id, status.term))
            }))
        })
    }

    /// SIGKILL. Returns the id that the process had.
    pub(super) fn kill(&mut self, id: NodeId) -> Result<u32, Failure> {
        let process = self.nodes.get_mut(&id).and_then(|node| node.process.take());
        let process = process.ok_or_else(|| Failure::new(format!("node {id} does not run")))?;
        let pid = process.child.id();
        drop(process);
        Ok(pid)
    }

    /// Starts a dead node again by the same command.
    pub(super) fn restart(&mut self, id: NodeId, deadline: &Deadline) -> Result<(), Failure> {
        let node = self.nodes.get_mut(&id).expect("one of the three");
        node.spawn()?;
        node.wait_until_it_serves(deadline)
    }

    /// True, or an error that says which node ended and how.
    pub(super) fn all_run(&mut self) -> Result<bool, Failure> {
        self.nodes.values_mut().try_for_each(Node::must_run)?;
        Ok(true)
    }

    /// Ends all nodes in order: at once, each by closing its standard input. A node that has not ended by then is
    /// killed, and that is an error.
    pub(super) fn stop(&mut self, time: Duration) -> Result<(), Failure> {
        let ending = self.nodes.values_mut().filter_map(|node| Some((node.id, node.process.take()?)));
        let mut ending: BTreeMap<NodeId, Process> = ending.collect();
        for process in ending.values_mut() {
            drop(process.child.stdin.take());
        }
        let until = Instant::now() + time;
        loop {
            // Dropping kills whoever is left.
            ending.retain(|_, process| matches!(process.child.try_wait(), Ok(None)));
            let Some(id) = ending.keys().next() else { return Ok(()) };
            if Instant::now() > until {
                return Err(Failure::new(format!("node {id} did not end within {} s and was killed", time.as_secs())));
            }
            thread::sleep(LOOK);
        }
    }
}

impl Node {
    /// The process id; zero while it does not run.
    pub(super) fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.child.id())
    }

    fn spawn(&mut self) -> Result<(), Failure> {
        if self.report.exists() {
            fs::remove_file(&self.report)?;
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("serve")
            .args([
                "--id",
                &self.id.to_string(),
                "--listen",
                &self.listen.to_string(),
                "--http",
                &self.http.to_string(),
            ])
            .arg("--data")
            .arg(&self.data)
            .arg("--certs")
            .arg(&self.certs)
            .args(self.peers.iter().flat_map(|peer| ["--peer", peer]))
            .arg("--report")
            .arg(&self.report)
            .arg("--stop-when-stdin-closes");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ACTORUM_")) {
            // The variables of the user's own node are removed, so that they do not change the demo.
            command.env_remove(name);
        }
        command.envs(SETTINGS);
        // A separate process group: Ctrl-C is for the demo, which ends its nodes in order.
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.process = Some(Process { child: command.spawn()? });
        Ok(())
    }

    fn wait_until_it_serves(&mut self, deadline: &Deadline) -> Result<(), Failure> {
        let what = format!("node {} to serve", self.id);
        self.http = deadline.wait(&what, || {
            self.must_run()?;
            let report: Option<Report> =
                fs::read(&self.report).ok().and_then(|text| serde_json::from_slice(&text).ok());
            Ok(report.map(|report| report.http))
        })?;
        self.url = format!("http://{}", self.http);
        Ok(())
    }

    /// An error with its last words if it has ended.
    fn must_run(&mut self) -> Result<(), Failure> {
        let Some(process) = &mut self.process else { return Err(Failure::new(format!("node {} is down", self.id))) };
        let Some(status) = process.child.try_wait()? else { return Ok(()) };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(5)..].join("\n  ");
        Err(Failure::new(format!("node {} ended ({status}); its last words:\n  {last}", self.id)))
    }
}

/// What `serve --report` writes.
#[derive(Deserialize)]
struct Report {
    http: SocketAddr,
}

/// A child that does not outlive this value.
struct Process {
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended by itself; waiting takes its remains away.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// What the demo starts goes with it, also when it panics: unwinding drops its guards.
    #[test]
    fn a_panic_leaves_no_process_and_no_directory_behind() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let panicked = std::thread::spawn(move || {
            let home = tempfile::tempdir().unwrap();
            let child = std::process::Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap();
            let process = Process { child };
            sender.send((process.child.id(), home.path().to_owned())).unwrap();
            panic!("in the middle of the story");
        });
        assert!(panicked.join().is_err());
        let (pid, home) = receiver.recv().unwrap();
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} outlived the panic");
        assert!(!home.exists(), "{} outlived the panic", home.display());
    }
}
