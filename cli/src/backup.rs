//! `actorum snapshot` and `actorum backup`: asks a running node, through its admin address.
//!
//! A backup is written under a temporary name beside its own and verified byte by byte. Only then it gets its name:
//! whatever goes wrong on the way, there is the old file or the new one.
//!
//! What goes to a device, a pipe or standard output is verified while it passes; the exit code says whether it was
//! complete.
//!
//! A backup has no deadline on the whole, which a large state would miss, only on progress. The node makes the snapshot
//! even if no client waits for it.

use std::{
    fs::{self, File},
    io::{self, BufReader, IsTerminal, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use actorum::disaster_recovery::BackupFile;
use actorum_store::snapshot::file::Reader;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::{
    Failure,
    client::{Client, HttpReply},
    disaster_recovery::{describe, describe_sent},
    output::{self, say},
    status::bytes,
};
use actorum_http::route::MAX_TIMEOUT;

/// How long a node may send nothing of the backup.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);
/// While a node takes a snapshot: how long it may answer nothing at all, and how long its snapshot may not grow while
/// it does answer.
const TIMEOUTS: Timeouts = Timeouts { silent: Duration::from_secs(30), still: Duration::from_secs(600) };
/// How often the node is asked how far its snapshot is.
const LOOK: Duration = Duration::from_millis(200);
/// How long one such question may take.
const LOOK_WITHIN: Duration = Duration::from_secs(3);
/// How many bytes are read from a node at a time.
const PIECE: usize = 256 << 10;

/// Let a node take a snapshot of its state, so that it can cut off its old log
///
/// Nodes do this by themselves, as their configuration says. The command ends when the snapshot is durable on that
/// node. Requests go on meanwhile.
#[derive(clap::Args)]
pub(crate) struct SnapshotArgs {
    /// The node's admin address, such as http://127.0.0.1:9001
    url: String,
    /// How long to wait for the snapshot, in seconds; afterwards the node still takes it
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = MOST_S,
        value_parser = clap::value_parser!(u64).range(1..=MOST_S)
    )]
    timeout: u64,
}

/// The longest time that a node may keep a request waiting.
const MOST_S: u64 = MAX_TIMEOUT.as_secs();

/// Write a consistent copy of the cluster's state to a file, a device or standard output, from any node
///
/// The node takes a snapshot first, if it has applied anything since its newest one, and streams it. The file gets its
/// name only once it is complete and verified. `actorum restore` makes a new cluster of it. If the admin address asks
/// for certificates, use curl: curl --cert cert.pem --key key.pem --cacert ca.pem -o FILE https://HOST:PORT/backup
#[derive(clap::Args)]
pub(crate) struct BackupArgs {
    /// The node's admin address, such as http://127.0.0.1:9001
    url: String,
    /// Where to write the backup; - for standard output. A device or a pipe is written to, and not replaced
    file: PathBuf,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
}

/// `http://HOST:PORT`, without a slash at its end.
pub(crate) fn base(url: &str) -> Result<String, Failure> {
    if url.starts_with("https://") {
        return Err(Failure::usage(format!(
            "{url} asks for certificates, which this client does not show: see `actorum backup --help` for one that \
             does"
        )));
    }
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    Ok(url.trim_end_matches('/').to_owned())
}

/// 64 hexadecimal digits.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lets the node take a snapshot, and shows how far it is.
pub(crate) fn snapshot(SnapshotArgs { url, timeout }: SnapshotArgs) -> Result<(), Failure> {
    let base = base(&url)?;
    let bar = bar(None);
    let (done, taken) = mpsc::sync_channel(1);
    let asking = format!("{base}/snapshot?timeout_ms={}", timeout * 1000);
    // The node answers at the deadline by itself; the client gives up a little later.
    let within = Duration::from_secs(timeout) + LOOK_WITHIN;
    thread::spawn(move || done.send(Client::new(within).post(&asking)));
    let answer = while_it_gets_on(&base, &url, &taken, &TIMEOUTS, |status| show(&bar, status))?;
    let answer = answer.map_err(|error| Failure::new(format!("{url}: {error}")))?;
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

/// How long the client waits for a node that takes a snapshot.
struct Timeouts {
    silent: Duration,
    still: Duration,
}

/// Waits for the answer of a node as long as the node makes progress: it answers questions about its status, which go
/// to `look`, and its snapshots change.
fn while_it_gets_on<T>(
    base: &str,
    url: &str,
    answer: &Receiver<T>,
    timeouts: &Timeouts,
    mut look: impl FnMut(&Value),
) -> Result<T, Failure> {
    let looking = Client::new(LOOK_WITHIN.min(timeouts.silent));
    let (mut heard, mut grown, mut last) = (Instant::now(), Instant::now(), Value::Null);
    let mut node = "the node".to_owned();
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::new(format!("{url}: the request was lost"))),
        }
        // Any answer shows that the node lives.
        if let Ok(HttpReply { status, body }) = looking.get(&format!("{base}/status")) {
            heard = Instant::now();
            if status == 200 {
                look(&body);
                if let Some(id) = body["id"].as_u64() {
                    node = format!("node {id}");
                }
                if body["snapshots"] != last {
                    (grown, last) = (Instant::now(), body["snapshots"].clone());
                }
            }
        }
        if heard.elapsed() >= timeouts.silent {
            return Err(Failure::new(format!(
                "{url}: {node} has answered nothing for {} s, not even questions about its status: \
                 the node is stopped or hangs, or the network does not work. Ask another node, or this one again once \
                 `actorum status` shows it",
                timeouts.silent.as_secs_f32()
            )));
        }
        if grown.elapsed() >= timeouts.still {
            return Err(Failure::new(format!(
                "{url}: {node} answers, but its snapshot has made no progress for {} s: \
                 see its log and `actorum status`, or ask another node",
                timeouts.still.as_secs_f32()
            )));
        }
    }
}

