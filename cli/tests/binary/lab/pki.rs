//! Authorities, chains and certificates of a test's own making, and a client that shows them.

use std::{
    error::Error,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Who issues certificates: a root, or one between a root and nodes.
pub(crate) struct Authority {
    /// Its own certificate.
    pub pem: String,
    /// What goes behind a certificate that it issues, up to the root and without that.
    chain: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its chain, and its key.
pub(crate) struct Identity {
    /// The certificate, and behind it those of the authorities between.
    pub cert: String,
    /// The certificate alone.
    pub alone: String,
    /// Its key.
    pub key: String,
}

/// So many days and an hour from now on.
fn in_days(days: u64) -> rcgen::CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    let mut params = CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + Duration::from_secs(days * 86_400 + 3600);
    params
}

fn authority(name: &str, days: u64) -> CertificateParams {
    let mut params = in_days(days);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    params
}

impl Authority {
    /// A root that is good for so many days.
    pub(crate) fn root(name: &str, days: u64) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let pem = authority(name, days).self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).expect("an issuer");
        Authority { pem, chain: String::new(), issuer }
    }

    /// One below this one.
    pub(crate) fn between(&self, name: &str, days: u64) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let pem = authority(name, days).signed_by(&key, &self.issuer).expect("a certificate").pem();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).expect("an issuer");
        Authority { chain: format!("{pem}{}", self.chain), pem, issuer }
    }

    /// A certificate of `node-<id>.actorum`, good for so many days.
    pub(crate) fn issue(&self, id: u64, days: u64) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let named = CertificateParams::new(vec![format!("node-{id}.actorum")]).expect("a name");
        let mut params = in_days(days);
        params.subject_alt_names = named.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let alone = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Identity { cert: format!("{alone}{}", self.chain), alone, key: key.serialize_pem() }
    }
}

impl Identity {
    /// Writes `ca.pem`, `cert.pem` and `key.pem`.
    pub(crate) fn place(&self, dir: &Path, authorities: &[&Authority]) -> PathBuf {
        fs::create_dir_all(dir).expect("a directory");
        let ca: String = authorities.iter().map(|authority| authority.pem.as_str()).collect();
        for (name, content) in [("ca.pem", &ca), ("cert.pem", &self.cert), ("key.pem", &self.key)] {
            fs::write(dir.join(name), content).expect("written");
        }
        dir.to_owned()
    }
}

/// `GET path` over TLS, where the server must show a certificate of `node-1.actorum` by one of these authorities: what
/// came back, or why nothing did. The client shows this certificate and key, both in PEM, if it has one.
pub(crate) fn tls_get(
    address: SocketAddr,
    path: &str,
    authorities: &str,
    client: Option<(&str, &str)>,
) -> Result<String, Box<dyn Error>> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let certificates = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates(authorities)? {
        roots.add(authority)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            config.with_client_auth_cert(certificates(cert)?, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
        }
    };
    let connection = rustls::ClientConnection::new(Arc::new(config), "node-1.actorum".try_into()?)?;
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(super::TIMEOUT))?;
    let mut stream = rustls::StreamOwned::new(connection, socket);
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Err(_) if !answer.is_empty() => Ok(answer),
        Err(e) => Err(e.into()),
        Ok(_) => Ok(answer),
    }
}
