//! A request never waits past its deadline, whoever is busy: the state machine applies, restores or hands out its state
//! for as long as the test wants, and every request is answered meanwhile. What would hang without the deadline hangs
//! until the test's timeout ends.

use std::{
    future::Future,
    io::Read as Source,
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
    time::Duration,
};

use actix::prelude::*;
use actorum::{config::Placement, prelude::*};
use actorum_machine::outcome::TakeSnapshotError;
use serde::{Deserialize, Serialize};

use crate::support::{MemoryDisk, MemoryNetwork, TIMEOUT, founders, on, quick};

const SOON: Duration = Duration::from_millis(300);

/// Shut by the test, and waited at by a state machine.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<(bool, usize)>, Condvar)>);

impl Gate {
    fn shut(&self) {
        self.0.0.lock().unwrap().0 = true;
    }

    fn open(&self) {
        self.0.0.lock().unwrap().0 = false;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.1 += 1;
        self.0.1.notify_all();
        drop(self.0.1.wait_while(state, |(shut, _)| *shut).unwrap());
    }

    /// Until somebody stands at it who came after so many.
    fn wait_for_somebody(&self, after: usize) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |(_, came)| *came <= after).unwrap());
    }

    fn came(&self) -> usize {
        self.0.0.lock().unwrap().1
    }
}

/// A counter that waits at its gates.
#[derive(Default, Serialize, Deserialize)]
struct Slow {
    total: u64,
    #[serde(skip)]
    applies: Gate,
    #[serde(skip)]
    restores: Gate,
    #[serde(skip)]
    snapshots: Gate,
}

impl StateMachine for Slow {
    type Command = u64;
    type Response = u64;

    fn apply(&mut self, _: &ApplyContext, number: &u64) -> u64 {
        self.applies.pass();
        self.total += number;
        self.total
    }

    fn snapshot(&self) -> Result<StateView, MachineError> {
        let (gate, bytes) = (self.snapshots.clone(), actorum::machine::encode(&self.total)?);
        gate.pass();
        Ok(StateView::bytes(bytes))
    }

    fn restore(&mut self, from: &mut dyn Source) -> Result<(), MachineError> {
        self.restores.pass();
        self.total = actorum::machine::decode_from(from)?;
        Ok(())
    }
}

/// A machine's gates, opened when the test ends, however it ends: its thread would wait for ever.
struct Node {
    raft: Raft<Slow>,
    applies: Gate,
    restores: Gate,
    snapshots: Gate,
}

impl Drop for Node {
    fn drop(&mut self) {
        [&self.applies, &self.restores, &self.snapshots].into_iter().for_each(Gate::open);
    }
}

/// Runs to its end on a runtime without a timer, as an application may have; a request that hangs ends the test.
fn done<T: Send + 'static>(what: &str, future: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // A test that has given up is gone.
        let _ = sender.send(runtime.block_on(future));
    });
    receiver.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("{what} waits past its deadline"))
}

/// Its actors have a thread of their own, and with `Spread` the state machine another one.
fn node(network: &MemoryNetwork, id: NodeId, of: NodeId, change: impl FnOnce(&mut Config) + Send + 'static) -> Node {
    let (applies, restores, snapshots) = (Gate::default(), Gate::default(), Gate::default());
    let machine = Slow { total: 0, applies: applies.clone(), restores: restores.clone(), snapshots: snapshots.clone() };
    let bootstrap = if id <= of { founders(of) } else { Bootstrap::Wait };
    let builder = RaftSystem::<Slow>::builder(id).state_machine(machine).bootstrap(bootstrap);
    let builder = builder.network(Network::Memory(network.clone())).storage(on(&MemoryDisk::new(), id));
    let builder = builder.configure(quick).configure(change);
    let raft = done("a start", async move { builder.start().await.unwrap() });
    Node { raft, applies, restores, snapshots }
}

fn spread(config: &mut Config) {
    config.placement = Placement::Spread;
}

fn lead(node: &Node) {
    let raft = node.raft.clone();
    done("a leader", async move { raft.wait(TIMEOUT, |s| s.leader == Some(s.id)).await.unwrap() });
}

/// A command that is handed over, and does not get through the gate.
fn stuck(node: &Node) {
    let came = node.applies.came();
    node.applies.shut();
    let raft = node.raft.clone();
    thread::spawn(move || tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(raft.propose(1)));
    node.applies.wait_for_somebody(came);
}

