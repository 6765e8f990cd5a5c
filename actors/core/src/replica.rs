//! The replica: the application's state machine and our system state, moved on entry by entry.
//!
//! Pure: no actor, no clock, no disk. The applier runs it for what is committed, and
//! [`replay`] runs it over the log at start, so a command is applied by the same lines in both cases.
//!
//! The application's code runs under `catch_unwind`. A state after a panic cannot be
//! trusted, so every [`ApplyError`] is final: whoever gets one stops the system with it.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actorum_machine::{
    ids::GroupId,
    machine::{self, ApplyContext, StateMachine, StateView},
};

use crate::{
    consistency::hash::{Hasher, begin, begin_responses},
    debug_fields,
    entry::{CommandKind, Stamped, SystemCommand},
    features::{Feature, Features},
    log::store::{At, LogReader, Recovered, StoreError},
    marks::{MAX_MARKS, Mark, ResponseHash},
    panics::panic_message,
    planted::{self, Planted},
    snapshot::{SnapshotError, SnapshotReader},
    system_state::{GENESIS_INDEX, SystemChange, SystemState},
    times::Times,
    versions::{Activation, Announcement, Versions},
    wire::{Entry, EntryKind, Snapshot},
};

/// How much of the log is read at once.
const CHUNK_BYTES: usize = 4 << 20;

/// State machine and system state at one index.
pub struct Replica<S> {
    machine: S,
    /// `None` on a node that holds nothing yet.
    system: Option<SystemState>,
    applied: u64,
    /// The term of the entry there, or of the snapshot.
    applied_term: u64,
    /// What a durable machine held when it was opened: up to here commands are not applied to it again.
    holds: u64,
    hasher: Hasher,
    /// The hash over the machine's responses since the last mark, if it gave all of them.
    responses: Option<ResponseHash>,
    hashes: Hashes,
    build: Announcement,
    times: Arc<Times>,
}

debug_fields!(Replica<S> { applied, applied_term, holds, hashes });

/// What is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// What is applied: always, but on nodes of the first version in a simulation.
    pub state: bool,
    /// What the machine responds.
    pub responses: bool,
    /// With what is applied the version in force, while [`Feature::VersionHashes`] is in use: always, but on nodes of
    /// an earlier build in a simulation.
    pub versions: bool,
}

impl Hashes {
    /// All.
    pub const ALL: Hashes = Hashes { state: true, responses: true, versions: true };
}

/// What an entry did.
pub enum ApplyResult<S: StateMachine> {
    /// Nothing: the empty entry of a new leader, or a command that a durable machine holds already.
    Nothing,
    /// A command of the application was applied.
    Command {
        /// The command.
        command: S::Command,
        /// The machine's answer.
        response: S::Response,
    },
    /// A mark.
    Mark {
        /// The hashes of this node at it.
        mark: Mark,
        /// Whether the hash began anew behind it, on every node.
        restart: bool,
    },
    /// A command of ours.
    System {
        /// What is another one now.
        changed: SystemChange,
    },
}

impl<S: StateMachine> fmt::Debug for ApplyResult<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApplyResult::Nothing => f.write_str("Nothing"),
            ApplyResult::Command { .. } => f.debug_struct("Command").finish_non_exhaustive(),
            ApplyResult::Mark { mark, restart } => {
                f.debug_struct("Mark").field("mark", mark).field("restart", restart).finish()
            }
            ApplyResult::System { changed } => f.debug_struct("System").field("changed", changed).finish(),
        }
    }
}

