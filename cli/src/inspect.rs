//! `actorum inspect DIR`: what lies in a stopped node's directory.
//!
//! Reads through `actorum_store::log::inspect`, which works on a copy and refuses a directory in use; this file prints
//! it. The configuration is not a separate record: it is that of the snapshot, changed by the entries after it. So this
//! file computes it as a node does at its start.

use std::{
    ops::{ControlFlow, Range},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use actorum_core::{
    entry::{CommandKind, Stamped, SystemCommand},
    log::store::At,
    system_state::{Audit, SystemState},
    wire::{Entry, EntryKind},
};
use actorum_machine::ids::NodeId;
use actorum_store::{
    log::{
        directory::{Utc, snapshots_path},
        inspect::{GroupReport, Inspection},
    },
    snapshot::SnapshotStore,
};

use crate::{
    Failure,
    backup::hex,
    msgpack,
    output::{self, say},
    status::bytes,
};
use actorum_http::strict::whole;

/// How many bytes of entries are held in memory at a time.
const PIECE: usize = 4 << 20;

/// Look into the data directory of a stopped node, without changing it
///
/// Prints the hard state, the configuration, the snapshots, and the first and last index; and, if the cluster was
/// restored or recovered, who did that and what may be lost. Works on a copy in the temporary directory ($TMPDIR), so
/// it needs free space of the log's size there. Refuses a directory in use, and names the process that holds it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The node's data directory, as given to `serve --data`
    dir: PathBuf,
    /// Print these entries with their commands, of any application: A..B without B, A.. or ..B
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    entries: Option<Range<u64>>,
    /// Check every record, and fail if one is damaged
    #[arg(long)]
    verify: bool,
}

/// Prints what it finds.
pub(crate) fn run(Args { dir, entries, verify }: Args) -> Result<(), Failure> {
    let inspection = Inspection::open(&dir)?;
    match inspection.identity() {
        Ok(node) => say!("node {}, incarnation {}, started {} times", node.id, node.incarnation, node.boot),
        Err(e) => say!("cannot tell whose directory it is: {e}"),
    }
    let mut damaged = 0;
    for report in inspection.groups() {
        describe(&inspection, &report);
        damaged += snapshots(&dir, &report, verify);
        if let Some(range) = &entries {
            print_entries(&inspection, &report, range)?;
        }
    }
    if output::is_over() && !verify {
        // No reader is left for the rest of the output, and no verification was asked for.
        return Ok(());
    }
    let report = inspection.verify();
    if verify {
        say!("{report}");
    }
    match (report.problems.len() + damaged, verify) {
        (0, _) => Ok(()),
        (_, true) => Err(Failure::new(format!("{} is damaged", dir.display()))),
        (found, false) => Err(Failure::new(format!("{found} problems were found: see them with --verify"))),
    }
}

fn describe(inspection: &Inspection, report: &GroupReport) {
    let GroupReport { hard_state, last_index, .. } = report;
    say!("group {}", report.group.0);
    say!("  hard state     term {}, vote {}, commit {}", hard_state.term, vote(hard_state.vote), hard_state.commit);
    let (configuration, audit) = configuration(inspection, report);
    say!("  configuration  {configuration}");
    for Audit { who, when, why, may_be_lost, index, cluster, members } in &audit {
        let members: Vec<String> = members.keys().map(NodeId::to_string).collect();
        say!(
            "  audit          index {index}: {why} by {who}, {}",
            Utc(UNIX_EPOCH.checked_add(Duration::from_secs(*when)).unwrap_or(UNIX_EPOCH))
        );
        say!("                 out of cluster {cluster} with members {}", members.join(" "));
        say!("                 what may be lost: {may_be_lost}");
    }
    say!("  compacted to   {}", At(report.compacted.0, report.compacted.1));
    match report.first_index {
        Some(first) => say!("  log            first index {first}, last index {last_index}"),
        None => say!("  log            no entries, last index {last_index}"),
    }
    let terms: Vec<String> = report.terms.iter().map(|(index, term)| format!("{term} from {index}")).collect();
    say!("  terms          {}", if terms.is_empty() { "none".to_owned() } else { terms.join(", ") });
    say!("  size           {} in {} blocks", bytes(report.bytes), report.blocks);
    match &report.watermark {
        Some(mark) => say!("  watermark      {mark}"),
        None => say!("  watermark      none"),
    }
}

