//! `undercroft forget`.

use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_format::id::SnapshotId;
use undercroft_format::wire::frame::FrameType;

use crate::access;
use crate::catalog::Catalog;
use crate::failure::Outcome;
use crate::report::{self, line};
use crate::settings::{Key, Settings};

/// Remove snapshots
///
/// All other snapshots stay complete, whatever is removed. The space comes back with `undercroft gc`.
/// If one of the snapshots is not there, is protected or locked, none is removed. Needs no key.
///
/// JSON: forgotten (ids).
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<SnapshotSpec>,
}

#[derive(Serialize)]
struct Report {
    forgotten: Vec<SnapshotId>,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let mut forgotten: Vec<SnapshotId> = Vec::new();
    access::maintain_surely(
        settings,
        "forget",
        &[FrameType::Forget],
        Key::IfGiven,
        |maintenance, is_again| {
            let catalog = Catalog::read(settings, maintenance.repository())?;
            if is_again && !forgotten.is_empty() {
                return Ok(maintenance.forget(&catalog.left_of(&forgotten))?);
            }
            for spec in &args.snapshots {
                let stored = catalog.resolve(spec)?;
                if stored.protected {
                    return Err(RepositoryError::Protected { id: stored.id }.into());
                }
                if !forgotten.contains(&stored.id) {
                    forgotten.push(stored.id);
                }
            }
            catalog.warn_unreadable();
            Ok(maintenance.forget(&forgotten)?)
        },
    )?;
    let report = Report { forgotten };
    report::emit(settings, &report, |text| {
        for id in &report.forgotten {
            line!(text, "Forgot {id}");
        }
    })?;
    Ok(Outcome::Done)
}
