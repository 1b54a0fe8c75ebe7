//! Overlays: what was written to the export of a disk, to be exported again or to be backed up.

use std::path::Path;
use std::sync::Arc;

use undercroft_control::SnapshotSpec;
use undercroft_dataplane::ingest::backup::BackupJob;
use undercroft_dataplane::ingest::source::Source;
use undercroft_dataplane::io::BlockFile;
use undercroft_dataplane::overlay::delta::OverlayDelta;
use undercroft_dataplane::overlay::file::OverlayFile;
use undercroft_dataplane::overlay::{Overlay, OverlayError};
use undercroft_format::overlay::{DataPlace, Header};
use undercroft_format::snapshot::DiskManifest;

use crate::access::PinnedRead;
use crate::backup_job::DiskRequest;
use crate::failure::{Problem, quote, warn};

/// Opens the overlay at `path` to write over `disk`; makes it if it is missing. `data` is where its data are, if that is
/// elsewhere.
pub fn open_overlay(
    path: &Path,
    data: Option<Arc<dyn BlockFile>>,
    read: &PinnedRead,
    disk: &DiskManifest,
) -> anyhow::Result<OverlayFile> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| Problem::new(format!("drawing an id for the overlay: {error}")))?;
    let wanted = Header {
        data: match data {
            None => DataPlace::Here,
            Some(_) => DataPlace::Elsewhere,
        },
        id,
        size: disk.size,
        repository: read.repository.config().repository,
        snapshot: read.snapshots[0].id,
        label: disk.label.clone(),
    };
    let file = OverlayFile::open_or_create(path, data, &wanted).map_err(explain)?;
    tell_torn(&file.overlay, path);
    Ok(file)
}

fn tell_torn(overlay: &Overlay, path: &Path) {
    match overlay.torn() {
        0 => {}
        torn => warn(format_args!(
            "{torn} entries of the overlay {} are torn: what stood there before counts, and where nothing did, reads fail",
            path.display()
        )),
    }
}

/// What an overlay that is to be backed up lies over.
pub fn read_header(path: &Path) -> anyhow::Result<Header> {
    let header = OverlayFile::read_header(path).map_err(explain)?;
    match header.data {
        DataPlace::Here => Ok(header),
        DataPlace::Elsewhere => Err(Problem::usage(format!(
            "{} is the state of a restore, whose data are in the restored disk",
            path.display()
        ))
        .hint("back up that disk when the restore is done: undercroft backup --vm NAME FILE")
        .into()),
    }
}

/// The snapshot that all of `headers` lie over.
pub fn parent_of(headers: &[Header]) -> anyhow::Result<Option<SnapshotSpec>> {
    let Some(first) = headers.first() else {
        return Ok(None);
    };
    if headers
        .iter()
        .any(|header| header.snapshot != first.snapshot)
    {
        return Err(
            Problem::usage("the overlays lie over disks of different snapshots")
                .hint("back up those of each snapshot by themselves")
                .into(),
        );
    }
    Ok(Some(first.snapshot.to_string().parse()?))
}

/// Opens an overlay as what changed.
pub fn open_changes(path: &Path) -> anyhow::Result<Source> {
    let file = OverlayFile::open(path).map_err(explain)?;
    // No power failure tears a slot, which lies in one sector: something that was flushed may be lost.
    let torn = file.overlay.torn();
    if torn > 0 {
        return Err(Problem::new(format!(
            "the overlay {} is damaged: {torn} entries of its map are torn, and what they named may be lost",
            path.display()
        ))
        .hint("look at what is left: undercroft export SNAPSHOT:DISK --overlay FILE --nbd unix:PATH")
        .hint("to keep that as it is: back up the export itself, as --disk LABEL=nbd+unix:///?socket=PATH")
        .into());
    }
    Ok(Source::Delta(Box::new(OverlayDelta::new(file))))
}

/// Checks that each overlay of `job` lies over a disk of its parent.
pub fn check_parent(
    job: &BackupJob,
    disks: &[DiskRequest],
    repository: undercroft_format::id::RepositoryId,
) -> anyhow::Result<()> {
    for (disk, request) in job.disks.iter().zip(disks) {
        let Some(header) = &request.overlay else {
            continue;
        };
        let parent = job.parent.as_ref();
        let parent = parent.filter(|parent| parent.id == header.snapshot);
        let below = parent.and_then(|parent| parent.snapshot.disk(&header.label));
        let is_below = below.is_some_and(|below| below.size == header.size);
        if !is_below || header.repository != repository {
            return Err(Problem::new(format!(
                "the overlay {} lies over disk {} of snapshot {}, which this repository does not have",
                disk.source_name,
                header.label,
                header.snapshot.short()
            ))
            .hint("name the repository that it was made over: --repo REPO")
            .into());
        }
    }
    Ok(())
}

fn explain(error: OverlayError) -> anyhow::Error {
    let hint = match &error {
        OverlayError::InUse { .. } => {
            "stop the export that writes to it, then try again".to_owned()
        }
        OverlayError::CutShort { .. } => {
            "take a whole copy of it: cp --sparse=always keeps its length".to_owned()
        }
        OverlayError::Header { .. } => "name another file: one that is missing is made".to_owned(),
        OverlayError::OtherDisk {
            path, what, found, ..
        } => match *what {
            "snapshot" => format!("export what it lies over: {}", &found[..found.len().min(8)]),
            "disk" => format!("export what it lies over: SNAPSHOT:{found}"),
            _ => format!("name another file than {}", quote(path)),
        },
        _ => return error.into(),
    };
    let problem = Problem::new(error.to_string()).hint(hint);
    match error {
        OverlayError::Header { source, .. } => anyhow::Error::new(source).context(problem),
        _ => problem.into(),
    }
}
