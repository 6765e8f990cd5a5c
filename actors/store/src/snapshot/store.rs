//! The snapshot store: where the files of snapshots are built, received, kept and read.
//!
//! ```text
//!  SnapshotStore, of the node: its folder, its room on the disk
//!    └─ of(group) ─▶ GroupSnapshots, of one group: its files and no others
//!
//!  build    building-<index>.tmp            write ─▶ sync ─┐
//!  receive  receiving-<index>-<hash>.part   pieces ─▶ verify ─▶ sync ─┤
//!                                                          rename ─▶ snapshot-<index>-<hash>.actorum ─▶ sync of the names
//! ```
//!
//! A file has its final name only once it is whole and durable, so a crash at any step leaves either no such file or a
//! good one. What has another name is never read as a snapshot, only gone on with ([`GroupSnapshots::receive`]) or
//! swept ([`GroupSnapshots::keep`]).
//!
//! The files of group 0 lie in the node's folder itself, under the names that they have always had. Each other group
//! has a folder in it, `g7` for group 7, which is made with the group's first file. So a sweep lists the files of its
//! own group alone, however many groups there are. Versions that know one group look at files only, and sweep those
//! that have such names: they leave the folders of other groups as they are.
//!
//! Deliberately absent: which snapshots are wanted, threads, and the wish to wait: a call returns when it is done, and
//! says by [`SnapshotStore::blocks`] whether that may wait for a device. And the folders of groups that the log does
//! not know: nobody looks for them, and nobody removes them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use actorum_core::{
    debug_fields,
    log::store::At,
    panics::panic_message,
    planted::{self, Planted},
    snapshot::{SnapshotError, SnapshotReader},
    system_state::SystemState,
    wire::{ConfState, MAX_PIECE, Snapshot, SnapshotFile},
};
use actorum_machine::{
    ids::{GroupId, Incarnation, NodeId},
    machine::StateView,
};
use bytes::Bytes;

use super::{
    file::{FileError, HASH_BYTES, Header, Reader, Writer},
    files::{Appending, Files, InDirectory, InMemory, Reading},
};
use crate::log::reserve::{Lent, Reserve};

/// How many files that nobody has asked to keep yet are left alone; see [`GroupSnapshots::keep`].
const MAX_FRESH: usize = 2;

/// No more than this is written without a sync. On many filesystems the sync of one file waits for what was written to
/// others, so a large file that is synced only at its end would stop the log for as long as that takes.
const UNSYNCED_BYTES: u64 = 8 << 20;

/// What a snapshot is made of.
pub struct Content {
    /// The last index it covers.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
    /// Our own state at that index.
    pub system: SystemState,
    /// Whom the node formed with; goes on from the snapshot before.
    pub formed_with: BTreeMap<NodeId, Incarnation>,
    /// The machine's state at that index.
    pub state: StateView,
}

debug_fields!(Content { index, term });

/// Where a node keeps the files of snapshots, and how much room they may take. Any thread may call it.
///
/// The files themselves are reached group by group: [`SnapshotStore::of`].
pub struct SnapshotStore {
    shared: Arc<Shared>,
}

debug_fields!(SnapshotStore { shared });

/// What all groups share.
struct Shared {
    files: Arc<dyn Files>,
    /// How many bytes are left to others on the same disk.
    leave_free: AtomicU64,
    /// What may be borrowed where there is no room beside those.
    reserve: OnceLock<Arc<Reserve>>,
    expected: Mutex<Expected>,
    groups: Mutex<BTreeMap<GroupId, Arc<GroupShared>>>,
}

debug_fields!(Shared { leave_free });

/// How large the next snapshot of each group will be, as far as they have said.
#[derive(Default)]
struct Expected {
    of: BTreeMap<GroupId, u64>,
    largest: u64,
}

impl Expected {
    /// The largest of all, now that this group says so.
    fn largest_with(&mut self, group: GroupId, bytes: u64) -> u64 {
        let before = self.of.insert(group, bytes).unwrap_or(0);
        // Looked for among all groups only where the largest may have become smaller.
        self.largest = match before == self.largest && bytes < before {
            true => self.of.values().copied().max().unwrap_or(0),
            false => self.largest.max(bytes),
        };
        self.largest
    }
}

/// What this process knows of the files of one group.
struct GroupShared {
    group: GroupId,
    marks: Mutex<Marks>,
    /// Bytes that were received, or read to be checked or restored.
    progress: AtomicU64,
}

