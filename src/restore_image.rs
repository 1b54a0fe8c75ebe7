//! Disks restored into image files: what such a file looks like, and how it is written.

use std::io::Write;

use undercroft_dataplane::restore::qcow2::{self, Qcow2Stream};
use undercroft_dataplane::restore::vhd::{self, VhdStream};
use undercroft_dataplane::restore::write::InOrder;
use undercroft_dataplane::restore::{RestoreOptions, qcow2::LayoutError as Qcow2Error};
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::{qcow2::Layout as Qcow2Layout, vhd::layout::Layout as VhdLayout};

use crate::access::PinnedRead;
use crate::failure::Problem;
use crate::restore_target::Format;

/// What the file of a disk looks like.
pub enum ImageLayout {
    Vhd(VhdLayout),
    Qcow2(Qcow2Layout),
}

impl ImageLayout {
    /// What `disk` looks like as a `format`: the whole disk, or what differs from an older snapshot if there is a second
    /// one. Raw disks are no images.
    pub fn of(
        read: &PinnedRead,
        disk: &DiskManifest,
        format: Format,
        options: RestoreOptions,
    ) -> anyhow::Result<Option<Self>> {
        match format {
            Format::Raw => Ok(None),
            Format::Vhd => lay_out_vhd(read, disk, options).map(|layout| Some(Self::Vhd(layout))),
            Format::Qcow2 => {
                let layout = qcow2::whole(&*read.repository, disk, options);
                let layout = layout.map_err(|error| match error {
                    Qcow2Error::Unfit(unfit) => unfit_for(disk, Format::Qcow2, unfit.into()),
                    Qcow2Error::Repository(error) => looking(disk, Format::Qcow2, error.into()),
                })?;
                Ok(Some(Self::Qcow2(layout)))
            }
        }
    }

    /// Writes the file to `stream`.
    pub fn write_to(self, stream: impl Write + Send + 'static) -> Box<dyn InOrder> {
        match self {
            Self::Vhd(layout) => Box::new(VhdStream::new(stream, layout)),
            Self::Qcow2(layout) => Box::new(Qcow2Stream::new(stream, layout)),
        }
    }
}

fn lay_out_vhd(
    read: &PinnedRead,
    disk: &DiskManifest,
    options: RestoreOptions,
) -> anyhow::Result<VhdLayout> {
    let stored = &read.snapshots[0];
    let repository = &*read.repository;
    let layout = match read.snapshots.get(1) {
        None => vhd::whole(repository, stored, disk, options),
        Some(older) => {
            let Some(older_disk) = older.snapshot.disk(&disk.label) else {
                return Err(Problem::new(format!(
                    "snapshot {} has no disk {:?} to be a parent of this one's",
                    older.id.short(),
                    disk.label
                ))
                .hint("restore the whole disk: leave out --vhd-since")
                .into());
            };
            vhd::difference(repository, (older, older_disk), (stored, disk))
        }
    };
    layout.map_err(|error| match error {
        vhd::LayoutError::Unfit(unfit) => unfit_for(disk, Format::Vhd, unfit.into()),
        vhd::LayoutError::Repository(error) => looking(disk, Format::Vhd, error.into()),
    })
}

fn unfit_for(disk: &DiskManifest, format: Format, unfit: anyhow::Error) -> anyhow::Error {
    let problem = Problem::new(format!(
        "disk {} cannot be restored as {}",
        disk.label,
        format.article()
    ));
    unfit.context(problem.hint(format!(
        "restore it as a raw disk: leave out --format {}",
        format.name()
    )))
}

fn looking(disk: &DiskManifest, format: Format, error: anyhow::Error) -> anyhow::Error {
    error.context(format!(
        "looking for what {} of disk {} holds",
        format.article(),
        disk.label
    ))
}
