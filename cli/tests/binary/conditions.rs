//! What is wrong with a node is said everywhere by one name: in its status, its metrics, `/readyz`, the errors of its
//! clients, its log.

use std::{fs, path::Path};

use crate::lab::{self, Lab, Node, call, pki::Authority, wait};
use serde_json::{Value, json};

/// The condition of that name in a status.
fn condition(status: &Value, reason: &str) -> Option<Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["reason"] == reason).cloned()
}

fn metric(node: &Node, line: &str) -> bool {
    call("GET", &node.url("/metrics"), "").text.lines().any(|found| found == line)
}

/// Waits until the node shows this condition, and asserts that it is said in all places by the same name, with these
/// words in its sentence.
#[track_caller]
fn says(node: &Node, reason: &str, severity: &str, words: &str) {
    let shown = wait(&format!("node {} to say {reason} ({severity})", node.id), || {
        condition(&node.try_status()?, reason).filter(|condition| condition["severity"] == severity)
    });
    assert!(shown["message"].as_str().is_some_and(|message| message.contains(words)), "{shown}");
    assert!(metric(node, &format!("actorum_condition{{condition=\"{reason}\"}} 1")), "its metric");
    let ready = call("GET", &node.url("/readyz"), "");
    if severity == "unready" {
        assert_eq!((ready.status, ready.code()), (503, reason), "{}", ready.text);
        assert!(ready.body["message"].as_str().is_some_and(|message| message.contains(words)), "{}", ready.text);
        assert!(metric(node, "actorum_ready 0"));
    } else {
        assert_eq!((ready.status, &ready.body["ready"]), (200, &json!(true)), "{}", ready.text);
        let warnings = ready.body["warnings"].as_array().expect("warnings");
        assert!(warnings.iter().any(|warning| warning["reason"] == reason), "{}", ready.text);
        assert!(metric(node, "actorum_ready 1"));
    }
    let table = lab::run(&["status", &node.url("")]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains(&format!("{reason}: ")), "{table}");
    wait(&format!("a line in the log of node {} about {reason}", node.id), || {
        let log = node.last_words(usize::MAX);
        // One where it begins and one where it ends: on a busy machine an election may come between, and then it begins
        // again.
        let ended = log.matches(&format!("{reason} is over")).count();
        (log.matches(&format!("condition={reason}")).count() == 2 * ended + 1).then_some(())
    });
}

#[track_caller]
fn refuses(node: &Node, reason: &str) {
    let write = call("PUT", &node.url("/kv/k?timeout_ms=300"), "v");
    assert_eq!((write.status, write.code()), (503, reason), "{}", write.text);
    let read = call("GET", &node.url("/kv/k?timeout_ms=300"), "");
    assert_eq!((read.status, read.code()), (503, reason), "{}", read.text);
    let change = call("POST", &node.admin_url("/members/1/demote?timeout_ms=300"), "");
    assert_eq!((change.status, change.code()), (503, reason), "{}", change.text);
}

/// A healthy node is ready and says nothing; one that waits to be added says so.
#[test]
fn a_node_that_waits_to_be_added() {
    let mut lab = Lab::new(&[1, 2]);
    lab.found(&[1]);
    lab.leader();
    let one = lab.node(1);
    wait("nothing to be wrong with node 1", || (one.status()["conditions"] == json!([])).then_some(()));
    assert!(metric(one, "actorum_ready 1") && metric(one, "actorum_condition{condition=\"not_a_member\"} 0"));
    assert_eq!(call("GET", &one.url("/readyz"), "").body["warnings"], json!([]));

    lab.start_waiting(2);
    says(lab.node(2), "not_a_member", "unready", "POST /members");
    refuses(lab.node(2), "not_a_member");

    // Once it is added nothing is wrong any more, and the log says that.
    let learner = json!({ "id": 2, "address": lab.node(2).listen.to_string(), "role": "learner" }).to_string();
    assert_eq!(call("POST", &lab.node(1).admin_url("/members"), learner).status, 200);
    wait("node 2 to be ready", || (call("GET", &lab.node(2).url("/readyz"), "").status == 200).then_some(()));
    wait("the log to say that it is over", || {
        (lab.node(2).last_words(9999).matches("not_a_member is over").count() == 1).then_some(())
    });
}

