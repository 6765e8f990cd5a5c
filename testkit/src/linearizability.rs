//! Decides whether a [history](super::history) of a key-value store is linearizable (Herlihy and Wing 1990): whether
//! all operations can be put into one order, each at an instant between its call and its answer, in which every
//! answer is true.
//!
//! ```text
//!  history ──by key──▶ steps (need, then) ──▶ search over (answers passed, open steps taken, state) ──▶ verdict
//! ```
//!
//! Keys are independent, so each is searched alone (locality). The search is that of Wing and Gong (1993) with Lowe's
//! memory of configurations ("Testing for Linearizability", 2017), just in time: it passes the answers in their order,
//! and takes an open operation only to explain the next answer. What makes it fast, each sound for a store of this
//! kind:
//!
//! - An open read whose value is there is taken at once: it changes nothing, and taking it later is never better.
//! - A write of unknown outcome is dropped if no later operation needs its value: whatever follows it in an order
//!   overwrites it without reading it, so the order is valid without it.
//! - Equal writes of unknown outcome are taken in the order of their calls: they can be exchanged.
//! - A configuration is not searched again if one was that had taken fewer of the unknown writes and is otherwise the
//!   same: those not taken may be left for ever.
//!
//! The problem is NP-complete. A search that reaches a bound on the number of configurations ends with
//! [`Verdict::Undecided`]. Same input, same output: nothing here depends on a random hasher.

#![allow(clippy::disallowed_types, reason = "hashed with fixed keys, and never iterated")]

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Debug, Display},
    hash::{BuildHasherDefault, Hasher},
    mem,
};

use super::history::{Answer, Call, Operation, Outcome};

/// Configurations per key after which [`check`] gives up: some seconds, some hundred megabytes.
pub const DEFAULT_BOUND: u64 = 1_000_000;

/// How many operations of a counterexample are printed.
const SHOWN: usize = 40;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict<K, V> {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none. Proven by one key.
    NotLinearizable(Counterexample<K, V>),
    /// Not decided within the bound; no key is known to be wrong.
    Undecided {
        /// The first key that was not decided.
        key: K,
        /// Configurations looked at.
        examined: u64,
    },
}

impl<K, V> Verdict<K, V> {
    /// Whether it is surely so.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Verdict::Linearizable)
    }
}

/// A part of a history that no order explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample<K, V> {
    /// The key.
    pub key: K,
    /// What makes it impossible, shrunk from the shortest prefix of the key's history that cannot be explained. The
    /// last is the operation whose answer is one too many.
    pub operations: Vec<Operation<K, V>>,
    /// How many operations of the key had been answered when that answer came.
    pub answered: usize,
    /// Whether the operations shown suffice whatever the key held before them. If not, they begin with the empty store.
    pub whatever_before: bool,
    /// A value that was read and that no operation can have written, if that is the reason.
    pub never_written: Option<V>,
}

/// Whether these operations, in any order, of a store that began empty, are linearizable.
pub fn check<K: Ord + Clone, V: Ord + Clone>(operations: &[Operation<K, V>]) -> Verdict<K, V> {
    check_within(operations, DEFAULT_BOUND)
}

/// The same, with this bound on the configurations for each key.
pub fn check_within<K: Ord + Clone, V: Ord + Clone>(operations: &[Operation<K, V>], bound: u64) -> Verdict<K, V> {
    let mut keys: BTreeMap<&K, Vec<&Operation<K, V>>> = BTreeMap::new();
    for operation in operations {
        keys.entry(&operation.key).or_default().push(operation);
    }
    let mut undecided = None;
    for (key, operations) in keys {
        let steps = Step::of(&operations);
        match search(&steps, &[NOTHING], bound) {
            Found::Order => {}
            Found::None => return Verdict::NotLinearizable(explain(key, &operations, &steps, bound)),
            Found::Bound => undecided = undecided.or(Some(Verdict::Undecided { key: key.clone(), examined: bound })),
        }
    }
    undecided.unwrap_or(Verdict::Linearizable)
}

// --- operations as the search sees them

/// A value of one key, numbered.
type Number = u32;
/// The number of absence.
const NOTHING: Number = 0;
/// The instant after all others.
const NEVER: u64 = u64::MAX;

