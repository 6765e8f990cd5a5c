//! A node on a small volume: its state is overwritten again and again, by more than a volume of 256 MiB holds, and it
//! never ends in refusing writes for good; nor does it after somebody else has filled the volume and made room again.
//!
//! Each node has an ext4 of its own on a loop mount, and the settings are the defaults: see `lab::volume` for what that
//! needs. `ACTORUM_FULL_VOLUME_MB` is how many MiB are written to each volume; else it depends on the volume, and is
//! more in `.ci/run`.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::figures::figure;
use crate::lab::{
    self, Lab, Node, try_call,
    volume::{LoopMount, skipped},
    wait,
};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// 64 values of 256 KiB: the state, 16 MiB of it at any time.
const KEYS: u64 = 64;
const VALUE: usize = 256 << 10;

/// Far longer than any snapshot or rewriting of so small a state takes, also on a machine that is busy: who is refused
/// for so long is refused for good.
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

/// What a directory takes at most, as docs/guide/disk-and-memory.md says it.
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

/// Somebody fills the volume but for so many bytes: what it is told, and that it goes on by itself once there is room
/// again.
fn filled_by_others(node: &Node, disk: &LoopMount, leave: u64) {
    let pid = node.pid();
    let filler = disk.mount.join("filler");
    let (file, mut length) = (File::create(&filler).unwrap(), 0);
    let refused = wait("a write to be refused for lack of space", || {
        let status = node.try_status()?;
        // Again and again, for it frees room meanwhile; but not what it has lent itself for that.
        while number(&status, "disk", "reserve_bytes") >= 48 * MIB && disk.available() > leave + MIB {
            // Set aside: to write so much takes long where the disk below has other work.
            let more = (disk.available() - leave).min(16 * MIB);
            if fallocate(&file, FallocateFlags::empty(), length, more).is_err() {
                break;
            }
            length += more;
        }
        let answer = try_call("PUT", &node.url("/kv/small"), b"x").ok()?;
        // Nobody can tell of one that was on its way to the disk when that became full.
        (answer.status != 200 && answer.code() != "unknown").then_some(answer)
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

/// How many MiB are written to a volume.
fn written(few: u64, full: u64) -> u64 {
    figure("ACTORUM_FULL_VOLUME_MB", few, full) * MIB
}

fn runs_for_ever(test: &str, mib: u64, written: u64, leave: u64, rewritten_from: u64) {
    if skipped(test) {
        return;
    }
    let mut lab = Lab::new(&[1]);
    let disk = LoopMount::new(&lab, 1, mib);
    lab.place(1, disk.data());
    // Ends before the mount goes.
    let mut lab = Ended(lab, &disk);
    lab.0.found(&[1]);
    lab.0.leader();
    let node = lab.0.node(1);
    let started = Instant::now();
    let seen = overwrite(node, &disk.data(), written);
    println!("{mib} MiB: {seen:?} in {:?}", started.elapsed());
    assert!(seen.snapshot > 10 * MIB && seen.reserve >= 48 * MIB, "{seen:?}");
    let most = formula(&seen, rewritten_from);
    assert!(seen.directory <= most, "{} MiB where the formula allows {}: {seen:?}", seen.directory / MIB, most / MIB);
    filled_by_others(node, &disk, leave);
    // And it goes on.
    overwrite(node, &disk.data(), 16 * MIB);
}

/// What a directory takes at most while its log is not being rewritten, as docs/guide/disk-and-memory.md says it.
fn at_rest(snapshot: u64, reserve: u64, kept: u64) -> u64 {
    2 * snapshot + reserve + (128 * MIB).max(6 * kept)
}

/// Whether the log of a node is not being rewritten.
fn has_one_log(data: &Path) -> bool {
    let names = fs::read_dir(data).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("log")).count() == 1
}

/// Nodes that end before the mount of their directory does.
struct Ended<'a>(Lab, #[allow(dead_code)] &'a LoopMount);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if self.0.running().any(|node| node.id == 1) {
            self.0.node_mut(1).kill();
        }
    }
}

#[test]
fn a_volume_of_one_gibibyte_is_overwritten_for_ever() {
    runs_for_ever("a_volume_of_one_gibibyte_is_overwritten_for_ever", 1024, written(200, 700), 40 * MIB, 128 * MIB);
}

