//! `actorum restore` and `actorum recover`: a new cluster out of a backup, or out of what a lost majority left.
//!
//! Both go through `actorum::disaster_recovery`. This file shows what the directories hold, asks for the confirmations,
//! and says what was done and what comes next.

use std::{
    fmt::Write as _,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::SystemTime,
};

use actorum::{
    Address, ClusterId, Membership, NodeId,
    disaster_recovery::{self, BackupFile, Recover, RecoveredNode, Restore, Survivor},
};
use actorum_core::wire::SnapshotFile;
use actorum_machine::ids::GroupId;
use actorum_store::{
    log::{directory, store::OpenError},
    snapshot::file::Header,
};

use crate::{
    Failure, backup,
    output::{self, say},
    status::bytes,
};
use actorum_http::strict::{new_node_id, node_id, whole};

/// Make a node of a backup: the only one of a new cluster
///
/// Verifies the whole file, refuses a directory that holds anything, and gives the new cluster a new id. The new
/// cluster refuses nodes of the old one, so none can rejoin by mistake. If the command is interrupted, it can be run
/// again. The node starts with what was applied up to the backup's index; then add nodes and promote them.
#[derive(clap::Args)]
pub(crate) struct RestoreArgs {
    /// The backup, as `actorum backup` wrote it; - for standard input. What comes through a pipe is kept in $TMPDIR
    /// until it is checked
    file: PathBuf,
    /// The node's directory: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The node's id; one of the old cluster's may be used again
    #[arg(long, value_parser = new_node_id, allow_negative_numbers = true)]
    id: NodeId,
    /// Where peers will reach the node: the address that its `serve --listen` will have
    #[arg(long, value_name = "HOST:PORT")]
    address: Address,
    /// Who does this, for the audit record; $USER if not given
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
}

/// Make a new cluster out of what is left after a majority is gone for good
///
/// Shows every surviving directory, and refuses any but the most advanced, which holds all that the others know to be
/// committed. Then run it again with --accept-loss. The whole log of the chosen directory counts as committed: what was
/// acknowledged and is not in it is lost, and what was never acknowledged may appear. The node becomes the only one of
/// a new cluster with a new id, which refuses the nodes of the old one. The log records who did it, when, and what may
/// be lost. If the majority can come back in any way, bring it back instead.
#[derive(clap::Args)]
pub(crate) struct RecoverArgs {
    /// A surviving directory; once for each of them. Its node must be stopped
    #[arg(long, required = true, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Take the directory of this node; the most advanced if not given
    #[arg(long, value_name = "ID", value_parser = node_id, allow_negative_numbers = true)]
    choose: Option<NodeId>,
    /// Recover, and accept the loss of what is beyond this index, the last one of the chosen directory
    #[arg(long, value_name = "INDEX", value_parser = index)]
    accept_loss: Option<u64>,
    /// Where peers will reach the node; where they did until now if not given
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<Address>,
    /// Who does this, for the audit record; $USER if not given
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
}

fn index(text: &str) -> Result<u64, String> {
    whole(text).ok_or_else(|| format!("`{text}` is no index: a whole number is needed"))
}

/// Restores and says what comes next.
pub(crate) fn restore(RestoreArgs { file, data, id, address, who }: RestoreArgs) -> Result<(), Failure> {
    // Errors of the directory, the id, the address or the backup are reported before the command asks who does it.
    let mut wish = Restore::new(id, address.clone(), String::new(), SystemTime::now());
    wish.judge(&data)?;
    let (file, backup) = if file == Path::new("-") {
        let (name, stdin) = (PathBuf::from("standard input"), std::io::stdin());
        if stdin.is_terminal() {
            return Err(Failure::usage(
                "- is standard input, and that is a terminal: send a backup into it, or name a file",
            ));
        }
        let backup = BackupFile::read_from(&name, stdin.lock())?;
        (name, backup)
    } else {
        let backup = BackupFile::read(&file)?;
        (file, backup)
    };
    wish.who = name(who)?;
    let restored = backup.restore(&data, wish)?;
    output::done(format_args!("{} holds node {id} of the new cluster {}", data.display(), restored.cluster));
    say!("{} holds node {id} with the state of {}", data.display(), file.display());
    say!("  {}", describe(&backup));
    begun(&restored, &address.0);
    Ok(())
}

