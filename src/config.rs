//! Every setting of a node: its meaning, unit, default and cost.

use std::{ffi::OsString, fmt, path::Path, time::Duration};

use actorum_core::wire::{ENTRY_OVERHEAD, MESSAGE_OVERHEAD};
use actorum_machine::response_check::ResponseCheck;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::bounds;

/// The settings of a node. Every field has a default that suits a local network, and bounds ([`Config::bounds`]).
///
/// Settings come from a TOML file, from environment variables and from the builder; a later source wins. An unknown key
/// and an impossible combination are errors that name the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often a leader tells its followers that it lives, in milliseconds. Default 100.
    ///
    /// Also the length of a tick; all timeouts are counted in ticks. With a shorter time followers notice a dead leader
    /// sooner, and each heartbeat costs a message for each follower.
    pub heartbeat_ms: u64,
    /// How long a follower waits for a leader before it asks for votes, in milliseconds; drawn anew between once
    /// and twice this for each wait. Default 1000. At least 3 heartbeats.
    pub election_ms: u64,
    /// The deadline of a proposal, read or change that names none, in milliseconds. Default 5000.
    pub deadline_ms: u64,
    /// How many requests may be in flight on this node. At the bound the next is answered `Busy`. Default 65,536.
    /// Requests that peers forward are counted apart, up to half of this.
    pub max_in_flight: usize,
    /// How many bytes of commands may be in flight on this node. At the bound the next is answered `Busy`.
    /// Default 256 MiB. Requests that peers forward are counted apart, up to half of this.
    pub max_in_flight_bytes: usize,
    /// How large one encoded command may be, in bytes. Larger is answered `TooLarge`. Default 4 MiB, at most 48 MiB.
    pub max_entry_bytes: usize,
    /// The window of a peer: how many bytes of entries a leader may send to it before it acknowledges them. While fewer
    /// are on their way, another message is sent. Default 16 MiB. A leader needs about twice this in memory for each
    /// peer that is behind.
    ///
    /// The window bounds the rate at which a peer receives the log: with 16 MiB, and 100 ms from a message to its
    /// acknowledgement, that is 160 MB/s. From it follow `max_append_bytes`, `max_inflight_appends` and
    /// `peer_queue_bytes`.
    pub peer_window_bytes: usize,
    /// How many bytes of entries one append message to a peer carries at most; a single entry may be larger. Default 0,
    /// which means a sixteenth of `peer_window_bytes`, but no more than 1 MiB. At most `peer_window_bytes`, and at most
    /// 16 MiB.
    pub max_append_bytes: usize,
    /// How many append messages, however small, a leader may send to a peer before it acknowledges them. Default 0,
    /// which means one for each 64 KiB of `peer_window_bytes`, but at least 16 and at most 4096.
    pub max_inflight_appends: usize,
    /// How many bytes of recent, applied entries stay in memory for followers that are nearly up to date. Default 64
    /// MiB.
    pub log_tail_bytes: usize,
    /// How many bytes of entries may be committed and not yet applied. Past the bound a follower drops appends, which
    /// its leader sends again. A leader answers `Busy` to a proposal with which more than this would be appended and
    /// not applied. Default 256 MiB.
    pub max_unapplied_bytes: usize,
    /// How many bytes a leader may have handed to its own disk that are not durable yet. At the bound it answers
    /// `Busy`. Default 64 MiB; on a volume below 4 GiB a 64th of the volume, but never less than one entry. With a
    /// larger value a leader accepts proposals through longer pauses of the disk, and more outcomes are unknown if the
    /// disk does not come back.
    pub max_unpersisted_bytes: usize,
    /// How long a write may wait for this node's disk before the node counts the disk as slow, in milliseconds. Default
    /// 1000; counted in heartbeats, and never fewer than two of them.
    ///
    /// A leader then transfers leadership, or steps down if no other node takes it within `election_ms`. A node with a
    /// slow disk does not campaign. The disk counts as good again when a probe and the waiting writes are durable. With
    /// a shorter time leadership moves sooner, also for short pauses of the disk that would have passed.
    pub disk_slow_ms: u64,
    /// How long a write may hang before the node stops for good, in milliseconds. Default 60,000; counted in seconds.
    ///
    /// While a node waits, clients still get answers, since a node with a slow disk does not lead. When it stops, a
    /// supervisor can act.
    pub disk_dead_ms: u64,
    /// With fewer free bytes on the disk than this a node is low on space: a leader answers `LowSpace`, cuts its log,
    /// and transfers leadership if that does not help and another node takes it; a follower goes on. This ends by
    /// itself when a quarter more is free.
    /// With fewer than twice as many, room is short: the log is cut behind the newest snapshot and rewritten, if need
    /// be with the room of the reserve. Otherwise snapshots and the rewriting of the log always leave a quarter of this
    /// free. Default 256 MiB; on a volume below 4 GiB a sixteenth of the volume, but at least 16 MiB. With 0 the node
    /// never looks.
    pub low_space_bytes: u64,
    /// How many bytes are kept on the disk as a reserve for making room; the size of the newest snapshot comes on top.
    /// Default 48 MiB, three times what the log's engine takes from the disk at a time; on a volume below 192 MiB a
    /// quarter of the volume. With 0 there is no reserve.
    ///
    /// When there is no other room, the room of the reserve is used for three things: the snapshot behind which the log
    /// is cut, the copy into which the log is rewritten, and the opening of a directory on a full disk. Afterwards the
    /// reserve is made again.
    pub reserve_bytes: u64,
    /// A snapshot is built when so many entries were applied since the last one. Default 100,000; 0 never by number.
    ///
    /// More frequent snapshots mean a shorter log and a quicker restart. Each of them costs the writing of the whole
    /// state.
    pub snapshot_entries: u64,
    /// A snapshot is built when so many bytes of entries were applied since the last one. Default 256 MiB; on a volume
    /// below 16 GiB a 64th of the volume. With the default a snapshot is also built after four times the size of the
    /// newest one, but not before 64 MiB, so that a small state has a short log. With 0 never by size.
    pub snapshot_bytes: u64,
    /// How many entries behind the newest snapshot stay in the log for followers that are behind. Default 10,000.
    ///
    /// The log also reaches back to the older of the two kept snapshots, which stands in for the newest if its file is
    /// damaged.
    pub log_keep_entries: u64,
    /// How many bytes of entries stay for them at most. Default 64 MiB; on a volume below 4 GiB a 64th of the volume.
    pub log_keep_bytes: u64,
    /// How many bytes of entries stay at most for a follower that is alive and needs them, as long as the disk has
    /// room. Default 1 GiB; on a volume below 16 GiB a sixteenth of the volume. A follower that is further behind gets
    /// a snapshot.
    pub log_hold_bytes: u64,
    /// To how many peers a snapshot may be sent at once; others wait. Default 2.
    pub snapshot_sends: usize,
    /// How many bytes per second of snapshots are sent to all peers together. Default 0: no bound, since snapshots have
    /// a lower priority than all other traffic of their connection. The rate must be high enough to send one piece to
    /// each of `snapshot_sends` peers within `snapshot_timeout_ms`: 52 kB/s with the defaults of those.
    pub snapshot_rate: u64,
    /// How many bytes of a snapshot this node asks for in one request. It has four such requests under way. Default 256
    /// KiB; at most 1 MiB. A piece that is lost with its connection is asked for again as a whole.
    pub snapshot_piece_bytes: u32,
    /// How long a snapshot on its way may stand still before it counts as lost and is offered again, in milliseconds.
    /// Default 10,000. The bytes that were received stay, and the transfer goes on from there. The whole transfer has
    /// no bound. A receiver that checks or restores the file may go without reading or writing a byte for six times as
    /// long.
    pub snapshot_timeout_ms: u64,
    /// How far a member's clock may be from the median of the voters' clocks, in milliseconds; beyond it the node
    /// warns. Default 500; at least 1.
    ///
    /// A leader also takes the time of new entries from at most this far ahead of the median, so that one node with a
    /// wrong year cannot set `ApplyContext::time` for the whole cluster. A leader that does not know the clocks of a
    /// majority uses its own clock.
    pub max_clock_skew_ms: u64,
    /// How many events may wait for one subscriber. At the bound the subscriber gets `Lagged` and is unsubscribed.
    /// Default 65,536.
    pub subscriber_buffer: usize,
    /// How many bytes of events may wait for one subscriber; commands and responses count with their encoded size. At
    /// the bound the subscriber gets `Lagged` and is unsubscribed. A single larger event is delivered if nothing else
    /// waits. Default 64 MiB.
    pub subscriber_buffer_bytes: usize,
    /// After how many entries the leader proposes a mark, at which all members compare the hashes of what they applied.
    /// Default 4096; 0 never. A smaller number finds a node that differs sooner; each mark costs an entry, and a small
    /// request between every two nodes. Only the leader's setting counts, and only once the build of every member
    /// understands marks.
    pub hash_check_entries: u64,
    /// What a node does when its state machine responds differently from those of a majority: with `report`, the
    /// default, the status, a metric and the log say so; with `stop` the node also stops; with `off` responses are not
    /// compared, which saves encoding and hashing each of them.
    pub response_check: ResponseCheck,
    /// How many bytes may wait for one peer in the transport. At the bound the oldest message is dropped. Default 0,
    /// which means `peer_window_bytes`, one message more, and 1 MiB. At least the window and one message: less would
    /// drop what the window allows.
    pub peer_queue_bytes: usize,
    /// Whether the cluster uses what is new in a version as soon as every member understands it. With `automatic`, the
    /// default, the leader activates it. With `manual` the leader waits until an operator says so (`actorum activate`,
    /// [`Raft::activate`]); until then every node can be put back to the version before. Only the leader's setting
    /// counts: set it on all nodes. The setting does not delay what the version before it already used by itself: marks
    /// (see `hash_check_entries`) are used once every member has named them, and a node of a still older version stops
    /// at a mark.
    ///
    /// [`Raft::activate`]: crate::Raft::activate
    pub activate: ActivateMode,
    /// Which actors share a thread. With `compact`, the default, all do; with `spread` the state machine has a thread
    /// of its own, so that a slow `apply` delays no heartbeat. Each node has its own setting.
    pub placement: Placement,
    /// The seed of this node's random choices: its election timeouts, and the pauses before it dials a peer again.
    /// Default: drawn at every start. The same seed, inputs and clock give the same choices, so it is for tests.
    pub seed: Option<u64>,
    /// A name that becomes part of the cluster's id: two clusters of the same founders and certificates with different
    /// names never mix. Founders with different names notice that before anything is written, and stop. Default: empty.
    pub cluster_name: String,
}

