//! The answer to a client that does not get what it asked for.

use std::fmt;

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use actorum::{ErrorCode, NodeId, Reason, StateMachine};
use serde_json::{Value, json};

use crate::Node;

/// A refusal: `{"error": code, "message": text, "leader": id or null}`, and whatever else helps.
///
/// | status | code | applied? |
/// |---|---|---|
/// | 400, 404, 405 | `bad_request`, `not_found`, `method_not_allowed` | no |
/// | 413, 414, 431; 408; 415 | `too_large`; `timeout`; `unsupported_encoding` | no |
/// | 409 | `conflict`, `in_progress`, `learner_not_ready`, `would_lose_majority` | no |
/// | 409 | `foreign_position`, `future_position`: events after a position that this cluster does not have | it is no command |
/// | 500 | `failed`: a snapshot could not be taken | it is no command |
/// | 503 | `deadline_exceeded` of a snapshot: it goes on | it is no command |
/// | 503 | `not_leader`, `behind`, `busy`, `stopped`, `nothing`, `deadline_exceeded`, or the name of a [`Reason`]: `no_majority`, `low_space`, `removed`, .. | no |
/// | 504 | `unknown` | nobody can tell |
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    code: &'static str,
    message: String,
    leader: Option<NodeId>,
    more: Vec<(&'static str, Value)>,
    /// The methods that are possible, if the request used another one.
    allow: Option<&'static str>,
    /// Whether to close the connection, because the rest of a body is still on its way.
    pub(crate) hang_up: bool,
}