#[test]
fn a_volume_of_a_quarter_gibibyte_is_overwritten_for_ever() {
    runs_for_ever("a_volume_of_a_quarter_gibibyte_is_overwritten_for_ever", 256, written(300, 400), 8 * MIB, 32 * MIB);
}

/// With the defaults, on whatever volume temporary files are: 16 MiB of state that are overwritten by 128 MiB and more,
/// with and without a snapshot on demand. A small state has a short log, and an idle node gives back what it no longer
/// needs.
#[test]
fn a_small_state_on_a_large_volume_takes_what_the_formula_says() {
    let mut lab = Lab::new(&[1]);
    lab.found(&[1]);
    lab.leader();
    let node = lab.node(1);
    let rests = |what: &str| {
        let mut seen = String::new();
        wait(&format!("the directory to rest {what}"), || {
            let status = node.try_status()?;
            let (kept, snapshot) = (status["log_bytes"].as_u64()?, status["snapshots"]["newest"]["bytes"].as_u64()?);
            let (directory, reserve) = (used(&node.data), number(&status, "disk", "reserve_bytes"));
            let words = [("directory", directory), ("kept", kept), ("snapshot", snapshot), ("reserve", reserve)];
            let words = words.map(|(name, bytes)| format!("{name} {} MiB", bytes / MIB)).join(", ");
            if words != seen {
                println!("{what}: {words}");
                seen = words;
            }
            // Twice what lies between two snapshots, and what is applied while one is taken.
            assert!(kept <= 160 * MIB, "of 16 MiB of state, {} MiB of log are kept", kept / MIB);
            (has_one_log(&node.data) && directory <= at_rest(snapshot, reserve, kept)).then_some((directory, snapshot))
        })
    };
    let within = |seen: &Seen| {
        let most = formula(seen, 128 * MIB);
        assert!(
            seen.directory <= most,
            "{} MiB where the formula allows {}: {seen:?}",
            seen.directory / MIB,
            most / MIB
        );
    };
    within(&overwrite(node, &node.data, 16 * MIB));
    within(&overwrite(node, &node.data, 128 * MIB));
    rests("without a snapshot on demand");
    let taken = lab::call("POST", &node.admin_url("/snapshot"), "");
    assert_eq!(taken.status, 200, "{}", taken.text);
    let (directory, snapshot) = rests("with one");
    assert!(snapshot > 10 * MIB, "{snapshot}");
    assert!(directory <= 600 * MIB, "docs/guide/disk-and-memory.md says what to expect: {} MiB", directory / MIB);
    // It does not grow with what is written.
    within(&overwrite(node, &node.data, written(128, 512)));
    rests("after more");
}

