//! Whole directories that are not what they were: put back from an older copy, run beside the original, another node's,
//! or empty.
//!
//! A copy knows nothing of what was promised after it was taken. So it must meet nodes that know of that, and all of
//! those must refuse it. The nodes that do not know are down meanwhile, since the scheme cannot detect a copy that
//! meets only them.

use std::time::Duration;

use actorum::{Bootstrap, seams};
use actorum_core::lives::{Content, LifeKey, Record};
use actorum_machine::{
    ids::{GroupId, Incarnation, NodeId},
    machine::StateMachine,
};

use super::{FaultTask, Hold, State};
use crate::{
    disk::{Backup, NodeDisk},
    fleet::{Node, Program},
    machine::Watched,
    twin::Twin,
    world::Durable,
};

/// A copy, and what can be told by it.
struct Copied {
    backup: Backup,
    lives: Content,
    /// Its term and the end of its log.
    ends: (u64, u64),
    /// Whether it was taken while its node ran: then it has the nonce of that life.
    while_it_ran: bool,
}

impl Copied {
    /// Whether a node with this record must see that the copy is a copy. It is decided here by other code than the
    /// product's.
    fn is_known_to(&self, record: &Record) -> bool {
        if record.incarnation != self.lives.incarnation {
            return false;
        }
        let newest = self.lives.own.last().map(|life| life.key());
        match self.lives.own.iter().any(|life| life.key() == record.life.key()) {
            false => true,
            true => newest == Some(record.life.key()) && record.term == self.ends.0 && record.index > self.ends.1,
        }
    }
}

/// A copy asks for votes, and is told who it is: after the longest election timeout by the slowest clock, and a few
/// more.
const NAMED_WITHIN: Duration = Duration::from_secs(6);

/// No node joins or leaves while this is held.
struct NoChanges(std::rc::Rc<std::cell::RefCell<u32>>);

impl Drop for NoChanges {
    fn drop(&mut self) {
        *self.0.borrow_mut() -= 2;
    }
}

impl<S: StateMachine> FaultTask<S> {
    fn no_changes(&self) -> Option<NoChanges> {
        if *self.changing.borrow() > 0 {
            return None;
        }
        *self.changing.borrow_mut() += 2;
        Some(NoChanges(self.changing.clone()))
    }

    fn copy_of(&self, node: NodeId, while_it_ran: bool) -> Option<Copied> {
        let copied = self.fleet.node(node, |node| {
            let (term, _, index) = node.disk.state();
            Some(Copied { backup: node.disk.backup(), lives: node.disk.kept()?, ends: (term, index), while_it_ran })
        });
        copied.flatten()
    }

    /// The other nodes: who must know that this is a copy, and who may not.
    fn who_knows(&self, of: NodeId, copied: &Copied) -> (Vec<(NodeId, Incarnation)>, Vec<NodeId>) {
        self.fleet.nodes(|nodes| {
            let others = nodes.iter().filter(|(id, node)| **id != of && node.state != State::Gone);
            let knows = |node: &Node<S>| {
                // An index counts once it is durable there, for that is done later; a life counts once it was met.
                let record = match copied.while_it_ran {
                    true => node.disk.kept().and_then(|kept| kept.peers.get(&of).copied()),
                    false => node.disk.lives().and_then(|lives| lives.record_of(of)),
                };
                node.program != Program::First && record.is_some_and(|record| copied.is_known_to(&record))
            };
            let (knowing, others): (Vec<_>, Vec<_>) = others.partition(|(_, node)| knows(node));
            let directory = |(id, node): (&NodeId, &Node<S>)| Some((*id, node.disk.kept()?.incarnation));
            (knowing.into_iter().filter_map(directory).collect(), others.iter().map(|(id, _)| **id).collect())
        })
    }

