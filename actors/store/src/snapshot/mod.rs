//! Snapshots: the state up to one index in a plain file, so that the log before it can go.
//!
//! A [`Snapshot`](actorum_core::wire::Snapshot) as raft-rs, the log's store and the peers see it is a descriptor of a
//! few hundred bytes: index, term, configuration, our own system state, and which file holds the state machine's. The
//! file lies in the [`store`]; [`mod@file`] is its form, and [`files`] is the folder under the store.

pub mod store;
pub mod file;
pub mod files;
#[cfg(any(test, feature = "testkit"))]
pub mod simulated;
#[cfg(test)]
mod replay_tests;

pub use actorum_core::snapshot::{SnapshotError, SnapshotReader};
pub use store::{GroupSnapshots, Receiving, SnapshotStore};
