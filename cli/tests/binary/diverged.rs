//! Nodes that hold another log than the others, with real processes: a stopped node's committed entries are exchanged
//! for others of the same index and term, by the store itself, so that every checksum, the watermark and the lives are
//! right. Nothing at opening can find that; the hashes of what is applied do, which the nodes compare at marks.

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, mpsc::channel},
};

use actorum_core::{log::store::Write, wire::Entry};
use actorum_machine::ids::{GroupId, Incarnation};
use actorum_store::log::{
    sled::{OpenOptions, SledStore},
    store::{Batch, LogStore},
};
use serde_json::{Value, json};

use crate::lab::{self, Lab, Node, call, directory::let_go, wait};

const GROUP: GroupId = GroupId::FIRST;

/// A mark every so many entries: often enough for a short test.
const MARK: u64 = 10;

/// Three nodes with a mark every [`MARK`] entries.
fn three() -> Lab {
    let mut lab = Lab::new(&[1, 2, 3, 4]);
    lab.set("ACTORUM_HASH_CHECK_ENTRIES", &MARK.to_string());
    lab.found(&[1, 2, 3]);
    lab.leader();
    lab
}

/// Writes these keys, each acknowledged; the index of each.
fn write(lab: &Lab, through: u64, name: &str, numbers: Range<u64>) -> Vec<u64> {
    let write = |n| {
        let put = lab.node(through).put(&format!("{name}-{n}"), &format!("value of {name}-{n};"));
        assert_eq!(put.status, 200, "{}", put.text);
        put.body["index"].as_u64().expect("an index")
    };
    numbers.map(write).collect()
}

/// Writes thirty keys. A mark is an entry, which the leader proposes when it is due: writes do not wait for it, and on
/// a busy machine many would come before it. Here the next ten wait, so that marks stand close to each other.
fn write_between_marks(lab: &Lab, leader: u64) -> Vec<u64> {
    let mut indexes = Vec::new();
    for tens in 0..3 {
        indexes.extend(write(lab, leader, "k", tens * MARK..(tens + 1) * MARK));
        equal_after(lab, &[leader], indexes[(tens * MARK) as usize]);
    }
    equal_after(lab, &[1, 2, 3], *indexes.last().expect("some"));
    indexes
}

/// Waits until these nodes have applied and compared a mark after this index, and nobody differs.
fn equal_after(lab: &Lab, ids: &[u64], index: u64) {
    for id in ids {
        let mut looks = 0;
        wait(&format!("node {id} to hash what follows entry {index}"), || {
            // Marks come with entries; the one that is due comes by itself.
            looks += 1;
            if looks % 10 == 0 {
                write(lab, ids[0], "filler", 0..1);
            }
            let status = lab.node(*id).try_status()?;
            assert!(status["divergence"].is_null(), "{status}");
            (status["state_hash"]["index"].as_u64()? > index).then_some(())
        });
    }
}

/// Exchanges entries of a stopped node's log, from the first that is changed to the last. What is written has right
/// checksums.
fn alter(data: &Path, change: impl FnOnce(&mut Vec<Entry>)) {
    let id = actorum_store::log::directory::read_node(data).expect("a node file").id;
    let store = Box::new(SledStore::open(data, OpenOptions::new(id, Incarnation(0))).expect("a sound directory"));
    let recovered = store.recover(GROUP).expect("a log");
    let first = recovered.compacted_index() + 1;
    let mut entries = store.reader().entries(GROUP, first, recovered.last_index + 1, usize::MAX).expect("its entries");
    let before = entries.clone();
    change(&mut entries);
    let at = entries.iter().zip(&before).position(|(now, before)| now != before).expect("something is changed");
    let shape = |entries: &[Entry]| entries.iter().map(|entry| (entry.index, entry.term)).collect::<Vec<_>>();
    assert_eq!(shape(&entries), shape(&before), "Raft cannot tell the two apart");
    let (heard, completed) = channel();
    let mut appender = store.start(Arc::new(move |completion| heard.send(completion).expect("the test listens")));
    let write = Write { group: GROUP, entries: entries.split_off(at), ..Write::default() };
    appender.submit(Batch { writes: vec![write], sync: true });
    completed.recv_timeout(lab::TIMEOUT).expect("it answers").result.expect("it is written");
    drop(appender);
    let_go(data);
}

/// The entry at an index.
fn at(entries: &mut [Entry], index: u64) -> &mut Entry {
    entries.iter_mut().find(|entry| entry.index == index).expect("the log reaches back to it")
}

