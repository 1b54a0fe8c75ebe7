//! Disks in VHDs, named as `vhd:FILE[,PARENT...]`; and differencing VHDs as what changed since a snapshot.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use undercroft_dataplane::ingest::backup::BackupJob;
use undercroft_dataplane::ingest::source::{DiskSource, Source};
use undercroft_dataplane::vhd::chain::{open_delta, open_whole};
use undercroft_dataplane::vhd::delta::VhdDelta;
use undercroft_dataplane::vhd::disk::VhdDisk;
use undercroft_dataplane::vhd::error::VhdFileError;
use undercroft_dataplane::vhd::layer::Layer;
use undercroft_dataplane::vhd::piped::PipedVhd;
use undercroft_format::lineage::{self, Begins};
use undercroft_format::snapshot::{DiskManifest, Snapshot};
use undercroft_format::vhd::error::{Part, Problem as VhdProblem};
use undercroft_format::vhd::footer::FOOTER_LEN;
use undercroft_format::vhd::image::{OpenError, ends_like_vhd};
use undercroft_format::vhd::uuid::VhdUuid;

use crate::backup_job::{DiskRequest, is_inside, is_stdin};
use crate::catalog::Catalog;
use crate::failure::{Problem, quote, warn};
use crate::signals::Stoppable;

/// Bytes of a stream read at once.
const STREAM_BUFFER_LEN: usize = 1 << 20;
const PREFIX: &str = "vhd:";

/// The files of a source that is named as a VHD.
pub fn files(source: &Path) -> Option<Vec<PathBuf>> {
    let list = source.to_str()?.strip_prefix(PREFIX)?;
    Some(split(Path::new(list)))
}

/// The files of a list. A name with a comma in it stands for itself, if it is there.
pub fn split(list: &Path) -> Vec<PathBuf> {
    match list.to_str() {
        Some(text) if !list.exists() => text.split(',').map(PathBuf::from).collect(),
        _ => vec![list.to_owned()],
    }
}

/// A source that is open, and what its files say of it.
pub struct OpenVhd {
    pub source: Source,
    /// All files that are read.
    pub files: Vec<PathBuf>,
    pub lineage: Vec<(String, String)>,
}

/// Opens the VHD at the first of `files`, whose parents the others are, as a disk.
pub fn open_disk(files: &[PathBuf], repository: Option<&Path>) -> anyhow::Result<OpenVhd> {
    if let [name] = files
        && is_piped(name)
    {
        return open_piped(name);
    }
    check_files(files, repository)?;
    let layers = open_whole(files).map_err(explain)?;
    let uuid = layers.first().map(uuid_of);
    let is_export = layers.iter().any(|layer| layer.image().footer.is_export());
    let read = paths(&layers);
    Ok(OpenVhd {
        source: Source::Disk(VhdDisk::new(layers, None).into_source()),
        files: read,
        lineage: match uuid {
            // An identity that was drawn for one export says nothing about the disk.
            Some(uuid) if !is_export => vec![(lineage::VHD.to_owned(), uuid.to_string())],
            _ => Vec::new(),
        },
    })
}

/// Opens differencing VHDs, each the child of the next, as what changed.
pub fn open_changes(files: &[PathBuf], repository: Option<&Path>) -> anyhow::Result<OpenVhd> {
    check_files(files, repository)?;
    let (layers, parent) = open_delta(files).map_err(explain)?;
    let read = paths(&layers);
    let delta = VhdDelta::new(layers, parent);
    let mut lineage = Vec::new();
    if delta.has_identity() {
        lineage.push((lineage::VHD.to_owned(), delta.uuid().to_string()));
        lineage.push((lineage::VHD_PARENT.to_owned(), parent.to_string()));
    }
    Ok(OpenVhd {
        source: Source::Delta(Box::new(delta)),
        files: read,
        lineage,
    })
}

/// True if `path` can be read only once.
fn is_piped(path: &Path) -> bool {
    let is_stream = |metadata: fs::Metadata| {
        let kind = metadata.file_type();
        kind.is_fifo() || kind.is_char_device()
    };
    is_stdin(path) || fs::metadata(path).is_ok_and(is_stream)
}

/// True if the VHD that `source` names, if it names one, can be read only once.
pub fn is_stream(source: &Path) -> bool {
    files(source).is_some_and(|files| files.iter().any(|file| is_piped(file)))
}

