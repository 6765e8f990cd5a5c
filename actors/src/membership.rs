//! Who the peers are, and how a cluster begins: the membership manager.
//!
//! ```text
//!  SystemChanged (applier) ─┐                         ┌─▶ SetPeers, SetCluster ─▶ transport
//!  LeaderChanged (core) ────┤                         ├─▶ Form ─────────────────▶ core
//!  Asked: formation, clock ─┼─▶ MembershipManager ────┼─▶ Submit: incarnations of members ─▶ core
//!  Answered ────────────────┤                         ├─▶ PeerFeatures, ClocksRead ────────▶ core
//!  PeerUp, PeerRefused ─────┘                         └─▶ Failed: removed, refused ────────▶ front door
//! ```
//!
//! It changes nothing in Raft by itself: it proposes. Membership changes of clients go straight to the core,
//! which checks and orders them; this actor makes their consequences known to the transport.
//!
//! Queue: the mailbox; every message in it is a report at a pace set elsewhere (one per applied change, per
//! election, per connection, per second and peer), and a peer's questions are bounded by the transport.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use actix::{WeakRecipient, prelude::*};
use actorum_transport::{
    features::{Feature, Features},
    lives::LifeBook,
    message::{Answered, Ask, Asked, Peer, PeerRefused, PeerUp, RefusedBecause, SetCluster, SetPeers},
    wire::{Address, ClockReading, ClusterId, Formation as Statement, GroupId, Incarnation, NodeId, Request, Response},
};
use tokio::sync::watch;

use crate::{
    clock::Clock,
    clock_offsets::{ClockOffsets, Estimates, calendar_us},
    condition::{Reason, removed_message},
    consensus::CoreStatus,
    core::Form,
    entry::{Draft, SystemCommand},
    features::{PeerFeatures, Understanding},
    formation::{FormationError, Founding, Verdict},
    message::{ClocksRead, Failed, LeaderChanged, Refusal, Submit, SystemChanged, Ticket},
    status::{Formed, Role},
    system_state::SystemState,
};

/// How often founders that have not answered are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often peers are asked what their calendars show.
const READ_CLOCKS: Duration = Duration::from_secs(1);
/// What a peer says of its writes counts for so long.
const WORD_COUNTS: Duration = Duration::from_secs(3);
/// The longest reason that a peer may give for taking none, in bytes.
const MAX_REASON: usize = 64;
/// How long one such question is waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// How a node begins, or how it began.
pub enum Beginning {
    /// It founds a cluster together with these.
    Founding {
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
        /// Whom it formed with, if it was a founder.
        formed_with: BTreeMap<NodeId, Incarnation>,
    },
}

/// Whom the membership manager talks to.
pub struct Links<T: Ticket> {
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
    /// How long this node goes on once it has applied its own removal, if no member shows that it has, too.
    pub farewell: Duration,
}

/// What this actor has to say of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipStatus {
    /// How far the forming is.
    pub formed: Formed,
    /// The last refusal of an identity, by us or of ours.
    pub refused: Option<String>,
    /// What every member has said that it understands.
    pub features: Features,
    /// The peers that refuse this node now, and why.
    pub refused_by: BTreeMap<NodeId, String>,
    /// What the calendars of peers show.
    pub clocks: Estimates,
    /// Why a peer that leads takes no writes, as it said lately.
    pub refuses_writes: BTreeMap<NodeId, String>,
}

