//! Simulated files: a folder in memory that loses power as a filesystem does.
//!
//! ```text
//!  SimulatedFiles ── outlives every snapshot store opened on it
//!    names      what is seen            ┐ create, rename, remove ─▶ unsynced ─▶ sync of the names ─▶ durable
//!    unsynced   what a power cut takes  ┘
//!    files      content ─▶ sync ─▶ durable; of what was not synced some may survive, and some may be torn
//! ```
//!
//! A folder in it is a name that ends in `/`, and what it holds has names that begin with that. Each folder's names are
//! synced for themselves, and what is in a folder goes with the folder's own name.
//!
//! Before every [`FileStep`] it asks its [`Decide`] whether that happens, fails, or the power goes instead; the log's
//! [simulated disk](crate::log::simulated) does the same, with the same words: see [`crate::simulated`].
//!
//! Deliberately absent: threads, clocks, latency, and random numbers of its own. That cutting a file short is not
//! durable at once is not simulated.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Seek, SeekFrom, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::files::{Appending, Files, Reading, read_at, seek_in};
use crate::simulated::{Decide, Decision, Loss, SimulatedVolume, StepError, mix};

/// What is done to the files, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileStep {
    /// The names are listed, or a file is opened or read.
    Read,
    /// A new name appears, of a file or of a folder.
    Create,
    /// Bytes are appended. A failure, and a power cut, leave a part of them.
    Write,
    /// A file is cut short.
    Truncate,
    /// A file's content becomes durable.
    Sync,
    /// A file gets another name.
    Rename,
    /// A name goes.
    Remove,
    /// The names become durable.
    SyncNames,
}

/// What was done, and what was done to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct FileCounters {
    pub steps: u64,
    /// Steps that failed.
    pub failed: u64,
    /// Steps in the place of which the power went.
    pub power_cuts: u64,
    pub crashes: u64,
    pub kills: u64,
    /// Changes of names that a crash took.
    pub lost_names: u64,
    /// Bytes that a crash took.
    pub lost_bytes: u64,
    /// Files of which a crash left something that was never written.
    pub torn_files: u64,
    pub flipped_bits: u64,
    pub wiped: u64,
}

/// A copy of everything that is durable, to be brought back later.
#[derive(Clone, Debug)]
pub struct FilesBackup(BTreeMap<String, Vec<u8>>);

/// The files of one node. Clones are the same files.
#[derive(Clone)]
pub struct SimulatedFiles(Arc<Mutex<Folder>>);

struct Folder {
    decide: Arc<dyn Decide<FileStep>>,
    /// Which opening is the present one: handles of an earlier one do nothing.
    life: u64,
    /// The power went in the middle of a step, and nobody has said yet what is lost.
    power_cut: bool,
    names: BTreeMap<String, u64>,
    /// The names as they are durable.
    durable: BTreeMap<String, u64>,
    /// What changed since the names were synced, oldest first.
    unsynced: Vec<Renamed>,
    files: BTreeMap<u64, FileBytes>,
    made: u64,
    volume: SimulatedVolume,
    counters: FileCounters,
}

/// One change of names, which happens as a whole: per name which file it is of after it.
type Renamed = Vec<(String, Option<u64>)>;

#[derive(Clone, Default)]
struct FileBytes {
    bytes: Vec<u8>,
    /// So much of it is durable.
    synced: usize,
}

impl SimulatedFiles {
    /// An empty folder on a volume without an end.
    pub fn new(decide: Arc<dyn Decide<FileStep>>) -> SimulatedFiles {
        SimulatedFiles::on(SimulatedVolume::endless(), decide)
    }

    /// An empty folder on that volume.
    pub fn on(volume: SimulatedVolume, decide: Arc<dyn Decide<FileStep>>) -> SimulatedFiles {
        SimulatedFiles(Arc::new(Mutex::new(Folder {
            decide,
            life: 0,
            power_cut: false,
            names: BTreeMap::new(),
            durable: BTreeMap::new(),
            unsynced: Vec::new(),
            files: BTreeMap::new(),
            made: 0,
            volume,
            counters: FileCounters::default(),
        })))
    }

    /// Another one decides from now on.
    pub fn decide_with(&self, decide: Arc<dyn Decide<FileStep>>) {
        self.lock().decide = decide;
    }

    /// Begins a new life of it, for a [`SnapshotStore::over`](super::SnapshotStore::over) it: what was opened before is
    /// inert from here on.
    pub fn open(&self) -> Arc<dyn Files> {
        let mut folder = self.lock();
        if folder.power_cut {
            folder.lose_unsynced(Loss::All, 0);
        }
        folder.life += 1;
        Arc::new(FolderHandle { files: self.clone(), life: folder.life, place: String::new() })
    }

