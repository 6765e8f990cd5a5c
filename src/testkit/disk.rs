//! INTERIM: a disk over MemoryDisk until the simulated one is merged.

use std::sync::{Arc, Mutex, PoisonError};

use actorum_actors::log::{
    memory::MemoryDisk,
    store::{
        Batch, Completed, Completions, LogAppender, LogReader, LogStore, OpenError, Recovered, StoreError,
        StoreIdentity, Ticket,
    },
};
use actorum_transport::wire::{Entry, GroupId, Incarnation, NodeId};

use super::{
    dice::Dice,
    world::{Durable, World},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    All,
    Prefix,
    Subset,
    Torn,
}
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mishap {
    Error,
    Full,
}
pub(crate) struct Image;

#[derive(Clone)]
pub(crate) struct Disk {
    id: NodeId,
    world: World,
    disk: MemoryDisk,
    state: Arc<Mutex<St>>,
}
struct St {
    dice: Dice,
    term: u64,
    vote: u64,
    base: (u64, u64),
    terms: Vec<u64>,
    pending: std::collections::VecDeque<Batch>,
}

impl Disk {
    pub fn new(id: NodeId, world: &World, dice: Dice) -> Disk {
        let disk = MemoryDisk::new();
        disk.hold();
        Disk {
            id,
            world: world.clone(),
            disk,
            state: Arc::new(Mutex::new(St {
                dice,
                term: 0,
                vote: 0,
                base: (0, 0),
                terms: vec![],
                pending: Default::default(),
            })),
        }
    }
    pub fn open(&self, incarnation: Incarnation) -> Result<Box<dyn LogStore>, OpenError> {
        let store = self.disk.open(self.id, incarnation)?;
        self.state.lock().unwrap().pending.clear();
        Ok(Box::new(Store { disk: self.clone(), inner: Box::new(store) }))
    }
    pub fn crash(&self, _: Loss) {
        self.disk.crash();
    }
    pub fn arm(&self, _: u64) {}
    pub fn slow(&self, _: u64) {}
    pub fn hang(&self) {}
    pub fn calm(&self) {}
    pub fn fail(&self, _: Mishap, _: u64) {}
    pub fn has_failed(&self) -> bool {
        false
    }
    pub fn image(&self) -> Image {
        Image
    }
    pub fn promised(&self) -> (u64, NodeId) {
        let s = self.s();
        (s.term, s.vote)
    }
    pub fn flip_bit(&self, _: u64) {}
    pub fn swap_for(&self, _: Image) {}
    pub fn bring_back(&self, _: Image) {}
    pub fn wipe(&self) {}
    pub fn kill(&self) {
        self.disk.crash();
    }
    fn s(&self) -> std::sync::MutexGuard<'_, St> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
impl Durable for Disk {
    fn state(&self) -> (u64, NodeId, u64) {
        let s = self.s();
        (s.term, s.vote, s.base.0 + s.terms.len() as u64)
    }
    fn term_at(&self, index: u64) -> Option<u64> {
        let s = self.s();
        if index == s.base.0 {
            return Some(s.base.1);
        }
        s.terms.get(index.checked_sub(s.base.0 + 1)? as usize).copied()
    }
}
struct Store {
    disk: Disk,
    inner: Box<dyn LogStore>,
}
impl LogStore for Store {
    fn identity(&self) -> StoreIdentity {
        self.inner.identity()
    }
    fn recover(&self, group: GroupId) -> Result<Recovered, StoreError> {
        self.inner.recover(group)
    }
    fn reader(&self) -> Arc<dyn LogReader> {
        self.inner.reader()
    }
    fn start(self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        let disk = self.disk.clone();
        let wrapped: Completions = Arc::new(move |done: Completed| {
            {
                let mut s = disk.s();
                if let Some(batch) = s.pending.pop_front()
                    && done.result.is_ok()
                {
                    for w in batch.writes {
                        if let Some(snap) = w.snapshot {
                            s.base = (snap.index, snap.term);
                            s.terms.clear();
                        }
                        if let Some(first) = w.entries.first() {
                            let keep = (first.index - s.base.0 - 1) as usize;
                            s.terms.truncate(keep);
                        }
                        s.terms.extend(w.entries.iter().map(|e: &Entry| e.term));
                        if let Some(h) = w.hard_state {
                            s.term = h.term;
                            s.vote = h.vote;
                        }
                    }
                }
            }
            completed(done)
        });
        Box::new(App { disk: self.disk.clone(), inner: self.inner.start(wrapped) })
    }
}
struct App {
    disk: Disk,
    inner: Box<dyn LogAppender>,
}
impl LogAppender for App {
    fn submit(&mut self, batch: Batch) -> Ticket {
        let ms = {
            let mut s = self.disk.s();
            s.pending.push_back(batch.clone());
            s.dice.between(0, 3)
        };
        let t = self.inner.submit(batch);
        let disk = self.disk.disk.clone();
        self.disk.world.agenda().after_ms(ms, move || disk.release(1));
        t
    }
    fn blocks(&self) -> bool {
        false
    }
}
