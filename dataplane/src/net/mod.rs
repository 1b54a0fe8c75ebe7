//! Repositories over QUIC: a server that owns them, clients that use them as if they were local.
//!
//! - [`address`]: where a repository is; [`trust`]: who may do what
//! - [`transport`]: how `quinn` is set up; [`conversation`]: frames over its streams;
//!   [`closing`]: why one is closed; [`door`]: where a daemon lets peers in; [`manners`]: how long and with
//!   how much memory a peer is waited for; [`bandwidth`]: limits by schedule
//! - [`convert`]: errors, there and back; [`distrust`]: why the ends do not trust each other
//! - [`server`]: owns a store's repositories; [`client`]: the traits of [`repository`](crate::repository)
//!   for a repository behind a server; [`status`]: what a server tells an administrator
//! - [`proxy`]: an agent that runs backups and restores where the disks are, and its clients
//! - `refusal`: what peers are refused is counted and logged; `daemon_figures`: what every daemon shows
//!
//! Both sides do their work on ordinary threads; only the driving of sockets and connections is
//! asynchronous, on a few threads of a runtime of their own. `docs/protocol.md` has the bytes.

pub mod address;
pub mod bandwidth;
pub mod client;
pub mod closing;
pub mod conversation;
pub mod convert;
mod daemon_figures;
pub mod distrust;
pub mod door;
pub mod manners;
mod partial_frame;
pub mod proxy;
mod refusal;
pub mod server;
pub mod status;
pub mod transport;
pub mod trust;
