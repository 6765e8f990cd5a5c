//! The actors under `RaftSystem`: they carry out the decisions of the core, write, and apply.
//!
//! Read in this order: [`message`] is what the actors say to each other; then the thin actors themselves. The code that
//! decides is in `actorum-core`, and the code that stores entries and snapshots is in `actorum-store`.
//!
//! Deliberately absent: sockets (see `actorum-transport`) and the public API (see `actorum`).

// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// What is outside a simulation's control must not come in unseen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod alarm;
pub mod clock;
pub mod message;

pub mod log;
pub mod snapshot;

pub mod admission;
pub mod reply_slot;
pub mod core;
pub mod log_writer;
pub mod applier;
pub mod subscribers;
pub mod membership;
pub mod consistency;

#[cfg(test)]
mod testkit;
