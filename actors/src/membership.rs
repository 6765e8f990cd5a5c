//! The membership manager: it knows the peers, and forms the cluster.
//!
//! ```text
//!  SystemChanged (applier) ─┐                         ┌─▶ SetPeers, SetCluster ─▶ transport
//!  LeaderChanged (core) ────┤                         ├─▶ Form ─────────────────▶ core
//!  Asked: formation, clock ─┼─▶ MembershipManager ────┼─▶ Submit: incarnations of members ─▶ core
//!  Answered ────────────────┤                         ├─▶ ProposeVersions, PeerFeatures, ClocksRead ─▶ core
//!  PeerUp, PeerRefused ─────┘                         └─▶ Failed: removed, refused ────────▶ RaftSystem
//! ```
//!
//! It changes nothing in Raft by itself: it proposes. Membership changes of clients go straight to the core,
//! which checks and orders them; this actor makes their consequences known to the transport.
//!
//! Queue: the mailbox; every message in it is a report at a pace set elsewhere (one per applied change, per
//! election, per connection, per second and peer), and a peer's questions are bounded by the transport.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{WeakRecipient, prelude::*};
use actorum_core::{
    clock_offsets::{ClockOffsets, Estimates},
    consensus::CoreStatus,
    debug_fields,
    entry::{EncodedCommand, SystemCommand},
    features::Features,
    formation::{FormationError, FormationProgress, FormationState},
    identity::{Identity, RefusedBecause},
    lives::LifeBook,
    message::{LeaderChanged, ReplyHandle},
    system_state::SystemState,
    understanding::Understanding,
    versions::{Activation, Announcement},
    wire::{Formation as BootstrapInfo, Refusal, Request, Response},
};
use actorum_machine::{
    condition::Reason,
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    status::{Formed, Role},
};
use actorum_transport::message::{Answered, Ask, Asked, Peer, PeerUp, SetCluster, SetPeers};
use tokio::sync::watch;

use crate::{
    clock::Clock,
    core::Form,
    message::{ClocksRead, Failed, FromCore, PeerFeatures, ProposeVersions, Submit, SystemChanged},
};

mod clocks;
mod refusals;
mod versions;
#[cfg(test)]
mod tests;

pub use versions::{Activate, Activated, NoLeader};
use versions::{Activating, Operator};

/// How often founders that have not answered are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long a question to a peer is waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// How a node begins, or how it began.
#[derive(Debug)]
pub enum StartMode {
    /// It founds a cluster together with these.
    Bootstrap {
        /// The founders.
        founders: BTreeMap<NodeId, Address>,
        /// The cluster they make.
        cluster: ClusterId,
        /// The name that it was told to have; may be empty.
        name: String,
    },
    /// It waits to be added.
    Waiting,
    /// It belongs to a cluster.
    Formed {
        /// The system state, as recovered.
        state: Arc<SystemState>,
        /// The founders that it formed the cluster with, if it was one.
        formed_with: BTreeMap<NodeId, Incarnation>,
    },
}

/// The actors that the membership manager talks to.
pub struct Links<T: ReplyHandle> {
    /// The transport.
    pub ask: Recipient<Ask>,
    /// The transport.
    pub set_peers: Recipient<SetPeers>,
    /// The transport.
    pub set_cluster: Recipient<SetCluster>,
    /// The core.
    pub form: Recipient<Form>,
    /// The core.
    pub submit: Recipient<Submit<T>>,
    /// The core.
    pub features: Recipient<PeerFeatures>,
    /// The core.
    pub versions: Recipient<ProposeVersions>,
    /// The parent.
    pub failed: WeakRecipient<Failed>,
    /// Where the latest is shown.
    pub status: watch::Sender<MembershipStatus>,
    /// The core.
    pub clocks: Recipient<ClocksRead>,
    /// What the core shows of itself.
    pub core: watch::Receiver<CoreStatus>,
    /// This node's clocks.
    pub clock: Arc<dyn Clock>,
    /// A reading of a peer's calendar that may be wrong by more than this is ignored.
    pub max_clock_skew: Duration,
    /// Whether what every member understands is activated automatically.
    pub activates: bool,
    /// How long this node goes on after it has applied its own removal, if no other member shows that it knows of the
    /// removal.
    pub farewell: Duration,
}

