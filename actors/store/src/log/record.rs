//! The record format: what a store writes, with enough around it to know later that it is still the same.
//!
//! A record is one logical value: a hard state, a snapshot, a block of entries, the store's owner. It is cut
//! into pieces of at most [`PIECE_MAX`] bytes, and every piece is one value of the engine:
//!
//! ```text
//!  key    group u32 │ kind u8 │ first index u64 │ piece u32          big endian, so that keys sort like the log
//!  value  version u8 │ crc u32 │ previous u32 │ pieces u32 │ length u32 │ payload     little endian
//!
//!  previous checksum ◀─previous── block 2.. ◀─previous── block 66.. ◀─previous── block 67.. (piece 0 ◀─ piece 1 ◀─ piece 2)
//! ```
//!
//! The CRC covers the key and everything in the value after itself, so a value under another's key is seen. `previous`
//! is the CRC of the piece before; for the first block of a log it is `LogMeta::prev_checksum`. The record of kind
//! `Snapshot` is the log's [`LogMeta`]: it says where the log begins, what the first block names, and which snapshots a
//! node can start from. So a missing, reordered or foreign block is seen even when it is intact in itself. What the
//! chain cannot see is that its end is missing: that is what the watermark is for.
//!
//! Deliberately absent: files, sled, and any decision. Everything here is a function of bytes, and no bytes
//! can make it panic.

use std::{collections::BTreeMap, fmt};

use actorum_core::{
    log::{
        sizes::Sizes,
        store::{At, HardState, Recovered},
    },
    wire::{Entry, EntryKind, Snapshot},
};
use actorum_machine::ids::{GroupId, Incarnation, NodeId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The version byte of every value this code writes.
pub const VERSION: u8 = 1;

/// The most payload one engine value carries. sled moves a tree node (up to some 19 values) to a file of its
/// own, which nothing syncs, once it passes a quarter of the segment: 4 MiB with the largest segment.
pub const PIECE_MAX: usize = 192 * 1024;

/// The size of a [`Key`] in bytes.
pub const KEY_LEN: usize = 17;

/// What stands before the payload.
const HEAD: usize = 17;

/// What stands before the data of an entry in a block: term, kind, two lengths.
const ENTRY_HEAD: usize = 17;

/// Under which group the store's own records are kept; no Raft group has this number.
const STORE: GroupId = GroupId(u32::MAX);

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RecordKind {
    /// Whose store it is.
    Owner = 0,
    /// The hard state of a group.
    HardState = 1,
    /// Where a log begins, and the snapshots that replace what was before it.
    Snapshot = 2,
    /// Entries.
    Block = 3,
}

/// Where a piece is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Whose log.
    pub group: GroupId,
    /// What it holds.
    pub kind: RecordKind,
    /// The index of a block's first entry; zero for other kinds.
    pub index: u64,
    /// Which piece of the record.
    pub piece: u32,
}

impl Key {
    /// The key of the store's owner.
    pub const OWNER: Key = Key { group: STORE, kind: RecordKind::Owner, index: 0, piece: 0 };

    /// The key of a hard state.
    pub fn hard_state(group: GroupId) -> Key {
        Key { group, kind: RecordKind::HardState, index: 0, piece: 0 }
    }

    /// The key of a snapshot's first piece.
    pub fn snapshot(group: GroupId) -> Key {
        Key { group, kind: RecordKind::Snapshot, index: 0, piece: 0 }
    }

    /// The key of a block's first piece.
    pub fn block(group: GroupId, first: u64) -> Key {
        Key { group, kind: RecordKind::Block, index: first, piece: 0 }
    }

    /// The same record's piece with that number.
    pub fn piece(self, piece: u32) -> Key {
        Key { piece, ..self }
    }

