//! The core of actorum: what decides, as a function of its inputs, and what two nodes say to each other.
//!
//! Read in this order: [`wire`] holds the plain structs that cross the network, [`entry`] says what a log entry is,
//! [`system_state`] what of ours is replicated; [`consensus`] decides, on the crate raft, over the [`log`];
//! [`formation`] makes clusters; [`replica`] moves the state machine on.
//!
//! Deliberately absent: actors, threads, clocks, files, sockets and random numbers. The caller brings them, and carries
//! out what the core asks for.

// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// What is outside a simulation's control must not come in unseen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod wire;
pub mod marks;
pub mod features;
pub mod understanding;
pub mod versions;
pub mod identity;
pub mod lives;

pub mod entry;
pub mod system_state;
pub mod message;
pub mod log;
pub mod snapshot;

pub mod consensus;
pub mod clock_offsets;
pub mod formation;
pub mod replica;
pub mod times;
pub mod consistency;
pub mod observer;
pub mod panics;
mod debug;

#[doc(hidden)]
pub mod planted;
#[cfg(any(test, feature = "testkit"))]
#[doc(hidden)]
pub mod testkit;
