//! Disks exported over NBD: sockets, TLS and threads around the machines of
//! [`undercroft_format::nbd::server`].
//!
//! ```text
//! listen > negotiate > connection: requests > work (threads) > replies
//! ```
//!
//! A task per connection reads requests, as many as [`bounds`] allow; blocking threads serve them; another task
//! writes replies in the order in which they are done. What is in flight is bounded in bytes, per connection and
//! for all. A client that does not take its replies is let go.
//!
//! - [`server`]: the whole; `listen`: sockets; [`tls`]: certificates
//! - `negotiate`: until an export is open; `connection`: from then on; `work`: one request; `reply`: its answer
//! - [`disk`]: what can be exported

pub mod bounds;
mod connection;
pub mod disk;
mod error;
mod listen;
mod negotiate;
mod reply;
pub mod server;
pub mod tls;
mod work;

pub use disk::{Exported, WriteDisk, ZeroFlags};
pub use error::ExportError;
pub use listen::Listen;
pub use server::{ExportOptions, ExportServer};
pub use tls::ServerTls;
