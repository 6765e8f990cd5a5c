//! The form of the file: round trips, and every kind of bad file by its name.

use std::io::{Cursor, Read, Write};

use actorum_core::{entry::SystemCommand, testkit::founded, versions::Announcement};
use proptest::prelude::*;

use super::*;

fn header() -> Header {
    Header::new(GroupId::FIRST, 9, 2, founded(), BTreeMap::from([(1, Incarnation(1))]))
}

/// A file of this state, written in pieces of that size.
fn written(state: &[u8], piece: usize) -> (Vec<u8>, SnapshotFile) {
    let mut writer = Writer::begin(Vec::new(), &header()).unwrap();
    for piece in state.chunks(piece.max(1)) {
        writer.write_all(piece).unwrap();
        writer.flush().unwrap();
    }
    writer.finish().unwrap()
}

fn read(bytes: &[u8]) -> Result<Vec<u8>, FileError> {
    let mut reader = Reader::begin(bytes)?;
    let mut state = Vec::new();
    reader.read_to_end(&mut state)?;
    Ok(state)
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

/// Offsets of the parts of a file: where each chunk begins, and at the end the end mark and the hash.
fn parts(bytes: &[u8]) -> Vec<usize> {
    let mut at = FIXED_BYTES + number(bytes, 20) as usize;
    let mut parts = vec![at];
    while number(bytes, at) != 0 {
        at += CHUNK_HEAD_BYTES + number(bytes, at + 4) as usize;
        parts.push(at);
    }
    parts.push(at + CHUNK_HEAD_BYTES + END_BYTES);
    parts
}

fn error(bytes: &[u8]) -> String {
    let verified = Reader::begin(bytes).and_then(Reader::verify).expect_err("it is bad").to_string();
    // Reading it as a stream says the same, whatever comes first.
    assert_eq!(read(bytes).expect_err("it is bad").to_string(), verified);
    verified
}

#[test]
fn what_is_written_is_read_whatever_its_length() {
    for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7] {
        for state in [vec![7; length], noise(length)] {
            let (bytes, file) = written(&state, 100_000);
            assert_eq!(written(&state, 1 << 30).1, file, "the pieces it is written in do not show");
            assert_eq!(file.bytes, bytes.len() as u64);
            assert_eq!(file.hash, bytes[bytes.len() - 32..]);
            assert_eq!(file.hash, *blake3::hash(&bytes[..bytes.len() - 32]).as_bytes());
            assert_eq!(parts(&bytes).len(), length.div_ceil(CHUNK_BYTES) + 2);
            let reader = Reader::begin(&bytes[..]).unwrap();
            assert_eq!(*reader.header(), header());
            assert_eq!(reader.verify().unwrap(), file);
            assert!(read(&bytes).unwrap() == state);
        }
    }
}

#[test]
fn a_file_that_ends_early_is_truncated_wherever_it_ends() {
    let (bytes, _) = written(&noise(CHUNK_BYTES + 5), 4096);
    let parts = parts(&bytes);
    let cases = [
        (1, "its first bytes"),
        (20, "its first bytes"),
        (FIXED_BYTES, "its header"),
        (parts[0], "chunk 0"),
        (parts[0] + 5, "chunk 0"),
        (parts[0] + 500, "chunk 0"),
        (parts[1], "chunk 1"),
        (parts[2], "chunk 2"),
        (parts[2] + CHUNK_HEAD_BYTES, "the end mark"),
        (parts[3], "the hash"),
        (bytes.len() - 1, "the hash"),
    ];
    for (length, part) in cases {
        assert_eq!(error(&bytes[..length]), format!("it is truncated: it ends in {part}"), "at {length}");
    }
    assert_eq!(error(&[]), "it is not a snapshot of actorum");
}

