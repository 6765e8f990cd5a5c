//! Following what is applied, from a read, a position or now: by actors and by streams, under load and across nodes.

use std::sync::Arc;

use crate::support::{MemoryDisk, MemoryNetwork, Sum, TIMEOUT, founders, on, quick, start, three};
use actix::prelude::*;
use actorum::prelude::*;
use tokio::sync::mpsc;

/// Hands on what it hears.
struct Listener(mpsc::UnboundedSender<Event<Sum>>);

impl Listener {
    fn open() -> (Recipient<Event<Sum>>, mpsc::UnboundedReceiver<Event<Sum>>) {
        let (sender, heard) = mpsc::unbounded_channel();
        (Listener(sender).start().recipient(), heard)
    }
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<Event<Sum>> for Listener {
    type Result = ();
    fn handle(&mut self, event: Event<Sum>, _: &mut Context<Self>) {
        // A test that has heard enough is gone.
        let _ = self.0.send(event);
    }
}

/// A command as it was told: index, command, response.
fn applied(event: Event<Sum>) -> Option<(u64, u64, Option<u64>)> {
    match event {
        Event::Applied { index, command, response, .. } => Some((index, *command, response.map(|total| *total))),
        _ => None,
    }
}

/// A queue of 3,000 jobs fills while somebody begins to follow it, here and there, by every way there is: what was read
/// and what was told after it is everything, once, in order, and whatever was told has its response.
#[actix::test]
async fn what_follows_a_read_is_all_that_follows_and_each_has_its_response() {
    const COUNT: u64 = 3000;
    let (network, disks) = (MemoryNetwork::new(), Default::default());
    let nodes = three(&network, &disks).await;
    let load = {
        let nodes = nodes.clone();
        actix::spawn(async move {
            for chunk in (1..=COUNT).collect::<Vec<_>>().chunks(50) {
                let answers: Vec<_> = chunk.iter().map(|n| nodes[(*n % 3) as usize].submit(1000 + *n)).collect();
                for answer in answers {
                    answer.await.unwrap();
                }
            }
        })
    };
    let mut followers = Vec::new();
    for round in 0..12 {
        let node = &nodes[round % 3];
        node.wait(TIMEOUT, |s| s.totals.commands_applied >= round as u64 * 200).await.unwrap();
        let look = |sum: &Sum| sum.seen.clone();
        if round % 2 == 0 {
            let (recipient, mut heard) = Listener::open();
            let followed = match round % 4 {
                0 => node.follow(look, recipient).await.unwrap(),
                _ => node.addr().send(Follow::new(look, recipient).deadline(TIMEOUT)).await.unwrap().unwrap(),
            };
            followers.push(actix::spawn(async move {
                let mut told = Vec::new();
                while followed.value.len() + told.len() < COUNT as usize {
                    told.extend(heard.recv().await.and_then(applied));
                }
                (followed.position, followed.value, told)
            }));
        } else {
            let (followed, mut events) = node.follow_events(look).await.unwrap();
            followers.push(actix::spawn(async move {
                let mut told = Vec::new();
                while followed.value.len() + told.len() < COUNT as usize {
                    told.extend(events.next().await.and_then(applied));
                }
                (followed.position, followed.value, told)
            }));
        }
    }
    load.await.unwrap();
    let everything = nodes[0].read(|sum| sum.seen.clone()).await.unwrap();
    let cluster = nodes[0].status().cluster.unwrap();
    let mut followed_some = false;
    for follower in followers {
        let (position, read, told) =
            tokio::time::timeout(TIMEOUT, follower).await.expect("everything is told").unwrap();
        assert_eq!(position.cluster, cluster);
        assert!(told.first().is_none_or(|(index, ..)| *index > position.index), "it follows what was read");
        assert!(told.is_sorted_by(|(a, ..), (b, ..)| a < b), "in order, none twice");
        let without = told.iter().filter(|(.., response)| response.is_none()).count();
        assert_eq!(without, 0, "of {} commands some were told without their response", told.len());
        let totals = everything.iter().scan(0, |total, n| {
            *total += n;
            Some(*total)
        });
        assert_eq!(told.iter().map(|(.., total)| total.unwrap()).collect::<Vec<_>>(), {
            totals.skip(read.len()).collect::<Vec<_>>()
        });
        let all: Vec<u64> = read.into_iter().chain(told.iter().map(|(_, n, _)| *n)).collect();
        assert_eq!(all, everything);
        followed_some |= !told.is_empty();
    }
    assert!(followed_some, "somebody began while there was still something to come");
}

/// A node that is behind the one that was asked before is no reason to begin anew, and none to say nothing: it catches
/// up, or says that it cannot tell.
#[actix::test]
async fn a_position_is_taken_by_every_node_of_its_cluster_also_by_one_that_is_behind() {
    let (network, disks) = (MemoryNetwork::new(), Default::default());
    let [leader, behind, _other] = three(&network, &disks).await;
    let first = leader.propose(1).await.unwrap().index;
    behind.wait_applied(first, TIMEOUT).await.unwrap();
    network.isolate(behind.status().id);
    let mut events = leader.events(first).await.unwrap();
    leader.propose(2).await.unwrap();
    let position = events.next().await.unwrap().position().unwrap();
    let later = leader.propose(3).await.unwrap().index;

    let (recipient, _heard) = Listener::open();
    let ask = behind.subscribe(Subscribe::new(recipient).after(position));
    let error = tokio::time::timeout(TIMEOUT, ask).await.expect("it is answered").unwrap_err();
    // Entries of the system's own may have come before it was cut off.
    assert!(
        matches!(error, SubscribeError::Behind { index, applied, .. }
            if index == position.index && (first..position.index).contains(&applied)),
        "{error}"
    );

    // The same question, asked when it can be found out.
    network.heal_all();
    let mut events = loop {
        match behind.events(position).await {
            Ok(events) => break events,
            Err(error) => assert!(matches!(error, SubscribeError::Behind { .. }), "{error}"),
        }
    };
    assert_eq!(events.next().await.unwrap().position(), Some(Position { index: later, ..position }));

    let foreign = Position { cluster: actorum::ClusterId(position.cluster.0 ^ 1), ..position };
    let error = behind.events(foreign).await.map(|_| ()).unwrap_err();
    assert_eq!(error, SubscribeError::ForeignPosition { position: foreign, cluster: position.cluster });
    for index in [later + 1, u64::MAX - 1, u64::MAX] {
        for after in [After::Index(index), After::Position(Position { index, ..position })] {
            let error = behind.events(after).await.map(|_| ()).unwrap_err();
            assert!(matches!(error, SubscribeError::FuturePosition { index: asked, .. } if asked == index), "{error}");
        }
    }
    assert!(behind.status().stopped.is_none());
}

/// Who asks for leadership hears who leads, then who leads next, and none of the commands.
#[actix::test]
async fn leadership_is_told_from_the_present_on_and_without_commands() {
    let (network, disks) = (MemoryNetwork::new(), Default::default());
    let [leader, follower, other] = three(&network, &disks).await;
    let (old, term) = (leader.status().id, follower.status().term);
    let (recipient, mut heard) = Listener::open();
    follower.subscribe(Subscribe::leadership(recipient)).await.unwrap();
    for n in 0..20 {
        follower.propose(n).await.unwrap();
    }
    leader.shutdown().await;
    let id = other.wait(TIMEOUT, |s| s.leader.is_some_and(|id| id != old)).await.unwrap().leader;
    let mut story = Vec::new();
    while story.last().is_none_or(|(leader, _)| *leader != id) {
        let event = tokio::time::timeout(TIMEOUT, heard.recv()).await.expect("somebody leads").unwrap();
        let Event::LeadershipChanged { leader, term } = event else { panic!("no command was asked for") };
        story.push((leader, term));
    }
    assert_eq!(story[0], (Some(old), term), "who led when it began");
}

/// A stream that nobody reads is cut at its bound in bytes, and goes on where it was.
#[actix::test]
async fn a_stream_that_lags_says_where_it_is_and_goes_on_there() {
    let builder = RaftSystem::<Sum>::builder(1).network(Network::Memory(MemoryNetwork::new())).bootstrap(founders(1));
    let builder = builder.storage(on(&MemoryDisk::new(), 1)).configure(quick);
    let raft = builder.configure(|config| config.subscriber_buffer_bytes = 200).start().await.unwrap();
    let mut events = raft.events(0).await.unwrap();
    let count = 100;
    for n in 1..=count {
        raft.propose(n).await.unwrap();
    }
    let (mut told, mut lags) = (Vec::new(), 0);
    while (told.len() as u64) < count {
        match events.next().await.expect("a stream ends after it has said why") {
            Event::Applied { command, .. } => told.push(*command),
            event @ Event::Lagged { .. } => {
                assert!(events.next().await.is_none(), "that was the last word");
                events = raft.events(event.position().unwrap()).await.unwrap();
                lags += 1;
            }
            _ => {}
        }
    }
    assert!(lags > 0, "two hundred bytes hold no hundred commands");
    assert_eq!(told, (1..=count).collect::<Vec<_>>());
    raft.shutdown().await;
    assert!(tokio::time::timeout(TIMEOUT, async { while events.next().await.is_some() {} }).await.is_ok());
}

/// A look that panics begins no subscription, and one whose client has gone neither.
#[actix::test]
async fn a_follow_that_is_not_answered_begins_nothing() {
    let raft = start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await;
    raft.propose(1).await.unwrap();
    let (recipient, mut heard) = Listener::open();
    let gone = Arc::new(());
    let held = gone.clone();
    let look = move |_: &Sum| -> u64 { panic!("a test's careless look, {}", Arc::strong_count(&held)) };
    assert!(matches!(raft.follow(look, recipient.clone()).await, Err(ReadError::Panicked { .. })));
    // Handed over, and not waited for.
    tokio::select! {
        biased;
        followed = raft.follow(|sum| sum.total, recipient) => panic!("answered at once: {followed:?}"),
        () = std::future::ready(()) => {}
    }
    raft.propose(2).await.unwrap();
    raft.read(|_| ()).await.unwrap();
    assert!(heard.try_recv().is_err(), "nobody follows");
}
