//! The log, on standard error: which lines, and how they look.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::observe::log_limit::{Kind, LogLimit, WINDOW_MS};

use crate::failure::Problem;

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines of text
    Text,
    /// A JSON object per line
    Json,
}

/// Begins to log: what `filter` says, or else as often as `-v` was given.
pub fn log_to_stderr(verbose: u8, filter: Option<&str>, format: LogFormat) -> anyhow::Result<()> {
    let filter = match filter.filter(|filter| !filter.is_empty()) {
        Some(filter) if is_misspelt(filter) => {
            return Err(Problem::usage(format!(
                "{filter:?} is no level of the log: off, error, warn, info, debug, trace"
            ))
            .hint(format!(
                "a part of the program is named with its level: {filter}=debug"
            ))
            .into());
        }
        Some(filter) => filter.parse::<EnvFilter>().map_err(|error| {
            Problem::usage(format!("{filter:?} is no filter for the log: {error}"))
                .hint("as in --log info, or --log warn,undercroft_dataplane::net=debug")
        })?,
        None => by_verbosity(verbose),
    };
    let filter = filter.and(Flood);
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false);
    let registry = tracing_subscriber::registry();
    // Tests of the library part may have set one.
    let _ = match format {
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).try_init(),
        // The journal notes the time by itself.
        LogFormat::Text if is_journal() => registry
            .with(lines.without_time().with_filter(filter))
            .try_init(),
        LogFormat::Text => registry.with(lines.with_filter(filter)).try_init(),
    };
    Ok(())
}

/// A word alone that is no level would be taken for a part of the program, and nothing would be logged.
fn is_misspelt(filter: &str) -> bool {
    filter.chars().all(|c| c.is_ascii_alphabetic()) && filter.parse::<LevelFilter>().is_err()
}

fn by_verbosity(verbose: u8) -> EnvFilter {
    // RocksDB logs what it returns as errors, too, and there it comes with what to do about it. fatfs tells of every
    // image that not Windows made.
    EnvFilter::new(match verbose {
        0 => "warn,rocksdb=off,fatfs=off",
        1 => "info",
        2 => "debug",
        _ => "trace",
    })
}

/// Whether standard error goes to systemd's journal, which says so by the device and inode of the stream.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(io::stderr().as_fd())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

static LIMIT: LazyLock<(LogLimit, Stopwatch)> =
    LazyLock::new(|| (LogLimit::default(), Stopwatch::start()));
static IS_LIMITED: AtomicBool = AtomicBool::new(false);

/// Keeps floods of warnings from filling the disk from now on, as a daemon has to: of each kind the first
/// few are logged, then how many there were. Returns what counts the lines left out.
pub fn limit_floods() -> &'static LogLimit {
    if !IS_LIMITED.swap(true, Ordering::Relaxed) {
        // Without the thread, lines would be left out and never counted in the log.
        let thread = std::thread::Builder::new().name("undercroft-log".into());
        let started = thread.spawn(|| {
            loop {
                std::thread::sleep(Duration::from_millis(WINDOW_MS / 2));
                report();
            }
        });
        IS_LIMITED.store(started.is_ok(), Ordering::Relaxed);
    }
    &LIMIT.0
}

fn report() {
    for left_out in LIMIT.0.sweep(now_ms()) {
        let Kind { place, reason } = left_out.kind;
        let (lines, like) = (left_out.lines, left_out.message);
        tracing::warn!(
            target: FLOOD,
            lines, like, reason, place,
            "lines like one above were left out"
        );
    }
}

/// Lines about lines.
const FLOOD: &str = "undercroft::flood";

fn now_ms() -> u64 {
    LIMIT.1.elapsed().as_millis() as u64
}

/// Lets the first few lines of each kind through.
struct Flood;

impl<S> Filter<S> for Flood {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Strangers cause warnings; what enrolled peers do is information, all of which an audit wants.
        if *metadata.level() > Level::WARN
            || metadata.target() == FLOOD
            || !IS_LIMITED.load(Ordering::Relaxed)
        {
            return true;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let kind = Kind {
            place: metadata.name(),
            reason: line.reason,
        };
        LIMIT.0.passes(kind, &line.message, now_ms())
    }
}

/// What tells two lines apart.
#[derive(Default)]
struct Line {
    message: String,
    reason: String,
}

/// Longest text of a reason or a message that is remembered, in letters: peers may have written it.
const TEXT_LEN_MAX: usize = 120;

impl Line {
    fn note(&mut self, field: &Field, text: &str) {
        let text = text.chars().take(TEXT_LEN_MAX).collect();
        match field.name() {
            "message" => self.message = text,
            "reason" => self.reason = text,
            _ => {}
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if ["message", "reason"].contains(&field.name()) {
            self.note(field, &format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_refused() {
        assert!(log_to_stderr(0, Some("undercroft=loud"), LogFormat::Text).is_err());
    }

    #[test]
    fn every_verbosity_is_a_filter() {
        for (verbose, level) in [(0, "warn"), (1, "info"), (2, "debug"), (3, "trace")] {
            let filter = by_verbosity(verbose).to_string();
            assert!(filter.contains(level), "{filter}");
            assert_eq!(filter.contains("rocksdb=off"), verbose == 0);
        }
    }
}
