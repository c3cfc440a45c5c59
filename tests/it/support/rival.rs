//! Go's own client as a contender for the same lock or seat, or as an observer: see `tests/go/rival`.

use std::fs::OpenOptions;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::supervisor::Supervisor;
use super::{go, poll};

/// One time that a contender held the lock. Ours writes the same, so that one check reads both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    /// The create revision of the holder's key.
    pub(crate) token: i64,
    pub(crate) key: String,
    /// Unix nanoseconds.
    pub(crate) entered: u128,
    pub(crate) left: u128,
}

/// What a rival is to do.
#[derive(Clone, Copy)]
pub(crate) struct Order<'a> {
    /// `mutex`, `candidate` or `observer`.
    pub(crate) role: &'a str,
    pub(crate) endpoints: &'a str,
    pub(crate) name: &'a str,
    pub(crate) acquisitions: usize,
    /// The file that each contender creates anew inside its critical section.
    pub(crate) scratch: &'a Path,
}

/// A Go process that takes a lock again and again. Killed when dropped.
pub(crate) struct Rival {
    process: Supervisor,
}

impl Rival {
    /// Builds the program at its first use, then starts it.
    pub(crate) fn start(order: Order<'_>) -> Rival {
        let command = [
            go::program("rival").display().to_string(),
            format!("-as={}", order.role),
            format!("-endpoints={}", order.endpoints),
            format!("-name={}", order.name),
            format!("-n={}", order.acquisitions),
            format!("-scratch={}", order.scratch.display()),
        ];
        Rival { process: Supervisor::start(Supervisor::new_dir("rival"), command) }
    }

    /// For the verbs: `pause`, `resume`, `kill`.
    pub(crate) fn process(&self) -> &Supervisor {
        &self.process
    }

    /// The times it has held the lock so far.
    pub(crate) fn held(&self) -> Vec<Held> {
        self.lines("held ").iter().map(|line| parse(line)).collect()
    }

    /// What follows `prefix` in every line that has it.
    pub(crate) fn lines(&self, prefix: &str) -> Vec<String> {
        let output = self.process.output();
        // A line without its end is still being written.
        let lines = output.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines.filter_map(|line| line.strip_prefix(prefix)).map(|line| line.trim_end().to_owned()).collect()
    }

    /// Waits for its end, fails on an overlap or any other error, and gives what it held.
    pub(crate) async fn finish(self, within: Duration) -> Vec<Held> {
        let code = poll::until("the end of the rival", within, async || self.process.exit()).await;
        assert_ne!(code, 3, "two were inside at once:\n{}", self.process.tail());
        assert_eq!(code, 0, "the rival failed:\n{}", self.process.tail());
        self.held()
    }
}

/// A Go process that takes a lock again and again, over all trouble, holds it for a while as long as its session says
/// that it lives, and prints what it believed: see `tests/go/rival/holder.go`.
pub(crate) fn holder(
    endpoints: &str,
    name: &str,
    ttl: Duration,
    hold: Duration,
    look: Duration,
) -> Supervisor {
    let command = [
        go::program("rival").display().to_string(),
        "-as=holder".into(),
        format!("-endpoints={endpoints}"),
        format!("-name={name}"),
        "-scratch=none".into(),
        format!("-ttl={}", ttl.as_secs()),
        format!("-work={}ms", hold.as_millis()),
        format!("-look={}ms", look.as_millis()),
        "-limit=24h".into(),
    ];
    Supervisor::start(Supervisor::new_dir("holder"), command)
}

/// No two at once, and every holder's token above the one before. Panics with the two culprits.
pub(crate) fn assert_exclusive(mut held: Vec<Held>) {
    held.sort_by_key(|held| held.entered);
    for pair in held.windows(2) {
        let [first, second] = pair else { unreachable!("windows of two") };
        assert!(first.left <= second.entered, "overlap: {first:?} and {second:?}");
        // One session that takes a lock twice makes a new key each time.
        assert!(first.token < second.token, "tokens do not grow: {first:?}, then {second:?}");
    }
}

/// The critical section: nobody else is in it while the file is there.
pub(crate) async fn inside(scratch: &Path, token: i64, key: &[u8], work: impl Future<Output = ()>) -> Held {
    let entered = unix_nanos();
    OpenOptions::new().write(true).create_new(true).open(scratch).expect("nobody else is inside");
    work.await;
    std::fs::remove_file(scratch).expect("nobody else was inside");
    let key = String::from_utf8(key.to_vec()).expect("a readable key");
    Held { token, key, entered, left: unix_nanos() }
}

fn unix_nanos() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()
}

fn parse(line: &str) -> Held {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [token, key, entered, left] = fields[..] else { panic!("not four fields: {line:?}") };
    Held {
        token: token.parse().expect("a revision"),
        key: key.to_owned(),
        entered: entered.parse().expect("nanoseconds"),
        left: left.parse().expect("nanoseconds"),
    }
}

#[test]
fn lines_are_read_and_judged() {
    let a = parse("7 lock/1f 100 200\n");
    assert_eq!(a, Held { token: 7, key: "lock/1f".into(), entered: 100, left: 200 });
    let b = Held { token: 8, entered: 200, left: 300, ..a.clone() };
    assert_exclusive(vec![b.clone(), a.clone()]);
    let overlap = Held { entered: 199, ..b.clone() };
    assert!(std::panic::catch_unwind(|| assert_exclusive(vec![a.clone(), overlap])).is_err());
    let stale = Held { token: 7, ..b };
    assert!(std::panic::catch_unwind(|| assert_exclusive(vec![a, stale])).is_err());
}
