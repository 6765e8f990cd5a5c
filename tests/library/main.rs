//! Whole nodes in one process, and what they are judged with. One binary for all of it: its tests run beside each
//! other, and it is linked once. `cargo test --test library follow::` runs those of one file.
//!
//! What does not bear neighbours in its process is a file of `tests` by itself, and says why.

#[path = "../ports/mod.rs"]
mod ports;
#[path = "../rng/mod.rs"]
mod rng;
#[path = "../support/mod.rs"]
mod support;

mod app;
mod bounds;
mod causes;
mod clocks;
mod deadlines;
mod exactly_once;
mod flow;
mod follow;
mod forwards;
mod founders;
mod host;
mod job_queue;
mod lifecycle;
mod linearizability;
mod loopback;
mod nodes;
mod own_storage;
mod snapshots;
mod standstill;
mod values;
mod versions;
