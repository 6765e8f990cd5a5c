//! Subscribers without an applier: where they may begin, what they are told, and how much may wait for them.

use std::time::Duration;

use super::*;
use crate::{
    entry::Draft,
    machine::ApplyContext,
    testkit::{Sum, TestStore, empty},
};
use actorum_transport::wire::Entry;
use bytes::Bytes;

const CLUSTER: ClusterId = ClusterId(7);
const AMPLE: BufferBounds = BufferBounds { events: 1000, bytes: usize::MAX };

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A command of one, proposed at that second.
fn stamped(index: u64, second: u64) -> Entry {
    let data = Draft::command(&1u64).unwrap().stamp(at(second)).into();
    Entry { kind: EntryKind::Normal, term: 1, index, data, context: Bytes::new() }
}

fn subscribers(entries: impl IntoIterator<Item = Entry>, bounds: BufferBounds) -> Subscribers<Sum> {
    let mut subscribers = Subscribers::new(GroupId::FIRST, Arc::new(TestStore::with_entries(entries)), bounds);
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
    let mut subscribers = Subscribers::<Sum>::new(GroupId::FIRST, Arc::new(TestStore::default()), AMPLE);
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
