//! The gate before the handshakes: how many may begin, from which addresses, and how fast. This file has no socket and
//! no clock.
//!
//! ```text
//!               known address ──▶ its own tokens and places ──────────────┐
//!  Initial ─▶                                                             ├─▶ accept ▶ a Place, until the hello is done
//!               stranger ──▶ tokens and places of all strangers, then its own ─┘
//!                      └ tight, and the address not proven ▶ retry (a token back, no state)
//!                      └ no tokens ▶ ignored (QUIC sends it again)   └ no places ▶ refused
//! ```
//!
//! A handshake costs this node two signatures, and costs the sender one datagram, which may carry any address. So each
//! address has a bucket of tokens, and all strangers together have another one. The addresses of configured peers, and
//! those from which a peer has shown its certificate, do not use the tokens of strangers. So a flood cannot keep out an
//! honest node that comes back. Once half of the tokens are gone, a sender must prove that the address is its own, so
//! that an attacker cannot use up the tokens of another address.
//!
//! Bounds: [`MAX_ADDRESSES`] buckets; beyond it a new stranger is ignored until a bucket has filled up again and is
//! forgotten. Packets without tokens are not answered at all: that costs nothing, and sends nothing to forged
//! addresses. The QUIC of an honest peer sends its first packet again within the same dial.
//!
//! Deliberately absent: fairness between an honest node and a flood from its own address. Peers dial each other, so
//! that such a node is found from the other side.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    rc::Rc,
    time::Duration,
};

use actorum_machine::ids::NodeId;
use tokio::time::Instant;

/// How many addresses are remembered at a time, about 100 bytes each.
const MAX_ADDRESSES: usize = 4096;

/// How often at most all of them are looked through.
const SWEEP: Duration = Duration::from_millis(10);

/// How many proofs of an address are asked for per second, of strangers and of known addresses each. Each is a small
/// sealed packet.
const RETRIES: u32 = 1000;

/// Addresses that one name of a peer may have.
const MAX_RESOLVED: usize = 16;

/// How many handshakes may begin, and be in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// In progress, of strangers.
    pub places: usize,
    /// In progress, of one address.
    pub places_per_address: usize,
    /// Begun per second, of strangers. Twice as many at once.
    pub rate: u32,
    /// Begun per second, of one address. Twice as many at once.
    pub rate_per_address: u32,
}

/// Tokens that come back with time.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
    rate: f64,
}

impl Bucket {
    fn full(rate: u32, now: Instant) -> Bucket {
        Bucket { tokens: 2.0 * f64::from(rate), at: now, rate: rate.into() }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate).min(2.0 * self.rate);
        self.at = self.at.max(now);
    }

    fn has_one(&self) -> bool {
        self.tokens >= 1.0
    }

    fn take(&mut self) -> bool {
        let enough = self.has_one();
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    fn is_full(&self) -> bool {
        self.tokens >= 2.0 * self.rate
    }

    fn is_tight(&self) -> bool {
        self.tokens < self.rate
    }
}

/// One address: an IPv4 address, or an IPv6 network of 64 bits, since any host can have many addresses of its network.
#[derive(Debug)]
struct Sender {
    bucket: Bucket,
    places: usize,
}

/// What is known of where a peer is.
#[derive(Debug, Default)]
struct Whereabouts {
    resolved: BTreeSet<IpAddr>,
    met: Option<IpAddr>,
}

/// What happens to a first packet.
#[derive(Debug)]
pub(super) enum GateDecision {
    /// The handshake may begin; the place is taken until it is dropped.
    Accept(Place),
    /// The sender must show that the address is its own.
    Retry,
    /// Not answered.
    Ignore,
    /// Told that it is not welcome now.
    Refuse,
}

/// A handshake in progress.
#[derive(Debug)]
pub(super) struct Place {
    gate: Rc<RefCell<Gate>>,
    address: IpAddr,
    of_strangers: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut gate = self.gate.borrow_mut();
        if self.of_strangers {
            gate.places -= 1;
        }
        if let Some(sender) = gate.senders.get_mut(&self.address) {
            sender.places -= 1;
        }
    }
}

