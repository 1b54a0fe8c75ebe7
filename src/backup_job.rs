//! From a request to a job: labels, sources, bitmaps, all checked before anything is opened for writing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use undercroft_dataplane::ingest::backup::{BackupJob, DiskJob};
use undercroft_dataplane::ingest::changes::ChangedBlocks;
use undercroft_dataplane::ingest::source::{DiskSource, Source};
use undercroft_format::audit::AuditShare;
use undercroft_format::lineage;
use undercroft_format::lock::LockEnd;
use undercroft_format::overlay::Header;
use undercroft_format::snapshot::NAME_LEN_MAX;
use undercroft_format::units::DiskLength;

use crate::backup_request::leave_out;
use crate::failure::Problem;
use crate::guest::GuestRequest;
use crate::nbd_source::{
    dirty_bitmap, is_bitmap_there, is_nbd, open_export, shown_source, until_stopped,
};
use crate::overlay_source;
use crate::settings::Settings;
use crate::signals::Stoppable;
use crate::vhd_source::{self, OpenVhd};
use crate::xva_source::{OVA_XML, PlannedXva, XvaRequest};

/// Longest metadata, in bytes: it is held in memory.
const METADATA_LEN_MAX: u64 = 64 << 20;
const TAGS_MAX: usize = 256;
const LINEAGE_MAX: usize = 64;
const VALUE_LEN_MAX: usize = 4096;
/// What a restore into a directory adds to a disk's label.
pub const RESTORED_SUFFIX: &str = ".raw";
/// Longest label, in bytes: with the suffix it is a file's name, which may have 255.
const LABEL_LEN_MAX: usize = 255 - RESTORED_SUFFIX.len();
/// What to back up. Nothing of it was looked at yet.
#[derive(Clone, Debug)]
pub struct Request {
    pub vm: String,
    pub disks: Vec<DiskRequest>,
    /// Instead of disks: what holds all of the VM.
    pub xva: Option<XvaRequest>,
    /// Labels of the XVA's or the guest's disks that are left out.
    pub excluded: Vec<String>,
    /// In place of disks.
    pub guest: Option<GuestRequest>,
    pub metadata: Option<PathBuf>,
    pub tags: Vec<String>,
    pub lock: Option<LockEnd>,
    pub audit: AuditShare,
}

/// A disk to back up.
#[derive(Clone, Debug)]
pub struct DiskRequest {
    pub label: String,
    /// False if the label was only made up.
    pub is_labelled: bool,
    pub source: PathBuf,
    /// The source is a differencing VHD: what changed since the parent alone.
    pub is_delta: bool,
    /// The source is an overlay, over what this says: what changed since the parent alone.
    pub overlay: Option<Header>,
    pub changed_blocks: Option<PathBuf>,
    pub lineage: Vec<(String, String)>,
}

/// Makes the job, without its parent.
pub fn plan(settings: &Settings, request: Request) -> anyhow::Result<BackupJob> {
    if let Some(xva) = request.xva.clone() {
        let opened = xva.open(settings.local_root()?)?;
        return plan_xva(request, &xva, &opened);
    }
    plan_with(settings, request, open_disk)
}

/// Makes the job, but leaves alone what can be read only once.
pub fn plan_without_streams(settings: &Settings, request: Request) -> anyhow::Result<BackupJob> {
    if let Some(xva) = request.xva.clone() {
        let known = xva.known().context("the XVA was not read yet")?;
        return plan_xva(request, &xva, &known);
    }
    plan_with(settings, request, |disk, root| match is_seekable(disk) {
        true => open_disk(disk, root),
        false => Ok(Opened::plain(
            &disk.source,
            Source::Stream(Box::new(io::empty())),
        )),
    })
}

fn is_seekable(disk: &DiskRequest) -> bool {
    let path = &disk.source;
    let is_disk = |meta: fs::Metadata| {
        let kind = meta.file_type();
        kind.is_file() || kind.is_block_device()
    };
    if disk.is_delta || vhd_source::files(path).is_some() {
        return !vhd_source::is_stream(path);
    }
    is_nbd(path) || (!is_stdin(path) && fs::metadata(path).is_ok_and(is_disk))
}

