//! The snapshot store over memory, a real directory, and files that fail and lose power.

use std::io::Read;

use actorum_core::testkit::{founded, genesis};
use actorum_machine::machine::{MachineError, StateView};

use super::{
    super::simulated::{FileStep, SimulatedFiles},
    *,
};
use crate::simulated::{Decide, Decision, Loss};

fn content(index: u64, state: Vec<u8>) -> Content {
    let formed_with = BTreeMap::from([(1, Incarnation(1))]);
    Content { index, term: 3, system: founded(), formed_with, state: StateView::bytes(state) }
}

fn state_of(snapshots: &GroupSnapshots, snapshot: &Snapshot) -> Vec<u8> {
    let mut state = Vec::new();
    snapshots.open(snapshot).unwrap().read_to_end(&mut state).unwrap();
    state
}

fn file_of(snapshot: &Snapshot) -> SnapshotFile {
    SystemState::of(snapshot).unwrap().1.expect("it has a file")
}

/// Bytes that do not compress, other ones for each seed.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

fn memory() -> GroupSnapshots {
    SnapshotStore::memory().of(GroupId::FIRST)
}

fn over(files: Arc<dyn Files>) -> GroupSnapshots {
    SnapshotStore::over(files).of(GroupId::FIRST)
}

fn in_directory(path: &Path) -> GroupSnapshots {
    SnapshotStore::in_directory(path).unwrap().of(GroupId::FIRST)
}

/// The folder of a group that has one.
fn folder(snapshots: &GroupSnapshots) -> Arc<dyn Files> {
    snapshots.files().unwrap()
}

fn names(files: &dyn Files) -> Vec<String> {
    files.list().unwrap().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn what_is_built_is_read_verified_and_received_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let both = [memory(), in_directory(&dir.path().join("snapshots"))];
    for (nth, snapshots) in both.iter().enumerate() {
        let state = noise(1, 600_000);
        let mut heard = Vec::new();
        let snapshot = snapshots.build(content(9, state.clone()), &mut |bytes| heard.push(bytes)).unwrap();
        let file = file_of(&snapshot);
        assert_eq!((snapshot.index, snapshot.term, snapshot.conf.voters.clone()), (9, 3, vec![1]));
        assert_eq!(SystemState::formed_with(&snapshot).unwrap(), BTreeMap::from([(1, Incarnation(1))]));
        assert!(heard.is_sorted() && heard.len() > 2 && heard.last() == Some(&file.bytes), "{heard:?}");
        assert_eq!(names(&*folder(snapshots)), [complete_name(9, &file)]);
        snapshots.verify(&snapshot).unwrap();
        assert!(snapshots.has(9, &file) && !snapshots.has(8, &file));
        assert!(state_of(snapshots, &snapshot) == state);

        let other = &both[1 - nth];
        let other = if nth == 0 { other } else { &memory() };
        let mut receiving = other.receive(&snapshot).unwrap();
        while receiving.offset() < receiving.bytes() {
            let piece = snapshots.read(9, &file, receiving.offset(), 100_000).unwrap().unwrap();
            receiving.push(receiving.offset(), &piece).unwrap();
        }
        assert!(!other.has(9, &file));
        receiving.finish().unwrap();
        other.verify(&snapshot).unwrap();
        assert!(state_of(other, &snapshot) == state);
        assert_eq!(names(&*folder(other)), [complete_name(9, &file)]);
        other.keep(&[]).unwrap();
    }
}

#[test]
fn a_real_snapshot_store_is_its_owners_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/snapshots");
    let snapshots = in_directory(&path);
    let snapshot = snapshots.build(content(9, vec![1]), &mut |_| {}).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join(names(&*folder(&snapshots)).concat()))), (0o700, 0o600));
    // And another process finds it.
    assert_eq!(state_of(&in_directory(&path), &snapshot), [1]);
    assert!(snapshots.blocks() && !memory().blocks());
}

#[test]
fn what_the_machine_does_wrong_ends_this_snapshot_only() {
    let snapshots = memory();
    let build = |state: StateView| {
        let error = snapshots.build(Content { state, ..content(9, vec![]) }, &mut |_| {}).unwrap_err().to_string();
        assert_eq!(names(&*folder(&snapshots)), [""; 0], "nothing of it stays");
        error
    };
    let refuses = StateView::new(|out| {
        out.write_all(&[1; 300_000])?;
        Err(MachineError::new("not today"))
    });
    assert_eq!(build(refuses), "the state machine could not write its state at 9@3: not today");
    let panics = StateView::new(|out| {
        out.write_all(&[1; 300_000])?;
        panic!("the number of the beast")
    });
    assert_eq!(build(panics), "the state machine panicked writing its state at 9@3: the number of the beast");
    snapshots.build(content(9, vec![1]), &mut |_| {}).unwrap();
}

