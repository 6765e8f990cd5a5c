//! `actorum serve`: one node, its HTTP servers, and the order in which they begin and end.
//!
//! ```text
//!  begin: listen on HTTP ▶ open the store, start the node ▶ serve ▶ report
//!  end:   take no new requests, and let the node answer those in flight ▶ close the store ▶ exit
//! ```
//!
//! A node that stops by itself ends the process with its cause, so that a supervisor knows. The exit code is 1, or 3
//! for a node that was removed from its cluster, which no restart brings back.

use std::{
    fs, io,
    io::Read as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    pin::pin,
};

use actix_web::web;
use actorum::{NodeId, Raft, RaftSystem, Reason, Storage, Tls};
use actorum_http::strict::node_id;
use actorum_transport::tls::TlsIdentity;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::{
    Failure, admin,
    http::{self, Node},
    kv::Kv,
    logs,
    server::{LAST_CALL, Service},
    settings::{LogFormat, Peers, Settings},
    signals,
};

/// Clients that may be connected to the public API at a time, if the limit on open files allows it. At the bound the
/// system lets the next ones wait, until idle connections have had their time.
const MAX_CLIENTS: usize = 8192;
/// The same for the members API.
const MAX_ADMINS: usize = 256;
/// Open files that are not for clients: the store, the peers, the members API, and what a copy or a log needs.
const FILES_KEPT: usize = 768;
/// Threads for each HTTP server. They only translate requests; the node does the work.
const WORKERS: usize = 2;

/// Run one node of a replicated key-value store
///
/// The first start needs either --peer for every founder (the same list on each of them) or --wait; a restart
/// takes the same command. Settings come from flags, then from the environment, then from --config FILE.
/// SIGTERM and Ctrl-C shut down in order; SIGHUP does nothing.
#[derive(clap::Args)]
#[command(after_long_help = "\
Logs go to standard error: ACTORUM_LOG=debug, or a filter such as ACTORUM_LOG=info,actorum_transport=debug.
The library's settings: [raft] in the --config file, or ACTORUM_HEARTBEAT_MS and so on.
A variable that is set and empty counts as not set.")]
pub(crate) struct Args {
    /// This node's id, 1 or more; an id is never used twice in the life of the cluster [env: ACTORUM_ID]
    #[arg(long, value_parser = node_id, allow_negative_numbers = true)]
    pub id: Option<NodeId>,
    /// This node's own directory; created if it does not exist [env: ACTORUM_DATA]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The directory of this node's certificate, as `actorum certs` makes it [env: ACTORUM_CERTS]
    #[arg(long, value_name = "DIR")]
    pub certs: Option<PathBuf>,
    /// Where peers reach this node (QUIC, so UDP) [env: ACTORUM_LISTEN]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where clients reach it (HTTP); port 0 takes a free one [env: ACTORUM_HTTP]
    #[arg(long, value_name = "IP:PORT")]
    pub http: Option<SocketAddr>,
    /// Where operators change the membership, take snapshots and read the whole state (HTTP); nowhere if not given
    /// [env: ACTORUM_ADMIN]
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<SocketAddr>,
    /// Ask for client certificates on --admin: DIR holds ca.pem, cert.pem and key.pem, and clients show a
    /// certificate of that authority [env: ACTORUM_ADMIN_CERTS]
    #[arg(long, value_name = "DIR")]
    pub admin_certs: Option<PathBuf>,
    /// A founder of the cluster; once for each of them, this node included [env: ACTORUM_PEERS=1=a:7001,2=b:7001]
    #[arg(long = "peer", value_name = "ID=HOST:PORT")]
    pub peers: Vec<Peers>,
    /// The cluster's name, the same for every founder, so that two clusters never mix [env: ACTORUM_CLUSTER_NAME]
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// Start empty and wait to be added to a running cluster [env: ACTORUM_WAIT=1]
    #[arg(long, conflicts_with = "peers")]
    pub wait: bool,
    /// A TOML file with the same names, peers under [peers] and the library's settings under [raft] [env:
    /// ACTORUM_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The format of log lines [env: ACTORUM_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Write the bound addresses to this file as JSON once the node serves
    #[arg(long, hide = true, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Shut down when standard input ends, which means that the parent process is gone
    #[arg(long, hide = true)]
    pub stop_when_stdin_closes: bool,
    /// Never sync the log, and report it as durable: a test must see what that loses
    #[cfg(feature = "faults")]
    #[arg(long, hide = true)]
    pub flush_only: bool,
}

