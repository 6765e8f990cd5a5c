//! A small HTTP client for `status` and the demo: blocking, bounded in time and size, never following, never retrying.

use std::{io, time::Duration};

use serde_json::Value;

/// A status document or a value of a mebibyte fits; an endless answer does not.
const MAX_ANSWER: u64 = 4 << 20;

/// Keeps connections alive between requests. Cheap to clone.
#[derive(Clone)]
pub struct Client(ureq::Agent);

/// What came back.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, `null` if it was not JSON.
    pub body: Value,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request never left: there was no connection. Surely nothing was done.
    #[error("{0}")]
    NotSent(String),
    /// It left, or part of it. Nobody can tell what was done.
    #[error("{0}")]
    Unanswered(String),
}

impl Client {
    /// A client whose requests end within this time.
    pub fn new(timeout: Duration) -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(timeout))
            .user_agent(concat!("actorum/", env!("CARGO_PKG_VERSION")));
        Client(ureq::Agent::new_with_config(config.build()))
    }

    /// GET.
    pub fn get(&self, url: &str) -> Result<Answer, CallError> {
        read(self.0.get(url).call())
    }

    /// PUT with a text body.
    pub fn put(&self, url: &str, body: &str) -> Result<Answer, CallError> {
        read(self.0.put(url).send(body))
    }
}

fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, CallError> {
    let mut response = response.map_err(|e| match &e {
        // Refused before a byte was written. Any other error may have come after the request had left,
        // also on a kept connection that the other side closed meanwhile.
        ureq::Error::Io(io) if io.kind() == io::ErrorKind::ConnectionRefused => CallError::NotSent(e.to_string()),
        ureq::Error::HostNotFound | ureq::Error::BadUri(_) | ureq::Error::ConnectionFailed => {
            CallError::NotSent(e.to_string())
        }
        _ => CallError::Unanswered(e.to_string()),
    })?;
    let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
    let body = body.map_err(|e| CallError::Unanswered(e.to_string()))?;
    Ok(Answer { status: response.status().as_u16(), body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}