#[test]
fn a_file_that_is_not_the_snapshots_is_refused_by_what_is_wrong() {
    let snapshots = memory();
    let snapshot = snapshots.build(content(9, noise(1, 1000)), &mut |_| {}).unwrap();
    let file = file_of(&snapshot);
    let name = complete_name(9, &file);
    let good = contents(&*folder(&snapshots), &name);
    // The descriptor names this very file, and says otherwise than its header.
    let other = |cluster: u64, index, term, id| {
        let founders = BTreeMap::from([(id, actorum_machine::ids::Address::from("n1"))]);
        let system = SystemState::founded(actorum_machine::ids::ClusterId(cluster.into()), &founders);
        let snapshot = system.snapshot(index, term, file, BTreeMap::new()).unwrap();
        put(&*folder(&snapshots), &complete_name(index, &file), &good);
        let error = snapshots.verify(&snapshot).unwrap_err().to_string();
        assert_eq!(snapshots.open(&snapshot).err().unwrap().to_string(), error);
        error.split_once(": ").unwrap().1.to_owned()
    };
    assert_eq!(other(7, 8, 3, 1), "it is of index 9, and the snapshot of index 8");
    assert_eq!(other(7, 9, 2, 1), "it is of term 3, and the snapshot of term 2");
    assert!(other(8, 9, 3, 1).starts_with("it is of cluster "));
    assert_eq!(other(7, 9, 3, 2), "its members or their state are not the snapshot's");

    let bad = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        put(&*folder(&snapshots), &name, &bytes);
        let error = snapshots.verify(&snapshot).unwrap_err().to_string();
        error.strip_prefix(&format!("{name}: ")).unwrap_or(&error).to_owned()
    };
    let length = good.len();
    assert_eq!(bad(&|b| b.truncate(length - 1)), format!("it is truncated: it has {} bytes of {length}", length - 1));
    assert_eq!(bad(&|b| b.clear()), "it is not a snapshot of actorum");
    assert!(bad(&|b| b.push(0)).starts_with("it is not the file of that hash"));
    assert!(bad(&|b| b[length - 1] ^= 1).starts_with("it is not the file of that hash"));
    assert_eq!(bad(&|b| b[length - 200] ^= 1), "chunk 0 is damaged: its checksum does not match");
    // Another good file under this name.
    let shelf2 = memory();
    let snapshot2 = shelf2.build(content(9, noise(2, 1000)), &mut |_| {}).unwrap();
    let foreign = contents(&*folder(&shelf2), &complete_name(9, &file_of(&snapshot2)));
    assert!(bad(&|b| *b = foreign.clone()).starts_with("it is not the file of that hash"));
    put(&*folder(&snapshots), &name, &good);
    snapshots.verify(&snapshot).unwrap();
    folder(&snapshots).remove(&name).unwrap();
    assert_eq!(
        snapshots.verify(&snapshot).unwrap_err().to_string(),
        format!("reading {name} failed: entity not found")
    );
    assert_eq!(snapshots.read(9, &file, 0, 10).unwrap(), None);
}

#[test]
fn a_genesis_has_no_file() {
    let snapshots = memory();
    snapshots.verify(&genesis()).unwrap();
    assert_eq!(snapshots.open(&genesis()).err().unwrap().to_string(), "the snapshot at 1@1 has no file");
    assert_eq!(snapshots.receive(&genesis()).err().unwrap().to_string(), "the snapshot at 1@1 has no file");
    snapshots.keep(&[genesis()]).unwrap();
}

#[test]
fn pieces_for_peers_are_bounded_and_end_where_the_file_ends() {
    let snapshots = memory();
    let snapshot = snapshots.build(content(9, noise(1, 3 << 20)), &mut |_| {}).unwrap();
    let file = file_of(&snapshot);
    let piece = |offset, max| snapshots.read(9, &file, offset, max).unwrap().map(|piece| piece.len());
    assert_eq!(piece(0, 10), Some(10));
    assert_eq!(piece(5, u32::MAX), Some(1 << 20));
    assert_eq!(piece(file.bytes - 3, 10), Some(3));
    for past in [file.bytes, file.bytes + 1, u64::MAX] {
        assert_eq!(piece(past, 10), Some(0));
    }
    assert_eq!(snapshots.read(10, &file, 0, 10).unwrap(), None);
    // A file that has lost its end is no file that ends there.
    let length = file.bytes;
    folder(&snapshots).append(&complete_name(9, &file)).unwrap().cut(100).unwrap();
    assert_eq!(piece(90, 10), Some(10));
    let error = snapshots.read(9, &file, 90, 20).unwrap_err().to_string();
    assert!(error.ends_with(&format!("it is truncated: it ends at 100 of {length} bytes")), "{error}");
}

/// A snapshot whose file is elsewhere, and that file.
fn announced(index: u64, seed: u8, length: usize) -> (Snapshot, Vec<u8>) {
    announced_of(GroupId::FIRST, index, seed, length)
}

fn announced_of(group: GroupId, index: u64, seed: u8, length: usize) -> (Snapshot, Vec<u8>) {
    let snapshots = SnapshotStore::memory().of(group);
    let snapshot = snapshots.build(content(index, noise(seed, length)), &mut |_| {}).unwrap();
    let bytes = contents(&*folder(&snapshots), &complete_name(index, &file_of(&snapshot)));
    (snapshot, bytes)
}

#[test]
fn receiving_goes_on_wherever_it_stopped() {
    let (snapshot, bytes) = announced(9, 1, 600_000);
    let length = bytes.len();
    // In the header, in a chunk, at the end of one, in the end mark, in the hash, at the end, and not at all.
    for stop in [0, 1, 27, 28, 100, 262_600, 300_000, length - 40, length - 1, length] {
        let snapshots = memory();
        let mut receiving = snapshots.receive(&snapshot).unwrap();
        receiving.push(0, &bytes[..stop]).unwrap();
        let twice = snapshots.receive(&snapshot).expect_err("one at a time").to_string();
        assert!(twice.ends_with(".part is being written already"), "{twice}");
        drop(receiving);
        // Another process of the same node, too.
        let snapshots = over(folder(&snapshots));
        let mut receiving = snapshots.receive(&snapshot).unwrap();
        assert_eq!(receiving.offset(), stop as u64);
        receiving.push(stop as u64, &bytes[stop..]).unwrap();
        receiving.finish().unwrap();
        snapshots.verify(&snapshot).unwrap();
        // And once more: it is here.
        let receiving = snapshots.receive(&snapshot).unwrap();
        assert_eq!(receiving.offset(), length as u64);
        receiving.finish().unwrap();
    }
}

