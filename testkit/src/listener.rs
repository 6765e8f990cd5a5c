//! Subscribers of the simulated cluster: they follow what is applied, at their own speed, and report to the world what
//! they get.

use std::{cell::Cell, rc::Rc, time::Duration};

use actix::prelude::*;
use actorum::{After, Position, Raft, SubscribeError, Subscription};
use actorum_machine::{
    event::{Event as Said, Events},
    ids::NodeId,
    machine::StateMachine,
};
use tokio::time::sleep;

use super::{
    fleet::{Fleet, Life, State},
    machine::Watched,
    rng::Rng,
    world::{Event, Heard, World},
};

/// Up to where a subscriber has heard everything, and whether it was unsubscribed for being slow.
#[derive(Clone, Default)]
pub(crate) struct Heed(Rc<(Cell<u64>, Cell<bool>)>);

/// Listens to one node for one life of it. It takes its time.
pub(crate) struct Listener {
    world: World,
    number: u64,
    life: Life,
    heed: Heed,
    pause_ms: u64,
}

impl Listener {
    /// Subscribes at a node to what follows `after`. `None` if the node is gone, or goes meanwhile.
    pub(super) async fn subscribe<S: StateMachine>(
        world: &World,
        (node, raft, life): (NodeId, &Raft<Watched<S>>, &Life),
        number: u64,
        after: Option<u64>,
        pause_ms: u64,
    ) -> Option<(Subscription, Heed)> {
        let heed = Heed::default();
        // A subscriber without an index gets what is applied from a moment on that it does not know.
        if let Some(after) = after {
            heed.0.0.set(after);
            world.saw(Event::Listens { listener: number, node, after });
        }
        let number = if after.is_some() { number } else { 0 };
        let listener = Listener { world: world.clone(), number, life: life.clone(), heed: heed.clone(), pause_ms };
        let mut subscribe = actorum::Subscribe::batched(listener.start().recipient());
        if let Some(after) = after {
            // As clients do that keep what they were told; there is one cluster, and nothing that it told is ever taken
            // back.
            let cluster = raft.status().cluster;
            subscribe = subscribe.after(match cluster {
                Some(cluster) => After::Position(Position { cluster, index: after }),
                None => After::Index(after),
            });
        }
        let subscribed = tokio::select! {
            biased;
            () = life.over() => return None,
            subscribed = raft.subscribe(subscribe) => subscribed,
        };
        match subscribed {
            Ok(subscription) => Some((subscription, heed)),
            Err(error @ (SubscribeError::ForeignPosition { .. } | SubscribeError::FuturePosition { .. })) => {
                world.broken("subscribers resume anywhere", format!("n{node}: {error}"));
                None
            }
            Err(_) => None,
        }
    }

    fn hear(&self, heard: Heard) {
        let (Heard::Applied(index) | Heard::Installed(index) | Heard::Lagged(index)) = heard;
        let last = self.heed.0.0.replace(index.max(self.heed.0.0.get()));
        if self.number > 0 {
            self.world.saw(Event::Heard { listener: self.number, heard });
        } else if index <= last && matches!(heard, Heard::Applied(_)) {
            self.world.broken("subscribers hear in order", format!("{index} after {last}"));
        }
    }
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl<S: StateMachine> Handler<Events<Watched<S>>> for Listener {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Events(events): Events<Watched<S>>, _: &mut Context<Self>) -> ResponseFuture<()> {
        for event in events {
            // Events of a node that has crashed are ignored.
            if self.life.is_over() || self.heed.0.1.get() {
                break;
            }
            match event {
                Said::Applied { index, .. } => self.hear(Heard::Applied(index)),
                Said::SnapshotInstalled { index, .. } => self.hear(Heard::Installed(index)),
                Said::Lagged { resume_after, .. } => {
                    self.hear(Heard::Lagged(resume_after));
                    self.heed.0.1.set(true);
                }
                _ => {}
            }
        }
        let pause = Duration::from_millis(self.pause_ms);
        Box::pin(sleep(pause))
    }
}

/// A client that follows everything from the beginning, now on this node, now on that, and goes on where it was.
pub(crate) async fn follow<S: StateMachine>(fleet: Fleet<S>, mut rng: Rng) {
    let world = fleet.world().clone();
    let mut last = 0;
    while !world.over() && !world.facts(|facts| facts.closing) {
        let nodes = fleet.in_state(State::Running);
        let chosen = rng.pick(&nodes).copied().and_then(|id| Some((id, fleet.raft(id)?)));
        if let Some((node, (raft, life))) = chosen {
            let (number, pause) = (world.next_request(), rng.below(150));
            if let Some((subscription, heed)) =
                Listener::subscribe(&world, (node, &raft, &life), number, Some(last), pause).await
            {
                let most = Duration::from_millis(rng.between(300, 6000));
                let lagged = async {
                    while !heed.0.1.get() {
                        sleep(Duration::from_millis(50)).await;
                    }
                };
                tokio::select! {
                    biased;
                    () = life.over() => {}
                    () = world.decided() => {}
                    _ = tokio::time::timeout(most, lagged) => raft.unsubscribe(subscription),
                }
                last = heed.0.0.get();
                // Events on their way to it are ignored.
                heed.0.1.set(true);
            }
        }
        sleep(Duration::from_millis(rng.between(10, 300))).await;
    }
}
