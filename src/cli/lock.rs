//! `undercroft lock`.

use jiff::Timestamp;
use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_format::id::SnapshotId;
use undercroft_format::wire::frame::FrameType;

use crate::access;
use crate::catalog::Catalog;
use crate::failure::Outcome;
use crate::lock_end::LockTime;
use crate::report::{self, line};
use crate::settings::{Key, Settings};
use crate::units::{local_time, timestamp};

/// Lock a snapshot: nobody can forget it before the lock ends
///
/// A lock can be extended, never shortened or lifted, by no role and no option. Behind a server its clock
/// decides, and only who can write the server's files could do otherwise; in a directory of this machine,
/// whoever may write it. To lock a snapshot from the moment it is made: `undercroft backup --lock-until`.
///
/// JSON: id, locked_until.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which one
    snapshot: SnapshotSpec,
    /// Until when: a time, as in 2027-01-31 (all of that day) or 2027-01-31T03:00, or how long from now, as
    /// in 12h, 30d or 52w
    #[arg(long, value_name = "TIME|DURATION")]
    until: LockTime,
}

#[derive(Serialize)]
struct Report {
    id: SnapshotId,
    locked_until: Timestamp,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let end = args.until.resolve(&settings.time_zone)?;
    let report = access::maintain_surely(
        settings,
        "lock",
        &[FrameType::Lock],
        Key::IfGiven,
        |maintenance, _| {
            let catalog = Catalog::read(settings, maintenance.repository())?;
            let id = catalog.resolve(&args.snapshot)?.id;
            catalog.warn_unreadable();
            let until = maintenance.lock(id, end)?;
            Ok(Report {
                id,
                locked_until: timestamp(until.as_millis()),
            })
        },
    )?;
    report::emit(settings, &report, |text| {
        let until = local_time(report.locked_until, &settings.time_zone);
        line!(text, "Locked {} until {until}", report.id);
    })?;
    Ok(Outcome::Done)
}