/// Who decides that the cluster uses what every member understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivateMode {
    /// The leader, at once.
    #[default]
    Automatic,
    /// An operator.
    Manual,
}

/// Which actors share a thread. Every actor works with either choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// All on the thread that started the system; only the store has its own. It has the lowest latency, but an `apply`
    /// that takes long delays heartbeats.
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
            peer_window_bytes: 16 << 20,
            max_append_bytes: 0,
            max_inflight_appends: 0,
            log_tail_bytes: 64 << 20,
            max_unapplied_bytes: 256 << 20,
            max_unpersisted_bytes: 64 << 20,
            disk_slow_ms: 1000,
            disk_dead_ms: 60_000,
            low_space_bytes: 256 << 20,
            reserve_bytes: 48 << 20,
            snapshot_entries: 100_000,
            snapshot_bytes: 256 << 20,
            log_keep_entries: 10_000,
            log_keep_bytes: 64 << 20,
            log_hold_bytes: 1 << 30,
            snapshot_sends: 2,
            snapshot_rate: 0,
            snapshot_piece_bytes: 256 << 10,
            snapshot_timeout_ms: 10_000,
            max_clock_skew_ms: 500,
            subscriber_buffer: 65_536,
            subscriber_buffer_bytes: 64 << 20,
            peer_queue_bytes: 0,
            hash_check_entries: 4096,
            response_check: ResponseCheck::Report,
            activate: ActivateMode::Automatic,
            placement: Placement::Compact,
            seed: None,
            cluster_name: String::new(),
        }
    }
}

