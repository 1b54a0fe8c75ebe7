//! Progress of long work on stderr: a bar, lines of text, or lines of JSON.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::progress::Progress;

use crate::settings::{ProgressMode, Settings};
use crate::units::{Size, Took};

const BAR_INTERVAL: Duration = Duration::from_millis(100);
const JSON_INTERVAL: Duration = Duration::from_millis(500);
const TEXT_INTERVAL: Duration = Duration::from_secs(5);
/// Rates are means over this time: short enough to follow a change, long enough to be read.
const RATE_WINDOW: Duration = Duration::from_secs(8);

/// What is being done.
#[derive(Clone, Debug)]
pub struct Activity {
    /// In a word, as in `backup`.
    pub name: &'static str,
    /// Bytes that it will go through, if that is known before it begins.
    pub total_bytes: u64,
}

/// Shows progress until dropped.
pub struct Display {
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Begins to show `progress`.
    pub fn start(
        settings: &Settings,
        activity: Activity,
        progress: Arc<Progress>,
    ) -> anyhow::Result<Self> {
        let (screen, interval): (Box<dyn Screen>, _) = match settings.progress {
            ProgressMode::Auto | ProgressMode::None => {
                return Ok(Self {
                    end: None,
                    thread: None,
                });
            }
            ProgressMode::Json => (Box::new(JsonLines), JSON_INTERVAL),
            ProgressMode::Bar if io::stderr().is_terminal() => {
                (Box::new(Bar::new(activity.name)), BAR_INTERVAL)
            }
            ProgressMode::Bar => (Box::new(TextLines), TEXT_INTERVAL),
        };
        let (end, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("undercroft-progress".into())
            .spawn(move || show(&*screen, interval, &activity, &progress, &ended))
            .context("starting the display of progress")?;
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn show(
    screen: &dyn Screen,
    interval: Duration,
    activity: &Activity,
    progress: &Progress,
    ended: &mpsc::Receiver<()>,
) {
    let clock = Stopwatch::start();
    let mut rates = Rates::default();
    loop {
        let state = rates.state(activity, progress, clock.elapsed());
        screen.update(&state);
        if ended.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    let mut state = rates.state(activity, progress, clock.elapsed());
    state.finished = true;
    screen.update(&state);
}

/// What is known at a moment: a line of `--progress=json`.
#[derive(Clone, Debug, Serialize)]
struct State {
    activity: &'static str,
    elapsed_s: f64,
    /// Bytes of disk or repository gone through, holes included.
    done_bytes: u64,
    /// Bytes to go through in all; null if unknown.
    total_bytes: Option<u64>,
    /// Bytes read from the source.
    read_bytes: u64,
    /// Bytes of new chunks, before compression.
    sent_bytes: u64,
    /// Bytes written to the repository or the target.
    stored_bytes: u64,
    /// Bytes read or written per second, whichever is more, over the last seconds.
    rate_bytes_per_s: f64,
    /// Seconds left; null if unknown.
    eta_s: Option<f64>,
    finished: bool,
}

/// The last seconds.
#[derive(Default)]
struct Rates {
    /// When, bytes done, bytes moved.
    samples: VecDeque<(Duration, u64, u64)>,
}

impl Rates {
    fn state(&mut self, activity: &Activity, progress: &Progress, now: Duration) -> State {
        let done = progress.done_bytes.get();
        let (read, stored) = (progress.read_bytes.get(), progress.stored_bytes.get());
        let total = progress.total_bytes.get().max(activity.total_bytes);
        self.samples.push_back((now, done, read.max(stored)));
        while self.samples.len() > 2 && now - self.samples[1].0 > RATE_WINDOW {
            self.samples.pop_front();
        }
        let (since, done_then, moved_then) = self.samples[0];
        let seconds = (now - since).as_secs_f64();
        let per_second = |then: u64, now: u64| match seconds > 0.0 {
            true => now.saturating_sub(then) as f64 / seconds,
            false => 0.0,
        };
        let pace = per_second(done_then, done);
        let left = total.saturating_sub(done);
        State {
            activity: activity.name,
            elapsed_s: now.as_secs_f64(),
            done_bytes: done,
            total_bytes: (total > 0).then_some(total),
            read_bytes: read,
            sent_bytes: progress.new_bytes.get(),
            stored_bytes: stored,
            rate_bytes_per_s: per_second(moved_then, read.max(stored)),
            eta_s: (total > 0 && pace > 0.0).then(|| left as f64 / pace),
            finished: false,
        }
    }
}

impl State {
    fn figures(&self) -> String {
        let done = match self.total_bytes {
            Some(total) => format!("{} of {}", Size(self.done_bytes), Size(total)),
            None => Size(self.done_bytes).to_string(),
        };
        let left = match self.eta_s {
            Some(eta) if eta < 1e7 => format!(", {} left", Took(Duration::from_secs_f64(eta))),
            _ => String::new(),
        };
        // What matters most comes first: a narrow terminal cuts the rest off.
        format!(
            "{done}, {}/s{left}; read {}, sent {}, stored {}",
            Size(self.rate_bytes_per_s as u64),
            Size(self.read_bytes),
            Size(self.sent_bytes),
            Size(self.stored_bytes),
        )
    }
}

/// Where progress is shown.
trait Screen: Send {
    fn update(&self, state: &State);
}

struct JsonLines;

impl Screen for JsonLines {
    fn update(&self, state: &State) {
        if let Ok(mut line) = serde_json::to_vec(state) {
            line.push(b'\n');
            let _ = io::stderr().write_all(&line);
        }
    }
}

struct TextLines;

impl Screen for TextLines {
    fn update(&self, state: &State) {
        let _ = writeln!(io::stderr(), "{}: {}", state.activity, state.figures());
    }
}

struct Bar(ProgressBar);

impl Bar {
    fn new(name: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // Not `set_prefix`, which draws at once, in a style that is not ours.
        Self(bar.with_prefix(name))
    }
}

impl Screen for Bar {
    fn update(&self, state: &State) {
        if state.finished {
            self.0.finish_and_clear();
            return;
        }
        let template = match state.total_bytes {
            Some(_) => "{prefix} [{bar:12}] {percent:>3}% {wide_msg}",
            None => "{spinner} {prefix} {elapsed} {wide_msg}",
        };
        if self.0.length() != state.total_bytes || self.0.position() == 0 {
            let style = ProgressStyle::with_template(template).expect("the template is valid");
            self.0.set_style(style.progress_chars("=> "));
        }
        if let Some(total) = state.total_bytes {
            self.0.set_length(total);
        }
        self.0.set_position(state.done_bytes);
        self.0.set_message(state.figures());
        self.0.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_the_pace_of_the_last_seconds() {
        let progress = Progress::default();
        let activity = Activity {
            name: "backup",
            total_bytes: 1000,
        };
        let mut rates = Rates::default();
        let first = rates.state(&activity, &progress, Duration::ZERO);
        assert_eq!((first.eta_s, first.total_bytes), (None, Some(1000)));
        progress.done_bytes.add(200);
        progress.read_bytes.add(100);
        let later = rates.state(&activity, &progress, Duration::from_secs(2));
        assert_eq!(later.eta_s, Some(8.0));
        assert_eq!(later.rate_bytes_per_s, 50.0);
        let stalled = rates.state(&activity, &progress, Duration::from_secs(60));
        assert!(stalled.rate_bytes_per_s < 50.0);
    }
}
