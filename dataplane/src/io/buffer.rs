//! The memory all disk bytes pass through: one page-aligned arena, cut into buffers.
//!
//! The arena bounds the memory of a run: a stage that wants a buffer waits until another stage lets one
//! go. Buffers never overlap (`Granules` asserts it), every byte of the arena is initialized (the
//! kernel hands out zero pages), and the arena lives as long as any of its buffers, because each buffer
//! owns a share of the pool.
//!
//! Waiters are not served in order: a large request can be overtaken by small ones. A fair queue would
//! turn "large waits for small, which needs one more small" into a deadlock, so there is none.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::granules::Granules;

/// Unit of allocation: a sixteenth of a MiB wastes little on 1 MiB extents, and 1 GiB needs 2 KiB of bitmap.
const GRANULE: usize = 64 * 1024;

/// The arena's size is a multiple of this, so that it holds whole extents and whole huge pages in pairs.
const ARENA_UNIT: usize = 1024 * 1024;

/// A fixed amount of memory that buffers are taken from.
pub struct BufferPool {
    arena: Arena,
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    granules: Granules,
    peak: usize,
}

impl BufferPool {
    /// Maps an arena of `total` bytes, rounded up to whole MiB (at least one).
    ///
    /// # Panics
    /// If the address space is exhausted: the arena is made once, at the start of a run.
    pub fn new(total: usize) -> Arc<BufferPool> {
        let total = total.max(1).next_multiple_of(ARENA_UNIT);
        Arc::new(BufferPool {
            arena: Arena::map(total),
            state: Mutex::new(State {
                granules: Granules::new(total / GRANULE),
                peak: 0,
            }),
            returned: Condvar::new(),
        })
    }

    /// Takes a buffer of `len` bytes, waiting until there is room. Its contents are arbitrary old bytes.
    ///
    /// # Panics
    /// If `len` is more than the pool's total: such a wait would never end.
    pub fn acquire(self: &Arc<Self>, len: usize) -> Buffer {
        assert!(
            len <= self.total(),
            "a buffer of {len} bytes was asked of a pool of {} bytes",
            self.total()
        );
        let mut state = self.state.lock();
        loop {
            if let Some(buffer) = self.take(&mut state, len) {
                return buffer;
            }
            self.returned.wait(&mut state);
        }
    }

    /// Takes a buffer of `len` bytes if there is room for it now.
    pub fn try_acquire(self: &Arc<Self>, len: usize) -> Option<Buffer> {
        self.take(&mut self.state.lock(), len)
    }

    /// Size of the arena in bytes.
    pub fn total(&self) -> usize {
        self.arena.len
    }

    /// Bytes in buffers now, rounded up to granules.
    pub fn in_use(&self) -> usize {
        self.state.lock().granules.taken() * GRANULE
    }

    /// Most bytes that were ever in buffers at once, rounded up to granules.
    pub fn peak(&self) -> usize {
        self.state.lock().peak * GRANULE
    }

    /// Start of the arena, for registering it with a ring as a whole.
    pub(super) fn base(&self) -> *mut u8 {
        self.arena.base.as_ptr()
    }

    fn take(self: &Arc<Self>, state: &mut State, len: usize) -> Option<Buffer> {
        if len > self.total() {
            return None;
        }
        let first = state.granules.take(granules_of(len))?;
        state.peak = state.peak.max(state.granules.taken());
        Some(Buffer {
            pool: Arc::clone(self),
            offset: first * GRANULE,
            len,
        })
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BufferPool({} of {} bytes in use)",
            self.in_use(),
            self.total()
        )
    }
}

/// A part of the arena that belongs to its holder alone; dropping it returns it to the pool.
pub struct Buffer {
    pool: Arc<BufferPool>,
    /// In bytes from the arena's start.
    offset: usize,
    len: usize,
}

impl Buffer {
    /// The pool this buffer is a part of.
    pub(super) fn pool(&self) -> &Arc<BufferPool> {
        &self.pool
    }

