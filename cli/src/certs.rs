//! `actorum certs`: an authority, and a certificate for each node.
//!
//! The certificate is the node: its only name is `node-N.actorum`, whatever address it has. What is here is
//! good enough for production as long as `ca/ca.key` stays off the machines that serve.

use std::{
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use actorum::NodeId;
use actorum_store::log::directory::Utc;
use actorum_transport::tls::{Made, make_certificates_for};

use crate::{
    Failure,
    output::{self, say},
    settings::items,
};
use actorum_http::strict::new_node_id;

/// Make an authority and a certificate for each node
///
/// Makes DIR/ca/{ca.pem,ca.key} and, for each node N, DIR/node-N/{ca.pem,cert.pem,key.pem}.
///
/// An authority that is already in DIR signs the new certificates, so nodes can be added later. Nothing is
/// ever overwritten. Keys are readable by their owner only.
///
/// Certificates expire on the day that is printed. A node whose certificate has expired does not start, and its peers
/// refuse it: move DIR/node-N away in time, make it again, and restart the node with it. A ca.pem may hold several
/// authorities, one after the other. To replace the authority give every node both, then new certificates, then the new
/// authority alone.
///
/// Give DIR/node-N to node N and keep DIR/ca for yourself: whoever has ca.key can be any node.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to make them; created if it does not exist
    dir: PathBuf,
    /// The ids of the nodes, such as 1,2,3
    #[arg(long, required = true, value_name = "IDS", allow_hyphen_values = true)]
    nodes: Vec<Ids>,
    /// How long the certificates are valid; about ten years if not given
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: Option<u32>,
}

/// `1,2,3`.
#[derive(Clone)]
struct Ids(Vec<NodeId>);

impl std::str::FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Ids, String> {
        items(text).map(new_node_id).collect::<Result<_, _>>().map(Ids)
    }
}

/// Makes the certificates and says where they are.
pub(crate) fn run(Args { dir, nodes, days }: Args) -> Result<(), Failure> {
    let nodes: Vec<NodeId> = nodes.into_iter().flat_map(|Ids(ids)| ids).collect();
    let made = make_for(&dir, &nodes, days)?;
    output::done(format_args!("the certificates are in {}", dir.display()));
    for Made { path, not_after, .. } in &made {
        say!("{}: for that node and no other, valid until {}", path.display(), day(*not_after));
    }
    let key = dir.join("ca/ca.key");
    let ends = made.iter().map(|made| made.authority_not_after).min();
    let until = ends.map_or(String::new(), |end| format!(", valid until {}", day(end)));
    say!("{}: signs certificates{until}; keep it off the machines that serve", key.display());
    if let Some(end) = ends.filter(|end| made.iter().any(|made| made.not_after > *end)) {
        say!("note: the authority expires on {}, and with it all certificates that it signed", day(end));
    }
    Ok(())
}

/// The day of a moment, in seconds since 1970.
fn day(seconds: i64) -> String {
    let utc = Utc(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))).to_string();
    utc.split(' ').next().unwrap_or_default().to_owned()
}

/// Makes the certificates; for the demo. Returns the directory of each node, in order.
pub(crate) fn make(dir: &Path, nodes: &[NodeId]) -> Result<Vec<PathBuf>, Failure> {
    Ok(make_for(dir, nodes, None)?.into_iter().map(|made| made.path).collect())
}

fn make_for(dir: &Path, nodes: &[NodeId], days: Option<u32>) -> Result<Vec<Made>, Failure> {
    for (at, id) in nodes.iter().enumerate() {
        if nodes[..at].contains(id) {
            return Err(Failure::usage(format!("--nodes names node {id} twice")));
        }
    }
    Ok(make_certificates_for(dir, nodes, days)?)
}
