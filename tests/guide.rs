//! What a program can check of docs/guide and docs/deploy: names of metrics, conditions and settings, figures, links.
//! It follows the links of README.md and of the pages beside it, too.
//!
//! A name in the guide that the code does not have is a mistake in one of the two. The failure names the file and the
//! name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use actorum::{Config, Reason};

/// Words in backticks that look like settings, and are something else: fields of the status, error codes, metrics,
/// words of other libraries and of other programs.
const NO_SETTINGS: &[&str] = &[
    // Statuses and answers.
    "applied_index",
    "log_bytes",
    "needs_version",
    "not_in_use",
    "refused_by",
    "time_ms",
    "timeout_ms",
    // A method of actix.
    "do_send",
    // Codes of errors.
    "deadline_exceeded",
    "foreign_position",
    "future_position",
    "in_progress",
    "learner_not_ready",
    "not_leader",
    "would_lose_majority",
];

/// The flags of `serve` that can be variables, and the filter of the logs.
const FLAGS: &[&str] =
    &["id", "data", "certs", "listen", "http", "admin", "admin_certs", "peers", "wait", "config", "log", "log_format"];

/// Files whose backticks also hold the words of other libraries.
const WORDS_OF_OTHERS: &str = "coming-from.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files under docs/, by their path from the root.
fn docs() -> BTreeMap<PathBuf, String> {
    let (mut folders, mut found) = (vec![root().join("docs")], BTreeMap::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                found.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
            }
        }
    }
    assert!(found.len() >= 9, "only {} files found: the walk is broken", found.len());
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn markdown() -> impl Iterator<Item = (PathBuf, String)> {
    docs().into_iter().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "md"))
}

/// Words of these characters.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// What stands in backticks, outside of blocks of code.
fn in_backticks(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, prose) in text.split("\n```").enumerate() {
        // Between the first pair of fences is the first block, and so on.
        if at % 2 == 0 {
            found.extend(prose.split('`').skip(1).step_by(2));
        }
    }
    found
}

fn is_name(text: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.contains('_')
        && !text.ends_with('_')
        && text.chars().all(letters)
        && text.starts_with(|c: char| c.is_ascii_lowercase())
}

fn none(rule: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{rule}:\n{}", wrong.join("\n"));
}

/// The names of the families of metrics, without the prefix, as the page of metrics makes them, and whether it is a
/// summary.
fn families() -> BTreeMap<String, bool> {
    let source = read("http/src/metrics.rs");
    let product = source.split("#[cfg(test)]").next().unwrap();
    let calls = ["gauge(", "counter(", "summary(", "family(", "column("];
    let mut families = BTreeMap::new();
    for call in calls {
        for (at, _) in product.match_indices(call) {
            let Some(argument) = product[at + call.len()..].trim_start().strip_prefix('"') else { continue };
            let name = argument.split('"').next().unwrap().to_owned();
            families.insert(name, call == "summary(");
        }
    }
    // What the binary adds, by its whole name.
    let added = read("cli/src/serve.rs");
    for (at, call) in added.match_indices(".counter(") {
        let name =
            added[at + call.len()..].trim_start().strip_prefix("\"actorum_").expect("a name of the binary's own");
        families.insert(name.split('"').next().unwrap().to_owned(), false);
    }
    assert!(families.len() > 50, "only {} families found: metrics.rs has changed its form", families.len());
    families
}

#[test]
fn every_metric_exists() {
    let families = families();
    let exists = |name: &str| {
        let summary = |suffix| name.strip_suffix(suffix).is_some_and(|name| families.get(name) == Some(&true));
        families.contains_key(name) || summary("_sum") || summary("_count")
    };
    // Crates, files and names of other kinds begin so, too.
    let others = ["machine", "core", "store", "actors", "transport", "testkit", "http"];
    let mut wrong = Vec::new();
    let mut named = BTreeSet::new();
    for (path, text) in docs() {
        for word in words(&text) {
            let Some(name) = word.strip_prefix("actorum_").filter(|name| !others.contains(name)) else { continue };
            named.insert(name.to_owned());
            if !exists(name) {
                wrong.push(format!("{}: {word}", path.display()));
            }
        }
    }
    none("metrics that http/src/metrics.rs and cli/src/serve.rs do not have", &wrong);
    assert!(named.len() > 40, "only {} metrics are named: the search is broken", named.len());
}

