//! The running hash over what a node applies, and the one over what its state machine responds.
//!
//! ```text
//!  value' = XXH3-128( value · index · term · kind · length of data · [version] · data · context )
//! ```
//!
//! The version of the state machine in force is part of it once one was activated and [`Feature::VersionHashes`] is in
//! use: nodes that hold the same entries and decide them by different versions differ at the next mark. Before that
//! nothing is added, so that a node comes to the same value as one whose build lacks the feature. Such a build stops at
//! the entry that puts the feature to use.
//!
//! [`Feature::VersionHashes`]: crate::features::Feature::VersionHashes
//!
//! A chain of one short hash per entry rather than one long hash: its whole state is the 16 bytes of its value, which
//! go into every snapshot.
//!
//! XXH3 is no cryptographic hash and need not be: the hash finds what disks, operators and state machines do by
//! accident, every entry costs it on every node, and whoever could choose entries that collide would have to make two
//! members apply different ones at one index. Files that travel are named by BLAKE3.

use actorum_machine::machine::{self, MachineError};
use serde::Serialize;
use twox_hash::XxHash3_128;

use crate::{
    marks::{HashValue, ResponseHash, StateHash},
    wire::{Entry, EntryKind},
};

/// Larger entries are not copied.
const COPIED: usize = 16 << 10;

/// A hash that begins behind an index.
pub fn begin(index: u64) -> StateHash {
    StateHash { since: index, value: HashValue(0) }
}

/// A hash over responses that begins behind a mark.
pub fn begin_responses(index: u64, version: u32) -> ResponseHash {
    ResponseHash { since: index, version, value: HashValue(0) }
}

/// Moves hashes on. Keeps a buffer, so that nothing is allocated per entry.
#[derive(Debug, Default)]
pub struct Hasher {
    buffer: Vec<u8>,
}

impl Hasher {
    /// One more entry was applied, while this version of the state machine was in force; zero if none was activated, or
    /// the version does not count.
    pub fn entry(&mut self, hash: &mut StateHash, entry: &Entry, version: u32) {
        let Entry { kind, term, index, data, context } = entry;
        let kind = match kind {
            EntryKind::Normal => 1,
            EntryKind::ConfChange => 2,
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(&hash.value.0.to_be_bytes());
        self.buffer.extend_from_slice(&index.to_be_bytes());
        self.buffer.extend_from_slice(&term.to_be_bytes());
        self.buffer.push(kind);
        self.buffer.extend_from_slice(&(data.len() as u64).to_be_bytes());
        if version > 0 {
            self.buffer.extend_from_slice(&version.to_be_bytes());
        }
        hash.value = HashValue(if data.len() + context.len() <= COPIED {
            self.buffer.extend_from_slice(data);
            self.buffer.extend_from_slice(context);
            XxHash3_128::oneshot(&self.buffer)
        } else {
            let mut whole = XxHash3_128::new();
            [&self.buffer[..], data, context].into_iter().for_each(|part| whole.write(part));
            whole.finish_128()
        });
    }

    /// The state machine responded to a command. Runs the application's code, which may panic.
    pub fn answer<R: Serialize>(
        &mut self,
        hash: &mut ResponseHash,
        index: u64,
        answer: &R,
    ) -> Result<(), MachineError> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&hash.value.0.to_be_bytes());
        self.buffer.extend_from_slice(&index.to_be_bytes());
        machine::encode_to(answer, &mut self.buffer)?;
        hash.value = HashValue(XxHash3_128::oneshot(&self.buffer));
        // One large response must not keep its memory for ever.
        self.buffer.shrink_to(COPIED);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(index: u64, term: u64, data: &[u8], context: &[u8]) -> Entry {
        let (data, context) = (Bytes::copy_from_slice(data), Bytes::copy_from_slice(context));
        Entry { kind: EntryKind::Normal, term, index, data, context }
    }

