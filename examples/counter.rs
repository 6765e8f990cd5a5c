//! The smallest whole application: three nodes in one process count together.
//!
//! They use QUIC with mutual TLS on loopback, a durable sled directory each, and certificates made on the fly. Run it
//! with `cargo run --example counter`. Deliberately absent: a process for each node (see `kv`).

use std::{
    collections::BTreeMap,
    error::Error,
    io::{self, Write},
    net::UdpSocket,
    process::ExitCode,
    time::Duration,
};

use actorum::prelude::*;
use serde::{Deserialize, Serialize};

/// What is replicated.
#[derive(Default, Serialize, Deserialize)]
struct Counter {
    sum: u64,
}

/// Named fields: a later version can add another, and still read these from the log.
#[derive(Serialize, Deserialize)]
struct Add {
    n: u64,
}

impl StateMachine for Counter {
    type Command = Add;
    type Response = u64;

    fn apply(&mut self, _: &ApplyContext, Add { n }: &Add) -> u64 {
        self.sum += n;
        self.sum
    }

    serde_snapshot!();
}

#[actix::main]
async fn main() -> ExitCode {
    match count().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e}"); // if that is closed, the exit code still says it
            ExitCode::FAILURE
        }
    }
}

async fn count() -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout();
    let dir = tempfile::tempdir()?;
    // Each node must know the ports of all before it starts: ask the system for three free ones.
    let sockets = [1, 2, 3].map(|id| (id, UdpSocket::bind("127.0.0.1:0")));
    let mut listen = BTreeMap::new();
    for (id, socket) in sockets {
        listen.insert(id, socket?.local_addr()?);
    }
    let founders: BTreeMap<_, _> = listen.iter().map(|(id, address)| (*id, (*address).into())).collect();

    let mut nodes = Vec::new();
    for (id, address) in listen {
        let node = RaftSystem::<Counter>::builder(id)
            .listen(address)
            .storage(Storage::Sled(dir.path().join(id.to_string())))
            .tls(Tls::DevSelfSigned(dir.path().join("certificates")))
            .bootstrap(Bootstrap::Form(founders.clone()));
        nodes.push(node.start().await?);
    }
    let status = nodes[0].wait_for_leader(Duration::from_secs(10)).await?;
    writeln!(out, "node {} leads in term {}", status.leader.unwrap_or(0), status.term)?;

    // Through every node, and all at once: followers forward the commands to the leader.
    let adding = (0..300).map(|n| nodes[n % 3].propose(Add { n: 1 }));
    let mut sums: Vec<u64> = Vec::new();
    for applied in futures_util::future::join_all(adding).await {
        sums.push(applied?.response);
    }
    sums.sort();
    assert_eq!(sums, (1..=300).collect::<Vec<_>>(), "each addition was applied once, and saw all before it");

    for (id, node) in (1..).zip(&nodes) {
        let sum = node.read(|counter| counter.sum).await?;
        assert_eq!(sum, 300, "a linearizable read sees what was answered before it began");
        writeln!(out, "node {id} counts {sum}")?;
    }
    for node in &nodes {
        node.shutdown().await;
    }
    writeln!(out, "300 additions through three nodes: every answer different, nothing lost, nothing doubled")?;
    Ok(())
}
