//! `actorum compact DIR`: makes the log of a stopped node as small as it can be.
//!
//! Through `actorum_actors::log::compact`, with the steps of a node that runs; this file puts it into words.

use std::path::PathBuf;

use actorum_actors::log::compact::compact;

use crate::{
    Failure,
    output::{self, say},
    status::bytes,
};

/// Give back what a stopped node's log takes more than it needs
///
/// Cuts the log behind its newest snapshot, which is checked first, and copies what lives of it into a new one. It needs room for that
/// copy alone: about three times the bytes that live, and 40 MiB; the reserve that the node keeps is used for it, and made again by the
/// next start. Cut short at any moment, the directory opens as before, and it can be run again. Refuses a directory in use, by the name
/// of who holds it.
#[derive(clap::Args)]
pub struct Args {
    /// The node's data directory, as given to `serve --data`
    dir: PathBuf,
}

/// Does it, and says what it has changed.
pub fn run(Args { dir }: Args) -> Result<(), Failure> {
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