/// The largest frame of the transport, in bytes. Every node reads frames up to it, whatever its settings, so that nodes
/// with different settings understand each other.
pub(crate) const MAX_FRAME: usize = 64 << 20;

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
    /// The settings in a TOML file, on top of these.
    pub fn apply_file(&mut self, path: impl AsRef<Path>) -> Result<(), ConfigError> {
        let path = path.as_ref();
        let unreadable =
            |error: &dyn fmt::Display| ConfigError { key: path.display().to_string(), problem: error.to_string() };
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(&error))?;
        let table = text.parse::<Table>().map_err(|error| unreadable(&error))?;
        self.apply(table)
    }

    /// The settings in a TOML table, on top of these.
    pub fn apply(&mut self, table: Table) -> Result<(), ConfigError> {
        let known = known()?;
        let mut merged = self.as_table()?;
        let seeded = table.contains_key("seed");
        for (key, value) in by_present_name(table)? {
            let Some(example) = known.get(&key) else { return Err(unknown(&key, &key, &known)) };
            if !value.same_type(example) {
                let problem = format!("{} where {} belongs", a(&value), a(example));
                return Err(ConfigError { key, problem });
            }
            // The bounds are checked here, where the name of the key is known: the later error for a value that does
            // not fit the field's type has no name.
            if let Some(number) = value.as_integer()
                && let Some(problem) = bounds::problem(&key, number.into())
            {
                return Err(ConfigError { key, problem });
            }
            // Each setting is checked alone, so that the error names it.
            let one = Table::from_iter([(key.clone(), value.clone())]);
            if let Err(error) = one.try_into::<Config>() {
                return Err(ConfigError { key, problem: error.message().to_owned() });
            }
            merged.insert(key, value);
        }
        let seed = self.seed;
        *self = merged.try_into().map_err(|error: toml::de::Error| ConfigError {
            key: "configuration".into(),
            problem: error.message().to_owned(),
        })?;
        if !seeded {
            self.seed = seed;
        }
        Ok(())
    }

    /// The settings in environment variables, `PREFIX_HEARTBEAT_MS` and so on, on top of these.
    ///
    /// A variable that is set and empty counts as not set. A variable with the prefix that is neither a setting nor in
    /// `others` is an error, because it is a misspelt setting. A setting that is not UTF-8 is an error, too. There is
    /// one exception: service managers set variables for a service that has the name of the prefix
    /// (`PREFIX_SERVICE_HOST`, `PREFIX_PORT=tcp://10.0.0.1:80` and so on). They are left alone, and their names are
    /// returned, so that the caller can warn of them.
    pub fn apply_env<K: Into<OsString>, V: Into<OsString>>(
        &mut self,
        prefix: &str,
        others: &[&str],
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Vec<String>, ConfigError> {
        let known = known()?;
        let (mut table, mut foreign, mut seed) = (Table::new(), Vec::new(), None);
        for (variable, value) in vars {
            let (variable, value) = (variable.into(), value.into());
            let variable = variable.to_string_lossy();
            let Some(name) = variable.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')) else { continue };
            let key = present_name(&name.to_ascii_lowercase()).to_owned();
            if others.contains(&name) {
                continue;
            }
            let Some(example) = known.get(&key) else {
                if is_set_by_a_service_manager(name, &value.to_string_lossy()) {
                    foreign.push(variable.into_owned());
                    continue;
                }
                return Err(unknown(&variable, &key, &known));
            };
            let wrong = |problem: String| ConfigError { key: variable.clone().into_owned(), problem };
            let Some(text) = value.to_str() else {
                return Err(wrong(format!("{} is not UTF-8", value.display())));
            };
            if text.trim().is_empty() {
                continue;
            }
            // A number that is too large for TOML is still a number, and out of bounds.
            if example.is_integer()
                && let Ok(number) = text.trim().parse::<i128>()
                && let Some(problem) = bounds::problem(&key, number)
            {
                return Err(wrong(problem));
            }
            // TOML's whole numbers have 63 bits, and a seed all of 64.
            if key == "seed"
                && let Ok(number) = text.trim().parse()
            {
                seed = Some(number);
                continue;
            }
            let value = in_env(text, example).ok_or_else(|| wrong(format!("{text:?} is not {}", a(example))))?;
            if table.insert(key.clone(), value).is_some() {
                return Err(wrong(twice(&key)));
            }
        }
        self.apply(table)?;
        self.seed = seed.or(self.seed);
        Ok(foreign)
    }

    /// Without the seed, which may have 64 bits: TOML's whole numbers have 63.
    fn as_table(&self) -> Result<Table, ConfigError> {
        self.check_bounds()?;
        let config = Config { seed: None, ..self.clone() };
        Table::try_from(config).map_err(|error| ConfigError { key: "configuration".into(), problem: error.to_string() })
    }

    /// The deadline of a request that has none of its own.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    /// Bytes of entries in one append message, as set or as it follows from the window.
    pub fn append_bytes(&self) -> usize {
        match self.max_append_bytes {
            0 => (self.peer_window_bytes / 16).clamp(1, 1 << 20),
            set => set,
        }
    }

    /// Append messages on their way to one peer, as set or as it follows from the window.
    pub fn inflight_appends(&self) -> usize {
        match self.max_inflight_appends {
            0 => (self.peer_window_bytes >> 16).clamp(16, 4096),
            set => set,
        }
    }

    /// Bytes that may wait for one peer in the transport, as set or as it follows from the window.
    pub fn queue_bytes(&self) -> usize {
        match self.peer_queue_bytes {
            0 => self.least_queue().saturating_add(1 << 20),
            set => set,
        }
    }

    /// The window and one message, with what counts around them.
    fn least_queue(&self) -> usize {
        let message = self.append_bytes().max(self.max_entry_bytes.saturating_add(ENTRY_OVERHEAD));
        let around = MESSAGE_OVERHEAD.saturating_mul(self.inflight_appends() + 1);
        self.peer_window_bytes.saturating_add(message).saturating_add(around)
    }

    /// Whether each value is within its [bounds](Config::bounds), and whether they can work together. Every start asks
    /// this.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check_bounds()?;
        let wrong = |key: &str, problem: String| Err(ConfigError { key: key.into(), problem });
        // Saturating, because a user may have given any number.
        let least = self.heartbeat_ms.saturating_mul(3);
        if self.election_ms < least {
            return wrong(
                "election_ms",
                format!(
                    "{} is less than three heartbeats: one late heartbeat would end the leadership; at least {least}",
                    self.election_ms
                ),
            );
        }
        if self.disk_dead_ms <= self.disk_slow_ms {
            let problem = format!("a disk is slow (disk_slow_ms is {}) before it is dead", self.disk_slow_ms);
            return wrong("disk_dead_ms", problem);
        }
        let in_time = self.snapshot_rate.saturating_mul(self.snapshot_timeout_ms) / 1000;
        let pieces = u64::from(self.snapshot_piece_bytes).saturating_mul(self.snapshot_sends as u64);
        if self.snapshot_rate > 0 && in_time < pieces {
            let problem = format!(
                "in snapshot_timeout_ms only {in_time} bytes would be sent, less than a piece (snapshot_piece_bytes) \
                 to each of snapshot_sends peers, and every transfer would count as lost; raise either, or take \
                 smaller pieces"
            );
            return wrong("snapshot_rate", problem);
        }
        let window = self.peer_window_bytes;
        if self.append_bytes() > window {
            let problem =
                format!("{} is more than peer_window_bytes, which is {window}: at most that", self.append_bytes());
            return wrong("max_append_bytes", problem);
        }
        let least = self.least_queue();
        if self.queue_bytes() < least {
            let problem = format!(
                "{} is less than what may be on its way to one peer (peer_window_bytes is {window}, and one message \
                 more): what the window lets through would be dropped and sent again; at least {least}, or 0 to let it \
                 follow from the window, or a smaller peer_window_bytes",
                self.queue_bytes()
            );
            return wrong("peer_queue_bytes", problem);
        }
        for (key, value) in [
            ("max_in_flight_bytes", self.max_in_flight_bytes),
            ("max_unapplied_bytes", self.max_unapplied_bytes),
            ("max_unpersisted_bytes", self.max_unpersisted_bytes),
        ] {
            if value < self.max_entry_bytes + ENTRY_OVERHEAD {
                return wrong(
                    key,
                    format!(
                        "{value} is less than one entry (max_entry_bytes is {}, and {ENTRY_OVERHEAD} around it)",
                        self.max_entry_bytes
                    ),
                );
            }
        }
        Ok(())
    }
}

