//! The output of the tools. Standard output and standard error can be closed or full, and neither is a reason to panic.
//!
//! ```text
//!  say!(..) ─▶ standard output ── closed pipe ▶ quiet: the reader has what it wanted, and the exit code is the work's
//!                              └─ full disk   ▶ `error: standard output: ..` and exit 1, after the work
//!  complain ─▶ standard error  ── nobody hears it; the exit code still tells
//! ```
//!
//! A line that cannot be written stops nothing that is under way. The first failure is kept, nothing more is written,
//! and [`finish`] reports it at the end. clippy denies `println!` and similar macros, which panic, in this program. A
//! command that only prints (the demo) ends when the reader is gone: see [`is_over`]. What `serve` logs goes another
//! way, see `logs.rs`.
//!
//! A standard output that was closed before the start (`>&-`) is another case: Rust's runtime opens `/dev/null` in its
//! place before `main`, for reading and writing, and every write succeeds. The process cannot tell that from a
//! `/dev/null` that was given, since some programs open it in that way, too (Python's `DEVNULL`, Node's `ignore`,
//! `daemon(3)`); shells and systemd open it for writing only. So a command that only prints does not fail in this case:
//! whether its output is discarded or closed, its exit code is that of the work. A backup to standard output is
//! different: see [`may_be_closed`].

use std::{
    fmt::{Arguments, Display},
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Failure;

/// How long a standard error that takes nothing may delay the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of standard output.
struct Said {
    /// Why nothing more is written.
    broken: Option<io::Error>,
    /// What the command has done, if it did more than print.
    done: Option<String>,
}

static SAID: Mutex<Said> = Mutex::new(Said { broken: None, done: None });

/// A line on standard output, in the form of `println!`. It cannot fail: see [`finish`].
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// A line on standard output.
pub(crate) fn line(text: Arguments<'_>) {
    write(|out| writeln!(out, "{text}"));
}

/// Text on standard output, as it is.
pub(crate) fn text(text: &str) {
    write(|out| out.write_all(text.as_bytes()));
}

fn write(write: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>) {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.broken.is_none() {
        said.broken = write(&mut io::stdout().lock()).err();
    }
}

/// Whether the reader of standard output is gone: then a command that only prints may end. This is noticed as soon as
/// the reader has gone, also while nothing is printed.
pub(crate) fn is_over() -> bool {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.broken.is_none() {
        let stdout = io::stdout();
        let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // For a pipe: its reader is gone. For a terminal: it was closed.
        let gone = PollFlags::ERR | PollFlags::HUP;
        if poll(&mut asked, Some(&at_once)).is_ok_and(|_| asked[0].revents().intersects(gone)) {
            said.broken = Some(io::ErrorKind::BrokenPipe.into());
        }
    }
    said.broken.is_some()
}

/// Whether standard output may have been closed before the start: a `/dev/null` that is open for reading, too. Such a
/// `/dev/null` may also have been given, see above, but never by a redirection of a shell.
pub(crate) fn may_be_closed() -> io::Result<bool> {
    use rustix::fs::{OFlags, fcntl_getfl};
    let stdout = io::stdout();
    let reads = fcntl_getfl(&stdout)?.contains(OFlags::RDWR);
    let null = fs::metadata("/dev/null");
    let found = File::from(stdout.as_fd().try_clone_to_owned()?).metadata()?;
    Ok(reads && found.file_type().is_char_device() && null.is_ok_and(|null| null.rdev() == found.rdev()))
}

/// Records what the command has done, apart from printing: an error about the printing must not read as if the work had
/// failed.
pub(crate) fn done(what: impl Display) {
    SAID.lock().unwrap_or_else(PoisonError::into_inner).done = Some(what.to_string());
}

/// The end of a command that did its work. An error if its output could not be written; a reader that is gone is not an
/// error.
pub(crate) fn finish() -> Result<(), Failure> {
    write(|out| out.flush());
    let said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    match (&said.broken, &said.done) {
        (Some(error), _) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        (Some(error), None) => Err(Failure::new(format!("standard output: {error}"))),
        (Some(error), Some(done)) => {
            Err(Failure::new(format!("standard output: {error}. The command was carried out all the same: {done}")))
        }
        (None, _) => Ok(()),
    }
}

/// Text on standard error. If that is closed or full, the text is lost. If it takes nothing, this waits for one second:
/// a separate thread writes, since a blocking write cannot be cancelled.
pub(crate) fn complain(text: impl Display) {
    let (written, done) = mpsc::sync_channel(1);
    let text = text.to_string();
    let writer = thread::Builder::new().name("stderr".to_owned()).spawn(move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = written.send(());
    });
    if writer.is_ok() {
        let _ = done.recv_timeout(FLUSH_TIMEOUT);
    }
}
