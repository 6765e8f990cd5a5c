//! The contract with the application: one deterministic state machine, replicated.
//!
//! Every node applies the same commands in the same order to the same starting state. What that buys
//! depends on one rule, which no library can check in full: *the same inputs give the same outputs*.

use std::time::SystemTime;

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
/// - no panic for a bad command: return an error in the response. A panic stops this node, and since
///   every node applies the same command, all of them.
///
/// Commands are stored in the log and read back by later versions of the program. They are encoded as
/// MessagePack maps with named fields: adding a field with `#[serde(default)]` is safe, renaming is not. A
/// node that cannot decode a committed command stops and names its index; it never skips.
pub trait StateMachine: Send + Unpin + 'static {
    /// What is proposed.
    type Command: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What applying one command answers. Cloned only for subscribers.
    type Response: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;

    /// Applies one committed command.
    fn apply(&mut self, ctx: &ApplyContext, command: &Self::Command) -> Self::Response;

    /// The whole state as bytes.
    fn snapshot(&self) -> Result<Vec<u8>, MachineError>;

    /// Replaces the whole state by what [`snapshot`](StateMachine::snapshot) wrote, possibly on another node.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), MachineError>;

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
    /// When its leader took it up, by that leader's clock; the previous command's time if that was later.
    /// Never runs backwards, and is the same on every node and at every replay.
    pub time: SystemTime,
}

impl ApplyContext {
    /// For tests of a state machine: a context made by hand.
    pub fn new(index: u64, term: u64, time: SystemTime) -> Self {
        ApplyContext { index, term, time }
    }
}

/// A state machine could not write or read its state.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(String);

impl MachineError {
    /// An error in the machine's own words.
    pub fn new(message: impl std::fmt::Display) -> Self {
        MachineError(message.to_string())
    }
}

/// Writes [`StateMachine::snapshot`] and [`StateMachine::restore`] for a machine that is itself a serde type.
///
/// The whole state is encoded in one piece, as MessagePack with named fields: simple, and in
/// memory twice while it lasts. Machines of more than some hundred megabytes write the methods themselves.
#[macro_export]
macro_rules! serde_snapshot {
    () => {
        fn snapshot(&self) -> ::std::result::Result<::std::vec::Vec<u8>, $crate::machine::MachineError> {
            $crate::machine::encode(self)
        }

        fn restore(&mut self, snapshot: &[u8]) -> ::std::result::Result<(), $crate::machine::MachineError> {
            *self = $crate::machine::decode(snapshot)?;
            ::std::result::Result::Ok(())
        }
    };
}

/// Encodes a value as MessagePack with named fields; the form of commands, responses and serde snapshots.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, MachineError> {
    rmp_serde::to_vec_named(value).map_err(MachineError::new)
}

/// Decodes what [`encode`] wrote.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MachineError> {
    rmp_serde::from_slice(bytes).map_err(MachineError::new)
}
