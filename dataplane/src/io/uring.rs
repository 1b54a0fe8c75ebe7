//! Disks driven by io_uring: one ring per queue, the arena registered, no thread of its own.
//!
//! Registering an arena pins its pages, which makes the kernel clear those that were never used: 140 ms
//! for 64 MiB were measured, a tenth of a backup, in which nothing else moved. So an arena is registered
//! once it has been through use; until then requests name plain memory, and pages come as they are needed.
//!
//! Memory safety rests on three facts. A request handed to the kernel stays in `sent` until its completion
//! is reaped. The schedule keeps the buffer of every request that has not come back. And dropping the
//! queue reaps all completions first, or, should the kernel refuse even that, leaks the buffers rather
//! than free memory that the device may still write.
//!
//! Rings are made with `SINGLE_ISSUER` and `DEFER_TASKRUN` where the kernel has them (6.1): completions
//! are then handled when the owner waits, not by interrupting it. Such a ring belongs to one thread; it is
//! made disabled and enabled by the first [`Queue::submit`], whose thread it belongs to from then on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::io::Errno;

use super::buffer::BufferPool;
use super::depth::DepthController;
use super::engine::{
    Direction, Done, Engine, EngineChoice, EngineError, EngineKind, Queue, Transfer,
};
use super::request::Request;
use super::schedule::Schedule;
use super::slab::Slab;
use crate::clock::Stopwatch;

/// The kernel registers no memory area larger than this (io_uring/rsrc.c, `io_buffer_validate`).
const REGISTERED_LEN_MAX: usize = 1 << 30;

/// The arena's place among the registered buffers: it is the only one.
const ARENA_INDEX: u16 = 0;

/// Deepest ring made; the kernel's own limit is 32768.
const DEPTH_MAX: u32 = 4096;

/// Makes queues on rings.
#[derive(Debug)]
pub struct UringEngine {
    choice: EngineChoice,
}

impl UringEngine {
    /// Sets up a ring to see whether that works, and asks it for the operations used here.
    ///
    /// # Errors
    /// io_uring is not in this kernel, not permitted, or too old.
    pub fn new() -> Result<UringEngine, EngineError> {
        let (ring, _) =
            new_ring(DEPTH_MAX.min(8)).map_err(|source| EngineError::Setup { source })?;
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(|source| EngineError::Probe { source })?;
        let needed = [
            ("read", opcode::Read::CODE),
            ("write", opcode::Write::CODE),
            ("read_fixed", opcode::ReadFixed::CODE),
            ("write_fixed", opcode::WriteFixed::CODE),
        ];
        for (operation, code) in needed {
            if !probe.is_supported(code) {
                return Err(EngineError::Operation { operation });
            }
        }
        Ok(UringEngine {
            choice: EngineChoice {
                kind: EngineKind::Uring,
                reason: None,
            },
        })
    }
}

impl Engine for UringEngine {
    fn choice(&self) -> &EngineChoice {
        &self.choice
    }

    fn queue(&self, pool: &Arc<BufferPool>, depth: u32) -> io::Result<Box<dyn Queue>> {
        let depth = depth.clamp(1, DEPTH_MAX);
        let (ring, disabled) = new_ring(depth)?;
        Ok(Box::new(UringQueue {
            ring,
            disabled,
            arena: ArenaState::New { moved: 0 },
            pool: Arc::clone(pool),
            schedule: Schedule::new(),
            sent: Slab::new(),
            controller: DepthController::new(depth),
            started: Stopwatch::start(),
            depth,
        }))
    }
}

