//! What an application says to actorum, and what it hears: plain values, and one trait.
//!
//! Read in this order: [`mod@machine`] is the contract with the application. [`ids`] has the names of nodes, clusters
//! and places, [`members`] the membership, and [`configuration`] who decides. [`event`] and [`position`] say what
//! subscribers get and how far they are. [`outcome`] says how requests end, and [`codes`] how that looks over HTTP.
//! [`status`] is what a node says of itself, and [`condition`] what is wrong with it.
//!
//! With the feature `actix` the types that are sent to actors are messages, and a mailbox's error ends a request; with
//! `actix-web` each error with a code is a `ResponseError`.
//!
//! Deliberately absent: actors, threads, clocks, files and sockets. A state machine and its tests need this crate
//! alone.

// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// What is outside a simulation's control must not come in unseen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod machine;
pub mod ids;
pub mod members;
pub mod configuration;
pub mod event;
pub mod position;
pub mod outcome;
pub mod readings;
pub mod codes;
pub mod response_check;
pub mod status;
pub mod condition;
#[cfg(feature = "actix")]
mod mailbox;
