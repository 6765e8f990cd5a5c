//! The snapshot manager: lets snapshots be built, fetches those that this node is offered, and serves those that it
//! offers to others.
//!
//! ```text
//!  core ──BuildSnapshot─┐                          ┌─ on a thread ─▶ GroupSnapshots::build ──SnapshotBuilt──▶ core
//!  TakeSnapshot ────────┴──CaptureState──▶ applier ──WriteSnapshot─┘
//!
//!  core ──FetchSnapshot──▶ Read, Read, Read, Read ══▶ the peer's manager      at most a window of them under way
//!                          pieces ─▶ Receiving ─▶ verified, durable ──SnapshotFetched──▶ core
//!
//!  a peer's Read ──▶ [place? rate?] ─▶ GroupSnapshots::read ─▶ Piece              PeerFetches ─▶ core: a sign of life
//!  core ──SnapshotsKept──▶ other files go; who asked for a snapshot hears that it is durable
//! ```
//!
//! A node that needs a snapshot pulls it, piece by piece. So the question for the next piece acknowledges the one
//! before, a transfer resumes where its file ends, whichever side was away, and the serving side has nothing to
//! remember or to clean up.
//!
//! Its queues: a window of four bounds the pieces asked for and not written; the transport bounds the questions of
//! peers for each link; `MAX_WAITING` bounds the callers that wait for a snapshot, and the next caller is told to ask
//! again. No call here waits for a disk: such calls run on threads.
//!
//! Deliberately absent: deciding when to build, what to offer, and when to give up on a peer: the core does.

mod fetch;
mod serve;

use std::{
    collections::BTreeMap,
    io::{self, Read},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::{WeakRecipient, prelude::*};
use actorum_core::{
    debug_fields,
    snapshot::SnapshotError,
    system_state::SystemState,
    wire::{Snapshot, SnapshotFile},
};
use actorum_machine::{
    ids::{GroupId, NodeId},
    outcome::TakeSnapshotError,
    status::{SnapshotTaken, Snapshots, Transfer},
};
use actorum_store::snapshot::{GroupSnapshots, store::Content};
use actorum_transport::message::Ask;
use tokio::sync::{oneshot, watch};

use super::rate_limiter::RateLimiter;
use crate::{
    clock::Clock,
    message::{
        BuildSnapshot, CaptureState, CapturedState, PeerFetches, SnapshotBuilt, SnapshotFetched, SnapshotsKept,
        WriteSnapshot,
    },
};
use fetch::Fetching;
use serve::{Serving, Worked};

/// How long one piece may take before it is asked for again; half the timeout if that is less.
const PIECE_WITHIN: Duration = Duration::from_secs(5);

/// How many callers may wait for a snapshot at a time. At the bound the next one is told to ask again.
const MAX_WAITING: usize = 1024;

/// A file that was read completely and found good is not read again for so long, even if a peer reports that it cannot
/// use it.
const SOUND_FOR: Duration = Duration::from_secs(3600);

/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(250);

/// Its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManagerBounds {
    /// How many peers are sent snapshots at once. Others are told to ask again.
    pub max_sends: usize,
    /// Bytes per second that are sent to all of them together; zero for no bound.
    pub rate: u64,
    /// How many bytes are asked for at once; at most [`MAX_PIECE`](actorum_core::wire::MAX_PIECE).
    pub piece: u32,
    /// After so long without a new byte a transfer has failed. What came is kept.
    pub timeout: Duration,
}

/// The actors that the snapshot manager talks to. It holds no strong address of an actor above it.
#[derive(Clone, Debug)]
pub struct ManagerLinks {
    /// The applier.
    pub capture: WeakRecipient<CaptureState>,
    /// The core.
    pub built: WeakRecipient<SnapshotBuilt>,
    /// The core.
    pub fetched: WeakRecipient<SnapshotFetched>,
    /// The core.
    pub peer_fetches: WeakRecipient<PeerFetches>,
    /// The transport.
    pub ask: Recipient<Ask>,
}

