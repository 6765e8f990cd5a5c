//! The actor: whom it asks, what it proposes, and when it stops its node.

use actorum_core::{
    marks::{HashValue, ResponseHash, StateHash},
    system_state::SystemState,
};
use actorum_machine::ids::{Address, ClusterId};
use actorum_transport::message::Responder;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::*;

#[derive(Debug, PartialEq)]
enum Heard {
    Ask(NodeId, Vec<u64>),
    Propose { restart: bool },
    Failed(Reason, String),
}

struct Fake(mpsc::UnboundedSender<Heard>);

impl Actor for Fake {
    type Context = Context<Self>;
}

impl Handler<Ask> for Fake {
    type Result = ();
    fn handle(&mut self, Ask { to, request, .. }: Ask, _: &mut Context<Self>) {
        let Request::Marks { marks } = request else { panic!("another question") };
        let _ = self.0.send(Heard::Ask(to, marks.iter().map(|mark| mark.index).collect()));
    }
}

impl Handler<ProposeMark> for Fake {
    type Result = ();
    fn handle(&mut self, ProposeMark { restart }: ProposeMark, _: &mut Context<Self>) {
        let _ = self.0.send(Heard::Propose { restart });
    }
}

impl Handler<Failed> for Fake {
    type Result = ();
    fn handle(&mut self, Failed { reason, cause }: Failed, _: &mut Context<Self>) {
        let _ = self.0.send(Heard::Failed(reason, cause));
    }
}

struct Fixture {
    checker: Addr<ConsistencyChecker>,
    status: watch::Receiver<ConsistencyStatus>,
    heard: UnboundedReceiver<Heard>,
    _fake: Addr<Fake>,
}

/// Node 1 of the voters 1, 2 and 3.
fn start(check: ResponseCheck, marks: Vec<Mark>) -> Fixture {
    let (checker, status, heard, fake) = unstarted(check, marks);
    Fixture { checker: checker.start(), status, heard, _fake: fake }
}

type Unstarted = (ConsistencyChecker, watch::Receiver<ConsistencyStatus>, UnboundedReceiver<Heard>, Addr<Fake>);

fn unstarted(check: ResponseCheck, marks: Vec<Mark>) -> Unstarted {
    let (sender, heard) = mpsc::unbounded_channel();
    let fake = Fake(sender).start();
    let (shows, status) = watch::channel(ConsistencyStatus::default());
    let founders = (1..=3).map(|id| (id, Address(format!("n{id}:1")))).collect();
    let membership = SystemState::founded(ClusterId(1), &founders).membership;
    let links = Links {
        ask: fake.clone().recipient(),
        propose: fake.clone().recipient(),
        failed: fake.downgrade().recipient(),
        status: shows,
        observer: None,
    };
    let start = Start { id: 1, group: GroupId::FIRST, responses: check, membership, marks };
    (ConsistencyChecker::new(start, links), status, heard, fake)
}

fn mark(index: u64, since: u64, value: u128) -> Mark {
    Mark { index, state: Some(StateHash { since, value: HashValue(value) }), responses: None }
}

fn answered(index: u64, value: u128) -> Mark {
    let responses = Some(ResponseHash { since: 1, version: 0, value: HashValue(value) });
    Mark { responses, ..mark(index, 1, 7) }
}

impl Fixture {
    async fn applied(&self, mark: Mark, restart: bool) {
        self.checker.send(MarkEvent::Applied { mark, restart }).await.unwrap();
    }

    /// A member reports; what it is answered.
    async fn reported(&self, from: NodeId, marks: Vec<Mark>) -> Response {
        let (responder, answer) = Responder::new();
        let request = Request::Marks { marks };
        self.checker.send(Asked { group: GroupId::FIRST, from, request, responder }).await.unwrap();
        answer.await.unwrap()
    }

    async fn leads(&self) {
        self.checker.send(FromCore(LeaderChanged { leader: Some(1), term: 2, role: Role::Leader })).await.unwrap();
    }

    async fn next(&mut self) -> Heard {
        self.heard.recv().await.unwrap()
    }
}

#[actix::test]
async fn every_mark_is_reported_to_all_and_answered_with_ones_own() {
    let mut f = start(ResponseCheck::Report, Vec::new());
    f.applied(mark(10, 1, 7), false).await;
    assert_eq!([f.next().await, f.next().await], [Heard::Ask(2, vec![10]), Heard::Ask(3, vec![10])]);
    let answer = f.reported(2, vec![mark(10, 1, 7)]).await;
    assert_eq!(answer, Response::Marks { marks: vec![mark(10, 1, 7)] });
    let status = f.status.borrow().clone();
    assert_eq!((status.mark, status.state), (Some(mark(10, 1, 7)), None));
    // Who does not answer is asked again, about what there is then.
    for (id, from) in [(2, 2), (3, 3)] {
        let result = Err(actorum_core::wire::AskError::Lost("away".into()));
        f.checker.send(Answered { id, from, result }).await.unwrap();
    }
    f.applied(mark(20, 1, 8), false).await;
    assert!(matches!(f.next().await, Heard::Ask(_, marks) if marks == [10, 20]));
}

