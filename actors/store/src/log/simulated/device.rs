//! The device itself: what is applied, flushed and durable, and what a crash leaves of it.
//!
//! Deliberately absent: time, and who is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, MutexGuard},
};

use actorum_core::{
    lives::{Content, LifeFile},
    log::store::HardState,
    wire::Entry,
};
use actorum_machine::ids::GroupId;
use bytes::Bytes;

use super::{DiskCounters, DiskStep, Durable, SimulatedDisk, running::Running};
use crate::log::{
    engine::{Change, Engine, EngineError},
    lives,
    record::{self, Assembled, Assembly, Key, RecordKind},
    store::StoreIdentity,
    watermark::{self, Pages, WatermarkError},
};
use crate::simulated::{Decide, Loss, SimulatedVolume, StepError, mix};

pub(super) struct Device {
    pub(super) decide: Arc<dyn Decide<DiskStep>>,
    /// What the `node` file says.
    pub(super) identity: Option<StoreIdentity>,
    /// Which opening is the present one: handles of an earlier one do nothing.
    pub(super) life: u64,
    pub(super) open: bool,
    /// The power went in the middle of a step, and nobody has said yet what is lost.
    pub(super) power_cut: bool,
    pub(super) announce: bool,
    /// The engine as reads see it.
    pub(super) values: BTreeMap<Key, Bytes>,
    /// What was applied since the last sync, oldest first.
    pub(super) unsynced: Vec<Applied>,
    /// How many of them were flushed.
    pub(super) flushed: usize,
    /// The file of lives.
    pub(super) lives: Option<Vec<u8>>,
    /// Both pages of the watermark.
    pub(super) pages: Vec<u8>,
    /// A write to a page in the place of which the power went.
    pub(super) under_way: Option<(usize, Vec<u8>)>,
    pub(super) hung: Option<Arc<Running>>,
    /// What is durable, group by group.
    pub(super) views: BTreeMap<GroupId, View>,
    pub(super) bytes: u64,
    pub(super) volume: SimulatedVolume,
    pub(super) counters: DiskCounters,
}

/// One batch: per key what was there before, and what after.
pub(super) struct Applied(pub(super) Vec<(Key, Option<Bytes>, Option<Bytes>)>);

impl Device {
    /// The present life is over.
    pub(super) fn end(&mut self) {
        (self.open, self.life) = (false, self.life + 1);
    }

    fn put(&mut self, key: Key, value: Option<Bytes>) -> Option<Bytes> {
        let added = value.as_ref().map_or(0, |value| value.len() as u64);
        let old = match value {
            Some(value) => self.values.insert(key, value),
            None => self.values.remove(&key),
        };
        self.bytes += added;
        self.bytes -= old.as_ref().map_or(0, |old| old.len() as u64);
        self.volume.log_has(self.bytes);
        old
    }

    /// Takes back all batches from the `from`th on, and returns them oldest first.
    pub(super) fn undo(&mut self, from: usize) -> Vec<Applied> {
        let gone = self.unsynced.split_off(from);
        for (key, old, _) in gone.iter().rev().flat_map(|batch| batch.0.iter().rev()) {
            self.put(*key, old.clone());
        }
        self.flushed = self.flushed.min(from);
        self.counters.lost_batches += gone.len() as u64;
        gone
    }

    /// What a power cut leaves.
    pub(super) fn lose_unsynced(&mut self, loss: Loss, rng: u64) {
        self.power_cut = false;
        if let Some((at, page)) = self.under_way.take() {
            let written = mix(rng ^ 0x7062) as usize % (page.len() + 1);
            self.pages[at..at + written].copy_from_slice(&page[..written]);
            self.counters.torn_pages += 1;
        }
        let count = self.unsynced.len();
        let spared = |nth: usize| loss.spares(nth, count, rng);
        let mut kept = Vec::new();
        for (nth, batch) in self.undo(0).into_iter().enumerate().filter(|(nth, _)| spared(*nth)) {
            debug_assert!(nth < count);
            for (key, _, new) in &batch.0 {
                self.put(*key, new.clone());
            }
            kept.push(batch);
        }
        self.counters.lost_batches -= kept.len() as u64;
        self.counters.kept_batches += kept.len() as u64;
        if loss == Loss::Torn {
            let last = kept.last().map(|batch| batch.0.as_slice()).unwrap_or_default();
            let put: Vec<(Key, &Bytes)> = last.iter().filter_map(|(key, _, new)| Some((*key, new.as_ref()?))).collect();
            if let Some(nth) = (mix(rng) as usize).checked_rem(put.len()) {
                let (key, value) = put[nth];
                let length = mix(rng.wrapping_add(1)) as usize % value.len();
                let torn = value.slice(..length);
                self.put(key, Some(torn));
                self.counters.torn_values += 1;
            }
        }
        if !kept.is_empty() {
            self.rebuild();
        }
    }

