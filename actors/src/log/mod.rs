//! Reading of the log for peers that are far behind, on threads that may wait. The log itself is in the store.

pub mod read;
