//! The consistency checker: compares hashes of what the nodes applied, and reports nodes that differ, or stops this
//! one.
//!
//! ```text
//!  MarkEvent (applier) ──────┐                        ┌─▶ Ask: marks ─────▶ transport ══▶ every other member
//!  Asked, Answered: marks ───┼─▶ ConsistencyChecker ──┼─▶ ProposeMark ────▶ core, if this node leads
//!  LeaderChanged (core) ─────┤                        ├─▶ Failed ─────────▶ RaftSystem
//!  SystemChanged (applier) ──┘                        └─▶ status: hash, divergence
//! ```
//!
//! Every node keeps a running hash over what it applies. The leader proposes a *mark* every so many entries, once every
//! member understands marks. A node that applies a mark reports its hash there to every other member, and each
//! compares. A node that differs from a majority of the voters stops and names the index (promise 7). Without a
//! majority it is not known which nodes are right: then no node stops, and every node that sees the difference is not
//! ready and says so.
//!
//! Queue: the mailbox; one event per mark, and one question at a time from and to each member, which the transport
//! bounds.
//!
//! Deliberately absent: repairing. An operator replaces a node that differs; the condition says how.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{WeakRecipient, prelude::*};
use actorum_core::{
    consistency::compare::{Comparison, Divergence, Side},
    debug_fields,
    marks::{MAX_MARKS, Mark},
    message::LeaderChanged,
    observer::MaybeObserver,
    wire::{Refusal, Request, Response},
};
use actorum_machine::{
    condition::Reason,
    ids::{GroupId, NodeId},
    members::Membership,
    response_check::ResponseCheck,
    status::Role,
};
use actorum_transport::message::{Answered, Ask, Asked};
use tokio::sync::watch;

use crate::message::{Failed, FromCore, MarkEvent, ProposeMark, SystemChanged};

#[cfg(test)]
mod tests;

/// How often a member that has not reported the newest mark is asked again, and a mark that was not taken is proposed
/// again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long such a question is waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The actors that the checker talks to.
pub struct Links {
    /// The transport.
    pub ask: Recipient<Ask>,
    /// The core.
    pub propose: Recipient<ProposeMark>,
    /// The parent.
    pub failed: WeakRecipient<Failed>,
    /// Where the latest is shown.
    pub status: watch::Sender<ConsistencyStatus>,
    /// Watches marks; only in simulations.
    pub observer: MaybeObserver,
}

debug_fields!(Links {});

/// What a checker starts with.
#[derive(Debug)]
pub struct Start {
    /// This node.
    pub id: NodeId,
    /// Its group.
    pub group: GroupId,
    /// What to do about responses that differ.
    pub responses: ResponseCheck,
    /// The membership, if there is one.
    pub membership: Arc<Membership>,
    /// The marks that were applied again while this node started.
    pub marks: Vec<Mark>,
}

/// What it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsistencyStatus {
    /// The newest mark.
    pub mark: Option<Mark>,
    /// The nodes that differ in what they applied.
    pub state: Option<Divergence>,
    /// The nodes that differ in what their state machines answered; it stays once it was found.
    pub responses: Option<Divergence>,
}

/// The actor; see the module.
pub struct ConsistencyChecker {
    id: NodeId,
    group: GroupId,
    check: ResponseCheck,
    links: Links,
    comparison: Comparison,
    membership: Arc<Membership>,
    leads: bool,
    /// Whether enough was applied since the last mark.
    due: bool,
    /// Whether one was proposed since then, and it is too early to do it again.
    proposed: bool,
    /// Whether the hashes began anew after the last mark: the hashes at that mark say nothing about the next one.
    restarted: bool,
    /// Questions under way, by the member that was asked.
    asking: BTreeMap<NodeId, u64>,
    next_id: u64,
    shown: ConsistencyStatus,
    stopped: bool,
}

debug_fields!(ConsistencyChecker { id, group, leads, due, proposed, restarted, asking, stopped });

