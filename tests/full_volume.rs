//! A node on a small volume: its state is overwritten again and again, for more than the volume holds, and it never ends in refusing
//! writes for good; nor does it after somebody else has filled the volume and made room again.
//!
//! Each node has an ext4 of its own on a loop mount, and the settings are the defaults: see `lab::volume` for what that needs.
//! `ACTORUM_FULL_VOLUME_MB` is how many megabytes are written to each volume instead of the few of a usual run.

mod lab;

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab, Node, try_call,
    volume::{Disk, machine},
    wait,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// 64 values of 256 KiB: the state, 16 MiB of it at any time.
const KEYS: u64 = 64;
const VALUE: usize = 256 << 10;

/// Far longer than any snapshot or rewriting of so small a state takes, also on a machine that is busy: who is refused for so long is
/// refused for good.
const REFUSED_FOR_GOOD: Duration = Duration::from_secs(60);

/// Text that hardly compresses, so that a snapshot is about as large as the state.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[(state >> 58) as usize]
    };
    (0..VALUE).map(letter).collect()
}

/// What is seen of the volume while it is written to.
#[derive(Debug, Default)]
struct Seen {
    directory: u64,
    kept: u64,
    snapshot: u64,
    reserve: u64,
    refused: u64,
}

/// What a directory takes at most, as README.md says it.
fn formula(seen: &Seen, rewritten_from: u64) -> u64 {
    let Seen { kept, snapshot, reserve, .. } = *seen;
    3 * snapshot + reserve + rewritten_from.max(6 * kept) + 3 * kept + 64 * MIB
}

fn used(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => used(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0, // it has gone meanwhile
    };
    entries.flatten().map(bytes).sum()
}

fn number(status: &Value, of: &str, name: &str) -> u64 {
    status[of][name].as_u64().unwrap_or(0)
}

