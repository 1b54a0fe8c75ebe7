//! The whole of it under simulation: backups by real clients, the protocol, the server's sessions, and the
//! repository, in one thread, over a simulated network and a simulated disk. One seed decides who acts when,
//! and what goes wrong: connections break, the server crashes, loses power or runs out of disk, clients die,
//! others take their sessions over, leases lapse, and collections run in the middle of everything.
//!
//! A failure prints its seed and how it came to it. `UNDERCROFT_SIM_SEED=n` runs that seed alone and prints
//! everything that happens; `UNDERCROFT_SIM_SEEDS=n` runs so many.

#[path = "../support/mod.rs"]
mod support;

mod books;
mod client;
mod driver;
mod site;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use undercroft_dataplane::simulate;

use driver::Run;
use world::World;

const SEEDS: u64 = 2000;
/// Workers of each client: they take turns.
const WORKERS: usize = 3;

/// Runs one seed; the hash of all that happened, or why it must not have happened.
fn run_seed(
    seed: u64,
    threads: &Arc<rayon::ThreadPool>,
    is_loud: bool,
) -> Result<blake3::Hash, String> {
    let world = World::new(seed, is_loud);
    let run = || Run::new(&world, threads).run();
    let done = catch_unwind(AssertUnwindSafe(run));
    simulate::set_now(None);
    simulate::set_worker(None);
    done.map_err(|payload| {
        let why = payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| {
                payload
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
            })
            .unwrap_or_default();
        let trace: Vec<String> = world.lock().trace().cloned().collect();
        format!(
            "{}\nseed {seed}: {why}\nagain: UNDERCROFT_SIM_SEED={seed} cargo test --release \
             -p undercroft-dataplane --test simulation seeds",
            trace.join("\n")
        )
    })
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn workers() -> Arc<rayon::ThreadPool> {
    Arc::new(support::threads(WORKERS))
}

/// Code under test that spreads over rayon's threads stays on this one.
fn on_one_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(1)
                .use_current_thread()
                .build()
                .expect("this thread is in no pool yet");
            let result = work();
            drop(pool);
            result
        });
        thread
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    })
}

#[test]
fn seeds() {
    if let Some(seed) = variable("UNDERCROFT_SIM_SEED") {
        let ran = on_one_thread(|| run_seed(seed, &workers(), true));
        return println!("{}", ran.unwrap_or_else(|why| panic!("{why}")));
    }
    let count = variable("UNDERCROFT_SIM_SEEDS").unwrap_or(SEEDS);
    let first = variable("UNDERCROFT_SIM_FIRST").unwrap_or(0);
    let (next, has_failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let run = || {
        let threads = workers();
        while !has_failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            if let Err(why) = run_seed(seed, &threads, false) {
                has_failed.store(true, Ordering::Relaxed);
                panic!("{why}");
            }
        }
    };
    let machines = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..machines)
            .map(|_| scope.spawn(|| on_one_thread(run)))
            .collect();
        all.into_iter().for_each(|one| {
            one.join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        });
    });
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..40 {
        let [once, again] = [(); 2].map(|()| on_one_thread(|| run_seed(seed, &workers(), false)));
        let [once, again] = [once, again].map(|ran| ran.unwrap_or_else(|why| panic!("{why}")));
        assert_eq!(once, again, "seed {seed} ran in two ways");
    }
}
