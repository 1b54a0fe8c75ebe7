//! The server's time, which never goes back.
//!
//! Tokens and certificates end by the latest time that was ever seen, and new retention locks count from
//! it. A wall clock that is set back, by whomever, makes time stand still until the clock has caught up; it
//! revives nothing. What locks have to reach to be over is what the clock shows
//! ([`RetentionClock`]): the lesser of the two, so that no wrong clock ends a lock for good.
//! The floor is kept in a file (see [`super::authority::Authority::upkeep`]), so that a restart does not
//! forget it.
//!
//! A wall clock that runs ahead is believed, and so raises the floor: keep it right.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use super::time::{UnixMs, WallClock, to_tls};
use crate::repository::retention::RetentionClock;

/// A clock that never shows less than it did.
#[derive(Debug)]
pub struct ServerTime {
    wall: Arc<dyn WallClock>,
    floor_ms: AtomicU64,
}

impl ServerTime {
    /// The time of `wall`, but never before `floor`.
    pub fn new(wall: Arc<dyn WallClock>, floor: UnixMs) -> Self {
        Self {
            wall,
            floor_ms: AtomicU64::new(floor.as_millis()),
        }
    }

    /// The time. Raises the floor to it.
    pub fn now(&self) -> UnixMs {
        let wall = self.wall.now();
        let before = self.floor_ms.fetch_max(wall.as_millis(), Ordering::Relaxed);
        wall.max(UnixMs::from_millis(before))
    }

    /// Raises the floor to `floor`.
    pub(super) fn raise(&self, floor: UnixMs) {
        self.floor_ms
            .fetch_max(floor.as_millis(), Ordering::Relaxed);
    }

    /// How far the wall clock lies behind the floor; zero if it does not.
    pub fn behind(&self) -> std::time::Duration {
        let (wall, now) = (self.wall.now(), self.now());
        std::time::Duration::from_millis(now.as_millis() - wall.as_millis())
    }
}

impl RetentionClock for ServerTime {
    fn shown(&self) -> UnixMs {
        self.wall.now()
    }

    fn latest(&self) -> UnixMs {
        self.now()
    }
}

impl TimeProvider for ServerTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(to_tls(self.now()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::time::SetClock;
    use super::*;

    #[test]
    fn time_stands_still_while_the_clock_is_behind() {
        let wall = Arc::new(SetClock::new(UnixMs::from_seconds(100)));
        let time = ServerTime::new(wall.clone(), UnixMs::from_seconds(50));
        assert_eq!(time.now(), UnixMs::from_seconds(100));
        wall.set(UnixMs::from_seconds(40));
        assert_eq!(time.now(), UnixMs::from_seconds(100));
        assert_eq!(time.behind(), Duration::from_secs(60));
        wall.set(UnixMs::from_seconds(101));
        assert_eq!(time.now(), UnixMs::from_seconds(101));
        assert_eq!(time.behind(), Duration::ZERO);
    }
}
