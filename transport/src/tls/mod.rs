//! The certificate of a node, and the TLS that both sides of every connection demand.
//!
//! ```text
//!  DIR/ca/{ca.pem, ca.key}                    the authority; stays with the operator
//!  DIR/node-7/{ca.pem, cert.pem, key.pem}     what node 7 gets, and nothing else
//! ```
//!
//! `ca.pem` may hold several authorities, and a certificate of any of them is accepted. So one authority can be
//! replaced by another. `cert.pem` may hold the certificates of intermediate authorities behind the node's own.
//!
//! A node *is* its certificate: the only name in it is `node-7.actorum`, and a peer that claims or is dialled
//! as another id is refused whatever its address. [`TlsIdentity`] is one node's directory, loaded and checked;
//! [`make_certificates`] and [`TlsIdentity::dev`] issue them.
//!
//! Deliberately absent: plaintext, TLS before 1.3, early data (a replayable forward) and session tickets, and
//! a process-wide crypto provider, which belongs to the application.

mod authority;
mod calendar;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use actorum_machine::ids::NodeId;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};

pub use authority::{Authority, Made, make_certificates, make_certificates_for};
pub use calendar::{EARLIEST_S, time_provider};

/// What both sides must offer in the TLS handshake: another protocol on the same port is refused there.
pub const ALPN: &[u8] = b"actorum/1";

/// The only name in the certificate of a node: `node-7.actorum`.
pub fn node_name(id: NodeId) -> String {
    format!("node-{id}.actorum")
}

/// Why a certificate could not be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file or directory could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something already stands where a certificate would go.
    #[error("{path} exists, and certificates are never overwritten: move it away, or choose another directory")]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// A node's directory holds the authority's key.
    #[error(
        "{path} is the authority's key: a node must not be able to issue certificates. Move it off this machine and \
         give the node only ca.pem, cert.pem and key.pem"
    )]
    HoldsAuthorityKey {
        /// The key file.
        path: PathBuf,
    },
    /// The certificate is for another node.
    #[error("{path} is the certificate of {certificate}, not of node {id}")]
    WrongNode {
        /// The certificate file.
        path: PathBuf,
        /// What it names.
        certificate: String,
        /// The id that was asked for.
        id: NodeId,
    },
    /// The certificate was not signed by the authority beside it.
    #[error("{path} was not signed by an authority of the ca.pem beside it: {cause}")]
    NotSigned {
        /// The certificate file.
        path: PathBuf,
        /// What the check said.
        cause: String,
    },
    /// The certificate has expired or is not valid yet.
    #[error("{path} is not valid now: {cause}")]
    NotValidNow {
        /// The certificate file.
        path: PathBuf,
        /// From when, until when.
        cause: String,
    },
    /// The calendar of this machine shows a time that cannot be.
    #[error(
        "the calendar of this machine shows {shows}, and certificates cannot be made or checked by it: set the clock, \
         and keep it with NTP"
    )]
    Calendar {
        /// What it shows.
        shows: String,
    },
    /// A file does not hold what it should.
    #[error("{path}: {cause}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Zero is no node id.
    #[error("a node id is never zero")]
    ZeroId,
    /// A key or certificate could not be generated.
    #[error("cannot generate: {0}")]
    Generate(String),
}

