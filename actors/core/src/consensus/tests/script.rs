//! The commands of the transcripts.
//!
//! ```text
//!  cluster 1 2 3 [disk=manual] [apply=manual]   three founders, formed and started
//!                [unapplied=BYTES]              the bound on what is not applied, on each node
//!                [unpersisted=BYTES] [slow=TICKS]  the bounds on what is not durable
//!  founder 1 / waiting 4 / form 1 2 3           empty directories; begin with this genesis
//!  tick 1 [TIMES]   advance 1 MS   campaign 1   time and elections
//!  propose 1 A [ms=MS]   read 1 R   change 1 C add|promote|demote|remove 4 [ms=MS] [force=true]
//!  deliver FROM TO [COUNT]   drop FROM TO       one link (0 stands for everybody)
//!  elect 1 [VOTERS]                             until it leads, by these alone
//!  settle                                       deliver and carry until nothing moves
//!  carry [COUNT]   lose 2 1   unsent 2 1        questions and their answers
//!  hand [COUNT]                                 carry into the mailbox: decided at the receiver's next move
//!  cut 1 2   isolate 1   heal   unreachable 1 2
//!  disk 1 manual|auto   persist 1 [NUMBER]      the log writer
//!  probe 1 passes|fails   space 1 low|short|waits|making|enough  the end of a probe; what the log writer says of space
//!  certificate 1 TICKS                          restarts node 1 with a certificate that ends so many ticks from now
//!  order 2 1                                    node 2 tells node 1 to campaign at once
//!  knows 1 2 [nothing]                          node 1 hears the features of node 2, or that it is of the first version
//!  mark 1                                       propose a mark
//!  record 1 4                                   propose what the cluster should know of a member
//!  applier 1 manual|auto   apply 1              the applier
//!  cluster .. [snapshots=ENTRIES] [keep=ENTRIES] [hold=BYTES]   when one is built, what stays behind it
//!  built 1 [fails]                              the file of a snapshot of what is applied
//!  fetches 3   fetched 3 [fails]                node 3 asks for a piece; has all of them, or has given up
//!  copy 1   put_back 1                          a copy of a directory; put in its place while the node is down
//!  commit_conflicts 1                                   what members say they committed that contradicts node 1
//!  calendar 1 MS   clocks 1 2@MS 3@MS           what its calendar shows now; what it knows of those of others
//!  stamps 1 INDEX                               the times of the entries in its log from there on
//!  crash 1   restart 1   status 1   disks 1   log 1   network
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use actorum_machine::{
    configuration::Configuration,
    ids::NodeId,
    members::{Change, ChangeRequest},
};
use goldenscript::{Command, Context, Runner};

use super::{
    cluster::{Cluster, TICK},
    disk::Image,
};
use crate::{
    clock_offsets::Estimates,
    entry::Stamped,
    features::Features,
    message::Room,
    wire::{AskError, MessageKind, RaftMessage},
};

pub(super) struct Script {
    cluster: Cluster,
    copies: BTreeMap<NodeId, Image>,
}

impl Script {
    pub(super) fn new() -> Self {
        Script { cluster: Cluster::new(1), copies: BTreeMap::new() }
    }

    fn founders(&mut self, ids: &[NodeId], disk: bool, apply: bool) {
        self.cluster.found(ids);
        for id in ids {
            if let Some(node) = self.cluster.nodes.get_mut(id) {
                (node.disk_auto, node.apply_auto) = (disk, apply);
            }
            self.cluster.start(*id, None);
        }
    }

    fn ids(&self, id: NodeId) -> Vec<NodeId> {
        if id == 0 { self.cluster.nodes.keys().copied().collect() } else { vec![id] }
    }

    /// Everything now on these links, link by link, each followed by a drain of its receiver.
    fn deliver(&mut self, from: NodeId, to: NodeId, count: usize) -> bool {
        let mut any = false;
        for from in self.ids(from) {
            for to in self.ids(to) {
                let mut left = count;
                for urgent in [true, false] {
                    left -= self.cluster.deliver(from, to, urgent, left);
                }
                if left < count {
                    any = true;
                    self.cluster.drain(to);
                }
            }
        }
        any
    }

