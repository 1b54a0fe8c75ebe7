//! `undercroft proxy tasks`.

use super::view::{TaskView, done_of};
use crate::failure::Outcome;
use crate::proxy::Named;
use crate::report::{self, Align, Table, line};
use crate::settings::Settings;
use crate::units::{Size, count};

/// List the tasks of a proxy
///
/// Those that wait, run, or ended not long ago: an administrator sees all, others their own.
///
/// JSON: an array of objects with task, kind (backup, restore), subject (the VM; of a restore the snapshot as it
/// was named), repository, owner, state (queued, running, cancelling, done, damage, failed, cancelled, warned),
/// submitted, started, ended, runs, waits_for, session, total_bytes, done_bytes, read_bytes, new_bytes,
/// stored_bytes, rate_bytes_per_s.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    proxy: Named,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let tasks = args.proxy.connect()?.list()?;
    let views: Vec<_> = tasks.iter().map(TaskView::of).collect();
    report::emit(settings, &views, |text| {
        if tasks.is_empty() {
            line!(text, "No tasks");
            return;
        }
        let mut table = Table::new(&[
            ("TASK", Align::Left),
            ("KIND", Align::Left),
            ("SUBJECT", Align::Left),
            ("OWNER", Align::Left),
            ("STATE", Align::Left),
            ("DONE", Align::Right),
            ("RATE", Align::Right),
            ("WAITS FOR", Align::Left),
        ]);
        for task in &tasks {
            table.row(vec![
                task.task.clone(),
                task.kind.clone(),
                task.subject.clone(),
                task.owner.clone(),
                task.state.clone(),
                done_of(task),
                match task.rate_bytes_per_s as u64 {
                    0 => "-".to_owned(),
                    rate => format!("{}/s", Size(rate)),
                },
                task.waits_for.clone().unwrap_or_default(),
            ]);
        }
        table.write(text);
        line!(text, "{}", count(tasks.len() as u64, "task"));
    })?;
    Ok(Outcome::Done)
}
