//! MessagePack in a form for people: like JSON, with additions for what JSON does not have.
//!
//! Commands of every application are MessagePack maps with named fields. So the names are in the log, and a reader does
//! not need the types of the application. Byte strings are shown as `h'00ff'`, and keys of maps may be of any type.

use std::fmt::{self, Write};

use serde::{
    Deserializer,
    de::{DeserializeSeed, EnumAccess, Error, MapAccess, SeqAccess, Visitor},
};

/// How deep values may be nested: deeper values are not shown.
const DEPTH: usize = 128;
/// How many bytes of a byte string are shown.
const BYTES: usize = 64;

/// In one line; bytes that cannot be read are replaced by a text with their number.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let mut rest = bytes;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    deserializer.set_max_depth(DEPTH);
    let mut text = String::new();
    let read = Text(&mut text).deserialize(&mut deserializer);
    drop(deserializer);
    match (read, rest.len()) {
        (Ok(()), 0) => text,
        (Ok(()), more) => format!("{text} and {more} bytes behind it"),
        (Err(error), _) => format!("{} bytes that are no MessagePack: {error}", bytes.len()),
    }
}

/// Writes down whatever comes.
struct Text<'a>(&'a mut String);

impl Text<'_> {
    fn put<E: Error>(self, value: impl fmt::Display) -> Result<(), E> {
        write!(self.0, "{value}").map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.put(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        // `1.0` and not `1`.
        self.put(format_args!("{value:?}"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        let quoted = serde_json::to_string(value).map_err(E::custom)?;
        self.put(quoted)
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<(), E> {
        self.0.push_str("h'");
        value.iter().take(BYTES).try_for_each(|byte| write!(self.0, "{byte:02x}")).map_err(E::custom)?;
        match value.len() {
            0..=BYTES => self.put('\''),
            length => self.put(format_args!("..' ({length} bytes)")),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.put("null")
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.put("null")
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.deserialize(deserializer)
    }

    /// An extension: its type and its bytes.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.0.push_str("ext");
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut before = "[";
        loop {
            let start = self.0.len();
            self.0.push_str(before);
            if items.next_element_seed(Text(self.0))?.is_none() {
                self.0.truncate(start);
                self.0.push_str(if before == "[" { "[]" } else { "]" });
                return Ok(());
            }
            before = ",";
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<(), A::Error> {
        let mut before = "{";
        loop {
            let start = self.0.len();
            self.0.push_str(before);
            if pairs.next_key_seed(Text(self.0))?.is_none() {
                self.0.truncate(start);
                self.0.push_str(if before == "{" { "{}" } else { "}" });
                return Ok(());
            }
            self.0.push(':');
            pairs.next_value_seed(Text(self.0))?;
            before = ",";
        }
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom("an enum without its type"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Serialize;

    use super::*;

    #[derive(Serialize)]
    enum Command {
        Nothing,
        Move(i32, f64),
        Book {
            seat: u8,
            name: Option<String>,
            #[serde(with = "serde_bytes")]
            key: Vec<u8>,
        },
        Many(Vec<BTreeMap<u8, bool>>),
    }

    fn of(value: &impl Serialize) -> String {
        shown(&actorum::machine::encode(value).expect("it can be encoded"))
    }

    /// Whatever an application may send, by its names.
    #[test]
    fn any_command() {
        assert_eq!(of(&Command::Nothing), r#""Nothing""#);
        assert_eq!(of(&Command::Move(-7, 1.0)), r#"{"Move":[-7,1.0]}"#);
        let book = Command::Book { seat: 9, name: Some("a \"b\"\n".to_owned()), key: vec![0, 255] };
        assert_eq!(of(&book), r#"{"Book":{"seat":9,"name":"a \"b\"\n","key":h'00ff'}}"#);
        let nobody = Command::Book { seat: 0, name: None, key: vec![7; 65] };
        assert!(of(&nobody).ends_with("07..' (65 bytes)}}"), "{}", of(&nobody));
        let many = Command::Many(vec![BTreeMap::from([(1, true), (2, false)]), BTreeMap::new()]);
        assert_eq!(of(&many), r#"{"Many":[{1:true,2:false},{}]}"#);
        assert_eq!(of(&(Vec::<u8>::new(), u64::MAX, f64::NAN, ())), "[[],18446744073709551615,NaN,null]");
    }

    /// And what nobody sent on purpose.
    #[test]
    fn no_command() {
        assert_eq!(shown(b"\x01\x02\x03"), "1 and 2 bytes behind it");
        assert!(shown(b"").starts_with("0 bytes that are no MessagePack"), "{}", shown(b""));
        assert!(shown(b"\x81\xa1").starts_with("2 bytes that are no MessagePack"));
        assert!(shown(&[0x91; 100_000]).starts_with("100000 bytes that are no MessagePack"));
        assert_eq!(shown(b"\xd4\x05\x07"), "ext[5,h'07']");
    }
}
