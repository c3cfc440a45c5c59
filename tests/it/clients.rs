//! Other people's clients on the fake, over TCP: etcdctl, and etcd's Go client with its concurrency package and
//! recipes.

use std::process::Stdio;
use std::time::Duration;

use etcd_concurrency::fake::{FakeEtcd, Rpc, Serving};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::etcd::{Etcd, Version};
use crate::support::go;

const LONG: Duration = Duration::from_secs(60);

async fn serve() -> (FakeEtcd, Serving) {
    let fake = FakeEtcd::start();
    let serving = fake.serve(([127, 0, 0, 1], 0).into()).await.expect("a free port");
    (fake, serving)
}

/// Runs a program to its end; gives what it printed, and fails with what it complained of.
async fn run(program: &'static str, args: &[&str], input: &str) -> String {
    let mut command = Command::new(go::program(program));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("a program to run");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("it reads");
    drop(stdin);
    let ended = tokio::time::timeout(LONG, child.wait_with_output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{program} {args:?} does not end")).expect("an end");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

const PARTS: &str = "ok kv\nok watch\nok lease\nok mutex\nok election\nok stm\nok queue\nok priority queue\nok barrier\n\
                     ok double barrier\nok rwmutex\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Go"]
async fn gos_client_its_concurrency_package_and_its_recipes() {
    let (_fake, serving) = serve().await;
    assert_eq!(run("clients", &["-endpoint", &serving.endpoint()], "").await, PARTS);
}

/// The program itself is right: a real server passes it too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn the_same_on_a_real_server() {
    let etcd = Etcd::start(Version::V3_7).await;
    assert_eq!(run("clients", &["-endpoint", etcd.endpoint()], "").await, PARTS);
}

/// Calls etcdctl with a line of arguments.
async fn ctl(endpoint: &str, line: &str, input: &str) -> String {
    let mut args = vec!["--endpoints", endpoint];
    args.extend(line.split(' '));
    run("etcdctl", &args, input).await
}

/// An etcdctl that does not end by itself, and what it prints; ended when dropped.
struct Lines {
    _program: Child,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
}

fn lines(endpoint: &str, line: &str) -> Lines {
    let mut command = Command::new(go::program("etcdctl"));
    command.args(["--endpoints", endpoint]).args(line.split(' '));
    let mut program = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("a program to run");
    let lines = BufReader::new(program.stdout.take().expect("piped")).lines();
    Lines { _program: program, lines }
}

async fn next(output: &mut Lines) -> String {
    let line = tokio::time::timeout(LONG, output.lines.next_line()).await.expect("a line in time");
    line.expect("readable").expect("it goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Go"]
async fn etcdctl() {
    let (fake, serving) = serve().await;
    let at = serving.endpoint();
    let told = async |line: &str, wanted: &str| assert_eq!(ctl(&at, line, "").await, wanted, "{line}");

    told("put k/a 1", "OK\n").await;
    told("put k/b 2", "OK\n").await;
    told("put k/a 3 --prev-kv", "OK\nk/a\n1\n").await;
    told("get --prefix k/", "k/a\n3\nk/b\n2\n").await;
    told("get k/a --rev=2", "k/a\n1\n").await;
    told("get --prefix k/ --order=DESCEND --keys-only", "k/b\n\nk/a\n\n").await;
    let count = ctl(&at, "get --prefix k/ --count-only --write-out=fields", "").await;
    assert!(count.contains("\"Count\" : 2\n"), "{count}");
    let txn = "value(\"k/a\") = \"3\"\n\nput k/c 4\nget k/b\n\n\n";
    let txn = ctl(&at, "txn", txn).await;
    assert!(txn.contains("SUCCESS\n\nOK\n\nk/b\n2\n"), "{txn}");
    told("del --prefix k/c", "1\n").await;

    let lease = ctl(&at, "lease grant 60", "").await;
    let id = lease.split(' ').nth(1).expect("an id");
    assert!(lease.ends_with("granted with TTL(60s)\n"), "{lease}");
    told(&format!("put --lease={id} held 1"), "OK\n").await;
    let left = ctl(&at, &format!("lease timetolive {id} --keys"), "").await;
    assert!(left.contains("TTL(60s)") && left.ends_with("attached keys([held])\n"), "{left}");
    told(&format!("lease keep-alive --once {id}"), &format!("lease {id} keepalived with TTL(60)\n")).await;
    told("lease list", &format!("found 1 leases\n{id}\n")).await;
    told(&format!("lease revoke {id}"), &format!("lease {id} revoked\n")).await;
    told("get held", "").await;

    told("lock mine echo inside", "inside\n").await;
    assert_eq!(watch(&at, 10).await, ["PUT", "k/a", "1", "PUT", "k/b", "2", "PUT", "k/a", "3", "PUT"]);
    let status = ctl(&at, "endpoint status", "").await;
    assert!(status.contains(", 3.7.3, ") && status.contains(", true, false, "), "{status}");
    ctl(&at, "endpoint health", "").await;
    ctl(&at, "endpoint hashkv", "").await;
    assert!(ctl(&at, "member list", "").await.contains(", started, "));
    told("compaction 4", "compacted revision 4\n").await;
    assert!(fake.snapshot().get("k/a").is_some());
}

/// The first lines that a watch on `k/` from revision 2 on prints. It would go on for ever.
async fn watch(endpoint: &str, count: usize) -> Vec<String> {
    let mut output = lines(endpoint, "watch --prefix k/ --rev=2");
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.push(next(&mut output).await);
    }
    seen
}

