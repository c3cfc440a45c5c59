//! The fake as a server, for any client in any language:
//!
//! ```text
//! cargo run --example fake_etcd -- 127.0.0.1:2379 --progress-interval 1s
//! ```
//!
//! It prints its address once it serves. When its input has a line `history`, `snapshot` or `stop`, it prints the
//! one or the other, or ends; it goes on when its input ends.

use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use etcd_concurrency::fake::FakeEtcd;
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Some(options) = Options::parse(std::env::args().skip(1))? else {
        return print(USAGE);
    };
    let mut builder = FakeEtcd::builder().seed(options.seed);
    if let Some(interval) = options.progress_interval {
        builder = builder.progress_interval(interval);
    }
    if let Some(ttl) = options.token_ttl {
        builder = builder.token_ttl(ttl);
    }
    let fake = builder.start();
    let serving = fake.serve(options.addr).await?;
    print(&serving.addr().to_string())?;

    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Some(command) = commands.next_line().await? {
        match command.trim() {
            "history" => print(&fake.history().to_string())?,
            "snapshot" => print(&fake.snapshot().to_string())?,
            "stop" => return Ok(()),
            "" => {}
            other => print(&format!("not known: {other}"))?,
        }
    }
    std::future::pending().await
}

const USAGE: &str = "usage: fake_etcd [ADDRESS] [--progress-interval 10m] [--auth-token-ttl 5m] [--seed 0]

Serves a fake etcd at ADDRESS (default 127.0.0.1:2379; port 0 takes a free one).";

/// What the command line says.
struct Options {
    addr: SocketAddr,
    progress_interval: Option<Duration>,
    token_ttl: Option<Duration>,
    seed: u64,
}

impl Options {
    /// `None` when help was asked for.
    fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>, Box<dyn Error>> {
        let addr = SocketAddr::from(([127, 0, 0, 1], 2379));
        let mut options = Self { addr, progress_interval: None, token_ttl: None, seed: 0 };
        // `--name=value` is `--name value`.
        let mut words = args.flat_map(|arg| match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => vec![name.to_owned(), value.to_owned()],
            _ => vec![arg],
        });
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--help" | "-h" => return Ok(None),
                "--progress-interval" => options.progress_interval = Some(duration(&value()?)?),
                "--auth-token-ttl" => options.token_ttl = Some(duration(&value()?)?),
                "--seed" => options.seed = value()?.parse()?,
                _ if word.starts_with('-') => return Err(format!("not known: {word}\n\n{USAGE}").into()),
                _ => options.addr = word.parse().map_err(|_| format!("not an address: {word}"))?,
            }
        }
        Ok(Some(options))
    }
}

/// `250ms`, `10s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, Box<dyn Error>> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("not a duration: {text}").into()),
    };
    let number: u64 = number.parse().map_err(|_| format!("not a duration: {text}"))?;
    Ok(Duration::from_millis(number.saturating_mul(unit)))
}

/// At once, also into a pipe.
fn print(text: &str) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