/// Knows the members, makes clusters, and tells the transport.
pub struct MembershipManager<T: Ticket> {
    id: NodeId,
    group: GroupId,
    incarnation: Incarnation,
    links: Links<T>,
    /// Until the genesis is durable and applied, also when it is decided that the cluster is formed.
    founding: Option<Founding>,
    /// Whether the genesis is on its way to the disk.
    forming: bool,
    /// Ours, or empty for a node that waited.
    founders: BTreeMap<NodeId, Address>,
    formed_with: BTreeMap<NodeId, Incarnation>,
    state: Option<Arc<SystemState>>,
    seen: BTreeMap<NodeId, Incarnation>,
    understanding: Understanding,
    boot: u64,
    lives: Option<Arc<LifeBook>>,
    leads: bool,
    next_id: u64,
    /// The last refusal: which peer it concerns, if this node is not at its end with it, and what it was.
    refused: Option<(Option<NodeId>, String)>,
    /// The peers that refuse this node, until they let it in. Bound: one per id with a certificate of this authority.
    refused_by: BTreeMap<NodeId, RefusedBecause>,
    /// Whether this node has applied its own removal.
    leaving: bool,
    clocks: ClockOffsets,
    /// Questions about clocks that have no answer yet: who was asked, and when. At most one for each peer.
    clocks_asked: BTreeMap<u64, (NodeId, Duration)>,
    /// Who said that it takes no writes, why, and when.
    refuses_writes: BTreeMap<NodeId, (String, Duration)>,
    /// Whether this node can be part of nothing any more: it is about to stop.
    failed: bool,
}

