//! Subscribers: they get what is applied, each at its own speed.
//!
//! ```text
//!  applier ──try_send──▶ [ buffer, bounded ] ──▶ pump ──send, awaited──▶ subscriber
//!                          │ full                 ▲
//!                          └▶ Lagged, the last    └── first what the log holds after the index asked for
//! ```
//!
//! Each subscriber has a buffer, bounded in number (`subscriber_buffer`) and in bytes (`subscriber_buffer_bytes`), and
//! a pump, a task of its own that sends one message, awaits it, then sends the next. At either bound the subscriber is
//! unsubscribed: it gets what is in its buffer and then `Lagged`. The applier never waits, and one subscriber never
//! delays another.
//!
//! What was applied before the subscription is read back from the log by the pump, in chunks, where blocking is
//! allowed; what is applied meanwhile gathers in the buffer. The two meet at the index that was applied when the
//! subscription began, so there is neither gap nor repeat. Where the log begins later than that, or is cut off while it
//! is read, `SnapshotInstalled` takes the place of what is missing. Every command is reported with the time that
//! `apply` saw: reading begins where the time is known ([`Times`]), which may be before the first command that is
//! reported.
//!
//! A subscription may begin inside a read ([`View`]): then both are of one index, nothing is read back, and every
//! command that is reported has its response.
//!
//! Deliberately absent: reports of past membership changes and leaders; the status has the present ones.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use actix::prelude::*;
use actorum_core::{
    debug_fields,
    entry::{CommandKind, Stamped},
    log::store::LogReader,
    system_state::GENESIS_INDEX,
    times::{SPACING_BYTES, Times},
    wire::EntryKind,
};
use actorum_machine::{
    event::{Event, Events},
    ids::{ClusterId, GroupId, NodeId},
    machine::{self, StateMachine},
    outcome::SubscribeError,
    position::{After, Position},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// How much of the log is read back at once, and how much of a buffer is sent in one message of the batched form.
const CHUNK_BYTES: usize = 1 << 20;
/// How many events are sent in one message of the batched form.
const CHUNK_EVENTS: usize = 1024;
/// About how many bytes an event without a command counts in a buffer.
const PLAIN_BYTES: usize = 256;

/// The recipient, and the form of its messages.
pub enum Subscriber<S: StateMachine> {
    /// A message per event.
    Single(Recipient<Event<S>>),
    /// A message for all events that wait.
    Batched(Recipient<Events<S>>),
    /// A channel, from which the receiver takes one event after the other.
    Channel(mpsc::Sender<Event<S>>),
}

impl<S: StateMachine> fmt::Debug for Subscriber<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Subscriber::Single(_) => "Single",
            Subscriber::Batched(_) => "Batched",
            Subscriber::Channel(_) => "Channel",
        })
    }
}

impl<S: StateMachine> Clone for Subscriber<S> {
    fn clone(&self) -> Self {
        match self {
            Subscriber::Single(recipient) => Subscriber::Single(recipient.clone()),
            Subscriber::Batched(recipient) => Subscriber::Batched(recipient.clone()),
            Subscriber::Channel(sender) => Subscriber::Channel(sender.clone()),
        }
    }
}

/// What a subscriber wants to hear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wants {
    /// Everything that happens.
    #[default]
    Everything,
    /// The leader: first the present one, then every change.
    Leadership,
}

/// A subscription, to end it with. It also ends when the recipient's actor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subscription(u64);

/// Begin a subscription. `FuturePosition` here only says that this node has not applied so much.
#[derive(Message)]
#[rtype(result = "Result<Subscription, SubscribeError>")]
pub struct SubscribeFrom<S: StateMachine> {
    /// Who is told.
    pub subscriber: Subscriber<S>,
    /// From where on.
    pub after: After,
    /// What.
    pub wants: Wants,
}

debug_fields!(SubscribeFrom<S: StateMachine> { subscriber, after, wants });

