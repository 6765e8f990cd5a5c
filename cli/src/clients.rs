//! The connections of clients: a connection that is silent for too long between two requests is closed.
//!
//! ```text
//!  on_connect ─▶ Client, kept with the connection ◀─ busy while a request or its response is under way
//!      └─ a task looks after it: not busy for SILENCE ▶ shut down
//! ```
//!
//! The server bounds how long the first head of a connection takes, and how long a connection may be silent between two
//! requests; neither bound covers a second head of which only one byte came, and it would hold its connection for ever.
//! For this the code holds a second descriptor of the socket, which is closed with the connection.
//!
//! Deliberately absent: connections under TLS, of which the client has shown a certificate.

use std::{
    any::Any,
    io,
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use actix_web::{
    body::{BodySize, BoxBody, MessageBody},
    dev::Extensions,
    rt,
    web::Bytes,
};
use tokio::time::{Instant, sleep_until};

/// How long a connection may go on without a request under way. This bounds three things: how long it is kept idle, how
/// long the head of the next request may take, and how long the client may take for the rest of the last response.
pub(crate) const SILENCE: Duration = Duration::from_secs(15);

/// One connection.
pub(crate) struct Client {
    socket: TcpStream,
    busy: AtomicUsize,
    /// When it was busy last.
    since: Mutex<Instant>,
}

/// A request or its response is under way, as long as this lives.
pub(crate) struct Busy(Arc<Client>);

impl Client {
    /// For `on_connect`: begins to watch a public connection.
    pub(crate) fn meet(connection: &dyn Any, kept: &mut Extensions) {
        let Some(stream) = connection.downcast_ref::<rt::net::TcpStream>() else { return };
        // Without a free descriptor the connection is not watched; it still counts towards the bound.
        let Ok(socket) = again(stream) else { return };
        let client = Arc::new(Client { socket, busy: AtomicUsize::new(0), since: Mutex::new(Instant::now()) });
        rt::spawn(look_after(Arc::downgrade(&client)));
        kept.insert(client);
    }

    /// A request begins.
    pub(crate) fn begin(self: &Arc<Client>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// When it will have been silent for too long; nothing while it is busy.
    fn due(&self) -> Option<Instant> {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        (self.busy.load(Ordering::Relaxed) == 0).then_some(since + SILENCE)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

fn again(stream: &rt::net::TcpStream) -> io::Result<TcpStream> {
    Ok(TcpStream::from(stream.as_fd().try_clone_to_owned()?))
}

/// Until the connection is gone, or is to go.
async fn look_after(client: Weak<Client>) {
    loop {
        let next = match client.upgrade().map(|client| (client.due(), client)) {
            None => return,
            Some((Some(due), client)) if due <= Instant::now() => {
                // The server reads the end of it. An error: it has ended already.
                let _ = client.socket.shutdown(Shutdown::Both);
                return;
            }
            Some((Some(due), _)) => due,
            Some((None, _)) => Instant::now() + SILENCE,
        };
        sleep_until(next).await;
    }
}

/// A response that marks its connection as busy until all of it was handed over.
pub(crate) struct Held {
    body: BoxBody,
    _busy: Option<Busy>,
}

impl Held {
    /// This body, for as long as it takes.
    pub(crate) fn new(body: impl MessageBody + 'static, busy: Option<Busy>) -> Held {
        Held { body: body.boxed(), _busy: busy }
    }
}

impl MessageBody for Held {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}