#[test]
fn the_dashboard_is_json_with_metrics_in_every_panel() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("docs/deploy/grafana.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().expect("targets");
        let metric = |target: &serde_json::Value| target["expr"].as_str().is_some_and(|e| e.contains("actorum_"));
        assert!(!targets.is_empty() && targets.iter().all(metric), "a panel without a metric: {panel}");
    }
}

/// Every alert has an expression and a summary. (Nothing here reads YAML; the form is that of the file.)
#[test]
fn every_alert_says_what_to_do() {
    let alerts = read("docs/deploy/alerts.yaml");
    let alerts: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 15, "only {} alerts found: the search is broken", alerts.len());
    for alert in alerts {
        for part in ["expr: ", "labels: { severity: ", "summary: "] {
            assert!(alert.contains(part), "{part} is missing: {alert}");
        }
    }
}

/// Conditions as labels, in the alerts and in the guide, the list of operating.md, and the table of binary.md.
#[test]
fn every_condition_is_explained_and_exists() {
    let operating = read("docs/guide/operating.md");
    let missing = |reason: &&Reason| !operating.contains(&format!("- **`{reason}`** ("));
    let missing: Vec<String> = Reason::ALL.iter().filter(missing).map(ToString::to_string).collect();
    none("conditions that docs/guide/operating.md does not explain", &missing);
    let bullets = operating.lines().filter_map(|line| line.strip_prefix("- **`")?.split("`** (").next());
    let strange = |name: &&str| name.parse::<Reason>().is_err();
    none("conditions that do not exist", &bullets.filter(strange).map(str::to_owned).collect::<Vec<_>>());

    // The table of the binary names some of them in pairs.
    let binary = read("docs/guide/binary.md");
    let rows = binary.split_once("\n## What is wrong").expect("a section").1.lines();
    let rows: Vec<&str> = rows.filter_map(|row| row.strip_prefix("| ")?.split(" | ").next()).skip(1).collect();
    let named: BTreeSet<&str> =
        rows.iter().flat_map(|cell| cell.split(", ")).map(|name| name.trim_matches('`')).collect();
    let all: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(named, all, "the conditions in the table of docs/guide/binary.md, and those that exist");

    let mut wrong = Vec::new();
    for (path, text) in docs() {
        for (at, label) in text.match_indices("condition=") {
            let value = text[at + label.len()..].trim_start_matches(['~', '\\', '"']);
            let value = value.split(['\\', '"']).next().unwrap();
            for name in value.split('|').filter(|name| *name != "...") {
                let known = |reason: &&Reason| match name.strip_suffix(".*") {
                    Some(prefix) => reason.name().starts_with(prefix),
                    None => reason.name() == name,
                };
                if !Reason::ALL.iter().any(|reason| known(&reason)) {
                    wrong.push(format!("{}: {name}", path.display()));
                }
            }
        }
    }
    none("labels of conditions that do not exist", &wrong);
}

/// The settings of a node, as they stand in a file.
fn settings() -> BTreeSet<String> {
    let config = serde_json::to_value(Config::default()).expect("a value");
    config.as_object().expect("an object").keys().cloned().collect()
}

