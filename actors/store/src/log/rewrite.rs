//! Rewriting the log into a new engine, since sled gives back little of the room that a log leaves whose beginning is
//! cut off.
//!
//! ```text
//!  due ─▶ make log.N ─▶ slice, commit, slice, commit, ... ─▶ rest ─▶ sync ─▶ complete ─▶ switch ─▶ the old one goes
//!           └───────────── spoiled, or an error: log.N goes ──────────────┘       └─ the step that counts
//! ```
//!
//! Blocks are copied in slices between commits, so that no commit waits for more than one. What is appended meanwhile
//! is copied when its turn comes, what is compacted meanwhile is removed again; a truncation or a snapshot that takes
//! away what was copied already spoils it, and it begins anew. The last slice is followed by the rest (hard state, meta
//! data, owner) before anything else is committed. Until `complete` is durable the old engine is the log, whatever
//! happens to the new one; from then on the new one. Before that the chain of the copied blocks is compared with the
//! log's: a block left out would be lost for good.
//!
//! An error before that is no error of the store: what was written is removed, and it is tried again later.
//!
//! Where room is short it begins as soon as it frees anything worth it, and may borrow the reserve (see `reserve`) for
//! the copy until the old engine is gone: what frees room must not need the room that it frees.
//!
//! Deliberately absent: which files an engine has, and where (see `Renew`, which sled implements).

#![allow(clippy::disallowed_methods, reason = "a real disk has a thread and takes real time")]

use std::{
    collections::BTreeMap,
    fmt, io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use actorum_core::log::store::StoreError;
use actorum_machine::ids::GroupId;

use super::{
    commit::Committer,
    engine::{Engine, EngineError, caught},
    plan::{Log, MAX_TRUNCATED_KEYS, end_of},
    record::{self, Key, RecordKind},
    reserve::OPENING,
    watermark::Pages,
};

/// The longest time after a failure until it is tried again. The time doubles up to there.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// How many values of what was compacted meanwhile one slice removes from the new engine: twice what a commit removes
/// from the old one, so that the end is reached.
const REMOVED_AT_ONCE: usize = 2 * MAX_TRUNCATED_KEYS;

/// How many times the live bytes must be free for a new engine. It takes almost three times as many, and commits go on
/// meanwhile.
const ROOM_FOR_LIVE: u64 = 4;

/// How many times the reserve must stay free when it begins. If the reserve is a quarter of the low-space mark, a
/// rewriting that takes what was estimated ends a quarter above that mark, where a node that was low counts as having
/// enough again.
const RESERVES_AT_START: u64 = 5;

/// How many times the live bytes a new engine takes, roughly.
const TAKEN_BY_LIVE: u64 = 3;

/// At most this many bytes must stay free beside the entries of a commit, since another program may fill the disk
/// between the check and the write. Less if the reserve of a rewriting is smaller.
const ROOM_TO_WRITE: u64 = 16 << 20;

/// The same for a commit without entries, and the least for one with some.
const ROOM_FOR_STATE: u64 = 1 << 20;

/// How long the last check for short room is used, since every commit asks.
const SHORT_FOR: Duration = Duration::from_millis(100);

/// How many times as often room is checked while it is short.
const LOOKS: u32 = 60;

/// How many times sooner the next attempt follows a failure while room is short, and always after the same time.
const SOONER: u32 = 6;

/// When it is worth it, and how much at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct RewritePolicy {
    pub(super) min_bytes: u64,
    pub(super) ratio: u64,
    pub(super) slice_bytes: usize,
    pub(super) retry: Duration,
    /// Free bytes below which it is given up; it begins only where [`RESERVES_AT_START`] times as many stay.
    pub(super) reserve_bytes: u64,
    /// What the engine takes of the disk before it needs it: two of its segments.
    pub(super) aside_bytes: u64,
}

impl RewritePolicy {
    /// What an engine of so many live bytes takes, roughly.
    fn taken_by(&self, live: u64) -> u64 {
        live.saturating_mul(TAKEN_BY_LIVE).saturating_add(self.aside_bytes)
    }
}

/// New engines, and the step by which one becomes the log.
pub(super) trait Renew<E>: Send {
    /// Makes an empty engine beside the present one, which does not count yet.
    fn make(&mut self) -> Result<E, EngineError>;

    /// Makes the names and the small files of the new engine durable, as its values are already.
    fn sync(&mut self) -> Result<(), EngineError>;