debug_fields!(Links<T: ReplyHandle> { max_clock_skew, farewell });

/// What this actor shows in the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipStatus {
    /// How far the forming is.
    pub formed: Formed,
    /// The last refusal of an identity, by this node or of this node.
    pub refused: Option<String>,
    /// What every member has announced that it understands.
    pub features: Features,
    /// What the members' builds understand, as their newest hellos say.
    pub heard: BTreeMap<NodeId, Announcement>,
    /// The peers that refuse this node now, and why.
    pub refused_by: BTreeMap<NodeId, String>,
    /// What the calendars of peers show.
    pub clocks: Estimates,
    /// Since when this node has seen that what its build understands is not in use, by its own clock.
    pub not_in_use_since: BTreeMap<Activation, Duration>,
    /// Why a peer that leads takes no writes, by its last answers.
    pub refuses_writes: BTreeMap<NodeId, String>,
}

/// Knows the members, makes clusters, and tells the transport.
pub struct MembershipManager<T: ReplyHandle> {
    id: NodeId,
    group: GroupId,
    incarnation: Incarnation,
    links: Links<T>,
    /// Until the genesis is durable and applied, also when it is decided that the cluster is formed.
    formation_state: Option<FormationState>,
    /// Whether the genesis is on its way to the disk.
    forming: bool,
    /// Ours, or empty for a node that waited.
    founders: BTreeMap<NodeId, Address>,
    formed_with: BTreeMap<NodeId, Incarnation>,
    state: Option<Arc<SystemState>>,
    /// The index of the entry that made it what it is; zero if that was before this start.
    state_index: u64,
    seen: BTreeMap<NodeId, Incarnation>,
    understanding: Understanding,
    boot: u64,
    lives: Option<Arc<LifeBook>>,
    leads: bool,
    leader: Option<NodeId>,
    next_id: u64,
    /// The last refusal: the peer that it concerns, if this node does not stop because of it, and its text.
    refused: Option<(Option<NodeId>, String)>,
    /// The peers that refuse this node, until they let it in. Bound: one per id with a certificate of this authority.
    refused_by: BTreeMap<NodeId, RefusedBecause>,
    /// Whether this node has applied its own removal.
    leaving: bool,
    clocks: ClockOffsets,
    /// Questions about clocks that have no answer yet: who was asked, and when. At most one for each peer.
    clocks_asked: BTreeMap<u64, (NodeId, Duration)>,
    /// The peers that said that they take no writes, why, and when.
    refuses_writes: BTreeMap<NodeId, (String, Duration)>,
    /// Whether this node can take no part in a cluster any more: it is about to stop.
    failed: bool,
    activating: Activating,
    not_in_use_since: BTreeMap<Activation, Duration>,
}

debug_fields!(MembershipManager<T: ReplyHandle> { id, group, incarnation, forming, leads, refused, leaving, failed });

impl<T: ReplyHandle> MembershipManager<T> {
    /// A manager that acts when it is started.
    pub fn new(
        id: NodeId,
        group: GroupId,
        incarnation: Incarnation,
        understanding: Understanding,
        start_mode: StartMode,
        links: Links<T>,
    ) -> Result<Self, FormationError> {
        let mut manager = MembershipManager {
            id,
            group,
            incarnation,
            clocks: ClockOffsets::new(links.max_clock_skew),
            links,
            formation_state: None,
            forming: false,
            founders: BTreeMap::new(),
            formed_with: BTreeMap::new(),
            state: None,
            state_index: 0,
            seen: BTreeMap::new(),
            understanding,
            boot: 0,
            lives: None,
            leads: false,
            leader: None,
            next_id: 1,
            refused: None,
            refused_by: BTreeMap::new(),
            leaving: false,
            clocks_asked: BTreeMap::new(),
            refuses_writes: BTreeMap::new(),
            failed: false,
            activating: Activating::default(),
            not_in_use_since: BTreeMap::new(),
        };
        match start_mode {
            StartMode::Bootstrap { founders, cluster, name } => {
                manager.founders = founders.clone();
                manager.formation_state = Some(FormationState::new(id, incarnation, founders, cluster, name)?);
            }
            StartMode::Waiting => {}
            StartMode::Formed { state, formed_with } => {
                manager.state = Some(state);
                manager.formed_with = formed_with;
            }
        }
        Ok(manager)
    }

