//! Raft for [actix](https://docs.rs/actix) applications: an application spawns one actor, sends it commands, and every
//! node of the cluster applies the same commands in the same order.
//!
//! An application usually begins as one process with its state in memory. Two things are missing then: the state is
//! lost with the disk, and there is no service while the machine is down. A replicated state machine answers both. The
//! state becomes a type whose changes are commands; the commands go into a log; and the Raft algorithm keeps the logs
//! of several machines equal. A command is answered once it is on the disks of a majority. As long as a majority runs,
//! the service runs, and what was answered stays. ([The Raft paper](https://raft.github.io/raft.pdf) has 18 pages and
//! is worth reading; section numbers in these docs are its own.)
//!
//! # What moves
//!
//! ```text
//!  your actor ──Propose──▶ RaftSystem ──▶ core ─┬─▶ log writer ══▶ sled, synced ─┐
//!                                               └─▶ transport ══▶ peers ─────────┤ in parallel
//!  your actor ◀──Applied── state machine ◀── applier ◀── committed ──────────────┘
//! ```
//!
//! - A [`StateMachine`] is your state: a type with one method that applies a command and returns a response.
//! - [`RaftSystem::builder`] collects what a node needs (an id, an address, where its [`Storage`] is, its [`Tls`]
//!   certificates, who founds the cluster) and starts it. The result is a [`Raft`] handle, which is cheap to clone.
//!   ([`Host`] does the same in two steps: the node first, then the group on it.)
//! - [`Raft::propose`] replicates a command from any node and returns the response with the index at which it was
//!   applied.
//! - [`Raft::read`] looks at the state. By default it is linearizable: it sees every write that was answered before it
//!   began.
//! - [`Raft::follow`] and [`Raft::events`] report every command that is applied, for read models and for work that
//!   follows a change.
//! - [`Raft::change`] adds, promotes, demotes and removes members.
//!
//! # A whole application
//!
//! Three nodes in one process, on a network and disks in memory, count together. With `Storage::Sled` and `Tls` in
//! place of the two lines that say `Memory`, each of them is a process of its own on a machine of its own.
//!
//! ```
//! use std::{collections::BTreeMap, time::Duration};
//!
//! use actorum::prelude::*;
//! use serde::{Deserialize, Serialize};
//!
//! /// What is replicated.
//! #[derive(Default, Serialize, Deserialize)]
//! struct Counter {
//!     sum: u64,
//! }
//!
//! /// A command. It is written to the log, so later versions must be able to read it: named fields allow that.
//! #[derive(Serialize, Deserialize)]
//! struct Add {
//!     n: u64,
//! }
//!
//! impl StateMachine for Counter {
//!     type Command = Add;
//!     type Response = u64;
//!
//!     /// Every node calls this with the same commands in the same order, so it uses nothing but its arguments: no
//!     /// clock, no random numbers, no network.
//!     fn apply(&mut self, _: &ApplyContext, Add { n }: &Add) -> u64 {
//!         self.sum += n;
//!         self.sum
//!     }
//!
//!     serde_snapshot!();
//! }
//!
//! #[actix::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let network = MemoryNetwork::new();
//!     let address = |id: NodeId| Address(format!("node-{id}:7001"));
//!     let founders: BTreeMap<NodeId, Address> = (1..=3).map(|id| (id, address(id))).collect();
//!     let mut nodes = Vec::new();
//!     for id in 1..=3 {
//!         let node = RaftSystem::<Counter>::builder(id)
//!             .storage(Storage::Memory)
//!             .network(Network::Memory(network.clone()))
//!             .bootstrap(Bootstrap::Form(founders.clone()));
//!         nodes.push(node.start().await?);
//!     }
//!     nodes[0].wait_for_leader(Duration::from_secs(10)).await?;
//!
//!     // Through any node: a follower forwards the command to the leader.
//!     for (n, node) in (1..).zip(&nodes) {
//!         let applied = node.propose(Add { n }).await?;
//!         println!("{n} was added by entry {}: the sum is {}", applied.index, applied.response);
//!     }
//!     // From any node: a linearizable read sees what was answered before it began.
//!     for node in &nodes {
//!         assert_eq!(node.read(|counter| counter.sum).await?, 6);
//!     }
//!     for node in &nodes {
//!         node.shutdown().await;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # What is promised
//!
//! 1. A command that was answered with [`Applied`] is never lost: not by `kill -9`, not by a power cut of one machine
//!    or of all, not by any sequence of leaders.
//! 2. A node promises nothing before it is on its disk: a vote or an acknowledgement leaves a node only after the write
//!    that it reports was synced.
//! 3. Every request ends, shortly after its deadline at the latest, with one of three outcomes: applied, surely not in
//!    the log, or unknown. [`ProposeError::outcome`] says which of the last two it is. Only what is surely not in the
//!    log may be sent again without a check, unless the command itself can be applied twice.
//! 4. A node that cannot trust its disk, or whose state differs from that of a majority, stops and says why. It never
//!    goes on with only a warning in its log.
//! 5. Every queue has a bound. At the bound a command is refused ([`ProposeError::Busy`]) before it is in the log.
//!
//! # What is not
//!
//! - Members are trusted not to lie: this is Raft, not a protocol against malicious members. Certificates keep
//!   strangers out.
//! - Without a majority nothing is written and no linearizable read is answered. Three nodes survive one failure, five
//!   survive two.
//! - A state machine whose `apply` is not deterministic is found by comparing hashes, after it has diverged; see
//!   [`ResponseCheck`].
//! - One group per node for now. A cluster is upgraded node by node, and what is new is used once every member has it;
//!   a version that was activated never goes out of use ([`guide::upgrading`]).
//!
//! # Where to go
//!
//! - [`guide`]: chapters for the work at hand, from the first project to tests in the simulator.
//! - [`StateMachine`]: what a state machine must and must not do, how its state is captured for snapshots, and how it
//!   changes over time.
//! - [`Config`]: every setting with its meaning, unit, default and cost.
//! - [`Condition`] and [`Status`]: what a node says about itself, for health checks and dashboards.
//! - [`ErrorCode`]: errors as codes and HTTP statuses; with the feature `actix-web` they are `ResponseError`s.
//! - [`custom`]: how to write a store, a network or a clock of your own.
//! - [`disaster_recovery`]: backups, restoring them, and what to do when a majority is lost for good.
//! - [`actorum_testkit`](https://docs.rs/actorum-testkit): the simulator that runs your state machine on
//!   whole clusters under faults, repeatable by a seed.
//! - [`guide::binary`]: the binary `actorum` with a key-value service, and its tools; [`guide::operating`]: its
//!   operation; [`guide::limits`]: what it does not do.
//! - [`guide::figures`]: how fast it is; `ARCHITECTURE.md` says how it is built.

// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// What is outside a simulation's control must not come in unseen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

mod host;
mod builder;
pub mod config;
pub mod custom;
mod raft;
mod request;
mod stream;
mod system;

mod boot;
mod bounds;
mod volume;
mod ingress;
mod status_hub;
mod condition_log;
pub mod disaster_recovery;
#[cfg(feature = "testkit")]
#[doc(hidden)]
pub mod seams;
#[cfg(any(doc, doctest))]
pub mod guide;

pub use actorum_actors::snapshot::manager::Backup;
pub use actorum_core::log::store::StoreError;
pub use actorum_machine::{
    codes::ErrorCode,
    condition::{Condition, Reason, Severity},
    configuration::{Configuration, ConfigurationError, InvalidConfiguration, RoleChange, Shortfall},
    event::{Event, Events},
    ids::{Address, AddressError, ClusterId, GroupId, Incarnation, MAX_NODE_ID, NodeId},
    machine::{self, ApplyContext, MachineError, StateMachine, StateView},
    members::{Change as ConfChange, ChangeRequest, Member, MemberRole, Membership},
    outcome::{Applied, BusyBound, ChangeError, Outcome, ProposeError, ReadError},
    position::{After, Position, PositionError},
    readings::{LearnerReading, MajorityReading},
    response_check::ResponseCheck,
    serde_snapshot,
    status::{
        CertificateExpiry, ClockStatus, CommitConflict, DiskState, DiskStatus, Divergence, DivergenceSide, Formed,
        MemberVersion, NotInUse, PeerProgress, Queues, Role, SnapshotTaken, Snapshots, StateHash, Status, Totals,
        Transfer, VersionStatus,
    },
};
pub use actorum_store::log::{memory::MemoryDisk, store::OpenError};
pub use actorum_transport::memory::MemoryNetwork;

pub use bounds::Bounds;
pub use builder::{Bootstrap, Builder, Network, StartError, StartTransport, Storage, Tls};
pub use config::{ActivateMode, Config, Placement};
pub use host::{GroupConfig, Host, HostBuilder};
pub use raft::Raft;
pub use raft::{NotReady, WaitError};
pub use request::{
    Activate, ActivateError, Follow, Followed, GetStatus, Propose, Read, Shutdown, Subscribe, SubscribeError,
    Subscription, TakeSnapshot, TakeSnapshotError, Unsubscribe,
};
pub use stream::{EventStream, StatusStream};
pub use system::RaftSystem;

/// Everything that an application usually needs.
pub mod prelude {
    pub use crate::{
        Activate, ActivateError, ActivateMode, Address, After, Applied, ApplyContext, Bootstrap, Builder, BusyBound,
        ChangeError, ChangeRequest, ClusterId, Condition, ConfChange, Config, ErrorCode, Event, EventStream, Events,
        Follow, Followed, Formed, GetStatus, GroupConfig, GroupId, Host, HostBuilder, MachineError, Member, MemberRole,
        Membership, MemoryDisk, MemoryNetwork, Network, NodeId, NotReady, Outcome, Placement, Position, Propose,
        ProposeError, Raft, RaftSystem, Read, ReadError, Reason, ResponseCheck, Role, Severity, Shutdown, StartError,
        StateMachine, StateView, Status, StatusStream, Storage, Subscribe, SubscribeError, Subscription, TakeSnapshot,
        TakeSnapshotError, Tls, Unsubscribe, WaitError, serde_snapshot,
    };
}

/// Mistakes planted on purpose, to prove that the simulator finds them.
#[cfg(feature = "planted")]
#[doc(hidden)]
pub use actorum_core::planted;