impl<T: Ticket> MembershipManager<T> {
    /// A manager that acts when it is started.
    pub fn new(
        id: NodeId,
        group: GroupId,
        incarnation: Incarnation,
        features: Features,
        beginning: Beginning,
        links: Links<T>,
    ) -> Result<Self, FormationError> {
        let mut manager = MembershipManager {
            id,
            group,
            incarnation,
            links,
            founding: None,
            forming: false,
            founders: BTreeMap::new(),
            formed_with: BTreeMap::new(),
            state: None,
            seen: BTreeMap::new(),
            understanding: Understanding::new(id, features),
            boot: 0,
            lives: None,
            leads: false,
            next_id: 1,
            refused: None,
            refused_by: BTreeMap::new(),
            leaving: false,
            clocks: ClockOffsets::default(),
            clocks_asked: BTreeMap::new(),
            refuses_writes: BTreeMap::new(),
            failed: false,
        };
        match beginning {
            Beginning::Founding { founders, cluster, name } => {
                manager.founders = founders.clone();
                manager.founding = Some(Founding::new(id, incarnation, founders, cluster, name)?);
            }
            Beginning::Waiting => {}
            Beginning::Formed { state, formed_with } => {
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
        let (Some(founding), false) = (&self.founding, self.failed) else { return };
        let statement = founding.statement();
        for peer in whom {
            self.next_id += 1;
            self.links.ask.do_send(Ask {
                id: self.next_id,
                group: self.group,
                to: peer,
                request: Request::Formation(statement.clone()),
                timeout: ASK_TIMEOUT,
                reply_to: ctx.address().downgrade().recipient(),
            });
        }
    }

    fn ask_again(&mut self, ctx: &mut Context<Self>) {
        // Everyone, also who agreed when it was asked last: by now it may have formed, and then its word is enough.
        let waits = self.founding.as_ref().filter(|founding| !founding.waiting_for().is_empty());
        let whom = waits.map(Founding::others).unwrap_or_default();
        self.ask_founders(ctx, whom);
    }

    /// What this node says of itself to whoever asks.
    fn statement(&self) -> Statement {
        match &self.founding {
            Some(founding) => founding.statement(),
            None => Statement {
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

    /// The founders of this node's cluster, as far as it knows: of those that it formed with the ones that are members still. A
    /// member's address never changes.
    fn known_founders(&self) -> BTreeMap<NodeId, Address> {
        let Some(state) = self.state.as_ref().filter(|_| self.founders.is_empty()) else {
            return self.founders.clone();
        };
        let members = state.membership.members.iter().filter(|(id, _)| self.formed_with.contains_key(id));
        members.map(|(id, member)| (*id, member.address.clone())).collect()
    }

    fn hear(&mut self, peer: NodeId, statement: Statement, ctx: &mut Context<Self>) {
        let (Some(founding), false) = (&mut self.founding, self.failed) else { return };
        let heard_all = founding.has_heard_all();
        match founding.hear(peer, statement) {
            Ok(verdict) => {
                // Whoever completes the list says so at once: the others wait for it.
                let completes = !heard_all && founding.has_heard_all();
                let others = founding.others();
                self.judge(verdict);
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

    fn judge(&mut self, verdict: Verdict) {
        let (Verdict::Formed(formed_with), Some(founding), false) = (verdict, &self.founding, self.forming) else {
            return;
        };
        self.forming = true;
        let cluster = founding.cluster();
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

    /// "The first entry that a leader commits records every member's incarnation": what is not recorded yet
    /// and known here is proposed. Proposed twice, the first one stands.
    fn record_incarnations(&self) {
        let (true, Some(state)) = (self.leads, &self.state) else { return };
        for (id, member) in &state.membership.members {
            let own = (*id == self.id).then_some(self.incarnation);
            let known = own.or(self.formed_with.get(id).copied()).or(self.seen.get(id).copied());
            let (None, Some(incarnation)) = (member.incarnation, known) else { continue };
            let command = SystemCommand::Incarnation { node: *id, incarnation };
            match Draft::system(&command) {
                Ok(draft) => self.links.submit.do_send(Submit { draft, ticket: None, deadline: Duration::MAX }),
                Err(error) => tracing::error!(%error, "an incarnation cannot be encoded"),
            }
        }
    }

    /// Whether this peer's word, that the cluster knows another directory of this id, is enough to stop.
    ///
    /// It is for a node that belongs to no cluster yet: it may have lost its disk, and must not take part. But a
    /// member knows by its own copy of the membership whether it is the one recorded; there, one peer in error
    /// or in the wrong hands must not put it out of service.
    fn may_stop_us(&self, peer: NodeId) -> bool {
        match &self.state {
            Some(state) => {
                let recorded = state.membership.members.get(&self.id).and_then(|member| member.incarnation);
                recorded.is_some_and(|recorded| recorded != self.incarnation)
            }
            // A founder listens to founders only; who waits does not know yet whom to believe.
            None => self.founders.is_empty() || self.founders.contains_key(&peer),
        }
    }

    /// Whether this refusal proves that this directory is a copy: an older one, put back, or one of two that run.
    ///
    /// A member's word, and looked at again with what this node itself knows. What was said of the process before proves nothing.
    fn is_a_copy(&self, peer: NodeId, reason: &RefusedBecause) -> bool {
        let known = match &self.state {
            Some(state) => state.membership.members.contains_key(&peer),
            None => self.founders.is_empty() || self.founders.contains_key(&peer),
        };
        known
            && match reason {
                RefusedBecause::OlderDirectory { id, recorded } => {
                    let shown = self.lives.as_ref().map(|lives| lives.shown());
                    *id == self.id && shown.is_some_and(|shown| recorded.proves_copy(self.incarnation, &shown))
                }
                // This process runs, so it was not this directory that was opened again since.
                RefusedBecause::Boot { id, known, theirs } => {
                    *id == self.id && *theirs == self.boot && *known > self.boot && self.lives.is_some()
                }
                _ => false,
            }
    }

    /// Asks every peer that can answer, and tells the core what is known.
    fn ask_for_clocks(&mut self, ctx: &mut Context<Self>) {
        let members = self.state.iter().flat_map(|state| state.membership.members.keys());
        let peers: BTreeSet<NodeId> =
            members.chain(self.founders.keys()).copied().filter(|id| *id != self.id).collect();
        self.clocks.keep(|peer| peers.contains(&peer));
        self.refuses_writes.retain(|peer, _| peers.contains(peer));
        peers.into_iter().for_each(|peer| self.ask_for_clock(peer, ctx));
        self.tell_clocks();
    }

    fn ask_for_clock(&mut self, peer: NodeId, ctx: &mut Context<Self>) {
        let asked = self.clocks_asked.values().any(|(asked, _)| *asked == peer);
        if asked || !self.understanding.peer_understands(peer, Feature::ClockExchange) {
            return;
        }
        self.next_id += 1;
        self.clocks_asked.insert(self.next_id, (peer, self.links.clock.now()));
        self.links.ask.do_send(Ask {
            id: self.next_id,
            group: self.group,
            to: peer,
            request: Request::Clock,
            timeout: ASK_TIMEOUT,
            reply_to: ctx.address().downgrade().recipient(),
        });
    }

    fn clock_read(&mut self, peer: NodeId, asked: Duration, reading: ClockReading) {
        let now = self.links.clock.now();
        self.clocks.read(peer, asked, now, reading.calendar_us);
        // What a peer says is bounded before it is kept.
        match reading.refuses_writes.filter(|reason| reason.len() <= MAX_REASON) {
            Some(reason) => drop(self.refuses_writes.insert(peer, (reason, now))),
            None => drop(self.refuses_writes.remove(&peer)),
        }
        self.tell_clocks();
    }

    fn tell_clocks(&mut self) {
        self.links.clocks.do_send(ClocksRead(self.clocks.estimates(self.links.clock.now())));
        self.show();
    }

    /// Once it has applied its own removal a node stops, but not at once: until another member knows of the removal, too, its
    /// vote may be the one that a leader of the old configuration needs (Raft dissertation section 4.2.2). A member that
    /// refuses it as removed knows. Where none can say so the time is bounded; a start brings it anew.
    fn take_leave(&mut self, ctx: &mut Context<Self>) {
        let retired = self.state.as_ref().is_some_and(|state| state.membership.retired.contains(&self.id));
        if retired && !self.leaving {
            self.leaving = true;
            let id = self.id;
            tracing::warn!(
                node = id,
                "node {id} was removed from the cluster: it stops once another member knows, too"
            );
            ctx.run_later(self.links.farewell, |manager, _| manager.leave("as it has applied itself"));
        }
    }

    /// Whether enough of those who refuse this node as removed can be believed.
    ///
    /// One peer in error, or in the wrong hands, must not put a member out of service. So if this node has not applied its removal
    /// (it was away when that was made), a majority of the other voters that it knows have to say so. One that belongs to no
    /// cluster believes whom it would believe in other things.
    fn is_removed_by(&self, peer: NodeId) -> bool {
        let Some(state) = &self.state else { return self.may_stop_us(peer) };
        if self.leaving {
            return state.membership.members.contains_key(&peer);
        }
        let others: Vec<_> = state.membership.voters().into_iter().filter(|id| *id != self.id).collect();
        let says_so = |id: &NodeId| matches!(self.refused_by.get(id), Some(RefusedBecause::Retired { .. }));
        others.iter().filter(|id| says_so(id)).count() > others.len() / 2
    }

    fn leave(&mut self, how: &str) {
        self.fail(Reason::Removed, format!("{} ({how})", removed_message(self.id)));
    }

    fn fail(&mut self, reason: Reason, cause: String) {
        // What it says of itself stays true: another founder must hear it, too, to know what is wrong.
        self.failed = true;
        self.refused = Some((None, cause.clone()));
        if let Some(parent) = self.links.failed.upgrade() {
            parent.do_send(Failed { reason, cause });
        }
    }

    fn show(&self) {
        let formed = match (&self.state, &self.founding) {
            (Some(_), _) => Formed::Yes,
            (None, Some(founding)) => Formed::Forming { waiting_for: founding.waiting_for() },
            (None, None) => Formed::Waiting,
        };
        let features =
            self.state.as_ref().map(|state| self.understanding.everyone(&state.membership)).unwrap_or_default();
        let refused_by = self.refused_by.iter().map(|(peer, why)| (*peer, why.to_string())).collect();
        let refused = self.refused.as_ref().map(|(_, cause)| cause.clone());
        let now = self.links.clock.now();
        let lately = |(_, (_, said)): &(&NodeId, &(String, Duration))| now.saturating_sub(*said) <= WORD_COUNTS;
        let refuses = self.refuses_writes.iter().filter(lately);
        let refuses_writes = refuses.map(|(peer, (reason, _))| (*peer, reason.clone())).collect();
        let clocks = self.clocks.estimates(now);
        let shown = MembershipStatus { formed, refused, features, refused_by, clocks, refuses_writes };
        self.links.status.send_if_modified(|status| {
            let changed = *status != shown;
            *status = shown;
            changed
        });
    }
}

impl<T: Ticket> Actor for MembershipManager<T> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.tell_transport();
        if let Some(founding) = &self.founding {
            let whom = founding.waiting_for();
            self.judge(founding.verdict());
            self.ask_founders(ctx, whom);
            ctx.run_interval(ASK_AGAIN, |manager, ctx| match ctx.connected() {
                true => manager.ask_again(ctx),
                // An interval keeps its actor alive; nobody holds this one any more.
                false => ctx.stop(),
            });
        }
        ctx.run_interval(READ_CLOCKS, |manager, ctx| match ctx.connected() {
            true => manager.ask_for_clocks(ctx),
            false => ctx.stop(),
        });
        self.take_leave(ctx);
        self.show();
    }
}

impl<T: Ticket> Handler<Asked> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, Asked { from, request, responder, .. }: Asked, ctx: &mut Context<Self>) {
        if request == Request::Clock {
            // One reading, for there is nothing to do between hearing the question and answering it.
            let calendar_us = u64::try_from(calendar_us(self.links.clock.wall())).unwrap_or(0);
            let refuses_writes = self.links.core.borrow().refuses_writes.map(|reason| reason.name().to_owned());
            return responder.answer(Response::Clock(ClockReading { calendar_us, refuses_writes }));
        }
        let Request::Formation(theirs) = request else {
            let cause = "only formation is asked here".to_owned();
            return responder.answer(Response::Refused(Refusal::Invalid { cause }));
        };
        // Heard first: the answer then shows it, which is what the other waits for.
        self.hear(from, theirs, ctx);
        responder.answer(Response::Formation(self.statement()));
    }
}

impl<T: Ticket> Handler<Answered> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, Answered { id, from, result }: Answered, ctx: &mut Context<Self>) {
        if let Some((peer, asked)) = self.clocks_asked.remove(&id) {
            if let Ok(Response::Clock(reading)) = result {
                self.clock_read(peer, asked, reading);
            }
            return;
        }
        // Without an answer the founder stays among the missing and is asked again.
        if let Ok(Response::Formation(theirs)) = result {
            self.hear(from, theirs, ctx);
        }
    }
}

impl<T: Ticket> Handler<SystemChanged> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, SystemChanged { state, .. }: SystemChanged, ctx: &mut Context<Self>) {
        // What a node says that is no member any more, or what was said of it, is nothing that is wrong with this one.
        let is_member = |id: &NodeId| state.membership.members.contains_key(id);
        self.refused_by.retain(|peer, _| is_member(peer));
        self.refused.take_if(|(of, _)| of.is_some_and(|of| !is_member(&of)));
        self.state = Some(state);
        self.founding = None;
        self.tell_transport();
        self.take_leave(ctx);
        self.record_incarnations();
        self.show();
    }
}

impl<T: Ticket> Handler<LeaderChanged> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, LeaderChanged { role, .. }: LeaderChanged, _: &mut Context<Self>) {
        let led = std::mem::replace(&mut self.leads, role == Role::Leader);
        if self.leads && !led {
            self.record_incarnations();
        }
    }
}

