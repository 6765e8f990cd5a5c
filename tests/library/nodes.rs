//! Whole nodes in one process over a network inside it: the way of every request, and every way to end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::prelude::*;
use actorum::{BusyBound, ChangeError, MemberRole, Network, Outcome, Reason, StartError, WaitError, prelude::*};
use actorum_core::{
    log::store::{LogReader, Recovered, StoreError},
    wire::Entry,
};
use actorum_machine::ids::{GroupId, Incarnation};
use actorum_store::log::store::{Completions, LogAppender, LogStore, StoreIdentity};

use crate::support::{MemoryDisk, MemoryNetwork, Sum, TIMEOUT, founders, is_open, on, quick, start, three};

#[actix::test]
async fn one_node_applies_reads_and_answers() {
    let raft = start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await;
    let applied = raft.propose(40).await.unwrap();
    assert_eq!((applied.response, applied.term >= 1), (40, true));
    let applied = raft.addr().send(Propose::new(2).deadline(TIMEOUT)).await.unwrap().unwrap();
    assert_eq!(applied.response, 42);
    assert_eq!(raft.read(|sum| sum.total).await.unwrap(), 42);
    assert_eq!(raft.addr().send(Read::stale(|sum: &Sum| sum.seen.clone())).await.unwrap().unwrap(), [40, 2]);
    let (index, total) = raft.read_with(Read::linearizable(|sum: &Sum| sum.total)).await.unwrap();
    assert!(index >= applied.index && total == 42);
    let status = raft.wait_applied(applied.index, TIMEOUT).await.unwrap();
    assert_eq!((status.role, status.totals.proposals_applied), (Role::Leader, 2));
    raft.shutdown().await;
}

#[actix::test]
async fn followers_forward_and_every_node_applies() {
    let (network, disks) = (MemoryNetwork::new(), Default::default());
    let [leader, follower, other] = three(&network, &disks).await;
    let mut last = 0;
    for (n, node) in [&leader, &follower, &other].iter().cycle().take(30).enumerate() {
        let applied = node.propose(1).await.unwrap();
        assert_eq!(applied.response, n as u64 + 1);
        last = applied.index;
    }
    for node in [&leader, &follower, &other] {
        assert_eq!(node.read(|sum| sum.total).await.unwrap(), 30, "a linearizable read sees what was answered");
        node.wait_applied(last, TIMEOUT).await.unwrap();
        assert_eq!(node.read_stale(|sum| sum.seen.len()).await.unwrap(), 30);
    }
    let id = leader.status().id;
    let recorded = |s: &Status| s.membership.members.values().all(|m| m.incarnation.is_some());
    follower.wait(TIMEOUT, recorded).await.unwrap();
    let status = leader.wait(TIMEOUT, |s| s.peers.values().all(|p| p.match_index >= last)).await.unwrap();
    assert_eq!((status.leader, status.membership.voters(), status.peers.len()), (Some(id), vec![1, 2, 3], 2));
}

#[actix::test]
async fn many_in_flight_from_every_node_are_each_applied_once() {
    let (network, disks) = (MemoryNetwork::new(), Default::default());
    let nodes = three(&network, &disks).await;
    let mut answers = Vec::new();
    for n in 0..3000 {
        answers.push(nodes[n % 3].submit(1));
    }
    for answer in answers {
        answer.await.unwrap();
    }
    assert_eq!(nodes[1].read(|sum| sum.seen.len()).await.unwrap(), 3000);
    let status = nodes[0].status();
    assert!(status.totals.syncs < 1500, "one sync served {} entries", 3000 / status.totals.syncs.max(1));
}