/// The replica cannot go on. Every message names the index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A committed command that this program cannot read: it is never skipped.
    #[error("cannot decode the committed {kind} at {}: {cause}{}", At(*.index, *.term), way_out(.kind))]
    Undecodable {
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// What it should have been.
        kind: &'static str,
        /// What the codec says.
        cause: String,
    },
    /// The cluster uses something that this program does not understand.
    #[error(
        "the cluster uses {activation} at {}, and this program does not understand it: start this node with the \
         version of the program that the other members have",
        At(*.index, *.term)
    )]
    Outdated {
        /// The index at which it was found: of the entry that put it to use, or of a snapshot behind that.
        index: u64,
        /// Its term.
        term: u64,
        /// What is in use.
        activation: Activation,
    },
    /// The application's code panicked.
    #[error("the state machine panicked {doing}: {message}")]
    Panicked {
        /// In what.
        doing: String,
        /// The panic's message.
        message: String,
    },
    /// The machine refused a snapshot.
    #[error("cannot restore the snapshot at {}: {cause}", At(*.index, *.term))]
    Snapshot {
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// Why.
        cause: String,
    },
    /// The next entry is not the next entry.
    #[error("the log has a hole: {found} follows {applied}")]
    Hole {
        /// The index applied last.
        applied: u64,
        /// The index that came.
        found: u64,
    },
    /// The log could not be read.
    #[error("replaying the log: {0}")]
    Log(String),
    /// No snapshot that the log names can be used.
    #[error(
        "this node has no snapshot to start from: {problems}. \
         Restore its directory from a copy, add the node again under a new id with an empty directory, \
         or make a new cluster from a backup with `actorum restore`"
    )]
    NoSnapshot {
        /// What is wrong with each, newest first, by the name of its file.
        problems: String,
    },
    /// A durable machine that does not belong to this log.
    #[error(
        "the state machine holds commands up to {}, but {because}. \
         It belongs to another log: give it its own storage back, or an empty one", At(*.index, *.term)
    )]
    NotThisLog {
        /// What the machine says it holds.
        index: u64,
        /// With which term.
        term: u64,
        /// What the log says.
        because: String,
    },
}

/// What to do about an entry of that kind that cannot be decoded.
fn way_out(kind: &str) -> &'static str {
    match kind {
        "command" => {
            ". A command may be proposed only once every program can read it (`StateMachine::needs_version`): start \
             this node with a program that can"
        }
        _ => ". A later version of actorum wrote it: start this node with the version that the other members have",
    }
}

impl<S: StateMachine> Replica<S> {
    /// A replica of a node that holds nothing yet.
    pub fn new(machine: S) -> Replica<S> {
        let holds = machine.applied().map_or(0, |(index, _)| index);
        let (hasher, hashes, times) = (Hasher::default(), Hashes::ALL, Arc::default());
        let build = Announcement::of(&Features::all(), S::VERSION, 0);
        Replica {
            machine,
            system: None,
            applied: 0,
            applied_term: 0,
            holds,
            hasher,
            responses: None,
            hashes,
            build,
            times,
        }
    }

    /// The same with a program that understands only this.
    pub fn built_as(mut self, build: Announcement) -> Replica<S> {
        self.build = build;
        self
    }

    /// The same, hashing only this.
    pub fn hashing(mut self, hashes: Hashes) -> Replica<S> {
        self.hashes = hashes;
        self
    }

    /// The application's state.
    pub fn machine(&self) -> &S {
        &self.machine
    }

    /// Our state; `None` before the genesis.
    pub fn system(&self) -> Option<&SystemState> {
        self.system.as_ref()
    }

    /// The last index applied; zero before the genesis.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The term of the last index applied; zero before the genesis.
    pub fn applied_term(&self) -> u64 {
        self.applied_term
    }

    /// The times as of some of the indexes applied.
    pub fn times(&self) -> Arc<Times> {
        self.times.clone()
    }

    /// Everything as it is now, for a snapshot: index, term, our state, and the machine's, to be written elsewhere.
    ///
    /// Unlike an [`ApplyError`], an error here, also a panic of the machine, is final for that snapshot only: the
    /// machine was only looked at.
    pub fn capture(&self) -> Result<(u64, u64, SystemState, StateView), SnapshotError> {
        let at = At(self.applied, self.applied_term);
        let Some(system) = &self.system else {
            return Err(SnapshotError("there is nothing to take a snapshot of: this node holds nothing yet".into()));
        };
        // Otherwise the snapshot would get a lower index than the durable machine already has.
        if self.applied < self.holds {
            let holds = self.holds;
            return Err(SnapshotError(format!("the state machine holds {holds} already, and the log is at {at}")));
        }
        let captured = caught(|| format!("capturing its state at {at}"), || self.machine.snapshot());
        let captured = captured.map_err(|error| SnapshotError(error.to_string()))?;
        let captured = captured
            .map_err(|error| SnapshotError(format!("the state machine cannot capture its state at {at}: {error}")));
        // The log may be cut off right behind it.
        self.times.note(self.applied, system.time());
        Ok((self.applied, self.applied_term, system.clone(), captured?))
    }

