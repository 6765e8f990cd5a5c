//! The data directory: whose it is, which life of it this is, and that nobody else has it open.
//!
//! ```text
//!  DIR/          0700
//!    node        id, incarnation, boot, the newest life, format, checksum: text, replaced as a whole at every open
//!    lock        held with an OS lock while open; says who holds it
//!    creating    only while the directory is being made
//!    watermark   see super::watermark
//!    lives       see super::lives
//!    log/        the engine; log.1/, log.2/, ... once it was rewritten
//!    snapshots/  the files of snapshots, with a folder for each group other than 0, see crate::snapshot::store
//!    restoring/  only while a backup is being restored into the directory
//! ```
//!
//! The engine is rewritten (see `rewrite`) into a directory of the next *generation*, which counts from the moment its
//! file `complete` is durable. The highest generation that counts is the log. Higher generations are unfinished
//! rewritings: they are removed before the engine opens, which may need the room. Lower ones are left over from a
//! finished rewriting: they are removed once a node has opened.
//!
//! It is made in steps, and `node` comes last: `lock`, `creating`, `log/`, `watermark`, `node`, then
//! `creating` goes. A crash between leaves `creating` without `node`: nothing was promised yet, so the next open wipes
//! what there is and starts again. A directory with a log and neither of the two is damaged, not new.
//!
//! Deliberately absent: what is in the log's directories, and adopting a directory under another id: nothing can do
//! that.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use actorum_core::lives::LifeKey;
use actorum_machine::ids::{Incarnation, NodeId};

use super::store::{OpenError, StoreIdentity};

/// The newest directory format this code reads, and the one it writes.
pub const FORMAT: u32 = 1;

const NODE: &str = "node";
const LOCK: &str = "lock";
const CREATING: &str = "creating";
const WATERMARK: &str = "watermark";
const LIVES: &str = "lives";
const LOG: &str = "log";
const COMPLETE: &str = "complete";
const SNAPSHOTS: &str = "snapshots";
const RESTORING: &str = "restoring";

/// What a filesystem puts into its own root: no reason to call a mount point not empty.
const LOST_AND_FOUND: &str = "lost+found";

/// A data directory that this process holds.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    node: StoreIdentity,
    life: Option<LifeKey>,
    // Holds the OS lock until dropped.
    _lock: File,
}

impl Directory {
    /// Takes the directory for node `id`, making it if there is none. `create` makes the log and the watermark of a new
    /// one (of the identity given) and returns when they are durable.
    pub fn open(
        path: &Path,
        id: NodeId,
        new_incarnation: Incarnation,
        create: impl FnOnce(&StoreIdentity) -> Result<(), OpenError>,
    ) -> Result<Directory, OpenError> {
        let io = |doing: &str, error| io_error(path, doing, error);
        make_durably(path).map_err(|e| io("cannot make it", e))?;
        // Checked before the lock, because a directory that is not a node's is not even locked; and again after it,
        // because another process may have made the directory while it held the lock.
        Listing::of(path)?.judge(path)?;
        let lock = take_lock(path)?;
        let content = Listing::of(path)?;
        if content.judge(path)? == State::Node {
            let node = read_node(path)?;
            if node.id != id {
                return Err(OpenError::Foreign { dir: path.to_owned(), found: node.id, expected: id });
            }
            if content.has(CREATING) {
                // `node` was the last step: the directory is whole. Nothing depends on when this removal is durable.
                fs::remove_file(path.join(CREATING)).map_err(|e| io("cannot remove creating", e))?;
            }
            if content.has(RESTORING) {
                // The same: what was in it has been moved here.
                fs::remove_dir_all(path.join(RESTORING)).map_err(|e| io("cannot remove restoring", e))?;
            }
            let life = read_life(path)?;
            return Ok(Directory { path: path.to_owned(), node, life, _lock: lock });
        }
        let node = StoreIdentity { id, incarnation: new_incarnation, boot: 0 };
        File::create(path.join(CREATING)).and_then(|_| sync_dir(path)).map_err(|e| io("cannot write creating", e))?;
        wipe(path).map_err(|e| io("cannot start again what a crash left half made", e))?;
        create(&node)?;
        // Promise 6: from here on the directory exists with this incarnation. All that it stands for is durable
        // already.
        write_node(path, &node, None).map_err(|e| io("cannot write node", e))?;
        fs::remove_file(path.join(CREATING)).map_err(|e| io("cannot remove creating", e))?;
        Ok(Directory { path: path.to_owned(), node, life: None, _lock: lock })
    }

