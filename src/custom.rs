//! How an application writes a store, a network or a clock of its own.
//!
//! | to give the builder | implement | and prove it with |
//! |---|---|---|
//! | [`Storage::Custom`](crate::Storage::Custom) | [`storage::LogStore`], [`storage::LogReader`], [`storage::LogAppender`] | [`storage::conformance`] |
//! | [`Network::Custom`](crate::Network::Custom) | actors that take the messages of [`network::TransportHandle`] | your application's own tests |
//! | [`Builder::clock`](crate::Builder::clock) | [`clock::Clock`] | |
//!
//! The promises of the library depend on these: a store that says "durable" too early, or a network that delivers a
//! message under another peer's id, breaks them. Most applications need none of them.
//! [`Storage::Memory`](crate::Storage::Memory) and [`Network::Memory`](crate::Network::Memory) are for tests, and whole
//! clusters under faults are what the package `actorum-testkit` is for.
//!
//! These types depend more on the inside of the library than the rest of its API does, so they change more often from
//! version to version.

pub mod storage {
    //! A log of your own: what it must do, and what is asked of it.
    //!
    //! A store is opened, read ([`LogStore::recover`]) and started once. From then on batches are submitted in order,
    //! and each completion says that its batch, and all before it, are durable: after a power cut they are there,
    //! whole. [`conformance`] is a suite that any store can run:
    //!
    //! ```no_run
    //! use actorum::{
    //!     Incarnation, MemoryDisk,
    //!     custom::storage::{LogStore, conformance},
    //! };
    //!
    //! // An empty disk each time, and a function that opens the store on it again and again.
    //! conformance(|| {
    //!     let disk = MemoryDisk::new();
    //!     move || -> Box<dyn LogStore> { Box::new(disk.open(1, Incarnation(7)).unwrap()) }
    //! });
    //! ```

    pub use actorum_core::{
        lives::LifeBook,
        log::store::{At, Compact, HardState, LogReader, Recovered, StoreError, Write},
        wire::{ConfState, Entry, EntryKind, Snapshot},
    };
    pub use actorum_machine::ids::GroupId;
    pub use actorum_store::{
        log::{
            conformance::conformance,
            reserve::Reserve,
            store::{
                Batch, BatchNumber, Completed, Completions, LogAppender, LogStore, Looked, OpenError, Probe, Space,
                StoreIdentity, Written,
            },
        },
        snapshot::SnapshotStore,
    };
}

pub mod network {
    //! A network of your own: the messages between it and the actors above it.
    //!
    //! A transport is one or more actors whose addresses are in a [`TransportHandle`]. It sends what it is given
    //! ([`Transmit`], [`Ask`]), and delivers what peers send to the [`Handlers`] of the group that it belongs to, which
    //! come with [`Attach`]; before that it delivers nothing. It may lose, delay and reorder messages, and must say
    //! when it dropped some ([`Unreachable`]). Each [`Ask`] ends with exactly one [`Answered`]. It must never deliver a
    //! message under the name of a peer that did not send it. The built-in transport uses certificates for that.

    pub use actorum_core::{
        features::{Feature, Features},
        identity::{Identity, RefusedBecause},
        lives::LifeBook,
        wire::{AskError, MessageKind, RaftMessage, Refusal, Request, Response},
    };
    pub use actorum_machine::ids::GroupId;
    pub use actorum_transport::message::{
        Answered, Ask, Asked, Attach, AttachNode, Close, GetTransportStatus, Handlers, NodeHandlers, Peer, PeerRefused,
        PeerStatus, PeerUp, Received, Responder, SetCluster, SetPeers, Transmit, TransportHandle, TransportStatus,
        Unreachable,
    };
}

pub mod clock {
    //! A clock of your own. Everything in a node that makes a decision by time asks only this clock.
    //!
    //! ```
    //! use std::{
    //!     sync::Arc,
    //!     time::{Duration, SystemTime},
    //! };
    //!
    //! use actorum::{
    //!     custom::clock::{Clock, SystemClock},
    //!     prelude::*,
    //!     serde_snapshot,
    //! };
    //! # #[derive(Default, serde::Serialize, serde::Deserialize)]
    //! # struct Counter(u64);
    //! # impl StateMachine for Counter {
    //! #     type Command = u64;
    //! #     type Response = u64;
    //! #     fn apply(&mut self, _: &ApplyContext, n: &u64) -> u64 { self.0 += n; self.0 }
    //! #     serde_snapshot!();
    //! # }
    //!
    //! /// The machine's clock, with the calendar of another year: for a test of what an application does with
    //! /// `ApplyContext::time`.
    //! struct InAnotherYear(Arc<dyn Clock>);
    //!
    //! impl Clock for InAnotherYear {
    //!     fn now(&self) -> Duration {
    //!         self.0.now()
    //!     }
    //!
    //!     fn wall(&self) -> SystemTime {
    //!         self.0.wall() + Duration::from_secs(365 * 24 * 60 * 60)
    //!     }
    //! }
    //!
    //! let builder = RaftSystem::<Counter>::builder(1).clock(Arc::new(InAnotherYear(SystemClock::shared())));
    //! ```

    pub use actorum_actors::clock::{Alarm, Clock, SystemClock};
}
