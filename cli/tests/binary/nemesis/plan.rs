//! What will go wrong and when, drawn from the seed before anything begins: the same seed, the same plan.
//!
//! Two series run beside each other: one of processes and disks, one of links. Whom a fault meets may depend on who
//! leads at that moment; the plan says so, and the run notes whom it met.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    time::Duration,
};

use super::world::World;
use crate::rng::Rng;

/// Every kind of fault, as it is printed.
pub(crate) const KINDS: [&str; 9] =
    ["kill", "pause", "power cut", "cut", "loss", "delay", "reorder", "duplicate", "corrupt"];

/// One fault that will be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    /// When it begins.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// One of [`KINDS`].
    pub kind: &'static str,
    /// Of links: how strong it is.
    pub value: f64,
    /// Whom it meets.
    pub target: Target,
}

/// Whom a fault meets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// Whoever leads.
    Leader,
    /// This node, or the next one if it is down.
    Node(u64),
    /// Every node at once.
    All,
    /// What leaves a node.
    From(Whom),
    /// What comes to a node.
    To(Whom),
    /// One direction between two.
    Link(u64, u64),
    /// Every link.
    Everywhere,
}

/// A node at the end of links.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whom {
    /// Whoever leads.
    Leader,
    /// This one.
    Node(u64),
}

/// Draws a plan for so many nodes and so long.
pub(crate) fn draw(rng: &mut Rng, nodes: u64, length: Duration) -> Vec<Planned> {
    let mut plan = Vec::new();
    let millis = |rng: &mut Rng, least: u64, most: u64| Duration::from_millis(least + rng.below(most - least));
    let length = length.saturating_sub(Duration::from_secs(1));

    let (mut at, mut bag) = (millis(rng, 500, 1500), Vec::new());
    while at < length {
        let kind = take(rng, &mut bag, &KINDS[..3]);
        let target = match (rng.below(10), kind) {
            // The whole cluster at once: what one node alone loses, the others still have.
            (0..4, "power cut") | (0, "kill") => Target::All,
            (0..6, _) => Target::Leader,
            _ => Target::Node(1 + rng.below(nodes)),
        };
        let lasts = millis(rng, 100, 1800);
        plan.push(Planned { at, lasts, kind, value: 0.0, target });
        at += millis(rng, 700, 2300);
    }
    let (mut at, mut bag) = (millis(rng, 500, 1500), Vec::new());
    while at < length {
        let kind = take(rng, &mut bag, &KINDS[3..]);
        let hundredths = |rng: &mut Rng, least, most| (least + rng.below(most - least)) as f64 / 100.0;
        let value = match kind {
            "cut" => 1.0,
            "delay" => hundredths(rng, 1, 15),
            "reorder" | "duplicate" => hundredths(rng, 10, 60),
            _ => hundredths(rng, 2, 40),
        };
        let node = 1 + rng.below(nodes);
        let other = 1 + (node + rng.below(nodes - 1)) % nodes;
        let target = match rng.below(8) {
            0 => Target::From(Whom::Leader),
            1 => Target::To(Whom::Leader),
            2 => Target::From(Whom::Node(node)),
            3 => Target::To(Whom::Node(node)),
            // A cut everywhere would only be silence.
            4 | 5 if kind != "cut" => Target::Everywhere,
            _ => Target::Link(node, other),
        };
        plan.push(Planned { at, lasts: millis(rng, 300, 2200), kind, value, target });
        at += millis(rng, 150, 850);
    }
    plan.sort_by_key(|planned| planned.at);
    plan
}

/// In turns of all kinds, each turn in an order of its own: so each occurs as often as any other.
fn take(rng: &mut Rng, bag: &mut Vec<&'static str>, kinds: &[&'static str]) -> &'static str {
    if bag.is_empty() {
        bag.extend(kinds);
    }
    bag.swap_remove(rng.below(bag.len() as u64) as usize)
}

impl Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Planned { at, lasts, kind, value, target } = self;
        write!(f, "{:8.3} s, for {:5.3} s: {kind} {value} {target:?}", at.as_secs_f64(), lasts.as_secs_f64())
    }
}

/// Carries a plan out, and counts what really happened.
pub(crate) struct Nemesis {
    plan: std::vec::IntoIter<Planned>,
    next: Option<Planned>,
    /// What is going on, by its end.
    active: Vec<(Duration, Active)>,
    /// By kind: how often it was done, and met something.
    pub fired: BTreeMap<&'static str, u64>,
    /// How often there was nobody to meet.
    pub missed: u64,
    /// What was done, for people.
    pub log: Vec<String>,
}