    /// In this opening of its directory, of those that the store keeps.
    pub fn in_life(self, boot: u64, lives: Option<Arc<LifeBook>>) -> Self {
        MembershipManager { boot, lives, ..self }
    }

    /// The peers as far as they are known: the membership, or the founders before there is one.
    fn tell_transport(&self) {
        let mut peers = BTreeMap::new();
        let mut retired = Default::default();
        match &self.state {
            Some(state) => {
                for (id, member) in &state.membership.members {
                    let incarnation = member.incarnation.or(self.formed_with.get(id).copied());
                    peers.insert(*id, Peer { address: member.address.clone(), incarnation });
                }
                retired = state.membership.retired.clone();
                self.links.set_cluster.do_send(SetCluster(state.cluster));
            }
            None => {
                for (id, address) in &self.founders {
                    peers.insert(*id, Peer { address: address.clone(), incarnation: None });
                }
            }
        }
        peers.remove(&self.id);
        self.links.set_peers.do_send(SetPeers { peers, retired });
    }

    fn ask_founders(&mut self, ctx: &mut Context<Self>, whom: Vec<NodeId>) {
        let (Some(formation_state), false) = (&self.formation_state, self.failed) else { return };
        let info = formation_state.info();
        for peer in whom {
            self.next_id += 1;
            self.links.ask.do_send(Ask {
                id: self.next_id,
                group: self.group,
                to: peer,
                request: Request::Formation(info.clone()),
                timeout: ASK_TIMEOUT,
                reply_to: ctx.address().downgrade().recipient(),
            });
        }
    }

    fn ask_again(&mut self, ctx: &mut Context<Self>) {
        // All founders are asked, also those that agreed the last time: by now one of them may have formed, and then
        // its answer alone is enough.
        let waits = self.formation_state.as_ref().filter(|formation_state| !formation_state.waiting_for().is_empty());
        let whom = waits.map(FormationState::others).unwrap_or_default();
        self.ask_founders(ctx, whom);
    }

    /// What this node tells a founder that asks.
    fn info(&self) -> BootstrapInfo {
        match &self.formation_state {
            Some(formation_state) => formation_state.info(),
            None => BootstrapInfo {
                incarnation: self.incarnation,
                founders: self.known_founders(),
                formed_with: self.state.as_ref().map(|_| self.known_incarnations()),
                heard: BTreeMap::new(),
                cluster_name: None,
                cluster: self.state.as_ref().map(|state| state.cluster),
            },
        }
    }

    /// The incarnations of the members as the cluster has recorded them, or as this founder heard them.
    fn known_incarnations(&self) -> BTreeMap<NodeId, Incarnation> {
        let mut known = self.formed_with.clone();
        let members = self.state.iter().flat_map(|state| &state.membership.members);
        known.extend(members.filter_map(|(id, member)| Some((*id, member.incarnation?))));
        known
    }

    /// The founders of this node's cluster, as far as it knows: of those that it formed with the ones that are members
    /// still. A member's address never changes.
    fn known_founders(&self) -> BTreeMap<NodeId, Address> {
        let Some(state) = self.state.as_ref().filter(|_| self.founders.is_empty()) else {
            return self.founders.clone();
        };
        let members = state.membership.members.iter().filter(|(id, _)| self.formed_with.contains_key(id));
        members.map(|(id, member)| (*id, member.address.clone())).collect()
    }