    /// The key as the engine sorts it.
    pub fn encode(self) -> [u8; KEY_LEN] {
        let mut key = [0; KEY_LEN];
        key[0..4].copy_from_slice(&self.group.0.to_be_bytes());
        key[4] = self.kind as u8;
        key[5..13].copy_from_slice(&self.index.to_be_bytes());
        key[13..17].copy_from_slice(&self.piece.to_be_bytes());
        key
    }

    /// The inverse of [`Key::encode`]; `None` for what this version does not write.
    pub fn decode(mut key: &[u8]) -> Option<Key> {
        if key.len() != KEY_LEN {
            return None;
        }
        let group = GroupId(key.get_u32());
        let kind = match key.get_u8() {
            0 => RecordKind::Owner,
            1 => RecordKind::HardState,
            2 => RecordKind::Snapshot,
            3 => RecordKind::Block,
            _ => return None,
        };
        Some(Key { group, kind, index: key.get_u64(), piece: key.get_u32() })
    }
}

/// `group 0: block 7 piece 2`: the name of a record in every message about it.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RecordKind::Owner => write!(f, "owner of the store")?,
            RecordKind::HardState => write!(f, "group {}: hard state", self.group.0)?,
            RecordKind::Snapshot => write!(f, "group {}: snapshot", self.group.0)?,
            RecordKind::Block => write!(f, "group {}: block {}", self.group.0, self.index)?,
        }
        if self.piece > 0 { write!(f, " piece {}", self.piece) } else { Ok(()) }
    }
}

/// Who a store belongs to, as a record in it: an engine that comes up empty has no such record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The node.
    pub id: NodeId,
    /// The life of its directory.
    pub incarnation: Incarnation,
}

/// One piece, ready for the engine.
pub type Piece = (Key, Vec<u8>);

/// Cuts a payload into pieces and seals each. Returns the CRC of the last piece, which the next block names.
pub fn seal(first: Key, previous: u32, payload: &[u8], out: &mut Vec<Piece>) -> u32 {
    let pieces = payload.len().div_ceil(PIECE_MAX).max(1) as u32;
    let mut previous = previous;
    for number in 0..pieces {
        let start = number as usize * PIECE_MAX;
        let part = &payload[start..payload.len().min(start + PIECE_MAX)];
        let key = first.piece(number);
        let mut value = Vec::with_capacity(HEAD + part.len());
        value.put_u8(VERSION);
        value.put_u32_le(0);
        value.put_u32_le(previous);
        value.put_u32_le(pieces);
        value.put_u32_le(part.len() as u32);
        value.put_slice(part);
        let crc = checksum(key, &value);
        value[1..5].copy_from_slice(&crc.to_le_bytes());
        out.push((key, value));
        previous = crc;
    }
    previous
}

/// A piece whose seal was intact.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its CRC, which the next piece or block names.
    pub crc: u32,
    /// The CRC of what must stand before it.
    pub previous: u32,
    /// How many pieces its record has.
    pub pieces: u32,
    /// What it carries.
    pub payload: Bytes,
}

/// Checks the seal of one piece. The error says what is wrong with it.
pub fn open(key: Key, value: Bytes) -> Result<Opened, String> {
    if value.len() < HEAD {
        return Err(format!("it has {} bytes, less than a record's head", value.len()));
    }
    let mut head = &value[..HEAD];
    let version = head.get_u8();
    if version != VERSION {
        return Err(format!("record version {version} is not known, this version reads {VERSION}"));
    }
    let (crc, previous, pieces, length) = (head.get_u32_le(), head.get_u32_le(), head.get_u32_le(), head.get_u32_le());
    let found = checksum(key, &value);
    if found != crc {
        return Err(format!("checksum {found:08x} instead of {crc:08x}"));
    }
    if length as usize != value.len() - HEAD {
        return Err(format!("it holds {} bytes and its head says {length}", value.len() - HEAD));
    }
    if key.piece >= pieces {
        return Err(format!("piece {} of a record of {pieces}", key.piece));
    }
    Ok(Opened { crc, previous, pieces, payload: value.slice(HEAD..) })
}

