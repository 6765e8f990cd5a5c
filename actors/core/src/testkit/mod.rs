//! What the tests of this crate and of those above it share: a small state machine, a log and files of snapshots in
//! memory, entries.

use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use actorum_machine::{
    configuration::Configuration,
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    machine::{self, ApplyContext, StateMachine, StateView},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    entry::{EncodedCommand, SystemCommand},
    log::store::{LogReader, StoreError},
    snapshot::{SnapshotError, SnapshotReader},
    system_state::SystemState,
    wire::{Entry, EntryKind, Snapshot, SnapshotFile},
};

/// When every command was proposed.
const TIME: Duration = Duration::from_secs(1_700_000_000);

/// Adds up what is proposed; answers the total. Panics on 666, as a program with an error would.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Sum {
    /// The sum.
    pub total: u64,
    /// The indexes of the commands, in order.
    pub seen: Vec<u64>,
    /// For tests of durable machines: what `applied` answers.
    #[serde(skip)]
    pub durable: Option<(u64, u64)>,
}

impl StateMachine for Sum {
    type Command = u64;
    type Response = u64;

    fn apply(&mut self, ctx: &ApplyContext, command: &u64) -> u64 {
        assert_ne!(*command, 666, "the number of the beast");
        self.total += command;
        self.seen.push(ctx.index);
        self.total
    }

    actorum_machine::serde_snapshot!();

    fn applied(&self) -> Option<(u64, u64)> {
        self.durable
    }
}

/// A committed command.
pub fn command(index: u64, term: u64, number: u64) -> Entry {
    let data = EncodedCommand::command(&number).unwrap().stamp(SystemTime::UNIX_EPOCH + TIME).into();
    Entry { kind: EntryKind::Normal, term, index, data, context: Bytes::new() }
}

/// What a new leader appends.
pub fn empty(index: u64, term: u64) -> Entry {
    Entry { kind: EntryKind::Normal, term, index, data: Bytes::new(), context: Bytes::new() }
}

/// A membership change as the core writes it.
pub fn change(index: u64, term: u64, command: &SystemCommand) -> Entry {
    let context = machine::encode(command).unwrap().into();
    Entry { kind: EntryKind::ConfChange, term, index, data: Bytes::from_static(b"raft-rs"), context }
}

/// A cluster of node 1.
pub fn founded() -> SystemState {
    SystemState::founded(ClusterId(7), &BTreeMap::from([(1, Address::from("n1"))]))
}

/// Its genesis.
pub fn genesis() -> Snapshot {
    founded().genesis(BTreeMap::from([(1, Incarnation(1))])).unwrap()
}

/// A configuration of these voters.
pub fn voting(voters: &[NodeId]) -> Configuration {
    Configuration { voters: voters.iter().copied().collect(), ..Configuration::default() }
}

/// A log in memory, which is only read.
#[derive(Clone, Debug, Default)]
pub struct TestLog(Arc<Mutex<BTreeMap<u64, Entry>>>);

impl TestLog {
    /// A log of these entries.
    pub fn with_entries(entries: impl IntoIterator<Item = Entry>) -> TestLog {
        let log = TestLog::default();
        log.hold(entries);
        log
    }

    /// These entries and no others.
    pub fn hold(&self, entries: impl IntoIterator<Item = Entry>) {
        *self.0.lock().unwrap() = entries.into_iter().map(|e| (e.index, e)).collect();
    }
}

impl LogReader for TestLog {
    fn entries(&self, _group: GroupId, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let log = self.0.lock().unwrap();
        let mut bytes = 0;
        let mut entries = Vec::new();
        for index in from..to {
            let entry = log
                .get(&index)
                .ok_or_else(|| StoreError::Damaged { what: format!("entry {index}"), detail: "missing".into() })?;
            bytes += entry.size();
            if !entries.is_empty() && bytes > max_bytes {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn first_index(&self, _: GroupId) -> u64 {
        self.0.lock().unwrap().keys().next().copied().unwrap_or(1)
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

/// Files of snapshots in memory, without a form: the state as the machine wrote it, by the index of the snapshot.
#[derive(Debug, Default)]
pub struct TestSnapshots(Mutex<BTreeMap<u64, Vec<u8>>>);

impl TestSnapshots {
    /// Keeps what a replica captured, and describes it.
    pub fn keep(&self, (index, term, system, state): (u64, u64, SystemState, StateView)) -> Snapshot {
        let mut bytes = Vec::new();
        state.write_to(&mut bytes).unwrap();
        let file = SnapshotFile { bytes: bytes.len() as u64, hash: [7; 32] };
        self.0.lock().unwrap().insert(index, bytes);
        system.snapshot(index, term, file, BTreeMap::new()).unwrap()
    }
}

impl SnapshotReader for TestSnapshots {
    fn verify(&self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let (_, file) = SystemState::of(snapshot).unwrap();
        if file.is_some() { self.open(snapshot).map(drop) } else { Ok(()) }
    }

    fn open(&self, snapshot: &Snapshot) -> Result<Box<dyn Read + Send>, SnapshotError> {
        let bytes = self.0.lock().unwrap().get(&snapshot.index).cloned();
        let bytes = bytes.ok_or_else(|| SnapshotError(format!("there is no snapshot at {}", snapshot.index)))?;
        Ok(Box::new(Cursor::new(bytes)))
    }
}
