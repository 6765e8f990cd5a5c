//! The front door.

use std::marker::PhantomData;

use actix::{Actor, Context};
use actorum_actors::machine::StateMachine;
use actorum_transport::wire::NodeId;

use crate::builder::Builder;

/// The one actor an application spawns.
pub struct RaftSystem<S: StateMachine>(PhantomData<S>);

impl<S: StateMachine> Actor for RaftSystem<S> {
    type Context = Context<Self>;
}

impl<S: StateMachine + Default> RaftSystem<S> {
    /// A node with this id, whose state machine starts as `S::default()`.
    pub fn builder(id: NodeId) -> Builder<S> {
        Builder::new(id, S::default())
    }
}
