//! Getting a snapshot from another node: a window of pieces asked for, written in order, verified as a whole.

use std::{collections::BTreeMap, time::Duration};

use actix::prelude::*;
use actorum_core::{
    message::FetchSnapshot,
    system_state::SystemState,
    wire::{Refusal, Request, Response, Snapshot, SnapshotFile, SnapshotRequest},
};
use actorum_machine::{ids::NodeId, status::Transfer};
use actorum_store::snapshot::Receiving;
use actorum_transport::message::{Answered, Ask};
use bytes::Bytes;

use super::{PIECE_WITHIN, SnapshotManager, rate};
use crate::{
    message::{FromCore, SnapshotFetched},
    snapshot::rate_limiter::FetchWindow,
};

/// How many pieces may be asked for and not written yet.
const WINDOW: usize = 4;

/// The pause before a piece that was not answered is asked for again.
const PAUSE: Duration = Duration::from_millis(100);

/// A snapshot that another node has.
pub(super) struct Fetching {
    /// Distinguishes its questions and jobs from those of another transfer.
    number: u64,
    from: NodeId,
    snapshot: Snapshot,
    file: SnapshotFile,
    /// `None` while a thread works on it.
    receiving: Option<Receiving>,
    /// Whether it is known how much is here already.
    open: bool,
    /// Bytes written, or on their way to the disk.
    written: u64,
    /// The first byte that was not asked for yet.
    asked: u64,
    /// Questions under way.
    questions: BTreeMap<u64, AskedPiece>,
    fetch_window: FetchWindow,
    /// Pieces not written yet, by where they begin.
    pieces: BTreeMap<u64, Bytes>,
    /// The bytes that were asked for without an answer: where they begin, and how many.
    again: Vec<(u64, u32)>,
    began: (Duration, u64),
    /// When the last new byte came, or the answer that other nodes are served first.
    moved: Duration,
}

/// A piece that was asked for.
#[derive(Clone, Copy)]
struct AskedPiece {
    offset: u64,
    bytes: u32,
    asked: Duration,
}

impl Fetching {
    /// The sender, and the progress.
    pub(super) fn shown(&self, now: Duration) -> (NodeId, Transfer) {
        let Fetching { snapshot, file, written, began, .. } = self;
        let rate = rate(*began, now, *written);
        (self.from, Transfer { index: snapshot.index, bytes: *written, total: file.bytes, rate })
    }
}

impl SnapshotManager {
    /// Gives up a transfer that stands still, and tells the sender of one that makes progress.
    pub(super) fn look_at_fetching(&mut self, now: Duration, ctx: &mut Context<Self>) {
        let timeout = self.bounds.timeout;
        match &mut self.fetching {
            // A thread opens, writes or checks it, which takes as long as it takes.
            Some(fetching) if fetching.receiving.is_none() => fetching.moved = now,
            Some(fetching) if now.saturating_sub(fetching.moved) > timeout => {
                self.not_fetched(format!("not a byte came for {} s", timeout.as_secs_f64()), ctx);
            }
            _ => {}
        }
        self.sign(now, ctx);
    }

    fn fetch(&mut self, from: NodeId, snapshot: Snapshot, ctx: &mut Context<Self>) {
        let Ok((_, Some(file))) = SystemState::of(&snapshot) else { return };
        let now = self.clock.now();
        if let Some(fetching) = self.fetching.as_mut().filter(|fetching| fetching.snapshot.data == snapshot.data) {
            if fetching.from != from {
                // Another leader offers the same file: it is fetched on from there.
                (fetching.from, fetching.moved) = (from, now);
            }
            fetching.snapshot = snapshot;
            return self.ask_on(ctx);
        }
        let number = self.next_question;
        self.next_question += 1;
        self.installing = None;
        self.fetching = Some(Fetching {
            number,
            from,
            snapshot: snapshot.clone(),
            file,
            receiving: None,
            open: false,
            written: 0,
            asked: 0,
            questions: BTreeMap::new(),
            fetch_window: FetchWindow::new(self.bounds.piece, WINDOW),
            pieces: BTreeMap::new(),
            again: Vec::new(),
            began: (now, 0),
            moved: now,
        });
        self.off_thread(
            ctx,
            move |snapshots| {
                let receiving = snapshots.receive(&snapshot)?;
                match receiving.offset() == receiving.bytes() {
                    true => receiving.finish().map(|()| None),
                    false => Ok(Some(receiving)),
                }
            },
            move |manager, result, ctx| match result {
                _ if !manager.is_fetching(number) => {}
                Ok(None) => manager.is_fetched(),
                Ok(Some(receiving)) => manager.receive(receiving, ctx),
                Err(error) => manager.not_fetched(error.to_string(), ctx),
            },
        );
    }

