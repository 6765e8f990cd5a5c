//! How writes become changes to the engine, and how entries are read back out of it.
//!
//! [`Log`] is what is known of a log without reading it, [`Staged`] several writes of one group as one, [`Plan`] what
//! they change: a truncation cuts the end off, a compaction the beginning, in slices that go with later commits.
//! Working out a plan changes nothing: the commit applies it, or nothing of it.
//!
//! Deliberately absent: applying, syncing, the watermark (see `commit`).

use std::{collections::BTreeMap, fmt};

use actorum_core::{
    planted::{self, Planted},
    wire::{Entry, Snapshot},
};
use actorum_machine::ids::GroupId;

use super::{
    engine::{self, Engine},
    record::{self, Assembled, FoundGroup, Key, LogMeta, Piece, RecordKind},
    store::*,
};

/// What a store knows of one log without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    /// The index before its first entry and the term there; zero without a snapshot.
    pub(super) compacted: (u64, u64),
    /// What its first block names as its predecessor.
    pub(super) prev_checksum: u32,
    /// The index of its newest snapshot: what is up to there is never replaced.
    pub(super) newest: u64,
    /// Its blocks up to here must be removed, a slice with every commit. Not above the compacted index if there are
    /// none to remove.
    pub(super) truncate_prefix_to: u64,
    /// Index and term of its last entry, or of the compacted index.
    pub(super) last: (u64, u64),
    /// What the next block names as its predecessor.
    pub(super) tail: u32,
    pub(super) hard_state: HardState,
}

impl Log {
    pub(super) fn empty(group: GroupId) -> Log {
        let prev_checksum = record::prev_checksum(group, 0, 0);
        Log { prev_checksum, tail: prev_checksum, ..Log::default() }
    }

    pub(super) fn new(group: GroupId, found: &FoundGroup) -> Log {
        let recovered = &found.recovered;
        let Some((first, last)) = recovered.terms.first().zip(recovered.terms.last()) else {
            return Log { hard_state: recovered.hard_state, ..Log::empty(group) };
        };
        let compacted = if !recovered.snapshots.is_empty() { *first } else { (0, 0) };
        let (last, newest) = ((recovered.last_index, last.1), recovered.newest().map_or(0, |newest| newest.index));
        let (&FoundGroup { prev_checksum, tail, .. }, hard_state) = (found, recovered.hard_state);
        Log { compacted, prev_checksum, newest, truncate_prefix_to: 0, last, tail, hard_state }
    }

    pub(super) fn first(&self) -> u64 {
        self.compacted.0 + 1
    }
}

/// Several writes of one group as one: what they leave behind when each follows the other.
#[derive(Default)]
pub(super) struct Staged {
    pub(super) snapshot: Option<Snapshot>,
    pub(super) entries: Vec<Entry>,
    pub(super) hard_state: Option<HardState>,
    pub(super) compact: Option<Compact>,
}

