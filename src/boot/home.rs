//! Where a node's actors live: in the actix system of the caller's thread, or in one that is made for the node.

use std::{any::Any, future::Future, panic::AssertUnwindSafe, thread};

use actix::prelude::*;
use actorum_core::panics::panic_message;
use actorum_machine::ids::NodeId;
use futures_util::FutureExt;
use tokio::sync::oneshot;

use crate::builder::StartError;

/// The arbiter of a node's actors.
pub(crate) struct Home {
    pub arbiter: ArbiterHandle,
    /// The actix system that was made for this node alone.
    pub own: Option<OwnSystem>,
}

/// An actix system, and its thread, that was made for one node: it ends when this is dropped.
pub(crate) struct OwnSystem(System);

impl Drop for OwnSystem {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Home {
    /// The actix system of this thread if it has one that runs, else a new one on a thread of its own.
    pub(crate) fn find(id: NodeId) -> Result<Home, StartError> {
        // The system of a thread outlives its run there as a name only: it takes nothing any more.
        if let Some(arbiter) = Arbiter::try_current().filter(|arbiter| arbiter.spawn_fn(|| ())) {
            return Ok(Home { arbiter, own: None });
        }
        let (made, system) = std::sync::mpsc::sync_channel(1);
        let run = move || {
            let runner = System::new();
            let _ = made.send(System::current());
            if let Err(error) = runner.run() {
                tracing::error!(%error, "the thread of the actors ended");
            }
        };
        let spawned = thread::Builder::new().name(format!("actorum-{id}")).spawn(run);
        spawned.map_err(|error| StartError::Thread(error.to_string()))?;
        let system = system.recv().map_err(|_| StartError::Thread("no actix system could be made on it".into()))?;
        Ok(Home { arbiter: system.arbiter().clone(), own: Some(OwnSystem(system)) })
    }
}

/// Runs a step of the start on the thread of the actors. The step is spawned there rather than awaited here, so that
/// the future of the caller may travel between threads, and goes on if the caller no longer waits: its result is
/// dropped then, and a node with it.
pub(crate) async fn run_on<T, F>(
    arbiter: &ArbiterHandle,
    step: impl FnOnce() -> F + Send + 'static,
) -> Result<T, StartError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, StartError>> + 'static,
{
    let (sender, result) = oneshot::channel();
    arbiter.spawn_fn(move || {
        actix_rt::spawn(async move {
            let done = AssertUnwindSafe(async { step().await }).catch_unwind().await;
            let panicked = |panic: Box<dyn Any + Send>| {
                Err(StartError::Thread(format!("it panicked: {}", panic_message(&*panic))))
            };
            let _ = sender.send(done.unwrap_or_else(panicked));
        });
    });
    let stopped = "the actix system of the actors was stopped before the node had started";
    result.await.map_err(|_| StartError::Thread(stopped.into()))?
}
