//! What `serve` replicates: a map from text to text, with compare-and-set.
//!
//! Deterministic as the contract of [`StateMachine`] asks: a sorted map, no clock, no random numbers. A command whose
//! expectation fails changes nothing, and its response has the value that was found. The map is persistent: capturing
//! it for a snapshot copies one pointer, however large the map is, and later changes copy only the changed parts.

use actorum::{ApplyContext, StateMachine, serde_snapshot};
use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize};

/// A change of the map. Stored in the log: fields may be added with a default, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Set a key.
    Put {
        /// Which.
        key: String,
        /// To what.
        value: String,
        /// Only if this holds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expect: Option<Expect>,
    },
    /// Remove a key.
    Delete {
        /// Which.
        key: String,
        /// Only if this holds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expect: Option<Expect>,
    },
}

/// What must be found under the key for the command to take effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Expect {
    /// Nothing.
    Absent,
    /// This value.
    Value(String),
}

/// What applying a command answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Response {
    /// It took effect.
    Done {
        /// What was there before.
        previous: Option<String>,
    },
    /// The expectation did not hold; nothing was changed.
    Conflict {
        /// What is there.
        current: Option<String>,
    },
}

/// The map.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Kv(RedBlackTreeMapSync<String, String>);

impl Kv {
    /// The value under a key.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        self.0.get(key).cloned()
    }

    /// The answer if the expected value was not found.
    fn conflict(&self, key: &str, expect: &Option<Expect>) -> Option<Response> {
        let current = self.0.get(key);
        let holds = match expect {
            None => true,
            Some(Expect::Absent) => current.is_none(),
            Some(Expect::Value(value)) => current == Some(value),
        };
        (!holds).then(|| Response::Conflict { current: current.cloned() })
    }
}

impl StateMachine for Kv {
    type Command = Command;
    type Response = Response;

    fn apply(&mut self, _: &ApplyContext, command: &Command) -> Response {
        let (Command::Put { key, expect, .. } | Command::Delete { key, expect }) = command;
        if let Some(conflict) = self.conflict(key, expect) {
            return conflict;
        }
        let previous = self.0.get(key).cloned();
        match command {
            Command::Put { key, value, .. } => self.0.insert_mut(key.clone(), value.clone()),
            Command::Delete { key, .. } => drop(self.0.remove_mut(key)),
        }
        Response::Done { previous }
    }

    serde_snapshot!(clone);
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// A compare-and-set changes the map only when its expectation holds, and says what it found.
    #[test]
    fn expectations() {
        let mut kv = Kv::default();
        let mut apply = |command| kv.apply(&ApplyContext::new(2, 1, SystemTime::UNIX_EPOCH), &command);
        let put = |value: &str, expect| Command::Put { key: "k".into(), value: value.into(), expect };
        let text = |s: &str| Some(s.to_owned());

        assert_eq!(apply(put("a", Some(Expect::Absent))), Response::Done { previous: None });
        assert_eq!(apply(put("b", Some(Expect::Absent))), Response::Conflict { current: text("a") });
        assert_eq!(apply(put("b", Some(Expect::Value("x".into())))), Response::Conflict { current: text("a") });
        assert_eq!(apply(put("b", Some(Expect::Value("a".into())))), Response::Done { previous: text("a") });
        let delete = |expect| Command::Delete { key: "k".into(), expect };
        assert_eq!(apply(delete(Some(Expect::Absent))), Response::Conflict { current: text("b") });
        assert_eq!(apply(delete(None)), Response::Done { previous: text("b") });
        assert_eq!(apply(delete(None)), Response::Done { previous: None });
    }
}
