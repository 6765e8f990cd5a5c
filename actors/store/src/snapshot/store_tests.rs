//! The snapshot store over memory, a real directory, and files that fail and lose power.

use std::io::Read;

use actorum_core::testkit::{founded, genesis};
use actorum_machine::machine::{MachineError, StateView};

use super::{
    super::simulated::{Answer, Decide, Loss, SimulatedFiles, Step},
    *,
};

fn content(index: u64, state: Vec<u8>) -> Content {
    let formed_with = BTreeMap::from([(1, Incarnation(1))]);
    Content { index, term: 3, system: founded(), formed_with, state: StateView::bytes(state) }
}

fn state_of(snapshot_store: &SnapshotStore, snapshot: &Snapshot) -> Vec<u8> {
    let mut state = Vec::new();
    snapshot_store.open(snapshot).unwrap().read_to_end(&mut state).unwrap();
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

fn names(files: &dyn Files) -> Vec<String> {
    files.list().unwrap().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn what_is_built_is_read_verified_and_received_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot_stores =
        [SnapshotStore::memory(), SnapshotStore::in_directory(&dir.path().join("snapshots")).unwrap()];
    for (nth, snapshot_store) in snapshot_stores.iter().enumerate() {
        let state = noise(1, 600_000);
        let mut heard = Vec::new();
        let snapshot = snapshot_store.build(content(9, state.clone()), &mut |bytes| heard.push(bytes)).unwrap();
        let file = file_of(&snapshot);
        assert_eq!((snapshot.index, snapshot.term, snapshot.conf.voters.clone()), (9, 3, vec![1]));
        assert_eq!(SystemState::formed_with(&snapshot).unwrap(), BTreeMap::from([(1, Incarnation(1))]));
        assert!(heard.is_sorted() && heard.len() > 2 && heard.last() == Some(&file.bytes), "{heard:?}");
        assert_eq!(names(&*snapshot_store.files), [complete_name(9, &file)]);
        snapshot_store.verify(&snapshot).unwrap();
        assert!(snapshot_store.has(9, &file) && !snapshot_store.has(8, &file));
        assert!(state_of(snapshot_store, &snapshot) == state);

        let other = &snapshot_stores[1 - nth];
        let other = if nth == 0 { other } else { &SnapshotStore::memory() };
        let mut receiving = other.receive(&snapshot).unwrap();
        while receiving.offset() < receiving.bytes() {
            let piece = snapshot_store.read(9, &file, receiving.offset(), 100_000).unwrap().unwrap();
            receiving.push(receiving.offset(), &piece).unwrap();
        }
        assert!(!other.has(9, &file));
        receiving.finish().unwrap();
        other.verify(&snapshot).unwrap();
        assert!(state_of(other, &snapshot) == state);
        assert_eq!(names(&*other.files), [complete_name(9, &file)]);
        other.keep(&[]).unwrap();
    }
}

#[test]
fn a_real_snapshot_store_is_its_owners_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/snapshots");
    let snapshot_store = SnapshotStore::in_directory(&path).unwrap();
    let snapshot = snapshot_store.build(content(9, vec![1]), &mut |_| {}).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join(names(&*snapshot_store.files).concat()))), (0o700, 0o600));
    // And another process finds it.
    assert_eq!(state_of(&SnapshotStore::in_directory(&path).unwrap(), &snapshot), [1]);
    assert!(snapshot_store.blocks() && !SnapshotStore::memory().blocks());
}