/// How far the node's snapshot is, by its status.
fn show(bar: &ProgressBar, status: &Value) {
    let snapshots = &status["snapshots"];
    // The size is not known yet: about as large as the last snapshot.
    if let Some(expected) = snapshots["newest"]["bytes"].as_u64().filter(|_| bar.length().is_none()) {
        bar.set_style(of_length());
        bar.set_length(expected);
    }
    if let Some(written) = snapshots["building"]["bytes"].as_u64() {
        bar.set_position(written);
        bar.set_length(bar.length().unwrap_or(0).max(written));
    }
}

/// A node's refusal, with its text.
pub(crate) fn refused(url: &str, answer: &HttpReply) -> Failure {
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

/// Where a backup goes.
enum Goal {
    /// A file that gets this name once it is whole.
    File(PathBuf),
    /// Something that exists and is not a regular file, such as a device or a pipe. It is written to, and never
    /// replaced.
    Stream { name: String, out: File, is_stdout: bool },
}

impl Goal {
    fn of(file: PathBuf, force: bool) -> Result<Goal, Failure> {
        let failed = |error: io::Error| Failure::new(format!("{}: {error}", file.display()));
        if STDOUT.iter().any(|name| file == Path::new(name)) {
            if io::stdout().is_terminal() {
                return Err(Failure::usage("a backup is not text, and standard output is a terminal: redirect it"));
            }
            if output::may_be_closed()? {
                return Err(Failure::new(
                    "standard output is closed (or a /dev/null open for reading and writing, which means the same): \
                     the backup would be lost. Redirect standard output; to throw a backup away on purpose, \
                     name /dev/null in place of -",
                ));
            }
            let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            return Ok(Goal::Stream { name: "standard output".to_owned(), out, is_stdout: true });
        }
        match fs::metadata(&file) {
            Ok(found) if found.is_dir() => {
                Err(Failure::usage(format!("{} is a directory: name a file in it", file.display())))
            }
            // The very file that the shell has opened as standard output: if it were replaced, the shell's file would
            // stay empty.
            Ok(found) if is_stdout(&found)? => {
                let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
                Ok(Goal::Stream { name: "standard output".to_owned(), out, is_stdout: true })
            }
            Ok(found) if !found.is_file() => {
                let out = fs::OpenOptions::new().write(true).open(&file).map_err(failed)?;
                Ok(Goal::Stream { name: file.display().to_string(), out, is_stdout: false })
            }
            Ok(_) if !force => Err(Failure::new(format!(
                "{} exists already: choose another name, or replace it with --force",
                file.display()
            ))),
            // A link stands for the file that it names.
            Ok(_) => Ok(Goal::File(fs::canonicalize(&file).map_err(failed)?)),
            Err(_) => Ok(Goal::File(file)),
        }
    }
}

/// Names of standard output. The file that it goes to may have its own name, too: see [`is_stdout`].
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Whether this is what standard output goes to.
fn is_stdout(found: &fs::Metadata) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?).metadata()?;
    Ok(found.is_file() && (found.dev(), found.ino()) == (stdout.dev(), stdout.ino()))
}

/// Writes a backup to where it is to go.
pub(crate) fn backup(BackupArgs { url, file, force }: BackupArgs) -> Result<(), Failure> {
    let base = base(&url)?;
    match Goal::of(file, force)? {
        Goal::File(file) => to_file(&base, &url, &file, force),
        Goal::Stream { name, out, is_stdout } => to_stream(&base, &url, &name, out, is_stdout),
    }
}