/// The CRC of a value under its key: everything but the CRC itself.
fn checksum(key: Key, value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&key.encode());
    hasher.update(&value[..1]);
    hasher.update(&value[5..]);
    hasher.finalize()
}

/// What the first block of a log that was cut by nothing but a snapshot names as its predecessor.
pub fn prev_checksum(group: GroupId, index: u64, term: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    // On the disk since the first version.
    hasher.update(b"anchor");
    hasher.update(&group.0.to_be_bytes());
    hasher.update(&index.to_be_bytes());
    hasher.update(&term.to_be_bytes());
    hasher.finalize()
}

/// The payload of an owner.
pub fn encode_owner(owner: &Owner) -> Vec<u8> {
    let mut payload = Vec::with_capacity(16);
    payload.put_u64_le(owner.id);
    payload.put_u64_le(owner.incarnation.0);
    payload
}

/// The inverse of [`encode_owner`].
pub fn decode_owner(mut payload: Bytes) -> Result<Owner, String> {
    if payload.len() != 16 {
        return Err(format!("an owner of {} bytes", payload.len()));
    }
    Ok(Owner { id: payload.get_u64_le(), incarnation: Incarnation(payload.get_u64_le()) })
}

/// The payload of a hard state.
pub fn encode_hard_state(state: &HardState) -> Vec<u8> {
    let mut payload = Vec::with_capacity(24);
    payload.put_u64_le(state.term);
    payload.put_u64_le(state.vote);
    payload.put_u64_le(state.commit);
    payload
}

/// The inverse of [`encode_hard_state`].
pub fn decode_hard_state(mut payload: Bytes) -> Result<HardState, String> {
    if payload.len() != 24 {
        return Err(format!("a hard state of {} bytes", payload.len()));
    }
    Ok(HardState { term: payload.get_u64_le(), vote: payload.get_u64_le(), commit: payload.get_u64_le() })
}

/// Where a log begins, and the snapshots before it. On the disk its fields have the names of the first version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMeta {
    /// The last index that was compacted: the one before the log's first entry.
    #[serde(rename = "base")]
    pub compacted_index: u64,
    /// The term of the entry that was there.
    #[serde(rename = "base_term")]
    pub compacted_term: u64,
    /// The CRC that the log's first block names as its predecessor.
    #[serde(rename = "anchor")]
    pub prev_checksum: u32,
    /// The snapshots that a node can start from, ascending by index; the first is not below the compacted index. Never
    /// empty.
    pub snapshots: Vec<Snapshot>,
}

impl LogMeta {
    /// That of a log whose place a snapshot took.
    pub fn of(group: GroupId, snapshot: Snapshot) -> LogMeta {
        let Snapshot { index, term, .. } = snapshot;
        LogMeta {
            compacted_index: index,
            compacted_term: term,
            prev_checksum: prev_checksum(group, index, term),
            snapshots: vec![snapshot],
        }
    }

    /// What is wrong with it in itself, if anything is.
    fn flaw(&self) -> Option<String> {
        let mut before = At(self.compacted_index, self.compacted_term);
        if self.snapshots.is_empty() {
            return Some("it names no snapshot".to_owned());
        }
        for (nth, snapshot) in self.snapshots.iter().enumerate() {
            let at = At(snapshot.index, snapshot.term);
            let follows = if nth == 0 { at.0 >= before.0 } else { at.0 > before.0 };
            if !follows || at.1 < before.1 || (at.0 == before.0 && at.1 != before.1) {
                return Some(format!("its snapshot {at} cannot follow {before}"));
            }
            before = at;
        }
        None
    }
}

/// The payload of a [`LogMeta`]: MessagePack with named fields, for it crosses versions and is written rarely.
pub fn encode_log_meta(log_meta: &LogMeta) -> Result<Vec<u8>, String> {
    rmp_serde::to_vec_named(log_meta).map_err(|error| error.to_string())
}

