//! One line in the log when something begins to be wrong with a node, and one when it is over.
//!
//! Of several things that can be wrong in the same way (certificates for peers, and for others) each has its own two
//! lines.
//!
//! A third line comes in between only when it gets worse: a warning that becomes the reason why the node is not ready.
//! Severities are ordered from the worst.
//!
//! What passes within a second (mostly an election) writes no line: a condition is logged once it was found in
//! [`LOOKS`] looks in a row, and logged as over once it was missing in as many.

use std::collections::{BTreeMap, BTreeSet};

use actorum_machine::{
    condition::{Condition, Reason, Severity},
    ids::NodeId,
};

/// So many looks in a row; the system looks ten times a second.
const LOOKS: u32 = 10;

/// The conditions that the log shows.
#[derive(Debug, Default)]
pub(crate) struct ConditionLog(BTreeMap<Key, Seen>);

/// What is wrong, and with which of several.
type Key = (Reason, Option<String>);

#[derive(Debug, Default)]
struct Seen {
    /// The worst severity that the log shows since it began; none if the last line said that it is over, or there was
    /// none.
    logged: Option<Severity>,
    /// How many looks in a row found what the log does not show.
    differs: u32,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Began(Condition),
    Ended(Key),
}

impl ConditionLog {
    /// Another look; writes what has changed for long enough.
    pub(crate) fn look(&mut self, node: NodeId, found: Vec<Condition>) {
        for line in self.lines(found) {
            match line {
                Line::Began(Condition { reason, severity: Severity::Unready, message, .. }) => {
                    tracing::warn!(node, condition = %reason, "not ready: {message}");
                }
                Line::Began(Condition { reason, message, .. }) => {
                    tracing::warn!(node, condition = %reason, "{message}")
                }
                Line::Ended((reason, None)) => tracing::info!(node, condition = %reason, "{reason} is over"),
                Line::Ended((reason, Some(subject))) => {
                    tracing::info!(node, condition = %reason, "{reason} is over for {subject}");
                }
            }
        }
    }

    fn lines(&mut self, found: Vec<Condition>) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut found: BTreeMap<Key, Condition> =
            found.into_iter().map(|c| ((c.reason, c.subject.clone()), c)).collect();
        let keys: BTreeSet<Key> = self.0.keys().chain(found.keys()).cloned().collect();
        for key in keys {
            let now = found.remove(&key);
            let seen = self.0.entry(key.clone()).or_default();
            // No line is written when a condition gets better without being over, or gets as bad as it was before.
            let shown = match &now {
                Some(condition) => seen.logged.is_some_and(|worst| worst <= condition.severity),
                None => seen.logged.is_none(),
            };
            seen.differs = if shown { 0 } else { seen.differs + 1 };
            if seen.differs < LOOKS {
                continue;
            }
            seen.differs = 0;
            seen.logged = now.as_ref().map(|condition| condition.severity);
            lines.push(now.map_or(Line::Ended(key), Line::Began));
        }
        self.0.retain(|_, seen| seen.logged.is_some() || seen.differs > 0);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(severity: Severity) -> Condition {
        Condition { reason: Reason::LowSpace, severity, subject: None, message: "little room".into() }
    }

    #[test]
    fn one_line_per_transition_and_none_for_what_passes() {
        let mut log = ConditionLog::default();
        let mut looks =
            |times: u32, found: &[Condition]| (0..times).flat_map(|_| log.lines(found.to_vec())).collect::<Vec<_>>();
        let (warning, unready) = (condition(Severity::Warning), condition(Severity::Unready));
        assert_eq!(looks(LOOKS - 1, std::slice::from_ref(&warning)), []);
        assert_eq!(looks(1, &[]), [], "it has passed");
        assert_eq!(looks(5 * LOOKS, std::slice::from_ref(&warning)), [Line::Began(warning.clone())]);
        assert_eq!(looks(1, &[]), [], "it flickers");
        assert_eq!(looks(5 * LOOKS, std::slice::from_ref(&unready)), [Line::Began(unready.clone())], "it became worse");
        assert_eq!(looks(5 * LOOKS, std::slice::from_ref(&warning)), [], "it became better");
        assert_eq!(looks(5 * LOOKS, &[unready]), [], "it is as bad as it was");
        assert_eq!(looks(5 * LOOKS, &[]), [Line::Ended((Reason::LowSpace, None))]);
    }

    /// A second one that comes while the first is there is no change of the first.
    #[test]
    fn each_subject_has_its_own_lines() {
        let mut log = ConditionLog::default();
        let mut looks = |found: &[&Condition]| {
            let found: Vec<Condition> = found.iter().copied().cloned().collect();
            (0..2 * LOOKS).flat_map(|_| log.lines(found.clone())).collect::<Vec<_>>()
        };
        let of = |file: &str| Condition { subject: Some(file.into()), ..condition(Severity::Warning) };
        let (first, second) = (of("a"), of("b"));
        assert_eq!(looks(&[&first]), [Line::Began(first.clone())]);
        assert_eq!(looks(&[&first, &second]), [Line::Began(second.clone())]);
        assert_eq!(looks(&[&second]), [Line::Ended((Reason::LowSpace, first.subject.clone()))]);
        assert_eq!(looks(&[]), [Line::Ended((Reason::LowSpace, second.subject.clone()))]);
    }
}
