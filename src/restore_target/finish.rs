//! Files that appear under their names only when they are complete.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use undercroft_dataplane::ingest::source::Reads;
use undercroft_dataplane::io::{BlockFile, OsFile};
use undercroft_dataplane::nbd::NbdFile;
use undercroft_dataplane::restore::{Target, TargetContent};
use undercroft_format::snapshot::DiskManifest;

use super::files::is_aligned;
use super::{FILE_NAME_LEN_MAX, Overwrite, not_read_back};
use crate::failure::Problem;

/// Ends the name of a file that is not complete.
const PARTIAL_SUFFIX: &str = ".undercroft-partial";

pub(super) fn exists(path: &Path) -> anyhow::Error {
    Problem::new(format!("the target {} exists", path.display()))
        .hint("overwrite it: --force; or write only what differs: --in-place")
        .into()
}

/// A file that appears as `path` when it is complete.
///
/// What bears its partial name is removed, never followed: others may write to the directory.
pub(super) fn new_file(
    path: PathBuf,
    overwrite: Overwrite,
    disk: Option<&DiskManifest>,
) -> anyhow::Result<(Arc<dyn BlockFile>, Finish)> {
    let partial = partial_of(&path);
    let making = || format!("making {}", partial.display());
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error)
                .with_context(|| format!("removing the left-over {}", partial.display()));
        }
        _ => {}
    }
    let mut file = OsFile::create_new(&partial, disk.is_some()).with_context(making)?;
    if disk.is_some_and(|disk| !is_aligned(disk, file.direct_alignment())) {
        file = OsFile::open_write(&partial, false).with_context(making)?;
    }
    let file: Arc<dyn BlockFile> = Arc::new(file);
    keep_private(&partial, &path).with_context(making)?;
    let finish = Finish {
        name: path.display().to_string(),
        file: Some(file.clone()),
        rename: Some(Rename {
            partial,
            path,
            replaces: overwrite != Overwrite::Never,
        }),
        claim: None,
        export: None,
    };
    Ok((file, finish))
}

pub(super) fn partial_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    if name.len() + PARTIAL_SUFFIX.len() > FILE_NAME_LEN_MAX {
        let hash = blake3::hash(name.as_bytes()).to_hex();
        name = hash[..16].into();
    }
    name.push(PARTIAL_SUFFIX);
    path.with_file_name(name)
}

/// A file that replaces another is as that was; else it stays its owner's alone, as [`OsFile`] makes it.
fn keep_private(partial: &Path, path: &Path) -> io::Result<()> {
    let Ok(old) = fs::metadata(path) else {
        return Ok(());
    };
    // Only root may give files away.
    let _ = chown(partial, Some(old.uid()), Some(old.gid()));
    fs::set_permissions(partial, old.permissions())
}

/// What remains to be done when a target is complete. Dropped before, it removes what is not complete.
pub struct Finish {
    pub(super) name: String,
    pub(super) file: Option<Arc<dyn BlockFile>>,
    pub(super) rename: Option<Rename>,
    /// Keeps others off a device.
    pub(super) claim: Option<File>,
    /// The file, if it is an export.
    pub(super) export: Option<Arc<NbdFile>>,
}

pub(super) struct Rename {
    partial: PathBuf,
    path: PathBuf,
    replaces: bool,
}

impl Finish {
    pub(super) fn plain(name: String, file: Option<Arc<dyn BlockFile>>) -> Self {
        Self {
            name,
            file,
            rename: None,
            claim: None,
            export: None,
        }
    }

    /// The target, for people.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// What was written, to be compared, once it is where it belongs and not only in memory.
    pub fn written(&self) -> anyhow::Result<Target> {
        let Some(file) = &self.file else {
            return Err(not_read_back(&self.name));
        };
        file.sync()
            .with_context(|| format!("making {} durable", self.name))?;
        file.advise_dont_need();
        if let Some(export) = &self.export {
            export.forget_holes();
        }
        Ok(Target::Disk {
            file: file.clone(),
            content: TargetContent::Similar,
            reads: self.export.clone().map(|export| export as Arc<dyn Reads>),
        })
    }

    /// Makes what was written durable, and gives a new file its name.
    pub fn publish(mut self) -> anyhow::Result<()> {
        if let Some(file) = &self.file {
            file.sync()
                .with_context(|| format!("making {} durable", self.name))?;
        }
        let Some(rename) = &self.rename else {
            return Ok(());
        };
        // Somebody may have made it meanwhile.
        if !rename.replaces && rename.path.symlink_metadata().is_ok() {
            return Err(exists(&rename.path));
        }
        fs::rename(&rename.partial, &rename.path)
            .and_then(|()| match rename.path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            })
            .with_context(|| format!("renaming the complete file to {}", rename.path.display()))?;
        self.rename = None;
        Ok(())
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        drop(self.claim.take());
        if let Some(rename) = &self.rename {
            let _ = fs::remove_file(&rename.partial);
        }
    }
}
