//! Files, devices and streams as targets.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use undercroft_dataplane::io::{BlockFile, OsFile};
use undercroft_dataplane::restore::write::Plain;
use undercroft_dataplane::restore::{Target, TargetContent};
use undercroft_format::reason::Reason;
use undercroft_format::snapshot::DiskManifest;

use super::finish::{Finish, new_file};
use super::{OpenTarget, Overwrite, Plan};
use crate::failure::Problem;

impl Plan<'_> {
    pub(super) fn device_target(
        &self,
        path: PathBuf,
        disk: &DiskManifest,
    ) -> anyhow::Result<OpenTarget> {
        // Without O_CREAT this asks a block device whether anyone uses it: a mounted one is (open(2)).
        let claim = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_EXCL)
            .open(&path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::ResourceBusy => anyhow::Error::new(error).context(
                    Problem::new(format!("the device {} is in use", path.display()))
                        .hint("unmount it, or stop what uses it"),
                ),
                _ => anyhow::Error::new(error)
                    .context(format!("opening the device {}", path.display())),
            })?;
        let file = open_target(disk, |direct| OsFile::open_write(&path, direct))
            .with_context(|| format!("opening the device {}", path.display()))?;
        let content = match self.overwrite {
            Overwrite::InPlace { .. } => TargetContent::Similar,
            Overwrite::Never | Overwrite::Force => TargetContent::Unknown,
        };
        let file: Arc<dyn BlockFile> = Arc::new(file);
        Ok(OpenTarget {
            target: Target::Disk {
                file: file.clone(),
                content,
                reads: None,
            },
            finish: Finish {
                name: path.display().to_string(),
                file: Some(file),
                rename: None,
                claim: Some(claim),
                export: None,
            },
        })
    }
}

/// A file that is written from its start on.
pub(super) struct Appended {
    pub(super) file: Arc<dyn BlockFile>,
    pub(super) len: u64,
}

impl Write for Appended {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard output. Not through `Stdout`, which looks for line ends.
pub(super) fn stdout() -> anyhow::Result<OwnedFd> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    stdout.context("opening standard output")
}

pub(super) fn stdout_target() -> anyhow::Result<OpenTarget> {
    let stdout = stdout()?;
    Ok(OpenTarget {
        target: Target::Stream(Box::new(Plain(File::from(stdout)))),
        finish: Finish::plain("standard output".to_owned(), None),
    })
}

pub(super) fn stream_target(path: PathBuf) -> anyhow::Result<OpenTarget> {
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    Ok(OpenTarget {
        target: Target::Stream(Box::new(Plain(file))),
        finish: Finish::plain(path.display().to_string(), None),
    })
}

/// A target that is read, and not written.
pub(super) fn compared_target(path: PathBuf, disk: &DiskManifest) -> anyhow::Result<OpenTarget> {
    let file = open_target(disk, |direct| OsFile::open_read(&path, direct))
        .with_context(|| format!("opening {}", path.display()))?;
    Ok(OpenTarget {
        target: Target::Disk {
            file: Arc::new(file),
            content: TargetContent::Similar,
            reads: None,
        },
        finish: Finish::plain(path.display().to_string(), None),
    })
}

pub(super) fn in_place_target(path: PathBuf, disk: &DiskManifest) -> anyhow::Result<OpenTarget> {
    let opening = || format!("opening the target {}", path.display());
    let file =
        open_target(disk, |direct| OsFile::open_write(&path, direct)).with_context(opening)?;
    // The file is going to be the disk: no shorter, no longer.
    if file.len().with_context(opening)? != disk.size.get() {
        file.set_len(disk.size.get())
            .with_context(|| format!("making {} as long as the disk", path.display()))?;
    }
    let file: Arc<dyn BlockFile> = Arc::new(file);
    Ok(OpenTarget {
        target: Target::Disk {
            file: file.clone(),
            content: TargetContent::Similar,
            reads: None,
        },
        finish: Finish::plain(path.display().to_string(), Some(file)),
    })
}

pub(super) fn new_file_target(
    path: PathBuf,
    disk: &DiskManifest,
    overwrite: Overwrite,
) -> anyhow::Result<OpenTarget> {
    // A link stays, and what it leads to is replaced.
    let path = path.canonicalize().unwrap_or(path);
    let (file, finish) = new_file(path, overwrite, Some(disk))?;
    let making = || format!("making {} as long as the disk", finish.name);
    file.set_len(disk.size.get()).with_context(making)?;
    Ok(OpenTarget {
        target: Target::Disk {
            file,
            content: TargetContent::Zeros,
            reads: None,
        },
        finish,
    })
}

/// Opens the target of `disk` past the page cache, if that serves all of it.
///
/// Direct and buffered writes side by side in one page spoil each other: the kernel cannot take the page
/// out of the cache after the direct one, and the next sync fails ("Page cache invalidation failure").
pub(super) fn open_target(
    disk: &DiskManifest,
    open: impl Fn(bool) -> io::Result<OsFile>,
) -> io::Result<OsFile> {
    let file = open(true)?;
    match is_aligned(disk, file.direct_alignment()) {
        true => Ok(file),
        false => open(false),
    }
}

/// Whether all extents of `disk` begin and end at multiples of `alignment`.
pub(super) fn is_aligned(disk: &DiskManifest, alignment: usize) -> bool {
    let alignment = alignment as u64;
    disk.size.get().is_multiple_of(alignment)
        && u64::from(disk.grid_phase).is_multiple_of(alignment)
        && (alignment == 1 || !disk.reasons.contains(&Reason::Stream))
}
