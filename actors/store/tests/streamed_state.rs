//! A state larger than what the process may hold goes through a snapshot: written, received, verified and restored as a
//! stream. Alone in its process, for it looks at how much memory that has ever had.
#![cfg(target_os = "linux")]

use std::{collections::BTreeMap, fs, io::Read};

use actorum_core::system_state::SystemState;
use actorum_machine::{
    ids::{Address, ClusterId, GroupId},
    machine::StateView,
};
use actorum_store::snapshot::{SnapshotStore, store::Content};

const STATE_BYTES: usize = 96 << 20;
/// A few buffers of one chunk, one piece for peers, and what else a test process does.
const ALLOWED_BYTES: u64 = 16 << 20;

/// The most memory that this process has had so far.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A state that does not compress, made as it is written.
struct Pieces(u64);

impl Pieces {
    fn next(&mut self) -> [u8; 4096] {
        let mut piece = [0; 4096];
        for word in piece.chunks_exact_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word.copy_from_slice(&(mixed ^ (mixed >> 27)).to_be_bytes());
        }
        piece
    }
}

#[test]
fn a_state_larger_than_the_memory_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there] =
        ["here", "there"].map(|name| SnapshotStore::in_directory(&dir.path().join(name)).unwrap().of(GroupId::FIRST));
    let before = peak();

    let state = StateView::new(|out| {
        let mut pieces = Pieces(1);
        for _ in 0..STATE_BYTES / 4096 {
            out.write_all(&pieces.next())?;
        }
        Ok(())
    });
    let system = SystemState::founded(ClusterId(7), &BTreeMap::from([(1, Address::from("n1"))]));
    let content = Content { index: 9, term: 1, system, formed_with: BTreeMap::new(), state };
    let snapshot = here.build(content, &mut |_| {}).unwrap();
    let file = SystemState::of(&snapshot).unwrap().1.unwrap();
    assert!(file.bytes > STATE_BYTES as u64, "it does not compress");

    let mut receiving = there.receive(&snapshot).unwrap();
    while receiving.offset() < receiving.bytes() {
        let piece = here.read(9, &file, receiving.offset(), u32::MAX).unwrap().unwrap();
        receiving.push(receiving.offset(), &piece).unwrap();
    }
    receiving.finish().unwrap();

    let mut state = there.open(&snapshot).unwrap();
    let (mut pieces, mut got) = (Pieces(1), [0; 4096]);
    for _ in 0..STATE_BYTES / 4096 {
        state.read_exact(&mut got).unwrap();
        assert!(got == pieces.next());
    }
    assert_eq!(state.read(&mut got).unwrap(), 0, "it ends where it ended");

    let grown = peak() - before;
    assert!(grown < ALLOWED_BYTES, "{grown} bytes of memory for a state of {STATE_BYTES}");
    println!("{STATE_BYTES} bytes of state went through {grown} bytes of memory");
}