/// The actor; see the module.
pub struct SnapshotManager {
    group: GroupId,
    snapshots: GroupSnapshots,
    bounds: ManagerBounds,
    clock: Arc<dyn Clock>,
    links: ManagerLinks,
    /// The snapshots that this node starts from, by what is durable.
    kept: Vec<Snapshot>,
    building: Option<Building>,
    /// The callers that wait for the snapshot under way.
    waiting: Vec<Waiting>,
    /// The callers that asked after it had begun: what was applied by then is in the next snapshot.
    waiting_next: Vec<Waiting>,
    /// The index of a snapshot whose file here turned out damaged.
    damaged: Option<u64>,
    /// When a file may be read completely again because a peer cannot use it; `None` while it is being read.
    checks: Option<Duration>,
    /// The index of a snapshot that was found good, and until when that counts.
    sound: Option<(u64, Duration)>,
    /// Whether a thread is removing files that are not kept, and whether it has to run again.
    sweeping: bool,
    sweep_again: bool,
    fetching: Option<Fetching>,
    /// The snapshot that was fetched and is not restored yet: its sender, its index, and its file.
    installing: Option<(NodeId, u64, SnapshotFile)>,
    /// When its sender was last told that this goes on.
    signed: Duration,
    /// Counts questions, so that an answer to a question of an earlier transfer is ignored.
    next_question: u64,
    serving: BTreeMap<NodeId, Serving>,
    /// The progress of peers that work on what they were sent; one for each peer that ever did.
    working: BTreeMap<NodeId, Worked>,
    rate_limiter: RateLimiter,
    status: watch::Sender<Snapshots>,
}

debug_fields!(SnapshotManager { group, bounds, damaged, installing, sweeping });

type Waiting = oneshot::Sender<Result<SnapshotTaken, TakeSnapshotError>>;

/// A snapshot under way: first the applier is asked for its state, then that is written, then the core records it.
struct Building {
    index: u64,
    since: Duration,
    written: Arc<AtomicU64>,
    /// Built, and not recorded yet.
    done: Option<SnapshotTaken>,
}

impl SnapshotManager {
    /// A manager of these files of a group, of which the node starts from `kept`.
    pub fn new(
        snapshots: GroupSnapshots,
        kept: Vec<Snapshot>,
        bounds: ManagerBounds,
        clock: Arc<dyn Clock>,
        links: ManagerLinks,
        status: watch::Sender<Snapshots>,
    ) -> SnapshotManager {
        let manager = SnapshotManager {
            group: snapshots.group(),
            snapshots,
            bounds,
            clock,
            links,
            kept,
            building: None,
            waiting: Vec::new(),
            waiting_next: Vec::new(),
            damaged: None,
            checks: Some(Duration::ZERO),
            sound: None,
            sweeping: false,
            sweep_again: false,
            fetching: None,
            installing: None,
            signed: Duration::ZERO,
            next_question: 1,
            serving: BTreeMap::new(),
            working: BTreeMap::new(),
            rate_limiter: RateLimiter::default(),
            status,
        };
        manager.hold_room();
        manager.publish();
        manager
    }

    /// The reserve must also have room for the next snapshot, which will be about as large as the newest.
    fn hold_room(&self) {
        self.snapshots.hold_snapshot(self.kept.last().map_or(0, |newest| taken(newest).bytes));
    }

