//! `undercroft repository`: a repository server and whom it lets in.

pub mod identities;
pub mod revoke;
pub mod serve;
mod sessions;
mod status;
pub mod tokens;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use jiff::Timestamp;
use undercroft_dataplane::net::address::ServerAddress;
use undercroft_dataplane::net::trust::{Authority, DIRECTORY, SystemClock, UnixMs, WallClock};
use undercroft_dataplane::repository::entropy::{Entropy, SystemEntropy};

use crate::failure::{Outcome, Problem};
use crate::settings::Settings;
use crate::units::{local_time, timestamp};

/// Run a repository server, look at it, and say who may use it
///
/// Tokens, identities and revoke work on the server's store, on the machine where it is, and beside a
/// running server.
#[derive(clap::Args, Clone, Debug)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    Serve(serve::Args),
    Status(status::Args),
    Sessions(sessions::Args),
    Tokens(tokens::Args<Store>),
    Identities(identities::Args<Store>),
    Revoke(revoke::Args<Store>),
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    match args.command {
        Command::Serve(args) => serve::run(settings, args),
        Command::Status(args) => status::run(settings, args),
        Command::Sessions(args) => sessions::run(settings, args),
        Command::Tokens(args) => tokens::run(settings, args),
        Command::Identities(args) => identities::run(settings, args),
        Command::Revoke(args) => revoke::run(settings, args),
    }
}

/// Where the server's repositories are.
#[derive(clap::Args, Clone, Debug)]
pub struct Store {
    /// The directory of the server's repositories
    #[arg(long = "store", value_name = "DIR")]
    dir: PathBuf,
}

impl Place for Store {
    fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Where a daemon keeps its files, as an option names it.
pub trait Place: clap::Args + Clone + std::fmt::Debug {
    /// The directory.
    fn dir(&self) -> &Path;

    /// Refuses a directory that is none: a slip of the pen would otherwise look like a daemon that nobody knows.
    fn check(&self) -> anyhow::Result<()> {
        let dir = self.dir();
        if dir.is_dir() {
            return Ok(());
        }
        let dir = dir.display();
        Err(Problem::usage(format!("{dir} is no directory"))
            .hint(format!(
                "name the directory of the daemon's files, or make it: mkdir {dir}"
            ))
            .into())
    }

    /// The authority of the daemon; made if there is none.
    fn open_or_create(&self) -> anyhow::Result<Authority> {
        let (clock, entropy) = components();
        let dir = self.dir().join(DIRECTORY);
        Ok(Authority::open_or_create(&dir, clock, entropy)?)
    }

    /// The authority of the daemon.
    fn open(&self) -> anyhow::Result<Authority> {
        self.check()?;
        let (clock, entropy) = components();
        let dir = self.dir().join(DIRECTORY);
        Ok(Authority::open(&dir, clock, entropy)?)
    }
}

fn components() -> (Arc<dyn WallClock>, Arc<dyn Entropy>) {
    (Arc::new(SystemClock), Arc::new(SystemEntropy))
}

fn to_timestamp(time: UnixMs) -> Timestamp {
    timestamp(time.as_millis())
}

fn show_time(time: UnixMs, settings: &Settings) -> String {
    local_time(to_timestamp(time), &settings.time_zone)
}

/// A list of patterns in a table's cell.
fn show_patterns(patterns: &[undercroft_dataplane::net::trust::pattern::Pattern]) -> String {
    match patterns {
        [] => "-".to_owned(),
        patterns => patterns
            .iter()
            .map(|pattern| pattern.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn texts(patterns: &[undercroft_dataplane::net::trust::pattern::Pattern]) -> Vec<String> {
    patterns
        .iter()
        .map(|pattern| pattern.as_str().to_owned())
        .collect()
}

/// The server that a command asks.
fn server_of<'a>(
    settings: &'a Settings,
    named: Option<&'a ServerAddress>,
) -> anyhow::Result<&'a ServerAddress> {
    named.or_else(|| settings.server()).ok_or_else(|| {
        Problem::usage("no server was given")
            .hint("name it, as in quic://HOST:PORT, or by --repo quic://HOST:PORT/NAME")
            .into()
    })
}
