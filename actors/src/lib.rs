//! The actors under the front door: what decides, what writes, what applies.
//!
//! Read in this order: [`entry`] says what a log entry is, [`message`] what the actors say to each other, `consensus` the pure core that decides, [`log`] where
//! entries live; then the thin actors around them.
//!
//! Deliberately absent: sockets (see `actorum-transport`) and the public API (see `actorum`).

// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// What is outside a simulation's control must not come in unseen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod features;

pub mod alarm;
pub mod clock;
pub mod clock_offsets;
pub mod entry;
pub mod message;
pub mod system_state;
pub mod observer;

pub mod consensus;
pub mod log;
pub mod snapshot;

pub mod admission;
pub mod reply_slot;
pub mod core;
pub mod log_writer;
pub mod replica;
pub mod times;
pub mod applier;
pub mod subscribers;
pub mod formation;
pub mod membership;
pub mod consistency;
mod debug;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod first_version_tests;
#[cfg(test)]
mod testkit;
