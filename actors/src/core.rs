//! The actor around the pure core: takes messages in, carries effects out, and decides nothing.
//!
//! ```text
//!  Submit, SubmitRead, SubmitChange ─┐                       ┌─▶ Append ─────▶ log writer
//!  Received, Asked, Answered ────────┼─▶ Consensus ─▶ Effects┼─▶ Transmit, Ask ▶ transport
//!  Persisted, AppliedTo, ... ────────┘        ▲              └─▶ Apply, ... ───▶ applier
//!                                  one Drain serves all that waited
//! ```
//!
//! Batching comes from load: the first input notifies a `Drain`, which runs when the mailbox has been read. Under a
//! flood of messages it may not run at all. So a handler drains in place if it finds a full batch, or if the first
//! input is a millisecond old. Without that, a leader with too many proposals would not send its heartbeats. A drain in
//! place takes no tick: an election or a check of the quorum waits until the mailbox was read to its end.
//!
//! Queue: the mailbox. Proposals in it hold admission permits. Reports are bounded, since each answers a request of
//! this actor. The transport bounds what peers send.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use actix::{WeakRecipient, prelude::*};
use actorum_core::{
    consensus::{Consensus, CoreStatus, Effects, Moment},
    debug_fields,
    entry::EncodedCommand,
    log::store::LogReader,
    message::{Append, FetchSnapshot, LeaderChanged, ReplyHandle, RequestOutcome},
    observer::{Drained, MaybeObserver},
    panics::panic_message,
    wire::{Refusal, Request, Response, Snapshot},
};
use actorum_machine::{
    condition::Reason,
    ids::GroupId,
    machine,
    members::{Change, ChangeRequest},
};
use actorum_transport::message::{Answered, Ask, Asked, Received, Responder, Transmit, Unreachable};
use tokio::sync::watch;

use crate::{
    clock::Clock,
    log::read::read_entries,
    message::{
        AppliedTo, Apply, BuildSnapshot, Campaign, ClocksRead, DiskReport, EntriesRead, Failed, FromCore, PeerFeatures,
        PeerFetches, Persisted, ProbeDisk, ProposeMark, ProposeVersions, Restore, ServeReads, SnapshotBuilt,
        SnapshotFetched, SnapshotsKept, Submit, SubmitChange, SubmitRead, SystemChanged,
    },
};

/// A batch this large is drained without waiting for the mailbox to be empty.
const FULL_BATCH: usize = 256;
/// A batch whose first input waits this long is drained, too.
const STALE_BATCH: Duration = Duration::from_millis(1);
/// The clock is read at least this often in each tick.
const LOOKS_PER_TICK: u32 = 4;

/// Makes a reply handle for a peer's request of so many bytes; gives the slot back, with the reason, when it is not
/// admitted.
pub type Admit<T> = Box<dyn Fn(Responder, usize) -> Result<T, (Responder, Refusal)> + Send>;

/// Checks that a command a peer forwards can be decoded here: what is proposed must be applicable.
pub type Check = fn(&EncodedCommand) -> Result<(), String>;

/// The actors that the core talks to. It holds the addresses of those below it, and weak recipients of those above it.
pub struct Links<T: ReplyHandle> {
    /// The log writer.
    pub append: Recipient<FromCore<Append>>,
    /// The log writer.
    pub probe: Recipient<ProbeDisk>,
    /// Reads the log behind the core's memory.
    pub reader: Arc<dyn LogReader>,
    /// The applier.
    pub apply: Recipient<Apply<T>>,
    /// The applier.
    pub reads: Recipient<ServeReads<T>>,
    /// The applier.
    pub restore: Recipient<Restore>,
    /// The snapshot manager.
    pub build: Recipient<BuildSnapshot>,
    /// The snapshot manager.
    pub fetch: Recipient<FromCore<FetchSnapshot>>,
    /// The snapshot manager.
    pub kept: Recipient<SnapshotsKept>,
    /// The transport.
    pub transmit: Recipient<Transmit>,
    /// The transport.
    pub ask: Recipient<Ask>,
    /// The actors that want to know the leader.
    pub leader_changed: Vec<WeakRecipient<FromCore<LeaderChanged>>>,
    /// The parent.
    pub failed: WeakRecipient<Failed>,
    /// Where the latest numbers are shown.
    pub status: watch::Sender<CoreStatus>,
    /// Makes reply handles for peers' requests.
    pub admit: Admit<T>,
    /// Checks forwarded commands.
    pub check: Check,
    /// Watches every drain; only in simulations.
    pub observer: MaybeObserver,
}