    /// Runs work that may wait for a disk on a thread, and handles its result here.
    fn off_thread<T: Send + 'static>(
        &mut self,
        ctx: &mut Context<Self>,
        work: impl FnOnce(&GroupSnapshots) -> Result<T, SnapshotError> + Send + 'static,
        then: impl FnOnce(&mut Self, Result<T, SnapshotError>, &mut Context<Self>) + 'static,
    ) {
        let snapshots = self.snapshots.clone();
        if !snapshots.blocks() {
            let result = work(&snapshots);
            return then(self, result, ctx);
        }
        #[allow(clippy::disallowed_methods, reason = "only for a snapshot store that blocks")]
        let task = tokio::task::spawn_blocking(move || work(&snapshots));
        ctx.spawn(task.into_actor(self).map(move |ended, manager, ctx| {
            let panicked = |error| SnapshotError(format!("the thread that did it ended: {error}"));
            then(manager, ended.unwrap_or_else(|error| Err(panicked(error))), ctx);
        }));
    }

    // ---- building ------------------------------------------------------------------------------------------

    fn begin(&mut self) {
        if self.building.is_some() {
            return;
        }
        let since = self.clock.now();
        self.building = Some(Building { index: 0, since, written: Arc::default(), done: None });
        match self.links.capture.upgrade() {
            Some(applier) => applier.do_send(CaptureState),
            None => self.not_built("the applier is gone".to_owned()),
        }
    }

    fn write(&mut self, CapturedState { index, term, system, machine }: CapturedState, ctx: &mut Context<Self>) {
        let Some(building) = &mut self.building else { return };
        let holds = |newest: &&Snapshot| newest.index >= index && self.damaged != Some(newest.index);
        if let Some(newest) = self.kept.last().filter(holds).cloned() {
            // Nothing was applied since the last snapshot, so that one is the answer.
            return self.is_built(newest);
        }
        building.index = index;
        let written = building.written.clone();
        // What this founder learned while the cluster was formed is copied from snapshot to snapshot, but not into
        // another cluster.
        let founding = self.kept.last().filter(|_| system.recovered_at == 0);
        let formed_with = founding.and_then(|newest| SystemState::formed_with(newest).ok()).unwrap_or_default();
        let content = Content { index, term, system, formed_with, state: machine };
        // The size is not known in advance: about as large as the last snapshot.
        let expected = self.kept.last().map_or(0, |newest| taken(newest).bytes);
        self.off_thread(
            ctx,
            move |snapshots| {
                snapshots.build_of(expected, content, &mut |bytes| written.store(bytes, Ordering::Relaxed))
            },
            move |manager, result, _| match result {
                Ok(snapshot) => {
                    manager.status.send_modify(|status| status.built += 1);
                    manager.damaged.take_if(|damaged| *damaged <= index);
                    manager.is_built(snapshot);
                }
                Err(error) => manager.not_built(error.to_string()),
            },
        );
    }

    /// The core records it; only then the waiting callers are answered.
    fn is_built(&mut self, snapshot: Snapshot) {
        if let Some(building) = &mut self.building {
            building.done = Some(taken(&snapshot));
        }
        if let Some(core) = self.links.built.upgrade() {
            core.do_send(SnapshotBuilt(Ok(snapshot)));
        }
        self.publish();
    }

    fn not_built(&mut self, cause: String) {
        self.building = None;
        self.say(format!("a snapshot could not be built: {cause}"));
        for waiting in mem::take(&mut self.waiting) {
            let _ = waiting.send(Err(TakeSnapshotError::Failed { cause: cause.clone() }));
        }
        if let Some(core) = self.links.built.upgrade() {
            core.do_send(SnapshotBuilt(Err(cause)));
        }
        self.publish();
        self.begin_next();
    }

    /// The next snapshot, for the callers that asked too late for the one that has just ended.
    fn begin_next(&mut self) {
        if !self.waiting_next.is_empty() {
            self.waiting = mem::take(&mut self.waiting_next);
            self.begin();
        }
    }

    fn keep(&mut self, kept: Vec<Snapshot>, ctx: &mut Context<Self>) {
        self.kept = kept;
        self.hold_room();
        let newest = self.kept.last().map_or(0, |newest| newest.index);
        // It is restored; or the core says in this way that it was of no use.
        self.installing = None;
        if self.building.as_ref().is_some_and(|b| b.done.is_some_and(|done| done.index <= newest)) {
            self.building = None;
            let newest = self.kept.last().map(taken).filter(|taken| taken.bytes > 0);
            for waiting in mem::take(&mut self.waiting) {
                let _ = waiting.send(newest.ok_or(TakeSnapshotError::Nothing));
            }
            self.begin_next();
        }
        self.publish();
        self.sweep(ctx);
    }

    /// Removes the files of all snapshots but the kept ones. One sweep runs at a time, and always with the newest list:
    /// a sweep with an older list would remove what has been installed since.
    fn sweep(&mut self, ctx: &mut Context<Self>) {
        if self.sweeping {
            self.sweep_again = true;
            return;
        }
        self.sweeping = true;
        let kept = self.kept.clone();
        self.off_thread(
            ctx,
            move |snapshots| snapshots.keep(&kept),
            |manager, result, ctx| {
                manager.sweeping = false;
                if let Err(error) = result {
                    manager.say(format!("old snapshots could not be removed: {error}"));
                }
                if mem::take(&mut manager.sweep_again) {
                    manager.sweep(ctx);
                }
            },
        );
    }

    /// A peer could not use a snapshot of this node. If the file is damaged here, another snapshot must be built:
    /// otherwise the damaged one would be offered and refused for ever, and this node could not start from it either.
    fn check(&mut self, index: u64, ctx: &mut Context<Self>) {
        let (now, timeout) = (self.clock.now(), self.bounds.timeout);
        let Some(snapshot) = self.kept.iter().find(|kept| kept.index == index).cloned() else { return };
        // The file is not read completely for every report of a peer.
        let sound = self.sound.is_some_and(|(sound, until)| sound == index && now < until);
        if sound || self.checks.take_if(|from| now >= *from).is_none() {
            return;
        }
        self.off_thread(
            ctx,
            move |snapshots| snapshots.verify(&snapshot),
            move |manager, result, _| {
                let now = manager.clock.now();
                manager.checks = Some(now + timeout);
                match result {
                    Ok(()) => manager.sound = Some((index, now + SOUND_FOR)),
                    Err(error) => {
                        let problem = "is damaged here, and another one is taken";
                        manager.say(format!("the snapshot at {index} {problem}: {error}"));
                        manager.damaged = Some(index);
                        manager.begin();
                    }
                }
            },
        );
    }

    /// How long a piece may take before it is asked for again.
    fn piece_within(&self) -> Duration {
        PIECE_WITHIN.min(self.bounds.timeout / 2)
    }

    // ---- what is shown -------------------------------------------------------------------------------------

    /// Checks what is under way, and whether it makes progress.
    fn look(&mut self, ctx: &mut Context<Self>) {
        let (now, timeout) = (self.clock.now(), self.bounds.timeout);
        self.serving.retain(|_, serving| serving.is_alive(now, timeout));
        self.look_at_fetching(now, ctx);
        self.publish();
    }

    fn say(&self, what: String) {
        // Logged once: the same error again is no news, and the next attempt is under way.
        match self.status.borrow().last_error.as_ref() == Some(&what) {
            true => tracing::debug!("{what}"),
            false => tracing::warn!("{what}"),
        }
        self.status.send_modify(|status| status.last_error = Some(what));
    }

    fn publish(&self) {
        let now = self.clock.now();
        let building = self.building.as_ref().map(|Building { index, since, written, .. }| {
            let bytes = written.load(Ordering::Relaxed);
            Transfer { index: *index, bytes, total: 0, rate: rate((*since, 0), now, bytes) }
        });
        let receiving: BTreeMap<_, _> = self.fetching.iter().map(|fetching| fetching.shown(now)).collect();
        let sending: BTreeMap<_, _> = self.serving.iter().map(|(peer, serving)| (*peer, serving.shown(now))).collect();
        let newest = self.kept.last().map(taken).filter(|taken| taken.bytes > 0);
        self.status.send_if_modified(|status| {
            let shown = Snapshots { newest, building, receiving, sending, ..status.clone() };
            let changed = *status != shown;
            *status = shown;
            changed
        });
    }
}

