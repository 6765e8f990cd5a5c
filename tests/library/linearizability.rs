//! The judge of histories, judged: told stories whose verdict is known, and compared with all permutations.

use std::{collections::BTreeMap, time::Instant};

use crate::rng::Rng;
use actorum_testkit::{
    history::{Answer, Call, Operation, Outcome},
    linearizability::{Verdict, check, check_within},
};

type Op = Operation<u64, &'static str>;

/// A history written as its operations: `op(client, call, invoked, answered, answer)`, all on one key.
fn op(client: u64, call: Call<&'static str>, invoked: u64, at: u64, answer: Answer<&'static str>) -> Op {
    Operation { client, key: 1, call, invoked, outcome: Outcome::Answered { at, answer } }
}

fn put(client: u64, value: &'static str, invoked: u64, at: u64) -> Op {
    op(client, Call::Put(value), invoked, at, Answer::Done)
}

fn get(client: u64, invoked: u64, at: u64, value: Option<&'static str>) -> Op {
    op(client, Call::Get, invoked, at, Answer::Value(value))
}

fn cas(client: u64, from: &'static str, to: &'static str, invoked: u64, at: u64, answer: Answer<&'static str>) -> Op {
    op(client, Call::CompareAndSet { expect: Some(from), value: Some(to) }, invoked, at, answer)
}

fn unknown(client: u64, call: Call<&'static str>, invoked: u64) -> Op {
    Operation { client, key: 1, call, invoked, outcome: Outcome::Unknown }
}

fn failed(client: u64, call: Call<&'static str>, invoked: u64) -> Op {
    Operation { outcome: Outcome::Failed, ..unknown(client, call, invoked) }
}

/// Illegal, and the counterexample ends with the answer that is one too many and has no more operations than these.
fn illegal(what: &str, history: &[Op], last: &Op, most: usize) {
    assert!(!all_orders(history), "{what}: the story itself is wrong");
    let verdict = check(history);
    let Verdict::NotLinearizable(counterexample) = &verdict else { panic!("{what}: {verdict}") };
    println!("{what}: {verdict}");
    assert_eq!(counterexample.operations.last(), Some(last), "{what}");
    assert!(counterexample.operations.len() <= most, "{what}: {verdict}");
    assert!(counterexample.operations.iter().all(|operation| history.contains(operation)), "{what}");
}

fn legal(what: &str, history: &[Op]) {
    assert!(all_orders(history), "{what}: the story itself is wrong");
    let verdict = check(history);
    assert!(verdict.is_linearizable(), "{what}: {verdict}");
}

