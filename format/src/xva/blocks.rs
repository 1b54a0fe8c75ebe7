//! Where the blocks of one disk lie: their numbers are counters, not offsets.
//!
//! Rule, from xapi-project/xen-api, `ocaml/xapi/stream_vdi.ml`: numbers grow strictly; each number left out
//! stands for one block of zeros as long as the disk's first block; an empty block, sent to keep the
//! connection alive, takes a number and no room. First and last block are always there.

use crate::units::DiskLength;

/// What xapi cuts disks into, in bytes.
pub const XVA_BLOCK_LEN: u64 = 1 << 20;
/// Empty blocks of one disk: one every 5 seconds is what xapi sends, and it gives up after a day.
const KEEP_ALIVES_MAX: u64 = 1 << 20;

/// Follows the blocks of a disk.
#[derive(Clone, Debug)]
pub(super) struct BlockSequence {
    size: u64,
    /// Length of the first block: what a number that is left out stands for.
    unit: Option<u64>,
    next_number: u64,
    offset: u64,
    keep_alives: u64,
}

/// Where a block's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// In bytes from the disk's start.
    pub offset: u64,
    /// Bytes of the disk.
    pub len: u64,
    /// Zeros beyond its end: some writers fill the last block up.
    pub excess: u64,
}

/// A block that cannot follow the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SequenceError {
    /// Without it nothing is known of the others' places.
    #[error(
        "a disk's first block is number 0, with data: this is number {number}, {len} bytes long"
    )]
    First {
        /// Its number.
        number: u64,
        /// Its length.
        len: u64,
    },
    /// Twice, or in disorder.
    #[error("block numbers of a disk grow: {expected} or more is expected here, not {number}")]
    Order {
        /// The number after the last.
        expected: u64,
        /// This one's.
        number: u64,
    },
    /// More than the disk has.
    #[error("block {number} of {len} bytes would lie at {offset}, but the disk ends at {size}")]
    BeyondEnd {
        /// Its number.
        number: u64,
        /// Its length.
        len: u64,
        /// Where it would lie, or as much as 64 bits hold.
        offset: u64,
        /// The disk's length.
        size: u64,
    },
    /// Shorter or longer than those before it.
    #[error("block {number} at {offset} is {len} bytes long where {expected} are expected")]
    Length {
        /// Its number.
        number: u64,
        /// Where it lies.
        offset: u64,
        /// Its length.
        len: u64,
        /// That of the first block, or what is left of the disk.
        expected: u64,
    },
    /// Too many.
    #[error("more than {KEEP_ALIVES_MAX} empty blocks of one disk")]
    KeepAlives,
}

impl BlockSequence {
    pub(super) fn new(size: DiskLength) -> Self {
        Self {
            size: size.get(),
            unit: None,
            next_number: 0,
            offset: 0,
            keep_alives: 0,
        }
    }

