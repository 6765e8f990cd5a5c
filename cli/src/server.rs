//! The HTTP servers, and their answers to bytes that are not a request.
//!
//! ```text
//!  listener ─▶ (TLS) ─▶ Connection ─▶ HTTP/1.1 ─▶ the routes
//!                           ▲              └─ 400, 408, 431 without a body: the parser's own
//!                           └─ gives those the JSON that all errors have, 414 if it was the URL, and counts them
//! ```
//!
//! The parser answers what it cannot read with an empty body, before our code sees it. A [`Connection`] sits under the
//! parser and completes such an answer. It knows such an answer by its head: none of our own answers has an error
//! status and no content. Only a connection that carries a backup, whose bytes could look like anything, is not changed
//! from then on.

use std::{
    io,
    net::TcpListener,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::HttpService;
use actix_service::{ServiceFactoryExt, fn_service, map_config};
use actix_tls::accept::{
    TlsError,
    rustls_0_23::{Acceptor, TlsStream},
};
use actix_web::{
    App, HttpRequest,
    dev::{AppConfig, Server, ServerHandle},
    http::StatusCode,
    middleware::from_fn,
    rt::net::TcpStream,
    web::{Data, ServiceConfig},
};
use futures_util::future::{Ready, ok};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::warn;

use crate::{
    clients::Client,
    http::{self, Node},
};

/// How long the end waits for connections that do not end by themselves, once the node has answered everything.
pub(crate) const LAST_CALL: Duration = Duration::from_secs(3);
/// A stopped server waits for requests in flight, however long the node takes to answer them; only the end of the
/// process cuts that off.
const NEVER_S: u64 = 365 * 24 * 3600;
/// How long the head of a request may take to arrive, from the first byte or from the connection on. Then 408.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server still reads what a refused client sends, so that the client gets the reason.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long a connection may be kept between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What a server serves, and how many it serves at a time.
#[derive(Clone, Copy)]
pub(crate) struct Service {
    /// For messages.
    pub name: &'static str,
    /// Threads. They only translate; the work is the node's.
    pub workers: usize,
    /// Clients that may be connected. At the bound the system lets the next ones wait.
    pub clients: usize,
    /// The table of contents.
    pub routes: fn(&mut ServiceConfig),
}

/// The HTTP service of a connection; a macro, for its type is the router's own and cannot be named.
macro_rules! http_service {
    ($stream:ty, $service:expr, $node:expr) => {{
        let (service, node): (Service, Data<Node>) = ($service, $node.clone());
        let stopping = node.clone();
        let app = App::new().app_data(node).wrap(from_fn(http::count)).configure(service.routes);
        HttpService::build()
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(HEAD_TIMEOUT)
            .client_disconnect_timeout(LAST_WORD)
            // At the end connections that wait for a request close.
            .graceful_shutdown_signal(move || {
                let node = stopping.clone();
                async move { node.stopping().await }
            })
            .on_connect_ext(|connection: &Connection<$stream>, kept: &mut _| connection.keep(kept))
            .h1(map_config(app, |()| AppConfig::default()))
    }};
}

impl Service {
    /// Begins to serve; the handle is how it ends.
    pub(crate) fn listen(
        self,
        node: &Data<Node>,
        listener: TcpListener,
        tls: Option<rustls::ServerConfig>,
    ) -> io::Result<ServerHandle> {
        let builder = Server::build()
            .workers(self.workers)
            .max_concurrent_connections(self.clients)
            .disable_signals()
            .shutdown_timeout(NEVER_S);
        let node = node.clone();
        let builder = match tls {
            None => builder.listen(self.name, listener, move || {
                let served = node.clone();
                let connect = move |stream: TcpStream| -> Ready<Result<_, actix_http::error::DispatchError>> {
                    let peer = stream.peer_addr().ok();
                    ok((Connection::new(stream, served.clone(), |stream, kept| Client::meet(stream, kept)), peer))
                };
                fn_service(connect).and_then(http_service!(TcpStream, self, node))
            })?,
            Some(mut tls) => {
                tls.alpn_protocols.push(b"http/1.1".to_vec());
                builder.listen(self.name, listener, move || {
                    let served = node.clone();
                    let connect = move |stream: TlsStream<TcpStream>| {
                        let peer = stream.get_ref().0.peer_addr().ok();
                        // The client has shown a certificate, so its connection is not watched, see clients.rs.
                        (Connection::new(stream, served.clone(), |_, _| ()), peer)
                    };
                    Acceptor::new(tls.clone())
                        .map_err(TlsError::into_service_error)
                        .map(connect)
                        .and_then(http_service!(TlsStream<TcpStream>, self, node).map_err(TlsError::Service))
                })?
            }
        };
        let server = builder.run();
        let handle = server.handle();
        actix_web::rt::spawn(async move {
            if let Err(e) = server.await {
                warn!("the HTTP server of {} ended: {e}", self.name);
            }
        });
        Ok(handle)
    }
}

/// Whether the bytes of a connection may look like the head of an answer.
#[derive(Default)]
struct Carries {
    anything: AtomicBool,
}

/// The response to this request may hold any bytes, so no later answer on its connection is completed.
pub(crate) fn carries_anything(request: &HttpRequest) {
    if let Some(carries) = request.conn_data::<Arc<Carries>>() {
        carries.anything.store(true, Ordering::Relaxed);
    }
}

/// What is known of the first line since the last answer, because the parser does not say what it could not read.
#[derive(Default)]
struct RequestLine {
    /// Spaces seen: the URL is after the first one.
    spaces: u8,
    /// Bytes of the URL.
    url: usize,
    /// Whether all of the line is here: what follows it is nothing to look at.
    ended: bool,
}

impl RequestLine {
    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                _ if self.ended => return,
                // Empty lines may stand before a request.
                b'\r' | b'\n' if self.spaces == 0 => {}
                b'\n' => self.ended = true,
                b' ' => self.spaces = self.spaces.saturating_add(1),
                _ if self.spaces == 1 => self.url += 1,
                _ => {}
            }
        }
    }
}

