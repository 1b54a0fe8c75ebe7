//! A qcow2 image to be written: every byte's place follows from the disk's size and from which clusters are there, so
//! that it can be written in order.
//!
//! ```text
//! header | refcount table | refcount blocks | L1 table | L2 tables | clusters of data, in the disk's order
//! ```
//!
//! Every cluster of the file is referred to once. An L2 table is there where one of its clusters is.

use std::ops::Range;

use crate::units::{DiskLength, DiskRange};

/// Bytes of a cluster: QEMU's own choice, and the granularity of its dirty bitmaps.
pub const CLUSTER_LEN: u64 = 1 << CLUSTER_BITS;

const CLUSTER_BITS: u32 = 16;
const MAGIC: &[u8; 4] = b"QFI\xfb";
const VERSION: u32 = 3;
/// Bytes of the header without extensions.
const HEADER_LEN: u32 = 104;
/// Reference counts have 16 bits.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNTS_PER_CLUSTER: u64 = CLUSTER_LEN / 2;
/// Entries of 8 bytes that a cluster holds.
const ENTRIES: u64 = CLUSTER_LEN / 8;
/// In L1 and L2 entries: what they lead to is referred to once.
const COPIED: u64 = 1 << 63;
/// QEMU's bound of the L1 table: 32 MiB (block/qcow2.h, QCOW_MAX_L1_SIZE).
const DISK_LEN_MAX: u64 = (32 << 20) / 8 * ENTRIES * CLUSTER_LEN;
/// What QEMU addresses disks in, in bytes.
const SECTOR_LEN: u64 = 512;

/// A disk that a qcow2 image cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk has {size} bytes: a qcow2 image holds a multiple of {SECTOR_LEN} up to {DISK_LEN_MAX} (2 PiB)"
)]
pub struct UnfitSize {
    /// Size of the disk.
    pub size: DiskLength,
}

/// Clusters of the disk, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    clusters: Range<u64>,
    /// Clusters that are there before it.
    before: u64,
}

/// The layout of an image.
#[derive(Clone, Debug)]
pub struct Layout {
    size: DiskLength,
    runs: Vec<Run>,
    /// Numbers of the L2 tables that are there, in order.
    tables: Vec<u64>,
    places: Places,
}

/// First clusters of the file's parts.
#[derive(Clone, Copy, Debug)]
struct Places {
    refcount_blocks: u64,
    l1: u64,
    l2: u64,
    data: u64,
    end: u64,
}

impl Layout {
    /// An image of a disk in which those clusters are there that `data` touches. `data` is in order.
    ///
    /// # Errors
    /// A size that no image has.
    pub fn new(
        size: DiskLength,
        data: impl IntoIterator<Item = DiskRange>,
    ) -> Result<Self, UnfitSize> {
        check_size(size)?;
        let disk = DiskRange::new(0, size.get());
        let mut runs: Vec<Run> = Vec::new();
        let mut tables: Vec<u64> = Vec::new();
        for range in data {
            let range = range.intersect(disk);
            if range.is_empty() {
                continue;
            }
            let clusters = range.start / CLUSTER_LEN..range.end.div_ceil(CLUSTER_LEN);
            match runs.last_mut() {
                Some(last) if last.clusters.end >= clusters.start => {
                    last.clusters.end = last.clusters.end.max(clusters.end);
                }
                last => {
                    let before = last.map_or(0, |run| run.before + run.len());
                    runs.push(Run {
                        clusters: clusters.clone(),
                        before,
                    });
                }
            }
            let first = clusters.start / ENTRIES;
            let next = tables.last().map_or(first, |last| first.max(last + 1));
            tables.extend(next..=(clusters.end - 1) / ENTRIES);
        }
        let places = places(size, &runs, tables.len() as u64);
        Ok(Self {
            size,
            runs,
            tables,
            places,
        })
    }

    /// Size of the disk.
    pub fn size(&self) -> DiskLength {
        self.size
    }

    /// Bytes of the file.
    #[expect(clippy::len_without_is_empty, reason = "no image is empty")]
    pub fn len(&self) -> u64 {
        self.places.end * CLUSTER_LEN
    }

    /// Clusters before the first one of data.
    pub fn head_clusters(&self) -> u64 {
        self.places.data
    }

