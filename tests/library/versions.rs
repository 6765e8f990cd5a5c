//! A state machine changes its version while the cluster runs: what each version decided stays decided, nothing new is
//! used before every member has it, and a program that lacks what is in use is told so.

use std::{collections::BTreeMap, time::Duration};

use crate::support::{MemoryDisk, MemoryNetwork, TIMEOUT, founders, on, quick};
use actorum::{ActivateError, ActivateMode, ErrorCode, Network, NodeId, Outcome, StartError, prelude::*};
use serde::{Deserialize, Serialize};

/// Jobs, as the program of version `V` knows them. Version 2 knows `Cancel`; from version 3 on a job is finished once
/// only.
#[derive(Default, Serialize, Deserialize)]
struct Jobs<const V: u32> {
    finished: BTreeMap<u64, u32>,
    cancelled: u64,
    /// In which version each command was decided.
    decided: Vec<(u64, u32)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Command {
    Finish(u64),
    Cancel(u64),
}

impl<const V: u32> StateMachine for Jobs<V> {
    type Command = Command;
    type Response = bool;

    const VERSION: u32 = V;

    fn needs_version(command: &Command) -> u32 {
        match command {
            Command::Finish(_) => 1,
            Command::Cancel(_) => 2,
        }
    }

    fn apply(&mut self, ctx: &ApplyContext, command: &Command) -> bool {
        assert!(ctx.version <= V, "version {} is in force, and this program has {V}", ctx.version);
        self.decided.push((ctx.index, ctx.version));
        match command {
            Command::Finish(job) if V >= 3 && ctx.version >= 3 && self.finished.contains_key(job) => false,
            Command::Finish(job) => {
                *self.finished.entry(*job).or_default() += 1;
                true
            }
            Command::Cancel(_) => {
                self.cancelled += 1;
                true
            }
        }
    }

    serde_snapshot!();
}

/// A cluster's network, and the disks that outlive its nodes.
#[derive(Default)]
struct Cluster {
    network: MemoryNetwork,
    disks: [MemoryDisk; 3],
    manual: bool,
    most_requests: Option<usize>,
}

impl Cluster {
    async fn try_start<const V: u32>(&self, id: NodeId) -> Result<Raft<Jobs<V>>, StartError> {
        let activate = if self.manual { ActivateMode::Manual } else { ActivateMode::Automatic };
        let storage = on(&self.disks[id as usize - 1], id);
        let builder = RaftSystem::<Jobs<V>>::builder(id)
            .network(Network::Memory(self.network.clone()))
            .storage(storage)
            .bootstrap(founders(3))
            .configure(quick)
            .configure(|config| {
                config.activate = activate;
                if let Some(most) = self.most_requests {
                    // A leader that is cut off goes on for a while.
                    (config.max_in_flight, config.election_ms) = (most, 1500);
                }
            });
        builder.start().await
    }

