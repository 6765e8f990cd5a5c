//! What directories hold, read without changing them.

use std::path::{Path, PathBuf};

use actorum_core::{
    entry::SystemCommand,
    system_state::{Audit, SystemState},
    wire::Snapshot,
};
use actorum_machine::ids::{ClusterId, Incarnation, NodeId};
use actorum_store::{
    log::{
        directory::snapshots_path,
        inspect::{GroupReport, Inspection},
    },
    snapshot::SnapshotStore,
};

use super::Position;
use crate::{Membership, boot};

/// How many bytes of entries are held in memory at a time.
const PIECE: usize = 4 << 20;

/// One directory of a survey.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survivor {
    /// The directory.
    pub dir: PathBuf,
    /// The node that it belongs to, if that is known.
    pub id: Option<NodeId>,
    /// The life of the directory.
    pub incarnation: Option<Incarnation>,
    /// What its log holds, if that can be read. For a damaged log: as far as it can be read.
    pub log: Option<SurvivingLog>,
    /// Everything wrong with it. Empty: a cluster can be recovered from it.
    pub problems: Vec<String>,
}

/// A surviving log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SurvivingLog {
    /// The cluster, at the end of the log.
    pub cluster: ClusterId,
    /// The members, at the end of the log: as if every entry in it were committed.
    pub membership: Membership,
    /// The audit records of earlier recoveries.
    pub audit: Vec<Audit>,
    /// The latest term it knows.
    pub term: u64,
    /// The highest index that it knew to be committed. More may have been.
    pub commit: u64,
    /// Where it ends.
    pub last: Position,
    /// The snapshots that it names, the newest last.
    pub snapshots: Vec<SurvivingSnapshot>,
}

/// A snapshot that a surviving log names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SurvivingSnapshot {
    /// The last index that it covers.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
    /// How long its file is, in bytes; zero for the genesis, which has none.
    pub bytes: u64,
    /// Why a node cannot start from it; `None` if it can.
    pub damaged: Option<String>,
}

impl Survivor {
    fn unreadable(dir: &Path, problem: String) -> Survivor {
        let (id, incarnation, log) = (None, None, None);
        Survivor { dir: dir.to_owned(), id, incarnation, log, problems: vec![problem] }
    }

    /// Where its log ends, if that is known.
    pub fn position(&self) -> Option<Position> {
        self.log.as_ref().map(|log| log.last)
    }
}

/// Looks into each of these directories without changing any: whose it is, how far its log goes, what is damaged.
///
/// Reads every record and every snapshot's file. Works on a copy of each log in the temporary directory, which takes
/// its size in free space, one after the other. [`Survivor::problems`] says what cannot be read, or is in use.
pub fn survey<P: AsRef<Path>>(dirs: &[P]) -> Vec<Survivor> {
    dirs.iter().map(|dir| look(dir.as_ref())).collect()
}

/// Looks into one directory.
pub(super) fn look(dir: &Path) -> Survivor {
    let inspection = match Inspection::open(dir) {
        Ok(inspection) => inspection,
        Err(error) => return Survivor::unreadable(dir, error.to_string()),
    };
    let mut problems: Vec<String> = inspection.verify().problems.iter().map(ToString::to_string).collect();
    let identity = inspection.identity().ok();
    let log = match surviving(dir, &inspection) {
        Ok(log) => {
            if let Some(newest) = log.snapshots.last()
                && log.snapshots.iter().all(|snapshot| snapshot.damaged.is_some())
            {
                problems.extend(newest.damaged.clone());
            }
            Some(log)
        }
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    let (id, incarnation) = (identity.map(|node| node.id), identity.map(|node| node.incarnation));
    Survivor { dir: dir.to_owned(), id, incarnation, log, problems }
}

fn surviving(dir: &Path, inspection: &Inspection) -> Result<SurvivingLog, String> {
    let report = inspection.group(boot::GROUP);
    let Some(newest) = report.snapshots.last() else {
        return Err("it holds nothing: its node was never part of a cluster".into());
    };
    let (system, _) =
        SystemState::of(newest).map_err(|error| format!("its newest snapshot cannot be read: {error}"))?;
    let term = report.terms.iter().rev().find(|(first, _)| *first <= report.last_index).map(|(_, term)| *term);
    let last = Position(report.last_index, term.unwrap_or(newest.term));
    let system = follow(inspection, &report, newest, system)?;
    let snapshots = report.snapshots.iter().map(|snapshot| look_at(dir, snapshot)).collect();
    Ok(SurvivingLog {
        cluster: system.cluster,
        membership: (*system.membership).clone(),
        audit: system.audit,
        term: report.hard_state.term.max(last.1),
        commit: report.hard_state.commit,
        last,
        snapshots,
    })
}

/// The system state at the end of the log.
fn follow(
    inspection: &Inspection,
    report: &GroupReport,
    newest: &Snapshot,
    mut system: SystemState,
) -> Result<SystemState, String> {
    let (mut next, end) = (newest.index + 1, report.last_index + 1);
    while next < end {
        let entries = inspection.entries(report.group, next, end, PIECE).map_err(|error| error.to_string())?;
        for entry in &entries {
            let command = SystemCommand::of(entry).map_err(|error| format!("entry {}: {error}", entry.index))?;
            if let Some(command) = command {
                system.apply(entry.index, &command);
            }
        }
        next = entries.last().map(|entry| entry.index + 1).ok_or_else(|| format!("entry {next} is missing"))?;
    }
    Ok(system)
}

fn look_at(dir: &Path, snapshot: &Snapshot) -> SurvivingSnapshot {
    let (bytes, damaged) = match SystemState::of(snapshot) {
        Err(error) => (0, Some(format!("the snapshot at {}: {error}", snapshot.index))),
        Ok((_, None)) => (0, None),
        Ok((_, Some(file))) => (file.bytes, verify(dir, snapshot).err()),
    };
    SurvivingSnapshot { index: snapshot.index, term: snapshot.term, bytes, damaged }
}

fn verify(dir: &Path, snapshot: &Snapshot) -> Result<(), String> {
    let path = snapshots_path(dir);
    // Opening a snapshot store would make it.
    if !path.is_dir() {
        return Err(format!("{} is missing, and the snapshot at {} with it", path.display(), snapshot.index));
    }
    let snapshot_store = SnapshotStore::in_directory(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    snapshot_store.of(boot::GROUP).verify(snapshot).map_err(|error| error.to_string())
}
