//! Real processes for tests: nodes of the binary on free ports, in a directory that goes at the end.
//!
//! A test waits for conditions, never for durations. When it panics, the last lines of every node's log are
//! printed. Nodes are killed when dropped, and end by themselves when the test process does.

#![allow(dead_code)] // each test uses its part

pub(crate) mod directory;
pub(crate) mod pki;
pub(crate) mod volume;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

pub(crate) use crate::ports::free_port;
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a slow machine that compiles at the same time.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// The binary, with nothing in its environment that could steer it.
pub(crate) fn actorum() -> Command {
    binary(Path::new(env!("CARGO_BIN_EXE_actorum")))
}

/// The same of another binary.
fn binary(path: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ACTORUM_")) {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    actorum().args(args).stdin(Stdio::null()).output().expect("the binary runs")
}

/// Looks until there is something; panics with the name of what never came.
pub(crate) fn wait<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_for(what, TIMEOUT, look)
}

/// The same with a timeout of its own.
pub(crate) fn wait_for<T>(what: &str, timeout: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + timeout;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "still waiting after {timeout:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What came back: the status, and the body as JSON (`null` if it is none) and as text.
#[derive(Debug)]
pub(crate) struct HttpReply {
    pub status: u16,
    pub body: Value,
    pub text: String,
    pub content_type: String,
}

impl HttpReply {
    /// The code of an error.
    pub(crate) fn code(&self) -> &str {
        self.body["error"].as_str().unwrap_or("")
    }
}

/// One HTTP request, bounded in time, errors of the transport included.
pub(crate) fn try_call(method: &str, url: &str, body: &[u8]) -> Result<HttpReply, String> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).proxy(None);
    let agent = ureq::Agent::new_with_config(config.build());
    let request = ureq::http::Request::builder().method(method).uri(url);
    let bodyless = matches!(method, "GET" | "DELETE") && body.is_empty();
    let response = match bodyless {
        true => request.body(()).map_err(|e| e.to_string()).and_then(|r| agent.run(r).map_err(|e| e.to_string())),
        false => request.body(body).map_err(|e| e.to_string()).and_then(|r| agent.run(r).map_err(|e| e.to_string())),
    };
    let mut response = response?;
    let content_type = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let text = response.body_mut().with_config().limit(8 << 20).read_to_string().map_err(|e| e.to_string())?;
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok(HttpReply { status: response.status().as_u16(), body, text, content_type })
}

/// The same, where the transport must not fail.
pub(crate) fn call(method: &str, url: &str, body: impl AsRef<[u8]>) -> HttpReply {
    try_call(method, url, body.as_ref()).unwrap_or_else(|e| panic!("{method} {url}: {e}"))
}

/// A stream of server-sent events.
pub(crate) struct Stream(pub BufReader<Box<dyn Read + Send>>);

impl Stream {
    /// From what `/events` answers.
    pub(crate) fn open(url: &str) -> Stream {
        let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build());
        let response = agent.get(url).call().expect("a stream");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream(BufReader::new(Box::new(response.into_body().into_reader())))
    }

    /// The next event: (id, event, data). Comments are skipped.
    pub(crate) fn next(&mut self) -> (u64, String, Value) {
        let (mut id, mut event, mut data) = (0, String::new(), Value::Null);
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).expect("a line"), 0, "the stream ended");
            match line.trim_end().split_once(": ") {
                Some(("id", value)) => {
                    let (cluster, index) = value.split_once(':').expect("CLUSTER:INDEX");
                    assert_eq!(cluster.len(), 32, "{value}");
                    id = index.parse().expect("an index");
                }
                Some(("event", value)) => event = value.to_owned(),
                Some(("data", value)) => data = serde_json::from_str(value).expect("JSON"),
                _ if line == "\n" && !event.is_empty() => return (id, event, data),
                _ => {}
            }
        }
    }
}

