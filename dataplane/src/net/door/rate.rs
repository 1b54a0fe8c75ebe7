//! A token bucket, with time given from outside.

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Times a second, in the long run.
    pub per_second: u32,
    /// Times at once.
    pub burst: u32,
}

/// What is left of a [`Rate`].
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    /// In thousandths, so that milliseconds divide evenly.
    left: u64,
    at_ms: u64,
}

const WHOLE: u64 = 1000;

impl Bucket {
    /// A full bucket at `now_ms`.
    pub fn full(rate: Rate, now_ms: u64) -> Self {
        Self {
            rate,
            left: u64::from(rate.burst) * WHOLE,
            at_ms: now_ms,
        }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now_ms: u64) -> bool {
        self.left = self.left_at(now_ms);
        self.at_ms = self.at_ms.max(now_ms);
        let has_one = self.left >= WHOLE;
        if has_one {
            self.left -= WHOLE;
        }
        has_one
    }

    /// True if there is one.
    pub fn has_one(&self, now_ms: u64) -> bool {
        self.left_at(now_ms) >= WHOLE
    }

    /// True if more than half is gone.
    pub fn is_below_half(&self, now_ms: u64) -> bool {
        self.left_at(now_ms) * 2 < u64::from(self.rate.burst) * WHOLE
    }

    fn left_at(&self, now_ms: u64) -> u64 {
        let passed = now_ms.saturating_sub(self.at_ms);
        let more = passed.saturating_mul(u64::from(self.rate.per_second));
        let most = u64::from(self.rate.burst) * WHOLE;
        self.left.saturating_add(more).min(most)
    }
}
