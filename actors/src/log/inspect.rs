//! Reading a stopped node's directory without changing it.