/// Bytes per second since a moment at which there were so many.
fn rate((since, from): (Duration, u64), now: Duration, bytes: u64) -> u64 {
    let seconds = now.saturating_sub(since).as_secs_f64();
    if seconds > 0.0 { (bytes.saturating_sub(from) as f64 / seconds) as u64 } else { 0 }
}

fn taken(snapshot: &Snapshot) -> SnapshotTaken {
    let bytes = SystemState::of(snapshot).ok().and_then(|(_, file)| file).map_or(0, |file| file.bytes);
    SnapshotTaken { index: snapshot.index, term: snapshot.term, bytes }
}

impl Actor for SnapshotManager {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(SHOWN_EVERY, |manager, ctx| match ctx.connected() {
            true => manager.look(ctx),
            // An interval would keep the actor alive after its last address.
            false => ctx.stop(),
        });
    }
}

impl Handler<BuildSnapshot> for SnapshotManager {
    type Result = ();

    fn handle(&mut self, BuildSnapshot: BuildSnapshot, _: &mut Context<Self>) {
        self.begin();
    }
}

/// Take a snapshot of what is applied by now. Answered when it is durable. If one is under way, the next one is taken
/// after it for this request.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "Result<SnapshotTaken, TakeSnapshotError>")]
pub struct TakeSnapshot;

