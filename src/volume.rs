//! Fits the settings to the volume that holds the data directory, and says how large a volume a node needs.
//!
//! The defaults are made for volumes of 16 GiB and more. On a smaller volume the defaults that take room are at most a
//! share of it, so that the entries that are kept, the log's engine with its waste, the snapshots and the reserve fit
//! beside each other. A setting that differs from its default was chosen by a user, and is used as it is, unless the
//! node could not take a single write with it: then the start is refused.
//!
//! With *kept* bytes of entries in the log (`log_bytes` in the status) and a newest snapshot of *snapshot* bytes, a
//! directory whose log is being rewritten takes at most
//!
//! ```text
//!  3 x snapshot + reserve + max(rewritten from, 6 x kept) + 3 x kept + 64 MiB
//! ```
//!
//! and otherwise `2 x snapshot + reserve + max(rewritten from, 6 x kept)`; or what is left of the volume above
//! `low_space_bytes`, if that is less: then the node makes room, for which it needs a volume of [`needed`] bytes.
//! docs/guide/disk-and-memory.md has these formulas.
//!
//! Deliberately absent: asking the file system (see `actorum_store::log::space`).

use actorum_core::wire::ENTRY_OVERHEAD;

use crate::config::{Config, ConfigError};

/// The bytes that the log's engine takes at a time. With less than that free, a disk may be full before the node looks
/// again.
const SEGMENT: u64 = 16 << 20;

/// The room of the log's engine and of the copy that takes its place: six of its segments of 16 MiB.
const ENGINE_BYTES: u64 = 6 * SEGMENT;

/// The settings for a volume of so many bytes.
pub(crate) fn fitted(config: &Config, volume: u64) -> Config {
    let default = Config::default();
    let share = |value: u64, default: u64, share: u64| if value == default { value.min(share) } else { value };
    let mut fitted = config.clone();
    fitted.low_space_bytes = share(config.low_space_bytes, default.low_space_bytes, (volume / 16).max(SEGMENT));
    fitted.reserve_bytes = share(config.reserve_bytes, default.reserve_bytes, volume / 4);
    fitted.snapshot_bytes = share(config.snapshot_bytes, default.snapshot_bytes, (volume / 64).max(1 << 20));
    fitted.log_keep_bytes = share(config.log_keep_bytes, default.log_keep_bytes, volume / 64);
    fitted.log_hold_bytes = share(config.log_hold_bytes, default.log_hold_bytes, volume / 16);
    // Writes on their way to the disk are still written when space turns out to be low. Never less than an entry.
    let unpersisted = config.max_unpersisted_bytes as u64;
    let least = (volume / 64).max(config.max_entry_bytes as u64 + ENTRY_OVERHEAD as u64);
    fitted.max_unpersisted_bytes = share(unpersisted, default.max_unpersisted_bytes as u64, least) as usize;
    fitted
}

/// The room without which no log is written: its engine's first segments, the one after them, and a slice of a copy.
const LOG: u64 = 64 << 20;

/// A setting with which a node on a volume of so many bytes could never take a write, or would find the disk full
/// before it noticed; with the greatest value that works. It looks at the settings as they were given, before they are
/// [`fitted`], since a default is never too large.
///
/// A directory that is not new may have been run by the first version with bounds that are never reached on this
/// volume. So it is refused only for settings that would stop its writes.
pub(crate) fn too_much(config: &Config, volume: u64, new: bool) -> Result<(), ConfigError> {
    let default = Config::default();
    let given = fitted(config, volume);
    let entry = config.max_entry_bytes as u64 + ENTRY_OVERHEAD as u64;
    let half = volume / 2;
    // The reserve is checked first: the rest of the volume bounds `low_space_bytes`.
    let beside = volume.saturating_sub(given.reserve_bytes).saturating_sub(LOG);
    let settings = [
        ("reserve_bytes", config.reserve_bytes, default.reserve_bytes, most_reserve(volume)),
        ("low_space_bytes", config.low_space_bytes, default.low_space_bytes, beside),
        ("snapshot_bytes", config.snapshot_bytes, default.snapshot_bytes, half),
        ("log_keep_bytes", config.log_keep_bytes, default.log_keep_bytes, half),
        ("log_hold_bytes", config.log_hold_bytes, default.log_hold_bytes, half),
        (
            "max_unpersisted_bytes",
            config.max_unpersisted_bytes as u64,
            default.max_unpersisted_bytes as u64,
            (volume / 8).max(entry),
        ),
    ];
    let judged = if new { settings.len() } else { 2 };
    for (key, value, default, most) in settings.into_iter().take(judged) {
        if value != default && value > most {
            let problem = format!(
                "{value} is too much for the volume of the data directory, which has {volume} bytes: at most {most}, \
                 or a larger volume"
            );
            return Err(ConfigError { key: key.into(), problem });
        }
    }
    Ok(())
}

/// How large the reserve may become, the newest snapshot's size included.
pub(crate) fn most_reserve(volume: u64) -> u64 {
    volume / 8 * 3
}

/// A log whose files take fewer bytes than this is not rewritten for its waste alone.
pub(crate) fn rewritten_from(default: u64, volume: u64) -> u64 {
    default.min(volume / 8)
}

/// How many bytes the volume must have for a node whose newest snapshot has so many bytes: three snapshots, the reserve
/// with a fourth, the free bytes below which room is short, and the engine with its copy.
pub(crate) fn needed(config: &Config, snapshot: u64) -> u64 {
    let Config { low_space_bytes, reserve_bytes, .. } = *config;
    snapshot
        .saturating_mul(4)
        .saturating_add(reserve_bytes)
        .saturating_add(low_space_bytes.saturating_mul(2))
        .saturating_add(ENGINE_BYTES)
}