struct UringQueue {
    ring: IoUring,
    /// The ring waits to be enabled by the thread that will use it.
    disabled: bool,
    /// Whether the arena of `pool` is registered with the ring.
    arena: ArenaState,
    pool: Arc<BufferPool>,
    schedule: Schedule,
    /// Requests with the kernel, or in the submission ring on their way to it; keys are the `user_data`.
    sent: Slab<Sent>,
    controller: DepthController,
    started: Stopwatch,
    depth: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ArenaState {
    /// Not yet; so many bytes went through it.
    New {
        moved: u64,
    },
    Registered,
    /// The kernel does not allow it.
    Refused,
}

struct Sent {
    request: Request,
    direct: bool,
}

impl Queue for UringQueue {
    fn submit(&mut self, transfer: Transfer) {
        if self.disabled {
            self.ring
                .submitter()
                .register_enable_rings()
                .expect("a new ring can be enabled");
            self.disabled = false;
        }
        assert!(
            Arc::ptr_eq(transfer.buffer.pool(), &self.pool),
            "a buffer of another pool than the queue was made for"
        );
        self.register_when_used();
        self.schedule.push(transfer);
        self.send_requests();
    }

    fn wait(&mut self) -> Option<Done> {
        self.reap();
        while !self.schedule.has_done() && self.schedule.in_flight() > 0 {
            self.queue_entries();
            if self.sent.len() > 0 && !self.schedule.has_done() {
                self.enter(1)
                    .unwrap_or_else(|error| panic!("waiting for io_uring: {error}"));
                self.reap();
            }
        }
        // Before the caller turns to its own work, the device gets what it has room for.
        self.send_requests();
        self.schedule.pop_done()
    }

    fn try_wait(&mut self) -> Option<Done> {
        if self.sent.len() > 0 {
            self.enter(0)
                .unwrap_or_else(|error| panic!("asking io_uring: {error}"));
            self.reap();
            self.send_requests();
        }
        self.schedule.pop_done()
    }

    fn in_flight(&self) -> usize {
        self.schedule.in_flight()
    }

    fn depth(&self) -> u32 {
        self.depth
    }
}

impl UringQueue {
    /// Registers the arena when twice its bytes have gone through it: its pages are there then.
    fn register_when_used(&mut self) {
        let ArenaState::New { moved } = self.arena else {
            return;
        };
        if moved < 2 * self.pool.total() as u64 {
            return;
        }
        self.arena = match register_arena(&self.ring, &self.pool) {
            Ok(true) => ArenaState::Registered,
            Ok(false) => ArenaState::Refused,
            Err(error) => {
                tracing::debug!(%error, "going on without a registered arena");
                ArenaState::Refused
            }
        };
    }

    /// Hands requests to the kernel up to the depth in use.
    fn send_requests(&mut self) {
        if self.queue_entries() {
            self.enter(0)
                .unwrap_or_else(|error| panic!("submitting to io_uring: {error}"));
        }
    }

    /// Fills the submission ring up to the depth in use; whether anything is new in it.
    fn queue_entries(&mut self) -> bool {
        let mut queued = false;
        while self.schedule.outstanding() < self.controller.depth() as usize {
            let Some(request) = self.schedule.next_request() else {
                break;
            };
            if request.file.os().is_none() {
                let result = request.execute();
                self.schedule.complete(request, result);
                continue;
            }
            if let Err(request) = self.queue_entry(request) {
                self.schedule.give_back(request);
                break;
            }
            queued = true;
        }
        queued
    }

    /// Puts a request into the submission ring, or gives it back if that is full.
    fn queue_entry(&mut self, request: Request) -> Result<(), Request> {
        let registered = self.arena == ArenaState::Registered;
        let (entry, direct) = entry_of(&request, registered);
        let key = self.sent.insert(Sent { request, direct });
        // SAFETY: the memory in `entry` is the request's: inside a buffer that `schedule` keeps until the
        // request is completed, which only `reap` does, after the kernel's completion. The descriptor is
        // kept open by the request's `Arc` of the file, which `sent` holds just as long.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(key as u64)) };
        pushed.map_err(|_full| self.sent.remove(key).request)
    }