#[actix::test]
async fn a_new_leader_takes_over_and_a_restarted_node_catches_up() {
    let (network, disks): (_, [MemoryDisk; 3]) = (MemoryNetwork::new(), Default::default());
    let [leader, follower, other] = three(&network, &disks).await;
    follower.propose(5).await.unwrap();
    let old = leader.status().id;
    leader.shutdown().await;
    assert!(!is_open(&disks[old as usize - 1], old), "shut down means that the directory is closed");
    assert_eq!(leader.propose(1).await.unwrap_err().outcome(), Outcome::Rejected);
    assert!(leader.status().stopped.is_some());

    follower.wait(TIMEOUT, |s| s.leader.is_some_and(|l| l != old)).await.unwrap();
    let applied = other.propose_within(6, TIMEOUT).await.unwrap();
    assert_eq!(applied.response, 11);
    let again = start(&network, old, &disks[old as usize - 1], founders(3)).await;
    again.wait_applied(applied.index, TIMEOUT).await.unwrap();
    assert_eq!(again.read_stale(|sum| sum.seen.clone()).await.unwrap(), [5, 6]);
}

#[actix::test]
async fn a_fourth_node_waits_is_added_promoted_and_holds_everything() {
    let (network, disks): (_, [MemoryDisk; 3]) = (MemoryNetwork::new(), Default::default());
    let [leader, follower, _other] = three(&network, &disks).await;
    leader.propose(5).await.unwrap();
    let fourth = start(&network, 4, &MemoryDisk::new(), Bootstrap::Wait).await;
    let membership = follower.change(ConfChange::AddLearner(4, "n4".into())).await.unwrap();
    assert_eq!(membership.learners(), [4]);
    let membership = leader.addr().send(ConfChange::Promote(4)).await.unwrap().unwrap();
    assert_eq!(membership.members[&4].role, MemberRole::Voter);
    fourth.wait(TIMEOUT, |s| s.membership.voters() == [1, 2, 3, 4]).await.unwrap();
    assert_eq!(fourth.read(|sum| sum.total).await.unwrap(), 5);
    assert_eq!(fourth.propose(6).await.unwrap().response, 11);

    let error = leader.change(ConfChange::Promote(9)).await.unwrap_err();
    assert_eq!(error, ChangeError::Invalid { cause: "node 9 is not a member".into() });
    let id = leader.status().id;
    follower.change_within(ConfChange::Remove(id), TIMEOUT).await.unwrap();
    follower.wait(TIMEOUT, |s| s.leader.is_some_and(|l| l != id)).await.unwrap();
}

/// Promoted, it would count in every majority from then on, and hold up all writes.
#[actix::test]
async fn a_learner_that_is_down_or_behind_is_not_promoted_and_says_how_far_it_is() {
    let (network, disks): (_, [MemoryDisk; 3]) = (MemoryNetwork::new(), Default::default());
    let [leader, follower, other] = three(&network, &disks).await;
    let disk = MemoryDisk::new();
    let fourth = start(&network, 4, &disk, Bootstrap::Wait).await;
    leader.change(ConfChange::AddLearner(4, "n4".into())).await.unwrap();
    let first = leader.propose(1).await.unwrap().index;
    fourth.wait_applied(first, TIMEOUT).await.unwrap();
    leader.wait(TIMEOUT, |s| s.membership.members[&4].incarnation.is_some()).await.unwrap();
    fourth.shutdown().await;
    let mut last = first;
    for _ in 0..300 {
        last = leader.propose(1).await.unwrap().index;
    }
    // It counts as alive for one election timeout, and 300 commands may take less.
    leader.wait(TIMEOUT, |s| !s.peers[&4].recently_active).await.unwrap();
    // Through a follower as at the leader itself: as long as the deadline lasts, and then with how far it is.
    for node in [&leader, &follower] {
        let error = node.change_within(ConfChange::Promote(4), Duration::from_millis(700)).await.unwrap_err();
        let ChangeError::LearnerNotReady(reading) = &error else { panic!("{error}") };
        assert_eq!(reading.node, 4);
        assert!(reading.matched < reading.needed && reading.needed <= reading.commit, "{error}");
        assert!(reading.commit >= last && reading.recorded, "{error}");
        assert!(error.to_string().contains("Let it catch up first"), "{error}");
    }
    leader.propose_within(1, TIMEOUT).await.unwrap();

    // While it waits the learner comes back, catches up and is promoted.
    let promoted = follower.change_within(ConfChange::Promote(4), TIMEOUT);
    let (promoted, fourth) = tokio::join!(promoted, start(&network, 4, &disk, Bootstrap::Wait));
    assert_eq!(promoted.unwrap().voters(), [1, 2, 3, 4]);
    fourth.wait_applied(last, TIMEOUT).await.unwrap();
    drop(other);
}

