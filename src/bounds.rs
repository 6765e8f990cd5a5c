//! The least and the greatest value of every setting that is a number.
//!
//! A value outside is a mistake, or stands for "no bound". Either fails much later: when a queue of that size is
//! allocated, or in a timeout that never comes. So it is refused before anything starts, with the bounds. They are far
//! wider than what is sensible in most places, and narrow enough that every sum and product of settings fits its type.
//!
//! docs/guide/settings.md prints the table; a test compares them, and another starts a node at every bound
//! (`tests/library/bounds.rs`).
//!
//! Deliberately absent: what depends on other settings (see [`Config::validate`]), and on the volume (see `volume`).

use actorum_core::wire::MAX_PIECE;

use crate::config::{Config, ConfigError};

/// What one setting may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The setting, as written in a file.
    pub key: &'static str,
    /// The least value.
    pub least: u64,
    /// The greatest value.
    pub most: u64,
}

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// More bytes than any volume has.
const DISK: u64 = 1 << 50;
/// More entries than a log ever gets: a million a second for nine years.
const ENTRIES: u64 = 1 << 48;

/// An entry of so many bytes fits a frame with what is around it: what does not would never reach a follower, and
/// everything behind it would wait for ever.
const MAX_ENTRY: u64 = 48 * MIB;

/// Entries of so many bytes together fit a frame: what is around each is at most twice what it counts for.
const MAX_APPEND: u64 = 16 * MIB;

/// How long the name of a cluster may be, in bytes: founders send it to each other in every statement.
pub(crate) const MAX_CLUSTER_NAME: usize = 255;

/// What is a number.
const BOUNDS: [Bounds; 31] = [
    of("heartbeat_ms", 1, MINUTE),
    of("election_ms", 3, HOUR),
    of("deadline_ms", 1, DAY),
    // Each holds its answer's slot.
    of("max_in_flight", 1, 1 << 24),
    of("max_in_flight_bytes", 1, TIB),
    of("max_entry_bytes", 1, MAX_ENTRY),
    of("peer_window_bytes", 1, TIB),
    of("max_append_bytes", 0, MAX_APPEND),
    // raft-rs sets a place aside for each, for each peer.
    of("max_inflight_appends", 0, 1 << 16),
    of("peer_queue_bytes", 0, 2 * TIB),
    of("log_tail_bytes", 0, TIB),
    of("max_unapplied_bytes", 1, TIB),
    of("max_unpersisted_bytes", 1, TIB),
    of("disk_slow_ms", 0, HOUR),
    of("disk_dead_ms", 1, DAY),
    of("low_space_bytes", 0, DISK),
    of("reserve_bytes", 0, DISK),
    of("snapshot_entries", 0, ENTRIES),
    of("snapshot_bytes", 0, DISK),
    of("log_keep_entries", 0, ENTRIES),
    of("log_keep_bytes", 0, DISK),
    of("log_hold_bytes", 0, DISK),
    of("snapshot_sends", 1, 1 << 10),
    of("snapshot_rate", 0, TIB),
    // No peer sends more in one piece.
    of("snapshot_piece_bytes", 1, MAX_PIECE as u64),
    of("snapshot_timeout_ms", 1, DAY),
    // No two clocks are equal.
    of("max_clock_skew_ms", 1, DAY),
    // Its channel has no more places than 2^60, and nobody has memory for a fraction of them.
    of("subscriber_buffer", 1, 1 << 24),
    of("subscriber_buffer_bytes", 1, TIB),
    of("hash_check_entries", 0, ENTRIES),
    // It is mixed into the seeds, and counts nothing.
    of("seed", 0, u64::MAX),
];

const fn of(key: &'static str, least: u64, most: u64) -> Bounds {
    Bounds { key, least, most }
}

