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
// Output can be closed or full, and the macros panic then (promise 7): a library logs, and leaves the rest to its
// caller.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

mod builder;
pub mod config;
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
pub mod testkit;

pub use actorum_actors::{
    codes::ErrorCode,
    condition::{Condition, Reason, Severity},
    consistency::ResponseCheck,
    event::{Event, Events},
    log::memory::MemoryDisk,
    machine::{self, ApplyContext, MachineError, StateMachine, StateView},
    members::{Change as ConfChange, ChangeRequest, Member, MemberRole, Membership},
    outcome::{Applied, BusyBound, ChangeError, LearnerReading, MajorityReading, Outcome, ProposeError, ReadError},
    position::{After, Position, PositionError},
    serde_snapshot,
    snapshot::manager::Backup,
    status::{
        CertificateExpiry, ClockStatus, CommitConflict, Disk, DiskState, Divergence, DivergenceSide, Formed,
        PeerProgress, Queues, Role, SnapshotTaken, Snapshots, StateHash, Status, Totals, Transfer,
    },
};
pub use actorum_transport::{
    memory::MemoryNetwork,
    wire::{Address, AddressError, ClusterId, Incarnation, MAX_NODE_ID, NodeId},
};

pub use bounds::Bounds;
pub use builder::{Bootstrap, Builder, Network, StartError, Storage, Tls};
pub use config::{Config, Placement};
pub use raft::Raft;
pub use raft::{NotReady, WaitError};
pub use request::{
    Follow, Followed, GetStatus, Propose, Read, Shutdown, Subscribe, SubscribeError, Subscription, TakeSnapshot,
    TakeSnapshotError, Unsubscribe,
};
pub use stream::{EventStream, StatusStream};
pub use system::RaftSystem;

/// Everything an application usually names.
pub mod prelude {
    pub use crate::{
        Address, After, Applied, ApplyContext, Bootstrap, Builder, BusyBound, ChangeError, ChangeRequest, ClusterId,
        Condition, ConfChange, Config, ErrorCode, Event, EventStream, Events, Follow, Followed, Formed, GetStatus,
        MachineError, Member, MemberRole, Membership, MemoryDisk, MemoryNetwork, Network, NodeId, NotReady, Outcome,
        Placement, Position, Propose, ProposeError, Raft, RaftSystem, Read, ReadError, Reason, ResponseCheck, Role,
        Severity, Shutdown, StartError, StateMachine, StateView, Status, StatusStream, Storage, Subscribe,
        SubscribeError, Subscription, TakeSnapshot, TakeSnapshotError, Tls, Unsubscribe, WaitError, serde_snapshot,
    };
}

/// Mistakes planted on purpose: what the simulator is proven with.
#[cfg(feature = "planted")]
#[doc(hidden)]
pub use actorum_transport::planted;