    /// The power goes. What was not synced is lost as `loss` says, with `rng` where there is a choice; with
    /// [`Loss::Torn`] all names stay, and of each file something that was never written may stand where its unsynced
    /// bytes were.
    pub fn crash(&self, loss: Loss, rng: u64) {
        let mut folder = self.lock();
        folder.counters.crashes += 1;
        folder.life += 1;
        folder.lose_unsynced(loss, rng);
    }

    /// The process dies. What it wrote stays, though it may not be durable.
    pub fn kill(&self) {
        let mut folder = self.lock();
        folder.counters.kills += 1;
        (folder.life, folder.power_cut) = (folder.life + 1, false);
    }

    /// Flips one bit of a file, and says where; `None` if there is no byte.
    pub fn flip_bit(&self, rng: u64) -> Option<String> {
        let mut folder = self.lock();
        let folder = &mut *folder;
        let named = folder.names.iter().filter(|(_, file)| !folder.files[file].bytes.is_empty());
        let named: Vec<(String, u64)> = named.map(|(name, file)| (name.clone(), *file)).collect();
        let (name, file) = named.get((mix(rng) as usize).checked_rem(named.len())?)?;
        let content = folder.files.get_mut(file)?;
        let bit = mix(rng.wrapping_add(1)) as usize % (content.bytes.len() * 8);
        content.bytes[bit / 8] ^= 1 << (bit % 8);
        folder.counters.flipped_bits += 1;
        Some(format!("bit {bit} of {name}"))
    }

    /// Flips this bit of the file of that name, which may be open; whether there was one. Done twice it is as before.
    pub fn flip(&self, name: &str, bit: usize) -> bool {
        let mut folder = self.lock();
        let folder = &mut *folder;
        let content = folder.names.get(name).and_then(|file| folder.files.get_mut(file));
        let Some(byte) = content.and_then(|content| content.bytes.get_mut(bit / 8)) else { return false };
        *byte ^= 1 << (bit % 8);
        folder.counters.flipped_bits += 1;
        true
    }

    /// Everything is gone.
    pub fn wipe(&self) {
        let mut folder = self.lock();
        folder.counters.wiped += 1;
        (folder.life, folder.power_cut) = (folder.life + 1, false);
        folder.fill(BTreeMap::new());
    }

    /// A copy of everything that is durable.
    pub fn backup(&self) -> FilesBackup {
        let folder = self.lock();
        let durable = |(name, file): (&String, &u64)| {
            let content = &folder.files[file];
            (name.clone(), content.bytes[..content.synced].to_vec())
        };
        FilesBackup(folder.durable.iter().map(durable).collect())
    }

    /// Brings a copy back, in the place of everything.
    pub fn bring_back(&self, backup: FilesBackup) {
        let mut folder = self.lock();
        (folder.life, folder.power_cut) = (folder.life + 1, false);
        folder.fill(backup.0);
    }

    /// The names that a power cut could not take, with as much of each file as is durable.
    pub fn durable(&self) -> BTreeMap<String, u64> {
        let folder = self.lock();
        let files = folder.durable.iter().filter(|(name, _)| !name.ends_with('/'));
        files.map(|(name, file)| (name.clone(), folder.files[file].synced as u64)).collect()
    }

    /// What was done, and what was done to it.
    pub fn counters(&self) -> FileCounters {
        self.lock().counters
    }

    fn lock(&self) -> MutexGuard<'_, Folder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimulatedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = self.lock();
        f.debug_struct("SimulatedFiles")
            .field("names", &folder.names.keys())
            .field("unsynced", &folder.unsynced.len())
            .finish_non_exhaustive()
    }
}

impl Folder {
    /// A new and empty file, or a folder; an error if there is one of that name.
    fn create(&mut self, name: String) -> io::Result<u64> {
        if self.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.made += 1;
        let file = self.made;
        self.files.insert(file, FileBytes::default());
        self.change(vec![(name, Some(file))]);
        Ok(file)
    }

    fn change(&mut self, change: Renamed) {
        for (name, file) in &change {
            set(&mut self.names, name, *file);
        }
        self.unsynced.push(change);
        self.measure();
    }

    /// Tells the volume how many bytes there are under names.
    fn measure(&self) {
        let bytes = |file: &u64| self.files.get(file).map_or(0, |content| content.bytes.len() as u64);
        self.volume.files_have(self.names.values().map(bytes).sum());
    }

