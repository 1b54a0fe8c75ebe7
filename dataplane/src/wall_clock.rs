//! The wall clock: the one place that reads it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use undercroft_format::trust::time::UnixMs;

/// A wall clock. It may be wrong and may go backwards.
pub trait WallClock: fmt::Debug + Send + Sync {
    /// What it shows.
    fn now(&self) -> UnixMs;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl WallClock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    fn now(&self) -> UnixMs {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        UnixMs::ZERO.after(since_epoch)
    }
}

/// A clock that shows what it was set to. For tests and simulation.
#[derive(Debug)]
pub struct SetClock(AtomicU64);

impl SetClock {
    /// A clock that shows `now`.
    pub fn new(now: UnixMs) -> Self {
        Self(AtomicU64::new(now.as_millis()))
    }

    /// Sets it, forwards or backwards.
    pub fn set(&self, now: UnixMs) {
        self.0.store(now.as_millis(), Ordering::Relaxed);
    }

    /// Moves it forwards.
    pub fn advance(&self, duration: Duration) {
        self.set(self.now().after(duration));
    }
}

impl WallClock for SetClock {
    fn now(&self) -> UnixMs {
        UnixMs::from_millis(self.0.load(Ordering::Relaxed))
    }
}