/// The person who changes something. It is needed only for a change: looking needs no name, and a container has no
/// `USER`.
fn name(who: Option<String>) -> Result<String, Failure> {
    let variable = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let named = who.or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
    named.filter(|name| !name.trim().is_empty()).ok_or_else(|| {
        Failure::usage("nothing was changed: say who does this with --who NAME, for it goes into the audit record")
    })
}

/// What a backup is, in a line.
pub(crate) fn describe(backup: &BackupFile) -> String {
    let of = (backup.group(), backup.cluster());
    words(backup.index(), backup.term(), of, backup.membership(), backup.bytes(), &backup.hash())
}

/// The same for a backup that went where it cannot be read again.
pub(crate) fn describe_sent(header: &Header, file: &SnapshotFile) -> String {
    let of = (header.group, header.cluster);
    words(header.index, header.term, of, &header.system.membership, file.bytes, &file.hash)
}

fn words(
    index: u64,
    term: u64,
    (group, cluster): (GroupId, ClusterId),
    membership: &Membership,
    length: u64,
    hash: &[u8],
) -> String {
    let (length, hash) = (bytes(length), backup::hex(hash));
    // Most clusters have group 0 alone, and no reason to know of groups.
    let group = if group == GroupId::FIRST { String::new() } else { format!("group {} of ", group.0) };
    format!("index {index}, term {term}, {length} of {group}cluster {cluster}, {membership}, BLAKE3 {hash}")
}

fn begun(recovered_node: &RecoveredNode, address: &str) {
    let (id, cluster, data) = (recovered_node.id, recovered_node.cluster, recovered_node.dir.display());
    say!("cluster {cluster} begins with node {id} at {address}; the old one was {}", recovered_node.audit.cluster);
    say!("what may be lost: {}", recovered_node.audit.may_be_lost);
    say!("next: start it with `actorum serve --id {id} --data {data} --listen {address} --wait ...`,");
    say!("      then add empty nodes with POST /members on its --admin address, and promote them");
}

/// Shows the survivors; with the loss accepted, recovers one of them.
pub(crate) fn recover(args: RecoverArgs) -> Result<(), Failure> {
    let RecoverArgs { data, choose, accept_loss, address, who } = args;
    let survivors = disaster_recovery::survey(&data);
    output::text(&table(&survivors));
    // A node that runs is not lost. This is checked before the command speaks of loss.
    for dir in &data {
        if let Some(holder) = directory::holder(dir)? {
            return Err(OpenError::Locked { dir: dir.clone(), holder }.into());
        }
    }
    let chosen = chosen(&survivors, choose)?;
    let cluster = |survivor: &Survivor| survivor.log.as_ref().map(|log| log.cluster);
    if let Some(other) = survivors.iter().find(|other| cluster(other).is_some() && cluster(other) != cluster(chosen)) {
        let (dir, other) = (chosen.dir.display(), other.dir.display());
        return Err(Failure::new(format!(
            "{other} is of another cluster than {dir}: leave out what is not of the lost one"
        )));
    }
    let Some(position) = chosen.position() else {
        return Err(Failure::new(format!("{}: {}", chosen.dir.display(), chosen.problems.join("; "))));
    };
    let others: Vec<&Path> =
        survivors.iter().filter(|other| !std::ptr::eq(*other, chosen)).map(|other| &*other.dir).collect();
    let Some(accepted) = accept_loss else {
        return Err(Failure::new(format!(
            "nothing was changed. Recovering {dir} would begin a new cluster with its log, \
             which ends at {position}: what was acknowledged beyond it is lost for good{more}. \
             If a majority cannot come back, say so by the index: \
             --accept-loss {index}",
            dir = chosen.dir.display(),
            more = ahead(&survivors, chosen),
            index = position.0
        )));
    };
    let mut wish = Recover::new(name(who)?, SystemTime::now());
    (wish.accept_loss, wish.address) = (Some(accepted), address.clone());
    let recovered = disaster_recovery::recover(&chosen.dir, &others, wish)?;
    output::done(format_args!("{} is the directory of the new cluster {}", recovered.dir.display(), recovered.cluster));
    say!("{} is recovered", recovered.dir.display());
    let known = chosen.log.as_ref().and_then(|log| log.membership.members.get(&recovered.id));
    let address = address.or(known.map(|member| member.address.clone()));
    begun(&recovered, &address.map_or_else(|| "HOST:PORT".to_owned(), |address| address.0));
    Ok(())
}