/// End a subscription. Events already on their way may still arrive.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Unsubscribe(pub Subscription);

/// What a read sees: the state at one index, and a way to follow the state from there.
pub struct View<'a, S: StateMachine> {
    /// The index that is applied.
    pub applied: u64,
    /// The state as of it.
    pub machine: &'a S,
    /// The subscribers that get what is applied after it.
    pub subscribers: &'a mut Subscribers<S>,
}

impl<S: StateMachine> fmt::Debug for View<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl<S: StateMachine> View<'_, S> {
    /// Begins a subscription with what follows this very state.
    pub fn follow(&mut self, subscriber: Subscriber<S>) -> Subscription {
        self.subscribers.begin(subscriber, self.applied, self.applied, Wants::Everything)
    }

    /// Where this state stands; `None` on a node that belongs to no cluster yet.
    pub fn position(&self) -> Option<Position> {
        self.subscribers.cluster.map(|cluster| Position { cluster, index: self.applied })
    }
}

/// How much may wait for one subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferBounds {
    /// In events.
    pub events: usize,
    /// In bytes. One event is taken whatever its size while nothing else waits.
    pub bytes: usize,
}

/// All subscribers of one applier.
pub struct Subscribers<S: StateMachine> {
    group: GroupId,
    reader: Arc<dyn LogReader>,
    times: Arc<Times>,
    bounds: BufferBounds,
    next: u64,
    feeds: BTreeMap<u64, Feed<S>>,
    cluster: Option<ClusterId>,
    /// The leader and its term, as the core last reported.
    leader: (Option<NodeId>, u64),
}

debug_fields!(Subscribers<S: StateMachine> { group, bounds, cluster, leader });

/// The applier's end of one subscription.
struct Feed<S: StateMachine> {
    subscriber: Subscriber<S>,
    wants: Wants,
    /// Events, and what each counts in bytes.
    buffer: mpsc::Sender<(Event<S>, usize)>,
    /// Bytes handed over and not delivered yet.
    waiting: Arc<AtomicUsize>,
    /// Used once, at the bound.
    lagged: oneshot::Sender<Event<S>>,
    /// The subscriber asked not to get commands up to here, or already has them.
    announced: u64,
    pump: JoinHandle<()>,
}

impl<S: StateMachine> Subscribers<S> {
    /// No subscribers yet. The times are those of the applier of that log.
    pub fn new(group: GroupId, reader: Arc<dyn LogReader>, times: Arc<Times>, bounds: BufferBounds) -> Self {
        let bounds = BufferBounds { events: bounds.events.max(1), ..bounds };
        Subscribers { group, reader, times, bounds, next: 1, feeds: BTreeMap::new(), cluster: None, leader: (None, 0) }
    }

