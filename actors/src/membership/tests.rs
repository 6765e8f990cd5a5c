//! What refusals do to a membership manager, and what it knows of features.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::SystemTime,
};

use actorum_core::{
    entry::ChangeId, features::Feature, identity::Identity, message::RequestOutcome, system_state::SystemChange,
    testkit::founded, versions::Announcement,
};
use actorum_machine::members::Change;
use actorum_transport::message::PeerRefused;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::clock::SystemClock;

struct NoReply;

impl ReplyHandle for NoReply {
    fn answer(self, _: RequestOutcome) {}

    fn confirmed(self, _: u64) -> Option<Self> {
        None
    }
}

/// The transport, the core and the parent at once; tells the test what the parent heard, and what the core was to
/// propose.
struct Fake(mpsc::UnboundedSender<String>, mpsc::UnboundedSender<SystemCommand>);

impl Actor for Fake {
    type Context = Context<Self>;
}

macro_rules! ignores {
    ($($message:ty)*) => {
        $(impl Handler<$message> for Fake {
            type Result = ();

            fn handle(&mut self, _: $message, _: &mut Context<Self>) {}
        })*
    };
}

ignores! { Ask SetPeers SetCluster Form Submit<NoReply> PeerFeatures ClocksRead }

impl Handler<ProposeVersions> for Fake {
    type Result = ();

    fn handle(&mut self, ProposeVersions(command): ProposeVersions, _: &mut Context<Self>) {
        let _ = self.1.send(command);
    }
}

impl Handler<Failed> for Fake {
    type Result = ();

    fn handle(&mut self, Failed { cause, .. }: Failed, _: &mut Context<Self>) {
        self.0.send(cause).unwrap();
    }
}

/// Asked last, so that everything sent before has arrived.
#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

impl Handler<Flush> for MembershipManager<NoReply> {
    type Result = ();

    fn handle(&mut self, Flush: Flush, _: &mut Context<Self>) {}
}

impl Handler<Flush> for Fake {
    type Result = ();

    fn handle(&mut self, Flush: Flush, _: &mut Context<Self>) {}
}

fn links(fake: &Addr<Fake>, status: &watch::Sender<MembershipStatus>) -> Links<NoReply> {
    Links {
        ask: fake.clone().recipient(),
        set_peers: fake.clone().recipient(),
        set_cluster: fake.clone().recipient(),
        form: fake.clone().recipient(),
        submit: fake.clone().recipient(),
        features: fake.clone().recipient(),
        versions: fake.clone().recipient(),
        failed: fake.downgrade().recipient(),
        status: status.clone(),
        clocks: fake.clone().recipient(),
        core: watch::channel(CoreStatus::default()).1,
        clock: SystemClock::shared(),
        max_clock_skew: Duration::from_millis(500),
        activates: true,
        farewell: Duration::from_secs(60),
    }
}

/// Node 1 with incarnation 11 hears this refusal: what its parent heard, and what it shows.
async fn refused(start_mode: StartMode, by: NodeId, known: u64) -> (Option<String>, MembershipStatus) {
    let (told, mut heard) = mpsc::unbounded_channel();
    let fake = Fake(told, mpsc::unbounded_channel().0).start();
    let status = watch::Sender::new(MembershipStatus::default());
    let links = links(&fake, &status);
    let (incarnation, understanding) = (Incarnation(11), understanding(Features::all()));
    let manager = MembershipManager::<NoReply>::new(1, GroupId::FIRST, incarnation, understanding, start_mode, links);
    let manager = manager.unwrap().start();
    let (known, theirs) = (Incarnation(known), Incarnation(11));
    let reason = RefusedBecause::Incarnation { id: 1, known, theirs };
    manager.do_send(PeerRefused { peer: by, by_peer: true, reason });
    manager.send(Flush).await.unwrap();
    fake.send(Flush).await.unwrap();
    (heard.try_recv().ok(), status.borrow().clone())
}

fn understanding(features: Features) -> Understanding {
    let announcement = Announcement::of(&features, 1, 1);
    Understanding::new(1, features, announcement)
}

