//! Subscribers without an applier: where they may begin, what they are told, and how much may wait for them.

use std::time::Duration;

use actorum_core::{
    entry::EncodedCommand,
    log::store::{HardState, Recovered},
    replica::{Replica, replay},
    testkit::{Sum, change, empty, genesis},
    wire::Entry,
};
use actorum_machine::machine::ApplyContext;
use actorum_store::snapshot::{SnapshotStore, store::Content};
use bytes::Bytes;

use super::*;
use crate::testkit::TestStore;

const CLUSTER: ClusterId = ClusterId(7);
const AMPLE: BufferBounds = BufferBounds { events: 1000, bytes: usize::MAX };

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A command of one, proposed at that second.
fn stamped(index: u64, second: u64) -> Entry {
    let data = EncodedCommand::command(&1u64).unwrap().stamp(at(second)).into();
    Entry { kind: EntryKind::Normal, term: 1, index, data, context: Bytes::new() }
}

fn subscribers(entries: impl IntoIterator<Item = Entry>, bounds: BufferBounds) -> Subscribers<Sum> {
    let times = Arc::<Times>::default();
    times.begin(GENESIS_INDEX, SystemTime::UNIX_EPOCH);
    let mut subscribers = Subscribers::new(GroupId::FIRST, Arc::new(TestStore::with_entries(entries)), times, bounds);
    subscribers.set_cluster(Some(CLUSTER));
    subscribers
}

/// A subscriber that takes one event after the other, when the test does.
fn channel() -> (Subscriber<Sum>, mpsc::Receiver<Event<Sum>>) {
    let (sender, receiver) = mpsc::channel(1);
    (Subscriber::Channel(sender), receiver)
}

fn from(subscriber: Subscriber<Sum>, after: impl Into<After>) -> SubscribeFrom<Sum> {
    SubscribeFrom { subscriber, after: after.into(), wants: Wants::Everything }
}

fn apply(subscribers: &mut Subscribers<Sum>, index: u64, bytes: usize) {
    subscribers.command((index, 1, at(index)), bytes, &Arc::new(1), &Arc::new(index));
}

#[actix_rt::test]
async fn a_position_of_another_cluster_or_of_the_future_is_answered() {
    let mut subscribers = subscribers([empty(2, 1)], AMPLE);
    let foreign = Position { cluster: ClusterId(8), index: 1 };
    let refused = subscribers.subscribe(from(channel().0, foreign), 2);
    assert_eq!(refused, Err(SubscribeError::ForeignPosition { position: foreign, cluster: CLUSTER }));
    for index in [3, u64::MAX - 1, u64::MAX] {
        for after in [After::Index(index), After::Position(Position { cluster: CLUSTER, index })] {
            let refused = subscribers.subscribe(from(channel().0, after), 2);
            assert_eq!(refused, Err(SubscribeError::FuturePosition { index, applied: 2 }), "{after:?}");
        }
    }
    assert!(subscribers.is_empty());
    let (subscriber, mut told) = channel();
    let present = Position { cluster: CLUSTER, index: 2 };
    subscribers.subscribe(from(subscriber, present), 2).unwrap();
    apply(&mut subscribers, 3, 10);
    assert_eq!(told.recv().await.unwrap().position(), Some(Position { index: 3, ..present }));
}

#[actix_rt::test]
async fn a_node_of_no_cluster_takes_no_position_for_its_own() {
    let mut subscribers =
        Subscribers::<Sum>::new(GroupId::FIRST, Arc::new(TestStore::default()), Arc::default(), AMPLE);
    let position = Position { cluster: CLUSTER, index: 0 };
    let refused = subscribers.subscribe(from(channel().0, position), 0);
    assert_eq!(refused, Err(SubscribeError::FuturePosition { index: 0, applied: 0 }));
    subscribers.subscribe(from(channel().0, 0), 0).unwrap();
}

#[actix_rt::test]
async fn bytes_that_wait_are_bounded_and_one_event_always_passes() {
    let mut subscribers = subscribers([], BufferBounds { events: 1000, bytes: 100 });
    let (subscriber, mut told) = channel();
    subscribers.subscribe(from(subscriber, After::Now), 1).unwrap();
    // One that is larger than all that may wait, into an empty buffer; taken, before the next comes.
    for index in [2, 3] {
        apply(&mut subscribers, index, 1000);
        assert_eq!(told.recv().await.unwrap().position().unwrap().index, index);
        // The pump has the word that it was taken before it can wait for the next.
        while subscribers.feeds.values().any(|feed| feed.waiting.load(Ordering::Relaxed) > 0) {
            tokio::task::yield_now().await;
        }
    }
    for index in 4..=7 {
        apply(&mut subscribers, index, 30);
    }
    assert!(subscribers.is_empty(), "four times thirty bytes are more than a hundred, whatever the number may be");
    for index in 4..=6 {
        assert_eq!(told.recv().await.unwrap().position().unwrap().index, index);
    }
    let lagged = told.recv().await.unwrap();
    assert!(matches!(lagged, Event::Lagged { resume_after: 6, cluster: Some(CLUSTER) }));
    assert_eq!(lagged.position(), Some(Position { cluster: CLUSTER, index: 6 }));
    assert!(told.recv().await.is_none(), "that was the last word");
}

