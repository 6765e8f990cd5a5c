//! A flood of proposals must not cost a leader its leadership.
//!
//! The leader is a real `RaftCore` on a thread of its own, whose clock moves 20 us with every message that it
//! handles: 200,000 proposals are four seconds to it, four election timeouts. Its two followers live on the same
//! clock in this thread. If the leader falls silent while it reads its mailbox, they elect another.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant, SystemTime},
};

use actix::{WeakAddr, prelude::*};
use actorum_actors::{
    clock::Clock,
    core::{Links, RaftCore},
    message::{
        AppliedTo, Apply, BuildSnapshot, Campaign, Failed, FromCore, Persisted, ProbeDisk, Restore, ServeReads,
        SnapshotsKept, Submit,
    },
};
use actorum_core::{
    consensus::{Consensus, CoreStatus, Effects, Moment, Settings, Start},
    entry::EncodedCommand,
    features::Features,
    log::store::{HardState, LogReader, Recovered, StoreError},
    message::{Append, FetchSnapshot, ReplyHandle, RequestOutcome},
    system_state::SystemState,
    wire::{Entry, RaftMessage},
};
use actorum_machine::{
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    status::Role,
};
use actorum_transport::message::{Ask, Received, Transmit};
use tokio::sync::watch;

const PROPOSALS: usize = 200_000;
const PER_MESSAGE: Duration = Duration::from_micros(20);

/// Moves with every look at it. The core looks once per handled message.
#[derive(Default)]
struct BusyClock(AtomicU64);

impl BusyClock {
    fn peek(&self) -> Duration {
        Duration::from_nanos(self.0.load(SeqCst))
    }
}

impl Clock for BusyClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.fetch_add(PER_MESSAGE.as_nanos() as u64, SeqCst)) + PER_MESSAGE
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.peek()
    }
}

struct Nobody;

impl ReplyHandle for Nobody {
    fn answer(self, _: RequestOutcome) {}

    fn confirmed(self, _: u64) -> Option<Self> {
        None
    }
}

struct NoDisk;

impl LogReader for NoDisk {
    fn entries(&self, _: GroupId, from: u64, _: u64, _: usize) -> Result<Vec<Entry>, StoreError> {
        panic!("everything is in the tail, but entry {from} was asked for")
    }

