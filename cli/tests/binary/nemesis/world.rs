//! The world that a run happens in: hosts behind a switch that misbehaves on order, each with a disk whose power can be
//! cut.
//!
//! ```text
//!  clients ──HTTP over mgmt0, which no fault touches──▶ node i ──QUIC over eth0──▶ switch.py ──▶ the other nodes
//!                                                        └─ ext4 on a loop device
//! ```
//!
//! Everything is named after the process that made it, so that a run finds and removes what one that was killed left
//! behind.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Once,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::lab::{self, wait};

/// Names of namespaces and folders begin with this, then come the process id and which of its worlds it is.
const PREFIX: &str = "anm";

/// What is missing on this machine, if anything.
pub(crate) fn missing() -> Option<&'static str> {
    let works = |program: &str, args: &[&str]| {
        let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    match () {
        () if !root => Some("root"),
        () if !Path::new("/dev/loop-control").exists() => Some("loop devices"),
        () if !Path::new("/dev/net/tun").exists() => Some("/dev/net/tun"),
        () if !works("mkfs.ext4", &["-V"]) => Some("mkfs.ext4 (e2fsprogs)"),
        () if !works("ip", &["netns", "list"]) => Some("ip netns (iproute2)"),
        () if !works("nsenter", &["--version"]) => Some("nsenter (util-linux)"),
        () if !works("python3", &["--version"]) => Some("python3"),
        () => None,
    }
}

/// Runs a tool that must succeed.
fn sh(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The same, where it does not matter.
fn try_sh(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|done| done.status.success())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn switch_py() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/switch.py")
}

/// Where runs put what they need, and leave it when they fail.
fn runs() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("nemesis")
}

/// Removes what runs left whose process is gone. Evidence stays.
fn clean_up() {
    let gone = |name: &str| {
        let pid = name.strip_prefix(PREFIX)?.split('-').next()?;
        (pid.len() > 2 && !Path::new("/proc").join(pid).exists()).then_some(())
    };
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten();
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
    };
    for namespace in names(Path::new("/run/netns")) {
        // The last figure is the host's.
        if gone(&namespace[..namespace.len().saturating_sub(1)]).is_some() {
            eprintln!("removing {namespace}, which a run left that was killed");
            sh("python3", &[text(&switch_py()), "--remove", &namespace]);
        }
    }
    for run in names(&runs()).into_iter().filter(|name| gone(name).is_some()) {
        for part in names(&runs().join(&run)) {
            let part = runs().join(&run).join(part);
            if part.extension().is_some_and(|ext| ext == "mount") {
                let _ = try_sh("umount", &[text(&part)]) || try_sh("umount", &["-l", text(&part)]);
                let _ = fs::remove_dir(&part);
                let _ = fs::remove_file(part.with_extension("image"));
            }
        }
        if !runs().join(&run).join("verdict.txt").exists() {
            let _ = fs::remove_dir_all(runs().join(&run));
        }
    }
}

