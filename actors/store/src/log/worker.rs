//! The thread that blocks, so that no other has to: it takes up what waits, commits it as one, and reports.
//!
//! ```text
//!  Appender ══bounded channel══▶ Worker: take all that waits ─▶ begin, finish ─▶ Completed, Completed, ...
//! ```
//!
//! Between batches, and after them, it lets the watermark's index follow and the log be rewritten where that is due;
//! when the appender goes it closes the store.
//!
//! Deliberately absent: retries. After an error nothing on the disk is known any more; the store answers
//! [`StoreError::Closed`] until the process opens it again.

#![allow(clippy::disallowed_methods, reason = "a real disk has a thread and takes real time")]

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    commit::{Committer, Shared, Stale},
    engine::{Engine, caught},
    record,
    rewrite::Rewriter,
    store::*,
    watermark::{Pages, Watermark},
};

/// How often an idle store looks whether room is short, if there is something that could be freed.
const LOOK: Duration = Duration::from_secs(1);

/// How often a write that waits for room looks whether there is some.
const ROOM_LOOK: Duration = Duration::from_millis(50);

/// How much it takes up at once, how the watermark's index follows, and how long it is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommitPolicy {
    pub(super) max_waiting: usize,
    pub(super) max_commit_bytes: usize,
    pub(super) watermark_bytes: u64,
    pub(super) watermark_commits: u32,
    pub(super) watermark_quiet: Duration,
    pub(super) close_within: Duration,
}

/// The store's thread.
pub(super) struct Worker<E, S> {
    committer: Committer<E, S>,
    rewriter: Rewriter<E>,
    policy: CommitPolicy,
    completed: Completions,
}

/// What the thread does next.
enum Next {
    Commit(Submitted),
    /// Nothing came for a while.
    RaiseIndex,
    /// Nothing waits.
    Rewrite,
    /// Nothing waits, and the beginning of a log must still be removed.
    TruncatePrefix,
    Close,
}

/// What the appender sends, with what was taken up while something waited for room.
struct Submissions {
    channel: Receiver<Submitted>,
    early: VecDeque<Submitted>,
}

impl Submissions {
    fn try_recv(&mut self) -> Result<Submitted, TryRecvError> {
        self.early.pop_front().map_or_else(|| self.channel.try_recv(), Ok)
    }

    fn recv_timeout(&mut self, timeout: Duration) -> Result<Submitted, RecvTimeoutError> {
        self.early.pop_front().map_or_else(|| self.channel.recv_timeout(timeout), Ok)
    }

    fn recv(&mut self) -> Result<Submitted, RecvTimeoutError> {
        self.early.pop_front().map_or_else(|| self.channel.recv().map_err(|_| RecvTimeoutError::Disconnected), Ok)
    }

    /// Waits for so long, and says whether the appender is gone. What comes is taken up later. Bound: that of the core,
    /// which submits one batch after the other.
    fn wait(&mut self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        loop {
            match self.channel.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(next) => self.early.push_back(next),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }
}

/// A batch on its way.
struct Submitted {
    batch_number: BatchNumber,
    batch: Batch,
}

impl Submitted {
    fn bytes(&self) -> usize {
        self.batch.writes.iter().flat_map(|write| &write.entries).map(record::entry_len).sum()
    }
}

impl<E: Engine, S: Pages + 'static> Worker<E, S> {
    /// Starts the thread of a store.
    pub(super) fn start(
        shared: Arc<Shared<E>>,
        watermark: Watermark<S>,
        rewriter: Rewriter<E>,
        policy: CommitPolicy,
        completed: Completions,
    ) -> Box<dyn LogAppender> {
        let (submit, submitted) = sync_channel(policy.max_waiting.max(1));
        let (done, closed) = sync_channel(1);
        let close_within = policy.close_within;
        let committer = Committer::new(shared.clone(), watermark);
        let worker = Worker { committer, rewriter, policy, completed: completed.clone() };
        let spawned = thread::Builder::new().name("actorum-store".to_owned()).spawn(move || {
            worker.run(submitted);
            let _ = done.send(());
        });
        if let Err(error) = spawned {
            // Every submit finds the channel closed and says so.
            drop(shared.take(&format!("its thread could not be started: {error}")));
        }
        Box::new(Appender { submit: Some(submit), next: 0, completed, closed, close_within })
    }

