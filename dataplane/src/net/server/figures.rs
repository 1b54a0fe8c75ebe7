//! What the server counts beside its repositories.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use undercroft_format::wire::failure::FailureCode;
use undercroft_format::wire::frame::FrameType;

use super::repository_figures::RepositoryFamilies;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

/// The figures of a server.
#[derive(Debug, Default)]
pub struct ServerFigures {
    failures: Family<OfCode, Counter>,
    conversations: Family<OfKind, Counter>,
    running: Family<OfKind, Gauge>,
    /// By repository.
    pub repositories: RepositoryFamilies,
    beat_ms: AtomicU64,
}

impl ServerFigures {
    /// Counts something that a peer was told it cannot have.
    pub fn failed(&self, code: FailureCode) {
        let code = code_text(code);
        self.failures.get_or_create(&OfCode { code }).inc();
    }

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
        for code in FailureCode::ALL {
            let code = code_text(*code);
            drop(self.failures.get_or_create(&OfCode { code }));
        }
        registry.register(
            "failures",
            "Failures that peers were told, by code",
            self.failures.clone(),
        );
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

/// The word for a code, in figures and log lines.
pub fn code_text(code: FailureCode) -> String {
    snake_case(code)
}

/// The name of a variant that has no fields.
fn snake_case(variant: impl std::fmt::Debug) -> String {
    let mut text = String::new();
    for letter in format!("{variant:?}").chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_words() {
        assert_eq!(code_text(FailureCode::NoSuchSession), "no_such_session");
        assert_eq!(code_text(FailureCode::Busy), "busy");
    }

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
