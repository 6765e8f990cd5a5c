//! The applier: owns the state machine, and gives the answers.
//!
//! ```text
//!  core ──Apply──▶ replica ─┬─▶ the waiting slot: the typed response
//!                           ├─▶ subscribers
//!                           ├──SystemChanged──▶ core, membership manager
//!                           └──AppliedTo──▶ core, once per batch
//!  core ──ServeReads──▶ waiting by index ──▶ served as soon as that index is applied
//! ```
//!
//! A panic of the application's code, or a committed command that cannot be decoded, breaks the replica for good: the
//! applier sends `Failed` to `RaftSystem`, admission closes with the cause, every slot here is dropped and so answered
//! with that cause, and nothing is applied after it.
//!
//! The core bounds its mailbox: past `max_unapplied_bytes` of committed entries the core takes no more of them. The
//! reads that wait hold admission permits. Deliberately absent: any wait, and any decision about the log.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::{Deref, DerefMut},
    sync::Arc,
};

use actix::{WeakRecipient, prelude::*};
use actorum_core::{
    debug_fields,
    log::store::LogReader,
    message::{Committed, LeaderChanged, ReplyHandle, RequestOutcome},
    replica::{ApplyError, ApplyResult, Replayed, Replica, caught},
    system_state::SystemChange,
    versions::Versions,
    wire::{ChangeRefusal, Refusal},
};
use actorum_machine::{
    event::Event,
    ids::{ClusterId, GroupId},
    machine::{self, StateMachine},
    members::Membership,
    outcome::SubscribeError,
};
use actorum_store::snapshot::GroupSnapshots;
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    admission::Admission,
    message::{
        AppliedTo, Apply, CaptureState, CapturedState, Failed, FromCore, MarkEvent, Restore, ServeReads, SystemChanged,
        WriteSnapshot,
    },
    reply_slot::ReplySlot,
    subscribers::{BufferBounds, SubscribeFrom, Subscribers, Subscription, Unsubscribe, View},
};

/// The actors that the applier reports to. The recipients are weak: the applier owns none of them.
#[derive(Clone, Debug)]
pub struct ApplierLinks {
    /// The core.
    pub applied_to: WeakRecipient<AppliedTo>,
    /// The snapshot manager.
    pub captured: WeakRecipient<WriteSnapshot>,
    /// The actors that need to know the members.
    pub system_changed: Vec<WeakRecipient<SystemChanged>>,
    /// The consistency checker.
    pub marks: WeakRecipient<MarkEvent>,
    /// The actor `RaftSystem`.
    pub failed: WeakRecipient<Failed>,
}

/// What an applier starts with, besides the state.
pub struct ApplierConfig {
    /// Whose log it applies.
    pub group: GroupId,
    /// For subscribers that ask for the past.
    pub reader: Arc<dyn LogReader>,
    /// The files of the group's snapshots.
    pub snapshots: GroupSnapshots,
    /// How much may wait for one subscriber.
    pub subscriber_bounds: BufferBounds,
    /// A mark is due when so many entries were applied since the last one.
    pub hash_check_entries: u64,
    /// Closed by the applier when it breaks.
    pub admission: Arc<Admission>,
    /// Where its numbers appear.
    pub status: watch::Sender<ApplierStatus>,
}

debug_fields!(ApplierConfig { group, subscriber_bounds, hash_check_entries });

/// Its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplierStatus {
    /// The last index applied.
    pub applied: u64,
    /// Commands applied since the start.
    pub commands: u64,
    /// Reads that wait for their index.
    pub waiting_reads: usize,
    /// Subscribers.
    pub subscribers: usize,
    /// The cluster, once it is known.
    pub cluster: Option<ClusterId>,
    /// The membership as of the index applied.
    pub membership: Arc<Membership>,
    /// What is announced and in use, as of the index applied.
    pub versions: Arc<Versions>,
    /// The last thing that went wrong, even if the applier went on.
    pub last_error: Option<String>,
}

/// The actor; see the module.
pub struct Applier<S: StateMachine> {
    replica: Lent<Replica<S>>,
    snapshots: GroupSnapshots,
    /// Confirmed reads by the index that they wait for; each holds an admission permit, which bounds their number.
    reads: BTreeMap<u64, Vec<ReplySlot<S>>>,
    subscribers: Subscribers<S>,
    commands: u64,
    hash_check_entries: u64,
    /// The index of the last mark, or of the last word that one is due.
    marked: u64,
    links: ApplierLinks,
    admission: Arc<Admission>,
    status: watch::Sender<ApplierStatus>,
    broken: bool,
}

debug_fields!(Applier<S: StateMachine> { commands, hash_check_entries, marked, broken });

