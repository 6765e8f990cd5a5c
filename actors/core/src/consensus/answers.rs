//! How requests end: with an answer, with another try, or with their time.
//!
//! | what happened | how it ends |
//! |---|---|
//! | surely nothing was done, and another try may fare better | queued again (`again`), until its deadline |
//! | its deadline passed before it was in any log | rejected (`expire`) |
//! | its deadline passed afterwards | unknown (`expire`) |
//! | the core ends | unknown (`abandon`) |
//!
//! A request ends once: its reply handle moves into the answer. A read that was confirmed waits for its index, and ends
//! at its deadline, too.
//!
//! Deliberately absent: the answer to what is committed, which comes from the applier (`ready` hands it the reply
//! handle), and refusals before a proposal (`dispatch`).

use std::{collections::VecDeque, mem};

use super::{Consensus, reads::Reader, requests::Request};
use crate::{
    message::RequestOutcome,
    wire::{AskError, ChangeRefusal, Refusal, Response},
};

impl<T> Consensus<T> {
    pub(super) fn read_answered(&mut self, readers: Vec<Reader<T>>, result: Result<Response, AskError>) {
        match result {
            Ok(Response::ReadAt { index }) => {
                self.confirmed(index, readers);
            }
            // A read changes nothing: whatever went wrong, it is asked again until its time is up.
            _ => {
                self.reads.not_before = self.ticks + 1;
                self.reads.waiting.extend(readers);
            }
        }
    }

    /// These readers may be served once this index is applied.
    pub(super) fn confirmed(&mut self, index: u64, readers: Vec<Reader<T>>) {
        self.reads.confirmed.extend(readers.into_iter().map(|reader| (index, reader)));
        self.effects.reads.extend(self.reads.due(self.raw.raft.raft_log.applied));
    }

    /// Back into the queue: nothing was done, and there may be time for another try.
    pub(super) fn again(&mut self, mut request: Request<T>) {
        request.not_before = self.ticks + 1;
        self.queued.push_back(request);
    }

    /// The same, and notes the refusal that its client gets if nothing changes until its deadline.
    pub(super) fn again_because(&mut self, mut request: Request<T>, refusal: Refusal) {
        match refusal {
            Refusal::Change(ChangeRefusal::Invalid { .. } | ChangeRefusal::NotReady) | Refusal::Dropped { .. } => {
                request.refusal = Some(refusal);
            }
            _ => {}
        }
        self.again(request);
    }

    /// Answers those whose time is up: rejected if they never reached a log, unknown if they may have.
    pub(super) fn expire(&mut self) {
        let (now, leader) = (self.now, self.leader());
        let mut kept = VecDeque::with_capacity(self.queued.len());
        for request in mem::take(&mut self.queued) {
            match request.reply {
                _ if request.deadline > now => kept.push_back(request),
                Some(reply) => {
                    let tried = request.not_before > 0 && leader != Some(self.settings.id);
                    let answer = match request.refusal {
                        Some(refusal) => RequestOutcome::Refused(refusal),
                        None if leader.is_none() || tried => RequestOutcome::Refused(Refusal::NotLeader { leader }),
                        None => RequestOutcome::Late {
                            cause: "the deadline passed before the leader took it up".to_owned(),
                        },
                    };
                    self.effects.answers.push((reply, answer));
                }
                None => {}
            }
        }
        self.queued = kept;
        for ((index, term), late) in self.pending.extract_if(.., |_, pending| pending.deadline <= now) {
            let cause = format!("entry {index}@{term} was not committed within the deadline; it still may be");
            self.effects.answers.push((late.reply, RequestOutcome::Unknown { cause }));
        }
        for (_, late) in self.forwarded.extract_if(.., |_, forwarded| forwarded.request.deadline <= now) {
            let cause = "the leader did not answer within the deadline; it still may carry it out".to_owned();
            if let Some(reply) = late.request.reply {
                self.effects.answers.push((reply, RequestOutcome::Unknown { cause }));
            }
        }
        for late in self.reads.expire_unconfirmed(now) {
            self.effects.answers.push((late.reply, RequestOutcome::Refused(Refusal::NotLeader { leader })));
        }
        let applied = self.raw.raft.raft_log.applied;
        for (index, late) in self.reads.expire_confirmed(now) {
            let cause = format!(
                "the leader confirmed the read at {index}, and this node's state machine had applied up to {applied} \
                 at its deadline: it is busy, or what it waits for has not reached this node"
            );
            self.effects.answers.push((late.reply, RequestOutcome::Late { cause }));
        }
    }

    /// Ends every request with this cause, as unknown.
    pub fn abandon(&mut self, cause: &str) -> Vec<(T, RequestOutcome)> {
        let unknown = || RequestOutcome::Unknown { cause: cause.to_owned() };
        let mut answers = mem::take(&mut self.effects.answers);
        answers.extend(mem::take(&mut self.queued).into_iter().filter_map(|r| Some((r.reply?, unknown()))));
        answers.extend(mem::take(&mut self.pending).into_values().map(|p| (p.reply, unknown())));
        answers
            .extend(mem::take(&mut self.forwarded).into_values().filter_map(|f| Some((f.request.reply?, unknown()))));
        answers.extend(self.reads.drain().into_iter().map(|r| (r.reply, unknown())));
        answers.extend(mem::take(&mut self.effects.reads).into_iter().map(|(_, reply)| (reply, unknown())));
        let committed = mem::take(&mut self.effects.apply).into_iter();
        answers.extend(committed.filter_map(|c| Some((c.reply?, unknown()))));
        answers
    }
}

/// Refusals that promise that nothing was done and that another try may fare better.
pub(super) fn may_retry(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::NotLeader { .. } | Refusal::Dropped { .. } | Refusal::Stopped { .. } => true,
        Refusal::Change(ChangeRefusal::NotReady) => true,
        // It may catch up inside the deadline.
        Refusal::Change(ChangeRefusal::Invalid { reading: Some(reading), .. }) => {
            reading.learner.as_ref().is_some_and(|learner| !learner.forced)
        }
        Refusal::Busy
        | Refusal::LowSpace { .. }
        | Refusal::TooLarge { .. }
        | Refusal::Late
        | Refusal::Change(_)
        | Refusal::Invalid { .. } => false,
    }
}
