//! Disks driven by threads that block in `pread` and `pwrite`: slower than io_uring, and works anywhere.
//!
//! Each queue has its own threads, started as its depth is first used. A request is owned by exactly one
//! side at a time, the queue or a thread, and travels through channels; the queue is not dropped before
//! all have come back.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::buffer::BufferPool;
use super::depth::DepthController;
use super::engine::{Done, Engine, EngineChoice, EngineKind, Queue, Transfer};
use super::request::Request;
use super::schedule::Schedule;
use crate::clock::Stopwatch;

/// Most threads of one queue. A blocked thread costs a stack and context switches; 16 requests at once
/// saturate the reference disks.
const THREADS_MAX: usize = 16;

/// Makes queues of blocking threads.
#[derive(Debug)]
pub struct PosixEngine {
    choice: EngineChoice,
}

impl PosixEngine {
    /// `reason` says why this engine is a second choice, if it is.
    pub fn new(reason: Option<String>) -> PosixEngine {
        PosixEngine {
            choice: EngineChoice {
                kind: EngineKind::Posix,
                reason,
            },
        }
    }
}

impl Engine for PosixEngine {
    fn choice(&self) -> &EngineChoice {
        &self.choice
    }

    fn queue(&self, _pool: &Arc<BufferPool>, depth: u32) -> io::Result<Box<dyn Queue>> {
        let (send_request, requests) = unbounded();
        let (send_ended, ended) = unbounded();
        let mut queue = PosixQueue {
            schedule: Schedule::new(),
            controller: DepthController::new(depth.min(THREADS_MAX as u32)),
            started: Stopwatch::start(),
            depth: depth.max(1),
            threads: Vec::new(),
            send_request: Some(send_request),
            ended,
            ends: ThreadEnds {
                requests,
                send_ended,
            },
        };
        queue.start_thread()?;
        Ok(Box::new(queue))
    }
}

type Ended = (Request, io::Result<usize>);

struct PosixQueue {
    schedule: Schedule,
    controller: DepthController,
    started: Stopwatch,
    depth: u32,
    threads: Vec<JoinHandle<()>>,
    /// `None` while the queue is being dropped: that is what ends the threads.
    send_request: Option<Sender<Request>>,
    ended: Receiver<Ended>,
    ends: ThreadEnds,
}

/// What each thread gets a copy of.
#[derive(Clone)]
struct ThreadEnds {
    requests: Receiver<Request>,
    send_ended: Sender<Ended>,
}

impl Queue for PosixQueue {
    fn submit(&mut self, transfer: Transfer) {
        self.schedule.push(transfer);
        self.send_requests();
    }

    fn wait(&mut self) -> Option<Done> {
        while !self.schedule.has_done() && self.schedule.outstanding() > 0 {
            let ended = self.ended.recv().expect("this queue holds a sender itself");
            self.take_back(ended);
            self.send_requests();
        }
        self.schedule.pop_done()
    }

    fn try_wait(&mut self) -> Option<Done> {
        // Refilled one by one, so that the controller does not take this loop for a lack of work.
        while let Ok(ended) = self.ended.try_recv() {
            self.take_back(ended);
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

impl PosixQueue {
    fn send_requests(&mut self) {
        while self.schedule.outstanding() < self.controller.depth() as usize {
            let Some(request) = self.schedule.next_request() else {
                return;
            };
            if request.file.os().is_none() {
                let result = request.execute();
                self.schedule.complete(request, result);
                continue;
            }
            if self.threads.len() < self.schedule.outstanding().min(THREADS_MAX) {
                // There is one thread already: without this one it is slower, not wrong.
                let _ = self.start_thread();
            }
            let sender = self
                .send_request
                .as_ref()
                .expect("only `drop` takes it away");
            sender
                .send(request)
                .expect("this queue holds a receiver itself");
        }
    }

    fn take_back(&mut self, (request, result): Ended) {
        let saturated = self.schedule.outstanding() >= self.controller.depth() as usize;
        if let Ok(bytes) = result {
            self.controller
                .completed(bytes as u64, self.started.elapsed(), saturated);
        }
        self.schedule.complete(request, result);
    }

    fn start_thread(&mut self) -> io::Result<()> {
        let ends = self.ends.clone();
        let name = format!("undercroft-io-{}", self.threads.len());
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || serve(&ends))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for PosixQueue {
    fn drop(&mut self) {
        self.schedule.cancel_unsent();
        while self.schedule.outstanding() > 0 {
            let (request, result) = self.ended.recv().expect("this queue holds a sender itself");
            self.schedule.complete(request, result);
        }
        self.send_request = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A thread's life: until the queue lets go of its sender.
fn serve(ends: &ThreadEnds) {
    for request in &ends.requests {
        let result = request.execute();
        if ends.send_ended.send((request, result)).is_err() {
            return;
        }
    }
}
