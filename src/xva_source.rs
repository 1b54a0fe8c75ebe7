//! A VM named by its XVA: which disks there are, what they are called, and where they came from.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use parking_lot::Mutex;
use undercroft_dataplane::ingest::backup::DiskJob;
use undercroft_dataplane::ingest::source::Source;
use undercroft_dataplane::ingest::xva::archive::{ArchivedDisk, XvaArchive};
use undercroft_dataplane::ingest::xva::http;
use undercroft_dataplane::ingest::xva::pump::Patience;
use undercroft_format::xva::{Description, Disk};

use crate::backup_job::{file_state, is_inside, is_stdin, open_stdin};
use crate::failure::Problem;
use crate::signals::{Stoppable, is_stopping};

/// What the description is called among a snapshot's metadata.
pub const OVA_XML: &str = "ova.xml";

/// The XVA to back up.
#[derive(Clone, Debug)]
pub struct XvaRequest {
    /// A file, `-`, or a URL.
    pub source: PathBuf,
    /// Whether the VM is called what the XVA calls it.
    pub names_vm: bool,
    /// What its description said: a stream is read only once.
    noted: Arc<OnceLock<Arc<Description>>>,
}

/// An XVA as far as it was read.
pub struct PlannedXva {
    pub description: Arc<Description>,
    archive: Arc<Mutex<Option<XvaArchive>>>,
}

impl XvaRequest {
    pub fn new(source: PathBuf, names_vm: bool) -> Self {
        Self {
            source,
            names_vm,
            noted: Arc::default(),
        }
    }

    /// Opens it and reads what it says of its VM.
    pub fn open(&self, repository: Option<&Path>) -> anyhow::Result<PlannedXva> {
        let archive = self.open_archive(repository)?;
        let description = archive.description().clone();
        let _ = self.noted.set(description.clone());
        Ok(PlannedXva {
            description,
            archive: Arc::new(Mutex::new(Some(archive))),
        })
    }

    /// What is known of it without reading it, if it was read before.
    pub fn known(&self) -> Option<PlannedXva> {
        Some(PlannedXva {
            description: self.noted.get()?.clone(),
            archive: Arc::default(),
        })
    }

    /// Whether the same bytes can be had again.
    pub fn is_repeatable(&self) -> bool {
        self.url().is_none()
            && !is_stdin(&self.source)
            && fs::metadata(&self.source).is_ok_and(|metadata| is_disk(metadata.file_type()))
    }

    /// Its name, as it may be shown and stored.
    pub fn shown(&self) -> String {
        match self.url() {
            Some(url) => http::shown_url(url),
            None => self.source.display().to_string(),
        }
    }

    fn url(&self) -> Option<&str> {
        self.source.to_str().filter(|text| http::is_url(text))
    }

    fn open_archive(&self, repository: Option<&Path>) -> anyhow::Result<XvaArchive> {
        let patience = Patience {
            is_stopping,
            silence_max: None,
        };
        let name = self.shown();
        let of_stream = |stream: Box<dyn Read + Send>, name| {
            Ok(XvaArchive::open_stream(name, stream, patience)?)
        };
        if let Some(url) = self.url() {
            return of_stream(http::get(url, is_stopping)?, name);
        }
        if is_stdin(&self.source) {
            return of_stream(Box::new(open_stdin()?), "on standard input".to_owned());
        }
        let path = &self.source;
        let opening = || format!("opening the XVA {name}");
        let metadata = fs::metadata(path).with_context(opening)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(Problem::new(format!("the XVA {name} is a directory"))
                .hint("name the file that `xe vm-export` or a backup program wrote")
                .into());
        }
        if repository.is_some_and(|repository| is_inside(path, repository)) {
            return Err(Problem::new(format!("the XVA {name} lies inside the repository")).into());
        }
        if is_disk(kind) {
            return Ok(XvaArchive::open_file(path, patience)?);
        }
        let file = fs::File::open(path).with_context(opening)?;
        of_stream(Box::new(Stoppable(file)), name)
    }
}

fn is_disk(kind: fs::FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

impl PlannedXva {
    /// Its disks.
    pub fn disks(&self, request: &XvaRequest) -> Vec<DiskJob> {
        let state = match request.is_repeatable() {
            true => file_state(&request.source),
            false => *blake3::hash(&[]).as_bytes(),
        };
        let disks = self.description.disks.iter().enumerate();
        disks
            .map(|(number, disk)| DiskJob {
                label: disk.label.clone(),
                source: Source::Archived(ArchivedDisk {
                    archive: self.archive.clone(),
                    number,
                    size: disk.virtual_size,
                }),
                source_name: request.shown(),
                changed_blocks: None,
                lineage: lineage(disk),
                state,
            })
            .collect()
    }
}

/// Where a disk came from, sorted by key.
fn lineage(disk: &Disk) -> Vec<(String, String)> {
    let pairs = [
        ("sr-uuid", disk.sr_uuid.clone()),
        ("userdevice", disk.userdevice.clone()),
        ("vdi-uuid", Some(disk.vdi_uuid.clone())),
        ("virtual-size", Some(disk.virtual_size.to_string())),
    ];
    let known = pairs.into_iter().filter_map(|(key, value)| {
        let value = value.filter(|value| !value.is_empty() && value.len() <= 255)?;
        Some((key.to_owned(), value))
    });
    known.collect()
}
