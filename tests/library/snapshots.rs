//! Snapshots of whole nodes over real QUIC and real directories: taken, sent, resumed, started from, and damaged.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

use actix::prelude::*;
use actorum::{Address, MachineError, NodeId, StartError, TakeSnapshotError, prelude::*};
use actorum_machine::ids::Incarnation;
use serde::{Deserialize, Serialize};

use crate::ports::free_port;
use crate::support::{self, MemoryDisk, MemoryNetwork, Sum, TIMEOUT, founders, start};

/// A command of a few bytes that becomes 64 KiB of state which no compression makes smaller.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Blobs(BTreeMap<u64, u64>, #[serde(with = "serde_bytes_map")] BTreeMap<u64, Vec<u8>>);

const BLOB: usize = 64 << 10;

/// Byte strings as such, and not as lists of numbers.
mod serde_bytes_map {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(map: &BTreeMap<u64, Vec<u8>>, out: S) -> Result<S::Ok, S::Error> {
        let map: BTreeMap<_, _> = map.iter().map(|(key, value)| (key, Bin(value.clone()))).collect();
        map.serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u64, Vec<u8>>, D::Error> {
        let map = BTreeMap::<u64, Bin>::deserialize(from)?;
        Ok(map.into_iter().map(|(key, Bin(value))| (key, value)).collect())
    }

    struct Bin(Vec<u8>);

    impl Serialize for Bin {
        fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
            out.serialize_bytes(&self.0)
        }
    }

    impl<'de> Deserialize<'de> for Bin {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bin, D::Error> {
            struct Visitor;
            impl serde::de::Visitor<'_> for Visitor {
                type Value = Bin;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("bytes")
                }
                fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bin, E> {
                    Ok(Bin(bytes.to_vec()))
                }
                fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bin, E> {
                    Ok(Bin(bytes))
                }
            }
            from.deserialize_byte_buf(Visitor)
        }
    }
}

impl StateMachine for Blobs {
    type Command = u64;
    type Response = usize;

    fn apply(&mut self, ctx: &ApplyContext, key: &u64) -> usize {
        let mut z = *key ^ 0x9e37_79b9_7f4a_7c15;
        let mut blob = Vec::with_capacity(BLOB);
        while blob.len() < BLOB {
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(0x9e37_79b9_7f4a_7c15);
            blob.extend_from_slice(&(z ^ (z >> 27)).to_le_bytes());
        }
        self.0.insert(*key, ctx.index);
        self.1.insert(*key, blob);
        self.1.len()
    }

    serde_snapshot!(clone);
}

/// Directories, ports and certificates of a few nodes.
struct Lab {
    dir: tempfile::TempDir,
    ports: BTreeMap<NodeId, SocketAddr>,
}

impl Lab {
    fn new() -> Lab {
        Lab { dir: tempfile::tempdir().unwrap(), ports: (1..=4).map(|id| (id, free_port())).collect() }
    }

    fn data(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(format!("{id}"))
    }

    fn builder(&self, id: NodeId, bootstrap: Bootstrap) -> actorum::Builder<Blobs> {
        let builder = RaftSystem::builder(id).listen(self.ports[&id]).bootstrap(bootstrap);
        let builder = builder.storage(Storage::Sled(self.data(id))).tls(Tls::DevSelfSigned(self.dir.path().join("ca")));
        builder.configure(|config| {
            // Often, and nothing is kept for those who are away.
            (config.snapshot_entries, config.log_keep_entries, config.log_hold_bytes) = (40, 5, 0);
            (config.heartbeat_ms, config.election_ms, config.snapshot_timeout_ms) = (50, 500, 3000);
            config.low_space_bytes = 0;
        })
    }

    fn founders(&self) -> Bootstrap {
        Bootstrap::Form(self.ports.range(1..=3).map(|(id, at)| (*id, Address::from(*at))).collect())
    }