impl Staged {
    /// Adds the next write of a group whose log is `log` before all of them.
    pub(super) fn add(&mut self, log: &Log, write: Write) -> Result<(), StoreError> {
        let Write { group, snapshot, mut entries, hard_state, compact } = write;
        if let Some(snapshot) = snapshot {
            self.entries.clear();
            self.compact = None;
            self.snapshot = Some(snapshot);
        }
        if let Some(first) = entries.first().map(|entry| entry.index) {
            let (compacted_index, end) = (self.compacted_index(log), self.end(log));
            if first <= compacted_index || first > end + 1 {
                return Err(misuse(
                    group,
                    format!("an append at {first} to a log of {} to {end}", compacted_index + 1),
                ));
            }
            let newest = self.newest(log);
            if first <= newest {
                return Err(misuse(group, format!("an append at {first} to a log with a snapshot of {newest}")));
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
        if let Some(compact) = compact {
            // Where the log begins for its owner, although some blocks before that may not be removed yet.
            let earlier = self.compact.as_ref().map_or(0, |earlier| earlier.up_to);
            let pending = if self.snapshot.is_some() { 0 } else { log.truncate_prefix_to };
            let compacted_index = self.compacted_index(log).max(earlier).max(pending);
            if !judge(&compact, compacted_index, self.end(log)).map_err(|detail| misuse(group, detail))? {
                return Ok(());
            }
            let up_to = earlier.max(compact.up_to);
            self.compact = Some(Compact { up_to, ..compact });
        }
        Ok(())
    }

    fn compacted_index(&self, log: &Log) -> u64 {
        self.snapshot.as_ref().map_or(log.compacted.0, |snapshot| snapshot.index)
    }

    fn end(&self, log: &Log) -> u64 {
        match (self.entries.last(), &self.snapshot) {
            (Some(entry), _) => entry.index,
            (None, Some(snapshot)) => snapshot.index,
            (None, None) => log.last.0,
        }
    }

    fn newest(&self, log: &Log) -> u64 {
        let compacted = self.compact.as_ref().and_then(|compact| compact.snapshots.last());
        compacted.or(self.snapshot.as_ref()).map_or(log.newest, |snapshot| snapshot.index)
    }
}

/// Whether a compaction of a log from `compacted_index` to `end` does anything. The error says what is wrong with it.
pub(super) fn judge(compact: &Compact, compacted_index: u64, end: u64) -> Result<bool, String> {
    let Compact { snapshots, up_to } = compact;
    let Some((first, newest)) = snapshots.first().zip(snapshots.last()) else {
        return Err("a compaction that leaves no snapshot".to_owned());
    };
    if let Some(pair) = snapshots.windows(2).find(|pair| pair[0].index >= pair[1].index) {
        return Err(format!("a compaction with snapshot {} before {}", pair[0].index, pair[1].index));
    }
    if *up_to > first.index {
        return Err(format!("a compaction up to {up_to}, past its first snapshot, {}", first.index));
    }
    if newest.index > end {
        return Err(format!("a compaction with a snapshot of {} of a log up to {end}", newest.index));
    }
    if newest.index < compacted_index {
        return Ok(false); // overtaken: the log follows a later snapshot by now
    }
    if first.index < compacted_index {
        return Err(format!("a compaction with a snapshot of {} of a log from {}", first.index, compacted_index + 1));
    }
    Ok(true)
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
    /// The entries that are appended: index and size of each.
    pub(super) appended: Vec<(u64, u64)>,
}

impl Plan {
    fn put(&mut self, pieces: Vec<Piece>) {
        self.changes.extend(pieces.into_iter().map(|(key, value)| (key, Some(value))));
    }

    /// Works out how the records of a group change. Reads only what a truncation cuts through, and where a compaction
    /// ends. `sync` says whether the commit ends with a sync: only such a commit removes the beginning of the log,
    /// because each further removal builds on it.
    pub(super) fn new(
        engine: &impl Engine,
        group: GroupId,
        log: &Log,
        staged: Staged,
        sync: bool,
    ) -> Result<Plan, StoreError> {
        let mut plan = Plan { changes: BTreeMap::new(), after: *log, kept: Some(log.last), appended: Vec::new() };
        let mut pieces = Vec::new();
        if let Some(snapshot) = &staged.snapshot {
            let blocks = engine.keys(Key::block(group, 0), end_of(group, RecordKind::Block), usize::MAX)?;
            plan.remove(blocks);
            plan.after.compacted = (snapshot.index, snapshot.term);
            plan.after.last = plan.after.compacted;
            plan.after.prev_checksum = record::prev_checksum(group, snapshot.index, snapshot.term);
            plan.after.tail = plan.after.prev_checksum;
            plan.after.newest = snapshot.index;
            plan.after.truncate_prefix_to = 0;
            plan.kept = None;
        } else if let Some(first) = staged.entries.first().filter(|entry| entry.index <= log.last.0) {
            plan.truncate_suffix(engine, group, first.index)?;
        }
        if let Some(last) = staged.entries.last() {
            plan.after.tail = record::seal_entries(group, plan.after.tail, &staged.entries, &mut pieces);
            plan.after.last = (last.index, last.term);
            plan.appended = staged.entries.iter().map(|entry| (entry.index, entry.size() as u64)).collect();
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
        plan.write_log_meta(engine, group, log, staged, sync)?;
        Ok(plan)
    }

    /// What the log stands on afterwards, if that changes: by a snapshot in its place, other snapshots to start from,
    /// or a cut.
    fn write_log_meta(
        &mut self,
        engine: &impl Engine,
        group: GroupId,
        log: &Log,
        staged: Staged,
        sync: bool,
    ) -> Result<(), StoreError> {
        let Staged { snapshot, entries, compact, .. } = staged;
        if let Some(Compact { snapshots, up_to }) = &compact {
            for snapshot in snapshots {
                let index = snapshot.index;
                let staged = entries.first().and_then(|first| entries.get(index.checked_sub(first.index)? as usize));
                let term = match staged {
                    Some(entry) => entry.term,
                    None if index == self.after.compacted.0 => self.after.compacted.1,
                    None => term_at(engine, group, index)?,
                };
                if term != snapshot.term {
                    let detail = format!("a snapshot {} of a log with term {term} there", At(index, snapshot.term));
                    return Err(misuse(group, detail));
                }
                self.after.newest = index;
            }
            self.after.truncate_prefix_to = self.after.truncate_prefix_to.max(*up_to);
        }
        // A log that a snapshot replaced has nothing in the engine yet that could go.
        let truncated = sync && snapshot.is_none() && self.truncate_prefix(engine, group, log)?;
        if snapshot.is_none() && compact.is_none() && !truncated {
            return Ok(());
        }
        let recorded = engine.keys(Key::snapshot(group), end_of(group, RecordKind::Snapshot), usize::MAX)?;
        let snapshots = match (compact, snapshot) {
            (Some(compact), _) => compact.snapshots,
            (None, Some(snapshot)) => vec![snapshot],
            (None, None) => {
                let found = engine::record(engine, Key::snapshot(group))?;
                let found = found.ok_or_else(|| damaged(Key::snapshot(group), "it is missing".to_owned()))?;
                let found = record::decode_log_meta(group, &found.payload);
                found.map_err(|detail| damaged(Key::snapshot(group), detail))?.snapshots
            }
        };
        let Log { compacted: (compacted_index, compacted_term), prev_checksum, .. } = self.after;
        let log_meta = LogMeta { compacted_index, compacted_term, prev_checksum, snapshots };
        let payload = record::encode_log_meta(&log_meta).map_err(|detail| misuse(group, detail))?;
        self.remove(recorded);
        let mut pieces = Vec::new();
        record::seal(Key::snapshot(group), 0, &payload, &mut pieces);
        self.put(pieces);
        Ok(())
    }

    /// Cuts off the beginning of what was in the engine before (`log`): whole blocks, up to `truncate_prefix_to`, and
    /// at most as many as one commit may remove. Says whether any went.
    fn truncate_prefix(&mut self, engine: &impl Engine, group: GroupId, log: &Log) -> Result<bool, StoreError> {
        // Blocks that the same commit replaces may be removed by the next commit.
        let up_to = self.after.truncate_prefix_to.min(self.kept.map_or(0, |kept| kept.0));
        if up_to <= self.after.compacted.0 {
            return Ok(false);
        }
        let mut keys =
            engine.keys(Key::block(group, 0), Key::block(group, up_to.saturating_add(1)), MAX_TRUNCATED_KEYS)?;
        if keys.len() < MAX_TRUNCATED_KEYS && up_to == self.after.truncate_prefix_to {
            self.after.truncate_prefix_to = 0; // after this slice nothing is left to do
        }
        // The last block may have more pieces than were listed, and where it ends the next one says.
        let Some(last) = keys.last().copied() else { return Ok(false) };
        let next = Key::block(group, last.index.saturating_add(1));
        keys.extend(engine.keys(last.piece(last.piece.saturating_add(1)), next, usize::MAX)?);
        let next = engine.keys(next, end_of(group, RecordKind::Block), 1)?.pop();
        let mut end = next.map_or(log.last.0, |next| next.index - 1);
        if end > up_to {
            keys.retain(|key| key.index < last.index);
            end = last.index - 1;
        }
        let Some(last) = keys.last().map(|key| key.piece(0)) else { return Ok(false) };
        let missing = || damaged(last, "it is missing".to_owned());
        let block = engine::record(engine, last)?.ok_or_else(missing)?;
        let entries = decoded(&block)?;
        let Some(entry) = entries.last().filter(|entry| entry.index == end) else {
            return Err(damaged(last, format!("it does not end at {end}")));
        };
        self.after.compacted = (entry.index, entry.term);
        self.after.prev_checksum = block.crc;
        self.remove(keys);
        Ok(true)
    }

    fn remove(&mut self, keys: Vec<Key>) {
        self.changes.extend(keys.into_iter().map(|key| (key, None)));
    }

    /// Removes the entries from `first` on (Raft section 5.3: an existing entry conflicts with a new one). Whole blocks
    /// go; the one that holds both sides is written anew with what stays.
    fn truncate_suffix(&mut self, engine: &impl Engine, group: GroupId, first: u64) -> Result<(), StoreError> {
        let gone = engine.keys(Key::block(group, first), end_of(group, RecordKind::Block), usize::MAX)?;
        let count = gone.len().saturating_sub(usize::from(planted::is(Planted::CutOneTooFew)));
        self.changes.extend(gone.into_iter().take(count).map(|key| (key, None)));
        self.after.last = self.after.compacted;
        self.after.tail = self.after.prev_checksum;
        if let Some(block) = engine::block_before(engine, group, first)? {
            let mut entries = decoded(&block)?;
            let count = entries.len();
            entries.retain(|entry| entry.index < first);
            self.after.tail = block.crc;
            if entries.len() < count {
                let pieces = engine.keys(block.key, Key::block(group, first), usize::MAX)?;
                self.remove(pieces);
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

/// How many keys one commit removes from the beginning of a log, besides those of the last block. sled takes about 20
/// us for each, and a commit that waits for millions of them would look like a dead disk. A commit adds far fewer keys
/// than this, so the removal catches up.
pub(super) const MAX_TRUNCATED_KEYS: usize = 512;

/// Where the records of a group and kind end, exclusively.
pub(super) fn end_of(group: GroupId, kind: RecordKind) -> Key {
    Key { group, kind, index: u64::MAX, piece: u32::MAX }
}

fn damaged(what: impl fmt::Display, detail: String) -> StoreError {
    StoreError::Damaged { what: what.to_string(), detail }
}

fn decoded(block: &Assembled) -> Result<Vec<Entry>, StoreError> {
    record::decode_block(block.key.index, block.payload.clone()).map_err(|detail| damaged(block.key, detail))
}

/// The term of an entry that the engine holds.
fn term_at(engine: &impl Engine, group: GroupId, index: u64) -> Result<u64, StoreError> {
    let missing = || damaged(Key::block(group, index), "it is missing".to_owned());
    let block = engine::block_before(engine, group, index.saturating_add(1))?.ok_or_else(missing)?;
    let entries = decoded(&block)?;
    let entry = entries.get((index - block.key.index) as usize).ok_or_else(missing)?;
    Ok(entry.term)
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
