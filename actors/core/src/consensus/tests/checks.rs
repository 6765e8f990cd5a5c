//! What may never happen, checked at every effect of every core.

use std::collections::{BTreeMap, BTreeSet};

use actorum_machine::{ids::NodeId, machine, status::Role};
use bytes::Bytes;

use super::cluster::Node;
use crate::{
    consensus::Effects,
    entry::{CommandKind, Stamped},
    message::RequestOutcome,
    wire::{Entry, EntryKind, MessageKind},
};

/// Where a reply handle came in, and the highest index that anybody had been answered by then.
struct Open {
    node: NodeId,
    floor: u64,
}

#[derive(Default)]
pub(super) struct Checks {
    leaders: BTreeMap<u64, NodeId>,
    /// Every entry handed to an applier anywhere.
    committed: BTreeMap<u64, Entry>,
    /// Every entry that left a node or became durable, by index and term.
    seen: BTreeMap<(u64, u64), Bytes>,
    known_commit: BTreeMap<NodeId, u64>,
    /// The voters of each configuration that was ever in force on some node.
    voters: Vec<BTreeSet<NodeId>>,
    open: BTreeMap<String, Open>,
    answered_up_to: u64,
    pub applied: BTreeMap<String, u64>,
    pub rejected: BTreeSet<String>,
    pub unknown: BTreeSet<String>,
    pub served: usize,
    /// Bytes of entries in one message, on their way to one peer, and of one entry, on every node.
    pub bounds: (usize, usize, usize),
}

impl Checks {
    pub(super) fn asked(&mut self, node: NodeId, reply: &str) {
        let open = Open { node, floor: self.answered_up_to };
        assert!(self.open.insert(reply.to_owned(), open).is_none(), "reply {reply} is used twice");
    }

    /// Clients of a node that died hear nothing more of it.
    pub(super) fn crashed(&mut self, node: NodeId) {
        let gone: Vec<_> = self.open.iter().filter(|(_, open)| open.node == node).map(|(t, _)| t.clone()).collect();
        for reply in gone {
            self.open.remove(&reply);
            self.unknown.insert(reply);
        }
        self.known_commit.remove(&node);
    }

    pub(super) fn open(&self) -> Vec<&String> {
        self.open.keys().collect()
    }

    pub(super) fn answered(&mut self, reply: &str, answer: Option<&RequestOutcome>) {
        let Some(_) = self.open.remove(reply) else { panic!("{reply} is answered twice: {answer:?}") };
        match answer {
            None => self.served += 1,
            Some(RequestOutcome::Applied { index, term, .. }) => {
                let entry = self.committed.get(index).expect("an answer speaks of an entry that nobody committed");
                assert_eq!(entry.term, *term, "{reply} is answered with another term than its entry has");
                assert_eq!(command(entry).as_deref(), Some(reply), "{reply} is answered for another's entry");
                self.answered_up_to = self.answered_up_to.max(*index);
                self.applied.insert(reply.to_owned(), *index);
            }
            Some(RequestOutcome::Changed { .. }) => {
                self.applied.insert(reply.to_owned(), 0);
            }
            Some(RequestOutcome::Refused(_) | RequestOutcome::Late { .. } | RequestOutcome::Busy(_)) => {
                self.rejected.insert(reply.to_owned());
            }
            Some(RequestOutcome::Unknown { .. }) => drop(self.unknown.insert(reply.to_owned())),
        }
    }

    /// Linearizability: a read sees all that was answered before it began.
    pub(super) fn read_at(&self, reply: &str, index: u64) {
        let floor = self.open.get(reply).expect("a read is confirmed after its end").floor;
        assert!(index >= floor, "{reply} may be served at {index}, but {floor} had been answered before it began");
    }

