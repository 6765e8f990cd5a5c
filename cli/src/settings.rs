//! What `serve` is told, from three places: flags win over `ACTORUM_*` variables, and those over the file.
//!
//! ```toml
//! id = 1
//! data = "/var/lib/actorum"
//! certs = "/etc/actorum/node-1"
//! listen = "10.0.0.1:7001"
//! http = "127.0.0.1:8001"
//! admin = "127.0.0.1:9001"
//!
//! [peers]                    # or: wait = true
//! 1 = "10.0.0.1:7001"
//! 2 = "10.0.0.2:7001"
//! 3 = "10.0.0.3:7001"
//!
//! [raft]                     # the library's `Config`; also ACTORUM_HEARTBEAT_MS and so on
//! heartbeat_ms = 100
//! ```
//!
//! An unknown key or variable is an error that names it: a misspelt setting must not become a default. A variable that
//! is set and empty counts as not set, so that a service manager's file of variables, or a unit that extends another
//! one, can remove it.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use actorum::{Address, Bootstrap, Config, NodeId};
use actorum_store::log::directory;
use clap::ValueEnum;
use serde::{Deserialize, Deserializer};

use crate::{Failure, serve::Args};
use actorum_http::strict::{new_node_id, node_id, read_id};

/// Variables that begin with this and an underscore are ours.
const PREFIX: &str = "ACTORUM";
/// Those of them that are not the library's: the names of flags, and the filter of the logs.
const VARIABLES: [&str; 12] =
    ["ID", "DATA", "CERTS", "LISTEN", "HTTP", "ADMIN", "ADMIN_CERTS", "PEERS", "WAIT", "CONFIG", "LOG_FORMAT", "LOG"];

/// How logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// A line for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// A complete set of settings.
pub(crate) struct Settings {
    /// This node.
    pub id: NodeId,
    /// Its data directory.
    pub data: PathBuf,
    /// The directory of its certificate.
    pub certs: PathBuf,
    /// Where peers reach it.
    pub listen: SocketAddr,
    /// Where the public API listens.
    pub http: SocketAddr,
    /// Where the members API listens, if anywhere.
    pub admin: Option<SocketAddr>,
    /// The directory of the certificates for the members API, if it asks for client certificates.
    pub admin_certs: Option<PathBuf>,
    /// How an empty directory begins.
    pub bootstrap: Bootstrap,
    /// How logs look.
    pub log_format: LogFormat,
    /// The library's settings.
    pub raft: Config,
    /// Variables that look like ours and were set by a service manager: the node warns of them.
    pub foreign: Vec<String>,
}

/// The file as it is written.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    #[serde(deserialize_with = "id_in_file")]
    id: Option<NodeId>,
    data: Option<PathBuf>,
    certs: Option<PathBuf>,
    listen: Option<SocketAddr>,
    http: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    admin_certs: Option<PathBuf>,
    peers: Option<BTreeMap<String, String>>,
    wait: Option<bool>,
    log_format: Option<LogFormat>,
    raft: toml::Table,
}

impl Settings {
    /// Puts the three places together. Every error says which setting is missing or wrong, and how to give it.
    pub(crate) fn merge(args: Args) -> Result<Settings, Failure> {
        let config = first(args.config, || path("CONFIG"), None)?;
        let mut file = config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let (mut raft, foreign) = raft(std::mem::take(&mut file.raft), config.as_deref())?;
        // The file and the environment give it among the library's settings.
        raft.cluster_name = args.cluster_name.unwrap_or(raft.cluster_name);

        // What is wrong is said before what is missing.
        let id = first(args.id, || read("ID", node_id), file.id)?;
        let data = first(args.data, || path("DATA"), file.data.take())?;
        let certs = first(args.certs, || path("CERTS"), file.certs.take())?;
        let listen = first(args.listen, || read("LISTEN", address), file.listen)?;
        let http = first(args.http, || read("HTTP", address), file.http)?;
        let admin = first(args.admin, || read("ADMIN", address), file.admin)?;
        let admin_certs = first(args.admin_certs, || path("ADMIN_CERTS"), file.admin_certs.take())?;
        let log_format = first(args.log_format, || read("LOG_FORMAT", log_format), file.log_format)?;

        // A flag or variable for the peers or for waiting replaces both settings of the file.
        let bootstrap = if args.wait {
            Bootstrap::Wait
        } else if !args.peers.is_empty() {
            founders(args.peers.into_iter().flat_map(|Peers(peers)| peers).collect())?
        } else {
            match bootstrap_in_env()? {
                Some(bootstrap) => bootstrap,
                None => file.bootstrap()?,
            }
        };
        let settings = Settings {
            id: needed(id, "id")?,
            data: needed(data, "data")?,
            certs: needed(certs, "certs")?,
            listen: needed(listen, "listen")?,
            http: needed(http, "http")?,
            admin,
            admin_certs,
            bootstrap,
            log_format: log_format.unwrap_or_default(),
            raft,
            foreign,
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), Failure> {
        self.check_ids()?;
        match (self.admin, &self.admin_certs) {
            (Some(admin), None) if !admin.ip().is_loopback() => Err(Failure::usage(format!(
                "--admin {admin} can be reached from other machines, and whoever reaches it can remove nodes: use a \
                 loopback address such as 127.0.0.1:{port}, or ask for client certificates with --admin-certs DIR",
                port = admin.port()
            ))),
            (None, Some(_)) => Err(Failure::usage("--admin-certs does nothing without --admin: give the address too")),
            _ => Ok(()),
        }
    }

    /// This is checked before any file is read, since a missing file would be reported first. A directory that has such
    /// an id from the first version keeps it, because its cluster knows the node by that id.
    fn check_ids(&self) -> Result<(), Failure> {
        if directory::read_node(&self.data).is_ok_and(|node| node.id == self.id) {
            return Ok(());
        }
        new_node_id(&self.id.to_string()).map_err(|e| Failure::usage(format!("--id: {e}")))?;
        let Bootstrap::Form(founders) = &self.bootstrap else { return Ok(()) };
        let mut wrong = founders.keys().filter_map(|id| new_node_id(&id.to_string()).err());
        wrong.next().map_or(Ok(()), |e| Err(Failure::usage(format!("a founder: {e}"))))
    }
}

impl File {
    fn read(path: &Path) -> Result<File, Failure> {
        let text = fs::read_to_string(path).map_err(|e| Failure::usage(format!("--config {}: {e}", path.display())))?;
        toml::from_str(&text).map_err(|e| Failure::usage(format!("--config {}: {e}", path.display())))
    }

