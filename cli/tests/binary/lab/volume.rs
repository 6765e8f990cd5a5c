//! Filesystems of their own on loop mounts, for tests of disks.
//!
//! They need root, loop devices, mkfs.ext4 and fsfreeze. Where one is missing a test is skipped with a line that says
//! so, and with `ACTORUM_PRIVILEGED=1` (as in CI) that is a failure.

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::Lab;

/// Whether a program ran and said that it succeeded.
pub(crate) fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Whether to go on without, where a disk cannot be broken: says so, or fails where it must run.
pub(crate) fn skipped(test: &str) -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    let what = match () {
        () if !root => "root",
        () if !Path::new("/dev/loop-control").exists() => "loop devices",
        () if !succeeds("mkfs.ext4", &["-V"]) => "mkfs.ext4",
        () if !succeeds("fsfreeze", &["-V"]) => "fsfreeze",
        () => return false,
    };
    assert!(env::var("ACTORUM_PRIVILEGED").as_deref() != Ok("1"), "{test} must run here and lacks {what}");
    // Past the capture of the test runner, which would keep the line of a passing test to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: it needs {what}");
    true
}

/// A filesystem of its own, until dropped: thawed first, since what writes to a frozen one cannot even be killed.
pub(crate) struct LoopMount {
    pub image: PathBuf,
    pub mount: PathBuf,
}

impl LoopMount {
    pub(crate) fn new(lab: &Lab, id: u64, mib: u64) -> LoopMount {
        let disk = LoopMount { image: lab.path(&format!("image-{id}")), mount: lab.path(&format!("mount-{id}")) };
        fs::create_dir(&disk.mount).unwrap();
        File::create(&disk.image).unwrap().set_len(mib << 20).unwrap();
        let (image, mount) = (disk.image.to_str().unwrap(), disk.mount.to_str().unwrap());
        assert!(succeeds("mkfs.ext4", &["-q", "-F", "-m", "0", image]), "mkfs.ext4 {image}");
        assert!(succeeds("mount", &["-o", "loop", image, mount]), "mount {image}");
        disk
    }

    pub(crate) fn is(&self, options: &[&str]) -> bool {
        succeeds(options[0], &[&options[1..], &[self.mount.to_str().unwrap()]].concat())
    }

    pub(crate) fn freeze(&self) {
        assert!(self.is(&["fsfreeze", "-f"]), "fsfreeze -f {}", self.mount.display());
    }

    pub(crate) fn thaw(&self) -> bool {
        self.is(&["fsfreeze", "-u"])
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    /// How many bytes are free.
    pub(crate) fn available(&self) -> u64 {
        let said = Command::new("df").args(["--output=avail", "-B1"]).arg(&self.mount).output().expect("df");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        said.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or_else(|| panic!("df says {said}"))
    }

    /// Fills it to the last byte; what is in the way.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.mount.join("filler");
        let mut file = File::create(&path).unwrap();
        for chunk in [1 << 20, 4096, 1] {
            let bytes = vec![1; chunk];
            while file.write_all(&bytes).is_ok() {}
        }
        let _ = file.sync_all();
        path
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        self.thaw();
        for _ in 0..100 {
            if self.is(&["umount"]) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.is(&["umount", "-l"]);
    }
}