    /// Makes the new one count, durable when it returns. After an error it may count or not.
    fn complete(&mut self) -> Result<(), EngineError>;

    /// Makes sure that the new one does not count.
    fn uncomplete(&mut self) -> Result<(), EngineError>;

    /// The new one is the log from now on.
    fn switched(&mut self);

    /// How to remove what the old one, or the new one that was given up, has left once it is closed. Run on another
    /// thread.
    fn remove(&mut self) -> Box<dyn FnOnce() + Send>;

    /// Bytes that may still be written.
    fn room(&self) -> Option<u64>;

    /// Whether room is short, so that what can be freed has to be.
    fn is_short(&self) -> bool {
        false
    }

    /// Whether it ever says so.
    fn watches(&self) -> bool {
        false
    }

    /// The log has found too little room for a write, once more: so many bytes must be free.
    fn log_waits_for(&self, _needed: u64) {}

    /// Bytes that [`Renew::lend`] would make free.
    fn reserve(&self) -> u64 {
        0
    }

    /// Makes the reserve's room free until what is returned is dropped.
    fn lend(&self) -> Option<Box<dyn Send>> {
        None
    }

    /// Says that room is being made, until what is returned is dropped.
    fn make_room(&self) -> Option<Box<dyn Send>> {
        None
    }
}

/// How far one log was copied.
#[derive(Clone, Copy, Debug)]
struct Copied {
    next: Key,
    /// The last index that any copied block may hold.
    up_to: u64,
    /// What the next block names as its predecessor.
    tail: u32,
}

/// An engine that is being filled.
struct Copy<E> {
    engine: E,
    logs: BTreeMap<GroupId, Copied>,
    /// Bytes of all values that were copied, also of those that went again.
    bytes: u64,
}

impl<E: Engine> Copy<E> {
    /// Copies the next blocks of all logs, some so many bytes of them, and removes what has gone from the log
    /// meanwhile. Durable when it returns. Says whether nothing is left to do.
    fn slice(&mut self, old: &E, logs: &BTreeMap<GroupId, Log>, max_bytes: usize) -> Result<bool, EngineError> {
        let (mut left, mut finished) = (max_bytes, true);
        for (group, log) in logs {
            let start = Copied { next: Key::block(*group, 0), up_to: 0, tail: log.prev_checksum };
            let copied = self.logs.entry(*group).or_insert(start);
            let end = end_of(*group, RecordKind::Block);
            while left > 0 {
                let values = old.values(copied.next, end, left)?;
                let Some(last) = values.last().map(|(key, _)| *key) else { break };
                let mut changes = Vec::with_capacity(values.len());
                for (key, value) in values {
                    // What is damaged is left where it is: the old engine goes only when all of it could be read.
                    let broken = |detail| EngineError::Broken { what: key.to_string(), detail };
                    let opened = record::open(key, value.clone()).map_err(broken)?;
                    // If the beginning of the log was cut meanwhile, its first block follows nothing that was copied.
                    if opened.previous != copied.tail && opened.previous != log.prev_checksum {
                        return Err(broken("it does not follow what was copied before it".to_owned()));
                    }
                    copied.tail = opened.crc;
                    left = left.saturating_sub(value.len());
                    self.bytes = self.bytes.saturating_add(value.len() as u64);
                    changes.push((key, Some(value.to_vec())));
                }
                self.engine.apply(changes)?;
                copied.next = last.piece(last.piece.saturating_add(1));
                let following = old.keys(Key::block(*group, last.index.saturating_add(1)), end, 1)?.pop();
                copied.up_to = following.map_or(log.last.0, |following| following.index - 1);
            }
            let below = Key::block(*group, log.compacted.0.saturating_add(1));
            let gone = self.engine.keys(Key::block(*group, 0), below, REMOVED_AT_ONCE)?;
            finished &= gone.len() < REMOVED_AT_ONCE;
            self.engine.apply(gone.into_iter().map(|key| (key, None)).collect())?;
        }
        self.engine.flush()?;
        self.engine.sync()?;
        Ok(finished && left > 0)
    }

