//! The seam under the snapshot store: a folder of files, and of folders that hold files, in a directory, in memory, or
//! simulated.
//!
//! As little as the snapshot store needs, and each of it a step at which the power may go: what is written is durable
//! once the file was synced, and what it is called once the folder was.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actorum_core::debug_fields;

use crate::log::{directory::make_durably, space::space};

/// A folder of files. There may be folders in it, which are opened by their own names.
pub trait Files: Send + Sync {
    /// Every file's name in it with its length, sorted by name. Of folders in it, and of what those hold, nothing.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// Makes a new file; an error if there is one of that name.
    fn create(&self, name: &str) -> io::Result<Box<dyn Appending>>;

    /// Opens a file to write at its end; an error if there is none.
    fn append(&self, name: &str) -> io::Result<Box<dyn Appending>>;

    /// Opens a file to read it.
    fn open(&self, name: &str) -> io::Result<Box<dyn Reading>>;

    /// Gives a file another name, at once and instead of any other that had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes durable which names there are, and of what: in this folder, not in those in it.
    fn sync_names(&self) -> io::Result<()>;

    /// Opens a folder in this one, and makes nothing: an error of the kind `NotFound` if there is none.
    fn folder(&self, name: &str) -> io::Result<Arc<dyn Files>>;

    /// Opens a folder in this one, and makes it if it is missing. Its name is durable on return, even if it existed:
    /// the process that made it may have died before its sync.
    fn make_folder(&self, name: &str) -> io::Result<Arc<dyn Files>>;

    /// How many more bytes there is room for, if that has a bound.
    fn free(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Whether a call may wait for a device.
    fn blocks(&self) -> bool {
        true
    }
}

/// A file that is written at its end. One descriptor from the first write to the sync: one opened afresh for it could
/// miss a write-back error that was told already.
pub trait Appending: Write + Send {
    /// How long it is.
    fn length(&mut self) -> io::Result<u64>;

    /// Cuts it to that length.
    fn cut(&mut self, length: u64) -> io::Result<()>;

    /// Makes what was written durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that is read.
pub trait Reading: Read + Seek + Send {}

impl<T: Read + Seek + Send> Reading for T {}

/// A real directory.
pub struct InDirectory {
    path: PathBuf,
    /// For its sync, kept for the same reason as a file's.
    #[cfg(unix)]
    handle: File,
}

debug_fields!(InDirectory { path });

impl InDirectory {
    /// Opens it, and makes it if there is none: for its owner only, and durably.
    pub fn open(path: &Path) -> io::Result<InDirectory> {
        make_durably(path)?;
        InDirectory::found(path.to_owned())
    }

    /// Opens one that is there.
    fn found(path: PathBuf) -> io::Result<InDirectory> {
        if !fs::metadata(&path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(InDirectory {
            #[cfg(unix)]
            handle: File::open(&path)?,
            path,
        })
    }
}

impl Files for InDirectory {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // A name that is not text is none of ours; and what was removed meanwhile is not there.
            let Ok(name) = entry.file_name().into_string() else { continue };
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() => found.push((name, metadata.len())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        found.sort();
        Ok(found)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        let mut options = OpenOptions::new();
        options.append(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Box::new(options.open(self.path.join(name))?))
    }

    fn append(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        Ok(Box::new(OpenOptions::new().append(true).open(self.path.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Reading>> {
        Ok(Box::new(File::open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        #[cfg(unix)]
        self.handle.sync_all()?;
        Ok(())
    }

    fn folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        Ok(Arc::new(InDirectory::found(self.path.join(name))?))
    }

    fn make_folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Promise 1: a snapshot that is durable inside a folder whose name is not is a snapshot that is lost.
        self.sync_names()?;
        self.folder(name)
    }

    fn free(&self) -> io::Result<Option<u64>> {
        Ok(Some(space(&self.path)?.free))
    }
}

impl Appending for File {
    fn length(&mut self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        // All of it, and not the data alone: the file is new, and so is its length.
        self.sync_all()
    }
}

/// Files that are lost with the process.
#[derive(Clone, Default)]
pub struct InMemory(Arc<Mutex<Names>>);

debug_fields!(InMemory {});

/// What is in a folder.
#[derive(Default)]
struct Names {
    files: BTreeMap<String, SharedBytes>,
    folders: BTreeMap<String, InMemory>,
}

/// One file's bytes. Who holds it open goes on reading when its name is gone.
type SharedBytes = Arc<Mutex<Vec<u8>>>;

impl InMemory {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, name: &str) -> io::Result<SharedBytes> {
        self.names().files.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Files for InMemory {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.names().files.iter().map(|(name, content)| (name.clone(), locked(content).len() as u64)).collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        let mut names = self.names();
        if names.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = SharedBytes::default();
        names.files.insert(name.to_owned(), content.clone());
        Ok(Box::new(Appended(content)))
    }

    fn append(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        Ok(Box::new(Appended(self.file(name)?)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Reading>> {
        Ok(Box::new(Opened { content: self.file(name)?, at: 0 }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.names();
        let content = names.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.files.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.names().files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }

    fn folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        let folder = self.names().folders.get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(folder))
    }

    fn make_folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        Ok(Arc::new(self.names().folders.entry(name.to_owned()).or_default().clone()))
    }

    fn blocks(&self) -> bool {
        false
    }
}

fn locked(content: &SharedBytes) -> MutexGuard<'_, Vec<u8>> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Appended(SharedBytes);

impl Write for Appended {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        locked(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Appending for Appended {
    fn length(&mut self) -> io::Result<u64> {
        Ok(locked(&self.0).len() as u64)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        locked(&self.0).truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Opened {
    content: SharedBytes,
    at: u64,
}

impl Read for Opened {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let content = locked(&self.content);
        let got = read_at(&content, self.at, into);
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for Opened {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let length = locked(&self.content).len() as u64;
        self.at = seek_in(length, self.at, to)?;
        Ok(self.at)
    }
}

/// Copies what there is from `at` on.
pub(super) fn read_at(content: &[u8], at: u64, into: &mut [u8]) -> usize {
    let rest = usize::try_from(at).ok().and_then(|at| content.get(at..)).unwrap_or_default();
    let got = rest.len().min(into.len());
    into[..got].copy_from_slice(&rest[..got]);
    got
}

/// Where a seek leads in a file of that length.
pub(super) fn seek_in(length: u64, at: u64, to: SeekFrom) -> io::Result<u64> {
    let to = match to {
        SeekFrom::Start(to) => Some(to),
        SeekFrom::End(by) => length.checked_add_signed(by),
        SeekFrom::Current(by) => at.checked_add_signed(by),
    };
    to.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
