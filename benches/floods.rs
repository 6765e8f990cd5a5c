//! What floods against the peer port cost honest proposals: three nodes on loopback QUIC and sled, before and during
//! each.
//!
//! ```text
//! cargo bench --bench floods            16 outstanding, 5 s for each line
//! cargo bench --bench floods -- 64 10   64 outstanding, 10 s
//! ```
//!
//! The attackers have threads of their own on the same machine, and no certificate: part of what a line shows is what
//! they take from the cores. Deliberately absent: a pass mark; `transport/tests/floods.rs` has those.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use actorum::{Address, NodeId, prelude::*};
use quinn::Endpoint;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};

/// Counts what was applied.
#[derive(Default, Serialize, Deserialize)]
struct Count(u64);

#[derive(Serialize, Deserialize)]
struct Add(#[serde(with = "serde_bytes")] Vec<u8>);

impl StateMachine for Count {
    type Command = Add;
    type Response = u64;

    fn apply(&mut self, _: &ApplyContext, Add(bytes): &Add) -> u64 {
        self.0 += bytes.len() as u64;
        self.0
    }

    serde_snapshot!();
}

async fn cluster(dir: &Path) -> (Vec<Raft<Count>>, Vec<SocketAddr>) {
    let free = || UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let addresses: BTreeMap<NodeId, SocketAddr> = (1..=3).map(|id| (id, free())).collect();
    let founders: BTreeMap<NodeId, Address> = addresses.iter().map(|(id, at)| (*id, (*at).into())).collect();
    let mut nodes = Vec::new();
    for (id, at) in &addresses {
        let node = RaftSystem::<Count>::builder(*id)
            .listen(*at)
            .storage(Storage::Sled(dir.join(id.to_string())))
            .tls(Tls::DevSelfSigned(dir.join("certs")))
            .bootstrap(Bootstrap::Form(founders.clone()))
            .start();
        nodes.push(node.await.expect("a node starts"));
    }
    (nodes, addresses.into_values().collect())
}

/// Latencies of proposals in a closed loop, and how many failed.
async fn closed_loop(leader: &Raft<Count>, outstanding: usize, time: Duration) -> (Vec<Duration>, usize) {
    let begin = Instant::now();
    let tasks: Vec<_> = (0..outstanding)
        .map(|_| {
            let raft = leader.clone();
            tokio::spawn(async move {
                let (mut latencies, mut failed) = (Vec::new(), 0);
                while begin.elapsed() < time {
                    let sent = Instant::now();
                    match raft.propose(Add(vec![7; 128])).await {
                        Ok(_) => latencies.push(sent.elapsed()),
                        Err(_) => failed += 1,
                    }
                }
                (latencies, failed)
            })
        })
        .collect();
    let (mut latencies, mut failed) = (Vec::new(), 0);
    for task in tasks {
        let (more, lost) = task.await.expect("a client does not panic");
        latencies.extend(more);
        failed += lost;
    }
    latencies.sort_unstable();
    (latencies, failed)
}

fn elsewhere(n: usize) -> SocketAddr {
    (Ipv4Addr::new(127, 0, 1, 2 + (n % 200) as u8), 0).into()
}

/// A client without a certificate.
fn stranger(dir: &Path) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(dir.join("certs/ca/ca.pem")).expect("the authority");
    roots.add(authority).expect("a certificate");
    let mut crypto = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    crypto.alpn_protocols = vec![b"actorum/1".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).expect("TLS 1.3");
    quinn::ClientConfig::new(Arc::new(crypto))
}

/// What attacks, told when to end, counting what it did.
type Attack = Box<dyn FnOnce(Arc<AtomicBool>, Arc<AtomicUsize>) + Send>;

fn on_a_runtime(run: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(run);
}

/// So many handshakes per second, each given up after half a second.
fn handshakes(client: quinn::ClientConfig, targets: Vec<SocketAddr>, per_second: usize) -> Attack {
    Box::new(move |over, done| {
        on_a_runtime(async move {
            let endpoints: Vec<_> = (0..40).map(|n| Endpoint::client(elsewhere(n)).expect("a port")).collect();
            let mut beat = tokio::time::interval(Duration::from_millis(10));
            while !over.load(Relaxed) {
                beat.tick().await;
                for _ in 0..per_second / 100 {
                    let n = done.fetch_add(1, Relaxed);
                    let (endpoint, target) = (&endpoints[n % endpoints.len()], targets[n % targets.len()]);
                    let name = format!("node-{}.actorum", 1 + n % targets.len());
                    let dial = endpoint.connect_with(client.clone(), target, &name).expect("a dial");
                    tokio::spawn(async move { drop(tokio::time::timeout(Duration::from_millis(500), dial).await) });
                }
            }
        });
    })
}

