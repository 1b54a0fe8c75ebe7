//! The `undercroft` command: backs up the disks of virtual machines into a deduplicating repository.
//!
//! [`cli`] has a file per subcommand; [`settings`] makes validated settings of the global options;
//! [`access`] opens repositories, [`remote`] those behind a server, and [`catalog`] finds snapshots in them;
//! [`file_spec`] says which disk, partition and file is meant, [`volume`] opens them, [`test_restore`] checks them;
//! [`guest`] gets the disks of a running guest; [`mount`] shows snapshots as files; [`backup_run`] and [`restore_run`] do the work of the same names for any [`runner`], a command or a task of a
//! [`proxy`]; [`export_run`] serves disks; [`work`] runs long work under [`progress`] until [`signals`] stop it; [`report`] writes results to stdout,
//! [`failure`] errors and hints to stderr, [`logging`] what is done; [`daemon`] is what daemons have in common,
//! [`service`] tells systemd how one is, [`watch`] those who watch it.

mod access;
mod audit_view;
mod backup_job;
mod backup_request;
mod backup_run;
mod catalog;
mod cli;
mod daemon;
mod disk_spec;
mod export_run;
mod failure;
mod file_spec;
mod guest;
mod live_restore;
mod lock_end;
mod logging;
mod mount;
mod nbd_source;
mod overlay_source;
mod progress;
mod proxy;
mod remote;
mod report;
mod restore_image;
mod restore_run;
mod restore_target;
mod restore_xva;
mod runner;
mod service;
mod settings;
mod signals;
mod snapshot_view;
mod test_restore;
mod units;
mod vhd_source;
mod volume;
mod watch;
mod work;
mod xva_source;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let wants_json = std::env::args_os().any(|word| word == "--json");
            return failure::misused(&error, &cli::Cli::command(), wants_json);
        }
    };
    let program = cli.global.program();
    let json = cli.global.json;
    failure::exit_code(cli.run(), &program, json)
}
