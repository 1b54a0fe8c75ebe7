//! The disks of a snapshot as those see them who read files: partitions, and what they hold.

use std::sync::Arc;

use serde::Serialize;
use undercroft_dataplane::disk::ReadDisk;
use undercroft_dataplane::files::{self, FileError, FileTree};
use undercroft_dataplane::partitions::{self, DiskWindow};
use undercroft_dataplane::view::{DiskView, View, ViewOptions};
use undercroft_format::file_system::FileSystemKind;
use undercroft_format::id::SnapshotId;
use undercroft_format::partition::{Partition, PartitionNumber, PartitionTable, Scheme};
use undercroft_format::wire::frame::FrameType;

use crate::access::{self, PinnedRead};
use crate::failure::{Problem, one_line, warn};
use crate::file_spec::FileSpec;
use crate::report::{Align, Table};
use crate::settings::{Key, Settings};
use crate::units::Size;

/// A disk of a snapshot, opened.
pub struct OpenedDisk {
    /// Its bytes.
    pub disk: Arc<dyn ReadDisk>,
    /// Its label.
    pub label: String,
    /// The snapshot it is of.
    pub snapshot: SnapshotId,
    /// Its partitions.
    pub table: PartitionTable,
    /// The partition that was named.
    pub wanted: Option<PartitionNumber>,
    _view: View,
}

/// Opens the snapshot that `spec` names, to read of its disks.
pub fn open_snapshot(settings: &Settings, spec: &FileSpec) -> anyhow::Result<PinnedRead> {
    let specs = [spec.disk.snapshot.clone()];
    access::read_pinned(settings, &[FrameType::Fetch], Key::Needed, &specs)
}

impl OpenedDisk {
    /// The disk of `read` that `spec` names.
    pub fn open(read: &PinnedRead, spec: &FileSpec) -> anyhow::Result<Self> {
        let stored = &read.snapshots[0];
        let labels: Vec<_> = stored
            .snapshot
            .disks
            .iter()
            .map(|disk| disk.label.as_str())
            .collect();
        let (place, wanted) = spec.choose(&labels)?;
        let mut opened = Self::of(read, place)?;
        opened.wanted = wanted;
        Ok(opened)
    }

    /// The disk of `read` at this place among its disks.
    pub fn of(read: &PinnedRead, place: usize) -> anyhow::Result<Self> {
        let stored = &read.snapshots[0];
        let manifest = stored.snapshot.disks[place].clone();
        let label = manifest.label.clone();
        let view = View::new(ViewOptions::default())?;
        let disk = DiskView::new(&view, read.repository.clone(), stored.id, manifest, None)?;
        let disk: Arc<dyn ReadDisk> = Arc::new(disk);
        let table = partitions::list(&*disk).map_err(|error| {
            anyhow::Error::new(error).context(format!(
                "the partition table of disk {label} cannot be read"
            ))
        })?;
        for note in &table.notes {
            warn(format_args!("disk {label}: {note}"));
        }
        Ok(Self {
            disk,
            label,
            snapshot: stored.id,
            table,
            wanted: None,
            _view: view,
        })
    }

    /// Its parts that may hold something: its partitions, or all of it.
    pub fn volumes(&self) -> Vec<Volume> {
        if self.table.scheme == Scheme::Whole {
            return vec![Volume::new(None, self.disk.clone())];
        }
        let window = |partition: &Partition| -> Arc<dyn ReadDisk> {
            Arc::new(DiskWindow::new(self.disk.clone(), partition.range))
        };
        let partitions = self.table.partitions.iter();
        partitions
            .map(|partition| Volume::new(Some(partition.clone()), window(partition)))
            .collect()
    }

    /// The volume whose files are meant.
    pub fn choose(&self) -> anyhow::Result<Volume> {
        let mut volumes = self.volumes();
        if let Some(number) = self.wanted {
            let is_wanted = |volume: &Volume| volume.number() == Some(number);
            let place = volumes.iter().position(is_wanted);
            return place
                .map(|place| volumes.swap_remove(place))
                .ok_or_else(|| {
                    self.unclear(format!("disk {} has no partition {number}", self.label))
                });
        }
        if self.table.scheme == Scheme::Whole {
            return Ok(volumes.remove(0));
        }
        let holds_files =
            |volume: &&Volume| matches!(&volume.kind, Ok(Some(kind)) if kind.holds_files());
        let places: Vec<usize> = volumes
            .iter()
            .enumerate()
            .filter(|(_, volume)| holds_files(volume))
            .map(|(place, _)| place)
            .collect();
        match places[..] {
            [place] => Ok(volumes.swap_remove(place)),
            [] => Err(self.unclear(format!(
                "no partition of disk {} holds a file system that is known",
                self.label
            ))),
            _ => Err(self.unclear(format!(
                "disk {} has several file systems: which partition?",
                self.label
            ))),
        }
    }

    fn unclear(&self, what: String) -> anyhow::Error {
        let mut text = what;
        text.push('\n');
        write_volumes(&mut text, &self.volumes());
        Problem::usage(text.trim_end())
            .hint(format!(
                "name it behind the disk, as in SNAPSHOT:{}:2/PATH",
                self.label
            ))
            .into()
    }
}

