//! The calendar that certificates are checked by, which may show anything.
//!
//! A machine without a clock of its own begins in 1970 or before, and one that is set wrong shows a year before that:
//! rustls's own source of time panics there. At the start such a calendar is refused; while a node runs, handshakes
//! fail until it is right again, and connections that exist last.
//!
//! Deliberately absent: judging a calendar by those of peers (see `ClockOffsets` of the actors).

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

use super::CertError;

/// 2000-01-01, in seconds since 1970: no certificate of ours is older, and no clock that was ever set shows an earlier
/// time.
pub const EARLIEST_S: u64 = 946_684_800;

/// What handshakes are given as the time.
#[derive(Debug)]
struct Calendar;

impl TimeProvider for Calendar {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(since_1970()?))
    }
}

/// The machine's calendar for a `rustls` configuration. Where it shows a time before 1970 there is none, and handshakes
/// fail.
pub fn time_provider() -> Arc<dyn TimeProvider> {
    Arc::new(Calendar)
}

/// The time, if the calendar can be right.
pub(super) fn checked_now() -> Result<UnixTime, CertError> {
    plausible(since_1970())
}

fn plausible(since: Option<Duration>) -> Result<UnixTime, CertError> {
    match since {
        Some(since) if since.as_secs() >= EARLIEST_S => Ok(UnixTime::since_unix_epoch(since)),
        Some(since) => Err(CertError::Calendar { shows: format!("1970 and {} days", since.as_secs() / 86_400) }),
        None => Err(CertError::Calendar { shows: "a time before 1970".to_owned() }),
    }
}

#[allow(clippy::disallowed_methods, reason = "certificates live in the calendar of the world")]
fn since_1970() -> Option<Duration> {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calendar_that_cannot_be_right_is_refused() {
        let said = |since| plausible(since).map(|time| time.as_secs()).map_err(|error| error.to_string());
        let second = Duration::from_secs;
        assert_eq!(said(Some(second(EARLIEST_S))), Ok(EARLIEST_S));
        for (since, words) in [
            (None, "shows a time before 1970"),
            (Some(second(0)), "shows 1970 and 0 days"),
            (Some(second(EARLIEST_S - 1)), "shows 1970 and 10956 days"),
        ] {
            let error = said(since).unwrap_err();
            assert!(error.contains(words) && error.contains("set the clock"), "{error}");
        }
        assert!(checked_now().is_ok() && time_provider().current_time().is_some());
    }
}
