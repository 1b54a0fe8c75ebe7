//! The files of a snapshot: their names, sizes and content.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use undercroft_dataplane::disk::ReadDisk;
use undercroft_dataplane::partitions::{self, DiskWindow};
use undercroft_dataplane::repository::Repository;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_dataplane::view::{DiskView, View};
use undercroft_format::id::SnapshotId;
use undercroft_format::units::DiskRange;

use super::nodes::{Node, Part, Shared};
use super::readers::{Lease, Mounted, Readers};
use super::shown::{Choice, Shown};
use super::tree::{LATEST, SNAPSHOT_JSON, Tree, file_name};
use super::{PATIENCE, in_time};
use crate::failure::one_line;
use crate::snapshot_view::SnapshotView;

/// Longest metadata that is shown, in bytes: it is read as a whole.
const METADATA_LEN_MAX: u64 = 64 << 20;
/// Partition tables kept.
const TABLES_MAX: usize = 4096;

/// An open file.
pub enum Open {
    /// A disk, or part of one.
    Disk(Box<dyn ReadDisk>, Arc<Lease>),
    /// Something small.
    Bytes(Vec<u8>),
}

/// The numbers of a disk's partitions, and where they lie.
type Partitions = Arc<Vec<(u32, DiskRange)>>;

/// What is shown, and opens it.
pub struct Files {
    shown: Arc<Shown>,
    readers: Arc<Readers>,
    view: Arc<View>,
    is_remote: bool,
    /// Of disks that were looked into.
    partitions: Mutex<HashMap<(SnapshotId, usize), Partitions>>,
}

impl Files {
    /// The snapshots of `mounted` that `choice` takes, read through `view`.
    pub fn new(mounted: Mounted, choice: Choice, view: View) -> Self {
        let shown = Shown::new(mounted.repository(), choice);
        // Whoever mounts is about to look.
        shown.list_ahead();
        Self {
            is_remote: matches!(mounted, Mounted::Remote(_)),
            shown,
            readers: Arc::new(Readers::new(mounted)),
            view: Arc::new(view),
            partitions: Mutex::default(),
        }
    }

    /// What keeps the data of what is open.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// What `look` sees in the tree.
    pub fn look<R>(&self, look: impl FnOnce(&Tree) -> R) -> R {
        self.shown.look(look)
    }

    /// What `name` is in the directory `parent`.
    pub fn child(&self, parent: &Node, name: &str) -> Option<Node> {
        match parent {
            Node::Root => self.look(|tree| {
                let is_there = tree.vms().contains_key(name);
                is_there.then(|| Node::Vm(name.to_owned()))
            }),
            Node::Vm(vm) => self.look(|tree| {
                let snapshots = tree.vms().get(vm)?;
                match name {
                    LATEST => Some(Node::Latest(vm.clone())),
                    name => {
                        let stored = snapshots.snapshots.get(name)?;
                        Some(Node::Snapshot(Shared(stored.clone())))
                    }
                }
            }),
            Node::Snapshot(Shared(stored)) => {
                let named = |(known, part): (String, Part)| (known == name).then_some(part);
                let found = parts(stored).into_iter().find_map(named);
                // Partitions are looked for only if nothing else has the name: that reads the disk.
                let found = found.or_else(|| {
                    let place = disk_of_partition(stored, name)?;
                    self.partition_files(stored, place)
                        .into_iter()
                        .find_map(named)
                });
                found.map(|part| Node::File(Shared(stored.clone()), part))
            }
            Node::Latest(_) | Node::File(..) => None,
        }
    }

    /// What is in the directory `node`.
    pub fn children(&self, node: &Node) -> Vec<(String, Node)> {
        match node {
            Node::Root => self.look(|tree| {
                let vms = tree.vms().keys();
                vms.map(|vm| (vm.clone(), Node::Vm(vm.clone()))).collect()
            }),
            Node::Vm(vm) => self.look(|tree| {
                let Some(snapshots) = tree.vms().get(vm) else {
                    return Vec::new();
                };
                let times = snapshots.snapshots.iter();
                let times = times
                    .map(|(name, stored)| (name.clone(), Node::Snapshot(Shared(stored.clone()))));
                let latest = (LATEST.to_owned(), Node::Latest(vm.clone()));
                times.chain([latest]).collect()
            }),
            Node::Snapshot(Shared(stored)) => {
                let mut files = parts(stored);
                for place in 0..stored.snapshot.disks.len() {
                    for (name, part) in self.partition_files(stored, place) {
                        if files.iter().all(|(known, _)| *known != name) {
                            files.push((name, part));
                        }
                    }
                }
                let files = files.into_iter();
                files
                    .map(|(name, part)| (name, Node::File(Shared(stored.clone()), part)))
                    .collect()
            }
            Node::Latest(_) | Node::File(..) => Vec::new(),
        }
    }

    /// Opens a file of a snapshot.
    ///
    /// # Errors
    /// The snapshot is gone, the repository is, or what is read at once is damaged.
    pub fn open(&self, stored: &Arc<StoredSnapshot>, part: Part) -> anyhow::Result<Open> {
        let (place, range) = match part {
            Part::Json => return Ok(Open::Bytes(json(stored))),
            Part::Metadata => {
                let (readers, stored) = (self.readers.clone(), stored.clone());
                return self.ask(move || Ok(Open::Bytes(metadata(&readers, &stored)?)));
            }
            Part::Disk(place) => (place, None),
            Part::Partition(place, range) => (place, Some(range)),
        };
        let (readers, view, stored) = (self.readers.clone(), self.view.clone(), stored.clone());
        let (disk, lease) = self.ask(move || open_disk(&readers, &view, &stored, place))?;
        Ok(match range {
            None => Open::Disk(Box::new(disk), lease),
            Some(range) => Open::Disk(Box::new(DiskWindow::new(Arc::new(disk), range)), lease),
        })
    }

