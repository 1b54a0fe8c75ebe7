//! `undercroft proxy cancel`.

use serde::Serialize;
use undercroft_format::id::TaskId;

use crate::failure::Outcome;
use crate::proxy::Named;
use crate::report::{self, line};
use crate::settings::Settings;

/// End a task
///
/// One that waits is over at once; one that runs ends as soon as that leaves everything clean. An administrator
/// can cancel any task, others their own. It is no error if the task is over.
///
/// JSON: task.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The task
    #[arg(value_name = "TASK")]
    task: TaskId,
    #[command(flatten)]
    proxy: Named,
}

#[derive(Serialize)]
struct Report {
    task: TaskId,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    args.proxy.connect()?.cancel(args.task)?;
    let report = Report { task: args.task };
    report::emit(settings, &report, |text| {
        line!(text, "Task {} is asked to end", args.task);
    })?;
    Ok(Outcome::Done)
}