    /// Copies what is not a block, when all blocks are copied and before anything else changes the old engine.
    fn rest(&mut self, old: &E, logs: &BTreeMap<GroupId, Log>) -> Result<(), EngineError> {
        for (group, log) in logs {
            let tail = self.logs.get(group).map(|copied| copied.tail);
            if log.last.0 > log.compacted.0 && tail != Some(log.tail) {
                let detail = "its copy ends elsewhere".to_owned();
                return Err(EngineError::Broken { what: format!("group {}: the log", group.0), detail });
            }
            let values = old.values(Key::hard_state(*group), Key::block(*group, 0), usize::MAX)?;
            self.engine.apply(values.into_iter().map(|(key, value)| (key, Some(value.to_vec()))).collect())?;
        }
        let missing = || EngineError::Broken { what: Key::OWNER.to_string(), detail: "it is missing".to_owned() };
        let owner = old.get(Key::OWNER)?.ok_or_else(missing)?;
        self.engine.apply(vec![(Key::OWNER, Some(owner.to_vec()))])?;
        self.engine.flush()?;
        self.engine.sync()
    }

    /// Whether a copied block is no longer in the log: `kept` is the end of the part of the old log that stays.
    fn spoiled(&self, group: GroupId, kept: Option<(u64, u64)>) -> bool {
        self.logs.get(&group).is_some_and(|copied| kept.map_or(0, |kept| kept.0) < copied.up_to)
    }
}

/// How much is free, and how much must be.
#[derive(Clone, Copy, Debug)]
struct Want {
    room: u64,
    needed: u64,
}

/// Why a rewriting did not go on.
enum Stopped {
    /// The old engine is the log as before.
    Failed(StoreError),
    /// The old engine is the log as before, but a part of it cannot be read or does not fit together.
    Damaged(StoreError),
    /// There is too little room: what is free is needed by the log.
    NoRoom(Want),
    /// It is not known which of the two engines is the log.
    Fatal(StoreError),
}

/// Why a rewriting that was to happen at once did not. The old engine is the log as before.
pub(super) enum AtOnce {
    /// What lives does not fit beside it.
    NoRoom {
        /// Free bytes.
        room: u64,
        /// How many must be.
        needed: u64,
    },
    /// It could not be read or written.
    Failed(StoreError),
}

impl From<Stopped> for AtOnce {
    fn from(stopped: Stopped) -> AtOnce {
        match stopped {
            Stopped::NoRoom(Want { room, needed }) => AtOnce::NoRoom { room, needed },
            Stopped::Failed(error) | Stopped::Damaged(error) | Stopped::Fatal(error) => AtOnce::Failed(error),
        }
    }
}

/// What was logged since it last succeeded: the same again is a repetition.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    failed: bool,
    no_room: bool,
}

/// Rewrites the engine of one store when it is due.
pub(super) struct Rewriter<E> {
    renew: Box<dyn Renew<E>>,
    policy: RewritePolicy,
    copy: Option<Copy<E>>,
    /// What the engine took on disk right after the last rewriting, in percent of what was copied: no rewriting makes
    /// it better. sled takes about 270 of a new one, and 300 to 400 of one that is at work.
    best: u64,
    begun: Option<Instant>,
    /// Bytes on disk right after the last rewriting: another one frees nothing before there are more.
    left: u64,
    /// When room was last looked at, and whether it was short.
    looked: Option<(Instant, bool)>,
    /// Whether a write waits for room.
    log_waits: bool,
    /// Holds the reserve for what is under way.
    lent: Option<Box<dyn Send>>,
    /// Says that room is being made: by removing the beginning of the log, and by rewriting it until the old engine is
    /// gone.
    truncating: Option<Box<dyn Send>>,
    rewriting: Option<Box<dyn Send>>,
    not_before: Option<Instant>,
    /// The same while room is short.
    not_before_if_short: Option<Instant>,
    /// How often it failed since it last succeeded.
    failures: u32,
    said: Said,
    removing: Option<JoinHandle<()>>,
    /// Engines to close and files to remove for which there was no thread.
    parked: Vec<Job>,
    /// Starts a thread. Any but [`spawn`] is for tests.
    spawn: fn(Job) -> io::Result<JoinHandle<()>>,
}

