//! `actorum certs`: an authority, and a certificate for each node.
//!
//! The certificate is the node: its only name is `node-N.actorum`, whatever address it has. What is here is
//! good enough for production as long as `ca/ca.key` stays off the machines that serve.

use std::path::{Path, PathBuf};

use actorum::NodeId;
use actorum_transport::{tls::make_certificates, wire::MAX_NODE_ID};

use crate::{
    Failure,
    output::{self, say},
    settings::items,
};

/// Make an authority and a certificate for each node
///
/// Makes DIR/ca/{ca.pem,ca.key} and, for each node N, DIR/node-N/{ca.pem,cert.pem,key.pem}.
///
/// An authority that is already in DIR signs the new certificates, so nodes can be added later. Nothing is
/// ever overwritten. Keys are readable by their owner only.
///
/// Give DIR/node-N to node N and keep DIR/ca for yourself: whoever has ca.key can be any node.
#[derive(clap::Args)]
pub struct Args {
    /// Where to make them; created if it does not exist
    dir: PathBuf,
    /// The ids of the nodes, such as 1,2,3
    #[arg(long, required = true, value_name = "IDS")]
    nodes: Vec<Ids>,
}

/// `1,2,3`.
#[derive(Clone)]
struct Ids(Vec<NodeId>);

impl std::str::FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Ids, String> {
        let id = |item: &str| match item.parse() {
            Ok(id) if id > MAX_NODE_ID => {
                Err(format!("{id} is not a node id: {MAX_NODE_ID} (2^53 - 1) is the highest"))
            }
            Ok(id) => Ok(id),
            Err(_) => Err(format!("`{item}` is not a node id: numbers are needed, such as 1,2,3")),
        };
        items(text).map(id).collect::<Result<_, _>>().map(Ids)
    }
}

/// Makes the certificates and says where they are.
pub fn run(Args { dir, nodes }: Args) -> Result<(), Failure> {
    let nodes: Vec<NodeId> = nodes.into_iter().flat_map(|Ids(ids)| ids).collect();
    let made = make(&dir, &nodes)?;
    output::done(format_args!("the certificates are in {}", dir.display()));
    for made in made {
        say!("{}: for that node and no other", made.display());
    }
    say!("{}: signs certificates; keep it off the machines that serve", dir.join("ca/ca.key").display());
    Ok(())
}

/// Makes the certificates; shared with the demo. Returns the directory of each node, in order.
pub fn make(dir: &Path, nodes: &[NodeId]) -> Result<Vec<PathBuf>, Failure> {
    for (at, id) in nodes.iter().enumerate() {
        if nodes[..at].contains(id) {
            return Err(Failure::usage(format!("--nodes names node {id} twice")));
        }
    }
    Ok(make_certificates(dir, nodes)?)
}
