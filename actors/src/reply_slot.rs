//! Reply slots: the place for the answer to one request, carried through the core to the applier.
//!
//! ```text
//!  Raft::propose ── ReplySlot ──▶ core ──┬─ answer(Refused | Unknown | Applied by the leader)
//!                                   └─▶ applier ─ applied(response) │ changed(membership) │ serve(&state)
//!  dropped anywhere: the client hears that the outcome is unknown, and why the system stopped
//! ```
//!
//! A slot is answered exactly once, at the latest by its drop, and then releases its admission permit. The answer
//! follows the fourth promise: `Ok` only for what was applied, a rejection only for what is surely not in the log, and
//! `Unknown` for everything else.

use std::{fmt, sync::Arc};

use actorum_core::{
    message::{ReplyHandle, RequestOutcome},
    wire::{ChangeRefusal, Refusal, Response},
};
use actorum_machine::{
    ids::NodeId,
    machine::{self, StateMachine},
    members::Membership,
    outcome::{Applied, BusyBound, ChangeError, ProposeError, ReadError},
    readings::ChangeReading,
};
use actorum_transport::message::Responder;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{admission::Permit, subscribers::View};

/// How a client waits for a proposal.
pub type ProposeReply<S> = oneshot::Sender<Result<Applied<<S as StateMachine>::Response>, ProposeError>>;

/// How a client waits for a membership change.
pub type ChangeReply = oneshot::Sender<Result<Arc<Membership>, ChangeError>>;

/// A read: called once, with the state as of the index applied, or with the reason why there is none.
pub type Look<S> = Box<dyn FnOnce(Result<View<'_, S>, ReadError>) + Send>;

/// The place for one answer.
pub struct ReplySlot<S: StateMachine>(Option<Client<S>>);

/// What it is for.
impl<S: StateMachine> fmt::Debug for ReplySlot<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Some(Client::Propose(..)) => "ReplySlot(propose)",
            Some(Client::Read(..)) => "ReplySlot(read)",
            Some(Client::Change(..)) => "ReplySlot(change)",
            Some(Client::Remote(..)) => "ReplySlot(remote)",
            None => "ReplySlot(answered)",
        })
    }
}

enum Client<S: StateMachine> {
    Propose(ProposeReply<S>, Permit),
    Read(Look<S>, Permit),
    Change(ChangeReply, Permit),
    /// A peer that forwarded a request of one of its own clients, or asks for an index to read at.
    Remote(Responder, Permit),
}

impl<S: StateMachine> ReplySlot<S> {
    /// For a proposal of this node's client.
    pub fn propose(reply: ProposeReply<S>, permit: Permit) -> Self {
        ReplySlot(Some(Client::Propose(reply, permit)))
    }

    /// For a read of this node's client.
    pub fn read(look: Look<S>, permit: Permit) -> Self {
        ReplySlot(Some(Client::Read(look, permit)))
    }

    /// For a membership change asked for on this node.
    pub fn change(reply: ChangeReply, permit: Permit) -> Self {
        ReplySlot(Some(Client::Change(reply, permit)))
    }

    /// For a peer's request, whatever it is about.
    pub fn remote(responder: Responder, permit: Permit) -> Self {
        ReplySlot(Some(Client::Remote(responder, permit)))
    }

    /// The proposal was applied here.
    pub fn applied(mut self, index: u64, term: u64, response: S::Response) {
        match self.take() {
            Client::Propose(reply, permit) => {
                finish_proposal(reply, permit, Ok(Applied { index, term, response }));
            }
            Client::Remote(responder, _permit) => responder.answer(match machine::encode(&response) {
                Ok(response) => Response::Applied { index, term, response: response.into() },
                Err(error) => {
                    Response::Unknown { cause: format!("applied at {index}, but its response cannot be sent: {error}") }
                }
            }),
            other => other.answer(mismatched("a command")),
        }
    }

    /// The membership change was applied here, with this result.
    pub fn changed(mut self, membership: &Arc<Membership>) {
        match self.take() {
            Client::Change(reply, permit) => finish(reply, permit, Ok(membership.clone())),
            Client::Remote(responder, _permit) => responder.answer(match machine::encode(membership.as_ref()) {
                Ok(membership) => Response::Changed { membership: membership.into() },
                Err(error) => {
                    Response::Unknown { cause: format!("changed, but the membership cannot be sent: {error}") }
                }
            }),
            other => other.answer(mismatched("a membership change")),
        }
    }

    /// Serves the read by the state as it is.
    pub fn serve(mut self, view: View<'_, S>) {
        match self.take() {
            Client::Read(look, permit) => {
                drop(permit);
                look(Ok(view));
            }
            other => other.answer(mismatched("a read")),
        }
    }

