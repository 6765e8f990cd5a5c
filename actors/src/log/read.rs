//! Reads of the log for followers that are far behind: on a thread that may wait for the disk, never on the core's.
//!
//! Queue: the core asks for one read per peer at a time, of a bounded number of bytes; the blocking threads of the runtime take them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actix::WeakRecipient;

use super::store::{LogReader, StoreError};
use crate::{
    core::panic_message,
    message::{EntriesRead, ReadEntries},
};

/// Reads, and reports the end. A store that never waits is asked in place.
pub fn read_entries(reader: Arc<dyn LogReader>, read: ReadEntries, reply_to: WeakRecipient<EntriesRead>) {
    let blocks = reader.blocks();
    let work = move || {
        let ReadEntries { group, peer, from, to, max_bytes } = read;
        let read = catch_unwind(AssertUnwindSafe(|| reader.entries(group, from, to, max_bytes)));
        let read = read.unwrap_or_else(|panic| Err(StoreError::Panicked(panic_message(&*panic))));
        let result = read.and_then(|entries| {
            let whole = entries.iter().zip(from..).all(|(entry, index)| entry.index == index) && !entries.is_empty();
            let gap =
                || StoreError::Damaged { what: "the log".into(), detail: format!("what follows {from} has a gap") };
            whole.then_some(entries).ok_or_else(gap)
        });
        if let Some(core) = reply_to.upgrade() {
            core.do_send(EntriesRead { peer, from, result });
        }
    };
    match blocks {
        #[allow(clippy::disallowed_methods, reason = "only for a store that blocks")]
        true => drop(tokio::task::spawn_blocking(work)),
        false => work(),
    }
}
