//! The binary, as real processes: a node or a cluster for each test. One binary of tests for all of it: they run beside
//! each other, and it is linked once. `cargo test --test binary kills::` runs those of one file.

#[path = "../../../tests/figures/mod.rs"]
mod figures;
#[path = "../../../tests/mounts/mod.rs"]
mod mounts;
#[path = "../../../tests/ports/mod.rs"]
mod ports;
#[path = "../../../tests/rng/mod.rs"]
mod rng;
#[path = "../../../tests/support/mod.rs"]
mod support;

mod lab;
mod load;

mod cli;
mod conditions;
mod demo;
mod disaster_recovery;
mod diverged;
mod flipped_bits;
mod frozen_disk;
mod full_volume;
mod http;
mod http_abuse;
mod http_forms;
mod kills;
mod nemesis;
mod output;
mod power_cuts_cluster;
mod processes;
mod rolled_back;
mod rolling_upgrade;
mod rotation;
mod swapped_stores;
mod tools;