fn vote(id: u64) -> String {
    if id == 0 { "for nobody".to_owned() } else { format!("for {id}") }
}

/// The configuration at the end of the log, or why it is not known.
fn configuration(inspection: &Inspection, report: &GroupReport) -> (String, Vec<Audit>) {
    let Some(snapshot) = report.snapshots.last() else {
        return ("none: this node was never part of a cluster".to_owned(), Vec::new());
    };
    let mut state = match SystemState::of(snapshot) {
        Ok((state, _)) => state,
        Err(e) => return (format!("unreadable: the snapshot: {e}"), Vec::new()),
    };
    let follow = walk(inspection, report, &(snapshot.index.saturating_add(1)..u64::MAX), |entry| {
        if let Ok(Some(command)) = SystemCommand::of(entry) {
            state.apply(entry.index, &command);
        }
        ControlFlow::Continue(())
    });
    let words = match follow {
        Ok(()) => format!("{} (cluster {})", state.membership, state.cluster),
        Err(e) => format!("{}, as far as the log can be read: {e}", state.membership),
    };
    (words, state.audit)
}

/// The snapshots that the log names; how many of their files are damaged. Only a verification reads them to their end.
fn snapshots(dir: &Path, report: &GroupReport, verify: bool) -> usize {
    let path = snapshots_path(dir);
    // Opening a snapshot store would make it.
    let snapshots = path.is_dir().then(|| SnapshotStore::in_directory(&path).map(|store| store.of(report.group)));
    let mut damaged = 0;
    for snapshot in &report.snapshots {
        let file = match (SystemState::of(snapshot), &snapshots) {
            (Err(e), _) => Err(format!("unreadable: {e}")),
            (Ok((_, None)), _) => Ok("the genesis, which has no file".to_owned()),
            (Ok((_, Some(_))), None) => Err(format!("its file is missing, and so is {}", path.display())),
            (Ok((_, Some(_))), Some(Err(e))) => Err(format!("{}: {e}", path.display())),
            (Ok((_, Some(file))), Some(Ok(snapshots))) if verify => match snapshots.verify(snapshot) {
                Ok(()) => Ok(format!("{}, BLAKE3 {}, verified", bytes(file.bytes), hex(&file.hash))),
                Err(e) => Err(e.to_string()),
            },
            (Ok((_, Some(file))), Some(Ok(snapshots))) if snapshots.has(snapshot.index, &file) => {
                Ok(format!("{}, BLAKE3 {}", bytes(file.bytes), hex(&file.hash)))
            }
            (Ok((_, Some(file))), Some(Ok(_))) => {
                Err(format!("its file of {} is missing or damaged", bytes(file.bytes)))
            }
        };
        damaged += usize::from(file.is_err());
        say!("  snapshot       up to {}: {}", At(snapshot.index, snapshot.term), file.unwrap_or_else(|e| e));
    }
    if report.snapshots.is_empty() {
        say!("  snapshot       none: this node was never part of a cluster");
    }
    damaged
}