    fn carry(&mut self, count: usize) -> bool {
        let count = count.min(self.cluster.errands.len());
        for _ in 0..count {
            if let Some(errand) = self.cluster.errands.pop_front() {
                let reached = self.cluster.carry(errand);
                self.cluster.drain(reached);
            }
        }
        count > 0
    }

    /// The others forget the leader they heard last; then one node's time is up, and only they and it exchange
    /// messages.
    fn elect(&mut self, id: NodeId, others: &[NodeId]) -> Result<(), Box<dyn Error>> {
        let all: Vec<_> = self.ids(0).into_iter().filter(|other| *other != id && self.cluster.is_up(*other)).collect();
        let others = if others.is_empty() { &all[..] } else { others };
        for _ in 0..10 {
            others.iter().for_each(|other| self.advance(*other, TICK));
        }
        for _ in 0..40 {
            if self.cluster.core(id).leader() == Some(id) {
                return Ok(());
            }
            self.advance(id, TICK);
            while others.iter().any(|other| self.deliver(id, *other, usize::MAX) | self.deliver(*other, id, usize::MAX))
            {
                if self.cluster.core(id).leader() == Some(id) {
                    return Ok(());
                }
            }
        }
        Err(format!("it was not elected:\n{}", self.cluster.out).into())
    }

    fn settle(&mut self) -> Result<(), Box<dyn Error>> {
        for _ in 0..100 {
            if !self.deliver(0, 0, usize::MAX) && !self.carry(usize::MAX) {
                return Ok(());
            }
        }
        Err(format!("it never comes to rest:\n{}", self.cluster.out).into())
    }

    fn end_question(&mut self, from: NodeId, id: u64, error: AskError) {
        let reached = self.cluster.end_question(from, id, error);
        self.cluster.drain(reached);
    }

    fn show_log(&mut self, id: NodeId) {
        let image = self.cluster.nodes[&id].disk.image();
        let mut line = format!("n{id} has on disk:");
        if image.snapshots.last().is_some_and(|newest| newest.index != image.compacted.0) {
            write!(line, " after {}@{}", image.compacted.0, image.compacted.1).unwrap();
        }
        for snapshot in &image.snapshots {
            write!(line, " snapshot {}@{}", snapshot.index, snapshot.term).unwrap();
        }
        image.entries.values().for_each(|e| write!(line, " {}@{}", e.index, e.term).unwrap());
        let hard = image.hard_state;
        writeln!(self.cluster.out, "{line} term {} vote {} commit {}", hard.term, hard.vote, hard.commit).unwrap();
    }

    fn show_stamps(&mut self, id: NodeId, from: u64) {
        let known = self.cluster.core(id).status().median_known;
        writeln!(self.cluster.out, "n{id} {} the median", if known { "knows" } else { "does not know" }).unwrap();
        let image = self.cluster.nodes[&id].disk.image();
        for entry in image.entries.values().filter(|entry| entry.index >= from && !entry.data.is_empty()) {
            let time = Stamped::parse(&entry.data).unwrap().time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            writeln!(self.cluster.out, "n{id} {}@{} at {} ms", entry.index, entry.term, time.as_millis()).unwrap();
        }
    }

    fn show_status(&mut self, id: NodeId) {
        let s = self.cluster.core(id).status();
        let Configuration { voters, learners, .. } = self.cluster.core(id).configuration();
        let ids = |ids: BTreeSet<NodeId>| Vec::from_iter(ids);
        let (voters, learners) = (ids(voters), ids(learners));
        writeln!(
            self.cluster.out,
            "n{id} {} term {} leader {:?} last {} persisted {} commit {} applied {} voters {:?} learners {:?}",
            s.role,
            s.term,
            s.leader,
            s.last_index,
            s.persisted_index,
            s.commit_index,
            s.applied_index,
            voters,
            learners
        )
        .unwrap();
    }