#[test]
fn what_must_be_found() {
    let stale = [put(1, "a", 1, 2), put(1, "b", 3, 4), get(2, 5, 6, Some("a"))];
    illegal("a stale read", &stale, &stale[2], 2);

    let lost = [put(1, "a", 1, 2), get(2, 3, 4, None)];
    illegal("a lost write", &lost, &lost[1], 2);

    let invented = [put(1, "a", 1, 2), get(2, 3, 4, Some("z")), put(1, "z", 5, 6)];
    illegal("a value that nobody had written yet", &invented, &invented[1], 1);

    let failed_write = [failed(1, Call::Put("a"), 1), get(2, 2, 3, Some("a"))];
    illegal("a failed write that took effect", &failed_write, &failed_write[1], 1);

    let resurrected = [
        put(1, "a", 1, 2),
        op(1, Call::Delete, 3, 4, Answer::Replaced(Some("a"))),
        get(2, 5, 6, None),
        get(2, 7, 8, Some("a")),
    ];
    illegal("a deleted value that came back", &resurrected, &resurrected[3], 3);

    let twice = [
        put(1, "a", 1, 2),
        cas(1, "a", "b", 3, 10, Answer::Done),
        cas(2, "a", "c", 4, 11, Answer::Done),
        get(3, 12, 13, Some("c")),
    ];
    illegal("two compare-and-sets from one value", &twice, &twice[2], 3);

    let doubled = [
        put(1, "a", 1, 2),
        unknown(2, Call::CompareAndSet { expect: Some("a"), value: Some("b") }, 3),
        get(3, 4, 5, Some("b")),
        put(1, "a", 6, 7),
        get(3, 8, 9, Some("a")),
        get(3, 10, 11, Some("b")),
        cas(3, "b", "c", 12, 13, Answer::Done),
    ];
    illegal("an unknown write that took effect twice", &doubled, &doubled[5], 5);

    let backwards = [put(1, "a", 1, 2), put(1, "b", 3, 20), get(2, 4, 5, Some("b")), get(3, 6, 7, Some("a"))];
    illegal("reads that go backwards during a write", &backwards, &backwards[3], 3);

    let update = [
        put(1, "0", 1, 2),
        get(2, 3, 4, Some("0")),
        get(3, 3, 4, Some("0")),
        op(2, Call::Put("1"), 5, 6, Answer::Replaced(Some("0"))),
        op(3, Call::Put("2"), 7, 8, Answer::Replaced(Some("0"))),
    ];
    illegal("a lost update", &update, &update[4], 2);

    let too_early = [get(1, 1, 2, Some("a")), unknown(2, Call::Put("a"), 3)];
    illegal("an unknown write seen before it was called", &too_early, &too_early[0], 1);

    let absurd = [put(1, "a", 1, 2), cas(1, "a", "b", 3, 4, Answer::Conflict(Some("a")))];
    illegal("a conflict with what was expected", &absurd, &absurd[1], 1);

    let no_conflict = [put(1, "a", 1, 2), cas(2, "b", "c", 3, 4, Answer::Conflict(Some("d")))];
    illegal("a conflict with what was never there", &no_conflict, &no_conflict[1], 1);
}

#[test]
fn what_must_be_allowed() {
    legal("nothing", &[]);
    legal(
        "a concurrent read sees the old or the new",
        &[put(1, "a", 1, 2), put(1, "b", 3, 9), get(2, 4, 5, Some("a")), get(3, 6, 7, Some("b"))],
    );
    legal(
        "an unknown write that never happened",
        &[put(1, "a", 1, 2), unknown(2, Call::Put("b"), 3), get(1, 4, 5, Some("a"))],
    );
    legal(
        "an unknown write that happened much later",
        &[unknown(2, Call::Put("b"), 1), put(1, "a", 2, 3), get(1, 4, 5, Some("a")), get(1, 6, 7, Some("b"))],
    );
    legal(
        "an unknown compare-and-set in the midst of a chain",
        &[
            put(1, "a", 1, 2),
            unknown(2, Call::CompareAndSet { expect: Some("b"), value: Some("c") }, 3),
            cas(3, "a", "b", 4, 5, Answer::Done),
            cas(3, "c", "d", 6, 7, Answer::Replaced(Some("c"))),
        ],
    );
    legal(
        "unknown writes whose own values nobody saw, one of which made room for another",
        &[
            put(1, "a", 1, 2),
            unknown(2, Call::Delete, 3),
            unknown(2, Call::CompareAndSet { expect: None, value: Some("b") }, 4),
            get(3, 5, 6, Some("b")),
        ],
    );
    legal("answers at one instant are concurrent", &[put(1, "a", 1, 5), get(2, 5, 6, None)]);
    legal(
        "writes in the opposite order of their answers",
        &[
            put(1, "a", 1, 10),
            op(2, Call::Put("b"), 2, 9, Answer::Replaced(None)),
            get(3, 11, 12, Some("a")),
            get(3, 13, 14, Some("a")),
        ],
    );
    legal(
        "equal values written twice",
        &[
            put(1, "a", 1, 2),
            put(1, "b", 3, 4),
            unknown(2, Call::Put("a"), 5),
            get(3, 6, 7, Some("a")),
            get(3, 8, 9, Some("a")),
        ],
    );
    legal(
        "a write of what is there already",
        &[
            put(1, "a", 1, 2),
            op(2, Call::Put("a"), 3, 9, Answer::Replaced(Some("a"))),
            cas(3, "a", "b", 4, 5, Answer::Done),
            cas(3, "b", "a", 6, 7, Answer::Done),
        ],
    );
}

