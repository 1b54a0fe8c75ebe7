//! Connections that end because the two ends do not trust each other, in words.

use std::error::Error;

use quinn::ConnectionError;

use super::conversation::StreamError;
use super::trust::{HandshakeError, Side};

/// TLS alerts among the error codes of QUIC (RFC 9001 section 4.8).
const ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// What ended a connection, as seen at `side`, if it is about trust.
pub fn distrust(side: Side, error: &ConnectionError) -> Option<HandshakeError> {
    let alert = |code: u64| ALERTS.contains(&code).then(|| (code - ALERTS.start) as u8);
    match error {
        ConnectionError::TransportError(error) => {
            HandshakeError::of_own_alert(side, alert(error.code.into())?)
        }
        ConnectionError::ConnectionClosed(close) => {
            HandshakeError::of_alert(side, alert(close.error_code.into())?)
        }
        _ => None,
    }
}

/// The same of a stream. A client's handshake is over before the server has looked at its certificate, so
/// that a refusal is met by whatever is said first.
pub fn distrust_on_stream(error: &StreamError) -> Option<HandshakeError> {
    let lost = match error {
        StreamError::Read(quinn::ReadError::ConnectionLost(lost))
        | StreamError::Write(quinn::WriteError::ConnectionLost(lost))
        | StreamError::Connection(lost) => lost,
        _ => return None,
    };
    distrust(Side::Client, lost)
}

/// The distrust that an error tells of.
pub fn distrust_in(error: &(dyn Error + 'static)) -> Option<HandshakeError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<HandshakeError>() {
            return Some(*found);
        }
        cause = error.source();
    }
    None
}
