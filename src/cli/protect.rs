//! `undercroft protect`.

use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_format::id::SnapshotId;
use undercroft_format::wire::frame::FrameType;

use crate::access;
use crate::catalog::Catalog;
use crate::failure::Outcome;
use crate::report::{self, line};
use crate::settings::{Key, Settings};

/// Protect a snapshot from forget and prune
///
/// JSON: id, protected.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which one
    snapshot: SnapshotSpec,
    /// Lift the protection
    #[arg(long)]
    off: bool,
}

#[derive(Serialize)]
struct Report {
    id: SnapshotId,
    protected: bool,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let id = access::maintain_surely(
        settings,
        "protect",
        &[FrameType::Protect],
        Key::IfGiven,
        |maintenance, _| {
            let catalog = Catalog::read(settings, maintenance.repository())?;
            let id = catalog.resolve(&args.snapshot)?.id;
            catalog.warn_unreadable();
            maintenance.protect(id, !args.off)?;
            Ok(id)
        },
    )?;
    let report = Report {
        id,
        protected: !args.off,
    };
    report::emit(settings, &report, |text| match args.off {
        true => line!(text, "Lifted the protection of {id}"),
        false => line!(text, "Protected {id}"),
    })?;
    Ok(Outcome::Done)
}