    fn take(&mut self) -> Client<S> {
        self.0.take().expect("a slot is taken once: by the method that consumes it")
    }
}

impl<S: StateMachine> ReplyHandle for ReplySlot<S> {
    fn answer(mut self, answer: RequestOutcome) {
        self.take().answer(answer);
    }

    fn confirmed(mut self, index: u64) -> Option<Self> {
        match self.take() {
            Client::Remote(responder, _permit) => {
                responder.answer(Response::ReadAt { index });
                None
            }
            local => Some(ReplySlot(Some(local))),
        }
    }
}

/// No request is lost without an answer: a slot that is dropped unanswered tells its client so.
impl<S: StateMachine> Drop for ReplySlot<S> {
    fn drop(&mut self) {
        let Some(client) = self.0.take() else { return };
        let stopped = client.permit().admission().closed();
        let cause = stopped.unwrap_or_else(|| "the node stopped before the outcome was known".to_owned());
        client.answer(RequestOutcome::Unknown { cause });
    }
}

impl<S: StateMachine> Client<S> {
    fn permit(&self) -> &Permit {
        match self {
            Client::Propose(_, permit)
            | Client::Read(_, permit)
            | Client::Change(_, permit)
            | Client::Remote(_, permit) => permit,
        }
    }

    fn answer(self, answer: RequestOutcome) {
        match self {
            Client::Propose(reply, permit) => {
                let result = proposal_result::<S>(answer, &permit);
                finish_proposal(reply, permit, result);
            }
            Client::Read(look, permit) => {
                let error = read_error(answer, &permit);
                drop(permit);
                look(Err(error));
            }
            Client::Change(reply, permit) => {
                let result = change_result(answer);
                finish(reply, permit, result);
            }
            Client::Remote(responder, _permit) => responder.answer(match answer {
                RequestOutcome::Applied { index, term, response } => Response::Applied { index, term, response },
                RequestOutcome::Changed { membership } => Response::Changed { membership },
                RequestOutcome::Refused(refusal) => Response::Refused(refusal),
                RequestOutcome::Late { .. } => Response::Refused(Refusal::Late),
                RequestOutcome::Busy(_) => Response::Refused(Refusal::Busy),
                RequestOutcome::Unknown { cause } => Response::Unknown { cause },
            }),
        }
    }
}

fn finish_proposal<R>(
    reply: oneshot::Sender<Result<Applied<R>, ProposeError>>,
    permit: Permit,
    result: Result<Applied<R>, ProposeError>,
) {
    permit.admission().count_proposal(result.is_ok());
    finish(reply, permit, result);
}

/// The permit is released first: a client that proposes again after the answer must find the place free.
fn finish<T>(reply: oneshot::Sender<T>, permit: Permit, result: T) {
    drop(permit);
    // A client that no longer waits gets no answer.
    let _ = reply.send(result);
}

/// The error for a client when a peer's answer does not fit the request. It is never a success.
fn mismatched(what: &str) -> RequestOutcome {
    RequestOutcome::Unknown { cause: format!("the answer was about {what}, which was not the request") }
}

/// The meaning of a refusal for every kind of request, before each operation turns it into its own error.
enum Refused {
    NoLeader(Option<NodeId>),
    Late(String),
    Busy(BusyBound),
    LowSpace { free: u64, needed: u64 },
    TooLarge(usize),
    Stopped(String),
    InProgress,
    Reading(ChangeReading),
    Invalid(String),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotLeader { leader } => Refused::NoLeader(leader),
            // For the next two refusals the core asks again until the deadline, so the answer is that the deadline has
            // passed.
            Refusal::Dropped { cause } => {
                Refused::Late(format!("the leader did not take it up within the deadline: {cause}"))
            }
            Refusal::Change(ChangeRefusal::NotReady) => Refused::Late(
                "the leader was not ready for a change within the deadline: it was elected lately, and has to apply \
                 what it found in its log and to hear from the voters first"
                    .to_owned(),
            ),
            Refusal::Late => Refused::Late("the deadline passed before the leader took it up".to_owned()),
            Refusal::Busy => Refused::Busy(BusyBound::OfLeader),
            Refusal::LowSpace { free, needed } => Refused::LowSpace { free, needed },
            Refusal::TooLarge { limit } => Refused::TooLarge(usize::try_from(limit).unwrap_or(usize::MAX)),
            Refusal::Stopped { cause } => Refused::Stopped(cause),
            Refusal::Change(ChangeRefusal::InProgress) => Refused::InProgress,
            Refusal::Change(ChangeRefusal::Invalid { reading: Some(reading), .. }) => Refused::Reading(*reading),
            Refusal::Change(ChangeRefusal::Invalid { cause, reading: None }) | Refusal::Invalid { cause } => {
                Refused::Invalid(cause)
            }
        }
    }
}

