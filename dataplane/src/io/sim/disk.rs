//! A simulated disk: what programs see, what would survive a power failure, and what lies between.
//!
//! Every file and directory has a live state, a durable state, and the operations that lead from the one
//! to the other, in order. Syncing replays these on the durable state and forgets them. Inodes are never
//! reused and never freed: a simulated disk lives for one test.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;

use crate::io::storage::{Entry, check_path, parent_of};

/// What a disk writes whole or not at all.
pub(super) const SECTOR: u64 = 512;

/// A file's or directory's place in [`Disk::nodes`].
pub(super) type Inode = usize;

/// The directory all paths start from.
pub(super) const ROOT: Inode = 0;

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) nodes: Vec<Node>,
    /// Bytes all named files together may have.
    capacity: u64,
    used: u64,
    renames: u64,
}

#[derive(Debug)]
pub(super) enum Node {
    File(FileNode),
    Dir(DirNode),
}

#[derive(Debug, Default)]
pub(super) struct FileNode {
    /// Shared with other disks until one of them writes.
    pub(super) live: Arc<Vec<u8>>,
    pub(super) durable: Arc<Vec<u8>>,
    pub(super) pending: Vec<DataOp>,
    /// Has a name now, so its length counts against the capacity.
    pub(super) named: bool,
}

#[derive(Debug, Default)]
pub(super) struct DirNode {
    pub(super) live: BTreeMap<String, Inode>,
    pub(super) durable: BTreeMap<String, Inode>,
    pub(super) pending: Vec<NameOp>,
}

/// A change of a file's bytes.
#[derive(Clone, Debug)]
pub(super) enum DataOp {
    Write {
        offset: u64,
        bytes: Vec<u8>,
        /// It made the file longer when it was issued.
        extends: bool,
    },
    SetLen(u64),
    Punch(Range<u64>),
}

/// A change of a directory's names that happens whole or not at all.
#[derive(Clone, Debug)]
pub(super) struct NameOp {
    /// Names and what they stand for afterwards; `None` for nothing.
    pub(super) edits: Vec<(String, Option<Inode>)>,
    /// Set on both halves of a rename between directories, which survive together or not at all.
    pub(super) rename: Option<u64>,
}

impl Disk {
    /// An empty disk without limit.
    pub(super) fn new() -> Disk {
        Disk {
            nodes: vec![Node::Dir(DirNode::default())],
            capacity: u64::MAX,
            used: 0,
            renames: 0,
        }
    }

