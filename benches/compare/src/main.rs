//! The same work by four clients, side by side on one server: see `run` beside this package.

mod bars;
mod drive;
mod peer;
mod plot;
mod server;
mod table;
mod works;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the works by all clients in turn, and writes what they took.
    Drive(DriveArguments),
    /// One client doing one work: what `drive` starts.
    Peer(peer::Arguments),
}

#[derive(clap::Args)]
struct DriveArguments {
    /// The etcd to start.
    #[arg(long)]
    etcd: PathBuf,
    /// The Go client's program.
    #[arg(long)]
    go: PathBuf,
    /// Where tables and plots go.
    #[arg(long)]
    results: PathBuf,
    /// How often each client does each work.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per work, client and round, for those that are measured by time.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// A hundredth of the sessions and waiters: to see that all works.
    #[arg(long)]
    small: bool,
    /// Only works whose name contains one of these.
    works: Vec<String>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Drive(arguments) => drive::drive(&arguments),
        Command::Peer(arguments) => peer::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whatever goes wrong ends the run.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
