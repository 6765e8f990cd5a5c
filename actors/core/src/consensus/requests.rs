//! Proposals and membership changes between their arrival and their end.
//!
//! ```text
//!  arrived ─▶ queued ┬─ this node leads ──▶ pending (index, term) ─┬─ committed with that term ─▶ applier
//!              ▲     │                                             ├─ another term there ─▶ surely not in the log
//!              │     └─ another leads ────▶ forwarded (question) ──┤                          │
//!              │                                                   ├─ answered ─▶ client      │
//!              └──────────── refused, not sent, replaced ──────────┴──────────────────────────┘
//! ```
//!
//! A request that is queued past its deadline was surely never in a log; what is pending or forwarded past its deadline
//! is unknown. A retry happens only on the way marked at the bottom: after proof that nothing was done. How much can be
//! here is bounded by admission: every reply handle holds a permit.

use std::time::Duration;

use actorum_machine::members::ChangeRequest;
use bytes::Bytes;

use crate::{entry::EncodedCommand, wire::Refusal};

/// What a request wants in the log.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// A command, the application's or ours.
    Command(EncodedCommand),
    /// A change of the membership.
    Change(ChangeRequest),
}

/// A request that waits for a leader.
#[derive(Debug)]
pub(super) struct Request<T> {
    pub wanted: Wanted,
    pub reply: Option<T>,
    pub deadline: Duration,
    /// A peer asked: it is told at once if this node does not lead, instead of being passed on.
    pub peer: bool,
    /// Not tried before this tick: the last try was refused.
    pub not_before: u64,
    /// Why a change was not made yet. At the deadline its client hears this.
    pub refusal: Option<Refusal>,
}

/// A request whose entry is in this node's log.
#[derive(Debug)]
pub(super) struct Pending<T> {
    pub kept: Retained,
    pub reply: T,
    pub deadline: Duration,
    pub peer: bool,
}

/// What is kept of a proposed entry, to propose it again should another take its place.
#[derive(Debug)]
pub(super) enum Retained {
    /// The entry's bytes, shared with the log.
    Command(Bytes),
    /// The change.
    Change(ChangeRequest),
}

impl<T> Pending<T> {
    /// Its entry is surely not in the log: back to the start.
    pub(super) fn again(self, not_before: u64) -> Request<T> {
        let wanted = match self.kept {
            Retained::Command(bytes) => {
                Wanted::Command(EncodedCommand::received(&bytes).expect("it was encoded before it was proposed"))
            }
            Retained::Change(change) => Wanted::Change(change),
        };
        let (reply, deadline, peer) = (Some(self.reply), self.deadline, self.peer);
        Request { wanted, reply, deadline, peer, not_before, refusal: None }
    }
}
