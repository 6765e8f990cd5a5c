//! A simulator that tries to break a cluster, for the tests of applications and for our own.
//!
//! [`Simulation`] runs whole nodes (the real actors, your own state machine) on one thread in virtual time, over a
//! network and disks that fail as the seed chooses, and checks all invariants after every event. The same seed gives
//! the same run, on every machine.
//!
//! ```text
//!  clients ─▶ RaftSystem, core, log writer, applier, membership ─▶ wire (loss, delay, cuts, resets)
//!                     ▲            the real ones                └▶ disks (lost, torn, slow, full, flipped)
//!  nemesis ───────────┘ crashes, pauses, clocks, churn              │
//!  world ◀── every drain, apply, answer ── invariants, trace hash ◀─┘
//! ```
//!
//! It is for tests: add it to the `dev-dependencies`, in the same version as `actorum`. The guide of `actorum` has a
//! [chapter](https://docs.rs/actorum/latest/actorum/guide/testing) on how to begin.
//!
//! Deliberately absent: QUIC, sled and TLS, which have tests of their own against real sockets and real power cuts.

// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// What is outside a simulation's control must not come in unseen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod linearizability;
pub mod history;

mod simulation;
mod client;
mod faults;
mod report;
pub mod kv;

mod nemesis;
mod fleet;
mod operator;
mod twin;
mod wire;
mod disk;
mod machine;
mod listener;
mod clock;
mod scheduler;
pub mod rng;
mod world;
mod in_use;
mod watchdog;
mod invariants;

pub use client::{Client, Unanswered};
pub use faults::Faults;
pub use kv::Kv;
pub use report::{Counts, Report, Violation};
pub use rng::Rng;
pub use simulation::{ClientOf, LEADER_WITHIN, Script, Simulation};
