//! The caches: decoded chunks by id, placed maps by disk and segment, both bounded in bytes.
//!
//! Half of the room is for what was used once, so that what is read ahead survives until it is read; what is used
//! again moves to the other half, which a scan of a whole disk leaves alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::{Cache as Quick, DefaultLifecycle, GuardResult, PlaceholderGuard};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use undercroft_format::id::{ChunkId, NodeId};
use undercroft_format::units::SegmentNumber;

use super::maps::PlacedMap;

/// Share of the room that is for what is used again.
const HOT: f64 = 0.5;
/// Bytes that an entry takes beside its content.
const ENTRY_LEN: u64 = 160;
/// Bytes of a shard, so that the largest chunk is a small part of one.
const SHARD_LEN: u64 = 4 << 20;
const SHARDS_MAX: u64 = 16;
/// Usual bytes of a chunk, for an estimate of how many there are.
const CHUNK_LEN_USUAL: u64 = 32 << 10;
/// Maps get this part of the room: a map is about a thousandth of what it describes.
const MAPS_PART: u64 = 8;

/// A chunk that nobody has announced, until it is there or given up.
pub type Announced<'a> = PlaceholderGuard<
    'a,
    ChunkId,
    Bytes,
    ByLen,
    DefaultHashBuilder,
    DefaultLifecycle<ChunkId, Bytes>,
>;

/// A disk's root and a segment: equal disks have equal roots.
pub type MapKey = (NodeId, SegmentNumber);

/// What became of a wish for a chunk.
pub enum Found<'a> {
    /// It is there.
    Plain(Bytes),
    /// The asker is to fetch it; those who ask meanwhile wait.
    Absent(Announced<'a>),
    /// Another fetches it, and has not done so in time.
    Elsewhere,
}

/// Decoded chunks and placed maps.
pub struct Cache {
    chunks: Quick<ChunkId, Bytes, ByLen>,
    maps: Quick<MapKey, Arc<PlacedMap>, ByLen>,
    decoded: AtomicU64,
}

impl Cache {
    /// Room for `len` bytes in all.
    pub fn new(len: u64) -> Self {
        let maps = len / MAPS_PART;
        Self {
            chunks: quick(len - maps, CHUNK_LEN_USUAL),
            maps: quick(maps, CHUNK_LEN_USUAL / 2),
            decoded: AtomicU64::new(0),
        }
    }

    /// A chunk, if it is there now.
    pub fn chunk(&self, id: ChunkId) -> Option<Bytes> {
        self.chunks.get(&id)
    }

    /// True if a chunk is there; does not count as a use.
    pub fn holds(&self, id: ChunkId) -> bool {
        self.chunks.contains_key(&id)
    }

    /// A chunk, or the duty to fetch it. Waits up to `patience` for another that fetches it.
    pub fn find(&self, id: ChunkId, patience: Duration) -> Found<'_> {
        match self.chunks.get_value_or_guard(&id, Some(patience)) {
            GuardResult::Value(plain) => Found::Plain(plain),
            GuardResult::Guard(guard) => Found::Absent(guard),
            GuardResult::Timeout => Found::Elsewhere,
        }
    }

    /// Keeps a chunk that was decoded, and gives it to those who wait.
    pub fn keep(&self, announced: Announced<'_>, plain: Vec<u8>) -> Bytes {
        let plain = Bytes::from(plain);
        self.decoded.fetch_add(1, Ordering::Relaxed);
        // It fails if the entry was removed meanwhile, which nobody does.
        let _ = announced.insert(plain.clone());
        plain
    }

    /// A map that is there.
    pub fn map(&self, key: MapKey) -> Option<Arc<PlacedMap>> {
        self.maps.get(&key)
    }

    /// Keeps a map.
    pub fn keep_map(&self, key: MapKey, map: Arc<PlacedMap>) {
        self.maps.insert(key, map);
    }

    /// Bytes of the chunks that are there.
    pub fn chunks_len(&self) -> u64 {
        self.chunks.weight()
    }

    /// Chunks that were decoded so far.
    pub fn decoded(&self) -> u64 {
        self.decoded.load(Ordering::Relaxed)
    }
}

fn quick<K: Eq + std::hash::Hash, V: Clone>(len: u64, usual: u64) -> Quick<K, V, ByLen>
where
    ByLen: Weighter<K, V>,
{
    let options = OptionsBuilder::new()
        .shards((len / SHARD_LEN).clamp(1, SHARDS_MAX) as usize)
        .estimated_items_capacity((len / usual).max(64) as usize)
        .weight_capacity(len)
        .hot_allocation(HOT)
        .build()
        .expect("all that it needs was said");
    Quick::with_options(
        options,
        ByLen,
        DefaultHashBuilder::default(),
        DefaultLifecycle::default(),
    )
}

/// Entries weigh their bytes.
#[derive(Clone)]
pub struct ByLen;

impl Weighter<ChunkId, Bytes> for ByLen {
    fn weight(&self, _: &ChunkId, plain: &Bytes) -> u64 {
        plain.len() as u64 + ENTRY_LEN
    }
}

impl Weighter<MapKey, Arc<PlacedMap>> for ByLen {
    fn weight(&self, _: &MapKey, map: &Arc<PlacedMap>) -> u64 {
        map.memory_len() as u64 + ENTRY_LEN
    }
}
