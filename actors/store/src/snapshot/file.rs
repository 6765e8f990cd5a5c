//! The form of a snapshot's file, written and read as a stream: neither side ever holds more than one chunk.
//!
//! ```text
//!  magic           16 bytes: "actorum snapshot"
//!  format          u32           ┐ numbers are big-endian
//!  header length   u32           │
//!  header CRC      u32           │ of all before it, and of the header
//!  header          MessagePack map with named fields, see Header
//!  chunk 0, 1, 2, ...            each:
//!    raw length    u32           1 to 256 KiB
//!    stored length u32
//!    CRC           u32           of header CRC, the chunk's number, both lengths, and what is stored
//!    stored        zstd
//!  end             raw length and stored length zero, CRC as above over what follows:
//!    chunks        u64           how many came
//!    raw bytes     u64           how long the state is
//!  hash            32 bytes      BLAKE3 of everything before it
//! ```
//!
//! A chunk's CRC names its place and its file, so that a chunk of another file, or of another place, is not taken for
//! this one. No byte of a chunk is given out before the whole chunk was checked; and the state's end is only told once
//! the hash was checked, too. The hash stands in the file, so that a backup can be verified by itself: a file is
//! *named* by that hash and its length ([`SnapshotFile`]).
//!
//! Everything here is a function over `Read` and `Write`: no file, no name, no clock. No bytes can make it panic, or
//! hold more than [`MAX_HEADER_BYTES`] and one chunk.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

use actorum_core::{
    debug_fields,
    system_state::SystemState,
    wire::{ConfState, SnapshotFile},
};
use actorum_machine::{
    ids::{ClusterId, GroupId, Incarnation, NodeId},
    machine,
};
use serde::{Deserialize, Serialize};

/// The newest file format this code reads. A file has 1, or 2 where members have announced what they understand, or 3
/// if it is of a group other than 0, with or without announcements.
///
/// A build that knows no announcements refuses 2 by its number, and one that knows a single group refuses 3: it would
/// skip the group in the header and take the file for one of its own.
pub const FORMAT: u32 = 3;
/// The first format that can say which group a file is of.
const GROUPS: u32 = 3;
/// A header is never longer: room for some ten thousand members.
pub const MAX_HEADER_BYTES: u32 = 1 << 20;
/// How much of the state is in one chunk.
pub const CHUNK_BYTES: usize = 256 << 10;
/// The hash at the end.
pub const HASH_BYTES: u64 = 32;

/// No honest index or term comes near this; additions cannot overflow below it.
const ABSURD: u64 = 1 << 62;

const MAGIC: &[u8; 16] = b"actorum snapshot";
/// Magic, format, header length, header CRC.
const FIXED_BYTES: usize = 28;
/// Raw length, stored length, CRC.
const CHUNK_HEAD_BYTES: usize = 12;
/// Chunks, raw bytes.
const END_BYTES: usize = 16;
/// What is gained by more is small, and building shares the processor with applying.
const LEVEL: i32 = 1;

/// What a snapshot's file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The cluster.
    pub cluster: ClusterId,
    /// The group. Group 0 is not written: its files are byte for byte those of the versions that knew no other.
    #[serde(default, skip_serializing_if = "is_first")]
    pub group: GroupId,
    /// The last index it covers.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
    /// raft-rs's configuration there.
    pub conf: ConfState,
    /// Our own state there, the last time included.
    pub system: SystemState,
    /// Whom the node that wrote it heard while the cluster was formed.
    #[serde(default)]
    pub formed_with: BTreeMap<NodeId, Incarnation>,
}

impl Header {
    /// The header of a snapshot of that group at that index.
    pub fn new(
        group: GroupId,
        index: u64,
        term: u64,
        system: SystemState,
        formed_with: BTreeMap<NodeId, Incarnation>,
    ) -> Header {
        let (cluster, conf) = (system.cluster, ConfState::of(&system.membership));
        Header { cluster, group, index, term, conf, system, formed_with }
    }