/// The bound is honest: what it cannot decide, it does not call legal, and a key that is surely wrong counts more.
#[test]
fn undecided() {
    // Writes that nobody can order, and a read at the end that nobody can explain.
    let hard = |key: u64, n: u64| -> Vec<Operation<u64, u64>> {
        let write = |i| Operation {
            client: i,
            key,
            call: Call::Put(i),
            invoked: 1,
            outcome: Outcome::Answered { at: 10 + i, answer: Answer::Done },
        };
        let read = |at: u64, value| Operation {
            client: 99,
            key,
            call: Call::Get,
            invoked: at,
            outcome: Outcome::Answered { at: at + 1, answer: Answer::Value(Some(value)) },
        };
        (0..n).map(write).chain([read(100, 0), read(102, 1)]).collect()
    };
    assert!(matches!(check_within(&hard(7, 16), 1000), Verdict::Undecided { key: 7, examined: 1000 }));
    assert!(matches!(check_within(&hard(7, 8), 100_000), Verdict::NotLinearizable(_)));
    let both = [hard(7, 16), hard(8, 2)].concat();
    let verdict = check_within(&both, 1000);
    assert!(matches!(&verdict, Verdict::NotLinearizable(counterexample) if counterexample.key == 8), "{verdict}");
}

// --- against all permutations

/// Whether any order of the operations explains the answers: tries them all, on the map itself.
fn all_orders<K: Ord + Clone, V: Ord + Clone>(operations: &[Operation<K, V>]) -> bool {
    fn go<K: Ord + Clone, V: Ord + Clone>(left: &mut Vec<&Operation<K, V>>, map: &BTreeMap<K, V>) -> bool {
        let answered = |o: &Operation<K, V>| match o.outcome {
            Outcome::Answered { at, .. } => Some(at),
            _ => None,
        };
        let Some(first_answer) = left.iter().filter_map(|o| answered(o)).min() else { return true };
        for i in 0..left.len() {
            if left[i].invoked > first_answer {
                continue; // somebody had been answered before it was called
            }
            let next = left.remove(i);
            let (mut after, current) = (map.clone(), map.get(&next.key).cloned());
            let (applies, value) = match &next.call {
                Call::Get => (false, None),
                Call::Put(value) => (true, Some(value.clone())),
                Call::Delete => (true, None),
                Call::CompareAndSet { expect, value } => (*expect == current, value.clone()),
            };
            if applies {
                match value {
                    Some(value) => drop(after.insert(next.key.clone(), value)),
                    None => drop(after.remove(&next.key)),
                }
            }
            let true_answer = match &next.outcome {
                Outcome::Failed => unreachable!("left out before"),
                Outcome::Unknown => true,
                Outcome::Answered { answer, .. } => match answer {
                    Answer::Value(value) => matches!(next.call, Call::Get) && *value == current,
                    Answer::Done => applies,
                    Answer::Replaced(value) => applies && *value == current,
                    Answer::Conflict(value) => {
                        matches!(next.call, Call::CompareAndSet { .. }) && !applies && *value == current
                    }
                },
            };
            let found = true_answer && go(left, &after);
            left.insert(i, next);
            if found {
                return true;
            }
        }
        false
    }
    let mut left: Vec<_> = operations.iter().filter(|o| o.outcome != Outcome::Failed).collect();
    go(&mut left, &BTreeMap::new())
}

/// How random histories are made.
struct Shape {
    operations: u64,
    clients: u64,
    keys: u64,
    /// Values to choose from; 0 for a new one each time.
    values: u64,
    /// Of a thousand answers, how many are lost.
    unknown: u64,
    /// Of a thousand answers, how many are replaced by others.
    lies: u64,
    /// Whether writes say what they replaced: never, sometimes, always.
    tells: u64,
}

/// What happens to an operation: it takes effect, or its answer arrives.
type Happening = (usize, Option<Answer<u64>>);