    /// A copy of a node's directory, made before its last opening or while it ran, and the node runs on for a while.
    async fn older_copy(&mut self, node: NodeId) -> Option<Copied> {
        let while_it_ran = self.rng.below(2) == 0;
        if !while_it_ran {
            self.fleet.kill(node);
        }
        let copied = self.copy_of(node, while_it_ran)?;
        if !while_it_ran {
            self.a_while(20, 300).await;
            if !self.come_back(node).await {
                return None;
            }
        }
        // An acknowledged index is on record a second later at the earliest; a life before anything of it counts, so
        // that nothing else has to be written for it to be there.
        let (at_least, at_most) = if while_it_ran { (1500, 4000) } else { (50, 2000) };
        self.a_while(at_least, at_most).await;
        (self.fleet.node(node, |node| node.state) == Some(State::Running)).then_some(copied)
    }

    /// A whole directory is put back from an older copy, and brought back as it was.
    pub(super) async fn rolled_back(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let node = hold.0;
        let voters = self.fleet.raft(node).map_or(0, |(raft, _)| raft.status().membership.voters().len());
        if voters < 2 || self.fleet.node(node, |node| node.program).is_none_or(|program| program == Program::First) {
            return;
        }
        let Some(copied) = self.older_copy(node).await else { return };
        let Some(_nobody_joins) = self.no_changes() else { return };
        self.fleet.kill(node);
        let (knowing, others) = self.who_knows(node, &copied);
        // Those that do not know are down until it is over; of those that do, some are started again, so that what they
        // know is what is durable.
        let away: Vec<Hold> = others.iter().filter_map(|id| self.hold(*id)).collect();
        // Nothing else befalls those that know: a directory that is wiped and brought back has forgotten.
        let near: Vec<Hold> = knowing.iter().filter_map(|(id, _)| self.hold(*id)).collect();
        if knowing.is_empty() || away.len() < others.len() || near.len() < knowing.len() {
            self.come_back(node).await;
            return;
        }
        let Some(newest) = self.fleet.node(node, |node| node.disk.backup()) else { return };
        away.iter().for_each(|Hold(id, _)| self.fleet.kill(*id));
        for (id, _) in &knowing {
            if self.rng.below(2) == 0 {
                self.fleet.kill(*id);
                self.a_while(10, 200).await;
                self.come_back(*id).await;
            }
        }
        self.older(node, true);
        self.fleet.node(node, |node| node.disk.put_back(copied.backup.clone()));
        if self.fleet.start(node).await.is_ok() {
            self.disk(if copied.while_it_ran { "copy of a running node" } else { "rolled-back directory" }, node);
            self.may_stop(node);
            self.until_down(std::slice::from_ref(&hold)).await;
            let shown = self.fleet.node(node, |node| node.disk.lives()).flatten();
            let life = shown.and_then(|lives| lives.shown().last().map(|life| life.key()));
            self.is_let_in_by_none(node, life, &knowing);
        }
        self.fleet.kill(node);
        self.fleet.node(node, |node| {
            if node.state == State::Down {
                node.disk.put_back(newest);
            }
        });
        self.older(node, false);
        self.come_back(node).await;
        for Hold(id, _) in &away {
            self.come_back(*id).await;
        }
    }