    /// Counts this open. Called last, when nothing was found wrong: a directory that is refused is left as it was.
    pub fn count_boot(&mut self) -> Result<(), OpenError> {
        let node = StoreIdentity { boot: self.node.boot + 1, ..self.node };
        // Promise 6: a later boot supersedes the connections of an earlier one, so no boot number may come twice.
        write_node(&self.path, &node, self.life).map_err(|e| io_error(&self.path, "cannot write node", e))?;
        self.node = node;
        Ok(())
    }

    /// Records the life that is durable in the file of lives. If that file does not know this life at a later open, it
    /// is missing or an older copy. Called after that file is durable, so that a crash finds the file at this life or
    /// ahead of it.
    pub fn record_life(&mut self, life: LifeKey) -> Result<(), OpenError> {
        write_node(&self.path, &self.node, Some(life)).map_err(|e| io_error(&self.path, "cannot write node", e))?;
        self.life = Some(life);
        Ok(())
    }

    /// The newest life that was recorded; `None` in a directory of the first version, and in a new one.
    pub fn life(&self) -> Option<LifeKey> {
        self.life
    }

    /// Whose it is.
    pub fn identity(&self) -> StoreIdentity {
        self.node
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Where an engine of a generation lives in a data directory.
pub fn log_path(dir: &Path, generation: u64) -> PathBuf {
    if generation == 0 { dir.join(LOG) } else { dir.join(format!("{LOG}.{generation}")) }
}

/// The file that makes a generation count.
pub fn complete_path(dir: &Path, generation: u64) -> PathBuf {
    log_path(dir, generation).join(COMPLETE)
}

/// The numbers of all directories that are named as a log is, ascending, complete or not.
pub fn generations(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let number = name.strip_prefix(LOG).and_then(|rest| match rest {
            "" => Some(0),
            rest => rest.strip_prefix('.')?.parse().ok(),
        });
        // Exactly as this code writes it: `log.01` is not one of its names.
        found.extend(number.filter(|number| log_path(dir, *number) == dir.join(name)));
    }
    found.sort();
    Ok(found)
}

/// The generation that is the log. Zero is there from the beginning and needs no mark.
pub fn generation(dir: &Path) -> io::Result<u64> {
    let found = generations(dir)?;
    for generation in found.into_iter().rev().filter(|generation| *generation > 0) {
        // A mark that cannot be looked for is not one that is missing.
        if complete_path(dir, generation).try_exists()? {
            return Ok(generation);
        }
    }
    Ok(0)
}

/// Makes a generation count, durable when it returns. All that is in it must be durable before.
pub fn complete(dir: &Path, generation: u64) -> io::Result<()> {
    let mut file = File::create(complete_path(dir, generation))?;
    file.write_all(b"all of the log is here\n")?;
    file.sync_all()?;
    sync_dir(&log_path(dir, generation))
}

/// Makes sure that a generation does not count, now or after a power cut: `complete` may have got anywhere.
pub fn uncomplete(dir: &Path, generation: u64) -> io::Result<()> {
    uncomplete_with(dir, generation, &mut sync_dir)
}

fn uncomplete_with(dir: &Path, generation: u64, sync: Sync<'_>) -> io::Result<()> {
    match fs::remove_file(complete_path(dir, generation)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ if !log_path(dir, generation).try_exists()? => Ok(()),
        _ => sync(&log_path(dir, generation)),
    }
}

/// Makes durable that this generation is the log, as [`generation`] has found. Before anything depends on it.
pub fn sync_generation(dir: &Path, counting: u64) -> io::Result<()> {
    sync_generation_with(dir, counting, &mut sync_dir)
}

/// Makes the names in a directory durable; another for tests, which see what would be.
pub(super) type Sync<'a> = &'a mut dyn FnMut(&Path) -> io::Result<()>;

pub(super) fn sync_generation_with(dir: &Path, counting: u64, sync: Sync<'_>) -> io::Result<()> {
    if counting > 0 {
        // Promise 1: a process that was killed between the mark and its sync has left a mark that only the kernel
        // holds. From here on this generation is written and the older ones go; a power cut that took the mark would
        // leave no log at all.
        sync(&complete_path(dir, counting))?;
        sync(&log_path(dir, counting))?;
        sync(dir)?;
    }
    for above in generations(dir)?.into_iter().filter(|generation| *generation > counting) {
        // Promise 1 again: where a mark was taken back and that is not durable, a power cut brings the mark back, above
        // the log that was written since.
        uncomplete_with(dir, above, sync)?;
    }
    Ok(())
}

/// Removes a generation that is not the log, or not any more. What a crash leaves of it, the next open removes.
pub fn remove_generation(dir: &Path, generation: u64) -> io::Result<()> {
    match fs::remove_dir_all(log_path(dir, generation)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_dir(dir),
    }
}

/// Removes every generation but this one, which was made durable. What cannot be removed costs space and nothing else.
pub fn sweep(dir: &Path, keep: u64) {
    remove_those(dir, |found| found != keep);
}

/// Removes every generation above this one, which was made durable: none of them was ever the log.
pub fn sweep_above(dir: &Path, counting: u64) {
    remove_those(dir, |found| found > counting);
}

fn remove_those(dir: &Path, which: impl Fn(u64) -> bool) {
    let warn = |error: io::Error| {
        tracing::warn!(dir = %dir.display(), %error, "what a rewriting of the log has left over cannot be removed");
    };
    let found = generations(dir).map_err(warn).unwrap_or_default();
    for other in found.into_iter().filter(|found| which(*found)) {
        // Each by itself: one that cannot be removed does not keep the others.
        let _ = remove_generation(dir, other).map_err(warn);
    }
}

/// Where the files of snapshots live in a data directory.
pub fn snapshots_path(dir: &Path) -> PathBuf {
    dir.join(SNAPSHOTS)
}

/// Where the file of lives is in a data directory.
pub fn lives_path(dir: &Path) -> PathBuf {
    dir.join(LIVES)
}

/// Where the watermark lives in a data directory.
pub fn watermark_path(dir: &Path) -> PathBuf {
    dir.join(WATERMARK)
}

/// A directory that a backup is being restored into.
///
/// ```text
///  lock ─▶ restoring/ ─▶ snapshots/ and restoring/{log, watermark, lives, node}, as the caller makes them ─▶ moved up, node last
/// ```
///
/// No node opens a directory that has `restoring` and no `node`, so one that was cut short is never half a node: the
/// next restore into it starts from scratch.
#[derive(Debug)]
pub struct Restoring {
    path: PathBuf,
    // Holds the OS lock until dropped.
    _lock: File,
}

impl Restoring {
    /// Whether [`Restoring::begin`] would take it; changes nothing.
    pub fn judge(path: &Path) -> Result<(), OpenError> {
        match path.exists() {
            true => Listing::of(path)?.judge_vacant(path),
            false => Ok(()),
        }
    }

