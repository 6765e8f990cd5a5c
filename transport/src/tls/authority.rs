//! The authority of a cluster: it issues one certificate per node.
//!
//! Every directory is written under a temporary name and renamed into place, so that it appears whole or not at all.
//! Renaming onto a directory with files in it fails. So nothing is ever overwritten, even by two processes at the same
//! moment, and no lock is needed that a crash could leave behind.

use std::{
    fmt,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actorum_machine::ids::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::CertificateDer;

use super::{CertError, certificates, malformed, node_name, not_after, read};

/// For how many years a certificate is valid, unless days are named. It is long, since nothing renews certificates yet:
/// a cluster that stops because its certificates expire is worse than a certificate that is valid longer than its node,
/// whose id is retired.
const VALID_YEARS: i32 = 10;

/// The authority of one cluster, with the key that signs.
pub struct Authority {
    /// The text of `ca.pem`, which may hold other authorities as well.
    certificates: String,
    /// The one whose key this is.
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// Nothing of the key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A node's directory that was made, and how long its certificate is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// `dir/node-<id>`.
    pub path: PathBuf,
    /// When the certificate ends, in seconds since 1970.
    pub not_after: i64,
    /// When the authority does, which ends the certificate as well.
    pub authority_not_after: i64,
}

/// Makes `dir/ca/{ca.pem, ca.key}` and, for each node, `dir/node-<id>/{ca.pem, cert.pem, key.pem}`. Keys are
/// readable by their owner only. An authority that is already there issues the new certificates; a node
/// that is already there is an error that names it, and then nothing at all was made.
///
/// Returns the directories of the nodes, in the order given.
pub fn make_certificates(dir: &Path, nodes: &[NodeId]) -> Result<Vec<PathBuf>, CertError> {
    Ok(make_certificates_for(dir, nodes, None)?.into_iter().map(|made| made.path).collect())
}

/// The same for so many days from now, in place of about ten years; at most 36,500. A new authority lasts at least as
/// long.
pub fn make_certificates_for(dir: &Path, nodes: &[NodeId], days: Option<u32>) -> Result<Vec<Made>, CertError> {
    if let Some(days) = days.filter(|days| !(1..=MAX_DAYS).contains(days)) {
        return Err(CertError::Generate(format!("a certificate is valid for 1 to {MAX_DAYS} days, not for {days}")));
    }
    super::calendar::checked_now()?;
    for (at, id) in nodes.iter().enumerate() {
        if *id == 0 {
            return Err(CertError::ZeroId);
        }
        let path = dir.join(format!("node-{id}"));
        if path.exists() || nodes[..at].contains(id) {
            return Err(CertError::Exists { path });
        }
    }
    let authority = Authority::load_or_create_for(dir, days)?;
    let authority_not_after = not_after(&authority.certificate).unwrap_or(i64::MAX);
    let issue = |id: &NodeId| {
        let (path, not_after) = authority.issue_for(dir, *id, days)?;
        Ok(Made { path, not_after, authority_not_after })
    };
    nodes.iter().map(issue).collect()
}

/// The most days that a certificate may be valid.
const MAX_DAYS: u32 = 36_500;

impl Authority {
    /// Makes `dir/ca/{ca.pem, ca.key}`; an error if it exists.
    pub fn create(dir: &Path) -> Result<Authority, CertError> {
        Authority::create_for(dir, None)
    }

    fn create_for(dir: &Path, days: Option<u32>) -> Result<Authority, CertError> {
        let key = KeyPair::generate().map_err(generate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "actorum cluster authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, None);
        if let Some(days) = days {
            // Certificates that it will sign are valid no longer than it is. A day more, for they are signed after it.
            let default = params.not_after;
            valid(&mut params, Some(days + 1));
            params.not_after = params.not_after.max(default);
        }
        let certificate = params.self_signed(&key).map_err(generate)?.pem();
        publish(&dir.join("ca"), &[("ca.pem", &certificate, false), ("ca.key", &key.serialize_pem(), true)])?;
        Authority::load(dir)
    }

    /// Loads `dir/ca/{ca.pem, ca.key}`.
    pub fn load(dir: &Path) -> Result<Authority, CertError> {
        let text = |path: &Path| String::from_utf8(read(path)?).map_err(|_| malformed(path, "it is not PEM"));
        let (certificate_path, key_path) = (dir.join("ca").join("ca.pem"), dir.join("ca").join("ca.key"));
        let pem = text(&certificate_path)?;
        let key = KeyPair::from_pem(&text(&key_path)?).map_err(|e| malformed(&key_path, &e.to_string()))?;
        let mut all = certificates(&certificate_path, pem.as_bytes())?.into_iter();
        let certificate = all
            .find(|certificate| has_key(certificate, key.der_bytes()))
            .ok_or_else(|| malformed(&certificate_path, "no certificate in it goes with the ca.key beside it"))?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|e| malformed(&certificate_path, &e.to_string()))?;
        Ok(Authority { certificates: pem, certificate, issuer })
    }

    /// The authority that is there, or a new one.
    pub fn load_or_create(dir: &Path) -> Result<Authority, CertError> {
        Authority::load_or_create_for(dir, None)
    }

    fn load_or_create_for(dir: &Path, days: Option<u32>) -> Result<Authority, CertError> {
        if dir.join("ca").exists() {
            return Authority::load(dir);
        }
        match Authority::create_for(dir, days) {
            // Another process made it in between: all must use the same one.
            Err(CertError::Exists { .. }) => Authority::load(dir),
            made => made,
        }
    }

    /// Makes `dir/node-<id>/{ca.pem, cert.pem, key.pem}` and returns its path; an error if it exists.
    pub fn issue(&self, dir: &Path, id: NodeId) -> Result<PathBuf, CertError> {
        self.issue_for(dir, id, None).map(|(path, _)| path)
    }

    fn issue_for(&self, dir: &Path, id: NodeId, days: Option<u32>) -> Result<(PathBuf, i64), CertError> {
        if id == 0 {
            return Err(CertError::ZeroId);
        }
        let name = node_name(id);
        let key = KeyPair::generate().map_err(generate)?;
        let mut params = CertificateParams::new(vec![name.clone()]).map_err(generate)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every node listens and dials with the same certificate.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, days);
        let not_after = params.not_after.unix_timestamp();
        let certificate = params.signed_by(&key, &self.issuer).map_err(generate)?.pem();
        let path = dir.join(format!("node-{id}"));
        publish(
            &path,
            &[
                ("ca.pem", &self.certificates, false),
                ("cert.pem", &certificate, false),
                ("key.pem", &key.serialize_pem(), true),
            ],
        )?;
        Ok((path, not_after))
    }
}