    fn is_fetching(&self, number: u64) -> bool {
        self.fetching.as_ref().is_some_and(|fetching| fetching.number == number)
    }

    fn receive(&mut self, receiving: Receiving, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let Some(fetching) = &mut self.fetching else { return };
        let offset = receiving.offset();
        if offset > 0 {
            tracing::info!(
                index = fetching.snapshot.index,
                offset,
                total = fetching.file.bytes,
                "going on with a snapshot"
            );
        }
        (fetching.written, fetching.asked, fetching.began) = (offset, offset, (now, offset));
        (fetching.receiving, fetching.open) = (Some(receiving), true);
        self.write_pieces(ctx);
    }

    /// Asks for pieces until the window is full.
    fn ask_on(&mut self, ctx: &mut Context<Self>) {
        let (piece, timeout, asked) = (self.bounds.piece, self.piece_within(), self.clock.now());
        let Some(fetching) = &mut self.fetching else { return };
        // The window counts from what is written: a missing piece is asked for again, however many pieces after it
        // wait.
        let window = fetching.written + WINDOW as u64 * u64::from(piece);
        while fetching.questions.len() < fetching.fetch_window.window {
            let (offset, bytes) = match fetching.again.pop() {
                Some((offset, bytes)) => {
                    // The node may have asked for too much at once.
                    let first = bytes.min(fetching.fetch_window.piece);
                    if first < bytes {
                        fetching.again.push((offset + u64::from(first), bytes - first));
                    }
                    (offset, first)
                }
                None if fetching.open && fetching.asked < fetching.file.bytes.min(window) => {
                    let (offset, rest) = (fetching.asked, fetching.file.bytes - fetching.asked);
                    let bytes = u64::from(fetching.fetch_window.piece).min(rest) as u32;
                    fetching.asked += u64::from(bytes);
                    (offset, bytes)
                }
                None => break,
            };
            let id = self.next_question;
            self.next_question += 1;
            fetching.questions.insert(id, AskedPiece { offset, bytes, asked });
            let read =
                SnapshotRequest::Read { file: fetching.file, index: fetching.snapshot.index, offset, max: bytes };
            self.links.ask.do_send(Ask {
                id,
                group: self.group,
                to: fetching.from,
                request: Request::Snapshot(read),
                timeout,
                reply_to: ctx.address().downgrade().recipient(),
            });
        }
    }

    fn piece(&mut self, AskedPiece { offset, bytes, .. }: AskedPiece, data: Bytes, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let Some(fetching) = &mut self.fetching else { return };
        if data.len() as u64 != u64::from(bytes) {
            let cause = format!("node {} sent {} bytes from {offset} on, not {bytes}", fetching.from, data.len());
            return self.not_fetched(cause, ctx);
        }
        fetching.moved = now;
        fetching.pieces.insert(offset, data);
        self.status.send_modify(|status| status.bytes_received += u64::from(bytes));
        self.write_pieces(ctx);
    }

    /// Hands the pieces that follow what is written to the disk, one batch at a time.
    fn write_pieces(&mut self, ctx: &mut Context<Self>) {
        let Some(fetching) = &mut self.fetching else { return };
        let Some(mut receiving) = fetching.receiving.take() else { return };
        let mut batch = Vec::new();
        while let Some(first) = fetching.pieces.first_entry().filter(|first| *first.key() <= fetching.written) {
            let (offset, data) = first.remove_entry();
            fetching.written = offset + data.len() as u64;
            batch.push((offset, data));
        }
        let (number, whole) = (fetching.number, fetching.written == fetching.file.bytes);
        if batch.is_empty() && !whole {
            fetching.receiving = Some(receiving);
            return self.ask_on(ctx);
        }
        self.off_thread(
            ctx,
            move |_| {
                batch.iter().try_for_each(|(offset, data)| receiving.push(*offset, data))?;
                match whole {
                    true => receiving.finish().map(|()| None),
                    false => Ok(Some(receiving)),
                }
            },
            move |manager, result, ctx| match result {
                _ if !manager.is_fetching(number) => {}
                Ok(None) => manager.is_fetched(),
                Ok(Some(receiving)) => {
                    if let Some(fetching) = &mut manager.fetching {
                        fetching.receiving = Some(receiving);
                    }
                    manager.write_pieces(ctx);
                }
                Err(error) => manager.not_fetched(error.to_string(), ctx),
            },
        );
    }

