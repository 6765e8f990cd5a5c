//! A cluster driven by random numbers: everything that may happen happens, in any order, and nothing that may never
//! happen does.
//!
//! Links lose and repeat but never reorder (a stream); heartbeats and votes overtake the log (another stream); disks
//! answer late and lose what they had not answered for, or not all of it; nodes die, pause and come back; members come
//! and go. After each effect [`Checks`](super::checks::Checks) looks; at the end everything is healed and every client
//! must have had its one answer. `SEED=7` runs one seed, `SEEDS=10000` that many.

use std::time::Duration;

use actorum_machine::{ids::NodeId, members::Change};

use super::cluster::{Cluster, Errand, TICK};
use crate::{message::Room, wire::AskError};

/// splitmix64: enough for tests.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.roll(from.len() as u64) as usize]) }
    }
}

struct Run {
    seed: u64,
    rng: Rng,
    cluster: Cluster,
    replies: usize,
    /// Whether members come and go in this run.
    changes: bool,
    /// Probes that ended.
    suspected: usize,
    /// Snapshots that were fetched.
    fetched: usize,
    /// A node that stays away for long, in some runs.
    away: Option<NodeId>,
}

/// A failure shows the way there.
impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines: Vec<&str> = self.cluster.out.lines().collect();
            let shown: usize = std::env::var("LINES_SHOWN").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
            eprintln!("{}", lines[lines.len().saturating_sub(shown)..].join("\n"));
            eprintln!("SEED={} repeats this", self.seed);
        }
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let mut cluster = Cluster::new(seed);
        // Writes end at random: in some runs a disk is often too slow, in others never.
        cluster.disk_slow_ticks = rng.pick(&[3, 10, 1 << 30]).unwrap_or(10);
        // In most runs the log is cut off behind those who are away.
        cluster.snapshot_entries = rng.pick(&[2, 6, 1 << 30]).unwrap_or(6);
        cluster.keep_entries = rng.roll(4);
        cluster.hold_bytes = rng.pick(&[0, 0, 1000]).unwrap_or(0);
        // In some runs a message holds one entry, and a window two.
        cluster.max_append_bytes = rng.pick(&[1 << 10, 100, 1]).unwrap_or(1 << 10);
        cluster.peer_window_bytes = rng.pick(&[1 << 13, 200, 60]).unwrap_or(1 << 13);
        cluster.max_unapplied_bytes = rng.pick(&[1 << 20, 1 << 20, 500]).unwrap_or(1 << 20);
        let founders: Vec<NodeId> = (1..=rng.pick(&[1, 2, 3, 3, 3, 5]).unwrap_or(3)).collect();
        let changes = rng.one_in(2);
        cluster.found(&founders);
        if changes {
            let last = founders.len() as u64;
            cluster.add(last + 1, true);
            cluster.add(last + 2, true);
        }
        for id in cluster.nodes.keys().copied().collect::<Vec<_>>() {
            if let Some(node) = cluster.nodes.get_mut(&id) {
                (node.disk_auto, node.apply_auto) = (false, false);
            }
            cluster.start(id, None);
        }
        let away = rng.pick(&founders).filter(|_| founders.len() > 2 && rng.one_in(2));
        Run { seed, rng, cluster, replies: 0, changes, suspected: 0, fetched: 0, away }
    }

    fn up(&self) -> Vec<NodeId> {
        self.cluster.nodes.keys().copied().filter(|id| self.cluster.is_up(*id)).collect()
    }

    fn any_up(&mut self) -> Option<NodeId> {
        let up = self.up();
        self.rng.pick(&up)
    }

    fn reply(&mut self, kind: &str) -> String {
        self.replies += 1;
        format!("{kind}{}", self.replies)
    }

    /// After an input: mostly a drain at once, sometimes more inputs first.
    fn drain_soon(&mut self, id: NodeId) {
        if !self.rng.one_in(3) && self.cluster.is_up(id) {
            self.cluster.drain(id);
        }
    }

    fn step(&mut self) {
        let wait = Duration::from_millis(100 + self.rng.roll(4000));
        match self.rng.roll(100) {
            0..30 => self.deliver(),
            30..45 => self.tick(),
            45..58 => self.persist(),
            58..61 => self.snapshots(),
            61..68 => {
                let Some(id) = self.any_up() else { return };
                self.cluster.apply_quietly(id);
                self.drain_soon(id);
            }
            68..78 => self.carry(),
            78..88 => {
                let (Some(id), reply) = (self.any_up(), self.reply("p")) else { return };
                self.cluster.propose(id, &reply, wait);
                self.drain_soon(id);
            }
            88..92 => {
                let (Some(id), reply) = (self.any_up(), self.reply("r")) else { return };
                self.cluster.read(id, &reply, wait);
                self.drain_soon(id);
            }
            92 if self.changes => self.change(wait),
            93 => self.crash(),
            94 | 95 => self.restart(),
            96 => self.lose(),
            97 => {
                let (Some(a), Some(b)) = (self.any_up(), self.any_up()) else { return };
                if self.rng.one_in(3) {
                    self.cluster.cut(a, b);
                    self.cluster.core(a).unreachable(b);
                }
            }
            98 => self.cluster.cut.clear(),
            99 => {
                let Some(id) = self.any_up() else { return };
                if self.rng.one_in(4) {
                    self.cluster.core(id).campaign();
                }
                self.drain_soon(id);
            }
            _ => {}
        }
    }

    fn deliver(&mut self) {
        let busy: Vec<_> = self.cluster.links.iter().filter(|(_, q)| !q.is_empty()).map(|(link, _)| *link).collect();
        let Some((from, to, urgent)) = self.rng.pick(&busy) else { return };
        let repeated = self.rng.one_in(20);
        if let Some(queue) = self.cluster.links.get_mut(&(from, to, urgent)).filter(|_| repeated) {
            let first = queue[0].clone();
            queue.push_front(first);
        }
        let count = 1 + self.rng.roll(4) as usize;
        self.cluster.deliver(from, to, urgent, count);
        self.drain_soon(to);
    }

    fn tick(&mut self) {
        let Some(id) = self.any_up() else { return };
        let by = if self.rng.one_in(30) { TICK * 20 } else { TICK };
        if let Some(node) = self.cluster.nodes.get_mut(&id) {
            node.now += by;
        }
        self.cluster.drain(id);
    }

    fn persist(&mut self) {
        let Some(id) = self.any_up() else { return };
        let numbers: Vec<u64> = self.cluster.nodes[&id].disk.in_flight.iter().map(|append| append.number).collect();
        if self.cluster.nodes[&id].probing && self.rng.one_in(2) {
            let fails = self.rng.one_in(4);
            self.suspected += 1;
            self.cluster.probe(id, if fails { Err("it fails".into()) } else { Ok(()) });
        }
        if self.rng.one_in(40) {
            let low = self.rng.one_in(2);
            self.cluster.core(id).disk_space(Room::low(low));
        }
        if self.rng.one_in(2) && self.cluster.read_entries(id) {
            self.drain_soon(id);
        }
        let Some(number) = self.rng.pick(&numbers) else { return };
        self.cluster.persist(id, number);
        self.drain_soon(id);
    }

    /// A snapshot that was asked for is built, or not; one that is fetched gets on, arrives, or fails.
    fn snapshots(&mut self) {
        for id in self.up() {
            let applied = self.cluster.nodes[&id].applier.applied > 1;
            if self.cluster.nodes[&id].building || (applied && self.rng.one_in(4)) {
                match self.rng.one_in(10) {
                    true => self.cluster.core(id).snapshot_built(Err("it fails".into())),
                    false => self.cluster.built(id),
                }
                self.drain_soon(id);
            }
            let Ok((from, snapshot)) = self.cluster.wanted(id) else { continue };
            let gave_up = self.rng.one_in(6).then(|| "it fails".to_owned());
            if self.cluster.is_up(from) {
                self.cluster.core(from).peer_fetches(id, snapshot.index, gave_up.clone());
                self.drain_soon(from);
            }
            if gave_up.is_some() || self.rng.one_in(2) {
                if let Some(node) = self.cluster.nodes.get_mut(&id) {
                    node.fetching = None;
                }
                self.fetched += usize::from(gave_up.is_none());
                self.cluster.core(id).snapshot_fetched(&snapshot, gave_up.map_or(Ok(()), Err));
                self.drain_soon(id);
            }
        }
    }

    fn carry(&mut self) {
        if self.cluster.errands.is_empty() {
            return;
        }
        let n = self.rng.roll(self.cluster.errands.len() as u64) as usize;
        let Some(errand) = self.cluster.errands.remove(n) else { return };
        let reached = match errand {
            Errand::Question { from, id, .. } if self.rng.one_in(10) => {
                self.cluster.end_question(from, id, AskError::NotSent("no connection".into()))
            }
            Errand::Answer { to, id, .. } if self.rng.one_in(10) => {
                self.cluster.end_question(to, id, AskError::Lost("the connection broke".into()))
            }
            errand => self.cluster.carry(errand),
        };
        self.drain_soon(reached);
    }

    fn change(&mut self, wait: Duration) {
        let Some(id) = self.any_up() else { return };
        let all: Vec<_> = self.cluster.nodes.keys().copied().collect();
        let Some(node) = self.rng.pick(&all) else { return };
        // Without its incarnation on record a learner is not promoted.
        self.cluster.record(id, node);
        let change = match self.rng.roll(8) {
            0..3 => Change::AddLearner(node, "somewhere:7000".into()),
            3..6 => Change::Promote(node),
            6 => Change::Demote(node),
            _ => Change::Remove(node),
        };
        let reply = self.reply("c");
        self.cluster.change(id, &reply, change, wait);
        self.drain_soon(id);
    }

    fn crash(&mut self) {
        let Some(id) = self.any_up() else { return };
        // Some of what was in flight may have reached the disk without anybody hearing of it.
        let numbers: Vec<u64> = self.cluster.nodes[&id].disk.in_flight.iter().map(|append| append.number).collect();
        let reached = self.rng.pick(&numbers).filter(|_| self.rng.one_in(2));
        self.cluster.crash_after(id, reached.unwrap_or(0));
    }

    fn restart(&mut self) {
        let away = |id: &NodeId| Some(*id) == self.away;
        let down: Vec<_> =
            self.cluster.nodes.keys().copied().filter(|id| !self.cluster.is_up(*id) && !away(id)).collect();
        let Some(id) = self.rng.pick(&down) else { return };
        // A machine with storage of its own may have come further than its snapshot, and not as far as the commit.
        let commit = self.cluster.nodes[&id].disk.image().hard_state.commit;
        let applied = 1 + self.rng.roll(commit.max(1));
        self.cluster.start(id, Some(applied.min(commit)));
    }

    /// A connection breaks: what was on it is gone, and both sides may or may not notice at once.
    fn lose(&mut self) {
        let (Some(a), Some(b)) = (self.any_up(), self.any_up()) else { return };
        self.cluster.links.retain(|(from, to, _), _| (*from, *to) != (a, b));
        if self.rng.one_in(2) {
            self.cluster.core(a).unreachable(b);
            self.drain_soon(a);
        }
    }

    /// Everything works again, for as long as it takes.
    fn heal(&mut self) {
        self.cluster.cut.clear();
        for id in self.cluster.nodes.keys().copied().collect::<Vec<_>>() {
            if !self.cluster.is_up(id) {
                self.cluster.start(id, None);
            }
            if let Some(node) = self.cluster.nodes.get_mut(&id) {
                (node.disk_auto, node.apply_auto) = (true, true);
            }
            self.cluster.core(id).disk_space(Room::low(false));
            self.cluster.probe(id, Ok(()));
            self.cluster.read_entries(id);
            self.cluster.apply_quietly(id);
            self.cluster.drain(id);
        }
        let mut last = None;
        for round in 0..300 {
            for id in self.up() {
                if let Some(node) = self.cluster.nodes.get_mut(&id) {
                    node.now += TICK;
                }
                self.cluster.drain(id);
            }
            for id in self.up() {
                if let Ok((_, snapshot)) = self.cluster.wanted(id) {
                    if let Some(node) = self.cluster.nodes.get_mut(&id) {
                        node.fetching = None;
                    }
                    self.fetched += 1;
                    self.cluster.core(id).snapshot_fetched(&snapshot, Ok(()));
                    self.cluster.drain(id);
                }
            }
            for _ in 0..6 {
                for (from, to, urgent) in self.cluster.links.keys().copied().collect::<Vec<_>>() {
                    if self.cluster.deliver(from, to, urgent, usize::MAX) > 0 {
                        self.cluster.drain(to);
                    }
                }
                while let Some(errand) = self.cluster.errands.pop_front() {
                    let reached = self.cluster.carry(errand);
                    self.cluster.drain(reached);
                }
            }
            // It must be of use again: a leader takes a proposal and gets it applied.
            let leader = self.up().into_iter().find(|id| self.cluster.core(*id).leader() == Some(*id));
            match (&last, leader) {
                (None, Some(leader)) if round > 60 => {
                    let reply = self.reply("last");
                    self.cluster.propose(leader, &reply, Duration::from_secs(10));
                    self.cluster.drain(leader);
                    last = Some(reply);
                }
                (Some(reply), _) if self.cluster.checks.applied.contains_key(reply) && round > 100 => return,
                _ => {}
            }
        }
        panic!("healed, and still nothing is decided");
    }
}

