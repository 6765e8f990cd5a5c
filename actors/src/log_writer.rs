//! The log writer: the only actor that can write the log, and where group commit happens.
//!
//! ```text
//!  core ──Append──▶ waiting ──▶ one batch ──▶ [ store ] ══ synced ══▶ Completed ──▶ Persisted ──▶ core
//!                     ▲                          │
//!                     └── what comes while a batch is in flight goes together into the next one
//! ```
//!
//! Batching comes from load, never from a timer: a lone append is submitted at once, and everything that arrives while
//! the disk works becomes the next batch, with one sync. An append that no promise waits for (a moved commit index) is
//! written together with the next one that is synced, in its order. A second batch is submitted only while the first
//! one waits for room on the disk, and only if the second has a compaction, which may make that room.
//!
//! The store blocks a thread of its own, never this actor: while a sync hangs, status is still answered. A failed write
//! or sync is final: nothing is written after it, and the log writer never reports the waiting appends as durable.
//!
//! It also checks the disk, through the store's [`Probe`]: once a second how much room there is, and, when the core
//! wants to know, whether a separate write of the probe ends. Neither waits for the batch in flight.
//!
//! Deliberately absent: deciding what to write, and retries.
//!
//! The queue `waiting` is this actor's. Its bound is the core's: a leader answers `Busy` once `max_unpersisted_bytes`
//! are not durable, and a follower is sent no more than its leader's window (`peer_window_bytes`) before it has
//! acknowledged.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::{WeakAddr, WeakRecipient, prelude::*};
use actorum_core::{
    debug_fields,
    log::store::StoreError,
    message::{Append, Room},
};
use actorum_machine::{condition::Reason, ids::GroupId};
use actorum_store::log::store::{Batch, BatchNumber, Completed, LogAppender, LogStore, Probe, Space, Written};
use tokio::sync::{oneshot, watch};

use crate::message::{DiskReport, Failed, FromCore, Persisted, ProbeDisk};

/// One batch is closed once it holds this much: larger ones gain nothing and delay the first answers in them.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// Where room is short a batch is closed once it holds this part of what counts as low on space.
const LOW_SPACE_BATCHES: u64 = 16;

/// For so many looks a write counts as waiting for room after the store said so last: freeing room may take that long.
const ROOM_LOOKS: u32 = 3;

/// How often the batch in flight is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// When the log writer reports that a disk has failed, and when it reports that the disk is nearly full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskBounds {
    /// A batch that is in flight for so long has hung for good: the disk does not answer, or a thread of the store has
    /// died. The node stops. This is checked once a second. The time is far longer than the time after which a leader
    /// gives up leadership.
    pub dead_after: Duration,
    /// With fewer free bytes than this, besides the bytes that are missing from the reserve, the disk is low on space.
    /// It has enough again with a quarter more, so that the answer does not flicker. With fewer than [`SHORT`] times as
    /// many, room is short, and the node frees what it can. Zero: the disk is never low on space.
    pub low_space: u64,
}

/// Room is short below so many times the bytes that count as low on space.
pub const SHORT: u64 = 2;

/// After writes of this part of the bytes that count as low, the free space is checked at once: a fast disk can fill a
/// small volume before the next regular look.
const LOOK_AFTER: u64 = 8;

impl Default for DiskBounds {
    fn default() -> Self {
        DiskBounds { dead_after: Duration::from_secs(60), low_space: 0 }
    }
}

/// Registers a group, at any time before its first append, and replaces an earlier registration. The recipients are
/// weak: the log writer owns no actor.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct RegisterGroup {
    /// The group.
    pub group: GroupId,
    /// Its core, for what became durable.
    pub core: WeakRecipient<Persisted>,
    /// Its core, for reports about the disk. It gets the last report about the room on the disk at once.
    pub disk: WeakRecipient<DiskReport>,
}

/// Its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogWriterStatus {
    /// Appends that wait for the batch in flight, or for one that is synced.
    pub waiting: usize,
    /// Appends in the batch in flight.
    pub in_flight: usize,
    /// Entries made durable.
    pub entries: u64,
    /// Durable batches.
    pub syncs: u64,
    /// Microseconds spent in making them durable.
    pub sync_us: u64,
    /// Microseconds spent in writing them, the sync included.
    pub append_us: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Free bytes on the disk, at the last look; `None` where nobody can tell.
    pub free_bytes: Option<u64>,
    /// Bytes of the reserve that is kept for making room, at the last look; they are not free.
    pub reserve_bytes: u64,
    /// How many bytes must be free for new work to be taken.
    pub needed_bytes: u64,
    /// Whether fewer are.
    pub low: bool,
    /// Whether room is short, and the log is cut and rewritten as far as it goes.
    pub short: bool,
    /// Whether a probe of the disk is under way.
    pub probing: bool,
    /// Why the disk can no longer be used.
    pub failed: Option<String>,
}