/// Opens a VHD that comes as a stream. Its lineage is not known before: the same run has to be found again by what was
/// known when it began.
fn open_piped(path: &Path) -> anyhow::Result<OpenVhd> {
    let opening = || format!("opening the source {}", path.display());
    let (name, file) = match is_stdin(path) {
        // Not through `Stdin`, which reads ahead: what it holds cannot be waited for.
        true => {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            (
                "standard input".to_owned(),
                stdin.with_context(opening)?.into(),
            )
        }
        false => {
            let file = File::open(path).with_context(opening)?;
            (path.display().to_string(), file)
        }
    };
    let stream = BufReader::with_capacity(STREAM_BUFFER_LEN, Stoppable(file));
    let disk = PipedVhd::open(&name, Box::new(stream)).map_err(explain)?;
    Ok(OpenVhd {
        source: Source::InOrder(Box::new(disk)),
        files: Vec::new(),
        lineage: Vec::new(),
    })
}

fn uuid_of(layer: &Layer) -> VhdUuid {
    layer.image().footer.uuid
}

fn paths(layers: &[Layer]) -> Vec<PathBuf> {
    layers.iter().map(|layer| layer.path().to_owned()).collect()
}

fn check_files(files: &[PathBuf], repository: Option<&Path>) -> anyhow::Result<()> {
    for file in files {
        if file.as_os_str().is_empty() {
            return Err(Problem::usage("a VHD without a name")
                .hint("name it as in vhd:/images/root.vhd")
                .into());
        }
        if is_piped(file) {
            return Err(
                Problem::usage("a stream brings no VHD with its parents, and no delta")
                    .hint("write them to files first, then name those")
                    .into(),
            );
        }
        if repository.is_some_and(|repository| is_inside(file, repository)) {
            return Err(Problem::new(format!(
                "the source {} lies inside the repository",
                file.display()
            ))
            .hint("a repository cannot back up itself: copy its directory elsewhere instead")
            .into());
        }
    }
    Ok(())
}

/// What is wrong with a file, and what to do.
fn explain(error: VhdFileError) -> anyhow::Error {
    let hint = match &error {
        VhdFileError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "check the path; a relative one begins at the current directory".to_owned()
        }
        VhdFileError::Image {
            source: OpenError::Vhd(wrong),
            ..
        } if matches!(
            (wrong.part, &wrong.problem),
            (Part::Footer, VhdProblem::Cookie { .. })
        ) =>
        {
            "if it is a raw disk, leave out vhd:; if it was copied, its end is missing: copy it again".to_owned()
        }
        VhdFileError::Image {
            source: OpenError::Vhd(wrong),
            ..
        } if matches!(wrong.problem, VhdProblem::OutOfOrder | VhdProblem::FixedHead) => {
            "write it to a file first, then name that: vhd:FILE".to_owned()
        }
        VhdFileError::Image { .. } => "copy or export it again".to_owned(),
        VhdFileError::ParentMissing { child, .. } => format!(
            "name the parents, the nearest first: vhd:{child},PARENT,...; or back up what changed alone: --vhd-delta {} --parent SNAPSHOT",
            quote(child)
        ),
        VhdFileError::OtherParent { .. } => {
            "name the parent that belongs to it: vhd:CHILD,PARENT,...".to_owned()
        }
        VhdFileError::NoChild { path, .. } => format!("leave out what follows: vhd:{path}"),
        VhdFileError::ChildInStream { .. } => {
            "write it to a file first, then name that: vhd:CHILD,PARENT,...".to_owned()
        }
        VhdFileError::NoDelta { path } => {
            format!("back up the whole disk: --disk LABEL=vhd:{path}")
        }
        _ => return error.into(),
    };
    let text = error.to_string();
    let problem = Problem::new(text).hint(hint);
    match error {
        VhdFileError::Open { source, .. } => anyhow::Error::new(source).context(problem),
        VhdFileError::Image { source, .. } => anyhow::Error::new(source).context(problem),
        _ => problem.into(),
    }
}

/// Tells if a source that is going to be read byte by byte looks like a VHD.
pub fn warn_of_vhd(path: &Path, disk: &DiskSource) {
    let Some(at) = disk.size().get().checked_sub(FOOTER_LEN as u64) else {
        return;
    };
    let mut last = [0; FOOTER_LEN];
    // Whoever reads the disk will meet the error again.
    let got = disk.file().read_at(&mut last, at).unwrap_or(0);
    if got == FOOTER_LEN && ends_like_vhd(&last) {
        warn(format_args!(
            "{} is a VHD and is backed up as the file that it is; for the disk in it: vhd:{}",
            path.display(),
            path.display()
        ));
    }
}