/// Without a majority: a follower that is left alone, and a leader that is.
#[test]
fn without_a_majority() {
    let mut lab = Lab::three();
    let leader = lab.leader();
    let [gone, stays] = [1, 2].map(|n| 1 + (leader + n - 1) % 3);
    lab.node_mut(gone).kill();
    // Two of three: nothing keeps a write from succeeding.
    assert_eq!(call("GET", &lab.node(stays).url("/readyz"), "").status, 200);
    lab.node_mut(leader).kill();
    says(lab.node(stays), "no_majority", "unready", "only 1 of 3 voters can be reached and 2 are needed");
    refuses(lab.node(stays), "no_majority");
    lab.start(gone);
    lab.leader();
    for id in [gone, stays] {
        wait("a majority to be ready", || (call("GET", &lab.node(id).url("/readyz"), "").status == 200).then_some(()));
    }
}

#[track_caller]
fn refused_for_space(node: &Node) {
    let write = call("PUT", &node.url("/kv/k?timeout_ms=3000"), "v");
    assert_eq!((write.status, write.code()), (503, "low_space"), "{}", write.text);
}

/// A leader low on space takes no writes, and its follower says so too; there no other node could take leadership.
#[test]
fn low_on_space() {
    let mut lab = Lab::new(&[1, 2, 3]);
    // As much as the volume is allowed to lack, which is more than any volume that holds a system has free: the refusal
    // names it.
    let refused = lab::actorum()
        .args(["serve", "--id", "1", "--wait", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"])
        .arg(lab.path("data"))
        .arg("--certs")
        .arg(lab.path("certs/node-1"))
        .env("ACTORUM_LOW_SPACE_BYTES", (1_u64 << 50).to_string())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    let most = words.split("at most ").nth(1).and_then(|rest| rest.split(',').next());
    lab.set("ACTORUM_LOW_SPACE_BYTES", most.unwrap_or_else(|| panic!("no greatest value in: {words}")));
    lab.found(&[1, 2, 3]);
    let leader = lab.leader();
    says(lab.node(leader), "low_space", "unready", "make room");
    // It is one thing, and one line. (That the volume could never hold what is asked for is another, said at the
    // start.)
    let log = lab.node(leader).last_words(usize::MAX);
    let said = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
    let said: Vec<&str> = said
        .filter(|line| !line.contains("volume="))
        .filter(|line| line.contains("full") || line.contains("space"))
        .collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    for follower in [1, 2].map(|n| 1 + (leader + n - 1) % 3) {
        says(lab.node(follower), "low_space", "unready", &format!("node {leader} leads and takes no writes"));
        assert!(call("GET", &lab.node(follower).url("/kv/k"), "").status == 404, "it still serves reads");
        refused_for_space(lab.node(follower));
    }
    refused_for_space(lab.node(leader));
}

/// A certificate of one's own making: for a node, signed by an authority, both with so many days left.
fn certificates(dir: &Path, id: u64, days: u64, authority_days: u64) {
    let authority = Authority::root("an authority", authority_days);
    authority.issue(id, days).place(dir, &[&authority]);
}

/// A certificate that ends within 30 days, and one whose authority does, are warned of by a node that is ready.
#[test]
fn certificates_near_their_end() {
    for (days, authority_days, words) in [(29, 400, "cert.pem expires in 29 days"), (3, 3, "ca.pem expires in 3 days")]
    {
        let mut lab = Lab::new(&[1]);
        certificates(&lab.path("certs").join("node-1"), 1, days, authority_days);
        lab.found(&[1]);
        lab.leader();
        says(lab.node(1), "certificate_expiring", "warning", words);
        let ends = call("GET", &lab.node(1).url("/metrics"), "").text;
        assert!(ends.contains("\nactorum_certificate_expiry_timestamp_seconds{file=\"cert.pem\"} "), "{ends}");
        assert_eq!(lab.node(1).put("k", "v").status, 200, "a warning refuses nothing");
    }
}

/// The same of those that the members API shows: said by their own name, and in a line of their own also where those
/// for peers are near their end already.
#[test]
fn admin_certificates_near_their_end() {
    for (peers_days, days, severity, name) in [
        (400, 29, "certificate_expiring", "admin-certs/cert.pem expires in 29 days"),
        (12, 3, "certificate_expiring", "admin-certs/cert.pem expires in 3 days"),
    ] {
        let mut lab = Lab::new(&[1]);
        certificates(&lab.path("certs").join("node-1"), 1, peers_days, 400);
        let (dir, authority) = (lab.path("admin"), Authority::root("of people", 20));
        // The old authority that was replaced is no reason to warn; the one that issued is.
        authority.issue(1, days).place(&dir, &[&Authority::root("replaced", 1), &authority]);
        lab.with(&["--admin-certs", dir.to_str().expect("UTF-8")]);
        lab.found(&[1]);
        lab.leader();
        let node = lab.node(1);
        let line = |words: &str| {
            let log = node.last_words(usize::MAX);
            log.lines().filter(|line| line.contains("condition=") && line.contains(words)).count()
        };
        wait("the log to name it", || (line(name) == 1).then_some(()));
        let ready = call("GET", &node.url("/readyz"), "");
        assert_eq!((ready.status, &ready.body["ready"]), (200, &json!(true)), "{}", ready.text);
        for shown in [&ready.body["warnings"], &node.status()["conditions"]] {
            let of_admin: Vec<&Value> =
                shown.as_array().expect("a list").iter().filter(|c| c["subject"] == "admin-certs").collect();
            assert_eq!(of_admin.len(), 1, "{shown}");
            assert_eq!((&of_admin[0]["reason"], &of_admin[0]["severity"]), (&json!(severity), &json!("warning")));
            let message = of_admin[0]["message"].as_str().expect("a sentence");
            assert!(message.contains(name) && message.contains("admin-certs/ca.pem expires in 20 days"), "{message}");
        }
        assert!(metric(node, "actorum_condition{condition=\"certificate_expiring\"} 1"));
        let page = call("GET", &node.url("/metrics"), "").text;
        for file in ["cert.pem", "ca.pem", "admin-certs/cert.pem", "admin-certs/ca.pem"] {
            assert!(
                page.contains(&format!("\nactorum_certificate_expiry_timestamp_seconds{{file=\"{file}\"}} ")),
                "{page}"
            );
        }
        let peers = usize::from(peers_days == 12);
        wait("each to have its line", || (line("certificate_expiring") == 1 + peers).then_some(()));
        assert_eq!(line("WARN cert.pem expires in 12 days"), peers, "{}", node.last_words(usize::MAX));
        assert_eq!(node.put("k", "v").status, 200, "a warning refuses nothing");
    }
}

/// A certificate of the lab's own authority that ends in so many seconds, in place of a node's.
fn certificate_for(lab: &Lab, id: u64, seconds: u64) {
    use std::time::{Duration, SystemTime};

    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
    let read = |name: &str| fs::read_to_string(lab.path("certs").join("ca").join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut node = CertificateParams::new(vec![format!("node-{id}.actorum")]).unwrap();
    node.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    node.use_authority_key_identifier_extension = true;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    node.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + Duration::from_secs(seconds);
    let cert_pem = node.signed_by(&key, &issuer).unwrap().pem();
    let dir = lab.path("certs").join(format!("node-{id}"));
    for (name, text) in [("cert.pem", cert_pem), ("key.pem", key.serialize_pem())] {
        fs::write(dir.join(name), text).unwrap();
    }
}

/// A leader whose certificate ends transfers leadership while its connections last, so that a follower that starts
/// again finds a leader; the node itself says what is wrong, and once it is started again that it is why it stays away.
/// Before, it led on, and the follower stayed out and said that an election was under way.
#[test]
fn a_leader_whose_certificate_ends() {
    let mut lab = Lab::new(&[1, 2, 3]);
    certificate_for(&lab, 1, 30);
    // The first of them leads, for it is the only one at first.
    lab.found(&[1]);
    lab.leader();
    for id in [2, 3] {
        lab.start_waiting(id);
        let member = json!({ "id": id, "address": lab.node(id).listen.to_string(), "role": "learner" });
        let added = call("POST", &lab.node(1).admin_url("/members?timeout_ms=20000"), member.to_string());
        assert_eq!(added.status, 200, "{}", added.text);
        let promoted = call("POST", &lab.node(1).admin_url(&format!("/members/{id}/promote?timeout_ms=20000")), "");
        assert_eq!(promoted.status, 200, "{}", promoted.text);
    }
    assert_eq!(lab.leader(), 1, "its certificate is good still");
    says(lab.node(1), "certificate_expiring", "warning", "cert.pem expires in 0 hours");

    wait("another node to lead, as node 1 knows", || {
        lab.node(1).status()["leader"].as_u64().filter(|leader| *leader != 1)
    });
    says(lab.node(1), "certificate_expired", "warning", "cert.pem has expired");
    // Whom it is connected to it still serves, and who starts again is served by the others.
    assert_eq!(lab.node(1).put("k", "through its old connections").status, 200);
    lab.node_mut(2).kill();
    lab.start(2);
    wait("node 2 to be ready", || (call("GET", &lab.node(2).url("/readyz"), "").status == 200).then_some(()));
    assert_eq!(lab.node(2).put("k", "v").status, 200);
}

/// A node that others remove stops when it learns of it, with an exit code of its own, and does so again at each start.
#[test]
fn a_removed_node_ends_with_a_code_of_its_own() {
    let mut lab = Lab::three();
    let leader = lab.leader();
    let removed = 1 + leader % 3;
    assert_eq!(call("DELETE", &lab.node(leader).admin_url(&format!("/members/{removed}")), "").status, 200);
    for _ in 0..2 {
        assert_eq!(lab.node_mut(removed).wait_until_it_ends().code(), Some(3));
        let words = lab.node(removed).last_words(3);
        assert!(words.contains("was removed from the cluster") && words.contains("new id"), "{words}");
        lab.launch(removed);
    }
    assert_eq!(lab.node_mut(removed).wait_until_it_ends().code(), Some(3));
    assert_eq!(lab.node(leader).put("k", "v").status, 200);
}

/// The leader itself is removed: whoever asked is answered, it ends so, and the others go on.
#[test]
fn a_leader_that_is_removed() {
    let mut lab = Lab::three();
    let leader = lab.leader();
    let others = [1, 2].map(|n| 1 + (leader + n - 1) % 3);
    let admin = lab.node(others[0]).admin_url(&format!("/members/{leader}"));
    assert_eq!(call("DELETE", &admin, "").status, 200);
    assert_eq!(lab.node_mut(leader).wait_until_it_ends().code(), Some(3));
    lab.leader_of(&others);
    assert_eq!(lab.node(others[1]).put("k", "v").status, 200);
}

/// One that was away when it was removed learns of it from those that refuse it.
#[test]
fn a_node_that_missed_its_removal() {
    let mut lab = Lab::three();
    let leader = lab.leader();
    let removed = 1 + leader % 3;
    lab.node_mut(removed).kill();
    assert_eq!(call("DELETE", &lab.node(leader).admin_url(&format!("/members/{removed}")), "").status, 200);
    lab.launch(removed);
    assert_eq!(lab.node_mut(removed).wait_until_it_ends().code(), Some(3));
    assert!(lab.node(removed).last_words(3).contains("was removed from the cluster"));
}

/// A data directory that is deleted, renamed or emptied under a running node ends that node, and nothing is
/// acknowledged into files that are gone.
#[test]
fn a_data_directory_that_is_taken_away() {
    type Take = fn(&Path);
    let ways: [(&str, Take); 3] = [
        ("deleted", |data| fs::remove_dir_all(data).unwrap()),
        ("renamed", |data| fs::rename(data, data.with_extension("away")).unwrap()),
        ("its log deleted", |data| fs::remove_dir_all(data.join("log")).unwrap()),
    ];
    for (how, take) in ways {
        let mut lab = Lab::new(&[1]);
        lab.found(&[1]);
        lab.leader();
        assert_eq!(lab.node(1).put("k", "v").status, 200);
        take(&lab.node(1).data);
        if how != "renamed" {
            // Renamed, it would still be found where it went.
            let write = lab::try_call("PUT", &lab.node(1).url("/kv/k?timeout_ms=5000"), b"lost");
            assert!(!write.is_ok_and(|answer| answer.status == 200), "{how}: acknowledged into a deleted file");
        }
        assert_eq!(lab.node_mut(1).wait_until_it_ends().code(), Some(1), "{how}");
        let words = lab.node(1).last_words(9999);
        let data = lab.node(1).data.display().to_string();
        assert!(words.contains(&format!("the data directory {data} was taken away")), "{how}: {words}");
        assert!(words.contains("reason=data_directory_missing"), "{how}: {words}");
        let said = words.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
        let said: Vec<&str> = said.filter(|line| line.contains("taken away") || line.contains("disk_failed")).collect();
        assert_eq!(said.len(), 1, "{how}: one line of the log, and what the process says at its end: {said:#?}");
    }
}

mod in_process {
    use std::time::Duration;

    use actorum::{ChangeError, Network, Reason, Severity, prelude::*};
    use actorum_machine::ids::Incarnation;
    use actorum_store::log::memory::MemoryDisk;

    use crate::support::{MemoryNetwork, Sum, TIMEOUT, founders, quick, start, three};

    /// The system of a library's user stops with a reason that programs can tell, and says it to every caller.
    #[actix::test]
    async fn a_stop_has_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let builder = RaftSystem::<Sum>::builder(1).network(Network::Memory(MemoryNetwork::new()));
        let builder = builder.storage(Storage::Sled(data.clone())).bootstrap(founders(1)).configure(quick);
        let raft = builder.start().await.unwrap();
        raft.propose(1).await.unwrap();
        std::fs::remove_dir_all(&data).unwrap();
        assert!(raft.propose_within(2, TIMEOUT).await.is_err(), "nothing is acknowledged into a deleted file");
        raft.stopped().await;
        let status = raft.status();
        assert_eq!(status.stop_reason, Some(Reason::DataDirectoryMissing));
        let first = status.unready().unwrap();
        assert_eq!((first.reason, first.severity), (Reason::DataDirectoryMissing, Severity::Unready));
        let wrong = raft.propose(3).await.unwrap_err();
        assert!(matches!(&wrong, ProposeError::Unavailable { reason: Reason::DataDirectoryMissing, .. }), "{wrong}");
        assert!(wrong.to_string().contains("Bring the directory back"), "{wrong}");
        let wrong = raft.read(|sum| sum.total).await.unwrap_err();
        assert!(matches!(&wrong, ReadError::Unavailable { reason: Reason::DataDirectoryMissing, .. }), "{wrong}");
    }

    /// A node whose disk was wiped is refused by its peers and stops for it.
    #[actix::test]
    async fn refused_by_its_peers() {
        let (network, disks) = (MemoryNetwork::new(), Default::default());
        let [leader, follower, other] = three(&network, &disks).await;
        leader.propose(1).await.unwrap();
        leader.wait(TIMEOUT, |s| s.membership.members.values().all(|m| m.incarnation.is_some())).await.unwrap();
        let id = other.status().id;
        other.shutdown().await;
        let wiped = Storage::Custom(Box::new(MemoryDisk::new().open(id, Incarnation(99)).unwrap()));
        let builder = RaftSystem::<Sum>::builder(id).network(Network::Memory(network.clone())).storage(wiped);
        let wiped = builder.bootstrap(founders(3)).configure(quick).start().await.unwrap();
        wiped.stopped().await;
        assert_eq!(wiped.status().stop_reason, Some(Reason::RefusedByPeers));
        let wrong = wiped.propose(1).await.unwrap_err();
        assert!(matches!(&wrong, ProposeError::Unavailable { reason: Reason::RefusedByPeers, .. }), "{wrong}");
        assert_eq!(follower.status().conditions(), [], "it still has a majority");
    }

    /// A leader that hears nobody says so before Raft makes it step down, and its clients hear it.
    #[actix::test]
    async fn alone() {
        let (network, disks) = (MemoryNetwork::new(), Default::default());
        let [leader, _follower, _other] = three(&network, &disks).await;
        leader.propose(1).await.unwrap();
        network.isolate(leader.status().id);
        let is_alone = |s: &Status| s.unready().is_some_and(|first| first.reason == Reason::NoMajority);
        leader.wait(TIMEOUT, is_alone).await.unwrap();
        leader.wait(TIMEOUT, |s| s.leader.is_none()).await.unwrap();
        let soon = Duration::from_secs(1);
        let wrong = leader.propose_within(2, soon).await.unwrap_err();
        assert!(matches!(&wrong, ProposeError::Unavailable { reason: Reason::NoMajority, .. }), "{wrong}");
        let wrong = leader.change_within(ConfChange::Demote(1), soon).await.unwrap_err();
        assert!(matches!(&wrong, ChangeError::Unavailable { reason: Reason::NoMajority, .. }), "{wrong}");
        network.heal_all();
        leader.wait(TIMEOUT, |s| s.unready().is_none()).await.unwrap();
    }

    /// A removed node stops for it, however it is embedded.
    #[actix::test]
    async fn removed() {
        let (network, disks) = (MemoryNetwork::new(), Default::default());
        let [leader, follower, _other] = three(&network, &disks).await;
        let waiting = start(&network, 4, &MemoryDisk::new(), Bootstrap::Wait).await;
        let why = waiting.status().unready().unwrap();
        assert_eq!(why.reason, Reason::NotAMember, "{why}");
        let id = follower.status().id;
        leader.change_within(ConfChange::Remove(id), TIMEOUT).await.unwrap();
        follower.stopped().await;
        assert_eq!(follower.status().stop_reason, Some(Reason::Removed));
        let wrong = follower.propose(1).await.unwrap_err();
        assert!(matches!(&wrong, ProposeError::Unavailable { reason: Reason::Removed, .. }), "{wrong}");
    }
}
