//! ext2, ext3 and ext4, by the crate `ext4-view`, which replays the journal in memory.
//!
//! It allocates and reads what some fields ask for; those are checked here first.

use std::sync::Arc;

use ext4_view::{DirEntry, Ext4, Ext4Error, File, FileType, Metadata, Path};

use super::error::{FileError, Result};
use super::lenient::{LenientReader, Marks};
use super::name::{FileName, FilePath};
use super::tree::{
    Bounds, DirectoryEntry, FileInfo, FileKind, FileTree, Listing, Modified, Owner, ReadFile,
};
use crate::disk::ReadDisk;

const SUPERBLOCK_AT: u64 = 1024;
/// Linux takes no longer links, either.
const LINK_LEN_MAX: u64 = 4096;
/// Bytes that an entry of a directory takes at least.
const ENTRY_LEN_MIN: u64 = 12;
/// Descriptors of groups are held in memory: 512 TiB in groups as mke2fs makes them.
const GROUPS_MAX: u64 = 1 << 22;

/// An ext file system.
pub struct ExtTree {
    fs: Ext4,
    marks: Marks,
    inodes: u64,
    size: u64,
}

impl ExtTree {
    /// Reads the superblock, the groups and the journal.
    pub fn open(disk: Arc<dyn ReadDisk>) -> Result<Self> {
        let size = disk.size().get();
        let geometry = Geometry::read(&*disk)?;
        let (reader, marks) = LenientReader::new(disk, geometry.block_len as usize)?;
        let fs = Ext4::load(Box::new(reader)).map_err(|error| explain(error, &marks))?;
        Ok(Self {
            fs,
            marks,
            inodes: geometry.inodes,
            size,
        })
    }

    fn info_of(&self, metadata: &Metadata, path: &FilePath) -> Result<FileInfo> {
        let kind = match metadata.file_type() {
            FileType::Regular => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => {
                if metadata.len() > LINK_LEN_MAX {
                    return Err(FileError::Damaged(format!(
                        "a link of {} bytes",
                        metadata.len()
                    )));
                }
                let target = self
                    .fs
                    .read_link(as_path(path)?)
                    .map_err(|error| self.explain(error))?;
                let target: &[u8] = target.as_ref();
                if let Some(cause) = self.marks.is_mark(target) {
                    return Err(FileError::Unreadable(cause));
                }
                FileKind::Link(target.to_vec())
            }
            FileType::BlockDevice => FileKind::Special('b'),
            FileType::CharacterDevice => FileKind::Special('c'),
            FileType::Fifo => FileKind::Special('p'),
            FileType::Socket => FileKind::Special('s'),
        };
        let modified = metadata.modified();
        Ok(FileInfo {
            kind,
            len: metadata.len(),
            mode: Some(metadata.mode()),
            owner: Some(Owner {
                user: metadata.uid(),
                group: metadata.gid(),
            }),
            modified: Some(Modified {
                seconds: modified.seconds(),
                nanoseconds: modified.nanoseconds(),
            }),
        })
    }

    fn entry(&self, entry: &DirEntry, directory: &FilePath) -> Result<DirectoryEntry> {
        let name = FileName::new(entry.file_name().as_ref())?;
        let path = directory.join(&name);
        let metadata = entry.metadata().map_err(|error| self.explain(error));
        let info = metadata.and_then(|metadata| self.info_of(&metadata, &path));
        Ok(DirectoryEntry { name, info })
    }

    /// A directory has one parent. One that appears in several leads round in circles, and its own word for where it is
    /// then differs from where it was found, unless both look alike to the second and to the owner.
    fn check_parent(&self, path: &FilePath) -> Result<()> {
        let Some((_, above)) = path.split() else {
            return Ok(());
        };
        let own_word = [path.as_bytes(), b"/.."].concat();
        let own_word = Path::try_from(&own_word[..]).map_err(|_| FileError::BadName)?;
        let explain = |error| self.explain(error);
        let parent = self.fs.symlink_metadata(own_word).map_err(explain)?;
        let found = self
            .fs
            .symlink_metadata(as_path(&above)?)
            .map_err(explain)?;
        if parent == found {
            Ok(())
        } else {
            Err(FileError::Endless)
        }
    }

    fn explain(&self, error: Ext4Error) -> FileError {
        explain(error, &self.marks)
    }
}

impl FileTree for ExtTree {
    fn info(&self, path: &FilePath) -> Result<FileInfo> {
        let metadata = self.fs.symlink_metadata(as_path(path)?);
        self.info_of(&metadata.map_err(|error| self.explain(error))?, path)
    }