    /// What was flushed is durable from now on.
    pub(super) fn make_durable(&mut self) {
        let synced = self.unsynced.drain(..self.flushed);
        let moved: BTreeSet<Key> = synced.flat_map(|batch| batch.0).map(|(key, ..)| key.piece(0)).collect();
        self.flushed = 0;
        for key in moved {
            self.refresh(key);
        }
    }

    /// Brings the view of one record up to the values.
    fn refresh(&mut self, first: Key) {
        let record = self.record(first);
        let view = self.views.entry(first.group).or_default();
        match first.kind {
            RecordKind::Owner => {}
            RecordKind::HardState => {
                let state = record.and_then(|record| record::decode_hard_state(record.payload).ok());
                view.hard_state = state.unwrap_or_default();
            }
            RecordKind::Snapshot => {
                let group = first.group;
                let found = record.and_then(|record| record::decode_log_meta(group, &record.payload).ok());
                let log_meta = found.unwrap_or_default();
                view.compacted = (log_meta.compacted_index, log_meta.compacted_term);
                view.snapshot = log_meta.snapshots.last().map_or((0, 0), |newest| (newest.index, newest.term));
            }
            RecordKind::Block => {
                match record.and_then(|record| record::decode_block(first.index, record.payload).ok()) {
                    Some(entries) => view.blocks.insert(first.index, entries),
                    None => view.blocks.remove(&first.index),
                };
            }
        }
    }

    /// One record of the values, if it is whole.
    fn record(&self, first: Key) -> Option<Assembled> {
        let mut pieces = self.values.range(first..=first.piece(u32::MAX));
        let (key, value) = pieces.next()?;
        let mut assembly = Assembly::begin(*key, record::open(*key, value.clone()).ok()?).ok()?;
        for (key, value) in pieces {
            assembly.push(*key, record::open(*key, value.clone()).ok()?).ok()?;
        }
        assembly.finish().ok()
    }

    /// Reads all views anew.
    pub(super) fn rebuild(&mut self) {
        self.views.clear();
        self.bytes = self.values.values().map(|value| value.len() as u64).sum();
        self.volume.log_has(self.bytes);
        let records: BTreeSet<Key> = self.values.keys().map(|key| key.piece(0)).collect();
        for key in records {
            self.refresh(key);
        }
    }

    pub(super) fn clear(&mut self) {
        self.values.clear();
        self.unsynced.clear();
        self.pages.clear();
        self.lives = None;
        self.views.clear();
        (self.flushed, self.bytes, self.under_way) = (0, 0, None);
        self.volume.log_has(0);
    }
}

/// What is durable of one group.
#[derive(Default)]
pub(super) struct View {
    hard_state: HardState,
    compacted: (u64, u64),
    snapshot: (u64, u64),
    blocks: BTreeMap<u64, Vec<Entry>>,
}

impl View {
    pub(super) fn durable(&self) -> Durable {
        let last = self.blocks.last_key_value().and_then(|(_, entries)| entries.last());
        let last_index = last.map_or(self.compacted.0, |entry| entry.index);
        Durable { hard_state: self.hard_state, compacted: self.compacted, snapshot: self.snapshot, last_index }
    }

    pub(super) fn term(&self, index: u64) -> Option<u64> {
        match self.compacted {
            (compacted_index, term) if compacted_index == index && index > 0 => Some(term),
            _ => self.entry(index).map(|entry| entry.term),
        }
    }

    pub(super) fn entry(&self, index: u64) -> Option<&Entry> {
        let (first, entries) = self.blocks.range(..=index).next_back()?;
        entries.get((index - first) as usize)
    }
}

/// The file of lives, for one opening of the disk.
pub(super) struct SimulatedLives {
    pub(super) disk: SimulatedDisk,
    pub(super) life: u64,
    /// Written and not synced: no crash leaves anything of it.
    pub(super) written: Option<Vec<u8>>,
    /// Whether the opening itself is on record: that is no step of its own, as the boot counter is none.
    pub(super) begun: bool,
}

