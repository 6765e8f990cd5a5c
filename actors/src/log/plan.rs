//! How writes become changes to the engine, and how entries are read back out of it.
//!
//! [`Log`] is what is known of a log without reading it, [`Staged`] several writes of one group as one, [`Plan`] what
//! they change. Working out a plan changes nothing: the commit applies it, or nothing of it.
//!
//! Deliberately absent: applying, syncing, the watermark (see `commit`).

use std::{collections::BTreeMap, fmt};

use actorum_transport::{
    planted::{self, Planted},
    wire::{Entry, GroupId, Snapshot},
};

use super::{
    engine::{self, Engine},
    record::{self, Assembled, FoundGroup, Key, Kind, Piece},
    store::*,
};

/// What a store knows of one log without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    /// Index and term of the snapshot it follows; zero without one.
    pub(super) base: (u64, u64),
    /// Index and term of its last entry, or of the base.
    pub(super) last: (u64, u64),
    /// What the next block names as its predecessor.
    pub(super) tail: u32,
    pub(super) hard_state: HardState,
}

impl Log {
    pub(super) fn empty(group: GroupId) -> Log {
        Log { tail: record::anchor(group, 0, 0), ..Log::default() }
    }

    pub(super) fn new(group: GroupId, found: &FoundGroup) -> Log {
        let recovered = &found.recovered;
        let Some((first, last)) = recovered.terms.first().zip(recovered.terms.last()) else {
            return Log { hard_state: recovered.hard_state, ..Log::empty(group) };
        };
        let base = if !recovered.snapshots.is_empty() { *first } else { (0, 0) };
        Log { base, last: (recovered.last_index, last.1), tail: found.tail, hard_state: recovered.hard_state }
    }

    pub(super) fn first(&self) -> u64 {
        self.base.0 + 1
    }
}

/// Several writes of one group as one: what they leave behind when each follows the other.
#[derive(Default)]
pub(super) struct Staged {
    pub(super) snapshot: Option<Snapshot>,
    pub(super) entries: Vec<Entry>,
    pub(super) hard_state: Option<HardState>,
}

impl Staged {
    /// Adds the next write of a group whose log is `log` before all of them.
    pub(super) fn add(&mut self, log: &Log, write: Write) -> Result<(), StoreError> {
        let Write { group, snapshot, mut entries, hard_state, compact: _ } = write;
        if let Some(snapshot) = snapshot {
            self.entries.clear();
            self.snapshot = Some(snapshot);
        }
        if let Some(first) = entries.first().map(|entry| entry.index) {
            let base = self.snapshot.as_ref().map_or(log.base.0, |snapshot| snapshot.index);
            let end = match (self.entries.last(), &self.snapshot) {
                (Some(entry), _) => entry.index,
                (None, Some(snapshot)) => snapshot.index,
                (None, None) => log.last.0,
            };
            if first <= base || first > end + 1 {
                return Err(misuse(group, format!("an append at {first} to a log of {} to {end}", base + 1)));
            }
            if let Some(gap) = entries.iter().zip(first..).find(|(entry, index)| entry.index != *index) {
                return Err(misuse(group, format!("an append with entry {} in the place of {}", gap.0.index, gap.1)));
            }
            match self.entries.first().map(|mine| mine.index) {
                None => self.entries = entries,
                Some(mine) if first <= mine => self.entries = entries,
                Some(mine) => {
                    self.entries.truncate((first - mine) as usize);
                    self.entries.append(&mut entries);
                }
            }
        }
        self.hard_state = hard_state.or(self.hard_state);
        Ok(())
    }
}

fn misuse(group: GroupId, detail: String) -> StoreError {
    StoreError::Damaged { what: format!("group {}: a batch", group.0), detail }
}

/// What one group's part of a commit does.
pub(super) struct Plan {
    pub(super) changes: BTreeMap<Key, Option<Vec<u8>>>,
    /// The log afterwards.
    pub(super) after: Log,
    /// Index and term of the last entry of the old log that stays; `None` if the old log goes altogether.
    pub(super) kept: Option<(u64, u64)>,
}

impl Plan {
    fn put(&mut self, pieces: Vec<Piece>) {
        self.changes.extend(pieces.into_iter().map(|(key, value)| (key, Some(value))));
    }

