//! Linearizable reads: one round at a time, everything that waits in one round (dissertation section 6.4).
//!
//! On the leader a round is a ReadIndex of raft-rs; elsewhere it is one question to the leader. raft-rs
//! drops a ReadIndex in silence when the leader has not committed in its term, and forgets it on a change of term:
//! so a round starts only when it can be answered, and is started again when the term moved on.
//!
//! A confirmed read waits here until its index is applied, and its deadline still counts: a node that is cut off
//! right after the confirmation may never hear of that index.

use std::time::Duration;

/// One waiting read.
#[derive(Debug)]
pub(super) struct Reader<T> {
    pub reply: T,
    pub deadline: Duration,
    /// A peer asked: it is told at once if this node does not lead, instead of being passed on.
    pub peer: bool,
}

/// The reads of one group.
#[derive(Debug)]
pub(super) struct Reads<T> {
    /// Not part of a round yet.
    pub waiting: Vec<Reader<T>>,
    /// A ReadIndex round of this leader: its context, and the readers it serves.
    pub round: Option<(u64, Vec<Reader<T>>)>,
    /// A question to the leader: its number, and the readers it serves.
    pub asked: Option<(u64, Vec<Reader<T>>)>,
    /// Confirmed, and waiting for their index to be applied.
    pub confirmed: Vec<(u64, Reader<T>)>,
    /// No question before this tick: the last one was refused.
    pub not_before: u64,
}

impl<T> Default for Reads<T> {
    fn default() -> Self {
        Reads { waiting: Vec::new(), round: None, asked: None, confirmed: Vec::new(), not_before: 0 }
    }
}

impl<T> Reads<T> {
    /// How many reads wait, in any state.
    pub(super) fn len(&self) -> usize {
        let in_round = |round: &Option<(u64, Vec<Reader<T>>)>| round.as_ref().map_or(0, |(_, readers)| readers.len());
        self.waiting.len() + in_round(&self.round) + in_round(&self.asked) + self.confirmed.len()
    }

    /// The round can no longer be answered: its readers join the next one.
    pub(super) fn restart(&mut self) {
        if let Some((_, readers)) = self.round.take() {
            self.waiting.extend(readers);
        }
    }

    /// Takes the confirmed ones that may be served: their index is applied, or a peer asked, which waits for
    /// the index itself.
    pub(super) fn due(&mut self, applied: u64) -> impl Iterator<Item = (u64, T)> {
        let due: Vec<_> = self.confirmed.extract_if(.., |(index, reader)| reader.peer || *index <= applied).collect();
        due.into_iter().map(|(index, reader)| (index, reader.reply))
    }

    /// Removes those whose time is up and that no leader confirmed.
    pub(super) fn expire_unconfirmed(&mut self, now: Duration) -> Vec<Reader<T>> {
        let mut late = Vec::new();
        for readers in std::iter::once(&mut self.waiting)
            .chain(self.round.iter_mut().map(|(_, readers)| readers))
            .chain(self.asked.iter_mut().map(|(_, readers)| readers))
        {
            late.extend(readers.extract_if(.., |reader| reader.deadline <= now));
        }
        late
    }

    /// Removes those whose time is up and that were confirmed at an index that is not applied here.
    pub(super) fn expire_confirmed(&mut self, now: Duration) -> Vec<(u64, Reader<T>)> {
        self.confirmed.extract_if(.., |(_, reader)| reader.deadline <= now).collect()
    }

    /// Takes all of them, for the end.
    pub(super) fn drain(&mut self) -> Vec<Reader<T>> {
        self.restart();
        if let Some((_, readers)) = self.asked.take() {
            self.waiting.extend(readers);
        }
        self.waiting.extend(std::mem::take(&mut self.confirmed).into_iter().map(|(_, reader)| reader));
        std::mem::take(&mut self.waiting)
    }
}
