//! How much disk and memory a log takes whose beginning is cut off again and again, and how fast it goes.
//!
//! ```text
//! log_space DIR [entries 10000000] [per batch 256] [window MiB 64] [rewritten from MiB 256]
//! ```
//!
//! Entries of 128 bytes are appended, one durable batch after the other with a few on their way, and what lies behind
//! the window is compacted each time it has grown by a quarter. One line for every tenth of the run: entries; entries
//! per second (the median of its ten hundredths, for a machine that others use too) and processor time for each; the
//! log's live bytes, bytes on disk and their ratio; the most bytes on disk so far; resident memory; the longest commit;
//! how often the log was rewritten so far. Then the bounds and whether they held: exit status 0 if they did.

use std::{
    env, fs,
    path::Path,
    process::ExitCode,
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use actorum_core::{
    log::{
        sizes::Sizes,
        store::{Compact, HardState, Write},
    },
    wire::{Entry, EntryKind, Snapshot},
};
use actorum_machine::ids::Incarnation;
use actorum_store::log::{
    directory,
    sled::{OpenOptions, SledStore},
    store::{Batch, Completed, LogStore},
};
use bytes::Bytes;

/// How many batches may be on their way.
const IN_FLIGHT: usize = 4;

/// What the process may need: two engines' caches and write buffers of 16 MiB segments while it is rewritten, and the
/// sizes.
const MEMORY: u64 = 256 << 20;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |nth: usize, default: u64| args.get(nth).map_or(Ok(default), |arg| arg.parse());
    let numbers = [(1, 10_000_000), (2, 256), (3, 64), (4, 256)].map(|(nth, default)| number(nth, default));
    let (Some(dir), [Ok(total), Ok(per_batch), Ok(window), Ok(from)]) = (args.first(), numbers) else {
        eprintln!("usage: log_space DIR [entries] [per batch] [window MiB] [rewritten from MiB]");
        return ExitCode::FAILURE;
    };
    let load = Load { total: total.max(100), per_batch: per_batch.max(1), window: window << 20, from: from << 20 };
    match load.run(Path::new(dir)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What is appended, and what stays of it.
struct Load {
    total: u64,
    per_batch: u64,
    /// Bytes of entries that stay, at least.
    window: u64,
    /// Bytes on disk from which on the log may be rewritten.
    from: u64,
}

impl Load {
    /// Says whether the bounds held.
    fn run(&self, dir: &Path) -> Result<bool, String> {
        let Load { total, per_batch, window, from } = *self;
        let mut options = OpenOptions::new(1, Incarnation(7));
        options.rewrite_min_bytes = from;
        let ratio = options.rewrite_ratio;
        let store = SledStore::open(dir, options).map_err(|error| error.to_string())?;
        let (heard, completed) = channel();
        let mut appender = Box::new(store).start(Arc::new(move |completion| drop(heard.send(completion))));
        let genesis = Write {
            snapshot: Some(Snapshot { index: 1, term: 1, ..Snapshot::default() }),
            hard_state: Some(HardState { term: 1, vote: 1, commit: 1 }),
            ..Write::default()
        };
        appender.submit(Batch { writes: vec![genesis], sync: true });
        let (mut in_flight, mut last, mut compacted_index, mut most_live) = (1, 1u64, 1u64, 0);
        let mut sizes = Sizes::empty_after(1);
        let mut tenths = Tenths::start(dir);
        let (mut due, mut hundredths) = (total / 100, 0);
        let data = Bytes::from(vec![7; 128]);
        while hundredths < 100 {
            while in_flight >= IN_FLIGHT {
                tenths.completed(completed.recv().map_err(|_| "the store hung up")?)?;
                in_flight -= 1;
            }
            let entry = |index| {
                let (data, context) = (data.clone(), Bytes::new());
                Entry { kind: EntryKind::Normal, term: 1, index, data, context }
            };
            let entries: Vec<Entry> = (last + 1..=last + per_batch).map(entry).collect();
            for entry in &entries {
                sizes.push(entry.index, entry.size() as u64);
            }
            let durable = last.saturating_sub(IN_FLIGHT as u64 * per_batch).max(compacted_index);
            last += per_batch;
            most_live = most_live.max(sizes.total());
            let hard_state = Some(HardState { term: 1, vote: 1, commit: last });
            let compact = (sizes.total() > window + window / 4).then(|| {
                let up_to = sizes.within(window, compacted_index).min(durable);
                (compacted_index, _) = (up_to, sizes.compact(up_to));
                Compact { snapshots: vec![Snapshot { index: up_to, term: 1, ..Snapshot::default() }], up_to }
            });
            let write = Write { entries, hard_state, compact, ..Write::default() };
            appender.submit(Batch { writes: vec![write], sync: true });
            in_flight += 1;
            if last >= due {
                (hundredths, due) = (hundredths + 1, due + total / 100);
                tenths.hundredth(last, sizes.total());
            } else if last % (per_batch * 64) < per_batch {
                tenths.look();
            }
        }
        while in_flight > 0 {
            tenths.completed(completed.recv().map_err(|_| "the store hung up")?)?;
            in_flight -= 1;
        }
        // It is rewritten above `ratio` times what lives, and after the first time above twice what that has left, some
        // 2.7 times: so below six times. Until the old one has gone the new one is there too, with three times at the
        // most.
        let bounds = Bounds { disk: from.max((ratio + 2) * most_live) + 3 * most_live, memory: MEMORY };
        Ok(tenths.judge(bounds))
    }
}

/// What must hold of the whole run, in bytes.
struct Bounds {
    disk: u64,
    memory: u64,
}

/// What is seen of the run while it goes on.
struct Tenths<'a> {
    dir: &'a Path,
    /// When the present hundredth began, and its first entry.
    began: (Instant, u64),
    /// The processor time until the present tenth, and its first entry.
    used: (Duration, u64),
    rates: Vec<f64>,
    medians: Vec<f64>,
    longest: Duration,
    peak: u64,
    memory: u64,
}

impl Tenths<'_> {
    fn start(dir: &Path) -> Tenths<'_> {
        println!(
            "  entries  entries/s  CPU us  live MiB  disk MiB  ratio  peak MiB  memory MiB  longest commit  rewritten"
        );
        let (began, used) = ((Instant::now(), 1), (processor_time(), 1));
        let (rates, medians, longest) = (Vec::new(), Vec::new(), Duration::ZERO);
        Tenths { dir, began, used, rates, medians, longest, peak: 0, memory: 0 }
    }

    fn completed(&mut self, done: Completed) -> Result<(), String> {
        let written = done.result.map_err(|error| error.to_string())?;
        self.longest = self.longest.max(written.took);
        Ok(())
    }

    fn look(&mut self) {
        self.peak = self.peak.max(disk_bytes(self.dir));
    }

    fn hundredth(&mut self, last: u64, live: u64) {
        self.look();
        self.memory = self.memory.max(resident());
        self.rates.push((last - self.began.1) as f64 / self.began.0.elapsed().as_secs_f64());
        if self.rates.len() == 10 {
            self.rates.sort_by(f64::total_cmp);
            let (rate, used) = (self.rates[5], processor_time());
            let each = (used - self.used.0).as_secs_f64() * 1e6 / (last - self.used.1) as f64;
            let disk = disk_bytes(self.dir);
            let (ratio, rewritten) = (disk as f64 / live.max(1) as f64, rewritten(self.dir));
            let [live, disk, peak, memory] = [live, disk, self.peak, self.memory].map(|bytes| bytes >> 20);
            let longest = format!("{:.1} ms", self.longest.as_secs_f64() * 1e3);
            println!(
                "{last:9} {rate:10.0} {each:7.2} {live:9} {disk:9} {ratio:6.2} {peak:9} {memory:11} {longest:>15} \
                 {rewritten:10}"
            );
            (self.used, self.longest) = ((used, last), Duration::ZERO);
            self.rates.clear();
            self.medians.push(rate);
        }
        self.began = (Instant::now(), last);
    }

    fn judge(&self, bounds: Bounds) -> bool {
        let (first, last) = (self.medians.first().unwrap_or(&0.0), self.medians.last().unwrap_or(&0.0));
        let [disk, most_disk, memory, most_memory] =
            [self.peak, bounds.disk, self.memory, bounds.memory].map(|bytes| bytes >> 20);
        println!(
            "disk at most {disk} MiB, the bound is {most_disk}; memory at most {memory} MiB, the bound is {most_memory}"
        );
        println!("the last tenth went at {:.0} % of the first one's rate", last / first * 100.0);
        // The rate is a figure: on a machine that others share it says nothing of a single run.
        self.peak <= bounds.disk && self.memory <= bounds.memory
    }
}

/// How often the log was rewritten: each time its directory got the next number.
fn rewritten(dir: &Path) -> u64 {
    directory::generation(dir).unwrap_or(0)
}

/// What everything in a directory takes on disk.
fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        Some(if metadata.is_dir() { disk_bytes(&entry.path()) } else { blocks })
    });
    sizes.sum()
}

/// This process's resident memory, in bytes; zero where it cannot be told.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The processor time of all threads of this process, in steps of 10 ms; zero where it cannot be told.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in parentheses, which may hold anything. User and system time are the 14th
    // and 15th.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
