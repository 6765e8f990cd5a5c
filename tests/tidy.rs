//! Invariants of the architecture that a program can check.
//!
//! Each test names the rule, and its failure names the file and line. ARCHITECTURE.md says why the rule stands.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folders of the workspace that hold code.
const CODE: &[&str] =
    &["src", "machine", "actors", "transport", "testkit", "http", "cli", "examples", "tests", "benches"];

/// Every Rust file of the workspace.
fn sources() -> Vec<(PathBuf, String)> {
    let found = files(CODE, "rs");
    assert!(found.len() > 30, "only {} files found: the walk is broken", found.len());
    found
}

/// Every page of the repository.
fn pages() -> Vec<(PathBuf, String)> {
    let mut found = files(&[CODE, &["docs"]].concat(), "md");
    for page in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
        found.push((page.into(), text));
    }
    assert!(found.len() > 20, "only {} pages found: the walk is broken", found.len());
    found
}

/// The files under these folders whose names end so, by their path from the root.
fn files(folders: &[&str], extension: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|d| root.join(d)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == extension) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

/// The lines of a file that are code of the product: without comments and without its `#[cfg(test)]` module, which is
/// its last item. One that only names a file of tests (`mod tests;`) may stand anywhere.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut modules = text.match_indices("#[cfg(test)]\nmod ");
    let begins =
        |(at, attribute): &(usize, &str)| text[at + attribute.len()..].lines().next()?.ends_with('{').then_some(*at);
    let end = modules.find_map(|found| begins(&found)).unwrap_or(text.len());
    text[..end].lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(n, l)| (n + 1, l))
}

fn is_test_code(path: &Path) -> bool {
    path.starts_with("tests")
        || path.components().any(|c| ["tests", "testkit", "examples", "benches"].iter().any(|t| c.as_os_str() == *t))
        || path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("tests.rs"))
}

/// Lines of files chosen by `of` that contain one of `words`.
fn lines_with(of: impl Fn(&Path) -> bool, words: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| of(path)) {
        for (number, line) in code(text) {
            if words.iter().any(|word| line.contains(word)) {
                hits.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    hits
}

fn none(rule: &str, hits: Vec<String>) {
    assert!(hits.is_empty(), "{rule}:\n{}", hits.join("\n"));
}

/// What these crates may use, and so what they can touch: the compiler keeps the rest.
const MAY_USE: &[(&str, &[&str])] = &[
    ("machine", &["rmp-serde", "serde", "thiserror"]),
    (
        "actors/core",
        &[
            "actorum-machine",
            "bytes",
            "protobuf",
            "raft",
            "rmp-serde",
            "serde",
            "serde_bytes",
            "slog",
            "thiserror",
            "tracing",
            "twox-hash",
        ],
    ),
    (
        "actors/store",
        &[
            "actorum-core",
            "actorum-machine",
            "blake3",
            "bytes",
            "crc32fast",
            "rmp-serde",
            "rustix",
            "serde",
            "sled",
            "thiserror",
            "tracing",
            "zstd",
        ],
    ),
];

/// What they may use beside that, where a feature asks for it.
const MAY_USE_BY_FEATURE: &[(&str, &[&str])] =
    &[("machine", &["actix", "actix-web", "serde_json"]), ("actors/store", &["tokio"])];

#[test]
fn crates_use_what_they_may_touch_and_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (krate, allowed) in MAY_USE {
        let manifest = fs::read_to_string(root.join(krate).join("Cargo.toml")).unwrap();
        // Tables of other kinds, for one target or for one dependency, would be overlooked.
        let tables: Vec<&str> = manifest.lines().filter(|line| line.contains("dependencies")).collect();
        assert!(
            tables.iter().all(|table| ["[dependencies]", "[dev-dependencies]"].contains(table)),
            "{krate}: {tables:?}"
        );
        let (_, table) = manifest.split_once("[dependencies]\n").expect("a table of dependencies");
        let lines = table.lines().take_while(|line| !line.starts_with('[')).filter(|line| line.contains('='));
        let (optional, always): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.contains("optional = true"));
        let by_feature = MAY_USE_BY_FEATURE.iter().find(|(name, _)| name == krate).map_or(&[][..], |(_, names)| names);
        for (lines, allowed) in [(always, *allowed), (optional, by_feature)] {
            let name = |line: &str| line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned();
            let strange: Vec<String> = lines.into_iter().map(name).filter(|name| !allowed.contains(&&**name)).collect();
            assert!(strange.is_empty(), "{krate} uses {strange:?}: what it may touch is decided in ARCHITECTURE.md");
        }
        let default = manifest.lines().any(|line| line.starts_with("default ="));
        assert!(!default, "{krate} turns a feature on by default");
    }
}

