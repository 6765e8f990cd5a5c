//! Each assertion, seen to fail.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    time::UNIX_EPOCH,
};

use actorum_machine::status::Role;

use super::cluster::{Cluster, TICK};
use crate::{
    consensus::{Consensus, Moment, PendingWrite},
    panics::panic_message,
    wire::{Entry, EntryKind, MessageKind, RaftMessage},
};

fn write(write: u64, ready: u64, term: u64) -> PendingWrite {
    PendingWrite { write, ready, restore: None, term, since: 0, bytes: 0, deferred: Default::default() }
}

/// Each fact of a transition, broken by hand once: the core stops with a sentence that says which.
#[test]
fn a_transition_that_breaks_a_fact_stops_the_core() {
    type Break = fn(&mut Consensus<String>);
    type Act = Box<dyn Fn(&Consensus<String>)>;
    let breaks: [(&str, Break); 10] = [
        ("the term fell from", |core| core.seen.term = 99),
        ("the durable term fell from", |core| core.seen.durable_term = 99),
        ("is durable, and this node is only in term", |core| core.durable_term = 99),
        ("the commit index fell from", |core| core.seen.commit = 99),
        ("the applied index fell from", |core| core.seen.applied = 99),
        ("is applied, and", |core| core.raw.raft.raft_log.applied = 99),
        ("the log ends at", |core| core.raw.raft.raft_log.committed = 99),
        ("no write is pending, and the log is durable up to 0", |core| core.raw.raft.raft_log.persisted = 0),
        ("entry 1 has left memory, and the log is durable up to 0", |core| {
            core.pending_writes.push_back(write(core.next_write, 99, 1));
            core.raw.raft.raft_log.persisted = 0;
        }),
        ("no write is pending, and 1 bytes", |core| core.disk.bytes = 1),
    ];
    let elected = || {
        let mut cluster = Cluster::new(1);
        cluster.found(&[1]);
        cluster.start(1, None);
        cluster.core(1).campaign();
        cluster.drain(1);
        assert_eq!(cluster.core(1).role(), Role::Leader);
        cluster
    };
    let said = |result: Result<(), Box<dyn Any + Send>>| match result {
        Ok(()) => "nothing".to_owned(),
        Err(panic) => panic_message(&*panic),
    };
    let mut cluster = elected();
    cluster.core(1).assert_transition();
    for (fact, break_it) in breaks {
        let mut cluster = elected();
        let core = cluster.core(1);
        core.assert_transition();
        break_it(core);
        let said = said(catch_unwind(AssertUnwindSafe(|| core.assert_transition())));
        assert!(said.contains(fact), "{fact}: {said}");
    }

    // What would leave too early, and what would be written or proposed out of order.
    let core = cluster.core(1);
    let term = core.raw.raft.term;
    let mut cases: Vec<(&str, Act)> = Vec::new();
    cases.push((
        "a message of term",
        Box::new(move |core| {
            core.assert_durable(&RaftMessage::new(MessageKind::Vote, term + 1));
        }),
    ));
    cases.push(("the proposal was appended as 99@", Box::new(move |core| core.assert_in_log(99, term))));
    for (fact, break_it) in cases {
        let said = said(catch_unwind(AssertUnwindSafe(|| break_it(core))));
        assert!(said.contains(fact), "{fact}: {said}");
    }
    core.pending_writes.push_back(write(7, 7, term));
    core.assert_follows(&write(8, 8, term));
    for (fact, next) in [
        ("write 7 follows write 7", write(7, 8, term)),
        ("Ready 7 follows Ready 7", write(8, 7, term)),
        ("follows one of term", write(8, 8, term - 1)),
    ] {
        let said = said(catch_unwind(AssertUnwindSafe(|| core.assert_follows(&next))));
        assert!(said.contains(fact), "{fact}: {said}");
    }
}

/// A follower hears that an entry is committed before its own disk has it. It keeps the entry in memory until then: one
/// that freed it could read it from nowhere, and stops.
#[test]
fn what_left_memory_and_is_not_durable_stops_the_core() {
    let mut cluster = Cluster::new(1);
    cluster.tail_bytes = 0;
    cluster.found(&[1, 2, 3]);
    cluster.nodes.get_mut(&2).unwrap().disk_auto = false;
    cluster.start(2, None);
    let mut append = RaftMessage::new(MessageKind::Append, 2);
    (append.index, append.log_term, append.commit) = (1, 1, 2);
    let (data, context) = Default::default();
    append.entries = vec![Entry { kind: EntryKind::Normal, term: 2, index: 2, data, context }];
    let core = cluster.core(2);
    core.step(1, append);
    let effects = core.drain(Moment { now: TICK, wall: UNIX_EPOCH });
    assert_eq!((effects.append.len(), effects.apply.len()), (1, 0));
    let log = &core.raw.raft.raft_log;
    assert_eq!((log.committed, log.persisted, log.applied, core.raw.store().last_freed()), (2, 1, 1, 1));
    core.raw.mut_store().applied_to(2);
    let panic = catch_unwind(AssertUnwindSafe(|| core.assert_transition())).expect_err("it goes on");
    assert_eq!(panic_message(&*panic), "entry 2 has left memory, and the log is durable up to 1");
}