/// What every kind of request is told while the state machine does not get on.
fn everything_is_answered(raft: &Raft<Slow>, cause: &str) {
    let says = |text: String| assert!(text.contains(cause), "{text}");
    let (r, propose) = (raft.clone(), "a proposal");
    match done(propose, async move { r.propose_within(1, SOON).await }) {
        Err(ProposeError::Unknown { cause }) => says(cause),
        other => panic!("{propose}: {other:?}"),
    }
    let r = raft.clone();
    match done("a stale read", async move { r.read_with(Read::stale(|slow: &Slow| slow.total).deadline(SOON)).await }) {
        Err(ReadError::DeadlineExceeded { cause }) => says(cause),
        other => panic!("a stale read: {other:?}"),
    }
    let r = raft.clone();
    match done("a subscription", async move { r.subscribe(Subscribe::new(Deaf.start_in_thread())).await }) {
        Err(SubscribeError::DeadlineExceeded { cause }) => says(cause),
        other => panic!("a subscription: {other:?}"),
    }
    let r = raft.clone();
    match done("a snapshot", async move { r.take_snapshot_within(SOON).await }) {
        Err(TakeSnapshotError::DeadlineExceeded { cause: late }) => {
            // Where it was begun nobody ends it by no longer waiting.
            assert_eq!(late.contains("The snapshot goes on"), cause.contains("committed"), "{late}");
            says(late)
        }
        other => panic!("a snapshot: {other:?}"),
    }
    // A linearizable read waits in the core for its index to be applied, or behind what is applied.
    let r = raft.clone();
    let read =
        done("a read", async move { r.read_with(Read::linearizable(|slow: &Slow| slow.total).deadline(SOON)).await });
    assert!(matches!(read, Err(ref error) if !matches!(error, ReadError::Stopped { .. })), "{read:?}");
    let (r, deaf) = (raft.clone(), Deaf.start_in_thread());
    let follow = Follow::new(|slow: &Slow| slow.total, deaf).deadline(SOON);
    let followed = done("a follow", async move { r.follow_with(follow).await });
    assert!(matches!(followed, Err(ref error) if !matches!(error, ReadError::Stopped { .. })), "{followed:?}");
}

/// Hears nothing.
struct Deaf;

impl Deaf {
    /// A recipient, for threads without actors.
    fn start_in_thread(self) -> Recipient<Event<Slow>> {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            System::new().block_on(async move {
                let address = self.start();
                sender.send(address.clone().recipient()).unwrap();
                while address.connected() {
                    actix_rt::time::sleep(Duration::from_millis(10)).await;
                }
            });
        });
        receiver.recv().unwrap()
    }
}

impl Actor for Deaf {
    type Context = Context<Self>;
}

impl Handler<Event<Slow>> for Deaf {
    type Result = ();
    fn handle(&mut self, _: Event<Slow>, _: &mut Context<Self>) {}
}

#[test]
fn a_busy_state_machine_keeps_nobody_past_a_deadline() {
    let node = node(&MemoryNetwork::new(), 1, 1, |config| {
        spread(config);
        config.deadline_ms = 300;
    });
    lead(&node);
    let raft = node.raft.clone();
    assert_eq!(done("a proposal", async move { raft.propose_within(40, TIMEOUT).await.unwrap().response }), 40);
    stuck(&node);
    everything_is_answered(&node.raft, "committed entries");

    // The same through the actor.
    let raft = node.raft.clone();
    let answer = done("a message", async move { raft.addr().send(Propose::new(1).deadline(SOON)).await.unwrap() });
    assert!(
        matches!(&answer, Err(ProposeError::Unknown { cause }) if cause.contains("committed entries")),
        "{answer:?}"
    );
    let raft = node.raft.clone();
    let change = ConfChange::AddLearner(2, "n2".into());
    let answer = done("a change", async move { raft.change_within(change, SOON).await });
    assert!(matches!(answer, Err(ChangeError::Unknown { .. })), "{answer:?}");

    // What was unknown was not lost: it holds its admission, and is applied, when the machine gets on.
    assert!(node.raft.status().queues.in_flight > 0);
    node.applies.open();
    let raft = node.raft.clone();
    done("the end", async move { raft.wait(TIMEOUT, |s| s.queues.in_flight == 0).await.unwrap() });
    let raft = node.raft.clone();
    assert_eq!(done("a read", async move { raft.read(|slow| slow.total).await.unwrap() }), 43);
}