/// The actor; see the module.
pub struct LogWriter {
    /// `None` once it is closing.
    appender: Option<Box<dyn LogAppender>>,
    groups: BTreeMap<GroupId, RegisterGroup>,
    /// The actor `RaftSystem`.
    failed: WeakRecipient<Failed>,
    bounds: DiskBounds,
    probe: Option<Arc<dyn Probe>>,
    /// Whether a look for space is under way: one at a time, however long the disk takes.
    looking: bool,
    /// How often the store had found too little room for a write at the last look, and for how many looks this number
    /// has not changed.
    waited_rounds: (u64, u32),
    /// Whether it holds up a write until there is room, at the last looks.
    waits_for_room: bool,
    /// What the cores were told last besides the figures: whether a write waits for room, and whether room is being
    /// made.
    announced: (bool, bool),
    /// The last report about the room on the disk to the cores; `None` before the first report.
    room: Option<Room>,
    /// Bytes written since the last look for space began.
    unlooked: u64,
    waiting: VecDeque<Append>,
    /// One, or all up to the last compaction while the first of them waits for room. Bound: that of `waiting`.
    in_flight: VecDeque<InFlight>,
    /// The oldest batch in flight at the last looks, and at how many of them.
    watched: (Option<BatchNumber>, u32),
    /// The callers that wait until everything is durable and the store is closed.
    closing: Vec<oneshot::Sender<()>>,
    status: watch::Sender<LogWriterStatus>,
}

debug_fields!(LogWriter { bounds, looking, waits_for_room, unlooked, watched });

/// What a submitted batch will mean once it is durable.
struct InFlight {
    batch_number: BatchNumber,
    appends: usize,
    entries: u64,
    /// Whether some log is cut in it.
    cuts: bool,
    /// The highest number per group.
    numbers: BTreeMap<GroupId, u64>,
}

impl LogWriter {
    /// Starts the store and the actor that writes it, on the current arbiter. `status` is where its numbers appear.
    pub fn start(
        store: Box<dyn LogStore>,
        failed: WeakRecipient<Failed>,
        status: watch::Sender<LogWriterStatus>,
    ) -> Addr<LogWriter> {
        LogWriter::start_within(DiskBounds::default(), store, failed, status)
    }

    /// The same with other bounds on its disk than the default ones.
    pub fn start_within(
        bounds: DiskBounds,
        store: Box<dyn LogStore>,
        failed: WeakRecipient<Failed>,
        status: watch::Sender<LogWriterStatus>,
    ) -> Addr<LogWriter> {
        let probe = store.probe();
        LogWriter::create(move |ctx| {
            let this = ctx.address().downgrade();
            // Called on the store's thread. The mailbox gets one message per batch in flight.
            let completed = move |completed: Completed| {
                if let Some(this) = this.upgrade() {
                    this.do_send(Done(completed));
                }
            };
            let appender = Some(store.start(Arc::new(completed)));
            LogWriter {
                appender,
                groups: BTreeMap::new(),
                failed,
                bounds,
                probe,
                looking: false,
                waited_rounds: (0, 0),
                waits_for_room: false,
                announced: (false, false),
                room: None,
                unlooked: 0,
                waiting: VecDeque::new(),
                in_flight: VecDeque::new(),
                watched: (None, 0),
                closing: Vec::new(),
                status,
            }
        })
    }

    /// Submits what waits, if the store is free and a promise depends on it.
    fn pump(&mut self) {
        if self.has_failed() {
            return;
        }
        if !self.in_flight.is_empty() {
            while self.could_make_room() {
                self.submit();
            }
        } else if self.waiting.iter().any(|append| append.sync) || !self.closing.is_empty() {
            self.submit();
        } else {
            self.let_wait();
        }
        if self.in_flight.is_empty() && !self.closing.is_empty() {
            self.close();
        }
    }

    /// Whether the store should hear of a compaction although a write is in flight: it waits for the room that this
    /// makes.
    fn could_make_room(&self) -> bool {
        self.appender.is_some()
            && self.waits_for_room
            && self.waiting.iter().any(|append| append.write.compact.is_some())
    }

    fn submit(&mut self) {
        let most = self.batch_bytes();
        let Some(appender) = self.appender.as_mut() else { return };
        let (mut writes, mut numbers) = (Vec::new(), BTreeMap::new());
        let (mut appends, mut entries, mut bytes, mut cuts) = (0, 0, 0, false);
        while let Some(append) = self.waiting.pop_front() {
            appends += 1;
            entries += append.write.entries.len() as u64;
            bytes += append.write.entries.iter().map(|e| e.size()).sum::<usize>();
            numbers.insert(append.write.group, append.number);
            cuts |= append.write.compact.is_some();
            writes.push(append.write);
            if bytes >= most {
                break;
            }
        }
        if writes.is_empty() {
            return;
        }
        // This is synced even if no message waits for these writes: only then may an entry count for anything (promise
        // 2).
        let batch_number = appender.submit(Batch { writes, sync: true });
        self.in_flight.push_back(InFlight { batch_number, appends, entries, cuts, numbers });
    }

    /// When a batch is closed. A batch waits for room as a whole, so where room is short it is a small one.
    fn batch_bytes(&self) -> usize {
        match self.status.borrow().short {
            true => usize::try_from(self.bounds.low_space / LOW_SPACE_BATCHES)
                .map_or(MAX_BATCH_BYTES, |bytes| bytes.min(MAX_BATCH_BYTES)),
            false => MAX_BATCH_BYTES,
        }
    }

    /// Everything before these is durable and no promise depends on them: they count as persisted, so that no
    /// Ready waits for them, and go to disk with the next batch.
    fn let_wait(&mut self) {
        let mut numbers = BTreeMap::new();
        for append in &self.waiting {
            numbers.insert(append.write.group, append.number);
        }
        // One per group is enough, since a later hard state replaces an earlier one.
        let mut latest = BTreeMap::new();
        for append in self.waiting.drain(..) {
            debug_assert!(append.write.entries.is_empty() && append.write.snapshot.is_none(), "entries are synced");
            latest.insert(append.write.group, append);
        }
        self.waiting.extend(latest.into_values());
        self.report(&numbers);
    }

