//! The actor that lets snapshots be built, fetches them and serves them. Their files are in the store.

pub mod manager;
mod rate_limiter;
