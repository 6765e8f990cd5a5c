//! What is read of a snapshot's file: by its magic, its header, its chunks, its end. It may come from a peer, a backup
//! or a disk.
//!
//! Every part carries a checksum, which a fuzzer would have to guess; so most of what is read here is sealed as a
//! writer would have sealed it, and only what it says is nonsense.

#![no_main]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
};

use actorum_core::system_state::SystemState;
use actorum_fuzz::Draw;
use actorum_machine::{
    ids::{Address, ClusterId, GroupId, Incarnation},
    machine,
};
use actorum_store::{
    fuzzing,
    snapshot::file::{Header, Reader, Writer},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut draw = Draw(data);
    match draw.below(4) {
        0 => drop(read(draw.0)),
        1 => changed(&mut draw),
        _ => sealed(&mut draw),
    }
});

fn header(index: u64) -> Header {
    let founders = BTreeMap::from([(1, Address::from("n1")), (2, Address::from("n2"))]);
    let system = SystemState::founded(ClusterId(7), &founders);
    Header::new(GroupId::FIRST, index, 2, system, BTreeMap::from([(1, Incarnation(1))]))
}

/// A good file, and what becomes of it when some bytes are others.
fn changed(draw: &mut Draw<'_>) {
    // A reader refuses an index of 2^62 and more.
    let (changes, index) = (draw.below(4), draw.u64() >> 2);
    let changes: Vec<(u64, u8)> = (0..changes).map(|_| (draw.u64(), draw.byte())).collect();
    let state = draw.0;
    let mut writer = Writer::begin(Vec::new(), &header(index)).expect("memory takes it");
    writer.write_all(state).expect("memory takes it");
    let (good, file) = writer.finish().expect("memory takes it");
    let mut bytes = good.clone();
    for (at, byte) in changes {
        let at = (at % bytes.len() as u64) as usize;
        bytes[at] = byte;
    }
    match read(&bytes) {
        Some(got) => {
            assert_eq!(bytes, good, "what is not the file was taken for it");
            assert_eq!(got, state);
            assert_eq!(Reader::begin(&bytes[..]).and_then(Reader::verify).expect("it was read"), file);
        }
        None => assert_ne!(bytes, good, "the file was refused"),
    }
}

/// Headers and chunks of all kinds, with the right checksums.
fn sealed(draw: &mut Draw<'_>) {
    let length = draw.byte();
    let header = match draw.below(4) {
        0 => draw.bytes(length.into()).to_vec(),
        _ => machine::encode(&header(9)).expect("it is encodable"),
    };
    let counts = (draw.below(4) == 0).then(|| (draw.below(4), draw.near(&[0, 1, 64])));
    let mut chunks: Vec<(u32, Vec<u8>)> = Vec::new();
    while draw.more() && chunks.len() < 16 {
        let (how, length) = (draw.byte(), draw.byte());
        let body = draw.bytes(length.into());
        chunks.push(match how % 4 {
            0 => (draw.near(&[0, 1, 256 << 10]) as u32, body.to_vec()),
            1 => (draw.near(&[body.len() as u64]) as u32, zstd::bulk::compress(body, 1).expect("it is compressible")),
            _ => (body.len() as u32, zstd::bulk::compress(body, 1).expect("it is compressible")),
        });
    }
    let chunks: Vec<(u32, &[u8])> = chunks.iter().map(|(raw, body)| (*raw, &body[..])).collect();
    let file = fuzzing::snapshot_file(&header, &chunks, counts);
    if let Some(state) = read(&file) {
        assert_eq!(state.len() as u64, chunks.iter().map(|(raw, _)| u64::from(*raw)).sum::<u64>());
    }
}

/// The state, if the file is good. What comes out before an error is bounded by the chunks that came in.
fn read(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut reader = match Reader::begin(bytes) {
        Ok(reader) => reader,
        Err(error) => {
            let _ = error.to_string();
            return None;
        }
    };
    let mut state = Vec::new();
    let read = reader.read_to_end(&mut state);
    let verified = Reader::begin(bytes).and_then(Reader::verify);
    assert_eq!(read.is_ok(), verified.is_ok(), "both ways of reading agree");
    match read {
        Ok(_) => Some(state),
        Err(error) => {
            let _ = error.to_string();
            None
        }
    }
}
