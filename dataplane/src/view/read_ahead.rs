//! Who reads in sequence, and how far ahead of them to read.
//!
//! The kernel reads ahead by several requests at once, which arrive in any order, and several readers may share one
//! disk: so a disk has a few *runs*, and a read that begins near a run's end belongs to it. A read that belongs to no
//! run begins one, and nothing is read ahead before a run is long: random reads never get that far.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use undercroft_format::units::DiskRange;

/// Runs that a disk remembers.
const RUNS_MAX: usize = 8;
/// How far from a run's end a read may begin that belongs to it, in bytes: what the kernel has under way at once.
const NEAR: u64 = 2 << 20;
/// Bytes of a run before anything is read ahead.
const RUN_LEN_MIN: u64 = 256 << 10;
/// Bytes read ahead of one run.
const AHEAD_LEN_MIN: u64 = 1 << 20;
const AHEAD_LEN_MAX: u64 = 16 << 20;
/// All runs together read this part of the cache ahead.
const CACHE_PART: u64 = 4;

/// The runs of a process that are long: they share the room that read-ahead may take.
pub struct Sequential {
    long: Arc<AtomicUsize>,
    room: u64,
}

impl Sequential {
    /// For a cache of `cache_len` bytes.
    pub fn new(cache_len: u64) -> Self {
        Self {
            long: Arc::default(),
            room: cache_len / CACHE_PART,
        }
    }

    /// Bytes that one run may be ahead.
    fn ahead_len_max(&self) -> u64 {
        let runs = self.long.load(Ordering::Relaxed).max(1) as u64;
        (self.room / runs).clamp(AHEAD_LEN_MIN, AHEAD_LEN_MAX)
    }
}

/// The runs of one disk.
#[derive(Default)]
pub struct Runs {
    /// The latest first.
    runs: Vec<Run>,
}

struct Run {
    /// One past the last byte read.
    end: u64,
    /// Bytes read.
    len: u64,
    /// One past the last byte that was read ahead.
    ahead: u64,
    /// Counts as long while it lives.
    long: Option<Long>,
}

struct Long(Arc<AtomicUsize>);

impl Drop for Long {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Runs {
    /// Notes a read, and says what to read ahead now.
    pub fn note(&mut self, read: DiskRange, sequential: &Sequential) -> DiskRange {
        let is_near =
            |run: &Run| read.start.abs_diff(run.end) <= NEAR || read.end.abs_diff(run.end) <= NEAR;
        let Some(place) = self.runs.iter().position(is_near) else {
            self.runs.insert(
                0,
                Run {
                    end: read.end,
                    len: read.len(),
                    ahead: read.end,
                    long: None,
                },
            );
            self.runs.truncate(RUNS_MAX);
            return DiskRange::new(read.end, read.end);
        };
        self.runs[..=place].rotate_right(1);
        let run = &mut self.runs[0];
        run.end = run.end.max(read.end);
        run.len = run.len.saturating_add(read.len());
        run.ahead = run.ahead.max(run.end);
        if run.len < RUN_LEN_MIN {
            return DiskRange::new(run.ahead, run.ahead);
        }
        run.long.get_or_insert_with(|| {
            sequential.long.fetch_add(1, Ordering::Relaxed);
            Long(sequential.long.clone())
        });
        let wanted =
            (2 * run.len.min(AHEAD_LEN_MAX)).clamp(AHEAD_LEN_MIN, sequential.ahead_len_max());
        // In large pieces: half of it is read when half of it is left.
        if run.ahead - run.end > wanted / 2 {
            return DiskRange::new(run.ahead, run.ahead);
        }
        let piece = DiskRange::new(run.ahead, run.end.saturating_add(wanted));
        run.ahead = piece.end;
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn sequential() -> Sequential {
        Sequential::new(128 * MIB)
    }

    fn at(start: u64, len: u64) -> DiskRange {
        DiskRange::new(start, start + len)
    }

    #[test]
    fn a_run_is_read_ahead_of_and_no_byte_twice() {
        let (mut runs, sequential) = (Runs::default(), sequential());
        let mut ahead = 0;
        for read in 0..800 {
            // As the kernel asks: two requests change places.
            let piece = runs.note(at((read ^ 1) * 128 * KIB, 128 * KIB), &sequential);
            if !piece.is_empty() {
                assert!(piece.start >= ahead, "{piece} again");
                ahead = piece.end;
            }
            assert!(read < 8 || ahead > (read + 1) * 128 * KIB, "at {read}");
        }
        assert!(ahead <= 800 * 128 * KIB + AHEAD_LEN_MAX);
    }

    #[test]
    fn random_reads_are_not_read_ahead_of() {
        let (mut runs, sequential) = (Runs::default(), sequential());
        let mut place = 1_u64;
        for _ in 0..10_000 {
            place = place
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let piece = runs.note(at((place >> 24) % (1 << 38), 4 * KIB), &sequential);
            assert!(piece.is_empty());
        }
        assert_eq!(sequential.long.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_runs_share_the_room_and_give_it_back() {
        let sequential = sequential();
        let mut readers: Vec<Runs> = (0..64).map(|_| Runs::default()).collect();
        for read in 0..100 {
            for runs in &mut readers {
                runs.note(at(read * MIB, MIB), &sequential);
            }
        }
        let ahead: u64 = readers
            .iter()
            .map(|runs| runs.runs[0].ahead - runs.runs[0].end)
            .sum();
        assert!(ahead <= 64 * AHEAD_LEN_MIN, "{ahead} bytes ahead");
        drop(readers);
        assert_eq!(sequential.long.load(Ordering::Relaxed), 0);
    }
}