impl<S: StateMachine> Applier<S> {
    /// An applier of what [`replay`](actorum_core::replica::replay) rebuilt.
    pub fn new(config: ApplierConfig, links: ApplierLinks, start: Replayed<S>) -> Applier<S> {
        let ApplierConfig { group, reader, snapshots, subscriber_bounds, hash_check_entries, admission, status } =
            config;
        let mut subscribers = Subscribers::new(group, reader, start.replica.times(), subscriber_bounds);
        subscribers.set_cluster(start.replica.system().map(|system| system.cluster));
        let marked = start.marks.last().map_or(start.snapshot_index, |mark| mark.index);
        let applier = Applier {
            replica: Lent(Some(start.replica)),
            snapshots,
            reads: BTreeMap::new(),
            subscribers,
            commands: 0,
            hash_check_entries,
            marked,
            links,
            admission,
            status,
            broken: false,
        };
        applier.publish();
        applier
    }

    /// Applies one entry and answers the request that waits for it. On an error the slot stays where it is, so that the
    /// caller drops it once the cause is known.
    fn apply(&mut self, Committed { entry, reply }: &mut Committed<ReplySlot<S>>) -> Result<(), ApplyError> {
        let (index, term) = (entry.index, entry.term);
        match self.replica.apply(entry)? {
            // A slot here waits for another kind of entry: dropping it answers "unknown".
            ApplyResult::Nothing => drop(reply.take()),
            ApplyResult::Command { command, response } => {
                self.commands += 1;
                if !self.subscribers.is_empty()
                    && let Some(system) = self.replica.system()
                {
                    let bytes = entry.size() + encoded_len(&response);
                    let (command, told) = (Arc::new(command), Arc::new(response.clone()));
                    self.subscribers.command((index, term, system.time()), bytes, &command, &told);
                }
                if let Some(slot) = reply.take() {
                    slot.applied(index, term, response);
                }
            }
            ApplyResult::Mark { mark, restart } => {
                drop(reply.take());
                self.marked = index;
                self.tell_mark(MarkEvent::Applied { mark, restart });
            }
            ApplyResult::System { changed } => self.system_applied(index, changed, reply.take()),
        }
        Ok(())
    }

    fn system_applied(&mut self, index: u64, changed: SystemChange, reply: Option<ReplySlot<S>>) {
        match changed {
            SystemChange::Nothing => {}
            SystemChange::Versions => self.tell_system(index),
            SystemChange::Membership => {
                self.tell_system(index);
                self.tell_subscribers(index);
            }
        }
        let (Some(slot), Some(system)) = (reply, self.replica.system()) else { return };
        if changed == SystemChange::Membership {
            slot.changed(&system.membership);
        } else {
            // The leader checked it before proposing, so this is a leader of another version; all nodes ignore it.
            let cause = "the change made no sense when it was applied, and was ignored";
            slot.answer(RequestOutcome::Refused(Refusal::Change(ChangeRefusal::invalid(cause))));
        }
    }

    fn restored(&mut self, index: u64, restored: Result<(), ApplyError>) {
        if let Err(error) = restored {
            return self.fail(&error);
        }
        self.subscribers.set_cluster(self.replica.system().map(|system| system.cluster));
        self.subscribers.installed(index);
        self.tell_mark(MarkEvent::Replaced);
        self.tell_system(index);
        self.tell_subscribers(index);
        self.report_applied();
    }

    /// The system state changed: the actors that need it are told before they are told that the index is applied.
    fn tell_system(&mut self, index: u64) {
        let Some(system) = self.replica.system() else { return };
        let state = Arc::new(system.clone());
        self.subscribers.set_cluster(Some(state.cluster));
        for link in self.links.system_changed.iter().filter_map(WeakRecipient::upgrade) {
            link.do_send(SystemChanged { index, state: state.clone() });
        }
    }

    /// The members changed.
    fn tell_subscribers(&mut self, index: u64) {
        let Some(system) = self.replica.system() else { return };
        let membership = system.membership.clone();
        self.subscribers.event(&Event::MembershipChanged { index, membership });
    }

    fn tell_mark(&self, event: MarkEvent) {
        if let Some(checker) = self.links.marks.upgrade() {
            checker.do_send(event);
        }
    }

    /// Once for so many entries: the present leader proposes a mark, or the next leader does.
    fn mark_if_due(&mut self) {
        let applied = self.replica.applied();
        if self.hash_check_entries > 0 && applied.saturating_sub(self.marked) >= self.hash_check_entries {
            self.marked = applied;
            self.tell_mark(MarkEvent::Due);
        }
    }

