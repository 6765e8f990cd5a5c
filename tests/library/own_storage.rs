//! State machines that keep their own durable storage: nothing is applied to them twice, and a wrong one is named.

use std::{
    io::Read,
    sync::{Arc, Mutex},
};

use crate::support::{MemoryDisk, MemoryNetwork, TIMEOUT, founders, on, quick};
use actorum::{Network, prelude::*};

/// What the machine's own disk holds: it outlives the machine.
#[derive(Clone, Default)]
struct OwnDisk(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    applied: (u64, u64),
    numbers: Vec<u64>,
}

impl StateMachine for OwnDisk {
    type Command = u64;
    type Response = usize;

    fn apply(&mut self, ctx: &ApplyContext, number: &u64) -> usize {
        let mut held = self.0.lock().unwrap();
        assert!(ctx.index > held.applied.0, "{} was given again after {}", ctx.index, held.applied.0);
        held.numbers.push(*number);
        held.applied = (ctx.index, ctx.term);
        held.numbers.len()
    }

    fn snapshot(&self) -> Result<StateView, MachineError> {
        Err(MachineError::new("not needed here"))
    }

    fn restore(&mut self, _: &mut dyn Read) -> Result<(), MachineError> {
        Err(MachineError::new("not needed here"))
    }

    fn applied(&self) -> Option<(u64, u64)> {
        Some(self.0.lock().unwrap().applied)
    }
}

async fn start(log: &MemoryDisk, own: &OwnDisk) -> Result<Raft<OwnDisk>, actorum::StartError> {
    let builder = actorum::Builder::new(1, own.clone()).network(Network::Memory(MemoryNetwork::new()));
    builder.storage(on(log, 1)).bootstrap(founders(1)).configure(quick).start().await
}

#[actix::test]
async fn a_machine_that_holds_its_commands_is_not_given_them_again() {
    let (log, own) = (MemoryDisk::new(), OwnDisk::default());
    for round in 1..=5 {
        let raft = start(&log, &own).await.unwrap();
        for n in 0..10 {
            let applied = raft.propose(round * 100 + n).await.unwrap();
            assert_eq!(applied.response as u64, (round - 1) * 10 + n + 1);
        }
        // The log dies without a word, its last commit index unsynced; what the machine applied was committed all the
        // same.
        log.crash();
        drop(raft);
    }
    assert_eq!(own.0.lock().unwrap().numbers.len(), 50);
}

#[actix::test]
async fn a_machine_of_another_log_does_not_start() {
    let (log, own) = (MemoryDisk::new(), OwnDisk::default());
    let raft = start(&log, &own).await.unwrap();
    let index = raft.propose(1).await.unwrap().index;
    raft.wait_applied(index, TIMEOUT).await.unwrap();
    raft.shutdown().await;
    let error = start(&MemoryDisk::new(), &own).await.err().unwrap().to_string();
    assert!(error.contains("but the log is empty"), "{error}");
    own.0.lock().unwrap().applied.0 += 100;
    let error = start(&log, &own).await.err().unwrap().to_string();
    assert!(error.contains("but the log ends at"), "{error}");
}
