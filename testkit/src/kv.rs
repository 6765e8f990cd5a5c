//! A key-value store with compare-and-set, and clients that record their results. Our own simulations run this.
//!
//! An application checks its own state machine with a workload of its own; this one is here for the library's tests,
//! and as a model to start from.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actorum_machine::machine::{ApplyContext, StateMachine};
use serde::{Deserialize, Serialize};

use super::{
    client::{Client, Unanswered},
    history::{Answer, Call, History},
    linearizability::{Verdict, check},
};

/// A command of the store. The number makes every one different, so that a doubled one is seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Command {
    /// Different for every command.
    pub number: u64,
    /// Which key.
    pub key: u64,
    /// What must be found there.
    pub expect: Expect,
    /// What is then written; `None` removes.
    pub value: Option<u64>,
}

/// What a command asks for. Not an option in an option: encoded, the two kinds of nothing would be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Nothing in particular.
    Whatever,
    /// This value, or none.
    Exactly(Option<u64>),
}

/// What the store answers: whether it wrote, and what was there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answered {
    /// Whether it wrote.
    pub done: bool,
    /// What was there before.
    pub was: Option<u64>,
}

/// The store.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Kv(BTreeMap<u64, u64>);

impl StateMachine for Kv {
    type Command = Command;
    type Response = Answered;

    fn apply(&mut self, _: &ApplyContext, command: &Command) -> Answered {
        let was = self.0.get(&command.key).copied();
        let done = [Expect::Whatever, Expect::Exactly(was)].contains(&command.expect);
        if done {
            match command.value {
                Some(value) => drop(self.0.insert(command.key, value)),
                None => drop(self.0.remove(&command.key)),
            }
        }
        Answered { done, was }
    }

    actorum::serde_snapshot!();
}

/// The operations of all clients of one run, with their results. Clones share the same record.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<History<u64, u64>>>);

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// Whether there is an order of all operations that explains every answer; if not, or if that could not be decided,
    /// why.
    pub fn verdict(&self) -> Result<(), String> {
        match check(self.with(|history| history.operations().to_vec()).as_slice()) {
            Verdict::Linearizable => Ok(()),
            other => Err(other.to_string()),
        }
    }

    /// How many operations were recorded.
    pub fn len(&self) -> usize {
        self.with(|history| history.operations().len())
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn with<R>(&self, look: impl FnOnce(&mut History<u64, u64>) -> R) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One client: reads, writes, compares and removes under a few keys until the simulation is over.
    pub async fn client(self, mut client: Client<Kv>) {
        const KEYS: u64 = 4;
        let number = client.number();
        let mut seen: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        let mut count = 0;
        while client.goes_on() {
            count += 1;
            let key = client.rng().below(KEYS);
            let fresh = number << 32 | count;
            let call = match client.rng().below(10) {
                0..4 => Call::Get,
                4..7 => Call::Put(fresh),
                7 => Call::Delete,
                _ => Call::CompareAndSet { expect: seen.get(&key).copied().flatten(), value: Some(fresh) },
            };
            let operation = self.with(|history| history.invoke(number, key, call.clone()));
            let answer = match call {
                Call::Get => client.read(move |kv: &Kv| kv.0.get(&key).copied()).await.map(Answer::Value),
                Call::Put(value) => write(&mut client, fresh, key, Expect::Whatever, Some(value)).await,
                Call::Delete => write(&mut client, fresh, key, Expect::Whatever, None).await,
                Call::CompareAndSet { expect, value } => {
                    write(&mut client, fresh, key, Expect::Exactly(expect), value).await
                }
            };
            match answer {
                Ok(answer) => {
                    if let Answer::Value(value) | Answer::Conflict(value) = &answer {
                        seen.insert(key, *value);
                    }
                    self.with(|history| history.answer(operation, answer));
                }
                Err(Unanswered::Rejected(_)) => self.with(|history| history.fail(operation)),
                // It stays open for ever.
                Err(Unanswered::Unknown(_)) => {}
            }
            client.think(Duration::from_millis(120)).await;
        }
    }
}

async fn write(
    client: &mut Client<Kv>,
    number: u64,
    key: u64,
    expect: Expect,
    value: Option<u64>,
) -> Result<Answer<u64>, Unanswered> {
    let applied = client.propose(Command { number, key, expect, value }).await?;
    let Answered { done, was } = applied.response;
    Ok(if done { Answer::Replaced(was) } else { Answer::Conflict(was) })
}
