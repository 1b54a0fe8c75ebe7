//! The exports there are.

use crate::nbd::negotiation::BlockSizes;
use crate::nbd::wire::{STRING_LEN_MAX, TransmissionFlags};

/// Longest payload of a request or reply, in bytes: what other servers take, too.
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// What is told of block sizes: any byte can be asked for, whole pages pay.
pub const BLOCK_SIZES: BlockSizes = BlockSizes {
    minimum: 1,
    preferred: 4096,
    maximum: PAYLOAD_MAX,
};

/// An export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its name; one with an empty name is the default.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
    /// Its size in bytes, at most 2^63 - 1.
    pub size: u64,
    /// Whether it can be written to.
    pub writable: bool,
}

impl Offer {
    /// What it can do, for clients with structured replies or without.
    pub fn flags(&self, structured: bool) -> TransmissionFlags {
        type Flags = TransmissionFlags;
        let common = Flags::HAS_FLAGS
            .with(Flags::CAN_MULTI_CONN)
            .with(Flags::SEND_CACHE)
            .with(Flags::SEND_FLUSH)
            .with(Flags::SEND_FUA);
        let flags = match self.writable {
            false => common.with(Flags::READ_ONLY),
            true => common
                .with(Flags::SEND_TRIM)
                .with(Flags::SEND_WRITE_ZEROES)
                .with(Flags::SEND_FAST_ZERO),
        };
        match structured {
            true => flags.with(Flags::SEND_DF),
            false => flags,
        }
    }
}

/// All exports of a server, and how they may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offers {
    list: Vec<Offer>,
    /// Nothing is answered before TLS.
    pub tls: bool,
}

/// Why exports cannot be offered together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// Two of one name.
    #[error("two exports have the name {0:?}")]
    Twice(String),
    /// A name that the protocol cannot carry.
    #[error("the export name {0:?} is longer than {STRING_LEN_MAX} bytes or has a NUL in it")]
    Name(String),
    /// A size that it cannot carry.
    #[error("the export {name:?} has {size} bytes: at most 2^63 - 1 can be exported")]
    Size {
        /// Which export.
        name: String,
        /// Its size.
        size: u64,
    },
}

impl Offers {
    /// Offers `list`.
    ///
    /// # Errors
    /// [`OfferError`].
    pub fn new(list: Vec<Offer>, tls: bool) -> Result<Self, OfferError> {
        for (place, offer) in list.iter().enumerate() {
            let name = &offer.name;
            if name.len() > STRING_LEN_MAX || name.contains('\0') {
                return Err(OfferError::Name(name.clone()));
            }
            if list[..place].iter().any(|before| before.name == *name) {
                return Err(OfferError::Twice(name.clone()));
            }
            if offer.size > i64::MAX as u64 {
                return Err(OfferError::Size {
                    name: name.clone(),
                    size: offer.size,
                });
            }
        }
        Ok(Self { list, tls })
    }

    /// The exports.
    pub fn list(&self) -> &[Offer] {
        &self.list
    }

    /// Which one `name` means. An only export is the default, too.
    pub fn find(&self, name: &str) -> Option<usize> {
        let named = self.list.iter().position(|offer| offer.name == name);
        let is_only = name.is_empty() && self.list.len() == 1;
        named.or(is_only.then_some(0))
    }
}
