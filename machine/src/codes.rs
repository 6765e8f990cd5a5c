//! How errors look over HTTP: a code for programs, and a status. An application has the same ones as the `actorum`
//! binary.
//!
//! | status | applied? |
//! |---|---|
//! | 400, 409, 413 | surely not: send it again only after changing what the code says |
//! | 503 | surely not: it may be sent again |
//! | 504 | it may or may not have been applied |
//! | 500 | a request that changes nothing failed |
//!
//! With the feature `actix-web` each error is a `ResponseError`, so that a handler can use `?`. The body of its
//! response is `{"error": CODE, "message": TEXT, "leader": ID or null}`.

use crate::{
    ids::NodeId,
    outcome::{ChangeError, ProposeError, ReadError, SubscribeError, TakeSnapshotError},
    position::PositionError,
};

/// An error with a name for programs.
pub trait ErrorCode: std::error::Error {
    /// What went wrong, in snake_case. It stays the same in later versions.
    fn code(&self) -> &'static str;

    /// The HTTP status that says what the caller can do.
    fn http_status(&self) -> u16;

    /// The node that leads, which can be asked instead; `None` if the error does not know it.
    fn leader(&self) -> Option<NodeId> {
        None
    }
}

impl ErrorCode for ProposeError {
    fn code(&self) -> &'static str {
        match self {
            ProposeError::NotLeader { .. } => "not_leader",
            ProposeError::Unavailable { reason, .. } => reason.name(),
            ProposeError::DeadlineExceeded { .. } => "deadline_exceeded",
            ProposeError::Busy { .. } => "busy",
            ProposeError::LowSpace { .. } => "low_space",
            ProposeError::NeedsVersion { .. } => "needs_version",
            ProposeError::TooLarge { .. } => "too_large",
            ProposeError::Invalid { .. } => "bad_request",
            ProposeError::Unknown { .. } => "unknown",
            ProposeError::Stopped { .. } => "stopped",
        }
    }

    fn http_status(&self) -> u16 {
        match self {
            ProposeError::TooLarge { .. } => 413,
            ProposeError::Invalid { .. } => 400,
            ProposeError::Unknown { .. } => 504,
            ProposeError::NotLeader { .. }
            | ProposeError::Unavailable { .. }
            | ProposeError::DeadlineExceeded { .. }
            | ProposeError::Busy { .. }
            | ProposeError::LowSpace { .. }
            | ProposeError::NeedsVersion { .. }
            | ProposeError::Stopped { .. } => 503,
        }
    }

    fn leader(&self) -> Option<NodeId> {
        if let ProposeError::NotLeader { leader } = self { *leader } else { None }
    }
}

impl ErrorCode for ReadError {
    fn code(&self) -> &'static str {
        match self {
            ReadError::Unavailable { reason, .. } => reason.name(),
            ReadError::NotLeader { .. } => "not_leader",
            ReadError::DeadlineExceeded { .. } => "deadline_exceeded",
            ReadError::Busy { .. } => "busy",
            ReadError::Panicked { .. } => "panicked",
            ReadError::Stopped { .. } => "stopped",
        }
    }

    fn http_status(&self) -> u16 {
        if let ReadError::Panicked { .. } = self { 500 } else { 503 }
    }

    fn leader(&self) -> Option<NodeId> {
        if let ReadError::NotLeader { leader } = self { *leader } else { None }
    }
}

impl ErrorCode for ChangeError {
    fn code(&self) -> &'static str {
        match self {
            ChangeError::Unavailable { reason, .. } => reason.name(),
            ChangeError::InProgress => "in_progress",
            ChangeError::LearnerNotReady(_) => "learner_not_ready",
            ChangeError::WouldLoseMajority(_) => "would_lose_majority",
            ChangeError::Invalid { .. } => "bad_request",
            ChangeError::NotLeader { .. } => "not_leader",
            ChangeError::DeadlineExceeded { .. } => "deadline_exceeded",
            ChangeError::Busy { .. } => "busy",
            ChangeError::Unknown { .. } => "unknown",
            ChangeError::Stopped { .. } => "stopped",
        }
    }

    fn http_status(&self) -> u16 {
        match self {
            ChangeError::InProgress | ChangeError::LearnerNotReady(_) | ChangeError::WouldLoseMajority(_) => 409,
            ChangeError::Invalid { .. } => 400,
            ChangeError::Unknown { .. } => 504,
            ChangeError::Unavailable { .. }
            | ChangeError::NotLeader { .. }
            | ChangeError::DeadlineExceeded { .. }
            | ChangeError::Busy { .. }
            | ChangeError::Stopped { .. } => 503,
        }
    }

    fn leader(&self) -> Option<NodeId> {
        if let ChangeError::NotLeader { leader } = self { *leader } else { None }
    }
}

impl ErrorCode for SubscribeError {
    fn code(&self) -> &'static str {
        match self {
            SubscribeError::Stopped { .. } => "stopped",
            SubscribeError::DeadlineExceeded { .. } => "deadline_exceeded",
            SubscribeError::ForeignPosition { .. } => "foreign_position",
            SubscribeError::FuturePosition { .. } => "future_position",
            SubscribeError::Behind { .. } => "behind",
        }
    }

    fn http_status(&self) -> u16 {
        match self {
            SubscribeError::ForeignPosition { .. } | SubscribeError::FuturePosition { .. } => 409,
            SubscribeError::Stopped { .. }
            | SubscribeError::DeadlineExceeded { .. }
            | SubscribeError::Behind { .. } => 503,
        }
    }
}

