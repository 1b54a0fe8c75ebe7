//! Where restored disks go: checks before anything is written, and files that appear only when complete.

use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use undercroft_dataplane::ingest::source::Reads;
use undercroft_dataplane::io::{BlockFile, OsFile};
use undercroft_dataplane::nbd::NbdFile;
use undercroft_dataplane::restore::write::Plain;
use undercroft_dataplane::restore::{Target, TargetContent};
use undercroft_format::nbd::uri::NbdUri;
use undercroft_format::reason::Reason;
use undercroft_format::snapshot::DiskManifest;
pub use undercroft_format::wire::task::Overwrite;

use crate::backup_job::{RESTORED_SUFFIX, is_inside};
use crate::failure::{Problem, quote};
use crate::nbd_source::{self, shown_source};
use crate::restore_image::ImageLayout;
use crate::runner::Runner;
use crate::units::Size;

/// Ends the name of a file that is not complete.
const PARTIAL_SUFFIX: &str = ".undercroft-partial";
/// Bytes written at once to what takes an image: a VHD's bitmaps are small, and a pipe's reader wants no small pieces.
const STREAM_BUFFER_LEN: usize = 1 << 20;
/// Longest name of a file, in bytes: NAME_MAX of limits.h.
const FILE_NAME_LEN_MAX: usize = 255;

/// What a restored disk is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Its bytes
    #[default]
    Raw,
    /// A VHD: dynamic, or differencing with --vhd-since
    Vhd,
    /// A qcow2 image, version 3
    Qcow2,
}

impl Format {
    /// What a restore into a directory adds to a disk's label.
    fn suffix(self) -> &'static str {
        match self {
            Self::Raw => RESTORED_SUFFIX,
            Self::Vhd => ".vhd",
            Self::Qcow2 => ".qcow2",
        }
    }

    /// What `--format` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Qcow2 => "qcow2",
        }
    }

    /// One of its files, in a sentence.
    pub fn article(self) -> &'static str {
        match self {
            Self::Raw => "a raw disk",
            Self::Vhd => "a VHD",
            Self::Qcow2 => "a qcow2 image",
        }
    }
}

/// Where to, in the user's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// All disks into a directory.
    Directory(PathBuf),
    /// One disk into a file or device.
    File(PathBuf),
    /// One disk into an export, by its NBD URI.
    Nbd(String),
}

impl Destination {
    /// What `text` means: an existing directory or a name that ends in `/` is a directory.
    pub fn of(text: &str) -> Self {
        let path = PathBuf::from(text);
        match text {
            "-" => Self::Stdout,
            text if NbdUri::is_like(text) => Self::Nbd(text.to_owned()),
            text if text.ends_with('/') || path.is_dir() => Self::Directory(path),
            _ => Self::File(path),
        }
    }

    /// Whether it takes all disks.
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }
}

fn is_in_place(overwrite: Overwrite) -> bool {
    matches!(overwrite, Overwrite::InPlace { .. })
}

/// How disks are written.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub overwrite: Overwrite,
    pub format: Format,
    /// Nothing is written at all.
    pub is_dry_run: bool,
    /// What was written is read back.
    pub is_read_back: bool,
}

/// How targets are made.
pub struct Plan<'a> {
    destination: &'a Destination,
    overwrite: Overwrite,
    format: Format,
    is_dry_run: bool,
    is_read_back: bool,
    /// Opened once: a server may serve only one client, and no second one.
    export: OnceCell<Arc<NbdFile>>,
    runner: &'a dyn Runner,
}

/// A target and what remains to be done when it is complete.
pub struct OpenTarget {
    pub target: Target,
    pub finish: Finish,
}

impl<'a> Plan<'a> {
    /// Checks the destination, and makes it if it is a directory that does not exist.
    pub fn new(
        repository: Option<&Path>,
        destination: &'a Destination,
        manner: Manner,
        runner: &'a dyn Runner,
    ) -> anyhow::Result<Self> {
        let Manner {
            overwrite,
            format,
            is_dry_run,
            is_read_back,
        } = manner;
        match destination {
            Destination::Stdout => {}
            Destination::Nbd(uri) => runner.may_write(Path::new(uri))?,
            Destination::Directory(path) | Destination::File(path) => runner.may_write(path)?,
        }
        let place = match destination {
            Destination::Stdout | Destination::Nbd(_) => None,
            Destination::Directory(directory) if is_dry_run => Some(directory.as_path()),
            Destination::Directory(directory) => {
                fs::create_dir_all(directory)
                    .with_context(|| format!("making the directory {}", directory.display()))?;
                Some(directory.as_path())
            }
            Destination::File(path) if path.exists() => Some(path.as_path()),
            Destination::File(path) => path.parent(),
        };
        let inside =
            |place: &&Path| repository.is_some_and(|repository| is_inside(place, repository));
        if let Some(place) = place.filter(inside) {
            return Err(Problem::new(format!(
                "the target {} lies inside the repository",
                place.display()
            ))
            .hint("restore to another directory")
            .into());
        }
        Ok(Self {
            destination,
            overwrite,
            format,
            is_dry_run,
            is_read_back,
            export: OnceCell::new(),
            runner,
        })
    }

