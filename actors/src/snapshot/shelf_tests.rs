//! The shelf over memory, a real directory, and files that fail and lose power.

use std::io::Read;

use super::*;
use crate::{machine::Frozen, testkit::founded};

fn content(index: u64, state: Vec<u8>) -> Content {
    let formed_with = BTreeMap::from([(1, Incarnation(1))]);
    Content { index, term: 3, system: founded(), formed_with, state: Frozen::bytes(state) }
}

fn state_of(shelf: &Shelf, snapshot: &Snapshot) -> Vec<u8> {
    let mut state = Vec::new();
    shelf.open(snapshot).unwrap().read_to_end(&mut state).unwrap();
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
    let shelves = [Shelf::memory(), Shelf::in_directory(&dir.path().join("snapshots")).unwrap()];
    for (nth, shelf) in shelves.iter().enumerate() {
        let state = noise(1, 600_000);
        let mut heard = Vec::new();
        let snapshot = shelf.build(content(9, state.clone()), &mut |bytes| heard.push(bytes)).unwrap();
        let file = file_of(&snapshot);
        assert_eq!((snapshot.index, snapshot.term, snapshot.conf.voters.clone()), (9, 3, vec![1]));
        assert_eq!(SystemState::formed_with(&snapshot).unwrap(), BTreeMap::from([(1, Incarnation(1))]));
        assert!(heard.is_sorted() && heard.len() > 2 && heard.last() == Some(&file.bytes), "{heard:?}");
        assert_eq!(names(&*shelf.files), [complete_name(9, &file)]);
        shelf.verify(&snapshot).unwrap();
        assert!(shelf.has(9, &file) && !shelf.has(8, &file));
        assert!(state_of(shelf, &snapshot) == state);

        let other = &shelves[1 - nth];
        let other = if nth == 0 { other } else { &Shelf::memory() };
        let mut receiving = other.receive(&snapshot).unwrap();
        while receiving.offset() < receiving.bytes() {
            let piece = shelf.read(9, &file, receiving.offset(), 100_000).unwrap().unwrap();
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
