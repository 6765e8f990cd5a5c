//! The entries that are cut off the log are not needed any more. They were applied, and the older kept snapshot covers
//! them. No snapshot that is being sent needs them afterwards, within `log_hold_bytes`. The files of all kept snapshots
//! are durable before anything relies on them.

use actorum_core::{system_state::SystemState, wire::Snapshot};

use super::{Event, Facts, Invariant};
use crate::world::NodeFacts;

pub(crate) struct CutIsCovered {
    /// Whether a snapshot on its way holds the log.
    pub holds: bool,
}

impl Invariant for CutIsCovered {
    fn name(&self) -> &'static str {
        "what is cut off is covered"
    }

    fn check(&mut self, event: &Event<'_>, facts: &Facts) -> Result<(), String> {
        let Event::Drained { node, drained } = event else { return Ok(()) };
        let Some(mine) = facts.nodes.get(node) else { return Ok(()) };
        for write in drained.append.iter().map(|append| &append.write) {
            if let Some(snapshot) = &write.snapshot {
                durable(mine, snapshot).map_err(|what| format!("n{node} installs {what}"))?;
            }
            let Some(compact) = &write.compact else { continue };
            let (kept, up_to) = (&compact.snapshots, compact.up_to);
            let indexes: Vec<u64> = kept.iter().map(|snapshot| snapshot.index).collect();
            let broken = |why: String| Err(format!("n{node} keeps snapshots {indexes:?} and cuts to {up_to}: {why}"));
            let (Some(older), Some(newest)) = (kept.first(), kept.last()) else {
                return broken("nothing to start from is left".into());
            };
            if kept.len() > 2 || indexes.windows(2).any(|pair| pair[0] >= pair[1]) {
                return broken("one or two are kept, the newest last".into());
            }
            if up_to > older.index {
                return broken("the older one does not cover that".into());
            }
            if newest.index > mine.handed {
                return broken(format!("it has applied {} at most", mine.handed));
            }
            // Within the bound for followers that are behind, which no run of seconds comes near unless it is set to
            // zero. What was cut off while space was low is gone already, so a record that cuts off no more removes
            // nothing.
            if self.holds
                && !drained.low_space
                && mine.disk.as_ref().is_none_or(|disk| up_to > disk.compacted_index())
                && let Some((to, sent)) = drained.sends.iter().find(|(_, sent)| up_to > *sent)
            {
                return broken(format!("n{to} is being sent the snapshot at {sent}, and needs what follows it"));
            }
            for snapshot in kept {
                durable(mine, snapshot).map_err(|what| format!("n{node} relies on {what}"))?;
            }
        }
        Ok(())
    }
}

/// Whether a power cut could take the file of a snapshot; what is wrong, if it could.
fn durable(node: &NodeFacts, snapshot: &Snapshot) -> Result<(), String> {
    let index = snapshot.index;
    let Ok((_, file)) = SystemState::of(snapshot) else {
        return Err(format!("the snapshot at {index}, which nobody can decode"));
    };
    let (Some(file), Some(disk)) = (file, &node.disk) else { return Ok(()) };
    match disk.has_file(snapshot, &file) {
        true => Ok(()),
        false => Err(format!("the snapshot at {index}, whose file a power cut would take")),
    }
}
