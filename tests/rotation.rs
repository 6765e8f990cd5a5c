//! One authority is replaced by another, node by node, under writes: a `ca.pem` with both of them is how.

mod lab;

use std::{fs, path::PathBuf};

use lab::{Lab, run};

/// The certificates of nodes 1 to 3 by a second authority.
fn second_authority(lab: &Lab) -> PathBuf {
    let certs = lab.path("new-certs");
    let made = run(&["certs", certs.to_str().expect("UTF-8"), "--nodes", "1,2,3", "--days", "90"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert_eq!(said.matches(", valid until 20").count(), 4, "three nodes and the authority: {said}");
    certs
}

/// Restarts node after node with what changes between, and writes through each of them meanwhile.
fn roll(lab: &mut Lab, step: &str, change: impl Fn(&Lab, u64)) {
    for id in [1, 2, 3] {
        assert_eq!(lab.node_mut(id).terminate().code(), Some(0));
        change(lab, id);
        lab.start(id);
        lab.leader();
        for through in [1, 2, 3] {
            let put = lab.node(through).put(step, &format!("{id} {through}"));
            assert_eq!(put.status, 200, "{step}, node {id} changed, through node {through}: {}", put.text);
        }
    }
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
