//! What a proxy counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use undercroft_format::wire::proxy::Ending;
use undercroft_format::wire::task::Task;

use crate::net::refusal::FailureFigures;

/// The kinds of tasks, as [`Task::kind`] names them.
const KINDS: [&str; 2] = ["backup", "restore"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTask {
    kind: &'static str,
    outcome: &'static str,
}

/// The figures of a proxy that are counted, not read.
#[derive(Debug, Default)]
pub struct ProxyFigures {
    ended: Family<OfTask, Counter>,
    /// What peers were told that they cannot have.
    pub failures: FailureFigures,
    beat_ms: AtomicU64,
    is_draining: AtomicBool,
}

impl ProxyFigures {
    /// Counts a task that is over.
    pub fn ended(&self, task: &Task, ending: Ending) {
        let of = OfTask {
            kind: task.kind(),
            outcome: ending.name(),
        };
        self.ended.get_or_create(&of).inc();
    }

    /// The proxy's loop goes round.
    pub fn beat(&self, now_ms: u64) {
        self.beat_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When it last did.
    pub fn last_beat_ms(&self) -> u64 {
        self.beat_ms.load(Ordering::Relaxed)
    }

    /// The proxy shuts down.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Whether it does, without waiting for the books.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Adds the figures to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        for kind in KINDS {
            for ending in Ending::ALL {
                let outcome = ending.name();
                drop(self.ended.get_or_create(&OfTask { kind, outcome }));
            }
        }
        registry.register(
            "proxy_tasks_ended",
            "Tasks that are over, by kind and outcome",
            self.ended.clone(),
        );
        self.failures.register(registry);
    }
}