/// Clients of a true store: every operation takes effect between its call and its answer, or, if its answer is lost, at
/// any time or never. Then some answers are replaced.
fn random(rng: &mut Rng, shape: &Shape) -> Vec<Operation<u64, u64>> {
    let mut operations: Vec<Operation<u64, u64>> = Vec::new();
    let mut map: BTreeMap<u64, u64> = BTreeMap::new();
    // By instant and name.
    let mut events: BTreeMap<(u64, u64), Happening> = BTreeMap::new();
    let (mut now, mut number, mut fresh) = (0, 0, 0);
    let mut idle: Vec<u64> = (1..=shape.clients).collect();
    let any = |rng: &mut Rng, fresh: &mut u64| {
        *fresh += 1;
        if shape.values == 0 { *fresh } else { rng.below(shape.values) }
    };
    while number < shape.operations || !events.is_empty() {
        now += rng.below(2);
        if number < shape.operations && !idle.is_empty() && rng.below(2) == 0 {
            let client = idle.swap_remove(rng.below(idle.len() as u64) as usize);
            let key = rng.below(shape.keys);
            let call = match rng.below(8) {
                0..3 => Call::Get,
                3..5 => Call::Put(any(rng, &mut fresh)),
                5 => Call::Delete,
                _ => {
                    let known = map.get(&key).copied();
                    let expect = if rng.below(3) == 0 && fresh > 0 { Some(rng.below(fresh)) } else { known };
                    let value = (rng.below(5) != 0).then(|| any(rng, &mut fresh));
                    Call::CompareAndSet { expect, value }
                }
            };
            operations.push(Operation { client, key, call, invoked: now, outcome: Outcome::Unknown });
            let wait = 1 + rng.below(3 * shape.clients);
            events.insert((now + wait, number), (number as usize, None));
            number += 1;
            continue;
        }
        let Some(((at, name), (i, answer))) = events.pop_first() else { continue };
        now = now.max(at);
        let operation = &mut operations[i];
        if let Some(answer) = answer {
            operation.outcome = Outcome::Answered { at: now, answer };
            idle.push(operation.client);
            continue;
        }
        // It takes effect; what was lost may do so any time later, or never.
        let lost = rng.below(1000) < shape.unknown;
        if lost && !idle.contains(&operation.client) {
            idle.push(operation.client);
            match rng.below(4) {
                0 => continue,
                1 => {}
                _ => {
                    // Marked as lost by its name, so that it is not answered then.
                    events.insert((now + rng.below(100 * shape.clients), name | 1 << 60), (i, None));
                    continue;
                }
            }
        }
        let lost = lost || name >> 60 == 1;
        let current = map.get(&operation.key).copied();
        let (applies, value) = match &operation.call {
            Call::Get => (false, None),
            Call::Put(value) => (true, Some(*value)),
            Call::Delete => (true, None),
            Call::CompareAndSet { expect, value } => (*expect == current, *value),
        };
        if applies {
            match value {
                Some(value) => drop(map.insert(operation.key, value)),
                None => drop(map.remove(&operation.key)),
            }
        }
        if lost {
            continue;
        }
        let told = |rng: &mut Rng, true_value| match rng.below(1000) < shape.lies {
            true => (rng.below(4) > 0).then(|| rng.below(fresh.max(1).min(shape.values.max(3)))),
            false => true_value,
        };
        let answer = match (&operation.call, applies) {
            (Call::Get, _) => Answer::Value(told(rng, current)),
            (_, true) if rng.below(2) < shape.tells => Answer::Replaced(told(rng, current)),
            (_, true) => Answer::Done,
            (_, false) => Answer::Conflict(told(rng, current)),
        };
        // Sometimes an answer that belongs to another question.
        let answer = match answer {
            Answer::Value(value) | Answer::Replaced(value) | Answer::Conflict(value)
                if rng.below(8000) < shape.lies =>
            {
                [Answer::Value(value), Answer::Replaced(value), Answer::Conflict(value), Answer::Done]
                    [rng.below(4) as usize]
                    .clone()
            }
            answer => answer,
        };
        events.insert((now + rng.below(2 * shape.clients), name), (i, Some(answer)));
    }
    // Some of what was lost surely failed, or is said to.
    for operation in operations.iter_mut().filter(|operation| operation.outcome == Outcome::Unknown) {
        let had_no_effect = matches!(operation.call, Call::Get);
        if rng.below(2000) < if had_no_effect { 1000 } else { shape.lies } {
            operation.outcome = Outcome::Failed;
        }
    }
    operations
}