#[actix::test]
async fn a_change_that_leaves_no_live_majority_is_refused_unless_it_is_forced() {
    let (network, disks): (_, [MemoryDisk; 3]) = (MemoryNetwork::new(), Default::default());
    let [leader, follower, other] = three(&network, &disks).await;
    let [lead, follow, away] = [&leader, &follower, &other].map(|node| node.status().id);
    leader.propose(1).await.unwrap();
    other.shutdown().await;
    let refused = |error: ChangeError| match &error {
        ChangeError::WouldLoseMajority(reading) => {
            assert_eq!((reading.needed, reading.heard), (2, 1), "{error}");
            assert!(
                error.to_string().contains(&format!("node {away}: ")) && error.to_string().contains("force"),
                "{error}"
            );
        }
        _ => panic!("{error}"),
    };
    // It counts as alive for one election timeout.
    tokio::time::sleep(Duration::from_millis(500)).await;
    refused(leader.change_within(ConfChange::Remove(follow), TIMEOUT).await.unwrap_err());
    refused(leader.change_within(ConfChange::Demote(follow), TIMEOUT).await.unwrap_err());
    refused(follower.change_within(ConfChange::Remove(lead), TIMEOUT).await.unwrap_err());
    assert_eq!(leader.propose_within(2, TIMEOUT).await.unwrap().response, 3, "it goes on");
    // Forced it is made, and nothing is decided until the one that is away is back.
    let left = leader.change_within(ConfChange::Remove(follow).forced(), TIMEOUT).await.unwrap();
    assert_eq!(left.voters().len(), 2);
    let alone = leader.propose_within(3, Duration::from_millis(700)).await.unwrap_err();
    // On a slow machine the leader has stepped down before it is asked.
    let refused = matches!(alone, ProposeError::Unavailable { reason: Reason::NoMajority | Reason::NoLeader, .. });
    assert!(refused || matches!(alone, ProposeError::Unknown { .. } | ProposeError::NotLeader { .. }), "{alone}");
    let back = start(&network, away, &disks[away as usize - 1], founders(3)).await;
    back.wait_for_leader(TIMEOUT).await.unwrap();
    leader.propose_within(4, TIMEOUT).await.unwrap();
}

#[actix::test]
async fn a_panicking_apply_stops_its_system_and_nothing_else() {
    let raft = start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await;
    let bystander = start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await;
    raft.propose(1).await.unwrap();
    let (beast, next) = (raft.submit(666), raft.submit(1));
    for answer in [beast.await, next.await] {
        let error = answer.unwrap_err();
        let ProposeError::Unknown { cause } = &error else { panic!("{error}") };
        assert!(cause.contains("the number of the beast"), "{cause}");
    }
    assert!(raft.stopped().await.contains("the number of the beast"));
    assert!(matches!(raft.propose(1).await, Err(ProposeError::Stopped { .. })));
    assert!(matches!(raft.read(|_| ()).await, Err(ReadError::Stopped { .. })));
    assert!(raft.status().stopped.unwrap().contains("the number of the beast"));
    assert_eq!(bystander.propose(7).await.unwrap().response, 7);
}

#[actix::test]
async fn a_dead_disk_stops_the_system_and_nothing_is_promised() {
    let disk = MemoryDisk::new();
    let raft = start(&MemoryNetwork::new(), 1, &disk, founders(1)).await;
    raft.propose(1).await.unwrap();
    disk.fail_next("a test's failing disk");
    let error = raft.propose(2).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(error.to_string().contains("a test's failing disk"), "{error}");
    assert!(raft.stopped().await.contains("a test's failing disk"));
    assert!(raft.status().last_error.unwrap().contains("a test's failing disk"));
}

