//! What a simulation needs of a node and an application does not: an observer, another version, and a power cut.
//!
//! For `actorum-testkit`, behind the feature `testkit`. Deliberately absent: whatever the public API gives as well.

use std::sync::Arc;

use actorum_actors::message::{Campaign, Failed};
use actorum_core::{features::Features, observer::Observer};
use actorum_machine::machine::StateMachine;

use crate::{Builder, Raft, Status, volume};

/// A node that an observer watches: it sees what every drain of the core decided.
pub fn watched<S: StateMachine>(mut builder: Builder<S>, observer: Arc<dyn Observer>) -> Builder<S> {
    builder.host.observer = Some(observer);
    builder
}

/// A node whose hello names these features and this version of its state machine. With fewer than all features it acts
/// as a node of an older version.
pub fn of_version<S: StateMachine>(mut builder: Builder<S>, features: Features, machine_version: u32) -> Builder<S> {
    (builder.host.features, builder.machine_version) = (features, machine_version);
    builder
}

/// Makes a node ask for votes now. `false` if its core has ended.
pub fn campaign<S: StateMachine>(raft: &Raft<S>) -> bool {
    let core = raft.ingress.core.upgrade();
    core.map(|core| core.do_send(Campaign)).is_some()
}

/// Ends a node at once, as a broken part of it would, without waiting for anything.
pub fn broken<S: StateMachine>(raft: &Raft<S>, cause: &str) {
    raft.system.do_send(Failed::broken(cause));
}

/// Reads the status of a node without keeping the node alive, as a handle would.
pub fn status_of<S: StateMachine>(raft: &Raft<S>) -> impl Fn() -> Status + Send + Sync + use<S> {
    let status_hub = raft.ingress.status_hub.clone();
    move || status_hub.status()
}

/// How large the reserve on a volume of so many bytes may become.
pub fn most_reserve(volume: u64) -> u64 {
    volume::most_reserve(volume)
}