fn run(seed: u64) -> [usize; 6] {
    let mut run = Run::new(seed);
    for n in 0..600 {
        match (n, run.away) {
            (30, Some(away)) if run.cluster.is_up(away) => run.cluster.crash_after(away, 0),
            (400, _) => run.away = None,
            _ => {}
        }
        run.step();
    }
    run.heal();
    let checks = &run.cluster.checks;
    checks.at_the_end();
    [checks.applied.len(), checks.rejected.len(), checks.unknown.len(), checks.served, run.suspected, run.fetched]
}

#[test]
fn rng() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(seed) = number("SEED") {
        println!("SEED={seed}: {:?} applied, rejected, unknown, read, probed, fetched", run(seed));
        return;
    }
    let mut sums = [0; 6];
    let seeds = number("SEEDS").unwrap_or(200);
    for seed in 1..=seeds {
        run(seed).into_iter().zip(&mut sums).for_each(|(one, sum)| *sum += one);
    }
    let [applied, rejected, unknown, served, probed, fetched] = sums;
    println!(
        "{seeds} seeds: {applied} applied, {rejected} rejected, {unknown} unknown, {served} reads, {probed} probes, \
         {fetched} snapshots fetched"
    );
    // Random runs that never get anything done would prove nothing.
    assert!(applied as u64 > seeds * 10 && rejected as u64 > seeds && unknown as u64 > seeds && served as u64 > seeds);
    assert!(probed as u64 > seeds / 10, "only {probed} disks were ever suspected");
    assert!(fetched as u64 > seeds / 20, "only {fetched} snapshots were ever fetched");
}
