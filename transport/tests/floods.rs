//! Floods against the peer port, from addresses that are no peer's: handshakes without a certificate, forged datagrams,
//! connections that do nothing. Honest peers go on all the while, a node that comes back is let in, and memory stays
//! bounded.
//!
//! The attackers run on a thread of their own, so that what they cost themselves is not taken for what they cost the
//! victim. Each test says how much of its flood really arrived: one that never fires proves nothing.

#![cfg(all(feature = "quic", target_os = "linux"))]

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use actorum_core::wire::Response;
use actorum_transport::tls::node_name;
use tokio::sync::{Mutex, MutexGuard};

use support::*;

/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(4);

/// What the process may grow by during a flood, the attackers' own memory included.
const GROWTH: usize = 96 << 20;

/// One at a time: they measure.
async fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::const_new(());
    ONE.lock().await
}

/// What the process holds in memory, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// An address on the loopback network that no node here has.
fn elsewhere(n: usize) -> SocketAddr {
    (Ipv4Addr::new(127, 0, 1 + (n / 200) as u8, 2 + (n % 200) as u8), 0).into()
}

/// A flood that runs until it is stopped.
struct Flood {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn begin(attack: impl FnOnce(&AtomicBool) + Send + 'static) -> Flood {
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let over = over.clone();
            move || attack(&over)
        });
        Flood { over, thread: Some(thread) }
    }

    /// The same with a runtime of its own.
    fn with_runtime<F: Future<Output = ()>>(attack: impl FnOnce(Arc<AtomicBool>) -> F + Send + 'static) -> Flood {
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let over = over.clone();
            move || actix_rt::System::new().block_on(attack(over))
        });
        Flood { over, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the attackers did not get through their part");
    }
}

