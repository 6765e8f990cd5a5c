//! Certificates: made once, for one node, and checked when they are loaded.

use std::{collections::BTreeSet, fs, path::Path};

use crate::support::{self, Certs};
use actorum_transport::tls::{CertError, TlsIdentity, make_certificates};

/// Every file below, with its content.
fn contents(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

#[test]
fn nothing_is_ever_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path(), &[1, 2]).unwrap();
    let before = contents(dir.path());
    let again = make_certificates(dir.path(), &[3, 2]);
    assert!(matches!(again, Err(CertError::Exists { path }) if path.ends_with("node-2")));
    assert_eq!(contents(dir.path()), before, "nothing was made, not even for node 3");
    assert!(matches!(make_certificates(dir.path(), &[4, 4]), Err(CertError::Exists { .. })));
    assert!(matches!(make_certificates(dir.path(), &[0]), Err(CertError::ZeroId)));
    assert_eq!(contents(dir.path()), before);
    // The same authority issues to one more.
    make_certificates(dir.path(), &[3]).unwrap();
    let fingerprint = |id| TlsIdentity::load(&dir.path().join(format!("node-{id}")), id).unwrap().ca_fingerprint();
    assert_eq!(BTreeSet::from([1, 2, 3].map(fingerprint)).len(), 1);
}

#[cfg(unix)]
#[test]
fn keys_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path(), &[1]).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for key in ["ca/ca.key", "node-1/key.pem"] {
        assert_eq!(mode(&dir.path().join(key)), 0o600, "{key}");
    }
    assert_eq!(mode(&dir.path().join("ca")), 0o700);
}

#[test]
fn a_directory_with_the_authoritys_key_is_refused() {
    let certs = Certs::new();
    certs.node(1);
    let node = certs.path().join("node-1");
    fs::copy(certs.path().join("ca/ca.key"), node.join("ca.key")).unwrap();
    let refused = TlsIdentity::load(&node, 1);
    assert!(matches!(refused, Err(CertError::HoldsAuthorityKey { path }) if path.ends_with("ca.key")));
}

#[test]
fn another_nodes_certificate_is_refused() {
    let certs = Certs::new();
    certs.node(1);
    match TlsIdentity::load(&certs.path().join("node-1"), 2) {
        Err(CertError::WrongNode { certificate, id: 2, .. }) => assert_eq!(certificate, "node-1.actorum"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(TlsIdentity::load(&certs.path().join("node-1"), 0), Err(CertError::ZeroId)));
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let (ours, theirs) = (Certs::new(), Certs::new());
    ours.node(1);
    let node = ours.path().join("node-1");
    fs::copy(theirs.path().join("ca/ca.pem"), node.join("ca.pem")).unwrap();
    assert!(matches!(TlsIdentity::load(&node, 1), Err(CertError::NotSigned { .. })));
}

#[test]
fn the_key_of_another_certificate_is_refused() {
    let certs = Certs::new();
    certs.node(1);
    certs.node(2);
    fs::copy(certs.path().join("node-2/key.pem"), certs.path().join("node-1/key.pem")).unwrap();
    assert!(matches!(TlsIdentity::load(&certs.path().join("node-1"), 1), Err(CertError::Malformed { .. })));
}

fn install(certs: &Certs, id: u64, (certificate, key): support::Pair) -> std::path::PathBuf {
    certs.node(id);
    let node = certs.path().join(format!("node-{id}"));
    fs::write(node.join("cert.pem"), pem("CERTIFICATE", &certificate)).unwrap();
    fs::write(node.join("key.pem"), pem("PRIVATE KEY", key.secret_der())).unwrap();
    node
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            let digit = char::from(ALPHABET[(bits >> (18 - 6 * at)) as usize & 63]);
            text.push(if at <= three.len() { digit } else { '=' });
        }
    }
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[test]
fn an_expired_certificate_is_refused() {
    let certs = Certs::new();
    let node = install(&certs, 1, certs.expired(1));
    assert!(matches!(TlsIdentity::load(&node, 1), Err(CertError::NotValidNow { .. })));
    let node = install(&certs, 2, certs.of(2));
    TlsIdentity::load(&node, 2).expect("the same way, and not expired");
}