    /// What a power cut leaves.
    fn lose_unsynced(&mut self, loss: Loss, rng: u64) {
        self.power_cut = false;
        let changes = std::mem::take(&mut self.unsynced);
        let count = changes.len();
        for (nth, change) in changes.into_iter().enumerate() {
            if !loss.spares(nth, count, rng) {
                self.counters.lost_names += 1;
                continue;
            }
            for (name, file) in &change {
                set(&mut self.durable, name, *file);
            }
        }
        let Folder { names, durable, .. } = self;
        *names = durable.clone();
        names.retain(|name, _| place(name).is_empty() || durable.contains_key(place(name)));
        *durable = names.clone();
        let named: Vec<u64> = self.names.values().copied().collect();
        self.files.retain(|file, _| named.contains(file));
        for (file, content) in &mut self.files {
            let rng = mix(rng ^ mix(*file));
            let loose = content.bytes.len() - content.synced;
            let kept = match loss {
                Loss::All => 0,
                Loss::Prefix | Loss::Subset => rng as usize % (loose + 1),
                Loss::Torn => loose,
            };
            self.counters.lost_bytes += (loose - kept) as u64;
            content.bytes.truncate(content.synced + kept);
            if loss == Loss::Torn && loose > 0 {
                // The length came through, and not all of the bytes.
                let from = content.synced + rng as usize % loose;
                content.bytes[from..].fill(0);
                self.counters.torn_files += 1;
            }
            // Whatever it is: it is on the disk.
            content.synced = content.bytes.len();
        }
        self.measure();
    }

    fn fill(&mut self, contents: BTreeMap<String, Vec<u8>>) {
        self.unsynced.clear();
        self.names.clear();
        self.files.clear();
        for (name, bytes) in contents {
            self.made += 1;
            self.names.insert(name, self.made);
            self.files.insert(self.made, FileBytes { synced: bytes.len(), bytes });
        }
        self.durable = self.names.clone();
        self.measure();
    }
}

/// The folder that a name stands in, as its names begin; empty for the outermost.
fn place(name: &str) -> &str {
    let within = name.strip_suffix('/').unwrap_or(name);
    within.rfind('/').map_or("", |end| &name[..=end])
}

fn set(names: &mut BTreeMap<String, u64>, name: &str, file: Option<u64>) {
    match file {
        Some(file) => drop(names.insert(name.to_owned(), file)),
        None => drop(names.remove(name)),
    }
}

/// The files in one life of theirs, seen from one of the folders.
#[derive(Clone)]
struct FolderHandle {
    files: SimulatedFiles,
    life: u64,
    /// How the names in this folder begin.
    place: String,
}

/// The folder, if the step happens; else what is left to do, and the error.
type Asked<'a> = Result<MutexGuard<'a, Folder>, (MutexGuard<'a, Folder>, StepError)>;

impl FolderHandle {
    /// Asks whether a step happens.
    fn ask(&self, step: FileStep) -> Asked<'_> {
        let decide = {
            let folder = self.files.lock();
            if folder.life != self.life {
                return Err((folder, StepError::LifeOver));
            }
            folder.decide.clone()
        };
        let decision = decide.step(step);
        let mut folder = self.files.lock();
        if folder.life != self.life {
            return Err((folder, StepError::LifeOver));
        }
        match decision {
            Decision::Go => {
                folder.counters.steps += 1;
                Ok(folder)
            }
            Decision::Fail(kind, words) => {
                folder.counters.failed += 1;
                Err((folder, StepError::Failed(io::Error::new(kind, words))))
            }
            Decision::CutPower => {
                folder.counters.power_cuts += 1;
                (folder.life, folder.power_cut) = (folder.life + 1, true);
                Err((folder, StepError::PowerCut))
            }
        }
    }

    /// The same, for a step that happens as a whole or not at all.
    fn step(&self, step: FileStep) -> io::Result<MutexGuard<'_, Folder>> {
        self.ask(step).map_err(|(folder, over)| announced(over, folder))
    }

    /// A name in this folder, as it stands among all of them.
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// The view of a folder in this one.
    fn within(&self, name: &str) -> FolderHandle {
        FolderHandle { place: format!("{}{name}/", self.place), ..self.clone() }
    }
}