    /// The oldest format that says all of it.
    fn format(&self) -> u32 {
        match (self.group, self.system.versions.is_empty()) {
            (GroupId::FIRST, true) => 1,
            (GroupId::FIRST, false) => 2,
            _ => GROUPS,
        }
    }
}

fn is_first(group: &GroupId) -> bool {
    *group == GroupId::FIRST
}

/// A file cannot be written or read as a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It begins otherwise.
    #[error("it is not a snapshot of actorum")]
    Foreign,
    /// It was written by a newer version.
    #[error("it has format {found} and this version reads up to {FORMAT}: use the newer version")]
    Newer {
        /// Its format.
        found: u32,
    },
    /// It ends too early.
    #[error("it is truncated: it ends in {0}")]
    Truncated(
        /// In the middle of what.
        String,
    ),
    /// What is read is not what was written.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// Which part.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// It goes on where it should end.
    #[error("something follows its end")]
    Trailing,
    /// The header to be written is longer than any reader takes.
    #[error("its header would have {0} bytes, and {MAX_HEADER_BYTES} are the most")]
    HeaderTooLong(
        /// How long it is.
        usize,
    ),
    /// The source or the sink failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl FileError {
    fn damaged(what: impl Into<String>, detail: impl Into<String>) -> FileError {
        FileError::Damaged { what: what.into(), detail: detail.into() }
    }

    fn into_io(self) -> io::Error {
        match self {
            FileError::Io(error) => error,
            FileError::Truncated(_) => io::Error::new(io::ErrorKind::UnexpectedEof, self),
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// Writes a snapshot's file: the state goes in through [`Write`], in pieces of any size.
pub struct Writer<W> {
    out: Hashed<W>,
    compressor: zstd::bulk::Compressor<'static>,
    /// What is not yet a chunk.
    raw: Vec<u8>,
    /// A chunk with its head, as it is written.
    stored: Vec<u8>,
    header_crc: u32,
    chunks: u64,
    raw_bytes: u64,
    /// The first error. A state machine may overlook it; the file must not.
    failed: Option<(io::ErrorKind, String)>,
}

debug_fields!(Writer<W> { chunks, raw_bytes, failed });

impl<W: Write> Writer<W> {
    /// Begins a file with its header.
    pub fn begin(out: W, header: &Header) -> Result<Writer<W>, FileError> {
        let format = header.format();
        let header = machine::encode(header).map_err(|error| FileError::damaged("the header", error.to_string()))?;
        let length = u32::try_from(header.len()).ok().filter(|length| *length <= MAX_HEADER_BYTES);
        let length = length.ok_or(FileError::HeaderTooLong(header.len()))?;
        let mut begin = Vec::with_capacity(FIXED_BYTES + header.len());
        begin.extend_from_slice(MAGIC);
        begin.extend_from_slice(&format.to_be_bytes());
        begin.extend_from_slice(&length.to_be_bytes());
        let header_crc = header_crc(&begin, &header);
        begin.extend_from_slice(&header_crc.to_be_bytes());
        begin.extend_from_slice(&header);
        let mut out = Hashed::new(out);
        out.write(&begin)?;
        Ok(Writer {
            out,
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            raw: Vec::with_capacity(CHUNK_BYTES),
            stored: Vec::new(),
            header_crc,
            chunks: 0,
            raw_bytes: 0,
            failed: None,
        })
    }

    /// How many bytes of the file were written so far.
    pub fn bytes(&self) -> u64 {
        self.out.bytes
    }

    /// The error that ended the writing, if one did.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_ref().map(|(_, error)| error.as_str())
    }

    /// The state ends here. Nothing is synced.
    pub fn finish(mut self) -> Result<(W, SnapshotFile), FileError> {
        self.usable()?;
        self.chunk()?;
        let mut end = Vec::with_capacity(CHUNK_HEAD_BYTES + END_BYTES);
        let counts = [self.chunks.to_be_bytes(), self.raw_bytes.to_be_bytes()].concat();
        end.extend_from_slice(&[0; 8]);
        end.extend_from_slice(&chunk_crc(self.header_crc, self.chunks, 0, 0, &counts).to_be_bytes());
        end.extend_from_slice(&counts);
        self.out.write(&end)?;
        let hash = self.out.hasher.finalize();
        self.out.write(hash.as_bytes())?;
        self.out.inner.flush()?;
        let file = SnapshotFile { bytes: self.out.bytes, hash: *hash.as_bytes() };
        Ok((self.out.inner, file))
    }

    fn usable(&self) -> io::Result<()> {
        match &self.failed {
            Some((kind, error)) => Err(io::Error::new(*kind, error.clone())),
            None => Ok(()),
        }
    }

    /// What was gathered becomes a chunk.
    fn chunk(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let written = self.write_chunk();
        if let Err(error) = &written {
            self.failed = Some((error.kind(), error.to_string()));
        }
        self.raw.clear();
        written
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        let body = self.compressor.compress(&self.raw)?;
        let too_long = |_| io::Error::other("a chunk is too long");
        let raw = u32::try_from(self.raw.len()).map_err(too_long)?;
        let stored = u32::try_from(body.len()).map_err(too_long)?;
        let crc = chunk_crc(self.header_crc, self.chunks, raw, stored, &body);
        self.stored.clear();
        for number in [raw, stored, crc] {
            self.stored.extend_from_slice(&number.to_be_bytes());
        }
        self.stored.extend_from_slice(&body);
        self.out.write(&self.stored)?;
        self.chunks += 1;
        self.raw_bytes += u64::from(raw);
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.usable()?;
        let taken = bytes.len().min(CHUNK_BYTES - self.raw.len());
        self.raw.extend_from_slice(&bytes[..taken]);
        if self.raw.len() == CHUNK_BYTES {
            self.chunk()?;
        }
        Ok(taken)
    }

    /// Does nothing: a chunk is as long as it is, however often its writer flushes.
    fn flush(&mut self) -> io::Result<()> {
        self.usable()
    }
}

/// A sink that knows what went through it.
struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Hashed { inner, hasher: blake3::Hasher::new(), bytes: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Reads a snapshot's file: the state comes out through [`Read`], and ends once all that follows it was checked, too.
pub struct Reader<R> {
    inner: R,
    hasher: blake3::Hasher,
    bytes: u64,
    decompressor: zstd::bulk::Decompressor<'static>,
    header: Header,
    header_crc: u32,
    /// The present chunk, checked and decompressed, and how much of it was given out.
    raw: Vec<u8>,
    given: usize,
    stored: Vec<u8>,
    chunks: u64,
    raw_bytes: u64,
    end: End,
}

debug_fields!(Reader<R> { bytes, chunks, raw_bytes });

/// Where a reader is.
enum End {
    Not,
    /// Everything was checked.
    Reached(SnapshotFile),
    /// It stays with the first error.
    Failed(io::ErrorKind, String),
}

impl<R: Read> Reader<R> {
    /// Reads and checks the header.
    pub fn begin(mut inner: R) -> Result<Reader<R>, FileError> {
        let mut fixed = [0; FIXED_BYTES];
        let got = read_up_to(&mut inner, &mut fixed)?;
        let magic = got.min(MAGIC.len());
        if fixed[..magic] != MAGIC[..magic] || got == 0 {
            return Err(FileError::Foreign);
        }
        if got < FIXED_BYTES {
            return Err(FileError::Truncated("its first bytes".into()));
        }
        let (format, length, crc) = (number(&fixed, 16), number(&fixed, 20), number(&fixed, 24));
        // Before all else: what follows a newer format's number is for the versions that know it.
        if format > FORMAT {
            return Err(FileError::Newer { found: format });
        }
        if format == 0 {
            return Err(FileError::damaged("the header", "it names format 0, which there never was"));
        }
        if length > MAX_HEADER_BYTES {
            let detail = format!("it claims {length} bytes, and {MAX_HEADER_BYTES} are the most");
            return Err(FileError::damaged("the header", detail));
        }
        let mut header = vec![0; length as usize];
        if read_up_to(&mut inner, &mut header)? < header.len() {
            return Err(FileError::Truncated("its header".into()));
        }
        if header_crc(&fixed[..24], &header) != crc {
            return Err(FileError::damaged("the header", "its checksum does not match"));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&fixed);
        hasher.update(&header);
        let read: Header =
            machine::decode(&header).map_err(|error| FileError::damaged("the header", error.to_string()))?;
        // A build that knows one group would take it for a file of group 0.
        if read.group != GroupId::FIRST && format < GROUPS {
            let detail = format!("it names group {}, and format {format} knows no groups", read.group.0);
            return Err(FileError::damaged("the header", detail));
        }
        if read.cluster != read.system.cluster {
            return Err(FileError::damaged("the header", "it names two clusters"));
        }
        // What counts on from these, in a restore from a file of anybody's making, must not overflow.
        if read.index >= ABSURD || read.term >= ABSURD {
            return Err(FileError::damaged("the header", "its index or term is beyond all plausibility"));
        }
        if read.conf != ConfState::of(&read.system.membership) {
            return Err(FileError::damaged("the header", "its configuration is not that of its members"));
        }
        Ok(Reader {
            inner,
            hasher,
            bytes: (FIXED_BYTES + header.len()) as u64,
            decompressor: zstd::bulk::Decompressor::new()?,
            header: read,
            header_crc: crc,
            raw: Vec::new(),
            given: 0,
            stored: Vec::new(),
            chunks: 0,
            raw_bytes: 0,
            end: End::Not,
        })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How many bytes of the file were read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads to the end, and answers what the file is.
    pub fn verify(mut self) -> Result<SnapshotFile, FileError> {
        loop {
            self.given = self.raw.len();
            match &self.end {
                End::Reached(file) => return Ok(*file),
                End::Failed(kind, error) => return Err(io::Error::new(*kind, error.clone()).into()),
                End::Not => self.next()?,
            }
        }
    }

    /// How much of a file that is still incomplete is good: up to the first part that is there and damaged; all of it,
    /// if none is. What is there of the last part cannot be checked yet.
    pub fn intact(from: R, length: u64) -> io::Result<u64> {
        let mut reader = match Reader::begin(from) {
            Ok(reader) => reader,
            Err(FileError::Truncated(_)) => return Ok(length),
            Err(FileError::Io(error)) => return Err(error),
            Err(_) => return Ok(0),
        };
        loop {
            let good = reader.bytes;
            match reader.next() {
                Ok(()) if matches!(reader.end, End::Not) => {}
                Ok(()) | Err(FileError::Truncated(_)) => return Ok(length),
                Err(FileError::Io(error)) => return Err(error),
                Err(_) => return Ok(good),
            }
        }
    }

    /// Checks the next chunk, or the end.
    fn next(&mut self) -> Result<(), FileError> {
        self.raw.clear();
        self.given = 0;
        let name = format!("chunk {}", self.chunks);
        let mut head = [0; CHUNK_HEAD_BYTES];
        self.take(&mut head, &name)?;
        let (raw, stored, crc) = (number(&head, 0), number(&head, 4), number(&head, 8));
        if raw == 0 && stored == 0 {
            return self.finish(crc);
        }
        // Before anything is allocated.
        if raw == 0 || raw as usize > CHUNK_BYTES || stored == 0 || stored as usize > most_stored() {
            let detail = format!("it claims {raw} bytes stored in {stored}");
            return Err(FileError::damaged(name, detail));
        }
        let mut body = std::mem::take(&mut self.stored);
        body.resize(stored as usize, 0);
        self.take(&mut body, &name)?;
        if chunk_crc(self.header_crc, self.chunks, raw, stored, &body) != crc {
            return Err(FileError::damaged(name, "its checksum does not match"));
        }
        // Takes no more than the capacity, whatever the frame claims.
        self.raw.reserve_exact(raw as usize);
        let got = self.decompressor.decompress_to_buffer(&body, &mut self.raw);
        self.stored = body;
        match got {
            Ok(got) if got == raw as usize => {}
            Ok(got) => {
                self.raw.clear();
                return Err(FileError::damaged(name, format!("it claims {raw} bytes and has {got}")));
            }
            Err(error) => {
                self.raw.clear();
                return Err(FileError::damaged(name, error.to_string()));
            }
        }
        self.chunks += 1;
        self.raw_bytes += u64::from(raw);
        Ok(())
    }

    fn finish(&mut self, crc: u32) -> Result<(), FileError> {
        let mut counts = [0; END_BYTES];
        self.take(&mut counts, "the end mark")?;
        if chunk_crc(self.header_crc, self.chunks, 0, 0, &counts) != crc {
            return Err(FileError::damaged("the end mark", "its checksum does not match"));
        }
        let expected = [self.chunks.to_be_bytes(), self.raw_bytes.to_be_bytes()].concat();
        if counts != expected[..] {
            return Err(FileError::damaged("the end mark", "it counts otherwise"));
        }
        let computed = *self.hasher.finalize().as_bytes();
        let mut hash = [0; HASH_BYTES as usize];
        self.take(&mut hash, "the hash")?;
        if computed != hash {
            return Err(FileError::damaged("the file", "its hash is not the one at its end"));
        }
        if read_up_to(&mut self.inner, &mut [0])? > 0 {
            return Err(FileError::Trailing);
        }
        self.end = End::Reached(SnapshotFile { bytes: self.bytes, hash });
        Ok(())
    }

    fn take(&mut self, into: &mut [u8], what: &str) -> Result<(), FileError> {
        let got = read_up_to(&mut self.inner, into)?;
        self.bytes += got as u64;
        if got < into.len() {
            return Err(FileError::Truncated(what.to_owned()));
        }
        self.hasher.update(into);
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        while self.given == self.raw.len() {
            match &self.end {
                End::Reached(_) => return Ok(0),
                End::Failed(kind, error) => return Err(io::Error::new(*kind, error.clone())),
                End::Not => {}
            }
            if let Err(error) = self.next() {
                self.raw.clear();
                let error = error.into_io();
                self.end = End::Failed(error.kind(), error.to_string());
                return Err(error);
            }
        }
        let given = into.len().min(self.raw.len() - self.given);
        into[..given].copy_from_slice(&self.raw[self.given..self.given + given]);
        self.given += given;
        Ok(given)
    }
}

/// How long a chunk can be as it is stored.
fn most_stored() -> usize {
    zstd::zstd_safe::compress_bound(CHUNK_BYTES)
}

fn header_crc(before: &[u8], header: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(before);
    crc.update(header);
    crc.finalize()
}

fn chunk_crc(header_crc: u32, number: u64, raw: u32, stored: u32, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(header_crc);
    crc.update(&number.to_be_bytes());
    crc.update(&raw.to_be_bytes());
    crc.update(&stored.to_be_bytes());
    crc.update(body);
    crc.finalize()
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(number)
}

/// Fills the buffer as far as the source goes.
fn read_up_to(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match from.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// A file of this header and these chunks (raw length, what is stored), which need not be any, with every checksum
/// right.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn sealed(header: &[u8], chunks: &[(u32, &[u8])], counts: Option<(u64, u64)>) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    for number in [FORMAT, header.len() as u32] {
        file.extend_from_slice(&number.to_be_bytes());
    }
    let header_crc = header_crc(&file, header);
    file.extend_from_slice(&header_crc.to_be_bytes());
    file.extend_from_slice(header);
    let all = (chunks.len() as u64, chunks.iter().map(|(raw, _)| u64::from(*raw)).sum());
    let (count, raw_bytes) = counts.unwrap_or(all);
    let counts = [count.to_be_bytes(), raw_bytes.to_be_bytes()].concat();
    let end = (chunks.len() as u64, (0, &counts[..]));
    for (number, (raw, body)) in chunks.iter().enumerate().map(|(n, chunk)| (n as u64, *chunk)).chain([end]) {
        let stored = if raw == 0 && number == end.0 { 0 } else { body.len() as u32 };
        for field in [raw, stored, chunk_crc(header_crc, number, raw, stored, body)] {
            file.extend_from_slice(&field.to_be_bytes());
        }
        file.extend_from_slice(body);
    }
    file.extend_from_slice(blake3::hash(&file).as_bytes());
    file
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