    /// Nobody is told anything.
    pub fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.feeds.len()
    }

    /// What is applied from now on belongs to this cluster.
    pub fn set_cluster(&mut self, cluster: Option<ClusterId>) {
        self.cluster = cluster;
    }

    /// Begins a subscription on a log that is applied up to `applied`, or says why not.
    ///
    /// Indexes here come from clients: an index outside the log is refused before anything is computed with it.
    pub fn subscribe(&mut self, subscribe: SubscribeFrom<S>, applied: u64) -> Result<Subscription, SubscribeError> {
        let SubscribeFrom { subscriber, after, wants } = subscribe;
        let index = match (after, self.cluster) {
            _ if wants == Wants::Leadership => applied,
            (After::Now, _) => applied,
            (After::Index(index), _) => index,
            (After::Position(position), Some(cluster)) if position.cluster != cluster => {
                return Err(SubscribeError::ForeignPosition { position, cluster });
            }
            (After::Position(position), Some(_)) => position.index,
            // The cluster of the position is checked when this node belongs to a cluster.
            (After::Position(position), None) => {
                return Err(SubscribeError::FuturePosition { index: position.index, applied });
            }
        };
        // The genesis is not a command: a subscriber that begins at 0 has missed nothing of a node that holds nothing.
        if index > applied.max(GENESIS_INDEX) {
            return Err(SubscribeError::FuturePosition { index, applied });
        }
        Ok(self.begin(subscriber, index, applied, wants))
    }

    /// Begins one with what follows `after`, which is not past `applied`.
    fn begin(&mut self, subscriber: Subscriber<S>, after: u64, applied: u64, wants: Wants) -> Subscription {
        // Subscribers that ended while nothing was applied are removed here.
        self.feeds.retain(|_, feed| {
            let connected = feed.subscriber.is_connected();
            if !connected {
                feed.pump.abort();
            }
            connected
        });
        // There was no command before the genesis, so none is missing.
        let after = after.max(GENESIS_INDEX);
        let id = self.next;
        self.next += 1;
        let (buffer, events) = mpsc::channel(self.bounds.events);
        let (lagged, lagged_after) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let backlog = Backlog {
            group: self.group,
            reader: self.reader.clone(),
            times: self.times.clone(),
            cluster: self.cluster,
            announced: after,
            applied,
            reached: None,
            unnoted: 0,
        };
        let pump = Pump { subscriber: subscriber.clone(), events, waiting: waiting.clone() };
        let pump = actix_rt::spawn(pump.run(backlog, lagged_after));
        let feed = Feed { subscriber, wants, buffer, waiting, lagged, announced: after.max(applied), pump };
        self.feeds.insert(id, feed);
        if wants == Wants::Leadership {
            let (leader, term) = self.leader;
            self.tell(PLAIN_BYTES, |at, feed| {
                (at == id).then(|| (feed.announced, Event::LeadershipChanged { leader, term }))
            });
        }
        Subscription(id)
    }

    /// Ends a subscription.
    pub fn unsubscribe(&mut self, Subscription(id): Subscription) {
        if let Some(feed) = self.feeds.remove(&id) {
            feed.pump.abort();
        }
    }

    /// Reports a command, which with its response takes so many bytes.
    pub fn command(
        &mut self,
        (index, term, time): (u64, u64, SystemTime),
        bytes: usize,
        command: &Arc<S::Command>,
        response: &Arc<S::Response>,
    ) {
        let Some(cluster) = self.cluster else { return };
        self.tell(bytes, |_, feed| {
            let due = feed.wants == Wants::Everything && index > feed.announced;
            due.then(|| {
                let (command, response) = (command.clone(), Some(response.clone()));
                (index, Event::Applied { cluster, index, term, time, command, response })
            })
        });
    }

    /// Reports that a snapshot replaced the state: commands up to its index are no longer reported.
    pub fn installed(&mut self, index: u64) {
        let Some(cluster) = self.cluster else { return };
        self.tell(PLAIN_BYTES, |_, feed| {
            let due = feed.wants == Wants::Everything;
            due.then(|| (feed.announced.max(index), Event::SnapshotInstalled { cluster, index }))
        });
    }

    /// Tells who leads.
    pub fn leads(&mut self, leader: Option<NodeId>, term: u64) {
        // A node that becomes a candidate still has no leader: nothing about the leader has changed.
        if self.leader == (leader, term) {
            return;
        }
        self.leader = (leader, term);
        self.tell(PLAIN_BYTES, |_, feed| Some((feed.announced, Event::LeadershipChanged { leader, term })));
    }

    /// Tells anything else.
    pub fn event(&mut self, event: &Event<S>) {
        self.tell(PLAIN_BYTES, |_, feed| (feed.wants == Wants::Everything).then(|| (feed.announced, event.clone())));
    }

    /// Offers each feed an event, with the index up to which its subscriber then has everything. Never waits.
    fn tell(&mut self, bytes: usize, event: impl Fn(u64, &Feed<S>) -> Option<(u64, Event<S>)>) {
        use mpsc::error::TrySendError;
        let mut ended = Vec::new();
        for (&id, feed) in &mut self.feeds {
            let Some((announced, event)) = event(id, feed) else { continue };
            let waiting = feed.waiting.fetch_add(bytes, Ordering::Relaxed);
            if waiting > 0 && waiting.saturating_add(bytes) > self.bounds.bytes {
                ended.push((id, true));
                continue;
            }
            match feed.buffer.try_send((event, bytes)) {
                Ok(()) => feed.announced = announced,
                Err(TrySendError::Full(_)) => ended.push((id, true)),
                Err(TrySendError::Closed(_)) => ended.push((id, false)),
            }
        }
        for (id, lagged) in ended {
            let Some(feed) = self.feeds.remove(&id) else { continue };
            if lagged {
                tracing::warn!(
                    subscription = id,
                    resume_after = feed.announced,
                    "a subscriber lags and is unsubscribed"
                );
                // A pump that has ended has no subscriber any more.
                let _ = feed.lagged.send(Event::Lagged { cluster: self.cluster, resume_after: feed.announced });
            }
        }
    }
}