/// An operation as the search sees it: what must be there for it, and what is there then.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Which operation of the key.
    operation: usize,
    invoked: u64,
    /// [`NEVER`] if it may be left out.
    answered: u64,
    /// `None`: anything will do.
    need: Option<Number>,
    /// `None`: it changes nothing.
    then: Option<Number>,
    /// An answer that no store gives, such as a conflict with just what was expected.
    absurd: bool,
    /// What `need` and `then` are while the answer is not known.
    call: (Option<Number>, Option<Number>),
}

impl Step {
    /// Leaves out what surely had no effect, and reads that nobody answered.
    fn of<K, V: Ord>(operations: &[&Operation<K, V>]) -> Vec<Step> {
        let mut numbers: BTreeMap<&V, Number> = BTreeMap::new();
        let mut number = |value| Step::number(&mut numbers, value);
        let mut steps = Vec::with_capacity(operations.len());
        for (i, operation) in operations.iter().enumerate() {
            let call = match &operation.call {
                Call::Get => (None, None),
                Call::Put(value) => (None, Some(number(Some(value)))),
                Call::Delete => (None, Some(NOTHING)),
                Call::CompareAndSet { expect, value } => (Some(number(expect.as_ref())), Some(number(value.as_ref()))),
            };
            let (answered, (need, then), absurd) = match &operation.outcome {
                Outcome::Failed => continue,
                Outcome::Unknown => (NEVER, call, false),
                Outcome::Answered { at, answer } => {
                    let is_get = matches!(operation.call, Call::Get);
                    let (effect, absurd) = match answer {
                        Answer::Value(value) => ((Some(number(value.as_ref())), None), !is_get),
                        Answer::Done => (call, is_get),
                        Answer::Replaced(value) => {
                            let value = number(value.as_ref());
                            ((Some(value), call.1), is_get || call.0.is_some_and(|expect| expect != value))
                        }
                        Answer::Conflict(value) => {
                            let value = number(value.as_ref());
                            ((Some(value), None), call.0.is_none_or(|expect| expect == value))
                        }
                    };
                    (*at, effect, absurd)
                }
            };
            steps.push(Step { operation: i, invoked: operation.invoked, answered, need, then, absurd, call });
        }
        steps.sort_by_key(|step| (step.invoked, step.operation));
        steps
    }

    fn number<'a, V: Ord>(numbers: &mut BTreeMap<&'a V, Number>, value: Option<&'a V>) -> Number {
        let next = numbers.len() as Number + 1;
        value.map_or(NOTHING, |value| *numbers.entry(value).or_insert(next))
    }

    /// May be left out.
    fn is_optional(&self) -> bool {
        self.answered == NEVER
    }

    /// Changes nothing where it can be taken.
    fn is_read(&self) -> bool {
        self.then.is_none() || self.then == self.need
    }

    /// What is there after it, if it can be taken.
    fn take(&self, state: Number) -> Option<Number> {
        let possible = !self.absurd && self.need.is_none_or(|need| need == state);
        possible.then(|| self.then.unwrap_or(state))
    }
}

/// Without the optional steps that no order needs.
fn prune(steps: &[Step]) -> Vec<Step> {
    let mut steps = steps.to_vec();
    loop {
        // When a value is needed for the last time.
        let mut needed: BTreeMap<Number, u64> = BTreeMap::new();
        for step in steps.iter() {
            if let Some(need) = step.need {
                let last = needed.entry(need).or_default();
                *last = step.answered.max(*last);
            }
        }
        let before = steps.len();
        steps.retain(|step| {
            let of_use = |then| needed.get(&then).is_some_and(|last| *last >= step.invoked);
            !step.is_optional() || (!step.is_read() && step.then.is_some_and(of_use))
        });
        if steps.len() == before {
            return steps;
        }
    }
}

// --- the search

/// How a search ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Order,
    None,
    Bound,
}

/// A set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, bit: usize) -> bool {
        self.0.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn set(&mut self, bit: usize) {
        if self.0.len() <= bit / 64 {
            self.0.resize(bit / 64 + 1, 0);
        }
        self.0[bit / 64] |= 1 << (bit % 64);
    }

    /// Equal sets are equal words: no zeros at the end.
    fn clear(&mut self, bit: usize) {
        if let Some(word) = self.0.get_mut(bit / 64) {
            *word &= !(1 << (bit % 64));
        }
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn is_subset(&self, other: &Bits) -> bool {
        self.0.iter().enumerate().all(|(i, word)| word & !other.0.get(i).copied().unwrap_or(0) == 0)
    }
}

