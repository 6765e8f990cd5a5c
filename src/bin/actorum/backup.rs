//! `actorum snapshot` and `actorum backup`: asks a running node, through its admin address.
//!
//! A backup lands under a temporary name beside its own, is verified byte by byte as it lies there, and only then gets its
//! name: whatever goes wrong on the way, there is the old file or the new one.
//!
//! Neither has a deadline on the whole, which a large state would miss: only on progress.

use std::{
    fs::{self, File},
    io::{IsTerminal, Read, Write},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use actorum::rescue::BackupFile;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::{
    Failure,
    client::{Answer, Client},
    output::{self, say},
    rescue::describe,
    status::bytes,
};

/// How long a node may send nothing of what it was asked for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the node is asked how far its snapshot is.
const LOOK: Duration = Duration::from_millis(200);
/// How long one such question may take.
const LOOK_WITHIN: Duration = Duration::from_secs(3);
/// How many bytes are read from a node at a time.
const PIECE: usize = 256 << 10;

/// Let a node take a snapshot of its state, so that its log before the one before it can go
///
/// Nodes do this by themselves, as their configuration says. It is done when the snapshot is durable on that node;
/// requests go on meanwhile.
#[derive(clap::Args)]
pub struct SnapshotArgs {
    /// The node's admin address, such as http://127.0.0.1:9001
    url: String,
}

/// Write a consistent copy of the cluster's state to a file, from any node
///
/// The node takes a snapshot first if its newest is not of now, and streams it. The file is complete and verified once it
/// has its name. `actorum restore` makes a new cluster of it. An admin address that asks for certificates is read with
/// another client: curl --cert cert.pem --key key.pem --cacert ca.pem -o FILE https://HOST:PORT/backup
#[derive(clap::Args)]
pub struct BackupArgs {
    /// The node's admin address, such as http://127.0.0.1:9001
    url: String,
    /// Where to write the backup
    file: PathBuf,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
}

/// `http://HOST:PORT`, without a slash at its end.
fn base(url: &str) -> Result<String, Failure> {
    if url.starts_with("https://") {
        return Err(Failure::usage(format!(
            "{url} asks for certificates, which this client does not show: see `actorum backup --help` for one that does"
        )));
    }
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    Ok(url.trim_end_matches('/').to_owned())
}

/// 64 hexadecimal digits.
pub fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes one, showing how far it is.
pub fn snapshot(SnapshotArgs { url }: SnapshotArgs) -> Result<(), Failure> {
    let base = base(&url)?;
    let bar = bar(None);
    let (done, taken) = mpsc::sync_channel(1);
    let asking = base.clone();
    thread::spawn(move || done.send(Client::patient().post(&format!("{asking}/snapshot"))));
    let looking = Client::new(LOOK_WITHIN);
    let answer = loop {
        match taken.recv_timeout(LOOK) {
            Ok(answer) => break answer.map_err(|error| Failure::new(format!("{url}: {error}")))?,
            Err(RecvTimeoutError::Timeout) => {
                if let Ok(Answer { status: 200, body }) = looking.get(&format!("{base}/status")) {
                    show(&bar, &body);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::new(format!("{url}: the request was lost"))),
        }
    };
    bar.finish_and_clear();
    if answer.status != 200 {
        return Err(refused(&url, &answer));
    }
    let number = |name: &str| answer.body[name].as_u64().unwrap_or(0);
    output::done(format_args!("the snapshot at index {} is durable on the node", number("index")));
    say!(
        "snapshot at index {}, term {}: {} in {:.1} s",
        number("index"),
        number("term"),
        bytes(number("bytes")),
        number("took_ms") as f64 / 1e3
    );
    Ok(())
}

/// How far the node's snapshot is, by its status.
fn show(bar: &ProgressBar, status: &Value) {
    let snapshots = &status["snapshots"];
    // Nobody knows how large it will be: about as large as the last one.
    if let Some(expected) = snapshots["newest"]["bytes"].as_u64().filter(|_| bar.length().is_none()) {
        bar.set_style(of_length());
        bar.set_length(expected);
    }
    if let Some(written) = snapshots["building"]["bytes"].as_u64() {
        bar.set_position(written);
        bar.set_length(bar.length().unwrap_or(0).max(written));
    }
}

/// A node's refusal, in its own words.
fn refused(url: &str, answer: &Answer) -> Failure {
    match answer.body["message"].as_str() {
        Some(message) if answer.status == 404 => {
            Failure::new(format!("{url}: {message}: give the node's --admin address, not its public one"))
        }
        Some(message) => Failure::new(format!("{url}: {message}")),
        None => Failure::new(format!(
            "{url}: not a node's admin address (HTTP {}): give the address of its --admin",
            answer.status
        )),
    }
}

/// Downloads, verifies, and only then gives the file its name.
pub fn backup(BackupArgs { url, file, force }: BackupArgs) -> Result<(), Failure> {
    let base = base(&url)?;
    let name = file.file_name().ok_or_else(|| Failure::usage(format!("{} is no name of a file", file.display())))?;
    if file.is_dir() {
        return Err(Failure::usage(format!("{} is a directory: name a file in it", file.display())));
    }
    if file.exists() && !force {
        return Err(Failure::new(format!(
            "{} exists already: choose another name, or replace it with --force",
            file.display()
        )));
    }
    let partial = file.with_file_name(format!("{}.partial", name.to_string_lossy()));
    let written = download(&base, &url, &partial).and_then(|told| {
        let backup = BackupFile::read(&partial)?;
        match told {
            Some(told) if told != hex(&backup.hash()) => Err(Failure::new(format!(
                "{url}: the file that came is not the one that was announced (BLAKE3 {} and not {told})",
                hex(&backup.hash())
            ))),
            _ => Ok(backup),
        }
    });
    let done = written.and_then(|backup| place(&partial, &file, force).map(|()| backup));
    match done {
        Ok(backup) => {
            output::done(format_args!("{} is complete and verified", file.display()));
            say!("{}: {}", file.display(), describe(&backup));
            Ok(())
        }
        Err(failure) => {
            let _ = fs::remove_file(&partial); // what stays is overwritten by the next one
            Err(failure)
        }
    }
}

/// The content before the name: a crash leaves the old file or the whole new one.
fn place(partial: &Path, file: &Path, force: bool) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", file.display()));
    if force {
        fs::rename(partial, file).map_err(failed)?;
    } else {
        // A link, unlike a rename, replaces nobody's file that came meanwhile.
        match fs::hard_link(partial, file) {
            Ok(()) => fs::remove_file(partial).map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
            // Not every filesystem has links.
            Err(_) => fs::rename(partial, file).map_err(failed)?,
        }
    }
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)
}

