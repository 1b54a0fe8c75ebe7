//! Numbers with meanings: positions and lengths on virtual disks and in packs.
//!
//! Every type here counts bytes unless its name says otherwise, and a value of one type cannot be
//! passed where another is expected. Arithmetic that could overflow is checked by the constructors or
//! panics only on a bug of ours (foreign numbers go through `checked_*`).

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! byte_unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Zero bytes.
            pub const ZERO: Self = Self(0);

            /// Wraps a count of bytes.
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// The count of bytes.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

byte_unit! {
    /// Position on a virtual disk, in bytes from its start. Never a pack position: see [`PackOffset`].
    DiskOffset
}
byte_unit! {
    /// Size of a virtual disk, or of a range of it, in bytes.
    DiskLength
}
byte_unit! {
    /// Position in a pack file, in bytes from its start. Never a disk position: see [`DiskOffset`].
    PackOffset
}

impl DiskOffset {
    /// The position `length` further on, or `None` past 2^64.
    pub const fn checked_add(self, length: DiskLength) -> Option<Self> {
        match self.0.checked_add(length.0) {
            Some(end) => Some(Self(end)),
            None => None,
        }
    }
}

/// A range of a virtual disk: `start..end` in bytes, `end` exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl DiskRange {
    /// The range `start..end`; an `end` before `start` gives the empty range at `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end: if end < start { start } else { end },
        }
    }

    /// Bytes covered.
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// True if no byte is covered.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The part common to both, possibly empty.
    pub fn intersect(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }
}

impl fmt::Display for DiskRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Size of the segments of a disk: a power of two from 1 MiB to 64 MiB.
///
/// The last segment of a disk is short when the disk's size is no multiple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize(u8);

impl SegmentSize {
    /// 16 MiB; ARCHITECTURE.md has the measurement behind the choice.
    pub const DEFAULT: Self = Self(24);
    /// 1 MiB.
    pub const MIN_LOG2: u8 = 20;
    /// 64 MiB.
    pub const MAX_LOG2: u8 = 26;

    /// The size `2^log2` bytes, or `None` outside `MIN_LOG2..=MAX_LOG2`.
    pub const fn from_log2(log2: u8) -> Option<Self> {
        if log2 >= Self::MIN_LOG2 && log2 <= Self::MAX_LOG2 {
            Some(Self(log2))
        } else {
            None
        }
    }

    /// The exponent.
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// How many segments a disk of `size` has.
    pub const fn segments_of(self, size: DiskLength) -> u64 {
        size.get().div_ceil(self.bytes())
    }

    /// The segment that holds the byte at `offset`.
    pub const fn segment_at(self, offset: u64) -> SegmentNumber {
        SegmentNumber(offset >> self.0)
    }

    /// The disk range of segment `number` on a disk of `size`; empty past the end.
    pub fn range_of(self, number: SegmentNumber, size: DiskLength) -> DiskRange {
        let start = number.0.saturating_mul(self.bytes()).min(size.get());
        DiskRange::new(start, start.saturating_add(self.bytes()).min(size.get()))
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Ordinal of a segment on its disk, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_segment_is_short() {
        let size = DiskLength::new(SegmentSize::DEFAULT.bytes() + 5);
        assert_eq!(SegmentSize::DEFAULT.segments_of(size), 2);
        let last = SegmentSize::DEFAULT.range_of(SegmentNumber(1), size);
        assert_eq!(last.len(), 5);
        assert!(
            SegmentSize::DEFAULT
                .range_of(SegmentNumber(2), size)
                .is_empty()
        );
    }

    #[test]
    fn segment_sizes_outside_the_limits_are_refused() {
        assert!(SegmentSize::from_log2(19).is_none());
        assert!(SegmentSize::from_log2(27).is_none());
    }
}