fn print_entries(inspection: &Inspection, report: &GroupReport, range: &Range<u64>) -> Result<(), Failure> {
    say!("  entries");
    walk(inspection, report, range, |entry| {
        say!("    {} {}", At(entry.index, entry.term), words(entry));
        // The reader is gone, as in `inspect --entries 1.. | head`.
        if output::is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// Goes through the entries that the log holds of a range, a piece at a time, until it is told to stop.
fn walk(
    inspection: &Inspection,
    report: &GroupReport,
    range: &Range<u64>,
    mut each: impl FnMut(&Entry) -> ControlFlow<()>,
) -> Result<(), Failure> {
    let Some(first) = report.first_index else { return Ok(()) };
    let mut next = range.start.max(first);
    let end = range.end.min(report.last_index.saturating_add(1));
    while next < end {
        let entries = inspection.entries(report.group, next, end, PIECE)?;
        let Some(last) = entries.last() else { return Err(Failure::new(format!("entry {next} is missing"))) };
        next = last.index + 1;
        if entries.iter().try_for_each(&mut each).is_break() {
            break;
        }
    }
    Ok(())
}

/// An entry in one line.
fn words(entry: &Entry) -> String {
    match entry.kind {
        EntryKind::Normal if entry.data.is_empty() => return "empty: the first of a new leader".to_owned(),
        EntryKind::ConfChange if entry.context.is_empty() => return "membership change without a request".to_owned(),
        EntryKind::Normal | EntryKind::ConfChange => {}
    }
    match SystemCommand::of(entry) {
        Ok(Some(command)) => system_words(&command),
        Err(e) => format!("unreadable: {e}"),
        Ok(None) => match Stamped::parse(&entry.data) {
            Ok(Stamped { kind: CommandKind::Command, payload, .. }) => msgpack::shown(payload),
            Ok(Stamped { kind: CommandKind::System, .. }) => {
                "a system command where none belongs: it does nothing".to_owned()
            }
            Err(e) => format!("unreadable: {e}"),
        },
    }
}

fn system_words(command: &SystemCommand) -> String {
    match command {
        SystemCommand::Change { change, forced: true, .. } => format!("membership change, forced: {change}"),
        SystemCommand::Change { change, .. } => format!("membership change: {change}"),
        SystemCommand::Incarnation { node, incarnation } => {
            format!("node {node} is known by its incarnation {incarnation}")
        }
        SystemCommand::Recovered { cluster, node, address, audit, .. } => {
            format!("cluster {cluster} begins with node {node} at {address}: {} by {}", audit.why, audit.who)
        }
        other => format!("system: {other:?}"),
    }
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("`{text}` is not of the form A..B, A.. or ..B");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str, empty: u64| if text.is_empty() { Ok(empty) } else { whole(text).ok_or_else(wrong) };
    let range = number(from, 0)?..number(to, u64::MAX)?;
    match range.is_empty() {
        true => Err(format!("`{text}` holds no entry: A..B is without B, so B is more than A")),
        false => Ok(range),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use actorum_core::log::store::{Compact, Write};
    use actorum_machine::{
        ids::{ClusterId, GroupId, Incarnation},
        machine::StateView,
    };
    use actorum_store::{
        log::{
            sled::{OpenOptions, SledStore},
            store::{Batch, Completed, LogStore},
        },
        snapshot::store::Content,
    };

    use super::*;

    /// Each group's snapshots are looked for in its own folder.
    #[test]
    fn the_files_of_each_group_are_found() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("node");
        let store = SledStore::open(&dir, OpenOptions::new(1, Incarnation(1))).unwrap();
        let system = SystemState::founded(ClusterId(1), &[(1, "n1:1".into())].into());
        let mut writes = Vec::new();
        for group in [0, 7].map(GroupId) {
            let state = StateView::bytes(vec![1; 100]);
            let content = Content { index: 1, term: 1, system: system.clone(), formed_with: Default::default(), state };
            let snapshot = store.snapshot_store().of(group).build(content, &mut |_| {}).unwrap();
            let genesis = Some(system.genesis(Default::default()).unwrap());
            writes.push(Write { group, snapshot: genesis, ..Write::default() });
            let compact = Some(Compact { snapshots: vec![snapshot], up_to: 1 });
            writes.push(Write { group, compact, ..Write::default() });
        }
        let (heard, completed) = mpsc::channel();
        let mut appender = Box::new(store).start(Arc::new(move |Completed { result, .. }| drop(heard.send(result))));
        appender.submit(Batch { writes, sync: true });
        completed.recv().unwrap().unwrap();
        drop(appender);

        let damaged = || -> Vec<(u32, usize)> {
            let inspection = Inspection::open(&dir).unwrap();
            inspection.groups().iter().map(|report| (report.group.0, snapshots(&dir, report, true))).collect()
        };
        assert_eq!(damaged(), [(0, 0), (7, 0)]);
        let folder = snapshots_path(&dir).join("g7");
        std::fs::rename(&folder, temp.path().join("elsewhere")).unwrap();
        assert_eq!(damaged(), [(0, 0), (7, 1)]);
        assert!(!folder.exists(), "looking makes nothing");
    }

    /// Ranges as Rust writes them.
    #[test]
    fn ranges() {
        assert_eq!(parse_range("2..5"), Ok(2..5));
        assert_eq!(parse_range("2.."), Ok(2..u64::MAX));
        assert_eq!(parse_range("..5"), Ok(0..5));
        for wrong in ["", "5", "a..b", "5..=6", "5..1", "5..5", "+1..5", "01..5", "..0"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }
}
