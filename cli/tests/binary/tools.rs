//! The tools where they are used: backups into pipes and devices, inspections without room, commands of any
//! application, and who has to say who he is.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::FileTypeExt,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use crate::lab::{Lab, actorum, run};
use actorum::{Address, Bootstrap, MemoryNetwork, Network, Storage, prelude::*};
use serde::{Deserialize, Serialize};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

/// A node with fifty keys of some kilobytes.
fn one() -> Lab {
    let mut lab = Lab::new(&[1]);
    lab.found(&[1]);
    lab.leader();
    for n in 0..50 {
        let put = lab.node(1).put(&format!("key-{n}"), &format!("{n} ").repeat(2000));
        assert_eq!(put.status, 200, "{}", put.text);
    }
    lab
}

/// What arrived makes a node that has the state.
fn makes_a_node(lab: &Lab, backup: &[u8], name: &str) {
    let (file, data) = (lab.path(name), lab.path(&format!("node-of-{name}")));
    fs::write(&file, backup).expect("a file");
    let args = ["restore", text(&file), "--data", text(&data), "--id", "9", "--address", "h:1", "--who", "ada"];
    assert!(done(&run(&args)).contains("begins with node 9"));
}

#[test]
fn a_backup_goes_where_it_is_sent() {
    let lab = one();
    let url = lab.node(1).admin_url("");
    let to = |goal: &str| run(&["backup", &url, goal]);

    // Standard output: the backup there, and what is said of it on the other.
    let output = to("-");
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.starts_with("standard output: index ") && said.contains("BLAKE3 "), "{said}");
    makes_a_node(&lab, &output.stdout, "from-stdout");
    assert!(!Path::new("-").exists() && !Path::new("-.partial").exists());

    // A pipe with a name, which is there afterwards, and is one.
    let fifo = lab.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs").success());
    let reading = fifo.clone();
    let reader = thread::spawn(move || fs::read(reading).expect("it can be read"));
    assert!(done(&to(text(&fifo))).starts_with(&format!("{}: index ", text(&fifo))));
    makes_a_node(&lab, &reader.join().expect("it reads"), "from-fifo");
    assert!(fs::symlink_metadata(&fifo).expect("it is there").file_type().is_fifo());

    // Devices.
    let null = fs::metadata("/dev/null").expect("Linux").file_type();
    done(&to("/dev/null"));
    done(&run(&["backup", &url, "/dev/null", "--force"]));
    assert!(null.is_char_device() && fs::metadata("/dev/null").expect("Linux").file_type().is_char_device());
    refused(&to("/dev/full"), 1, &["/dev/full: No space left on device", "the backup is not complete"]);
    assert!(fs::metadata("/dev/full").expect("Linux").file_type().is_char_device());
    let through = run(&["backup", &url, "/dev/stdout"]);
    assert!(through.status.success(), "{}", stderr(&through));

    // A backup that nobody took is none, whatever else was asked for.
    let mut child =
        actorum().args(["backup", &url, "-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("it ends").code(), Some(1), "{said}");
    assert!(said.contains("standard output: Broken pipe") && said.contains("not complete"), "{said}");

    // A link stays one; what it names is replaced, if that is asked for.
    let (file, link) = (lab.path("monday"), lab.path("latest"));
    fs::write(&file, "an older one").expect("a file");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    refused(&to(text(&link)), 1, &["latest exists already", "--force"]);
    done(&run(&["backup", &url, text(&link), "--force"]));
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    makes_a_node(&lab, &fs::read(&file).expect("a backup"), "from-link");
    refused(&to(text(&lab.path("certs"))), 2, &["is a directory"]);
}

/// Read once, from wherever it can be written to: the same words as of a file, and the same node.
#[test]
fn a_backup_is_read_from_where_it_can_be_sent() {
    let lab = one();
    let file = lab.path("backup");
    done(&run(&["backup", &lab.node(1).admin_url(""), text(&file)]));
    let backup = fs::read(&file).expect("a backup");
    let restore = |from: &str, name: &str, content: &[u8]| {
        let data = lab.path(name);
        let mut child = actorum()
            .args(["restore", from, "--data", text(&data), "--id", "9", "--address", "h:1", "--who", "ada"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // Who refuses early need not read it all.
        let _ = stdin.write_all(content);
        drop(stdin);
        (child.wait_with_output().expect("it ends"), data)
    };
    for (from, name) in [("-", "of-stdin"), ("/dev/stdin", "of-dev-stdin")] {
        let (output, data) = restore(from, name, &backup);
        assert!(done(&output).contains("begins with node 9"), "{from}");
        assert!(done(&run(&["inspect", text(&data), "--verify"])).contains("restored from backup by ada"));
    }
    let fifo = lab.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs").success());
    let (writing, content) = (fifo.clone(), backup.clone());
    let writer = thread::spawn(move || fs::write(writing, content));
    assert!(done(&restore(text(&fifo), "of-fifo", b"").0).contains("begins with node 9"));
    writer.join().expect("no panic").expect("all of it was read");

    let (output, data) = restore("-", "of-half", &backup[..backup.len() / 2]);
    refused(&output, 1, &["standard input cannot be restored from"]);
    let (output, _) = restore("/dev/null", "of-half", b"");
    refused(&output, 1, &["/dev/null cannot be restored from"]);
    assert!(!data.exists(), "nothing was made");
    let (output, _) = restore("-", "of-stdin", &backup);
    refused(&output, 1, &["of-stdin is not empty"]);
}

/// What is wrong with the place is wrong whoever asks, and nobody is asked who they are for it.
#[test]
fn who_restores_is_asked_last() {
    let lab = Lab::new(&[1]);
    let (full, new) = (lab.path("full"), lab.path("new"));
    fs::create_dir(&full).and_then(|()| fs::write(full.join("something"), "else")).expect("a directory");
    let nobody = |data: &Path, id: &str, address: &str| {
        let mut command = actorum();
        command.env_remove("USER").env_remove("LOGNAME");
        command.args(["restore", "no-backup", "--data", text(data), "--id", id, "--address", address]);
        command.output().expect("it runs")
    };
    refused(&nobody(&full, "9", "h:1"), 1, &["full is not empty (it holds something)"]);
    refused(&nobody(&new, "0", "h:1"), 2, &["0 is not a node id"]);
    refused(&nobody(&new, "9", "nowhere"), 1, &["HOST:PORT"]);
    refused(&nobody(&new, "9", "h:1"), 1, &["no-backup"]);
}

/// Who looks need not say who looks: a container has no `USER`.
#[test]
fn a_name_is_asked_for_by_what_changes_something() {
    let mut lab = one();
    let url = lab.node(1).admin_url("");
    let file = lab.path("backup");
    done(&run(&["backup", &url, text(&file)]));
    lab.node_mut(1).terminate();
    let nobody = |args: &[&str], user: Option<&str>| {
        let mut command = actorum();
        command.env_remove("USER").env_remove("LOGNAME");
        if let Some(user) = user {
            command.env("USER", user);
        }
        command.args(args).output().expect("it runs")
    };
    let (data, new, bad) = (lab.node(1).data.clone(), lab.path("new"), lab.path("bad"));
    fs::write(&bad, "no backup").expect("a file");
    let survey = ["recover", "--data", text(&data)];
    let looked = nobody(&survey, None);
    refused(&looked, 1, &["nothing was changed", "--accept-loss"]);
    let said = stderr(&looked);
    let last = said.trim().rsplit(' ').next().expect("an index");
    let recover = ["recover", "--data", text(&data), "--accept-loss", last];
    refused(&nobody(&recover, None), 2, &["nothing was changed", "--who NAME"]);
    refused(&nobody(&recover, Some(" ")), 2, &["--who NAME"]);
    let restore =
        |file: &Path| ["restore", text(file), "--data", text(&new), "--id", "7", "--address", "h:1"].map(str::to_owned);
    let args = |args: &[String; 8]| args.to_vec();
    let run = |list: &[String], user| nobody(&list.iter().map(String::as_str).collect::<Vec<_>>(), user);
    refused(&run(&args(&restore(&bad)), None), 1, &["bad cannot be restored from"]);
    refused(&run(&args(&restore(&file)), None), 2, &["--who NAME"]);
    assert!(!new.exists(), "nothing was made");
    done(&run(&args(&restore(&file)), Some("ada")));
    done(&nobody(&[&recover[..], &["--who", "eve"]].concat(), Some("ada")));
    let inspected = done(&nobody(&["inspect", text(&data)], None));
    assert!(inspected.contains("by eve"), "{inspected}");
}

/// A temporary directory that is the problem is named, by the variable that names it.
#[test]
fn inspections_need_room() {
    let mut lab = one();
    lab.node_mut(1).terminate();
    let data = lab.node(1).data.clone();
    let inspect =
        |tmpdir: &str| actorum().args(["inspect", text(&data)]).env("TMPDIR", tmpdir).output().expect("it runs");
    for tmpdir in ["/nowhere/at/all", "/proc"] {
        refused(&inspect(tmpdir), 1, &["error: ", tmpdir, "TMPDIR"]);
    }
    // And one without room, where a filesystem can be mounted.
    let small = lab.path("small");
    fs::create_dir(&small).expect("a directory");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none", text(&small)]).output();
    if mounted.is_ok_and(|output| output.status.success()) {
        let refusal = inspect(text(&small));
        let unmounted = Command::new("umount").arg(&small).status();
        refused(&refusal, 1, &["error: ", text(&small), "No space left", "TMPDIR"]);
        assert!(unmounted.expect("umount runs").success(), "and nothing stays in it");
    } else {
        assert!(std::env::var_os("ACTORUM_PRIVILEGED").is_none(), "root can mount");
        println!("SKIPPED in part: only root mounts a small filesystem");
    }
    done(&inspect(text(lab.path("").as_path())));
    // One that is empty is none, and not the directory that one is in.
    let mut inspecting = actorum();
    inspecting.args(["inspect", text(&data), "--verify"]).env("TMPDIR", "").current_dir("/proc");
    done(&inspecting.output().expect("it runs"));
}

/// An application that this program knows nothing of.
#[derive(Default, Serialize, Deserialize)]
struct Seats(u64);

#[derive(Serialize, Deserialize)]
enum Order {
    Book { seat: u32, name: String, paid: Option<f64> },
    Cancel(u32),
    Close,
}

impl StateMachine for Seats {
    type Command = Order;
    type Response = u64;

    fn apply(&mut self, _: &ApplyContext, _: &Order) -> u64 {
        self.0 += 1;
        self.0
    }

    serde_snapshot!();
}

#[actix::test]
async fn commands_of_any_application_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let raft = RaftSystem::<Seats>::builder(1)
        .storage(Storage::Sled(dir.path().join("data")))
        .network(Network::Memory(MemoryNetwork::new()))
        .bootstrap(Bootstrap::Form([(1, Address::from("n1"))].into()))
        .start()
        .await
        .unwrap();
    raft.wait_for_leader(std::time::Duration::from_secs(30)).await.unwrap();
    raft.propose(Order::Book { seat: 7, name: "Ada \"A\"".into(), paid: Some(9.5) }).await.unwrap();
    raft.propose(Order::Book { seat: 8, name: String::new(), paid: None }).await.unwrap();
    raft.propose(Order::Cancel(7)).await.unwrap();
    raft.propose(Order::Close).await.unwrap();
    raft.shutdown().await;
    drop(raft);
    let said = done(&run(&["inspect", text(&dir.path().join("data")), "--entries", ".."]));
    for words in [
        r#" {"Book":{"seat":7,"name":"Ada \"A\"","paid":9.5}}"#,
        r#" {"Book":{"seat":8,"name":"","paid":null}}"#,
        r#" {"Cancel":7}"#,
        r#" "Close""#,
    ] {
        assert!(said.lines().any(|line| line.ends_with(words)), "`{words}` is not in: {said}");
    }
}

/// What is named in the place of a node's directory is told from a directory that cannot be looked at, by each tool
/// that takes one.
#[test]
fn what_is_no_directory_of_a_node_is_named_for_what_it_is() {
    let lab = Lab::new(&[1]);
    let (file, other, cycle) = (lab.path("a-file"), lab.path("other"), lab.path("cycle"));
    fs::write(&file, "text").expect("a file");
    fs::create_dir(&other).and_then(|()| fs::write(other.join("letter.txt"), "dear")).expect("a directory");
    // Like a directory without permission, which root does not know: it is there, and cannot be looked at.
    std::os::unix::fs::symlink(&cycle, &cycle).expect("a link");
    let nowhere = lab.path("nowhere");
    let (no_node, advice) = ("is not a node's data directory", "give the directory that `serve --data` has");
    for (dir, words) in [
        (&file, [no_node, "it is a file", advice]),
        (&other, [no_node, "it has no file named node", advice]),
        (&nowhere, [no_node, "there is nothing of that name", advice]),
        (&cycle, ["cannot look at it", "symbolic links", "cycle"]),
    ] {
        for tool in ["inspect", "compact"] {
            refused(&run(&[tool, text(dir)]), 1, &words);
        }
        let survey = run(&["recover", "--data", text(dir)]);
        let cause = if *dir == cycle { "symbolic links" } else { "none of these directories can be recovered from" };
        refused(&survey, 1, &[cause]);
        let table = String::from_utf8_lossy(&survey.stdout).into_owned();
        assert!(words.iter().all(|word| table.contains(word)), "{table}");
        let args = ["restore", "no-backup", "--data", text(dir), "--id", "9", "--address", "h:1", "--who", "ada"];
        let restored = run(&args);
        assert_eq!(restored.status.code(), Some(1), "{}", stderr(&restored));
    }
}
