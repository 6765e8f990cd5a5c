//! Compares the hashes of nodes at the same marks: which nodes differ, since when, and with which a majority agrees.
//!
//! Pure. The value of each voter counts once: a node stops only if a majority of the *voters* has one value and the
//! node has another. If no value has a majority nobody can tell who is right, so no node stops, and every node that
//! sees the difference says so.
//!
//! Bound: [`MAX_MARKS`] of this node and of each member.

use std::collections::{BTreeMap, BTreeSet};

use actorum_machine::{configuration::Configuration, ids::NodeId};

use crate::{
    marks::{HashValue, MAX_MARKS, Mark, ResponseHash, StateHash},
    planted::{self, Planted},
};

/// Whether a majority agrees with this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A majority of the voters has this node's value; another node differs.
    Majority,
    /// A majority of the voters has another value.
    Minority,
    /// No value has a majority among those reported.
    Undecided,
}

/// Nodes with different values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The first mark, among those that are remembered, at which they differ.
    pub index: u64,
    /// The last mark before it at which this node and another one were equal; zero if none is remembered. The
    /// difference came behind it.
    pub equal_until: u64,
    /// The values of this node and of those that are compared with it at that mark, as far as they were reported.
    pub values: BTreeMap<NodeId, HashValue>,
    /// Whether a majority agrees with this node.
    pub side: Side,
}

/// The marks of this node and of the other members.
#[derive(Debug)]
pub struct Comparison {
    id: NodeId,
    own: BTreeMap<u64, Mark>,
    others: BTreeMap<NodeId, BTreeMap<u64, Mark>>,
}

/// What a value must share with another one to be compared with it: the beginning, and the machine's version.
type Comparable = ((u64, u32), HashValue);

fn state(mark: &Mark) -> Option<Comparable> {
    mark.state.map(|StateHash { since, value }| ((since, 0), value))
}

fn responses(mark: &Mark) -> Option<Comparable> {
    mark.responses.map(|ResponseHash { since, version, value }| ((since, version), value))
}

fn keep_newest(marks: &mut BTreeMap<u64, Mark>) {
    while marks.len() > MAX_MARKS {
        marks.pop_first();
    }
}

impl Comparison {
    /// For this node, which applied these marks while it started.
    pub fn new(id: NodeId, marks: impl IntoIterator<Item = Mark>) -> Comparison {
        let mut comparison = Comparison { id, own: BTreeMap::new(), others: BTreeMap::new() };
        marks.into_iter().for_each(|mark| comparison.applied(mark));
        comparison
    }

    /// This node applied a mark.
    pub fn applied(&mut self, mark: Mark) {
        self.own.insert(mark.index, mark);
        keep_newest(&mut self.own);
    }

    /// This node's state was replaced: its earlier values are no longer of its own state.
    pub fn replaced(&mut self) {
        self.own.clear();
    }

    /// A member reports its values. The latest report for a mark counts.
    pub fn reported(&mut self, peer: NodeId, marks: &[Mark]) {
        let known = self.others.entry(peer).or_default();
        known.extend(marks.iter().take(MAX_MARKS).map(|mark| (mark.index, *mark)));
        keep_newest(known);
    }

    /// Only these are members now.
    pub fn members(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.others.retain(|id, _| is_member(*id));
    }

    /// The values of this node, oldest first.
    pub fn own(&self) -> impl Iterator<Item = &Mark> {
        self.own.values()
    }

    /// The newest mark of this node.
    pub fn newest(&self) -> Option<&Mark> {
        self.own.last_key_value().map(|(_, mark)| mark)
    }

    /// Whether that member has reported this node's newest mark, or a later one.
    pub fn has_heard_from(&self, peer: NodeId) -> bool {
        let newest = self.newest().map_or(0, |mark| mark.index);
        self.others.get(&peer).and_then(|marks| marks.last_key_value()).is_some_and(|(index, _)| *index >= newest)
    }

    /// Whether the next mark must let all hashes begin anew: a node without a value, or with one that began elsewhere,
    /// could never be compared. Never while nodes differ, for that would be forgotten.
    pub fn must_restart(&self, configuration: &Configuration) -> bool {
        if self.state(configuration).is_some() {
            return false;
        }
        let since = |mark: &Mark| mark.state.map(|hash| hash.since);
        let Some(newest) = self.newest() else { return false };
        let theirs = self.others.values().filter_map(|marks| marks.get(&newest.index));
        newest.state.is_none() || theirs.into_iter().any(|mark| since(mark) != since(newest))
    }