    fn receive(&mut self, peer: NodeId, info: BootstrapInfo, ctx: &mut Context<Self>) {
        let (Some(formation_state), false) = (&mut self.formation_state, self.failed) else { return };
        let heard_all = formation_state.has_heard_all();
        match formation_state.receive(peer, info) {
            Ok(progress) => {
                // A founder that completes the list says so at once, since the others wait for it.
                let completes = !heard_all && formation_state.has_heard_all();
                let others = formation_state.others();
                self.judge(progress);
                if completes {
                    self.ask_founders(ctx, others);
                }
            }
            Err(error) => {
                let replaced = matches!(error, FormationError::Replaced { .. });
                let reason = if replaced { Reason::RefusedByPeers } else { Reason::Stopped };
                self.fail(reason, error.to_string());
            }
        }
        self.show();
    }

    fn judge(&mut self, progress: FormationProgress) {
        let (FormationProgress::Formed(formed_with), Some(formation_state), false) =
            (progress, &self.formation_state, self.forming)
        else {
            return;
        };
        self.forming = true;
        let cluster = formation_state.cluster();
        let state = SystemState::founded(cluster, &self.founders);
        tracing::info!(%cluster, founders = self.founders.len(), "the founders agree: the cluster is formed");
        match state.genesis(formed_with.clone()) {
            Ok(genesis) => {
                self.formed_with = formed_with;
                self.links.form.do_send(Form(genesis));
            }
            Err(error) => self.fail(Reason::Stopped, format!("the genesis snapshot cannot be encoded: {error}")),
        }
    }

    /// "The first entry that a leader commits records every member's incarnation": incarnations that are known here and
    /// not recorded yet are proposed. If one is proposed twice, the first proposal counts.
    fn record_incarnations(&self) {
        let (true, Some(state)) = (self.leads, &self.state) else { return };
        for (id, member) in &state.membership.members {
            let own = (*id == self.id).then_some(self.incarnation);
            let known = own.or(self.formed_with.get(id).copied()).or(self.seen.get(id).copied());
            let (None, Some(incarnation)) = (member.incarnation, known) else { continue };
            let command = SystemCommand::Incarnation { node: *id, incarnation };
            match EncodedCommand::system(&command) {
                Ok(encoded) => self.links.submit.do_send(Submit { encoded, reply: None, deadline: Duration::MAX }),
                Err(error) => tracing::error!(%error, "an incarnation cannot be encoded"),
            }
        }
    }

    fn fail(&mut self, reason: Reason, cause: String) {
        // This statement stays true: the other founders must get it, too, to know what is wrong.
        self.failed = true;
        self.refused = Some((None, cause.clone()));
        if let Some(parent) = self.links.failed.upgrade() {
            parent.do_send(Failed { reason, cause });
        }
    }

    fn show(&mut self) {
        let formed = match (&self.state, &self.formation_state) {
            (Some(_), _) => Formed::Yes,
            (None, Some(formation_state)) => Formed::Forming { waiting_for: formation_state.waiting_for() },
            (None, None) => Formed::Waiting,
        };
        let features =
            self.state.as_ref().map(|state| self.understanding.everyone(&state.membership)).unwrap_or_default();
        let refused_by = self.refused_by.iter().map(|(peer, why)| (*peer, why.to_string())).collect();
        let refused = self.refused.as_ref().map(|(_, cause)| cause.clone());
        let refuses_writes = self.writes_refused_lately();
        let clocks = self.clocks.estimates(self.links.clock.now());
        let heard = self.heard();
        self.note_not_in_use();
        let not_in_use_since = self.not_in_use_since.clone();
        let shown =
            MembershipStatus { formed, refused, features, heard, refused_by, clocks, not_in_use_since, refuses_writes };
        self.links.status.send_if_modified(|status| {
            let changed = *status != shown;
            *status = shown;
            changed
        });
    }
}

