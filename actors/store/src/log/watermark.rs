//! The watermark: what this node has made durable, kept outside the engine, so that a store which comes up
//! empty, or older than it was, is found out before it votes.
//!
//! ```text
//!  store synced ─▶ watermark synced (when a term or vote moved) ─▶ completion ─▶ the message leaves
//!  watermark lowered and synced ─▶ a batch that truncates below it
//! ```
//!
//! In this order an honest crash, at whatever moment, finds the store at or ahead of the watermark, never behind.
//! At open, behind means refused.
//!
//! **Term and vote** are synced here before their completion is reported: no rollback of them goes unseen.
//! **The index** is not: a second sync per append would double the latency of every proposal. It follows
//! after at most `watermark_bytes` of records or `watermark_commits` synced commits, after a short quiet, and at
//! close. What that leaves undetected: a store that was rolled back by less than that, inside one term,
//! with no vote between. (It is the most that a single lying disk can take from the log unnoticed; a copy
//! put back by hand is nearly always older than that.)
//!
//! The file has two pages. A write goes to the page that does not hold the newest state, so a write
//! torn by a crash leaves the state before it, which is behind the store and therefore safe.
//!
//! What holds the two pages is behind a seam, [`Pages`]: a file here, a simulated disk in tests. Which page is written,
//! what it says, and which of the two is believed is decided here for both.
//!
//! Deliberately absent: any comparison with a store (see `recovery`), and repair: two damaged pages, or a
//! missing file, are for a person to judge.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use actorum_core::log::store::At;
use actorum_machine::ids::{GroupId, Incarnation, NodeId};
use bytes::{Buf, BufMut};

use super::directory;

/// The first bytes of a page; the last one is the version.
const MAGIC: [u8; 8] = *b"actormk\x01";

/// The smallest page is one page of memory, so that no write touches a sector of the other page.
const PAGE_MIN: usize = 4096;

/// What stands before the marks: magic, crc, length, sequence, incarnation, count.
const HEAD: usize = 8 + 4 + 4 + 8 + 8 + 4;

/// One group's mark: group, term, vote, index, index term.
const MARK: usize = 4 + 4 * 8;

/// What one group has made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The term. Never behind what was reported.
    pub term: u64,
    /// The vote in that term; zero for nobody. Never behind what was reported.
    pub vote: NodeId,
    /// An index that the log holds. May be behind what was reported, as the file's head says.
    pub index: u64,
    /// The term of the entry at that index.
    pub index_term: u64,
}

/// `term 3, vote 1, index 7@3`.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {}, vote {}, index {}", self.term, self.vote, At(self.index, self.index_term))
    }
}

/// Why a watermark cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WatermarkError {
    /// There is no such file.
    #[error("it is missing")]
    Missing,
    /// Neither page can be trusted.
    #[error("{0}")]
    Damaged(String),
    /// The filesystem refused.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What the newest intact page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The life of the directory it belongs to.
    pub incarnation: Incarnation,
    /// Per group.
    pub groups: BTreeMap<GroupId, Mark>,
}

impl Marks {
    /// Whether an index stands lower here than it stood before.
    #[cfg(any(test, feature = "testkit"))]
    pub(super) fn lowers(&self, before: &Marks) -> bool {
        before.groups.iter().any(|(group, mark)| self.groups.get(group).is_none_or(|now| now.index < mark.index))
    }
}

/// What holds the two pages, open for writing.
pub trait Pages: Send {
    /// All bytes of both.
    fn read(&self) -> Result<Vec<u8>, WatermarkError>;

    /// Writes bytes at a place that has been written before, durable when it returns. A crash may leave a part of them.
    fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()>;

    /// Puts other bytes in the place of all, durable when it returns. A crash leaves the old or the new.
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// The pages of a real file.
#[derive(Debug)]
pub struct PageFile {
    path: PathBuf,
    /// Opened once and kept: a descriptor opened later can miss a writeback error already reported to another.
    file: File,
}

impl PageFile {
    fn open(path: &Path) -> Result<PageFile, WatermarkError> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(PageFile { path: path.to_owned(), file }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(WatermarkError::Missing),
            Err(error) => Err(error.into()),
        }
    }
}