/// The one asked for, or else the most advanced of those that can be used.
fn chosen(survivors: &[Survivor], choose: Option<NodeId>) -> Result<&Survivor, Failure> {
    let Some(id) = choose else {
        let usable = survivors.iter().filter(|survivor| survivor.problems.is_empty());
        let best = usable.max_by_key(|survivor| survivor.position());
        return best.ok_or_else(|| Failure::new("none of these directories can be recovered from"));
    };
    let found: Vec<&Survivor> = survivors.iter().filter(|survivor| survivor.id == Some(id)).collect();
    match found[..] {
        [one] => Ok(one),
        [] => Err(Failure::usage(format!("--choose {id}: none of these directories is node {id}'s"))),
        _ => Err(Failure::usage(format!(
            "--choose {id}: several of these directories are node {id}'s: leave all but one out"
        ))),
    }
}

/// The directories that hold more than the chosen one, or may hold more.
fn ahead(survivors: &[Survivor], chosen: &Survivor) -> String {
    let mut said = String::new();
    for other in survivors.iter().filter(|other| !std::ptr::eq(*other, chosen)) {
        let dir = other.dir.display();
        match other.position() {
            Some(theirs) if Some(theirs) > chosen.position() => {
                let _ = write!(said, ", and {dir} HOLDS MORE, up to {theirs}");
            }
            _ if !other.problems.is_empty() => {
                let _ = write!(said, ", and {dir} may hold more: it cannot be read whole");
            }
            _ => {}
        }
    }
    said
}

/// The survivors, the most advanced first.
fn table(survivors: &[Survivor]) -> String {
    let mut sorted: Vec<&Survivor> = survivors.iter().collect();
    sorted.sort_by_key(|survivor| std::cmp::Reverse((survivor.problems.is_empty(), survivor.position())));
    let mut rows = vec![["NODE", "CLUSTER", "ENDS AT", "COMMIT", "SNAPSHOT", "DIRECTORY"].map(str::to_owned)];
    let mut notes = String::new();
    for survivor in &sorted {
        let dash = || "-".to_owned();
        let log = survivor.log.as_ref();
        rows.push([
            survivor.id.map_or_else(dash, |id| id.to_string()),
            log.map_or_else(dash, |log| log.cluster.to_string().chars().take(8).collect()),
            survivor.position().map_or_else(dash, |position| position.to_string()),
            log.map_or_else(dash, |log| log.commit.to_string()),
            log.and_then(|log| log.snapshots.last()).map_or_else(dash, |snapshot| snapshot.index.to_string()),
            survivor.dir.display().to_string(),
        ]);
        for problem in &survivor.problems {
            let _ = writeln!(notes, "{}: {problem}", survivor.dir.display());
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row[..5].iter().enumerate() {
            let _ = write!(text, "{cell:>width$}  ", width = width(column));
        }
        let _ = writeln!(text, "{}", row[5]);
    }
    text + &notes
}
