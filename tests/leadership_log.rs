//! What the log says of leaders and of an end. In a process of its own: whether a line is wanted is remembered by the
//! process, and other tests, which want none, would have a say in it.

mod support;

use std::{
    fmt::Write,
    sync::{Arc, Mutex},
};

use actorum::prelude::*;
use support::{MemoryNetwork, TIMEOUT, three};
use tracing::{Event as Logged, Level, Metadata, Subscriber, field, span};

/// Keeps what is logged at INFO and above by the thread that it is set for: here all actors are on it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(Level, String)>>>);

impl Log {
    fn lines(&self) -> Vec<(Level, String)> {
        self.0.lock().unwrap().clone()
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Logged<'_>) {
        struct Line(String);
        impl field::Visit for Line {
            fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
                match field.name() {
                    "message" => self.0.insert_str(0, &format!("{value:?} ")),
                    name => write!(self.0, "{name}={value:?} ").unwrap(),
                }
            }
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push((*event.metadata().level(), line.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[actix::test]
async fn a_change_of_leadership_is_one_line_and_a_clean_end_no_error() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let (network, disks) = (MemoryNetwork::new(), Default::default());
    let [leader, follower, other] = three(&network, &disks).await;
    leader.propose(1).await.unwrap();
    let (old, term) = (leader.id(), leader.status().term);
    leader.shutdown().await;
    let status = other.wait(TIMEOUT, |s| s.leader.is_some_and(|id| id != old)).await.unwrap();
    let (new, later) = (status.leader.unwrap(), status.term);
    follower.wait(TIMEOUT, |s| s.leader == Some(new)).await.unwrap();
    follower.shutdown().await;
    other.shutdown().await;

    let lines = log.lines();
    let of = |node: NodeId, what: &str| {
        let node = format!("node={node} ");
        lines.iter().filter(|(_, line)| line.contains(what) && line.contains(&node)).collect::<Vec<_>>()
    };
    for id in 1..=3 {
        let told = of(id, &format!("leads in term {term} "));
        assert!(matches!(told[..], [(Level::INFO, _)]), "node {id}: {told:?}");
    }
    for id in (1..=3).filter(|id| *id != old) {
        let told = of(id, &format!("leads in term {later} "));
        assert!(matches!(told[..], [(Level::INFO, _)]), "node {id}: {told:?}");
    }
    let bad: Vec<_> = lines.iter().filter(|(level, _)| *level == Level::ERROR).collect();
    assert!(bad.is_empty(), "{bad:?}");
}