#[test]
fn what_a_crash_has_torn_is_received_again_and_no_more() {
    let (snapshot, bytes) = announced(9, 1, 600_000);
    let name = receiving_name(9, &file_of(&snapshot));
    // Whole are the header, and chunks that end at 262,5xx and 524,7xx.
    for (length, zeros_from, goes_on) in [
        (550_000, 400_000, 262_000..263_000),
        (300_000, 100_000, 200..800),
        (bytes.len(), 550_000, 524_000..526_000),
        (300_000, 50, 0..1),
    ] {
        let snapshots = memory();
        let mut torn = bytes[..length].to_vec();
        torn[zeros_from..].fill(0);
        put(&*folder(&snapshots), &name, &torn);
        let mut receiving = snapshots.receive(&snapshot).unwrap();
        assert!(goes_on.contains(&receiving.offset()), "{} after {length}, {zeros_from}", receiving.offset());
        receiving.push(receiving.offset(), &bytes[receiving.offset() as usize..]).unwrap();
        receiving.finish().unwrap();
        snapshots.verify(&snapshot).unwrap();
    }
}

#[test]
fn a_piece_out_of_order_or_past_the_end_changes_nothing() {
    let (snapshot, bytes) = announced(9, 1, 1000);
    let snapshots = memory();
    let mut receiving = snapshots.receive(&snapshot).unwrap();
    let length = bytes.len() as u64;
    receiving.push(0, &bytes[..500]).unwrap();
    for offset in [0, 499, 501, u64::MAX] {
        let error = receiving.push(offset, &bytes[..10]).unwrap_err().to_string();
        assert!(error.ends_with(&format!("a piece begins at {offset}, and 500 comes next")), "{error}");
    }
    let error = receiving.push(500, &vec![0; bytes.len() - 499]).unwrap_err().to_string();
    let (more, rest) = (length - 499, length - 500);
    assert!(error.ends_with(&format!("a piece of {more} bytes goes past the end, {rest} are left")), "{error}");
    receiving.push(500, &[]).unwrap();
    assert_eq!((receiving.offset(), folder(&snapshots).list().unwrap()[0].1), (500, 500));
    // Too early is no reason to lose what is here.
    let error = receiving.finish().unwrap_err().to_string();
    assert!(error.ends_with(&format!("only 500 of {length} bytes are here")), "{error}");
    let mut receiving = snapshots.receive(&snapshot).unwrap();
    receiving.push(500, &bytes[500..]).unwrap();
    receiving.finish().unwrap();
}

#[test]
fn what_is_not_what_was_announced_is_removed_and_begun_anew() {
    let (snapshot, bytes) = announced(9, 1, 1000);
    let snapshots = memory();
    for at in [3, 60, 700, bytes.len() - 1] {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1;
        let mut receiving = snapshots.receive(&snapshot).unwrap();
        receiving.push(0, &wrong).unwrap();
        receiving.finish().unwrap_err();
        assert_eq!(names(&*folder(&snapshots)), [""; 0], "at {at}");
    }
    // What is longer than announced was never of this snapshot.
    put(&*folder(&snapshots), &receiving_name(9, &file_of(&snapshot)), &vec![0; bytes.len() + 1]);
    let mut receiving = snapshots.receive(&snapshot).unwrap();
    receiving.push(0, &bytes).unwrap();
    receiving.finish().unwrap();
    snapshots.verify(&snapshot).unwrap();
}

#[test]
fn only_what_is_kept_stays_and_what_is_under_way() {
    let snapshots = memory();
    let built: Vec<_> = (1..=4u8).map(|n| snapshots.build(content(n.into(), vec![n]), &mut |_| {}).unwrap()).collect();
    let name = |snapshot: &Snapshot| complete_name(snapshot.index, &file_of(snapshot));
    let foreign = ["notes.txt", "snapshot-of-my-cat.jpg"];
    for name in foreign {
        put(&*folder(&snapshots), name, b"not ours");
    }
    let with_foreign = |ours: Vec<String>| -> Vec<String> {
        let mut all: Vec<_> = ours.into_iter().chain(foreign.map(str::to_owned)).collect();
        all.sort();
        all
    };
    // Nobody has said yet that 3 and 4 are kept: whoever built them is about to. Older ones would have been.
    snapshots.keep(&built[..2]).unwrap();
    assert_eq!(names(&*folder(&snapshots)), with_foreign(built.iter().map(name).collect()));
    snapshots.keep(&built[2..3]).unwrap();
    assert_eq!(names(&*folder(&snapshots)), with_foreign(built[2..].iter().map(name).collect()));
    // A start knows what is kept, and sweeps the rest: half-built ones, and all receives but the newest that is of use.
    put(&*folder(&snapshots), "building-00000000000000000009.tmp", b"half");
    let [old, newer, newest] = [(2, 9), (5, 9), (6, 9)].map(|(index, seed)| announced(index, seed, 500));
    for (snapshot, bytes) in [&old, &newer, &newest] {
        snapshots.receive(snapshot).unwrap().push(0, &bytes[..100]).unwrap();
    }
    let snapshots = over(folder(&snapshots));
    snapshots.keep(&built[2..3]).unwrap();
    let partial = receiving_name(6, &file_of(&newest.0));
    assert_eq!(names(&*folder(&snapshots)), with_foreign(vec![partial.clone(), name(&built[2])]));
    // While one is received, it is the one.
    let mut receiving = snapshots.receive(&newer.0).unwrap();
    receiving.push(0, &newer.1[..100]).unwrap();
    snapshots.keep(&built[2..3]).unwrap();
    let busy = receiving_name(5, &file_of(&newer.0));
    assert_eq!(names(&*folder(&snapshots)), with_foreign(vec![busy.clone(), name(&built[2])]));
    receiving.push(100, &newer.1[100..]).unwrap();
    receiving.finish().unwrap();
    snapshots.keep(&built[2..3]).unwrap();
    assert_eq!(names(&*folder(&snapshots)), with_foreign(vec![name(&built[2]), name(&newer.0)]));
    snapshots.keep(&[newest.0]).unwrap();
    assert_eq!(names(&*folder(&snapshots)), with_foreign(vec![]));
}

