//! A state machine that keeps its own durable storage: a ledger in a sled tree.
//!
//! After a restart the library asks [`StateMachine::applied`] how far the machine's own storage has come and
//! replays only what comes after that. The one duty: write the index and term *atomically with* each command's effect.
//!
//! The ledger does not sync: after a crash its tree may be a little behind, and the library applies the rest from the
//! log, which is durable. If the log no longer reaches back so far, the snapshot before it is restored first.
//! `tests/durable.rs` kills it again and again. Run it with `cargo run --example durable`.

use std::{
    collections::BTreeMap,
    error::Error,
    io::{self, Read, Write},
    net::UdpSocket,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use actorum::{Builder, prelude::*};
use serde::{Deserialize, Serialize};

/// Counts how often each id was booked; the storage is the state.
pub(crate) struct Ledger {
    tree: sled::Tree,
    /// How many commands this process has applied.
    applied_here: u64,
}

/// Book this id.
#[derive(Serialize, Deserialize)]
pub(crate) struct Book {
    /// Which.
    pub id: u64,
}

const APPLIED: &[u8] = b"applied";

impl Ledger {
    /// Opens it, new or not.
    pub(crate) fn open(dir: &Path) -> Result<Ledger, sled::Error> {
        Ok(Ledger { tree: sled::open(dir)?.open_tree("ledger")?, applied_here: 0 })
    }

    /// How often an id was booked.
    pub(crate) fn booked(&self, id: u64) -> u64 {
        self.tree.get(id.to_be_bytes()).expect(DISK).map_or(0, |count| number(&count))
    }

    /// How often the id was booked that was booked most.
    #[allow(dead_code)] // for the test
    pub(crate) fn most(&self) -> u64 {
        let bookings = self.tree.iter().map(|pair| pair.expect(DISK));
        bookings.filter(|(key, _)| key.as_ref() != APPLIED).map(|(_, count)| number(&count)).max().unwrap_or(0)
    }

    /// How often all ids together were booked.
    pub(crate) fn total(&self) -> u64 {
        let bookings = self.tree.iter().map(|pair| pair.expect(DISK));
        bookings.filter(|(key, _)| key.as_ref() != APPLIED).map(|(_, count)| number(&count)).sum()
    }
}

/// A machine that cannot reach its storage must not go on: the panic stops this node, with its cause in the status.
const DISK: &str = "the ledger's storage can be read and written";

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes were written"))
}

impl StateMachine for Ledger {
    type Command = Book;
    type Response = u64;

    fn apply(&mut self, ctx: &ApplyContext, Book { id }: &Book) -> u64 {
        let count = self.booked(*id) + 1;
        let mut batch = sled::Batch::default();
        batch.insert(&id.to_be_bytes(), &count.to_be_bytes());
        // In the same batch as the effect, so that a crash leaves both or neither.
        batch.insert(APPLIED, [ctx.index.to_be_bytes(), ctx.term.to_be_bytes()].concat());
        self.tree.apply_batch(batch).expect(DISK);
        self.applied_here += 1;
        count
    }

    fn applied(&self) -> Option<(u64, u64)> {
        let pair = self.tree.get(APPLIED).expect(DISK)?;
        Some((number(&pair[..8]), number(&pair[8..])))
    }

    fn snapshot(&self) -> Result<StateView, MachineError> {
        let pairs = self.tree.iter().map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())));
        let pairs = pairs.collect::<Result<Vec<_>, _>>().map_err(MachineError::new)?;
        actorum::machine::encode(&pairs).map(StateView::bytes)
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), MachineError> {
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = actorum::machine::decode_from(from)?;
        self.tree.clear().map_err(MachineError::new)?;
        let mut batch = sled::Batch::default();
        pairs.into_iter().for_each(|(key, value)| batch.insert(key, value));
        self.tree.apply_batch(batch).map_err(MachineError::new)
    }
}

/// A cluster of one, in a directory.
pub(crate) async fn start(dir: &Path) -> Result<Raft<Ledger>, Box<dyn Error>> {
    let listen = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let raft = Builder::new(1, Ledger::open(&dir.join("ledger"))?)
        .listen(listen)
        .storage(Storage::Sled(dir.join("log")))
        .tls(Tls::DevSelfSigned(dir.join("certificates")))
        .bootstrap(Bootstrap::Form(BTreeMap::from([(1, listen.into())])))
        // A node that is alone waits for no other node.
        .configure(|config| {
            config.heartbeat_ms = 10;
            config.election_ms = 50;
        })
        .from_env("LEDGER")?
        .start()
        .await?;
    raft.wait_for_leader(Duration::from_secs(20)).await?;
    Ok(raft)
}

#[actix::main]
#[allow(dead_code)] // tests/durable.rs takes the machine and leaves this
async fn main() -> ExitCode {
    match book().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e}"); // closed: the exit code still says it
            ExitCode::FAILURE
        }
    }
}

#[allow(dead_code)]
async fn book() -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout();
    let dir = tempfile::tempdir()?;
    let raft = start(dir.path()).await?;
    for id in 0..200 {
        assert_eq!(raft.propose(Book { id }).await?.response, 1, "booked for the first time");
    }
    raft.shutdown().await;
    drop(raft);

    let raft = start(dir.path()).await?;
    let (total, again) = raft.read(|ledger| (ledger.total(), ledger.applied_here)).await?;
    writeln!(out, "200 booked, {total} found after a restart, {again} of them applied again")?;
    assert_eq!((total, again), (200, 0), "what the machine's own storage holds is not replayed");
    raft.shutdown().await;
    writeln!(out, "a machine with its own storage: nothing lost, nothing replayed")?;
    Ok(())
}