    /// What may become of `path`: a file that an earlier run completed may be replaced.
    fn overwrite_of(&self, path: &Path) -> Overwrite {
        match self.overwrite {
            Overwrite::Never if self.runner.has_written(path) => Overwrite::Force,
            overwrite => overwrite,
        }
    }

    /// Whether the VM's metadata goes there, too.
    pub fn takes_metadata(&self) -> bool {
        self.destination.is_directory()
    }

    /// Whether `disk` may go where it would go.
    pub fn check(&self, disk: &DiskManifest) -> anyhow::Result<()> {
        if let Destination::Nbd(uri) = self.destination {
            return self.check_export(uri, disk);
        }
        let Some(path) = self.path_of(disk)? else {
            return Ok(());
        };
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_dry_run => {
                return Err(Problem::new(format!(
                    "the target {} does not exist: there is nothing to compare disk {} with",
                    path.display(),
                    disk.label
                ))
                .hint("leave out --dry-run to make it")
                .into());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return check_new(&path),
            Err(error) => {
                return Err(error).with_context(|| format!("looking at {}", path.display()));
            }
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(
                Problem::new(format!("the target {} is a directory", path.display()))
                    .hint("move it away, or choose another target")
                    .into(),
            );
        }
        // What has no addresses cannot be overwritten.
        if is_stream(&metadata) {
            let name = path.display().to_string();
            return match (is_in_place(self.overwrite), self.is_read_back) {
                (true, _) => Err(not_in_place(&name)),
                (_, true) => Err(not_read_back(&name)),
                _ => Ok(()),
            };
        }
        if self.overwrite_of(&path) == Overwrite::Never {
            return Err(exists(&path));
        }
        if self.overwrite == (Overwrite::InPlace { cut: false })
            && kind.is_file()
            && metadata.len() > disk.size.get()
        {
            return Err(Problem::new(format!(
                "the target {} is longer than disk {}: {} against {}",
                path.display(),
                disk.label,
                Size(metadata.len()),
                Size(disk.size.get()),
            ))
            .hint("is it the right file? To cut what is too much: --in-place --force")
            .into());
        }
        if kind.is_block_device() && self.format != Format::Raw {
            return Err(Problem::usage(format!(
                "the target {} is a device: {} is written to a file",
                path.display(),
                self.format.article()
            ))
            .hint(format!(
                "name a file, or leave out --format {}",
                self.format.name()
            ))
            .into());
        }
        if kind.is_block_device() {
            let file = OsFile::open_read(&path, false)
                .with_context(|| format!("opening the device {}", path.display()))?;
            let size = file
                .len()
                .with_context(|| format!("asking {} for its size", path.display()))?;
            if size < disk.size.get() {
                return Err(Problem::new(format!(
                    "the device {} is smaller than disk {}: {} against {} ({} bytes are missing)",
                    path.display(),
                    disk.label,
                    Size(size),
                    Size(disk.size.get()),
                    disk.size.get() - size,
                ))
                .hint(format!(
                    "use a device of at least {} bytes, or restore to a file",
                    disk.size
                ))
                .into());
            }
        }
        Ok(())
    }

    /// Opens the target of `disk`, which becomes an image file if there is a layout.
    pub fn open(
        &self,
        disk: &DiskManifest,
        layout: Option<ImageLayout>,
    ) -> anyhow::Result<OpenTarget> {
        if let Some(layout) = layout {
            return self.open_image(disk, layout);
        }
        if let Destination::Nbd(uri) = self.destination {
            return self.export_target(uri);
        }
        let Some(path) = self.path_of(disk)? else {
            return stdout_target();
        };
        match fs::metadata(&path) {
            Ok(metadata) if is_stream(&metadata) => stream_target(path),
            Ok(_) if self.is_dry_run => compared_target(path, disk),
            Ok(metadata) if metadata.file_type().is_block_device() => {
                self.device_target(path, disk)
            }
            Ok(_) if is_in_place(self.overwrite) => in_place_target(path, disk),
            _ => {
                let overwrite = self.overwrite_of(&path);
                new_file_target(path, disk, overwrite)
            }
        }
    }

