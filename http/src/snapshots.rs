//! Snapshots and backups.
//!
//! ```text
//!  POST /snapshot    {"index":9,"term":2,"bytes":1048576,"took_ms":12}     once it is durable
//!  GET  /backup      the file itself; its index, term and hash are headers
//! ```
//!
//! Both take `timeout_ms`: how long the request waits for the snapshot. If it is not given, it is the longest possible,
//! since a large state takes its time. After the timeout the snapshot is still made, and the refusal says so.
//!
//! A backup is read from the disk while it is sent: a few pieces are in memory, however large it is and however slow
//! the client. The node closes the connection of a client that takes nothing for [`SEND_TIMEOUT`], and all connections
//! when the process ends. The client sees by the announced length that it did not get everything.

use std::{
    io::{self, Read},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::Method,
    web::{self, Bytes, Data},
};
use actorum::{Backup, SnapshotTaken, StateMachine};
use futures_util::stream;
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::warn;

use crate::{
    Node, Refused,
    route::{MAX_TIMEOUT, Query, json_response},
};

/// The header with the hash of a backup.
pub const BACKUP_HASH: &str = "actorum-blake3";

/// Backups that are sent at a time; more are refused.
const MAX_BACKUPS: usize = 4;
/// How much is read at a time.
const PIECE: usize = 256 << 10;
/// Pieces that wait for one client.
const PIECES: usize = 4;
/// How long a client may take nothing.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// `POST /snapshot`.
pub(crate) async fn take<S: StateMachine>(node: Data<Node<S>>, request: HttpRequest) -> Result<HttpResponse, Refused> {
    let within = within(&request)?;
    let since = Instant::now();
    let taken = node.raft().take_snapshot_within(within).await.map_err(|error| Refused::of(&node, &error))?;
    let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(json_response(json!({ "index": taken.index, "term": taken.term, "bytes": taken.bytes, "took_ms": took_ms })))
}

/// How long the request waits for the snapshot.
fn within(request: &HttpRequest) -> Result<Duration, Refused> {
    let mut query = Query::parse(request)?;
    let within = query.timeout(MAX_TIMEOUT)?;
    query.finish()?;
    Ok(within)
}

/// `GET /backup`.
pub(crate) async fn backup<S: StateMachine>(
    node: Data<Node<S>>,
    request: HttpRequest,
) -> Result<HttpResponse, Refused> {
    let within = within(&request)?;
    if request.method() == Method::HEAD {
        // The answer to HEAD, which takes no snapshot: only whether the backup would be the newest snapshot. Length and
        // hash are known once the file is read.
        let status = node.raft().status();
        let newest = status.snapshots.newest.filter(|newest| newest.index == status.applied_index);
        return Ok(newest.map_or_else(HttpResponse::Ok, |newest| named(&newest)).content_type(KIND).finish());
    }
    let place = Place::take(&node).ok_or_else(|| {
        Refused::busy(&node, format!("{MAX_BACKUPS} backups are being sent already: try again when one is done"))
    })?;
    let backup = node.raft().backup_within(within).await.map_err(|error| Refused::of(&node, &error))?;
    let (taken, file) = (backup.taken, backup.file);
    let (pieces, body) = mpsc::channel(PIECES);
    actix_web::rt::spawn(send(backup, pieces, node.watch_stopping(), place));
    let body = stream::unfold(body, |mut body| async { body.recv().await.map(|piece| (piece, body)) });
    Ok(named(&taken)
        .content_type(KIND)
        .insert_header((BACKUP_HASH, hex(&file.hash)))
        .no_chunking(file.bytes)
        .streaming(body))
}

/// What a backup is.
const KIND: &str = "application/octet-stream";

/// A response that says which snapshot it is.
fn named(taken: &SnapshotTaken) -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response
        .insert_header(("content-disposition", format!("attachment; filename=\"actorum-{}.backup\"", taken.index)))
        .insert_header(("actorum-index", taken.index.to_string()))
        .insert_header(("actorum-term", taken.term.to_string()));
    response
}

/// 64 hexadecimal digits.
fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One of the [`MAX_BACKUPS`].
struct Place<S: StateMachine>(Data<Node<S>>);

impl<S: StateMachine> Place<S> {
    fn take(node: &Data<Node<S>>) -> Option<Place<S>> {
        let more = |open| (open < MAX_BACKUPS).then_some(open + 1);
        node.backups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place(node.clone()))
    }
}

impl<S: StateMachine> Drop for Place<S> {
    fn drop(&mut self) {
        let count: &AtomicUsize = &self.0.backups;
        count.fetch_sub(1, Ordering::Relaxed);
    }
}

type Piece = Result<Bytes, io::Error>;

/// Reads piece by piece, on a thread that may wait for the disk, as fast as the client takes them.
async fn send<S: StateMachine>(
    mut backup: Backup,
    pieces: mpsc::Sender<Piece>,
    mut stopping: watch::Receiver<bool>,
    _place: Place<S>,
) {
    loop {
        let read = web::block(move || {
            let mut piece = Vec::with_capacity(PIECE);
            let read = (&mut backup).take(PIECE as u64).read_to_end(&mut piece);
            (backup, read.map(|_| piece))
        });
        // The reading thread panicked, or the process ends: the body ends too early, and the client sees that.
        let Ok((rest, read)) = read.await else { return };
        backup = rest;
        let piece = match read {
            Ok(piece) if piece.is_empty() => return,
            Ok(piece) => Ok(Bytes::from(piece)),
            Err(error) => {
                warn!("a backup breaks off, its file cannot be read: {error}");
                Err(error)
            }
        };
        let last = piece.is_err();
        let sent = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return,
            sent = timeout(SEND_TIMEOUT, pieces.send(piece)) => sent,
        };
        if last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}