/// The gate of one endpoint.
#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    strangers: Bucket,
    retries: Bucket,
    known_retries: Bucket,
    places: usize,
    senders: BTreeMap<IpAddr, Sender>,
    /// By node. Bound: the listed peers, and the holders of a certificate.
    peers: BTreeMap<NodeId, Whereabouts>,
    /// All of those addresses.
    known: BTreeSet<IpAddr>,
    /// When addresses were forgotten last.
    swept: Instant,
}

impl Gate {
    pub(super) fn new(limits: Limits, now: Instant) -> Gate {
        Gate {
            limits,
            strangers: Bucket::full(limits.rate, now),
            retries: Bucket::full(RETRIES, now),
            known_retries: Bucket::full(RETRIES, now),
            places: 0,
            senders: BTreeMap::new(),
            peers: BTreeMap::new(),
            known: BTreeSet::new(),
            swept: now,
        }
    }

    /// A listed peer's name leads there now.
    pub(super) fn resolved(&mut self, peer: NodeId, addresses: impl Iterator<Item = IpAddr>) {
        let resolved: BTreeSet<IpAddr> = addresses.map(network).take(MAX_RESOLVED).collect();
        let whereabouts = self.peers.entry(peer).or_default();
        if whereabouts.resolved != resolved {
            whereabouts.resolved = resolved;
            self.sum_up();
        }
    }

    /// A peer has shown its certificate from there.
    pub(super) fn met(&mut self, peer: NodeId, address: IpAddr) {
        let met = Some(network(address));
        let whereabouts = self.peers.entry(peer).or_default();
        if whereabouts.met != met {
            whereabouts.met = met;
            self.sum_up();
        }
    }

    /// A peer that is not listed any more has no tokens of its own.
    pub(super) fn forget(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
        self.sum_up();
    }

    fn sum_up(&mut self) {
        self.known = self.peers.values().flat_map(|at| at.resolved.iter().copied().chain(at.met)).collect();
    }

    /// Judges a first packet from `address`, which is `proven` when its sender has answered a retry.
    pub(super) fn judge(gate: &Rc<RefCell<Gate>>, now: Instant, address: IpAddr, proven: bool) -> GateDecision {
        let address = network(address);
        let (of_strangers, judged) = gate.borrow_mut().decide(now, address, proven);
        judged.map_or_else(
            |verdict| verdict,
            |()| GateDecision::Accept(Place { gate: gate.clone(), address, of_strangers }),
        )
    }

    fn decide(&mut self, now: Instant, address: IpAddr, proven: bool) -> (bool, Result<(), GateDecision>) {
        let known = self.known.contains(&address);
        let judged =
            if known { self.decide_known(now, address, proven) } else { self.decide_stranger(now, address, proven) };
        if judged.is_ok() {
            self.places += usize::from(!known);
            if let Some(sender) = self.senders.get_mut(&address) {
                sender.places += 1;
            }
        }
        (!known, judged)
    }

    fn decide_known(&mut self, now: Instant, address: IpAddr, proven: bool) -> Result<(), GateDecision> {
        self.known_retries.refill(now);
        let limits = self.limits;
        let sender = self.sender(now, address);
        let tight = sender.bucket.is_tight() || sender.places >= limits.places_per_address.div_ceil(2);
        if tight && !proven {
            return Err(if self.known_retries.take() { GateDecision::Retry } else { GateDecision::Ignore });
        }
        self.take_from_sender(address)
    }