impl<T: Ticket> Handler<PeerUp> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, PeerUp { identity }: PeerUp, ctx: &mut Context<Self>) {
        let (peer, features) = (identity.id, identity.features);
        self.refused_by.remove(&peer);
        self.refused.take_if(|(of, _)| *of == Some(peer));
        self.seen.insert(peer, identity.incarnation);
        self.understanding.met(peer, features.clone());
        self.links.features.do_send(PeerFeatures { peer, features });
        self.ask_for_clock(peer, ctx);
        self.record_incarnations();
        self.show();
    }
}

impl<T: Ticket> Handler<PeerRefused> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, PeerRefused { peer, by_peer, reason }: PeerRefused, _: &mut Context<Self>) {
        let who = if by_peer { format!("node {peer} refused this node") } else { format!("refused node {peer}") };
        let cause = format!("{who}: {reason}");
        tracing::warn!("{cause}");
        let of_us = matches!(reason, RefusedBecause::Incarnation { id, .. } if by_peer && id == self.id);
        let removes_us = matches!(reason, RefusedBecause::Retired { id } if by_peer && id == self.id);
        let copied = by_peer && self.is_a_copy(peer, &reason);
        if by_peer {
            self.refused_by.insert(peer, reason);
        }
        if removes_us && self.is_removed_by(peer) {
            let by: Vec<_> = self.refused_by.keys().map(NodeId::to_string).collect();
            self.leave(&format!("as nodes {} say", by.join(", ")));
            return self.show();
        }
        // Promise 6: a copy has forgotten what it acknowledged and voted, or somebody else votes in its name.
        if copied || of_us && self.may_stop_us(peer) {
            self.fail(Reason::RefusedByPeers, cause);
        } else {
            self.refused = Some((Some(peer), cause));
        }
        self.show();
    }
}

