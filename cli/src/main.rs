//! `actorum`: a replicated key-value service over the library, its tools, and a demonstration.
//!
//! ```text
//!  certs    who may take part          serve ─┬─ http     the map, status, metrics, events
//!  serve    one node                          └─ admin    the membership, snapshots, backups
//!  status   many nodes, one table
//!  snapshot, backup    a running node's state, made durable there or copied here
//!  activate            what every member of a cluster understands is put to use
//!  inspect, compact    a stopped node's directory: what is in it; with less waste
//!  restore, recover    a new cluster out of a backup, or out of what a lost majority left
//!  demo     three nodes, a kill, a count
//! ```
//!
//! Exit codes: 0 done, 1 failed (the reason is on standard error, after `error: `), 2 wrong usage, 3 the node was
//! removed from its cluster (`serve`), 130 interrupted. What is said goes through `output.rs` and `logs.rs`, because a
//! closed pipe or a full disk must not end the work. Deliberately absent: anything an application would want to reuse.
//! That is the library.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod output;
mod logs;
mod certs;
mod serve;
mod settings;
mod kv;
mod server;
mod http;
mod clients;
mod admin;
mod client;
mod status;
mod backup;
mod activate;
mod inspect;
mod msgpack;
mod compact;
mod disaster_recovery;
mod demo;
mod signals;

use std::{fmt, process::ExitCode};

use clap::{Parser, Subcommand};

/// Raft for actix applications: a replicated key-value service, its tools and its demo
#[derive(Parser)]
#[command(name = "actorum", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Try `actorum demo` first: it needs nothing and leaves nothing behind.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// The help text of each command is above its arguments.
#[derive(Subcommand)]
enum Command {
    Certs(certs::Args),
    Serve(Box<serve::Args>),
    Status(status::Args),
    Activate(activate::Args),
    Snapshot(backup::SnapshotArgs),
    Backup(backup::BackupArgs),
    Inspect(inspect::Args),
    Compact(compact::Args),
    Restore(disaster_recovery::RestoreArgs),
    Recover(disaster_recovery::RecoverArgs),
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return unparsed(&told),
    };
    let done = match cli.command {
        Command::Certs(args) => certs::run(args),
        Command::Serve(args) => serve::run(*args),
        Command::Status(args) => status::run(args),
        Command::Activate(args) => activate::run(args),
        Command::Snapshot(args) => backup::snapshot(args),
        Command::Backup(args) => backup::backup(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Compact(args) => compact::run(args),
        Command::Restore(args) => disaster_recovery::restore(args),
        Command::Recover(args) => disaster_recovery::recover(args),
        Command::Demo(args) => demo::run(args),
    };
    ended(done)
}

/// The exit code of a command; its error goes to standard error. A failure to print counts, too.
fn ended(done: Result<(), Failure>) -> ExitCode {
    let done = match done {
        Err(Failure { code: 0, .. }) => Ok(()),
        done => done,
    };
    match done.and_then(|()| output::finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(format_args!("error: {failure}\n"));
            ExitCode::from(failure.code)
        }
    }
}

/// Help and the version are what was asked for; anything else is wrong usage.
fn unparsed(told: &clap::Error) -> ExitCode {
    if !told.use_stderr() {
        output::text(&told.render().to_string());
        return ended(Ok(()));
    }
    output::complain(told.render());
    ExitCode::from(2)
}

/// Why a command did not do what it was asked: one message for a person, and the exit code.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// Exit code 1.
    pub fn new(message: impl fmt::Display) -> Failure {
        Failure { message: message.to_string(), code: 1 }
    }

    /// Exit code 2: the arguments, the environment or the configuration file are to blame.
    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure { message: message.to_string(), code: 2 }
    }

    /// Exit code 3: this node was removed, and starting it again cannot help.
    pub fn removed(message: impl fmt::Display) -> Failure {
        Failure { message: message.to_string(), code: 3 }
    }

    /// No failure: the reader of standard output is gone, and the command had only to print. The state of standard
    /// output decides the exit code.
    pub fn unheard() -> Failure {
        Failure { message: "nobody listens".to_owned(), code: 0 }
    }

    /// Exit code 130, as a shell reports a Ctrl-C.
    pub fn interrupted() -> Failure {
        Failure { message: "interrupted".to_owned(), code: 130 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// So that `?` works on any error; it means exit code 1. (`Failure` itself is not an `Error`, so this does not conflict
/// with another impl.)
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::new(error)
    }
}