    /// One report per batch, so the core's mailbox is bounded by the batches it handed out.
    fn report_applied(&mut self) {
        self.serve_due();
        self.publish();
        self.mark_if_due();
        if let Some(core) = self.links.applied_to.upgrade() {
            core.do_send(AppliedTo { index: self.replica.applied() });
        }
    }

    fn serve_due(&mut self) {
        let applied = self.replica.applied();
        while let Some(due) = self.reads.first_entry().filter(|first| *first.key() <= applied) {
            due.remove().into_iter().for_each(|slot| self.serve(slot));
        }
    }

    /// A panic in the closure of a read ends only that read, since the closure cannot change the state.
    fn serve(&mut self, slot: ReplySlot<S>) {
        let Applier { replica, subscribers, .. } = self;
        if let Err(panic) = replica.look(|applied, machine| slot.serve(View { applied, machine, subscribers })) {
            tracing::error!(%panic, "a read ended without an answer");
            self.status.send_modify(|status| status.last_error = Some(panic.to_string()));
        }
    }

    /// The state cannot be trusted any more.
    fn fail(&mut self, error: &ApplyError) {
        let cause = format!("the applier: {error}");
        // `RaftSystem`, which stops for this, logs it.
        tracing::debug!(%error, "this node stops applying");
        self.broken = true;
        // Closed before the slots are dropped, so that each of them tells its client this cause.
        self.admission.close(cause.clone());
        self.reads.clear();
        self.status.send_modify(|status| status.last_error = Some(cause.clone()));
        if let Some(front_door) = self.links.failed.upgrade() {
            front_door.do_send(Failed::broken(cause));
        }
    }

    fn publish(&self) {
        let system = self.replica.system();
        self.status.send_modify(|status| {
            status.applied = self.replica.applied();
            status.commands = self.commands;
            status.waiting_reads = self.reads.values().map(Vec::len).sum();
            status.subscribers = self.subscribers.len();
            if let Some(system) = system {
                status.cluster = Some(system.cluster);
                status.membership = system.membership.clone();
                status.versions = system.versions.clone();
            }
        });
    }
}

impl<S: StateMachine> Actor for Applier<S> {
    type Context = Context<Self>;
}

impl<S: StateMachine> Handler<Apply<ReplySlot<S>>> for Applier<S> {
    type Result = ();

    fn handle(&mut self, Apply(batch): Apply<ReplySlot<S>>, _: &mut Context<Self>) {
        if self.broken {
            return;
        }
        for mut committed in batch {
            let index = committed.entry.index;
            // Cloning and encoding a response is the application's code, too.
            let answering = || format!("answering {index}");
            if let Err(error) = caught(answering, || self.apply(&mut committed)).flatten() {
                // Before this slot and those behind it are dropped.
                return self.fail(&error);
            }
        }
        self.report_applied();
    }
}

impl<S: StateMachine> Handler<ServeReads<ReplySlot<S>>> for Applier<S> {
    type Result = ();

    fn handle(&mut self, ServeReads(reads): ServeReads<ReplySlot<S>>, _: &mut Context<Self>) {
        if self.broken {
            return;
        }
        let before = self.subscribers.len();
        for (index, slot) in reads {
            match index <= self.replica.applied() {
                true => self.serve(slot),
                false => self.reads.entry(index).or_default().push(slot),
            }
        }
        if self.subscribers.len() != before {
            self.publish();
        }
    }
}

impl<S: StateMachine> Handler<Restore> for Applier<S> {
    type Result = ();

    /// Where the snapshot store may block, a thread restores. This actor handles nothing else until the thread has
    /// ended, but its arbiter goes on.
    fn handle(&mut self, Restore(snapshot): Restore, ctx: &mut Context<Self>) {
        if self.broken {
            return;
        }
        let (index, snapshots) = (snapshot.index, self.snapshots.clone());
        if !snapshots.blocks() {
            let restored = self.replica.restore(&snapshot, &snapshots);
            return self.restored(index, restored);
        }
        let mut replica = self.replica.take();
        #[allow(clippy::disallowed_methods, reason = "only for a snapshot store that blocks")]
        let thread = tokio::task::spawn_blocking(move || {
            let restored = replica.restore(&snapshot, &snapshots);
            (replica, restored)
        });
        ctx.wait(thread.into_actor(self).map(move |ended, applier, ctx| match ended {
            Ok((replica, restored)) => {
                applier.replica = Lent(Some(replica));
                applier.restored(index, restored);
            }
            // Panics of the application's code are caught where it runs, so here the runtime itself is ending.
            Err(_) => ctx.stop(),
        }));
    }
}

impl<S: StateMachine> Handler<CaptureState> for Applier<S> {
    type Result = ();

