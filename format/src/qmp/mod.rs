//! QMP, the protocol by which QEMU is asked and told, as a client: no sockets, no clocks.
//!
//! - [`frames`]: where one message of the stream ends and the next begins
//! - [`message`]: greeting, answers, errors, events; commands
//! - [`devices`]: what `query-block` tells of a guest's disks
//!
//! Source: `docs/interop/qmp-spec.rst`, `docs/interop/bitmaps.rst` and `qapi/block-core.json` of QEMU 7.2.

pub mod devices;
pub mod frames;
pub mod message;

/// A monitor said what the protocol does not allow there. The connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// A message without an end.
    #[error("the monitor's message at byte {offset} is longer than {limit} bytes")]
    TooLong {
        /// Where it begins in the stream.
        offset: u64,
        /// The most that is taken.
        limit: usize,
    },
    /// Bytes that begin no object.
    #[error(
        "the monitor's message at byte {offset} begins with byte {found:#04x}: a JSON object is expected"
    )]
    NoObject {
        /// Where it begins in the stream.
        offset: u64,
        /// Its first byte.
        found: u8,
    },
    /// No JSON.
    #[error("the monitor's message at byte {offset} is no JSON: {problem}")]
    Json {
        /// Where it begins in the stream.
        offset: u64,
        /// What is wrong, and where in the message.
        problem: String,
    },
    /// An object that is no message.
    #[error(
        "the monitor's message at byte {offset} is none of QMP's: QMP, return, error or event is expected in it"
    )]
    Kind {
        /// Where it begins in the stream.
        offset: u64,
    },
    /// An answer without something that it has to have.
    #[error("the answer to {command} has no {field}: {expected} is expected")]
    Field {
        /// The command.
        command: &'static str,
        /// What is missing or of another kind.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}
