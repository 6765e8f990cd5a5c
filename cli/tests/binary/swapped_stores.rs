//! Parts of data directories put where they do not belong: `serve` refuses each with a specific error.
//!
//! The watermark is what finds out: it says what the node once made durable, and for which life of which directory. An
//! older watermark under a newer log is what a crash leaves, and starts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::lab::{self, Lab, directory::copy, wait};

/// A cluster of one.
struct Alone {
    lab: Lab,
}

impl Alone {
    fn new() -> Alone {
        let mut lab = Lab::new(&[1]);
        lab.found(&[1]);
        lab.leader();
        Alone { lab }
    }

    fn dir(&self) -> PathBuf {
        self.lab.node(1).data.clone()
    }

    fn put(&self, key: &str) -> u64 {
        let put = self.lab.node(1).put(key, key);
        assert_eq!(put.status, 200, "{}", put.text);
        put.body["index"].as_u64().expect("an index")
    }

    /// Ends it in order, and takes a copy of its directory.
    fn stop_and_copy(&mut self, name: &str) -> PathBuf {
        assert_eq!(self.lab.node_mut(1).terminate().code(), Some(0));
        let copied = self.lab.path(name);
        copy(&self.dir(), &copied);
        copied
    }

    /// Puts a part of another directory in the place of its own.
    fn swap(&self, part: &str, from: &Path) {
        let mine = self.dir().join(part);
        match mine.is_dir() {
            true => fs::remove_dir_all(&mine).expect("a directory"),
            false => fs::remove_file(&mine).expect("a file"),
        }
        match from.join(part) {
            part if part.is_dir() => copy(&part, &mine),
            part => drop(fs::copy(part, mine).expect("a copy")),
        }
    }

    /// What `serve` says when it ends with an error, twice the same; and that `inspect --verify` finds it too, by this
    /// name.
    fn refused(&mut self, found: &str) -> String {
        let mut words = || {
            self.lab.launch(1);
            let ended = self.lab.node_mut(1).wait_until_it_ends();
            let words = self.lab.node(1).last_words(1);
            assert_eq!(ended.code(), Some(1), "{words}");
            words
        };
        let (first, again) = (words(), words());
        assert_eq!(first, again, "for good");
        let dir = self.dir();
        assert!(first.starts_with("error: ") && first.contains(dir.to_str().expect("UTF-8")), "{first}");
        let inspected = lab::run(&["inspect", dir.to_str().expect("UTF-8"), "--verify"]);
        let text = String::from_utf8_lossy(&inspected.stdout).into_owned();
        assert_eq!(inspected.status.code(), Some(1), "{text}");
        assert!(text.contains(found), "`{found}` is not in: {text}");
        first
    }

    fn serves(&mut self, keys: &[&str]) {
        self.lab.start(1);
        self.lab.leader();
        for key in keys {
            assert_eq!(self.lab.node(1).get(key).body["value"], *key);
        }
    }
}

