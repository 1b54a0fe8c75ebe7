//! `undercroft proxy show`.

use serde::Serialize;
use undercroft_format::id::TaskId;

use super::view::{TaskView, done_of};
use crate::failure::Outcome;
use crate::proxy::Named;
use crate::report::{self, line};
use crate::settings::Settings;
use crate::units::{Size, local_time, timestamp};

/// Show all that is known of a task
///
/// JSON: what `undercroft proxy tasks` prints, and paths (label, path), warnings, result: what the command would
/// have printed with --json, null before the end.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The task
    #[arg(value_name = "TASK")]
    task: TaskId,
    #[command(flatten)]
    proxy: Named,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    task: TaskView<'a>,
    paths: Vec<Path<'a>>,
    warnings: &'a [String],
    result: Option<&'a serde_json::Value>,
}

#[derive(Serialize)]
struct Path<'a> {
    label: &'a str,
    path: &'a str,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let details = args.proxy.connect()?.show(args.task)?;
    let paths = details.paths.iter();
    let json = Report {
        task: TaskView::of(&details.status),
        paths: paths.map(|(label, path)| Path { label, path }).collect(),
        warnings: &details.notes,
        result: details.result.as_ref(),
    };
    report::emit(settings, &json, |text| {
        let status = &details.status;
        line!(
            text,
            "Task {}: {} of {} for {}, {}",
            status.task,
            status.kind,
            status.subject,
            status.owner,
            status.state
        );
        line!(text, "Repository {}", status.repository);
        for (label, path) in &details.paths {
            line!(text, "  {label}: {path}");
        }
        let time = |ms| local_time(timestamp(ms), &settings.time_zone);
        line!(text, "Submitted {}", time(status.submitted_ms));
        if let Some(started) = status.started_ms {
            let again = match status.runs {
                0 | 1 => String::new(),
                runs => format!(" (run {runs})"),
            };
            line!(text, "Started {}{again}", time(started));
        }
        if let Some(ended) = status.ended_ms {
            line!(text, "Ended {}", time(ended));
        }
        if let Some(waits_for) = &status.waits_for {
            line!(
                text,
                "{}, {}/s, waits for {waits_for}",
                done_of(status),
                Size(status.rate_bytes_per_s as u64)
            );
        }
        for note in &details.notes {
            line!(text, "Warning: {note}");
        }
        text.push_str(&details.text);
        let of = |field: &str| details.result.as_ref().and_then(|result| result.get(field));
        if let Some(error) = of("error").and_then(|error| error.as_str()) {
            line!(text, "Error: {error}");
            let causes = of("causes").and_then(|causes| causes.as_array());
            for cause in causes
                .into_iter()
                .flatten()
                .filter_map(|cause| cause.as_str())
            {
                line!(text, "Caused by: {cause}");
            }
        }
    })?;
    Ok(Outcome::Done)
}
