//! An actix-web service over a replicated map, one process per node.
//!
//! ```text
//!  kv                                    starts three nodes of itself, uses them, ends them
//!  kv ID HTTP DIR 1=ADDR 2=ADDR 3=ADDR   one node: PUT and GET on http://HTTP/KEY
//! ```
//!
//! Run it with `cargo run --example kv`. Deliberately absent: everything around it. `actorum serve` is
//! this with errors told apart, limits, health, metrics and a demo that kills.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    io::Read,
    net::{TcpListener, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use actix_web::{App, HttpResponse, HttpServer, web};
use actorum::prelude::*;
use serde::{Deserialize, Serialize};

/// What is replicated: a map. The command sets one key.
#[derive(Default, Serialize, Deserialize)]
struct Kv(BTreeMap<String, String>);

#[derive(Serialize, Deserialize)]
struct Put(String, String);

impl StateMachine for Kv {
    type Command = Put;
    type Response = Option<String>; // the previous value

    fn apply(&mut self, _: &ApplyContext, Put(key, value): &Put) -> Option<String> {
        self.0.insert(key.clone(), value.clone())
    }

    serde_snapshot!();
}

async fn put(raft: web::Data<Raft<Kv>>, key: web::Path<String>, value: String) -> HttpResponse {
    match raft.propose(Put(key.into_inner(), value)).await {
        Ok(applied) => HttpResponse::Ok().body(applied.index.to_string()),
        // The error says whether it may have been applied.
        Err(e) => HttpResponse::ServiceUnavailable().body(e.to_string()),
    }
}

async fn get(raft: web::Data<Raft<Kv>>, key: web::Path<String>) -> HttpResponse {
    match raft.read(move |kv| kv.0.get(&*key).cloned()).await {
        Ok(Some(value)) => HttpResponse::Ok().body(value),
        Ok(None) => HttpResponse::NotFound().finish(),
        Err(e) => HttpResponse::ServiceUnavailable().body(e.to_string()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    match &args[..] {
        [] => three_nodes(),
        [id, http, dir, peers @ ..] => {
            actix_web::rt::System::new().block_on(node(id.parse()?, http, dir.into(), peers))
        }
        _ => Err("kv, or kv ID HTTP DIR ID=ADDR...".into()),
    }
}

/// One node: starts or restarts, serves, and ends when its standard input does.
async fn node(id: u64, http: &str, dir: PathBuf, peers: &[String]) -> Result<(), Box<dyn Error>> {
    let mut founders = BTreeMap::new();
    for peer in peers {
        let (id, address) = peer.split_once('=').ok_or("ID=ADDR is needed")?;
        founders.insert(id.parse::<u64>()?, address);
    }
    let listen = founders.get(&id).ok_or("this node is not among the peers")?.parse()?;
    let raft = RaftSystem::<Kv>::builder(id)
        .listen(listen)
        .storage(Storage::Sled(dir.join(id.to_string())))
        .tls(Tls::DevSelfSigned(dir.join("certificates")))
        .bootstrap(Bootstrap::Form(founders.into_iter().map(|(id, address)| (id, address.into())).collect()))
        .start()
        .await?;
    let shared = web::Data::new(raft.clone());
    let server = HttpServer::new(move || {
        App::new().app_data(shared.clone()).route("/{key}", web::put().to(put)).route("/{key}", web::get().to(get))
    });
    let server = server.workers(1).disable_signals().bind(http)?.run();
    let handle = server.handle();
    actix_web::rt::spawn(async move {
        // Blocks a thread of the pool until the parent is gone.
        let _ = web::block(|| std::io::stdin().read_to_end(&mut Vec::new())).await;
        handle.stop(false).await;
    });
    server.await?;
    raft.shutdown().await;
    Ok(())
}

/// A process that does not outlive us.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts three nodes, writes through one, reads through another, and does it again with one dead.
fn three_nodes() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let ports = [1, 2, 3].map(|id| (id, UdpSocket::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0")));
    let (mut peers, mut http) = (Vec::new(), Vec::new());
    for (id, udp, tcp) in ports {
        peers.push(format!("{id}={}", udp?.local_addr()?));
        http.push(tcp?.local_addr()?.to_string());
    }
    let mut nodes = Vec::new();
    for (id, http) in (1..).zip(&http) {
        let mut command = Command::new(env::current_exe()?);
        command.args([&format!("{id}"), http]).arg(dir.path()).args(&peers).stdin(Stdio::piped());
        nodes.push(Node(command.spawn()?));
    }

    let index = retry("PUT through node 1", || Ok(ureq::put(format!("http://{}/color", http[0])).send("blue")?))?;
    println!("node 1 answered: applied at index {index}");
    let value = retry("GET through node 3", || Ok(ureq::get(format!("http://{}/color", http[2])).call()?))?;
    assert_eq!(value, "blue", "a linearizable read sees what was answered before it began");
    println!("node 3 reads: {value}");

    drop(nodes.remove(0));
    println!("node 1 is dead (SIGKILL)");
    retry("PUT through node 2", || Ok(ureq::put(format!("http://{}/color", http[1])).send("green")?))?;
    let value = retry("GET through node 3", || Ok(ureq::get(format!("http://{}/color", http[2])).call()?))?;
    assert_eq!(value, "green", "two of three go on");
    println!("node 3 reads: {value}");
    println!("a map on three processes: written anywhere, read anywhere, alive without one of them");
    Ok(())
}

/// Setting a key twice to the same value is the same as once, so here even an unknown outcome may be tried again.
fn retry(
    what: &str,
    call: impl Fn() -> Result<ureq::http::Response<ureq::Body>, Box<dyn Error>>,
) -> Result<String, Box<dyn Error>> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match call() {
            Ok(mut response) => return Ok(response.body_mut().read_to_string()?),
            Err(e) if Instant::now() > until => return Err(format!("{what}: {e}").into()),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
