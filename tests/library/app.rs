//! The program that the design promises its users, word for word: that it compiles is the test of the public names.
#![allow(dead_code, missing_docs)]
#![cfg_attr(rustfmt, rustfmt_skip)]

use actix::prelude::*;
use actorum::prelude::*;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

#[derive(Clone, Serialize, Deserialize)] // 1. what is replicated
enum Cmd { Put { key: String, value: String }, Delete { key: String } }
#[derive(Default, Serialize, Deserialize)]
struct Kv(BTreeMap<String, String>);
impl StateMachine for Kv {
    type Command = Cmd;
    type Response = Option<String>; // the previous value
    fn apply(&mut self, _ctx: &ApplyContext, cmd: &Cmd) -> Option<String> {
        match cmd.clone() {
            Cmd::Put { key, value } => self.0.insert(key, value),
            Cmd::Delete { key } => self.0.remove(&key),
        }
    }
    serde_snapshot!(); // a snapshot by serde; write the three methods instead to stream or to freeze cheaply
}

struct Shop { raft: Raft<Kv> } // 2. any actor proposes, awaits the typed answer, watches what is applied
impl Actor for Shop {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        self.raft.addr().do_send(Subscribe::new(ctx.address().recipient()));
    }
}
#[derive(Message)]
#[rtype(result = "Result<Option<String>, ProposeError>")]
struct Rename(String, String);
impl Handler<Rename> for Shop {
    type Result = ResponseFuture<Result<Option<String>, ProposeError>>;
    fn handle(&mut self, Rename(key, value): Rename, _: &mut Self::Context) -> Self::Result {
        let raft = self.raft.clone();
        Box::pin(async move { Ok(raft.propose(Cmd::Put { key, value }).await?.response) })
    }
}
impl Handler<Event<Kv>> for Shop {
    type Result = ();
    fn handle(&mut self, ev: Event<Kv>, _: &mut Self::Context) {
        if let Event::Applied { index, response, .. } = ev { println!("#{index}: was {response:?}") }
    }
}

#[actix::main] // 3. one call starts, restarts or joins
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let me: SocketAddr = "127.0.0.1:7001".parse()?;
    let raft: Raft<Kv> = RaftSystem::builder(1).listen(me).storage(Storage::Sled("data/1".into()))
        .tls(Tls::DevSelfSigned("data/dev-ca".into())).bootstrap(Bootstrap::Form([(1, me.into())].into()))
        .from_env("ACTORUM")?.start().await?;
    let shop = Shop { raft: raft.clone() }.start();
    let before = shop.send(Rename("k".into(), "v".into())).await??;
    let done = raft.addr().send(Propose::new(Cmd::Delete { key: "k".into() }).deadline(Duration::from_secs(2))).await??;
    let now = raft.read(|kv| kv.0.get("k").cloned()).await?; // linearizable
    raft.addr().send(ConfChange::AddLearner(4, "127.0.0.1:7004".parse::<SocketAddr>()?.into())).await??;
    raft.addr().send(ConfChange::Promote(4)).await??;
    println!("{before:?} {:?} {now:?} {:?}", done.index, raft.status().role);
    raft.shutdown().await;
    Ok(())
}

#[test]
fn it_compiles() {}
