//! The directory of snapshots of a repository behind a server, to be read.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::id::SnapshotId;
use undercroft_format::wire::frame::FrameType;
use undercroft_format::wire::message::{ListSnapshots, ReadSnapshot, SnapshotFile, StatSnapshot};
use undercroft_format::wire::snapshots::SnapshotState;

use super::link::Link;
use crate::io::{BlockFile, Entry, Storage};
use crate::net::conversation::{StreamError, expect};
use crate::repository::error::{RepositoryError, Result};
use crate::repository::layout;

/// The files, as [`Snapshots`](crate::repository::snapshots::Snapshots) reads them. What it never does is
/// refused.
pub struct SnapshotFiles {
    link: Arc<Link>,
    /// What came with the last listing, each to be read once: snapshots never change, but may go.
    listed: Mutex<HashMap<String, Vec<u8>>>,
}

impl std::fmt::Debug for SnapshotFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SnapshotFiles")
    }
}

impl SnapshotFiles {
    /// The files behind `link`.
    pub fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            listed: Mutex::default(),
        }
    }

    fn fetch_list(&self) -> Result<Vec<SnapshotFile>> {
        let mut stream = self.link.converse()?;
        stream.say(&ListSnapshots)?;
        stream.finish();
        let mut files = Vec::new();
        loop {
            let frame = stream.read()?.ok_or(StreamError::NoAnswer)?;
            match frame.0 {
                FrameType::Done => return Ok(files),
                _ => files.push(expect::<SnapshotFile>(&frame)?),
            }
        }
    }

    fn state(&self, snapshot: SnapshotId) -> io::Result<SnapshotState> {
        self.link.ask(&StatSnapshot { snapshot }).map_err(to_io)
    }
}

fn to_io(error: RepositoryError) -> io::Error {
    match error {
        RepositoryError::NoSuchSnapshot { .. } => io::ErrorKind::NotFound.into(),
        error => io::Error::other(error),
    }
}

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

fn file_name(path: &str) -> Option<&str> {
    path.strip_prefix(layout::SNAPSHOTS)?.strip_prefix('/')
}

impl Storage for SnapshotFiles {
    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        if dir != layout::SNAPSHOTS {
            return unsupported();
        }
        let files = self.fetch_list().map_err(to_io)?;
        let mut listed = self.listed.lock();
        listed.clear();
        let mut entries = Vec::with_capacity(files.len());
        for file in files {
            entries.push(Entry {
                len: file.content.len() as u64,
                name: file.name.clone(),
                is_dir: false,
            });
            if !file.content.is_empty() {
                listed.insert(file.name, file.content);
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let Some(name) = file_name(path) else {
            return unsupported();
        };
        if let Some(content) = self.listed.lock().remove(name) {
            return Ok(content);
        }
        let locked = name.strip_suffix(layout::LOCKED_SUFFIX);
        if let Some(id) = locked.and_then(|id| id.parse().ok()) {
            let lock = self.state(id)?.lock;
            return lock.ok_or_else(|| io::ErrorKind::NotFound.into());
        }
        let Ok(snapshot) = name.parse() else {
            return unsupported();
        };
        let file: SnapshotFile = self.link.ask(&ReadSnapshot { snapshot }).map_err(to_io)?;
        if file.content.len() as u64 > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(file.content)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let Some(name) = file_name(path) else {
            return unsupported();
        };
        let of = |suffix: &str| name.strip_suffix(suffix).and_then(|id| id.parse().ok());
        if let Some(id) = of(layout::PROTECTED_SUFFIX) {
            Ok(self.state(id)?.is_protected)
        } else if let Some(id) = of(layout::INCOMPLETE_SUFFIX) {
            Ok(self.state(id)?.is_incomplete)
        } else if let Ok(id) = name.parse() {
            Ok(self.state(id)?.is_there)
        } else {
            unsupported()
        }
    }

    fn create(&self, _: &str, _: bool) -> io::Result<Arc<dyn BlockFile>> {
        unsupported()
    }

    fn open(&self, _: &str, _: bool) -> io::Result<Arc<dyn BlockFile>> {
        unsupported()
    }

    fn open_write(&self, _: &str, _: bool) -> io::Result<Arc<dyn BlockFile>> {
        unsupported()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        unsupported()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        unsupported()
    }

    fn create_dir(&self, _: &str) -> io::Result<()> {
        unsupported()
    }

    fn remove_dir(&self, _: &str) -> io::Result<()> {
        unsupported()
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        unsupported()
    }

    fn free_space(&self) -> Option<u64> {
        None
    }
}