/// The inverse of [`encode_log_meta`]. What versions before compaction wrote, a snapshot alone, is read as the
/// [`LogMeta`] of a log that the snapshot began.
pub fn decode_log_meta(group: GroupId, payload: &[u8]) -> Result<LogMeta, String> {
    // Their fields have different names, all of them needed, so that neither can pass for the other.
    let log_meta = rmp_serde::from_slice(payload).or_else(|error| match rmp_serde::from_slice(payload) {
        Ok(snapshot) => Ok(LogMeta::of(group, snapshot)),
        Err(_) => Err(error.to_string()),
    })?;
    log_meta.flaw().map_or(Ok(log_meta), Err)
}

/// How many bytes an entry takes in a block.
pub fn entry_len(entry: &Entry) -> usize {
    ENTRY_HEAD + entry.data.len() + entry.context.len()
}

/// The payload of a block: the entries one after the other, their indexes given by the key.
fn encode_block(entries: &[Entry], payload: &mut Vec<u8>) {
    payload.put_u32_le(entries.len() as u32);
    for entry in entries {
        payload.put_u64_le(entry.term);
        payload.put_u8(match entry.kind {
            EntryKind::Normal => 0,
            EntryKind::ConfChange => 1,
        });
        payload.put_u32_le(entry.data.len() as u32);
        payload.put_u32_le(entry.context.len() as u32);
        payload.put_slice(&entry.data);
        payload.put_slice(&entry.context);
    }
}

/// The entries of a block, in order, the first one at `first`. They share the memory of `payload`.
pub fn decode_block(first: u64, mut payload: Bytes) -> Result<Vec<Entry>, String> {
    if payload.len() < 4 {
        return Err("a block without a count".to_owned());
    }
    let count = payload.get_u32_le() as usize;
    if count == 0 {
        return Err("a block without entries".to_owned());
    }
    if count > payload.len() / ENTRY_HEAD || first.checked_add(count as u64).is_none() {
        return Err(format!("{count} entries from {first} in {} bytes", payload.len()));
    }
    let mut entries = Vec::with_capacity(count);
    for index in first..first + count as u64 {
        if payload.len() < ENTRY_HEAD {
            return Err(format!("entry {index} is cut off"));
        }
        let term = payload.get_u64_le();
        let kind = match payload.get_u8() {
            0 => EntryKind::Normal,
            1 => EntryKind::ConfChange,
            other => return Err(format!("entry {index} is of unknown kind {other}")),
        };
        let (data, context) = (payload.get_u32_le() as usize, payload.get_u32_le() as usize);
        if payload.len() < data.saturating_add(context) {
            return Err(format!("entry {index} is cut off"));
        }
        entries.push(Entry { kind, term, index, data: payload.split_to(data), context: payload.split_to(context) });
    }
    if !payload.is_empty() {
        return Err(format!("{} bytes after the last entry", payload.len()));
    }
    Ok(entries)
}

/// Seals entries as blocks: as few as the bound allows, an entry larger than the bound as a block of its own
/// in several pieces. Returns the CRC that the next block names.
pub fn seal_entries(group: GroupId, mut previous: u32, entries: &[Entry], out: &mut Vec<Piece>) -> u32 {
    let mut payload = Vec::new();
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let mut length = 4 + entry_len(first);
        let mut count = 1;
        for entry in &rest[1..] {
            if length + entry_len(entry) > PIECE_MAX {
                break;
            }
            length += entry_len(entry);
            count += 1;
        }
        payload.clear();
        payload.reserve(length);
        encode_block(&rest[..count], &mut payload);
        previous = seal(Key::block(group, first.index), previous, &payload, out);
        rest = &rest[count..];
    }
    previous
}

/// Puts the pieces of one record together, checking each and the chain between them.
#[derive(Debug)]
pub struct Assembly {
    first: Key,
    previous: u32,
    last: u32,
    pieces: u32,
    next: u32,
    payload: BytesMut,
    whole: Option<Bytes>,
}