    async fn start<const V: u32>(&self, id: NodeId) -> Raft<Jobs<V>> {
        self.try_start(id).await.unwrap()
    }
}

/// Ends a node in order, and waits until its directory is free.
async fn end<const V: u32>(node: Raft<Jobs<V>>) {
    node.shutdown().await;
}

async fn in_force<const V: u32>(node: &Raft<Jobs<V>>, version: u32) -> Status {
    node.wait(TIMEOUT, |status| status.versions.machine == version).await.unwrap()
}

fn decided<const V: u32>(jobs: &Jobs<V>) -> (BTreeMap<u64, u32>, Vec<(u64, u32)>) {
    (jobs.finished.clone(), jobs.decided.clone())
}

/// Without [`ApplyContext::version`] the program of version 3 would find at its start that the second `Finish(1)`,
/// which was answered with `true`, is refused.
#[actix::test]
async fn what_an_older_version_decided_stays_decided_and_the_new_one_begins_at_one_index_everywhere() {
    let cluster = Cluster::default();
    let (a, b, c) = (cluster.start::<1>(1).await, cluster.start::<1>(2).await, cluster.start::<1>(3).await);
    for _ in 0..2 {
        for job in 1..=10 {
            assert!(a.propose_within(Command::Finish(job), TIMEOUT).await.unwrap().response);
        }
    }
    let before = a.read(decided).await.unwrap();
    assert!(before.1.iter().all(|(_, version)| *version == 1) && before.0.values().all(|times| *times == 2));

    // Node by node, under proposals. As long as one has the older program, the older version is in force on all.
    end(c).await;
    let c = cluster.start::<3>(3).await;
    assert!(c.propose_within(Command::Finish(1), TIMEOUT).await.unwrap().response, "version 1 decides");
    end(b).await;
    let b = cluster.start::<3>(2).await;
    assert!(b.propose_within(Command::Finish(2), TIMEOUT).await.unwrap().response);
    let announced = |s: &Status| s.versions.members.values().filter(|member| member.machine == 3).count() == 2;
    let status = b.wait(TIMEOUT, announced).await.unwrap();
    assert_eq!((status.versions.machine, status.versions.own_machine), (1, 3));
    let missing = status.versions.not_in_use.iter().find(|missing| missing.what == "version 3 of the state machine");
    assert_eq!(missing.map(|missing| missing.lacking.clone()), Some(vec![1]), "{:?}", status.versions);
    end(a).await;
    let a = cluster.start::<3>(1).await;
    for node in [&a, &b, &c] {
        in_force(node, 3).await;
    }
    assert!(!b.propose(Command::Finish(1)).await.unwrap().response, "version 3 decides");

    let (finished, history) = b.read(decided).await.unwrap();
    assert_eq!((finished[&1], finished[&2], finished[&3]), (3, 3, 2));
    let last = history.last().unwrap().0;
    for node in [&a, &c] {
        node.wait_applied(last, TIMEOUT).await.unwrap();
        assert_eq!(node.read_stale(decided).await.unwrap(), (finished.clone(), history.clone()));
    }
    // And at every replay.
    end(a).await;
    let a = cluster.start::<3>(1).await;
    a.wait_applied(last, TIMEOUT).await.unwrap();
    assert_eq!(a.read_stale(decided).await.unwrap(), (finished.clone(), history.clone()));
    // Also behind a snapshot, which brings the version with it.
    a.take_snapshot().await.unwrap();
    end(a).await;
    let a = cluster.start::<3>(1).await;
    assert_eq!(a.status().versions.machine, 3);
    assert!(!a.propose_within(Command::Finish(3), TIMEOUT).await.unwrap().response);
    for node in [a, b, c] {
        end(node).await;
    }
}

/// A new command is refused while one member cannot read it, with the name of that member, and nothing of it is in the
/// log.
#[actix::test]
async fn a_command_that_a_member_cannot_read_is_refused_and_not_in_the_log() {
    let cluster = Cluster::default();
    let (a, b, c) = (cluster.start::<1>(1).await, cluster.start::<2>(2).await, cluster.start::<2>(3).await);
    // And what all of them have is in use: each activation is an entry.
    let all = |s: &Status| {
        s.versions.members.len() == 3 && s.versions.not_in_use.iter().all(|waiting| !waiting.lacking.is_empty())
    };
    for node in [&b, &c] {
        node.wait(TIMEOUT, all).await.unwrap();
    }
    // Of what the nodes themselves write, announcements and elections, some may come between: then once more.
    let mut tries = 0;
    loop {
        let before = b.propose_within(Command::Finish(1), TIMEOUT).await.unwrap();
        for node in [&b, &c] {
            let error = node.propose(Command::Cancel(1)).await.unwrap_err();
            assert_eq!(error, ProposeError::NeedsVersion { needed: 2, lowest: 1, node: Some(1) });
            assert_eq!((error.outcome(), error.code(), error.http_status()), (Outcome::Rejected, "needs_version", 503));
            assert!(
                error.to_string().contains("node 1 has announced no later one than 1: start it with a program"),
                "{error}"
            );
        }
        // Its own program does not know the command, although its source does.
        let error = a.propose(Command::Cancel(1)).await.unwrap_err();
        assert_eq!(error, ProposeError::NeedsVersion { needed: 2, lowest: 1, node: Some(1) });
        let after = b.propose_within(Command::Finish(2), TIMEOUT).await.unwrap();
        if after.index == before.index + 1 {
            break;
        }
        tries += 1;
        assert!(tries < 10, "something was written between {} and {}", before.index, after.index);
    }

    // With the last member's upgrade it is taken.
    end(a).await;
    let a = cluster.start::<2>(1).await;
    in_force(&b, 2).await;
    assert!(c.propose_within(Command::Cancel(1), TIMEOUT).await.unwrap().response);
    assert_eq!(a.read(|jobs| jobs.cancelled).await.unwrap(), 1);
    for node in [a, b, c] {
        end(node).await;
    }
}

/// Right after its formation a cluster has announced nothing yet. A proposal waits for what comes by itself.
#[actix::test]
async fn a_new_command_in_a_new_cluster_waits_until_its_version_is_in_force() {
    let cluster = Cluster::default();
    let (a, b, c) = (cluster.start::<2>(1).await, cluster.start::<2>(2).await, cluster.start::<2>(3).await);
    let answers = [&a, &b, &c].map(|node| node.submit_within(Command::Cancel(1), TIMEOUT));
    for answer in answers {
        assert!(answer.await.unwrap().response);
    }
    for node in [a, b, c] {
        end(node).await;
    }
}

/// With `manual` every node can be put back to the program before, until an operator says that the new one is there to
/// stay.
#[actix::test]
async fn an_operator_decides_when_there_is_no_way_back() {
    let cluster = Cluster { manual: true, ..Cluster::default() };
    let (a, b, c) = (cluster.start::<2>(1).await, cluster.start::<2>(2).await, cluster.start::<2>(3).await);
    a.propose_within(Command::Finish(1), TIMEOUT).await.unwrap();
    let seen = |s: &Status| s.versions.not_in_use.iter().all(|missing| missing.lacking.is_empty());
    let status = a.wait(TIMEOUT, seen).await.unwrap();
    assert!(status.versions.manual && status.versions.features.is_empty() && status.versions.machine == 1);
    let error = a.propose_within(Command::Cancel(1), Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error, ProposeError::NeedsVersion { needed: 2, lowest: 1, node: None });
    assert!(error.to_string().contains("or an operator does so with `actorum activate`"), "{error}");

    // Back to the version before, with what was written meanwhile.
    end(c).await;
    let c = cluster.start::<1>(3).await;
    assert!(c.propose_within(Command::Finish(2), TIMEOUT).await.unwrap().response);
    // An operator who forgets that node is told.
    let versions = b.activate_within(TIMEOUT).await.unwrap();
    let missing = versions.not_in_use.iter().find(|missing| missing.what == "version 2 of the state machine").unwrap();
    assert_eq!(missing.lacking, [3]);
    assert_eq!(versions.machine, 1);
    end(c).await;
    let c = cluster.start::<2>(3).await;
    let known = |s: &Status| s.versions.members.get(&3).is_some_and(|member| member.machine == 2);
    c.wait(TIMEOUT, known).await.unwrap();
    assert_eq!(c.status().versions.machine, 1, "what was asked for was done once");
    // Any node takes it.
    let follower = [&a, &b, &c].into_iter().find(|node| !node.is_leader()).unwrap();
    let versions = follower.activate_within(TIMEOUT).await.unwrap();
    assert_eq!((versions.machine, versions.not_in_use.len()), (2, 0));
    assert!(a.propose_within(Command::Cancel(1), TIMEOUT).await.unwrap().response);

    // From here on the program before is refused, and nothing of the directory is lost by that.
    end(c).await;
    let error = cluster.try_start::<1>(3).await.unwrap_err().to_string();
    assert!(error.contains("the cluster uses version 2 of the state machine at "), "{error}");
    assert!(error.contains("start this node with the version of the program that the other members have"), "{error}");
    let c = cluster.start::<2>(3).await;
    let last = a.propose(Command::Finish(3)).await.unwrap().index;
    c.wait_applied(last, TIMEOUT).await.unwrap();
    for node in [a, b, c] {
        end(node).await;
    }
}

/// Who asks for an activation is admitted as every other client is, and is told at its deadline what it waited for.
#[actix::test]
async fn an_activation_is_bounded_and_says_what_it_waited_for() {
    let cluster = Cluster { manual: true, most_requests: Some(1), ..Cluster::default() };
    let (a, b, c) = (cluster.start::<2>(1).await, cluster.start::<2>(2).await, cluster.start::<2>(3).await);
    for node in [&a, &b] {
        node.wait(TIMEOUT, |s: &Status| s.leader.is_some()).await.unwrap();
    }
    end(c).await;
    // One of the other two leads, and the third one comes back with an older program.
    a.wait(TIMEOUT, |s: &Status| s.leader.is_some_and(|leader| leader != 3)).await.unwrap();
    let c = cluster.start::<1>(3).await;
    let leader = if a.is_leader() { &a } else { &b };
    let lacks = |s: &Status| s.versions.not_in_use.iter().any(|missing| missing.lacking == [3]);
    leader.wait(TIMEOUT, lacks).await.unwrap();
    // It does not know yet that nobody follows it.
    cluster.network.isolate(leader.id());
    let asks = || leader.activate_within(Duration::from_millis(1));
    let (first, second) = tokio::join!(asks(), asks());
    assert!(matches!(second, Err(ActivateError::Busy { .. })), "{second:?}");
    assert_eq!((second.as_ref().unwrap_err().code(), second.as_ref().unwrap_err().http_status()), ("busy", 503));
    let first = first.unwrap_err();
    assert!(matches!(&first, ActivateError::DeadlineExceeded { .. }), "{first:?}");
    let words = "version 2 of the state machine is not in use, since node 3 has not announced it";
    assert!(first.to_string().contains(words), "{first}");
    // Whoever waits no longer takes no room.
    cluster.network.heal_all();
    b.activate_within(TIMEOUT).await.unwrap();
    a.activate_within(TIMEOUT).await.unwrap();
    for node in [a, b] {
        end(node).await;
    }
    end(c).await;
}

/// A learner that comes with an older program applies nothing that it does not understand, and is not promoted.
#[actix::test]
async fn a_newcomer_with_an_older_program_stops_before_it_diverges() {
    let cluster = Cluster::default();
    let (a, b, c) = (cluster.start::<2>(1).await, cluster.start::<2>(2).await, cluster.start::<2>(3).await);
    in_force(&a, 2).await;
    assert!(a.propose(Command::Cancel(1)).await.unwrap().response);
    let disk = MemoryDisk::new();
    let newcomer = RaftSystem::<Jobs<1>>::builder(4)
        .network(Network::Memory(cluster.network.clone()))
        .storage(on(&disk, 4))
        .bootstrap(Bootstrap::Wait)
        .configure(quick);
    let newcomer = newcomer.start().await.unwrap();
    a.change(ConfChange::AddLearner(4, "n4".into())).await.unwrap();
    let cause = newcomer.stopped().await;
    assert!(cause.contains("the cluster uses version 2 of the state machine"), "{cause}");
    let error = a.change_within(ConfChange::Promote(4), Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().contains("node 4 does not understand version 2 of the state machine"), "{error}");
    // With the right program the same directory goes on.
    let newcomer = RaftSystem::<Jobs<2>>::builder(4)
        .network(Network::Memory(cluster.network.clone()))
        .storage(on(&disk, 4))
        .bootstrap(Bootstrap::Wait)
        .configure(quick);
    let newcomer = newcomer.start().await.unwrap();
    a.change_within(ConfChange::Promote(4), TIMEOUT).await.unwrap();
    assert_eq!(newcomer.read(|jobs| jobs.cancelled).await.unwrap(), 1);
    for node in [a, b, c] {
        end(node).await;
    }
}