impl Pages for PageFile {
    fn read(&self) -> Result<Vec<u8>, WatermarkError> {
        read(&self.path)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(at as u64))?;
        self.file.write_all(bytes)?;
        // Promises 1 and 2: the vote or term that this speaks of leaves the node only after this line. The page was
        // written in full when the file was made, so fdatasync (no less than O_DSYNC) has no metadata to write.
        self.file.sync_data()
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        directory::replace(&self.path, bytes)?;
        self.file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        Ok(())
    }
}

/// The open watermark.
#[derive(Debug)]
pub struct Watermark<S = PageFile> {
    pages: S,
    page_len: usize,
    newest: usize,
    sequence: u64,
    marks: Marks,
    damaged_page: Option<String>,
}

impl Watermark {
    /// Makes the file of a new directory: both pages intact, nothing marked. Durable when it returns.
    pub fn create(path: &Path, incarnation: Incarnation) -> io::Result<()> {
        directory::replace(path, &blank(incarnation))
    }

    /// Opens it for writing.
    pub fn open(path: &Path) -> Result<Watermark, WatermarkError> {
        Watermark::over(PageFile::open(path)?)
    }

    /// What the file says, without opening it for writing; and what is wrong with the page that was not used, if
    /// anything.
    pub fn inspect(path: &Path) -> Result<(Marks, Option<String>), WatermarkError> {
        inspect(&read(path)?)
    }
}

/// What the two pages say, and what is wrong with the one that was not used, if anything.
pub fn inspect(bytes: &[u8]) -> Result<(Marks, Option<String>), WatermarkError> {
    let (_, pages) = decode(bytes)?;
    let (_, _, marks) = newest(&pages)?;
    Ok((marks, pages.into_iter().find_map(Result::err)))
}

/// Both pages of a new directory: intact, nothing marked.
pub fn blank(incarnation: Incarnation) -> Vec<u8> {
    both(&Marks { incarnation, groups: BTreeMap::new() }, 1, PAGE_MIN)
}

impl<S: Pages> Watermark<S> {
    /// Reads the pages and judges them.
    pub fn over(pages: S) -> Result<Watermark<S>, WatermarkError> {
        let (page_len, found) = decode(&pages.read()?)?;
        let (newest, sequence, marks) = newest(&found)?;
        let damaged_page = found.into_iter().find_map(Result::err);
        Ok(Watermark { pages, page_len, newest, sequence, marks, damaged_page })
    }

    /// What it says.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// One group's mark.
    pub fn mark(&self, group: GroupId) -> Mark {
        self.marks.groups.get(&group).copied().unwrap_or_default()
    }

    /// What was wrong with the page that was not used, if anything: a write torn by a crash, or worse.
    pub fn damaged_page(&self) -> Option<&str> {
        self.damaged_page.as_deref()
    }

    /// Moves some groups' marks and makes that durable before it returns.
    pub fn write(&mut self, moved: impl IntoIterator<Item = (GroupId, Mark)>) -> io::Result<()> {
        let moves = |(group, mark): &(GroupId, Mark)| self.marks.groups.get(group) != Some(mark);
        let moved: Vec<_> = moved.into_iter().filter(moves).collect();
        if moved.is_empty() {
            return Ok(());
        }
        let mut marks = self.marks.clone();
        marks.groups.extend(moved);
        let sequence = self.sequence + 1;
        let page = encode(&marks, sequence);
        if page.len() > self.page_len {
            return self.grow(marks, sequence, page.len());
        }
        let older = 1 - self.newest;
        self.pages.write(older * self.page_len, &page)?;
        (self.newest, self.sequence, self.marks) = (older, sequence, marks);
        Ok(())
    }

    /// More groups than fit: larger pages take the place of these.
    fn grow(&mut self, marks: Marks, sequence: u64, needed: usize) -> io::Result<()> {
        let page_len = needed.next_power_of_two();
        self.pages.replace(&both(&marks, sequence, page_len))?;
        (self.page_len, self.newest, self.sequence, self.marks) = (page_len, 1, sequence, marks);
        Ok(())
    }
}

/// Both pages in full, the second the newer.
fn both(marks: &Marks, sequence: u64, page_len: usize) -> Vec<u8> {
    let mut bytes = encode(marks, sequence.saturating_sub(1));
    bytes.resize(page_len, 0);
    bytes.extend(encode(marks, sequence));
    bytes.resize(2 * page_len, 0);
    bytes
}