/// A store whose readers panic once they are told to. With a tail in memory of next to nothing, the core
/// meets that reader as soon as a follower needs an old entry.
struct Haunted(Box<dyn LogStore>, Arc<AtomicBool>);

struct HauntedReader(Arc<dyn LogReader>, Arc<AtomicBool>);

impl LogStore for Haunted {
    fn identity(&self) -> StoreIdentity {
        self.0.identity()
    }

    fn recover(&self, group: GroupId) -> Result<Recovered, StoreError> {
        self.0.recover(group)
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(HauntedReader(self.0.reader(), self.1.clone()))
    }

    fn snapshot_store(&self) -> Arc<actorum_store::snapshot::SnapshotStore> {
        self.0.snapshot_store()
    }

    fn start(self: Box<Self>, completed: Completions) -> Box<dyn LogAppender> {
        self.0.start(completed)
    }
}

impl LogReader for HauntedReader {
    fn entries(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        assert!(!self.1.load(Ordering::SeqCst), "a test's ghost in the reader");
        self.0.entries(group, from, to, max_bytes)
    }

    fn first_index(&self, group: GroupId) -> u64 {
        self.0.first_index(group)
    }

    fn disk_bytes(&self) -> u64 {
        self.0.disk_bytes()
    }
}

#[actix::test]
async fn a_panic_in_the_core_stops_its_system_and_nothing_else() {
    let (network, haunted) = (MemoryNetwork::new(), Arc::new(AtomicBool::new(false)));
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let disk = MemoryDisk::new().open(id, Incarnation(id)).unwrap();
        let storage = Storage::Custom(Box::new(Haunted(Box::new(disk), haunted.clone())));
        let builder = RaftSystem::<Sum>::builder(id).network(Network::Memory(network.clone())).storage(storage);
        let builder = builder.bootstrap(founders(3)).configure(quick).configure(|c| c.log_tail_bytes = 1);
        nodes.push(builder.start().await.unwrap());
    }
    let bystander = start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await;
    let id = nodes[0].wait_for_leader(TIMEOUT).await.unwrap().leader.unwrap();
    let [behind, other] = [id % 3 + 1, (id + 1) % 3 + 1];
    let leader = &nodes[id as usize - 1];
    network.isolate(behind);
    for _ in 0..20 {
        leader.propose_within(1, TIMEOUT).await.unwrap();
    }
    // The only one that could commit it is cut off; the one that comes back needs what only the disk holds.
    network.isolate(other);
    let pending = leader.submit_within(1, TIMEOUT);
    haunted.store(true, Ordering::SeqCst);
    network.heal(id, behind);
    network.heal(behind, id);

    let cause = leader.stopped().await;
    assert!(cause.contains("panicked: a test's ghost in the reader"), "{cause}");
    assert_eq!(leader.status().stopped, Some(cause.clone()));
    assert_eq!(pending.await.unwrap_err(), ProposeError::Unknown { cause: cause.clone() });
    assert_eq!(leader.propose(1).await.unwrap_err(), ProposeError::Stopped { cause });
    assert_eq!(bystander.propose(7).await.unwrap().response, 7);
}

#[actix::test]
async fn a_forward_that_the_leader_cannot_decode_never_reaches_its_log() {
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Words;
    impl StateMachine for Words {
        type Command = String;
        type Response = u64;
        fn apply(&mut self, _: &ApplyContext, _: &String) -> u64 {
            0
        }
        serde_snapshot!();
    }
    let network = MemoryNetwork::new();
    let leader = start(&network, 1, &MemoryDisk::new(), founders(1)).await;
    leader.wait_for_leader(TIMEOUT).await.unwrap();
    let other = RaftSystem::<Words>::builder(2).network(Network::Memory(network)).storage(on(&MemoryDisk::new(), 2));
    let other = other.bootstrap(Bootstrap::Wait).configure(quick).start().await.unwrap();
    leader.change_within(ConfChange::AddLearner(2, "n2".into()), TIMEOUT).await.unwrap();
    other.wait_for_leader(TIMEOUT).await.unwrap();
    let error = other.propose_within("not a number".into(), TIMEOUT).await.unwrap_err();
    assert!(matches!(error, ProposeError::Invalid { .. }), "{error}");
    assert_eq!(leader.propose(7).await.unwrap().response, 7, "it would have died of an entry that it cannot decode");
}