#[cfg(test)]
mod tests {
    use actorum_transport::{message::Identity, wire::Address};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{clock::SystemClock, entry::ChangeId, members::Change, message::Answer, testkit::founded};

    struct NoTicket;

    impl Ticket for NoTicket {
        fn answer(self, _: Answer) {}

        fn confirmed(self, _: u64) -> Option<Self> {
            None
        }
    }

    /// The transport, the core and the parent at once; tells the test what the parent heard.
    struct Fake(mpsc::UnboundedSender<String>);

    impl Actor for Fake {
        type Context = Context<Self>;
    }

    macro_rules! ignores {
        ($($message:ty)*) => {
            $(impl Handler<$message> for Fake {
                type Result = ();

                fn handle(&mut self, _: $message, _: &mut Context<Self>) {}
            })*
        };
    }

    ignores! { Ask SetPeers SetCluster Form Submit<NoTicket> PeerFeatures ClocksRead }

    impl Handler<Failed> for Fake {
        type Result = ();

        fn handle(&mut self, Failed { cause, .. }: Failed, _: &mut Context<Self>) {
            self.0.send(cause).unwrap();
        }
    }

    /// Asked last, so that everything sent before has arrived.
    #[derive(Message)]
    #[rtype(result = "()")]
    struct Flush;