    async fn start(&self, id: NodeId) -> Raft<Blobs> {
        let bootstrap = || if id == 4 { Bootstrap::Wait } else { self.founders() };
        support::start_again(|| self.builder(id, bootstrap())).await
    }

    /// The files of a node's snapshots, oldest first.
    fn files(&self, id: NodeId) -> Vec<PathBuf> {
        files(&self.data(id))
    }
}

fn files(data: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(data.join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = names.filter(|path| path.extension().is_some_and(|e| e == "actorum")).collect();
    names.sort();
    names
}

async fn propose(raft: &Raft<Blobs>, keys: std::ops::Range<u64>) -> u64 {
    let mut index = 0;
    for key in keys {
        index = raft.propose_within(key, TIMEOUT).await.unwrap().index;
    }
    index
}

async fn state(raft: &Raft<Blobs>) -> (BTreeMap<u64, u64>, usize) {
    raft.read(|blobs| (blobs.0.clone(), blobs.1.len())).await.unwrap()
}

#[actix::test]
async fn who_was_away_and_who_is_new_come_by_snapshot_and_start_from_it_again() {
    let lab = Lab::new();
    let mut nodes = BTreeMap::new();
    for id in 1..=3 {
        nodes.insert(id, lab.start(id).await);
    }
    let leader = nodes[&1].wait_for_leader(TIMEOUT).await.unwrap().leader.unwrap();
    propose(&nodes[&leader], 0..5).await;
    let away = 1 + leader % 3;
    nodes.remove(&away).unwrap().shutdown().await;

    let last = propose(&nodes[&leader], 5..200).await;
    let cut = nodes[&leader].wait(TIMEOUT, |s| s.snapshots.built >= 4 && s.first_index > 100).await.unwrap();
    // A third one is there only until its record is durable.
    let started = std::time::Instant::now();
    while lab.files(leader).len() > 2 {
        assert!(started.elapsed() < TIMEOUT, "{:?}", lab.files(leader));
        tokio::task::yield_now().await;
    }
    let left = cut.last_index + 1 - cut.first_index;
    assert!(cut.log_bytes <= left * 40, "{} bytes of {left} entries", cut.log_bytes);

    // It was away, and what it needs is gone from the log.
    let back = lab.start(away).await;
    let status = back.wait_applied(last, TIMEOUT).await.unwrap();
    assert!(status.snapshots.received == 1 && status.first_index > 6, "{:?}", status.snapshots);
    assert_eq!(state(&back).await, state(&nodes[&leader]).await);

    // Somebody new joins a log that does not start at 1.
    let fourth = lab.start(4).await;
    nodes[&leader].change_within(ConfChange::AddLearner(4, lab.ports[&4].into()), TIMEOUT).await.unwrap();
    nodes[&leader].change_within(ConfChange::Promote(4), TIMEOUT).await.unwrap();
    assert_eq!(state(&fourth).await, state(&nodes[&leader]).await);
    assert!(fourth.status().snapshots.received >= 1);

    // Both start again from what they were sent.
    for (id, raft) in [(away, back), (4, fourth)] {
        raft.shutdown().await;
        drop(raft);
        let again = lab.start(id).await;
        assert!(again.status().snapshot_index > 1);
        let last = propose(&nodes[&leader], 1000 + id..1001 + id).await;
        again.wait_applied(last, TIMEOUT).await.unwrap();
        assert_eq!(state(&again).await, state(&nodes[&leader]).await);
        nodes.insert(id, again);
    }
}

#[actix::test]
async fn a_transfer_goes_on_where_it_stopped() {
    let lab = Lab::new();
    let mut nodes = BTreeMap::new();
    for id in 1..=3 {
        // 12 MiB take some seconds.
        let slowly = |config: &mut Config| config.snapshot_rate = 4 << 20;
        nodes.insert(id, lab.builder(id, lab.founders()).configure(slowly).start().await.unwrap());
    }
    let leader = nodes[&1].wait_for_leader(TIMEOUT).await.unwrap().leader.unwrap();
    let away = 1 + leader % 3;
    nodes.remove(&away).unwrap().shutdown().await;
    propose(&nodes[&leader], 0..190).await;
    let taken = nodes[&leader].take_snapshot().await.unwrap();
    let last = propose(&nodes[&leader], 190..195).await;

    let back = lab.start(away).await;
    let half = move |s: &Status| s.snapshots.receiving.values().any(|t| t.bytes > t.total / 2);
    if let Err(error) = back.wait(TIMEOUT, half).await {
        panic!("{error}: {:?}, {:?}", back.status().snapshots, nodes[&leader].status());
    }
    let sending = nodes[&leader].status().snapshots.sending;
    let transfer = sending.get(&away).expect("the sender shows it, too");
    assert!(transfer.total == taken.bytes && transfer.rate > 0 && transfer.rate < 8 << 20, "{transfer:?}");
    // Nobody else is held up by it.
    nodes[&leader].propose(900).await.unwrap();
    let before = back.status().snapshots.bytes_received;
    back.shutdown().await;
    drop(back);

    let back = lab.start(away).await;
    let status = back.wait_applied(last, TIMEOUT).await.unwrap();
    let after = status.snapshots.bytes_received;
    assert_eq!(status.snapshots.received, 1);
    assert!(after < taken.bytes / 2 + (2 << 20), "{before} and then {after} of {}: it began anew", taken.bytes);
    assert_eq!(state(&back).await, state(&nodes[&leader]).await);
}

#[actix::test]
async fn a_damaged_snapshot_is_stood_in_for_and_two_are_refused_with_a_specific_error() {
    let lab = Lab::new();
    let alone = || Bootstrap::Form([(1, lab.ports[&1].into())].into());
    let raft = lab.builder(1, alone()).start().await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    propose(&raft, 0..100).await;
    raft.take_snapshot().await.unwrap();
    propose(&raft, 100..110).await;
    let expected = state(&raft).await;
    raft.shutdown().await;
    drop(raft);

    let [older, newest] = <[PathBuf; 2]>::try_from(lab.files(1)).unwrap();
    flip(&newest);
    // None is taken that would stand in for the other.
    let none = |config: &mut Config| config.snapshot_entries = 0;
    let raft = support::start_again(|| lab.builder(1, alone()).configure(none)).await;
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    assert_eq!(state(&raft).await, expected, "the older one and the log after it");
    raft.shutdown().await;
    drop(raft);

    flip(&older);
    let Err(StartError::NoSnapshot(refused)) = lab.builder(1, alone()).start().await else { panic!("it started") };
    assert!(refused.contains(older.file_name().unwrap().to_str().unwrap()), "{refused}");
}

/// Another bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[actix::test]
async fn a_snapshot_on_demand_is_one_for_all_who_ask_and_a_backup_reads_as_a_whole() {
    let raft = start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await;
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    for n in 0..50 {
        raft.propose(n).await.unwrap();
    }
    let (one, two) = tokio::join!(raft.take_snapshot(), raft.addr().send(TakeSnapshot));
    let (one, two) = (one.unwrap(), two.unwrap().unwrap());
    assert_eq!(one, two);
    assert_eq!(raft.status().snapshots.built, 1);
    assert_eq!(raft.take_snapshot().await.unwrap(), one, "nothing was applied since");
    let index = raft.propose(50).await.unwrap().index;
    let mut backup = raft.backup().await.unwrap();
    let mut bytes = Vec::new();
    backup.read_to_end(&mut bytes).unwrap();
    assert_eq!((backup.taken.index, backup.taken.bytes), (index, bytes.len() as u64));
    assert_eq!(raft.status().snapshots.newest, Some(backup.taken));
}

#[actix::test]
async fn nothing_applied_means_nothing_to_take() {
    let waiting = start(&MemoryNetwork::new(), 9, &MemoryDisk::new(), Bootstrap::Wait).await;
    let error = waiting.take_snapshot().await.unwrap_err();
    assert!(error.to_string().contains("holds nothing yet"), "{error}");
}

/// A machine that cannot be frozen, for as long as its users say so.
#[derive(Default)]
struct Shy(u64);

static MOOD: AtomicU8 = AtomicU8::new(0);

impl StateMachine for Shy {
    type Command = u64;
    type Response = u64;

    fn apply(&mut self, _: &ApplyContext, n: &u64) -> u64 {
        self.0 += n;
        self.0
    }

    fn snapshot(&self) -> Result<StateView, MachineError> {
        let total = self.0;
        match MOOD.load(Ordering::SeqCst) {
            1 => Err(MachineError::new("not today")),
            2 => panic!("out of my mind"),
            3 => Ok(StateView::new(|_| Err(MachineError::new("lost for words")))),
            4 => Ok(StateView::new(|_| panic!("in the middle of a word"))),
            _ => Ok(StateView::bytes(total.to_le_bytes().to_vec())),
        }
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), MachineError> {
        let mut total = [0; 8];
        from.read_exact(&mut total)?;
        self.0 = u64::from_le_bytes(total);
        Ok(())
    }
}

#[actix::test]
async fn a_machine_that_cannot_be_written_costs_its_snapshot_and_nothing_else() {
    let (network, disk) = (MemoryNetwork::new(), MemoryDisk::new());
    let builder = RaftSystem::<Shy>::builder(1).network(actorum::Network::Memory(network)).bootstrap(founders(1));
    let storage = Storage::Custom(Box::new(disk.open(1, Incarnation(1)).unwrap()));
    let raft = builder.storage(storage).configure(support::quick).start().await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    raft.propose(1).await.unwrap();
    for (mood, words) in
        [(1, "not today"), (2, "out of my mind"), (3, "lost for words"), (4, "in the middle of a word")]
    {
        MOOD.store(mood, Ordering::SeqCst);
        let error = raft.take_snapshot().await.unwrap_err();
        assert!(matches!(&error, TakeSnapshotError::Failed { cause } if cause.contains(words)), "{error}");
        assert!(raft.status().snapshots.last_error.unwrap().contains(words));
        raft.propose(1).await.unwrap();
    }
    MOOD.store(0, Ordering::SeqCst);
    raft.take_snapshot().await.unwrap();
    assert_eq!(raft.propose(1).await.unwrap().response, 6);
}

/// Hears events as lines.
struct Listener(tokio::sync::mpsc::UnboundedSender<String>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<Event<Sum>> for Listener {
    type Result = ();
    fn handle(&mut self, event: Event<Sum>, _: &mut Context<Self>) {
        let line = match event {
            Event::Applied { index, .. } => format!("#{index}"),
            Event::SnapshotInstalled { index, .. } => format!("snapshot {index}"),
            _ => return,
        };
        self.0.send(line).unwrap();
    }
}

#[actix::test]
async fn a_subscription_below_the_beginning_of_the_log_hears_where_it_begins() {
    let (network, disk) = (MemoryNetwork::new(), MemoryDisk::new());
    let raft = start(&network, 1, &disk, founders(1)).await;
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    for n in 0..20 {
        raft.propose(n).await.unwrap();
    }
    raft.shutdown().await;
    drop(raft);
    let builder = RaftSystem::<Sum>::builder(1).network(actorum::Network::Memory(network)).bootstrap(founders(1));
    let builder = builder.storage(support::on(&disk, 1)).configure(support::quick);
    let raft = builder.configure(|config| config.log_keep_entries = 0).start().await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    let older = raft.take_snapshot().await.unwrap().index;
    let last = raft.propose(1).await.unwrap().index;
    raft.take_snapshot().await.unwrap();
    raft.wait(TIMEOUT, |s| s.first_index == older + 1).await.unwrap();

    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    let listener = Listener(sender).start();
    raft.subscribe(Subscribe::new(listener.recipient()).after(3)).await.unwrap();
    assert_eq!(told.recv().await.unwrap(), format!("snapshot {older}"));
    assert_eq!(told.recv().await.unwrap(), format!("#{last}"));
}
