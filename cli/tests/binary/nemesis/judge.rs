//! What must hold when all is over: of what the clients saw, and of what the nodes applied.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    time::Duration,
};

use actorum_testkit::{
    history::{Answer, Call, Operation, Outcome},
    linearizability::{Verdict, check},
};
use serde_json::{Value, json};

use super::clients::{Http, KEYS, Note, Pages};

/// A command as a node applied it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Applied {
    index: u64,
    term: u64,
    command: Value,
}

/// Everything that a node has applied up to an index, from its own mouth.
pub(crate) fn applied(url: &str, upto: u64) -> Result<Vec<Applied>, String> {
    let (mut commands, mut after) = (Vec::<Applied>::new(), 0);
    let agent = ureq::Agent::new_with_config(
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(120))).proxy(None).build(),
    );
    'open: while after < upto {
        let begun = after;
        let response = agent.get(format!("{url}/events?after={after}")).call().map_err(|e| format!("{url}: {e}"))?;
        let (mut event, lines) = (String::new(), BufReader::new(response.into_body().into_reader()).lines());
        for line in lines {
            let line = line.map_err(|e| format!("{url}: the events broke off after {after}: {e}"))?;
            match line.split_once(": ") {
                Some(("event", name)) => event = name.to_owned(),
                Some(("data", data)) if event == "applied" => {
                    let data: Value = serde_json::from_str(data).map_err(|e| format!("{url}: {e}"))?;
                    let number = |name: &str| data[name].as_u64().ok_or(format!("{url}: no {name} in {data}"));
                    let (index, term) = (number("index")?, number("term")?);
                    if index <= after {
                        return Err(format!("{url} applied {index} after {after}"));
                    }
                    after = index;
                    commands.push(Applied { index, term, command: data["command"].clone() });
                    if after >= upto {
                        break 'open;
                    }
                }
                // Too slow for its buffer: it goes on where it was left.
                Some(("data", data)) if event == "lagged" && after > begun => {
                    let _ = data;
                    continue 'open;
                }
                Some(("data", data)) => return Err(format!("{url} said {event} after {after}: {data}")),
                _ => {}
            }
        }
        if after == begun {
            return Err(format!("{url}: the events ended at {after}, before {upto}"));
        }
    }
    Ok(commands)
}

/// Every node applied the same, and holds what comes of it.
pub(crate) fn same_everywhere(logs: &BTreeMap<u64, Vec<Applied>>, urls: &[(u64, String)]) -> Result<(), String> {
    let (first, log) = logs.first_key_value().ok_or("no logs")?;
    for (id, other) in logs {
        if let Some((a, b)) = log.iter().zip(other).find(|(a, b)| a != b) {
            return Err(format!("nodes {first} and {id} applied different commands:\n{a:?}\n{b:?}"));
        }
        if log.len() != other.len() {
            return Err(format!("nodes {first} and {id} applied {} and {} commands", log.len(), other.len()));
        }
    }
    let (_, state) = replay(log)?;
    let http = Http::new(Duration::from_secs(10));
    for (id, url) in urls {
        for key in (0..KEYS).map(|i| format!("k{i}")) {
            let told = http.get(&format!("{url}/kv/{key}?consistency=stale"));
            let value = match told {
                Ok((200, body)) => body["value"].as_str().map(str::to_owned),
                Ok((404, _)) => None,
                _ => return Err(format!("node {id} did not answer a stale read of {key}")),
            };
            if value != state.get(&key).cloned() {
                let should = state.get(&key);
                return Err(format!("node {id} holds {value:?} under {key}; what it applied makes {should:?}"));
            }
        }
    }
    Ok(())
}

/// What a command found under its key, and whether it took effect.
type Effect = (Option<String>, bool);