/// One node's certificate, key and authority, loaded and checked against each other.
pub struct TlsIdentity {
    id: NodeId,
    /// Each of them is good for a peer. At least one.
    authorities: Vec<CertificateDer<'static>>,
    /// The node's own, and behind it those of intermediate authorities.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Everything but the key.
impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Clone for TlsIdentity {
    fn clone(&self) -> Self {
        TlsIdentity {
            id: self.id,
            authorities: self.authorities.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl TlsIdentity {
    /// Loads `ca.pem`, `cert.pem` and `key.pem` of `dir` for node `id`.
    ///
    /// Refused are a directory that also holds `ca.key`, a certificate that names anything but exactly this node, one
    /// that this authority did not sign or that is not valid now, and a key of another certificate: all of this is
    /// checked at the start, where a person reads the message, and not only in a peer's log.
    pub fn load(dir: &Path, id: NodeId) -> Result<TlsIdentity, CertError> {
        if id == 0 {
            return Err(CertError::ZeroId);
        }
        let authority_key = dir.join("ca.key");
        if authority_key.exists() {
            return Err(CertError::HoldsAuthorityKey { path: authority_key });
        }
        let file = |name| read(&dir.join(name));
        TlsIdentity::parse(dir, id, [&file("ca.pem")?, &file("cert.pem")?, &file("key.pem")?])
    }

    /// Of the contents of `ca.pem`, `cert.pem` and `key.pem`; `dir` is for messages.
    pub(crate) fn parse(dir: &Path, id: NodeId, [ca, cert, key]: [&[u8]; 3]) -> Result<TlsIdentity, CertError> {
        let cert_path = dir.join("cert.pem");
        let identity = TlsIdentity {
            id,
            authorities: certificates(&dir.join("ca.pem"), ca)?,
            chain: certificates(&cert_path, cert)?,
            key: one_key(&dir.join("key.pem"), key)?,
        };
        identity.check(&cert_path)?;
        identity.server_config().map_err(|e| CertError::Malformed {
            path: dir.join("key.pem"),
            cause: format!("it does not go with cert.pem: {e}"),
        })?;
        Ok(identity)
    }

    /// For development: loads `dir/node-<id>`, after making it, and the authority `dir/ca`, if they are not there.
    ///
    /// Several processes may do this in the same directory at the same moment: each directory appears whole or not at
    /// all, and the second process uses what the first has made. The authority's key lies beside the nodes' here, which
    /// is why this is not for production.
    pub fn dev(dir: &Path, id: NodeId) -> Result<TlsIdentity, CertError> {
        if id == 0 {
            return Err(CertError::ZeroId);
        }
        calendar::checked_now()?;
        let node = dir.join(format!("node-{id}"));
        if !node.exists() {
            match Authority::load_or_create(dir)?.issue(dir, id) {
                // Another process was faster: its certificate is as good.
                Ok(_) | Err(CertError::Exists { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        TlsIdentity::load(&node, id)
    }

    /// The node that this is.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// SHA-256 of the authority's certificate (DER): the same on every node of a cluster when it is formed. Of several
    /// authorities, in whatever order, SHA-256 of theirs.
    pub fn ca_fingerprint(&self) -> [u8; 32] {
        let sha256 = |bytes: &[u8]| -> [u8; 32] {
            let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
            digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
        };
        let mut each: Vec<[u8; 32]> = self.authorities.iter().map(|authority| sha256(authority)).collect();
        each.sort_unstable();
        each.dedup();
        match each[..] {
            [one] => one,
            _ => sha256(&each.concat()),
        }
    }

    fn certificate(&self) -> &CertificateDer<'static> {
        self.chain.first().expect("a file without a certificate is refused when it is read")
    }

    /// The files and until when they are valid, in seconds since 1970.
    pub fn ends(&self) -> Vec<(String, i64)> {
        ends(&self.authorities, &self.chain)
    }

    /// Checks the certificate the way a peer would, so that an error is reported at the start.
    fn check(&self, path: &Path) -> Result<(), CertError> {
        let path = path.to_owned();
        match node_of(self.certificate()) {
            Ok(id) if id == self.id => {}
            _ if self.chain[1..].iter().any(|other| node_of(other) == Ok(self.id)) => {
                return Err(malformed(
                    &path,
                    "the node's own certificate must be the first in it, before those of authorities",
                ));
            }
            Ok(other) => return Err(CertError::WrongNode { path, certificate: node_name(other), id: self.id }),
            Err(names) => return Err(CertError::WrongNode { path, certificate: names, id: self.id }),
        }
        let verifier = client_verifier(&self.authorities)
            .map_err(|e| CertError::Malformed { path: path.with_file_name("ca.pem"), cause: e.to_string() })?;
        use CertificateError::*;
        match verifier.verify_client_cert(self.certificate(), &self.chain[1..], calendar::checked_now()?) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(
                e @ (Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }),
            )) => Err(CertError::NotValidNow { path, cause: e.to_string() }),
            Err(e) => Err(CertError::NotSigned { path, cause: e.to_string() }),
        }
    }

    /// The listening side: every client shows a certificate of one of these authorities.
    pub(crate) fn server_config(&self) -> Result<rustls::ServerConfig, rustls::Error> {
        let verifier = client_verifier(&self.authorities)?;
        let mut config = rustls::ServerConfig::builder_with_details(provider(), time_provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No 0-RTT, and no resumption that could carry it: early data can be replayed, and a replayed forward
        // would propose twice. It also means that every connection shows its certificate anew.
        config.max_early_data_size = 0;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// The dialling side: the server must be exactly `peer`. If its certificate names another node, the second value
    /// has that name, for the log.
    pub(crate) fn client_config(&self, peer: NodeId) -> Result<(rustls::ClientConfig, Stranger), rustls::Error> {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&self.authorities)?), provider())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let stranger = Stranger::default();
        let verifier = ExactNode { inner, peer, stranger: stranger.clone() };
        let mut config = rustls::ClientConfig::builder_with_details(provider(), time_provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous() // the name of the method; the verifier below is stricter than the stock one it calls
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_early_data = false;
        config.resumption = Resumption::disabled();
        Ok((config, stranger))
    }
}

/// Until when a `ca.pem` with these authorities and a `cert.pem` with this chain are good, in seconds since 1970, for
/// any server that uses them. For a chain, the certificate that ends first counts. Of several authorities, those that
/// the chain depends on count, if there are any; of these the one that lasts longest counts, since a replaced authority
/// may stay in the file until it expires.
pub fn ends(authorities: &[CertificateDer<'static>], chain: &[CertificateDer<'static>]) -> Vec<(String, i64)> {
    let signs = |authority: &&CertificateDer<'static>| {
        let verifier = client_verifier(std::slice::from_ref(*authority));
        let (Some((certificate, others)), Ok(verifier)) = (chain.split_first(), verifier) else { return false };
        calendar::checked_now().is_ok_and(|now| verifier.verify_client_cert(certificate, others, now).is_ok())
    };
    let first = chain.iter().filter_map(not_after).min();
    let last = authorities.iter().filter(signs).filter_map(not_after).max();
    let last = last.or_else(|| authorities.iter().filter_map(not_after).max());
    let named = [("cert.pem", first), ("ca.pem", last)];
    named.into_iter().filter_map(|(name, end)| Some((name.to_owned(), end?))).collect()
}

/// What the certificate of a dialled server named, when it was not the node that was dialled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stranger(Arc<Mutex<Option<String>>>);

impl Stranger {
    fn set(&self, names: String) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(names);
    }

    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}

/// The stock verifier (chain, validity, purpose, server name), and then: the certificate names this node
/// and nothing else. A certificate good for two nodes is good for none.
#[derive(Debug)]
struct ExactNode {
    inner: Arc<WebPkiServerVerifier>,
    peer: NodeId,
    stranger: Stranger,
}

impl ServerCertVerifier for ExactNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let named = node_of(end_entity);
        match verified {
            Ok(verified) if named == Ok(self.peer) => Ok(verified),
            Ok(_)
            | Err(rustls::Error::InvalidCertificate(NotValidForName))
            | Err(rustls::Error::InvalidCertificate(NotValidForNameContext { .. })) => {
                self.stranger.set(named.map_or_else(|names| names, node_name));
                Err(rustls::Error::InvalidCertificate(NotValidForName))
            }
            Err(e) => Err(e),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.inner.root_hint_subjects()
    }
}

/// Until when a certificate is valid, in seconds since 1970.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// The node that a certificate names: exactly one subject alternative name, of exactly the form of
/// [`node_name`]. Otherwise the names that it does hold, for the message.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Result<NodeId, String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| "an unreadable certificate".to_owned())?;
    let names = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => &extension.value.general_names[..],
        Ok(None) => return Err("nobody (no subject alternative name)".to_owned()),
        Err(_) => return Err("nobody (an unreadable subject alternative name)".to_owned()),
    };
    if let [GeneralName::DNSName(name)] = names {
        let id = name.strip_prefix("node-").and_then(|rest| rest.strip_suffix(".actorum"));
        if let Some(id) = id.and_then(|id| id.parse::<NodeId>().ok())
            && id != 0
            && *name == node_name(id)
        {
            return Ok(id);
        }
    }
    // Bounded, since the names come from a stranger.
    let mut all = names.iter().take(4).map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
    if all.len() > 200 {
        all = all.chars().take(200).collect();
    }
    Err(all)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    authorities.iter().try_for_each(|authority| roots.add(authority.clone()))?;
    Ok(roots)
}

