//! The signals that ask a process to end: as a future for `serve`, as a flag for the demo.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// SIGTERM or SIGINT. Installed when this returns, so that none is missed afterwards.
pub(crate) fn terminated() -> io::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// Handles every SIGHUP, which would otherwise end the process: a node must not end because a terminal closes, or
/// because an operator expects that settings are read again.
pub(crate) fn hangups() -> io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            info!("SIGHUP: the node goes on; settings are read at its start only");
        }
    })
}

/// A flag that is up once SIGTERM, SIGINT or SIGHUP has come. For code that waits in small steps and cleans up
/// by leaving its scopes.
pub(crate) fn flag() -> io::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let raised = Arc::new(AtomicBool::new(false));
    let raise = raised.clone();
    let (terminated, mut hangup) = {
        let _inside = runtime.enter();
        (terminated()?, signal(SignalKind::hangup())?)
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            tokio::select! {
                _ = terminated => {}
                _ = hangup.recv() => {}
            }
        });
        raise.store(true, Ordering::SeqCst);
    })?;
    Ok(raised)
}