debug_fields!(Links<T: ReplyHandle> {});

/// The Raft core of one group, as an actor.
pub struct RaftCore<T: ReplyHandle> {
    group: GroupId,
    tick: Duration,
    consensus: Consensus<T>,
    clock: Arc<dyn Clock>,
    links: Links<T>,
    /// Inputs since the last drain, and when the first of them came.
    waiting: usize,
    waiting_since: Duration,
    notified: bool,
    shown_at: Duration,
    stopped: Option<String>,
}

debug_fields!(RaftCore<T: ReplyHandle> { group, consensus, waiting, stopped });

impl<T: ReplyHandle> RaftCore<T> {
    /// A core that begins to tick when it is started.
    pub fn new(
        group: GroupId,
        tick: Duration,
        consensus: Consensus<T>,
        clock: Arc<dyn Clock>,
        links: Links<T>,
    ) -> Self {
        let now = clock.now();
        RaftCore {
            group,
            tick,
            consensus,
            clock,
            links,
            waiting: 0,
            waiting_since: now,
            notified: false,
            shown_at: now,
            stopped: None,
        }
    }

    /// One more input waits for a drain.
    fn drain_soon(&mut self, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        if self.waiting == 0 {
            self.waiting_since = now;
        }
        self.waiting += 1;
        if self.waiting >= FULL_BATCH || now.saturating_sub(self.waiting_since) >= STALE_BATCH {
            self.drain_without_tick(ctx);
        } else if !self.notified {
            self.notified = true;
            ctx.notify(Drain);
        }
    }

    /// Serves everything that waited. actix runs this when it has emptied the mailbox.
    fn drain(&mut self, ctx: &mut Context<Self>) {
        self.waiting = 0;
        let moment = self.moment();
        if let Some(effects) = self.guarded(|core| core.consensus.drain(moment)) {
            self.carry_out(effects, ctx);
        }
    }

    /// The same during a flood, with messages still in the mailbox.
    fn drain_without_tick(&mut self, ctx: &mut Context<Self>) {
        self.waiting = 0;
        let moment = self.moment();
        if let Some(effects) = self.guarded(|core| core.consensus.drain_without_tick(moment)) {
            self.carry_out(effects, ctx);
        }
    }

    fn moment(&self) -> Moment {
        Moment { now: self.clock.now(), wall: self.clock.wall() }
    }