    fn persisted(&mut self, batch_number: BatchNumber, written: Written, ctx: &mut Context<Self>) {
        let Some(batch) = self.in_flight.pop_front() else { return };
        self.waits_for_room = false;
        self.unlooked = self.unlooked.saturating_add(written.bytes);
        // After a log was cut, the core waits for a report of the room that this has given back.
        if self.bounds.low_space > 0 && (batch.cuts || self.unlooked > self.bounds.low_space / LOOK_AFTER) {
            self.look_for_space(ctx);
        }
        assert_eq!(
            batch_number, batch.batch_number,
            "the store completes batches in the order of submission, each once"
        );
        self.count(|status| {
            status.entries += batch.entries;
            status.syncs += 1;
            status.sync_us += micros(written.sync);
            status.append_us += micros(written.took);
            status.bytes += written.bytes;
        });
        self.report(&batch.numbers);
        self.pump();
    }

    fn fail(&mut self, error: &StoreError) {
        let cause = match error {
            StoreError::Gone { .. } => format!(
                "{error}. Nothing is acknowledged any more. Bring the directory back (mount it, or rename it back) and \
                 start the node again; if it is lost, remove this node from the cluster and add it again under a new \
                 id, with an empty one"
            ),
            // The way out is added here, because the status and the last line of the process show this text.
            StoreError::Io { .. } | StoreError::Closed(_) => format!(
                "the log writer: {error}. Nothing more is written by this process; \
                 start it again once the disk can be written (if it was full: once there is room)"
            ),
            _ => format!("the log writer: {error}"),
        };
        // `RaftSystem`, which stops for this, logs it.
        tracing::debug!(%error, "the log cannot be written; this node stops promising");
        self.status.send_modify(|status| status.failed = Some(cause.clone()));
        self.waiting.clear();
        self.in_flight.clear();
        if let Some(front_door) = self.failed.upgrade() {
            let reason = match error {
                StoreError::Gone { .. } => Reason::DataDirectoryMissing,
                _ => Reason::DiskFailed,
            };
            front_door.do_send(Failed { reason, cause });
        }
        if !self.closing.is_empty() {
            self.close();
        }
    }

    /// Tells each core its highest durable number. One message per batch, so the core's mailbox is bounded by it.
    fn report(&self, numbers: &BTreeMap<GroupId, u64>) {
        for (&group, &number) in numbers {
            if let Some(core) = self.groups.get(&group).and_then(|registered| registered.core.upgrade()) {
                core.do_send(Persisted { group, number });
            }
        }
    }

    /// A close does not wait for room that may never come: the writes that wait for room were not promised yet.
    fn close_if_stuck(&mut self) {
        if self.waits_for_room && !self.closing.is_empty() {
            self.close();
        }
    }

