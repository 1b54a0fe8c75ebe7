//! Directories that are written into, by descriptor and by checked names: nothing that is read leads anywhere else.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, fchmod, fchown, ftruncate,
    futimens, mkdirat, openat, renameat, renameat_with, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::name::FileName;
use super::tree::{FileInfo, Modified};

/// Zeros of this length, at a multiple of it, are not written.
const HOLE_LEN: usize = 4096;
/// Of files and directories that are being written, nobody else's.
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);
const PRIVATE_DIRECTORY: Mode = PRIVATE_FILE.union(Mode::XUSR);

/// What of a file's permissions is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// The owner, which only root can give.
    pub owner: bool,
    /// The bits by which a program runs as its owner or group.
    pub set_id: bool,
}

/// What a file is called within a directory.
pub fn os_name(name: &FileName) -> &OsStr {
    OsStr::from_bytes(name.as_bytes())
}

/// A directory that is written into.
pub struct TargetDirectory(OwnedFd);

impl TargetDirectory {
    /// The directory that the user names; links count.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    /// Makes the directory `name`; one that is there serves, if `may_exist`.
    pub fn directory(&self, name: &OsStr, may_exist: bool) -> io::Result<Self> {
        match mkdirat(&self.0, name, PRIVATE_DIRECTORY) {
            Err(Errno::EXIST) if may_exist => {}
            made => made?,
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Self(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// Begins a file that will be called `name`.
    pub fn file<'a>(&'a self, name: &'a OsStr) -> io::Result<TargetFile<'a>> {
        let partial = partial_name()?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(openat(&self.0, partial.as_str(), flags, PRIVATE_FILE)?);
        Ok(TargetFile {
            directory: self,
            name,
            partial,
            file,
            len: 0,
            is_done: false,
        })
    }

    /// Makes a link that says `to`; one that is there gives way if `replace`.
    pub fn link(
        &self,
        name: &OsStr,
        to: &[u8],
        info: &FileInfo,
        keep: Keep,
        replace: bool,
    ) -> io::Result<()> {
        let partial = partial_name()?;
        symlinkat(OsStr::from_bytes(to), &self.0, partial.as_str())?;
        let done = self
            .dress_link(&partial, info, keep)
            .and_then(|()| self.rename(&partial, name, replace));
        if done.is_err() {
            let _ = unlinkat(&self.0, partial.as_str(), AtFlags::empty());
        }
        done
    }

    fn dress_link(&self, name: &str, info: &FileInfo, keep: Keep) -> io::Result<()> {
        if let (Some((user, group)), true) = (ids(info), keep.owner) {
            rustix::fs::chownat(
                &self.0,
                name,
                Some(user),
                Some(group),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        if let Some(times) = info.modified.and_then(times) {
            utimensat(&self.0, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Gives the directory its owner, mode and time, when all that is in it is written.
    pub fn finish(&self, info: &FileInfo, keep: Keep) -> io::Result<()> {
        dress(&self.0, info, keep)
    }

    fn rename(&self, from: &str, to: &OsStr, replace: bool) -> io::Result<()> {
        if replace {
            return Ok(renameat(&self.0, from, &self.0, to)?);
        }
        match renameat_with(&self.0, from, &self.0, to, RenameFlags::NOREPLACE) {
            // File systems that cannot: nobody else is expected to write here meanwhile.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match rustix::fs::statat(&self.0, to, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => Ok(renameat(&self.0, from, &self.0, to)?),
                    Ok(_) => Err(Errno::EXIST.into()),
                    Err(error) => Err(error.into()),
                }
            }
            renamed => Ok(renamed?),
        }
    }
}

/// A file that gets its name when it is complete; dropped before, it is gone.
pub struct TargetFile<'a> {
    directory: &'a TargetDirectory,
    name: &'a OsStr,
    partial: String,
    file: File,
    len: u64,
    is_done: bool,
}

impl TargetFile<'_> {
    /// Writes on; zeros become holes. `bytes` begin at a multiple of 4 KiB of the file.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut at = self.len;
        let is_zero = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
        for run in bytes
            .chunks(HOLE_LEN)
            .collect::<Vec<_>>()
            .chunk_by(|a, b| is_zero(a) == is_zero(b))
        {
            let len: usize = run.iter().map(|block| block.len()).sum();
            let from = (at - self.len) as usize;
            if !is_zero(&run[0]) {
                self.file.write_all_at(&bytes[from..from + len], at)?;
            }
            at += len as u64;
        }
        self.len = at;
        Ok(())
    }

    /// Gives the file its length, owner, mode, time, and its name.
    pub fn finish(mut self, info: &FileInfo, keep: Keep, replace: bool) -> io::Result<()> {
        self.file.flush()?;
        ftruncate(&self.file, self.len)?;
        dress(&self.file, info, keep)?;
        self.directory.rename(&self.partial, self.name, replace)?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for TargetFile<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            // What is left then is named so that nobody takes it for more.
            let _ = unlinkat(&self.directory.0, self.partial.as_str(), AtFlags::empty());
        }
    }
}

fn partial_name() -> io::Result<String> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(format!(
        ".undercroft-{:016x}.partial",
        u64::from_le_bytes(random)
    ))
}

/// Owner, mode, time: in this order, since a change of owner drops bits of the mode.
fn dress(target: impl AsFd, info: &FileInfo, keep: Keep) -> io::Result<()> {
    let ids = ids(info).filter(|_| keep.owner);
    if let Some((user, group)) = ids {
        fchown(&target, Some(user), Some(group))?;
    }
    let set_id = Mode::SUID | Mode::SGID;
    let mode = match info.mode {
        Some(mode) => Mode::from_raw_mode(u32::from(mode & 0o7777)),
        None if info.is_directory() => Mode::from_raw_mode(0o755),
        None => Mode::from_raw_mode(0o644),
    };
    let keeps_set_id = keep.set_id && ids.is_some() || info.is_directory();
    fchmod(&target, if keeps_set_id { mode } else { mode - set_id })?;
    if let Some(times) = info.modified.and_then(times) {
        futimens(&target, &times)?;
    }
    Ok(())
}

/// `None` for those that mean "do not change".
fn ids(info: &FileInfo) -> Option<(Uid, Gid)> {
    let owner = info.owner?;
    let is_valid = owner.user != u32::MAX && owner.group != u32::MAX;
    is_valid.then(|| (Uid::from_raw(owner.user), Gid::from_raw(owner.group)))
}

fn times(modified: Modified) -> Option<Timestamps> {
    let time = Timespec {
        tv_sec: modified.seconds,
        tv_nsec: modified.nanoseconds.into(),
    };
    (modified.nanoseconds < 1_000_000_000).then_some(Timestamps {
        last_access: time,
        last_modification: time,
    })
}