    /// Nothing is applied while the machine captures its state; the view is written elsewhere.
    fn handle(&mut self, CaptureState: CaptureState, _: &mut Context<Self>) {
        let captured = match self.broken {
            true => Err("the applier has stopped".to_owned()),
            false => self.replica.capture().map_err(|error| error.to_string()).map(|(index, term, system, machine)| {
                // As at every index: what the machine holds is what was applied up to it.
                CapturedState { index, term, system, machine }
            }),
        };
        if let Some(manager) = self.links.captured.upgrade() {
            manager.do_send(WriteSnapshot(captured));
        }
    }
}

/// How many bytes a response would have, encoded; what cannot be encoded counts as nothing.
fn encoded_len<T: Serialize>(value: &T) -> usize {
    struct Counted(usize);
    impl Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    let _ = machine::encode_to(value, &mut counted);
    counted.0
}

/// A value that is always here, except while a thread works on it, when no other code can ask for it.
struct Lent<T>(Option<T>);

impl<T> Lent<T> {
    fn take(&mut self) -> T {
        self.0.take().expect(AWAY)
    }
}

impl<T> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(AWAY)
    }
}

impl<T> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(AWAY)
    }
}

/// Why it cannot be away.
const AWAY: &str = "the actor handles nothing while its replica is away";

impl<S: StateMachine> Handler<FromCore<LeaderChanged>> for Applier<S> {
    type Result = ();

    fn handle(&mut self, FromCore(LeaderChanged { leader, term, .. }): FromCore<LeaderChanged>, _: &mut Context<Self>) {
        self.subscribers.leads(leader, term);
    }
}

impl<S: StateMachine> Handler<SubscribeFrom<S>> for Applier<S> {
    type Result = Result<Subscription, SubscribeError>;

    fn handle(&mut self, subscribe: SubscribeFrom<S>, _: &mut Context<Self>) -> Self::Result {
        if let Some(cause) = self.broken.then(|| self.admission.closed()).flatten() {
            return Err(SubscribeError::Stopped { cause });
        }
        let subscription = self.subscribers.subscribe(subscribe, self.replica.applied());
        self.publish();
        subscription
    }
}

impl<S: StateMachine> Handler<Unsubscribe> for Applier<S> {
    type Result = ();

    fn handle(&mut self, Unsubscribe(subscription): Unsubscribe, _: &mut Context<Self>) {
        self.subscribers.unsubscribe(subscription);
        self.publish();
    }
}

/// Drop what waits and stop. Pending requests are answered when their slots are dropped.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct StopApplier;

impl<S: StateMachine> Handler<StopApplier> for Applier<S> {
    type Result = ();

    fn handle(&mut self, StopApplier: StopApplier, ctx: &mut Context<Self>) {
        self.reads.clear();
        ctx.stop();
    }
}

#[cfg(test)]
mod tests {
    use actorum_core::{
        entry::{ChangeId, SystemCommand},
        log::store::{HardState, Recovered},
        replica::replay,
        testkit::{Sum, change, command, empty, founded, genesis},
        wire::Entry,
    };
    use actorum_machine::{
        event::Events,
        ids::Address,
        members::Change,
        outcome::{Applied, ProposeError, ReadError},
        position::After,
        status::Role,
    };
    use actorum_store::snapshot::{SnapshotStore, store::Content};
    use tokio::sync::{
        mpsc::{self, UnboundedReceiver},
        oneshot,
    };

    use super::*;
    use crate::{
        reply_slot::Look,
        subscribers::{Subscriber, Wants},
        testkit::{FakeCore, Heard, TestStore},
    };

    struct Fixture {
        applier: Addr<Applier<Sum>>,
        admission: Arc<Admission>,
        snapshots: GroupSnapshots,
        store: TestStore,
        _core: Addr<FakeCore>,
        heard: UnboundedReceiver<Heard>,
    }

    /// An applier that has replayed these entries, the first of which has index 2.
    fn start(entries: Vec<Entry>, events: usize) -> Fixture {
        start_bounded(entries, BufferBounds { events, bytes: usize::MAX })
    }

