//! Admission: how much may be in flight on this node, and from which moment nothing more is admitted.
//!
//! ```text
//!  client ──try_admit(bytes)──▶ Permit ── rides in the request's slot ──▶ answered or dropped: given back
//!              │ at the bound                                                    │
//!              └▶ Denied::Busy                              the last one wakes ──▶ drained()
//! ```
//!
//! This is the one bound in front of every mailbox: a request holds its permit from the caller's thread until its
//! answer, so what waits in the core, in the log writer, in the applier or for a leader is counted here. At the bound
//! the next request is answered `Busy`; nothing waits for admission. A forwarded request holds a permit on both nodes:
//! where its client waits and where it is proposed. On the second node it is counted apart from that node's own
//! clients, with bounds half as large, so that neither can take the places of the other.
//!
//! It also keeps the cause of the stop, so that every slot dropped later can say why.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actorum_machine::outcome::{BusyBound, ChangeError, ProposeError, ReadError};
use tokio::sync::Notify;

/// The gate of one system.
#[derive(Debug)]
pub struct Admission {
    max_count: usize,
    max_bytes: usize,
    inside: Mutex<Inside>,
    emptied: Notify,
    applied: AtomicU64,
    failed: AtomicU64,
}

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Clients,
    Peers,
}

/// Requests in flight, and the bytes they hold.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    count: usize,
    bytes: usize,
}

/// The state behind the gate.
#[derive(Debug, Default)]
struct Inside {
    clients: Share,
    peers: Share,
    /// Why nothing is admitted any more.
    closed: Option<String>,
}

/// Why a request was not admitted: it never reached the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A bound is reached.
    Busy(BusyBound),
    /// The system stops or has stopped.
    Closed {
        /// Why.
        cause: String,
    },
}

impl From<Denied> for ProposeError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Busy(bound) => ProposeError::Busy { bound },
            Denied::Closed { cause } => ProposeError::Stopped { cause },
        }
    }
}

impl From<Denied> for ReadError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Busy(bound) => ReadError::Busy { bound },
            Denied::Closed { cause } => ReadError::Stopped { cause },
        }
    }
}

impl From<Denied> for ChangeError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Busy(bound) => ChangeError::Busy { bound },
            Denied::Closed { cause } => ChangeError::Stopped { cause },
        }
    }
}

