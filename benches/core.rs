//! What the Raft core costs by itself, and how much of that are the assertions after each transition.
//!
//! ```text
//! cargo bench --bench core
//! ```
//!
//! One voter with its log in memory, whose disk and applier are done at once: no actor, thread, file or socket.
//! Deliberately absent: a pass mark.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use actorum_core::{
    consensus::{Consensus, Moment, Settings, Start},
    entry::EncodedCommand,
    features::Features,
    log::store::{HardState, LogReader, Recovered, StoreError},
    system_state::SystemState,
    wire::Entry,
};
use actorum_machine::{
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    status::Role,
};

const CALLS: u32 = 300_000;
const NOW: Moment = Moment { now: Duration::ZERO, wall: SystemTime::UNIX_EPOCH };

struct Memory;

impl LogReader for Memory {
    fn entries(&self, _: GroupId, from: u64, _: u64, _: usize) -> Result<Vec<Entry>, StoreError> {
        panic!("everything is in the tail, but entry {from} was asked for")
    }

    fn first_index(&self, _: GroupId) -> u64 {
        1
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

fn leader() -> Consensus<u64> {
    let founders: BTreeMap<NodeId, Address> = BTreeMap::from([(1, Address("n1:1".to_owned()))]);
    let state = SystemState::founded(ClusterId(7), &founders);
    let settings = Settings {
        id: 1,
        group: GroupId::FIRST,
        incarnation: Incarnation(1),
        boot: 1,
        seed: 1,
        tick: Duration::from_millis(100),
        election_ticks: 10,
        max_append_bytes: 1 << 20,
        max_inflight_appends: 256,
        peer_window_bytes: 16 << 20,
        max_unapplied_bytes: 1 << 30,
        max_unpersisted_bytes: 1 << 30,
        disk_slow_ticks: 1 << 30,
        log_tail_bytes: 1 << 20,
        max_entry_bytes: 1 << 20,
        snapshot_entries: u64::MAX,
        snapshot_bytes: u64::MAX,
        small_snapshot_bytes: u64::MAX,
        short_bytes: 4 << 20,
        keep_entries: 0,
        keep_bytes: u64::MAX,
        hold_bytes: 0,
        snapshot_timeout_ticks: 30,
        max_clock_skew: Duration::from_millis(500),
        waits: false,
        certificate_ends: None,
        features: Features::all(),
        machine_version: 1,
    };
    let recovered = Recovered {
        snapshots: vec![state.genesis(BTreeMap::new()).expect("a genesis")],
        hard_state: HardState { term: 1, vote: 0, commit: 1 },
        last_index: 1,
        terms: vec![(1, 1)],
        sizes: Vec::new(),
    };
    let start = Start {
        recovered,
        reader: Arc::new(Memory),
        applied: 1,
        membership: state.membership.clone(),
        versions: state.versions.clone(),
        cluster: Some(state.cluster),
        min_served_index: 0,
    };
    let mut core = Consensus::new(settings, start).expect("a core");
    core.campaign();
    while carry(&mut core) {}
    assert_eq!(core.role(), Role::Leader);
    core
}

/// Does what one drain asks for: writes, then applies. Says whether it asked for anything.
fn carry(core: &mut Consensus<u64>) -> bool {
    let effects = core.drain(NOW);
    assert_eq!(effects.fault, None);
    if let Some(append) = effects.append.last() {
        core.persisted(append.number);
    }
    if let Some(committed) = effects.apply.last() {
        core.applied_to(committed.entry.index);
    }
    !effects.append.is_empty() || !effects.apply.is_empty()
}

fn report(what: &str, begun: Instant, calls: u32) {
    println!("{what:<52} {:>8.0} ns", begun.elapsed().as_nanos() as f64 / f64::from(calls));
}

fn main() {
    // Cargo hands `--bench` over.
    let mut core = leader();
    let begun = Instant::now();
    (0..CALLS).for_each(|_| core.assert_transition());
    report("the assertions of one transition", begun, CALLS);

    let begun = Instant::now();
    (0..CALLS).for_each(|_| drop(core.drain(NOW)));
    report("a drain for which there is nothing to do", begun, CALLS);

    for at_once in [1, 64] {
        let encoded = EncodedCommand::command(&"x".repeat(100)).expect("it can be encoded");
        let begun = Instant::now();
        for n in 0..CALLS / at_once {
            for reply in 0..at_once {
                core.submit(encoded.clone(), Some(u64::from(n * at_once + reply)), Duration::MAX);
            }
            while carry(&mut core) {}
        }
        report(&format!("a proposal of 100 bytes, {at_once} at once: written, applied"), begun, CALLS);
    }
}