/// Other bytes of the same length in an entry's command.
fn reword(entry: &mut Entry, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let data = entry.data.to_vec();
    let at =
        data.windows(from.len()).position(|bytes| bytes == from.as_bytes()).expect("the command holds these words");
    let mut data = data;
    data[at..at + to.len()].copy_from_slice(to.as_bytes());
    entry.data = data.into();
}

/// Node 4, with an empty directory, becomes a voter.
fn add_four(lab: &mut Lab, leader: u64) {
    lab.start_waiting(4);
    let learner = json!({ "id": 4, "address": lab.node(4).listen.to_string(), "role": "learner" }).to_string();
    let added = call("POST", &lab.node(leader).admin_url("/members"), learner);
    assert_eq!(added.status, 200, "{}", added.text);
    let promoted = call("POST", &lab.node(leader).admin_url("/members/4/promote?timeout_ms=20000"), "");
    assert_eq!(promoted.status, 200, "{}", promoted.text);
}

fn diverged(node: &Node, side: &str) -> Option<Value> {
    let status = node.try_status()?;
    (status["divergence"]["side"] == side).then_some(status)
}

/// It ends with the error that names the entries between which it differs.
fn stops(lab: &mut Lab, id: u64, index: u64) {
    let ended = lab.node_mut(id).wait_until_it_ends();
    let words = lab.node(id).last_words(5);
    assert_eq!(ended.code(), Some(1), "{words}");
    let said = words.lines().find(|line| line.contains("error: ")).unwrap_or_else(|| panic!("no error: {words}"));
    assert!(said.contains("this node has applied other entries"), "{said}");
    assert!(said.contains("remove this node, and add it again under a new id with an empty directory"), "{said}");
    let number = |after: &str| -> u64 {
        let rest = said.split_once(after).unwrap_or_else(|| panic!("no `{after}`: {said}")).1;
        rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("a number")
    };
    let (from, to) = if said.contains(" up to index ") {
        (0, number(" up to index "))
    } else {
        (number(" between the indexes "), number(" and "))
    };
    assert!(from < index && index <= to, "entry {index} was changed: {said}");
    assert!(to - from <= 3 * MARK, "the marks around it are told: {said}");
}

/// Node 3 is stopped, changed and started again: it differs from a majority, and stops, each time it is started. The
/// others say so, go on, and are silent again once it is replaced in the way that the error names.
fn one_that_differs_stops(change: impl FnOnce(&mut Vec<Entry>, &[u64])) {
    let mut lab = three();
    let leader = lab.leader();
    let indexes = write_between_marks(&lab, leader);
    assert_eq!(lab.node_mut(3).terminate().code(), Some(0));
    alter(&lab.node(3).data, |entries| change(entries, &indexes));
    for _ in 0..2 {
        lab.launch(3);
        stops(&mut lab, 3, indexes[15]);
    }
    let leader = lab.leader();
    for id in [1, 2] {
        let status = wait(&format!("node {id} to say who differs"), || diverged(lab.node(id), "majority"));
        let values = status["divergence"]["values"].as_object().expect("values");
        assert!(values["3"] != values[&id.to_string()], "{status}");
        let ready = call("GET", &lab.node(id).url("/readyz"), "");
        assert_eq!(ready.status, 200, "{}", ready.text);
        let warnings = ready.body["warnings"].as_array().expect("warnings").clone();
        assert!(warnings.iter().any(|warning| warning["reason"] == "diverged"), "{}", ready.text);
    }
    write(&lab, leader, "after", 0..20);

    let removed = call("DELETE", &lab.node(leader).admin_url("/members/3"), "");
    assert_eq!(removed.status, 200, "{}", removed.text);
    add_four(&mut lab, leader);
    for id in [1, 2, 4] {
        wait(&format!("node {id} to find all equal"), || {
            write(&lab, leader, "filler", 0..1);
            let status = lab.node(id).try_status()?;
            let hashed = status["state_hash"]["index"].as_u64()? > indexes[29];
            (hashed && status["divergence"].is_null()).then_some(())
        });
        assert_eq!(call("GET", &lab.node(id).url("/readyz"), "").status, 200);
    }
    assert_eq!(lab.node(4).get("k-15").body["value"], "value of k-15;");
}

#[test]
fn a_node_whose_log_holds_another_command_stops_with_the_index() {
    one_that_differs_stops(|entries, indexes| reword(at(entries, indexes[15]), "value of k-15;", "VALUE of k-15;"));
}

