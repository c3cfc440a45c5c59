//! Runs all clients in turn, several times round.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::peer::Report;
use crate::server::Server;
use crate::works::{self, Task, Work};
use crate::{DriveArguments, Result, bars, plot, table};

/// One client's doing of one work, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) work: String,
    pub(crate) peer: String,
    pub(crate) round: usize,
    pub(crate) report: Report,
    /// Messages that the server received meanwhile, by method.
    pub(crate) calls: BTreeMap<String, f64>,
    /// What the server holds at the end, in bytes.
    pub(crate) server_memory: u64,
}

pub(crate) fn drive(arguments: &DriveArguments) -> Result<()> {
    let works: Vec<Work> = works::all(if arguments.small { 100 } else { 1 })
        .into_iter()
        .filter(|work| {
            arguments.works.is_empty()
                || arguments.works.iter().any(|wanted| work.name.contains(wanted.as_str()))
        })
        .collect();
    std::fs::create_dir_all(&arguments.results)?;
    let (mut runs, mut failures) = (Vec::new(), Vec::new());
    for work in &works {
        for round in 0..rounds(work, arguments.rounds) {
            eprintln!("{}, round {}", work.title, round + 1);
            let mut server = Server::start(&arguments.etcd)?;
            // Each is the first in turn.
            for turn in 0..work.peers.len() {
                let peer = work.peers[(turn + round) % work.peers.len()];
                match run(arguments, &server, work, peer, round) {
                    Ok(run) => {
                        eprintln!("  {peer}: {:?}", run.report);
                        runs.push(run);
                    }
                    // The others have not failed.
                    Err(error) => {
                        eprintln!("  {error}");
                        failures.push(format!("round {}: {error}", round + 1));
                    }
                }
                if work.task.workers >= 1000 / if arguments.small { 100 } else { 1 } {
                    // What they leave behind is not the next one's burden.
                    drop(server);
                    server = Server::start(&arguments.etcd)?;
                }
            }
        }
        // What there is so far, should the rest fail.
        std::fs::write(arguments.results.join("runs.json"), serde_json::to_string_pretty(&runs)?)?;
    }
    let (text, bars) = (table::table(&works, &runs), bars::bars(&runs));
    let failed: String = failures.iter().map(|failure| format!("- failed in {failure}\n")).collect();
    let all = format!("{bars}\n{failed}\n{text}");
    std::fs::write(arguments.results.join("table.md"), &all)?;
    plot::plot(&arguments.results, &works, &runs)?;
    println!("{all}");
    match failures.len() {
        0 => Ok(()),
        some => Err(format!("{some} runs have failed").into()),
    }
}

/// The long ones are steady enough with fewer.
fn rounds(work: &Work, rounds: usize) -> usize {
    match work.name {
        "sessions" | "waiters" => rounds.min(3),
        _ => rounds,
    }
}

/// Long enough for a keep-alive of each session.
fn seconds(work: &Work, arguments: &DriveArguments) -> f64 {
    match work.name {
        "sessions" if !arguments.small => arguments.seconds.max(30.0),
        _ => arguments.seconds,
    }
}

fn run(arguments: &DriveArguments, server: &Server, work: &Work, peer: &str, round: usize) -> Result<Run> {
    let mut command = if peer.starts_with("go") {
        Command::new(&arguments.go)
    } else {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer");
        command
    };
    let task = Task { seconds: seconds(work, arguments), ..work.task.clone() };
    command.args(options(server, &task)).args([peer, &task.kind]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let done = converse(&mut child, server);
    if done.is_err() {
        // It may have ended, which is why.
        let _ = child.kill();
    }
    child.wait()?;
    let (report, calls, server_memory) = done.map_err(|error| format!("{} by {peer}: {error}", work.name))?;
    Ok(Run { work: work.name.into(), peer: peer.into(), round, report, calls, server_memory })
}

fn converse(
    child: &mut std::process::Child,
    server: &Server,
) -> Result<(Report, BTreeMap<String, f64>, u64)> {
    let mut say = child.stdin.take().ok_or("no input")?;
    let mut hear = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut line = || hear.next().ok_or("it ended")?.map_err(Box::from);
    let ready: Result<String> = line();
    if ready? != "ready" {
        return Err("it is not ready".into());
    }
    let before = server.calls()?;
    writeln!(say, "go")?;
    let report: Result<String> = line();
    let report = serde_json::from_str(&report?)?;
    let mut calls = server.calls()?;
    calls.iter_mut().for_each(|(method, count)| *count -= before.get(method).unwrap_or(&0.0));
    calls.retain(|_, count| *count > 0.0);
    Ok((report, calls, server.memory()?))
}

fn options(server: &Server, task: &Task) -> Vec<String> {
    let mut options = vec!["--endpoint".into(), server.endpoint()];
    for (name, value) in [
        ("--workers", task.workers.to_string()),
        ("--accounts", task.accounts.to_string()),
        ("--hold", task.hold.to_string()),
        ("--seconds", task.seconds.to_string()),
    ] {
        options.extend([name.into(), value]);
    }
    options.extend(task.shared.then(|| "--shared".into()));
    options
}