    /// Applies the next committed entry.
    pub fn apply(&mut self, entry: &Entry) -> Result<ApplyResult<S>, ApplyError> {
        let Some(system) = self.system.as_mut() else {
            return Err(ApplyError::Hole { applied: 0, found: entry.index });
        };
        if entry.index != self.applied + 1 {
            return Err(ApplyError::Hole { applied: self.applied, found: entry.index });
        }
        if let Some(hash) = &mut system.state_hash {
            // Asked of the state at this index, which is the same on every node, at every replay and behind every
            // snapshot. Until the feature is in use, members whose build lacks it come to the same value.
            let counts = self.hashes.versions && system.versions.has(Feature::VersionHashes);
            self.hasher.entry(hash, entry, if counts { system.versions.machine } else { 0 });
        }
        let undecodable =
            |kind, cause: String| ApplyError::Undecodable { index: entry.index, term: entry.term, kind, cause };
        let done = match entry.kind {
            // What a new leader appends, and what raft-rs puts in the place of a change that came too early.
            EntryKind::Normal if entry.data.is_empty() => ApplyResult::Nothing,
            EntryKind::ConfChange if entry.context.is_empty() => ApplyResult::Nothing,
            EntryKind::ConfChange => {
                let command = SystemCommand::decode(&entry.context)
                    .map_err(|e| undecodable("membership change", e.to_string()))?;
                match command {
                    SystemCommand::Change { .. } => {
                        ApplyResult::System { changed: system.apply(entry.index, &command) }
                    }
                    // Everything else has entries of its own.
                    _ => ApplyResult::Nothing,
                }
            }
            EntryKind::Normal => {
                let stamped = Stamped::parse(&entry.data).map_err(|e| undecodable("entry", e.to_string()))?;
                // Also for commands that a durable machine holds: the next one's time depends on it.
                let time = system.advance_time(stamped.time);
                match stamped.kind {
                    CommandKind::Command if entry.index <= self.holds => {
                        self.responses = None;
                        ApplyResult::Nothing
                    }
                    CommandKind::Command => {
                        let version = system.versions.machine();
                        let context = ApplyContext::new(entry.index, entry.term, time).with_version(version);
                        let done = apply_command(&mut self.machine, &context, stamped.payload)?;
                        if let (Some(hash), ApplyResult::Command { response, .. }) = (&mut self.responses, &done) {
                            let answer = || self.hasher.answer(hash, entry.index, response);
                            if caught(|| format!("encoding the answer at {}", At(entry.index, entry.term)), answer)?
                                .is_err()
                            {
                                // Only forwarded proposals need one that can be encoded.
                                self.responses = None;
                            }
                        }
                        done
                    }
                    CommandKind::System => {
                        let command = SystemCommand::decode(stamped.payload)
                            .map_err(|e| undecodable("system command", e.to_string()))?;
                        match command {
                            // raft-rs knows nothing of a change outside a change's entry: no node makes it.
                            SystemCommand::Change { .. } => ApplyResult::Nothing,
                            SystemCommand::Mark { restart } => {
                                let mark =
                                    Mark { index: entry.index, state: system.state_hash, responses: self.responses };
                                system.apply(entry.index, &command);
                                let begins = || begin_responses(entry.index, S::VERSION);
                                self.responses = self.hashes.responses.then(begins);
                                ApplyResult::Mark { mark, restart }
                            }
                            command => {
                                let changed = system.apply(entry.index, &command);
                                // Before anything is applied that depends on it.
                                understood(&system.versions, &self.build, entry.index, entry.term)?;
                                ApplyResult::System { changed }
                            }
                        }
                    }
                }
            }
        };
        (self.applied, self.applied_term) = (entry.index, entry.term);
        self.times.applied(entry.index, system.time(), entry.size());
        Ok(done)
    }

    /// Replaces everything by a snapshot, whose file is among these.
    pub fn restore(&mut self, snapshot: &Snapshot, snapshot_files: &dyn SnapshotReader) -> Result<(), ApplyError> {
        let failed = |cause: String| ApplyError::Snapshot { index: snapshot.index, term: snapshot.term, cause };
        let (mut system, machine) = SystemState::of(snapshot).map_err(|e| failed(e.to_string()))?;
        if !planted::is(Planted::OlderProgramStarts) {
            understood(&system.versions, &self.build, snapshot.index, snapshot.term)?;
        }
        if planted::is(Planted::VersionForgotten) {
            Arc::make_mut(&mut system.versions).machine = 0;
        }
        match machine {
            // What the machine's own storage holds is newer: it keeps it.
            Some(_) if snapshot.index <= self.holds => {}
            Some(_) => {
                let mut state = snapshot_files.open(snapshot).map_err(|e| failed(e.to_string()))?;
                caught(|| format!("restoring the snapshot at {}", snapshot.index), || self.machine.restore(&mut state))?
                    .map_err(|e| failed(e.to_string()))?
            }
            // The genesis is the machine as it was built, so it must not have moved since.
            None if self.applied > snapshot.index => {
                return Err(failed(format!("it is a genesis, and entries up to {} were applied", self.applied)));
            }
            None => {}
        }
        if machine.is_none() {
            // Nothing was applied before the genesis, on any node.
            system.state_hash.get_or_insert(begin(snapshot.index));
        }
        if !self.hashes.state {
            system.state_hash = None;
        }
        if planted::is(Planted::HashForgotten)
            && let Some(hash) = &mut system.state_hash
        {
            *hash = begin(hash.since);
        }
        self.responses = None;
        self.times.begin(snapshot.index, system.time());
        self.system = Some(system);
        (self.applied, self.applied_term) = (snapshot.index, snapshot.term);
        Ok(())
    }

