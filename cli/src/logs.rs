//! What `serve` logs: lines on standard error. A separate thread writes them; lines that cannot be written are dropped.
//!
//! ```text
//!  tracing ─▶ Lines (never waits, never fails) ─▶ queue ─▶ the thread `log` ─▶ standard error
//!                 └─ queue full ▶ dropped, counted            └─ closed, full ▶ dropped, counted
//! ```
//!
//! A node must outlive its log (promise 7). With a closed pipe, a full disk, or a pipe that no process reads (so that a
//! write waits for ever), lines are lost, and the node goes on. `actorum_log_lines_dropped_total` counts them. When
//! lines can be written again, a line says how many are missing. At the end the lines that wait have one second.

use std::{
    any::Any,
    backtrace::Backtrace,
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    panic,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::{error, warn};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::{
    Failure,
    settings::{self, LogFormat},
};

/// How many lines may wait for standard error. At this bound, or at the next one, the newest line is dropped and
/// counted.
const MAX_LINES: usize = 4096;
/// How many bytes of them.
const MAX_BYTES: usize = 8 << 20;
/// How long the lines that wait at the end may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The filter unless `ACTORUM_LOG` says otherwise.
const FILTER: &str = "info";
/// Targets that are quiet unless the user's filter names them: the HTTP server logs every worker that it starts and
/// stops, and logs a client's bad request as its own error. Invalid requests are counted
/// (`actorum_http_responses_total`).
const QUIET: &str = "actix_server=warn,actix_http=off";

/// Lines that were not written since the process started.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines could not be written.
pub(crate) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

enum Post {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Where tracing writes.
struct Lines {
    post: SyncSender<Post>,
    /// Bytes that wait.
    waiting: Arc<AtomicUsize>,
}

/// The log while it is in use. Dropping it waits for the lines that are left.
pub(crate) struct Logs {
    post: SyncSender<Post>,
}

/// Begins: from now on `tracing` and panics are lines of the log.
pub(crate) fn start(format: LogFormat) -> Result<Logs, Failure> {
    let filter = settings::variable("LOG")?.unwrap_or_else(|| FILTER.to_owned());
    // Of two directives for the same target the later one counts, so the user's filter for the HTTP server is obeyed.
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}"))
        .map_err(|e| Failure::usage(format!("ACTORUM_LOG={filter}: {e}")))?;
    // A separate descriptor: a write that waits may hold the lock of standard error for ever.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let (post, posted) = mpsc::sync_channel(MAX_LINES);
    let waiting = Arc::new(AtomicUsize::new(0));
    let counted = waiting.clone();
    thread::Builder::new().name("log".to_owned()).spawn(move || write(&posted, out, &counted))?;
    let logs = Logs { post: post.clone() };
    let lines = Lines { post, waiting };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_target(false).with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(Failure::new)?;
    panic::set_hook(Box::new(|panicked| {
        let thread = thread::current();
        let place = panicked.location().map(ToString::to_string).unwrap_or_default();
        error!(
            "thread {} panicked at {place}: {}{}",
            thread.name().unwrap_or("without a name"),
            words(panicked.payload()),
            backtrace()
        );
    }));
    Ok(logs)
}

/// What a panic said.
fn words(payload: &(dyn Any + Send)) -> &str {
    let literal = payload.downcast_ref::<&str>().copied();
    literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("something that is no text")
}

/// The backtrace of a panic, if `RUST_BACKTRACE` asks for it.
fn backtrace() -> String {
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    }
}

/// The thread: only it may wait for standard error.
fn write(posted: &Receiver<Post>, mut out: impl Write, waiting: &AtomicUsize) {
    let mut missing = 0;
    while let Ok(post) = posted.recv() {
        match post {
            Post::Line(line) => {
                let written = out.write_all(&line);
                waiting.fetch_sub(line.len(), Ordering::Relaxed);
                if written.is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                } else if dropped() > missing {
                    let lost = dropped() - missing;
                    missing = dropped();
                    // Through the queue, so that it looks like every other line.
                    warn!("{lost} log lines are missing before this one: standard error did not take them");
                }
            }
            // If this fails, the waiting side has gone.
            Post::Flush(written) => drop(written.send(())),
        }
    }
}

impl Lines {
    fn drop_line(&self, length: usize) {
        self.waiting.fetch_sub(length, Ordering::Relaxed);
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// One call is one line: that is how the formatter writes.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let waited = self.waiting.fetch_add(line.len(), Ordering::Relaxed);
        if waited + line.len() > MAX_BYTES || self.post.try_send(Post::Line(line.to_vec())).is_err() {
            self.drop_line(line.len());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> &'a Lines {
        self
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let until = Instant::now() + LAST_WORDS;
        let (written, done) = mpsc::sync_channel(1);
        let mut flush = Post::Flush(written);
        while let Err(TrySendError::Full(back)) = self.post.try_send(flush) {
            if Instant::now() > until {
                return;
            }
            flush = back;
            thread::sleep(Duration::from_millis(10));
        }
        // An error: standard error takes nothing, and the process ends without it.
        let _ = done.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what the test lets through.
    struct Narrow(Receiver<io::Result<()>>, mpsc::Sender<Vec<u8>>);

    impl Write for Narrow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)??;
            self.1.send(line.to_vec()).map_err(io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Whoever logs never waits: what does not fit is dropped, and counted, as is what fails.
    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (post, posted) = mpsc::sync_channel(2);
        let waiting = Arc::new(AtomicUsize::new(0));
        let lines = Lines { post: post.clone(), waiting: waiting.clone() };
        let before = dropped();
        let log = |line: &str| assert_eq!((&lines).write(line.as_bytes()).expect("it never fails"), line.len());
        log("one\n");
        log("two\n");
        log("no room\n");
        assert_eq!(dropped() - before, 1, "the queue holds two");

        let (let_through, gate) = mpsc::channel();
        let (seen, written) = mpsc::channel();
        let counted = waiting.clone();
        let thread = thread::spawn(move || write(&posted, Narrow(gate, seen), &counted));
        let_through.send(Err(io::Error::from(io::ErrorKind::BrokenPipe))).expect("it waits");
        let_through.send(Ok(())).expect("it waits");
        assert_eq!(written.recv().expect("a line"), b"two\n");
        drop(Logs { post: post.clone() });
        assert_eq!((dropped() - before, waiting.load(Ordering::Relaxed)), (2, 0));
        log(&"x".repeat(MAX_BYTES + 1));
        assert_eq!(dropped() - before, 3, "and so many bytes");
        drop((lines, post));
        thread.join().expect("it ends with its queue");
    }
}
