//! What a node says of itself: its status, whether it lives, and whether it could take a write.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web::Data};
use actorum::{GetStatus, Read, Severity, StateMachine, Status};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    GRACE, Node, Refused,
    route::{Query, json_response},
};

/// How long a probe may take.
const PROBE: Duration = Duration::from_secs(1);

/// `GET /status`.
pub(crate) async fn status<S: StateMachine>(
    node: Data<Node<S>>,
    request: HttpRequest,
) -> Result<HttpResponse, Refused> {
    Query::parse(&request)?.finish()?;
    Ok(json_response(describe(&node.raft().status())))
}

/// The status as the API shows it.
fn describe(status: &Status) -> Value {
    json!({
        "id": status.id,
        "role": status.role,
        "term": status.term,
        "leader": status.leader,
        "first_index": status.first_index,
        "last_index": status.last_index,
        "persisted_index": status.persisted_index,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "snapshot_index": status.snapshot_index,
        "snapshots": status.snapshots,
        "voters": status.membership.voters(),
        "learners": status.membership.learners(),
        "members": status.membership.members,
        "retired": status.membership.retired,
        "peers": status.peers,
        "formed": status.formed,
        "cluster": status.cluster.map(|c| c.to_string()),
        "incarnation": status.incarnation.map(|i| i.to_string()),
        "queues": status.queues,
        "totals": status.totals,
        "disk_bytes": status.disk_bytes,
        "log_bytes": status.log_bytes,
        "disk": status.disk,
        "last_error": status.last_error,
        "stopped": status.stopped,
        "stop_reason": status.stop_reason,
        "ready": status.unready().is_none(),
        "conditions": status.conditions(),
        "refused_by": status.refused_by,
        "certificates": status.certificates,
        "clock": status.clock,
        "state_hash": status.state_hash,
        "divergence": status.divergence,
        "response_divergence": status.response_divergence,
        "commit_conflicts": status.commit_conflicts,
        "versions": status.versions,
    })
}

/// `GET /livez`: is it worth keeping this process? Not while its system has stopped or does not answer. Probes add
/// their own parameters, so this route takes any parameters, as do `/readyz` and `/metrics`.
pub(crate) async fn livez<S: StateMachine>(node: Data<Node<S>>) -> Result<HttpResponse, Refused> {
    // The request goes through the mailbox: a status that was read from memory would not show that the system's thread
    // hangs.
    let status = match timeout(PROBE, node.raft().addr().send(GetStatus)).await {
        Ok(Ok(status)) => status,
        Ok(Err(e)) => return Err(Refused::stopped(&node, format!("the system's mailbox: {e}"))),
        Err(_) => return Err(Refused::stopped(&node, "the system does not answer".to_owned())),
    };
    match status.stopped {
        Some(cause) => Err(Refused::stopped(&node, cause)),
        None => Ok(json_response(json!({ "live": true }))),
    }
}

/// `GET /readyz`: could a write sent here succeed? When nothing in the status makes the node unready, and a
/// linearizable read of nothing shows that its leader is there, has a majority now, and that the node has caught up.
///
/// A condition that does not stop writes (a certificate's end, a clock's offset) is a warning in the answer 200.
pub(crate) async fn readyz<S: StateMachine>(node: Data<Node<S>>) -> Result<HttpResponse, Refused> {
    let conditions = node.raft().status().conditions();
    if let Some(first) = conditions.first().filter(|first| first.severity == Severity::Unready) {
        let refused = Refused::unready(&node, first.reason, first.message.clone());
        return Err(refused.with("conditions", json!(conditions)));
    }
    let read = Read::linearizable(|_: &S| ()).deadline(PROBE);
    match timeout(PROBE + GRACE, node.raft().read_with(read)).await {
        Ok(Ok((index, ()))) => Ok(json_response(json!({ "ready": true, "index": index, "warnings": conditions }))),
        Ok(Err(e)) => Err(Refused::of(&node, &e)),
        Err(_) => Err(Refused::not_leader(&node, "the node did not answer a read in time")),
    }
}
