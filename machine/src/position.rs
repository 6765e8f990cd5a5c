//! Positions: how far a subscriber has followed the applied commands, and in which cluster.
//!
//! An index alone does not say to which cluster it belongs: a cluster that was restored from a backup counts on from
//! the backup's index, so the same index names other commands there. A [`Position`] carries the cluster's id with the
//! index, and a node of another cluster refuses it instead of reporting wrong commands, or none.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::ids::ClusterId;

/// An index in the log of one cluster. A subscriber that keeps it has handled everything up to it.
///
/// What is not detected: a cluster that was founded anew, with all directories deleted, by the same founders with the
/// same name and the same certificate authority. It has the same id, so positions of the cluster before it are taken
/// for its own as soon as it has as many commands. Found it with another [`cluster_name`], which is part of the id. The
/// same is true of two clusters without certificates that have the same founders and names, such as two over networks
/// in memory.
///
/// [`cluster_name`]: https://docs.rs/actorum/latest/actorum/struct.Config.html#structfield.cluster_name
///
/// Its text form, also in JSON, is `CLUSTER:INDEX`: 32 hexadecimal digits, a colon, and a decimal number.
///
/// ```
/// use actorum_machine::position::Position;
///
/// let position: Position = "0000000000000000000000000000002a:7".parse()?;
/// assert_eq!((position.cluster.0, position.index), (42, 7));
/// assert_eq!(position.to_string(), "0000000000000000000000000000002a:7");
/// # Ok::<(), actorum_machine::position::PositionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The cluster that counts.
    pub cluster: ClusterId,
    /// The last index that is known.
    pub index: u64,
}

/// A text is no position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a position: CLUSTER:INDEX, with 32 hexadecimal digits before the colon and a number after it")]
pub struct PositionError(String);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cluster, self.index)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Position, PositionError> {
        // `from_str_radix` and `parse` take a sign, which nobody writes.
        let digits = |text: &str, radix| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        let parse = || {
            let (cluster, index) = text.split_once(':')?;
            let well_formed = cluster.len() == 32 && digits(cluster, 16) && digits(index, 10);
            let cluster = ClusterId(u128::from_str_radix(cluster, 16).ok().filter(|_| well_formed)?);
            Some(Position { cluster, index: index.parse().ok()? })
        };
        parse().ok_or_else(|| PositionError(text.chars().take(80).collect()))
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Position, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum After {
    /// Begin with what is applied from now on.
    #[default]
    Now,
    /// Begin with the first command after this index, whichever cluster counted it. 0 is the beginning.
    Index(u64),
    /// Begin with the first command after this position, if the position is one of this cluster.
    Position(Position),
}

impl From<u64> for After {
    fn from(index: u64) -> After {
        After::Index(index)
    }
}

impl From<Position> for After {
    fn from(position: Position) -> After {
        After::Position(position)
    }
}

/// A number, or [`Position`]'s text form.
impl FromStr for After {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<After, PositionError> {
        match text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse()) {
            Some(Ok(index)) => Ok(After::Index(index)),
            _ => text.parse().map(After::Position),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written_and_nothing_else_is() {
        for position in [
            Position { cluster: ClusterId(0), index: 0 },
            Position { cluster: ClusterId(u128::MAX), index: u64::MAX },
            Position { cluster: ClusterId(0xabc), index: 12 },
        ] {
            assert_eq!(position.to_string().parse(), Ok(position));
            assert_eq!(position.to_string().parse(), Ok(After::Position(position)));
            let encoded = crate::machine::encode(&position).unwrap();
            assert_eq!(crate::machine::decode::<Position>(&encoded).unwrap(), position);
        }
        assert_eq!("7".parse(), Ok(After::Index(7)));
        assert_eq!("18446744073709551615".parse(), Ok(After::Index(u64::MAX)));
        let cluster = "0".repeat(32);
        for wrong in [
            "",
            ":",
            "x",
            "-1",
            "+1",
            "18446744073709551616",
            "7:7",
            "é:1",
            &format!("{cluster}:"),
            &format!(":{cluster}"),
            &format!("{cluster}:-1"),
            &format!("{cluster}:+1"),
            &format!("{cluster}0:1"),
            &format!("{cluster}:18446744073709551616"),
            &format!("{cluster}:1:1"),
            &format!("+{}:1", "0".repeat(31)),
            &format!("{}:1", "g".repeat(32)),
            &format!("{cluster}: 1"),
        ] {
            assert!(wrong.parse::<After>().is_err(), "{wrong}");
            assert!(wrong.parse::<Position>().is_err(), "{wrong}");
        }
    }
}
