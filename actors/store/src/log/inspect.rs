//! Reading a stopped node's directory, for `actorum inspect`, without changing a byte of it.
//!
//! The engine writes when it opens, so it gets a copy: the log is copied to a temporary directory, which goes when the
//! [`Inspection`] is dropped. That takes the log's size in free space for as long. The node's own files are read where
//! they are. A directory in use is refused with an error that names its holder: a copy of files that change would show
//! a state that never was.
//!
//! It looks further than opening does: what a node would refuse (another format's record, a rolled-back log,
//! a damaged block) is listed, with all that can still be read around it.
//!
//! Deliberately absent: repair.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use actorum_core::{
    log::store::{HardState, StoreError},
    wire::{Entry, Snapshot},
};
use actorum_machine::ids::{GroupId, Incarnation};

use super::{
    directory,
    engine::{self, EngineError},
    lives, plan,
    record::{Found, Key, Owner, Problem},
    recovery,
    sled::{OpenOptions, SledEngine},
    store::{OpenError, StoreIdentity},
    watermark::{Mark, Watermark},
};

/// A look at a directory.
pub struct Inspection {
    identity: Result<StoreIdentity, OpenError>,
    watermark: BTreeMap<GroupId, Mark>,
    found: Found,
    engine: Option<SledEngine>,
    // Dropped last: the engine's files are in it.
    _copy: Copy,
}

/// One group, as its directory has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    /// Which.
    pub group: GroupId,
    /// What the watermark says it has made durable.
    pub watermark: Option<Mark>,
    /// The hard state.
    pub hard_state: HardState,
    /// The snapshots a node can start from, ascending by index, the newest last.
    pub snapshots: Vec<Snapshot>,
    /// Index and term before the first entry of the log; zero if there is no snapshot.
    pub compacted: (u64, u64),
    /// The index of its first entry, if there is one.
    pub first_index: Option<u64>,
    /// The last index of the log.
    pub last_index: u64,
    /// The term of every entry as runs: (first index of the run, term).
    pub terms: Vec<(u64, u64)>,
    /// How many blocks its entries are in.
    pub blocks: u64,
    /// The bytes of its records.
    pub bytes: u64,
}

/// The outcome of checking every record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many values were read.
    pub values: u64,
    /// Everything wrong. Empty: this directory opens.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        write!(f, "{} records checked, {} problems", self.values, self.problems.len())
    }
}

impl Inspection {
    /// Copies the log and reads all of it. Fails only where there is nothing to look at: no node's directory, a lock
    /// that is held, a filesystem that refuses.
    pub fn open(dir: &Path) -> Result<Inspection, OpenError> {
        let io = |doing: &str, error| OpenError::Io { dir: dir.to_owned(), doing: doing.to_owned(), error };
        directory::is_nodes(dir)?;
        if let Some(holder) = directory::holder(dir)? {
            return Err(OpenError::Locked { dir: dir.to_owned(), holder });
        }
        let generation = directory::generation(dir).map_err(|error| io("cannot list it", error))?;
        let (log, watermark_path) = (directory::log_path(dir, generation), directory::watermark_path(dir));
        let identity = directory::read_node(dir);
        if identity.is_err() && !log.exists() && !watermark_path.exists() {
            let found = "it has no file named node, and no log".to_owned();
            return Err(OpenError::NoNode { dir: dir.to_owned(), found });
        }
        let mut problems = Vec::new();
        let mut note = |what: &str, detail: String| problems.push(Problem { what: what.to_owned(), detail });
        match &identity {
            // A node that cannot show its lives does not open.
            Ok(node) => match directory::read_life(dir).and_then(|known| lives::judge(dir, node, known)) {
                Ok(()) => {}
                Err(OpenError::Damaged { what, detail, .. }) => note(&what, detail),
                Err(OpenError::RolledBack { found, promised, .. }) => {
                    note("lives file", format!("it was rolled back: it holds {found}, and {promised} was durable"));
                }
                Err(other) => note("lives file", other.to_string()),
            },
            Err(OpenError::Damaged { what, detail, .. }) => note(what, detail.clone()),
            Err(other) => note("node file", other.to_string()),
        }
        let watermark = match Watermark::inspect(&watermark_path) {
            Ok((marks, page)) => {
                if let Some(detail) = page {
                    // A crash can leave one; a node that opens uses the other page.
                    note("watermark", format!("one page is damaged, which a crash can leave behind: {detail}"));
                }
                if let Ok(node) = &identity
                    && node.incarnation != marks.incarnation
                {
                    note("watermark", format!("it belongs to incarnation {}", marks.incarnation));
                }
                marks.groups
            }
            Err(error) => {
                note("watermark", error.to_string());
                BTreeMap::new()
            }
        };

        let copy = Copy::new(&log).map_err(|error| match error {
            CopyError::From(error) => io("cannot copy log", error),
            CopyError::To(to, error) => OpenError::Io {
                dir: to,
                doing: "no copy of the log could be made there, in the temporary directory; TMPDIR names another one \
                        with room for the whole log"
                    .to_owned(),
                error,
            },
        })?;
        let missing = !copy.path.join("db").exists();
        let (engine, found) =
            if !missing { read(&copy.path) } else { (None, Err(("the log".to_owned(), "it is missing".to_owned()))) };
        // It is not known what the unreadable part held.
        let legible = found.is_ok() || missing;
        let mut found = found.unwrap_or_else(|(what, detail)| {
            note(&what, detail);
            Found::default()
        });
        if engine.is_some() && legible {
            match (&found.owner, &identity) {
                (None, _) => note(&Key::OWNER.to_string(), "it is missing: the log came up empty".to_owned()),
                (Some(owner), Ok(node)) => {
                    let Owner { id, incarnation } = *owner;
                    if (id, incarnation) != (node.id, node.incarnation) {
                        note(&Key::OWNER.to_string(), format!("it says node {id}, incarnation {incarnation}"));
                    }
                }
                (Some(_), Err(_)) => {}
            }
        }
        for (group, promised) in watermark.iter().filter(|_| legible) {
            let nothing = Default::default();
            let holds = found.groups.get(group).map_or(&nothing, |found| &found.recovered);
            if let Some(holds) = recovery::behind(holds, promised) {
                let detail = format!("it was rolled back: it holds {holds}, the watermark says {promised}");
                note(&format!("group {}: the log", group.0), detail);
            }
        }
        found.problems.splice(0..0, problems);
        Ok(Inspection { identity, watermark, found, engine, _copy: copy })
    }