/// A fault that is going on.
enum Active {
    Down(Vec<u64>, &'static str),
    Paused(u64),
    /// Links, the fault on them, and how many frames it had met when it began.
    Links(Vec<(u64, u64)>, &'static str, u64),
}

impl Nemesis {
    /// With this plan.
    pub(crate) fn new(plan: Vec<Planned>) -> Nemesis {
        let mut plan = plan.into_iter();
        let next = plan.next();
        Nemesis { plan, next, active: vec![], fired: KINDS.map(|kind| (kind, 0)).into(), missed: 0, log: vec![] }
    }

    /// Does what is due. False when there is nothing more to come.
    pub(crate) fn step(&mut self, world: &mut World, now: Duration, leader: Option<u64>) -> bool {
        while let Some(i) = self.active.iter().position(|(end, _)| *end <= now) {
            let (_, active) = self.active.swap_remove(i);
            self.end(world, now, active);
        }
        while let Some(planned) = self.next.take_if(|planned| planned.at <= now) {
            self.begin(world, now, leader, planned);
            self.next = self.plan.next();
        }
        self.next.is_some() || !self.active.is_empty()
    }

    fn begin(&mut self, world: &mut World, now: Duration, leader: Option<u64>, planned: Planned) {
        let Planned { kind, value, target, lasts, .. } = planned;
        let awake = world.awake();
        let hit = match target {
            Target::All => awake.clone(),
            Target::Leader => {
                leader.filter(|leader| awake.contains(leader)).or(awake.first().copied()).into_iter().collect()
            }
            Target::Node(node) => awake.iter().find(|id| **id >= node).or(awake.first()).copied().into_iter().collect(),
            _ => vec![],
        };
        let links = links(world, leader, target);
        if hit.is_empty() && links.is_empty() {
            self.missed += 1;
            return;
        }
        if hit.len() > 1 {
            // At one moment, though they die one after the other: nobody outlives the rest and learns more.
            hit.iter().for_each(|id| world.pause(*id));
        }
        let active = match kind {
            "pause" => {
                world.pause(hit[0]);
                Active::Paused(hit[0])
            }
            "kill" => {
                hit.iter().for_each(|id| world.kill(*id));
                Active::Down(hit.clone(), kind)
            }
            "power cut" => {
                hit.iter().for_each(|id| world.cut_power(*id));
                Active::Down(hit.clone(), kind)
            }
            _ => {
                let met = links.iter().map(|(from, to)| world.link(*from, *to, kind, value)).sum();
                Active::Links(links.clone(), kind, met)
            }
        };
        if matches!(active, Active::Down(..) | Active::Paused(_)) {
            *self.fired.entry(kind).or_default() += 1;
        }
        let whom = if links.is_empty() { format!("{hit:?}") } else { format!("{links:?}") };
        let note = if Some(hit.as_slice()) == leader.as_ref().map(std::slice::from_ref) { " (leader)" } else { "" };
        self.log.push(format!("{:8.3} {kind} {value} on {whom}{note}", now.as_secs_f64()));
        self.active.push((now + lasts, active));
    }

    fn end(&mut self, world: &mut World, now: Duration, active: Active) {
        let seconds = now.as_secs_f64();
        match active {
            Active::Down(nodes, kind) => {
                for id in nodes {
                    if kind == "power cut" {
                        world.mount_disk(id);
                    }
                    world.start(id);
                    self.log.push(format!("{seconds:8.3} node {id} starts"));
                }
            }
            Active::Paused(id) => {
                // It still is: a fault meets only who is awake.
                world.resume(id);
                self.log.push(format!("{seconds:8.3} node {id} goes on"));
            }
            Active::Links(links, kind, before) => {
                let now: u64 = links.iter().map(|(from, to)| world.link(*from, *to, kind, 0.0)).sum();
                let met = now - before;
                *self.fired.entry(kind).or_default() += u64::from(met > 0);
                self.missed += u64::from(met == 0);
                self.log.push(format!("{seconds:8.3} end of {kind} on {links:?}: it met {met} frames"));
            }
        }
    }
}

fn links(world: &World, leader: Option<u64>, target: Target) -> Vec<(u64, u64)> {
    let ids = world.ids();
    let who = |whom| match whom {
        Whom::Leader => leader.unwrap_or(1),
        Whom::Node(id) => id,
    };
    let all = ids.iter().flat_map(|from| ids.iter().map(|to| (*from, *to))).filter(|(from, to)| from != to);
    match target {
        Target::From(whom) => all.filter(|(from, _)| *from == who(whom)).collect(),
        Target::To(whom) => all.filter(|(_, to)| *to == who(whom)).collect(),
        Target::Link(from, to) => vec![(from, to)],
        Target::Everywhere => all.collect(),
        Target::Leader | Target::Node(_) | Target::All => vec![],
    }
}