/// The files of one group's snapshots. Cheap to clone; any thread may call it.
///
/// No call reads, names or removes a file of another group.
#[derive(Clone)]
pub struct GroupSnapshots {
    shared: Arc<Shared>,
    of_group: Arc<GroupShared>,
}

impl fmt::Debug for GroupSnapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GroupShared { group, progress, .. } = &*self.of_group;
        f.debug_struct("GroupSnapshots").field("group", group).field("progress", progress).finish_non_exhaustive()
    }
}

/// What this process does with files, and no sweeping may disturb.
#[derive(Default)]
struct Marks {
    /// Being written.
    busy: BTreeSet<String>,
    /// Complete since the start, and not yet among the kept ones: (index, name).
    fresh: BTreeSet<(u64, String)>,
    /// Partial files of which this process knows that what they hold is what came.
    known: BTreeSet<String>,
}

impl Default for SnapshotStore {
    fn default() -> SnapshotStore {
        SnapshotStore::memory()
    }
}

impl SnapshotStore {
    /// A snapshot store that is lost with the process.
    pub fn memory() -> SnapshotStore {
        SnapshotStore::over(Arc::new(InMemory::default()))
    }

    /// The snapshot store in a directory, which is made if there is none.
    pub fn in_directory(dir: &Path) -> io::Result<SnapshotStore> {
        Ok(SnapshotStore::over(Arc::new(InDirectory::open(dir)?)))
    }

    /// The snapshot store over any folder of files.
    pub fn over(files: Arc<dyn Files>) -> SnapshotStore {
        let (leave_free, reserve, expected, groups) = Default::default();
        SnapshotStore { shared: Arc::new(Shared { files, leave_free, reserve, expected, groups }) }
    }

    /// The files of a group. Touches nothing: a folder is made with a group's first file.
    pub fn of(&self, group: GroupId) -> GroupSnapshots {
        let mut groups = locked(&self.shared.groups);
        let of_group = groups.entry(group).or_insert_with(|| {
            let (marks, progress) = Default::default();
            Arc::new(GroupShared { group, marks, progress })
        });
        GroupSnapshots { shared: self.shared.clone(), of_group: of_group.clone() }
    }

    /// Leaves so many bytes of the disk to the log, which cannot go on without them. A snapshot that does not fit
    /// beside them is not begun, or is given up. With 0, the value at first, only the disk sets a limit.
    pub fn leave_free(&self, bytes: u64) {
        self.shared.leave_free.store(bytes, Ordering::Relaxed);
    }

    /// Lets snapshots borrow this reserve where they find no room beside what is left free: the log is cut behind them.
    pub fn may_borrow(&self, reserve: Arc<Reserve>) {
        let _ = self.shared.reserve.set(reserve);
    }

    /// Whether there is room for so many bytes more.
    pub fn must_fit(&self, bytes: u64) -> Result<(), SnapshotError> {
        let leave_free = self.shared.leave_free.load(Ordering::Relaxed);
        room_for(&*self.shared.files, bytes, leave_free).map_err(|error| failed("looking for room", error))
    }

    /// Whether a call may wait for a device, of its groups as well.
    pub fn blocks(&self) -> bool {
        self.shared.files.blocks()
    }
}

impl Shared {
    /// Room for so many bytes: beside what is left to the log, or else in the reserve.
    fn make_room(&self, bytes: u64) -> io::Result<FileRoom> {
        let mut room = FileRoom { leave_free: self.leave_free.load(Ordering::Relaxed), lent: None };
        self.must_still_fit(bytes, &mut room)?;
        Ok(room)
    }

    /// Whether there is room for so many bytes more, with the reserve if need be.
    fn must_still_fit(&self, bytes: u64, room: &mut FileRoom) -> io::Result<()> {
        let Err(full) = room_for(&*self.files, bytes, room.leave_free) else { return Ok(()) };
        let reserve = self.reserve.get().filter(|_| room.lent.is_none());
        let Some(lent) = reserve.and_then(|reserve| reserve.lend()) else { return Err(full) };
        *room = FileRoom { leave_free: room.leave_free.min(UNSYNCED_BYTES), lent: Some(lent) };
        room_for(&*self.files, bytes, room.leave_free)
    }
}

impl GroupSnapshots {
    /// Whose files these are.
    pub fn group(&self) -> GroupId {
        self.of_group.group
    }

