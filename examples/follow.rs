//! More than proposals: events and their positions, the status as it changes, and a store in memory that survives
//! restarts.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use actorum::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    value: u64,
}

/// Named fields: a later version can add another, and still read these from the log.
#[derive(Serialize, Deserialize)]
struct Add {
    amount: u64,
}

impl StateMachine for Counter {
    type Command = Add;
    type Response = u64;

    fn apply(&mut self, _: &ApplyContext, Add { amount }: &Add) -> u64 {
        self.value += amount;
        self.value
    }

    serde_snapshot!();
}

/// What a node has stored is in `disk`, and outlives the node: a test restarts it without touching a file.
async fn start(disk: &MemoryDisk) -> Result<Raft<Counter>, Box<dyn Error>> {
    let founders = [(1, Address::from("n1"))].into();
    let builder = RaftSystem::<Counter>::builder(1).storage(Storage::MemoryDisk(disk.clone()));
    let builder = builder.network(Network::Memory(MemoryNetwork::new())).bootstrap(Bootstrap::Form(founders));
    let raft = builder.start().await?;
    raft.wait_for_leader(Duration::from_secs(20)).await?;
    Ok(raft)
}

#[actix::main]
async fn main() -> ExitCode {
    match follow().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e}"); // closed: the exit code still says it
            ExitCode::FAILURE
        }
    }
}

async fn follow() -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout();
    let disk = MemoryDisk::new();
    let raft = start(&disk).await?;

    // Reads the state and gets every event after it: no command is missing in between, and each comes with its
    // response.
    let (followed, mut events) = raft.follow_events(|counter| counter.value).await?;
    raft.propose(Add { amount: 5 }).await?;
    let mut position = followed.position;
    while let Some(event) = events.next().await {
        position = event.position().unwrap_or(position);
        if let Event::Applied { command, response: Some(response), .. } = event {
            writeln!(out, "{} and {} make {response}", followed.value, command.amount)?;
            break;
        }
    }

    // Whether a write would succeed now, and if not, why; and the status, now and whenever it changes.
    let applied = raft.ready().await?;
    if let Some(status) = raft.watch_status().next().await {
        writeln!(out, "node {} is {} and has applied {applied}", status.id, status.role)?;
    }
    raft.shutdown().await;
    drop(raft);

    // After a restart the node goes on where it was, and so does a subscriber that kept its position.
    let raft = start(&disk).await?;
    let mut events = raft.events(position).await?;
    let counter = raft.propose(Add { amount: 2 }).await?.response;
    while let Some(event) = events.next().await {
        if let Event::Applied { index, .. } = event {
            writeln!(out, "the counter is {counter} with the command at {index}, after {position}")?;
            break;
        }
    }
    raft.shutdown().await;
    Ok(())
}
