//! Snapshots as `snapshots`, `show` and `backup` print them.

use jiff::Timestamp;
use serde::Serialize;
use undercroft_dataplane::repository::retention::UnixMs;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_format::id::SnapshotId;
use undercroft_format::reason::Reason;
use undercroft_format::snapshot::{DiskManifest, ReadMode, Snapshot};

use crate::report::{Align, Table};
use crate::units::{Size, ratio, timestamp};

/// A snapshot in JSON. Sizes are in bytes.
#[derive(Serialize)]
pub struct SnapshotView<'a> {
    id: SnapshotId,
    /// When its backup began.
    time: Timestamp,
    vm: &'a str,
    tags: &'a [String],
    protected: bool,
    /// The end of its retention lock, if it has one; the year 9999 for one that cannot be read.
    locked_until: Option<Timestamp>,
    /// `repair` found that it lost something.
    incomplete: bool,
    parent: Option<SnapshotId>,
    duration_ms: u64,
    /// Sum of the disks' sizes.
    size: u64,
    /// Bytes of them that are data.
    data_bytes: u64,
    /// Bytes read from the source.
    read_bytes: u64,
    /// Plaintext bytes that the repository did not have before.
    new_bytes: u64,
    /// Bytes that these take in the repository.
    stored_bytes: u64,
    /// Bytes that its new maps take there.
    metadata_bytes: u64,
    /// Data bytes per byte that the snapshot added to the repository; null if it added nothing.
    dedup_ratio: Option<f64>,
    disks: Vec<DiskView<'a>>,
    metadata: Option<MetadataView<'a>>,
}

#[derive(Serialize)]
struct DiskView<'a> {
    label: &'a str,
    size: u64,
    data_bytes: u64,
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    metadata_bytes: u64,
    read_mode: ReadMode,
    reasons: &'a [Reason],
    source: &'a str,
    segment_size: u64,
    grid_phase: u16,
    lineage: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize)]
struct MetadataView<'a> {
    name: &'a str,
    len: u64,
}

impl<'a> SnapshotView<'a> {
    /// The view of a stored snapshot.
    pub fn of(stored: &'a StoredSnapshot) -> Self {
        Self {
            protected: stored.protected,
            locked_until: stored
                .locked_until
                .map(|until| timestamp(until.as_millis())),
            incomplete: stored.incomplete,
            ..Self::fresh(stored.id, &stored.snapshot, None)
        }
    }

    /// The view of a snapshot just made.
    pub fn fresh(id: SnapshotId, snapshot: &'a Snapshot, locked_until: Option<UnixMs>) -> Self {
        let totals = Totals::of(snapshot);
        let added = totals.added();
        Self {
            id,
            time: timestamp(snapshot.created_ms),
            vm: &snapshot.vm,
            tags: &snapshot.tags,
            protected: false,
            locked_until: locked_until.map(|until| timestamp(until.as_millis())),
            incomplete: false,
            parent: snapshot.parent,
            duration_ms: snapshot.duration_ms,
            size: totals.size,
            data_bytes: totals.data_bytes,
            read_bytes: totals.read_bytes,
            new_bytes: totals.new_bytes,
            stored_bytes: totals.stored_bytes,
            metadata_bytes: totals.metadata_bytes,
            dedup_ratio: (added > 0).then(|| totals.data_bytes as f64 / added as f64),
            disks: snapshot.disks.iter().map(DiskView::of).collect(),
            metadata: snapshot.metadata.as_ref().map(|metadata| MetadataView {
                name: &metadata.name,
                len: metadata.len,
            }),
        }
    }
}

impl<'a> DiskView<'a> {
    fn of(disk: &'a DiskManifest) -> Self {
        let pair = |(name, value): &(String, String)| (name.clone(), value.clone().into());
        Self {
            label: &disk.label,
            size: disk.size.get(),
            data_bytes: disk.figures.data_bytes,
            read_bytes: disk.figures.read_bytes,
            new_bytes: disk.figures.new_bytes,
            stored_bytes: disk.figures.stored_bytes,
            metadata_bytes: disk.figures.metadata_bytes,
            read_mode: disk.read_mode,
            reasons: &disk.reasons,
            source: &disk.source,
            segment_size: disk.segment_size.bytes(),
            grid_phase: disk.grid_phase,
            lineage: disk.lineage.iter().map(pair).collect(),
        }
    }
}

/// The end of a snapshot's retention lock, if it has not come by this machine's clock: for people and plans.
/// Whoever removes snapshots asks the clock that counts.
pub fn lock_that_holds(stored: &StoredSnapshot) -> Option<Timestamp> {
    let until = timestamp(stored.locked_until?.as_millis());
    (until > Timestamp::now()).then_some(until)
}

/// Sums over the disks of a snapshot, in bytes.
#[derive(Default)]
pub struct Totals {
    pub size: u64,
    pub data_bytes: u64,
    pub read_bytes: u64,
    pub new_bytes: u64,
    pub stored_bytes: u64,
    pub metadata_bytes: u64,
}

impl Totals {
    /// The sums of `snapshot`.
    pub fn of(snapshot: &Snapshot) -> Self {
        snapshot
            .disks
            .iter()
            .fold(Self::default(), |sum, disk| Self {
                size: sum.size.saturating_add(disk.size.get()),
                data_bytes: sum.data_bytes.saturating_add(disk.figures.data_bytes),
                read_bytes: sum.read_bytes.saturating_add(disk.figures.read_bytes),
                new_bytes: sum.new_bytes.saturating_add(disk.figures.new_bytes),
                stored_bytes: sum.stored_bytes.saturating_add(disk.figures.stored_bytes),
                metadata_bytes: sum
                    .metadata_bytes
                    .saturating_add(disk.figures.metadata_bytes),
            })
    }

    /// What the snapshot added to the repository.
    pub fn added(&self) -> u64 {
        self.stored_bytes.saturating_add(self.metadata_bytes)
    }
}

/// The table of a snapshot's disks.
pub fn disk_table(snapshot: &Snapshot) -> Table {
    let mut table = Table::new(&[
        ("DISK", Align::Left),
        ("SIZE", Align::Right),
        ("DATA", Align::Right),
        ("READ", Align::Right),
        ("NEW", Align::Right),
        ("STORED", Align::Right),
        ("RATIO", Align::Right),
        ("REASONS", Align::Left),
    ]);
    for disk in &snapshot.disks {
        let figures = &disk.figures;
        let added = figures.stored_bytes.saturating_add(figures.metadata_bytes);
        table.row(vec![
            disk.label.clone(),
            Size(disk.size.get()).to_string(),
            Size(figures.data_bytes).to_string(),
            Size(figures.read_bytes).to_string(),
            Size(figures.new_bytes).to_string(),
            Size(added).to_string(),
            ratio(figures.data_bytes, added),
            reasons(disk),
        ]);
    }
    table
}

/// The reason codes of a disk; `changed-blocks` where nothing else says how it was read.
pub fn reasons(disk: &DiskManifest) -> String {
    let mode = match disk.read_mode {
        ReadMode::ChangedBlocks => Some("changed-blocks"),
        ReadMode::Full => None,
    };
    let texts: Vec<_> = mode
        .into_iter()
        .chain(disk.reasons.iter().map(|reason| reason.text()))
        .collect();
    texts.join(", ")
}
