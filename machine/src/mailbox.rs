//! Makes these types messages of actors, and turns a mailbox's error into the end of a request. Only with the feature
//! `actix`.

use std::sync::Arc;

use actix::{MailboxError, Message};

use crate::{
    event::{Event, Events},
    machine::StateMachine,
    members::{Change, ChangeRequest, Membership},
    outcome::{ChangeError, ProposeError, ReadError},
};

impl<S: StateMachine> Message for Event<S> {
    type Result = ();
}

impl<S: StateMachine> Message for Events<S> {
    type Result = ();
}

impl Message for Change {
    type Result = Result<Arc<Membership>, ChangeError>;
}

impl Message for ChangeRequest {
    type Result = Result<Arc<Membership>, ChangeError>;
}

/// A closed or full mailbox proves nothing about the log.
impl From<MailboxError> for ProposeError {
    fn from(error: MailboxError) -> Self {
        ProposeError::Unknown { cause: format!("the system's mailbox: {error}") }
    }
}

impl From<MailboxError> for ReadError {
    fn from(error: MailboxError) -> Self {
        ReadError::Stopped { cause: format!("the system's mailbox: {error}") }
    }
}

impl From<MailboxError> for ChangeError {
    fn from(error: MailboxError) -> Self {
        ChangeError::Unknown { cause: format!("the system's mailbox: {error}") }
    }
}
