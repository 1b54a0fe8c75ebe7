//! Disks read and written over NBD: sockets and TLS around the machines of [`undercroft_format::nbd`].
//!
//! ```text
//! reader > queue > client > connections > transport
//! ```
//!
//! One thread drives all connections of an export, the one that plans the reads: sockets do not block, a
//! payload is received straight into its place in the segment's buffer, and block status is asked between
//! reads in flight. A connection that is lost is made anew, the export is compared with what it was, and
//! what was in flight is asked again.
//!
//! - `client`: all of an export's connections, requests and retries; `books`: what is to be read and
//!   where it goes
//! - `connection`: one connection; `transport`: its bytes, in clear or under TLS
//! - `connect`: from an address to an open export; `tls`: who is trusted
//! - `source`: an export as a disk of a backup, or the target of a restore; `dirty`: what changed on it; `status`: which of the two a
//!   connection asks for
//!
//! The other way round: [`export`].

mod books;
mod client;
mod connect;
mod connection;
mod dirty;
mod error;
pub mod export;
mod source;
mod status;
mod tls;
mod transport;

pub use dirty::{dirty_ranges, has_dirty_bitmap};
pub use error::NbdError;
pub use source::{NbdFile, NbdOptions, open, open_target};