    fn first_index(&self, _: GroupId) -> u64 {
        1
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

fn consensus<T>(id: NodeId) -> Consensus<T> {
    let founders: BTreeMap<NodeId, Address> = (1..=3).map(|id| (id, Address(format!("n{id}:1")))).collect();
    let state = SystemState::founded(ClusterId(7), &founders);
    let settings = Settings {
        id,
        group: GroupId::FIRST,
        incarnation: Incarnation(id),
        boot: 1,
        seed: 1,
        tick: Duration::from_millis(100),
        election_ticks: 10,
        max_append_bytes: 1 << 20,
        max_inflight_appends: 256,
        peer_window_bytes: 16 << 20,
        max_unapplied_bytes: 1 << 30,
        max_unpersisted_bytes: 1 << 30,
        disk_slow_ticks: 1 << 30,
        log_tail_bytes: 1 << 30,
        max_entry_bytes: 1 << 20,
        snapshot_entries: u64::MAX,
        snapshot_bytes: u64::MAX,
        small_snapshot_bytes: u64::MAX,
        short_bytes: 4 << 20,
        keep_entries: 0,
        keep_bytes: u64::MAX,
        hold_bytes: 0,
        snapshot_timeout_ticks: 30,
        max_clock_skew: Duration::from_millis(500),
        waits: false,
        certificate_ends: None,
        features: Features::all(),
        machine_version: 1,
    };
    let recovered = Recovered {
        snapshots: vec![state.genesis(BTreeMap::new()).unwrap()],
        hard_state: HardState { term: 1, vote: 0, commit: 1 },
        last_index: 1,
        terms: vec![(1, 1)],
        sizes: Vec::new(),
    };
    let start = Start {
        recovered,
        reader: Arc::new(NoDisk),
        applied: 1,
        membership: state.membership.clone(),
        versions: state.versions.clone(),
        cluster: Some(state.cluster),
        min_served_index: 0,
    };
    Consensus::new(settings, start).unwrap()
}

/// Everything below the leader: a disk that is done at once, an applier that is too, a wire to the other thread.
struct Below {
    core: Option<WeakAddr<RaftCore<Nobody>>>,
    wire: mpsc::Sender<(NodeId, RaftMessage)>,
}

impl Actor for Below {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1 << 20);
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Above(WeakAddr<RaftCore<Nobody>>);

impl Handler<Above> for Below {
    type Result = ();
    fn handle(&mut self, Above(core): Above, _: &mut Self::Context) {
        self.core = Some(core);
    }
}

impl Below {
    fn report<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        RaftCore<Nobody>: Handler<M>,
    {
        if let Some(core) = self.core.as_ref().and_then(WeakAddr::upgrade) {
            core.do_send(message);
        }
    }
}

impl Handler<FromCore<Append>> for Below {
    type Result = ();
    fn handle(&mut self, FromCore(Append { number, .. }): FromCore<Append>, _: &mut Self::Context) {
        self.report(Persisted { group: GroupId::FIRST, number });
    }
}

impl Handler<ProbeDisk> for Below {
    type Result = ();
    fn handle(&mut self, ProbeDisk: ProbeDisk, _: &mut Self::Context) {}
}

impl Handler<Apply<Nobody>> for Below {
    type Result = ();
    fn handle(&mut self, Apply(entries): Apply<Nobody>, _: &mut Self::Context) {
        let index = entries.last().unwrap().entry.index;
        self.report(AppliedTo { index });
    }
}

impl Handler<Transmit> for Below {
    type Result = ();
    fn handle(&mut self, Transmit { messages, .. }: Transmit, _: &mut Self::Context) {
        messages.into_iter().for_each(|message| drop(self.wire.send(message)));
    }
}

macro_rules! unused {
    ($($message:ty),*) => {$(
        impl Handler<$message> for Below {
            type Result = ();
            fn handle(&mut self, _: $message, _: &mut Self::Context) {}
        }
    )*};
}
unused!(ServeReads<Nobody>, Restore, BuildSnapshot, FromCore<FetchSnapshot>, SnapshotsKept, Ask);

/// A follower whose disk and applier are done at once. Gives what it sends.
fn run(node: &mut Consensus<Nobody>, moment: Moment) -> Vec<(NodeId, RaftMessage)> {
    let mut sent = Vec::new();
    loop {
        let Effects { append, transmit, apply, .. } = node.drain(moment);
        let quiet = append.is_empty() && apply.is_empty();
        append.iter().for_each(|append| node.persisted(append.number));
        apply.iter().for_each(|committed| node.applied_to(committed.entry.index));
        sent.extend(transmit);
        if quiet {
            return sent;
        }
    }
}

#[test]
fn a_flood_of_proposals_costs_no_leader_its_leadership() {
    let clock = Arc::new(BusyClock::default());
    let (wire, from_leader) = mpsc::channel();
    let (up, started) = mpsc::channel();
    let (status_in, status) = watch::channel(CoreStatus::default());

    let leader_clock = clock.clone();
    std::thread::spawn(move || {
        System::new().block_on(async move {
            // Below the leader runs on a thread of its own, as a transport and a disk would.
            let arbiter = Arbiter::new();
            let below = Below::start_in_arbiter(&arbiter.handle(), move |_| Below { core: None, wire });
            let failures = Failures.start();
            let links = Links {
                append: below.clone().recipient(),
                probe: below.clone().recipient(),
                reader: Arc::new(NoDisk),
                apply: below.clone().recipient(),
                reads: below.clone().recipient(),
                restore: below.clone().recipient(),
                build: below.clone().recipient(),
                fetch: below.clone().recipient(),
                kept: below.clone().recipient(),
                transmit: below.clone().recipient(),
                ask: below.clone().recipient(),
                leader_changed: Vec::new(),
                failed: failures.downgrade().recipient(),
                status: status_in,
                admit: Box::new(|_, _| Ok(Nobody)),
                check: |_| Ok(()),
                observer: None,
            };
            let tick = Duration::from_millis(100);
            let core = RaftCore::new(GroupId::FIRST, tick, consensus(1), leader_clock, links).start();
            below.send(Above(core.downgrade())).await.unwrap();
            up.send((core.clone(), Arbiter::current())).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let (core, leader_arbiter) = started.recv().unwrap();

    let mut followers: BTreeMap<NodeId, Consensus<Nobody>> = (2..=3).map(|id| (id, consensus(id))).collect();
    let until = Instant::now() + Duration::from_secs(120);
    let mut turn = || {
        let mut sent = Vec::new();
        // What was received goes before ticks.
        let received: Vec<_> = from_leader.try_iter().collect();
        for (to, message) in received {
            followers.get_mut(&to).unwrap().step(1, message);
        }
        let moment = Moment { now: clock.peek(), wall: SystemTime::UNIX_EPOCH };
        for (id, node) in &mut followers {
            sent.extend(run(node, moment).into_iter().map(|(to, message)| (*id, to, message)));
        }
        for (from, to, message) in sent {
            match followers.get_mut(&to) {
                Some(node) => node.step(from, message),
                None => core.do_send(Received { group: GroupId::FIRST, from, messages: vec![message] }),
            }
        }
        assert!(Instant::now() < until, "no progress");
    };

    core.do_send(Campaign);
    while status.borrow().role != Role::Leader || status.borrow().commit_index < 2 {
        turn();
    }
    let term = status.borrow().term;

    // Fill the mailbox while the leader's thread is held, then let go.
    let (release, held) = mpsc::channel::<()>();
    leader_arbiter.spawn_fn(move || held.recv().unwrap());
    let encoded = EncodedCommand::command(&"x".repeat(100)).unwrap();
    for _ in 0..PROPOSALS {
        core.do_send(Submit { encoded: encoded.clone(), reply: None, deadline: Duration::MAX });
    }
    let before = clock.peek();
    release.send(()).unwrap();

    let all = PROPOSALS as u64 + 2;
    while status.borrow().commit_index < all && status.borrow().term == term && status.borrow().role == Role::Leader {
        turn();
    }
    let end = status.borrow().clone();
    assert_eq!((end.role, end.term), (Role::Leader, term), "the leader lost its leadership in the flood");
    assert_eq!(end.commit_index, all);
    assert!(clock.peek() - before >= PER_MESSAGE * PROPOSALS as u32, "the flood took less time than it should");
}

/// A core that failed fails the test.
struct Failures;

impl Actor for Failures {
    type Context = Context<Self>;
}

impl Handler<Failed> for Failures {
    type Result = ();
    fn handle(&mut self, Failed { cause, .. }: Failed, _: &mut Self::Context) {
        panic!("{cause}");
    }
}
