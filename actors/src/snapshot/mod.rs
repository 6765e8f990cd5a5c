//! The actor that has snapshots built, fetches them and serves them. Their files are the store's.

pub mod manager;
mod rate_limiter;
