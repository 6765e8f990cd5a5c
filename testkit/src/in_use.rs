//! What the cluster uses, as an observer works it out from the committed entries alone.
//!
//! It shares the formats with the code that it is there to judge, and none of its decisions.

use std::collections::BTreeMap;

use actorum_core::{
    entry::{CommandKind, Stamped, SystemCommand},
    system_state::GENESIS_INDEX,
    versions::{Activation, Announcement},
    wire::{Entry, EntryKind},
};
use actorum_machine::{ids::NodeId, members::Membership};

use super::fleet::Program;

/// What is in use, and since which entry.
#[derive(Debug, Default)]
pub(crate) struct InUse {
    /// The last entry that was looked at; zero before there is a cluster.
    at: u64,
    membership: Membership,
    announced: BTreeMap<NodeId, Announcement>,
    /// By the name of a feature.
    features: BTreeMap<String, u64>,
    /// By the version of the state machine, ascending.
    machine: BTreeMap<u32, u64>,
    /// Whether nothing may be put to use yet, because no operator has asked for it.
    waits: bool,
    /// What was put to use all the same.
    unasked: Option<u64>,
}

impl InUse {
    /// The cluster is founded by these members.
    pub(crate) fn founded_by(&mut self, membership: Membership) {
        (self.at, self.membership) = (GENESIS_INDEX, membership);
    }

    /// Nothing may be put to use before an operator asks.
    pub(crate) fn waits_for_operator(&mut self) {
        self.waits = true;
    }

    /// An operator asks.
    pub(crate) fn operator_asks(&mut self) {
        self.waits = false;
    }

    /// An entry is committed. Entries come in order, and more than once.
    pub(crate) fn committed(&mut self, entry: &Entry) {
        if entry.index != self.at + 1 || self.at == 0 {
            return;
        }
        self.at = entry.index;
        let command = match entry.kind {
            EntryKind::ConfChange => SystemCommand::decode(&entry.context).ok(),
            EntryKind::Normal => match Stamped::parse(&entry.data) {
                Ok(stamped) if stamped.kind == CommandKind::System => SystemCommand::decode(stamped.payload).ok(),
                _ => None,
            },
        };
        match command {
            Some(SystemCommand::Change { change, .. }) if entry.kind == EntryKind::ConfChange => {
                if let Ok(next) = self.membership.after(&change) {
                    self.announced.retain(|id, _| next.members.contains_key(id));
                    self.membership = next;
                }
            }
            Some(SystemCommand::Announce { node, announcement }) => {
                let newer = self.announced.get(&node).is_none_or(|known| known.boot <= announcement.boot);
                if newer && self.membership.members.contains_key(&node) {
                    self.announced.insert(node, announcement);
                    self.is_used("activation".into(), entry.index);
                }
            }
            Some(SystemCommand::Activate { activation }) => {
                let all = |understands: &dyn Fn(&Announcement) -> bool| {
                    self.membership.members.keys().all(|id| self.announced.get(id).is_some_and(understands))
                };
                match activation {
                    Activation::Feature(name) if all(&|theirs| theirs.features.contains(&name)) => {
                        self.is_used(name, entry.index);
                    }
                    Activation::Machine(version) if all(&|theirs| theirs.machine >= version) => {
                        self.note_unasked(entry.index);
                        self.machine.entry(version).or_insert(entry.index);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn is_used(&mut self, feature: String, index: u64) {
        self.note_unasked(index);
        self.features.entry(feature).or_insert(index);
    }

    fn note_unasked(&mut self, index: u64) {
        if self.waits {
            self.unasked.get_or_insert(index);
        }
    }

    /// The index at which something was put to use although no operator had asked for anything.
    pub(crate) fn unasked(&self) -> Option<u64> {
        self.unasked
    }

    /// The index of the first entry that puts to use what this program lacks, and what that is.
    pub(crate) fn lacks(&self, program: Program) -> Option<(u64, String)> {
        let understands = program.features();
        let unknown = self.features.iter().filter(|(name, _)| !understands.iter().any(|known| known.name() == *name));
        let unknown = unknown.map(|(name, index)| (*index, format!("feature {name}")));
        // Who says no version has the first.
        let versions = self.machine.iter().filter(|(version, _)| **version > program.machine_version().max(1));
        let versions = versions.map(|(version, index)| (*index, format!("version {version}")));
        unknown.chain(versions).min()
    }
}
