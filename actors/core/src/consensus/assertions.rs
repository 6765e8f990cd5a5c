//! What must hold after each transition of the core, one fact per assertion.
//!
//! An assertion that fails is a mistake of this crate or of raft-rs, never of a peer or a client: what they send is
//! checked before it gets here (see `validate`). The panic stops the system with its text, in release builds as well: a
//! node that stops can be started again, while one that goes on may acknowledge what is lost.
//!
//! All of it is a handful of comparisons, whatever the size of the log; the bench `core` says what that costs.
//!
//! Deliberately absent: what needs more than one node to see; the simulator's invariants look at that.

use std::fmt::Write as _;

use super::{Consensus, PendingWrite};
use crate::wire::{MessageKind, RaftMessage};

/// What was seen after the last transition.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) term: u64,
    pub(super) durable_term: u64,
    pub(super) commit: u64,
    pub(super) applied: u64,
    pub(super) persisted_write: u64,
}

impl<T> Consensus<T> {
    /// Called by every drain, after all input was processed. The cost does not depend on how much input there was.
    /// Public for the bench that says what it costs.
    pub fn assert_transition(&mut self) {
        let log = &self.raw.raft.raft_log;
        let last = log.last_index();
        let now = Seen {
            term: self.raw.raft.term,
            durable_term: self.durable_term,
            commit: log.committed,
            applied: log.applied,
            persisted_write: self.pending_writes.front().map_or(self.next_write, |oldest| oldest.write),
        };
        let before = std::mem::replace(&mut self.seen, now);
        // Raft section 5.1.
        assert!(now.term >= before.term, "the term fell from {} to {}", before.term, now.term);
        assert!(
            now.durable_term >= before.durable_term,
            "the durable term fell from {} to {}",
            before.durable_term,
            now.durable_term
        );
        assert!(
            now.durable_term <= now.term,
            "term {} is durable, and this node is only in term {}",
            now.durable_term,
            now.term
        );
        // Raft section 5.3: what is committed stays.
        assert!(now.commit >= before.commit, "the commit index fell from {} to {}", before.commit, now.commit);
        assert!(now.applied >= before.applied, "the applied index fell from {} to {}", before.applied, now.applied);
        assert!(now.applied <= now.commit, "entry {} is applied, and {} is committed", now.applied, now.commit);
        assert!(now.commit <= last, "entry {} is committed, and the log ends at {last}", now.commit);
        // A message that speaks of an entry waits for the newest write. So the entry is durable when the message
        // leaves.
        assert!(
            !self.pending_writes.is_empty() || log.persisted == last,
            "no write is pending, and the log is durable up to {}, not up to its end at {last}",
            log.persisted
        );
        assert!(log.persisted <= last, "entry {} is durable, and the log ends at {last}", log.persisted);
        // What is not in memory is read from the disk. A snapshot clears the memory before it is durable: until it is,
        // the entries that it replaces are still on the disk, and nothing reads them.
        let freed = self.raw.store().last_freed();
        assert!(
            freed <= log.persisted || self.is_installing_at(freed),
            "entry {freed} has left memory, and the log is durable up to {}",
            log.persisted
        );
        assert!(
            now.persisted_write >= before.persisted_write,
            "write {} became durable after write {}",
            now.persisted_write,
            before.persisted_write
        );
        assert!(
            !self.pending_writes.is_empty() || (self.disk.bytes, self.disk.deferred) == (0, 0),
            "no write is pending, and {} bytes and {} messages wait for one",
            self.disk.bytes,
            self.disk.deferred
        );
    }

    /// Whether a snapshot at this index is on its way to the disk.
    fn is_installing_at(&self, index: u64) -> bool {
        self.pending_writes.iter().filter_map(|write| write.restore.as_ref()).any(|snapshot| snapshot.index == index)
    }

    /// Before a write is handed to the log writer: writes are numbered in the order in which they become durable.
    pub(super) fn assert_follows(&self, next: &PendingWrite) {
        let Some(newest) = self.pending_writes.back() else { return };
        assert!(newest.write < next.write, "write {} follows write {}", next.write, newest.write);
        assert!(newest.ready < next.ready, "Ready {} follows Ready {}", next.ready, newest.ready);
        assert!(newest.term <= next.term, "a write of term {} follows one of term {}", next.term, newest.term);
    }

    /// After the leader appended a client's proposal, which is answered by index and term.
    pub(super) fn assert_in_log(&self, index: u64, term: u64) {
        let found = self.raw.raft.raft_log.term(index).unwrap_or(0);
        assert!(found == term, "the proposal was appended as {index}@{term}, and the log has term {found} there");
    }

    /// After a change was made: raft-rs counts by the voters that the membership has. Of learners it may have more,
    /// since each leader adds whom it sends a genesis to (`LogView::snapshot`).
    pub(super) fn assert_agrees(&self, index: u64) {
        let (counted, recorded) = (self.configuration(), self.membership.configuration());
        assert!(
            counted.voters == recorded.voters && counted.outgoing == recorded.outgoing,
            "after the change in entry {index} raft-rs has {counted}, and the membership is {recorded}"
        );
        assert!(
            recorded.learners.is_subset(&counted.learners) && recorded.next_learners == counted.next_learners,
            "after the change in entry {index} raft-rs has {counted}, and the membership is {recorded}"
        );
    }

    /// Before a message leaves: the term that it speaks of is durable (promise 2), and with it the vote. That an
    /// acknowledged entry is durable follows from the order of the writes: an acknowledgement waits for the newest of
    /// them.
    pub(super) fn assert_durable(&self, message: &RaftMessage) {
        let asks_before_voting = matches!(message.kind, MessageKind::PreVote | MessageKind::PreVoteResponse);
        assert!(
            asks_before_voting || message.term <= self.durable_term,
            "a message of term {} leaves, and term {} is durable: {}",
            message.term,
            self.durable_term,
            shown(message)
        );
    }
}

/// Without its entries, which are the user's.
fn shown(message: &RaftMessage) -> String {
    let mut text = format!("{:?} of term {}, index {}", message.kind, message.term, message.index);
    if !message.entries.is_empty() {
        let _ = write!(text, ", {} entries", message.entries.len());
    }
    text
}