    fn bootstrap(&self) -> Result<Bootstrap, Failure> {
        match (&self.peers, self.wait) {
            (Some(_), Some(true)) => Err(Failure::usage("the configuration file gives both peers and wait: keep one")),
            (None, Some(true)) => Ok(Bootstrap::Wait),
            (Some(peers), _) => {
                let peer = |(id, address): (&String, &String)| parse_peer(&format!("{id}={address}"));
                let peers = peers.iter().map(peer).collect::<Result<_, _>>();
                founders(peers.map_err(|e| Failure::usage(format!("the configuration file, [peers]: {e}")))?)
            }
            (None, _) => Err(Failure::usage(
                "how does this node begin? Give --peer ID=HOST:PORT for every founder (this node among them), \
                 or --wait to start empty and be added to a running cluster",
            )),
        }
    }
}

/// The library's settings: those of the file, then those of the environment. The library reports values that are not
/// possible.
fn raft(table: toml::Table, path: Option<&Path>) -> Result<(Config, Vec<String>), Failure> {
    let mut raft = Config::default();
    let in_file = |e| Failure::usage(format!("--config {}, [raft]: {e}", path.unwrap_or(Path::new("")).display()));
    raft.apply(table).map_err(in_file)?;
    let foreign = raft.apply_env(PREFIX, &VARIABLES, std::env::vars_os()).map_err(Failure::usage)?;
    raft.validate().map_err(Failure::usage)?;
    Ok((raft, foreign))
}

/// How the node begins by `ACTORUM_WAIT` and `ACTORUM_PEERS`, if they are set. They are read here and not by the parser
/// of flags: a flag wins over either, and `ACTORUM_WAIT=0` does not contradict peers.
fn bootstrap_in_env() -> Result<Option<Bootstrap>, Failure> {
    let wait = match variable("WAIT")?.as_deref() {
        None | Some("0" | "false") => false,
        Some("1" | "true") => true,
        Some(other) => return Err(Failure::usage(format!("ACTORUM_WAIT={other}: 1 or true, or 0 or false is needed"))),
    };
    match (variable("PEERS")?, wait) {
        (Some(_), true) => Err(Failure::usage("both ACTORUM_PEERS and ACTORUM_WAIT are set: keep one")),
        (None, true) => Ok(Some(Bootstrap::Wait)),
        (None, false) => Ok(None),
        (Some(peers), false) => {
            let Peers(peers) = peers.parse().map_err(|e| Failure::usage(format!("ACTORUM_PEERS: {e}")))?;
            founders(peers).map(Some)
        }
    }
}

/// The value of a flag, or else of a variable, or else of the file. The variable is not even read if the flag is given.
fn first<T>(
    flag: Option<T>,
    variable: impl FnOnce() -> Result<Option<T>, Failure>,
    file: Option<T>,
) -> Result<Option<T>, Failure> {
    match flag {
        Some(value) => Ok(Some(value)),
        None => Ok(variable()?.or(file)),
    }
}

/// The parsed value of a variable of ours, if it is set.
fn read<T>(name: &str, meaning: fn(&str) -> Result<T, String>) -> Result<Option<T>, Failure> {
    let Some(text) = variable(name)? else { return Ok(None) };
    meaning(&text).map(Some).map_err(|problem| Failure::usage(format!("{PREFIX}_{name}={text}: {problem}")))
}

/// The same for a variable that names a file, which need not be UTF-8.
fn path(name: &str) -> Result<Option<PathBuf>, Failure> {
    let Some(value) = std::env::var_os(format!("{PREFIX}_{name}")) else { return Ok(None) };
    match value.to_str().map(str::trim) {
        Some("") => Ok(None),
        Some(text) => Ok(Some(PathBuf::from(text))),
        None => Ok(Some(PathBuf::from(value))),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|e| format!("{e}: IP:PORT is needed, such as 127.0.0.1:7001"))
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    LogFormat::from_str(text, false).map_err(|_| "text or json is needed".to_owned())
}

/// A variable of ours, without the space around it; one that is empty counts as not set.
pub(crate) fn variable(name: &str) -> Result<Option<String>, Failure> {
    let name = format!("{PREFIX}_{name}");
    let Some(value) = std::env::var_os(&name) else { return Ok(None) };
    let Some(text) = value.to_str() else {
        return Err(Failure::usage(format!("{name}={}: it is not UTF-8", value.display())));
    };
    Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
}

fn needed<T>(value: Option<T>, name: &str) -> Result<T, Failure> {
    let variable = name.to_uppercase();
    let missing = || format!("--{name} is missing: give it, or {PREFIX}_{variable}, or `{name}` in the --config file");
    value.ok_or_else(|| Failure::usage(missing()))
}

fn id_in_file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NodeId>, D::Error> {
    read_id(deserializer).map(Some)
}

/// `1=127.0.0.1:7001`. The host may be a name: it is resolved at each dial.
pub(crate) fn parse_peer(text: &str) -> Result<(NodeId, Address), String> {
    let form = || format!("`{text}` is not of the form ID=HOST:PORT");
    let (id, address) = text.split_once('=').ok_or_else(form)?;
    let id = node_id(id).map_err(|problem| format!("{}: {problem}", form()))?;
    let address = address.trim().parse::<Address>().map_err(|error| format!("{}: {error}", form()))?;
    Ok((id, address))
}

/// What stands between commas; one at the end adds nothing.
pub(crate) fn items(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim();
    text.strip_suffix(',').unwrap_or(text).split(',').map(str::trim)
}

/// `1=10.0.0.1:7001,2=10.0.0.2:7001`: what one flag or variable says of founders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peers(Vec<(NodeId, Address)>);

impl FromStr for Peers {
    type Err = String;

