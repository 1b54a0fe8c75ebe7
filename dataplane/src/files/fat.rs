//! FAT of 12, 16 and 32 bits, by the crate `fatfs`.
//!
//! It takes cluster numbers as they are: some make it panic, which its caller's thread does not outlive, and chains that
//! bite their tails would be followed for ever; so only so much is read for one directory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;
use std::sync::Arc;

use fatfs::{Dir, FileSystem, FsOptions};

use super::error::{FileError, Result};
use super::name::{FileName, FilePath};
use super::tree::{
    Bounds, DirectoryEntry, FileInfo, FileKind, FileTree, Listing, Modified, ReadFile,
};
use crate::disk::ReadDisk;
use crate::partitions::DiskCursor;

/// Directories have at most 65536 entries of 32 bytes, and are found cluster by cluster, of 512 bytes at least.
const DIRECTORY_READ_MAX: u64 = 3 << 20;
const ENTRIES_MAX: usize = 1 << 16;
const ENTRY_LEN: u64 = 32;
const CLUSTER_LEN_MIN: u64 = 512;

type Entry<'a> = fatfs::DirEntry<'a, Metered>;

/// A FAT file system.
pub struct FatTree {
    fs: FileSystem<Metered>,
    meter: Meter,
    size: u64,
    /// Where directories begin that were listed, and which they are: none is in two places.
    seen: RefCell<HashMap<u64, FilePath>>,
}

impl FatTree {
    /// Reads the boot sector.
    pub fn open(disk: Arc<dyn ReadDisk>) -> Result<Self> {
        let size = disk.size().get();
        check_boot_sector(&*disk)?;
        let meter = Meter::default();
        meter.allow(DIRECTORY_READ_MAX);
        let metered = Metered {
            cursor: DiskCursor::new(disk),
            meter: meter.clone(),
        };
        let fs =
            FileSystem::new(metered, FsOptions::new()).map_err(|error| meter.explain(error))?;
        Ok(Self {
            fs,
            meter,
            size,
            seen: RefCell::default(),
        })
    }

    /// The directory at `path`, and an error from which it is not one.
    fn directory(&self, path: &FilePath) -> Result<Dir<'_, Metered>> {
        let mut directory = self.fs.root_dir();
        for name in path.names() {
            let entry = self.entry(&directory, &name)?;
            if !entry.is_dir() {
                return Err(FileError::NotADirectory);
            }
            directory = entry.to_dir();
        }
        Ok(directory)
    }

    /// Names count as they are written, or in any case of letters, as FAT has it.
    fn entry<'a>(&self, directory: &Dir<'a, Metered>, name: &FileName) -> Result<Entry<'a>> {
        self.meter.allow(DIRECTORY_READ_MAX);
        let wanted = String::from_utf8_lossy(name.as_bytes());
        let upper = wanted.to_uppercase();
        for entry in directory.iter().take(ENTRIES_MAX) {
            let entry = entry.map_err(|error| self.meter.explain(error))?;
            let found = entry.file_name();
            if found == wanted || found.to_uppercase() == upper {
                return Ok(entry);
            }
        }
        Err(FileError::NotFound)
    }

    fn find_entry(&self, path: &FilePath) -> Result<Option<Entry<'_>>> {
        let Some((name, above)) = path.split() else {
            return Ok(None);
        };
        self.entry(&self.directory(&above)?, &name).map(Some)
    }
}

impl FileTree for FatTree {
    fn info(&self, path: &FilePath) -> Result<FileInfo> {
        Ok(match self.find_entry(path)? {
            Some(entry) => info_of(&entry),
            None => FileInfo {
                kind: FileKind::Directory,
                len: 0,
                mode: None,
                owner: None,
                modified: None,
            },
        })
    }

    fn list(&self, path: &FilePath) -> Result<Listing> {
        let directory = self.directory(path)?;
        let mut listing = Listing::default();
        self.meter.allow(DIRECTORY_READ_MAX);
        for entry in directory.iter().take(ENTRIES_MAX) {
            let entry = match entry {
                Ok(entry) => entry,
                // It would be the same error for ever.
                Err(error) => {
                    listing.faults.push(self.meter.explain(error));
                    break;
                }
            };
            let name = entry.file_name();
            if name == "." || name == ".." {
                continue;
            }
            match FileName::new(name) {
                Ok(name) => listing.entries.push(DirectoryEntry {
                    name,
                    info: Ok(info_of(&entry)),
                }),
                Err(error) => listing.faults.push(error),
            }
        }
        if let Some(start) = self.meter.first() {
            let mut seen = self.seen.borrow_mut();
            if seen.entry(start).or_insert_with(|| path.clone()) != path {
                return Err(FileError::Endless);
            }
        }
        Ok(listing)
    }

