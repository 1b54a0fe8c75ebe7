//! What a simulation puts in place of the machine, thread by thread: the monotonic clock, and the number
//! of the worker that acts.
//!
//! A simulation runs all its parts on one thread and in one order. The clock then stands still unless the
//! simulation moves it. Nothing here is set outside tests.

use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
    static WORKER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Sets the time that this thread's stopwatches read, from any origin; `None` for the machine's.
pub fn set_now(now: Option<Duration>) {
    NOW.set(now);
}

/// The simulated time.
pub fn now() -> Option<Duration> {
    NOW.get()
}

/// Sets which worker acts from now on; `None` for the thread that really does.
pub fn set_worker(worker: Option<usize>) {
    WORKER.set(worker);
}

/// The simulated worker.
pub fn worker() -> Option<usize> {
    WORKER.get()
}

/// The number of the worker that this is: the simulated one's, or that of the thread in its pool.
pub fn worker_number() -> usize {
    worker().or_else(rayon::current_thread_index).unwrap_or(0)
}