    fn show_disk(&mut self, id: NodeId) {
        let d = self.cluster.core(id).status().disk;
        let suspect = d.suspect_ms.map_or(String::new(), |ms| format!(", suspect for {ms} ms"));
        let (slow, low) = (if d.slow { ", slow" } else { "" }, if d.low { ", low on space" } else { "" });
        let (waiting, bytes) = (d.waiting_ms, d.unpersisted_bytes);
        writeln!(self.cluster.out, "n{id} disk: {bytes} bytes wait, the oldest for {waiting} ms{slow}{suspect}{low}")
            .unwrap();
    }

    fn show_network(&mut self) {
        for ((from, to, _), queue) in &self.cluster.links {
            for message in queue {
                writeln!(self.cluster.out, "n{from} -> n{to} {message}").unwrap();
            }
        }
    }
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let wait = Duration::from_millis(args.take_key("ms").map_or(Ok(5000), str::parse)?);
        let disk = args.take_key("disk") != Some("manual");
        let apply = args.take_key("apply") != Some("manual");
        let unpersisted = args.take_key("unpersisted").map(str::parse).transpose()?;
        let slow = args.take_key("slow").map(str::parse).transpose()?;
        let snapshots = args.take_key("snapshots").map(str::parse).transpose()?;
        let keep = args.take_key("keep").map(str::parse).transpose()?;
        let hold = args.take_key("hold").map(str::parse).transpose()?;
        let force = args.take_key("force") == Some("true");
        let unapplied = args.take_key("unapplied").map(str::parse).transpose()?;
        let words: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
        args.reject_next()?;
        let number = |n: usize| -> Result<u64, Box<dyn Error>> {
            Ok(words.get(n).ok_or(format!("argument {} is missing", n + 1))?.parse()?)
        };
        let count = |n: usize| -> Result<usize, Box<dyn Error>> {
            Ok(words.get(n).map_or(Ok(usize::MAX), |word| word.parse())?)
        };
        let word = |n: usize| words.get(n).copied().ok_or(format!("argument {} is missing", n + 1));
        let ids = || words.iter().map(|word| word.parse()).collect::<Result<Vec<NodeId>, _>>();
        match command.name.as_str() {
            "cluster" => {
                self.cluster.max_unapplied_bytes = unapplied.unwrap_or(self.cluster.max_unapplied_bytes);
                self.cluster.max_unpersisted_bytes = unpersisted.unwrap_or(self.cluster.max_unpersisted_bytes);
                self.cluster.disk_slow_ticks = slow.unwrap_or(self.cluster.disk_slow_ticks);
                self.cluster.snapshot_entries = snapshots.unwrap_or(self.cluster.snapshot_entries);
                self.cluster.keep_entries = keep.unwrap_or(self.cluster.keep_entries);
                self.cluster.hold_bytes = hold.unwrap_or(self.cluster.hold_bytes);
                self.founders(&ids()?, disk, apply);
            }
            "built" => {
                let id = number(0)?;
                match words.get(1) {
                    None => self.cluster.built(id),
                    Some(_) => self.cluster.core(id).snapshot_built(Err("no space left on device".into())),
                }
                self.cluster.drain(id);
            }
            "fetches" => {
                let (id, index) = (number(0)?, self.cluster.wanted(number(0)?)?.1.index);
                let from = self.cluster.wanted(id)?.0;
                self.cluster.core(from).peer_fetches(id, index, None);
                self.cluster.drain(from);
            }
            "fetched" => {
                let id = number(0)?;
                let (from, snapshot) = self.cluster.wanted(id)?;
                self.cluster.nodes.get_mut(&id).ok_or("no such node")?.fetching = None;
                let failed = words.get(1).map(|_| "its hash is another".to_owned());
                if let Some(cause) = &failed {
                    self.cluster.core(from).peer_fetches(id, snapshot.index, Some(cause.clone()));
                    self.cluster.drain(from);
                }
                self.cluster.core(id).snapshot_fetched(&snapshot, failed.map_or(Ok(()), Err));
                self.cluster.drain(id);
            }
            "founder" | "waiting" => {
                self.cluster.add(number(0)?, command.name == "waiting");
                if let Some(node) = self.cluster.nodes.get_mut(&number(0)?) {
                    (node.disk_auto, node.apply_auto) = (disk, apply);
                }
                self.cluster.start(number(0)?, None);
            }
            "form" => {
                let (ids, id) = (ids()?, number(0)?);
                let mut founders = ids.clone();
                founders.sort_unstable();
                self.cluster.core(id).form(Cluster::genesis(&founders));
                self.cluster.drain(id);
            }
            "tick" => {
                for _ in 0..count(1)?.min(if words.len() > 1 { usize::MAX } else { 1 }) {
                    self.advance(number(0)?, TICK);
                }
            }
            "advance" => self.advance(number(0)?, Duration::from_millis(number(1)?)),
            "campaign" => {
                self.cluster.core(number(0)?).campaign();
                self.cluster.drain(number(0)?);
            }
            "propose" => {
                for reply in &words[1..] {
                    self.cluster.propose(number(0)?, reply, wait);
                }
                self.cluster.drain(number(0)?);
            }
            "read" => {
                self.cluster.read(number(0)?, word(1)?, wait);
                self.cluster.drain(number(0)?);
            }
            "change" => {
                let node = number(3)?;
                let change = match word(2)? {
                    "add" => Change::AddLearner(node, format!("node-{node}:7000").as_str().into()),
                    "promote" => Change::Promote(node),
                    "demote" => Change::Demote(node),
                    "remove" => Change::Remove(node),
                    other => return Err(format!("there is no change {other}").into()),
                };
                self.cluster.change(number(0)?, word(1)?, ChangeRequest { change, force }, wait);
                self.cluster.drain(number(0)?);
            }
            "deliver" => drop(self.deliver(number(0)?, number(1)?, count(2)?)),
            "drop" => {
                let (from, to) = (number(0)?, number(1)?);
                self.cluster.links.retain(|(f, t, _), _| !((from == 0 || *f == from) && (to == 0 || *t == to)));
            }
            "elect" => self.elect(number(0)?, &ids()?[1..])?,
            "settle" => self.settle()?,
            "carry" => drop(self.carry(count(0)?)),
            "hand" => {
                for errand in
                    self.cluster.errands.drain(..count(0)?.min(self.cluster.errands.len())).collect::<Vec<_>>()
                {
                    self.cluster.carry(errand);
                }
            }
            "lose" => self.end_question(number(0)?, number(1)?, AskError::Lost("the connection broke".into())),
            "unsent" => self.end_question(number(0)?, number(1)?, AskError::NotSent("no connection".into())),
            "cut" => self.cluster.cut(number(0)?, number(1)?),
            "isolate" => {
                for other in self.ids(0) {
                    self.cluster.cut(number(0)?, other);
                }
            }
            "heal" => self.cluster.cut.clear(),
            "unreachable" => {
                self.cluster.core(number(0)?).unreachable(number(1)?);
                self.cluster.drain(number(0)?);
            }
            "disk" | "applier" => {
                let node = self.cluster.nodes.get_mut(&number(0)?).ok_or("no such node")?;
                let auto = word(1)? == "auto";
                *(if command.name == "disk" { &mut node.disk_auto } else { &mut node.apply_auto }) = auto;
            }
            "persist" => {
                let id = number(0)?;
                let newest = self.cluster.nodes[&id].disk.in_flight.back().map_or(0, |append| append.number);
                self.cluster.persist(id, if words.len() > 1 { number(1)? } else { newest });
                self.cluster.drain(id);
            }
            "probe" => {
                let result = if word(1)? == "passes" { Ok(()) } else { Err("no space left on device".to_owned()) };
                if !self.cluster.nodes[&number(0)?].probing {
                    return Err("it is not asked for a probe".into());
                }
                self.cluster.probe(number(0)?, result);
                self.cluster.drain(number(0)?);
            }
            "space" => {
                let (waits, short) = (word(1)? == "waits", word(1)? == "short");
                let being_made = word(1)? == "making";
                let low = waits || being_made || word(1)? == "low";
                let room = Room { short: low || short, waits, being_made, ..Room::low(low) };
                self.cluster.core(number(0)?).disk_space(room);
                self.cluster.drain(number(0)?);
            }
            // What a peer's hello names: all that this build understands, or nothing, as the first version's.
            "hello" => {
                let features = if word(2)? == "all" { Features::all() } else { Features::none() };
                self.cluster.core(number(0)?).peer_features(number(1)?, features, 1);
            }
            "order" => {
                let (from, to) = (number(0)?, number(1)?);
                let term = self.cluster.core(to).status().term;
                self.cluster.core(to).step(from, RaftMessage::new(MessageKind::TimeoutNow, term));
                self.cluster.drain(to);
            }
            "knows" => {
                let features = if words.len() > 2 { Features::none() } else { Features::all() };
                self.cluster.core(number(0)?).peer_features(number(1)?, features, 1);
            }
            "mark" => {
                self.cluster.core(number(0)?).propose_mark(false);
                self.cluster.drain(number(0)?);
            }
            "record" => {
                self.cluster.record(number(0)?, number(1)?);
                self.cluster.drain(number(0)?);
            }
            "apply" => self.cluster.apply(number(0)?),
            "copy" => drop(self.copies.insert(number(0)?, self.cluster.nodes[&number(0)?].disk.image())),
            "put_back" => {
                let id = number(0)?;
                let copy = self.copies.get(&id).ok_or("there is no copy")?.clone();
                if self.cluster.is_up(id) {
                    return Err("it is running".into());
                }
                self.cluster.put_back = true;
                let disk = &mut self.cluster.nodes.get_mut(&id).ok_or("no such node")?.disk;
                disk.term = copy.hard_state.term;
                *disk.durable.lock().map_err(|_| "poisoned")? = copy;
            }
            "commit_conflicts" => {
                let id = number(0)?;
                for (peer, conflict) in self.cluster.core(id).status().commit_conflicts {
                    writeln!(self.cluster.out, "n{id} is contradicted by n{peer}: {conflict:?}")?;
                }
            }
            "calendar" => {
                let shows = Duration::from_millis(number(1)?);
                let node = self.cluster.nodes.get_mut(&number(0)?).ok_or("no such node")?;
                node.calendar = (SystemTime::UNIX_EPOCH + shows).checked_sub(node.now).ok_or("before 1970")?;
            }
            "certificate" => {
                let (id, ticks) = (number(0)?, u32::try_from(number(1)?)?);
                let node = self.cluster.nodes.get_mut(&id).ok_or("no such node")?;
                node.certificate_ends = Some(node.calendar + node.now + TICK * ticks);
                self.cluster.crash(id);
                self.cluster.start(id, None);
            }
            "clocks" => {
                let id = number(0)?;
                let now = self.cluster.nodes[&id].now.as_micros() as i64;
                let mut known = BTreeMap::new();
                for word in &words[1..] {
                    let (peer, shows) = word.split_once('@').ok_or("PEER@MS")?;
                    known.insert(peer.parse()?, shows.parse::<i64>()? * 1000 - now);
                }
                self.cluster.core(id).clocks_read(Estimates(known));
            }
            "stamps" => self.show_stamps(number(0)?, number(1)?),
            "crash" => self.cluster.crash(number(0)?),
            "restart" => self.cluster.start(number(0)?, None),
            "disks" => self.ids(number(0)?).into_iter().for_each(|id| self.show_disk(id)),
            "status" => self.ids(number(0)?).into_iter().for_each(|id| self.show_status(id)),
            "log" => self.ids(number(0)?).into_iter().for_each(|id| self.show_log(id)),
            "network" => self.show_network(),
            other => return Err(format!("there is no command {other}").into()),
        }
        Ok(std::mem::take(&mut self.cluster.out))
    }
}

impl Script {
    fn advance(&mut self, id: NodeId, by: Duration) {
        if let Some(node) = self.cluster.nodes.get_mut(&id) {
            node.now += by;
        }
        self.cluster.drain(id);
    }
}