    /// A look at the state by a client's closure; `Err` if that panicked, which breaks nothing but the look.
    pub fn look<T>(&self, look: impl FnOnce(u64, &S) -> T) -> Result<T, ApplyError> {
        caught(|| "in the closure of a read".into(), || look(self.applied, &self.machine))
    }
}

/// Whether a program understands all that is in use.
fn understood(versions: &Versions, build: &Announcement, index: u64, term: u64) -> Result<(), ApplyError> {
    match versions.beyond(build) {
        Some(activation) => Err(ApplyError::Outdated { index, term, activation }),
        None => Ok(()),
    }
}

fn apply_command<S: StateMachine>(
    machine: &mut S,
    context: &ApplyContext,
    payload: &[u8],
) -> Result<ApplyResult<S>, ApplyError> {
    let (index, term) = (context.index, context.term);
    let at = At(index, term);
    let command = caught(|| format!("decoding the command at {at}"), || machine::decode::<S::Command>(payload))?
        .map_err(|error| ApplyError::Undecodable { index, term, kind: "command", cause: error.to_string() })?;
    let response = caught(|| format!("applying {at}"), || machine.apply(context, &command))?;
    Ok(ApplyResult::Command { command, response })
}

/// Runs the application's code; its panic becomes a sentence.
pub fn caught<T>(doing: impl FnOnce() -> String, run: impl FnOnce() -> T) -> Result<T, ApplyError> {
    // What the panic left half done is never looked at again: every caller stops with the error.
    catch_unwind(AssertUnwindSafe(run))
        .map_err(|panic| ApplyError::Panicked { doing: doing(), message: panic_message(&*panic) })
}

/// The state of a node that starts again.
pub struct Replayed<S> {
    /// State machine and system state, as of the last index known to be committed.
    pub replica: Replica<S>,
    /// The system state, if the node was formed.
    pub system: Option<Arc<SystemState>>,
    /// The last index applied; the core starts from here. Also the commit index: what a durable
    /// machine applied was committed, so the commit index of the hard state is raised to it.
    pub applied: u64,
    /// The term of the entry there.
    pub applied_term: u64,
    /// The last index that the snapshot covers which it started from.
    pub snapshot_index: u64,
    /// The snapshots whose files are good, ascending: only these are handed to peers, and started from. A damaged one
    /// that the log still names is not among them.
    pub snapshots: Vec<Snapshot>,
    /// The marks that were applied again, the newest [`MAX_MARKS`].
    pub marks: Vec<Mark>,
}

debug_fields!(Replayed<S> { applied, applied_term, snapshot_index });

/// Rebuilds the state from the newest snapshot whose file is good and the log after it, up to what is known to be
/// committed.
///
/// Blocks on the disk and runs the application's `apply`: call it where that is allowed. The log is read in
/// chunks of 4 MiB, and every snapshot's file once before anything is restored from one.
pub fn replay<S: StateMachine>(
    group: GroupId,
    reader: &dyn LogReader,
    recovered: &Recovered,
    snapshot_files: &dyn SnapshotReader,
    machine: S,
) -> Result<Replayed<S>, ApplyError> {
    replay_into(group, reader, recovered, snapshot_files, Replica::new(machine))
}