fn founding(ids: &[NodeId]) -> StartMode {
    let founders = ids.iter().map(|id| (*id, Address(format!("n{id}")))).collect();
    StartMode::Bootstrap { founders, cluster: ClusterId(7), name: String::new() }
}

/// A member, as which its own copy of the membership records this incarnation.
fn member(recorded: Option<u64>) -> StartMode {
    let mut state = founded();
    if let Some(incarnation) = recorded {
        state.apply(2, &SystemCommand::Incarnation { node: 1, incarnation: Incarnation(incarnation) });
    }
    StartMode::Formed { state: Arc::new(state), formed_with: BTreeMap::new() }
}

#[actix::test]
async fn a_member_goes_on_at_one_peers_word_and_shows_it() {
    for recorded in [None, Some(11)] {
        let (failed, status) = refused(member(recorded), 2, 99).await;
        assert_eq!((failed, status.formed), (None, Formed::Yes));
        let shown = status.refused.unwrap();
        assert!(shown.starts_with("node 2 refused this node: node 1 is known here as incarnation"), "{shown}");
    }
}

#[actix::test]
async fn a_member_that_its_own_cluster_records_otherwise_stops() {
    let (failed, _) = refused(member(Some(99)), 2, 99).await;
    assert!(failed.unwrap().contains("under a new id"));
}

/// The members 2 and 3 are met with these, in this order: what the cluster of three understands after each.
async fn met(hellos: &[(NodeId, Features)]) -> Vec<Features> {
    let (told, _heard) = mpsc::unbounded_channel();
    let fake = Fake(told, mpsc::unbounded_channel().0).start();
    let status = watch::Sender::new(MembershipStatus::default());
    let links = links(&fake, &status);
    let founders = [1, 2, 3].map(|id| (id, Address(format!("n{id}"))));
    let state = Arc::new(SystemState::founded(ClusterId(7), &founders.into()));
    let start_mode = StartMode::Formed { state, formed_with: BTreeMap::new() };
    let (incarnation, features) = (Incarnation(11), Features::all());
    let understanding = understanding(features);
    let manager = MembershipManager::<NoReply>::new(1, GroupId::FIRST, incarnation, understanding, start_mode, links);
    let manager = manager.unwrap().start();
    let mut understood = Vec::new();
    for (id, features) in hellos {
        let features = features.clone();
        let identity = Identity {
            id: *id,
            incarnation: Incarnation(*id),
            boot: 1,
            cluster: None,
            features,
            machine_version: 1,
            lives: Arc::default(),
        };
        manager.do_send(PeerUp { identity });
        manager.send(Flush).await.unwrap();
        understood.push(status.borrow().features.clone());
    }
    understood
}

#[actix::test]
async fn the_cluster_understands_what_every_member_named() {
    let (new, first) = (Features::all, Features::none);
    let understood = met(&[(2, new()), (3, new()), (3, first()), (3, new())]).await;
    assert_eq!(understood, [first(), new(), first(), new()]);
}

/// A voter of 1, 2 and 3, or of as many as are named, that these nodes refuse as removed, in this order.
async fn removed_by(voters: u64, applied: bool, refusals: &[(NodeId, bool)]) -> (Option<String>, MembershipStatus) {
    let mut state =
        SystemState::founded(ClusterId(7), &(1..=voters).map(|id| (id, Address(format!("n{id}")))).collect());
    if applied {
        state.apply(
            2,
            &SystemCommand::Change {
                id: ChangeId { node: 2, boot: 1, number: 1 },
                change: Change::Remove(1),
                forced: false,
            },
        );
    }
    let (told, mut heard) = mpsc::unbounded_channel();
    let (fake, status) =
        (Fake(told, mpsc::unbounded_channel().0).start(), watch::Sender::new(MembershipStatus::default()));
    let start_mode = StartMode::Formed { state: Arc::new(state), formed_with: BTreeMap::new() };
    let (group, me, links) = (GroupId::FIRST, Incarnation(11), links(&fake, &status));
    let manager = MembershipManager::<NoReply>::new(1, group, me, understanding(Features::all()), start_mode, links);
    let manager = manager.unwrap().start();
    for (peer, refuses) in refusals.iter().copied() {
        let identity = Identity {
            id: peer,
            incarnation: Incarnation(peer),
            boot: 1,
            cluster: Some(ClusterId(7)),
            features: Features::all(),
            machine_version: 1,
            lives: Arc::default(),
        };
        match refuses {
            true => {
                manager.do_send(PeerRefused { peer, by_peer: true, reason: RefusedBecause::Retired { id: 1 } });
            }
            false => manager.do_send(PeerUp { identity }),
        }
    }
    manager.send(Flush).await.unwrap();
    fake.send(Flush).await.unwrap();
    (heard.try_recv().ok(), status.borrow().clone())
}

