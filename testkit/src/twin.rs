//! A copy of a node's directory that runs beside the node: the same id, another process at another address.
//!
//! The world does not know it as a node: nothing that it does may have an effect. This file checks that it leads no
//! node and learns of no commit. The fault that started it checks that no node accepts it, and that it ends with the
//! right error.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use actorum::{Bootstrap, Builder, Config, Network, Raft, StartError, Storage, seams};
use actorum_core::{
    lives::LifeKey,
    observer::{Drained, Observer},
};
use actorum_machine::{
    ids::{Incarnation, NodeId},
    machine::StateMachine,
    status::Role,
};
use actorum_transport::memory::Endpoint;
use tokio::time::timeout;

use super::{
    clock::NodeClock,
    disk::{Backup, NodeDisk, Room},
    fleet::{Fleet, Program},
    machine::{Hooks, Watched},
    rng::Rng,
    world::World,
};

/// The process of a copy. It ends with this.
pub(crate) struct Twin<S: StateMachine> {
    fleet: Fleet<S>,
    end: Endpoint,
    raft: Raft<Watched<S>>,
    disk: NodeDisk,
}

impl<S: StateMachine> Twin<S> {
    /// Starts a copy of a node's directory, which hears and reaches all but these.
    pub(super) async fn start(
        fleet: &Fleet<S>,
        of: NodeId,
        copy: Backup,
        mut rng: Rng,
        without: &[NodeId],
    ) -> Result<Twin<S>, StartError> {
        let (world, links) = (fleet.world(), fleet.links());
        let end = Endpoint(1 << 32 | of);
        let disk = NodeDisk::new(of, Room::new(None, &fleet.config()), rng.fork("disk", 0));
        disk.put_back(copy);
        let store = disk.open(Incarnation(rng.roll()))?;
        let boot = store.identity().boot;
        links.up(end.0, boot);
        for other in without {
            links.cut(end.0, *other);
            links.cut(*other, end.0);
        }
        let hooks = Hooks::default();
        // Its state machine is not checked.
        hooks.end();
        let (network, config) = (fleet.network(), Config { seed: Some(rng.roll()), ..fleet.config() });
        let machine = Watched::new(fleet.machine(), of, world.clone(), hooks, 0);
        let builder = Builder::new(of, machine)
            .storage(Storage::Custom(store))
            .network(Network::Custom(Box::new(move |identity, lives| network.start_at(end, identity, lives))))
            .bootstrap(Bootstrap::Wait)
            .config(config)
            .clock(Arc::new(NodeClock::new(world.scheduler(), 1000, 0)));
        let watcher = Arc::new(Watcher { of, world: world.clone(), began_with: OnceLock::new() });
        let program = fleet.node(of, |node| node.program).unwrap_or(Program::Newest);
        let builder = seams::of_version(builder, program.features(), program.machine_version());
        let raft = seams::watched(builder, watcher).start().await?;
        Ok(Twin { fleet: fleet.clone(), end, raft, disk })
    }

    /// The life that it shows.
    pub(super) fn life(&self) -> Option<LifeKey> {
        self.disk.lives()?.shown().last().map(|life| life.key())
    }

    /// Whether it has a vote among others, as far as it knows. A lone voter asks nobody, and what promoted a second one
    /// may be in its log without being committed there.
    pub(super) fn votes(&self, id: NodeId) -> bool {
        let voters = self.raft.status().membership.voters();
        voters.contains(&id) && voters.len() > 1
    }

    /// The cause of its end, if it ends in time.
    pub(super) async fn ends_within(&self, within: Duration) -> Option<String> {
        timeout(within, self.raft.stopped()).await.ok()
    }
}

impl<S: StateMachine> Drop for Twin<S> {
    fn drop(&mut self) {
        let links = self.fleet.links();
        links.down(self.end.0);
        links.forget(self.end.0);
        seams::broken(&self.raft, "the simulation ended it");
    }
}

struct Watcher {
    of: NodeId,
    world: World,
    /// The commit index that it began with.
    began_with: OnceLock<u64>,
}

impl Observer for Watcher {
    fn drained(&self, Drained { raft_state, .. }: Drained<'_>) {
        if raft_state.role == Role::Leader || raft_state.commit > *self.began_with.get_or_init(|| raft_state.commit) {
            let (of, term, commit) = (self.of, raft_state.term, raft_state.commit);
            let detail = format!(
                "a copy of n{of} that runs beside it is {} in term {term}, with commit {commit}",
                raft_state.role
            );
            self.world.broken("a copy that runs beside its node decides nothing", detail);
        }
    }
}
