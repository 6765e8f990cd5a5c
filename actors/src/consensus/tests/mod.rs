//! The core under test: transcripts that tell one story each, and a cluster driven by dice.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p actorum-actors consensus` writes the transcripts anew; read them before
//! committing them: they must be right, not merely what came out.

mod script;
mod random;
mod implausible;
mod cluster;
mod checks;
mod disk;

use std::path::Path;

fn story(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/consensus/testscripts").join(name);
    goldenscript::run(&mut script::Script::new(), path).expect("the transcript differs or does not run");
}

/// One test per transcript.
macro_rules! stories {
    ($($name:ident)*) => {
        $(#[test] fn $name() { story(stringify!($name)); })*
    };
}

stories! {
    election
    proposal
    parallel_disk
    held_ack
    late_persists
    overwritten
    deposed_applied
    deposed_replaced
    deposed_for_peer
    deposed_unknown
    proposed_twice
    read_index
    read_restarted
    change_refused
    check_quorum
    formation
    joining
    removed_leader
    restart
    forwarded
    single_voter
    one_tick
}