    fn decide_stranger(&mut self, now: Instant, address: IpAddr, proven: bool) -> Result<(), GateDecision> {
        self.strangers.refill(now);
        self.retries.refill(now);
        let tight = self.strangers.is_tight() || self.places >= self.limits.places / 2;
        if tight && !proven {
            return Err(if self.retries.take() { GateDecision::Retry } else { GateDecision::Ignore });
        }
        // This is checked before an address is remembered, so that a flood does not fill the memory with addresses that
        // get nothing.
        if !self.strangers.has_one() || !self.senders.contains_key(&address) && !self.has_room(now) {
            return Err(GateDecision::Ignore);
        }
        // Its own token first: an address that is over its rate takes nothing from the others.
        self.sender(now, address);
        self.take_from_sender(address)?;
        self.strangers.take();
        if self.places >= self.limits.places {
            return Err(GateDecision::Refuse);
        }
        Ok(())
    }

    fn sender(&mut self, now: Instant, address: IpAddr) -> &mut Sender {
        let rate = self.limits.rate_per_address;
        let fresh = || Sender { bucket: Bucket::full(rate, now), places: 0 };
        let sender = self.senders.entry(address).or_insert_with(fresh);
        sender.bucket.refill(now);
        sender
    }

    fn take_from_sender(&mut self, address: IpAddr) -> Result<(), GateDecision> {
        let most = self.limits.places_per_address;
        match self.senders.get_mut(&address) {
            None => Err(GateDecision::Ignore),
            Some(sender) => match (sender.bucket.take(), sender.places < most) {
                (false, _) => Err(GateDecision::Ignore),
                (true, false) => Err(GateDecision::Refuse),
                (true, true) => Ok(()),
            },
        }
    }

    /// Whether one more address can be remembered, after addresses with full buckets were forgotten.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.senders.len() >= MAX_ADDRESSES && now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.senders.retain(|_, sender| {
                sender.bucket.refill(now);
                sender.places > 0 || !sender.bucket.is_full()
            });
        }
        self.senders.len() < MAX_ADDRESSES
    }
}

