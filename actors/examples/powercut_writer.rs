//! A Raft-shaped load on the sled store, and its judge: what `tests/tools/powercut.py` cuts the power under.
//!
//! ```text
//! powercut_writer write DIR           works until it is killed; prints `A <n>` once step n is reported durable
//! powercut_writer verify DIR ACKED    opens DIR; exit status 0 if nothing up to step ACKED is missing
//! powercut_writer bench DIR           appends of 1, 64 and 256 entries of 128 bytes, one sync each
//! ```
//!
//! Step n is a function of the seed (`POWERCUT_SEED`), n, and the steps before: appends, conflicts that truncate,
//! votes, new terms, snapshots. It goes through the log writer, as a core's would. Each step then appends one entry to
//! a second group, so the last index of that group says which step the store is at; the first group is at that step or
//! one further. The judge repeats the steps in memory and compares every entry.
//!
//! `POWERCUT_NO_SYNC=1` takes the sync call out: then acknowledged steps are lost, or the judge judges nothing.
//! `POWERCUT_REWRITE=1` rewrites the log without end, a little at a time, so that some cuts fall into every step of it.

use std::{
    collections::VecDeque,
    env,
    io::Write as _,
    path::Path,
    process::ExitCode,
    sync::{Arc, mpsc::channel},
    time::Instant,
};

use actix::prelude::*;
use actorum_actors::{
    log_writer::{LogWriter, RegisterGroup},
    message::{DiskReport, Failed, FromCore, Persisted},
};
use actorum_core::{
    log::store::{HardState, Recovered, Write},
    message::Append,
    wire::{Entry, EntryKind, Snapshot},
};
use actorum_machine::ids::{GroupId, Incarnation};
use actorum_store::log::{
    faulty::{Faults, SyncPolicy},
    sled::{OpenOptions, SledStore},
    store::{Batch, LogStore},
};
use bytes::Bytes;
use tokio::sync::watch;