/// A connection that gives the parser's own answers a body.
struct Connection<T> {
    stream: T,
    node: Data<Node>,
    meet: fn(&T, &mut actix_web::dev::Extensions),
    carries: Arc<Carries>,
    asked: RequestLine,
    /// Bytes that count as written and are not yet written: a completed answer is longer than the original one.
    rest: Vec<u8>,
    /// How many of them are.
    written: usize,
}

impl<T> Connection<T> {
    fn new(stream: T, node: Data<Node>, meet: fn(&T, &mut actix_web::dev::Extensions)) -> Connection<T> {
        Connection {
            stream,
            node,
            meet,
            carries: Arc::default(),
            asked: RequestLine::default(),
            rest: Vec::new(),
            written: 0,
        }
    }

    fn keep(&self, kept: &mut actix_web::dev::Extensions) {
        (self.meet)(&self.stream, kept);
        kept.insert(self.carries.clone());
    }

    /// The bytes to send in place of these, if they end with an answer without a body.
    fn completed(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.carries.anything.load(Ordering::Relaxed) {
            return None;
        }
        let (head, status) = bare_error(bytes)?;
        let refused = http::unparsed(&self.node, status, self.asked.url);
        self.node.count(refused.status());
        let body = refused.body().to_string();
        let mut all = bytes[..head].to_vec();
        for (at, line) in std::str::from_utf8(&bytes[head..]).ok()?.trim_end().split("\r\n").enumerate() {
            let line = match line.to_ascii_lowercase().starts_with("content-length:") {
                true => &format!("content-type: application/json\r\ncontent-length: {}", body.len()),
                false if at == 0 => &format!("HTTP/1.1 {}", refused.status()),
                false => line,
            };
            all.extend_from_slice(line.as_bytes());
            all.extend_from_slice(b"\r\n");
        }
        all.extend_from_slice(b"\r\n");
        all.extend_from_slice(body.as_bytes());
        Some(all)
    }
}

/// Where the head of an error without content begins that ends these bytes, and its status.
fn bare_error(bytes: &[u8]) -> Option<(usize, StatusCode)> {
    /// Larger than any head of the parser's own.
    const HEAD: usize = 512;
    let from = bytes.len().saturating_sub(HEAD);
    let tail = &bytes[from..];
    let without_end = tail.strip_suffix(b"\r\n\r\n")?;
    let start = without_end.windows(7).rposition(|window| window == b"HTTP/1.")?;
    let head = std::str::from_utf8(&without_end[start..]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse::<StatusCode>().ok()?;
    let empty = lines.any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    let error = status.is_client_error() || status.is_server_error();
    (error && empty && !head.contains("\r\n\r\n")).then_some((from + start, status))
}

impl<T: AsyncWrite + Unpin> Connection<T> {
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.rest.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.rest[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        (self.rest, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        self.asked.read(&into.filled()[before..]);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        let completed = self.completed(bytes);
        self.asked = RequestLine::default();
        let Some(completed) = completed else { return Pin::new(&mut self.stream).poll_write(cx, bytes) };
        self.rest = completed;
        // Bytes that cannot be written at once are written before anything else: see `poll_flush`.
        match self.poll_rest(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The URL is what stands between the first two spaces, in however many pieces it comes, and a body is not looked
    /// at.
    #[test]
    fn the_length_of_a_url() {
        for (request, url) in [
            (&b"GET /kv/a HTTP/1.1\r\nhost: x y\r\n\r\n"[..], 5),
            (b"\r\nDELETE /kv/abc?x=1 HTTP/1.1\r\n\r\na long body", 11),
            (b"GET /kv/unfinished", 14),
            (b"nonsense", 0),
        ] {
            for piece in [1, 3, request.len()] {
                let mut line = RequestLine::default();
                request.chunks(piece).for_each(|piece| line.read(piece));
                assert_eq!(line.url, url, "{}", String::from_utf8_lossy(request));
            }
        }
    }

    /// An answer of the parser's is known by its head, behind whatever was not yet sent; none of ours is taken for one.
    #[test]
    fn answers_without_a_body() {
        let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\n{more}date: now\r\n\r\n").into_bytes();
        let bare = head("400 Bad Request", "content-length: 0\r\nconnection: close\r\n");
        assert_eq!(bare_error(&bare), Some((0, StatusCode::BAD_REQUEST)));
        let before = head("200 OK", "content-length: 2\r\n");
        let both = [&before[..], b"{}", &bare].concat();
        assert_eq!(bare_error(&both), Some((before.len() + 2, StatusCode::BAD_REQUEST)));
        let long = [vec![b'x'; 10_000], head("431 Request Header Fields Too Large", "content-length: 0\r\n")].concat();
        assert_eq!(bare_error(&long), Some((10_000, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)));
        for ours in [
            &b""[..],
            b"\r\n\r\n",
            b"{}",
            &before,
            &bare[..bare.len() - 1],
            &[&bare[..], b"x"].concat(),
            &head("400 Bad Request", "content-length: 20\r\n"),
            &head("204 No Content", "content-length: 0\r\n"),
            &head("400 Bad Request", "transfer-encoding: chunked\r\n"),
            &head("what", "content-length: 0\r\n"),
        ] {
            assert_eq!(bare_error(ours), None, "{}", String::from_utf8_lossy(ours));
        }
    }
}