/// Nodes and the directory that they share: certificates, data, logs.
pub(crate) struct Lab {
    // Dropped in this order: the nodes end before their directory goes.
    nodes: BTreeMap<u64, Node>,
    founders: Vec<String>,
    settings: Vec<(String, String)>,
    arguments: Vec<String>,
    places: BTreeMap<u64, PathBuf>,
    by_hand: bool,
    stderr: Option<fn() -> Stdio>,
    binary: Option<PathBuf>,
    dir: TempDir,
}

impl Lab {
    /// Certificates for these nodes; nobody runs.
    pub(crate) fn new(ids: &[u64]) -> Lab {
        Lab::with_binary(None, ids)
    }

    /// The same with another binary than this build's, for every node until it [is of this
    /// build](Node::is_of_this_build).
    pub(crate) fn of(binary: PathBuf, ids: &[u64]) -> Lab {
        Lab::with_binary(Some(binary), ids)
    }

    fn with_binary(binary: Option<PathBuf>, ids: &[u64]) -> Lab {
        let dir = tempfile::Builder::new().prefix("actorum-test-").tempdir().expect("a temporary directory");
        let (nodes, places) = (BTreeMap::new(), BTreeMap::new());
        let (founders, settings, arguments) = (vec![], vec![], vec![]);
        let lab = Lab { nodes, founders, settings, arguments, places, by_hand: false, stderr: None, binary, dir };
        lab.certify(ids);
        lab
    }

    /// Three founders that have found their leader.
    pub(crate) fn three() -> Lab {
        let mut lab = Lab::new(&[1, 2, 3]);
        lab.found(&[1, 2, 3]);
        lab.leader();
        lab
    }

    /// An environment variable for every node that is first started from now on.
    pub(crate) fn set(&mut self, variable: &str, value: &str) {
        self.settings.push((variable.to_owned(), value.to_owned()));
    }

    /// Further arguments for every node that is first started from now on.
    pub(crate) fn with(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    }

    /// Where a node that is first started from now on keeps its data, if not in the shared directory.
    pub(crate) fn place(&mut self, id: u64, data: PathBuf) {
        self.places.insert(id, data);
    }

    /// Starts nodes as a person or a supervisor does: without the flag that ties them to this process, and with nothing
    /// on their standard input.
    pub(crate) fn by_hand(&mut self) {
        self.by_hand = true;
    }

    /// Gives nodes that are first started from now on this standard error, in place of a file.
    pub(crate) fn stderr(&mut self, stderr: fn() -> Stdio) {
        self.stderr = Some(stderr);
    }

    /// More certificates.
    pub(crate) fn certify(&self, ids: &[u64]) {
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        let certs = self.path("certs");
        let mut command = self.binary.as_deref().map_or_else(actorum, binary);
        command.args(["certs", certs.to_str().expect("UTF-8"), "--nodes", &ids.join(",")]);
        let made = command.stdin(Stdio::null()).output().expect("the binary runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Starts these nodes as founders of one cluster.
    pub(crate) fn found(&mut self, ids: &[u64]) {
        self.founders = ids.iter().map(|id| format!("{id}={}", free_port())).collect();
        for id in ids {
            self.start(*id);
        }
    }

    /// The founders, as `--peer` takes them.
    pub(crate) fn founders(&self) -> Vec<String> {
        self.founders.clone()
    }

    /// Starts a founder, or starts a node again by the command it had, and waits until it serves.
    pub(crate) fn start(&mut self, id: u64) {
        self.launch(id);
        self.node_mut(id).wait_until_it_serves();
    }

    /// Waits until a node that was launched serves.
    pub(crate) fn serves(&mut self, id: u64) {
        self.node_mut(id).wait_until_it_serves();
    }

    /// The same as [`Lab::start`] without waiting.
    pub(crate) fn launch(&mut self, id: u64) {
        let founder = self.founders.iter().find_map(|peer| peer.strip_prefix(&format!("{id}=")));
        if !self.nodes.contains_key(&id) {
            let listen = founder.expect("a founder, or started before").parse().expect("an address");
            let bootstrap = self.founders.iter().flat_map(|peer| ["--peer".to_owned(), peer.clone()]).collect();
            self.define(id, listen, bootstrap);
        }
        self.node_mut(id).spawn();
    }

    /// Starts an empty node that waits to be added.
    pub(crate) fn start_waiting(&mut self, id: u64) {
        self.define(id, free_port(), vec!["--wait".to_owned()]);
        self.start(id);
    }

    /// Says how a node is to be started, without starting it.
    pub(crate) fn define(&mut self, id: u64, listen: SocketAddr, bootstrap: Vec<String>) {
        let path = |what: &str| self.path(&format!("{what}-{id}"));
        let node = Node {
            id,
            listen,
            http: free_port(),
            admin: free_port(),
            data: self.places.get(&id).cloned().unwrap_or_else(|| path("data")),
            certs: self.path("certs").join(format!("node-{id}")),
            log: path("log"),
            report: path("report"),
            bootstrap: [bootstrap, self.arguments.clone()].concat(),
            settings: self.settings.clone(),
            by_hand: self.by_hand,
            stderr: self.stderr,
            binary: self.binary.clone(),
            child: None,
        };
        self.nodes.insert(id, node);
    }

    /// One of them.
    pub(crate) fn node(&self, id: u64) -> &Node {
        self.nodes.get(&id).unwrap_or_else(|| panic!("node {id} was never started"))
    }

    /// One of them, to kill.
    pub(crate) fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("node {id} was never started"))
    }