/// The group that works.
const RAFT: GroupId = GroupId(0);
/// The group whose last index is the number of the step.
const STEPS: GroupId = GroupId(1);
/// How many steps may be on their way.
const IN_FLIGHT: usize = 4;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args[..] {
        ["write", dir] => write(Path::new(dir)),
        ["verify", dir, acked] => verify(Path::new(dir), acked.parse().expect("ACKED is a number")),
        ["bench", dir] => bench(Path::new(dir)),
        _ => Err("usage: powercut_writer write DIR | verify DIR ACKED | bench DIR".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn open(dir: &Path) -> Result<Box<dyn LogStore>, String> {
    let mut options = OpenOptions::new(1, Incarnation(7));
    if env::var_os("POWERCUT_REWRITE").is_some() {
        (options.rewrite_min_bytes, options.rewrite_ratio, options.rewrite_slice_bytes) = (0, 0, 64 << 10);
    }
    // Small, so that the index of the watermark is raised and lowered often.
    options.watermark_commits = 16;
    if env::var_os("POWERCUT_NO_SYNC").is_some() {
        let faults = Faults { sync: SyncPolicy::FlushOnly, ..Faults::default() };
        return Ok(Box::new(faults.open(dir, options).map_err(|error| error.to_string())?));
    }
    Ok(Box::new(SledStore::open(dir, options).map_err(|error| error.to_string())?))
}

/// Works through the log writer, as a core does: one append per group and step, several steps on their way.
fn write(dir: &Path) -> Result<(), String> {
    let store = open(dir)?;
    let mut model = Model::new();
    let unfinished = check(&*store, &mut model)?.1;
    System::new().block_on(async move {
        let core = Core { model, unfinished, writer: None, number: 0, steps: VecDeque::new() }.start();
        let down = core.downgrade();
        let writer = LogWriter::start(store, down.clone().recipient(), watch::Sender::default());
        for group in [RAFT, STEPS] {
            writer.do_send(RegisterGroup { group, core: down.clone().recipient(), disk: down.clone().recipient() });
        }
        core.do_send(Begin(writer));
        std::future::pending::<()>().await;
    });
    Ok(())
}

/// Stands where the Raft core of both groups would.
struct Core {
    model: Model,
    /// Whether the store holds the next step in one group and not yet in the other.
    unfinished: bool,
    writer: Option<Addr<LogWriter>>,
    number: u64,
    /// The steps on their way: the number that makes each durable in both groups, and the step.
    steps: VecDeque<(u64, u64)>,
}

impl Actor for Core {
    type Context = Context<Self>;
}

impl Core {
    fn append(&mut self, write: Write, sync: bool) -> u64 {
        self.number += 1;
        if let Some(writer) = &self.writer {
            writer.do_send(FromCore(Append { number: self.number, write, sync }));
        }
        self.number
    }

    fn fill(&mut self) {
        while self.steps.len() < IN_FLIGHT {
            let (step, [raft, steps]) = self.model.step();
            if !std::mem::take(&mut self.unfinished) {
                self.append(raft, true);
            }
            let number = self.append(steps, true);
            self.steps.push_back((number, step));
            if let Some(commit) = self.model.commit_alone() {
                self.append(commit, false);
            }
        }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Begin(Addr<LogWriter>);

impl Handler<Begin> for Core {
    type Result = ();

    fn handle(&mut self, Begin(writer): Begin, _: &mut Self::Context) {
        self.writer = Some(writer);
        self.fill();
    }
}

impl Handler<Persisted> for Core {
    type Result = ();

    fn handle(&mut self, Persisted { group, number }: Persisted, _: &mut Self::Context) {
        if group != STEPS {
            return;
        }
        while self.steps.front().is_some_and(|(last, _)| *last <= number) {
            let Some((_, step)) = self.steps.pop_front() else { break };
            let mut out = std::io::stdout().lock();
            writeln!(out, "A {step}").and_then(|()| out.flush()).expect("the harness reads");
        }
        self.fill();
    }
}

impl Handler<DiskReport> for Core {
    type Result = ();

    /// Whatever room there is, it goes on.
    fn handle(&mut self, _: DiskReport, _: &mut Self::Context) {}
}

impl Handler<Failed> for Core {
    type Result = ();

    fn handle(&mut self, Failed { cause, .. }: Failed, _: &mut Self::Context) {
        eprintln!("{cause}");
        std::process::exit(1);
    }
}

fn verify(dir: &Path, acked: u64) -> Result<(), String> {
    let (found, _) = check(&*open(dir)?, &mut Model::new())?;
    if found < acked {
        return Err(format!("LOST: step {acked} was acknowledged, the store is at step {found}"));
    }
    println!("at step {found}, acknowledged {acked}");
    Ok(())
}

/// At which step the store is, after comparing all it holds with the model at that step; and whether the group that
/// works is already a step further, for each step is written to it first. Leaves the model at the step found.
fn check(store: &dyn LogStore, model: &mut Model) -> Result<(u64, bool), String> {
    let recover = |group| store.recover(group).map_err(|error| error.to_string());
    let (raft, steps) = (recover(RAFT)?, recover(STEPS)?);
    let found = steps.last_index;
    model.run_to(found);
    if found > 0 && steps.term_at(found) != Some(model.term) {
        return Err(format!("step {found}: its entry is of another term"));
    }
    let at_it = compare(store, &raft, model);
    if at_it.is_ok() {
        return Ok((found, false));
    }
    let mut further = model.clone();
    further.run_to(found + 1);
    match compare(store, &raft, &further) {
        Ok(()) => Ok((found, true)),
        Err(_) => at_it.map(|()| (found, false)),
    }
}

fn compare(store: &dyn LogStore, raft: &Recovered, model: &Model) -> Result<(), String> {
    let found = model.step;
    if found == 0 {
        return if *raft == Recovered::default() { Ok(()) } else { Err("it holds something before step 1".to_owned()) };
    }
    let HardState { term, vote, commit } = raft.hard_state;
    let last = model.entries.last().map_or(model.snapshot.0, |entry| entry.index);
    let same = [
        ("term", term, model.term),
        ("vote", vote, model.vote),
        ("last index", raft.last_index, last),
        ("snapshot index", raft.newest().map_or(0, |s| s.index), model.snapshot.0),
        ("snapshot term", raft.newest().map_or(0, |s| s.term), model.snapshot.1),
    ];
    for (what, found_value, expected) in same {
        if found_value != expected {
            return Err(format!("step {found}: {what} is {found_value}, not {expected}"));
        }
    }
    if commit < model.commit || commit > last {
        return Err(format!("step {found}: commit is {commit}, not from {} to {last}", model.commit));
    }
    let read = store.reader().entries(RAFT, model.snapshot.0 + 1, last + 1, usize::MAX);
    let read = read.map_err(|error| error.to_string())?;
    let expected: Vec<Entry> = model.entries.iter().map(|planned| planned.entry()).collect();
    if read != expected {
        return Err(format!("step {found}: the entries differ"));
    }
    Ok(())
}

/// splitmix64: enough chance for a load, and the same everywhere.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// An entry by its measures; its bytes follow from them.
#[derive(Clone, Copy)]
struct Planned {
    index: u64,
    term: u64,
    step: u64,
    bytes: usize,
}

impl Planned {
    fn entry(&self) -> Entry {
        let Planned { index, term, step, bytes } = *self;
        let mut rng = Rng(step << 20 ^ index);
        let mut data = Vec::with_capacity(bytes + 8);
        while data.len() < bytes {
            data.extend(rng.below(u64::MAX).to_le_bytes());
        }
        data.truncate(bytes);
        Entry { kind: EntryKind::Normal, term, index, data: Bytes::from(data), context: Bytes::new() }
    }
}

/// What the store must hold.
#[derive(Clone)]
struct Model {
    seed: u64,
    step: u64,
    term: u64,
    vote: u64,
    commit: u64,
    snapshot: (u64, u64),
    entries: Vec<Planned>,
    /// A commit index that went ahead without a sync: it may be found, or not.
    hinted: u64,
}

impl Model {
    fn new() -> Model {
        let seed = env::var("POWERCUT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        let (step, term, vote, commit, hinted) = (0, 1, 0, 0, 0);
        Model { seed, step, term, vote, commit, snapshot: (0, 0), entries: Vec::new(), hinted }
    }

    fn run_to(&mut self, step: u64) {
        while self.step < step {
            self.plan();
        }
    }

    /// The next step: its writes to the group that works and to the one that counts.
    fn step(&mut self) -> (u64, [Write; 2]) {
        let writes = self.plan();
        let planned = writes.1.iter().map(Planned::entry).collect();
        let hard_state = writes.2.then_some(HardState { term: self.term, vote: self.vote, commit: self.commit });
        let snapshot = |index, term| Snapshot { index, term, ..Snapshot::default() };
        let raft = Write {
            group: RAFT,
            compact: None,
            snapshot: writes.0.then(|| snapshot(self.snapshot.0, self.snapshot.1)),
            entries: planned,
            hard_state,
        };
        let counted = Planned { index: self.step, term: self.term, step: self.step, bytes: 8 }.entry();
        let steps = match self.step % 512 {
            0 => Write { group: STEPS, snapshot: Some(snapshot(self.step, self.term)), ..Write::default() },
            _ => Write { group: STEPS, entries: vec![counted], ..Write::default() },
        };
        (self.step, [raft, steps])
    }

    /// Now and then a commit index alone, as a follower writes between appends.
    fn commit_alone(&mut self) -> Option<Write> {
        let last = self.last();
        let due = self.step.is_multiple_of(5) && self.commit < last && self.hinted < last;
        due.then(|| {
            self.hinted = last.min(self.commit + 1);
            let hard_state = Some(HardState { term: self.term, vote: self.vote, commit: self.hinted });
            Write { group: RAFT, hard_state, ..Write::default() }
        })
    }

    fn last(&self) -> u64 {
        self.entries.last().map_or(self.snapshot.0, |entry| entry.index)
    }

    /// Moves to the next step: whether it has a snapshot, which entries, whether a hard state.
    fn plan(&mut self) -> (bool, Vec<Planned>, bool) {
        self.step += 1;
        let step = self.step;
        let mut rng = Rng(self.seed.wrapping_mul(0x1000_0000_01b3) ^ step);
        if step == 1 {
            self.snapshot = (1, 1);
            self.commit = 1;
            return (true, Vec::new(), true);
        }
        let mut from = self.last() + 1;
        let mut appends = true;
        match rng.below(100) {
            // A vote, or a new term, alone.
            0..=4 => {
                self.term += 1;
                self.vote = rng.below(4);
                appends = false;
            }
            // A new leader's entries replace the end of the log, down to some uncommitted index.
            5..=14 if self.last() > self.commit => {
                self.term += 1;
                self.vote = 0;
                from = self.commit + 1 + rng.below(self.last() - self.commit);
            }
            // A snapshot takes the log's place, within it or beyond.
            15 if self.entries.len() > 400 => {
                self.snapshot = (self.last() + rng.below(10), self.term);
                self.commit = self.snapshot.0;
                self.entries.clear();
                self.hinted = 0;
                return (true, Vec::new(), true);
            }
            _ => {}
        }
        let mut planned = Vec::new();
        if appends {
            let count = [1, 1, 1, 2, 5, 16, 64][rng.below(7) as usize];
            for index in from..from + count {
                let bytes = match rng.below(400) {
                    0 => 150_000 + rng.below(300_000) as usize,
                    1..=9 => rng.below(20_000) as usize,
                    _ => rng.below(256) as usize,
                };
                planned.push(Planned { index, term: self.term, step, bytes });
            }
            self.entries.retain(|entry| entry.index < from);
            self.entries.extend(&planned);
        }
        // Half of the time the commit index follows, sometimes all the way.
        if rng.below(2) == 0 {
            self.commit += rng.below(self.last() - self.commit + 1);
        }
        (false, planned, true)
    }
}

fn bench(dir: &Path) -> Result<(), String> {
    let store = open(dir)?;
    let (heard, completed) = channel();
    let mut appender = store.start(Arc::new(move |completion| drop(heard.send(completion))));
    let mut index = 0;
    println!("entries of 128 B per append: p50, p99 of 2000, one sync each; of it in the sync");
    for count in [1u64, 16, 64, 256, 4096] {
        let mut times = Vec::new();
        let rounds = if count > 1000 { 200 } else { 2000 };
        for _ in 0..rounds {
            let entry = |index| Planned { index, term: 1, step: index, bytes: 128 }.entry();
            let entries = (index + 1..=index + count).map(entry).collect();
            index += count;
            let started = Instant::now();
            appender.submit(Batch { writes: vec![Write { entries, ..Write::default() }], sync: true });
            let completed = completed.recv().map_err(|_| "the store hung up")?;
            let written = completed.result.map_err(|error| error.to_string())?;
            times.push((started.elapsed(), written.sync));
        }
        times.sort();
        let (p50, p99) = (times[rounds / 2], times[rounds * 99 / 100]);
        println!("{count:5}: {:?}, {:?}; {:?}", p50.0, p99.0, p50.1);
    }
    Ok(())
}