/// Of std there is no crate to leave out.
#[test]
fn the_core_and_the_machine_know_no_clock_no_disk_no_thread_and_no_chance() {
    let pure =
        |path: &Path| (path.starts_with("actors/core/src") || path.starts_with("machine/src")) && !is_test_code(path);
    assert!(sources().iter().filter(|(path, _)| pure(path)).count() >= 50, "the core moved: change this test with it");
    let words = [
        "std::fs",
        "std::thread",
        "TcpStream",
        "UdpSocket",
        "Instant",
        "SystemTime::now",
        "async ",
        ".await",
        "HashMap",
        "HashSet",
        "RandomState",
    ];
    none("the core is a function of its inputs", lines_with(pure, &words));
}

#[test]
fn sled_is_used_in_one_file() {
    let elsewhere = |path: &Path| !is_test_code(path) && path != Path::new("actors/store/src/log/sled.rs");
    none(
        "only actors/store/src/log/sled.rs may name sled",
        lines_with(elsewhere, &["sled::Db", "sled::Tree", "sled::Config", "use sled", "sled::open"]),
    );
}

#[test]
fn the_simulated_disk_has_no_thread_no_clock_and_no_random_numbers() {
    let disk = |path: &Path| {
        let files =
            ["src/simulated.rs", "log/simulated.rs", "snapshot/simulated.rs"].iter().any(|file| path.ends_with(file));
        files
            || ["log/simulated", "simulated"]
                .iter()
                .any(|dir| path.starts_with(Path::new("actors/store/src").join(dir)))
    };
    assert_eq!(sources().iter().filter(|(path, _)| disk(path)).count(), 8, "the disk moved: change this test with it");
    let words = [
        "std::thread",
        "thread::",
        "spawn_blocking",
        "std::time::Instant",
        "SystemTime",
        "HashMap",
        "HashSet",
        "rand::",
    ];
    none("a simulated run repeats exactly", lines_with(disk, &words));
}

/// An unbiased select asks tokio's own generator whom to look at first: no seed repeats that.
#[test]
fn every_select_says_in_which_order_it_looks() {
    let libraries = |path: &Path| {
        let library =
            ["src", "machine/src", "actors/src", "actors/core/src", "actors/store/src", "transport/src", "testkit/src"]
                .iter()
                .any(|root| path.starts_with(root));
        // Sockets and their tests run in the real world, as the binary does.
        library && !path.starts_with("transport/src/quic")
    };
    let (mut found, mut unordered) = (0, Vec::new());
    for (path, text) in sources().iter().filter(|(path, _)| libraries(path)) {
        let lines: Vec<_> = code(text).collect();
        for pair in lines.windows(2).filter(|pair| pair[0].1.contains("select! {")) {
            found += 1;
            if pair[1].1.trim() != "biased;" {
                unordered.push(format!("{}:{}", path.display(), pair[0].0));
            }
        }
    }
    assert!(found > 5, "only {found} selects found: the search is broken");
    none("a select in what a simulation runs is biased", unordered);
}

/// What is planted for the simulator is not in a normal build.
#[test]
fn no_build_has_the_planted_mistakes_by_default() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for manifest in [
        "Cargo.toml",
        "machine/Cargo.toml",
        "actors/Cargo.toml",
        "actors/core/Cargo.toml",
        "actors/store/Cargo.toml",
        "transport/Cargo.toml",
        "testkit/Cargo.toml",
        "http/Cargo.toml",
        "cli/Cargo.toml",
    ] {
        let text = fs::read_to_string(root.join(manifest)).unwrap();
        let feature =
            |line: &&str| line.contains("planted") && !line.starts_with("planted =") && !line.starts_with('#');
        let named: Vec<_> = text.lines().filter(feature).collect();
        let in_tests = ["name = \"planted\"", "required-features = [\"planted\"]"];
        let others: Vec<_> = named.into_iter().filter(|line| !in_tests.contains(line)).collect();
        assert!(others.is_empty(), "{manifest} turns the mistakes on: {others:?}");
    }
}

#[test]
fn no_queue_is_unbounded() {
    let product = |path: &Path| !is_test_code(path);
    let words = ["unbounded_channel", "UnboundedSender", "mpsc::channel()", "unbounded()", "channel::unbounded"];
    none("every queue has a bound", lines_with(product, &words));
}

#[test]
fn actors_know_only_the_wire_and_the_messages_of_the_transport() {
    let actors = |path: &Path| path.starts_with("actors/src");
    none(
        "no sockets below the transport",
        lines_with(actors, &["transport::quic", "transport::tls", "quinn", "rustls"]),
    );
}

#[test]
fn only_the_clock_reads_the_clock() {
    let deciding = |path: &Path| {
        let decides = ["core.rs", "membership.rs", "applier.rs"].iter().any(|file| path.ends_with(file));
        path.starts_with("actors/src") && decides || path.starts_with("actors/src/membership")
    };
    none("time comes in through the Clock", lines_with(deciding, &["Instant::now", "SystemTime::now"]));
}