#[test]
fn every_other_bad_file_is_named_too() {
    let (bytes, _) = written(&noise(2 * CHUNK_BYTES + 5), 4096);
    let parts = parts(&bytes);
    let bad = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        error(&bytes)
    };
    assert_eq!(bad(&|b| b[3] ^= 1), "it is not a snapshot of actorum");
    assert_eq!(bad(&|b| b[19] = 4), "it has format 4 and this version reads up to 3: use the newer version");
    assert_eq!(bad(&|b| b[19] = 0), "the header is damaged: it names format 0, which there never was");
    assert!(bad(&|b| b[20] = 9).starts_with("the header is damaged: it claims 15"));
    assert_eq!(bad(&|b| b[FIXED_BYTES + 9] ^= 1), "the header is damaged: its checksum does not match");
    assert_eq!(bad(&|b| b[parts[1] + 40] ^= 1), "chunk 1 is damaged: its checksum does not match");
    assert_eq!(bad(&|b| b[parts[1] + 9] ^= 1), "chunk 1 is damaged: its checksum does not match");
    assert!(bad(&|b| b[parts[1]] = 1).starts_with("chunk 1 is damaged: it claims 17"));
    assert!(bad(&|b| b[parts[1] + 4] = 0xff).starts_with("chunk 1 is damaged: it claims 262144 bytes stored in 4278"));
    assert_eq!(bad(&|b| b[parts[3] + 20] ^= 1), "the end mark is damaged: its checksum does not match");
    assert_eq!(bad(&|b| b[parts[4]] ^= 1), "the file is damaged: its hash is not the one at its end");
    assert_eq!(bad(&|b| b.push(0)), "something follows its end");
    // A chunk twice, one left out, two in the wrong order: each chunk is good by itself.
    let chunk = |n: usize| bytes[parts[n]..parts[n + 1]].to_vec();
    let with = |middle: &[Vec<u8>]| [&bytes[..parts[0]], &middle.concat(), &bytes[parts[3]..]].concat();
    let misplaced = |n| format!("chunk {n} is damaged: its checksum does not match");
    assert_eq!(error(&with(&[chunk(0), chunk(0), chunk(1), chunk(2)])), misplaced(1));
    assert_eq!(error(&with(&[chunk(0), chunk(2)])), misplaced(1));
    assert_eq!(error(&with(&[chunk(1), chunk(0), chunk(2)])), misplaced(0));
    assert_eq!(error(&with(&[chunk(0), chunk(1)])), "the end mark is damaged: its checksum does not match");
    // And one of another snapshot's file.
    let other = Header { index: 10, ..header() };
    let mut writer = Writer::begin(Vec::new(), &other).unwrap();
    writer.write_all(&noise(2 * CHUNK_BYTES + 5)).unwrap();
    let (foreign, _) = writer.finish().unwrap();
    let at = self::parts(&foreign);
    assert_eq!(error(&with(&[chunk(0), foreign[at[1]..at[2]].to_vec(), chunk(2)])), misplaced(1));
}

#[test]
fn no_byte_of_a_bad_chunk_is_given_out_and_the_error_stays() {
    let (mut bytes, _) = written(&noise(2 * CHUNK_BYTES), 4096);
    let second = parts(&bytes)[1];
    bytes[second + 1000] ^= 1;
    let mut reader = Reader::begin(&bytes[..]).unwrap();
    let mut state = Vec::new();
    let first = reader.read_to_end(&mut state).unwrap_err();
    assert_eq!(first.kind(), io::ErrorKind::InvalidData);
    assert!(state == noise(2 * CHUNK_BYTES)[..CHUNK_BYTES]);
    assert_eq!(reader.read(&mut [0; 8]).unwrap_err().to_string(), first.to_string());
}

#[test]
fn a_chunk_that_unpacks_to_more_than_it_says_is_refused_before_it_does() {
    // Well sealed, so that only the decompressor can notice.
    let header = machine::encode(&header()).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    let said = error(&sealed(&header, &[(5, &bomb)], None));
    assert!(said.starts_with("chunk 0 is damaged: "), "{said}");
    // To less is no better.
    let short = zstd::bulk::compress(b"four", 1).unwrap();
    let said = error(&sealed(&header, &[(5, &short)], None));
    assert_eq!(said, "chunk 0 is damaged: it claims 5 bytes and has 4");
    assert_eq!(read(&sealed(&header, &[(4, &short)], None)).unwrap(), b"four");
}

#[test]
fn an_end_that_counts_otherwise_and_a_header_that_contradicts_itself_are_refused() {
    let header = header();
    let encoded = machine::encode(&header).unwrap();
    let one = zstd::bulk::compress(b"1", 1).unwrap();
    for counts in [(0, 1), (2, 1), (1, 0), (1, 2)] {
        let said = error(&sealed(&encoded, &[(1, &one)], Some(counts)));
        assert_eq!(said, "the end mark is damaged: it counts otherwise");
    }
    let refused = |header: &Header| {
        let bytes = sealed(&machine::encode(header).unwrap(), &[], None);
        Reader::begin(&bytes[..]).expect_err("refused").to_string()
    };
    let two = Header { cluster: ClusterId(8), ..header.clone() };
    assert_eq!(refused(&two), "the header is damaged: it names two clusters");
    let conf = ConfState { voters: vec![1, 2], ..header.conf.clone() };
    let said = refused(&Header { conf, ..header });
    assert_eq!(said, "the header is damaged: its configuration is not that of its members");
    let nonsense = sealed(b"nonsense", &[], None);
    assert!(Reader::begin(&nonsense[..]).err().unwrap().to_string().starts_with("the header is damaged: "));
}

