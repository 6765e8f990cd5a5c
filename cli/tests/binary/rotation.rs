//! One authority is replaced by another, node by node, under writes: a `ca.pem` with both of them is how. And chains:
//! of peers, and on the members API.

use std::{fs, path::PathBuf};

use crate::lab::{
    Lab,
    pki::{Authority, tls_get},
    run, wait,
};

/// The certificates of nodes 1 to 3 by a second authority.
fn second_authority(lab: &Lab) -> PathBuf {
    let certs = lab.path("new-certs");
    let made = run(&["certs", certs.to_str().expect("UTF-8"), "--nodes", "1,2,3", "--days", "90"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert_eq!(said.matches(", valid until 20").count(), 4, "three nodes and the authority: {said}");
    certs
}

/// So many writes may end with an unknown outcome after each restart of a node.
const UNKNOWN_WRITES: u32 = 2;

/// Restarts node after node with what changes between, and writes through each of them meanwhile.
fn roll(lab: &mut Lab, step: &str, change: impl Fn(&Lab, u64)) {
    for id in [1, 2, 3] {
        assert_eq!(lab.node_mut(id).terminate().code(), Some(0));
        change(lab, id);
        lab.start(id);
        lab.leader();
        // Nodes that start dial each other, and one of two links goes: with it the answer to what was asked on it. So a
        // write or two may end so, and no more: a third one is judged as any other.
        let mut unknown = 0;
        for through in [1, 2, 3] {
            let put = loop {
                let put = lab.node(through).put(step, &format!("{id} {through}"));
                if put.code() != "unknown" || unknown == UNKNOWN_WRITES {
                    break put;
                }
                unknown += 1;
            };
            assert_eq!(put.status, 200, "{step}, node {id} changed, through node {through}: {}", put.text);
        }
    }
}

/// Every node with a certificate by an intermediate authority of its own: they know the root, and show each other the
/// chain.
#[test]
fn peers_with_chains() {
    let mut lab = Lab::new(&[9]);
    let root = Authority::root("the root", 400);
    let certs = |lab: &Lab, id: u64| lab.path("certs").join(format!("node-{id}"));
    for id in [1, 2, 3] {
        let floor = root.between(&format!("of floor {id}"), 300);
        // One is two steps away from the root.
        let issuer = if id == 3 { floor.between("of room 3", 200) } else { floor };
        let identity = issuer.issue(id, 100);
        assert_eq!(identity.cert.matches("BEGIN CERTIFICATE").count(), if id == 3 { 3 } else { 2 });
        identity.place(&certs(&lab, id), &[&root]);
    }
    lab.found(&[1, 2, 3]);
    lab.leader();
    for id in [1, 2, 3] {
        assert_eq!(lab.node(id).put("k", &id.to_string()).status, 200, "through node {id}");
        let status = wait("every pair to have met", || {
            let status = lab.node(id).status();
            let peers = status["peers"].as_object().expect("peers");
            (peers.len() == 2 && peers.values().all(|peer| peer["connected"] == true)).then_some(status)
        });
        // Of a chain what ends first.
        let ends = status["certificates"].as_array().expect("ends");
        let days = |file: &str| {
            let end = ends.iter().find(|end| end["file"] == file).expect(file);
            end["remaining_s"].as_i64().expect("seconds") / 86_400
        };
        assert_eq!((days("cert.pem"), days("ca.pem")), (100, 400));
    }

    // Without its chain nobody could follow it to the root, and its owner says so at the start; a stranger's root is
    // refused.
    assert_eq!(lab.node_mut(2).terminate().code(), Some(0));
    let chained = fs::read_to_string(certs(&lab, 2).join("cert.pem")).expect("a file");
    let alone = chained.split_inclusive("-----END CERTIFICATE-----\n").next().expect("the first");
    fs::write(certs(&lab, 2).join("cert.pem"), alone).expect("written");
    lab.launch(2);
    assert_eq!(lab.node_mut(2).wait_until_it_ends().code(), Some(1));
    assert!(lab.node(2).last_words(5).contains("cert.pem"), "{}", lab.node(2).last_words(5));
    let other = Authority::root("another root", 400);
    other.between("of floor 2", 300).issue(2, 100).place(&certs(&lab, 2), &[&other]);
    lab.launch(2);
    lab.serves(2);
    wait("the others to say why they do not speak with it", || {
        let said = [1, 3].map(|id| lab.node(id).status()["peers"]["2"]["last_error"].to_string());
        said.iter().all(|said| said.contains("certificate")).then_some(())
    });
    lab.node_mut(2).kill();
    fs::remove_dir_all(certs(&lab, 2)).expect("removed");
    root.between("of floor 2, renewed", 300).issue(2, 100).place(&certs(&lab, 2), &[&root]);
    lab.start(2);
    lab.leader();
    assert_eq!(lab.node(2).put("k", "back").status, 200);
}

/// The members API trusts several authorities, shows its chain, and follows that of a client.
#[test]
fn the_members_api_with_chains_and_several_authorities() {
    let mut lab = Lab::new(&[1]);
    let [old, new, stranger] = ["old", "new", "strange"].map(|name| Authority::root(name, 400));
    let server = old.between("the server's", 300).issue(1, 100);
    let dir = server.place(&lab.path("admin"), &[&old, &new]);
    lab.with(&["--admin-certs", dir.to_str().expect("UTF-8")]);
    lab.found(&[1]);
    lab.leader();
    let address = lab.node(1).admin_address();
    let between = new.between("the people's", 300);
    let chained = between.issue(70, 100);
    let ask = |roots: &str, cert: &str, key: &str| tls_get(address, "/status", roots, Some((cert, key)));
    for client in [&old.issue(71, 100), &new.issue(72, 100), &chained, &server] {
        let answer = ask(&old.pem, &client.cert, &client.key).expect("any of the two authorities, at any depth");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(ask(&old.pem, &chained.alone, &chained.key).is_err(), "nobody can follow it to the root");
    let of_stranger = stranger.between("a stranger's", 300).issue(73, 100);
    assert!(ask(&old.pem, &of_stranger.cert, &of_stranger.key).is_err(), "another authority's");
    assert!(ask(&new.pem, &chained.cert, &chained.key).is_err(), "the server's is by the old one");
    assert!(tls_get(address, "/status", &old.pem, None).is_err(), "no certificate");

    // The old one goes: with it everyone that it vouched for, the server first.
    assert_eq!(lab.node_mut(1).terminate().code(), Some(0));
    new.issue(1, 100).place(&dir, &[&new]);
    lab.start(1);
    let address = lab.node(1).admin_address();
    let ask = |cert: &str, key: &str| tls_get(address, "/status", &new.pem, Some((cert, key)));
    assert!(ask(&chained.cert, &chained.key).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")));
    assert!(ask(&server.cert, &server.key).is_err(), "the old authority is not trusted any more");
}

#[test]
fn an_authority_is_replaced() {
    let mut lab = Lab::three();
    let (old, new) = (lab.path("certs"), second_authority(&lab));
    let read = |path: PathBuf| fs::read_to_string(path).expect("a file");
    let (old_ca, new_ca) = (read(old.join("ca/ca.pem")), read(new.join("ca/ca.pem")));
    let place = |lab: &Lab, id: u64, name: &str, content: &str| {
        fs::write(lab.path("certs").join(format!("node-{id}")).join(name), content).expect("written");
    };

    // In an order of its own for each: it does not matter.
    roll(&mut lab, "both", |lab, id| {
        let both = if id == 2 { format!("{new_ca}{old_ca}") } else { format!("{old_ca}\n{new_ca}") };
        place(lab, id, "ca.pem", &both);
    });
    roll(&mut lab, "certificates", |lab, id| {
        for name in ["cert.pem", "key.pem"] {
            place(lab, id, name, &read(new.join(format!("node-{id}")).join(name)));
        }
    });
    roll(&mut lab, "alone", |lab, id| place(lab, id, "ca.pem", &new_ca));
    for (step, value) in [("both", "3 3"), ("certificates", "3 3"), ("alone", "3 3")] {
        assert_eq!(lab.node(1).get(step).body["value"], value);
    }
}