#[test]
fn what_the_machine_does_wrong_ends_this_snapshot_only() {
    let snapshot_store = SnapshotStore::memory();
    let build = |state: StateView| {
        let error = snapshot_store.build(Content { state, ..content(9, vec![]) }, &mut |_| {}).unwrap_err().to_string();
        assert_eq!(names(&*snapshot_store.files), [""; 0], "nothing of it stays");
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
    snapshot_store.build(content(9, vec![1]), &mut |_| {}).unwrap();
}

#[test]
fn a_file_that_is_not_the_snapshots_is_refused_by_what_is_wrong() {
    let snapshot_store = SnapshotStore::memory();
    let snapshot = snapshot_store.build(content(9, noise(1, 1000)), &mut |_| {}).unwrap();
    let file = file_of(&snapshot);
    let name = complete_name(9, &file);
    let good = contents(&*snapshot_store.files, &name);
    // The descriptor names this very file, and says otherwise than its header.
    let other = |cluster: u64, index, term, id| {
        let founders = BTreeMap::from([(id, actorum_machine::ids::Address::from("n1"))]);
        let system = SystemState::founded(actorum_machine::ids::ClusterId(cluster.into()), &founders);
        let snapshot = system.snapshot(index, term, file, BTreeMap::new()).unwrap();
        put(&*snapshot_store.files, &complete_name(index, &file), &good);
        let error = snapshot_store.verify(&snapshot).unwrap_err().to_string();
        assert_eq!(snapshot_store.open(&snapshot).err().unwrap().to_string(), error);
        error.split_once(": ").unwrap().1.to_owned()
    };
    assert_eq!(other(7, 8, 3, 1), "it is of index 9, and the snapshot of index 8");
    assert_eq!(other(7, 9, 2, 1), "it is of term 3, and the snapshot of term 2");
    assert!(other(8, 9, 3, 1).starts_with("it is of cluster "));
    assert_eq!(other(7, 9, 3, 2), "its members or their state are not the snapshot's");

    let bad = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        put(&*snapshot_store.files, &name, &bytes);
        let error = snapshot_store.verify(&snapshot).unwrap_err().to_string();
        error.strip_prefix(&format!("{name}: ")).unwrap_or(&error).to_owned()
    };
    let length = good.len();
    assert_eq!(bad(&|b| b.truncate(length - 1)), format!("it is truncated: it has {} bytes of {length}", length - 1));
    assert_eq!(bad(&|b| b.clear()), "it is not a snapshot of actorum");
    assert!(bad(&|b| b.push(0)).starts_with("it is not the file of that hash"));
    assert!(bad(&|b| b[length - 1] ^= 1).starts_with("it is not the file of that hash"));
    assert_eq!(bad(&|b| b[length - 200] ^= 1), "chunk 0 is damaged: its checksum does not match");
    // Another good file under this name.
    let shelf2 = SnapshotStore::memory();
    let snapshot2 = shelf2.build(content(9, noise(2, 1000)), &mut |_| {}).unwrap();
    let foreign = contents(&*shelf2.files, &complete_name(9, &file_of(&snapshot2)));
    assert!(bad(&|b| *b = foreign.clone()).starts_with("it is not the file of that hash"));
    put(&*snapshot_store.files, &name, &good);
    snapshot_store.verify(&snapshot).unwrap();
    snapshot_store.files.remove(&name).unwrap();
    assert_eq!(
        snapshot_store.verify(&snapshot).unwrap_err().to_string(),
        format!("reading {name} failed: entity not found")
    );
    assert_eq!(snapshot_store.read(9, &file, 0, 10).unwrap(), None);
}

#[test]
fn a_genesis_has_no_file() {
    let snapshot_store = SnapshotStore::memory();
    snapshot_store.verify(&genesis()).unwrap();
    assert_eq!(snapshot_store.open(&genesis()).err().unwrap().to_string(), "the snapshot at 1@1 has no file");
    assert_eq!(snapshot_store.receive(&genesis()).err().unwrap().to_string(), "the snapshot at 1@1 has no file");
    snapshot_store.keep(&[genesis()]).unwrap();
}