/// The value in a variable, read in the type of that example.
fn in_env(text: &str, example: &Value) -> Option<Value> {
    Some(match example {
        Value::Integer(_) => Value::Integer(text.trim().parse().ok()?),
        Value::Float(_) => Value::Float(text.trim().parse().ok()?),
        Value::Boolean(_) => Value::Boolean(match text.trim() {
            "1" | "true" => true,
            "0" | "false" => false,
            _ => return None,
        }),
        Value::Array(examples) => {
            // A trailing comma is no further item.
            let text = text.trim();
            let items = text.strip_suffix(',').unwrap_or(text).split(',').filter(|_| !text.is_empty());
            let example = examples.first();
            Value::Array(
                items
                    .map(|item| example.map_or_else(|| Some(item.trim().into()), |e| in_env(item.trim(), e)))
                    .collect::<Option<_>>()?,
            )
        }
        // A variable that is made from a file ends with a line break, which is not part of the name.
        _ => Value::String(text.trim().to_owned()),
    })
}

/// Whether a variable, without its prefix, is one that service managers set: Kubernetes for every service in a
/// namespace (a service `actorum`, or one `actorum-http`), and Docker for a linked container.
fn is_set_by_a_service_manager(name: &str, value: &str) -> bool {
    let url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let numbered = |rest: &str| {
        // `7001_TCP`, and behind it nothing, `_PROTO`, `_PORT` or `_ADDR`.
        let mut parts = rest.split('_');
        let number = parts.next().is_some_and(|n| !n.is_empty() && n.bytes().all(|digit| digit.is_ascii_digit()));
        let protocol = matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"));
        number && protocol && matches!((parts.next(), parts.next()), (None | Some("PROTO" | "PORT" | "ADDR"), None))
    };
    let of_a_service = |what: &str| name == what || name.ends_with(&format!("_{what}"));
    of_a_service("SERVICE_HOST")
        || of_a_service("SERVICE_PORT")
        || format!("_{name}").contains("_SERVICE_PORT_")
        || (of_a_service("PORT") && url)
        || name.match_indices("PORT_").any(|(at, port)| numbered(&name[at + port.len()..]))
        || (of_a_service("NAME") && value.starts_with('/'))
        || format!("_{name}").contains("_ENV_")
}

