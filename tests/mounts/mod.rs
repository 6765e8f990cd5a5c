//! Filesystems of their own on loop devices, whose power can be cut; and what to do where that is not possible.
//!
//! The work is done by `tests/tools/powercut.py --disk`, a process of its own that unmounts when its input ends: a test
//! that is killed leaves no mount behind.

#![allow(dead_code)] // each test uses its part

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

/// `tests/tools/powercut.py`, seen from whichever package the test belongs to.
pub(crate) fn harness() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = ["tests", "../tests"].map(|tests| here.join(tests).join("tools/powercut.py"));
    found.into_iter().find(|path| path.exists()).expect("the harness")
}

/// What is missing for a filesystem (`ext4`, `xfs`) of our own.
pub(crate) fn missing(filesystem: &str) -> Option<String> {
    let works = |program: &str, argument: &str| {
        let status = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    let mkfs = format!("mkfs.{filesystem}");
    match () {
        () if !root => Some("root".to_owned()),
        () if !Path::new("/dev/loop-control").exists() => Some("loop devices".to_owned()),
        () if !works(&mkfs, "-V") => Some(mkfs),
        () if !works("python3", "--version") => Some("python3".to_owned()),
        () => None,
    }
}

/// Whether to go on without: says so, or fails where it must run.
pub(crate) fn skipped(test: &str, filesystem: &str) -> bool {
    let Some(what) = missing(filesystem) else { return false };
    assert!(env::var_os("ACTORUM_PRIVILEGED").is_none(), "{test} must run here and lacks {what}");
    // Past the capture of the test runner, which would keep the line of a passing test to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: it needs {what}");
    true
}

/// A mounted filesystem. Unmounted and gone when dropped: end whoever uses it first.
pub(crate) struct Mount {
    helper: Child,
    answers: BufReader<ChildStdout>,
    path: PathBuf,
}

impl Mount {
    /// Makes and mounts one at `path`, which must not exist; its image lies beside it.
    pub(crate) fn new(filesystem: &str, path: PathBuf) -> Mount {
        let mut command = Command::new("python3");
        command.arg(harness()).args(["--fs", filesystem, "--size", "512M", "--disk"]).arg(&path);
        let mut helper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
        let answers = BufReader::new(helper.stdout.take().expect("a pipe"));
        let mut disk = Mount { helper, answers, path };
        disk.hear("mount");
        disk
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts its power: what was not made durable is gone, and nothing can be written any more.
    pub(crate) fn cut(&mut self) {
        self.tell("cut");
    }

    /// Mounts it again, after whoever used it has ended.
    pub(crate) fn remount(&mut self) {
        self.tell("remount");
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.helper.stdin.as_ref().expect("a pipe"), "{what}").expect("the helper listens");
        self.hear(what);
    }

    fn hear(&mut self, what: &str) {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the helper answers");
        assert_eq!(answer, "ok\n", "{what} of {}", self.path.display());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(self.helper.stdin.take());
        let _ = self.helper.wait();
    }
}