/// The volumes of all nodes are filled while they run, for longer than a disk may hang: nobody ends, and all go on by
/// themselves once there is room.
///
/// First so much is left that the leader goes on taking writes, which no log has the room to write: they wait, at the
/// leader and at its followers. That takes a setting far below the default, with which the leader refuses writes
/// before. Then the rest is filled, too.
#[test]
fn nodes_outlive_volumes_that_are_full_to_the_last_byte() {
    if skipped("nodes_outlive_volumes_that_are_full_to_the_last_byte") {
        return;
    }
    let ids = [1, 2, 3];
    let mut lab = Lab::new(&ids);
    let disks: Vec<LoopMount> = ids.iter().map(|id| LoopMount::new(&lab, *id, 256)).collect();
    for (id, disk) in ids.iter().zip(&disks) {
        lab.place(*id, disk.data());
    }
    lab.set("ACTORUM_DISK_DEAD_MS", "3000");
    lab.set("ACTORUM_LOW_SPACE_BYTES", &(MIB / 4).to_string());
    let mut lab = AllEnded(lab, &disks);
    lab.0.found(&ids);
    let leader = lab.0.leader();
    overwrite(lab.0.node(leader), &disks[leader as usize - 1].data(), 24 * MIB);
    // A write that is on its way when the room goes would be as large as what was written so far. One that was
    // acknowledged may be on its way still, on the disk of one node of three.
    let written = lab.0.node(leader).status()["commit_index"].as_u64();
    for (id, disk) in ids.iter().zip(&disks) {
        wait(&format!("node {id} to rest"), || {
            let persisted = lab.0.node(*id).try_status()?["persisted_index"].as_u64();
            (persisted >= written && has_one_log(&disk.data())).then_some(())
        });
    }
    let pids = ids.map(|id| lab.0.node(id).pid());
    // Below the least that a log wants to be free before it writes entries (1 MiB), and far above what counts as low.
    let left = AtomicU64::new(3 * MIB / 4);
    let over = AtomicBool::new(false);
    let acknowledged = thread::scope(|scope| {
        let (left, over) = (&left, &over);
        for disk in &disks {
            scope.spawn(move || keep_filled(disk, left, over));
        }
        let stops = Stops(over);
        let mut acknowledged = Vec::new();
        wait("a majority to wait for room, for longer than a disk may hang", || {
            let n = acknowledged.len();
            let url = lab.0.node(ids[n % 3]).url(&format!("/kv/while-{n}?timeout_ms=200"));
            if try_call("PUT", &url, &vec![b'x'; 20_000]).is_ok_and(|put| put.status == 200) {
                acknowledged.push(n);
            }
            let statuses = ids.map(|id| lab.0.node(id).try_status());
            let waits = |status: &&Value| number(status, "disk", "waiting_ms") > 5000;
            (statuses.iter().flatten().filter(waits).count() > 1).then_some(())
        });
        left.store(0, Relaxed);
        for id in ids {
            wait(&format!("node {id} to say that its volume is full"), || {
                let ready = try_call("GET", &lab.0.node(id).url("/readyz"), b"").ok()?;
                (ready.status == 503 && ready.code() == "low_space").then_some(())
            });
            let refused = try_call("PUT", &lab.0.node(id).url("/kv/full?timeout_ms=300"), b"x").expect("it runs");
            assert_ne!(refused.status, 200, "{}", refused.text);
            let stale = try_call("GET", &lab.0.node(id).url("/kv/key-1?consistency=stale"), b"").expect("it runs");
            assert_eq!(stale.status, 200, "it goes on serving what it has");
        }
        drop(stops);
        acknowledged
    });
    for disk in &disks {
        fs::remove_file(disk.mount.join("filler")).unwrap();
    }
    for id in ids {
        wait(&format!("node {id} to be ready"), || {
            (try_call("GET", &lab.0.node(id).url("/readyz"), b"").ok()?.status == 200).then_some(())
        });
        wait("a write to be taken", || {
            (try_call("PUT", &lab.0.node(id).url("/kv/again"), b"y").ok()?.status == 200).then_some(())
        });
    }
    assert_eq!(ids.map(|id| lab.0.node(id).pid()), pids, "the same runs");
    for n in &acknowledged {
        let read = lab.0.node(ids[n % 3]).get(&format!("while-{n}"));
        assert_eq!(read.status, 200, "{}: acknowledged while the volumes filled", read.text);
    }
}

