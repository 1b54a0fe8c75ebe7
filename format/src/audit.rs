//! Which blocks an audit of changed blocks looks at, and what it can miss.
//!
//! The blocks of 64 KiB that are said not to have changed, holes included, are numbered in address order and cut
//! into strata of equal size; of each stratum one block is looked at, any with the same probability. A fault
//! that covers more blocks than two strata have is found for certain, if it lies in one piece.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::ranges::RangeSet;
use crate::source::changed::BLOCK_LEN;
use crate::units::{DiskLength, DiskRange};

/// Blocks looked at whatever their share comes to, if there are so many.
pub const BLOCKS_MIN: u64 = 16;

/// The share of the blocks that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditShare {
    /// In millionths.
    ppm: u32,
}

impl AuditShare {
    const PPM: u32 = 1_000_000;
    /// No audit.
    pub const NONE: Self = Self { ppm: 0 };
    /// Every block.
    pub const ALL: Self = Self { ppm: Self::PPM };

    /// A share in millionths; `None` above all of them.
    pub const fn from_ppm(ppm: u32) -> Option<Self> {
        if ppm <= Self::PPM {
            Some(Self { ppm })
        } else {
            None
        }
    }

    /// In millionths.
    pub const fn ppm(self) -> u32 {
        self.ppm
    }

    /// How many of `blocks` are looked at.
    pub fn of(self, blocks: u64) -> u64 {
        if self == Self::NONE {
            return 0;
        }
        let share = u128::from(blocks) * u128::from(self.ppm);
        let share = share.div_ceil(Self::PPM.into()) as u64;
        share.max(BLOCKS_MIN).min(blocks)
    }
}

/// 0.1 %.
impl Default for AuditShare {
    fn default() -> Self {
        Self { ppm: 1_000 }
    }
}

impl fmt::Display for AuditShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:04}", self.ppm / 10_000, self.ppm % 10_000);
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Not a share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} should be a percentage from 0% to 100% with at most four decimals, as in 0.1%")]
pub struct AuditShareError(String);

impl FromStr for AuditShare {
    type Err = AuditShareError;

    fn from_str(text: &str) -> Result<Self, AuditShareError> {
        let error = || AuditShareError(text.to_owned());
        let number = text.strip_suffix('%').map(str::trim_end);
        // Nothing and everything need no unit.
        let number = number.or((text == "0").then_some(text)).ok_or_else(error)?;
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !are_digits(whole) || !are_digits(decimals) || decimals.len() > 4 {
            return Err(error());
        }
        let whole: u32 = whole.parse().map_err(|_| error())?;
        let decimals: u32 = format!("{decimals:0<4}").parse().map_err(|_| error())?;
        let ppm = whole
            .checked_mul(10_000)
            .and_then(|ppm| ppm.checked_add(decimals));
        ppm.and_then(Self::from_ppm).ok_or_else(error)
    }
}

/// The blocks of a disk that no changed range touches, numbered from 0.
#[derive(Clone, Debug)]
pub struct Unchanged {
    /// Bytes that the disk and its parent have in common.
    len: u64,
    /// The number of the first block of each gap between changed ranges, and where on the disk it lies, in
    /// blocks.
    gaps: Vec<(u64, u64)>,
    blocks: u64,
}

impl Unchanged {
    /// What `changed` leaves of a disk of `size` whose parent has `parent_size`.
    pub fn new(changed: &RangeSet, size: DiskLength, parent_size: DiskLength) -> Self {
        let len = size.min(parent_size).get();
        let end = len.div_ceil(BLOCK_LEN);
        let mut unchanged = Self {
            len,
            gaps: Vec::new(),
            blocks: 0,
        };
        let mut at = 0;
        for range in changed.ranges() {
            unchanged.push(at, (range.start / BLOCK_LEN).min(end));
            at = at.max(range.end.div_ceil(BLOCK_LEN));
        }
        unchanged.push(at, end);
        unchanged
    }

