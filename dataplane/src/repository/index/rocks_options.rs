//! How RocksDB is set up, and how the memory budget is shared out.

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ChecksumType, ColumnFamilyDescriptor,
    DBCompressionType, DBRecoveryMode, DEFAULT_COLUMN_FAMILY_NAME, InfoLogger, LogLevel, Options,
};
use undercroft_format::id::RepositoryId;

use super::record::{CHUNKS, LOST, META, PACKS};

const MIB: u64 = 1 << 20;
/// Bytes of a data block: a point lookup reads one.
const BLOCK_LEN: usize = 16 << 10;
/// Bytes of a partition of the filter or of the block index: the cache holds and drops them singly.
const FILTER_PARTITION_LEN: usize = 4 << 10;
/// Bytes of a table file.
pub(super) const TABLE_FILE_LEN: u64 = 64 * MIB;
/// Wrong guesses of a Bloom filter of so many bits per key: 1 %. Ribbon does it in 7 bits.
const FILTER_BITS: f64 = 10.0;
/// Table files that an owner keeps open.
const OPEN_FILES_MAX: i32 = 512;

/// How to open an index.
#[derive(Clone, Copy, Debug)]
pub struct IndexOptions {
    /// The repository that the index belongs to: another's index is refused.
    pub repository: RepositoryId,
    /// Hard cap in bytes for the RAM table, the block cache and the memtables together.
    pub memory_budget: u64,
    /// Only read, also while another process owns the index. No RAM table is ever loaded.
    pub read_only: bool,
}

/// The parts of the memory budget, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// One of the two memtables.
    pub(super) memtable: u64,
    /// The block cache beside a RAM table or filter.
    pub(super) cache: u64,
    /// The block cache without either.
    pub(super) cache_alone: u64,
    /// The RAM table, or the filter that it becomes.
    pub(super) table: u64,
}

impl IndexOptions {
    pub(super) fn budget(&self) -> Budget {
        let memtable = (self.memory_budget / 16).min(16 * MIB);
        let cache = (self.memory_budget / 4).min(32 * MIB);
        let cache_alone = self.memory_budget - 2 * memtable;
        Budget {
            memtable,
            cache,
            cache_alone,
            table: cache_alone - cache,
        }
    }
}

/// Options of the database as a whole.
pub(super) fn database(create: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // Stops at the first torn record: the index then lags behind the packs, in order.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // The families must lag together.
    options.set_atomic_flush(true);
    options.set_max_total_wal_size(64 * MIB);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_file_opening_threads(2);
    options.set_skip_stats_update_on_db_open(true);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(MIB);
    options.set_max_manifest_file_size(4 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    // Instead of a log file: a sealed directory holds nothing but the index.
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, log));
    options
}

/// The four families, and the one that RocksDB insists on.
pub(super) fn families(budget: &Budget, cache: &Cache) -> Vec<ColumnFamilyDescriptor> {
    let chunks = chunks(budget, cache);
    let mut small = Options::default();
    small.set_compression_type(DBCompressionType::None);
    small.set_write_buffer_size(MIB as usize);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_checksum_type(ChecksumType::XXH3);
    small.set_block_based_table_factory(&blocks);
    vec![
        // Nothing is in it, but the log is given as much room as the largest memtable takes, and that of
        // a family with RocksDB's own options takes 64 MiB.
        ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, small.clone()),
        ColumnFamilyDescriptor::new(CHUNKS, chunks),
        ColumnFamilyDescriptor::new(PACKS, small.clone()),
        ColumnFamilyDescriptor::new(LOST, small.clone()),
        ColumnFamilyDescriptor::new(META, small),
    ]
}

/// Options of the family of objects; tables for ingestion are written with them too.
pub(super) fn chunks(budget: &Budget, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_block_size(BLOCK_LEN);
    blocks.set_checksum_type(ChecksumType::XXH3);
    // Fresh tables are short-lived: Bloom is four times as fast to make, Ribbon a third smaller.
    blocks.set_hybrid_ribbon_filter(FILTER_BITS, 1);
    blocks.set_whole_key_filtering(true);
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_metadata_block_size(FILTER_PARTITION_LEN);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_top_level_index_and_filter(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    // Hashes do not compress.
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(budget.memtable as usize);
    options.set_max_write_buffer_number(2);
    options.set_memtable_prefix_bloom_ratio(0.05);
    options.set_memtable_whole_key_filtering(true);
    options.set_target_file_size_base(TABLE_FILE_LEN);
    options.set_max_bytes_for_level_base(4 * TABLE_FILE_LEN);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

fn log(level: LogLevel, message: &str) {
    match level {
        LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "rocksdb", "{message}"),
        LogLevel::Warn => tracing::warn!(target: "rocksdb", "{message}"),
        LogLevel::Debug | LogLevel::Info | LogLevel::Header => {
            tracing::debug!(target: "rocksdb", "{message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::repository::index::RocksIndex;

    #[test]
    fn a_new_index_sets_little_room_aside() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = IndexOptions {
            repository: RepositoryId::from_bytes([1; 16]),
            memory_budget: 1 << 30,
            read_only: false,
        };
        let index = RocksIndex::build(&dir.path().join("index"), std::iter::empty(), options)
            .expect("an empty index");
        let files = std::fs::read_dir(dir.path().join("index")).expect("a listing");
        let blocks = files.map(|file| file.expect("a file").metadata().expect("its size").blocks());
        let taken = blocks.sum::<u64>() * 512;
        assert!(taken < 32 * MIB, "{taken} bytes");
        drop(index);
    }
}