    /// The parts of the disk that are there, in order: whole clusters, the last of which may end behind the disk.
    pub fn present(&self) -> impl Iterator<Item = DiskRange> {
        self.runs.iter().map(|run| {
            DiskRange::new(
                run.clusters.start * CLUSTER_LEN,
                run.clusters.end * CLUSTER_LEN,
            )
        })
    }

    /// Cluster `number` of those before the first one of data.
    pub fn head(&self, number: u64) -> Vec<u8> {
        let Places {
            refcount_blocks,
            l1,
            l2,
            data,
            end,
        } = self.places;
        let mut cluster = Vec::with_capacity(CLUSTER_LEN as usize);
        if number == 0 {
            self.put_header(&mut cluster);
        } else if number < refcount_blocks {
            let first = refcount_blocks + (number - 1) * ENTRIES;
            put_all(&mut cluster, first..l1.min(first + ENTRIES), |block| {
                block * CLUSTER_LEN
            });
        } else if number < l1 {
            let first = (number - refcount_blocks) * REFCOUNTS_PER_CLUSTER;
            let counted = end.saturating_sub(first).min(REFCOUNTS_PER_CLUSTER);
            for _ in 0..counted {
                cluster.extend_from_slice(&1_u16.to_be_bytes());
            }
        } else if number < l2 {
            let first = (number - l1) * ENTRIES;
            let entries = first..self.l1_entries().min(first + ENTRIES);
            put_all(&mut cluster, entries, |table| {
                let place = self.tables.binary_search(&table).ok();
                place.map_or(0, |place| ((l2 + place as u64) * CLUSTER_LEN) | COPIED)
            });
        } else {
            let first = self.tables[(number - l2) as usize] * ENTRIES;
            let mut run = self.runs.partition_point(|run| run.clusters.end <= first);
            put_all(&mut cluster, first..first + ENTRIES, |entry| {
                while self
                    .runs
                    .get(run)
                    .is_some_and(|run| run.clusters.end <= entry)
                {
                    run += 1;
                }
                let found = self.runs.get(run);
                let found = found.filter(|run| run.clusters.start <= entry);
                found.map_or(0, |run| {
                    let place = data + run.before + entry - run.clusters.start;
                    (place * CLUSTER_LEN) | COPIED
                })
            });
        }
        cluster.resize(CLUSTER_LEN as usize, 0);
        cluster
    }

    fn l1_entries(&self) -> u64 {
        l1_entries(self.size)
    }

    fn put_header(&self, out: &mut Vec<u8>) {
        let Places {
            refcount_blocks,
            l1,
            ..
        } = self.places;
        out.extend_from_slice(MAGIC);
        put32(out, VERSION);
        // No backing file: offset, length.
        put64(out, 0);
        put32(out, 0);
        put32(out, CLUSTER_BITS);
        put64(out, self.size.get());
        // Not encrypted.
        put32(out, 0);
        put32(out, self.l1_entries() as u32);
        put64(out, l1 * CLUSTER_LEN);
        put64(out, CLUSTER_LEN);
        put32(out, (refcount_blocks - 1) as u32);
        // No snapshots: number, offset.
        put32(out, 0);
        put64(out, 0);
        // Incompatible, compatible and autoclear features.
        for _ in 0..3 {
            put64(out, 0);
        }
        put32(out, REFCOUNT_ORDER);
        put32(out, HEADER_LEN);
    }
}

impl Run {
    fn len(&self) -> u64 {
        self.clusters.end - self.clusters.start
    }
}

/// Whether an image can hold a disk of `size`.
///
/// # Errors
/// It cannot.
pub fn check_size(size: DiskLength) -> Result<(), UnfitSize> {
    let bytes = size.get();
    match bytes > DISK_LEN_MAX || !bytes.is_multiple_of(SECTOR_LEN) {
        true => Err(UnfitSize { size }),
        false => Ok(()),
    }
}

fn l1_entries(size: DiskLength) -> u64 {
    size.get().div_ceil(CLUSTER_LEN * ENTRIES)
}