#[test]
fn a_sweep_in_the_middle_of_a_build_leaves_it_alone() {
    let snapshots = memory();
    let swept = snapshots.clone();
    let state = StateView::new(move |out| {
        out.write_all(&noise(1, 300_000))?;
        swept.keep(&[]).map_err(MachineError::new)?;
        Ok(out.write_all(&noise(2, 300_000))?)
    });
    let snapshot = snapshots.build(Content { state, ..content(9, vec![]) }, &mut |_| {}).unwrap();
    snapshots.verify(&snapshot).unwrap();
}

/// Answers otherwise at one step, and counts them.
struct Nth {
    seen: Mutex<(u64, Vec<FileStep>)>,
    at: u64,
    answer: Decision,
}

impl Nth {
    fn new(at: u64, answer: Decision) -> Arc<Nth> {
        Arc::new(Nth { seen: Mutex::default(), at, answer })
    }

    fn steps(&self) -> Vec<FileStep> {
        self.seen.lock().unwrap().1.clone()
    }
}

impl Decide<FileStep> for Nth {
    fn step(&self, step: FileStep) -> Decision {
        let mut seen = self.seen.lock().unwrap();
        seen.0 += 1;
        seen.1.push(step);
        if seen.0 == self.at { self.answer.clone() } else { Decision::Go }
    }
}

/// What is done while a step fails or the power goes.
type Work<'a> = &'a dyn Fn(&GroupSnapshots) -> Result<Snapshot, SnapshotError>;

fn build_it(snapshots: &GroupSnapshots) -> Result<Snapshot, SnapshotError> {
    snapshots.build(content(9, noise(1, 300_000)), &mut |_| {})
}

fn receive_it(snapshots: &GroupSnapshots) -> Result<Snapshot, SnapshotError> {
    let (snapshot, bytes) = announced_of(snapshots.group(), 9, 1, 300_000);
    let mut receiving = snapshots.receive(&snapshot)?;
    while receiving.offset() < receiving.bytes() {
        let from = receiving.offset() as usize;
        receiving.push(from as u64, &bytes[from..bytes.len().min(from + 100_000)])?;
    }
    receiving.finish()?;
    Ok(snapshot)
}

/// In whose folder something is done: that of group 0, which is the node's own; of a group that has a snapshot; and of
/// one that has nothing yet, not even a folder.
const GROUPS: [GroupId; 3] = [GroupId::FIRST, GroupId(7), GroupId(9)];

/// Snapshots, each of a group.
type Kept = Vec<(GroupId, Snapshot)>;

/// Those of one group.
fn of(group: GroupId, kept: &Kept) -> Vec<Snapshot> {
    kept.iter().filter(|(whose, _)| *whose == group).map(|(_, snapshot)| snapshot.clone()).collect()
}

/// Files with snapshots that were reported durable.
fn with_older_ones(decide: Arc<dyn Decide<FileStep>>) -> (SimulatedFiles, Kept) {
    let files = SimulatedFiles::new(Arc::new(()));
    let store = SnapshotStore::over(files.open());
    let build = |group| store.of(group).build(content(5, noise(5, 1000)), &mut |_| {}).unwrap();
    let older = GROUPS[..2].iter().map(|group| (*group, build(*group))).collect();
    files.decide_with(decide);
    (files, older)
}

/// Everything under a final name is whole and of the group in whose folder it is, what was reported durable among it.
fn check(files: &SimulatedFiles, kept: &Kept, when: &str) -> SnapshotStore {
    let store = SnapshotStore::over(files.open());
    for (group, kept) in kept {
        store.of(*group).verify(kept).unwrap_or_else(|error| panic!("{when}: group {}: {error}", group.0));
    }
    for snapshots in GROUPS.map(|group| store.of(group)) {
        let found = snapshots.list().unwrap();
        for (name, _) in found.iter().filter(|(name, _)| name.ends_with(".actorum")) {
            let bytes = contents(&*folder(&snapshots), name);
            let reader = Reader::begin(&bytes[..]).unwrap_or_else(|error| panic!("{when}: {name}: {error}"));
            assert_eq!(reader.header().group, snapshots.group(), "{when}: {name}");
            let whole = reader.verify().unwrap_or_else(|error| panic!("{when}: {name}: {error}"));
            assert!(name.contains(&whole.to_string()), "{when}: {name} is {whole}");
        }
    }
    store
}

fn cut_everywhere(group: GroupId, work: Work<'_>) {
    let losses = [Loss::All, Loss::Prefix, Loss::Subset, Loss::Torn];
    for at in 1.. {
        for (loss, rng) in losses.into_iter().flat_map(|loss| (0..8).map(move |rng| (loss, rng))) {
            let decide = Nth::new(at, Decision::CutPower);
            let (files, older) = with_older_ones(decide.clone());
            let reported = work(&SnapshotStore::over(files.open()).of(group)).ok();
            files.crash(loss, rng);
            files.decide_with(Arc::new(()));
            let when = format!("{group:?}: cut at step {at} of {:?}, {loss:?}, rng {rng}", decide.steps());
            let with = |more: Option<&Snapshot>| -> Kept {
                older.iter().cloned().chain(more.map(|snapshot| (group, snapshot.clone()))).collect()
            };
            let snapshots = check(&files, &with(reported.as_ref()), &when).of(group);
            // And it goes on: a sweep, the same work again (twice, if what was received was torn), and the power goes
            // once more.
            snapshots.keep(&of(group, &older)).unwrap();
            let again =
                work(&snapshots).or_else(|_| work(&snapshots)).unwrap_or_else(|error| panic!("{when}: again: {error}"));
            files.crash(loss, rng);
            let kept = with(Some(&again));
            let store = check(&files, &kept, &when);
            store.of(group).keep(&of(group, &kept)).unwrap();
            for group in GROUPS {
                let left = store.of(group).list().unwrap();
                assert_eq!(left.len(), of(group, &kept).len(), "{when}: {left:?} of {group:?}");
            }
        }
        let decide = Nth::new(at, Decision::CutPower);
        let (files, _) = with_older_ones(decide.clone());
        if work(&SnapshotStore::over(files.open()).of(group)).is_ok() && (decide.steps().len() as u64) < at {
            assert!(at > 8, "only {at} steps: the cuts missed");
            return;
        }
    }
}

