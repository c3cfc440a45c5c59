//! A process that cannot outlive this one.
//!
//! It is the child of a small `sh`, whose standard input is a pipe that we hold. However this
//! process ends, SIGKILL included, the kernel closes that pipe: the shell then kills the process
//! and removes its folder. That is why a server may even live in a `static`, which Rust never
//! drops. Signals go through the same shell, which has not reaped the process yet, so that a pid
//! is never taken for another's.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One verb a line, one line of answer. `jobs` tells the end of a process without waiting for it.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
dir=$1; shift
rm -rf "$dir"; mkdir -p "$dir/data"
pid=
while read -r verb; do
  case $verb in
    START) "$@" >>"$dir/log" 2>&1 </dev/null & pid=$!; echo "$pid" ;;
    STATE) jobs >"$dir/jobs" 2>&1; read -r state <"$dir/jobs" || state=; echo "$state" ;;
    KILL)  kill -KILL "$pid"; wait "$pid"; echo killed ;;
    *)     kill "-$verb" "$pid"; echo sent ;;
  esac
done
[ -z "$pid" ] || kill -KILL "$pid"
wait
rm -rf "$dir"
"#;

/// A running (or killed, or stopped) process with a folder of its own. Dropped: killed and removed.
pub(crate) struct Supervisor {
    dir: PathBuf,
    shell: Mutex<Shell>,
}

struct Shell {
    child: Child,
    verbs: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    pid: u32,
    exit: Option<i32>,
}

impl Supervisor {
    /// A folder name that no other process uses. `start` makes the folder, with `data` in it.
    pub(crate) fn new_dir(label: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let shm = Path::new("/dev/shm");
        // In memory where we can: etcd waits for its disk at every write.
        let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        base.join(format!("etcd-concurrency-{}-{n}-{label}", std::process::id()))
    }

    /// Starts `command` with its output in `dir/log`, and removes `dir` at the end.
    pub(crate) fn start<I>(dir: PathBuf, command: I) -> Supervisor
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "supervisor"])
            .arg(&dir)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C and `timeout` signal a whole process group; ours must survive to clean up.
            .process_group(0)
            .spawn()
            .expect("sh can be started");
        let verbs = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let shell = Shell { child, verbs, answers, pid: 0, exit: None };
        let supervisor = Supervisor { dir, shell: Mutex::new(shell) };
        supervisor.shell().start();
        supervisor
    }

    pub(crate) fn pid(&self) -> u32 {
        self.shell().pid
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything the process has printed so far, on both streams.
    pub(crate) fn output(&self) -> String {
        std::fs::read(self.dir.join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of the output, of at most so many bytes.
    pub(crate) fn end_of_output(&self, bytes: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut log = File::open(self.dir.join("log"))?;
            let start = log.metadata()?.len().saturating_sub(bytes);
            log.seek(SeekFrom::Start(start))?;
            let mut read = Vec::new();
            log.read_to_end(&mut read)?;
            // The first line may have begun before.
            if start > 0 {
                let end = read.iter().position(|byte| *byte == b'\n').map_or(read.len(), |end| end + 1);
                read.drain(..end);
            }
            Ok(read)
        };
        read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of the output, for a message.
    pub(crate) fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// The exit code once the process has ended; -1 when a signal ended it.
    pub(crate) fn exit(&self) -> Option<i32> {
        let mut shell = self.shell();
        if shell.exit.is_none() {
            let state = shell.ask("STATE");
            if !state.contains("unning") && !state.contains("topped") {
                shell.exit = Some(exit_code(&state));
            }
        }
        shell.exit
    }

    /// SIGKILL; on return the process is gone.
    pub(crate) fn kill(&self) {
        let mut shell = self.shell();
        if shell.exit.is_none() {
            shell.ask("KILL");
            shell.exit = Some(-1);
        }
    }

    /// SIGSTOP: the process stands still, its sockets stay open.
    pub(crate) fn pause(&self) {
        let mut shell = self.shell();
        shell.ask("STOP");
        // Sent is not stopped: on a busy machine a thread of it may go on for long enough to answer somebody.
        while is_running(shell.pid) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.shell().ask("CONT");
    }

    /// The same command again, in the same folder.
    pub(crate) fn restart(&self) {
        self.kill();
        self.shell().start();
    }

    fn shell(&self) -> MutexGuard<'_, Shell> {
        self.shell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shell {
    fn start(&mut self) {
        let answer = self.ask("START");
        self.pid = answer.parse().expect("the supervisor answers with a pid");
        self.exit = None;
    }

    fn ask(&mut self, verb: &str) -> String {
        let verbs = self.verbs.as_mut().expect("open until dropped");
        writeln!(verbs, "{verb}").expect("the supervisor is alive");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the supervisor answers");
        answer.trim().to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop(self.verbs.take());
        // Waited for, so that a test which has ended has left nothing behind.
        let _ = self.child.wait();
    }
}

/// Whether any thread of a process may still run, where the system tells: it is neither stopped nor gone.
fn is_running(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let state = |stat: String| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    let states =
        threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    states.filter_map(state).any(|state| !"TtZX".contains(state))
}

/// Reads what `jobs` says of an ended process: `Done`, `Done(3)`, `Exit 3`, or a signal's name.
fn exit_code(state: &str) -> i32 {
    let digits: String = match state.split_once("Done").or_else(|| state.split_once("Exit")) {
        Some((_, rest)) => {
            rest.trim_start_matches(['(', ' ']).chars().take_while(char::is_ascii_digit).collect()
        }
        None => return -1,
    };
    digits.parse().unwrap_or(0)
}

#[test]
fn exit_codes_are_read_from_jobs() {
    assert_eq!(exit_code("[1] + Done"), 0);
    assert_eq!(exit_code("[1]+  Done                    sleep 0"), 0);
    assert_eq!(exit_code("[1] + Done(3)"), 3);
    assert_eq!(exit_code("[1]+  Exit 3   ( exit 3 )"), 3);
    assert_eq!(exit_code("[1] + Killed"), -1);
}

#[test]
fn a_process_is_watched_stopped_killed_and_removed() {
    let dir = Supervisor::new_dir("sleep");
    let sleep = Supervisor::start(dir.clone(), ["sleep", "600"]);
    assert_eq!(sleep.exit(), None);
    sleep.pause();
    assert_eq!(sleep.exit(), None);
    sleep.resume();
    sleep.kill();
    assert_eq!(sleep.exit(), Some(-1));
    sleep.restart();
    assert_eq!(sleep.exit(), None);
    assert!(dir.is_dir());
    drop(sleep);
    assert!(!dir.exists());
}

#[test]
fn the_end_of_what_was_printed_is_of_whole_lines() {
    let prints =
        Supervisor::start(Supervisor::new_dir("lines"), ["sh", "-c", "echo one; echo two; echo three"]);
    while prints.exit().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(prints.end_of_output(100), "one\ntwo\nthree\n");
    assert_eq!(prints.end_of_output(9), "three\n");
    assert_eq!(prints.end_of_output(3), "");
}
