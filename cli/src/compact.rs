//! `actorum compact DIR`: makes the log of a stopped node as small as it can be.
//!
//! `actorum_store::log::compact` does the work, in the steps of a running node. This file prints what was done.

use std::path::PathBuf;

use actorum_store::log::compact::compact;

use crate::{
    Failure,
    output::{self, say},
    status::bytes,
};

/// Make the log of a stopped node as small as it can be
///
/// Checks the newest snapshot, cuts the log behind it, and copies the entries that are left into a new store. This
/// needs room for that copy alone: about three times the bytes of these entries, and 40 MiB. It may use the room of the
/// node's reserve, which the next start makes again. If it is interrupted the directory opens as before, and it can be
/// run again. Refuses a directory in use, and names the process that holds it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The node's data directory, as given to `serve --data`
    dir: PathBuf,
}

/// Does it, and says what it has changed.
pub(crate) fn run(Args { dir }: Args) -> Result<(), Failure> {
    let done = compact(&dir)?;
    output::done(format_args!(
        "the log of {} was copied, and takes {} with the snapshots",
        dir.display(),
        bytes(done.after)
    ));
    say!(
        "{}: log and snapshots took {}, and take {} now; {} of entries are left",
        dir.display(),
        bytes(done.before),
        bytes(done.after),
        bytes(done.kept)
    );
    if let Some(why) = done.not_cut {
        say!("the log was not cut behind the newest snapshot, whose file cannot be used: {why}");
    }
    Ok(())
}