    impl Handler<Flush> for MembershipManager<NoTicket> {
        type Result = ();

        fn handle(&mut self, Flush: Flush, _: &mut Context<Self>) {}
    }

    impl Handler<Flush> for Fake {
        type Result = ();

        fn handle(&mut self, Flush: Flush, _: &mut Context<Self>) {}
    }

    fn links(fake: &Addr<Fake>, status: &watch::Sender<MembershipStatus>) -> Links<NoTicket> {
        Links {
            ask: fake.clone().recipient(),
            set_peers: fake.clone().recipient(),
            set_cluster: fake.clone().recipient(),
            form: fake.clone().recipient(),
            submit: fake.clone().recipient(),
            features: fake.clone().recipient(),
            failed: fake.downgrade().recipient(),
            status: status.clone(),
            clocks: fake.clone().recipient(),
            core: watch::channel(CoreStatus::default()).1,
            clock: SystemClock::shared(),
            farewell: Duration::from_secs(60),
        }
    }

    /// Node 1 with incarnation 11 hears this refusal: what its parent heard, and what it shows.
    async fn refused(beginning: Beginning, by: NodeId, known: u64) -> (Option<String>, MembershipStatus) {
        let (told, mut heard) = mpsc::unbounded_channel();
        let fake = Fake(told).start();
        let status = watch::Sender::new(MembershipStatus::default());
        let links = links(&fake, &status);
        let manager =
            MembershipManager::<NoTicket>::new(1, GroupId::FIRST, Incarnation(11), Features::all(), beginning, links);
        let manager = manager.unwrap().start();
        let (known, theirs) = (Incarnation(known), Incarnation(11));
        let reason = RefusedBecause::Incarnation { id: 1, known, theirs };
        manager.do_send(PeerRefused { peer: by, by_peer: true, reason });
        manager.send(Flush).await.unwrap();
        fake.send(Flush).await.unwrap();
        (heard.try_recv().ok(), status.borrow().clone())
    }

