//! A file on a simulated disk.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::State;
use super::disk::Inode;
use super::fault::SimOp;
use crate::io::file::BlockFile;

/// Holes are told in blocks of this size, as most file systems do: a block of zeros is a hole.
const BLOCK: usize = 4096;

/// An open file of a [`super::SimStorage`]. Like a descriptor, it stays usable when its name is gone.
pub struct SimFile {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) inode: Inode,
    pub(super) writable: bool,
}

impl SimFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(Errno::BADF.into())
        }
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile(inode {})", self.inode)
    }
}

impl BlockFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state.lock();
        state.faults.check(SimOp::Read)?;
        let data = &state.disk.file(self.inode).live;
        let start = data
            .len()
            .min(usize::try_from(offset).unwrap_or(usize::MAX));
        let len = buf.len().min(data.len() - start);
        buf[..len].copy_from_slice(&data[start..start + len]);
        Ok(len)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.state.lock();
        state.faults.check(SimOp::Write)?;
        let (written, result) = state.disk.write(self.inode, buf, offset);
        if written {
            state.faults.mutated();
        }
        result
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.faults.check_power()?;
        let checked = state.faults.check(SimOp::Sync);
        match checked {
            Ok(()) => state.disk.sync_file(self.inode),
            Err(_) => state.disk.drop_unsynced(self.inode),
        }
        checked
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.state.lock();
        state.faults.check_power()?;
        Ok(state.disk.file(self.inode).live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.state.lock();
        state.faults.check(SimOp::SetLen)?;
        state.disk.set_len(self.inode, len);
        state.faults.mutated();
        Ok(())
    }

    fn preallocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.state.lock().faults.check_power()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.state.lock();
        state.faults.check(SimOp::Punch)?;
        state
            .disk
            .punch(self.inode, offset..offset.saturating_add(len));
        state.faults.mutated();
        Ok(())
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        let state = self.state.lock();
        state.faults.check_power()?;
        let data = &state.disk.file(self.inode).live;
        let end = end.min(data.len() as u64) as usize;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(end);
        let block_end = |at: usize| ((at / BLOCK + 1) * BLOCK).min(data.len());
        let is_hole = |at: usize| {
            data[at / BLOCK * BLOCK..block_end(at)]
                .iter()
                .all(|&byte| byte == 0)
        };
        let mut start = offset;
        while start < end && is_hole(start) {
            start = block_end(start);
        }
        if start >= end {
            return Ok(None);
        }
        let mut stop = start;
        while stop < end && !is_hole(stop) {
            stop = block_end(stop);
        }
        Ok(Some(start as u64..stop.min(end) as u64))
    }

    fn advise_dont_need(&self) {}
}
