//! The plan of the house, held against the source: which room may know which.
//!
//! A room is a file or folder directly under `src`. It may use the rooms that its row below names
//! and itself, nothing else; how the rooms depend on one another is read here, in one place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use self::scan::{Found, scan};

mod scan;

/// The floors, from the top. A room may use every floor below its own, never its own or one above.
const FLOORS: &[&[&str]] = &[
    &["recipes"],
    &["mutex", "election", "stm"],
    &["waitlist"],
    &["view", "owned"],
    &["fence"],
    &["session"],
    // `model` is compiled for tests alone, and is what the protocols' models share.
    &["client", "model"],
    &["lease", "watch"],
    &["transport"],
    &["pb"],
];

/// Leaves, that every floor may use, and what they may use themselves.
const LEAVES: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("ids", &[]),
    ("key", &["ids"]),
    ("txn", &["pb", "key", "error"]),
    ("steps", &["error"]),
];

/// The fake stands outside: it may use these, and nobody may use it.
const FAKE: &[&str] = &["client", "transport", "pb", "txn", "key", "ids", "error"];

/// Files, or folders with all that is in them, that decide and are told the time: no runtime, no clock.
const PURE: &[&str] = &[
    "fake/check",
    "fake/core",
    "fake/keys",
    "fake/lessor",
    "fake/range",
    "fake/store",
    "fake/txn",
    "fake/watch",
    "key",
    "lease/clock",
    "recipes/semaphore/count",
    "stm/known",
    "stm/sets",
    "waitlist/decide",
    "watch/cursor",
    "watch/table",
];
const IMPURE: &[&str] = &["tokio", "Instant::now", "SystemTime::now"];

/// Past this a file wants another room.
const MOST_LINES: usize = 500;

/// Generated modules end so. Clients are for `transport` alone, servers for the fake; but files that
/// only tests are compiled with may play either part on the wire.
const CLIENTS: &str = "_client";
const SERVERS: &str = "_server";

#[test]
fn the_source_keeps_to_the_plan() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for path in rust_files(&src) {
        let source = std::fs::read_to_string(&path).expect("readable");
        let name = path.strip_prefix(&src).expect("under src").display().to_string();
        files.push((name.replace('\\', "/"), source));
    }
    assert!(!files.is_empty(), "no source in {}", src.display());
    let plan = Plan::read(&files);
    assert!(!plan.tests.is_empty(), "files of tests are not recognised any more");
    assert!(!plan.exports.is_empty(), "lib.rs's re-exports are not recognised any more");
    let broken: Vec<String> = files.iter().flat_map(|(file, source)| plan.check(file, source)).collect();
    assert!(broken.is_empty(), "the plan is broken:\n{}", broken.join("\n"));
}

/// What of the plan the source itself says.
#[derive(Default)]
struct Plan {
    /// Modules in files of their own that only tests are compiled with, as paths with `/`.
    tests: Vec<String>,
    /// lib.rs's re-exports: the name, and the room it is from.
    exports: BTreeMap<String, String>,
}

impl Plan {
    fn read(files: &[(String, String)]) -> Plan {
        let mut plan = Plan::default();
        for (file, source) in files {
            let module = modules(file);
            let root: &[&str] = if file == "lib.rs" { &[] } else { &module };
            for (_, found) in scan(source, root) {
                match found {
                    Found::TestFile(path) => plan.tests.push(path),
                    Found::Path(names) if file == "lib.rs" => {
                        let (room, name) = (&names[0], &names[names.len() - 1]);
                        plan.exports.insert(name.clone(), room.clone());
                    }
                    _ => {}
                }
            }
        }
        plan
    }