    fn founding(ids: &[NodeId]) -> Beginning {
        let founders = ids.iter().map(|id| (*id, Address(format!("n{id}")))).collect();
        Beginning::Founding { founders, cluster: ClusterId(7), name: String::new() }
    }

    /// A member, as which its own copy of the membership records this incarnation.
    fn member(recorded: Option<u64>) -> Beginning {
        let mut state = founded();
        if let Some(incarnation) = recorded {
            state.apply(2, &SystemCommand::Incarnation { node: 1, incarnation: Incarnation(incarnation) });
        }
        Beginning::Formed { state: Arc::new(state), formed_with: BTreeMap::new() }
    }

    #[actix::test]
    async fn a_member_goes_on_at_one_peers_word_and_shows_it() {
        for recorded in [None, Some(11)] {
            let (failed, status) = refused(member(recorded), 2, 99).await;
            assert_eq!((failed, status.formed), (None, Formed::Yes));
            let shown = status.refused.unwrap();
            assert!(shown.starts_with("node 2 refused this node: node 1 is known here as incarnation"), "{shown}");
        }
    }

    #[actix::test]
    async fn a_member_that_its_own_cluster_records_otherwise_stops() {
        let (failed, _) = refused(member(Some(99)), 2, 99).await;
        assert!(failed.unwrap().contains("under a new id"));
    }

    /// The members 2 and 3 are met with these, in this order: what the cluster of three understands after each.
    async fn met(hellos: &[(NodeId, Features)]) -> Vec<Features> {
        let (told, _heard) = mpsc::unbounded_channel();
        let fake = Fake(told).start();
        let status = watch::Sender::new(MembershipStatus::default());
        let links = links(&fake, &status);
        let founders = [1, 2, 3].map(|id| (id, Address(format!("n{id}"))));
        let state = Arc::new(SystemState::founded(ClusterId(7), &founders.into()));
        let beginning = Beginning::Formed { state, formed_with: BTreeMap::new() };
        let (incarnation, features) = (Incarnation(11), Features::all());
        let manager = MembershipManager::<NoTicket>::new(1, GroupId::FIRST, incarnation, features, beginning, links);
        let manager = manager.unwrap().start();
        let mut understood = Vec::new();
        for (id, features) in hellos {
            let features = features.clone();
            let identity = Identity {
                id: *id,
                incarnation: Incarnation(*id),
                boot: 1,
                cluster: None,
                features,
                lives: Arc::default(),
            };
            manager.do_send(PeerUp { identity });
            manager.send(Flush).await.unwrap();
            understood.push(status.borrow().features.clone());
        }
        understood
    }

    #[actix::test]
    async fn the_cluster_understands_what_every_member_named() {
        let (new, first) = (Features::all, Features::none);
        let understood = met(&[(2, new()), (3, new()), (3, first()), (3, new())]).await;
        assert_eq!(understood, [first(), new(), first(), new()]);
    }

