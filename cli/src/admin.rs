//! The admin API, on a listener of its own: who reaches it can take nodes out of the cluster, and read all of its state.
//!
//! ```text
//!  POST   /members {"id":4,"address":"10.0.0.4:7001","role":"learner"}
//!  POST   /members/4/promote      POST /members/4/demote      DELETE /members/4
//!  POST   /snapshot               GET  /backup                see snapshots.rs
//!  GET    /status                                             as on the public address
//! ```
//!
//! Answered when the change has been applied, with the membership that resulted. Works on any node. On an
//! address that other machines reach, clients must show a certificate: see [`require_certificates`].

use std::{path::Path, sync::Arc};

use actix_web::{
    HttpRequest, HttpResponse,
    web::{self, Data, Payload, ServiceConfig},
};
use actorum::{Address, ChangeRequest, ConfChange, MemberRole, NodeId};
use actorum_transport::tls::{self, CertError, read_certificates, read_key};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::{
    Failure,
    http::{LOOK, Node, Query, Refused, at, json_response, look, object, status, text, unknown_path},
    settings::{node_id, read_id},
    snapshots,
};

/// A request to add a member has some dozen bytes; a generous bound.
const MAX_BODY: usize = 16 << 10;
/// How much longer than its deadline the library is waited for.
const GRACE: std::time::Duration = std::time::Duration::from_millis(500);

/// The table of contents.
pub(crate) fn routes(config: &mut ServiceConfig) {
    config
        .service(at("/members", "POST").route(web::post().to(add)))
        .service(at("/members/{id}", "DELETE").route(web::delete().to(remove)))
        .service(at("/members/{id}/promote", "POST").route(web::post().to(promote)))
        .service(at("/members/{id}/demote", "POST").route(web::post().to(demote)))
        .service(at("/snapshot", "POST").route(web::post().to(snapshots::take)))
        .service(at("/backup", LOOK).route(look().to(snapshots::backup)))
        .service(at("/status", LOOK).route(look().to(status)))
        .default_service(web::to(unknown_path));
}

/// The body of `POST /members`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    #[serde(deserialize_with = "read_id")]
    id: NodeId,
    address: Address,
    role: MemberRole,
}

async fn add(node: Data<Node>, request: HttpRequest, body: Payload) -> Result<HttpResponse, Refused> {
    let wish = Wish::of(&request)?;
    let body = text(&request, body, MAX_BODY, wish.deadline).await?;
    let NewMember { id, address, role } = object(&body).map_err(|e| {
        Refused::bad_request(format!(
            "the body must be like {{\"id\":4,\"address\":\"127.0.0.1:7004\",\"role\":\"learner\"}}: {e}"
        ))
    })?;
    // Straight to voter, an empty node would count in majorities before it holds anything.
    if role != MemberRole::Learner {
        return Err(Refused::bad_request("a new member begins as a learner: promote it once it has caught up"));
    }
    // The library looks at the id and the address.
    change(&node, ConfChange::AddLearner(id, address), wish).await
}

async fn remove(node: Data<Node>, request: HttpRequest) -> Result<HttpResponse, Refused> {
    change(&node, ConfChange::Remove(member(&request)?), Wish::of(&request)?).await
}

async fn promote(node: Data<Node>, request: HttpRequest) -> Result<HttpResponse, Refused> {
    change(&node, ConfChange::Promote(member(&request)?), Wish::of(&request)?).await
}

async fn demote(node: Data<Node>, request: HttpRequest) -> Result<HttpResponse, Refused> {
    change(&node, ConfChange::Demote(member(&request)?), Wish::of(&request)?).await
}

fn member(request: &HttpRequest) -> Result<NodeId, Refused> {
    let id = request.match_info().query("id");
    // Spaces around a number are for flags and lists.
    match id.contains(char::is_whitespace) {
        true => Err(Refused::bad_request(format!("{id:?} is not a node id: leave out the spaces"))),
        false => node_id(id).map_err(Refused::bad_request),
    }
}

/// What the query says: `timeout_ms`, and `force=true` to skip the leader's checks of who is connected.
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

async fn change(node: &Node, change: ConfChange, Wish { deadline, force }: Wish) -> Result<HttpResponse, Refused> {
    let change = ChangeRequest { change, force };
    let left = deadline.saturating_duration_since(Instant::now());
    let membership = match timeout(left + GRACE, node.raft.change_within(change, left)).await {
        Ok(answer) => answer.map_err(|e| Refused::change(node, e))?,
        Err(_) => return Err(Refused::unanswered(node)),
    };
    Ok(json_response(json!({
        "voters": membership.voters(),
        "learners": membership.learners(),
        "members": membership.members,
        "retired": membership.retired,
    })))
}

/// Mutual TLS for the members API: the server shows `cert.pem`, and only clients with a certificate of
/// `ca.pem` are served. The directory may be an authority's of its own, so that nodes cannot change the membership.
///
/// Also when these certificates end, each by the name that a person looks for. One that has ended is no reason not to start:
/// the node is needed, and says what is wrong with it.
pub(crate) fn require_certificates(dir: &Path) -> Result<(ServerConfig, Vec<(String, i64)>), Failure> {
    let wrong = |file: &str, e: &dyn std::fmt::Display| {
        Failure::new(format!("--admin-certs {}: {e}", dir.join(file).display()))
    };
    if dir.join("ca.key").exists() {
        return Err(wrong("ca.key", &"the authority's key does not belong on a machine that serves: move it away"));
    }
    // Each may hold several: authorities of which any is good for a client, and a chain.
    let named = |e: CertError| Failure::new(format!("--admin-certs {e}"));
    let certificates = |file: &str| read_certificates(&dir.join(file)).map_err(named);
    let key = read_key(&dir.join("key.pem")).map_err(named)?;
    let (authorities, chain) = (certificates("ca.pem")?, certificates("cert.pem")?);
    let ends = tls::ends(&authorities, &chain).into_iter().map(|(file, end)| (format!("admin-certs/{file}"), end));
    let ends = ends.collect();
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|e| wrong("ca.pem", &e))?;
    }

    // Named, not installed: a process-wide provider would be a decision for everyone in the process.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| wrong("ca.pem", &e))?;
    let config = ServerConfig::builder_with_details(provider, actorum_transport::tls::time_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|e| wrong("key.pem", &e))?;
    Ok((config, ends))
}