/// All commands are there, in another order.
#[test]
fn a_node_whose_log_holds_the_commands_in_another_order_stops_with_the_index() {
    one_that_differs_stops(|entries, indexes| {
        let (one, other) = (at(entries, indexes[15]).clone(), at(entries, indexes[16]).clone());
        (at(entries, indexes[15]).data, at(entries, indexes[15]).context) = (other.data, other.context);
        (at(entries, indexes[16]).data, at(entries, indexes[16]).context) = (one.data, one.context);
    });
}

/// Of three that differ from each other nobody can tell who is right: nobody stops, everybody says so and is not ready.
/// One that knows it from elsewhere replaces one of the others; then there is a majority, and the third stops.
#[test]
fn without_a_majority_nobody_stops_and_everybody_says_so() {
    let mut lab = three();
    let leader = lab.leader();
    let indexes = write_between_marks(&lab, leader);
    for id in [1, 2, 3] {
        assert_eq!(lab.node_mut(id).terminate().code(), Some(0));
    }
    for id in [2, 3] {
        let other = format!("VALUE no {id}-15;");
        alter(&lab.node(id).data, |entries| reword(at(entries, indexes[15]), "value of k-15;", &other));
    }
    for id in [1, 2, 3] {
        lab.start(id);
    }
    for id in [1, 2, 3] {
        let status = wait(&format!("node {id} to say that there is no majority"), || {
            diverged(lab.node(id), "undecided")
                .filter(|status| status["divergence"]["values"].as_object().is_some_and(|v| v.len() == 3))
        });
        let (from, to) = (status["divergence"]["equal_until"].as_u64(), status["divergence"]["index"].as_u64());
        assert!(from < Some(indexes[15]) && to >= Some(indexes[15]), "{status}");
        let ready = call("GET", &lab.node(id).url("/readyz"), "");
        assert_eq!((ready.status, ready.code()), (503, "diverged"), "{}", ready.text);
        assert!(ready.text.contains("no majority of the voters agrees"), "{}", ready.text);
        wait(&format!("node {id} to say so in its log"), || {
            let log = lab.node(id).last_words(usize::MAX);
            log.contains("different entries were applied on nodes").then_some(())
        });
    }
    // Nobody stopped, and marks that follow change nothing of that.
    let leader = lab.leader();
    write(&lab, leader, "more", 0..3 * MARK);
    for id in [1, 2, 3] {
        let status = lab.node(id).status();
        assert_eq!(
            (&status["stopped"], &status["divergence"]["side"]),
            (&Value::Null, &json!("undecided")),
            "{status}"
        );
    }

    // The operator takes the leader's word: the two others are exchanged, one by one.
    let [one, other]: [u64; 2] =
        [1, 2, 3].into_iter().filter(|id| *id != leader).collect::<Vec<_>>().try_into().expect("two");
    let removed = call("DELETE", &lab.node(leader).admin_url(&format!("/members/{one}")), "");
    assert_eq!(removed.status, 200, "{}", removed.text);
    add_four(&mut lab, leader);
    lab.node_mut(one).wait_until_it_ends();
    stops(&mut lab, other, indexes[15]);
    for id in [leader, 4] {
        wait(&format!("node {id} to be of the majority"), || diverged(lab.node(id), "majority"));
        assert_eq!(call("GET", &lab.node(id).url("/readyz"), "").status, 200);
    }
}

/// One against one, while the third voter is away: that is no majority either. It decides when it is back.
#[test]
fn the_third_voter_decides_when_it_is_back() {
    let mut lab = three();
    let leader = lab.leader();
    let indexes = write_between_marks(&lab, leader);
    // Node 2, too, so that it has forgotten what the others reported.
    for id in [1, 2, 3] {
        assert_eq!(lab.node_mut(id).terminate().code(), Some(0));
    }
    alter(&lab.node(3).data, |entries| reword(at(entries, indexes[15]), "value of k-15;", "VALUE of k-15;"));
    lab.start(2);
    lab.start(3);
    for id in [2, 3] {
        wait(&format!("node {id} to say that there is no majority"), || diverged(lab.node(id), "undecided"));
        let ready = call("GET", &lab.node(id).url("/readyz"), "");
        assert_eq!((ready.status, ready.code()), (503, "diverged"), "{}", ready.text);
    }
    lab.launch(1);
    stops(&mut lab, 3, indexes[15]);
    for id in [1, 2] {
        wait(&format!("node {id} to be of the majority"), || diverged(lab.node(id), "majority"));
        wait(&format!("node {id} to be ready"), || {
            (call("GET", &lab.node(id).url("/readyz"), "").status == 200).then_some(())
        });
    }
}