/// On one thread with the core nothing of this node moves, not even its heartbeats; its clients are told all the same.
#[test]
fn a_state_machine_that_holds_up_the_thread_of_all_actors_keeps_nobody_past_a_deadline() {
    let node = node(&MemoryNetwork::new(), 1, 1, |config| config.deadline_ms = 300);
    lead(&node);
    stuck(&node);
    everything_is_answered(&node.raft, "within");
    let raft = node.raft.clone();
    let waited = done("a wait", async move { raft.wait(SOON, |s| s.applied_index > 1000).await });
    assert!(matches!(waited, Err(WaitError::TimedOut(_))), "{waited:?}");
}

/// Whoever waits for a snapshot hears that there will be none as soon as that is so, whatever holds the end up.
#[test]
fn a_shutdown_answers_who_waits_for_a_snapshot() {
    let node = node(&MemoryNetwork::new(), 1, 1, |config| {
        spread(config);
        config.deadline_ms = 300;
    });
    lead(&node);
    let raft = node.raft.clone();
    assert_eq!(done("a proposal", async move { raft.propose_within(40, TIMEOUT).await.unwrap().response }), 40);
    node.snapshots.shut();
    let raft = node.raft.clone();
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _ = sender.send(runtime.block_on(raft.take_snapshot()));
    });
    node.snapshots.wait_for_somebody(0);
    let raft = node.raft.clone();
    let ending = thread::spawn(move || done("the end", async move { raft.shutdown().await }));
    let answer = answer.recv_timeout(TIMEOUT).expect("an answer");
    assert!(matches!(&answer, Err(TakeSnapshotError::Stopped { .. })), "{answer:?}");
    assert!(!ending.is_finished(), "the machine is still asked, and holds the end up");
    node.snapshots.open();
    ending.join().unwrap();
}

/// A node that restores a snapshot answers its own clients, though nothing is applied before that has ended.
#[test]
fn a_node_that_restores_keeps_nobody_past_a_deadline() {
    let network = MemoryNetwork::new();
    let leader = node(&network, 1, 1, |config| config.log_keep_entries = 0);
    lead(&leader);
    let raft = leader.raft.clone();
    done("the log is cut", async move {
        for _ in 0..2 {
            raft.propose(1).await.unwrap();
            raft.take_snapshot().await.unwrap();
        }
        raft.wait(TIMEOUT, |s| s.first_index > 2).await.unwrap()
    });
    let second = node(&network, 2, 1, |config| config.deadline_ms = 300);
    second.restores.shut();
    let raft = leader.raft.clone();
    done("a learner", async move { raft.change(ConfChange::AddLearner(2, "n2".into())).await.unwrap() });
    second.restores.wait_for_somebody(0);
    let raft = second.raft.clone();
    let answer = done("a stale read", async move { raft.read_with(Read::stale(|slow: &Slow| slow.total)).await });
    assert!(matches!(answer, Err(ReadError::DeadlineExceeded { .. })), "{answer:?}");
    let raft = second.raft.clone();
    let answer = done("a proposal", async move { raft.propose_within(1, SOON).await });
    assert!(answer.is_err(), "{answer:?}");
    second.restores.open();
    let raft = second.raft.clone();
    let total =
        done(
            "a read",
            async move { raft.read_with(Read::linearizable(|slow: &Slow| slow.total).deadline(TIMEOUT)).await },
        );
    assert!(total.unwrap().1 >= 2);
}

/// A forwarded request is answered by the node that it came through, whatever keeps the leader.
#[test]
fn a_forwarded_request_waits_for_no_leader_past_its_deadline() {
    let network = MemoryNetwork::new();
    let nodes: Vec<Node> = (1..=3).map(|id| node(&network, id, 3, spread)).collect();
    let raft = nodes[0].raft.clone();
    let leader = done("a leader", async move { raft.wait_for_leader(TIMEOUT).await.unwrap().leader.unwrap() });
    let (leader, follower) = (&nodes[leader as usize - 1], &nodes[leader as usize % 3]);
    stuck(leader);
    let raft = follower.raft.clone();
    let answer = done("a forwarded proposal", async move { raft.propose_within(1, SOON).await });
    assert!(matches!(answer, Err(ProposeError::Unknown { .. })), "{answer:?}");
    leader.applies.open();
}