/// The switch's process.
struct Switch {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Switch {
    fn start(hosts: u64, seed: u64, prefix: &str, mgmt: &str) -> Switch {
        let mut command = Command::new("python3");
        command.arg(switch_py()).args(["--hosts", &hosts.to_string(), "--seed", &seed.to_string()]);
        command.args(["--prefix", prefix, "--mgmt", mgmt]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the switch");
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut switch = Switch { child, orders, answers };
        assert_eq!(switch.answer(), json!({ "ready": true }));
        switch
    }

    fn order(&mut self, order: Value) -> Value {
        writeln!(self.orders.as_mut().expect("it runs"), "{order}").expect("the switch listens");
        self.answer()
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the switch answers");
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("the switch ended ({e}): {line}"));
        assert!(answer["error"].is_null(), "{answer}");
        answer
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// A node: its process while it runs, its disk while it is mounted.
struct Node {
    child: Option<Child>,
    paused: bool,
    /// Whether it is meant to run.
    up: bool,
}

/// Hosts, the network between them, their disks, and the nodes on them.
pub(crate) struct World {
    // Dropped by hand, in the order of `Drop`.
    nodes: BTreeMap<u64, Node>,
    switch: Option<Switch>,
    prefix: String,
    /// Management addresses are 198.18.(this + id).2: a range that is for tests.
    mgmt: u64,
    /// Where this run keeps everything.
    pub dir: PathBuf,
    keep: bool,
    /// Disks that lie: what a node wrote between two of its deaths is gone after the second.
    pub forgetful_disks: bool,
}

impl World {
    /// Hosts with empty disks and certificates; nobody runs. Worlds of one process run beside each other.
    pub(crate) fn new(hosts: u64, seed: u64) -> World {
        static CLEAN: Once = Once::new();
        static MADE: AtomicU64 = AtomicU64::new(0);
        CLEAN.call_once(clean_up);
        let pid = std::process::id();
        // Evidence of a process that had the same id keeps its folder.
        let free = |n: &u64| !runs().join(format!("{PREFIX}{pid}-{n}")).exists();
        let number = std::iter::repeat_with(|| MADE.fetch_add(1, Relaxed)).find(free).expect("a number");
        let prefix = format!("{PREFIX}{pid}-{number}");
        let dir = runs().join(&prefix);
        fs::create_dir_all(&dir).expect("a folder");
        let mgmt = (u64::from(pid) + number) % 25 * 10;
        // From here on, what was made is removed however this ends.
        let mut world =
            World { nodes: BTreeMap::new(), switch: None, prefix, mgmt, dir, keep: false, forgetful_disks: false };
        world.switch = Some(Switch::start(hosts, seed, &world.prefix, &format!("198.18.{mgmt}")));
        let ids: Vec<String> = (1..=hosts).map(|id| id.to_string()).collect();
        let made = lab::run(&["certs", text(&world.dir.join("certs")), "--nodes", &ids.join(",")]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        for id in 1..=hosts {
            let (image, mount) = (world.image(id), world.mount(id));
            sh("truncate", &["-s", "2G", text(&image)]);
            sh("mkfs.ext4", &["-q", "-F", text(&image)]);
            fs::create_dir(&mount).expect("a folder");
            world.nodes.insert(id, Node { child: None, paused: false, up: false });
            world.mount_disk(id);
        }
        world
    }

    /// The ids of all nodes.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// Those that run and are not paused.
    pub(crate) fn awake(&self) -> Vec<u64> {
        let awake = |(id, node): (&u64, &Node)| (node.up && !node.paused).then_some(*id);
        self.nodes.iter().filter_map(awake).collect()
    }

    /// Where clients reach a node.
    pub(crate) fn url(&self, id: u64) -> String {
        format!("http://{}", self.http(id))
    }

    /// A program on the network of a host.
    pub(crate) fn on(&self, id: u64, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}{id}", self.prefix)).arg(program);
        command
    }

    /// Starts a node, by the same command each time.
    pub(crate) fn start(&mut self, id: u64) {
        let log = File::options().create(true).append(true).open(self.dir.join(format!("log-{id}"))).expect("a log");
        let mut command = self.on(id, env!("CARGO_BIN_EXE_actorum"));
        command.arg("serve");
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ACTORUM_")) {
            command.env_remove(name);
        }
        // Quick to elect: a short run shall see many leaders.
        command.env("ACTORUM_HEARTBEAT_MS", "50").env("ACTORUM_ELECTION_MS", "300");
        command.args(["--id", &id.to_string(), "--listen", &format!("10.77.0.{id}:7000")]);
        command.args(["--http", &self.http(id), "--stop-when-stdin-closes"]);
        command.arg("--data").arg(self.mount(id).join("data"));
        command.arg("--certs").arg(self.dir.join("certs").join(format!("node-{id}")));
        for peer in self.nodes.keys() {
            command.args(["--peer", &format!("{peer}=10.77.0.{peer}:7000")]);
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("a log")).stderr(log);
        let node = self.node(id);
        assert!(node.child.is_none(), "node {id} runs already");
        node.child = Some(command.spawn().expect("nsenter starts"));
        (node.up, node.paused) = (true, false);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, id: u64) {
        let node = self.node(id);
        (node.up, node.paused) = (false, false);
        let mut child = node.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        if self.forgetful_disks {
            self.forget(id);
        }
    }

    /// Brings back what the directory held at the node's last death; at its first, keeps that.
    fn forget(&mut self, id: u64) {
        let (data, before) = (self.mount(id).join("data"), self.mount(id).join("before"));
        if before.exists() {
            sh("rm", &["-rf", text(&data)]);
            sh("mv", &[text(&before), text(&data)]);
        } else {
            sh("cp", &["-a", text(&data), text(&before)]);
        }
    }

    /// SIGSTOP.
    pub(crate) fn pause(&mut self, id: u64) {
        self.signal(id, "-STOP");
        self.node(id).paused = true;
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, id: u64) {
        self.signal(id, "-CONT");
        self.node(id).paused = false;
    }

    /// Everything of a node that was not synced is gone, and so is the node.
    pub(crate) fn cut_power(&mut self, id: u64) {
        // Frozen first: nothing shall be said to anyone after the disk has gone.
        self.signal(id, "-STOP");
        // EXT4_IOC_SHUTDOWN without a flush of the journal.
        let cut = "import fcntl, os, struct, sys; \
                   fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";
        sh("python3", &["-c", cut, text(&self.mount(id))]);
        self.kill(id);
        let mount = self.mount(id);
        wait("the dead disk to be let go", || try_sh("umount", &[text(&mount)]).then_some(()));
    }

    /// After a power cut: the disk is there again.
    pub(crate) fn mount_disk(&self, id: u64) {
        sh("mount", &["-o", "loop", text(&self.image(id)), text(&self.mount(id))]);
    }

    /// A fault in one direction of one link; 0 ends it. Tells how many frames it has met on this link so far.
    pub(crate) fn link(&mut self, from: u64, to: u64, fault: &str, value: f64) -> u64 {
        let order = json!({ "from": from, "to": to, "fault": fault, "value": value });
        self.switch.as_mut().expect("a switch").order(order)[fault].as_u64().unwrap_or(0)
    }

    /// Ends all faults of the network, and tells what was done to frames since the start.
    pub(crate) fn heal(&mut self) -> Value {
        self.switch.as_mut().expect("a switch").order(json!({ "heal": true }))
    }

    /// A node that ended though nobody ended it, and its last words.
    pub(crate) fn deserter(&mut self) -> Option<String> {
        let ended = self.nodes.iter_mut().find_map(|(id, node)| {
            let status = node.child.as_mut()?.try_wait().expect("a child")?;
            Some((*id, status))
        });
        let (id, status) = ended?;
        let log = fs::read_to_string(self.dir.join(format!("log-{id}"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(15)..].join("\n");
        Some(format!("node {id} ended by itself ({status}):\n{last}"))
    }

    /// Keeps everything that tells what happened, and ends the rest.
    pub(crate) fn keep_evidence(&mut self) {
        self.keep = true;
    }

    fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("one of the nodes")
    }

    fn signal(&mut self, id: u64, signal: &str) {
        let pid = self.node(id).child.as_ref().expect("it runs").id();
        sh("kill", &[signal, &pid.to_string()]);
    }

    fn http(&self, id: u64) -> String {
        format!("198.18.{}.2:8000", self.mgmt + id)
    }

    fn image(&self, id: u64) -> PathBuf {
        self.dir.join(format!("disk-{id}.image"))
    }

    fn mount(&self, id: u64) -> PathBuf {
        self.dir.join(format!("disk-{id}.mount"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            if let Some(child) = &mut node.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        drop(self.switch.take());
        let keep = self.keep || thread::panicking();
        for id in self.ids() {
            let (image, mount) = (self.image(id), self.mount(id));
            if keep {
                // A disk whose power was cut may be there or not.
                let _ = try_sh("mountpoint", &["-q", text(&mount)])
                    || try_sh("mount", &["-o", "loop", text(&image), text(&mount)]);
                let _ = try_sh("cp", &["-a", text(&mount.join("data")), text(&self.dir.join(format!("data-{id}")))]);
            }
            for _ in 0..50 {
                if !try_sh("mountpoint", &["-q", text(&mount)]) || try_sh("umount", &[text(&mount)]) {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
            if try_sh("mountpoint", &["-q", text(&mount)]) {
                let _ = try_sh("umount", &["-l", text(&mount)]);
            }
            let _ = fs::remove_file(&image);
            let _ = fs::remove_dir(&mount);
        }
        if keep {
            eprintln!("evidence: {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
