//! Which of the things that a server can tell of ranges is asked for.

use undercroft_format::nbd::negotiation::{ContextId, Export};
use undercroft_format::nbd::wire::{STATE_DIRTY, STATE_ZERO};

/// What a client wants to know of ranges: one thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Where other bytes than zeros may be.
    Data,
    /// What changed, by the bitmap that the URI names.
    Dirty,
}

impl Status {
    /// The context that tells it, if the server has it.
    pub fn context(self, export: &Export) -> Option<ContextId> {
        match self {
            Self::Data => export.allocation,
            Self::Dirty => export.dirty,
        }
    }

    /// Whether an extent with this state is one.
    pub fn is_set(self, state: u32) -> bool {
        match self {
            Self::Data => state & STATE_ZERO == 0,
            Self::Dirty => state & STATE_DIRTY != 0,
        }
    }
}
