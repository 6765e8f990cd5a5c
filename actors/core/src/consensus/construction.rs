//! How a core comes to be: from what its store and its applier have, or from the genesis snapshot of a new cluster.
//!
//! ```text
//!  store, applier ─▶ Start ─▶ Consensus::new ┬─ it holds a log ──▶ goes on where that ended
//!                                            └─ it holds nothing ─▶ form ─▶ append { genesis } ─▶ persisted ─▶ begins with it
//! ```
//!
//! raft-rs is made here and nowhere else, so its configuration has one place. A node that waits to be added is not
//! formed here: a leader sends it a snapshot like any other.
//!
//! Deliberately absent: who founds a cluster, and when (see `formation`); defaults, and what settings make sense
//! together: the caller knows them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use actorum_machine::{
    ids::{ClusterId, GroupId, Incarnation, NodeId},
    members::Membership,
};
use raft::RawNode;

use super::{
    Consensus, Effects, assertions, bridge, contact, disk, readiness, reads::Reads, replicate::Windows,
    snapshots::Snapshots, validate,
};
use crate::{
    clock_offsets::Estimates,
    debug_fields,
    features::Features,
    log::{
        store::{HardState, LogReader, Recovered, StoreError},
        view::LogView,
    },
    planted::{self, Planted},
    system_state::{GENESIS_INDEX, GENESIS_TERM},
    understanding::Understanding,
    versions::{Announcement, Versions},
    wire::{ConfState, Snapshot},
};

/// What the core has to know of its node. Times are in ticks or milliseconds as named.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub id: NodeId,
    /// This group; part of the seed, so that the groups of a node do not campaign in step.
    pub group: GroupId,
    /// The life of this node's directory; part of the seed.
    pub incarnation: Incarnation,
    /// How often the directory was opened; part of the names of membership changes.
    pub boot: u64,
    /// Where the random numbers start.
    pub seed: u64,
    /// The length of a tick; a leader sends a heartbeat at each.
    pub tick: Duration,
    /// The least election timeout, in ticks; each wait is drawn from once to twice this.
    pub election_ticks: usize,
    /// Bytes of entries in one append message.
    pub max_append_bytes: usize,
    /// Append messages on their way to one peer.
    pub max_inflight_appends: usize,
    /// Bytes of entries on their way to one peer: while there are fewer, another message is sent.
    pub peer_window_bytes: usize,
    /// Bytes of entries committed and not applied: past the bound a follower drops appends. A leader answers `Busy`
    /// where a proposal would make what it has appended and not applied more than that.
    pub max_unapplied_bytes: usize,
    /// Bytes handed to this node's disk and not durable. At the bound a leader answers `Busy`.
    pub max_unpersisted_bytes: usize,
    /// How many ticks a write may wait for the disk before this node gives up its leadership and seeks none.
    pub disk_slow_ticks: u64,
    /// Bytes of applied entries kept in memory.
    pub log_tail_bytes: usize,
    /// Bytes of one entry.
    pub max_entry_bytes: usize,
    /// A snapshot is built when so many entries were applied since the last one.
    pub snapshot_entries: u64,
    /// Or when they have so many bytes.
    pub snapshot_bytes: u64,
    /// Or when they have four times the newest snapshot's bytes, and at least so many.
    pub small_snapshot_bytes: u64,
    /// Where room is short a snapshot is built when so many bytes were applied since the last one, or a quarter of its
    /// size if that is more.
    pub short_bytes: u64,
    /// Entries kept behind the newest snapshot, for followers that are behind.
    pub keep_entries: u64,
    /// Bytes of entries kept for them at most.
    pub keep_bytes: u64,
    /// Bytes of entries kept at most for a follower that lives and needs them.
    pub hold_bytes: u64,
    /// After so many ticks without a sign of life a snapshot on its way to a peer counts as lost.
    pub snapshot_timeout_ticks: u64,
    /// How far beyond the median of the voters' calendars a leader may stamp.
    pub max_clock_skew: Duration,
    /// Whether a node that holds nothing waits to be added by a leader. If not, it hears nobody until it is formed.
    pub waits: bool,
    /// What this build understands.
    pub features: Features,
    /// The version of its state machine.
    pub machine_version: u32,
    /// When this node's certificate ends, if it has one: peers refuse new connections of a node from then on.
    pub certificate_ends: Option<SystemTime>,
}

/// What a core starts from.
pub struct Start {
    /// What the store found.
    pub recovered: Recovered,
    /// Reads the log behind the tail.
    pub reader: Arc<dyn LogReader>,
    /// The highest index that the applier has applied.
    pub applied: u64,
    /// The membership at that index.
    pub membership: Arc<Membership>,
    /// What was announced and in use at that index.
    pub versions: Arc<Versions>,
    /// The cluster, if the node belongs to one.
    pub cluster: Option<ClusterId>,
    /// The index at which an operator made this node the only member of a new cluster; zero if none did. Entries up to
    /// there are sent to no peer.
    pub min_served_index: u64,
}

debug_fields!(Start { applied, cluster, min_served_index });