    /// Takes a directory that is empty, does not exist, or holds a restore that was cut short. Any other is left as it
    /// is.
    pub fn begin(path: &Path) -> Result<Restoring, OpenError> {
        let io = |doing: &str, error| io_error(path, doing, error);
        Restoring::judge(path)?;
        make_durably(path).map_err(|e| io("cannot make it", e))?;
        let lock = take_lock(path)?;
        // Checked again: another process that held the lock may have made a node's directory of it.
        Listing::of(path)?.judge_vacant(path)?;
        let inner = path.join(RESTORING);
        make_durably(&inner).map_err(|e| io("cannot make restoring", e))?;
        let again = |e| io("cannot start again what was cut short", e);
        remove_all(path, &[LOG, WATERMARK, LIVES, SNAPSHOTS]).map_err(again)?;
        remove_all(&inner, &[NODE, CREATING, LOCK, WATERMARK, LIVES, SNAPSHOTS]).map_err(again)?;
        for generation in generations(&inner).map_err(again)? {
            remove_generation(&inner, generation).map_err(again)?;
        }
        sync_dir(&inner).and_then(|()| sync_dir(path)).map_err(again)?;
        Ok(Restoring { path: path.to_owned(), _lock: lock })
    }

    /// Where the store is to be made.
    pub fn store(&self) -> PathBuf {
        self.path.join(RESTORING)
    }