/// Refuses VHDs among what a proxy is to read: their parents may lie anywhere.
pub fn check_no_vhd(disk: &DiskRequest) -> anyhow::Result<()> {
    if disk.overlay.is_some() {
        return Err(Problem::usage("a proxy backs up no overlays")
            .hint("back it up without --proxy, on the machine that has it")
            .into());
    }
    if !disk.is_delta && files(&disk.source).is_none() {
        return Ok(());
    }
    Err(Problem::usage(format!(
        "disk {} is a VHD: a proxy reads only raw files and block devices of its machine",
        disk.label
    ))
    .hint("back it up without --proxy, on the machine that has it")
    .into())
}

/// Checks that each delta of `job` changes what its parent holds, and gives those that were not labelled the label of
/// the parent's only disk.
///
/// Nothing can stand in for the right parent, so that a doubt ends the backup.
pub fn settle_deltas(
    job: &mut BackupJob,
    disks: &[DiskRequest],
    catalog: &Catalog,
) -> anyhow::Result<()> {
    let Some(parent) = job.parent.as_ref().map(|parent| parent.snapshot.clone()) else {
        return Ok(());
    };
    for place in 0..job.disks.len() {
        let is_overlay = disks.get(place).is_some_and(|disk| disk.overlay.is_some());
        if is_overlay || !matches!(job.disks[place].source, Source::Delta(_)) {
            continue;
        }
        let is_labelled = disks.get(place).is_some_and(|disk| disk.is_labelled);
        let label = match &parent.disks[..] {
            [only] if !is_labelled => only.label.clone(),
            _ => job.disks[place].label.clone(),
        };
        let taken = |(other, disk): (usize, &DiskRequest)| other != place && disk.label == label;
        let Some(disk) = parent
            .disk(&label)
            .filter(|_| !disks.iter().enumerate().any(taken))
        else {
            return Err(no_disk(&label, &parent, &job.disks[place].source_name));
        };
        check_lineage(&job.disks[place].lineage, disk, &parent, catalog)?;
        job.disks[place].label = label;
    }
    Ok(())
}

fn no_disk(label: &str, parent: &Snapshot, file: &str) -> anyhow::Error {
    let labels: Vec<_> = parent
        .disks
        .iter()
        .map(|disk| disk.label.as_str())
        .collect();
    Problem::usage(format!(
        "what changed on disk {label} cannot be laid over the parent, which has no such disk"
    ))
    .hint(format!("its disks are: {}", labels.join(", ")))
    .hint(format!("say which one it is: --vhd-delta LABEL={file}"))
    .into()
}

fn check_lineage(
    delta: &[(String, String)],
    disk: &DiskManifest,
    parent: &Snapshot,
    catalog: &Catalog,
) -> anyhow::Result<()> {
    let mismatch = match lineage::compare(delta, &disk.lineage) {
        Ok(Begins::AtParent) => return Ok(()),
        Ok(Begins::Unknown) => {
            warn(format_args!(
                "nothing says that what changed on disk {} begins at the parent: it is believed",
                disk.label
            ));
            return Ok(());
        }
        Err(mismatch) => mismatch,
    };
    let wanted = entry(delta, lineage::VHD_PARENT);
    let is_it = |snapshot: &Snapshot| {
        let disk = snapshot.disk(&disk.label);
        snapshot.vm == parent.vm
            && wanted.is_some()
            && disk.is_some_and(|disk| entry(&disk.lineage, lineage::VHD) == wanted)
    };
    let fitting = catalog
        .snapshots
        .iter()
        .rfind(|stored| is_it(&stored.snapshot));
    let problem = Problem::new(format!(
        "what changed on disk {} does not begin at the parent: its {mismatch}",
        disk.label
    ));
    Err(match fitting {
        Some(stored) => problem.hint(format!("it changes that of --parent {}", stored.id.short())),
        None => problem
            .hint("no snapshot of this VM holds what it changes: back up the whole disk")
            .hint("of a chain of deltas name all since the parent, the newest first: --vhd-delta LABEL=NEW,OLDER"),
    }
    .into())
}

fn entry<'a>(lineage: &'a [(String, String)], key: &str) -> Option<&'a str> {
    let found = lineage.iter().find(|(known, _)| known == key);
    found.map(|(_, value)| value.as_str())
}