#[actix::test]
async fn a_member_that_missed_its_removal_stops_at_the_word_of_a_majority_and_of_nobody_less() {
    for (voters, refusals) in [
        (3, &[(2, true)][..]),
        (3, &[(2, true), (2, true)]),
        (3, &[(2, true), (2, false), (3, true)]),
        (3, &[(2, true), (9, true)]),
        (5, &[(2, true), (3, true)]),
    ] {
        let (failed, status) = removed_by(voters, false, refusals).await;
        assert_eq!(failed, None, "{refusals:?}");
        assert!(!status.refused_by.is_empty());
    }
    for (voters, refusals) in
        [(2, &[(2, true)][..]), (3, &[(2, true), (3, true)]), (5, &[(2, true), (3, true), (5, true)])]
    {
        let (failed, _) = removed_by(voters, false, refusals).await;
        assert!(failed.is_some_and(|cause| cause.contains("was removed from the cluster")), "{refusals:?}");
    }
}

#[actix::test]
async fn a_member_that_has_applied_its_removal_stops_once_another_member_shows_that_it_knows() {
    assert_eq!(removed_by(3, true, &[]).await.0, None, "its vote may still be needed");
    assert_eq!(removed_by(3, true, &[(9, true)]).await.0, None, "that one is no member");
    assert!(removed_by(3, true, &[(2, true)]).await.0.is_some());
}

#[actix::test]
async fn a_wiped_node_under_a_used_id_stops_by_name() {
    let (failed, status) = refused(StartMode::Waiting, 2, 99).await;
    let cause = failed.unwrap();
    assert!(cause.contains("node 1 is known here as incarnation 0000000000000063"), "{cause}");
    assert_eq!(status.refused, Some(cause));
    let (failed, _) = refused(founding(&[1, 2, 3]), 3, 99).await;
    assert!(failed.unwrap().contains("node 3 refused this node"));
}

#[actix::test]
async fn a_forming_founder_goes_on_at_the_word_of_one_that_is_no_founder() {
    let (failed, status) = refused(founding(&[1, 2, 3]), 4, 99).await;
    assert_eq!((failed, status.formed), (None, Formed::Forming { waiting_for: vec![2, 3] }));
    assert!(status.refused.unwrap().starts_with("node 4 refused this node"));
}

/// How many operators a manager has in mind: those whom it answers, and those for whom it has asked the leader.
#[derive(Message)]
#[rtype(result = "(usize, usize)")]
struct CountOperators;

impl Handler<CountOperators> for MembershipManager<NoReply> {
    type Result = MessageResult<CountOperators>;

    fn handle(&mut self, CountOperators: CountOperators, _: &mut Context<Self>) -> Self::Result {
        MessageResult((self.activating.operators.len(), self.activating.asked_leader.len()))
    }
}

/// What an operator does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Never,
    /// Before the last hello.
    AndWaits,
    /// The same, and gives up once the leader has proposed something.
    AndGivesUp,
}