    fn start_bounded(entries: Vec<Entry>, subscriber_bounds: BufferBounds) -> Fixture {
        let last_index = entries.last().map_or(1, |entry| entry.index);
        let hard_state = HardState { term: 1, vote: 1, commit: last_index };
        let snapshot = Some(genesis());
        let store = TestStore::with_entries(entries);
        let snapshots = Vec::from_iter(snapshot);
        let recovered = Recovered { snapshots, hard_state, last_index, terms: vec![(1, 1)], sizes: Vec::new() };
        let files = SnapshotStore::memory().of(GroupId::FIRST);
        let replayed = replay(GroupId::FIRST, &store, &recovered, &files, Sum::default()).unwrap();
        let (core, heard) = FakeCore::start_one();
        let links = ApplierLinks {
            applied_to: core.downgrade().recipient(),
            captured: core.downgrade().recipient(),
            system_changed: vec![core.downgrade().recipient()],
            marks: core.downgrade().recipient(),
            failed: core.downgrade().recipient(),
        };
        let admission = Admission::new(100, 1000);
        let config = ApplierConfig {
            group: GroupId::FIRST,
            reader: Arc::new(store.clone()),
            snapshots: files.clone(),
            subscriber_bounds,
            hash_check_entries: 0,
            admission: admission.clone(),
            status: watch::Sender::default(),
        };
        Fixture {
            applier: Applier::new(config, links, replayed).start(),
            admission,
            snapshots: files,
            store,
            _core: core,
            heard,
        }
    }

    type Answered<T, E> = oneshot::Receiver<Result<T, E>>;

    impl Fixture {
        fn proposal(&self) -> (ReplySlot<Sum>, Answered<Applied<u64>, ProposeError>) {
            let (reply, answer) = oneshot::channel();
            (ReplySlot::propose(reply, self.admission.try_admit(1).unwrap()), answer)
        }

        fn read(&self) -> (ReplySlot<Sum>, Answered<(u64, u64), ReadError>) {
            let (sender, answer) = oneshot::channel();
            let look: Look<Sum> = Box::new(move |state| {
                let _ = sender.send(state.map(|view| (view.applied, view.machine.total)));
            });
            (ReplySlot::read(look, self.admission.try_admit(0).unwrap()), answer)
        }

        async fn apply(&self, entries: Vec<Entry>) {
            let batch = entries.into_iter().map(|entry| Committed { entry, reply: None }).collect();
            self.applier.send(Apply(batch)).await.unwrap();
        }
    }

    /// Writes down what it is told. Each event is handled once the test lets it.
    struct Listener {
        told: mpsc::UnboundedSender<String>,
        gate: Option<Arc<tokio::sync::Semaphore>>,
    }

    impl Listener {
        fn open() -> (Addr<Listener>, UnboundedReceiver<String>) {
            let (told, heard) = mpsc::unbounded_channel();
            (Listener { told, gate: None }.start(), heard)
        }

        fn gated() -> (Addr<Listener>, UnboundedReceiver<String>, Arc<tokio::sync::Semaphore>) {
            let (told, heard) = mpsc::unbounded_channel();
            let gate = Arc::new(tokio::sync::Semaphore::new(0));
            (Listener { told, gate: Some(gate.clone()) }.start(), heard, gate)
        }
    }

    fn line(event: &Event<Sum>) -> String {
        match event {
            Event::Applied { index, command, response, .. } => {
                format!("#{index} +{command} = {}", response.as_ref().map_or("?".into(), |r| r.to_string()))
            }
            Event::LeadershipChanged { leader, term } => format!("leader {leader:?} in {term}"),
            Event::MembershipChanged { index, membership } => format!("#{index} {membership}"),
            Event::SnapshotInstalled { index, .. } => format!("#{index} snapshot"),
            Event::Lagged { resume_after, .. } => format!("lagged, resume after {resume_after}"),
            other => format!("{other:?}"),
        }
    }

    impl Actor for Listener {
        type Context = Context<Self>;
    }

    impl Handler<Event<Sum>> for Listener {
        type Result = AtomicResponse<Self, ()>;
        fn handle(&mut self, event: Event<Sum>, _: &mut Context<Self>) -> Self::Result {
            let (told, gate) = (self.told.clone(), self.gate.clone());
            AtomicResponse::new(Box::pin(
                async move {
                    if let Some(gate) = gate {
                        gate.acquire().await.unwrap().forget();
                    }
                    let _ = told.send(line(&event));
                }
                .into_actor(self),
            ))
        }
    }

    impl Handler<Events<Sum>> for Listener {
        type Result = ();
        fn handle(&mut self, Events(events): Events<Sum>, _: &mut Context<Self>) {
            let lines: Vec<_> = events.iter().map(line).collect();
            let _ = self.told.send(lines.join("; "));
        }
    }

    fn subscribe(listener: &Addr<Listener>, after: Option<u64>) -> SubscribeFrom<Sum> {
        let after = after.map_or(After::Now, After::Index);
        SubscribeFrom { subscriber: Subscriber::Single(listener.clone().recipient()), after, wants: Wants::Everything }
    }

