//! Whether a data directory is still where it was: it was not deleted or renamed, and its volume was not unmounted.
//!
//! A process that holds its files open notices none of that by itself: it would go on writing, and promising, into
//! files that the next start does not find. So what the path leads to now is compared with what was opened, by device
//! and inode: by the probe once a second, and whenever the store fails. The engine's own sync checks the number of
//! links of its file each time: so no acknowledgement leaves for a log whose file was deleted.
//!
//! Deliberately absent: what to do about it; that is the log writer's.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use actorum_core::log::store::StoreError;

use super::directory;

/// Files that are made with the directory and never again: another one under the name is another directory's.
const LASTING: &[&str] = &["lock"];

/// Files that are replaced now and then, or whose content counts: they have to be there.
const NEEDED: &[&str] = &["node", "watermark", "snapshots"];

/// What a directory was when it was opened.
#[derive(Debug)]
pub(super) struct Presence {
    dir: PathBuf,
    is: Vec<(PathBuf, Id)>,
}

/// Device and inode.
type Id = (u64, u64);

impl Presence {
    /// Of a directory that is open and whole.
    pub(super) fn of(dir: &Path) -> io::Result<Presence> {
        let paths = std::iter::once(dir.to_owned()).chain(LASTING.iter().map(|name| dir.join(name)));
        let is = paths.map(|path| Ok((path.clone(), id(&path)?))).collect::<io::Result<_>>()?;
        Ok(Presence { dir: dir.to_owned(), is })
    }

    /// Whether it is still that.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match self.missing() {
            None => Ok(()),
            Some(what) => Err(StoreError::Gone { dir: self.dir.clone(), what }),
        }
    }

    fn missing(&self) -> Option<String> {
        for (path, was) in &self.is {
            match id(path) {
                Ok(now) if now == *was => {}
                Ok(_) => return Some(format!("another file or directory is at {} now", path.display())),
                Err(error) if is_gone(&error) => return Some(format!("{} is gone ({error})", path.display())),
                // A disk that does not answer, or refuses access, is another problem.
                Err(_) => return None,
            }
        }
        let needed = NEEDED.iter().map(|name| self.dir.join(name));
        if let Some(path) = needed.into_iter().find(|path| is_missing(path)) {
            return Some(format!("{} is gone", path.display()));
        }
        // A rewriting of the log may end between two looks.
        let log = || directory::generation(&self.dir).ok().map(|at| directory::log_path(&self.dir, at).join("db"));
        let first = log()?;
        if !is_missing(&first) || log()? != first || !is_missing(&first) {
            return None;
        }
        Some(format!("{} is gone", first.display()))
    }
}

fn id(path: &Path) -> io::Result<Id> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

fn is_missing(path: &Path) -> bool {
    id(path).is_err_and(|error| is_gone(&error))
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), NotFound | NotADirectory | StaleNetworkFileHandle | NotConnected)
}

#[cfg(test)]
mod tests {
    use actorum_machine::ids::Incarnation;

    use super::*;
    use crate::log::sled::{OpenOptions, SledStore};

    /// A directory that a node has open, in a folder of its own.
    fn opened() -> (tempfile::TempDir, PathBuf, SledStore, Presence) {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("data");
        let store = SledStore::open(&dir, OpenOptions::new(1, Incarnation(7))).unwrap();
        let presence = Presence::of(&dir).unwrap();
        presence.check().unwrap();
        (outer, dir, store, presence)
    }

    fn gone(presence: &Presence, words: &str) {
        let error = presence.check().unwrap_err();
        assert!(matches!(&error, StoreError::Gone { what, .. } if what.contains(words)), "{error}");
    }

    #[test]
    fn a_directory_that_was_taken_away_is_missed_however_it_went() {
        let (_outer, dir, _store, presence) = opened();
        fs::remove_dir_all(&dir).unwrap();
        gone(&presence, "data is gone");
        // A directory that a service manager made again is not the one that was opened.
        fs::create_dir(&dir).unwrap();
        gone(&presence, "data");

        let (outer, dir, _store, presence) = opened();
        fs::rename(&dir, outer.path().join("elsewhere")).unwrap();
        gone(&presence, "data is gone");
        SledStore::open(&dir, OpenOptions::new(1, Incarnation(8))).unwrap();
        gone(&presence, "another file or directory");
        fs::remove_dir_all(&dir).unwrap();
        fs::rename(outer.path().join("elsewhere"), &dir).unwrap();
        presence.check().unwrap();
    }

    #[test]
    fn so_is_what_was_taken_out_of_it() {
        for name in ["lock", "node", "watermark", "snapshots", "log", "log/db"] {
            let (_outer, dir, _store, presence) = opened();
            let path = dir.join(name);
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.unwrap();
            gone(&presence, name);
        }
    }
}
