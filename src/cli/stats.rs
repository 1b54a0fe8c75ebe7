//! `undercroft stats`.

use undercroft_format::wire::frame::FrameType;

use crate::access;
use crate::failure::Outcome;
use crate::report::{self, line};
use crate::settings::{Key, Settings};
use crate::units::{Size, count};

/// Show figures of the repository
///
/// JSON: snapshots, vms, logical_bytes, data_bytes, chunks, unique_bytes, payload_bytes, packs,
/// data_pack_bytes, meta_pack_bytes, segment_maps, index_bytes, dedup_ratio, chunk_len_mean,
/// metadata_percent.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {}

pub fn run(settings: &Settings, _: Args) -> anyhow::Result<Outcome> {
    let stats = access::inspect(settings, &[FrameType::Stats], Key::IfGiven)?.stats()?;
    report::emit(settings, &stats, |text| {
        line!(
            text,
            "Snapshots    {} of {}",
            stats.snapshots,
            count(stats.vms, "VM")
        );
        line!(
            text,
            "Disks        {}, {} of data",
            Size(stats.logical_bytes),
            Size(stats.data_bytes)
        );
        line!(
            text,
            "Chunks       {} of {} on average: {}, compressed to {}",
            stats.chunks,
            Size(stats.chunk_len_mean as u64),
            Size(stats.unique_bytes),
            Size(stats.payload_bytes)
        );
        line!(
            text,
            "Packs        {}: {} of data, {} of maps ({})",
            stats.packs,
            Size(stats.data_pack_bytes),
            Size(stats.meta_pack_bytes),
            count(stats.segment_maps, "segment map")
        );
        line!(text, "Index        {}", Size(stats.index_bytes));
        line!(
            text,
            "Metadata     {:.3} % of unique data",
            stats.metadata_percent
        );
        line!(text, "Dedup ratio  {:.1}x", stats.dedup_ratio);
    })?;
    Ok(Outcome::Done)
}