/// The names that settings had in the first version, which are still read, and the names that they have now.
const RENAMED: [(&str, &str); 2] =
    [("ballast_bytes", "reserve_bytes"), ("snapshot_patience_ms", "snapshot_timeout_ms")];

/// The name that this setting has now.
fn present_name(key: &str) -> &str {
    RENAMED.iter().find(|(before, _)| *before == key).map_or(key, |(_, now)| now)
}

fn by_present_name(table: Table) -> Result<Table, ConfigError> {
    let mut named = Table::new();
    for (key, value) in table {
        let now = present_name(&key);
        if named.insert(now.to_owned(), value).is_some() {
            return Err(ConfigError { problem: twice(now), key });
        }
    }
    Ok(named)
}

fn twice(now: &str) -> String {
    format!("{now} is set twice, also by the name that it had in the first version: leave that one out")
}

/// Every key, each with a value of its type.
fn known() -> Result<Table, ConfigError> {
    let mut known = Config::default().as_table()?;
    known.insert("seed".into(), Value::Integer(0));
    Ok(known)
}

/// The error for a key that does not exist, with the key that was probably meant. `shown` is how the user wrote it.
fn unknown(shown: &str, key: &str, known: &Table) -> ConfigError {
    let nearest = known.keys().min_by_key(|candidate| distance(key, candidate));
    let problem = match nearest.filter(|candidate| distance(key, candidate) <= 1 + key.len() / 3) {
        Some(nearest) => format!("there is no such setting; did you mean {nearest}?"),
        None => format!("there is no such setting; there are {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
    };
    ConfigError { key: shown.to_owned(), problem }
}

/// How many letters must be changed, added or taken away to make one word of the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

fn a(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "a whole number",
        Value::String(_) => "a string",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str) -> Result<Config, String> {
        let mut config = Config::default();
        config.apply(text.parse().unwrap()).map(|()| config).map_err(|error| error.to_string())
    }

    fn env(vars: &[(&str, &str)]) -> Result<Config, String> {
        let mut config = Config::default();
        let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        config.apply_env("ACTORUM", &["DATA"], vars).map(|_| config).map_err(|error| error.to_string())
    }

    /// What is set beside ours where a service has our name is left alone, and named; what is nearly ours is an error.
    /// A configuration of the first version goes on working.
    #[test]
    fn settings_have_the_names_that_they_had_in_the_first_version() {
        let expected = Config { reserve_bytes: 1 << 20, snapshot_timeout_ms: 7000, ..Config::default() };
        let mut config = Config::default();
        config.apply("ballast_bytes = 1048576\nsnapshot_patience_ms = 7000".parse().unwrap()).unwrap();
        assert_eq!(config, expected);
        let mut config = Config::default();
        let vars = [("ACTORUM_BALLAST_BYTES", "1048576"), ("ACTORUM_SNAPSHOT_PATIENCE_MS", "7000")];
        config.apply_env("ACTORUM", &[], vars).unwrap();
        assert_eq!(config, expected);
        // Which of two values is meant nobody knows.
        let both = "ballast_bytes = 1048576\nreserve_bytes = 0".parse().unwrap();
        assert!(config.apply(both).unwrap_err().problem.starts_with("reserve_bytes is set twice"));
        let vars = [("ACTORUM_RESERVE_BYTES", "0"), ("ACTORUM_BALLAST_BYTES", "0")];
        assert!(config.apply_env("ACTORUM", &[], vars).unwrap_err().problem.starts_with("reserve_bytes is set twice"));
        assert_eq!(config, expected);
    }

    #[test]
    fn variables_of_service_managers_are_left_alone() {
        let theirs = [
            ("ACTORUM_SERVICE_HOST", "10.0.0.1"),
            ("ACTORUM_SERVICE_PORT", "7001"),
            ("ACTORUM_SERVICE_PORT_HTTP", "8001"),
            ("ACTORUM_PORT", "tcp://10.0.0.1:7001"),
            ("ACTORUM_PORT_7001_TCP", "tcp://10.0.0.1:7001"),
            ("ACTORUM_PORT_7001_UDP_PROTO", "udp"),
            ("ACTORUM_PORT_7001_TCP_PORT", "7001"),
            ("ACTORUM_PORT_7001_TCP_ADDR", "10.0.0.1"),
            ("ACTORUM_HTTP_SERVICE_HOST", "10.0.0.2"),
            ("ACTORUM_HTTP_PORT", "tcp://10.0.0.2:80"),
            ("ACTORUM_HTTP_PORT_80_TCP_ADDR", "10.0.0.2"),
            ("ACTORUM_NAME", "/app/actorum"),
            ("ACTORUM_ENV_LANG", "C"),
        ];
        let mut config = Config::default();
        let ours = [("ACTORUM_HEARTBEAT_MS", "50")];
        let named = config.apply_env("ACTORUM", &[], theirs.into_iter().chain(ours)).unwrap();
        assert_eq!(named, theirs.map(|(name, _)| name.to_owned()));
        assert_eq!(config.heartbeat_ms, 50);
        for ours in ["ACTORUM_PORT", "ACTORUM_PORTS", "ACTORUM_PORT_X_TCP", "ACTORUM_SERVICE", "ACTORUM_NAME"] {
            let error = env(&[(ours, "7001")]).unwrap_err();
            assert!(error.starts_with(&format!("{ours}: there is no such setting")), "{error}");
        }
    }

    /// An empty variable is how a service manager's file takes one back: no setting of any type differs by it.
    #[test]
    fn an_empty_variable_is_not_set() {
        let before = applied("cluster_name = \"kept\"\nplacement = \"spread\"\nseed = 7\nheartbeat_ms = 50").unwrap();
        let settings = known().unwrap();
        assert!(settings.len() > 30, "every one of them: {settings:?}");
        for key in settings.keys() {
            for empty in ["", " ", "\n"] {
                let mut config = before.clone();
                let variable = format!("ACTORUM_{}", key.to_ascii_uppercase());
                config.apply_env("ACTORUM", &[], [(variable.as_str(), empty)]).expect(&variable);
                assert_eq!(config, before, "{variable}={empty:?}");
            }
        }
        let error = env(&[("ACTORUM_HARTBEAT_MS", "")]).unwrap_err();
        assert!(
            error.contains("did you mean heartbeat_ms?"),
            "a name that nobody knows is one, whatever its value: {error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_value_that_is_not_utf_8_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let latin = || OsString::from_vec(b"caf\xe9".to_vec());
        let with = |variable: &str| Config::default().apply_env("ACTORUM", &["DATA"], [(variable, latin())]);
        let error = with("ACTORUM_CLUSTER_NAME").unwrap_err().to_string();
        assert!(error.starts_with("ACTORUM_CLUSTER_NAME: caf") && error.ends_with("is not UTF-8"), "{error}");
        assert!(with("ACTORUM_NONE").unwrap_err().to_string().contains("no such setting"));
        assert!(with("ACTORUM_DATA").is_ok() && with("LANG").is_ok(), "not ours to read");
        let name = OsString::from_vec(b"ACTORUM_HEARTBEAT\xff".to_vec());
        assert!(Config::default().apply_env("ACTORUM", &[], [(name, "5")]).is_err());
    }

    /// The types that no setting has yet, as they will stand in a variable.
    #[test]
    fn values_in_variables() {
        let on = Value::Boolean(false);
        for (text, value) in [("1", true), ("true", true), ("0", false), (" false ", false)] {
            assert_eq!(in_env(text, &on), Some(Value::Boolean(value)), "{text}");
        }
        for text in ["", "yes", "2", "TRUE!"] {
            assert_eq!(in_env(text, &on), None, "{text}");
        }
        let list = Value::Array(vec![Value::Integer(0)]);
        let numbers = |numbers: &[i64]| Some(Value::Array(numbers.iter().copied().map(Value::Integer).collect()));
        assert_eq!(in_env("1,2,3", &list), numbers(&[1, 2, 3]));
        assert_eq!(in_env("1, 2,", &list), numbers(&[1, 2]));
        assert_eq!(in_env("", &list), numbers(&[]));
        assert_eq!(in_env("1,,2", &list), None);
    }

    #[test]
    fn a_file_says_only_what_differs() {
        let config = applied("heartbeat_ms = 50\nplacement = \"spread\"\nseed = 7").unwrap();
        assert_eq!((config.heartbeat_ms, config.placement, config.seed), (50, Placement::Spread, Some(7)));
        assert_eq!(config.election_ms, Config::default().election_ms);
    }

    #[test]
    fn the_environment_goes_on_top_and_others_are_left_alone() {
        let config = env(&[("ACTORUM_CLUSTER_NAME", "7"), ("ACTORUM_DATA", "x"), ("PATH", "/bin")]).unwrap();
        assert_eq!(config.cluster_name, "7");
    }

    #[test]
    fn an_unknown_key_is_named_with_the_one_that_was_meant() {
        assert_eq!(
            applied("hartbeat_ms = 5").unwrap_err(),
            "hartbeat_ms: there is no such setting; did you mean heartbeat_ms?"
        );
        assert_eq!(
            env(&[("ACTORUM_MAX_IN_FLIHGT", "5")]).unwrap_err(),
            "ACTORUM_MAX_IN_FLIHGT: there is no such setting; did you mean max_in_flight?"
        );
        let far = applied("color = \"red\"").unwrap_err();
        assert!(
            far.starts_with("color: there is no such setting; there are activate, cluster_name, deadline_ms, "),
            "{far}"
        );
    }

    #[test]
    fn a_value_of_another_type_is_named() {
        let error = applied("heartbeat_ms = \"fast\"").unwrap_err();
        assert_eq!(error, "heartbeat_ms: a string where a whole number belongs");
        let error = env(&[("ACTORUM_HEARTBEAT_MS", "fast")]).unwrap_err();
        assert_eq!(error, "ACTORUM_HEARTBEAT_MS: \"fast\" is not a whole number");
        assert!(applied("placement = \"wide\"").unwrap_err().contains("compact"));
        let error = applied("heartbeat_ms = -5").unwrap_err();
        assert_eq!(error, "heartbeat_ms: -5 is too low: at least 1, at most 60000");
    }

    /// Whatever the window, what follows from it fits together: the transport drops nothing that the window lets
    /// through.
    #[test]
    fn the_bounds_of_a_peer_follow_from_its_window() {
        for window in [1, 100, 5000, 1 << 20, 16 << 20, 1 << 30] {
            let config = Config { peer_window_bytes: window, ..Config::default() };
            config.validate().unwrap();
            assert!(config.append_bytes() <= window && config.append_bytes() <= 1 << 20);
            assert!(config.queue_bytes() > window + config.max_entry_bytes);
        }
        let config = Config::default();
        assert_eq!((config.append_bytes(), config.inflight_appends()), (1 << 20, 256));
        // What the first version wrote into its files stays good.
        applied("max_append_bytes = 1048576\nmax_inflight_appends = 32\npeer_queue_bytes = 67108864")
            .unwrap()
            .validate()
            .unwrap();
    }

    #[test]
    fn impossible_combinations_name_the_key() {
        Config::default().validate().unwrap();
        let wrong = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().unwrap_err().key
        };
        assert_eq!(wrong(|c| c.heartbeat_ms = 0), "heartbeat_ms");
        assert_eq!(wrong(|c| c.election_ms = 299), "election_ms");
        assert_eq!(wrong(|c| c.max_in_flight_bytes = 1000), "max_in_flight_bytes");
        assert_eq!(wrong(|c| c.max_unpersisted_bytes = 1000), "max_unpersisted_bytes");
        assert_eq!(wrong(|c| c.disk_dead_ms = 1000), "disk_dead_ms");
        assert_eq!(wrong(|c| c.max_unapplied_bytes = c.max_entry_bytes), "max_unapplied_bytes");
        assert_eq!(wrong(|c| c.max_entry_bytes = (48 << 20) + 1), "max_entry_bytes");
        assert_eq!(wrong(|c| c.max_append_bytes = (16 << 20) + 1), "max_append_bytes");
        assert_eq!(wrong(|c| (c.max_append_bytes, c.peer_window_bytes) = (2000, 1999)), "max_append_bytes");
        assert_eq!(wrong(|c| c.peer_window_bytes = 0), "peer_window_bytes");
        assert_eq!(wrong(|c| c.peer_queue_bytes = c.peer_window_bytes), "peer_queue_bytes");
        assert_eq!(wrong(|c| c.snapshot_piece_bytes = (1 << 20) + 1), "snapshot_piece_bytes");
        assert_eq!(wrong(|c| c.snapshot_rate = 50_000), "snapshot_rate");
    }
}
