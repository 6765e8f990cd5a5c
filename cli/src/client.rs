//! A small HTTP client for the tools and the demo: blocking, bounded in time and size, without redirects and without
//! retries.

use std::{
    io::{self, Read},
    time::Duration,
};

use actorum_http::BACKUP_HASH;
use serde_json::Value;

/// A status document or a value of a mebibyte fits; an endless answer does not.
const MAX_ANSWER: u64 = 4 << 20;
/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Keeps connections alive between requests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client(ureq::Agent);

/// What came back.
pub(crate) struct HttpReply {
    /// The HTTP status.
    pub status: u16,
    /// The body, `null` if it was not JSON.
    pub body: Value,
}

/// What came back, and goes on.
pub(crate) struct Streamed {
    head: Head,
    /// The rest.
    pub body: Box<dyn Read + Send>,
}

/// What stands before a stream.
#[derive(Clone)]
pub(crate) struct Head {
    /// The HTTP status.
    pub status: u16,
    /// How long the stream is, if it was said.
    pub length: Option<u64>,
    /// What its hash is, if it was said.
    pub hash: Option<String>,
    /// The body, if the status is not 200.
    pub refusal: Value,
}

impl Streamed {
    /// What stands before it.
    pub(crate) fn head(&self) -> Head {
        self.head.clone()
    }
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The request never left: there was no connection. Surely nothing was done.
    #[error("{0}")]
    NotSent(String),
    /// The request, or a part of it, was sent. It is not known whether it was carried out.
    #[error("{0}")]
    Unanswered(String),
}

impl Client {
    /// A client whose requests end within this time.
    pub(crate) fn new(timeout: Duration) -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(timeout))
            .user_agent(concat!("actorum/", env!("CARGO_PKG_VERSION")));
        Client(ureq::Agent::new_with_config(config.build()))
    }

    /// A client that waits for an answer for as long as the connection stands.
    pub(crate) fn patient() -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT_WITHIN))
            .user_agent(concat!("actorum/", env!("CARGO_PKG_VERSION")));
        Client(ureq::Agent::new_with_config(config.build()))
    }

    /// GET.
    pub(crate) fn get(&self, url: &str) -> Result<HttpReply, CallError> {
        read(self.0.get(url).call())
    }

    /// POST without a body.
    pub(crate) fn post(&self, url: &str) -> Result<HttpReply, CallError> {
        read(self.0.post(url).send_empty())
    }

    /// GET of what may be of any size.
    pub(crate) fn stream(&self, url: &str) -> Result<Streamed, CallError> {
        let response = self.0.get(url).call().map_err(|e| error(&e))?;
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (status, length, hash) = (response.status().as_u16(), text("content-length"), text(BACKUP_HASH));
        let length = length.and_then(|length| length.parse().ok());
        let mut body: Box<dyn Read + Send> = Box::new(response.into_body().into_reader());
        let mut refusal = Vec::new();
        if status != 200 {
            let read = (&mut body).take(MAX_ANSWER).read_to_end(&mut refusal);
            read.map_err(|e| CallError::Unanswered(e.to_string()))?;
        }
        let refusal = serde_json::from_slice(&refusal).unwrap_or(Value::Null);
        Ok(Streamed { head: Head { status, length, hash, refusal }, body })
    }

    /// PUT with a text body.
    pub(crate) fn put(&self, url: &str, body: &str) -> Result<HttpReply, CallError> {
        read(self.0.put(url).send(body))
    }
}

fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<HttpReply, CallError> {
    let mut response = response.map_err(|e| error(&e))?;
    let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
    let body = body.map_err(|e| CallError::Unanswered(e.to_string()))?;
    Ok(HttpReply { status: response.status().as_u16(), body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}

fn error(e: &ureq::Error) -> CallError {
    match e {
        // Refused before a byte was written. Any other error may have come after the request had left,
        // also on a kept connection that the other side closed meanwhile.
        ureq::Error::Io(io) if io.kind() == io::ErrorKind::ConnectionRefused => CallError::NotSent(e.to_string()),
        ureq::Error::HostNotFound | ureq::Error::BadUri(_) | ureq::Error::ConnectionFailed => {
            CallError::NotSent(e.to_string())
        }
        _ => CallError::Unanswered(e.to_string()),
    }
}
