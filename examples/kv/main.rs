//! An actix-web service over a replicated map, one process per node.
//!
//! ```text
//!  kv                                    starts three nodes of itself, uses them, ends them
//!  kv ID HTTP DIR 1=ADDR 2=ADDR 3=ADDR   one node: PUT and GET on http://HTTP/KEY
//! ```
//!
//! Run it with `cargo run --example kv`. Deliberately absent: everything around it. `actorum serve` is
//! this with errors told apart, limits, health, metrics and a demo that kills.

mod trio;

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use actix_web::{App, HttpResponse, HttpServer, http::StatusCode, web};
use actorum::prelude::*;
use serde::{Deserialize, Serialize};

/// What is replicated: a map. The command sets one key.
#[derive(Default, Serialize, Deserialize)]
struct Kv {
    map: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Put {
    key: String,
    value: String,
}

impl StateMachine for Kv {
    type Command = Put;
    type Response = Option<String>; // the previous value

    fn apply(&mut self, _: &ApplyContext, Put { key, value }: &Put) -> Option<String> {
        self.map.insert(key.clone(), value.clone())
    }

    serde_snapshot!();
}

async fn put(raft: web::Data<Raft<Kv>>, key: web::Path<String>, value: String) -> HttpResponse {
    match raft.propose(Put { key: key.into_inner(), value }).await {
        Ok(applied) => HttpResponse::Ok().body(applied.index.to_string()),
        Err(e) => failed(&e),
    }
}

async fn get(raft: web::Data<Raft<Kv>>, key: web::Path<String>) -> HttpResponse {
    match raft.read(move |kv| kv.map.get(&*key).cloned()).await {
        Ok(Some(value)) => HttpResponse::Ok().body(value),
        Ok(None) => HttpResponse::NotFound().finish(),
        Err(e) => failed(&e),
    }
}

/// 504 where the command may have been applied, and 503 where it surely was not.
fn failed(error: &impl ErrorCode) -> HttpResponse {
    let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    HttpResponse::build(status).body(error.to_string())
}

fn main() -> ExitCode {
    match kv() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e}"); // closed: the exit code still says it
            ExitCode::FAILURE
        }
    }
}

fn kv() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    match &args[..] {
        [] => trio::run(),
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
        let _ = web::block(|| io::stdin().read_to_end(&mut Vec::new())).await;
        handle.stop(false).await;
    });
    server.await?;
    raft.shutdown().await;
    Ok(())
}