/// A record whose pieces were all there.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// Its first key.
    pub key: Key,
    /// What must stand before it.
    pub previous: u32,
    /// The CRC of its last piece.
    pub crc: u32,
    /// What it carries.
    pub payload: Bytes,
}

impl Assembly {
    /// Begins a record with its first piece.
    pub fn begin(key: Key, opened: Opened) -> Result<Assembly, String> {
        if key.piece != 0 {
            return Err("the pieces before it are missing".to_owned());
        }
        let mut assembly = Assembly {
            first: key,
            previous: opened.previous,
            last: opened.crc,
            pieces: opened.pieces,
            next: 1,
            payload: BytesMut::new(),
            whole: None,
        };
        if opened.pieces == 1 {
            assembly.whole = Some(opened.payload);
        } else {
            assembly.payload.put_slice(&opened.payload);
        }
        Ok(assembly)
    }

    /// Whether `key` is another piece of this record.
    pub fn continues(&self, key: Key) -> bool {
        Key { piece: 0, ..key } == self.first
    }

    /// Adds the next piece.
    pub fn push(&mut self, key: Key, opened: Opened) -> Result<(), String> {
        if key.piece != self.next || opened.pieces != self.pieces {
            return Err(format!("piece {} of {} was expected", self.next, self.pieces));
        }
        if opened.previous != self.last {
            return Err("it does not follow the piece before it".to_owned());
        }
        self.last = opened.crc;
        self.next += 1;
        self.payload.put_slice(&opened.payload);
        Ok(())
    }

    /// The record, if no piece is missing.
    pub fn finish(self) -> Result<Assembled, String> {
        if self.next != self.pieces {
            return Err(format!("it has {} of {} pieces", self.next, self.pieces));
        }
        let payload = self.whole.unwrap_or_else(|| self.payload.freeze());
        Ok(Assembled { key: self.first, previous: self.previous, crc: self.last, payload })
    }
}

/// Something wrong with what a store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which record or file.
    pub what: String,
    /// What is wrong with it.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.detail)
    }
}

/// What a scan found of one group.
#[derive(Clone, Debug, Default)]
pub struct FoundGroup {
    /// As the core recovers it.
    pub recovered: Recovered,
    /// The index of the first entry, if there is one.
    pub first_index: Option<u64>,
    /// The CRC that the first block names as its predecessor.
    pub prev_checksum: u32,
    /// The CRC that the next block names as its predecessor.
    pub tail: u32,
    /// How many blocks.
    pub blocks: u64,
    /// The bytes of its records.
    pub bytes: u64,
    sizes: Sizes,
}

/// What a scan found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Whose store it is.
    pub owner: Option<Owner>,
    /// Per group.
    pub groups: BTreeMap<GroupId, FoundGroup>,
    /// How many values were read.
    pub values: u64,
    /// What is wrong, in the order of keys.
    pub problems: Vec<Problem>,
}

/// Reads every value of a store in the order of keys and checks all that can be checked: seals, chain, order, gaps.
///
/// It goes on after a problem, so that an inspection can list them all; a store opens only without one.
#[derive(Debug, Default)]
pub struct Scan {
    found: Found,
    assembly: Option<Assembly>,
    /// The chain is broken here already: one break is one problem, not one per block that follows.
    broken: Option<GroupId>,
}

impl Scan {
    /// An empty scan.
    pub fn new() -> Scan {
        Scan::default()
    }

