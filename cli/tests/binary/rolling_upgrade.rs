//! From earlier versions to this one: clusters of their real binaries, exchanged node by node under load and back
//! again, and directories that they wrote.
//!
//! The binaries are built from the commits with which those versions ended; `.ci/run` does that and passes their paths:
//!
//! ```text
//!  ACTORUM_FIRST_VERSION=/path/to/its/actorum ACTORUM_PREVIOUS_VERSION=/path/to/the/other cargo test --test binary rolling_upgrade::
//! ```
//!
//! The previous version is the last one without announcements (`Feature::Activation`). Without a binary the tests that
//! need it print `SKIPPED`; where privileged tests must run (`ACTORUM_PRIVILEGED=1`), they fail.

use std::path::{Path, PathBuf};

use crate::lab::{
    self, Lab, call,
    directory::{copy, lives, met},
    wait,
};
use crate::load::{Acknowledged, History, Load, judge};
use serde_json::Value;

/// The first version's binary.
fn first_version() -> Option<PathBuf> {
    older_binary("ACTORUM_FIRST_VERSION")
}

/// The binary of the last version without announcements.
fn previous_version() -> Option<PathBuf> {
    older_binary("ACTORUM_PREVIOUS_VERSION")
}

fn older_binary(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if let Some(path) = path {
        assert!(path.is_file(), "{variable} names no file: {}", path.display());
        return Some(path);
    }
    let must = std::env::var("ACTORUM_PRIVILEGED").is_ok_and(|value| value == "1");
    assert!(!must, "{variable} is not set, and ACTORUM_PRIVILEGED says that nothing is skipped");
    println!("SKIPPED: {variable} does not name that version's binary");
    None
}

/// Waits until each of these nodes has the present life of each other on record.
fn all_met(lab: &Lab, ids: &[u64]) {
    for (id, of) in ids.iter().flat_map(|id| ids.iter().map(move |of| (*id, *of))).filter(|(id, of)| id != of) {
        met(lab, id, of);
    }
}

/// From its next start on a node is of this build, and would use at once what the first version does not know.
fn upgrade(lab: &mut Lab, id: u64) {
    lab.node_mut(id).is_of_this_build();
    lab.node_mut(id).set("ACTORUM_HASH_CHECK_ENTRIES", "10");
}

/// Node by node, the leader last: ended in order, or killed, and started from this build, while clients write. At every
/// step the nodes of both versions follow one leader and acknowledge writes; at the end all hold all of them.
fn roll(binary: PathBuf, snapshots: bool) -> (Lab, Acknowledged) {
    let ids = [1, 2, 3];
    let mut lab = Lab::of(binary, &ids);
    if snapshots {
        lab.set("ACTORUM_SNAPSHOT_ENTRIES", "30");
        lab.set("ACTORUM_LOG_KEEP_ENTRIES", "5");
    }
    lab.found(&ids);
    let leader = lab.leader();
    let load = Load::start(&lab, &ids, 3);
    load.wait_for(50);
    let order: Vec<u64> = ids.into_iter().filter(|id| *id != leader).chain([leader]).collect();
    for (nth, id) in order.iter().enumerate() {
        match nth {
            1 => lab.node_mut(*id).kill(),
            _ => drop(lab.node_mut(*id).terminate()),
        }
        load.wait_for(60);
        upgrade(&mut lab, *id);
        lab.start(*id);
        lab.leader();
        load.wait_for(50);
        for other in &order[nth + 1..] {
            let status = lab.node(*other).status();
            assert!(status["leader"].is_u64(), "node {other} of the first version goes on: {status}");
            assert!(lives(&lab, *other).is_none(), "node {other} is of the first version");
        }
    }

    // With all of them on this build, what is new is in use: and they can be started again, with their lives on record.
    all_met(&lab, &ids);
    for id in ids {
        wait(&format!("node {id} to compare hashes"), || lab.node(id).try_status()?["state_hash"]["index"].as_u64());
        assert_eq!(lab.node(id).status()["divergence"], Value::Null);
    }
    for id in ids {
        assert_eq!(lab.node_mut(id).terminate().code(), Some(0));
        lab.start(id);
        lab.leader();
        load.wait_for(20);
    }
    all_met(&lab, &ids);
    let acknowledged = load.finish();
    println!("{} writes acknowledged while the cluster was rolled", acknowledged.len());
    // Each one read back, by a linearizable read, through one node or another, and from each node's own state.
    for (nth, key) in acknowledged.keys().enumerate() {
        let read = lab.node(ids[nth % 3]).get(key);
        assert_eq!((read.status, read.body["value"].as_str()), (200, Some(key.as_str())), "{}", read.text);
    }
    let last = acknowledged.values().max().copied().expect("some");
    for id in ids {
        lab.node(id).wait_applied(last);
        for key in acknowledged.keys() {
            let read = lab.node(id).get_stale(key);
            assert_eq!(read.body["value"].as_str(), Some(key.as_str()), "node {id}, {key}: {}", read.text);
        }
    }
    (lab, acknowledged)
}