fn contains(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

/// The log of an earlier day, put back by hand or by a disk that lies.
#[test]
fn an_older_log_is_refused() {
    let mut node = Alone::new();
    node.put("early");
    let older = node.stop_and_copy("older");
    node.serves(&["early"]);
    let index = node.put("late");
    let newer = node.stop_and_copy("newer");
    node.swap("log", &older);
    let refusal = node.refused("it was rolled back");
    contains(&refusal, &["was rolled back", "had made term", &format!("index {index}@"), "It may not vote"]);
    contains(&refusal, &["Bring back the newer directory, or add the node again under a new id with an empty one"]);
    // The way out that it names is one.
    node.swap("log", &newer);
    node.serves(&["early", "late"]);
}

/// The same, taken while the node ran on and was killed: what it made durable it had also marked.
#[test]
fn an_older_log_is_refused_after_a_kill() {
    let mut node = Alone::new();
    node.put("early");
    let older = node.stop_and_copy("older");
    node.serves(&["early"]);
    node.put("late");
    node.lab.node_mut(1).kill();
    node.swap("log", &older);
    // It led a term since, so its vote alone gives it away, whatever of the index was marked.
    contains(&node.refused("it was rolled back"), &["was rolled back", "it holds term"]);
}

/// The other way round it is what a crash leaves: the log is synced first, the watermark after it.
#[test]
fn an_older_watermark_starts() {
    let mut node = Alone::new();
    node.put("early");
    let older = node.stop_and_copy("older");
    node.serves(&["early"]);
    node.put("late");
    node.stop_and_copy("newer");
    node.swap("watermark", &older);
    node.serves(&["early", "late"]);
    node.put("later");
}

/// The directory, the log, or the watermark of another node, and of another life of this one.
#[test]
fn what_belongs_to_another_is_refused() {
    let mut node = Alone::new();
    node.put("k");
    let mine = node.stop_and_copy("mine");
    let mut other = Lab::new(&[2]);
    other.found(&[2]);
    other.leader();
    assert_eq!(other.node_mut(2).terminate().code(), Some(0));
    let others = other.node(2).data.clone();
    let mut again = Alone::new();
    again.put("k");
    let life = again.stop_and_copy("another-life");
    let incarnation = |dir: &Path| {
        let text = fs::read_to_string(dir.join("node")).expect("a node file");
        text.lines().find_map(|line| line.strip_prefix("incarnation ")).expect("an incarnation").to_owned()
    };

    node.swap("log", &others);
    contains(&node.refused("owner of the store: it says node 2"), &["owner of the store is damaged: it says node 2"]);
    node.swap("log", &life);
    contains(
        &node.refused("owner of the store: it says node 1"),
        &["owner of the store is damaged: it says node 1, incarnation", &incarnation(&life), "under a new id"],
    );
    node.swap("log", &mine);

    node.swap("watermark", &life);
    contains(
        &node.refused("watermark: it belongs to incarnation"),
        &[
            "watermark is damaged: it belongs to incarnation",
            &incarnation(&life),
            &incarnation(&mine),
            "under a new id",
        ],
    );
    node.swap("watermark", &mine);

    // The whole directory of node 2: nothing is wrong with it, but it is not this node's.
    fs::remove_dir_all(node.dir()).expect("a directory");
    copy(&others, &node.dir());
    node.lab.launch(1);
    let ended = node.lab.node_mut(1).wait_until_it_ends();
    let words = node.lab.node(1).last_words(1);
    assert_eq!(ended.code(), Some(1), "{words}");
    contains(&words, &["belongs to node 2, not to node 1: check the node's id and its data directory"]);

    // And all of it back in its place.
    fs::remove_dir_all(node.dir()).expect("a directory");
    copy(&mine, &node.dir());
    node.serves(&["k"]);
}

/// A founder whose log is older than what it promised does not come back into the majority: the other two go on without
/// it.
#[test]
fn the_others_go_on_without_it() {
    let mut lab = Lab::three();
    assert_eq!(lab.node(1).put("early", "x").status, 200);
    lab.leader();
    assert_eq!(lab.node_mut(2).terminate().code(), Some(0));
    let (data, older) = (lab.node(2).data.clone(), lab.path("older"));
    copy(&data.join("log"), &older);
    lab.start(2);
    lab.leader();
    let late = lab.node(1).put("late", "x").body["index"].as_u64().expect("an index");
    lab.node(2).wait_applied(late);
    assert_eq!(lab.node_mut(2).terminate().code(), Some(0));
    fs::remove_dir_all(data.join("log")).expect("a directory");
    copy(&older, &data.join("log"));
    lab.launch(2);
    let ended = lab.node_mut(2).wait_until_it_ends();
    assert_eq!(ended.code(), Some(1));
    contains(&lab.node(2).last_words(1), &["was rolled back", "It may not vote with it"]);
    let leader = lab.leader_of(&[1, 3]);
    wait("the others to go on", || (lab.node(leader).put("on", "x").status == 200).then_some(()));
    assert_eq!(lab.node(leader).get("late").body["value"], "x");
}

/// What becomes of a directory in which one file is not what it was. Words that are part of the refusal; `None`: it
/// starts with all that was acknowledged.
type Fate = Option<&'static [&'static str]>;

/// What may be wrong with a file, or with a folder.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Missing,
    Older,
    Empty,
    Others,
}

#[test]
fn one_file_is_missing() {
    one_file_at_a_time(Change::Missing);
}

#[test]
fn one_file_is_of_an_earlier_day() {
    one_file_at_a_time(Change::Older);
}

#[test]
fn one_file_is_empty() {
    one_file_at_a_time(Change::Empty);
}