#[test]
fn every_setting_exists() {
    let settings = settings();
    let known = |name: &str| {
        let reason = name.parse::<Reason>().is_ok();
        reason || settings.contains(name) || NO_SETTINGS.contains(&name) || name.starts_with("actorum_")
    };
    let code = words_of_the_code();
    let (mut wrong, mut named) = (Vec::new(), BTreeSet::new());
    for (path, text) in markdown().filter(|(path, _)| !path.ends_with(WORDS_OF_OTHERS)) {
        for quoted in in_backticks(&text) {
            // `response_check = "stop"` is about that setting, too.
            let name = quoted.split(" = ").next().unwrap();
            if is_name(name) {
                named.insert(name.to_owned());
                if !known(name) && !is_code(&path, name, &code) {
                    wrong.push(format!("{}: {name}", path.display()));
                }
            }
        }
    }
    none("settings that Config does not have (what is no setting stands in NO_SETTINGS)", &wrong);
    assert!(named.len() > 40, "only {} names found: the search is broken", named.len());

    // Settings as variables, in the files to deploy and everywhere else.
    let mut wrong = Vec::new();
    for (path, text) in docs() {
        for variable in words(&text).filter_map(|word| word.strip_prefix("ACTORUM_")) {
            let name = variable.to_ascii_lowercase();
            let of_a_service_manager = variable == "HTTP_PORT";
            if !settings.contains(&name) && !FLAGS.contains(&&*name) && !of_a_service_manager {
                wrong.push(format!("{}: ACTORUM_{variable}", path.display()));
            }
        }
    }
    none("variables that do not exist", &wrong);
}

/// Chapters for operators, which name nothing of the code but settings and what is in `NO_SETTINGS`.
const OF_OPERATORS: &[&str] = &[
    "binary.md",
    "disk-and-memory.md",
    "deploying.md",
    "operating.md",
    "disaster-recovery.md",
    "how-it-works.md",
    "limits.md",
    "settings.md",
];

/// Whether a name in a chapter about programming, or the name of a test, is a word of the code.
fn is_code(path: &Path, name: &str, code: &BTreeSet<String>) -> bool {
    let for_operators = OF_OPERATORS.iter().any(|file| path.ends_with(file));
    let test = read("cli/tests/binary/rotation.rs").contains(&format!("fn {name}("));
    test || !for_operators && code.contains(name)
}

/// The words of the library and of the examples.
fn words_of_the_code() -> BTreeSet<String> {
    let (mut folders, mut found) = (
        ["src", "machine/src", "actors/src", "actors/core/src", "actors/store/src", "examples"]
            .map(|at| root().join(at))
            .to_vec(),
        BTreeSet::new(),
    );
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.extend(words(&text).map(str::to_owned));
            }
        }
    }
    found
}

/// The table of settings.md: each setting with its default and its bounds.
#[test]
fn the_table_of_settings_is_right() {
    let table = read("docs/guide/settings.md");
    let config = serde_json::to_value(Config::default()).expect("a value");
    for bounds in Config::bounds() {
        let (key, least, most) = (bounds.key, bounds.least, bounds.most);
        let default = config[key].as_u64().map_or("drawn".to_owned(), |default| default.to_string());
        let row = format!("\n| `{key}` | {default} | {least} | {most} |\n");
        assert!(table.contains(&row), "docs/guide/settings.md lacks the row{row}");
    }
}

#[test]
fn every_link_has_a_target() {
    let (mut wrong, mut links) = (Vec::new(), 0);
    let pages = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "tests/README.md", "cli/README.md"];
    let pages = pages.map(|page| (PathBuf::from(page), read(page)));
    for (path, text) in markdown().chain(pages) {
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            links += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let found = match file {
                "" => root().join(&path),
                file => root().join(&path).parent().unwrap().join(file),
            };
            let headings = |file: &Path| fs::read_to_string(file).is_ok_and(|text| anchors(&text).contains(heading));
            if !found.exists() || !heading.is_empty() && !headings(&found) {
                wrong.push(format!("{}: {target}", path.display()));
            }
        }
    }
    none("links without a target", &wrong);
    assert!(links > 50, "only {links} links found: the search is broken");
}

/// A page that `src/guide.rs` does not include is not in the documentation, and none of its code is compiled.
#[test]
fn every_chapter_is_in_the_guide() {
    let guide = read("src/guide.rs");
    let chapters = markdown().filter(|(path, _)| path.starts_with("docs/guide"));
    let missing = chapters.filter(|(path, _)| !guide.contains(&format!("\"../{}\"", path.display())));
    none(
        "chapters that src/guide.rs does not include",
        &missing.map(|(path, _)| path.display().to_string()).collect::<Vec<_>>(),
    );
}

/// The anchors that headings get: lower case, without punctuation, with dashes for spaces.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let headings = markdown.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    };
    headings.map(anchor).collect()
}
