//! What names a node, its directory, its cluster and its place: the words that every message, record and status uses.

use std::{fmt, net::SocketAddrV6, str::FromStr};

use serde::{Deserialize, Serialize};

mod address;

/// A random number that people and programs read as hexadecimal digits: many readers of JSON round numbers above 2^53.
/// Numbers are read as well, because the first version wrote some ids as numbers. In MessagePack the id is still a
/// number.
macro_rules! hex_for_people {
    ($name:ident, $number:ty) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Digits;
                impl serde::de::Visitor<'_> for Digits {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("hexadecimal digits")
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
                        let number = digits.then(|| <$number>::from_str_radix(text, 16).ok()).flatten();
                        number.map($name).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
                    }

                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$name, E> {
                        Ok($name(number.into()))
                    }
                }
                if deserializer.is_human_readable() {
                    deserializer.deserialize_any(Digits)
                } else {
                    <$number>::deserialize(deserializer).map($name)
                }
            }
        }
    };
}

/// The identity of a node: chosen by its operator, never zero, never used twice in the life of a cluster.
pub type NodeId = u64;

/// The highest id that a new node may have, 2^53 - 1: the highest number that every reader of JSON keeps exact. It is
/// checked when a node is added; a node of the first version with a higher id keeps it.
pub const MAX_NODE_ID: NodeId = (1 << 53) - 1;

/// The Raft group a message belongs to. This version runs one group, [`GroupId::FIRST`]; every frame and
/// every key carries it, so that many can follow without a new format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The one group of this version.
    pub const FIRST: GroupId = GroupId(0);
}

/// One life of a data directory: drawn at random when the directory is made and never changed.
///
/// A node that comes back under its id with another incarnation has lost its disk, and with the disk every vote and
/// acknowledgement it gave. Its peers refuse it with a specific error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

hex_for_people!(Incarnation, u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Which cluster a node belongs to, fixed when the cluster is formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

hex_for_people!(ClusterId, u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Where a peer listens: `host:port`. The host may be a name, which is resolved at each dial.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Address(pub String);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(address: std::net::SocketAddr) -> Self {
        Address(address.to_string())
    }
}

impl From<&str> for Address {
    fn from(address: &str) -> Self {
        Address(address.to_owned())
    }
}

impl Address {
    /// Whether both name the same place, however they are written. A host name is not compared with the IP address that
    /// it has now.
    pub fn is_same_place(&self, other: &Address) -> bool {
        address::canonical(&self.0) == address::canonical(&other.0)
    }
}

/// A text that is no address of a peer, and the form that one has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text} is not of the form HOST:PORT, such as 10.0.0.1:7001, node-1.example:7001 or [2001:db8::1]:7001: {problem}"
)]
pub struct AddressError {
    /// The text, as it was given.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Checks an address that a person gives. An address that is already in the log is made by `From`, without a check,
/// since earlier versions did not check it.
impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let wrong = |problem: String| Err(AddressError { text: text.to_owned(), problem });
        if let Some((scheme, _)) = text.split_once("://") {
            return wrong(format!("leave out `{scheme}://`: an address is no URL"));
        }
        if text.starts_with('[') {
            return match text.parse::<SocketAddrV6>() {
                Ok(address) if address.port() == 0 => wrong("port 0 cannot be reached".to_owned()),
                Ok(address) => match address::ip_problem((*address.ip()).into()) {
                    Some(problem) => wrong(problem),
                    None => Ok(Address(text.to_owned())),
                },
                Err(_) => wrong("this is not an IPv6 address in brackets with a port behind it".to_owned()),
            };
        }
        let Some((host, port)) = text.rsplit_once(':') else { return wrong("the port is missing".to_owned()) };
        if host.contains(':') {
            return wrong(format!("put an IPv6 address in brackets, as in [{host}]:{port}"));
        }
        if let Some(problem) = address::host_problem(host) {
            return wrong(problem);
        }
        // `parse` would take a sign.
        match port.parse::<u16>() {
            Ok(number) if number != 0 && port.bytes().all(|digit| digit.is_ascii_digit()) => {
                Ok(Address(text.to_owned()))
            }
            _ => wrong("a port is a number between 1 and 65535".to_owned()),
        }
    }
}