#[test]
fn one_file_is_another_nodes() {
    one_file_at_a_time(Change::Others);
}

/// Every file and folder of a directory by itself.
///
/// Each is refused by a sentence that names it, or does not matter. Before, a lives file that was missing or older let
/// the node start, and its peers refused it without end.
fn one_file_at_a_time(change: Change) {
    const STARTS: Fate = None;
    let table: [(&str, [Fate; 4]); 8] = [
        // what missing older empty another node's
        (
            "node",
            [
                Some(&["node file is damaged: it is missing, but there is a watermark"]),
                Some(&["node file is damaged: it counts 1 openings", "the lives file knows opening 3"]),
                Some(&["node file is damaged"]),
                Some(&["belongs to node 2, not to node 1"]),
            ],
        ),
        (
            "watermark",
            [
                Some(&["watermark is damaged: it is missing"]),
                STARTS,
                Some(&["watermark is damaged: it has 0 bytes"]),
                Some(&["watermark is damaged: it belongs to incarnation"]),
            ],
        ),
        (
            "lives",
            [
                Some(&["lives file is damaged: it is missing, and the node file says that it knew opening 3"]),
                Some(&[
                    "was rolled back: ",
                    "a lives file up to opening 1",
                    "the record of opening 3",
                    "add the node again",
                ]),
                Some(&["lives file is damaged: it is too short"]),
                Some(&["lives file is damaged: it belongs to incarnation"]),
            ],
        ),
        (
            "log",
            [
                Some(&["was rolled back", "no log at all"]),
                Some(&["was rolled back", "It may not vote"]),
                Some(&["was rolled back", "no log at all"]),
                Some(&["owner of the store is damaged: it says node 2"]),
            ],
        ),
        // The engine's own files by themselves.
        (
            "log/db",
            [Some(&["was rolled back", "no log at all"]), Some(&["error: "]), Some(&["error: "]), Some(&["error: "])],
        ),
        // Who holds it, for people; room that is made again; the block that says whether the disk answers.
        ("lock", [STARTS; 4]),
        ("ballast", [STARTS; 4]),
        ("probe", [STARTS; 4]),
    ];
    let mut node = Alone::new();
    node.put("first");
    let older = node.stop_and_copy("older");
    node.serves(&["first"]);
    node.put("second");
    node.stop_and_copy("between");
    node.serves(&["first", "second"]);
    node.put("third");
    let mine = node.stop_and_copy("mine");
    let mut other = Lab::new(&[2]);
    other.found(&[2]);
    other.leader();
    assert_eq!(other.node_mut(2).terminate().code(), Some(0));
    let others = other.node(2).data.clone();

    for (part, fates) in table {
        let dir = node.dir();
        fs::remove_dir_all(&dir).expect("a directory");
        copy(&mine, &dir);
        let path = dir.join(part);
        match change {
            Change::Older => node.swap(part, &older),
            Change::Others => node.swap(part, &others),
            Change::Missing | Change::Empty if path.is_dir() => {
                fs::remove_dir_all(&path).expect("a directory");
                if change == Change::Empty {
                    fs::create_dir(&path).expect("a directory");
                }
            }
            Change::Missing => fs::remove_file(&path).expect("a file"),
            Change::Empty => fs::write(&path, "").expect("a file"),
        }
        node.lab.launch(1);
        let Some(words) = fates[change as usize] else {
            node.lab.serves(1);
            node.lab.leader();
            for key in ["first", "second", "third"] {
                assert_eq!(node.lab.node(1).get(key).body["value"], key, "{part} {change:?}");
            }
            node.put("fourth");
            assert_eq!(node.lab.node_mut(1).terminate().code(), Some(0), "{part} {change:?}");
            continue;
        };
        let ended = node.lab.node_mut(1).wait_until_it_ends();
        let said = node.lab.node(1).last_words(1);
        assert_eq!(ended.code(), Some(1), "{part} {change:?}: {said}");
        assert!(
            said.starts_with("error: ") && words.iter().all(|words| said.contains(words)),
            "{part} {change:?}: {said}"
        );
    }
    // And all of it back in its place.
    fs::remove_dir_all(node.dir()).expect("a directory");
    copy(&mine, &node.dir());
    node.serves(&["first", "second", "third"]);
}
