//! A disk for the reader of ext file systems, which reads eight blocks where it wants one.
//!
//! A chunk that is lost would take the files before it along. So only the first block of a read counts; of those after
//! it that cannot be read, a mark takes the place. Whoever reads files looks for it: see [`Marks::is_mark`]. In what the
//! file system keeps for itself it is never valid: as a number of a block or an inode it lies past the end, as a type
//! of file it means nothing.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use ext4_view::Ext4Read;

use crate::disk::ReadDisk;

const MARK_LEN: usize = 32;

/// What was put in place of blocks that cannot be read.
#[derive(Clone)]
pub struct Marks(Rc<RefCell<Inner>>);

struct Inner {
    mark: [u8; MARK_LEN],
    /// Why the last one cannot be.
    cause: Option<Arc<io::Error>>,
}

impl Marks {
    fn new() -> io::Result<Self> {
        let mut mark = [0; MARK_LEN];
        getrandom::fill(&mut mark).map_err(|error| io::Error::other(error.to_string()))?;
        for high in mark.iter_mut().skip(3).step_by(4) {
            *high |= 0xf0;
        }
        Ok(Self(Rc::new(RefCell::new(Inner { mark, cause: None }))))
    }

    /// Why the bytes of a block, from its start, cannot be read, if they were not.
    pub fn is_mark(&self, block: &[u8]) -> Option<Arc<io::Error>> {
        let inner = self.0.borrow();
        let cause = inner.cause.as_ref()?;
        let len = block.len().min(MARK_LEN);
        (block[..len] == inner.mark[..len]).then(|| cause.clone())
    }

    /// Why some block could not be read that nobody wanted so far.
    pub fn cause(&self) -> Option<Arc<io::Error>> {
        self.0.borrow().cause.clone()
    }
}

/// The disk, as [`ext4_view`] reads it.
pub struct LenientReader {
    disk: Arc<dyn ReadDisk>,
    block_len: usize,
    marks: Marks,
}

impl LenientReader {
    /// Blocks of `block_len` bytes of `disk`.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(disk: Arc<dyn ReadDisk>, block_len: usize) -> io::Result<(Self, Marks)> {
        let marks = Marks::new()?;
        Ok((
            Self {
                disk,
                block_len,
                marks: marks.clone(),
            },
            marks,
        ))
    }
}

impl Ext4Read for LenientReader {
    fn read(&mut self, at: u64, out: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Err(error) = self.disk.read_at(at, out) else {
            return Ok(());
        };
        if out.len() <= self.block_len {
            return Err(error.into());
        }
        let mut inner = self.marks.0.borrow_mut();
        let places = (at..).step_by(self.block_len);
        for (place, block) in places.zip(out.chunks_mut(self.block_len)) {
            if let Err(error) = self.disk.read_at(place, block) {
                if place == at {
                    return Err(error.into());
                }
                inner.cause = Some(Arc::new(error));
                let mark = inner.mark;
                block
                    .iter_mut()
                    .zip(mark.iter().cycle())
                    .for_each(|(byte, mark)| *byte = *mark);
            }
        }
        Ok(())
    }
}
