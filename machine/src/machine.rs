//! The contract with the application: one deterministic state machine, replicated.
//!
//! Every node applies the same commands in the same order to the same starting state. All states stay equal if one rule
//! holds, which no library can check in full: *the same inputs give the same outputs*.

use std::{
    fmt,
    io::{Read, Write},
    time::SystemTime,
};

use serde::{Serialize, de::DeserializeOwned};

/// What is replicated: a deterministic state machine.
///
/// # The contract
///
/// [`apply`](StateMachine::apply) runs on every node, for every command, in the order of the log. It must be
/// a function of the state, the command and the [`ApplyContext`] alone:
///
/// - no clock: use [`ApplyContext::time`];
/// - no randomness: put the seed or the drawn value into the command;
/// - no iteration order of a `HashMap` that reaches the state or the response: use a `BTreeMap`;
/// - no file, socket, environment or thread: do that before proposing, or after applying (subscribe);
/// - no panic for a bad command: return an error in the response. A panic stops this node, and since every node applies
///   the same command, it stops all nodes.
///
/// Commands are stored in the log and read back by later versions of the program. They are encoded as MessagePack maps
/// with named fields: a field added with `#[serde(default)]` keeps old entries readable, a renamed one does not.
/// Reading an entry is not enough, though: a node that does not know a field yet applies the command without it, and
/// its state differs from then on. So a new field or variant, and another `apply`, are *used* only from an entry on at
/// which every node's program knows them: raise [`VERSION`](StateMachine::VERSION), ask [`ApplyContext::version`] in
/// `apply`, and say with [`needs_version`](StateMachine::needs_version) which commands are new. A node that cannot
/// decode a committed command stops and names its index; it never skips.
///
/// # Changing `apply`
///
/// A start applies again the commands after the newest snapshot. If `apply` decided these commands in another way than
/// when they were answered, the state would contradict the answers. The version in force at a command's index is the
/// same at every replay, so an `apply` that keeps its old branch decides old commands as it did before:
///
/// ```
/// # use actorum_machine::{machine::{ApplyContext, StateMachine}, serde_snapshot};
/// # #[derive(Default, serde::Serialize, serde::Deserialize)]
/// # struct Jobs { done: u64, failed: u64 }
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # enum Command { Finish, Cancel }
/// impl StateMachine for Jobs {
///     type Command = Command;
///     type Response = bool;
///
///     /// 2: `Cancel` exists. 3: a job may be finished once only.
///     const VERSION: u32 = 3;
///
///     fn needs_version(command: &Command) -> u32 {
///         match command {
///             Command::Finish => 1,
///             Command::Cancel => 2,
///         }
///     }
///
///     fn apply(&mut self, ctx: &ApplyContext, command: &Command) -> bool {
///         match command {
///             // What was decided before version 3 was in force stays decided so.
///             Command::Finish if ctx.version >= 3 && self.done > 0 => return false,
///             Command::Finish => self.done += 1,
///             Command::Cancel => self.failed += 1,
///         }
///         true
///     }
/// #   serde_snapshot!();
/// }
/// ```
pub trait StateMachine: Send + Unpin + 'static {
    /// What is proposed.
    type Command: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// The answer of one command. It is cloned only for subscribers.
    type Response: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;

    /// The newest version of commands and of [`apply`](StateMachine::apply) that this program knows; 1 or more. Raise
    /// it with every new field or variant of a command, and with every change after which `apply` does something else
    /// for some command.
    ///
    /// Every member announces it. Once all of them, learners too, have announced a higher version than the one in
    /// force, the leader proposes to use it, and it is in force from that entry on ([`ApplyContext::version`]), on
    /// every node and at every replay. A new cluster begins with version 1, too, and raises it at once. With the
    /// setting `activate = "manual"` that waits for an operator. The version in force never falls: a program whose
    /// `VERSION` is below the version in force does not start on that directory, and a member with such a program
    /// stops.
    const VERSION: u32 = 1;

    /// The version that must be in force for this command. A proposal of a command that needs a later one is refused
    /// with [`NeedsVersion`](crate::outcome::ProposeError::NeedsVersion), and is surely not in the log.
    fn needs_version(_command: &Self::Command) -> u32 {
        1
    }

    /// Applies one committed command.
    fn apply(&mut self, ctx: &ApplyContext, command: &Self::Command) -> Self::Response;

    /// The whole state as it is now, to be written out later and elsewhere.
    ///
    /// No command is applied while this runs, and only while this runs: what it returns is written on another thread,
    /// while the machine moves on. So it should be cheap, and must not see what is applied after it: a clone of an
    /// `Arc`, a persistent map, a read transaction of the machine's own storage. See [`StateView`].
    fn snapshot(&self) -> Result<StateView, MachineError>;

    /// Replaces the whole state by the state that a [`StateView`] wrote, possibly on another node.
    ///
    /// `from` ends where that writing ended. `restore` is called once the whole file has been verified. It must replace
    /// everything, also what an earlier `restore` left behind that failed or was interrupted by a crash. A machine with
    /// its own storage gets the same snapshot again at its next start, unless [`applied`](StateMachine::applied) says
    /// that it holds it. So it must record that pair last.
    fn restore(&mut self, from: &mut dyn Read) -> Result<(), MachineError>;

    /// For a machine that keeps its own durable storage: the index and term of the last command that its
    /// storage holds. Commands up to it are not applied again after a restart, so the machine must store this
    /// pair atomically with each command's effect, from [`ApplyContext::index`] and [`ApplyContext::term`].
    ///
    /// `None`, the default: the state lives in memory and is rebuilt from snapshot and log at each start.
    fn applied(&self) -> Option<(u64, u64)> {
        None
    }
}