#[test]
fn a_power_cut_at_any_step_of_a_build_leaves_a_whole_file_or_none() {
    GROUPS.into_iter().for_each(|group| cut_everywhere(group, &build_it));
}

#[test]
fn a_power_cut_at_any_step_of_receiving_leaves_a_whole_file_or_none() {
    GROUPS.into_iter().for_each(|group| cut_everywhere(group, &receive_it));
}

/// The process is killed at a step, another one does the same work again, and then the power goes: what it has reported
/// is there.
fn kill_everywhere(group: GroupId, work: Work<'_>) {
    for at in 1.. {
        let decide = Nth::new(at, Decision::CutPower);
        let (files, mut kept) = with_older_ones(decide.clone());
        let first = work(&SnapshotStore::over(files.open()).of(group));
        if (decide.steps().len() as u64) < at {
            assert!(at > 8 && first.is_ok(), "only {at} steps: the kills missed");
            return;
        }
        files.kill();
        files.decide_with(Arc::new(()));
        let snapshots = SnapshotStore::over(files.open()).of(group);
        snapshots.keep(&of(group, &kept)).unwrap();
        kept.push((group, work(&snapshots).unwrap()));
        files.crash(Loss::All, 0);
        check(&files, &kept, &format!("{group:?}: killed at step {at} of {:?}", decide.steps()));
    }
}

#[test]
fn a_kill_at_any_step_and_a_power_cut_after_the_next_attempt_leave_what_was_reported() {
    for group in GROUPS {
        kill_everywhere(group, &build_it);
        kill_everywhere(group, &receive_it);
    }
}

#[test]
fn a_whole_file_that_is_damaged_is_received_anew() {
    let files = SimulatedFiles::new(Arc::new(()));
    let snapshots = over(files.open());
    let (snapshot, bytes) = announced(9, 1, 300_000);
    let receive = || {
        let mut receiving = snapshots.receive(&snapshot).unwrap();
        let missing = receiving.bytes() - receiving.offset();
        receiving.push(receiving.offset(), &bytes[receiving.offset() as usize..]).unwrap();
        receiving.finish().unwrap();
        missing
    };
    assert_eq!(receive(), bytes.len() as u64);
    assert_eq!(receive(), 0, "it is here");
    assert!(files.flip(&complete_name(9, &file_of(&snapshot)), 8 * 1000));
    assert_eq!(receive(), bytes.len() as u64);
    snapshots.verify(&snapshot).unwrap();
}

fn fail_everywhere(group: GroupId, work: Work<'_>, leaves_partial: bool) {
    let full = || Decision::Fail(io::ErrorKind::StorageFull, "no room".into());
    for at in 1.. {
        let decide = Nth::new(at, full());
        let (files, mut kept) = with_older_ones(decide.clone());
        let snapshots = SnapshotStore::over(files.open()).of(group);
        let result = work(&snapshots);
        let steps = decide.steps();
        if (steps.len() as u64) < at {
            result.unwrap();
            return;
        }
        let failed = steps[at as usize - 1];
        let when = format!("{group:?}: {failed:?} fails, step {at}");
        match &result {
            Ok(_) => {
                assert_eq!(failed, FileStep::Read, "{when}: only a look for what is here already may fail unnoticed")
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("the disk is full: no room") || said.contains(": no room"), "{when}: {said}");
                let left = snapshots.list().unwrap();
                let partial = left.iter().any(|(name, _)| name.ends_with(".part"));
                let more = left.len() - of(group, &kept).len();
                assert!(more == 0 || leaves_partial && partial && more == 1, "{when}: {left:?}");
            }
        }
        // In the same process, with room again.
        kept.push((group, work(&snapshots).unwrap_or_else(|error| panic!("{when}: again: {error}"))));
        files.crash(Loss::All, 0);
        check(&files, &kept, &when);
    }
}

#[test]
fn a_full_disk_at_any_step_of_a_build_is_named_and_leaves_nothing() {
    GROUPS.into_iter().for_each(|group| fail_everywhere(group, &build_it, false));
}

#[test]
fn a_full_disk_at_any_step_of_receiving_is_named_and_loses_nothing() {
    GROUPS.into_iter().for_each(|group| fail_everywhere(group, &receive_it, true));
}

#[test]
fn a_piece_for_which_there_is_no_room_can_be_tried_again() {
    let (snapshot, bytes) = announced(9, 1, 1000);
    let files = SimulatedFiles::new(Nth::new(6, Decision::Fail(io::ErrorKind::StorageFull, "no room".into())));
    let snapshots = over(files.open());
    // Look, list, open, create, length; then this piece.
    let mut receiving = snapshots.receive(&snapshot).unwrap();
    let error = receiving.push(0, &bytes).unwrap_err().to_string();
    assert!(error.ends_with("failed, the disk is full: no room"), "{error}");
    assert_eq!((receiving.offset(), folder(&snapshots).list().unwrap()[0].1), (0, 0), "what came through is cut off");
    receiving.push(0, &bytes).unwrap();
    receiving.finish().unwrap();
}