    /// Works out how the records of a group change. Reads only what a truncation cuts through.
    pub(super) fn new(engine: &impl Engine, group: GroupId, log: &Log, staged: Staged) -> Result<Plan, StoreError> {
        let mut plan = Plan { changes: BTreeMap::new(), after: *log, kept: Some(log.last) };
        let mut pieces = Vec::new();
        if let Some(snapshot) = &staged.snapshot {
            for kind in [Kind::Snapshot, Kind::Block] {
                let keys = engine.keys(Key { group, kind, index: 0, piece: 0 }, end_of(group, kind))?;
                plan.changes.extend(keys.into_iter().map(|key| (key, None)));
            }
            let payload = record::encode_snapshot(snapshot).map_err(|detail| misuse(group, detail))?;
            record::seal(Key::snapshot(group), 0, &payload, &mut pieces);
            plan.after.base = (snapshot.index, snapshot.term);
            plan.after.last = plan.after.base;
            plan.after.tail = record::anchor(group, snapshot.index, snapshot.term);
            plan.kept = None;
        } else if let Some(first) = staged.entries.first().filter(|entry| entry.index <= log.last.0) {
            plan.cut(engine, group, first.index)?;
        }
        if let Some(last) = staged.entries.last() {
            plan.after.tail = record::seal_entries(group, plan.after.tail, &staged.entries, &mut pieces);
            plan.after.last = (last.index, last.term);
        }
        if let Some(state) = &staged.hard_state {
            if state.commit > plan.after.last.0 {
                let detail = format!("commit {} past the last index {}", state.commit, plan.after.last.0);
                return Err(misuse(group, detail));
            }
            record::seal(Key::hard_state(group), 0, &record::encode_hard_state(state), &mut pieces);
            plan.after.hard_state = *state;
        }
        plan.put(pieces);
        Ok(plan)
    }

    /// Removes the entries from `first` on (Raft section 5.3: an existing entry conflicts with a new one). Whole blocks go;
    /// the one that holds both sides is written anew with what stays.
    fn cut(&mut self, engine: &impl Engine, group: GroupId, first: u64) -> Result<(), StoreError> {
        let gone = engine.keys(Key::block(group, first), end_of(group, Kind::Block))?;
        let stays = planted::is(Planted::CutOneTooFew).then(|| gone.last().copied()).flatten();
        self.changes.extend(gone.into_iter().filter(|key| Some(*key) != stays).map(|key| (key, None)));
        self.after.last = self.after.base;
        self.after.tail = record::anchor(group, self.after.base.0, self.after.base.1);
        if let Some(block) = engine::block_before(engine, group, first)? {
            let mut entries = decoded(&block)?;
            let count = entries.len();
            entries.retain(|entry| entry.index < first);
            self.after.tail = block.crc;
            if entries.len() < count {
                let pieces = engine.keys(block.key, Key::block(group, first))?;
                self.changes.extend(pieces.into_iter().map(|key| (key, None)));
                let mut pieces = Vec::new();
                self.after.tail = record::seal_entries(group, block.previous, &entries, &mut pieces);
                self.put(pieces);
            }
            let Some(last) = entries.last() else {
                return Err(damaged(block.key, "it has no entry before its end".to_owned()));
            };
            self.after.last = (last.index, last.term);
        }
        self.kept = Some(self.after.last);
        Ok(())
    }
}

/// Where the records of a group and kind end, exclusively.
fn end_of(group: GroupId, kind: Kind) -> Key {
    Key { group, kind, index: u64::MAX, piece: u32::MAX }
}

fn damaged(what: impl fmt::Display, detail: String) -> StoreError {
    StoreError::Damaged { what: what.to_string(), detail }
}

fn decoded(block: &Assembled) -> Result<Vec<Entry>, StoreError> {
    record::decode_block(block.key.index, block.payload.clone()).map_err(|detail| damaged(block.key, detail))
}

/// The entries `[from, to)`, all of which the log says it holds.
pub(super) fn read_entries(
    engine: &impl Engine,
    group: GroupId,
    from: u64,
    to: u64,
    max_bytes: usize,
) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut bytes = 0usize;
    let mut tail = None;
    let mut expected = from;
    // The block that holds `from` begins at it or before it.
    let Some(mut block) = engine::block_before(engine, group, from + 1)? else {
        return Err(damaged(Key::block(group, from), "it is missing".to_owned()));
    };
    loop {
        if tail.is_some_and(|tail| tail != block.previous) {
            return Err(damaged(block.key, "it does not follow the block before it".to_owned()));
        }
        tail = Some(block.crc);
        let decoded = decoded(&block)?;
        let next = block.key.index + decoded.len() as u64;
        for entry in decoded.into_iter().filter(|entry| entry.index >= from) {
            if entry.index >= to {
                return Ok(entries);
            }
            if entry.index != expected {
                return Err(damaged(block.key, format!("entry {} in the place of {expected}", entry.index)));
            }
            bytes = bytes.saturating_add(entry.size());
            if bytes > max_bytes && !entries.is_empty() {
                return Ok(entries);
            }
            expected += 1;
            entries.push(entry);
        }
        if expected >= to {
            return Ok(entries);
        }
        let missing = || damaged(Key::block(group, next), "it is missing".to_owned());
        block = engine::record(engine, Key::block(group, next))?.ok_or_else(missing)?;
    }
}
