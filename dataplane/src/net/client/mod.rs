//! A repository behind a server, as if it were local.
//!
//! `link` is the connections; `repository`, `session`, `records` and `maintenance` are the traits of
//! the same names over it, `snapshot_files` the directory of snapshots, `judge` opens for the server what
//! takes the key.

mod expected;
mod judge;
mod lane;
pub mod link;
mod maintenance;
mod records;
mod reference;
pub mod repository;
mod session;
mod snapshot_files;

pub use link::{Dial, Link, LinkError, LinkLimits, LinkOptions};
pub use repository::RemoteRepository;