/// The job of a VM whose disks, name and metadata an XVA tells.
fn plan_xva(request: Request, xva: &XvaRequest, planned: &PlannedXva) -> anyhow::Result<BackupJob> {
    let description = &planned.description;
    let vm = match xva.names_vm {
        true => description.ova.vm().name_label.clone(),
        false => request.vm,
    };
    check_name("VM name", &vm).context(
        Problem::new("the XVA's name for its VM cannot be used").hint("give another: --vm NAME"),
    )?;
    check_tags(&request.tags)?;
    let disks = planned.disks(xva);
    if disks.is_empty() {
        return Err(Problem::new(format!(
            "the XVA {} holds no disks, only the description of a VM",
            xva.shown()
        ))
        .hint("export the VM with its disks: xe vm-export, not its metadata alone")
        .into());
    }
    let disks = leave_out(disks, &request.excluded, |disk| &disk.label)?;
    Ok(BackupJob {
        vm,
        disks,
        parent: None,
        metadata: Some((OVA_XML.to_owned(), description.text.clone())),
        tags: request.tags,
        resume: None,
        lock: request.lock,
        audit: request.audit,
        confirm: None,
        now_ms: Timestamp::now().as_millisecond().max(0) as u64,
    })
}

fn check_tags(tags: &[String]) -> anyhow::Result<()> {
    for tag in tags {
        check_name("tag", tag)?;
    }
    check_count("tags", tags.len(), TAGS_MAX)
}

fn plan_with(
    settings: &Settings,
    request: Request,
    open: impl Fn(&DiskRequest, Option<&Path>) -> anyhow::Result<Opened>,
) -> anyhow::Result<BackupJob> {
    check_name("VM name", &request.vm)?;
    check_tags(&request.tags)?;
    match request.guest {
        // Its disks come later.
        Some(_) => assert!(request.disks.is_empty(), "a guest names its own disks"),
        None => check_labels(&request.disks)?,
    }
    let root = settings.local_root()?;
    let mut disks = Vec::with_capacity(request.disks.len());
    for disk in request.disks {
        let opened = open(&disk, root)?;
        disks.push(plan_disk(disk, opened)?);
    }
    if let Some(path) = &request.metadata {
        check_metadata_name(path, &disks)?;
    }
    Ok(BackupJob {
        vm: request.vm,
        disks,
        parent: None,
        metadata: request.metadata.as_deref().map(read_metadata).transpose()?,
        tags: request.tags,
        resume: None,
        lock: request.lock,
        audit: request.audit,
        confirm: None,
        now_ms: Timestamp::now().as_millisecond().max(0) as u64,
    })
}

/// A source that is open.
struct Opened {
    source: Source,
    lineage: Vec<(String, String)>,
    state: [u8; 32],
}

impl Opened {
    fn plain(path: &Path, source: Source) -> Self {
        Self {
            source,
            lineage: Vec::new(),
            state: file_state(path),
        }
    }

    fn vhd(vhd: OpenVhd) -> Self {
        let states: Vec<_> = vhd.files.iter().map(|file| file_state(file)).collect();
        Self {
            source: vhd.source,
            lineage: vhd.lineage,
            state: *blake3::hash(states.as_flattened()).as_bytes(),
        }
    }
}

fn open_disk(disk: &DiskRequest, repository: Option<&Path>) -> anyhow::Result<Opened> {
    let path = &disk.source;
    if disk.overlay.is_some() {
        return Ok(Opened::plain(path, overlay_source::open_changes(path)?));
    }
    if disk.is_delta {
        let vhd = vhd_source::open_changes(&vhd_source::split(path), repository)?;
        return Ok(Opened::vhd(vhd));
    }
    if let Some(files) = vhd_source::files(path) {
        return Ok(Opened::vhd(vhd_source::open_disk(&files, repository)?));
    }
    Ok(Opened::plain(path, open_source(path, repository)?))
}

fn plan_disk(disk: DiskRequest, opened: Opened) -> anyhow::Result<DiskJob> {
    let path = disk.source;
    let mut job = DiskJob {
        source: opened.source,
        source_name: shorten(shown_source(&path), VALUE_LEN_MAX),
        label: disk.label,
        changed_blocks: None,
        lineage: Vec::new(),
        state: opened.state,
    };
    for (key, value) in opened.lineage {
        add_lineage(&mut job, key, value)?;
    }
    if let Some(text) = &disk.changed_blocks {
        add_changed_blocks(&mut job, text)?;
    }
    for (key, value) in disk.lineage {
        add_lineage(&mut job, key, value)?;
    }
    if let Some((bitmap, changed)) = dirty_bitmap(&path, &job.source, until_stopped()) {
        if job.changed_blocks.is_some() {
            return Err(Problem::usage(format!(
                "disk {} has both --changed-blocks and a dirty bitmap, x-dirty-bitmap={bitmap}",
                job.label
            ))
            .hint("give one of them")
            .into());
        }
        job.changed_blocks = Some(changed);
        // A bitmap that begins later misses what was written before.
        if !job.lineage.iter().any(|(key, _)| key == lineage::BITMAP)
            && is_bitmap_there(&path, until_stopped())
        {
            add_lineage(&mut job, lineage::BITMAP.to_owned(), bitmap)?;
        }
    }
    Ok(job)
}