impl ConsistencyChecker {
    /// A checker that begins when it is started.
    pub fn new(start: Start, links: Links) -> ConsistencyChecker {
        let Start { id, group, responses, membership, marks } = start;
        if let Some(observer) = &links.observer {
            marks.iter().for_each(|mark| observer.marked(mark));
        }
        ConsistencyChecker {
            id,
            group,
            check: responses,
            links,
            comparison: Comparison::new(id, marks),
            membership,
            leads: false,
            due: false,
            proposed: false,
            restarted: false,
            asking: BTreeMap::new(),
            next_id: 1,
            shown: ConsistencyStatus::default(),
            stopped: false,
        }
    }

    fn others(&self) -> Vec<NodeId> {
        self.membership.members.keys().copied().filter(|id| *id != self.id).collect()
    }

    /// Reports this node's marks to a member, and asks for that member's. One question at a time.
    fn ask(&mut self, peer: NodeId, ctx: &mut Context<Self>) {
        if self.asking.contains_key(&peer) || self.comparison.newest().is_none() {
            return;
        }
        self.next_id += 1;
        self.asking.insert(peer, self.next_id);
        self.links.ask.do_send(Ask {
            id: self.next_id,
            group: self.group,
            to: peer,
            request: Request::Marks { marks: self.comparison.own().copied().collect() },
            timeout: ASK_TIMEOUT,
            reply_to: ctx.address().downgrade().recipient(),
        });
    }

    fn propose_if_due(&mut self) {
        if self.leads && self.due && !self.proposed {
            self.proposed = true;
            let differ = self.shown.state.is_some();
            let restart = !self.restarted && !differ && self.comparison.must_restart(&self.membership.configuration());
            self.links.propose.do_send(ProposeMark { restart });
        }
    }

    fn heard(&mut self, peer: NodeId, marks: &[Mark]) {
        if self.membership.members.contains_key(&peer) {
            self.comparison.reported(peer, marks);
            self.compare();
        }
    }

    /// Compares, shows what was found, and stops this node if it is the one that differs.
    fn compare(&mut self) {
        let configuration = self.membership.configuration();
        let is_member = |id| self.membership.members.contains_key(&id);
        let before = self.shown.state.clone().filter(|found| self.comparison.stands(found, is_member));
        let state = self.comparison.state(&configuration).or(before);
        // Equal responses in a later interval prove nothing about an earlier one, so what was found once stays shown.
        let responses = self.comparison.responses(&configuration).or_else(|| self.shown.responses.clone());
        let found = ConsistencyStatus { mark: self.comparison.newest().copied(), state, responses };
        self.say(&found);
        let wrong = |found: &Option<Divergence>| found.as_ref().filter(|found| found.side == Side::Minority).cloned();
        let cause = match (wrong(&found.state), wrong(&found.responses).filter(|_| self.check == ResponseCheck::Stop)) {
            (Some(found), _) => Some((Reason::Diverged, state_cause(self.id, &found))),
            (None, Some(found)) => Some((Reason::ResponsesDiverged, response_cause(self.id, &found))),
            (None, None) => None,
        };
        self.shown = found;
        self.links.status.send_if_modified(|status| {
            let changed = *status != self.shown;
            *status = self.shown.clone();
            changed
        });
        if let Some((reason, cause)) = cause
            && !self.stopped
            && let Some(parent) = self.links.failed.upgrade()
        {
            // Promise 7: a node never goes on with a state that it cannot trust.
            self.stopped = true;
            parent.do_send(Failed { reason, cause });
        }
    }

    /// One line when it begins, not one for each mark or report. The line has only the figures, since the difference
    /// itself is a condition, which `RaftSystem` logs.
    fn say(&self, found: &ConsistencyStatus) {
        match (&self.shown.state, &found.state) {
            (None, Some(state)) => {
                let Divergence { index, equal_until, side, values } = state;
                tracing::debug!(
                    index,
                    equal_until,
                    ?side,
                    nodes = ?values.keys(),
                    "nodes of this cluster have applied different entries"
                );
            }
            (Some(_), None) => tracing::debug!("the nodes of this cluster have applied the same entries again"),
            _ => {}
        }
        if let (None, Some(responses)) = (&self.shown.responses, &found.responses) {
            let Divergence { index, equal_until, side, values } = responses;
            tracing::debug!(
                index,
                since = equal_until,
                ?side,
                nodes = ?values.keys(),
                "state machines of one VERSION responded differently to the same commands: the machine is not \
                 deterministic, or its code changed without a new VERSION"
            );
        }
    }
}