/// Thousands of small histories, legal and not: the same verdict as from trying all permutations.
#[test]
fn it_agrees_with_all_permutations() {
    let mut rng = Rng::new();
    let (mut legal, mut illegal, mut with_unknown) = (0, 0, 0);
    for round in 0..10_000 {
        let shape = Shape {
            operations: 3 + rng.below(6),
            clients: 1 + rng.below(5),
            keys: 1 + rng.below(2),
            values: rng.below(4),
            unknown: [0, 200, 500][rng.below(3) as usize],
            lies: [0, 300, 600, 1000][rng.below(4) as usize],
            tells: rng.below(3),
        };
        let history = random(&mut rng, &shape);
        let verdict = check(&history);
        let truth = all_orders(&history);
        let shown = || history.iter().map(|o| format!("key {} {o}\n", o.key)).collect::<String>();
        assert_eq!(verdict.is_linearizable(), truth, "round {round}: {verdict}\n{}", shown());
        if truth {
            legal += 1
        } else {
            illegal += 1
        }
        with_unknown += u64::from(history.iter().any(|o| o.outcome == Outcome::Unknown));
        if shape.lies == 0 {
            assert!(truth, "round {round}: a true store was simulated\n{}", shown());
        }
        if let Verdict::NotLinearizable(counterexample) = &verdict {
            assert!(
                counterexample.operations.iter().all(|o| history.contains(o) && o.key == counterexample.key),
                "round {round}"
            );
            // What is shown from the empty store on is a history by itself; but it lacks what the answers afterwards
            // tell.
            let itself = |o: &Operation<u64, u64>| history.iter().filter(|h| h.key == o.key).count();
            if !counterexample.whatever_before
                && counterexample.operations.len() == itself(&counterexample.operations[0])
            {
                assert!(!all_orders(&counterexample.operations), "round {round}: {verdict}\n{}", shown());
            }
        }
    }
    println!("{legal} legal, {illegal} illegal, {with_unknown} with unknown outcomes: no disagreement");
    assert!(legal > 1500 && illegal > 1500 && with_unknown > 1500, "all kinds occur");
}

/// As much as a long run of a cluster leaves behind: decided, and in a moment where the code is optimised.
#[test]
fn a_long_history() {
    let mut rng = Rng::new();
    let size = if cfg!(debug_assertions) { 20_000 } else { 100_000 };
    // (writes that tell what they replaced, keys, values, answers lost)
    for (tells, keys, values, unknown) in [(2, 50, 0, 4), (0, 50, 0, 4), (1, 50, 4, 4), (2, 50, 0, 40), (1, 5, 0, 4)] {
        let shape = Shape { operations: size, clients: 20, keys, values, unknown, lies: 0, tells };
        let mut history = random(&mut rng, &shape);
        let lost = history.iter().filter(|o| o.outcome == Outcome::Unknown).count();
        let begun = Instant::now();
        let verdict = check(&history);
        println!("{size} operations, {keys} keys, {lost} unknown: {verdict}, {:?}", begun.elapsed());
        assert!(verdict.is_linearizable(), "{verdict}");

        // One stale read, far in: what a read of the key had told long before.
        let mut reads: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (i, o) in history.iter().enumerate() {
            if matches!(o.outcome, Outcome::Answered { answer: Answer::Value(Some(_)), .. }) {
                reads.entry(o.key).or_default().push(i);
            }
        }
        let reads = reads.into_values().find(|reads| reads.len() > 60).expect("a key that is read often");
        let (old, late) = (reads[reads.len() / 2 - 20], reads[reads.len() / 2]);
        let Outcome::Answered { answer: old, .. } = history[old].outcome.clone() else { unreachable!() };
        let Outcome::Answered { answer, .. } = &mut history[late].outcome else { unreachable!() };
        *answer = old;
        let begun = Instant::now();
        let verdict = check(&history);
        println!("with a stale read: {:?}, {verdict}", begun.elapsed());
        // With few values it may have been true by chance.
        assert!(matches!(verdict, Verdict::NotLinearizable(_)) || values > 0, "{verdict}");
    }
}