/// Writes the answer of `GET /backup` to that file, durably; the hash that the node announced, if it did.
fn download(base: &str, url: &str, partial: &Path) -> Result<Option<String>, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("{url}: {error}"));
    let (heads, head) = mpsc::sync_channel(1);
    let (pieces, piece) = mpsc::sync_channel::<Result<Vec<u8>, String>>(4);
    let asking = format!("{base}/backup");
    // A thread of its own: a blocking read has no deadline on progress.
    thread::spawn(move || {
        let mut streamed = match Client::patient().stream(&asking) {
            Ok(streamed) => streamed,
            Err(error) => return drop(heads.send(Err(error.to_string()))),
        };
        if heads.send(Ok(streamed.head())).is_err() {
            return;
        }
        loop {
            let mut buffer = vec![0; PIECE];
            let read = streamed.body.read(&mut buffer);
            let end = matches!(read, Ok(0) | Err(_));
            let sent = match read {
                Ok(got) => {
                    buffer.truncate(got);
                    pieces.send(Ok(buffer))
                }
                Err(error) => pieces.send(Err(error.to_string())),
            };
            if end || sent.is_err() {
                return;
            }
        }
    });
    // The node may take a snapshot first, however long that takes; it lives as long as the connection does.
    let head = head.recv().map_err(|_| failed(&"the request was lost"))?.map_err(|error| failed(&error))?;
    if head.status != 200 {
        return Err(refused(url, &Answer { status: head.status, body: head.refusal }));
    }
    let in_file = |error: std::io::Error| Failure::new(format!("{}: {error}", partial.display()));
    let mut file = private(partial).map_err(in_file)?;
    let bar = bar(head.length);
    let mut got = 0;
    loop {
        let piece = piece.recv_timeout(PATIENCE).map_err(|_| {
            failed(&format!("the node sent nothing for {} s, after {}", PATIENCE.as_secs(), bytes(got)))
        })?;
        let piece = piece.map_err(|error| failed(&format!("it broke off after {}: {error}", bytes(got))))?;
        if piece.is_empty() {
            break;
        }
        file.write_all(&piece).map_err(in_file)?;
        got += piece.len() as u64;
        bar.set_position(got);
    }
    bar.finish_and_clear();
    if let Some(length) = head.length.filter(|length| *length != got) {
        return Err(failed(&format!("it broke off after {} of {}", bytes(got), bytes(length))));
    }
    file.sync_all().map_err(in_file)?;
    Ok(head.hash)
}

/// It holds all that the application says: for its owner only.
fn private(path: &Path) -> std::io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn of_length() -> ProgressStyle {
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    style.expect("the template is valid")
}

/// A bar on a terminal, and nothing elsewhere.
fn bar(total: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    match total {
        Some(total) => ProgressBar::new(total).with_style(of_length()),
        None => {
            let style = ProgressStyle::with_template("{spinner} {bytes} written {bytes_per_sec}");
            let bar = ProgressBar::new_spinner().with_style(style.expect("the template is valid"));
            bar.enable_steady_tick(LOOK);
            bar
        }
    }
}