#[test]
fn pieces_for_peers_are_bounded_and_end_where_the_file_ends() {
    let snapshot_store = SnapshotStore::memory();
    let snapshot = snapshot_store.build(content(9, noise(1, 3 << 20)), &mut |_| {}).unwrap();
    let file = file_of(&snapshot);
    let piece = |offset, max| snapshot_store.read(9, &file, offset, max).unwrap().map(|piece| piece.len());
    assert_eq!(piece(0, 10), Some(10));
    assert_eq!(piece(5, u32::MAX), Some(1 << 20));
    assert_eq!(piece(file.bytes - 3, 10), Some(3));
    for past in [file.bytes, file.bytes + 1, u64::MAX] {
        assert_eq!(piece(past, 10), Some(0));
    }
    assert_eq!(snapshot_store.read(10, &file, 0, 10).unwrap(), None);
    // A file that has lost its end is no file that ends there.
    let length = file.bytes;
    snapshot_store.files.append(&complete_name(9, &file)).unwrap().cut(100).unwrap();
    assert_eq!(piece(90, 10), Some(10));
    let error = snapshot_store.read(9, &file, 90, 20).unwrap_err().to_string();
    assert!(error.ends_with(&format!("it is truncated: it ends at 100 of {length} bytes")), "{error}");
}

/// A snapshot whose file is elsewhere, and that file.
fn announced(index: u64, seed: u8, length: usize) -> (Snapshot, Vec<u8>) {
    let snapshot_store = SnapshotStore::memory();
    let snapshot = snapshot_store.build(content(index, noise(seed, length)), &mut |_| {}).unwrap();
    let bytes = contents(&*snapshot_store.files, &complete_name(index, &file_of(&snapshot)));
    (snapshot, bytes)
}

#[test]
fn receiving_goes_on_wherever_it_stopped() {
    let (snapshot, bytes) = announced(9, 1, 600_000);
    let length = bytes.len();
    // In the header, in a chunk, at the end of one, in the end mark, in the hash, at the end, and not at all.
    for stop in [0, 1, 27, 28, 100, 262_600, 300_000, length - 40, length - 1, length] {
        let snapshot_store = SnapshotStore::memory();
        let mut receiving = snapshot_store.receive(&snapshot).unwrap();
        receiving.push(0, &bytes[..stop]).unwrap();
        let twice = snapshot_store.receive(&snapshot).expect_err("one at a time").to_string();
        assert!(twice.ends_with(".part is being written already"), "{twice}");
        drop(receiving);
        // Another process of the same node, too.
        let snapshot_store = SnapshotStore::over(snapshot_store.files);
        let mut receiving = snapshot_store.receive(&snapshot).unwrap();
        assert_eq!(receiving.offset(), stop as u64);
        receiving.push(stop as u64, &bytes[stop..]).unwrap();
        receiving.finish().unwrap();
        snapshot_store.verify(&snapshot).unwrap();
        // And once more: it is here.
        let receiving = snapshot_store.receive(&snapshot).unwrap();
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
        let snapshot_store = SnapshotStore::memory();
        let mut torn = bytes[..length].to_vec();
        torn[zeros_from..].fill(0);
        put(&*snapshot_store.files, &name, &torn);
        let mut receiving = snapshot_store.receive(&snapshot).unwrap();
        assert!(goes_on.contains(&receiving.offset()), "{} after {length}, {zeros_from}", receiving.offset());
        receiving.push(receiving.offset(), &bytes[receiving.offset() as usize..]).unwrap();
        receiving.finish().unwrap();
        snapshot_store.verify(&snapshot).unwrap();
    }
}

#[test]
fn a_piece_out_of_order_or_past_the_end_changes_nothing() {
    let (snapshot, bytes) = announced(9, 1, 1000);
    let snapshot_store = SnapshotStore::memory();
    let mut receiving = snapshot_store.receive(&snapshot).unwrap();
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
    assert_eq!((receiving.offset(), snapshot_store.files.list().unwrap()[0].1), (500, 500));
    // Too early is no reason to lose what is here.
    let error = receiving.finish().unwrap_err().to_string();
    assert!(error.ends_with(&format!("only 500 of {length} bytes are here")), "{error}");
    let mut receiving = snapshot_store.receive(&snapshot).unwrap();
    receiving.push(500, &bytes[500..]).unwrap();
    receiving.finish().unwrap();
}