    /// Which nodes differ in what they applied. The hash runs on from mark to mark: nodes that are equal at one were
    /// equal before it, or their state was replaced.
    pub fn state(&self, configuration: &Configuration) -> Option<Divergence> {
        self.compare(configuration, state, true)
    }

    /// Whether the difference still holds, although its marks are forgotten: the node that differed is still a member,
    /// and has not reported an equal value since.
    pub fn stands(&self, found: &Divergence, is_member: impl Fn(NodeId) -> bool) -> bool {
        let Some(mine) = found.values.get(&self.id) else { return false };
        let mut differed = found.values.iter().filter(|(id, value)| *value != mine && is_member(**id));
        differed.any(|(id, _)| {
            let reported = self.others.get(id);
            let equal = |(index, mark): (&u64, &Mark)| {
                let theirs = reported.and_then(|marks| marks.get(index)).and_then(state);
                *index >= found.index && theirs.is_some() && theirs == state(mark)
            };
            !self.own.iter().any(equal)
        })
    }

    /// Which nodes differ in what their state machines responded.
    pub fn responses(&self, configuration: &Configuration) -> Option<Divergence> {
        self.compare(configuration, responses, false)
    }

    fn compare(
        &self,
        configuration: &Configuration,
        of: fn(&Mark) -> Option<Comparable>,
        runs_on: bool,
    ) -> Option<Divergence> {
        if planted::is(Planted::MarksNotCompared) {
            return None;
        }
        let mut found: Option<Divergence> = None;
        let mut equal = Vec::new();
        for (index, mark) in self.own.iter().rev() {
            let Some((beginning, mine)) = of(mark) else { continue };
            let theirs = self.others.iter().filter_map(|(id, marks)| {
                let (theirs, value) = of(marks.get(index)?)?;
                (theirs == beginning).then_some((*id, value))
            });
            let values: BTreeMap<NodeId, HashValue> =
                theirs.filter(|(id, _)| !equal.contains(id)).chain([(self.id, mine)]).collect();
            let others = values.iter().filter(|(id, _)| **id != self.id);
            let same: Vec<NodeId> = others.filter(|(_, value)| **value == mine).map(|(id, _)| *id).collect();
            if values.len() > same.len() + 1 {
                let side = self.side(index, beginning, mine, of, configuration);
                // The newest mark with a majority decides.
                let side =
                    found.as_ref().map(|found| found.side).filter(|side| *side != Side::Undecided).unwrap_or(side);
                found = Some(Divergence { index: *index, equal_until: 0, values, side });
            } else if let Some(found) = found.as_mut().filter(|found| found.equal_until == 0 && !same.is_empty()) {
                found.equal_until = *index;
            }
            if runs_on {
                equal.extend(same);
            }
        }
        found
    }

