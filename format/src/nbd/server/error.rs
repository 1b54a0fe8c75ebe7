//! What a client can do wrong so that nothing can be said to it any more.

/// A client sent what the protocol does not allow there. The connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A number that should mark the beginning of something.
    #[error("the client's {what} should begin with {expected:x}, not {found:x}")]
    Magic {
        /// What was to begin.
        what: &'static str,
        /// Its magic number.
        expected: u64,
        /// What came instead.
        found: u64,
    },
    /// Handshake flags that were not offered.
    #[error(
        "the client answers the greeting with flags {flags:#x}, of which some were not offered"
    )]
    Flags {
        /// What it answers.
        flags: u32,
    },
    /// An option so long that its end is not worth waiting for.
    #[error("an option of the client is {found} bytes long: at most {limit} expected")]
    OptionLen {
        /// Its length.
        found: u32,
        /// The most that is passed over.
        limit: u32,
    },
    /// Options without end.
    #[error("the client asked more than {limit} options")]
    TooManyOptions {
        /// The most that are answered.
        limit: usize,
    },
    /// `EXPORT_NAME` has no refusals.
    #[error("the client asked by EXPORT_NAME for the export {name:?}, {problem}")]
    ExportName {
        /// The name, perhaps cut.
        name: String,
        /// Why it cannot have it.
        problem: &'static str,
    },
    /// Plain bytes behind the request to speak TLS: somebody else may have put them there.
    #[error(
        "{0} bytes follow the client's STARTTLS in clear: somebody may be tampering with the connection"
    )]
    ClearAfterStartTls(usize),
}