/// What was applied before the subscription and is reported after it began.
struct Backlog {
    group: GroupId,
    reader: Arc<dyn LogReader>,
    times: Arc<Times>,
    /// The last index that was reported, or that the subscriber asked not to get.
    announced: u64,
    /// The last index of it; later ones come through the buffer.
    applied: u64,
    cluster: Option<ClusterId>,
    /// The last index that was read, or the one before the first that will be, and the time as of it; `None` until it
    /// is known where reading begins. Not past `announced`.
    reached: Option<(u64, SystemTime)>,
    /// Bytes read on the way to `announced` since a time was noted.
    unnoted: usize,
}

/// The recipient's actor is gone.
struct Gone;

/// The task that feeds one subscriber until it is gone, lags, or the applier stops.
struct Pump<S: StateMachine> {
    subscriber: Subscriber<S>,
    events: mpsc::Receiver<(Event<S>, usize)>,
    waiting: Arc<AtomicUsize>,
}

impl<S: StateMachine> Pump<S> {
    async fn run(mut self, mut backlog: Backlog, lagged: oneshot::Receiver<Event<S>>) {
        while backlog.announced < backlog.applied {
            let (resume_after, cluster) = (backlog.announced, backlog.cluster);
            let sent = match backlog.read::<S>().await {
                Ok(past) => self.subscriber.tell(past).await,
                Err(error) => {
                    tracing::warn!(error, resume_after, "a subscriber's backlog cannot be read");
                    let _ = self.subscriber.tell(vec![Event::Lagged { cluster, resume_after }]).await;
                    return;
                }
            };
            if sent.is_err() {
                return;
            }
        }
        while let Some((batch, bytes)) = self.next().await {
            let sent = self.subscriber.tell(batch).await;
            // The subscriber has taken the message, so its bytes no longer count: only now there is room for as much.
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            if sent.is_err() {
                return;
            }
        }
        // The applier has dropped its end: because of the bound, or because it stopped.
        if let Ok(lagged) = lagged.await {
            let _ = self.subscriber.tell(vec![lagged]).await;
        }
    }

    /// The events for the next message, and their bytes together; `None` once the applier has dropped its end and all
    /// events are delivered.
    async fn next(&mut self) -> Option<(Vec<Event<S>>, usize)> {
        let (first, mut bytes) = self.events.recv().await?;
        let mut batch = vec![first];
        if !matches!(self.subscriber, Subscriber::Batched(_)) {
            return Some((batch, bytes));
        }
        while batch.len() < CHUNK_EVENTS && bytes < CHUNK_BYTES {
            let Ok((event, more)) = self.events.try_recv() else { break };
            batch.push(event);
            bytes += more;
        }
        Some((batch, bytes))
    }
}

