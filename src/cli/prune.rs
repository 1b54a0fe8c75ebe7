//! `undercroft prune`.

use serde::Serialize;
use undercroft_control::{Decision, Policy, Within, plan};
use undercroft_dataplane::repository::gc::CollectReport;
use undercroft_format::wire::frame::FrameType;

use super::gc;
use crate::access;
use crate::catalog::Catalog;
use crate::failure::{Outcome, Problem};
use crate::report::{self, Align, Table, line};
use crate::settings::{Key, Settings};
use crate::units::{count, local_time};

/// Remove snapshots that a retention policy does not keep
///
/// Each VM is looked at for itself. A snapshot stays if any rule keeps it; the newest snapshot of every
/// VM, protected and locked ones always stay. A calendar rule keeps the newest snapshot of each of the N most
/// recent periods that have one, in local time. The space comes back with `undercroft gc`, or --gc.
///
/// JSON: dry_run, decisions (id, vm, time, keep, reasons), gc (what `undercroft gc` prints, or null).
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Keep the newest N
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep the newest of each of N hours
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Keep the newest of each of N days
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Keep the newest of each of N weeks (Monday to Sunday)
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// Keep the newest of each of N months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// Keep the newest of each of N years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
    /// Keep all newer than this before the VM's newest, as in 30d, 12h, 1y6m (m: months)
    #[arg(long, value_name = "DURATION")]
    keep_within: Option<Within>,
    /// Keep all with this tag
    #[arg(long = "keep-tag", value_name = "TAG")]
    keep_tags: Vec<String>,
    /// Look at this VM alone
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    /// Only show what would be done
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Collect afterwards, as `undercroft gc` does
    #[arg(long, conflicts_with = "dry_run")]
    gc: bool,
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    decisions: Vec<Decision>,
    gc: Option<CollectReport>,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let policy = Policy {
        last: args.keep_last,
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
        within: args.keep_within,
        keep_tags: args.keep_tags,
    };
    if policy.is_empty() {
        return Err(Problem::usage("there is no rule that keeps anything")
            .hint("give at least one, as in `undercroft prune --keep-daily 7 --keep-weekly 4 --dry-run`")
            .into());
    }
    let decide = |catalog: &Catalog| {
        let mut summaries = catalog.summaries().to_vec();
        if let Some(vm) = &args.vm {
            summaries.retain(|summary| summary.vm == *vm);
            if summaries.is_empty() {
                return Err(Problem::new(format!("no snapshot of VM {vm} was found"))
                    .hint("see what there is: `undercroft snapshots`")
                    .into());
            }
        }
        anyhow::Ok(plan(&summaries, &policy, &settings.time_zone)?)
    };
    let mut purposes = vec![FrameType::Forget];
    purposes.extend(args.gc.then_some(FrameType::Collect));
    if args.dry_run {
        let catalog = Catalog::read(settings, &*access::list(settings, &purposes)?)?;
        catalog.warn_unreadable();
        let outcome = catalog.outcome();
        let report = Report {
            dry_run: true,
            decisions: decide(&catalog)?,
            gc: None,
        };
        report::emit(settings, &report, |text| write(text, settings, &report))?;
        return Ok(outcome);
    }
    let mut decided: Option<Vec<Decision>> = None;
    let (report, outcome) = access::maintain_surely(
        settings,
        "prune",
        &purposes,
        Key::IfGiven,
        |maintenance, _| {
            let catalog = Catalog::read(settings, maintenance.repository())?;
            catalog.warn_unreadable();
            let outcome = catalog.outcome();
            // Asked again, what was decided stays decided: a part of it may have happened.
            let decisions = match decided.take() {
                Some(decisions) => decisions,
                None => decide(&catalog)?,
            };
            decided = Some(decisions.clone());
            let pruned = decisions.iter().filter(|decision| !decision.keep);
            let pruned: Vec<_> = pruned.map(|decision| decision.id).collect();
            maintenance.forget(&catalog.left_of(&pruned))?;
            let gc = match args.gc {
                true => Some(gc::collect(settings, maintenance, &gc::Options::default())?),
                false => None,
            };
            let report = Report {
                dry_run: false,
                decisions,
                gc,
            };
            Ok((report, outcome))
        },
    )?;
    report::emit(settings, &report, |text| write(text, settings, &report))?;
    Ok(outcome)
}

fn write(text: &mut String, settings: &Settings, report: &Report) {
    let mut table = Table::new(&[
        ("", Align::Left),
        ("ID", Align::Left),
        ("VM", Align::Left),
        ("TIME", Align::Left),
        ("WHY", Align::Left),
    ]);
    for decision in &report.decisions {
        table.row(vec![
            if decision.keep { "keep" } else { "prune" }.to_owned(),
            decision.id.short(),
            decision.vm.clone(),
            local_time(decision.time, &settings.time_zone),
            decision.reasons.join(", "),
        ]);
    }
    if !report.decisions.is_empty() {
        table.write(text);
    }
    let pruned = report
        .decisions
        .iter()
        .filter(|decision| !decision.keep)
        .count();
    let kept = report.decisions.len() - pruned;
    let verb = if report.dry_run {
        "Would prune"
    } else {
        "Pruned"
    };
    line!(
        text,
        "{verb} {}, kept {kept}",
        count(pruned as u64, "snapshot")
    );
    if let Some(gc) = &report.gc {
        gc::write(text, gc, false);
    }
}