    /// Address of the buffer's byte `at`, for the kernel; valid up to the buffer's end.
    pub(super) fn address(&self, at: usize) -> *mut u8 {
        assert!(
            at <= self.len,
            "byte {at} of a buffer of {} bytes",
            self.len
        );
        // SAFETY: `offset + at <= offset + len`, which `take` keeps inside the arena's mapping.
        unsafe { self.pool.base().add(self.offset + at) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the `len` bytes at this address are inside the mapping, initialized (zero pages or what
        // was written since), and no other `Buffer` covers them while this one lives. The kernel writes
        // them only while a queue holds the buffer, which gives out no reference meanwhile.
        unsafe { std::slice::from_raw_parts(self.address(0), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference into the range.
        unsafe { std::slice::from_raw_parts_mut(self.address(0), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state
            .granules
            .give_back(self.offset / GRANULE, granules_of(self.len));
        // All waiters look again: which of them the gap is large enough for is not known here.
        self.pool.returned.notify_all();
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at arena+{})", self.len, self.offset)
    }
}

/// An anonymous private mapping.
struct Arena {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory with no tie to the thread that made it; all access to it goes
// through `Buffer`s, whose ranges are disjoint.
unsafe impl Send for Arena {}
// SAFETY: as for `Send`; `&Arena` itself only gives out the address.
unsafe impl Sync for Arena {}

impl Arena {
    fn map(len: usize) -> Arena {
        // SAFETY: a null hint leaves the choice of address to the kernel, so nothing existing is replaced.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let base = base.unwrap_or_else(|errno| panic!("mapping {len} bytes for buffers: {errno}"));
        // SAFETY: the range is the mapping just made. Huge pages are a wish: the kernel may refuse.
        let _ = unsafe { rustix::mm::madvise(base, len, Advice::LinuxHugepage) };
        Arena {
            base: NonNull::new(base.cast()).expect("mmap does not give address zero"),
            len,
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length; every `Buffer` holds the pool alive, so
        // none is left that refers to it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Granules a buffer of `len` bytes takes; an empty one takes one too, so that it has a place.
fn granules_of(len: usize) -> usize {
    len.max(1).div_ceil(GRANULE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn total_is_rounded_up_to_mebibytes() {
        assert_eq!(BufferPool::new(1).total(), ARENA_UNIT);
        assert_eq!(BufferPool::new(3 * ARENA_UNIT).total(), 3 * ARENA_UNIT);
        assert_eq!(BufferPool::new(3 * ARENA_UNIT + 1).total(), 4 * ARENA_UNIT);
    }

    #[test]
    fn buffers_are_page_aligned_and_disjoint() {
        let pool = BufferPool::new(ARENA_UNIT);
        let mut buffers: Vec<Buffer> = (0..8).map(|i| pool.acquire(GRANULE + i * 1000)).collect();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.as_ptr() as usize % 4096, 0);
            assert_eq!(buffer.len(), GRANULE + i * 1000);
            buffer.fill(i as u8);
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|&byte| byte == i as u8));
        }
        assert_eq!(pool.in_use(), 15 * GRANULE);
        drop(buffers);
        assert_eq!((pool.in_use(), pool.peak()), (0, 15 * GRANULE));
    }

    #[test]
    fn a_full_pool_refuses_or_waits() {
        let pool = BufferPool::new(ARENA_UNIT);
        let all = pool.acquire(ARENA_UNIT);
        assert!(pool.try_acquire(1).is_none());
        let (sender, receiver) = mpsc::channel();
        let waiter = std::thread::spawn({
            let pool = Arc::clone(&pool);
            move || {
                sender
                    .send(pool.acquire(5).len())
                    .expect("the test listens")
            }
        });
        assert!(
            receiver.recv_timeout(Duration::from_millis(50)).is_err(),
            "it did not wait"
        );
        drop(all);
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(5));
        waiter.join().expect("the waiter ends well");
    }

    #[test]
    fn empty_buffers_are_possible() {
        let pool = BufferPool::new(ARENA_UNIT);
        assert!(pool.acquire(0).is_empty());
    }

    #[test]
    #[should_panic(expected = "was asked of a pool")]
    fn more_than_the_pool_is_our_bug() {
        BufferPool::new(ARENA_UNIT).acquire(ARENA_UNIT + 1);
    }

    #[test]
    fn a_buffer_outlives_the_last_handle_of_its_pool() {
        let mut buffer = BufferPool::new(ARENA_UNIT).acquire(10);
        buffer.fill(7);
        assert_eq!(&buffer[..], &[7; 10]);
    }
}
