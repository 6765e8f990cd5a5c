//! Values that people and programs give and read: addresses, ids, and random numbers in JSON and in MessagePack.

use std::collections::BTreeMap;

use actorum::{
    Address, Bootstrap, ChangeError, ConfChange, MemoryNetwork, NodeId, StartError, Storage, Tls, prelude::*,
};
use actorum_machine::ids::{ClusterId, Incarnation, MAX_NODE_ID};
use serde::{Deserialize, Serialize};
use serde_json::{from_value, json, to_value};

/// What cannot be dialled says what is wrong with it and what would be right.
#[test]
fn addresses() {
    for right in [
        "10.0.0.1:7001",
        "node-1.example:1",
        "localhost:65535",
        "a_b:7001",
        "[::1]:7001",
        "[2001:db8::1]:7001",
        "n.:7001",
    ] {
        assert_eq!(right.parse(), Ok(Address::from(right)));
    }
    for (wrong, words) in [
        ("", "the port is missing"),
        ("host", "the port is missing"),
        ("http://host:7001", "leave out `http://`"),
        ("quic://host:7001", "leave out `quic://`"),
        ("::1:7001", "put an IPv6 address in brackets, as in [::1]:7001"),
        ("2001:db8::1:7001", "as in [2001:db8::1]:7001"),
        ("[::1]", "with a port behind it"),
        ("[::1]7001", "with a port behind it"),
        ("[10.0.0.1]:7001", "not an IPv6 address"),
        ("[host]:7001", "not an IPv6 address"),
        ("[::1]:0", "port 0"),
        (":7001", "the host is missing"),
        ("host:", "between 1 and 65535"),
        ("host:0", "between 1 and 65535"),
        ("host:65536", "between 1 and 65535"),
        ("host:+1", "between 1 and 65535"),
        ("host:port", "between 1 and 65535"),
        ("host:7001/", "between 1 and 65535"),
        ("host/a:7001", "a host name cannot contain '/'"),
        ("a host:7001", "a host name cannot contain ' '"),
        ("me@host:7001", "a host name cannot contain '@'"),
        (" host:7001", "a host name cannot contain ' '"),
        ("10.0.0.256:7001", "10.0.0.256 is not an IPv4 address"),
        ("10.0.1:7001", "10.0.1 is not an IPv4 address"),
        ("0x0:7001", "0x0 is not an IPv4 address"),
        ("0x7f.1:7001", "0x7f.1 is not an IPv4 address"),
        ("host.7:7001", "host.7 is not an IPv4 address"),
        ("0.0.0.0:7001", "no address that a peer could reach it at"),
        ("0.1.2.3:7001", "no address that a peer could reach it at"),
        ("[::]:7001", "no address that a peer could reach it at"),
        ("[::ffff:0.0.0.0]:7001", "no address that a peer could reach it at"),
        ("224.0.0.1:7001", "a multicast address"),
        ("239.255.255.255:7001", "a multicast address"),
        ("[ff02::1]:7001", "a multicast address"),
        ("[::ffff:224.0.0.1]:7001", "a multicast address"),
        ("255.255.255.255:7001", "the broadcast address"),
        ("-h:1", "begins or ends with a dash"),
        ("h-:1", "begins or ends with a dash"),
        ("a.-b.c:1", "begins or ends with a dash"),
        ("h..h:1", "nothing between two dots"),
        (".h:1", "nothing between two dots"),
        ("h..:1", "nothing between two dots"),
        (".:1", "nothing between two dots"),
        (&format!("{}:1", "h".repeat(300)), "at most 253 letters"),
        (&format!("{}:1", "h".repeat(64)), "at most 63 letters between two dots"),
        (&format!("{}h:1", "h.".repeat(127)), "at most 253 letters"),
    ] {
        let error = wrong.parse::<Address>().expect_err(wrong).to_string();
        assert!(
            error.contains("HOST:PORT") && error.contains("[2001:db8::1]:7001") && error.contains(words),
            "{error}"
        );
    }
    let longest = format!("{}.{}:1", "h".repeat(63), "h.".repeat(94) + "h");
    assert_eq!(longest.parse(), Ok(Address::from(longest.as_str())), "253 letters");
    for (one, other, same) in [
        ("host:7001", "HOST.:7001", true),
        ("host:7001", "host:07001", true),
        ("host:7001", "host:7002", false),
        ("host:7001", "tsoh:7001", false),
        ("[2001:db8::1]:7001", "[2001:0DB8:0:0:0:0:0:1]:7001", true),
        ("[::ffff:10.0.0.1]:7001", "10.0.0.1:7001", true),
        ("n1", "N1", true),
        ("n1", "n2", false),
    ] {
        assert_eq!(Address::from(one).is_same_place(&other.into()), same, "{one} and {other}");
    }
    // What a log of the first version holds is read as it is.
    assert_eq!(from_value::<Address>(json!("::1:7001")).unwrap(), Address::from("::1:7001"));
}

