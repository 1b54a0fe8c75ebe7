//! The command line: one file per subcommand.

mod backup;
mod bench;
mod completions;
mod cp;
mod diff;
mod enroll;
mod export;
mod forget;
mod gc;
mod init;
mod lock;
mod ls;
mod man;
mod mount;
mod protect;
mod proxy;
mod prune;
mod rebuild_index;
mod repair;
mod repository;
mod restore;
mod show;
mod snapshots;
mod stats;
mod test_restore;
mod verify;

use clap::{Parser, Subcommand};

use crate::failure::Outcome;
use crate::settings::{GlobalArgs, Settings};

/// High-throughput backup of virtual machine disks into a deduplicating repository
///
/// The repository is a directory, or quic://HOST:PORT/NAME behind a server, given by --repo or
/// UNDERCROFT_REPO. A SNAPSHOT is named by the first
/// digits of its id (`3f9c`), by `VM@latest`, `VM@latest-2`, or by `VM@TIME` with a date or a time
/// (`web01@2026-11-22T03:00`): the newest one up to the end of that day, minute or second.
#[derive(Parser)]
#[command(name = "undercroft", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but damage was found,
4 done but an audit found that changed blocks were wrong.
Results go to standard output, progress, warnings and errors to standard error.
With --json the last line of standard error tells of a failure: error, causes, hints, exit_code.
First steps: undercroft init; undercroft backup --vm NAME DISK...; undercroft restore NAME@latest --to DIR/";

#[derive(Subcommand)]
enum Command {
    Init(init::Args),
    Backup(Box<backup::Args>),
    Snapshots(snapshots::Args),
    Show(show::Args),
    Diff(diff::Args),
    Restore(restore::Args),
    Export(export::Args),
    Mount(mount::Args),
    Ls(ls::Args),
    Cp(cp::Args),
    TestRestore(test_restore::Args),
    Verify(verify::Args),
    Repair(repair::Args),
    RebuildIndex(rebuild_index::Args),
    Forget(forget::Args),
    Protect(protect::Args),
    Lock(lock::Args),
    Prune(prune::Args),
    Gc(gc::Args),
    Stats(stats::Args),
    Enroll(enroll::Args),
    Repository(repository::Args),
    Proxy(proxy::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<Outcome> {
        let settings = Settings::new(self.global)?;
        match self.command {
            Command::Init(args) => init::run(&settings, args),
            Command::Backup(args) => backup::run(&settings, *args),
            Command::Snapshots(args) => snapshots::run(&settings, args),
            Command::Show(args) => show::run(&settings, args),
            Command::Diff(args) => diff::run(&settings, args),
            Command::Restore(args) => restore::run(&settings, args),
            Command::Export(args) => export::run(&settings, args),
            Command::Mount(args) => mount::run(&settings.with_absolute_root()?, args),
            Command::Ls(args) => ls::run(&settings, args),
            Command::Cp(args) => cp::run(&settings, args),
            Command::TestRestore(args) => test_restore::run(&settings, args),
            Command::Verify(args) => verify::run(&settings, args),
            Command::Repair(args) => repair::run(&settings, args),
            Command::RebuildIndex(args) => rebuild_index::run(&settings, args),
            Command::Forget(args) => forget::run(&settings, args),
            Command::Protect(args) => protect::run(&settings, args),
            Command::Lock(args) => lock::run(&settings, args),
            Command::Prune(args) => prune::run(&settings, args),
            Command::Gc(args) => gc::run(&settings, args),
            Command::Stats(args) => stats::run(&settings, args),
            Command::Enroll(args) => enroll::run(&settings, args),
            Command::Repository(args) => repository::run(&settings, args),
            Command::Proxy(args) => proxy::run(&settings, args),
            Command::Bench(args) => bench::run(&settings, args),
            Command::Completions(args) => completions::run(args),
            Command::Man(args) => man::run(&settings, args),
        }
    }
}