    /// Those that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.child.is_some())
    }

    /// Waits until every running node follows one leader among them, and returns it.
    pub(crate) fn leader(&self) -> u64 {
        let running: Vec<u64> = self.running().map(|node| node.id).collect();
        self.leader_of(&running)
    }

    /// The same of these nodes.
    pub(crate) fn leader_of(&self, ids: &[u64]) -> u64 {
        wait(&format!("one leader that nodes {ids:?} follow"), || {
            let statuses: Vec<Value> = ids.iter().filter_map(|id| self.node(*id).try_status()).collect();
            let leader = statuses.iter().find(|s| s["role"] == "leader")?["id"].as_u64()?;
            let all = statuses.len() == ids.len() && statuses.iter().all(|s| s["leader"] == leader);
            all.then_some(leader)
        })
    }

    /// Somewhere in the shared directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// So that a failed test shows what the nodes had to say.
impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in self.nodes.values() {
                eprintln!("--- the end of the log of node {}\n{}", node.id, node.last_words(30));
            }
        }
    }
}

/// A node: how to start it, and its process while it runs.
pub(crate) struct Node {
    pub id: u64,
    pub listen: SocketAddr,
    pub data: PathBuf,
    http: SocketAddr,
    admin: SocketAddr,
    certs: PathBuf,
    log: PathBuf,
    report: PathBuf,
    bootstrap: Vec<String>,
    settings: Vec<(String, String)>,
    by_hand: bool,
    stderr: Option<fn() -> Stdio>,
    binary: Option<PathBuf>,
    child: Option<Child>,
}

impl Node {
    /// `http://ADDRESS/PATH` of the public API.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// The same of the members API.
    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// `ADDRESS` of the members API.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// From its next start on.
    pub(crate) fn is_of_this_build(&mut self) {
        self.binary = None;
    }

    /// From its next start on.
    pub(crate) fn is_of(&mut self, binary: PathBuf) {
        self.binary = Some(binary);
    }

    /// Without this environment variable, from its next start on.
    pub(crate) fn unset(&mut self, variable: &str) {
        self.settings.retain(|(name, _)| name != variable);
    }

    /// An environment variable, from its next start on.
    pub(crate) fn set(&mut self, variable: &str, value: &str) {
        self.settings.push((variable.to_owned(), value.to_owned()));
    }

    /// What it says of itself.
    pub(crate) fn status(&self) -> Value {
        let answer = call("GET", &self.url("/status"), "");
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body
    }

    /// The same, unless it does not answer.
    pub(crate) fn try_status(&self) -> Option<Value> {
        Some(try_call("GET", &self.url("/status"), b"").ok()?.body)
    }