/// Serves until a signal comes or the node stops.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let (report, watch_stdin) = (args.report.clone(), args.stop_when_stdin_closes);
    #[cfg(feature = "faults")]
    let flush_only = args.flush_only;
    #[cfg(not(feature = "faults"))]
    let flush_only = false;
    let settings = Settings::merge(args)?;
    // The node is kept until the end, so that it writes everything before the process says why it failed.
    let _logs = logs::start(settings.log_format)?;
    for variable in &settings.foreign {
        warn!("{variable} is left alone: a service manager sets it for a service of this name");
    }
    let storage = if flush_only { without_sync(&settings)? } else { Storage::Sled(settings.data.clone()) };
    actix_web::rt::System::new().block_on(serve(settings, storage, report.as_deref(), watch_stdin))
}

/// A store that says of every write that it is durable, and syncs none.
#[cfg(feature = "faults")]
fn without_sync(settings: &Settings) -> Result<Storage, Failure> {
    use actorum_store::log::{
        faulty::{Faults, SyncPolicy},
        sled::OpenOptions,
    };
    let drawn = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64;
    let options = OpenOptions::new(settings.id, actorum_machine::ids::Incarnation(drawn));
    let faults = Faults { sync: SyncPolicy::FlushOnly, ..Faults::default() };
    Ok(Storage::Custom(Box::new(faults.open(&settings.data, options)?)))
}

#[cfg(not(feature = "faults"))]
fn without_sync(_: &Settings) -> Result<Storage, Failure> {
    Err(Failure::usage("this build always syncs"))
}

async fn serve(settings: Settings, storage: Storage, report: Option<&Path>, watch_stdin: bool) -> Result<(), Failure> {
    let terminated = signals::terminated()?;
    actix_web::rt::spawn(signals::hangups()?);
    // The cheapest mistakes first: a wrong path or a port in use should neither make a directory nor cost a
    // recovery of the log.
    TlsIdentity::load(&settings.certs, settings.id)?;
    let http = bind("--http", settings.http)?;
    let admin = settings.admin.map(|address| bind("--admin", address)).transpose()?;
    let client_certs = settings.admin_certs.as_deref().map(admin::require_certificates).transpose()?;
    let (client_certs, ends) = client_certs.unzip();

    let raft = start_node(&settings, storage, ends.unwrap_or_default()).await?;
    let node = Node::new(raft.clone()).counter(
        "actorum_log_lines_dropped_total",
        "Log lines that could not be written to standard error.",
        logs::dropped,
    );
    let node = web::Data::new(node);
    let addresses = Addresses { http: http.local_addr()?, admin: admin.as_ref().map(|a| a.local_addr()).transpose()? };
    let public =
        Service { name: "the public API", workers: WORKERS, clients: max_clients() / WORKERS, routes: http::routes };
    let members = Service { name: "the members API", workers: 1, clients: MAX_ADMINS, routes: admin::routes };
    let mut servers = vec![public.listen(&node, http, None)?];
    if let Some(admin) = admin {
        servers.push(members.listen(&node, admin, client_certs)?);
    }
    addresses.announce(&settings, report)?;

    let cause = tokio::select! {
        signal = terminated => { info!("{signal}: shutting down"); None }
        () = stdin_closed(watch_stdin) => { info!("standard input is closed: shutting down"); None }
        cause = raft.stopped() => Some(cause),
    };
    // At once: the servers take nothing new, and what is in flight is answered by the node's own shutdown.
    node.stop();
    let mut served = pin!(futures_util::future::join_all(servers.iter().map(|server| server.stop(true))));
    let mut closed = pin!(raft.shutdown());
    // Promise 4: the servers stay until the node has answered everything, which may take as long as its requests may.
    // The connections that are left then have their answers, but their clients do not take them.
    tokio::select! {
        () = &mut closed => drop(timeout(LAST_CALL, served).await),
        _ = &mut served => closed.await,
    }
    match cause {
        None => {
            info!("node {} is closed", settings.id);
            Ok(())
        }
        Some(cause) => {
            let stopped = format!("node {} stopped: {cause}", settings.id);
            // A supervisor must be able to see that starting the node again does not help.
            let removed = raft.status().stop_reason == Some(Reason::Removed);
            Err(if removed { Failure::removed(stopped) } else { Failure::new(stopped) })
        }
    }
}