/// How far an order has come.
#[derive(Clone, Debug, Default)]
struct Configuration {
    /// Answers passed.
    passed: usize,
    state: Number,
    /// Steps taken whose answer has not been passed, by their slot.
    taken: Bits,
    /// Optional steps taken.
    spent: Bits,
}

/// The steps of one key, laid out for the search.
struct Course<'a> {
    /// The steps that have an answer, in the order of their answers.
    answers: Vec<&'a Step>,
    /// For each answer, the steps open just before it, as a range of `open`. The step itself is among them.
    ranges: Vec<(usize, usize)>,
    /// (index into `answers`, slot): a step has its slot for itself while it is open.
    open: Vec<(usize, usize)>,
    /// The slot of each answer's own step.
    slots: Vec<usize>,
    /// The optional steps by their calls.
    optional: Vec<&'a Step>,
    /// For each of them, the one before it that has the same effect.
    twins: Vec<Option<usize>>,
    /// For each answer, how many of the optional steps were called before it.
    callable: Vec<usize>,
}

impl<'a> Course<'a> {
    /// From steps in the order of their calls.
    fn new(steps: &'a [Step]) -> Course<'a> {
        let (optional, mut answers): (Vec<&Step>, Vec<&Step>) = steps.iter().partition(|step| step.is_optional());
        let calls = answers.clone();
        answers.sort_by_key(|step| (step.answered, step.invoked, step.operation));
        let place: BTreeMap<usize, usize> = answers.iter().enumerate().map(|(i, step)| (step.operation, i)).collect();

        let mut last: BTreeMap<_, usize> = BTreeMap::new();
        let twins = optional.iter().enumerate().map(|(i, step)| last.insert((step.need, step.then), i)).collect();

        let mut course = Course {
            ranges: vec![],
            open: vec![],
            slots: vec![0; answers.len()],
            optional,
            twins,
            callable: vec![],
            answers,
        };
        let (mut calls, mut now_open, mut free, mut slots) = (calls.into_iter().peekable(), Vec::new(), Vec::new(), 0);
        for (i, answer) in course.answers.iter().enumerate() {
            // A call at the instant of an answer is concurrent with it.
            while let Some(step) = calls.next_if(|step| step.invoked <= answer.answered) {
                let slot = free.pop().unwrap_or_else(|| {
                    slots += 1;
                    slots - 1
                });
                course.slots[place[&step.operation]] = slot;
                now_open.push((place[&step.operation], slot));
            }
            let begin = course.open.len();
            course.open.extend(&now_open);
            course.ranges.push((begin, course.open.len()));
            course.callable.push(course.optional.partition_point(|step| step.invoked <= answer.answered));
            now_open.retain(|(step, _)| *step != i);
            free.push(course.slots[i]);
        }
        course
    }

    fn open(&self, passed: usize) -> &[(usize, usize)] {
        let (begin, end) = self.ranges[passed];
        &self.open[begin..end]
    }

    /// Takes the reads that can be taken, and passes the answers whose steps were taken. True at the end.
    fn advance(&self, at: &mut Configuration) -> bool {
        while at.passed < self.answers.len() {
            for (step, slot) in self.open(at.passed) {
                let step = self.answers[*step];
                if step.is_read() && step.take(at.state).is_some() {
                    at.taken.set(*slot);
                }
            }
            let slot = self.slots[at.passed];
            if !at.taken.has(slot) {
                return false;
            }
            at.taken.clear(slot);
            at.passed += 1;
        }
        true
    }

    /// The nth way on from a configuration: first the step whose answer is next, then the others that are open, then
    /// the optional ones. `None` if there are no more; `Some(None)` if this one is not possible.
    fn way(&self, at: &Configuration, nth: usize) -> Option<Option<Configuration>> {
        let open = self.open(at.passed);
        if nth == 0 {
            return Some(self.take(at, at.passed, self.slots[at.passed]));
        }
        if let Some((step, slot)) = open.get(nth - 1) {
            let stays = *step == at.passed || at.taken.has(*slot);
            return Some(if stays { None } else { self.take(at, *step, *slot) });
        }
        let i = nth - 1 - open.len();
        (i < self.callable[at.passed]).then(|| self.spend(at, i))
    }

    fn take(&self, at: &Configuration, step: usize, slot: usize) -> Option<Configuration> {
        let state = self.answers[step].take(at.state)?;
        let mut next = Configuration { state, ..at.clone() };
        next.taken.set(slot);
        Some(next)
    }

    /// Takes an optional step.
    fn spend(&self, at: &Configuration, i: usize) -> Option<Configuration> {
        let waits_for_its_twin = self.twins[i].is_some_and(|twin| !at.spent.has(twin));
        if at.spent.has(i) || waits_for_its_twin {
            return None;
        }
        let state = self.optional[i].take(at.state)?;
        let mut next = Configuration { state, ..at.clone() };
        next.spent.set(i);
        Some(next)
    }
}

/// What was searched: for (answers passed, state, taken), the smallest sets of optional steps that had been spent.
type Seen = HashMap<(usize, Number, Bits), Vec<Bits>, BuildHasherDefault<Fixed>>;

/// Whether some order explains these steps, given in the order of their calls, from one of these states.
fn search(steps: &[Step], starts: &[Number], bound: u64) -> Found {
    let steps = prune(steps);
    let course = Course::new(&steps);
    let (mut seen, mut examined) = (Seen::default(), 0);
    let mut is_new = |at: &Configuration| {
        let spent = seen.entry((at.passed, at.state, at.taken.clone())).or_default();
        let known = spent.iter().any(|spent| spent.is_subset(&at.spent));
        if !known {
            spent.retain(|other| !at.spent.is_subset(other));
            spent.push(at.spent.clone());
        }
        !known
    };
    let mut path = Vec::new();
    for start in starts {
        let mut begin = Configuration { state: *start, ..Configuration::default() };
        if course.advance(&mut begin) {
            return Found::Order;
        }
        path.push((begin, 0));
    }
    while let Some((at, nth)) = path.last_mut() {
        let way = course.way(at, mem::replace(nth, *nth + 1));
        match way {
            None => drop(path.pop()),
            Some(None) => {}
            Some(Some(mut next)) => {
                if course.advance(&mut next) {
                    return Found::Order;
                }
                if is_new(&next) {
                    examined += 1;
                    if examined > bound {
                        return Found::Bound;
                    }
                    path.push((next, 0));
                }
            }
        }
    }
    Found::None
}

/// A hasher without a secret: the same run, the same order, on every machine.
#[derive(Default)]
struct Fixed(u64);

impl Hasher for Fixed {
    fn finish(&self) -> u64 {
        // The table looks at the upper bits too.
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

// --- the counterexample

/// Shrinks what cannot be explained. Every part that is returned was searched again and has no order either.
fn explain<K: Clone, V: Ord + Clone>(
    key: &K,
    operations: &[&Operation<K, V>],
    steps: &[Step],
    bound: u64,
) -> Counterexample<K, V> {
    // The shortest prefix: linearizability is closed under prefixes, so halving finds it. What cannot be decided
    // within the bound counts as explained, and the prefix is then longer than it need be.
    let mut instants: Vec<u64> = steps.iter().map(|step| step.answered).filter(|at| *at != NEVER).collect();
    instants.sort_unstable();
    let explained = |at: &u64| search(&until(steps, *at), &[NOTHING], bound) != Found::None;
    let mut first = instants.partition_point(explained).min(instants.len() - 1);
    let mut part = until(steps, instants[first]);
    if search(&part, &[NOTHING], bound) != Found::None {
        // Only if some prefix was not decided; the whole was.
        first = instants.len() - 1;
        part = steps.to_vec();
    }
    let mut whatever_before = false;

    let from_nowhere = part.iter().filter(|step| !step.is_optional()).find(|step| {
        let written = |need| part.iter().any(|other| other.then == Some(need) && !other.is_read());
        step.need.is_some_and(|need| need != NOTHING && !written(need))
    });
    let from_nowhere = from_nowhere.copied();
    if let Some(step) = from_nowhere {
        part = vec![step];
    } else {
        // Then without what had been answered before some instant, if the rest has no order whatever was there. What is
        // left out and overlaps the rest may be taken or not.
        part = prune(&part);
        let inexplicable_after = |cut: &u64| {
            let rest = after(&part, *cut);
            !rest.is_empty() && search(&rest, &starts(&rest), bound) == Found::None
        };
        let cut = instants[..=first].partition_point(inexplicable_after);
        if cut > 0 {
            part = prune(&after(&part, instants[cut - 1]));
            whatever_before = true;
        }
        // Then without reads that it does not take. (A write could not be left out: a read of it would remain.)
        let mut i = part.len();
        while i > 0 && part.len() <= 200 {
            i -= 1;
            let mut fewer = part.clone();
            let removed = fewer.remove(i);
            let starts = if whatever_before { starts(&fewer) } else { vec![NOTHING] };
            let needless = || search(&fewer, &starts, bound) == Found::None;
            if removed.is_read() && !removed.is_optional() && needless() {
                part = prune(&fewer);
                i = i.min(part.len());
            }
        }
    }
    // The answer that is one too many comes last.
    part.sort_by_key(|step| (step.answered == instants[first], step.invoked, step.operation));
    let never_written = from_nowhere.and_then(|step| needed_by(operations[step.operation]));
    let operations = part.iter().map(|step| operations[step.operation].clone()).collect();
    Counterexample { key: key.clone(), operations, answered: first + 1, whatever_before, never_written }
}

/// The value that must have been there for an operation's answer.
fn needed_by<K, V: Clone>(operation: &Operation<K, V>) -> Option<V> {
    match (&operation.outcome, &operation.call) {
        (Outcome::Answered { answer: Answer::Value(v) | Answer::Replaced(v) | Answer::Conflict(v), .. }, _) => {
            v.clone()
        }
        (_, Call::CompareAndSet { expect, .. }) => expect.clone(),
        _ => None,
    }
}

/// What was known at an instant: what was called later did not happen, and what was answered later is open.
fn until(steps: &[Step], instant: u64) -> Vec<Step> {
    let known = |step: &Step| match step.answered <= instant {
        true => *step,
        false => Step { answered: NEVER, need: step.call.0, then: step.call.1, absurd: false, ..*step },
    };
    steps.iter().filter(|step| step.invoked <= instant).map(known).collect()
}

/// Without what was answered up to an instant; of that, what overlaps the rest becomes optional.
fn after(steps: &[Step], instant: u64) -> Vec<Step> {
    let stays = |step: &Step| step.answered > instant;
    let Some(begin) = steps.iter().filter(|step| stays(step) && !step.is_optional()).map(|step| step.invoked).min()
    else {
        return Vec::new();
    };
    let overlaps = |step: &&Step| step.answered >= begin;
    let loosened = |step: &Step| Step { answered: if stays(step) { step.answered } else { NEVER }, ..*step };
    steps.iter().filter(overlaps).map(loosened).collect()
}

/// What may have been there before these steps: each value that one of them needs, and one that none needs.
fn starts(steps: &[Step]) -> Vec<Number> {
    let mut starts: Vec<Number> = steps.iter().filter_map(|step| step.need).collect();
    starts.push(Number::MAX);
    starts.sort_unstable();
    starts.dedup();
    starts
}

impl<K: Debug, V: Debug> Display for Verdict<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Linearizable => f.write_str("linearizable"),
            Verdict::NotLinearizable(counterexample) => write!(f, "{counterexample}"),
            Verdict::Undecided { key, examined } => {
                write!(f, "undecided: key {key:?} after {examined} configurations")
            }
        }
    }
}

impl<K: Debug, V: Debug> Display for Counterexample<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counterexample { key, operations, answered, whatever_before, never_written } = self;
        writeln!(f, "not linearizable: key {key:?}, with the answer number {answered} on it")?;
        match (never_written, whatever_before) {
            (Some(value), _) => writeln!(f, "nobody had written {value:?}:")?,
            (None, true) => writeln!(f, "whatever was there before, no order explains these, and the last least:")?,
            (None, false) => writeln!(f, "from an empty store, no order explains these, and the last least:")?,
        }
        let hidden = operations.len().saturating_sub(SHOWN);
        if hidden > 0 {
            writeln!(f, "   ({hidden} earlier operations are not shown)")?;
        }
        for (i, operation) in operations.iter().enumerate().skip(hidden) {
            writeln!(f, "{} {operation}", if i + 1 == operations.len() { "->" } else { "  " })?;
        }
        Ok(())
    }
}
