//! Snapshots: the state up to one index in a plain file, so that the log before it can go.
//!
//! A [`Snapshot`](actorum_transport::wire::Snapshot) as raft-rs, the log's store and the peers see it is a descriptor of a
//! few hundred bytes: index, term, configuration, our own system state, and which file holds the state machine's. The file
//! lies on the [`shelf`]; [`mod@file`] is its form, and [`files`] what the shelf is made of.

pub mod shelf;
pub mod file;
pub mod files;
#[cfg(any(test, feature = "testkit"))]
pub mod simulated;
pub mod keeper;
mod pace;

pub use shelf::{Receiving, Shelf, SnapshotError};