    /// Makes the reserve large enough for a snapshot of this group of so many bytes, too: it holds the largest that any
    /// group asks for.
    pub fn hold_snapshot(&self, bytes: u64) {
        let Some(reserve) = self.shared.reserve.get() else { return };
        // Under the lock: the last word to the reserve is of the last change.
        let mut expected = locked(&self.shared.expected);
        reserve.hold_snapshot(expected.largest_with(self.of_group.group, bytes));
    }

    /// Bytes of this group's snapshots that were received, or read to be checked or restored, since the start: it grows
    /// while any of that goes on.
    pub fn progress(&self) -> u64 {
        self.of_group.progress.load(Ordering::Relaxed)
    }

    /// Whether a call may wait for a device.
    pub fn blocks(&self) -> bool {
        self.shared.files.blocks()
    }

    /// The folder that its files are in; an error of the kind `NotFound` as long as it has none.
    fn files(&self) -> io::Result<Arc<dyn Files>> {
        match group_folder(self.of_group.group) {
            None => Ok(self.shared.files.clone()),
            Some(folder) => self.shared.files.folder(&folder),
        }
    }

    /// The folder, for writing: it is made if it is missing, and its name is durable. The writer keeps it open until
    /// the new file's name is durable, because a descriptor opened later could miss an error that was already reported.
    fn files_to_write(&self) -> Result<Arc<dyn Files>, SnapshotError> {
        match group_folder(self.of_group.group) {
            None => Ok(self.shared.files.clone()),
            Some(folder) => {
                let made = self.shared.files.make_folder(&folder);
                made.map_err(|error| failed(&format!("making the folder {folder}"), error))
            }
        }
    }

    /// What is in its folder: nothing, without one.
    fn list(&self) -> Result<Vec<(String, u64)>, SnapshotError> {
        match self.files().and_then(|files| files.list()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            found => found.map_err(|error| failed("listing the snapshots", error)),
        }
    }

    /// A file's name for people, with the folder that it is in.
    fn shown(&self, name: &str) -> String {
        group_folder(self.of_group.group).map_or_else(|| name.to_owned(), |folder| format!("{folder}/{name}"))
    }

    /// Removes the group's files that are not of these snapshots, and what was left half written.
    ///
    /// What is being built or received now stays. So does the file of the newest snapshot that was received, as a whole
    /// or in part, if it is newer than these: it may go on where it stopped. And so do the newest two files that were
    /// completed by this process and are newer than these: whoever completed them has yet to say that they are kept. At
    /// a start there are none of those.
    ///
    /// Goes on after an error, and returns the first.
    pub fn keep(&self, kept: &[Snapshot]) -> Result<(), SnapshotError> {
        let mut names = BTreeSet::new();
        for snapshot in kept {
            names.extend(described(snapshot)?.1.map(|file| complete_name(snapshot.index, &file)));
        }
        let newest = kept.iter().map(|snapshot| snapshot.index).max().unwrap_or(0);
        let found = self.list()?;
        let mut marks = self.marks();
        marks.fresh.retain(|(index, name)| *index > newest && !names.contains(name));
        while marks.fresh.len() > MAX_FRESH {
            marks.fresh.pop_first();
        }
        names.extend(marks.fresh.iter().map(|(_, name)| name.clone()));
        names.extend(marks.busy.iter().cloned());
        let partial = |(name, length): &(String, u64)| {
            let index = receiving_index(name).or_else(|| complete_index(name))?;
            Some((index, *length, Reverse(name.clone())))
        };
        let receives = names.iter().any(|name| receiving_index(name).is_some());
        let resumable = found.iter().filter_map(partial).filter(|(index, ..)| *index > newest && !receives).max();
        names.extend(resumable.map(|(_, _, Reverse(name))| name));
        drop(marks);
        // No sync of the names: what comes back after a crash is swept at the start.
        let unwanted = found.iter().map(|(name, _)| name).filter(|name| is_ours(name) && !names.contains(*name));
        let removed: Vec<_> = unwanted.map(|name| self.sweep(name)).collect();
        removed.into_iter().collect()
    }