    /// A copy runs beside its node. Those that would not know it for one do not hear it.
    pub(super) async fn twin(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let node = hold.0;
        let votes = self.fleet.raft(node).map(|(raft, _)| raft.status().membership.voters()).unwrap_or_default();
        if votes.len() < 2
            || !votes.contains(&node)
            || self.fleet.node(node, |node| node.program).is_none_or(|program| program == Program::First)
        {
            return;
        }
        let Some(copied) = self.older_copy(node).await else { return };
        let Some(_nobody_joins) = self.no_changes() else { return };
        let (knowing, others) = self.who_knows(node, &copied);
        let near: Vec<Hold> = knowing.iter().filter_map(|(id, _)| self.hold(*id)).collect();
        let runs = |id: &NodeId| self.fleet.node(*id, |node| node.state) == Some(State::Running);
        if near.len() < knowing.len() || !knowing.iter().any(|(id, _)| runs(id)) {
            return;
        }
        let twin = match Twin::start(&self.fleet, node, copied.backup, self.rng.fork("twin", 0), &others).await {
            Ok(twin) => twin,
            Err(error) => {
                let detail = format!("a copy of n{node} does not start: {error}");
                return self.world().broken("a copy of a directory is one", detail);
            }
        };
        self.disk(if copied.while_it_ran { "twin of a running node" } else { "twin with an older opening" }, node);
        // Who has no vote asks nobody for one, and meets only who seeks it.
        if !twin.votes(node) {
            return;
        }
        let life = twin.life();
        let ended = twin.ends_within(NAMED_WITHIN).await;
        self.is_let_in_by_none(node, life, &knowing);
        // One whose configuration is older than its node's may meet nobody in so long: then nothing was shown, and
        // nothing broken.
        let Some(ended) = ended else {
            return self.world().tell(|| format!("the twin of n{node} has met nobody"));
        };
        if !ended.contains("is an older copy, or runs twice") {
            let detail = format!("n{node} runs twice, and its copy has ended of {ended}");
            return self.world().broken("a directory that runs twice is named", detail);
        }
        self.disk("twin that was found out", node);
        self.world().tell(|| format!("the twin of n{node} has ended: {ended}"));
    }

    /// Nobody who must know has put the copy's life on record, which is what letting it in begins with. Who lost its
    /// directory meanwhile knows nothing any more.
    fn is_let_in_by_none(&self, copy: NodeId, life: Option<LifeKey>, knowing: &[(NodeId, Incarnation)]) {
        for (id, directory) in knowing {
            let knows = |node: &Node<S>| {
                let same = node.disk.kept()?.incarnation == *directory;
                node.disk.lives().filter(|_| same)?.record_of(copy)
            };
            let record = self.fleet.node(*id, |node| knows(node)).flatten();
            if record.map(|record| record.life.key()) == life && life.is_some() {
                let detail = format!("n{id} lets in n{copy}, whose directory is older than it has on record");
                self.world().broken("an older directory is let in by none who met the newer", detail);
            }
        }
    }

    /// The whole directory of another node: it is refused with a specific error.
    pub(super) async fn swapped_directory(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let others: Vec<NodeId> = self.fleet.nodes(|nodes| nodes.keys().copied().filter(|id| *id != hold.0).collect());
        let Some(other) = self.rng.pick(&others).copied() else { return };
        // One that is swapped itself may be this node's own.
        if self.world().facts(|facts| facts.nodes.get(&other).is_some_and(|facts| facts.tampered)) {
            return;
        }
        // One that is empty belongs to nobody.
        let theirs = |node: &mut Node<S>| node.disk.kept().map(|_| node.disk.backup());
        let Some(theirs) = self.fleet.node(other, theirs).flatten() else { return };
        self.fleet.kill(hold.0);
        self.tampered(hold.0, true);
        let mine = self.fleet.node(hold.0, |node| {
            let mine = node.disk.backup();
            node.disk.put_back(theirs);
            mine
        });
        self.disk("swapped directory", hold.0);
        self.a_while(20, 300).await;
        if self.opens(hold.0) {
            let detail = format!("n{} opens the directory of n{other}", hold.0);
            self.world().broken("another node's directory is refused", detail);
        }
        self.fleet.node(hold.0, |node| node.disk.put_back(mine.expect("the node is there")));
        self.tampered(hold.0, false);
        self.come_back(hold.0).await;
    }

    /// Whether what a node runs with is a copy that has forgotten what it promised.
    fn older(&self, node: NodeId, older: bool) {
        self.tampered(node, older);
        self.world().facts(|facts| {
            if let Some(facts) = facts.nodes.get_mut(&node) {
                facts.older = older;
            }
        });
    }

