//! `undercroft repository`: a repository server and whom it lets in.

mod identities;
mod revoke;
mod tokens;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use jiff::Timestamp;
use undercroft_dataplane::net::trust::{Authority, DIRECTORY, SystemClock, UnixMs, WallClock};
use undercroft_dataplane::repository::entropy::{Entropy, SystemEntropy};

use crate::failure::Outcome;
use crate::settings::Settings;
use crate::units::{local_time, timestamp};

/// Say who may use a repository server
///
/// The commands work on the server's store, on the machine where it is, and beside a running server.
#[derive(clap::Args, Clone, Debug)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    Tokens(tokens::Args),
    Identities(identities::Args),
    Revoke(revoke::Args),
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    match args.command {
        Command::Tokens(args) => tokens::run(settings, args),
        Command::Identities(args) => identities::run(settings, args),
        Command::Revoke(args) => revoke::run(settings, args),
    }
}

/// Where the server's repositories are.
#[derive(clap::Args, Clone, Debug)]
struct Store {
    /// The directory of the server's repositories
    #[arg(long = "store", value_name = "DIR")]
    dir: PathBuf,
}

impl Store {
    /// The authority in the store; made if the store has none.
    fn open_or_create(&self) -> anyhow::Result<Authority> {
        let (clock, entropy) = components();
        let dir = self.dir.join(DIRECTORY);
        Ok(Authority::open_or_create(&dir, clock, entropy)?)
    }

    /// The authority in the store.
    fn open(&self) -> anyhow::Result<Authority> {
        let (clock, entropy) = components();
        Ok(Authority::open(&self.dir.join(DIRECTORY), clock, entropy)?)
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
