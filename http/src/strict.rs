//! Numbers and ids of nodes in requests, each in one form only. The flags and files of the binary `actorum` take the
//! same.

use std::fmt;

use actorum::{MAX_NODE_ID, NodeId};
use serde::{
    Deserializer,
    de::{Unexpected, Visitor},
};

/// The id of a node. The highest possible id is checked only for a new node: see [`new_node_id`].
pub fn node_id(text: &str) -> Result<NodeId, String> {
    whole(text.trim()).filter(|id| *id > 0).ok_or_else(|| no_node_id(text.trim()))
}

/// A whole number in its only form: without a sign, without leading zeros, so that no two texts are the same number.
pub fn whole(text: &str) -> Option<u64> {
    let strict = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| strict)
}

/// The id of a new node: programs that read JSON round numbers above the highest id.
pub fn new_node_id(text: &str) -> Result<NodeId, String> {
    node_id(text).and_then(|id| if id <= MAX_NODE_ID { Ok(id) } else { Err(no_node_id(text.trim())) })
}

fn no_node_id(text: &str) -> String {
    format!("{text} is not a node id: {ID_NEEDED} is needed").trim_start().to_owned()
}

const ID_NEEDED: &str = "a whole number between 1 and 9007199254740991 (2^53 - 1)";

/// The id of a node that is given as a number, in a file or a body, with the bounds of [`node_id`].
pub fn read_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
    struct Id;
    impl Visitor<'_> for Id {
        type Value = NodeId;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a node id, which is {ID_NEEDED}")
        }

        fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<NodeId, E> {
            if id == 0 { Err(E::invalid_value(Unexpected::Unsigned(id), &self)) } else { Ok(id) }
        }

        fn visit_i64<E: serde::de::Error>(self, id: i64) -> Result<NodeId, E> {
            let wrong = || E::invalid_value(Unexpected::Signed(id), &self);
            u64::try_from(id).ok().filter(|id| *id > 0).ok_or_else(wrong)
        }
    }
    deserializer.deserialize_u64(Id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_names_the_bound() {
        assert!(ID_NEEDED.contains(&format!("and {MAX_NODE_ID} ")), "{ID_NEEDED}");
        assert_eq!(new_node_id(&format!(" {MAX_NODE_ID}\n")), Ok(MAX_NODE_ID));
        assert!(new_node_id(&(MAX_NODE_ID + 1).to_string()).is_err());
        assert_eq!(node_id(&u64::MAX.to_string()), Ok(u64::MAX), "the first version had such");
        for wrong in ["", "0", "-1", "x", "1.5", "18446744073709551616"] {
            assert!(node_id(wrong).expect_err(wrong).contains(ID_NEEDED), "{wrong}");
        }
    }
}
