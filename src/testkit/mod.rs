//! A world that tries to break a cluster, for the tests of applications as well as for our own.

pub mod history;
pub mod linearizability;
