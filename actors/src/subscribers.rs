//! Subscribers: who is told what is applied, each at its own speed.
//!
//! ```text
//!  applier ──try_send──▶ [ buffer, bounded ] ──▶ pump ──send, awaited──▶ subscriber
//!                          │ full                 ▲
//!                          └▶ Lagged, the last    └── first what the log holds after the index asked for
//! ```
//!
//! Each subscriber has a buffer (bounded by `subscriber_buffer`) and a pump, a task of its own that sends one
//! message, awaits it, then sends the next. At the bound the subscriber is unsubscribed: it gets what is in its
//! buffer and then `Lagged`. The applier never waits, and one subscriber never slows another.
//!
//! What was applied before the subscription is read back from the log by the pump, in chunks, where blocking
//! is allowed; what is applied meanwhile gathers in the buffer. The two meet at the index that was
//! applied when the subscription began, so there is neither gap nor repeat. Where the log begins later than that, or is cut
//! off while it is read, `SnapshotInstalled` takes the place of what is missing.
//!
//! Deliberately absent: telling membership changes and leaders of the past; status has the present ones.

use std::{collections::BTreeMap, sync::Arc};

use actix::prelude::*;
use actorum_transport::wire::{EntryKind, GroupId};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    entry::{Kind, Stamped},
    event::{Event, Events},
    log::store::LogReader,
    machine::{self, StateMachine},
    system_state::GENESIS_INDEX,
};

/// How much of the log is read back at once.
const CHUNK_BYTES: usize = 1 << 20;
/// How many events travel in one message of the batched form.
const CHUNK_EVENTS: usize = 1024;

/// Who is told, and in which form.
pub enum Subscriber<S: StateMachine> {
    /// A message per event.
    Single(Recipient<Event<S>>),
    /// A message for all events that wait.
    Batched(Recipient<Events<S>>),
}

/// Why a subscription could not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The system has stopped.
    #[error("stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
}

/// A subscription, to end it with. It also ends when the recipient's actor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subscription(u64);

/// Begin a subscription.
#[derive(Message)]
#[rtype(result = "Result<Subscription, SubscribeError>")]
pub struct SubscribeFrom<S: StateMachine> {
    /// Who is told.
    pub subscriber: Subscriber<S>,
    /// After which index; `None` for what is applied from now on.
    pub after: Option<u64>,
}

/// End a subscription. Events already on their way may still arrive.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Unsubscribe(pub Subscription);

/// Everyone who is told what one applier does.
pub struct Subscribers<S: StateMachine> {
    group: GroupId,
    reader: Arc<dyn LogReader>,
    /// How many events may wait for one subscriber.
    buffer: usize,
    next: u64,
    feeds: BTreeMap<u64, Feed<S>>,
}

/// The applier's end of one subscription.
struct Feed<S: StateMachine> {
    buffer: mpsc::Sender<Event<S>>,
    /// Used once, at the bound.
    lagged: oneshot::Sender<u64>,
    /// Commands up to here were asked not to be told, or are told already.
    told: u64,
    pump: JoinHandle<()>,
}

impl<S: StateMachine> Subscribers<S> {
    /// Nobody yet.
    pub fn new(group: GroupId, reader: Arc<dyn LogReader>, buffer: usize) -> Self {
        Subscribers { group, reader, buffer: buffer.max(1), next: 1, feeds: BTreeMap::new() }
    }

    /// Nobody is told anything.
    pub fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.feeds.len()
    }

    /// Begins a subscription on a log that is applied up to `applied`.
    pub fn subscribe(&mut self, SubscribeFrom { subscriber, after }: SubscribeFrom<S>, applied: u64) -> Subscription {
        // Nothing was told before the genesis, so nothing of it is missing.
        let after = after.unwrap_or(applied).max(GENESIS_INDEX);
        let id = self.next;
        self.next += 1;
        let (buffer, events) = mpsc::channel(self.buffer);
        let (lagged, lagged_after) = oneshot::channel();
        let backlog = Backlog { group: self.group, reader: self.reader.clone(), next: after + 1, applied };
        let pump = actix_rt::spawn(pump(subscriber, backlog, events, lagged_after));
        self.feeds.insert(id, Feed { buffer, lagged, told: after.max(applied), pump });
        Subscription(id)
    }

    /// Ends a subscription.
    pub fn unsubscribe(&mut self, Subscription(id): Subscription) {
        if let Some(feed) = self.feeds.remove(&id) {
            feed.pump.abort();
        }
    }

    /// Tells a command.
    pub fn command(&mut self, index: u64, term: u64, command: &Arc<S::Command>, response: &Arc<S::Response>) {
        self.tell(|feed| {
            let due = index > feed.told;
            due.then(|| {
                (index, Event::Applied { index, term, command: command.clone(), response: Some(response.clone()) })
            })
        });
    }

    /// Tells that a snapshot replaced the state: commands up to its index are told nobody any more.
    pub fn installed(&mut self, index: u64) {
        self.tell(|feed| Some((feed.told.max(index), Event::SnapshotInstalled { index })));
    }

    /// Tells anything but a command.
    pub fn event(&mut self, event: &Event<S>) {
        self.tell(|feed| Some((feed.told, event.clone())));
    }

    /// Offers each feed an event, with the index up to which its subscriber is then told. Never waits.
    fn tell(&mut self, event: impl Fn(&Feed<S>) -> Option<(u64, Event<S>)>) {
        use mpsc::error::TrySendError;
        let mut ended = Vec::new();
        for (&id, feed) in &mut self.feeds {
            let Some((told, event)) = event(feed) else { continue };
            match feed.buffer.try_send(event) {
                Ok(()) => feed.told = told,
                Err(TrySendError::Full(_)) => ended.push((id, true)),
                Err(TrySendError::Closed(_)) => ended.push((id, false)),
            }
        }
        for (id, lagged) in ended {
            let Some(feed) = self.feeds.remove(&id) else { continue };
            if lagged {
                tracing::warn!(subscription = id, resume_after = feed.told, "a subscriber lags and is unsubscribed");
                // A pump that has ended has nobody to tell.
                let _ = feed.lagged.send(feed.told);
            }
        }
    }
}

