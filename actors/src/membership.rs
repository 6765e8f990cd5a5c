//! Who the peers are, and how a cluster begins: the membership manager.
//!
//! ```text
//!  SystemChanged (applier) ─┐                         ┌─▶ SetPeers, SetCluster ─▶ transport
//!  LeaderChanged (core) ────┤                         │
//!  Asked: formation ────────┼─▶ MembershipManager ────┼─▶ Form ─────▶ core
//!  PeerUp, PeerRefused ─────┘                         └─▶ Submit: incarnations of members ─▶ core
//! ```
//!
//! It changes nothing in Raft by itself: it proposes. Membership changes of clients go straight to the core,
//! which checks and orders them; this actor makes their consequences known to the transport.
//!
//! Queue: the mailbox; every message in it is a report at a pace set elsewhere (one per applied change, per
//! election, per connection), and a peer's questions are bounded by the transport.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{WeakRecipient, prelude::*};
use actorum_transport::{
    message::{Answered, Ask, Asked, Peer, PeerRefused, PeerUp, RefusedBecause, SetCluster, SetPeers},
    wire::{Address, ClusterId, Formation as Statement, GroupId, Incarnation, NodeId, Request, Response},
};
use tokio::sync::watch;

use crate::{
    core::Form,
    entry::{Draft, SystemCommand},
    formation::{FormationError, Founding, Verdict},
    message::{Failed, LeaderChanged, Refusal, Submit, SystemChanged, Ticket},
    status::{Formed, Role},
    system_state::SystemState,
};

/// How often founders that have not answered are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
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
    /// The parent.
    pub failed: WeakRecipient<Failed>,
    /// Where the latest is shown.
    pub status: watch::Sender<MembershipStatus>,
}

/// What this actor has to say of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipStatus {
    /// How far the forming is.
    pub formed: Formed,
    /// The last refusal of an identity, by us or of ours.
    pub refused: Option<String>,
}

/// Knows the members, makes clusters, and tells the transport.
pub struct MembershipManager<T: Ticket> {
    id: NodeId,
    group: GroupId,
    incarnation: Incarnation,
    links: Links<T>,
    founding: Option<(Founding, ClusterId)>,
    /// Ours, or empty for a node that waited.
    founders: BTreeMap<NodeId, Address>,
    formed_with: BTreeMap<NodeId, Incarnation>,
    state: Option<Arc<SystemState>>,
    seen: BTreeMap<NodeId, Incarnation>,
    leads: bool,
    next_id: u64,
    refused: Option<String>,
}

