//! The peers of a node, over QUIC and in memory: honest ones, and those that are not. One binary for all of it: its
//! tests run beside each other, and it is linked once. `cargo test --test peers adversary::` runs those of one file.
//!
//! What measures the memory of its process, or keeps the lines of its log, is a file of `transport/tests` by itself.

#[cfg(feature = "quic")]
#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "quic")]
mod adversary;
#[cfg(feature = "quic")]
mod certs;
mod memory;
#[cfg(feature = "quic")]
mod quic;
#[cfg(feature = "quic")]
mod snapshots;