#[test]
fn a_certificate_for_two_nodes_is_good_for_none() {
    let certs = Certs::new();
    let both = ["node-1.actorum".to_owned(), "node-2.actorum".to_owned()];
    let node = install(&certs, 1, certs.forge(&both, |_| {}));
    assert!(matches!(TlsIdentity::load(&node, 1), Err(CertError::WrongNode { .. })));
}

/// Several processes start at the same moment in an empty directory: one authority, and everyone gets its own.
#[test]
fn development_certificates_are_made_by_many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let made: Vec<_> = std::thread::scope(|scope| {
        let path = dir.path();
        let threads: Vec<_> =
            (0..12).map(|n| scope.spawn(move || TlsIdentity::dev(path, 1 + n % 4).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let authorities: BTreeSet<_> = made.iter().map(TlsIdentity::ca_fingerprint).collect();
    assert_eq!(authorities.len(), 1);
    let left: BTreeSet<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let expected = ["ca", "node-1", "node-2", "node-3", "node-4"].map(str::to_owned);
    assert_eq!(left, expected.into(), "and no temporary directory is left");
}

/// An authority is replaced by having both for a while: any of those in `ca.pem` is good for a certificate, in any
/// order.
#[test]
fn several_authorities() {
    let (old, new) = (Certs::new(), Certs::new());
    let node = install(&old, 1, old.of(1));
    let ca = |certs: &Certs| fs::read_to_string(certs.path().join("ca/ca.pem")).unwrap();
    let alone = TlsIdentity::load(&node, 1).unwrap();
    let with = |content: String| {
        fs::write(node.join("ca.pem"), content).unwrap();
        TlsIdentity::load(&node, 1)
    };
    let both = with(ca(&old) + &ca(&new)).unwrap();
    let turned = with(format!("the new one\n{}\nand the old one\n{}", ca(&new), ca(&old))).unwrap();
    assert_eq!(both.ca_fingerprint(), turned.ca_fingerprint(), "in whatever order");
    assert_ne!(both.ca_fingerprint(), alone.ca_fingerprint());
    assert_eq!(with(ca(&old) + &ca(&old)).unwrap().ca_fingerprint(), alone.ca_fingerprint(), "twice the same is one");
    assert!(matches!(with(ca(&new)), Err(CertError::NotSigned { .. })));
    let key = fs::read_to_string(old.path().join("ca/ca.key")).unwrap();
    match with(ca(&old) + &key) {
        Err(CertError::Malformed { cause, .. }) => assert!(cause.contains("private key"), "{cause}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(with(String::new()), Err(CertError::Malformed { .. })));
    assert!(matches!(with(ca(&old).repeat(65)), Err(CertError::Malformed { .. })));
    with(ca(&old) + &ca(&new)).unwrap();

    // Whoever issues knows which of them is its own.
    fs::write(old.path().join("ca/ca.pem"), ca(&new) + &ca(&old)).unwrap();
    make_certificates(old.path(), &[2]).unwrap();
    TlsIdentity::load(&old.path().join("node-2"), 2).unwrap();
    fs::write(old.path().join("ca/ca.pem"), ca(&new)).unwrap();
    let refused = make_certificates(old.path(), &[3]);
    assert!(matches!(refused, Err(CertError::Malformed { path, .. }) if path.ends_with("ca.pem")));
}

/// What is wrong with a file is said of the very part that is wrong, in words for whoever has to mend it.
#[test]
fn files_that_are_damaged_say_where() {
    let (certs, other) = (Certs::new(), Certs::new());
    let node = install(&certs, 1, certs.of(1));
    let good = |file: &str| fs::read_to_string(node.join(file)).unwrap();
    let (ca, cert, key) = (good("ca.pem"), good("cert.pem"), good("key.pem"));
    let second = fs::read_to_string(other.path().join("ca/ca.pem")).unwrap();
    let broken = pem("CERTIFICATE", b"no certificate at all");
    let half = &ca[..ca.len() / 2];
    let encrypted = pem("ENCRYPTED PRIVATE KEY", b"sealed");
    let old_encrypted = key.replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n");
    let no_base64 = "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n".to_owned();
    for (file, content, words) in [
        ("ca.pem", half.to_owned(), "its certificate 1: it is cut off, there is no -----END CERTIFICATE-----"),
        ("ca.pem", ca.clone() + &second[..second.len() / 2], "its certificate 2: it is cut off"),
        ("ca.pem", ca.clone() + &broken, "its certificate 2 cannot be read: it is no X.509 certificate"),
        ("ca.pem", broken.clone() + &ca, "its certificate 1 cannot be read"),
        (
            "ca.pem",
            ca.clone() + &no_base64,
            "its certificate 2: what stands between its BEGIN and END lines is not base64",
        ),
        ("cert.pem", cert.clone() + &broken, "its certificate 2 cannot be read"),
        ("cert.pem", "text".to_owned(), "it holds no certificate in PEM"),
        ("key.pem", encrypted, "it is encrypted"),
        ("key.pem", old_encrypted, "it is encrypted"),
        ("key.pem", key[..key.len() / 2].to_owned(), "it is cut off, there is no -----END"),
        ("key.pem", cert.clone(), "it holds no private key in PEM: there is no BEGIN line of one"),
    ] {
        let before = good(file);
        fs::write(node.join(file), &content).unwrap();
        match TlsIdentity::load(&node, 1) {
            Err(CertError::Malformed { path, cause }) => {
                assert!(path.ends_with(file) && cause.contains(words), "{file}: {cause}, and not {words}");
                assert!(!cause.contains('['), "bytes as numbers are nobody's words: {cause}");
            }
            other => panic!("{other:?} of {file}: {content}"),
        }
        fs::write(node.join(file), before).unwrap();
    }
    TlsIdentity::load(&node, 1).unwrap();
}

/// `cert.pem` may bring the certificates of intermediate authorities, behind the node's own.
#[test]
fn a_chain() {
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let [root_key, between_key, key] = [(); 3].map(|()| KeyPair::generate().unwrap());
    let root = authority("the root").self_signed(&root_key).unwrap();
    let root_issuer = Issuer::from_ca_cert_der(root.der(), root_key).unwrap();
    let between = authority("between").signed_by(&between_key, &root_issuer).unwrap();
    let between_issuer = Issuer::from_ca_cert_der(between.der(), between_key).unwrap();
    let mut params = CertificateParams::new(vec!["node-1.actorum".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let own = params.signed_by(&key, &between_issuer).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: String| fs::write(dir.path().join(name), content).unwrap();
    write("ca.pem", root.pem());
    write("key.pem", key.serialize_pem());
    let with = |cert: String| {
        write("cert.pem", cert);
        TlsIdentity::load(dir.path(), 1)
    };
    with(own.pem() + &between.pem()).unwrap();
    assert!(matches!(with(own.pem()), Err(CertError::NotSigned { .. })), "nobody could follow it to the root");
    match with(between.pem() + &own.pem()) {
        Err(CertError::Malformed { cause, .. }) => assert!(cause.contains("must be the first"), "{cause}"),
        other => panic!("{other:?}"),
    }
}

/// A certificate lasts as long as was asked for, and never longer than is said.
#[test]
fn days() {
    use actorum_transport::tls::make_certificates_for;
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        i64::try_from(now.as_secs()).unwrap()
    };
    const DAY: i64 = 86_400;
    let dir = tempfile::tempdir().unwrap();
    let before = now();
    let made = make_certificates_for(dir.path(), &[1], Some(30)).unwrap().remove(0);
    assert!((before + 30 * DAY..=now() + 30 * DAY).contains(&made.not_after), "{made:?}");
    assert!(made.authority_not_after > before + 9 * 365 * DAY, "the authority signs others later: {made:?}");
    let ends = TlsIdentity::load(&made.path, 1).unwrap().ends();
    assert_eq!(ends, [("cert.pem".to_owned(), made.not_after), ("ca.pem".to_owned(), made.authority_not_after)]);
    let plain = make_certificates_for(dir.path(), &[2], None).unwrap().remove(0);
    assert!(plain.not_after > before + 9 * 365 * DAY, "{plain:?}");

    let other = tempfile::tempdir().unwrap();
    let long = make_certificates_for(other.path(), &[1], Some(36_500)).unwrap().remove(0);
    assert!(long.not_after > before + 99 * 365 * DAY && long.authority_not_after > long.not_after, "{long:?}");
    for days in [0, 36_501, u32::MAX] {
        assert!(matches!(make_certificates_for(dir.path(), &[3], Some(days)), Err(CertError::Generate(_))));
    }
}
