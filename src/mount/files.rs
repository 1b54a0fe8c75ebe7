//! The files of a snapshot: their names, sizes and content.

use std::sync::Arc;

use anyhow::{Context, bail};
use undercroft_dataplane::disk::ReadDisk;
use undercroft_dataplane::repository::Repository;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_dataplane::view::{DiskView, View};

use super::nodes::{Node, Part, Shared};
use super::readers::{Lease, Mounted, Readers};
use super::shown::{Choice, Shown};
use super::tree::{LATEST, SNAPSHOT_JSON, Tree, file_name};
use super::{PATIENCE, in_time};
use crate::snapshot_view::SnapshotView;

/// Longest metadata that is shown, in bytes: it is read as a whole.
const METADATA_LEN_MAX: u64 = 64 << 20;

/// An open file.
pub enum Open {
    /// A disk, or part of one.
    Disk(Box<dyn ReadDisk>, Arc<Lease>),
    /// Something small.
    Bytes(Vec<u8>),
}

/// What is shown, and opens it.
pub struct Files {
    shown: Arc<Shown>,
    readers: Arc<Readers>,
    view: View,
    is_remote: bool,
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
            view,
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
                let parts = parts(stored);
                let found = parts.into_iter().find(|(known, _)| known == name);
                found.map(|(_, part)| Node::File(Shared(stored.clone()), part))
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
            Node::Snapshot(Shared(stored)) => parts(stored)
                .into_iter()
                .map(|(name, part)| (name, Node::File(Shared(stored.clone()), part)))
                .collect(),
            Node::Latest(_) | Node::File(..) => Vec::new(),
        }
    }

    /// Opens a file of a snapshot.
    ///
    /// # Errors
    /// The snapshot is gone, the repository is, or what is read at once is damaged.
    pub fn open(&self, stored: &Arc<StoredSnapshot>, part: Part) -> anyhow::Result<Open> {
        let (disk, range) = match part {
            Part::Json => return Ok(Open::Bytes(json(stored))),
            Part::Metadata => {
                let (readers, stored) = (self.readers.clone(), stored.clone());
                return self.ask(move || Ok(Open::Bytes(metadata(&readers, &stored)?)));
            }
            Part::Disk(place) => (&stored.snapshot.disks[place], None),
            Part::Partition(place, range) => (&stored.snapshot.disks[place], Some(range)),
        };
        let (readers, id) = (self.readers.clone(), stored.id);
        let lease = self.ask(move || readers.lease(id))?;
        let repository: Arc<dyn Repository> = lease.repository.clone();
        let kept = Some(lease.clone() as Arc<_>);
        let view = DiskView::new(&self.view, repository, stored.id, disk.clone(), kept)?;
        if range.is_some() {
            bail!("partitions are not shown");
        }
        Ok(Open::Disk(Box::new(view), lease))
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
