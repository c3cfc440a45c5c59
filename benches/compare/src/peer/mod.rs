//! A client that does one work, and tells what it took.
//!
//! It sets up, says `ready`, waits for a line, works, says its report, and ends when its input ends: so that whoever
//! drives it can look at the server before and after.

mod bare;
mod etcd_client;
mod measure;
mod ours;

use std::collections::BTreeMap;
use std::io::BufRead;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::works::{BARE, BARE_SAME, ETCD_CLIENT, OURS, Task};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which client.
    name: String,
    #[arg(long)]
    endpoint: String,
    #[command(flatten)]
    task: Task,
}

/// What a work took.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// How often it was done, in how many seconds.
    pub(crate) ops: u64,
    pub(crate) seconds: f64,
    /// What one took, in microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// The client's CPU, in seconds.
    pub(crate) cpu: f64,
    /// What the client holds at the end, in bytes.
    pub(crate) memory: u64,
    /// What else was measured.
    #[serde(default)]
    pub(crate) more: BTreeMap<String, f64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { name, endpoint, task } = arguments;
    // One thread: a second costs CPU and wins nothing on a server that is the bottleneck.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let plan = match name.as_str() {
            BARE => bare::plan(endpoint, task, false).await?,
            BARE_SAME => bare::plan(endpoint, task, true).await?,
            OURS => ours::plan(endpoint, task).await?,
            ETCD_CLIENT => etcd_client::plan(endpoint, task).await?,
            other => return Err(format!("there is no client {other}").into()),
        };
        println!("ready");
        tokio::task::spawn_blocking(line).await??;
        let (report, _held) = plan.run(task).await?;
        println!("{}", serde_json::to_string(&report)?);
        tokio::task::spawn_blocking(line).await??;
        // What is held is not given back: the server forgets it with its data.
        std::process::exit(0);
    })
}

fn line() -> std::io::Result<()> {
    std::io::stdin().lock().read_line(&mut String::new()).map(drop)
}
