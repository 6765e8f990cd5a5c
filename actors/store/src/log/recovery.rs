//! Opening: whether what a store holds is intact, this node's, and not less than it once made durable.
//!
//! Deliberately absent: repair. What is refused is left as it was, for a person to judge.

use std::path::Path;

use super::{
    engine::{self, Engine},
    record::{self, Found, Key, Owner},
    store::*,
    watermark::{Mark, Pages, Watermark, WatermarkError},
};

/// Writes into a new engine whose it is, durable when it returns.
pub(super) fn claim(engine: &impl Engine, dir: &Path, node: &StoreIdentity) -> Result<(), OpenError> {
    let mut pieces = Vec::new();
    let owner = Owner { id: node.id, incarnation: node.incarnation };
    record::seal(Key::OWNER, 0, &record::encode_owner(&owner), &mut pieces);
    let changes = pieces.into_iter().map(|(key, value)| (key, Some(value))).collect();
    let claimed = engine.apply(changes).and_then(|()| engine.flush()).and_then(|()| engine.sync());
    claimed.map_err(|error| error.on_open(dir))
}

/// Judges a watermark that was opened for `node`.
pub(super) fn of_this_life<S: Pages>(
    dir: &Path,
    node: &StoreIdentity,
    opened: Result<Watermark<S>, WatermarkError>,
) -> Result<Watermark<S>, OpenError> {
    let damaged = |detail| OpenError::Damaged { dir: dir.to_owned(), what: "watermark".to_owned(), detail };
    let watermark = opened.map_err(|error| match error {
        WatermarkError::Io(error) => {
            OpenError::Io { dir: dir.to_owned(), doing: "cannot read watermark".to_owned(), error }
        }
        other => damaged(other.to_string()),
    })?;
    let promised = &watermark.marks().incarnation;
    if *promised != node.incarnation {
        return Err(damaged(format!("it belongs to incarnation {promised}, the directory to {}", node.incarnation)));
    }
    if let Some(detail) = watermark.damaged_page() {
        // Expected once after a crash in the middle of a write to it; what remains is the state before that write.
        tracing::warn!(dir = %dir.display(), detail, "one page of the watermark is damaged, the other is used");
    }
    Ok(watermark)
}

/// Reads and checks everything in the engine, and the whole against the watermark. What passes is durable when it
/// returns.
pub(super) fn recover<S: Pages>(
    engine: &impl Engine,
    dir: &Path,
    node: &StoreIdentity,
    watermark: &mut Watermark<S>,
) -> Result<Found, OpenError> {
    let found = engine::scan(engine).map_err(|error| error.on_open(dir))?;
    check(dir, node, &found, watermark)?;
    // Promise 2: a process that died between its flush and its sync has left records that only the kernel holds. From
    // here on they count as persisted: a vote found is granted again, an entry found is acknowledged, and neither is
    // written anew.
    engine.flush().and_then(|()| engine.sync()).map_err(|error| error.on_open(dir))?;
    let moved = found.groups.iter().filter_map(|(group, found)| {
        let Recovered { hard_state: HardState { term, vote, .. }, last_index, .. } = found.recovered;
        let mark = watermark.mark(*group);
        let index_term = found.recovered.term_at(last_index).unwrap_or_default();
        ((mark.term, mark.vote) != (term, vote)).then_some((*group, Mark { term, vote, index: last_index, index_term }))
    });
    let moved: Vec<_> = moved.collect();
    let doing = "cannot write watermark".to_owned();
    watermark.write(moved).map_err(|error| OpenError::Io { dir: dir.to_owned(), doing, error })?;
    Ok(found)
}

/// Whether what the store holds is intact, this node's, and not less than it once made durable.
fn check<S: Pages>(dir: &Path, node: &StoreIdentity, found: &Found, watermark: &Watermark<S>) -> Result<(), OpenError> {
    if let Some(problem) = found.problems.first() {
        let (what, detail) = (problem.what.clone(), problem.detail.clone());
        return Err(OpenError::Damaged { dir: dir.to_owned(), what, detail });
    }
    match &found.owner {
        None => return Err(rolled_back(dir, "an empty log", watermark)),
        Some(owner) if *owner != (Owner { id: node.id, incarnation: node.incarnation }) => {
            let detail = format!("it says node {}, incarnation {}", owner.id, owner.incarnation);
            return Err(OpenError::Damaged { dir: dir.to_owned(), what: Key::OWNER.to_string(), detail });
        }
        Some(_) => {}
    }
    let nothing = Recovered::default();
    for (group, promised) in &watermark.marks().groups {
        let holds = found.groups.get(group).map_or(&nothing, |found| &found.recovered);
        if let Some(found) = behind(holds, promised) {
            return Err(OpenError::RolledBack { dir: dir.to_owned(), found, promised: promised.to_string() });
        }
    }
    Ok(())
}

pub(super) fn rolled_back<S: Pages>(dir: &Path, found: &str, watermark: &Watermark<S>) -> OpenError {
    let marks: Vec<String> = watermark.marks().groups.values().map(Mark::to_string).collect();
    let promised = if marks.is_empty() { "the log's owner".to_owned() } else { marks.join("; ") };
    OpenError::RolledBack { dir: dir.to_owned(), found: found.to_owned(), promised }
}

/// What a log holds less than was promised, if it does.
pub(super) fn behind(holds: &Recovered, promised: &Mark) -> Option<String> {
    let HardState { term, vote, .. } = holds.hard_state;
    if term < promised.term {
        return Some(format!("term {term}"));
    }
    if term == promised.term && promised.vote != 0 && vote != promised.vote {
        return Some(format!("vote {vote} in term {term}"));
    }
    if holds.last_index < promised.index {
        return Some(format!("a log up to index {}", holds.last_index));
    }
    match holds.term_at(promised.index) {
        Some(term) if term != promised.index_term => Some(format!("another entry, {}", At(promised.index, term))),
        _ => None, // the same, or inside the snapshot, which holds only what was committed
    }
}
