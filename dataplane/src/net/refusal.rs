//! What a peer is refused, or could not be given: counted, and logged once, with who asked.
//!
//! Whose it is say the spans that the line is in: the connection has the peer and its address, the
//! conversation what it is about.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::Span;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::frame::FrameType;

use super::trust::PeerIdentity;
use crate::observe::exposition::snake_case;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: String,
}

/// What is counted of failures. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct FailureFigures {
    failures: Family<OfCode, Counter>,
}

impl FailureFigures {
    /// Counts and logs a failure that a peer is about to be told.
    pub fn note(&self, failure: &Failure) {
        let code = code_text(failure.code);
        self.failures.get_or_create(&OfCode { code }).inc();
        let (reason, text) = (code_text(failure.code), failure.text.as_str());
        match weight(failure.code) {
            Weight::Usual => tracing::info!(reason, text, "a request could not be met"),
            Weight::Refused => tracing::warn!(reason, text, "a request was refused"),
            Weight::Failed => tracing::error!(reason, text, "a request failed"),
        }
    }

    /// Adds the figures to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        // All that can happen is shown from the beginning: an alert sees the first of its kind.
        for code in FailureCode::ALL {
            let code = code_text(*code);
            drop(self.failures.get_or_create(&OfCode { code }));
        }
        registry.register(
            "failures",
            "Failures that peers were told, by code",
            self.failures.clone(),
        );
    }
}

/// The word for a code, in figures and log lines.
pub fn code_text(code: FailureCode) -> String {
    snake_case(code)
}

/// How much a failure says to whoever runs the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// Nothing: the peer asked for what is not there, or to stop.
    Usual,
    /// The peer did what it may not, or what makes no sense.
    Refused,
    /// The server could not do what it should.
    Failed,
}

fn weight(code: FailureCode) -> Weight {
    match code {
        FailureCode::Cancelled
        | FailureCode::Draining
        | FailureCode::Suspended
        | FailureCode::NoSuchSnapshot
        | FailureCode::NoSuchTask
        | FailureCode::AlreadyExists
        | FailureCode::KeyNeeded => Weight::Usual,
        FailureCode::Failed
        | FailureCode::DiskFull
        | FailureCode::Damaged
        | FailureCode::Locked
        | FailureCode::MissingObject
        | FailureCode::CorruptObject
        | FailureCode::IncompleteSnapshot => Weight::Failed,
        _ => Weight::Refused,
    }
}

/// The span of a connection. It is there at every level of the log, so that each line says whose it is.
pub fn connection_span(peer: &PeerIdentity, address: std::net::SocketAddr) -> Span {
    tracing::error_span!(
        "connection",
        peer = %peer.name,
        role = %peer.role,
        %address,
        repository = tracing::field::Empty,
    )
}

/// The span of a conversation that began with a frame of type `first`.
pub fn conversation_span(first: FrameType) -> Span {
    use tracing::field::Empty;
    match first {
        FrameType::Begin => tracing::error_span!("session", session = Empty, vm = Empty),
        FrameType::Attach => tracing::error_span!("lane", session = Empty, vm = Empty),
        FrameType::Fetch => tracing::error_span!("fetch"),
        kind => tracing::error_span!("request", ?kind),
    }
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
    fn what_a_peer_may_not_do_weighs_more_than_what_is_not_there() {
        for code in [
            FailureCode::Protocol,
            FailureCode::Denied,
            FailureCode::BadRecord,
            FailureCode::Fenced,
            FailureCode::Unpublishable,
            FailureCode::Busy,
        ] {
            assert_eq!(weight(code), Weight::Refused);
        }
        assert_eq!(weight(FailureCode::DiskFull), Weight::Failed);
        assert_eq!(weight(FailureCode::NoSuchSnapshot), Weight::Usual);
    }
}
