//! What the processes told of their calls, as histories that a known checker judges: `tests/go/porcupine`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use etcd_concurrency::{Client, Queue, Session};

use crate::now;
use crate::support::go;
use crate::work::fifo;
use crate::world::World;

/// The kinds of workers that tell their calls, and the model that each is judged by.
const KINDS: [(&str, &str); 3] = [("owner", "lock"), ("counter", "counter"), ("fifo", "queue")];
/// For how long the calls on one object may be searched for an order.
const LIMIT: &str = "2m";

/// Judges the calls of all workers that told them, once they are gone.
pub(crate) async fn are_linearizable(world: &World, client: &Client) {
    // Kept where the logs are, or else if one of them is wrong.
    let kept = std::env::var_os("CLUSTER_LOGS").map(PathBuf::from);
    let folder = kept.clone().unwrap_or_else(|| {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("histories-{}", std::process::id()))
    });
    std::fs::create_dir_all(&folder).unwrap();
    let mut files = Vec::new();
    for (kind, model) in KINDS {
        let mut history = written(kind, model, &world.told(kind)).unwrap_or_else(|wrong| panic!("{wrong}"));
        if kind == "fifo" {
            drain(client, &mut history).await;
        }
        let file = folder.join(format!("{kind}.jsonl"));
        std::fs::write(&file, history.lines).unwrap();
        files.push(file);
    }
    let judged = Command::new(go::program("porcupine"))
        .arg(format!("-limit={LIMIT}"))
        .args(&files)
        .output()
        .expect("it can be started");
    let told = String::from_utf8_lossy(&judged.stdout);
    let trouble = String::from_utf8_lossy(&judged.stderr);
    assert!(judged.status.success(), "the histories in {}:\n{told}{trouble}", folder.display());
    print!("{told}");
    if kept.is_none() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// A history as the checker reads it, and the objects in it.
struct History {
    lines: String,
    objects: BTreeSet<String>,
}

impl History {
    fn call(&mut self, [id, at, client, object, op]: [&str; 5], args: &str) {
        let line = format!(
            r#"{{"call":{id},"at":{at},"client":{client},"object":"{object}","op":"{op}","args":[{args}]}}"#
        );
        writeln!(self.lines, "{line}").expect("a string takes all");
        if !self.objects.contains(object) {
            self.objects.insert(object.to_owned());
        }
    }

    fn end(&mut self, id: &str, at: &str, outcome: &str, result: &str) {
        let line = format!(r#"{{"return":{id},"at":{at},"outcome":"{outcome}","result":[{result}]}}"#);
        writeln!(self.lines, "{line}").expect("a string takes all");
    }
}

/// What the workers of a kind told. Whether it makes sense is for the checker to say.
///
/// # Errors
/// What cannot be read, and where it is: by worker and line, both from 1 on.
fn written(kind: &str, model: &str, workers: &[Vec<String>]) -> Result<History, String> {
    let mut history = History { lines: format!("{{\"model\":\"{model}\"}}\n"), objects: BTreeSet::new() };
    for (worker, lines) in workers.iter().enumerate() {
        for (number, line) in lines.iter().enumerate() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            if !["call", "ok", "refused", "unknown"].contains(&word) {
                continue;
            }
            let wrong = |what: &str| format!("{kind} {}, line {}: {what}: {line:?}", worker + 1, number + 1);
            let fields: Vec<&str> = rest.split(' ').collect();
            let numbers = |fields: &[&str]| match fields.iter().find(|field| field.parse::<i64>().is_err()) {
                Some(field) => Err(wrong(&format!("{field:?} is no number"))),
                None => Ok(fields.join(",")),
            };
            match (word, &fields[..]) {
                ("call", &[at, id, client, object, op, ref args @ ..]) => {
                    numbers(&[at, id, client])?;
                    if !object.chars().chain(op.chars()).all(|c| c.is_ascii_alphanumeric() || c == '/') {
                        return Err(wrong("a name has letters, digits and slashes"));
                    }
                    history.call([id, at, client, object, op], &numbers(args)?);
                }
                ("ok" | "refused" | "unknown", &[at, id, ref result @ ..]) => {
                    numbers(&[at, id])?;
                    history.end(id, at, word, &numbers(result)?);
                }
                _ => return Err(wrong("too few fields")),
            }
        }
    }
    Ok(history)
}

/// Takes what is left in each queue: what is lost is missing then.
async fn drain(client: &Client, history: &mut History) {
    let session = Session::open(client).await.expect("a session");
    let mut id = 1;
    for object in history.objects.clone() {
        let queue = Queue::new(&session, &object).expect("a name");
        loop {
            let (number, at) = (id.to_string(), now().to_string());
            id += 1;
            let item = queue.try_dequeue().await.expect("an item, or none");
            let result = item.as_deref().map(|item| fifo::number(item).to_string());
            history.call([&number, &at, "999", &object, "dequeue"], "");
            history.end(&number, &now().to_string(), "ok", result.as_deref().unwrap_or_default());
            if result.is_none() {
                break;
            }
        }
    }
    session.close().await.expect("closed");
}

#[test]
fn what_was_told_is_written_for_the_checker() {
    let written = |lines: &[&str]| {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        written("counter", "counter", &[vec![], lines]).map(|history| history.lines)
    };
    let lines = ["call 10 7 2 counter/1 set 5 -6", "trouble 1 x", "ok 12 7 1", "call 13 8 2 counter/1 get"];
    let expected = r#"{"model":"counter"}
{"call":7,"at":10,"client":2,"object":"counter/1","op":"set","args":[5,-6]}
{"return":7,"at":12,"outcome":"ok","result":[1]}
{"call":8,"at":13,"client":2,"object":"counter/1","op":"get","args":[]}
"#;
    assert_eq!(written(&lines).as_deref(), Ok(expected));
    for (line, wrong) in [
        ("call 10 7 2 counter/1", "too few fields"),
        ("ok", "too few fields"),
        ("call 10 7 x counter/1 get", "\"x\" is no number"),
        ("call 10 7 2 counter/1 set 5 1.5", "\"1.5\" is no number"),
        ("call 10 7 2 counter\"1 get", "a name has letters"),
        ("unknown 12 y", "\"y\" is no number"),
    ] {
        let error = written(&["trouble", line]).expect_err(wrong);
        assert!(error.starts_with(&format!("counter 2, line 2: {wrong}")), "{error}");
    }
}
