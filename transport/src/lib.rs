//! Peers: the ways to carry what nodes say to each other.
//!
//! ```text
//!  actors ──Transmit, Ask──▶ [ quic | memory ] ══ wire frames ══▶ [ quic | memory ] ──Received, Asked──▶ actors
//! ```
//!
//! [`message`] holds the actor messages that carry the structs of [`actorum_core::wire`]; they build without sockets,
//! and the actors may use nothing else of this crate. [`memory`] is a network inside one process. [`quic`] (feature
//! `quic`) is the real one: QUIC with mutual TLS, whose certificates name the node they belong to.
//!
//! Deliberately absent: terms, logs and leaders, except as fields of an envelope.

// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// What is outside a simulation's control must not come in unseen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod message;
mod routes;
pub mod hello;
pub mod memory;
pub mod frame;
#[cfg(feature = "quic")]
pub mod quic;
#[cfg(feature = "quic")]
pub mod tls;
#[cfg(all(feature = "fuzzing", feature = "quic"))]
#[doc(hidden)]
pub mod fuzzing;