/// What the binary says can meet a closed or full stream: two files know how (promise 7). `backup` sends the bytes of a
/// file.
#[test]
fn the_binary_writes_to_its_standard_streams_in_two_files() {
    let others = |path: &Path| {
        let knows = ["output.rs", "logs.rs", "backup.rs"].iter().any(|file| path.ends_with(file));
        path.starts_with("cli/src") && !knows
    };
    none("output goes through output.rs, logs through logs.rs", lines_with(others, &["io::stdout()", "io::stderr()"]));
}

#[test]
fn every_file_opens_by_saying_what_it_is() {
    let silent: Vec<String> = sources()
        .iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    none("every file opens with //!", silent);
}

#[test]
fn nothing_is_unsafe_or_unfinished() {
    let all = |path: &Path| path != Path::new("tests/tidy.rs");
    none("no unsafe", lines_with(all, &["unsafe {", "unsafe fn", "unsafe impl"]));
    none("nothing unfinished", lines_with(all, &["todo!(", "unimplemented!(", "dbg!("]));
}

#[test]
fn the_world_cannot_reach_an_unwrap() {
    let product = |path: &Path| !is_test_code(path);
    none("an unwrap is for tests; `expect` says why it cannot fail", lines_with(product, &[".unwrap()"]));
}

/// Code, comments and pages keep to the width of rustfmt, which breaks no string and no comment by itself. Tables and
/// pictures may be wider, and so may what an assertion expects a program to print.
#[test]
fn lines_keep_to_the_width_of_rustfmt() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let settings = fs::read_to_string(root.join("rustfmt.toml")).unwrap();
    let width = settings.lines().find_map(|line| line.strip_prefix("max_width = ")).expect("a width in rustfmt.toml");
    let width: usize = width.parse().unwrap();
    let mut long = Vec::new();
    for (path, text) in sources().into_iter().chain(pages()) {
        let code = path.extension().is_some_and(|extension| extension == "rs");
        let (mut picture, mut printed) = (false, false);
        for (number, line) in text.lines().enumerate() {
            let comment =
                line.trim_start().strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!']).trim_start());
            let prose = if code { comment } else { Some(line) };
            // The text of a block is a picture in a comment; in a page it is code as any other.
            if comment.is_some_and(|text| text.starts_with("```")) {
                picture = comment.is_some_and(|text| text.starts_with("```text"));
            }
            printed = match printed {
                true => line != "\"",
                false => code && line.ends_with("\"\\"),
            };
            let table = prose.is_some_and(|text| text.starts_with('|'));
            let unbroken = line.split(' ').any(|word| word.chars().count() > width - 20);
            if line.chars().count() > width && !(table || unbroken || picture || printed) {
                long.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    none(&format!("a line has at most {width} columns"), long);
}

#[test]
fn the_readme_prints_the_counter_as_it_is_and_nothing_else_in_full() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let code = fs::read_to_string(root.join("examples/counter.rs")).unwrap();
    let printed = format!("<!-- examples/counter.rs -->\n```rust\n{code}```");
    assert!(readme.contains(&printed), "README.md does not print examples/counter.rs as it is");
    // What prints another one has to be compared here, too.
    assert_eq!(readme.matches("<!-- examples/").count(), 1, "README.md prints another example");
}

/// Who looks for an example finds all of them in the table of README.md and in the first chapter.
#[test]
fn every_example_has_a_link() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut examples = Vec::new();
    for entry in fs::read_dir(root.join("examples")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        examples.push(if entry.path().is_dir() { format!("{name}/main.rs") } else { name });
    }
    assert!(examples.len() >= 5, "only {examples:?} are found");
    let read = |page: &str| fs::read_to_string(root.join(page)).unwrap();
    let (readme, chapter) = (read("README.md"), read("docs/guide/first-application.md"));
    for example in examples {
        assert!(readme.contains(&format!("](examples/{example})")), "README.md has no link to examples/{example}");
        let link = format!("](../../examples/{example})");
        assert!(chapter.contains(&link), "docs/guide/first-application.md has no link to examples/{example}");
    }
    assert!(chapter.contains("](../../examples/kv/trio.rs)"), "the first chapter does not name the second file of kv");
}

#[test]
fn the_architecture_names_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let named: Vec<&str> = page
        .split(|c: char| !(c.is_ascii_alphanumeric() || "/._".contains(c)))
        .filter(|word| word.contains('/') && word.ends_with(".rs"))
        .collect();
    assert!(named.len() >= 10, "only {named:?} are named");
    for file in named {
        assert!(root.join(file).exists(), "ARCHITECTURE.md names {file}, which does not exist");
    }
}