impl Handler<TakeSnapshot> for SnapshotManager {
    type Result = ResponseFuture<Result<SnapshotTaken, TakeSnapshotError>>;

    fn handle(&mut self, TakeSnapshot: TakeSnapshot, _: &mut Context<Self>) -> Self::Result {
        if self.waiting.len() + self.waiting_next.len() >= MAX_WAITING {
            let cause = format!("{MAX_WAITING} requests wait for a snapshot already: ask again when they have it");
            return Box::pin(async { Err(TakeSnapshotError::Failed { cause }) });
        }
        let (reply, answer) = oneshot::channel();
        match self.building {
            // Its state may be from before what this caller has seen applied.
            Some(_) => self.waiting_next.push(reply),
            None => {
                self.waiting.push(reply);
                self.begin();
            }
        }
        let stopped = || TakeSnapshotError::Stopped { cause: "it stopped before the snapshot was durable".to_owned() };
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(stopped())) })
    }
}

/// The log is closed, so nothing becomes durable any more: the callers that wait for a snapshot are told so.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct StopSnapshotManager;

impl Handler<StopSnapshotManager> for SnapshotManager {
    type Result = ();

    fn handle(&mut self, StopSnapshotManager: StopSnapshotManager, ctx: &mut Context<Self>) {
        // Their slots are dropped, which answers them.
        self.waiting.clear();
        self.waiting_next.clear();
        ctx.stop();
    }
}

impl Handler<WriteSnapshot> for SnapshotManager {
    type Result = ();

    fn handle(&mut self, WriteSnapshot(captured): WriteSnapshot, ctx: &mut Context<Self>) {
        match captured {
            Ok(captured) => self.write(captured, ctx),
            Err(cause) => self.not_built(cause),
        }
    }
}

impl Handler<SnapshotsKept> for SnapshotManager {
    type Result = ();

    fn handle(&mut self, SnapshotsKept(kept): SnapshotsKept, ctx: &mut Context<Self>) {
        self.keep(kept, ctx);
    }
}

/// Open the file of the newest snapshot, to be read as a whole.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "Result<Backup, TakeSnapshotError>")]
pub struct OpenNewest;

/// The file of a snapshot, as it lies on the disk. It can be read to its end even if the node has removed the file
/// meanwhile.
///
/// Reading may wait for the disk: do it where that is allowed.
pub struct Backup {
    /// What it covers, and its size.
    pub taken: SnapshotTaken,
    /// Its identity: length and hash.
    pub file: SnapshotFile,
    bytes: Box<dyn Read + Send>,
}

debug_fields!(Backup { taken, file });

impl Read for Backup {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(into)
    }
}

impl Handler<OpenNewest> for SnapshotManager {
    type Result = Result<Backup, TakeSnapshotError>;

    fn handle(&mut self, OpenNewest: OpenNewest, _: &mut Context<Self>) -> Self::Result {
        // Opening one file that this node keeps: no bytes of it are read here.
        let newest = self.kept.last().and_then(|newest| Some((newest, SystemState::of(newest).ok()?.1?)));
        let Some((newest, file)) = newest else { return Err(TakeSnapshotError::Nothing) };
        let failed = |error: SnapshotError| TakeSnapshotError::Failed { cause: error.to_string() };
        let bytes = self.snapshots.raw(newest.index, &file).map_err(failed)?;
        Ok(Backup { taken: taken(newest), file, bytes })
    }
}

#[cfg(test)]
mod tests;
