//! raft-rs speaks slog; the rest of the world speaks tracing.

use slog::{Drain, Level, Never, OwnedKVList, Record};

/// A logger for raft-rs whose lines become tracing events of the target `raft`.
pub(super) fn logger() -> slog::Logger {
    slog::Logger::root(Bridge, slog::o!())
}

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        // raft-rs reports at "info" what a reader of this project's log would call detail.
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}", record.msg()),
            Level::Warning => tracing::debug!(target: "raft", "{}", record.msg()),
            Level::Info | Level::Debug | Level::Trace => tracing::trace!(target: "raft", "{}", record.msg()),
        }
        Ok(())
    }
}