/// What a leader of 1, 2 and 3 proposes after these hellos; the versions are recorded as it proposes them.
async fn proposed(activates: bool, asks: Asks, hellos: &[(NodeId, Features, u32)]) -> Vec<String> {
    let (proposals, mut heard) = mpsc::unbounded_channel();
    let fake = Fake(mpsc::unbounded_channel().0, proposals).start();
    let status = watch::Sender::new(MembershipStatus::default());
    let links = Links { activates, ..links(&fake, &status) };
    let mut state = founded();
    for node in [2, 3] {
        let change = Change::AddLearner(node, Address(format!("n{node}")));
        let id = ChangeId { node: 1, boot: 1, number: node };
        state.apply(node, &SystemCommand::Change { id, change, forced: false });
    }
    for node in [1, 2, 3] {
        state.apply(node, &SystemCommand::Incarnation { node, incarnation: Incarnation(node) });
    }
    let start_mode = StartMode::Formed { state: Arc::new(state.clone()), formed_with: BTreeMap::new() };
    let own = Announcement { features: ["activation".to_owned()].into(), machine: 2, boot: 1 };
    let understanding = Understanding::new(1, [Feature::Activation].into_iter().collect(), own);
    let manager =
        MembershipManager::<NoReply>::new(1, GroupId::FIRST, Incarnation(1), understanding, start_mode, links);
    let manager = manager.unwrap().start();
    manager.do_send(FromCore(LeaderChanged { leader: Some(1), term: 2, role: Role::Leader }));
    let mut asked = None;
    for (nth, (peer, features, machine_version)) in hellos.iter().enumerate() {
        if asks != Asks::Never && nth + 1 == hellos.len() {
            let (reply, answer) = oneshot::channel();
            manager.do_send(Activate { reply });
            asked = Some(answer);
        }
        let (features, incarnation) = (features.clone(), Incarnation(*peer));
        let (cluster, lives, machine_version) = (Some(ClusterId(7)), Arc::default(), *machine_version);
        let identity = Identity { id: *peer, incarnation, boot: 1, cluster, features, machine_version, lives };
        manager.do_send(PeerUp { identity });
    }
    let (mut all, mut index) = (Vec::new(), 10);
    loop {
        manager.send(Flush).await.unwrap();
        fake.send(Flush).await.unwrap();
        let mut new = Vec::new();
        while let Ok(command) = heard.try_recv() {
            new.push(command);
        }
        if new.is_empty() {
            if let Some(asked) = asked {
                // What was asked for is done, as far as it could be.
                assert_eq!(asked.await.unwrap(), Ok(if all.is_empty() { 0 } else { index }));
            }
            assert_eq!(manager.send(CountOperators).await.unwrap(), (0, 0));
            return all;
        }
        if asks == Asks::AndGivesUp {
            asked = None;
        }
        for command in new {
            index += 1;
            let changed = state.apply(index, &command) == SystemChange::Versions;
            all.push(match (command, changed) {
                (SystemCommand::Announce { node, .. }, true) => format!("announce {node}"),
                (SystemCommand::Activate { activation }, true) => format!("activate {activation}"),
                (command, _) => format!("in vain: {command:?}"),
            });
        }
        manager.do_send(SystemChanged { index, state: Arc::new(state.clone()) });
    }
}

#[actix::test]
async fn a_leader_records_what_members_understand_and_uses_it_once_all_do() {
    let (new, old) = (|| Features::all(), || Features::none());
    // An older member would stop at the first entry of this kind, so nothing is recorded before all understand it.
    assert_eq!(proposed(true, Asks::Never, &[(2, new(), 2), (3, old(), 0)]).await, [""; 0]);
    assert_eq!(proposed(true, Asks::Never, &[(2, new(), 2)]).await, [""; 0], "node 3 was not met");
    let recorded = ["announce 1", "announce 2", "announce 3"];
    let usual = proposed(true, Asks::Never, &[(2, new(), 2), (3, new(), 2)]).await;
    assert_eq!(usual, [&recorded[..], &["activate version 2 of the state machine"]].concat());
    assert_eq!(
        proposed(true, Asks::Never, &[(2, new(), 2), (3, new(), 1)]).await,
        recorded,
        "node 3 has an older machine"
    );
    // It says something else after its upgrade.
    let upgraded = proposed(true, Asks::Never, &[(2, new(), 2), (3, new(), 1), (3, new(), 2)]).await;
    assert_eq!(upgraded.last().unwrap(), "activate version 2 of the state machine");
}

