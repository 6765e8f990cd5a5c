//! `actorum inspect DIR`: what lies in a stopped node's directory.

use std::path::PathBuf;

use crate::Failure;

/// Look into the data directory of a stopped node, without changing it
#[derive(clap::Args)]
pub struct Args {
    /// The node's data directory, as given to `serve --data`
    dir: PathBuf,
}

/// Prints what it finds.
pub fn run(Args { dir }: Args) -> Result<(), Failure> {
    Err(Failure::new(format!("{}: this build cannot look into directories yet", dir.display())))
}
