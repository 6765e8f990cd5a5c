//! `actorum activate URL`: activates what every member understands.

use std::time::Duration;

use serde_json::Value;

use crate::{
    Failure,
    backup::{base, refused},
    client::Client,
    output::say,
};

/// How much later than the node the client gives up.
const GRACE: Duration = Duration::from_secs(2);

/// Let a cluster use what is new in the version that all its members run
///
/// Only needed where nodes run with activate = "manual"; otherwise the leader does it by itself. Any node takes the
/// request. Afterwards no member can be put back to a version that does not know what is in use. The command ends when
/// what is new is in use on this node. If a member lacks something, the command prints what and which members, and
/// fails.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The node's admin address, such as http://127.0.0.1:9001
    url: String,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
}

pub(crate) fn run(Args { url, timeout }: Args) -> Result<(), Failure> {
    let asking = format!("{}/activate?timeout_ms={}", base(&url)?, timeout * 1000);
    let answer = Client::new(Duration::from_secs(timeout) + GRACE).post(&asking);
    let answer = answer.map_err(|error| Failure::new(format!("{url}: {error}")))?;
    if answer.status != 200 {
        return Err(refused(&url, &answer));
    }
    let list = |values: &Value, none: &str| {
        let items = values.as_array().into_iter().flatten();
        let items: Vec<String> =
            items.map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect();
        if items.is_empty() { none.to_owned() } else { items.join(", ") }
    };
    say!("state machine: version {}", answer.body["machine"]);
    say!("features: {}", list(&answer.body["features"], "none"));
    let not_in_use: Vec<&Value> = answer.body["not_in_use"].as_array().into_iter().flatten().collect();
    for waiting in &not_in_use {
        let what = waiting["what"].as_str().unwrap_or("something that this version does not know");
        say!("not in use: {what}, which these members lack: {}", list(&waiting["lacking"], "nobody"));
    }
    match not_in_use.is_empty() {
        true => Ok(()),
        // The request has ended: the cluster does not remember it for members that get the new version later.
        false => Err(Failure::new(
            "not all that this node understands can be used: start the members that lack it with its version, or \
             remove them, and activate again",
        )),
    }
}
