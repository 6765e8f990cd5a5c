//! Followers that are far behind, over real QUIC and real directories: flow control neither drops nor stands still.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use actorum::{Address, NodeId, prelude::*};
use serde::{Deserialize, Serialize};

use crate::ports::free_port;

/// For what moves hundreds of megabytes on a machine that does other things.
const TIMEOUT: Duration = Duration::from_secs(300);

/// As large as the defaults let an append message be.
const ENTRY: usize = 1 << 20;

/// Counts what it is given, so that only the log is large.
#[derive(Default, Serialize, Deserialize)]
struct Bytes {
    commands: u64,
    bytes: u64,
}

impl StateMachine for Bytes {
    type Command = serde_bytes::ByteBuf;
    type Response = u64;
    fn apply(&mut self, _: &ApplyContext, command: &serde_bytes::ByteBuf) -> u64 {
        self.commands += 1;
        self.bytes += command.len() as u64;
        self.commands
    }
    serde_snapshot!();
}

async fn start(id: NodeId, addresses: &BTreeMap<NodeId, SocketAddr>, dir: &Path) -> Raft<Bytes> {
    let founders = Bootstrap::Form(addresses.iter().map(|(id, at)| (*id, Address::from(*at))).collect());
    let builder = RaftSystem::builder(id).listen(addresses[&id]).bootstrap(founders);
    let builder = builder.storage(Storage::Sled(dir.join(format!("{id}")))).tls(Tls::DevSelfSigned(dir.join("ca")));
    let configure = |config: &mut Config| {
        // Everything else is the default. Nothing is cut off, so that all of it goes by the log.
        (config.snapshot_bytes, config.low_space_bytes) = (0, 0);
    };
    builder.configure(configure).start().await.unwrap()
}

/// A follower 200 entries of 1 MiB behind, with the default settings: the tail in memory has 64 MiB of them, the rest
/// is read from the disk. Not one message is dropped, and no frame is larger than a message may be.
#[actix::test]
async fn a_follower_200_mib_behind_is_sent_everything_once() {
    let dir = tempfile::tempdir().unwrap();
    let addresses: BTreeMap<NodeId, SocketAddr> = (1..=3).map(|id| (id, free_port())).collect();
    let mut nodes = BTreeMap::new();
    for id in 1..=3 {
        nodes.insert(id, start(id, &addresses, dir.path()).await);
    }
    let leader = nodes[&1].wait_for_leader(TIMEOUT).await.unwrap().leader.unwrap();
    let away = 1 + leader % 3;
    nodes[&away].wait(TIMEOUT, |status| status.applied_index >= 2).await.unwrap();
    nodes.remove(&away).unwrap().shutdown().await;
    let leads = &nodes[&leader];
    // A payload that leaves room for what is around it, so that the last one is the largest that a message holds.
    let payload = || serde_bytes::ByteBuf::from(vec![7; ENTRY - 200]);
    let mut last = 0;
    for _ in 0..200 {
        last = leads.propose_within(payload(), TIMEOUT).await.unwrap().index;
    }
    let before = leads.status();
    let back = start(away, &addresses, dir.path()).await;
    let status = back.wait_applied(last, TIMEOUT).await.unwrap();
    assert_eq!(status.snapshots.received, 0, "all of it came by the log");
    assert_eq!(back.read(|bytes| bytes.commands).await.unwrap(), 200);
    let after = leads.wait(TIMEOUT, |status| status.leader == Some(leader)).await.unwrap();
    assert_eq!(after.totals.messages_dropped, before.totals.messages_dropped, "messages dropped");
    // A write takes messages until they have 1 MiB, and a message has up to 1 MiB.
    let largest = after.totals.largest_frame_bytes;
    assert!((ENTRY as u64 - 200..=2 * ENTRY as u64 + 4096).contains(&largest), "the largest frame has {largest} bytes");
    // Each entry left once: what else is sent is small.
    let sent = after.totals.bytes_sent - before.totals.bytes_sent;
    assert!(sent < 230 << 20, "{} MiB were sent for 200", sent >> 20);
}
