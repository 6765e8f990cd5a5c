//! The parts of the routes, for applications whose own routes should answer in the same way: resources that name their
//! methods, bodies with a bound, and queries that are read strictly.

use std::{collections::BTreeMap, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse, Resource, Route, guard,
    http::{StatusCode, header},
    web::{self, Payload},
};
use actorum::{Reason, StateMachine};
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::{GRACE, Node, Refused, strict::whole};

/// The deadline of a request that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest deadline that a request may name. The request holds its admission permit for as long.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a body may take to arrive, however long the deadline is: a client that sends a byte now and then holds
/// memory and a connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The methods of a resource that is only read.
pub const LOOK: &str = "GET, HEAD";

/// A resource with the methods that it knows. To any other the answer is 405 with their names.
pub fn at(path: &str, allow: &'static str) -> Resource {
    let wrong_method = move |request: HttpRequest| async move {
        let message = format!("{} is not possible on {}; possible are: {allow}", request.method(), request.path());
        let refused = Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        Err::<HttpResponse, Refused>(refused.allow(allow))
    };
    web::resource(path).default_service(web::to(wrong_method))
}

/// GET, and HEAD, which is answered as GET without the content.
pub fn look() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// For a path that does not exist.
pub async fn unknown_path(request: HttpRequest) -> Result<HttpResponse, Refused> {
    Err(Refused::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {}", request.path())))
}

/// 200 with a JSON body.
pub fn json_response(body: Value) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(body.to_string())
}

/// The body as text. It keeps at most `limit` bytes, and waits no longer than until the deadline, or until the node
/// shuts down.
pub async fn text<S: StateMachine>(
    node: &Node<S>,
    request: &HttpRequest,
    mut body: Payload,
    limit: usize,
    deadline: Instant,
) -> Result<String, Refused> {
    unencoded(request)?;
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Refused::too_large(limit));
    }
    let chunked = announced.is_none();
    let read = async {
        // The buffer grows with what arrives, so an announced length alone costs no memory.
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| broken_off(&error, chunked))?;
            if bytes.len() + chunk.len() > limit {
                return Err(Refused::too_large(limit));
            }
            bytes.extend_from_slice(&chunk);
        }
        String::from_utf8(bytes).map_err(|e| Refused::bad_request(format!("the body is not UTF-8: {e}")))
    };
    let too_late = Instant::now() + BODY_TIMEOUT;
    let text = tokio::select! {
        biased;
        text = timeout_at(deadline.min(too_late), read) => text.unwrap_or_else(|_| {
            let message = match deadline < too_late {
                true => "the body did not arrive within the deadline of the request (timeout_ms)".to_owned(),
                false => format!("the body did not arrive within the {} s that it may take", BODY_TIMEOUT.as_secs()),
            };
            Err(Refused::bad_request(message).hang_up())
        }),
        () = node.stopping() => {
            let message = "the node is being shut down, and the body has not arrived".to_owned();
            Err(Refused::unready(node, Reason::Stopped, message).hang_up())
        }
    };
    if text.as_ref().is_err_and(|refused| refused.hang_up) {
        // A chunked body that is dropped would be read to its end, which may never come; one that is held
        // when the response leaves makes actix close the connection.
        actix_web::rt::spawn(async move {
            tokio::time::sleep(GRACE).await;
            drop(body);
        });
    }
    text
}

/// A body is taken as it is: a compressed body would be stored compressed, and would not be text.
fn unencoded(request: &HttpRequest) -> Result<(), Refused> {
    for encoding in request.headers().get_all(header::CONTENT_ENCODING) {
        if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") {
            let message = format!(
                "the body has the content-encoding {}, and none is understood here: send it as it is",
                String::from_utf8_lossy(encoding.as_bytes())
            );
            return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message));
        }
    }
    Ok(())
}

/// Why a body ended too early. For a body in chunks, the parser does not tell a malformed body from one that ended.
fn broken_off(error: &actix_web::error::PayloadError, chunked: bool) -> Refused {
    use actix_web::error::PayloadError;
    Refused::bad_request(match error {
        PayloadError::Incomplete(None) | PayloadError::EncodingCorrupted if chunked => {
            "the body in chunks ended too early or is malformed: each chunk is its length in hexadecimal digits, CRLF, \
             so many bytes, CRLF; the last has length 0"
                .to_owned()
        }
        PayloadError::Incomplete(None) => "the body is shorter than content-length announced".to_owned(),
        error => format!("the body broke off: {error}"),
    })
}

/// JSON that has to be an object: in the place of one, a list would be taken for its fields in order.
pub fn object<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, String> {
    match json.trim_start().starts_with('{') || serde_json::from_str::<serde::de::IgnoredAny>(json).is_err() {
        true => serde_json::from_str(json).map_err(|error| error.to_string()),
        false => Err("it is no object".to_owned()),
    }
}

/// The query of a request, read strictly: every parameter at most once, and no unknown parameter.
#[derive(Debug)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads it.
    pub fn parse(request: &HttpRequest) -> Result<Query, Refused> {
        let mut parameters = BTreeMap::new();
        for pair in request.query_string().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = Query::decode(name)?;
            let value = Query::decode(value)?;
            if parameters.insert(name.clone(), value).is_some() {
                return Err(Refused::bad_request(format!("the parameter {name} is given twice")));
            }
        }
        Ok(Query(parameters))
    }

    fn decode(text: &str) -> Result<String, Refused> {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8();
        Ok(decoded.map_err(|e| Refused::bad_request(format!("the query is not UTF-8: {e}")))?.into_owned())
    }

    /// Takes a parameter out.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a number out.
    pub fn number(&mut self, name: &str) -> Result<Option<u64>, Refused> {
        let parse = |text: String| {
            whole(&text).ok_or_else(|| Refused::bad_request(format!("{name}={text}: a whole number is needed")))
        };
        self.take(name).map(parse).transpose()
    }

    /// By when the request must be answered.
    pub fn deadline(&mut self) -> Result<Instant, Refused> {
        Ok(Instant::now() + self.timeout(DEFAULT_TIMEOUT)?)
    }

    /// How long the request may take; this long if it does not say so itself.
    pub fn timeout(&mut self, default: Duration) -> Result<Duration, Refused> {
        let timeout = self.number("timeout_ms")?.map_or(default, Duration::from_millis);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            let most = MAX_TIMEOUT.as_millis();
            return Err(Refused::bad_request(format!("timeout_ms must be between 1 and {most}")));
        }
        Ok(timeout)
    }

    /// A client that sends a parameter means something by it, so a parameter that no route took is an error.
    pub fn finish(self) -> Result<(), Refused> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(Refused::bad_request(format!("the parameter {name} is not known here"))),
        }
    }
}