    /// The rules that `file`, named from `src` on, breaks; each as `src/file:line: what`.
    fn check(&self, file: &str, source: &str) -> Vec<String> {
        let path = modules(file);
        let room = path[0];
        let mut broken = Vec::new();
        let mut say = |line: usize, what: String| broken.push(format!("src/{file}:{line}: {what}"));

        let lines = source.lines().count();
        if lines > MOST_LINES && room != "pb" {
            say(lines, format!("{lines} lines; past {MOST_LINES} a file wants another room"));
        }
        if !known(room) {
            say(1, no_room(room));
            return broken;
        }
        let module = path.join("/");
        let for_tests = self.tests.iter().any(|test| within(&module, test));
        let pure = !for_tests && PURE.iter().any(|place| within(&module, place));
        let root: &[&str] = if room == "lib" { &[] } else { &path };
        for (line, found) in scan(source, root) {
            match found {
                Found::CratePath(used) => {
                    let used = self.exports.get(&used).unwrap_or(&used);
                    if let Some(rule) = forbids(room, used) {
                        say(line, rule);
                    }
                }
                Found::Path(names) => {
                    let part = |end: &str| names.iter().find(|name| name.ends_with(end));
                    if let Some(name) = part(CLIENTS).filter(|_| room != "transport" && !for_tests) {
                        say(line, format!("`{name}`: generated clients are for `transport` alone"));
                    }
                    if let Some(name) = part(SERVERS).filter(|_| room != "fake" && !for_tests) {
                        say(line, format!("`{name}`: generated servers are for `fake` alone"));
                    }
                    let joined = names.join("::");
                    let impure = IMPURE.iter().find(|word| contains_path(&joined, word));
                    if let Some(word) = impure.filter(|_| pure) {
                        say(line, format!("`{word}` in a pure file; take the time as an argument"));
                    }
                }
                Found::Feature(feature) => {
                    if feature == "fake" && !["lib", "fake"].contains(&room) {
                        say(line, "the feature `fake` is known to lib.rs and `fake` alone".into());
                    }
                }
                Found::TestFile(_) => {}
            }
        }
        // One line that names five things of one room breaks one rule.
        broken.dedup();
        broken
    }
}

/// The names from `src` on to the module that a file is.
fn modules(file: &str) -> Vec<&str> {
    file.trim_end_matches(".rs").split('/').filter(|name| *name != "mod").collect()
}

/// Whether the module `path` is `place` or inside it.
fn within(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn leaf(room: &str) -> Option<&'static [&'static str]> {
    LEAVES.iter().find(|(leaf, _)| *leaf == room).map(|(_, uses)| *uses)
}

fn known(room: &str) -> bool {
    floor(room).is_some() || leaf(room).is_some() || ["lib", "fake"].contains(&room)
}

fn no_room(name: &str) -> String {
    format!(
        "`{name}` is no room of the plan, nor anything that lib.rs re-exports from one; \
         a new room is given its place in tests/it/house"
    )
}

/// Why `room` may not name `crate::used`, if so.
fn forbids(room: &str, used: &str) -> Option<String> {
    if room == used || room == "lib" {
        return None;
    }
    if used == "fake" {
        return Some(format!("`{room}` uses `fake`; nothing in src does"));
    }
    if !known(used) {
        return Some(no_room(used));
    }
    let (allowed, why) = if room == "fake" {
        (FAKE.contains(&used), format!("the fake may use {}", FAKE.join(", ")))
    } else if let Some(uses) = leaf(room) {
        (uses.contains(&used), format!("it is a leaf, which may use [{}]", uses.join(", ")))
    } else {
        let below = leaf(used).is_some() || floor(room) < floor(used);
        (below, String::from("imports point down, never up or sideways"))
    };
    (!allowed).then(|| format!("`{room}` uses `{used}`; {why}"))
}