    /// Sets a key.
    pub(crate) fn put(&self, key: &str, value: &str) -> HttpReply {
        call("PUT", &self.url(&format!("/kv/{key}")), value)
    }

    /// Reads a key, linearizably.
    pub(crate) fn get(&self, key: &str) -> HttpReply {
        call("GET", &self.url(&format!("/kv/{key}")), "")
    }

    /// Reads a key from the node's own state.
    pub(crate) fn get_stale(&self, key: &str) -> HttpReply {
        call("GET", &self.url(&format!("/kv/{key}?consistency=stale")), "")
    }

    /// Waits until it has applied an index.
    pub(crate) fn wait_applied(&self, index: u64) {
        wait(&format!("node {} to apply entry {index}", self.id), || {
            (self.try_status()?["applied_index"].as_u64()? >= index).then_some(())
        });
    }

    fn spawn(&mut self) {
        assert!(self.child.is_none(), "node {} runs already", self.id);
        let _ = fs::remove_file(&self.report);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = self.binary.as_deref().map_or_else(actorum, binary);
        command.arg("serve").args(self.arguments()).args(&self.bootstrap).envs(self.settings.iter().cloned());
        command.arg("--report").arg(&self.report);
        match self.by_hand {
            true => command.stdin(Stdio::null()),
            false => command.arg("--stop-when-stdin-closes").stdin(Stdio::piped()),
        };
        command
            .stdout(log.try_clone().expect("a log file"))
            .stderr(self.stderr.map_or_else(|| log.into(), |other| other()));
        self.child = Some(command.spawn().expect("the binary starts"));
    }

    /// What `serve` is told, how to begin excepted.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let (id, listen) = (self.id.to_string(), self.listen.to_string());
        let (http, admin) = (self.http.to_string(), self.admin.to_string());
        let args = [
            ["--id", &id],
            ["--data", &path(&self.data)],
            ["--certs", &path(&self.certs)],
            ["--listen", &listen],
            ["--http", &http],
            ["--admin", &admin],
        ];
        args.into_iter().flatten().map(str::to_owned).collect()
    }

    fn wait_until_it_serves(&mut self) {
        let report: Value = wait(&format!("node {} to serve", self.id), || {
            let ended = self.child.as_mut().expect("started").try_wait().expect("a child");
            assert!(ended.is_none(), "node {} ended: {}", self.id, self.last_words(10));
            serde_json::from_slice(&fs::read(&self.report).ok()?).ok()
        });
        let address = |name: &str| report[name].as_str().expect("an address").parse().expect("an address");
        // The same ports after a restart: whoever holds the URLs goes on.
        (self.http, self.admin) = (address("http"), address("admin"));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// SIGSTOP: it runs no further, as from the moment at which its power goes.
    pub(crate) fn freeze(&self) {
        let sent = Command::new("kill").args(["-STOP", &self.pid().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// A signal that it should outlive.
    pub(crate) fn send(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM")
    }

    /// Closes its standard input, as the end of this process would.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.child.as_mut().expect("it runs").stdin.take().expect("a pipe"));
    }

    /// A signal that ends it, and how it ended.
    pub(crate) fn signal(&mut self, name: &str) -> ExitStatus {
        self.send(name);
        self.wait_until_it_ends()
    }

    /// Waits until it has ended by itself, and says how.
    pub(crate) fn wait_until_it_ends(&mut self) -> ExitStatus {
        let ended = wait(&format!("node {} to end", self.id), || {
            self.child.as_mut().expect("it runs").try_wait().expect("a child")
        });
        self.child = None;
        ended
    }

    /// The last lines of its log.
    pub(crate) fn last_words(&self, lines: usize) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The ids of processes whose command line holds this text; what `/proc` shows is what runs.
pub(crate) fn processes_with(text: &str) -> Vec<u32> {
    let ids = fs::read_dir("/proc").expect("proc").filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    })
    .collect()
}