    /// Closes the store, on a thread that may block if the store blocks, then tells the callers that wait for it.
    fn close(&mut self) {
        let waiting: Vec<_> = self.closing.drain(..).collect();
        let appender = self.appender.take();
        let blocks = appender.as_ref().is_some_and(|appender| appender.blocks());
        let close = move || {
            drop(appender);
            for closed in waiting {
                let _ = closed.send(());
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if blocks => drop(runtime.spawn_blocking(close)),
            // The store never waits; or the runtime itself is being dropped, and this actor with it, so that nothing
            // can be blocked.
            _ => close(),
        }
    }

    /// The core notices a disk that hangs, and a leader then gives up leadership. After a far longer time the disk
    /// counts as dead, and this node stops, so that its supervisor knows.
    fn look_at_the_disk(&mut self, ctx: &mut Context<Self>) {
        if self.looking {
            // The last look hangs, so what was seen before it no longer explains the delay.
            self.waits_for_room = false;
        }
        self.look_for_space(ctx);
        // A write that waits for room is delayed by files of other programs, not by the disk.
        let now = self.in_flight.front().map(|batch| batch.batch_number).filter(|_| !self.waits_for_room);
        self.watched = if now.is_some() && now == self.watched.0 { (now, self.watched.1 + 1) } else { (now, 0) };
        let waited = LOOK * self.watched.1;
        if self.watched.1 > 0 && waited >= self.bounds.dead_after && !self.has_failed() {
            let cause = format!("the disk has not answered for {} s", waited.as_secs());
            self.fail(&StoreError::Closed(cause));
        }
    }

    fn look_for_space(&mut self, ctx: &mut Context<Self>) {
        let Some(probe) = self.probe.as_ref().filter(|_| !self.looking && self.appender.is_some()) else { return };
        (self.looking, self.unlooked) = (true, 0);
        let this = ctx.address().downgrade();
        probe.space(Box::new(move |found| {
            if let Some(this) = this.upgrade() {
                this.do_send(Looked { probe: false, found });
            }
        }));
    }

    /// A write in flight waits for room if the store has reported so within the last looks, and no batch has ended
    /// since.
    fn note_waiting(&mut self, rounds: u64) {
        let (before, looks) = self.waited_rounds;
        let looks = if rounds == before { looks.saturating_add(1) } else { 0 };
        self.waited_rounds = (rounds, looks);
        let said = rounds > before || self.waits_for_room && looks < ROOM_LOOKS;
        self.waits_for_room = said && !self.in_flight.is_empty();
    }

    /// The disk counts as low before the first write fails, so that the writes that follow still have room.
    fn space(&mut self, space: Space) {
        let (was_low, was_short) = {
            let status = self.status.borrow();
            (status.low, status.short)
        };
        let (low_space, spare) = (self.bounds.low_space, space.spare());
        let mark = |was: bool, least: u64| if was { least.saturating_add(least / 4) } else { least };
        let low_mark = mark(was_low, low_space);
        // However much is free: it is too little for a write that waits for more.
        let low = spare < low_mark || self.waits_for_room;
        let short = spare < mark(was_short, low_space.saturating_mul(SHORT)) || self.waits_for_room;
        // What is missing of the reserve is made first.
        let missing = space.reserve_wanted.saturating_sub(space.reserve);
        let waits_for = if self.waits_for_room { space.needed } else { 0 };
        let needed = mark(low, low_space).saturating_add(missing).max(waits_for);
        let free = space.free;
        let changed = self.status.send_if_modified(|status| {
            let found = (Some(free), space.reserve, needed, low, short);
            let before = (status.free_bytes, status.reserve_bytes, status.needed_bytes, status.low, status.short);
            (status.free_bytes, status.reserve_bytes, status.needed_bytes, status.low, status.short) = found;
            found != before
        });
        if low != was_low {
            // The log shows this as a condition, and the lines of conditions are written in one place.
            tracing::debug!(free, needed, reserve = space.reserve, low, "the free space on the disk crossed its limit");
        }
        // While it is low the figures are part of what clients are told.
        let (waits, being_made) = (self.waits_for_room, low && space.being_made);
        if (low, short, (waits, being_made)) != (was_low, was_short, self.announced) || (low && changed) {
            self.announced = (waits, being_made);
            let room = Room { low, short, free, needed, waits, being_made };
            self.room = Some(room);
            self.tell(&DiskReport::Space(room));
        }
    }

    fn tell(&self, report: &DiskReport) {
        for core in self.groups.values().filter_map(|registered| registered.disk.upgrade()) {
            core.do_send(report.clone());
        }
    }

    fn has_failed(&self) -> bool {
        self.status.borrow().failed.is_some()
    }

    fn publish(&mut self) {
        let waiting = self.waiting.len();
        let in_flight = self.in_flight.iter().map(|batch| batch.appends).sum();
        self.count(|status| (status.waiting, status.in_flight) = (waiting, in_flight));
    }

    /// Changes numbers that move with every batch. This wakes no reader; a reader sees them when it looks.
    fn count(&self, change: impl FnOnce(&mut LogWriterStatus)) {
        self.status.send_if_modified(|status| {
            change(status);
            false
        });
    }
}

impl Actor for LogWriter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.look_for_space(ctx);
        ctx.run_interval(LOOK, |writer, ctx| match ctx.connected() {
            true => writer.look_at_the_disk(ctx),
            // An interval would keep the actor alive after its last address.
            false => ctx.stop(),
        });
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        if self.appender.is_some() {
            self.close();
        }
    }
}

impl Handler<RegisterGroup> for LogWriter {
    type Result = ();

    fn handle(&mut self, registered: RegisterGroup, _: &mut Context<Self>) {
        if let (Some(room), Some(core)) = (self.room, registered.disk.upgrade()) {
            core.do_send(DiskReport::Space(room));
        }
        self.groups.insert(registered.group, registered);
    }
}

impl Handler<FromCore<Append>> for LogWriter {
    type Result = ();

    fn handle(&mut self, FromCore(append): FromCore<Append>, _: &mut Context<Self>) {
        // After a failure or while closing nothing is written: what it carried is never promised.
        if self.has_failed() || self.appender.is_none() {
            return;
        }
        self.waiting.push_back(append);
        self.pump();
        self.publish();
    }
}

/// A batch ended; from the store's thread.
#[derive(Message)]
#[rtype(result = "()")]
struct Done(Completed);

impl Handler<Done> for LogWriter {
    type Result = ();

    fn handle(&mut self, Done(Completed { batch_number, result }): Done, ctx: &mut Context<Self>) {
        match result {
            _ if self.has_failed() => {}
            // The store was closed before there was room for it, and nothing of it was promised.
            Err(StoreError::Closed(_)) if self.appender.is_none() => {}
            Ok(written) => self.persisted(batch_number, written, ctx),
            Err(error) => self.fail(&error),
        }
        self.publish();
    }
}

impl Handler<ProbeDisk> for LogWriter {
    type Result = ();

    fn handle(&mut self, ProbeDisk: ProbeDisk, ctx: &mut Context<Self>) {
        let Some(probe) = self.probe.clone() else { return self.tell(&DiskReport::Probed(Ok(()))) };
        if self.status.borrow().probing {
            return;
        }
        self.status.send_modify(|status| status.probing = true);
        let this = ctx.address().downgrade();
        let end = ProbeEnd(Some(this));
        probe.write(Box::new(move |found| end.tell(found)));
    }
}

/// The end of a probe is reported even if the code that began it is gone: otherwise there would never be another probe.
struct ProbeEnd(Option<WeakAddr<LogWriter>>);

