//! Reading of the log for peers that are far behind, where waiting is allowed. The log itself is the store's.

pub mod read;