/// The effects of all commands, and the map at the end.
fn replay(log: &[Applied]) -> Result<(Vec<Effect>, BTreeMap<String, String>), String> {
    let mut effects = Vec::with_capacity(log.len());
    let mut map = BTreeMap::new();
    for applied in log {
        let (is_put, command) = match applied.command.get("put") {
            Some(put) => (true, put),
            None => (false, &applied.command["delete"]),
        };
        let text = |name: &str| command[name].as_str().map(str::to_owned);
        let key = text("key").ok_or(format!("no key in {applied:?}"))?;
        let found = map.get(&key).cloned();
        let holds = match &command["expect"] {
            Value::Null => true,
            expect if *expect == json!("absent") => found.is_none(),
            expect => found.as_deref() == expect["value"].as_str(),
        };
        effects.push((found, holds));
        if holds && is_put {
            map.insert(key, text("value").ok_or(format!("no value in {applied:?}"))?);
        } else if holds {
            map.remove(&key);
        }
    }
    Ok((effects, map))
}

/// No write was lost, and none was done twice: every write that was acknowledged is the command of the index that was
/// told, and what it told is true there; what surely failed is nowhere; what is unknown is there once or not at all.
/// Returns how many acknowledged writes were found.
pub(crate) fn once(log: &[Applied], pages: &Pages) -> Result<u64, String> {
    // What was acknowledged, by index; and what was written, by value.
    let mut acknowledged: BTreeMap<u64, (&Operation<String, String>, &Note)> = BTreeMap::new();
    let mut writers: BTreeMap<&str, &Operation<String, String>> = BTreeMap::new();
    for (operation, note) in pages.history.operations().iter().zip(&pages.notes) {
        if let Call::Put(value) | Call::CompareAndSet { value: Some(value), .. } = &operation.call {
            writers.insert(value, operation);
        }
        let is_write = !matches!(operation.call, Call::Get);
        if is_write && matches!(operation.outcome, Outcome::Answered { .. }) {
            let index = note.index.ok_or(format!("acknowledged without an index: {operation}"))?;
            if let Some((other, _)) = acknowledged.insert(index, (operation, note)) {
                return Err(format!("index {index} was acknowledged twice:\n{other}\n{operation}"));
            }
        }
    }
    let (mut found, mut seen) = (0, BTreeMap::<String, u64>::new());
    for (applied, (previous, holds)) in log.iter().zip(replay(log)?.0) {
        let command = &applied.command;
        if let Some(value) = command["put"]["value"].as_str() {
            if let Some(before) = seen.insert(value.to_owned(), applied.index) {
                return Err(format!("{value:?} was written twice, at {before} and {}", applied.index));
            }
            let writer = writers.get(value).ok_or(format!("nobody wrote {value:?}, applied at {}", applied.index))?;
            if writer.outcome == Outcome::Failed {
                return Err(format!("applied at {} though it was refused: {writer}", applied.index));
            }
        }
        let Some((operation, _)) = acknowledged.remove(&applied.index) else { continue };
        found += 1;
        let expected = match &operation.call {
            Call::Put(value) => json!({ "put": { "key": operation.key, "value": value } }),
            Call::Delete => json!({ "delete": { "key": operation.key } }),
            Call::CompareAndSet { expect, value } => {
                let expect = expect.as_ref().map_or(json!("absent"), |expect| json!({ "value": expect }));
                match value {
                    Some(value) => json!({ "put": { "key": operation.key, "value": value, "expect": expect } }),
                    None => json!({ "delete": { "key": operation.key, "expect": expect } }),
                }
            }
            Call::Get => unreachable!("not a write"),
        };
        let told = match &operation.outcome {
            Outcome::Answered { answer: Answer::Replaced(value), .. } => (value, true),
            Outcome::Answered { answer: Answer::Conflict(value), .. } => (value, false),
            _ => unreachable!("acknowledged"),
        };
        if *command != expected || told != (&previous, holds) {
            return Err(format!("at {} stands {command}, which found {previous:?}; but: {operation}", applied.index));
        }
    }
    match acknowledged.into_iter().next() {
        Some((index, (operation, note))) => {
            Err(format!("lost: index {index}, acknowledged by node {} at {:?}: {operation}", note.node, note.at))
        }
        None => Ok(found),
    }
}

/// What the clients saw has an order that explains it.
pub(crate) fn linearizable(pages: &Pages) -> Result<(), String> {
    match check(pages.history.operations()) {
        Verdict::Linearizable => Ok(()),
        verdict => Err(verdict.to_string()),
    }
}
