//! Whether a source elsewhere can be believed where it says that there are zeros.
//!
//! A full read leaves out what an NBD server reports as zero, so that a server that is wrong about it would make
//! a snapshot that lacks data, and so does an increment within what changed. As in an [`audit`](super::audit) one
//! block is drawn from each stratum of what is to be read; those that the server says are zero are read.

use undercroft_format::audit::{AuditShare, Unchanged, pick};
use undercroft_format::ranges::RangeSet;
use undercroft_format::units::DiskRange;

use super::source::DiskSource;
use crate::progress::Progress;
use crate::repository::error::{RepositoryError, Result};

/// The first block of a sample, of all that `left_out` does not touch, that is said to be zero and is not; `random`
/// gives numbers of 64 bits.
///
/// # Errors
/// A source that cannot be asked; [`RepositoryError::Cancelled`]. A block that cannot be read is none: whoever
/// reads the disk meets that.
pub fn untrue_hole(
    source: &DiskSource,
    left_out: &RangeSet,
    share: AuditShare,
    random: &mut dyn FnMut() -> u64,
    progress: &Progress,
) -> Result<Option<DiskRange>> {
    let blocks = Unchanged::new(left_out, source.size(), source.size());
    let strata = share.of(blocks.blocks());
    for place in 0..strata {
        if progress.is_stopping() {
            return Err(RepositoryError::Cancelled);
        }
        let block = blocks.range(pick(blocks.stratum(place, strata), random()));
        let data = source
            .next_data(block.start)
            .map_err(RepositoryError::io("looking for holes in", "the source"))?;
        if data.is_some_and(|data| data.start < block.end) {
            continue;
        }
        let mut bytes = vec![0; block.len() as usize];
        let Ok(read) = source.file().read_at(&mut bytes, block.start) else {
            continue;
        };
        progress.read_bytes.add(read as u64);
        if bytes[..read].iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::ops::Range;
    use std::sync::Arc;

    use super::*;
    use crate::io::BlockFile;

    /// All zeros, it says; from `data` on that is not true.
    #[derive(Debug)]
    struct Liar {
        len: u64,
        data: u64,
    }

    impl BlockFile for Liar {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let len = (self.len - offset).min(buf.len() as u64) as usize;
            for (at, byte) in buf[..len].iter_mut().enumerate() {
                *byte = u8::from(offset + at as u64 >= self.data);
            }
            Ok(len)
        }

        fn len(&self) -> io::Result<u64> {
            Ok(self.len)
        }

        fn next_data(&self, _: u64, _: u64) -> io::Result<Option<Range<u64>>> {
            Ok(None)
        }

        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            unreachable!("sources are read")
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            unreachable!("sources are read")
        }

        fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!("sources are read")
        }

        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!("sources are read")
        }

        fn advise_dont_need(&self) {}
    }

    fn found(data: u64, share: AuditShare) -> Option<DiskRange> {
        found_beyond(&RangeSet::default(), data, share)
    }

    fn found_beyond(left_out: &RangeSet, data: u64, share: AuditShare) -> Option<DiskRange> {
        let len = (8 << 20) + 512;
        let source = DiskSource::new(Arc::new(Liar { len, data }), false).expect("a disk");
        let mut state = 1_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state
        };
        let progress = Progress::default();
        untrue_hole(&source, left_out, share, &mut random, &progress).expect("it can be asked")
    }

    #[test]
    fn data_where_a_source_tells_of_zeros_is_found() {
        let end = (8 << 20) + 512;
        assert_eq!(found(end, AuditShare::ALL), None);
        let last = DiskRange::new(8 << 20, end);
        assert_eq!(found(end - 1, AuditShare::ALL), Some(last));
        assert!(found(4 << 20, AuditShare::default()).is_some());
        assert_eq!(found(0, AuditShare::NONE), None);
        let left_out = RangeSet::from_iter([DiskRange::new(64 << 10, end)]);
        let first = DiskRange::new(0, 64 << 10);
        assert_eq!(found_beyond(&left_out, 64 << 10, AuditShare::ALL), None);
        assert_eq!(found_beyond(&left_out, 0, AuditShare::ALL), Some(first));
    }
}