/// Overwrites the state until so many bytes were acknowledged. Never is it refused for good.
fn overwrite(node: &Node, data: &Path, bytes: u64) -> Seen {
    let (acknowledged, refused, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let seen = Mutex::new(Seen::default());
    let last = Mutex::new(Instant::now());
    thread::scope(|scope| {
        let (acknowledged, refused, over, seen, last) = (&acknowledged, &refused, &over, &seen, &last);
        for writer in 0..3u64 {
            scope.spawn(move || {
                let mut n = writer;
                while !over.load(Relaxed) {
                    let url = node.url(&format!("/kv/key-{}?timeout_ms=5000", n % KEYS));
                    match try_call("PUT", &url, &noise(n)) {
                        Ok(answer) if answer.status == 200 => {
                            acknowledged.fetch_add(VALUE as u64, Relaxed);
                            *last.lock().unwrap() = Instant::now();
                            n += 3;
                        }
                        // That is what it may say for a while; anything but that and a hand-over is another fault.
                        Ok(answer) => {
                            assert!(
                                ["low_space", "busy", "not_leader", "unknown"].contains(&answer.code()),
                                "{answer:?}"
                            );
                            refused.fetch_add(u64::from(answer.code() == "low_space"), Relaxed);
                            thread::sleep(Duration::from_millis(20));
                        }
                        Err(_) => thread::sleep(Duration::from_millis(20)),
                    }
                }
            });
        }
        let mut words = None;
        while acknowledged.load(Relaxed) < bytes && words.is_none() {
            let status = node.try_status();
            let mut seen = seen.lock().unwrap();
            if let Some(status) = &status {
                seen.kept = seen.kept.max(status["log_bytes"].as_u64().unwrap_or(0));
                seen.snapshot = seen.snapshot.max(status["snapshots"]["newest"]["bytes"].as_u64().unwrap_or(0));
                seen.reserve = seen.reserve.max(number(status, "disk", "reserve_bytes"));
            }
            seen.directory = seen.directory.max(used(data));
            drop(seen);
            if last.lock().unwrap().elapsed() > REFUSED_FOR_GOOD {
                words = Some(format!("no write was acknowledged for {REFUSED_FOR_GOOD:?}: {status:?}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Relaxed);
        if let Some(words) = words {
            panic!("after {} MiB: {words}", acknowledged.load(Relaxed) / MIB);
        }
    });
    let mut seen = seen.into_inner().unwrap();
    seen.refused = refused.into_inner();
    seen
}

/// Somebody fills the volume but for so many bytes: what it is told, and that it goes on by itself once there is room again.
fn filled_by_others(node: &Node, disk: &Disk, leave: u64) {
    let pid = node.pid();
    let filler = disk.mount.join("filler");
    let mut file = File::create(&filler).unwrap();
    let refused = wait("a write to be refused for lack of space", || {
        let status = node.try_status()?;
        // Again and again, for it frees room meanwhile; but not what it has lent itself for that.
        while number(&status, "disk", "reserve_bytes") >= 48 * MIB && disk.available() > leave + MIB {
            file.write_all(&vec![1; MIB as usize]).unwrap();
            file.sync_all().unwrap();
        }
        let answer = try_call("PUT", &node.url("/kv/small"), b"x").ok()?;
        (answer.status != 200).then_some(answer)
    });
    assert_eq!((refused.status, refused.code()), (503, "low_space"), "{refused:?}");
    let ready = try_call("GET", &node.url("/readyz"), b"").unwrap();
    assert_eq!((ready.status, ready.code()), (503, "low_space"), "{ready:?}");
    let metrics = try_call("GET", &node.url("/metrics"), b"").unwrap().text;
    assert!(metrics.contains("\nactorum_condition{condition=\"low_space\"} 1\n"), "{metrics}");
    let said = &node.status()["disk"];
    assert!(said["needed_bytes"].as_u64() > said["free_bytes"].as_u64(), "{said}");
    assert_eq!(try_call("GET", &node.url("/kv/key-1"), b"").unwrap().status, 200, "it goes on serving reads");

    // Closed first: its bytes are free only then.
    drop(file);
    fs::remove_file(&filler).unwrap();
    wait("a write to be taken again", || {
        (try_call("PUT", &node.url("/kv/small"), b"y").ok()?.status == 200).then_some(())
    });
    wait("the node to be ready", || (try_call("GET", &node.url("/readyz"), b"").ok()?.status == 200).then_some(()));
    wait("the reserve to be made again", || {
        let status = node.try_status()?;
        (number(&status, "disk", "reserve_bytes") >= 48 * MIB).then_some(())
    });
    assert_eq!(node.pid(), pid, "the same run");
}

fn runs_for_ever(test: &str, mib: u64, written: u64, leave: u64, rewritten_from: u64) {
    let Some(_alone) = machine(test) else { return };
    let mut lab = Lab::new(&[1]);
    let disk = Disk::new(&lab, 1, mib);
    lab.place(1, disk.data());
    // Ends before the mount goes.
    let mut lab = Ended(lab, &disk);
    lab.0.found(&[1]);
    lab.0.leader();
    let node = lab.0.node(1);
    let megabytes = env::var("ACTORUM_FULL_VOLUME_MB").ok().map(|mb| mb.parse::<u64>().unwrap());
    let started = Instant::now();
    let seen = overwrite(node, &disk.data(), megabytes.map_or(written, |mb| mb * MIB));
    println!("{mib} MiB: {seen:?} in {:?}", started.elapsed());
    assert!(seen.snapshot > 10 * MIB && seen.reserve >= 48 * MIB, "{seen:?}");
    let most = formula(&seen, rewritten_from);
    assert!(seen.directory <= most, "{} MiB where the formula allows {}: {seen:?}", seen.directory / MIB, most / MIB);
    filled_by_others(node, &disk, leave);
    // And it goes on.
    overwrite(node, &disk.data(), 16 * MIB);
}

/// Nodes that end before the mount of their directory does.
struct Ended<'a>(Lab, #[allow(dead_code)] &'a Disk);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if self.0.running().any(|node| node.id == 1) {
            self.0.node_mut(1).kill();
        }
    }
}

#[test]
fn a_volume_of_one_gibibyte_is_overwritten_for_ever() {
    runs_for_ever("a_volume_of_one_gibibyte_is_overwritten_for_ever", 1024, 700 * MIB, 40 * MIB, 128 * MIB);
}

#[test]
fn a_volume_of_a_quarter_gibibyte_is_overwritten_for_ever() {
    runs_for_ever("a_volume_of_a_quarter_gibibyte_is_overwritten_for_ever", 256, 400 * MIB, 8 * MIB, 32 * MIB);
}