fn proposal_result<S: StateMachine>(
    answer: RequestOutcome,
    permit: &Permit,
) -> Result<Applied<S::Response>, ProposeError> {
    let refused = match answer {
        RequestOutcome::Applied { index, term, response } => return decoded(index, term, &response),
        RequestOutcome::Unknown { cause } => return Err(ProposeError::Unknown { cause }),
        RequestOutcome::Changed { .. } => {
            return Err(ProposeError::Unknown { cause: "the leader answered with a membership".into() });
        }
        RequestOutcome::Refused(refusal) => Refused::from(refusal),
        RequestOutcome::Late { cause } => Refused::Late(cause),
        RequestOutcome::Busy(bound) => Refused::Busy(bound),
    };
    Err(match refused {
        Refused::NoLeader(leader) => ProposeError::NotLeader { leader },
        Refused::Late(cause) => ProposeError::DeadlineExceeded { cause },
        Refused::Busy(bound) => ProposeError::Busy { bound },
        Refused::LowSpace { free, needed } => ProposeError::LowSpace { free, needed },
        Refused::TooLarge(limit) => ProposeError::TooLarge { size: permit.bytes(), limit },
        Refused::Stopped(cause) => ProposeError::Stopped { cause },
        Refused::Invalid(cause) => ProposeError::Invalid { cause },
        Refused::InProgress | Refused::Reading(_) => {
            ProposeError::Unknown { cause: "the leader spoke of a membership change".into() }
        }
    })
}

fn decoded<R: serde::de::DeserializeOwned>(
    index: u64,
    term: u64,
    response: &Bytes,
) -> Result<Applied<R>, ProposeError> {
    match machine::decode(response) {
        Ok(response) => Ok(Applied { index, term, response }),
        Err(error) => Err(ProposeError::Unknown {
            cause: format!("applied at {index}@{term}, but the leader's response cannot be decoded: {error}"),
        }),
    }
}

/// A read changes nothing, so an unknown outcome is only a missing one.
fn read_error(answer: RequestOutcome, permit: &Permit) -> ReadError {
    let refused = match answer {
        RequestOutcome::Refused(refusal) => Refused::from(refusal),
        RequestOutcome::Late { cause } => Refused::Late(cause),
        RequestOutcome::Busy(bound) => Refused::Busy(bound),
        RequestOutcome::Unknown { cause } if permit.admission().closed().is_some() => Refused::Stopped(cause),
        RequestOutcome::Unknown { .. } | RequestOutcome::Applied { .. } | RequestOutcome::Changed { .. } => {
            Refused::NoLeader(None)
        }
    };
    match refused {
        Refused::NoLeader(leader) => ReadError::NotLeader { leader },
        Refused::Late(cause) => ReadError::DeadlineExceeded { cause },
        Refused::Busy(bound) => ReadError::Busy { bound },
        Refused::Stopped(cause) => ReadError::Stopped { cause },
        Refused::TooLarge(_)
        | Refused::LowSpace { .. }
        | Refused::InProgress
        | Refused::Reading(_)
        | Refused::Invalid(_) => ReadError::NotLeader { leader: None },
    }
}

fn change_result(answer: RequestOutcome) -> Result<Arc<Membership>, ChangeError> {
    let refused = match answer {
        RequestOutcome::Changed { membership } => {
            return machine::decode(&membership).map(Arc::new).map_err(|error| ChangeError::Unknown {
                cause: format!("changed, but the leader's membership cannot be decoded: {error}"),
            });
        }
        RequestOutcome::Unknown { cause } => return Err(ChangeError::Unknown { cause }),
        RequestOutcome::Applied { .. } => {
            return Err(ChangeError::Unknown { cause: "the leader answered with a response".into() });
        }
        RequestOutcome::Refused(refusal) => Refused::from(refusal),
        RequestOutcome::Late { cause } => Refused::Late(cause),
        RequestOutcome::Busy(bound) => Refused::Busy(bound),
    };
    Err(match refused {
        Refused::NoLeader(leader) => ChangeError::NotLeader { leader },
        Refused::Late(cause) => ChangeError::DeadlineExceeded { cause },
        Refused::Busy(bound) => ChangeError::Busy { bound },
        // No leader answers a change like this, since a change is small and may be the way out of the lack of space.
        Refused::LowSpace { .. } => ChangeError::Busy { bound: BusyBound::OfLeader },
        Refused::TooLarge(limit) => {
            ChangeError::Invalid { cause: format!("the change is larger than an entry may be ({limit} bytes)") }
        }
        Refused::Stopped(cause) => ChangeError::Stopped { cause },
        Refused::InProgress => ChangeError::InProgress,
        Refused::Reading(ChangeReading { learner: Some(learner), .. }) => ChangeError::LearnerNotReady(learner),
        Refused::Reading(ChangeReading { majority: Some(majority), .. }) => ChangeError::WouldLoseMajority(majority),
        Refused::Reading(reading) => ChangeError::Invalid { cause: reading.to_string() },
        Refused::Invalid(cause) => ChangeError::Invalid { cause },
    })
}