#[actix::test]
async fn when_the_last_handle_goes_every_actor_goes() {
    /// Goes with the applier, which alone holds the machine.
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Held(#[serde(skip)] Option<Arc<()>>);
    impl StateMachine for Held {
        type Command = u64;
        type Response = ();
        fn apply(&mut self, _: &ApplyContext, _: &u64) {}
        serde_snapshot!();
    }
    let (network, disk) = (MemoryNetwork::new(), MemoryDisk::new());
    let (clock, held) = (actorum_actors::clock::SystemClock::shared(), Arc::new(()));
    let builder = RaftSystem::builder(1).state_machine(Held(Some(held.clone()))).clock(clock.clone());
    let builder = builder.network(Network::Memory(network)).storage(on(&disk, 1)).bootstrap(founders(1));
    let raft = builder.configure(quick).start().await.unwrap();
    raft.propose(1).await.unwrap();
    assert!(Arc::strong_count(&clock) > 1 && Arc::strong_count(&held) > 1 && is_open(&disk, 1));
    let system = raft.addr().downgrade();
    drop(raft);
    // The disk goes with the log writer, the machine with the applier, and the clock with the core, which the
    // membership manager would keep alive.
    while system.upgrade().is_some()
        || is_open(&disk, 1)
        || Arc::strong_count(&held) > 1
        || Arc::strong_count(&clock) > 1
    {
        actix::clock::sleep(Duration::from_millis(5)).await;
    }
}

#[actix::test]
async fn an_answer_that_cannot_be_given_stops_the_system() {
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Mute;
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct Answer;
    impl Clone for Answer {
        fn clone(&self) -> Self {
            panic!("not to be told")
        }
    }
    impl StateMachine for Mute {
        type Command = ();
        type Response = Answer;
        fn apply(&mut self, _: &ApplyContext, (): &()) -> Answer {
            Answer
        }
        serde_snapshot!();
    }
    struct Listener;
    impl Actor for Listener {
        type Context = Context<Self>;
    }
    impl Handler<Event<Mute>> for Listener {
        type Result = ();
        fn handle(&mut self, _: Event<Mute>, _: &mut Context<Self>) {}
    }
    let builder = RaftSystem::<Mute>::builder(1)
        .network(Network::Memory(MemoryNetwork::new()))
        .storage(on(&MemoryDisk::new(), 1));
    let raft = builder.bootstrap(founders(1)).configure(quick).start().await.unwrap();
    raft.propose(()).await.unwrap();
    raft.subscribe(Subscribe::new(Listener.start().recipient())).await.unwrap();
    let error = raft.propose(()).await.unwrap_err();
    assert!(error.to_string().contains("not to be told"), "{error}");
}

#[actix::test]
async fn every_node_tells_its_subscribers_the_same_story() {
    #[derive(Clone)]
    struct Listener(tokio::sync::mpsc::UnboundedSender<(u64, u64, Option<u64>)>);
    impl Actor for Listener {
        type Context = Context<Self>;
    }
    impl Handler<Events<Sum>> for Listener {
        type Result = ();
        fn handle(&mut self, Events(events): Events<Sum>, _: &mut Context<Self>) {
            for event in events {
                if let Event::Applied { index, command, response, .. } = event {
                    self.0.send((index, *command, response.map(|r| *r))).unwrap();
                }
            }
        }
    }
    let (network, disks) = (MemoryNetwork::new(), Default::default());
    let nodes = three(&network, &disks).await;
    let mut stories = Vec::new();
    for node in &nodes {
        let (sender, story) = tokio::sync::mpsc::unbounded_channel();
        node.subscribe(Subscribe::batched(Listener(sender).start().recipient()).after(0)).await.unwrap();
        stories.push(story);
    }
    let answers: Vec<_> = (1..=100).map(|n| nodes[n % 3].submit(n as u64)).collect();
    for answer in answers {
        answer.await.unwrap();
    }
    let mut told: Vec<Vec<_>> = Vec::new();
    for story in &mut stories {
        let mut lines = Vec::new();
        while lines.len() < 100 {
            lines.push(story.recv().await.unwrap());
        }
        told.push(lines);
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0], told[2]);
    assert_eq!(told[0].last().unwrap().2, Some(5050));
}

