//! Nothing that was acknowledged is lost: not when the power goes, not when the process is killed.
//!
//! The load is `examples/powercut_writer.rs`, the cuts are made by `tests/tools/powercut.py` on a loop-mounted ext4.
//! That needs root, loop devices, mkfs.ext4 and python3; where one is missing the power cuts are skipped with a line
//! that says so, and with `ACTORUM_PRIVILEGED=1` (as in CI) that is a failure. There are ten cuts, 40 in `.ci/run`, or
//! `CYCLES`.
//!
//! Both halves are needed: the second test takes the sync call out, and the harness must see the loss.

#[path = "../../tests/figures/mod.rs"]
mod figures;
#[path = "../../tests/mounts/mod.rs"]
mod mounts;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use figures::figure;
use mounts::{harness, skipped};

/// The example is built by every `cargo test` that does not name its targets; here, if it was not.
fn writer() -> PathBuf {
    let deps = env::current_exe().unwrap().parent().unwrap().to_owned();
    let path = deps.parent().unwrap().join("examples/powercut_writer");
    if !path.exists() {
        let mut build = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        build.args(["build", "--package", "actorum-actors", "--example", "powercut_writer"]);
        assert!(build.status().unwrap().success(), "the example builds");
    }
    assert!(path.exists(), "{} should be there: cargo build -p actorum-actors --examples", path.display());
    path
}

/// `with` names what the writer does otherwise than in a normal build.
fn cut_power(cycles: u64, with: &[&str]) -> Output {
    let writer = writer();
    let mut command = Command::new("python3");
    command.arg(harness()).args(["--cycles", &cycles.to_string(), "--run", "0.1", "0.9"]);
    command.arg("--write").arg(format!("{} write {{dir}}", writer.display()));
    command.arg("--verify").arg(format!("{} verify {{dir}} {{acked}}", writer.display()));
    if let Ok(seed) = env::var("SEED") {
        command.args(["--seed", &seed]);
    }
    command.envs(with.iter().map(|variable| (variable, "1")));
    let output = command.output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}

fn loses_nothing(with: &[&str]) {
    let cycles = figure("CYCLES", 10, 40);
    let output = cut_power(cycles, with);
    assert!(output.status.success(), "SEED replays it");
    assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("powercut: {cycles} cycles")));
}

#[test]
fn power_cuts_on_ext4_lose_nothing() {
    if skipped("power_cuts_on_ext4_lose_nothing", "ext4") {
        return;
    }
    loses_nothing(&[]);
}

#[test]
fn power_cuts_under_a_log_that_is_rewritten_lose_nothing() {
    if skipped("power_cuts_under_a_log_that_is_rewritten_lose_nothing", "ext4") {
        return;
    }
    loses_nothing(&["POWERCUT_REWRITE"]);
}

#[test]
fn without_the_sync_call_the_harness_sees_the_loss() {
    if skipped("without_the_sync_call_the_harness_sees_the_loss", "ext4") {
        return;
    }
    let output = cut_power(40, &["POWERCUT_NO_SYNC"]);
    assert_eq!(output.status.code(), Some(1), "a harness that cannot fail proves nothing");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("verifier exit") && !said.contains("ended by itself"),
        "the judge saw it, nothing else: {said}"
    );
}

#[test]
fn killed_at_any_moment_it_loses_nothing_acknowledged() {
    let (writer, dir) = (writer(), tempfile::tempdir().unwrap());
    let data = dir.path().join("data");
    let mut acked = 0u64;
    for cycle in 0..12u64 {
        let mut child = Command::new(&writer)
            .arg("write")
            .arg(&data)
            .env("POWERCUT_SEED", "77")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut steps =
            out.lines().map_while(Result::ok).filter_map(|line| line.strip_prefix("A ")?.parse::<u64>().ok());
        // Some lives end before their first step, and some in the middle of a later one.
        acked = steps.by_ref().take(cycle as usize * 7 % 40).last().unwrap_or(acked);
        thread::sleep(Duration::from_micros(cycle * 977 % 5000));
        child.kill().unwrap();
        child.wait().unwrap();
        acked = steps.last().unwrap_or(acked);
        let verdict = Command::new(&writer)
            .arg("verify")
            .arg(&data)
            .arg(acked.to_string())
            .env("POWERCUT_SEED", "77")
            .output()
            .unwrap();
        assert!(verdict.status.success(), "cycle {cycle}: {}", String::from_utf8_lossy(&verdict.stderr));
    }
    assert!(acked > 100, "only {acked} steps in 12 lives");
    println!("12 kills, {acked} steps acknowledged, none missing");
    assert!(fs::read_dir(data.join("log/blobs")).unwrap().next().is_none(), "no blob file");
}