/// A warning that the volume is too small, and how large it must be.
pub(crate) fn too_small(config: &Config, volume: u64, snapshot: u64) -> Option<String> {
    let needed = needed(config, snapshot);
    let Config { low_space_bytes, reserve_bytes, .. } = *config;
    (low_space_bytes > 0 && volume < needed).then(|| {
        format!(
            "the data directory's volume has {volume} bytes, and this node needs {needed}: 4 x the newest snapshot \
             ({snapshot}) + reserve_bytes ({reserve_bytes}) + 2 x low_space_bytes ({low_space_bytes}) + {ENGINE_BYTES} \
             for the log and its copy. Use a larger volume, or lower low_space_bytes or reserve_bytes; else writes may \
             be refused for lack of space"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The defaults fit, with a state of 16 MB: what is kept, its waste, a copy, the snapshots and the reserve.
    #[test]
    fn the_defaults_fit_the_volume() {
        for (volume, low, reserve, snapshot) in
            [(256 * MIB, 16 * MIB, 48 * MIB, 4 * MIB), (1024 * MIB, 64 * MIB, 48 * MIB, 16 * MIB)]
        {
            let config = fitted(&Config::default(), volume);
            config.validate().unwrap();
            assert_eq!((config.low_space_bytes, config.reserve_bytes), (low, reserve));
            assert_eq!((config.snapshot_bytes, config.log_keep_bytes), (snapshot, snapshot));
            assert_eq!(too_small(&config, volume, 12 * MIB), None);
        }
        let plenty = Config::default();
        assert_eq!(fitted(&plenty, 16 << 30), plenty, "on a large volume they are what they are");
        assert_eq!((rewritten_from(256 * MIB, 16 << 30), rewritten_from(256 * MIB, 256 * MIB)), (256 * MIB, 32 * MIB));
    }

    #[test]
    fn what_somebody_chose_is_taken_as_it_is() {
        let chosen =
            Config { low_space_bytes: 200 * MIB, snapshot_bytes: 1 << 30, reserve_bytes: 0, ..Config::default() };
        let config = fitted(&chosen, 256 * MIB);
        let Config { low_space_bytes, snapshot_bytes, reserve_bytes, .. } = config;
        assert_eq!((low_space_bytes, snapshot_bytes, reserve_bytes), (200 * MIB, 1 << 30, 0));
        let problem = too_small(&config, 256 * MIB, 0).unwrap();
        assert!(
            problem.contains("2 x low_space_bytes (209715200)") && problem.contains("needs 520093696"),
            "{problem}"
        );
        // Who never looks for space is never refused for lack of it.
        assert_eq!(too_small(&Config { low_space_bytes: 0, ..config }, MIB, 0), None);
    }

    /// Before, a reserve of 2 GB on a volume of 1 GiB filled it, and every write was refused for good.
    #[test]
    fn what_would_refuse_every_write_is_refused_at_the_start() {
        type Set = fn(&mut Config, u64);
        let settings: [(&str, Set, u64); 6] = [
            ("reserve_bytes", |c, bytes| c.reserve_bytes = bytes, 384 * MIB),
            ("low_space_bytes", |c, bytes| c.low_space_bytes = bytes, (1024 - 48 - 64) * MIB),
            ("snapshot_bytes", |c, bytes| c.snapshot_bytes = bytes, 512 * MIB),
            ("log_keep_bytes", |c, bytes| c.log_keep_bytes = bytes, 512 * MIB),
            ("log_hold_bytes", |c, bytes| c.log_hold_bytes = bytes, 512 * MIB),
            ("max_unpersisted_bytes", |c, bytes| c.max_unpersisted_bytes = bytes as usize, 128 * MIB),
        ];
        let volume = 1024 * MIB;
        for (key, set, most) in settings {
            for (bytes, fits) in [(most, true), (most + 1, false), (1 << 40, false)] {
                let mut config = Config::default();
                set(&mut config, bytes);
                let expected = match fits {
                    true => Ok(()),
                    false => Err(format!(
                        "{key}: {bytes} is too much for the volume of the data directory, which has {volume} bytes: at \
                         most {most}, or a larger volume"
                    )),
                };
                assert_eq!(too_much(&config, volume, true).map_err(|error| error.to_string()), expected);
            }
        }
        // Together they fit, too: the reserve, what counts as low, and the log.
        let both = Config { reserve_bytes: 300 * MIB, low_space_bytes: 700 * MIB, ..Config::default() };
        assert_eq!(too_much(&both, volume, true).unwrap_err().key, "low_space_bytes");
        // Where a node has run already, only for what stops its writes.
        let never = Config { snapshot_bytes: 1 << 40, log_hold_bytes: 1 << 40, ..Config::default() };
        assert_eq!(too_much(&never, volume, false), Ok(()));
        assert_eq!(too_much(&both, volume, false).unwrap_err().key, "low_space_bytes");
        // Nobody is refused for what nobody chose, however small the volume.
        assert_eq!(too_much(&Config::default(), MIB, true), Ok(()));
    }

    #[test]
    fn a_state_that_does_not_fit_is_told_of() {
        let config = fitted(&Config::default(), 1024 * MIB);
        assert_eq!(too_small(&config, 1024 * MIB, 100 * MIB), None);
        assert!(too_small(&config, 1024 * MIB, 250 * MIB).is_some());
    }
}