#[actix::test]
async fn the_applier_may_have_a_thread_of_its_own() {
    let disk = MemoryDisk::new();
    let builder = RaftSystem::<Sum>::builder(1).network(Network::Memory(MemoryNetwork::new())).storage(on(&disk, 1));
    let spread = |c: &mut Config| c.placement = actorum::config::Placement::Spread;
    let raft = builder.bootstrap(founders(1)).configure(quick).configure(spread).start().await.unwrap();
    assert_eq!(raft.propose(40).await.unwrap().response, 40);
    let here = std::thread::current().id();
    assert_ne!(raft.read_stale(|_| std::thread::current().id()).await.unwrap(), here);
    raft.shutdown().await;
    assert!(!is_open(&disk, 1));
}

#[actix::test]
async fn a_shutdown_finishes_what_is_in_flight() {
    let raft = start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await;
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    let answers: Vec<_> = (0..500).map(|_| raft.submit(1)).collect();
    let shutdown = actix::spawn({
        let raft = raft.clone();
        async move { raft.shutdown().await }
    });
    for answer in answers {
        answer.await.unwrap();
    }
    shutdown.await.unwrap();
    assert_eq!(raft.status().stopped.as_deref(), Some("it was shut down"));
    assert_eq!(raft.stopped().await, "it was shut down");
}

/// What a shutdown cannot finish it answers, before it has ended: nobody needs to be there any longer to hear it.
#[actix::test]
async fn a_shutdown_answers_what_it_cannot_finish() {
    let network = MemoryNetwork::new();
    let one = start(&network, 1, &MemoryDisk::new(), founders(2)).await;
    let two = start(&network, 2, &MemoryDisk::new(), founders(2)).await;
    let leads = one.wait_for_leader(TIMEOUT).await.unwrap().leader;
    let (leader, other) = if leads == Some(1) { (one, two) } else { (two, one) };
    assert_eq!(leader.propose_within(1, TIMEOUT).await.unwrap().response, 1);
    other.shutdown().await;
    let long = Duration::from_secs(600);
    let spawn = |future: std::pin::Pin<Box<dyn Future<Output = String>>>| actix::spawn(future);
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let raft = leader.clone();
        waiting.push(spawn(Box::pin(async move { format!("{:?}", raft.propose_within(1, long).await.map(|_| ())) })));
        let raft = leader.clone();
        let read = Read::linearizable(|sum: &Sum| sum.total).deadline(long);
        waiting.push(spawn(Box::pin(async move { format!("{:?}", raft.read_with(read).await) })));
    }
    let raft = leader.clone();
    let change = ConfChange::AddLearner(3, Address::from("n3"));
    waiting.push(spawn(Box::pin(async move { format!("{:?}", raft.change_within(change, long).await) })));
    leader.wait(TIMEOUT, |status| status.queues.in_flight == 11).await.unwrap();
    leader.shutdown().await;
    // One turn for the tasks to take what is there.
    tokio::task::yield_now().await;
    for answered in waiting {
        assert!(answered.is_finished(), "it was answered before the end");
        let answer = answered.await.unwrap();
        assert!(answer.starts_with("Err(") && answer.contains("shut down"), "{answer}");
    }
}