    fn list(&self, path: &FilePath) -> Result<Listing> {
        self.check_parent(path)?;
        let mut listing = Listing::default();
        let found = self
            .fs
            .read_dir(as_path(path)?)
            .map_err(|error| self.explain(error))?;
        let mut left = self.size / ENTRY_LEN_MIN;
        for entry in found {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    listing.faults.push(self.explain(error));
                    continue;
                }
            };
            left = left.saturating_sub(1);
            if left == 0 {
                listing.faults.push(FileError::Endless);
                break;
            }
            if matches!(entry.file_name().as_ref(), b"." | b"..") {
                continue;
            }
            match self.entry(&entry, path) {
                Ok(entry) => listing.entries.push(entry),
                Err(error) => listing.faults.push(error),
            }
        }
        Ok(listing)
    }

    fn open<'a>(&'a self, path: &FilePath) -> Result<Box<dyn ReadFile + 'a>> {
        let file = self
            .fs
            .open(as_path(path)?)
            .map_err(|error| self.explain(error))?;
        Ok(Box::new(ExtFile { tree: self, file }))
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            directories: self.inodes,
            entries: self.size / ENTRY_LEN_MIN,
        }
    }
}

struct ExtFile<'a> {
    tree: &'a ExtTree,
    file: File,
}

impl ReadFile for ExtFile<'_> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        // Each read ends with the block: since the length of `out` is a multiple of any block's, each begins with one.
        while filled < out.len() {
            let read = self.file.read_bytes(&mut out[filled..]);
            let read = read.map_err(|error| self.tree.explain(error))?;
            if read == 0 {
                break;
            }
            if let Some(cause) = self.tree.marks.is_mark(&out[filled..filled + read]) {
                return Err(FileError::Unreadable(cause));
            }
            filled += read;
        }
        Ok(filled)
    }
}

/// What is believed of a superblock.
struct Geometry {
    block_len: u64,
    inodes: u64,
}

impl Geometry {
    fn read(disk: &dyn ReadDisk) -> Result<Self> {
        let mut bytes = [0; 1024];
        disk.read_at(SUPERBLOCK_AT, &mut bytes)?;
        let u32_at = |at: usize| {
            u64::from(u32::from_le_bytes([
                bytes[at],
                bytes[at + 1],
                bytes[at + 2],
                bytes[at + 3],
            ]))
        };
        let damaged = |what: String| Err(FileError::Damaged(what));
        let log_block_len = u32_at(0x18);
        if log_block_len > 6 {
            return damaged(format!("blocks of 2^{} KiB", log_block_len));
        }
        let block_len = 1024 << log_block_len;
        let is_64bit = u32_at(0x60) & 0x80 != 0;
        let blocks = u32_at(4) | if is_64bit { u32_at(0x150) << 32 } else { 0 };
        if blocks
            .checked_mul(block_len)
            .is_none_or(|len| len > disk.size().get())
        {
            let size = disk.size();
            return damaged(format!(
                "its {blocks} blocks of {block_len} bytes do not fit the {size} bytes there are"
            ));
        }
        let blocks_per_group = u32_at(0x20);
        if blocks_per_group == 0 || blocks / blocks_per_group > GROUPS_MAX {
            return damaged(format!("groups of {blocks_per_group} blocks"));
        }
        Ok(Self {
            block_len,
            inodes: u32_at(0),
        })
    }
}

fn as_path(path: &FilePath) -> Result<Path<'_>> {
    Path::try_from(path.as_bytes()).map_err(|_| FileError::BadName)
}

fn explain(error: Ext4Error, marks: &Marks) -> FileError {
    match error {
        Ext4Error::NotFound => FileError::NotFound,
        Ext4Error::NotADirectory => FileError::NotADirectory,
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => FileError::NotAFile,
        Ext4Error::TooManySymlinks => FileError::TooManyLinks,
        Ext4Error::PathTooLong => FileError::TooLong,
        Ext4Error::Encrypted => FileError::Unsupported("it is encrypted".to_owned()),
        Ext4Error::Incompatible(what) => FileError::Unsupported(what.to_string()),
        Ext4Error::Io(cause) => match cause.downcast::<std::io::Error>() {
            Ok(cause) => FileError::Unreadable(Arc::new(*cause)),
            Err(cause) => FileError::Damaged(cause.to_string()),
        },
        // What makes no sense may be the mark of what cannot be read.
        error => match marks.cause() {
            Some(cause) => FileError::Unreadable(cause),
            None => FileError::Damaged(error.to_string()),
        },
    }
}
