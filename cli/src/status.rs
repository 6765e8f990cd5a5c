//! `actorum status URL...`: one table for all nodes given, those that do not answer included.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    Failure,
    client::Client,
    output::{self, say},
};

/// Long enough for a busy node, short enough for a person.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Ask nodes how they are and print one table
///
/// Lag is how many entries a node has yet to apply of what the leader has committed. Snapshot is the last index that
/// the newest one covers, first the first index that the log still holds. Fails if no node answered.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the nodes' HTTP APIs are, such as http://127.0.0.1:8001
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Table,
    /// An array with one object per URL: url, status (or null), error (or null)
    Json,
}

/// How wide the table is.
const COLUMNS: usize = 11;
const LAST: usize = COLUMNS - 1;

/// A node's answer, or why there is none.
struct Asked {
    url: String,
    answer: Result<Value, String>,
}

/// Asks all nodes at once and prints what they say.
pub(crate) fn run(Args { urls, output }: Args) -> Result<(), Failure> {
    let client = Client::new(TIMEOUT);
    let asked: Vec<Asked> = thread::scope(|scope| {
        let asking: Vec<_> = urls.into_iter().map(|url| scope.spawn(|| ask(&client, url))).collect();
        asking.into_iter().map(|a| a.join().expect("asking does not panic")).collect()
    });
    match output {
        Output::Table => output::text(&table(&asked)),
        Output::Json => say!("{:#}", asked.iter().map(Asked::json).collect::<Value>()),
    }
    match asked.iter().any(|a| a.answer.is_ok()) {
        true => Ok(()),
        false => Err(Failure::new("no node answered")),
    }
}

fn ask(client: &Client, url: String) -> Asked {
    let base = if url.contains("://") { url.clone() } else { format!("http://{url}") };
    let answer = match client.get(&format!("{}/status", base.trim_end_matches('/'))) {
        Ok(answer) if answer.status == 200 && answer.body["id"].is_u64() => Ok(answer.body),
        Ok(answer) => Err(format!("not a node's status (HTTP {})", answer.status)),
        Err(e) => Err(e.to_string()),
    };
    Asked { url, answer }
}

impl Asked {
    fn json(&self) -> Value {
        json!({ "url": self.url, "status": self.answer.as_ref().ok(), "error": self.answer.as_ref().err() })
    }

    /// The columns of a node that answered.
    fn row(status: &Value, committed: Option<u64>) -> [String; COLUMNS] {
        let number = |name: &str| status[name].as_u64();
        let show = |value: Option<u64>| value.map_or("-".to_owned(), |n| n.to_string());
        let lag = committed.zip(number("applied_index")).map(|(there, here)| there.saturating_sub(here));
        let trouble = [&status["stopped"], &status["last_error"]].into_iter().find_map(Value::as_str);
        let (name, trouble) = match (&status["stopped"], trouble) {
            (Value::String(_), Some(cause)) => ("stopped", cause),
            (_, trouble) => (status["role"].as_str().unwrap_or("-"), trouble.unwrap_or("")),
        };
        [
            show(number("id")),
            name.to_owned(),
            show(number("term")),
            show(number("leader")),
            show(number("commit_index")),
            show(number("applied_index")),
            show(lag),
            show(number("snapshot_index")),
            show(number("first_index")),
            number("disk_bytes").map_or("-".to_owned(), bytes),
            note(status, trouble),
        ]
    }
}

/// The last column: what is wrong and the way out, or the last error; and how far snapshots are.
fn note(status: &Value, trouble: &str) -> String {
    let conditions = status["conditions"].as_array();
    let condition = |c: &Value| Some(format!("{}: {}", c["reason"].as_str()?, c["message"].as_str()?));
    let mut notes: Vec<String> = conditions.into_iter().flatten().filter_map(condition).collect();
    if notes.is_empty() {
        let trouble = if trouble.is_empty() { disk(&status["disk"]) } else { trouble.to_owned() };
        notes.extend((!trouble.is_empty()).then_some(trouble));
    }
    for waiting in status["versions"]["not_in_use"].as_array().into_iter().flatten() {
        let lacking: Vec<String> = waiting["lacking"].as_array().into_iter().flatten().map(Value::to_string).collect();
        if let (Some(what), false) = (waiting["what"].as_str(), lacking.is_empty()) {
            notes.push(format!("{what} is not in use: lacking on {}", lacking.join(" ")));
        }
    }
    let snapshots = &status["snapshots"];
    if snapshots["building"].is_object() {
        notes.push(format!("building snapshot {}", transfer(&snapshots["building"])));
    }
    for (name, doing) in [("receiving", "receiving from"), ("sending", "sending to")] {
        let under_way = snapshots[name].as_object().into_iter().flatten();
        notes.extend(under_way.map(|(peer, how_far)| format!("{doing} {peer}: snapshot {}", transfer(how_far))));
    }
    if let Some(error) = snapshots["last_error"].as_str() {
        notes.push(format!("snapshots: {error}"));
    }
    notes.join("; ")
}