#[test]
fn what_is_not_what_was_announced_is_removed_and_begun_anew() {
    let (snapshot, bytes) = announced(9, 1, 1000);
    let snapshot_store = SnapshotStore::memory();
    for at in [3, 60, 700, bytes.len() - 1] {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1;
        let mut receiving = snapshot_store.receive(&snapshot).unwrap();
        receiving.push(0, &wrong).unwrap();
        receiving.finish().unwrap_err();
        assert_eq!(names(&*snapshot_store.files), [""; 0], "at {at}");
    }
    // What is longer than announced was never of this snapshot.
    put(&*snapshot_store.files, &receiving_name(9, &file_of(&snapshot)), &vec![0; bytes.len() + 1]);
    let mut receiving = snapshot_store.receive(&snapshot).unwrap();
    receiving.push(0, &bytes).unwrap();
    receiving.finish().unwrap();
    snapshot_store.verify(&snapshot).unwrap();
}

#[test]
fn only_what_is_kept_stays_and_what_is_under_way() {
    let snapshot_store = SnapshotStore::memory();
    let built: Vec<_> =
        (1..=4u8).map(|n| snapshot_store.build(content(n.into(), vec![n]), &mut |_| {}).unwrap()).collect();
    let name = |snapshot: &Snapshot| complete_name(snapshot.index, &file_of(snapshot));
    let foreign = ["notes.txt", "snapshot-of-my-cat.jpg"];
    for name in foreign {
        put(&*snapshot_store.files, name, b"not ours");
    }
    let with_foreign = |ours: Vec<String>| -> Vec<String> {
        let mut all: Vec<_> = ours.into_iter().chain(foreign.map(str::to_owned)).collect();
        all.sort();
        all
    };
    // Nobody has said yet that 3 and 4 are kept: whoever built them is about to. Older ones would have been.
    snapshot_store.keep(&built[..2]).unwrap();
    assert_eq!(names(&*snapshot_store.files), with_foreign(built.iter().map(name).collect()));
    snapshot_store.keep(&built[2..3]).unwrap();
    assert_eq!(names(&*snapshot_store.files), with_foreign(built[2..].iter().map(name).collect()));
    // A start knows what is kept, and sweeps the rest: half-built ones, and all receives but the newest that is of use.
    put(&*snapshot_store.files, "building-00000000000000000009.tmp", b"half");
    let [old, newer, newest] = [(2, 9), (5, 9), (6, 9)].map(|(index, seed)| announced(index, seed, 500));
    for (snapshot, bytes) in [&old, &newer, &newest] {
        snapshot_store.receive(snapshot).unwrap().push(0, &bytes[..100]).unwrap();
    }
    let snapshot_store = SnapshotStore::over(snapshot_store.files);
    snapshot_store.keep(&built[2..3]).unwrap();
    let partial = receiving_name(6, &file_of(&newest.0));
    assert_eq!(names(&*snapshot_store.files), with_foreign(vec![partial.clone(), name(&built[2])]));
    // While one is received, it is the one.
    let mut receiving = snapshot_store.receive(&newer.0).unwrap();
    receiving.push(0, &newer.1[..100]).unwrap();
    snapshot_store.keep(&built[2..3]).unwrap();
    let busy = receiving_name(5, &file_of(&newer.0));
    assert_eq!(names(&*snapshot_store.files), with_foreign(vec![busy.clone(), name(&built[2])]));
    receiving.push(100, &newer.1[100..]).unwrap();
    receiving.finish().unwrap();
    snapshot_store.keep(&built[2..3]).unwrap();
    assert_eq!(names(&*snapshot_store.files), with_foreign(vec![name(&built[2]), name(&newer.0)]));
    snapshot_store.keep(&[newest.0]).unwrap();
    assert_eq!(names(&*snapshot_store.files), with_foreign(vec![]));
}

