//! The file system, as the kernel asks for it.
//!
//! Content never changes, so that the kernel may keep it for good; names come and go, so that it may keep those for as
//! long as a listing. Each thread of the session answers one request at a time.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};

use super::files::{self, Open};
use super::nodes::{Node, Shared};
use super::shown::LISTED_FOR;
use super::state::{Handle, State, seek};
use crate::failure::one_line;

/// How long the kernel keeps what never changes.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// Requests of the kernel's own read-ahead at once.
const BACKGROUND_MAX: u16 = 64;
const FILE_MODE: u16 = 0o400;
const DIRECTORY_MODE: u16 = 0o500;
const BLOCK_LEN: u32 = 4096;
const NAME_LEN_MAX: u32 = 255;

thread_local! {
    /// What is being read: memory that is used again costs nothing.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is mounted.
pub struct SnapshotFs {
    state: Arc<State>,
    uid: u32,
    gid: u32,
}

impl SnapshotFs {
    /// Shows `state` to the user who runs this.
    pub fn new(state: Arc<State>) -> Self {
        Self {
            state,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    fn node(&self, number: INodeNo) -> Result<Node, Errno> {
        self.state.nodes.node(number.0).ok_or(Errno::ENOENT)
    }

    fn attributes(&self, number: u64, node: &Node) -> Option<FileAttr> {
        let (kind, size, data_len, made) = match node {
            Node::Root => {
                let latest = self.state.files.look(|tree| {
                    let latest = tree.vms().values().filter_map(|vm| vm.latest());
                    latest.map(|(made, _)| *made).max()
                });
                (FileType::Directory, 0, 0, latest.unwrap_or(0))
            }
            Node::Vm(vm) | Node::Latest(vm) => {
                let latest = self.state.files.look(|tree| {
                    let vm = tree.vms().get(vm)?;
                    vm.latest().cloned()
                });
                let (made, name) = latest?;
                match node {
                    Node::Vm(_) => (FileType::Directory, 0, 0, made),
                    _ => (FileType::Symlink, name.len() as u64, 0, made),
                }
            }
            Node::Snapshot(Shared(stored)) => {
                (FileType::Directory, 0, 0, stored.snapshot.created_ms)
            }
            Node::File(Shared(stored), part) => {
                let size = files::size(stored, *part);
                let data_len = files::data_len(stored, *part);
                (
                    FileType::RegularFile,
                    size,
                    data_len,
                    stored.snapshot.created_ms,
                )
            }
        };
        let time = time_of(made);
        Some(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: data_len.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: match kind {
                FileType::Directory => DIRECTORY_MODE,
                FileType::Symlink => 0o777,
                _ => FILE_MODE,
            },
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: BLOCK_LEN,
            flags: 0,
        })
    }

    fn open_file(&self, number: INodeNo) -> Result<FileHandle, Errno> {
        let Node::File(Shared(stored), part) = self.node(number)? else {
            return Err(Errno::EISDIR);
        };
        match self.state.files.open(&stored, part) {
            Ok(open) => Ok(self.state.begin(Handle::File(Arc::new(open)))),
            Err(error) => {
                tracing::warn!(snapshot = %stored.id, error = one_line(&*error), "a file cannot be opened");
                Err(Errno::EIO)
            }
        }
    }
}

/// When a snapshot was made.
fn time_of(made_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(made_ms.min(i64::MAX as u64 / 2))
}

fn kind(node: &Node) -> FileType {
    match node {
        Node::Root | Node::Vm(_) | Node::Snapshot(_) => FileType::Directory,
        Node::Latest(_) => FileType::Symlink,
        Node::File(..) => FileType::RegularFile,
    }
}

/// How long the kernel may keep that `node` is where it is.
fn kept_for(node: &Node) -> Duration {
    match node {
        Node::File(..) => FOREVER,
        _ => LISTED_FOR,
    }
}

impl Filesystem for SnapshotFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // An older kernel does without.
        for wish in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            let _ = config.add_capabilities(wish);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let node = self.node(parent).and_then(|parent| {
            let name = name.to_str().ok_or(Errno::ENOENT)?;
            self.state.files.child(&parent, name).ok_or(Errno::ENOENT)
        });
        let found = node.and_then(|node| {
            let number = self.state.nodes.number(&node);
            let attributes = self.attributes(number, &node).ok_or(Errno::ENOENT)?;
            Ok((node, attributes))
        });
        match found {
            Ok((node, attributes)) => reply.entry(&kept_for(&node), &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.node(number).and_then(|node| {
            let attributes = self.attributes(number.0, &node).ok_or(Errno::ENOENT)?;
            Ok((node, attributes))
        });
        match found {
            Ok((node, attributes)) => reply.attr(&kept_for(&node), &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let target = match self.node(number) {
            Ok(Node::Latest(vm)) => self.state.files.look(|tree| {
                let vm = tree.vms().get(&vm)?;
                vm.latest().map(|(_, name)| name.clone())
            }),
            _ => None,
        };
        match target {
            Some(target) => reply.data(target.as_bytes()),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_file(number) {
            Ok(handle) => reply.opened(
                handle,
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(Handle::File(file)) = self.state.handle(handle) else {
            return reply.error(Errno::EBADF);
        };
        match &*file {
            Open::Bytes(bytes) => {
                let start = usize::try_from(offset).map_or(bytes.len(), |at| at.min(bytes.len()));
                let end = start.saturating_add(size as usize).min(bytes.len());
                reply.data(&bytes[start..end]);
            }
            Open::Disk(disk, _) => BUFFER.with_borrow_mut(|buffer| {
                let left = disk.size().get().saturating_sub(offset);
                let len = left.min(u64::from(size)) as usize;
                if buffer.len() < len {
                    buffer.resize(len, 0);
                }
                match disk.read_at(offset, &mut buffer[..len]) {
                    Ok(()) => reply.data(&buffer[..len]),
                    // Never less than was asked for: the kernel would take that for the end of the file.
                    Err(error) => {
                        tracing::warn!(error = one_line(&error), "a read failed");
                        reply.error(Errno::EIO);
                    }
                }
            }),
        }
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(Handle::File(file)) = self.state.handle(handle) else {
            return reply.error(Errno::EBADF);
        };
        let size = match &*file {
            Open::Bytes(bytes) => bytes.len() as u64,
            Open::Disk(disk, _) => disk.size().get(),
        };
        let place = u64::try_from(offset).ok().filter(|place| *place < size);
        let (Some(place), libc::SEEK_DATA | libc::SEEK_HOLE) = (place, whence) else {
            return reply.error(Errno::ENXIO);
        };
        let wants_data = whence == libc::SEEK_DATA;
        let found = match &*file {
            Open::Bytes(_) if wants_data => Ok(Some(place)),
            Open::Bytes(_) => Ok(Some(size)),
            Open::Disk(disk, _) => seek(&**disk, place, wants_data),
        };
        match found {
            Ok(Some(place)) => reply.offset(place.cast_signed()),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => {
                tracing::warn!(error = one_line(&error), "looking for holes failed");
                reply.error(Errno::EIO);
            }
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.state.end(handle);
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let node = match self.node(number) {
            Ok(node) if kind(&node) == FileType::Directory => node,
            Ok(_) => return reply.error(Errno::ENOTDIR),
            Err(errno) => return reply.error(errno),
        };
        let mut entries = vec![
            (number.0, FileType::Directory, ".".to_owned()),
            (number.0, FileType::Directory, "..".to_owned()),
        ];
        for (name, child) in self.state.files.children(&node) {
            entries.push((self.state.nodes.number(&child), kind(&child), name));
        }
        let handle = self.state.begin(Handle::Directory(Arc::new(entries)));
        reply.opened(handle, FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(Handle::Directory(entries)) = self.state.handle(handle) else {
            return reply.error(Errno::EBADF);
        };
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (number, kind, name)) in entries.iter().enumerate().skip(first) {
            if reply.add(INodeNo(*number), place as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.state.end(handle);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, BLOCK_LEN, NAME_LEN_MAX, BLOCK_LEN);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