#[cfg(test)]
mod tests {
    use actorum_core::testkit::Sum;
    use actorum_machine::{
        ids::GroupId,
        readings::{LearnerReading, MajorityReading},
    };

    use super::*;
    use crate::{
        admission::Admission,
        subscribers::{BufferBounds, Subscribers},
        testkit::TestStore,
    };

    fn proposal(admission: &Arc<Admission>) -> (ReplySlot<Sum>, oneshot::Receiver<Result<Applied<u64>, ProposeError>>) {
        let (reply, receiver) = oneshot::channel();
        (ReplySlot::propose(reply, admission.try_admit(10).unwrap()), receiver)
    }

    #[test]
    fn an_answer_gives_the_place_back_before_it_is_heard() {
        let admission = Admission::new(1, 10);
        let (slot, mut answer) = proposal(&admission);
        slot.applied(7, 2, 40);
        assert_eq!(answer.try_recv().unwrap(), Ok(Applied { index: 7, term: 2, response: 40 }));
        assert_eq!(admission.in_flight(), (0, 0));
        assert_eq!(admission.totals(), (1, 0));
    }

    #[test]
    fn a_dropped_slot_is_unknown_with_the_cause_of_the_stop() {
        let admission = Admission::new(1, 10);
        let (slot, mut answer) = proposal(&admission);
        admission.close("apply panicked at 9@2");
        drop(slot);
        let error = answer.try_recv().unwrap().unwrap_err();
        assert_eq!(error, ProposeError::Unknown { cause: "apply panicked at 9@2".into() });
        assert_eq!((admission.in_flight(), admission.totals()), ((0, 0), (0, 1)));
    }

    #[test]
    fn every_refusal_says_what_the_client_can_do() {
        let admission = Admission::new(9, 90);
        let cause = || "why".to_owned();
        let cases = [
            (Refusal::NotLeader { leader: Some(3) }, ProposeError::NotLeader { leader: Some(3) }),
            (Refusal::Busy, ProposeError::Busy { bound: BusyBound::OfLeader }),
            (Refusal::LowSpace { free: 3, needed: 4 }, ProposeError::LowSpace { free: 3, needed: 4 }),
            (Refusal::TooLarge { limit: 5 }, ProposeError::TooLarge { size: 10, limit: 5 }),
            (Refusal::Stopped { cause: cause() }, ProposeError::Stopped { cause: cause() }),
            (Refusal::Invalid { cause: cause() }, ProposeError::Invalid { cause: cause() }),
        ];
        for (refusal, expected) in cases {
            let (slot, mut answer) = proposal(&admission);
            slot.answer(RequestOutcome::Refused(refusal));
            assert_eq!(answer.try_recv().unwrap(), Err(expected));
        }
    }

    /// A leader that is known is never said to be missing, and a deadline that passed is no want of a majority.
    #[test]
    fn what_came_too_late_says_so() {
        let admission = Admission::new(9, 90);
        let late = |answer: RequestOutcome| {
            let (slot, mut told) = proposal(&admission);
            slot.answer(answer.clone());
            let proposed = told.try_recv().unwrap().unwrap_err();
            let (reply, mut told) = oneshot::channel();
            ReplySlot::<Sum>::change(reply, admission.try_admit(0).unwrap()).answer(answer);
            (proposed, told.try_recv().unwrap().unwrap_err())
        };
        let dropped = Refusal::Dropped { cause: "its pipeline is full".into() };
        for (answer, says) in [
            (RequestOutcome::Refused(Refusal::Late), "the deadline passed before the leader took it up"),
            (RequestOutcome::Refused(dropped), "its pipeline is full"),
            (RequestOutcome::Refused(Refusal::Change(ChangeRefusal::NotReady)), "not ready for a change"),
            (RequestOutcome::Late { cause: "busy elsewhere".into() }, "busy elsewhere"),
        ] {
            let (ProposeError::DeadlineExceeded { cause }, ChangeError::DeadlineExceeded { cause: changed }) =
                late(answer.clone())
            else {
                panic!("{answer:?}")
            };
            assert!(cause.contains(says) && changed == cause, "{cause}");
        }
        let bound = BusyBound::Unapplied { bytes: 7, max: 5 };
        let busy = (ProposeError::Busy { bound: bound.clone() }, ChangeError::Busy { bound: bound.clone() });
        assert_eq!(late(RequestOutcome::Busy(bound)), busy);
    }

