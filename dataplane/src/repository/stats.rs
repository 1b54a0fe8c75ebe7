//! Figures of a repository.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use undercroft_format::pack::{ObjectKind, PackKind};

use super::error::{RepositoryError, Result};
use super::pack_reader::{list_packs, read_contents};
use super::{LocalRepository, Repository};

/// Figures of a repository, from its packs' tables of contents and its snapshots.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Stats {
    /// Snapshots.
    pub snapshots: u64,
    /// VMs that have snapshots.
    pub vms: u64,
    /// Bytes of all disks of all snapshots.
    pub logical_bytes: u64,
    /// Bytes of them that are data.
    pub data_bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// Plaintext bytes of chunks, each counted once.
    pub unique_bytes: u64,
    /// Bytes of the chunks' payloads.
    pub payload_bytes: u64,
    /// Sealed packs.
    pub packs: u64,
    /// Bytes of data packs.
    pub data_pack_bytes: u64,
    /// Bytes of meta packs: segment maps and tree nodes.
    pub meta_pack_bytes: u64,
    /// Segment maps.
    pub segment_maps: u64,
    /// Bytes of the index, as far as it is open.
    pub index_bytes: u64,
    /// Data bytes of all snapshots over bytes of packs.
    pub dedup_ratio: f64,
    /// Mean plaintext length of chunks.
    pub chunk_len_mean: f64,
    /// Index and meta packs per unique byte, in per cent.
    pub metadata_percent: f64,
}

/// Gathers the figures.
pub fn stats(repository: &Arc<LocalRepository>) -> Result<Stats> {
    let mut stats = Stats::default();
    let (snapshots, _) = repository.snapshots().read_all()?;
    let mut vms = HashSet::new();
    for stored in &snapshots {
        stats.snapshots += 1;
        vms.insert(stored.snapshot.vm.as_str());
        for disk in &stored.snapshot.disks {
            stats.logical_bytes += disk.size.get();
            stats.data_bytes += disk.figures.data_bytes;
        }
    }
    stats.vms = vms.len() as u64;
    for (id, len) in list_packs(&**repository.storage())?.sealed {
        let read = read_contents(&**repository.storage(), repository.config().repository, id);
        let contents = match read {
            // A collection removed it since it was listed.
            Err(RepositoryError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                continue;
            }
            read => read?,
        };
        stats.packs += 1;
        match contents.kind {
            PackKind::Data => stats.data_pack_bytes += len,
            PackKind::Meta => stats.meta_pack_bytes += len,
        }
        for entry in &contents.toc.entries {
            match entry.info.kind {
                ObjectKind::Chunk => {
                    stats.chunks += 1;
                    stats.unique_bytes += u64::from(entry.info.plain_len);
                    stats.payload_bytes += u64::from(entry.info.stored_len);
                }
                ObjectKind::SegmentMap => stats.segment_maps += 1,
                ObjectKind::Node => {}
            }
        }
    }
    stats.index_bytes = repository.lookup().index().disk_bytes()?;
    let ratio = |part: u64, whole: u64| {
        if whole == 0 {
            0.0
        } else {
            part as f64 / whole as f64
        }
    };
    stats.dedup_ratio = ratio(
        stats.data_bytes,
        stats.data_pack_bytes + stats.meta_pack_bytes,
    );
    stats.chunk_len_mean = ratio(stats.unique_bytes, stats.chunks);
    stats.metadata_percent = ratio(
        stats.meta_pack_bytes + stats.index_bytes,
        stats.unique_bytes,
    ) * 100.0;
    Ok(stats)
}