#[actix_rt::test]
async fn the_time_is_told_and_never_runs_backwards() {
    let past = [stamped(2, 50), stamped(3, 40), stamped(4, 60)];
    let mut subscribers = subscribers(past, AMPLE);
    let (subscriber, mut told) = channel();
    subscribers.subscribe(from(subscriber, 0), 4).unwrap();
    subscribers.command((5, 1, ApplyContext::new(5, 1, at(61)).time), 10, &Arc::new(1), &Arc::new(4));
    for expected in [(2, 50), (3, 50), (4, 60), (5, 61)] {
        let Some(Event::Applied { index, time, .. }) = told.recv().await else { panic!("a command") };
        assert_eq!((index, time), (expected.0, at(expected.1)));
    }
}

/// A machine that writes down which time it saw with which index.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Diary(BTreeMap<u64, SystemTime>);

impl StateMachine for Diary {
    type Command = String;
    type Response = ();
    fn apply(&mut self, ctx: &ApplyContext, _: &String) {
        self.0.insert(ctx.index, ctx.time);
    }
    actorum_machine::serde_snapshot!();
}

/// Everything a subscriber hears that resumes there, up to the last one: index and time of each command, and the index
/// of what took the place of others.
async fn resumed(subscribers: &mut Subscribers<Diary>, after: u64, last: u64) -> (Vec<(u64, SystemTime)>, Option<u64>) {
    let (sender, mut told) = mpsc::channel(1);
    let subscribe =
        SubscribeFrom { subscriber: Subscriber::Channel(sender), after: After::Index(after), wants: Wants::Everything };
    subscribers.subscribe(subscribe, last).unwrap();
    subscribers.event(&Event::LeadershipChanged { leader: Some(9), term: 9 });
    let (mut commands, mut instead) = (Vec::new(), None);
    loop {
        match told.recv().await.unwrap() {
            Event::Applied { index, time, .. } => commands.push((index, time)),
            Event::SnapshotInstalled { index, .. } => assert!(instead.replace(index).is_none() && commands.is_empty()),
            Event::LeadershipChanged { .. } => return (commands, instead),
            _ => panic!("neither a command nor what takes the place of some"),
        }
    }
}

/// Whatever the stamps, wherever somebody resumes, behind snapshots and after starts: the same event has the same time.
#[actix_rt::test]
async fn an_event_has_the_time_that_apply_saw_wherever_reading_begins() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seed.map_or(1..=24u64, |seed: u64| seed..=seed);
    let (mut backwards, mut on_the_way, mut replaced) = (0, 0, 0);
    for seed in seeds {
        println!("SEED={seed}");
        let mut rng = seed;
        let mut roll = |sides: u64| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (rng >> 33) % sides
        };
        let files = SnapshotStore::memory().of(GroupId::FIRST);
        let mut replica = Replica::new(Diary::default());
        replica.restore(&genesis(), &files).unwrap();
        let mut log: Vec<Entry> = Vec::new();
        let mut snapshots = vec![genesis()];
        let last = 20 + roll(60);
        for index in 2..=last {
            let bytes = [0, 10, 1 << 16, 1 << 19, 2 << 20][roll(5) as usize];
            let encoded = EncodedCommand::command(&"x".repeat(bytes)).unwrap();
            let stamp = at(1 + [roll(10), 1000 - index, 1000 + index][roll(3) as usize]);
            let id = actorum_core::entry::ChangeId { node: 1, boot: 1, number: index };
            let entry = match roll(12) {
                0 => empty(index, 1),
                1 => change(
                    index,
                    1,
                    &actorum_core::entry::SystemCommand::Change {
                        id,
                        change: actorum_machine::members::Change::Remove(9),
                        forced: false,
                    },
                ),
                2 => {
                    let data = EncodedCommand::system(&actorum_core::entry::SystemCommand::Mark { restart: false })
                        .unwrap()
                        .stamp(stamp)
                        .into();
                    Entry { data, ..empty(index, 1) }
                }
                _ => Entry { data: encoded.stamp(stamp).into(), ..empty(index, 1) },
            };
            replica.apply(&entry).unwrap();
            log.push(entry);
            if roll(40) == 0 {
                let (index, term, system, state) = replica.capture().unwrap();
                let content = Content { index, term, system, formed_with: BTreeMap::new(), state };
                snapshots.push(files.build(content, &mut |_| {}).unwrap());
                snapshots.drain(..snapshots.len().saturating_sub(2));
            }
        }
        let oldest = snapshots[0].index;
        // A store lets go of whole blocks only, so some of what the older snapshot covers may be there.
        let compacted_index = oldest - roll(4).min(oldest - 1);
        let store = TestStore::with_entries(log.into_iter().filter(|entry| entry.index > compacted_index));
        let saw = replica.machine().0.clone();
        let hard_state = HardState { term: 1, vote: 1, commit: last };
        let terms = vec![(compacted_index, 1)];
        let recovered = Recovered { snapshots, hard_state, last_index: last, terms, sizes: Vec::new() };
        let again = replay(GroupId::FIRST, &store, &recovered, &files, Diary::default()).unwrap().replica;
        assert_eq!(again.machine().0, saw);
        for times in [replica.times(), again.times()] {
            let mut subscribers = Subscribers::new(GroupId::FIRST, Arc::new(store.clone()), times, AMPLE);
            subscribers.set_cluster(Some(CLUSTER));
            for _ in 0..12 {
                let after = roll(last + 1);
                let (commands, instead) = resumed(&mut subscribers, after, last).await;
                assert!(instead.is_none() || after < oldest, "all after {oldest} is there, and {after} was asked for");
                let begins = instead.unwrap_or(after);
                assert!(
                    begins >= after && begins <= oldest.max(after),
                    "no more is left out than the older snapshot covers"
                );
                let expected = saw.range(begins + 1..).map(|(&index, &time)| (index, time));
                assert_eq!(commands, expected.collect::<Vec<_>>(), "after {after} of {last}");
                replaced += usize::from(instead.is_some());
                on_the_way += usize::from(subscribers.times.up_to(begins).is_some_and(|(index, _)| index < begins));
                backwards += commands
                    .iter()
                    .filter(|(index, time)| {
                        let entry = subscribers.reader.entries(GroupId::FIRST, *index, index + 1, 1).unwrap().remove(0);
                        Stamped::parse(&entry.data).unwrap().time < *time
                    })
                    .count();
            }
        }
    }
    if seed.is_none() {
        assert!(backwards > 1000 && on_the_way > 100 && replaced > 10, "{backwards} {on_the_way} {replaced}");
    }
}

