//! The admin API, on its own listener: whoever reaches it can remove nodes from the cluster, and read all of its state.
//!
//! ```text
//!  POST   /members {"id":4,"address":"10.0.0.4:7001","role":"learner"}
//!  POST   /members/4/promote      POST /members/4/demote      DELETE /members/4
//!  POST   /snapshot               GET  /backup                all of them routes of actorum-http
//!  GET    /status                                             as on the public address
//! ```
//!
//! Answered when the change has been applied, with the membership that resulted. Works on any node. On an
//! address that other machines reach, clients must show a certificate: see [`require_certificates`].

use std::{path::Path, sync::Arc};

use actix_web::web::{self, ServiceConfig};
use actorum_http::route::unknown_path;
use actorum_transport::tls::{self, CertError, read_certificates, read_key};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};

use crate::{Failure, kv::Kv};

/// The table of contents.
pub(crate) fn routes(config: &mut ServiceConfig) {
    config
        .configure(actorum_http::members::<Kv>)
        .configure(actorum_http::snapshots::<Kv>)
        .configure(actorum_http::status::<Kv>)
        .default_service(web::to(unknown_path));
}

/// Mutual TLS for the members API: the server shows `cert.pem`, and only clients with a certificate of `ca.pem` are
/// served. The directory may be of another authority than that of the nodes, so that nodes cannot change the
/// membership.
///
/// Also returns when these certificates expire, each with the name of its file. An expired one does not prevent a
/// start: the node is needed, and says what is wrong.
pub(crate) fn require_certificates(dir: &Path) -> Result<(ServerConfig, Vec<(String, i64)>), Failure> {
    let wrong = |file: &str, e: &dyn std::fmt::Display| {
        Failure::new(format!("--admin-certs {}: {e}", dir.join(file).display()))
    };
    if dir.join("ca.key").exists() {
        return Err(wrong("ca.key", &"the authority's key does not belong on a machine that serves: move it away"));
    }
    // `ca.pem` may hold several authorities, each of them good for a client, and `cert.pem` may hold a chain.
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

    // The provider is named here and not installed for the process, since that would decide for all code in the
    // process.
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