    #[actix::test]
    async fn a_batch_is_applied_answered_and_reported_once() {
        let mut f = start(vec![empty(2, 1)], 8);
        let (slot, answer) = f.proposal();
        let batch = vec![
            Committed { entry: command(3, 1, 10), reply: None },
            Committed { entry: command(4, 1, 30), reply: Some(slot) },
            Committed { entry: empty(5, 2), reply: None },
        ];
        f.applier.send(Apply(batch)).await.unwrap();
        assert_eq!(answer.await.unwrap(), Ok(Applied { index: 4, term: 1, response: 40 }));
        assert_eq!(f.heard.recv().await, Some(Heard::AppliedTo(5)));
        assert!(f.heard.try_recv().is_err());
    }

    #[actix::test]
    async fn a_read_waits_for_its_index() {
        let f = start(vec![command(2, 1, 10)], 8);
        let ((early, now), (late, mut later)) = (f.read(), f.read());
        f.applier.send(ServeReads(vec![(2, early), (3, late)])).await.unwrap();
        assert_eq!(now.await.unwrap(), Ok((2, 10)));
        assert!(later.try_recv().is_err(), "index 3 is not applied yet");
        f.apply(vec![command(3, 1, 30)]).await;
        assert_eq!(later.await.unwrap(), Ok((3, 40)));
    }

    #[actix::test]
    async fn a_change_is_answered_with_its_membership_and_told_before_its_index() {
        let mut f = start(vec![], 8);
        let (listener, mut told) = Listener::open();
        f.applier.send(subscribe(&listener, None)).await.unwrap().unwrap();
        let (reply, answer) = oneshot::channel();
        let slot = ReplySlot::change(reply, f.admission.try_admit(0).unwrap());
        let id = ChangeId { node: 1, boot: 1, number: 1 };
        let add = SystemCommand::Change { id, change: Change::AddLearner(4, Address::from("n4")), forced: false };
        let committed = Committed { entry: change(2, 1, &add), reply: Some(slot) };
        f.applier.send(Apply(vec![committed])).await.unwrap();
        assert_eq!(answer.await.unwrap().unwrap().learners(), [4]);
        assert_eq!(f.heard.recv().await, Some(Heard::Changed(2, "voters 1, learners 4".into())));
        assert_eq!(f.heard.recv().await, Some(Heard::AppliedTo(2)));
        assert_eq!(told.recv().await.unwrap(), "#2 voters 1, learners 4");
    }

    #[actix::test]
    async fn a_panic_answers_everything_pending_with_its_cause_and_ends_all_work() {
        let mut f = start(vec![], 8);
        let ((first, one), (second, two), (third, three), (read, four)) =
            (f.proposal(), f.proposal(), f.proposal(), f.read());
        f.applier.send(ServeReads(vec![(9, read)])).await.unwrap();
        let batch = vec![
            Committed { entry: command(2, 1, 10), reply: Some(first) },
            Committed { entry: command(3, 1, 666), reply: Some(second) },
            Committed { entry: command(4, 1, 10), reply: Some(third) },
        ];
        f.applier.send(Apply(batch)).await.unwrap();
        assert_eq!(one.await.unwrap().unwrap().response, 10);
        for answer in [two, three] {
            let error = answer.await.unwrap().unwrap_err();
            let ProposeError::Unknown { cause } = &error else { panic!("{error}") };
            assert!(cause.starts_with("the applier: the state machine panicked applying 3@1: "), "{cause}");
        }
        assert!(matches!(four.await.unwrap(), Err(ReadError::Stopped { .. })));
        let Some(Heard::Failed(cause)) = f.heard.recv().await else { panic!("RaftSystem hears of it first") };
        assert!(cause.contains("panicked applying 3@1"), "{cause}");

        f.apply(vec![command(4, 1, 10)]).await;
        assert!(f.heard.try_recv().is_err(), "nothing is applied to a state that cannot be trusted");
        assert!(f.admission.closed().is_some());
    }

    #[actix::test]
    async fn a_panicking_read_hurts_nobody_else() {
        let f = start(vec![command(2, 1, 10)], 8);
        let look: Look<Sum> = Box::new(|_| panic!("a client's error"));
        let (bad, (good, answer)) = (ReplySlot::read(look, f.admission.try_admit(0).unwrap()), f.read());
        f.applier.send(ServeReads(vec![(2, bad), (2, good)])).await.unwrap();
        assert_eq!(answer.await.unwrap(), Ok((2, 10)));
        assert_eq!(f.admission.in_flight(), (0, 0));
    }