/// Downloads, verifies, and only then gives the file its name.
fn to_file(base: &str, url: &str, file: &Path, force: bool) -> Result<(), Failure> {
    let name = file.file_name().ok_or_else(|| Failure::usage(format!("{} is no name of a file", file.display())))?;
    let partial = file.with_file_name(format!("{}.partial", name.to_string_lossy()));
    let written = download(base, url, &partial).and_then(|announced| {
        let backup = BackupFile::read(&partial)?;
        as_announced(url, announced, &backup.hash())?;
        Ok(backup)
    });
    let done = written.and_then(|backup| place(&partial, file, force).map(|()| backup));
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

fn as_announced(url: &str, announced: Option<String>, hash: &[u8]) -> Result<(), Failure> {
    match announced {
        Some(announced) if announced != hex(hash) => Err(Failure::new(format!(
            "{url}: the file that came is not the one that was announced (BLAKE3 {} and not {announced})",
            hex(hash)
        ))),
        _ => Ok(()),
    }
}

/// Writes the backup as it comes, and verifies it while it passes: the reader at the other end learns of damage only by
/// the exit code.
fn to_stream(base: &str, url: &str, name: &str, mut out: File, is_stdout: bool) -> Result<(), Failure> {
    let mut source = Source::ask(base, url)?;
    let announced = source.hash.take();
    let mut failed = None;
    let tee = Tee { source: &mut source, out: &mut out, failed: &mut failed };
    let verified = Reader::begin(BufReader::new(tee)).and_then(|reader| {
        let header = reader.header().clone();
        Ok((header, reader.verify()?))
    });
    source.bar.finish_and_clear();
    if let Some(failure) = failed.map(|error| Failure::new(format!("{name}: {error}: the backup is not complete"))) {
        return Err(failure);
    }
    if let Some(failure) = source.failed.take() {
        return Err(failure);
    }
    let (header, file) = verified.map_err(|error| Failure::new(format!("{url}: what came is no backup: {error}")))?;
    as_announced(url, announced, &file.hash)?;
    // Not everything that can be written to can be synced.
    match out.sync_all() {
        Err(error) if ![io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported].contains(&error.kind()) => {
            return Err(Failure::new(format!("{name}: {error}: the backup may not be complete")));
        }
        _ => {}
    }
    let summary = format!("{name}: {}", describe_sent(&header, &file));
    match is_stdout {
        true => output::complain(format_args!("{summary}\n")),
        false => {
            output::done(format_args!("{name} got the whole backup"));
            say!("{summary}");
        }
    }
    Ok(())
}

/// What is read was written before.
struct Tee<'a> {
    source: &'a mut Source,
    out: &'a mut File,
    failed: &'a mut Option<io::Error>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.source.read(buffer)?;
        self.out.write_all(&buffer[..got]).map_err(|error| {
            let kind = error.kind();
            *self.failed = Some(error);
            io::Error::from(kind)
        })?;
        Ok(got)
    }
}

/// The content is synced before the rename: a crash leaves the old file or the whole new one.
fn place(partial: &Path, file: &Path, force: bool) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", file.display()));
    if force {
        fs::rename(partial, file).map_err(failed)?;
    } else {
        // A link, unlike a rename, does not replace a file that another program made meanwhile.
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

/// Writes the answer of `GET /backup` to that file, durably. Returns the hash that the node announced, if it did.
fn download(base: &str, url: &str, partial: &Path) -> Result<Option<String>, Failure> {
    let mut source = Source::ask(base, url)?;
    let in_file = |error: io::Error| Failure::new(format!("{}: {error}", partial.display()));
    let mut file = private(partial).map_err(in_file)?;
    let mut buffer = vec![0; PIECE];
    loop {
        let got = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) => return Err(source.failed.take().unwrap_or_else(|| Failure::new(error))),
        };
        file.write_all(&buffer[..got]).map_err(in_file)?;
    }
    source.bar.finish_and_clear();
    file.sync_all().map_err(in_file)?;
    Ok(source.hash)
}

/// The answer of `GET /backup`, piece by piece. An error of reading is in `failed`, as a text for people.
struct Source {
    url: String,
    pieces: mpsc::Receiver<Result<Vec<u8>, String>>,
    piece: io::Cursor<Vec<u8>>,
    got: u64,
    length: Option<u64>,
    hash: Option<String>,
    bar: ProgressBar,
    failed: Option<Failure>,
}