fn places(size: DiskLength, runs: &[Run], tables: u64) -> Places {
    let l1_clusters = l1_entries(size).div_ceil(ENTRIES);
    let data_clusters = runs.last().map_or(0, |run| run.before + run.len());
    // Reference counts count what holds them, too.
    let (mut blocks, mut table) = (1, 1);
    loop {
        let refcount_blocks = 1 + table;
        let l1 = refcount_blocks + blocks;
        let l2 = l1 + l1_clusters;
        let data = l2 + tables;
        let end = data + data_clusters;
        let needed = end.div_ceil(REFCOUNTS_PER_CLUSTER);
        if needed <= blocks {
            return Places {
                refcount_blocks,
                l1,
                l2,
                data,
                end,
            };
        }
        blocks = needed;
        table = blocks.div_ceil(ENTRIES);
    }
}

fn put_all(out: &mut Vec<u8>, numbers: Range<u64>, mut entry: impl FnMut(u64) -> u64) {
    for number in numbers {
        put64(out, entry(number));
    }
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn be64(bytes: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(*bytes[at..].first_chunk().expect("8 bytes"))
    }

    /// Where the file has the disk's byte `offset`, found as a reader finds it.
    fn lookup(layout: &Layout, offset: u64) -> Option<u64> {
        let header = layout.head(0);
        let (l1_at, number) = (be64(&header, 40), offset / CLUSTER_LEN);
        let entry = |table_at: u64, number: u64| {
            let cluster = layout.head(table_at / CLUSTER_LEN + number / ENTRIES);
            be64(&cluster, (number % ENTRIES * 8) as usize)
        };
        let l2 = entry(l1_at, number / ENTRIES);
        if l2 == 0 {
            return None;
        }
        assert_eq!(l2 & COPIED, COPIED);
        let found = entry(l2 & !COPIED, number % ENTRIES);
        assert!(found == 0 || found & COPIED == COPIED);
        (found != 0).then_some((found & !COPIED) + offset % CLUSTER_LEN)
    }

    #[test]
    fn clusters_are_found_in_order_and_nothing_else_is() {
        const GIB: u64 = 1 << 30;
        let data = [
            DiskRange::new(0, 1),
            DiskRange::new(CLUSTER_LEN - 1, 3 * CLUSTER_LEN),
            DiskRange::new(3 * GIB - 5, 3 * GIB + 5),
            DiskRange::new(900 * GIB, 901 * GIB),
        ];
        let layout = Layout::new(DiskLength::new(1024 * GIB), data).expect("a size");
        let present: Vec<_> = layout.present().collect();
        assert_eq!(present.len(), 3);
        assert_eq!(present[0], DiskRange::new(0, 3 * CLUSTER_LEN));
        let mut next = layout.head_clusters() * CLUSTER_LEN;
        for range in present {
            for cluster in (range.start..range.end).step_by(CLUSTER_LEN as usize * 1000) {
                let expected = next + cluster - range.start;
                assert_eq!(lookup(&layout, cluster + 7), Some(expected + 7));
            }
            assert_eq!(lookup(&layout, range.end), None);
            next += range.len();
        }
        assert_eq!(next, layout.len());
    }

    #[test]
    fn every_cluster_of_the_file_is_counted_once() {
        for size in [0, 512, CLUSTER_LEN, 5 << 30] {
            let all = [DiskRange::new(0, size)];
            let layout = Layout::new(DiskLength::new(size), all).expect("a size");
            let header = layout.head(0);
            let (table_at, blocks_at) = (be64(&header, 48) / CLUSTER_LEN, 1 + 1);
            assert_eq!(table_at, 1);
            let table = layout.head(1);
            let blocks = (0..).take_while(|block| be64(&table, block * 8) != 0);
            let mut counted = 0;
            for block in blocks {
                assert_eq!(be64(&table, block * 8), (blocks_at + block as u64) << 16);
                let counts = layout.head(blocks_at + block as u64);
                let (counts, _) = counts.as_chunks::<2>();
                counted += counts.iter().filter(|count| **count == [0, 1]).count() as u64;
            }
            assert_eq!(counted, layout.len() / CLUSTER_LEN, "{size}");
        }
    }

    #[test]
    fn sizes_without_whole_sectors_are_refused() {
        for size in [1, 513, DISK_LEN_MAX + 512] {
            let error = Layout::new(DiskLength::new(size), []).expect_err("refused");
            assert!(error.to_string().contains(&size.to_string()), "{error}");
        }
    }
}