    /// The store is made, durable and closed, and so are the snapshots: makes a node's directory of it, in an instant.
    pub fn finish(self) -> Result<(), OpenError> {
        let inner = self.store();
        let moved = |name: &str| fs::rename(inner.join(name), self.path.join(name));
        // Whichever of its logs counts, here it is the first, which needs no mark.
        let counting = generation(&inner).map(|generation| log_path(&inner, generation));
        let done = counting.and_then(|log| fs::rename(log, self.path.join(LOG)));
        let done = done.and_then(|()| moved(WATERMARK)).and_then(|()| moved(LIVES)).and_then(|()| sync_dir(&self.path));
        // `node` last: with it the directory is a node's, and all that it stands for is durable already.
        let done = done.and_then(|()| moved(NODE)).and_then(|()| sync_dir(&self.path));
        done.map_err(|e| io_error(&self.path, "cannot move the restored node into place", e))?;
        // What stays after a crash here is removed when the node starts.
        fs::remove_dir_all(&inner).map_err(|e| io_error(&self.path, "cannot remove restoring", e))
    }
}

/// Removes what there is of these files and directories.
fn remove_all(dir: &Path, names: &[&str]) -> io::Result<()> {
    for name in names {
        let path = dir.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a node's directory was named, for whoever looks at one without making it: it is a directory that can be
/// listed. Whether it has a `node` file.
pub fn is_nodes(dir: &Path) -> Result<bool, OpenError> {
    let found = |found: &str| OpenError::NoNode { dir: dir.to_owned(), found: found.to_owned() };
    match fs::metadata(dir) {
        Ok(metadata) if !metadata.is_dir() => return Err(found("it is a file")),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(found("there is nothing of that name")),
        Err(error) => return Err(io_error(dir, "cannot look at it", error)),
    }
    Ok(Listing::of(dir)?.has(NODE))
}

/// Whose directory it is, by its `node` file.
pub fn read_node(dir: &Path) -> Result<StoreIdentity, OpenError> {
    let damaged = |detail: String| OpenError::Damaged { dir: dir.to_owned(), what: "node file".to_owned(), detail };
    let bytes = match fs::read(dir.join(NODE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("it is missing".to_owned())),
        Err(error) => return Err(io_error(dir, "cannot read node", error)),
    };
    parse_node(dir, bytes)
}

/// Which life of a directory its `node` file knows, if any.
pub fn read_life(dir: &Path) -> Result<Option<LifeKey>, OpenError> {
    let bytes = fs::read(dir.join(NODE)).map_err(|error| io_error(dir, "cannot read node", error))?;
    // Judged before it is looked into.
    parse_node(dir, bytes.clone())?;
    let text = String::from_utf8_lossy(&bytes);
    let Some(life) = text.lines().find_map(|line| line.strip_prefix("life ")) else { return Ok(None) };
    let numbers = life.split_once(' ');
    let life = numbers.and_then(|(boot, nonce)| {
        Some(LifeKey { boot: boot.parse().ok()?, nonce: u64::from_str_radix(nonce, 16).ok()? })
    });
    let detail = "it names no life where one belongs".to_owned();
    let damaged = || OpenError::Damaged { dir: dir.to_owned(), what: "node file".to_owned(), detail };
    life.map(Some).ok_or_else(damaged)
}

/// What a `node` file of these bytes says.
pub(crate) fn parse_node(dir: &Path, bytes: Vec<u8>) -> Result<StoreIdentity, OpenError> {
    let damaged = |detail: String| OpenError::Damaged { dir: dir.to_owned(), what: "node file".to_owned(), detail };
    let text = String::from_utf8(bytes).map_err(|_| damaged("it is not text".to_owned()))?;
    let mut lines = text.lines();
    // The format comes first and alone: what follows it is for the versions that know it.
    let format = lines.next().and_then(|line| line.strip_prefix("actorum node, format ")).and_then(|n| n.parse().ok());
    match format {
        None => return Err(damaged("its first line names no format".to_owned())),
        Some(found) if found > FORMAT => {
            return Err(OpenError::Newer { dir: dir.to_owned(), found, supported: FORMAT });
        }
        Some(_) => {}
    }
    let (body, sum) = text.rsplit_once("checksum ").ok_or_else(|| damaged("it has no checksum".to_owned()))?;
    if u32::from_str_radix(sum.trim_end(), 16).ok() != Some(crc32fast::hash(body.as_bytes())) {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    let mut field = |name: &str, radix| {
        let line = lines.next().and_then(|line| line.strip_prefix(name));
        line.and_then(|n| u64::from_str_radix(n.trim(), radix).ok()).ok_or_else(|| damaged(format!("it has no {name}")))
    };
    Ok(StoreIdentity {
        id: field("id", 10)?,
        incarnation: Incarnation(field("incarnation", 16)?),
        boot: field("boot", 10)?,
    })
}

fn write_node(dir: &Path, node: &StoreIdentity, life: Option<LifeKey>) -> io::Result<()> {
    let StoreIdentity { id, incarnation, boot } = node;
    // A line that a node of the first version passes over.
    let life = life.map_or_else(String::new, |LifeKey { boot, nonce }| format!("life {boot} {nonce:016x}\n"));
    let body = format!("actorum node, format {FORMAT}\nid {id}\nincarnation {incarnation}\nboot {boot}\n{life}");
    let sum = crc32fast::hash(body.as_bytes());
    replace(&dir.join(NODE), format!("{body}checksum {sum:08x}\n").as_bytes())
}

/// Who holds a directory that is in use: `None` when nobody does. Changes nothing.
pub fn holder(dir: &Path) -> Result<Option<String>, OpenError> {
    let file = match File::open(dir.join(LOCK)) {
        Ok(file) => file,
        // Without a directory there is no holder. The code that reads the directory reports that it is missing.
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            return Ok(None);
        }
        Err(error) => return Err(io_error(dir, "cannot open lock", error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(who(file))),
        Err(TryLockError::Error(error)) => Err(io_error(dir, "cannot lock it", error)),
    }
}

#[allow(clippy::disallowed_methods, reason = "for people, in a real directory")]
fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(dir.join(LOCK)).map_err(|e| io_error(dir, "cannot open lock", e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { dir: dir.to_owned(), holder: who(file) }),
        Err(TryLockError::Error(error)) => return Err(io_error(dir, "cannot lock it", error)),
    }
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(Path::file_name).and_then(OsStr::to_str).unwrap_or("a program");
    let text = format!("process {} ({program}, since {})\n", std::process::id(), Utc(SystemTime::now()));
    // Not synced: it is for people, and after a crash nobody holds the lock. Nor is it an error on a disk without room
    // for it.
    if let Err(error) = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes())) {
        tracing::debug!(dir = %dir.display(), %error, "the lock does not say who holds it");
    }
    Ok(file)
}

fn who(mut file: File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "another process, which has not said which".to_owned(),
    }
}