impl<T> Consensus<T> {
    /// A core that goes on where its log ended.
    pub fn new(settings: Settings, start: Start) -> Result<Self, StoreError> {
        let Start { mut recovered, reader, applied, membership, versions, cluster, min_served_index } = start;
        if planted::is(Planted::VoteForgotten) && recovered.newest().is_some() {
            recovered.hard_state.vote = 0;
        }
        let mut view = match recovered.newest() {
            None => {
                // It holds nothing, but a leader may have spoken to it: its term never runs backwards.
                let mut view = LogView::empty(settings.group, reader, settings.log_tail_bytes);
                view.set_hard_state(HardState { commit: 0, ..recovered.hard_state });
                view
            }
            Some(snapshot) => {
                // The genesis that a learner was sent names it; the founders' own state does not.
                let conf = if applied == snapshot.index { snapshot.conf.clone() } else { ConfState::of(&membership) };
                let (group, keep) = (settings.group, settings.log_tail_bytes);
                LogView::recovered(group, reader, keep, recovered, applied, conf)?
            }
        };
        view.raise_min_served_index(min_served_index);
        // raft-rs refuses to start with a commit index below what was applied.
        let hard = view.hard_state();
        // Its next election would overflow, in every term that follows too.
        if hard.term >= validate::TERM_LIMIT {
            let detail = format!("term {} is beyond the last one that a node may have", hard.term);
            return Err(StoreError::Damaged { what: "the hard state".into(), detail });
        }
        view.set_hard_state(HardState { commit: hard.commit.max(applied), ..hard });
        let logger = bridge::logger();
        let durable_term = hard.term;
        let raw = new_raw(&settings, view, applied, &logger)?;
        let own = Announcement::of(&settings.features, settings.machine_version, settings.boot);
        let understanding = Understanding::new(settings.id, settings.features.clone(), own);
        let mut core = Consensus {
            settings,
            logger,
            raw,
            membership,
            versions,
            understanding,
            cluster,
            min_served_index,
            pending_writes: VecDeque::new(),
            disk: disk::DiskHealth::default(),
            next_write: 1,
            durable_term,
            forming: None,
            queued: VecDeque::new(),
            pending: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            reads: Reads::default(),
            contact: contact::Contact::default(),
            commits: readiness::Commits::new(),
            next_id: 1,
            now: Duration::ZERO,
            next_tick: None,
            ticks: 0,
            snapshots: Snapshots::default(),
            windows: Windows::default(),
            announced: None,
            invalid_messages: 0,
            commit_conflicts: BTreeMap::new(),
            contradicted: false,
            clocks: Estimates::default(),
            certificate_ended: false,
            seen: assertions::Seen::default(),
            effects: Effects::default(),
        };
        core.draw_election_timeout();
        Ok(core)
    }

    /// Every founder is as new as this node: the cluster is formed, and its log begins with this snapshot.
    ///
    /// Until it is durable this node stays as silent as before.
    pub fn form(&mut self, genesis: Snapshot) {
        if self.is_formed() || self.forming.is_some() {
            return;
        }
        let hard_state = self.first_hard_state();
        let number = self.push_append(Some(genesis.clone()), Vec::new(), Some(hard_state), true);
        self.forming = Some((number, genesis));
    }

    fn first_hard_state(&self) -> HardState {
        let HardState { term, vote, .. } = self.raw.store().hard_state();
        HardState { term: term.max(GENESIS_TERM), vote, commit: GENESIS_INDEX }
    }

    /// The genesis is durable: raft-rs begins with it.
    pub(super) fn begin_with(&mut self, genesis: Snapshot) {
        let reader = self.raw.store().reader();
        let hard_state = self.first_hard_state();
        let mut view = LogView::empty(self.settings.group, reader, self.settings.log_tail_bytes);
        view.install(genesis.clone());
        view.set_hard_state(hard_state);
        match new_raw(&self.settings, view, genesis.index, &self.logger) {
            Ok(raw) => self.raw = raw,
            Err(error) => return self.fail(format!("raft cannot begin with the genesis snapshot: {error}")),
        }
        self.durable_term = hard_state.term;
        self.adopt_membership(&genesis);
        self.draw_election_timeout();
        self.effects.kept = Some(vec![genesis.clone()]);
        self.effects.restore = Some(genesis);
    }
}

fn new_raw(
    settings: &Settings,
    view: LogView,
    applied: u64,
    logger: &slog::Logger,
) -> Result<RawNode<LogView>, StoreError> {
    let config = raft::Config {
        id: settings.id,
        election_tick: settings.election_ticks,
        heartbeat_tick: 1,
        applied,
        // Zero would mean one entry per message.
        max_size_per_msg: settings.max_append_bytes as u64,
        max_inflight_msgs: settings.max_inflight_appends,
        check_quorum: true,
        pre_vote: true,
        // It merges appends without a bound. They are merged, up to a bound, when they leave (`Consensus::transmit`).
        batch_append: false,
        // What a leader takes is bounded where it is proposed; raft-rs wants no less than a message.
        max_uncommitted_size: settings.max_unapplied_bytes.max(settings.max_append_bytes) as u64,
        max_committed_size_per_ready: settings.max_append_bytes as u64,
        ..raft::Config::default()
    };
    RawNode::new(&config, view, logger).map_err(|error| StoreError::Damaged {
        what: "the log".into(),
        detail: format!("raft cannot start from it: {error}"),
    })
}
