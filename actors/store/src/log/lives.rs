//! The file of lives: the nonces of this directory's openings, and what is on record of the peers' (see
//! `actorum_core::lives`, which says what for).
//!
//! ```text
//!  DIR/lives    magic and version 8, crc32 4, length 4, MessagePack with named fields
//! ```
//!
//! Replaced as a whole, so a crash leaves the one before. A directory without it is of the first version, or new: it
//! begins one. A damaged one is refused: without it the node could not show what its peers have on record. So is one
//! that is missing or older than the life that the `node` file names, which is written after it; and a `node` file that
//! is older than the last life.
//!
//! Deliberately absent: what a life is, and when it counts.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use actorum_core::{
    lives::{Content, Life, LifeBook, LifeFile, LifeKey},
    log::store::Recovered,
};
use actorum_machine::ids::Incarnation;

use super::{
    directory::{lives_path, sync_dir},
    store::{OpenError, StoreIdentity},
};

/// The first bytes; the last one is the version.
const MAGIC: [u8; 8] = *b"actorlf\x01";

/// Magic, checksum, length.
const HEAD: usize = 16;

/// The file of a directory that this process holds.
struct RealFile {
    path: PathBuf,
    /// Written beside it and not in its place yet.
    written: Option<File>,
}

impl RealFile {
    fn beside(&self) -> PathBuf {
        self.path.with_extension("new")
    }
}

impl LifeFile for RealFile {
    fn write(&mut self, content: &Content) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(self.beside())?;
        file.write_all(&encode(content))?;
        self.written = Some(file);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some(file) = self.written.take() else { return Ok(()) };
        // The content before the name: else a crash can leave the name with nothing behind it.
        file.sync_all()?;
        fs::rename(self.beside(), &self.path)?;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }
}

/// The bytes of a file.
pub(crate) fn encode(content: &Content) -> Vec<u8> {
    let body = rmp_serde::to_vec_named(content).expect("numbers and maps of numbers always encode");
    let mut bytes = MAGIC.to_vec();
    bytes.extend(crc32fast::hash(&body).to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// What such bytes say.
pub(crate) fn decode(bytes: &[u8]) -> Result<Content, String> {
    let Some((head, body)) = bytes.split_at_checked(HEAD) else { return Err("it is too short".into()) };
    if head[..7] != MAGIC[..7] {
        return Err("it is no file of lives".into());
    }
    if head[7] != MAGIC[7] {
        return Err(format!("it has version {} and this program reads {}", head[7], MAGIC[7]));
    }
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if body.len() as u64 != u64::from(word(12)) || crc32fast::hash(body) != word(8) {
        return Err("its checksum does not fit".into());
    }
    rmp_serde::from_slice(body).map_err(|error| error.to_string())
}

/// The life that begins with this opening.
pub(crate) fn life(identity: &StoreIdentity, nonce: u64, recovered: Option<&Recovered>) -> Life {
    let (term, index) = recovered.map_or((0, 0), |found| (found.hard_state.term, found.last_index));
    Life { boot: identity.boot, nonce, term, index }
}

/// Begins a life of a directory, durable when it returns.
pub(super) fn begin(
    dir: &Path,
    identity: &StoreIdentity,
    recovered: Option<&Recovered>,
) -> Result<Arc<LifeBook>, OpenError> {
    let content = read(dir, identity.incarnation)?;
    let file = Box::new(RealFile { path: lives_path(dir), written: None });
    LifeBook::open(file, content, life(identity, draw(), recovered)).map_err(|error| OpenError::Io {
        dir: dir.to_owned(),
        doing: "cannot write lives".to_owned(),
        error,
    })
}

/// What the file of a directory says, if that is no less than what its `node` file knows of it.
pub(super) fn judge(dir: &Path, node: &StoreIdentity, known: Option<LifeKey>) -> Result<(), OpenError> {
    let damaged =
        |what: &str, detail: String| Err(OpenError::Damaged { dir: dir.to_owned(), what: what.to_owned(), detail });
    let content = read(dir, node.incarnation)?;
    // The opening is counted before its life begins.
    let newest = content.own.last().map_or(0, |life| life.boot);
    if newest > node.boot {
        let detail =
            format!("it counts {} openings of the directory, and the lives file knows opening {newest}", node.boot);
        return damaged("node file", detail);
    }
    let Some(known) = known else { return Ok(()) };
    if !lives_path(dir).exists() {
        return damaged(
            "lives file",
            format!("it is missing, and the node file says that it knew opening {}", known.boot),
        );
    }
    if !content.own.iter().any(|life| life.key() == known) {
        return Err(OpenError::RolledBack {
            dir: dir.to_owned(),
            found: format!("a lives file up to opening {newest}"),
            promised: format!("the record of opening {}", known.boot),
        });
    }
    Ok(())
}

/// What the file of a directory says; where there is none, that of a directory that has no lives yet.
pub(super) fn read(dir: &Path, incarnation: Incarnation) -> Result<Content, OpenError> {
    let damaged = |detail: String| OpenError::Damaged { dir: dir.to_owned(), what: "lives file".to_owned(), detail };
    let content = match fs::read(lives_path(dir)) {
        Ok(bytes) => decode(&bytes).map_err(damaged)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::new(incarnation),
        Err(error) => {
            return Err(OpenError::Io { dir: dir.to_owned(), doing: "cannot read lives".to_owned(), error });
        }
    };
    if content.incarnation != incarnation {
        return Err(damaged(format!("it belongs to incarnation {} of a directory", content.incarnation)));
    }
    Ok(content)
}

/// A number that no other opening has drawn.
#[allow(clippy::disallowed_types, reason = "a real directory: a simulated disk is told its nonces")]
fn draw() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Closes the book with the directory: from then on another process may have it.
pub(super) struct Held<T> {
    pub book: Arc<LifeBook>,
    /// Dropped after the book is closed.
    pub _directory: T,
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.book.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(boot: u64) -> StoreIdentity {
        StoreIdentity { id: 3, incarnation: Incarnation(7), boot }
    }

    #[test]
    fn every_opening_draws_a_nonce_that_the_next_one_shows() {
        let dir = tempfile::tempdir().unwrap();
        let first = begin(dir.path(), &identity(1), None).unwrap().shown();
        let recovered = Recovered { last_index: 9, ..Recovered::default() };
        let second = begin(dir.path(), &identity(2), Some(&recovered)).unwrap().shown();
        assert_eq!(second[..1], first[..]);
        assert_eq!((second[1].boot, second[1].index), (2, 9));
        assert_ne!(second[0].nonce, second[1].nonce);
        // One without the file, as of the first version.
        fs::remove_file(lives_path(dir.path())).unwrap();
        assert_eq!(begin(dir.path(), &identity(3), None).unwrap().shown().len(), 1);
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        begin(dir.path(), &identity(1), None).unwrap();
        let path = lives_path(dir.path());
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let refused = begin(dir.path(), &identity(2), None).unwrap_err().to_string();
            assert!(refused.contains("lives file is damaged"), "byte {at}: {refused}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(begin(dir.path(), &identity(2), None).is_err(), "cut at {at}");
        }
        fs::write(&path, &good).unwrap();
        let other = StoreIdentity { incarnation: Incarnation(8), ..identity(2) };
        let refused = begin(dir.path(), &other, None).unwrap_err().to_string();
        assert!(refused.contains("it belongs to incarnation 0000000000000007"), "{refused}");
    }
}
