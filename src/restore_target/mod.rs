//! Where restored disks go: checks before anything is written, and files that appear only when complete.

mod export;
mod files;
mod finish;

use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use undercroft_dataplane::io::{BlockFile, OsFile};
use undercroft_dataplane::nbd::NbdFile;
use undercroft_dataplane::restore::Target;
use undercroft_format::nbd::uri::NbdUri;
use undercroft_format::snapshot::DiskManifest;
pub use undercroft_format::wire::task::Overwrite;

use self::files::{
    Appended, compared_target, in_place_target, new_file_target, stdout, stdout_target,
    stream_target,
};
use self::finish::{Finish, exists, new_file};
use crate::backup_job::{RESTORED_SUFFIX, is_inside};
use crate::failure::{Problem, quote};
use crate::restore_image::ImageLayout;
use crate::runner::Runner;
use crate::units::Size;

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

#[cfg(test)]
mod tests {
    use undercroft_format::snapshot::{DiskFigures, ReadMode};
    use undercroft_format::units::{DiskLength, SegmentSize};

    use super::finish::partial_of;
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