/// The error of a step; and who cut the power hears that it is gone, outside all locks.
fn announced(over: StepError, folder: MutexGuard<'_, Folder>) -> io::Error {
    if let StepError::PowerCut = over {
        let decide = folder.decide.clone();
        drop(folder);
        decide.power_is_gone();
    }
    over.into()
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Files for FolderHandle {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let folder = self.step(FileStep::Read)?;
        let here = folder.names.iter().filter(|(name, _)| !name.ends_with('/') && place(name) == self.place);
        let lengths =
            here.map(|(name, file)| (name[self.place.len()..].to_owned(), folder.files[file].bytes.len() as u64));
        Ok(lengths.collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        let mut folder = self.step(FileStep::Create)?;
        let file = folder.create(self.name(name))?;
        Ok(Box::new(Handle { life: self.clone(), file, at: 0 }))
    }

    fn append(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        let file = *self.step(FileStep::Read)?.names.get(&self.name(name)).ok_or_else(not_found)?;
        Ok(Box::new(Handle { life: self.clone(), file, at: 0 }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Reading>> {
        let file = *self.step(FileStep::Read)?.names.get(&self.name(name)).ok_or_else(not_found)?;
        Ok(Box::new(Handle { life: self.clone(), file, at: 0 }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut folder = self.step(FileStep::Rename)?;
        let [from, to] = [from, to].map(|name| self.name(name));
        let file = *folder.names.get(&from).ok_or_else(not_found)?;
        folder.change(vec![(from, None), (to, Some(file))]);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut folder = self.step(FileStep::Remove)?;
        let name = self.name(name);
        if !folder.names.contains_key(&name) {
            return Err(not_found());
        }
        folder.change(vec![(name, None)]);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut folder = self.step(FileStep::SyncNames)?;
        let Folder { names, durable, unsynced, .. } = &mut *folder;
        unsynced.retain(|change| change.iter().any(|(name, _)| place(name) != self.place));
        durable.retain(|name, _| place(name) != self.place);
        let here = names.iter().filter(|(name, _)| place(name) == self.place);
        durable.extend(here.map(|(name, file)| (name.clone(), *file)));
        Ok(())
    }

    fn folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        let inner = self.within(name);
        match self.step(FileStep::Read)?.names.contains_key(&inner.place) {
            true => Ok(Arc::new(inner)),
            false => Err(not_found()),
        }
    }

    fn make_folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        let inner = self.within(name);
        match self.step(FileStep::Create)?.create(inner.place.clone()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.sync_names()?;
        Ok(Arc::new(inner))
    }

    fn free(&self) -> io::Result<Option<u64>> {
        Ok(self.files.lock().volume.room())
    }

    fn blocks(&self) -> bool {
        false
    }
}

/// A file that is open.
struct Handle {
    life: FolderHandle,
    file: u64,
    at: u64,
}

impl Handle {
    /// A file that nobody can find any more is still open.
    fn step(&self, step: FileStep) -> io::Result<MutexGuard<'_, Folder>> {
        self.life.step(step)
    }
}

impl Read for Handle {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let folder = self.step(FileStep::Read)?;
        let got = folder.files.get(&self.file).map_or(0, |content| read_at(&content.bytes, self.at, into));
        drop(folder);
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for Handle {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let folder = self.life.files.lock();
        let length = folder.files.get(&self.file).map_or(0, |content| content.bytes.len() as u64);
        drop(folder);
        self.at = seek_in(length, self.at, to)?;
        Ok(self.at)
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (mut folder, written, over) = match self.life.ask(FileStep::Write) {
            // As many as there is room for.
            Ok(folder) => match folder.volume.take(bytes.len() as u64) {
                (taken, Ok(())) => (folder, taken as usize, None),
                (taken, Err(full)) => (folder, taken as usize, Some(StepError::Failed(full))),
            },
            Err((folder, StepError::LifeOver)) => return Err(announced(StepError::LifeOver, folder)),
            // Some of it came before the disk was full, or the power gone.
            Err((folder, over)) => (folder, bytes.len() / 2, Some(over)),
        };
        if let Some(content) = folder.files.get_mut(&self.file) {
            content.bytes.extend_from_slice(&bytes[..written]);
        }
        folder.measure();
        match over {
            Some(over) => Err(announced(over, folder)),
            None => Ok(written),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Appending for Handle {
    fn length(&mut self) -> io::Result<u64> {
        let folder = self.step(FileStep::Read)?;
        Ok(folder.files.get(&self.file).map_or(0, |content| content.bytes.len() as u64))
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        let mut folder = self.step(FileStep::Truncate)?;
        if let Some(content) = folder.files.get_mut(&self.file) {
            content.bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
            content.synced = content.synced.min(content.bytes.len());
        }
        folder.measure();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut folder = self.step(FileStep::Sync)?;
        if let Some(content) = folder.files.get_mut(&self.file) {
            content.synced = content.bytes.len();
        }
        Ok(())
    }
}
