//! What a damaged disk can hold: the log's records, the watermark, the node file.
//!
//! Every record carries a checksum, which a fuzzer would have to guess; so half of what is read here is sealed
//! as the store would have sealed it, and only what it says is nonsense.

#![no_main]

use actorum_core::{
    entry::{Stamped, SystemCommand},
    system_state::SystemState,
};
use actorum_fuzz::Draw;
use actorum_machine::ids::GroupId;
use actorum_store::{
    fuzzing,
    log::record::{self, Key, RecordKind, Scan},
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut draw = Draw(data);
    match draw.below(4) {
        0 => fuzzing::watermark(draw.0),
        1 => fuzzing::node_file(draw.0),
        _ => scan(&mut draw),
    }
});

/// A store's values in the order of their keys, as an open or an inspection reads them.
fn scan(draw: &mut Draw<'_>) {
    let mut values: Vec<(Vec<u8>, Bytes)> = Vec::new();
    let mut previous = record::prev_checksum(GroupId::FIRST, 1, 1);
    while draw.more() && values.len() < 64 {
        let how = draw.byte();
        let kind = draw.pick(&[RecordKind::Owner, RecordKind::HardState, RecordKind::Snapshot, RecordKind::Block]);
        let (group, at, length) = (GroupId(draw.below(2) as u32), draw.near(&[0, 1, 2, 3, 5]), draw.byte());
        let key = match kind {
            RecordKind::Block => Key::block(group, at),
            RecordKind::Snapshot => Key::snapshot(group),
            _ => Key::hard_state(group),
        };
        match how % 4 {
            // Nothing is right, or only the key.
            0 => values.push((draw.bytes(how.into()).to_vec(), draw.bytes(length.into()).to_vec().into())),
            1 => values.push((key.encode().to_vec(), draw.bytes(length.into()).to_vec().into())),
            // Sealed nonsense, in the chain or out of it.
            sealed => {
                let before = if sealed == 2 { previous } else { draw.u64() as u32 };
                let mut pieces = Vec::new();
                previous = record::seal(key, before, draw.bytes(length.into()), &mut pieces);
                values.extend(pieces.into_iter().map(|(key, value)| (key.encode().to_vec(), value.into())));
            }
        }
    }
    if draw.byte() % 2 == 0 {
        values.sort();
    }
    let mut scan = Scan::new();
    for (key, value) in &values {
        scan.push(key, value.clone());
        if let Some(key) = Key::decode(key) {
            assert_eq!(Key::decode(&key.encode()), Some(key));
            let _ = key.to_string();
            if let Ok(opened) = record::open(key, value.clone()) {
                payload(opened.payload);
            }
        }
    }
    let found = scan.finish();
    found.problems.iter().for_each(|problem| drop(problem.to_string()));
    // What was found without a problem can be used.
    for group in found.groups.values().filter(|_| found.problems.is_empty()) {
        let recovered = &group.recovered;
        assert!(recovered.hard_state.commit <= recovered.last_index);
        for index in recovered.terms.iter().map(|(first, _)| *first).chain([recovered.last_index]) {
            let _ = recovered.term_at(index);
        }
    }
}

/// What a record carries, read as each kind.
fn payload(payload: Bytes) {
    let _ = record::decode_owner(payload.clone());
    let _ = record::decode_hard_state(payload.clone());
    if let Ok(log_meta) = record::decode_log_meta(GroupId::FIRST, &payload) {
        let again = record::encode_log_meta(&log_meta).map(|bytes| record::decode_log_meta(GroupId::FIRST, &bytes));
        assert_eq!(again, Ok(Ok(log_meta.clone())), "what can be read can be written and read again");
        log_meta.snapshots.iter().for_each(|snapshot| drop(SystemState::of(snapshot)));
    }
    for first in [2, u64::MAX - 1] {
        if let Ok(entries) = record::decode_block(first, payload.clone()) {
            for entry in &entries {
                let _ = Stamped::parse(&entry.data).map(|stamped| SystemCommand::decode(stamped.payload));
                let _ = SystemCommand::decode(&entry.context);
            }
        }
    }
}