/// Files in memory on a disk of which others take more and more.
struct Bounded {
    files: InMemory,
    free: AtomicU64,
}

impl Files for Bounded {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.files.list()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        self.files.create(name)
    }

    fn append(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        self.files.append(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Reading>> {
        self.files.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.files.sync_names()
    }

    fn folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        self.files.folder(name)
    }

    fn make_folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        self.files.make_folder(name)
    }

    fn free(&self) -> io::Result<Option<u64>> {
        // Each look finds less.
        Ok(Some(self.free.fetch_sub(12 << 20, Ordering::Relaxed)))
    }
}

#[test]
fn what_is_left_to_the_log_is_not_taken_by_snapshots() {
    let files = Arc::new(Bounded { files: InMemory::default(), free: AtomicU64::new(100 << 20) });
    let node = SnapshotStore::over(files.clone());
    let snapshots = node.of(GroupId::FIRST);
    let build = |megabytes: usize| snapshots.build(content(9, noise(1, megabytes << 20)), &mut |_| {});
    node.leave_free(70 << 20);
    node.must_fit(20 << 20).unwrap();
    let error = node.must_fit(30 << 20).unwrap_err().to_string();
    assert!(error.contains("the disk is full") && error.contains("of which are the log's"), "{error}");
    // It fits at first, and no longer in the middle: what was begun goes.
    let error = build(40).unwrap_err().to_string();
    assert!(error.contains("of which are the log's"), "{error}");
    assert_eq!(names(&*files), [""; 0]);

    files.free.store(200 << 20, Ordering::Relaxed);
    let snapshot = build(20).unwrap();
    let elsewhere = Arc::new(Bounded { files: InMemory::default(), free: AtomicU64::new(80 << 20) });
    let other = SnapshotStore::over(elsewhere.clone());
    other.leave_free(70 << 20);
    let other = other.of(GroupId::FIRST);
    assert!(other.receive(&snapshot).err().unwrap().to_string().contains("of which are the log's"));
    let receive = || {
        let mut receiving = other.receive(&snapshot)?;
        while receiving.offset() < receiving.bytes() {
            let piece = snapshots.read(9, &file_of(&snapshot), receiving.offset(), 1 << 20)?.unwrap();
            receiving.push(receiving.offset(), &piece)?;
        }
        receiving.finish()
    };
    elsewhere.free.store(92 << 20, Ordering::Relaxed);
    assert!(receive().unwrap_err().to_string().contains("of which are the log's"));
    assert!(elsewhere.list().unwrap()[0].1 >= 8 << 20, "what came stays");
    elsewhere.free.store(200 << 20, Ordering::Relaxed);
    receive().unwrap();
}

#[test]
fn of_what_was_begun_from_others_the_longest_stays() {
    let snapshots = memory();
    for (index, length) in [(9, 100), (10, 300), (11, 200), (12, 50)] {
        let (snapshot, bytes) = announced(index, 1, 1000);
        snapshots.receive(&snapshot).unwrap().push(0, &bytes[..length]).unwrap();
    }
    let left: Vec<_> = folder(&snapshots).list().unwrap().into_iter().map(|(_, length)| length).collect();
    assert_eq!(left, [300, 50]);
}

#[test]
fn a_whole_file_that_was_received_and_not_recorded_is_found_after_a_restart() {
    let files = SimulatedFiles::new(Arc::new(()));
    let older = over(files.open()).build(content(3, vec![3]), &mut |_| {}).unwrap();
    let (snapshot, bytes) = announced(9, 1, 1000);
    let snapshots = over(files.open());
    let mut receiving = snapshots.receive(&snapshot).unwrap();
    receiving.push(0, &bytes).unwrap();
    receiving.finish().unwrap();
    // Another process.
    let snapshots = over(files.open());
    snapshots.keep(std::slice::from_ref(&older)).unwrap();
    assert!(snapshots.has(9, &file_of(&snapshot)));
    snapshots.keep(&[older, snapshot.clone()]).unwrap();
    snapshots.keep(&[snapshot]).unwrap();
    assert_eq!(names(&*folder(&snapshots)).len(), 1);
}

#[test]
fn a_large_file_is_synced_as_it_grows() {
    let (snapshot, bytes) = announced(9, 1, 20 << 20);
    let decide = Nth::new(u64::MAX, Decision::Go);
    let snapshots = over(SimulatedFiles::new(decide.clone()).open());
    snapshots.build(content(9, noise(1, 20 << 20)), &mut |_| {}).unwrap();
    let longest = |steps: Vec<FileStep>| {
        let runs = steps
            .split(|step| *step == FileStep::Sync)
            .map(|run| run.iter().filter(|s| **s == FileStep::Write).count());
        runs.max().unwrap()
    };
    // One write per chunk.
    assert!(longest(decide.steps()) <= 33, "{}", longest(decide.steps()));

    let receive = |decide: &Arc<Nth>| -> Result<GroupSnapshots, (GroupSnapshots, SnapshotError)> {
        let snapshots = over(SimulatedFiles::new(decide.clone()).open());
        let mut receiving = snapshots.receive(&snapshot).unwrap();
        for piece in bytes.chunks(1 << 20) {
            if let Err(error) = receiving.push(receiving.offset(), piece) {
                receiving.push(receiving.offset(), piece).expect_err("it must be begun anew");
                drop(receiving);
                return Err((snapshots, error));
            }
        }
        receiving.finish().unwrap();
        Ok(snapshots)
    };
    let decide = Nth::new(u64::MAX, Decision::Go);
    receive(&decide).ok().unwrap().verify(&snapshot).unwrap();
    assert_eq!(longest(decide.steps()), 8);
    // What the disk has after a sync that failed is not known: nothing of it is gone on with.
    let first = decide.steps().iter().position(|step| *step == FileStep::Sync).unwrap() as u64 + 1;
    let (snapshots, error) =
        receive(&Nth::new(first, Decision::Fail(io::ErrorKind::Other, "no".into()))).err().unwrap();
    assert!(error.to_string().starts_with("syncing receiving-"), "{error}");
    assert_eq!(snapshots.receive(&snapshot).unwrap().offset(), 0);
}

