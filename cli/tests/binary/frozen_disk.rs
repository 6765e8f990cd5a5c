//! A disk that freezes, fills or turns read-only under a node of a running cluster, for real.
//!
//! Each node has an ext4 of its own on a loop mount. Needs root, loop devices, mkfs.ext4 and fsfreeze; where one is
//! missing the tests are skipped with a line that says so, and with `ACTORUM_PRIVILEGED=1` (as in CI) that is a
//! failure.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use crate::lab::{
    Lab, Node, try_call,
    volume::{LoopMount, skipped, succeeds},
    wait,
};
use serde_json::Value;

/// The default of `election_ms`.
const ELECTION: Duration = Duration::from_millis(1000);

/// Three founders, each on a disk of its own. Dropped in this order, after the nodes were killed: the mounts go before
/// the directory that they are in.
struct Cluster {
    disks: Vec<LoopMount>,
    lab: Lab,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Before the nodes are killed and waited for.
        for disk in &self.disks {
            disk.thaw();
        }
        for id in 1..=3 {
            if self.lab.running().any(|node| node.id == id) {
                self.lab.node_mut(id).kill();
            }
        }
    }
}

impl Cluster {
    fn new(mib: u64, settings: &[(&str, &str)]) -> Cluster {
        let mut lab = Lab::new(&[1, 2, 3]);
        settings.iter().for_each(|(name, value)| lab.set(name, value));
        let disks: Vec<LoopMount> = (1..=3).map(|id| LoopMount::new(&lab, id, mib)).collect();
        (1..=3).for_each(|id| lab.place(id, disks[id as usize - 1].data()));
        let mut cluster = Cluster { lab, disks };
        cluster.lab.found(&[1, 2, 3]);
        cluster.lab.leader();
        cluster
    }

    fn disk(&self, id: u64) -> &LoopMount {
        &self.disks[id as usize - 1]
    }

    fn others(&self, id: u64) -> Vec<u64> {
        (1..=3).filter(|other| *other != id).collect()
    }
}

/// A write that need not succeed: whether it was acknowledged.
fn put(node: &Node, key: &str) -> bool {
    let url = node.url(&format!("/kv/{key}?timeout_ms=500"));
    try_call("PUT", &url, key.as_bytes()).is_ok_and(|answer| answer.status == 200)
}

fn disk_state(node: &Node) -> Option<String> {
    Some(node.try_status()?["disk"]["state"].as_str()?.to_owned())
}

fn has_all(node: &Node, keys: &[String]) {
    for key in keys {
        let answer = node.get_stale(key);
        assert_eq!(
            (answer.status, answer.body["value"].as_str()),
            (200, Some(key.as_str())),
            "{key} on node {}",
            node.id
        );
    }
}

#[test]
fn writes_flow_again_when_the_disk_of_the_leader_freezes() {
    if skipped("writes_flow_again_when_the_disk_of_the_leader_freezes") {
        return;
    }
    let cluster = Cluster::new(128, &[("ACTORUM_LOW_SPACE_BYTES", "0")]);
    let lab = &cluster.lab;
    let old = lab.leader();
    let others = cluster.others(old);
    let mut acked: Vec<String> = Vec::new();
    for n in 0..20 {
        let key = format!("before-{n}");
        assert!(put(lab.node(others[0]), &key));
        acked.push(key);
    }

    cluster.disk(old).freeze();
    let frozen = Instant::now();
    // The first write is what meets the frozen disk; it is acknowledged once another leads.
    let mut tries = 0;
    wait("a write to be acknowledged", || {
        tries += 1;
        let key = format!("after-{tries}");
        put(lab.node(others[tries % 2]), &key).then(|| acked.push(key))
    });
    let first = frozen.elapsed();
    let new = lab.leader_of(&others);
    assert_ne!(new, old);
    let settled = frozen.elapsed();
    println!("{first:?} after the freeze a write was acknowledged, {settled:?} after it both follow node {new}");
    for n in 0..20 {
        let key = format!("on-{n}");
        assert!(put(lab.node(others[n % 2]), &key), "writes flow");
        acked.push(key);
    }

    // The old leader says what is wrong, without a write to that disk.
    let status = wait("the frozen node to say that its disk is suspect", || {
        let status = lab.node(old).try_status()?;
        (status["disk"]["state"] == "suspect" && status["role"] == "follower" && status["leader"] == new)
            .then_some(status)
    });
    assert!(status["disk"]["waiting_ms"].as_u64().unwrap() >= 1000, "{}", status["disk"]);
    assert_eq!(status["stopped"], Value::Null);
    let metrics = try_call("GET", &lab.node(old).url("/metrics"), b"").unwrap().text;
    assert!(metrics.contains("actorum_disk_state{state=\"suspect\"} 1"), "{metrics}");
    assert!(first < 6 * ELECTION, "a write took {first:?} after the freeze");

    assert!(cluster.disk(old).thaw());
    wait("the thawed disk to be trusted again", || (disk_state(lab.node(old))? == "ok").then_some(()));
    assert_eq!(lab.leader(), new, "leadership is not taken back");
    let newest = lab.node(new).status()["commit_index"].as_u64().unwrap();
    lab.node(old).wait_applied(newest);
    has_all(lab.node(old), &acked);
    assert!(put(lab.node(old), "last"));
}