#[actix::test]
async fn only_a_leader_proposes_and_not_twice_at_once() {
    let mut f = start(ResponseCheck::Report, Vec::new());
    f.checker.send(MarkEvent::Due).await.unwrap();
    f.leads().await;
    assert_eq!(f.next().await, Heard::Propose { restart: false });
    f.checker.send(MarkEvent::Due).await.unwrap();
    f.applied(mark(10, 1, 7), false).await;
    assert!(matches!(f.next().await, Heard::Ask(2, _)), "not another one meanwhile");
    assert!(matches!(f.next().await, Heard::Ask(3, _)));
    // Node 2 began elsewhere, so all begin anew; once.
    f.reported(2, vec![mark(10, 5, 9)]).await;
    f.checker.send(MarkEvent::Due).await.unwrap();
    assert_eq!(f.next().await, Heard::Propose { restart: true });
    f.applied(mark(20, 1, 8), true).await;
    f.reported(2, vec![mark(20, 5, 10)]).await;
    f.checker.send(MarkEvent::Due).await.unwrap();
    assert_eq!(f.next().await, Heard::Propose { restart: false });
}

#[actix::test]
async fn a_node_that_differs_from_a_majority_stops_with_the_index() {
    let mut f = start(ResponseCheck::Report, vec![mark(10, 1, 6), mark(20, 1, 7)]);
    f.reported(2, vec![mark(10, 1, 6), mark(20, 1, 8)]).await;
    let found = f.status.borrow().state.clone().unwrap();
    assert_eq!((found.side, found.index, found.equal_until), (Side::Undecided, 20, 10), "one against one");
    f.reported(9, vec![mark(20, 1, 8)]).await;
    assert_eq!(f.status.borrow().state.as_ref().unwrap().side, Side::Undecided, "a stranger has no voice");
    f.reported(3, vec![mark(20, 1, 8)]).await;
    let Heard::Failed(reason, cause) = f.next().await else { panic!("it goes on") };
    assert_eq!(reason, Reason::Diverged);
    assert!(cause.contains("between the indexes 10 and 20") && cause.contains("(node 2, 3)"), "{cause}");
    f.reported(3, vec![mark(20, 1, 8)]).await;
    assert!(f.heard.try_recv().is_err(), "it stops once");
}

#[actix::test]
async fn without_a_majority_nobody_stops_and_everybody_says_so() {
    let mut f = start(ResponseCheck::Stop, vec![mark(20, 1, 7)]);
    f.reported(2, vec![mark(20, 1, 8)]).await;
    f.reported(3, vec![mark(20, 1, 9)]).await;
    assert_eq!(f.status.borrow().state.as_ref().unwrap().side, Side::Undecided);
    assert!(f.heard.try_recv().is_err());
    // Node 3 is replaced, and agrees.
    f.reported(3, vec![mark(20, 1, 7)]).await;
    assert_eq!(f.status.borrow().state.as_ref().unwrap().side, Side::Majority);
    f.reported(2, vec![mark(20, 1, 7)]).await;
    assert_eq!(f.status.borrow().state, None);
}

#[actix::test]
async fn answers_that_differ_are_reported_or_stop_the_node() {
    for (check, stops) in [(ResponseCheck::Report, false), (ResponseCheck::Stop, true)] {
        let mut f = start(check, vec![answered(20, 1)]);
        f.reported(2, vec![answered(20, 2)]).await;
        f.reported(3, vec![answered(20, 2)]).await;
        assert_eq!(f.status.borrow().state, None, "they have applied the same");
        assert_eq!(f.status.borrow().responses.as_ref().unwrap().side, Side::Minority);
        match f.heard.try_recv() {
            Ok(Heard::Failed(Reason::ResponsesDiverged, cause)) if stops => {
                assert!(cause.contains("not deterministic"))
            }
            heard => assert!(!stops && heard.is_err(), "{heard:?}"),
        }
        f.applied(answered(30, 5), false).await;
        assert!(f.status.borrow().responses.is_some(), "what was found stays said");
    }
}

/// Counts lines of a log.
#[derive(Clone, Default)]
struct Lines(Arc<std::sync::atomic::AtomicUsize>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Marks and reports go on as before, in whatever order; what they show is one line.
#[actix::test]
async fn what_is_found_is_said_when_it_begins_and_not_with_every_mark() {
    let (mut checker, status, _heard, _fake) = unstarted(ResponseCheck::Report, vec![answered(20, 1)]);
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        for index in (20..400).step_by(10) {
            checker.comparison.applied(answered(index, 1));
            checker.compare();
            checker.heard(2, &[answered(index, 2)]);
            checker.heard(3, &[answered(index, if index % 20 == 0 { 2 } else { 3 })]);
        }
    });
    assert!(status.borrow().responses.is_some(), "the responses differ");
    assert_eq!(lines.0.load(std::sync::atomic::Ordering::Relaxed), 1);
}
