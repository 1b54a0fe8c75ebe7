//! `undercroft gc`.

use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::gc::{CollectOptions, CollectReport};
use undercroft_dataplane::repository::maintenance::Maintenance;
use undercroft_format::wire::frame::FrameType;

use crate::access;
use crate::failure::{Outcome, Problem};
use crate::progress::Activity;
use crate::report::{self, line};
use crate::settings::{Key, Settings};
use crate::units::{Size, count};
use crate::work::Work;

/// Give back the space of data that no snapshot refers to
///
/// Works on a full disk and without the key. Packs that hold little live data are rewritten. Interrupted
/// at any moment it leaves everything intact.
///
/// JSON: snapshots, references, packs, bytes_before, live_bytes, packs_removed, packs_rewritten,
/// packs_held, leftovers_removed, bytes_freed, bytes_rewritten, rewrite_stopped, mark_ms.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Only show what would be done
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Rewrite packs whose live share is below this, in per cent: 0 rewrites none
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = CollectOptions::default().rewrite_below_percent,
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    rewrite_below: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dry_run: false,
            rewrite_below: CollectOptions::default().rewrite_below_percent,
        }
    }
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let report = access::maintain(
        settings,
        "gc",
        &[FrameType::Collect],
        Key::IfGiven,
        |maintenance| collect(settings, maintenance, &args.options),
    )?;
    report::emit(settings, &report, |text| {
        write(text, &report, args.options.dry_run);
    })?;
    Ok(Outcome::Done)
}

/// Collects in an open repository.
pub fn collect(
    settings: &Settings,
    maintenance: &dyn Maintenance,
    options: &Options,
) -> anyhow::Result<CollectReport> {
    let work = Work::start(
        settings,
        Activity {
            name: "gc",
            total_bytes: 0,
        },
    )?;
    let options = CollectOptions {
        rewrite_below_percent: options.rewrite_below,
        dry_run: options.dry_run,
        ..CollectOptions::default()
    };
    maintenance
        .collect(&options, &work.progress)
        .map_err(|error| match error {
            RepositoryError::Cancelled => Problem::new(
                "stopped on request: what was freed so far is free, nothing else changed",
            )
            .hint("to go on: `undercroft gc`")
            .into(),
            error => error.into(),
        })
}

/// Adds what a collection did to `text`.
pub fn write(text: &mut String, report: &CollectReport, dry_run: bool) {
    line!(
        text,
        "{} in {}, {} live in {}",
        Size(report.bytes_before),
        count(report.packs, "pack"),
        Size(report.live_bytes),
        count(report.snapshots, "snapshot")
    );
    line!(
        text,
        "{}: {} removed, {} rewritten ({} copied), {} removed",
        match dry_run {
            true => format!("Would free {}", Size(report.bytes_freed)),
            false => format!("Freed {}", Size(report.bytes_freed)),
        },
        count(report.packs_removed, "pack"),
        report.packs_rewritten,
        Size(report.bytes_rewritten),
        count(report.leftovers_removed, "left-over")
    );
    if report.packs_held > 0 {
        line!(
            text,
            "{} could go but are in use by readers or sessions: run again later",
            count(report.packs_held, "pack")
        );
    }
    if let Some(why) = &report.rewrite_stopped {
        line!(text, "Rewriting ended early: {why}");
    }
}
