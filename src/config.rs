//! Every knob of a node: its meaning, unit, default and cost.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The settings of a node. Every field has a default that suits a local network.
///
/// From a TOML file, from environment variables and from the builder, the later winning. An unknown key
/// and an impossible combination are errors that name the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often a leader tells its followers that it lives, in milliseconds. Default 100.
    ///
    /// Also the length of a tick, in which all timeouts are counted. Shorter finds a dead leader sooner and costs a message per follower each time.
    pub heartbeat_ms: u64,
    /// How long a follower waits for a leader before it asks for votes, in milliseconds; drawn anew between once
    /// and twice this for each wait. Default 1000. At least 3 heartbeats.
    pub election_ms: u64,
    /// The deadline of a proposal, read or change that names none, in milliseconds. Default 5000.
    pub deadline_ms: u64,
    /// How many requests may be in flight on this node. At the bound the next is answered `Busy`. Default 65,536.
    pub max_in_flight: usize,
    /// How many bytes of commands may be in flight on this node. At the bound the next is answered `Busy`.
    /// Default 256 MiB.
    pub max_in_flight_bytes: usize,
    /// How large one encoded command may be, in bytes. Larger is answered `TooLarge`. Default 4 MiB.
    pub max_entry_bytes: usize,
    /// How many bytes of entries one append message to a peer carries at most. Default 1 MiB.
    pub max_append_bytes: usize,
    /// How many append messages may be on their way to one peer unanswered. Default 256.
    pub max_inflight_appends: usize,
    /// How many bytes of recent, applied entries stay in memory for followers that are nearly up to date. Default 64 MiB.
    pub log_tail_bytes: usize,
    /// How many bytes of entries may be committed or appended and not yet applied. At the bound a follower drops
    /// appends and a leader answers `Busy`. Default 256 MiB.
    pub max_unapplied_bytes: usize,
    /// How many events may wait for one subscriber. At the bound it hears `Lagged` and is unsubscribed. Default 65,536.
    pub subscriber_buffer: usize,
    /// How many bytes may wait for one peer in the transport. At the bound the oldest goes. Default 64 MiB.
    pub peer_queue_bytes: usize,
    /// Which actors share a thread.
    pub placement: Placement,
    /// Where this node's random choices start. Default: drawn at start. The same seed, inputs and clock give the same election timeouts.
    pub seed: Option<u64>,
    /// A name that becomes part of the cluster's id: two clusters of the same founders and certificates with different names never mix.
    pub cluster_name: String,
}

/// Which actors share a thread. None of them depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// All on the thread that started the system; only the store has its own. The lowest latency;
    /// an `apply` that takes long delays heartbeats.
    #[default]
    Compact,
    /// The applier, and with it the state machine, has a thread of its own: for an `apply` that computes or blocks.
    Spread,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            heartbeat_ms: 100,
            election_ms: 1000,
            deadline_ms: 5000,
            max_in_flight: 65_536,
            max_in_flight_bytes: 256 << 20,
            max_entry_bytes: 4 << 20,
            max_append_bytes: 1 << 20,
            max_inflight_appends: 256,
            log_tail_bytes: 64 << 20,
            max_unapplied_bytes: 256 << 20,
            subscriber_buffer: 65_536,
            peer_queue_bytes: 64 << 20,
            placement: Placement::Compact,
            seed: None,
            cluster_name: String::new(),
        }
    }
}

/// A configuration that cannot be used; the message names the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// The key, as written in a file.
    pub key: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl Config {
    /// The deadline of a request that names none.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    /// Whether these values can work together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| Err(ConfigError { key: key.into(), problem });
        if self.heartbeat_ms == 0 {
            return wrong("heartbeat_ms", "must be at least 1".into());
        }
        if self.election_ms < 3 * self.heartbeat_ms {
            let least = 3 * self.heartbeat_ms;
            return wrong(
                "election_ms",
                format!(
                    "{} is less than three heartbeats: a late one would cost the leader its office; at least {least}",
                    self.election_ms
                ),
            );
        }
        for (key, value) in [
            ("deadline_ms", self.deadline_ms as usize),
            ("max_in_flight", self.max_in_flight),
            ("max_entry_bytes", self.max_entry_bytes),
            ("max_append_bytes", self.max_append_bytes),
            ("max_inflight_appends", self.max_inflight_appends),
            ("subscriber_buffer", self.subscriber_buffer),
        ] {
            if value == 0 {
                return wrong(key, "must be at least 1".into());
            }
        }
        for (key, value) in [
            ("max_in_flight_bytes", self.max_in_flight_bytes),
            ("max_unapplied_bytes", self.max_unapplied_bytes),
            ("peer_queue_bytes", self.peer_queue_bytes),
        ] {
            if value < self.max_entry_bytes {
                return wrong(
                    key,
                    format!("{value} is less than one entry (max_entry_bytes is {})", self.max_entry_bytes),
                );
            }
        }
        Ok(())
    }
}