/// From the events of each node: nothing is lost, and nothing applied twice.
#[test]
fn a_cluster_of_the_first_version_is_rolled_under_load() {
    let Some(binary) = first_version() else { return };
    let (lab, acknowledged) = roll(binary, false);
    judge(&lab, &acknowledged, &mut History::default(), "end", |_| 0);
}

/// Snapshots are taken so often, and so little is kept behind them, that who was away is sent one, by whichever version
/// leads.
#[test]
fn a_cluster_of_the_first_version_is_rolled_by_its_snapshots() {
    let Some(binary) = first_version() else { return };
    let (lab, _) = roll(binary, true);
    let first = |id| lab.node(id).status()["first_index"].as_u64().expect("an index");
    assert!([1, 2, 3].into_iter().all(|id| first(id) > 2), "no log reaches back to its beginning");
}

/// A node of this build beside two of the first version, and back: it speaks to them as before, however often it is
/// started.
#[test]
fn a_node_of_this_build_lives_with_nodes_of_the_first_version() {
    let Some(binary) = first_version() else { return };
    let mut lab = Lab::of(binary, &[1, 2, 3]);
    lab.found(&[1, 2, 3]);
    lab.leader();
    lab.node_mut(3).kill();
    upgrade(&mut lab, 3);
    for n in 0..3 {
        lab.start(3);
        // It leads, too: what a leader of this build proposes is what the others have to understand.
        lab.leader();
        for other in [1, 2] {
            lab.node_mut(other).kill();
            lab.leader_of(&[3, 3 - other]);
            lab.start(other);
        }
        let leader = lab.leader();
        for m in 0..20 {
            let put = lab.node(leader).put(&format!("k{n}-{m}"), "x");
            assert_eq!(put.status, 200, "{}", put.text);
            for id in [1, 2, 3] {
                lab.node(id).wait_applied(put.body["index"].as_u64().expect("an index"));
            }
        }
        lab.node_mut(3).kill();
    }
}

/// Stops this node, the second time by its power, and starts it from this build or from the older binary.
fn exchange(lab: &mut Lab, id: u64, binary: Option<&Path>, kills: bool) {
    if kills {
        lab.node_mut(id).kill();
    } else {
        assert_eq!(lab.node_mut(id).terminate().code(), Some(0));
    }
    match binary {
        Some(binary) => lab.node_mut(id).is_of(binary.to_owned()),
        None => lab.node_mut(id).is_of_this_build(),
    }
    lab.start(id);
    lab.leader();
}

