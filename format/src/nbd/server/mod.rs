//! The NBD protocol, as a server: no sockets, no clocks, no disks.
//!
//! - [`offer`]: the exports there are, and what they can do
//! - [`negotiation`]: from the greeting to an export, fixed newstyle
//! - [`requests`]: what clients ask of an open export, checked
//! - [`replies`]: what they are answered, simple and structured
//!
//! Whatever a client sends leads to an answer or to a [`ClientError`], never to more memory than its limits:
//! options are held up to [`OPTION_LEN_MAX`](negotiation::OPTION_LEN_MAX), and the bytes of writes not at all.
//! Source: `doc/proto.md` of NetworkBlockDevice/nbd.

pub mod error;
pub mod negotiation;
pub mod offer;
mod option_data;
pub mod replies;
pub mod requests;

pub use error::ClientError;

#[cfg(test)]
mod requests_tests;
#[cfg(test)]
mod tests;