    fn hashed(entries: &[Entry]) -> StateHash {
        let (mut hasher, mut hash) = (Hasher::default(), begin(1));
        entries.iter().for_each(|entry| hasher.entry(&mut hash, entry, 0));
        hash
    }

    /// What a later version must come to as well: clusters are upgraded node by node.
    #[test]
    fn the_value_never_changes() {
        let hash = hashed(&[entry(2, 1, b"", b""), entry(3, 1, b"command", b"")]);
        assert_eq!(hash.value.to_string(), GOLDEN);
    }

    /// With a version that counts, too: nodes of two builds that both have the feature are compared.
    #[test]
    fn the_version_in_force_counts_if_it_is_given() {
        let of = |version| {
            let (mut hasher, mut hash) = (Hasher::default(), begin(1));
            hasher.entry(&mut hash, &entry(2, 1, b"command", b""), version);
            hash.value.to_string()
        };
        assert_eq!([of(0), of(2), of(3)], GOLDEN_OF_VERSIONS);
        let large = entry(2, 1, &vec![7; 2 * COPIED], b"");
        let (mut hasher, mut none, mut two) = (Hasher::default(), begin(1), begin(1));
        hasher.entry(&mut none, &large, 0);
        hasher.entry(&mut two, &large, 2);
        assert_ne!(none, two);
    }

    const GOLDEN_OF_VERSIONS: [&str; 3] =
        ["055dc926ce054627cd740a82679169b4", "3af9e69b85222d6a51456a881b146ab8", "0e3d9eaf42eea8b5d9ce631e92ede123"];

    const GOLDEN: &str = "b5698dabe7c37c28967a239b941494f0";

    #[test]
    fn every_part_of_every_entry_counts() {
        let all = [entry(2, 1, b"a", b"b"), entry(3, 1, b"c", b"")];
        let value = hashed(&all);
        let others = [
            vec![all[0].clone()],
            vec![all[1].clone(), all[0].clone()],
            vec![all[0].clone(), all[1].clone(), all[1].clone()],
            vec![Entry { term: 2, ..all[0].clone() }, all[1].clone()],
            vec![Entry { index: 4, ..all[0].clone() }, all[1].clone()],
            vec![Entry { kind: EntryKind::ConfChange, ..all[0].clone() }, all[1].clone()],
            vec![entry(2, 1, b"ab", b""), all[1].clone()],
            vec![entry(2, 1, b"", b"ab"), all[1].clone()],
            vec![entry(2, 1, b"x", b"b"), all[1].clone()],
        ];
        for other in others {
            assert_ne!(hashed(&other), value, "{other:?}");
        }
        assert_eq!(hashed(&all), value);
    }

    /// Large entries take another way to the same value.
    #[test]
    fn a_large_entry_is_hashed_like_a_small_one() {
        for size in [COPIED - 1, COPIED, COPIED + 1, 3 * COPIED] {
            let large = entry(2, 1, &vec![7; size], b"");
            let mut bytes = vec![0; 16];
            bytes.extend_from_slice(&2u64.to_be_bytes());
            bytes.extend_from_slice(&1u64.to_be_bytes());
            bytes.push(1);
            bytes.extend_from_slice(&(size as u64).to_be_bytes());
            bytes.extend_from_slice(&large.data);
            assert_eq!(hashed(&[large]).value, HashValue(XxHash3_128::oneshot(&bytes)), "{size} bytes");
        }
    }

    #[test]
    fn answers_are_hashed_as_they_are_encoded() {
        let responses = |responses: &[&str]| {
            let (mut hasher, mut hash) = (Hasher::default(), begin_responses(5, 1));
            for (n, answer) in responses.iter().enumerate() {
                hasher.answer(&mut hash, 6 + n as u64, answer).unwrap();
            }
            hash
        };
        assert_eq!(responses(&["a", "b"]), responses(&["a", "b"]));
        assert_ne!(responses(&["a", "b"]), responses(&["b", "a"]));
        assert_ne!(responses(&["a", "b"]), responses(&["a"]));
    }
}