    pub(super) async fn old_copy(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        let old = self.fleet.node(hold.0, |node| node.disk.image());
        self.a_while(500, 3000).await;
        if self.fleet.node(hold.0, |node| node.state) != Some(State::Running) {
            return;
        }
        self.fleet.kill(hold.0);
        let Some(old) = old else { return };
        self.tampered(hold.0, true);
        let (newest, now) = self
            .fleet
            .node(hold.0, |node| (node.disk.backup(), promised(&node.disk)))
            .expect("a node of this fleet stays");
        self.fleet.node(hold.0, |node| node.disk.swap_for(old));
        self.disk("older copy", hold.0);
        // Within one term and without a vote between, a little less of the log may go unnoticed (see the watermark).
        let found = self.fleet.try_open(hold.0).ok().and_then(|store| store.recover(GroupId::FIRST).ok());
        if let Some(state) = found.map(|found| found.hard_state)
            && (state.term < now.0 || state.term == now.0 && state.vote != now.1)
        {
            let (node, term, vote) = (hold.0, state.term, state.vote);
            self.world().broken(
                "an older copy is refused",
                format!("n{node} opens a store with term {term}, vote {vote} after it had promised {now:?}"),
            );
        }
        self.fleet.node(hold.0, |node| node.disk.bring_back(newest));
        self.tampered(hold.0, false);
        self.come_back(hold.0).await;
    }

    pub(super) async fn wiped_disk(&mut self) {
        let Some(hold) = self.hold_running() else { return };
        // Before the cluster has written down who its members are, a wiped founder is a founder; and one that founded
        // alone has nobody to ask.
        if !self.is_recorded(hold.0) || (self.founders, hold.0) == (1, 1) {
            return;
        }
        self.fleet.kill(hold.0);
        self.tampered(hold.0, true);
        let healthy = self.fleet.node(hold.0, |node| {
            let healthy = node.disk.backup();
            node.disk.wipe();
            (healthy, node.bootstrap.clone())
        });
        let (healthy, bootstrap) = healthy.unzip();
        // A founder is told by the others that it was replaced, and stops. One that waits to be added asks nobody: it
        // meets the leader.
        if self.rng.below(4) > 0 {
            self.fleet.node(hold.0, |node| node.bootstrap = Bootstrap::Wait);
        }
        self.disk("wiped disk", hold.0);
        self.a_while(20, 300).await;
        // It runs as a stranger for a while; it must not vote.
        if self.fleet.node(hold.0, |node| node.state) == Some(State::Down) {
            let _ = self.fleet.start(hold.0).await;
        }
        self.may_stop(hold.0);
        self.a_while(100, 1000).await;
        // Mostly somebody asks it for its vote meanwhile, and it is told to ask for theirs. It has no log to do so
        // with.
        if self.rng.below(3) > 0 {
            self.campaign();
        }
        self.a_while(500, 2000).await;
        if let Some((raft, _)) = self.fleet.raft(hold.0)
            && seams::campaign(&raft)
        {
            self.a_while(10, 100).await;
        }
        self.fleet.kill(hold.0);
        self.fleet.node(hold.0, |node| {
            node.bootstrap = bootstrap.expect("the node is there");
            if node.state == State::Down {
                node.disk.bring_back(healthy.expect("the node is there"));
            }
        });
        self.tampered(hold.0, false);
        self.come_back(hold.0).await;
    }

    fn is_recorded(&self, id: NodeId) -> bool {
        let member = |raft: &actorum::Raft<Watched<S>>| {
            raft.status().membership.members.get(&id).is_some_and(|member| member.incarnation.is_some())
        };
        let mut all = self.fleet.in_state(State::Running).into_iter().filter_map(|id| self.fleet.raft(id));
        all.all(|(raft, _)| member(&raft))
    }
}

/// Term and vote, as they are durable.
fn promised(disk: &NodeDisk) -> (u64, NodeId) {
    let (term, vote, _) = disk.state();
    (term, vote)
}