    pub(super) fn effects(&mut self, node: &Node, effects: &Effects<String>) {
        let id = node.id;
        if let Some(changed) = effects.leader.filter(|changed| changed.role == Role::Leader) {
            let leader = *self.leaders.entry(changed.term).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", changed.term);
        }
        for committed in &effects.apply {
            let entry = &committed.entry;
            let known = self.committed.entry(entry.index).or_insert_with(|| entry.clone());
            assert_eq!(known, entry, "n{id} commits another entry at {}", entry.index);
        }
        let image = node.disk.durable.lock().unwrap();
        for (to, m) in &effects.transmit {
            let bytes: usize = m.entries.iter().map(Entry::size).sum();
            let bound = self.bounds.0;
            assert!(m.entries.len() <= 1 || bytes <= bound, "n{id} -> n{to} {m}: {bytes} bytes in one message");
            let durable = node.disk.term;
            use MessageKind::*;
            if image.snapshots.is_empty() {
                assert!(node.waits, "n{id} speaks before its genesis is durable: {m}");
                let votes = matches!(m.kind, Vote | PreVote) || (m.kind == VoteResponse && !m.reject);
                assert!(!votes, "n{id} takes part in an election before it is formed: {m}");
            }
            if !matches!(m.kind, PreVote | PreVoteResponse) {
                assert!(m.term <= durable, "n{id} says `{m}` with only term {durable} on disk");
            }
            // A later term on the disk keeps a vote as well: this node never votes in that term again.
            let kept = |whom: NodeId| durable > m.term || node.disk.votes.contains(&(m.term, whom));
            match m.kind {
                Vote => assert!(kept(id), "n{id} -> n{to} {m}: its own vote is not durable"),
                VoteResponse if !m.reject => assert!(kept(*to), "n{id} -> n{to} {m}: the vote is not durable"),
                AppendResponse if !m.reject && m.index > 0 => {
                    let held = node.disk.ever.range((m.index, 0)..=(m.index, m.term)).next().is_some();
                    assert!(held, "n{id} -> n{to} {m}: the entry is not durable");
                }
                _ => {}
            }
            for entry in &m.entries {
                same(&mut self.seen, entry);
            }
        }
    }

    /// What is on its way to one peer is at most the window, and the one message that was sent while there was room.
    pub(super) fn windows(&self, id: NodeId, inflight: &BTreeMap<NodeId, usize>) {
        let (message, window, entry) = self.bounds;
        for (peer, bytes) in inflight {
            let largest = message.max(entry + 24);
            assert!(*bytes < window + largest, "n{id} -> n{peer}: {bytes} bytes on their way, the window is {window}");
        }
    }

    pub(super) fn durable(&mut self, node: &Node) {
        for entry in node.disk.durable.lock().unwrap().entries.values() {
            same(&mut self.seen, entry);
        }
    }

    /// A commit index may rise only over what a majority has on its disks.
    pub(super) fn commit(&mut self, nodes: &BTreeMap<NodeId, Node>, id: NodeId) {
        let Some(core) = &nodes[&id].core else { return };
        let voters = core.configuration().voters;
        if !voters.is_empty() && !self.voters.contains(&voters) {
            self.voters.push(voters);
        }
        let (commit, term) = core.commit_point();
        if commit <= self.known_commit.get(&id).copied().unwrap_or(1) {
            return;
        }
        self.known_commit.insert(id, commit);
        let images: BTreeMap<_, _> = nodes.iter().map(|(id, node)| (*id, node.disk.image())).collect();
        let has = |id: &&NodeId| images.get(*id).is_some_and(|image| image.covers(commit, term));
        // Counted here, and not by `Configuration`, which the core counts by.
        let majority = |voters: &BTreeSet<NodeId>| voters.iter().filter(has).count() * 2 > voters.len();
        assert!(self.voters.iter().any(majority), "n{id} commits {commit}@{term}, which no majority has on disk");
    }

    /// After the end, with everything healed and applied.
    pub(super) fn at_the_end(&self) {
        let mut count = BTreeMap::<String, usize>::new();
        self.committed.values().filter_map(command).for_each(|command| *count.entry(command).or_default() += 1);
        for (reply, times) in &count {
            assert_eq!(*times, 1, "{reply} is in the log {times} times");
            assert!(!self.rejected.contains(reply), "{reply} was rejected and is in the log");
        }
        for (reply, index) in self.applied.iter().filter(|(_, index)| **index > 0) {
            let entry = self.committed.get(index).expect("an answered entry is lost");
            assert_eq!(command(entry).as_ref(), Some(reply), "an answered entry was replaced");
        }
        assert!(self.open.is_empty(), "these were never answered: {:?}", self.open());
    }
}

fn same(seen: &mut BTreeMap<(u64, u64), Bytes>, entry: &Entry) {
    let known = seen.entry((entry.index, entry.term)).or_insert_with(|| entry.data.clone());
    assert_eq!(known, &entry.data, "two different entries {}@{}", entry.index, entry.term);
}

/// What a committed entry says, if it is a command.
fn command(entry: &Entry) -> Option<String> {
    if entry.kind == EntryKind::ConfChange || entry.data.is_empty() {
        return None;
    }
    let stamped = Stamped::parse(&entry.data).unwrap();
    (stamped.kind == CommandKind::Command).then(|| machine::decode(stamped.payload).unwrap())
}