    #[actix::test]
    async fn a_waiting_node_starts_from_the_genesis_it_is_sent() {
        let (core, mut heard) = FakeCore::start_one();
        let links = ApplierLinks {
            applied_to: core.downgrade().recipient(),
            captured: core.downgrade().recipient(),
            system_changed: vec![core.downgrade().recipient()],
            marks: core.downgrade().recipient(),
            failed: core.downgrade().recipient(),
        };
        let reader = Arc::new(TestStore::default());
        let snapshots = SnapshotStore::memory().of(GroupId::FIRST);
        let replayed = replay(GroupId::FIRST, &*reader, &Recovered::default(), &snapshots, Sum::default()).unwrap();
        let config = ApplierConfig {
            group: GroupId::FIRST,
            reader,
            snapshots,
            subscriber_bounds: BufferBounds { events: 8, bytes: usize::MAX },
            hash_check_entries: 0,
            admission: Admission::new(1, 1),
            status: watch::Sender::default(),
        };
        let applier = Applier::new(config, links, replayed).start();
        applier.send(Restore(genesis())).await.unwrap();
        assert_eq!(heard.recv().await, Some(Heard::Changed(1, "voters 1".into())));
        assert_eq!(heard.recv().await, Some(Heard::AppliedTo(1)));
        applier.send(Apply(vec![Committed { entry: command(2, 1, 5), reply: None }])).await.unwrap();
        assert_eq!(heard.recv().await, Some(Heard::AppliedTo(2)));
    }

    #[actix::test]
    async fn a_subscriber_gets_the_past_from_the_log_and_then_the_present() {
        let f = start(vec![empty(2, 1), command(3, 1, 1), command(4, 1, 2), command(5, 1, 3)], 8);
        let (listener, mut told) = Listener::open();
        f.applier.send(subscribe(&listener, Some(3))).await.unwrap().unwrap();
        // Before the pump has read anything: it must neither overtake the past nor repeat it.
        f.apply(vec![command(6, 1, 4), empty(7, 1), command(8, 1, 5)]).await;
        let leader = LeaderChanged { leader: Some(2), term: 2, role: Role::Follower };
        f.applier.send(FromCore(leader)).await.unwrap();
        for expected in ["#4 +2 = ?", "#5 +3 = ?", "#6 +4 = 10", "#8 +5 = 15", "leader Some(2) in 2"] {
            assert_eq!(told.recv().await.unwrap(), expected);
        }
    }

    #[actix::test]
    async fn a_subscription_may_begin_with_the_first_command_and_not_in_the_future() {
        let f = start(vec![command(2, 1, 1), command(3, 1, 2)], 8);
        let ((first, mut all), (second, mut later)) = (Listener::open(), Listener::open());
        f.applier.send(subscribe(&first, Some(0))).await.unwrap().unwrap();
        f.applier.send(subscribe(&second, Some(3))).await.unwrap().unwrap();
        for index in [4, u64::MAX - 1, u64::MAX] {
            let refused = f.applier.send(subscribe(&second, Some(index))).await.unwrap();
            assert_eq!(refused, Err(SubscribeError::FuturePosition { index, applied: 3 }));
        }
        f.apply(vec![command(4, 1, 3), command(5, 1, 4)]).await;
        for expected in ["#2 +1 = ?", "#3 +2 = ?", "#4 +3 = 6", "#5 +4 = 10"] {
            assert_eq!(all.recv().await.unwrap(), expected);
        }
        for expected in ["#4 +3 = 6", "#5 +4 = 10"] {
            assert_eq!(later.recv().await.unwrap(), expected);
        }
    }

    #[actix::test]
    async fn who_lags_hears_it_last_and_slows_nobody() {
        let f = start(vec![], 4);
        let ((slow, mut slow_told, gate), (quick, mut quick_told)) = (Listener::gated(), Listener::open());
        f.applier.send(subscribe(&slow, None)).await.unwrap().unwrap();
        f.applier.send(subscribe(&quick, None)).await.unwrap().unwrap();
        for index in 2..40 {
            f.apply(vec![command(index, 1, 1)]).await;
            assert_eq!(quick_told.recv().await.unwrap(), format!("#{index} +1 = {}", index - 1));
        }
        gate.add_permits(1000);
        let mut last = 1;
        loop {
            let event = slow_told.recv().await.unwrap();
            if event.starts_with("lagged") {
                assert_eq!(event, format!("lagged, resume after {last}"), "the last one told, without a gap before it");
                break;
            }
            last += 1;
            assert!(event.starts_with(&format!("#{last} ")), "{event} after {last}");
        }
        assert!(last < 39);
        // From there nothing is missed.
        f.applier.send(subscribe(&slow, Some(last))).await.unwrap().unwrap();
    }

