//! The binary `actorum`: a replicated key-value service over the library `actorum`, its tools, and a demonstration.
//!
//! ```sh
//! cargo install actorum-cli
//! actorum demo
//! actorum help
//! ```
//!
//! There is nothing here to call: an application uses the library `actorum`. This package has a library only because
//! cargo builds the binary for its tests with the feature `faults` only if the package, which depends on itself, has
//! one.
