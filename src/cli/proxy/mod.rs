//! `undercroft proxy`: an agent that runs backups and restores where the disks are.

mod cancel;
mod serve;
mod show;
mod status;
mod suspend;
mod tasks;
mod view;

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::repository::{Place, identities, revoke, tokens};
use crate::failure::Outcome;
use crate::settings::Settings;

/// Run a proxy, look at it and its tasks, and say who may use it
///
/// A proxy runs backups and restores on the machine that can reach the disks: `undercroft backup --proxy` and
/// `undercroft restore --proxy` give it tasks. Whoever is enrolled at it may: with the role ingest back up, with
/// restore restore the VMs of its scope, with admin everything. To repositories the proxy is known as its own
/// machine, which is enrolled there.
///
/// Tokens, identities and revoke work on the proxy's state, on the machine where it is, and beside a running
/// proxy.
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
    Tasks(tasks::Args),
    Show(show::Args),
    Cancel(cancel::Args),
    Suspend(suspend::Args),
    Resume(suspend::ResumeArgs),
    Tokens(tokens::Args<State>),
    Identities(identities::Args<State>),
    Revoke(revoke::Args<State>),
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    match args.command {
        Command::Serve(args) => serve::run(settings, args),
        Command::Status(args) => status::run(settings, args),
        Command::Tasks(args) => tasks::run(settings, args),
        Command::Show(args) => show::run(settings, args),
        Command::Cancel(args) => cancel::run(settings, args),
        Command::Suspend(args) => suspend::run(settings, args),
        Command::Resume(args) => suspend::resume(settings, args),
        Command::Tokens(args) => tokens::run(settings, args),
        Command::Identities(args) => identities::run(settings, args),
        Command::Revoke(args) => revoke::run(settings, args),
    }
}

/// Where the proxy's files are.
#[derive(clap::Args, Clone, Debug)]
struct State {
    /// The directory of the proxy's authority and tasks
    #[arg(long = "state", value_name = "DIR")]
    dir: PathBuf,
}

impl Place for State {
    fn dir(&self) -> &Path {
        &self.dir
    }
}