    /// Takes the next value.
    pub fn push(&mut self, key: &[u8], value: Bytes) {
        self.found.values += 1;
        let Some(decoded) = Key::decode(key) else {
            let name: String = key.iter().map(|b| format!("{b:02x}")).collect();
            return self.problem(format!("key {name}"), "it is not of any known form");
        };
        let bytes = value.len() as u64;
        if decoded.group != STORE {
            self.found.groups.entry(decoded.group).or_default().bytes += bytes;
        }
        let opened = match open(decoded, value) {
            Ok(opened) => opened,
            Err(detail) => {
                self.problem(decoded, detail);
                if self.assembly.as_ref().is_some_and(|a| a.continues(decoded)) {
                    self.assembly = None; // its piece is broken, and said so
                } else {
                    self.complete();
                }
                self.broken = Some(decoded.group);
                return;
            }
        };
        if let Some(assembly) = self.assembly.as_mut().filter(|a| a.continues(decoded)) {
            if let Err(detail) = assembly.push(decoded, opened) {
                self.assembly = None;
                self.broken = Some(decoded.group);
                self.problem(decoded, detail);
            }
            return;
        }
        self.complete();
        match Assembly::begin(decoded, opened) {
            Ok(assembly) => self.assembly = Some(assembly),
            Err(_) if self.broken == Some(decoded.group) => {} // a later piece of what was named already
            Err(detail) => self.problem(decoded, detail),
        }
    }

    /// What was found. The values are over.
    pub fn finish(mut self) -> Found {
        self.complete();
        for (group, found) in &mut self.found.groups {
            found.recovered.sizes = found.sizes.steps();
            let (commit, last) = (found.recovered.hard_state.commit, found.recovered.last_index);
            let astray = |snapshot: &&Snapshot| found.recovered.term_at(snapshot.index) != Some(snapshot.term);
            if let Some(Snapshot { index, term, .. }) = found.recovered.snapshots.iter().find(astray) {
                let detail = format!("there is no entry {} in the log up to {last}", At(*index, *term));
                self.found.problems.push(Problem { what: Key::snapshot(*group).to_string(), detail });
            }
            if commit > last {
                let what = Key::hard_state(*group).to_string();
                let detail = format!("commit {commit} lies past the last index {last}");
                self.found.problems.push(Problem { what, detail });
            }
        }
        self.found
    }

    fn problem(&mut self, what: impl fmt::Display, detail: impl Into<String>) {
        self.found.problems.push(Problem { what: what.to_string(), detail: detail.into() });
    }

    /// The record under assembly has no further piece.
    fn complete(&mut self) {
        let Some(assembly) = self.assembly.take() else { return };
        let key = assembly.first;
        let outcome = match assembly.finish() {
            Ok(record) => match key.kind {
                RecordKind::Owner => self.owner(record),
                RecordKind::HardState => self.hard_state(record),
                RecordKind::Snapshot => self.snapshot(record),
                RecordKind::Block => self.block(record),
            },
            Err(detail) => {
                self.broken = Some(key.group);
                Err(detail)
            }
        };
        if let Err(detail) = outcome {
            self.problem(key, detail);
        }
    }

    fn group(&mut self, key: Key) -> &mut FoundGroup {
        self.found.groups.entry(key.group).or_default()
    }

    fn owner(&mut self, record: Assembled) -> Result<(), String> {
        if record.key != Key::OWNER {
            return Err("it is kept under a foreign key".to_owned());
        }
        self.found.owner = Some(decode_owner(record.payload)?);
        Ok(())
    }

    fn hard_state(&mut self, record: Assembled) -> Result<(), String> {
        let state = decode_hard_state(record.payload)?;
        let group = self.group(record.key);
        group.recovered.hard_state = state;
        Ok(())
    }

    fn snapshot(&mut self, record: Assembled) -> Result<(), String> {
        let LogMeta { compacted_index, compacted_term, prev_checksum, snapshots } =
            decode_log_meta(record.key.group, &record.payload)?;
        let group = self.group(record.key);
        (group.prev_checksum, group.tail) = (prev_checksum, prev_checksum);
        group.recovered.last_index = compacted_index;
        group.recovered.terms = vec![(compacted_index, compacted_term)];
        group.recovered.snapshots = snapshots;
        group.sizes = Sizes::empty_after(compacted_index);
        Ok(())
    }