#[test]
fn a_leader_low_on_space_hands_over_and_recovers_in_the_same_run() {
    if skipped("a_leader_low_on_space_hands_over_and_recovers_in_the_same_run") {
        return;
    }
    let settings = [("ACTORUM_LOW_SPACE_BYTES", "20000000"), ("ACTORUM_RESERVE_BYTES", "4000000")];
    let cluster = Cluster::new(160, &settings);
    let lab = &cluster.lab;
    let old = lab.leader();
    let pid = lab.node(old).pid();
    assert!(put(lab.node(old), "a"));
    let free = lab.node(old).status()["disk"]["free_bytes"].as_u64().unwrap();
    let filler = cluster.disk(old).mount.join("filler");
    File::create(&filler).unwrap().write_all(&vec![1; (free - 10_000_000) as usize]).unwrap();

    wait("the leader to transfer leadership", || {
        let status = lab.node(old).try_status()?;
        (status["disk"]["state"] == "low" && status["role"] == "follower" && status["leader"].is_u64()).then_some(())
    });
    // It follows, and serves its clients through the new leader.
    assert!(put(lab.node(old), "b"));

    fs::remove_file(&filler).unwrap();
    wait("the disk to have room again", || (disk_state(lab.node(old))? == "ok").then_some(()));
    assert_eq!(lab.node(old).pid(), pid, "the same run");
    has_all(lab.node(old), &["a".to_owned(), "b".to_owned()]);
}

/// What a real write error ends: this process, with the reason; and what it acknowledged is there when it starts again.
fn dies_and_comes_back(test: &str, fail: impl FnOnce(&LoopMount), repair: impl FnOnce(&LoopMount)) -> Option<Cluster> {
    if skipped(test) {
        return None;
    }
    let mut cluster = Cluster::new(160, &[("ACTORUM_LOW_SPACE_BYTES", "0"), ("ACTORUM_RESERVE_BYTES", "33554432")]);
    let old = cluster.lab.leader();
    let others = cluster.others(old);
    wait("the ballast", || cluster.disk(old).data().join("ballast").exists().then_some(()));
    let mut acked: Vec<String> = (0..20).map(|n| format!("before-{n}")).collect();
    assert!(acked.iter().all(|key| put(cluster.lab.node(old), key)));

    fail(cluster.disk(old));
    let mut n = 0;
    // Small writes fit into what the engine has set aside: it takes a few to meet the error.
    let body = vec![b'x'; 100_000];
    let ended = wait("the node to end because of its disk", || {
        n += 1;
        let url = cluster.lab.node(others[n % 2]).url(&format!("/kv/big-{}?timeout_ms=500", n % 40));
        let _ = try_call("PUT", &url, &body);
        let gone = !Path::new(&format!("/proc/{}", cluster.lab.node(old).pid())).exists();
        let ended = gone || cluster.lab.node(old).try_status().is_none_or(|status| status["disk"]["state"] == "dead");
        ended.then(|| cluster.lab.node_mut(old).wait_until_it_ends())
    });
    assert_eq!(ended.code(), Some(1), "a supervisor shall know");
    let words = cluster.lab.node(old).last_words(20);
    assert!(
        words.contains("the log writer: ") && words.contains("start it again once the disk can be written"),
        "{words}"
    );
    println!("node {old} ended after {n} writes: {}", words.lines().last().unwrap_or_default());

    // The others go on.
    wait("a write through the others", || put(cluster.lab.node(others[0]), "on").then_some(()));
    acked.push("on".to_owned());

    repair(cluster.disk(old));
    cluster.lab.start(old);
    let newest = cluster.lab.node(others[0]).status()["commit_index"].as_u64().unwrap();
    cluster.lab.node(old).wait_applied(newest);
    has_all(cluster.lab.node(old), &acked);
    Some(cluster)
}

#[test]
fn a_full_disk_ends_the_node_and_the_ballast_opens_it_again() {
    let kept = |disk: &LoopMount| assert!(disk.data().join("ballast").exists(), "nobody gave it up so far");
    // Nothing is cleared away: the ballast alone lets the node open its log, and follow for a while.
    let name = "a_full_disk_ends_the_node_and_the_ballast_opens_it_again";
    let Some(cluster) = dies_and_comes_back(name, |disk| drop(disk.fill()), kept) else { return };
    let given_up = cluster.disks.iter().filter(|disk| !disk.data().join("ballast").exists()).count();
    assert_eq!(given_up, 1, "it was what made the room");
}

#[test]
fn a_disk_that_turns_read_only_ends_the_node() {
    // As ext4 does it to itself with `errors=remount-ro`.
    let abort = |disk: &LoopMount| assert!(disk.is(&["mount", "-o", "remount,abort"]), "the journal is aborted");
    let repair = |disk: &LoopMount| {
        assert!(disk.is(&["umount"]), "nobody holds it");
        // Its status says only whether anything had to be repaired.
        let (image, mount) = (disk.image.to_str().unwrap(), disk.mount.to_str().unwrap());
        succeeds("fsck.ext4", &["-p", image]);
        assert!(succeeds("mount", &["-o", "loop", image, mount]), "mount {image}");
    };
    dies_and_comes_back("a_disk_that_turns_read_only_ends_the_node", abort, repair);
}
