//! What an entry says: `{ version, kind, time, payload }` in front of every command, ours or the application's.
//!
//! ```text
//!  0        1      2                10
//!  version  kind   time (µs, BE)    payload: MessagePack
//! ```
//!
//! The proposer encodes once, with the time left open; the leader stamps it in place; disk, peers and
//! appliers share those bytes. An empty entry is the one a new leader appends (Raft section 8) and says nothing.

use std::time::{Duration, SystemTime};

use actorum_machine::{
    ids::{Address, ClusterId, Incarnation, NodeId},
    machine::{self, MachineError},
    members::Change,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    system_state::Audit,
    versions::{Activation, Announcement},
    wire::{Entry, EntryKind},
};

/// The newest entry format this version reads, and the one it writes.
pub const VERSION: u8 = 1;
/// Bytes in front of the payload.
pub const HEADER: usize = 10;

/// Whose command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandKind {
    /// The application's.
    Command = 1,
    /// Ours: a [`SystemCommand`].
    System = 2,
}

/// An encoded command whose time is not stamped yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedCommand(Vec<u8>);

impl EncodedCommand {
    /// Encodes a command of the application.
    pub fn command<C: Serialize>(command: &C) -> Result<EncodedCommand, MachineError> {
        EncodedCommand::encode(CommandKind::Command, command)
    }

    /// Encodes a command of ours.
    pub fn system(command: &SystemCommand) -> Result<EncodedCommand, MachineError> {
        EncodedCommand::encode(CommandKind::System, command)
    }

    fn encode<T: Serialize>(kind: CommandKind, payload: &T) -> Result<EncodedCommand, MachineError> {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[VERSION, kind as u8]);
        bytes.extend_from_slice(&[0; 8]);
        rmp_serde::encode::write_named(&mut bytes, payload).map_err(MachineError::new)?;
        Ok(EncodedCommand(bytes))
    }

    /// What another node encoded; its header is checked here, its payload by whoever can decode it.
    pub fn received(data: &[u8]) -> Result<EncodedCommand, EntryError> {
        Stamped::parse(data)?;
        Ok(EncodedCommand(data.to_vec()))
    }

    /// The encoded bytes, for sending them to the leader.
    pub fn bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// Whose command it is. Only the application's may be proposed on a peer's word.
    pub fn is_command(&self) -> bool {
        self.0[1] == CommandKind::Command as u8
    }

    /// Without the header.
    pub fn payload(&self) -> &[u8] {
        &self.0[HEADER..]
    }

    /// Size in bytes, header included.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Writes the leader's time into the header: what goes into the log.
    pub fn stamp(mut self, time: SystemTime) -> Vec<u8> {
        self.0[2..HEADER].copy_from_slice(&micros(time).to_be_bytes());
        self.0
    }
}

/// A parsed entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped<'a> {
    /// Whose command.
    pub kind: CommandKind,
    /// When its leader took it up.
    pub time: SystemTime,
    /// The encoded command.
    pub payload: &'a [u8],
}

/// The data of an entry is not what this version can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Written by a newer version.
    #[error("entry format {0} is newer than this program understands (up to {VERSION}): start the newer version")]
    Newer(u8),
    /// Of a kind that this version does not know.
    #[error("entries of kind {0} are newer than this program: start the newer version")]
    NewerKind(u8),
    /// A command of ours that this version cannot read.
    #[error("the system command cannot be read: {0}. A later version of actorum wrote it: start that version")]
    NewerCommand(String),
    /// Too short, or not what its kind says.
    #[error("malformed entry: {0}")]
    Malformed(String),
}