    /// Runs a piece of the core. A panic of raft-rs ends this system, not the process.
    fn guarded<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> Option<R> {
        if self.stopped.is_some() {
            return None;
        }
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(result) => Some(result),
            Err(panic) => {
                self.stop(format!("the raft core panicked: {}", panic_message(&*panic)));
                None
            }
        }
    }

    /// The effects in the order that the promises need: the disk and the peers first, in parallel.
    fn carry_out(&mut self, effects: Effects<T>, ctx: &mut Context<Self>) {
        if let Some(observer) = &self.links.observer {
            let Effects { append, transmit, apply, restore, .. } = &effects;
            let (raft_state, voters) = (self.consensus.raft_state(), || self.consensus.voters());
            let apply = &mut apply.iter().map(|committed| &committed.entry);
            let restore = restore.as_ref().map(|snapshot| (snapshot.index, snapshot.term));
            let sends = || self.consensus.sends();
            let low_space = self.consensus.is_low_on_space();
            let (voters, sends) = (&voters, &sends);
            observer.drained(Drained { raft_state, append, transmit, apply, restore, voters, sends, low_space });
        }
        let Effects {
            append,
            probe,
            read,
            transmit,
            asks,
            restore,
            build,
            fetch,
            kept,
            apply,
            reads,
            answers,
            leader,
            fault,
        } = effects;
        append.into_iter().for_each(|append| self.links.append.do_send(FromCore(append)));
        if probe {
            self.links.probe.do_send(ProbeDisk);
        }
        for read in read {
            read_entries(self.links.reader.clone(), read, ctx.address().downgrade().recipient());
        }
        if !transmit.is_empty() {
            self.links.transmit.do_send(Transmit { group: self.group, messages: transmit });
        }
        for question in asks {
            let reply_to = ctx.address().downgrade().recipient();
            let (id, to, request, timeout) = (question.id, question.to, question.request, question.timeout);
            self.links.ask.do_send(Ask { id, group: self.group, to, request, timeout, reply_to });
        }
        // The restore is sent before files are removed, because it needs one of them.
        restore.into_iter().for_each(|snapshot| self.links.restore.do_send(Restore(snapshot)));
        kept.into_iter().for_each(|kept| self.links.kept.do_send(SnapshotsKept(kept)));
        fetch.into_iter().for_each(|fetch| self.links.fetch.do_send(FromCore(fetch)));
        if build {
            self.links.build.do_send(BuildSnapshot);
        }
        if !apply.is_empty() {
            self.links.apply.do_send(Apply(apply));
        }
        let served: Vec<_> = reads.into_iter().filter_map(|(at, reply)| Some((at, reply.confirmed(at)?))).collect();
        if !served.is_empty() {
            self.links.reads.do_send(ServeReads(served));
        }
        answers.into_iter().for_each(|(reply, answer)| reply.answer(answer));
        if let Some(changed) = leader {
            self.links
                .leader_changed
                .iter()
                .filter_map(WeakRecipient::upgrade)
                .for_each(|who| who.do_send(FromCore(changed)));
        }
        self.show(leader.is_some());
        if let Some(cause) = fault {
            self.stop(cause);
        }
    }

    /// Shows the latest numbers: at once when the leader changed, else at most once per millisecond.
    fn show(&mut self, at_once: bool) {
        let now = self.clock.now();
        if at_once || now.saturating_sub(self.shown_at) >= Duration::from_millis(1) {
            self.shown_at = now;
            if let Some(status) = self.guarded(|core| core.consensus.status()) {
                self.links.status.send_replace(status);
            }
        }
    }

    /// The core cannot go on: every request ends with the cause, and the parent is told.
    fn stop(&mut self, cause: String) {
        if self.end(&cause)
            && let Some(parent) = self.links.failed.upgrade()
        {
            let diverged = self.consensus.is_contradicted();
            let reason = if diverged { Reason::Diverged } else { Reason::Stopped };
            parent.do_send(Failed { reason, cause });
        }
    }

    /// Every request ends with the cause, and nothing is sent any more; false if that had happened before.
    fn end(&mut self, cause: &str) -> bool {
        if self.stopped.is_some() {
            return false;
        }
        self.stopped = Some(cause.to_owned());
        let answers = catch_unwind(AssertUnwindSafe(|| self.consensus.abandon(cause))).unwrap_or_default();
        answers.into_iter().for_each(|(reply, answer)| reply.answer(answer));
        true
    }

    /// A request that came after the end: it was admitted, so it is answered "unknown".
    fn turn_away(&self, reply: T) {
        let cause = self.stopped.clone().unwrap_or_default();
        reply.answer(RequestOutcome::Unknown { cause });
    }

    /// A peer's request is handled like one of a client of this node. But if this node does not lead, it answers at
    /// once with the leader, and does not forward the request.
    fn serve(&mut self, request: Request, responder: Responder) {
        let now = self.clock.now();
        let within = |remaining_ms: u64| now.saturating_add(Duration::from_millis(remaining_ms));
        let refuse = |responder: Responder, refusal| responder.answer(Response::Refused(refusal));
        let invalid = |cause: String| Refusal::Invalid { cause };
        match request {
            Request::Propose { data, remaining_ms } => {
                let encoded = EncodedCommand::received(&data).map_err(|e| e.to_string());
                // If a peer could propose a system command, every node would obey it, or stop.
                let encoded = encoded.and_then(|encoded| match encoded.is_command() {
                    true => (self.links.check)(&encoded).map(|()| encoded),
                    false => Err("only commands of the application are forwarded".into()),
                });
                match (encoded, (self.links.admit)(responder, data.len())) {
                    (Ok(encoded), Ok(reply)) => self.consensus.submit_for_peer(encoded, reply, within(remaining_ms)),
                    (Err(cause), Ok(reply)) => reply.answer(RequestOutcome::Refused(invalid(cause))),
                    (_, Err((responder, refusal))) => refuse(responder, refusal),
                }
            }
            Request::ReadIndex { remaining_ms } => match (self.links.admit)(responder, 0) {
                Ok(reply) => self.consensus.read_for_peer(reply, within(remaining_ms)),
                Err((responder, refusal)) => refuse(responder, refusal),
            },
            Request::Change { data, remaining_ms, force } => {
                match (machine::decode::<Change>(&data), (self.links.admit)(responder, data.len())) {
                    (Ok(change), Ok(reply)) => {
                        let change = ChangeRequest { change, force };
                        self.consensus.change_for_peer(change, reply, within(remaining_ms));
                    }
                    (Err(error), Ok(reply)) => reply.answer(RequestOutcome::Refused(invalid(error.to_string()))),
                    (_, Err((responder, refusal))) => refuse(responder, refusal),
                }
            }
            Request::Formation(_)
            | Request::Snapshot(_)
            | Request::Clock
            | Request::Marks { .. }
            | Request::Activate => refuse(responder, invalid("that is asked of another actor".into())),
        }
    }
}