    #[test]
    fn a_forwarded_response_is_decoded_and_never_made_up() {
        let admission = Admission::new(9, 90);
        let (slot, mut answer) = proposal(&admission);
        let response = machine::encode(&40u64).unwrap().into();
        slot.answer(RequestOutcome::Applied { index: 7, term: 2, response });
        assert_eq!(answer.try_recv().unwrap().unwrap().response, 40);

        let (slot, mut answer) = proposal(&admission);
        slot.answer(RequestOutcome::Applied { index: 7, term: 2, response: Bytes::from_static(b"\xc1") });
        assert!(matches!(answer.try_recv().unwrap(), Err(ProposeError::Unknown { .. })));

        let (slot, mut answer) = proposal(&admission);
        slot.answer(RequestOutcome::Changed { membership: Bytes::new() });
        assert!(matches!(answer.try_recv().unwrap(), Err(ProposeError::Unknown { .. })));
    }

    #[test]
    fn a_peer_is_answered_in_wire_words() {
        let admission = Admission::new(9, 90);
        let ask = || {
            let (responder, answer) = Responder::new();
            (ReplySlot::<Sum>::remote(responder, admission.try_admit(1).unwrap()), answer)
        };
        let (slot, mut answer) = ask();
        slot.applied(7, 2, 40);
        let response = machine::encode(&40u64).unwrap().into();
        assert_eq!(answer.try_recv().unwrap(), Response::Applied { index: 7, term: 2, response });

        let (slot, mut answer) = ask();
        assert!(slot.confirmed(5).is_none());
        assert_eq!(answer.try_recv().unwrap(), Response::ReadAt { index: 5 });

        let (slot, mut answer) = ask();
        drop(slot);
        assert!(matches!(answer.try_recv().unwrap(), Response::Unknown { .. }));
        assert_eq!(admission.in_flight(), (0, 0));
    }

    #[test]
    fn a_change_in_progress_and_one_that_makes_no_sense_are_told_apart() {
        let admission = Admission::new(9, 90);
        let learner = LearnerReading {
            node: 4,
            matched: 7,
            needed: 3000,
            commit: 3007,
            heard_ms: None,
            recorded: true,
            forced: false,
            lacks: None,
        };
        let majority = MajorityReading { needed: 2, heard: 1, voters: [(1, Some(0)), (3, Some(4000))].into() };
        let because = |learner, majority| ChangeRefusal::because(ChangeReading { learner, majority });
        for (refusal, expected) in [
            (ChangeRefusal::InProgress, ChangeError::InProgress),
            (ChangeRefusal::invalid("no"), ChangeError::Invalid { cause: "no".into() }),
            (because(Some(learner.clone()), None), ChangeError::LearnerNotReady(learner)),
            (because(None, Some(majority.clone())), ChangeError::WouldLoseMajority(majority)),
        ] {
            let (reply, mut answer) = oneshot::channel();
            let slot = ReplySlot::<Sum>::change(reply, admission.try_admit(0).unwrap());
            slot.answer(RequestOutcome::Refused(Refusal::Change(refusal)));
            assert_eq!(answer.try_recv().unwrap(), Err(expected));
        }
    }

    #[test]
    fn a_read_is_confirmed_then_served() {
        let admission = Admission::new(1, 90);
        let (sender, mut answer) = oneshot::channel();
        let look: Look<Sum> = Box::new(move |state| {
            let _ = sender.send(state.map(|view| (view.applied, view.machine.total)));
        });
        let slot =
            ReplySlot::read(look, admission.try_admit(0).unwrap()).confirmed(5).expect("a local read is given back");
        let bounds = BufferBounds { events: 1, bytes: 1 };
        let subscribers = &mut Subscribers::new(GroupId::FIRST, Arc::new(TestStore::default()), Arc::default(), bounds);
        slot.serve(View { applied: 6, machine: &Sum { total: 40, ..Sum::default() }, subscribers });
        assert_eq!(answer.try_recv().unwrap(), Ok((6, 40)));
    }
}
