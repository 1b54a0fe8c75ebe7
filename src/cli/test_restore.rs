//! `undercroft test-restore`.

use std::path::PathBuf;

use crate::failure::Outcome;
use crate::settings::Settings;
use crate::test_restore::{self, Request};

/// Restore the newest snapshot of a VM for a test, and check what is in it
///
/// Every partition is written to a sparse file in --scratch, one after the other, which reads and verifies each chunk; its
/// file system is checked by e2fsck or fsck.vfat, where that is installed, after a journal was replayed, and all its
/// directories are walked through. Nothing is booted, and nothing else is changed. Exit code 3 if anything is
/// wrong.
///
/// JSON: snapshot, vm, time, passed, disks with label, size, table, problems, volumes: number, size, file_system, read_bytes,
/// files, directories, links, journal_replayed, checked_by, notes, problems.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// A VM, whose newest snapshot is meant, or a snapshot
    #[arg(value_name = "VM|SNAPSHOT")]
    what: String,
    /// Where there is room for the data of the largest partition, for as long as the test takes
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let scratch = args.scratch.unwrap_or_else(std::env::temp_dir);
    test_restore::run(
        settings,
        Request {
            what: args.what,
            scratch,
        },
    )
}