/// Leaves so many bytes free on a volume, whatever its node takes and gives back meanwhile. The blocks are set aside at
/// once: writing them takes so long that one volume would be full long before another.
fn keep_filled(disk: &LoopMount, left: &AtomicU64, over: &AtomicBool) {
    let file = File::create(disk.mount.join("filler")).unwrap();
    let mut length = 0;
    while !over.load(Relaxed) {
        let volume = statvfs(&disk.mount).unwrap();
        let (free, block) = (volume.f_bavail * volume.f_frsize, volume.f_frsize);
        let left = left.load(Relaxed);
        if free > left {
            let more = (free - left).div_ceil(block) * block;
            // Some blocks are needed for what says where the others are.
            let took = |bytes: &u64| fallocate(&file, FallocateFlags::empty(), length, *bytes).is_ok();
            length += [more, block].into_iter().find(took).unwrap_or(0);
        } else if free < left - left / 8 {
            length -= (left - free).min(length);
            file.set_len(length).unwrap();
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a thread that fills, also when the test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Nodes that end before the mounts of their directories do.
struct AllEnded<'a>(Lab, #[allow(dead_code)] &'a [LoopMount]);

impl Drop for AllEnded<'_> {
    fn drop(&mut self) {
        let running: Vec<u64> = self.0.running().map(|node| node.id).collect();
        running.into_iter().for_each(|id| self.0.node_mut(id).kill());
    }
}

/// What touches a directory on a full volume refuses it before the log's engine opens, which could be damaged for good
/// by that; with the reserve it opens.
#[test]
fn a_directory_on_a_full_volume_is_refused_unharmed_or_opens_by_its_reserve() {
    if skipped("a_directory_on_a_full_volume_is_refused_unharmed_or_opens_by_its_reserve") {
        return;
    }
    let mut lab = Lab::new(&[1]);
    let disk = LoopMount::new(&lab, 1, 256);
    lab.place(1, disk.data());
    let mut lab = Ended(lab, &disk);
    lab.0.found(&[1]);
    lab.0.leader();
    overwrite(lab.0.node(1), &disk.data(), 40 * MIB);
    assert_eq!(lab.0.node(1).put("small", "x").status, 200);
    assert_eq!(lab.0.node_mut(1).terminate().code(), Some(0));

    // With the reserve: it starts, and makes room by itself.
    disk.fill();
    assert!(disk.data().join("ballast").exists() && disk.available() == 0);
    // Not a second process on the directory of one that runs, which would take its reserve.
    let running = File::open(disk.data().join("lock")).unwrap();
    running.try_lock().unwrap();
    lab.0.launch(1);
    assert_eq!(lab.0.node_mut(1).wait_until_it_ends().code(), Some(1));
    assert!(lab.0.node(1).last_words(1).contains("in use"), "{}", lab.0.node(1).last_words(1));
    assert!(disk.data().join("ballast").exists(), "the reserve of a node that runs is its own");
    drop(running);
    lab.0.start(1);
    lab.0.leader();
    assert_eq!(lab.0.node(1).get("small").body["value"], "x");
    assert_eq!(lab.0.node_mut(1).terminate().code(), Some(0));

    // Without: refused, each time, by what is needed; nothing is changed by that.
    let data = disk.data();
    let compact = || lab::run(&["compact", data.to_str().expect("UTF-8")]);
    disk.fill();
    let _ = fs::remove_file(data.join("ballast"));
    disk.fill();
    for _ in 0..2 {
        let compacted = compact();
        let words = String::from_utf8_lossy(&compacted.stderr).into_owned();
        assert_eq!(compacted.status.code(), Some(1), "{words}");
        assert!(words.contains("opening the log takes") && words.contains("make room on it"), "{words}");
        lab.0.launch(1);
        let ended = lab.0.node_mut(1).wait_until_it_ends();
        let words = lab.0.node(1).last_words(1);
        assert_eq!(ended.code(), Some(1), "{words}");
        assert!(words.contains("opening the log takes") && words.contains("make room on it"), "{words}");
    }
    fs::remove_file(disk.mount.join("filler")).unwrap();
    let compacted = compact();
    assert!(compacted.status.success(), "{}", String::from_utf8_lossy(&compacted.stderr));
    lab.0.start(1);
    lab.0.leader();
    assert_eq!(lab.0.node(1).get("small").body["value"], "x");
}

/// A volume smaller than what a node needs is said at the start, with the figures; and what follows from it are refused
/// writes, never the end of the node.
#[test]
fn a_volume_that_is_too_small_is_said_at_the_start() {
    if skipped("a_volume_that_is_too_small_is_said_at_the_start") {
        return;
    }
    for mib in [128, 64] {
        let mut lab = Lab::new(&[1]);
        let disk = LoopMount::new(&lab, 1, mib);
        lab.place(1, disk.data());
        let mut lab = Ended(lab, &disk);
        lab.0.found(&[1]);
        wait("the volume to be called too small", || {
            let words = lab.0.node(1).last_words(usize::MAX);
            (words.contains("and this node needs") && words.contains("Use a larger volume")).then_some(())
        });
        lab.0.leader();
        let node = lab.0.node(1);
        let (mut taken, mut refused) = (0, 0);
        for n in 0..400 {
            let put = try_call("PUT", &node.url(&format!("/kv/key-{}?timeout_ms=5000", n % 8)), &noise(n));
            let put = put.unwrap_or_else(|error| panic!("{mib} MiB: the node has ended: {error}"));
            match put.status {
                200 => taken += 1,
                _ => {
                    assert!(
                        ["low_space", "busy", "not_leader", "no_leader", "unknown"].contains(&put.code()),
                        "{put:?}"
                    );
                    refused += 1;
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
        println!("{mib} MiB: {taken} of 400 writes of 256 KiB were taken, {refused} refused");
        assert!(taken > 8 && node.try_status().is_some_and(|status| status["stopped"].is_null()));
    }
}