#[test]
fn both_forms_of_a_serde_snapshot_capture_what_was_and_not_what_comes() {
    use actorum_core::{replica::Replica, testkit::command};
    use actorum_machine::machine::{ApplyContext, StateMachine};

    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Encoded(Vec<u64>);
    impl StateMachine for Encoded {
        type Command = u64;
        type Response = ();
        fn apply(&mut self, _: &ApplyContext, command: &u64) {
            self.0.push(*command);
        }
        actorum_machine::serde_snapshot!();
    }
    #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
    struct Cloned(Arc<Vec<u64>>);
    impl StateMachine for Cloned {
        type Command = u64;
        type Response = ();
        fn apply(&mut self, _: &ApplyContext, command: &u64) {
            Arc::make_mut(&mut self.0).push(*command);
        }
        actorum_machine::serde_snapshot!(clone);
    }

    fn story<S: StateMachine<Command = u64, Response = ()> + Default>(numbers: impl Fn(&S) -> Vec<u64>) {
        let snapshots = memory();
        let mut replica = Replica::new(S::default());
        replica.capture().expect_err("a node that holds nothing has no snapshot");
        replica.restore(&genesis(), &snapshots).unwrap();
        for index in 2..=100 {
            replica.apply(&command(index, 4, index)).unwrap();
        }
        let (index, term, system, state) = replica.capture().unwrap();
        assert_eq!((index, term), (100, 4));
        assert_eq!(Some(&system), replica.system());
        replica.apply(&command(101, 4, 101)).unwrap();
        let content = Content { index, term, system, formed_with: BTreeMap::new(), state };
        let snapshot = snapshots.build(content, &mut |_| {}).unwrap();
        // Over another state, which goes.
        let mut other = Replica::new(S::default());
        other.restore(&genesis(), &snapshots).unwrap();
        other.apply(&command(2, 1, 77)).unwrap();
        other.restore(&snapshot, &snapshots).unwrap();
        assert_eq!((other.applied(), other.applied_term()), (100, 4));
        assert_eq!(numbers(other.machine()), (2..=100).collect::<Vec<_>>());
    }
    story(|machine: &Encoded| machine.0.clone());
    story(|machine: &Cloned| machine.0.to_vec());
}

/// A snapshot of each of two groups, of one index and one state.
fn one_of_each(store: &SnapshotStore) -> [(GroupSnapshots, Snapshot); 2] {
    [GroupId::FIRST, GroupId(7)].map(|group| {
        let snapshots = store.of(group);
        let snapshot = snapshots.build(content(9, noise(1, 1000)), &mut |_| {}).unwrap();
        (snapshots, snapshot)
    })
}

#[test]
fn a_sweep_takes_nothing_from_another_group() {
    let dir = tempfile::tempdir().unwrap();
    let real = SnapshotStore::in_directory(dir.path()).unwrap();
    let simulated = SnapshotStore::over(SimulatedFiles::new(Arc::new(())).open());
    for store in [SnapshotStore::memory(), real, simulated] {
        let groups = GROUPS.map(|group| store.of(group));
        let mut kept = Vec::new();
        for (nth, snapshots) in groups.iter().enumerate() {
            let build = |index| snapshots.build(content(index, vec![nth as u8]), &mut |_| {}).unwrap();
            kept.push([build(3), build(4)]);
            let (offered, bytes) = announced_of(snapshots.group(), 9, 1, 500);
            snapshots.receive(&offered).unwrap().push(0, &bytes[..100]).unwrap();
            put(&*folder(snapshots), "building-00000000000000000007.tmp", b"half");
        }
        // Another process, which knows nothing of what was completed: everything would go that nobody keeps.
        let store = SnapshotStore::over(store.shared.files.clone());
        let groups = GROUPS.map(|group| store.of(group));
        for swept in 0..groups.len() {
            let before: Vec<_> = groups.iter().map(|snapshots| snapshots.list().unwrap()).collect();
            groups[swept].keep(&kept[swept][1..]).unwrap();
            for (nth, snapshots) in groups.iter().enumerate() {
                let left = snapshots.list().unwrap();
                match nth == swept {
                    true => assert_eq!(left.len(), 2, "the newest, and what is being received: {left:?}"),
                    false => assert_eq!(left, before[nth]),
                }
                snapshots.verify(&kept[nth][1]).unwrap();
            }
        }
        groups[1].keep(&[]).unwrap();
        groups[2].verify(&kept[2][1]).unwrap();
        groups[0].verify(&kept[0][1]).unwrap();
    }
}