/// The version before announcements, forward node by node under load, back as long as nobody has put anything to use,
/// and forward for good. Nothing is lost, nobody diverges, and afterwards the older binary is refused with the
/// directory as it was.
#[test]
fn a_cluster_of_the_previous_version_is_rolled_forward_and_back_and_forward() {
    let Some(binary) = previous_version() else { return };
    let ids = [1, 2, 3];
    let mut lab = Lab::of(binary.clone(), &ids);
    lab.set("ACTORUM_HASH_CHECK_ENTRIES", "20");
    lab.set("ACTORUM_LOG_KEEP_ENTRIES", "0");
    lab.found(&ids);
    lab.leader();
    let load = Load::start(&lab, &ids, 3);
    load.wait_for(50);
    // Only this build knows the setting.
    for id in ids {
        lab.node_mut(id).set("ACTORUM_ACTIVATE", "manual");
        exchange(&mut lab, id, None, id == 2);
        load.wait_for(40);
    }
    let versions = |lab: &Lab, id: u64| lab.node(id).status()["versions"].clone();
    wait("all to know what the others understand", || {
        let waiting = versions(&lab, 1)["not_in_use"].as_array()?.clone();
        (!waiting.is_empty() && waiting.iter().all(|one| one["lacking"] == serde_json::json!([]))).then_some(())
    });
    for id in ids {
        let versions = versions(&lab, id);
        assert_eq!(
            (&versions["features"], &versions["manual"]),
            (&serde_json::json!([]), &Value::Bool(true)),
            "node {id}"
        );
    }
    // All the way back, since nothing new is in any log.
    for id in ids {
        lab.node_mut(id).unset("ACTORUM_ACTIVATE");
        exchange(&mut lab, id, Some(&binary), id == 1);
        load.wait_for(40);
    }
    for id in ids {
        exchange(&mut lab, id, None, id == 3);
        load.wait_for(40);
    }
    for id in ids {
        wait(&format!("node {id} to use what all understand"), || {
            let features = versions(&lab, id)["features"].as_array()?.len();
            (features >= 5 && versions(&lab, id)["not_in_use"] == serde_json::json!([])).then_some(())
        });
        wait(&format!("node {id} to compare hashes"), || lab.node(id).try_status()?["state_hash"]["index"].as_u64());
        assert_eq!(lab.node(id).status()["divergence"], Value::Null);
    }
    load.wait_for(60);
    let acknowledged = load.finish();
    println!("{} writes acknowledged while the cluster was rolled", acknowledged.len());
    judge(&lab, &acknowledged, &mut History::default(), "end", |_| 0);

    // There is no way back for a directory now: the older binary says so, and loses nothing. Neither where the entries
    // are still in the log, nor where only snapshots are left.
    for round in 0..2 {
        assert_eq!(lab.node(2).put(&format!("last-{round}"), "x").status, 200);
        let taken = call("POST", &lab.node(2).admin_url("/snapshot"), "");
        assert_eq!(taken.status, 200, "{}", taken.text);
    }
    let used = versions(&lab, 2)["features"].as_array().map(Vec::len);
    wait("the log to be cut behind what put features to use", || {
        let status = lab.node(2).status();
        (status["first_index"].as_u64()? > status["applied_index"].as_u64()? - 20).then_some(())
    });
    assert_eq!(lab.node_mut(2).terminate().code(), Some(0));
    lab.node_mut(2).is_of(binary.clone());
    lab.launch(2);
    let ended = lab.node_mut(2).wait_until_it_ends();
    let words = lab.node(2).last_words(20);
    assert!(!ended.success() && words.contains("missing field `last_time_us`"), "{ended}: {words}");
    lab.node_mut(2).is_of_this_build();
    lab.start(2);
    assert_eq!(versions(&lab, 2)["features"].as_array().map(Vec::len), used);
    assert_eq!(lab.node_mut(3).terminate().code(), Some(0));
    lab.node_mut(3).is_of(binary);
    lab.launch(3);
    let ended = lab.node_mut(3).wait_until_it_ends();
    let words = lab.node(3).last_words(20);
    assert!(!ended.success() && words.contains("cannot decode the committed system command"), "{ended}: {words}");
    lab.node_mut(3).is_of_this_build();
    lab.start(3);
    let last = acknowledged.values().max().copied().expect("some");
    lab.node(3).wait_applied(last);
}

/// `cli/tests/data/NAME` was written by an older version: node 1, alone, with three writes, a snapshot, and two more.
/// What it says of its openings begins with this one.
fn opens(name: &str, first_boot: u64) {
    let mut lab = Lab::new(&[1]);
    let data = lab.path("data-1");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name), &data);
    let inspected = lab::run(&["inspect", data.to_str().expect("UTF-8"), "--verify"]);
    assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stdout));
    lab.found(&[1]);
    for round in 0..2 {
        lab.leader();
        for key in ["a", "b", "c", "d", "e"] {
            let read = lab.node(1).get(key);
            assert_eq!(read.body["value"], format!("value of {key}"), "round {round}: {}", read.text);
        }
        assert_eq!(lab.node(1).put("f", "value of f").status, 200);
        let own = lives(&lab, 1).expect("a file of lives").own;
        let boots: Vec<u64> = own.iter().map(|life| life.boot).collect();
        assert_eq!(boots, (first_boot..=2 + round).collect::<Vec<_>>());
        wait("what all understand to be in use", || {
            let versions = lab.node(1).status()["versions"].clone();
            (versions["not_in_use"] == serde_json::json!([])).then_some(())
        });
        assert_eq!(lab.node_mut(1).terminate().code(), Some(0));
        lab.start(1);
    }
    assert_eq!(lab.node(1).get("f").body["value"], "value of f");
}

#[test]
fn a_directory_of_the_first_version_opens() {
    // It drew no nonce at its opening.
    opens("first-version", 2);
}

/// Of the last version without announcements.
#[test]
fn a_directory_of_the_version_before_announcements_opens() {
    opens("before-announcements", 1);
}