/// What is wrong with this value of a setting, if that is a number with bounds.
pub(crate) fn problem(key: &str, value: i128) -> Option<String> {
    let Bounds { least, most, .. } = *BOUNDS.iter().find(|bounds| bounds.key == key)?;
    let side = match value {
        low if low < least.into() => "low",
        high if high > most.into() => "high",
        _ => return None,
    };
    Some(format!("{value} is too {side}: at least {least}, at most {most}"))
}

impl Config {
    /// What each setting that is a number may be. Where 0 is allowed it means what the field says.
    pub fn bounds() -> &'static [Bounds] {
        &BOUNDS
    }

    /// Whether each value is within its bounds.
    pub(crate) fn check_bounds(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem| Err(ConfigError { key: key.into(), problem });
        for (key, value) in self.numbers() {
            if let Some(problem) = problem(key, value.into()) {
                return wrong(key, problem);
            }
        }
        let length = self.cluster_name.len();
        if length > MAX_CLUSTER_NAME {
            return wrong("cluster_name", format!("it has {length} bytes, and may have at most {MAX_CLUSTER_NAME}"));
        }
        Ok(())
    }

    /// Every setting that is a number. It takes the whole apart, so that a new field cannot be forgotten here.
    fn numbers(&self) -> [(&'static str, u64); BOUNDS.len()] {
        let Config {
            heartbeat_ms,
            election_ms,
            deadline_ms,
            max_in_flight,
            max_in_flight_bytes,
            max_entry_bytes,
            peer_window_bytes,
            max_append_bytes,
            max_inflight_appends,
            log_tail_bytes,
            max_unapplied_bytes,
            max_unpersisted_bytes,
            disk_slow_ms,
            disk_dead_ms,
            low_space_bytes,
            reserve_bytes,
            snapshot_entries,
            snapshot_bytes,
            log_keep_entries,
            log_keep_bytes,
            log_hold_bytes,
            snapshot_sends,
            snapshot_rate,
            snapshot_piece_bytes,
            snapshot_timeout_ms,
            max_clock_skew_ms,
            subscriber_buffer,
            subscriber_buffer_bytes,
            hash_check_entries,
            peer_queue_bytes,
            seed,
            response_check: _,
            placement: _,
            activate: _,
            cluster_name: _,
        } = *self;
        [
            ("heartbeat_ms", heartbeat_ms),
            ("election_ms", election_ms),
            ("deadline_ms", deadline_ms),
            ("max_in_flight", max_in_flight as u64),
            ("max_in_flight_bytes", max_in_flight_bytes as u64),
            ("max_entry_bytes", max_entry_bytes as u64),
            ("peer_window_bytes", peer_window_bytes as u64),
            ("max_append_bytes", max_append_bytes as u64),
            ("max_inflight_appends", max_inflight_appends as u64),
            ("peer_queue_bytes", peer_queue_bytes as u64),
            ("log_tail_bytes", log_tail_bytes as u64),
            ("max_unapplied_bytes", max_unapplied_bytes as u64),
            ("max_unpersisted_bytes", max_unpersisted_bytes as u64),
            ("disk_slow_ms", disk_slow_ms),
            ("disk_dead_ms", disk_dead_ms),
            ("low_space_bytes", low_space_bytes),
            ("reserve_bytes", reserve_bytes),
            ("snapshot_entries", snapshot_entries),
            ("snapshot_bytes", snapshot_bytes),
            ("log_keep_entries", log_keep_entries),
            ("log_keep_bytes", log_keep_bytes),
            ("log_hold_bytes", log_hold_bytes),
            ("snapshot_sends", snapshot_sends as u64),
            ("snapshot_rate", snapshot_rate),
            ("snapshot_piece_bytes", u64::from(snapshot_piece_bytes)),
            ("snapshot_timeout_ms", snapshot_timeout_ms),
            ("max_clock_skew_ms", max_clock_skew_ms),
            ("subscriber_buffer", subscriber_buffer as u64),
            ("subscriber_buffer_bytes", subscriber_buffer_bytes as u64),
            ("hash_check_entries", hash_check_entries),
            ("seed", seed.unwrap_or(0)),
        ]
    }
}