impl<'a> Stamped<'a> {
    /// Reads the header of an entry that is not empty.
    pub fn parse(data: &'a [u8]) -> Result<Stamped<'a>, EntryError> {
        let Some((header, payload)) = data.split_first_chunk::<HEADER>() else {
            return Err(EntryError::Malformed(format!("{} bytes, less than a header", data.len())));
        };
        let [version, kind, time @ ..] = *header;
        if version != VERSION {
            return Err(EntryError::Newer(version));
        }
        let kind = match kind {
            1 => CommandKind::Command,
            2 => CommandKind::System,
            other => return Err(EntryError::NewerKind(other)),
        };
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(u64::from_be_bytes(time));
        Ok(Stamped { kind, time, payload })
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Names one membership change among all that were ever asked for, so that its entry can be told from an empty one
/// that raft-rs put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChangeId {
    /// The node that proposed it.
    pub node: NodeId,
    /// That node's boot.
    pub boot: u64,
    /// Counts its proposals.
    pub number: u64,
}

/// Commands of ours. They feed the [`SystemState`](crate::system_state::SystemState).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SystemCommand {
    /// Rides with a membership change of raft-rs, in the entry's context.
    Change {
        /// Which request it belongs to.
        id: ChangeId,
        /// The change.
        change: Change,
        /// Whether it was forced: made without checking who was connected. For people who read the log; it changes
        /// nothing else.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        forced: bool,
    },
    /// The life of a member's directory, as its leader saw it in the member's hello. The first one recorded stands.
    Incarnation {
        /// The member.
        node: NodeId,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// Every node reports its hashes here, so that nodes that differ are found (see
    /// [`compare`](crate::consistency::compare)). Only proposed where every member understands it.
    Mark {
        /// Whether the hash over what is applied begins anew behind this: some node has none, or one that began
        /// elsewhere.
        #[serde(default)]
        restart: bool,
    },
    /// What a member's build understands, as the leader heard it in the member's newest hello (see
    /// [`versions`](crate::versions)). Only proposed where every member understands it.
    Announce {
        /// The member.
        node: NodeId,
        /// What it understands.
        announcement: Announcement,
    },
    /// From here on this is in use, if every member at this index has announced it; otherwise it changes nothing.
    Activate {
        /// What.
        activation: Activation,
    },
    /// From here on this is another cluster, of one voter.
    ///
    /// No node proposes it and none takes it from a peer: it is written into a stopped node's log, behind everything in
    /// it, when a backup is restored or a majority is gone for good. What is below it was agreed on by a cluster that
    /// is no more.
    Recovered {
        /// The new cluster's id, which no cluster had before: nodes of the old one are refused by it.
        cluster: ClusterId,
        /// The one member.
        node: NodeId,
        /// Where its peers will reach it.
        address: Address,
        /// The life of its directory.
        incarnation: Option<Incarnation>,
        /// Who did it, and what it may have cost.
        audit: Audit,
    },
}

impl SystemCommand {
    /// Reads one back.
    pub fn decode(payload: &[u8]) -> Result<SystemCommand, MachineError> {
        machine::decode(payload)
    }

    /// The command of ours in an entry of the log, if it holds one.
    pub fn of(entry: &Entry) -> Result<Option<SystemCommand>, EntryError> {
        let newer = |error: MachineError| EntryError::NewerCommand(error.to_string());
        let payload = match entry.kind {
            // What raft-rs puts in the place of a change that came too early.
            EntryKind::ConfChange if entry.context.is_empty() => return Ok(None),
            EntryKind::ConfChange => &entry.context[..],
            EntryKind::Normal if entry.data.is_empty() => return Ok(None),
            EntryKind::Normal => match Stamped::parse(&entry.data)? {
                Stamped { kind: CommandKind::System, payload, .. } => payload,
                Stamped { kind: CommandKind::Command, .. } => return Ok(None),
            },
        };
        let command = SystemCommand::decode(payload).map_err(newer)?;
        // raft-rs knows nothing of a change outside a change's entry: no node makes it.
        let is_change = matches!(command, SystemCommand::Change { .. });
        Ok((is_change == (entry.kind == EntryKind::ConfChange)).then_some(command))
    }
}
