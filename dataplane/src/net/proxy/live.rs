//! What is known of a task while it is worked on, and not kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::progress::{Progress, Waits};

/// Rates are means over this time.
const RATE_WINDOW: Duration = Duration::from_secs(8);

/// A task that is worked on.
pub struct Live {
    /// Counts, and says when to stop.
    pub progress: Arc<Progress>,
    started: Stopwatch,
    /// What the worker says that it waits for.
    pub waits_for: Option<String>,
    /// When, and bytes moved.
    samples: VecDeque<(Duration, u64)>,
}

impl Live {
    /// Of a run that begins.
    pub fn begin() -> Self {
        Self {
            progress: Arc::default(),
            started: Stopwatch::start(),
            waits_for: None,
            samples: VecDeque::new(),
        }
    }

    /// Counts from zero again. A wish to stop stays.
    pub fn begin_anew(&mut self) -> Arc<Progress> {
        let was_stopping = self.progress.is_stopping();
        *self = Self::begin();
        if was_stopping {
            self.progress.stop();
        }
        self.progress.clone()
    }

    fn moved(&self) -> u64 {
        let progress = &self.progress;
        progress.read_bytes.get().max(progress.stored_bytes.get())
    }

    /// Notes how far it is: to be called every second.
    pub fn sample(&mut self) {
        let now = self.started.elapsed();
        self.samples.push_back((now, self.moved()));
        while self.samples.len() > 1 && now - self.samples[0].0 > RATE_WINDOW {
            self.samples.pop_front();
        }
    }

    /// Bytes per second, over the last seconds.
    pub fn rate(&self) -> f64 {
        let (since, then) = self.samples.front().copied().unwrap_or_default();
        let seconds = self.started.elapsed().saturating_sub(since).as_secs_f64();
        match seconds > 0.0 {
            true => self.moved().saturating_sub(then) as f64 / seconds,
            false => 0.0,
        }
    }

    /// What the run waited for most.
    pub fn slowest(&self, threads: usize) -> &'static str {
        let waits = Waits::of(&self.progress, threads, self.started.elapsed());
        let shares = [
            (waits.source_percent, "the source"),
            (waits.cpu_percent, "the processor"),
            (waits.repository_percent, "the repository"),
        ];
        let most = shares.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        most.map_or("the source", |(_, what)| what)
    }
}