    fn block(&mut self, record: Assembled) -> Result<(), String> {
        let id = record.key.group;
        let broken = self.broken == Some(id);
        let entries = decode_block(record.key.index, record.payload).inspect_err(|_| self.broken = Some(id))?;
        let group = self.group(record.key);
        if group.blocks == 0 && group.recovered.snapshots.is_empty() {
            group.prev_checksum = prev_checksum(id, 0, 0);
            group.tail = group.prev_checksum;
        }
        let (expected, tail) = (group.recovered.last_index.saturating_add(1), group.tail);
        group.blocks += 1;
        group.tail = record.crc;
        let Some((first, last)) = entries.first().zip(entries.last()) else { return Ok(()) };
        group.first_index.get_or_insert(first.index);
        group.recovered.last_index = last.index;
        let mut backwards = None;
        for entry in &entries {
            group.sizes.push(entry.index, entry.size() as u64);
            let before = group.recovered.terms.last().map_or(0, |run| run.1);
            if entry.term < before && backwards.is_none() {
                backwards = Some(format!("{} follows term {before}", At(entry.index, entry.term)));
            }
            if entry.term != before || group.recovered.terms.is_empty() {
                group.recovered.terms.push((entry.index, entry.term));
            }
        }
        // After a break the chain starts afresh, and the next break in it is a finding of its own.
        self.broken = None;
        if broken {
            return backwards.map_or(Ok(()), Err);
        }
        if first.index > expected {
            return Err(format!("entries {expected} to {} are missing before it", first.index - 1));
        }
        if first.index < expected {
            return Err(format!("it overlaps the blocks before it, which reach {}", expected - 1));
        }
        if record.previous != tail {
            return Err("it does not follow the block before it: one is missing, or was replaced".to_owned());
        }
        backwards.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GROUP: GroupId = GroupId(3);

    fn snapshot(index: u64, term: u64) -> Snapshot {
        Snapshot { index, term, data: Bytes::from(vec![7; 50]), ..Snapshot::default() }
    }

    #[test]
    fn a_snapshot_of_an_older_version_is_log_meta() {
        let old = rmp_serde::to_vec_named(&snapshot(9, 2)).unwrap();
        let expected = LogMeta {
            compacted_index: 9,
            compacted_term: 2,
            prev_checksum: prev_checksum(GROUP, 9, 2),
            snapshots: vec![snapshot(9, 2)],
        };
        assert_eq!(decode_log_meta(GROUP, &old), Ok(expected));
    }

    #[test]
    fn log_meta_that_cannot_be_is_refused() {
        let log_meta = LogMeta { compacted_index: 5, compacted_term: 2, prev_checksum: 1, snapshots: Vec::new() };
        for (snapshots, words) in [
            (vec![], "names no snapshot"),
            (vec![snapshot(4, 2)], "4@2 cannot follow 5@2"),
            (vec![snapshot(5, 3)], "5@3 cannot follow 5@2"),
            (vec![snapshot(6, 1)], "6@1 cannot follow 5@2"),
            (vec![snapshot(7, 2), snapshot(7, 2)], "7@2 cannot follow 7@2"),
            (vec![snapshot(7, 3), snapshot(8, 2)], "8@2 cannot follow 7@3"),
        ] {
            let bytes = encode_log_meta(&LogMeta { snapshots, ..log_meta.clone() }).unwrap();
            let refusal = decode_log_meta(GROUP, &bytes).unwrap_err();
            assert!(refusal.contains(words), "{refusal}");
        }
    }

    /// A log with that beginning, in one block.
    fn scanned(log_meta: &LogMeta, entries: &[Entry], commit: u64) -> Found {
        let mut pieces = Vec::new();
        let hard_state = HardState { term: 9, vote: 0, commit };
        seal(Key::hard_state(GROUP), 0, &encode_hard_state(&hard_state), &mut pieces);
        seal(Key::snapshot(GROUP), 0, &encode_log_meta(log_meta).unwrap(), &mut pieces);
        seal_entries(GROUP, log_meta.prev_checksum, entries, &mut pieces);
        let mut scan = Scan::new();
        for (key, value) in pieces {
            scan.push(&key.encode(), value.into());
        }
        scan.finish()
    }

    fn entries(from: u64, terms: &[u64]) -> Vec<Entry> {
        let entry = |(index, &term)| Entry {
            kind: EntryKind::Normal,
            term,
            index,
            data: Bytes::from(vec![index as u8; 30]),
            context: Bytes::new(),
        };
        (from..).zip(terms).map(entry).collect()
    }

    #[test]
    fn a_snapshot_that_does_not_stand_on_its_log_is_named() {
        let log_meta = |snapshots| LogMeta { compacted_index: 5, compacted_term: 2, prev_checksum: 77, snapshots };
        let log = entries(6, &[2, 2, 3, 3]);
        let good = scanned(&log_meta(vec![snapshot(5, 2), snapshot(8, 3)]), &log, 9);
        assert_eq!(good.problems, []);
        let recovered = &good.groups[&GROUP].recovered;
        assert_eq!(
            (recovered.compacted_index(), recovered.last_index, &recovered.terms[..]),
            (5, 9, &[(5, 2), (8, 3)][..])
        );
        for wrong in [snapshot(8, 2), snapshot(10, 3)] {
            let found = scanned(&log_meta(vec![snapshot(5, 2), wrong]), &log, 9);
            assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
            assert!(found.problems[0].to_string().starts_with("group 3: snapshot: there is no entry"));
        }
        let found = scanned(&LogMeta { prev_checksum: 78, ..log_meta(vec![snapshot(5, 2)]) }, &[], 9);
        assert!(found.problems[0].to_string().contains("commit 9 lies past the last index 5"));
    }

    proptest! {
        /// Whatever log there is and wherever it begins, it is found as it was written; and any bit of its meta data
        /// that is flipped is noticed.
        #[test]
        fn what_is_written_is_found(
            compacted in 1..1_000_000u64,
            steps in prop::collection::vec(0..2u64, 1..50),
            kept in prop::collection::btree_set(0..50usize, 1..3),
            prev_checksum in any::<u32>(),
            flip in any::<usize>(),
        ) {
            let mut term = 1;
            let terms: Vec<u64> = steps.iter().map(|step| { term += step; term }).collect();
            let log = entries(compacted + 1, &terms);
            let at = |nth: usize| if nth == 0 { (compacted, 1) } else { (compacted + nth as u64, terms[nth - 1]) };
            let kept: BTreeMap<u64, u64> = kept.into_iter().map(|nth| at(nth % (log.len() + 1))).collect();
            let snapshots = kept.into_iter().map(|(index, term)| snapshot(index, term)).collect();
            let log_meta = LogMeta { compacted_index: compacted, compacted_term: 1, prev_checksum, snapshots };
            let found = scanned(&log_meta, &log, compacted);
            prop_assert_eq!(&found.problems, &[]);
            let recovered = &found.groups[&GROUP].recovered;
            prop_assert_eq!(&recovered.snapshots, &log_meta.snapshots);
            let found = (recovered.compacted_index(), recovered.last_index);
            prop_assert_eq!(found, (compacted, compacted + log.len() as u64));
            for entry in &log {
                prop_assert_eq!(recovered.term_at(entry.index), Some(entry.term));
            }
            let sizes: u64 = recovered.sizes.iter().map(|(_, bytes)| bytes).sum();
            prop_assert_eq!(sizes, log.iter().map(|entry| entry.size() as u64).sum::<u64>());
            let mut pieces = Vec::new();
            seal(Key::snapshot(GROUP), 0, &encode_log_meta(&log_meta).unwrap(), &mut pieces);
            let (key, mut bytes) = pieces.pop().expect("a record of its meta data");
            let bit = flip % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open(key, bytes.into()).is_err(), "bit {} of the meta data", bit);
        }
    }
}
