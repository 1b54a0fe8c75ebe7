//! The NBD protocol, as a client that reads and as a server: no sockets, no clocks.
//!
//! - [`uri`]: `nbd://`, `nbds://`, `nbd+unix://`, `nbds+unix://`
//! - [`wire`]: the protocol's numbers, as types
//! - [`negotiation`]: from the greeting to an export, fixed newstyle
//! - [`transmission`]: reads and block status, simple and structured replies
//! - [`extents`]: what a server knows of zeros and of changes
//! - [`server`]: the other side
//!
//! All machines take bytes in pieces of any size and never hold more than what a limit allows. Whatever
//! a server sends that the protocol does not allow is a [`ProtocolError`] that says what was expected.
//! Source: the NBD protocol document and URI specification, `doc/proto.md` and `doc/uri.md` of
//! NetworkBlockDevice/nbd.

pub mod error;
pub mod extents;
pub mod negotiation;
pub mod server;
pub mod transmission;
pub mod uri;
pub mod wire;

pub use error::{ProtocolError, Refusal};
