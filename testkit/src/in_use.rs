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
    /// Whether nothing may be put to use now, because no operator asks for it.
    waits: bool,
    /// Whether a request ended without an answer: a leader may still have it in mind, and what was proposed for it may
    /// be committed at any time.
    lost: bool,
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

    /// An operator asks. There is one operator, with one request at a time.
    pub(crate) fn operator_asks(&mut self) {
        self.waits = false;
    }

    /// The operator's request is over. A leader answers that it is done once everything that it proposed has been
    /// applied, and has forgotten the request then. So from that answer on nothing may be put to use, unless an earlier
    /// request was lost. What was proposed twice may be committed twice, which puts nothing to use.
    pub(crate) fn operator_asked(&mut self, done: bool) {
        self.lost |= !done;
        self.waits = !self.lost;
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
                        if self.machine.last_key_value().is_none_or(|(in_force, _)| *in_force < version) {
                            self.note_unasked(entry.index);
                        }
                        self.machine.entry(version).or_insert(entry.index);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn is_used(&mut self, feature: String, index: u64) {
        if !self.features.contains_key(&feature) {
            self.note_unasked(index);
        }
        self.features.entry(feature).or_insert(index);
    }

    fn note_unasked(&mut self, index: u64) {
        if self.waits {
            self.unasked.get_or_insert(index);
        }
    }

    /// The index at which something was put to use although no operator asked for anything.
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use actorum_core::{entry::EncodedCommand, features::Features};
    use actorum_machine::members::{Member, MemberRole};

    use super::*;

    fn system(index: u64, command: &SystemCommand) -> Entry {
        let data = EncodedCommand::system(command).unwrap().stamp(SystemTime::UNIX_EPOCH).into();
        Entry { kind: EntryKind::Normal, term: 1, index, data, context: Default::default() }
    }

    /// One member that has announced version 3. Version 2 is put in force while an operator asks; then something else
    /// comes.
    fn unasked(done: bool, asks_again: bool, last: &Activation) -> Option<u64> {
        let mut in_use = InUse::default();
        in_use.waits_for_operator();
        let member = Member { address: "n1".into(), role: MemberRole::Voter, incarnation: None };
        in_use.founded_by(Membership { members: [(1, member)].into(), retired: Default::default() });
        let announcement = Announcement::of(&Features::all(), 3, 1);
        let activate = |activation: &Activation| SystemCommand::Activate { activation: activation.clone() };
        in_use.operator_asks();
        in_use.committed(&system(2, &SystemCommand::Announce { node: 1, announcement }));
        in_use.committed(&system(3, &activate(&Activation::Machine(2))));
        in_use.operator_asked(done);
        if asks_again {
            in_use.operator_asks();
        }
        in_use.committed(&system(4, &activate(last)));
        in_use.unasked()
    }

    #[test]
    fn what_an_operator_asked_for_once_is_not_asked_for_for_ever() {
        for new in [Activation::Machine(3), Activation::Feature("low_space".into())] {
            assert_eq!(unasked(true, false, &new), Some(4), "{new}");
            assert_eq!(unasked(true, true, &new), None, "{new}");
            assert_eq!(unasked(false, false, &new), None, "the request may still be carried out: {new}");
        }
        assert_eq!(unasked(true, false, &Activation::Machine(2)), None, "it is in force");
    }
}