    fn open<'a>(&'a self, path: &FilePath) -> Result<Box<dyn ReadFile + 'a>> {
        let entry = self.find_entry(path)?.ok_or(FileError::NotAFile)?;
        if !entry.is_file() {
            return Err(FileError::NotAFile);
        }
        Ok(Box::new(FatFile {
            left: entry.len(),
            file: entry.to_file(),
            meter: self.meter.clone(),
        }))
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            directories: self.size / CLUSTER_LEN_MIN,
            entries: self.size / ENTRY_LEN,
        }
    }
}

struct FatFile<'a> {
    file: fatfs::File<'a, Metered>,
    left: u64,
    meter: Meter,
}

impl ReadFile for FatFile<'_> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        // The table is read once per cluster, of 512 bytes at least, 32 KiB at a time at worst.
        self.meter.allow(u64::MAX);
        let mut filled = 0;
        while filled < out.len() {
            match self
                .file
                .read(&mut out[filled..])
                .map_err(|error| self.meter.explain(error))?
            {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 && self.left > 0 {
            return Err(FileError::Damaged(format!(
                "the last {} bytes of the file are not there",
                self.left
            )));
        }
        self.left = self.left.saturating_sub(filled as u64);
        Ok(filled)
    }
}

fn info_of(entry: &Entry<'_>) -> FileInfo {
    FileInfo {
        kind: if entry.is_dir() {
            FileKind::Directory
        } else {
            FileKind::File
        },
        len: entry.len(),
        mode: None,
        owner: None,
        modified: modified(entry),
    }
}

/// `None` for dates that do not exist.
fn modified(entry: &Entry<'_>) -> Option<Modified> {
    let fatfs::DateTime { date, time } = entry.modified();
    let small = |number: u16| i8::try_from(number).ok();
    let year = i16::try_from(date.year).ok()?;
    let date = jiff::civil::Date::new(year, small(date.month)?, small(date.day)?).ok()?;
    let time =
        jiff::civil::Time::new(small(time.hour)?, small(time.min)?, small(time.sec)?, 0).ok()?;
    let moment = date
        .to_datetime(time)
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()?;
    Some(Modified {
        seconds: moment.timestamp().as_second(),
        nanoseconds: 0,
    })
}

/// What the crate calculates with before it checks it.
fn check_boot_sector(disk: &dyn ReadDisk) -> Result<()> {
    let mut boot = [0; 512];
    disk.read_at(0, &mut boot)?;
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
    let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
    let or = |short: u64, long: u64| if short == 0 { long } else { short };
    let sector_len = u16_at(11);
    let sectors = or(u16_at(19), u32_at(32));
    let table_sectors = u64::from(boot[16]) * or(u16_at(22), u32_at(36));
    let root_sectors = (u16_at(17) * 32).div_ceil(sector_len.max(1));
    let data_at = u16_at(14) + table_sectors + root_sectors;
    let table_len = or(u16_at(22), u32_at(36)) * sector_len;
    let is_sound = [512, 1024, 2048, 4096].contains(&sector_len)
        && boot[13].is_power_of_two()
        && data_at < sectors
        && sectors * sector_len <= disk.size().get()
        && table_len >= 4
        && table_len * 8 <= u64::from(u32::MAX);
    if is_sound {
        return Ok(());
    }
    Err(FileError::Damaged(
        "its boot sector makes no sense".to_owned(),
    ))
}

/// How much may still be read, and why the last read failed.
#[derive(Clone, Default)]
struct Meter(Rc<RefCell<Metering>>);

#[derive(Default)]
struct Metering {
    left: u64,
    /// Where the first read since then began.
    first: Option<u64>,
    cause: Option<io::Error>,
}

impl Meter {
    fn allow(&self, bytes: u64) {
        let mut meter = self.0.borrow_mut();
        meter.left = bytes;
        meter.first = None;
    }

    fn first(&self) -> Option<u64> {
        self.0.borrow().first
    }

    fn explain(&self, error: io::Error) -> FileError {
        match self.0.borrow_mut().cause.take() {
            Some(cause) => cause.into(),
            None => FileError::Damaged(error.to_string()),
        }
    }
}

/// A disk of which only so much is read, and nothing written.
struct Metered {
    cursor: DiskCursor,
    meter: Meter,
}

impl Read for Metered {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut meter = self.meter.0.borrow_mut();
        let Some(left) = meter.left.checked_sub(out.len() as u64) else {
            return Err(io::Error::other("a directory has no end"));
        };
        meter.left = left;
        if meter.first.is_none() {
            meter.first = Some(self.cursor.stream_position()?);
        }
        self.cursor.read(out).map_err(|error| {
            let kind = error.kind();
            meter.cause = Some(error);
            kind.into()
        })
    }
}

impl Seek for Metered {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.cursor.seek(to)
    }
}

impl Write for Metered {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
