//! Changes of the membership.
//!
//! ```text
//!  POST   /members {"id":4,"address":"10.0.0.4:7001","role":"learner"}
//!  POST   /members/4/promote      POST /members/4/demote      DELETE /members/4
//!  POST   /activate
//! ```
//!
//! Answered when the change has been applied, with the membership that resulted, or with the versions in use. Works on
//! any node.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Payload},
};
use actorum::{Address, ChangeRequest, ConfChange, MemberRole, NodeId, StateMachine};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::{
    GRACE, Node, Refused,
    route::{Query, json_response, object, text},
    strict::{node_id, read_id},
};

/// A request to add a member has some dozen bytes; a generous bound.
const MAX_BODY: usize = 16 << 10;

/// The body of `POST /members`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    #[serde(deserialize_with = "read_id")]
    id: NodeId,
    address: Address,
    role: MemberRole,
}

pub(crate) async fn add<S: StateMachine>(
    node: Data<Node<S>>,
    request: HttpRequest,
    body: Payload,
) -> Result<HttpResponse, Refused> {
    let wish = Wish::of(&request)?;
    let body = text(&node, &request, body, MAX_BODY, wish.deadline).await?;
    let NewMember { id, address, role } = object(&body).map_err(|e| {
        Refused::bad_request(format!(
            "the body must be like {{\"id\":4,\"address\":\"127.0.0.1:7004\",\"role\":\"learner\"}}: {e}"
        ))
    })?;
    // If a new node became a voter at once, it would count in majorities before it holds anything.
    if role != MemberRole::Learner {
        return Err(Refused::bad_request("a new member begins as a learner: promote it once it has caught up"));
    }
    // The library checks the id and the address.
    change(&node, ConfChange::AddLearner(id, address), wish).await
}

pub(crate) async fn remove<S: StateMachine>(
    node: Data<Node<S>>,
    request: HttpRequest,
) -> Result<HttpResponse, Refused> {
    change(&node, ConfChange::Remove(member(&request)?), Wish::of(&request)?).await
}

pub(crate) async fn promote<S: StateMachine>(
    node: Data<Node<S>>,
    request: HttpRequest,
) -> Result<HttpResponse, Refused> {
    change(&node, ConfChange::Promote(member(&request)?), Wish::of(&request)?).await
}

pub(crate) async fn demote<S: StateMachine>(
    node: Data<Node<S>>,
    request: HttpRequest,
) -> Result<HttpResponse, Refused> {
    change(&node, ConfChange::Demote(member(&request)?), Wish::of(&request)?).await
}

/// `POST /activate`: activates what every member understands, also where that waits for an operator.
pub(crate) async fn activate<S: StateMachine>(
    node: Data<Node<S>>,
    request: HttpRequest,
) -> Result<HttpResponse, Refused> {
    let mut query = Query::parse(&request)?;
    let deadline = query.deadline()?;
    query.finish()?;
    let left = deadline.saturating_duration_since(Instant::now());
    match timeout(left + GRACE, node.raft().activate_within(left)).await {
        Ok(answer) => Ok(json_response(json!(answer.map_err(|e| Refused::of(&node, &e))?))),
        Err(_) => Err(Refused::unanswered(&node)),
    }
}

fn member(request: &HttpRequest) -> Result<NodeId, Refused> {
    let id = request.match_info().query("id");
    // Spaces around a number are for flags and lists.
    match id.contains(char::is_whitespace) {
        true => Err(Refused::bad_request(format!("{id:?} is not a node id: leave out the spaces"))),
        false => node_id(id).map_err(Refused::bad_request),
    }
}

/// What the query says: `timeout_ms`, and `force=true` to skip the leader's checks of which nodes are connected.
struct Wish {
    deadline: Instant,
    force: bool,
}

impl Wish {
    fn of(request: &HttpRequest) -> Result<Wish, Refused> {
        let mut query = Query::parse(request)?;
        let deadline = query.deadline()?;
        let force = match query.take("force").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(Refused::bad_request(format!("force={other}: true or false is needed"))),
        };
        query.finish()?;
        Ok(Wish { deadline, force })
    }
}

async fn change<S: StateMachine>(
    node: &Node<S>,
    change: ConfChange,
    Wish { deadline, force }: Wish,
) -> Result<HttpResponse, Refused> {
    let change = ChangeRequest { change, force };
    let left = deadline.saturating_duration_since(Instant::now());
    let membership = match timeout(left + GRACE, node.raft().change_within(change, left)).await {
        Ok(answer) => answer.map_err(|e| Refused::of(node, &e))?,
        Err(_) => return Err(Refused::unanswered(node)),
    };
    Ok(json_response(json!({
        "voters": membership.voters(),
        "learners": membership.learners(),
        "members": membership.members,
        "retired": membership.retired,
    })))
}