/// What was applied before the subscription and is told after it began.
struct Backlog {
    group: GroupId,
    reader: Arc<dyn LogReader>,
    next: u64,
    /// The last index of it; later ones come through the buffer.
    applied: u64,
}

/// The recipient's actor is gone.
struct Gone;

/// Feeds one subscriber until it is gone, lags, or the applier stops.
async fn pump<S: StateMachine>(
    subscriber: Subscriber<S>,
    mut backlog: Backlog,
    mut events: mpsc::Receiver<Event<S>>,
    lagged: oneshot::Receiver<u64>,
) {
    while backlog.next <= backlog.applied {
        let resume_after = backlog.next - 1;
        let told = match backlog.read::<S>().await {
            Ok(past) => subscriber.tell(past).await,
            Err(error) => {
                tracing::warn!(error, resume_after, "a subscriber's backlog cannot be read");
                let _ = subscriber.tell(vec![Event::Lagged { resume_after }]).await;
                return;
            }
        };
        if told.is_err() {
            return;
        }
    }
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, CHUNK_EVENTS).await > 0 {
        if subscriber.tell(std::mem::take(&mut batch)).await.is_err() {
            return;
        }
    }
    // The applier let go: because of the bound, or because it stopped.
    if let Ok(resume_after) = lagged.await {
        let _ = subscriber.tell(vec![Event::Lagged { resume_after }]).await;
    }
}

impl Backlog {
    /// The commands of the next chunk, read where blocking is allowed if it may block.
    #[allow(clippy::disallowed_methods, reason = "only for a store that blocks")]
    async fn read<S: StateMachine>(&mut self) -> Result<Vec<Event<S>>, String> {
        let (group, reader, from, to) = (self.group, self.reader.clone(), self.next, self.applied + 1);
        let blocks = reader.blocks();
        // The log may be cut off under it at any time: what it holds now is asked for after what it gave.
        let read = move || match reader.entries(group, from, to, CHUNK_BYTES) {
            Err(_) if reader.first_index(group) > from => Ok(Err(reader.first_index(group))),
            read => read.map(Ok),
        };
        let read = match blocks {
            true => tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?,
            false => read(),
        };
        let entries = match read.map_err(|error| error.to_string())? {
            Ok(entries) => entries,
            Err(first) => {
                // Neither a silent gap nor an end: what is missing is in the state.
                // But only up to what was applied then: what was applied since is on its way through the buffer.
                self.next = first;
                return Ok(vec![Event::SnapshotInstalled { index: self.applied.min(first - 1) }]);
            }
        };
        let mut events = Vec::with_capacity(entries.len());
        for entry in &entries {
            if entry.index != self.next {
                return Err(format!("the log has {} in the place of {}", entry.index, self.next));
            }
            self.next += 1;
            if entry.kind != EntryKind::Normal || entry.data.is_empty() {
                continue;
            }
            let stamped = Stamped::parse(&entry.data).map_err(|error| error.to_string())?;
            if stamped.kind == Kind::Command {
                let command = machine::decode::<S::Command>(stamped.payload).map_err(|error| error.to_string())?;
                let command = Arc::new(command);
                events.push(Event::Applied { index: entry.index, term: entry.term, command, response: None });
            }
        }
        if entries.is_empty() {
            return Err(format!("the log does not hold {from}"));
        }
        Ok(events)
    }
}

impl<S: StateMachine> Subscriber<S> {
    /// Sends and awaits: one message is in flight, so a subscriber's mailbox holds one of ours.
    async fn tell(&self, events: Vec<Event<S>>) -> Result<(), Gone> {
        if events.is_empty() {
            return Ok(());
        }
        match self {
            Subscriber::Single(recipient) => {
                for event in events {
                    recipient.send(event).await.map_err(|_| Gone)?;
                }
            }
            Subscriber::Batched(recipient) => recipient.send(Events(events)).await.map_err(|_| Gone)?,
        }
        Ok(())
    }
}