/// The same, into a replica that holds nothing yet.
pub fn replay_into<S: StateMachine>(
    group: GroupId,
    reader: &dyn LogReader,
    recovered: &Recovered,
    snapshot_files: &dyn SnapshotReader,
    mut replica: Replica<S>,
) -> Result<Replayed<S>, ApplyError> {
    let holds = replica.machine.applied().filter(|(index, _)| *index > 0);
    let mut marks = VecDeque::new();
    let Some(newest) = recovered.newest() else {
        if let Some((index, term)) = holds {
            return Err(ApplyError::NotThisLog { index, term, because: "the log is empty".into() });
        }
        let (snapshots, system, marks) = (Vec::new(), None, Vec::new());
        return Ok(Replayed { replica, system, applied: 0, applied_term: 0, snapshot_index: 0, snapshots, marks });
    };
    let snapshots = usable(recovered, snapshot_files)?;
    let snapshot = snapshots.last().unwrap_or(newest);
    if let Some((index, term)) = holds {
        in_this_log(recovered, snapshot, index, term)?;
    }
    replica.restore(snapshot, snapshot_files)?;
    for snapshot in &recovered.snapshots {
        // The log may begin before the one that was restored, at an older one. Its file does not matter here.
        if let Ok((system, _)) = SystemState::of(snapshot) {
            replica.times.note(snapshot.index, system.time());
        }
    }
    // What the newest snapshot covers was committed, also if it is damaged and another is the start.
    let commit = recovered.hard_state.commit.max(replica.holds).max(newest.index);
    while replica.applied < commit {
        let next = replica.applied + 1;
        let unreadable = |error: StoreError| ApplyError::Log(error.to_string());
        let entries = reader.entries(group, next, commit + 1, CHUNK_BYTES).map_err(unreadable)?;
        if entries.is_empty() {
            return Err(ApplyError::Log(format!("entry {next} is missing, and {commit} was committed")));
        }
        for entry in &entries {
            if let ApplyResult::Mark { mark, .. } = replica.apply(entry)? {
                marks.push_back(mark);
                if marks.len() > MAX_MARKS {
                    marks.pop_front();
                }
            }
        }
    }
    let system = replica.system.clone().map(Arc::new);
    let (applied, applied_term) = (replica.applied, replica.applied_term);
    let (snapshot_index, marks) = (snapshot.index, marks.into());
    Ok(Replayed { applied, applied_term, snapshot_index, snapshots, replica, system, marks })
}