/// What tells one state of a file from another without reading it. A block device has no such thing: its
/// size, and what the user says of it by `--lineage`, have to do.
pub fn file_state(path: &Path) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    if let Ok(meta) = fs::metadata(path)
        && meta.file_type().is_file()
    {
        hasher.update(&meta.size().to_le_bytes());
        hasher.update(&meta.mtime().to_le_bytes());
        hasher.update(&meta.mtime_nsec().to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Completes the disks' states once the parent is known: a session goes on only where the same would be
/// read in the same way.
pub fn complete_states(job: &mut BackupJob) {
    let parent = job.parent.as_ref().map(|parent| parent.id);
    for disk in &mut job.disks {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&disk.state);
        for (key, value) in &disk.lineage {
            for text in [key, value] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
        let is_increment = disk.changed_blocks.is_some() || matches!(disk.source, Source::Delta(_));
        if let Some(parent) = parent.filter(|_| is_increment) {
            hasher.update(parent.as_bytes());
            // Another sample may find what this one does not: then nothing of before may be kept.
            hasher.update(&job.audit.ppm().to_le_bytes());
        }
        disk.state = *hasher.finalize().as_bytes();
    }
}

/// True if the job can be begun anew: what came from a pipe is gone.
pub fn can_begin_anew(request: &Request) -> bool {
    if let Some(xva) = &request.xva {
        return xva.is_repeatable();
    }
    request.disks.iter().all(|disk| {
        let path = &disk.source;
        if disk.is_delta || vhd_source::files(path).is_some() {
            return !vhd_source::is_stream(path);
        }
        is_nbd(path)
            || (!is_stdin(path) && fs::metadata(path).is_ok_and(|meta| !meta.file_type().is_fifo()))
    })
}

/// Bytes of all disks whose size is known before they are read.
pub fn disk_bytes(job: &BackupJob) -> u64 {
    let sizes = job.disks.iter().filter_map(|disk| disk.source.size());
    sizes.map(DiskLength::get).sum()
}

fn check_name(what: &str, name: &str) -> anyhow::Result<()> {
    let problem = match name {
        "" => "is empty",
        name if name.len() as u64 > NAME_LEN_MAX => "is longer than 255 bytes",
        name if name.chars().any(char::is_control) => "has control characters",
        _ => return Ok(()),
    };
    Err(Problem::usage(format!("the {what} {name:?} {problem}")).into())
}

/// A restore into a directory writes the metadata beside the disks, which are LABEL.raw there.
pub fn check_metadata_name(path: &Path, disks: &[DiskJob]) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default();
    let clashes = |disk: &&DiskJob| name == format!("{}{RESTORED_SUFFIX}", disk.label).as_str();
    match disks.iter().find(clashes) {
        None => Ok(()),
        Some(disk) => Err(Problem::usage(format!(
            "the metadata {} would be restored under the name of disk {}",
            path.display(),
            disk.label
        ))
        .hint("rename the metadata's file, or give the disk another label: --disk LABEL=SOURCE")
        .into()),
    }
}

fn check_count(what: &str, count: usize, limit: usize) -> anyhow::Result<()> {
    if count <= limit {
        return Ok(());
    }
    Err(Problem::usage(format!("{count} {what} are too many: the limit is {limit}")).into())
}

/// Labels become file names when all disks are restored into a directory.
pub fn check_label(label: &str) -> anyhow::Result<()> {
    check_name("disk label", label)?;
    if label.contains('/') || label == "." || label == ".." {
        return Err(Problem::usage(format!(
            "the disk label {label:?} cannot be the name of a file"
        ))
        .into());
    }
    if label.len() > LABEL_LEN_MAX {
        return Err(Problem::usage(format!(
            "the disk label {label:?} is longer than {LABEL_LEN_MAX} bytes"
        ))
        .into());
    }
    Ok(())
}

/// Each disk has a label of its own, and there is a disk.
fn check_labels(disks: &[DiskRequest]) -> anyhow::Result<()> {
    let mut taken = HashSet::new();
    for disk in disks {
        check_label(&disk.label)?;
        if !taken.insert(disk.label.as_str()) {
            return Err(
                Problem::usage(format!("two disks are labelled {}", disk.label))
                    .hint("give each disk a label of its own")
                    .into(),
            );
        }
    }
    if disks.is_empty() {
        return Err(
            Problem::usage("there is nothing to back up: no disk was given")
                .hint("name disks as SOURCE or --disk LABEL=SOURCE")
                .into(),
        );
    }
    let reads_stdin = |disk: &&DiskRequest| {
        let files = vhd_source::files(&disk.source);
        let files = files.unwrap_or_else(|| vec![disk.source.clone()]);
        files.iter().any(|file| is_stdin(file))
    };
    if disks.iter().filter(reads_stdin).count() > 1 {
        return Err(Problem::usage("standard input can be one disk, not two").into());
    }
    Ok(())
}

/// True if `path` means standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Standard input. Not through `Stdin`, which reads ahead: what it holds cannot be waited for.
pub fn open_stdin() -> anyhow::Result<Stoppable> {
    let stdin = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("opening standard input")?;
    Ok(Stoppable(stdin.into()))
}

fn open_source(path: &Path, repository: Option<&Path>) -> anyhow::Result<Source> {
    if is_nbd(path) {
        return open_export(path, until_stopped());
    }
    if is_stdin(path) {
        return Ok(Source::Stream(Box::new(open_stdin()?)));
    }
    let opening = || format!("opening the source {}", path.display());
    let metadata = fs::metadata(path).map_err(|error| cannot(opening(), error))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(Problem::new(format!(
            "the source {} is a directory: a disk is a file or a block device",
            path.display()
        ))
        .hint("name the disk's file, or pipe an archive in: tar c DIR | undercroft backup --vm NAME -")
        .into());
    }
    if repository.is_some_and(|repository| is_inside(path, repository)) {
        return Err(Problem::new(format!(
            "the source {} lies inside the repository",
            path.display()
        ))
        .hint("a repository cannot back up itself: copy its directory elsewhere instead")
        .into());
    }
    if kind.is_fifo() || kind.is_char_device() {
        let file = File::open(path).with_context(opening)?;
        return Ok(Source::Stream(Box::new(Stoppable(file))));
    }
    let disk = DiskSource::open(path)?;
    vhd_source::warn_of_vhd(path, &disk);
    Ok(Source::Disk(disk))
}