#[test]
fn no_group_finds_the_file_of_another() {
    let store = SnapshotStore::memory();
    let [(first, zero), (seventh, seven)] = one_of_each(&store);
    assert_ne!(file_of(&zero), file_of(&seven), "one state, and two files");
    for (snapshots, own, other) in [(&first, &zero, &seven), (&seventh, &seven, &zero)] {
        snapshots.verify(own).unwrap();
        assert!(snapshots.has(9, &file_of(own)) && !snapshots.has(9, &file_of(other)));
        assert_eq!(snapshots.read(9, &file_of(other), 0, 10).unwrap(), None);
        assert!(snapshots.raw(9, &file_of(other)).is_err());
        let missing = snapshots.verify(other).unwrap_err().to_string();
        assert!(missing.ends_with("failed: entity not found"), "{missing}");
    }
    assert!(seventh.verify(&zero).unwrap_err().to_string().starts_with("reading g7/snapshot-"), "people hear where");
    // Nor does a group that has nothing, whose folder nobody made.
    let ninth = store.of(GroupId(9));
    assert_eq!(ninth.read(9, &file_of(&zero), 0, 10).unwrap(), None);
    assert!(ninth.verify(&zero).is_err());
    ninth.keep(&[]).unwrap();
    assert!(ninth.files().is_err(), "looking makes nothing");
}

#[test]
fn a_file_of_another_group_under_an_own_name_is_refused_and_both_are_named() {
    let store = SnapshotStore::memory();
    let [zero, seven] = one_of_each(&store);
    for ((snapshots, own), (theirs, foreign)) in [(&zero, &seven), (&seven, &zero)] {
        let (file, whose) = (file_of(foreign), theirs.group().0);
        let bytes = contents(&*folder(theirs), &complete_name(9, &file));
        let refused = format!("it is of group {whose}, and the snapshot of group {}", snapshots.group().0);
        // Somebody copied it there.
        put(&*folder(snapshots), &complete_name(9, &file), &bytes);
        let said = snapshots.verify(foreign).unwrap_err().to_string();
        assert!(said.ends_with(&refused), "{said}");
        assert_eq!(snapshots.open(foreign).err().unwrap().to_string(), said);
        // And a peer sent it, whole and as announced.
        let mut receiving = snapshots.receive(foreign).unwrap();
        assert_eq!(receiving.offset(), 0, "what is there is not taken for it");
        receiving.push(0, &bytes).unwrap();
        let said = receiving.finish().unwrap_err().to_string();
        assert!(said.ends_with(&refused), "{said}");
        let left = snapshots.list().unwrap();
        assert!(left.iter().all(|(name, _)| !name.ends_with(".part")), "{left:?}");
        snapshots.verify(own).unwrap();
    }
}

#[test]
fn groups_build_at_the_same_time_and_each_tells_its_own_progress() {
    let store = Arc::new(SnapshotStore::memory());
    let [first, seventh] = [0, 7].map(|group| store.of(GroupId(group)));
    let (inner, built) = (seventh.clone(), Arc::new(Mutex::new(None)));
    let told = built.clone();
    let state = StateView::new(move |out| {
        out.write_all(&noise(1, 300_000))?;
        let snapshot = inner.build(content(9, noise(2, 1000)), &mut |_| {}).map_err(MachineError::new)?;
        inner.keep(&[]).map_err(MachineError::new)?;
        *told.lock().unwrap() = Some(snapshot);
        Ok(())
    });
    let zero = first.build(Content { state, ..content(9, vec![]) }, &mut |_| {}).unwrap();
    let seven = built.lock().unwrap().take().unwrap();
    assert_eq!((first.progress(), seventh.progress()), (0, 0));
    first.verify(&zero).unwrap();
    assert_eq!((first.progress(), seventh.progress()), (file_of(&zero).bytes, 0));
    seventh.verify(&seven).unwrap();
    // Whoever asks again for a group sees the same.
    assert_eq!(store.of(GroupId(7)).progress(), file_of(&seven).bytes);
}

#[test]
fn the_reserve_holds_the_largest_snapshot_of_any_group() {
    use crate::log::reserve::{Reserve, ReserveBounds};
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let bounds = ReserveBounds { engine: 0, bytes: MIB, max_bytes: 100 * MIB, short_below: 0 };
    let reserve = Reserve::of(dir.path(), bounds);
    let store = SnapshotStore::memory();
    store.may_borrow(reserve.clone());
    for (group, bytes, wanted) in [(0, 5, 6), (7, 2, 6), (7, 9, 10), (0, 1, 10), (7, 0, 2)] {
        store.of(GroupId(group)).hold_snapshot(bytes * MIB);
        assert_eq!(reserve.space().unwrap().reserve_wanted, wanted * MIB, "group {group}: {bytes}");
    }
}

/// What a version makes of the directory that knows one group: it lists files, and sweeps those whose names are of this
/// form.
#[test]
fn a_version_that_knows_one_group_sees_the_files_of_group_0_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::in_directory(dir.path()).unwrap();
    let [(_, zero), (seventh, seven)] = one_of_each(&store);
    let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|entry| entry.file_type().unwrap().is_dir());
    let names = |entries: &[std::fs::DirEntry]| -> Vec<_> {
        entries.iter().map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names(&files), [complete_name(9, &file_of(&zero))]);
    assert_eq!(names(&folders), ["g7"]);
    assert_eq!(folders[0].metadata().unwrap().permissions().mode() & 0o777, 0o700);
    // Its sweep, whatever it keeps.
    for name in names(&files).iter().filter(|name| is_ours(name)) {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    seventh.verify(&seven).unwrap();
}

/// The name says the hash of all bytes. Computed by the version before there were groups.
#[test]
fn a_file_of_group_0_is_byte_for_byte_what_it_always_was() {
    let (snapshot, _) = announced(9, 1, 1000);
    let name = complete_name(9, &file_of(&snapshot));
    assert_eq!(name, "snapshot-00000000000000000009-f1e067bf7e75a910.actorum");
}

fn contents(files: &dyn Files, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    files.open(name).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Puts a file there, instead of any other of that name.
fn put(files: &dyn Files, name: &str, bytes: &[u8]) {
    let _ = files.remove(name);
    files.create(name).unwrap().write_all(bytes).unwrap();
}