async fn start_node(settings: &Settings, storage: Storage, ends: Vec<(String, i64)>) -> Result<Raft<Kv>, Failure> {
    let builder = RaftSystem::<Kv>::builder(settings.id)
        .listen(settings.listen)
        .storage(storage)
        .tls(Tls::Directory(settings.certs.clone()))
        .bootstrap(settings.bootstrap.clone())
        .config(settings.raft.clone());
    let watched = ends.into_iter().fold(builder, |builder, (file, end)| builder.certificate(file, end));
    Ok(watched.start().await?)
}

/// How many clients may be connected: without a file left to open, the store and the peers would fail with them.
///
/// The soft limit on open files is often 1024 and the hard one much more; the soft one is there for programs that use
/// `select`, which this one does not.
fn max_clients() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = (2 * MAX_CLIENTS + FILES_KEPT) as u64;
    let raised = maximum.map_or(wanted, |most| most.min(wanted));
    if current.is_some_and(|current| current < raised)
        && let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum })
    {
        warn!("cannot raise the limit on open files: {e}");
    }
    clients_within(getrlimit(Resource::Nofile).current)
}

/// How many clients a limit on open files leaves room for: each takes two, see `clients.rs`.
fn clients_within(files: Option<u64>) -> usize {
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    (files.saturating_sub(FILES_KEPT) / 2).clamp(2 * WORKERS, MAX_CLIENTS)
}

fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(address).map_err(|e| Failure::new(format!("{flag} {address}: {e}")))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Where the node is reached, known once everything is bound.
struct Addresses {
    http: SocketAddr,
    admin: Option<SocketAddr>,
}

impl Addresses {
    fn announce(&self, settings: &Settings, report: Option<&Path>) -> Result<(), Failure> {
        let Addresses { http, admin } = self;
        let members = admin.map_or(String::new(), |a| format!(", members on {a}"));
        info!("node {}: http://{http}, peers on {}{members}", settings.id, settings.listen);
        let Some(report) = report else { return Ok(()) };
        let written = serde_json::json!({
            "id": settings.id, "pid": std::process::id(), "listen": settings.listen, "http": http, "admin": admin,
        });
        // Renamed into place, so that a reader sees the whole or nothing.
        let aside = report.with_extension("partial");
        fs::write(&aside, written.to_string())?;
        Ok(fs::rename(&aside, report)?)
    }
}

/// Ends when the process at the other end of standard input is gone; never without `--stop-when-stdin-closes`.
async fn stdin_closed(asked: bool) {
    if !asked {
        return std::future::pending().await;
    }
    let (gone, heard) = tokio::sync::oneshot::channel();
    // A separate thread, which is never joined: a blocking read cannot be cancelled.
    let reader = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut ignored = [0; 64];
        while !matches!(io::stdin().read(&mut ignored), Ok(0) | Err(_)) {}
        // The receiver is gone only if the process already ends.
        let _ = gone.send(());
    });
    if let Err(e) = reader {
        warn!("cannot watch standard input: {e}");
        return;
    }
    // An error means that the thread has died and standard input is no longer watched: this ends, too.
    let _ = heard.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the limit on open files, files are left for the node itself.
    #[test]
    fn clients_leave_files_to_the_node() {
        assert_eq!(clients_within(None), MAX_CLIENTS);
        assert_eq!(clients_within(Some(1 << 20)), MAX_CLIENTS);
        assert_eq!(clients_within(Some(1024)), 128);
        assert_eq!(clients_within(Some(100)), 2 * WORKERS, "and somebody is served in any case");
    }
}