fn cannot(doing: String, error: io::Error) -> anyhow::Error {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => Problem::new(doing)
            .hint("check the path; a relative one begins at the current directory"),
        _ => Problem::new(doing),
    };
    anyhow::Error::new(error).context(problem)
}

/// Whether `path` lies below the directory `root`, links followed.
pub fn is_inside(path: &Path, root: &Path) -> bool {
    match (path.canonicalize(), root.canonicalize()) {
        (Ok(path), Ok(root)) => path.starts_with(root),
        _ => false,
    }
}

fn add_changed_blocks(disk: &mut DiskJob, path: &Path) -> anyhow::Result<()> {
    if matches!(disk.source, Source::Delta(_)) {
        return Err(Problem::usage(format!(
            "disk {} comes from a VHD that holds what changed: it takes no changed blocks",
            disk.label
        ))
        .hint("leave out --changed-blocks")
        .into());
    }
    if matches!(disk.source, Source::Stream(_)) {
        return Err(Problem::usage(format!(
            "disk {} is a stream, which has no addresses: changed blocks mean nothing there",
            disk.label
        ))
        .hint("leave out --changed-blocks, or name a file or block device")
        .into());
    }
    let reading = || format!("reading the changed blocks {}", path.display());
    let text = File::open(path).map_err(|error| cannot(reading(), error))?;
    disk.changed_blocks = Some(ChangedBlocks::text(text));
    // Other changed blocks mean that other ranges are read.
    let states = [disk.state, file_state(path)];
    disk.state = *blake3::hash(states.as_flattened()).as_bytes();
    Ok(())
}

fn add_lineage(disk: &mut DiskJob, key: String, value: String) -> anyhow::Result<()> {
    let label = &disk.label;
    check_name("lineage key", &key)?;
    if value.len() > VALUE_LEN_MAX {
        return Err(Problem::usage(format!(
            "--lineage {label}:{key}: the value is longer than {VALUE_LEN_MAX} bytes"
        ))
        .into());
    }
    if disk.lineage.iter().any(|(known, _)| *known == key) {
        return Err(Problem::usage(format!("--lineage {label}:{key} was given twice")).into());
    }
    disk.lineage.push((key, value));
    disk.lineage.sort();
    check_count("lineage entries", disk.lineage.len(), LINEAGE_MAX)
}

fn read_metadata(path: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    check_name("name of the metadata", &name)?;
    let bytes = read_at_most(path, METADATA_LEN_MAX, "metadata file")?;
    Ok((name.into_owned(), bytes))
}

fn read_at_most(path: &Path, limit: u64, what: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|error| cannot(format!("reading the {what} {}", path.display()), error))?;
    if bytes.len() as u64 > limit {
        return Err(Problem::new(format!(
            "the {what} {} is longer than {limit} bytes",
            path.display()
        ))
        .hint("is it the right file?")
        .into());
    }
    Ok(bytes)
}

fn shorten(mut text: String, len_max: usize) -> String {
    let mut len = text.len().min(len_max);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    text.truncate(len);
    text
}