/// Where and when a command is applied: the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApplyContext {
    /// The command's position in the log. Grows from command to command, with gaps.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// The time at which its leader took it up, by that leader's clock; the previous command's time if that was later.
    /// Never runs backwards, and is the same on every node and at every replay.
    pub time: SystemTime,
    /// The version of the state machine in force at this index, 1 at first: see [`StateMachine::VERSION`].
    pub version: u32,
}

impl ApplyContext {
    /// For tests of a state machine: a context made by hand, with the first version in force.
    pub fn new(index: u64, term: u64, time: SystemTime) -> Self {
        ApplyContext { index, term, time, version: 1 }
    }

    /// The same with this version in force.
    pub fn with_version(self, version: u32) -> Self {
        ApplyContext { version, ..self }
    }
}

/// A state machine could not write or read its state.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(String);

impl MachineError {
    /// An error with this text.
    pub fn new(message: impl std::fmt::Display) -> Self {
        MachineError(message.to_string())
    }
}

impl From<std::io::Error> for MachineError {
    fn from(error: std::io::Error) -> Self {
        MachineError::new(error)
    }
}

/// The state of a machine at one moment, which nothing that is applied later can change.
///
/// It is written once, on a separate thread, in pieces of any size. So a machine that can stream its state may have a
/// state larger than memory.
///
/// ```
/// use std::{collections::BTreeMap, io::Write, sync::Arc};
/// use actorum_machine::machine::{StateView, MachineError};
///
/// // A map behind an `Arc`: capturing it is one clone of the pointer. The next `apply` calls `Arc::make_mut`.
/// fn capture(state: &Arc<BTreeMap<u64, u64>>) -> StateView {
///     let state = state.clone();
///     StateView::new(move |out| {
///         for (key, value) in state.iter() {
///             out.write_all(&key.to_be_bytes())?;
///             out.write_all(&value.to_be_bytes())?;
///         }
///         Ok(())
///     })
/// }
/// # let mut out = Vec::new();
/// # capture(&Arc::new(BTreeMap::from([(1, 2)]))).write_to(&mut out)?;
/// # assert_eq!(out.len(), 16);
/// # Ok::<(), MachineError>(())
/// ```
pub struct StateView(WriteState);

type WriteState = Box<dyn FnOnce(&mut dyn Write) -> Result<(), MachineError> + Send>;

impl StateView {
    /// A state that is written by this closure, on another thread. Its errors, and those of `out`, end this snapshot
    /// only.
    pub fn new(write: impl FnOnce(&mut dyn Write) -> Result<(), MachineError> + Send + 'static) -> StateView {
        StateView(Box::new(write))
    }

    /// A state that is already encoded.
    pub fn bytes(bytes: Vec<u8>) -> StateView {
        StateView::new(move |out| Ok(out.write_all(&bytes)?))
    }

    /// Writes it.
    pub fn write_to(self, out: &mut dyn Write) -> Result<(), MachineError> {
        (self.0)(out)
    }
}

impl fmt::Debug for StateView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateView")
    }
}

/// Writes [`StateMachine::snapshot`] and [`StateMachine::restore`] for a machine that is itself a serde type, as
/// MessagePack with named fields.
///
/// - `serde_snapshot!()` encodes the whole state while it captures it: nothing is applied for as long as that takes
///   (about a second per few hundred megabytes), and the encoded state is in memory until it is written. Where the
///   state machine shares its thread with everything else, as it does by default, heartbeats wait, too: beyond some ten
///   megabytes take the other form.
/// - `serde_snapshot!(clone)` clones the state and encodes it on another thread: nothing is applied for as long as a
///   clone takes, and the state is in memory twice until it is written. With fields behind an `Arc`, or persistent maps
///   (as of the crates rpds and imbl), both are cheap.
///
/// Restoring holds the old and the new state at once.
#[macro_export]
macro_rules! serde_snapshot {
    () => {
        fn snapshot(&self) -> ::std::result::Result<$crate::machine::StateView, $crate::machine::MachineError> {
            $crate::machine::encode(self).map($crate::machine::StateView::bytes)
        }

        $crate::serde_snapshot!(@restore);
    };
    (clone) => {
        fn snapshot(&self) -> ::std::result::Result<$crate::machine::StateView, $crate::machine::MachineError> {
            let state = ::std::clone::Clone::clone(self);
            let write = move |out: &mut dyn ::std::io::Write| $crate::machine::encode_to(&state, out);
            ::std::result::Result::Ok($crate::machine::StateView::new(write))
        }

        $crate::serde_snapshot!(@restore);
    };
    (@restore) => {
        fn restore(
            &mut self,
            from: &mut dyn ::std::io::Read,
        ) -> ::std::result::Result<(), $crate::machine::MachineError> {
            *self = $crate::machine::decode_from(from)?;
            ::std::result::Result::Ok(())
        }
    };
}

/// Encodes a value as MessagePack with named fields; the form of commands, responses and serde snapshots.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, MachineError> {
    rmp_serde::to_vec_named(value).map_err(MachineError::new)
}

/// The same, piece by piece.
pub fn encode_to<T: Serialize + ?Sized>(value: &T, mut out: &mut dyn Write) -> Result<(), MachineError> {
    rmp_serde::encode::write_named(&mut out, value).map_err(MachineError::new)
}

/// Decodes what [`encode_to`] wrote, from a source that ends with it.
pub fn decode_from<T: DeserializeOwned>(from: &mut dyn Read) -> Result<T, MachineError> {
    rmp_serde::from_read(from).map_err(MachineError::new)
}

/// Decodes what [`encode`] wrote.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MachineError> {
    rmp_serde::from_slice(bytes).map_err(MachineError::new)
}