impl<T: ReplyHandle> Actor for RaftCore<T> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.tick / LOOKS_PER_TICK, |core, ctx| match ctx.connected() {
            true => core.drain(ctx),
            // An interval keeps its actor alive; here no other address of this actor is left.
            false => ctx.stop(),
        });
        self.drain(ctx);
    }
}

/// Serves everything that waited.
#[derive(Message)]
#[rtype(result = "()")]
struct Drain;

impl<T: ReplyHandle> Handler<Drain> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, Drain: Drain, ctx: &mut Context<Self>) {
        self.notified = false;
        self.drain(ctx);
    }
}

impl<T: ReplyHandle> Handler<Submit<T>> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, Submit { encoded, reply, deadline }: Submit<T>, ctx: &mut Context<Self>) {
        if self.stopped.is_some() {
            return reply.into_iter().for_each(|reply| self.turn_away(reply));
        }
        self.guarded(|core| core.consensus.submit(encoded, reply, deadline));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<SubmitRead<T>> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, SubmitRead { reply, deadline }: SubmitRead<T>, ctx: &mut Context<Self>) {
        if self.stopped.is_some() {
            return self.turn_away(reply);
        }
        self.guarded(|core| core.consensus.read(reply, deadline));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<SubmitChange<T>> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, SubmitChange { change, reply, deadline }: SubmitChange<T>, ctx: &mut Context<Self>) {
        if self.stopped.is_some() {
            return self.turn_away(reply);
        }
        self.guarded(|core| core.consensus.change(change, reply, deadline));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<ProposeMark> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, ProposeMark { restart }: ProposeMark, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.propose_mark(restart));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<ProposeVersions> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, ProposeVersions(command): ProposeVersions, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.propose_versions(&command));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<Campaign> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, Campaign: Campaign, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.campaign());
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<Persisted> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, Persisted { number, .. }: Persisted, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.persisted(number));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<EntriesRead> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, EntriesRead { peer, from, result }: EntriesRead, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.entries_read(peer, from, result));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<DiskReport> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, report: DiskReport, ctx: &mut Context<Self>) {
        self.guarded(|core| match report {
            DiskReport::Probed(result) => core.consensus.disk_probed(result),
            DiskReport::Space(room) => core.consensus.disk_space(room),
        });
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<AppliedTo> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, AppliedTo { index }: AppliedTo, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.applied_to(index));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<SnapshotBuilt> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, SnapshotBuilt(result): SnapshotBuilt, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.snapshot_built(result));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<SnapshotFetched> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, SnapshotFetched { snapshot, result }: SnapshotFetched, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.snapshot_fetched(&snapshot, result));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<PeerFetches> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, PeerFetches { peer, index, gave_up }: PeerFetches, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.peer_fetches(peer, index, gave_up));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<SystemChanged> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, SystemChanged { state, .. }: SystemChanged, _: &mut Context<Self>) {
        self.guarded(|core| {
            core.consensus.versions_changed(state.versions.clone());
            core.consensus.membership_changed(state.membership.clone());
        });
    }
}