    /// Submits what is in the submission ring and waits for `want` completions. Returning without them is
    /// normal: the callers look, and come again.
    fn enter(&self, want: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR) => Ok(()),
                // The kernel is short of memory, or wants completions reaped first. What was not taken
                // stays in the submission ring.
                Some(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {
                    std::thread::yield_now();
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Settles all requests that the kernel has completed.
    fn reap(&mut self) {
        let saturated = self.schedule.outstanding() >= self.controller.depth() as usize;
        while let Some(completion) = self.ring.completion().next() {
            let Sent { request, direct } = self.sent.remove(completion.user_data() as usize);
            let result = result_of(&request, direct, completion.result());
            if let Ok(bytes) = result {
                if let ArenaState::New { moved } = &mut self.arena {
                    *moved += bytes as u64;
                }
                self.controller
                    .completed(bytes as u64, self.started.elapsed(), saturated);
            }
            self.schedule.complete(request, result);
        }
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        self.schedule.cancel_unsent();
        while self.sent.len() > 0 {
            if let Err(error) = self.enter(1) {
                // Another thread than the ring's drops it, for one. The kernel ends the requests by
                // itself some time after the ring is closed: until then their memory must not be used.
                tracing::error!(%error, requests = self.sent.len(), "leaking the buffers of an io_uring");
                std::mem::forget(std::mem::replace(&mut self.schedule, Schedule::new()));
                std::mem::forget(std::mem::replace(&mut self.sent, Slab::new()));
                return;
            }
            self.reap();
        }
    }
}

/// Makes a ring with the best flags the kernel has; `true` if it must be enabled before use.
fn new_ring(depth: u32) -> io::Result<(IoUring, bool)> {
    let deferred = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_r_disabled()
        .build(depth);
    match deferred {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        other => return Ok((other?, true)),
    }
    // 5.19 to 6.0 know the cooperative part; older ones only plain rings.
    match IoUring::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(depth)
    {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        other => return Ok((other?, false)),
    }
    Ok((IoUring::new(depth)?, false))
}

/// Registers the pool's arena, so that the kernel need not pin its pages for every request; `false` if
/// it is too large or the locked-memory limit forbids.
fn register_arena(ring: &IoUring, pool: &BufferPool) -> io::Result<bool> {
    if pool.total() > REGISTERED_LEN_MAX {
        return Ok(false);
    }
    let arena = libc::iovec {
        iov_base: pool.base().cast(),
        iov_len: pool.total(),
    };
    // SAFETY: the range is the pool's mapping, which outlives the ring: the queue holds the pool. Buffers
    // are lent to the kernel only through requests, one at a time.
    match unsafe { ring.submitter().register_buffers(&[arena]) } {
        Ok(()) => Ok(true),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOMEM | Errno::PERM | Errno::OPNOTSUPP) => Ok(false),
            _ => Err(error),
        },
    }
}

/// The kernel's form of a request on an operating system's file, and whether it goes around the cache.
fn entry_of(request: &Request, registered: bool) -> (squeue::Entry, bool) {
    let file = request
        .file
        .os()
        .expect("requests on simulated files are executed inline");
    let (fd, direct) = file.fd_for(request.memory, request.len, request.file_offset);
    let fd = types::Fd(fd.as_raw_fd());
    let (memory, len, offset) = (request.memory, request.len as u32, request.file_offset);
    let entry = match (request.direction, registered) {
        (Direction::Read, true) => opcode::ReadFixed::new(fd, memory, len, ARENA_INDEX)
            .offset(offset)
            .build(),
        (Direction::Read, false) => opcode::Read::new(fd, memory, len).offset(offset).build(),
        (Direction::Write, true) => opcode::WriteFixed::new(fd, memory, len, ARENA_INDEX)
            .offset(offset)
            .build(),
        (Direction::Write, false) => opcode::Write::new(fd, memory, len).offset(offset).build(),
    };
    (entry, direct)
}

/// What a completion means. Where only the ring's way of asking failed, the file is asked by a plain
/// call: that always makes progress, and is rare.
fn result_of(request: &Request, direct: bool, code: i32) -> io::Result<usize> {
    if code >= 0 {
        return Ok(code as usize);
    }
    match Errno::from_raw_os_error(-code) {
        Errno::INVAL if direct => {
            if let Some(file) = request.file.os() {
                file.refuse_direct();
            }
            request.execute()
        }
        Errno::AGAIN | Errno::INTR | Errno::CANCELED => request.execute(),
        errno => Err(errno.into()),
    }
}