#[test]
fn a_sweep_in_the_middle_of_a_build_leaves_it_alone() {
    let snapshot_store = Arc::new(SnapshotStore::memory());
    let swept = snapshot_store.clone();
    let state = StateView::new(move |out| {
        out.write_all(&noise(1, 300_000))?;
        swept.keep(&[]).map_err(MachineError::new)?;
        Ok(out.write_all(&noise(2, 300_000))?)
    });
    let snapshot = snapshot_store.build(Content { state, ..content(9, vec![]) }, &mut |_| {}).unwrap();
    snapshot_store.verify(&snapshot).unwrap();
}

/// Answers otherwise at one step, and counts them.
struct Nth {
    seen: Mutex<(u64, Vec<Step>)>,
    at: u64,
    answer: Answer,
}

impl Nth {
    fn new(at: u64, answer: Answer) -> Arc<Nth> {
        Arc::new(Nth { seen: Mutex::default(), at, answer })
    }

    fn steps(&self) -> Vec<Step> {
        self.seen.lock().unwrap().1.clone()
    }
}

impl Decide for Nth {
    fn step(&self, step: Step) -> Answer {
        let mut seen = self.seen.lock().unwrap();
        seen.0 += 1;
        seen.1.push(step);
        if seen.0 == self.at { self.answer.clone() } else { Answer::Go }
    }
}

/// What is done while a step fails or the power goes.
type Work<'a> = &'a dyn Fn(&SnapshotStore) -> Result<Snapshot, SnapshotError>;

fn build_it(snapshot_store: &SnapshotStore) -> Result<Snapshot, SnapshotError> {
    snapshot_store.build(content(9, noise(1, 300_000)), &mut |_| {})
}

fn receive_it(snapshot_store: &SnapshotStore) -> Result<Snapshot, SnapshotError> {
    let (snapshot, bytes) = announced(9, 1, 300_000);
    let mut receiving = snapshot_store.receive(&snapshot)?;
    while receiving.offset() < receiving.bytes() {
        let from = receiving.offset() as usize;
        receiving.push(from as u64, &bytes[from..bytes.len().min(from + 100_000)])?;
    }
    receiving.finish()?;
    Ok(snapshot)
}

/// Files with one snapshot that was reported durable, and its name.
fn with_an_older_one(decide: Arc<dyn Decide>) -> (SimulatedFiles, Snapshot) {
    let files = SimulatedFiles::new(Arc::new(()));
    let older = SnapshotStore::over(files.open()).build(content(5, noise(5, 1000)), &mut |_| {}).unwrap();
    files.decide_with(decide);
    (files, older)
}

/// Everything under a final name is whole, the older one and what was reported among it.
fn check(files: &SimulatedFiles, older: &Snapshot, reported: Option<&Snapshot>, when: &str) -> SnapshotStore {
    let snapshot_store = SnapshotStore::over(files.open());
    for kept in [Some(older), reported].into_iter().flatten() {
        snapshot_store.verify(kept).unwrap_or_else(|error| panic!("{when}: {error}"));
    }
    for name in names(&*snapshot_store.files).iter().filter(|name| name.ends_with(".actorum")) {
        let bytes = contents(&*snapshot_store.files, name);
        let whole = Reader::begin(&bytes[..]).and_then(Reader::verify);
        let whole = whole.unwrap_or_else(|error| panic!("{when}: {name}: {error}"));
        assert!(name.contains(&whole.to_string()), "{when}: {name} is {whole}");
    }
    snapshot_store
}