fn others(me: NodeId, found: &Divergence) -> String {
    let mine = found.values.get(&me);
    let others = found.values.iter().filter(|(_, value)| Some(*value) != mine).map(|(id, _)| id.to_string());
    others.collect::<Vec<_>>().join(", ")
}

fn state_cause(me: NodeId, found: &Divergence) -> String {
    let (index, until, others) = (found.index, found.equal_until, others(me, found));
    let since =
        if until > 0 { format!("between the indexes {until} and {index}") } else { format!("up to index {index}") };
    format!(
        "this node has applied other entries {since} than a majority of the voters: its hash at index {index} differs \
         from theirs (node {others}). Its directory was put back from an older copy, swapped or damaged: remove this \
         node, and add it again under a new id with an empty directory"
    )
}

fn response_cause(me: NodeId, found: &Divergence) -> String {
    let (index, others) = (found.index, others(me, found));
    format!(
        "the state machine of this node responded to the commands up to index {index} differently from those of a \
         majority of the voters (node {others}): it is not deterministic, or its code changed without a new VERSION. \
         Look for clocks, random numbers and iteration over hash maps in `apply`, and restart this node to rebuild its \
         state"
    )
}

impl Actor for ConsistencyChecker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.compare();
        ctx.run_interval(AGAIN, |checker, ctx| {
            // An interval keeps its actor alive; here no other address of this actor is left.
            if !ctx.connected() {
                return ctx.stop();
            }
            checker.proposed = false;
            checker.propose_if_due();
            let silent = checker.others().into_iter().filter(|id| !checker.comparison.has_heard_from(*id));
            silent.collect::<Vec<_>>().into_iter().for_each(|peer| checker.ask(peer, ctx));
        });
    }
}

impl Handler<MarkEvent> for ConsistencyChecker {
    type Result = ();

    fn handle(&mut self, event: MarkEvent, ctx: &mut Context<Self>) {
        match event {
            MarkEvent::Due => {
                self.due = true;
                self.propose_if_due();
            }
            MarkEvent::Applied { mark, restart } => {
                if let Some(observer) = &self.links.observer {
                    observer.marked(&mark);
                }
                (self.due, self.proposed) = (false, false);
                self.restarted = restart;
                self.comparison.applied(mark);
                self.others().into_iter().for_each(|peer| self.ask(peer, ctx));
                self.compare();
            }
            MarkEvent::Replaced => {
                self.comparison.replaced();
                self.shown.state = None;
                self.compare();
            }
        }
    }
}

impl Handler<Asked> for ConsistencyChecker {
    type Result = ();

    fn handle(&mut self, Asked { from, request, responder, .. }: Asked, _: &mut Context<Self>) {
        let Request::Marks { marks } = request else {
            let cause = "only marks are asked here".to_owned();
            return responder.answer(Response::Refused(Refusal::Invalid { cause }));
        };
        responder.answer(Response::Marks { marks: self.comparison.own().copied().collect() });
        self.heard(from, &marks);
    }
}

impl Handler<Answered> for ConsistencyChecker {
    type Result = ();

    fn handle(&mut self, Answered { id, from, result }: Answered, _: &mut Context<Self>) {
        if self.asking.get(&from) == Some(&id) {
            self.asking.remove(&from);
        }
        // Without an answer it stays among those that have not reported, and is asked again.
        if let Ok(Response::Marks { marks }) = result {
            self.heard(from, &marks[..marks.len().min(MAX_MARKS)]);
        }
    }
}

impl Handler<SystemChanged> for ConsistencyChecker {
    type Result = ();

    fn handle(&mut self, SystemChanged { state, .. }: SystemChanged, _: &mut Context<Self>) {
        self.membership = state.membership.clone();
        let members = &self.membership.members;
        self.comparison.members(|id| members.contains_key(&id));
        self.compare();
    }
}

impl Handler<FromCore<LeaderChanged>> for ConsistencyChecker {
    type Result = ();

    fn handle(&mut self, FromCore(LeaderChanged { role, .. }): FromCore<LeaderChanged>, _: &mut Context<Self>) {
        self.leads = role == Role::Leader;
        self.proposed = false;
        self.propose_if_due();
    }
}
