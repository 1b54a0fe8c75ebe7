//! An engine without a device: every request is carried out when its transfer is submitted, in order.
//!
//! With one thread this makes a run a function of its inputs, which is what the simulation tests need.

use std::io;
use std::sync::Arc;

use crate::io::buffer::BufferPool;
use crate::io::engine::{Done, Engine, EngineChoice, EngineKind, Queue, Transfer};
use crate::io::schedule::Schedule;

/// Makes queues that carry out everything at once, on any kind of file.
#[derive(Debug)]
pub struct SimEngine {
    choice: EngineChoice,
}

impl SimEngine {
    /// Needs nothing.
    #[expect(
        clippy::new_without_default,
        reason = "engines are made by name, for a reason"
    )]
    pub fn new() -> SimEngine {
        SimEngine {
            choice: EngineChoice {
                kind: EngineKind::Sim,
                reason: None,
            },
        }
    }
}

impl Engine for SimEngine {
    fn choice(&self) -> &EngineChoice {
        &self.choice
    }

    fn queue(&self, _pool: &Arc<BufferPool>, depth: u32) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(SimQueue {
            schedule: Schedule::new(),
            depth: depth.max(1),
        }))
    }
}

struct SimQueue {
    schedule: Schedule,
    depth: u32,
}

impl Queue for SimQueue {
    fn submit(&mut self, transfer: Transfer) {
        self.schedule.push(transfer);
        while let Some(request) = self.schedule.next_request() {
            let result = request.execute();
            self.schedule.complete(request, result);
        }
    }

    fn wait(&mut self) -> Option<Done> {
        self.schedule.pop_done()
    }

    fn try_wait(&mut self) -> Option<Done> {
        self.schedule.pop_done()
    }

    fn in_flight(&self) -> usize {
        self.schedule.in_flight()
    }

    fn depth(&self) -> u32 {
        self.depth
    }
}
