//! What a lost majority left becomes a new cluster of one node.

use std::{path::Path, time::SystemTime};

use actorum_core::system_state::{Audit, RecoveredBecause};
use actorum_machine::ids::Address;
use actorum_store::log::{
    directory,
    sled::SledStore,
    store::{LogStore, OpenError},
};

use super::{
    NewCluster, Position, RecoveredNode, RecoveryError, SurvivingLog, Survivor, check, options, seconds, survey,
    survey::look,
};
use crate::boot;

/// How a cluster is recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recover {
    /// Where the node's peers will reach it, `HOST:PORT`; `None`: the address that it had.
    pub address: Option<Address>,
    /// Who does this, for the audit record.
    pub who: String,
    /// When, for the audit record.
    pub when: SystemTime,
    /// Take this directory although another one holds more, or may hold more. The value is the index at which its log
    /// ends: it confirms that everything after it may be lost. Default `None`: only the most advanced directory is
    /// taken.
    pub accept_loss: Option<u64>,
}

impl Recover {
    /// Of the most advanced directory, at the address it had.
    pub fn new(who: impl Into<String>, when: SystemTime) -> Recover {
        Recover { address: None, who: who.into(), when, accept_loss: None }
    }
}

/// Makes a cluster of one voter out of a surviving directory, after a majority is gone for good.
///
/// `others` are all other directories that survived. The chosen one must be the most advanced of them, by its last
/// entry's term and then its index, as in an election (Raft section 5.4.1): of any two logs the more advanced holds
/// everything that the other knows to be committed.
///
/// # What becomes of entries
///
/// The whole log of the directory counts as committed from now on. So entries that were never acknowledged may appear:
/// a client that was told "unknown" may find that its command was applied. And entries that a majority had acknowledged
/// are lost if they were only on the lost nodes.
///
/// Nothing in the log is replaced: one entry is added after it, in one atomic write. A call that is interrupted has
/// done everything or nothing. A directory in use, also among the others, is refused with an error that names the
/// process that holds it.
///
/// ```no_run
/// use std::{path::Path, time::SystemTime};
///
/// use actorum::disaster_recovery::{Recover, recover, survey};
///
/// let dirs = ["/mnt/disk-1", "/mnt/disk-2"];
/// let survivors = survey(&dirs);
/// let best = survivors.iter().filter(|s| s.problems.is_empty()).max_by_key(|s| s.position());
/// let best = best.expect("one of them can be read");
/// let others: Vec<_> = survivors.iter().filter(|s| s.dir != best.dir).map(|s| &s.dir).collect();
/// let recovered = recover(&best.dir, &others, Recover::new("ada", SystemTime::now()))?;
/// println!("cluster {} begins at index {}: {}", recovered.cluster, recovered.index, recovered.audit.may_be_lost);
/// # Ok::<(), actorum::disaster_recovery::RecoveryError>(())
/// ```
pub fn recover<P: AsRef<Path>>(dir: &Path, others: &[P], recover: Recover) -> Result<RecoveredNode, RecoveryError> {
    let Recover { address, who, when, accept_loss } = recover;
    check(address.as_ref(), &who)?;
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let others: Vec<&Path> = others.iter().map(AsRef::as_ref).collect();
    if let Some(same) = others.iter().find(|other| canonical(other) == canonical(dir)) {
        return Err(RecoveryError::Invalid(format!("{} is named twice", same.display())));
    }
    // A node that runs is not lost, so the call is refused whatever loss is accepted.
    for other in &others {
        if let Some(holder) = directory::holder(other).ok().flatten() {
            return Err(OpenError::Locked { dir: (*other).to_owned(), holder }.into());
        }
    }
    let chosen = look(dir);
    let unusable = |cause: String| RecoveryError::Unusable { dir: dir.to_owned(), cause };
    let (Some(id), Some(log)) = (chosen.id, &chosen.log) else { return Err(unusable(chosen.problems.join("; "))) };
    if !chosen.problems.is_empty() {
        return Err(unusable(chosen.problems.join("; ")));
    }
    if let Some(accepted) = accept_loss.filter(|accepted| *accepted != log.last.0) {
        return Err(RecoveryError::OtherLoss { dir: dir.to_owned(), last: log.last.0, accepted });
    }
    let survivors = survey(&others);
    for other in &survivors {
        compare(dir, log, other, accept_loss.is_some())?;
    }
    let known = log.membership.members.get(&id).map(|member| member.address.clone());
    let address = address.or(known).ok_or_else(|| {
        unusable(format!("node {id} is no member of its cluster any more, so its address must be given"))
    })?;

    let store = SledStore::open(dir, options(id))?;
    // The survey read a copy, before this call held the lock.
    let recovered = store.recover(boot::GROUP)?;
    let last = Position(recovered.last_index, recovered.term_at(recovered.last_index).unwrap_or_default());
    if last != log.last {
        return Err(unusable(format!("its log ended at {} a moment ago, and now it ends at {last}", log.last)));
    }
    let audit = Audit {
        who,
        when: seconds(when),
        why: RecoveredBecause::LostMajority,
        may_be_lost: may_be_lost(log, &survivors),
        index: last.0 + 1,
        cluster: log.cluster,
        members: log.membership.members.clone(),
    };
    let new_cluster = NewCluster { last, term: recovered.hard_state.term, address, when, audit };
    let recovered_node = new_cluster.write(store, None)?;
    Ok(RecoveredNode { dir: dir.to_owned(), ..recovered_node })
}

/// Whether a directory may be taken although there is this other one.
fn compare(dir: &Path, log: &SurvivingLog, other: &Survivor, accepted: bool) -> Result<(), RecoveryError> {
    let (dir, at) = (dir.to_owned(), log.last);
    match &other.log {
        Some(theirs) if theirs.cluster != log.cluster => Err(RecoveryError::OtherCluster {
            dir,
            ours: log.cluster,
            other: other.dir.clone(),
            theirs: theirs.cluster,
        }),
        Some(theirs) if theirs.last > at && !accepted => {
            Err(RecoveryError::LessAdvanced { dir, at, other: other.dir.clone(), other_at: theirs.last })
        }
        // A damaged one may have held more than can be read of it.
        _ if !other.problems.is_empty() && !accepted => {
            Err(RecoveryError::Unreadable { dir, at, other: other.dir.clone(), cause: other.problems.join("; ") })
        }
        _ => Ok(()),
    }
}

/// The sentence for the record.
fn may_be_lost(log: &SurvivingLog, others: &[Survivor]) -> String {
    let mut sentence =
        format!("what was acknowledged in cluster {} and is not in the log up to {}", log.cluster, log.last);
    for other in others {
        match &other.log {
            Some(theirs) if theirs.last > log.last => {
                sentence += &format!(", of which {} holds more, up to {}", other.dir.display(), theirs.last);
            }
            Some(_) if other.problems.is_empty() => {}
            _ => sentence += &format!("; {} could not be read", other.dir.display()),
        }
    }
    sentence
}
