//! Another process of this test binary that plays a part: one to be killed or stopped.
//!
//! ```ignore
//! #[test]
//! fn a_holder_is_killed() {
//!     if part::is_played() {
//!         return hold_the_lock(); // prints lines with eprintln!, until it is killed
//!     }
//!     let holder = part::play("mutex::a_holder_is_killed", &[("ENDPOINT", endpoint)]);
//!     let line = part::line(&holder, "held ").await;
//!     holder.pause();
//! }
//! ```

use std::time::Duration;

use super::poll;
use super::supervisor::Supervisor;

const PART: &str = "ETCD_CONCURRENCY_PART";

/// Whether this process was started by [`play`].
pub(crate) fn is_played() -> bool {
    std::env::var_os(PART).is_some()
}

/// Runs one test of this binary, named in full, in a process of its own. Killed when dropped.
pub(crate) fn play(test: &str, env: &[(&str, &str)]) -> Supervisor {
    let binary = std::env::current_exe().expect("the test binary has a path");
    let mut command = vec!["env".to_owned(), format!("{PART}=1")];
    command.extend(env.iter().map(|(name, value)| format!("{name}={value}")));
    command.push(binary.display().to_string());
    command.extend(["--exact", test, "--include-ignored", "--nocapture"].map(String::from));
    Supervisor::start(Supervisor::new_dir("part"), command)
}

/// What follows `prefix` in the first line that the process printed with it, once it has.
pub(crate) async fn line(process: &Supervisor, prefix: &str) -> String {
    let what = format!("a line that begins with {prefix:?}");
    poll::until(&what, Duration::from_secs(30), async || {
        let output = process.output();
        // A line without its end is still being written.
        let mut lines = output.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let found = lines.find_map(|line| line.strip_prefix(prefix));
        if found.is_none()
            && let Some(code) = process.exit()
        {
            panic!("{what} never came; exit {code} after:\n{}", process.tail());
        }
        found.map(|rest| rest.trim_end().to_owned())
    })
    .await
}