#[actix_rt::test]
async fn who_asks_for_leadership_hears_who_leads_now_and_then_nothing_else() {
    let mut subscribers = subscribers([], AMPLE);
    subscribers.leads(Some(3), 5);
    let (subscriber, mut told) = channel();
    let after = After::Index(u64::MAX);
    subscribers.subscribe(SubscribeFrom { subscriber, after, wants: Wants::Leadership }, 1).unwrap();
    apply(&mut subscribers, 2, 10);
    subscribers.installed(9);
    subscribers.event(&Event::MembershipChanged { index: 9, membership: Arc::default() });
    subscribers.leads(None, 6);
    subscribers.leads(Some(1), 6);
    for expected in [(Some(3), 5), (None, 6), (Some(1), 6)] {
        let Some(Event::LeadershipChanged { leader, term }) = told.recv().await else { panic!("a leader") };
        assert_eq!((leader, term), expected);
    }
    assert!(told.try_recv().is_err());
}

#[actix_rt::test]
async fn what_begins_inside_a_read_follows_that_very_state() {
    let mut subscribers = subscribers([], AMPLE);
    let machine = Sum { total: 4, ..Sum::default() };
    let (subscriber, mut told) = channel();
    let mut view = View { applied: 5, machine: &machine, subscribers: &mut subscribers };
    assert_eq!(view.position(), Some(Position { cluster: CLUSTER, index: 5 }));
    view.follow(subscriber);
    apply(&mut subscribers, 6, 10);
    let Some(Event::Applied { index: 6, response: Some(_), .. }) = told.recv().await else {
        panic!("6 with its response")
    };
}

/// Whoever opens and leaves streams while nothing is applied leaves nothing behind.
#[actix_rt::test]
async fn who_has_gone_is_forgotten_by_the_next_subscription() {
    let mut subscribers = subscribers([], AMPLE);
    for _ in 0..100 {
        subscribers.subscribe(from(channel().0, After::Now), 1).unwrap();
    }
    assert_eq!(subscribers.len(), 1);
}

#[actix::test]
async fn who_leads_is_told_once_however_often_this_node_changes_its_role() {
    let (sender, mut told) = mpsc::channel(8);
    let mut subscribers = Subscribers::<Sum>::new(
        GroupId::FIRST,
        Arc::new(TestStore::default()),
        Arc::default(),
        BufferBounds { events: 8, bytes: usize::MAX },
    );
    subscribers.leads(None, 1);
    let after = After::Now;
    let subscribe = SubscribeFrom { subscriber: Subscriber::Channel(sender), after, wants: Wants::Leadership };
    subscribers.subscribe(subscribe, 0).unwrap();
    [(None, 1), (None, 1), (Some(2), 1), (Some(2), 1), (None, 2)]
        .into_iter()
        .for_each(|(leader, term)| subscribers.leads(leader, term));
    for expected in [(None, 1), (Some(2), 1), (None, 2)] {
        let Some(Event::LeadershipChanged { leader, term }) = told.recv().await else { panic!("something else") };
        assert_eq!((leader, term), expected);
    }
}
