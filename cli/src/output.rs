//! What the tools say: standard output and standard error can be closed or full, and neither is a reason to panic.
//!
//! ```text
//!  say!(..) ─▶ standard output ── closed pipe ▶ quiet: the reader has what it wanted, and the exit code is the work's
//!                              └─ full disk   ▶ `error: standard output: ..` and exit 1, after the work
//!  complain ─▶ standard error  ── nobody hears it; the exit code still tells
//! ```
//!
//! A line that cannot be written stops nothing that is under way. The first failure is kept, nothing more is written, and
//! [`finish`] says in the end what became of it. `println!` and its kin, which panic, are denied in this program by clippy.
//! What only tells a story (the demo) ends when nobody listens any more: see [`is_over`].
//! What `serve` logs goes another way, see `logs.rs`.
//!
//! A standard output that was closed before the start (`>&-`) is another thing: Rust's runtime opens `/dev/null` in its place
//! before `main`, for reading and writing, and every write succeeds. From within nothing tells that from a `/dev/null` that was
//! given, since some programs hand it down opened in that way, too (Python's `DEVNULL`, Node's `ignore`, `daemon(3)`); shells and
//! systemd open it for writing only. So what only prints cannot fail for it: whoever discards what is printed and whoever closes
//! it get the exit code of the work. What is to hold a backup is another matter: see [`may_be_closed`].

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

/// How long a standard error that takes nothing may keep the process from ending.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// What became of standard output.
struct Said {
    /// Why nothing more is written.
    broken: Option<io::Error>,
    /// What was done, if there is more to it than what is printed.
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

/// Whether nobody hears what is still to be said: whoever only prints may end. Seen also while nothing is said, as soon as
/// whoever read is gone.
pub(crate) fn is_over() -> bool {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.broken.is_none() {
        let stdout = io::stdout();
        let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Of a pipe's writing end: nobody reads. Of a terminal's: it was closed.
        let gone = PollFlags::ERR | PollFlags::HUP;
        if poll(&mut asked, Some(&at_once)).is_ok_and(|_| asked[0].revents().intersects(gone)) {
            said.broken = Some(io::ErrorKind::BrokenPipe.into());
        }
    }
    said.broken.is_some()
}

/// Whether standard output may have been closed before the start: a `/dev/null` that is open for reading, too. That may as well
/// have been given, see above, but never by a redirection of a shell.
pub(crate) fn may_be_closed() -> io::Result<bool> {
    use rustix::fs::{OFlags, fcntl_getfl};
    let stdout = io::stdout();
    let reads = fcntl_getfl(&stdout)?.contains(OFlags::RDWR);
    let null = fs::metadata("/dev/null");
    let found = File::from(stdout.as_fd().try_clone_to_owned()?).metadata()?;
    Ok(reads && found.file_type().is_char_device() && null.is_ok_and(|null| null.rdev() == found.rdev()))
}

/// Says what the command has done, apart from printing: an error about the printing must not read as if it had not been.
pub(crate) fn done(what: impl Display) {
    SAID.lock().unwrap_or_else(PoisonError::into_inner).done = Some(what.to_string());
}

/// The end of a command that did what it should. An error if what it had to say did not fit where it was to go; a reader
/// that is gone is none.
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

/// Text on standard error. If that is closed or full nobody hears it, and if it takes nothing it is waited for a second: a
/// thread of its own writes, since a blocking write cannot be called off.
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