    /// Whether an archive of all disks may go to the destination.
    pub fn check_archive(&self) -> anyhow::Result<()> {
        let path = match self.destination {
            Destination::Stdout => return Ok(()),
            Destination::Nbd(_) => {
                return Err(
                    Problem::usage("an NBD export takes a disk, and an XVA is a file")
                        .hint("name a file: --xva FILE")
                        .into(),
                );
            }
            Destination::File(path) => path,
            Destination::Directory(path) => {
                return Err(Problem::usage(format!(
                    "{} is a directory: an XVA is a file",
                    path.display()
                ))
                .hint("name the file, as in --xva DIR/NAME.xva")
                .into());
            }
        };
        self.runner.may_write(path)?;
        match fs::metadata(path) {
            Ok(metadata) if is_stream(&metadata) => Ok(()),
            Ok(metadata) if !metadata.file_type().is_file() => Err(Problem::new(format!(
                "the target {} is no file",
                path.display()
            ))
            .hint("choose another target")
            .into()),
            Ok(_) if self.overwrite_of(path) == Overwrite::Never => Err(Problem::new(format!(
                "the target {} exists",
                path.display()
            ))
            .hint("overwrite it: --force")
            .into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => check_new(path),
            Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
        }
    }

    /// Opens the destination for an archive.
    pub fn open_archive(&self) -> anyhow::Result<(Box<dyn Write + Send>, Finish)> {
        match self.destination {
            Destination::File(path) => self.open_in_order(Some(path.clone())),
            Destination::Stdout | Destination::Directory(_) | Destination::Nbd(_) => {
                self.open_in_order(None)
            }
        }
    }

    /// Opens what is written from its start on; `None` is standard output.
    fn open_in_order(
        &self,
        path: Option<PathBuf>,
    ) -> anyhow::Result<(Box<dyn Write + Send>, Finish)> {
        let Some(path) = path else {
            let stdout = File::from(stdout()?);
            let finish = Finish::plain("standard output".to_owned(), None);
            return Ok((Box::new(stdout), finish));
        };
        if fs::metadata(&path).is_ok_and(|metadata| is_stream(&metadata)) {
            let opening = || format!("opening {}", path.display());
            let stream = OpenOptions::new().write(true).open(&path);
            let finish = Finish::plain(path.display().to_string(), None);
            return Ok((Box::new(stream.with_context(opening)?), finish));
        }
        // A link stays, and what it leads to is replaced.
        let path = path.canonicalize().unwrap_or(path);
        let overwrite = self.overwrite_of(&path);
        let (file, finish) = new_file(path, overwrite, None)?;
        Ok((Box::new(Appended { file, len: 0 }), finish))
    }

    fn export(&self, uri: &str) -> anyhow::Result<&Arc<NbdFile>> {
        if let Some(file) = self.export.get() {
            return Ok(file);
        }
        let file = nbd_source::open_target(uri)?;
        Ok(self.export.get_or_init(|| file))
    }

    fn check_export(&self, uri: &str, disk: &DiskManifest) -> anyhow::Result<()> {
        let name = shown_source(Path::new(uri));
        if self.format != Format::Raw {
            return Err(Problem::usage(format!(
                "the target {name} is an NBD export: {} is written to a file",
                self.format.article()
            ))
            .hint(format!(
                "leave out --format {}: the server knows how to store the disk",
                self.format.name()
            ))
            .into());
        }
        let file = self.export(uri)?;
        if file.size() < disk.size.get() {
            return Err(Problem::new(format!(
                "the NBD export {name} is smaller than disk {}: {} against {} ({} bytes are missing)",
                disk.label,
                Size(file.size()),
                Size(disk.size.get()),
                disk.size.get() - file.size(),
            ))
            .hint(format!("export at least {} bytes", disk.size))
            .into());
        }
        if self.overwrite != Overwrite::Never {
            return Ok(());
        }
        let asking = || format!("asking the target {name} for its holes");
        match file.next_data(0, file.size()).with_context(asking)? {
            None => Ok(()),
            Some(data) => Err(Problem::new(format!(
                "the NBD export {name} may hold data, from byte {} on",
                data.start
            ))
            .hint("overwrite it: --force; or write only what differs: --in-place")
            .into()),
        }
    }

    fn export_target(&self, uri: &str) -> anyhow::Result<OpenTarget> {
        let file = self.export(uri)?.clone();
        file.forget_holes();
        let mut finish = Finish::plain(shown_source(Path::new(uri)), Some(file.clone()));
        finish.export = Some(file.clone());
        Ok(OpenTarget {
            target: Target::Disk {
                file: file.clone(),
                content: match self.overwrite {
                    Overwrite::InPlace { .. } => TargetContent::Similar,
                    // What the server says of holes is no reason to leave them to it.
                    Overwrite::Never | Overwrite::Force => TargetContent::Unknown,
                },
                reads: Some(file),
            },
            finish,
        })
    }

    fn open_image(&self, disk: &DiskManifest, layout: ImageLayout) -> anyhow::Result<OpenTarget> {
        let (stream, finish) = self.open_in_order(self.path_of(disk)?)?;
        let stream = BufWriter::with_capacity(STREAM_BUFFER_LEN, stream);
        Ok(OpenTarget {
            target: Target::Stream(layout.write_to(stream)),
            finish,
        })
    }

    /// Whether the metadata may be written beside `disks`.
    pub fn check_metadata(&self, name: &str, disks: &[&DiskManifest]) -> anyhow::Result<()> {
        let path = self.in_directory(name, "metadata")?;
        for disk in disks {
            if self.path_of(disk)?.as_ref() == Some(&path) {
                return Err(Problem::new(format!(
                    "the metadata {name} and disk {} would be the same file {}",
                    disk.label,
                    path.display()
                ))
                .hint("restore the disks one by one, which leaves the metadata out: --disk LABEL")
                .into());
            }
        }
        if self.overwrite_of(&path) == Overwrite::Never && path.symlink_metadata().is_ok() {
            return Err(exists(&path));
        }
        Ok(())
    }

    /// Writes the VM's metadata and returns the file's name.
    pub fn write_metadata(&self, name: &str, bytes: &[u8]) -> anyhow::Result<String> {
        let path = self.in_directory(name, "metadata")?;
        let writing = format!("writing {}", path.display());
        let overwrite = self.overwrite_of(&path);
        let (file, finish) = new_file(path, overwrite, None)?;
        file.write_all_at(bytes, 0).context(writing)?;
        let name = finish.name();
        finish.publish()?;
        Ok(name)
    }

    /// Where `disk` goes; `None` for standard output.
    fn path_of(&self, disk: &DiskManifest) -> anyhow::Result<Option<PathBuf>> {
        let path = match self.destination {
            Destination::Stdout | Destination::Nbd(_) => return Ok(None),
            Destination::File(path) => path.clone(),
            Destination::Directory(_) => {
                self.in_directory(&disk.label, "disk")?;
                self.in_directory(&format!("{}{}", disk.label, self.format.suffix()), "disk")?
            }
        };
        // Asked each time: a link may have been put there meanwhile.
        self.runner.may_write(&path)?;
        Ok(Some(path))
    }

    /// Names in snapshots come from elsewhere: none may lead out of the directory.
    fn in_directory(&self, name: &str, what: &str) -> anyhow::Result<PathBuf> {
        let Destination::Directory(directory) = self.destination else {
            unreachable!("only directories take names");
        };
        let is_name = !matches!(name, "" | "." | "..")
            && !name.contains(['/', '\0'])
            && name.len() <= FILE_NAME_LEN_MAX;
        if !is_name {
            return Err(Problem::new(format!(
                "the {what} {name:?} cannot be restored into a directory: its name is no file name"
            ))
            .hint("restore the disks one by one: --disk LABEL --to FILE")
            .into());
        }
        Ok(directory.join(name))
    }

    fn device_target(&self, path: PathBuf, disk: &DiskManifest) -> anyhow::Result<OpenTarget> {
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

fn exists(path: &Path) -> anyhow::Error {
    Problem::new(format!("the target {} exists", path.display()))
        .hint("overwrite it: --force; or write only what differs: --in-place")
        .into()
}

/// A name that leads nowhere yet may be a link: restoring would end where nobody expects it.
fn check_new(path: &Path) -> anyhow::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(Problem::new(format!(
            "the target {} is a link that leads nowhere",
            path.display()
        ))
        .hint("remove the link, or make what it leads to")
        .into());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        return Err(Problem::new(format!(
            "the target {} cannot be made: there is no directory {}",
            path.display(),
            parent.display()
        ))
        .hint(format!(
            "make it: mkdir -p {}",
            quote(&parent.to_string_lossy())
        ))
        .into());
    }
    Ok(())
}

/// `target` cannot be read and rewritten.
pub fn not_in_place(target: &str) -> anyhow::Error {
    Problem::usage(format!(
        "{target} is a stream: it cannot be written in place"
    ))
    .hint("leave out --in-place")
    .into()
}

fn not_read_back(target: &str) -> anyhow::Error {
    Problem::usage(format!("{target} cannot be read back"))
        .hint("leave out --verify")
        .into()
}

fn is_stream(metadata: &fs::Metadata) -> bool {
    let kind = metadata.file_type();
    kind.is_fifo() || kind.is_char_device()
}

/// A file that is written from its start on.
struct Appended {
    file: Arc<dyn BlockFile>,
    len: u64,
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
fn stdout() -> anyhow::Result<OwnedFd> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    stdout.context("opening standard output")
}

fn stdout_target() -> anyhow::Result<OpenTarget> {
    let stdout = stdout()?;
    Ok(OpenTarget {
        target: Target::Stream(Box::new(Plain(File::from(stdout)))),
        finish: Finish::plain("standard output".to_owned(), None),
    })
}

fn stream_target(path: PathBuf) -> anyhow::Result<OpenTarget> {
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
fn compared_target(path: PathBuf, disk: &DiskManifest) -> anyhow::Result<OpenTarget> {
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

fn in_place_target(path: PathBuf, disk: &DiskManifest) -> anyhow::Result<OpenTarget> {
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

fn new_file_target(
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
fn open_target(
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
fn is_aligned(disk: &DiskManifest, alignment: usize) -> bool {
    let alignment = alignment as u64;
    disk.size.get().is_multiple_of(alignment)
        && u64::from(disk.grid_phase).is_multiple_of(alignment)
        && (alignment == 1 || !disk.reasons.contains(&Reason::Stream))
}

/// A file that appears as `path` when it is complete.
///
/// What bears its partial name is removed, never followed: others may write to the directory.
fn new_file(
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

fn partial_of(path: &Path) -> PathBuf {
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
    name: String,
    file: Option<Arc<dyn BlockFile>>,
    rename: Option<Rename>,
    /// Keeps others off a device.
    claim: Option<File>,
    /// The file, if it is an export.
    export: Option<Arc<NbdFile>>,
}

struct Rename {
    partial: PathBuf,
    path: PathBuf,
    replaces: bool,
}

impl Finish {
    fn plain(name: String, file: Option<Arc<dyn BlockFile>>) -> Self {
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

#[cfg(test)]
mod tests {
    use undercroft_format::snapshot::{DiskFigures, ReadMode};
    use undercroft_format::units::{DiskLength, SegmentSize};

    use super::*;

    fn disk(label: &str) -> DiskManifest {
        DiskManifest {
            label: label.to_owned(),
            size: DiskLength::new(0),
            segment_size: SegmentSize::DEFAULT,
            grid_phase: 0,
            root: None,
            read_mode: ReadMode::Full,
            reasons: Vec::new(),
            source: String::new(),
            lineage: Vec::new(),
            figures: DiskFigures::default(),
        }
    }

    #[test]
    fn metadata_named_like_a_restored_disk_is_refused() {
        let destination = Destination::Directory("out".into());
        for overwrite in [Overwrite::Never, Overwrite::Force] {
            let plan = Plan {
                destination: &destination,
                overwrite,
                format: Format::Raw,
                is_dry_run: false,
                is_read_back: false,
                export: OnceCell::new(),
                runner: &crate::runner::Terminal,
            };
            let disks = [&disk("root"), &disk("data")];
            let check = |name| plan.check_metadata(name, &disks);
            assert!(check("root.xml").is_ok());
            let refused = check("data.raw").unwrap_err().to_string();
            assert!(refused.contains("the same file out/data.raw"), "{refused}");
        }
    }

    #[test]
    fn partial_names_fit_where_the_name_does() {
        for len in [1, 235, 236, FILE_NAME_LEN_MAX] {
            let path = Path::new("out").join("x".repeat(len));
            let partial = partial_of(&path);
            let name = partial.file_name().unwrap().len();
            assert!(name <= FILE_NAME_LEN_MAX, "{len}: {name}");
        }
    }
}