impl Admission {
    /// A gate for so many requests of so many bytes.
    pub fn new(max_count: usize, max_bytes: usize) -> Arc<Admission> {
        Arc::new(Admission {
            max_count,
            max_bytes,
            inside: Mutex::default(),
            emptied: Notify::new(),
            applied: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Admits a request of a client of this node and of this size, or says at once why not.
    pub fn try_admit(self: &Arc<Self>, bytes: usize) -> Result<Permit, Denied> {
        self.admit(Of::Clients, bytes)
    }

    /// The same for a request that a peer forwards. These are bounded apart, by half as many requests and bytes. One
    /// request always fits.
    pub fn try_admit_forwarded(self: &Arc<Self>, bytes: usize) -> Result<Permit, Denied> {
        self.admit(Of::Peers, bytes)
    }

    fn admit(self: &Arc<Self>, of: Of, bytes: usize) -> Result<Permit, Denied> {
        let mut inside = self.inside();
        if let Some(cause) = &inside.closed {
            return Err(Denied::Closed { cause: cause.clone() });
        }
        let (max_count, max_bytes) = match of {
            Of::Clients => (self.max_count, self.max_bytes),
            Of::Peers => (self.max_count.div_ceil(2), self.max_bytes / 2),
        };
        let share = inside.share(of);
        // A peer's request is no larger than an entry, which fits the whole bound, if not half of it.
        let alone = of == Of::Peers && share.count == 0 && bytes <= self.max_bytes;
        if share.count >= max_count || (share.bytes.saturating_add(bytes) > max_bytes && !alone) {
            let Share { count: requests, bytes } = *share;
            return Err(Denied::Busy(BusyBound::InFlight { requests, bytes, max_requests: max_count, max_bytes }));
        }
        share.count += 1;
        share.bytes += bytes;
        Ok(Permit { admission: self.clone(), of, bytes })
    }

    /// From now on nothing is admitted. The first cause is kept.
    pub fn close(&self, cause: impl Into<String>) {
        self.inside().closed.get_or_insert_with(|| cause.into());
    }

    /// Why nothing is admitted any more; `None` while requests are admitted.
    pub fn closed(&self) -> Option<String> {
        self.inside().closed.clone()
    }

    /// Requests of this node's clients in flight, and the bytes they hold.
    pub fn in_flight(&self) -> (usize, usize) {
        let Share { count, bytes } = self.inside().clients;
        (count, bytes)
    }

    /// Proposals answered with a response and with an error, since the start.
    pub fn totals(&self) -> (u64, u64) {
        (self.applied.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Waits until nothing is in flight; false if something still is when the time is up.
    pub async fn drained(&self, within: Duration) -> bool {
        let empty = async {
            loop {
                // Enabled before looking, so that a release in between is not missed.
                let emptied = self.emptied.notified();
                tokio::pin!(emptied);
                emptied.as_mut().enable();
                if self.inside().is_empty() {
                    return;
                }
                emptied.await;
            }
        };
        tokio::time::timeout(within, empty).await.is_ok()
    }

    pub(crate) fn count_proposal(&self, applied: bool) {
        let counter = if applied { &self.applied } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// No code panics while it holds this lock, so a poisoned lock is still consistent.
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn share(&mut self, of: Of) -> &mut Share {
        match of {
            Of::Clients => &mut self.clients,
            Of::Peers => &mut self.peers,
        }
    }

    fn is_empty(&self) -> bool {
        self.clients.count == 0 && self.peers.count == 0
    }
}

/// The right to be in flight. Dropping it gives the place to another request.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    of: Of,
    bytes: usize,
}

impl Permit {
    /// The gate it belongs to.
    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// The size it was taken for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inside = self.admission.inside();
        let share = inside.share(self.of);
        share.count -= 1;
        share.bytes -= self.bytes;
        if inside.is_empty() {
            drop(inside);
            self.admission.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(requests: usize, bytes: usize, max_requests: usize, max_bytes: usize) -> Denied {
        Denied::Busy(BusyBound::InFlight { requests, bytes, max_requests, max_bytes })
    }

    #[test]
    fn count_and_bytes_are_bounded_and_given_back() {
        let admission = Admission::new(2, 100);
        let first = admission.try_admit(60).unwrap();
        assert_eq!(admission.try_admit(41).unwrap_err(), busy(1, 60, 2, 100));
        let _second = admission.try_admit(40).unwrap();
        assert_eq!(admission.try_admit(0).unwrap_err(), busy(2, 100, 2, 100));
        drop(first);
        assert_eq!(admission.in_flight(), (1, 40));
        admission.try_admit(60).unwrap();
    }

    /// Clients that take all places leave those of peers, and the other way round.
    #[test]
    fn peers_have_a_share_of_their_own() {
        let admission = Admission::new(4, 100);
        let clients: Vec<_> = (0..4).map(|_| admission.try_admit(25).unwrap()).collect();
        assert!(admission.try_admit(0).is_err());
        let first = admission.try_admit_forwarded(25).unwrap();
        let _second = admission.try_admit_forwarded(25).unwrap();
        assert_eq!(admission.try_admit_forwarded(0).unwrap_err(), busy(2, 50, 2, 50));
        drop(clients);
        assert_eq!(admission.in_flight(), (0, 0));
        let _clients: Vec<_> = (0..4).map(|_| admission.try_admit(25).unwrap()).collect();
        drop(first);
        assert!(admission.try_admit_forwarded(26).is_err(), "over half of the bytes");
        drop(_second);
        admission.try_admit_forwarded(100).expect("one always fits");
    }

    #[test]
    fn a_closed_gate_says_the_first_cause() {
        let admission = Admission::new(2, 100);
        admission.close("the disk died");
        admission.close("shut down");
        assert_eq!(admission.try_admit(1).unwrap_err(), Denied::Closed { cause: "the disk died".into() });
    }

    #[actix_rt::test]
    async fn draining_ends_with_the_last_permit() {
        let admission = Admission::new(2, 100);
        assert!(admission.drained(Duration::ZERO).await, "nothing is in flight");
        let permit = admission.try_admit(1).unwrap();
        assert!(!admission.drained(Duration::ZERO).await, "one is in flight");
        let (drained, ()) = tokio::join!(admission.drained(Duration::from_secs(10)), async { drop(permit) });
        assert!(drained);
    }
}