impl LifeFile for SimulatedLives {
    fn write(&mut self, content: &Content) -> io::Result<()> {
        self.written = Some(lives::encode(content));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            let asked = self.disk.ask(self.life, DiskStep::Record);
            self.disk.announce();
            asked?;
        }
        let mut disk = self.disk.lock();
        if disk.life == self.life && self.written.is_some() {
            disk.lives = self.written.take();
        }
        Ok(())
    }
}

/// What keeps others from opening the disk.
pub(super) struct Lock {
    pub(super) disk: SimulatedDisk,
    pub(super) life: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.life == self.life {
            disk.end();
        }
    }
}

pub(super) struct SimulatedEngine {
    pub(super) disk: SimulatedDisk,
    pub(super) life: u64,
}

impl SimulatedEngine {
    fn ask(&self, step: DiskStep, doing: &str) -> Result<MutexGuard<'_, Device>, EngineError> {
        let doing = doing.to_owned();
        self.disk.ask(self.life, step).map_err(|error| EngineError::Io { doing, error: error.into() })?;
        Ok(self.disk.lock())
    }
}

impl Engine for SimulatedEngine {
    fn apply(&self, changes: Vec<Change>) -> Result<(), EngineError> {
        let mut disk = self.ask(DiskStep::Apply, "writing log")?;
        // What a batch replaces or removes is free only behind it.
        let bytes = changes.iter().filter_map(|(_, value)| Some(value.as_ref()?.len() as u64)).sum();
        let doing = "writing log".to_owned();
        disk.volume.take(bytes).1.map_err(|error| EngineError::Io { doing, error })?;
        let mut applied = Vec::with_capacity(changes.len());
        for (key, value) in changes {
            let new = value.map(Bytes::from);
            let old = disk.put(key, new.clone());
            applied.push((key, old, new));
        }
        disk.unsynced.push(Applied(applied));
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        let mut disk = self.ask(DiskStep::Flush, "flushing log")?;
        disk.flushed = disk.unsynced.len();
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.ask(DiskStep::Sync, "syncing log/db")?.make_durable();
        Ok(())
    }

    fn each(&self, give: &mut dyn FnMut(&[u8], Bytes)) -> Result<(), EngineError> {
        for (key, value) in &self.ask(DiskStep::Read, "reading log")?.values {
            give(&key.encode(), value.clone());
        }
        Ok(())
    }

    fn keys(&self, from: Key, to: Key, max: usize) -> Result<Vec<Key>, EngineError> {
        Ok(self.disk.lock().values.range(from..to).take(max).map(|(key, _)| *key).collect())
    }

    fn values(&self, from: Key, to: Key, max_bytes: usize) -> Result<Vec<(Key, Bytes)>, EngineError> {
        let (disk, mut bytes) = (self.disk.lock(), 0);
        let fitting = disk.values.range(from..to).take_while(|(_, value)| {
            let fits = bytes == 0 || bytes + value.len() <= max_bytes;
            bytes += value.len();
            fits
        });
        Ok(fitting.map(|(key, value)| (*key, value.clone())).collect())
    }

    fn last_before(&self, key: Key) -> Result<Option<Key>, EngineError> {
        Ok(self.disk.lock().values.range(..key).next_back().map(|(key, _)| *key))
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>, EngineError> {
        Ok(self.disk.lock().values.get(&key).cloned())
    }

    fn disk_bytes(&self) -> u64 {
        self.disk.lock().bytes
    }

    fn blocks(&self) -> bool {
        false
    }
}

pub(super) struct SimulatedPages {
    pub(super) disk: SimulatedDisk,
    pub(super) life: u64,
}

impl Pages for SimulatedPages {
    fn read(&self) -> Result<Vec<u8>, WatermarkError> {
        Ok(self.disk.lock().pages.clone())
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let step = {
            let disk = self.disk.lock();
            let mut after = disk.pages.clone();
            after[at..at + bytes.len()].copy_from_slice(bytes);
            match (watermark::inspect(&disk.pages), watermark::inspect(&after)) {
                (Ok((before, _)), Ok((after, _))) if after.lowers(&before) => DiskStep::Lower,
                _ => DiskStep::Raise,
            }
        };
        let asked = self.disk.ask(self.life, step);
        let mut disk = self.disk.lock();
        match &asked {
            Ok(()) => disk.pages[at..at + bytes.len()].copy_from_slice(bytes),
            Err(StepError::PowerCut) => disk.under_way = Some((at, bytes.to_vec())),
            Err(StepError::Failed(_) | StepError::LifeOver) => {}
        }
        Ok(asked?)
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.ask(self.life, DiskStep::Raise)?;
        self.disk.lock().pages = bytes.to_vec();
        Ok(())
    }
}