fn cut_everywhere(work: Work<'_>) {
    let losses = [Loss::All, Loss::Prefix, Loss::Subset, Loss::Torn];
    for at in 1.. {
        for (loss, rng) in losses.into_iter().flat_map(|loss| (0..8).map(move |rng| (loss, rng))) {
            let decide = Nth::new(at, Answer::CutPower);
            let (files, older) = with_an_older_one(decide.clone());
            let reported = work(&SnapshotStore::over(files.open())).ok();
            files.crash(loss, rng);
            files.decide_with(Arc::new(()));
            let when = format!("cut at step {at} of {:?}, {loss:?}, rng {rng}", decide.steps());
            let snapshot_store = check(&files, &older, reported.as_ref(), &when);
            // And it goes on: a sweep, the same work again (twice, if what was received was torn), and the power goes
            // once more.
            snapshot_store.keep(std::slice::from_ref(&older)).unwrap();
            let again = work(&snapshot_store)
                .or_else(|_| work(&snapshot_store))
                .unwrap_or_else(|error| panic!("{when}: again: {error}"));
            files.crash(loss, rng);
            let snapshot_store = check(&files, &older, Some(&again), &when);
            snapshot_store.keep(&[older, again.clone()]).unwrap();
            assert_eq!(names(&*snapshot_store.files).len(), 2, "{when}");
        }
        let decide = Nth::new(at, Answer::CutPower);
        let (files, _) = with_an_older_one(decide.clone());
        if work(&SnapshotStore::over(files.open())).is_ok() && (decide.steps().len() as u64) < at {
            assert!(at > 8, "only {at} steps: the cuts missed");
            return;
        }
    }
}

#[test]
fn a_power_cut_at_any_step_of_a_build_leaves_a_whole_file_or_none() {
    cut_everywhere(&build_it);
}

#[test]
fn a_power_cut_at_any_step_of_receiving_leaves_a_whole_file_or_none() {
    cut_everywhere(&receive_it);
}

/// The process is killed at a step, another one does the same work again, and then the power goes: what it has reported is there.
fn kill_everywhere(work: Work<'_>) {
    for at in 1.. {
        let decide = Nth::new(at, Answer::CutPower);
        let (files, older) = with_an_older_one(decide.clone());
        let first = work(&SnapshotStore::over(files.open()));
        if (decide.steps().len() as u64) < at {
            assert!(at > 8 && first.is_ok(), "only {at} steps: the kills missed");
            return;
        }
        files.kill();
        files.decide_with(Arc::new(()));
        let snapshot_store = SnapshotStore::over(files.open());
        snapshot_store.keep(std::slice::from_ref(&older)).unwrap();
        let again = work(&snapshot_store).unwrap();
        files.crash(Loss::All, 0);
        check(&files, &older, Some(&again), &format!("killed at step {at} of {:?}", decide.steps()));
    }
}

#[test]
fn a_kill_at_any_step_and_a_power_cut_after_the_next_attempt_leave_what_was_reported() {
    kill_everywhere(&build_it);
    kill_everywhere(&receive_it);
}

#[test]
fn a_whole_file_that_is_damaged_is_received_anew() {
    let files = SimulatedFiles::new(Arc::new(()));
    let snapshot_store = SnapshotStore::over(files.open());
    let (snapshot, bytes) = announced(9, 1, 300_000);
    let receive = || {
        let mut receiving = snapshot_store.receive(&snapshot).unwrap();
        let missing = receiving.bytes() - receiving.offset();
        receiving.push(receiving.offset(), &bytes[receiving.offset() as usize..]).unwrap();
        receiving.finish().unwrap();
        missing
    };
    assert_eq!(receive(), bytes.len() as u64);
    assert_eq!(receive(), 0, "it is here");
    assert!(files.flip(&complete_name(9, &file_of(&snapshot)), 8 * 1000));
    assert_eq!(receive(), bytes.len() as u64);
    snapshot_store.verify(&snapshot).unwrap();
}

