//! What an error names as its cause is its cause: on healthy clusters, on the node that leads, and with an application
//! that is busy or panics.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::support::{MemoryDisk, MemoryNetwork, Sum, TIMEOUT, founders, is_open, on, quick, start, three};
use actorum::prelude::*;
use serde::{Deserialize, Serialize};

/// A deadline that has passed on arrival is not the want of a leader or of a majority, on any node of a cluster that
/// has both.
#[actix::test]
async fn a_deadline_that_passed_is_not_the_want_of_a_leader() {
    let nodes = three(&MemoryNetwork::new(), &Default::default()).await;
    for node in &nodes {
        node.wait_for_leader(TIMEOUT).await.unwrap();
        node.ready().await.unwrap();
        let error = node.propose_within(1, Duration::ZERO).await.unwrap_err();
        match &error {
            ProposeError::DeadlineExceeded { cause } => assert!(cause.contains("deadline passed"), "{error}"),
            // A follower that had asked its leader cannot know what that did.
            ProposeError::Unknown { .. } if !node.is_leader() => {}
            _ => panic!("{error}"),
        }
        assert!(!error.to_string().contains("no leader is known"), "{error}");
        // A read may be confirmed at once.
        let read = node.read_with(Read::linearizable(|sum: &Sum| sum.total).deadline(Duration::ZERO)).await;
        let error = read.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(!error.contains("no leader is known"), "{error}");
        let found = !(node.is_leader() && error.contains("no leader confirmed"));
        assert!(found, "a node that leads has found its leader: {error}");
    }
    for node in nodes {
        node.shutdown().await;
    }
}

/// Keeps `apply` waiting while it is shut.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn shut(&self, shut: bool) {
        *self.is_shut() = shut;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let mut shut = self.is_shut();
        while *shut {
            shut = self.0.1.wait(shut).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_shut(&self) -> MutexGuard<'_, bool> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Gated {
    #[serde(skip)]
    gate: Gate,
}

impl StateMachine for Gated {
    type Command = Vec<u8>;
    type Response = ();

    fn apply(&mut self, _: &ApplyContext, _: &Vec<u8>) {
        self.gate.pass();
    }

    actorum::serde_snapshot!();
}

/// The leader is there, a majority has confirmed it, and its own state machine is what is waited for.
#[actix::test]
async fn a_busy_state_machine_is_not_the_want_of_a_leader() {
    let (gate, deadline) = (Gate::default(), Duration::from_millis(300));
    let builder = RaftSystem::<Gated>::builder(1)
        .state_machine(Gated { gate: gate.clone() })
        .network(Network::Memory(MemoryNetwork::new()))
        .storage(on(&MemoryDisk::new(), 1))
        .bootstrap(founders(1))
        .configure(quick)
        .configure(|config| {
            config.placement = Placement::Spread;
            config.max_entry_bytes = 1 << 20;
            config.max_unapplied_bytes = 4 << 20;
        });
    let raft = builder.start().await.unwrap();
    raft.wait_for_leader(TIMEOUT).await.unwrap();
    raft.ready().await.unwrap();
    gate.shut(true);
    let waits = raft.submit_within(vec![], TIMEOUT);
    let status = raft.wait(TIMEOUT, |status| status.commit_index > status.applied_index).await.unwrap();

    let read = raft.read_with(Read::linearizable(|_: &Gated| ()).deadline(deadline)).await.unwrap_err();
    let ReadError::DeadlineExceeded { cause } = &read else { panic!("{read}") };
    assert!(cause.contains("state machine") && cause.contains(&status.applied_index.to_string()), "{cause}");
    let NotReady::Unanswered(error) = raft.ready().await.unwrap_err() else { panic!("nothing is wrong with the node") };
    assert!(
        matches!(error, ReadError::DeadlineExceeded { .. }) && error.to_string().contains("state machine"),
        "{error}"
    );

    // The bound that is reached is that of what is not applied, and the figures are its own: hardly anything is in
    // flight.
    // All at once, and with time enough to encode them on a machine that is busy with something else.
    let submitted = (0..8).map(|_| raft.submit_within(vec![0; (1 << 20) - 1000], Duration::from_secs(2)));
    let answers = futures_util::future::join_all(submitted.collect::<Vec<_>>()).await;
    let mut refused = answers.into_iter().map(Result::unwrap_err).filter(|error| error.code() == "busy");
    let busy = refused.next().expect("the bound of 4 MiB is reached");
    let ProposeError::Busy { bound: BusyBound::Unapplied { bytes, max } } = busy else { panic!("{busy}") };
    assert!(max == 4 << 20 && bytes > 2 << 20, "{bytes} of {max}");
    assert!(busy.to_string().contains("max_unapplied_bytes 4194304"), "{busy}");

    gate.shut(false);
    waits.await.unwrap();
    raft.shutdown().await;
}

/// Who reads with a closure that panics is told that, and by what; the node goes on.
#[actix::test]
async fn a_closure_that_panics_is_not_a_node_that_stopped() {
    let raft = start(&MemoryNetwork::new(), 1, &MemoryDisk::new(), founders(1)).await;
    let told = ReadError::Panicked { message: "the client's own".into() };
    assert_eq!(raft.read(|_| -> u64 { panic!("the client's own") }).await, Err(told.clone()));
    assert_eq!(raft.read_stale(|_| -> u64 { panic!("the client's own") }).await, Err(told.clone()));
    let followed = raft.follow_events(|_| -> u64 { panic!("the client's own") }).await;
    assert_eq!(followed.map(|(followed, _)| followed), Err(told));
    assert_eq!(raft.propose(5).await.unwrap().response, 5);
    assert_eq!(raft.read(|sum| sum.total).await, Ok(5));
    raft.shutdown().await;
}

/// A thread whose actix system has ended still names it; a node started there gets a thread of its own.
#[test]
fn a_node_starts_on_a_thread_whose_system_has_ended() {
    let disk = MemoryDisk::new();
    let on_disk = disk.clone();
    let thread = std::thread::spawn(move || {
        actix::System::new().block_on(async {});
        assert!(actix::Arbiter::try_current().is_some(), "the name of the system that ended is still there");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let raft = start(&MemoryNetwork::new(), 1, &on_disk, founders(1)).await;
            assert_eq!(raft.propose(5).await.unwrap().response, 5);
            raft.shutdown().await;
        });
    });
    thread.join().unwrap();
    assert!(!is_open(&disk, 1));
}

/// What a caller shows of a node that is not ready is a sentence; the code stands beside it.
#[test]
fn the_message_of_a_node_that_is_not_ready_leaves_its_code_to_the_code() {
    let mut status = Status::default();
    status.stopped = Some("it was shut down".into());
    let condition = status.unready().expect("it has stopped");
    let error = NotReady::Condition(condition.clone());
    assert_eq!((error.to_string(), error.code()), ("it was shut down".to_owned(), condition.reason.name()));
}

/// A value of the right kind that its setting does not know: the error names the setting.
#[test]
fn a_value_that_a_setting_refuses_is_named_with_its_key() {
    for (text, key) in [
        ("heartbeat_ms = -1", "heartbeat_ms"),
        ("placement = \"Spread\"", "placement"),
        ("response_check = \"maybe\"", "response_check"),
        ("max_entry_bytes = -5", "max_entry_bytes"),
    ] {
        let error = Config::default().apply(text.parse().unwrap()).unwrap_err();
        assert_eq!(error.key, key, "{error}");
    }
}
