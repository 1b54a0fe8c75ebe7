//! Why a connection was closed: the application error codes of `CONNECTION_CLOSE`.

use quinn::VarInt;

/// A reason to close a connection. The text that goes with it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Everything was said.
    Done,
    /// The daemon shuts down: come back.
    ShuttingDown,
    /// The peer is not let in.
    NotAdmitted,
}

impl Closing {
    /// The code on the wire.
    pub const fn code(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Done => 0,
            Self::ShuttingDown => 1,
            Self::NotAdmitted => 2,
        })
    }
}