/// Whether this is the certificate of that public key.
fn has_key(certificate: &CertificateDer<'_>, key: &[u8]) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let parsed = X509Certificate::from_der(certificate);
    parsed.is_ok_and(|(_, certificate)| *certificate.public_key().subject_public_key.data == *key)
}

/// Makes the directory `path` with these files (name, content, whether it is secret), whole or not at all.
fn publish(path: &Path, files: &[(&str, &str, bool)]) -> Result<(), CertError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| CertError::Io { path, source }
    };
    let exists = || CertError::Exists { path: path.to_owned() };
    if path.exists() {
        return Err(exists());
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    owner_only_dir().recursive(true).create(parent).map_err(io(parent))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A random number and not a process id: in two containers on one volume both processes may have the id 1.
    let number = ring::rand::generate::<[u8; 8]>(&ring::rand::SystemRandom::new())
        .map_err(|_| CertError::Generate("the system gives no random numbers".to_owned()))?;
    let temporary = parent.join(format!(".{name}.{:016x}.tmp", u64::from_le_bytes(number.expose())));
    let written = (|| {
        owner_only_dir().create(&temporary).map_err(io(&temporary))?;
        for (name, content, secret) in files {
            let file = temporary.join(name);
            write_new(&file, content, *secret).map_err(io(&file))?;
        }
        fs::rename(&temporary, path).map_err(|e| if path.exists() { exists() } else { io(path)(e) })
    })();
    if written.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

fn write_new(path: &Path, content: &str, secret: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if secret { 0o600 } else { 0o644 });
    #[cfg(not(unix))]
    let _ = secret;
    let mut file = options.open(path)?;
    file.write_all(content.as_bytes())?;
    // Before the rename: after a power cut the directory must not be there with empty files in it.
    file.sync_all()
}

fn owner_only_dir() -> DirBuilder {
    #[allow(unused_mut)]
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

/// When a certificate is valid, for some years or days. It begins at the start of last year, so that a new certificate
/// is valid even for a slow clock.
#[allow(clippy::disallowed_methods, reason = "certificates live in the calendar of the world")]
fn valid(params: &mut CertificateParams, days: Option<u32>) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let year = 1970 + (seconds / 31_556_952) as i32;
    params.not_before = rcgen::date_time_ymd(year - 1, 1, 1);
    params.not_after = match days {
        None => rcgen::date_time_ymd(year + VALID_YEARS, 1, 1),
        Some(days) => rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds + u64::from(days) * 86_400),
    };
}

fn generate(error: rcgen::Error) -> CertError {
    CertError::Generate(error.to_string())
}