    fn side(
        &self,
        index: &u64,
        beginning: (u64, u32),
        mine: HashValue,
        of: fn(&Mark) -> Option<Comparable>,
        configuration: &Configuration,
    ) -> Side {
        let voice = |voter: NodeId| {
            let marks = if voter == self.id { Some(&self.own) } else { self.others.get(&voter) };
            let (theirs, value) = of(marks?.get(index)?)?;
            (theirs == beginning).then_some(value)
        };
        let values: BTreeSet<HashValue> = configuration.voting().into_iter().filter_map(voice).collect();
        match values.into_iter().find(|value| configuration.is_quorum(|voter| voice(voter) == Some(*value))) {
            Some(value) if value == mine => Side::Majority,
            Some(_) => Side::Minority,
            None => Side::Undecided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::voting;

    fn mark(index: u64, since: u64, value: u128) -> Mark {
        Mark { index, state: Some(StateHash { since, value: HashValue(value) }), responses: None }
    }

    fn answered(index: u64, since: u64, version: u32, value: u128) -> Mark {
        let responses = Some(ResponseHash { since, version, value: HashValue(value) });
        Mark { index, state: None, responses }
    }

    /// Node 1 with these marks, and what others report.
    fn compared(own: &[Mark], others: &[(NodeId, &[Mark])]) -> Comparison {
        let mut comparison = Comparison::new(1, own.iter().copied());
        others.iter().for_each(|(id, marks)| comparison.reported(*id, marks));
        comparison
    }

    fn side(comparison: &Comparison, voters: &[NodeId]) -> Option<Side> {
        comparison.state(&voting(voters)).map(|found| found.side)
    }

    #[test]
    fn equal_values_are_no_divergence() {
        let all = [mark(10, 1, 7), mark(20, 1, 8)];
        let comparison = compared(&all, &[(2, &all), (3, &all[..1])]);
        assert_eq!(comparison.state(&voting(&[1, 2, 3])), None);
        assert_eq!(comparison.responses(&voting(&[1, 2, 3])), None);
    }

    #[test]
    fn a_majority_of_the_voters_decides() {
        let (mine, other, third) = ([mark(10, 1, 7)], [mark(10, 1, 8)], [mark(10, 1, 9)]);
        let voters = [1, 2, 3];
        assert_eq!(side(&compared(&mine, &[(2, &other), (3, &other)]), &voters), Some(Side::Minority));
        assert_eq!(side(&compared(&mine, &[(2, &mine), (3, &other)]), &voters), Some(Side::Majority));
        assert_eq!(side(&compared(&mine, &[(2, &other), (3, &third)]), &voters), Some(Side::Undecided), "all differ");
        assert_eq!(side(&compared(&mine, &[(2, &other)]), &voters), Some(Side::Undecided), "one against one");
        assert_eq!(side(&compared(&mine, &[(2, &other)]), &[1, 2]), Some(Side::Undecided), "one against one of two");
        let five = [1, 2, 3, 4, 5];
        assert_eq!(side(&compared(&mine, &[(2, &other), (3, &other)]), &five), Some(Side::Undecided), "two of five");
        let three = compared(&mine, &[(2, &other), (3, &other), (4, &other)]);
        assert_eq!(side(&three, &five), Some(Side::Minority), "three of five");
    }

    /// A learner's voice does not count, but a learner that differs stops, too.
    #[test]
    fn learners_have_no_voice() {
        let (mine, other) = ([mark(10, 1, 7)], [mark(10, 1, 8)]);
        let comparison = compared(&mine, &[(2, &other), (3, &other)]);
        assert_eq!(side(&comparison, &[1, 2]), Some(Side::Undecided), "node 3 is a learner");
        assert_eq!(side(&comparison, &[2, 3]), Some(Side::Minority), "node 1 is one");
        assert_eq!(side(&compared(&mine, &[(9, &other)]), &[1]), Some(Side::Majority), "a stranger's voice");
    }

    #[test]
    fn values_of_different_beginnings_are_not_compared() {
        let (mine, other) = ([mark(10, 1, 7)], [mark(10, 5, 8)]);
        let comparison = compared(&mine, &[(2, &other), (3, &other)]);
        assert_eq!(comparison.state(&voting(&[1, 2, 3])), None);
        assert!(comparison.must_restart(&voting(&[1, 2, 3])), "so that they can be");
        assert!(
            !compared(&mine, &[(2, &mine), (3, &[mark(20, 5, 8)])]).must_restart(&voting(&[1, 2, 3])),
            "another mark says nothing"
        );
        let none = Mark { index: 10, state: None, responses: None };
        assert!(compared(&mine, &[(2, &[none])]).must_restart(&voting(&[1, 2, 3])), "a node without a value");
        assert!(compared(&[none], &[]).must_restart(&voting(&[1, 2, 3])));
        assert!(!compared(&[], &[(2, &mine)]).must_restart(&voting(&[1, 2, 3])));
    }

    /// Hashes that begin anew would make nodes that differ equal.
    #[test]
    fn hashes_do_not_begin_anew_while_nodes_differ() {
        let (mine, differs, elsewhere) = ([mark(10, 1, 7)], [mark(10, 1, 8)], [mark(10, 5, 9)]);
        assert!(compared(&mine, &[(3, &elsewhere)]).must_restart(&voting(&[1, 2, 3])));
        assert!(!compared(&mine, &[(2, &differs), (3, &elsewhere)]).must_restart(&voting(&[1, 2, 3])), "undecided");
        let decided = compared(&mine, &[(2, &mine), (3, &differs), (4, &elsewhere)]);
        assert!(!decided.must_restart(&voting(&[1, 2, 3])), "one that differs may be away, and comes back");
    }

    #[test]
    fn the_first_difference_and_the_last_agreement_are_told() {
        let mine = [mark(10, 1, 1), mark(20, 1, 2), mark(30, 1, 3), mark(40, 1, 4)];
        let other = [mark(10, 1, 1), mark(20, 1, 2), mark(30, 1, 33), mark(40, 1, 44)];
        let found = compared(&mine, &[(2, &other), (3, &other)]).state(&voting(&[1, 2, 3])).unwrap();
        assert_eq!((found.index, found.equal_until, found.side), (30, 20, Side::Minority));
        assert_eq!(found.values, [(1, HashValue(3)), (2, HashValue(33)), (3, HashValue(33))].into());
        // The third has reported the later mark only: it is decided there, and told from where it is known.
        let found = compared(&mine, &[(2, &other), (3, &other[3..])]).state(&voting(&[1, 2, 3])).unwrap();
        assert_eq!((found.index, found.equal_until, found.side), (30, 20, Side::Minority));
    }

    /// A member whose state was replaced by a good one is equal again; what it reported before counts no longer.
    #[test]
    fn who_is_equal_again_is_equal() {
        let mine = [mark(10, 1, 1), mark(20, 1, 2)];
        let comparison = compared(&mine, &[(2, &[mark(10, 1, 11), mark(20, 1, 2)]), (3, &mine)]);
        assert_eq!(comparison.state(&voting(&[1, 2, 3])), None);
        let mut comparison = compared(&mine, &[(2, &[mark(10, 1, 11)])]);
        assert!(comparison.state(&voting(&[1, 2, 3])).is_some());
        comparison.members(|id| id != 2);
        assert_eq!(comparison.state(&voting(&[1, 3])), None, "it is no member any more");
        let mut comparison = compared(&mine, &[(2, &[mark(10, 1, 11)])]);
        comparison.replaced();
        assert_eq!(comparison.state(&voting(&[1, 2, 3])), None, "what this node had is not its own any more");
    }

    /// Only so many marks are remembered, and a node that differs may stay away for longer.
    #[test]
    fn what_was_found_stands_until_it_is_equal_again() {
        let (mine, other) = ([mark(10, 1, 1)], [mark(10, 1, 11)]);
        let mut comparison = compared(&mine, &[(2, &other), (3, &mine)]);
        let found = comparison.state(&voting(&[1, 2, 3])).unwrap();
        for n in 0..2 * MAX_MARKS as u64 {
            comparison.applied(mark(20 + n, 1, n.into()));
            comparison.reported(3, &[mark(20 + n, 1, n.into())]);
        }
        assert_eq!(comparison.state(&voting(&[1, 2, 3])), None, "the mark is forgotten");
        assert!(comparison.stands(&found, |_| true));
        assert!(!comparison.stands(&found, |id| id != 2), "it is no member any more");
        let newest = *comparison.newest().unwrap();
        comparison.reported(2, &[newest]);
        assert!(!comparison.stands(&found, |_| true), "it is equal again");
    }

    #[test]
    fn answers_are_compared_interval_by_interval_and_version_by_version() {
        let mine = [answered(10, 5, 1, 1), answered(20, 10, 1, 2)];
        let once = [answered(10, 5, 1, 9), answered(20, 10, 1, 2)];
        let found = compared(&mine, &[(2, &once), (3, &once)]).responses(&voting(&[1, 2, 3])).unwrap();
        assert_eq!((found.index, found.side), (10, Side::Minority), "one wrong answer is not made good by the next");
        let newer = [answered(10, 5, 2, 9), answered(20, 10, 2, 9)];
        assert_eq!(
            compared(&mine, &[(2, &newer), (3, &newer)]).responses(&voting(&[1, 2, 3])),
            None,
            "another version"
        );
        let middle = [answered(10, 7, 1, 9)];
        assert_eq!(
            compared(&mine, &[(2, &middle), (3, &middle)]).responses(&voting(&[1, 2, 3])),
            None,
            "another interval"
        );
        let mut absent = mine[0];
        absent.responses = None;
        assert_eq!(
            compared(&mine, &[(2, &[absent])]).responses(&voting(&[1, 2, 3])),
            None,
            "it did not apply all of it"
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let many: Vec<Mark> = (1..=1000).map(|n| mark(n, 1, n.into())).collect();
        let mut comparison = compared(&many, &[]);
        many.chunks(50).for_each(|marks| comparison.reported(2, marks));
        assert_eq!(comparison.own().count(), MAX_MARKS);
        assert!(comparison.others[&2].len() <= MAX_MARKS);
        assert_eq!(comparison.newest().map(|mark| mark.index), Some(1000));
    }
}
