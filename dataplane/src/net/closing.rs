//! Why a connection was closed: the application error codes of `CONNECTION_CLOSE`.

use quinn::{Connection, ConnectionError, TransportErrorCode, VarInt};
use undercroft_format::wire::failure::{Failure, FailureCode};

use super::trust::{HandshakeError, Side};

/// A reason to close a connection. The text that goes with it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Everything was said.
    Done,
    /// The daemon shuts down: come back.
    ShuttingDown,
    /// The peer is not let in.
    NotAdmitted,
    /// The peer was let in, and is no more: its certificate was revoked or has ended.
    Revoked,
    /// There are too many connections: come back later.
    TooMany,
    /// The peer said nothing for too long.
    Silent,
}

const CODES: [(Closing, u32); 6] = [
    (Closing::Done, 0),
    (Closing::ShuttingDown, 1),
    (Closing::NotAdmitted, 2),
    (Closing::Revoked, 3),
    (Closing::TooMany, 4),
    (Closing::Silent, 5),
];

impl Closing {
    /// The code on the wire.
    pub fn code(self) -> VarInt {
        let known = CODES.iter().find(|(closing, _)| *closing == self);
        VarInt::from_u32(known.expect("every reason has a code").1)
    }

    /// Closes a connection for this reason.
    pub fn close(self, connection: &Connection, text: &str) {
        connection.close(self.code(), text.as_bytes());
    }

    /// Why the peer closed a connection, and its text; `None` if that is not how it ended.
    pub fn of(error: &ConnectionError) -> Option<(Self, String)> {
        let ConnectionError::ApplicationClosed(close) = error else {
            return None;
        };
        let known = CODES
            .iter()
            .find(|(_, code)| VarInt::from_u32(*code) == close.error_code);
        let text: String = String::from_utf8_lossy(&close.reason)
            .chars()
            .filter(|letter| !letter.is_control())
            .collect();
        known.map(|(closing, _)| (*closing, text))
    }
}

/// What the end of a connection says to a client that was refused, or is let in no more; `None` if it may
/// just have been lost.
pub fn refusal_of(error: &ConnectionError) -> Option<Failure> {
    let refused = |code, text: String| Some(Failure::new(code, text));
    if let Some((closing, text)) = Closing::of(error) {
        return match closing {
            Closing::NotAdmitted | Closing::Revoked => refused(
                FailureCode::Denied,
                format!("the server ended the connection: {text}"),
            ),
            Closing::TooMany => refused(
                FailureCode::Busy,
                format!("the server refuses the connection: {text}"),
            ),
            Closing::Done | Closing::ShuttingDown | Closing::Silent => None,
        };
    }
    let ConnectionError::ConnectionClosed(close) = error else {
        return None;
    };
    if close.error_code == TransportErrorCode::CONNECTION_REFUSED {
        let text = "the server takes no more connections at the moment: try again later";
        return refused(FailureCode::Busy, text.into());
    }
    // TLS alerts are errors 0x100 to 0x1ff (RFC 9001 section 4.8).
    let code = u64::from(close.error_code);
    let alert = code
        .checked_sub(0x100)
        .and_then(|alert| alert.try_into().ok())?;
    let meaning = HandshakeError::of_alert(Side::Client, alert)?;
    refused(FailureCode::Denied, meaning.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_back() {
        for (closing, code) in CODES {
            assert_eq!(closing.code(), VarInt::from_u32(code));
            let closed = quinn::ApplicationClose {
                error_code: closing.code(),
                reason: "why\n\u{1b}[31m".as_bytes().to_vec().into(),
            };
            assert_eq!(
                Closing::of(&ConnectionError::ApplicationClosed(closed)),
                Some((closing, "why[31m".to_owned()))
            );
        }
        assert_eq!(Closing::of(&ConnectionError::TimedOut), None);
    }
}