    fn run(mut self, submitted: Receiver<Submitted>) {
        let mut submitted = Submissions { channel: submitted, early: VecDeque::new() };
        let dead = loop {
            let step = match self.next(&mut submitted) {
                Next::Commit(first) => self.commit_all(first, &mut submitted),
                Next::RaiseIndex => caught(|| self.committer.raise_index()),
                Next::Rewrite => self.rewrite(0),
                Next::TruncatePrefix => caught(|| self.truncate_prefix()).and_then(|()| self.rewrite(0)),
                Next::Close => break None,
            };
            if let Err(error) = step {
                break Some(error.to_string());
            }
        };
        match dead {
            None => self.close(),
            Some(cause) => self.stay_dead(&cause, submitted),
        }
    }

    fn next(&mut self, submitted: &mut Submissions) -> Next {
        let truncating = self.committer.is_truncating_prefix();
        self.rewriter.note_truncating(truncating);
        let idle = match self.rewriter.is_under_way() {
            true => Some(Next::Rewrite),
            // A node that takes no new work makes no commits that could remove the rest of the log's beginning, and no
            // rewriting begins before that is removed. So it is removed here.
            false => (truncating && self.rewriter.has_room(0)).then_some(Next::TruncatePrefix),
        };
        if let Some(idle) = idle {
            return match submitted.try_recv() {
                Ok(first) => Next::Commit(first),
                Err(TryRecvError::Empty) => idle,
                Err(TryRecvError::Disconnected) => Next::Close,
            };
        }
        let stale = self.committer.stale.commits > 0;
        let first = match stale {
            true => submitted.recv_timeout(self.policy.watermark_quiet),
            false if self.rewriter.watches(&self.committer) => submitted.recv_timeout(LOOK),
            false => submitted.recv(),
        };
        match first {
            Ok(first) => Next::Commit(first),
            Err(RecvTimeoutError::Timeout) if stale => Next::RaiseIndex,
            Err(RecvTimeoutError::Timeout) => Next::Rewrite,
            Err(RecvTimeoutError::Disconnected) => Next::Close,
        }
    }

    /// Removes the next slice of the beginnings of logs, with a commit of its own.
    fn truncate_prefix(&mut self) -> Result<(), StoreError> {
        let writes =
            self.committer.truncating_prefix().into_iter().map(|group| Write { group, ..Write::default() }).collect();
        self.commit(vec![Batch { writes, sync: true }]).map(drop)
    }

    /// Takes up what waits, makes it durable as one, and reports each batch in order.
    fn commit_all(&mut self, first: Submitted, submitted: &mut Submissions) -> Result<(), StoreError> {
        let mut bytes = first.bytes();
        let mut taken = vec![first];
        while bytes < self.policy.max_commit_bytes {
            let Ok(next) = submitted.try_recv() else { break };
            bytes += next.bytes();
            taken.push(next);
        }
        let sizes: Vec<(BatchNumber, u64)> = taken.iter().map(|s| (s.batch_number, s.bytes() as u64)).collect();
        let room = self.wait_for_room(bytes, &mut taken, submitted);
        let started = Instant::now();
        // Whatever kept them from being written, each is answered.
        let result =
            room.and_then(|()| caught(|| self.commit(taken.into_iter().map(|submitted| submitted.batch).collect())));
        for (batch_number, bytes) in sizes {
            let result = match &result {
                Ok(sync) => Ok(Written { bytes, took: started.elapsed(), sync: *sync }),
                Err(error) => Err(error.clone()),
            };
            self.report(Completed { batch_number, result });
        }
        result?;
        let committed = bytes;
        let Stale { bytes, commits } = self.committer.stale;
        if bytes >= self.policy.watermark_bytes || commits >= self.policy.watermark_commits {
            // After the completions: no proposal waits for it.
            caught(|| self.committer.raise_index())?;
        }
        self.rewrite(committed)
    }

    /// Begins no write for which there is no room, and waits for room as long as it takes: an engine that met a full
    /// disk is dead, and the program that fills the disk may make room again. Meanwhile it frees what it can by itself.
    fn wait_for_room(
        &mut self,
        bytes: usize,
        taken: &mut [Submitted],
        submitted: &mut Submissions,
    ) -> Result<(), StoreError> {
        if self.rewriter.has_room(bytes) {
            return Ok(());
        }
        tracing::debug!(bytes, "the disk is full: what is to be written waits until there is room");
        // What was promised until now is covered by the watermark, however long this takes. That needs no room.
        caught(|| self.committer.raise_index())?;
        while !self.rewriter.has_room(bytes) {
            // In each round, so that the log writer sees that the log waits for room and that the disk does not hang.
            self.rewriter.log_waits_for(Some(bytes));
            // Freeing room does not wait for room. The reserve is not lent to this write: if another program takes the
            // room, a commit ends the node, while a rewriting is only given up.
            if self.rewriter.has_room(0) {
                self.compact_early(taken, submitted)?;
                // Nothing is rewritten before the beginnings of the logs are removed.
                if self.committer.is_truncating_prefix() {
                    caught(|| self.truncate_prefix())?;
                }
            }
            self.rewriter.note_truncating(self.committer.is_truncating_prefix());
            self.rewrite(0)?;
            if submitted.wait(ROOM_LOOK) {
                return Err(StoreError::Closed("it was closed before there was room on the disk".to_owned()));
            }
        }
        tracing::debug!("there is room again for what was to be written");
        self.rewriter.log_waits_for(None);
        Ok(())
    }

