//! What is on the disk of a node: its log, and the files of its snapshots.
//!
//! [`log`] begins with the contract, [`log::store`], which the default over sled, one in memory and a simulated one
//! keep, and which [`log::conformance`] tests; [`snapshot`] is where the files of snapshots are built, received, kept
//! and read.
//!
//! Deliberately absent: actors, and deciding what is written. Calls that may wait for a device say so by `blocks`; the
//! store's own threads report through closures.

// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// What is outside a simulation's control must not come in unseen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod log;
pub mod snapshot;
#[cfg(any(test, feature = "testkit"))]
pub mod simulated;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod first_version_tests;
