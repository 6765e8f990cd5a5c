//! Every queue stays within its bound (promise 5).

use actorum::Config;
use actorum_core::wire::ENTRY_OVERHEAD;

use super::{Event, Facts, Invariant};

pub(crate) struct QueuesAreBounded {
    pub bounds: Config,
}

/// Batches on their way to a disk that hangs: each drain adds at most one, and the log writer gives up after seconds.
const UNPERSISTED: usize = 20_000;

impl Invariant for QueuesAreBounded {
    fn name(&self) -> &'static str {
        "queues are bounded"
    }

    fn check(&mut self, event: &Event<'_>, _: &Facts) -> Result<(), String> {
        let Event::Looked { node, status } = event else { return Ok(()) };
        let (bounds, queues) = (&self.bounds, &status.queues);
        // The sum of what is committed and not applied, what is neither committed nor applied (for which the leader has
        // the same bound), and what was under way when the first bound was reached.
        let waiting = 2 * bounds.max_unapplied_bytes + 2 * bounds.peer_window_bytes + 4 * bounds.max_entry_bytes;
        let tail = bounds.log_tail_bytes + waiting;
        // A leader regulates itself; a follower whose disk hangs is sent a window, and another one by the next leader.
        let message = bounds.append_bytes().max(bounds.max_entry_bytes + ENTRY_OVERHEAD);
        let unpersisted = bounds.max_unpersisted_bytes.max(2 * bounds.peer_window_bytes) + message;
        let found = [
            ("requests in flight", queues.in_flight, bounds.max_in_flight),
            ("bytes in flight", queues.in_flight_bytes, bounds.max_in_flight_bytes),
            ("requests queued", queues.queued, bounds.max_in_flight * 2),
            ("writes not yet durable", queues.unpersisted, UNPERSISTED),
            ("bytes not yet durable", status.disk.unpersisted_bytes, unpersisted),
            ("bytes of the log in memory", queues.log_tail_bytes, tail),
        ];
        match found.into_iter().find(|(_, found, bound)| found > bound) {
            Some((what, found, bound)) => Err(format!("n{node} has {found} {what}, more than {bound}")),
            None => Ok(()),
        }
    }
}
