//! Raft for actix applications: spawn one actor, propose commands, and every node applies them.
//!
//! Start with [`RaftSystem::builder`], send [`Propose`] messages or call [`Raft::propose`].
//!
//! ```text
//!  your actor ──Propose──▶ RaftSystem ──▶ core ─┬─▶ log writer ══▶ sled, synced ─┐
//!                                               └─▶ transport ══▶ peers ─────────┤ in parallel
//!  your actor ◀──Applied── state machine ◀── applier ◀── committed ──────────────┘
//! ```

// What is outside a simulation's control must not come in unseen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

mod builder;
pub mod config;
mod raft;
mod request;
mod system;

mod boot;
mod door;
mod board;
pub mod rescue;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use actorum_actors::{
    event::{Event, Events},
    machine::{self, ApplyContext, Frozen, MachineError, StateMachine},
    members::{Change as ConfChange, Member, MemberRole, Membership},
    outcome::{Applied, ChangeError, Outcome, ProposeError, ReadError},
    serde_snapshot,
    snapshot::keeper::Backup,
    status::{Disk, DiskState, Formed, PeerProgress, Queues, Role, SnapshotTaken, Snapshots, Status, Totals, Transfer},
};
pub use actorum_transport::{
    memory::MemoryNetwork,
    wire::{Address, AddressError, ClusterId, Incarnation, MAX_NODE_ID, NodeId},
};

pub use builder::{Bootstrap, Builder, Network, StartError, Storage, Tls};
pub use config::Config;
pub use raft::Raft;
pub use raft::WaitError;
pub use request::{
    GetStatus, Propose, Read, Shutdown, Subscribe, SubscribeError, Subscription, TakeSnapshot, TakeSnapshotError,
    Unsubscribe,
};
pub use system::RaftSystem;

/// Everything an application usually names.
pub mod prelude {
    pub use crate::{
        Applied, ApplyContext, Bootstrap, ChangeError, ConfChange, Config, Event, Events, Frozen, GetStatus,
        MachineError, Propose, ProposeError, Raft, RaftSystem, Read, ReadError, Role, Shutdown, StateMachine, Status,
        Storage, Subscribe, TakeSnapshot, Tls, serde_snapshot,
    };
}

/// Mistakes planted on purpose: what the simulator is proven with.
#[cfg(feature = "planted")]
#[doc(hidden)]
pub use actorum_transport::planted;