/// A client with a certificate of one of these authorities is accepted.
fn client_verifier(authorities: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authorities)?), provider());
    builder.build().map_err(|e| rustls::Error::General(e.to_string()))
}

/// How many certificates one file may hold: more than any real file has, and quick to read.
const MAX_CERTIFICATES: usize = 64;

/// All certificates of a file, at least one; each of them can be read. A key among them is refused: files of
/// certificates are handed around.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem).take(MAX_CERTIFICATES + 1) {
        let nth = found.len() + 1;
        let certificate =
            certificate.map_err(|e| malformed(path, &format!("its certificate {nth}: {}", pem_words(&e))))?;
        if let Err(e) = readable(&certificate) {
            return Err(malformed(path, &format!("its certificate {nth} cannot be read: {e}")));
        }
        found.push(certificate);
    }
    if found.is_empty() {
        return Err(malformed(path, "it holds no certificate in PEM"));
    }
    if found.len() > MAX_CERTIFICATES {
        return Err(malformed(path, &format!("it holds more than {MAX_CERTIFICATES} certificates")));
    }
    if PrivateKeyDer::from_pem_slice(pem).is_ok() {
        return Err(malformed(path, "it holds a private key, too: take that out, only certificates belong in it"));
    }
    Ok(found)
}

/// Whether a certificate is one.
fn readable(certificate: &CertificateDer<'_>) -> Result<(), String> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    match X509Certificate::from_der(certificate) {
        Ok(([], _)) => Ok(()),
        Ok((rest, _)) => Err(format!("{} bytes follow it", rest.len())),
        Err(_) => Err("it is no X.509 certificate, or a damaged one".to_owned()),
    }
}

