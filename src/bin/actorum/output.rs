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
//! What `serve` logs goes another way, see `logs.rs`.

use std::{
    fmt::{Arguments, Display},
    io::{self, Write},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use crate::Failure;

/// How long a standard error that takes nothing may keep the process from ending.
const PATIENCE: Duration = Duration::from_secs(1);

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
pub fn line(text: Arguments<'_>) {
    write(|out| writeln!(out, "{text}"));
}

/// Text on standard output, as it is.
pub fn text(text: &str) {
    write(|out| out.write_all(text.as_bytes()));
}

fn write(write: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>) {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.broken.is_none() {
        said.broken = write(&mut io::stdout().lock()).err();
    }
}

/// Whether nobody hears what is still to be said: whoever only prints may end.
pub fn is_over() -> bool {
    SAID.lock().unwrap_or_else(PoisonError::into_inner).broken.is_some()
}

/// Says what the command has done, apart from printing: an error about the printing must not read as if it had not been.
pub fn done(what: impl Display) {
    SAID.lock().unwrap_or_else(PoisonError::into_inner).done = Some(what.to_string());
}

/// The end of a command that did what it should. An error if what it had to say did not fit where it was to go; a reader
/// that is gone is none.
pub fn finish() -> Result<(), Failure> {
    write(|out| out.flush());
    let said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    match (&said.broken, &said.done) {
        (Some(error), _) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        (Some(error), None) => Err(Failure::new(format!("standard output: {error}"))),
        (Some(error), Some(done)) => {
            Err(Failure::new(format!("standard output: {error}. What was asked for is done all the same: {done}")))
        }
        (None, _) => Ok(()),
    }
}

/// Text on standard error. If that is closed or full nobody hears it, and if it takes nothing it is waited for a second: a
/// thread of its own writes, since a blocking write cannot be called off.
pub fn complain(text: impl Display) {
    let (written, done) = mpsc::sync_channel(1);
    let text = text.to_string();
    let writer = thread::Builder::new().name("stderr".to_owned()).spawn(move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = written.send(());
    });
    if writer.is_ok() {
        let _ = done.recv_timeout(PATIENCE);
    }
}