/// What counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LIMITS: Limits = Limits { places: 64, places_per_address: 16, rate: 200, rate_per_address: 50 };

    fn gate(limits: Limits, now: Instant) -> Rc<RefCell<Gate>> {
        Rc::new(RefCell::new(Gate::new(limits, now)))
    }

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    /// How many of a flood of `per_ms` first packets per millisecond begin a handshake that ends at once.
    fn accepted(
        gate: &Rc<RefCell<Gate>>,
        now: &mut Instant,
        ms: u32,
        per_ms: u32,
        from: impl Fn(u32) -> (IpAddr, bool),
    ) -> u32 {
        let mut accepted = 0;
        for n in 0..ms * per_ms {
            if n % per_ms == 0 {
                *now += Duration::from_millis(1);
            }
            let (address, proven) = from(n);
            accepted += u32::from(matches!(Gate::judge(gate, *now, address, proven), GateDecision::Accept(_)));
        }
        accepted
    }

    /// One address has its rate, and what it had saved.
    #[test]
    fn one_address_has_its_rate() {
        let mut now = Instant::now();
        let gate = gate(LIMITS, now);
        let begun = accepted(&gate, &mut now, 10_000, 1, |_| (address(1), true));
        assert!((595..=601).contains(&begun), "100 at once and 50 a second for 10 s: {begun}");
        assert!(
            matches!(Gate::judge(&gate, now, address(2), true), GateDecision::Accept(_)),
            "nobody else pays for it"
        );
    }

    /// Many addresses have together what strangers share, and the memory of them is bounded.
    #[test]
    fn all_strangers_have_one_rate() {
        let mut now = Instant::now();
        let gate = gate(LIMITS, now);
        let begun = accepted(&gate, &mut now, 5000, 100, |n| (address(n), true));
        assert!((1395..=1401).contains(&begun), "400 at once and 200 a second for 5 s: {begun}");
        assert!(gate.borrow().senders.len() <= MAX_ADDRESSES);
        assert_eq!(gate.borrow().places, 0, "every place came free");
        // Much later all of them are forgotten when the room is needed, and there is room for others.
        now += Duration::from_secs(60);
        assert!(matches!(Gate::judge(&gate, now, address(1 << 20), true), GateDecision::Accept(_)));
        assert!(gate.borrow().senders.len() < MAX_ADDRESSES);
    }

    /// A flood of strangers, proven or not, leaves a known peer its handshakes, also those it needs a proof for.
    #[test]
    fn a_known_peer_passes_a_flood_of_strangers() {
        let mut now = Instant::now();
        let gate = gate(LIMITS, now);
        gate.borrow_mut().resolved(2, [address(2)].into_iter());
        gate.borrow_mut().met(3, address(3));
        accepted(&gate, &mut now, 3000, 100, |n| (address(100 + n), n % 2 == 0));
        let held: Vec<_> = (0..4000).map(|n| Gate::judge(&gate, now, address(5000 + n), true)).collect();
        assert!(
            matches!(Gate::judge(&gate, now, address(4), true), GateDecision::Ignore | GateDecision::Refuse),
            "a stranger has to wait"
        );
        for peer in [2, 3] {
            assert!(
                matches!(Gate::judge(&gate, now, address(peer), false), GateDecision::Accept(_)),
                "and a peer has not"
            );
        }
        drop(held);
        // Somebody writes a peer's address on datagrams: the peer proves that it is its own, and half is left for it.
        accepted(&gate, &mut now, 2000, 1, |_| (address(2), false));
        drop(Gate::judge(&gate, now, address(2), false));
        assert!(matches!(Gate::judge(&gate, now, address(2), false), GateDecision::Retry), "asked for a proof");
        assert!(matches!(Gate::judge(&gate, now, address(2), true), GateDecision::Accept(_)));
        // No longer listed, it is a stranger.
        gate.borrow_mut().forget(2);
        assert!(!gate.borrow().known.contains(&address(2)));
    }

    /// Handshakes that do not end take the strangers' places and their address's, and no peer's.
    #[test]
    fn places_are_bounded() {
        let now = Instant::now();
        let gate = gate(LIMITS, now);
        gate.borrow_mut().resolved(2, [address(2)].into_iter());
        let one: Vec<_> = (0..20).map(|_| Gate::judge(&gate, now, address(1), true)).collect();
        assert_eq!(one.iter().filter(|v| matches!(v, GateDecision::Accept(_))).count(), 16);
        assert!(matches!(one.last(), Some(GateDecision::Refuse)));
        let all: Vec<_> = (0..200).map(|n| Gate::judge(&gate, now, address(10 + n), true)).collect();
        assert_eq!(all.iter().filter(|v| matches!(v, GateDecision::Accept(_))).count(), 64 - 16);
        assert!(matches!(Gate::judge(&gate, now, address(2), false), GateDecision::Accept(_)));
        drop((one, all));
        assert_eq!(gate.borrow().places, 0);
        assert!(gate.borrow().senders.values().all(|sender| sender.places == 0));
    }

    /// Unproven addresses are asked for a proof once half is gone, and no more than can be paid for.
    #[test]
    fn proofs_are_asked_for_and_bounded() {
        let now = Instant::now();
        let gate = gate(LIMITS, now);
        let verdicts: Vec<_> = (0..5000).map(|n| Gate::judge(&gate, now, address(n), false)).collect();
        let count = |is: fn(&GateDecision) -> bool| verdicts.iter().filter(|v| is(v)).count();
        assert_eq!(count(|v| matches!(v, GateDecision::Accept(_))), 32, "half of the places");
        assert_eq!(count(|v| matches!(v, GateDecision::Retry)), 2000);
        assert_eq!(count(|v| matches!(v, GateDecision::Ignore)), 5000 - 32 - 2000);
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_address() {
        let parse = |text: &str| network(text.parse().unwrap());
        assert_eq!(parse("2001:db8::1"), parse("2001:db8::ffff:2"));
        assert_ne!(parse("2001:db8::1"), parse("2001:db8:0:1::1"));
        assert_eq!(parse("::ffff:10.0.0.1"), parse("10.0.0.1"));
        assert_ne!(parse("10.0.0.1"), parse("10.0.0.2"));
    }
}