impl ProbeEnd {
    fn tell(mut self, found: Result<Space, StoreError>) {
        self.send(found);
    }

    fn send(&mut self, found: Result<Space, StoreError>) {
        if let Some(writer) = self.0.take().and_then(|writer| writer.upgrade()) {
            writer.do_send(Looked { probe: true, found });
        }
    }
}

impl Drop for ProbeEnd {
    fn drop(&mut self) {
        self.send(Err(StoreError::Closed("the probe's thread ended without a result".to_owned())));
    }
}

/// A look at the disk ended; from the probe's thread.
#[derive(Message)]
#[rtype(result = "()")]
struct Looked {
    /// Whether it was the core's probe, and not a look for space.
    probe: bool,
    found: Result<Space, StoreError>,
}

impl Handler<Looked> for LogWriter {
    type Result = ();

    fn handle(&mut self, Looked { probe, found }: Looked, _: &mut Context<Self>) {
        match probe {
            true => self.status.send_modify(|status| status.probing = false),
            false => self.looking = false,
        }
        match &found {
            Ok(space) => {
                if !probe {
                    self.note_waiting(space.waited_rounds);
                }
                self.space(*space);
                if self.waits_for_room {
                    self.pump();
                    self.close_if_stuck();
                }
            }
            Err(error @ StoreError::Gone { .. }) if !self.has_failed() => self.fail(error),
            // If the disk cannot be checked, nothing explains why the write has not ended.
            Err(_) => self.waits_for_room = false,
        }
        if probe {
            self.tell(&DiskReport::Probed(found.map(|_| ()).map_err(|error| error.to_string())));
        }
    }
}

/// Make everything durable and close the store. Answered when it is closed.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct CloseLog;

impl Handler<CloseLog> for LogWriter {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, CloseLog: CloseLog, _: &mut Context<Self>) -> ResponseFuture<()> {
        let (sender, closed) = oneshot::channel();
        self.closing.push(sender);
        if self.has_failed() || self.appender.is_none() {
            self.close();
        } else {
            self.pump();
            self.close_if_stuck();
        }
        self.publish();
        Box::pin(async move {
            // If the thread that closes is gone, the store is closed.
            let _ = closed.await;
        })
    }
}

/// Asks for the numbers, also while a sync hangs.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "LogWriterStatus")]
pub struct GetLogWriterStatus;

impl Handler<GetLogWriterStatus> for LogWriter {
    type Result = MessageResult<GetLogWriterStatus>;

    fn handle(&mut self, GetLogWriterStatus: GetLogWriterStatus, _: &mut Context<Self>) -> Self::Result {
        self.publish();
        MessageResult(self.status.borrow().clone())
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use actorum_core::{
        log::store::{Compact, HardState, Write},
        testkit::command,
    };
    use actorum_machine::ids::Incarnation;
    use actorum_store::log::simulated::SimulatedDisk;
    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;
    use crate::testkit::{FakeCore, Heard, TestStore};

    struct Fixture {
        store: TestStore,
        writer: Addr<LogWriter>,
        _core: Addr<FakeCore>,
        heard: UnboundedReceiver<Heard>,
    }

    const DEAD: Duration = Duration::from_secs(10);

    fn registered(group: GroupId, core: &Addr<FakeCore>) -> RegisterGroup {
        RegisterGroup { group, core: core.downgrade().recipient(), disk: core.downgrade().recipient() }
    }

    fn start() -> Fixture {
        let store = TestStore::default();
        let (core, heard) = FakeCore::start_one();
        let bounds = DiskBounds { dead_after: DEAD, low_space: 1000 };
        let failed = core.downgrade().recipient();
        let writer = LogWriter::start_within(bounds, Box::new(store.clone()), failed, watch::Sender::default());
        writer.do_send(registered(GroupId::FIRST, &core));
        Fixture { store, writer, _core: core, heard }
    }

    fn entry(number: u64, index: u64) -> FromCore<Append> {
        let write = Write { entries: vec![command(index, 1, number)], ..Write::default() };
        FromCore(Append { number, write, sync: true })
    }

    fn commit(number: u64, commit: u64) -> FromCore<Append> {
        let hard_state = Some(HardState { term: 1, vote: 1, commit });
        FromCore(Append { number, write: Write { hard_state, ..Write::default() }, sync: false })
    }

    impl Fixture {
        async fn status(&self) -> LogWriterStatus {
            self.writer.send(GetLogWriterStatus).await.unwrap()
        }

        fn complete(&self) {
            let (took, sync) = (Duration::from_micros(300), Duration::from_micros(200));
            self.store.complete(Ok(Written { bytes: 10, took, sync }));
        }
    }

    #[actix::test]
    async fn what_waits_for_the_disk_becomes_one_batch() {
        let mut f = start();
        for number in 1..=4 {
            f.writer.send(entry(number, number + 1)).await.unwrap();
        }
        // The first went alone, at once; three wait, and status answers although no sync has ended.
        assert_eq!(f.store.submitted().len(), 1);
        let status = f.status().await;
        assert_eq!((status.in_flight, status.waiting, status.syncs), (1, 3, 0));
        assert!(f.heard.try_recv().is_err(), "nothing is promised before it is durable");

        f.complete();
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(1)));
        let batches = f.store.submitted();
        assert_eq!((batches.len(), batches[0].writes.len(), batches[0].sync), (1, 3, true));