/// The names in a directory, sorted.
struct Listing(Vec<String>);

impl Listing {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|n| n == name)
    }

    fn of(dir: &Path) -> Result<Listing, OpenError> {
        let names = fs::read_dir(dir).and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<Vec<_>>>()
        });
        let mut names = names.map_err(|e| io_error(dir, "cannot list it", e))?;
        names.sort();
        Ok(Listing(names))
    }

    /// Whether a backup may be restored into it.
    fn judge_vacant(&self, dir: &Path) -> Result<(), OpenError> {
        let mut ours = vec![LOCK, LOST_AND_FOUND];
        if self.has(RESTORING) && !self.has(NODE) {
            ours.extend([RESTORING, LOG, WATERMARK, LIVES, SNAPSHOTS]);
        }
        match self.0.iter().find(|name| !ours.contains(&name.as_str())) {
            None => Ok(()),
            Some(found) => Err(OpenError::NotEmpty { dir: dir.to_owned(), found: found.clone() }),
        }
    }

    fn judge(&self, dir: &Path) -> Result<State, OpenError> {
        if self.has(NODE) {
            return Ok(State::Node);
        }
        if self.has(RESTORING) {
            return Err(OpenError::Unfinished { dir: dir.to_owned() });
        }
        if self.has(CREATING) {
            return Ok(State::HalfMade);
        }
        let Some(found) = self.0.iter().find(|name| *name != LOCK && *name != LOST_AND_FOUND) else {
            return Ok(State::Empty);
        };
        let dir = dir.to_owned();
        if self.has(WATERMARK) {
            let detail = "it is missing, but there is a watermark".to_owned();
            return Err(OpenError::Damaged { dir, what: "node file".to_owned(), detail });
        }
        Err(OpenError::NotANode { dir, found: found.clone() })
    }
}

/// What a directory is, by the names in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing of anyone's.
    Empty,
    /// A creation that did not finish.
    HalfMade,
    /// A node's.
    Node,
}

/// Removes what a creation that did not finish has left. Its own marker stays until the new one has finished.
fn wipe(dir: &Path) -> io::Result<()> {
    for generation in generations(dir)? {
        remove_generation(dir, generation)?;
    }
    match fs::remove_file(dir.join(WATERMARK)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_dir(dir),
    }
}

/// Makes a directory, for its owner only, and every one above it that is missing. Durable when it returns.
pub fn make_durably(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_durably(parent)?;
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        other => other?,
    }
    // Promise 1: a log that is durable inside a directory whose name is not is a log that is lost.
    sync_dir(parent)
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Replaces a file as a whole: a reader, and a crash, find the old content or the new. Durable when it returns.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside)?;
    file.write_all(content)?;
    // The content before the name: else a crash can leave the name with nothing behind it.
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

fn io_error(dir: &Path, doing: &str, error: io::Error) -> OpenError {
    OpenError::Io { dir: dir.to_owned(), doing: doing.to_owned(), error }
}

/// `2026-11-21 01:24:38 UTC`, without a calendar crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc(
    /// The moment.
    pub SystemTime,
);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Howard Hinnant, "chrono-compatible low-level date algorithms": civil_from_days, for days after 1970.
        let shifted = days + 719_468;
        let (era, day) = (shifted / 146_097, shifted % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        let year = era * 400 + year + u64::from(month <= 2);
        let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}