    /// Whose directory it is, or why that is not known.
    pub fn identity(&self) -> Result<StoreIdentity, &OpenError> {
        self.identity.as_ref().copied()
    }

    /// Every group that the log or the watermark knows.
    pub fn groups(&self) -> Vec<GroupReport> {
        let mut groups: Vec<GroupId> = self.found.groups.keys().chain(self.watermark.keys()).copied().collect();
        groups.sort();
        groups.dedup();
        groups.into_iter().map(|group| self.group(group)).collect()
    }

    /// One group; empty if nothing is known of it.
    pub fn group(&self, group: GroupId) -> GroupReport {
        let found = self.found.groups.get(&group).cloned().unwrap_or_default();
        let formed = !found.recovered.snapshots.is_empty();
        GroupReport {
            group,
            watermark: self.watermark.get(&group).copied(),
            hard_state: found.recovered.hard_state,
            snapshots: found.recovered.snapshots.clone(),
            compacted: found.recovered.terms.first().copied().filter(|_| formed).unwrap_or_default(),
            first_index: found.first_index,
            last_index: found.recovered.last_index,
            terms: found.recovered.terms,
            blocks: found.blocks,
            bytes: found.bytes,
        }
    }

    /// The entries `[from, to)` of a group, as many as fit `max_bytes` and at least one. A damaged one in between is an
    /// error that names it; ask for what is before and after it.
    pub fn entries(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let engine =
            self.engine.as_ref().ok_or_else(|| StoreError::Closed("the log could not be opened".to_owned()))?;
        if from >= to {
            return Ok(Vec::new());
        }
        engine::caught(|| plan::read_entries(engine, group, from, to, max_bytes))
    }

    /// What checking every record found, node file, lives file, watermark and log alike.
    pub fn verify(&self) -> Report {
        Report { values: self.found.values, problems: self.found.problems.clone() }
    }
}

impl fmt::Debug for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspection").field("identity", &self.identity).finish_non_exhaustive()
    }
}

type Unreadable = (String, String);

/// Opens the copy and reads it, on a thread of its own as opening does.
fn read(path: &Path) -> (Option<SledEngine>, Result<Found, Unreadable>) {
    let options = OpenOptions::new(0, Incarnation(0));
    let (path, within) = (path.to_owned(), options.open_within);
    let broken = |detail: String| (None, Err(("the log".to_owned(), detail)));
    let read = engine::within_time("actorum-inspect", within, move || {
        let engine = SledEngine::open(&path, &options).map_err(EngineError::into_words)?;
        let found = engine::scan(&engine).map_err(EngineError::into_words);
        Ok((Some(engine), found))
    });
    match read {
        Ok(Ok(Ok(read))) => read,
        Ok(Ok(Err(error))) => (None, Err(error)),
        Ok(Err(panic)) => broken(format!("the storage engine panicked: {panic}")),
        Err(cause) => broken(format!("the storage engine did not open it: {cause}")),
    }
}

/// A temporary copy of the log, gone when dropped.
struct Copy {
    path: PathBuf,
}

/// Which side refused.
enum CopyError {
    From(io::Error),
    To(PathBuf, io::Error),
}

impl Copy {
    fn new(log: &Path) -> Result<Copy, CopyError> {
        let mut number = 0;
        let path = loop {
            let path = temporary().join(format!("actorum-inspect-{}-{number}", std::process::id()));
            match make_private(&path) {
                Ok(()) => break path,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(CopyError::To(path, error)),
            }
        };
        let copy = Copy { path };
        if log.exists() {
            copy_files(log, &copy.path)?;
        }
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // in the temporary directory: what stays is the system's to clear
    }
}

/// The log holds the data of applications: no other user may read the copy.
fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn copy_files(from: &Path, to: &Path) -> Result<(), CopyError> {
    for entry in fs::read_dir(from).map_err(CopyError::From)? {
        let entry = entry.map_err(CopyError::From)?;
        let target = to.join(entry.file_name());
        let there = |error| CopyError::To(to.to_owned(), error);
        if entry.file_type().map_err(CopyError::From)?.is_dir() {
            make_private(&target).map_err(there)?;
            copy_files(&entry.path(), &target)?;
        } else {
            let mut source = fs::File::open(entry.path()).map_err(CopyError::From)?;
            let mut copy = fs::File::create(&target).map_err(there)?;
            // A copy does not say which side failed; most errors of the new file can be told by their kind.
            io::copy(&mut source, &mut copy).map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge
                | io::ErrorKind::ReadOnlyFilesystem => CopyError::To(to.to_owned(), error),
                _ => CopyError::From(error),
            })?;
        }
    }
    Ok(())
}
/// The temporary directory. A `TMPDIR` that is set and empty is not set: it does not name the directory that one
/// happens to be in.
pub fn temporary() -> PathBuf {
    let named = std::env::temp_dir();
    if named.as_os_str().is_empty() { PathBuf::from("/tmp") } else { named }
}