fn fail_everywhere(work: Work<'_>, leaves_partial: bool) {
    let full = || Answer::Fail(io::ErrorKind::StorageFull, "no room".into());
    for at in 1.. {
        let decide = Nth::new(at, full());
        let (files, older) = with_an_older_one(decide.clone());
        let snapshot_store = SnapshotStore::over(files.open());
        let result = work(&snapshot_store);
        let steps = decide.steps();
        if (steps.len() as u64) < at {
            result.unwrap();
            return;
        }
        let failed = steps[at as usize - 1];
        let when = format!("{failed:?} fails, step {at}");
        match &result {
            Ok(_) => assert_eq!(failed, Step::Read, "{when}: only a look for what is here already may fail unnoticed"),
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("the disk is full: no room") || said.contains(": no room"), "{when}: {said}");
                let left: Vec<_> = names(&*snapshot_store.files);
                let partial = left.iter().any(|name| name.ends_with(".part"));
                assert!(left.len() == 1 || leaves_partial && partial && left.len() == 2, "{when}: {left:?}");
            }
        }
        // In the same process, with room again.
        let again = work(&snapshot_store).unwrap_or_else(|error| panic!("{when}: again: {error}"));
        files.crash(Loss::All, 0);
        check(&files, &older, Some(&again), &when);
    }
}

#[test]
fn a_full_disk_at_any_step_of_a_build_is_named_and_leaves_nothing() {
    fail_everywhere(&build_it, false);
}

#[test]
fn a_full_disk_at_any_step_of_receiving_is_named_and_loses_nothing() {
    fail_everywhere(&receive_it, true);
}

#[test]
fn a_piece_for_which_there_is_no_room_can_be_tried_again() {
    let (snapshot, bytes) = announced(9, 1, 1000);
    let files = SimulatedFiles::new(Nth::new(6, Answer::Fail(io::ErrorKind::StorageFull, "no room".into())));
    let snapshot_store = SnapshotStore::over(files.open());
    // Look, list, open, create, length; then this piece.
    let mut receiving = snapshot_store.receive(&snapshot).unwrap();
    let error = receiving.push(0, &bytes).unwrap_err().to_string();
    assert!(error.ends_with("failed, the disk is full: no room"), "{error}");
    assert_eq!((receiving.offset(), snapshot_store.files.list().unwrap()[0].1), (0, 0), "what came through is cut off");
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

    fn free(&self) -> io::Result<Option<u64>> {
        // Each look finds less.
        Ok(Some(self.free.fetch_sub(12 << 20, Ordering::Relaxed)))
    }
}