    #[actix::test]
    async fn the_batched_form_sends_what_waits_in_one_message() {
        let f = start(vec![command(2, 1, 1), command(3, 1, 1)], 8);
        let (listener, mut told) = Listener::open();
        let subscriber = Subscriber::Batched(listener.recipient());
        f.applier
            .send(SubscribeFrom { subscriber, after: After::Index(1), wants: Wants::Everything })
            .await
            .unwrap()
            .unwrap();
        assert_eq!(told.recv().await.unwrap(), "#2 +1 = ?; #3 +1 = ?");
    }

    #[actix::test]
    async fn a_subscription_ends_with_its_recipient_and_by_request() {
        struct Brief;
        impl Actor for Brief {
            type Context = Context<Self>;
            fn started(&mut self, ctx: &mut Context<Self>) {
                ctx.stop();
            }
        }
        impl Handler<Event<Sum>> for Brief {
            type Result = ();
            fn handle(&mut self, _: Event<Sum>, _: &mut Context<Self>) {}
        }
        let f = start(vec![], 8);
        let subscriber = Subscriber::Single(Brief.start().recipient());
        f.applier
            .send(SubscribeFrom { subscriber, after: After::Now, wants: Wants::Everything })
            .await
            .unwrap()
            .unwrap();
        let (listener, mut told) = Listener::open();
        let subscription = f.applier.send(subscribe(&listener, None)).await.unwrap().unwrap();
        f.applier.send(Unsubscribe(subscription)).await.unwrap();
        f.apply(vec![command(2, 1, 1)]).await;
        drop(listener);
        assert_eq!(told.recv().await, None, "nothing was told, and nothing holds the listener");
    }

    #[actix::test]
    async fn the_past_that_was_cut_off_is_told_as_a_snapshot() {
        let f = start(vec![command(2, 1, 1)], 8);
        let state = founded();
        let machine = Sum { total: 9, ..Sum::default() }.snapshot().unwrap();
        let content = Content { index: 10, term: 1, system: state, formed_with: BTreeMap::new(), state: machine };
        let snapshot = f.snapshots.build(content, &mut |_| {}).unwrap();
        f.applier.send(Restore(snapshot)).await.unwrap();
        let (listener, mut told) = Listener::open();
        f.store.hold([command(11, 1, 1), command(12, 1, 1)]);
        f.apply(vec![command(11, 1, 1), command(12, 1, 1)]).await;
        f.applier.send(subscribe(&listener, Some(1))).await.unwrap().unwrap();
        f.apply(vec![command(13, 1, 1)]).await;
        for expected in ["#10 snapshot", "#11 +1 = ?", "#12 +1 = ?", "#13 +1 = 12"] {
            assert_eq!(told.recv().await.unwrap(), expected);
        }
        let (slot, answer) = f.read();
        f.applier.send(ServeReads(vec![(10, slot)])).await.unwrap();
        assert_eq!(answer.await.unwrap(), Ok((13, 12)));
    }

    #[actix::test]
    async fn a_log_cut_off_while_its_past_is_told_skips_no_command_and_repeats_none() {
        let store = TestStore::with_entries((2..=5).map(|index| command(index, 1, 1)));
        let bounds = BufferBounds { events: 8, bytes: usize::MAX };
        let mut subscribers = Subscribers::<Sum>::new(GroupId::FIRST, Arc::new(store.clone()), Arc::default(), bounds);
        subscribers.set_cluster(Some(founded().cluster));
        let (listener, mut told) = Listener::open();
        subscribers.subscribe(subscribe(&listener, Some(1)), 5).unwrap();
        // Before the past is read, two more are applied, and one of them is in the snapshot behind which the log is cut
        // off.
        [6, 7].into_iter().for_each(|index| {
            subscribers.command((index, 1, std::time::SystemTime::UNIX_EPOCH), 30, &Arc::new(1), &Arc::new(index))
        });
        store.hold([command(7, 1, 1)]);
        for expected in ["#5 snapshot", "#6 +1 = 6", "#7 +1 = 7"] {
            assert_eq!(told.recv().await.unwrap(), expected);
        }
    }

    #[actix::test]
    async fn a_captured_state_is_that_of_its_index_whatever_follows() {
        let mut f = start(vec![command(2, 1, 5)], 8);
        f.applier.send(CaptureState).await.unwrap();
        let captured = async |f: &mut Fixture| loop {
            if let Some(Heard::Captured(captured)) = f.heard.recv().await {
                return captured.map(|(index, term, bytes)| {
                    (index, term, actorum_machine::machine::decode::<Sum>(&bytes).unwrap().total)
                });
            }
        };
        f.apply(vec![command(3, 2, 7)]).await;
        assert_eq!(captured(&mut f).await, Ok((2, 1, 5)));
        f.applier.send(CaptureState).await.unwrap();
        assert_eq!(captured(&mut f).await, Ok((3, 2, 12)));
    }
}