impl Backlog {
    /// The commands of the next chunk, read on a thread that may block if the store blocks. It is empty while the chunk
    /// is before the first command that is reported.
    #[allow(clippy::disallowed_methods, reason = "only for a store that blocks")]
    async fn read<S: StateMachine>(&mut self) -> Result<Vec<Event<S>>, String> {
        let Some(cluster) = self.cluster else { return Err("this node belongs to no cluster".into()) };
        // Never past the log: `subscribe` has checked both.
        let (group, reader, to) = (self.group, self.reader.clone(), self.applied + 1);
        let (reached, known) = (self.reached, self.times.up_to(self.announced));
        let blocks = reader.blocks();
        let read = move || {
            let first = reader.first_index(group);
            let Some((at, time)) = reached.or(known).filter(|(at, _)| at + 1 >= first) else { return Ok(Err(first)) };
            match reader.entries(group, at + 1, to, CHUNK_BYTES) {
                // The log may be cut off under it at any time: what it holds now is asked for after what it gave.
                Err(_) if reader.first_index(group) > at + 1 => Ok(Err(reader.first_index(group))),
                read => read.map(|entries| Ok((at, time, entries))),
            }
        };
        let read = match blocks {
            true => tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?,
            false => read(),
        };
        let (mut at, mut time, entries) = match read.map_err(|error| error.to_string())? {
            Ok(read) => read,
            Err(first) => return Ok(vec![Event::SnapshotInstalled { cluster, index: self.skip(first) }]),
        };
        if entries.is_empty() {
            return Err(format!("the log does not hold {}", at + 1));
        }
        let mut events = Vec::new();
        for entry in &entries {
            if entry.index != at + 1 {
                return Err(format!("the log has {} in the place of {}", entry.index, at + 1));
            }
            at += 1;
            let stamped = match entry.kind == EntryKind::Normal && !entry.data.is_empty() {
                true => Some(Stamped::parse(&entry.data).map_err(|error| error.to_string())?),
                false => None,
            };
            time = stamped.map_or(time, |stamped| time.max(stamped.time));
            if at <= self.announced {
                self.unnoted += entry.size();
                continue;
            }
            self.announced = at;
            if let Some(stamped) = stamped.filter(|stamped| stamped.kind == CommandKind::Command) {
                let command = machine::decode::<S::Command>(stamped.payload).map_err(|error| error.to_string())?;
                let (index, term, command) = (at, entry.term, Arc::new(command));
                events.push(Event::Applied { cluster, index, term, time, command, response: None });
            }
        }
        self.reached = Some((at, time));
        // A time is noted, so that a subscriber that resumes near here later reads less. Only before the first reported
        // command: other known times are already this far apart.
        if at < self.announced && self.unnoted >= SPACING_BYTES {
            self.unnoted = 0;
            self.times.note(at, time);
        }
        Ok(events)
    }

    /// The first commands cannot be read, or their time is not known: the log begins at `first`. Reading goes on at the
    /// first index where both are known, and an event says up to which index the state takes the place of the missing
    /// commands.
    fn skip(&mut self, first: u64) -> u64 {
        // The subscription does not end, and the gap is reported. The report covers only what was applied then: what
        // was applied since comes through the buffer.
        let next = self.times.from((self.announced + 1).max(first.saturating_sub(1)));
        let next = next.filter(|(index, _)| *index < self.applied);
        (self.reached, self.announced) = (next, next.map_or(self.applied, |(index, _)| index));
        self.announced
    }
}

impl<S: StateMachine> Subscriber<S> {
    fn is_connected(&self) -> bool {
        match self {
            Subscriber::Single(recipient) => recipient.connected(),
            Subscriber::Batched(recipient) => recipient.connected(),
            Subscriber::Channel(sender) => !sender.is_closed(),
        }
    }

    /// Sends and awaits: one message is in flight, so a subscriber's mailbox holds at most one of ours.
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
            Subscriber::Channel(sender) => {
                for event in events {
                    sender.send(event).await.map_err(|_| Gone)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "subscribers_tests.rs"]
mod tests;
