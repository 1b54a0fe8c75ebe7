//! The one place that reads the monotonic clock: for figures shown to people, never for decisions
//! about data.

use std::time::{Duration, Instant};

use crate::simulate;

/// Measures time from its making.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Start);

#[derive(Clone, Copy, Debug)]
enum Start {
    Real(Instant),
    Simulated(Duration),
}

impl Stopwatch {
    /// Starts now.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the clock"
    )]
    pub fn start() -> Self {
        Self(match simulate::now() {
            Some(now) => Start::Simulated(now),
            None => Start::Real(Instant::now()),
        })
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        match self.0 {
            Start::Real(start) => start.elapsed(),
            Start::Simulated(start) => simulate::now().unwrap_or_default().saturating_sub(start),
        }
    }
}