impl<E: Engine> Rewriter<E> {
    pub(super) fn new(renew: Box<dyn Renew<E>>, policy: RewritePolicy) -> Rewriter<E> {
        let (copy, begun, not_before, not_before_if_short, removing) = (None, None, None, None, None);
        let (said, parked) = (Said::default(), Vec::new());
        let (looked, lent, truncating, rewriting) = (None, None, None, None);
        let (best, left, failures) = (0, 0, 0);
        Rewriter {
            renew,
            policy,
            copy,
            best,
            begun,
            left,
            looked,
            log_waits: false,
            lent,
            truncating,
            rewriting,
            not_before,
            not_before_if_short,
            failures,
            said,
            removing,
            parked,
            spawn,
        }
    }

    /// Whether an idle store should look now and then whether room is short: there may be something to free.
    pub(super) fn watches<S: Pages>(&self, committer: &Committer<E, S>) -> bool {
        self.renew.watches() && committer.disk_bytes() > self.policy.aside_bytes
    }

    /// Whether there is room to write so many bytes: an engine that finds none is dead. If free space is not watched or
    /// not known, the answer is yes.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        if !self.renew.watches() {
            return true;
        }
        let Some(room) = self.renew.room() else { return true };
        // Asked with every commit: the reserve is looked at only where it makes the difference.
        room >= self.needed_beside(bytes, 0) || room >= self.needed_beside(bytes, self.renew.reserve())
    }

    /// Between two commits: whether the beginning of a log is still to go.
    pub(super) fn note_truncating(&mut self, truncating: bool) {
        match truncating {
            true if self.truncating.is_none() => self.truncating = self.renew.make_room(),
            true => {}
            false => self.truncating = None,
        }
    }

    /// How many bytes must be free, beside such a reserve, before so many bytes of entries are written. Zero bytes: a
    /// commit without entries.
    fn needed_beside(&self, bytes: usize, reserve: u64) -> u64 {
        if bytes == 0 {
            return ROOM_FOR_STATE;
        }
        // Entries leave the room that the next start needs, if the reserve does not keep it.
        let opening = OPENING.saturating_sub(reserve);
        let besides = self.policy.reserve_bytes.clamp(ROOM_FOR_STATE, ROOM_TO_WRITE).max(opening);
        (bytes as u64).saturating_mul(TAKEN_BY_LIVE).saturating_add(besides)
    }

    /// A write of so many bytes waits for room, for one more round; `None`: it waits no longer. As long as one waits
    /// room is short, however much is free.
    pub(super) fn log_waits_for(&mut self, bytes: Option<usize>) {
        self.log_waits = bytes.is_some();
        if let Some(bytes) = bytes {
            self.renew.log_waits_for(self.needed_beside(bytes, self.renew.reserve()));
        }
    }

    /// Whether room is short, at the last look.
    pub(super) fn is_short(&mut self) -> bool {
        if self.log_waits {
            return true;
        }
        if let Some((when, short)) = self.looked
            && when.elapsed() < SHORT_FOR
        {
            return short;
        }
        let short = self.renew.is_short();
        self.looked = Some((Instant::now(), short));
        short
    }

    /// Whether there is work to do between commits.
    pub(super) fn is_under_way(&self) -> bool {
        self.copy.is_some()
    }

    /// Between two commits, the last one of so many bytes. An error is the store's end.
    pub(super) fn go_on<S: Pages>(
        &mut self,
        committer: &mut Committer<E, S>,
        committed: usize,
    ) -> Result<(), StoreError> {
        let outcome = match self.copy.take() {
            None if !self.is_due(committer) => return Ok(()),
            None => self.make(),
            // At least twice what comes in: else the end would never be reached.
            Some(copy) => self.step(committer, copy, self.policy.slice_bytes.max(2 * committed)),
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Stopped::Fatal(error)) => Err(error),
            Err(Stopped::Failed(error)) => {
                if !mem::replace(&mut self.said.failed, true) {
                    tracing::warn!(%error, "the log could not be rewritten, it takes more room than it needs");
                }
                self.postpone();
                Ok(())
            }
            Err(Stopped::Damaged(error)) => {
                // Logged every time: the log works until that part of it is read, which may be when it is needed most.
                tracing::error!(
                    %error,
                    "the log is damaged: it could not be rewritten, and reading that part of it will fail"
                );
                self.postpone();
                Ok(())
            }
            Err(Stopped::NoRoom(want)) => {
                self.say_no_room(want);
                // Copying in vain costs as much as any other failure.
                self.postpone();
                Ok(())
            }
        }
    }

    /// All of it here and now, for a store that does nothing else.
    pub(super) fn at_once<S: Pages>(&mut self, committer: &mut Committer<E, S>) -> Result<(), AtOnce> {
        // Nothing else writes: all free room is for the copy.
        self.lent = Some(self.borrow(committer.live_bytes()).map_err(Stopped::NoRoom)?);
        self.make()?;
        while let Some(copy) = self.copy.take() {
            self.step(committer, copy, self.policy.slice_bytes)?;
        }
        Ok(())
    }

    /// A commit has taken place. For each of its groups, this is what stays of the old log.
    pub(super) fn committed(&mut self, kept: &[(GroupId, Option<(u64, u64)>)]) {
        let spoiled = |copy: &mut Copy<E>| kept.iter().any(|(group, kept)| copy.spoiled(*group, *kept));
        if let Some(copy) = self.copy.take_if(spoiled) {
            tracing::debug!("what was rewritten of the log was cut off meanwhile: it begins anew");
            self.remove(copy.engine);
        }
    }

    /// Ends what is under way, and waits until nothing of it touches the directory any more.
    pub(super) fn close(&mut self) {
        if let Some(copy) = self.copy.take() {
            self.remove(copy.engine);
        }
        if let Some(removing) = self.removing.take() {
            let _ = removing.join();
        }
        // There was no thread for these, and the directory's lock is released only after them.
        mem::take(&mut self.parked).into_iter().for_each(done);
    }

    fn is_due<S: Pages>(&mut self, committer: &Committer<E, S>) -> bool {
        let short = self.is_short();
        // An attempt that was put off while there was room is not put off any longer once room is short.
        let not_before = if short { self.not_before_if_short } else { self.not_before };
        if not_before.is_some_and(|not_before| Instant::now() < not_before) {
            return false;
        }
        if !(self.is_wasteful(committer) || short && self.would_free(committer)) {
            return false;
        }
        // The entries that are being cut off should not be copied, so their removal comes first; unless there is no
        // room for the commits that remove them. Then they are copied, and removed later.
        if committer.is_truncating_prefix() && self.has_room(0) {
            return false;
        }
        // One removal at a time: where it hangs, a second would only hang beside it.
        if self.removing.as_ref().is_some_and(|removing| !removing.is_finished()) {
            return false;
        }
        if !self.parked.is_empty() {
            if self.sweep().is_err() {
                self.put_off(self.policy.retry, self.policy.retry / SOONER);
            }
            return false;
        }
        // A copy that fills the disk would end the log that works.
        let reserve =
            self.policy.reserve_bytes.saturating_mul(RESERVES_AT_START).max(self.floor(self.policy.slice_bytes));
        let needed = self.live(committer).saturating_mul(ROOM_FOR_LIVE).saturating_add(reserve);
        let Err(mut want) = self.find_room(needed) else { return true };
        if short {
            match self.borrow(committer.live_bytes()) {
                Ok(lent) => {
                    self.lent = Some(lent);
                    return true;
                }
                Err(of_reserve) => want = of_reserve,
            }
        }
        self.say_no_room(want);
        // A check costs nothing, and there may be room again at any time. While room is short, the next snapshot makes
        // the live bytes fewer, too.
        self.put_off(self.policy.retry, self.policy.retry / LOOKS);
        false
    }

    /// Whether the engine takes so much more than its live bytes that a rewriting pays even if room is not short.
    fn is_wasteful<S: Pages>(&self, committer: &Committer<E, S>) -> bool {
        let disk = committer.disk_bytes();
        // At least twice what a rewriting leaves, or the log would be rewritten without end.
        let bad = self.policy.ratio.saturating_mul(100).max(self.best.saturating_mul(2));
        disk > self.policy.min_bytes && (self.policy.ratio == 0 || percent(disk, self.live(committer)) >= bad)
    }

    /// Whether rewriting it gives back a segment or more, which is worth it where room is short.
    fn would_free<S: Pages>(&self, committer: &Committer<E, S>) -> bool {
        let left = self.policy.taken_by(committer.live_bytes()).max(self.left);
        committer.disk_bytes() >= left.saturating_add(self.policy.aside_bytes / 2)
    }

    /// The reserve, if it and what is free are enough for a copy of so many bytes.
    fn borrow(&self, live: u64) -> Result<Box<dyn Send>, Want> {
        let room = self.renew.room().unwrap_or(0).saturating_add(self.renew.reserve());
        // If there are fewer live bytes than a slice holds, that is all there is to copy.
        let slice = self.policy.slice_bytes.min(usize::try_from(live).unwrap_or(usize::MAX));
        let needed = live.saturating_mul(TAKEN_BY_LIVE).saturating_add(self.floor_of_reserve(slice));
        if room < needed {
            return Err(Want { room, needed });
        }
        // Where there is no reserve all of that is free.
        Ok(self.renew.lend().unwrap_or_else(|| Box::new(())))
    }

    /// Bytes of all entries, but at least so many that a ratio to them means something.
    fn live<S: Pages>(&self, committer: &Committer<E, S>) -> u64 {
        committer.live_bytes().max(self.policy.min_bytes / 16).max(1)
    }

    /// What must be free before so much is copied: the log goes on beside it, and others may be filling the disk as
    /// well.
    fn floor(&self, slice_bytes: usize) -> u64 {
        self.policy.reserve_bytes.max(self.policy.taken_by(slice_bytes as u64))
    }

    /// The same while the reserve is lent: the slice, and one segment for the log that works.
    fn floor_of_reserve(&self, slice_bytes: usize) -> u64 {
        self.policy.taken_by(slice_bytes as u64).saturating_sub(self.policy.aside_bytes / 2)
    }

    /// What must be free before the next slice; the reserve is borrowed for it where room has become short.
    fn room_for_slice(&mut self, slice_bytes: usize) -> Result<(), Want> {
        if self.lent.is_none() {
            let Err(want) = self.find_room(self.floor(slice_bytes)) else { return Ok(()) };
            if !self.is_short() {
                return Err(want);
            }
            self.lent = self.renew.lend();
        }
        match self.lent {
            Some(_) => self.find_room(self.floor_of_reserve(slice_bytes)),
            None => self.find_room(self.floor(slice_bytes)),
        }
    }

    /// Checks that so much is free: no rewriting is better than a log without room. If the free space is not known, the
    /// rewriting goes on.
    fn find_room(&self, needed: u64) -> Result<(), Want> {
        match self.renew.room() {
            Some(room) if room < needed => Err(Want { room, needed }),
            _ => Ok(()),
        }
    }

    fn say_no_room(&mut self, Want { room, needed }: Want) {
        if !mem::replace(&mut self.said.no_room, true) {
            tracing::warn!(room, needed, "there is no room to rewrite the log, which takes more than it needs");
        } else {
            tracing::debug!(room, needed, "there is still no room to rewrite the log");
        }
    }

    fn postpone(&mut self) {
        self.put_off(self.wait(), self.policy.retry / SOONER);
        self.failures += 1;
    }

    fn put_off(&mut self, wait: Duration, if_short: Duration) {
        let now = Instant::now();
        (self.not_before, self.not_before_if_short) = (Some(now + wait), Some(now + if_short));
    }

    /// How long to wait after one more failure.
    fn wait(&self) -> Duration {
        self.policy.retry.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX)
    }

    fn make(&mut self) -> Result<(), Stopped> {
        self.begun = Some(Instant::now());
        self.rewriting = self.renew.make_room();
        match guarded(|| self.renew.make()) {
            Ok(engine) => {
                self.copy = Some(Copy { engine, logs: BTreeMap::new(), bytes: 0 });
                Ok(())
            }
            Err(error) => {
                self.remove(());
                Err(Stopped::Failed(error))
            }
        }
    }

    /// Copies a slice, and the rest after the last one. Says whether all of the log is durable in the new engine.
    fn fill<S: Pages>(
        &mut self,
        committer: &Committer<E, S>,
        copy: &mut Copy<E>,
        slice_bytes: usize,
    ) -> Result<bool, Stopped> {
        let copying = |error| match error {
            StoreError::Damaged { .. } => Stopped::Damaged(error),
            error => Stopped::Failed(error),
        };
        // If there are fewer live bytes than a slice holds, that is all there is to copy.
        let room_for = slice_bytes.min(usize::try_from(committer.live_bytes()).unwrap_or(usize::MAX));
        self.room_for_slice(room_for).map_err(Stopped::NoRoom)?;
        let finished = guarded(|| committer.with_engine(|old, logs| copy.slice(old, logs, slice_bytes)));
        if !finished.map_err(copying)? {
            return Ok(false);
        }
        self.room_for_slice(room_for).map_err(Stopped::NoRoom)?;
        guarded(|| committer.with_engine(|old, logs| copy.rest(old, logs))).map_err(copying)?;
        guarded(|| self.renew.sync()).map_err(Stopped::Failed)?;
        Ok(true)
    }

    fn step<S: Pages>(
        &mut self,
        committer: &mut Committer<E, S>,
        mut copy: Copy<E>,
        slice_bytes: usize,
    ) -> Result<(), Stopped> {
        match self.fill(committer, &mut copy, slice_bytes) {
            Ok(true) => {}
            Ok(false) => {
                self.copy = Some(copy);
                return Ok(());
            }
            Err(stopped) => {
                self.remove(copy.engine);
                return Err(stopped);
            }
        }
        // Promise 1: all of the log is durable in the new engine. This is the one step by which it becomes the log: a
        // crash before it finds the old one, a crash after it the new one, and nothing was committed in between.
        if let Err(error) = guarded(|| self.renew.complete()) {
            // The mark may have got to the disk. While that is not known, no commit may go to the old engine.
            if let Err(unclear) = guarded(|| self.renew.uncomplete()) {
                tracing::error!(%error, "the rewritten log could not take the place of the old one");
                self.close_aside(copy.engine, None);
                return Err(Stopped::Fatal(unclear));
            }
            self.remove(copy.engine);
            return Err(Stopped::Failed(error));
        }
        let before = committer.disk_bytes();
        let old = committer.switch(copy.engine).map_err(Stopped::Fatal)?;
        self.renew.switched();
        self.remove(old);
        let (after, live, copied) = (committer.disk_bytes(), self.live(committer), copy.bytes);
        // In percent of what was copied: if most of that was compacted meanwhile, the next rewriting does much better.
        self.best = percent(after, live.max(copied));
        self.left = after;
        (self.not_before, self.not_before_if_short) = (None, None);
        (self.failures, self.said) = (0, Said::default());
        let took = self.begun.take().map(|begun| begun.elapsed());
        tracing::info!(before, after, live, copied, ?took, "the log was rewritten");
        Ok(())
    }

    /// Closes an engine that is not the log, or what there is of one, and removes its files.
    fn remove<T: Send + 'static>(&mut self, left: T) {
        let remove = self.renew.remove();
        self.close_aside(left, Some(remove));
    }

    /// Closes what there is of an engine, and then removes its files if it is told how. Only then the reserve may be
    /// made again.
    fn close_aside<T: Send + 'static>(&mut self, left: T, remove: Option<Box<dyn FnOnce() + Send>>) {
        let (lent, rewriting) = (self.lent.take(), self.rewriting.take());
        self.parked.push(Box::new(move || {
            let closed = catch_unwind(AssertUnwindSafe(|| drop(left)));
            if let Some(remove) = remove.filter(|_| closed.is_ok()) {
                remove();
            }
            drop((lent, rewriting));
        }));
        if let Err(error) = self.sweep() {
            tracing::warn!(%error, "no thread to remove what a rewriting left: it stays on the disk for now");
        }
    }

    /// Does what is parked on a thread of its own: sled flushes when it is dropped, which can take long, or for ever.
    fn sweep(&mut self) -> io::Result<()> {
        // If no thread can be started, all of it comes back: the one before is still waited for, and no engine is
        // closed on this thread.
        let work = Arc::new(Mutex::new((self.removing.take(), mem::take(&mut self.parked))));
        let given = work.clone();
        let spawned = (self.spawn)(Box::new(move || {
            let (before, parked) = mem::take(&mut *locked(&given));
            // One after the other.
            before.map(JoinHandle::join);
            parked.into_iter().for_each(done);
        }));
        match spawned {
            Ok(removing) => {
                self.removing = Some(removing);
                Ok(())
            }
            Err(error) => {
                (self.removing, self.parked) = mem::take(&mut *locked(&work));
                Err(error)
            }
        }
    }
}

/// What a thread of its own does.
type Job = Box<dyn FnOnce() + Send>;

fn spawn(job: Job) -> io::Result<JoinHandle<()>> {
    Builder::new().name("actorum-sweep".to_owned()).spawn(job)
}

/// A job that panics keeps no other from being done.
fn done(job: Job) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E> fmt::Debug for Rewriter<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rewriter").field("policy", &self.policy).finish_non_exhaustive()
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole
}

fn guarded<T>(run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, StoreError> {
    caught(|| run().map_err(StoreError::from))
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
