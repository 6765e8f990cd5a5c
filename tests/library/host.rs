//! A host by itself: its directory is open before its group is, it takes one group, and it ends with it.

use std::{path::Path, time::Duration};

use crate::support::{MemoryNetwork, Sum, TIMEOUT, quick};
use actorum::{OpenError, prelude::*};
use futures_util::FutureExt;

/// A host over a directory of its own, on a network in memory.
async fn host(dir: &Path) -> Result<Host, StartError> {
    let builder =
        Host::builder(1).network(Network::Memory(MemoryNetwork::new())).storage(Storage::Sled(dir.to_owned()));
    builder.configure(quick).start().await
}

/// What the refusal to open a group says.
fn refusal(opened: Result<Raft<Sum>, StartError>) -> String {
    match opened {
        Err(error @ StartError::Group { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Whether somebody has this directory open.
async fn in_use(dir: &Path) -> bool {
    match host(dir).await {
        Ok(host) => {
            host.shutdown().await;
            false
        }
        Err(StartError::Open(OpenError::Locked { .. })) => true,
        Err(error) => panic!("{error}"),
    }
}

/// Opens the one group, alone.
async fn open(host: &Host) -> Result<Raft<Sum>, StartError> {
    host.open(GroupId::FIRST, Sum::default(), GroupConfig::form([(1, "n1".into())].into())).await
}

#[actix::test]
async fn a_host_takes_its_one_group_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path()).await.unwrap();
    assert_eq!(host.id(), 1);
    assert!(in_use(dir.path()).await, "the directory is open before a group is");

    let other = host.open(GroupId(7), Sum::default(), GroupConfig::wait()).await;
    assert_eq!(refusal(other), "group 7: this version runs one group on a node, group 0 (GroupId::FIRST)");
    let raft = open(&host).await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    assert_eq!(raft.propose(5).await.unwrap().response, 5);
    let again = refusal(open(&host).await);
    assert_eq!(again, "group 0: it is open already: use the handle that opening it gave");

    host.shutdown().await;
    assert_eq!(raft.stopped().await, "it was shut down");
    assert_eq!(refusal(open(&host).await), "group 0: its host has ended: start the host again");
    assert!(!in_use(dir.path()).await);

    // What it wrote is there; whoever is left of it holds nothing.
    let host = self::host(dir.path()).await.unwrap();
    let raft: Raft<Sum> = host.open(GroupId::FIRST, Sum::default(), GroupConfig::wait()).await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    assert_eq!(raft.read(|sum| sum.total).await.unwrap(), 5);
    raft.shutdown().await;
    drop(raft);
    let ended = refusal(open(&host).await);
    assert_eq!(ended, "group 0: it was open and has ended, and its host with it: start the host again");
}

#[actix::test]
async fn a_host_without_a_group_closes_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let opened = host(dir.path()).await.unwrap();
    let clone = opened.clone();
    drop(opened);
    assert!(in_use(dir.path()).await, "a clone keeps it open");
    drop(clone);
    assert!(!in_use(dir.path()).await);

    let opened = host(dir.path()).await.unwrap();
    opened.shutdown().await;
    assert_eq!(refusal(open(&opened).await), "group 0: its host has ended: start the host again");
}

#[actix::test]
async fn a_group_that_cannot_be_opened_ends_its_host_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path()).await.unwrap();
    let strangers = GroupConfig::form([(2, "n2".into())].into());
    let error = host.open(GroupId::FIRST, Sum::default(), strangers).await.unwrap_err();
    assert!(matches!(error, StartError::Founders(_)), "{error}");
    assert_eq!(refusal(open(&host).await), "group 0: its host has ended: start the host again");

    // The mistake left nothing behind: the right founders form.
    let host = self::host(dir.path()).await.unwrap();
    let raft = open(&host).await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    raft.shutdown().await;
}

/// What only new founders are refused for is found at each start, until there is a cluster.
#[actix::test]
async fn wrong_founders_are_refused_again() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let host = host(dir.path()).await.unwrap();
        let twins = GroupConfig::form([(1, "n1".into()), (2, "n1".into())].into());
        let error = host.open(GroupId::FIRST, Sum::default(), twins).await.unwrap_err();
        assert!(error.to_string().contains("the founders 1 and 2 have one address"), "{error}");
    }
    let host = host(dir.path()).await.unwrap();
    open(&host).await.unwrap().wait_for_leader(TIMEOUT).await.unwrap();
    host.shutdown().await;
}

/// A network by QUIC needs an address and certificates: that is said before there is a directory.
#[actix::test]
async fn what_is_missing_is_said_before_a_directory_is_made() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    let builder = || Host::builder(1).storage(Storage::Sled(dir.clone()));
    let error = builder().start().await.unwrap_err();
    assert_eq!(error.to_string(), "configuration: tls: say who this node is to its peers: builder.tls(..)");
    let error = builder().tls(Tls::DevSelfSigned(home.path().join("ca"))).start().await.unwrap_err();
    assert_eq!(error.to_string(), "configuration: listen: say where peers reach this node: builder.listen(..)");
    assert!(!dir.exists());
}

/// A panic while a node starts is the cause that its caller reads, and nothing goes on.
#[actix::test]
async fn a_panic_is_the_cause_of_a_failed_start() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::Custom(Box::new(|_, _| panic!("no transport today")));
    let host = Host::builder(1).network(network).storage(Storage::Sled(dir.path().to_owned())).start().await.unwrap();
    let error = open(&host).await.unwrap_err();
    assert_eq!(error.to_string(), "the thread of the actors: it panicked: no transport today");
    assert_eq!(refusal(open(&host).await), "group 0: its host has ended: start the host again");
    assert!(!in_use(dir.path()).await);
}

/// Whoever gave up waiting for a shutdown may ask again, and is answered at its end.
#[actix::test]
async fn a_shutdown_is_waited_for_twice() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path()).await.unwrap();
    let raft = open(&host).await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    assert!(host.shutdown().now_or_never().is_none(), "one poll is not enough to shut down");
    host.shutdown().await;
    assert_eq!(raft.stopped().await, "it was shut down");
    assert!(!in_use(dir.path()).await);

    // The same without a group.
    let host = self::host(dir.path()).await.unwrap();
    assert!(host.shutdown().now_or_never().is_none(), "one poll is not enough to close files");
    host.shutdown().await;
    assert!(!in_use(dir.path()).await);
}

#[actix::test]
async fn a_start_that_nobody_waits_for_any_more_leaves_nothing_running() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path()).await.unwrap();
    assert!(open(&host).now_or_never().is_none(), "one poll is not enough to open a group");
    // The group that nobody holds shuts down by itself.
    let closed = async {
        while in_use(dir.path()).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, closed).await.expect("the directory is closed");
    assert!(refusal(open(&host).await).contains("start the host again"));
}

/// Outside actix each host has a thread of its own, which ends with it.
#[test]
fn a_host_on_a_thread_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let host = host(dir.path()).await.unwrap();
        let raft = open(&host).await.unwrap();
        raft.wait_for_leader(TIMEOUT).await.unwrap();
        assert_eq!(raft.propose(5).await.unwrap().response, 5);
        host.shutdown().await;
        assert_eq!(raft.stopped().await, "it was shut down");

        // Without a group as well: who opens the directory again meets a system that has ended.
        for _ in 0..3 {
            drop(self::host(dir.path()).await.unwrap());
        }
        let host = self::host(dir.path()).await.unwrap();
        host.shutdown().await;
    });
}