    /// Bytes of the disk that are accounted for.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn is_complete(&self) -> bool {
        self.offset == self.size
    }

    /// Places the next block.
    pub(super) fn place(&mut self, number: u64, len: u64) -> Result<Placed, SequenceError> {
        let size = self.size;
        let beyond = |offset| SequenceError::BeyondEnd {
            number,
            len,
            offset,
            size,
        };
        let Some(unit) = self.unit else {
            if number != 0 || len == 0 {
                return Err(SequenceError::First { number, len });
            }
            if size == 0 || len > size.max(XVA_BLOCK_LEN) {
                return Err(beyond(0));
            }
            self.unit = Some(len);
            return Ok(self.advance(number, len));
        };
        let omitted = number.checked_sub(self.next_number);
        let omitted = omitted.ok_or(SequenceError::Order {
            expected: self.next_number,
            number,
        })?;
        let offset = omitted.saturating_mul(unit).saturating_add(self.offset);
        // Nothing may follow the last byte, and zeros at the end are never left out.
        if offset >= size {
            return Err(beyond(offset));
        }
        self.offset = offset;
        if len == 0 {
            self.keep_alives += 1;
            if self.keep_alives > KEEP_ALIVES_MAX {
                return Err(SequenceError::KeepAlives);
            }
            return Ok(self.advance(number, 0));
        }
        let left = size - offset;
        let is_whole = len == unit && len <= left;
        let is_last = left <= unit && (len == left || len == unit);
        if !is_whole && !is_last {
            return Err(SequenceError::Length {
                number,
                offset,
                len,
                expected: left.min(unit),
            });
        }
        Ok(self.advance(number, len))
    }

    fn advance(&mut self, number: u64, len: u64) -> Placed {
        let offset = self.offset;
        let on_disk = len.min(self.size - offset);
        self.offset += on_disk;
        // Numbers are read from at most 19 digits.
        self.next_number = number + 1;
        Placed {
            offset,
            len: on_disk,
            excess: len - on_disk,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where blocks (number, length) of a disk come to lie, and whether it is then complete.
    fn placed(
        size: u64,
        blocks: &[(u64, u64)],
    ) -> Result<(Vec<(u64, u64, u64)>, bool), SequenceError> {
        let mut sequence = BlockSequence::new(DiskLength::new(size));
        let mut places = Vec::new();
        for (number, len) in blocks {
            let place = sequence.place(*number, *len)?;
            places.push((place.offset, place.len, place.excess));
        }
        Ok((places, sequence.is_complete()))
    }

    #[test]
    fn numbers_are_counters() {
        assert_eq!(
            placed(50, &[(0, 10), (1, 0), (3, 10), (4, 0), (6, 10)]),
            Ok((
                vec![(0, 10, 0), (10, 0, 0), (20, 10, 0), (30, 0, 0), (40, 10, 0)],
                true
            ))
        );
    }

    #[test]
    fn last_blocks_are_short_or_filled_up() {
        assert_eq!(
            placed(25, &[(0, 10), (2, 5)]),
            Ok((vec![(0, 10, 0), (20, 5, 0)], true))
        );
        assert_eq!(
            placed(25, &[(0, 10), (2, 10)]),
            Ok((vec![(0, 10, 0), (20, 5, 5)], true))
        );
        assert_eq!(placed(7, &[(0, 7)]), Ok((vec![(0, 7, 0)], true)));
        let filled = placed(7, &[(0, XVA_BLOCK_LEN)]);
        assert_eq!(filled, Ok((vec![(0, 7, XVA_BLOCK_LEN - 7)], true)));
        assert!(!placed(25, &[(0, 10), (1, 10)]).unwrap().1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        use SequenceError as E;
        for (size, blocks, expected) in [
            (50, &[(1, 10)][..], E::First { number: 1, len: 10 }),
            (50, &[(0, 0)], E::First { number: 0, len: 0 }),
            (
                50,
                &[(0, 10), (0, 10)],
                E::Order {
                    expected: 1,
                    number: 0,
                },
            ),
            (
                50,
                &[(0, 10), (2, 10), (1, 10)],
                E::Order {
                    expected: 3,
                    number: 1,
                },
            ),
            (
                50,
                &[(0, 10), (1, 9)],
                E::Length {
                    number: 1,
                    offset: 10,
                    len: 9,
                    expected: 10,
                },
            ),
            (
                50,
                &[(0, 10), (1, 11)],
                E::Length {
                    number: 1,
                    offset: 10,
                    len: 11,
                    expected: 10,
                },
            ),
            (
                25,
                &[(0, 10), (2, 6)],
                E::Length {
                    number: 2,
                    offset: 20,
                    len: 6,
                    expected: 5,
                },
            ),
            (
                25,
                &[(0, 10), (2, 11)],
                E::Length {
                    number: 2,
                    offset: 20,
                    len: 11,
                    expected: 5,
                },
            ),
            (
                30,
                &[(0, 10), (3, 10)],
                E::BeyondEnd {
                    number: 3,
                    len: 10,
                    offset: 30,
                    size: 30,
                },
            ),
            (
                20,
                &[(0, 10), (1, 10), (2, 0)],
                E::BeyondEnd {
                    number: 2,
                    len: 0,
                    offset: 20,
                    size: 20,
                },
            ),
            (
                0,
                &[(0, 10)],
                E::BeyondEnd {
                    number: 0,
                    len: 10,
                    offset: 0,
                    size: 0,
                },
            ),
            (
                50,
                &[(0, 10), (u64::MAX - 1, 10)],
                E::BeyondEnd {
                    number: u64::MAX - 1,
                    len: 10,
                    offset: u64::MAX,
                    size: 50,
                },
            ),
        ] {
            assert_eq!(placed(size, blocks), Err(expected), "{size} {blocks:?}");
        }
    }
}