    fn sweep(&self, name: &str) -> Result<(), SnapshotError> {
        // If it is being written, its writer began after the files were listed.
        let Ok(_busy) = self.busy(name) else { return Ok(()) };
        self.marks().known.remove(name);
        match self.files() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            files => self.remove(&*files.map_err(|error| failed("looking for the snapshots", error))?, name),
        }
    }

    /// Builds the file of a snapshot. Durable under its name when it returns. `progress` hears the bytes written so
    /// far.
    ///
    /// An error of the disk or of the machine, and a panic of the machine, end this snapshot only: nothing of it stays.
    pub fn build(&self, content: Content, progress: &mut dyn FnMut(u64)) -> Result<Snapshot, SnapshotError> {
        self.build_of(0, content, progress)
    }

    /// The same of a snapshot that will take about so many bytes, for which there must be room before it is begun.
    pub fn build_of(
        &self,
        expected: u64,
        content: Content,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Snapshot, SnapshotError> {
        let room = self.shared.make_room(expected).map_err(|error| failed("looking for room", error))?;
        let Content { index, term, system, formed_with, state } = content;
        let index = index - u64::from(planted::is(Planted::SnapshotMislabelled));
        let name = format!("building-{index:020}.tmp");
        let building = self.busy(&name)?;
        let files = self.files_to_write()?;
        let header = Header::new(self.of_group.group, index, term, system.clone(), formed_with.clone());
        let built = self.write(&*files, &name, &header, state, room, progress).and_then(|file| {
            let encoded = system.snapshot(index, term, file, formed_with);
            let snapshot =
                encoded.map_err(|error| SnapshotError(format!("encoding the descriptor of {index}: {error}")))?;
            self.publish(&*files, &name, index, &file, true)?;
            Ok(snapshot)
        });
        if built.is_err() {
            // Best effort: what stays is swept.
            let _ = self.remove(&*files, &name);
        }
        drop(building);
        built
    }

    fn write(
        &self,
        files: &dyn Files,
        name: &str,
        header: &Header,
        state: StateView,
        room: FileRoom,
        progress: &mut dyn FnMut(u64),
    ) -> Result<SnapshotFile, SnapshotError> {
        self.remove(files, name)?;
        let shown = self.shown(name);
        let file = files.create(name).map_err(|error| failed(&format!("creating {shown}"), error))?;
        let name = shown;
        let writing = |error: FileError| SnapshotError(format!("writing {name}: {error}"));
        let file = SyncedAsItGrows { file, unsynced: 0, shared: self.shared.clone(), room };
        let mut writer_of_state =
            WithProgress { writer: Writer::begin(file, header).map_err(writing)?, progress, said: 0 };
        let at = At(header.index, header.term);
        // What a panic leaves half done is a file that is removed, and a state that nobody looks at again.
        let state = catch_unwind(AssertUnwindSafe(|| state.write_to(&mut writer_of_state)));
        let WithProgress { writer, progress, .. } = writer_of_state;
        match (state, writer.failed()) {
            (Err(panic), _) => {
                let panic = panic_message(&*panic);
                return Err(SnapshotError(format!("the state machine panicked writing its state at {at}: {panic}")));
            }
            // Before the machine's own words, which may hide it, and even if it overlooked it.
            (_, Some(error)) => return Err(SnapshotError(format!("writing {name}: {error}"))),
            (Ok(Err(error)), None) => {
                return Err(SnapshotError(format!("the state machine could not write its state at {at}: {error}")));
            }
            (Ok(Ok(())), None) => {}
        }
        let (SyncedAsItGrows { mut file, room, .. }, written) = writer.finish().map_err(writing)?;
        progress(written.bytes);
        // Promise: what has a snapshot's name is whole, also after a power cut; so the content before the name.
        file.sync().map_err(|error| failed(&format!("syncing {name}"), error))?;
        drop(room);
        Ok(written)
    }

    /// Gives a synced file its final name.
    fn publish(
        &self,
        files: &dyn Files,
        name: &str,
        index: u64,
        file: &SnapshotFile,
        sync_names: bool,
    ) -> Result<(), SnapshotError> {
        let last = complete_name(index, file);
        let [from, to] = [name, &last].map(|name| self.shown(name));
        let before = self.has(index, file);
        // First, so that no sweep sees the name without the mark.
        self.marks().fresh.insert((index, last.clone()));
        let renamed = files.rename(name, &last);
        let renamed = renamed.map_err(|error| failed(&format!("renaming {from} to {to}"), error));
        let synced = renamed.and_then(|()| match sync_names {
            // The log is cut once this returns: a name that a power cut can take would take the state with it.
            true => files.sync_names().map_err(|error| failed(&format!("making {to} durable"), error)),
            false => Ok(()),
        });
        if synced.is_err() && !before {
            // It must not be found and taken for durable.
            let _ = self.remove(files, &last);
            self.marks().fresh.remove(&(index, last));
        }
        synced
    }

    /// Reads the whole file and compares it with what the snapshot says: its hash, its header, every chunk. A genesis
    /// has no file, and is as it is.
    pub fn verify(&self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let Some(file) = described(snapshot)?.1 else { return Ok(()) };
        self.verify_named(&complete_name(snapshot.index, &file), snapshot)
    }

    fn verify_named(&self, name: &str, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let (reader, expected) = self.reader(name, snapshot)?;
        let name = self.shown(name);
        let found = reader.verify().map_err(|error| SnapshotError(format!("{name}: {error}")))?;
        if found != expected {
            return Err(SnapshotError(format!("{name}: it is {found:?}, and {expected:?} was announced")));
        }
        Ok(())
    }

    /// The machine's state of a snapshot that has a file. It is read chunk by chunk; no byte is given out before its
    /// chunk was checked, nor the end before the whole file was.
    pub fn open(&self, snapshot: &Snapshot) -> Result<Box<dyn Read + Send>, SnapshotError> {
        let Some(file) = described(snapshot)?.1 else {
            return Err(SnapshotError(format!("the snapshot at {} has no file", At(snapshot.index, snapshot.term))));
        };
        Ok(Box::new(self.reader(&complete_name(snapshot.index, &file), snapshot)?.0))
    }

    /// A reader of the file under that name, which must be what the snapshot says as far as can be seen without reading
    /// it all.
    fn reader(&self, name: &str, snapshot: &Snapshot) -> Result<(FileReader, SnapshotFile), SnapshotError> {
        let (system, file) = described(snapshot)?;
        let expected = file.ok_or_else(|| SnapshotError(format!("the snapshot at {} has no file", snapshot.index)))?;
        let shown = self.shown(name);
        let doing = |error| failed(&format!("reading {shown}"), error);
        let mut opened = self.files().and_then(|files| files.open(name)).map_err(doing)?;
        let name = &shown;
        let ending = ending(&mut *opened).map_err(doing)?;
        let counted = Counted { inner: opened, of_group: self.of_group.clone() };
        let reader = Reader::begin(BufReader::new(counted));
        let reader = reader.map_err(|error| SnapshotError(format!("{name}: {error}")))?;
        let header = reader.header();
        let other = |what: &str, found: &dyn fmt::Display, expected: &dyn fmt::Display| {
            Err(SnapshotError(format!("{name}: it is of {what} {found}, and the snapshot of {what} {expected}")))
        };
        if header.group != self.of_group.group {
            return other("group", &header.group.0, &self.of_group.group.0);
        }
        if header.cluster != system.cluster {
            return other("cluster", &header.cluster, &system.cluster);
        }
        if header.index != snapshot.index {
            return other("index", &header.index, &snapshot.index);
        }
        if header.term != snapshot.term {
            return other("term", &header.term, &snapshot.term);
        }
        // The descriptor's configuration may name its receiver as one more learner; its file says what was when it was
        // built.
        if header.conf != ConfState::of(&system.membership) || header.system != system {
            return Err(SnapshotError(format!("{name}: its members or their state are not the snapshot's")));
        }
        if ending.0 < expected.bytes {
            let (has, wants) = (ending.0, expected.bytes);
            return Err(SnapshotError(format!("{name}: it is truncated: it has {has} bytes of {wants}")));
        }
        if ending != (expected.bytes, Some(expected.hash)) {
            return Err(SnapshotError(format!("{name}: it is not the file of that hash ({expected:?})")));
        }
        Ok((reader, expected))
    }

    /// Whether the complete file is here, as far as its name, length and last bytes say.
    pub fn has(&self, index: u64, file: &SnapshotFile) -> bool {
        let opened = self.files().and_then(|files| files.open(&complete_name(index, file)));
        opened.and_then(|mut opened| ending(&mut *opened)).is_ok_and(|found| found == (file.bytes, Some(file.hash)))
    }

    /// Bytes of the file as it lies on the disk, [`MAX_PIECE`] at most; none past its end; `None` if it is not here
    /// (any more).
    pub fn read(&self, index: u64, file: &SnapshotFile, offset: u64, max: u32) -> Result<Option<Bytes>, SnapshotError> {
        let name = complete_name(index, file);
        let opened = self.files().and_then(|files| files.open(&name));
        let name = self.shown(&name);
        let mut opened = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&format!("reading {name}"), error)),
        };
        let most = u64::from(max.min(MAX_PIECE)).min(file.bytes.saturating_sub(offset));
        let mut piece = Vec::new();
        let got = opened.seek(SeekFrom::Start(offset)).and_then(|_| opened.take(most).read_to_end(&mut piece));
        got.map_err(|error| failed(&format!("reading {name}"), error))?;
        if (piece.len() as u64) < most {
            // Fewer bytes would be taken for the end, or asked for again for ever.
            let (ends, wants) = (offset + piece.len() as u64, file.bytes);
            return Err(SnapshotError(format!("{name}: it is truncated: it ends at {ends} of {wants} bytes")));
        }
        Ok(Some(piece.into()))
    }

    /// Begins to receive the file of a snapshot, or goes on where an earlier attempt stopped.
    ///
    /// What an earlier process received is kept up to its last whole chunk, since a power cut may have taken the end.
    /// [`Receiving::finish`] checks the rest.
    pub fn receive(&self, snapshot: &Snapshot) -> Result<Receiving, SnapshotError> {
        let Some(expected) = described(snapshot)?.1 else {
            return Err(SnapshotError(format!("the snapshot at {} has no file", At(snapshot.index, snapshot.term))));
        };
        let name = receiving_name(snapshot.index, &expected);
        let busy = self.busy(&name)?;
        let files = self.files_to_write()?;
        let (snapshots, snapshot) = (self.clone(), snapshot.clone());
        // It may be here already, from an earlier leader or from before a restart. If it is damaged it is replaced.
        if self.has(snapshot.index, &expected) && self.verify(&snapshot).is_ok() {
            return Ok(Receiving {
                snapshots,
                files,
                snapshot,
                expected,
                name,
                file: None,
                offset: expected.bytes,
                unsynced: 0,
                stopped: false,
                room: FileRoom { leave_free: 0, lent: None },
                busy,
            });
        }
        self.sweep_partial(&name)?;
        let shown = self.shown(&name);
        let doing = |error| failed(&format!("opening {shown}"), error);
        let mut file = match files.append(&name) {
            Ok(file) => file,
            // The name is not made durable: a partial file that a power cut takes is begun again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => files.create(&name).map_err(doing)?,
            Err(error) => return Err(doing(error)),
        };
        let mut offset = file.length().map_err(doing)?;
        let good = match offset {
            too_long if too_long > expected.bytes => 0,
            rest if rest == 0 || self.marks().known.contains(&name) => rest,
            rest => {
                let opened = files.open(&name).map_err(doing)?;
                Reader::intact(BufReader::new(opened), rest).map_err(doing)?
            }
        };
        if good < offset {
            let damaged = "what was received before a crash is damaged at its end";
            tracing::warn!(file = %shown, good, found = offset, "{damaged}");
            file.cut(good).map_err(doing)?;
            offset = good;
        }
        self.marks().known.insert(name.clone());
        let room = self.shared.make_room(expected.bytes - offset).map_err(|error| failed("looking for room", error))?;
        let (file, unsynced, stopped) = (Some(file), 0, false);
        Ok(Receiving { snapshots, files, snapshot, expected, name, file, offset, unsynced, stopped, room, busy })
    }

    /// Each leader may offer another snapshot. Of the partial files of other snapshots only the longest is kept, in
    /// case it is offered again.
    fn sweep_partial(&self, name: &str) -> Result<(), SnapshotError> {
        let found = self.list()?;
        let mut others: Vec<_> =
            found.into_iter().filter(|(other, _)| receiving_index(other).is_some() && other != name).collect();
        others.sort_by_key(|(_, length)| *length);
        others.pop();
        others.into_iter().try_for_each(|(other, _)| self.sweep(&other))
    }

    /// The complete file as it lies on the disk, from its first byte to its last, whatever is removed meanwhile.
    pub fn raw(&self, index: u64, file: &SnapshotFile) -> Result<Box<dyn Read + Send>, SnapshotError> {
        let name = complete_name(index, file);
        let opened = self.files().and_then(|files| files.open(&name));
        let opened = opened.map_err(|error| failed(&format!("reading {}", self.shown(&name)), error))?;
        Ok(Box::new(opened.take(file.bytes)))
    }

    /// Removes a file that may not be there.
    fn remove(&self, files: &dyn Files, name: &str) -> Result<(), SnapshotError> {
        match files.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(&format!("removing {}", self.shown(name)), error))
            }
            _ => Ok(()),
        }
    }

    fn busy(&self, name: &str) -> Result<Busy, SnapshotError> {
        if !self.marks().busy.insert(name.to_owned()) {
            return Err(SnapshotError(format!("{} is being written already", self.shown(name))));
        }
        Ok(Busy { of_group: self.of_group.clone(), name: name.to_owned() })
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        locked(&self.of_group.marks)
    }
}