/// Random numbers are digits where people and programs read, of either form when they are read, and in MessagePack the
/// numbers that the first version wrote.
#[test]
fn random_numbers() {
    let (life, cluster) = (Incarnation(u64::MAX - 1), ClusterId(u128::MAX - 1));
    assert_eq!(to_value(life).unwrap(), json!("fffffffffffffffe"));
    assert_eq!(to_value(Incarnation(7)).unwrap(), json!("0000000000000007"));
    assert_eq!(to_value(cluster).unwrap(), json!("fffffffffffffffffffffffffffffffe"));
    assert_eq!(from_value::<Incarnation>(json!("fffffffffffffffe")).unwrap(), life);
    assert_eq!(from_value::<Incarnation>(json!(u64::MAX - 1)).unwrap(), life, "as the first version wrote it");
    assert_eq!(from_value::<ClusterId>(to_value(cluster).unwrap()).unwrap(), cluster);
    for wrong in [json!("0x1"), json!(""), json!("+1"), json!("11112222333344445"), json!(-1), json!(1.5), json!(null)]
    {
        assert!(from_value::<Incarnation>(wrong.clone()).is_err(), "{wrong}");
    }

    let packed = rmp_serde::to_vec_named(&life).unwrap();
    assert_eq!(packed, rmp_serde::to_vec_named(&life.0).unwrap());
    assert_eq!(rmp_serde::from_slice::<Incarnation>(&packed).unwrap(), life);
    let packed = rmp_serde::to_vec_named(&cluster).unwrap();
    assert_eq!(packed, rmp_serde::to_vec_named(&cluster.0).unwrap());
    assert_eq!(rmp_serde::from_slice::<ClusterId>(&packed).unwrap(), cluster);
}

#[derive(Default, Serialize, Deserialize)]
struct Nothing;

impl StateMachine for Nothing {
    type Command = ();
    type Response = ();

    fn apply(&mut self, _: &ApplyContext, (): &()) {}

    serde_snapshot!();
}

fn founders(id: NodeId, address: &str) -> Bootstrap {
    Bootstrap::Form(BTreeMap::from([(id, Address::from(address))]))
}

async fn start(id: NodeId, storage: Storage, bootstrap: Bootstrap) -> Result<Raft<Nothing>, StartError> {
    let network = actorum::Network::Memory(MemoryNetwork::new());
    RaftSystem::<Nothing>::builder(id).storage(storage).network(network).bootstrap(bootstrap).start().await
}

/// An id that readers of JSON would round is refused to what is new, before anything is made.
#[actix::test]
async fn ids_have_a_highest() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let over = MAX_NODE_ID + 1;
    let refused = start(over, Storage::Sled(data.clone()), founders(over, "n")).await.expect_err("refused").to_string();
    assert!(refused.contains("9007199254740992 is not a node id") && refused.contains("2^53 - 1"), "{refused}");
    let mut pair = BTreeMap::from([(1, Address::from("n1"))]);
    pair.insert(over, Address::from("n2"));
    let refused = start(1, Storage::Sled(data.clone()), Bootstrap::Form(pair)).await.expect_err("refused").to_string();
    assert!(refused.contains("9007199254740992 is not a node id"), "{refused}");
    assert!(!data.exists(), "nothing was made");

    let highest = start(MAX_NODE_ID, Storage::Memory, founders(MAX_NODE_ID, "n")).await.unwrap();
    highest.wait_for_leader(std::time::Duration::from_secs(30)).await.unwrap();
    let change = highest.change(ConfChange::AddLearner(over, "n2".into())).await;
    assert!(matches!(&change, Err(ChangeError::Invalid { cause }) if cause.contains("2^53 - 1")), "{change:?}");
    highest.change(ConfChange::AddLearner(2, "a name of this network".into())).await.unwrap();
    highest.shutdown().await;
}

/// A directory that has such an id from the first version is opened: its cluster knows it by that.
#[actix::test]
async fn a_directory_keeps_its_id() {
    use actorum_store::log::sled::{OpenOptions, SledStore};
    let dir = tempfile::tempdir().unwrap();
    let over = MAX_NODE_ID + 1;
    drop(SledStore::open(dir.path(), OpenOptions::new(over, Incarnation(7))).unwrap());
    let raft = start(over, Storage::Sled(dir.path().to_owned()), founders(over, "n")).await.unwrap();
    raft.wait_for_leader(std::time::Duration::from_secs(30)).await.unwrap();
    raft.shutdown().await;
}

/// Where peers are dialled, addresses are looked at when they are given.
#[actix::test]
async fn addresses_are_checked_where_they_are_dialled() {
    let dir = tempfile::tempdir().unwrap();
    let node = |address: &str| {
        RaftSystem::<Nothing>::builder(1)
            .listen("127.0.0.1:0".parse().unwrap())
            .storage(Storage::Sled(dir.path().join("data")))
            .tls(Tls::DevSelfSigned(dir.path().join("certificates")))
            .bootstrap(founders(1, address))
    };
    let refused = node("http://127.0.0.1:7001").start().await.expect_err("refused").to_string();
    assert!(refused.contains("the address of founder 1") && refused.contains("HOST:PORT"), "{refused}");
    assert!(!dir.path().join("data").exists(), "nothing was made");
    let raft = node("127.0.0.1:7001").start().await.unwrap();
    raft.wait_for_leader(std::time::Duration::from_secs(30)).await.unwrap();
    let change = raft.change(ConfChange::AddLearner(2, "::1:7001".into())).await;
    assert!(matches!(&change, Err(ChangeError::Invalid { cause }) if cause.contains("[::1]:7001")), "{change:?}");
    raft.shutdown().await;
    drop(raft);
    // It has begun: how it was to begin is not asked any more, and what it was started with is not its address.
    node("::1:7001").start().await.unwrap().shutdown().await;
}