    fn from_str(text: &str) -> Result<Peers, String> {
        items(text).map(parse_peer).collect::<Result<_, _>>().map(Peers)
    }
}

fn founders(peers: Vec<(NodeId, Address)>) -> Result<Bootstrap, Failure> {
    let mut founders = BTreeMap::new();
    for (id, address) in peers {
        let mut others = founders.iter().filter(|(other, _)| **other != id);
        if let Some((other, _)) = others.find(|(_, place): &(&NodeId, &Address)| place.is_same_place(&address)) {
            return Err(Failure::usage(format!(
                "the peers {other} and {id} have one address, {address}: each node has one of its own"
            )));
        }
        if let Some(other) = founders.insert(id, address.clone()) {
            return Err(Failure::usage(format!(
                "node {id} is named twice among the peers: at {other} and at {address}"
            )));
        }
    }
    Ok(Bootstrap::Form(founders))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a person may mistype is answered with the form that is right.
    #[test]
    fn peers() {
        assert_eq!(parse_peer("2=host:7002"), Ok((2, Address::from("host:7002"))));
        assert_eq!(parse_peer("2=[::1]:7002"), Ok((2, Address::from("[::1]:7002"))));
        for wrong in ["", "2", "host:7002", "x=host:7002", "2=host", "2=:7002", "2=host:port", "2=::1:7002"] {
            assert!(parse_peer(wrong).expect_err(wrong).contains("ID=HOST:PORT"), "{wrong}");
        }
        for wrong in ["=host:7002", "0=host:7002", "-2=host:7002", "1.5=host:7002"] {
            assert!(parse_peer(wrong).expect_err(wrong).contains("between 1 and 9007199254740991"), "{wrong}");
        }
        let two = "1=a:1,2=b:2".parse::<Peers>();
        assert_eq!(two.as_ref().map(|Peers(peers)| peers.len()), Ok(2));
        assert_eq!("1=a:1, 2=b:2,\n".parse(), two, "a comma at the end is none too many");
        for wrong in ["1=a:1,,2=b:2", ",1=a:1", "1=a:1,2"] {
            assert!(wrong.parse::<Peers>().expect_err(wrong).contains("ID=HOST:PORT"), "{wrong}");
        }
    }
}