impl SnapshotReader for GroupSnapshots {
    fn verify(&self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        GroupSnapshots::verify(self, snapshot)
    }

    fn open(&self, snapshot: &Snapshot) -> Result<Box<dyn Read + Send>, SnapshotError> {
        GroupSnapshots::open(self, snapshot)
    }
}

type FileReader = Reader<BufReader<Counted>>;

/// A file that is being received. Dropped, it leaves what it has for the next attempt.
pub struct Receiving {
    snapshots: GroupSnapshots,
    /// The group's folder.
    files: Arc<dyn Files>,
    snapshot: Snapshot,
    expected: SnapshotFile,
    name: String,
    /// `None`: the complete file is here already.
    file: Option<Box<dyn Appending>>,
    offset: u64,
    /// So many bytes were written since the last sync.
    unsynced: u64,
    /// A write failed, and what it left could not be cut off: the file is longer than `offset`. Or a sync failed.
    stopped: bool,
    room: FileRoom,
    busy: Busy,
}

debug_fields!(Receiving { expected, name, offset, unsynced, stopped });

impl Receiving {
    /// How many bytes are here: the next piece begins there.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes there are to be.
    pub fn bytes(&self) -> u64 {
        self.expected.bytes
    }

    /// Adds the next piece. One that begins elsewhere, or goes past the end, is an error, and changes nothing. So does
    /// a full disk: what was received before stays, and the same piece may be tried again.
    pub fn push(&mut self, offset: u64, piece: &[u8]) -> Result<(), SnapshotError> {
        self.usable()?;
        let (name, here) = (self.shown(), self.offset);
        if offset != here {
            return Err(SnapshotError(format!("{name}: a piece begins at {offset}, and {here} comes next")));
        }
        let rest = self.expected.bytes - offset;
        if piece.len() as u64 > rest {
            let length = piece.len();
            return Err(SnapshotError(format!("{name}: a piece of {length} bytes goes past the end, {rest} are left")));
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(error) = file.write_all(piece) {
            // If this fails, too, the next attempt finds a longer file: what it has more is still of this piece.
            self.stopped = file.cut(offset).is_err();
            return Err(failed(&format!("writing {name}"), error));
        }
        self.offset += piece.len() as u64;
        self.unsynced += piece.len() as u64;
        self.snapshots.of_group.progress.fetch_add(piece.len() as u64, Ordering::Relaxed);
        if self.unsynced >= UNSYNCED_BYTES {
            self.unsynced = 0;
            if let Err(error) = file.sync() {
                // It is not known what the disk has of it now.
                self.stopped = true;
                let _ = self.snapshots.remove(&*self.files, &self.name);
                return Err(failed(&format!("syncing {name}"), error));
            }
            // What came stays: it is gone on with when there is room.
            let rest = self.expected.bytes - self.offset;
            let fits = self.snapshots.shared.must_still_fit(rest, &mut self.room);
            fits.map_err(|error| failed("looking for room", error))?;
        }
        Ok(())
    }

    /// All bytes are here: verifies the whole, and makes it durable under its name. A file that is not what was
    /// announced is removed, so that the next attempt starts anew.
    pub fn finish(self) -> Result<(), SnapshotError> {
        self.usable()?;
        let shown = self.shown();
        let Receiving { snapshots, files, snapshot, expected, name, file, offset, busy, room, .. } = self;
        if offset != expected.bytes {
            let wants = expected.bytes;
            return Err(SnapshotError(format!("{shown}: only {offset} of {wants} bytes are here")));
        }
        let last = snapshots.shown(&complete_name(snapshot.index, &expected));
        snapshots.marks().known.remove(&name);
        let Some(mut file) = file else {
            // An earlier attempt completed it. Whether its name is durable is not known: it may have been killed
            // before.
            return files.sync_names().map_err(|error| failed(&format!("making {last} durable"), error));
        };
        let good = snapshots.verify_named(&name, &snapshot).and_then(|()| {
            // Synced before it gets its name, as in a build. After a failed sync it is not known what the disk has, so
            // the file is removed, too.
            file.sync().map_err(|error| failed(&format!("syncing {shown}"), error))
        });
        if good.is_err() {
            let _ = snapshots.remove(&*files, &name);
        }
        good?;
        let synced = !planted::is(Planted::InstalledWithoutDirectorySync);
        let published = snapshots.publish(&*files, &name, snapshot.index, &expected, synced);
        drop((busy, room));
        published
    }

    fn usable(&self) -> Result<(), SnapshotError> {
        match self.stopped {
            true => Err(SnapshotError(format!("{}: it could not be written before: receive it anew", self.shown()))),
            false => Ok(()),
        }
    }

    fn shown(&self) -> String {
        self.snapshots.shown(&self.name)
    }
}

/// A file whose bytes are counted as they are read.
struct Counted {
    inner: Box<dyn Reading>,
    of_group: Arc<GroupShared>,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.of_group.progress.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Keeps a file from being swept, or written twice at once.
struct Busy {
    of_group: Arc<GroupShared>,
    name: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        locked(&self.of_group.marks).busy.remove(&self.name);
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The room for a file that is being written: how many bytes it leaves free for others, and the reserve while that is
/// borrowed for it.
struct FileRoom {
    leave_free: u64,
    #[allow(dead_code, reason = "held until the file is done")]
    lent: Option<Lent>,
}

/// A file that is synced as it grows.
struct SyncedAsItGrows {
    file: Box<dyn Appending>,
    unsynced: u64,
    shared: Arc<Shared>,
    room: FileRoom,
}

impl Write for SyncedAsItGrows {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unsynced >= UNSYNCED_BYTES {
            self.file.sync()?;
            self.unsynced = 0;
            self.shared.must_still_fit(UNSYNCED_BYTES, &mut self.room)?;
        }
        let written = self.file.write(bytes)?;
        self.unsynced += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An error like that of a full disk if there is no room for so many bytes beside what is left to others.
fn room_for(files: &dyn Files, bytes: u64, leave_free: u64) -> io::Result<()> {
    if leave_free == 0 {
        return Ok(());
    }
    match files.free()? {
        Some(free) if free < leave_free.saturating_add(bytes) => {
            let problem =
                format!("{bytes} bytes more are needed and {free} are free, {leave_free} of which are the log's");
            Err(io::Error::new(io::ErrorKind::StorageFull, problem))
        }
        _ => Ok(()),
    }
}

/// A writer that tells how far it is, once per chunk.
struct WithProgress<'a> {
    writer: Writer<SyncedAsItGrows>,
    progress: &'a mut dyn FnMut(u64),
    said: u64,
}

impl Write for WithProgress<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.writer.write(bytes)?;
        let written = self.writer.bytes();
        if written > self.said {
            self.said = written;
            (self.progress)(written);
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A file's length and the hash at its end. Leaves it at its beginning.
fn ending(file: &mut dyn Reading) -> io::Result<(u64, Option<[u8; 32]>)> {
    let length = file.seek(SeekFrom::End(0))?;
    let hash = match length.checked_sub(HASH_BYTES) {
        None => None,
        Some(at) => {
            let mut hash = [0; HASH_BYTES as usize];
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut hash)?;
            Some(hash)
        }
    };
    file.seek(SeekFrom::Start(0))?;
    Ok((length, hash))
}

fn described(snapshot: &Snapshot) -> Result<(SystemState, Option<SnapshotFile>), SnapshotError> {
    SystemState::of(snapshot).map_err(|error| {
        SnapshotError(format!("cannot decode the snapshot at {}: {error}", At(snapshot.index, snapshot.term)))
    })
}

/// The folder of a group's files in the node's: none of group 0, which was there before there were others.
pub fn group_folder(group: GroupId) -> Option<String> {
    (group != GroupId::FIRST).then(|| format!("g{}", group.0))
}

/// The name of the complete file in its group's folder ([`group_folder`]).
pub fn complete_name(index: u64, file: &SnapshotFile) -> String {
    format!("snapshot-{index:020}-{file}.actorum")
}

fn receiving_name(index: u64, file: &SnapshotFile) -> String {
    format!("receiving-{index:020}-{file}.part")
}

fn receiving_index(name: &str) -> Option<u64> {
    name.strip_prefix("receiving-")?.strip_suffix(".part")?.split('-').next()?.parse().ok()
}

fn complete_index(name: &str) -> Option<u64> {
    name.strip_prefix("snapshot-")?.strip_suffix(".actorum")?.split('-').next()?.parse().ok()
}

/// Whether it is a name that this module gives. What else is in the folder is somebody's, and stays.
fn is_ours(name: &str) -> bool {
    let forms = [("snapshot-", ".actorum"), ("building-", ".tmp"), ("receiving-", ".part")];
    forms.iter().any(|(first, last)| name.starts_with(first) && name.ends_with(last))
}

fn failed(doing: &str, error: io::Error) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            SnapshotError(format!("{doing} failed, the disk is full: {error}"))
        }
        _ => SnapshotError(format!("{doing} failed: {error}")),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