/// A build that knows a single group must not take such a file for one of its own, and would skip the field: so the
/// number tells it.
#[test]
fn a_file_of_another_group_has_a_format_that_older_builds_refuse() {
    let mut announced = founded();
    let announcement = Announcement { features: ["x".to_owned()].into(), machine: 2, boot: 1 };
    announced.apply(8, &SystemCommand::Announce { node: 1, announcement });
    for (group, system, format) in
        [(0, founded(), 1), (0, announced.clone(), 2), (1, founded(), 3), (7, announced, 3), (u32::MAX, founded(), 3)]
    {
        let header = Header::new(GroupId(group), 9, 2, system, BTreeMap::new());
        let (bytes, file) = Writer::begin(Vec::new(), &header).unwrap().finish().unwrap();
        assert_eq!(number(&bytes, 16), format, "group {group}");
        let reader = Reader::begin(&bytes[..]).unwrap();
        assert_eq!(*reader.header(), header);
        assert_eq!(reader.verify().unwrap(), file);
        // Under a number that those builds read, it is nobody's.
        if group > 0 {
            let mut older = bytes[..FIXED_BYTES].to_vec();
            older[19] = 2;
            let encoded = machine::encode(&header).unwrap();
            let crc = header_crc(&older[..24], &encoded);
            older.splice(24.., crc.to_be_bytes());
            older.extend_from_slice(&encoded);
            let said = Reader::begin(&older[..]).expect_err("refused").to_string();
            assert_eq!(said, format!("the header is damaged: it names group {group}, and format 2 knows no groups"));
        }
    }
}

/// Takes so many bytes, then is full.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no room"));
        }
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_error_that_the_state_machine_overlooks_is_not_overlooked_here() {
    let mut writer = Writer::begin(Full(CHUNK_BYTES), &header()).unwrap();
    let state = noise(CHUNK_BYTES);
    let _ = writer.write_all(&state);
    let _ = writer.write_all(&state);
    assert_eq!(writer.failed(), Some("no room"));
    assert_eq!(writer.finish().err().unwrap().to_string(), "no room");
}

proptest! {
    #[test]
    fn any_state_in_any_pieces_comes_back(state in prop::collection::vec(any::<u8>(), 0..3000), piece in 1usize..700) {
        let (bytes, file) = written(&state, piece);
        prop_assert_eq!(Reader::begin(&bytes[..]).unwrap().verify().unwrap(), file);
        prop_assert_eq!(read(&bytes).unwrap(), state);
    }

    #[test]
    fn any_flipped_bit_is_noticed(length in 0usize..2000, rng in any::<u64>()) {
        let (mut bytes, _) = written(&noise(length), 100);
        let bit = (rng % (bytes.len() as u64 * 8)) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_an_error_and_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..500),
        sealed in any::<bool>(),
    ) {
        let mut file = Vec::new();
        if sealed {
            // The header as it should be, so that the rest is looked at.
            let (good, _) = written(b"", 1);
            file.extend_from_slice(&good[..parts(&good)[0]]);
        }
        file.extend_from_slice(&bytes);
        prop_assert!(Reader::begin(Cursor::new(file)).and_then(Reader::verify).is_err());
    }
}

/// A whole and sound file of somebody's making: its checksums match, and what it says cannot be counted on from.
#[test]
fn an_index_beyond_all_plausibility_is_refused_by_name() {
    for (index, term) in [(u64::MAX, 2), (9, u64::MAX), (ABSURD, 2), (9, ABSURD)] {
        let header = Header::new(GroupId::FIRST, index, term, founded(), BTreeMap::new());
        let (bytes, _) = Writer::begin(Vec::new(), &header).unwrap().finish().unwrap();
        let error = Reader::begin(&bytes[..]).map(|_| ()).expect_err("it is bad").to_string();
        assert!(error.contains("beyond all plausibility"), "{error}");
    }
}