/// First packets as a true client sends them.
fn first_packets(client: quinn::ClientConfig, count: usize) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    on_a_runtime(async {
        let hole = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a port");
        while packets.len() < count {
            let to = hole.local_addr().expect("an address");
            let dial = endpoint.connect_with(client.clone(), to, "node-1.actorum").expect("a dial");
            let mut packet = vec![0; 2000];
            let length = hole.recv(&mut packet).await.expect("a packet");
            packet.truncate(length);
            packets.push(packet);
            drop(dial);
        }
    });
    packets
}

/// About so many datagrams per second: noise, packets of no connection, first packets sealed with a wrong key.
fn datagrams(packet: Vec<u8>, targets: Vec<SocketAddr>, per_second: usize) -> Attack {
    Box::new(move |over, done| {
        let sockets: Vec<_> = (0..200).map(|n| UdpSocket::bind(elsewhere(n)).expect("a port")).collect();
        let mut rng = 7u64;
        let mut roll = || {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            rng >> 33
        };
        let (mut noise, mut forged) = (packet.clone(), packet.clone());
        noise.iter_mut().for_each(|byte| *byte = roll() as u8);
        let begun = Instant::now();
        while !over.load(Relaxed) {
            let sent = done.fetch_add(100, Relaxed) + 100;
            for n in 0..100 {
                noise[0] = if n % 2 == 0 { roll() as u8 } else { 0x40 };
                forged[6..14].copy_from_slice(&roll().to_be_bytes());
                let bytes = if n % 4 == 3 { &forged } else { &noise };
                let socket = &sockets[roll() as usize % sockets.len()];
                let _ = socket.send_to(bytes, targets[n % targets.len()]);
            }
            let due = Duration::from_secs_f64(sent as f64 / per_second as f64);
            thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    })
}

/// So many handshakes that are begun, and begun anew every second, and never go on.
fn slow(packets: Vec<Vec<u8>>, targets: Vec<SocketAddr>) -> Attack {
    Box::new(move |over, done| {
        while !over.load(Relaxed) {
            let sockets: Vec<_> = (0..packets.len()).map(|n| UdpSocket::bind(elsewhere(n)).expect("a port")).collect();
            for (n, (socket, packet)) in sockets.iter().zip(&packets).enumerate() {
                let _ = socket.send_to(packet, targets[n % targets.len()]);
                done.fetch_add(1, Relaxed);
            }
            thread::sleep(Duration::from_secs(1));
        }
    })
}

/// What this process holds in memory, in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 10
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo passes --bench; what remains are our own numbers.
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let outstanding = numbers.first().map_or(16, |n| *n as usize);
    let time = Duration::from_secs(numbers.get(1).copied().unwrap_or(5));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let (nodes, targets) = cluster(dir.path()).await;
    let wait = Duration::from_secs(30);
    let id = nodes[0].wait_for_leader(wait).await.expect("a leader").leader.expect("the wait was for one");
    let leader = &nodes[id as usize - 1];
    leader.wait(wait, |status| status.role == Role::Leader).await.expect("it knows that it leads");
    closed_loop(leader, outstanding, Duration::from_secs(1)).await;

    let client = stranger(dir.path());
    let packets = {
        let client = client.clone();
        thread::spawn(move || first_packets(client, 200)).join().expect("first packets")
    };
    let floods: Vec<(&str, Option<Attack>)> = vec![
        ("no flood", None),
        ("1,000 handshakes/s without a certificate", Some(handshakes(client, targets.clone(), 1000))),
        ("100,000 forged datagrams/s", Some(datagrams(packets[0].clone(), targets.clone(), 100_000))),
        ("200 slow connections", Some(slow(packets, targets))),
        ("no flood", None),
    ];
    println!("three nodes, one process, loopback QUIC, {outstanding} proposals outstanding, {} s each", time.as_secs());
    println!(
        "{:<42}  {:>8}  {:>11}  {:>8}  {:>8}  {:>6}  {:>8}",
        "flood against all three", "sent/s", "proposals/s", "p50", "p99", "failed", "memory"
    );
    for (name, attack) in floods {
        let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let begun = Instant::now();
        let attacker = attack.map(|attack| {
            let (over, done) = (over.clone(), done.clone());
            thread::spawn(move || attack(over, done))
        });
        let (latencies, failed) = closed_loop(leader, outstanding, time).await;
        over.store(true, Relaxed);
        let seconds = begun.elapsed().as_secs_f64();
        attacker.into_iter().for_each(|attacker| attacker.join().expect("the attacker gets through its part"));
        let ms = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
        println!(
            "{name:<42}  {:>8.0}  {:>11.0}  {:>5.2} ms  {:>5.2} ms  {failed:>6}  {:>4} MiB",
            done.load(Relaxed) as f64 / seconds,
            latencies.len() as f64 / seconds,
            ms(0.5),
            ms(0.99),
            resident()
        );
    }
    for node in nodes {
        node.shutdown().await;
    }
}