/// `lease keep-alive` goes on until it is ended, and says so each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Go"]
async fn etcdctl_keeps_a_lease_alive() {
    let (fake, serving) = serve().await;
    let at = serving.endpoint();
    let lease = ctl(&at, "lease grant 2", "").await;
    let id = lease.split(' ').nth(1).expect("an id");
    let answered = |fake: &FakeEtcd| fake.history().calls(Rpc::LeaseKeepAlive).count();
    let mut kept = lines(&at, &format!("lease keep-alive {id}"));
    let said = format!("lease {id} keepalived with TTL(2)");
    for _ in 0..4 {
        assert_eq!(next(&mut kept).await, said);
    }
    assert!(answered(&fake) >= 4, "{}", fake.history());
    // Longer than its TTL by now.
    assert_eq!(fake.leases(), 1, "{}", fake.history());
    drop(kept);
    fake.until(|fake| fake.leases() == 0).await;
}

/// `elect` proclaims until it is ended, and `elect -l` tells of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Go"]
async fn etcdctl_elects() {
    let (fake, serving) = serve().await;
    let at = serving.endpoint();
    let elected = ctl(&at, "elect seat me", "");
    let led = fake
        .until(|fake| fake.snapshot().keys.iter().any(|kv| kv.key.starts_with(b"seat/") && kv.value == "me"));
    tokio::select! {
        told = elected => panic!("it does not stay: {told}"),
        () = led => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Go"]
async fn etcdctl_with_users() {
    let (_fake, serving) = serve().await;
    let at = serving.endpoint();
    let told = async |line: &str, wanted: &str| assert_eq!(ctl(&at, line, "").await, wanted, "{line}");
    told("user add root:secret", "User root created\n").await;
    told("user add app:pass", "User app created\n").await;
    told("role add app", "Role app created\n").await;
    told("role grant-permission app readwrite app/ --prefix", "Role app updated\n").await;
    told("user grant-role app app", "Role app is granted to user app\n").await;
    told("user grant-role root root", "Role root is granted to user root\n").await;
    told("auth enable", "Authentication Enabled\n").await;
    told("put app/a 1 --user app:pass", "OK\n").await;
    told("get app/a --user app:pass", "app/a\n1\n").await;
    told("user list --user root:secret", "app\nroot\n").await;
    told("role list --user root:secret", "app\n").await;
    let mut refused = Command::new(go::program("etcdctl"));
    refused.args(["--endpoints", &at, "put", "other", "1", "--user", "app:pass"]).kill_on_drop(true);
    let refused = tokio::time::timeout(LONG, refused.output()).await.expect("an end").expect("it ran");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("etcdserver: permission denied"),
        "{refused:?}"
    );
    told("auth disable --user root:secret", "Authentication Disabled\n").await;
}