/// Honest questions, one after the other, for as long as a flood lasts: all are answered, and soon. The worst and the
/// median.
async fn goes_on(honest: &mut Honest) -> (usize, Duration, Duration) {
    let begun = Instant::now();
    let mut took = Vec::new();
    while begun.elapsed() < FLOOD {
        let asked = Instant::now();
        let index = took.len() as u64;
        assert_eq!(honest.friend.ask(1, index).await, Ok(Response::ReadAt { index }));
        took.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    took.sort_unstable();
    let (median, worst) = (took[took.len() / 2], *took.last().unwrap());
    println!("{} questions, median {median:?}, worst {worst:?}", took.len());
    assert!(worst < Duration::from_secs(2), "an honest question waited {worst:?}");
    (took.len(), median, worst)
}

/// The link between the honest is the one that was there before the flood.
fn undisturbed(honest: &mut Honest) {
    let is_link = |heard: &Heard| matches!(heard, Heard::Up(_) | Heard::Unreachable(_));
    assert!(!honest.victim.drain().iter().any(is_link) && !honest.friend.drain().iter().any(is_link));
}

fn client(honest: &Honest, shows: Option<Pair>) -> quinn::ClientConfig {
    let crypto = client_crypto(&honest.certs, shows);
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
    quinn::ClientConfig::new(Arc::new(crypto))
}

/// A thousand handshakes a second, each from one of forty addresses. The victim takes up as many as its rate allows.
#[actix::test]
async fn handshakes_without_a_certificate() {
    let _alone = alone().await;
    let mut honest = Honest::new().await;
    let (target, client) = (honest.victim.address, client(&honest, None));
    let (begun, answered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let before = resident();
    let flood = Flood::with_runtime({
        let (begun, answered) = (begun.clone(), answered.clone());
        async move |over: Arc<AtomicBool>| {
            let endpoints: Vec<_> = (0..40).map(|n| quinn::Endpoint::client(elsewhere(n)).unwrap()).collect();
            let mut beat = tokio::time::interval(Duration::from_millis(10));
            while !over.load(Relaxed) {
                beat.tick().await;
                for _ in 0..10 {
                    let at = begun.fetch_add(1, Relaxed) % endpoints.len();
                    let dial = endpoints[at].connect_with(client.clone(), target, &node_name(1)).unwrap();
                    let answered = answered.clone();
                    actix_rt::spawn(async move {
                        // Whatever comes back, an alert or a connection that is closed at once, was paid for by the
                        // victim.
                        if tokio::time::timeout(Duration::from_millis(500), dial).await.is_ok() {
                            answered.fetch_add(1, Relaxed);
                        }
                    });
                }
            }
        }
    });
    let since = Instant::now();
    goes_on(&mut honest).await;
    drop(flood);
    let (seconds, grown) = (since.elapsed().as_secs_f64(), resident().saturating_sub(before));
    let (begun, answered) = (begun.load(Relaxed), answered.load(Relaxed));
    println!("{begun} handshakes begun in {seconds:.1} s, {answered} answered, {} KiB more memory", grown >> 10);
    assert!(begun as f64 > 200.0 * seconds, "not much of a flood");
    // 200 a second and 400 at once.
    assert!(answered as f64 <= 400.0 + 200.0 * (seconds + 0.5), "{answered} of {begun} were answered");
    assert!(answered > 100, "strangers are not shut out altogether");
    assert!(grown < GROWTH, "{grown} bytes");
    undisturbed(&mut honest);
    honest.flows().await;
}

/// Datagrams as fast as one thread sends them: noise, packets of connections that do not exist, and first packets that
/// look right until they are decrypted, from five hundred ports of twenty addresses.
#[actix::test]
async fn forged_datagrams() {
    let _alone = alone().await;
    let mut honest = Honest::new().await;
    let target = honest.victim.address;
    // A true first packet, to forge others from.
    let hole = UdpSocket::bind(local()).unwrap();
    hole.set_read_timeout(Some(DEADLINE)).unwrap();
    let adversary = honest.adversary(5);
    let dial = adversary.dial(hole.local_addr().unwrap());
    let mut initial = vec![0; 2000];
    let length = soon(
        "a first packet",
        tokio::task::spawn_blocking(move || hole.recv(&mut initial).map(|n| initial[..n].to_vec())),
    );
    let initial = length.await.unwrap().unwrap();
    drop(dial);
    assert!(initial.len() >= 1200 && initial[0] & 0xf0 == 0xc0, "an Initial");

    let sent = Arc::new(AtomicUsize::new(0));
    let before = resident();
    let flood = Flood::begin({
        let sent = sent.clone();
        move |over| {
            let sockets: Vec<_> = (0..500).map(|n| UdpSocket::bind(elsewhere(n % 20)).unwrap()).collect();
            let mut rng = 7u64;
            let mut roll = || {
                rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                rng >> 33
            };
            let noise: Vec<u8> = (0..1 << 16).map(|_| roll() as u8).collect();
            let mut stray = noise[..1200].to_vec();
            while !over.load(Relaxed) {
                let mut forged = initial.clone();
                for n in 0..100 {
                    let socket = &sockets[roll() as usize % sockets.len()];
                    let length = 20 + roll() as usize % 1180;
                    let packet: &[u8] = match n % 4 {
                        0 => {
                            let start = roll() as usize % (noise.len() - 1200);
                            &noise[start..start + length]
                        }
                        1 => {
                            // The short header of an established connection, to an id that is none.
                            stray[0] = 0x40 | roll() as u8 & 0x3f;
                            stray[1..9].copy_from_slice(&roll().to_be_bytes());
                            &stray[..length]
                        }
                        // The ids begin at byte 6; with another one the packet is sealed with the wrong key.
                        2 => {
                            forged[6..14].copy_from_slice(&roll().to_be_bytes());
                            &forged
                        }
                        // Its own: from everywhere the same handshake.
                        _ => &initial,
                    };
                    if socket.send_to(packet, target).is_ok() {
                        sent.fetch_add(1, Relaxed);
                    }
                }
            }
        }
    });
    let since = Instant::now();
    goes_on(&mut honest).await;
    // A node that comes back in the midst of it is let in.
    let mut third = node(&honest.certs, 3);
    third.list(&[(1, target)]);
    third.connected(1).await;
    assert_eq!(third.ask(1, 3).await, Ok(Response::ReadAt { index: 3 }));
    println!("a third node was let in {:?} after the begin of the flood", since.elapsed());
    drop(flood);
    let (sent, grown) = (sent.load(Relaxed), resident().saturating_sub(before));
    let rate = sent as f64 / since.elapsed().as_secs_f64();
    println!("{sent} datagrams, {rate:.0} a second, {} KiB more memory", grown >> 10);
    assert!(rate > 20_000.0, "not much of a flood: {rate:.0} a second");
    assert!(grown < GROWTH, "{grown} bytes");
    honest.friend.drain();
    honest.victim.drain().into_iter().for_each(|heard| match heard {
        Heard::Up(of) => assert_eq!(of.id, 3),
        Heard::Unreachable(of) => panic!("lost {of}"),
        _ => {}
    });
    drop(third);
    honest.victim.until("3 went", |heard| matches!(heard, Heard::Unreachable(3)).then_some(())).await;
    honest.flows().await;
}

/// Two hundred connections with a true certificate that never say hello, from as many addresses, each begun anew when
/// it is closed. They take the places of strangers, and no more; a node at a peer's address is let in beside them.
#[actix::test]
async fn slow_connections() {
    let _alone = alone().await;
    let mut honest = Honest::new().await;
    let pair = honest.certs.of(5);
    let (target, client) = (honest.victim.address, client(&honest, Some(pair)));
    let (open, most, ever) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let before = resident();
    let flood = Flood::with_runtime({
        let (open, most, ever) = (open.clone(), most.clone(), ever.clone());
        async move |over: Arc<AtomicBool>| {
            let slow = (0..200).map(|n| {
                let (client, over) = (client.clone(), over.clone());
                let (open, most, ever) = (open.clone(), most.clone(), ever.clone());
                async move {
                    let endpoint = quinn::Endpoint::client(elsewhere(n)).unwrap();
                    while !over.load(Relaxed) {
                        let dial = endpoint.connect_with(client.clone(), target, &node_name(1)).unwrap();
                        let Ok(Ok(connection)) = tokio::time::timeout(Duration::from_secs(1), dial).await else {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            continue;
                        };
                        most.fetch_max(open.fetch_add(1, Relaxed) + 1, Relaxed);
                        ever.fetch_add(1, Relaxed);
                        while !over.load(Relaxed) && connection.close_reason().is_none() {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        open.fetch_sub(1, Relaxed);
                    }
                }
            });
            futures_util::future::join_all(slow).await;
        }
    });
    eventually("the places of strangers are taken", async || open.load(Relaxed) >= 56).await;
    let asked = Instant::now();
    let mut third = node(&honest.certs, 3);
    third.list(&[(1, target)]);
    third.connected(1).await;
    let let_in = asked.elapsed();
    assert_eq!(third.ask(1, 3).await, Ok(Response::ReadAt { index: 3 }));
    goes_on(&mut honest).await;
    drop(flood);
    let (most, ever, grown) = (most.load(Relaxed), ever.load(Relaxed), resident().saturating_sub(before));
    println!(
        "{ever} slow connections, {most} at a time, a node let in after {let_in:?}, {} KiB more memory",
        grown >> 10
    );
    // 64 places; a connection that the victim has just closed may still count here.
    assert!(most <= 64 + 16, "{most} at a time");
    assert!(let_in < Duration::from_secs(2), "the node waited for {let_in:?}");
    assert!(grown < GROWTH, "{grown} bytes");
    drop(third);
    honest.victim.until("3 went", |heard| matches!(heard, Heard::Unreachable(3)).then_some(())).await;
    undisturbed(&mut honest);
    honest.flows().await;
}
