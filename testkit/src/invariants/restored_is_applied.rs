//! What a state machine is given from a snapshot at index i is exactly the state that applying the log up to i gives.
//!
//! Every state carries the index of its last command: the state must be what others had after that command, and the
//! snapshot's index must be neither before it nor past a later command. Both are asked when a node records a snapshot
//! it built, and when one is restored.

use std::collections::{BTreeMap, BTreeSet};

use actorum_machine::ids::NodeId;

use super::{Event, Facts, Invariant};

#[derive(Default)]
pub(crate) struct RestoredIsApplied {
    commands: BTreeSet<u64>,
    /// What states were after the command at an index.
    states: BTreeMap<u64, u64>,
    /// Per node, the last command in the state it handed out last.
    captured: BTreeMap<NodeId, u64>,
    /// Per node, the newest snapshot it has recorded.
    newest: BTreeMap<NodeId, u64>,
    /// Per node, the index of the snapshot its state machine is about to be given.
    announced: BTreeMap<NodeId, u64>,
    /// Per node that starts, the last command in the state its machine was given.
    begun: BTreeMap<NodeId, u64>,
}

impl RestoredIsApplied {
    /// Whether a snapshot of this index may hold a state with this last command.
    fn labelled(&self, node: NodeId, index: u64, at: u64) -> Result<(), String> {
        if index < at {
            return Err(format!("n{node}: the snapshot at {index} holds the command at {at}"));
        }
        match self.commands.range(at + 1..index + 1).next() {
            Some(missed) => Err(format!("n{node}: the snapshot at {index} lacks the command at {missed}")),
            None => Ok(()),
        }
    }

    fn state(&mut self, node: NodeId, at: u64, state: u64) -> Result<(), String> {
        let known = *self.states.entry(at).or_insert(state);
        if known != state {
            return Err(format!("n{node} has another state after the command at {at} than others had"));
        }
        Ok(())
    }
}

impl Invariant for RestoredIsApplied {
    fn name(&self) -> &'static str {
        "restored is what was applied"
    }

    fn check(&mut self, event: &Event<'_>, _: &Facts) -> Result<(), String> {
        match event {
            Event::Started { node, recovered, .. } => {
                for map in [&mut self.announced, &mut self.begun, &mut self.captured] {
                    map.remove(node);
                }
                self.newest.insert(*node, recovered.newest().map_or(0, |newest| newest.index));
            }
            Event::Applied { node, index, state, .. } => {
                self.commands.insert(*index);
                return state.map_or(Ok(()), |state| self.state(*node, *index, state));
            }
            Event::Captured { node, at } => drop(self.captured.insert(*node, *at)),
            Event::Drained { node, drained } => {
                for write in drained.append.iter().map(|append| &append.write) {
                    let compact = write.compact.as_ref().and_then(|compact| compact.snapshots.last());
                    let Some(newest) = write.snapshot.as_ref().or(compact) else { continue };
                    let before = self.newest.insert(*node, newest.index).unwrap_or(0);
                    if write.snapshot.is_none()
                        && newest.index > before
                        && let Some(at) = self.captured.get(node)
                    {
                        self.labelled(*node, newest.index, *at)?;
                    }
                }
                if let Some((index, _)) = drained.restore {
                    self.announced.insert(*node, index);
                }
            }
            Event::Restored { node, at, state } => {
                self.state(*node, *at, *state)?;
                match self.announced.remove(node) {
                    Some(index) => self.labelled(*node, index, *at)?,
                    None => drop(self.begun.insert(*node, *at)),
                }
            }
            Event::Replayed { node, snapshot } => {
                if let Some(at) = self.begun.remove(node) {
                    self.labelled(*node, *snapshot, at)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