impl<T: ReplyHandle> Actor for MembershipManager<T> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.tell_transport();
        if let Some(formation_state) = &self.formation_state {
            let whom = formation_state.waiting_for();
            self.judge(formation_state.progress());
            self.ask_founders(ctx, whom);
            ctx.run_interval(ASK_AGAIN, |manager, ctx| match ctx.connected() {
                true => manager.ask_again(ctx),
                // An interval keeps its actor alive; here no other address of this actor is left.
                false => ctx.stop(),
            });
        }
        ctx.run_interval(clocks::READ_CLOCKS, |manager, ctx| match ctx.connected() {
            true => {
                manager.ask_for_clocks(ctx);
                manager.propose_versions_again();
            }
            false => ctx.stop(),
        });
        self.take_leave(ctx);
        self.show();
    }
}

impl<T: ReplyHandle> Handler<Asked> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, Asked { from, request, responder, .. }: Asked, ctx: &mut Context<Self>) {
        if request == Request::Clock {
            return responder.answer(Response::Clock(self.own_clock()));
        }
        if request == Request::Activate {
            return self.activate(Operator::Peer(responder));
        }
        let Request::Formation(theirs) = request else {
            let cause = "only formation is asked here".to_owned();
            return responder.answer(Response::Refused(Refusal::Invalid { cause }));
        };
        // The statement is recorded before the answer, so that the answer shows it, which the other founder waits for.
        self.receive(from, theirs, ctx);
        responder.answer(Response::Formation(self.info()));
    }
}

impl<T: ReplyHandle> Handler<Answered> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, Answered { id, from, result }: Answered, ctx: &mut Context<Self>) {
        if let Some((peer, asked)) = self.clocks_asked.remove(&id) {
            if let Ok(Response::Clock(reading)) = result {
                self.clock_read(peer, asked, reading);
            }
            return;
        }
        if let Some(client) = self.activating.asked_leader.remove(&id) {
            let activated = if let Ok(Response::ReadAt { index }) = result { Ok(index) } else { Err(NoLeader) };
            // A caller that no longer waits gets no answer.
            let _ = client.send(activated);
            return;
        }
        // Without an answer the founder stays among the missing and is asked again.
        if let Ok(Response::Formation(theirs)) = result {
            self.receive(from, theirs, ctx);
        }
    }
}

impl<T: ReplyHandle> Handler<SystemChanged> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, SystemChanged { index, state }: SystemChanged, ctx: &mut Context<Self>) {
        self.state_index = index;
        // A refusal by or of a node that is no longer a member is not an error of this node.
        let is_member = |id: &NodeId| state.membership.members.contains_key(id);
        self.refused_by.retain(|peer, _| is_member(peer));
        self.refused.take_if(|(of, _)| of.is_some_and(|of| !is_member(&of)));
        self.state = Some(state);
        self.formation_state = None;
        self.tell_transport();
        self.take_leave(ctx);
        self.record_incarnations();
        self.propose_versions();
        self.show();
    }
}

impl<T: ReplyHandle> Handler<FromCore<LeaderChanged>> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, FromCore(changed): FromCore<LeaderChanged>, _: &mut Context<Self>) {
        let LeaderChanged { role, leader, .. } = changed;
        self.leader = leader;
        let led = std::mem::replace(&mut self.leads, role == Role::Leader);
        if self.leads && !led {
            self.record_incarnations();
        }
        self.propose_versions_again();
    }
}

impl<T: ReplyHandle> Handler<PeerUp> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, PeerUp { identity }: PeerUp, ctx: &mut Context<Self>) {
        let Identity { id: peer, boot, features, machine_version, .. } = identity;
        self.refused_by.remove(&peer);
        self.refused.take_if(|(of, _)| *of == Some(peer));
        self.seen.insert(peer, identity.incarnation);
        self.understanding.met(peer, features.clone(), machine_version, boot);
        self.links.features.do_send(PeerFeatures { peer, features, machine_version });
        self.ask_for_clock(peer, ctx);
        self.record_incarnations();
        self.propose_versions();
        self.show();
    }
}
