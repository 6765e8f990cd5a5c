//! How much a test does: a developer waits for it, `.ci/run` need not be waited for.
//!
//! Where a test repeats itself, `cargo test` does as much as makes each kind of fault happen; `.ci/run` sets
//! `ACTORUM_FULL` for the figures of tests/README.md; and a variable of the test's own asks for any other number.

use std::env;

/// How often, how long or how many: `few` for a developer, `full` in `.ci/run`, or what the environment variable `name`
/// says.
pub(crate) fn figure(name: &str, few: u64, full: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: a whole number is needed")),
        Err(_) if env::var_os("ACTORUM_FULL").is_some() => full,
        Err(_) => few,
    }
}