impl<T: ReplyHandle> Handler<PeerFeatures> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, message: PeerFeatures, _: &mut Context<Self>) {
        let PeerFeatures { peer, features, machine_version } = message;
        self.guarded(|core| core.consensus.peer_features(peer, features, machine_version));
    }
}

impl<T: ReplyHandle> Handler<ClocksRead> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, ClocksRead(clocks): ClocksRead, _: &mut Context<Self>) {
        self.guarded(|core| core.consensus.clocks_read(clocks));
    }
}

impl<T: ReplyHandle> Handler<Received> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, Received { from, messages, .. }: Received, ctx: &mut Context<Self>) {
        for message in messages {
            self.guarded(|core| core.consensus.step(from, message));
        }
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<Asked> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, Asked { request, responder, .. }: Asked, ctx: &mut Context<Self>) {
        if let Some(cause) = &self.stopped {
            return responder.answer(Response::Refused(Refusal::Stopped { cause: cause.clone() }));
        }
        self.guarded(|core| core.serve(request, responder));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<Answered> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, Answered { id, result, .. }: Answered, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.answered(id, result));
        self.drain_soon(ctx);
    }
}

impl<T: ReplyHandle> Handler<Unreachable> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, Unreachable { peer, .. }: Unreachable, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.unreachable(peer));
        self.drain_soon(ctx);
    }
}

/// Every founder is as new as this node: begin with this snapshot.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct Form(pub Snapshot);

impl<T: ReplyHandle> Handler<Form> for RaftCore<T> {
    type Result = ();

    fn handle(&mut self, Form(genesis): Form, ctx: &mut Context<Self>) {
        self.guarded(|core| core.consensus.form(genesis));
        self.drain_soon(ctx);
    }
}

/// Stop deciding, with this cause: every request ends, and nothing leaves this actor any more.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct Stop {
    /// Why.
    pub cause: String,
}

impl<T: ReplyHandle> Handler<Stop> for RaftCore<T> {
    type Result = ();

    /// The parent asked for it, so it is not reported to the parent as a failure.
    fn handle(&mut self, Stop { cause }: Stop, _: &mut Context<Self>) {
        self.end(&cause);
    }
}

/// Asks a core for its numbers.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "Option<CoreStatus>")]
pub struct GetCoreStatus;

impl<T: ReplyHandle> Handler<GetCoreStatus> for RaftCore<T> {
    type Result = Option<CoreStatus>;

    fn handle(&mut self, GetCoreStatus: GetCoreStatus, _: &mut Context<Self>) -> Option<CoreStatus> {
        self.guarded(|core| core.consensus.status())
    }
}