/// The snapshots that can be started from, ascending; never none.
fn usable(recovered: &Recovered, snapshot_files: &dyn SnapshotReader) -> Result<Vec<Snapshot>, ApplyError> {
    let (mut usable, mut problems) = (Vec::new(), Vec::new());
    for snapshot in recovered.snapshots.iter().rev() {
        let wrong = match snapshot_files.verify(snapshot) {
            // The entries between it and the log are gone.
            Ok(()) if snapshot.index < recovered.compacted_index() => {
                let first = recovered.compacted_index() + 1;
                format!("the snapshot at {} is good, but the log begins only at {first}", snapshot.index)
            }
            Ok(()) => {
                usable.insert(0, snapshot.clone());
                continue;
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(index = snapshot.index, term = snapshot.term, %wrong, "a snapshot cannot be started from");
        problems.push(wrong);
    }
    match usable.is_empty() {
        true => Err(ApplyError::NoSnapshot { problems: problems.join("; ") }),
        false => Ok(usable),
    }
}

/// A durable machine must hold a prefix of this very log.
fn in_this_log(recovered: &Recovered, snapshot: &Snapshot, index: u64, term: u64) -> Result<(), ApplyError> {
    let because = |because: String| Err(ApplyError::NotThisLog { index, term, because });
    // The genesis brings no state that could make up for what the machine misses; a later snapshot does.
    if index < snapshot.index && snapshot.index > GENESIS_INDEX {
        return Ok(());
    }
    if index > recovered.last_index {
        return because(format!("the log ends at {}", recovered.last_index));
    }
    match recovered.term_at(index) {
        Some(found) if found == term => Ok(()),
        Some(found) => because(format!("the entry {index} of the log has term {found}")),
        None => because(format!("the log starts at {}", snapshot.index)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        time::{Duration, SystemTime},
    };

    use actorum_machine::{
        ids::{Address, ClusterId},
        machine::MachineError,
        members::Change,
    };
    use bytes::Bytes;

    use super::*;
    use crate::{
        entry::{ChangeId, EncodedCommand, HEADER},
        log::store::HardState,
        system_state::{Audit, RecoveredBecause},
        testkit::{Sum, TestLog, TestSnapshots, change, command, empty, genesis},
    };

    /// Notes in which version each command was decided.
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Versioned(Vec<(u64, u32)>);

    impl StateMachine for Versioned {
        type Command = u64;
        type Response = u32;

        const VERSION: u32 = 3;

        fn apply(&mut self, ctx: &ApplyContext, _: &u64) -> u32 {
            self.0.push((ctx.index, ctx.version));
            ctx.version
        }

        actorum_machine::serde_snapshot!();
    }

    fn system(index: u64, command: &SystemCommand) -> Entry {
        let data = EncodedCommand::system(command).unwrap().stamp(SystemTime::UNIX_EPOCH).into();
        Entry { kind: EntryKind::Normal, term: 1, index, data, context: Bytes::new() }
    }

    /// Version 2 from 5 on, version 3 from 7 on.
    fn raised() -> Vec<Entry> {
        let announcement = Announcement::of(&Features::all(), 3, 1);
        let activate = |version| SystemCommand::Activate { activation: Activation::Machine(version) };
        vec![
            system(2, &SystemCommand::Announce { node: 1, announcement }),
            command(3, 1, 1),
            system(4, &activate(2)),
            command(5, 1, 2),
            system(6, &activate(3)),
            command(7, 1, 3),
            // A version never falls.
            system(8, &activate(2)),
            command(9, 1, 4),
        ]
    }

    #[test]
    fn each_command_is_decided_by_the_version_in_force_at_its_index_also_behind_a_snapshot() {
        let (snapshot_files, decided) = (TestSnapshots::default(), [(3, 1), (5, 2), (7, 3), (9, 3)]);
        let mut replica = Replica::new(Versioned::default());
        replica.restore(&genesis(), &snapshot_files).unwrap();
        let mut snapshot = None;
        for entry in raised() {
            replica.apply(&entry).unwrap();
            if entry.index == 5 {
                snapshot = Some(snapshot_files.keep(replica.capture().unwrap()));
            }
        }
        assert_eq!(replica.machine().0, decided);
        let mut behind = Replica::new(Versioned::default());
        behind.restore(&snapshot.unwrap(), &snapshot_files).unwrap();
        for entry in raised().iter().filter(|entry| entry.index > 5) {
            behind.apply(entry).unwrap();
        }
        assert_eq!(behind.machine().0, decided);
        let log = TestLog::with_entries(raised());
        let replayed = replay(GroupId::FIRST, &log, &recovered(9, 9), &snapshot_files, Versioned::default()).unwrap();
        assert_eq!(replayed.replica.machine().0, decided);
    }

    #[test]
    fn a_program_that_lacks_what_is_in_use_stops_at_the_entry_that_uses_it() {
        let older = Announcement::of(&Features::all(), 2, 1);
        let mut replica = Replica::new(Versioned::default()).built_as(older.clone());
        replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
        let entries = raised();
        for entry in &entries[..4] {
            replica.apply(entry).unwrap();
        }
        let error = replica.apply(&entries[4]).unwrap_err();
        let outdated = ApplyError::Outdated { index: 6, term: 1, activation: Activation::Machine(3) };
        assert_eq!(error, outdated);
        assert!(
            error.to_string().contains("start this node with the version of the program that the other members have")
        );
        assert_eq!(replica.machine().0, [(3, 1), (5, 2)], "nothing that depends on it was applied");
        let log = TestLog::with_entries(entries);
        let replica = Replica::new(Versioned::default()).built_as(older);
        let again = replay_into(GroupId::FIRST, &log, &recovered(9, 9), &TestSnapshots::default(), replica);
        assert_eq!(again.err(), Some(outdated));
    }

    #[test]
    fn what_a_later_version_wrote_stops_a_node_with_the_way_out() {
        let unknown = |payload: &[u8]| {
            let mut data =
                EncodedCommand::system(&SystemCommand::Mark { restart: false }).unwrap().stamp(SystemTime::UNIX_EPOCH);
            data.truncate(HEADER);
            data.extend(payload);
            Entry { kind: EntryKind::Normal, term: 1, index: 2, data: data.into(), context: Bytes::new() }
        };
        let mut kind = unknown(&[]);
        let mut data = kind.data.to_vec();
        data[1] = 3;
        kind.data = data.into();
        let variant = unknown(&machine::encode(&std::collections::BTreeMap::from([("OfAnotherCentury", 1)])).unwrap());
        let change = Entry { kind: EntryKind::ConfChange, context: machine::encode(&7).unwrap().into(), ..empty(2, 1) };
        for entry in [kind, variant, change] {
            let mut replica = Replica::new(Sum::default());
            replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
            let error = replica.apply(&entry).unwrap_err().to_string();
            assert!(error.ends_with("start this node with the version that the other members have"), "{error}");
        }
    }

    fn recovered(last_index: u64, commit: u64) -> Recovered {
        Recovered {
            snapshots: vec![genesis()],
            hard_state: HardState { term: 1, vote: 1, commit },
            last_index,
            terms: vec![(1, 1)],
            sizes: Vec::new(),
        }
    }

    fn log() -> TestLog {
        TestLog::with_entries([empty(2, 1), command(3, 1, 10), command(4, 1, 20), command(5, 1, 30)])
    }

    fn run(recovered: &Recovered, machine: Sum) -> Result<Replayed<Sum>, ApplyError> {
        replay(GroupId::FIRST, &log(), recovered, &TestSnapshots::default(), machine)
    }

    #[test]
    fn a_restart_replays_what_was_committed_and_no_more() {
        let replayed = run(&recovered(5, 4), Sum::default()).unwrap();
        assert_eq!((replayed.applied, replayed.replica.machine().total), (4, 30));
        assert_eq!(replayed.system.unwrap().membership.voters(), [1]);
    }

    #[test]
    fn an_empty_directory_starts_with_nothing() {
        let replayed = run(&Recovered::default(), Sum::default()).unwrap();
        assert_eq!((replayed.applied, replayed.system), (0, None));
    }

    #[test]
    fn a_durable_machine_is_not_given_again_what_it_holds_and_raises_the_commit_index() {
        let machine = Sum { total: 30, seen: vec![], durable: Some((4, 1)) };
        let replayed = run(&recovered(5, 2), machine).unwrap();
        assert_eq!(replayed.applied, 4, "what it applied was committed");
        assert_eq!(replayed.replica.machine().seen, [0u64; 0]);
        let mut replica = replayed.replica;
        replica.apply(&command(5, 1, 30)).unwrap();
        assert_eq!((replica.machine().total, &replica.machine().seen[..]), (60, &[5][..]));
    }

    #[test]
    fn a_durable_machine_of_another_log_is_refused_by_name() {
        let refused = |recovered: &Recovered, durable| {
            run(recovered, Sum { durable: Some(durable), ..Sum::default() }).expect_err("refused").to_string()
        };
        let beyond = refused(&recovered(5, 5), (6, 1));
        assert!(beyond.starts_with("the state machine holds commands up to 6@1, but the log ends at 5"), "{beyond}");
        let term = refused(&recovered(5, 5), (4, 2));
        assert!(term.contains("up to 4@2, but the entry 4 of the log has term 1"), "{term}");
        let emptied = refused(&Recovered::default(), (4, 1));
        assert!(emptied.contains("but the log is empty"), "{emptied}");
    }

    #[test]
    fn time_never_runs_backwards() {
        #[derive(Default, serde::Serialize, serde::Deserialize)]
        struct Times(Vec<Duration>);
        impl StateMachine for Times {
            type Command = u64;
            type Response = ();
            fn apply(&mut self, ctx: &ApplyContext, _: &u64) {
                self.0.push(ctx.time.duration_since(SystemTime::UNIX_EPOCH).unwrap());
            }
            actorum_machine::serde_snapshot!();
        }
        let mut replica = Replica::new(Times::default());
        replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
        for (index, second) in [(2, 100), (3, 90), (4, 110)] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            let data = EncodedCommand::command(&0u64).unwrap().stamp(time).into();
            replica.apply(&Entry { data, ..empty(index, 1) }).unwrap();
        }
        assert_eq!(replica.machine().0, [100, 100, 110].map(Duration::from_secs));
    }

    #[test]
    fn a_command_that_cannot_be_decoded_is_named_and_never_skipped() {
        let mut replica = Replica::new(Sum::default());
        replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
        let data = EncodedCommand::command(&"not a number").unwrap().stamp(SystemTime::UNIX_EPOCH).into();
        let error = replica.apply(&Entry { data, ..empty(2, 3) }).err().unwrap();
        assert!(error.to_string().starts_with("cannot decode the committed command at 2@3: "), "{error}");
        let error = replica.apply(&Entry { data: Bytes::from_static(b"\x09"), ..empty(2, 3) }).err().unwrap();
        assert!(error.to_string().starts_with("cannot decode the committed entry at 2@3: "), "{error}");
        assert_eq!(replica.applied(), 1);
    }

    #[test]
    fn a_hole_in_the_log_is_refused() {
        let mut replica = Replica::new(Sum::default());
        assert!(matches!(replica.apply(&command(2, 1, 1)), Err(ApplyError::Hole { applied: 0, found: 2 })));
        replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
        assert!(matches!(replica.apply(&command(3, 1, 1)), Err(ApplyError::Hole { applied: 1, found: 3 })));
        replica.apply(&command(2, 1, 1)).unwrap();
        assert!(matches!(replica.apply(&command(2, 1, 1)), Err(ApplyError::Hole { applied: 2, found: 2 })));
    }

    #[test]
    fn a_membership_change_rides_in_the_context() {
        let mut replica = Replica::new(Sum::default());
        replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
        let id = ChangeId { node: 1, boot: 1, number: 1 };
        let add = SystemCommand::Change { id, change: Change::AddLearner(4, Address::from("n4")), forced: false };
        assert!(matches!(
            replica.apply(&change(2, 1, &add)).unwrap(),
            ApplyResult::System { changed: SystemChange::Membership }
        ));
        assert_eq!(replica.system().unwrap().membership.learners(), [4]);
        // Again makes no sense any more, and changes nothing.
        assert!(matches!(
            replica.apply(&change(3, 1, &add)).unwrap(),
            ApplyResult::System { changed: SystemChange::Nothing }
        ));
        // Outside a change's entry raft-rs knows nothing of it, so nobody makes it.
        let remove = SystemCommand::Change { id, change: Change::Remove(4), forced: false };
        let data = EncodedCommand::system(&remove).unwrap().stamp(SystemTime::UNIX_EPOCH).into();
        let stray = Entry { kind: EntryKind::Normal, data, ..command(4, 1, 1) };
        assert!(matches!(replica.apply(&stray).unwrap(), ApplyResult::Nothing));
        assert_eq!(replica.system().unwrap().membership.learners(), [4]);
    }

    #[test]
    fn a_machine_that_cannot_be_captured_goes_on() {
        #[derive(Default)]
        struct Cold(u64);
        impl StateMachine for Cold {
            type Command = u64;
            type Response = ();
            fn apply(&mut self, _: &ApplyContext, command: &u64) {
                self.0 = *command;
            }
            fn snapshot(&self) -> Result<StateView, MachineError> {
                match self.0 {
                    1 => Err(MachineError::new("not today")),
                    2 => panic!("too cold"),
                    _ => Ok(StateView::bytes(vec![])),
                }
            }
            fn restore(&mut self, _: &mut dyn Read) -> Result<(), MachineError> {
                Ok(())
            }
        }
        let mut replica = Replica::new(Cold::default());
        replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
        replica.apply(&command(2, 1, 1)).unwrap();
        let error = replica.capture().unwrap_err().to_string();
        assert_eq!(error, "the state machine cannot capture its state at 2@1: not today");
        replica.apply(&command(3, 1, 2)).unwrap();
        let error = replica.capture().unwrap_err().to_string();
        assert_eq!(error, "the state machine panicked capturing its state at 3@1: too cold");
        replica.apply(&command(4, 2, 3)).unwrap();
        let (index, term, ..) = replica.capture().unwrap();
        assert_eq!((index, term), (4, 2));
    }

    #[test]
    fn another_cluster_begins_at_its_entry() {
        let audit = Audit {
            who: "ada".into(),
            when: 9,
            why: RecoveredBecause::Backup,
            may_be_lost: "what came after".into(),
            index: 2,
            cluster: ClusterId(1),
            members: Default::default(),
        };
        let (cluster, address) = (ClusterId(77), Address::from("n5"));
        let recovered = SystemCommand::Recovered { cluster, node: 5, address, incarnation: None, audit };
        let mut replica = Replica::new(Sum::default());
        replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
        // In the context of a change it is nobody's: there it would pass by the check of what peers send.
        assert!(matches!(replica.apply(&change(2, 1, &recovered)).unwrap(), ApplyResult::Nothing));
        assert_eq!(replica.system().unwrap().recovered_at, 0);
        let data = EncodedCommand::system(&recovered).unwrap().stamp(SystemTime::UNIX_EPOCH).into();
        let entry = Entry { kind: EntryKind::Normal, data, ..command(3, 2, 1) };
        assert!(matches!(replica.apply(&entry).unwrap(), ApplyResult::System { changed: SystemChange::Membership }));
        let system = replica.system().unwrap();
        assert_eq!((system.cluster, system.recovered_at, system.audit[0].index), (ClusterId(77), 3, 3));
        assert_eq!(system.membership.voters(), [5]);
    }

    #[test]
    fn a_panic_is_a_sentence() {
        let mut replica = Replica::new(Sum::default());
        replica.restore(&genesis(), &TestSnapshots::default()).unwrap();
        let error = replica.apply(&command(2, 1, 666)).err().unwrap().to_string();
        assert!(error.starts_with("the state machine panicked applying 2@1: "), "{error}");
        assert!(error.contains("the number of the beast"), "{error}");
        let error = replica.look(|_, _| panic!("in a read")).err().unwrap();
        assert_eq!(error.to_string(), "the state machine panicked in the closure of a read: in a read");
    }
}
