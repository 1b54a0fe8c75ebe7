//! Retention locks: until when a snapshot can be forgotten by nobody.
//!
//! A clock may be wrong in either direction. What ends a lock is what the clock shows now: one that was set
//! forward and put right again has ended nothing, unless something was forgotten meanwhile. What a new lock
//! counts from is the latest time that is known to have passed: a clock that is behind makes no short locks.
//! Whoever asks has no say in either: its own clock plays no part.

use std::fmt;
use std::time::Duration;

pub use undercroft_format::trust::time::UnixMs;

use crate::wall_clock::{SetClock, SystemClock, WallClock};

/// The time by which locks are set and end.
pub trait RetentionClock: fmt::Debug + Send + Sync {
    /// The time that locks have to reach to be over: what the clock shows.
    fn shown(&self) -> UnixMs;

    /// The time that new locks count from: the latest that is known to have passed, never before
    /// [`shown`](Self::shown).
    fn latest(&self) -> UnixMs;
}

/// The clock of this machine is all that a repository in a directory has.
impl RetentionClock for SystemClock {
    fn shown(&self) -> UnixMs {
        self.now()
    }

    fn latest(&self) -> UnixMs {
        self.now()
    }
}

/// Farthest end of a lock, from the time when it is set: nobody can undo a mistyped year.
pub const LOCK_MAX: Duration = Duration::from_secs(20 * 366 * 24 * 3600);

/// What a retention lock forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The snapshot is locked.
    #[error(
        "the snapshot is locked until {until}, and nobody can shorten that: try again then (the clock that decides shows {now})"
    )]
    Locked {
        /// Until when.
        until: UnixMs,
        /// What the clock shows.
        now: UnixMs,
    },
    /// The lock would end earlier than it does.
    #[error(
        "the snapshot is locked until {until} and cannot be locked until {asked} instead: a lock can only be extended"
    )]
    Shortens {
        /// Until when it is locked.
        until: UnixMs,
        /// What was asked for.
        asked: UnixMs,
    },
    /// The lock would end before it begins.
    #[error("a lock until {asked} would already have ended: the time is {now}")]
    Past {
        /// What was asked for.
        asked: UnixMs,
        /// The time.
        now: UnixMs,
    },
    /// The lock would last too long.
    #[error(
        "a lock until {asked} is refused: the latest that can be asked for now is {latest}, because nobody could shorten it"
    )]
    TooFar {
        /// What was asked for.
        asked: UnixMs,
        /// The latest that is allowed.
        latest: UnixMs,
    },
}

/// Checks that a snapshot locked until `locked_until` may be forgotten at `now`: that it is not before the
/// end of the lock. There is no role that this takes into account.
///
/// # Errors
/// [`LockError::Locked`].
pub fn check_forget(locked_until: Option<UnixMs>, now: UnixMs) -> Result<(), LockError> {
    match locked_until {
        Some(until) if now < until => Err(LockError::Locked { until, now }),
        _ => Ok(()),
    }
}

/// The end of the lock of a snapshot locked until `locked_until`, if at `now` a lock until `asked` is
/// asked for.
///
/// # Errors
/// [`LockError::Shortens`], [`LockError::Past`], [`LockError::TooFar`]: nothing changes.
pub fn extend_lock(
    locked_until: Option<UnixMs>,
    asked: UnixMs,
    now: UnixMs,
) -> Result<UnixMs, LockError> {
    if let Some(until) = locked_until.filter(|until| asked < *until) {
        return Err(LockError::Shortens { until, asked });
    }
    if locked_until == Some(asked) {
        return Ok(asked);
    }
    if asked <= now {
        return Err(LockError::Past { asked, now });
    }
    let latest = now.after(LOCK_MAX);
    if asked > latest {
        return Err(LockError::TooFar { asked, latest });
    }
    Ok(asked)
}

/// For tests and simulation.
impl RetentionClock for SetClock {
    fn shown(&self) -> UnixMs {
        self.now()
    }

    fn latest(&self) -> UnixMs {
        self.now()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> UnixMs {
        UnixMs::from_seconds(seconds)
    }

    #[test]
    fn a_locked_snapshot_is_forgotten_only_once_the_lock_has_ended() {
        assert_eq!(check_forget(None, at(0)), Ok(()));
        assert!(check_forget(Some(at(10)), at(9)).is_err());
        assert_eq!(check_forget(Some(at(10)), at(10)), Ok(()));
    }

    #[test]
    fn mistyped_locks_are_refused() {
        assert!(matches!(
            extend_lock(None, at(5), at(5)),
            Err(LockError::Past { .. })
        ));
        assert!(matches!(
            extend_lock(None, UnixMs::MAX, at(5)),
            Err(LockError::TooFar { .. })
        ));
        // Saying the same again is no error, even when it has ended.
        assert_eq!(extend_lock(Some(at(3)), at(3), at(5)), Ok(at(3)));
    }

    proptest! {
        #[test]
        fn no_sequence_of_requests_brings_the_end_nearer(
            asked in proptest::collection::vec(0..100_u64, 1..20), now in 0..100_u64
        ) {
            let mut until = None;
            for asked in asked {
                if let Ok(extended) = extend_lock(until, at(asked), at(now)) {
                    prop_assert!(until.is_none_or(|until| extended >= until));
                    until = Some(extended);
                }
                if until.is_some_and(|until| at(now) < until) {
                    prop_assert!(check_forget(until, at(now)).is_err());
                }
            }
        }
    }
}
