//! A job queue as an application would write it, from the prelude alone: jobs are added and leased, leases run out by
//! the time that commands carry, and a board beside the state machine is built from a read and the events that follow
//! it.

use std::{collections::BTreeMap, time::Duration};

use actorum::prelude::*;
use serde::{Deserialize, Serialize};

const TIMEOUT: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Command {
    Add { work: String },
    Lease { worker: u64 },
    Finish { job: u64, worker: u64 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum JobResponse {
    Added(u64),
    Leased(u64),
    Finished,
    Nothing,
}

/// Jobs by number, and who has which until when, in milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Jobs {
    next: u64,
    open: BTreeMap<u64, String>,
    leased: BTreeMap<u64, (u64, u64)>,
}

fn millis(time: std::time::SystemTime) -> u64 {
    time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl StateMachine for Jobs {
    type Command = Command;
    type Response = JobResponse;

    fn apply(&mut self, ctx: &ApplyContext, command: &Command) -> JobResponse {
        let now = millis(ctx.time);
        match command {
            Command::Add { work } => {
                self.next += 1;
                self.open.insert(self.next, work.clone());
                JobResponse::Added(self.next)
            }
            Command::Lease { worker } => {
                let free = |job: &&u64| self.leased.get(job).is_none_or(|(_, until)| *until <= now);
                let Some(job) = self.open.keys().find(free).copied() else { return JobResponse::Nothing };
                self.leased.insert(job, (*worker, now + LEASE.as_millis() as u64));
                JobResponse::Leased(job)
            }
            Command::Finish { job, worker } => match self.leased.get(job) {
                Some((holder, _)) if holder == worker => {
                    self.leased.remove(job);
                    self.open.remove(job);
                    JobResponse::Finished
                }
                _ => JobResponse::Nothing,
            },
        }
    }

    serde_snapshot!();
}

/// What a dashboard shows: moved on by events alone, which is only possible because each has its answer and its time.
fn show(board: &mut Jobs, event: &Event<Jobs>) -> Result<(), String> {
    let Event::Applied { index, command, response, time, .. } = event else { return Ok(()) };
    let answer = response.as_deref().ok_or(format!("the command at {index} came without its answer"))?;
    match (&**command, answer) {
        (Command::Add { work }, JobResponse::Added(job)) => {
            board.next = *job;
            board.open.insert(*job, work.clone());
        }
        (Command::Lease { worker }, JobResponse::Leased(job)) => {
            board.leased.insert(*job, (*worker, millis(*time) + LEASE.as_millis() as u64));
        }
        (Command::Finish { job, .. }, JobResponse::Finished) => {
            board.open.remove(job);
            board.leased.remove(job);
        }
        _ => {}
    }
    Ok(())
}

async fn node(network: &MemoryNetwork, disk: &MemoryDisk, id: NodeId) -> Result<Raft<Jobs>, StartError> {
    let founders = (1..=3).map(|id| (id, Address::from(format!("node-{id}").as_str()))).collect();
    RaftSystem::<Jobs>::builder(id)
        .network(Network::Memory(network.clone()))
        .storage(Storage::MemoryDisk(disk.clone()))
        .bootstrap(Bootstrap::Form(founders))
        .configure(|config| (config.heartbeat_ms, config.election_ms) = (20, 200))
        .start()
        .await
}

/// Adds, leases and finishes jobs; what is unknown may be asked again, for a lease that nobody uses runs out.
async fn work(raft: Raft<Jobs>, worker: u64, jobs: usize) {
    for n in 0..jobs {
        let _ = raft.propose(Command::Add { work: format!("{worker}/{n}") }).await;
        if let Ok(Applied { response: JobResponse::Leased(job), .. }) = raft.propose(Command::Lease { worker }).await {
            let _ = raft.propose(Command::Finish { job, worker }).await;
        }
    }
}

#[tokio::test]
async fn a_board_built_from_a_read_and_what_follows_is_the_state_itself() -> Result<(), Box<dyn std::error::Error>> {
    let (network, disks) = (MemoryNetwork::new(), [(); 3].map(|()| MemoryDisk::new()));
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(node(&network, &disks[id as usize - 1], id).await?);
    }
    nodes[0].wait_for_leader(TIMEOUT).await?;
    assert!(nodes[0].propose(Command::Add { work: "the first".into() }).await?.response == JobResponse::Added(1));

    // 40 workers propose some 3,000 commands through every node while the dashboard of one of them begins.
    let workers: Vec<_> = (0..40).map(|n| tokio::spawn(work(nodes[n as usize % 3].clone(), n, 25))).collect();
    let shown_by = &nodes[1];
    shown_by.wait(TIMEOUT, |status| status.totals.commands_applied > 500).await?;
    let (followed, mut events) = shown_by.follow_events(Jobs::clone).await?;
    let (mut board, mut position, mut told) = (followed.value, followed.position, 0);
    let mut workers = std::pin::pin!(async {
        for worker in workers {
            worker.await.expect("a worker ends");
        }
    });
    let mut working = true;
    let last = loop {
        tokio::select! {
            biased;
            () = &mut workers, if working => working = false,
            Some(event) = events.next() => {
                show(&mut board, &event)?;
                told += u64::from(matches!(event, Event::Applied { .. }));
                position = event.position().unwrap_or(position);
            }
        }
        if !working {
            let (index, state) = shown_by.read_with(Read::linearizable(Jobs::clone)).await?;
            if position.index >= index {
                break state;
            }
            // The leader's own entries are no events: the board is level once it says what the state says.
            if board == state {
                break state;
            }
        }
    };
    assert!(told > 1000, "{told} commands were told while it followed");
    assert_eq!(board, last);

    // Its node restarts, and the dashboard goes on where it was, on another node.
    nodes[1].shutdown().await;
    let error = nodes[1].propose(Command::Lease { worker: 1 }).await.unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::Rejected, "stopped"));
    let mut later = nodes[2].events(position).await?;
    let added = nodes[0].propose(Command::Add { work: "the last".into() }).await?;
    loop {
        let event = later.next().await.ok_or("the stream has ended")?;
        if let Event::Applied { .. } = event {
            let at = event.position().ok_or("a command has a position")?;
            assert_eq!((at.cluster, at.index), (position.cluster, added.index), "the one command since");
            break;
        }
    }
    let again = node(&network, &disks[1], 2).await?;
    again.wait_applied(added.index, TIMEOUT).await?;
    assert_eq!(again.read(|jobs| jobs.next).await?, last.next + 1, "what was applied before is there");
    assert!(again.ready().await? >= added.index);
    for node in [&nodes[0], &nodes[2], &again] {
        node.shutdown().await;
    }
    Ok(())
}