fn read(path: &Path) -> Result<Vec<u8>, WatermarkError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(WatermarkError::Missing),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn encode(marks: &Marks, sequence: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(HEAD + marks.groups.len() * MARK);
    page.put_slice(&MAGIC);
    page.put_u32_le(0);
    page.put_u32_le((HEAD + marks.groups.len() * MARK) as u32);
    page.put_u64_le(sequence);
    page.put_u64_le(marks.incarnation.0);
    page.put_u32_le(marks.groups.len() as u32);
    for (group, mark) in &marks.groups {
        page.put_u32_le(group.0);
        page.put_u64_le(mark.term);
        page.put_u64_le(mark.vote);
        page.put_u64_le(mark.index);
        page.put_u64_le(mark.index_term);
    }
    let crc = crc32fast::hash(&page[12..]);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
    page
}

type Page = Result<(u64, Marks), String>;

fn decode(bytes: &[u8]) -> Result<(usize, [Page; 2]), WatermarkError> {
    let page_len = bytes.len() / 2;
    if page_len < PAGE_MIN || !page_len.is_power_of_two() || bytes.len() != 2 * page_len {
        return Err(WatermarkError::Damaged(format!("it has {} bytes, not two pages", bytes.len())));
    }
    let (first, second) = bytes.split_at(page_len);
    Ok((page_len, [page(first), page(second)]))
}

fn page(page: &[u8]) -> Page {
    let mut head = &page[..HEAD];
    let mut magic = [0; 8];
    head.copy_to_slice(&mut magic);
    let (crc, length) = (head.get_u32_le(), head.get_u32_le() as usize);
    if magic != MAGIC {
        return Err("it does not begin as a watermark of this version".to_owned());
    }
    if length < HEAD || length > page.len() {
        return Err(format!("its length {length} is impossible"));
    }
    let found = crc32fast::hash(&page[12..length]);
    if found != crc {
        return Err(format!("checksum {found:08x} instead of {crc:08x}"));
    }
    let (sequence, incarnation, count) =
        (head.get_u64_le(), Incarnation(head.get_u64_le()), head.get_u32_le() as usize);
    let mut rest = &page[HEAD..length];
    if rest.len() != count.saturating_mul(MARK) {
        return Err(format!("{count} groups in {} bytes", rest.len()));
    }
    let mut groups = BTreeMap::new();
    while rest.has_remaining() {
        let group = GroupId(rest.get_u32_le());
        let (term, vote) = (rest.get_u64_le(), rest.get_u64_le());
        groups.insert(group, Mark { term, vote, index: rest.get_u64_le(), index_term: rest.get_u64_le() });
    }
    Ok((sequence, Marks { incarnation, groups }))
}

/// Reads a file of these bytes, as an open does.
#[cfg(feature = "fuzzing")]
pub(crate) fn check(bytes: &[u8]) {
    if let Ok((page_len, pages)) = decode(bytes)
        && let Ok((_, sequence, marks)) = newest(&pages)
    {
        assert!(page_len >= PAGE_MIN);
        // The next write depends on what was read.
        let _ = encode(&marks, sequence.wrapping_add(1));
    }
}

/// A file of two pages that begin with the halves of these bytes, each with the magic and the right checksum.
#[cfg(feature = "fuzzing")]
pub(crate) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 2 * PAGE_MIN];
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for (page, half) in file.chunks_exact_mut(PAGE_MIN).zip([first, second]) {
        let length = half.len().min(PAGE_MIN);
        page[..length].copy_from_slice(&half[..length]);
        page[..8].copy_from_slice(&MAGIC);
        let length = u32::from_le_bytes([page[12], page[13], page[14], page[15]]) as usize;
        let crc = crc32fast::hash(&page[12..length.clamp(12, page.len())]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    file
}

fn newest(pages: &[Page; 2]) -> Result<(usize, u64, Marks), WatermarkError> {
    match pages {
        [Ok((a, first)), Ok((b, second))] => Ok(if a > b { (0, *a, first.clone()) } else { (1, *b, second.clone()) }),
        [Ok((a, first)), Err(_)] => Ok((0, *a, first.clone())),
        [Err(_), Ok((b, second))] => Ok((1, *b, second.clone())),
        [Err(a), Err(b)] => Err(WatermarkError::Damaged(format!("both pages are: first: {a}; second: {b}"))),
    }
}