#[actix::test]
async fn admission_is_bounded_and_says_so() {
    let builder =
        RaftSystem::<Sum>::builder(1).network(Network::Memory(MemoryNetwork::new())).storage(on(&MemoryDisk::new(), 1));
    let builder = builder.bootstrap(founders(1)).configure(quick).configure(|c| {
        c.max_in_flight = 2;
        c.max_entry_bytes = 64;
    });
    let raft = builder.start().await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    let (first, second, third) = (raft.submit(1), raft.submit(2), raft.submit(3));
    assert!(matches!(third.await, Err(ProposeError::Busy { bound: BusyBound::InFlight { requests: 2, .. } })));
    assert_eq!((first.await.unwrap().response, second.await.unwrap().response), (1, 3));
    assert_eq!(raft.submit(4).await.unwrap().response, 7);
}

#[actix::test]
async fn without_a_majority_nothing_is_promised() {
    let (network, disks): (_, [MemoryDisk; 3]) = (MemoryNetwork::new(), Default::default());
    let [leader, follower, _other] = three(&network, &disks).await;
    network.isolate(leader.status().id);
    let short = Duration::from_millis(300);
    assert_eq!(leader.propose_within(1, short).await.unwrap_err().outcome(), Outcome::Unknown);
    let read = leader.read_with(Read::linearizable(|sum: &Sum| sum.total).deadline(short)).await;
    assert!(
        matches!(read, Err(ReadError::Unavailable { reason: Reason::NoMajority | Reason::NoLeader, .. })),
        "{read:?}"
    );
    assert_eq!(leader.read_stale(|sum| sum.total).await.unwrap(), 0);
    assert!(matches!(leader.wait_applied(999, short).await, Err(WaitError::TimedOut(_))));
    network.heal_all();
    leader.wait(TIMEOUT, |s| s.leader.is_some()).await.unwrap();
    follower.propose_within(1, TIMEOUT).await.unwrap();
}

#[tokio::test]
async fn it_works_under_tokio_on_a_thread_of_its_own() {
    let disk = MemoryDisk::new();
    let raft = start(&MemoryNetwork::new(), 1, &disk, founders(1)).await;
    let task = tokio::spawn({
        let raft = raft.clone();
        async move { raft.propose(40).await.unwrap().response }
    });
    assert_eq!(task.await.unwrap(), 40);
    raft.wait_applied(2, TIMEOUT).await.unwrap();
    raft.shutdown().await;
    assert!(!is_open(&disk, 1));
}

#[test]
fn it_works_on_plain_threads() {
    let raft = Arc::new(block_on(async { start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await }));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let raft = raft.clone();
            std::thread::spawn(move || block_on(raft.propose(10)).unwrap().response)
        })
        .collect();
    let mut totals: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    totals.sort_unstable();
    assert_eq!(totals, [10, 20, 30, 40]);
    block_on(raft.wait_applied(2, TIMEOUT)).unwrap();
    block_on(raft.shutdown());
}

/// As a thread without any runtime would.
fn block_on<F: std::future::Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

#[actix::test]
async fn what_cannot_start_says_why() {
    let error = |result: Result<Raft<Sum>, StartError>| result.expect_err("it must not start").to_string();
    let builder = |id| RaftSystem::<Sum>::builder(id).network(Network::Memory(MemoryNetwork::new()));
    let refused = error(builder(4).storage(on(&MemoryDisk::new(), 4)).bootstrap(founders(3)).start().await);
    assert!(refused.starts_with("node 4 is not in its own list of founders (1, 2, 3): "), "{refused}");
    let refused = error(builder(1).start().await);
    assert!(refused.starts_with("configuration: storage: "), "{refused}");
    let refused = error(builder(0).storage(on(&MemoryDisk::new(), 1)).start().await);
    assert!(refused.starts_with("configuration: id: "), "{refused}");
    let refused = error(builder(2).storage(on(&MemoryDisk::new(), 1)).start().await);
    assert!(refused.contains("belongs to node 1, not to node 2"), "{refused}");
    let refused = error(builder(1).storage(on(&MemoryDisk::new(), 1)).configure(|c| c.heartbeat_ms = 0).start().await);
    assert!(refused.starts_with("configuration: heartbeat_ms: "), "{refused}");
}
