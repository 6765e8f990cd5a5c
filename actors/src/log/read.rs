//! Reads of the log for followers that are far behind: on a thread that may wait for the disk, never on the core's.
//!
//! Queue: the core asks for one read per peer at a time, of a bounded number of bytes; the blocking threads of the
//! runtime take them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actix::WeakRecipient;
use actorum_core::{
    log::store::{LogReader, StoreError},
    message::ReadEntries,
    panics::panic_message,
};

use crate::message::EntriesRead;

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

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Mutex,
            mpsc::{Receiver, Sender, channel},
        },
        time::Duration,
    };

    use actix::prelude::*;
    use actorum_core::{testkit::command, wire::Entry};
    use actorum_machine::ids::{GroupId, NodeId};
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    use super::*;

    /// A log on a disk that hangs until it is let go of; a panic once nobody can let go of it any more.
    struct Hanging {
        asked: Sender<()>,
        go_on: Mutex<Receiver<Vec<Entry>>>,
    }

    impl LogReader for Hanging {
        fn entries(&self, _: GroupId, _: u64, _: u64, _: usize) -> Result<Vec<Entry>, StoreError> {
            self.asked.send(()).unwrap();
            let longest = Duration::from_secs(20);
            Ok(self.go_on.lock().unwrap().recv_timeout(longest).expect("whoever asked is not held up by the disk"))
        }

        fn first_index(&self, _: GroupId) -> u64 {
            1
        }

        fn disk_bytes(&self) -> u64 {
            0
        }
    }

    /// Stands for the core.
    struct Core(UnboundedSender<EntriesRead>);

    impl Actor for Core {
        type Context = Context<Self>;
    }

    impl Handler<EntriesRead> for Core {
        type Result = ();

        fn handle(&mut self, read: EntriesRead, _: &mut Context<Self>) {
            let _ = self.0.send(read);
        }
    }

    const PEER: NodeId = 3;

    #[actix::test]
    async fn whoever_asks_is_not_held_up_by_a_disk_that_hangs() {
        let (heard, mut read) = unbounded_channel();
        let core = Core(heard).start();
        let reply_to = core.downgrade().recipient();
        let ((asked, was_asked), (go_on, goes_on)) = (channel(), channel());
        let reader = Arc::new(Hanging { asked, go_on: Mutex::new(goes_on) });
        let ask = |from| ReadEntries { group: GroupId::FIRST, peer: PEER, from, to: 9, max_bytes: 100 };
        for (found, whole) in [(vec![command(5, 1, 1), command(6, 1, 2)], true), (vec![command(6, 1, 2)], false)] {
            // Comes back while the disk hangs.
            read_entries(reader.clone(), ask(5), reply_to.clone());
            was_asked.recv().unwrap();
            assert!(read.try_recv().is_err());
            go_on.send(found.clone()).unwrap();
            let EntriesRead { peer, from, result } = read.recv().await.unwrap();
            assert_eq!((peer, from, result.is_ok()), (PEER, 5, whole), "{result:?}");
            assert!(result.is_err() || result.unwrap() == found);
        }
        // A store that panics is one that could not be read.
        drop(go_on);
        read_entries(reader, ask(5), reply_to);
        let EntriesRead { result, .. } = read.recv().await.unwrap();
        assert!(matches!(result, Err(StoreError::Panicked(_))), "{result:?}");
    }
}