    pub(super) fn set_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
    }

    /// Bytes that can still be written; `None` without limit.
    pub(super) fn free_space(&self) -> Option<u64> {
        (self.capacity != u64::MAX).then(|| self.capacity.saturating_sub(self.used))
    }

    pub(super) fn add_node(&mut self, node: Node) -> Inode {
        if let Node::File(file) = &node {
            self.used += file.live.len() as u64;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    pub(super) fn file(&self, inode: Inode) -> &FileNode {
        match &self.nodes[inode] {
            Node::File(file) => file,
            Node::Dir(_) => unreachable!("inodes do not change their kind"),
        }
    }

    fn file_mut(&mut self, inode: Inode) -> &mut FileNode {
        match &mut self.nodes[inode] {
            Node::File(file) => file,
            Node::Dir(_) => unreachable!("inodes do not change their kind"),
        }
    }

    fn dir_mut(&mut self, inode: Inode) -> &mut DirNode {
        match &mut self.nodes[inode] {
            Node::Dir(dir) => dir,
            Node::File(_) => unreachable!("inodes do not change their kind"),
        }
    }

    /// What a path names now.
    pub(super) fn resolve(&self, path: &str) -> io::Result<Inode> {
        check_path(path)?;
        let mut inode = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let Node::Dir(dir) = &self.nodes[inode] else {
                return Err(Errno::NOTDIR.into());
            };
            inode = *dir.live.get(name).ok_or(Errno::NOENT)?;
        }
        Ok(inode)
    }

    pub(super) fn resolve_file(&self, path: &str) -> io::Result<Inode> {
        let inode = self.resolve(path)?;
        match &self.nodes[inode] {
            Node::File(_) => Ok(inode),
            Node::Dir(_) => Err(Errno::ISDIR.into()),
        }
    }

    pub(super) fn resolve_dir(&self, path: &str) -> io::Result<Inode> {
        let inode = self.resolve(path)?;
        match &self.nodes[inode] {
            Node::Dir(_) => Ok(inode),
            Node::File(_) => Err(Errno::NOTDIR.into()),
        }
    }

    /// The directory a path is in, and its name there.
    fn place<'a>(&self, path: &'a str) -> io::Result<(Inode, &'a str)> {
        check_path(path)?;
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.is_empty() {
            return Err(Errno::BUSY.into());
        }
        Ok((self.resolve_dir(parent_of(path))?, name))
    }

    fn edit(&mut self, dir: Inode, edits: Vec<(String, Option<Inode>)>, rename: Option<u64>) {
        let dir = self.dir_mut(dir);
        let op = NameOp { edits, rename };
        apply_names(&mut dir.live, &op);
        dir.pending.push(op);
    }

    pub(super) fn create(&mut self, path: &str) -> io::Result<Inode> {
        let (dir, name) = self.place(path)?;
        if self.dir_mut(dir).live.contains_key(name) {
            return Err(Errno::EXIST.into());
        }
        let inode = self.add_node(Node::File(FileNode {
            named: true,
            ..FileNode::default()
        }));
        self.edit(dir, vec![(name.to_owned(), Some(inode))], None);
        Ok(inode)
    }

    /// Gives whether there is a new directory.
    pub(super) fn create_dir(&mut self, path: &str) -> io::Result<bool> {
        if path.is_empty() {
            return Ok(false);
        }
        let (dir, name) = self.place(path)?;
        match self.dir_mut(dir).live.get(name).copied() {
            Some(inode) => match self.nodes[inode] {
                Node::Dir(_) => Ok(false),
                Node::File(_) => Err(Errno::EXIST.into()),
            },
            None => {
                let inode = self.add_node(Node::Dir(DirNode::default()));
                self.edit(dir, vec![(name.to_owned(), Some(inode))], None);
                Ok(true)
            }
        }
    }

    pub(super) fn remove_file(&mut self, path: &str) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        let inode = self.resolve_file(path)?;
        self.unname(inode);
        self.edit(dir, vec![(name.to_owned(), None)], None);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &str) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        let inode = self.resolve_dir(path)?;
        if !self.dir_mut(inode).live.is_empty() {
            return Err(Errno::NOTEMPTY.into());
        }
        self.edit(dir, vec![(name.to_owned(), None)], None);
        Ok(())
    }

    /// Gives whether anything has changed.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<bool> {
        let ((from_dir, from_name), (to_dir, to_name)) = (self.place(from)?, self.place(to)?);
        let inode = self.resolve(from)?;
        if to
            .strip_prefix(from)
            .is_some_and(|rest| rest.starts_with('/'))
        {
            return Err(Errno::INVAL.into());
        }
        let replaced = self.dir_mut(to_dir).live.get(to_name).copied();
        if replaced == Some(inode) {
            return Ok(false);
        }
        if let Some(replaced) = replaced {
            match (&self.nodes[inode], &self.nodes[replaced]) {
                (Node::File(_), Node::File(_)) => self.unname(replaced),
                (Node::Dir(_), Node::Dir(dir)) if dir.live.is_empty() => {}
                (Node::Dir(_), Node::Dir(_)) => return Err(Errno::NOTEMPTY.into()),
                (Node::File(_), Node::Dir(_)) => return Err(Errno::ISDIR.into()),
                (Node::Dir(_), Node::File(_)) => return Err(Errno::NOTDIR.into()),
            }
        }
        let gone = (from_name.to_owned(), None);
        let there = (to_name.to_owned(), Some(inode));
        if from_dir == to_dir {
            self.edit(from_dir, vec![gone, there], None);
        } else {
            self.renames += 1;
            let rename = Some(self.renames);
            self.edit(from_dir, vec![gone], rename);
            self.edit(to_dir, vec![there], rename);
        }
        Ok(true)
    }

    pub(super) fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let Node::Dir(dir) = &self.nodes[self.resolve_dir(path)?] else {
            unreachable!("just resolved")
        };
        let entry = |(name, &inode): (&String, &Inode)| match &self.nodes[inode] {
            Node::File(file) => Entry {
                name: name.clone(),
                len: file.live.len() as u64,
                is_dir: false,
            },
            Node::Dir(_) => Entry {
                name: name.clone(),
                len: 0,
                is_dir: true,
            },
        };
        Ok(dir.live.iter().map(entry).collect())
    }

    /// Writes what fits the capacity; `ENOSPC` if that is not all. Gives whether anything was written.
    pub(super) fn write(
        &mut self,
        inode: Inode,
        bytes: &[u8],
        offset: u64,
    ) -> (bool, io::Result<()>) {
        let old_len = self.file(inode).live.len() as u64;
        let end_max = old_len.saturating_add(self.capacity.saturating_sub(self.used));
        let fits = bytes.len().min(end_max.saturating_sub(offset) as usize);
        if fits > 0 {
            let extends = offset + fits as u64 > old_len;
            self.change(
                inode,
                DataOp::Write {
                    offset,
                    bytes: bytes[..fits].to_vec(),
                    extends,
                },
            );
        }
        let result = if fits < bytes.len() {
            Err(Errno::NOSPC.into())
        } else {
            Ok(())
        };
        (fits > 0, result)
    }

    pub(super) fn set_len(&mut self, inode: Inode, len: u64) {
        self.change(inode, DataOp::SetLen(len));
    }

    pub(super) fn punch(&mut self, inode: Inode, range: Range<u64>) {
        self.change(inode, DataOp::Punch(range));
    }

    fn change(&mut self, inode: Inode, op: DataOp) {
        let file = self.file_mut(inode);
        let old_len = file.live.len() as u64;
        apply_data(Arc::make_mut(&mut file.live), &op);
        file.pending.push(op);
        self.account(inode, old_len);
    }

    fn account(&mut self, inode: Inode, old_len: u64) {
        let file = self.file(inode);
        if file.named {
            self.used = self.used + file.live.len() as u64 - old_len;
        }
    }

    fn unname(&mut self, inode: Inode) {
        let file = self.file_mut(inode);
        file.named = false;
        let len = file.live.len() as u64;
        self.used -= len;
    }

    /// Makes a file's bytes durable.
    pub(super) fn sync_file(&mut self, inode: Inode) {
        let file = self.file_mut(inode);
        let pending = std::mem::take(&mut file.pending);
        if !pending.is_empty() {
            let durable = Arc::make_mut(&mut file.durable);
            pending.iter().for_each(|op| apply_data(durable, op));
        }
    }

    /// A sync that failed: the cache forgets what it could not write.
    pub(super) fn drop_unsynced(&mut self, inode: Inode) {
        let file = self.file_mut(inode);
        let old_len = file.live.len() as u64;
        file.pending.clear();
        file.live = Arc::clone(&file.durable);
        self.account(inode, old_len);
    }

    /// Makes a directory's names durable, and whatever renames between directories tie to them.
    pub(super) fn sync_dir(&mut self, dir: Inode) {
        let mut cuts = BTreeMap::from([(dir, self.dir_mut(dir).pending.len())]);
        let halves = self.rename_halves();
        let mut changed = true;
        while changed {
            changed = false;
            for &[a, b] in &halves {
                for ((dir, at), (other, other_at)) in [(a, b), (b, a)] {
                    let included = cuts.get(&dir).is_some_and(|&cut| at < cut);
                    if included && cuts.get(&other).is_none_or(|&cut| cut <= other_at) {
                        cuts.insert(other, other_at + 1);
                        changed = true;
                    }
                }
            }
        }
        for (dir, cut) in cuts {
            let dir = self.dir_mut(dir);
            for op in dir.pending.drain(..cut) {
                apply_names(&mut dir.durable, &op);
            }
        }
    }

    /// For every rename between directories that is not durable: the directories and places in their
    /// logs where its two halves are.
    pub(super) fn rename_halves(&self) -> Vec<[(Inode, usize); 2]> {
        let mut halves: BTreeMap<u64, Vec<(Inode, usize)>> = BTreeMap::new();
        for (inode, node) in self.nodes.iter().enumerate() {
            let Node::Dir(dir) = node else { continue };
            for (at, op) in dir.pending.iter().enumerate() {
                if let Some(rename) = op.rename {
                    halves.entry(rename).or_default().push((inode, at));
                }
            }
        }
        halves
            .into_values()
            .map(|pair| pair.try_into().expect("both halves become durable at once"))
            .collect()
    }

    /// Turns a bit over where it lies, as a bad disk does: seen at once, and durable.
    pub(super) fn flip_bit(&mut self, inode: Inode, offset: u64, bit: u32) -> io::Result<()> {
        let file = self.file_mut(inode);
        let at = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        if at >= file.live.len() {
            return Err(Errno::INVAL.into());
        }
        Arc::make_mut(&mut file.live)[at] ^= 1 << (bit % 8);
        if at < file.durable.len() {
            Arc::make_mut(&mut file.durable)[at] ^= 1 << (bit % 8);
        }
        Ok(())
    }

    /// All paths, with the bytes of files and `None` for directories.
    pub(super) fn contents(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let mut contents = BTreeMap::new();
        let mut rest = vec![(String::new(), ROOT)];
        while let Some((path, inode)) = rest.pop() {
            match &self.nodes[inode] {
                Node::File(file) => {
                    contents.insert(path, Some(file.live.to_vec()));
                }
                Node::Dir(dir) => {
                    for (name, &child) in &dir.live {
                        let separator = if path.is_empty() { "" } else { "/" };
                        rest.push((format!("{path}{separator}{name}"), child));
                    }
                    if inode != ROOT {
                        contents.insert(path, None);
                    }
                }
            }
        }
        contents
    }
}

/// Carries out a change of names.
pub(super) fn apply_names(names: &mut BTreeMap<String, Inode>, op: &NameOp) {
    for (name, inode) in &op.edits {
        match inode {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

/// Carries out a change of bytes.
pub(super) fn apply_data(data: &mut Vec<u8>, op: &DataOp) {
    match op {
        DataOp::Write { offset, bytes, .. } => write_into(data, *offset, bytes),
        DataOp::SetLen(len) => data.resize(*len as usize, 0),
        DataOp::Punch(range) => {
            let end = (range.end as usize).min(data.len());
            let start = (range.start as usize).min(end);
            data[start..end].fill(0);
        }
    }
}

/// Writes, growing with zeros as needed.
pub(super) fn write_into(data: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = offset as usize;
    let end = start + bytes.len();
    if data.len() < end {
        data.resize(end, 0);
    }
    data[start..end].copy_from_slice(bytes);
}
