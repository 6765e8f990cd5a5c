//! The lives of directories: how a directory that was put back from an older copy, or that runs twice, is found out.
//!
//! A *life* is one opening of a data directory. Each draws a nonce, durable before the first frame leaves. The hello
//! shows the lives of the sender's directory, oldest first; a peer has one of them on [`Record`], durable before it
//! counts any message of that life, with the highest index that the node itself has acknowledged to it. A copy of the
//! directory, put back or started beside the original, goes on from another past:
//!
//! ```text
//!  the directory     boot 1, nonce a ── boot 2, nonce b          on record: b
//!  the copy          boot 1, nonce a ── boot 2, nonce c          shows a, c: b is not among them
//!  a copy made while it ran, in life b          ── boot 3, d     shows a, b, d: but d began with a log that ends below what b
//!                                                                had acknowledged, in the term in which it had
//! ```
//!
//! Which lives a hello shows: all since the oldest that some peer may have on record (peers say so in their hellos),
//! and at least the last [`SHOWN_AT_LEAST`]. So a node that was opened many times without meeting a peer is not taken
//! for a copy. Bound: [`SHOWN_AT_MOST`]; beyond it lives that no peer is known to have on record are dropped, from the
//! middle.
//!
//! What stays undetected: a copy that meets only nodes which never met the later life (a quorum of such loses what the
//! later life had acknowledged, until somebody who met it is back); a copy made in the life on record whose log ends
//! below what was acknowledged to others only, or in the last [`FLUSH_EVERY`]; what a leader wrote to its own disk,
//! which it acknowledges to nobody; and whatever a node of the first version does, which has no nonces.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actorum_machine::ids::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};

use crate::{
    identity::Identity,
    planted::{self, Planted},
    wire::{MessageKind, RaftMessage},
};

/// The newest lives, which are always shown: a peer may miss this many openings.
pub const SHOWN_AT_LEAST: usize = 16;

/// The most lives that a hello shows.
pub const SHOWN_AT_MOST: usize = 128;

/// How often acknowledged indexes are recorded at most. What was acknowledged since is not compared after a crash. Not
/// more often: each time the filesystem commits its journal, and the syncs of the log wait for that.
pub const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// The nodes that are kept on record. Bound: one per id for which this authority issued a certificate, and this many.
const MAX_RECORDS: usize = 4096;

/// One opening of a data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// How often the directory had been opened, this time included.
    pub boot: u64,
    /// Drawn for this opening.
    pub nonce: u64,
    /// The term that the directory held when it was opened.
    #[serde(default)]
    pub term: u64,
    /// The last index of its log then.
    #[serde(default)]
    pub index: u64,
}

impl Life {
    /// What tells it from all others of its directory.
    pub fn key(&self) -> LifeKey {
        LifeKey { boot: self.boot, nonce: self.nonce }
    }
}

/// Which life of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LifeKey {
    /// The number of the opening.
    pub boot: u64,
    /// Its nonce.
    pub nonce: u64,
}

/// What is known of the newest life of a node's directory that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The directory.
    pub incarnation: Incarnation,
    /// The opening.
    pub life: Life,
    /// The highest index that the node itself has acknowledged as durable, zero if none. Never a leader's word.
    #[serde(default)]
    pub index: u64,
    /// The term in which it did.
    #[serde(default)]
    pub term: u64,
}

impl Record {
    /// Whether a directory that shows these lives can be the one on record, or what became of it.
    pub fn fits(&self, incarnation: Incarnation, lives: &[Life]) -> bool {
        // Another directory is judged by its incarnation; one that shows nothing is of the first version.
        if incarnation != self.incarnation || lives.is_empty() {
            return true;
        }
        let Some(at) = lives.iter().position(|life| life.key() == self.life.key()) else { return false };
        let Some(next) = lives.get(at + 1) else { return true };
        if planted::is(Planted::LogEndNotCompared) {
            return true;
        }
        // Terms never run backwards. And what was acknowledged in a term is cut off only by a leader of a later one,
        // whose term is on the disk before its entries are.
        next.term >= self.term.max(self.life.term) && (next.term > self.term || next.index >= self.index)
    }

    /// Whether this record, which a peer holds against a node, proves to that node that its directory is a copy. The
    /// node shows these lives, the last of which is its present one.
    ///
    /// A peer whose own directory was put back may have an old life on record, which the node no longer shows because
    /// every member has confirmed a later one. So a past life that is not shown proves nothing. Proof is a later life
    /// than the present one, another nonce for an opening that is shown, or a log that ends too early.
    pub fn proves_copy(&self, incarnation: Incarnation, lives: &[Life]) -> bool {
        let Some(present) = lives.last() else { return false };
        let is_known = |boot: u64| boot > present.boot || lives.iter().any(|life| life.boot == boot);
        !self.fits(incarnation, lives) && is_known(self.life.boot)
    }
}

