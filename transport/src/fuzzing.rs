//! Functions for the fuzz targets. No other code outside this crate may use them.

use std::path::Path;

use actorum_machine::ids::NodeId;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::tls::{self, CertError, TlsIdentity};

/// Whom a certificate names.
pub fn node_of(der: &[u8]) -> Result<NodeId, String> {
    tls::node_of(&CertificateDer::from(der))
}

/// The certificates of a PEM text.
pub fn certificates_in(pem: &[u8]) -> Vec<Vec<u8>> {
    CertificateDer::pem_slice_iter(pem).flatten().map(|der| der.to_vec()).take(8).collect()
}

/// A certificate as its own authority: parsed by the verifier that handshakes use.
pub fn verify(der: &[u8]) {
    let mut roots = rustls::RootCertStore::empty();
    let _ = roots.add(CertificateDer::from(der));
}

/// The three files of a node's directory.
pub fn identity(id: NodeId, ca: &[u8], cert: &[u8], key: &[u8]) -> Result<(), CertError> {
    TlsIdentity::parse(Path::new("fuzz"), id, [ca, cert, key]).map(drop)
}