impl Source {
    /// Asks, and waits until it begins to come.
    fn ask(base: &str, url: &str) -> Result<Source, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(format!("{url}: {error}"));
        let (heads, head) = mpsc::sync_channel(1);
        let (pieces, piece) = mpsc::sync_channel::<Result<Vec<u8>, String>>(4);
        let asking = format!("{base}/backup");
        // A separate thread reads, since a blocking read has no deadline on progress.
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
        // The node may take a snapshot first, however long that takes.
        let head = while_it_gets_on(base, url, &head, &TIMEOUTS, |_| {})?.map_err(|error| failed(&error))?;
        if head.status != 200 {
            return Err(refused(url, &HttpReply { status: head.status, body: head.refusal }));
        }
        Ok(Source {
            url: url.to_owned(),
            pieces: piece,
            piece: io::Cursor::default(),
            got: 0,
            bar: bar(head.length),
            length: head.length,
            hash: head.hash,
            failed: None,
        })
    }

    fn next(&mut self) -> Result<Vec<u8>, String> {
        let got = bytes(self.got);
        let piece = self.pieces.recv_timeout(PIECE_TIMEOUT);
        let piece =
            piece.map_err(|_| format!("the node sent nothing for {} s, after {got}", PIECE_TIMEOUT.as_secs()))?;
        let piece = piece.map_err(|error| format!("it broke off after {got}: {error}"))?;
        match self.length.filter(|length| piece.is_empty() && *length != self.got) {
            Some(length) => Err(format!("it broke off after {got} of {}", bytes(length))),
            None => Ok(piece),
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The empty piece is the end, and stays it.
        let read = self.piece.position() == self.piece.get_ref().len() as u64;
        if read && !(self.got > 0 && self.piece.get_ref().is_empty()) {
            self.piece = io::Cursor::new(self.next().map_err(|error| {
                self.failed = Some(Failure::new(format!("{}: {error}", self.url)));
                io::Error::from(io::ErrorKind::UnexpectedEof)
            })?);
            self.got += self.piece.get_ref().len() as u64;
            self.bar.set_position(self.got);
        }
        self.piece.read(buffer)
    }
}

/// The file holds the whole state of the application, so only its owner may read it.
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

#[cfg(test)]
mod tests {
    use std::{io::BufRead, net::TcpListener};

    use super::*;

    /// Connections are made, as the system does for a process that is stopped; to each question `answer` says what is
    /// answered.
    fn node(mut answer: impl FnMut() -> Option<String> + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let asked: Vec<String> =
                    BufReader::new(&stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
                let status = asked.first().is_some_and(|line| line.starts_with("GET /status"));
                if let Some(body) = answer().filter(|_| status) {
                    let length = body.len();
                    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
                        .unwrap();
                } else {
                    open.push(stream);
                }
            }
        });
        url
    }

    fn waited(url: &str, timeouts: &Timeouts) -> String {
        // Kept: the request is under way for as long as somebody waits.
        let (_sender, answer) = mpsc::channel::<()>();
        while_it_gets_on(url, url, &answer, timeouts, |_| {}).unwrap_err().to_string()
    }

    #[test]
    fn a_node_that_is_silent_and_one_that_stands_still_are_not_waited_for_without_end() {
        let (soon, never) = (Duration::from_millis(500), Duration::from_secs(3600));
        let silent = node(|| None);
        let error = waited(&silent, &Timeouts { silent: soon, still: never });
        assert!(error.starts_with(&silent) && error.contains("has answered nothing for 0.5 s"), "{error}");
        let still = node(|| Some(r#"{"id":3,"snapshots":{"building":{"bytes":7}}}"#.into()));
        let error = waited(&still, &Timeouts { silent: never, still: soon });
        assert!(error.contains("node 3 answers, but its snapshot has made no progress for 0.5 s"), "{error}");
    }

    #[test]
    fn a_node_that_gets_on_is_waited_for_past_either_bound() {
        let mut bytes = 0;
        let url = node(move || {
            bytes += 1;
            Some(format!(r#"{{"id":3,"snapshots":{{"building":{{"bytes":{bytes}}}}}}}"#))
        });
        let bound = Duration::from_secs(2);
        let (sender, answer) = mpsc::channel();
        let (since, mut looks) = (Instant::now(), 0);
        let look = |_: &Value| {
            looks += 1;
            if since.elapsed() > 2 * bound {
                sender.send("done").unwrap();
            }
        };
        let got = while_it_gets_on(&url, &url, &answer, &Timeouts { silent: bound, still: bound }, look);
        assert_eq!(got.unwrap(), "done");
        assert!(looks > 5, "{looks}");
    }
}