    /// Commits the compactions among the waiting batches before the rest of these: a compaction removes only what is
    /// durable, and applied by the state machine. They are reported with the batches that they came in.
    fn compact_early(&mut self, taken: &mut [Submitted], submitted: &mut Submissions) -> Result<(), StoreError> {
        // In their order: the log refuses one that a later one has overtaken.
        let waiting = taken.iter_mut().chain(&mut submitted.early);
        for write in waiting.flat_map(|submitted| &mut submitted.batch.writes) {
            // A compaction that follows a snapshot which is not installed yet, or cuts entries that are not written
            // yet, has to wait.
            if write.snapshot.is_some() {
                break;
            }
            let Some(compact) = &write.compact else { continue };
            if !self.committer.can_compact(write.group, compact) {
                break;
            }
            let cut = Write { group: write.group, compact: write.compact.take(), ..Write::default() };
            caught(|| self.commit(vec![Batch { writes: vec![cut], sync: true }]))?;
        }
        Ok(())
    }

    /// After the completions: nothing that was submitted before waits for it.
    fn rewrite(&mut self, committed: usize) -> Result<(), StoreError> {
        caught(|| self.rewriter.go_on(&mut self.committer, committed))
    }

    /// Returns how long making it durable took.
    fn commit(&mut self, taken: Vec<Batch>) -> Result<Duration, StoreError> {
        let begun = self.committer.begin(taken)?;
        let (sync, started) = (begun.sync, Instant::now());
        self.rewriter.committed(&begun.kept);
        self.committer.finish(begun)?;
        Ok(if sync { started.elapsed() } else { Duration::ZERO })
    }

    /// The appender is gone and everything it submitted is done.
    fn close(mut self) {
        if let Err(error) = caught(|| self.committer.raise_index()) {
            // Nothing was promised since the last completion: only the watermark stays as stale as it was.
            tracing::warn!(%error, "the store did not close in order");
        }
        self.rewriter.close();
        let open = self.committer.take("it was closed");
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
    }

    /// An error is final: what waits and what comes is answered with its cause, and nothing is written.
    fn stay_dead(mut self, cause: &str, submitted: Submissions) {
        // The submitter gets the error; the node that stops because of it logs it.
        tracing::debug!(cause, "the store died");
        // Held until the appender is dropped: dropping sled now could hang this thread, and no submitter would get an
        // answer.
        let open = self.committer.take(cause);
        let Submissions { channel, early } = submitted;
        for Submitted { batch_number, .. } in early.into_iter().chain(channel) {
            self.report(Completed { batch_number, result: Err(StoreError::Closed(cause.to_owned())) });
        }
        self.rewriter.close();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
    }

    fn report(&self, completed: Completed) {
        let batch_number = completed.batch_number;
        if catch_unwind(AssertUnwindSafe(|| (self.completed)(completed))).is_err() {
            tracing::error!(?batch_number, "the receiver of completions panicked");
        }
    }
}

/// The writing half: a channel to the store's thread.
struct Appender {
    submit: Option<SyncSender<Submitted>>,
    next: u64,
    completed: Completions,
    closed: Receiver<()>,
    close_within: Duration,
}

impl LogAppender for Appender {
    fn submit(&mut self, batch: Batch) -> BatchNumber {
        self.next += 1;
        let batch_number = BatchNumber(self.next);
        let submit = self.submit.as_ref().expect("taken only by drop");
        // The store's thread receives until this sender is dropped, whether the store works or not. It is gone only if
        // it never began. Then it reports nothing, so this report cannot overtake one of its own.
        if submit.send(Submitted { batch_number, batch }).is_err() {
            (self.completed)(Completed {
                batch_number,
                result: Err(StoreError::Closed("it has no thread".to_owned())),
            });
        }
        batch_number
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.submit = None;
        match self.closed.recv_timeout(self.close_within) {
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!("the store did not close in time: its thread is left behind");
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
        }
    }
}
