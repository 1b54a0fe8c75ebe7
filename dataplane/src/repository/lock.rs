//! One process owns a repository: the lock file, with a fencing epoch.
//!
//! The lock is the kernel's (`flock`): it goes with its holder, however that ends. The file's content
//! only tells others who holds it, and counts the owners: the epoch.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use undercroft_format::codec::checksum;

use super::error::{RepositoryError, Result};
use super::layout;
use crate::io::PRIVATE_FILE;

/// Ownership of a repository, until dropped.
#[derive(Debug)]
pub struct OwnerLock {
    file: File,
    epoch: u64,
}

const CONTENT_LEN_MAX: u64 = 4096;

impl OwnerLock {
    /// Takes the lock of the repository at `root` for `owner`, a line that others will be shown.
    ///
    /// # Errors
    /// [`RepositoryError::Locked`] naming the owner, if there is one.
    pub fn acquire(root: &Path, owner: &str) -> Result<Self> {
        let io = |action| RepositoryError::io(action, layout::LOCK);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE_FILE)
            .open(root.join(layout::LOCK))
            .map_err(io("opening"))?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        let content = read_content(&mut file);
        if let Err(errno) = locked {
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(io("locking")(errno.into()));
            }
            let owner = match content {
                Some((_, owner)) => owner,
                None => "another process".into(),
            };
            return Err(RepositoryError::Locked { owner });
        }
        let mut lock = Self {
            file,
            epoch: content.map_or(0, |(epoch, _)| epoch) + 1,
        };
        lock.write(owner).map_err(io("writing"))?;
        Ok(lock)
    }

    /// How many owners the repository has had, this one included.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    fn write(&mut self, owner: &str) -> std::io::Result<()> {
        let owner: String = owner
            .chars()
            .filter(|c| !c.is_control())
            .take(1000)
            .collect();
        let content = content(self.epoch, &owner);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.set_len(0)?;
        self.file.write_all(content.as_bytes())
    }
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        // The kernel's lock goes with the file; this only keeps the text truthful.
        let _ = self.write("nobody");
    }
}

fn read_content(file: &mut File) -> Option<(u64, String)> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(CONTENT_LEN_MAX).read_to_string(&mut text).ok()?;
    parse(&text)
}

fn parse(text: &str) -> Option<(u64, String)> {
    let mut lines = text.lines();
    let epoch = lines.next()?.strip_prefix("epoch ")?.parse().ok()?;
    let owner = lines.next()?.to_owned();
    // There is one way to write it.
    (text == content(epoch, &owner)).then_some((epoch, owner))
}

fn content(epoch: u64, owner: &str) -> String {
    let body = format!("epoch {epoch}\n{owner}\n");
    format!("{body}{:016x}\n", checksum(body.as_bytes()))
}

/// True if the lock file's content is what an owner wrote: for a scrub. An empty file is one that was
/// never written; a torn one is what a crash leaves.
pub fn content_is_intact(content: &[u8]) -> bool {
    content.is_empty() || std::str::from_utf8(content).is_ok_and(|text| parse(text).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = OwnerLock::acquire(dir.path(), "backup, process 7").unwrap();
        match OwnerLock::acquire(dir.path(), "gc") {
            Err(RepositoryError::Locked { owner }) => assert_eq!(owner, "backup, process 7"),
            other => panic!("{other:?}"),
        }
        assert_eq!(first.epoch(), 1);
        drop(first);
        assert_eq!(OwnerLock::acquire(dir.path(), "gc").unwrap().epoch(), 2);
    }

    #[test]
    fn any_flipped_bit_of_the_content_is_found() {
        let good = content(70, "backup, process 7");
        assert!(content_is_intact(good.as_bytes()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone().into_bytes();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!content_is_intact(&bad), "bit {bit}");
        }
    }
}