    fn push(&mut self, first: u64, end: u64) {
        if first < end {
            self.gaps.push((self.blocks, first));
            self.blocks += end - first;
        }
    }

    /// How many there are.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where block `number`, below [`blocks`](Self::blocks), lies on the disk.
    pub fn range(&self, number: u64) -> DiskRange {
        let place = self.gaps.partition_point(|(first, _)| *first <= number) - 1;
        let (first, at) = self.gaps[place];
        let start = (at + number - first) * BLOCK_LEN;
        DiskRange::new(start, (start + BLOCK_LEN).min(self.len))
    }

    /// The numbers in stratum `place` of `strata`.
    pub fn stratum(&self, place: u64, strata: u64) -> Range<u64> {
        let edge = |place: u64| {
            let edge = u128::from(self.blocks) * u128::from(place) / u128::from(strata);
            edge as u64
        };
        edge(place)..edge(place + 1)
    }
}

/// A number of `range`, which is not empty, from 64 random bits: any with the same probability, but for 2^-64
/// of the range's length.
pub fn pick(range: Range<u64>, random: u64) -> u64 {
    let len = range.end - range.start;
    range.start + ((u128::from(random) * u128::from(len)) >> 64) as u64
}

/// The most that the probability can be that a fault in `faulty` of `unchanged` blocks, wherever they lie, is
/// missed by looking at one block in each of `strata`.
///
/// Zero if there are not so many blocks. A stratum of s blocks, m of them faulty, is passed with 1 - m/s; the product over all strata is largest where
/// the faulty blocks are spread evenly. With s the largest stratum, q = floor(faulty / strata) and r the rest:
/// (1 - (q+1)/s)^r * (1 - q/s)^(strata-r).
pub fn missed(unchanged: u64, strata: u64, faulty: u64) -> f64 {
    if faulty > unchanged {
        return 0.0;
    }
    if strata == 0 {
        return 1.0;
    }
    let (each, more) = (faulty / strata, faulty % strata);
    let size = unchanged.div_ceil(strata) as f64;
    let passed = |faulty: u64| (1.0 - faulty as f64 / size).max(0.0);
    passed(each + 1).powf(more as f64) * passed(each).powf((strata - more) as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unchanged(changed: &[(u64, u64)], len: u64) -> Unchanged {
        let changed = changed
            .iter()
            .map(|(start, end)| DiskRange::new(*start, *end));
        let size = DiskLength::new(len);
        Unchanged::new(&changed.collect(), size, size)
    }

    #[test]
    fn shares_are_percentages() {
        for (text, ppm) in [
            ("0.1%", 1_000),
            ("100%", 1_000_000),
            ("0", 0),
            ("0%", 0),
            ("0.0001 %", 1),
            ("33.25%", 332_500),
        ] {
            assert_eq!(text.parse(), Ok(AuditShare { ppm }), "{text}");
        }
        for text in [
            "",
            "1",
            "%",
            "101%",
            "100.0001%",
            "-1%",
            "0.00001%",
            "1.%",
            ".5%",
            "1e1%",
            "+1%",
        ] {
            assert!(text.parse::<AuditShare>().is_err(), "{text}");
        }
        assert_eq!(AuditShare::default().to_string(), "0.1%");
        assert_eq!(AuditShare::ALL.to_string(), "100%");
        assert_eq!(AuditShare::NONE.to_string(), "0%");
    }

    #[test]
    fn at_least_sixteen_blocks_are_looked_at() {
        let share = AuditShare::default();
        assert_eq!(share.of(10), 10);
        assert_eq!(share.of(10_000), 16);
        assert_eq!(share.of(16_001), 17);
        assert_eq!(share.of(131_072), 132);
        assert_eq!(AuditShare::NONE.of(131_072), 0);
        assert_eq!(AuditShare::ALL.of(131_072), 131_072);
        assert_eq!(AuditShare::ALL.of(0), 0);
    }

    #[test]
    fn blocks_that_changed_in_part_are_not_among_them() {
        let block = |number: u64| DiskRange::new(number << 16, (number + 1) << 16);
        let found = unchanged(&[(1, 2), (3 << 16, (4 << 16) + 1)], (6 << 16) + 9);
        assert_eq!(found.blocks(), 4);
        let last = DiskRange::new(6 << 16, (6 << 16) + 9);
        let ranges: Vec<_> = (0..4).map(|number| found.range(number)).collect();
        assert_eq!(ranges, [block(1), block(2), block(5), last]);
        assert_eq!(unchanged(&[(0, 9 << 16)], 9 << 16).blocks(), 0);
        assert_eq!(unchanged(&[], 0).blocks(), 0);
        let grown = Unchanged::new(
            &RangeSet::from_iter([DiskRange::new(100, 9 << 16)]),
            DiskLength::new(9 << 16),
            DiskLength::new(100),
        );
        assert_eq!(grown.blocks(), 0, "the block at the old end is read anyway");
    }

    #[test]
    fn a_fault_is_missed_as_often_as_is_said() {
        // Every choice of a block in each of 4 strata of 3, against faults in all places.
        let (blocks, strata) = (12_u64, 4_u64);
        let all = unchanged(&[], blocks << 16);
        for faulty in 0..=blocks {
            let mut worst = 0.0_f64;
            for places in
                (0..1_u32 << blocks).filter(|places| u64::from(places.count_ones()) == faulty)
            {
                let passed = (0..strata).map(|place| {
                    let stratum = all.stratum(place, strata);
                    let good = stratum
                        .clone()
                        .filter(|block| places & 1 << block == 0)
                        .count();
                    good as f64 / (stratum.end - stratum.start) as f64
                });
                worst = worst.max(passed.product());
            }
            let said = missed(blocks, strata, faulty);
            assert!(
                (said - worst).abs() < 1e-12,
                "{faulty}: {said} instead of {worst}"
            );
        }
    }

    #[test]
    fn what_is_said_of_usual_disks() {
        // 8 GiB, 0.1 %: close to (1 - m/U)^n.
        for mib in [1_u64, 16, 256] {
            let simple = (1.0 - (mib * 16) as f64 / 131_072.0).powi(132);
            let said = missed(131_072, 132, mib * 16);
            assert!((said - simple).abs() < 0.005, "{mib} MiB: {said}, {simple}");
        }
        assert_eq!(missed(131_072, 131_072, 1), 0.0);
        assert_eq!(missed(131_072, 0, 1), 1.0);
        assert_eq!(missed(131_072, 132, 0), 1.0);
        assert_eq!(missed(100, 16, 101), 0.0);
    }

    proptest! {
        #[test]
        fn strata_share_the_blocks_out(
            changed in proptest::collection::vec((0..500_u64, 1..30_u64), 0..20),
            share in 1..1_000_000_u32,
            randoms in any::<[u64; 7]>(),
        ) {
            let changed: Vec<_> = changed.iter().map(|(start, len)| (start * 40_000, (start + len) * 40_000)).collect();
            let found = unchanged(&changed, 20_000_000);
            let strata = AuditShare { ppm: share }.of(found.blocks());
            let (mut next, mut last) = (0, None);
            for place in 0..strata {
                let stratum = found.stratum(place, strata);
                prop_assert_eq!(stratum.start, next);
                prop_assert!(!stratum.is_empty());
                prop_assert!(stratum.end - stratum.start <= found.blocks().div_ceil(strata));
                next = stratum.end;
                let number = pick(stratum.clone(), randoms[place as usize % 7]);
                prop_assert!(stratum.contains(&number));
                let range = found.range(number);
                prop_assert!(range.start.is_multiple_of(BLOCK_LEN) && !range.is_empty());
                prop_assert!(last.is_none_or(|last| last < range.start));
                last = Some(range.start);
                let touches = |(start, end): &(u64, u64)| !range.intersect(DiskRange::new(*start, *end)).is_empty();
                prop_assert!(!changed.iter().any(touches));
            }
            prop_assert_eq!(next, found.blocks());
        }
    }
}