        f.complete();
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(4)));
        let status = f.status().await;
        assert_eq!((status.syncs, status.entries, status.sync_us, status.append_us), (2, 4, 400, 600));
    }

    #[actix::test]
    async fn a_commit_index_rides_with_the_next_entry_and_holds_nobody_up() {
        let mut f = start();
        f.writer.send(commit(1, 5)).await.unwrap();
        f.writer.send(commit(2, 6)).await.unwrap();
        // No sync for it, and no Ready waits for it.
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(1)));
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(2)));
        assert!(f.store.submitted().is_empty());

        f.writer.send(entry(3, 7)).await.unwrap();
        let batch = f.store.submitted().remove(0);
        let commits: Vec<_> = batch.writes.iter().map(|w| w.hard_state.map(|h| h.commit)).collect();
        assert_eq!(commits, [Some(6), None], "the last commit index, before the entry");
    }

    #[actix::test]
    async fn a_commit_index_behind_an_unsynced_entry_waits_for_it() {
        let mut f = start();
        f.writer.send(entry(1, 2)).await.unwrap();
        f.writer.send(commit(2, 2)).await.unwrap();
        f.status().await;
        assert!(f.heard.try_recv().is_err(), "number 2 says that number 1 is durable, which it is not");
        f.complete();
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(1)));
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(2)));
    }

    /// In virtual time: the runtime's clock jumps when nothing else is to be done.
    #[test]
    fn a_disk_that_does_not_answer_is_a_dead_one() {
        let paused = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        System::with_tokio_rt(paused).block_on(async {
            let mut f = start();
            // A slow disk is not a dead one: each batch is looked at by itself.
            for number in 1..=3 {
                f.writer.send(entry(number, number + 1)).await.unwrap();
                tokio::time::sleep(DEAD - 2 * LOOK).await;
                f.complete();
                assert_eq!(f.heard.recv().await, Some(Heard::Persisted(number)));
            }
            f.writer.send(entry(4, 5)).await.unwrap();
            let cause = "the log writer: the store is closed: the disk has not answered for 10 s. \
                         Nothing more is written by this process; \
                         start it again once the disk can be written (if it was full: once there is room)";
            assert_eq!(f.heard.recv().await, Some(Heard::Failed(cause.into())));
            f.complete();
            f.status().await;
            assert!(f.heard.try_recv().is_err(), "what comes after that is not promised");
        });
    }

    /// In virtual time: somebody else fills the disk for as long as it pleases, and then the disk hangs.
    #[test]
    fn a_write_that_waits_for_room_makes_no_dead_disk() {
        let paused = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        System::with_tokio_rt(paused).block_on(async {
            let mut f = start();
            f.writer.send(entry(1, 2)).await.unwrap();
            let began = tokio::time::Instant::now();
            let mut waited_rounds = 0;
            while began.elapsed() < 3 * DEAD {
                if f.store.looks() {
                    waited_rounds += 1;
                    f.store.look(false, Ok(Space { waited_rounds, ..Space::default() }));
                }
                tokio::time::sleep(LOOK / 4).await;
            }
            assert_eq!(f.status().await.failed, None);
            while !f.store.looks() {
                tokio::time::sleep(LOOK / 4).await;
            }
            f.store.look(false, Ok(Space { free: 1 << 40, ..Space::default() }));
            let until = tokio::time::Instant::now() + 2 * DEAD;
            while f.status().await.failed.is_none() {
                assert!(tokio::time::Instant::now() < until, "it hangs, and nobody says so");
                tokio::time::sleep(LOOK).await;
            }
            assert!(matches!(f.heard.recv().await, Some(Heard::Disk(_))), "low on space, as it was");
        });
    }

    /// The probe has a way of its own to the disk: it ends, or fails, while a batch hangs.
    #[actix::test]
    async fn a_probe_is_told_of_while_a_batch_hangs() {
        let mut f = start();
        f.writer.send(entry(1, 2)).await.unwrap();
        f.writer.send(ProbeDisk).await.unwrap();
        f.writer.send(ProbeDisk).await.unwrap();
        assert!(f.status().await.probing);
        assert_eq!(f.store.probes(), 1, "one at a time, however often it is asked for");
        assert!(f.heard.try_recv().is_err());
        f.store.look(true, Ok(Space { free: 5000, ..Space::default() }));
        assert_eq!(f.heard.recv().await, Some(Heard::Disk(DiskReport::Probed(Ok(())))));

        f.writer.send(ProbeDisk).await.unwrap();
        f.store.look(true, Err(StoreError::Closed("no".into())));
        let failed = DiskReport::Probed(Err("the store is closed: no".into()));
        assert_eq!(f.heard.recv().await, Some(Heard::Disk(failed)));
        assert_eq!(f.status().await.in_flight, 1, "and the batch hangs still");
    }

    /// It hears of its own writes alone, and of the disk what the others know.
    #[actix::test]
    async fn a_group_registers_at_run_time() {
        let mut f = start();
        // The first look for space began with the actor.
        f.status().await;
        f.store.look(false, Ok(Space { free: 500, ..Space::default() }));
        let low = DiskReport::Space(Room { low: true, short: true, free: 500, needed: 1250, ..Room::low(true) });
        assert_eq!(f.heard.recv().await, Some(Heard::Disk(low.clone())));

        let (core, mut heard) = FakeCore::start_one();
        f.writer.send(registered(GroupId(7), &core)).await.unwrap();
        assert_eq!(heard.recv().await, Some(Heard::Disk(low)));
        let FromCore(mut append) = entry(5, 1);
        append.write.group = GroupId(7);
        f.writer.send(FromCore(append)).await.unwrap();
        f.complete();
        assert_eq!(heard.recv().await, Some(Heard::Persisted(5)));
        f.writer.send(entry(6, 1)).await.unwrap();
        f.complete();
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(6)));
        assert!(heard.try_recv().is_err() && f.heard.try_recv().is_err());
    }

    /// In virtual time: a look each second, and an answer that does not flicker at the mark.
    #[test]
    fn space_is_low_below_the_mark_and_enough_only_well_above_it() {
        let paused = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        System::with_tokio_rt(paused).block_on(async {
            let mut f = start();
            // Short below 2000, low below 1000; enough again a quarter above. Of the reserve 300 are missing in the
            // end, which are made first: nobody may fill those.
            let cases = [
                (2000, 300, None),
                (1999, 300, Some((false, true, 1000))),
                (1000, 300, None),
                (999, 300, Some((true, true, 1250))),
                (999, 300, None),
                (1249, 300, Some((true, true, 1250))),
                (1250, 300, Some((false, true, 1000))),
                (2499, 300, None),
                (2500, 300, Some((false, false, 1000))),
                (2299, 0, Some((false, true, 1300))),
                (1299, 0, Some((true, true, 1550))),
            ];
            for (free, reserve, said) in cases {
                while !f.store.looks() {
                    tokio::time::sleep(LOOK / 2).await;
                }
                f.store.look(false, Ok(Space { free, reserve, reserve_wanted: 300, ..Space::default() }));
                let status = f.status().await;
                assert_eq!((status.free_bytes, status.reserve_bytes), (Some(free), reserve));
                let heard = f.heard.try_recv().ok();
                let room = |(low, short, needed)| {
                    Heard::Disk(DiskReport::Space(Room { low, short, free, needed, ..Room::low(low) }))
                };
                assert_eq!(heard, said.map(room), "at {free} bytes");
            }
            // The core waits for room that is being made, and hears when that has ended.
            for being_made in [true, false] {
                while !f.store.looks() {
                    tokio::time::sleep(LOOK / 2).await;
                }
                let (free, needed) = (1299, 1550);
                f.store.look(false, Ok(Space { free, reserve_wanted: 300, being_made, ..Space::default() }));
                f.status().await;
                let room = Room { free, needed, being_made, ..Room::low(true) };
                assert_eq!(f.heard.try_recv().ok(), Some(Heard::Disk(DiskReport::Space(room))));
            }
            // A look that hangs is not followed by another.
            while !f.store.looks() {
                tokio::time::sleep(LOOK / 2).await;
            }
            tokio::time::sleep(LOOK * 5).await;
            f.store.look(false, Ok(Space { free: 1, ..Space::default() }));
            f.status().await;
            assert!(!f.store.looks(), "one at a time");
        });
    }

    /// No time passes: the core waits to hear what a cut has given back.
    #[actix::test]
    async fn a_log_that_was_cut_is_looked_at_at_once() {
        let mut f = start();
        f.status().await;
        f.store.look(false, Ok(Space { free: 1 << 40, ..Space::default() }));
        f.writer.send(entry(1, 2)).await.unwrap();
        f.complete();
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(1)));
        assert!(!f.store.looks(), "a few bytes can wait for the next look");
        let compact = Some(Compact { snapshots: Vec::new(), up_to: 1 });
        f.writer
            .send(FromCore(Append { number: 2, write: Write { compact, ..Write::default() }, sync: true }))
            .await
            .unwrap();
        assert!(!f.store.looks(), "it is not durable yet");
        f.complete();
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(2)));
        assert!(f.store.looks());
    }

    #[actix::test]
    async fn a_failed_sync_is_final() {
        let mut f = start();
        f.writer.send(entry(1, 2)).await.unwrap();
        f.writer.send(entry(2, 3)).await.unwrap();
        let error = Arc::new(io::Error::other("no space left on device"));
        f.store.complete(Err(StoreError::Io { doing: "syncing db".into(), error }));
        let cause = "the log writer: syncing db failed: no space left on device. Nothing more is written by this \
                     process; start it again once the disk can be written (if it was full: once there is room)";
        assert_eq!(f.heard.recv().await, Some(Heard::Failed(cause.into())));
        f.writer.send(entry(3, 4)).await.unwrap();
        let status = f.status().await;
        assert_eq!((status.failed.as_deref(), status.waiting), (Some(cause), 0));
        assert!(f.store.submitted().is_empty(), "nothing is written after a failure");
        assert!(f.heard.try_recv().is_err(), "nothing is promised after a failure");
    }

    #[actix::test]
    async fn closing_makes_what_waits_durable_first() {
        let mut f = start();
        f.writer.send(entry(1, 2)).await.unwrap();
        f.writer.send(commit(2, 2)).await.unwrap();
        let closed = actix::spawn(f.writer.send(CloseLog));
        f.status().await;
        assert!(!f.store.closed());
        f.complete();
        assert_eq!(f.heard.recv().await, Some(Heard::Persisted(1)));
        while f.store.submitted().is_empty() {
            tokio::task::yield_now().await;
        }
        f.complete();
        closed.await.unwrap().unwrap();
        assert!(f.store.closed());
    }

    /// In virtual time: a write that waits for room is what "low" means, however much is free, and a compaction is not
    /// held up by it.
    #[test]
    fn a_write_that_waits_for_room_is_low_space() {
        let paused = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        System::with_tokio_rt(paused).block_on(async {
            let mut f = start();
            f.writer.send(entry(1, 2)).await.unwrap();
            assert_eq!(f.store.submitted().len(), 1);
            let compact = |number| {
                let compact = Some(Compact { snapshots: Vec::new(), up_to: 1 });
                FromCore(Append { number, write: Write { compact, ..Write::default() }, sync: true })
            };
            f.writer.send(entry(2, 3)).await.unwrap();
            f.writer.send(compact(3)).await.unwrap();
            let mut free = 0;
            let mut look = async |f: &Fixture, waited_rounds| {
                while !f.store.looks() {
                    tokio::time::sleep(LOOK / 4).await;
                }
                free += 5000;
                f.store.look(false, Ok(Space { free, waited_rounds, needed: 70_000, ..Space::default() }));
                f.status().await
            };
            assert!(!look(&f, 0).await.low);
            assert_eq!(f.store.submitted().len(), 1, "one batch at a time");
            let status = look(&f, 1).await;
            assert_eq!((status.low, status.short, status.needed_bytes), (true, true, 70_000));
            let room = Room { low: true, short: true, free: 10_000, needed: 70_000, waits: true, being_made: false };
            assert_eq!(f.heard.try_recv().ok(), Some(Heard::Disk(DiskReport::Space(room))));
            let batches = f.store.submitted();
            assert_eq!((batches.len(), batches[1].writes.len()), (2, 2), "the compaction, and what comes before it");
            f.writer.send(entry(4, 4)).await.unwrap();
            assert_eq!((f.store.submitted().len(), f.status().await.in_flight), (2, 3), "no compaction, so it waits");
            f.complete();
            assert_eq!(f.heard.recv().await, Some(Heard::Persisted(1)));
            f.complete();
            assert_eq!(f.heard.recv().await, Some(Heard::Persisted(3)));
            assert_eq!(f.store.submitted().len(), 1);
            let status = look(&f, 1).await;
            assert_eq!((status.low, status.short, status.needed_bytes), (false, false, 1000));
        });
    }

    /// In virtual time: what waits for room is given up, before the look that says so and after it.
    #[test]
    fn closing_does_not_wait_for_room() {
        let paused = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        for known_before in [true, false] {
            System::with_tokio_rt(paused).block_on(async {
                let mut f = start();
                f.writer.send(entry(1, 2)).await.unwrap();
                let look = async |waited_rounds| {
                    while !f.store.looks() {
                        tokio::time::sleep(LOOK / 4).await;
                    }
                    f.store.look(false, Ok(Space { free: 1 << 40, waited_rounds, ..Space::default() }));
                    f.status().await;
                };
                look(0).await;
                if known_before {
                    look(1).await;
                }
                let closed = actix::spawn(f.writer.send(CloseLog));
                if !known_before {
                    f.status().await;
                    look(0).await;
                    assert!(!f.store.closed(), "a batch in flight on a disk with room is waited for");
                    look(1).await;
                }
                closed.await.unwrap().unwrap();
                assert!(f.store.closed());
                f.store.complete(Err(StoreError::Closed("it was closed before there was room on the disk".into())));
                assert_eq!(f.status().await.failed, None);
                while let Ok(heard) = f.heard.try_recv() {
                    let low = matches!(heard, Heard::Disk(DiskReport::Space(_)));
                    assert!(low, "nothing is promised, and closing in order is no failure: {heard:?}");
                }
            });
        }
    }

    #[actix::test]
    async fn the_store_closes_when_the_last_address_goes() {
        let f = start();
        drop(f.writer);
        while !f.store.closed() {
            tokio::task::yield_now().await;
        }
    }

    /// The log writer, and a subscriber's reader, over the simulated disk: not one call goes to a blocking thread.
    #[test]
    fn no_call_needs_a_thread_that_may_block() {
        let one_blocking_thread =
            || tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        let (free, taken) = std::sync::mpsc::channel::<()>();
        System::with_tokio_rt(one_blocking_thread).block_on(async move {
            // The only such thread is taken: whoever asked for one would wait for ever.
            let occupied = tokio::task::spawn_blocking(move || taken.recv());
            let disk = SimulatedDisk::new(Arc::new(()));
            let store = disk.open(1, Incarnation(7)).unwrap();
            let reader = store.reader();
            assert!(!reader.blocks());
            let (core, mut heard) = FakeCore::start_one();
            let writer = LogWriter::start(store, core.downgrade().recipient(), Default::default());
            writer.do_send(registered(GroupId::FIRST, &core));
            let write = Write { entries: (1..=3).map(|index| command(index, 1, index)).collect(), ..Write::default() };
            writer.send(FromCore(Append { number: 1, write, sync: true })).await.unwrap();
            assert_eq!(heard.recv().await, Some(Heard::Persisted(1)));
            let closed = tokio::time::timeout(Duration::from_secs(20), writer.send(CloseLog)).await;
            closed.expect("closing needs no thread").unwrap();
            assert!(!disk.is_open());
            free.send(()).unwrap();
            occupied.await.unwrap().unwrap();
        });
    }
}