/// `120, 12.0 MiB of 40.0 MiB, 3.0 MiB/s`.
fn transfer(transfer: &Value) -> String {
    let number = |name: &str| transfer[name].as_u64().unwrap_or(0);
    let of = if number("total") == 0 { String::new() } else { format!(" of {}", bytes(number("total"))) };
    format!("{}, {}{of}, {}/s", number("index"), bytes(number("bytes")), bytes(number("rate")))
}

/// What is wrong with a disk, if anything is.
fn disk(disk: &Value) -> String {
    let ms = |name: &str| disk[name].as_u64().unwrap_or(0);
    match disk["state"].as_str() {
        Some("slow") => format!("disk slow: a write waits for {} ms", ms("waiting_ms")),
        Some("suspect") => {
            format!("disk suspect for {} ms: a write waits for {} ms", ms("suspect_ms"), ms("waiting_ms"))
        }
        Some("low") => format!("disk low on space: {} free", bytes(ms("free_bytes"))),
        Some("dead") => format!("disk dead: {}", disk["cause"].as_str().unwrap_or("")),
        _ => String::new(),
    }
}

/// The table: columns as wide as they must be, numbers to the right.
fn table(asked: &[Asked]) -> String {
    // The leader says what is committed. A deposed leader may have an old answer, so the newest term wins.
    let answers = || asked.iter().filter_map(|a| a.answer.as_ref().ok());
    let leader = answers().filter(|s| s["role"] == "leader").max_by_key(|s| s["term"].as_u64());
    let committed = leader.and_then(|s| s["commit_index"].as_u64());

    let mut rows = vec![
        ["NODE", "ROLE", "TERM", "LEADER", "COMMIT", "APPLIED", "LAG", "SNAPSHOT", "FIRST", "DISK", ""]
            .map(str::to_owned),
    ];
    for Asked { url, answer } in asked {
        rows.push(match answer {
            Ok(status) => Asked::row(status, committed),
            Err(e) => {
                let mut row = [const { String::new() }; COLUMNS].map(|_| "-".to_owned());
                row[1] = "unreachable".to_owned();
                row[COLUMNS - 1] = format!("{url}: {e}");
                row
            }
        });
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            1 | LAST => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `1.5 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader, a follower that lags, and a node that does not answer.
    #[test]
    fn one_table() {
        let node = |id: u64, role: &str, applied: u64| Asked {
            url: format!("http://127.0.0.1:800{id}"),
            answer: Ok(json!({
                "id": id, "role": role, "term": 3, "leader": 1, "commit_index": 120, "applied_index": applied,
                "snapshot_index": 100, "first_index": 51,
                "snapshots": { "building": null, "sending": if id == 1 {
                    json!({ "2": { "index": 100, "bytes": 12_582_912, "total": 41_943_040, "rate": 3_145_728 } })
                } else { json!({}) } },
                "conditions": if id == 1 {
                    json!([{ "reason": "clock_skew", "severity": "warning", "message": "set the clock" }])
                } else { json!([]) },
                "disk_bytes": 524_288, "stopped": null, "last_error": null,
                "disk": { "state": if id == 2 { "suspect" } else { "ok" }, "waiting_ms": 2100, "suspect_ms": 1100 },
            })),
        };
        let gone = Asked { url: "http://127.0.0.1:8003".to_owned(), answer: Err("connection refused".to_owned()) };
        assert_eq!(
            table(&[node(1, "leader", 120), node(2, "follower", 20), gone]),
            "\
NODE  ROLE         TERM  LEADER  COMMIT  APPLIED  LAG  SNAPSHOT  FIRST       DISK
   1  leader          3       1     120      120    0       100     51  512.0 KiB  clock_skew: set the clock; sending to 2: snapshot 100, 12.0 MiB of 40.0 MiB, 3.0 MiB/s
   2  follower        3       1     120       20  100       100     51  512.0 KiB  disk suspect for 1100 ms: a write waits for 2100 ms
   -  unreachable     -       -       -        -    -         -      -          -  http://127.0.0.1:8003: connection refused
"
        );
    }
}