/// A part of a disk that may hold a file system.
pub struct Volume {
    /// The partition, or none for a disk without partitions.
    pub partition: Option<Partition>,
    /// Its bytes.
    pub disk: Arc<dyn ReadDisk>,
    /// What it holds, or why that cannot be told.
    pub kind: Result<Option<FileSystemKind>, String>,
}

impl Volume {
    fn new(partition: Option<Partition>, disk: Arc<dyn ReadDisk>) -> Self {
        let kind = partitions::detect(&*disk).map_err(|error| one_line(&error));
        Self {
            partition,
            disk,
            kind,
        }
    }

    fn number(&self) -> Option<PartitionNumber> {
        self.partition.as_ref().map(|partition| partition.number)
    }

    /// What it is called in messages.
    pub fn name(&self) -> String {
        match self.number() {
            Some(number) => format!("partition {number}"),
            None => "the disk".to_owned(),
        }
    }

    /// What it holds, in a word.
    pub fn kind_text(&self) -> String {
        match &self.kind {
            Ok(Some(kind)) => kind.to_string(),
            Ok(None) => "-".to_owned(),
            Err(_) => "cannot be read".to_owned(),
        }
    }

    /// Its files.
    pub fn open(&self) -> anyhow::Result<Box<dyn FileTree>> {
        let recipe = "mount the backups instead, as docs/restore.md shows: `undercroft mount DIR`, then as root mount -o loop,ro";
        let name = self.name();
        let kind = match &self.kind {
            Ok(Some(kind)) => *kind,
            Ok(None) => {
                return Err(
                    Problem::new(format!("{name} holds no file system that is known"))
                        .hint(recipe)
                        .into(),
                );
            }
            Err(error) => {
                return Err(Problem::new(format!("{name} cannot be read: {error}")).into());
            }
        };
        files::open(self.disk.clone(), kind).map_err(|error| match &error {
            FileError::NoReader { .. } if !kind.holds_files() => Problem::new(format!(
                "{name} holds {kind}, which has no files of its own that could be read here"
            ))
            .hint(recipe)
            .into(),
            FileError::NoReader { .. } => {
                Problem::new(format!("{name} holds {kind}, which only the kernel reads"))
                    .hint(recipe)
                    .into()
            }
            FileError::Unsupported(_) => Problem::new(format!("{name}, {kind}: {error}"))
                .hint(recipe)
                .into(),
            _ => Problem::new(format!("{name}, {kind}: {error}")).into(),
        })
    }

    /// As JSON has it.
    pub fn view(&self) -> VolumeView {
        let kind = self.kind.as_ref().ok().copied().flatten();
        VolumeView {
            number: self.number().map(PartitionNumber::get),
            start: self
                .partition
                .as_ref()
                .map_or(0, |partition| partition.range.start),
            size: self.disk.size().get(),
            r#type: self
                .partition
                .as_ref()
                .map(|partition| partition.kind.to_string()),
            name: self
                .partition
                .as_ref()
                .map(|partition| partition.name.clone()),
            file_system: kind.map(|kind| kind.to_string()),
            readable: kind.is_some_and(files::is_readable),
            error: self.kind.as_ref().err().cloned(),
        }
    }
}

/// Lists volumes as a table.
pub fn write_volumes(text: &mut String, volumes: &[Volume]) {
    let mut table = Table::new(&[
        ("PART", Align::Right),
        ("START", Align::Right),
        ("SIZE", Align::Right),
        ("TYPE", Align::Left),
        ("FILE SYSTEM", Align::Left),
        ("NAME", Align::Left),
    ]);
    for volume in volumes {
        let partition = volume.partition.as_ref();
        table.row(vec![
            partition.map_or("-".to_owned(), |partition| partition.number.to_string()),
            partition
                .map_or(0, |partition| partition.range.start)
                .to_string(),
            Size(volume.disk.size().get()).to_string(),
            partition.map_or("-".to_owned(), |partition| partition.kind.to_string()),
            volume.kind_text(),
            // The name is the guest's.
            partition.map_or(String::new(), |partition| {
                partition.name.escape_debug().to_string()
            }),
        ]);
    }
    table.write(text);
}

/// A volume in JSON.
#[derive(Serialize)]
pub struct VolumeView {
    number: Option<u32>,
    start: u64,
    size: u64,
    r#type: Option<String>,
    name: Option<String>,
    file_system: Option<String>,
    readable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Runs `work`, which reads what a guest wrote by code of others: if that panics, the panic ends here.
pub fn contained<R: Send>(
    what: &str,
    work: impl FnOnce() -> anyhow::Result<R> + Send,
) -> anyhow::Result<R> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("file-system".into())
            .stack_size(STACK_LEN);
        let joined = thread.spawn_scoped(scope, work)?.join();
        joined.unwrap_or_else(|_| {
            Err(Problem::new(format!(
                "{what}: the file system is damaged in a way that its reader does not survive"
            ))
            .hint("mount it instead, and check it before: docs/restore.md")
            .into())
        })
    })
}

/// Directories are walked through by recursion.
const STACK_LEN: usize = 16 << 20;