#[test]
fn what_is_left_to_the_log_is_not_taken_by_snapshots() {
    let files = Arc::new(Bounded { files: InMemory::default(), free: AtomicU64::new(100 << 20) });
    let snapshot_store = SnapshotStore::over(files.clone());
    let build = |megabytes: usize| snapshot_store.build(content(9, noise(1, megabytes << 20)), &mut |_| {});
    snapshot_store.leave_free(70 << 20);
    snapshot_store.must_fit(20 << 20).unwrap();
    let error = snapshot_store.must_fit(30 << 20).unwrap_err().to_string();
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
    assert!(other.receive(&snapshot).err().unwrap().to_string().contains("of which are the log's"));
    let receive = || {
        let mut receiving = other.receive(&snapshot)?;
        while receiving.offset() < receiving.bytes() {
            let piece = snapshot_store.read(9, &file_of(&snapshot), receiving.offset(), 1 << 20)?.unwrap();
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
    let snapshot_store = SnapshotStore::memory();
    for (index, length) in [(9, 100), (10, 300), (11, 200), (12, 50)] {
        let (snapshot, bytes) = announced(index, 1, 1000);
        snapshot_store.receive(&snapshot).unwrap().push(0, &bytes[..length]).unwrap();
    }
    let left: Vec<_> = snapshot_store.files.list().unwrap().into_iter().map(|(_, length)| length).collect();
    assert_eq!(left, [300, 50]);
}

#[test]
fn a_whole_file_that_was_received_and_not_recorded_is_found_after_a_restart() {
    let files = SimulatedFiles::new(Arc::new(()));
    let older = SnapshotStore::over(files.open()).build(content(3, vec![3]), &mut |_| {}).unwrap();
    let (snapshot, bytes) = announced(9, 1, 1000);
    let snapshot_store = SnapshotStore::over(files.open());
    let mut receiving = snapshot_store.receive(&snapshot).unwrap();
    receiving.push(0, &bytes).unwrap();
    receiving.finish().unwrap();
    // Another process.
    let snapshot_store = SnapshotStore::over(files.open());
    snapshot_store.keep(std::slice::from_ref(&older)).unwrap();
    assert!(snapshot_store.has(9, &file_of(&snapshot)));
    snapshot_store.keep(&[older, snapshot.clone()]).unwrap();
    snapshot_store.keep(&[snapshot]).unwrap();
    assert_eq!(names(&*snapshot_store.files).len(), 1);
}

#[test]
fn a_large_file_is_synced_as_it_grows() {
    let (snapshot, bytes) = announced(9, 1, 20 << 20);
    let decide = Nth::new(u64::MAX, Answer::Go);
    let snapshot_store = SnapshotStore::over(SimulatedFiles::new(decide.clone()).open());
    snapshot_store.build(content(9, noise(1, 20 << 20)), &mut |_| {}).unwrap();
    let longest = |steps: Vec<Step>| {
        let runs = steps.split(|step| *step == Step::Sync).map(|run| run.iter().filter(|s| **s == Step::Write).count());
        runs.max().unwrap()
    };
    // One write per chunk.
    assert!(longest(decide.steps()) <= 33, "{}", longest(decide.steps()));

    let receive = |decide: &Arc<Nth>| -> Result<SnapshotStore, (SnapshotStore, SnapshotError)> {
        let snapshot_store = SnapshotStore::over(SimulatedFiles::new(decide.clone()).open());
        let mut receiving = snapshot_store.receive(&snapshot).unwrap();
        for piece in bytes.chunks(1 << 20) {
            if let Err(error) = receiving.push(receiving.offset(), piece) {
                receiving.push(receiving.offset(), piece).expect_err("it must be begun anew");
                drop(receiving);
                return Err((snapshot_store, error));
            }
        }
        receiving.finish().unwrap();
        Ok(snapshot_store)
    };
    let decide = Nth::new(u64::MAX, Answer::Go);
    receive(&decide).ok().unwrap().verify(&snapshot).unwrap();
    assert_eq!(longest(decide.steps()), 8);
    // What the disk has after a sync that failed is not known: nothing of it is gone on with.
    let first = decide.steps().iter().position(|step| *step == Step::Sync).unwrap() as u64 + 1;
    let (snapshot_store, error) =
        receive(&Nth::new(first, Answer::Fail(io::ErrorKind::Other, "no".into()))).err().unwrap();
    assert!(error.to_string().starts_with("syncing receiving-"), "{error}");
    assert_eq!(snapshot_store.receive(&snapshot).unwrap().offset(), 0);
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
        let snapshot_store = SnapshotStore::memory();
        let mut replica = Replica::new(S::default());
        replica.capture().expect_err("a node that holds nothing has no snapshot");
        replica.restore(&genesis(), &snapshot_store).unwrap();
        for index in 2..=100 {
            replica.apply(&command(index, 4, index)).unwrap();
        }
        let (index, term, system, state) = replica.capture().unwrap();
        assert_eq!((index, term), (100, 4));
        assert_eq!(Some(&system), replica.system());
        replica.apply(&command(101, 4, 101)).unwrap();
        let content = Content { index, term, system, formed_with: BTreeMap::new(), state };
        let snapshot = snapshot_store.build(content, &mut |_| {}).unwrap();
        // Over another state, which goes.
        let mut other = Replica::new(S::default());
        other.restore(&genesis(), &snapshot_store).unwrap();
        other.apply(&command(2, 1, 77)).unwrap();
        other.restore(&snapshot, &snapshot_store).unwrap();
        assert_eq!((other.applied(), other.applied_term()), (100, 4));
        assert_eq!(numbers(other.machine()), (2..=100).collect::<Vec<_>>());
    }
    story(|machine: &Encoded| machine.0.clone());
    story(|machine: &Cloned| machine.0.to_vec());
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
