//! The volume under a simulated disk and its node's simulated files: how many bytes it holds, and who has them.
//!
//! ```text
//!  capacity = the log + the files + the reserve + others' bytes + what is free
//! ```
//!
//! A write of more than is free is refused, as a real disk refuses it. What is removed is free at once.
//!
//! Deliberately absent: the waiting for room with which the sled store meets that (see `worker`): here such a write is
//! the end of its store. And the small files that are written over in place (watermark, lives), whose blocks are there
//! from the start.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::log::reserve::Ballast;

/// Clones are the same volume.
#[derive(Clone, Debug, Default)]
pub struct SimulatedVolume(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// `None`: it has no end.
    capacity: Option<u64>,
    log: u64,
    files: u64,
    reserve: u64,
    others: u64,
    counters: VolumeCounters,
}

/// What a volume has refused, and given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeCounters {
    /// Writes for which there was no room.
    pub refused: u64,
    /// How often the reserve was made, or made larger.
    pub reserved: u64,
    /// How often the reserve was removed, to make room.
    pub lent: u64,
}

impl SimulatedVolume {
    /// One without an end.
    pub fn endless() -> SimulatedVolume {
        SimulatedVolume::default()
    }

    /// One of so many bytes.
    pub fn of(capacity: u64) -> SimulatedVolume {
        let state = State { capacity: Some(capacity), ..State::default() };
        SimulatedVolume(Arc::new(Mutex::new(state)))
    }

    /// How many bytes are free, if that has a bound.
    pub fn room(&self) -> Option<u64> {
        self.lock().free()
    }

    /// Others on the same volume take all but so many bytes of what is free.
    pub fn fill(&self, but: u64) {
        let mut state = self.lock();
        let taken = state.free().map_or(0, |free| free.saturating_sub(but));
        state.others += taken;
    }

    /// Others give back what they took.
    pub fn clear(&self) {
        self.lock().others = 0;
    }

    /// What it has refused, and given.
    pub fn counters(&self) -> VolumeCounters {
        self.lock().counters
    }

    /// The log has so many bytes now.
    pub(crate) fn log_has(&self, bytes: u64) {
        self.lock().log = bytes;
    }

    /// The files have so many bytes now.
    pub(crate) fn files_have(&self, bytes: u64) {
        self.lock().files = bytes;
    }

    /// How many of so many bytes can be written, and the error if that is not all.
    pub(crate) fn take(&self, bytes: u64) -> (u64, io::Result<()>) {
        let mut state = self.lock();
        match state.free() {
            Some(free) if free < bytes => {
                state.counters.refused += 1;
                let words = format!("the simulated volume is full: {bytes} bytes, where {free} are free");
                (free, Err(io::Error::new(io::ErrorKind::StorageFull, words)))
            }
            _ => (bytes, Ok(())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn free(&self) -> Option<u64> {
        let State { log, files, reserve, others, .. } = self;
        Some(self.capacity?.saturating_sub(log + files + reserve + others))
    }
}

impl Ballast for SimulatedVolume {
    fn free(&self) -> io::Result<u64> {
        Ok(self.room().unwrap_or(u64::MAX))
    }

    fn held(&self) -> (u64, u64) {
        let reserve = self.lock().reserve;
        (reserve, reserve)
    }

    fn make(&self, _: u64, bytes: u64) -> io::Result<()> {
        let mut state = self.lock();
        let before = std::mem::take(&mut state.reserve);
        if state.free().is_some_and(|free| free < bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.counters.reserved += u64::from(bytes > before);
        state.reserve = bytes;
        Ok(())
    }

    fn remove(&self) -> io::Result<()> {
        let mut state = self.lock();
        if std::mem::take(&mut state.reserve) == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.counters.lent += 1;
        Ok(())
    }

    fn place(&self) -> &Path {
        Path::new("simulated")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use actorum_core::{
        log::store::Write,
        wire::{Entry, EntryKind},
    };
    use actorum_machine::ids::{GroupId, Incarnation};
    use bytes::Bytes;

    use super::*;
    use crate::{
        log::{
            reserve::{Reserve, ReserveBounds},
            simulated::SimulatedDisk,
            store::{Batch, Completed},
        },
        snapshot::{files::Files, simulated::SimulatedFiles},
    };

    fn entry(index: u64, bytes: usize) -> Entry {
        Entry { kind: EntryKind::Normal, term: 1, index, data: vec![7; bytes].into(), context: Bytes::new() }
    }

    fn file(files: &dyn Files, name: &str, bytes: usize) -> io::Result<()> {
        files.create(name)?.write_all(&vec![7; bytes])
    }

    /// Log, files and reserve share it; what does not fit is refused with the system's words, and what goes is free
    /// again.
    #[test]
    fn everything_on_it_shares_its_room() {
        let volume = SimulatedVolume::of(5000);
        let disk = SimulatedDisk::on(volume.clone(), Arc::new(()));
        let files = SimulatedFiles::on(volume.clone(), Arc::new(())).open();
        let (store, done) = (disk.open(1, Incarnation(7)).unwrap(), Arc::new(Mutex::new(Vec::new())));
        let heard = done.clone();
        let mut log =
            store.start(Arc::new(move |completed: Completed| heard.lock().unwrap().push(completed.result.is_ok())));
        let before = volume.room().unwrap();
        file(&*files, "a", 2000).unwrap();
        assert_eq!(volume.room(), Some(before - 2000));
        let full = file(&*files, "b", 5000).unwrap_err();
        assert_eq!(
            (full.kind(), volume.room()),
            (io::ErrorKind::StorageFull, Some(0)),
            "as much as fitted was written"
        );
        files.remove("b").unwrap();
        let append = |index, bytes| Batch {
            writes: vec![Write { group: GroupId::FIRST, entries: vec![entry(index, bytes)], ..Write::default() }],
            sync: true,
        };
        log.submit(append(1, 1000));
        assert!(volume.room().unwrap() < before - 3000);
        volume.fill(100);
        log.submit(append(2, 1000));
        assert_eq!(*done.lock().unwrap(), [true, false], "the second found no room");
        volume.clear();
        files.remove("a").unwrap();
        assert!(volume.room().unwrap() > before - 2000);
        assert_eq!(volume.counters().refused, 2);
    }

    /// The very reserve of a directory, over the simulated file.
    #[test]
    fn a_reserve_lies_on_it() {
        let volume = SimulatedVolume::of(10_000);
        let bounds = ReserveBounds { engine: 500, bytes: 2000, max_bytes: 3000, short_below: 1000 };
        let reserve = Reserve::over(Box::new(volume.clone()), bounds);
        reserve.keep(volume.room().unwrap());
        assert_eq!((volume.held(), volume.room()), ((2000, 2000), Some(8000)));
        volume.fill(0);
        assert!(reserve.is_short());
        let lent = reserve.lend().unwrap();
        assert_eq!(volume.room(), Some(2000));
        reserve.keep(2000);
        assert_eq!(volume.held(), (0, 0), "somebody is at work with it");
        drop(lent);
        reserve.keep(volume.room().unwrap());
        assert_eq!(volume.held(), (990, 990), "what is left of the room above the mark, in steps");
        volume.clear();
        reserve.keep(volume.room().unwrap());
        assert_eq!((volume.held(), reserve.is_short()), ((2000, 2000), false));
        crate::log::reserve::give_up(&volume, 500, 0);
        assert_eq!(volume.held().0, 2000, "the disk is not full");
        volume.fill(0);
        crate::log::reserve::give_up(&volume, 500, 0);
        assert_eq!((volume.held().0, volume.room()), (0, Some(2000)));
    }
}
