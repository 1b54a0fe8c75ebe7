//! What a server says of ranges of an export, kept in order.

/// Most extents of one answer.
pub const EXTENTS_MAX: usize = 1 << 20;

/// A part of an export with one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// In bytes, never zero. The last one of an answer may reach past what was asked.
    pub len: u32,
    /// What its context says: see [`super::wire::STATE_ZERO`] and [`super::wire::STATE_DIRTY`].
    pub state: u32,
}

/// Which ranges of a window have a bit set, growing at its end. Memory is bounded by forgetting the front.
#[derive(Clone, Debug, Default)]
pub struct KnownRanges {
    /// What is known lies in `start..end`.
    start: u64,
    end: u64,
    /// Ranges with the bit set, in order, neither touching nor overlapping.
    set: std::collections::VecDeque<(u64, u64)>,
}

impl KnownRanges {
    /// Nothing is known, from `start` on.
    pub fn beginning_at(start: u64) -> Self {
        Self {
            start,
            end: start,
            set: Default::default(),
        }
    }

    /// Where the known window begins.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Where the known window ends.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Ranges kept.
    pub fn ranges(&self) -> usize {
        self.set.len()
    }

    /// Appends `len` bytes behind what is known.
    pub fn push(&mut self, len: u64, is_set: bool) {
        let start = self.end;
        self.end += len;
        if !is_set || len == 0 {
            return;
        }
        match self.set.back_mut() {
            Some(last) if last.1 == start => last.1 = self.end,
            _ => self.set.push_back((start, self.end)),
        }
    }

    /// Forgets what lies before `offset`.
    pub fn forget_before(&mut self, offset: u64) {
        self.start = offset.clamp(self.start, self.end);
        while self.set.front().is_some_and(|range| range.1 <= self.start) {
            self.set.pop_front();
        }
    }

    /// The first range that is set at or after `offset` (inside the window), clipped to it; `None` if
    /// there is none up to the window's end.
    pub fn next_set(&self, offset: u64) -> Option<(u64, u64)> {
        let place = self.set.partition_point(|range| range.1 <= offset);
        let range = self.set.get(place)?;
        Some((range.0.max(offset), range.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_and_the_front_is_forgotten() {
        let mut known = KnownRanges::beginning_at(100);
        for (len, is_set) in [(10, false), (5, true), (5, true), (10, false), (7, true)] {
            known.push(len, is_set);
        }
        assert_eq!((known.start(), known.end(), known.ranges()), (100, 137, 2));
        assert_eq!(known.next_set(100), Some((110, 120)));
        assert_eq!(known.next_set(115), Some((115, 120)));
        assert_eq!(known.next_set(120), Some((130, 137)));
        assert_eq!(known.next_set(137), None);
        known.forget_before(125);
        assert_eq!((known.start(), known.ranges()), (125, 1));
    }
}
