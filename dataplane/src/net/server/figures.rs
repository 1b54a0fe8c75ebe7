//! What the server counts beside its repositories.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use undercroft_format::wire::frame::FrameType;

use super::repository_figures::RepositoryFamilies;
use crate::net::refusal::FailureFigures;
use crate::observe::exposition::snake_case;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

/// The figures of a server.
#[derive(Debug, Default)]
pub struct ServerFigures {
    /// What peers were told that they cannot have.
    pub failures: FailureFigures,
    conversations: Family<OfKind, Counter>,
    running: Family<OfKind, Gauge>,
    /// By repository.
    pub repositories: RepositoryFamilies,
    beat_ms: AtomicU64,
}

impl ServerFigures {
    /// Counts a conversation that began with a frame of type `first`, until what is returned is dropped.
    pub fn conversing(&self, first: FrameType) -> Running {
        let kind = OfKind {
            kind: snake_case(first),
        };
        self.conversations.get_or_create(&kind).inc();
        let running = self.running.get_or_create_owned(&kind);
        running.inc();
        Running(running)
    }

    /// The server's loop goes round.
    pub fn beat(&self, now_ms: u64) {
        self.beat_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When it last did.
    pub fn last_beat_ms(&self) -> u64 {
        self.beat_ms.load(Ordering::Relaxed)
    }

    /// Adds the figures to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        self.failures.register(registry);
        registry.register(
            "conversations",
            "Conversations that began, by their first frame",
            self.conversations.clone(),
        );
        registry.register(
            "conversations_running",
            "Conversations that run, by their first frame",
            self.running.clone(),
        );
        self.repositories.register(registry);
    }
}

/// A conversation that is counted.
pub struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_are_counted_while_they_run() {
        let figures = ServerFigures::default();
        let running = figures.conversing(FrameType::Begin);
        let kind = OfKind {
            kind: "begin".into(),
        };
        assert_eq!(figures.running.get_or_create(&kind).get(), 1);
        drop(running);
        assert_eq!(figures.running.get_or_create(&kind).get(), 0);
        assert_eq!(figures.conversations.get_or_create(&kind).get(), 1);
    }
}
