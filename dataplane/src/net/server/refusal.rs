//! What a peer is refused, or could not be given: counted, and logged once, with who asked.
//!
//! Whose it is say the spans that the line is in: the connection has the peer and its address, the
//! conversation what it is about.

use tracing::Span;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::frame::FrameType;

use super::figures::{ServerFigures, code_text};
use crate::net::trust::PeerIdentity;

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
        | FailureCode::NoSuchSnapshot
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

/// Counts and logs a failure that a peer is about to be told.
pub fn note(figures: &ServerFigures, failure: &Failure) {
    figures.failed(failure.code);
    let (reason, text) = (code_text(failure.code), failure.text.as_str());
    match weight(failure.code) {
        Weight::Usual => tracing::info!(reason, text, "a request could not be met"),
        Weight::Refused => tracing::warn!(reason, text, "a request was refused"),
        Weight::Failed => tracing::error!(reason, text, "a request failed"),
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