impl ErrorCode for PositionError {
    fn code(&self) -> &'static str {
        "bad_request"
    }

    fn http_status(&self) -> u16 {
        400
    }
}

impl ErrorCode for TakeSnapshotError {
    fn code(&self) -> &'static str {
        match self {
            TakeSnapshotError::Failed { .. } => "failed",
            TakeSnapshotError::DeadlineExceeded { .. } => "deadline_exceeded",
            TakeSnapshotError::Nothing => "nothing",
            TakeSnapshotError::Stopped { .. } => "stopped",
        }
    }

    fn http_status(&self) -> u16 {
        if let TakeSnapshotError::Failed { .. } = self { 500 } else { 503 }
    }
}

/// Turns an error with a code into an HTTP response.
#[cfg(feature = "actix-web")]
pub mod response {
    use actix_web::{HttpResponse, http::StatusCode};
    use serde_json::json;

    use super::*;

    /// The status of an error.
    pub fn status(error: &dyn ErrorCode) -> StatusCode {
        StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// An error as the body of a response.
    pub fn response(error: &dyn ErrorCode) -> HttpResponse {
        let body = json!({ "error": error.code(), "message": error.to_string(), "leader": error.leader() });
        HttpResponse::build(status(error)).content_type("application/json").body(body.to_string())
    }

    /// Implements actix-web's `ResponseError` for errors with a code: those of this crate, and those of the crate above
    /// it.
    #[doc(hidden)]
    #[macro_export]
    macro_rules! response_errors {
        ($($error:ty),*) => {
            $(impl actix_web::ResponseError for $error {
                fn status_code(&self) -> actix_web::http::StatusCode {
                    $crate::codes::response::status(self)
                }

                fn error_response(&self) -> actix_web::HttpResponse {
                    $crate::codes::response::response(self)
                }
            })*
        };
    }

    crate::response_errors!(ProposeError, ReadError, ChangeError, SubscribeError, TakeSnapshotError, PositionError);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        condition::Reason,
        outcome::{BusyBound, Outcome},
    };

    fn facts(error: &dyn ErrorCode) -> (u16, &'static str, Option<NodeId>) {
        (error.http_status(), error.code(), error.leader())
    }

    #[test]
    fn what_may_have_been_applied_is_504_and_nothing_else_is() {
        let (why, reason) = (|| "why".to_owned(), Reason::NoMajority);
        for (error, expected) in [
            (ProposeError::NotLeader { leader: Some(2) }, (503, "not_leader", Some(2))),
            (ProposeError::Unavailable { reason, message: why() }, (503, "no_majority", None)),
            (ProposeError::Busy { bound: BusyBound::OfLeader }, (503, "busy", None)),
            (ProposeError::DeadlineExceeded { cause: why() }, (503, "deadline_exceeded", None)),
            (ProposeError::TooLarge { size: 2, limit: 1 }, (413, "too_large", None)),
            (ProposeError::Invalid { cause: why() }, (400, "bad_request", None)),
            (ProposeError::Unknown { cause: why() }, (504, "unknown", None)),
            (ProposeError::Stopped { cause: why() }, (503, "stopped", None)),
        ] {
            assert_eq!(facts(&error), expected);
            assert_eq!(error.outcome() == Outcome::Unknown, error.http_status() == 504, "{error}");
        }
        for (error, expected) in [
            (ChangeError::InProgress, (409, "in_progress", None)),
            (ChangeError::Unavailable { reason, message: why() }, (503, "no_majority", None)),
            (ChangeError::Invalid { cause: why() }, (400, "bad_request", None)),
            (ChangeError::NotLeader { leader: Some(2) }, (503, "not_leader", Some(2))),
            (ChangeError::Busy { bound: BusyBound::OfLeader }, (503, "busy", None)),
            (ChangeError::DeadlineExceeded { cause: why() }, (503, "deadline_exceeded", None)),
            (ChangeError::Unknown { cause: why() }, (504, "unknown", None)),
            (ChangeError::Stopped { cause: why() }, (503, "stopped", None)),
        ] {
            assert_eq!(facts(&error), expected);
            assert_eq!(error.outcome() == Outcome::Unknown, error.http_status() == 504, "{error}");
        }
    }

    #[test]
    fn a_read_that_panicked_is_a_fault_of_the_server_and_nothing_else_is() {
        let (why, reason) = (|| "why".to_owned(), Reason::NoMajority);
        for (error, expected) in [
            (ReadError::NotLeader { leader: Some(2) }, (503, "not_leader", Some(2))),
            (ReadError::Unavailable { reason, message: why() }, (503, "no_majority", None)),
            (ReadError::DeadlineExceeded { cause: why() }, (503, "deadline_exceeded", None)),
            (ReadError::Busy { bound: BusyBound::OfLeader }, (503, "busy", None)),
            (ReadError::Panicked { message: why() }, (500, "panicked", None)),
            (ReadError::Stopped { cause: why() }, (503, "stopped", None)),
        ] {
            assert_eq!(facts(&error), expected);
        }
        let no_position = "7:7".parse::<crate::position::Position>().unwrap_err();
        assert_eq!(facts(&no_position), (400, "bad_request", None));
    }

    #[cfg(feature = "actix-web")]
    #[actix_rt::test]
    async fn a_response_says_what_the_error_says() {
        use actix_web::{ResponseError, body::to_bytes};
        let error = ProposeError::NotLeader { leader: Some(2) };
        let response = error.error_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers().get("content-type").unwrap(), "application/json");
        let body = to_bytes(response.into_body()).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["error"], &body["leader"]), (&"not_leader".into(), &2.into()));
        assert_eq!(body["message"], error.to_string());
    }
}