/// What is kept beside the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The directory's.
    pub incarnation: Incarnation,
    /// The lives of this directory, oldest first; the last is the present one.
    #[serde(default)]
    pub own: Vec<Life>,
    /// Which of them peers have on record, by their own word.
    #[serde(default)]
    pub confirmed: BTreeMap<NodeId, LifeKey>,
    /// The oldest of them that some peer may have on record; zero while that is not known.
    #[serde(default)]
    pub needed_since: u64,
    /// What is on record of others.
    #[serde(default)]
    pub peers: BTreeMap<NodeId, Record>,
}

impl Content {
    /// Of a directory that has kept nothing yet.
    pub fn new(incarnation: Incarnation) -> Content {
        let (own, confirmed, peers) = Default::default();
        Content { incarnation, own, confirmed, needed_since: 0, peers }
    }

    /// One more life begins: lives that no peer can have on record any more are dropped.
    fn begin(&mut self, present: Life) {
        self.own.push(present);
        let newest = self.own.len().saturating_sub(SHOWN_AT_LEAST);
        let mut nth = 0;
        self.own.retain(|life| {
            nth += 1;
            nth > newest || life.boot >= self.needed_since
        });
        self.thin();
    }

    /// Brings the lives within their bound. They are dropped from the middle: a peer that was away for long has one of
    /// the oldest on record, and a peer that is connected has said which one it has.
    fn thin(&mut self) {
        while self.own.len() > SHOWN_AT_MOST {
            let said: BTreeSet<LifeKey> = self.confirmed.values().copied().collect();
            let middle = SHOWN_AT_MOST / 2..self.own.len() - 1;
            // The one after a life on record is compared with it, so it stays as well.
            let stays =
                |at: usize| said.contains(&self.own[at].key()) || at > 0 && said.contains(&self.own[at - 1].key());
            let goes = middle.clone().find(|at| !stays(*at)).unwrap_or(middle.start);
            self.own.remove(goes);
        }
    }
}

/// What holds the content, durably.
pub trait LifeFile: Send {
    /// Writes it, in a way that a crash before [`sync`](Self::sync) leaves what was there.
    fn write(&mut self, content: &Content) -> io::Result<()>;

    /// Makes what was written last durable, in the place of what was there.
    fn sync(&mut self) -> io::Result<()>;
}

/// Of a store that keeps nothing.
struct NoFile;

impl LifeFile for NoFile {
    fn write(&mut self, _: &Content) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lives of this directory, and what is on record of others.
pub struct LifeBook {
    state: Mutex<State>,
    /// `None` once the directory is closed: another process may have it. Code that locks both locks this one before
    /// `state`.
    file: Mutex<Option<Box<dyn LifeFile>>>,
}

struct State {
    content: Content,
    /// Of this opening, as they are shown.
    shown: Arc<[Life]>,
    /// Whether the content says more than the file.
    ahead: bool,
    flushing: bool,
    /// Whether it was said that it cannot be written.
    failed: bool,
}

impl LifeBook {
    /// Begins a life of a directory that has kept `content`. The life is durable when it returns.
    pub fn open(mut file: Box<dyn LifeFile>, mut content: Content, present: Life) -> io::Result<Arc<LifeBook>> {
        content.begin(present);
        file.write(&content)?;
        // Promise 6: no frame of this life may leave before its nonce is durable.
        file.sync()?;
        Ok(LifeBook::with(Some(file), content))
    }

    /// Of a store that keeps no lives: it shows none, and what it has on record of others lasts as long as the process.
    pub fn volatile(incarnation: Incarnation) -> Arc<LifeBook> {
        LifeBook::with(Some(Box::new(NoFile)), Content::new(incarnation))
    }

    fn with(file: Option<Box<dyn LifeFile>>, content: Content) -> Arc<LifeBook> {
        let shown = content.own.clone().into();
        let state = State { content, shown, ahead: false, flushing: false, failed: false };
        Arc::new(LifeBook { state: Mutex::new(state), file: Mutex::new(file) })
    }

    /// The lives that this node's hello shows.
    pub fn shown(&self) -> Arc<[Life]> {
        self.state().shown.clone()
    }

    /// What is on record of a node.
    pub fn record_of(&self, id: NodeId) -> Option<Record> {
        self.state().content.peers.get(&id).copied()
    }

    /// Whether what this node shows fits what is on record of it; if not, the record.
    pub fn check(&self, theirs: &Identity) -> Result<(), Record> {
        match self.record_of(theirs.id) {
            Some(record) if !record.fits(theirs.incarnation, &theirs.lives) => Err(record),
            _ => Ok(()),
        }
    }