    fn is_fetched(&mut self) {
        let Some(Fetching { snapshot, from, file, .. }) = self.fetching.take() else { return };
        self.installing = Some((from, snapshot.index, file));
        self.status.send_modify(|status| status.received += 1);
        self.end_fetch(snapshot, Ok(()));
    }

    /// The node goes on, and keeps what came so far. The leader is told, and offers the snapshot again.
    fn not_fetched(&mut self, cause: String, ctx: &mut Context<Self>) {
        let Some(Fetching { snapshot, from, file, .. }) = self.fetching.take() else { return };
        self.say(format!("the snapshot at {} could not be fetched from node {from}: {cause}", snapshot.index));
        let gave_up = SnapshotRequest::GaveUp { file, index: snapshot.index, cause: cause.clone() };
        self.links.ask.do_send(Ask {
            id: 0,
            group: self.group,
            to: from,
            request: Request::Snapshot(gave_up),
            timeout: PIECE_WITHIN,
            reply_to: ctx.address().downgrade().recipient(),
        });
        self.end_fetch(snapshot, Err(cause));
    }

    fn end_fetch(&mut self, snapshot: Snapshot, result: Result<(), String>) {
        if let Some(core) = self.links.fetched.upgrade() {
            core.do_send(SnapshotFetched { snapshot, result });
        }
        self.publish();
    }

    /// Tells the sender from time to time that the file is being written, checked or installed. That has no time bound,
    /// and the sender gets no questions meanwhile.
    fn sign(&mut self, now: Duration, ctx: &mut Context<Self>) {
        let works = self.fetching.as_ref().filter(|fetching| fetching.receiving.is_none());
        let works = works.map(|fetching| (fetching.from, fetching.snapshot.index, fetching.file)).or(self.installing);
        let Some((to, index, file)) = works else { return };
        if now.saturating_sub(self.signed) < self.bounds.timeout / 4 {
            return;
        }
        self.signed = now;
        self.links.ask.do_send(Ask {
            id: 0,
            group: self.group,
            to,
            request: Request::Snapshot(SnapshotRequest::Working {
                file,
                index,
                progress: Some(self.snapshots.progress()),
            }),
            timeout: PIECE_WITHIN,
            reply_to: ctx.address().downgrade().recipient(),
        });
    }

    /// A piece did not come. Whatever the reason, it is asked for again until nothing has come for too long.
    fn ask_again(&mut self, AskedPiece { offset, bytes, .. }: AskedPiece, ctx: &mut Context<Self>) {
        let Some(number) = self.fetching.as_ref().map(|fetching| fetching.number) else { return };
        ctx.run_later(PAUSE, move |manager, ctx| {
            if let Some(fetching) = manager.fetching.as_mut().filter(|fetching| fetching.number == number) {
                fetching.again.push((offset, bytes));
                manager.ask_on(ctx);
            }
        });
    }
}

impl Handler<FromCore<FetchSnapshot>> for SnapshotManager {
    type Result = ();

    fn handle(&mut self, FromCore(FetchSnapshot { from, snapshot }): FromCore<FetchSnapshot>, ctx: &mut Context<Self>) {
        self.fetch(from, snapshot, ctx);
    }
}

impl Handler<Answered> for SnapshotManager {
    type Result = ();

    fn handle(&mut self, Answered { id, from, result }: Answered, ctx: &mut Context<Self>) {
        let (now, within) = (self.clock.now(), self.piece_within());
        let Some(fetching) = &mut self.fetching else { return };
        let Some(question) = fetching.questions.remove(&id) else { return };
        let (offset, came) = (question.offset, matches!(result, Ok(Response::Piece { .. })));
        fetching.fetch_window.took(now.saturating_sub(question.asked), within, came);
        match result {
            Ok(Response::Piece { offset: at, data }) if at == offset => self.piece(question, data, ctx),
            Ok(Response::Gone) if from == fetching.from => {
                self.not_fetched(format!("node {from} does not have it any more"), ctx);
            }
            Ok(Response::Piece { offset: at, .. }) => {
                self.not_fetched(format!("node {from} sent bytes from {at} on, and was asked for {offset}"), ctx);
            }
            Ok(Response::Refused(Refusal::Busy)) if from == fetching.from => {
                // The sender lives, and serves other nodes first. Giving up now would only mean to wait in the queue
                // again, after a pause.
                fetching.moved = now;
                self.ask_again(question, ctx);
            }
            Ok(_) | Err(_) => self.ask_again(question, ctx),
        }
    }
}