    /// A voter of 1, 2 and 3, or of as many as are named, that these nodes refuse as removed, in this order.
    async fn removed_by(voters: u64, applied: bool, refusals: &[(NodeId, bool)]) -> (Option<String>, MembershipStatus) {
        let mut state =
            SystemState::founded(ClusterId(7), &(1..=voters).map(|id| (id, Address(format!("n{id}")))).collect());
        if applied {
            state.apply(
                2,
                &SystemCommand::Change {
                    id: ChangeId { node: 2, boot: 1, number: 1 },
                    change: Change::Remove(1),
                    forced: false,
                },
            );
        }
        let (told, mut heard) = mpsc::unbounded_channel();
        let (fake, status) = (Fake(told).start(), watch::Sender::new(MembershipStatus::default()));
        let beginning = Beginning::Formed { state: Arc::new(state), formed_with: BTreeMap::new() };
        let (group, me, links) = (GroupId::FIRST, Incarnation(11), links(&fake, &status));
        let manager =
            MembershipManager::<NoTicket>::new(1, group, me, Features::all(), beginning, links).unwrap().start();
        for (peer, refuses) in refusals.iter().copied() {
            let identity = Identity {
                id: peer,
                incarnation: Incarnation(peer),
                boot: 1,
                cluster: Some(ClusterId(7)),
                features: Features::all(),
                lives: Arc::default(),
            };
            match refuses {
                true => {
                    manager.do_send(PeerRefused { peer, by_peer: true, reason: RefusedBecause::Retired { id: 1 } });
                }
                false => manager.do_send(PeerUp { identity }),
            }
        }
        manager.send(Flush).await.unwrap();
        fake.send(Flush).await.unwrap();
        (heard.try_recv().ok(), status.borrow().clone())
    }

    #[actix::test]
    async fn a_member_that_missed_its_removal_stops_at_the_word_of_a_majority_and_of_nobody_less() {
        for (voters, refusals) in [
            (3, &[(2, true)][..]),
            (3, &[(2, true), (2, true)]),
            (3, &[(2, true), (2, false), (3, true)]),
            (3, &[(2, true), (9, true)]),
            (5, &[(2, true), (3, true)]),
        ] {
            let (failed, status) = removed_by(voters, false, refusals).await;
            assert_eq!(failed, None, "{refusals:?}");
            assert!(!status.refused_by.is_empty());
        }
        for (voters, refusals) in
            [(2, &[(2, true)][..]), (3, &[(2, true), (3, true)]), (5, &[(2, true), (3, true), (5, true)])]
        {
            let (failed, _) = removed_by(voters, false, refusals).await;
            assert!(failed.is_some_and(|cause| cause.contains("was removed from the cluster")), "{refusals:?}");
        }
    }

    #[actix::test]
    async fn a_member_that_has_applied_its_removal_stops_once_another_member_shows_that_it_knows() {
        assert_eq!(removed_by(3, true, &[]).await.0, None, "its vote may still be needed");
        assert_eq!(removed_by(3, true, &[(9, true)]).await.0, None, "that one is no member");
        assert!(removed_by(3, true, &[(2, true)]).await.0.is_some());
    }

    #[actix::test]
    async fn a_wiped_node_under_a_used_id_stops_by_name() {
        let (failed, status) = refused(Beginning::Waiting, 2, 99).await;
        let cause = failed.unwrap();
        assert!(cause.contains("node 1 is known here as incarnation 0000000000000063"), "{cause}");
        assert_eq!(status.refused, Some(cause));
        let (failed, _) = refused(founding(&[1, 2, 3]), 3, 99).await;
        assert!(failed.unwrap().contains("node 3 refused this node"));
    }

    #[actix::test]
    async fn a_forming_founder_goes_on_at_the_word_of_one_that_is_no_founder() {
        let (failed, status) = refused(founding(&[1, 2, 3]), 4, 99).await;
        assert_eq!((failed, status.formed), (None, Formed::Forming { waiting_for: vec![2, 3] }));
        assert!(status.refused.unwrap().starts_with("node 4 refused this node"));
    }
}