    /// Whether the present life of that node is on record, durable; or has no nonce to be told by.
    pub fn is_on_record(&self, theirs: &Identity) -> bool {
        let Some(life) = theirs.lives.last() else { return true };
        let record = self.record_of(theirs.id);
        record.is_some_and(|record| record.incarnation == theirs.incarnation && record.life.key() == life.key())
    }

    /// Puts the present life of a node on record, durable when it returns. Blocks on the disk.
    pub fn record(&self, theirs: &Identity) -> io::Result<()> {
        let Some(life) = theirs.lives.last().copied() else { return Ok(()) };
        let mut file = self.file();
        let Some(file) = file.as_mut() else { return Err(io::Error::other("the directory is closed")) };
        if self.is_on_record(theirs) {
            return Ok(());
        }
        // The past is judged again here, where no other record can come between.
        self.check(theirs).map_err(|_| io::Error::other("a later life of it was recorded meanwhile"))?;
        let mut content = self.state().content.clone();
        let before = content.peers.get(&theirs.id).filter(|record| record.incarnation == theirs.incarnation);
        // What an earlier life has acknowledged, the later ones hold, too.
        let (index, term) = before.map_or((0, 0), |record| (record.index, record.term));
        let record = Record { incarnation: theirs.incarnation, life, index, term };
        if content.peers.len() >= MAX_RECORDS && !content.peers.contains_key(&theirs.id) {
            return Err(io::Error::other(format!("{MAX_RECORDS} nodes are on record already")));
        }
        content.peers.insert(theirs.id, record);
        file.write(&content)?;
        // Promise 6: a message of this life may count only once the life is on record for good: a vote or an
        // acknowledgement that counted is one that a copy of the directory knows nothing of.
        if !planted::is(Planted::LifeNotSynced) {
            file.sync()?;
        }
        self.state().content.peers.insert(theirs.id, record);
        Ok(())
    }

    /// Notes the highest index that a node, which was let in, acknowledges as durable in these messages.
    pub fn note_acknowledged(&self, from: NodeId, messages: &[RaftMessage]) {
        let acknowledged = messages.iter().filter(|m| m.kind == MessageKind::AppendResponse && !m.reject);
        let Some((term, index)) = acknowledged.map(|m| (m.term, m.index)).max() else { return };
        let mut state = self.state();
        if let Some(record) = state.content.peers.get_mut(&from)
            && (term, index) > (record.term, record.index)
        {
            (record.term, record.index) = (term, index);
            state.ahead = true;
        }
    }

    /// A peer has that life of this directory on record, it says.
    pub fn confirmed(&self, by: NodeId, life: LifeKey) {
        let mut state = self.state();
        let ours = state.content.own.iter().any(|own| own.key() == life);
        if ours && state.content.confirmed.insert(by, life) != Some(life) {
            state.ahead = true;
        }
    }

    /// These nodes are peers, as far as this node knows, and those are peers no longer.
    pub fn set_peers<'a>(&self, mut peers: impl Iterator<Item = &'a NodeId>, retired: &BTreeSet<NodeId>) {
        let mut state = self.state();
        let content = &mut state.content;
        content.confirmed.retain(|id, _| !retired.contains(id));
        content.peers.retain(|id, _| !retired.contains(id));
        if peers.all(|id| content.confirmed.contains_key(id))
            && let Some(oldest) = content.confirmed.values().map(|life| life.boot).min()
        {
            content.needed_since = content.needed_since.max(oldest);
        }
    }

    /// Whether there is something to [`flush`](Self::flush). Whoever hears so does it.
    pub fn wants_flush(&self) -> bool {
        let mut state = self.state();
        let wants = state.ahead && !state.flushing;
        state.flushing |= wants;
        wants
    }

    /// Records how far acknowledged indexes are. Blocks on the disk. Nothing depends on its success.
    pub fn flush(&self) {
        let mut file = self.file();
        let content = {
            let mut state = self.state();
            state.ahead = false;
            state.content.clone()
        };
        let written = file.as_mut().map_or(Ok(()), |file| file.write(&content).and_then(|()| file.sync()));
        let mut state = self.state();
        let said = std::mem::replace(&mut state.failed, written.is_err());
        match written {
            Ok(()) => {}
            // Logged once for as long as it lasts: the write is tried again.
            Err(error) if said => {
                tracing::debug!(%error, "the record of what peers have acknowledged still cannot be written")
            }
            Err(error) => {
                tracing::warn!(%error, "the record of what peers have acknowledged cannot be written: trying again")
            }
        }
        state.ahead |= state.failed;
        state.flushing = false;
    }

    /// The directory is closed: nothing is written to it any more.
    pub fn close(&self) {
        self.file().take();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is consistent after every line, so a panic of another thread does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> MutexGuard<'_, Option<Box<dyn LifeFile>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for LifeBook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LifeBook").field("content", &self.state().content).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "lives_tests.rs"]
mod tests;
