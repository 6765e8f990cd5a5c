//! The report of a simulation: what was done, which faults really happened, and which invariant broke, if any did.

use std::{collections::BTreeMap, fmt};

/// What happened, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Requests that clients made: proposals, reads, changes of the membership.
    pub operations: u64,
    /// Of these, answered with a result.
    pub succeeded: u64,
    /// Of these, rejected: surely without effect.
    pub rejected: u64,
    /// Of these, of unknown outcome.
    pub unknown: u64,
    /// Terms in which somebody led.
    pub elections: u64,
    /// Faults of the network that fired, by kind.
    pub network: BTreeMap<&'static str, u64>,
    /// Faults of disks that fired, by kind.
    pub disk: BTreeMap<&'static str, u64>,
    /// Faults of processes that fired, by kind.
    pub process: BTreeMap<&'static str, u64>,
    /// What became of snapshots: built, fetched, transfers that went on where they had stopped, recorded with a cut of
    /// the log, installed, nodes that started from one, from the older one because the newest was damaged, or not at
    /// all because both were, and nodes that joined a cluster whose log no longer began at its beginning.
    pub snapshots: BTreeMap<&'static str, u64>,
    /// What came near to a bound: messages that filled half a frame and more; what met disks with little room, and how
    /// it went on.
    pub room: BTreeMap<&'static str, u64>,
    /// What else went on meanwhile: changes of the membership, subscriptions, shutdowns, campaigns.
    pub churn: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Changes of leader: every election but the first.
    pub fn leader_changes(&self) -> u64 {
        self.elections.saturating_sub(1)
    }

    pub(crate) fn room(&mut self, kind: &'static str, count: u64) {
        if count > 0 {
            *self.room.entry(kind).or_default() += count;
        }
    }

    pub(crate) fn snapshot(&mut self, kind: &'static str, count: u64) {
        if count > 0 {
            *self.snapshots.entry(kind).or_default() += count;
        }
    }

    /// Faults of the network that fired. Each period of bad links counts once, however many messages it took.
    pub fn network_faults(&self) -> u64 {
        self.network.values().sum()
    }

    /// Faults of disks that fired.
    pub fn disk_faults(&self) -> u64 {
        self.disk.values().sum()
    }

    /// Faults of processes that fired.
    pub fn process_faults(&self) -> u64 {
        self.process.values().sum()
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Counts) {
        self.operations += other.operations;
        self.succeeded += other.succeeded;
        self.rejected += other.rejected;
        self.unknown += other.unknown;
        self.elections += other.elections;
        let maps = [
            (&mut self.network, &other.network),
            (&mut self.disk, &other.disk),
            (&mut self.process, &other.process),
            (&mut self.churn, &other.churn),
            (&mut self.snapshots, &other.snapshots),
            (&mut self.room, &other.room),
        ];
        for (mine, theirs) in maps {
            theirs.iter().for_each(|(kind, count)| *mine.entry(kind).or_default() += count);
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} operations ({} succeeded, {} rejected, {} unknown), {} elections",
            self.operations, self.succeeded, self.rejected, self.unknown, self.elections
        )?;
        let kinds = [
            ("network", &self.network),
            ("disk", &self.disk),
            ("process", &self.process),
            ("churn", &self.churn),
            ("snapshots", &self.snapshots),
            ("room", &self.room),
        ];
        for (name, kinds) in kinds {
            let total: u64 = kinds.values().sum();
            let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            writeln!(f, "{name}: {total} ({})", kinds.join(", "))?;
        }
        Ok(())
    }
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// When, in virtual milliseconds.
    pub at_ms: u64,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken at {} ms: {}", self.invariant, self.at_ms, self.detail)
    }
}

/// How a simulation went.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed it followed from.
    pub seed: u64,
    /// A hash of everything that happened: the same seed gives the same, everywhere.
    pub trace: u64,
    /// What happened, counted.
    pub counts: Counts,
    /// What broke first.
    pub violation: Option<Violation>,
    /// The run as a story, line by line; only of a run that is told.
    pub story: Vec<String>,
}

/// Lines of the story printed before a violation.
const AROUND: usize = 60;

impl Report {
    /// Whether every invariant held.
    pub fn is_ok(&self) -> bool {
        self.violation.is_none()
    }

    /// Panics with the seed, the broken invariant and the story around it, if one broke.
    #[track_caller]
    pub fn assert_ok(&self) {
        assert!(self.is_ok(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.violation {
            None => writeln!(f, "seed {}: every invariant held (trace {:016x})", self.seed, self.trace)?,
            Some(violation) => {
                writeln!(f, "seed {}: {violation}", self.seed)?;
                let skipped = self.story.len().saturating_sub(AROUND);
                if skipped > 0 {
                    writeln!(f, "  ... {skipped} lines before, in `report.story`")?;
                }
                self.story[skipped..].iter().try_for_each(|line| writeln!(f, "  {line}"))?;
            }
        }
        write!(f, "{}", self.counts)
    }
}
