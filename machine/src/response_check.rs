//! The setting that says what a node does when its state machine responds differently from the others.

use serde::{Deserialize, Serialize};

/// What is done about a state machine that responds differently from those of other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseCheck {
    /// Responses are not hashed.
    Off,
    /// The difference is shown in the status, a metric and the log.
    #[default]
    Report,
    /// A node whose responses differ from those of a majority of the voters stops.
    Stop,
}