fn one_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertError> {
    let text = String::from_utf8_lossy(pem);
    if text.contains("ENCRYPTED") {
        let cause = "it is encrypted, and nobody is asked for a passphrase when a node starts: store it decrypted, \
                     readable by the node's user alone (openssl pkey -in key.pem -out decrypted.pem)";
        return Err(malformed(path, cause));
    }
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|e| malformed(path, &format!("it holds no private key in PEM: {}", pem_words(&e))))
}

/// What is wrong with a file in PEM, in words.
fn pem_words(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("it is cut off, there is no -----END {}-----", String::from_utf8_lossy(end_marker).trim())
        }
        pem::Error::IllegalSectionStart { line } => {
            let line: String = String::from_utf8_lossy(line).trim().chars().take(80).collect();
            format!("it begins with a line that is none of PEM's: {line}")
        }
        pem::Error::Base64Decode(_) => "what stands between its BEGIN and END lines is not base64".to_owned(),
        pem::Error::NoItemsFound => "there is no BEGIN line of one".to_owned(),
        other => other.to_string(),
    }
}

/// Certificates of a file in PEM, at least one, with the file and what is wrong with it as the error.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertError> {
    certificates(path, &read(path)?)
}

/// The private key of a file in PEM, likewise.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertError> {
    one_key(path, &read(path)?)
}

fn read(path: &Path) -> Result<Vec<u8>, CertError> {
    fs::read(path).map_err(|source| CertError::Io { path: path.to_owned(), source })
}

fn malformed(path: &Path, cause: &str) -> CertError {
    CertError::Malformed { path: path.to_owned(), cause: cause.to_owned() }
}