    /// The files of the partitions of a disk: none if its table cannot be read.
    fn partition_files(&self, stored: &Arc<StoredSnapshot>, place: usize) -> Vec<(String, Part)> {
        let label = &stored.snapshot.disks[place].label;
        let partitions = match self.partitions(stored, place) {
            Ok(partitions) => partitions,
            Err(error) => {
                tracing::warn!(snapshot = %stored.id, disk = label, error = one_line(&*error), "the partitions cannot be told");
                return Vec::new();
            }
        };
        let files = partitions.iter().map(|(number, range)| {
            let name = partition_name(label, *number);
            (name, Part::Partition(place, *range))
        });
        files.collect()
    }

    fn partitions(&self, stored: &Arc<StoredSnapshot>, place: usize) -> anyhow::Result<Partitions> {
        let key = (stored.id, place);
        if let Some(known) = self.partitions.lock().get(&key) {
            return Ok(known.clone());
        }
        let (readers, view, stored) = (self.readers.clone(), self.view.clone(), stored.clone());
        let found = self.ask(move || {
            let (disk, lease) = open_disk(&readers, &view, &stored, place)?;
            let table = partitions::list(&disk);
            readers.linger(lease);
            let found = table?.partitions.into_iter();
            let found = found.map(|partition| (partition.number.get(), partition.range));
            Ok(Arc::new(found.collect::<Vec<_>>()))
        })?;
        let mut known = self.partitions.lock();
        if known.len() >= TABLES_MAX {
            known.clear();
        }
        known.insert(key, found.clone());
        Ok(found)
    }

    /// What `work` comes to. A server is not waited for longer than it should take.
    fn ask<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<R> + Send + 'static,
    ) -> anyhow::Result<R> {
        match self.is_remote {
            true => in_time(PATIENCE, work),
            false => work(),
        }
    }
}

fn open_disk(
    readers: &Readers,
    view: &View,
    stored: &StoredSnapshot,
    place: usize,
) -> anyhow::Result<(DiskView, Arc<Lease>)> {
    let lease = readers.lease(stored.id)?;
    let repository: Arc<dyn Repository> = lease.repository.clone();
    let manifest = stored.snapshot.disks[place].clone();
    let kept = Some(lease.clone() as Arc<_>);
    let disk = DiskView::new(view, repository, stored.id, manifest, kept)?;
    Ok((disk, lease))
}

fn partition_name(label: &str, number: u32) -> String {
    format!("{}.p{number}.raw", file_name(label))
}

/// The disk of whose partitions one may be named `name`.
fn disk_of_partition(stored: &StoredSnapshot, name: &str) -> Option<usize> {
    let (label, number) = name.strip_suffix(".raw")?.rsplit_once(".p")?;
    number.parse::<u32>().ok()?;
    let mut disks = stored.snapshot.disks.iter();
    disks.position(|disk| file_name(&disk.label) == label)
}

/// The files of a snapshot, but for partitions. A name that is taken is not given again.
fn parts(stored: &StoredSnapshot) -> Vec<(String, Part)> {
    let mut parts = vec![(SNAPSHOT_JSON.to_owned(), Part::Json)];
    for (place, disk) in stored.snapshot.disks.iter().enumerate() {
        let name = format!("{}.raw", file_name(&disk.label));
        parts.push((name, Part::Disk(place)));
    }
    if let Some(metadata) = &stored.snapshot.metadata {
        let mut name = file_name(&metadata.name);
        while parts.iter().any(|(known, _)| *known == name) || name.is_empty() {
            name.insert_str(0, "metadata-");
        }
        parts.push((name, Part::Metadata));
    }
    parts
}

/// Bytes of a file.
pub fn size(stored: &StoredSnapshot, part: Part) -> u64 {
    match part {
        Part::Json => json(stored).len() as u64,
        Part::Metadata => stored.snapshot.metadata.as_ref().map_or(0, |m| m.len),
        Part::Disk(place) => stored.snapshot.disks[place].size.get(),
        Part::Partition(_, range) => range.len(),
    }
}

/// Bytes of a file that are data, as far as that is known without reading.
pub fn data_len(stored: &StoredSnapshot, part: Part) -> u64 {
    match part {
        Part::Disk(place) => stored.snapshot.disks[place].figures.data_bytes,
        Part::Partition(place, range) => range
            .len()
            .min(stored.snapshot.disks[place].figures.data_bytes),
        part => size(stored, part),
    }
}

/// As `show --json` prints it.
fn json(stored: &StoredSnapshot) -> Vec<u8> {
    let mut json = serde_json::to_vec_pretty(&SnapshotView::of(stored)).unwrap_or_default();
    json.push(b'\n');
    json
}

fn metadata(readers: &Readers, stored: &StoredSnapshot) -> anyhow::Result<Vec<u8>> {
    let metadata = stored.snapshot.metadata.as_ref();
    let metadata = metadata.context("there is no metadata")?;
    if metadata.len > METADATA_LEN_MAX {
        bail!(
            "the metadata {} is longer than {METADATA_LEN_MAX} bytes",
            metadata.name
        );
    }
    let lease = readers.lease(stored.id)?;
    let keys = lease.repository.keys()?.clone();
    let mut bytes = Vec::with_capacity(metadata.len as usize);
    for (chunk, _) in &metadata.chunks {
        bytes.extend_from_slice(&lease.repository.objects().chunk(*chunk, &keys)?);
    }
    readers.linger(lease);
    Ok(bytes)
}