impl Refused {
    /// A refusal with this status and code. The message is for a person.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refused {
        Refused { status, code, message: message.into(), leader: None, more: Vec::new(), allow: None, hang_up: false }
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// The node takes no more of these requests at once.
    pub fn busy<S: StateMachine>(node: &Node<S>, message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message).leader(node)
    }

    /// Of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn too_large(limit: usize) -> Refused {
        let message = format!("the body has more than the {limit} bytes that it may have");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message).hang_up()
    }

    /// There is no leader that this node could ask.
    pub fn not_leader<S: StateMachine>(node: &Node<S>, message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "not_leader", message).leader(node)
    }

    /// The node has stopped; the code is the reason, if the reason has a name.
    pub(crate) fn stopped<S: StateMachine>(node: &Node<S>, cause: String) -> Refused {
        let reason = node.raft().status().stop_reason.unwrap_or(Reason::Stopped);
        Refused::unready(node, reason, cause)
    }

    /// This node cannot do it now, and says why.
    pub(crate) fn unready<S: StateMachine>(node: &Node<S>, reason: Reason, message: String) -> Refused {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, reason.name(), message).leader(node)
    }

    /// The library itself did not answer in time.
    pub fn unanswered<S: StateMachine>(node: &Node<S>) -> Refused {
        Refused::new(StatusCode::GATEWAY_TIMEOUT, "unknown", "outcome unknown: the node did not answer in time")
            .leader(node)
    }

    /// An error of the library, by its own code and status.
    pub fn of<S: StateMachine>(node: &Node<S>, error: &dyn ErrorCode) -> Refused {
        let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Refused::new(status, error.code(), error.to_string()).leader(node)
    }

    /// What the client reads.
    pub fn body(&self) -> Value {
        let mut body = json!({ "error": self.code, "message": self.message, "leader": self.leader });
        for (name, value) in &self.more {
            body[*name] = value.clone();
        }
        body
    }

    /// The same with the leader that the node knows of.
    pub fn leader<S: StateMachine>(mut self, node: &Node<S>) -> Refused {
        self.leader = node.raft().status().leader;
        self
    }

    /// The same with one more field in its body.
    pub fn with(mut self, name: &'static str, value: Value) -> Refused {
        self.more.push((name, value));
        self
    }

    /// The same with the methods that are possible.
    pub(crate) fn allow(mut self, methods: &'static str) -> Refused {
        self.allow = Some(methods);
        self
    }

    pub(crate) fn hang_up(mut self) -> Refused {
        self.hang_up = true;
        self
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl ResponseError for Refused {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(allow) = self.allow {
            response.insert_header((header::ALLOW, allow));
        }
        if self.hang_up {
            response.force_close();
        }
        response.content_type("application/json").body(self.body().to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use actorum::{
        Address, Bootstrap, BusyBound, ChangeError, ClusterId, MemoryNetwork, Network, Position, ProposeError,
        RaftSystem, ReadError, Storage, SubscribeError, TakeSnapshotError, prelude::*,
    };
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::events::subscription;

    #[derive(Default, Serialize, Deserialize)]
    struct Nothing;

    impl StateMachine for Nothing {
        type Command = ();
        type Response = ();

        fn apply(&mut self, _: &ApplyContext, (): &()) {}

        serde_snapshot!();
    }

    /// A node by itself, in memory, that leads.
    async fn node() -> Node<Nothing> {
        let founders = BTreeMap::from([(1, Address::from("127.0.0.1:1"))]);
        let builder = RaftSystem::<Nothing>::builder(1).storage(Storage::Memory);
        let builder = builder.network(Network::Memory(MemoryNetwork::new())).bootstrap(Bootstrap::Form(founders));
        let raft = builder.start().await.expect("a node");
        raft.wait_for_leader(Duration::from_secs(30)).await.expect("a leader");
        Node::new(raft)
    }

    fn told(refused: &Refused) -> (u16, &'static str) {
        (refused.status_code().as_u16(), refused.code)
    }

    /// Every error of the library has the code of the table: 503 and 4xx only where nothing was applied.
    #[actix::test]
    async fn codes() {
        let node = node().await;
        let cause = || "why".to_owned();
        let proposals = [
            (ProposeError::NotLeader { leader: Some(2) }, 503, "not_leader"),
            (ProposeError::Busy { bound: BusyBound::OfLeader }, 503, "busy"),
            (ProposeError::DeadlineExceeded { cause: cause() }, 503, "deadline_exceeded"),
            (ProposeError::LowSpace { free: 1, needed: 2 }, 503, "low_space"),
            (ProposeError::Stopped { cause: cause() }, 503, "stopped"),
            (ProposeError::TooLarge { size: 2, limit: 1 }, 413, "too_large"),
            (ProposeError::Invalid { cause: cause() }, 400, "bad_request"),
            (ProposeError::Unknown { cause: cause() }, 504, "unknown"),
        ];
        for (error, status, code) in proposals {
            let surely_not_applied = error.outcome() == actorum::Outcome::Rejected;
            assert_eq!(surely_not_applied, status != 504, "{error}");
            assert_eq!(told(&Refused::of(&node, &error)), (status, code));
        }
        let reads = [
            (ReadError::NotLeader { leader: None }, "not_leader"),
            (ReadError::Busy { bound: BusyBound::OfLeader }, "busy"),
            (ReadError::Stopped { cause: cause() }, "stopped"),
            (ReadError::DeadlineExceeded { cause: cause() }, "deadline_exceeded"),
        ];
        for (error, code) in reads {
            assert_eq!(told(&Refused::of(&node, &error)), (503, code));
        }
        let panicked = ReadError::Panicked { message: cause() };
        assert_eq!(told(&Refused::of(&node, &panicked)), (500, "panicked"));
        let changes = [
            (ChangeError::InProgress, 409, "in_progress"),
            (ChangeError::LearnerNotReady(Default::default()), 409, "learner_not_ready"),
            (ChangeError::WouldLoseMajority(Default::default()), 409, "would_lose_majority"),
            (ChangeError::Invalid { cause: cause() }, 400, "bad_request"),
            (ChangeError::NotLeader { leader: None }, 503, "not_leader"),
            (ChangeError::Busy { bound: BusyBound::OfLeader }, 503, "busy"),
            (ChangeError::DeadlineExceeded { cause: cause() }, 503, "deadline_exceeded"),
            (ChangeError::Stopped { cause: cause() }, 503, "stopped"),
            (ChangeError::Unknown { cause: cause() }, 504, "unknown"),
        ];
        for (error, status, code) in changes {
            let surely_not_made = error.outcome() == actorum::Outcome::Rejected;
            assert_eq!(surely_not_made, status != 504, "{error}");
            assert_eq!(told(&Refused::of(&node, &error)), (status, code));
        }
        let snapshots = [
            (TakeSnapshotError::Stopped { cause: cause() }, 503, "stopped"),
            (TakeSnapshotError::Nothing, 503, "nothing"),
            (TakeSnapshotError::Failed { cause: cause() }, 500, "failed"),
        ];
        for (error, status, code) in snapshots {
            assert_eq!(told(&Refused::of(&node, &error)), (status, code));
        }
        let (position, cluster) = (Position { cluster: ClusterId(1), index: 2 }, ClusterId(3));
        let subscriptions = [
            (SubscribeError::Stopped { cause: cause() }, 503, "stopped"),
            (SubscribeError::Behind { index: 2, applied: 1, cause: cause() }, 503, "behind"),
            (SubscribeError::ForeignPosition { position, cluster }, 409, "foreign_position"),
            (SubscribeError::FuturePosition { index: 2, applied: 1 }, 409, "future_position"),
        ];
        for (error, status, code) in subscriptions {
            assert_eq!(told(&subscription(&node, &error)), (status, code));
        }
        assert_eq!(told(&Refused::unanswered(&node)), (504, "unknown"));
        node.raft().shutdown().await;
    }
}
