//! Giving a snapshot to other nodes: places, a rate, and one piece of the file for each question.

use std::time::Duration;

use actix::prelude::*;
use actorum_core::wire::{MAX_PIECE, Refusal, Request, Response, SnapshotFile, SnapshotRequest};
use actorum_machine::{ids::NodeId, status::Transfer};
use actorum_transport::message::{Asked, Responder};

use super::{SnapshotManager, rate};
use crate::message::PeerFetches;

/// A peer that fetches a snapshot from this node.
pub(super) struct Serving {
    transfer: Transfer,
    began: (Duration, u64),
    heard: Duration,
}

/// For how many timeouts (`snapshot_timeout_ms`) a peer may work on its file without a byte of progress: a state
/// machine may need that long after it has read the last bytes.
const SILENT_TIMEOUTS: u32 = 6;

/// What a peer last said of its work on a snapshot.
pub(super) struct Worked {
    index: u64,
    progress: u64,
    since: Duration,
}

impl Worked {
    fn makes_progress(&mut self, index: u64, progress: u64, now: Duration, timeout: Duration) -> bool {
        if self.index != index || self.progress != progress {
            *self = Worked { index, progress, since: now };
        }
        now.saturating_sub(self.since) <= timeout.saturating_mul(SILENT_TIMEOUTS)
    }
}

/// Bytes that a peer asked for.
#[derive(Clone, Copy)]
struct Wanted {
    peer: NodeId,
    file: SnapshotFile,
    index: u64,
    offset: u64,
    max: u32,
}

impl Serving {
    /// Whether it asked for something lately.
    pub(super) fn is_alive(&self, now: Duration, timeout: Duration) -> bool {
        now.saturating_sub(self.heard) <= timeout
    }

    /// How far it is.
    pub(super) fn shown(&self, now: Duration) -> Transfer {
        Transfer { rate: rate(self.began, now, self.transfer.bytes), ..self.transfer }
    }
}

impl SnapshotManager {
    fn serve(&mut self, peer: NodeId, request: SnapshotRequest, responder: Responder, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        match request {
            SnapshotRequest::GaveUp { index, cause, .. } => {
                self.serving.remove(&peer);
                self.say(format!("node {peer} could not use the snapshot at {index}: {cause}"));
                self.tell(peer, index, Some(cause));
                responder.answer(Response::Noted);
                self.check(index, ctx);
            }
            SnapshotRequest::Working { index, progress, .. } => {
                if self.makes_progress(peer, index, progress, now) {
                    self.tell(peer, index, None);
                }
                responder.answer(Response::Noted);
            }
            SnapshotRequest::Read { file, index, offset, .. } if offset > file.bytes => {
                let cause = format!("the snapshot at {index} has {} bytes, and {offset} is past them", file.bytes);
                responder.answer(Response::Refused(Refusal::Invalid { cause }));
            }
            SnapshotRequest::Read { file, index, offset, max } => {
                // The peer lives and wants the snapshot, even if it has to wait for its turn.
                self.tell(peer, index, None);
                if !self.serving.contains_key(&peer) && self.serving.len() >= self.bounds.max_sends {
                    return responder.answer(Response::Refused(Refusal::Busy));
                }
                let (max, begun) = (max.min(MAX_PIECE), Transfer { index, bytes: offset, total: file.bytes, rate: 0 });
                let serving =
                    self.serving.entry(peer).or_insert(Serving { transfer: begun, began: (now, offset), heard: now });
                if serving.transfer.index != index {
                    *serving = Serving { transfer: begun, began: (now, offset), heard: now };
                }
                serving.heard = now;
                serving.transfer.bytes = serving.transfer.bytes.max(file.bytes.min(offset.saturating_add(max.into())));
                // The asker is told to ask again before it stops waiting: otherwise pieces that no node waits for any
                // more would delay the pieces that others wait for.
                let (rate, at_most) = (self.bounds.rate, self.piece_within() / 2);
                let Some(wait) = self.rate_limiter.wait(now, max, rate, at_most) else {
                    return responder.answer(Response::Refused(Refusal::Busy));
                };
                let wanted = Wanted { peer, file, index, offset, max };
                if wait.is_zero() {
                    return self.send(wanted, responder, ctx);
                }
                ctx.run_later(wait, move |manager, ctx| manager.send(wanted, responder, ctx));
            }
        }
    }

    /// Whether a peer that says that it works on a snapshot makes progress: its number of bytes grows, or grew not long
    /// ago. A receiver whose disk or state machine hangs would say for ever that it works.
    fn makes_progress(&mut self, peer: NodeId, index: u64, progress: Option<u64>, now: Duration) -> bool {
        // The first version does not say how far it is.
        let Some(progress) = progress else { return true };
        let worked = self.working.entry(peer).or_insert(Worked { index, progress, since: now });
        let makes_progress = worked.makes_progress(index, progress, now, self.bounds.timeout);
        if !makes_progress {
            tracing::debug!(peer, index, progress, "a peer makes no progress with a snapshot");
        }
        makes_progress
    }

    fn send(&mut self, wanted: Wanted, responder: Responder, ctx: &mut Context<Self>) {
        let Wanted { peer, file, index, offset, max } = wanted;
        self.off_thread(
            ctx,
            move |snapshots| snapshots.read(index, &file, offset, max),
            move |manager, result, ctx| match result {
                Ok(Some(data)) => {
                    manager.status.send_modify(|status| status.bytes_sent += data.len() as u64);
                    responder.answer(Response::Piece { offset, data });
                }
                gone => {
                    if let Err(error) = gone {
                        manager.say(format!("the snapshot at {index} could not be read for a peer: {error}"));
                    }
                    manager.serving.remove(&peer);
                    responder.answer(Response::Gone);
                    manager.check(index, ctx);
                }
            },
        );
    }

    fn tell(&self, peer: NodeId, index: u64, gave_up: Option<String>) {
        if let Some(core) = self.links.peer_fetches.upgrade() {
            core.do_send(PeerFetches { peer, index, gave_up });
        }
    }
}

impl Handler<Asked> for SnapshotManager {
    type Result = ();

    fn handle(&mut self, Asked { from, request, responder, .. }: Asked, ctx: &mut Context<Self>) {
        match request {
            Request::Snapshot(request) => self.serve(from, request, responder, ctx),
            _ => {
                let cause = "only snapshots are asked for here".to_owned();
                responder.answer(Response::Refused(Refusal::Invalid { cause }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What grows may take for ever; what does not grow any more counts for six timeouts.
    #[test]
    fn who_works_must_get_on() {
        let (second, timeout) = (Duration::from_secs(1), Duration::from_secs(10));
        let mut worked = Worked { index: 5, progress: 0, since: Duration::ZERO };
        for n in 1..1000 {
            assert!(worked.makes_progress(5, n.into(), second * 50 * n, timeout));
        }
        let hung = second * 50 * 999;
        assert!(worked.makes_progress(5, 999, hung + second * 60, timeout));
        assert!(!worked.makes_progress(5, 999, hung + second * 61, timeout));
        assert!(worked.makes_progress(6, 999, hung + second * 62, timeout), "another snapshot is another beginning");
    }
}