#[actix::test]
async fn with_manual_nothing_is_recorded_or_used_before_an_operator_says_so() {
    let hellos = [(2, Features::all(), 2), (3, Features::all(), 2)];
    assert_eq!(proposed(false, Asks::Never, &hellos).await, [""; 0]);
    let late = proposed(false, Asks::AndWaits, &hellos).await;
    assert_eq!(late, [""; 0], "what could not be done when it was asked for is not done later");
    let [two, three] = hellos;
    let asked = proposed(false, Asks::AndWaits, &[two, three.clone(), three]).await;
    assert_eq!(asked, ["announce 1", "announce 2", "announce 3", "activate version 2 of the state machine"]);
}

#[actix::test]
async fn what_an_operator_asked_for_who_gave_up_is_not_activated() {
    let [two, three] = [2, 3].map(|id| (id, Features::all(), 2));
    let proposed = proposed(false, Asks::AndGivesUp, &[two, three.clone(), three]).await;
    assert_eq!(proposed, ["announce 1", "announce 2", "announce 3"]);
}

#[actix::test]
async fn operators_who_gave_up_are_forgotten() {
    for leads in [true, false] {
        let fake = Fake(mpsc::unbounded_channel().0, mpsc::unbounded_channel().0).start();
        let status = watch::Sender::new(MembershipStatus::default());
        let links = Links { activates: false, ..links(&fake, &status) };
        let state = Arc::new(founded());
        let start_mode = StartMode::Formed { state, formed_with: BTreeMap::new() };
        let own = Announcement { features: ["activation".to_owned()].into(), machine: 2, boot: 1 };
        let understanding = Understanding::new(1, [Feature::Activation].into_iter().collect(), own);
        let manager =
            MembershipManager::<NoReply>::new(1, GroupId::FIRST, Incarnation(1), understanding, start_mode, links);
        let manager = manager.unwrap().start();
        let (leader, role) = if leads { (1, Role::Leader) } else { (2, Role::Follower) };
        manager.do_send(FromCore(LeaderChanged { leader: Some(leader), term: 2, role }));
        let ask = || {
            let (reply, answer) = oneshot::channel();
            manager.do_send(Activate { reply });
            answer
        };
        // What the leader proposes is never applied, so nobody is answered.
        let waits = [ask(), ask()];
        for _ in 0..100 {
            let gives_up = ask();
            manager.send(Flush).await.unwrap();
            drop(gives_up);
        }
        let _last = ask();
        let count = |of| if leads { (of, 0) } else { (0, of) };
        assert_eq!(manager.send(CountOperators).await.unwrap(), count(waits.len() + 1), "leads: {leads}");
    }
}

/// A clock that a test sets.
struct Hand(AtomicU64);

impl crate::clock::Clock for Hand {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Relaxed))
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.now()
    }
}

#[actix::test]
async fn what_is_not_in_use_is_counted_from_the_moment_when_it_was_first_seen() {
    let fake = Fake(mpsc::unbounded_channel().0, mpsc::unbounded_channel().0).start();
    let (status, clock) = (watch::Sender::new(MembershipStatus::default()), Arc::new(Hand(AtomicU64::new(5))));
    let links = Links { clock: clock.clone(), ..links(&fake, &status) };
    let mut state = founded();
    let start_mode = StartMode::Formed { state: Arc::new(state.clone()), formed_with: BTreeMap::new() };
    let own = Announcement { features: BTreeSet::new(), machine: 2, boot: 1 };
    let understanding = Understanding::new(1, Features::none(), own);
    let manager =
        MembershipManager::<NoReply>::new(1, GroupId::FIRST, Incarnation(1), understanding, start_mode, links);
    let manager = manager.unwrap().start();
    manager.send(Flush).await.unwrap();
    let seen = || status.borrow().not_in_use_since.clone();
    let expected = BTreeMap::from([(Activation::Machine(2), Duration::from_secs(5))]);
    assert_eq!(seen(), expected);
    clock.0.store(90_000, Relaxed);
    manager.do_send(SystemChanged { index: 9, state: Arc::new(state.clone()) });
    manager.send(Flush).await.unwrap();
    assert_eq!(seen(), expected, "it is the same that waits");
    Arc::make_mut(&mut state.versions).machine = 2;
    manager.do_send(SystemChanged { index: 10, state: Arc::new(state) });
    manager.send(Flush).await.unwrap();
    assert_eq!(seen(), BTreeMap::new(), "it is in use");
}