/// Whether a path has these segments next to each other.
fn contains_path(path: &str, part: &str) -> bool {
    format!("::{path}::").contains(&format!("::{part}::"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(dir).expect("a folder");
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// With `Error` from `error`, `Session` from `session`, and the files of tests `watch::tests`.
fn plan() -> Plan {
    let lib = "pub use error::{Error, Result};\npub use session::Session;";
    let watch = "#[cfg(test)]\npub(crate) mod tests;\nmod code;";
    Plan::read(&[("lib.rs".into(), lib.into()), ("watch/mod.rs".into(), watch.into())])
}

/// What the checker says of one line in a file, without the place.
fn verdicts(file: &str, source: &str) -> Vec<String> {
    let strip = |verdict: String| {
        let (_, rule) = verdict.split_once(": ").expect("a place and a rule");
        rule.to_owned()
    };
    plan().check(file, source).into_iter().map(strip).collect()
}

#[test]
fn what_points_down_may() {
    for (file, source) in [
        ("recipes/queue.rs", "use crate::{error::Error, mutex::Mutex, transport::Transport};"),
        ("mutex.rs", "use crate::waitlist::{self, Turn}; fn f(_: crate::key::Key) {}"),
        ("session/mod.rs", "use crate::session::cleanup; use crate::lease; mod cleanup;"),
        ("transport/mod.rs", "use crate::pb::etcdserverpb::kv_client::KvClient;"),
        ("fake/service.rs", "use crate::pb::etcdserverpb::kv_server::Kv; use crate::client::Client;"),
        ("watch/mod.rs", "use super::super::transport::Transport; mod tests { use super::*; }"),
        ("watch/cursor.rs", "//! Not tokio, nor Instant::now().\nfn now(now: Instant) {}"),
        ("lib.rs", "#[cfg(feature = \"fake\")] pub mod fake; pub use client::Client;"),
        ("stm/mod.rs", "pub(crate) fn f() { let s = \"crate::recipes\"; /* crate::recipes */ }"),
        ("stm/mod.rs", "fn f<'a>(c: char) { let _ = c == '\"'; let r = r#\"crate::\"recipes\"#; }"),
        ("watch/mod.rs", "fn f() -> crate::Error { crate::Error::new() }"),
        ("client.rs", "fn f() { let kv_client = 1; g(kv_client) }"),
    ] {
        assert_eq!(verdicts(file, source), Vec::<String>::new(), "{file}: {source}");
    }
}

#[test]
fn what_points_up_or_sideways_may_not() {
    for (file, source, rule) in [
        ("watch/mod.rs", "use crate::session::Session;", "`watch` uses `session`; imports point down"),
        ("watch/mod.rs", "use crate::lease::Clock;", "`watch` uses `lease`; imports point down"),
        ("mutex.rs", "fn f(_: &crate::election::Election) {}", "`mutex` uses `election`"),
        ("mutex.rs", "use crate::{key, pb::{x, y}, stm::Stm};", "`mutex` uses `stm`"),
        ("mutex.rs", "use super::recipes;", "`mutex` uses `recipes`"),
        ("lease/clock.rs", "use super::super::client::Client;", "`lease` uses `client`"),
        ("lease/mod.rs", "mod tests { use super::super::client::Client; }", "`lease` uses `client`"),
        ("key.rs", "use crate::error::Error;", "`key` uses `error`; it is a leaf"),
        ("client.rs", "use crate::fake::FakeEtcd;", "`client` uses `fake`; nothing in src does"),
        ("fake/mod.rs", "use crate::session::Session;", "`fake` uses `session`; the fake may use"),
        ("mutex.rs", "use super::*;", "`*` is no room of the plan"),
        ("mutex.rs", "use crate::*;", "`*` is no room of the plan"),
        ("mutex.rs", "use self::super::stm;", "`mutex` uses `stm`"),
        ("mutex.rs", "use crate::Client;", "`Client` is no room of the plan"),
        ("watch/mod.rs", "use crate::Session;", "`watch` uses `session`; imports point down"),
        ("attic.rs", "use crate::key::Key;", "`attic` is no room of the plan"),
        ("client.rs", "use pb::kv_client::KvClient;", "`kv_client`: generated clients are for"),
        ("client.rs", "use crate::pb::{kv_client::KvClient};", "`kv_client`: generated clients"),
        ("fake/service.rs", "use pb::kv_client::KvClient;", "`kv_client`: generated clients are for"),
        ("session/mod.rs", "fn f(_: pb::lease_server::Lease) {}", "`lease_server`: generated servers"),
        ("client.rs", "#[cfg(feature = \"fake\")] fn f() {}", "the feature `fake` is known to lib.rs"),
        ("stm/sets.rs", "use tokio::sync::Mutex;", "`tokio` in a pure file"),
        ("stm/sets.rs", "use ::tokio::{sync};", "`tokio` in a pure file"),
        ("fake/watch/group.rs", "fn f() { tokio::spawn(g()); }", "`tokio` in a pure file"),
        ("lease/clock.rs", "fn f() { let t = std::time::Instant::now(); }", "`Instant::now` in a pure"),
    ] {
        let said = verdicts(file, source);
        assert!(said.len() == 1 && said[0].starts_with(rule), "{file}: {source}: {said:?}");
    }
    let long = "\n".repeat(MOST_LINES + 1);
    assert_eq!(plan().check("mutex.rs", &long).len(), 1);
    assert_eq!(plan().check("pb.rs", &long).len(), 0);
}

#[test]
fn the_place_is_told() {
    let source = "//! Doc.\n\nuse crate::{\n    key,\n    session::Session,\n};\n";
    let said = plan().check("transport/retry.rs", source);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("src/transport/retry.rs:5: "), "{said:?}");
}

/// Their own tests speak to the fake as any client does, and to the watches as any server does.
#[test]
fn files_of_tests_may_play_client_and_server() {
    let source = "use crate::pb::{kv_client::KvClient, kv_server::Kv};";
    assert_eq!(plan().check("watch/tests.rs", source), Vec::<String>::new());
    assert_eq!(plan().check("watch/tests/wire.rs", source), Vec::<String>::new());
    for shipped in ["watch/mod.rs", "watch/code.rs", "watch/tests2.rs"] {
        assert_eq!(plan().check(shipped, source).len(), 2);
    }
    // The direction holds for them too.
    assert_eq!(plan().check("watch/tests.rs", "use crate::session::Session;").len(), 1);
}