impl<T: Ticket> MembershipManager<T> {
    /// A manager that acts when it is started.
    pub fn new(
        id: NodeId,
        group: GroupId,
        incarnation: Incarnation,
        beginning: Beginning,
        links: Links<T>,
    ) -> Result<Self, FormationError> {
        let mut manager = MembershipManager {
            id,
            group,
            incarnation,
            links,
            founding: None,
            founders: BTreeMap::new(),
            formed_with: BTreeMap::new(),
            state: None,
            seen: BTreeMap::new(),
            leads: false,
            next_id: 1,
            refused: None,
        };
        match beginning {
            Beginning::Founding { founders, cluster } => {
                manager.founders = founders.clone();
                manager.founding = Some((Founding::new(id, incarnation, founders)?, cluster));
            }
            Beginning::Waiting => {}
            Beginning::Formed { state, formed_with } => {
                manager.state = Some(state);
                manager.formed_with = formed_with;
            }
        }
        Ok(manager)
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

    fn ask_founders(&mut self, ctx: &mut Context<Self>) {
        let Some((founding, _)) = &self.founding else { return };
        let statement = founding.statement();
        for peer in founding.missing() {
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

    /// What this node says of itself to whoever asks.
    fn statement(&self) -> Statement {
        match &self.founding {
            Some((founding, _)) => founding.statement(),
            None => Statement {
                incarnation: self.incarnation,
                founders: self.founders.clone(),
                formed_with: self.state.as_ref().map(|_| self.known_incarnations()),
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

    fn hear(&mut self, peer: NodeId, statement: Statement) {
        let Some((founding, _)) = &mut self.founding else { return };
        match founding.hear(peer, statement) {
            Ok(verdict) => self.judge(verdict),
            Err(error) => self.fail(error.to_string()),
        }
        self.show();
    }

    fn judge(&mut self, verdict: Verdict) {
        let Verdict::Formed(formed_with) = verdict else { return };
        let Some((_, cluster)) = self.founding.take() else { return };
        let state = SystemState::founded(cluster, &self.founders);
        tracing::info!(%cluster, founders = self.founders.len(), "all founders are as new as this node: the cluster is formed");
        match state.genesis(formed_with.clone()) {
            Ok(genesis) => {
                self.formed_with = formed_with;
                self.links.form.do_send(Form(genesis));
            }
            Err(error) => self.fail(format!("the genesis snapshot cannot be encoded: {error}")),
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

    fn fail(&mut self, cause: String) {
        self.founding = None;
        self.refused = Some(cause.clone());
        if let Some(parent) = self.links.failed.upgrade() {
            parent.do_send(Failed { cause });
        }
    }

    fn show(&self) {
        let formed = match (&self.state, &self.founding) {
            (Some(_), _) => Formed::Yes,
            (None, Some((founding, _))) => Formed::Forming { waiting_for: founding.missing() },
            // Heard all, and the genesis is on its way to the disk.
            (None, None) if !self.founders.is_empty() => Formed::Forming { waiting_for: Vec::new() },
            (None, None) => Formed::Waiting,
        };
        self.links.status.send_replace(MembershipStatus { formed, refused: self.refused.clone() });
    }
}

impl<T: Ticket> Actor for MembershipManager<T> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.tell_transport();
        if let Some((founding, _)) = &self.founding {
            self.judge(founding.verdict());
            self.ask_founders(ctx);
            ctx.run_interval(ASK_AGAIN, |manager, ctx| match ctx.connected() {
                true => manager.ask_founders(ctx),
                // An interval keeps its actor alive; nobody holds this one any more.
                false => ctx.stop(),
            });
        }
        self.show();
    }
}

impl<T: Ticket> Handler<Asked> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, Asked { from, request, responder, .. }: Asked, _: &mut Context<Self>) {
        let Request::Formation(theirs) = request else {
            let cause = "only formation is asked here".to_owned();
            return responder.answer(Response::Refused(Refusal::Invalid { cause }));
        };
        responder.answer(Response::Formation(self.statement()));
        self.hear(from, theirs);
    }
}

impl<T: Ticket> Handler<Answered> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, Answered { from, result, .. }: Answered, _: &mut Context<Self>) {
        // Without an answer the founder stays among the missing and is asked again.
        if let Ok(Response::Formation(theirs)) = result {
            self.hear(from, theirs);
        }
    }
}

impl<T: Ticket> Handler<SystemChanged> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, SystemChanged { state, .. }: SystemChanged, _: &mut Context<Self>) {
        self.state = Some(state);
        self.founding = None;
        self.tell_transport();
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

    fn handle(&mut self, PeerUp { identity }: PeerUp, _: &mut Context<Self>) {
        self.seen.insert(identity.id, identity.incarnation);
        self.record_incarnations();
    }
}

impl<T: Ticket> Handler<PeerRefused> for MembershipManager<T> {
    type Result = ();

    fn handle(&mut self, PeerRefused { peer, by_peer, reason }: PeerRefused, _: &mut Context<Self>) {
        let who = if by_peer { format!("node {peer} refused this node") } else { format!("refused node {peer}") };
        self.refused = Some(format!("{who}: {reason}"));
        match reason {
            // The cluster knows another directory of this id: it must not take part with this one.
            RefusedBecause::Incarnation { id, .. } if by_peer && id == self.id => self.fail(format!("{who}: {reason}")),
            _ => self.show(),
        }
    }
}
