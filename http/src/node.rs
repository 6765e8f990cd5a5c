//! What the routes share: the node, and what they count.

use std::{
    fmt,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use actix_web::http::StatusCode;
use actorum::{Raft, StateMachine};
use tokio::sync::watch;

/// What the routes share: the node, and the counters of this API. An application makes one for each node and gives it
/// to its `App` as `web::Data`.
pub struct Node<S: StateMachine> {
    raft: Raft<S>,
    /// Comes true when the process begins to end; streams end then.
    stopping: watch::Sender<bool>,
    /// Event streams that are open.
    pub(crate) streams: AtomicUsize,
    /// Backups that are being sent.
    pub(crate) backups: AtomicUsize,
    /// Responses by the first digit of their status, `responses[4]` for 4xx.
    pub(crate) responses: [AtomicU64; 6],
    /// The application's own.
    pub(crate) counters: Vec<Counter>,
}

/// A number of the application's on the page of metrics.
pub(crate) struct Counter {
    pub name: &'static str,
    pub help: &'static str,
    pub read: fn() -> u64,
}

impl<S: StateMachine> Node<S> {
    /// Around a node that runs.
    pub fn new(raft: Raft<S>) -> Node<S> {
        Node {
            raft,
            stopping: watch::Sender::new(false),
            streams: AtomicUsize::new(0),
            backups: AtomicUsize::new(0),
            responses: Default::default(),
            counters: Vec::new(),
        }
    }

    /// Shows a counter of the application on the page of metrics, by its whole name, such as `bank_transfers_total`.
    /// `read` is called at each scrape.
    pub fn counter(mut self, name: &'static str, help: &'static str, read: fn() -> u64) -> Node<S> {
        self.counters.push(Counter { name, help, read });
        self
    }

    /// The node.
    pub fn raft(&self) -> &Raft<S> {
        &self.raft
    }

    /// Counts a response. [`count`](crate::count) does this for every response of an `App`.
    pub fn count(&self, status: StatusCode) {
        if let Some(counter) = self.responses.get(usize::from(status.as_u16() / 100)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The server begins to end: event streams and backups end, and the routes wait no longer for bodies. Call it
    /// before you stop the server, which waits for requests under way.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until [`stop`](Node::stop) is called.
    pub async fn stopping(&self) {
        // This has the other end: there is no error.
        let _ = self.watch_stopping().wait_for(|stopping| *stopping).await;
    }

    pub(crate) fn watch_stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }
}

impl<S: StateMachine> fmt::Debug for Node<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("raft", &self.raft)
            .field("streams", &self.streams)
            .field("backups", &self.backups)
            .field("responses", &self.responses)
            .finish_non_exhaustive()
    }
}
